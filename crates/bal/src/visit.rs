//! One way through a list's bytes, item by item, for whoever collects or rebuilds what it holds.
//!
//! Invariant: a visitor is called in the order of the encoding: an account, its written slots, each with its changes and
//! its end, its reads, balances, nonces, codes, the account's end.

use alloy_eip7928::BlockAccessIndex;
use alloy_primitives::Address;

use crate::rlp::Uint;

/// Takes a list's items as they come. `'a` is the life of the list's bytes.
pub(crate) trait Visit<'a> {
    /// Why the visit ends early.
    type Error;

    fn account(&mut self, address: Address);
    fn written_slot(&mut self, slot: Uint<'a>);
    fn slot_change(&mut self, index: BlockAccessIndex, value: Uint<'a>);
    fn written_slot_end(&mut self);
    fn read_slot(&mut self, slot: Uint<'a>);
    fn balance_change(&mut self, index: BlockAccessIndex, balance: Uint<'a>);
    fn nonce_change(&mut self, index: BlockAccessIndex, nonce: u64);
    fn code_change(&mut self, index: BlockAccessIndex, code: &'a [u8]);

    /// The account is complete. An error ends the visit.
    fn account_end(&mut self) -> Result<(), Self::Error>;
}
