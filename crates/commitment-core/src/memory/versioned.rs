//! A sorted table that remembers a key's older values for as long as a snapshot may ask for them.
//!
//! Invariants:
//! 1. A cell's versions ascend strictly; `older[i]` is what readers see from its version up to the next one's.
//! 2. A cell that holds nothing, now or in the past, is not in the table.
//! 3. A key that has older values after [`Versioned::settle`] stands in `stale` with the version that replaced the newest
//!    of them; `stale` ascends by version.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::RangeBounds,
};

/// Counts the writes of a store, and names the state after each.
pub(super) type Version = u64;

#[derive(Debug)]
struct Cell<V> {
    since: Version,
    value: Option<V>,
    older: Vec<(Version, Option<V>)>,
}

impl<V> Cell<V> {
    fn at(&self, version: Version) -> Option<&V> {
        if self.since <= version {
            return self.value.as_ref();
        }
        let (_, value) = self.older.iter().rev().find(|(since, _)| *since <= version)?;
        value.as_ref()
    }

    /// Forgets every older value for which no version in `live` (ascending) falls into its time.
    fn forget(&mut self, live: &[Version]) {
        let mut until = self.since;
        for at in (0..self.older.len()).rev() {
            let since = self.older[at].0;
            let first = live.partition_point(|version| *version < since);
            if live.get(first).is_none_or(|version| *version >= until) {
                self.older.remove(at);
            }
            until = since;
        }
        if self.older.is_empty() {
            self.older = Vec::new();
        }
    }

    const fn is_nothing(&self) -> bool {
        self.value.is_none() && self.older.is_empty()
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct Versioned<K, V> {
    cells: BTreeMap<K, Cell<V>>,
    stale: VecDeque<(Version, K)>,
}

impl<K, V> Default for Versioned<K, V> {
    fn default() -> Self {
        Self { cells: BTreeMap::new(), stale: VecDeque::new() }
    }
}

impl<K: Ord + Copy, V> Versioned<K, V> {
    /// The value that readers of `version` see.
    pub(super) fn get(&self, key: &K, version: Version) -> Option<&V> {
        self.cells.get(key)?.at(version)
    }

    /// The rows that readers of `version` see, in order.
    pub(super) fn range(&self, range: impl RangeBounds<K>, version: Version) -> impl Iterator<Item = (&K, &V)> {
        self.cells.range(range).filter_map(move |(key, cell)| Some((key, cell.at(version)?)))
    }

    /// Writes a value (or deletes the key) as of `version`, which is newer than every version before. What stood there
    /// stays readable for older versions until [`Self::settle`].
    pub(super) fn put(&mut self, key: K, value: Option<V>, version: Version) {
        match self.cells.get_mut(&key) {
            None if value.is_none() => {}
            None => drop(self.cells.insert(key, Cell { since: version, value, older: Vec::new() })),
            Some(cell) => {
                let replaced = std::mem::replace(&mut cell.value, value);
                cell.older.push((cell.since, replaced));
                cell.since = version;
            }
        }
    }

    /// After the write as of `version` was published: keeps of the key's older values those that a live version still
    /// sees. `live` ascends.
    pub(super) fn settle(&mut self, key: K, version: Version, live: &[Version]) {
        let Some(cell) = self.cells.get_mut(&key) else { return };
        cell.forget(live);
        if cell.is_nothing() {
            self.cells.remove(&key);
        } else if !cell.older.is_empty() {
            self.stale.push_back((version, key));
        }
    }

    /// Drops, of up to `limit` keys, the older values that were replaced at or before `oldest`, the oldest version that
    /// is still read. Gives whether there may be more to drop.
    pub(super) fn collect(&mut self, oldest: Version, live: &[Version], limit: usize) -> bool {
        for _ in 0..limit {
            let Some((_, key)) = self.stale.pop_front_if(|(replaced_at, _)| *replaced_at <= oldest) else {
                return false;
            };
            if let Some(cell) = self.cells.get_mut(&key) {
                cell.forget(live);
                if cell.is_nothing() {
                    self.cells.remove(&key);
                }
            }
        }
        true
    }

    /// How many values are kept for older versions only, and how many cells there are.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> (usize, usize) {
        (self.cells.values().map(|cell| cell.older.len()).sum(), self.cells.len())
    }
}
