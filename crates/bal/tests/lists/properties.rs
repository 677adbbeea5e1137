//! Properties of decoder, rules, values and comparison over generated, real and damaged lists.
//!
//! Invariants: the oracles are other people's code (the decoder and the validation of `alloy-eip7928`) or the definition
//! written out; a failure prints its smallest case and the seed.

use std::collections::BTreeMap;

use alloy_primitives::{Bytes, U256};
use foldgate_bal::{
    AccountChanges, BalLimits, BlockAccessIndex, BlockAccessList, Difference, decode, encode, first_mismatch, validate,
    writes,
};
use foldgate_testing::oracle;
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::{
    generate::{account, any_list, damage, damaged, graft, grafted, index, ordered_list, raw_list, real_lists},
    reference::derived_decoder,
};

fn check_decoder(raw: &[u8]) -> Result<(), TestCaseError> {
    match decode(raw) {
        Ok(list) => {
            prop_assert_eq!(&encode(&list)[..], raw, "accepted bytes re-encode to themselves");
            prop_assert_eq!(derived_decoder(raw), Some(list));
        }
        Err(error) => {
            prop_assert!(error.offset <= raw.len());
            prop_assert_eq!(derived_decoder(raw), None, "{}", error);
        }
    }
    Ok(())
}

/// The final values by the definition: all changes in range, applied in ascending order of their index.
fn replayed(account: &AccountChanges, up_to: BlockAccessIndex) -> (Vec<Option<U256>>, BTreeMap<U256, U256>) {
    let mut indices: Vec<(BlockAccessIndex, usize, U256)> = Vec::new();
    indices.extend(account.balance_changes.iter().map(|c| (c.block_access_index, 0, c.post_balance)));
    indices.extend(account.nonce_changes.iter().map(|c| (c.block_access_index, 1, U256::from(c.new_nonce))));
    indices.sort_by_key(|change| change.0);
    let mut fields = vec![None; 2];
    for (_, field, value) in indices.into_iter().filter(|change| change.0 <= up_to) {
        fields[field] = Some(value);
    }
    let mut slots: Vec<_> = account
        .storage_changes
        .iter()
        .flat_map(|slot| slot.changes.iter().map(|change| (change.block_access_index, slot.slot, change.new_value)))
        .filter(|change| change.0 <= up_to)
        .collect();
    slots.sort_by_key(|change| change.0);
    (fields, slots.into_iter().map(|(_, slot, value)| (slot, value)).collect())
}

