//! Readers of published Ethereum test data, an oracle of state roots that shares no code with the fold, and the
//! conformance suite for backends.
//!
//! Invariants:
//! 1. A reader never panics on its input: each fault is a [`ReadError`] that names the file and the place in it.
//! 2. Every declared length is checked against a limit before memory is taken for it.
//! 3. What is read is kept as given: a faulty block or list stays faulty, so that a client under test can refuse it.
//! 4. [`oracle`] depends on nothing of this workspace.

pub mod archive;
pub mod bal_vectors;
pub mod chains;
pub mod conformance;
mod error;
pub mod fixtures;
mod json;
pub mod oracle;
pub mod reads;
pub mod sim;
pub mod trie_vectors;
pub mod witness;

pub use error::ReadError;

use std::path::{Path, PathBuf};

use alloy_consensus::{EthereumTxEnvelope, TxEip4844};

/// A whole block of Ethereum mainnet's shape, as the wire and `chain.rlp` have it.
pub type EthBlock = alloy_consensus::Block<EthereumTxEnvelope<TxEip4844>>;

/// The environment variable that names the folder of the test data.
pub const FIXTURES_ENV: &str = "FOLDGATE_FIXTURES";

/// Where the test data is looked for: `FOLDGATE_FIXTURES`, else `../shared/fixtures` beside the workspace's root.
/// The folder need not exist.
pub fn fixtures_location() -> PathBuf {
    match std::env::var_os(FIXTURES_ENV) {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures"),
    }
}

/// The folder of the test data, or `None` where there is none.
pub fn fixtures_dir() -> Option<PathBuf> {
    Some(fixtures_location()).filter(|dir| dir.is_dir())
}

/// The path of `below` within the test data, or `None` (after printing a line that begins with `SKIPPED:`) where it
/// is not there. Used through [`fixtures_or_skip!`](crate::fixtures_or_skip).
pub fn find_or_report(what: &str, below: &str) -> Option<PathBuf> {
    let path = fixtures_location().join(below);
    if path.exists() {
        return Some(path);
    }
    println!("SKIPPED: {what}: no fixtures at {}", path.display());
    None
}

/// In a test: the path of the test data (or of a part of it); where there is none, prints
/// `SKIPPED: <what>: no fixtures at <dir>` and returns from the test.
///
/// ```
/// fn my_test() {
///     let path = foldgate_testing::fixtures_or_skip!("replay of the 600 blocks", "chains/ethtest-600");
///     assert!(path.is_dir());
/// }
/// my_test();
/// ```
#[macro_export]
macro_rules! fixtures_or_skip {
    ($what:expr) => {
        $crate::fixtures_or_skip!($what, "")
    };
    ($what:expr, $below:expr) => {
        match $crate::find_or_report($what, $below) {
            Some(path) => path,
            None => return,
        }
    };
}
