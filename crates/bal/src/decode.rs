//! Raw bytes become the types of `alloy-eip7928`, account by account, in canonical RLP or not at all.
//!
//! The decoders that `alloy-eip7928` derives accept the same bytes but for three things: they take indices up to 64 bits,
//! leave bytes after the list to the caller, and do not say where a fault is. The tests hold the two against each other.
//!
//! Invariants:
//! 1. What is accepted re-encodes to the same bytes ([`crate::encode`]).
//! 2. The depth is that of the format: there is no recursion to exhaust the stack with.
//! 3. Memory is taken for items that were read, never for items that were announced: at most 32 times the input (a slot
//!    of one byte becomes 32), and only for one account at a time where [`Accounts`] is driven by a validator.

use core::fmt;

use alloy_eip7928::{
    AccountChanges, BalanceChange, BlockAccessIndex, BlockAccessList, CodeChange, NonceChange, SlotChanges,
    StorageChange,
};
use alloy_primitives::{Address, Bytes};

use crate::{
    field::BalField,
    rlp::{Cursor, RlpError, RlpFault},
};

/// Why raw bytes are not a list in canonical RLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed access list at byte {offset}{}: {fault}", Place { account: *account, address: *address, field: *field })]
pub struct DecodeError {
    /// Where the faulty item begins, in bytes from the start of the input.
    pub offset: usize,
    /// The position of the account in the list, counted from 0; `None` if the fault is in the list itself.
    pub account: Option<usize>,
    /// The account's address, as far as it could be read.
    pub address: Option<Address>,
    /// The field of the account's entry; `None` if the fault is in the entry itself.
    pub field: Option<BalField>,
    /// What is wrong.
    #[source]
    pub fault: RlpFault,
}

struct Place {
    account: Option<usize>,
    address: Option<Address>,
    field: Option<BalField>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(account) = self.account {
            write!(f, ", account {account}")?;
        }
        if let Some(address) = self.address {
            write!(f, " ({address})")?;
        }
        if let Some(field) = self.field {
            write!(f, ", {field}")?;
        }
        Ok(())
    }
}

/// Decodes a whole list.
///
/// # Errors
/// [`DecodeError`] at the first item that is not canonical RLP of the list's shape.
pub fn decode(raw: &[u8]) -> Result<BlockAccessList, DecodeError> {
    Accounts::new(raw)?.collect()
}

/// The accounts of an encoded list, decoded one by one. After an error it ends.
#[derive(Debug, Clone)]
pub struct Accounts<'a> {
    list: Cursor<'a>,
    position: usize,
}

impl<'a> Accounts<'a> {
    /// Begins to decode `raw`, which must be one RLP list and nothing after it.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not; the accounts are looked at later.
    pub fn new(raw: &'a [u8]) -> Result<Self, DecodeError> {
        let mut outer = Cursor::new(raw);
        let list = outer.list().and_then(|list| outer.finish().map(|()| list));
        let list = list.map_err(|RlpError { offset, fault }| DecodeError {
            offset,
            account: None,
            address: None,
            field: None,
            fault,
        })?;
        Ok(Self { list, position: 0 })
    }
}

impl Iterator for Accounts<'_> {
    type Item = Result<AccountChanges, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.list.is_empty() {
            return None;
        }
        let mut account = AccountChanges::default();
        let mut place = Place { account: Some(self.position), address: None, field: None };
        self.position += 1;
        Some(match decode_account(&mut self.list, &mut account, &mut place) {
            Ok(()) => Ok(account),
            Err(RlpError { offset, fault }) => {
                self.list.clear();
                let Place { account, address, field } = place;
                Err(DecodeError { offset, account, address, field, fault })
            }
        })
    }
}

/// Decodes one entry; `place` follows, so that it says where an error arose.
fn decode_account(list: &mut Cursor<'_>, account: &mut AccountChanges, place: &mut Place) -> Result<(), RlpError> {
    let mut entry = list.list()?;
    place.field = Some(BalField::Address);
    account.address = entry.address()?;
    place.address = Some(account.address);
    place.field = Some(BalField::StorageChanges);
    account.storage_changes = each(&mut entry, |slot| {
        let mut pair = slot.list()?;
        let changes = SlotChanges {
            slot: pair.u256()?,
            changes: each(&mut pair, |change| {
                indexed(change, Cursor::u256).map(|(index, value)| StorageChange::new(index, value))
            })?,
        };
        pair.finish()?;
        Ok(changes)
    })?;
    place.field = Some(BalField::StorageReads);
    account.storage_reads = each(&mut entry, Cursor::u256)?;
    place.field = Some(BalField::BalanceChanges);
    account.balance_changes = each(&mut entry, |change| {
        indexed(change, Cursor::u256).map(|(index, balance)| BalanceChange::new(index, balance))
    })?;
    place.field = Some(BalField::NonceChanges);
    account.nonce_changes =
        each(&mut entry, |change| indexed(change, Cursor::u64).map(|(index, nonce)| NonceChange::new(index, nonce)))?;
    place.field = Some(BalField::CodeChanges);
    account.code_changes = each(&mut entry, |change| {
        // Copied, so that a cached code does not keep the whole list in memory.
        indexed(change, Cursor::string).map(|(index, code)| CodeChange::new(index, Bytes::copy_from_slice(code)))
    })?;
    place.field = None;
    entry.finish()
}

