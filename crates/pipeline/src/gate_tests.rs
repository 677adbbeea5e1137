//! The gate and the token with the system's own threads. They stand apart from what they test, whose files a model checker
//! takes as they are.

use std::{sync::Arc, thread, time::Duration};

use crate::{
    gate::StateGate,
    halt::{CancelToken, Halt},
};

#[test]
fn opening_wakes_waiters_and_is_final() {
    let gate = Arc::new(StateGate::new(CancelToken::default()));
    let waiters: Vec<_> = (0..4)
        .map(|_| {
            let gate = Arc::clone(&gate);
            thread::spawn(move || gate.wait().copied())
        })
        .collect();
    thread::sleep(Duration::from_millis(5));
    assert!(!gate.is_open());
    gate.open(7);
    gate.open(8);
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), Ok(7));
    }
}

#[test]
fn cancelling_wakes_waiters_and_beats_an_open_gate() {
    let gate = Arc::new(StateGate::<u8>::new(CancelToken::default()));
    let waiter = {
        let gate = Arc::clone(&gate);
        thread::spawn(move || gate.wait().copied())
    };
    thread::sleep(Duration::from_millis(5));
    gate.cancel(Halt::ForkLost);
    assert_eq!(waiter.join().unwrap(), Err(Halt::ForkLost));
    gate.open(1);
    assert_eq!(gate.wait(), Err(Halt::ForkLost), "no read goes on in a cancelled block");
}

#[test]
fn the_first_reason_stays() {
    let token = CancelToken::default();
    assert_eq!(token.check(), Ok(()));
    token.cancel(Halt::ForkLost);
    token.cancel(Halt::Shutdown);
    assert_eq!(token.clone().check(), Err(Halt::ForkLost));
}
