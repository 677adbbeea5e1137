//! What the pipeline tells of itself: every metric's name, and every event, in one place (`docs/observability.md` has the
//! tables).
//!
//! Counters are those of [`crate::CounterSnapshot`], told to the `metrics` facade as they count, under the name
//! `foldgate_` and the field's. Histograms are in seconds. Events and spans go to `tracing`, under the target `foldgate`.
//! Without a recorder and a subscriber both cost a load of an atomic each.
//!
//! Invariant: nothing here decides anything.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use foldgate_core::BlockNumHash;
use metrics::{counter, gauge, histogram};
use tracing::{Span, debug, debug_span, error, info, warn};

use crate::{
    halt::Halt,
    shadow::Divergence,
    verdict::{BlockTimings, Failure, InvalidBlock, Mode},
};

/// Blocks not folded ahead; the label `reason` says why.
pub(crate) const SKIPS: &str = "foldgate_skips";
/// Blocks handed to the committer and not durable yet.
pub(crate) const COMMIT_BACKLOG: &str = "foldgate_commit_backlog";

/// Canonical blocks that are not in the store, those handed to the committer included.
pub(crate) const UNFLUSHED_BLOCKS: &str = "foldgate_unflushed_blocks";
/// How many bytes of leaves, code and lists they take.
pub(crate) const UNFLUSHED_BYTES: &str = "foldgate_unflushed_bytes";

/// A running counter. It is a statistic of its own: loads and stores are relaxed.
#[derive(Debug)]
pub(crate) struct Counter {
    count: AtomicU64,
    /// `None` where the metric is told apart by a label, elsewhere.
    name: Option<&'static str>,
}

impl Counter {
    pub(crate) const fn new(name: &'static str) -> Self {
        Self { count: AtomicU64::new(0), name: Some(name) }
    }

    pub(crate) const fn unnamed() -> Self {
        Self { count: AtomicU64::new(0), name: None }
    }

    pub(crate) fn add(&self) {
        self.add_many(1);
    }

    pub(crate) fn add_many(&self, count: u64) {
        self.count.fetch_add(count, Ordering::Relaxed);
        if let Some(name) = self.name {
            counter!(name).increment(count);
        }
    }

    pub(crate) fn get(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// A part of the work on a block, for its span and its histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Decode,
    WarmUp,
    Fold,
    Confirm,
    Shadow,
    HoldToShadow,
}

impl Work {
    /// The name of the histogram of its time; `None` where the block's own timings have it.
    const fn histogram(self) -> Option<&'static str> {
        match self {
            Self::WarmUp => Some("foldgate_warm_up_seconds"),
            Self::Shadow => Some("foldgate_shadow_seconds"),
            Self::HoldToShadow => Some("foldgate_hold_to_shadow_seconds"),
            Self::Decode | Self::Fold | Self::Confirm => None,
        }
    }

    /// The span around it, which is within no other: a job may be done while another one makes way.
    pub(crate) fn span(self, block: BlockNumHash) -> Span {
        let BlockNumHash { number, hash } = block;
        match self {
            Self::Decode => debug_span!(target: "foldgate", parent: None, "decode", number, %hash),
            Self::WarmUp => debug_span!(target: "foldgate", parent: None, "warm_up", number, %hash),
            Self::Fold => debug_span!(target: "foldgate", parent: None, "fold", number, %hash),
            Self::Confirm => debug_span!(target: "foldgate", parent: None, "confirm", number, %hash),
            Self::Shadow => debug_span!(target: "foldgate", parent: None, "shadow", number, %hash),
            Self::HoldToShadow => debug_span!(target: "foldgate", parent: None, "hold_to_shadow", number, %hash),
        }
    }

    /// Tells how long it took.
    pub(crate) fn took(self, time: Duration) {
        if let Some(name) = self.histogram() {
            histogram!(name).record(time);
        }
    }
}

