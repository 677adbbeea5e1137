//! The way back from a store's tip to an ancestor: reverse diffs are merged, folded, and held to the ancestor's root.
//!
//! Rows are not restored from copies. The leaves of the ancestor are restored, and since rows are a function of the
//! leaves, the fold gives the rows that stood then; the root proves it before anything is written.
//!
//! Invariants:
//! 1. Nothing is written unless the fold arrived at the ancestor's committed state root.
//! 2. The store refuses the batch if its tip moved meanwhile.

use alloy_primitives::B256;

use crate::{
    block::{BlockNumHash, BlockNumber, StateAnchor},
    hashed::HashedPostState,
    overlay::Layer,
    resolve::resolve,
    store::{TrieReader, TrieStore, UnwindBatch},
    trie::{FoldError, FoldOptions, fold},
};

/// Why an unwind fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnwindError<E> {
    /// The store failed or refused.
    #[error("the store failed while unwinding")]
    Store(#[source] E),
    /// The snapshot failed.
    #[error("reading the tip's state failed while unwinding")]
    Read(#[source] E),
    /// The fold of the reverse diffs failed.
    #[error("folding the reverse diffs failed")]
    Fold(#[source] FoldError<E>),
    /// Nothing was loaded yet.
    #[error("the store is empty: there is nothing to unwind")]
    Empty,
    /// The target is not a committed block at or below the tip, as far back as the store reaches.
    #[error("cannot unwind to block {got}: it is not among the reachable ancestors of the tip {tip}")]
    NotAnAncestor {
        /// The target given.
        got: BlockNumHash,
        /// The tip.
        tip: BlockNumHash,
    },
    /// A reverse diff on the way was pruned.
    #[error("the reverse diff of block {number} is not kept any more")]
    MissingReverseDiff {
        /// The block's height.
        number: BlockNumber,
    },
    /// The reverse diffs lead to another state than the ancestor's.
    #[error("unwinding to block {block} gives the state root {got}, not {expected}")]
    StateRootMismatch {
        /// The target.
        block: BlockNumHash,
        /// The root that the reverse diffs lead to.
        got: B256,
        /// The ancestor's committed root.
        expected: B256,
    },
}

/// A computed way back from a tip to an ancestor, not yet written anywhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Unwound {
    /// The tip that it was computed from.
    pub from: StateAnchor,
    /// The difference from the tip's state to the ancestor's, as a layer over the tip's snapshot: an overlay of it
    /// alone is a view of the ancestor, on which a sibling of the committed chain can be folded while the store stays
    /// at its tip.
    ///
    /// The layer stands on its head, its block lies below its parent: it is never committed.
    pub layer: Layer,
}

impl Unwound {
    /// The ancestor.
    pub const fn to(&self) -> StateAnchor {
        self.layer.anchor
    }

    /// The batch that takes the store back.
    pub fn to_batch(&self) -> UnwindBatch {
        UnwindBatch { from: self.from.block, to: self.to(), rows: self.layer.to_batch().rows }
    }
}

/// Takes the store back to the committed block `to`. Without effect if that is the tip.
///
/// # Errors
/// See [`UnwindError`]. The store stays as it was.
pub fn unwind<S: TrieStore>(store: &S, to: BlockNumHash) -> Result<StateAnchor, UnwindError<S::Error>> {
    let unwound = compute_unwind(store, to, &FoldOptions::default())?;
    if unwound.from.block != to {
        store.unwind(&unwound.to_batch()).map_err(UnwindError::Store)?;
    }
    Ok(unwound.to())
}

/// Computes the way back to the committed block `to`, and writes nothing.
///
/// # Errors
/// See [`UnwindError`].
pub fn compute_unwind<S: TrieStore>(
    store: &S,
    to: BlockNumHash,
    options: &FoldOptions,
) -> Result<Unwound, UnwindError<S::Error>> {
    if store.tip().map_err(UnwindError::Store)?.is_none() {
        return Err(UnwindError::Empty);
    }
    let snapshot = store.snapshot().map_err(UnwindError::Store)?;
    let from = snapshot.anchor();
    let committed = store.committed(to.number).map_err(UnwindError::Store)?;
    let Some(target) = committed.filter(|anchor| anchor.block == to && to.number <= from.block.number) else {
        return Err(UnwindError::NotAnAncestor { got: to, tip: from.block });
    };
    let reverse = merged_reverse_diffs(store, from.block.number, to.number)?;
    let changes = resolve(&reverse, &snapshot).map_err(UnwindError::Read)?;
    let outcome = fold(&snapshot, changes, options).map_err(UnwindError::Fold)?;
    let (got, expected) = (outcome.computed_state_root, target.state_root);
    if got != expected {
        return Err(UnwindError::StateRootMismatch { block: to, got, expected });
    }
    Ok(Unwound { from, layer: Layer::new(from.block, to, outcome, None) })
}

/// What leads from the block at height `from` back to the one at height `to`, merged.
fn merged_reverse_diffs<S: TrieStore>(
    store: &S,
    from: BlockNumber,
    to: BlockNumber,
) -> Result<HashedPostState, UnwindError<S::Error>> {
    let mut merged = HashedPostState::default();
    // The youngest block's goes first: where two blocks changed a leaf, the older one knows what stood before both.
    for number in (to..from).rev().map(|below| below + 1) {
        let reverse = store.reverse_diff(number).map_err(UnwindError::Store)?;
        merged.merge(&reverse.ok_or(UnwindError::MissingReverseDiff { number })?.to_post_state());
    }
    Ok(merged)
}
