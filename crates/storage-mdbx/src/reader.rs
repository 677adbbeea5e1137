//! Reading: one version of the database, seen as a store's history ([`View`]) or as one block's state
//! ([`MdbxSnapshot`]).
//!
//! # Lanes
//!
//! A read transaction serves one call at a time: libmdbx guards it by a mutex. A snapshot therefore holds several, its
//! *lanes*, opened together when the snapshot is taken. A transaction begun later would see a later version, so lanes
//! cannot be added afterwards; and one whose version number differs from the first one's, because a commit came between,
//! is given up at once. A thread reads in its own lane if that is free, else in any that is free, else it waits for its
//! own. One lane is always there, so lanes are a matter of speed and never of results: two threads that read 400,000 rows
//! each took 350 ms with one lane and 183 ms with two; a lane adds about 0.4 us to taking a snapshot.
//!
//! Batches are read key by key: of 2,250 random keys among a million hardly two share a page, and one cursor moved
//! forward over them took about a tenth longer than as many descents; taking the lane once for all of them gained nothing.
//!
//! Invariants:
//! 1. All lanes of a snapshot are of one version of the database, the one that `anchor` was read from.
//! 2. A lane's lock is held for one read, and no other lock is taken meanwhile but libmdbx's own.

use std::{
    cell::Cell,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use alloy_primitives::{B256, Bytes, U256};
use foldgate_core::{
    Account, AccountInfo, BlockHash, BlockNumHash, BlockNumber, NodeKey, Refusal, ReverseDiff, StateAnchor,
    StateReader, TrieId, TrieReader, record,
};
use parking_lot::Mutex;

use crate::{
    env::{Env, ReadTxn},
    error::MdbxError,
    tables::{
        ACCOUNTS, ANCHORS, BALS, BLOCK_HASHES, CODES, META, REVERSE_DIFFS, SLOTS, TIP, decode_account, decode_anchor,
        decode_hash, decode_reverse_diff, decode_slot,
    },
};

/// What a store says of its history, as of one transaction.
pub(crate) struct View {
    txn: ReadTxn,
}

impl View {
    pub(crate) fn new(env: &Arc<Env>) -> Result<Self, MdbxError> {
        Ok(Self { txn: env.begin_read()? })
    }

    pub(crate) fn meta_anchor(&self, key: &'static str) -> Result<Option<StateAnchor>, MdbxError> {
        self.txn.get(META, key.as_bytes(), |row| decode_anchor("meta", key.as_bytes(), row))
    }

    pub(crate) fn committed(&self, number: BlockNumber) -> Result<Option<StateAnchor>, MdbxError> {
        let key = record::number_key(number);
        self.txn.get(ANCHORS, &key, |row| decode_anchor("anchors", &key, row))
    }

    pub(crate) fn reverse_diff(&self, number: BlockNumber) -> Result<Option<ReverseDiff>, MdbxError> {
        let key = record::number_key(number);
        self.txn.get(REVERSE_DIFFS, &key, |row| decode_reverse_diff(&key, row))
    }

    pub(crate) fn bal(&self, block: &BlockNumHash) -> Result<Option<Bytes>, MdbxError> {
        self.txn.get(BALS, &record::block_key(block), |row| Ok(Bytes::copy_from_slice(row)))
    }
}

/// A view of a [`MdbxStore`](crate::MdbxStore) after one block. Clones share its read transactions, whose pages MDBX
/// keeps until the last clone is dropped: a snapshot that lives long makes the file grow.
///
/// As many threads as there are lanes ([`Options::lanes`](crate::Options::lanes)) read at the same time; more wait for
/// each other, for one read at a time.
#[derive(Clone)]
pub struct MdbxSnapshot {
    lanes: Arc<[Mutex<ReadTxn>]>,
    anchor: StateAnchor,
}

impl std::fmt::Debug for MdbxSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("MdbxSnapshot");
        out.field("anchor", &self.anchor).field("lanes", &self.lanes.len()).finish_non_exhaustive()
    }
}

impl MdbxSnapshot {
    pub(crate) fn new(view: View) -> Result<Self, MdbxError> {
        let anchor = view.meta_anchor(TIP)?.ok_or(Refusal::Empty)?;
        let first = view.txn;
        let env = Arc::clone(&first.env);
        let more: Vec<_> = (1..env.lanes).map_while(|_| env.begin_same_read(&first)).collect();
        let lanes = [first].into_iter().chain(more).map(Mutex::new).collect();
        Ok(Self { lanes, anchor })
    }

    /// Reads in a lane that is free, or waits for this thread's own.
    fn read<T>(&self, read: impl FnOnce(&ReadTxn) -> Result<T, MdbxError>) -> Result<T, MdbxError> {
        let own = thread_number() % self.lanes.len();
        let (before, from_own) = self.lanes.split_at(own);
        match from_own.iter().chain(before).find_map(|lane| lane.try_lock()) {
            Some(txn) => read(&txn),
            None => read(&self.lanes[own].lock()),
        }
    }
}

/// Numbers threads in the order in which they first read, so that they spread over the lanes.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static NUMBER: Cell<Option<usize>> = const { Cell::new(None) });
    NUMBER.with(|number| {
        number.get().unwrap_or_else(|| {
            // Any number will do: nothing is ordered by it.
            let new = NEXT.fetch_add(1, Ordering::Relaxed);
            number.set(Some(new));
            new
        })
    })
}

