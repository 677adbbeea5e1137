//! `foldgate advance`: takes a store forward over a chain from the blocks' access lists alone, nothing executed.
//!
//! The input is what `demo --export` writes and `replay` reads: a genesis, a chain of RLP blocks, of which the headers are
//! looked at, and a folder of lists.
//!
//! Invariant: nothing is written before the root at the next checkpoint was found right.

use std::{
    collections::BTreeSet,
    io::Write,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use alloy_hardforks::EthereumHardforks;
use foldgate_core::{StateAnchor, TrieStore};
use foldgate_evm::{Block, BlockDecodeError};
use foldgate_pipeline::{AdvanceBlock, AdvanceOptions, Checkpoints, advance};
use foldgate_testing::{
    ReadError,
    chains::{BalDir, ChainReader, read_genesis},
};
use serde::Serialize;

use crate::{
    CliError,
    args::AdvanceArgs,
    backend::{Backend, Home, OnBackend},
    chain_store::{ChainStoreError, Origin},
    import::milliseconds,
    progress::Progress,
};

/// What the store may cache.
const CACHE_BYTES: usize = 512 << 20;

/// Why an advance stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdvanceError {
    /// A file cannot be read, or is malformed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Genesis and store do not go together, or the store failed.
    #[error(transparent)]
    Store(#[from] ChainStoreError),
    /// A block is malformed.
    #[error("{}: block {index} of the file", file.display())]
    Block {
        /// The chain's file.
        file: PathBuf,
        /// Which of its blocks, from 0.
        index: u64,
        /// What is wrong.
        source: BlockDecodeError,
    },
    /// The blocks could not be applied. The store stands at its last checkpoint.
    #[error("{}", file.display())]
    Advance {
        /// The chain's file.
        file: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What `foldgate advance --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Blocks applied.
    pub blocks: u64,
    /// Commits, one for each checkpoint.
    pub checkpoints: u64,
    /// The store's height.
    pub tip: u64,
    /// The time for all of it, in milliseconds.
    pub wall_ms: f64,
    /// Blocks in a second.
    pub blocks_per_s: f64,
}

pub(crate) fn command(args: &AdvanceArgs, out: &mut dyn Write) -> Result<bool, CliError> {
    let (summary, tip) = run(args)?;
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string(&summary)?)?,
        false => {
            let Summary { blocks, checkpoints, wall_ms, blocks_per_s, .. } = summary;
            writeln!(out, "to      {tip}")?;
            writeln!(out, "blocks  {blocks} in {checkpoints} commits, {wall_ms:.1} ms: {blocks_per_s:.1} blocks/s")?;
        }
    }
    Ok(true)
}

/// Takes a store forward.
///
/// # Errors
/// If the backend is not there; [`AdvanceError`] at the first thing that is wrong.
pub fn run(args: &AdvanceArgs) -> Result<(Summary, StateAnchor), CliError> {
    args.backend.run(OverChain(args))?
}

struct OverChain<'a>(&'a AdvanceArgs);

impl OnBackend for OverChain<'_> {
    type Output = Result<(Summary, StateAnchor), CliError>;

    fn on<B: Backend>(self, backend: B) -> Self::Output {
        let home = Home::open(backend, self.0.db.as_deref(), CACHE_BYTES)?;
        Ok(over_chain(self.0, home.store())?)
    }
}

fn over_chain<S: TrieStore>(args: &AdvanceArgs, store: &Arc<S>) -> Result<(Summary, StateAnchor), AdvanceError> {
    let genesis = read_genesis(&args.genesis)?;
    let origin = Origin::new(&genesis, args.amsterdam_rules.into())?;
    let from = origin.tip(&**store)?;
    let lists = BalDir::open(&args.bals)?;
    let reader = ChainReader::open(&args.chain)?;
    origin.load(store, ())?;

    let begin = Instant::now();
    let first = from.block.number + 1;
    let options = AdvanceOptions {
        checkpoints: match args.checkpoint_every {
            Some(blocks) => Checkpoints::Every(blocks),
            None => Checkpoints::At(BTreeSet::new()),
        },
        merged_blocks: args.merged_blocks,
        unwind_depth: args.unwind_depth,
        ..AdvanceOptions::default()
    };
    let blocks = reader.filter_map(|found| {
        let read = || -> Result<Option<AdvanceBlock>, AdvanceError> {
            let found = found?;
            let decoded = Block::decode(&found.rlp);
            let block = decoded.map_err(|source| AdvanceError::Block {
                file: args.chain.clone(),
                index: found.index,
                source,
            })?;
            if block.header.number < first {
                return Ok(None);
            }
            let before_cancun = !origin.spec.is_cancun_active_at_timestamp(block.header.timestamp);
            let bal = lists.get(block.header.number, block.hash)?;
            Ok(Some(AdvanceBlock { facts: block.facts(), bal, before_cancun }))
        };
        read().transpose()
    });
    let progress = Progress::unknown_blocks(args.json);
    let (mut commits, mut applied) = (0, 0);
    let tip = advance(&**store, blocks, &options, &mut |checkpoint| {
        commits += 1;
        progress.step_blocks(checkpoint.blocks - applied);
        applied = checkpoint.blocks;
    })
    .map_err(|error| AdvanceError::Advance { file: args.chain.clone(), source: Box::new(error) })?;
    progress.finish();
    let wall = begin.elapsed();
    let blocks_per_s = if wall > Duration::ZERO { applied as f64 / wall.as_secs_f64() } else { 0.0 };
    let (checkpoints, wall_ms) = (commits, milliseconds(wall));
    Ok((Summary { blocks: applied, checkpoints, tip: tip.block.number, wall_ms, blocks_per_s }, tip))
}
