//! The warm-up: what a block touches is brought in ahead of whoever needs it, for the block's readers and for the cache.
//!
//! 1. The accounts, then the slots of those that have storage: read or changed, for the executor and the resolution.
//! 2. The rows on the paths of what *changes*, for the fold, from where they leave what is in memory of the block's
//!    tries. All tries go down together, one level of branches at a time,
//!    so that each level is a few batches of reads in the order of their keys. A row's masks tell which children are
//!    branches; where a path leaves the trie, or ends at a leaf, there is no more row.
//! 3. The leaves at which paths of new keys end: new ones come to stand beside them.
//!
//! What a fold reads besides is not foreseen: the neighbour that a removed leaf leaves alone.
//!
//! What becomes known bit by bit is read bit by bit: each part goes down the tries for itself, past what the parts before it
//! have brought in.
//!
//! Invariants:
//! 1. Only reads: a warm-up that stops, fails or never runs changes no result.
//! 2. Between two batches of [`BATCH`] keys it asks whether to stop.
//! 3. Of one block no record is read twice.

use std::ops::Range;

use alloy_primitives::{B256, Bytes};
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles};

use super::{
    Cached,
    cached::{Ahead, Records},
};
use crate::{
    account::Account,
    hashed::WrittenKey,
    node::{NodeKey, TrieId},
    store::{TrieReader, through_batch},
    trie::{
        Version,
        path::Path,
        row::{ChildKind, RowHead},
    },
};

/// How many keys are read at once.
const BATCH: usize = 512;

/// An account that a block touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TouchedAccount {
    /// keccak256 of the address.
    pub hashed_address: B256,
    /// Whether its leaf changes: one of its fields, or one of its slots.
    pub changed: bool,
    /// The slots touched, sorted.
    pub slots: Vec<TouchedSlot>,
}

/// A slot that a block touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TouchedSlot {
    /// keccak256 of the slot.
    pub hashed_slot: B256,
    /// Whether its value changes.
    pub changed: bool,
}

impl TouchedAccount {
    /// What written keys touch: all of it changes.
    pub fn of_written(mut keys: Vec<WrittenKey>) -> Vec<Self> {
        keys.sort_unstable();
        keys.dedup();
        // None of which is empty.
        let of_one = keys.chunk_by(|one, next| one.hashed_address == next.hashed_address);
        let account = |keys: &[WrittenKey]| Self {
            hashed_address: keys[0].hashed_address,
            changed: true,
            slots: keys
                .iter()
                .filter_map(|key| key.hashed_slot)
                .map(|hashed_slot| TouchedSlot { hashed_slot, changed: true })
                .collect(),
        };
        of_one.map(account).collect()
    }
}

/// How a warm-up ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Warmed {
    /// Everything was brought in.
    Whole,
    /// It was told to stop.
    Stopped,
}

impl<R: TrieReader> Cached<R> {
    /// Brings in what a block touches, sorted by hashed address: the records, and the rows on the paths of what changes,
    /// as far as they are not in memory in `tries`: those of the block's parent, or of the nearest ancestor that has
    /// any. It all goes into a table of this reader's own ([`Cached::for_block`]); records into the cache too, and rows
    /// where the tries' forest has no room for what the fold makes of them.
    ///
    /// # Errors
    /// If a read fails. Whoever needs the record will meet the failure again.
    pub fn warm(
        &self,
        touched: &[TouchedAccount],
        tries: Option<&Version>,
        stop: impl Fn() -> bool,
    ) -> Result<Warmed, R::Error> {
        let mut whole = ReadAhead::new(self.clone());
        let warmed = whole.read(touched, tries, stop);
        whole.hand_over();
        warmed
    }
}

/// A warm-up in parts, for a block whose changes become known one after the other. What the parts bring into the cache is
/// there at once; all of it is at hand for the block's readers once it is handed over.
#[derive(Debug)]
pub struct ReadAhead<R> {
    reader: Cached<R>,
    /// The records of the parts so far, put together where they are small.
    parts: Vec<Records>,
    /// The rest of what they brought in.
    ahead: Ahead,
}

impl<R: TrieReader> ReadAhead<R> {
    /// For one block's readers ([`Cached::for_block`]): those that share the table of this one.
    pub fn new(reader: Cached<R>) -> Self {
        Self { reader, parts: Vec::new(), ahead: Ahead::default() }
    }

