//! Rows and leaves that contradict each other give typed errors, never a panic.

use alloy_primitives::{B256, Bytes, U256, keccak256};
use foldgate_core::{
    AccountInfo, EMPTY_ROOT_HASH, FoldError, FoldOptions, LeafChanges, MemoryStore, SlotChange, TrieStore,
    diff::AccountLeafChange,
    fold,
    trie::{
        Corruption,
        single::{LeafChange, fold_trie},
    },
};

use crate::{
    model::{Model, block, load},
    single::MapTrie,
};

fn key(i: u32) -> B256 {
    keccak256(i.to_be_bytes())
}

fn sample() -> MapTrie<U256> {
    let mut trie = MapTrie::default();
    trie.apply((0..300).map(|i| (key(i), Some(U256::from(i + 1)))));
    trie
}

fn changes(changes: impl IntoIterator<Item = (B256, bool, Option<u32>)>) -> Vec<LeafChange<U256>> {
    let mut changes: Vec<_> =
        changes.into_iter().map(|(key, existed, new)| LeafChange { key, existed, new: new.map(U256::from) }).collect();
    changes.sort_by_key(|change| change.key);
    changes
}

fn corruption(trie: &MapTrie<U256>, list: &[LeafChange<U256>]) -> Option<Corruption> {
    match fold_trie(trie, trie.root, list, &FoldOptions::SERIAL) {
        Err(FoldError::Corrupt { what, .. }) => Some(what),
        Err(other) => panic!("{other}"),
        Ok(_) => None,
    }
}

#[test]
fn damaged_rows() {
    let trie = sample();
    let update = changes((0..300).map(|i| (key(i), true, Some(7))));
    assert_eq!(corruption(&trie, &update), None);
    for (slot, row) in &trie.rows {
        let mut without = trie.clone();
        without.rows.remove(slot);
        assert!(corruption(&without, &update).is_some(), "without the row at {slot:?}");
        for cut in [0, 1, 5, row.len() / 2, row.len() - 1] {
            let mut cut_short = trie.clone();
            cut_short.rows.insert(*slot, row.slice(..cut));
            let got = corruption(&cut_short, &update);
            assert!(matches!(got, Some(Corruption::MalformedRow(_))), "cut to {cut} at {slot:?}: {got:?}");
        }
    }
    // Any byte of any row: an error, or a fold that never looks at it.
    for (slot, row) in trie.rows.iter().take(12) {
        for at in 0..row.len() {
            for bit in 0..8 {
                let mut bytes = row.to_vec();
                bytes[at] ^= 1 << bit;
                let mut flipped = trie.clone();
                flipped.rows.insert(*slot, Bytes::from(bytes));
                corruption(&flipped, &update);
                corruption(&flipped, &changes([(key(1000), false, Some(1)), (key(3), true, None)]));
            }
        }
    }
}

#[test]
fn the_root_row_is_held_to_the_state_root() {
    let mut trie = sample();
    let expected = std::mem::replace(&mut trie.root, B256::repeat_byte(9));
    let got = corruption(&trie, &changes([(key(0), true, None)]));
    assert_eq!(got, Some(Corruption::RootMismatch { got: expected, expected: B256::repeat_byte(9) }));
}

#[test]
fn claims_that_do_not_hold() {
    let trie = sample();
    // A leaf said to exist where nothing stands, and in an empty trie.
    let absent = (1000..).map(key).find(|key| corruption(&trie, &changes([(*key, true, None)])).is_some());
    assert!(absent.is_some());
    let empty = MapTrie::default();
    assert_eq!(corruption(&empty, &changes([(key(0), true, None)])), Some(Corruption::LeafMissing));
    // A leaf said to be new that is there.
    let present = changes([(key(0), false, Some(1))]);
    assert_eq!(corruption(&trie, &present), Some(Corruption::LeafUnexpected));
    // A trie said to hold something, without a row or a leaf.
    let mut hollow = MapTrie::<U256> { root: B256::repeat_byte(1), ..MapTrie::default() };
    assert_eq!(corruption(&hollow, &changes([(key(0), false, Some(1))])), Some(Corruption::LeafMissing));
    // Two leaves said to exist in a trie of one.
    hollow.leaves.insert(key(0), U256::from(1));
    let two = changes([(key(0), true, None), (key(1), true, None)]);
    assert_eq!(corruption(&hollow, &two), Some(Corruption::LeafMissing));
}

#[test]
fn a_neighbour_that_has_to_move_is_missing() {
    let (a, b) = (B256::ZERO, B256::with_last_byte(1));
    let mut trie = MapTrie::default();
    trie.apply([(a, Some(U256::from(1))), (b, Some(U256::from(2)))]);
    trie.leaves.remove(&b);
    assert_eq!(corruption(&trie, &changes([(a, true, None)])), Some(Corruption::LeafMissing));
}

#[test]
fn changes_out_of_order() {
    let trie = sample();
    let mut list = changes([(key(0), true, None), (key(1), true, None)]);
    list.swap(0, 1);
    let got = fold_trie(&trie, trie.root, &list, &FoldOptions::SERIAL);
    assert_eq!(got, Err(FoldError::Unsorted { table: "leaf", position: 1 }));

    let store = MemoryStore::new();
    store.load(load(&Model::new(), block(0))).unwrap();
    let account = |byte, slots: &[u8]| AccountLeafChange {
        hashed_address: B256::repeat_byte(byte),
        old: None,
        new: Some(AccountInfo::default()),
        slots: slots
            .iter()
            .map(|slot| SlotChange { hashed_slot: B256::repeat_byte(*slot), old: U256::ZERO, new: U256::from(1) })
            .collect(),
    };
    let snapshot = store.snapshot().unwrap();
    for (table, accounts) in [
        ("account", vec![account(2, &[]), account(1, &[])]),
        ("account", vec![account(1, &[]), account(1, &[])]),
        ("slot", vec![account(1, &[4, 3])]),
    ] {
        let changes = LeafChanges { accounts, codes: Vec::new() };
        let got = fold(&snapshot, changes, &FoldOptions::SERIAL).unwrap_err();
        assert_eq!(got, FoldError::Unsorted { table, position: 1 });
    }
}

#[test]
fn storage_of_an_account_that_is_removed_has_to_be_listed() {
    let store = MemoryStore::new();
    store.load(load(&Model::new(), block(0))).unwrap();
    let orphan = AccountLeafChange {
        hashed_address: B256::repeat_byte(1),
        old: None,
        new: None,
        slots: vec![SlotChange { hashed_slot: B256::ZERO, old: U256::ZERO, new: U256::from(1) }],
    };
    let changes = LeafChanges { accounts: vec![orphan], codes: Vec::new() };
    let got = fold(&store.snapshot().unwrap(), changes, &FoldOptions::SERIAL).unwrap_err();
    assert!(matches!(got, FoldError::StorageWithoutAccount { got, .. } if got != EMPTY_ROOT_HASH), "{got}");
}
