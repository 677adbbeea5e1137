//! Catch-up without executing on every backend: merged folds of lists lead where executing the blocks one by one leads, and
//! the chain can be left at each of its last blocks.

use std::{collections::BTreeSet, fmt, num::NonZeroUsize};

use alloy_primitives::{B256, Bytes};
use foldgate::{
    MemoryStore, PipelineConfig, TrieReader, TrieStore,
    core::{BalStore, BlockNumHash, StateAnchor, UnwindError, unwind},
    pipeline::{
        AdvanceBlock, AdvanceError, AdvanceOptions, BeginError, BlockError, Canonical, CanonicalError, Checkpoints,
        Failure, advance,
    },
};
use foldgate_testing::{
    conformance::StoreFactory,
    sim::{Sim, SimBlock, SimSize},
};

use crate::{
    races::resolved,
    support::{Opened, assert_state, assert_view, bal_driven, chain, execute, load, open, request, start, valid},
};

stamp_all!([
    merged_folds_lead_where_single_ones_do,
    the_chain_can_be_left_at_its_last_blocks,
    a_wrong_root_leaves_the_last_checkpoint,
    a_root_that_is_wrong_between_two_folds_cannot_be_gone_back_to,
    what_cannot_be_applied_is_refused,
    what_comes_before_a_fault_is_applied,
]);

pub(crate) fn given(block: &SimBlock) -> AdvanceBlock {
    AdvanceBlock { facts: block.facts, bal: Some(block.raw.clone()), before_cancun: false }
}

/// All blocks in merged folds.
fn options(checkpoints: impl IntoIterator<Item = u64>, merged_blocks: usize) -> AdvanceOptions {
    AdvanceOptions {
        checkpoints: Checkpoints::At(checkpoints.into_iter().collect()),
        merged_blocks: NonZeroUsize::new(merged_blocks).unwrap(),
        unwind_depth: 0,
        ..AdvanceOptions::default()
    }
}

type Advanced<E> = Result<StateAnchor, AdvanceError<E, fmt::Error>>;

/// How it ended, and the checkpoints on the way.
fn run<S: TrieStore>(store: &S, blocks: &[AdvanceBlock], options: &AdvanceOptions) -> (Advanced<S::Error>, Vec<u64>) {
    run_input(store, blocks.iter().cloned().map(Ok), options)
}

fn run_input<S: TrieStore>(
    store: &S,
    blocks: impl Iterator<Item = Result<AdvanceBlock, fmt::Error>>,
    options: &AdvanceOptions,
) -> (Advanced<S::Error>, Vec<u64>) {
    let mut checkpoints = Vec::new();
    let ended = advance(store, blocks, options, &mut |checkpoint| checkpoints.push(checkpoint.tip.block.number));
    (ended, checkpoints)
}

/// A chain of which every block changes the root, its genesis first.
fn changing_chain(seed: u64, length: usize) -> (Sim, Vec<SimBlock>) {
    println!("seed {seed}");
    let mut sim = Sim::new(seed, SimSize { addresses: 24, slots: 8, touched: 8, written: 4 });
    let genesis = sim.genesis();
    let blocks = changing(&mut sim, &genesis, length);
    (sim, [vec![genesis], blocks].concat())
}

/// Blocks that follow on each other, above `parent`, each with another root than its parent.
fn changing(sim: &mut Sim, parent: &SimBlock, length: usize) -> Vec<SimBlock> {
    let mut blocks = vec![parent.clone()];
    while blocks.len() <= length {
        let parent = &blocks[blocks.len() - 1];
        let child = sim.child(parent);
        if child.state_root != parent.state_root {
            blocks.push(child);
        }
    }
    blocks.split_off(1)
}

/// The heights at which a reverse diff leads back.
fn ways_back<S: TrieStore>(store: &S) -> Vec<u64> {
    let tip = store.tip().unwrap().unwrap().block.number;
    let is_there = |number: &u64| !store.reverse_diff(*number).unwrap().unwrap().accounts.is_empty();
    (1..=tip).filter(is_there).collect()
}

