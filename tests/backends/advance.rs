//! Catch-up without executing on every backend: merged folds of lists lead where executing the blocks one by one leads.

use std::{collections::BTreeSet, convert::Infallible, num::NonZeroUsize};

use alloy_primitives::B256;
use foldgate::{
    TrieReader, TrieStore,
    core::{BalStore, BlockNumHash, StateAnchor, UnwindError, unwind},
    pipeline::{AdvanceBlock, AdvanceError, AdvanceOptions, Checkpoints, advance},
};
use foldgate_testing::{
    conformance::StoreFactory,
    sim::{SimBlock, SimSize},
};

use crate::support::{assert_state, bal_driven, chain, execute, load, request, start, valid};

stamp_all!([
    merged_folds_lead_where_single_ones_do,
    a_wrong_root_leaves_the_last_checkpoint,
    what_cannot_be_applied_is_refused,
]);

fn given(block: &SimBlock) -> AdvanceBlock {
    AdvanceBlock { facts: block.facts, bal: Some(block.raw.clone()), before_cancun: false }
}

fn options(checkpoints: impl IntoIterator<Item = u64>, merged_blocks: usize) -> AdvanceOptions {
    AdvanceOptions {
        checkpoints: Checkpoints::At(checkpoints.into_iter().collect()),
        merged_blocks: NonZeroUsize::new(merged_blocks).unwrap(),
        ..AdvanceOptions::default()
    }
}

type Advanced<E> = Result<StateAnchor, AdvanceError<E, Infallible>>;

/// How it ended, and the checkpoints on the way.
fn run<S: TrieStore>(store: &S, blocks: &[AdvanceBlock], options: &AdvanceOptions) -> (Advanced<S::Error>, Vec<u64>) {
    let mut checkpoints = Vec::new();
    let blocks = blocks.iter().cloned().map(Ok);
    let ended = advance(store, blocks, options, &mut |checkpoint| checkpoints.push(checkpoint.tip.block.number));
    (ended, checkpoints)
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
    // It unwinds to checkpoints, and to nothing in between.
    let between = unwind(&*store, blocks[25].facts.block);
    assert!(matches!(between, Err(UnwindError::StateRootMismatch { .. })), "{between:?}");
    assert_state(&*store, &blocks[30]);
    for checkpoint in [20, 6, 5, 0] {
        unwind(&*store, blocks[checkpoint].facts.block).unwrap();
        assert_state(&*store, &blocks[checkpoint]);
    }
    let every = Checkpoints::Every(std::num::NonZeroU64::new(7).unwrap());
    let every = AdvanceOptions { checkpoints: every, ..AdvanceOptions::default() };
    let (ended, checkpoints) = run(&*store, &lists, &every);
    assert_eq!((ended.unwrap(), checkpoints), (blocks[30].anchor(), vec![7, 14, 21, 28, 30]));
    unwind(&*store, blocks[0].facts.block).unwrap();
    // Nothing to do is done.
    assert_eq!(run(&*store, &[], &options([], 1)).0.unwrap(), blocks[0].anchor());
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
