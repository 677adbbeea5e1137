//! Random chains without an EVM: blocks with an access list, the writes that an execution would have recorded, and the
//! state after each, kept in plain maps by the oracle.
//!
//! Invariants:
//! 1. The state root of every block comes from the oracle, never from a fold.
//! 2. List and writes are two accounts of the same changes: the writes are told index by index and mark deletions
//!    (EIP-161) themselves, which the list cannot.
//! 3. The same seed gives the same chain.

use std::{collections::BTreeMap, sync::Arc};

use alloy_eip7928::{
    AccountChanges, BalanceChange, BlockAccessIndex, CodeChange, NonceChange, SlotChanges, StorageChange,
};
use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use foldgate_core::{
    AccountWrites, BlockFacts, BlockNumHash, CodeWrite, StateAnchor, StateWrites,
    trie::bulk::{GenesisAccount, LoadItem, genesis_items},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IteratorRandom};

use crate::oracle::{PlainAccount, PlainState, access_list_diff};

/// The size of a simulated chain's world and of its blocks.
#[derive(Debug, Clone, Copy)]
pub struct SimSize {
    /// Addresses that blocks choose from, with accounts or without.
    pub addresses: u64,
    /// Slots that each contract's writes choose from.
    pub slots: u64,
    /// The most accounts that a block touches.
    pub touched: usize,
    /// The most slots that a block writes in one account.
    pub written: usize,
}

impl Default for SimSize {
    fn default() -> Self {
        Self { addresses: 48, slots: 24, touched: 12, written: 8 }
    }
}

/// A block of a simulated chain.
#[derive(Debug, Clone)]
pub struct SimBlock {
    /// What a pipeline is told at the block's arrival; the expected root is the oracle's.
    pub facts: BlockFacts,
    /// The access list.
    pub list: Vec<AccountChanges>,
    /// The list's canonical RLP.
    pub raw: Bytes,
    /// keccak256 of `raw`.
    pub bal_hash: B256,
    /// What execution records, by block access index, ascending.
    pub writes: Vec<(BlockAccessIndex, StateWrites)>,
    /// The state after the block.
    pub state: Arc<PlainState>,
    /// The root of `state`.
    pub state_root: B256,
}

impl SimBlock {
    /// The block and the root of the state after it.
    pub fn anchor(&self) -> StateAnchor {
        StateAnchor { block: self.facts.block, state_root: self.state_root }
    }

    /// The same block under a header that does not commit to the list.
    #[must_use]
    pub fn uncommitted(mut self) -> Self {
        self.facts.expected_bal_hash = None;
        self
    }
}

/// Makes simulated blocks.
#[derive(Debug)]
pub struct Sim {
    rng: StdRng,
    size: SimSize,
    blocks: u64,
}

