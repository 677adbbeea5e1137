//! Trees of blocks in memory, kept and dropped in any order while the store moves, folds fail and threads race.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use alloy_primitives::{B256, Bytes, U256, keccak256};
use foldgate_core::{
    Account, AccountDelta, AccountInfo, BlockHash, BlockNumHash, BlockNumber, BrokenOverlay, Cached, EmptyAccounts,
    FoldOptions, Forest, HashedPostState, Layer, MemorySnapshot, MemoryStore, NodeKey, Overlay, PageCache, StateAnchor,
    StateReader, TrieId, TrieReader, TrieStore, Version,
    diff::{AccountLeafChange, LeafChanges, SlotChange},
    fold, resolve,
};
use foldgate_testing::oracle::state_root;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    keys::{SHAPES, Shape},
    model::{Model, apply, block, layer, load, random_block, rows_of},
};

type Base = Cached<MemorySnapshot>;

/// Fails after so many reads.
#[derive(Clone)]
struct Failing<R> {
    inner: R,
    left: Arc<AtomicUsize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Failed;

impl<R> Failing<R> {
    fn count<T, E>(&self, read: impl FnOnce(&R) -> Result<T, E>) -> Result<T, Failed> {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).map_err(|_| Failed)?;
        read(&self.inner).map_err(|_| Failed)
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("failed")
    }
}

impl std::error::Error for Failed {}

