//! Whole states, loaded from their leaves with the rows of their tries: on one thread or on several, in small pieces.
//!
//! Invariant: leaves and roots are held to the oracle; trie rows to those that a load on one thread in one piece gives.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use alloy_primitives::{B256, Bytes, KECCAK256_EMPTY, U256, keccak256};
use foldgate_core::{
    AccountInfo, BalStore, BlockNumHash, LoadError, LoadSource, NodeKey, StateAnchor, StateReader, TrieReader,
    trie::bulk::{BulkError, LoadItem, LoadProgress, StateItems, StateLoad},
};
use rand::Rng;

use super::{
    StoreFactory,
    loading::check_empty,
    world::{good, seeded},
};
use crate::oracle::{HashedAccount, state_root};

/// A state that can be loaded.
#[derive(Debug)]
pub struct Whole {
    accounts: BTreeMap<B256, HashedAccount>,
    codes: BTreeMap<B256, Bytes>,
    state_root: B256,
}

/// The source failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the source failed on purpose")]
pub struct Broken;

type Item = Result<LoadItem, Broken>;

impl Whole {
    fn new(accounts: BTreeMap<B256, HashedAccount>, codes: BTreeMap<B256, Bytes>) -> Self {
        let state_root = state_root(&accounts);
        Self { accounts, codes, state_root }
    }

    /// The same state each time: every seventh account is a contract with slots, one of them a large one.
    pub fn of_size(accounts: u64) -> Self {
        let code = Bytes::from_static(b"code");
        let code_hash = keccak256(&code);
        let account = |i: u64| {
            let is_contract = i.is_multiple_of(7);
            let slots = if i == 7 { 2 * accounts } else { i % 20 };
            let storage = (0..if is_contract { slots } else { 0 }).map(|slot| (key(slot), U256::from(slot + 1)));
            let code_hash = if is_contract { code_hash } else { KECCAK256_EMPTY };
            HashedAccount { nonce: i, balance: U256::from(i) << 70, code_hash, storage: storage.collect() }
        };
        let codes = BTreeMap::from([(code_hash, code)]);
        Self::new((0..accounts).map(|i| (key(i), account(i))).collect(), codes)
    }

    /// Keys that part early, late, and at the last nibble; many accounts without storage, some with much.
    fn random(rng: &mut impl Rng) -> Self {
        let mut accounts = BTreeMap::new();
        let mut codes = BTreeMap::new();
        let count = [0, 1, 2, 40, 400][rng.random_range(0..5)];
        for i in 0..count {
            let slots = if rng.random_ratio(2, 3) { 0 } else { [1, 2, 17, 600][rng.random_range(0..4)] };
            let storage = (0..slots).map(|_| (random_key(rng), U256::from(rng.random_range(1..=u64::MAX))));
            let storage: BTreeMap<_, _> = storage.collect();
            let mut account = HashedAccount { nonce: i, code_hash: KECCAK256_EMPTY, storage, ..Default::default() };
            if rng.random_ratio(1, 9) {
                let code = Bytes::from(vec![i as u8; rng.random_range(1..2000)]);
                account.code_hash = keccak256(&code);
                codes.insert(account.code_hash, code);
            }
            if let Some(HashedAccount { code_hash, .. }) = accounts.insert(random_key(rng), account) {
                // Keys that come twice are rare, and each account has a code of its own.
                codes.remove(&code_hash);
            }
        }
        Self::new(accounts, codes)
    }

    fn items(&self) -> Vec<Item> {
        let codes = self.codes.iter().map(|(hash, code)| LoadItem::Code { code_hash: *hash, code: code.clone() });
        let accounts = self.accounts.iter().flat_map(|(hashed_address, account)| {
            let HashedAccount { nonce, balance, code_hash, ref storage } = *account;
            let info = AccountInfo { nonce, balance, code_hash };
            let slots = storage.iter().map(|(slot, value)| LoadItem::Slot { hashed_slot: *slot, value: *value });
            std::iter::once(LoadItem::Account { hashed_address: *hashed_address, info }).chain(slots)
        });
        codes.chain(accounts).map(Ok).collect()
    }

    /// A load of this state that holds it to its root.
    pub fn load(&self, block: BlockNumHash) -> StateLoad<impl Iterator<Item = Item> + Send + use<>> {
        StateLoad::new(self.items().into_iter(), block).expecting(self.state_root)
    }

    /// The rows of the tries, from one piece.
    fn nodes(&self) -> Vec<(NodeKey, Option<Bytes>)> {
        let mut load = self.load(BlockNumHash::new(0, B256::ZERO)).with_piece_bytes(usize::MAX);
        let rows = good(load.next_rows()).unwrap_or_default();
        assert_eq!(good(load.next_rows()), None, "one piece");
        rows.nodes
    }

