//! Other implementations, in memory and on one thread.
//!
//! What is the same for both tries: a state is the trie of accounts and one trie for each contract; a block's changes are
//! merged with the accounts that the trie holds, contract by contract, and the account trie's root comes last.
//!
//! Invariants:
//! 1. No peer hashes with code of this workspace.
//! 2. What a peer keeps of a trie from block to block is its own choice; a cold block finds nothing but its database.

mod eth_trie;
mod ethrex;
mod hash_builder;

use std::collections::BTreeMap;

use alloy_primitives::{B256, KECCAK256_EMPTY, U256};
use alloy_rlp::{Decodable, RlpDecodable, RlpEncodable};
use alloy_trie::EMPTY_ROOT_HASH;
use foldgate_core::{AccountDelta, trie::bulk::LoadItem};

use self::{eth_trie::EthTries, ethrex::EthrexTries, hash_builder::FullRebuild};
use crate::{
    contender::{Advanced, AnyError, BenchError, Contender},
    harness::Lineup,
    measure::timed,
    workload::{Block, Scenario},
};

/// Lets all of them take part.
pub(crate) fn enter(lineup: &mut Lineup, scenario: &Scenario) -> Result<(), BenchError> {
    lineup.enter(|| Ok(FullRebuild::new(scenario)))?;
    lineup.enter(|| Tries::<EthTries>::load(scenario))?;
    lineup.enter(|| Tries::<EthrexTries>::load(scenario))
}

/// What an account's leaf holds (yellow paper, 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, RlpEncodable, RlpDecodable)]
struct AccountLeaf {
    nonce: u64,
    balance: U256,
    storage_root: B256,
    code_hash: B256,
}

impl AccountLeaf {
    const EMPTY: Self =
        Self { nonce: 0, balance: U256::ZERO, storage_root: EMPTY_ROOT_HASH, code_hash: KECCAK256_EMPTY };

    fn merge(&mut self, delta: &AccountDelta) {
        self.nonce = delta.nonce.unwrap_or(self.nonce);
        self.balance = delta.balance.unwrap_or(self.balance);
        self.code_hash = delta.code_hash.unwrap_or(self.code_hash);
    }

    /// EIP-161.
    fn is_empty(&self) -> bool {
        self.nonce == 0 && self.balance.is_zero() && self.code_hash == KECCAK256_EMPTY
    }
}

/// A library's trie of 32-byte keys.
trait PeerTrie: Sized {
    const NAME: &'static str;

    fn empty() -> Self;
    fn get(&self, key: &B256) -> Result<Option<Vec<u8>>, AnyError>;
    fn insert(&mut self, key: &B256, value: Vec<u8>) -> Result<(), AnyError>;
    fn remove(&mut self, key: &B256) -> Result<(), AnyError>;
    fn root(&mut self) -> Result<B256, AnyError>;
    /// Opens it anew on its database.
    fn reopen(&mut self) -> Result<(), AnyError>;
}

/// A state in such tries.
struct Tries<T> {
    accounts: T,
    contracts: BTreeMap<B256, T>,
}

impl<T: PeerTrie> Tries<T> {
    fn load(scenario: &Scenario) -> Result<Self, BenchError> {
        let loaded = Self::load_items(scenario);
        loaded.map_err(|source| BenchError::Contender { name: T::NAME, backend: "memory", block: 0, source })
    }

    fn load_items(scenario: &Scenario) -> Result<Self, AnyError> {
        let mut tries = Self { accounts: T::empty(), contracts: BTreeMap::new() };
        let mut last = None;
        for item in scenario.items() {
            match item {
                LoadItem::Account { hashed_address, info } => {
                    tries.put(last.take())?;
                    let storage_root = EMPTY_ROOT_HASH;
                    let (nonce, balance, code_hash) = (info.nonce, info.balance, info.code_hash);
                    last = Some((hashed_address, AccountLeaf { nonce, balance, storage_root, code_hash }));
                }
                LoadItem::Slot { hashed_slot, value } => {
                    if let Some((hashed_address, _)) = &last {
                        let trie = tries.contracts.entry(*hashed_address).or_insert_with(T::empty);
                        trie.insert(&hashed_slot, alloy_rlp::encode(value))?;
                    }
                }
                _ => {}
            }
        }
        tries.put(last)?;
        tries.accounts.root()?;
        Ok(tries)
    }

    fn put(&mut self, account: Option<(B256, AccountLeaf)>) -> Result<(), AnyError> {
        let Some((key, mut leaf)) = account else { return Ok(()) };
        if let Some(trie) = self.contracts.get_mut(&key) {
            leaf.storage_root = trie.root()?;
        }
        self.accounts.insert(&key, alloy_rlp::encode(leaf))
    }

    fn apply(&mut self, block: &Block) -> Result<B256, AnyError> {
        for (key, delta) in &block.state.accounts {
            let old = self.accounts.get(key)?;
            let old = old.map(|value| AccountLeaf::decode(&mut value.as_slice())).transpose()?;
            let mut leaf = old.unwrap_or(AccountLeaf::EMPTY);
            leaf.merge(delta);
            if !delta.storage.is_empty() {
                let trie = self.contracts.entry(*key).or_insert_with(T::empty);
                for (slot, value) in &delta.storage {
                    match value.is_zero() {
                        true => trie.remove(slot)?,
                        false => trie.insert(slot, alloy_rlp::encode(value))?,
                    }
                }
                leaf.storage_root = trie.root()?;
            }
            match leaf.is_empty() {
                true => self.accounts.remove(key)?,
                false => self.accounts.insert(key, alloy_rlp::encode(leaf))?,
            }
        }
        self.accounts.root()
    }
}

impl<T: PeerTrie> Contender for Tries<T> {
    fn name(&self) -> &'static str {
        T::NAME
    }

    fn backend(&self) -> &'static str {
        "memory"
    }

    fn threads(&self) -> usize {
        1
    }

    fn warm_up(&mut self, block: &Block) -> Result<(), AnyError> {
        for (key, delta) in &block.state.accounts {
            self.accounts.get(key)?;
            if let Some(trie) = self.contracts.get(key) {
                delta.storage.keys().try_for_each(|slot| trie.get(slot).map(drop))?;
            }
        }
        Ok(())
    }

    fn advance(&mut self, block: &Block) -> Result<Advanced, AnyError> {
        let (state_root, cost) = timed(|| self.apply(block));
        Ok(Advanced { state_root: state_root?, cost })
    }

    fn drop_caches(&mut self) -> Result<bool, AnyError> {
        self.accounts.reopen()?;
        self.contracts.values_mut().try_for_each(T::reopen)?;
        Ok(true)
    }
}
