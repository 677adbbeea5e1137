//! One trie alone: small key spaces searched with proptest, and what a fold reads.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex},
};

use alloy_primitives::{B256, Bytes, U256};
use foldgate_core::{
    EMPTY_ROOT_HASH, FoldOptions, Nibbles, TrieId,
    trie::{
        LeafValue,
        single::{LeafChange, TrieFold, TrieSource, fold_trie},
        storage_root, trie_root,
    },
};
use foldgate_testing::oracle;
use proptest::prelude::*;

/// A trie in maps, which counts what is read of it.
#[derive(Debug, Clone)]
pub(crate) struct MapTrie<V> {
    pub(crate) root: B256,
    pub(crate) leaves: BTreeMap<B256, V>,
    pub(crate) rows: BTreeMap<Nibbles, Bytes>,
    pub(crate) reads: Arc<Mutex<Reads>>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reads {
    pub(crate) rows: Vec<Nibbles>,
    pub(crate) leaves: usize,
}

impl<V> Default for MapTrie<V> {
    fn default() -> Self {
        Self { root: EMPTY_ROOT_HASH, leaves: BTreeMap::new(), rows: BTreeMap::new(), reads: Arc::default() }
    }
}

impl<V: LeafValue> TrieSource for MapTrie<V> {
    type Value = V;
    type Error = Infallible;

    fn trie(&self) -> TrieId {
        TrieId::Accounts
    }

    fn row(&self, slot: &Nibbles) -> Result<Option<Bytes>, Infallible> {
        self.reads.lock().unwrap().rows.push(*slot);
        Ok(self.rows.get(slot).cloned())
    }

    fn first_leaf(&self, start: &B256) -> Result<Option<(B256, V)>, Infallible> {
        self.reads.lock().unwrap().leaves += 1;
        Ok(self.leaves.range(*start..).next().map(|(key, value)| (*key, value.clone())))
    }
}

impl<V: LeafValue + PartialEq> MapTrie<V> {
    /// Folds a batch in every setting, takes it over, and gives the result.
    pub(crate) fn apply(&mut self, batch: impl IntoIterator<Item = (B256, Option<V>)>) -> TrieFold {
        let batch: BTreeMap<_, _> = batch.into_iter().collect();
        let changes: Vec<_> = batch
            .iter()
            .map(|(key, new)| LeafChange { key: *key, existed: self.leaves.contains_key(key), new: new.clone() })
            .filter(|change| self.leaves.get(&change.key) != change.new.as_ref())
            .collect();
        let mut folds = [FoldOptions::FORCED_PARALLEL, FoldOptions::default(), FoldOptions::SERIAL].map(|options| {
            *self.reads.lock().unwrap() = Reads::default();
            fold_trie(self, self.root, &changes, &options).unwrap()
        });
        assert!(folds.iter().all(|fold| *fold == folds[0]), "threads change nothing");
        let fold = std::mem::replace(&mut folds[0], TrieFold { root: B256::ZERO, rows: Vec::new() });
        assert!(fold.rows.is_sorted_by(|a, b| a.0 < b.0));
        for (slot, row) in &fold.rows {
            let before = match row {
                Some(row) => self.rows.insert(*slot, row.clone()),
                None => self.rows.remove(slot),
            };
            assert_ne!(before, *row, "no row is listed that stays as it was");
        }
        for (key, new) in batch {
            match new {
                Some(value) => drop(self.leaves.insert(key, value)),
                None => drop(self.leaves.remove(&key)),
            }
        }
        self.root = fold.root;
        let read = &self.reads.lock().unwrap().rows;
        assert_eq!(read.iter().collect::<BTreeSet<_>>().len(), read.len(), "no row is read twice");
        fold
    }

