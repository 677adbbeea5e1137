//! What the suites share: a state in sorted maps behind the storage traits, and the import of one block onto it.
//!
//! Invariants:
//! 1. A [`MapState`] never changes: each block gives a new one, so siblings stand on the same parent.
//! 2. State roots come from the oracle, over all leaves.

#![allow(dead_code, reason = "each suite uses a part of it")]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use alloy_consensus::Header;
use alloy_hardforks::EthereumHardforks;
use alloy_primitives::{B256, Bytes, Sealed, U256, keccak256};
use foldgate_core::{
    Account, AccountInfo, BlockNumHash, EMPTY_ROOT_HASH, EmptyAccounts, HashedPostState, KeyHasher, LeafChanges,
    NodeKey, StateAnchor, StateReader, StateWrites, TrieReader, resolve,
};
use foldgate_evm::{Block, BlockInvalid, ChainSpec, ExecutedBlock, ExecutionError, process_block, recover_senders};
use foldgate_testing::oracle::{self, HashedAccount, PlainState};

/// Stands for the root of any storage that is not empty: [`resolve`] asks for no more.
const SOME_STORAGE: B256 = B256::repeat_byte(0x5a);

/// A state in sorted maps, shared by its clones.
#[derive(Debug, Clone)]
pub(crate) struct MapState(Arc<Maps>);

#[derive(Debug, Clone, Default)]
struct Maps {
    accounts: BTreeMap<B256, HashedAccount>,
    codes: BTreeMap<B256, Bytes>,
    block_hashes: BTreeMap<u64, B256>,
}

impl MapState {
    /// The state of a genesis.
    pub(crate) fn genesis(state: &PlainState, header: &Sealed<Header>) -> Self {
        let codes = state.accounts.values().map(|account| (keccak256(&account.code), account.code.clone()));
        let block_hashes = BTreeMap::from([(header.number, header.hash())]);
        Self(Arc::new(Maps { accounts: state.hashed(), codes: codes.collect(), block_hashes }))
    }

    /// All leaves.
    pub(crate) fn accounts(&self) -> &BTreeMap<B256, HashedAccount> {
        &self.0.accounts
    }

    /// The state root, by the oracle.
    pub(crate) fn state_root(&self) -> B256 {
        oracle::state_root(&self.0.accounts)
    }

    /// The state after `changes`, as the state of `block`.
    pub(crate) fn after(&self, changes: &LeafChanges, block: &Block) -> Self {
        let mut maps = Maps::clone(&self.0);
        for change in &changes.accounts {
            let Some(new) = change.new else {
                maps.accounts.remove(&change.hashed_address);
                continue;
            };
            let account = maps.accounts.entry(change.hashed_address).or_insert_with(|| HashedAccount {
                nonce: 0,
                balance: U256::ZERO,
                code_hash: B256::ZERO,
                storage: BTreeMap::new(),
            });
            (account.nonce, account.balance, account.code_hash) = (new.nonce, new.balance, new.code_hash);
            for slot in &change.slots {
                match slot.new.is_zero() {
                    true => account.storage.remove(&slot.hashed_slot),
                    false => account.storage.insert(slot.hashed_slot, slot.new),
                };
            }
        }
        maps.codes.extend(changes.codes.iter().cloned());
        maps.block_hashes.insert(block.header.number, block.hash);
        Self(Arc::new(maps))
    }
}