impl<R: TrieReader> StateReader for Failing<R> {
    type Error = Failed;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, Failed> {
        self.count(|inner| inner.account_info(hashed_address))
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, Failed> {
        self.count(|inner| inner.storage(hashed_address, hashed_slot))
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, Failed> {
        self.count(|inner| inner.code(code_hash))
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, Failed> {
        self.count(|inner| inner.block_hash(number))
    }
}

impl<R: TrieReader> TrieReader for Failing<R> {
    fn anchor(&self) -> StateAnchor {
        self.inner.anchor()
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, Failed> {
        self.count(|inner| inner.account(hashed_address))
    }

    fn tries(&self) -> Option<Version> {
        self.inner.tries()
    }

    fn durable_epoch(&self) -> Option<u32> {
        self.inner.durable_epoch()
    }

    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, Failed> {
        self.count(|inner| inner.node(key))
    }

    fn durable_node(&self, key: &NodeKey) -> Result<Option<Bytes>, Failed> {
        self.count(|inner| inner.durable_node(key))
    }

    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, Failed> {
        self.count(|inner| inner.accounts_from(start, limit))
    }

    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, Failed> {
        self.count(|inner| inner.slots_from(hashed_address, start, limit))
    }
}

/// A block in memory: the layers from some durable snapshot to it, and its state.
#[derive(Clone)]
struct Head {
    base: Base,
    layers: Vec<Arc<Layer>>,
    model: Model,
}

impl Head {
    fn view(&self) -> Overlay<Base> {
        Overlay::new(self.base.clone(), self.layers.clone()).unwrap()
    }

    fn check(&self) {
        let (view, rows) = (self.view(), rows_of(&self.model));
        for (key, row) in &rows {
            assert_eq!(view.node(key).unwrap().as_ref(), Some(row), "row {key:?}");
        }
    }

    fn child(&self, rng: &mut StdRng, shape: Shape, changes: usize, name: u64) -> Self {
        let state = random_block(rng, &self.model, shape, changes);
        let mut model = self.model.clone();
        apply(&mut model, &state);
        let view = self.view();
        let changes = resolve(&state, &view).unwrap();
        if rng.random_bool(0.5) {
            // A fold that fails leaves nothing behind.
            let left = Arc::new(AtomicUsize::new(rng.random_range(0..12)));
            let _any = fold(&Failing { inner: view.clone(), left }, changes.clone(), &options(rng));
        }
        let outcome = fold(&view, changes, &options(rng)).unwrap();
        assert_eq!(outcome.computed_state_root, state_root(&model));
        let parent = view.anchor().block;
        let block = BlockNumHash::new(parent.number + 1, B256::from(U256::from(name + 1000)));
        let mut layers = self.layers.clone();
        layers.push(layer(outcome, parent, block));
        Self { base: self.base.clone(), layers, model }
    }
}

fn options(rng: &mut StdRng) -> FoldOptions {
    [FoldOptions::SERIAL, FoldOptions::default(), FoldOptions::FORCED_PARALLEL][rng.random_range(0..3)]
}

fn cached(store: &MemoryStore) -> Base {
    Cached::new(store.snapshot().unwrap(), Arc::new(PageCache::new(0)))
}

fn begin(rng: &mut StdRng, shape: Shape, forest: &Forest) -> (MemoryStore, Head) {
    let mut model = Model::new();
    let founders = [0, 1, 2, 30, 150][rng.random_range(0..5)];
    let genesis = random_block(rng, &model, shape, founders);
    apply(&mut model, &genesis);
    let store = MemoryStore::new();
    store.load(load(&model, block(0))).unwrap();
    let base = cached(&store).with_tries(forest.unloaded());
    (store, Head { base, layers: Vec::new(), model })
}

fn run(seed: u64, budget: usize) {
    println!("seed {seed}, budget {budget}");
    let rng = &mut StdRng::seed_from_u64(seed);
    let shape = SHAPES[seed as usize % SHAPES.len()];
    let forest = Forest::new(budget);
    let (store, root) = begin(rng, shape, &forest);
    let mut heads = vec![root];
    for step in 0..60u64 {
        let at = rng.random_range(0..heads.len());
        match rng.random_range(0..10) {
            0..5 => {
                let changes = rng.random_range(0..15);
                let child = heads[at].child(rng, shape, changes, step);
                heads.push(child);
            }
            5 | 6 if heads.len() > 1 => drop(heads.swap_remove(at)),
            7 | 8 => {
                // The store goes on along the way to a head that stands on its tip. The others keep the old snapshot,
                // or are moved to the new one.
                let tip = store.tip().unwrap().unwrap().block;
                let Some(from) = heads[at].layers.iter().position(|layer| layer.parent == tip) else { continue };
                let to = rng.random_range(from + 1..=heads[at].layers.len());
                let batch = Layer::merged_batch(&heads[at].layers[from..to]).unwrap().unwrap();
                store.commit(&batch).unwrap();
                let newest = Arc::clone(&heads[at].layers[to - 1]);
                let base = cached(&store).with_tries(newest.tries.clone());
                for head in &mut heads {
                    let position = head.layers.iter().position(|layer| layer.anchor == newest.anchor);
                    if let Some(position) = position
                        && rng.random_bool(0.6)
                    {
                        head.layers.drain(..=position);
                        head.base = base.clone();
                    }
                }
                if heads.iter().all(|head| head.base.anchor() != base.anchor()) {
                    continue;
                }
            }
            _ => {
                // Children of one block over snapshots of different age are interchangeable, or refused.
                let child = heads[at].child(rng, shape, 5, step);
                for other in &heads {
                    let below = other.base.anchor().block;
                    let Some(position) = child.layers.iter().position(|layer| layer.parent == below) else { continue };
                    let layers = child.layers[position..].to_vec();
                    if Overlay::new(other.base.clone(), layers.clone()).is_ok() {
                        Head { base: other.base.clone(), layers, model: child.model.clone() }.check();
                    }
                }
                heads.push(child);
            }
        }
        let at = rng.random_range(0..heads.len());
        // Layers over an older snapshot may need a newer one.
        heads.retain(|head| Overlay::new(head.base.clone(), head.layers.clone()).is_ok());
        if let Some(head) = heads.get(at) {
            head.check();
        }
        if heads.is_empty() {
            break;
        }
    }
    while !heads.is_empty() {
        heads.swap_remove(rng.random_range(0..heads.len()));
        if let Some(head) = heads.first() {
            head.check();
        }
    }
    assert_eq!(forest.node_bytes(), 0, "all memory is given back");
}

fn seeds(default: u64) -> u64 {
    std::env::var("FOLDGATE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(default)
}

#[test]
fn trees_of_blocks_are_kept_and_dropped_in_any_order() {
    for seed in 0..seeds(8) {
        for budget in [0, 1, 5_000, usize::MAX] {
            run(seed, budget);
        }
    }
}

/// Threads fold on one parent, keep some of what they get and drop the rest, while other threads do the same.
#[test]
fn threads_fold_on_one_parent_while_others_drop() {
    for seed in 0..seeds(8) {
        for budget in [0, 5_000, usize::MAX] {
            let rng = &mut StdRng::seed_from_u64(seed);
            let shape = SHAPES[seed as usize % SHAPES.len()];
            let forest = Forest::new(budget);
            let (store, root) = begin(rng, shape, &forest);
            let parent = root.child(rng, shape, 30, 0);
            store.commit(&parent.layers[0].to_batch()).unwrap();
            let Head { layers, model, .. } = parent;
            let base = cached(&store).with_tries(layers[0].tries.clone());
            let parent = Head { base, layers: Vec::new(), model };
            drop((root, layers));
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let parent = parent.clone();
                    scope.spawn(move || {
                        let rng = &mut StdRng::seed_from_u64(seed << 8 | thread);
                        let mut kept = vec![parent];
                        for step in 0..15 {
                            let at = rng.random_range(0..kept.len());
                            let child = kept[at].child(rng, shape, 8, thread << 16 | step);
                            kept.push(child);
                            if kept.len() > 4 {
                                kept.swap_remove(rng.random_range(0..kept.len()));
                            }
                            kept[rng.random_range(0..kept.len())].check();
                        }
                    });
                }
                drop(parent);
            });
            assert_eq!(forest.node_bytes(), 0, "all memory is given back");
        }
    }
}

fn balances(keys: impl Iterator<Item = B256>, wei: u64) -> HashedPostState {
    let mut state = HashedPostState::new(EmptyAccounts::Keep);
    let delta = AccountDelta { balance: Some(U256::from(wei)), ..AccountDelta::default() };
    state.accounts.extend(keys.map(|key| (key, delta.clone())));
    state
}

/// Blocks that forgot what was durable when they were folded cannot be committed from further below.
#[test]
fn a_merged_batch_that_lacks_rows_is_refused() {
    let keys: Vec<_> = (0..=255u8).map(|at| keccak256([at])).collect();
    let mut model = Model::new();
    apply(&mut model, &balances(keys.iter().copied(), 1));
    let store = MemoryStore::new();
    store.load(load(&model, block(0))).unwrap();
    let base = cached(&store).with_tries(Forest::new(0).unloaded());
    let mut head = Head { base, layers: Vec::new(), model };
    let mut layers = Vec::new();
    for number in 1..=3u64 {
        let keys = keys.iter().copied().filter(|key| u64::from(key[0] >> 4) == number);
        let state = balances(keys, 10 + number);
        apply(&mut head.model, &state);
        let view = head.view();
        let outcome = fold(&view, resolve(&state, &view).unwrap(), &FoldOptions::SERIAL).unwrap();
        let layer = layer(outcome, view.anchor().block, block(number));
        if number == 1 {
            store.commit(&layer.to_batch()).unwrap();
            head.base = cached(&store).with_tries(layer.tries.clone());
        } else {
            head.layers.push(Arc::clone(&layer));
        }
        layers.push(layer);
    }
    let refused = Layer::merged_batch(&layers);
    assert_eq!(refused, Err(BrokenOverlay::Tries { layer: block(3) }));
    store.commit(&Layer::merged_batch(&layers[1..]).unwrap().unwrap()).unwrap();
    head.base = cached(&store).with_tries(layers[2].tries.clone());
    head.layers.clear();
    head.check();
    assert_eq!(store.snapshot().unwrap().anchor().state_root, state_root(&head.model));
}

/// A slot whose old value was told wrong changes nothing: the storage trie that is written in vain is the account's all
/// the same, and the one that it replaces can go.
#[test]
fn a_storage_trie_that_stays_what_it_was_is_linked() {
    let (address, slots) = (B256::repeat_byte(7), (0..40u8).map(|at| keccak256([at])).collect::<Vec<_>>());
    let mut state = balances([address, B256::repeat_byte(9)].into_iter(), 1);
    let storage = slots.iter().map(|slot| (*slot, U256::from(5))).collect();
    state.accounts.get_mut(&address).unwrap().storage = storage;
    let mut model = Model::new();
    apply(&mut model, &balances([B256::repeat_byte(8)].into_iter(), 1));
    let store = MemoryStore::new();
    store.load(load(&model, block(0))).unwrap();
    let forest = Forest::new(usize::MAX);
    let base = cached(&store).with_tries(forest.unloaded());
    let mut outcome = fold(&base, resolve(&state, &base).unwrap(), &FoldOptions::SERIAL).unwrap();
    apply(&mut model, &state);
    drop(base);
    for number in 1..4 {
        let layer = layer(outcome, block(number - 1), block(number));
        store.commit(&layer.to_batch()).unwrap();
        let base = cached(&store).with_tries(layer.tries.clone());
        drop(layer);
        let head = Head { base, layers: Vec::new(), model: model.clone() };
        let rows = rows_of(&model);
        for (key, row) in rows.iter().filter(|(key, _)| key.trie == TrieId::Storage(address)) {
            assert_eq!(head.base.tries().unwrap().row(key), Some(Some(row.clone())), "row {key:?}");
        }
        let old = head.base.account(&address).unwrap();
        // Another account's storage takes up what memory was given back.
        let storage = slots.iter().map(|slot| (*slot, U256::from(6 + number))).collect();
        let mut other = HashedPostState::new(EmptyAccounts::Keep);
        let delta = AccountDelta { balance: Some(U256::from(1)), storage, ..AccountDelta::default() };
        other.accounts.insert(B256::repeat_byte(10), delta);
        let _kept = fold(&head.base, resolve(&other, &head.base).unwrap(), &FoldOptions::SERIAL).unwrap();
        for (key, row) in rows.iter().filter(|(key, _)| key.trie == TrieId::Storage(address)) {
            assert_eq!(head.base.tries().unwrap().row(key), Some(Some(row.clone())), "row {key:?}");
        }
        let slots = slots.iter().map(|slot| SlotChange { hashed_slot: *slot, old: U256::from(4), new: U256::from(5) });
        let mut slots: Vec<_> = slots.collect();
        slots.sort_unstable_by_key(|slot| slot.hashed_slot);
        let new = old.map(AccountInfo::from);
        let accounts = vec![AccountLeafChange { hashed_address: address, old, new, slots }];
        let changes = LeafChanges { accounts, codes: Vec::new() };
        outcome = fold(&head.base, changes, &FoldOptions::SERIAL).unwrap();
        assert_eq!(outcome.computed_state_root, state_root(&model));
    }
    drop(outcome);
    assert_eq!(forest.node_bytes(), 0, "all memory is given back, once");
}

/// Layers over a view that has layers itself: what is durable is what the lowest snapshot has.
#[test]
fn an_overlay_over_an_overlay_knows_what_is_durable() {
    for seed in 0..8 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let shape = SHAPES[seed as usize % SHAPES.len()];
        let forest = Forest::new(0);
        let (_store, root) = begin(rng, shape, &forest);
        let first = root.child(rng, shape, 40, 0);
        let mut model = first.model.clone();
        let mut layers = Vec::new();
        for number in 1..6 {
            let view = Overlay::new(first.view(), layers.clone()).unwrap();
            let state = random_block(rng, &model, shape, 10);
            apply(&mut model, &state);
            let outcome = fold(&view, resolve(&state, &view).unwrap(), &FoldOptions::SERIAL).unwrap();
            assert_eq!(outcome.computed_state_root, state_root(&model), "seed {seed}, block {number}");
            let parent = view.anchor().block;
            layers.push(layer(outcome, parent, block(parent.number + 1)));
        }
    }
}
