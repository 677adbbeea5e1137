//! The exact difference between two states, leaf by leaf, as values: what a fold is told, what it gives, and how to
//! go back.
//!
//! Invariants:
//! 1. Accounts are sorted by hashed address, slots by hashed slot, codes by hash; each key stands once.
//! 2. `old` is what the parent's state holds; nothing is listed whose `old` equals its `new`, but for an account of
//!    which only slots changed.
//! 3. An account that is removed lists every slot it had, with the new value zero: a difference can be inverted by
//!    swapping `old` and `new`.

use alloy_primitives::{B256, Bytes, U256};
use alloy_rlp::{Decodable, Encodable, RlpDecodable, RlpEncodable};
use serde::{Deserialize, Serialize};

use crate::{
    account::{Account, AccountInfo},
    hashed::{AccountDelta, Cleared, EmptyAccounts, HashedPostState},
};

/// A changed slot. Zero means that the trie holds no leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotChange {
    /// keccak256 of the slot.
    pub hashed_slot: B256,
    /// The value in the parent's state.
    pub old: U256,
    /// The value after the block.
    pub new: U256,
}

/// A changed account, as resolved against the parent's state: the fold's input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountLeafChange {
    /// keccak256 of the address.
    pub hashed_address: B256,
    /// The account in the parent's state.
    pub old: Option<Account>,
    /// The account's fields after the block; its storage root is what the fold computes. `None` removes the account.
    pub new: Option<AccountInfo>,
    /// The changed slots.
    pub slots: Vec<SlotChange>,
}

/// All changed leaves of a block: the fold's input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeafChanges {
    /// The changed accounts.
    pub accounts: Vec<AccountLeafChange>,
    /// New code that a changed account refers to.
    pub codes: Vec<(B256, Bytes)>,
}

/// A changed account with its storage roots before and after: the fold's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountChange {
    /// keccak256 of the address.
    pub hashed_address: B256,
    /// The account in the parent's state.
    pub old: Option<Account>,
    /// The account after the block, or `None` if it was removed.
    pub new: Option<Account>,
    /// The changed slots.
    pub slots: Vec<SlotChange>,
}

/// The difference between a block's state and its parent's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateDiff {
    /// The changed accounts.
    pub accounts: Vec<AccountChange>,
    /// New code that a changed account refers to.
    pub codes: Vec<(B256, Bytes)>,
}

impl StateDiff {
    /// The change of one account, found by binary search.
    pub fn account(&self, hashed_address: &B256) -> Option<&AccountChange> {
        let at = self.accounts.binary_search_by(|change| change.hashed_address.cmp(hashed_address)).ok()?;
        Some(&self.accounts[at])
    }

    /// New code by its hash, found by binary search.
    pub fn code(&self, code_hash: &B256) -> Option<&Bytes> {
        let at = self.codes.binary_search_by(|(hash, _)| hash.cmp(code_hash)).ok()?;
        Some(&self.codes[at].1)
    }

    /// The number of changed slots over all accounts.
    pub fn slot_count(&self) -> usize {
        self.accounts.iter().map(|account| account.slots.len()).sum()
    }

    /// As an accumulated state: resolved against the parent's state, it leads to the block's. Merge several by
    /// [`crate::resolve_all`].
    pub fn to_post_state(&self) -> HashedPostState {
        let mut state = HashedPostState::new(EmptyAccounts::Keep);
        for change in &self.accounts {
            let slots = change.slots.iter().map(|slot| (slot.hashed_slot, slot.new));
            state.accounts.insert(change.hashed_address, delta_of(change.new.as_ref(), slots));
        }
        state.codes.extend(self.codes.iter().cloned());
        state
    }

    /// What has to be put back to return to the parent's state.
    pub fn reverse(&self) -> ReverseDiff {
        let accounts = self.accounts.iter().map(|change| AccountValues {
            hashed_address: change.hashed_address,
            record: change.old.map_or_else(Bytes::new, |account| account.to_bytes().into()),
            slots: change
                .slots
                .iter()
                .map(|change| SlotValue { hashed_slot: change.hashed_slot, value: change.old })
                .collect(),
        });
        ReverseDiff { accounts: accounts.collect() }
    }
}

