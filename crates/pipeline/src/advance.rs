//! Catch-up without executing: the access lists of many blocks take a store forward, folded together.
//!
//! ```text
//!            folded together                       alone: the last `unwind_depth`
//!  blocks: |---- piece ----|---- piece ----|-- -|-|-|-|-|-|-|-|-|
//!            each a fold, its root checked: a layer; at a checkpoint those since the last one become one commit
//! ```
//!
//! Lists are claims that nothing here confirms but the state roots: a list that leads to the right root may still list too
//! much. So this is for chains whose blocks are trusted for another reason: a node that was offline behind a finalised
//! head, or one that heals its state.
//!
//! Up to `merged_blocks` blocks are resolved together and folded once. Between two folds no root is known, and of the
//! changes there only the sum is: the store keeps one reverse diff for each piece, filed under its last block, and none for
//! the blocks before. So it can be unwound to where a piece ends, and not to the blocks within: an unwind to one of those
//! finds that the root is another, and refuses. A header's root that is wrong there is not noticed.
//!
//! The last blocks, which a reorganisation may replace, are folded each alone: each root is checked, and each block has its
//! own reverse diff. To know them the input is read ahead.
//!
//! Invariants:
//! 1. Nothing is written unless the root at the next checkpoint is the header's; each checkpoint is one commit.
//! 2. Blocks before Cancun are refused: no list says all that SELFDESTRUCT may delete there.
//! 3. An advance without an error leaves a store that can be unwound to each of the last `unwind_depth` blocks that it
//!    applied, and to the block below them. Further only as far as the store could be before.

use std::{
    collections::{BTreeSet, VecDeque},
    num::{NonZeroU64, NonZeroUsize},
    sync::Arc,
};

use alloy_primitives::{B256, Bytes};
use foldgate_bal::{Bal, BalError, BalLimits};
use foldgate_core::{
    BlockFacts, BlockNumHash, BlockNumber, Cached, CommitBatch, CommittedBlock, FoldError, FoldOptions, Forest,
    HashedPostState, Layer, Overlay, PageCache, ReverseDiff, StateAnchor, TrieReader, TrieStore, fold, resolve_all,
    trie::DEFAULT_NODE_BYTES,
};
use rayon::prelude::*;

use crate::config::UNWIND_DEPTH;

/// A block to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdvanceBlock {
    /// Its facts, with the header's state root.
    pub facts: BlockFacts,
    /// Its raw access list.
    pub bal: Option<Bytes>,
    /// Whether it is older than Cancun.
    pub before_cancun: bool,
}

/// Where the root is checked and the state made durable, besides after the last block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkpoints {
    /// At these heights.
    At(BTreeSet<BlockNumber>),
    /// After so many blocks, again and again.
    Every(NonZeroU64),
}

impl Checkpoints {
    /// Whether the `count`th block, of this height, is one.
    fn is_at(&self, number: BlockNumber, count: u64) -> bool {
        match self {
            Self::At(heights) => heights.contains(&number),
            Self::Every(blocks) => count.is_multiple_of(blocks.get()),
        }
    }
}

/// How blocks are applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdvanceOptions {
    /// Where the root is checked and the state made durable.
    pub checkpoints: Checkpoints,
    /// The most blocks that one fold takes together.
    pub merged_blocks: NonZeroUsize,
    /// How many of the last blocks are folded each alone: as deep as a reorganisation may go that comes next
    /// ([`crate::PipelineConfig::unwind_depth`]). So many blocks are read ahead of what is applied, and one more: memory
    /// holds their lists, and nothing is made durable before they came.
    pub unwind_depth: u64,
    /// When folds use threads: those of the rayon pool of the caller.
    pub fold: FoldOptions,
    /// The page cache's budget.
    pub page_cache_bytes: usize,
}

impl Default for AdvanceOptions {
    fn default() -> Self {
        Self {
            checkpoints: Checkpoints::At(BTreeSet::new()),
            // UNWRAP: the constant is not zero.
            merged_blocks: NonZeroUsize::new(64).unwrap(),
            unwind_depth: UNWIND_DEPTH,
            fold: FoldOptions::default(),
            page_cache_bytes: 256 << 20,
        }
    }
}

/// How far an advance has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checkpoint {
    /// The durable tip.
    pub tip: StateAnchor,
    /// How many blocks were made durable so far.
    pub blocks: u64,
}

