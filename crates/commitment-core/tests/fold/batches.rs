//! What batching could break: lanes that are not full, nodes of different sizes side by side, levels in which nodes of
//! many tries meet, nodes that lie in their parents, branches that collapse where the work is shared out.

use std::{collections::BTreeMap, convert::Infallible};

use alloy_primitives::{B256, Bytes, KECCAK256_EMPTY, U256, keccak256};
use foldgate_core::{
    FoldOptions, HashedPostState, LoadSource, MemoryStore, Nibbles, TrieId, TrieStore, fold, resolve,
    trie::{bulk::StateLoad, bulk::state_root as loaded_root, trie_root},
};
use foldgate_testing::oracle::{self, HashedAccount, state_root};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IteratorRandom};

use crate::{
    keys::{SHAPES, Shape},
    model::{Model, RowMap, apply, apply_updates, block, check_diff, fold_every_way, items, layer, load, rows_of},
    single::MapTrie,
};

fn key(i: u32) -> B256 {
    keccak256(i.to_be_bytes())
}

fn bytes_root(leaves: &BTreeMap<B256, Bytes>) -> B256 {
    oracle::trie_root(&leaves.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect())
}

/// One to forty leaves: each number of lanes that can be left over, once and several times.
#[test]
fn any_number_of_leaves() {
    for count in 0..=40 {
        let mut trie = MapTrie::default();
        trie.apply((0..count).map(|i| (key(i), Some(U256::from(i + 1)))));
        trie.check();
        // All leaves change, then every other one goes.
        trie.apply((0..count).map(|i| (key(i), Some(U256::from(i + 1) << 200))));
        trie.check();
        trie.apply((0..count).step_by(2).map(|i| (key(i), None)));
        trie.check();
    }
}

/// Leaves whose lengths meet the ends of rate blocks, alone and side by side, and longer than four of them.
#[test]
fn leaves_of_every_number_of_rate_blocks() {
    let around = |blocks: usize| 136 * blocks - 60..136 * blocks - 30;
    let lengths: Vec<usize> = (1..60).chain((1..=5).flat_map(around)).chain([1000, 66_000]).collect();
    for length in &lengths {
        let leaves = BTreeMap::from([(key(0), Bytes::from(vec![7; *length]))]);
        assert_eq!(trie_root(leaves.clone()), Some(bytes_root(&leaves)), "{length}");
    }
    let rng = &mut StdRng::seed_from_u64(1);
    for round in 0..20 {
        let mut trie = MapTrie::<Bytes>::default();
        let batch = (0..200 + round).map(|i| {
            let length = *lengths.iter().choose(rng).unwrap();
            (key(i), Some(Bytes::from(vec![i as u8 | 1; length])))
        });
        trie.apply(batch);
        trie.check();
        trie.apply(
            (0..200).step_by(3).map(|i| (key(i), (i % 2 == 0).then(|| Bytes::from(vec![1; lengths[i as usize % 90]])))),
        );
        trie.check();
    }
}

/// A branch of each number of children, hashes and short leaves mixed: one to four rate blocks, and less than 32 bytes.
#[test]
fn branches_of_every_number_of_rate_blocks() {
    for depth in [0, 1, 30, 62, 63] {
        for children in 2..=16u8 {
            for long in [0, 1, 8, 16] {
                let mut trie = MapTrie::<U256>::default();
                let leaf = |child: u8, step: u32| {
                    let mut nibbles = [3; 64];
                    nibbles[depth] = child;
                    let value = if child < long { U256::MAX - U256::from(step) } else { U256::from(step) };
                    (B256::from_slice(&Nibbles::from_nibbles(nibbles).pack()), Some(value))
                };
                trie.apply((0..children).map(|child| leaf(child, 1)));
                trie.check();
                trie.apply([leaf(0, 2), leaf(children - 1, 2), leaf(15, 3)]);
                trie.check();
            }
        }
    }
}

/// Takes a history through commits; rows are held to those of a fresh load, roots to the oracle.
struct Chain {
    model: Model,
    rows: RowMap,
    store: MemoryStore,
    number: u64,
}

impl Chain {
    fn new(model: Model) -> Self {
        let store = MemoryStore::new();
        store.load(load(&model, block(0))).unwrap();
        Self { rows: rows_of(&model), model, store, number: 0 }
    }

