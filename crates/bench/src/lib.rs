//! The benchmarks of foldgate: workloads, contenders, and the harness that lets them run against each other.
//!
//! ```text
//! workload: a state and blocks --> harness: block by block, contender by contender --> report: one line for each
//!      |                              |  gate, total, cold; flushes; memory; permutations
//!      v                              v
//! ledger: the root that it has to be  contender: foldgate on any store, and with the feature `peers` others
//! ```
//!
//! Invariants:
//! 1. All contenders of a run see the same blocks in the same process, one block after the other.
//! 2. A figure is given only for blocks whose roots all contenders agree on; at intervals the ledger has to agree too.

pub mod contender;
pub mod foldgate;
pub mod harness;
pub mod ledger;
pub mod load;
pub mod measure;
#[cfg(feature = "peers")]
mod peers;
pub mod report;
pub mod workload;

pub use contender::{BenchError, Contender};
pub use workload::{Draw, Scale, Scenario, Workload};