impl StateReader for MapState {
    type Error = Infallible;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, Infallible> {
        Ok(self.account(hashed_address)?.map(|account| account.info()))
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, Infallible> {
        let account = self.0.accounts.get(hashed_address);
        Ok(account.and_then(|account| account.storage.get(hashed_slot)).copied().unwrap_or_default())
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, Infallible> {
        Ok(self.0.codes.get(code_hash).cloned())
    }

    fn block_hash(&self, number: u64) -> Result<Option<B256>, Infallible> {
        Ok(self.0.block_hashes.get(&number).copied())
    }
}

impl TrieReader for MapState {
    fn anchor(&self) -> StateAnchor {
        let (number, hash) = self.0.block_hashes.last_key_value().expect("a state belongs to a block");
        StateAnchor { block: BlockNumHash::new(*number, *hash), state_root: self.state_root() }
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, Infallible> {
        Ok(self.0.accounts.get(hashed_address).map(|account| Account {
            nonce: account.nonce,
            balance: account.balance,
            storage_root: if account.storage.is_empty() { EMPTY_ROOT_HASH } else { SOME_STORAGE },
            code_hash: account.code_hash,
        }))
    }

    fn node(&self, _: &NodeKey) -> Result<Option<Bytes>, Infallible> {
        Ok(None)
    }

    fn accounts_from(&self, _: &B256, _: usize) -> Result<Vec<(B256, Account)>, Infallible> {
        unreachable!("resolving scans storage only")
    }

    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, Infallible> {
        let account = self.0.accounts.get(hashed_address);
        let slots = account.into_iter().flat_map(|account| account.storage.range(*start..));
        Ok(slots.take(limit).map(|(slot, value)| (*slot, *value)).collect())
    }
}

/// A block that was imported.
#[derive(Debug)]
pub(crate) struct Imported {
    /// What execution gave.
    pub(crate) executed: ExecutedBlock,
    /// The state after it.
    pub(crate) state: MapState,
    /// Its header.
    pub(crate) header: Sealed<Header>,
    /// How long validation and execution took.
    pub(crate) took: Duration,
    /// Whether the rebuilt list's final values were compared with the executed writes.
    pub(crate) compared: bool,
}

/// Why a block was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The block is invalid.
    Invalid(BlockInvalid),
    /// The state root is not the header's.
    StateRoot,
}

/// Imports `block` onto `parent`: validates, executes, checks the state root; where the rules are Cancun's or later, the
/// final values of the rebuilt list must lead to the same state as the executed writes.
pub(crate) fn import(
    spec: &ChainSpec,
    (parent, parent_state): (&Sealed<Header>, &MapState),
    block: &Block,
) -> Result<Imported, Refused> {
    let senders = recover_senders(spec, block).map_err(|error| Refused::Invalid(error.into()))?;
    let mut accumulated = HashedPostState::new(EmptyAccounts::Keep);
    let mut hasher = KeyHasher::default();
    let mut last_index = 0;
    let mut sink = |index: foldgate_core::BlockAccessIndex, writes: StateWrites| {
        assert!(last_index <= index.get() && index.get() <= senders.len() as u64 + 1, "indices ascend");
        assert!(!writes.accounts.is_empty() && writes.accounts.iter().all(|(_, writes)| !writes.is_empty()));
        last_index = index.get();
        accumulated.apply_writes(&writes, &mut hasher);
    };
    let start = Instant::now();
    let executed = process_block(spec, parent, block, &senders, parent_state.clone(), &mut sink, &|| false);
    let took = start.elapsed();
    let executed = match executed {
        Ok(executed) => executed,
        Err(ExecutionError::Invalid(reason)) => return Err(Refused::Invalid(reason)),
        Err(error) => panic!("an error of the machine: {error}"),
    };
    let Ok(changes) = resolve(&accumulated, parent_state);
    let state = parent_state.after(&changes, block);
    if state.state_root() != block.header.state_root {
        return Err(Refused::StateRoot);
    }
    let compared = spec.is_cancun_active_at_timestamp(block.header.timestamp);
    if compared {
        let mut listed = HashedPostState::new(EmptyAccounts::Remove);
        listed.apply_writes(&foldgate_bal::writes(&executed.rebuilt_bal, None), &mut hasher);
        let Ok(listed) = resolve(&listed, parent_state);
        assert_eq!(listed, changes, "the rebuilt list and the executed writes lead to different states");
    }
    Ok(Imported { executed, state, header: block.sealed_header(), took, compared })
}
