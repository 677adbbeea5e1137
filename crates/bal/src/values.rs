//! The values that a list leaves behind, after the whole block or after any index.
//!
//! Invariants:
//! 1. The change with the highest index wins, wherever it stands in memory.
//! 2. A field or slot without a change in range is not written: nothing here fills in a default, and reads write nothing.
//! 3. No deletion is written: whether an account that ends empty goes (EIP-161) can only be told together with the
//!    parent's state, so it belongs to whoever resolves the writes against it.

use alloy_eip7928::{AccountChanges, BlockAccessIndex};
use foldgate_core::writes::{AccountWrites, CodeWrite, StateWrites};

/// What the list wrote up to and including index `up_to`, or by its end if that is `None`.
///
/// The state after index `i` is the parent's state with `writes(accounts, Some(i))` applied, so transaction `i` of the
/// block (counted from 0) begins with those of index `i`. Accounts and slots come in the list's order; accounts without
/// a change in range are left out. No account, and no slot within an account, may stand twice in the list
/// ([`crate::validate`]).
pub fn writes(accounts: &[AccountChanges], up_to: Option<BlockAccessIndex>) -> StateWrites {
    let accounts = accounts.iter().filter_map(|account| {
        let writes = account_writes(account, up_to);
        (!writes.is_empty()).then_some((account.address, writes))
    });
    StateWrites { accounts: accounts.collect() }
}

/// What the list wrote to one account up to and including index `up_to`, or by its end if that is `None`.
pub fn account_writes(account: &AccountChanges, up_to: Option<BlockAccessIndex>) -> AccountWrites {
    let code = newest(&account.code_changes, |change| change.block_access_index, up_to);
    let storage = account.storage_changes.iter().filter_map(|slot| {
        let change = newest(&slot.changes, |change| change.block_access_index, up_to)?;
        Some((slot.slot, change.new_value))
    });
    AccountWrites {
        deleted: false,
        storage_wiped: false,
        nonce: newest(&account.nonce_changes, |change| change.block_access_index, up_to).map(|c| c.new_nonce),
        balance: newest(&account.balance_changes, |change| change.block_access_index, up_to).map(|c| c.post_balance),
        code: code.map(|change| CodeWrite::new(change.new_code.clone())),
        storage: storage.collect(),
    }
}

/// The change with the highest index in range; the last one of several with the same index.
fn newest<T>(changes: &[T], index: impl Fn(&T) -> BlockAccessIndex, up_to: Option<BlockAccessIndex>) -> Option<&T> {
    let in_range = |change: &&T| up_to.is_none_or(|up_to| index(change) <= up_to);
    changes.iter().filter(in_range).max_by_key(|change| index(change))
}

#[cfg(test)]
mod tests {
    use alloy_eip7928::{BalanceChange, CodeChange, NonceChange, SlotChanges, StorageChange};
    use alloy_primitives::{Address, Bytes, KECCAK256_EMPTY, U256, keccak256};

    use super::*;

    const fn index(index: u64) -> BlockAccessIndex {
        BlockAccessIndex::new(index)
    }

    fn account() -> AccountChanges {
        AccountChanges::new(Address::with_last_byte(1))
    }

    fn slot(slot: u64, changes: &[(u64, u64)]) -> SlotChanges {
        let changes = changes.iter().map(|(at, value)| StorageChange::new(index(*at), U256::from(*value)));
        SlotChanges::new(U256::from(slot), changes.collect())
    }

