//! The bytes of a store's rows, the same on every backend that files them by key.
//!
//! A trie's leaves and the rows of its branches stand in one table, each branch before what is below it, so that a block
//! that changes a leaf, and with it the branches above, finds most of them in the same pages:
//!
//! ```text
//! accounts   hashed address (32)                       ff    account     Account::to_bytes
//!            first key below the slot path (32)        depth row of a branch of the account trie
//! slots      hashed address (32)  hashed slot (32)     ff    value
//!            hashed address (32)  first key below (32) depth row of a branch of the account's storage trie
//! ```
//!
//! Reverse diffs are [`ReverseDiff::to_bytes`](crate::ReverseDiff::to_bytes); the rest is here.
//!
//! Invariants:
//! 1. Bytes of keys sort as the keys do: all numbers are big-endian.
//! 2. Each value has one encoding, and decoding refuses every other.
//! 3. The keys of what is below a slot path are one range, and the row of the branch there is the first of it.

use std::iter;

use alloy_primitives::{B256, Bytes, U256};
use alloy_trie::Nibbles;

use crate::{
    account::Account,
    block::{BlockNumHash, BlockNumber, StateAnchor},
    node::{NodeKey, TrieId, first_key_below},
    store::Rows,
};

/// The version of the rows' meaning, which every store remembers: of the encodings named above, and of what the fold
/// writes into the rows of nodes. It changes when any of them does.
pub const ROW_FORMAT: u32 = 2;

/// The key of a row in the table of accounts.
pub type AccountKey = [u8; 33];
/// The key of a row in the table of slots.
pub type SlotKey = [u8; 65];

/// The last byte of a leaf's key: it comes after any branch whose first key it has. A branch's is the length of its path.
const LEAF: u8 = 0xff;

const fn account_table_key(path: &B256, depth: u8) -> AccountKey {
    let mut key = [depth; 33];
    key.split_at_mut(32).0.copy_from_slice(&path.0);
    key
}

fn slot_table_key(hashed_address: &B256, path: &B256, depth: u8) -> SlotKey {
    let mut key = [depth; 65];
    key[..32].copy_from_slice(hashed_address.as_slice());
    key[32..64].copy_from_slice(path.as_slice());
    key
}

/// The key of an account.
pub const fn account_key(hashed_address: &B256) -> AccountKey {
    account_table_key(hashed_address, LEAF)
}

/// The key of a slot.
pub fn slot_key(hashed_address: &B256, hashed_slot: &B256) -> SlotKey {
    slot_table_key(hashed_address, hashed_slot, LEAF)
}

/// The key of the row of a branch of the account trie.
pub fn account_node_key(slot_path: &Nibbles) -> AccountKey {
    account_table_key(&first_key_below(slot_path), slot_path.len() as u8)
}

/// The key of the row of a branch of an account's storage trie.
pub fn storage_node_key(hashed_address: &B256, slot_path: &Nibbles) -> SlotKey {
    slot_table_key(hashed_address, &first_key_below(slot_path), slot_path.len() as u8)
}

/// Whether a key of one of the two tables is that of a branch's row.
pub fn is_node_key(key: &[u8]) -> bool {
    key.last().is_some_and(|depth| *depth != LEAF)
}

/// The hashed address, if the key is that of an account.
pub fn hashed_address_of_key(key: &[u8]) -> Option<B256> {
    let hashed_address = key.strip_suffix(&[LEAF])?;
    B256::try_from(hashed_address).ok()
}

/// The hashed slot, if the key is that of a slot of this account.
pub fn slot_of_key(hashed_address: &B256, key: &[u8]) -> Option<B256> {
    hashed_address_of_key(key.strip_prefix(hashed_address.as_slice())?)
}

/// The bytes of a row.
#[derive(Debug, Clone)]
pub enum RowBytes<'a> {
    /// Of an account: the first so many.
    Account([u8; Account::MAX_BYTES], usize),
    /// Of a slot: the last so many.
    Slot([u8; 32], usize),
    /// Of a branch.
    Node(&'a Bytes),
}

impl AsRef<[u8]> for RowBytes<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Account(bytes, used) => &bytes[..*used],
            Self::Slot(bytes, used) => &bytes[32 - used..],
            Self::Node(row) => row,
        }
    }
}

