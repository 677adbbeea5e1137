//! What a record log holds beyond the store is computed again: folded, not executed.
//!
//! ```text
//!   store: .. -- ancestor -- .. -- tip            log: records of blocks beside and above it, and of heads
//!                    \                \__ layer -- layer -- layer     each folded over its parent, its root held to
//!                     \                       \__ layer               the record; branches too
//!                      \__ (way) layer -- layer                       below them the way from the tip to the ancestor
//! ```
//!
//! Invariants:
//! 1. Every block that was acknowledged, and that stands on the durable chain where it may be left, or on others that do,
//!    is in memory afterwards. What stands on neither is counted.
//! 2. A recovered block's root is its record's. Anything else is an error, and the pipeline does not open.
//! 3. Nothing is written.

use std::{
    collections::{HashMap, HashSet},
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use alloy_primitives::B256;
use foldgate_bal::{Bal, BalError, BalLimits};
use foldgate_core::{
    BlockHash, BlockNumHash, BlockRecord, Cached, HashedPostState, Layer, Overlay, Record, RecordLog, Redo,
    StateAnchor, TrieReader, TrieStore, UnwindError, compute_way, resolve_with,
    trie::{FoldError, FoldOptions, fold},
};

use crate::{
    config::Canonical,
    counters::SkipReason,
    ground::Chain,
    tree::Tree,
    verdict::{BlockTimings, ConfirmedBy, Mode, ValidBlock},
};

/// Why the blocks of a log could not be recovered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// The log failed, or is damaged.
    #[error("reading the record log: {0}")]
    Log(#[source] Box<dyn Error + Send + Sync>),
    /// A recorded access list does not decode.
    #[error("the recorded access list of block {block}: {error}")]
    Bal {
        /// The block.
        block: BlockNumHash,
        /// What is wrong.
        error: BalError,
    },
    /// The store failed at a read.
    #[error("reading the state for block {block}: {error}")]
    Read {
        /// The block.
        block: BlockNumHash,
        /// What failed.
        error: Box<dyn Error + Send + Sync>,
    },
    /// The fold failed.
    #[error("folding block {block} again: {error}")]
    Fold {
        /// The block.
        block: BlockNumHash,
        /// What failed.
        error: Box<dyn Error + Send + Sync>,
    },
    /// The record leads to another state than the one that was judged valid: store and log do not belong together, or
    /// one of them is damaged.
    #[error("folding block {block} again gives the state root {got}, its record says {expected}")]
    StateRootMismatch {
        /// The block.
        block: BlockNumHash,
        /// What the fold gave.
        got: B256,
        /// The record's.
        expected: B256,
    },
}

/// What opening found in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Blocks folded again.
    pub recovered: u64,
    /// Records of blocks that the store has, or that lie further below its tip than it may be left.
    pub in_the_store: u64,
    /// Records of other blocks, which stand on a block that is neither recovered nor of the store's chain where that may be
    /// left and the store's reverse diffs lead.
    pub dropped: u64,
    /// How long it took.
    pub took: Duration,
}

/// What was recovered.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// Parents before children.
    pub(crate) blocks: Vec<Arc<ValidBlock>>,
    /// Where it does not descend from the tip, it is where a reorganisation was to go that was cut off.
    pub(crate) head: BlockNumHash,
    /// The blocks of which the log holds a record.
    pub(crate) recorded: HashSet<BlockNumHash>,
    pub(crate) report: RecoveryReport,
}

impl Recovered {
    /// What there is without a log.
    pub(crate) fn nothing(tip: BlockNumHash) -> Self {
        Self { blocks: Vec::new(), head: tip, recorded: HashSet::new(), report: RecoveryReport::default() }
    }

    /// Puts the blocks into an empty tree.
    pub(crate) fn put_into<R: TrieReader>(&self, tree: &mut Tree<R>) {
        self.blocks.iter().for_each(|valid| tree.put_recovered(valid));
    }
}

/// Computes again what the log holds beside and above the store's chain, whose tip the snapshot is of.
pub(crate) fn recover<S: TrieStore, L: RecordLog>(
    store: &S,
    base: &Cached<S::Snapshot>,
    chain: &Chain,
    log: &mut L,
    canonical: Canonical,
    options: &FoldOptions,
) -> Result<Recovered, RecoveryError> {
    let begin = Instant::now();
    let tip = base.anchor().block;
    let mut recovered = Recovered::nothing(tip);
    let (mut records, mut heads) = (Vec::new(), Vec::new());
    // Records with their positions in the log, heads with the number of records that stand before them.
    let replayed = log.replay(&mut |record| match record {
        Record::Block(record) => {
            let block = record.anchor.block;
            recovered.recorded.insert(block);
            if block.number <= chain.lowest() || chain.contains(block) {
                recovered.report.in_the_store += 1;
            } else {
                records.push((records.len(), record));
            }
        }
        Record::Canonical(head) => heads.push((records.len(), head)),
    });
    replayed.map_err(|error| RecoveryError::Log(Box::new(error)))?;
    // Parents first: a block that the store was to forget may be recorded behind blocks that stand on it.
    records.sort_by_key(|(_, record)| record.anchor.block.number);
    let mut branches = Branches { store, base, chain, options, layers: HashMap::new(), ways: HashMap::new() };
    let mut positions = Vec::new();
    for (position, record) in records {
        // A block may be judged, and recorded, more than once.
        if branches.layers.contains_key(&record.anchor.block.hash) {
            continue;
        }
        let parent = record.parent().map_or(Ok(None), |parent| branches.view(parent))?;
        let Some(parent) = parent else {
            recovered.report.dropped += 1;
            continue;
        };
        let valid = Arc::new(fold_again(&parent, record, options)?);
        branches.layers.extend(valid.layer.clone().map(|layer| (valid.block.hash, layer)));
        recovered.blocks.push(valid);
        positions.push(position);
    }
    // The newest head that there is: an older one is its ancestor, or a branch that was left. One that the store has gone
    // beyond stands for the tip.
    let known = heads.iter().rev().find_map(|(since, head)| match branches.layers.get(&head.hash) {
        _ if chain.contains(*head) => Some((*since, tip)),
        Some(layer) if layer.anchor.block == *head => Some((*since, *head)),
        _ => None,
    });
    let (since, head) = known.unwrap_or((0, tip));
    recovered.head = head;
    if canonical == Canonical::Auto {
        // A block and its becoming canonical are two records: the later one may be missing.
        for (_, valid) in positions.iter().zip(&recovered.blocks).filter(|(position, _)| **position >= since) {
            if valid.layer.as_ref().is_some_and(|layer| layer.parent == recovered.head) {
                recovered.head = valid.block;
            }
        }
    }
    recovered.report.recovered = recovered.blocks.len() as u64;
    recovered.report.took = begin.elapsed();
    Ok(recovered)
}

