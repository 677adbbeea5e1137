//! The pipeline of foldgate: a block's state root is computed while the block executes, from its access list.
//!
//! ```text
//!  begin(facts, list)          executor's thread                         pool                     committer
//!      |                             |                                     |                          |
//!      |--request--> [calculator] ---|------------- prepare, warm up ----->|                          |
//!      |                  |          | reads: state gate                   |                          |
//!      |     fold gate: parent       | (parent executed and confirmed)     |                          |
//!      |     committed in memory --------------------------- fold -------->|                          |
//!      |                  |<- result-| finish                              |                          |
//!      |                  |<------------------------------- root, diff ----|                          |
//!      |               verdict: root == header's, list confirmed by execution                         |
//!      |<----ticket -----|-------------- layer in memory: the children's fold gates open             |
//!                         |---------------------------------------------------- one atomic commit --->|
//! ```
//!
//! It works on any [`foldgate_core::TrieStore`] and knows no backend's name.

mod advance;
mod calculator;
mod committer;
mod config;
mod counters;
mod gate;
mod ground;
mod halt;
mod handle;
mod jobs;
mod observe;
mod permits;
mod pipeline;
mod request;
mod shadow;
mod tree;
mod verdict;
mod view;

pub use advance::{AdvanceBlock, AdvanceError, AdvanceOptions, Checkpoint, Checkpoints, advance};
pub use config::{
    BAL_DRIVEN_VARIABLE, BAL_SHADOW_VARIABLE, Canonical, ConfigError, DIVERGENCE_DIRECTORY_VARIABLE, OnEarlyMismatch,
    PAGE_CACHE_BYTES_VARIABLE, PipelineConfig,
};
pub use counters::{CounterSnapshot, SkipReason};
pub use halt::{CancelToken, Halt};
pub use handle::{BlockHandle, RecordError, VerdictTicket};
pub use pipeline::{BeginError, Begun, CanonicalError, OpenError, Pipeline};
pub use request::{BalInput, BlockRequest, BlockResult, RebuiltBal};
pub use shadow::{
    AccountField, Computed, Difference, Divergence, DivergenceReport, NotRecorded, Place, RecordedState, ReportError,
    Reproduction, Source, Value, first_difference,
};
pub use verdict::{
    BlockError, BlockTimings, ConfirmedBy, Failure, InvalidBlock, InvalidReason, Mode, Outcome, ValidBlock, Verdict,
};
pub use view::{ParentState, ReadError};
