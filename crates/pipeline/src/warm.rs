//! The warm-up cache: rows of one durable snapshot, read ahead and read once.
//!
//! Invariants:
//! 1. A cache belongs to one snapshot and holds rows of it alone; layers of later blocks lie above it and win. So it
//!    is never invalidated: it goes when its snapshot goes.
//! 2. The cache is bounded: when full it takes no more rows, and reads go to the snapshot.

use std::{
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use alloy_primitives::{B256, Bytes, U256, map::DefaultHashBuilder};
use dashmap::DashMap;
use foldgate_core::{
    Account, AccountInfo, BlockHash, BlockNumber, NodeKey, StateAnchor, StateReader, TrieReader, Version,
};

/// How many rows of all kinds one cache holds: at about 150 bytes a row, 150 MB.
const MAX_ROWS: usize = 1_000_000;

type Map<K, V> = DashMap<K, V, DefaultHashBuilder>;

#[derive(Debug, Default)]
struct Cache {
    rows: AtomicUsize,
    accounts: Map<B256, Option<Account>>,
    slots: Map<(B256, B256), U256>,
    nodes: Map<NodeKey, Option<Bytes>>,
    codes: Map<B256, Option<Bytes>>,
}

/// A snapshot with its cache. Clones share both.
#[derive(Debug, Clone)]
pub struct Warm<R> {
    snapshot: R,
    /// The tries of the snapshot's block, as far as they are in memory.
    tries: Version,
    cache: Arc<Cache>,
}

impl<R: TrieReader> Warm<R> {
    pub(crate) fn new(snapshot: R, tries: Version) -> Self {
        Self { snapshot, tries, cache: Arc::default() }
    }

    fn through<K: Eq + Hash + Copy, V: Clone>(
        &self,
        map: &Map<K, V>,
        key: &K,
        read: impl FnOnce() -> Result<V, R::Error>,
    ) -> Result<V, R::Error> {
        if let Some(value) = map.get(key) {
            return Ok(value.clone());
        }
        let value = read()?;
        // Relaxed, and raced by other readers: the bound is approximate by as many rows as there are readers.
        if self.cache.rows.load(Ordering::Relaxed) < MAX_ROWS && map.insert(*key, value.clone()).is_none() {
            self.cache.rows.fetch_add(1, Ordering::Relaxed);
        }
        Ok(value)
    }
}

impl<R: TrieReader> StateReader for Warm<R> {
    type Error = R::Error;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, Self::Error> {
        Ok(self.account(hashed_address)?.map(Account::into))
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, Self::Error> {
        self.through(&self.cache.slots, &(*hashed_address, *hashed_slot), || {
            self.snapshot.storage(hashed_address, hashed_slot)
        })
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, Self::Error> {
        self.through(&self.cache.codes, code_hash, || self.snapshot.code(code_hash))
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, Self::Error> {
        self.snapshot.block_hash(number)
    }
}

impl<R: TrieReader> TrieReader for Warm<R> {
    fn anchor(&self) -> StateAnchor {
        self.snapshot.anchor()
    }

    fn tries(&self) -> Option<Version> {
        Some(self.tries.clone())
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, Self::Error> {
        self.through(&self.cache.accounts, hashed_address, || self.snapshot.account(hashed_address))
    }

    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, Self::Error> {
        self.through(&self.cache.nodes, key, || self.snapshot.node(key))
    }

    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, Self::Error> {
        self.snapshot.accounts_from(start, limit)
    }

    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, Self::Error> {
        self.snapshot.slots_from(hashed_address, start, limit)
    }
}
