//! `foldgate validate`, and the mode `shadow` of the commands beside it.

mod common;

use common::{Ran, count, run};
use foldgate_testing::fixtures_or_skip;

fn shadowed(ran: &Ran) -> [u64; 3] {
    let json = ran.json();
    ["compared", "skipped", "divergences"].map(|key| count(&json["shadow"], key))
}

#[test]
fn generated_chains_on_every_backend() {
    let backends = ["memory", "redb", "mdbx"];
    let built_in = backends.iter().filter(|name| match **name {
        "redb" => cfg!(feature = "redb"),
        "mdbx" => cfg!(feature = "mdbx"),
        _ => true,
    });
    let mut sums = Vec::new();
    for backend in built_in {
        // Two chains: one goes on to the limit of a chain.
        let ran = run(&["validate", "--json", "--generated", "280", "--seed", "3", "--backend", backend]).unwrap();
        assert!(ran.good, "{}", ran.notes);
        let mut json = ran.json();
        let figures = ["blocks", "generated", "divergences", "wrong"].map(|key| count(&json, key));
        assert_eq!(figures, [280, 280, 0, 0]);
        let [ahead, incremental, compared] =
            ["folded_ahead", "folded_incremental", "compared"].map(|key| count(&json, key));
        assert!(ahead > 200 && incremental > 5 && compared >= ahead, "{json}");
        assert!(count(&json, "generated_reorgs") > 5 && count(&json, "generated_below_tip") > 5, "{json}");
        json.as_object_mut().unwrap().remove("backend");
        sums.push(json);
    }
    assert!(sums.windows(2).all(|pair| pair[0] == pair[1]), "{sums:?}");
}

#[test]
fn tests_witnesses_and_chains() {
    let lists = fixtures_or_skip!("lists of glamsterdam-devnet-8", "bal-glamsterdam");
    let chains = fixtures_or_skip!("whole chains", "chains");
    let witnesses = fixtures_or_skip!("witnesses", "mainnet-witness");
    let other = fixtures_or_skip!("tests of tries", "trie-tests");
    let paths = [&lists, &chains, &witnesses, &other].map(|path| path.to_str().unwrap());
    let ran = run(&[&["validate", "--json", "--fixtures"], &paths[..]].concat()).unwrap();
    assert!(ran.good, "{}", ran.notes);
    let json = ran.json();
    assert_eq!(["tests", "chains", "divergences", "wrong"].map(|key| count(&json, key)), [23, 2, 0, 0]);
    // 13 of the tests' blocks, 595 and 13 of the chains' are from Cancun on, and the witnesses' that can be executed.
    let (witnesses, compared) = (count(&json, "witnesses"), count(&json, "compared"));
    assert!(witnesses >= 6 && compared >= 13 + 595 + 13 + 5, "{json}");
    assert!(count(&json, "other_files") > 5);
}

#[test]
fn the_mode_shadow_of_fixtures_and_replay() {
    let lists = fixtures_or_skip!("lists of glamsterdam-devnet-8", "bal-glamsterdam");
    let ran = run(&["fixtures", "--json", "--mode", "shadow", lists.to_str().unwrap()]).unwrap();
    assert!(ran.good, "{}", ran.notes);
    let [compared, _, divergences] = shadowed(&ran);
    assert!(compared >= 13 && divergences == 0, "{}", ran.out);
    let chain = fixtures_or_skip!("whole chains", "chains").join("execution-apis-54");
    let file = |name: &str| chain.join(name).to_str().unwrap().to_owned();
    let (genesis, blocks) = (file("genesis.json"), file("chain.rlp"));
    let args =
        ["replay", "--json", "--backend", "memory", "--mode", "shadow", "--genesis", &genesis, "--chain", &blocks];
    let ran = run(&args).unwrap();
    assert_eq!(shadowed(&ran), [13, 41, 0]);
}

/// What cannot be searched is said, and what is wrong with a test makes the sum bad.
#[test]
fn what_is_wrong_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    assert!(run(&["validate", "--fixtures", missing.to_str().unwrap()]).is_err());
    std::fs::write(folder.path().join("bad.json"), "{\"a\": {\"genesisBlockHeader\": 1}}").unwrap();
    std::fs::write(folder.path().join("bad.json.gz"), "no archive").unwrap();
    let ran = run(&["validate", "--fixtures", folder.path().to_str().unwrap(), "--json"]).unwrap();
    assert!(!ran.good);
    assert_eq!((count(&ran.json(), "wrong"), ran.notes.lines().count()), (2, 2), "{}", ran.notes);
}