/// Why an advance stopped. The store stands at its last checkpoint. `E` is the store's error, `I` the input's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdvanceError<E: std::error::Error + 'static, I: std::error::Error + 'static> {
    /// The store failed or refused.
    #[error("the store failed")]
    Store(#[source] E),
    /// The input failed.
    #[error("reading the blocks")]
    Input(#[source] I),
    /// A block does not stand on the one before it, or on the store's tip.
    #[error("block {block} does not stand on {expected}: its parent is {got}")]
    NotLinked {
        /// The block.
        block: BlockNumHash,
        /// Its parent's hash, as its header says.
        got: B256,
        /// The block before it.
        expected: BlockNumHash,
    },
    /// A block is older than Cancun.
    #[error("block {block} is older than Cancun: no list says all that it changes")]
    BeforeCancun {
        /// The block.
        block: BlockNumHash,
    },
    /// A block has no list.
    #[error("block {block} has no access list")]
    NoBal {
        /// The block.
        block: BlockNumHash,
    },
    /// A block's header does not tell its state root.
    #[error("the state root of block {block} is not known")]
    NoExpectedRoot {
        /// The block.
        block: BlockNumHash,
    },
    /// A list is malformed, or not the one that the header commits to.
    #[error("the access list of block {block}")]
    Bal {
        /// The block.
        block: BlockNumHash,
        /// What is wrong.
        source: BalError,
    },
    /// The lists lead to another root than the header says: one of those since the last root that was right is wrong.
    #[error("state root mismatch at block {block}: got {got}, the header says {expected}")]
    StateRootMismatch {
        /// The block.
        block: BlockNumHash,
        /// The computed root.
        got: B256,
        /// The header's.
        expected: B256,
    },
    /// A fold failed: the store contradicts itself.
    #[error("folding up to block {block}")]
    Fold {
        /// The last block folded.
        block: BlockNumHash,
        /// Why.
        source: FoldError<E>,
    },
    /// What was folded cannot be put together: a bug.
    #[error("the layers up to block {block} do not stand on each other")]
    Layers {
        /// The last block folded.
        block: BlockNumHash,
    },
}

/// Takes the store forward over `blocks`, which come in order and begin above its tip, from their access lists alone.
/// Tells `progress` of each checkpoint that is durable, and gives the store's tip.
///
/// While it runs, nobody else may write to the store.
///
/// # Errors
/// See [`AdvanceError`]. What was made durable before stays. Where the input fails, or goes on with a block that cannot be
/// applied, that is everything up to the last checkpoint before it.
pub fn advance<S: TrieStore, I: std::error::Error>(
    store: &S,
    blocks: impl IntoIterator<Item = Result<AdvanceBlock, I>>,
    options: &AdvanceOptions,
    progress: &mut dyn FnMut(&Checkpoint),
) -> Result<StateAnchor, AdvanceError<S::Error, I>> {
    let snapshot = store.snapshot().map_err(AdvanceError::Store)?;
    let cache = Arc::new(PageCache::new(options.page_cache_bytes));
    cache.reset(snapshot.anchor().block);
    let base = Cached::new(snapshot, Arc::clone(&cache)).with_tries(Forest::new(DEFAULT_NODE_BYTES).unloaded());
    let depth = options.unwind_depth;
    let mut ahead = Ahead::new(blocks.into_iter(), base.anchor().block, depth);
    let mut state = Advance { store, options, cache, base, layers: Vec::new(), blocks: Vec::new(), durable: 0 };
    let (mut piece, mut count) = (Vec::new(), 0);
    while let Some(block) = ahead.next() {
        count += 1;
        let left = ahead.left();
        let is_last = left == 0 && ahead.fault.is_none();
        let checkpoint = options.checkpoints.is_at(block.anchor.block.number, count) || is_last;
        piece.push(block);
        // Those that are left, if they are so few, are folded alone: the last piece ends here.
        if checkpoint || left == depth || piece.len() >= options.merged_blocks.get() {
            state.fold(std::mem::take(&mut piece), left < depth)?;
        }
        if checkpoint {
            progress(&state.commit()?);
        }
    }
    ahead.fault.map_or(Ok(state.base.anchor()), Err)
}

/// A block that stands on the one before it, and of which all is there.
struct Linked {
    facts: BlockFacts,
    anchor: StateAnchor,
    raw: Bytes,
}

/// The input, read ahead by so many blocks that the last ones are known to be the last.
struct Ahead<B, E: std::error::Error + 'static, I: std::error::Error + 'static> {
    input: B,
    depth: u64,
    window: VecDeque<Linked>,
    /// The newest block read.
    parent: BlockNumHash,
    ended: bool,
    /// What ended the input before its end. What was read before is applied all the same.
    fault: Option<AdvanceError<E, I>>,
}

impl<B, E, I> Ahead<B, E, I>
where
    B: Iterator<Item = Result<AdvanceBlock, I>>,
    E: std::error::Error + 'static,
    I: std::error::Error + 'static,
{
    const fn new(input: B, parent: BlockNumHash, depth: u64) -> Self {
        Self { input, depth, window: VecDeque::new(), parent, ended: false, fault: None }
    }

    /// How many blocks follow on the one given last: more than `depth`, unless there are no others.
    fn left(&self) -> u64 {
        self.window.len() as u64
    }

    fn read(&mut self) -> Result<Option<Linked>, AdvanceError<E, I>> {
        let Some(block) = self.input.next() else { return Ok(None) };
        let AdvanceBlock { facts, bal, before_cancun } = block.map_err(AdvanceError::Input)?;
        let block = facts.block;
        if facts.parent() != Some(self.parent) {
            return Err(AdvanceError::NotLinked { block, got: facts.parent_hash, expected: self.parent });
        }
        if before_cancun {
            return Err(AdvanceError::BeforeCancun { block });
        }
        let raw = bal.ok_or(AdvanceError::NoBal { block })?;
        let state_root = facts.expected_state_root.ok_or(AdvanceError::NoExpectedRoot { block })?;
        self.parent = block;
        Ok(Some(Linked { facts, anchor: StateAnchor { block, state_root }, raw }))
    }

    fn next(&mut self) -> Option<Linked> {
        while !self.ended && self.left() <= self.depth.saturating_add(1) {
            match self.read() {
                Ok(Some(block)) => self.window.push_back(block),
                Ok(None) => self.ended = true,
                Err(fault) => (self.ended, self.fault) = (true, Some(fault)),
            }
        }
        self.window.pop_front()
    }
}

/// An advance under way.
struct Advance<'a, S: TrieStore> {
    store: &'a S,
    options: &'a AdvanceOptions,
    cache: Arc<PageCache>,
    /// The durable state.
    base: Cached<S::Snapshot>,
    /// What was folded since the last checkpoint, oldest first.
    layers: Vec<Arc<Layer>>,
    /// The blocks in it, with their lists, one layer's behind the other's.
    blocks: Vec<(StateAnchor, Bytes)>,
    /// How many blocks were made durable.
    durable: u64,
}

