//! An accumulated state meets the parent's state: missing fields are filled in, EIP-161 is applied, what did not change
//! is dropped.
//!
//! Invariants:
//! 1. A value that the accumulation gives is never replaced by one that was read.
//! 2. Two accumulations that lead from the same parent to the same state resolve to equal [`LeafChanges`], whatever
//!    they list besides (no-op writes, replaced code, accounts created and destroyed).
//! 3. What is removed is listed leaf by leaf, so that the result can be inverted.

use alloy_primitives::{B256, Bytes, U256, map::B256Map};
use alloy_trie::EMPTY_ROOT_HASH;

use crate::{
    account::{Account, AccountInfo},
    diff::{AccountLeafChange, LeafChanges, SlotChange},
    hashed::{AccountDelta, Cleared, HashedPostState},
    store::{TrieReader, next_key},
};

/// How many leaves one ordered read asks for when a whole storage trie is removed.
const SCAN_CHUNK: usize = 1024;

/// Resolves `state` against the state of its parent. Reads the account and the old value of each slot that it names,
/// in order of their keys; nothing else, unless storage is removed as a whole.
///
/// # Errors
/// If a read fails.
pub fn resolve<R: TrieReader>(state: &HashedPostState, parent: &R) -> Result<LeafChanges, R::Error> {
    let mut sorted: Vec<_> = state.accounts.iter().collect();
    sorted.sort_unstable_by_key(|(hashed_address, _)| **hashed_address);
    let mut changes = LeafChanges::default();
    for (hashed_address, delta) in sorted {
        let old = parent.account(hashed_address)?;
        let new = delta.merge_info(old.map(Account::into)).filter(|info| state.keeps(info));
        let slots = resolve_slots(parent, hashed_address, delta, old.as_ref(), new.as_ref())?;
        if slots.is_empty() && old.as_ref().map(Account::info) == new {
            continue;
        }
        changes.accounts.push(AccountLeafChange { hashed_address: *hashed_address, old, new, slots });
    }
    changes.codes = new_codes(&changes.accounts, &state.codes);
    Ok(changes)
}

fn resolve_slots<R: TrieReader>(
    parent: &R,
    hashed_address: &B256,
    delta: &AccountDelta,
    old: Option<&Account>,
    new: Option<&AccountInfo>,
) -> Result<Vec<SlotChange>, R::Error> {
    let had_storage = old.is_some_and(|account| account.storage_root != EMPTY_ROOT_HASH);
    let mut slots = if had_storage && (new.is_none() || delta.cleared != Cleared::Nothing) {
        removed_slots(parent, hashed_address, delta)?
    } else {
        let mut slots = Vec::with_capacity(delta.storage.len());
        let mut keys: Vec<_> = delta.storage.iter().collect();
        keys.sort_unstable_by_key(|(hashed_slot, _)| **hashed_slot);
        for (hashed_slot, new) in keys {
            let old = if had_storage { parent.storage(hashed_address, hashed_slot)? } else { U256::ZERO };
            slots.push(SlotChange { hashed_slot: *hashed_slot, old, new: *new });
        }
        slots
    };
    if new.is_none() {
        slots.iter_mut().for_each(|slot| slot.new = U256::ZERO);
    }
    slots.retain(|slot| slot.old != slot.new);
    Ok(slots)
}

/// Every slot of the parent's storage trie, with what the delta says of it, and the delta's other slots.
fn removed_slots<R: TrieReader>(
    parent: &R,
    hashed_address: &B256,
    delta: &AccountDelta,
) -> Result<Vec<SlotChange>, R::Error> {
    let mut slots = Vec::new();
    let mut added = delta.storage.clone();
    let mut start = Some(B256::ZERO);
    while let Some(from) = start {
        let page = parent.slots_from(hashed_address, &from, SCAN_CHUNK)?;
        start = page.last().filter(|_| page.len() == SCAN_CHUNK).and_then(|(last, _)| next_key(last));
        slots.extend(page.into_iter().map(|(hashed_slot, old)| {
            let new = added.remove(&hashed_slot).unwrap_or_default();
            SlotChange { hashed_slot, old, new }
        }));
    }
    slots.extend(added.into_iter().map(|(hashed_slot, new)| SlotChange { hashed_slot, old: U256::ZERO, new }));
    slots.sort_unstable_by_key(|slot| slot.hashed_slot);
    Ok(slots)
}

/// The code that a changed account refers to and did not refer to before, as far as the accumulation brings it.
fn new_codes(accounts: &[AccountLeafChange], codes: &B256Map<Bytes>) -> Vec<(B256, Bytes)> {
    let referred = accounts.iter().filter_map(|change| {
        let hash = change.new?.code_hash;
        let replaced = change.old.is_none_or(|old| old.code_hash != hash);
        replaced.then(|| codes.get_key_value(&hash)).flatten()
    });
    let mut new: Vec<_> = referred.map(|(hash, code)| (*hash, code.clone())).collect();
    new.sort_unstable_by_key(|(hash, _)| *hash);
    new.dedup_by_key(|(hash, _)| *hash);
    new
}
