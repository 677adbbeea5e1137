//! Blocks in order through one pipeline: while a block executes, the one before it is folded.
//!
//! ```text
//! this thread:  begin 1, 2, 3   drive 1   begin 4   drive 2   begin 5   drive 3 ...
//! pipeline:                     fold 1 ..           fold 2 ..           fold 3 ...
//! collector:                           verdict 1            verdict 2          ...
//! ```
//!
//! Invariants:
//! 1. Verdicts are taken in the blocks' order; after the first that is not "valid" nothing more is begun.
//! 2. Times are taken where things happen: a verdict's when it comes, by a thread that does nothing else.

use std::{
    collections::{BTreeMap, VecDeque},
    error::Error,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use alloy_consensus::Header;
use alloy_primitives::{Address, Bytes, Sealed};
use crossbeam_channel::{Receiver, unbounded};
use foldgate_core::{BalStore, BlockNumHash, StateAnchor};
use foldgate_evm::{Block, ChainSpec, drive, request};
use foldgate_pipeline::{
    BeginError, Begun, BlockError, BlockHandle, ConfigError, Failure, InvalidReason, Mode, Pipeline, Verdict,
    VerdictTicket,
};
use serde::{Serialize, Serializer};

use crate::{
    args::ModeArg,
    backend::{BackendError, Home},
    reasons::Reasons,
    shadow::{self, ShadowFigures},
};

/// How many blocks are begun ahead of the one that executes: their lists are decoded and their records read ahead.
const LOOKAHEAD: usize = 2;

/// How long to wait for room before looking whether to stop.
const ROOM_WAIT: Duration = Duration::from_millis(100);

/// Receipts roots that were not checked, in [`Summary::skips`].
const RECEIPTS_SKIPPED: &str = "receipts_root_before_byzantium";

/// A block that is ready to be imported.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The block; its body was held to its header ([`foldgate_evm::validate_body_roots`]).
    pub block: Block,
    /// The senders of its transactions.
    pub senders: Vec<Address>,
    /// Its access list.
    pub list: List,
}

/// A block's access list, by where it is from.
#[derive(Debug, Clone, Default)]
pub enum List {
    /// There is none.
    #[default]
    None,
    /// It belongs to the block: if its hash is not the header's, the block is invalid.
    Payload(Bytes),
    /// It was found or derived: if it is wrong, it is dropped.
    Sourced(Bytes),
}

/// What `replay` and `demo` print under `--json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Blocks imported.
    pub blocks: u64,
    /// Blocks whose computed state root is the header's.
    pub roots_ok: u64,
    /// Blocks whose root was computed from their list, ahead of execution.
    pub folded_ahead: u64,
    /// Blocks whose root was computed from their executed writes.
    pub folded_incremental: u64,
    /// What was left out, by reason: folds ahead of execution, and checks of receipts roots.
    pub skips: BTreeMap<&'static str, u64>,
    /// What the shadow did, where it was on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowFigures>,
    /// Time in execution, in milliseconds.
    #[serde(serialize_with = "rounded")]
    pub exec_ms: f64,
    /// Time in resolving and folding, in milliseconds.
    #[serde(serialize_with = "rounded")]
    pub fold_ms: f64,
    /// Time from the first block's arrival to the last one's verdict, in milliseconds; without deriving lists.
    #[serde(serialize_with = "rounded")]
    pub wall_ms: f64,
}

impl Summary {
    /// Writes the figures for people.
    ///
    /// # Errors
    /// If `out` fails.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self { blocks, roots_ok, folded_ahead, folded_incremental, exec_ms, fold_ms, wall_ms, .. } = self;
        let skips = Reasons(&self.skips);
        writeln!(out, "blocks  {blocks}: {roots_ok} roots right")?;
        writeln!(out, "folds   {folded_ahead} ahead, {folded_incremental} incremental{skips}")?;
        if let Some(ShadowFigures { compared, skipped, divergences }) = &self.shadow {
            writeln!(out, "shadow  {compared} compared: {divergences} divergences; {skipped} with one source only")?;
        }
        let hidden = 100.0 * self.hidden();
        writeln!(
            out,
            "time    exec {exec_ms:.1} ms, fold {fold_ms:.1} ms, wall {wall_ms:.1} ms: the overlap hid {hidden:.0} %"
        )
    }

    /// Which part of the shorter of execution and fold the overlap hid: 1 is all of it.
    pub fn hidden(&self) -> f64 {
        hidden(self.exec_ms, self.fold_ms, self.wall_ms)
    }
}

/// Which part of the shorter of execution and fold an overlap hid: 1 is all of it, 0 none.
pub fn hidden(exec_ms: f64, fold_ms: f64, wall_ms: f64) -> f64 {
    let shorter = exec_ms.min(fold_ms);
    if shorter <= 0.0 { 0.0 } else { ((exec_ms + fold_ms - wall_ms) / shorter).clamp(0.0, 1.0) }
}

