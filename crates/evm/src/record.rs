//! Turns what the EVM commits into [`StateWrites`].
//!
//! Invariants:
//! 1. A write is relative to the state before the commit: `Account::original_info` and `EvmStorageSlot::original_value`
//!    hold what the account was when the transaction (or system call) first loaded it.
//! 2. Nothing that did not change is written; a commit without changes gives no writes.
//! 3. Deletion is always explicit: SELFDESTRUCT, and accounts that were touched and are empty (EIP-161). The EVM itself
//!    keeps accounts of chains older than EIP-161 from being reported so.

use core::fmt::Debug;

use alloy_evm::{
    block::BalIndexedDatabase,
    revm::{
        Database, DatabaseCommit,
        database::State,
        primitives::{AddressMap, StorageKey, StorageValue},
        state::{Account, AccountInfo, Bytecode},
    },
};
use alloy_primitives::{Address, B256, KECCAK256_EMPTY};
use foldgate_core::{AccountWrites, BlockAccessIndex, CodeWrite, StateWrites};

/// revm's state, with a tap on its commits.
#[derive(Debug)]
pub(crate) struct Recorder<DB> {
    pub(crate) state: State<DB>,
    recorded: Vec<StateWrites>,
}

impl<DB> Recorder<DB> {
    pub(crate) const fn new(state: State<DB>) -> Self {
        Self { state, recorded: Vec::new() }
    }

    /// The writes of the commits since the last call, in order.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = StateWrites> + '_ {
        self.recorded.drain(..)
    }

    fn record(&mut self, accounts: Vec<(Address, AccountWrites)>) {
        if !accounts.is_empty() {
            self.recorded.push(StateWrites { accounts });
        }
    }
}

impl<DB: Database> Database for Recorder<DB> {
    type Error = <State<DB> as Database>::Error;

    fn basic(&mut self, address: Address) -> Result<Option<AccountInfo>, Self::Error> {
        self.state.basic(address)
    }

    fn code_by_hash(&mut self, code_hash: B256) -> Result<Bytecode, Self::Error> {
        self.state.code_by_hash(code_hash)
    }

    fn storage(&mut self, address: Address, slot: StorageKey) -> Result<StorageValue, Self::Error> {
        Database::storage(&mut self.state, address, slot)
    }

    fn block_hash(&mut self, number: u64) -> Result<B256, Self::Error> {
        self.state.block_hash(number)
    }
}

impl<DB: Database> DatabaseCommit for Recorder<DB> {
    fn commit(&mut self, changes: AddressMap<Account>) {
        self.record(changes.iter().filter_map(|(address, account)| account_writes(*address, account)).collect());
        self.state.commit(changes);
    }

    fn commit_iter(&mut self, changes: &mut dyn Iterator<Item = (Address, Account)>) {
        let mut writes = Vec::new();
        let mut tapped = changes.inspect(|(address, account)| writes.extend(account_writes(*address, account)));
        self.state.commit_iter(&mut tapped);
        self.record(writes);
    }
}

impl<DB: Database + Debug> BalIndexedDatabase for Recorder<DB> {
    fn set_bal_index(&mut self, index: u64) {
        self.state.set_bal_index(BlockAccessIndex::new(index));
    }

    fn bump_bal_index(&mut self) {
        self.state.bump_bal_index();
    }
}

/// What changed of one account, or `None` if nothing did. The cases are those of revm's `CacheState`.
fn account_writes(address: Address, account: &Account) -> Option<(Address, AccountWrites)> {
    if !account.is_touched() {
        return None;
    }
    let existed = !account.is_loaded_as_not_existing();
    if account.is_selfdestructed() || (account.is_empty() && !account.is_created()) {
        let deleted = AccountWrites { deleted: true, ..AccountWrites::default() };
        return existed.then_some((address, deleted));
    }
    let original = account.original_info();
    let mut writes = AccountWrites {
        deleted: false,
        // Whatever storage the address had is invisible to a contract created there.
        storage_wiped: account.is_created() && existed,
        nonce: (account.info.nonce != original.nonce).then_some(account.info.nonce),
        balance: (account.info.balance != original.balance).then_some(account.info.balance),
        code: code_write(&original, &account.info),
        storage: account.changed_storage_slots().map(|(key, slot)| (*key, slot.present_value)).collect(),
    };
    if !existed && writes.nonce.is_none() && writes.balance.is_none() && writes.code.is_none() {
        // An account that comes to exist empty, as chains older than EIP-161 allow: one field tells that it stands.
        writes.balance = Some(account.info.balance);
    }
    (!writes.is_empty()).then_some((address, writes))
}

fn code_write(original: &AccountInfo, info: &AccountInfo) -> Option<CodeWrite> {
    if info.code_hash == original.code_hash {
        return None;
    }
    if info.code_hash == KECCAK256_EMPTY {
        return Some(CodeWrite::new(Default::default()));
    }
    // Changed code was set by the EVM, which sets the bytes along with the hash.
    info.code.as_ref().map(|code| CodeWrite::from_parts(info.code_hash, code.original_bytes()))
}