    /// Checks root and rows against the oracle and a trie folded at once from nothing.
    pub(crate) fn check(&self) {
        let bytes = |value: &V| {
            let mut out = Vec::new();
            value.write(&mut out);
            out
        };
        let plain = self.leaves.iter().map(|(key, value)| (key.to_vec(), bytes(value))).collect();
        assert_eq!(self.root, oracle::trie_root(&plain));
        assert_eq!(Some(self.root), trie_root(self.leaves.clone()));
        let mut fresh = Self::default();
        fresh.apply(self.leaves.iter().map(|(key, value)| (*key, Some(value.clone()))));
        assert_eq!((fresh.root, &fresh.rows), (self.root, &self.rows), "rows do not depend on history");
    }
}

type Batch = Vec<(B256, Option<U256>)>;

fn run(history: Vec<Batch>) {
    let mut trie = MapTrie::<U256>::default();
    for batch in history {
        trie.apply(batch);
        trie.check();
    }
}

/// Zero nibbles but for the last two: sixteen keys under one another in one byte.
fn last_two() -> impl Strategy<Value = B256> {
    let letter = prop::sample::select(vec![0u8, 1, 14, 15]);
    (letter.clone(), letter).prop_map(|(high, low)| B256::with_last_byte(high << 4 | low))
}

/// Four letters at four places that lie far apart.
fn four_letters() -> impl Strategy<Value = B256> {
    let letter = || prop::sample::select(vec![0u8, 1, 2, 15]);
    (letter(), letter(), letter(), letter()).prop_map(|(a, b, c, d)| {
        let mut key = B256::ZERO;
        (key[0], key[1], key[20], key[31]) = (a << 4, b, c, d);
        key
    })
}

/// Removals, tiny values (inlined nodes) and long ones.
fn value() -> impl Strategy<Value = Option<U256>> {
    prop_oneof![
        3 => Just(None),
        3 => (1u8..130).prop_map(|small| Some(U256::from(small))),
        1 => (1u128..u128::MAX).prop_map(|long| Some(U256::from(long) << 100)),
    ]
}

fn history(key: impl Strategy<Value = B256>) -> impl Strategy<Value = Vec<Batch>> {
    prop::collection::vec(prop::collection::vec((key, value()), 0..12), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn keys_that_differ_in_the_last_two_nibbles(history in history(last_two())) {
        run(history);
    }

    #[test]
    fn keys_over_a_four_letter_alphabet(history in history(four_letters())) {
        run(history);
    }
}

/// The 2-leaf branch at depth 63 takes 22 bytes, the extension above it 24 and more: both lie in their parents.
#[test]
fn branches_and_extensions_are_inlined() {
    let mut trie = MapTrie::<U256>::default();
    let key = |byte: u8, last: u8| {
        let mut key = B256::repeat_byte(0x11);
        (key[28], key[31]) = (byte, last);
        key
    };
    let leaf = |byte, last| (key(byte, last), Some(U256::from(last + 1)));
    // Two extensions of five nibbles (28 bytes with their branches), side by side below one branch.
    trie.apply([leaf(0x10, 0x20), leaf(0x10, 0x21), leaf(0x11, 0x20), leaf(0x11, 0x2f)]);
    trie.check();
    assert_eq!(trie.rows.len(), 3);
    let root_row = &trie.rows[&Nibbles::new()];
    assert!(!root_row.contains(&0xa0), "no hash is in this row: {root_row}");
    // One of them loses its branch, then the whole side goes.
    trie.apply([(key(0x10, 0x20), None)]);
    trie.check();
    trie.apply([(key(0x10, 0x21), None)]);
    trie.check();
    assert_eq!(trie.rows.len(), 1);
    trie.apply([(key(0x11, 0x20), None)]);
    trie.check();
    assert!(trie.rows.is_empty(), "a trie of one leaf has no row");
    trie.apply([(key(0x11, 0x2f), None)]);
    assert_eq!(trie.root, EMPTY_ROOT_HASH);
}

/// A branch collapses at each depth, with a leaf, a branch and a branch behind an extension as the one that is left.
#[test]
fn branches_collapse_at_every_depth() {
    for depth in 0..64usize {
        let with = |changes: &[(usize, u8)]| {
            let mut nibbles = [7u8; 64];
            changes.iter().for_each(|(at, nibble)| nibbles[*at] = *nibble);
            B256::from_slice(&Nibbles::from_nibbles(nibbles).pack())
        };
        let gone = with(&[(depth, 3)]);
        let mut left = vec![vec![with(&[])]];
        if depth < 63 {
            left.push(vec![with(&[]), with(&[(depth + 1, 1)])]);
            left.push(vec![with(&[]), with(&[(63, 1)])]);
        }
        for stays in left {
            let mut trie = MapTrie::<U256>::default();
            trie.apply(stays.iter().chain([&gone]).map(|key| (*key, Some(U256::from(5)))));
            trie.check();
            let grown = trie.rows.clone();
            trie.apply([(gone, None)]);
            trie.check();
            let reads = std::mem::take(&mut *trie.reads.lock().unwrap());
            assert!(reads.leaves <= 1 && reads.rows.len() <= 3, "{reads:?}");
            trie.apply([(gone, Some(U256::from(5)))]);
            trie.check();
            assert_eq!(trie.rows, grown);
        }
    }
}

/// An update reads the rows on its path, and no leaf.
#[test]
fn only_the_paths_of_changed_leaves_are_read() {
    let mut trie = MapTrie::<U256>::default();
    let keys: Vec<_> = (0..4096u32).map(|i| alloy_primitives::keccak256(i.to_be_bytes())).collect();
    trie.apply(keys.iter().map(|key| (*key, Some(U256::from(1)))));
    *trie.reads.lock().unwrap() = Reads::default();
    let fold = trie.apply([(keys[17], Some(U256::from(2)))]);
    let reads = trie.reads.lock().unwrap();
    assert_eq!(reads.leaves, 0);
    assert_eq!(reads.rows.len(), fold.rows.len(), "each row that was read changed");
    assert!(reads.rows.iter().all(|slot| Nibbles::unpack(keys[17]).starts_with(slot)));
}

#[test]
fn roots_of_sorted_leaves() {
    assert_eq!(storage_root([]), Some(EMPTY_ROOT_HASH));
    let (a, b) = (B256::with_last_byte(1), B256::with_last_byte(2));
    let one = U256::from(1);
    assert!(storage_root([(a, one), (b, one)]).is_some());
    assert_eq!(storage_root([(b, one), (a, one)]), None);
    assert_eq!(storage_root([(a, one), (a, one)]), None);
    assert_eq!(storage_root([(a, U256::ZERO)]), None);
}
