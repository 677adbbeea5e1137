//! A snapshot read through the cache.
//!
//! Invariants:
//! 1. The version is the one that the cache had when the reader was made, for the snapshot's own block; without one,
//!    every read goes to the snapshot.
//! 2. What a warm-up brought in is of this snapshot, and does not change any more.

use std::sync::{Arc, OnceLock};

use alloy_primitives::{
    B256, Bytes, U256,
    map::{B256Map, HashMap},
};

use super::{PageCache, Record, table::Key, versions::Version};
use crate::{
    account::{Account, AccountInfo},
    block::{BlockHash, BlockNumber, StateAnchor},
    node::NodeKey,
    sorted::{KeyIndex, Place, seek, sort},
    store::{StateReader, TrieReader, through_batch},
    trie,
};

/// A snapshot with the shared cache before it. Clones share both.
///
/// Scans ([`TrieReader::accounts_from`], [`TrieReader::slots_from`]) and block hashes go to the snapshot, but for the
/// single leaves that a warm-up has foreseen.
#[derive(Debug, Clone)]
pub struct Cached<R> {
    snapshot: R,
    cache: Arc<PageCache>,
    version: Option<Version>,
    /// The tries of the snapshot's block, as far as they are in memory.
    tries: Option<trie::Version>,
    /// What a warm-up brought in for one block.
    pub(super) ahead: Arc<OnceLock<Ahead>>,
}

/// What one block's warm-up brought in: looked at without a lock.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    pub(super) records: Records,
    pub(super) rows: HashMap<NodeKey, Option<Bytes>>,
    /// The first account from a key on.
    pub(super) first_accounts: B256Map<Option<(B256, Account)>>,
    /// The first slot of an account from a key on.
    pub(super) first_slots: HashMap<(B256, B256), Option<(B256, U256)>>,
}

/// Accounts, with some of their slots, sorted. What comes out of order is not found, which costs a read.
#[derive(Debug, Default)]
pub(super) struct Records {
    accounts: Vec<(B256, Option<Account>)>,
    /// One account's behind the other's.
    slots: Vec<(B256, U256)>,
    index: KeyIndex,
}

impl Records {
    pub(super) fn with_capacity(accounts: usize, slots: usize) -> Self {
        Self {
            accounts: Vec::with_capacity(accounts),
            slots: Vec::with_capacity(slots),
            index: KeyIndex::with_capacity(accounts, slots),
        }
    }

    /// Takes in an account, with as many of its slots as were read.
    pub(super) fn add(
        &mut self,
        hashed_address: B256,
        account: Option<Account>,
        slots: impl Iterator<Item = (B256, U256)>,
    ) {
        let begin = self.slots.len();
        self.slots.extend(slots);
        self.accounts.push((hashed_address, account));
        self.index.add(&hashed_address, self.slots[begin..].iter().map(|(slot, _)| slot));
    }

    /// How many accounts and slots these are.
    pub(super) const fn len(&self) -> usize {
        self.accounts.len() + self.slots.len()
    }

    /// The records of several parts, of which some may be in more than one.
    pub(super) fn merged(mut parts: Vec<Self>) -> Self {
        if parts.len() < 2 {
            return parts.pop().unwrap_or_default();
        }
        let (accounts, slots) = parts
            .iter()
            .fold((0, 0), |(accounts, slots), part| (accounts + part.accounts.len(), slots + part.slots.len()));
        let mut merged = Self::with_capacity(accounts, slots);
        let all =
            parts.iter().flat_map(|part| part.accounts.iter().enumerate().map(move |(at, item)| (part, at, item)));
        let all = sort(all, |(.., (hashed_address, _))| hashed_address);
        for same in all.chunk_by(|one, next| one.2.0 == next.2.0) {
            let mut slots: Vec<_> = same.iter().flat_map(|(part, at, _)| part.slots_of(*at).1).copied().collect();
            slots.sort_unstable_by_key(|(slot, _)| *slot);
            slots.dedup_by_key(|(slot, _)| *slot);
            // One at least.
            let (hashed_address, account) = same[0].2;
            merged.add(*hashed_address, *account, slots.into_iter());
        }
        merged
    }

    fn slots_of(&self, account: usize) -> (&[u64], &[(B256, U256)]) {
        let (prefixes, begin) = self.index.slots(account);
        (prefixes, &self.slots[begin..][..prefixes.len()])
    }

