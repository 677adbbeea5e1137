//! The tool's arguments.

use std::{
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
    value_parser,
};
use foldgate_bench::{Draw, Workload, harness::MERGED_BLOCKS};
use foldgate_evm::AmsterdamRules;

use crate::{backend::BackendKind, bench_pipeline::ChainArg};

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
    /// Take a store forward over a chain from the blocks' access lists alone: nothing is executed.
    Advance(AdvanceArgs),
    /// Measure folds and loads.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Make a chain with real signed transactions, import it, and show what folding beside the execution hides.
    Demo(DemoArgs),
    /// Compute the block of a divergence's report twice again, and show where the computations part.
    Divergence(DivergenceArgs),
    /// Run blockchain tests (EEST, ethereum/tests) through the pipeline.
    Fixtures(FixturesArgs),
    /// Replay a chain of RLP blocks on its genesis, every state root checked.
    Replay(ReplayArgs),
    /// Run every test, witness and chain below some folders, and generated blocks, with the shadow on.
    Validate(ValidateArgs),
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
    /// From both, which must agree: from its access list, while the block executes, and from its executed writes beside.
    Shadow,
}

impl ModeArg {
    /// Whether blocks need an access list.
    pub const fn takes_lists(self) -> bool {
        !matches!(self, Self::Incremental)
    }
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

/// What can be measured.
#[derive(Debug, Clone, Subcommand)]
#[non_exhaustive]
pub enum BenchCommand {
    /// Fold blocks of a workload, every contender block by block beside the others.
    Fold(BenchFoldArgs),
    /// Load generated accounts into a fresh store.
    Load(BenchLoadArgs),
    /// Import a chain with real execution, and see what folding beside it hides.
    Pipeline(BenchPipelineArgs),
}

/// How a block's keys are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeysArg {
    /// Each with the same probability.
    Uniform,
    /// By Zipf's law, so that blocks share popular keys.
    Zipf,
}

impl From<KeysArg> for Draw {
    fn from(keys: KeysArg) -> Self {
        match keys {
            KeysArg::Uniform => Self::Uniform,
            KeysArg::Zipf => Self::Zipf,
        }
    }
}

/// `foldgate bench fold`.
#[derive(Debug, Clone, Args)]
pub struct BenchFoldArgs {
    /// The state, and what blocks change in it; `w4` is followed by `w4-spread`.
    #[arg(long, required = true, value_parser = PossibleValuesParser::new(Workload::ALL.map(Workload::name)).try_map(|name| name.parse::<Workload>()))]
    pub workload: Vec<Workload>,
    /// The stores. Without it, all that are built in.
    #[arg(long, value_enum)]
    pub backend: Vec<BackendKind>,
    /// The numbers of threads.
    #[arg(long, value_name = "N", default_values_t = [1, 2], value_parser = value_parser!(u16).range(1..=1024))]
    pub threads: Vec<u16>,
    /// Let the other implementations take part (needs the cargo feature `peers`).
    #[arg(long)]
    pub peers: bool,
    /// How many blocks are measured warm, and as many as the last blocks left the caches. Without it, 50 to 200.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub blocks: Option<u32>,
    /// How keys are drawn. Without it, in every way that the workload knows.
    #[arg(long, value_enum)]
    pub keys: Option<KeysArg>,
    /// How many blocks are flushed to the store at once.
    #[arg(long, value_name = "N", default_value_t = MERGED_BLOCKS, value_parser = value_parser!(u32).range(1..=1024))]
    pub merged_blocks: u32,
    /// Flush on a thread beside the blocks that follow, instead of between blocks: for one backend and one number of
    /// threads at a time.
    #[arg(long)]
    pub flush_beside: bool,
    /// Where stores are made. Without it, where temporary files go.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Divide the workload's state and its blocks by this.
    #[arg(long, value_name = "N", hide = true, default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
    pub scale: u32,
    /// Print one line of JSON for each contender.
    #[arg(long)]
    pub json: bool,
}