    fn advance(&mut self, state: &HashedPostState) {
        let before = self.model.clone();
        apply(&mut self.model, state);
        let outcome = fold_every_way(&self.store.snapshot().unwrap(), state);
        assert_eq!(outcome.computed_state_root, state_root(&self.model));
        check_diff(&outcome, &before, &self.model);
        apply_updates(&mut self.rows, &outcome);
        assert_eq!(self.rows, rows_of(&self.model), "rows are those of a fresh load");
        let layer = layer(outcome, block(self.number), block(self.number + 1));
        self.store.commit(&layer.to_batch()).unwrap();
        self.number += 1;
    }
}

fn contract(storage: BTreeMap<B256, U256>) -> HashedAccount {
    HashedAccount { nonce: 1, code_hash: KECCAK256_EMPTY, storage, ..HashedAccount::default() }
}

fn set_slots(state: &mut HashedPostState, address: B256, slots: impl IntoIterator<Item = (B256, U256)>) {
    state.accounts.entry(address).or_default().storage.extend(slots);
}

#[test]
fn ten_thousand_contracts_of_one_slot() {
    let one_slot = |i| (key(i), contract(BTreeMap::from([(key(i + 1), U256::from(i + 1))])));
    let mut chain = Chain::new((0..10_000).map(one_slot).collect());
    // Each slot changes; then half of the tries become empty, some get a second slot beside the one that was there.
    let mut state = HashedPostState::default();
    (0..10_000).for_each(|i| set_slots(&mut state, key(i), [(key(i + 1), U256::from(i + 2))]));
    chain.advance(&state);
    let mut state = HashedPostState::default();
    for i in 0..10_000 {
        match i % 4 {
            0 | 1 => set_slots(&mut state, key(i), [(key(i + 1), U256::ZERO)]),
            2 => set_slots(&mut state, key(i), [(key(i + 2), U256::from(7))]),
            _ => {}
        }
    }
    chain.advance(&state);
    // From two slots back to one, the untouched one.
    let mut state = HashedPostState::default();
    (2..10_000).step_by(4).for_each(|i| set_slots(&mut state, key(i), [(key(i + 1), U256::ZERO)]));
    chain.advance(&state);
}

/// The topmost branch of a large trie, at which work is shared out, loses children, collapses, and comes back.
#[test]
fn one_huge_contract() {
    let address = key(0);
    let slots: BTreeMap<_, _> = (0..20_000).map(|i| (key(i), U256::from(i + 1))).collect();
    let mut model: Model = (1..50).map(|i| (key(i), contract(BTreeMap::new()))).collect();
    model.insert(address, contract(slots.clone()));
    let mut chain = Chain::new(model);
    let mut state = HashedPostState::default();
    set_slots(&mut state, address, (0..3000).map(|i| (key(i * 7), U256::from(i % 3))));
    chain.advance(&state);
    // Only slots below two of the top nibbles stay, then below one, then a single one, then none, then all again.
    for keep in [0x30..0x50, 0x40..0x50, 0x40..0x41] {
        let mut state = HashedPostState::default();
        let storage = &chain.model[&address].storage;
        let gone = storage.keys().filter(|slot| !keep.contains(&slot[0]));
        set_slots(&mut state, address, gone.map(|slot| (*slot, U256::ZERO)));
        chain.advance(&state);
    }
    for left in [1, 0] {
        let mut state = HashedPostState::default();
        let gone = chain.model[&address].storage.keys().skip(left);
        set_slots(&mut state, address, gone.map(|slot| (*slot, U256::ZERO)));
        chain.advance(&state);
        assert!(!chain.rows.keys().any(|key| key.trie == TrieId::Storage(address)), "no row below two leaves");
    }
    let mut state = HashedPostState::default();
    set_slots(&mut state, address, slots);
    chain.advance(&state);
}

/// In one block: tries of every shape and size, so that a level mixes nodes that lie in their parents with hashed ones,
/// branches behind extensions with bare ones, and branches that were read with new ones.
#[test]
fn tries_of_every_shape_side_by_side() {
    for seed in 0..6 {
        println!("seed {seed}");
        let rng = &mut StdRng::seed_from_u64(seed);
        let value = |rng: &mut StdRng| match rng.random_range(0..4) {
            0 => U256::ZERO,
            1 | 2 => U256::from(rng.random_range(1..128)),
            _ => U256::from_be_bytes(rng.random::<[u8; 32]>()),
        };
        let slots = |rng: &mut StdRng, shape: Shape| -> Vec<(B256, U256)> {
            let count = [1, 2, 3, 20, 80][rng.random_range(0..5)];
            (0..count).map(|_| (shape.key(rng, 100), value(rng))).collect()
        };
        let mut model = Model::new();
        for i in 0..60 {
            let storage = slots(rng, SHAPES[i as usize % SHAPES.len()]);
            let storage = storage.into_iter().filter(|(_, value)| !value.is_zero()).collect();
            model.insert(key(i), contract(storage));
        }
        let mut chain = Chain::new(model);
        for _ in 0..8 {
            let mut state = HashedPostState::default();
            for i in (0..60).filter(|_| rng.random_bool(0.7)).collect::<Vec<_>>() {
                let touched = slots(rng, SHAPES[i as usize % SHAPES.len()]);
                set_slots(&mut state, key(i), touched);
                if rng.random_bool(0.05) {
                    state.accounts.entry(key(i)).or_default().wipe_storage();
                }
            }
            chain.advance(&state);
        }
    }
}

