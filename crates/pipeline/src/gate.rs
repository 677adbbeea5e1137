//! The state gate: a child's executor may read as soon as its parent's execution has ended and was confirmed.
//!
//! The calculator opens the gate, once, or the block's cancellation shuts it for good. Readers wait outside. The protocol
//! is written in `docs/gates.md`; `tests/gate` checks its interleavings.
//!
//! Invariants:
//! 1. The gate never opens to values that only an access list claims: what it lets see was executed.
//! 2. `view` is set at most once; after that readers take no lock.
//! 3. A waiter is woken by opening and by cancelling: both take `lock` before they notify, so that no wake-up can fall
//!    between a waiter's check and its sleep.

use crate::{
    halt::{CancelToken, Halt},
    sync::{Condvar, Mutex, OnceLock},
};

/// One block's state gate; `V` is the view that it opens to.
#[derive(Debug)]
pub(crate) struct StateGate<V> {
    view: OnceLock<V>,
    lock: Mutex<()>,
    wake: Condvar,
    cancel: CancelToken,
}

impl<V> StateGate<V> {
    pub(crate) fn new(cancel: CancelToken) -> Self {
        Self { view: OnceLock::new(), lock: Mutex::new(()), wake: Condvar::new(), cancel }
    }

    pub(crate) const fn token(&self) -> &CancelToken {
        &self.cancel
    }

    /// Opens the gate. A second call changes nothing.
    pub(crate) fn open(&self, view: V) {
        let _already_open = self.view.set(view);
        drop(self.lock.lock());
        self.wake.notify_all();
    }

    pub(crate) fn is_open(&self) -> bool {
        self.view.get().is_some()
    }

    /// Cancels the block and wakes whoever waits.
    pub(crate) fn cancel(&self, reason: Halt) {
        self.cancel.cancel(reason);
        drop(self.lock.lock());
        self.wake.notify_all();
    }

    /// The view, waiting until the gate is open.
    pub(crate) fn wait(&self) -> Result<&V, Halt> {
        self.cancel.check()?;
        if let Some(view) = self.view.get() {
            return Ok(view);
        }
        let mut guard = self.lock.lock();
        loop {
            self.cancel.check()?;
            if let Some(view) = self.view.get() {
                return Ok(view);
            }
            self.wake.wait(&mut guard);
        }
    }
}
