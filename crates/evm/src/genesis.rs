//! A go-ethereum style genesis: its header, and its accounts as plain entries.
//!
//! Invariants:
//! 1. The header has exactly the fields that the forks active at the genesis ask for, filled as go-ethereum's
//!    `Genesis.toBlock` fills them, so block 1's parent hash fits.
//! 2. Accounts that the genesis lists stay, also empty ones; slots of value zero are left out.

use alloy_consensus::{EMPTY_OMMER_ROOT_HASH, Header, constants::EMPTY_WITHDRAWALS};
use alloy_eip7928::EMPTY_BLOCK_ACCESS_LIST_HASH;
use alloy_eips::{eip1559::INITIAL_BASE_FEE, eip7685::EMPTY_REQUESTS_HASH};
use alloy_genesis::Genesis;
use alloy_hardforks::EthereumHardforks;
use alloy_primitives::{Address, B64, B256, Bytes, KECCAK256_EMPTY, Sealable, Sealed, U256, keccak256};
use alloy_trie::{EMPTY_ROOT_HASH, TrieAccount, root};

use crate::chain_spec::ChainSpec;

/// The gas limit of a genesis that gives none (go-ethereum's `GenesisGasLimit`).
const DEFAULT_GAS_LIMIT: u64 = 4_712_388;

/// One account of a genesis, in plain keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenesisEntry {
    /// The account.
    pub address: Address,
    /// Its nonce.
    pub nonce: u64,
    /// Its balance in wei.
    pub balance: U256,
    /// Its code; empty if it has none.
    pub code: Bytes,
    /// Slot to value, in order of the slots, no value zero.
    pub storage: Vec<(U256, U256)>,
}

/// The accounts of a genesis in order of their addresses.
pub fn genesis_entries(genesis: &Genesis) -> impl Iterator<Item = GenesisEntry> + '_ {
    genesis.alloc.iter().map(|(address, account)| {
        let slots = account.storage_slots().filter(|(_, value)| !value.is_zero());
        GenesisEntry {
            address: *address,
            nonce: account.nonce.unwrap_or_default(),
            balance: account.balance,
            code: account.code.clone().unwrap_or_default(),
            storage: slots.map(|(slot, value)| (slot.into(), value)).collect(),
        }
    })
}

/// The header of a genesis and its hash. The state root is computed from the accounts.
///
/// # Errors
/// If the genesis gives a base fee that no header can hold.
pub fn genesis_header(spec: &ChainSpec, genesis: &Genesis) -> Result<Sealed<Header>, GenesisError> {
    let accounts = genesis_entries(genesis).map(|entry| {
        let code_hash = if entry.code.is_empty() { KECCAK256_EMPTY } else { keccak256(&entry.code) };
        let slots = entry.storage.into_iter().map(|(slot, value)| (B256::from(slot), value));
        let storage_root = root::storage_root_unhashed(slots);
        (entry.address, TrieAccount { nonce: entry.nonce, balance: entry.balance, storage_root, code_hash })
    });
    let state_root = root::state_root_unhashed(accounts);
    genesis_header_with_state_root(spec, genesis, state_root)
}

/// The header of a genesis whose state root the caller has computed.
///
/// # Errors
/// If the genesis gives a base fee that no header can hold.
pub fn genesis_header_with_state_root(
    spec: &ChainSpec,
    genesis: &Genesis,
    state_root: B256,
) -> Result<Sealed<Header>, GenesisError> {
    let (number, time) = (genesis.number.unwrap_or_default(), genesis.timestamp);
    let base_fee = match genesis.base_fee_per_gas {
        Some(got) => u64::try_from(got).map_err(|_| GenesisError::BaseFee { got })?,
        None => INITIAL_BASE_FEE,
    };
    let cancun = spec.is_cancun_active_at_timestamp(time);
    let header = Header {
        parent_hash: genesis.parent_hash.unwrap_or_default(),
        ommers_hash: EMPTY_OMMER_ROOT_HASH,
        beneficiary: genesis.coinbase,
        state_root,
        transactions_root: EMPTY_ROOT_HASH,
        receipts_root: EMPTY_ROOT_HASH,
        difficulty: genesis.difficulty,
        number,
        gas_limit: if genesis.gas_limit == 0 { DEFAULT_GAS_LIMIT } else { genesis.gas_limit },
        timestamp: time,
        extra_data: genesis.extra_data.clone(),
        mix_hash: genesis.mix_hash,
        nonce: B64::from(genesis.nonce),
        base_fee_per_gas: spec.is_london_active_at_block(number).then_some(base_fee),
        withdrawals_root: spec.is_shanghai_active_at_timestamp(time).then_some(EMPTY_WITHDRAWALS),
        blob_gas_used: cancun.then(|| genesis.blob_gas_used.unwrap_or_default()),
        excess_blob_gas: cancun.then(|| genesis.excess_blob_gas.unwrap_or_default()),
        parent_beacon_block_root: cancun.then_some(B256::ZERO),
        requests_hash: spec.is_prague_active_at_timestamp(time).then_some(EMPTY_REQUESTS_HASH),
        block_access_list_hash: spec.commits_to_bal(time).then_some(EMPTY_BLOCK_ACCESS_LIST_HASH),
        slot_number: spec.has_slot_number(time).then(|| genesis.slot_number.unwrap_or_default()),
        ..Header::default()
    };
    Ok(header.seal_slow())
}

/// Why a genesis has no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GenesisError {
    /// The base fee does not fit a header.
    #[error("base fee {got} of the genesis exceeds 64 bits")]
    BaseFee {
        /// The base fee given, in wei.
        got: u128,
    },
}
