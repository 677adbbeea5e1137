//! A list that was decoded, held to the rules and hashed, in one walk over its bytes.
//!
//! ```text
//! raw bytes --walk--> flat tables: addresses, slots, final fields and values     decoding and rules on the way
//!                        |  keccak256, eight keys at a time, each key once
//!                        v
//!                     ListedKeys: sorted for the warm-up, looked up by the executor
//!                     HashedPostState: what the fold resolves
//! ```
//!
//! Invariants:
//! 1. The raw bytes have the hash that was asked for, are canonical RLP of a list's shape, and keep the rules.
//! 2. The state is what [`HashedPostState::apply_writes`] makes of [`crate::writes`] over the whole list.
//! 3. The types of `alloy-eip7928` are built only for whoever asks for them, and then once.

use std::sync::{Arc, OnceLock};

use alloy_eip7928::{AccountChanges, BlockAccessList};
use alloy_primitives::{B256, Bytes, KECCAK256_EMPTY};
use foldgate_core::{
    TouchedAccount, TouchedSlot,
    hashed::{AccountDelta, Cleared, EmptyAccounts, HashedPostState},
};
use foldgate_keccak::keccak256_batch;

use crate::{
    decode::{DecodeError, decode, walk},
    flat::{FinalFields, Flat},
    hash::{HashMismatch, bal_hash, check_hash},
    keys::ListedKeys,
    mismatch::{BalMismatch, first_mismatch},
    rlp::Uint,
    validate::{BalLimits, Violation},
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

/// A list that passed every check, with all that it claims in hashed keys.
#[derive(Debug)]
pub struct Bal {
    raw: Bytes,
    hash: B256,
    post_state: Arc<HashedPostState>,
    keys: ListedKeys,
    accounts: OnceLock<BlockAccessList>,
}

impl Bal {
    /// Checks the hash if a header commits to one, decodes, holds the list to the rules, and hashes its keys.
    ///
    /// What is refused is refused in this order; but an account that breaks a rule comes before one after it that does
    /// not decode. So a list with too many items is refused before it is decoded as a whole.
    ///
    /// # Errors
    /// [`BalError`], which tells the three apart.
    pub fn decode_checked(raw: Bytes, expected_hash: Option<B256>, limits: &BalLimits) -> Result<Self, BalError> {
        let hash = match expected_hash {
            Some(expected) => check_hash(&raw, expected)?,
            None => bal_hash(&raw),
        };
        let mut flat = Flat::new(*limits, raw.len());
        walk(&raw, &mut flat)?;
        let Flat { addresses, slots, ranges, fields, values, .. } = flat;
        let keys = ListedKeys::new(addresses, slots, ranges);
        let post_state = Arc::new(post_state(&keys, &fields, values));
        Ok(Self { raw, hash, post_state, keys, accounts: OnceLock::new() })
    }

    /// The bytes that the hash is of.
    pub const fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// keccak256 of the raw bytes.
    pub const fn hash(&self) -> B256 {
        self.hash
    }

    /// What the list wrote by its end, in hashed keys. Accounts that end empty are removed when it is resolved
    /// (EIP-161), because a list carries no deletion marker.
    pub const fn post_state(&self) -> &Arc<HashedPostState> {
        &self.post_state
    }

    /// Everything that the list names, read or written, with the hashes of the keys.
    pub const fn keys(&self) -> &ListedKeys {
        &self.keys
    }

    /// What the list names, sorted by hashed keys, with what of it changes: what [`foldgate_core::Cached::warm`] takes.
    pub fn touched(&self) -> Vec<TouchedAccount> {
        let changed = &self.post_state().accounts;
        let touched = self.keys().sorted().map(|(hashed_address, slots)| TouchedAccount {
            hashed_address: *hashed_address,
            changed: changed.contains_key(hashed_address),
            slots: slots.map(|(hashed_slot, changed)| TouchedSlot { hashed_slot: *hashed_slot, changed }).collect(),
        });
        touched.collect()
    }

    /// The accounts in the list's order, decoded at the first call.
    pub fn accounts(&self) -> &[AccountChanges] {
        self.accounts.get_or_init(|| {
            // UNWRAP: the same walk has accepted the same bytes before.
            decode(&self.raw).expect("a list that was accepted decodes")
        })
    }

    /// The first difference from the list that execution rebuilt, or `None` if they are equal.
    pub fn first_mismatch(&self, rebuilt: &[AccountChanges]) -> Option<BalMismatch> {
        first_mismatch(self.accounts(), rebuilt)
    }
}

/// Brings final fields, and the values of all written slots, under their hashed keys.
fn post_state(keys: &ListedKeys, fields: &[FinalFields<'_>], values: Vec<Uint<'_>>) -> HashedPostState {
    let mut state = HashedPostState::new(EmptyAccounts::Remove);
    let changed = || keys.written().zip(fields).filter(|((_, slots), fields)| !slots.is_empty() || fields.any());
    state.accounts.reserve(changed().count());
    let mut values = values.into_iter().map(Uint::to_u256);
    let codes: Vec<_> = fields.iter().filter_map(|fields| fields.code).collect();
    let mut code_hashes = vec![B256::ZERO; codes.len()];
    keccak256_batch(&codes, &mut code_hashes);
    let mut codes = codes.into_iter().zip(code_hashes);
    for ((hashed_address, slots), fields) in changed() {
        let code = fields.code.and_then(|_| codes.next());
        if let Some((code, hash)) = code.filter(|(_, hash)| *hash != KECCAK256_EMPTY) {
            // Copied, so that a cached code does not keep the whole list in memory.
            state.codes.entry(hash).or_insert_with(|| Bytes::copy_from_slice(code));
        }
        let delta = AccountDelta {
            cleared: Cleared::Nothing,
            nonce: fields.nonce,
            balance: fields.balance.map(Uint::to_u256),
            code_hash: code.map(|(_, hash)| hash),
            storage: slots.iter().copied().zip(values.by_ref()).collect(),
        };
        state.accounts.insert(*hashed_address, delta);
    }
    state
}

#[cfg(test)]
mod tests {
    use alloy_eip7928::{BalanceChange, BlockAccessIndex, CodeChange, SlotChanges, StorageChange};
    use alloy_primitives::{Address, U256, keccak256};
    use foldgate_core::keys::{hash_address, hash_slot};

    use super::*;
    use crate::{encode, validate};

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
        let accounts = [account(1), account(2)];
        let good = encode(&accounts);
        let hash = bal_hash(&good);
        for expected in [Some(hash), None] {
            let bal = Bal::decode_checked(good.clone(), expected, &LIMITS).unwrap();
            assert_eq!((bal.raw(), bal.hash(), bal.accounts()), (&good, hash, &accounts[..]));
        }

        let unordered = [account(2), account(1)];
        let raw = encode(&unordered);
        let refused = |raw: &Bytes, expected| Bal::decode_checked(raw.clone(), expected, &LIMITS).unwrap_err();
        let got = bal_hash(&raw);
        assert_eq!(refused(&raw, Some(hash)), HashMismatch { got, expected: hash }.into());
        let violation = validate(&unordered, &LIMITS).unwrap_err();
        assert!(matches!(violation, Violation::AccountOrder { .. }));
        assert_eq!(refused(&raw, Some(got)), violation.into());
        assert_eq!(refused(&raw, None), violation.into());

        let cut = good.slice(..good.len() - 1);
        assert!(matches!(refused(&cut, Some(hash)), BalError::Hash(_)));
        assert_eq!(refused(&cut, Some(bal_hash(&cut))), decode(&cut).unwrap_err().into());
    }

    #[test]
    fn the_empty_list_has_the_hash_that_the_eip_names() {
        let empty = Bal::decode_checked(encode(&[]), None, &BalLimits::new(0, 0)).unwrap();
        assert_eq!(empty.raw()[..], [0xc0]);
        assert_eq!(empty.hash(), alloy_eip7928::EMPTY_BLOCK_ACCESS_LIST_HASH);
        assert!(empty.post_state().is_empty() && empty.accounts().is_empty());
    }

    #[test]
    fn the_post_state_is_in_hashed_keys_and_leaves_deletion_to_its_resolution() {
        let read = AccountChanges { storage_reads: vec![U256::from(5)], ..AccountChanges::new(Address::ZERO) };
        let bal = Bal::decode_checked(encode(&[read, account(1)]), None, &LIMITS).unwrap();
        let state = bal.post_state();
        assert_eq!(state.empty_accounts, EmptyAccounts::Remove);
        assert_eq!(state.accounts.len(), 1, "what is only read is not written");
        let delta = &state.accounts[&hash_address(&Address::with_last_byte(1))];
        assert_eq!((delta.nonce, delta.balance, delta.code_hash), (None, Some(U256::from(8)), None));
        assert_eq!(delta.slot(&hash_slot(&U256::from(6))), Some(U256::ZERO));
        assert_eq!((bal.keys().account_count(), bal.keys().slot_count()), (2, 2));
    }

    #[test]
    fn codes_go_to_the_accounts_that_they_belong_to() {
        let code = |byte: u8, codes: &[&'static [u8]]| AccountChanges {
            code_changes: codes
                .iter()
                .zip(0..)
                .map(|(code, index)| CodeChange::new(BlockAccessIndex::new(index), Bytes::from_static(code)))
                .collect(),
            ..AccountChanges::new(Address::with_last_byte(byte))
        };
        let list = [account(1), code(2, &[b"old", b"new"]), account(3), code(4, &[b"x", b""]), code(5, &[b"other"])];
        let bal = Bal::decode_checked(encode(&list), None, &LIMITS).unwrap();
        let state = bal.post_state();
        let hash_of = |byte| state.accounts[&hash_address(&Address::with_last_byte(byte))].code_hash;
        let expected = [None, Some(keccak256("new")), None, Some(KECCAK256_EMPTY), Some(keccak256("other"))];
        assert_eq!([1, 2, 3, 4, 5].map(hash_of), expected);
        assert_eq!(state.codes.len(), 2, "neither replaced code nor empty code");
        assert_eq!(state.codes[&keccak256("new")][..], b"new"[..]);
        assert_eq!(state.codes[&keccak256("other")][..], b"other"[..]);
    }
}
