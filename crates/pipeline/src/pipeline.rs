//! The pipeline as its owner sees it.
//!
//! Invariants:
//! 1. `begin` never waits for an execution, a fold or a commit: the calculator that answers it does no long work.
//! 2. Dropping the pipeline stops every block in flight and joins every thread. What was judged valid is recorded then, if
//!    there is a log; what was handed to the store is in it, which without a log is everything canonical.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use alloy_primitives::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use foldgate_core::{
    BalStore, BlockHash, BlockNumHash, CacheStats, Cached, Forest, PageCache, RecordLog, StateAnchor, TrieReader,
    TrieStore, trie::DEFAULT_NODE_BYTES,
};

use crate::{
    calculator::{Backlog, Calculator, Control, Inbox, Request},
    committer::Committer,
    config::{Flush, PipelineConfig},
    counters::{CounterSnapshot, Counters},
    durability::{LogKeeper, LogOrder, WriteAhead},
    ground::Chain,
    handle::{AttemptId, BlockHandle, Execution, Shared},
    jobs::JobMessage,
    permits::Permits,
    pool::Pool,
    recovery::{Recovered, RecoveryError, RecoveryReport, recover},
    request::BlockRequest,
    retention::Retention,
    tree::Tree,
    verdict::{Failure, Verdict},
};

/// Why a pipeline could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError<E: std::error::Error + 'static> {
    /// The store failed, or holds no state to start from.
    #[error("opening the durable state: {0}")]
    Store(#[source] E),
    /// What the record log holds beyond the store could not be recovered.
    #[error("recovering from the record log: {0}")]
    Recovery(#[from] RecoveryError),
    /// A thread could not be started.
    #[error("starting a thread: {0}")]
    Thread(#[source] io::Error),
}

/// Why a block was not begun. None of these is a verdict on it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BeginError {
    /// As many blocks are under way as the settings allow, or those that are not in the store yet take as much memory:
    /// wait for room and try again.
    #[error("{max} blocks are under way already, or memory is full of blocks that are not in the store yet")]
    Busy {
        /// The limit.
        max: usize,
    },
    /// The block is in flight already.
    #[error("block {0} is in flight already")]
    InFlight(BlockNumHash),
    /// A genesis has no parent: it is loaded, not calculated.
    #[error("a genesis is loaded into the store, not calculated")]
    Genesis,
    /// The parent was judged invalid.
    #[error("its parent {0} is invalid")]
    ParentInvalid(BlockNumHash),
    /// The parent is further below the durable tip than [`PipelineConfig::unwind_depth`], or on a branch that was dropped
    /// for that.
    #[error("its parent {parent} is not reachable from the durable tip {tip}")]
    BelowTip {
        /// The parent.
        parent: BlockNumHash,
        /// The durable tip.
        tip: BlockNumHash,
    },
    /// A commit failed earlier: no state can be trusted to become durable any more.
    #[error("the pipeline is broken: {0}")]
    Broken(Failure),
    /// The pipeline is shutting down.
    #[error("the pipeline is shutting down")]
    ShutDown,
}

/// Why a head could not be made canonical.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CanonicalError {
    /// The block was never judged valid here.
    #[error("block {0} is unknown")]
    Unknown(BlockHash),
    /// The block has no verdict yet.
    #[error("block {0} is not judged yet")]
    NotJudged(BlockNumHash),
    /// The block does not stand on the durable chain, as far below the tip as that may be left.
    #[error("block {block} does not descend from {of}, or from an ancestor of it that is in reach")]
    NotADescendant {
        /// The head asked for.
        block: BlockNumHash,
        /// The newest block handed to the store.
        of: BlockNumHash,
    },
    /// A commit failed.
    #[error(transparent)]
    Failed(Failure),
    /// The pipeline is shutting down.
    #[error("the pipeline is shutting down")]
    ShutDown,
}

/// The calculator's answer to a request.
#[derive(Debug)]
pub(crate) enum Admission {
    Started,
    Known(Verdict),
}

/// A block that was begun, or that needs no second beginning. `R` is the store's snapshot.
#[expect(clippy::large_enum_variant, reason = "nearly always the large one, and never kept")]
pub enum Begun<R: TrieReader> {
    /// The block is under way: execute it.
    Started(BlockHandle<R>),
    /// The block was delivered before, and this is its verdict.
    Known(Verdict),
}