impl StateReader for MdbxSnapshot {
    type Error = MdbxError;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, MdbxError> {
        Ok(self.account(hashed_address)?.map(Account::into))
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, MdbxError> {
        let key = record::slot_key(hashed_address, hashed_slot);
        let value = self.read(|txn| txn.get(SLOTS, &key, |row| decode_slot(&key, row)))?;
        Ok(value.unwrap_or_default())
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, MdbxError> {
        self.read(|txn| txn.get(CODES, code_hash.as_slice(), |row| Ok(Bytes::copy_from_slice(row))))
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, MdbxError> {
        let key = record::number_key(number);
        self.read(|txn| txn.get(BLOCK_HASHES, &key, |row| decode_hash("block_hashes", &key, row)))
    }
}

impl TrieReader for MdbxSnapshot {
    fn anchor(&self) -> StateAnchor {
        self.anchor
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, MdbxError> {
        let key = record::account_key(hashed_address);
        self.read(|txn| txn.get(ACCOUNTS, &key, |row| decode_account(&key, row)))
    }

    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, MdbxError> {
        let get = |table, key: &[u8]| self.read(|txn| txn.get(table, key, |row| Ok(Bytes::copy_from_slice(row))));
        match &key.trie {
            TrieId::Accounts => get(ACCOUNTS, &record::account_node_key(&key.path)),
            TrieId::Storage(hashed_address) => get(SLOTS, &record::storage_node_key(hashed_address, &key.path)),
        }
    }

    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, MdbxError> {
        let mut rows = Vec::new();
        if limit == 0 {
            return Ok(rows);
        }
        self.read(|txn| {
            txn.scan(ACCOUNTS, &record::account_key(start), |key, row| {
                if record::is_node_key(key) {
                    return Ok(ControlFlow::Continue(()));
                }
                let hashed_address = record::hashed_address_of_key(key);
                let hashed_address = hashed_address.ok_or_else(|| MdbxError::corrupt("accounts", key))?;
                rows.push((hashed_address, decode_account(key, row)?));
                Ok(if rows.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })
        })?;
        Ok(rows)
    }

    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, MdbxError> {
        let mut rows = Vec::new();
        if limit == 0 {
            return Ok(rows);
        }
        self.read(|txn| {
            txn.scan(SLOTS, &record::slot_key(hashed_address, start), |key, row| {
                if !key.starts_with(hashed_address.as_slice()) {
                    return Ok(ControlFlow::Break(()));
                }
                if record::is_node_key(key) {
                    return Ok(ControlFlow::Continue(()));
                }
                let hashed_slot = record::slot_of_key(hashed_address, key);
                let hashed_slot = hashed_slot.ok_or_else(|| MdbxError::corrupt("slots", key))?;
                rows.push((hashed_slot, decode_slot(key, row)?));
                Ok(if rows.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })
        })?;
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    //! What the suite cannot see: how many lanes there are, and that none is of another version.

    use foldgate_core::TrieStore;
    use foldgate_testing::conformance::world::{State, World};
    use tempfile::TempDir;

    use super::*;
    use crate::{MdbxStore, Options};

    fn loaded(dir: &TempDir, options: Options) -> (MdbxStore, World) {
        let (store, world) = (MdbxStore::open(dir.path(), options).unwrap(), World::new(0, State::default()));
        world.load_into(&store);
        (store, world)
    }

    #[test]
    fn a_snapshot_has_its_lanes_and_none_of_a_later_version() {
        let dir = TempDir::new().unwrap();
        let (store, mut world) = loaded(&dir, Options::default().with_lanes(3));
        let snapshot = store.snapshot().unwrap();
        assert_eq!(snapshot.lanes.len(), 3);
        let first = store.env.begin_read().unwrap();
        assert!(store.env.begin_same_read(&first).is_some());
        world.extend(State::default(), None);
        store.commit(&world.batch_from(0)).unwrap();
        assert!(store.env.begin_same_read(&first).is_none(), "a commit came between");
        let _held: Vec<_> = snapshot.lanes.iter().skip(1).map(|lane| lane.lock()).collect();
        for number in 0..3 {
            let expected = (number == 0).then_some(world.genesis().anchor.block.hash);
            assert_eq!(snapshot.block_hash(number).unwrap(), expected, "one free lane is found from any thread");
        }
    }

    #[test]
    fn lanes_leave_readers_for_further_snapshots() {
        let dir = TempDir::new().unwrap();
        let (store, _) = loaded(&dir, Options::default().with_lanes(8).with_max_readers(64));
        let mut alive: Vec<_> = (0..20).map(|_| store.snapshot().unwrap()).collect();
        let lanes: usize = alive.iter().map(|snapshot| snapshot.lanes.len()).sum();
        assert_eq!(lanes, 20 + 32, "one lane each, and half of all readers shared out");
        alive.clear();
        assert_eq!(store.snapshot().unwrap().lanes.len(), 8, "what was dropped is to spare again");
    }

    #[test]
    fn too_many_snapshots_are_an_error_and_pass() {
        let dir = TempDir::new().unwrap();
        let (store, world) = loaded(&dir, Options::default().with_lanes(1).with_max_readers(16));
        let mut alive = Vec::new();
        let error = loop {
            match store.snapshot() {
                Ok(snapshot) => alive.push(snapshot),
                Err(error) => break error,
            }
            assert!(alive.len() < 1000, "the limit of readers was never reached");
        };
        assert!(matches!(error, MdbxError::Database(libmdbx::Error::ReadersFull)), "{error}");
        assert!(alive.len() >= 16, "{}", alive.len());
        alive.truncate(10);
        world.check_store(&store);
    }
}
