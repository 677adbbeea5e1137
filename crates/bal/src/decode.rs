//! Raw bytes are walked over in canonical RLP or not at all; the walk may build the types of `alloy-eip7928`.
//!
//! The decoders that `alloy-eip7928` derives accept the same bytes but for three things: they take indices up to 64 bits,
//! leave bytes after the list to the caller, and do not say where a fault is. The tests hold the two against each other.
//!
//! Invariants:
//! 1. What is accepted re-encodes to the same bytes ([`crate::encode`]).
//! 2. The depth is that of the format: there is no recursion to exhaust the stack with.
//! 3. The walk takes no memory, and its visitors take it for items that were read, never for items that were announced:
//!    [`decode`] at most 32 times the input (a slot of one byte becomes 32).

use core::fmt;

use alloy_eip7928::{
    AccountChanges, BalanceChange, BlockAccessIndex, BlockAccessList, CodeChange, NonceChange, SlotChanges,
    StorageChange,
};
use alloy_primitives::{Address, Bytes};

use crate::{
    field::BalField,
    rlp::{Cursor, RlpError, RlpFault, Uint},
    visit::Visit,
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

#[derive(Debug, Clone, Copy, Default)]
struct Place {
    account: Option<usize>,
    address: Option<Address>,
    field: Option<BalField>,
}

impl Place {
    const fn fault(self, RlpError { offset, fault }: RlpError) -> DecodeError {
        let Self { account, address, field } = self;
        DecodeError { offset, account, address, field, fault }
    }
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

/// Decodes a whole list. The rules are not checked: see [`crate::validate`].
///
/// # Errors
/// [`DecodeError`] at the first item that is not canonical RLP of the list's shape.
pub fn decode(raw: &[u8]) -> Result<BlockAccessList, DecodeError> {
    let mut builder = Builder::default();
    walk(raw, &mut builder)?;
    Ok(builder.accounts)
}

/// Takes a visitor through `raw`, which must be one list and nothing after it, without taking memory.
///
/// # Errors
/// [`DecodeError`] at the first item that is not canonical RLP of the list's shape, or the visitor's error at the end of
/// an account, whichever comes first.
pub(crate) fn walk<'a, V>(raw: &'a [u8], visitor: &mut V) -> Result<(), V::Error>
where
    V: Visit<'a, Error: From<DecodeError>>,
{
    let mut outer = Cursor::new(raw);
    let list = outer.list().and_then(|list| outer.finish().map(|()| list));
    let mut list = list.map_err(|error| Place::default().fault(error))?;
    let mut position = 0;
    while !list.is_empty() {
        let mut place = Place { account: Some(position), ..Place::default() };
        walk_account(&mut list, visitor, &mut place).map_err(|error| place.fault(error))?;
        visitor.account_end()?;
        position += 1;
    }
    Ok(())
}

/// Walks over one entry; `place` follows, so that it says where an error arose.
fn walk_account<'a, V: Visit<'a>>(list: &mut Cursor<'a>, visitor: &mut V, place: &mut Place) -> Result<(), RlpError> {
    let mut entry = list.list()?;
    place.field = Some(BalField::Address);
    let address = entry.address()?;
    visitor.account(address);
    place.address = Some(address);
    place.field = Some(BalField::StorageChanges);
    each(&mut entry, |slot| {
        let mut pair = slot.list()?;
        visitor.written_slot(pair.uint()?);
        each(&mut pair, |change| {
            let (index, value) = indexed(change, Cursor::uint)?;
            visitor.slot_change(index, value);
            Ok(())
        })?;
        visitor.written_slot_end();
        pair.finish()
    })?;
    place.field = Some(BalField::StorageReads);
    each(&mut entry, |slot| {
        visitor.read_slot(slot.uint()?);
        Ok(())
    })?;
    place.field = Some(BalField::BalanceChanges);
    each(&mut entry, |change| {
        let (index, balance) = indexed(change, Cursor::uint)?;
        visitor.balance_change(index, balance);
        Ok(())
    })?;
    place.field = Some(BalField::NonceChanges);
    each(&mut entry, |change| {
        let (index, nonce) = indexed(change, Cursor::u64)?;
        visitor.nonce_change(index, nonce);
        Ok(())
    })?;
    place.field = Some(BalField::CodeChanges);
    each(&mut entry, |change| {
        let (index, code) = indexed(change, Cursor::string)?;
        visitor.code_change(index, code);
        Ok(())
    })?;
    place.field = None;
    entry.finish()
}

/// Walks over the list that comes next, item by item.
#[inline(always)]
fn each<'a>(
    cursor: &mut Cursor<'a>,
    mut item: impl FnMut(&mut Cursor<'a>) -> Result<(), RlpError>,
) -> Result<(), RlpError> {
    let mut list = cursor.list()?;
    while !list.is_empty() {
        item(&mut list)?;
    }
    Ok(())
}

/// Decodes a pair of a block access index (`uint32`) and a value.
#[inline(always)]
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

/// Builds the types of `alloy-eip7928`.
#[derive(Debug, Default)]
struct Builder {
    accounts: BlockAccessList,
    /// The account that is not complete yet, and its last written slot.
    account: AccountChanges,
    slot: SlotChanges,
}

impl<'a> Visit<'a> for Builder {
    type Error = DecodeError;

    fn account(&mut self, address: Address) {
        self.account = AccountChanges::new(address);
    }

    fn written_slot(&mut self, slot: Uint<'a>) {
        self.slot = SlotChanges::new(slot.to_u256(), Vec::new());
    }

    fn slot_change(&mut self, index: BlockAccessIndex, value: Uint<'a>) {
        self.slot.changes.push(StorageChange::new(index, value.to_u256()));
    }

    fn written_slot_end(&mut self) {
        self.account.storage_changes.push(core::mem::take(&mut self.slot));
    }

    fn read_slot(&mut self, slot: Uint<'a>) {
        self.account.storage_reads.push(slot.to_u256());
    }

    fn balance_change(&mut self, index: BlockAccessIndex, balance: Uint<'a>) {
        self.account.balance_changes.push(BalanceChange::new(index, balance.to_u256()));
    }

    fn nonce_change(&mut self, index: BlockAccessIndex, nonce: u64) {
        self.account.nonce_changes.push(NonceChange::new(index, nonce));
    }

    fn code_change(&mut self, index: BlockAccessIndex, code: &'a [u8]) {
        // Copied, so that a cached code does not keep the whole list in memory.
        self.account.code_changes.push(CodeChange::new(index, Bytes::copy_from_slice(code)));
    }

    fn account_end(&mut self) -> Result<(), DecodeError> {
        self.accounts.push(core::mem::take(&mut self.account));
        Ok(())
    }
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
}
