//! The rules of EIP-7928 that a list can be held to without executing its block.
//!
//! Invariants, of every list that passes:
//! 1. Accounts ascend strictly by address; within an account slots ascend strictly, in the writes and in the reads, and
//!    no slot is in both; within a list of changes the indices ascend strictly and end at `tx_count + 1`; no slot has an
//!    empty list of changes.
//! 2. There are at most `gas_limit / 2000` items: an account is one, and each slot written or read is one.
//! 3. Whether the list is true is not asked here: only execution can tell.

use alloy_eip7928::{AccountChanges, BlockAccessIndex};
use alloy_primitives::{Address, U256};
use foldgate_core::block::BlockFacts;

use crate::field::{BalField, ChangeList};

/// The gas for which a block may list one item (EIP-7928, `ITEM_COST`).
pub const ITEM_COST: u64 = alloy_eip7928::ITEM_COST as u64;

/// The largest code that any fork with access lists allows (EIP-7954). EIP-7928 sets no limit of its own; forks without
/// EIP-7954 have that of EIP-170, 24,576 bytes.
pub const MAX_CODE_SIZE: usize = 0x10000;

/// The facts of a block that its list is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalLimits {
    /// The number of the block's transactions.
    pub tx_count: u64,
    /// The header's gas limit.
    pub gas_limit: u64,
    /// The longest code in bytes that the fork lets an account have.
    pub max_code_size: usize,
}

impl BalLimits {
    /// The limits of a block, with [`MAX_CODE_SIZE`].
    pub const fn new(tx_count: u64, gas_limit: u64) -> Self {
        Self { tx_count, gas_limit, max_code_size: MAX_CODE_SIZE }
    }

    /// With another limit on code; `usize::MAX` for chains without one.
    #[must_use]
    pub const fn with_max_code_size(mut self, max_code_size: usize) -> Self {
        self.max_code_size = max_code_size;
        self
    }

    /// The highest index that the list may name: that of what follows the transactions.
    pub const fn max_index(&self) -> BlockAccessIndex {
        BlockAccessIndex::new(self.tx_count.saturating_add(1))
    }

    /// The most items that the list may have.
    pub const fn max_items(&self) -> u64 {
        self.gas_limit / ITEM_COST
    }
}

impl From<&BlockFacts> for BalLimits {
    fn from(facts: &BlockFacts) -> Self {
        Self::new(facts.tx_count, facts.gas_limit)
    }
}

/// A rule of EIP-7928 that a list breaks. With the header's hash it makes the block invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// An account stands twice.
    #[error("account {address} is listed twice")]
    DuplicateAccount {
        /// The account.
        address: Address,
    },
    /// An account stands after one with a higher address.
    #[error("account {address} is listed after {previous}: addresses must ascend")]
    AccountOrder {
        /// The account.
        address: Address,
        /// The one before it.
        previous: Address,
    },
    /// A slot stands twice in the same field.
    #[error("account {address}, {field}: slot {slot:#x} is listed twice")]
    DuplicateSlot {
        /// The account.
        address: Address,
        /// The writes or the reads.
        field: BalField,
        /// The slot.
        slot: U256,
    },
    /// A slot stands after a higher one.
    #[error("account {address}, {field}: slot {slot:#x} is listed after {previous:#x}: slots must ascend")]
    SlotOrder {
        /// The account.
        address: Address,
        /// The writes or the reads.
        field: BalField,
        /// The slot.
        slot: U256,
        /// The one before it.
        previous: U256,
    },
    /// A slot stands among the writes and among the reads.
    #[error("account {address}: slot {slot:#x} is listed as written and as only read")]
    WrittenAndRead {
        /// The account.
        address: Address,
        /// The slot.
        slot: U256,
    },
    /// A slot stands among the writes without a change.
    #[error("account {address}: slot {slot:#x} is listed as written, without a change")]
    EmptySlotChanges {
        /// The account.
        address: Address,
        /// The slot.
        slot: U256,
    },
    /// An index stands twice in a list of changes.
    #[error("account {address}, {list}: index {index} is listed twice")]
    DuplicateIndex {
        /// The account.
        address: Address,
        /// The list of changes.
        list: ChangeList,
        /// The index.
        index: BlockAccessIndex,
    },
    /// An index stands after a higher one.
    #[error("account {address}, {list}: index {index} is listed after {previous}: indices must ascend")]
    IndexOrder {
        /// The account.
        address: Address,
        /// The list of changes.
        list: ChangeList,
        /// The index.
        index: BlockAccessIndex,
        /// The one before it.
        previous: BlockAccessIndex,
    },
    /// An index is beyond the block's last.
    #[error("account {address}, {list}: index {got} is beyond the block's last, {expected}")]
    IndexTooHigh {
        /// The account.
        address: Address,
        /// The list of changes.
        list: ChangeList,
        /// The index.
        got: BlockAccessIndex,
        /// The highest index of the block: `tx_count + 1`.
        expected: BlockAccessIndex,
    },
    /// A code is longer than the fork allows.
    #[error("account {address}, code_changes: the code at index {index} has {got} bytes, expected at most {expected}")]
    CodeTooLarge {
        /// The account.
        address: Address,
        /// The index of the change.
        index: BlockAccessIndex,
        /// The code's length in bytes.
        got: usize,
        /// The limit in bytes.
        expected: usize,
    },
    /// The list has more items than the block's gas limit allows.
    #[error("at least {got} items are listed, but a gas limit of {gas_limit} allows {expected}")]
    TooManyItems {
        /// The items up to and including the first account that goes beyond the limit.
        got: u64,
        /// The limit.
        expected: u64,
        /// The gas limit from which it follows.
        gas_limit: u64,
    },
}

