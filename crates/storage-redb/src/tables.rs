//! The tables: names, types, and how the rows that need it are decoded.
//!
//! Invariants:
//! 1. Keys and values are the bytes of [`foldgate_core::record`]; every backend holds the same.
//! 2. A change of names or types changes [`FORMAT_VERSION`].

use alloy_primitives::{B256, U256};
use foldgate_core::{Account, ReverseDiff, StateAnchor, record};
use redb::TableDefinition;

use crate::error::RedbError;

/// The version of the tables.
pub const FORMAT_VERSION: u32 = 2;

/// A table of this crate.
pub(crate) type Table<K> = TableDefinition<'static, K, &'static [u8]>;
/// A key of fixed length.
pub(crate) type Fixed<const N: usize> = &'static [u8; N];

/// Accounts, and the rows of their trie's branches.
pub(crate) const ACCOUNTS: Table<Fixed<33>> = Table::new("accounts");
/// Slots, and the rows of their tries' branches.
pub(crate) const SLOTS: Table<Fixed<65>> = Table::new("slots");
/// Code hash to code.
pub(crate) const CODES: Table<Fixed<32>> = Table::new("codes");
/// Height to block hash.
pub(crate) const BLOCK_HASHES: Table<Fixed<8>> = Table::new("block_hashes");
/// Height to committed block and state root.
pub(crate) const ANCHORS: Table<Fixed<8>> = Table::new("anchors");
/// Height to reverse diff.
pub(crate) const REVERSE_DIFFS: Table<Fixed<8>> = Table::new("reverse_diffs");
/// Height and hash to raw access list.
pub(crate) const BALS: Table<Fixed<40>> = Table::new("bals");
/// What is known of the store: the keys below.
pub(crate) const META: Table<&'static str> = Table::new("meta");

/// [`META`]: four bytes, big-endian.
pub(crate) const FORMAT_VERSION_KEY: &str = "format_version";
/// [`META`]: four bytes, big-endian.
pub(crate) const ROW_FORMAT_KEY: &str = "row_format";
/// [`META`]: an anchor.
pub(crate) const GENESIS: &str = "genesis";
/// [`META`]: an anchor.
pub(crate) const TIP: &str = "tip";

pub(crate) fn decode_account(key: &[u8], row: &[u8]) -> Result<Account, RedbError> {
    Account::from_bytes(row).ok_or_else(|| RedbError::corrupt("accounts", key))
}

pub(crate) fn decode_slot(key: &[u8], row: &[u8]) -> Result<U256, RedbError> {
    record::slot_value(row).ok_or_else(|| RedbError::corrupt("slots", key))
}

pub(crate) fn decode_hash(table: &'static str, key: &[u8], row: &[u8]) -> Result<B256, RedbError> {
    B256::try_from(row).map_err(|_| RedbError::corrupt(table, key))
}

pub(crate) fn decode_anchor(table: &'static str, key: &[u8], row: &[u8]) -> Result<StateAnchor, RedbError> {
    record::anchor(row).ok_or_else(|| RedbError::corrupt(table, key))
}

pub(crate) fn decode_reverse_diff(key: &[u8], row: &[u8]) -> Result<ReverseDiff, RedbError> {
    ReverseDiff::from_bytes(row).map_err(|_| RedbError::corrupt("reverse_diffs", key))
}

pub(crate) fn decode_version(key: &str, row: &[u8]) -> Result<u32, RedbError> {
    let bytes = row.try_into().map_err(|_| RedbError::corrupt("meta", key.as_bytes()))?;
    Ok(u32::from_be_bytes(bytes))
}
