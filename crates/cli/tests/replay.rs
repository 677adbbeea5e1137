//! Demo and replay: the same chain by every way into the store, and every kind of bad input on the way.
//!
//! Invariant: after a refused input the store stands where it stood; a replay that goes on from there tells.

#![cfg(feature = "redb")]

mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use alloy_consensus::Block as WireBlock;
use alloy_primitives::{B256, U256};
use alloy_rlp::Decodable;
use common::{DemoChain, chain, count};
use foldgate_cli::{
    CliError,
    chain_store::ChainStoreError,
    import::ImportError,
    replay::{Gap, ReplayError},
};
use foldgate_core::{Account, StateAnchor, TrieReader, TrieStore};
use foldgate_evm::Transaction;
use foldgate_pipeline::InvalidReason;
use foldgate_storage_redb::RedbStore;
use foldgate_testing::ReadError;
use serde_json::{Value, json};

fn replay_error(error: CliError) -> ReplayError {
    match error {
        CliError::Replay(error) => *error,
        other => panic!("{other}"),
    }
}

/// A store that holds the first blocks of a chain.
fn partial_store(chain: &DemoChain, directory: &Path, blocks: usize) {
    let first = chain.write("first.rlp", &chain.blocks()[..blocks]);
    let ran = chain.replay(&first, &["--db", directory.to_str().unwrap()]).unwrap();
    assert_eq!(count(&ran.json(), "roots_ok"), blocks as u64);
}

#[test]
fn every_way_of_replay_reaches_every_root() {
    let chain = DemoChain::new(5);
    let (file, bals) = (chain.path("chain.rlp"), chain.path("bals"));
    let bals = bals.to_str().unwrap();
    let backends = if cfg!(feature = "mdbx") { &["memory", "redb", "mdbx"][..] } else { &["memory", "redb"] };
    for backend in backends {
        for (more, ahead, skips) in [
            (&["--bals", bals][..], 5, json!({})),
            (&[], 5, json!({})),
            (&["--mode", "incremental"], 0, json!({"switched_off": 5})),
            (&["--mode", "incremental", "--bals", bals], 0, json!({"switched_off": 5})),
        ] {
            let json = chain.replay(&file, &[more, &["--backend", backend]].concat()).unwrap().json();
            let figures = ["blocks", "roots_ok", "folded_ahead", "folded_incremental"].map(|key| count(&json, key));
            assert_eq!(figures, [5, 5, ahead, 5 - ahead], "{backend} {more:?}");
            assert_eq!(json["skips"], skips);
        }
    }
}

#[test]
fn a_replay_goes_on_from_the_tip() {
    let chain = DemoChain::new(6);
    let store = tempfile::tempdir().unwrap();
    partial_store(&chain, store.path(), 2);
    let db = ["--db", store.path().to_str().unwrap()];
    let rest = chain.replay(&chain.path("chain.rlp"), &db).unwrap().json();
    assert_eq!((count(&rest, "blocks"), count(&rest, "folded_ahead")), (4, 4));
    let nothing = chain.replay(&chain.path("chain.rlp"), &db).unwrap().json();
    assert_eq!(count(&nothing, "blocks"), 0);
}

#[test]
fn a_chain_that_does_not_continue_the_tip_is_refused() {
    let chain = DemoChain::new(5);
    let store = tempfile::tempdir().unwrap();
    partial_store(&chain, store.path(), 3);
    let db = ["--db", store.path().to_str().unwrap()];
    let blocks = chain.blocks();
    let gap = |file: &Path| match replay_error(chain.replay(file, &db).unwrap_err()) {
        ReplayError::NotContinuing { tip, why, .. } => {
            assert_eq!(tip.number, 3);
            why
        }
        other => panic!("{other}"),
    };
    assert!(matches!(gap(&chain.write("below.rlp", &blocks[..2])), Gap::EndsBelow { last } if last.number == 2));
    assert!(matches!(gap(&chain.write("above.rlp", &blocks[4..])), Gap::BeginsAbove { first } if first.number == 5));
    let mut sibling = WireBlock::<Transaction>::decode(&mut &blocks[2][..]).unwrap();
    sibling.header.timestamp += 1;
    let sibling = alloy_rlp::encode(&sibling);
    let other = chain.write("other.rlp", &[blocks[0].clone(), blocks[1].clone(), sibling]);
    assert!(matches!(gap(&other), Gap::Other { got } if got.number == 3));
    let holes = chain.write("holes.rlp", &[blocks[0].clone(), blocks[3].clone()]);
    let error = replay_error(chain.replay(&holes, &db).unwrap_err());
    assert!(matches!(&error, ReplayError::NotLinked { place, .. } if place.index == 1), "{error}");
    assert_eq!(count(&chain.replay(&chain.path("chain.rlp"), &db).unwrap().json(), "blocks"), 2, "nothing was written");
}

