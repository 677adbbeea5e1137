//! Tries in memory over many blocks: layers on layers, siblings, merged commits at any time, links cut under pressure.
//! Rows and roots are those of a fresh load after each step, and memory is given back.

use std::{collections::BTreeSet, sync::Arc};

use alloy_primitives::{B256, U256};
use foldgate_core::{
    AccountDelta, BlockNumHash, Cached, EmptyAccounts, FoldOptions, Forest, HashedPostState, Layer, MemorySnapshot,
    MemoryStore, NodeKey, Overlay, PageCache, TrieReader, TrieStore, fold, resolve, resolve_all,
};
use foldgate_testing::oracle::state_root;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    keys::SHAPES,
    model::{Model, apply, block, fold_every_way, layer, load, random_block, rows_of},
};

const BLOCKS: u64 = 24;

/// A store that lags behind, the layers above it, and the state after each of them.
struct Chain {
    store: MemoryStore,
    base: Cached<MemorySnapshot>,
    layers: Vec<Arc<Layer>>,
    models: Vec<Model>,
    seen: BTreeSet<NodeKey>,
}

impl Chain {
    fn new(genesis: Model, forest: &Forest) -> Self {
        let store = MemoryStore::new();
        store.load(load(&genesis, block(0))).unwrap();
        let base = Cached::new(store.snapshot().unwrap(), Arc::new(PageCache::new(0))).with_tries(forest.unloaded());
        let seen = rows_of(&genesis).into_keys().collect();
        Self { store, base, layers: Vec::new(), models: vec![genesis], seen }
    }

    fn view(&self, layers: usize) -> Overlay<Cached<MemorySnapshot>> {
        Overlay::new(self.base.clone(), self.layers[..layers].to_vec()).unwrap()
    }

    /// Every row of the view is that of a fresh load of the state.
    fn check(&self, layers: usize) {
        let (view, rows) = (self.view(layers), rows_of(&self.models[layers]));
        for key in &self.seen {
            assert_eq!(view.node(key).unwrap(), rows.get(key).cloned(), "row {key:?}");
        }
    }

    fn extend(&mut self, state: &HashedPostState) {
        let view = self.view(self.layers.len());
        let mut model = self.models.last().unwrap().clone();
        apply(&mut model, state);
        let outcome = fold_every_way(&view, state);
        assert_eq!(outcome.computed_state_root, state_root(&model));
        let parent = view.anchor().block;
        self.layers.push(layer(outcome, parent, block(parent.number + 1)));
        self.seen.extend(rows_of(&model).into_keys());
        self.models.push(model);
    }

    /// Commits the oldest layers at once.
    fn flush(&mut self, count: usize) {
        let Some(batch) = Layer::merged_batch(&self.layers[..count]).unwrap() else { return };
        self.store.commit(&batch).unwrap();
        let tries = self.layers[count - 1].tries.clone();
        let snapshot = self.store.snapshot().unwrap();
        self.base = Cached::new(snapshot, Arc::new(PageCache::new(0))).with_tries(tries);
        self.layers.drain(..count);
        self.models.drain(..count);
        let (snapshot, rows) = (self.store.snapshot().unwrap(), rows_of(&self.models[0]));
        for key in &self.seen {
            assert_eq!(snapshot.node(key).unwrap(), rows.get(key).cloned(), "stored row {key:?}");
        }
    }
}

fn run(seed: u64, budget: usize) {
    println!("seed {seed}, budget {budget}");
    let rng = &mut StdRng::seed_from_u64(seed);
    let shape = SHAPES[seed as usize % SHAPES.len()];
    let mut genesis = Model::new();
    let founders = [0, 1, 40, 200][rng.random_range(0..4)];
    let state = random_block(rng, &genesis, shape, founders);
    apply(&mut genesis, &state);
    let forest = Forest::new(budget);
    let mut chain = Chain::new(genesis, &forest);
    for _ in 0..BLOCKS {
        let changes = rng.random_range(0..25);
        let state = random_block(rng, chain.models.last().unwrap(), shape, changes);
        chain.extend(&state);
        // A sibling of any block leaves everything as it was.
        let at = rng.random_range(0..=chain.layers.len());
        let mut model = chain.models[at].clone();
        let state = random_block(rng, &model, shape, 10);
        apply(&mut model, &state);
        assert_eq!(fold_every_way(&chain.view(at), &state).computed_state_root, state_root(&model));
        chain.check(at);
        chain.check(chain.layers.len());
        if rng.random_bool(0.3) {
            let count = rng.random_range(1..=chain.layers.len());
            chain.flush(count);
            chain.check(0);
        }
    }
    // A branch of the tree of versions goes while its sibling stays, and the other way round.
    let view = chain.view(chain.layers.len());
    let states: Vec<_> = (0..4).map(|_| random_block(rng, chain.models.last().unwrap(), shape, 10)).collect();
    let mut outcomes: Vec<_> = states.iter().map(|state| Some(fold_every_way(&view, state))).collect();
    outcomes[rng.random_range(0..4)] = None;
    chain.check(chain.layers.len());
    drop((view, outcomes));
    drop(chain);
    assert_eq!(forest.node_bytes(), 0, "all memory is given back");
}

