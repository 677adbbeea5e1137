//! The one walk that decodes, judges, collects and hashes, held against the slow reference.

use std::collections::BTreeSet;

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use foldgate_bal::{Bal, BalError, BalLimits, HashMismatch, RlpFault, Violation, decode, encode, writes};
use foldgate_core::{EmptyAccounts, HashedPostState, KeyHasher, StateWrites};
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::{
    generate::{Item, any_list, damage, damaged, graft, grafted, ordered_list, raw_list, real_lists},
    reference,
};

/// Holds what the one walk makes of `raw` against the reference, acceptance and refusal alike.
pub(crate) fn check(raw: &Bytes, limits: &BalLimits) -> Result<(), TestCaseError> {
    let hash = keccak256(raw);
    let outcome = Bal::decode_checked(raw.clone(), Some(hash), limits);
    let Some(list) = reference::accepted(raw, limits) else {
        let error = outcome.err().ok_or_else(|| TestCaseError::fail("accepted against the reference"))?;
        prop_assert_eq!(Bal::decode_checked(raw.clone(), None, limits).unwrap_err(), error);
        match error {
            BalError::Decode(error) => prop_assert_eq!(decode(raw), Err(error)),
            BalError::Violation(violation) => {
                // A list that breaks a rule need not decode to its end; if it does, this is the first rule broken.
                if let Some(list) = reference::derived_decoder(raw) {
                    prop_assert_eq!(reference::first_violation(&list, limits), Some(violation));
                }
            }
            other => return Err(TestCaseError::fail(format!("the hash is right: {other}"))),
        }
        return Ok(());
    };
    let bal = outcome.map_err(|error| TestCaseError::fail(format!("refused against the reference: {error}")))?;
    prop_assert_eq!((bal.raw(), bal.hash()), (raw, hash));
    prop_assert_eq!(&**bal.post_state(), &reference::replayed_post_state(&list));

    let expected: Vec<_> = reference::hashed_keys(&list).into_iter().collect();
    let keys: Vec<_> =
        bal.keys().sorted().map(|(address, slots)| (*address, slots.map(|(slot, _)| *slot).collect())).collect();
    prop_assert_eq!(keys, expected);
    prop_assert!(bal.keys().sorted().all(|(_, slots)| slots.is_sorted_by(|(left, _), (right, _)| left < right)));
    let written = bal.keys().sorted().flat_map(|(address, slots)| {
        slots.filter(|(_, written)| *written).map(|(slot, _)| (*address, *slot)).collect::<Vec<_>>()
    });
    prop_assert_eq!(written.collect::<BTreeSet<_>>(), reference::hashed_written_slots(&list));
    prop_assert_eq!(bal.keys().account_count() as u64 + bal.keys().slot_count() as u64, alloy_items(&list));
    for account in &list {
        let address = account.address;
        prop_assert_eq!(bal.keys().hashed_address(&address), Some(keccak256(address)));
        let written = account.storage_changes.iter().map(|changes| changes.slot);
        for slot in written.chain(account.storage_reads.iter().copied()) {
            prop_assert_eq!(bal.keys().hashed_slot(&address, &slot), Some(reference::hashed_slot(&slot)));
        }
    }
    prop_assert_eq!(bal.accounts(), &list[..]);

    let wrong = HashMismatch { got: hash, expected: B256::ZERO };
    prop_assert_eq!(Bal::decode_checked(raw.clone(), Some(B256::ZERO), limits).unwrap_err(), BalError::from(wrong));
    Ok(())
}

fn alloy_items(list: &[foldgate_bal::AccountChanges]) -> u64 {
    alloy_eip7928::total_bal_items(list)
}

fn limits() -> impl Strategy<Value = BalLimits> {
    let tx_count = prop_oneof![2 => 0u64..8, 3 => Just(u64::from(u32::MAX))];
    let gas_limit = prop_oneof![1 => 0u64..60_000, 4 => Just(u64::MAX)];
    let code_size = prop_oneof![1 => 0usize..70, 4 => Just(0x10000usize)];
    (tx_count, gas_limit, code_size)
        .prop_map(|(tx_count, gas_limit, size)| BalLimits::new(tx_count, gas_limit).with_max_code_size(size))
}

/// Limits that no generated or real list goes beyond, so that damage alone decides.
const WIDE: BalLimits = BalLimits::new(u32::MAX as u64, u64::MAX);

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn generated_lists_are_taken_as_by_the_reference(
        list in prop_oneof![1 => any_list(), 2 => ordered_list()],
        limits in limits(),
    ) {
        check(&encode(&list), &limits)?;
    }

    #[test]
    fn random_bytes_are_taken_as_by_the_reference(raw in vec(any::<u8>(), 0..200)) {
        check(&raw.into(), &WIDE)?;
    }

    #[test]
    fn damaged_bytes_are_taken_as_by_the_reference(
        raw in prop_oneof![raw_list(), ordered_list().prop_map(|list| encode(&list))],
        damages in vec(damage(), 1..4),
    ) {
        check(&damaged(&raw, &damages).into(), &WIDE)?;
    }

    #[test]
    fn damaged_items_are_taken_as_by_the_reference(
        list in ordered_list(),
        grafts in vec((any::<Index>(), graft()), 1..3),
        limits in limits(),
    ) {
        check(&grafted(&encode(&list), &grafts).into(), &limits)?;
    }

    /// Several rules broken at once, mostly in one account: the lowest is named.
    #[test]
    fn the_lowest_broken_rule_is_named(
        mut list in ordered_list().prop_filter("an account to break", |list| !list.is_empty()),
        at in any::<Index>(),
        breaks in vec(0usize..10, 1..4),
        tx_count in 0u64..8,
        gas_limit in prop_oneof![1 => 0u64..40_000, 4 => Just(u64::MAX)],
    ) {
        let at = at.index(list.len());
        breaks.iter().for_each(|rule| break_rule(&mut list, at, *rule));
        check(&encode(&list), &BalLimits::new(tx_count, gas_limit).with_max_code_size(40))?;
    }

    /// A list leads where the same block's writes lead, transaction by transaction.
    #[test]
    fn a_list_and_the_writes_of_its_block_are_one_state(list in ordered_list()) {
        let bal = Bal::decode_checked(encode(&list), None, &WIDE).unwrap();
        let mut executed = HashedPostState::new(EmptyAccounts::Remove);
        let mut hasher = KeyHasher::default();
        for writes in writes_by_index(&list) {
            executed.apply_writes(&writes, &mut hasher);
        }
        // Codes that a later index replaced may stay behind in what was accumulated.
        executed.codes.retain(|hash, _| bal.post_state().codes.contains_key(hash));
        prop_assert_eq!(&**bal.post_state(), &executed);
        let mut at_once = HashedPostState::new(EmptyAccounts::Remove);
        at_once.apply_writes(&writes(&list, None), &mut hasher);
        prop_assert_eq!(&**bal.post_state(), &at_once);
    }
}