/// Everything that a store says of its tip: leaves, and the rows on the ways to them.
fn rows<S: TrieStore>(store: &S) -> Vec<(foldgate::core::NodeKey, Option<alloy_primitives::Bytes>)> {
    use foldgate::core::{Nibbles, NodeKey, TrieId};
    let snapshot = store.snapshot().unwrap();
    let mut found = Vec::new();
    let accounts = snapshot.accounts_from(&B256::ZERO, 10_000).unwrap();
    let mut keys: Vec<_> = accounts.iter().map(|(key, _)| (TrieId::Accounts, *key)).collect();
    for (address, _) in &accounts {
        let slots = snapshot.slots_from(address, &B256::ZERO, 10_000).unwrap();
        keys.extend(slots.iter().map(|(slot, _)| (TrieId::Storage(*address), *slot)));
    }
    let names: BTreeSet<_> = keys
        .iter()
        .flat_map(|(trie, key)| (0..6).map(move |length| NodeKey::new(*trie, Nibbles::unpack(key).slice(..length))))
        .collect();
    for key in names {
        found.push((key, snapshot.node(&key).unwrap()));
    }
    found
}

fn merged_folds_lead_where_single_ones_do<F: StoreFactory>(factory: &F)
where
    F::Store: BalStore,
{
    let blocks = chain(60, 30, SimSize::default()).1;
    let lists: Vec<_> = blocks[1..].iter().map(given).collect();
    let one_by_one = load(foldgate::MemoryStore::new(), &blocks[0]);
    let pipeline = bal_driven(&one_by_one);
    for block in &blocks[1..] {
        valid(execute(start(&pipeline, request(block)), block).wait());
    }
    pipeline.flush().unwrap();
    drop(pipeline);
    let store = load(factory.fresh(), &blocks[0]);
    // Pieces that end within a checkpoint's blocks, at it, and with it.
    let (ended, checkpoints) = run(&*store, &lists[..20], &options([5, 6, 18], 4));
    assert_eq!(ended.unwrap(), blocks[20].anchor());
    assert_eq!(checkpoints, [5, 6, 18, 20]);
    let (ended, checkpoints) = run(&*store, &lists[20..], &options([], 64));
    assert_eq!((ended.unwrap(), checkpoints), (blocks[30].anchor(), vec![30]));
    assert_state(&*store, &blocks[30]);
    assert_eq!(rows(&*store), rows(&*one_by_one));
    for block in &blocks[1..] {
        assert_eq!(store.bal(block.facts.block).unwrap().as_ref(), Some(&block.raw));
        assert_eq!(store.committed(block.facts.block.number).unwrap(), Some(block.anchor()));
    }
    // It unwinds to where a fold ended, and to nothing in between.
    let between = unwind(&*store, blocks[25].facts.block);
    assert!(matches!(between, Err(UnwindError::StateRootMismatch { .. })), "{between:?}");
    assert_state(&*store, &blocks[30]);
    for checkpoint in [20, 6, 5, 0] {
        unwind(&*store, blocks[checkpoint].facts.block).unwrap();
        assert_state(&*store, &blocks[checkpoint]);
    }
    let every = Checkpoints::Every(std::num::NonZeroU64::new(7).unwrap());
    let every = AdvanceOptions { checkpoints: every, unwind_depth: 2, ..AdvanceOptions::default() };
    let (ended, checkpoints) = run(&*store, &lists, &every);
    assert_eq!((ended.unwrap(), checkpoints), (blocks[30].anchor(), vec![7, 14, 21, 28, 30]));
    unwind(&*store, blocks[0].facts.block).unwrap();
    // Nothing to do is done.
    assert_eq!(run(&*store, &[], &options([], 1)).0.unwrap(), blocks[0].anchor());
}

/// Whatever is merged, and wherever the state is made durable on the way.
#[test]
fn the_last_blocks_have_a_way_back_each() {
    let (_, blocks) = changing_chain(63, 9);
    let lists: Vec<_> = blocks[1..].iter().map(given).collect();
    for (depth, merged, every) in (0..12).flat_map(|depth| (1..6).map(move |merged| (depth, merged, depth % 5 + 1))) {
        let store = load(MemoryStore::new(), &blocks[0]);
        let checkpoints = (1..9).filter(|number| number % every == 0);
        let options = AdvanceOptions { unwind_depth: depth, ..options(checkpoints, merged) };
        assert_eq!(run(&*store, &lists, &options).0.unwrap(), blocks[9].anchor());
        // Where the first of the last ones stands there is a fold's end, too.
        let lowest = 9_u64.saturating_sub(depth);
        let (mut expected, mut since) = (Vec::new(), 0);
        for number in 1..=9 {
            if number >= lowest || number % every == 0 || number - since == merged as u64 {
                since = number;
                expected.push(number);
            }
        }
        assert_eq!(ways_back(&*store), expected, "{options:?}");
        for block in blocks[lowest as usize..9].iter().rev() {
            unwind(&*store, block.facts.block).unwrap();
            assert_state(&*store, block);
        }
    }
}

