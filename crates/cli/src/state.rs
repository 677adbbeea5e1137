//! Whole states: a genesis becomes the content of a store, and a store's content is held to an expected state.
//!
//! Invariant: the comparison reads leaves and code, never the trie, so it shows what a reader of the state would see.

use std::{collections::BTreeMap, error::Error};

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256};
use foldgate_core::{
    AccountInfo, TrieReader,
    store::next_key,
    trie::bulk::{GenesisAccount, LoadItem, genesis_items},
};
use foldgate_testing::oracle::{HashedAccount, PlainState};

/// How many leaves are read at once.
const PAGE: usize = 512;

/// How a store's state differs from the expected one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateMismatch {
    /// An account's fields differ; `None` where there is no account.
    #[error("account {hashed_address} is {got:?}, expected {expected:?}")]
    Account {
        /// keccak256 of the address.
        hashed_address: B256,
        /// In the store.
        got: Option<AccountInfo>,
        /// As it should be.
        expected: Option<AccountInfo>,
    },
    /// A slot differs; zero where there is no slot.
    #[error("slot {hashed_slot} of account {hashed_address} is {got}, expected {expected}")]
    Slot {
        /// keccak256 of the address.
        hashed_address: B256,
        /// keccak256 of the slot.
        hashed_slot: B256,
        /// In the store.
        got: U256,
        /// As it should be.
        expected: U256,
    },
    /// The code of an account is not in the store.
    #[error("code {code_hash} of account {hashed_address} is missing")]
    CodeMissing {
        /// keccak256 of the address.
        hashed_address: B256,
        /// keccak256 of the code.
        code_hash: B256,
    },
    /// The state root differs.
    #[error("the state root is {got}, expected {expected}")]
    StateRoot {
        /// The store's.
        got: B256,
        /// As it should be.
        expected: B256,
    },
    /// The store failed.
    #[error("reading the store")]
    Read(#[source] Box<dyn Error + Send + Sync>),
}

/// Holds every account, slot and code that `reader` has to `expected`, and the other way round.
///
/// # Errors
/// The first difference in order of the hashed keys, or a failed read.
pub fn check_state<R: TrieReader>(reader: &R, expected: &PlainState) -> Result<(), StateMismatch> {
    let fault = |error: R::Error| StateMismatch::Read(Box::new(error));
    let mut expected = expected.hashed();
    let mut start = Some(B256::ZERO);
    while let Some(from) = start {
        let page = reader.accounts_from(&from, PAGE).map_err(fault)?;
        start = page.last().filter(|_| page.len() == PAGE).and_then(|(last, _)| next_key(last));
        for (hashed_address, account) in page {
            let wanted = expected.remove(&hashed_address);
            let (got, expected) = (Some(account.info()), wanted.as_ref().map(info));
            if got != expected {
                return Err(StateMismatch::Account { hashed_address, got, expected });
            }
            let storage = wanted.map(|account| account.storage).unwrap_or_default();
            check_storage(reader, hashed_address, storage)?;
            let code_hash = account.code_hash;
            let has_code = code_hash == KECCAK256_EMPTY || reader.code(&code_hash).map_err(fault)?.is_some();
            if !has_code {
                return Err(StateMismatch::CodeMissing { hashed_address, code_hash });
            }
        }
    }
    match expected.into_iter().next() {
        None => Ok(()),
        Some((hashed_address, account)) => {
            Err(StateMismatch::Account { hashed_address, got: None, expected: Some(info(&account)) })
        }
    }
}

fn check_storage<R: TrieReader>(
    reader: &R,
    hashed_address: B256,
    mut expected: BTreeMap<B256, U256>,
) -> Result<(), StateMismatch> {
    let mut start = Some(B256::ZERO);
    while let Some(from) = start {
        let page = reader.slots_from(&hashed_address, &from, PAGE);
        let page = page.map_err(|error| StateMismatch::Read(Box::new(error)))?;
        start = page.last().filter(|_| page.len() == PAGE).and_then(|(last, _)| next_key(last));
        for (hashed_slot, got) in page {
            let expected = expected.remove(&hashed_slot).unwrap_or_default();
            if got != expected {
                return Err(StateMismatch::Slot { hashed_address, hashed_slot, got, expected });
            }
        }
    }
    match expected.into_iter().next() {
        None => Ok(()),
        Some((hashed_slot, expected)) => {
            Err(StateMismatch::Slot { hashed_address, hashed_slot, got: U256::ZERO, expected })
        }
    }
}

const fn info(account: &HashedAccount) -> AccountInfo {
    AccountInfo { nonce: account.nonce, balance: account.balance, code_hash: account.code_hash }
}

/// The items that load the state of a geth-style genesis.
pub fn genesis_load_items(genesis: &alloy_genesis::Genesis) -> Vec<LoadItem> {
    let account = |entry: foldgate_evm::GenesisEntry| -> (Address, GenesisAccount) {
        let (nonce, balance, code): (u64, U256, Bytes) = (entry.nonce, entry.balance, entry.code);
        (entry.address, GenesisAccount { nonce, balance, code, storage: entry.storage.into_iter().collect() })
    };
    genesis_items(foldgate_evm::genesis_entries(genesis).map(account))
}