#[test]
fn a_store_of_another_genesis_is_refused() {
    let chain = DemoChain::new(1);
    let store = tempfile::tempdir().unwrap();
    partial_store(&chain, store.path(), 1);
    let other = chain.path("genesis.json");
    let text = fs::read_to_string(&other).unwrap();
    let mut genesis: serde_json::Value = serde_json::from_str(&text).unwrap();
    genesis["timestamp"] = json!("0x1");
    fs::write(&other, genesis.to_string()).unwrap();
    let error = chain.replay(&chain.path("chain.rlp"), &["--db", store.path().to_str().unwrap()]).unwrap_err();
    let error = replay_error(error);
    assert!(matches!(error, ReplayError::Store(ChainStoreError::OtherGenesis { .. })), "{error}");
}

#[test]
fn malformed_chains_leave_the_store_as_it_was() {
    let chain = DemoChain::new(4);
    let store = tempfile::tempdir().unwrap();
    partial_store(&chain, store.path(), 2);
    let db = ["--db", store.path().to_str().unwrap()];
    let blocks = chain.blocks();
    let refused = |file: &Path| replay_error(chain.replay(file, &db).unwrap_err());

    let mut cut = blocks.clone();
    cut[3].pop();
    let error = refused(&chain.write("cut.rlp", &cut));
    assert!(matches!(&error, ReplayError::Read(ReadError::Truncated { .. })), "{error}");
    assert!(error.to_string().contains("block 3"), "{error}");

    let mut garbage = blocks.clone();
    let middle = garbage[3].len() / 2;
    garbage[3][middle..middle + 40].fill(0xff);
    let error = refused(&chain.write("garbage.rlp", &garbage));
    assert!(chain_text(&error).contains("block 3"), "{}", chain_text(&error));

    let mut foreign = WireBlock::<Transaction>::decode(&mut &blocks[3][..]).unwrap();
    foreign.body.transactions.swap(0, 1);
    let error = refused(&chain.write("foreign.rlp", &[&blocks[..3], &[alloy_rlp::encode(&foreign)]].concat()));
    assert!(matches!(&error, ReplayError::Body { block, .. } if block.number == 4), "{error}");
    assert!(chain_text(&error).contains("transactions root"));

    let error = refused(&chain.write("empty.rlp", &[]));
    assert!(matches!(error, ReplayError::Empty { .. }), "{error}");
    let huge = chain.write("huge.rlp", &[vec![0xff; 9]]);
    assert!(matches!(refused(&huge), ReplayError::Read(ReadError::TooLarge { .. })));
    assert!(matches!(refused(&chain.path("missing.rlp")), ReplayError::Read(ReadError::Io { .. })));
    assert_eq!(count(&chain.replay(&chain.path("chain.rlp"), &db).unwrap().json(), "blocks"), 2, "nothing was written");
}

fn chain_text(error: &ReplayError) -> String {
    chain(error)
}

#[test]
fn a_list_that_is_not_the_headers_is_refused_by_name() {
    let chain = DemoChain::new(3);
    let bals = chain.path("bals");
    let more = ["--bals", bals.to_str().unwrap()];
    let good = fs::read(bals.join("2.rlp")).unwrap();
    let mut flipped = good.clone();
    flipped[30] ^= 1;
    for bad in [flipped, good[..good.len() - 1].to_vec(), vec![]] {
        fs::write(bals.join("2.rlp"), bad).unwrap();
        let error = replay_error(chain.replay(&chain.path("chain.rlp"), &more).unwrap_err());
        assert!(matches!(&error, ReplayError::List { block, .. } if block.number == 2), "{error}");
        assert!(chain_text(&error).contains("hash"), "{}", chain_text(&error));
    }
}

#[test]
fn a_wrong_state_root_stops_the_replay_behind_the_last_good_block() {
    let chain = DemoChain::new(4);
    let mut blocks = chain.blocks();
    let mut wrong = WireBlock::<Transaction>::decode(&mut &blocks[3][..]).unwrap();
    wrong.header.state_root.0[0] ^= 1;
    let expected = wrong.header.state_root;
    blocks[3] = alloy_rlp::encode(&wrong);
    let file = chain.write("wrong.rlp", &blocks);
    for mode in ["bal", "incremental"] {
        let store = tempfile::tempdir().unwrap();
        let db = ["--db", store.path().to_str().unwrap(), "--mode", mode];
        match replay_error(chain.replay(&file, &db).unwrap_err()) {
            ReplayError::Import { source: ImportError::Invalid { block, reason }, .. } => {
                assert_eq!(block.number, 4);
                assert!(
                    matches!(reason, InvalidReason::StateRootMismatch { expected: named, .. } if named == expected),
                    "{reason}"
                );
            }
            other => panic!("{other}"),
        }
        let rest = chain.replay(&chain.path("chain.rlp"), &db).unwrap().json();
        assert_eq!(count(&rest, "blocks"), 1, "the blocks before it are durable");
    }
}

/// An account with its slots.
type Leaves = (B256, Account, Vec<(B256, U256)>);