fn break_rule(list: &mut [foldgate_bal::AccountChanges], at: usize, rule: usize) {
    let other = (at + 1) % list.len();
    let account = &mut list[at];
    match rule {
        0 => account.storage_changes.reverse(),
        1 => account.storage_reads.reverse(),
        2 => account.storage_reads.extend(account.storage_reads.first().copied()),
        3 => account.storage_reads.extend(account.storage_changes.iter().map(|changes| changes.slot)),
        4 => account.storage_changes.iter_mut().take(1).for_each(|slot| slot.changes.clear()),
        5 => account.storage_changes.iter_mut().for_each(|slot| slot.changes.reverse()),
        6 => account.balance_changes.reverse(),
        7 => account.nonce_changes.reverse(),
        8 => account.code_changes.reverse(),
        _ => list.swap(at, other),
    }
}

/// What each index wrote and nothing else, in the order of the indices.
fn writes_by_index(list: &[foldgate_bal::AccountChanges]) -> Vec<StateWrites> {
    let mut indices: Vec<_> = (list.iter())
        .flat_map(|account| {
            let slots = account.storage_changes.iter().flat_map(|slot| &slot.changes).map(|c| c.block_access_index);
            let balances = account.balance_changes.iter().map(|change| change.block_access_index);
            let nonces = account.nonce_changes.iter().map(|change| change.block_access_index);
            let codes = account.code_changes.iter().map(|change| change.block_access_index);
            slots.chain(balances).chain(nonces).chain(codes).collect::<Vec<_>>()
        })
        .collect();
    indices.sort();
    indices.dedup();
    let only = |index| {
        let mut list = list.to_vec();
        for account in &mut list {
            account.storage_changes.iter_mut().for_each(|s| s.changes.retain(|c| c.block_access_index == index));
            account.balance_changes.retain(|change| change.block_access_index == index);
            account.nonce_changes.retain(|change| change.block_access_index == index);
            account.code_changes.retain(|change| change.block_access_index == index);
        }
        writes(&list, None)
    };
    indices.into_iter().map(only).collect()
}

proptest! {
    // Real lists are large, so fewer of them.
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_items_of_real_lists_are_taken_as_by_the_reference(
        at in any::<Index>(),
        grafts in vec((any::<Index>(), graft()), 1..3),
    ) {
        check(&grafted(at.get::<Bytes>(real_lists()), &grafts).into(), &WIDE)?;
    }
}

#[test]
fn real_lists_and_all_their_beginnings_are_taken_as_by_the_reference() {
    for raw in real_lists() {
        check(raw, &WIDE).unwrap();
    }
    for raw in real_lists().iter().filter(|raw| raw.len() < 2_000).take(20) {
        for end in 0..raw.len() {
            assert!(Bal::decode_checked(raw.slice(..end), None, &WIDE).is_err());
        }
    }
}

/// Two faults in one list: the first account with one is named, and in it decoding comes before the rules.
#[test]
fn the_first_bad_account_is_named() {
    let account = |byte| foldgate_bal::AccountChanges {
        storage_reads: vec![U256::from(1), U256::from(2)],
        ..foldgate_bal::AccountChanges::new(Address::with_last_byte(byte))
    };
    let refused = |accounts: &[foldgate_bal::AccountChanges], zeroed: usize| {
        let mut tree = Item::parse(&mut &encode(accounts)[..]);
        let Item::List(entries) = &mut tree else { panic!("a list") };
        let Item::List(fields) = &mut entries[zeroed] else { panic!("an entry") };
        let Item::List(reads) = &mut fields[2] else { panic!("its reads") };
        reads[1] = Item::String(vec![0]);
        let mut raw = Vec::new();
        tree.write(&mut raw);
        Bal::decode_checked(raw.into(), None, &WIDE).unwrap_err()
    };
    let list = [account(1), account(3), account(2), account(4)];
    let unordered = Violation::AccountOrder { address: list[2].address, previous: list[1].address };
    for zeroed in [0, 1, 2] {
        let BalError::Decode(error) = refused(&list, zeroed) else { panic!("the entry at {zeroed} does not decode") };
        assert_eq!((error.account, error.fault), (Some(zeroed), RlpFault::LeadingZero));
    }
    assert_eq!(refused(&list, 3), unordered.into());
}
