//! How many blocks may be under way: a count, given back when a permit is dropped.

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
    used: Mutex<usize>,
    freed: Condvar,
}

impl Permits {
    pub(crate) fn new(max: NonZeroUsize) -> Arc<Self> {
        Arc::new(Self { max: max.get(), used: Mutex::new(0), freed: Condvar::new() })
    }

    pub(crate) fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let mut used = self.used.lock();
        (*used < self.max).then(|| {
            *used += 1;
            Permit { permits: Arc::clone(self) }
        })
    }

    /// Waits until there is room, at most so long. Says whether there is.
    pub(crate) fn wait_for_room(&self, timeout: Duration) -> bool {
        // A time too far to be told is never.
        let deadline = Instant::now().checked_add(timeout);
        let mut used = self.used.lock();
        while *used >= self.max {
            match deadline {
                None => self.freed.wait(&mut used),
                Some(deadline) if self.freed.wait_until(&mut used, deadline).timed_out() => return *used < self.max,
                Some(_) => {}
            }
        }
        true
    }

    pub(crate) fn used(&self) -> usize {
        *self.used.lock()
    }
}

/// Room for one block.
#[derive(Debug)]
pub(crate) struct Permit {
    permits: Arc<Permits>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.permits.used.lock() -= 1;
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
    }
}
