//! The long work, done on the pipeline's thread pool and answered by one message each: preparing an access list,
//! warming up, folding, comparing, finding the way to a block beside the durable chain.
//!
//! Invariants:
//! 1. Every job answers exactly once, also when it panics; but a list's warm-up, for which nobody waits, answers with a
//!    panic alone, and a block that was stopped before its job began needs no answer any more: its job is skipped.
//! 2. A job shares nothing with the calculator but values: it is handed views and gives back values.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use alloy_primitives::{B256, Bytes};
use crossbeam_channel::Sender;
use foldgate_bal::{Bal, BalError, BalLimits, HashMismatch};
use foldgate_core::{
    AccountInfo, BlockFacts, BlockNumHash, Cached, HashedPostState, Layer, Overlay, ReadAhead, StateAnchor,
    TouchedAccount, TrieReader, TrieStore, Version, Warmed, WrittenKey, compute_way, resolve, resolve_with,
    trie::{FoldError, FoldOptions, FoldOutcome, fold},
};

use crate::{
    committer::{ReorgFailure, Reorganised},
    handle::{AttemptId, Shared},
    observe::Work,
    pool::{Pool, Stopwatch, Turn},
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
    /// What executed writes name was read ahead.
    ReadAhead {
        attempt: AttemptId,
        ahead: Box<ReadAhead<S::Snapshot>>,
        /// How many accounts and slots; 0 where it was stopped, or a read failed.
        read: u64,
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
    /// A record could not be made durable, or the store not be pruned.
    Broken(Failure),
    Reorganised {
        result: Result<Reorganised<S>, ReorgFailure>,
    },
    /// The way from a durable state to a block beside or below it.
    Grounded {
        block: BlockNumHash,
        base: Cached<S::Snapshot>,
        /// The step of the durable state at which it was asked for.
        step: u64,
        way: Result<Arc<Layer>, Failure>,
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

/// Brings in what a list names: the records, read or written, and the rows on the paths of what it changes. Stops when
/// told to, and at the first failure: whoever needs the record will meet it again.
pub(crate) fn warm_up<R: TrieReader>(bal: &Bal, reader: &Cached<R>, tries: Option<&Version>, stop: impl Fn() -> bool) {
    let _as_far_as_it_got = reader.warm(&bal.touched(), tries, stop);
}

/// Brings in what written keys name, as [`warm_up`] does what a list names. Gives how many keys that were, if all of it went
/// well: whoever needs what is missing will meet the failure again.
pub(crate) fn read_ahead<R: TrieReader>(
    ahead: &mut ReadAhead<R>,
    written: Vec<WrittenKey>,
    tries: Option<&Version>,
    stop: impl Fn() -> bool,
) -> u64 {
    let keys = written.len() as u64;
    match ahead.read(&TouchedAccount::of_written(written), tries, stop) {
        Ok(Warmed::Whole) => keys,
        Ok(Warmed::Stopped) | Err(_) => 0,
    }
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

/// Finds the way from the durable state to a block: back to an ancestor, and forward through a branch.
pub(crate) fn find_way<S: TrieStore>(
    store: &S,
    base: &Cached<S::Snapshot>,
    ancestor: StateAnchor,
    branch: &[Arc<Layer>],
    options: &FoldOptions,
) -> Result<Arc<Layer>, Failure> {
    let way = compute_way(store, base, ancestor, branch, options);
    way.map(Arc::new).map_err(|error| Failure::Unwind { to: ancestor.block, error: Arc::new(error) })
}

impl Pool {
    /// Runs a job of a block; its answer, or its panic, goes to the calculator.
    pub(crate) fn spawn<S: TrieStore>(
        &self,
        turn: Turn,
        work: Work,
        answers: &Sender<JobMessage<S>>,
        shared: &Arc<Shared<S::Snapshot>>,
        job: impl FnOnce() -> Option<JobMessage<S>> + Send + 'static,
    ) {
        let (answers, shared) = (answers.clone(), Arc::clone(shared));
        // The calculator stopped the block, or the message of its handle's end is on the way; or it was found valid while
        // a warm-up was waiting for a thread.
        let is_over = {
            let shared = Arc::clone(&shared);
            move || shared.is_over()
        };
        let job = move || {
            let attempt = shared.attempt;
            let begin = Stopwatch::start();
            let answer = match work.span(shared.facts.block).in_scope(|| catch_unwind(AssertUnwindSafe(job))) {
                Ok(answer) => answer,
                Err(payload) => Some(JobMessage::Panicked { attempt, message: panic_message(payload.as_ref()) }),
            };
            work.took(begin.elapsed());
            if let Some(answer) = answer {
                // The calculator is gone only at shutdown, when nobody waits for the answer.
                let _shut_down = answers.send(answer);
            }
        };
        self.give(turn, is_over, job);
    }

    /// Runs a job of no block; its answer goes to the calculator. `panicked` makes one of a panic.
    pub(crate) fn spawn_free<S: TrieStore>(
        &self,
        turn: Turn,
        answers: &Sender<JobMessage<S>>,
        job: impl FnOnce() -> JobMessage<S> + Send + 'static,
        panicked: impl FnOnce(Failure) -> JobMessage<S> + Send + 'static,
    ) {
        let answers = answers.clone();
        let job = move || {
            let answer = catch_unwind(AssertUnwindSafe(job))
                .unwrap_or_else(|payload| panicked(Failure::Panicked(panic_message(payload.as_ref()))));
            // The calculator is gone only at shutdown, when nobody waits for the answer.
            let _shut_down = answers.send(answer);
        };
        self.give(turn, || false, job);
    }
}

pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
