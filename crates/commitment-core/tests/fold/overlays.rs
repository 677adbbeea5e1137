//! Reads through layers, and of what was read ahead, one by one, as scans, and in batches of any order, held to plain maps.

use std::{cell::Cell, sync::Arc};

use alloy_primitives::{B256, U256};
use foldgate_core::{
    Account, AccountInfo, Cached, FoldOptions, HashedPostState, MemoryStore, Overlay, PageCache, ReadAhead,
    TouchedAccount, TrieReader, TrieStore, WrittenKey, fold, resolve,
};
use foldgate_testing::oracle::storage_root;
use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IteratorRandom, SliceRandom},
};

use crate::{
    keys::{SHAPES, Shape},
    model::{Model, apply, block, layer, load, random_block},
};

fn account(model: &Model, hashed_address: &B256) -> Option<Account> {
    let account = model.get(hashed_address)?;
    let info = AccountInfo { nonce: account.nonce, balance: account.balance, code_hash: account.code_hash };
    Some(info.with_storage_root(storage_root(&account.storage)))
}

fn slot(model: &Model, (hashed_address, hashed_slot): &(B256, B256)) -> U256 {
    model.get(hashed_address).and_then(|account| account.storage.get(hashed_slot)).copied().unwrap_or_default()
}

/// One that is there, one that perhaps is, or a neighbour of one, which differs in its last bytes alone.
fn near<'k>(rng: &mut StdRng, there: impl Iterator<Item = &'k B256>, shape: Shape, variety: u32) -> B256 {
    let mut key = there.choose(rng).copied().filter(|_| rng.random_ratio(3, 4));
    let key = key.get_or_insert_with(|| shape.key(rng, variety));
    if rng.random_ratio(1, 4) {
        key[rng.random_range(29..32)] ^= 1 << rng.random_range(0..8);
    }
    *key
}

/// In any order, in order, backwards, and in order but for one.
fn orders<K: Copy + Ord>(mut keys: Vec<K>, rng: &mut StdRng) -> [Vec<K>; 4] {
    let any = keys.clone();
    keys.sort_unstable();
    let backwards = keys.iter().rev().copied().collect();
    let mut but_for_one = keys.clone();
    let (one, other) = (rng.random_range(0..keys.len()), rng.random_range(0..keys.len()));
    but_for_one.swap(one, other);
    [any, keys, backwards, but_for_one]
}

fn check_reads(view: &impl TrieReader, model: &Model, shape: Shape, rng: &mut StdRng) {
    let mut addresses: Vec<_> = (0..40).map(|_| near(rng, model.keys(), shape, 400)).collect();
    let owners: Vec<_> = addresses.iter().copied().choose_multiple(rng, 12);
    let mut pairs = Vec::new();
    for _ in 0..80 {
        let owner = *owners.iter().choose(rng).unwrap();
        let there = model.get(&owner).into_iter().flat_map(|account| account.storage.keys());
        pairs.push((owner, near(rng, there, shape, 60)));
    }
    // Some twice.
    addresses.extend_from_within(..5);
    addresses.shuffle(rng);
    pairs.extend_from_within(..10);
    pairs.shuffle(rng);

    for address in &addresses {
        let expected = account(model, address);
        assert_eq!(view.account(address).unwrap(), expected, "{address}");
        assert_eq!(view.account_info(address).unwrap(), expected.map(Account::into), "{address}");
    }
    for pair in &pairs {
        assert_eq!(view.storage(&pair.0, &pair.1).unwrap(), slot(model, pair), "{pair:?}");
    }
    for addresses in orders(addresses.clone(), rng) {
        let expected: Vec<_> = addresses.iter().map(|address| account(model, address)).collect();
        assert_eq!(view.accounts(&addresses).unwrap(), expected, "{addresses:?}");
    }
    for pairs in orders(pairs.clone(), rng) {
        let expected: Vec<_> = pairs.iter().map(|pair| slot(model, pair)).collect();
        assert_eq!(view.slots(&pairs).unwrap(), expected, "{pairs:?}");
    }
    let ends = [(B256::ZERO, B256::ZERO), (owners[0], B256::repeat_byte(0xff))];
    for (owner, start) in pairs.into_iter().take(20).chain(ends) {
        for limit in [1, 3, 1000] {
            let slots = model.get(&owner).map(|account| account.storage.range(start..)).into_iter().flatten();
            let slots: Vec<_> = slots.take(limit).map(|(slot, value)| (*slot, *value)).collect();
            assert_eq!(view.slots_from(&owner, &start, limit).unwrap(), slots, "{owner} {start} {limit}");
            let accounts = model.range(owner..).take(limit).filter_map(|(key, _)| Some((*key, account(model, key)?)));
            assert_eq!(view.accounts_from(&owner, limit).unwrap(), accounts.collect::<Vec<_>>(), "{owner} {limit}");
        }
    }
}

/// Reads some of a state ahead, in parts that overlap, of which some are stopped.
fn read_ahead<R: TrieReader>(reader: &Cached<R>, model: &Model, shape: Shape, rng: &mut StdRng) {
    let mut ahead = ReadAhead::new(reader.clone());
    for _ in 0..rng.random_range(0..5) {
        let mut written = Vec::new();
        for _ in 0..rng.random_range(0..30) {
            let hashed_address = near(rng, model.keys(), shape, 400);
            written.push(WrittenKey { hashed_address, hashed_slot: None });
            for _ in 0..rng.random_range(0..9) {
                let there = model.get(&hashed_address).into_iter().flat_map(|account| account.storage.keys());
                written.push(WrittenKey { hashed_address, hashed_slot: Some(near(rng, there, shape, 60)) });
            }
        }
        let stopped = rng.random_ratio(1, 4);
        let questions = Cell::new(rng.random_range(0..4_i32));
        let stop = || stopped && questions.replace(questions.get() - 1) == 0;
        ahead.read(&TouchedAccount::of_written(written), None, stop).unwrap();
    }
    ahead.hand_over();
}

#[test]
fn reads_through_layers_are_those_of_the_state() {
    for (shape, seed) in SHAPES.into_iter().flat_map(|shape| (0..6).map(move |seed| (shape, seed))) {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut model = Model::new();
        let state = random_block(rng, &model, shape, 60);
        apply(&mut model, &state);
        let store = MemoryStore::new();
        store.load(load(&model, block(0))).unwrap();
        let base = || Cached::new(store.snapshot().unwrap(), Arc::new(PageCache::new(0)));
        let first = model.clone();
        let mut layers = Vec::new();
        for number in 1..=7 {
            let view = Overlay::new(base(), layers.clone()).unwrap();
            // Blocks of a few changes, of many and of none.
            let state = match number % 4 {
                3 => HashedPostState::default(),
                few => random_block(rng, &model, shape, [40, 3, 12][few as usize]),
            };
            apply(&mut model, &state);
            let outcome = fold(&view, resolve(&state, &view).unwrap(), &FoldOptions::SERIAL).unwrap();
            layers.push(layer(outcome, block(number - 1), block(number)));
            let base = base();
            read_ahead(&base, &first, shape, rng);
            check_reads(&base, &first, shape, rng);
            let view = Overlay::new(base, layers.clone()).unwrap();
            check_reads(&view, &model, shape, rng);
        }
    }
}