/// A slot's value in one of the two states that a difference lies between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub struct SlotValue {
    /// keccak256 of the slot.
    pub hashed_slot: B256,
    /// The value; zero if the slot is not there.
    pub value: U256,
}

/// An account and its changed slots in one of the two states that a difference lies between.
#[derive(Debug, Clone, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub struct AccountValues {
    /// keccak256 of the address.
    pub hashed_address: B256,
    /// [`Account::to_bytes`], or nothing if there is no account.
    pub record: Bytes,
    /// The changed slots.
    pub slots: Vec<SlotValue>,
}

/// Checks what a decoder has to: keys in order, each once, and accounts that are accounts.
pub(crate) fn check_values(accounts: &[AccountValues]) -> Result<(), &'static str> {
    let sorted = accounts.is_sorted_by(|a, b| a.hashed_address < b.hashed_address)
        && accounts.iter().all(|account| account.slots.is_sorted_by(|a, b| a.hashed_slot < b.hashed_slot));
    if !sorted {
        return Err("keys out of order");
    }
    if accounts.iter().any(|account| !account.record.is_empty() && Account::from_bytes(&account.record).is_none()) {
        return Err("account record");
    }
    Ok(())
}

/// One side of a difference as an accumulated state: resolved against the other side, it leads to this one. Storage roots
/// do not go in: they are what a fold computes.
pub(crate) fn post_state(accounts: &[AccountValues]) -> HashedPostState {
    let mut state = HashedPostState::new(EmptyAccounts::Keep);
    for account in accounts {
        let slots = account.slots.iter().map(|slot| (slot.hashed_slot, slot.value));
        state.accounts.insert(account.hashed_address, delta_of(account.account().as_ref(), slots));
    }
    state
}

impl AccountValues {
    /// The account.
    pub fn account(&self) -> Option<Account> {
        Account::from_bytes(&self.record)
    }
}

/// What makes an account this one, with these of its slots.
pub(crate) fn delta_of(account: Option<&Account>, slots: impl Iterator<Item = (B256, U256)>) -> AccountDelta {
    match account {
        Some(account) => AccountDelta {
            nonce: Some(account.nonce),
            balance: Some(account.balance),
            code_hash: Some(account.code_hash),
            storage: slots.collect(),
            ..AccountDelta::default()
        },
        None => AccountDelta { cleared: Cleared::Account, ..AccountDelta::default() },
    }
}

/// What has to be put back to return from a block's state to its parent's. Stored with each commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReverseDiff {
    /// Sorted by hashed address.
    pub accounts: Vec<AccountValues>,
}

/// A stored reverse diff that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed reverse diff: {0}")]
pub struct MalformedReverseDiff(&'static str);

impl ReverseDiff {
    /// Encodes as RLP: a list of `[hashed_address, record, [[hashed_slot, value], ..]]`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.accounts.encode(&mut out);
        out
    }

    /// Decodes what [`ReverseDiff::to_bytes`] wrote.
    ///
    /// # Errors
    /// If the bytes are not such a list, are out of order, or hold a malformed account record.
    pub fn from_bytes(mut bytes: &[u8]) -> Result<Self, MalformedReverseDiff> {
        let accounts = Vec::<AccountValues>::decode(&mut bytes).map_err(|_| MalformedReverseDiff("not RLP"))?;
        if !bytes.is_empty() {
            return Err(MalformedReverseDiff("trailing bytes"));
        }
        check_values(&accounts).map_err(MalformedReverseDiff)?;
        Ok(Self { accounts })
    }

    /// As an accumulated state: resolved against the block's state, it leads back to the parent's. Merge several with
    /// [`HashedPostState::merge`], the youngest block's first.
    pub fn to_post_state(&self) -> HashedPostState {
        post_state(&self.accounts)
    }
}