#[test]
fn histories_in_memory_are_those_of_fresh_loads() {
    // More of them by hand: FOLDGATE_SEEDS=1000
    let seeds = std::env::var("FOLDGATE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(8);
    for seed in 0..seeds {
        for budget in [0, 20_000, usize::MAX] {
            run(seed, budget);
        }
    }
}

/// With a large state, few changes and blocks that become durable at once, memory stays about at its budget, and the
/// links that are cut are found again in the store.
#[test]
fn memory_stays_at_its_budget() {
    let rng = &mut StdRng::seed_from_u64(7);
    let mut genesis = Model::new();
    let mut state = HashedPostState::new(EmptyAccounts::Keep);
    for _ in 0..4000 {
        let delta = AccountDelta { balance: Some(U256::from(1)), ..AccountDelta::default() };
        state.accounts.insert(B256::new(rng.random()), delta);
    }
    apply(&mut genesis, &state);
    let addresses: Vec<_> = genesis.keys().copied().collect();
    let mut reached = [0; 2];
    for (at, budget) in [60_000, usize::MAX].into_iter().enumerate() {
        let forest = Forest::new(budget);
        let mut chain = Chain::new(genesis.clone(), &forest);
        for number in 0..300u64 {
            let mut state = HashedPostState::new(EmptyAccounts::Keep);
            for _ in 0..10 {
                let address = addresses[rng.random_range(0..addresses.len())];
                let delta = AccountDelta { balance: Some(U256::from(number + 1)), ..AccountDelta::default() };
                state.accounts.insert(address, delta);
            }
            let view = chain.view(0);
            let outcome = fold(&view, resolve(&state, &view).unwrap(), &FoldOptions::SERIAL).unwrap();
            apply(&mut chain.models[0], &state);
            if number % 50 == 49 {
                assert_eq!(outcome.computed_state_root, state_root(&chain.models[0]));
            }
            let parent = view.anchor().block;
            let layer = layer(outcome, parent, BlockNumHash::new(number + 1, B256::from(U256::from(number + 1))));
            chain.store.commit(&layer.to_batch()).unwrap();
            let snapshot = chain.store.snapshot().unwrap();
            chain.base = Cached::new(snapshot, Arc::new(PageCache::new(0))).with_tries(layer.tries.clone());
            reached[at] = reached[at].max(forest.node_bytes());
        }
    }
    println!("{reached:?} bytes");
    assert!(reached[0] < 120_000, "{} bytes at a budget of 60,000", reached[0]);
    assert!(reached[1] > 180_000, "{} bytes without a budget: the test is too small", reached[1]);
}

/// Many blocks resolved together and folded once lead where they lead one by one.
#[test]
fn merged_blocks_lead_where_single_ones_lead() {
    for seed in 300..312 {
        println!("seed {seed}");
        let rng = &mut StdRng::seed_from_u64(seed);
        let shape = SHAPES[seed as usize % SHAPES.len()];
        let mut genesis = Model::new();
        let state = random_block(rng, &genesis, shape, 60);
        apply(&mut genesis, &state);
        let mut chain = Chain::new(genesis, &Forest::new(usize::MAX));
        let parent = chain.view(0);
        let mut states = Vec::new();
        for _ in 0..rng.random_range(1..8) {
            let changes = rng.random_range(0..40);
            let state = random_block(rng, chain.models.last().unwrap(), shape, changes);
            chain.extend(&state);
            states.push(state);
        }
        for options in [FoldOptions::SERIAL, FoldOptions::FORCED_PARALLEL] {
            let outcome = fold(&parent, resolve_all(&states, &parent, &options).unwrap(), &options).unwrap();
            assert_eq!(outcome.computed_state_root, state_root(chain.models.last().unwrap()));
            // What is written is what a merged commit of the single blocks writes, but for rows that come and go.
            let merged = Layer::merged_batch(&chain.layers).unwrap().unwrap();
            let mut rows = rows_of(&chain.models[0]);
            let mut once = rows.clone();
            let put = |rows: &mut std::collections::BTreeMap<_, _>, nodes: Vec<(NodeKey, Option<_>)>| {
                for (key, row) in nodes {
                    match row {
                        Some(row) => drop(rows.insert(key, row)),
                        None => drop(rows.remove(&key)),
                    }
                }
            };
            put(&mut rows, merged.rows.nodes);
            put(&mut once, outcome.updates().nodes);
            assert_eq!(rows, once);
            assert_eq!(rows, rows_of(chain.models.last().unwrap()));
        }
    }
}

/// EIP-161 between the blocks: an account that is emptied goes with its storage, though a later block funds it again.
#[test]
fn an_account_emptied_in_between_starts_anew() {
    let (address, slot) = (B256::repeat_byte(7), B256::repeat_byte(1));
    let mut genesis = Model::new();
    let mut owner = HashedPostState::new(EmptyAccounts::Keep);
    let balance = |wei: u64| AccountDelta { balance: Some(U256::from(wei)), ..AccountDelta::default() };
    let other = (B256::repeat_byte(9), balance(1));
    let storage = [(slot, U256::from(5))].into_iter().collect();
    owner.accounts.extend([(address, AccountDelta { storage, ..balance(3) }), other]);
    apply(&mut genesis, &owner);
    let chain = Chain::new(genesis, &Forest::new(0));
    let blocks: Vec<_> = [0, 8]
        .map(|wei| {
            let mut state = HashedPostState::new(EmptyAccounts::Remove);
            state.accounts.insert(address, balance(wei));
            state
        })
        .into();
    let parent = chain.view(0);
    let changes = resolve_all(&blocks, &parent, &FoldOptions::SERIAL).unwrap();
    assert_eq!(changes.accounts[0].slots.len(), 1, "the slot goes");
    let outcome = fold(&parent, changes, &FoldOptions::SERIAL).unwrap();
    let mut expected = Model::new();
    let mut state = HashedPostState::new(EmptyAccounts::Keep);
    state.accounts.extend([(address, balance(8)), (B256::repeat_byte(9), balance(1))]);
    apply(&mut expected, &state);
    assert_eq!(outcome.computed_state_root, state_root(&expected));
}
