//! Telling that a block is durable: who waits for it hears, and the time since its verdict is told to the metrics.
//!
//! Invariant: it is told once at most, since it can be told only by value.

use std::time::Instant;

use crossbeam_channel::{SendError, Sender};

use crate::{observe, verdict::Failure};

/// Tells whoever waits that a block is durable, or never will be. Made at the block's verdict.
#[derive(Debug)]
pub(crate) struct Acknowledge {
    to: Sender<Result<(), Failure>>,
    judged: Instant,
}

impl Acknowledge {
    pub(crate) fn new(to: Sender<Result<(), Failure>>) -> Self {
        Self { to, judged: Instant::now() }
    }

    /// Tells it. Fails if nobody can hear it any more.
    pub(crate) fn send(self, result: Result<(), Failure>) -> Result<(), SendError<Result<(), Failure>>> {
        if result.is_ok() {
            observe::acknowledged(self.judged.elapsed());
        }
        self.to.send(result)
    }
}
