//! `foldgate advance`: a demo chain from its lists alone, on every backend.

mod common;

use common::{DemoChain, Ran, count, run};
use foldgate_cli::CliError;

fn advance(chain: &DemoChain, blocks: &std::path::Path, more: &[&str]) -> Result<Ran, CliError> {
    let text = |name: &str| chain.path(name).to_str().unwrap().to_owned();
    let (genesis, bals) = (text("genesis.json"), text("bals"));
    let arguments = ["advance", "--amsterdam-rules", "osaka", "--json", "--genesis", &genesis, "--bals", &bals];
    run(&[&arguments[..], &["--chain", blocks.to_str().unwrap()], more].concat())
}

#[test]
fn a_chain_is_applied_from_its_lists() {
    let chain = DemoChain::new(12);
    let file = chain.path("chain.rlp");
    let durable = [("redb", cfg!(feature = "redb")), ("mdbx", cfg!(feature = "mdbx"))];
    for (backend, _) in durable.into_iter().filter(|(_, built_in)| *built_in) {
        let home = tempfile::tempdir().unwrap();
        let db = home.path().to_str().unwrap();
        let store = ["--backend", backend, "--db", db];
        // Half of it first; the second time it goes on from the tip.
        let half = chain.write("half.rlp", &chain.blocks()[..6]);
        let more = [&store[..], &["--checkpoint-every", "4", "--merged-blocks", "3", "--unwind-depth", "2"]].concat();
        let json = advance(&chain, &half, &more).unwrap().json();
        assert_eq!(["blocks", "checkpoints", "tip"].map(|key| count(&json, key)), [6, 2, 6]);
        let json = advance(&chain, &file, &store).unwrap().json();
        assert_eq!(["blocks", "checkpoints", "tip"].map(|key| count(&json, key)), [6, 1, 12]);
        // A replay finds the store where a replay would have left it.
        let json = chain.replay(&file, &store).unwrap().json();
        assert_eq!(count(&json, "blocks"), 0);
    }
}

#[test]
fn a_missing_list_is_named_and_nothing_is_written() {
    let chain = DemoChain::new(4);
    let home = tempfile::tempdir().unwrap();
    let lists: Vec<_> = std::fs::read_dir(chain.path("bals")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(lists.len(), 4);
    std::fs::remove_file(&lists[0]).unwrap();
    let store = ["--db", home.path().to_str().unwrap()];
    let error = advance(&chain, &chain.path("chain.rlp"), &store).unwrap_err();
    assert!(common::chain(&error).contains("has no access list"), "{}", common::chain(&error));
    let none = chain.write("none.rlp", &[]);
    let json = advance(&chain, &none, &store).unwrap().json();
    assert_eq!(["blocks", "tip"].map(|key| count(&json, key)), [0, 0]);
}
