//! The entries of the cache: one table for all kinds of records, under one byte budget.
//!
//! The table is `quick_cache`'s: sharded, each shard a CLOCK-Pro over a hot and a cold ring with ghosts, so that one pass
//! over many keys drives out no entry that is read again and again. A shard's lock is held for one probe.
//!
//! # What an entry costs
//!
//! Its place in the shard's slab (key, value, links), and that of a ghost now and then, in a vector that grows by
//! doubling; four bytes and a control byte in a hash table that is half to seven eighths full; and what its value keeps
//! on the heap: the bytes of a row or of a code with their two allocations, an account with its counters. [`weight`]
//! adds this up with the vectors taken as two thirds full. A test compares it with what the table says it uses.
//!
//! Invariants:
//! 1. The sum of the weights is at most the budget, but for pinned entries, which take at most a quarter of it.
//! 2. A value owns its bytes: it keeps no larger buffer alive than it was charged for.

use std::{
    mem::size_of,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use alloy_primitives::{B256, Bytes, U256, map::DefaultHashBuilder};
use quick_cache::{Lifecycle, OptionsBuilder, Weighter, sync::Cache};

use super::versions::{Dated, Index};
use crate::{
    account::Account,
    node::{NodeKey, TrieId},
};

/// Which kind of record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Account,
    Slot,
    AccountRow,
    StorageRow,
    Code,
}

/// The name of a record, as small as can be: most entries are small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    kind: Kind,
    /// Of a row: how many nibbles its path has.
    depth: u8,
    /// The hashed address, or the code's hash; zero for a row of the account trie.
    owner: [u8; 32],
    /// The hashed slot, or the path of a row, two nibbles to a byte.
    rest: [u8; 32],
}

impl Key {
    const fn new(kind: Kind, owner: B256, rest: B256) -> Self {
        Self { kind, depth: 0, owner: owner.0, rest: rest.0 }
    }

    pub(super) const fn account(hashed_address: &B256) -> Self {
        Self::new(Kind::Account, *hashed_address, B256::ZERO)
    }

    pub(super) const fn slot(hashed_address: &B256, hashed_slot: &B256) -> Self {
        Self::new(Kind::Slot, *hashed_address, *hashed_slot)
    }

    pub(super) const fn code(code_hash: &B256) -> Self {
        Self::new(Kind::Code, *code_hash, B256::ZERO)
    }

    pub(super) fn row(key: &NodeKey) -> Self {
        let (kind, owner) = match key.trie {
            TrieId::Accounts => (Kind::AccountRow, B256::ZERO),
            TrieId::Storage(hashed_address) => (Kind::StorageRow, hashed_address),
        };
        let mut row = Self::new(kind, owner, B256::ZERO);
        let packed = key.path.pack();
        row.rest[..packed.len()].copy_from_slice(&packed);
        // A path has 64 nibbles at most.
        row.depth = key.path.len() as u8;
        row
    }

    /// A byte that spreads keys evenly enough for counters.
    pub(super) const fn spread(&self) -> usize {
        (self.owner[9] ^ self.rest[0] ^ self.rest[1]) as usize
    }
}

/// A record.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Account(Option<Arc<Account>>),
    Slot(U256),
    /// A row or a code.
    Bytes(Option<Bytes>),
}

/// The table's own bytes for an entry: key, value, state and links, in vectors two thirds full.
const PLACE: u64 = ((size_of::<Key>() + size_of::<Dated<Value>>() + 24) * 3 / 2 + 8) as u64;
/// What an allocator adds to an allocation, rounding included.
const ALLOCATION: u64 = 16;
/// What `Bytes` allocates beside its bytes once it is shared.
const SHARED_BYTES: u64 = 24 + ALLOCATION;

