//! A list in flat tables: its keys, and the values that it leaves behind, each in the list's order.
//!
//! Invariants, of tables that a whole walk has filled:
//! 1. The list keeps every rule ([`Rules`]).
//! 2. The accounts' ranges lie one after the other and cover `slots`; `values` has one for each written slot, in order.
//! 3. A value is that of the highest index: indices ascend, so it is the last one.
//! 4. Memory is taken for what the block's limits allow: of an account that is sure to be refused nothing more is stored.

use alloy_eip7928::BlockAccessIndex;
use alloy_primitives::Address;

use crate::{
    bal::BalError,
    rlp::Uint,
    validate::{BalLimits, Rules},
    visit::Visit,
};

/// The slots of one account: the places of those written and then of those only read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SlotRange {
    pub(crate) start: usize,
    pub(crate) written_end: usize,
    pub(crate) end: usize,
}

/// The final fields of one account, as far as they were written.
#[derive(Debug, Default)]
pub(crate) struct FinalFields<'a> {
    pub(crate) nonce: Option<u64>,
    pub(crate) balance: Option<Uint<'a>>,
    pub(crate) code: Option<&'a [u8]>,
}

impl FinalFields<'_> {
    pub(crate) const fn any(&self) -> bool {
        self.nonce.is_some() || self.balance.is_some() || self.code.is_some()
    }
}

/// The tables, and the rules that hold while they are filled.
#[derive(Debug)]
pub(crate) struct Flat<'a> {
    rules: Rules,
    pub(crate) addresses: Vec<Address>,
    /// One for each address.
    pub(crate) fields: Vec<FinalFields<'a>>,
    /// One for each address.
    pub(crate) ranges: Vec<SlotRange>,
    /// Account after account, those written first; big-endian, as they are hashed.
    pub(crate) slots: Vec<[u8; 32]>,
    /// One for each written slot.
    pub(crate) values: Vec<Uint<'a>>,
    /// Of the account that is not complete yet.
    current: FinalFields<'a>,
    range: SlotRange,
    value: Uint<'a>,
}

impl Flat<'_> {
    /// Tables for a list of `raw_len` bytes, with room for what a list of this size has on mainnet.
    pub(crate) fn new(limits: BalLimits, raw_len: usize) -> Self {
        let accounts = raw_len / 160;
        Self {
            rules: Rules::new(limits),
            addresses: Vec::with_capacity(accounts),
            fields: Vec::with_capacity(accounts),
            ranges: Vec::with_capacity(accounts),
            slots: Vec::with_capacity(raw_len / 56),
            values: Vec::with_capacity(raw_len / 128),
            current: FinalFields { nonce: None, balance: None, code: None },
            range: SlotRange { start: 0, written_end: 0, end: 0 },
            value: Uint::ZERO,
        }
    }
}

impl<'a> Visit<'a> for Flat<'a> {
    type Error = BalError;

    #[inline]
    fn account(&mut self, address: Address) {
        self.rules.account(address);
        self.addresses.push(address);
        let start = self.slots.len();
        self.range = SlotRange { start, written_end: start, end: start };
    }

    #[inline]
    fn written_slot(&mut self, slot: Uint<'a>) {
        let slot = slot.to_be_bytes();
        self.rules.written_slot(&slot);
        if !self.rules.refuses() {
            self.slots.push(slot);
        }
    }

    #[inline]
    fn slot_change(&mut self, index: BlockAccessIndex, value: Uint<'a>) {
        self.rules.slot_change(index);
        self.value = value;
    }

    #[inline]
    fn written_slot_end(&mut self) {
        self.rules.written_slot_end();
        if !self.rules.refuses() {
            self.values.push(self.value);
            self.range.written_end = self.slots.len();
        }
    }

    #[inline]
    fn read_slot(&mut self, slot: Uint<'a>) {
        let slot = slot.to_be_bytes();
        self.rules.read_slot(&slot);
        if !self.rules.refuses() {
            self.slots.push(slot);
        }
    }

    #[inline]
    fn balance_change(&mut self, index: BlockAccessIndex, balance: Uint<'a>) {
        self.rules.balance_change(index);
        self.current.balance = Some(balance);
    }

    #[inline]
    fn nonce_change(&mut self, index: BlockAccessIndex, nonce: u64) {
        self.rules.nonce_change(index);
        self.current.nonce = Some(nonce);
    }

    #[inline]
    fn code_change(&mut self, index: BlockAccessIndex, code: &'a [u8]) {
        self.rules.code_change(index, code.len());
        self.current.code = Some(code);
    }

    #[inline]
    fn account_end(&mut self) -> Result<(), BalError> {
        self.rules.account_end()?;
        self.range.end = self.slots.len();
        self.ranges.push(self.range);
        self.fields.push(core::mem::take(&mut self.current));
        Ok(())
    }
}
