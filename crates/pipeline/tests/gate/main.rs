//! The interleavings of the state gate, up to three preemptions: those who wait, the one who opens, the one who cancels. Gate
//! and token are the product's own files with the model checker's locks and cells in them.
//!
//! That the models catch a fault is shown by copies that have one (`broken.rs`).

mod broken;
#[path = "../../src/gate.rs"]
#[expect(dead_code, reason = "the product also asks a gate for its token, and whether it is open")]
mod gate;
#[path = "../../src/halt.rs"]
#[expect(dead_code, unreachable_pub, reason = "the product names more reasons, and exports them")]
mod halt;
mod sync;

use std::sync::Arc;

use loom::thread;

use self::{
    gate::StateGate,
    halt::{CancelToken, Halt},
};

/// What the models need of a gate.
trait Gate: Send + Sync + 'static {
    fn open(&self, view: u8);
    fn cancel(&self, reason: Halt);
    fn wait(&self) -> Result<u8, Halt>;
}

impl Gate for StateGate<u8> {
    fn open(&self, view: u8) {
        self.open(view);
    }

    fn cancel(&self, reason: Halt) {
        self.cancel(reason);
    }

    fn wait(&self) -> Result<u8, Halt> {
        self.wait().copied()
    }
}

fn product() -> StateGate<u8> {
    StateGate::new(CancelToken::default())
}

fn waiter<G: Gate>(gate: &Arc<G>) -> thread::JoinHandle<Result<u8, Halt>> {
    let gate = Arc::clone(gate);
    thread::spawn(move || gate.wait())
}

/// Checks all schedules with at most three preemptions. One in which somebody waits for ever fails as a deadlock.
fn check<G: Gate>(gate: fn() -> G, model: fn(Arc<G>)) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || model(Arc::new(gate())));
}

/// Whoever waits is woken by the opening.
fn opening<G: Gate>(gate: Arc<G>) {
    let waiters = [waiter(&gate), waiter(&gate)];
    gate.open(7);
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), Ok(7));
    }
    assert_eq!(gate.wait(), Ok(7));
}

/// Whoever waits is woken by the cancellation.
fn cancellation<G: Gate>(gate: Arc<G>) {
    let waiters = [waiter(&gate), waiter(&gate)];
    gate.cancel(Halt::ForkLost);
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), Err(Halt::ForkLost));
    }
}

/// An opening meets a cancellation.
fn meeting<G: Gate>(gate: Arc<G>) {
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
}

/// Two cancellations agree on a reason.
fn two_cancellations<G: Gate>(gate: Arc<G>) {
    let waiter = waiter(&gate);
    let canceller = thread::spawn({
        let gate = Arc::clone(&gate);
        move || gate.cancel(Halt::HandleDropped)
    });
    gate.cancel(Halt::ForkLost);
    let seen = waiter.join().unwrap();
    canceller.join().unwrap();
    assert!(seen == Err(Halt::HandleDropped) || seen == Err(Halt::ForkLost), "{seen:?}");
    assert_eq!(gate.wait(), seen, "the first reason stays");
}

#[test]
fn whoever_waits_is_woken_by_the_opening() {
    check(product, opening);
}

#[test]
fn whoever_waits_is_woken_by_the_cancellation() {
    check(product, cancellation);
}

#[test]
fn an_opening_meets_a_cancellation() {
    check(product, meeting);
}

#[test]
fn two_cancellations_agree_on_a_reason() {
    check(product, two_cancellations);
}
