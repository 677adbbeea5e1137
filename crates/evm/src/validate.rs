//! What a block must fulfil: against its parent's header before execution, against its own header after it.
//!
//! Not checked: the seal and the difficulty of proof-of-work blocks, and whether their ommers are kin (their hash, number
//! and heights are). The state root is not checked here: computing it is what the rest of this project does.
//!
//! Invariants:
//! 1. Everything that can be told without execution is told before it: a block that passed [`validate_block`] cannot
//!    make the executor compute with absurd fees.
//! 2. Checks go from cheap to dear.

use alloy_consensus::{Header, Transaction as _, proofs};
use alloy_eip7928::ITEM_COST;
use alloy_eips::{
    eip1559::{BaseFeeParams, INITIAL_BASE_FEE},
    eip4895::Withdrawal,
};
use alloy_hardforks::EthereumHardforks;
use alloy_primitives::{Sealed, keccak256};

use crate::{block::Block, chain_spec::ChainSpec, execute::ExecutedBlock, invalid::BlockInvalid};

/// The longest extra data in bytes (yellow paper 4.3.4).
const MAX_EXTRA_DATA: usize = 32;
/// The lowest gas limit (yellow paper 4.3.4).
const MIN_GAS_LIMIT: u64 = 5000;
/// The highest gas limit (EIP-1985).
const MAX_GAS_LIMIT: u64 = i64::MAX as u64;
/// A gas limit differs from its parent's by less than the parent's divided by this (yellow paper 4.3.4).
const GAS_LIMIT_BOUND_DIVISOR: u64 = 1024;
/// The longest block in bytes of RLP from Osaka on (EIP-7934: 10 MiB less a margin of 2 MiB).
const MAX_RLP_LENGTH: usize = (10 - 2) << 20;
/// The most ommers of a proof-of-work block (yellow paper 11.1).
const MAX_OMMERS: usize = 2;
/// How many blocks an ommer may lie below the block (yellow paper 11.1).
const MAX_OMMER_DEPTH: u64 = 6;

/// Checks everything that needs no execution: the header against its parent, and the body against the header.
///
/// # Errors
/// The first rule that the block breaks.
pub fn validate_block(spec: &ChainSpec, parent: &Sealed<Header>, block: &Block) -> Result<(), BlockInvalid> {
    let header = &block.header;
    validate_lineage(parent, header)?;
    validate_fields(spec, header)?;
    validate_consensus_fields(spec, header)?;
    validate_gas(spec, parent, header)?;
    validate_blob_gas(spec, parent, header)?;
    validate_body(spec, block)
}

/// Checks that the body is the one that the header commits to: transactions, ommers and withdrawals by their roots.
///
/// To be asked before a block is begun. A block is named by its header's hash, so a body that is not the header's says
/// nothing about the block of that name, and must not become a verdict on it. [`validate_block`] asks it too.
///
/// # Errors
/// The first root that differs, or a list of withdrawals that is missing or in excess.
pub fn validate_body_roots(block: &Block) -> Result<(), BlockInvalid> {
    let header = &block.header;
    let got = proofs::calculate_ommers_root(&block.ommers);
    if got != header.ommers_hash {
        return Err(BlockInvalid::OmmersHash { got, expected: header.ommers_hash });
    }
    validate_withdrawals(header, block.withdrawals.as_deref())?;
    let got = proofs::calculate_transaction_root(&block.transactions);
    if got != header.transactions_root {
        return Err(BlockInvalid::TransactionsRoot { got, expected: header.transactions_root });
    }
    Ok(())
}

/// Checks what execution gave against the header: gas, receipts, logs, requests, and the access list where the header
/// commits to one. The receipts root of blocks before Byzantium is not checked (see [`crate::execute::Counters`]).
///
/// # Errors
/// The first rule that the block breaks.
pub fn validate_execution(spec: &ChainSpec, block: &Block, executed: &ExecutedBlock) -> Result<(), BlockInvalid> {
    let header = &block.header;
    if executed.gas_used != header.gas_used {
        return Err(BlockInvalid::GasUsed { got: executed.gas_used, expected: header.gas_used });
    }
    if executed.logs_bloom != header.logs_bloom {
        let (got, expected) = (keccak256(executed.logs_bloom), keccak256(header.logs_bloom));
        return Err(BlockInvalid::LogsBloom { got, expected });
    }
    if let Some(got) = executed.receipts_root.filter(|root| *root != header.receipts_root) {
        return Err(BlockInvalid::ReceiptsRoot { got, expected: header.receipts_root });
    }
    if let Some(expected) = header.requests_hash {
        let got = executed.requests.requests_hash();
        if got != expected {
            return Err(BlockInvalid::RequestsHash { got, expected });
        }
    }
    if spec.commits_to_bal(header.timestamp) {
        let (got, limit) = (executed.rebuilt_bal.total_bal_items(), header.gas_limit / ITEM_COST as u64);
        if got > limit {
            return Err(BlockInvalid::BalItems { got, limit });
        }
    }
    match header.block_access_list_hash {
        Some(expected) if expected != executed.rebuilt_bal_hash => {
            Err(BlockInvalid::BalHash { got: executed.rebuilt_bal_hash, expected })
        }
        _ => Ok(()),
    }
}

