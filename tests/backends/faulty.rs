//! A store in memory whose reads or commits fail on demand.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use alloy_primitives::{B256, Bytes, U256};
use foldgate::core::{
    Account, AccountInfo, BackendError, BalStore, BlockNumHash, BlockNumber, CommitBatch, LoadError, LoadSource,
    MemoryError, MemoryStore, NodeKey, Refusal, ReverseDiff, StateAnchor, StateReader, TrieReader, TrieStore,
    UnwindBatch,
};

/// What the store fails with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the disk is gone")]
    Injected,
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl BackendError for Fault {
    fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Injected => None,
            Self::Memory(error) => error.refusal(),
        }
    }
}

/// The switches.
#[derive(Debug, Default)]
pub(crate) struct Switches {
    pub(crate) reads_fail: AtomicBool,
    pub(crate) commits_fail: AtomicBool,
    pub(crate) commits_panic: AtomicBool,
    pub(crate) unwinds_fail: AtomicBool,
    /// While it is held, no commit and no unwind begins.
    pub(crate) commits_wait: Mutex<()>,
    /// The next read of this account gives a nonce that it does not have; those after it are right.
    pub(crate) lie: Mutex<Option<B256>>,
}

fn check(switch: &AtomicBool) -> Result<(), Fault> {
    if switch.load(Ordering::SeqCst) { Err(Fault::Injected) } else { Ok(()) }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct FaultyStore {
    inner: MemoryStore,
    pub(crate) switches: Arc<Switches>,
}

impl FaultyStore {
    pub(crate) fn new() -> Self {
        Self { inner: MemoryStore::new(), switches: Arc::default() }
    }
}

/// A snapshot whose reads may fail.
#[derive(Debug, Clone)]
pub(crate) struct FaultySnapshot {
    inner: <MemoryStore as TrieStore>::Snapshot,
    switches: Arc<Switches>,
}

impl FaultySnapshot {
    fn check(&self) -> Result<(), Fault> {
        check(&self.switches.reads_fail)
    }
}

impl StateReader for FaultySnapshot {
    type Error = Fault;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, Fault> {
        self.check()?;
        Ok(self.inner.account_info(hashed_address)?)
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, Fault> {
        self.check()?;
        Ok(self.inner.storage(hashed_address, hashed_slot)?)
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, Fault> {
        self.check()?;
        Ok(self.inner.code(code_hash)?)
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<B256>, Fault> {
        self.check()?;
        Ok(self.inner.block_hash(number)?)
    }
}

impl TrieReader for FaultySnapshot {
    fn anchor(&self) -> StateAnchor {
        self.inner.anchor()
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, Fault> {
        self.check()?;
        let mut account = self.inner.account(hashed_address)?;
        let lies = self.switches.lie.lock().unwrap().take_if(|address| address == hashed_address).is_some();
        if let Some(account) = account.as_mut().filter(|_| lies) {
            account.nonce += 1000;
        }
        Ok(account)
    }

    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, Fault> {
        self.check()?;
        Ok(self.inner.node(key)?)
    }

    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, Fault> {
        self.check()?;
        Ok(self.inner.accounts_from(start, limit)?)
    }

    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, Fault> {
        self.check()?;
        Ok(self.inner.slots_from(hashed_address, start, limit)?)
    }
}

impl TrieStore for FaultyStore {
    type Error = Fault;
    type Snapshot = FaultySnapshot;

    fn genesis(&self) -> Result<Option<StateAnchor>, Fault> {
        Ok(self.inner.genesis()?)
    }

    fn tip(&self) -> Result<Option<StateAnchor>, Fault> {
        Ok(self.inner.tip()?)
    }

    fn snapshot(&self) -> Result<FaultySnapshot, Fault> {
        Ok(FaultySnapshot { inner: self.inner.snapshot()?, switches: Arc::clone(&self.switches) })
    }

    fn load<L: LoadSource>(&self, source: L) -> Result<StateAnchor, LoadError<Fault, L::Error>> {
        self.inner.load(source).map_err(|error| match error {
            LoadError::Store(error) => LoadError::Store(error.into()),
            LoadError::Source(error) => LoadError::Source(error),
        })
    }

    fn commit(&self, batch: &CommitBatch) -> Result<(), Fault> {
        let _turn = self.switches.commits_wait.lock();
        assert!(!self.switches.commits_panic.load(Ordering::SeqCst), "an injected panic");
        check(&self.switches.commits_fail)?;
        Ok(self.inner.commit(batch)?)
    }

    fn unwind(&self, batch: &UnwindBatch) -> Result<(), Fault> {
        let _turn = self.switches.commits_wait.lock();
        check(&self.switches.unwinds_fail)?;
        Ok(self.inner.unwind(batch)?)
    }

    fn committed(&self, number: BlockNumber) -> Result<Option<StateAnchor>, Fault> {
        Ok(self.inner.committed(number)?)
    }

    fn reverse_diff(&self, number: BlockNumber) -> Result<Option<ReverseDiff>, Fault> {
        Ok(self.inner.reverse_diff(number)?)
    }
}

impl BalStore for FaultyStore {
    fn bal(&self, block: BlockNumHash) -> Result<Option<Bytes>, Fault> {
        Ok(self.inner.bal(block)?)
    }

    fn prune_below(&self, below: BlockNumber) -> Result<u64, Fault> {
        Ok(self.inner.prune_below(below)?)
    }
}
