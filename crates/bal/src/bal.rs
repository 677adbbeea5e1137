//! A list with its raw bytes and its hash.
//!
//! Invariant: `raw` is the canonical encoding of `accounts`, and `hash` its keccak256; nothing changes them.

use std::sync::Arc;

use alloy_eip7928::{AccountChanges, BlockAccessIndex, BlockAccessList};
use alloy_primitives::{B256, Bytes};
use foldgate_core::{
    hashed::{EmptyAccounts, HashedPostState},
    keys::KeyHasher,
    writes::StateWrites,
};

use crate::{
    decode::{Accounts, DecodeError, decode},
    encode::encode,
    hash::{HashMismatch, bal_hash, check_hash},
    mismatch::{BalMismatch, first_mismatch},
    touch::{Touch, touches},
    validate::{BalLimits, Validator, Violation, validate},
    values::writes,
};

/// Why [`Bal::decode_checked`] refuses raw bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BalError {
    /// They are not the list that the header commits to. This says nothing about the block unless they came with it.
    #[error(transparent)]
    Hash(#[from] HashMismatch),
    /// They are, but they are not canonical RLP of a list's shape: the block is invalid.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// They are, but the list breaks a rule: the block is invalid.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// A decoded list, its raw bytes and its hash. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bal {
    raw: Bytes,
    hash: B256,
    accounts: Arc<BlockAccessList>,
}

impl Bal {
    /// Decodes raw bytes and hashes them. The rules are not checked: see [`Self::validate`].
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(raw: Bytes) -> Result<Self, DecodeError> {
        let accounts = decode(&raw)?;
        Ok(Self { hash: bal_hash(&raw), raw, accounts: Arc::new(accounts) })
    }

    /// Checks the hash, decodes, and holds the list to the rules, in this order. Rules are checked account by account,
    /// so that a list with too many items is refused before it is decoded as a whole.
    ///
    /// # Errors
    /// [`BalError`], which tells the three apart.
    pub fn decode_checked(raw: Bytes, expected_hash: B256, limits: &BalLimits) -> Result<Self, BalError> {
        let hash = check_hash(&raw, expected_hash)?;
        let mut validator = Validator::new(*limits);
        let mut accounts = BlockAccessList::new();
        for account in Accounts::new(&raw)? {
            let account = account?;
            validator.account(&account)?;
            accounts.push(account);
        }
        Ok(Self { raw, hash, accounts: Arc::new(accounts) })
    }

    /// Encodes a list, for instance one that execution rebuilt, and hashes it. What was written is read again: a list
    /// that does not survive that has no canonical form.
    ///
    /// # Errors
    /// [`DecodeError`] if an index does not fit 32 bits.
    pub fn from_accounts(accounts: BlockAccessList) -> Result<Self, DecodeError> {
        let raw = encode(&accounts);
        let decoded = decode(&raw)?;
        debug_assert_eq!(decoded, accounts);
        Ok(Self { hash: bal_hash(&raw), raw, accounts: Arc::new(accounts) })
    }

    /// The bytes that the hash is of.
    pub const fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// keccak256 of the raw bytes.
    pub const fn hash(&self) -> B256 {
        self.hash
    }

    /// The accounts in the list's order.
    pub fn accounts(&self) -> &[AccountChanges] {
        &self.accounts
    }

    /// Holds the list to a header's commitment.
    ///
    /// # Errors
    /// [`HashMismatch`].
    pub fn check_hash(&self, expected: B256) -> Result<(), HashMismatch> {
        if self.hash == expected { Ok(()) } else { Err(HashMismatch { got: self.hash, expected }) }
    }

    /// Holds the list to the rules.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn validate(&self, limits: &BalLimits) -> Result<(), Violation> {
        validate(&self.accounts, limits)
    }

    /// What the list wrote up to and including index `up_to`, or by its end if that is `None`: see [`writes`].
    pub fn writes(&self, up_to: Option<BlockAccessIndex>) -> StateWrites {
        writes(&self.accounts, up_to)
    }

    /// [`Self::writes`] in hashed keys. Accounts that end empty are removed when it is resolved (EIP-161), because a list
    /// carries no deletion marker.
    pub fn to_post_state(&self, up_to: Option<BlockAccessIndex>, hasher: &mut KeyHasher) -> HashedPostState {
        let mut state = HashedPostState::new(EmptyAccounts::Remove);
        state.apply_writes(&self.writes(up_to), hasher);
        state
    }

    /// Everything that the list names: see [`touches`].
    pub fn touches(&self) -> impl Iterator<Item = Touch> {
        touches(&self.accounts)
    }

    /// The first difference from the list that execution rebuilt, or `None` if they are equal.
    pub fn first_mismatch(&self, rebuilt: &[AccountChanges]) -> Option<BalMismatch> {
        first_mismatch(&self.accounts, rebuilt)
    }
}

