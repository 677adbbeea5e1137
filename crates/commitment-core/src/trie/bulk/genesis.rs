//! The state that a genesis lists.
//!
//! Invariant: items come in the order that a load asks for.

use std::collections::BTreeMap;

use alloy_primitives::{Address, Bytes, KECCAK256_EMPTY, U256, keccak256};

use super::LoadItem;
use crate::{
    account::AccountInfo,
    keys::{hash_address, hash_slot},
};

/// An account as a genesis file lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GenesisAccount {
    /// The nonce.
    pub nonce: u64,
    /// The balance in wei.
    pub balance: U256,
    /// The code; empty for an account without.
    pub code: Bytes,
    /// Values by slot. Zero values are no slots.
    pub storage: BTreeMap<U256, U256>,
}

/// The items of a genesis, sorted. Every account that is listed becomes one, also an empty one.
///
/// An address that is listed twice makes the load fail with [`BulkError::Unsorted`](super::BulkError::Unsorted).
pub fn genesis_items(accounts: impl IntoIterator<Item = (Address, GenesisAccount)>) -> Vec<LoadItem> {
    let mut codes = BTreeMap::new();
    let mut hashed: Vec<_> = accounts
        .into_iter()
        .map(|(address, account)| {
            let code_hash = if account.code.is_empty() { KECCAK256_EMPTY } else { keccak256(&account.code) };
            if code_hash != KECCAK256_EMPTY {
                codes.entry(code_hash).or_insert(account.code);
            }
            let info = AccountInfo { nonce: account.nonce, balance: account.balance, code_hash };
            let slots = account.storage.into_iter().filter(|(_, value)| !value.is_zero());
            let mut slots: Vec<_> = slots.map(|(slot, value)| (hash_slot(&slot), value)).collect();
            slots.sort_unstable_by_key(|(hashed_slot, _)| *hashed_slot);
            (hash_address(&address), info, slots)
        })
        .collect();
    hashed.sort_by_key(|(hashed_address, ..)| *hashed_address);
    let mut items: Vec<_> = codes.into_iter().map(|(code_hash, code)| LoadItem::Code { code_hash, code }).collect();
    for (hashed_address, info, slots) in hashed {
        items.push(LoadItem::Account { hashed_address, info });
        items.extend(slots.into_iter().map(|(hashed_slot, value)| LoadItem::Slot { hashed_slot, value }));
    }
    items
}
