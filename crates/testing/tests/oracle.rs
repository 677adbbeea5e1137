//! The oracle's own rules: deletion, EIP-161, the highest index of a list, and its two trie builders against each other.
//!
//! Invariant: random data comes from a fixed seed, so a failure repeats.

use std::collections::BTreeMap;

use alloy_eip7928::{
    AccountChanges, BalanceChange, BlockAccessIndex, CodeChange, NonceChange, SlotChanges, StorageChange,
};
use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256, keccak256};
use alloy_trie::EMPTY_ROOT_HASH;
use foldgate_testing::oracle::{
    AccountDiff, HashedAccount, PlainAccount, PlainDiff, PlainState, access_list_diff, state_root, storage_root,
    trie_root,
};

const A: Address = Address::repeat_byte(0xaa);
const B: Address = Address::repeat_byte(0xbb);

fn at(index: u64) -> BlockAccessIndex {
    BlockAccessIndex::new(index)
}

fn account(nonce: u64, balance: u64, slots: &[(u64, u64)]) -> PlainAccount {
    let storage = slots.iter().map(|(slot, value)| (U256::from(*slot), U256::from(*value))).collect();
    PlainAccount { nonce, balance: U256::from(balance), code: Bytes::new(), storage }
}

#[test]
fn empty_tries_and_empty_accounts() {
    assert_eq!(state_root(&BTreeMap::new()), EMPTY_ROOT_HASH);
    assert_eq!(storage_root(&BTreeMap::from([(B256::ZERO, U256::ZERO)])), EMPTY_ROOT_HASH, "a zero slot is no leaf");
    assert_eq!(trie_root(&BTreeMap::from([(vec![1], vec![])])), EMPTY_ROOT_HASH);
    // A listed account is a leaf even if empty: keccak256 of the one leaf node, put together by hand.
    let empty = HashedAccount { code_hash: KECCAK256_EMPTY, ..Default::default() };
    let mut leaf = vec![0xf8, 0x44, 0x80, 0x80, 0xa0];
    leaf.extend(EMPTY_ROOT_HASH);
    leaf.push(0xa0);
    leaf.extend(KECCAK256_EMPTY);
    let mut node = vec![0xf8, 0x6a, 0xa1, 0x20];
    node.extend(keccak256(A));
    node.extend([0xb8, leaf.len() as u8]);
    node.extend(leaf);
    node[1] = (node.len() - 2) as u8;
    assert_eq!(state_root(&BTreeMap::from([(keccak256(A), empty)])), keccak256(node));
}

#[test]
fn both_trie_builders_agree_on_random_leaves() {
    let mut seed = U256::from(0x7928);
    let mut next = || {
        seed = keccak256(seed.to_be_bytes::<32>()).into();
        seed
    };
    for count in [1usize, 2, 3, 16, 17, 100, 500] {
        for shared_bytes in [0, 1, 30] {
            let mut storage = BTreeMap::new();
            while storage.len() < count.min(if shared_bytes == 30 { 200 } else { count }) {
                let mut key = B256::from(next());
                key[..shared_bytes].fill(0x77);
                // Short values make nodes that are inlined in their parents.
                storage.insert(key, (next() >> (8 * (storage.len() % 32))).max(U256::from(1)));
            }
            let leaves = storage.iter().map(|(key, value)| (key.to_vec(), alloy_rlp::encode(value))).collect();
            assert_eq!(trie_root(&leaves), storage_root(&storage), "{count} leaves, {shared_bytes} bytes shared");
        }
    }
}

#[test]
fn diffs_follow_eip_161_only_for_what_they_touch() {
    let mut state =
        PlainState { accounts: BTreeMap::from([(A, account(0, 5, &[(1, 1)])), (B, PlainAccount::default())]) };
    let before = state.clone();
    state.apply(&PlainDiff::new());
    assert_eq!(state, before, "an empty account that nobody touched stays");

    let drained = PlainDiff::from([(A, AccountDiff { balance: Some(U256::ZERO), ..Default::default() })]);
    let mut kept = state.clone();
    kept.apply_keeping_empty(&drained);
    assert_eq!(kept.accounts[&A], account(0, 0, &[(1, 1)]));
    state.apply(&drained);
    assert_eq!(state.accounts.keys().collect::<Vec<_>>(), [&B]);

    let touched = PlainDiff::from([(B, AccountDiff { wipe_storage: true, ..Default::default() })]);
    state.apply(&touched);
    assert!(state.accounts.is_empty(), "a touched empty account goes");
}

#[test]
fn deletion_and_wipe_come_before_new_values() {
    let mut state = PlainState { accounts: BTreeMap::from([(A, account(3, 5, &[(1, 1), (2, 2)]))]) };
    let storage = BTreeMap::from([(U256::from(2), U256::from(9)), (U256::from(3), U256::ZERO)]);
    let wipe = AccountDiff { wipe_storage: true, storage: storage.clone(), ..Default::default() };
    state.apply(&PlainDiff::from([(A, wipe)]));
    assert_eq!(state.accounts[&A], account(3, 5, &[(2, 9)]));
    let anew = AccountDiff { delete: true, balance: Some(U256::from(1)), ..Default::default() };
    state.apply(&PlainDiff::from([(A, anew)]));
    assert_eq!(state.accounts[&A], account(0, 1, &[]));
    state.apply_keeping_empty(&PlainDiff::from([(A, AccountDiff { delete: true, ..Default::default() })]));
    assert!(state.accounts.is_empty());
}

#[test]
fn a_list_means_its_highest_indices_whatever_their_order() {
    let changes = AccountChanges {
        address: A,
        storage_changes: vec![
            SlotChanges::new(
                U256::from(1),
                vec![StorageChange::new(at(3), U256::from(30)), StorageChange::new(at(1), U256::from(10))],
            ),
            SlotChanges::new(U256::from(2), vec![]),
        ],
        storage_reads: vec![U256::from(7)],
        balance_changes: vec![BalanceChange::new(at(2), U256::from(2)), BalanceChange::new(at(0), U256::from(1))],
        nonce_changes: vec![NonceChange::new(at(2), 8), NonceChange::new(at(1), 7)],
        code_changes: vec![CodeChange::new(at(4), Bytes::from_static(&[1]))],
    };
    let list = [changes, AccountChanges::new(B)];
    let diff = access_list_diff(&list, None);
    assert_eq!(diff.len(), 1, "an account without changes is left out");
    let end = AccountDiff {
        nonce: Some(8),
        balance: Some(U256::from(2)),
        code: Some(Bytes::from_static(&[1])),
        storage: BTreeMap::from([(U256::from(1), U256::from(30))]),
        ..Default::default()
    };
    assert_eq!(diff[&A], end);
    let start = AccountDiff { balance: Some(U256::from(1)), ..Default::default() };
    assert_eq!(access_list_diff(&list, Some(at(0)))[&A], start);
    let middle = access_list_diff(&list, Some(at(2)));
    assert_eq!((middle[&A].nonce, middle[&A].storage[&U256::from(1)]), (Some(8), U256::from(10)));
    assert_eq!(middle[&A].code, None);
}
