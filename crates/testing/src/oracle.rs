//! An oracle of state roots, independent of the fold: it builds each trie anew from all its leaves.
//!
//! Account and storage tries go through alloy-trie's `HashBuilder`; [`trie_root`] is a plain recursion over the definition in
//! the yellow paper (appendix D) and takes keys of any length, so each can check the other.
//!
//! Invariants:
//! 1. Nothing here is shared with the code under test: keys are hashed, leaves encoded and nodes built from the definition.
//! 2. A slot that is zero is no leaf. An account that is listed is a leaf, even an empty one (a genesis may list one).

use std::collections::BTreeMap;

use alloy_eip7928::{AccountChanges, BlockAccessIndex};
use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256, keccak256};
use alloy_rlp::{BufMut, Encodable};
use alloy_trie::{EMPTY_ROOT_HASH, HashBuilder, Nibbles};

/// An account under its hashed address, with its storage under hashed slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HashedAccount {
    /// The nonce.
    pub nonce: u64,
    /// The balance in wei.
    pub balance: U256,
    /// keccak256 of the code.
    pub code_hash: B256,
    /// Values by keccak256 of the slot; zero values count as absent.
    pub storage: BTreeMap<B256, U256>,
}

/// The state root of the accounts by keccak256 of their address (yellow paper, 4.1).
pub fn state_root(accounts: &BTreeMap<B256, HashedAccount>) -> B256 {
    let mut builder = HashBuilder::default();
    for (hashed_address, account) in accounts {
        let mut fields = Vec::new();
        account.nonce.encode(&mut fields);
        account.balance.encode(&mut fields);
        storage_root(&account.storage).encode(&mut fields);
        account.code_hash.encode(&mut fields);
        builder.add_leaf(Nibbles::unpack(hashed_address), &list(fields));
    }
    builder.root()
}

/// The storage root of the values by keccak256 of their slot; zero values count as absent.
pub fn storage_root(storage: &BTreeMap<B256, U256>) -> B256 {
    let mut builder = HashBuilder::default();
    for (hashed_slot, value) in storage.iter().filter(|(_, value)| !value.is_zero()) {
        builder.add_leaf(Nibbles::unpack(hashed_slot), &alloy_rlp::encode(value));
    }
    builder.root()
}

/// The root of a trie with keys of any length, of which one may be the beginning of another. An empty value counts as absent.
///
/// Recursive: nested as deep as keys branch or contain each other, which is meant for keys of up to some hundred bytes.
pub fn trie_root(leaves: &BTreeMap<Vec<u8>, Vec<u8>>) -> B256 {
    let leaves = leaves.iter().filter(|(_, value)| !value.is_empty());
    let leaves: Vec<_> = leaves.map(|(key, value)| (Nibbles::unpack(key).to_vec(), value.as_slice())).collect();
    if leaves.is_empty() { EMPTY_ROOT_HASH } else { keccak256(encode_node(&leaves, 0)) }
}

type Leaf<'a> = (Vec<u8>, &'a [u8]);

/// The RLP of the node over sorted `leaves`, which agree in their first `depth` nibbles.
fn encode_node(leaves: &[Leaf<'_>], depth: usize) -> Vec<u8> {
    let (first, last) = match leaves {
        [] => return vec![alloy_rlp::EMPTY_STRING_CODE],
        [(key, value)] => {
            let mut items = Vec::new();
            compact_path(&key[depth..], true).as_slice().encode(&mut items);
            value.encode(&mut items);
            return list(items);
        }
        [(first, _), .., (last, _)] => (first, last),
    };
    // The keys are sorted: what the first and the last share, all share.
    let shared = first[depth..].iter().zip(&last[depth..]).take_while(|(a, b)| a == b).count();
    let mut items = Vec::new();
    if shared > 0 {
        compact_path(&first[depth..depth + shared], false).as_slice().encode(&mut items);
        items.extend(reference(encode_node(leaves, depth + shared)));
        return list(items);
    }
    let (value, mut rest): (&[u8], _) = match leaves {
        [(key, value), rest @ ..] if key.len() == depth => (value, rest),
        _ => (&[], leaves),
    };
    for nibble in 0..16 {
        let (child, others) = rest.split_at(rest.partition_point(|(key, _)| key[depth] <= nibble));
        items.extend(reference(encode_node(child, depth + 1)));
        rest = others;
    }
    value.encode(&mut items);
    list(items)
}

/// How a parent holds a child: its RLP if shorter than a hash, else the hash.
fn reference(node: Vec<u8>) -> Vec<u8> {
    if node.len() < 32 { node } else { alloy_rlp::encode(keccak256(node)) }
}

/// The hex-prefix encoding of a path (yellow paper, appendix C).
fn compact_path(nibbles: &[u8], is_leaf: bool) -> Vec<u8> {
    let flag = if is_leaf { 0x20 } else { 0x00 };
    let (first, rest) = match nibbles {
        [odd, rest @ ..] if nibbles.len() % 2 == 1 => (flag | 0x10 | odd, rest),
        _ => (flag, nibbles),
    };
    std::iter::once(first).chain(rest.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1])).collect()
}

fn list(items: Vec<u8>) -> Vec<u8> {
    let mut node = Vec::with_capacity(items.len() + 9);
    alloy_rlp::Header { list: true, payload_length: items.len() }.encode(&mut node);
    node.put_slice(&items);
    node
}

/// An account under its address, with its storage under plain slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlainAccount {
    /// The nonce.
    pub nonce: u64,
    /// The balance in wei.
    pub balance: U256,
    /// The code; empty for an account without.
    pub code: Bytes,
    /// Values by slot; zero values count as absent.
    pub storage: BTreeMap<U256, U256>,
}