fn validate_lineage(parent: &Sealed<Header>, header: &Header) -> Result<(), BlockInvalid> {
    if header.parent_hash != parent.hash() {
        return Err(BlockInvalid::ParentHash { got: header.parent_hash, expected: parent.hash() });
    }
    let expected = parent.number.checked_add(1).ok_or(BlockInvalid::FieldOverflow { field: "number" })?;
    if header.number != expected {
        return Err(BlockInvalid::Number { got: header.number, expected });
    }
    if header.timestamp <= parent.timestamp {
        return Err(BlockInvalid::Timestamp { got: header.timestamp, parent: parent.timestamp });
    }
    if header.extra_data.len() > MAX_EXTRA_DATA {
        return Err(BlockInvalid::ExtraData { got: header.extra_data.len(), limit: MAX_EXTRA_DATA });
    }
    Ok(())
}

/// Each fork's fields are there from the fork on, and not before.
fn validate_fields(spec: &ChainSpec, header: &Header) -> Result<(), BlockInvalid> {
    let (number, time) = (header.number, header.timestamp);
    let shanghai = spec.is_shanghai_active_at_timestamp(time);
    let cancun = spec.is_cancun_active_at_timestamp(time);
    let fields = [
        ("base_fee_per_gas", header.base_fee_per_gas.is_some(), spec.is_london_active_at_block(number)),
        ("withdrawals_root", header.withdrawals_root.is_some(), shanghai),
        ("blob_gas_used", header.blob_gas_used.is_some(), cancun),
        ("excess_blob_gas", header.excess_blob_gas.is_some(), cancun),
        ("parent_beacon_block_root", header.parent_beacon_block_root.is_some(), cancun),
        ("requests_hash", header.requests_hash.is_some(), spec.is_prague_active_at_timestamp(time)),
        ("block_access_list_hash", header.block_access_list_hash.is_some(), spec.commits_to_bal(time)),
        ("slot_number", header.slot_number.is_some(), spec.has_slot_number(time)),
    ];
    for (field, given, due) in fields {
        match (given, due) {
            (false, true) => return Err(BlockInvalid::FieldMissing { field }),
            (true, false) => return Err(BlockInvalid::FieldUnexpected { field }),
            _ => {}
        }
    }
    Ok(())
}

/// The fields that proof of stake has no use for (EIP-3675).
fn validate_consensus_fields(spec: &ChainSpec, header: &Header) -> Result<(), BlockInvalid> {
    if !spec.is_paris_active_at_block(header.number) {
        return Ok(());
    }
    if !header.difficulty.is_zero() {
        return Err(BlockInvalid::Difficulty { got: header.difficulty });
    }
    match u64::from_be_bytes(header.nonce.0) {
        0 => Ok(()),
        got => Err(BlockInvalid::Nonce { got }),
    }
}

fn validate_gas(spec: &ChainSpec, parent: &Header, header: &Header) -> Result<(), BlockInvalid> {
    let (got, limit) = (header.gas_used, header.gas_limit);
    if got > limit {
        return Err(BlockInvalid::GasUsedAboveLimit { got, limit });
    }
    let london = spec.is_london_active_at_block(header.number);
    let london_begins = london && !spec.is_london_active_at_block(parent.number);
    let elasticity = if london_begins { BaseFeeParams::ethereum().elasticity_multiplier as u64 } else { 1 };
    let parent_limit = parent.gas_limit.saturating_mul(elasticity);
    let difference = limit.abs_diff(parent_limit);
    if difference >= parent_limit / GAS_LIMIT_BOUND_DIVISOR || !(MIN_GAS_LIMIT..=MAX_GAS_LIMIT).contains(&limit) {
        return Err(BlockInvalid::GasLimit { got: limit, parent: parent_limit });
    }
    let Some(got) = header.base_fee_per_gas.filter(|_| london) else { return Ok(()) };
    let expected = match parent.base_fee_per_gas {
        Some(fee) if !london_begins => {
            // The fee grows by an eighth at most, and by one at least.
            fee.checked_add(fee / 8 + 1).ok_or(BlockInvalid::FieldOverflow { field: "base_fee_per_gas" })?;
            parent.next_block_base_fee(BaseFeeParams::ethereum()).unwrap_or(INITIAL_BASE_FEE)
        }
        _ => INITIAL_BASE_FEE,
    };
    if got != expected {
        return Err(BlockInvalid::BaseFee { got, expected });
    }
    Ok(())
}