    /// Brings in a part, as [`Cached::warm`] does.
    ///
    /// # Errors
    /// If a read fails. Whoever needs the record will meet the failure again.
    pub fn read(
        &mut self,
        touched: &[TouchedAccount],
        tries: Option<&Version>,
        stop: impl Fn() -> bool,
    ) -> Result<Warmed, R::Error> {
        let slots = touched.iter().map(|account| account.slots.len()).sum();
        self.ahead.records = Records::with_capacity(touched.len(), slots);
        let warmed = self.reader.bring_in(touched, tries, &stop, &self.parts, &mut self.ahead);
        self.parts.push(std::mem::take(&mut self.ahead.records));
        // Each is at least twice as large as the next, so that of however many parts few are looked through.
        while let [.., before, last] = &self.parts[..]
            && before.len() < 2 * last.len()
        {
            let merged = Records::merged(self.parts.split_off(self.parts.len() - 2));
            self.parts.push(merged);
        }
        warmed
    }

    /// Puts what was brought in at the hand of the block's readers.
    pub fn hand_over(self) {
        let ahead = Ahead { records: Records::merged(self.parts), ..self.ahead };
        // A block is warmed up once; a second time would change nothing.
        let _first = self.reader.ahead.set(ahead);
    }
}

impl<R: TrieReader> Cached<R> {
    fn bring_in(
        &self,
        touched: &[TouchedAccount],
        tries: Option<&Version>,
        stop: &impl Fn() -> bool,
        earlier: &[Records],
        ahead: &mut Ahead,
    ) -> Result<Warmed, R::Error> {
        let known_account = |key: &B256| earlier.iter().find_map(|part| part.account(key));
        let known_slot = |(address, slot): &(B256, B256)| earlier.iter().find_map(|part| part.slot(address, slot));
        let mut walk = Walk::default();
        for touched in touched.chunks(BATCH) {
            if stop() {
                return Ok(Warmed::Stopped);
            }
            let keys: Vec<_> = touched.iter().map(|account| account.hashed_address).collect();
            let accounts = through_batch(&keys, known_account, |keys| self.accounts(keys))?;
            let listed = touched.iter().zip(&accounts).filter(|(_, account)| has_storage(account.as_ref()));
            let slots = listed
                .flat_map(|(touched, _)| touched.slots.iter().map(|slot| (touched.hashed_address, slot.hashed_slot)));
            let slots: Vec<_> = slots.collect();
            let mut values = Vec::with_capacity(slots.len());
            let mut read_slots = || {
                for slots in slots.chunks(BATCH) {
                    if stop() {
                        return Ok(Warmed::Stopped);
                    }
                    values.append(&mut through_batch(slots, known_slot, |keys| self.slots(keys))?);
                }
                Ok(Warmed::Whole)
            };
            let warmed = read_slots();
            // However far that got, what was read stays.
            let mut values = values.into_iter();
            for (touched, account) in touched.iter().zip(accounts) {
                walk.add(touched, account.as_ref());
                let read = if has_storage(account.as_ref()) { touched.slots.as_slice() } else { &[] };
                let slots = read.iter().map(|slot| slot.hashed_slot).zip(&mut values);
                ahead.records.add(touched.hashed_address, account, slots);
            }
            if warmed? == Warmed::Stopped {
                return Ok(Warmed::Stopped);
            }
        }
        walk.run(self, tries, stop, ahead)
    }
}

fn has_storage(account: Option<&Account>) -> bool {
    account.is_some_and(|account| account.storage_root != EMPTY_ROOT_HASH)
}

/// A branch that is perhaps there, and the changed keys that lead through it.
struct Front {
    key: NodeKey,
    /// In the walk's keys of the trie.
    keys: Range<usize>,
}

/// The way down the tries along the changed keys.
#[derive(Default)]
struct Walk {
    accounts: Vec<B256>,
    /// The slots of all storage tries, one trie's behind the other's.
    slots: Vec<B256>,
    /// The storage tries, in order.
    storage: Vec<Front>,
    /// The first keys below the slots where new leaves meet one that is there.
    met: Vec<(TrieId, B256)>,
}

impl Walk {
    fn add(&mut self, touched: &TouchedAccount, account: Option<&Account>) {
        if !touched.changed {
            return;
        }
        self.accounts.push(touched.hashed_address);
        if has_storage(account) {
            let begin = self.slots.len();
            self.slots.extend(touched.slots.iter().filter(|slot| slot.changed).map(|slot| slot.hashed_slot));
            let keys = begin..self.slots.len();
            if !keys.is_empty() {
                let key = NodeKey::new(TrieId::Storage(touched.hashed_address), Nibbles::new());
                self.storage.push(Front { key, keys });
            }
        }
    }

