//! How long the store keeps access lists and reverse diffs: pruned behind the commits, on the committer's thread.
//!
//! Invariant: what is pruned lies as far below the durable tip as the settings say, or farther.

use std::sync::Arc;

use foldgate_core::{BalStore, BlockNumber};

use crate::verdict::Failure;

/// The most blocks by which the lowest one kept may lag behind: each pruning is a commit of its own.
const MAX_LAG: u64 = 256;

/// What is kept, and what is left to prune.
#[derive(Debug)]
pub(crate) struct Retention {
    keep: Option<u64>,
    /// The lowest height kept, as far as is known.
    lowest: BlockNumber,
}

impl Retention {
    pub(crate) const fn new(keep: Option<u64>) -> Self {
        Self { keep, lowest: 0 }
    }

    /// Prunes, if enough has gathered below what is kept of a store at `tip`.
    pub(crate) fn prune<S: BalStore>(&mut self, store: &S, tip: BlockNumber) -> Result<(), Failure> {
        let Some(keep) = self.keep else { return Ok(()) };
        let below = tip.saturating_sub(keep);
        let lag = (keep / 16).clamp(1, MAX_LAG);
        if below < self.lowest.saturating_add(lag) {
            return Ok(());
        }
        store.prune_below(below).map_err(|error| Failure::Prune { below, error: Arc::new(error) })?;
        self.lowest = below;
        Ok(())
    }
}