impl<R: TrieReader> fmt::Debug for Begun<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started(handle) => f.debug_tuple("Started").field(handle).finish(),
            Self::Known(verdict) => f.debug_tuple("Known").field(verdict).finish(),
        }
    }
}

/// A durable state, and the chain up to it.
type Durable<S> = (Cached<<S as TrieStore>::Snapshot>, Chain);

/// The work of the log's thread.
type RunLog = Box<dyn FnOnce(Receiver<LogOrder>, Box<dyn Fn(Failure) + Send>) + Send>;

/// Computes the state roots of blocks while they execute.
///
/// All methods take `&self`; the pipeline may be shared between threads.
pub struct Pipeline<S: TrieStore> {
    requests: Sender<Request<S::Snapshot>>,
    results: Sender<Execution>,
    pub(crate) control: Sender<Control<S::Snapshot>>,
    counters: Arc<Counters>,
    cache: Arc<PageCache>,
    permits: Arc<Permits>,
    max_in_flight: usize,
    attempts: AtomicU64,
    recovery: RecoveryReport,
    // Dropped by `Drop` in this order: the calculator ends, then the committer, which needs the log, then the log, then the
    // pool.
    calculator: Option<JoinHandle<()>>,
    committer: Option<JoinHandle<()>>,
    log: Option<JoinHandle<()>>,
    pool: Option<Arc<Pool>>,
}

impl<S: TrieStore> fmt::Debug for Pipeline<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

impl<S: TrieStore> Pipeline<S> {
    /// Opens a pipeline on the store's durable state, without a record log: a block is durable, and acknowledged, only
    /// when the store has it. Each canonical block is committed at once ([`Flush::Synchronous`]); valid blocks that are
    /// not canonical do not survive the pipeline. Good for tools and for stores in memory.
    ///
    /// While it is open, nobody else may write to the store.
    ///
    /// # Errors
    /// If the store is empty or fails, or a thread cannot be started.
    pub fn open(store: Arc<S>, config: PipelineConfig) -> Result<Self, OpenError<S::Error>>
    where
        S: BalStore,
    {
        let (base, chain) = Self::ground(&*store, &config)?;
        let pool = Arc::new(Pool::new(config.threads, config.pin_threads).map_err(OpenError::Thread)?);
        let recovered = Recovered::nothing(base.anchor().block);
        Self::start(store, config.with_flush(Flush::Synchronous), base, chain, pool, recovered, None)
    }

    /// Opens a pipeline on the store's durable state and the record log that belongs to it.
    ///
    /// What the log holds beside and above the store's chain is folded again first, each block's root held to its record:
    /// every block that was acknowledged is there, but for branches that left the chain deeper than
    /// [`PipelineConfig::unwind_depth`], and the canonical head is what it was. Where that lies beside the store's chain, a
    /// reorganisation was cut off: it is carried out. From then on a valid block is acknowledged
    /// when its record is durable, and the store is written in the background ([`Flush`]).
    ///
    /// While it is open, nobody else may write to the store.
    ///
    /// # Errors
    /// If the store is empty or fails, what the log holds does not lead to the states that were judged valid, or a
    /// thread cannot be started.
    pub fn open_with_log<L: RecordLog>(
        store: Arc<S>,
        mut log: L,
        config: PipelineConfig,
    ) -> Result<Self, OpenError<S::Error>>
    where
        S: BalStore,
    {
        let (base, chain) = Self::ground(&*store, &config)?;
        let pool = Arc::new(Pool::new(config.threads, config.pin_threads).map_err(OpenError::Thread)?);
        let mut recovered =
            pool.install(|options| recover(&*store, &base, &chain, &mut log, config.canonical, options))?;
        let recorded = std::mem::take(&mut recovered.recorded);
        let keeper = LogKeeper { log, records_per_sync: config.records_per_sync, recorded };
        let run: RunLog = Box::new(move |orders, failed| keeper.run(&orders, &*failed));
        Self::start(store, config, base, chain, pool, recovered, Some(run))
    }

