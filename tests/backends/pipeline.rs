//! The pipeline on every backend: simulated chains, whose roots the oracle gives, through every mode and every end.
//!
//! A test that passes without folding ahead is a defect: the counters are asserted.

use std::{
    num::NonZeroUsize,
    thread,
    time::{Duration, Instant},
};

use foldgate::{
    BlockRequest, PipelineConfig, TrieStore,
    pipeline::{BeginError, Canonical, CanonicalError, ConfirmedBy, Mode, SkipReason},
};
use foldgate_testing::{
    conformance::StoreFactory,
    sim::{Sim, SimSize},
};

use crate::{
    races::settled,
    support::{
        assert_state, assert_view, bal_driven, chain, execute, load, open, open_synchronous, request, start, valid,
    },
};

stamp_all!([
    a_chain_is_folded_ahead,
    a_chain_is_folded_incrementally,
    modes_and_trees_agree_with_the_oracle,
    execution_runs_ahead_of_the_fold,
    siblings_fold_from_their_own_parent,
    the_durable_state_carries_a_second_batch,
    the_page_cache_outlives_commits,
]);

fn a_chain_is_folded_ahead<F: StoreFactory>(factory: &F) {
    let blocks = chain(1, 30, SimSize::default()).1;
    let store = load(factory.fresh(), &blocks[0]);
    let pipeline = bal_driven(&store);
    for block in &blocks[1..] {
        let handle = start(&pipeline, request(block));
        let verdict = valid(execute(handle, block).wait());
        assert_eq!(verdict.computed_state_root, block.state_root);
        assert_eq!((verdict.mode, verdict.confirmed_by), (Mode::BalDriven, ConfirmedBy::Bal));
        assert_eq!(verdict.layer.as_ref().unwrap().bal.as_ref(), Some(&block.raw));
    }
    let tip = pipeline.flush().unwrap();
    assert_eq!(tip, blocks[30].anchor());
    let counters = pipeline.counters();
    assert_eq!((counters.folds_ahead, counters.folds_incremental, counters.valid), (30, 0, 30));
    assert_eq!(counters.gates_opened_from_durable + counters.gates_opened_from_memory, 30);
    assert!(counters.gates_opened_from_durable >= 1, "the first block's gate is open from the durable state");
    assert!(counters.skips.iter().all(|(_, count)| *count == 0));
    settled(&pipeline);
    drop(pipeline);
    assert_state(&*store, &blocks[30]);
}

fn a_chain_is_folded_incrementally<F: StoreFactory>(factory: &F) {
    let blocks = chain(2, 20, SimSize::default()).1;
    let store = load(factory.fresh(), &blocks[0]);
    let pipeline = open(&store, PipelineConfig::default().with_bal_driven(false));
    for block in &blocks[1..] {
        let handle = start(&pipeline, request(block));
        let verdict = valid(execute(handle, block).wait());
        assert_eq!(verdict.computed_state_root, block.state_root);
        assert_eq!(verdict.mode, Mode::Incremental(SkipReason::SwitchedOff));
        assert_eq!(verdict.confirmed_by, ConfirmedBy::Execution);
    }
    pipeline.flush().unwrap();
    let counters = pipeline.counters();
    assert_eq!((counters.folds_ahead, counters.folds_incremental), (0, 20));
    assert_eq!(counters.skipped(SkipReason::SwitchedOff), 20);
    drop(pipeline);
    assert_state(&*store, &blocks[20]);
}

/// Every list is folded twice, from the list and from the writes: root, diff and nodes are the same, byte for byte.
fn modes_and_trees_agree_with_the_oracle<F: StoreFactory>(factory: &F) {
    let blocks = chain(3, 40, SimSize { addresses: 200, slots: 60, touched: 60, written: 20 }).1;
    let other = foldgate::MemoryStore::new();
    let (store, incremental_store) = (load(factory.fresh(), &blocks[0]), load(other, &blocks[0]));
    let ahead = bal_driven(&store);
    let serial = PipelineConfig { threads: NonZeroUsize::MIN, ..PipelineConfig::default().with_bal_driven(false) };
    let incremental = open(&incremental_store, serial);
    for block in &blocks[1..] {
        let folded_ahead = valid(execute(start(&ahead, request(block)), block).wait());
        let reference = valid(execute(start(&incremental, BlockRequest::new(block.facts)), block).wait());
        assert_eq!(folded_ahead.computed_state_root, block.state_root);
        let (ahead, reference) = (folded_ahead.layer.as_ref().unwrap(), reference.layer.as_ref().unwrap());
        assert_eq!(ahead.diff, reference.diff, "block {}", block.facts.block);
        let rows = |layer: &foldgate::core::Layer| layer.tries.updates(&layer.diff);
        assert_eq!(rows(ahead), rows(reference), "block {}", block.facts.block);
    }
    assert_eq!(ahead.counters().folds_ahead, 40);
    assert_eq!(incremental.counters().folds_incremental, 40);
}

