//! The command-line tool `foldgate` as a library: each command is a function from arguments to a report.
//!
//! | module | command |
//! |---|---|
//! | [`advance`] | `foldgate advance`: a chain from its access lists alone |
//! | [`bench`](mod@bench) | `foldgate bench`: measurements |
//! | [`demo`] | `foldgate demo`: a chain of its own |
//! | [`divergence`] | `foldgate divergence`: a shadow's report, reproduced |
//! | [`fixtures`] | `foldgate fixtures`: blockchain tests |
//! | [`replay`] | `foldgate replay`: a chain on its genesis |
//! | [`validate`] | `foldgate validate`: everything there is, with the shadow on |
//! | [`witness`] | `foldgate witness`: blocks on their execution witnesses |
//!
//! Invariants:
//! 1. Bad input is a typed error that names the file, the block and the field, and leaves the store as it was.
//! 2. Under `--json` the standard output holds one line, or one for each contender of a benchmark; what there is to say to people goes to the standard error.

pub mod advance;
pub mod args;
pub mod backend;
pub mod bench;
pub mod bench_pipeline;
pub mod chain_store;
pub mod demo;
pub mod derive;
pub mod divergence;
mod error;
pub mod fixtures;
pub mod import;
pub mod maker;
mod progress;
mod reasons;
pub mod replay;
pub mod shadow;
pub mod state;
pub mod validate;
pub mod witness;

use std::io::Write;

pub use args::{Cli, Command};
pub use error::{Causes, CliError};

/// Runs a command: its report goes to `out`, failures beside it to `notes`. Says whether all is well.
///
/// # Errors
/// [`CliError`] if the command could not be carried out.
pub fn run(cli: Cli, out: &mut dyn Write, notes: &mut dyn Write) -> Result<bool, CliError> {
    match cli.command {
        Command::Advance(args) => advance::command(&args, out),
        Command::Bench(command) => bench::command(&command, out),
        Command::Demo(args) => demo::command(&args, out),
        Command::Divergence(args) => divergence::command(&args, out),
        Command::Fixtures(args) => fixtures::command(&args, out, notes),
        Command::Replay(args) => replay::command(&args, out),
        Command::Validate(args) => validate::command(&args, out, notes),
        Command::Witness(args) => witness::command(&args, out, notes),
    }
}
