//! foldgate computes an Ethereum block's post-state root while the block executes, from its EIP-7928 block access list.
//!
//! This is the facade: one dependency, one feature for each backend.
//!
//! | feature | brings |
//! |---|---|
//! | `redb` (default) | [`storage_redb`]: pure Rust |
//! | `mdbx` | `storage_mdbx`: needs libclang to build |
//! | `evm` | `evm`: whole blocks on revm |
//!
//! To change the backend, change the feature and the line that opens the store: everything else is written against the
//! traits of [`core`].

pub use foldgate_bal as bal;
pub use foldgate_core as core;
#[cfg(feature = "evm")]
pub use foldgate_evm as evm;
pub use foldgate_pipeline as pipeline;
pub use foldgate_record_log as record_log;
#[cfg(feature = "mdbx")]
pub use foldgate_storage_mdbx as storage_mdbx;
#[cfg(feature = "redb")]
pub use foldgate_storage_redb as storage_redb;

pub use foldgate_core::{MemoryStore, StateReader, TrieReader, TrieStore};
pub use foldgate_pipeline::{BlockRequest, BlockResult, Pipeline, PipelineConfig, Verdict};
pub use foldgate_record_log::FileLog;
#[cfg(feature = "mdbx")]
pub use foldgate_storage_mdbx::MdbxStore;
#[cfg(feature = "redb")]
pub use foldgate_storage_redb::RedbStore;