/// What is written to the table of accounts, strictly sorted by the bytes of keys; `None` deletes.
pub fn account_table(rows: &Rows) -> impl Iterator<Item = (AccountKey, Option<RowBytes<'_>>)> {
    let leaves = rows.accounts.iter().map(|(hashed_address, account)| {
        let row = account.map(|account| {
            let mut bytes = [0; Account::MAX_BYTES];
            let used = account.write_bytes(&mut bytes).len();
            RowBytes::Account(bytes, used)
        });
        (account_key(hashed_address), row)
    });
    let nodes = nodes(rows).0.iter();
    merged(leaves, nodes.map(|(key, row)| (account_node_key(&key.path), row.as_ref().map(RowBytes::Node))))
}

/// What is written to the table of slots, strictly sorted by the bytes of keys; `None` deletes.
pub fn slot_table(rows: &Rows) -> impl Iterator<Item = (SlotKey, Option<RowBytes<'_>>)> {
    let leaves = rows.slots.iter().map(|((hashed_address, hashed_slot), value)| {
        let mut bytes = [0; 32];
        let used = write_slot_value(value, &mut bytes).len();
        (slot_key(hashed_address, hashed_slot), (used > 0).then_some(RowBytes::Slot(bytes, used)))
    });
    let nodes = nodes(rows).1.iter().filter_map(|(key, row)| match &key.trie {
        TrieId::Accounts => None,
        TrieId::Storage(hashed_address) => Some((storage_node_key(hashed_address, &key.path), row.as_ref())),
    });
    merged(leaves, nodes.map(|(key, row)| (key, row.map(RowBytes::Node))))
}

type NodeRows<'a> = &'a [(NodeKey, Option<Bytes>)];

/// Those of the account trie, and those of storage tries: keys sort the account trie first.
fn nodes(rows: &Rows) -> (NodeRows<'_>, NodeRows<'_>) {
    rows.nodes.split_at(rows.nodes.partition_point(|(key, _)| key.trie == TrieId::Accounts))
}

/// Two sorted lists as one.
fn merged<K: Ord, T>(a: impl Iterator<Item = (K, T)>, b: impl Iterator<Item = (K, T)>) -> impl Iterator<Item = (K, T)> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some((left, _)), Some((right, _))) if right < left => b.next(),
        (None, _) => b.next(),
        _ => a.next(),
    })
}

/// Writes the value of a slot's row: big-endian without leading zero bytes. Gives the buffer's used part.
pub fn write_slot_value<'a>(value: &U256, buffer: &'a mut [u8; 32]) -> &'a [u8] {
    *buffer = value.to_be_bytes();
    &buffer[value.leading_zeros() / 8..]
}

/// Decodes what [`write_slot_value`] wrote of a value that is not zero; `None` if the bytes are anything else.
pub fn slot_value(bytes: &[u8]) -> Option<U256> {
    let canonical = bytes.len() <= 32 && bytes.first().is_some_and(|first| *first != 0);
    canonical.then(|| U256::from_be_slice(bytes))
}

/// The key of what is filed by height.
pub const fn number_key(number: BlockNumber) -> [u8; 8] {
    number.to_be_bytes()
}

/// The key of what is filed by height and hash.
pub fn block_key(block: &BlockNumHash) -> [u8; 40] {
    let mut key = [0; 40];
    key[..8].copy_from_slice(&block.number.to_be_bytes());
    key[8..].copy_from_slice(block.hash.as_slice());
    key
}

/// Encodes an anchor: height, hash, state root.
pub fn anchor_bytes(anchor: &StateAnchor) -> [u8; 72] {
    let mut bytes = [0; 72];
    bytes[..40].copy_from_slice(&block_key(&anchor.block));
    bytes[40..].copy_from_slice(anchor.state_root.as_slice());
    bytes
}