    pub(super) fn account(&self, hashed_address: &B256) -> Option<Option<Account>> {
        self.index.may_hold(hashed_address).then(|| RecordCursor::new(self).account(hashed_address)).flatten()
    }

    pub(super) fn slot(&self, hashed_address: &B256, hashed_slot: &B256) -> Option<U256> {
        let perhaps = self.index.may_hold_slot(hashed_address, hashed_slot);
        perhaps.then(|| RecordCursor::new(self).slot(hashed_address, hashed_slot)).flatten()
    }
}

/// Looks sorted keys up.
struct RecordCursor<'a> {
    records: &'a Records,
    last: Option<B256>,
    account: usize,
    /// Among those of the account.
    slot: usize,
}

impl<'a> RecordCursor<'a> {
    const fn new(records: &'a Records) -> Self {
        Self { records, last: None, account: 0, slot: 0 }
    }

    fn seek(&mut self, hashed_address: &B256) -> Place {
        if self.last != Some(*hashed_address) {
            if self.last.replace(*hashed_address).is_some_and(|last| last > *hashed_address) {
                self.account = 0;
            }
            self.slot = 0;
        }
        let Records { accounts, index, .. } = self.records;
        let place = seek(index.accounts(), self.account, hashed_address, |at| &accounts[at].0);
        self.account = place.at;
        place
    }

    fn account(&mut self, hashed_address: &B256) -> Option<Option<Account>> {
        let Place { at, found } = self.seek(hashed_address);
        found.then(|| self.records.accounts[at].1)
    }

    fn slot(&mut self, hashed_address: &B256, hashed_slot: &B256) -> Option<U256> {
        let account = self.seek(hashed_address);
        if !account.found {
            return None;
        }
        let (prefixes, slots) = self.records.slots_of(account.at);
        let from = if self.slot > 0 && slots[self.slot - 1].0 >= *hashed_slot { 0 } else { self.slot };
        let Place { at, found } = seek(prefixes, from, hashed_slot, |at| &slots[at].0);
        self.slot = at;
        found.then(|| slots[at].1)
    }
}

impl<R: TrieReader> Cached<R> {
    /// Puts the cache before a snapshot. If the snapshot's block is not the one that the cache was told of last, the
    /// reader does without the cache.
    pub fn new(snapshot: R, cache: Arc<PageCache>) -> Self {
        let version = cache.version_of(snapshot.anchor().block);
        Self { snapshot, cache, version, tries: None, ahead: Arc::default() }
    }

    /// The same with the tries of the snapshot's block.
    pub fn with_tries(self, tries: trie::Version) -> Self {
        Self { tries: Some(tries), ..self }
    }

    /// The same for the readers of one block: what [`Self::warm`] brings in is at hand for them at once, however full
    /// the cache is.
    pub fn for_block(&self) -> Self
    where
        R: Clone,
    {
        Self { ahead: Arc::default(), ..self.clone() }
    }

    /// The snapshot below.
    pub const fn snapshot(&self) -> &R {
        &self.snapshot
    }

    /// The cache.
    pub const fn cache(&self) -> &Arc<PageCache> {
        &self.cache
    }

    fn one<V: Record>(
        &self,
        ahead: impl FnOnce(&Ahead) -> Option<V>,
        key: Key,
        read: impl FnOnce(&R) -> Result<V, R::Error>,
    ) -> Result<V, R::Error> {
        if let Some(value) = self.ahead.get().and_then(ahead) {
            return Ok(value);
        }
        let Some(version) = self.version else { return read(&self.snapshot) };
        if let Some(value) = self.cache.get(version, &key, V::from_value) {
            return Ok(value);
        }
        let value = read(&self.snapshot)?;
        self.cache.put_all(version, std::iter::once((key, value.to_value())));
        Ok(value)
    }

    fn all<K: Copy, V: Record + Default>(
        &self,
        keys: &[K],
        mut ahead: impl FnMut(&K) -> Option<V>,
        name: impl Fn(&K) -> Key,
        read: impl FnOnce(&R, &[K]) -> Result<Vec<V>, R::Error>,
    ) -> Result<Vec<V>, R::Error> {
        let Some(version) = self.version else {
            return through_batch(keys, ahead, |keys| read(&self.snapshot, keys));
        };
        let cached = |key: &K| ahead(key).or_else(|| self.cache.get(version, &name(key), V::from_value));
        through_batch(keys, cached, |keys| {
            let values = read(&self.snapshot, keys)?;
            self.cache.put_all(version, keys.iter().zip(&values).map(|(key, value)| (name(key), value.to_value())));
            Ok(values)
        })
    }
}

