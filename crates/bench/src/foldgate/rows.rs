//! What the rows of branches say to somebody who has not written them: how much a block's new rows had to be hashed.
//!
//! Invariant: rows are read by their description, not by the fold's own code.

use std::collections::HashSet;

use alloy_primitives::B256;
use alloy_rlp::Encodable;
use foldgate_core::{
    Account, EMPTY_ROOT_HASH, Nibbles, NodeKey, StateDiff, TrieId, TrieReader, TrieUpdates,
    node::{first_key_below, key_is_below},
};
use foldgate_keccak::rate_blocks;

const HASH_HEADER: u8 = 0xa0;
const HASH_REFERENCE: usize = 33;
const LIST_HEADER: u8 = 0xc0;

/// A branch's row, taken apart.
struct Row<'a> {
    /// The branch's own path: its slot path and its extension.
    path: Nibbles,
    has_extension: bool,
    state: u16,
    branches: u16,
    references: &'a [u8],
}

impl<'a> Row<'a> {
    /// `None` if the bytes are not a whole trie's row.
    fn read(slot: &Nibbles, row: &'a [u8]) -> Option<Self> {
        let (head, rest) = row.split_first()?;
        let nibbles = usize::from(*head);
        let (extension, rest) = rest.split_at_checked(nibbles.div_ceil(2))?;
        let (masks, references) = rest.split_first_chunk::<4>()?;
        let mut path = *slot;
        path.extend(&Nibbles::unpack(extension).slice(..nibbles));
        let state = u16::from_be_bytes([masks[0], masks[1]]);
        let branches = u16::from_be_bytes([masks[2], masks[3]]);
        Some(Self { path, has_extension: nibbles > 0, state, branches, references })
    }

    /// The length of the branch's RLP.
    fn branch_length(&self) -> usize {
        let payload = self.references.len() + self.state.count_zeros() as usize + 1;
        alloy_rlp::Header { list: true, payload_length: payload }.length() + payload
    }

    /// The nibble and the reference of each leaf that is hashed.
    fn leaves(&self) -> impl Iterator<Item = (u8, &'a [u8])> {
        let (branches, mut rest) = (self.branches, self.references);
        let children = (0..16_u8).filter(|nibble| self.state >> nibble & 1 == 1).map_while(move |nibble| {
            let length = match *rest.first()? {
                HASH_HEADER => HASH_REFERENCE,
                head => usize::from(head.checked_sub(LIST_HEADER)?) + 1,
            };
            let (reference, others) = rest.split_at_checked(length)?;
            rest = others;
            Some((nibble, reference))
        });
        children.filter(move |(nibble, reference)| branches >> nibble & 1 == 0 && reference.len() == HASH_REFERENCE)
    }
}

/// The fewest permutations for a block: those of each leaf, branch and extension that its new tries have and its
/// parent's had not.
pub(super) fn fewest_permutations<R: TrieReader>(
    parent: &R,
    diff: &StateDiff,
    updates: &TrieUpdates,
) -> Result<u64, R::Error> {
    // A leaf that has another hash is new, or has moved.
    let mut old_leaves = HashSet::new();
    for (key, _) in &updates.nodes {
        if let Some(bytes) = parent.node(key)?
            && let Some(row) = Row::read(&key.path, &bytes)
        {
            old_leaves.extend(row.leaves().map(|(_, reference)| B256::from_slice(&reference[1..])));
        }
    }
    let mut permutations = 0;
    for (key, bytes) in &updates.nodes {
        let Some(bytes) = bytes else { continue };
        let Some(row) = Row::read(&key.path, bytes) else { continue };
        let length = row.branch_length();
        permutations += if length < 32 && !key.path.is_empty() { 0 } else { rate_blocks(length) as u64 };
        permutations += u64::from(row.has_extension);
        for (nibble, reference) in row.leaves() {
            if !old_leaves.contains(&reference[1..]) {
                permutations += leaf_permutations(parent, diff, key.trie, &row.path, nibble)?;
            }
        }
    }
    // Tries of a single leaf have no row.
    let single = diff.accounts.iter().filter(|change| {
        let root = NodeKey::new(TrieId::Storage(change.hashed_address), Nibbles::default());
        let has_leaves = change.new.is_some_and(|account| account.storage_root != EMPTY_ROOT_HASH);
        has_leaves && !change.slots.is_empty() && !matches!(updates.get(&root), Some(Some(_)))
    });
    Ok(permutations + single.count() as u64)
}

/// How often the sponge is filled by the leaf under a branch. A slot's leaf always fits into one rate block.
fn leaf_permutations<R: TrieReader>(
    parent: &R,
    diff: &StateDiff,
    trie: TrieId,
    branch: &Nibbles,
    nibble: u8,
) -> Result<u64, R::Error> {
    if trie != TrieId::Accounts {
        return Ok(1);
    }
    let mut slot = *branch;
    slot.push(nibble);
    let first = first_key_below(&slot);
    let from = diff.accounts.partition_point(|change| change.hashed_address < first);
    let below: Vec<_> =
        diff.accounts[from..].iter().take_while(|change| key_is_below(&change.hashed_address, &slot)).collect();
    let account = match below.iter().find_map(|change| change.new) {
        Some(account) => Some(account),
        None => {
            let moved = parent.accounts_from(&first, below.len() + 1)?;
            let stays = |key: &B256| below.iter().all(|change| change.hashed_address != *key);
            moved.into_iter().find(|(key, _)| stays(key)).map(|(_, account)| account)
        }
    };
    Ok(account.map_or(1, |account| rate_blocks(account_leaf_length(&account, slot.len())) as u64))
}

/// The length of the RLP of an account's leaf under a slot path of `depth` nibbles.
fn account_leaf_length(account: &Account, depth: usize) -> usize {
    let string = |length: usize| alloy_rlp::Header { list: false, payload_length: length }.length() + length;
    let path = 1 + (64 - depth) / 2;
    let payload = string(path) + string(account.length());
    alloy_rlp::Header { list: true, payload_length: payload }.length() + payload
}
