//! How many permutations the entry points have run: for benchmarks that hold a caller to the fewest possible.
//!
//! Invariants:
//! 1. Off unless [`count_permutations`] switched it on; off, a call of an entry point pays one load of a flag, on, one
//!    addition for all of its messages.
//! 2. Counted are the permutations that the messages need, one for each rate block, not those of lanes left idle.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static ON: AtomicBool = AtomicBool::new(false);
static PERMUTATIONS: AtomicU64 = AtomicU64::new(0);

/// Switches the counting on or off, for the whole process.
pub fn count_permutations(on: bool) {
    // Relaxed: a count of its own, which orders nothing else.
    ON.store(on, Ordering::Relaxed);
}

/// The permutations counted so far, by all threads.
pub fn permutations_counted() -> u64 {
    PERMUTATIONS.load(Ordering::Relaxed)
}

/// Counts what `blocks` gives, if that is wanted.
#[inline]
pub(crate) fn count(blocks: impl FnOnce() -> usize) {
    if ON.load(Ordering::Relaxed) {
        PERMUTATIONS.fetch_add(blocks() as u64, Ordering::Relaxed);
    }
}
