//! Why a command could not be carried out.

use std::{io, path::PathBuf};

use crate::{backend::BackendError, demo::DemoError, replay::ReplayError};

/// Why a command could not be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The store could not be had.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The demonstration stopped.
    #[error(transparent)]
    Demo(Box<DemoError>),
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
