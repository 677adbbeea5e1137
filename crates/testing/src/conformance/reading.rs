//! Point reads and scans, keys at the edges, small and large values.

use alloy_primitives::{B256, Bytes, U256, keccak256};
use foldgate_core::{Account, Nibbles, NodeKey, StateReader, TrieId, TrieReader, TrieStore, store::next_key};

use super::{
    StoreFactory,
    world::{State, World, good},
};

fn loaded<F: StoreFactory>(factory: &F, state: State) -> (F::Store, World) {
    let (world, store) = (World::new(0, state), factory.fresh());
    world.load_into(&store);
    (store, world)
}

fn account(nonce: u64) -> Account {
    Account { nonce, ..Account::default() }
}

fn before(key: &B256) -> B256 {
    B256::from(U256::from_be_bytes(key.0) - U256::from(1))
}

/// Scans give leaves in order, never more than asked for, from the first key at or after the start.
///
/// # Panics
/// Where the backend falls short.
pub fn scans_are_ordered_limited_and_start_anywhere(factory: &impl StoreFactory) {
    let mut state = State::default();
    let owner = keccak256(b"owner");
    for at in 0..50_u64 {
        state.accounts.insert(keccak256(at.to_be_bytes()), account(at));
        state.slots.insert((owner, keccak256(at.to_be_bytes())), U256::from(at + 1));
    }
    let (store, world) = loaded(factory, state);
    let (snapshot, state) = (good(store.snapshot()), &world.tip().state);
    let mut starts = vec![B256::ZERO, B256::repeat_byte(0xff), B256::repeat_byte(0x80)];
    for key in state.accounts.keys().take(5) {
        starts.extend([*key, before(key), good(next_key(key).ok_or("no next key"))]);
    }
    for start in starts {
        for limit in [0, 1, 2, 49, 50, 51, usize::MAX] {
            let accounts: Vec<_> = state.accounts.range(start..).take(limit).map(|(key, row)| (*key, *row)).collect();
            assert_eq!(good(snapshot.accounts_from(&start, limit)), accounts, "accounts from {start}, {limit}");
            let slots = state.slots.range((owner, start)..).take(limit).map(|((_, slot), value)| (*slot, *value));
            assert_eq!(good(snapshot.slots_from(&owner, &start, limit)), slots.collect::<Vec<_>>());
        }
    }
}

/// A scan of one account's slots does not run into the next account's, and does not begin in the one before.
///
/// # Panics
/// Where the backend falls short.
pub fn slot_scans_stay_within_their_account(factory: &impl StoreFactory) {
    let mut state = State::default();
    let middle = keccak256(b"middle");
    let after = good(next_key(&middle).ok_or("no next key"));
    let (zero, full) = (B256::ZERO, B256::repeat_byte(0xff));
    for owner in [before(&middle), middle, after, zero, full] {
        for (slot, value) in [(zero, 1), (full, 2), (middle, 3)] {
            state.slots.insert((owner, slot), U256::from(value));
        }
    }
    let without = good(next_key(&after).ok_or("no next key"));
    let (store, world) = loaded(factory, state);
    let snapshot = good(store.snapshot());
    for owner in [zero, before(&middle), middle, after, full] {
        let values = |start: &B256| -> Vec<_> {
            good(snapshot.slots_from(&owner, start, 100)).into_iter().map(|(_, value)| value).collect()
        };
        assert_eq!(values(&zero), [1, 3, 2].map(U256::from), "{owner}");
        assert_eq!(values(&middle), [3, 2].map(U256::from), "{owner}");
        assert_eq!(values(&full), [2].map(U256::from), "{owner}");
    }
    assert_eq!(good(snapshot.slots_from(&without, &zero, 100)), []);
    world.check_store(&store);
}

/// The first and the last key, and keys that differ in their last bit, are rows of their own.
///
/// # Panics
/// Where the backend falls short.
pub fn keys_at_the_edges_are_kept_apart(factory: &impl StoreFactory) {
    let mut state = State::default();
    let keys = World::new(0, State::default()).pool.keys;
    for (at, key) in (1_u64..).zip(&keys) {
        state.accounts.insert(*key, account(at));
        for (slot_at, slot) in (1_u64..).zip(&keys) {
            state.slots.insert((*key, *slot), U256::from(at * 1000 + slot_at));
        }
    }
    let (store, mut world) = loaded(factory, state);
    world.check_store(&store);
    let mut state = world.tip().state.as_ref().clone();
    for edge in [B256::ZERO, B256::repeat_byte(0xff)] {
        state.accounts.remove(&edge);
        state.slots.remove(&(edge, edge));
    }
    world.extend(state, None);
    good(store.commit(&world.batch_from(0)));
    world.check_store(&store);
}