/// Has a block judged valid that stands on `parent`.
fn deliver<S: BalStore>(pipeline: &Opened<S>, block: &SimBlock, parent: &SimBlock) {
    let handle = start(pipeline, request(block));
    assert_view(&handle.parent_state(), parent);
    assert_eq!(valid(resolved(&execute(handle, block))).computed_state_root, block.state_root);
}

/// Blocks that follow on each other above `parent` become the chain.
fn go_to<S: BalStore>(pipeline: &Opened<S>, store: &S, parent: &SimBlock, branch: &[SimBlock]) {
    let mut parent = parent;
    for block in branch {
        deliver(pipeline, block, parent);
        parent = block;
    }
    back_to(pipeline, store, parent);
}

fn back_to<S: BalStore>(pipeline: &Opened<S>, store: &S, head: &SimBlock) {
    pipeline.set_canonical(head.facts.block.hash).unwrap();
    assert_eq!(pipeline.flush().unwrap(), head.anchor());
    assert_state(store, head);
}

/// A node catches up, and then the chain reorganises.
fn the_chain_can_be_left_at_its_last_blocks<F: StoreFactory>(factory: &F)
where
    F::Store: BalStore,
{
    const DEPTH: u64 = 8;
    let (mut sim, blocks) = changing_chain(64, 40);
    let lists: Vec<_> = blocks[1..].iter().map(given).collect();
    let store = load(factory.fresh(), &blocks[0]);
    let options = AdvanceOptions { unwind_depth: DEPTH, ..options([20, 36], 6) };
    let (ended, checkpoints) = run(&*store, &lists, &options);
    assert_eq!((ended.unwrap(), checkpoints), (blocks[40].anchor(), vec![20, 36, 40]));
    // Before the last ones nothing is kept that was not before.
    assert_eq!(ways_back(&*store), [&[6, 12, 18, 20, 26][..], &(32..=40).collect::<Vec<_>>()].concat());
    let config = PipelineConfig { canonical: Canonical::Explicit, unwind_depth: DEPTH, ..PipelineConfig::default() };
    let pipeline = open(&store, config.with_bal_driven(true));
    for depth in [1, 5, DEPTH as usize - 1, DEPTH as usize] {
        let parent = &blocks[40 - depth];
        let side = changing(&mut sim, parent, depth);
        go_to(&pipeline, &*store, parent, &side);
        assert_eq!(store.committed(parent.facts.block.number).unwrap(), Some(parent.anchor()));
        back_to(&pipeline, &*store, &blocks[40]);
    }
    let counters = pipeline.counters();
    assert_eq!((counters.reorganisations, counters.unwound, counters.failed), (8, 42, 0), "{counters:?}");
    let below = changing(&mut sim, &blocks[31], 1);
    match pipeline.begin(request(&below[0])) {
        Err(BeginError::BelowTip { parent, tip }) => {
            assert_eq!((parent, tip), (blocks[31].facts.block, blocks[40].facts.block));
        }
        other => panic!("{other:?}"),
    }
    // With the tip as far down as that, the settings allow what the store does not.
    let short = changing(&mut sim, &blocks[32], 1);
    go_to(&pipeline, &*store, &blocks[32], &short);
    let failed = resolved(&execute(start(&pipeline, request(&below[0])), &below[0]));
    assert!(matches!(failed, Err(BlockError::Failed(Failure::Unwind { .. }))), "{failed:?}");
    let deep = changing(&mut sim, &blocks[26], 1);
    deliver(&pipeline, &deep[0], &blocks[26]);
    let refused = pipeline.set_canonical(deep[0].facts.block.hash);
    assert!(matches!(refused, Err(CanonicalError::Failed(Failure::Unwind { .. }))), "{refused:?}");
    // It goes on all the same, with what it has, and with another catch-up.
    let next = changing(&mut sim, &short[0], 2);
    go_to(&pipeline, &*store, &short[0], &next);
    back_to(&pipeline, &*store, &blocks[40]);
    drop(pipeline);
    let more = changing(&mut sim, &blocks[40], 3);
    let lists: Vec<_> = more.iter().map(given).collect();
    assert_eq!(run(&*store, &lists, &options).0.unwrap(), more[2].anchor());
    for block in more[..2].iter().rev().chain(blocks[32..=40].iter().rev()) {
        unwind(&*store, block.facts.block).unwrap();
        assert_state(&*store, block);
    }
    let between = unwind(&*store, blocks[31].facts.block);
    assert!(matches!(between, Err(UnwindError::StateRootMismatch { .. })), "{between:?}");
    for block in [&blocks[26], &blocks[20], &blocks[0]] {
        unwind(&*store, block.facts.block).unwrap();
        assert_state(&*store, block);
    }
}