impl Sim {
    /// A source of blocks with this seed.
    pub fn new(seed: u64, size: SimSize) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), size, blocks: 0 }
    }

    /// A genesis in which half of the addresses have accounts.
    pub fn genesis(&mut self) -> SimBlock {
        let mut state = PlainState::default();
        for index in 0..self.size.addresses {
            if self.rng.random_bool(0.5) {
                let account = self.random_account();
                state.accounts.insert(address(index), account);
            }
        }
        self.block(0, B256::ZERO, 0, Vec::new(), Vec::new(), state)
    }

    /// A random child. Siblings are made by asking again.
    pub fn child(&mut self, parent: &SimBlock) -> SimBlock {
        let tx_count = self.rng.random_range(0..4);
        let touched = self.rng.random_range(0..=self.size.touched);
        let chosen = (0..self.size.addresses).choose_multiple(&mut self.rng, touched);
        let mut list: Vec<_> = chosen
            .into_iter()
            .map(|index| self.changes(address(index), parent.state.accounts.get(&address(index)), tx_count))
            .collect();
        list.sort_unstable_by_key(|account| account.address);
        self.child_with(parent, tx_count, list)
    }

    /// The child that this list leads to, whatever it says.
    pub fn child_with(&mut self, parent: &SimBlock, tx_count: u64, list: Vec<AccountChanges>) -> SimBlock {
        let (writes, state) = replay(&parent.state, &list, tx_count);
        let mut at_once = (*parent.state).clone();
        at_once.apply_access_list(&list);
        assert!(at_once == state, "list and writes tell of the same changes");
        let parent = parent.facts.block;
        self.block(parent.number + 1, parent.hash, tx_count, list, writes, state)
    }

    fn block(
        &mut self,
        number: u64,
        parent_hash: B256,
        tx_count: u64,
        list: Vec<AccountChanges>,
        writes: Vec<(BlockAccessIndex, StateWrites)>,
        state: PlainState,
    ) -> SimBlock {
        self.blocks += 1;
        let salt: u64 = self.rng.random();
        let hash = keccak256([number.to_be_bytes(), self.blocks.to_be_bytes(), salt.to_be_bytes()].concat());
        let raw = foldgate_bal::encode(&list);
        let bal_hash = keccak256(&raw);
        let state_root = state.state_root();
        let facts = BlockFacts {
            block: BlockNumHash::new(number, hash),
            parent_hash,
            timestamp: 1_800_000_000 + number * 12,
            gas_limit: 60_000_000,
            tx_count,
            expected_state_root: Some(state_root),
            expected_bal_hash: Some(bal_hash),
        };
        SimBlock { facts, list, raw, bal_hash, writes, state: Arc::new(state), state_root }
    }

    fn random_account(&mut self) -> PlainAccount {
        let is_contract = self.rng.random_bool(0.4);
        let mut account = PlainAccount {
            nonce: u64::from(is_contract),
            balance: U256::from(self.rng.random_range(u64::from(!is_contract)..1_000)),
            ..PlainAccount::default()
        };
        if is_contract {
            account.code = self.random_code();
            for slot in 0..self.size.slots {
                if self.rng.random_bool(0.3) {
                    account.set_slot(U256::from(slot), U256::from(self.rng.random_range(1..u64::MAX)));
                }
            }
        }
        account
    }

    fn random_code(&mut self) -> Bytes {
        let length = self.rng.random_range(1..40);
        (0..length).map(|_| self.rng.random::<u8>()).collect()
    }

    /// A random entry of a list: untouched, plain, contract, storage only, created, or emptied.
    fn changes(&mut self, address: Address, account: Option<&PlainAccount>, tx_count: u64) -> AccountChanges {
        let mut changes = AccountChanges::new(address);
        let is_contract = account.is_some_and(|account| account.nonce > 0);
        match (account, self.rng.random_range(0..10)) {
            (_, 0) => {}
            (None, 1..5) => self.create(&mut changes, tx_count),
            // A bare account is emptied, and so removed.
            (Some(_), 1..3) if !is_contract => {
                changes.balance_changes = self.balances(tx_count, Some(U256::ZERO));
            }
            (Some(_), 1..7) if is_contract => {
                self.slots(&mut changes, tx_count);
                if self.rng.random_bool(0.3) {
                    changes.balance_changes = self.balances(tx_count, None);
                }
                if self.rng.random_bool(0.1) {
                    // A delegation cleared, or set (EIP-7702).
                    let code = if self.rng.random_bool(0.5) { Bytes::new() } else { self.random_code() };
                    changes.code_changes = vec![CodeChange::new(self.index(tx_count), code)];
                }
            }
            _ => changes.balance_changes = self.balances(tx_count, None),
        }
        let written = |slot: &U256| changes.storage_changes.iter().any(|changes| changes.slot == *slot);
        let mut reads: Vec<_> =
            (0..self.size.slots).choose_multiple(&mut self.rng, 2).into_iter().map(U256::from).collect();
        reads.retain(|slot| !written(slot));
        reads.sort_unstable();
        changes.storage_reads = reads;
        changes
    }

    fn create(&mut self, changes: &mut AccountChanges, tx_count: u64) {
        // First of all, so that the account stands when its slots are written.
        let index = BlockAccessIndex::PRE_EXECUTION;
        changes.nonce_changes = vec![NonceChange::new(index, 1)];
        changes.code_changes = vec![CodeChange::new(index, self.random_code())];
        changes.balance_changes = self.balances(tx_count, None);
        self.slots(changes, tx_count);
    }

    fn slots(&mut self, changes: &mut AccountChanges, tx_count: u64) {
        let count = self.rng.random_range(0..=self.size.written);
        let mut slots = (0..self.size.slots).choose_multiple(&mut self.rng, count);
        slots.sort_unstable();
        changes.storage_changes = slots
            .into_iter()
            .map(|slot| {
                let changes = self
                    .indices(tx_count)
                    .into_iter()
                    .map(|index| {
                        let zero = self.rng.random_bool(0.3);
                        let value = if zero { 0 } else { self.rng.random_range(1..u64::MAX) };
                        StorageChange::new(index, U256::from(value))
                    })
                    .collect();
                SlotChanges::new(U256::from(slot), changes)
            })
            .collect();
    }

    fn balances(&mut self, tx_count: u64, last: Option<U256>) -> Vec<BalanceChange> {
        let mut changes: Vec<_> = self
            .indices(tx_count)
            .into_iter()
            .map(|index| BalanceChange::new(index, U256::from(self.rng.random_range(1..u64::MAX))))
            .collect();
        if let (Some(change), Some(last)) = (changes.last_mut(), last) {
            change.post_balance = last;
        }
        changes
    }

    fn index(&mut self, tx_count: u64) -> BlockAccessIndex {
        BlockAccessIndex::new(self.rng.random_range(0..=tx_count + 1))
    }

    /// One to three indices, ascending.
    fn indices(&mut self, tx_count: u64) -> Vec<BlockAccessIndex> {
        let count = self.rng.random_range(1..=3);
        let mut indices = (0..=tx_count + 1).choose_multiple(&mut self.rng, count);
        indices.sort_unstable();
        indices.into_iter().map(BlockAccessIndex::new).collect()
    }
}

