//! A snapshot behind a cache of the rows that were read from it, as the pipeline's warm-up keeps one.
//!
//! Invariants:
//! 1. A cache belongs to one snapshot and holds rows of it alone; layers of later blocks lie above it and win.
//! 2. What it serves is what the snapshot would.

use std::{hash::Hash, sync::Arc};

use alloy_primitives::{B256, Bytes, U256, map::DefaultHashBuilder};
use dashmap::DashMap;
use foldgate_core::{Account, AccountInfo, BlockHash, BlockNumber, NodeKey, StateAnchor, StateReader, TrieReader};

type Map<K, V> = DashMap<K, V, DefaultHashBuilder>;

#[derive(Debug, Default)]
struct Cache {
    accounts: Map<B256, Option<Account>>,
    slots: Map<(B256, B256), U256>,
    nodes: Map<NodeKey, Option<Bytes>>,
}

/// See the module's description. Clones share the cache.
#[derive(Debug, Clone)]
pub(super) struct Cached<R> {
    snapshot: R,
    cache: Arc<Cache>,
}

impl<R> Cached<R> {
    pub(super) fn new(snapshot: R) -> Self {
        Self { snapshot, cache: Arc::default() }
    }
}

fn through<K: Eq + Hash + Copy, V: Clone, E>(
    map: &Map<K, V>,
    key: &K,
    read: impl FnOnce() -> Result<V, E>,
) -> Result<V, E> {
    if let Some(value) = map.get(key) {
        return Ok(value.clone());
    }
    let value = read()?;
    map.insert(*key, value.clone());
    Ok(value)
}

impl<R: TrieReader> StateReader for Cached<R> {
    type Error = R::Error;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, Self::Error> {
        Ok(self.account(hashed_address)?.map(Account::into))
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, Self::Error> {
        let read = || self.snapshot.storage(hashed_address, hashed_slot);
        through(&self.cache.slots, &(*hashed_address, *hashed_slot), read)
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, Self::Error> {
        self.snapshot.code(code_hash)
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, Self::Error> {
        self.snapshot.block_hash(number)
    }
}

impl<R: TrieReader> TrieReader for Cached<R> {
    fn anchor(&self) -> StateAnchor {
        self.snapshot.anchor()
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, Self::Error> {
        through(&self.cache.accounts, hashed_address, || self.snapshot.account(hashed_address))
    }

    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, Self::Error> {
        through(&self.cache.nodes, key, || self.snapshot.node(key))
    }

    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, Self::Error> {
        self.snapshot.accounts_from(start, limit)
    }

    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, Self::Error> {
        self.snapshot.slots_from(hashed_address, start, limit)
    }
}
