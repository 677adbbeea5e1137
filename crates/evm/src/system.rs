//! Rules about system contracts that the executor below does not enforce.
//!
//! Invariants:
//! 1. From Prague on a block is invalid if the contract of EIP-7002 or EIP-7251 has no code when its turn comes, and from
//!    Amsterdam on also if one of EIP-8282 has none.
//! 2. A log of the deposit contract with the deposit event's topic has exactly the layout that EIP-6110 demands.

use alloy_consensus::TxReceipt;
use alloy_eips::{
    eip6110::MAINNET_DEPOSIT_CONTRACT_ADDRESS, eip7002::WITHDRAWAL_REQUEST_PREDEPLOY_ADDRESS,
    eip7251::CONSOLIDATION_REQUEST_PREDEPLOY_ADDRESS,
};
use alloy_evm::{
    block::{BUILDER_DEPOSIT_REQUEST_PREDEPLOY_ADDRESS, BUILDER_EXIT_REQUEST_PREDEPLOY_ADDRESS},
    eth::spec::EthExecutorSpec,
    revm::Database,
};
use alloy_hardforks::{EthereumHardfork, EthereumHardforks};
use alloy_primitives::{Address, B256, KECCAK256_EMPTY, Log, U256, b256};

use crate::{chain_spec::ChainSpec, invalid::BlockInvalid};

/// keccak256 of `DepositEvent(bytes,bytes,bytes,bytes,bytes)`.
const DEPOSIT_EVENT: B256 = b256!("0x649bbc62d0e31342afea4e5cd82d4049e7e1ee912fc0889aa790803be39038c5");

/// The data of a deposit event: five offsets, then five byte strings with their lengths, padded to words.
const DEPOSIT_DATA_LENGTH: usize = 576;

/// `(offset of the string, its length)` for public key, withdrawal credentials, amount, signature and index.
const DEPOSIT_LAYOUT: [(u64, u64); 5] = [(160, 48), (256, 32), (320, 8), (384, 96), (512, 8)];

/// The contracts that are called after the transactions, with the fork that brings them.
const REQUEST_CONTRACTS: [(EthereumHardfork, Address); 4] = [
    (EthereumHardfork::Prague, WITHDRAWAL_REQUEST_PREDEPLOY_ADDRESS),
    (EthereumHardfork::Prague, CONSOLIDATION_REQUEST_PREDEPLOY_ADDRESS),
    (EthereumHardfork::Amsterdam, BUILDER_DEPOSIT_REQUEST_PREDEPLOY_ADDRESS),
    (EthereumHardfork::Amsterdam, BUILDER_EXIT_REQUEST_PREDEPLOY_ADDRESS),
];

/// Checks that the request contracts have code (invariant 1). Reads through `db`, which is no access in the sense of
/// EIP-7928: the calls that follow make the same ones.
///
/// # Errors
/// The outer error if a read fails; the inner one if the block is invalid.
pub(crate) fn check_request_contracts<DB: Database>(
    spec: &ChainSpec,
    timestamp: u64,
    db: &mut DB,
) -> Result<Result<(), BlockInvalid>, DB::Error> {
    let due = |fork| spec.ethereum_fork_activation(fork).active_at_timestamp(timestamp);
    for (_, address) in REQUEST_CONTRACTS.into_iter().filter(|(fork, _)| due(*fork)) {
        let code_hash = db.basic(address)?.map_or(KECCAK256_EMPTY, |info| info.code_hash);
        if code_hash == KECCAK256_EMPTY || code_hash.is_zero() {
            return Ok(Err(BlockInvalid::SystemContractEmpty { address }));
        }
    }
    Ok(Ok(()))
}

/// Checks the layout of all deposit events (invariant 2).
///
/// # Errors
/// If a deposit event has another layout.
pub(crate) fn check_deposits<R: TxReceipt<Log = Log>>(spec: &ChainSpec, receipts: &[R]) -> Result<(), BlockInvalid> {
    let contract: Address = spec.deposit_contract_address().unwrap_or(MAINNET_DEPOSIT_CONTRACT_ADDRESS);
    for (tx_index, receipt) in receipts.iter().enumerate() {
        let deposits = receipt
            .logs()
            .iter()
            .filter(|log| log.address == contract && log.data.topics().first() == Some(&DEPOSIT_EVENT));
        for log in deposits {
            if !has_deposit_layout(&log.data.data) {
                return Err(BlockInvalid::DepositEventLayout { tx_index });
            }
        }
    }
    Ok(())
}

fn has_deposit_layout(data: &[u8]) -> bool {
    if data.len() != DEPOSIT_DATA_LENGTH {
        return false;
    }
    let word = |at: usize| data.get(at..at + 32).map(U256::from_be_slice);
    DEPOSIT_LAYOUT.iter().enumerate().all(|(position, (offset, length))| {
        word(32 * position) == Some(U256::from(*offset)) && word(*offset as usize) == Some(U256::from(*length))
    })
}
