//! Senders of a block's transactions, recovered in parallel ahead of execution: one recovery takes longer than most
//! transactions take to execute.
//!
//! Invariants:
//! 1. Senders stand in the order of the transactions.
//! 2. From Homestead on a signature with a high `s` has no sender (EIP-2).

use alloy_consensus::transaction::SignerRecoverable;
use alloy_evm::revm::primitives::Address;
use alloy_hardforks::EthereumHardforks;
use rayon::prelude::*;

use crate::{
    block::{Block, Transaction},
    chain_spec::ChainSpec,
};

/// A transaction's signature has no sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature of transaction {index} has no sender")]
pub struct SenderError {
    /// The position of the first such transaction in the block.
    pub index: usize,
}

/// Recovers the senders of all transactions of `block` on rayon's current thread pool.
///
/// # Errors
/// If a signature has no sender.
pub fn recover_senders(spec: &ChainSpec, block: &Block) -> Result<Vec<Address>, SenderError> {
    let homestead = spec.is_homestead_active_at_block(block.header.number);
    let recover = |transaction: &Transaction| match homestead {
        true => transaction.recover_signer().ok(),
        false => transaction.recover_signer_unchecked().ok(),
    };
    let recovered: Vec<_> = block.transactions.par_iter().map(recover).collect();
    recovered.into_iter().enumerate().map(|(index, sender)| sender.ok_or(SenderError { index })).collect()
}