#[cfg(test)]
mod tests {
    use alloy_eip7928::{BalanceChange, SlotChanges, StorageChange};
    use alloy_primitives::{Address, U256};
    use foldgate_core::keys::{hash_address, hash_slot};

    use super::*;

    const LIMITS: BalLimits = BalLimits::new(1, 60_000_000);

    fn account(byte: u8) -> AccountChanges {
        let change = |index, value| StorageChange::new(BlockAccessIndex::new(index), U256::from(value));
        AccountChanges {
            storage_changes: vec![SlotChanges::new(U256::from(6), vec![change(0, 1), change(1, 0)])],
            balance_changes: vec![BalanceChange::new(BlockAccessIndex::new(1), U256::from(8))],
            ..AccountChanges::new(Address::with_last_byte(byte))
        }
    }

    #[test]
    fn hash_decoding_and_rules_are_judged_in_this_order() {
        let good = Bal::from_accounts(vec![account(1), account(2)]).unwrap();
        assert_eq!(Bal::decode_checked(good.raw().clone(), good.hash(), &LIMITS), Ok(good.clone()));
        assert_eq!(Bal::decode(good.raw().clone()), Ok(good.clone()));
        assert_eq!(good.check_hash(good.hash()), Ok(()));

        let unordered = Bal::from_accounts(vec![account(2), account(1)]).unwrap();
        let mismatch = HashMismatch { got: unordered.hash(), expected: good.hash() };
        assert_eq!(Bal::decode_checked(unordered.raw().clone(), good.hash(), &LIMITS), Err(mismatch.into()));
        assert_eq!(unordered.check_hash(good.hash()), Err(mismatch));
        let violation = unordered.validate(&LIMITS).unwrap_err();
        assert!(matches!(violation, Violation::AccountOrder { .. }));
        let refused = Bal::decode_checked(unordered.raw().clone(), unordered.hash(), &LIMITS);
        assert_eq!(refused, Err(violation.into()));

        let cut = good.raw().slice(..good.raw().len() - 1);
        let fault = Bal::decode(cut.clone()).unwrap_err();
        assert_eq!(Bal::decode_checked(cut.clone(), bal_hash(&cut), &LIMITS), Err(fault.into()));
    }

    #[test]
    fn a_list_without_canonical_form_is_refused() {
        let mut wide = account(1);
        wide.balance_changes[0].block_access_index = BlockAccessIndex::new(1 << 32);
        let error = Bal::from_accounts(vec![wide]).unwrap_err();
        assert_eq!(error.field, Some(crate::BalField::BalanceChanges));
    }

    #[test]
    fn the_empty_list_has_the_hash_that_the_eip_names() {
        let empty = Bal::from_accounts(vec![]).unwrap();
        assert_eq!(empty.raw()[..], [0xc0]);
        assert_eq!(empty.hash(), alloy_eip7928::EMPTY_BLOCK_ACCESS_LIST_HASH);
    }

    #[test]
    fn the_post_state_is_in_hashed_keys_and_leaves_deletion_to_its_resolution() {
        let bal = Bal::from_accounts(vec![account(1)]).unwrap();
        let mut hasher = KeyHasher::default();
        let state = bal.to_post_state(None, &mut hasher);
        assert_eq!(state.empty_accounts, EmptyAccounts::Remove);
        let delta = &state.accounts[&hash_address(&Address::with_last_byte(1))];
        assert_eq!((delta.nonce, delta.balance, delta.code_hash), (None, Some(U256::from(8)), None));
        assert_eq!(delta.slot(&hash_slot(&U256::from(6))), Some(U256::ZERO));
        let before = bal.to_post_state(Some(BlockAccessIndex::new(0)), &mut hasher);
        let delta = &before.accounts[&hash_address(&Address::with_last_byte(1))];
        assert_eq!((delta.balance, delta.slot(&hash_slot(&U256::from(6)))), (None, Some(U256::from(1))));
    }
}
