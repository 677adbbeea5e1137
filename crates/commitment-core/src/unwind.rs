//! The way back from a store's tip to an ancestor: reverse diffs are merged, folded, and held to the ancestor's root.
//!
//! The same way leads to any block that branched off below the tip ([`compute_way`]): back to the common ancestor, and
//! forward through layers that are in memory. And what the store is about to forget when it goes back can be kept as
//! layers ([`unwound_layers`]).
//!
//! Rows are not restored from copies. The leaves of the ancestor are restored, and since rows are a function of the
//! leaves, the fold gives the rows that stood then; the root proves it before anything is written.
//!
//! Invariants:
//! 1. Nothing is written unless the fold arrived at the ancestor's committed state root.
//! 2. The store refuses the batch if its tip moved meanwhile.

use std::sync::Arc;

use alloy_primitives::{B256, KECCAK256_EMPTY, U256, map::B256Map};

use crate::{
    account::Account,
    block::{BlockNumHash, BlockNumber, StateAnchor},
    diff::{ReverseDiff, delta_of},
    hashed::{EmptyAccounts, HashedPostState},
    overlay::{BrokenOverlay, Layer, Overlay},
    resolve::resolve_all,
    store::{BalStore, TrieReader, TrieStore, UnwindBatch},
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
    /// The layers given do not lead on from the ancestor.
    #[error(transparent)]
    Broken(#[from] BrokenOverlay),
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
    Ok(Unwound { from, layer: compute_way(store, &snapshot, target, &[], options)? })
}

/// Computes the way from the block that `from` reads, which is or was the store's tip, back to `ancestor` and from there
/// forward through `branch`, oldest first, in one fold. The layer given stands on the block of `from`, like
/// [`Unwound::layer`]: over `from` alone it is a view of the state after the branch's newest block, or of the ancestor's.
///
/// Reverse diffs are read from the store as it is now. Where its tip has moved back meanwhile they may be those of
/// another chain, or gone: an error, since the root tells.
///
/// # Errors
/// See [`UnwindError`].
pub fn compute_way<S: TrieStore, R: TrieReader<Error = S::Error>>(
    store: &S,
    from: &R,
    ancestor: StateAnchor,
    branch: &[Arc<Layer>],
    options: &FoldOptions,
) -> Result<Layer, UnwindError<S::Error>> {
    let tip = from.anchor().block;
    let mut target = ancestor;
    for layer in branch {
        if layer.parent != target.block {
            let (got, expected) = (layer.parent, target.block);
            return Err(BrokenOverlay::Gap { layer: layer.anchor.block, got, expected }.into());
        }
        target = layer.anchor;
    }
    let reverse = merged_reverse_diffs(store, tip.number, ancestor.block.number)?;
    let forward = branch.iter().map(|layer| layer.diff.to_post_state());
    let states: Vec<_> = std::iter::once(reverse).chain(forward).collect();
    let changes = resolve_all(&states, from, options).map_err(UnwindError::Read)?;
    let outcome = fold(from, changes, options).map_err(UnwindError::Fold)?;
    check_root(target, outcome.computed_state_root)?;
    Ok(Layer::new(tip, target.block, outcome, None))
}

fn check_root<E>(target: StateAnchor, got: B256) -> Result<(), UnwindError<E>> {
    let (block, expected) = (target.block, target.state_root);
    if got == expected { Ok(()) } else { Err(UnwindError::StateRootMismatch { block, got, expected }) }
}

/// The layers of the committed blocks above the ancestor to which `back` leads from the block that `from` reads, oldest
/// first: what the store forgets when it is unwound so. They are what they were when they were committed, but that their
/// tries stand on those of `back`.
///
/// # Errors
/// See [`UnwindError`].
pub fn unwound_layers<S: BalStore, R: TrieReader<Error = S::Error>>(
    store: &S,
    from: &R,
    back: &Arc<Layer>,
    options: &FoldOptions,
) -> Result<Vec<Arc<Layer>>, UnwindError<S::Error>> {
    let (tip, to) = (from.anchor().block, back.anchor.block);
    let mut forward = Vec::new();
    let mut after = After { from, later: B256Map::default() };
    for number in (to.number..tip.number).rev().map(|below| below + 1) {
        let reverse = reverse_diff(store, number)?;
        forward.push((number, after.step_back(&reverse).map_err(UnwindError::Read)?));
    }
    let mut layers = vec![Arc::clone(back)];
    let mut parent = to;
    for (number, state) in forward.into_iter().rev() {
        let anchor = store.committed(number).map_err(UnwindError::Store)?;
        let anchor = anchor.ok_or(UnwindError::MissingReverseDiff { number })?;
        let view = Overlay::new(from.clone(), layers.clone())?;
        let changes = resolve_all(&[state], &view, options).map_err(UnwindError::Read)?;
        let outcome = fold(&view, changes, options).map_err(UnwindError::Fold)?;
        check_root(anchor, outcome.computed_state_root)?;
        let bal = store.bal(anchor.block).map_err(UnwindError::Store)?;
        layers.push(Arc::new(Layer::new(parent, anchor.block, outcome, bal)));
        parent = anchor.block;
    }
    layers.remove(0);
    Ok(layers)
}

/// The state after a block below a tip, as far as later blocks changed it; the rest is the tip's.
struct After<'a, R> {
    from: &'a R,
    /// For each changed account what stood there, and the changed slots.
    later: B256Map<(Option<Account>, B256Map<U256>)>,
}

impl<R: TrieReader> After<'_, R> {
    /// Steps from the state after a block to the one before it. Gives what the block made of what it changed.
    fn step_back(&mut self, reverse: &ReverseDiff) -> Result<HashedPostState, R::Error> {
        let mut forward = HashedPostState::new(EmptyAccounts::Keep);
        for prior in &reverse.accounts {
            let hashed_address = prior.hashed_address;
            if !self.later.contains_key(&hashed_address) {
                self.later.insert(hashed_address, (self.from.account(&hashed_address)?, B256Map::default()));
            }
            let (account, slots) = self.later.entry(hashed_address).or_default();
            let mut made = Vec::with_capacity(prior.slots.len());
            for slot in &prior.slots {
                let value = match slots.insert(slot.hashed_slot, slot.value) {
                    Some(value) => value,
                    None => self.from.storage(&hashed_address, &slot.hashed_slot)?,
                };
                made.push((slot.hashed_slot, value));
            }
            let before = prior.account();
            if let Some(code_hash) = account.map(|account| account.code_hash)
                && code_hash != KECCAK256_EMPTY
                && before.is_none_or(|before| before.code_hash != code_hash)
                && let Some(code) = self.from.code(&code_hash)?
            {
                forward.codes.insert(code_hash, code);
            }
            forward.accounts.insert(hashed_address, delta_of(account.as_ref(), made.into_iter()));
            *account = before;
        }
        Ok(forward)
    }
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
        merged.merge(&reverse_diff(store, number)?.to_post_state());
    }
    Ok(merged)
}

fn reverse_diff<S: TrieStore>(store: &S, number: BlockNumber) -> Result<ReverseDiff, UnwindError<S::Error>> {
    let reverse = store.reverse_diff(number).map_err(UnwindError::Store)?;
    reverse.ok_or(UnwindError::MissingReverseDiff { number })
}
