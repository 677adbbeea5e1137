//! What a read costs: single reads against batches and against the page cache, on any backend. Run by hand; its figures are for the machine's owner.

use std::{
    convert::Infallible,
    hint::black_box,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use alloy_primitives::{B256, U256, keccak256};
use foldgate_core::{
    Account, BlockNumHash, Cached, LoadSource, Nibbles, NodeKey, PageCache, Rows, StateAnchor, StateReader, TrieId,
    TrieReader, TrieStore,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// How many keys a batch has: the accounts that a block of 2,000 updates and 250 inserts and removals reads.
const BATCH: usize = 2_250;
const ROUNDS: usize = 40;

/// Loads `accounts` accounts, as many slots and as many trie rows of 120 bytes.
struct Filler {
    keys: std::vec::IntoIter<B256>,
}

impl LoadSource for Filler {
    type Error = Infallible;

    fn next_rows(&mut self) -> Result<Option<Rows>, Infallible> {
        let keys: Vec<_> = self.keys.by_ref().take(10_000).collect();
        let account =
            |key: &B256| Account { balance: U256::from_be_bytes(key.0) >> 180, nonce: 1, ..Account::default() };
        let row = |key: &B256| vec![key[0]; 120].into();
        let rows = Rows {
            accounts: keys.iter().map(|key| (*key, Some(account(key)))).collect(),
            slots: keys.iter().map(|key| ((*key, *key), U256::from(7))).collect(),
            nodes: keys.iter().map(|key| (path(key), Some(row(key)))).collect(),
            codes: Vec::new(),
        };
        Ok((!rows.is_empty()).then_some(rows))
    }

    fn anchor(&mut self) -> Result<StateAnchor, Infallible> {
        Ok(StateAnchor { block: BlockNumHash::new(0, B256::ZERO), state_root: B256::ZERO })
    }
}

fn path(key: &B256) -> NodeKey {
    NodeKey::new(TrieId::Accounts, Nibbles::unpack(key).slice(..16))
}

/// Prints what a read costs, one by one and in batches of sorted random keys, in a state of so many accounts.
///
/// # Panics
/// If the store fails.
pub fn measure_reads(store: &impl TrieStore, accounts: u64) {
    let mut keys: Vec<_> = (0..accounts).map(|at| keccak256(at.to_be_bytes())).collect();
    keys.sort_unstable();
    let loaded = store.load(Filler { keys: keys.clone().into_iter() });
    assert!(loaded.is_ok(), "the load failed");
    let Ok(snapshot) = store.snapshot() else { panic!("there is no snapshot") };
    let mut rng = StdRng::seed_from_u64(7);
    let batches: Vec<Vec<B256>> = (0..ROUNDS)
        .map(|_| {
            let mut batch: Vec<_> = (0..BATCH).map(|_| keys[rng.random_range(0..keys.len())]).collect();
            batch.sort_unstable();
            batch.dedup();
            batch
        })
        .collect();
    let report = |what: &str, each: &dyn Fn(&[B256])| {
        let times = batches.iter().map(|batch| {
            let begin = Instant::now();
            each(batch);
            begin.elapsed() / u32::try_from(batch.len()).unwrap_or(u32::MAX)
        });
        let mut times: Vec<Duration> = times.collect();
        times.sort_unstable();
        println!("{what}: median {:?} a read, minimum {:?}", times[ROUNDS / 2], times[0]);
    };
    let pairs = |batch: &[B256]| batch.iter().map(|key| (*key, *key)).collect::<Vec<_>>();
    let paths = |batch: &[B256]| batch.iter().map(path).collect::<Vec<_>>();
    for round in ["first", "second"] {
        println!("-- {round} round");
        report("accounts, one by one", &|batch| batch.iter().for_each(|key| drop(black_box(snapshot.account(key)))));
        report("accounts, batched", &|batch| drop(black_box(snapshot.accounts(batch))));
        report("accounts, two batches on two threads", &|batch| {
            let (low, high) = batch.split_at(batch.len() / 2);
            thread::scope(|scope| {
                scope.spawn(|| drop(black_box(snapshot.accounts(low))));
                drop(black_box(snapshot.accounts(high)));
            });
        });
        report("slots, one by one", &|batch| batch.iter().for_each(|key| drop(black_box(snapshot.storage(key, key)))));
        report("slots, batched", &|batch| drop(black_box(snapshot.slots(&pairs(batch)))));
        report("rows, one by one", &|batch| batch.iter().for_each(|key| drop(black_box(snapshot.node(&path(key))))));
        report("rows, batched", &|batch| drop(black_box(snapshot.nodes(&paths(batch)))));
    }
    let cache = Arc::new(PageCache::new(256 << 20));
    cache.reset(snapshot.anchor().block);
    let cached = Cached::new(snapshot.clone(), Arc::clone(&cache));
    for round in ["a cache that fills", "a full cache"] {
        println!("-- {round}");
        report("accounts, one by one", &|batch| batch.iter().for_each(|key| drop(black_box(cached.account(key)))));
        report("accounts, batched", &|batch| drop(black_box(cached.accounts(batch))));
        report("slots, batched", &|batch| drop(black_box(cached.slots(&pairs(batch)))));
        report("rows, batched", &|batch| drop(black_box(cached.nodes(&paths(batch)))));
    }
    println!("{:?}", cache.stats());
}