/// What an entry costs, in bytes.
fn weight(value: &Value) -> u64 {
    PLACE
        + match value {
            Value::Account(Some(_)) => size_of::<Account>() as u64 + 16 + ALLOCATION,
            Value::Bytes(Some(bytes)) => bytes.len() as u64 + ALLOCATION + SHARED_BYTES,
            Value::Account(None) | Value::Slot(_) | Value::Bytes(None) => 0,
        }
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<Key, Dated<Value>> for ByBytes {
    fn weight(&self, _: &Key, entry: &Dated<Value>) -> u64 {
        weight(&entry.value)
    }
}

/// Pins the top of the account trie, which every block reads, and counts what is driven out.
#[derive(Debug, Clone)]
struct Policy {
    /// Rows of the account trie up to this depth are never driven out.
    pinned_depth: Option<u8>,
}

impl Policy {
    /// What a full row costs: sixteen references.
    const FULL_ROW: u64 = PLACE + 533 + ALLOCATION + SHARED_BYTES;
    /// Deeper, a row is worth no more than another: it is read by few keys.
    const MAX_PINNED_DEPTH: u8 = 4;

    /// The deepest level for which all rows down to it fit in a quarter of the budget.
    fn within(budget: u64) -> Self {
        let rows_down_to = |depth: u8| ((1_u64 << (4 * (depth + 1))) - 1) / 15;
        let fits = |depth: &u8| rows_down_to(*depth).saturating_mul(Self::FULL_ROW) <= budget / 4;
        Self { pinned_depth: (0..=Self::MAX_PINNED_DEPTH).rev().find(fits) }
    }
}

impl Lifecycle<Key, Dated<Value>> for Policy {
    /// How many entries were driven out or replaced.
    type RequestState = u64;

    fn is_pinned(&self, key: &Key, _: &Dated<Value>) -> bool {
        key.kind == Kind::AccountRow && self.pinned_depth.is_some_and(|depth| key.depth <= depth)
    }

    fn on_evict(&self, count: &mut u64, _: Key, _: Dated<Value>) {
        *count += 1;
    }
}

/// The table. See the file's documentation.
#[derive(Debug)]
pub(super) struct Table {
    entries: Cache<Key, Dated<Value>, ByBytes, DefaultHashBuilder, Policy>,
    /// A statistic.
    evictions: AtomicU64,
}

impl Table {
    const SHARDS: usize = 32;
    /// What an average entry is taken to cost where the number of entries has to be guessed.
    const AVERAGE: u64 = 512;

    /// A table of so many bytes, of which there must be some.
    pub(super) fn new(budget: u64) -> Option<Self> {
        let items = usize::try_from(budget / Self::AVERAGE).unwrap_or(usize::MAX);
        let mut options = OptionsBuilder::new();
        options.shards(Self::SHARDS).weight_capacity(budget).estimated_items_capacity(items).ghost_allocation(0.25);
        let options = options.build().ok().filter(|_| budget > 0)?;
        let entries = Cache::with_options(options, ByBytes, DefaultHashBuilder::default(), Policy::within(budget));
        Some(Self { entries, evictions: AtomicU64::new(0) })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.entries.weight()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn evictions(&self) -> u64 {
        // Relaxed: a statistic of its own.
        self.evictions.load(Ordering::Relaxed)
    }

    fn count(&self, evictions: u64) {
        if evictions > 0 {
            self.evictions.fetch_add(evictions, Ordering::Relaxed);
        }
    }
}

impl Index for Table {
    type Key = Key;
    type Value = Value;

    fn get(&self, key: &Key) -> Option<Dated<Value>> {
        self.entries.get(key)
    }

    fn holds(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    fn put(&self, key: Key, entry: Dated<Value>) {
        let mut evicted = 0;
        self.entries.insert_with_lifecycle(key, entry, &mut evicted);
        self.count(evicted);
    }

    fn replace(&self, key: Key, entry: Dated<Value>) {
        let mut evicted = 0;
        // What is not cached stays so; what has outgrown its shard is removed.
        let replaced = self.entries.replace_with_lifecycle(key, entry, true, &mut evicted).is_ok();
        self.count(evicted - u64::from(replaced).min(evicted));
    }

    fn clear(&self) {
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::keccak256;
    use alloy_trie::Nibbles;

    use super::*;
    use crate::cache::versions::Versions;

    fn rows(range: std::ops::Range<u64>, length: usize) -> impl Iterator<Item = (Key, Value)> {
        range.map(move |at| {
            let key = NodeKey::new(TrieId::Storage(B256::ZERO), Nibbles::unpack(keccak256(at.to_be_bytes())));
            (Key::row(&key), Value::Bytes(Some(vec![1; length].into())))
        })
    }

    fn table(budget: u64) -> Versions<u8, Table> {
        let table = Versions::new(Table::new(budget).unwrap());
        table.reset(0);
        table
    }

    #[test]
    fn the_estimate_is_near_what_the_table_uses() {
        for (count, budget) in [(20_000, 1 << 30), (100_000, 4 << 20), (60_000, 16 << 20)] {
            for length in [0, 100, 533] {
                let table = table(budget);
                table.put_all(table.version_of(&0).unwrap(), rows(0..count, length));
                let index = table.index();
                let heap = index.len() as u64 * (length as u64 + ALLOCATION + SHARED_BYTES);
                let used = index.entries.memory_used().total() as u64 + heap;
                let (estimate, ratio) = (index.bytes(), used as f64 / index.bytes() as f64);
                println!("{count} rows of {length}: estimate {estimate}, used {used}: {ratio:.2}");
                assert!((0.6..1.35).contains(&ratio), "{count} rows of {length}: {used} is not near {estimate}");
                assert!(estimate <= budget);
            }
        }
    }

    #[test]
    fn the_budget_holds_and_hot_entries_outlive_a_scan() {
        let table = table(1 << 20);
        let version = table.version_of(&0).unwrap();
        table.put_all(version, rows(0..200, 100));
        for round in 0..20 {
            assert_eq!(rows(0..200, 100).filter(|(key, _)| table.get(version, key).is_some()).count(), 200, "{round}");
            let base = 1_000 + round * 1_000;
            table.put_all(version, rows(base..base + 1_000, 100));
            assert!(table.index().bytes() <= 1 << 20);
        }
        assert!(table.index().evictions() > 10_000);
    }

    #[test]
    fn the_top_of_the_account_trie_is_never_driven_out() {
        for (budget, depth) in [(256 << 20, Some(4)), (32 << 20, Some(3)), (2 << 20, Some(2)), (2_000, None)] {
            assert_eq!(Policy::within(budget).pinned_depth, depth, "{budget}");
        }
        let table = table(2 << 20);
        let version = table.version_of(&0).unwrap();
        let top = |nibbles: [u8; 2]| Key::row(&NodeKey::new(TrieId::Accounts, Nibbles::from_nibbles(nibbles)));
        let pinned = |at: u8| (top([at >> 4, at & 15]), Value::Bytes(Some(vec![0; 533].into())));
        table.put_all(version, (0..=255).map(pinned));
        table.put_all(version, rows(0..50_000, 533));
        assert!((0..=255).all(|at| table.get(version, &pinned(at).0).is_some()));
        assert!(table.index().bytes() <= 2 << 20);
    }

    #[test]
    fn names_are_kept_apart() {
        let (zero, one) = (B256::ZERO, B256::with_last_byte(1));
        let path = |nibbles: &[u8]| Nibbles::from_nibbles(nibbles);
        let keys = [
            Key::account(&zero),
            Key::account(&one),
            Key::code(&zero),
            Key::slot(&zero, &zero),
            Key::slot(&zero, &one),
            Key::slot(&one, &zero),
            Key::row(&NodeKey::new(TrieId::Accounts, path(&[]))),
            Key::row(&NodeKey::new(TrieId::Accounts, path(&[0]))),
            Key::row(&NodeKey::new(TrieId::Accounts, path(&[0, 0]))),
            Key::row(&NodeKey::new(TrieId::Accounts, Nibbles::unpack(zero))),
            Key::row(&NodeKey::new(TrieId::Storage(zero), path(&[]))),
            Key::row(&NodeKey::new(TrieId::Storage(one), path(&[0]))),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert_eq!(keys.iter().position(|other| other == key), Some(at));
        }
    }
}
