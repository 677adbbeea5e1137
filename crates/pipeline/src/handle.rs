//! The executor's side of one block: what it reads, what it sends, and how it waits for the verdict.
//!
//! Invariants:
//! 1. One producer per block: the handle cannot be cloned, and `finish`, `reject`, `fail` and `stop` consume it.
//! 2. Dropping the handle without any of them cancels the block and wakes an executor that waits in a read.
//! 3. Exactly one closing message goes to the calculator, whatever happens.
//! 4. What is written is told ahead of that only when the calculator asks for it, so that many writes go together, and
//!    nothing is waited for.

use std::{
    error::Error,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use foldgate_bal::Bal;
use foldgate_core::{
    BlockAccessIndex, BlockFacts, EmptyAccounts, HashedPostState, KeyHasher, StateWrites, TrieReader, WrittenKey,
};

use crate::{
    durability::Acknowledgement,
    gate::StateGate,
    halt::{CancelToken, Halt},
    request::BlockResult,
    verdict::{BlockError, Failure, Outcome},
    view::{ParentState, StateView},
};

/// Names one attempt at a block: a cancelled block may begin again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct AttemptId(pub(crate) u64);

/// What handle, calculator and jobs share of one attempt at a block.
#[derive(Debug)]
pub(crate) struct Shared<R: TrieReader> {
    pub(crate) attempt: AttemptId,
    pub(crate) facts: BlockFacts,
    pub(crate) gate: Arc<StateGate<StateView<R>>>,
    pub(crate) read_failure: Arc<OnceLock<Arc<R::Error>>>,
    /// The block's list once it is prepared, also where it is dropped later: the hashes of its keys stay right.
    pub(crate) listed: Arc<OnceLock<Arc<Bal>>>,
    /// How long the block's warm-up took, once it has ended.
    pub(crate) warm_up: OnceLock<Duration>,
    /// Whether the calculator asks for what was written. It sets this, the handle takes it back with its answer.
    pub(crate) asks_for_writes: AtomicBool,
    /// Whether the block's fold goes before what is still to be read ahead for it.
    pub(crate) fold_first: AtomicBool,
    /// Whether the block was found valid: what would be read ahead for it serves nobody any more.
    pub(crate) valid: AtomicBool,
    /// Room for the one outcome.
    pub(crate) outcome: Sender<Outcome>,
    /// Room for the one acknowledgement.
    pub(crate) acknowledge: Sender<Result<(), Failure>>,
}

impl<R: TrieReader> Shared<R> {
    /// A new attempt, and the ticket that waits for what comes of it.
    pub(crate) fn new(attempt: AttemptId, facts: BlockFacts) -> (Arc<Self>, VerdictTicket) {
        let (outcome, outcome_in) = bounded(1);
        let (acknowledge, acknowledged) = bounded(1);
        let shared = Arc::new(Self {
            attempt,
            facts,
            gate: Arc::new(StateGate::new(CancelToken::default())),
            read_failure: Arc::default(),
            listed: Arc::default(),
            warm_up: OnceLock::new(),
            asks_for_writes: AtomicBool::new(false),
            fold_first: AtomicBool::new(false),
            valid: AtomicBool::new(false),
            outcome,
            acknowledge,
        });
        (shared, VerdictTicket { outcome: outcome_in, acknowledged })
    }

    /// Whether what was not read ahead for the block yet need not be.
    pub(crate) fn needs_no_reading(&self) -> bool {
        // Relaxed: it only saves work.
        self.fold_first.load(Ordering::Relaxed) || self.is_over()
    }

    /// Whether the block has ended, so that nothing need be read ahead for it.
    pub(crate) fn is_over(&self) -> bool {
        // Relaxed: it only saves work.
        self.valid.load(Ordering::Relaxed) || self.gate.token().is_cancelled()
    }
}

/// A message of an executor.
#[derive(Debug)]
pub(crate) struct Execution {
    pub(crate) attempt: AttemptId,
    pub(crate) facts: BlockFacts,
    pub(crate) news: ExecutionNews,
}

/// All but the first are closing messages.
#[derive(Debug)]
pub(crate) enum ExecutionNews {
    /// What was written since the last such message.
    Wrote(Vec<WrittenKey>),
    /// `state` is `None` if the executor recorded nothing; `untold` was written since the last message.
    Finished {
        state: Option<Arc<HashedPostState>>,
        untold: Vec<WrittenKey>,
        result: BlockResult,
    },
    Rejected(Arc<dyn Error + Send + Sync>),
    Failed(Arc<dyn Error + Send + Sync>),
    Dropped,
}

/// A write that does not fit its block, or a block that was stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The block was stopped.
    #[error(transparent)]
    Halted(#[from] Halt),
    /// Indices are recorded in ascending order; one index may come several times.
    #[error("block access index {got} was recorded after {last}")]
    OutOfOrder {
        /// The index given.
        got: u64,
        /// The last one recorded.
        last: u64,
    },
    /// EIP-7928: the highest index is the number of transactions + 1.
    #[error("block access index {got} is beyond the block's last, {max}")]
    OutOfRange {
        /// The index given.
        got: u64,
        /// The highest one.
        max: u64,
    },
}

/// A block between its arrival and the end of its execution.
pub struct BlockHandle<R: TrieReader> {
    shared: Arc<Shared<R>>,
    results: Sender<Execution>,
    ticket: VerdictTicket,
    state: HashedPostState,
    /// What was written since the calculator was told; `None` until it asks.
    untold: Option<Vec<WrittenKey>>,
    hasher: KeyHasher,
    last_index: Option<u64>,
    closed: bool,
}

impl<R: TrieReader> fmt::Debug for BlockHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockHandle").field("facts", self.facts()).finish_non_exhaustive()
    }
}