/// One path names one node in each trie, whatever the lengths and the tries; also where the bytes of one trie's path
/// look like another trie's address.
///
/// # Panics
/// Where the backend falls short.
pub fn tries_are_kept_apart(factory: &impl StoreFactory) {
    let mut state = State::default();
    let low = B256::repeat_byte(0x01);
    let looks_like_low = Nibbles::from_nibbles([0x01; 32]);
    let mut paths = World::new(0, State::default()).pool.paths;
    paths.extend([
        Nibbles::unpack(low),
        looks_like_low,
        Nibbles::from_nibbles([1; 33]),
        Nibbles::from_nibbles([1; 34]),
    ]);
    let owners = [B256::ZERO, low, B256::repeat_byte(0xff), keccak256(b"owner")];
    let tries = owners.into_iter().map(TrieId::Storage).chain([TrieId::Accounts]);
    for key in tries.flat_map(|trie| paths.iter().map(move |path| NodeKey::new(trie, *path))) {
        state.nodes.insert(key, keccak256(format!("{key:?}")).0.to_vec().into());
    }
    let (store, mut world) = loaded(factory, state);
    world.pool.paths = paths;
    world.check_store(&store);
    let mut state = world.tip().state.as_ref().clone();
    state.nodes.remove(&NodeKey::new(TrieId::Storage(low), Nibbles::default()));
    state.nodes.remove(&NodeKey::new(TrieId::Accounts, Nibbles::default()));
    state.nodes.remove(&NodeKey::new(TrieId::Accounts, Nibbles::unpack(low)));
    world.extend(state, None);
    good(store.commit(&world.batch_from(0)));
    world.check_store(&store);
}

/// The smallest and the largest numbers, with and without leading and trailing zero bytes.
///
/// # Panics
/// Where the backend falls short.
pub fn extreme_values_come_back(factory: &impl StoreFactory) {
    let mut state = State::default();
    let numbers = [
        U256::from(1),
        U256::from(0x80),
        U256::from(0xff),
        U256::from(0x100),
        U256::from(u64::MAX),
        U256::from(1) << 248,
        U256::from(1) << 255,
        U256::MAX - U256::from(1),
        U256::MAX,
    ];
    for (at, number) in (0_u8..).zip(numbers) {
        let key = B256::repeat_byte(at);
        state.slots.insert((key, key), number);
        state.accounts.insert(key, Account { nonce: u64::MAX - u64::from(at), balance: number, ..Account::default() });
        let hashes = Account { storage_root: B256::from(number), code_hash: B256::ZERO, ..Account::default() };
        state.accounts.insert(B256::repeat_byte(0x80 | at), hashes);
    }
    state.accounts.insert(B256::repeat_byte(0xee), Account::default());
    let (store, world) = loaded(factory, state);
    world.check_store(&store);
    let snapshot = good(store.snapshot());
    assert_eq!(good(snapshot.storage(&B256::repeat_byte(8), &B256::repeat_byte(8))), U256::MAX);
    assert_eq!(good(snapshot.account(&B256::repeat_byte(0xee))), Some(Account::default()), "an empty account is a row");
}

/// Code larger than a page, a list of a megabyte, a node row larger than any real one, a reverse diff of thousands.
///
/// # Panics
/// Where the backend falls short.
pub fn large_values_come_back(factory: &impl StoreFactory) {
    let large = |length: usize| -> Bytes { (0..length).map(|at| (at % 251) as u8).collect::<Vec<_>>().into() };
    let mut state = State::default();
    for length in [1, 4095, 4096, 24_576, 49_152, 262_144] {
        state.codes.insert(keccak256(large(length)), large(length));
    }
    let (store, mut world) = loaded(factory, state);
    world.check_store(&store);
    let mut state = world.tip().state.as_ref().clone();
    let owner = keccak256(b"owner");
    state.nodes.insert(NodeKey::new(TrieId::Accounts, Nibbles::default()), large(70_000));
    state.nodes.insert(NodeKey::new(TrieId::Storage(owner), Nibbles::from_nibbles([1; 63])), large(5000));
    for at in 0..20_000_u64 {
        state.slots.insert((owner, keccak256(at.to_be_bytes())), U256::from(at + 1));
    }
    world.extend(state.clone(), Some(large(1 << 20)));
    good(store.commit(&world.batch_from(0)));
    state.slots.clear();
    state.nodes.clear();
    world.extend(state, Some(large(3 << 20)));
    good(store.commit(&world.batch_from(1)));
    world.check_store(&store);
    let reverse = good(store.reverse_diff(2)).map(|diff| diff.accounts[0].slots.len());
    assert_eq!(reverse, Some(20_000));
    good(store.unwind(&world.unwind_to(1)));
    world.check_store(&store);
}
