//! After a warm-up a block that removes nothing is resolved and folded without a single read of the store.

use std::{
    cell::Cell,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use alloy_primitives::{B256, Bytes, KECCAK256_EMPTY, U256, keccak256};
use foldgate_core::{
    Account, AccountDelta, AccountInfo, BlockHash, BlockNumHash, BlockNumber, Cached, FoldOptions, Forest,
    HashedPostState, Layer, MemorySnapshot, MemoryStore, NodeKey, Overlay, PageCache, ReadAhead, StateAnchor,
    StateReader, TouchedAccount, TouchedSlot, TrieReader, TrieStore, Warmed, fold, resolve_with,
    trie::bulk::{LoadItem, StateLoad},
};
use foldgate_testing::conformance::world::seeded;
use rand::{Rng, rngs::StdRng, seq::IteratorRandom};

/// A snapshot that counts its reads.
#[derive(Clone)]
struct Counted {
    inner: MemorySnapshot,
    reads: Arc<AtomicUsize>,
}

impl Counted {
    fn new(store: &MemoryStore, reads: &Arc<AtomicUsize>) -> Self {
        Self { inner: store.snapshot().unwrap(), reads: Arc::clone(reads) }
    }

    fn count(&self) -> &MemorySnapshot {
        self.reads.fetch_add(1, Ordering::Relaxed);
        &self.inner
    }
}

impl StateReader for Counted {
    type Error = foldgate_core::MemoryError;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, Self::Error> {
        self.count().account_info(hashed_address)
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, Self::Error> {
        self.count().storage(hashed_address, hashed_slot)
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, Self::Error> {
        self.count().code(code_hash)
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, Self::Error> {
        self.count().block_hash(number)
    }
}

impl TrieReader for Counted {
    fn anchor(&self) -> StateAnchor {
        self.inner.anchor()
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, Self::Error> {
        self.count().account(hashed_address)
    }

    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, Self::Error> {
        self.count().node(key)
    }

    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, Self::Error> {
        self.count().accounts_from(start, limit)
    }

    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, Self::Error> {
        self.count().slots_from(hashed_address, start, limit)
    }
}

const ACCOUNTS: u64 = 3000;

fn key(at: u64) -> B256 {
    keccak256(at.to_be_bytes())
}

/// How many slots an account has: most none, some a few, one many.
const fn slots(at: u64) -> u64 {
    match at {
        0 => 2000,
        at if at.is_multiple_of(50) => at / 50,
        _ => 0,
    }
}

fn loaded() -> MemoryStore {
    let store = MemoryStore::new();
    let mut accounts: Vec<_> = (0..ACCOUNTS).map(|at| (key(at), at)).collect();
    accounts.sort_unstable();
    let items = accounts.into_iter().flat_map(|(hashed_address, at)| {
        let info = AccountInfo { nonce: at, balance: U256::from(at + 1), code_hash: KECCAK256_EMPTY };
        let mut slots: Vec<_> = (0..slots(at)).map(key).collect();
        slots.sort_unstable();
        let slots = slots.into_iter().map(|hashed_slot| LoadItem::Slot { hashed_slot, value: U256::from(1) });
        std::iter::once(LoadItem::Account { hashed_address, info }).chain(slots).collect::<Vec<_>>()
    });
    let items = items.map(Ok::<_, Infallible>);
    store.load(StateLoad::new(items, BlockNumHash::new(0, B256::ZERO))).unwrap();
    store
}

/// A block that changes fields and values, and reads some more.
fn block(rng: &mut StdRng) -> (HashedPostState, Vec<TouchedAccount>) {
    let mut state = HashedPostState::default();
    let mut touched = Vec::new();
    let mut accounts = (1..ACCOUNTS).choose_multiple(rng, 700);
    accounts.push(0);
    for at in accounts {
        let (hashed_address, changed) = (key(at), at == 0 || rng.random());
        let mut delta = AccountDelta { balance: Some(U256::from(rng.random::<u64>())), ..AccountDelta::default() };
        let mut slots: Vec<_> = (0..slots(at))
            .choose_multiple(rng, 600)
            .into_iter()
            .map(|slot| TouchedSlot { hashed_slot: key(slot), changed: changed && rng.random() })
            .collect();
        slots.sort_unstable_by_key(|slot| slot.hashed_slot);
        let written = slots.iter().filter(|slot| slot.changed);
        delta.storage.extend(written.map(|slot| (slot.hashed_slot, U256::from(rng.random_range(1..u64::MAX)))));
        if changed {
            state.accounts.insert(hashed_address, delta);
        }
        touched.push(TouchedAccount { hashed_address, changed, slots });
    }
    touched.sort_unstable_by_key(|account| account.hashed_address);
    (state, touched)
}

#[test]
fn rows_stay_out_of_the_cache_where_the_fold_keeps_their_successors() {
    let mut rng = seeded();
    let (store, reads) = (loaded(), Arc::new(AtomicUsize::new(0)));
    let (state, touched) = block(&mut rng);
    let records = touched.len() + touched.iter().map(|account| account.slots.len()).sum::<usize>();
    for (node_bytes, in_cache) in [(64 << 20, false), (0, true)] {
        let cache = Arc::new(PageCache::new(64 << 20));
        cache.reset(store.tip().unwrap().unwrap().block);
        let tries = Forest::new(node_bytes).unloaded();
        let parent = Cached::new(Counted::new(&store, &reads), Arc::clone(&cache)).with_tries(tries.clone());
        assert_eq!(parent.warm(&touched, Some(&tries), || false), Ok(Warmed::Whole));
        assert_eq!(cache.stats().entries > records as u64, in_cache, "{:?} of {records} records", cache.stats());
        reads.store(0, Ordering::Relaxed);
        let parent = Overlay::new(parent, Vec::new()).unwrap();
        let changes = resolve_with(&state, &parent, &FoldOptions::SERIAL).unwrap();
        fold(&parent, changes, &FoldOptions::SERIAL).unwrap();
        assert_eq!(reads.load(Ordering::Relaxed), 0, "the rows are at hand all the same");
    }
}

#[test]
fn after_a_warm_up_an_update_reads_no_store() {
    let mut rng = seeded();
    let (store, reads) = (loaded(), Arc::new(AtomicUsize::new(0)));
    let cache = Arc::new(PageCache::new(64 << 20));
    cache.reset(store.tip().unwrap().unwrap().block);
    for number in 1..=8_u64 {
        let parent = Cached::new(Counted::new(&store, &reads), Arc::clone(&cache));
        let (state, touched) = block(&mut rng);
        assert_eq!(parent.warm(&touched, None, || false), Ok(Warmed::Whole));
        let warmed = reads.swap(0, Ordering::Relaxed);
        assert!(warmed > 0 || number > 1, "the first block's records had to be read");
        for touched in &touched {
            assert!(parent.account_info(&touched.hashed_address).unwrap().is_some());
            let slot = |slot: &TouchedSlot| parent.storage(&touched.hashed_address, &slot.hashed_slot).unwrap();
            assert!(touched.slots.iter().all(|touched| !slot(touched).is_zero()));
        }
        let parent = Overlay::new(parent, Vec::new()).unwrap();
        let options = if number % 2 == 0 { FoldOptions::SERIAL } else { FoldOptions::FORCED_PARALLEL };
        let outcome = fold(&parent, resolve_with(&state, &parent, &options).unwrap(), &options).unwrap();
        assert_eq!(reads.load(Ordering::Relaxed), 0, "block {number} read the store after its warm-up");
        let bare = store.snapshot().unwrap();
        let changes = resolve_with(&state, &bare, &FoldOptions::SERIAL).unwrap();
        assert_eq!(fold(&bare, changes, &FoldOptions::SERIAL).unwrap(), outcome);
        let block = BlockNumHash::new(number, key(number));
        let parent = store.tip().unwrap().unwrap().block;
        let batch = Layer::new(parent, block, outcome, None).to_batch();
        store.commit(&batch).unwrap();
        cache.advance(parent, block, &batch.rows);
    }
    let stats = cache.stats();
    assert_eq!(stats.evictions, 0, "{stats:?}");
}

/// A block that adds accounts, and slots to accounts with many, a few and one of them.
fn inserts(rng: &mut StdRng) -> (HashedPostState, Vec<TouchedAccount>) {
    let (mut state, mut touched) = (HashedPostState::default(), Vec::new());
    for at in ACCOUNTS..ACCOUNTS + 400 {
        let delta = AccountDelta { balance: Some(U256::from(1)), ..AccountDelta::default() };
        state.accounts.insert(key(at), delta);
        touched.push(TouchedAccount { hashed_address: key(at), changed: true, slots: Vec::new() });
    }
    for at in (0..ACCOUNTS).step_by(50) {
        let new = (slots(at)..slots(at) + rng.random_range(1..50)).map(key);
        let mut new: Vec<_> = new.map(|hashed_slot| TouchedSlot { hashed_slot, changed: true }).collect();
        new.sort_unstable_by_key(|slot| slot.hashed_slot);
        let mut delta = AccountDelta::default();
        delta.storage.extend(new.iter().map(|slot| (slot.hashed_slot, U256::from(7))));
        state.accounts.insert(key(at), delta);
        touched.push(TouchedAccount { hashed_address: key(at), changed: true, slots: new });
    }
    touched.sort_unstable_by_key(|account| account.hashed_address);
    (state, touched)
}

#[test]
fn after_a_warm_up_new_leaves_read_no_store() {
    let mut rng = seeded();
    let (store, reads) = (loaded(), Arc::new(AtomicUsize::new(0)));
    let tip = store.tip().unwrap().unwrap().block;
    for budget in [0, 64 << 20] {
        let cache = Arc::new(PageCache::new(budget));
        cache.reset(tip);
        let forest = Forest::new(usize::MAX);
        let base = Cached::new(Counted::new(&store, &reads), Arc::clone(&cache)).with_tries(forest.unloaded());
        // Some of the ways are in memory for the second block: the first one's layer has them.
        let (updates, updated) = block(&mut rng);
        let first = base.for_block();
        assert_eq!(first.warm(&updated, base.tries().as_ref(), || false), Ok(Warmed::Whole));
        let first = Overlay::new(first, Vec::new()).unwrap();
        let changes = resolve_with(&updates, &first, &FoldOptions::SERIAL).unwrap();
        let outcome = fold(&first, changes, &FoldOptions::SERIAL).unwrap();
        let tries = outcome.tries.clone();
        let layer = Arc::new(Layer::new(tip, BlockNumHash::new(1, key(1)), outcome, None));
        let (state, touched) = inserts(&mut rng);
        let below = base.for_block();
        assert_eq!(below.warm(&touched, Some(&tries), || false), Ok(Warmed::Whole));
        let parent = Overlay::new(below, vec![Arc::clone(&layer)]).unwrap();
        reads.store(0, Ordering::Relaxed);
        let outcome = fold(&parent, resolve_with(&state, &parent, &FoldOptions::SERIAL).unwrap(), &FoldOptions::SERIAL);
        assert_eq!(reads.swap(0, Ordering::Relaxed), 0, "the block read the store after its warm-up");
        let bare = Overlay::new(base.clone(), vec![layer]).unwrap();
        let changes = resolve_with(&state, &bare, &FoldOptions::FORCED_PARALLEL).unwrap();
        assert_eq!(fold(&bare, changes, &FoldOptions::FORCED_PARALLEL), outcome);
        assert!(reads.swap(0, Ordering::Relaxed) > 0, "without a warm-up there is something to read");
    }
}

#[test]
fn a_warm_up_stops_between_batches_and_a_missing_state_is_no_hurdle() {
    let mut rng = seeded();
    let (store, reads) = (loaded(), Arc::new(AtomicUsize::new(0)));
    let cache = Arc::new(PageCache::new(64 << 20));
    cache.reset(store.tip().unwrap().unwrap().block);
    let reader = Cached::new(Counted::new(&store, &reads), Arc::clone(&cache));
    let (_, touched) = block(&mut rng);
    let mut before = 0;
    for allowed in 0.. {
        let asked = Cell::new(0);
        let stop = || asked.replace(asked.get() + 1) >= allowed;
        let warmed = reader.warm(&touched, None, stop).unwrap();
        let so_far = reads.load(Ordering::Relaxed);
        assert!(so_far - before <= 512, "more than a batch was read between two questions");
        before = so_far;
        if warmed == Warmed::Whole {
            break;
        }
        assert_eq!(asked.get(), allowed + 1);
    }
    assert!(before > 512);
    let absent = (0..600).map(|at| TouchedAccount {
        hashed_address: key(1 << 40 | at),
        changed: true,
        slots: vec![TouchedSlot { hashed_slot: B256::ZERO, changed: true }],
    });
    let mut absent: Vec<_> = absent.collect();
    absent.sort_unstable_by_key(|account| account.hashed_address);
    assert_eq!(reader.warm(&absent, None, || false), Ok(Warmed::Whole));
    assert_eq!(reader.warm(&[], None, || false), Ok(Warmed::Whole));
    let none = Cached::new(Counted::new(&store, &reads), Arc::new(PageCache::new(0)));
    assert_eq!(none.warm(&touched, None, || false), Ok(Warmed::Whole));
}

/// Parts that stop anywhere: what was read before is not read again, and is what the snapshot says.
#[test]
fn a_part_that_stops_loses_nothing_that_it_read() {
    let (store, reads) = (loaded(), Arc::new(AtomicUsize::new(0)));
    let (_, mut touched) = block(&mut seeded());
    // Records alone: nothing goes down the tries.
    for account in &mut touched {
        account.changed = false;
        account.slots.iter_mut().for_each(|slot| slot.changed = false);
    }
    let records = touched.iter().map(|account| 1 + account.slots.len()).sum::<usize>();
    let addresses: Vec<_> = touched.iter().map(|account| account.hashed_address).collect();
    let of = |account: &TouchedAccount| -> Vec<_> {
        account.slots.iter().map(|slot| (account.hashed_address, slot.hashed_slot)).collect()
    };
    let pairs: Vec<_> = touched.iter().flat_map(of).collect();
    for allowed in 0.. {
        // Without a cache behind it.
        let reader = Cached::new(Counted::new(&store, &reads), Arc::new(PageCache::new(0)));
        let mut ahead = ReadAhead::new(reader.clone());
        let asked = Cell::new(0);
        let stop = || asked.replace(asked.get() + 1) >= allowed;
        let first = ahead.read(&touched, None, stop).unwrap();
        assert_eq!(ahead.read(&touched[..touched.len() / 2], None, || false), Ok(Warmed::Whole));
        assert_eq!(ahead.read(&touched, None, || false), Ok(Warmed::Whole));
        ahead.hand_over();
        assert_eq!(reader.accounts(&addresses), store.snapshot().unwrap().accounts(&addresses));
        assert_eq!(reader.slots(&pairs), store.snapshot().unwrap().slots(&pairs));
        assert_eq!(reads.swap(0, Ordering::Relaxed), records, "stopped at question {allowed}");
        if first == Warmed::Whole {
            break;
        }
    }
}
