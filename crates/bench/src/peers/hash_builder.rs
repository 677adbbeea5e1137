//! alloy-trie's `HashBuilder`: the account trie, and the storage tries of the contracts that a block changes, are built
//! anew from all of their leaves, which are kept in order.

use std::collections::BTreeMap;

use alloy_primitives::{B256, U256};
use alloy_trie::EMPTY_ROOT_HASH;
use foldgate_core::trie::bulk::LoadItem;

use super::AccountLeaf;
use crate::{
    contender::{Advanced, AnyError, Contender},
    ledger::root,
    measure::timed,
    workload::{Block, Scenario},
};

/// See the module's description.
pub(super) struct FullRebuild {
    accounts: BTreeMap<B256, AccountLeaf>,
    contracts: BTreeMap<B256, BTreeMap<B256, U256>>,
    /// Contracts that blocks changed whose roots nobody asked for.
    stale: Vec<B256>,
}

impl FullRebuild {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let (mut accounts, mut contracts) = (BTreeMap::new(), BTreeMap::<B256, BTreeMap<_, _>>::new());
        let mut last = B256::ZERO;
        for item in scenario.items() {
            match item {
                LoadItem::Account { hashed_address, info } => {
                    last = hashed_address;
                    let (nonce, balance, code_hash) = (info.nonce, info.balance, info.code_hash);
                    let storage_root = EMPTY_ROOT_HASH;
                    accounts.insert(hashed_address, AccountLeaf { nonce, balance, storage_root, code_hash });
                }
                LoadItem::Slot { hashed_slot, value } => {
                    contracts.entry(last).or_default().insert(hashed_slot, value);
                }
                _ => {}
            }
        }
        let stale = contracts.keys().copied().collect();
        Self { accounts, contracts, stale }
    }

    fn apply(&mut self, block: &Block) {
        for (key, delta) in &block.state.accounts {
            let leaf = self.accounts.entry(*key).or_insert(AccountLeaf::EMPTY);
            leaf.merge(delta);
            if leaf.is_empty() {
                self.accounts.remove(key);
            }
            if !delta.storage.is_empty() {
                let slots = self.contracts.entry(*key).or_default();
                for (slot, value) in &delta.storage {
                    match value.is_zero() {
                        true => slots.remove(slot),
                        false => slots.insert(*slot, *value),
                    };
                }
                self.stale.push(*key);
            }
        }
    }

    fn refresh(&mut self) {
        self.stale.sort_unstable();
        self.stale.dedup();
        for key in self.stale.drain(..) {
            if let (Some(leaf), Some(slots)) = (self.accounts.get_mut(&key), self.contracts.get(&key)) {
                leaf.storage_root = root(slots.iter().map(|(slot, value)| (*slot, *value)));
            }
        }
    }
}

impl Contender for FullRebuild {
    fn name(&self) -> &'static str {
        "alloy-trie HashBuilder"
    }

    fn backend(&self) -> &'static str {
        "memory"
    }

    fn threads(&self) -> usize {
        1
    }

    fn is_slow(&self) -> bool {
        true
    }

    fn warm_up(&mut self, _: &Block) -> Result<(), AnyError> {
        Ok(())
    }

    fn advance(&mut self, block: &Block) -> Result<Advanced, AnyError> {
        // Contracts that earlier blocks changed are no part of this one.
        self.refresh();
        let (state_root, cost) = timed(|| {
            self.apply(block);
            self.refresh();
            root(self.accounts.iter().map(|(key, leaf)| (*key, *leaf)))
        });
        Ok(Advanced { state_root, cost })
    }

    fn follow(&mut self, block: &Block) -> Result<(), AnyError> {
        self.apply(block);
        Ok(())
    }

    fn drop_caches(&mut self) -> Result<bool, AnyError> {
        Ok(false)
    }
}
