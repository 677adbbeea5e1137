//! How many blocks may be under way: a count, given back when a permit is dropped; and none while memory is full.

use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

/// The room for blocks under way.
#[derive(Debug)]
pub(crate) struct Permits {
    max: usize,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    used: usize,
    /// Whether what is not in the store takes too much memory.
    full: bool,
}

impl Permits {
    pub(crate) fn new(max: NonZeroUsize) -> Arc<Self> {
        Arc::new(Self { max: max.get(), state: Mutex::new(State { used: 0, full: false }), freed: Condvar::new() })
    }

    pub(crate) fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let mut state = self.state.lock();
        self.has_room(&state).then(|| {
            state.used += 1;
            Permit { permits: Arc::clone(self) }
        })
    }

    fn has_room(&self, state: &State) -> bool {
        state.used < self.max && !state.full
    }

    /// Says whether memory is full.
    pub(crate) fn set_full(&self, full: bool) {
        self.state.lock().full = full;
        self.freed.notify_all();
    }

    /// Waits until there is room, at most so long. Says whether there is.
    pub(crate) fn wait_for_room(&self, timeout: Duration) -> bool {
        // A time too far to be told is never.
        let deadline = Instant::now().checked_add(timeout);
        let mut state = self.state.lock();
        while !self.has_room(&state) {
            match deadline {
                None => self.freed.wait(&mut state),
                Some(deadline) if self.freed.wait_until(&mut state, deadline).timed_out() => {
                    return self.has_room(&state);
                }
                Some(_) => {}
            }
        }
        true
    }

    pub(crate) fn used(&self) -> usize {
        self.state.lock().used
    }
}

/// Room for one block.
#[derive(Debug)]
pub(crate) struct Permit {
    permits: Arc<Permits>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.state.lock().used -= 1;
        self.permits.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_and_given_back() {
        let permits = Permits::new(NonZeroUsize::MIN);
        let first = permits.try_acquire().unwrap();
        assert!(permits.try_acquire().is_none());
        assert!(!permits.wait_for_room(Duration::from_millis(1)));
        drop(first);
        assert!(permits.wait_for_room(Duration::ZERO));
        assert_eq!(permits.used(), 0);
        permits.set_full(true);
        assert!(permits.try_acquire().is_none() && !permits.wait_for_room(Duration::ZERO));
        permits.set_full(false);
        assert!(permits.try_acquire().is_some());
    }
}
