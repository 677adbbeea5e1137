//! The shadow: a second computation of a block, beside the one that decides, from the other source. What the access list
//! leads to and what the executed writes lead to must be the same, byte for byte.
//!
//! ```text
//!   access list ------resolve, fold------> root, diff, rows --\
//!                                                              > equal? -- no --> Divergence, report
//!   executed writes --resolve, fold------> root, diff, rows --/
//! ```
//!
//! One of the two decides, over the pipeline's own view of the parent; the other one is the shadow, over an [`Isolated`]
//! view.
//!
//! # What the two share
//!
//! The parent's durable snapshot, and the layers of the blocks above it: values that were finished, judged and, with the
//! shadow on, compared before this block's fold began. Nothing that this block's fold reads or makes: the shadow has a
//! page cache of its own, no warm-up's table, and a forest of its own that begins empty and ends with the comparison.
//! It walks no branch in memory: it reads each branch as the row that the parent's layers, or the store, have for it.
//! So a wrong record in the cache, a branch that this block's fold spoilt for itself, or a change that it forgot is seen
//! as a difference, and an extra key of the one is not among the other's.
//!
//! Invariant: what the shadow computes becomes nobody's state.

mod difference;
mod isolated;
mod report;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use alloy_primitives::{B256, Bytes};
use foldgate_core::{
    AccountInfo, BlockFacts, BlockNumHash, Cached, FoldError, FoldOptions, FoldOutcome, HashedPostState, Overlay,
    PageCache, StateDiff, TrieReader, fold, resolve_with,
};

pub use self::{
    difference::{AccountField, Difference, Place, SideResult, Value, first_difference},
    isolated::{NotRecorded, RecordedState},
    report::{DivergenceReport, ReportError, Reproduction},
};
use self::{isolated::Isolated, report::record};

/// From what a root was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Source {
    /// The access list.
    Bal,
    /// The executed writes.
    Execution,
}

/// The two computations of a block do not agree: one of them is wrong. It says nothing about the block.
#[derive(Debug, Clone, thiserror::Error)]
#[error("block {block} diverges: {difference}{}", Written(.report))]
#[non_exhaustive]
pub struct Divergence {
    /// The block.
    pub block: BlockNumHash,
    /// What the block's state was taken from, or would have been.
    pub decided_by: Source,
    /// The first thing in which they differ.
    pub difference: Difference,
    /// What became of the report: `None` where the settings name no folder.
    pub report: Option<Result<PathBuf, Arc<io::Error>>>,
}

struct Written<'a>(&'a Option<Result<PathBuf, Arc<io::Error>>>);

impl std::fmt::Display for Written<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            None => Ok(()),
            Some(Ok(path)) => write!(f, " (report: {})", path.display()),
            Some(Err(error)) => write!(f, " (writing the report failed: {error})"),
        }
    }
}

/// What a shadow came to. A fold that fails, and not at a read, is a result like any other: the decider did not fail.
pub(crate) type Shadowed = Result<FoldOutcome, String>;

/// What a comparison found.
#[derive(Debug)]
pub(crate) enum Compared {
    Same,
    /// The list says something else than execution, which no hash had confirmed: it is the list that is wrong.
    ListDiffers,
    Diverged(Arc<Divergence>),
}

/// The view of a block's parent for its shadow, over the snapshot and the layers of `parent`.
fn isolated<R: TrieReader>(parent: &Overlay<Cached<R>>, cache: &Arc<PageCache>) -> Option<Isolated<Cached<R>>> {
    let base = Cached::new(parent.base().snapshot().clone(), Arc::clone(cache));
    // The layers led on from this snapshot before, so that they do so again.
    Overlay::new(base, parent.layers().to_vec()).ok().map(Isolated::new)
}

/// Resolves and folds the other source of a block in isolation.
pub(crate) fn compute<R: TrieReader>(
    state: &HashedPostState,
    parent: &Overlay<Cached<R>>,
    cache: &Arc<PageCache>,
    options: &FoldOptions,
) -> Result<Shadowed, R::Error> {
    let Some(parent) = isolated(parent, cache) else { return Ok(Err("the layers make no view".to_owned())) };
    let changes = resolve_with(state, &parent, options)?;
    match fold(&parent, changes, options) {
        Ok(outcome) => Ok(Ok(outcome)),
        Err(FoldError::Read(error)) => Err(error),
        Err(error) => Ok(Err(error.to_string())),
    }
}

/// Both computations of a block and what they were computed from.
#[derive(Debug)]
pub(crate) struct Case<'a, R> {
    pub(crate) facts: BlockFacts,
    pub(crate) decided_by: Source,
    /// The raw access list.
    pub(crate) raw: &'a Bytes,
    pub(crate) listed: &'a HashedPostState,
    pub(crate) executed: &'a HashedPostState,
    pub(crate) decided: &'a FoldOutcome,
    pub(crate) shadowed: &'a Shadowed,
    /// Whether execution rebuilt the list: then no difference is the list's.
    pub(crate) list_confirmed: bool,
    pub(crate) parent: &'a Overlay<Cached<R>>,
}

/// Holds a block's two computations to each other: root, changed leaves with their old values, and rows. A divergence is
/// written into `folder`.
pub(crate) fn compare<R: TrieReader>(case: &Case<'_, R>, folder: Option<&Path>) -> Compared {
    if let Ok(shadowed) = case.shadowed {
        if !case.list_confirmed && !same_leaves(&case.decided.diff, &shadowed.diff) {
            return Compared::ListDiffers;
        }
        if case.decided == shadowed {
            return Compared::Same;
        }
    }
    let (decided, shadowed) = (SideResult::from(case.decided), SideResult::from(case.shadowed));
    let (bal, execution) = match case.decided_by {
        Source::Bal => (decided, shadowed),
        Source::Execution => (shadowed, decided),
    };
    let Some(difference) = first_difference(&bal, &execution) else { return Compared::Same };
    let report = folder.map(|folder| record(case, bal, execution).write(folder).map_err(Arc::new));
    let (block, decided_by) = (case.facts.block, case.decided_by);
    Compared::Diverged(Arc::new(Divergence { block, decided_by, difference, report }))
}

/// Whether two differences lead to the same leaves, whatever they say of what was before, and of storage roots.
fn same_leaves(a: &StateDiff, b: &StateDiff) -> bool {
    let leaf = |diff: &StateDiff, at: usize| -> Option<(B256, Option<AccountInfo>)> {
        diff.accounts.get(at).map(|change| (change.hashed_address, change.new.map(AccountInfo::from)))
    };
    let slots = |diff: &StateDiff, at: usize| -> Vec<_> {
        let slots = diff.accounts.get(at).map(|change| change.slots.as_slice()).unwrap_or_default();
        slots.iter().map(|slot| (slot.hashed_slot, slot.new)).collect()
    };
    a.codes == b.codes
        && a.accounts.len() == b.accounts.len()
        && (0..a.accounts.len()).all(|at| leaf(a, at) == leaf(b, at) && slots(a, at) == slots(b, at))
}
