//! Catch-up without executing: the access lists of many blocks take a store forward, folded together.
//!
//! ```text
//! blocks, in order --pieces of `merged_blocks`--> lists decoded, resolved together, one fold: a layer
//!                                                 at a checkpoint: its layers, one atomic commit
//! ```
//!
//! Lists are claims that nothing here confirms but the state roots: a list that leads to the right root may still list too
//! much. So this is for chains whose blocks are trusted for another reason: a node that was offline behind a finalised
//! head, or one that heals its state.
//!
//! A root is computed for each piece, and for each checkpoint, where a piece ends at the latest. Between them no root is
//! known, and of the changes there only the sum is: the store keeps one reverse diff for each piece, filed under its last
//! block, and none for the blocks before. So it can be unwound to checkpoints, and not to the blocks between them: an
//! unwind to one of those finds that the root is another, and refuses.
//!
//! Invariants:
//! 1. Nothing is written unless the root at the next checkpoint is the header's; each checkpoint is one commit.
//! 2. Blocks before Cancun are refused: no list says all that SELFDESTRUCT may delete there.

use std::{
    collections::BTreeSet,
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
    /// The most blocks that one fold takes together: what memory holds of lists.
    pub merged_blocks: NonZeroUsize,
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

/// A block whose list was found good.
struct Listed {
    anchor: StateAnchor,
    bal: Bal,
}

/// Takes the store forward over `blocks`, which come in order and begin above its tip, from their access lists alone.
/// Tells `progress` of each checkpoint that is durable, and gives the store's tip.
///
/// While it runs, nobody else may write to the store.
///
/// # Errors
/// See [`AdvanceError`]. What was made durable before stays.
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
    let mut state = Advance { store, options, cache, parent: base.anchor().block, base, pieces: Vec::new(), blocks: 0 };
    let mut piece = Vec::new();
    let mut blocks = blocks.into_iter().peekable();
    let mut count = 0;
    while let Some(block) = blocks.next() {
        let block = block.map_err(AdvanceError::Input)?;
        count += 1;
        state.check_link(&block)?;
        let number = block.facts.block.number;
        piece.push(block);
        let checkpoint = options.checkpoints.is_at(number, count) || blocks.peek().is_none();
        if checkpoint || piece.len() >= options.merged_blocks.get() {
            state.fold(std::mem::take(&mut piece))?;
        }
        if checkpoint {
            progress(&state.commit()?);
        }
    }
    Ok(state.base.anchor())
}

/// An advance under way.
struct Advance<'a, S: TrieStore> {
    store: &'a S,
    options: &'a AdvanceOptions,
    cache: Arc<PageCache>,
    /// The durable state.
    base: Cached<S::Snapshot>,
    /// The newest block looked at.
    parent: BlockNumHash,
    /// What was folded since the last checkpoint, oldest first, each with its blocks.
    pieces: Vec<(Arc<Layer>, Vec<Listed>)>,
    blocks: u64,
}