/// `foldgate bench load`.
#[derive(Debug, Clone, Args)]
pub struct BenchLoadArgs {
    /// How many accounts.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = value_parser!(u32).range(1..))]
    pub accounts: u32,
    /// The stores. Without it, all that are built in.
    #[arg(long, value_enum)]
    pub backend: Vec<BackendKind>,
    /// Where stores are made. Without it, where temporary files go.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Print one line of JSON for each backend.
    #[arg(long)]
    pub json: bool,
}

/// `foldgate bench pipeline`.
#[derive(Debug, Clone, Args)]
pub struct BenchPipelineArgs {
    /// What the blocks do.
    #[arg(long, value_enum, default_value_t)]
    pub chain: ChainArg,
    /// The stores. Without it, all that are built in.
    #[arg(long, value_enum)]
    pub backend: Vec<BackendKind>,
    /// How many blocks are measured, in windows of 16. Without it, 96, or 16 of `m1g`.
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=1_000_000))]
    pub blocks: Option<u64>,
    /// Threads of the pipeline. Without it, one less than there are processors: the executor has that one.
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Where stores are made. Without it, where temporary files go.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Divide the state, and the blocks' transactions, by this.
    #[arg(long, value_name = "N", hide = true, default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
    pub scale: u32,
    /// Print one line of JSON for each backend.
    #[arg(long)]
    pub json: bool,
}

/// `foldgate advance`.
#[derive(Debug, Clone, Args)]
pub struct AdvanceArgs {
    /// The genesis, as go-ethereum writes it (JSON).
    #[arg(long, value_name = "FILE")]
    pub genesis: PathBuf,
    /// The chain: RLP blocks one after another, none older than Cancun. Of them only the headers count.
    #[arg(long, value_name = "FILE")]
    pub chain: PathBuf,
    /// A folder of access lists, `<block hash>.rlp` or `<block number>.rlp`; none may be missing.
    #[arg(long, value_name = "DIR")]
    pub bals: PathBuf,
    /// The store's folder, made where it is not there; an advance goes on from the store's tip. Without it, a temporary one.
    #[arg(long, value_name = "DIR")]
    pub db: Option<PathBuf>,
    /// The store.
    #[arg(long, value_enum, default_value_t = BackendKind::Redb)]
    pub backend: BackendKind,
    /// Check the root and make the state durable after so many blocks. Without it, after the last one.
    #[arg(long, value_name = "N")]
    pub checkpoint_every: Option<NonZeroU64>,
    /// The most blocks that are folded together.
    #[arg(long, value_name = "N", default_value = "64")]
    pub merged_blocks: NonZeroUsize,
    /// How many of the last blocks are folded each alone: a reorganisation may leave the chain so deep afterwards.
    /// So many blocks are held in memory.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u64).range(..=100_000))]
    pub unwind_depth: u64,
    /// The rules of the fork "Amsterdam".
    #[arg(long, value_enum, default_value_t)]
    pub amsterdam_rules: RulesArg,
    /// Print one line of JSON.
    #[arg(long)]
    pub json: bool,
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

/// `foldgate divergence`.
#[derive(Debug, Clone, Args)]
pub struct DivergenceArgs {
    /// The report (.json), as a pipeline with a shadow wrote it.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
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

/// `foldgate validate`.
#[derive(Debug, Clone, Args)]
pub struct ValidateArgs {
    /// Folders of tests, execution witnesses and chains.
    #[arg(long, value_name = "DIR", num_args = 1..)]
    pub fixtures: Vec<PathBuf>,
    /// How many blocks to generate, on chains with forks of which others win.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub generated: u64,
    /// The first seed of the generated chains.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// The store; each test, chain and generated chain has a fresh one.
    #[arg(long, value_enum, default_value_t = BackendKind::Memory)]
    pub backend: BackendKind,
    /// Tests with this text in their path take the rules of Osaka, and access lists, for "Amsterdam".
    #[arg(long, value_name = "TEXT", default_values_t = ["osaka-gas".to_owned(), "bal-amsterdam/examples".to_owned()])]
    pub osaka_rules: Vec<String>,
    /// Tests with this text in their path are not executed, since no EVM here has their rules: their lists alone are
    /// folded.
    #[arg(long, value_name = "TEXT", default_values_t = ["bal-devnet-4".to_owned()])]
    pub no_execute: Vec<String>,
    /// Print the line of JSON alone.
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