impl<R: TrieReader> BlockHandle<R> {
    pub(crate) fn new(shared: Arc<Shared<R>>, results: Sender<Execution>, ticket: VerdictTicket) -> Self {
        Self {
            shared,
            results,
            ticket,
            state: HashedPostState::new(EmptyAccounts::Keep),
            untold: None,
            hasher: KeyHasher::default(),
            last_index: None,
            closed: false,
        }
    }

    /// The block's facts.
    pub fn facts(&self) -> &BlockFacts {
        &self.shared.facts
    }

    /// The parent's state: at hand at once, its reads wait until the parent has been executed.
    pub fn parent_state(&self) -> ParentState<R> {
        ParentState {
            gate: Arc::clone(&self.shared.gate),
            failure: Arc::clone(&self.shared.read_failure),
            listed: Arc::clone(&self.shared.listed),
        }
    }

    /// The token to check between transactions, or from other threads.
    pub fn cancel_token(&self) -> CancelToken {
        self.shared.gate.token().clone()
    }

    /// Fails if execution should stop.
    ///
    /// # Errors
    /// The reason to stop.
    pub fn check_cancelled(&self) -> Result<(), Halt> {
        self.shared.gate.token().check()
    }

    /// Records what execution changed at one block access index. Every index that changed something is recorded, in
    /// ascending order; an empty record is allowed, and tells an empty block from an executor that records nothing.
    ///
    /// # Errors
    /// If the block was stopped, or the index does not fit.
    pub fn record(&mut self, index: BlockAccessIndex, writes: &StateWrites) -> Result<(), RecordError> {
        self.check_cancelled()?;
        let (got, max) = (index.get(), self.shared.facts.tx_count.saturating_add(1));
        if got > max {
            return Err(RecordError::OutOfRange { got, max });
        }
        if let Some(last) = self.last_index.filter(|last| got < *last) {
            return Err(RecordError::OutOfOrder { got, last });
        }
        self.last_index = Some(got);
        let untold = &mut self.untold;
        self.state
            .apply_writes_noting(writes, &mut self.hasher, |key| untold.iter_mut().for_each(|keys| keys.push(key)));
        self.tell_writes();
        Ok(())
    }

