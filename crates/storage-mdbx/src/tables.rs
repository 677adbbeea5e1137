//! The tables: names, and how the rows that need it are decoded.
//!
//! Invariants:
//! 1. Keys and values are the bytes of [`foldgate_core::record`]; every backend holds the same.
//! 2. A change of names changes [`FORMAT_VERSION`].

use alloy_primitives::{B256, U256};
use foldgate_core::{Account, ReverseDiff, StateAnchor, record};

use crate::error::MdbxError;

/// The version of the tables.
pub const FORMAT_VERSION: u32 = 2;

/// A table of this crate, by its place in [`TABLES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table(pub(crate) usize);

/// The names of all tables.
pub(crate) const TABLES: [&str; 8] =
    ["accounts", "slots", "codes", "block_hashes", "anchors", "reverse_diffs", "bals", "meta"];

/// Accounts, and the rows of their trie's branches.
pub(crate) const ACCOUNTS: Table = Table(0);
/// Slots, and the rows of their tries' branches.
pub(crate) const SLOTS: Table = Table(1);
/// Code hash to code.
pub(crate) const CODES: Table = Table(2);
/// Height to block hash.
pub(crate) const BLOCK_HASHES: Table = Table(3);
/// Height to committed block and state root.
pub(crate) const ANCHORS: Table = Table(4);
/// Height to reverse diff.
pub(crate) const REVERSE_DIFFS: Table = Table(5);
/// Height and hash to raw access list.
pub(crate) const BALS: Table = Table(6);
/// What is known of the store: the keys below.
pub(crate) const META: Table = Table(7);

/// [`META`]: four bytes, big-endian.
pub(crate) const FORMAT_VERSION_KEY: &str = "format_version";
/// [`META`]: four bytes, big-endian.
pub(crate) const ROW_FORMAT_KEY: &str = "row_format";
/// [`META`]: an anchor.
pub(crate) const GENESIS: &str = "genesis";
/// [`META`]: an anchor.
pub(crate) const TIP: &str = "tip";

pub(crate) fn decode_account(key: &[u8], row: &[u8]) -> Result<Account, MdbxError> {
    Account::from_bytes(row).ok_or_else(|| MdbxError::corrupt("accounts", key))
}

pub(crate) fn decode_slot(key: &[u8], row: &[u8]) -> Result<U256, MdbxError> {
    record::slot_value(row).ok_or_else(|| MdbxError::corrupt("slots", key))
}

pub(crate) fn decode_hash(table: &'static str, key: &[u8], row: &[u8]) -> Result<B256, MdbxError> {
    B256::try_from(row).map_err(|_| MdbxError::corrupt(table, key))
}

pub(crate) fn decode_anchor(table: &'static str, key: &[u8], row: &[u8]) -> Result<StateAnchor, MdbxError> {
    record::anchor(row).ok_or_else(|| MdbxError::corrupt(table, key))
}

pub(crate) fn decode_reverse_diff(key: &[u8], row: &[u8]) -> Result<ReverseDiff, MdbxError> {
    ReverseDiff::from_bytes(row).map_err(|_| MdbxError::corrupt("reverse_diffs", key))
}

pub(crate) fn decode_version(key: &str, row: &[u8]) -> Result<u32, MdbxError> {
    let bytes = row.try_into().map_err(|_| MdbxError::corrupt("meta", key.as_bytes()))?;
    Ok(u32::from_be_bytes(bytes))
}
