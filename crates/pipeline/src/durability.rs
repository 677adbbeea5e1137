//! The log's thread: it makes the records of valid blocks durable, many with one sync, and tells those who wait.
//!
//! ```text
//!   calculator --(layer; new head; prune)--> [log's thread] --append, append, .. sync--> RecordLog
//!   committer ---(what it will unwind)--------->  |
//!                                                 +--> acknowledgements, answers of `set_canonical`, the committer's turn
//! ```
//!
//! It never waits for the store, and nobody waits for it but who asked to: among them the committer, before the store
//! takes a step ([`WriteAhead`]).
//!
//! Invariants:
//! 1. An acknowledgement is sent after the sync that covers the block's record, and the records of all its ancestors:
//!    the calculator orders parents before children, and the log keeps the order.
//! 2. After a failure nothing is acknowledged any more: every later order is answered with the failure, so that nobody
//!    waits for ever.
//! 3. A block's permit is held until its record is durable: so many blocks at most wait here.
//! 4. Orders take effect in their order: what is ordered after a pruning is not lost to it.
//! 5. The store takes no step before all that was ordered of the log until then is durable.

use std::{
    collections::HashSet,
    fmt,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use foldgate_core::{BlockNumHash, BlockNumber, BlockRecord, Layer, Record, RecordLog, Redo};

use crate::{
    acknowledge::Acknowledge, jobs::panic_message, observe, permits::Permit, pipeline::CanonicalError, verdict::Failure,
};

/// Why a block is not acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum NotAcknowledged {
    /// The block was not judged valid; or, without a log, it left the tree before it was canonical; or the pipeline was
    /// dropped before that.
    #[error("the block is not valid, or was given up")]
    GivenUp,
    /// The record could not be made durable.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// Waits until a block is acknowledged: until it survives a kill of the process.
///
/// With a log that is when its record is durable, which takes milliseconds and waits for no commit of the store. Without
/// one it is when the store has the block; one that never becomes canonical is never acknowledged.
#[derive(Debug, Clone)]
pub struct Acknowledgement(pub(crate) Receiver<Result<(), Failure>>);

impl Acknowledgement {
    /// Waits.
    ///
    /// # Errors
    /// If the block will not be acknowledged.
    pub fn wait(self) -> Result<(), NotAcknowledged> {
        self.0.recv().map_or(Err(NotAcknowledged::GivenUp), |result| Ok(result?))
    }

    /// Waits at most so long; `None` if nothing is known then. What is learnt is told once.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<(), NotAcknowledged>> {
        match self.0.recv_timeout(timeout) {
            Ok(result) => Some(result.map_err(NotAcknowledged::Failed)),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(NotAcknowledged::GivenUp)),
        }
    }
}

/// What the calculator asks of the log.
#[derive(Debug)]
pub(crate) enum LogOrder {
    /// Record a block. `by_list`: its list alone leads to its state.
    Block { layer: Arc<Layer>, by_list: bool, acknowledge: Acknowledge, permit: Option<Permit> },
    /// Record the canonical head, and answer when the record is durable.
    Canonical { head: BlockNumHash, reply: Option<Sender<Result<(), CanonicalError>>> },
    /// Record those of these blocks of which the log holds no record, oldest first, and answer when everything ordered so
    /// far is durable.
    Secure { blocks: Vec<Arc<Layer>>, reply: Sender<Result<(), Failure>> },
    /// Let go of records up to this height: the store has them.
    Prune(BlockNumber),
}

/// The log as the committer knows it: the store takes a step only when what it needs to be taken back, or gone on from,
/// is durable in the log.
#[derive(Debug)]
pub(crate) struct WriteAhead(Option<Sender<LogOrder>>);

impl WriteAhead {
    /// Without a log nothing is waited for.
    pub(crate) const fn new(log: Option<Sender<LogOrder>>) -> Self {
        Self(log)
    }

    /// Waits until everything that was ordered of the log is durable, and a record of each of these blocks.
    pub(crate) fn secure(&self, blocks: &[Arc<Layer>]) -> Result<(), Failure> {
        let Some(log) = &self.0 else { return Ok(()) };
        let (reply, answer) = bounded(1);
        // The log's thread lives as long as this sender, and answers every order: but for a panic.
        let _gone = log.send(LogOrder::Secure { blocks: blocks.to_vec(), reply });
        answer.recv().unwrap_or_else(|_| Err(Failure::Panicked("the log's thread is gone".to_owned())))
    }
}

/// Who is told when the records of a batch are durable.
enum Waiter {
    Block { acknowledge: Acknowledge, permit: Option<Permit> },
    Canonical(Sender<Result<(), CanonicalError>>),
    Committer(Sender<Result<(), Failure>>),
}

