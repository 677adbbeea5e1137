//! Copies of gate and token with one fault each: the models have to fail on them. Without a fault they pass, so that it is
//! the fault that is caught.

use std::sync::Arc;

use loom::sync::atomic::Ordering;

use crate::{
    Gate, cancellation, check,
    halt::Halt,
    meeting, opening,
    sync::{AtomicBool, Condvar, Mutex, OnceLock},
    two_cancellations,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Waiters are woken before there is anything to see.
    NotifyBeforeWrite,
    /// The wake-up may fall between a waiter's look and its sleep.
    NotifyWithoutLock,
    /// The same, by the waiter: it looks, and then takes the lock to sleep.
    LookWithoutLock,
    /// Only the opening wakes.
    CancelWakesNobody,
    /// One of the waiters sleeps on.
    OpenWakesOne,
    /// An open gate lets a cancelled block read.
    OpenBeatsCancel,
    /// Who sees the flag may not see the reason.
    FlagBeforeReason,
    /// The same, by the memory's order alone.
    RelaxedFlag,
    /// The second reason is another one than the first, which somebody has seen.
    LastReasonStays,
}

struct Broken {
    fault: Fault,
    view: OnceLock<u8>,
    lock: Mutex<()>,
    wake: Condvar,
    halted: AtomicBool,
    reasons: [OnceLock<Halt>; 2],
}

impl Broken {
    fn new(fault: Fault) -> Self {
        Self {
            fault,
            view: OnceLock::new(),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            halted: AtomicBool::new(false),
            reasons: [OnceLock::new(), OnceLock::new()],
        }
    }

    fn notify(&self) {
        if self.fault != Fault::NotifyWithoutLock {
            drop(self.lock.lock());
        }
        self.wake.notify_all();
    }

    fn set_reason(&self, reason: Halt) {
        if self.reasons[0].set(reason.clone()).is_err() && self.fault == Fault::LastReasonStays {
            let _first = self.reasons[1].set(reason);
        }
    }

    fn check(&self) -> Result<(), Halt> {
        let order = if self.fault == Fault::RelaxedFlag { Ordering::Relaxed } else { Ordering::Acquire };
        if self.halted.load(order) {
            let reason = self.reasons[1].get().or_else(|| self.reasons[0].get());
            return Err(reason.cloned().unwrap_or(Halt::Shutdown));
        }
        Ok(())
    }

    /// What a waiter finds.
    fn look(&self) -> Option<Result<u8, Halt>> {
        let view = self.view.get().map(|view| Ok(*view));
        let cancelled = self.check().err().map(Err);
        if self.fault == Fault::OpenBeatsCancel { view.or(cancelled) } else { cancelled.or(view) }
    }
}

impl Gate for Broken {
    fn open(&self, view: u8) {
        if self.fault == Fault::NotifyBeforeWrite {
            self.notify();
        }
        let _already_open = self.view.set(view);
        match self.fault {
            Fault::NotifyBeforeWrite => {}
            Fault::OpenWakesOne => {
                drop(self.lock.lock());
                self.wake.notify_one();
            }
            _ => self.notify(),
        }
    }

    fn cancel(&self, reason: Halt) {
        if self.fault == Fault::FlagBeforeReason {
            self.halted.store(true, Ordering::Release);
            self.set_reason(reason);
        } else {
            self.set_reason(reason);
            let order = if self.fault == Fault::RelaxedFlag { Ordering::Relaxed } else { Ordering::Release };
            self.halted.store(true, order);
        }
        if self.fault != Fault::CancelWakesNobody {
            self.notify();
        }
    }

    fn wait(&self) -> Result<u8, Halt> {
        loop {
            let early = if self.fault == Fault::LookWithoutLock { self.look() } else { None };
            let mut guard = self.lock.lock();
            let found = if self.fault == Fault::LookWithoutLock { early } else { self.look() };
            if let Some(found) = found {
                return found;
            }
            self.wake.wait(&mut guard);
        }
    }
}

fn with(fault: Fault, model: fn(Arc<Broken>)) {
    // The checker makes the gate again and again: a function for each fault.
    macro_rules! make {
        ($($name:ident),*) => {
            match fault {
                $(Fault::$name => check(|| Broken::new(Fault::$name), model),)*
            }
        };
    }
    make!(
        None,
        NotifyBeforeWrite,
        NotifyWithoutLock,
        LookWithoutLock,
        CancelWakesNobody,
        OpenWakesOne,
        OpenBeatsCancel,
        FlagBeforeReason,
        RelaxedFlag,
        LastReasonStays
    );
}

#[test]
fn without_a_fault_the_models_pass() {
    for model in [opening, cancellation, meeting, two_cancellations] {
        with(Fault::None, model);
    }
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_wake_up_before_the_write_is_caught() {
    with(Fault::NotifyBeforeWrite, opening);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_wake_up_without_the_lock_is_caught_at_the_opening() {
    with(Fault::NotifyWithoutLock, opening);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_wake_up_without_the_lock_is_caught_at_the_cancellation() {
    with(Fault::NotifyWithoutLock, cancellation);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_look_without_the_lock_is_caught() {
    with(Fault::LookWithoutLock, opening);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_cancellation_that_wakes_nobody_is_caught() {
    with(Fault::CancelWakesNobody, cancellation);
}

#[test]
#[should_panic(expected = "deadlock")]
fn an_opening_that_wakes_one_is_caught() {
    with(Fault::OpenWakesOne, opening);
}

#[test]
#[should_panic(expected = "a cancelled block reads no more")]
fn an_open_gate_that_beats_the_cancellation_is_caught() {
    with(Fault::OpenBeatsCancel, meeting);
}

#[test]
#[should_panic(expected = "assertion")]
fn a_flag_before_its_reason_is_caught() {
    with(Fault::FlagBeforeReason, cancellation);
}

#[test]
#[should_panic(expected = "assertion")]
fn a_relaxed_flag_is_caught() {
    with(Fault::RelaxedFlag, cancellation);
}

#[test]
#[should_panic(expected = "the first reason stays")]
fn a_reason_that_changes_is_caught() {
    with(Fault::LastReasonStays, two_cancellations);
}