    /// Tells the calculator what was written, if it asks and there is anything to tell.
    fn tell_writes(&mut self) {
        // Relaxed: what is told goes through the channel.
        let asks = &self.shared.asks_for_writes;
        let nothing = self.untold.as_ref().map_or(self.state.is_empty(), Vec::is_empty);
        if nothing || !asks.load(Ordering::Relaxed) || !asks.swap(false, Ordering::Relaxed) {
            return;
        }
        let written = match &mut self.untold {
            Some(untold) => std::mem::take(untold),
            untold => {
                *untold = Some(Vec::new());
                self.state.written_keys().collect()
            }
        };
        self.send(ExecutionNews::Wrote(written));
    }

    /// Ends the execution of a block that the executor found valid. The next block's execution may start at once.
    pub fn finish(mut self, result: BlockResult) -> VerdictTicket {
        let state = self.last_index.map(|_| Arc::new(std::mem::take(&mut self.state)));
        let untold = self.untold.take().unwrap_or_default();
        self.close(ExecutionNews::Finished { state, untold, result });
        self.ticket.again()
    }

    /// Ends the execution of a block that the executor found invalid. If a read of the parent's state had failed, the
    /// block stays unjudged all the same: executors may mistake a failed read for an invalid block.
    pub fn reject(mut self, reason: impl Error + Send + Sync + 'static) -> VerdictTicket {
        self.close(ExecutionNews::Rejected(Arc::new(reason)));
        self.ticket.again()
    }

    /// Ends an execution that failed for reasons of the machine: the block stays unjudged.
    pub fn fail(mut self, error: impl Error + Send + Sync + 'static) -> VerdictTicket {
        self.close(ExecutionNews::Failed(Arc::new(error)));
        self.ticket.again()
    }

    /// Stops: cancels the block if it was not stopped already, and gives the ticket that tells why.
    pub fn stop(mut self) -> VerdictTicket {
        self.close(ExecutionNews::Dropped);
        self.ticket.again()
    }

    fn close(&mut self, end: ExecutionNews) {
        self.closed = true;
        if matches!(end, ExecutionNews::Dropped) {
            // Here already, not only when the calculator gets the message: a clone of the view may be waiting.
            self.shared.gate.cancel(Halt::HandleDropped);
        }
        self.send(end);
    }

    fn send(&self, news: ExecutionNews) {
        let message = Execution { attempt: self.shared.attempt, facts: self.shared.facts, news };
        // The receiver is gone only when the pipeline is: then the ticket yields `Shutdown`.
        let _shut_down = self.results.send(message);
    }
}

impl<R: TrieReader> Drop for BlockHandle<R> {
    fn drop(&mut self) {
        if !self.closed {
            self.close(ExecutionNews::Dropped);
        }
    }
}

/// Waits for a block's verdict. Dropping it changes nothing.
///
/// The verdict comes first; that a valid block is durable is known a little later: [`VerdictTicket::acknowledgement`].
#[derive(Debug)]
pub struct VerdictTicket {
    pub(crate) outcome: Receiver<Outcome>,
    pub(crate) acknowledged: Receiver<Result<(), Failure>>,
}

impl VerdictTicket {
    /// What waits until the block, if it is valid, survives a kill of the process.
    pub fn acknowledgement(&self) -> Acknowledgement {
        Acknowledgement(self.acknowledged.clone())
    }

    fn again(&self) -> Self {
        Self { outcome: self.outcome.clone(), acknowledged: self.acknowledged.clone() }
    }

    /// Waits for the verdict.
    ///
    /// # Errors
    /// If the block was stopped, or the machine failed.
    pub fn wait(self) -> Outcome {
        self.outcome.recv().unwrap_or(Err(BlockError::Halted(Halt::Shutdown)))
    }

    /// The verdict, if it is there.
    pub fn try_wait(&self) -> Option<Outcome> {
        match self.outcome.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(crossbeam_channel::TryRecvError::Empty) => None,
            Err(crossbeam_channel::TryRecvError::Disconnected) => Some(Err(BlockError::Halted(Halt::Shutdown))),
        }
    }
}
