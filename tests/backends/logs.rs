//! Record logs for the suites: one in memory that fails on demand, and stores and logs that call at named points.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use alloy_primitives::Bytes;
use foldgate::{
    FileLog, TrieStore,
    core::{
        BalStore, BlockNumHash, BlockNumber, CommitBatch, LoadError, LoadSource, Record, RecordLog, ReverseDiff,
        StateAnchor, UnwindBatch,
    },
    record_log,
};

/// The log of a store in a folder: small segments, so that there are many.
pub(crate) fn file_log(dir: &Path) -> FileLog {
    file_log_of_segments(dir, 4 << 10)
}

/// The same with segments of another length.
pub(crate) fn file_log_of_segments(dir: &Path, segment_bytes: u64) -> FileLog {
    FileLog::open(dir.join("log"), record_log::Options::default().with_segment_bytes(segment_bytes)).unwrap()
}

/// The log could not be written.
#[derive(Debug, thiserror::Error)]
#[error("the log's disk is gone")]
pub(crate) struct LogFault;

/// Records in memory. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedLog {
    pub(crate) records: Arc<Mutex<Vec<Record>>>,
    pub(crate) fails: Arc<AtomicBool>,
    /// While it is held, no sync begins.
    pub(crate) syncs_wait: Arc<Mutex<()>>,
}

impl RecordLog for SharedLog {
    type Error = LogFault;

    fn append(&mut self, record: &Record) -> Result<(), LogFault> {
        self.records.lock().unwrap().push(record.clone());
        Ok(())
    }

    fn sync(&mut self) -> Result<(), LogFault> {
        let _turn = self.syncs_wait.lock();
        if self.fails.load(Ordering::SeqCst) { Err(LogFault) } else { Ok(()) }
    }

    fn replay(&mut self, visit: &mut dyn FnMut(Record)) -> Result<(), LogFault> {
        self.records.lock().unwrap().iter().cloned().for_each(visit);
        Ok(())
    }

    fn prune(&mut self, up_to: BlockNumber) -> Result<(), LogFault> {
        self.records.lock().unwrap().retain(|record| record.block().number > up_to);
        Ok(())
    }
}

/// Is called with the name of the point that was reached.
pub(crate) type Reached = Arc<dyn Fn(&'static str) + Send + Sync>;

/// A log that tells what it is about to do, and what it has done.
pub(crate) struct PointedLog<L> {
    pub(crate) inner: L,
    pub(crate) reached: Reached,
}

impl<L: RecordLog> RecordLog for PointedLog<L> {
    type Error = L::Error;

    fn append(&mut self, record: &Record) -> Result<(), L::Error> {
        (self.reached)("append");
        self.inner.append(record)
    }

    fn sync(&mut self) -> Result<(), L::Error> {
        (self.reached)("sync");
        self.inner.sync()?;
        (self.reached)("synced");
        Ok(())
    }

    fn replay(&mut self, visit: &mut dyn FnMut(Record)) -> Result<(), L::Error> {
        self.inner.replay(&mut |record| {
            (self.reached)("replay");
            visit(record);
        })
    }

    fn prune(&mut self, up_to: BlockNumber) -> Result<(), L::Error> {
        (self.reached)("prune");
        self.inner.prune(up_to)?;
        (self.reached)("pruned");
        Ok(())
    }
}

/// The same of a store.
pub(crate) struct PointedStore<S> {
    pub(crate) inner: S,
    pub(crate) reached: Reached,
}

impl<S: TrieStore> TrieStore for PointedStore<S> {
    type Error = S::Error;
    type Snapshot = S::Snapshot;

    fn genesis(&self) -> Result<Option<StateAnchor>, S::Error> {
        self.inner.genesis()
    }

    fn tip(&self) -> Result<Option<StateAnchor>, S::Error> {
        self.inner.tip()
    }

    fn snapshot(&self) -> Result<S::Snapshot, S::Error> {
        (self.reached)("snapshot");
        self.inner.snapshot()
    }

    fn load<L: LoadSource>(&self, source: L) -> Result<StateAnchor, LoadError<S::Error, L::Error>> {
        self.inner.load(source)
    }

    fn commit(&self, batch: &CommitBatch) -> Result<(), S::Error> {
        (self.reached)("commit");
        self.inner.commit(batch)?;
        (self.reached)("committed");
        Ok(())
    }

    fn unwind(&self, batch: &UnwindBatch) -> Result<(), S::Error> {
        (self.reached)("unwind");
        self.inner.unwind(batch)?;
        (self.reached)("unwound");
        Ok(())
    }

    fn committed(&self, number: BlockNumber) -> Result<Option<StateAnchor>, S::Error> {
        self.inner.committed(number)
    }

    fn reverse_diff(&self, number: BlockNumber) -> Result<Option<ReverseDiff>, S::Error> {
        self.inner.reverse_diff(number)
    }
}

impl<S: BalStore> BalStore for PointedStore<S> {
    fn bal(&self, block: BlockNumHash) -> Result<Option<Bytes>, S::Error> {
        self.inner.bal(block)
    }

    fn prune_below(&self, below: BlockNumber) -> Result<u64, S::Error> {
        self.inner.prune_below(below)
    }
}
