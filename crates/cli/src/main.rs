//! The tool `foldgate`: reads its arguments, runs the command, and turns what came of it into an exit status.
//!
//! Exit status: 0 if all is well; 1 if something was found wrong or failed; 2 if the arguments make no sense.

use std::{io, process::ExitCode};

use clap::Parser;
use foldgate_cli::{Causes, Cli, run};

fn main() -> ExitCode {
    match run(Cli::parse(), &mut io::stdout().lock(), &mut io::stderr()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", Causes(&error));
            ExitCode::FAILURE
        }
    }
}