fn a_wrong_root_leaves_the_last_checkpoint<F: StoreFactory>(factory: &F) {
    let blocks = chain(61, 12, SimSize::default()).1;
    let mut lists: Vec<_> = blocks[1..].iter().map(given).collect();
    let wrong = B256::repeat_byte(7);
    lists[9].facts.expected_state_root = Some(wrong);
    let store = load(factory.fresh(), &blocks[0]);
    let (ended, checkpoints) = run(&*store, &lists, &options([4, 10], 3));
    match ended {
        Err(AdvanceError::StateRootMismatch { block, got, expected }) => {
            assert_eq!((block, got, expected), (blocks[10].facts.block, blocks[10].state_root, wrong));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(checkpoints, [4]);
    assert_state(&*store, &blocks[4]);
    // A list that is not the block's: found at the next root, and nothing is written.
    let mut lists: Vec<_> = blocks[5..].iter().map(given).collect();
    lists[1].bal = Some(blocks[1].raw.clone());
    (lists[1].facts.expected_bal_hash, lists[1].facts.tx_count) = (None, 100);
    assert_ne!(blocks[1].raw, blocks[6].raw);
    let (ended, checkpoints) = run(&*store, &lists, &options([], 64));
    assert!(matches!(ended, Err(AdvanceError::StateRootMismatch { .. })), "{ended:?}");
    assert!(checkpoints.is_empty());
    assert_state(&*store, &blocks[4]);
    // It goes on from there.
    let lists: Vec<_> = blocks[5..].iter().map(given).collect();
    assert_eq!(run(&*store, &lists, &options([7], 2)).0.unwrap(), blocks[12].anchor());
    assert_state(&*store, &blocks[12]);
}

/// A list that says too little, and the next one what it lacks: the root is right behind both.
fn a_root_that_is_wrong_between_two_folds_cannot_be_gone_back_to<F: StoreFactory>(factory: &F)
where
    F::Store: BalStore,
{
    let (mut sim, mut blocks) = changing_chain(65, 4);
    // It writes the same once more.
    let again = sim.child_with(&blocks[4], blocks[4].facts.tx_count, blocks[4].list.clone());
    assert_eq!(again.state_root, blocks[4].state_root);
    blocks.push(again);
    let more = changing(&mut sim, &blocks[5], 3);
    blocks.extend(more);
    let mut lists: Vec<_> = blocks[1..].iter().map(given).collect();
    (lists[3].bal, lists[3].facts.expected_bal_hash) = (Some(Bytes::from_static(&[0xc0])), None);
    let store = load(factory.fresh(), &blocks[0]);
    // Where each block is folded alone it is found.
    let (ended, checkpoints) = run(&*store, &lists, &AdvanceOptions { unwind_depth: 5, ..options([2], 8) });
    match ended {
        Err(AdvanceError::StateRootMismatch { block, got, expected }) => {
            assert_eq!((block, got), (blocks[4].facts.block, blocks[3].state_root));
            assert_eq!(expected, blocks[4].state_root);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(checkpoints, [2]);
    assert_state(&*store, &blocks[2]);
    // Where it is merged with the next one, nobody looks.
    let (ended, _) = run(&*store, &lists[2..], &AdvanceOptions { unwind_depth: 3, ..options([], 8) });
    assert_eq!(ended.unwrap(), blocks[8].anchor());
    assert_state(&*store, &blocks[8]);
    for at in [4, 3] {
        let refused = unwind(&*store, blocks[at].facts.block);
        assert!(matches!(refused, Err(UnwindError::StateRootMismatch { .. })), "{refused:?}");
        assert_state(&*store, &blocks[8]);
    }
    let pipeline = open(&store, PipelineConfig { canonical: Canonical::Explicit, ..PipelineConfig::default() });
    let side = changing(&mut sim, &blocks[4], 1);
    let failed = resolved(&execute(start(&pipeline, request(&side[0])), &side[0]));
    assert!(matches!(failed, Err(BlockError::Failed(Failure::Unwind { .. }))), "{failed:?}");
    let next = changing(&mut sim, &blocks[5], 4);
    go_to(&pipeline, &*store, &blocks[5], &next);
    back_to(&pipeline, &*store, &blocks[8]);
}

fn what_cannot_be_applied_is_refused<F: StoreFactory>(factory: &F) {
    let blocks = chain(62, 3, SimSize::default()).1;
    let lists: Vec<_> = blocks[1..].iter().map(given).collect();
    let store = load(factory.fresh(), &blocks[0]);
    let refused = |change: &dyn Fn(&mut AdvanceBlock)| {
        let mut lists = lists.clone();
        change(&mut lists[1]);
        let (ended, checkpoints) = run(&*store, &lists, &options([], 64));
        assert!(checkpoints.is_empty());
        ended.unwrap_err()
    };
    let second: BlockNumHash = blocks[2].facts.block;
    let error = refused(&|block| block.before_cancun = true);
    assert!(matches!(error, AdvanceError::BeforeCancun { block } if block == second), "{error:?}");
    let error = refused(&|block| block.bal = None);
    assert!(matches!(error, AdvanceError::NoBal { block } if block == second), "{error:?}");
    let error = refused(&|block| block.facts.expected_state_root = None);
    assert!(matches!(error, AdvanceError::NoExpectedRoot { block } if block == second), "{error:?}");
    let error = refused(&|block| block.bal = Some(blocks[3].raw.clone()));
    assert!(matches!(error, AdvanceError::Bal { block, .. } if block == second), "{error:?}");
    let error = refused(&|block| block.facts.parent_hash = B256::repeat_byte(1));
    assert!(matches!(error, AdvanceError::NotLinked { block, .. } if block == second), "{error:?}");
    // The chain has to begin above the tip.
    let (ended, _) = run(&*store, &lists[1..], &options([], 64));
    assert!(matches!(ended, Err(AdvanceError::NotLinked { .. })), "{ended:?}");
    assert_state(&*store, &blocks[0]);
}

/// What was to be read ahead of is not lost with what ends the input.
fn what_comes_before_a_fault_is_applied<F: StoreFactory>(factory: &F) {
    let (_, blocks) = changing_chain(66, 12);
    let lists: Vec<_> = blocks[1..].iter().map(given).collect();
    let store = load(factory.fresh(), &blocks[0]);
    let options = AdvanceOptions { unwind_depth: 128, ..options([2, 5], 3) };
    let input = lists[..6].iter().cloned().map(Ok).chain([Err(fmt::Error)]);
    let (ended, checkpoints) = run_input(&*store, input, &options);
    assert!(matches!(ended, Err(AdvanceError::Input(fmt::Error))), "{ended:?}");
    assert_eq!((checkpoints, ways_back(&*store)), (vec![2, 5], vec![1, 2, 3, 4, 5]));
    assert_state(&*store, &blocks[5]);
    let mut unlinked = lists[5..].to_vec();
    unlinked[4].facts.parent_hash = B256::repeat_byte(1);
    let options = AdvanceOptions { checkpoints: Checkpoints::At([8, 9, 11].into()), ..options };
    let (ended, checkpoints) = run(&*store, &unlinked, &options);
    assert!(
        matches!(ended, Err(AdvanceError::NotLinked { block, .. }) if block == blocks[10].facts.block),
        "{ended:?}"
    );
    assert_eq!(checkpoints, [8, 9]);
    assert_state(&*store, &blocks[9]);
    assert_eq!(run(&*store, &lists[9..], &options).0.unwrap(), blocks[12].anchor());
    assert_eq!(ways_back(&*store), (1..=12).collect::<Vec<_>>());
}