    /// The store holds this state, and nothing more of it.
    ///
    /// # Panics
    /// If it does not.
    pub fn check_store(&self, store: &impl BalStore, block: BlockNumHash) {
        let anchor = StateAnchor { block, state_root: self.state_root };
        assert_eq!((good(store.tip()), good(store.genesis())), (Some(anchor), Some(anchor)));
        let snapshot = good(store.snapshot());
        let used = self.accounts.values().map(|account| account.code_hash).filter(|hash| *hash != KECCAK256_EMPTY);
        let used: BTreeMap<_, _> = used.map(|hash| (hash, self.codes.get(&hash).cloned())).collect();
        for (hash, code) in used {
            assert_eq!(good(snapshot.code(&hash)), code);
        }
        assert!(StateItems::new(snapshot.clone()).map(good).eq(self.items().into_iter().map(good)), "other leaves");
        let nodes = self.nodes();
        let keys: Vec<_> = nodes.iter().map(|(key, _)| *key).collect();
        assert!(good(snapshot.nodes(&keys)).into_iter().eq(nodes.into_iter().map(|(_, row)| row)), "other rows");
    }
}

fn key(i: u64) -> B256 {
    keccak256(i.to_be_bytes())
}

fn random_key(rng: &mut impl Rng) -> B256 {
    let mut key = match rng.random_range(0..3) {
        0 => B256::repeat_byte(rng.random()),
        _ => keccak256(rng.random::<u64>().to_be_bytes()),
    };
    if rng.random_ratio(1, 3) {
        key.0[..rng.random_range(0..32)].fill(0x77);
    }
    key.0[31] = rng.random();
    key
}

/// Loads that make rows on the thread that writes them.
///
/// # Panics
/// Where the backend falls short.
pub fn whole_states_load_on_one_thread(factory: &impl StoreFactory) {
    load_on(factory, 1);
}

/// Loads that make rows on a second thread.
///
/// # Panics
/// Where the backend falls short.
pub fn whole_states_load_on_two_threads(factory: &impl StoreFactory) {
    load_on(factory, 2);
}

/// Loads that read items on a third thread.
///
/// # Panics
/// Where the backend falls short.
pub fn whole_states_load_on_three_threads(factory: &impl StoreFactory) {
    load_on(factory, 3);
}

/// A random state loads in tiny pieces, is what it should be, and is reported as it is written.
fn load_on(factory: &impl StoreFactory, threads: usize) {
    let mut rng = seeded();
    let state = Whole::random(&mut rng);
    let block = BlockNumHash::new(rng.random(), B256::repeat_byte(1));
    let piece_bytes = [0, 100, 5000, 100_000][rng.random_range(0..4)];
    let store = factory.fresh();
    let mut seen = vec![LoadProgress::default()];
    let observe = |progress: &LoadProgress| seen.push(*progress);
    let load = state.load(block).with_threads(threads).with_piece_bytes(piece_bytes).observed_by(observe);
    good(load.load_into(&store));
    state.check_store(&store, block);
    let slots = state.accounts.values().map(|account| account.storage.len()).sum::<usize>();
    let counts = |progress: &LoadProgress| [progress.accounts, progress.slots, progress.codes, progress.nodes];
    assert!(seen.is_sorted_by_key(counts) && seen.is_sorted_by_key(|progress| progress.bytes));
    let last = seen.pop().unwrap_or_default();
    assert!(last.complete && seen.iter().all(|progress| !progress.complete), "complete at the end, and only there");
    let expected = [state.accounts.len(), slots, state.codes.len(), state.nodes().len()];
    assert_eq!(counts(&last), expected.map(|count| count as u64));
}

/// A load leaves no trace if its source fails at its end, is out of order there, has another root, or panics.
///
/// # Panics
/// Where the backend falls short.
pub fn loads_that_fail_late_leave_the_store_empty(factory: &impl StoreFactory) {
    let state = Whole::of_size(500);
    let block = BlockNumHash::new(3, B256::repeat_byte(1));
    let store = factory.fresh();
    let first_account = LoadItem::Account { hashed_address: B256::ZERO, info: AccountInfo::default() };
    for threads in 1..=3 {
        let load_with = |late: Item| {
            let items = state.items().into_iter().chain([late]);
            let load = StateLoad::new(items, block).with_threads(threads).with_piece_bytes(1000);
            match load.load_into(&store) {
                Err(LoadError::Source(error)) => error,
                result => panic!("a load that must fail gave {result:?}"),
            }
        };
        assert_eq!(load_with(Err(Broken)), BulkError::Source(Broken));
        check_empty(&store);
        let error = load_with(Ok(first_account.clone()));
        assert!(matches!(error, BulkError::Unsorted { table: "account", got: B256::ZERO, .. }), "{error}");
        check_empty(&store);
        let wrong = state.load(block).with_threads(threads).with_piece_bytes(1000).expecting(B256::ZERO);
        let error = wrong.load_into(&store);
        assert!(matches!(error, Err(LoadError::Source(BulkError::StateRootMismatch { .. }))), "{error:?}");
        check_empty(&store);
        let last = state.items().len() - 1;
        let panics = state.items().into_iter().enumerate().map(move |(at, item)| match at {
            at if at == last => panic!("the source panics on purpose"),
            _ => item,
        });
        let load = StateLoad::new(panics, block).with_threads(threads).with_piece_bytes(1000);
        assert!(catch_unwind(AssertUnwindSafe(|| load.load_into(&store))).is_err(), "the panic comes back");
        check_empty(&store);
    }
    good(state.load(block).load_into(&store));
    state.check_store(&store, block);
    match state.load(block).load_into(&store) {
        Err(LoadError::Store(_)) => state.check_store(&store, block),
        result => panic!("a second load gave {result:?}"),
    }
}
