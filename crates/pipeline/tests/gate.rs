//! The interleavings of the state gate, up to three preemptions: those who wait, the one who opens, the one who cancels. Gate
//! and token are the product's own files with the model checker's locks and cells in them.

#[path = "../src/gate.rs"]
#[expect(dead_code, reason = "the product also asks a gate for its token, and whether it is open")]
mod gate;
#[path = "../src/halt.rs"]
#[expect(dead_code, unreachable_pub, reason = "the product names more reasons, and exports them")]
mod halt;

/// The checker's locks, with the faces of those of the product.
mod sync {
    use std::{
        ops::{Deref, DerefMut},
        ptr,
    };

    pub(crate) use loom::sync::atomic::AtomicBool;
    use loom::sync::atomic::{AtomicPtr, Ordering};

    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    /// Empty only while its owner waits.
    pub(crate) struct Guard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> Guard<'_, T> {
            Guard(Some(self.0.lock().unwrap()))
        }
    }

    impl<T> Deref for Guard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_ref().unwrap()
        }
    }

    impl<T> DerefMut for Guard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().unwrap()
        }
    }

    #[derive(Debug)]
    pub(crate) struct Condvar(loom::sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self(loom::sync::Condvar::new())
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn wait<T>(&self, guard: &mut Guard<'_, T>) {
            let waited = self.0.wait(guard.0.take().unwrap()).unwrap();
            guard.0 = Some(waited);
        }
    }

    /// Like the standard library's: written once, released by `set`, acquired by `get`.
    #[derive(Debug)]
    pub(crate) struct OnceLock<T>(AtomicPtr<T>);

    impl<T> Default for OnceLock<T> {
        fn default() -> Self {
            Self::new()
        }
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            Self(AtomicPtr::new(ptr::null_mut()))
        }

        pub(crate) fn get(&self) -> Option<&T> {
            // SAFETY: the pointer is null, or came from a box in `set` and is never freed or written again.
            unsafe { self.0.load(Ordering::Acquire).as_ref() }
        }

        /// Leaks the value: a model is small.
        pub(crate) fn set(&self, value: T) -> Result<(), ()> {
            let value = Box::into_raw(Box::new(value));
            let set = self.0.compare_exchange(ptr::null_mut(), value, Ordering::AcqRel, Ordering::Acquire);
            set.map(|_| ()).map_err(|_| ())
        }
    }
}

use std::sync::Arc;

use loom::thread;

use self::{
    gate::StateGate,
    halt::{CancelToken, Halt},
};

type Gate = StateGate<u8>;

fn gate() -> Arc<Gate> {
    Arc::new(StateGate::new(CancelToken::default()))
}

fn waiter(gate: &Arc<Gate>) -> thread::JoinHandle<Result<u8, Halt>> {
    let gate = Arc::clone(gate);
    thread::spawn(move || gate.wait().copied())
}

/// Checks all schedules with at most three preemptions. One in which somebody waits for ever fails as a deadlock.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn whoever_waits_is_woken_by_the_opening() {
    check(|| {
        let gate = gate();
        let waiters = [waiter(&gate), waiter(&gate)];
        gate.open(7);
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), Ok(7));
        }
        assert_eq!(gate.wait(), Ok(&7));
    });
}

#[test]
fn whoever_waits_is_woken_by_the_cancellation() {
    check(|| {
        let gate = gate();
        let waiters = [waiter(&gate), waiter(&gate)];
        gate.cancel(Halt::ForkLost);
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), Err(Halt::ForkLost));
        }
    });
}

#[test]
fn an_opening_meets_a_cancellation() {
    check(|| {
        let gate = gate();
        let waiter = waiter(&gate);
        let canceller = thread::spawn({
            let gate = Arc::clone(&gate);
            move || gate.cancel(Halt::ForkLost)
        });
        gate.open(7);
        let seen = waiter.join().unwrap();
        assert!(seen == Ok(7) || seen == Err(Halt::ForkLost), "{seen:?}");
        canceller.join().unwrap();
        assert_eq!(gate.wait(), Err(Halt::ForkLost), "a cancelled block reads no more");
    });
}

#[test]
fn two_cancellations_agree_on_a_reason() {
    check(|| {
        let gate = gate();
        let waiter = waiter(&gate);
        let canceller = thread::spawn({
            let gate = Arc::clone(&gate);
            move || gate.cancel(Halt::HandleDropped)
        });
        gate.cancel(Halt::Shutdown);
        let seen = waiter.join().unwrap();
        canceller.join().unwrap();
        assert!(seen == Err(Halt::HandleDropped) || seen == Err(Halt::Shutdown), "{seen:?}");
        assert_eq!(gate.wait().copied(), seen, "the first reason stays");
    });
}