/// Reverses what stands in memory without changing what it means.
fn reversed(mut list: BlockAccessList) -> BlockAccessList {
    for account in &mut list {
        account.storage_changes.iter_mut().for_each(|slot| slot.changes.reverse());
        account.balance_changes.reverse();
        account.nonce_changes.reverse();
        account.code_changes.reverse();
    }
    list
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lists_survive_encoding(list in any_list()) {
        prop_assert_eq!(decode(&encode(&list)), Ok(list));
    }

    #[test]
    fn random_bytes_are_judged_as_by_the_derived_decoder(raw in vec(any::<u8>(), 0..200)) {
        check_decoder(&raw)?;
    }

    #[test]
    fn damaged_bytes_are_judged_as_by_the_derived_decoder(raw in raw_list(), damages in vec(damage(), 1..4)) {
        check_decoder(&damaged(&raw, &damages))?;
    }

    #[test]
    fn damaged_items_are_judged_as_by_the_derived_decoder(
        list in any_list(),
        grafts in vec((any::<Index>(), graft()), 1..3),
    ) {
        check_decoder(&grafted(&encode(&list), &grafts))?;
    }

    #[test]
    fn rules_of_order_agree_with_those_of_the_types_crate(
        list in prop_oneof![any_list(), ordered_list()],
        tx_count in prop_oneof![0u64..8, Just(u64::from(u32::MAX))],
    ) {
        let ours = validate(&list, &BalLimits::new(tx_count, u64::MAX));
        let theirs = alloy_eip7928::validate_block_access_list(&list, tx_count as usize);
        prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} {:?}", ours, theirs);
    }

    #[test]
    fn items_are_counted_as_by_the_types_crate(list in ordered_list()) {
        let items = alloy_eip7928::total_bal_items(&list);
        let at = |gas_limit| validate(&list, &BalLimits::new(u64::from(u32::MAX), gas_limit)).is_ok();
        prop_assert!(at(items * 2000));
        prop_assert!(items == 0 || !at(items * 2000 - 1));
    }

    #[test]
    fn values_are_those_of_a_replay_whatever_the_order(list in ordered_list(), up_to in index()) {
        let expected = writes(&list, Some(up_to));
        prop_assert_eq!(&writes(&reversed(list.clone()), Some(up_to)), &expected);
        let by_address: BTreeMap<_, _> = expected.accounts.into_iter().collect();
        for account in &list {
            let (fields, slots) = replayed(account, up_to);
            let write = by_address.get(&account.address).cloned().unwrap_or_default();
            prop_assert_eq!(write.balance, fields[0]);
            prop_assert_eq!(write.nonce.map(U256::from), fields[1]);
            prop_assert_eq!(write.storage.into_iter().collect::<BTreeMap<_, _>>(), slots);
        }
    }

    #[test]
    fn values_are_those_of_the_oracle(list in ordered_list(), up_to in proptest::option::of(index())) {
        let ours: BTreeMap<_, _> = writes(&list, up_to).accounts.into_iter().collect();
        let theirs = oracle::access_list_diff(&list, up_to);
        prop_assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (address, write) in ours {
            let expected = &theirs[&address];
            prop_assert_eq!((write.nonce, write.balance), (expected.nonce, expected.balance));
            prop_assert_eq!(write.code.map(|code| code.bytes().clone()), expected.code.clone());
            prop_assert_eq!(&write.storage.into_iter().collect::<BTreeMap<_, _>>(), &expected.storage);
        }
    }

    #[test]
    fn comparison_finds_nothing_exactly_in_equal_lists(left in any_list(), right in any_list()) {
        prop_assert_eq!(first_mismatch(&left, &left), None);
        prop_assert_eq!(first_mismatch(&left, &right).is_none(), left == right);
        // The same first place, seen from the other side.
        let (there, back) = (first_mismatch(&left, &right), first_mismatch(&right, &left));
        prop_assert_eq!(there.is_none(), back.is_none());
        if let Some(mismatch) = there {
            prop_assert!(mismatch.to_string().contains(&mismatch.address.to_string()));
        }
    }

    #[test]
    fn comparison_names_the_account_that_was_altered(
        list in ordered_list().prop_filter("an account to alter", |list| !list.is_empty()),
        at in any::<Index>(),
        other in account(),
    ) {
        let at = at.index(list.len());
        let mut altered = list.clone();
        altered[at] = AccountChanges { address: list[at].address, ..other };
        let mismatch = first_mismatch(&altered, &list);
        prop_assert_eq!(mismatch.is_some(), altered != list);
        if let Some(mismatch) = mismatch {
            prop_assert_eq!(mismatch.address, list[at].address);
        }
        altered.remove(at);
        let missing = first_mismatch(&altered, &list).expect("an account is gone");
        prop_assert_eq!(missing.address, list[at].address);
        prop_assert_eq!(missing.difference, Difference::Account { got: false, expected: true });
    }
}

proptest! {
    // Real lists are large, so fewer of them.
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_items_of_real_lists_are_judged_as_by_the_derived_decoder(
        at in any::<Index>(),
        grafts in vec((any::<Index>(), graft()), 1..3),
    ) {
        check_decoder(&grafted(at.get::<Bytes>(real_lists()), &grafts))?;
    }
}

#[test]
fn every_beginning_of_a_list_is_refused() {
    for raw in real_lists().iter().filter(|raw| raw.len() < 4_000).take(40) {
        for end in 0..raw.len() {
            assert!(decode(&raw[..end]).is_err());
        }
    }
}