/// The state as items of a load.
pub fn load_items(state: &PlainState) -> Vec<LoadItem> {
    genesis_items(state.accounts.iter().map(|(address, account)| {
        let PlainAccount { nonce, balance, code, storage } = account.clone();
        (*address, GenesisAccount { nonce, balance, code, storage })
    }))
}

fn address(index: u64) -> Address {
    Address::from_slice(&keccak256(index.to_be_bytes())[..20])
}

/// What an execution records: index by index, with deletions. Gives the writes and the state after them.
fn replay(
    parent: &PlainState,
    list: &[AccountChanges],
    tx_count: u64,
) -> (Vec<(BlockAccessIndex, StateWrites)>, PlainState) {
    let mut state = parent.clone();
    let mut all = Vec::new();
    for index in 0..=tx_count + 1 {
        let index = BlockAccessIndex::new(index);
        let before = access_list_diff_at(list, index);
        let mut accounts = Vec::new();
        for (address, mut write) in before {
            let account = state.accounts.entry(address).or_default();
            account.nonce = write.nonce.unwrap_or(account.nonce);
            account.balance = write.balance.unwrap_or(account.balance);
            if let Some(code) = &write.code {
                account.code = code.bytes().clone();
            }
            for (slot, value) in &write.storage {
                account.set_slot(*slot, *value);
            }
            if account.is_empty() {
                state.accounts.remove(&address);
                write = AccountWrites { deleted: true, ..AccountWrites::default() };
            }
            accounts.push((address, write));
        }
        if !accounts.is_empty() {
            all.push((index, StateWrites { accounts }));
        }
    }
    (all, state)
}

/// The changes of exactly one index.
fn access_list_diff_at(list: &[AccountChanges], index: BlockAccessIndex) -> BTreeMap<Address, AccountWrites> {
    let mut only = list.to_vec();
    for account in &mut only {
        account.balance_changes.retain(|change| change.block_access_index == index);
        account.nonce_changes.retain(|change| change.block_access_index == index);
        account.code_changes.retain(|change| change.block_access_index == index);
        for slot in &mut account.storage_changes {
            slot.changes.retain(|change| change.block_access_index == index);
        }
    }
    let diff = access_list_diff(&only, None);
    diff.into_iter()
        .map(|(address, diff)| {
            let write = AccountWrites {
                nonce: diff.nonce,
                balance: diff.balance,
                code: diff.code.map(CodeWrite::new),
                storage: diff.storage.into_iter().collect(),
                ..AccountWrites::default()
            };
            (address, write)
        })
        .collect()
}