/// The leaves of a store in a directory, and where it stands.
fn leaves(directory: &Path) -> (StateAnchor, Vec<Leaves>) {
    let store = RedbStore::open(directory, foldgate_storage_redb::Options::default()).unwrap();
    let snapshot = store.snapshot().unwrap();
    let accounts = snapshot.accounts_from(&B256::ZERO, 1 << 20).unwrap();
    let with_slots = accounts.into_iter().map(|(hashed_address, account)| {
        let slots = snapshot.slots_from(&hashed_address, &B256::ZERO, 1 << 20).unwrap();
        (hashed_address, account, slots)
    });
    let leaves = with_slots.collect();
    (snapshot.anchor(), leaves)
}

/// What was imported when a run was cut off is in the log, though not in the store, and is not imported again.
#[test]
fn an_interrupted_replay_is_taken_up_where_it_was() {
    let chain = DemoChain::new(9);
    let mut blocks = chain.blocks();
    let mut wrong = WireBlock::<Transaction>::decode(&mut &blocks[6][..]).unwrap();
    wrong.header.state_root.0[0] ^= 1;
    blocks[6] = alloy_rlp::encode(&wrong);
    let stops = chain.write("stops.rlp", &blocks[..7]);
    for mode in ["bal", "incremental", "shadow"] {
        let (cut_off, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let replay = |file: &Path, store: &Path| chain.replay(file, &["--db", store.to_str().unwrap(), "--mode", mode]);
        replay(&stops, cut_off.path()).unwrap_err();
        assert_eq!(leaves(cut_off.path()).0.block.number, 0, "the newest blocks are not in the store yet");
        let rest = replay(&chain.path("chain.rlp"), cut_off.path()).unwrap().json();
        assert_eq!((count(&rest, "blocks"), count(&rest, "roots_ok")), (3, 3), "{mode}");
        let all = replay(&chain.path("chain.rlp"), whole.path()).unwrap().json();
        assert_eq!(count(&all, "blocks"), 9);
        let (got, expected) = (leaves(cut_off.path()), leaves(whole.path()));
        assert_eq!(got.0.block.number, 9);
        assert_eq!(got, expected);
    }
}

#[test]
fn malformed_genesis_files_name_the_field() {
    let chain = DemoChain::new(1);
    let path = chain.path("genesis.json");
    fs::write(
        &path,
        r#"{"config":{"chainId":1},"gasLimit":"0x1","difficulty":"0x0","alloc":{"0x00":{"balance":"0x0"}}}"#,
    )
    .unwrap();
    let error = replay_error(chain.replay(&chain.path("chain.rlp"), &[]).unwrap_err());
    assert!(matches!(&error, ReplayError::Read(ReadError::Json { field, .. }) if field.contains("alloc")), "{error}");
    fs::write(&path, r#"{"config":{"chainId":1},"gasLimit":"0x1","difficulty":"0x0"}"#).unwrap();
    let error = replay_error(chain.replay(&chain.path("chain.rlp"), &[]).unwrap_err());
    assert!(error.to_string().contains("missing field `alloc`"), "{error}");
    fs::write(
        &path,
        r#"{"gasLimit":"0x1","difficulty":"0x0","alloc":{},"config":{"chainId":1,"terminalTotalDifficulty":5}}"#,
    )
    .unwrap();
    let error = replay_error(chain.replay(&chain.path("chain.rlp"), &[]).unwrap_err());
    assert!(matches!(&error, ReplayError::Store(ChainStoreError::Rules(_))), "{error}");
}

#[test]
fn what_is_no_store_is_not_opened() {
    let chain = DemoChain::new(1);
    let store = tempfile::tempdir().unwrap();
    fs::write(store.path().join("foldgate.redb"), b"something else entirely").unwrap();
    let error = chain.replay(&chain.path("chain.rlp"), &["--db", store.path().to_str().unwrap()]).unwrap_err();
    assert!(matches!(error, CliError::Backend(_)), "{error}");
    assert!(chain_of(&error).contains(store.path().to_str().unwrap()));
    assert_eq!(fs::read(store.path().join("foldgate.redb")).unwrap(), b"something else entirely");
}

fn chain_of(error: &CliError) -> String {
    chain(error)
}

#[test]
fn a_killed_replay_goes_on() {
    let chain = DemoChain::new(40);
    let store = tempfile::tempdir().unwrap();
    let (genesis, blocks) = (chain.path("genesis.json"), chain.path("chain.rlp"));
    let arguments = [
        "replay",
        "--amsterdam-rules",
        "osaka",
        "--json",
        "--genesis",
        genesis.to_str().unwrap(),
        "--chain",
        blocks.to_str().unwrap(),
        "--db",
        store.path().to_str().unwrap(),
    ];
    let mut done = 0;
    for wait_ms in [1500, 2500] {
        let mut child =
            Command::new(env!("CARGO_BIN_EXE_foldgate")).args(arguments).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait_ms));
        // It may have ended already.
        let _ended = child.kill();
        done += u64::from(child.wait().unwrap().success());
    }
    let output = common::process(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let left = count(&json, "blocks");
    assert_eq!(count(&json, "roots_ok"), left);
    assert!(left <= 40 && (done == 0 || left == 0), "{json}");
    let again: Value = serde_json::from_slice(&common::process(&arguments).stdout).unwrap();
    assert_eq!(count(&again, "blocks"), 0);
}
