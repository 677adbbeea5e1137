//! `foldgate bench pipeline`: what folding beside execution hides, on chains with real EVM execution.
//!
//! ```text
//! make a window of blocks in memory; then, in an order that changes from window to window:
//!     alone         each block executed, then its writes folded, on one thread, each reading what it needs: exec, fold
//!     BAL-driven    a pipeline imports the window from arrival to the last verdict: wall
//!     incremental   another one does, folding executed writes: wall of the incremental mode
//! ```
//!
//! Each of the three has a store of its own with the same state, and the pipelines a record log: a block is durable when its
//! record is, and the store is written later. Between windows everything is flushed, so that none waits for another's
//! commit; how long that takes is reported beside.
//!
//! Invariants:
//! 1. All three come to the state roots of the headers; a wrong one is an error, never a figure.
//! 2. The first window is not counted: caches fill.
//! 3. The pipeline has one thread less than there are processors, and each stays on one: the first is the executor's.

mod chain;

use std::{
    env,
    io::Write,
    num::NonZeroUsize,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use alloy_primitives::B256;
use foldgate_bal::{Bal, BalLimits};
use foldgate_core::{
    BalStore, BlockNumHash, Cached, EmptyAccounts, FoldOptions, Forest, HashedPostState, KeyHasher, Layer, MemoryStore,
    Overlay, PageCache, TrieReader, TrieStore, fold, resolve_with, trie::DEFAULT_NODE_BYTES,
};
use foldgate_evm::{AmsterdamRules, ChainSpec, execute_block_with_list};
use foldgate_pipeline::{Mode, Pipeline, PipelineConfig};
use foldgate_record_log::{FileLog, Options};
use serde::Serialize;

pub use self::chain::ChainArg;
use self::chain::{Load, WALLETS, genesis};
use crate::{
    CliError,
    args::{BenchPipelineArgs, ModeArg},
    backend::{Backend, BackendError, BackendKind, Home, OnBackend},
    chain_store::{ChainStoreError, Origin},
    import::{BlockReport, ImportError, Importer, List, Ready, hidden, milliseconds},
    maker::{ChainError, Maker},
    progress::Progress,
};

/// How many blocks are imported at a stretch.
const WINDOW: u64 = 16;
/// What each store may cache, where it has a cache of its own.
const CACHE_BYTES: usize = 512 << 20;
const PAGE_CACHE_BYTES: usize = 256 << 20;

/// Why the measurement stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchPipelineError {
    /// The genesis could not be made: a fault of this tool.
    #[error("making the genesis")]
    Genesis(#[from] serde_json::Error),
    /// The chain could not be made: a fault of this tool.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The genesis could not be put into a store.
    #[error(transparent)]
    Store(#[from] ChainStoreError),
    /// A block was not imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A block was not executed or folded on its own.
    #[error("executing and folding block {block} alone")]
    Alone {
        /// The block.
        block: BlockNumHash,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A root that was folded alone is not the header's.
    #[error("block {block} alone has the state root {got}, its header says {expected}")]
    WrongRoot {
        /// The block.
        block: BlockNumHash,
        /// The root folded.
        got: B256,
        /// The header's.
        expected: B256,
    },
}

/// One backend's figures. Times are sums over all blocks but the first window's, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PipelineLine {
    /// The chain.
    pub chain: &'static str,
    /// The store.
    pub backend: &'static str,
    /// Blocks measured.
    pub blocks: u64,
    /// Execution alone.
    pub exec_ms: f64,
    /// What a client that computes the root after execution pays for it: resolving and folding the writes alone, on one
    /// thread, records and rows read by the way.
    pub fold_ms: f64,
    /// From arrival to verdict, BAL-driven.
    pub wall_ms: f64,
    /// From arrival to verdict, incremental.
    pub wall_incremental_ms: f64,
    /// `wall_ms` against the longer of execution and fold.
    pub wall_over_max: f64,
    /// `(exec + fold - wall) / min(exec, fold)`: 1 if all of the shorter one is hidden.
    pub hidden: f64,
    /// Blocks folded ahead of their execution's end, of those measured.
    pub folded_ahead: u64,
    /// Execution within the BAL-driven pipeline.
    pub exec_in_pipeline_ms: f64,
    /// Resolving and folding within the BAL-driven pipeline.
    pub fold_in_pipeline_ms: f64,
    /// Decoding lists and reading ahead what they name, within the BAL-driven pipeline.
    pub ahead_in_pipeline_ms: f64,
    /// From the end of a block's execution to its verdict, BAL-driven: what the block costs besides its execution.
    pub confirm_ms: f64,
    /// The same, incremental.
    pub confirm_incremental_ms: f64,
    /// Flushing what the BAL-driven pipeline has in memory, after each window.
    pub flush_ms: f64,
    /// Threads of the pipeline.
    pub threads: usize,
    /// Gas used, in millions.
    pub mgas: f64,
    /// Accounts in the genesis.
    pub accounts: u64,
}

pub(crate) fn command(args: &BenchPipelineArgs, out: &mut dyn Write) -> Result<(), CliError> {
    let backends = if args.backend.is_empty() { BackendKind::BUILT_IN } else { &args.backend };
    for backend in backends {
        let line = backend.run(Measure(args))??;
        match args.json {
            true => writeln!(out, "{}", serde_json::to_string(&line)?)?,
            false => write_line(&line, out)?,
        }
        out.flush()?;
    }
    Ok(())
}

fn write_line(line: &PipelineLine, out: &mut dyn Write) -> std::io::Result<()> {
    let PipelineLine { chain, backend, blocks, exec_ms, fold_ms, wall_ms, wall_incremental_ms, .. } = line;
    let per_block = |sum: &f64| sum / (*blocks).max(1) as f64;
    let [exec, fold, wall, incremental] = [exec_ms, fold_ms, wall_ms, wall_incremental_ms].map(per_block);
    writeln!(out, "{chain} on {backend}: {blocks} blocks, {} of them folded ahead; ms per block", line.folded_ahead)?;
    writeln!(out, "  alone       exec {exec:.2}  fold {fold:.2}")?;
    writeln!(
        out,
        "  BAL-driven  wall {wall:.2}: {:.3} of the longer one, {:.0} % of the shorter one hidden",
        line.wall_over_max,
        100.0 * line.hidden
    )?;
    let confirms = [line.confirm_ms, line.confirm_incremental_ms].map(|sum| per_block(&sum));
    writeln!(out, "  incremental wall {incremental:.2}")?;
    writeln!(
        out,
        "  from execution's end to the verdict: {:.2} BAL-driven, {:.2} incremental",
        confirms[0], confirms[1]
    )
}

struct Measure<'a>(&'a BenchPipelineArgs);

impl OnBackend for Measure<'_> {
    type Output = Result<PipelineLine, CliError>;

    fn on<B: Backend>(self, backend: B) -> Self::Output {
        let place = self.0.dir.clone().unwrap_or_else(env::temp_dir);
        let home = || Home::temporary_in(backend, &place, CACHE_BYTES);
        let (alone, driven, incremental) = (home()?, home()?, home()?);
        let logs = tempfile::tempdir_in(&place).map_err(BackendError::TemporaryDirectory)?;
        let stores = [alone.store(), driven.store(), incremental.store()];
        Ok(measure(self.0, backend.kind(), stores, logs.path())?)
    }
}