impl<S: TrieStore> Advance<'_, S> {
    fn check_link<I: std::error::Error>(&mut self, block: &AdvanceBlock) -> Result<(), AdvanceError<S::Error, I>> {
        let name = block.facts.block;
        if block.facts.parent() != Some(self.parent) {
            let (got, expected) = (block.facts.parent_hash, self.parent);
            return Err(AdvanceError::NotLinked { block: name, got, expected });
        }
        self.parent = name;
        Ok(())
    }

    /// Folds some blocks together, over what was folded before them.
    fn fold<I: std::error::Error>(&mut self, piece: Vec<AdvanceBlock>) -> Result<(), AdvanceError<S::Error, I>> {
        // One by one, so that the first fault is the one reported; the decoding is shared out to threads.
        let listed: Vec<_> = piece.into_par_iter().map(prepare).collect();
        let listed = listed.into_iter().collect::<Result<Vec<_>, _>>().map_err(Unfit::into_error)?;
        let Some(last) = listed.last().map(|listed| listed.anchor) else { return Ok(()) };
        let layers = self.pieces.iter().map(|(layer, _)| Arc::clone(layer)).collect();
        let broken = || AdvanceError::Layers { block: last.block };
        let parent = Overlay::new(self.base.clone(), layers).map_err(|_| broken())?;
        let states: Vec<&HashedPostState> = listed.iter().map(|listed| &**listed.bal.post_state()).collect();
        let changes = resolve_all(&states, &parent, &self.options.fold).map_err(AdvanceError::Store)?;
        let outcome = fold(&parent, changes, &self.options.fold)
            .map_err(|source| AdvanceError::Fold { block: last.block, source })?;
        let (got, expected) = (outcome.computed_state_root, last.state_root);
        if got != expected {
            return Err(AdvanceError::StateRootMismatch { block: last.block, got, expected });
        }
        // The lists go to the sidecar block by block.
        let layer = Layer::new(parent.anchor().block, last.block, outcome, None);
        self.pieces.push((Arc::new(layer), listed));
        Ok(())
    }

    /// Makes durable what was folded since the last checkpoint.
    fn commit<I: std::error::Error>(&mut self) -> Result<Checkpoint, AdvanceError<S::Error, I>> {
        let broken = || AdvanceError::Layers { block: self.parent };
        let layers: Vec<_> = self.pieces.iter().map(|(layer, _)| Arc::clone(layer)).collect();
        let Some(batch) = Layer::merged_batch(&layers).map_err(|_| broken())? else { return Err(broken()) };
        let tries = layers.last().map(|layer| layer.tries.clone()).ok_or_else(broken)?;
        let pieces = std::mem::take(&mut self.pieces);
        self.blocks += pieces.iter().map(|(_, listed)| listed.len() as u64).sum::<u64>();
        let batch = with_every_block(batch, pieces);
        self.store.commit(&batch).map_err(AdvanceError::Store)?;
        self.cache.advance(batch.parent, self.parent, &batch.rows);
        let snapshot = self.store.snapshot().map_err(AdvanceError::Store)?;
        self.base = Cached::new(snapshot, Arc::clone(&self.cache)).with_tries(tries);
        Ok(Checkpoint { tip: self.base.anchor(), blocks: self.blocks })
    }
}

/// Why a block cannot be applied, before any store is asked.
enum Unfit {
    BeforeCancun(BlockNumHash),
    NoBal(BlockNumHash),
    NoExpectedRoot(BlockNumHash),
    Bal(BlockNumHash, BalError),
}

impl Unfit {
    fn into_error<E: std::error::Error, I: std::error::Error>(self) -> AdvanceError<E, I> {
        match self {
            Self::BeforeCancun(block) => AdvanceError::BeforeCancun { block },
            Self::NoBal(block) => AdvanceError::NoBal { block },
            Self::NoExpectedRoot(block) => AdvanceError::NoExpectedRoot { block },
            Self::Bal(block, source) => AdvanceError::Bal { block, source },
        }
    }
}

fn prepare(block: AdvanceBlock) -> Result<Listed, Unfit> {
    let AdvanceBlock { facts, bal, before_cancun } = block;
    let name = facts.block;
    if before_cancun {
        return Err(Unfit::BeforeCancun(name));
    }
    let raw = bal.ok_or(Unfit::NoBal(name))?;
    let state_root = facts.expected_state_root.ok_or(Unfit::NoExpectedRoot(name))?;
    let bal = Bal::decode_checked(raw, facts.expected_bal_hash, &BalLimits::from(&facts))
        .map_err(|error| Unfit::Bal(name, error))?;
    Ok(Listed { anchor: StateAnchor { block: name, state_root }, bal })
}

/// The batch names one block for each piece, the last one, whose way back is that of the whole piece: the others go before
/// it, with no way back of their own.
fn with_every_block(batch: CommitBatch, pieces: Vec<(Arc<Layer>, Vec<Listed>)>) -> CommitBatch {
    let CommitBatch { parent, blocks, rows } = batch;
    let all = blocks.into_iter().zip(pieces).flat_map(|(piece, (_, listed))| {
        let mut reverse = Some(piece.reverse);
        let last = piece.anchor.block;
        listed.into_iter().map(move |Listed { anchor, bal }| {
            let whole = if anchor.block == last { reverse.take() } else { None };
            let reverse = whole.unwrap_or_else(ReverseDiff::default);
            CommittedBlock { anchor, reverse, bal: Some(bal.raw().clone()) }
        })
    });
    CommitBatch { parent, blocks: all.collect(), rows }
}
