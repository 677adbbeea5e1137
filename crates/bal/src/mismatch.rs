//! Two lists of one block are compared: the one it came with, and the one that execution rebuilt.
//!
//! Invariants:
//! 1. `None` if and only if the lists are equal.
//! 2. Accounts are compared in order, fields in the order of the encoding. Of two entries that differ in their key the
//!    one that is missing from the other list is reported; only where each list has the other's is it the order.

use core::fmt;

use alloy_eip7928::{AccountChanges, BlockAccessIndex};
use alloy_primitives::{Address, Bytes, U256};

use crate::field::{BalField, ChangeList};

/// Where a block's list first differs from the one that execution rebuilt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("access list differs from execution: account {address}: {difference}")]
pub struct BalMismatch {
    /// The account.
    pub address: Address,
    /// What differs. `got` is what the block's list says, `expected` what execution gave; `None` is an entry that the
    /// list does not have.
    pub difference: Difference,
}

impl BalMismatch {
    /// The field that differs; [`BalField::Address`] if the account itself is too much, missing, or misplaced.
    pub const fn field(&self) -> BalField {
        match &self.difference {
            Difference::Account { .. } => BalField::Address,
            Difference::Slot { .. } | Difference::SlotValue { .. } => BalField::StorageChanges,
            Difference::Read { .. } => BalField::StorageReads,
            Difference::Balance { .. } => BalField::BalanceChanges,
            Difference::Nonce { .. } => BalField::NonceChanges,
            Difference::Code { .. } => BalField::CodeChanges,
            Difference::Order { field, .. } => *field,
        }
    }
}

/// What differs between two lists.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// Only one of the lists has the account.
    Account {
        /// Whether the block's list has it.
        got: bool,
        /// Whether it should.
        expected: bool,
    },
    /// Only one of the lists has the slot among the account's writes.
    Slot {
        /// The slot.
        slot: U256,
        /// Whether the block's list has it.
        got: bool,
        /// Whether it should.
        expected: bool,
    },
    /// The value of a written slot after an index.
    SlotValue {
        /// The slot.
        slot: U256,
        /// The index.
        index: BlockAccessIndex,
        /// The value in the block's list.
        got: Option<U256>,
        /// The value that execution gave.
        expected: Option<U256>,
    },
    /// Only one of the lists has the slot among the account's reads.
    Read {
        /// The slot.
        slot: U256,
        /// Whether the block's list has it.
        got: bool,
        /// Whether it should.
        expected: bool,
    },
    /// The balance after an index, in wei.
    Balance {
        /// The index.
        index: BlockAccessIndex,
        /// The balance in the block's list.
        got: Option<U256>,
        /// The balance that execution gave.
        expected: Option<U256>,
    },
    /// The nonce after an index.
    Nonce {
        /// The index.
        index: BlockAccessIndex,
        /// The nonce in the block's list.
        got: Option<u64>,
        /// The nonce that execution gave.
        expected: Option<u64>,
    },
    /// The code after an index.
    Code {
        /// The index.
        index: BlockAccessIndex,
        /// The code in the block's list.
        got: Option<Bytes>,
        /// The code that execution gave.
        expected: Option<Bytes>,
    },
    /// Both have the same entries in another order, or one of them has an entry more than once.
    Order {
        /// The field; [`BalField::Address`] for the accounts themselves.
        field: BalField,
        /// The position of the first entry out of place, within its list, counted from 0.
        position: usize,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account { got, .. } => write!(f, "it {} touched", presence(*got)),
            Self::Slot { slot, got, .. } => write!(f, "storage_changes: slot {slot:#x} {} changed", presence(*got)),
            Self::Read { slot, got, .. } => write!(f, "storage_reads: slot {slot:#x} {} only read", presence(*got)),
            Self::SlotValue { slot, index, got, expected } => {
                let (got, expected) = (Value(got.as_ref()), Value(expected.as_ref()));
                write!(f, "{}: at index {index} got {got:#x}, expected {expected:#x}", ChangeList::Slot(*slot))
            }
            Self::Balance { index, got, expected } => {
                let (got, expected) = (Value(got.as_ref()), Value(expected.as_ref()));
                write!(f, "{}: at index {index} got {got}, expected {expected}", ChangeList::Balance)
            }
            Self::Nonce { index, got, expected } => {
                let (got, expected) = (Value(got.as_ref()), Value(expected.as_ref()));
                write!(f, "{}: at index {index} got {got}, expected {expected}", ChangeList::Nonce)
            }
            Self::Code { index, got, expected } => {
                let (got, expected) = (CodeValue(got.as_ref()), CodeValue(expected.as_ref()));
                write!(f, "{}: at index {index} got {got}, expected {expected}", ChangeList::Code)
            }
            Self::Order { field: BalField::Address, position } => {
                write!(f, "it is out of place, at position {position} of the accounts")
            }
            Self::Order { field, position } => write!(f, "{field}: position {position} is out of place"),
        }
    }
}