impl Waiter {
    fn tell(self, result: Result<(), Failure>) {
        // Nobody may be waiting.
        match self {
            Self::Block { acknowledge, permit } => {
                // Before the acknowledgement is out: whoever has it finds the room.
                drop(permit);
                drop(acknowledge.send(result));
            }
            Self::Canonical(reply) => drop(reply.send(result.map_err(CanonicalError::Failed))),
            Self::Committer(reply) => drop(reply.send(result)),
        }
    }
}

/// The record of a block.
fn record(layer: &Layer, by_list: bool) -> Record {
    let redo = match &layer.bal {
        Some(raw) if by_list => Redo::Bal(raw.clone()),
        bal => Redo::Diff { diff: layer.diff.forward(), bal: bal.clone() },
    };
    Record::Block(BlockRecord { parent_hash: layer.parent.hash, anchor: layer.anchor, redo })
}

/// The log, and what is done with it.
pub(crate) struct LogKeeper<L> {
    pub(crate) log: L,
    /// How many orders one sync carries out at most.
    pub(crate) records_per_sync: NonZeroUsize,
    /// The blocks of which the log is certain to hold a record.
    pub(crate) recorded: HashSet<BlockNumHash>,
}

impl<L> fmt::Debug for LogKeeper<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogKeeper").field("records_per_sync", &self.records_per_sync).finish_non_exhaustive()
    }
}

/// What a batch of orders comes to.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    waiters: Vec<Waiter>,
    /// Of the batch's last order: it is carried out behind the others.
    prune: Option<BlockNumber>,
}

impl<L: RecordLog> LogKeeper<L> {
    /// Runs until nobody orders any more; what was ordered is done then. `failed` is told of the first failure.
    pub(crate) fn run(mut self, orders: &Receiver<LogOrder>, failed: &dyn Fn(Failure)) {
        let mut state: Result<(), Failure> = Ok(());
        let note = |state: &mut Result<(), Failure>, result: Result<(), Failure>| {
            if let (Ok(()), Err(failure)) = (&state, &result) {
                failed(failure.clone());
                *state = result;
            }
        };
        while let Ok(first) = orders.recv() {
            let batch = self.gather(first, orders);
            if state.is_ok() {
                note(&mut state, guarded(|| self.write(&batch.records)));
            }
            for waiter in batch.waiters {
                waiter.tell(state.clone());
            }
            // Nobody waits for this.
            if let (Ok(()), Some(up_to)) = (&state, batch.prune) {
                self.recorded.retain(|block| block.number > up_to);
                note(&mut state, guarded(|| self.log.prune(up_to)));
            }
        }
    }

    /// The orders that are there, up to the first pruning.
    fn gather(&mut self, first: LogOrder, orders: &Receiver<LogOrder>) -> Batch {
        let mut batch = Batch::default();
        for order in std::iter::once(first).chain(orders.try_iter()).take(self.records_per_sync.get()) {
            self.add(order, &mut batch);
            if batch.prune.is_some() {
                break;
            }
        }
        batch
    }

    fn add(&mut self, order: LogOrder, batch: &mut Batch) {
        match order {
            LogOrder::Block { layer, by_list, acknowledge, permit } => {
                self.recorded.insert(layer.anchor.block);
                batch.waiters.push(Waiter::Block { acknowledge, permit });
                batch.records.push(record(&layer, by_list));
            }
            LogOrder::Canonical { head, reply } => {
                batch.waiters.extend(reply.map(Waiter::Canonical));
                batch.records.push(Record::Canonical(head));
            }
            LogOrder::Secure { blocks, reply } => {
                for layer in blocks {
                    if self.recorded.insert(layer.anchor.block) {
                        // Whether its list alone leads to its state is not known any more.
                        batch.records.push(record(&layer, false));
                    }
                }
                batch.waiters.push(Waiter::Committer(reply));
            }
            LogOrder::Prune(up_to) => batch.prune = Some(up_to),
        }
    }

    fn write(&mut self, records: &[Record]) -> Result<(), L::Error> {
        records.iter().try_for_each(|record| self.log.append(record))?;
        if records.is_empty() { Ok(()) } else { observe::syncing(records.len(), || self.log.sync()) }
    }
}

/// A panic must not leave those waiting who wait for a record.
fn guarded<E: std::error::Error + Send + Sync + 'static>(work: impl FnOnce() -> Result<(), E>) -> Result<(), Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| Failure::Log(Arc::new(error))),
        Err(payload) => Err(Failure::Panicked(panic_message(payload.as_ref()))),
    }
}