fn measure<S: BalStore>(
    args: &BenchPipelineArgs,
    backend: BackendKind,
    stores: [&Arc<S>; 3],
    logs: &Path,
) -> Result<PipelineLine, BenchPipelineError> {
    let scale = u64::from(args.scale);
    let genesis = genesis(args.chain, scale)?;
    let origin = Origin::new(&genesis, AmsterdamRules::Osaka)?;
    let accounts = genesis.alloc.len() as u64;
    drop(genesis);
    let workshop = Arc::new(MemoryStore::new());
    let progress = Progress::load(4 * origin.leaves(), args.json);
    origin.load(&workshop, &progress)?;
    stores.iter().try_for_each(|store| origin.load(store, &progress))?;
    progress.finish();

    let spec = &origin.spec;
    let mut maker = Maker::new(Load::new(args.chain, scale), WALLETS, spec.clone(), workshop, origin.header.clone());
    let threads = args
        .threads
        .map_or_else(processors_less_one, |threads| NonZeroUsize::new(threads.into()).unwrap_or(NonZeroUsize::MIN));
    let [alone, driven, incremental] = stores;
    let mut alone = Alone::new(spec, alone)?;
    let open = |store: &Arc<S>, bal_driven| {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| ImportError::Open(error);
        let config = PipelineConfig {
            bal_driven,
            threads,
            pin_threads: true,
            page_cache_bytes: PAGE_CACHE_BYTES,
            ..PipelineConfig::default()
        };
        let folder = logs.join(if bal_driven { "bal" } else { "incremental" });
        let log = FileLog::open(folder, Options::DEFAULT).map_err(|error| failed(Box::new(error)))?;
        let pipeline = Pipeline::open_with_log(Arc::clone(store), log, config);
        let pipeline = pipeline.map_err(|error| failed(Box::new(error)))?;
        Ok::<_, ImportError>(Importer::new(spec, pipeline, origin.header.clone(), ModeArg::default()))
    };
    let (mut driven, mut incremental) = (open(driven, true)?, open(incremental, false)?);
    let mut sums = Sums::default();
    let blocks = args.blocks.unwrap_or(args.chain.default_blocks());
    let windows = 1 + blocks.div_ceil(WINDOW);
    let progress = Progress::blocks(3 * windows * WINDOW, args.json);
    for window in 0..windows {
        let made = (0..WINDOW).map(|_| maker.next()).collect::<Result<Vec<_>, _>>()?;
        let mut counted = Sums::default();
        for turn in 0..3 {
            match (window + turn) % 3 {
                0 => made.iter().try_for_each(|ready| {
                    progress.step_block();
                    alone.take(ready, &mut counted)
                })?,
                1 => {
                    import(&mut driven, &made, &progress, &mut |report| counted.add_driven(report))?;
                    let begin = Instant::now();
                    driven.flush()?;
                    counted.flush += begin.elapsed();
                }
                _ => {
                    import(&mut incremental, &made, &progress, &mut |report| {
                        counted.incremental += report.wall;
                        counted.incremental_confirm += report.confirm;
                    })?;
                    incremental.flush()?;
                }
            }
        }
        alone.flush()?;
        if window > 0 {
            sums.merge(&counted);
        }
    }
    progress.finish();
    Ok(sums.line(args.chain, backend, threads.get(), accounts))
}