/// Holds a whole list to the rules.
///
/// # Errors
/// The first [`Violation`], account by account in the list's order.
pub fn validate(accounts: &[AccountChanges], limits: &BalLimits) -> Result<(), Violation> {
    let mut rules = Rules::new(*limits);
    for account in accounts {
        rules.account(account.address);
        for slot in &account.storage_changes {
            rules.written_slot(&slot.slot.to_be_bytes());
            slot.changes.iter().for_each(|change| rules.slot_change(change.block_access_index));
            rules.written_slot_end();
        }
        account.storage_reads.iter().for_each(|slot| rules.read_slot(&slot.to_be_bytes()));
        account.balance_changes.iter().for_each(|change| rules.balance_change(change.block_access_index));
        account.nonce_changes.iter().for_each(|change| rules.nonce_change(change.block_access_index));
        for change in &account.code_changes {
            rules.code_change(change.block_access_index, change.new_code.len());
        }
        rules.account_end()?;
    }
    Ok(())
}

/// A rule that an account can break, in the order in which they are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    Accounts,
    Items,
    WrittenSlots,
    SlotChanges,
    ReadSlots,
    WrittenAndRead,
    Balances,
    Nonces,
    Codes,
    CodeSizes,
}

/// Big-endian.
type Slot = [u8; 32];

/// Holds a list to the rules while something walks over it, in the order of the encoding. An account is judged at its end,
/// so that what it breaks is reported in the order of the rules, and not in that of the encoding.
#[derive(Debug)]
pub(crate) struct Rules {
    limits: BalLimits,
    items: u64,
    /// The account that came last.
    address: Option<Address>,
    /// The lowest rule that the account breaks, and how it did so first.
    broken: Option<(Rule, Violation)>,
    /// The account's written slots; none is added once the account is known to be bad.
    written: Vec<Slot>,
    /// How many of `written` lie below the account's last read.
    below_read: usize,
    slot: Option<Slot>,
    read: Option<Slot>,
    /// The last index of the slot, of the balance, of the nonce and of the code.
    slot_index: Option<BlockAccessIndex>,
    balance_index: Option<BlockAccessIndex>,
    nonce_index: Option<BlockAccessIndex>,
    code_index: Option<BlockAccessIndex>,
}

impl Rules {
    pub(crate) const fn new(limits: BalLimits) -> Self {
        Self {
            limits,
            items: 0,
            address: None,
            broken: None,
            written: Vec::new(),
            below_read: 0,
            slot: None,
            read: None,
            slot_index: None,
            balance_index: None,
            nonce_index: None,
            code_index: None,
        }
    }

    /// Whether the account will be refused at its end: nothing more of it needs to be kept.
    #[inline]
    pub(crate) const fn refuses(&self) -> bool {
        self.broken.is_some() || self.items > self.limits.max_items()
    }