impl<R: TrieReader> Cached<R> {
    /// Rows for a fold that is to come: taken from the cache where they are there, and not put there. The fold leaves
    /// their successors in memory.
    pub(super) fn rows_for_fold(&self, keys: &[NodeKey]) -> Result<Vec<Option<Bytes>>, R::Error> {
        let cached = |key: &NodeKey| self.cache.get(self.version?, &Key::row(key), Option::<Bytes>::from_value);
        through_batch(keys, cached, |keys| self.snapshot.nodes(keys))
    }
}

impl<R: TrieReader> StateReader for Cached<R> {
    type Error = R::Error;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, Self::Error> {
        Ok(self.account(hashed_address)?.map(Account::into))
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, Self::Error> {
        let ahead = |ahead: &Ahead| ahead.records.slot(hashed_address, hashed_slot);
        self.one(ahead, Key::slot(hashed_address, hashed_slot), |snapshot| {
            snapshot.storage(hashed_address, hashed_slot)
        })
    }

    /// Code that is not there is not remembered: what is written later stays after an unwind, so that two snapshots of one
    /// block may differ in code that nothing of the block refers to.
    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, Self::Error> {
        let key = Key::code(code_hash);
        let cached = self.version.and_then(|version| self.cache.get(version, &key, Option::<Bytes>::from_value));
        if let Some(code) = cached {
            return Ok(code);
        }
        let code = self.snapshot.code(code_hash)?;
        if let Some(version) = self.version.filter(|_| code.is_some()) {
            self.cache.put_all(version, std::iter::once((key, code.to_value())));
        }
        Ok(code)
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, Self::Error> {
        self.snapshot.block_hash(number)
    }
}

impl<R: TrieReader> TrieReader for Cached<R> {
    fn anchor(&self) -> StateAnchor {
        self.snapshot.anchor()
    }

    fn tries(&self) -> Option<trie::Version> {
        self.tries.clone()
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, Self::Error> {
        let ahead = |ahead: &Ahead| ahead.records.account(hashed_address);
        self.one(ahead, Key::account(hashed_address), |snapshot| snapshot.account(hashed_address))
    }

    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, Self::Error> {
        self.one(|ahead| ahead.rows.get(key).cloned(), Key::row(key), |snapshot| snapshot.node(key))
    }

    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, Self::Error> {
        let brought = || self.ahead.get()?.first_accounts.get(start).copied();
        match brought().filter(|_| limit == 1) {
            Some(first) => Ok(first.into_iter().collect()),
            None => self.snapshot.accounts_from(start, limit),
        }
    }

    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, Self::Error> {
        let brought = || self.ahead.get()?.first_slots.get(&(*hashed_address, *start)).copied();
        match brought().filter(|_| limit == 1) {
            Some(first) => Ok(first.into_iter().collect()),
            None => self.snapshot.slots_from(hashed_address, start, limit),
        }
    }

    fn accounts(&self, hashed_addresses: &[B256]) -> Result<Vec<Option<Account>>, Self::Error> {
        let mut cursor = self.ahead.get().map(|ahead| RecordCursor::new(&ahead.records));
        let ahead = |key: &B256| cursor.as_mut()?.account(key);
        self.all(hashed_addresses, ahead, Key::account, |snapshot, keys| snapshot.accounts(keys))
    }

    fn slots(&self, keys: &[(B256, B256)]) -> Result<Vec<U256>, Self::Error> {
        let mut cursor = self.ahead.get().map(|ahead| RecordCursor::new(&ahead.records));
        let ahead = |(address, slot): &(B256, B256)| cursor.as_mut()?.slot(address, slot);
        self.all(keys, ahead, |(address, slot)| Key::slot(address, slot), |snapshot, keys| snapshot.slots(keys))
    }

    fn nodes(&self, keys: &[NodeKey]) -> Result<Vec<Option<Bytes>>, Self::Error> {
        let brought = self.ahead.get();
        let ahead = |key: &NodeKey| brought?.rows.get(key).cloned();
        self.all(keys, ahead, Key::row, |snapshot, keys| snapshot.nodes(keys))
    }
}
