//! What a record log holds above the store's tip is computed again: folded, not executed.
//!
//! ```text
//!   store: .. -- tip            log: records of blocks above it, and of heads
//!                  \__ layer -- layer -- layer            each folded over its parent, its root held to the record
//!                          \__ layer                      branches too
//! ```
//!
//! Invariants:
//! 1. Every block that was acknowledged and stands on the store's tip, or on others that do, is in memory afterwards. What
//!    stands on neither is counted.
//! 2. A recovered block's root is its record's. Anything else is an error, and the pipeline does not open.
//! 3. Nothing is written.

use std::{
    collections::HashMap,
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use alloy_primitives::B256;
use foldgate_bal::{Bal, BalError, BalLimits};
use foldgate_core::{
    BlockHash, BlockNumHash, BlockRecord, Cached, HashedPostState, Layer, Overlay, Record, RecordLog, Redo, TrieReader,
    resolve_with,
    trie::{FoldError, FoldOptions, fold},
};

use crate::{
    config::Canonical,
    counters::SkipReason,
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
    /// Records of blocks at or below the height of the store's tip: it has them, or they stood on a branch that lost.
    pub in_the_store: u64,
    /// Records of blocks above it that stand on a block which is neither in the store nor recovered.
    pub dropped: u64,
    /// How long it took.
    pub took: Duration,
}

/// What was recovered.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// Parents before children.
    pub(crate) blocks: Vec<Arc<ValidBlock>>,
    pub(crate) head: BlockNumHash,
    pub(crate) report: RecoveryReport,
}

impl Recovered {
    /// What there is without a log.
    pub(crate) fn nothing(tip: BlockNumHash) -> Self {
        Self { blocks: Vec::new(), head: tip, report: RecoveryReport::default() }
    }

    /// Puts the blocks into an empty tree.
    pub(crate) fn put_into<R: TrieReader>(&self, tree: &mut Tree<R>) {
        self.blocks.iter().for_each(|valid| tree.put_recovered(valid));
    }
}

/// Computes again what the log holds above the snapshot's block.
pub(crate) fn recover<R: TrieReader, L: RecordLog>(
    base: &Cached<R>,
    log: &mut L,
    canonical: Canonical,
) -> Result<Recovered, RecoveryError> {
    let begin = Instant::now();
    let tip = base.anchor().block;
    let (mut records, mut heads, mut report) = (Vec::new(), Vec::new(), RecoveryReport::default());
    // Heads with the number of records that stand before them.
    let replayed = log.replay(&mut |record| match record {
        Record::Block(record) if record.anchor.block.number > tip.number => records.push(record),
        Record::Block(_) => report.in_the_store += 1,
        Record::Canonical(head) => heads.push((records.len(), head)),
    });
    replayed.map_err(|error| RecoveryError::Log(Box::new(error)))?;
    let mut recovered = Recovered { blocks: Vec::new(), head: tip, report };
    let mut by_hash: HashMap<BlockHash, Arc<Layer>> = HashMap::new();
    let mut positions = Vec::new();
    for (position, record) in records.into_iter().enumerate() {
        let block = record.anchor.block;
        // A block may be judged, and recorded, more than once.
        if by_hash.contains_key(&block.hash) {
            continue;
        }
        let Some(layers) = record.parent().and_then(|parent| way_to(parent, tip, &by_hash)) else {
            recovered.report.dropped += 1;
            continue;
        };
        let valid = Arc::new(fold_again(base, layers, record)?);
        by_hash.extend(valid.layer.clone().map(|layer| (block.hash, layer)));
        recovered.blocks.push(valid);
        positions.push(position);
    }
    // The newest head that there is: an older one is its ancestor, or a branch that was left.
    let known = |head: &BlockNumHash| *head == tip || by_hash.get(&head.hash).is_some_and(|l| l.anchor.block == *head);
    let newest = heads.iter().rev().find(|(_, head)| known(head)).copied();
    let (since, head) = newest.unwrap_or((0, tip));
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

/// The layers from the tip to a block, oldest first; `None` if it does not stand on the tip.
fn way_to(block: BlockNumHash, tip: BlockNumHash, by_hash: &HashMap<BlockHash, Arc<Layer>>) -> Option<Vec<Arc<Layer>>> {
    let (mut layers, mut at) = (Vec::new(), block);
    while at != tip {
        let layer = by_hash.get(&at.hash).filter(|layer| layer.anchor.block == at)?;
        layers.push(Arc::clone(layer));
        at = layer.parent;
    }
    layers.reverse();
    Some(layers)
}

fn fold_again<R: TrieReader>(
    base: &Cached<R>,
    layers: Vec<Arc<Layer>>,
    record: BlockRecord,
) -> Result<ValidBlock, RecoveryError> {
    let block = record.anchor.block;
    let fold_failed = |error: Box<dyn Error + Send + Sync>| RecoveryError::Fold { block, error };
    let parent = Overlay::new(base.clone(), layers).map_err(|error| fold_failed(Box::new(error)))?;
    let (state, bal, mode) = match record.redo {
        Redo::Bal(raw) => {
            let state = list_state(&raw).map_err(|error| RecoveryError::Bal { block, error })?;
            (state, Some(raw), Mode::BalDriven)
        }
        Redo::Diff { diff, bal } => (Arc::new(diff.to_post_state()), bal, Mode::Incremental(SkipReason::Recovered)),
    };
    let options = FoldOptions::default();
    let read_failed = |error| RecoveryError::Read { block, error: Box::new(error) };
    let changes = resolve_with(&state, &parent, &options).map_err(read_failed)?;
    let outcome = fold(&parent, changes, &options).map_err(|error| match error {
        FoldError::Read(error) => read_failed(error),
        other => fold_failed(Box::new(other)),
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