const fn presence(got: bool) -> &'static str {
    if got { "is listed, but was not" } else { "is not listed, but was" }
}

/// A value, or the words for none.
struct Value<'a, T>(Option<&'a T>);

impl<T: fmt::Display> fmt::Display for Value<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("no change"),
        }
    }
}

impl<T: fmt::LowerHex> fmt::LowerHex for Value<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("no change"),
        }
    }
}

/// Code by its length and its first bytes: whole contracts would drown the message.
struct CodeValue<'a>(Option<&'a Bytes>);

impl fmt::Display for CodeValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// A delegation designator (EIP-7702) is shown whole.
        const SHOWN: usize = 23;
        match self.0 {
            None => f.write_str("no change"),
            Some(code) if code.len() <= SHOWN => write!(f, "{code}"),
            Some(code) => write!(f, "{}.. ({} bytes)", code.slice(..SHOWN), code.len()),
        }
    }
}

/// Compares a block's list (`got`) with the one that execution rebuilt (`expected`).
pub fn first_mismatch(got: &[AccountChanges], expected: &[AccountChanges]) -> Option<BalMismatch> {
    let apart = first_apart(got, expected, |account| account.address)?;
    let (address, difference) = match apart {
        Apart::Key { key, got } => (key, Difference::Account { got, expected: !got }),
        Apart::Order { key, position } => (key, Difference::Order { field: BalField::Address, position }),
        // Entries of one key that are not equal differ in one of the other fields, so there is a difference.
        Apart::Value { got, expected } => (got.address, account_difference(got, expected)?),
    };
    Some(BalMismatch { address, difference })
}

/// The first difference between two entries of one account, field by field.
fn account_difference(got: &AccountChanges, expected: &AccountChanges) -> Option<Difference> {
    storage_difference(got, expected)
        .or_else(|| read_difference(&got.storage_reads, &expected.storage_reads))
        .or_else(|| {
            let (got, expected) = (&got.balance_changes[..], &expected.balance_changes[..]);
            let apart = first_apart(got, expected, |change| change.block_access_index)?;
            Some(match apart.values(got, expected, |c| c.block_access_index, |c| c.post_balance) {
                Ok((index, got, expected)) => Difference::Balance { index, got, expected },
                Err(position) => Difference::Order { field: BalField::BalanceChanges, position },
            })
        })
        .or_else(|| {
            let (got, expected) = (&got.nonce_changes[..], &expected.nonce_changes[..]);
            let apart = first_apart(got, expected, |change| change.block_access_index)?;
            Some(match apart.values(got, expected, |c| c.block_access_index, |c| c.new_nonce) {
                Ok((index, got, expected)) => Difference::Nonce { index, got, expected },
                Err(position) => Difference::Order { field: BalField::NonceChanges, position },
            })
        })
        .or_else(|| {
            let (got, expected) = (&got.code_changes[..], &expected.code_changes[..]);
            let apart = first_apart(got, expected, |change| change.block_access_index)?;
            Some(match apart.values(got, expected, |c| c.block_access_index, |c| c.new_code.clone()) {
                Ok((index, got, expected)) => Difference::Code { index, got, expected },
                Err(position) => Difference::Order { field: BalField::CodeChanges, position },
            })
        })
}

fn storage_difference(got: &AccountChanges, expected: &AccountChanges) -> Option<Difference> {
    let field = BalField::StorageChanges;
    Some(match first_apart(&got.storage_changes, &expected.storage_changes, |changes| changes.slot)? {
        Apart::Key { key: slot, got } => Difference::Slot { slot, got, expected: !got },
        Apart::Order { position, .. } => Difference::Order { field, position },
        Apart::Value { got, expected } => {
            let (slot, got, expected) = (got.slot, &got.changes[..], &expected.changes[..]);
            let apart = first_apart(got, expected, |change| change.block_access_index)?;
            match apart.values(got, expected, |c| c.block_access_index, |c| c.new_value) {
                Ok((index, got, expected)) => Difference::SlotValue { slot, index, got, expected },
                Err(position) => Difference::Order { field, position },
            }
        }
    })
}

