//! The page cache: records of the durable state in memory, under a byte budget, shared by all blocks in memory and kept
//! across commits.
//!
//! ```text
//!   executors, resolution, fold, warm-up
//!        |  Overlay: layers first
//!        v
//!   Cached<R> -- version, snapshot ------------------------------> PageCache: Versions over one Table
//!        |  what is not there: one batch, sorted                       ^
//!        v                                                             |
//!   the backend's snapshot                          advance: the committer, after each commit
//! ```
//!
//! It keeps accounts and slots, those too that do not exist; rows of the tries, of which the top of the account trie is
//! never driven out; and code. Whole paths stay, because whatever is read often stays (`table.rs`).
//!
//! Invariants:
//! 1. A read through the cache gives what the snapshot below it gives, whatever is committed or unwound meanwhile
//!    (`versions.rs` has the argument).
//! 2. A cache without a budget keeps nothing, and one that was not told of a block serves no reader of it: reads then go
//!    to the snapshot. Being out of step costs speed and never results.

mod cached;
mod table;
mod versions;
mod warm;

/// The locks of the protocol. A model checker puts its own in their place.
mod sync {
    pub(super) use std::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
}

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use alloy_primitives::{Bytes, U256};

pub use self::{
    cached::Cached,
    warm::{ReadAhead, TouchedAccount, TouchedSlot, Warmed},
};
use self::{
    table::{Key, Table, Value},
    versions::{Version, Versions},
};
use crate::{account::Account, block::BlockNumHash, store::Rows};

/// What a cache did and holds. The figures are statistics: two of them need not fit each other while it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheStats {
    /// Reads that were answered.
    pub hits: u64,
    /// Reads that went to a snapshot.
    pub misses: u64,
    /// Entries driven out for others, refused for their size, or put twice by readers that missed at the same time.
    pub evictions: u64,
    /// How many bytes of the budget are used.
    pub bytes: u64,
    /// How many entries there are.
    pub entries: u64,
}

/// Counters of hits and misses, some for each of several groups of keys, so that threads seldom meet at one.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Tally {
    hits: AtomicU64,
    misses: AtomicU64,
}

const TALLIES: usize = 16;

/// What a step writes, before it is known whether the cache has the key.
enum New<'a> {
    Account(Option<Account>),
    Slot(U256),
    Bytes(Option<&'a Bytes>),
}

impl From<New<'_>> for Value {
    fn from(new: New<'_>) -> Self {
        match new {
            New::Account(account) => Self::Account(account.map(Arc::new)),
            New::Slot(value) => Self::Slot(value),
            // It may be a piece of a large buffer: it gets its own.
            New::Bytes(bytes) => Self::Bytes(bytes.map(|bytes| Bytes::copy_from_slice(bytes))),
        }
    }
}

/// The cache. See the module's documentation.
#[derive(Debug)]
pub struct PageCache {
    /// `None` without a budget.
    versions: Option<Versions<BlockNumHash, Table>>,
    tallies: [Tally; TALLIES],
}

impl PageCache {
    /// An empty cache that may take so many bytes of memory. It serves nobody until it is told of a block.
    pub fn new(budget_bytes: usize) -> Self {
        Self { versions: Table::new(budget_bytes as u64).map(Versions::new), tallies: Default::default() }
    }

    /// Follows a commit: the store went from `parent`, its tip, to `tip`, and `rows` are what it wrote. To be called after
    /// the commit; readers of the new tip that were made before find nothing. Where `parent` is not the block that the
    /// cache was told of last, it is a [`Self::reset`].
    pub fn advance(&self, parent: BlockNumHash, tip: BlockNumHash, rows: &Rows) {
        let Some(versions) = &self.versions else { return };
        let accounts = rows.accounts.iter().map(|(key, account)| (Key::account(key), New::Account(*account)));
        let slots = rows.slots.iter().map(|((address, slot), value)| (Key::slot(address, slot), New::Slot(*value)));
        let nodes = rows.nodes.iter().map(|(key, row)| (Key::row(key), New::Bytes(row.as_ref())));
        let codes = rows.codes.iter().map(|(hash, code)| (Key::code(hash), New::Bytes(Some(code))));
        versions.advance(&parent, tip, accounts.chain(slots).chain(nodes).chain(codes));
    }

    /// Forgets everything and starts anew at `tip`: for the first block, after an unwind, and in any doubt.
    pub fn reset(&self, tip: BlockNumHash) {
        if let Some(versions) = &self.versions {
            versions.reset(tip);
        }
    }

    /// What the cache did and holds.
    pub fn stats(&self) -> CacheStats {
        // Relaxed: each is a statistic of its own.
        let sum =
            |count: fn(&Tally) -> &AtomicU64| self.tallies.iter().map(|at| count(at).load(Ordering::Relaxed)).sum();
        let table = self.versions.as_ref().map(Versions::index);
        CacheStats {
            hits: sum(|tally| &tally.hits),
            misses: sum(|tally| &tally.misses),
            evictions: table.map_or(0, Table::evictions),
            bytes: table.map_or(0, Table::bytes),
            entries: table.map_or(0, |table| table.len() as u64),
        }
    }

    fn version_of(&self, block: BlockNumHash) -> Option<Version> {
        self.versions.as_ref()?.version_of(&block)
    }

    /// The record at `key` as of the reader's version, taken out of its value by `take`.
    fn get<V>(&self, reader: Version, key: &Key, take: impl FnOnce(Value) -> Option<V>) -> Option<V> {
        let found = self.versions.as_ref().and_then(|versions| versions.get(reader, key)).and_then(take);
        let tally = &self.tallies[key.spread() % TALLIES];
        // Relaxed: statistics.
        if found.is_some() { &tally.hits } else { &tally.misses }.fetch_add(1, Ordering::Relaxed);
        found
    }

    fn put_all(&self, reader: Version, entries: impl Iterator<Item = (Key, Value)>) {
        if let Some(versions) = &self.versions {
            versions.put_all(reader, entries);
        }
    }
}

/// A record that the table keeps: how it becomes a value of the table, and comes back. A value of another kind than the
/// key's is none at all.
trait Record: Sized {
    fn to_value(&self) -> Value;
    fn from_value(value: Value) -> Option<Self>;
}

impl Record for Option<crate::account::Account> {
    fn to_value(&self) -> Value {
        Value::Account(self.map(Arc::new))
    }

    fn from_value(value: Value) -> Option<Self> {
        let Value::Account(account) = value else { return None };
        Some(account.map(|account| *account))
    }
}

impl Record for U256 {
    fn to_value(&self) -> Value {
        Value::Slot(*self)
    }

    fn from_value(value: Value) -> Option<Self> {
        let Value::Slot(slot) = value else { return None };
        Some(slot)
    }
}

impl Record for Option<Bytes> {
    fn to_value(&self) -> Value {
        Value::Bytes(self.clone())
    }

    fn from_value(value: Value) -> Option<Self> {
        let Value::Bytes(bytes) = value else { return None };
        Some(bytes)
    }
}
