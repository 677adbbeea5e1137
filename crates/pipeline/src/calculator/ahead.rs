//! Reading ahead of the fold what a block writes that has no list to be read ahead from.
//!
//! ```text
//!   executor's thread                    calculator                      pool
//!      record, record, ..   <--asks--       |
//!      |--all that is new ----------------->|--what is written---------> read into the cache
//!      record, record, ..                   |<-------- what was read ----|
//!      |                    <--asks--       |
//!      |--all that is new, with the end --->|--what was read--> the fold's reader
//! ```
//!
//! One part is read at a time; what is written meanwhile gathers with the executor, and goes as the next part. The executor
//! waits for none of it: it sees that it is asked, and sends. What gathers is no more than the block's own writes.
//!
//! Invariants:
//! 1. Only the cache and the fold's reader get what is read: root and changes do not depend on it.
//! 2. No part is begun once the fold has been, or the block has ended; one that runs stops then.
//! 3. Nothing is read for a block that waits for an unknown ancestor: it may wait for long, and must keep no old snapshot.

use std::sync::{Arc, atomic::Ordering};

use foldgate_core::{ReadAhead, TrieStore};

use super::Calculator;
use crate::{
    jobs::{self, JobMessage},
    observe::Work,
    pool::{Ahead, Stopwatch, Turn},
    tree::{AheadStage, BalStage, Entry, ExecutionStage, FoldStage},
    verdict::Mode,
};

impl<S: TrieStore> Calculator<S> {
    /// Has what was written read, or asks for more of it.
    pub(super) fn read_ahead(&mut self, entry: &mut Entry<S::Snapshot>) {
        let shared = &entry.shared;
        // What a list names is read at its arrival, and stays read where the list is dropped.
        let by_writes = matches!((entry.mode, &entry.bal), (Mode::Incremental(_), BalStage::None))
            && matches!(entry.fold, FoldStage::Idle)
            && shared.listed.get().is_none()
            && !self.tree.is_orphan(entry.parent);
        let idle = by_writes && matches!(entry.ahead, AheadStage::Idle(_));
        if !idle || entry.written.is_empty() {
            let asks = idle && matches!(entry.execution, ExecutionStage::Running);
            // Relaxed: what is told goes through the channel.
            shared.asks_for_writes.store(asks, Ordering::Relaxed);
            return;
        }
        let AheadStage::Idle(ahead) = std::mem::replace(&mut entry.ahead, AheadStage::Running) else { return };
        // It was asked for again if the writes came between two looks at the block: one part at a time.
        shared.asks_for_writes.store(false, Ordering::Relaxed);
        let mut ahead = ahead.unwrap_or_else(|| Box::new(ReadAhead::new(entry.ground.base.clone())));
        let written = std::mem::take(&mut entry.written);
        let (tries, job) = (self.tree.nearest_tries(entry.parent), Arc::clone(shared));
        let (turn, queue) = (Turn::Ahead(shared.facts.block.number, Ahead::Read), self.pool.queue());
        self.pool.spawn(turn, Work::WarmUp, &self.answers, shared, move || {
            let begin = Stopwatch::start();
            let read =
                jobs::read_ahead(&mut ahead, written, tries.as_ref(), || queue.make_way(|| job.needs_no_reading()));
            Some(JobMessage::ReadAhead { attempt: job.attempt, ahead, read, took: begin.elapsed() })
        });
    }

    pub(super) fn on_read_ahead(
        &mut self,
        entry: &mut Entry<S::Snapshot>,
        ahead: Box<ReadAhead<S::Snapshot>>,
        read: u64,
    ) {
        self.counters.warm_ups_from_writes.add();
        self.counters.writes_read_ahead.add_many(read);
        entry.ahead = AheadStage::Idle(Some(ahead));
        if matches!(entry.mode, Mode::Incremental(_)) && !matches!(entry.fold, FoldStage::Idle) {
            // Late: the fold may still come by some of it.
            Self::hand_over(entry);
        }
    }

    /// Puts what was read at the hand of the block's fold.
    pub(super) fn hand_over(entry: &mut Entry<S::Snapshot>) {
        match std::mem::replace(&mut entry.ahead, AheadStage::Off) {
            AheadStage::Idle(ahead) => ahead.into_iter().for_each(|ahead| ahead.hand_over()),
            other => entry.ahead = other,
        }
    }
}