/// Of several failures the one that a serial fold meets first is reported.
#[test]
fn the_first_failure_is_reported() {
    let slots = |i: u32| (0..50).map(|slot| (key(slot), U256::from(i + slot + 1))).collect();
    let model: Model = (0..40).map(|i| (key(i), contract(slots(i)))).collect();
    let store = MemoryStore::new();
    store.load(load(&model, block(0))).unwrap();
    let snapshot = store.snapshot().unwrap();
    let mut state = HashedPostState::default();
    (0..40).for_each(|i| set_slots(&mut state, key(i), (0..50).map(|slot| (key(slot), U256::from(1_000_000)))));
    let mut changes = resolve(&state, &snapshot).unwrap();
    // These claim that slots are new which are there.
    for account in [5, 6, 30] {
        changes.accounts[account].slots.iter_mut().for_each(|slot| slot.old = U256::ZERO);
    }
    let serial = fold(&snapshot, changes.clone(), &FoldOptions::SERIAL).unwrap_err();
    for options in [FoldOptions::FORCED_PARALLEL, FoldOptions::default()] {
        assert_eq!(fold(&snapshot, changes.clone(), &options).unwrap_err(), serial);
    }
}

/// Loads hash some thousands of leaves at a time: states about as large as one batch or two, contracts that begin or
/// end with it, whatever the pieces.
#[test]
fn loads_that_end_with_a_batch() {
    for accounts in [4095, 4096, 4097, 8192] {
        let mut model: Model = (0..accounts).map(|i| (key(i), contract(BTreeMap::new()))).collect();
        for (at, slots) in [(10, 4000), (11, 96), (12, 4096), (13, 1), (4000, 4097), (4001, 2), (4094, 1)] {
            let address = *model.keys().nth(at).unwrap();
            let storage = (0..slots).map(|i| (key(i), U256::from(i + 1))).collect();
            model.get_mut(&address).unwrap().storage = storage;
        }
        let expected = state_root(&model);
        assert_eq!(loaded_root(items(&model).into_iter().map(Ok::<_, Infallible>)), Ok(expected));
        let rows = |piece_bytes| {
            let items = items(&model).into_iter().map(Ok::<_, Infallible>);
            let mut load = StateLoad::new(items, block(0)).with_piece_bytes(piece_bytes).expecting(expected);
            let mut rows = RowMap::new();
            while let Some(piece) = load.next_rows().unwrap() {
                for (key, row) in piece.nodes {
                    assert!(rows.insert(key, row.unwrap()).is_none(), "{key:?} twice");
                }
            }
            load.anchor().unwrap();
            rows
        };
        let large = rows(64 << 20);
        assert_eq!(large, rows(100_000));
        // Folded from nothing instead of loaded, the rows are the same.
        let empty = MemoryStore::new();
        empty.load(load(&Model::new(), block(0))).unwrap();
        let mut state = HashedPostState::default();
        for (address, account) in &model {
            set_slots(&mut state, *address, account.storage.clone());
            state.accounts.entry(*address).or_default().nonce = Some(account.nonce);
        }
        let mut folded = RowMap::new();
        let outcome = fold_every_way(&empty.snapshot().unwrap(), &state);
        apply_updates(&mut folded, &outcome);
        assert_eq!((outcome.computed_state_root, folded), (expected, large));
    }
}

#[test]
fn roots_of_many_sorted_leaves() {
    for count in [4095, 4096, 4097, 12_000] {
        let leaves: BTreeMap<_, _> = (0..count).map(|i| (key(i), Bytes::from(i.to_string().into_bytes()))).collect();
        assert_eq!(trie_root(leaves.clone()), Some(bytes_root(&leaves)), "{count}");
    }
}
