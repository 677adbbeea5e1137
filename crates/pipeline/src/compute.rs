//! What-if: the root and the difference that changes would lead to, on any state that the pipeline can see, without a block.
//!
//! A builder tries thousands of candidates for a slot. Each asks the calculator for a view of its parent's state, which is an
//! answer from what is at hand (a way to a block below the tip is computed on the pool, once for all who ask), and then
//! reads and folds on its own thread. Nothing is registered, nothing becomes visible, and what the fold wrote in memory
//! is free again when the result is there.
//!
//! Invariants:
//! 1. The calculator does nothing for it but to look a view up.
//! 2. The result is that of the fold of a block with the same changes, byte for byte.

use alloy_primitives::B256;
use foldgate_core::{
    BlockNumHash, Cached, EMPTY_ROOT_HASH, FoldError, FoldOptions, HashedPostState, Overlay, StateDiff, TrieReader,
    TrieStore, TrieUpdates, fold, resolve,
};

use crate::{calculator::Control, pipeline::Pipeline, verdict::Failure};

/// Why nothing was computed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ComputeError<E: std::error::Error + 'static> {
    /// The parent is in flight: its state is not known yet.
    #[error("block {0} is not judged yet")]
    NotJudged(BlockNumHash),
    /// The parent is unknown, was dropped, or is too far below the durable tip.
    #[error("the state after block {0} is not in reach")]
    OutOfReach(BlockNumHash),
    /// The parent's state could not be reached.
    #[error(transparent)]
    Failed(Failure),
    /// The fold failed: the store, or its state, is at fault.
    #[error("the fold failed")]
    Fold(#[source] FoldError<E>),
    /// The pipeline is shutting down.
    #[error("the pipeline is shutting down")]
    ShutDown,
}

/// Why there is no view of a block's state.
#[derive(Debug, Clone)]
pub(crate) enum Unseen {
    NotJudged,
    OutOfReach,
    Failed(Failure),
}

/// A view of a committed block's state.
pub(crate) type View<R> = Overlay<Cached<R>>;

/// What changes lead to.
#[derive(Debug, Clone, PartialEq)]
pub struct Computed {
    /// The state root after the changes.
    pub state_root: B256,
    /// The changed leaves, with their old values and with storage roots before and after.
    pub diff: StateDiff,
    /// The changed rows of the tries.
    pub updates: TrieUpdates,
}

impl Computed {
    /// The changed accounts, by hashed address, each with its storage root after the changes: the empty one where it was
    /// removed.
    pub fn storage_roots(&self) -> impl Iterator<Item = (B256, B256)> + '_ {
        let root = |account: Option<foldgate_core::Account>| account.map_or(EMPTY_ROOT_HASH, |new| new.storage_root);
        self.diff.accounts.iter().map(move |change| (change.hashed_address, root(change.new)))
    }
}

impl<S: TrieStore> Pipeline<S> {
    /// Computes what changes of the state after `parent` lead to: an access list's (`Bal::post_state`), or any others. The
    /// parent may be the durable tip, an ancestor of it down to [`crate::PipelineConfig::unwind_depth`], or any block
    /// committed in memory.
    ///
    /// Reads and folds on the calling thread; any number of threads may do so at once. No block is registered, and the
    /// changes are not judged.
    ///
    /// # Errors
    /// If the parent's state is not in reach, or reading it fails.
    pub fn compute(&self, parent: BlockNumHash, changes: &HashedPostState) -> Result<Computed, ComputeError<S::Error>> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.control.send(Control::See { block: parent, reply }).map_err(|_| ComputeError::ShutDown)?;
        let view = answer.recv().map_err(|_| ComputeError::ShutDown)?.map_err(|unseen| match unseen {
            Unseen::NotJudged => ComputeError::NotJudged(parent),
            Unseen::OutOfReach => ComputeError::OutOfReach(parent),
            Unseen::Failed(failure) => ComputeError::Failed(failure),
        })?;
        debug_assert_eq!(view.anchor().block, parent, "a view is of the block asked for");
        let leaves = resolve(changes, &view).map_err(|error| ComputeError::Fold(FoldError::Read(error)))?;
        let outcome = fold(&view, leaves, &FoldOptions::SERIAL).map_err(ComputeError::Fold)?;
        let updates = outcome.updates();
        Ok(Computed { state_root: outcome.computed_state_root, diff: outcome.diff, updates })
    }
}
