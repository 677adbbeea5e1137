//! An accumulated state meets the parent's state: missing fields are filled in, EIP-161 is applied, what did not change
//! is dropped.
//!
//! Invariants:
//! 1. A value that the accumulation gives is never replaced by one that was read.
//! 2. Two accumulations that lead from the same parent to the same state resolve to equal [`LeafChanges`], whatever
//!    they list besides (no-op writes, replaced code, accounts created and destroyed).
//! 3. What is removed is listed leaf by leaf, so that the result can be inverted.

use std::borrow::Borrow;

use alloy_primitives::{B256, Bytes, U256, map::B256Map};
use alloy_trie::EMPTY_ROOT_HASH;
use rayon::prelude::*;

use crate::{
    account::{Account, AccountInfo},
    diff::{AccountLeafChange, LeafChanges, SlotChange},
    hashed::{AccountDelta, Cleared, EmptyAccounts, HashedPostState},
    parts,
    sorted::sort,
    store::{TrieReader, next_key},
    trie::FoldOptions,
};

/// How many leaves one ordered read asks for when a whole storage trie is removed.
const SCAN_CHUNK: usize = 1024;

/// Resolves `state` against the state of its parent, on the calling thread. Reads the account and the old value of each
/// slot that it names, in order of their keys and in batches; nothing else, unless storage is removed as a whole.
///
/// # Errors
/// If a read fails.
pub fn resolve<R: TrieReader>(state: &HashedPostState, parent: &R) -> Result<LeafChanges, R::Error> {
    resolve_with(state, parent, &FoldOptions::SERIAL)
}

/// [`resolve`], with many accounts, or many slots of one, shared out to threads where the options allow it. They change
/// no result.
///
/// # Errors
/// If a read fails.
pub fn resolve_with<R: TrieReader>(
    state: &HashedPostState,
    parent: &R,
    options: &FoldOptions,
) -> Result<LeafChanges, R::Error> {
    let sorted = sorted_accounts(state);
    let slots: usize = sorted.iter().map(|(_, delta)| delta.storage.len()).sum();
    let weight = sorted.len() + slots;
    let parts = if options.parallel { (weight / MIN_PART).min(rayon::current_num_threads()) } else { 1 };
    let accounts = if parts < 2 {
        resolve_part(&sorted, state, parent, options)?
    } else {
        // An account weighs one, and one for each of its slots.
        let runs = parts::cut(sorted.iter().map(|(_, delta)| 1 + delta.storage.len()), parts);
        let parts: Vec<_> =
            runs.into_par_iter().map(|run| resolve_part(&sorted[run], state, parent, options)).collect();
        let mut accounts = Vec::with_capacity(sorted.len());
        // Of several failures the first in key order is reported, as on one thread.
        for part in parts {
            accounts.append(&mut part?);
        }
        accounts
    };
    let codes = new_codes(&accounts, &state.codes);
    Ok(LeafChanges { accounts, codes })
}

/// Some accounts, in order of their keys.
fn resolve_part<R: TrieReader>(
    sorted: &[(B256, &AccountDelta)],
    state: &HashedPostState,
    parent: &R,
    options: &FoldOptions,
) -> Result<Vec<AccountLeafChange>, R::Error> {
    let keys: Vec<_> = sorted.iter().map(|(hashed_address, _)| *hashed_address).collect();
    let olds = parent.accounts(&keys)?;
    let pending: Vec<_> = sorted.iter().zip(olds).map(|(item, old)| Pending::new(*item, old, state)).collect();
    // Where the parent has no storage, every old value is zero.
    let keys: Vec<_> =
        pending.iter().filter(|account| account.slots == SlotReads::Listed).flat_map(Pending::keys).collect();
    let mut olds = read_batch(&keys, options, |keys| parent.slots(keys))?.into_iter();
    let mut accounts = Vec::with_capacity(pending.len());
    for account in &pending {
        let slots = account.resolve_slots(parent, &mut olds)?;
        if slots.is_empty() && account.old.as_ref().map(Account::info) == account.new {
            continue;
        }
        let Pending { hashed_address, old, new, .. } = *account;
        accounts.push(AccountLeafChange { hashed_address, old, new, slots });
    }
    Ok(accounts)
}

/// The accounts in order of their keys.
fn sorted_accounts(state: &HashedPostState) -> Vec<(B256, &AccountDelta)> {
    sort(state.accounts.iter().map(|(key, delta)| (*key, delta)), |(key, _)| key)
}

