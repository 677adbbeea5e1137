//! Why a command could not be carried out.

use std::{error::Error, fmt, io, path::PathBuf};

use foldgate_bench::BenchError;

use crate::{backend::BackendError, bench_pipeline::BenchPipelineError, demo::DemoError, replay::ReplayError};

/// Why a command could not be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The store could not be had.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// An advance stopped.
    #[error(transparent)]
    Advance(#[from] crate::advance::AdvanceError),
    /// A benchmark stopped.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// The measurement of the pipeline stopped.
    #[error(transparent)]
    BenchPipeline(Box<BenchPipelineError>),
    /// The demonstration stopped.
    #[error(transparent)]
    Demo(Box<DemoError>),
    /// A divergence's report could not be read.
    #[error(transparent)]
    Divergence(#[from] foldgate_pipeline::ReportError),
    /// An environment variable is set to what it cannot be.
    #[error(transparent)]
    Config(#[from] foldgate_pipeline::ConfigError),
    /// Generated blocks could not be run.
    #[error(transparent)]
    Generated(#[from] crate::validate::GeneratedError),
    /// A folder of test data could not be searched.
    #[error("searching {}", path.display())]
    Search {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A replay stopped.
    #[error(transparent)]
    Replay(Box<ReplayError>),
    /// A path holds no test.
    #[error("{}: there is no test here", path.display())]
    NoTests {
        /// The path.
        path: PathBuf,
    },
    /// The report could not be written.
    #[error("writing the report")]
    Output(#[from] io::Error),
    /// The report could not be put into JSON.
    #[error("writing the report as JSON")]
    Json(#[from] serde_json::Error),
}

impl From<BenchPipelineError> for CliError {
    fn from(error: BenchPipelineError) -> Self {
        Self::BenchPipeline(Box::new(error))
    }
}

impl From<DemoError> for CliError {
    fn from(error: DemoError) -> Self {
        Self::Demo(Box::new(error))
    }
}

impl From<ReplayError> for CliError {
    fn from(error: ReplayError) -> Self {
        Self::Replay(Box::new(error))
    }
}

/// An error with everything that caused it, in one line. What an error has said of its cause is not said again.
#[derive(Debug)]
pub struct Causes<'a>(pub &'a dyn Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            said = text;
            source = cause.source();
        }
        Ok(())
    }
}
