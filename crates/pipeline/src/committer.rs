//! The committer: a thread of its own that takes the store from state to state, one step at a time, and the page cache
//! with it.
//!
//! ```text
//!   Commit(layer)               with those that have gathered behind it: one store commit, a reverse diff for each block
//!   Reorganise { to, branch }   way back folded, root checked; what will be forgotten kept as layers, and in the log;
//!                               unwind; branch committed
//! ```
//!
//! Invariants:
//! 1. `base` is the store's tip, and its tries are those of that block.
//! 2. A reorganisation that fails before the store has moved changes nothing, and says so. After any other failure
//!    nothing more is written.
//! 3. With a log, the store takes no step before the log has what it takes to recover from a kill behind that step: of a
//!    commit, the records of its blocks and of the head that they lead to; of an unwind, the records of the blocks
//!    that are forgotten, too.
//! 4. Every order is answered, unless the calculator is gone: then what was acknowledged is committed all the same.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use crossbeam_channel::{Receiver, Sender};
use foldgate_core::{
    BalStore, Cached, CommitBatch, Layer, PageCache, StateAnchor, TrieReader, TrieStore, UnwindBatch, compute_way,
    unwound_layers,
};

use crate::{
    durability::WriteAhead,
    ground::Chain,
    jobs::{JobMessage, panic_message},
    observe,
    pool::Pool,
    retention::Retention,
    verdict::Failure,
};

/// What the calculator asks for.
#[derive(Debug)]
pub(crate) enum Order {
    /// Make a block durable that stands on the newest one ordered.
    Commit(Arc<Layer>),
    /// Leave the durable chain at an ancestor of its tip, for another branch.
    Reorganise {
        to: StateAnchor,
        /// Oldest first, at least one; the first stands on `to`.
        branch: Vec<Arc<Layer>>,
    },
}

/// What a reorganisation led to.
#[derive(Debug)]
pub(crate) struct Reorganised<S: TrieStore> {
    pub(crate) base: Cached<S::Snapshot>,
    pub(crate) chain: Chain,
    /// The blocks that were durable and are no more, oldest first, over the state that was gone back to.
    pub(crate) unwound: Vec<Arc<Layer>>,
    /// The blocks that are durable now, oldest first.
    pub(crate) branch: Vec<Arc<Layer>>,
    /// How many commits it took.
    pub(crate) store_commits: u64,
}

/// How a reorganisation failed.
#[derive(Debug)]
pub(crate) enum ReorgFailure {
    /// The store stayed as it was.
    Before(Failure),
    /// It did not.
    Midway(Failure),
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

/// See the module's documentation.
pub(crate) struct Committer<S: TrieStore> {
    pub(crate) store: Arc<S>,
    pub(crate) cache: Arc<PageCache>,
    pub(crate) base: Cached<S::Snapshot>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) log: WriteAhead,
    pub(crate) unwind_depth: u64,
    pub(crate) retention: Retention,
}

impl<S: BalStore> Committer<S> {
    /// Runs until there are no more orders, or after a failure.
    pub(crate) fn run(mut self, orders: &Receiver<Order>, answers: &Sender<JobMessage<S>>) {
        let mut next = None;
        while let Some(order) = next.take().or_else(|| orders.recv().ok()) {
            let (answer, goes_on) = match order {
                Order::Commit(first) => {
                    let mut run = vec![first];
                    while run.len() < MAX_MERGED
                        && let Ok(order) = orders.try_recv()
                    {
                        match order {
                            Order::Commit(layer) => run.push(layer),
                            other => {
                                next = Some(other);
                                break;
                            }
                        }
                    }
                    let result = guarded(|| self.commit(&run)).map(|_| self.base.clone());
                    let goes_on = result.is_ok();
                    (JobMessage::Committed { layers: run, result }, goes_on)
                }
                Order::Reorganise { to, branch } => {
                    let result = self.reorganise(to, branch);
                    let goes_on = !matches!(result, Err(ReorgFailure::Midway(_)));
                    (JobMessage::Reorganised { result }, goes_on)
                }
            };
            // The calculator is gone at shutdown; what was acknowledged is committed all the same.
            let _shut_down = answers.send(answer);
            if !goes_on {
                return;
            }
            let tip = self.base.anchor().block.number;
            if let Err(failure) = guarded(|| self.retention.prune(&*self.store, tip)) {
                // As above.
                let _shut_down = answers.send(JobMessage::Broken(failure));
                return;
            }
        }
    }