/// A block was judged valid.
pub(crate) fn valid(block: BlockNumHash, mode: Mode, timings: &BlockTimings) {
    let BlockTimings { decode, warm_up, gate_wait, resolve, fold, execution, confirm, verdict } = *timings;
    if mode == Mode::BalDriven {
        histogram!("foldgate_decode_seconds").record(decode);
    }
    histogram!("foldgate_gate_wait_seconds").record(gate_wait);
    histogram!("foldgate_resolve_seconds").record(resolve);
    histogram!("foldgate_fold_seconds").record(fold);
    histogram!("foldgate_execution_seconds").record(execution);
    histogram!("foldgate_confirm_seconds").record(confirm);
    histogram!("foldgate_verdict_seconds").record(verdict);
    let BlockNumHash { number, hash } = block;
    debug!(
        target: "foldgate",
        number, %hash, ?mode, ?decode, ?warm_up, ?gate_wait, ?resolve, ?fold, ?execution, ?confirm, ?verdict,
        "valid"
    );
}

/// A block was judged invalid.
pub(crate) fn invalid(invalid: &InvalidBlock) {
    let BlockNumHash { number, hash } = invalid.block;
    warn!(target: "foldgate", number, %hash, reason = %invalid.reason, "invalid");
}

/// A block was left unjudged by an error of the machine.
pub(crate) fn failed(block: BlockNumHash, failure: &Failure) {
    let BlockNumHash { number, hash } = block;
    error!(target: "foldgate", number, %hash, %failure, "failed");
}

/// A block was stopped.
pub(crate) fn cancelled(block: BlockNumHash, halt: &Halt) {
    let BlockNumHash { number, hash } = block;
    debug!(target: "foldgate", number, %hash, reason = %halt, "cancelled");
}

/// A block was not folded ahead.
pub(crate) fn skipped(reason: &'static str) {
    counter!(SKIPS, "reason" => reason).increment(1);
}

/// A block's two computations did not agree.
pub(crate) fn diverged(divergence: &Divergence) {
    let BlockNumHash { number, hash } = divergence.block;
    error!(target: "foldgate", number, %hash, %divergence, "divergence");
}

/// Makes so many records durable, and tells how long that took.
pub(crate) fn syncing<E>(records: usize, sync: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
    let begin = Instant::now();
    let synced = sync();
    if synced.is_ok() {
        histogram!("foldgate_log_sync_seconds").record(begin.elapsed());
        histogram!("foldgate_log_sync_records").record(records as f64);
    }
    synced
}

/// A block is acknowledged, so long after its verdict.
pub(crate) fn acknowledged(after: Duration) {
    histogram!("foldgate_acknowledge_seconds").record(after);
}

/// So much is canonical, and not in the store.
pub(crate) fn unflushed(blocks: usize, bytes: usize) {
    gauge!(UNFLUSHED_BLOCKS).set(blocks as f64);
    gauge!(UNFLUSHED_BYTES).set(bytes as f64);
}

/// A reorganisation to this head failed before the store moved.
pub(crate) fn head_stays(head: BlockNumHash, failure: &Failure) {
    let BlockNumHash { number, hash } = head;
    warn!(target: "foldgate", number, %hash, %failure, "head_stays");
}

/// A block was handed to the committer.
pub(crate) fn queued() {
    gauge!(COMMIT_BACKLOG).increment(1.0);
}

/// A block that was handed to the committer is in the store, or will not be brought there.
pub(crate) fn unqueued() {
    gauge!(COMMIT_BACKLOG).decrement(1.0);
}

/// The store committed so many blocks at once, or failed to.
pub(crate) fn committed(blocks: usize, tip: BlockNumHash, took: Duration) {
    histogram!("foldgate_commit_seconds").record(took);
    histogram!("foldgate_commit_blocks").record(blocks as f64);
    info!(target: "foldgate", number = tip.number, hash = %tip.hash, blocks, ?took, "committed");
}
