//! `foldgate demo`: makes a chain of its own with real signed transactions, imports it into a store, and shows what
//! folding beside the execution hides.
//!
//! Invariants:
//! 1. The import has only the genesis, the blocks' bytes and their lists, as any node would.
//! 2. The final root is held to alloy-trie's HashBuilder over all leaves of the store: not our fold twice.
//! 3. The store's folder was empty before.

mod chain;
mod contracts;
mod files;

use std::{
    collections::BTreeMap,
    error::Error,
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
};

use alloy_primitives::B256;
use foldgate_core::{
    BalStore, MemoryStore, TrieReader, TrieStore,
    trie::bulk::{LoadItem, StateItems},
};
use foldgate_evm::AmsterdamRules;
use foldgate_pipeline::Mode;
use foldgate_testing::oracle::{self, HashedAccount};

use self::{
    chain::{Demonstration, WALLETS, genesis},
    files::ChainFiles,
};
use crate::{
    CliError,
    args::DemoArgs,
    backend::{Backend, Home, OnBackend},
    chain_store::{ChainStoreError, Origin},
    import::{BlockReport, ImportError, Importer, Summary, hidden, milliseconds, open_pipeline},
    maker::Maker,
    progress::Progress,
};

/// How many blocks are made, then imported, at once: what memory holds.
const WINDOW: u64 = 64;
/// What the store may cache.
const CACHE_BYTES: usize = 256 << 20;

/// Why the demonstration stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The genesis could not be made: a fault of this tool.
    #[error("making the genesis")]
    Genesis(#[from] serde_json::Error),
    /// The chain could not be made: a fault of this tool.
    #[error(transparent)]
    Chain(#[from] crate::maker::ChainError),
    /// The genesis could not be put into the store.
    #[error(transparent)]
    Store(#[from] ChainStoreError),
    /// The folder holds a store that is in use.
    #[error("{}: there is a store already, and the demonstration needs an empty one", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The chain could not be written into files.
    #[error("writing {}", path.display())]
    Export {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A block was not imported.
    #[error(transparent)]
    Import(Box<ImportError>),
    /// The store could not be read.
    #[error("reading the store")]
    Read(#[source] Box<dyn Error + Send + Sync>),
    /// The store's root is not that of its leaves.
    #[error("the store's state root is {got}, its leaves give {expected}")]
    WrongRoot {
        /// The store's.
        got: B256,
        /// HashBuilder's over all leaves.
        expected: B256,
    },
}

impl From<ImportError> for DemoError {
    fn from(error: ImportError) -> Self {
        Self::Import(Box::new(error))
    }
}

/// What the demonstration did.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// The figures in sum.
    pub summary: Summary,
    /// The figures of each block.
    pub blocks: Vec<BlockReport>,
    /// Accounts and slots in the end.
    pub leaves: usize,
}

pub(crate) fn command(args: &DemoArgs, out: &mut dyn Write) -> Result<bool, CliError> {
    let report = run(args)?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report.summary)?)?;
        return Ok(true);
    }
    writeln!(out, " block   txs      Mgas   exec ms   fold ms   wall ms   hidden")?;
    for block in &report.blocks {
        let [exec, fold, wall] = [block.exec, block.fold, block.wall].map(milliseconds);
        let (number, txs, mgas) = (block.block.number, block.transactions, block.gas_used as f64 / 1e6);
        let (hidden, ahead) = (100.0 * hidden(exec, fold, wall), matches!(block.mode, Mode::BalDriven));
        let note = if ahead { "" } else { "  incremental" };
        writeln!(out, "{number:6} {txs:5} {mgas:9.2} {exec:9.2} {fold:9.2} {wall:9.2} {hidden:6.0} %{note}")?;
    }
    report.summary.write(out)?;
    writeln!(out, "checked the final root against a rebuild of all {} leaves", report.leaves)?;
    Ok(true)
}

/// Makes and imports the chain.
///
/// # Errors
/// If the backend is not there; [`DemoError`] at the first thing that is wrong.
pub fn run(args: &DemoArgs) -> Result<Report, CliError> {
    args.backend.run(Demo(args))?
}

struct Demo<'a>(&'a DemoArgs);

impl OnBackend for Demo<'_> {
    type Output = Result<Report, CliError>;

    fn on<B: Backend>(self, backend: B) -> Self::Output {
        let home = Home::open(backend, self.0.dir.as_deref(), CACHE_BYTES)?;
        Ok(demo(self.0, &home)?)
    }
}

fn demo<S: BalStore>(args: &DemoArgs, home: &Home<S>) -> Result<Report, DemoError> {
    let store = home.store();
    if store.tip().map_err(read_error)?.is_some() {
        return Err(DemoError::NotEmpty { path: args.dir.clone().unwrap_or_default() });
    }
    let genesis = genesis()?;
    let origin = Origin::new(&genesis, AmsterdamRules::Osaka)?;
    let mut files = args.export.as_deref().map(|directory| ChainFiles::create(directory, &genesis)).transpose()?;
    // The chain is made in memory: the store to be filled sees nothing of it but bytes.
    let workshop = Arc::new(MemoryStore::new());
    origin.load(&workshop, ())?;
    let progress = Progress::load(origin.leaves(), args.json);
    origin.load(store, &progress)?;
    progress.finish();
    let script = Demonstration::default();
    let mut maker = Maker::new(script, WALLETS, origin.spec.clone(), workshop, origin.header.clone());
    let pipeline = open_pipeline(home, args.mode)?;
    let mut importer = Importer::new(&origin.spec, pipeline, origin.header.clone(), args.mode);
    let progress = Progress::blocks(args.blocks, args.json);
    let mut reports = Vec::new();
    let mut missing = args.blocks;
    while missing > 0 {
        let window = missing.min(WINDOW);
        let blocks: Vec<_> = (0..window).map(|_| maker.next()).collect::<Result<_, _>>()?;
        if let Some(files) = &mut files {
            blocks.iter().try_for_each(|block| files.add(block))?;
        }
        importer.import(blocks, &mut |block| {
            reports.push(*block);
            progress.step_block();
        })?;
        missing -= window;
    }
    importer.flush()?;
    progress.finish();
    files.map_or(Ok(()), ChainFiles::finish)?;
    let leaves = check_root(&**store)?;
    Ok(Report { summary: importer.summary().clone(), blocks: reports, leaves })
}

/// Rebuilds the root from all leaves, and gives their number.
fn check_root<S: TrieStore>(store: &S) -> Result<usize, DemoError> {
    let snapshot = store.snapshot().map_err(read_error)?;
    let mut accounts: BTreeMap<B256, HashedAccount> = BTreeMap::new();
    let mut leaves = 0;
    for item in StateItems::new(snapshot.clone()) {
        match item.map_err(read_error)? {
            LoadItem::Account { hashed_address, info } => {
                leaves += 1;
                let (nonce, balance, code_hash) = (info.nonce, info.balance, info.code_hash);
                accounts.insert(hashed_address, HashedAccount { nonce, balance, code_hash, storage: BTreeMap::new() });
            }
            LoadItem::Slot { hashed_slot, value } => {
                leaves += 1;
                if let Some(mut account) = accounts.last_entry() {
                    account.get_mut().storage.insert(hashed_slot, value);
                }
            }
            _ => {}
        }
    }
    let (got, expected) = (snapshot.anchor().state_root, oracle::state_root(&accounts));
    if got == expected { Ok(leaves) } else { Err(DemoError::WrongRoot { got, expected }) }
}

fn read_error(error: impl Error + Send + Sync + 'static) -> DemoError {
    DemoError::Read(Box::new(error))
}
