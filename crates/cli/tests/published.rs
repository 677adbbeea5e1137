//! The published test data, with the figures that it has to reach. Without the data each test says so and passes.
//!
//! Everything runs in memory in full; the durable backends run a sample here, and in full by command.

mod common;

use std::{fs, io::Read};

use common::{Ran, count, run};
use foldgate_cli::witness::{Source, WitnessFault, verify, verify_file};
use foldgate_core::witness::WitnessError;
use foldgate_testing::{fixtures_or_skip, witness::read_witness};
use serde_json::json;

fn durable() -> &'static [&'static str] {
    match (cfg!(feature = "redb"), cfg!(feature = "mdbx")) {
        (true, true) => &["redb", "mdbx"],
        (true, false) => &["redb"],
        (false, true) => &["mdbx"],
        (false, false) => &[],
    }
}

/// Runs `fixtures` on a path; all must be well.
fn fixtures(path: &std::path::Path, more: &[&str]) -> Ran {
    let ran = run(&[&["fixtures", "--json", path.to_str().unwrap()], more].concat()).unwrap();
    assert!(ran.good, "{}", ran.notes);
    ran
}

const FIGURES: [&str; 7] = ["tests", "passed", "failed", "skipped", "blocks", "folded_ahead", "folded_incremental"];

fn figures(ran: &Ran) -> [u64; 7] {
    let json = ran.json();
    assert_eq!(json.as_object().unwrap().len(), FIGURES.len() + 1, "{json}");
    FIGURES.map(|key| count(&json, key))
}

#[test]
fn osaka_gas_lists_are_folded_ahead_and_confirmed() {
    let dir = fixtures_or_skip!("lists under Osaka's rules", "bal-amsterdam");
    let own = fixtures(&dir.join("eip7928-osaka-gas.tar.zst"), &["--amsterdam-rules", "osaka"]);
    assert_eq!(figures(&own), [295, 295, 0, 0, 301, 258, 0]);
    let others = fixtures(&dir.join("other-eips-osaka-gas.tar.zst"), &["--amsterdam-rules", "osaka"]);
    assert_eq!(figures(&others), [768, 768, 0, 0, 1083, 1018, 0]);
    let incremental = ["--amsterdam-rules", "osaka", "--mode", "incremental"];
    assert_eq!(figures(&fixtures(&dir.join("eip7928-osaka-gas.tar.zst"), &incremental)), [295, 295, 0, 0, 301, 0, 258]);
}

#[test]
fn osaka_gas_lists_on_durable_backends() {
    let dir = fixtures_or_skip!("lists under Osaka's rules on durable backends", "bal-amsterdam");
    for backend in durable() {
        let more = ["--amsterdam-rules", "osaka", "--backend", backend, "--filter", "invalid"];
        let [tests, passed, failed, skipped, ..] = figures(&fixtures(&dir.join("eip7928-osaka-gas.tar.zst"), &more));
        assert!(tests > 40 && passed == tests && failed + skipped == 0, "{backend}: {passed} of {tests}");
    }
}

#[test]
fn lists_alone_lead_to_every_root() {
    let dir = fixtures_or_skip!("lists of bal-devnet-4", "bal-amsterdam");
    let ran = fixtures(&dir.join("eip7928-bal-devnet-4.tar.zst"), &["--no-execute"]);
    assert_eq!(figures(&ran), [295, 286, 0, 9, 301, 258, 0]);
    assert_eq!(ran.json()["skips"], json!({"only_execution_shows_the_fault": 9}));
    assert_eq!(ran.notes.lines().filter(|line| line.starts_with("UNDECIDED")).count(), 9, "{}", ran.notes);
}

#[test]
fn the_newest_draft_with_and_without_execution() {
    let dir = fixtures_or_skip!("lists of glamsterdam-devnet-8", "bal-glamsterdam");
    assert_eq!(figures(&fixtures(&dir, &["--no-execute"])), [23, 21, 0, 2, 23, 13, 0]);
    assert_eq!(figures(&fixtures(&dir, &[])), [23, 23, 0, 0, 23, 13, 0]);
}

#[test]
fn prague_with_derived_lists() {
    let dir = fixtures_or_skip!("tests of Prague", "prague-fill");
    assert_eq!(figures(&fixtures(&dir, &[])), [684, 684, 0, 0, 977, 913, 0]);
    assert_eq!(figures(&fixtures(&dir, &["--no-execute"])), [684, 0, 0, 684, 0, 0, 0]);
}

#[test]
fn ethereum_tests_with_derived_lists() {
    let dir = fixtures_or_skip!("ethereum/tests", "ethereum-tests");
    let ran = fixtures(&dir, &[]);
    assert_eq!(figures(&ran), [2049, 2041, 0, 8, 2373, 2219, 18]);
    assert_eq!(ran.json()["skips"], json!({"evm_gap_eip7610": 8}));
    for backend in durable() {
        let sample = fixtures(&dir, &["--backend", backend, "--filter", "InvalidBlocks"]);
        let [tests, passed, ..] = figures(&sample);
        assert!(tests > 50 && passed == tests, "{backend}: {passed} of {tests}");
    }
}