/// Decodes what [`anchor_bytes`] wrote; `None` if the bytes are anything else.
pub fn anchor(bytes: &[u8]) -> Option<StateAnchor> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    let (hash, state_root) = rest.split_first_chunk::<32>()?;
    Some(StateAnchor {
        block: BlockNumHash::new(u64::from_be_bytes(*number), B256::from(hash)),
        state_root: B256::try_from(state_root).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn slot_values_have_one_encoding() {
        let mut buffer = [0; 32];
        for value in [U256::from(1), U256::from(0x100), U256::from(1) << 255, U256::MAX] {
            assert_eq!(slot_value(write_slot_value(&value, &mut buffer)), Some(value));
        }
        assert_eq!(write_slot_value(&U256::from(0x1ff), &mut buffer), [1, 0xff]);
        assert_eq!(slot_value(&[]), None, "no row holds zero");
        assert_eq!(slot_value(&[0, 1]), None);
        assert_eq!(slot_value(&[1; 33]), None);
    }

    #[test]
    fn anchors_round_trip_at_one_length_only() {
        let block = BlockNumHash::new(7, B256::repeat_byte(1));
        let bytes = anchor_bytes(&StateAnchor { block, state_root: B256::repeat_byte(2) });
        assert_eq!(anchor(&bytes), Some(StateAnchor { block, state_root: B256::repeat_byte(2) }));
        assert!((0..72).all(|length| anchor(&bytes[..length]).is_none()));
        assert_eq!(anchor(&[bytes.as_slice(), &[0]].concat()), None);
    }

    #[test]
    fn slot_keys_are_taken_apart_only_within_their_account() {
        let (address, slot) = (B256::repeat_byte(1), B256::repeat_byte(2));
        let key = slot_key(&address, &slot);
        assert_eq!(slot_of_key(&address, &key), Some(slot));
        assert_eq!(slot_of_key(&slot, &key), None);
        assert_eq!(slot_of_key(&address, &key[..64]), None);
    }

    /// Paths that crowd together, whole keys among them.
    fn path() -> impl Strategy<Value = Nibbles> {
        let nibble = prop_oneof![3 => Just(0), 1 => 0..16_u8];
        let lengths = prop_oneof![0..6_usize, 58..65_usize];
        lengths.prop_flat_map(move |length| vec(nibble.clone(), length)).prop_map(Nibbles::from_nibbles)
    }

    proptest! {
        #[test]
        fn keys_sort_in_preorder_and_are_told_apart(a in path(), b in path(), address: [u8; 32]) {
            let (address, hashed) = (B256::from(address), first_key_below(&b));
            let (left, right, leaf) = (account_node_key(&a), account_node_key(&b), account_key(&hashed));
            prop_assert_eq!(left.cmp(&right), a.cmp(&b), "a prefix comes first");
            prop_assert_eq!(left < leaf, a <= Nibbles::unpack(hashed), "a leaf is the last of what has its key");
            prop_assert!(is_node_key(&left) && !is_node_key(&leaf));
            prop_assert_eq!((hashed_address_of_key(&left), hashed_address_of_key(&leaf)), (None, Some(hashed)));
            let (of_node, of_slot) = (storage_node_key(&address, &a), slot_key(&address, &hashed));
            prop_assert_eq!(of_node.as_slice(), [&address[..], &left].concat());
            prop_assert_eq!(of_slot.as_slice(), [&address[..], &leaf].concat());
            prop_assert_eq!((slot_of_key(&address, &of_node), slot_of_key(&address, &of_slot)), (None, Some(hashed)));
        }
    }

    #[test]
    fn tables_hold_every_row_in_order() {
        let [one, two] = [1, 2].map(B256::repeat_byte);
        let row = Bytes::from_static(b"row");
        let node =
            |trie, path: &[u8], row: Option<&Bytes>| (NodeKey::new(trie, Nibbles::from_nibbles(path)), row.cloned());
        let account = crate::AccountInfo { nonce: 7, ..Default::default() }.with_storage_root(one);
        let rows = Rows {
            accounts: vec![(one, Some(account)), (two, None)],
            slots: vec![((one, one), U256::from(9)), ((one, two), U256::ZERO), ((two, one), U256::from(8))],
            nodes: vec![
                node(TrieId::Accounts, &[], Some(&row)),
                node(TrieId::Accounts, &[0, 2], None),
                node(TrieId::Storage(one), &[0, 2], Some(&row)),
                node(TrieId::Storage(two), &[], None),
            ],
            codes: Vec::new(),
        };
        rows.check_sorted().unwrap();
        let bytes = |row: Option<RowBytes<'_>>| row.map(|row| row.as_ref().to_vec());
        let accounts: Vec<_> = account_table(&rows).map(|(key, row)| (key, bytes(row))).collect();
        let expected = [
            (account_node_key(&Nibbles::new()), Some(row.to_vec())),
            (account_key(&one), Some(account.to_bytes())),
            (account_node_key(&Nibbles::from_nibbles([0, 2])), None),
            (account_key(&two), None),
        ];
        assert_eq!(accounts, expected);
        let slots: Vec<_> = slot_table(&rows).map(|(key, row)| (key, bytes(row))).collect();
        let expected = [
            (slot_key(&one, &one), Some(vec![9])),
            (storage_node_key(&one, &Nibbles::from_nibbles([0, 2])), Some(row.to_vec())),
            (slot_key(&one, &two), None),
            (storage_node_key(&two, &Nibbles::new()), None),
            (slot_key(&two, &one), Some(vec![8])),
        ];
        assert_eq!(slots, expected);
    }
}
