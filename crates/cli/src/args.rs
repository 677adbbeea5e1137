//! The tool's arguments.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use foldgate_evm::AmsterdamRules;

use crate::backend::BackendKind;

/// Computes Ethereum state roots while blocks execute, from their access lists (EIP-7928).
#[derive(Debug, Parser)]
#[command(name = "foldgate", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the tool can do.
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum Command {
    /// Make a chain with real signed transactions, import it, and show what folding beside the execution hides.
    Demo(DemoArgs),
    /// Run blockchain tests (EEST, ethereum/tests) through the pipeline.
    Fixtures(FixturesArgs),
    /// Replay a chain of RLP blocks on its genesis, every state root checked.
    Replay(ReplayArgs),
    /// Verify blocks of public chains on their execution witnesses alone.
    Witness(WitnessArgs),
}

/// When a block's root is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ModeArg {
    /// From its access list, while the block executes.
    #[default]
    Bal,
    /// From its executed writes, after its execution.
    Incremental,
}

/// What "Amsterdam" means to the EVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum RulesArg {
    /// All rules of Amsterdam, as far as the EVM implements them.
    #[default]
    Full,
    /// The rules of Osaka, and access lists.
    Osaka,
}

impl From<RulesArg> for AmsterdamRules {
    fn from(rules: RulesArg) -> Self {
        match rules {
            RulesArg::Full => Self::Full,
            RulesArg::Osaka => Self::Osaka,
        }
    }
}

/// `foldgate demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// The number of blocks, of 300 transactions each.
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub blocks: u64,
    /// The store.
    #[arg(long, value_enum, default_value_t = BackendKind::Redb)]
    pub backend: BackendKind,
    /// The store's folder, empty or not there yet. Without it, a temporary one.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Write the chain into this folder too, for `replay --amsterdam-rules osaka`: genesis.json, chain.rlp, bals/.
    #[arg(long, value_name = "DIR")]
    pub export: Option<PathBuf>,
    /// When roots are computed.
    #[arg(long, value_enum, default_value_t)]
    pub mode: ModeArg,
    /// Print one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// `foldgate fixtures`.
#[derive(Debug, Clone, Args)]
pub struct FixturesArgs {
    /// Test files (.json), archives of them (.tar.zst, .tar.gz, .tar), or folders of either.
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// The store to run on; each test has a fresh one.
    #[arg(long, value_enum, default_value_t = BackendKind::Memory)]
    pub backend: BackendKind,
    /// When roots are computed.
    #[arg(long, value_enum, default_value_t, conflicts_with = "no_execute")]
    pub mode: ModeArg,
    /// The rules of the fork "Amsterdam".
    #[arg(long, value_enum, default_value_t)]
    pub amsterdam_rules: RulesArg,
    /// Execute nothing: advance the state from the given access lists alone, and check each root.
    #[arg(long)]
    pub no_execute: bool,
    /// Run only tests with this text in their name or their file's.
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Print one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// `foldgate replay`.
#[derive(Debug, Clone, Args)]
pub struct ReplayArgs {
    /// The genesis, as go-ethereum writes it (JSON).
    #[arg(long, value_name = "FILE")]
    pub genesis: PathBuf,
    /// The chain: RLP blocks one after another.
    #[arg(long, value_name = "FILE")]
    pub chain: PathBuf,
    /// A folder of access lists, `<block hash>.rlp` or `<block number>.rlp`. Missing ones are derived.
    #[arg(long, value_name = "DIR")]
    pub bals: Option<PathBuf>,
    /// The store's folder, made where it is not there; a replay goes on from the store's tip. Without it, a temporary one.
    #[arg(long, value_name = "DIR")]
    pub db: Option<PathBuf>,
    /// The store.
    #[arg(long, value_enum, default_value_t = BackendKind::Redb)]
    pub backend: BackendKind,
    /// When roots are computed.
    #[arg(long, value_enum, default_value_t)]
    pub mode: ModeArg,
    /// The rules of the fork "Amsterdam".
    #[arg(long, value_enum, default_value_t)]
    pub amsterdam_rules: RulesArg,
    /// A dump of the whole final state, as go-ethereum writes it (JSON): the store is held to it at the end.
    #[arg(long, value_name = "FILE")]
    pub head_state: Option<PathBuf>,
    /// Print one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// `foldgate witness`.
#[derive(Debug, Clone, Args)]
pub struct WitnessArgs {
    /// Witness files (.json.gz, .json).
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Print one line of JSON.
    #[arg(long)]
    pub json: bool,
}
