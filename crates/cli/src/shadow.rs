//! What the commands that run a pipeline have in common: its settings by mode, and the shadow's figures.
//!
//! Invariant: the mode that the arguments name beats the environment.

use foldgate_pipeline::{ConfigError, CounterSnapshot, PipelineConfig};
use serde::Serialize;

use crate::args::ModeArg;

/// What the shadow did: printed where it was on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ShadowFigures {
    /// Blocks whose two computations were held to each other.
    pub compared: u64,
    /// Blocks that had one source only.
    pub skipped: u64,
    /// Blocks whose two computations did not agree.
    pub divergences: u64,
}

impl ShadowFigures {
    /// The figures of a pipeline.
    pub const fn of(counters: &CounterSnapshot) -> Self {
        Self { compared: counters.shadows, skipped: counters.shadows_skipped, divergences: counters.divergences }
    }

    /// Adds those of another pipeline.
    pub const fn add(&mut self, other: Self) {
        self.compared += other.compared;
        self.skipped += other.skipped;
        self.divergences += other.divergences;
    }
}

/// The pipeline's settings in a mode; what the arguments say nothing of is the environment's.
///
/// # Errors
/// If a variable is set to something that it cannot be.
pub fn config(mode: ModeArg) -> Result<PipelineConfig, ConfigError> {
    let config = PipelineConfig::from_env()?;
    Ok(config.with_bal_driven(mode.takes_lists()).with_shadow(mode == ModeArg::Shadow))
}