fn read_difference(got: &[U256], expected: &[U256]) -> Option<Difference> {
    Some(match first_apart(got, expected, |slot| *slot)? {
        Apart::Key { key: slot, got } => Difference::Read { slot, got, expected: !got },
        Apart::Order { position, .. } => Difference::Order { field: BalField::StorageReads, position },
        // The key is all there is to a read.
        Apart::Value { .. } => return None,
    })
}

/// How two lists of keyed entries first differ.
enum Apart<'a, T, K> {
    /// Only one of them has the key: the block's list if `got`.
    Key { key: K, got: bool },
    /// Both have the key at the same position, with other values.
    Value { got: &'a T, expected: &'a T },
    /// Each has the key that the other one has here, at another position.
    Order { key: K, position: usize },
}

impl<T, K: Copy + PartialEq> Apart<'_, T, K> {
    /// The key and both values, or the position at which the order differs.
    fn values<V>(
        &self,
        all_got: &[T],
        all_expected: &[T],
        key_of: impl Fn(&T) -> K,
        value_of: impl Fn(&T) -> V,
    ) -> Result<(K, Option<V>, Option<V>), usize> {
        let find = |all: &[T], key: K| all.iter().find(|entry| key_of(entry) == key).map(&value_of);
        match *self {
            Self::Key { key, .. } => Ok((key, find(all_got, key), find(all_expected, key))),
            Self::Value { got, expected } => Ok((key_of(got), Some(value_of(got)), Some(value_of(expected)))),
            Self::Order { position, .. } => Err(position),
        }
    }
}

fn first_apart<'a, T: PartialEq, K: Copy + Ord>(
    got: &'a [T],
    expected: &'a [T],
    key_of: impl Fn(&T) -> K,
) -> Option<Apart<'a, T, K>> {
    let equal = got.iter().zip(expected).take_while(|(got, expected)| got == expected).count();
    let (next_got, next_expected) = (got.get(equal), expected.get(equal));
    if let (Some(got), Some(expected)) = (next_got, next_expected)
        && key_of(got) == key_of(expected)
    {
        return Some(Apart::Value { got, expected });
    }
    let lacks = |all: &[T], key: &K| !all.iter().any(|entry| key_of(entry) == *key);
    let (got_key, expected_key) = (next_got.map(&key_of), next_expected.map(&key_of));
    let extra = got_key.filter(|key| lacks(expected, key));
    let missing = expected_key.filter(|key| lacks(got, key));
    match (extra, missing) {
        (Some(key), None) => Some(Apart::Key { key, got: true }),
        (None, Some(key)) => Some(Apart::Key { key, got: false }),
        // In ascending lists the lower one comes first.
        (Some(extra), Some(missing)) => Some(Apart::Key { key: extra.min(missing), got: extra < missing }),
        (None, None) => got_key.or(expected_key).map(|key| Apart::Order { key, position: equal }),
    }
}

#[cfg(test)]
mod tests {
    use alloy_eip7928::{BalanceChange, CodeChange, NonceChange, SlotChanges, StorageChange};

    use super::*;

    fn account(byte: u8) -> AccountChanges {
        AccountChanges {
            address: Address::with_last_byte(byte),
            storage_changes: vec![
                SlotChanges::new(U256::from(1), vec![StorageChange::new(BlockAccessIndex::new(1), U256::from(10))]),
                SlotChanges::new(U256::from(3), vec![StorageChange::new(BlockAccessIndex::new(2), U256::from(30))]),
            ],
            storage_reads: vec![U256::from(2), U256::from(4)],
            balance_changes: vec![BalanceChange::new(BlockAccessIndex::new(1), U256::from(100))],
            nonce_changes: vec![NonceChange::new(BlockAccessIndex::new(1), 7)],
            code_changes: vec![CodeChange::new(BlockAccessIndex::new(1), Bytes::from_static(&[0x60, 0x00]))],
        }
    }

    /// The difference of two lists of three accounts of which the second was altered on one side.
    fn altered(alter: impl Fn(&mut AccountChanges)) -> (BalMismatch, BalMismatch) {
        let expected = vec![account(1), account(2), account(3)];
        let mut got = expected.clone();
        alter(&mut got[1]);
        let there = first_mismatch(&got, &expected).expect("they differ");
        let back = first_mismatch(&expected, &got).expect("they differ");
        assert_eq!(there.address, Address::with_last_byte(2));
        assert_eq!(back.address, Address::with_last_byte(2));
        assert_eq!(there.field(), back.field());
        (there, back)
    }