/// The executor finishes blocks without waiting for verdicts; all requests are made at arrival, before any execution.
fn execution_runs_ahead_of_the_fold<F: StoreFactory>(factory: &F) {
    let blocks = chain(4, 24, SimSize::default()).1;
    let store = load(factory.fresh(), &blocks[0]);
    let pipeline = bal_driven(&store);
    let handles: Vec<_> = blocks[1..].iter().map(|block| start(&pipeline, request(block))).collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    while pipeline.counters().folds_before_execution_ended == 0 {
        assert!(Instant::now() < deadline, "the first fold waits for no execution");
        thread::sleep(Duration::from_millis(1));
    }
    let tickets: Vec<_> = blocks[1..]
        .iter()
        .zip(handles)
        .zip(&blocks)
        .map(|((block, handle), parent)| {
            assert_view(&handle.parent_state(), parent);
            execute(handle, block)
        })
        .collect();
    for (block, ticket) in blocks[1..].iter().zip(tickets) {
        assert_eq!(valid(ticket.wait()).computed_state_root, block.state_root);
    }
    assert_eq!(pipeline.flush().unwrap(), blocks[24].anchor());
    let counters = pipeline.counters();
    assert_eq!(counters.folds_ahead, 24);
    drop(pipeline);
    assert_state(&*store, &blocks[24]);
}

fn siblings_fold_from_their_own_parent<F: StoreFactory>(factory: &F) {
    let mut sim = Sim::new(5, SimSize::default());
    let genesis = sim.genesis();
    let store = load(factory.fresh(), &genesis);
    let config = PipelineConfig {
        canonical: Canonical::Explicit,
        bal_driven: true,
        unwind_depth: 0,
        ..PipelineConfig::default()
    };
    let pipeline = open(&store, config);
    // A tree: three children of the genesis, each with two children, each with one.
    let mut generation = vec![genesis];
    let mut all = Vec::new();
    for width in [3, 2, 1] {
        generation = generation.iter().flat_map(|parent| vec![parent.clone(); width]).map(|p| sim.child(&p)).collect();
        all.extend(generation.clone());
    }
    // Out of order: children before their parents are held, and fold when the parent is there.
    let handles: Vec<_> = all.iter().rev().map(|block| (block, start(&pipeline, request(block)))).collect();
    assert!(pipeline.counters().orphans > 0);
    let tickets: Vec<_> = handles.into_iter().rev().map(|(block, handle)| (block, execute(handle, block))).collect();
    for (block, ticket) in tickets {
        assert_eq!(valid(ticket.wait()).computed_state_root, block.state_root);
    }
    assert_eq!(pipeline.counters().folds_ahead, all.len() as u64);
    assert_eq!(store.tip().unwrap().unwrap().block.number, 0, "nothing is durable before a head is named");
    let head = &all[all.len() - 1];
    pipeline.set_canonical(head.facts.block.hash).unwrap();
    pipeline.flush().unwrap();
    assert_eq!(store.tip().unwrap().unwrap(), head.anchor());
    // The losers are gone, and say so.
    let loser = &all[all.len() - 2];
    let lost = pipeline.set_canonical(loser.facts.block.hash);
    assert!(matches!(lost, Err(CanonicalError::Unknown(hash)) if hash == loser.facts.block.hash), "{lost:?}");
    let onto_a_loser = pipeline.begin(request(&sim.child(&all[0])));
    assert!(matches!(onto_a_loser, Err(BeginError::BelowTip { .. })), "{onto_a_loser:?}");
    drop(pipeline);
    assert_state(&*store, head);
}

fn the_durable_state_carries_a_second_batch<F: StoreFactory>(factory: &F) {
    let blocks = chain(6, 12, SimSize::default()).1;
    let store = load(factory.fresh(), &blocks[0]);
    for batch in [&blocks[1..7], &blocks[7..13]] {
        let pipeline = open_synchronous(&store, PipelineConfig::default().with_bal_driven(true));
        for block in batch {
            valid(execute(start(&pipeline, request(block)), block).wait());
        }
        // Dropped without a flush: without a log, what was handed to the store becomes durable all the same.
        assert!(pipeline.counters().gates_opened_from_durable >= 1);
        drop(pipeline);
    }
    assert_state(&*store, &blocks[12]);
}

/// Each block is durable before the next one begins, so that what is read lies in the cache or in the store.
fn the_page_cache_outlives_commits<F: StoreFactory>(factory: &F) {
    let blocks = chain(6, 20, SimSize::default()).1;
    let store = load(factory.fresh(), &blocks[0]);
    // One store goes on from budget to budget.
    for (part, budget) in [0, 20 << 10, 64 << 20].into_iter().enumerate() {
        let config = PipelineConfig::default().with_bal_driven(true).with_page_cache_bytes(budget);
        let pipeline = open(&store, config);
        for block in &blocks[1 + part * 6..][..6] {
            let handle = start(&pipeline, request(block));
            let verdict = valid(execute(handle, block).wait());
            assert_eq!(verdict.computed_state_root, block.state_root);
            pipeline.flush().unwrap();
        }
        let stats = pipeline.page_cache();
        assert!(stats.bytes <= budget as u64, "{stats:?}");
        match budget {
            0 => assert_eq!((stats.hits, stats.misses), (0, 0), "{stats:?}"),
            // What a block itself brought in is looked up elsewhere: these are of blocks before it.
            _ => assert!(stats.hits > 0 && stats.entries > 0, "{stats:?}"),
        }
    }
    assert_state(&*store, &blocks[18]);
}