impl<S: TrieStore> Advance<'_, S> {
    /// Folds some blocks, together or each alone, over what was folded before them.
    fn fold<I: std::error::Error>(&mut self, piece: Vec<Linked>, alone: bool) -> Result<(), AdvanceError<S::Error, I>> {
        // One by one, so that the first fault is the one reported; the decoding is shared out to threads.
        let lists: Vec<_> = piece.par_iter().map(decode).collect();
        let lists = lists.into_iter().collect::<Result<Vec<_>, _>>();
        let lists = lists.map_err(|(block, source)| AdvanceError::Bal { block, source })?;
        let size = if alone { 1 } else { piece.len().max(1) };
        piece.chunks(size).zip(lists.chunks(size)).try_for_each(|(blocks, lists)| self.fold_together(blocks, lists))
    }

    fn fold_together<I: std::error::Error>(
        &mut self,
        blocks: &[Linked],
        lists: &[Bal],
    ) -> Result<(), AdvanceError<S::Error, I>> {
        let Some(last) = blocks.last() else { return Ok(()) };
        let StateAnchor { block, state_root: expected } = last.anchor;
        let parent = Overlay::new(self.base.clone(), self.layers.clone());
        let parent = parent.map_err(|_| AdvanceError::Layers { block })?;
        let states: Vec<&HashedPostState> = lists.iter().map(|bal| &**bal.post_state()).collect();
        let changes = resolve_all(&states, &parent, &self.options.fold).map_err(AdvanceError::Store)?;
        let outcome =
            fold(&parent, changes, &self.options.fold).map_err(|source| AdvanceError::Fold { block, source })?;
        let got = outcome.computed_state_root;
        if got != expected {
            return Err(AdvanceError::StateRootMismatch { block, got, expected });
        }
        self.blocks.extend(blocks.iter().map(|linked| (linked.anchor, linked.raw.clone())));
        // Lists go to the sidecar block by block.
        self.layers.push(Arc::new(Layer::new(parent.anchor().block, block, outcome, None)));
        Ok(())
    }

    /// Makes durable what was folded since the last checkpoint.
    fn commit<I: std::error::Error>(&mut self) -> Result<Checkpoint, AdvanceError<S::Error, I>> {
        let layers = std::mem::take(&mut self.layers);
        let block = layers.last().map_or_else(|| self.base.anchor().block, |newest| newest.anchor.block);
        let broken = || AdvanceError::Layers { block };
        let batch = Layer::merged_batch(&layers).map_err(|_| broken())?.ok_or_else(broken)?;
        let tries = layers.last().map(|layer| layer.tries.clone()).ok_or_else(broken)?;
        // The batch names the last block of each piece, with the way back of it all: the others have none of their own.
        let mut pieces = batch.blocks.into_iter().peekable();
        let blocks = std::mem::take(&mut self.blocks).into_iter().map(|(anchor, raw)| {
            let piece = pieces.next_if(|piece| piece.anchor == anchor);
            let reverse = piece.map_or_else(ReverseDiff::default, |piece| piece.reverse);
            CommittedBlock { anchor, reverse, bal: Some(raw) }
        });
        let batch = CommitBatch { blocks: blocks.collect(), ..batch };
        self.store.commit(&batch).map_err(AdvanceError::Store)?;
        self.cache.advance(batch.parent, block, &batch.rows);
        let snapshot = self.store.snapshot().map_err(AdvanceError::Store)?;
        self.base = Cached::new(snapshot, Arc::clone(&self.cache)).with_tries(tries);
        self.durable += batch.blocks.len() as u64;
        Ok(Checkpoint { tip: self.base.anchor(), blocks: self.durable })
    }
}

fn decode(block: &Linked) -> Result<Bal, (BlockNumHash, BalError)> {
    let Linked { facts, raw, .. } = block;
    let bal = Bal::decode_checked(raw.clone(), facts.expected_bal_hash, &BalLimits::from(facts));
    bal.map_err(|error| (facts.block, error))
}