    #[test]
    fn equal_lists_have_none() {
        assert_eq!(first_mismatch(&[], &[]), None);
        assert_eq!(first_mismatch(&[account(1), account(2)], &[account(1), account(2)]), None);
    }

    #[test]
    fn an_account_of_one_list_only_is_named_wherever_it_stands() {
        let all = [account(1), account(2), account(3)];
        for gone in 0..3 {
            let mut fewer = all.to_vec();
            let address = fewer.remove(gone).address;
            let missing = BalMismatch { address, difference: Difference::Account { got: false, expected: true } };
            let extra = BalMismatch { address, difference: Difference::Account { got: true, expected: false } };
            assert_eq!(first_mismatch(&fewer, &all), Some(missing));
            assert_eq!(first_mismatch(&all, &fewer), Some(extra));
        }
        let one_each = first_mismatch(&[account(1), account(3)], &[account(1), account(2)]).expect("they differ");
        assert_eq!(one_each.address, Address::with_last_byte(2));
        assert_eq!(one_each.difference, Difference::Account { got: false, expected: true });
        assert_eq!(
            one_each.to_string(),
            "access list differs from execution: account 0x0000000000000000000000000000000000000002: it is not listed, \
             but was touched"
        );
    }

    #[test]
    fn accounts_out_of_order_and_twice_are_told_from_missing_ones() {
        let ordered = [account(1), account(2)];
        let swapped = first_mismatch(&[account(2), account(1)], &ordered).expect("they differ");
        assert_eq!(swapped.difference, Difference::Order { field: BalField::Address, position: 0 });
        let twice = first_mismatch(&[account(1), account(2), account(2)], &ordered).expect("they differ");
        assert_eq!(twice.difference, Difference::Order { field: BalField::Address, position: 2 });
        assert_eq!(twice.address, Address::with_last_byte(2));
    }

    #[test]
    fn slots_and_their_values_are_named() {
        let (there, _) = altered(|account| account.storage_changes[1].changes[0].new_value = U256::ZERO);
        let (slot, index) = (U256::from(3), BlockAccessIndex::new(2));
        let (got, expected) = (Some(U256::ZERO), Some(U256::from(30)));
        assert_eq!(there.difference, Difference::SlotValue { slot, index, got, expected });
        assert!(there.to_string().ends_with("changes of slot 0x3: at index 2 got 0x0, expected 0x1e"), "{there}");

        let (there, back) = altered(|account| account.storage_changes[1].changes.clear());
        let expected = Some(U256::from(30));
        assert_eq!(there.difference, Difference::SlotValue { slot, index, got: None, expected });
        assert_eq!(back.difference, Difference::SlotValue { slot, index, got: expected, expected: None });
        assert!(there.to_string().ends_with("at index 2 got no change, expected 0x1e"), "{there}");

        let (there, _) = altered(|account| drop(account.storage_changes.remove(0)));
        assert_eq!(there.difference, Difference::Slot { slot: U256::from(1), got: false, expected: true });
        let (there, _) = altered(|account| account.storage_reads.insert(1, U256::from(3)));
        assert_eq!(there.difference, Difference::Read { slot: U256::from(3), got: true, expected: false });
        let (there, _) = altered(|account| account.storage_reads.reverse());
        assert_eq!(there.difference, Difference::Order { field: BalField::StorageReads, position: 0 });
    }

    #[test]
    fn balance_nonce_and_code_are_named() {
        let index = BlockAccessIndex::new(1);
        let (there, _) = altered(|account| account.balance_changes[0].post_balance = U256::from(101));
        let (got, expected) = (Some(U256::from(101)), Some(U256::from(100)));
        assert_eq!(there.difference, Difference::Balance { index, got, expected });
        assert!(there.to_string().ends_with("balance_changes: at index 1 got 101, expected 100"), "{there}");

        let (_, back) = altered(|account| account.nonce_changes.clear());
        assert_eq!(back.difference, Difference::Nonce { index, got: Some(7), expected: None });

        let (there, _) = altered(|account| account.code_changes[0].new_code = vec![1; 100].into());
        assert_eq!(there.field(), BalField::CodeChanges);
        assert!(there.to_string().ends_with(".. (100 bytes), expected 0x6000"), "{there}");

        // Another index is an entry too much at the lower one.
        let (there, _) = altered(|account| account.code_changes[0].block_access_index = BlockAccessIndex::new(2));
        let expected = Some(Bytes::from_static(&[0x60, 0x00]));
        assert_eq!(there.difference, Difference::Code { index, got: None, expected });
    }
}
