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
//!                         |-- record --> [log] --synced--> acknowledged                               |
//!                         |---------------- canonical blocks, merged, later: one atomic commit ------>|
//! ```
//!
//! With a record log ([`Pipeline::open_with_log`]) a block is durable as soon as its record is. Without one
//! ([`Pipeline::open`]) it is when the store has it.
//!
//! It works on any [`foldgate_core::TrieStore`] and knows no backend's name.

mod acknowledge;
mod advance;
mod calculator;
mod committer;
mod compute;
mod config;
mod counters;
mod durability;
mod gate;
#[cfg(test)]
mod gate_tests;
mod ground;
mod halt;
mod handle;
mod holdings;
mod jobs;
mod observe;
mod permits;
mod pipeline;
mod pool;
mod recovery;
mod request;
mod retention;
mod shadow;
mod tree;
mod verdict;
mod view;

pub use advance::{AdvanceBlock, AdvanceError, AdvanceOptions, Checkpoint, Checkpoints, advance};
/// The locks and cells of the gate's protocol. A model checker puts its own in their place.
mod sync {
    pub(crate) use std::sync::{OnceLock, atomic::AtomicBool};

    pub(crate) use parking_lot::{Condvar, Mutex};
}

pub use compute::{ComputeError, Computed};
pub use config::{
    BAL_DRIVEN_VARIABLE, BAL_RETENTION_BLOCKS, BAL_SHADOW_VARIABLE, BackgroundFlush, Canonical, ConfigError,
    DIVERGENCE_DIRECTORY_VARIABLE, Flush, OnEarlyMismatch, PAGE_CACHE_BYTES_VARIABLE, PipelineConfig,
};
pub use counters::{CounterSnapshot, SkipReason};
pub use durability::{Acknowledgement, NotAcknowledged};
pub use halt::{CancelToken, Halt};
pub use handle::{BlockHandle, RecordError, VerdictTicket};
pub use holdings::Holdings;
pub use pipeline::{BeginError, Begun, CanonicalError, OpenError, Pipeline};
pub use recovery::{RecoveryError, RecoveryReport};
pub use request::{BalInput, BlockRequest, BlockResult, RebuiltBal};
pub use shadow::{
    AccountField, Difference, Divergence, DivergenceReport, NotRecorded, Place, RecordedState, ReportError,
    Reproduction, SideResult, Source, Value, first_difference,
};
pub use verdict::{
    BlockError, BlockTimings, ConfirmedBy, Failure, InvalidBlock, InvalidReason, Mode, Outcome, ValidBlock, Verdict,
};
pub use view::{ParentState, ReadError};