/// What is known of one imported block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockReport {
    /// The block.
    pub block: BlockNumHash,
    /// How its root was computed.
    pub mode: Mode,
    /// The number of its transactions.
    pub transactions: usize,
    /// The gas that it used.
    pub gas_used: u64,
    /// Time in execution.
    pub exec: Duration,
    /// Time in resolving and folding.
    pub fold: Duration,
    /// Time in decoding its list and reading ahead what it names.
    pub ahead: Duration,
    /// Time from the end of its execution to its verdict.
    pub confirm: Duration,
    /// Time since the verdict before it, or since the first block's arrival.
    pub wall: Duration,
}

/// Why an import stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The block is invalid.
    #[error("block {block} is invalid: {reason}")]
    Invalid {
        /// The block.
        block: BlockNumHash,
        /// Why.
        reason: InvalidReason,
    },
    /// The block could not be begun.
    #[error("block {block} could not be begun")]
    Begin {
        /// The block.
        block: BlockNumHash,
        /// Why.
        source: BeginError,
    },
    /// The block was left unjudged.
    #[error("block {block} was left unjudged")]
    Unjudged {
        /// The block.
        block: BlockNumHash,
        /// Why.
        source: BlockError,
    },
    /// What was judged valid could not be made durable.
    #[error("making blocks durable")]
    Flush(#[source] Failure),
    /// An environment variable is set to what it cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A pipeline could not be opened.
    #[error("opening the pipeline")]
    Open(#[source] Box<dyn Error + Send + Sync>),
    /// The record log could not be had.
    #[error(transparent)]
    Log(#[from] BackendError),
}

/// Opens a pipeline as a node does: with a record log beside a durable store, which is written in the background. What an
/// interrupted run has recorded, and not brought into the store, is recovered.
///
/// # Errors
/// [`ImportError::Open`], [`ImportError::Log`], or [`ImportError::Config`].
pub fn open_pipeline<S: BalStore>(home: &Home<S>, mode: ModeArg) -> Result<Pipeline<S>, ImportError> {
    let (store, config) = (Arc::clone(home.store()), shadow::config(mode)?);
    let opened = match home.log()? {
        Some(log) => Pipeline::open_with_log(store, log, config),
        None => Pipeline::open(store, config),
    };
    opened.map_err(|error| ImportError::Open(Box::new(error)))
}

/// One pipeline, and the block that it stands at.
#[derive(Debug)]
pub struct Importer<'a, S: BalStore> {
    spec: &'a ChainSpec,
    pipeline: Pipeline<S>,
    /// The newest block begun: what the next one stands on.
    parent: Sealed<Header>,
    summary: Summary,
}

/// A block begun and not executed yet, with its handle; none if the verdict was known already.
type Started<R> = Result<BlockHandle<R>, Verdict>;

/// What the collector needs of a block that was executed.
struct Waiting {
    block: BlockNumHash,
    transactions: usize,
    gas_used: u64,
    exec: Duration,
    receipts_roots_skipped: u64,
    outcome: Result<VerdictTicket, Verdict>,
}

impl<'a, S: BalStore> Importer<'a, S> {
    /// Goes on with a pipeline that stands at `parent`.
    pub fn new(spec: &'a ChainSpec, pipeline: Pipeline<S>, parent: Sealed<Header>, mode: ModeArg) -> Self {
        let shadow = (mode == ModeArg::Shadow).then(ShadowFigures::default);
        Self { spec, pipeline, parent, summary: Summary { shadow, ..Summary::default() } }
    }

    /// What was done so far.
    pub const fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The newest block begun.
    pub const fn parent(&self) -> &Sealed<Header> {
        &self.parent
    }

    /// Imports `blocks`, each standing on the one before, and waits for all verdicts. `report` is told of each valid one.
    ///
    /// # Errors
    /// At the first block that is not found valid. What was valid before it is durable after [`Self::flush`].
    pub fn import(
        &mut self,
        blocks: Vec<Ready>,
        report: &mut (dyn FnMut(&BlockReport) + Send),
    ) -> Result<(), ImportError> {
        let begin = Instant::now();
        let (executed, executed_in) = unbounded();
        let stop = AtomicBool::new(false);
        let mut summary = std::mem::take(&mut self.summary);
        let (fed, collected) = thread::scope(|scope| {
            let (stop, summary) = (&stop, &mut summary);
            let collector = scope.spawn(move || {
                let collected = collect(&executed_in, begin, summary, report);
                // Relaxed: it only saves work; the outcome travels through the join.
                stop.store(collected.is_err(), Ordering::Relaxed);
                collected
            });
            let fed = self.feed(blocks, stop, &mut |waiting| {
                // After a failure the collector is gone, and nobody waits for the rest.
                let _gone = executed.send(waiting);
            });
            drop(executed);
            (fed, collector.join())
        });
        if let Some(shadow) = &mut summary.shadow {
            *shadow = ShadowFigures::of(&self.pipeline.counters());
        }
        self.summary = summary;
        match collected {
            Ok(collected) => collected.and(fed),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Begins and executes the blocks in order, begun a few ahead.
    fn feed(
        &mut self,
        blocks: Vec<Ready>,
        stop: &AtomicBool,
        send: &mut dyn FnMut(Waiting),
    ) -> Result<(), ImportError> {
        let mut begun: VecDeque<(Ready, Started<S::Snapshot>)> = VecDeque::new();
        let mut blocks = blocks.into_iter();
        loop {
            // Loads of `stop` are relaxed: see where it is stored.
            // The block to execute is needed; further ones are begun only while there is room for them.
            while begun.len() <= LOOKAHEAD {
                let wait = if begun.is_empty() { ROOM_WAIT } else { Duration::ZERO };
                if blocks.as_slice().is_empty() || stop.load(Ordering::Relaxed) {
                    break;
                }
                match self.pipeline.wait_for_room(wait) {
                    false if begun.is_empty() => continue,
                    false => break,
                    true => {}
                }
                let Some(ready) = blocks.next() else { break };
                let started = self.begin(&ready)?;
                begun.push_back((ready, started));
            }
            let Some((ready, started)) = begun.pop_front().filter(|_| !stop.load(Ordering::Relaxed)) else {
                return Ok(());
            };
            send(self.execute(ready, started));
        }
    }

    fn begin(&self, ready: &Ready) -> Result<Started<S::Snapshot>, ImportError> {
        let request = request(self.spec, &ready.block);
        let request = match &ready.list {
            List::None => request,
            List::Payload(raw) => request.with_bal(raw.clone()),
            List::Sourced(raw) => request.with_sourced_bal(raw.clone()),
        };
        match self.pipeline.begin(request) {
            Ok(Begun::Started(handle)) => Ok(Ok(handle)),
            Ok(Begun::Known(verdict)) => Ok(Err(verdict)),
            Err(source) => Err(ImportError::Begin { block: ready.block.num_hash(), source }),
        }
    }

    fn execute(&mut self, ready: Ready, started: Started<S::Snapshot>) -> Waiting {
        let Ready { block, senders, .. } = ready;
        let (mut exec, mut receipts_roots_skipped) = (Duration::ZERO, 0);
        let outcome = started.map_or_else(Err, |handle| {
            let driven = drive(self.spec, &self.parent, &block, &senders, handle);
            exec = driven.execution;
            receipts_roots_skipped = driven.executed.map_or(0, |executed| executed.counters.receipts_roots_skipped);
            Ok(driven.ticket)
        });
        self.parent = block.sealed_header();
        let (transactions, gas_used) = (block.transactions.len(), block.header.gas_used);
        Waiting { block: block.num_hash(), transactions, gas_used, exec, receipts_roots_skipped, outcome }
    }

    /// Waits until everything judged valid is durable. Gives the store's tip.
    ///
    /// # Errors
    /// [`ImportError::Flush`].
    pub fn flush(&self) -> Result<StateAnchor, ImportError> {
        self.pipeline.flush().map_err(ImportError::Flush)
    }
}

/// Takes the verdicts in order, up to the first that is not "valid".
fn collect(
    executed: &Receiver<Waiting>,
    begin: Instant,
    summary: &mut Summary,
    report: &mut (dyn FnMut(&BlockReport) + Send),
) -> Result<(), ImportError> {
    let mut last = begin;
    for waiting in executed {
        let block = waiting.block;
        let verdict = match waiting.outcome {
            Ok(ticket) => ticket.wait().map_err(|source| ImportError::Unjudged { block, source })?,
            Err(known) => known,
        };
        let now = Instant::now();
        let valid = match verdict {
            Verdict::Valid(valid) => valid,
            Verdict::Invalid(invalid) => {
                return Err(ImportError::Invalid { block, reason: invalid.reason.clone() });
            }
        };
        let report_of_block = BlockReport {
            block,
            mode: valid.mode,
            transactions: waiting.transactions,
            gas_used: waiting.gas_used,
            exec: waiting.exec,
            fold: valid.timings.resolve + valid.timings.fold,
            ahead: valid.timings.decode + valid.timings.warm_up,
            confirm: valid.timings.confirm,
            wall: now - last,
        };
        last = now;
        summary.add(&report_of_block, waiting.receipts_roots_skipped);
        report(&report_of_block);
    }
    Ok(())
}

impl Summary {
    fn add(&mut self, report: &BlockReport, receipts_roots_skipped: u64) {
        self.blocks += 1;
        // A block is valid only with its root equal to the header's.
        self.roots_ok += 1;
        match report.mode {
            Mode::BalDriven => self.folded_ahead += 1,
            Mode::Incremental(reason) => {
                self.folded_incremental += 1;
                *self.skips.entry(reason.name()).or_default() += 1;
            }
        }
        if receipts_roots_skipped > 0 {
            *self.skips.entry(RECEIPTS_SKIPPED).or_default() += receipts_roots_skipped;
        }
        self.exec_ms += milliseconds(report.exec);
        self.fold_ms += milliseconds(report.fold);
        self.wall_ms += milliseconds(report.wall);
    }
}

/// A sum of microseconds has no more digits than these.
fn rounded<S: Serializer>(milliseconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((milliseconds * 1000.0).round() / 1000.0)
}

/// A duration in milliseconds, to the microsecond.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