/// Decodes the list that comes next, item by item.
fn each<'a, T>(
    cursor: &mut Cursor<'a>,
    mut item: impl FnMut(&mut Cursor<'a>) -> Result<T, RlpError>,
) -> Result<Vec<T>, RlpError> {
    let mut list = cursor.list()?;
    let mut items = Vec::new();
    while !list.is_empty() {
        items.push(item(&mut list)?);
    }
    Ok(items)
}

/// Decodes a pair of a block access index (`uint32`) and a value.
fn indexed<'a, T>(
    cursor: &mut Cursor<'a>,
    value: impl FnOnce(&mut Cursor<'a>) -> Result<T, RlpError>,
) -> Result<(BlockAccessIndex, T), RlpError> {
    let mut pair = cursor.list()?;
    let index = BlockAccessIndex::new(u64::from(pair.u32()?));
    let value = value(&mut pair)?;
    pair.finish()?;
    Ok((index, value))
}

#[cfg(test)]
mod tests {
    use alloy_primitives::U256;

    use super::*;
    use crate::encode::encode;

    const ADDRESS: Address = Address::repeat_byte(0x11);

    fn list(items: &[Vec<u8>]) -> Vec<u8> {
        let payload = items.concat();
        let mut out = Vec::new();
        alloy_rlp::Header { list: true, payload_length: payload.len() }.encode(&mut out);
        out.extend(payload);
        out
    }

    /// The encoding of one account whose fields are given in raw form; each is an empty list where nothing is given.
    fn account_with(fields: &[(usize, Vec<u8>)]) -> Vec<u8> {
        let mut items = vec![[&[0x94][..], &ADDRESS[..]].concat()];
        items.resize(6, vec![0xc0]);
        for (position, bytes) in fields {
            items[*position] = bytes.clone();
        }
        list(&items)
    }

    fn fault_of(account: Vec<u8>) -> (Option<BalField>, RlpFault) {
        let error = decode(&list(&[account_with(&[]), account])).unwrap_err();
        assert_eq!(error.account, Some(1));
        (error.field, error.fault)
    }

    #[test]
    fn empty_lists_and_bare_accounts_decode() {
        assert_eq!(decode(&[0xc0]), Ok(vec![]));
        assert_eq!(decode(&list(&[account_with(&[])])), Ok(vec![AccountChanges::new(ADDRESS)]));
    }

    #[test]
    fn every_field_is_read_as_it_is_written() {
        let index = BlockAccessIndex::new;
        let account = AccountChanges {
            address: ADDRESS,
            storage_changes: vec![
                SlotChanges::new(U256::ZERO, vec![StorageChange::new(index(0), U256::MAX)]),
                SlotChanges::new(U256::MAX, vec![StorageChange::new(index(u32::MAX.into()), U256::ZERO)]),
            ],
            storage_reads: vec![U256::from(0x7f), U256::from(0x80), U256::from(0x100)],
            balance_changes: vec![BalanceChange::new(index(1), U256::MAX)],
            nonce_changes: vec![NonceChange::new(index(2), u64::MAX), NonceChange::new(index(300), 0)],
            code_changes: vec![
                CodeChange::new(index(3), vec![0; 60].into()),
                CodeChange::new(index(4), vec![0x00].into()),
                CodeChange::new(index(5), Bytes::new()),
            ],
        };
        let accounts = vec![account, AccountChanges::new(Address::repeat_byte(0x22))];
        assert_eq!(decode(&encode(&accounts)), Ok(accounts));
    }

