//! Cancellation: how a block's executor is told to stop, also while it waits in a read.
//!
//! Invariants:
//! 1. A token is set once; the first reason stays.
//! 2. Whoever sees the flag set (acquire) also sees the reason (it is written before the flag's release).

use std::sync::{Arc, atomic::Ordering};

use foldgate_core::BlockNumHash;

use crate::sync::{AtomicBool, OnceLock};

/// Why a block's work was stopped before, or without, a verdict of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Halt {
    /// The block was judged invalid; the verdict has the reason.
    #[error("the block was judged invalid")]
    Judged,
    /// The block's handle was dropped without a result.
    #[error("the block's handle was dropped without a result")]
    HandleDropped,
    /// An ancestor was judged invalid.
    #[error("its ancestor {0} is invalid")]
    AncestorInvalid(BlockNumHash),
    /// An ancestor was cancelled.
    #[error("its ancestor {0} was cancelled")]
    AncestorCancelled(BlockNumHash),
    /// An ancestor could not be judged because of an error of the machine.
    #[error("its ancestor {0} could not be judged")]
    AncestorFailed(BlockNumHash),
    /// An error of the machine struck the block itself.
    #[error("an error of the machine struck the block")]
    Failed,
    /// The parent, or one that it stands on, did not turn up while the block could be held.
    #[error("its parent {0} is unknown")]
    UnknownParent(BlockNumHash),
    /// Another branch was made durable.
    #[error("another branch became canonical")]
    ForkLost,
    /// The pipeline is shutting down.
    #[error("the pipeline is shutting down")]
    Shutdown,
}

/// The flag that stops one block's executor. Cheap to clone, to be checked often.
#[derive(Debug, Clone, Default)]
pub struct CancelToken {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    halted: AtomicBool,
    reason: OnceLock<Halt>,
}

impl CancelToken {
    /// Whether the executor has to stop: one load.
    pub fn is_cancelled(&self) -> bool {
        // Acquire: pairs with the release in `cancel`, so that the reason is visible.
        self.inner.halted.load(Ordering::Acquire)
    }

    /// Fails if the executor has to stop.
    ///
    /// # Errors
    /// The reason.
    pub fn check(&self) -> Result<(), Halt> {
        if self.is_cancelled() { Err(self.reason().unwrap_or(Halt::Shutdown)) } else { Ok(()) }
    }

    /// Why it was cancelled, if it was.
    pub fn reason(&self) -> Option<Halt> {
        self.inner.reason.get().cloned()
    }

    pub(crate) fn cancel(&self, reason: Halt) {
        // The first reason wins; a second call finds the cell full.
        let _first = self.inner.reason.set(reason);
        // Release: pairs with the acquire in `is_cancelled`.
        self.inner.halted.store(true, Ordering::Release);
    }
}
