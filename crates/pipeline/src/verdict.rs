//! What becomes of a block: a verdict on it, or none because the work was stopped or the machine failed.
//!
//! Invariant: an error of the machine is never a verdict.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use alloy_primitives::B256;
use foldgate_bal::BalError;
use foldgate_core::{BlockNumHash, BlockNumber, Layer};

use crate::{counters::SkipReason, halt::Halt, shadow::Divergence};

/// How a block's root was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// From its access list, ahead of its execution.
    BalDriven,
    /// From its executed writes.
    Incremental(SkipReason),
}

/// What confirmed the computed state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfirmedBy {
    /// The list that the executor rebuilt has the hash of the block's list.
    Bal,
    /// The executed writes lead to the state that the list claimed.
    PostState,
    /// The state was computed from the executed writes themselves.
    Execution,
    /// The block was confirmed before a restart, and computed again from its record.
    Record,
    /// It was in the store, and its verdict forgotten, when the head moved to another branch. Whether it had a list is all
    /// that its mode tells.
    Store,
}

/// Where a block's time went. Each is a duration on the pipeline's clock; zero where a step did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockTimings {
    /// Decoding and validating the access list and hashing its keys.
    pub decode: Duration,
    /// Reading ahead, beside everything else; without what had not ended at the verdict.
    pub warm_up: Duration,
    /// From the time when the leaves were at hand until the fold began: waiting for the parent, and for a thread.
    pub gate_wait: Duration,
    /// Reading the parent's leaves.
    pub resolve: Duration,
    /// Folding.
    pub fold: Duration,
    /// From the arrival of the request to the executor's result.
    pub execution: Duration,
    /// From the executor's result to the verdict: what the block costs besides its execution.
    pub confirm: Duration,
    /// From the arrival of the request to the verdict.
    pub verdict: Duration,
}

/// A valid block.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ValidBlock {
    /// The block.
    pub block: BlockNumHash,
    /// The state root, equal to the header's.
    pub computed_state_root: B256,
    /// How it was computed.
    pub mode: Mode,
    /// What confirmed it.
    pub confirmed_by: ConfirmedBy,
    /// Where the time went.
    pub timings: BlockTimings,
    /// Everything that the block changed: leaves with old and new values, storage roots, trie nodes, code. `None` only
    /// in the remembered verdict of a block that is delivered again after its layer was let go: it is durable, or stood
    /// on a branch that was dropped.
    pub layer: Option<Arc<Layer>>,
}

/// Why a block is invalid.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidReason {
    /// The state root is not the header's.
    #[error("state root mismatch: got {got}, the header says {expected}")]
    StateRootMismatch {
        /// The computed state root.
        got: B256,
        /// The header's.
        expected: B256,
    },
    /// The payload's access list has another hash than the header says.
    #[error("access list hash mismatch: got {got}, the header says {expected}")]
    BalHashMismatch {
        /// The hash of the list that came.
        got: B256,
        /// The header's.
        expected: B256,
    },
    /// The access list that the header commits to is malformed.
    #[error("malformed access list: {0}")]
    BalMalformed(Arc<BalError>),
    /// Execution accessed or changed something else than the list says.
    #[error("execution does not confirm the access list: rebuilt hash {got}, the header says {expected}{}", Difference(.difference))]
    BalMismatch {
        /// The hash of the rebuilt list.
        got: B256,
        /// The header's.
        expected: B256,
        /// The first difference, where both lists were at hand. There, `got` is what the block's list says, and
        /// `expected` what execution gave.
        difference: Option<Arc<foldgate_bal::BalMismatch>>,
    },
    /// The executor found the block invalid.
    #[error("execution: {0}")]
    Execution(Arc<dyn Error + Send + Sync>),
}

struct Difference<'a>(&'a Option<Arc<foldgate_bal::BalMismatch>>);

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |difference| write!(f, ": {difference}"))
    }
}

/// An invalid block.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct InvalidBlock {
    /// The block.
    pub block: BlockNumHash,
    /// Why it is invalid.
    pub reason: InvalidReason,
    /// The early root mismatch that came before `reason`, if execution went on to find it
    /// ([`crate::OnEarlyMismatch::FindReason`]).
    pub early: Option<InvalidReason>,
}

/// The judgement of a block.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// It is valid.
    Valid(Arc<ValidBlock>),
    /// It is not.
    Invalid(Arc<InvalidBlock>),
}

impl Verdict {
    /// The block judged.
    pub fn block(&self) -> BlockNumHash {
        match self {
            Self::Valid(valid) => valid.block,
            Self::Invalid(invalid) => invalid.block,
        }
    }
}

/// An error of the machine: it says nothing about the block.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A read failed during execution.
    #[error("reading the parent's state failed: {0}")]
    Read(Arc<dyn Error + Send + Sync>),
    /// The executor failed for reasons of its own.
    #[error("the executor failed: {0}")]
    Executor(Arc<dyn Error + Send + Sync>),
    /// The fold failed.
    #[error("the fold failed: {0}")]
    Fold(Arc<dyn Error + Send + Sync>),
    /// A block could not be made durable; the pipeline takes no more blocks.
    #[error("the commit of block {block} failed: {error}")]
    Commit {
        /// The block.
        block: BlockNumHash,
        /// The store's error.
        error: Arc<dyn Error + Send + Sync>,
    },
    /// The access list and the executed writes of the block led to different states, though the one was confirmed by the
    /// other: one of the computations is wrong.
    #[error(transparent)]
    Divergence(Arc<Divergence>),
    /// A record could not be made durable; the pipeline takes no more blocks.
    #[error("the record log failed: {0}")]
    Log(Arc<dyn Error + Send + Sync>),
    /// Old access lists could not be dropped from the store; the pipeline takes no more blocks.
    #[error("pruning what is older than block {below} failed: {error}")]
    Prune {
        /// The lowest height to keep.
        below: BlockNumber,
        /// The store's error.
        error: Arc<dyn Error + Send + Sync>,
    },
    /// The state of a block below the durable tip, or of one beside the durable chain, could not be computed; or the
    /// store could not be taken back. The store stays as it was.
    #[error("going back to block {to} failed: {error}")]
    Unwind {
        /// The ancestor of the durable tip.
        to: BlockNumHash,
        /// What failed.
        error: Arc<dyn Error + Send + Sync>,
    },
    /// A worker panicked: a bug.
    #[error("a worker panicked: {0}")]
    Panicked(String),
    /// The header commits to an access list, and the executor gave none.
    #[error("the header commits to an access list, but the executor rebuilt none")]
    NotRebuilt,
    /// The root has to be computed from the executed writes, and the executor recorded none.
    #[error("the executor recorded no writes")]
    NoWrites,
    /// Neither the request nor the result had the header's state root.
    #[error("no state root to hold the computed one to")]
    NoExpectedRoot,
}

/// Why there is no verdict.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The work was stopped.
    #[error(transparent)]
    Halted(#[from] Halt),
    /// The machine failed.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// What a block's ticket yields.
pub type Outcome = Result<Verdict, BlockError>;
