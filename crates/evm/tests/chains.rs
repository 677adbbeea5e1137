//! Whole test chains, block by block from their genesis: every header's gas, receipts, requests and state root.

mod common;

use std::time::Duration;

use alloy_primitives::Sealed;
use common::{Imported, MapState, import};
use foldgate_evm::{AmsterdamRules, Block, ChainSpec, genesis_entries, genesis_header};
use foldgate_testing::{chains, fixtures_or_skip};

/// Imports a chain; gives the last block and how many receipts roots were not checked.
fn import_chain(dir: &std::path::Path, expected_blocks: u64) -> (Imported, u64) {
    let genesis = chains::read_genesis(&dir.join("genesis.json")).unwrap();
    let spec = ChainSpec::from_genesis(&genesis, AmsterdamRules::Full).unwrap();
    let header = genesis_header(&spec, &genesis).unwrap();
    let plain = chains::genesis_state(&genesis);
    let listed: Vec<_> = genesis_entries(&genesis).map(|entry| entry.address).collect();
    assert!(listed.iter().eq(plain.accounts.keys()));

    let mut parent: (Sealed<_>, MapState) = (header.clone(), MapState::genesis(&plain, &header));
    let (mut blocks, mut skipped, mut gas, mut compared) = (0, 0, 0, 0);
    let (mut last, mut took) = (None, Duration::from_nanos(1));
    for chained in chains::ChainReader::open(&dir.join("chain.rlp")).unwrap() {
        let chained = chained.unwrap();
        let block = Block::decode(&chained.rlp).unwrap();
        assert_eq!(block.hash, chained.block.header.hash_slow());
        let imported = import(&spec, (&parent.0, &parent.1), &block)
            .unwrap_or_else(|refused| panic!("block {} of {}: {refused:?}", block.header.number, dir.display()));
        blocks += 1;
        skipped += imported.executed.counters.receipts_roots_skipped;
        gas += imported.executed.gas_used;
        took += imported.took;
        compared += u64::from(imported.compared);
        parent = (imported.header.clone(), imported.state.clone());
        last = Some(imported);
    }
    println!(
        "{}: {blocks} blocks, {gas} gas, {skipped} receipts roots skipped, {compared} lists compared, {:.0} Mgas/s",
        dir.display(),
        gas as f64 / took.as_secs_f64() / 1e6
    );
    assert_eq!(blocks, expected_blocks);
    (last.unwrap(), skipped)
}

#[test]
fn ethtest_600() {
    let dir = fixtures_or_skip!("the chain ethtest-600", "chains/ethtest-600");
    let (last, skipped) = import_chain(&dir, 600);
    assert_eq!(skipped, 0);
    let head = chains::read_head_state(&dir.join("headstate.json")).unwrap();
    assert_eq!(last.state.state_root(), head.state_root);
    assert_eq!(*last.state.accounts(), head.state.hashed());
}

#[test]
fn execution_apis_54() {
    let dir = fixtures_or_skip!("the chain execution-apis-54", "chains/execution-apis-54");
    let (_, skipped) = import_chain(&dir, 54);
    assert_eq!(skipped, 8, "blocks 1 to 8 are older than Byzantium");
}