/// Imports a window.
fn import<S: BalStore>(
    importer: &mut Importer<'_, S>,
    blocks: &[Ready],
    progress: &Progress,
    report: &mut (dyn FnMut(&BlockReport) + Send),
) -> Result<(), ImportError> {
    importer.import(blocks.to_vec(), &mut |block| {
        report(block);
        progress.step_block();
    })
}

fn processors_less_one() -> NonZeroUsize {
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(processors - 1).unwrap_or(NonZeroUsize::MIN)
}

/// What was measured.
#[derive(Debug, Default)]
struct Sums {
    blocks: u64,
    exec: Duration,
    fold: Duration,
    driven: Duration,
    driven_exec: Duration,
    driven_fold: Duration,
    driven_ahead: Duration,
    driven_confirm: Duration,
    incremental_confirm: Duration,
    incremental: Duration,
    flush: Duration,
    folded_ahead: u64,
    gas_used: u64,
}

impl Sums {
    fn add_driven(&mut self, report: &BlockReport) {
        self.blocks += 1;
        self.driven += report.wall;
        self.driven_exec += report.exec;
        self.driven_fold += report.fold;
        self.driven_ahead += report.ahead;
        self.driven_confirm += report.confirm;
        self.gas_used += report.gas_used;
        self.folded_ahead += u64::from(report.mode == Mode::BalDriven);
    }

    fn merge(&mut self, other: &Self) {
        self.blocks += other.blocks;
        self.exec += other.exec;
        self.fold += other.fold;
        self.driven += other.driven;
        self.driven_exec += other.driven_exec;
        self.driven_fold += other.driven_fold;
        self.driven_ahead += other.driven_ahead;
        self.driven_confirm += other.driven_confirm;
        self.incremental_confirm += other.incremental_confirm;
        self.incremental += other.incremental;
        self.flush += other.flush;
        self.folded_ahead += other.folded_ahead;
        self.gas_used += other.gas_used;
    }

