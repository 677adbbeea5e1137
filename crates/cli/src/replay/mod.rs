//! `foldgate replay`: a chain of RLP blocks on its genesis, every header's state root checked.
//!
//! ```text
//! scan the whole file (nothing is written before it was found good)
//! then, window by window:
//!     read blocks, recover senders, take lists from the folder
//!     derive the missing lists: execute the window over a throw-away view of the store's tip
//!     import: one pipeline, execution of block N + 1 beside the fold of block N; make durable
//! ```
//!
//! Invariants:
//! 1. Memory is bounded by a window, whatever the chain's length.
//! 2. A replay that is stopped, or killed, goes on behind the last block that was acknowledged: it is in the store, or in the
//!    record log beside it.

mod error;
mod scan;

pub use error::{Gap, Place, ReplayError};

use std::{io::Write, sync::Arc};

use alloy_consensus::Header;
use alloy_hardforks::EthereumHardforks;
use alloy_primitives::Sealed;
use foldgate_core::{BalStore, StateAnchor, TrieReader, TrieStore};
use foldgate_evm::{ChainSpec, recover_senders};
use foldgate_testing::chains::{read_genesis, read_head_state};

use self::scan::{Blocks, Lists, Placed, scan};
use crate::{
    CliError,
    args::ReplayArgs,
    backend::{Backend, Home, OnBackend},
    chain_store::{ChainStoreError, Origin},
    derive::{Executed, Execution},
    import::{ImportError, Importer, List, Ready, Summary, open_pipeline},
    progress::Progress,
    state::{StateMismatch, check_state},
};

/// The most blocks of a window.
const WINDOW_BLOCKS: usize = 256;
/// A window is closed when its blocks have so many bytes of RLP.
const WINDOW_BYTES: usize = 16 << 20;
/// What the store may cache.
const CACHE_BYTES: usize = 512 << 20;

/// What a replay did.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The figures.
    pub summary: Summary,
    /// Where the store stood before.
    pub from: StateAnchor,
    /// Where it stands now.
    pub tip: StateAnchor,
}

pub(crate) fn command(args: &ReplayArgs, out: &mut dyn Write) -> Result<bool, CliError> {
    let report = run(args)?;
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string(&report.summary)?)?,
        false => {
            writeln!(out, "from    {}", report.from.block)?;
            writeln!(out, "to      {}", report.tip)?;
            report.summary.write(out)?;
        }
    }
    Ok(true)
}

/// Replays a chain.
///
/// # Errors
/// If the backend is not there; [`ReplayError`] at the first thing that is wrong.
pub fn run(args: &ReplayArgs) -> Result<Report, CliError> {
    args.backend.run(Replay(args))?
}

struct Replay<'a>(&'a ReplayArgs);

impl OnBackend for Replay<'_> {
    type Output = Result<Report, CliError>;

    fn on<B: Backend>(self, backend: B) -> Self::Output {
        let args = self.0;
        let genesis = read_genesis(&args.genesis).map_err(ReplayError::from)?;
        let origin = Origin::new(&genesis, args.amsterdam_rules.into()).map_err(ReplayError::from)?;
        let head_state = args.head_state.as_deref().map(read_head_state).transpose().map_err(ReplayError::from)?;
        let home = Home::open(backend, args.db.as_deref(), CACHE_BYTES)?;
        let report = replay(args, &origin, &home)?;
        if let (Some(expected), Some(file)) = (head_state, &args.head_state) {
            let snapshot = home.store().snapshot().map_err(failed)?;
            let wrong = |source| ReplayError::HeadState { file: file.clone(), source };
            let got = snapshot.anchor().state_root;
            if got != expected.state_root {
                return Err(wrong(StateMismatch::StateRoot { got, expected: expected.state_root }).into());
            }
            check_state(&snapshot, &expected.state).map_err(wrong)?;
        }
        Ok(report)
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> ReplayError {
    ChainStoreError::Store(Box::new(error)).into()
}

fn replay<S: BalStore>(args: &ReplayArgs, origin: &Origin, home: &Home<S>) -> Result<Report, ReplayError> {
    let store = home.store();
    let imported = |source| ReplayError::Import { file: args.chain.clone(), source };
    let tip = origin.tip(&**store)?;
    // What was recorded and is not in the store yet goes there first: the chain is held to where the last run ended.
    let resumed = match store.tip().map_err(failed)? {
        Some(_) => Some(open_pipeline(home, args.mode).map_err(imported)?),
        None => None,
    };
    let from = match &resumed {
        Some(pipeline) => pipeline.flush().map_err(ImportError::Flush).map_err(imported)?,
        None => tip,
    };
    let lists = args.bals.as_deref().map(Lists::open).transpose()?;
    let scan = scan(&args.chain, lists.as_ref(), &origin.header, from)?;
    let pipeline = match resumed {
        Some(pipeline) => pipeline,
        None => {
            let progress = Progress::load(origin.leaves(), args.json);
            origin.load(store, &progress)?;
            progress.finish();
            open_pipeline(home, args.mode).map_err(imported)?
        }
    };

    let progress = Progress::blocks(scan.blocks, args.json);
    let mut importer = Importer::new(&origin.spec, pipeline, scan.tip, args.mode);
    let mut windows = Windows { spec: &origin.spec, blocks: Blocks::open(&args.chain)?, lists, above: from };
    loop {
        let Window { mut ready, places, fault } = windows.next();
        if ready.is_empty() && fault.is_none() {
            break;
        }
        if args.mode.takes_lists() && ready.iter().any(|ready| lacks_list(&origin.spec, ready)) {
            // They are derived from the durable state.
            importer.flush().map_err(imported)?;
            derive_missing(&origin.spec, store, importer.parent(), &mut ready, &places)?;
        }
        importer.import(ready, &mut |_| progress.step_block()).map_err(imported)?;
        if let Some(fault) = fault {
            return Err(fault);
        }
    }
    progress.finish();
    let tip = importer.flush().map_err(imported)?;
    Ok(Report { summary: importer.summary().clone(), from, tip })
}

/// Cuts the chain above the store's tip into windows.
struct Windows<'a> {
    spec: &'a ChainSpec,
    blocks: Blocks,
    lists: Option<Lists>,
    above: StateAnchor,
}

