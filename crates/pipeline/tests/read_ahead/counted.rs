//! A store in memory that counts the reads of its snapshots and knows which are kept, and in which one read can be held up.

use std::sync::{
    Arc, Mutex, Weak,
    atomic::{AtomicBool, AtomicU64, Ordering},
    mpsc::{Receiver, Sender, channel},
};

use alloy_primitives::{B256, Bytes, U256};
use foldgate_core::{
    Account, AccountInfo, BalStore, BlockNumHash, BlockNumber, CommitBatch, LoadError, LoadSource, MemoryError,
    MemorySnapshot, MemoryStore, NodeKey, ReverseDiff, StateAnchor, StateReader, TrieReader, TrieStore, UnwindBatch,
};

#[derive(Debug, Default)]
struct Reads {
    count: AtomicU64,
    hold: Mutex<Option<Receiver<()>>>,
    held: AtomicBool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct CountedStore {
    inner: MemoryStore,
    reads: Arc<Reads>,
    /// The heights of the snapshots that were given out.
    snapshots: Mutex<Vec<Weak<BlockNumber>>>,
}

impl CountedStore {
    /// The height of the oldest snapshot that somebody keeps.
    pub(crate) fn oldest_kept(&self) -> Option<BlockNumber> {
        let snapshots = self.snapshots.lock().unwrap();
        snapshots.iter().filter_map(Weak::upgrade).map(|height| *height).min()
    }

    /// How many records were read.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.count.load(Ordering::SeqCst)
    }

    /// Has the next read wait until the sender is dropped.
    pub(crate) fn hold_next(&self) -> Sender<()> {
        let (release, held) = channel();
        self.reads.held.store(false, Ordering::SeqCst);
        *self.reads.hold.lock().unwrap() = Some(held);
        release
    }

    /// Whether a read waits, or has.
    pub(crate) fn is_held(&self) -> bool {
        self.reads.held.load(Ordering::SeqCst)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct CountedSnapshot {
    inner: MemorySnapshot,
    reads: Arc<Reads>,
    _height: Arc<BlockNumber>,
}

impl CountedSnapshot {
    fn read(&self) -> &MemorySnapshot {
        self.reads.count.fetch_add(1, Ordering::SeqCst);
        let hold = self.reads.hold.lock().unwrap().take();
        if let Some(hold) = hold {
            self.reads.held.store(true, Ordering::SeqCst);
            // Nothing is ever sent: it ends with the sender.
            let _released = hold.recv();
        }
        &self.inner
    }
}

impl StateReader for CountedSnapshot {
    type Error = MemoryError;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, MemoryError> {
        self.read().account_info(hashed_address)
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, MemoryError> {
        self.read().storage(hashed_address, hashed_slot)
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, MemoryError> {
        self.read().code(code_hash)
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<B256>, MemoryError> {
        self.read().block_hash(number)
    }
}

impl TrieReader for CountedSnapshot {
    fn anchor(&self) -> StateAnchor {
        self.inner.anchor()
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, MemoryError> {
        self.read().account(hashed_address)
    }

    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, MemoryError> {
        self.read().node(key)
    }

    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, MemoryError> {
        self.read().accounts_from(start, limit)
    }

    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, MemoryError> {
        self.read().slots_from(hashed_address, start, limit)
    }
}

impl TrieStore for CountedStore {
    type Error = MemoryError;
    type Snapshot = CountedSnapshot;

    fn genesis(&self) -> Result<Option<StateAnchor>, MemoryError> {
        self.inner.genesis()
    }

    fn tip(&self) -> Result<Option<StateAnchor>, MemoryError> {
        self.inner.tip()
    }

    fn snapshot(&self) -> Result<CountedSnapshot, MemoryError> {
        let inner = self.inner.snapshot()?;
        let height = Arc::new(inner.anchor().block.number);
        self.snapshots.lock().unwrap().push(Arc::downgrade(&height));
        Ok(CountedSnapshot { inner, reads: Arc::clone(&self.reads), _height: height })
    }

    fn load<L: LoadSource>(&self, source: L) -> Result<StateAnchor, LoadError<MemoryError, L::Error>> {
        self.inner.load(source)
    }

    fn commit(&self, batch: &CommitBatch) -> Result<(), MemoryError> {
        self.inner.commit(batch)
    }

    fn unwind(&self, batch: &UnwindBatch) -> Result<(), MemoryError> {
        self.inner.unwind(batch)
    }

    fn committed(&self, number: BlockNumber) -> Result<Option<StateAnchor>, MemoryError> {
        self.inner.committed(number)
    }

    fn reverse_diff(&self, number: BlockNumber) -> Result<Option<ReverseDiff>, MemoryError> {
        self.inner.reverse_diff(number)
    }
}

impl BalStore for CountedStore {
    fn bal(&self, block: BlockNumHash) -> Result<Option<Bytes>, MemoryError> {
        self.inner.bal(block)
    }

    fn prune_below(&self, below: BlockNumber) -> Result<u64, MemoryError> {
        self.inner.prune_below(below)
    }
}