    #[cold]
    fn note(&mut self, rule: Rule, violation: Violation) {
        if self.broken.is_none_or(|(lowest, _)| rule < lowest) {
            self.broken = Some((rule, violation));
        }
    }

    fn current(&self) -> Address {
        self.address.unwrap_or_default()
    }

    fn current_slot(&self) -> U256 {
        U256::from_be_bytes(self.slot.unwrap_or_default())
    }

    /// Holds an index to the one before it in its list of changes and to the block's last.
    #[inline]
    fn index(&mut self, rule: Rule, previous: Option<BlockAccessIndex>, index: BlockAccessIndex) {
        if previous.is_some_and(|previous| previous >= index) || index > self.limits.max_index() {
            self.note_index(rule, previous, index);
        }
    }

    #[cold]
    fn note_index(&mut self, rule: Rule, previous: Option<BlockAccessIndex>, index: BlockAccessIndex) {
        let (address, expected) = (self.current(), self.limits.max_index());
        let list = match rule {
            Rule::Balances => ChangeList::Balance,
            Rule::Nonces => ChangeList::Nonce,
            Rule::Codes => ChangeList::Code,
            _ => ChangeList::Slot(self.current_slot()),
        };
        let violation = match previous {
            Some(previous) if previous == index => Violation::DuplicateIndex { address, list, index },
            Some(previous) if previous > index => Violation::IndexOrder { address, list, index, previous },
            _ => Violation::IndexTooHigh { address, list, got: index, expected },
        };
        self.note(rule, violation);
    }

    /// Holds a slot to the one before it in its field, and counts it.
    #[inline]
    fn slot_order(&mut self, rule: Rule, previous: Option<Slot>, slot: &Slot) {
        self.items += 1;
        if let Some(previous) = previous.filter(|previous| previous >= slot) {
            self.note_slot(rule, previous, slot);
        }
    }

    #[cold]
    fn note_slot(&mut self, rule: Rule, previous: Slot, slot: &Slot) {
        let address = self.current();
        let field = if rule == Rule::WrittenSlots { BalField::StorageChanges } else { BalField::StorageReads };
        let (previous, slot) = (U256::from_be_bytes(previous), U256::from_be_bytes(*slot));
        let violation = if previous == slot {
            Violation::DuplicateSlot { address, field, slot }
        } else {
            Violation::SlotOrder { address, field, slot, previous }
        };
        self.note(rule, violation);
    }

    #[inline]
    pub(crate) fn account(&mut self, address: Address) {
        let before = self.address.replace(address);
        self.items += 1;
        self.written.clear();
        self.below_read = 0;
        (self.slot, self.read) = (None, None);
        (self.balance_index, self.nonce_index, self.code_index) = (None, None, None);
        if let Some(previous) = before.filter(|previous| *previous >= address) {
            let violation = if previous == address {
                Violation::DuplicateAccount { address }
            } else {
                Violation::AccountOrder { address, previous }
            };
            self.note(Rule::Accounts, violation);
        }
    }

    #[inline]
    pub(crate) fn written_slot(&mut self, slot: &Slot) {
        let previous = self.slot.replace(*slot);
        self.slot_order(Rule::WrittenSlots, previous, slot);
        self.slot_index = None;
        if !self.refuses() {
            self.written.push(*slot);
        }
    }

    #[inline]
    pub(crate) fn slot_change(&mut self, index: BlockAccessIndex) {
        let previous = self.slot_index.replace(index);
        self.index(Rule::SlotChanges, previous, index);
    }

    #[inline]
    pub(crate) fn written_slot_end(&mut self) {
        if self.slot_index.is_none() {
            let slot = self.current_slot();
            self.note(Rule::SlotChanges, Violation::EmptySlotChanges { address: self.current(), slot });
        }
    }

    #[inline]
    pub(crate) fn read_slot(&mut self, slot: &Slot) {
        let previous = self.read.replace(*slot);
        self.slot_order(Rule::ReadSlots, previous, slot);
        // Both fields ascend, or a lower rule is broken: so one pass over the two finds what is in both.
        while self.written.get(self.below_read).is_some_and(|written| written < slot) {
            self.below_read += 1;
        }
        if self.written.get(self.below_read) == Some(slot) {
            let slot = U256::from_be_bytes(*slot);
            self.note(Rule::WrittenAndRead, Violation::WrittenAndRead { address: self.current(), slot });
        }
    }

