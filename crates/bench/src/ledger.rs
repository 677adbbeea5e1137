//! The leaves that a workload's state should have after each block, kept apart from every contender, and their root by
//! alloy-trie's `HashBuilder` over all of them.
//!
//! Invariants:
//! 1. Nothing here is shared with the code that is measured: changes are merged, leaves encoded and tries built here.
//! 2. Only what blocks changed is held as leaves; the rest is made again from its numbers.

use std::{
    collections::{BTreeMap, btree_map},
    iter::Peekable,
};

use alloy_primitives::{B256, U256};
use alloy_rlp::{Encodable, RlpEncodable};
use alloy_trie::{EMPTY_ROOT_HASH, HashBuilder, Nibbles};
use foldgate_core::{AccountDelta, AccountInfo};

use crate::workload::{Block, Population, Shape, initial_account, initial_contract, initial_slot};

/// See the module's description.
#[derive(Debug, Clone)]
pub struct Ledger {
    accounts: Population,
    /// Plain accounts that blocks changed; `None` where one was deleted.
    changed: BTreeMap<B256, Option<AccountInfo>>,
    contracts: BTreeMap<B256, Contract>,
}

#[derive(Debug, Clone)]
struct Contract {
    info: AccountInfo,
    slots: Population,
    /// Slots that blocks changed; `None` where one was deleted.
    changed: BTreeMap<B256, Option<U256>>,
    /// `None` where blocks have changed slots since it was computed.
    root: Option<B256>,
}

impl Ledger {
    pub(crate) fn new(shape: &Shape) -> Self {
        let contracts = shape.contracts.iter().map(|contract| {
            let slots = contract.slots.clone();
            (contract.key, Contract { info: initial_contract(), slots, changed: BTreeMap::new(), root: None })
        });
        Self { accounts: shape.accounts.clone(), changed: BTreeMap::new(), contracts: contracts.collect() }
    }

    /// Applies a block of the workload's own stream: no storage is cleared as a whole, and accounts that end empty go.
    pub fn apply(&mut self, block: &Block) {
        for (key, delta) in &block.state.accounts {
            if let Some(contract) = self.contracts.get_mut(key) {
                contract.info = merged(contract.info, delta);
                let slots = delta.storage.iter().map(|(slot, value)| (*slot, Some(*value).filter(|v| !v.is_zero())));
                contract.changed.extend(slots);
                contract.root = contract.root.filter(|_| delta.storage.is_empty());
                continue;
            }
            let before = match self.changed.get(key) {
                Some(changed) => *changed,
                None => self.accounts.find(key).map(initial_account),
            };
            let after = merged(before.unwrap_or_default(), delta);
            self.changed.insert(*key, Some(after).filter(|info| !info.is_empty()));
        }
    }

    /// How many leaves there are, of all tries.
    pub fn leaves(&self) -> u64 {
        let slots = |contract: &Contract| leaves_of(&contract.slots, &contract.changed, initial_slot).count();
        let accounts = leaves_of(&self.accounts, &self.changed, initial_account).count() + self.contracts.len();
        (accounts + self.contracts.values().map(slots).sum::<usize>()) as u64
    }

    /// The root of the state, computed from all accounts, and all slots of contracts that changed since the last call.
    pub fn state_root(&mut self) -> B256 {
        for contract in self.contracts.values_mut() {
            if contract.root.is_none() {
                contract.root = Some(root(leaves_of(&contract.slots, &contract.changed, initial_slot)));
            }
        }
        let mut contracts = self.contracts.iter().peekable();
        let mut accounts = leaves_of(&self.accounts, &self.changed, initial_account).peekable();
        root(std::iter::from_fn(|| {
            let account = accounts.peek().map(|(key, _)| *key);
            let contract = contracts.next_if(|(key, _)| account.is_none_or(|account| **key < account));
            match contract {
                Some((key, contract)) => Some((*key, leaf(&contract.info, contract.root.unwrap_or_default()))),
                None => accounts.next().map(|(key, info)| (key, leaf(&info, EMPTY_ROOT_HASH))),
            }
        }))
    }
}

/// The root of the state of these accounts alone.
pub(crate) fn root_of_accounts(accounts: &Population) -> B256 {
    root(accounts.in_order().map(|(key, number)| (key, leaf(&initial_account(number), EMPTY_ROOT_HASH))))
}

fn merged(info: AccountInfo, delta: &AccountDelta) -> AccountInfo {
    AccountInfo {
        nonce: delta.nonce.unwrap_or(info.nonce),
        balance: delta.balance.unwrap_or(info.balance),
        code_hash: delta.code_hash.unwrap_or(info.code_hash),
    }
}

/// What an account's leaf holds (yellow paper, 4.1).
#[derive(Debug, Clone, Copy, RlpEncodable)]
struct AccountLeaf {
    nonce: u64,
    balance: U256,
    storage_root: B256,
    code_hash: B256,
}

fn leaf(info: &AccountInfo, storage_root: B256) -> AccountLeaf {
    AccountLeaf { nonce: info.nonce, balance: info.balance, storage_root, code_hash: info.code_hash }
}

/// The root of a trie's leaves, which come in order.
pub(crate) fn root<V: Encodable>(leaves: impl Iterator<Item = (B256, V)>) -> B256 {
    let mut builder = HashBuilder::default();
    let mut value = Vec::new();
    for (key, leaf) in leaves {
        value.clear();
        leaf.encode(&mut value);
        builder.add_leaf(Nibbles::unpack(key), &value);
    }
    builder.root()
}

/// A population with what changed of it.
fn leaves_of<'a, V: Copy>(
    population: &Population,
    changed: &'a BTreeMap<B256, Option<V>>,
    initial: fn(u32) -> V,
) -> impl Iterator<Item = (B256, V)> + use<'a, V> {
    let mut members = population.in_order().peekable();
    let mut changed: Peekable<btree_map::Iter<'a, _, _>> = changed.iter().peekable();
    std::iter::from_fn(move || {
        loop {
            let member = members.peek().map(|(key, _)| *key);
            match changed.next_if(|(key, _)| member.is_none_or(|member| **key <= member)) {
                Some((key, value)) => {
                    members.next_if(|(member, _)| member == key);
                    if let Some(value) = value {
                        return Some((*key, *value));
                    }
                }
                None => return members.next().map(|(key, number)| (key, initial(number))),
            }
        }
    })
}
