//! Back to each ancestor, and on from there.

use std::collections::BTreeSet;

use alloy_primitives::{B256, U256};
use foldgate_core::{
    Account, BalStore, BlockNumHash, FoldOptions, MemoryStore, NodeKey, Overlay, TrieReader, TrieStore, UnwindError,
    compute_unwind, unwind,
};
use foldgate_testing::oracle::state_root;
use rand::{SeedableRng, rngs::StdRng};

use crate::{
    keys::SHAPES,
    model::{Model, apply, block, fold_every_way, layer, load, random_block, rows_of},
};

const BLOCKS: u64 = 8;

struct Chain {
    store: MemoryStore,
    /// The state after each block.
    models: Vec<Model>,
    /// Every row that ever stood.
    seen: BTreeSet<NodeKey>,
}

fn chain(seed: u64) -> (Chain, StdRng) {
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let shape = SHAPES[seed as usize % SHAPES.len()];
    let mut genesis = Model::new();
    let founders = random_block(&mut rng, &genesis, shape, 20);
    apply(&mut genesis, &founders);
    let store = MemoryStore::new();
    store.load(load(&genesis, block(0))).unwrap();
    let seen = rows_of(&genesis).into_keys().collect();
    let mut chain = Chain { store, models: vec![genesis], seen };
    for number in 1..=BLOCKS {
        let mut model = chain.models[number as usize - 1].clone();
        let state = random_block(&mut rng, &model, shape, 12);
        apply(&mut model, &state);
        let outcome = fold_every_way(&chain.store.snapshot().unwrap(), &state);
        chain.seen.extend(outcome.updates().nodes.iter().map(|(key, _)| *key));
        chain.store.commit(&layer(outcome, block(number - 1), block(number)).to_batch()).unwrap();
        chain.models.push(model);
    }
    (chain, rng)
}

/// Everything that the reader serves is that of a fresh load of `model`.
fn check_state<R: TrieReader>(reader: &R, model: &Model, seen: &BTreeSet<NodeKey>) {
    let rows = rows_of(model);
    for key in seen {
        assert_eq!(reader.node(key).unwrap(), rows.get(key).cloned(), "row {key:?}");
    }
    assert!(rows.keys().all(|key| seen.contains(key)));
    let accounts = reader.accounts_from(&B256::ZERO, usize::MAX).unwrap();
    assert!(accounts.iter().map(|(address, _)| address).eq(model.keys()));
    for (address, account) in model {
        let slots = reader.slots_from(address, &B256::ZERO, usize::MAX).unwrap();
        assert_eq!(slots, account.storage.clone().into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn to_each_ancestor_at_once() {
    for (seed, number) in (0..16).flat_map(|seed| [(seed, seed % BLOCKS), (seed, 0)]) {
        let (chain, mut rng) = chain(seed);
        let model = &chain.models[number as usize];
        let tip = chain.store.snapshot().unwrap();
        let way = compute_unwind(&chain.store, block(number), &FoldOptions::SERIAL).unwrap();
        assert_eq!(way, compute_unwind(&chain.store, block(number), &FoldOptions::FORCED_PARALLEL).unwrap());
        // A view of the ancestor, while the store stays where it is.
        let view = Overlay::new(tip.clone(), vec![way.layer.clone().into()]).unwrap();
        check_state(&view, model, &chain.seen);
        let sibling = random_block(&mut rng, model, SHAPES[seed as usize % SHAPES.len()], 10);
        let on_view = fold_every_way(&view, &sibling);

        let anchor = unwind(&chain.store, block(number)).unwrap();
        assert_eq!((anchor.block, anchor.state_root), (block(number), state_root(model)));
        assert_eq!(chain.store.tip().unwrap(), Some(anchor));
        check_state(&chain.store.snapshot().unwrap(), model, &chain.seen);
        check_state(&tip, &chain.models[BLOCKS as usize], &chain.seen);

        // Another branch of history from there.
        let on_store = fold_every_way(&chain.store.snapshot().unwrap(), &sibling);
        assert_eq!(on_store, on_view);
        let mut model = model.clone();
        apply(&mut model, &sibling);
        assert_eq!(on_store.computed_state_root, state_root(&model));
        let name = BlockNumHash::new(number + 1, B256::repeat_byte(0xee));
        chain.store.commit(&layer(on_store, block(number), name).to_batch()).unwrap();
        assert_eq!(unwind(&chain.store, block(number)).unwrap(), anchor);
    }
}

#[test]
fn step_by_step() {
    for seed in 20..28 {
        let (chain, _) = chain(seed);
        for number in (0..BLOCKS).rev() {
            unwind(&chain.store, block(number)).unwrap();
            check_state(&chain.store.snapshot().unwrap(), &chain.models[number as usize], &chain.seen);
        }
    }
}

#[test]
fn refusals() {
    assert!(matches!(unwind(&MemoryStore::new(), block(0)), Err(UnwindError::Empty)));
    let (chain, _) = chain(3);
    let tip = chain.store.tip().unwrap().unwrap();
    assert_eq!(unwind(&chain.store, tip.block).unwrap(), tip, "to the tip is no step");
    for target in [block(BLOCKS + 1), BlockNumHash::new(2, B256::repeat_byte(7))] {
        let error = unwind(&chain.store, target).unwrap_err();
        assert!(matches!(error, UnwindError::NotAnAncestor { got, .. } if got == target), "{error}");
    }
    chain.store.prune_below(5).unwrap();
    let error = unwind(&chain.store, block(2)).unwrap_err();
    let refused = matches!(error, UnwindError::NotAnAncestor { .. } | UnwindError::MissingReverseDiff { .. });
    assert!(refused, "{error}");
    assert_eq!(chain.store.tip().unwrap(), Some(tip));
    unwind(&chain.store, block(4)).unwrap();
}

/// A reverse diff that was damaged leads to another root: nothing is written.
#[test]
fn a_wrong_reverse_diff_is_found_before_anything_is_written() {
    let (chain, mut rng) = chain(5);
    let model = &chain.models[BLOCKS as usize];
    let mut state = random_block(&mut rng, model, SHAPES[1], 8);
    let unchanged = state.accounts.keys().all(|address| !model.contains_key(address));
    if unchanged {
        state.accounts.entry(*model.keys().next().unwrap()).or_default().nonce = Some(77_777);
    }
    let outcome = fold_every_way(&chain.store.snapshot().unwrap(), &state);
    let mut batch = layer(outcome, block(BLOCKS), block(BLOCKS + 1)).to_batch();
    let prior = batch.blocks[0].reverse.accounts.iter_mut().find(|prior| !prior.record.is_empty()).unwrap();
    let mut record = Account::from_bytes(&prior.record).unwrap();
    record.balance += U256::from(1);
    prior.record = record.to_bytes().into();
    chain.store.commit(&batch).unwrap();
    let tip = chain.store.tip().unwrap();
    let error = unwind(&chain.store, block(BLOCKS)).unwrap_err();
    let UnwindError::StateRootMismatch { got, expected, .. } = error else { panic!("{error}") };
    assert_eq!(expected, state_root(model));
    assert_ne!(got, expected);
    assert_eq!(chain.store.tip().unwrap(), tip);
}
