//! Why a block is invalid.
//!
//! Invariants:
//! 1. Every reason is a property of the block, its parent's header and the parent's state: validating it again gives a
//!    reason again.
//! 2. Where two values differ both are told, as `got` (what the block says or does) and `expected` (what the rules say).

use alloy_evm::revm::context_interface::result::InvalidTransaction;
use alloy_primitives::{Address, B256, U256};

use crate::senders::SenderError;

/// Why a block is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockInvalid {
    /// The block does not stand on this parent.
    #[error("parent hash is {got}, expected {expected}")]
    ParentHash {
        /// In the header.
        got: B256,
        /// The parent's hash.
        expected: B256,
    },
    /// The number is not the parent's plus one.
    #[error("number is {got}, expected {expected}")]
    Number {
        /// In the header.
        got: u64,
        /// The parent's plus one.
        expected: u64,
    },
    /// The timestamp does not exceed the parent's.
    #[error("timestamp {got} does not exceed the parent's {parent}")]
    Timestamp {
        /// In the header, in seconds.
        got: u64,
        /// The parent's, in seconds.
        parent: u64,
    },
    /// The gas limit is too far from the parent's (by 1/1024 or more), below 5000, or above 2^63 - 1.
    #[error("gas limit {got} is out of bounds beside the parent's {parent}")]
    GasLimit {
        /// In the header.
        got: u64,
        /// The parent's, doubled where London begins (EIP-1559).
        parent: u64,
    },
    /// More gas used than the limit allows, by the header's own word.
    #[error("header's gas used {got} exceeds its gas limit {limit}")]
    GasUsedAboveLimit {
        /// Gas used, in the header.
        got: u64,
        /// Gas limit, in the header.
        limit: u64,
    },
    /// The extra data is longer than 32 bytes.
    #[error("extra data has {got} bytes, at most {limit} are allowed")]
    ExtraData {
        /// Its length in bytes.
        got: usize,
        /// The highest length allowed.
        limit: usize,
    },
    /// A field of a fork is missing.
    #[error("{field} is missing")]
    FieldMissing {
        /// The field.
        field: &'static str,
    },
    /// A field of a fork that is not active.
    #[error("{field} is given, though its fork is not active")]
    FieldUnexpected {
        /// The field.
        field: &'static str,
    },
    /// The base fee does not follow from the parent (EIP-1559).
    #[error("base fee is {got}, expected {expected}")]
    BaseFee {
        /// In the header, in wei.
        got: u64,
        /// What follows from the parent, in wei.
        expected: u64,
    },
    /// What follows from the parent's header does not fit 64 bits.
    #[error("{field} that follows from the parent does not fit 64 bits")]
    FieldOverflow {
        /// The field.
        field: &'static str,
    },
    /// The difficulty is not zero after the merge (EIP-3675).
    #[error("difficulty is {got}, expected zero after the merge")]
    Difficulty {
        /// In the header.
        got: U256,
    },
    /// The nonce is not zero after the merge (EIP-3675).
    #[error("nonce is {got:#x}, expected zero after the merge")]
    Nonce {
        /// In the header.
        got: u64,
    },
    /// More ommers than allowed: two before the merge, none after it.
    #[error("{got} ommers, at most {limit} are allowed")]
    OmmerCount {
        /// How many.
        got: usize,
        /// The highest count allowed.
        limit: usize,
    },
    /// An ommer is not one to six blocks below the block.
    #[error("ommer at height {got} in block {block}")]
    OmmerNumber {
        /// The ommer's number.
        got: u64,
        /// The block's number.
        block: u64,
    },
    /// The hash of the ommers differs.
    #[error("ommers hash is {got}, expected {expected}")]
    OmmersHash {
        /// Computed from the body.
        got: B256,
        /// In the header.
        expected: B256,
    },
    /// The root of the transactions differs.
    #[error("transactions root is {got}, expected {expected}")]
    TransactionsRoot {
        /// Computed from the body.
        got: B256,
        /// In the header.
        expected: B256,
    },
    /// The root of the withdrawals differs.
    #[error("withdrawals root is {got}, expected {expected}")]
    WithdrawalsRoot {
        /// Computed from the body.
        got: B256,
        /// In the header.
        expected: B256,
    },
    /// The block's RLP is too long (EIP-7934).
    #[error("block of {got} bytes, at most {limit} are allowed")]
    RlpLength {
        /// In bytes.
        got: usize,
        /// The highest length allowed.
        limit: usize,
    },
    /// The blob gas of the transactions differs from the header's (EIP-4844).
    #[error("blob gas used is {got}, expected {expected}")]
    BlobGasUsed {
        /// Summed over the transactions.
        got: u64,
        /// In the header.
        expected: u64,
    },
    /// More blob gas than a block may use (EIP-4844).
    #[error("blob gas used {got} exceeds the limit {limit}")]
    BlobGasAboveLimit {
        /// In the header.
        got: u64,
        /// The limit in force.
        limit: u64,
    },
    /// The excess blob gas does not follow from the parent (EIP-4844, EIP-7918).
    #[error("excess blob gas is {got}, expected {expected}")]
    ExcessBlobGas {
        /// In the header.
        got: u64,
        /// What follows from the parent.
        expected: u64,
    },
    /// A signature has no sender.
    #[error(transparent)]
    Sender(#[from] SenderError),
    /// A transaction cannot be executed at its place in the block.
    #[error("transaction {index} is invalid: {reason}")]
    Transaction {
        /// Its position in the block.
        index: usize,
        /// Why.
        reason: InvalidTransaction,
    },
    /// A transaction's gas limit exceeds what is left of the block's.
    #[error("transaction {index} has gas limit {got}, {available} is left in the block")]
    TransactionGas {
        /// Its position in the block.
        index: usize,
        /// Its gas limit.
        got: u64,
        /// What is left.
        available: u64,
    },
    /// A transaction carries a chain id before EIP-155.
    #[error("transaction {index} carries a chain id before EIP-155")]
    ReplayProtection {
        /// Its position in the block.
        index: usize,
    },
    /// A contract that hands out requests has no code (EIP-7002, EIP-7251).
    #[error("system contract {address} has no code")]
    SystemContractEmpty {
        /// The contract.
        address: Address,
    },
    /// A call of a system contract that must succeed failed (EIP-7002, EIP-7251, EIP-8282).
    #[error("the call of the {contract} contract failed: {reason}")]
    SystemCallFailed {
        /// Which contract.
        contract: &'static str,
        /// What the EVM says.
        reason: String,
    },
    /// A deposit event has another layout than EIP-6110 demands.
    #[error("transaction {tx_index} logs a deposit of another layout than that of EIP-6110")]
    DepositEventLayout {
        /// The transaction's position in the block.
        tx_index: usize,
    },
    /// The gas used differs.
    #[error("gas used is {got}, expected {expected}")]
    GasUsed {
        /// By execution.
        got: u64,
        /// In the header.
        expected: u64,
    },
    /// The root of the receipts differs.
    #[error("receipts root is {got}, expected {expected}")]
    ReceiptsRoot {
        /// Computed from execution.
        got: B256,
        /// In the header.
        expected: B256,
    },
    /// The bloom filter of the logs differs; told by the hashes of the filters.
    #[error("logs bloom hashes to {got}, expected {expected}")]
    LogsBloom {
        /// keccak256 of the filter from execution.
        got: B256,
        /// keccak256 of the filter in the header.
        expected: B256,
    },
    /// The hash of the requests differs (EIP-7685).
    #[error("requests hash is {got}, expected {expected}")]
    RequestsHash {
        /// Computed from execution.
        got: B256,
        /// In the header.
        expected: B256,
    },
    /// The block accesses more items than its gas limit allows (EIP-7928).
    #[error("the access list has {got} items, at most {limit} are allowed")]
    BalItems {
        /// Addresses and slots in the rebuilt list.
        got: u64,
        /// `gas_limit / 2000`.
        limit: u64,
    },
    /// The access list rebuilt by execution is not the one that the header commits to (EIP-7928).
    #[error("access list hash is {got}, expected {expected}")]
    BalHash {
        /// The rebuilt list's.
        got: B256,
        /// In the header.
        expected: B256,
    },
}
