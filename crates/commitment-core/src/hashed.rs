//! The accumulated state of one block (or several) in hashed keys: the one form that access lists and executed writes
//! both become.
//!
//! Invariants:
//! 1. Executed writes enter by [`HashedPostState::apply_writes`] alone. An access list, which has its keys hashed together
//!    with those that it only reads, enters as a whole, and is equal to its writes applied.
//! 2. A later write wins over an earlier one, field by field and slot by slot.
//! 3. Nothing here was read from the parent's state: a field that is `None` keeps the parent's value, and a value that
//!    was given is never overwritten by one that was read.

use alloy_primitives::{
    B256, Bytes, KECCAK256_EMPTY, U256,
    map::{B256Map, hash_map::Entry},
};
use serde::{Deserialize, Serialize};

use crate::{account::AccountInfo, keys::KeyHasher, writes::StateWrites};

/// What becomes of an account whose final fields are all empty (nonce 0, balance 0, no code).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum EmptyAccounts {
    /// It stays unless it was deleted explicitly: executed writes say themselves what is deleted, and chains older than
    /// EIP-158 keep empty accounts.
    #[default]
    Keep,
    /// It is removed (EIP-161): an access list carries no deletion marker.
    Remove,
}

/// How much of the parent's account survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Cleared {
    /// Everything that the delta does not name.
    #[default]
    Nothing,
    /// The fields; all storage that the delta does not name is gone.
    Storage,
    /// Nothing: the account was deleted. If the delta names any field, a new account stands in its place.
    Account,
}

/// What changed of one account, relative to the parent's state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountDelta {
    /// What of the parent's account is gone.
    pub cleared: Cleared,
    /// The final nonce, if it was written.
    pub nonce: Option<u64>,
    /// The final balance in wei, if it was written.
    pub balance: Option<U256>,
    /// keccak256 of the final code, if it was written.
    pub code_hash: Option<B256>,
    /// Hashed slot to final value; zero removes the slot.
    pub storage: B256Map<U256>,
}

impl AccountDelta {
    /// Whether nonce, balance or code was written.
    pub const fn has_fields(&self) -> bool {
        self.nonce.is_some() || self.balance.is_some() || self.code_hash.is_some()
    }

    /// The account's fields after this delta over `parent`'s; `None` where no account stands.
    ///
    /// EIP-161 is not applied here: see [`EmptyAccounts`].
    pub fn merge_info(&self, parent: Option<AccountInfo>) -> Option<AccountInfo> {
        let base = if self.cleared == Cleared::Account { None } else { parent };
        if base.is_none() && !self.has_fields() {
            return None;
        }
        let base = base.unwrap_or_default();
        Some(AccountInfo {
            nonce: self.nonce.unwrap_or(base.nonce),
            balance: self.balance.unwrap_or(base.balance),
            code_hash: self.code_hash.unwrap_or(base.code_hash),
        })
    }

    /// The slot's value as far as this delta knows it; `None` sends the reader on to the parent.
    pub fn slot(&self, hashed_slot: &B256) -> Option<U256> {
        match self.storage.get(hashed_slot) {
            Some(value) => Some(*value),
            None if self.cleared == Cleared::Nothing => None,
            None => Some(U256::ZERO),
        }
    }

    /// Forgets everything that was accumulated and records that the account was deleted.
    pub fn delete(&mut self) {
        *self = Self { cleared: Cleared::Account, ..Self::default() };
    }

    /// Forgets the accumulated slots and records that all storage is gone.
    pub fn wipe_storage(&mut self) {
        self.cleared = self.cleared.max(Cleared::Storage);
        self.storage.clear();
    }

    /// Applies a later delta of the same account.
    pub fn merge(&mut self, later: &Self) {
        match later.cleared {
            Cleared::Nothing => {}
            Cleared::Storage => self.wipe_storage(),
            Cleared::Account => self.delete(),
        }
        self.nonce = later.nonce.or(self.nonce);
        self.balance = later.balance.or(self.balance);
        self.code_hash = later.code_hash.or(self.code_hash);
        self.storage.extend(&later.storage);
    }
}