    fn run<R: TrieReader>(
        mut self,
        reader: &Cached<R>,
        tries: Option<&Version>,
        stop: &impl Fn() -> bool,
        ahead: &mut Ahead,
    ) -> Result<Warmed, R::Error> {
        let mut tops = Vec::with_capacity(1 + self.storage.len());
        if !self.accounts.is_empty() {
            tops.push(Front { key: NodeKey::new(TrieId::Accounts, Nibbles::new()), keys: 0..self.accounts.len() });
        }
        tops.append(&mut self.storage);
        if let Some(tries) = tries {
            tries.forest().reserve(self.accounts.len() + self.slots.len());
        }
        let kept_by_fold = tries.is_some_and(|tries| tries.forest().has_room());
        let mut level = match tries {
            Some(tries) => {
                let mut level = Vec::new();
                tops.iter().for_each(|top| self.below_memory(tries, top, ahead, &mut level));
                level
            }
            None => tops,
        };
        if !level.is_empty() {
            // About one row for each key lies below what is in memory.
            ahead.rows.reserve(self.accounts.len() + self.slots.len());
        }
        while !level.is_empty() {
            let mut below = Vec::new();
            for fronts in level.chunks(BATCH) {
                if stop() {
                    return Ok(Warmed::Stopped);
                }
                let keys: Vec<_> = fronts.iter().map(|front| front.key).collect();
                let brought = |key: &NodeKey| ahead.rows.get(key).cloned();
                let rows = through_batch(&keys, brought, |keys| {
                    let rows = if kept_by_fold { reader.rows_for_fold(keys) } else { reader.nodes(keys) };
                    rows.map(side_by_side)
                })?;
                for (front, row) in fronts.iter().zip(rows) {
                    // A row that is malformed ends the path here. The fold will say so.
                    let head = row.as_ref().and_then(|row| RowHead::decode(row, front.key.path.len()).ok());
                    let sole = row.is_none() && front.key.path.is_empty();
                    ahead.rows.insert(front.key, row);
                    if let Some(head) = head {
                        self.descend(front, &head, ahead, &mut below);
                    } else if sole {
                        self.meet(front.key.trie, &Path::default(), front.keys.clone(), ahead);
                    }
                }
            }
            level = below;
        }
        self.bring_met(reader, stop, ahead)
    }

    /// Reads the leaves beside which new ones come to stand.
    fn bring_met<R: TrieReader>(
        mut self,
        reader: &Cached<R>,
        stop: &impl Fn() -> bool,
        ahead: &mut Ahead,
    ) -> Result<Warmed, R::Error> {
        self.met.sort_unstable();
        for met in self.met.chunks(BATCH) {
            if stop() {
                return Ok(Warmed::Stopped);
            }
            for (trie, start) in met {
                match trie {
                    TrieId::Accounts if ahead.first_accounts.contains_key(start) => {}
                    TrieId::Storage(of) if ahead.first_slots.contains_key(&(*of, *start)) => {}
                    TrieId::Accounts => {
                        let leaf = reader.snapshot().accounts_from(start, 1)?.pop();
                        ahead.first_accounts.insert(*start, leaf);
                    }
                    TrieId::Storage(hashed_address) => {
                        let leaf = reader.snapshot().slots_from(hashed_address, start, 1)?.pop();
                        ahead.first_slots.insert((*hashed_address, *start), leaf);
                    }
                }
            }
        }
        Ok(Warmed::Whole)
    }

    /// Adds where the keys of a trie lead out of what is in memory.
    fn below_memory(&mut self, tries: &Version, top: &Front, ahead: &Ahead, level: &mut Vec<Front>) {
        let trie = top.key.trie;
        let frontier = tries.frontier(&trie, &self.keys(trie)[top.keys.clone()]);
        let range = |range: Range<usize>| top.keys.start + range.start..top.keys.start + range.end;
        for (slot, keys) in frontier.leaves {
            self.meet(trie, &slot, range(keys), ahead);
        }
        let front = |(slot, keys): (Path, _)| Front { key: NodeKey::new(trie, slot.to_nibbles()), keys: range(keys) };
        level.extend(frontier.rows.into_iter().map(front));
    }

