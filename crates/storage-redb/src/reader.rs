//! Reading: one read transaction, seen as a store's history ([`View`]) or as one block's state ([`RedbSnapshot`]).
//!
//! Invariants:
//! 1. All tables of a snapshot belong to one read transaction, and so do anchor and rows.
//! 2. The database outlives the tables: `env` is dropped last.

use std::sync::Arc;

use alloy_primitives::{B256, Bytes, U256};
use foldgate_core::{
    Account, AccountInfo, BlockHash, BlockNumHash, BlockNumber, NodeKey, ReverseDiff, StateAnchor, StateReader, TrieId,
    TrieReader,
    record::{self, AccountKey, SlotKey},
};
use redb::{Range, ReadOnlyTable, ReadTransaction, ReadableDatabase};

use crate::{
    env::Env,
    error::RedbError,
    tables::{
        ACCOUNTS, ANCHORS, BALS, BLOCK_HASHES, CODES, Fixed, META, REVERSE_DIFFS, SLOTS, decode_account, decode_anchor,
        decode_hash, decode_reverse_diff, decode_slot,
    },
};

type ReadTable<K> = ReadOnlyTable<K, &'static [u8]>;

/// What a store says of its history, as of one transaction.
pub(crate) struct View {
    txn: ReadTransaction,
    env: Arc<Env>,
}

impl View {
    pub(crate) fn new(env: &Arc<Env>) -> Result<Self, RedbError> {
        Ok(Self { txn: env.db.begin_read()?, env: Arc::clone(env) })
    }

    pub(crate) fn meta_anchor(&self, key: &'static str) -> Result<Option<StateAnchor>, RedbError> {
        let row = self.txn.open_table(META)?.get(key)?;
        row.map(|row| decode_anchor("meta", key.as_bytes(), row.value())).transpose()
    }

    pub(crate) fn committed(&self, number: BlockNumber) -> Result<Option<StateAnchor>, RedbError> {
        let key = record::number_key(number);
        let row = self.txn.open_table(ANCHORS)?.get(&key)?;
        row.map(|row| decode_anchor("anchors", &key, row.value())).transpose()
    }

    pub(crate) fn reverse_diff(&self, number: BlockNumber) -> Result<Option<ReverseDiff>, RedbError> {
        let key = record::number_key(number);
        let row = self.txn.open_table(REVERSE_DIFFS)?.get(&key)?;
        row.map(|row| decode_reverse_diff(&key, row.value())).transpose()
    }

    pub(crate) fn bal(&self, block: &BlockNumHash) -> Result<Option<Bytes>, RedbError> {
        let row = self.txn.open_table(BALS)?.get(&record::block_key(block))?;
        Ok(row.map(|row| Bytes::copy_from_slice(row.value())))
    }
}

/// A view of a [`RedbStore`](crate::RedbStore) after one block. Clones share one read transaction, whose pages redb
/// keeps until the last clone is dropped.
#[derive(Clone)]
pub struct RedbSnapshot {
    tables: Arc<Tables>,
    anchor: StateAnchor,
}

struct Tables {
    accounts: ReadTable<Fixed<33>>,
    slots: ReadTable<Fixed<65>>,
    codes: ReadTable<Fixed<32>>,
    block_hashes: ReadTable<Fixed<8>>,
    _env: Arc<Env>,
}

impl std::fmt::Debug for RedbSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedbSnapshot").field("anchor", &self.anchor).finish_non_exhaustive()
    }
}

impl RedbSnapshot {
    pub(crate) fn new(view: &View, anchor: StateAnchor) -> Result<Self, RedbError> {
        let tables = Tables {
            accounts: view.txn.open_table(ACCOUNTS)?,
            slots: view.txn.open_table(SLOTS)?,
            codes: view.txn.open_table(CODES)?,
            block_hashes: view.txn.open_table(BLOCK_HASHES)?,
            _env: Arc::clone(&view.env),
        };
        Ok(Self { tables: Arc::new(tables), anchor })
    }
}

impl StateReader for RedbSnapshot {
    type Error = RedbError;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, RedbError> {
        Ok(self.account(hashed_address)?.map(Account::into))
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, RedbError> {
        let key = record::slot_key(hashed_address, hashed_slot);
        let row = self.tables.slots.get(&key)?;
        row.map_or(Ok(U256::ZERO), |row| decode_slot(&key, row.value()))
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, RedbError> {
        let row = self.tables.codes.get(&code_hash.0)?;
        Ok(row.map(|row| Bytes::copy_from_slice(row.value())))
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, RedbError> {
        let key = record::number_key(number);
        let row = self.tables.block_hashes.get(&key)?;
        row.map(|row| decode_hash("block_hashes", &key, row.value())).transpose()
    }
}

impl TrieReader for RedbSnapshot {
    fn anchor(&self) -> StateAnchor {
        self.anchor
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, RedbError> {
        let key = record::account_key(hashed_address);
        let row = self.tables.accounts.get(&key)?;
        row.map(|row| decode_account(&key, row.value())).transpose()
    }

    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, RedbError> {
        let Tables { accounts, slots, .. } = &*self.tables;
        let row = match &key.trie {
            TrieId::Accounts => accounts.get(&record::account_node_key(&key.path))?,
            TrieId::Storage(hashed_address) => slots.get(&record::storage_node_key(hashed_address, &key.path))?,
        };
        Ok(row.map(|row| Bytes::copy_from_slice(row.value())))
    }

    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, RedbError> {
        let rows = self.tables.accounts.range::<&AccountKey>(&record::account_key(start)..)?;
        leaves(rows, limit, |key, row| {
            let hashed_address = record::hashed_address_of_key(key);
            let hashed_address = hashed_address.ok_or_else(|| RedbError::corrupt("accounts", key))?;
            Ok((hashed_address, decode_account(key, row)?))
        })
    }

    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, RedbError> {
        let first = record::slot_key(hashed_address, start);
        let last = record::slot_key(hashed_address, &B256::repeat_byte(0xff));
        let rows = self.tables.slots.range::<&SlotKey>(&first..=&last)?;
        leaves(rows, limit, |key, row| {
            let hashed_slot = record::slot_of_key(hashed_address, key);
            let hashed_slot = hashed_slot.ok_or_else(|| RedbError::corrupt("slots", key))?;
            Ok((hashed_slot, decode_slot(key, row)?))
        })
    }
}

/// So many leaves from a range, with the rows of branches between them left out.
fn leaves<const N: usize, T>(
    rows: Range<'_, Fixed<N>, &'static [u8]>,
    limit: usize,
    decode: impl Fn(&[u8], &[u8]) -> Result<T, RedbError>,
) -> Result<Vec<T>, RedbError> {
    let leaves = rows.filter(|row| row.as_ref().map_or(true, |(key, _)| !record::is_node_key(key.value())));
    let decoded = leaves.take(limit).map(|row| {
        let (key, value) = row?;
        decode(key.value(), value.value())
    });
    decoded.collect()
}