    #[test]
    fn the_list_itself_is_one_list_and_nothing_more() {
        let fault = |bytes: &[u8]| {
            let error = decode(bytes).unwrap_err();
            assert_eq!((error.account, error.address, error.field), (None, None, None));
            (error.offset, error.fault)
        };
        assert_eq!(fault(&[]), (0, RlpFault::Missing));
        assert_eq!(fault(&[0x80]), (0, RlpFault::UnexpectedString));
        assert_eq!(fault(&[0xc0, 0x00]), (1, RlpFault::Trailing { got: 1 }));
        assert_eq!(fault(&[0xc1]), (0, RlpFault::PastTheEnd { got: 1, expected: 0 }));
        assert_eq!(fault(&[0xf8, 0x00]), (0, RlpFault::LongLength));
    }

    #[test]
    fn faults_name_account_and_field() {
        use BalField as Field;
        let read = |bytes: &[u8]| account_with(&[(2, list(&[bytes.to_vec()]))]);
        assert_eq!(fault_of(vec![0x80]), (None, RlpFault::UnexpectedString));
        assert_eq!(
            fault_of(account_with(&[(0, vec![0x81, 0xff])])),
            (Some(Field::Address), RlpFault::WrongLength { got: 1, expected: 20 })
        );
        assert_eq!(fault_of(read(&[0x00])), (Some(Field::StorageReads), RlpFault::LeadingZero));
        assert_eq!(fault_of(read(&[0x81, 0x05])), (Some(Field::StorageReads), RlpFault::LongSingleByte));
        let wide = [&[0xa1][..], &[1; 33]].concat();
        let too_wide = RlpFault::TooWide { got: 33, expected: 32 };
        assert_eq!(fault_of(read(&wide)), (Some(Field::StorageReads), too_wide));
        for (position, field) in
            [(1, Field::StorageChanges), (3, Field::BalanceChanges), (4, Field::NonceChanges), (5, Field::CodeChanges)]
        {
            let with = |item: Vec<u8>| fault_of(account_with(&[(position, list(&[item]))]));
            assert_eq!(with(vec![0x01]), (Some(field), RlpFault::UnexpectedString));
            assert_eq!(with(list(&[])), (Some(field), RlpFault::Missing));
            assert_eq!(with(list(&[vec![0x01]])), (Some(field), RlpFault::Missing));
            let last = if position == 1 { vec![0xc0] } else { vec![0x01] };
            let three = list(&[vec![0x01], last, vec![0x01]]);
            assert_eq!(with(three), (Some(field), RlpFault::Trailing { got: 1 }));
        }
        let wide_nonce = [&[0x89][..], &[1; 9]].concat();
        assert_eq!(
            fault_of(account_with(&[(4, list(&[list(&[vec![0x01], wide_nonce])]))])),
            (Some(Field::NonceChanges), RlpFault::TooWide { got: 9, expected: 8 })
        );
        let wide_index = vec![0x85, 1, 0, 0, 0, 0];
        let change = list(&[wide_index, vec![0x01]]);
        let too_wide = RlpFault::TooWide { got: 5, expected: 4 };
        assert_eq!(
            fault_of(account_with(&[(3, list(std::slice::from_ref(&change)))])),
            (Some(Field::BalanceChanges), too_wide)
        );
        let slot = list(&[vec![0x01], list(&[change])]);
        assert_eq!(fault_of(account_with(&[(1, list(&[slot]))])), (Some(Field::StorageChanges), too_wide));
    }

    #[test]
    fn an_entry_has_six_fields() {
        let fields = |count: usize| {
            let mut items = vec![[&[0x94][..], &ADDRESS[..]].concat()];
            items.resize(count, vec![0xc0]);
            list(&items)
        };
        assert_eq!(fault_of(list(&[])), (Some(BalField::Address), RlpFault::Missing));
        assert_eq!(fault_of(fields(5)), (Some(BalField::CodeChanges), RlpFault::Missing));
        assert_eq!(fault_of(fields(7)), (None, RlpFault::Trailing { got: 1 }));
    }

    #[test]
    fn messages_say_where() {
        let bad = list(&[account_with(&[(2, list(&[vec![0x00]]))])]);
        let error = decode(&bad).unwrap_err();
        let expected = "malformed access list at byte 25, account 0 (0x1111111111111111111111111111111111111111), \
                        storage_reads: the integer has leading zeros";
        assert_eq!(error.to_string(), expected);
        assert_eq!(bad[error.offset], 0x00);
    }

    #[test]
    fn the_accounts_end_after_an_error() {
        let bytes = list(&[vec![0x80], account_with(&[])]);
        let mut accounts = Accounts::new(&bytes).unwrap();
        assert!(accounts.next().unwrap().is_err());
        assert!(accounts.next().is_none());
    }
}