fn validate_blob_gas(spec: &ChainSpec, parent: &Header, header: &Header) -> Result<(), BlockInvalid> {
    let (Some(params), Some(used), Some(got)) =
        (spec.blob_params_at(header.timestamp), header.blob_gas_used, header.excess_blob_gas)
    else {
        return Ok(());
    };
    let limit = params.max_blob_gas_per_block();
    if used > limit {
        return Err(BlockInvalid::BlobGasAboveLimit { got: used, limit });
    }
    // The parent of Cancun's first block has neither field: both count as zero.
    let excess = parent.excess_blob_gas.unwrap_or_default();
    let parent_used = parent.blob_gas_used.unwrap_or_default();
    let overflow = BlockInvalid::FieldOverflow { field: "excess_blob_gas" };
    excess.checked_add(parent_used).ok_or_else(|| overflow.clone())?;
    parent_used.checked_mul(params.max_blob_count).ok_or(overflow)?;
    let base_fee = parent.base_fee_per_gas.unwrap_or_default();
    let expected = params.next_block_excess_blob_gas_osaka(excess, parent_used, base_fee);
    if got != expected {
        return Err(BlockInvalid::ExcessBlobGas { got, expected });
    }
    Ok(())
}

fn validate_body(spec: &ChainSpec, block: &Block) -> Result<(), BlockInvalid> {
    let header = &block.header;
    if spec.is_osaka_active_at_timestamp(header.timestamp) && block.rlp_length > MAX_RLP_LENGTH {
        return Err(BlockInvalid::RlpLength { got: block.rlp_length, limit: MAX_RLP_LENGTH });
    }
    validate_ommers(spec, block)?;
    if !spec.is_spurious_dragon_active_at_block(header.number) {
        let protected = block.transactions.iter().position(|transaction| transaction.chain_id().is_some());
        protected.map_or(Ok(()), |index| Err(BlockInvalid::ReplayProtection { index }))?;
    }
    if let Some(expected) = header.blob_gas_used {
        let used = block.transactions.iter().filter_map(|transaction| transaction.blob_gas_used());
        let got = used.fold(0u64, u64::saturating_add);
        if got != expected {
            return Err(BlockInvalid::BlobGasUsed { got, expected });
        }
    }
    validate_body_roots(block)
}

fn validate_ommers(spec: &ChainSpec, block: &Block) -> Result<(), BlockInvalid> {
    let header = &block.header;
    let limit = if spec.is_paris_active_at_block(header.number) { 0 } else { MAX_OMMERS };
    if block.ommers.len() > limit {
        return Err(BlockInvalid::OmmerCount { got: block.ommers.len(), limit });
    }
    for ommer in &block.ommers {
        let depth = header.number.checked_sub(ommer.number);
        if !depth.is_some_and(|depth| (1..=MAX_OMMER_DEPTH).contains(&depth)) {
            return Err(BlockInvalid::OmmerNumber { got: ommer.number, block: header.number });
        }
    }
    Ok(())
}

fn validate_withdrawals(header: &Header, withdrawals: Option<&[Withdrawal]>) -> Result<(), BlockInvalid> {
    match (withdrawals, header.withdrawals_root) {
        (None, None) => Ok(()),
        (None, Some(_)) => Err(BlockInvalid::FieldMissing { field: "list of withdrawals" }),
        (Some(_), None) => Err(BlockInvalid::FieldUnexpected { field: "list of withdrawals" }),
        (Some(withdrawals), Some(expected)) => match proofs::calculate_withdrawals_root(withdrawals) {
            got if got == expected => Ok(()),
            got => Err(BlockInvalid::WithdrawalsRoot { got, expected }),
        },
    }
}