/// Resolves the changes of several blocks in order, oldest first, against the state of the first one's parent: one fold
/// then leads to the state after the last one, whose root alone is computed.
///
/// Equal to resolving and folding them one after the other. An account that a block in between removed starts anew in
/// the block after it, without the storage that it had.
///
/// # Errors
/// If a read fails.
pub fn resolve_all<R: TrieReader>(
    states: &[impl Borrow<HashedPostState>],
    parent: &R,
    options: &FoldOptions,
) -> Result<LeafChanges, R::Error> {
    if let [state] = states {
        return resolve_with(state.borrow(), parent, options);
    }
    let mut keys: Vec<_> = states.iter().flat_map(|state| state.borrow().accounts.keys().copied()).collect();
    keys.sort_unstable();
    keys.dedup();
    let olds = read_batch(&keys, options, |keys| parent.accounts(keys))?;
    let mut merged = HashedPostState::new(EmptyAccounts::Keep);
    for (hashed_address, old) in keys.into_iter().zip(olds) {
        let delta = merge_deltas(&hashed_address, states, old.map(Account::into));
        merged.accounts.insert(hashed_address, delta);
    }
    for state in states {
        merged.codes.extend(state.borrow().codes.iter().map(|(hash, code)| (*hash, code.clone())));
    }
    resolve_with(&merged, parent, options)
}

/// What several blocks made of an account, with every field that it ends with.
fn merge_deltas(
    hashed_address: &B256,
    states: &[impl Borrow<HashedPostState>],
    old: Option<AccountInfo>,
) -> AccountDelta {
    let (mut info, mut merged) = (old, AccountDelta::default());
    for state in states.iter().map(Borrow::borrow) {
        let Some(delta) = state.accounts.get(hashed_address) else { continue };
        info = delta.merge_info(info).filter(|info| state.keeps(info));
        match info {
            None => merged.delete(),
            Some(_) => merged.merge(delta),
        }
    }
    if let Some(AccountInfo { nonce, balance, code_hash }) = info {
        (merged.nonce, merged.balance, merged.code_hash) = (Some(nonce), Some(balance), Some(code_hash));
    }
    merged
}

/// The fewest keys, or accounts and slots together, that are worth another thread.
const MIN_PART: usize = 256;

/// Reads a batch, in parts beside each other where the options allow it and there is enough to read.
fn read_batch<K: Sync, V: Send, E: Send>(
    keys: &[K],
    options: &FoldOptions,
    read: impl Fn(&[K]) -> Result<Vec<V>, E> + Sync,
) -> Result<Vec<V>, E> {
    let parts = if options.parallel { (keys.len() / MIN_PART).min(rayon::current_num_threads()) } else { 1 };
    let values = if parts < 2 {
        read(keys)?
    } else {
        let parts = keys.par_chunks(keys.len().div_ceil(parts)).map(&read).collect::<Result<Vec<_>, E>>()?;
        parts.into_iter().flatten().collect()
    };
    debug_assert_eq!(values.len(), keys.len(), "a batch has one answer for each key");
    Ok(values)
}

/// Which old values of slots an account's resolution needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotReads {
    /// None: the parent has no storage there.
    Nothing,
    /// Those of the slots that the delta lists.
    Listed,
    /// All that the parent has: the storage goes as a whole.
    All,
}

/// An account between its own resolution and that of its slots.
struct Pending<'a> {
    hashed_address: B256,
    delta: &'a AccountDelta,
    old: Option<Account>,
    new: Option<AccountInfo>,
    /// What the delta lists, sorted.
    listed: Vec<(B256, U256)>,
    slots: SlotReads,
}

impl<'a> Pending<'a> {
    fn new((hashed_address, delta): (B256, &'a AccountDelta), old: Option<Account>, state: &HashedPostState) -> Self {
        let new = delta.merge_info(old.map(Account::into)).filter(|info| state.keeps(info));
        let listed = sort(delta.storage.iter().map(|(slot, value)| (*slot, *value)), |(slot, _)| slot);
        let had_storage = old.is_some_and(|account| account.storage_root != EMPTY_ROOT_HASH);
        let slots = match had_storage {
            false => SlotReads::Nothing,
            true if new.is_none() || delta.cleared != Cleared::Nothing => SlotReads::All,
            true => SlotReads::Listed,
        };
        Self { hashed_address, delta, old, new, listed, slots }
    }

    fn keys(&self) -> impl Iterator<Item = (B256, B256)> {
        self.listed.iter().map(|(hashed_slot, _)| (self.hashed_address, *hashed_slot))
    }

    /// The changed slots. `olds` goes on with the old values of the listed ones, if they had to be read.
    fn resolve_slots<R: TrieReader>(
        &self,
        parent: &R,
        olds: &mut impl Iterator<Item = U256>,
    ) -> Result<Vec<SlotChange>, R::Error> {
        let mut slots = match self.slots {
            SlotReads::All => removed_slots(parent, &self.hashed_address, self.delta)?,
            reads => {
                let mut old = || if reads == SlotReads::Listed { olds.next().unwrap_or_default() } else { U256::ZERO };
                let listed = self.listed.iter();
                listed.map(|&(hashed_slot, new)| SlotChange { hashed_slot, old: old(), new }).collect()
            }
        };
        if self.new.is_none() {
            slots.iter_mut().for_each(|slot| slot.new = U256::ZERO);
        }
        slots.retain(|slot| slot.old != slot.new);
        Ok(slots)
    }
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
