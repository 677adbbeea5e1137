//! One way through a list, item by item, for whoever judges, collects or rebuilds it.
//!
//! Invariant: a visitor is called in the order of the encoding: an account, its written slots, each with its changes and
//! its end, its reads, balances, nonces, codes, the account's end.

use alloy_eip7928::{AccountChanges, BlockAccessIndex};
use alloy_primitives::{Address, U256};

/// Takes a list's items as they come. `'a` is the life of the codes' bytes.
pub(crate) trait Visit<'a> {
    /// Why the visit ends early.
    type Error;

    fn account(&mut self, address: Address);
    fn written_slot(&mut self, slot: U256);
    fn slot_change(&mut self, index: BlockAccessIndex, value: U256);
    fn written_slot_end(&mut self);
    fn read_slot(&mut self, slot: U256);
    fn balance_change(&mut self, index: BlockAccessIndex, balance: U256);
    fn nonce_change(&mut self, index: BlockAccessIndex, nonce: u64);
    fn code_change(&mut self, index: BlockAccessIndex, code: &'a [u8]);

    /// The account is complete. An error ends the visit.
    fn account_end(&mut self) -> Result<(), Self::Error>;
}

/// Takes a visitor through a decoded list.
pub(crate) fn visit<'a, V: Visit<'a>>(accounts: &'a [AccountChanges], visitor: &mut V) -> Result<(), V::Error> {
    for account in accounts {
        visitor.account(account.address);
        for slot in &account.storage_changes {
            visitor.written_slot(slot.slot);
            slot.changes.iter().for_each(|change| visitor.slot_change(change.block_access_index, change.new_value));
            visitor.written_slot_end();
        }
        account.storage_reads.iter().for_each(|slot| visitor.read_slot(*slot));
        for change in &account.balance_changes {
            visitor.balance_change(change.block_access_index, change.post_balance);
        }
        account
            .nonce_changes
            .iter()
            .for_each(|change| visitor.nonce_change(change.block_access_index, change.new_nonce));
        account.code_changes.iter().for_each(|change| visitor.code_change(change.block_access_index, &change.new_code));
        visitor.account_end()?;
    }
    Ok(())
}