/// What was recovered so far, and what it stands on.
struct Branches<'a, S: TrieStore> {
    store: &'a S,
    base: &'a Cached<S::Snapshot>,
    chain: &'a Chain,
    options: &'a FoldOptions,
    layers: HashMap<BlockHash, Arc<Layer>>,
    /// The ways back to blocks of the chain; `None` where the store's reverse diffs do not lead there.
    ways: HashMap<BlockHash, Option<Arc<Layer>>>,
}

impl<S: TrieStore> Branches<'_, S> {
    /// The view of a block's state; `None` if the block does not stand on the chain where that may be left.
    fn view(&mut self, block: BlockNumHash) -> Result<Option<Overlay<Cached<S::Snapshot>>>, RecoveryError> {
        let (mut layers, mut at) = (Vec::new(), block);
        let ancestor = loop {
            if let Some(ancestor) = self.chain.get(at) {
                break ancestor;
            }
            let Some(layer) = self.layers.get(&at.hash).filter(|layer| layer.anchor.block == at) else {
                return Ok(None);
            };
            layers.push(Arc::clone(layer));
            at = layer.parent;
        };
        if ancestor != self.base.anchor() {
            let Some(way) = self.way(ancestor)? else { return Ok(None) };
            layers.push(way);
        }
        layers.reverse();
        let view = Overlay::new(self.base.clone(), layers);
        view.map(Some).map_err(|error| RecoveryError::Fold { block, error: Box::new(error) })
    }

    fn way(&mut self, ancestor: StateAnchor) -> Result<Option<Arc<Layer>>, RecoveryError> {
        let block = ancestor.block;
        if let Some(way) = self.ways.get(&block.hash) {
            return Ok(way.clone());
        }
        let way = match compute_way(self.store, self.base, ancestor, &[], self.options) {
            Ok(way) => Some(Arc::new(way)),
            // The store keeps no reverse diffs so far down, or one for several blocks.
            Err(UnwindError::MissingReverseDiff { .. } | UnwindError::StateRootMismatch { .. }) => None,
            Err(UnwindError::Store(error) | UnwindError::Read(error) | UnwindError::Fold(FoldError::Read(error))) => {
                return Err(RecoveryError::Read { block, error: Box::new(error) });
            }
            Err(error) => return Err(RecoveryError::Fold { block, error: Box::new(error) }),
        };
        self.ways.insert(block.hash, way.clone());
        Ok(way)
    }
}

fn fold_again<R: TrieReader>(
    parent: &Overlay<Cached<R>>,
    record: BlockRecord,
    options: &FoldOptions,
) -> Result<ValidBlock, RecoveryError> {
    let block = record.anchor.block;
    let (state, bal, mode) = match record.redo {
        Redo::Bal(raw) => {
            let state = list_state(&raw).map_err(|error| RecoveryError::Bal { block, error })?;
            (state, Some(raw), Mode::BalDriven)
        }
        Redo::Diff { diff, bal } => (Arc::new(diff.to_post_state()), bal, Mode::Incremental(SkipReason::Recovered)),
    };
    let read_failed = |error| RecoveryError::Read { block, error: Box::new(error) };
    let changes = resolve_with(&state, parent, options).map_err(read_failed)?;
    let outcome = fold(parent, changes, options).map_err(|error| match error {
        FoldError::Read(error) => read_failed(error),
        other => RecoveryError::Fold { block, error: Box::new(other) },
    })?;
    let (got, expected) = (outcome.computed_state_root, record.anchor.state_root);
    if got != expected {
        return Err(RecoveryError::StateRootMismatch { block, got, expected });
    }
    let layer = Layer::new(parent.anchor().block, block, outcome, bal);
    Ok(ValidBlock {
        block,
        computed_state_root: got,
        mode,
        confirmed_by: ConfirmedBy::Record,
        timings: BlockTimings::default(),
        layer: Some(Arc::new(layer)),
    })
}

/// The state of a list that was validated when its block was judged: limits that depend on the header do not matter.
fn list_state(raw: &alloy_primitives::Bytes) -> Result<Arc<HashedPostState>, BalError> {
    let limits = BalLimits::new(u64::MAX, u64::MAX).with_max_code_size(usize::MAX);
    let bal = Bal::decode_checked(raw.clone(), None, &limits)?;
    Ok(Arc::clone(bal.post_state()))
}