impl PlainAccount {
    /// Empty as EIP-161 has it: no nonce, no balance, no code. Storage does not count.
    pub fn is_empty(&self) -> bool {
        self.nonce == 0 && self.balance.is_zero() && self.code.is_empty()
    }

    /// keccak256 of the code.
    pub fn code_hash(&self) -> B256 {
        if self.code.is_empty() { KECCAK256_EMPTY } else { keccak256(&self.code) }
    }

    /// The root of the storage trie.
    pub fn storage_root(&self) -> B256 {
        storage_root(&self.hashed_storage())
    }

    /// The storage under hashed slots, without zeros.
    pub fn hashed_storage(&self) -> BTreeMap<B256, U256> {
        let present = self.storage.iter().filter(|(_, value)| !value.is_zero());
        present.map(|(slot, value)| (keccak256(B256::from(*slot)), *value)).collect()
    }

    /// Sets a slot; zero removes it.
    pub fn set_slot(&mut self, slot: U256, value: U256) {
        if value.is_zero() {
            self.storage.remove(&slot);
        } else {
            self.storage.insert(slot, value);
        }
    }
}

/// A complete state under plain keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlainState {
    /// All accounts that exist, by address.
    pub accounts: BTreeMap<Address, PlainAccount>,
}

/// What changes in one account; a field that is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountDiff {
    /// All storage goes before `storage` is applied (a contract destroyed, or made anew at its address).
    pub wipe_storage: bool,
    /// The account goes, with its storage, before everything else here is applied.
    pub delete: bool,
    /// The nonce after.
    pub nonce: Option<u64>,
    /// The balance after, in wei.
    pub balance: Option<U256>,
    /// The code after.
    pub code: Option<Bytes>,
    /// Values after, by slot; zero removes the slot.
    pub storage: BTreeMap<U256, U256>,
}

impl AccountDiff {
    /// True if something besides a deletion is to be applied.
    fn sets_anything(&self) -> bool {
        self.nonce.is_some() || self.balance.is_some() || self.code.is_some() || !self.storage.is_empty()
    }
}

/// What changes in a state, by address.
pub type PlainDiff = BTreeMap<Address, AccountDiff>;

impl PlainState {
    /// The state root.
    pub fn state_root(&self) -> B256 {
        state_root(&self.hashed())
    }

    /// The same state under hashed keys.
    pub fn hashed(&self) -> BTreeMap<B256, HashedAccount> {
        let hash = |(address, account): (&Address, &PlainAccount)| {
            let (nonce, balance, code_hash) = (account.nonce, account.balance, account.code_hash());
            (keccak256(address), HashedAccount { nonce, balance, code_hash, storage: account.hashed_storage() })
        };
        self.accounts.iter().map(hash).collect()
    }

    /// Applies a diff, and then removes the accounts that it touched and left empty (EIP-161).
    pub fn apply(&mut self, diff: &PlainDiff) {
        self.apply_keeping_empty(diff);
        for address in diff.keys() {
            if self.accounts.get(address).is_some_and(PlainAccount::is_empty) {
                self.accounts.remove(address);
            }
        }
    }

    /// Applies a diff; accounts that end empty stay, as before EIP-161. A deletion without new fields removes the account.
    pub fn apply_keeping_empty(&mut self, diff: &PlainDiff) {
        for (address, change) in diff {
            if change.delete {
                self.accounts.remove(address);
            }
            if !change.sets_anything() {
                if let Some(account) = self.accounts.get_mut(address).filter(|_| change.wipe_storage) {
                    account.storage.clear();
                }
                continue;
            }
            let account = self.accounts.entry(*address).or_default();
            if change.wipe_storage {
                account.storage.clear();
            }
            account.nonce = change.nonce.unwrap_or(account.nonce);
            account.balance = change.balance.unwrap_or(account.balance);
            if let Some(code) = &change.code {
                account.code = code.clone();
            }
            for (slot, value) in &change.storage {
                account.set_slot(*slot, *value);
            }
        }
    }

    /// Applies what a block access list says of the block's end (EIP-7928).
    pub fn apply_access_list(&mut self, list: &[AccountChanges]) {
        self.apply(&access_list_diff(list, None));
    }
}

/// What a block access list says has changed up to and with index `last` (the whole block where it is `None`): of each
/// field the change with the highest index, in whatever order the list has them. Accounts without changes are left out.
pub fn access_list_diff(list: &[AccountChanges], last: Option<BlockAccessIndex>) -> PlainDiff {
    let mut diff = PlainDiff::new();
    let wanted = |index: BlockAccessIndex| last.is_none_or(|last| index <= last);
    for account in list {
        let nonces = account.nonce_changes.iter().filter(|change| wanted(change.block_access_index));
        let balances = account.balance_changes.iter().filter(|change| wanted(change.block_access_index));
        let codes = account.code_changes.iter().filter(|change| wanted(change.block_access_index));
        let mut change = AccountDiff {
            nonce: nonces.max_by_key(|change| change.block_access_index).map(|change| change.new_nonce),
            balance: balances.max_by_key(|change| change.block_access_index).map(|change| change.post_balance),
            code: codes.max_by_key(|change| change.block_access_index).map(|change| change.new_code.clone()),
            ..Default::default()
        };
        for slot in &account.storage_changes {
            let values = slot.changes.iter().filter(|change| wanted(change.block_access_index));
            if let Some(value) = values.max_by_key(|change| change.block_access_index) {
                change.storage.insert(slot.slot, value.new_value);
            }
        }
        if change.sets_anything() {
            diff.insert(account.address, change);
        }
    }
    diff
}