#[test]
fn whole_chains() {
    let dir = fixtures_or_skip!("whole chains", "chains");
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    for backend in [&["memory"], durable()].concat() {
        for mode in ["bal", "incremental"] {
            let args = |chain: &str| {
                let (genesis, blocks) = (file(&format!("{chain}/genesis.json")), file(&format!("{chain}/chain.rlp")));
                ["replay", "--json", "--backend", backend, "--mode", mode, "--genesis", &genesis, "--chain", &blocks]
                    .map(str::to_owned)
                    .to_vec()
            };
            let replay = |args: Vec<String>| run(&args.iter().map(String::as_str).collect::<Vec<_>>()).unwrap().json();
            let json =
                replay([args("ethtest-600"), vec!["--head-state".into(), file("ethtest-600/headstate.json")]].concat());
            let ahead = if mode == "bal" { 595 } else { 0 };
            assert_eq!(["blocks", "roots_ok", "folded_ahead"].map(|key| count(&json, key)), [600, 600, ahead]);
            assert_eq!(count(&json["skips"], "before_cancun"), 5);
            let json = replay(args("execution-apis-54"));
            let ahead = if mode == "bal" { 13 } else { 0 };
            assert_eq!(["blocks", "roots_ok", "folded_ahead"].map(|key| count(&json, key)), [54, 54, ahead]);
            assert_eq!(count(&json["skips"], "before_cancun"), 41);
            assert_eq!(count(&json["skips"], "receipts_root_before_byzantium"), 8);
        }
    }
}

#[test]
fn blocks_on_their_witnesses() {
    let dir = fixtures_or_skip!("mainnet witnesses", "mainnet-witness");
    let mut files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "gz"));
    files.sort();
    let names: Vec<_> = files.iter().map(|path| path.to_str().unwrap()).collect();
    let ran = run(&[&["witness", "--json"], &names[..]].concat()).unwrap();
    assert!(ran.good, "{}", ran.notes);
    assert_eq!(ran.json(), json!({"blocks": 6, "roots_ok": 6}));
    for path in &files {
        let verified = verify_file(path).unwrap();
        let partial = verified.block.number == 22_188_088;
        assert_eq!(verified.source, if partial { Source::StateDiffs } else { Source::List }, "{}", path.display());
        assert_eq!(verified.not_executed.is_some(), partial);
    }
}

#[test]
fn a_missing_witness_node_is_named_by_its_path() {
    let dir = fixtures_or_skip!("witness without a node", "mainnet-witness");
    let whole = read_witness(&dir.join("hoodi-1265656.json.gz")).unwrap();
    let (mut read, mut folded) = (0, 0);
    for position in (0..whole.witness.state.len()).step_by(83) {
        let mut cut = whole.clone();
        cut.witness.state.remove(position);
        let missing = match verify(&cut) {
            Ok(_) => continue,
            Err(WitnessFault::Execution { source, .. }) => {
                read += 1;
                common::chain(&*source)
            }
            Err(error @ (WitnessFault::Resolve { .. } | WitnessFault::Fold { .. })) => {
                folded += 1;
                common::chain(&error)
            }
            Err(other) => panic!("{other}"),
        };
        let named = missing.contains("account trie") || missing.contains("storage trie");
        assert!(missing.contains("lacks the node 0x") && named, "{missing}");
    }
    assert!(read > 5, "{read} were missed by execution, {folded} by the fold");
}

#[test]
fn a_tampered_witness_is_refused() {
    let dir = fixtures_or_skip!("tampered witnesses", "mainnet-witness");
    let whole = read_witness(&dir.join("hoodi-1265656.json.gz")).unwrap();
    let mut no_parent = whole.clone();
    no_parent.witness.headers.clear();
    assert!(matches!(verify(&no_parent), Err(WitnessFault::NoParent)));
    let mut unlinked = whole.clone();
    unlinked.witness.headers.remove(2);
    assert!(matches!(verify(&unlinked), Err(WitnessFault::NotLinked { .. })));
    let mut chain = whole.clone();
    chain.chain_id = 5;
    assert!(matches!(verify(&chain), Err(WitnessFault::UnknownChain { got: 5 })));
    let mut list = whole.clone();
    list.block_access_list = Some(vec![0xc0].into());
    assert!(matches!(verify(&list), Err(WitnessFault::ListMismatch { .. })));
    let mut code = whole;
    code.witness.codes.clear();
    let Err(WitnessFault::Execution { source, .. }) = verify(&code) else { panic!("the code is needed") };
    assert!(matches!(*source, foldgate_evm::ExecutionError::Storage(WitnessError::MissingCode { .. })), "{source}");
}

#[test]
fn a_truncated_archive_is_named_and_fails_the_run() {
    let dir = fixtures_or_skip!("truncated archives", "bal-amsterdam");
    let mut content = Vec::new();
    let archive = dir.join("eip7928-osaka-gas.tar.zst");
    fs::File::open(archive).unwrap().take(100_000).read_to_end(&mut content).unwrap();
    let cut = tempfile::tempdir().unwrap();
    let cut = cut.path().join("cut.tar.zst");
    fs::write(&cut, content).unwrap();
    let ran = run(&["fixtures", "--json", "--amsterdam-rules", "osaka", cut.to_str().unwrap()]).unwrap();
    assert!(!ran.good);
    assert!(ran.notes.contains("UNREADABLE") && ran.notes.contains("cut.tar.zst"), "{}", ran.notes);
}