/// Some blocks in order, what came after them if that was not another block, and where they stand in the file.
struct Window {
    ready: Vec<Ready>,
    places: Vec<Place>,
    fault: Option<ReplayError>,
}

impl Windows<'_> {
    fn next(&mut self) -> Window {
        let mut window = Window { ready: Vec::new(), places: Vec::new(), fault: None };
        let mut bytes = 0;
        while window.ready.len() < WINDOW_BLOCKS && bytes < WINDOW_BYTES {
            match self.next_block() {
                Ok(Some((place, ready))) => {
                    bytes += ready.block.rlp_length;
                    window.ready.push(ready);
                    window.places.push(place);
                }
                Ok(None) => break,
                Err(fault) => {
                    window.fault = Some(fault);
                    break;
                }
            }
        }
        window
    }

    fn next_block(&mut self) -> Result<Option<(Place, Ready)>, ReplayError> {
        for placed in self.blocks.by_ref() {
            let Placed { place, block } = placed?;
            if block.header.number <= self.above.block.number {
                continue;
            }
            let senders = match recover_senders(self.spec, &block) {
                Ok(senders) => senders,
                Err(source) => return Err(ReplayError::Sender { place, block: block.num_hash(), source }),
            };
            let list = self.lists.as_ref().map(|lists| lists.get(&block)).transpose()?.unwrap_or_default();
            return Ok(Some((place, Ready { block, senders, list })));
        }
        Ok(None)
    }
}

/// Whether a block from Cancun on has no list.
fn lacks_list(spec: &ChainSpec, ready: &Ready) -> bool {
    matches!(ready.list, List::None) && spec.is_cancun_active_at_timestamp(ready.block.header.timestamp)
}

/// Gives each block from Cancun on that has no list the one that executing it yields. Stops at an invalid block: the
/// pipeline will say what is wrong with it.
fn derive_missing<S: BalStore>(
    spec: &ChainSpec,
    store: &Arc<S>,
    tip: &Sealed<Header>,
    window: &mut [Ready],
    places: &[Place],
) -> Result<(), ReplayError> {
    let Some(last) = window.iter().rposition(|ready| lacks_list(spec, ready)) else { return Ok(()) };
    let mut executed = Executed::new(store.snapshot().map_err(failed)?);
    let mut parent = tip.clone();
    for (ready, place) in window.iter_mut().zip(places).take(last + 1) {
        let block = &ready.block;
        match executed.execute(spec, &parent, block, &ready.senders) {
            Ok(Execution::Valid { list: Some(raw) }) if matches!(ready.list, List::None) => {
                ready.list = List::Sourced(raw);
            }
            Ok(Execution::Valid { .. }) => {}
            Ok(Execution::Invalid) => break,
            Err(error) => {
                let (place, block) = (place.clone(), block.num_hash());
                return Err(ReplayError::Derive { place, block, source: Box::new(error) });
            }
        }
        parent = ready.block.sealed_header();
    }
    Ok(())
}