/// An account that was written, or one of its slots. An account comes before its slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WrittenKey {
    /// keccak256 of the address.
    pub hashed_address: B256,
    /// keccak256 of the slot.
    pub hashed_slot: Option<B256>,
}

/// The changes of a block, or of several in order, in hashed keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashedPostState {
    /// What becomes of accounts whose final fields are empty.
    pub empty_accounts: EmptyAccounts,
    /// The changed accounts by hashed address.
    pub accounts: B256Map<AccountDelta>,
    /// New code by its hash. It may hold code that a later write replaced.
    pub codes: B256Map<Bytes>,
}

impl HashedPostState {
    /// An empty accumulation under the given rule for empty accounts.
    pub fn new(empty_accounts: EmptyAccounts) -> Self {
        Self { empty_accounts, ..Self::default() }
    }

    /// Whether nothing was accumulated.
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// Accumulates the writes of the next block access index.
    ///
    /// `hasher` keeps its buffers from call to call.
    pub fn apply_writes(&mut self, writes: &StateWrites, hasher: &mut KeyHasher) {
        self.apply_writes_noting(writes, hasher, |_| {});
    }

    /// The same; `note` is told of every account and slot that nothing was known of before.
    pub fn apply_writes_noting(
        &mut self,
        writes: &StateWrites,
        hasher: &mut KeyHasher,
        mut note: impl FnMut(WrittenKey),
    ) {
        let keys = hasher.hash_writes(writes);
        let mut slots = keys.slots.iter();
        for ((_, write), hashed_address) in writes.accounts.iter().zip(keys.addresses) {
            let mut hashed_slots = slots.by_ref().take(write.storage.len());
            if write.is_empty() {
                continue;
            }
            let delta = match self.accounts.entry(*hashed_address) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => {
                    note(WrittenKey { hashed_address: *hashed_address, hashed_slot: None });
                    place.insert(AccountDelta::default())
                }
            };
            if write.deleted {
                delta.delete();
            }
            if write.storage_wiped {
                delta.wipe_storage();
            }
            delta.nonce = write.nonce.or(delta.nonce);
            delta.balance = write.balance.or(delta.balance);
            if let Some(code) = &write.code {
                delta.code_hash = Some(code.hash());
                if code.hash() != KECCAK256_EMPTY {
                    self.codes.entry(code.hash()).or_insert_with(|| code.bytes().clone());
                }
            }
            for ((_, value), hashed_slot) in write.storage.iter().zip(hashed_slots.by_ref()) {
                if delta.storage.insert(*hashed_slot, *value).is_none() {
                    note(WrittenKey { hashed_address: *hashed_address, hashed_slot: Some(*hashed_slot) });
                }
            }
        }
    }

    /// Every account and slot that something is known of, in no order.
    pub fn written_keys(&self) -> impl Iterator<Item = WrittenKey> {
        self.accounts.iter().flat_map(|(hashed_address, delta)| {
            let slots = delta.storage.keys().map(|slot| Some(*slot));
            std::iter::once(None)
                .chain(slots)
                .map(|hashed_slot| WrittenKey { hashed_address: *hashed_address, hashed_slot })
        })
    }

    /// Applies the accumulated changes of a later block.
    ///
    /// The rule for empty accounts must be the same for both: under [`EmptyAccounts::Remove`] an account that is empty
    /// after the earlier block and not named by the later one is removed by the common resolution all the same.
    pub fn merge(&mut self, later: &Self) {
        debug_assert!(self.is_empty() || self.empty_accounts == later.empty_accounts);
        self.empty_accounts = later.empty_accounts;
        for (hashed_address, delta) in &later.accounts {
            match self.accounts.entry(*hashed_address) {
                Entry::Occupied(mut earlier) => earlier.get_mut().merge(delta),
                Entry::Vacant(place) => drop(place.insert(delta.clone())),
            }
        }
        for (hash, code) in &later.codes {
            self.codes.entry(*hash).or_insert_with(|| code.clone());
        }
    }

    /// Whether an account with these fields stands after this state's rule for empty accounts.
    pub fn keeps(&self, info: &AccountInfo) -> bool {
        self.empty_accounts == EmptyAccounts::Keep || !info.is_empty()
    }
}