    /// The durable state, behind a new page cache.
    fn ground(store: &S, config: &PipelineConfig) -> Result<Durable<S>, OpenError<S::Error>> {
        let snapshot = store.snapshot().map_err(OpenError::Store)?;
        let cache = Arc::new(PageCache::new(config.page_cache_bytes));
        let tip = snapshot.anchor();
        cache.reset(tip.block);
        let base = Cached::new(snapshot, cache).with_tries(Forest::new(DEFAULT_NODE_BYTES).unloaded());
        Ok((base, Chain::read(store, tip, config.unwind_depth).map_err(OpenError::Store)?))
    }

    fn start(
        store: Arc<S>,
        config: PipelineConfig,
        base: Cached<S::Snapshot>,
        chain: Chain,
        pool: Arc<Pool>,
        recovered: Recovered,
        run_log: Option<RunLog>,
    ) -> Result<Self, OpenError<S::Error>>
    where
        S: BalStore,
    {
        let cache = Arc::clone(base.cache());
        let (requests, requests_in) = unbounded();
        let (results, results_in) = unbounded();
        let (answers, answers_in) = unbounded();
        let (control, control_in) = unbounded();
        let (orders, orders_in) = unbounded();
        let counters = Arc::new(Counters::default());
        let max_in_flight = config.max_in_flight;
        let permits = Permits::new(max_in_flight);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(format!("foldgate-{name}")).spawn(work).map_err(OpenError::Thread)
        };
        let (log, records) = match run_log {
            None => (None, None),
            Some(run) => {
                let (records, records_in) = unbounded();
                let failures = answers.clone();
                let failed = Box::new(move |failure| {
                    // The calculator is gone only at shutdown.
                    let _shut_down = failures.send(JobMessage::Broken(failure));
                });
                (Some(spawn("log", Box::new(move || run(records_in, failed)))?), Some(records))
            }
        };
        let committer = Committer {
            store: Arc::clone(&store),
            cache: Arc::clone(&cache),
            base: base.clone(),
            pool: Arc::clone(&pool),
            log: WriteAhead::new(records.clone()),
            unwind_depth: config.unwind_depth,
            retention: Retention::new(config.keep_bals.map(|keep| keep.max(config.unwind_depth))),
        };
        let shadow_cache = Arc::new(PageCache::new(if config.shadow { config.page_cache_bytes } else { 0 }));
        shadow_cache.reset(base.anchor().block);
        let mut tree = Tree::new(base, chain, config.max_remembered);
        recovered.put_into(&mut tree);
        let mut backlog = Backlog::new(tree.tip(), records, Arc::clone(&permits));
        for layer in recovered.blocks.iter().filter_map(|valid| valid.layer.as_ref()) {
            backlog.hold(layer, None);
        }
        let report = recovered.report;
        let calculator = Calculator::<S> {
            shadow_cache,
            tree,
            config,
            counters: Arc::clone(&counters),
            pool: Arc::clone(&pool),
            answers: answers.clone(),
            orders,
            store,
            broken: None,
            reorg: None,
            heads: std::collections::VecDeque::new(),
            lost_ways: Vec::new(),
            viewers: Vec::new(),
            canonical_waiters: Vec::new(),
            flush_waiters: Vec::new(),
            touched: std::collections::VecDeque::new(),
            backlog,
        };
        let inbox = Inbox { requests: requests_in, results: results_in, answers: answers_in, control: control_in };
        let committer = spawn("committer", Box::new(move || committer.run(&orders_in, &answers)))?;
        let calculator = spawn("calculator", Box::new(move || calculator.run(&inbox, recovered.head.hash)))?;
        Ok(Self {
            requests,
            results,
            control,
            counters,
            cache,
            permits,
            max_in_flight: max_in_flight.get(),
            attempts: AtomicU64::new(0),
            recovery: report,
            calculator: Some(calculator),
            committer: Some(committer),
            log,
            pool: Some(pool),
        })
    }

    /// Begins a block, at its arrival: its list is decoded at once, its records are read ahead, and its fold starts as
    /// soon as its parent's state is committed in memory, whatever its execution does.
    ///
    /// # Errors
    /// If the block cannot be begun now: see [`BeginError`].
    pub fn begin(&self, request: BlockRequest) -> Result<Begun<S::Snapshot>, BeginError> {
        let permit = self.permits.try_acquire().ok_or(BeginError::Busy { max: self.max_in_flight })?;
        // Relaxed: the number only has to be unique.
        let attempt = AttemptId(self.attempts.fetch_add(1, Ordering::Relaxed));
        let (shared, ticket) = Shared::new(attempt, request.facts);
        let (reply, answer) = bounded(1);
        let message = Request { shared: Arc::clone(&shared), request, permit, reply };
        self.requests.send(message).map_err(|_| BeginError::ShutDown)?;
        match answer.recv().map_err(|_| BeginError::ShutDown)?? {
            Admission::Started => Ok(Begun::Started(BlockHandle::new(shared, self.results.clone(), ticket))),
            Admission::Known(verdict) => Ok(Begun::Known(verdict)),
        }
    }

    /// Gives a block in flight that came without a list its raw access list, which was found elsewhere meanwhile. It is
    /// folded ahead from then on. A list that comes when the block's execution has ended is dropped, and counted
    /// ([`CounterSnapshot::bals_late`]), as is one for a block that is not in flight, or that takes none.
    pub fn supply_bal(&self, block: BlockHash, raw: Bytes) {
        // The calculator is gone only after a panic: every other call says so.
        let _gone = self.control.send(Control::Bal { block, raw });
    }

    /// Waits until [`Pipeline::begin`] would not be refused as busy, at most so long. Says whether it would not.
    pub fn wait_for_room(&self, timeout: Duration) -> bool {
        self.permits.wait_for_room(timeout)
    }

    /// Makes a valid block the canonical head. Returns when it will be the head after a kill of the process, too: with a
    /// log and [`Flush::Background`] when that is recorded, which waits for no commit; otherwise when the store has the
    /// block and its ancestors.
    ///
    /// Among blocks that were not handed to the store yet, nothing else happens.
    ///
    /// Where its branch left the durable chain below the tip, the store goes back to the common ancestor first, at most
    /// [`PipelineConfig::unwind_depth`] blocks, and this returns when the store has the block. The blocks left stay in memory, and can be made canonical again. An
    /// ancestor of the canonical head is canonical already: the head does not move back to it.
    ///
    /// # Errors
    /// If the block was not judged valid here, does not stand on a block that the head may go back to, or going back or a
    /// commit fails.
    pub fn set_canonical(&self, head: BlockHash) -> Result<(), CanonicalError> {
        let (reply, answer) = bounded(1);
        self.control.send(Control::SetCanonical { head, reply }).map_err(|_| CanonicalError::ShutDown)?;
        answer.recv().map_err(|_| CanonicalError::ShutDown)?
    }

    /// Hands every canonical block that was judged to the store, and waits until it has them. Gives the durable tip.
    ///
    /// # Errors
    /// If a commit failed.
    pub fn flush(&self) -> Result<StateAnchor, Failure> {
        let (reply, answer) = bounded(1);
        let sent = self.control.send(Control::Flush { reply });
        let panicked = || Failure::Panicked("the calculator's thread is gone".to_owned());
        sent.map_err(|_| panicked())?;
        answer.recv().map_err(|_| panicked())?
    }

    /// What opening recovered from the record log.
    pub const fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    /// What was done so far.
    pub fn counters(&self) -> CounterSnapshot {
        self.counters.snapshot()
    }

    /// What the page cache did and holds.
    pub fn page_cache(&self) -> CacheStats {
        self.cache.stats()
    }

    /// How many blocks are between their arrival and their end: judged and, with a log, recorded; without one, where
    /// canonical, in the store.
    pub fn in_flight(&self) -> usize {
        self.permits.used()
    }
}

impl<S: TrieStore> Drop for Pipeline<S> {
    fn drop(&mut self) {
        // The calculator may be gone after a panic; its thread is joined all the same.
        let _gone = self.control.send(Control::Shutdown);
        for thread in [self.calculator.take(), self.committer.take(), self.log.take()].into_iter().flatten() {
            let _panicked = thread.join();
        }
        // The last reference: waits for the workers.
        drop(self.pool.take());
    }
}
