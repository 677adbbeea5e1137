//! The long work, done on the pipeline's thread pool and answered by one message each: preparing an access list,
//! warming up, folding, comparing. And the commit, which has a thread of its own.
//!
//! Invariants:
//! 1. Every job answers exactly once, also when it panics; but a block that was stopped before its job began needs no
//!    answer any more, and its job is skipped.
//! 2. A job shares nothing with the calculator but values: it is handed views and gives back values.

use std::{
    any::Any,
    io,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use alloy_primitives::{B256, Bytes};
use crossbeam_channel::{Receiver, Sender};
use foldgate_bal::{Bal, BalError, BalLimits, HashMismatch};
use foldgate_core::{
    AccountInfo, BlockFacts, Cached, CommitBatch, HashedPostState, Layer, Overlay, PageCache, TrieReader, TrieStore,
    Version, resolve, resolve_with,
    trie::{FoldError, FoldOptions, FoldOutcome, fold},
};

use parking_lot::Mutex;

use crate::{
    handle::{AttemptId, Shared},
    observe::{self, Work},
    shadow::{Compared, Shadowed},
    verdict::Failure,
};

/// What preparing an access list found.
#[derive(Debug)]
pub(crate) enum Prepared {
    Good(Arc<Bal>),
    /// The hash is not the one that the header says.
    WrongHash {
        got: B256,
        expected: B256,
    },
    Malformed(Arc<BalError>),
}

/// A finished fold with the time that its two parts took.
#[derive(Debug)]
pub(crate) struct Folded {
    pub(crate) outcome: FoldOutcome,
    /// From when the leaves were at hand until a thread took them up.
    pub(crate) gate_wait: Duration,
    pub(crate) resolve: Duration,
    pub(crate) fold: Duration,
}

/// The answer of a job.
#[derive(Debug)]
pub(crate) enum JobMessage<S: TrieStore> {
    Prepared {
        attempt: AttemptId,
        prepared: Prepared,
        took: Duration,
    },
    Folded {
        attempt: AttemptId,
        generation: u32,
        folded: Result<Folded, FoldError<S::Error>>,
    },
    /// Whether the executed writes lead to the state that the list claimed.
    Compared {
        attempt: AttemptId,
        generation: u32,
        equal: Result<bool, S::Error>,
    },
    Shadowed {
        attempt: AttemptId,
        shadowed: Result<Shadowed, S::Error>,
    },
    HeldToShadow {
        attempt: AttemptId,
        compared: Compared,
    },
    Panicked {
        attempt: AttemptId,
        message: String,
    },
    Committed {
        /// Oldest first, at least one.
        layers: Vec<Arc<Layer>>,
        result: Result<Cached<S::Snapshot>, Failure>,
    },
}

/// Decodes and validates a raw list, and hashes its keys for leaves and warm-up alike.
pub(crate) fn prepare(raw: Bytes, facts: &BlockFacts) -> Prepared {
    match Bal::decode_checked(raw, facts.expected_bal_hash, &BalLimits::from(facts)) {
        Ok(bal) => Prepared::Good(Arc::new(bal)),
        Err(BalError::Hash(HashMismatch { got, expected })) => Prepared::WrongHash { got, expected },
        Err(error) => Prepared::Malformed(Arc::new(error)),
    }
}

/// Brings what a list names into the page cache: the records, read or written, and the rows on the paths of what it
/// changes. Stops when told to, and at the first failure: whoever needs the record will meet it again.
pub(crate) fn warm_up<R: TrieReader>(bal: &Bal, reader: &Cached<R>, tries: Option<&Version>, stop: impl Fn() -> bool) {
    let _as_far_as_it_got = reader.warm(&bal.touched(), tries, stop);
}

/// Resolves accumulated changes, which were at hand since `ready`, against the parent's state and folds them.
pub(crate) fn resolve_and_fold<R: TrieReader>(
    state: &HashedPostState,
    parent: &Overlay<Cached<R>>,
    options: &FoldOptions,
    ready: Instant,
) -> Result<Folded, FoldError<R::Error>> {
    let begin = Instant::now();
    let changes = resolve_with(state, parent, options).map_err(FoldError::Read)?;
    let resolved = Instant::now();
    let outcome = fold(parent, changes, options)?;
    Ok(Folded { outcome, gate_wait: begin - ready, resolve: resolved - begin, fold: resolved.elapsed() })
}

/// Whether executed writes lead from the parent's state to the state that was folded.
pub(crate) fn leads_to<R: TrieReader>(
    executed: &HashedPostState,
    parent: &Overlay<Cached<R>>,
    folded: &FoldOutcome,
) -> Result<bool, R::Error> {
    let changes = resolve(executed, parent)?;
    let accounts = &folded.diff.accounts;
    Ok(changes.codes == folded.diff.codes
        && changes.accounts.len() == accounts.len()
        && changes.accounts.iter().zip(accounts).all(|(executed, folded)| {
            executed.hashed_address == folded.hashed_address
                && executed.new == folded.new.map(AccountInfo::from)
                && executed.slots == folded.slots
        }))
}

/// The threads for the long work. Dropping it waits for the jobs under way and for the threads.
#[derive(Debug)]
pub(crate) struct Pool {
    /// `None` only while dropping.
    pool: Option<rayon::ThreadPool>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Pool {
    pub(crate) fn new(threads: NonZeroUsize) -> io::Result<Self> {
        let handles = Arc::new(Mutex::new(Vec::new()));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.get())
            .spawn_handler(|worker| {
                let name = format!("foldgate-worker-{}", worker.index());
                handles.lock().push(thread::Builder::new().name(name).spawn(|| worker.run())?);
                Ok(())
            })
            .build()
            .map_err(io::Error::other)?;
        Ok(Self { pool: Some(pool), threads: handles })
    }

    /// Runs a job of a block; its answer, or its panic, goes to the calculator.
    pub(crate) fn spawn<S: TrieStore>(
        &self,
        work: Work,
        answers: &Sender<JobMessage<S>>,
        shared: &Arc<Shared<S::Snapshot>>,
        job: impl FnOnce() -> Option<JobMessage<S>> + Send + 'static,
    ) {
        let Some(pool) = &self.pool else { return };
        let (answers, shared) = (answers.clone(), Arc::clone(shared));
        pool.spawn(move || {
            // The calculator stopped the block, or the message of its handle's end is on the way.
            if shared.gate.token().is_cancelled() {
                return;
            }
            let attempt = shared.attempt;
            let begin = Instant::now();
            let answer = match work.span(shared.facts.block).in_scope(|| catch_unwind(AssertUnwindSafe(job))) {
                Ok(answer) => answer,
                Err(payload) => Some(JobMessage::Panicked { attempt, message: panic_message(payload.as_ref()) }),
            };
            work.took(begin.elapsed());
            if let Some(answer) = answer {
                // The calculator is gone only at shutdown, when nobody waits for the answer.
                let _shut_down = answers.send(answer);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // The pool first: its threads end when the jobs under way have ended.
        drop(self.pool.take());
        for thread in self.threads.lock().drain(..) {
            // A worker's panics were caught in its jobs.
            let _caught = thread.join();
        }
    }
}

pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// The most blocks that one commit makes durable.
const MAX_MERGED: usize = 32;

/// What to commit of blocks that stand on each other: all at once, so that of what several of them changed only the
/// newest is written.
fn batches(run: &[Arc<Layer>]) -> Vec<CommitBatch> {
    match Layer::merged_batch(run) {
        Ok(merged) => merged.into_iter().collect(),
        // Their tries were folded over different views: each is committed for itself.
        Err(_) => run.iter().map(|layer| layer.to_batch()).collect(),
    }
}

/// The committer's loop: makes blocks durable in the order in which they come, and together those that have gathered
/// while it was at work; the cache follows. After a failure it commits nothing more.
pub(crate) fn commit_loop<S: TrieStore>(
    store: &S,
    cache: &Arc<PageCache>,
    layers: &Receiver<Arc<Layer>>,
    answers: &Sender<JobMessage<S>>,
) {
    while let Ok(first) = layers.recv() {
        // What was queued meanwhile goes along.
        let run: Vec<_> = std::iter::once(first).chain(layers.try_iter().take(MAX_MERGED - 1)).collect();
        let mut tip = run[0].anchor.block;
        let begin = Instant::now();
        let commit = || -> Result<_, S::Error> {
            for batch in batches(&run) {
                tip = batch.blocks.last().map_or(tip, |block| block.anchor.block);
                store.commit(&batch)?;
                cache.advance(batch.parent, tip, &batch.rows);
            }
            Ok(Cached::new(store.snapshot()?, Arc::clone(cache)))
        };
        // A panic must not leave those waiting who wait for the block to become durable.
        let result = match catch_unwind(AssertUnwindSafe(commit)) {
            Ok(Ok(base)) => Ok(base),
            Ok(Err(error)) => Err(Failure::Commit { block: tip, error: Arc::new(error) }),
            Err(payload) => Err(Failure::Panicked(panic_message(payload.as_ref()))),
        };
        let failed = result.is_err();
        observe::committed(run.len(), tip, begin.elapsed());
        // The calculator is gone at shutdown; what was acknowledged is committed all the same.
        let _shut_down = answers.send(JobMessage::Committed { layers: run, result });
        if failed {
            return;
        }
    }
}
