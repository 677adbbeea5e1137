//! What a list means, by other people's code and by the definitions written out: slow, plain, and sharing nothing with
//! the walk, the rules and the hashing that it is held against.

use core::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_rlp::Decodable;
use foldgate_bal::{AccountChanges, BalField, BalLimits, BlockAccessIndex, BlockAccessList, ChangeList, Violation};
use foldgate_core::hashed::{AccountDelta, EmptyAccounts, HashedPostState};

/// What the decoders that `alloy-eip7928` derives accept, less what they leave to their caller.
pub(crate) fn derived_decoder(mut raw: &[u8]) -> Option<BlockAccessList> {
    let list = BlockAccessList::decode(&mut raw).ok()?;
    let fits = |index: BlockAccessIndex| index.get() <= u64::from(u32::MAX);
    let all_fit = list.iter().all(|account| {
        account.storage_changes.iter().all(|slot| slot.changes.iter().all(|change| fits(change.block_access_index)))
            && account.balance_changes.iter().all(|change| fits(change.block_access_index))
            && account.nonce_changes.iter().all(|change| fits(change.block_access_index))
            && account.code_changes.iter().all(|change| fits(change.block_access_index))
    });
    (raw.is_empty() && all_fit).then_some(list)
}

/// The decoded list, if the decoder and the rules of `alloy-eip7928` accept it, its items are within the gas limit, and
/// its codes within the fork's.
pub(crate) fn accepted(raw: &[u8], limits: &BalLimits) -> Option<BlockAccessList> {
    let list = derived_decoder(raw)?;
    let tx_count = usize::try_from(limits.tx_count).unwrap_or(usize::MAX);
    alloy_eip7928::validate_block_access_list(&list, tx_count).ok()?;
    let mut codes = list.iter().flat_map(|account| &account.code_changes);
    let within = alloy_eip7928::total_bal_items(&list) <= limits.gas_limit / 2000
        && codes.all(|change| change.new_code.len() <= limits.max_code_size);
    within.then_some(list)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Replayed {
    nonce: Option<u64>,
    balance: Option<U256>,
    code: Option<Bytes>,
    storage: BTreeMap<U256, U256>,
}

/// The list's changes played back index by index, account by account; then every key hashed by itself.
pub(crate) fn replayed_post_state(list: &[AccountChanges]) -> HashedPostState {
    let mut plain = BTreeMap::<Address, Replayed>::new();
    for index in indices(list) {
        for account in list {
            replay_index(account, index, plain.entry(account.address).or_default());
        }
    }
    let mut state = HashedPostState { empty_accounts: EmptyAccounts::Remove, ..HashedPostState::default() };
    plain.retain(|_, account| *account != Replayed::default());
    for (address, Replayed { nonce, balance, code, storage }) in plain {
        let code_hash = code.as_ref().map(keccak256);
        if let (Some(hash), Some(code)) = (code_hash, code)
            && !code.is_empty()
        {
            state.codes.insert(hash, code);
        }
        let storage = storage.into_iter().map(|(slot, value)| (hashed_slot(&slot), value)).collect();
        let delta = AccountDelta { nonce, balance, code_hash, storage, ..AccountDelta::default() };
        state.accounts.insert(keccak256(address), delta);
    }
    state
}

fn indices(list: &[AccountChanges]) -> BTreeSet<BlockAccessIndex> {
    let mut indices = BTreeSet::new();
    for account in list {
        indices.extend(account.storage_changes.iter().flat_map(|slot| &slot.changes).map(|c| c.block_access_index));
        indices.extend(account.balance_changes.iter().map(|change| change.block_access_index));
        indices.extend(account.nonce_changes.iter().map(|change| change.block_access_index));
        indices.extend(account.code_changes.iter().map(|change| change.block_access_index));
    }
    indices
}

fn replay_index(account: &AccountChanges, index: BlockAccessIndex, replayed: &mut Replayed) {
    for slot in &account.storage_changes {
        for change in slot.changes.iter().filter(|change| change.block_access_index == index) {
            replayed.storage.insert(slot.slot, change.new_value);
        }
    }
    for change in account.balance_changes.iter().filter(|change| change.block_access_index == index) {
        replayed.balance = Some(change.post_balance);
    }
    for change in account.nonce_changes.iter().filter(|change| change.block_access_index == index) {
        replayed.nonce = Some(change.new_nonce);
    }
    for change in account.code_changes.iter().filter(|change| change.block_access_index == index) {
        replayed.code = Some(change.new_code.clone());
    }
}

pub(crate) fn hashed_slot(slot: &U256) -> B256 {
    keccak256(slot.to_be_bytes::<32>())
}

/// Everything that the list names, in hashed keys.
pub(crate) fn hashed_keys(list: &[AccountChanges]) -> BTreeMap<B256, BTreeSet<B256>> {
    let slots = |account: &AccountChanges| {
        let written = account.storage_changes.iter().map(|changes| hashed_slot(&changes.slot));
        written.chain(account.storage_reads.iter().map(hashed_slot)).collect()
    };
    list.iter().map(|account| (keccak256(account.address), slots(account))).collect()
}

/// The written slots, each with its account, in hashed keys.
pub(crate) fn hashed_written_slots(list: &[AccountChanges]) -> BTreeSet<(B256, B256)> {
    let slots = |account: &AccountChanges| {
        let address = keccak256(account.address);
        account.storage_changes.iter().map(|changes| (address, hashed_slot(&changes.slot))).collect::<Vec<_>>()
    };
    list.iter().flat_map(slots).collect()
}

/// The first rule that a list breaks: account after account, and for each account rule after rule.
pub(crate) fn first_violation(list: &[AccountChanges], limits: &BalLimits) -> Option<Violation> {
    let (mut previous, mut items) = (None, 0);
    for account in list {
        let address = account.address;
        match previous.replace(address).map(|previous: Address| (previous, previous.cmp(&address))) {
            None | Some((_, Ordering::Less)) => {}
            Some((_, Ordering::Equal)) => return Some(Violation::DuplicateAccount { address }),
            Some((previous, Ordering::Greater)) => return Some(Violation::AccountOrder { address, previous }),
        }
        items += 1 + account.storage_changes.len() as u64 + account.storage_reads.len() as u64;
        let (expected, gas_limit) = (limits.gas_limit / 2000, limits.gas_limit);
        if items > expected {
            return Some(Violation::TooManyItems { got: items, expected, gas_limit });
        }
        let broken = broken_storage(account, limits).or_else(|| broken_fields(account, limits));
        if broken.is_some() {
            return broken;
        }
    }
    None
}

fn broken_storage(account: &AccountChanges, limits: &BalLimits) -> Option<Violation> {
    let address = account.address;
    let written: Vec<U256> = account.storage_changes.iter().map(|changes| changes.slot).collect();
    let of_slot = |changes: &foldgate_bal::SlotChanges| {
        let slot = changes.slot;
        if changes.changes.is_empty() {
            return Some(Violation::EmptySlotChanges { address, slot });
        }
        let indices: Vec<_> = changes.changes.iter().map(|change| change.block_access_index).collect();
        broken_indices(address, ChangeList::Slot(slot), &indices, limits)
    };
    let in_both = || account.storage_reads.iter().find(|slot| written.contains(slot));
    broken_order(address, BalField::StorageChanges, &written)
        .or_else(|| account.storage_changes.iter().find_map(of_slot))
        .or_else(|| broken_order(address, BalField::StorageReads, &account.storage_reads))
        .or_else(|| in_both().map(|slot| Violation::WrittenAndRead { address, slot: *slot }))
}

fn broken_fields(account: &AccountChanges, limits: &BalLimits) -> Option<Violation> {
    let address = account.address;
    let balances: Vec<_> = account.balance_changes.iter().map(|change| change.block_access_index).collect();
    let nonces: Vec<_> = account.nonce_changes.iter().map(|change| change.block_access_index).collect();
    let codes: Vec<_> = account.code_changes.iter().map(|change| change.block_access_index).collect();
    let expected = limits.max_code_size;
    let too_large = || account.code_changes.iter().find(|change| change.new_code.len() > expected);
    broken_indices(address, ChangeList::Balance, &balances, limits)
        .or_else(|| broken_indices(address, ChangeList::Nonce, &nonces, limits))
        .or_else(|| broken_indices(address, ChangeList::Code, &codes, limits))
        .or_else(|| {
            too_large().map(|change| {
                let (index, got) = (change.block_access_index, change.new_code.len());
                Violation::CodeTooLarge { address, index, got, expected }
            })
        })
}

fn broken_order(address: Address, field: BalField, slots: &[U256]) -> Option<Violation> {
    let pair = slots.windows(2).find(|pair| pair[0] >= pair[1])?;
    let (previous, slot) = (pair[0], pair[1]);
    Some(if previous == slot {
        Violation::DuplicateSlot { address, field, slot }
    } else {
        Violation::SlotOrder { address, field, slot, previous }
    })
}

fn broken_indices(
    address: Address,
    list: ChangeList,
    indices: &[BlockAccessIndex],
    limits: &BalLimits,
) -> Option<Violation> {
    let expected = BlockAccessIndex::new(limits.tx_count.saturating_add(1));
    indices.iter().enumerate().find_map(|(position, &index)| {
        let previous = position.checked_sub(1).map(|before| indices[before]);
        match previous.map(|previous| (previous, previous.cmp(&index))) {
            Some((_, Ordering::Equal)) => Some(Violation::DuplicateIndex { address, list, index }),
            Some((previous, Ordering::Greater)) => Some(Violation::IndexOrder { address, list, index, previous }),
            _ if index > expected => Some(Violation::IndexTooHigh { address, list, got: index, expected }),
            _ => None,
        }
    })
}