    fn line(&self, chain: ChainArg, backend: BackendKind, threads: usize, accounts: u64) -> PipelineLine {
        let [exec_ms, fold_ms, wall_ms] = [self.exec, self.fold, self.driven].map(milliseconds);
        PipelineLine {
            chain: chain.name(),
            backend: backend.name(),
            blocks: self.blocks,
            exec_ms,
            fold_ms,
            wall_ms,
            wall_incremental_ms: milliseconds(self.incremental),
            wall_over_max: wall_ms / exec_ms.max(fold_ms),
            hidden: hidden(exec_ms, fold_ms, wall_ms),
            folded_ahead: self.folded_ahead,
            exec_in_pipeline_ms: milliseconds(self.driven_exec),
            fold_in_pipeline_ms: milliseconds(self.driven_fold),
            ahead_in_pipeline_ms: milliseconds(self.driven_ahead),
            confirm_ms: milliseconds(self.driven_confirm),
            confirm_incremental_ms: milliseconds(self.incremental_confirm),
            flush_ms: milliseconds(self.flush),
            threads,
            mgas: self.gas_used as f64 / 1e6,
            accounts,
        }
    }
}

/// Executes and folds blocks one after the other on this thread, with the pipeline's own parts and nothing beside.
struct Alone<'a, S: TrieStore> {
    spec: &'a ChainSpec,
    store: Arc<S>,
    base: Cached<S::Snapshot>,
    layers: Vec<Arc<Layer>>,
}

impl<'a, S: TrieStore> Alone<'a, S> {
    fn new(spec: &'a ChainSpec, store: &Arc<S>) -> Result<Self, ChainStoreError> {
        let snapshot = store.snapshot().map_err(|error| ChainStoreError::Store(Box::new(error)))?;
        let cache = Arc::new(PageCache::new(PAGE_CACHE_BYTES));
        cache.reset(snapshot.anchor().block);
        let base = Cached::new(snapshot, cache).with_tries(Forest::new(DEFAULT_NODE_BYTES).unloaded());
        Ok(Self { spec, store: Arc::clone(store), base, layers: Vec::new() })
    }

    fn take(&mut self, ready: &Ready, sums: &mut Sums) -> Result<(), BenchPipelineError> {
        let block = ready.block.num_hash();
        let failed = |source| BenchPipelineError::Alone { block, source };
        let (got, exec, fold) = self.execute_and_fold(ready).map_err(failed)?;
        let expected = ready.block.header.state_root;
        if got != expected {
            return Err(BenchPipelineError::WrongRoot { block, got, expected });
        }
        sums.exec += exec;
        sums.fold += fold;
        Ok(())
    }

    fn execute_and_fold(
        &mut self,
        ready: &Ready,
    ) -> Result<(B256, Duration, Duration), Box<dyn std::error::Error + Send + Sync>> {
        let List::Payload(raw) = &ready.list else { return Err("a block of ours has its list".into()) };
        let facts = ready.block.facts();
        let bal = Bal::decode_checked(raw.clone(), facts.expected_bal_hash, &BalLimits::from(&facts))?;
        let view = Overlay::new(self.base.for_block(), self.layers.clone())?;

        let begin = Instant::now();
        let (mut state, mut hasher) = (HashedPostState::new(EmptyAccounts::Keep), KeyHasher::default());
        let mut sink = |_, writes| state.apply_writes(&writes, &mut hasher);
        let Ready { block, senders, .. } = ready;
        let executed = execute_block_with_list(self.spec, block, senders, &bal, view.clone(), &mut sink, &|| false);
        executed.map_err(|error| error.to_string())?;
        let exec = begin.elapsed();

        let begin = Instant::now();
        let changes = resolve_with(&state, &view, &FoldOptions::SERIAL)?;
        let outcome = fold(&view, changes, &FoldOptions::SERIAL)?;
        let folded = begin.elapsed();
        let got = outcome.computed_state_root;
        self.layers.push(Arc::new(Layer::new(view.anchor().block, ready.block.num_hash(), outcome, None)));
        Ok((got, exec, folded))
    }

    fn flush(&mut self) -> Result<(), BenchPipelineError> {
        let failed =
            |block, source: Box<dyn std::error::Error + Send + Sync>| BenchPipelineError::Alone { block, source };
        let Some(newest) = self.layers.last() else { return Ok(()) };
        let (block, tries) = (newest.anchor.block, newest.tries.clone());
        let flushed = || {
            let Some(batch) = Layer::merged_batch(&self.layers)? else { return Ok(None) };
            self.store.commit(&batch)?;
            let snapshot = self.store.snapshot()?;
            self.base.cache().advance(batch.parent, snapshot.anchor().block, &batch.rows);
            Ok(Some(Cached::new(snapshot, Arc::clone(self.base.cache()))))
        };
        if let Some(base) = flushed().map_err(|source| failed(block, source))? {
            self.base = base.with_tries(tries);
            self.layers.clear();
        }
        Ok(())
    }
}