    /// Notes a slot that holds a leaf, if one of the keys that lead there is new.
    fn meet(&mut self, trie: TrieId, slot: &Path, keys: Range<usize>, ahead: &Ahead) {
        let is_new = |key: &B256| match &trie {
            TrieId::Accounts => matches!(ahead.records.account(key), Some(None)),
            TrieId::Storage(hashed_address) => {
                ahead.records.slot(hashed_address, key).is_some_and(|value| value.is_zero())
            }
        };
        if self.keys(trie)[keys].iter().any(|key| slot.covers(key) && is_new(key)) {
            self.met.push((trie, *slot.first_key()));
        }
    }

    fn keys(&self, trie: TrieId) -> &[B256] {
        match trie {
            TrieId::Accounts => &self.accounts,
            TrieId::Storage(_) => &self.slots,
        }
    }

    /// Adds the branches below a branch to which the front's keys lead on.
    fn descend(&mut self, front: &Front, head: &RowHead, ahead: &Ahead, below: &mut Vec<Front>) {
        let all = self.keys(front.key.trie);
        let mut leaves = Vec::new();
        let path = front.key.path.join(&head.extension);
        // Sorted keys with a common beginning lie side by side, and so do those of one child.
        let keys = &all[front.keys.clone()];
        let begin = front.keys.start + keys.partition_point(|key| common(key, &path).is_lt());
        let end = front.keys.start + keys.partition_point(|key| common(key, &path).is_le());
        let mut at = begin;
        while at < end {
            let nibble = nibble(&all[at], path.len());
            let next = at + all[at..end].partition_point(|key| self::nibble(key, path.len()) <= nibble);
            let mut child = path;
            child.push(nibble);
            match head.masks.kind(nibble) {
                ChildKind::Branch => below.push(Front { key: NodeKey::new(front.key.trie, child), keys: at..next }),
                ChildKind::Leaf => leaves.push((Path::of(&all[at], child.len()), at..next)),
                ChildKind::Empty | ChildKind::Opaque => {}
            }
            at = next;
        }
        for (slot, keys) in leaves {
            self.meet(front.key.trie, &slot, keys, ahead);
        }
    }
}

/// Copies rows into one piece of memory, in which the fold will come by them in the same order.
fn side_by_side(mut rows: Vec<Option<Bytes>>) -> Vec<Option<Bytes>> {
    let mut all = Vec::with_capacity(rows.iter().flatten().map(|row| row.len()).sum());
    rows.iter().flatten().for_each(|row| all.extend_from_slice(row));
    let all = Bytes::from(all);
    let mut at = 0;
    for row in rows.iter_mut().flatten() {
        let end = at + row.len();
        *row = all.slice(at..end);
        at = end;
    }
    rows
}

/// A nibble of a key, of which there are 64; a branch lies above the last one.
fn nibble(key: &B256, at: usize) -> u8 {
    let byte = key[at / 2];
    if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 }
}

/// How a key's beginning compares with a path.
fn common(key: &B256, path: &Nibbles) -> std::cmp::Ordering {
    (0..path.len()).map(|at| nibble(key, at)).cmp(path.iter())
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Arc};

    use alloy_primitives::keccak256;

    use super::*;
    use crate::{BlockNumHash, MemoryStore, PageCache, TrieStore, trie::bulk::StateLoad};

    #[test]
    fn of_many_parts_few_are_looked_through() {
        let store = MemoryStore::new();
        let nothing = std::iter::empty::<Result<_, Infallible>>();
        store.load(StateLoad::new(nothing, BlockNumHash::new(0, B256::ZERO))).unwrap();
        let mut ahead = ReadAhead::new(Cached::new(store.snapshot().unwrap(), Arc::new(PageCache::new(0))));
        let key = |at: u64| keccak256(at.to_be_bytes());
        for at in 0..2000 {
            // Parts of one to five accounts, most of which are in others too.
            let keys = (at..=at + at % 5).map(|at| WrittenKey { hashed_address: key(at), hashed_slot: None });
            ahead.read(&TouchedAccount::of_written(keys.collect()), None, || false).unwrap();
            assert!(ahead.parts.len() < 13, "{} parts after {at}", ahead.parts.len());
        }
        assert!((0..2000).all(|at| ahead.parts.iter().any(|part| part.account(&key(at)) == Some(None))));
        let reader = ahead.reader.clone();
        ahead.hand_over();
        let records = &reader.ahead.get().unwrap().records;
        assert!((0..2000).all(|at| records.account(&key(at)) == Some(None)) && records.account(&key(3000)).is_none());
    }
}
