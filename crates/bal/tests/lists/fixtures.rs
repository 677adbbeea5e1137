//! Published lists: those of valid blocks pass every check and lead to the published state, faulty ones are refused for
//! the fault that their test is named after.
//!
//! Invariant: what is expected comes from the published files alone: names, hashes, states, RLP.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

use foldgate_bal::{
    Bal, BalError, BalField, BalLimits, ChangeList, RlpFault, Violation, bal_hash, decode, encode, validate, writes,
};
use foldgate_core::writes::StateWrites;
use foldgate_testing::{
    archive, bal_vectors,
    fixtures::{BlockchainTest, TestBlock, visit_files},
    fixtures_or_skip,
    oracle::PlainState,
};

use crate::one_pass;

fn each_test(path: &Path, mut visit: impl FnMut(BlockchainTest)) {
    visit_files(path, &mut |file| {
        file.unwrap().tests.into_iter().for_each(&mut visit);
        ControlFlow::Continue(())
    });
}

/// The facts of a block that its list is held to, from the block's own RLP.
fn limits_of(block: &TestBlock) -> Option<BalLimits> {
    let decoded = block.decode().ok()?;
    Some(BalLimits::new(decoded.body.transactions.len() as u64, decoded.header.gas_limit))
}

/// Applies writes as a client would: in plain keys, and removing what ends empty (EIP-161).
fn apply(state: &mut PlainState, writes: &StateWrites) {
    for (address, write) in &writes.accounts {
        assert!(!write.deleted && !write.storage_wiped, "a list carries no deletion");
        let account = state.accounts.entry(*address).or_default();
        account.nonce = write.nonce.unwrap_or(account.nonce);
        account.balance = write.balance.unwrap_or(account.balance);
        if let Some(code) = &write.code {
            account.code = code.bytes().clone();
        }
        for (slot, value) in &write.storage {
            account.set_slot(*slot, *value);
        }
        if account.is_empty() {
            state.accounts.remove(address);
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct ValidCounts {
    blocks: usize,
    post_states: usize,
}

fn check_valid(test: &BlockchainTest, counts: &mut ValidCounts) {
    let mut state = test.pre.clone();
    let mut linear = true;
    let mut parent = test.genesis_header.hash();
    for block in &test.blocks {
        let (Some(header), true) = (&block.header, block.is_valid()) else { continue };
        let at = format!("block {} of {} in {}", header.number, test.name, test.file);
        let list = block.block_access_list.as_ref().unwrap_or_else(|| panic!("{at} has no list"));
        let expected_hash = header.block_access_list_hash.expect("a header of Amsterdam commits to a list");
        // The published JSON goes through the encoder here, and the header's hash says whether that was right.
        let raw = encode(&list.accounts);
        let limits = limits_of(block).unwrap_or_else(|| panic!("{at} does not decode"));
        assert_eq!(limits.gas_limit, header.gas_limit, "{at}");
        one_pass::check(&raw, &limits).unwrap_or_else(|error| panic!("{at}: {error}"));
        let bal = Bal::decode_checked(raw, Some(expected_hash), &limits).unwrap_or_else(|e| panic!("{at}: {e}"));
        assert_eq!(bal.accounts(), list.accounts, "{at}");
        assert_eq!(bal.first_mismatch(&list.accounts), None, "{at}");
        let named: usize = list.accounts.iter().map(|account| 1 + account.storage_slots().count()).sum();
        assert_eq!(bal.keys().account_count() + bal.keys().slot_count(), named, "{at}");
        let too_low = BalLimits::new(limits.tx_count, named as u64 * 2000 - 1);
        assert!(matches!(validate(bal.accounts(), &too_low), Err(Violation::TooManyItems { .. })), "{at}");

        linear &= header.parent_hash == parent;
        parent = header.hash();
        apply(&mut state, &writes(bal.accounts(), None));
        counts.blocks += 1;
    }
    if let (true, Some(post_state)) = (linear && parent == test.last_block_hash, &test.post_state) {
        assert_eq!(state, *post_state, "state after {} in {}", test.name, test.file);
        counts.post_states += 1;
    }
}

#[test]
fn valid_lists_pass_and_lead_to_the_published_state() {
    let amsterdam = fixtures_or_skip!("valid lists", "bal-amsterdam");
    let glamsterdam = fixtures_or_skip!("valid lists", "bal-glamsterdam");
    let mut counts = ValidCounts::default();
    each_test(&amsterdam, |test| check_valid(&test, &mut counts));
    let mut newer = ValidCounts::default();
    each_test(&glamsterdam, |test| check_valid(&test, &mut newer));
    println!("bal-amsterdam {counts:?}, bal-glamsterdam {newer:?}");
    // Three archives of 1,685 blocks in 1,358 tests, and three of these tests once more, unpacked as examples; 152 of
    // the blocks are invalid.
    assert_eq!(counts, ValidCounts { blocks: 1_685 + 3 - 152, post_states: 1_358 + 3 });
    assert_eq!(newer, ValidCounts { blocks: 13, post_states: 23 });
}

/// The fault that a test of the published suite plants in the structure of its list, by the test's name; `None` where
/// only execution can tell.
fn planted_fault(test: &str) -> Option<fn(&BalError) -> bool> {
    use Violation as V;
    /// A fault of the structure as a pattern.
    macro_rules! fault {
        ($pattern:pat) => {
            Some(|error| matches!(error, BalError::Violation($pattern)))
        };
    }
    let has = |part: &str| test.contains(part);
    match () {
        () if has("bal_gas_limit_boundary[") => fault!(V::TooManyItems { .. }),
        () if has("bal_invalid_account_order[") || has("bal_invalid_account[") => fault!(V::AccountOrder { .. }),
        () if has("duplicate_account") => fault!(V::DuplicateAccount { .. }),
        () if has("duplicate_balance_change") => fault!(V::DuplicateIndex { list: ChangeList::Balance, .. }),
        () if has("duplicate_code_change") => fault!(V::DuplicateIndex { list: ChangeList::Code, .. }),
        () if has("duplicate_nonce_change") => fault!(V::DuplicateIndex { list: ChangeList::Nonce, .. }),
        () if has("duplicate_slot_change") => fault!(V::DuplicateIndex { list: ChangeList::Slot(_), .. }),
        () if has("duplicate_storage_read") => fault!(V::DuplicateSlot { field: BalField::StorageReads, .. }),
        () if has("duplicate_storage_slot") => fault!(V::DuplicateSlot { field: BalField::StorageChanges, .. }),
        () if has("storage_key_in_both_changes_and_reads") => fault!(V::WrittenAndRead { .. }),
        () if has("bal_invalid_empty_slot_changes[") => fault!(V::EmptySlotChanges { .. }),
        () if has("out_of_bounds-extra_balance") => fault!(V::IndexTooHigh { list: ChangeList::Balance, .. }),
        () if has("out_of_bounds-extra_code") => fault!(V::IndexTooHigh { list: ChangeList::Code, .. }),
        () if has("out_of_bounds-extra_nonce") => fault!(V::IndexTooHigh { list: ChangeList::Nonce, .. }),
        () if has("out_of_bounds-extra_storage_write") => fault!(V::IndexTooHigh { list: ChangeList::Slot(_), .. }),
        // The slot that is written in addition is one that the list has as a read already.
        () if has("tx-extra_storage_write_touched") => fault!(V::WrittenAndRead { .. }),
        () if has("bal_invalid_hash_mismatch[") => Some(|error| matches!(error, BalError::Hash(_))),
        () => None,
    }
}

#[test]
fn lists_with_a_faulty_structure_are_refused_for_that_fault() {
    let amsterdam = fixtures_or_skip!("faulty lists", "bal-amsterdam");
    let glamsterdam = fixtures_or_skip!("faulty lists", "bal-glamsterdam");
    let (mut refused, mut left_to_execution) = (BTreeMap::<String, usize>::new(), 0);
    for path in [amsterdam, glamsterdam] {
        each_test(&path, |test| {
            for block in test.blocks.iter().filter(|block| !block.is_valid()) {
                let (Some(list), Some(limits)) = (&block.block_access_list, limits_of(block)) else { continue };
                let expected_hash = block.block_access_list_hash().expect("the file states the header's hash");
                let raw = encode(&list.accounts);
                one_pass::check(&raw, &limits).unwrap_or_else(|error| panic!("{}: {error}", test.name));
                let outcome = Bal::decode_checked(raw, Some(expected_hash), &limits);
                match (outcome, planted_fault(&test.name)) {
                    (Err(error), Some(is_planted)) => {
                        assert!(is_planted(&error), "{}: {error}", test.name);
                        let name = test.name.rsplit("::").next().unwrap_or_default();
                        *refused.entry(name.to_owned()).or_default() += 1;
                    }
                    (Ok(_), None) => left_to_execution += 1,
                    (Ok(_), Some(_)) => panic!("{} was accepted", test.name),
                    (Err(error), None) => panic!("{} has no fault of structure: {error}", test.name),
                }
            }
        });
    }
    let total: usize = refused.values().sum();
    println!("{total} refused by {} tests, {left_to_execution} left to execution", refused.len());
    // All 152 and 10 invalid blocks have a list, but one has transactions that do not decode.
    assert_eq!(total + left_to_execution, 152 + 10 - 1);
    assert_eq!(total, 39);
}

#[test]
fn published_encodings_are_reproduced() {
    let path = fixtures_or_skip!("RLP vectors", "bal-rlp-vectors");
    let vectors = bal_vectors::read_bal_vectors(&path).unwrap();
    assert_eq!(vectors.len(), 3);
    for vector in vectors {
        let raw = encode(&vector.list.accounts);
        assert_eq!((&raw, bal_hash(&raw)), (&vector.rlp, vector.hash), "{}", vector.name);
        assert_eq!(decode(&vector.rlp), Ok(vector.list.accounts), "{}", vector.name);
    }
    let invalid = bal_vectors::read_invalid_bal_vectors(&path).unwrap();
    assert_eq!(invalid.len(), 3);
    for vector in invalid {
        let expected_hash = vector.header.block_access_list_hash.unwrap();
        // The source left the transactions out: an index can be as high as it likes.
        let limits = BalLimits::new(u64::from(u32::MAX), vector.header.gas_limit);
        let error = Bal::decode_checked(encode(&vector.list.accounts), Some(expected_hash), &limits).unwrap_err();
        let as_named = match vector.name.as_str() {
            name if name.contains("account_order") => {
                matches!(error, BalError::Violation(Violation::AccountOrder { .. }))
            }
            name if name.contains("duplicate_account") => {
                matches!(error, BalError::Violation(Violation::DuplicateAccount { .. }))
            }
            _ => matches!(error, BalError::Hash(mismatch) if mismatch.expected == expected_hash),
        };
        assert!(as_named, "{}: {error}", vector.name);
    }
}

#[test]
fn mainnet_lists_with_leading_zeros_are_refused_until_they_are_canonical() {
    let path = fixtures_or_skip!("mainnet lists", "mainnet-bal-shapes/mainnet-bal-rlp.tar.zst");
    let mut refused = 0;
    archive::visit_members(&path, 1 << 24, &mut |name, raw| {
        let error = decode(&raw).expect_err(&name);
        assert_eq!(error.fault, RlpFault::LeadingZero, "{name}: {error}");
        assert!(matches!(error.field, Some(BalField::StorageChanges | BalField::StorageReads)), "{name}: {error}");
        assert!(error.account.is_some() && error.address.is_some(), "{name}: {error}");
        refused += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(refused, 41);

    // Read leniently and written anew they have the structure of the EIP, at 36 million gas at most.
    let lists = bal_vectors::read_mainnet_lists(&path).unwrap();
    assert_eq!(lists.len(), 41);
    for list in lists {
        let raw = encode(&list.accounts);
        assert!(raw.len() < list.stored_bytes, "block {}", list.number);
        assert_eq!(decode(&raw).as_ref(), Ok(&list.accounts), "block {}", list.number);
        let outcome = validate(&list.accounts, &BalLimits::new(1_000, 36_000_000));
        assert_eq!(outcome, Ok(()), "block {} ({})", list.number, bal_hash(&raw));
        one_pass::check(&raw, &BalLimits::new(1_000, 36_000_000))
            .unwrap_or_else(|error| panic!("block {}: {error}", list.number));
    }
}
