//! The worked example of docs/trie-layout.md: its rows are made here, and have to stand on the page, byte for byte.

use std::convert::Infallible;

use alloy_primitives::{B256, Bytes, U256, hex, keccak256};
use foldgate_core::{
    AccountInfo, BlockNumHash, EMPTY_ROOT_HASH, FoldOptions, LoadSource, Nibbles, TrieId, record,
    trie::{
        bulk::{LoadItem, StateLoad},
        single::{LeafChange, TrieSource, fold_trie},
    },
};

const PAGE: &str = include_str!("../../../docs/trie-layout.md");

/// The slots of the example with their values; the last one is taken away in its second half.
const SLOTS: [(u64, u64); 3] = [(3, 0x33), (10, 0xaa), (0, 0x11)];

fn hashed(slot: u64) -> B256 {
    keccak256(U256::from(slot).to_be_bytes::<32>())
}

fn leaves(slots: &[(u64, u64)]) -> Vec<(B256, U256)> {
    let mut leaves: Vec<_> = slots.iter().map(|(slot, value)| (hashed(*slot), U256::from(*value))).collect();
    leaves.sort_unstable();
    leaves
}

/// The rows of the storage trie of an account with these slots, as a load writes them.
fn rows(slots: &[(u64, u64)]) -> Vec<(Nibbles, Bytes)> {
    let info = AccountInfo { nonce: 1, ..AccountInfo::default() };
    let account = LoadItem::Account { hashed_address: B256::ZERO, info };
    let slots = leaves(slots).into_iter().map(|(hashed_slot, value)| LoadItem::Slot { hashed_slot, value });
    let items = [account].into_iter().chain(slots).map(Ok::<_, Infallible>);
    let mut load = StateLoad::new(items, BlockNumHash::new(0, B256::ZERO));
    let mut rows = Vec::new();
    while let Some(piece) = load.next_rows().unwrap() {
        rows.extend(piece.nodes.into_iter().map(|(key, row)| (key.path, row.unwrap())));
    }
    rows
}

/// A trie of nothing.
#[derive(Clone)]
struct Empty;

impl TrieSource for Empty {
    type Value = U256;
    type Error = Infallible;

    fn trie(&self) -> TrieId {
        TrieId::Storage(B256::ZERO)
    }

    fn row(&self, _: &Nibbles) -> Result<Option<Bytes>, Infallible> {
        Ok(None)
    }

    fn first_leaf(&self, _: &B256) -> Result<Option<(B256, U256)>, Infallible> {
        Ok(None)
    }
}

/// A row as the page shows it: its key without the hashed address and without most of the zeros, then the bytes in
/// groups, a reference on a line of its own.
fn printed(path: &Nibbles, row: &[u8]) -> Vec<String> {
    let key = record::storage_node_key(&B256::ZERO, path);
    let (first_key, depth) = (&key[32..64], key[64]);
    assert!(first_key[1..].iter().all(|byte| *byte == 0), "the example's paths are short");
    let nibbles = usize::from(row[0]).div_ceil(2);
    let (head, references) = row.split_at(1 + nibbles + 4);
    let (state, branches) = (&head[1 + nibbles..3 + nibbles], &head[3 + nibbles..]);
    let mut lines = vec![
        format!("key `{:02x}00..00 {depth:02x}`", first_key[0]),
        [&head[..1], &head[1..=nibbles], state, branches]
            .iter()
            .filter(|part| !part.is_empty())
            .map(hex::encode)
            .collect::<Vec<_>>()
            .join(" "),
    ];
    lines.extend(references.chunks(33).map(|reference| {
        assert_eq!((reference.len(), reference[0]), (33, 0xa0), "every child of the example is a hash");
        format!("a0 {}", hex::encode(&reference[1..]))
    }));
    lines
}

#[test]
fn the_rows_of_the_example_stand_on_the_page() {
    let mut from = 0;
    for rows in [rows(&SLOTS), rows(&SLOTS[..2])] {
        for (path, row) in rows {
            for line in printed(&path, &row) {
                let at = PAGE[from..].find(&line).unwrap_or_else(|| panic!("not on the page, or out of order: {line}"));
                from += at + line.len();
            }
        }
    }
    for (slot, _) in SLOTS {
        let key = hex::encode(hashed(slot));
        assert!(PAGE.contains(&key[..8]), "slot {slot} is hashed to {key}");
    }
}

#[test]
fn a_fold_writes_the_same_rows_as_a_load() {
    for slots in [&SLOTS[..], &SLOTS[..2]] {
        let changes: Vec<_> = leaves(slots)
            .into_iter()
            .map(|(key, value)| LeafChange { key, existed: false, new: Some(value) })
            .collect();
        let folded = fold_trie(&Empty, EMPTY_ROOT_HASH, &changes, &FoldOptions::SERIAL).unwrap();
        let loaded: Vec<_> = rows(slots).into_iter().map(|(path, row)| (path, Some(row))).collect();
        assert_eq!(folded.rows, loaded);
    }
}

#[test]
fn a_trie_of_one_leaf_has_no_row() {
    assert!(rows(&SLOTS[..1]).is_empty());
}