    #[test]
    fn the_highest_index_wins_whatever_the_order() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let account = AccountChanges {
                storage_changes: vec![slot(5, &order.map(|at| (at, 50 + at)))],
                balance_changes: order.map(|at| BalanceChange::new(index(at), U256::from(10 + at))).to_vec(),
                nonce_changes: order.map(|at| NonceChange::new(index(at), 20 + at)).to_vec(),
                code_changes: order.map(|at| CodeChange::new(index(at), vec![at as u8; 3].into())).to_vec(),
                ..account()
            };
            for (up_to, last) in [(None, 2), (Some(index(9)), 2), (Some(index(1)), 1), (Some(index(0)), 0)] {
                let expected = AccountWrites {
                    nonce: Some(20 + last),
                    balance: Some(U256::from(10 + last)),
                    code: Some(CodeWrite::new(vec![last as u8; 3].into())),
                    storage: vec![(U256::from(5), U256::from(50 + last))],
                    ..AccountWrites::default()
                };
                assert_eq!(account_writes(&account, up_to), expected, "order {order:?}, up to {up_to:?}");
            }
        }
    }

    #[test]
    fn an_empty_list_writes_nothing() {
        assert_eq!(writes(&[], None), StateWrites::default());
        assert_eq!(writes(&[], Some(index(3))), StateWrites::default());
    }

    #[test]
    fn changes_after_the_index_do_not_count() {
        let account = AccountChanges {
            storage_changes: vec![slot(1, &[(3, 7)]), slot(2, &[(0, 1), (2, 0), (3, 4)])],
            balance_changes: vec![BalanceChange::new(index(2), U256::from(9))],
            nonce_changes: vec![NonceChange::new(index(3), 1)],
            ..account()
        };
        let accounts = [account];
        let at = |up_to| writes(&accounts, Some(index(up_to)));
        let storage_only = |value: u64| AccountWrites {
            storage: vec![(U256::from(2), U256::from(value))],
            ..AccountWrites::default()
        };
        assert_eq!(at(0).accounts, [(accounts[0].address, storage_only(1))]);
        assert_eq!(at(1), at(0));
        let second = AccountWrites { balance: Some(U256::from(9)), ..storage_only(0) };
        assert_eq!(at(2).accounts, [(accounts[0].address, second)]);
        assert_eq!(at(3), writes(&accounts, None));
        assert_eq!(at(3).accounts[0].1.storage.len(), 2);
    }

    #[test]
    fn fields_without_a_change_are_not_written() {
        let only_balance =
            AccountChanges { balance_changes: vec![BalanceChange::new(index(1), U256::ZERO)], ..account() };
        let writes = account_writes(&only_balance, None);
        assert_eq!(writes.balance, Some(U256::ZERO), "zero is a value");
        assert_eq!((writes.nonce, writes.code, writes.storage.len()), (None, None, 0));
        assert!(!writes.deleted && !writes.storage_wiped);
    }

    #[test]
    fn reads_and_bare_addresses_write_nothing() {
        let read = AccountChanges { storage_reads: vec![U256::from(1)], ..account() };
        assert!(writes(&[account(), read], None).accounts.is_empty());
    }

    #[test]
    fn storage_only_accounts_and_zeroed_slots_are_written() {
        let account = AccountChanges { storage_changes: vec![slot(8, &[(1, 3), (2, 0)])], ..account() };
        let writes = account_writes(&account, None);
        assert_eq!(writes.storage, [(U256::from(8), U256::ZERO)]);
        assert_eq!((writes.nonce, writes.balance, writes.code), (None, None, None));
    }

    #[test]
    fn delegations_are_code_and_clearing_one_writes_empty_code() {
        let designator: Bytes = [&[0xef, 0x01, 0x00][..], &[7; 20]].concat().into();
        let account = AccountChanges {
            code_changes: vec![CodeChange::new(index(1), designator.clone()), CodeChange::new(index(2), Bytes::new())],
            ..account()
        };
        let set = account_writes(&account, Some(index(1))).code.expect("a delegation is set");
        assert_eq!((set.hash(), set.bytes()), (keccak256(&designator), &designator));
        let cleared = account_writes(&account, None).code.expect("the delegation is cleared");
        assert_eq!((cleared.hash(), cleared.bytes().len()), (KECCAK256_EMPTY, 0));
    }
}