    /// Commits blocks that stand on the tip, oldest first. Gives the number of store commits.
    fn commit(&mut self, run: &[Arc<Layer>]) -> Result<u64, Failure> {
        let begin = Instant::now();
        let committed = self.commit_batches(run);
        let tip = run.last().map_or_else(|| self.base.anchor().block, |newest| newest.anchor.block);
        observe::committed(run.len(), tip, begin.elapsed());
        committed
    }

    fn commit_batches(&mut self, run: &[Arc<Layer>]) -> Result<u64, Failure> {
        self.log.secure(&[])?;
        let batches = batches(run);
        for batch in &batches {
            let tip = batch.blocks.last().map_or(batch.parent, |block| block.anchor.block);
            self.store.commit(batch).map_err(|error| Failure::Commit { block: tip, error: Arc::new(error) })?;
            self.cache.advance(batch.parent, tip, &batch.rows);
        }
        if let Some(newest) = run.last() {
            let block = newest.anchor.block;
            let snapshot = self.store.snapshot().map_err(|error| Failure::Commit { block, error: Arc::new(error) })?;
            self.base = Cached::new(snapshot, Arc::clone(&self.cache)).with_tries(newest.tries.clone());
        }
        Ok(batches.len() as u64)
    }

    fn reorganise(&mut self, to: StateAnchor, branch: Vec<Arc<Layer>>) -> Result<Reorganised<S>, ReorgFailure> {
        let unwound = guarded(|| self.unwind(to)).map_err(ReorgFailure::Before)?;
        let leave = |committer: &mut Self| {
            let failed = |error| Failure::Unwind { to: to.block, error: Arc::new(error) };
            let (back, unwound) = unwound;
            committer.cache.reset(to.block);
            let snapshot = committer.store.snapshot().map_err(failed)?;
            committer.base = Cached::new(snapshot, Arc::clone(&committer.cache)).with_tries(back.tries.clone());
            let store_commits = committer.commit(&branch)?;
            let base = committer.base.clone();
            let chain = Chain::read(&*committer.store, base.anchor(), committer.unwind_depth).map_err(failed)?;
            Ok(Reorganised { base, chain, unwound, branch, store_commits })
        };
        guarded(|| leave(self)).map_err(ReorgFailure::Midway)
    }

    /// Takes the store back. Gives the layer that led back, and those of the blocks that were above.
    fn unwind(&self, to: StateAnchor) -> Result<(Arc<Layer>, Vec<Arc<Layer>>), Failure> {
        let failed = |error: Arc<dyn std::error::Error + Send + Sync>| Failure::Unwind { to: to.block, error };
        let computed = self.pool.install(|options| {
            let back = Arc::new(compute_way(&*self.store, &self.base, to, &[], options)?);
            let unwound = unwound_layers(&*self.store, &self.base, &back, options)?;
            Ok((back, unwound))
        });
        let (back, unwound) =
            computed.map_err(|error: foldgate_core::UnwindError<S::Error>| failed(Arc::new(error)))?;
        self.log.secure(&unwound)?;
        let batch = UnwindBatch { from: self.base.anchor().block, to, rows: back.to_batch().rows };
        self.store.unwind(&batch).map_err(|error| failed(Arc::new(error)))?;
        Ok((back, unwound))
    }
}

/// A panic must not leave those waiting who wait for a block to become durable.
fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|payload| Err(Failure::Panicked(panic_message(payload.as_ref()))))
}