    #[inline]
    pub(crate) fn balance_change(&mut self, index: BlockAccessIndex) {
        let previous = self.balance_index.replace(index);
        self.index(Rule::Balances, previous, index);
    }

    #[inline]
    pub(crate) fn nonce_change(&mut self, index: BlockAccessIndex) {
        let previous = self.nonce_index.replace(index);
        self.index(Rule::Nonces, previous, index);
    }

    #[inline]
    pub(crate) fn code_change(&mut self, index: BlockAccessIndex, got: usize) {
        let previous = self.code_index.replace(index);
        self.index(Rule::Codes, previous, index);
        let expected = self.limits.max_code_size;
        if got > expected {
            let address = self.current();
            self.note(Rule::CodeSizes, Violation::CodeTooLarge { address, index, got, expected });
        }
    }

    /// Judges the account that is complete.
    #[inline]
    pub(crate) fn account_end(&mut self) -> Result<(), Violation> {
        let (got, expected) = (self.items, self.limits.max_items());
        if got > expected {
            self.note(Rule::Items, Violation::TooManyItems { got, expected, gas_limit: self.limits.gas_limit });
        }
        match self.broken {
            None => Ok(()),
            Some((_, violation)) => Err(violation),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloy_eip7928::{BalanceChange, CodeChange, NonceChange, SlotChanges, StorageChange};

    use super::*;

    const LIMITS: BalLimits = BalLimits::new(2, 60_000_000);

    const fn index(index: u64) -> BlockAccessIndex {
        BlockAccessIndex::new(index)
    }

    fn slot(slot: u64, indices: &[u64]) -> SlotChanges {
        let changes = indices.iter().map(|at| StorageChange::new(index(*at), U256::from(1)));
        SlotChanges::new(U256::from(slot), changes.collect())
    }

    /// An account that uses every index from 0 to 3, the last of a block with two transactions.
    fn account(byte: u8) -> AccountChanges {
        AccountChanges {
            address: Address::with_last_byte(byte),
            storage_changes: vec![slot(1, &[0, 3]), slot(4, &[2])],
            storage_reads: vec![U256::from(2), U256::from(3)],
            balance_changes: vec![
                BalanceChange::new(index(1), U256::from(20)),
                BalanceChange::new(index(3), U256::from(30)),
            ],
            nonce_changes: vec![NonceChange::new(index(1), 1), NonceChange::new(index(2), 2)],
            code_changes: vec![CodeChange::new(index(2), vec![1].into()), CodeChange::new(index(3), vec![].into())],
        }
    }

    fn altered(alter: impl Fn(&mut AccountChanges)) -> Violation {
        let mut altered = account(1);
        alter(&mut altered);
        validate(&[altered], &LIMITS).unwrap_err()
    }

    const ONE: Address = Address::with_last_byte(1);

    #[test]
    fn ordered_lists_pass() {
        assert_eq!(validate(&[], &LIMITS), Ok(()));
        assert_eq!(
            validate(&[account(1), account(2), AccountChanges::new(Address::with_last_byte(3))], &LIMITS),
            Ok(())
        );
    }

    #[test]
    fn accounts_ascend_strictly() {
        let (one, two) = (ONE, Address::with_last_byte(2));
        assert_eq!(
            validate(&[account(2), account(1)], &LIMITS),
            Err(Violation::AccountOrder { address: one, previous: two })
        );
        assert_eq!(
            validate(&[account(1), account(2), account(2)], &LIMITS),
            Err(Violation::DuplicateAccount { address: two })
        );
    }

    #[test]
    fn slots_ascend_strictly_and_are_written_or_read() {
        let (address, written, read) = (ONE, BalField::StorageChanges, BalField::StorageReads);
        let (low, high) = (U256::from(1), U256::from(4));
        assert_eq!(
            altered(|account| account.storage_changes.reverse()),
            Violation::SlotOrder { address, field: written, slot: low, previous: high }
        );
        assert_eq!(
            altered(|account| account.storage_changes[1].slot = low),
            Violation::DuplicateSlot { address, field: written, slot: low }
        );
        assert_eq!(
            altered(|account| account.storage_reads.reverse()),
            Violation::SlotOrder { address, field: read, slot: U256::from(2), previous: U256::from(3) }
        );
        assert_eq!(
            altered(|account| account.storage_reads[1] = U256::from(2)),
            Violation::DuplicateSlot { address, field: read, slot: U256::from(2) }
        );
        for (position, slot) in [(0, low), (2, high)] {
            assert_eq!(
                altered(|account| account.storage_reads.insert(position, slot)),
                Violation::WrittenAndRead { address, slot }
            );
        }
        assert_eq!(
            altered(|account| account.storage_changes[0].changes.clear()),
            Violation::EmptySlotChanges { address, slot: low }
        );
    }

    #[test]
    fn indices_ascend_strictly_and_end_with_the_block() {
        type Setter = fn(&mut AccountChanges, usize, u64);
        let lists: [(ChangeList, Setter); 4] = [
            (ChangeList::Slot(U256::from(1)), |account, position, at| {
                account.storage_changes[0].changes[position].block_access_index = index(at);
            }),
            (ChangeList::Balance, |account, position, at| {
                account.balance_changes[position].block_access_index = index(at);
            }),
            (ChangeList::Nonce, |account, position, at| {
                account.nonce_changes[position].block_access_index = index(at);
            }),
            (ChangeList::Code, |account, position, at| {
                account.code_changes[position].block_access_index = index(at);
            }),
        ];
        for (list, set) in lists {
            let pair = |first, second| {
                altered(|account| {
                    set(account, 0, first);
                    set(account, 1, second);
                })
            };
            let address = ONE;
            assert_eq!(pair(1, 1), Violation::DuplicateIndex { address, list, index: index(1) });
            assert_eq!(pair(2, 1), Violation::IndexOrder { address, list, index: index(1), previous: index(2) });
            assert_eq!(pair(0, 4), Violation::IndexTooHigh { address, list, got: index(4), expected: index(3) });
        }
        assert_eq!(BalLimits::new(u64::MAX, 0).max_index(), index(u64::MAX));
    }

    #[test]
    fn code_is_limited_by_the_fork() {
        let with_code = |size: usize| {
            let code_changes = vec![CodeChange::new(index(1), vec![0; size].into())];
            [AccountChanges { code_changes, ..AccountChanges::new(ONE) }]
        };
        assert_eq!(validate(&with_code(MAX_CODE_SIZE), &LIMITS), Ok(()));
        let too_large = |got, expected| Err(Violation::CodeTooLarge { address: ONE, index: index(1), got, expected });
        assert_eq!(validate(&with_code(MAX_CODE_SIZE + 1), &LIMITS), too_large(MAX_CODE_SIZE + 1, MAX_CODE_SIZE));
        let eip170 = LIMITS.with_max_code_size(24_576);
        assert_eq!(validate(&with_code(24_576), &eip170), Ok(()));
        assert_eq!(validate(&with_code(24_577), &eip170), too_large(24_577, 24_576));
        assert_eq!(validate(&with_code(MAX_CODE_SIZE + 1), &LIMITS.with_max_code_size(usize::MAX)), Ok(()));
    }

    #[test]
    fn items_are_limited_by_gas() {
        // One account and four slots each.
        let accounts = [account(1), account(2)];
        let at = |gas_limit| validate(&accounts, &BalLimits::new(2, gas_limit));
        assert_eq!(at(20_000), Ok(()));
        assert_eq!(at(21_999), Ok(()));
        assert_eq!(at(19_999), Err(Violation::TooManyItems { got: 10, expected: 9, gas_limit: 19_999 }));
        assert_eq!(at(9_999), Err(Violation::TooManyItems { got: 5, expected: 4, gas_limit: 9_999 }));
        assert_eq!(validate(&[], &BalLimits::new(0, 0)), Ok(()));
    }

    #[test]
    fn messages_name_account_field_and_bounds() {
        let violation = altered(|account| account.storage_changes[1].changes[0].block_access_index = index(9));
        assert_eq!(
            violation.to_string(),
            "account 0x0000000000000000000000000000000000000001, changes of slot 0x4: index 9 is beyond the block's last, 3"
        );
    }
}
