//! What becomes durable: the canonical head, the queue to the committer, and what a new durable tip changes.
//!
//! Invariants:
//! 1. Blocks go to the committer parents first, each once.
//! 2. After a failed commit nothing more is admitted or committed, and nobody waits for ever.

use std::sync::Arc;

use crossbeam_channel::Sender;
use foldgate_core::{BlockHash, BlockNumHash, Cached, Layer, TrieReader, TrieStore};

use super::Calculator;
use crate::{
    counters::Counters,
    halt::Halt,
    permits::Permit,
    pipeline::CanonicalError,
    tree::{Committed, Durability, Node},
    verdict::Failure,
};

impl<S: TrieStore> Calculator<S> {
    pub(super) fn set_canonical(&mut self, head: BlockHash, reply: Sender<Result<(), CanonicalError>>) {
        match self.move_head(head) {
            Ok(block) => {
                self.await_head(block, reply);
                self.release();
            }
            // The caller waits for the answer; if it is gone, nobody does.
            Err(error) => drop(reply.send(Err(error))),
        }
        self.answer_waiters();
    }

    /// Hands a committed block to the committer.
    pub(super) fn queue(&mut self, block: BlockNumHash, permit: Option<Permit>) {
        let Some(Node::Committed(committed)) = self.tree.nodes.get_mut(&block.hash) else { return };
        committed.durability = Durability::Queued { _permit: permit };
        self.tree.queued_head = block;
        // The committer is gone only after a failure, whose answer is on its way.
        let _failed = self.commits.send(Arc::clone(&committed.layer));
    }

    pub(super) fn on_committed(&mut self, layers: &[Arc<Layer>], result: Result<Cached<S::Snapshot>, Failure>) {
        match result {
            Ok(base) => {
                Counters::add(&self.counters.store_commits);
                self.tree.base = match layers.last() {
                    Some(newest) => base.with_tries(newest.tries.clone()),
                    None => base,
                };
                for layer in layers {
                    Counters::add(&self.counters.commits);
                    if let Some(Node::Committed(committed)) = self.tree.nodes.get_mut(&layer.anchor.block.hash) {
                        committed.durability = Durability::Durable;
                    }
                }
                self.note_durable(layers);
                for lost in self.tree.prune() {
                    self.halt(&lost, Halt::ForkLost);
                }
                self.sweep();
            }
            Err(failure) => self.break_down(failure),
        }
        self.answer_waiters();
    }

    /// A commit, or the log, has failed: nothing is admitted any more, and everything in flight is told.
    pub(super) fn break_down(&mut self, failure: Failure) {
        self.broken = Some(failure.clone());
        // What was queued will not be committed: its room is given back, so that callers get to hear why.
        for node in self.tree.nodes.values_mut() {
            if let Node::Committed(Committed { durability: durability @ Durability::Queued { .. }, .. }) = node {
                *durability = Durability::InMemory;
            }
        }
        self.give_up_backlog(&failure);
        let in_flight: Vec<_> = self.tree.attempts.values().copied().collect();
        for hash in in_flight {
            if let Some(entry) = self.tree.take(&hash) {
                self.close_failed(entry, failure.clone());
            }
        }
        self.answer_waiters();
    }

    pub(super) fn answer_waiters(&mut self) {
        let durable = self.tree.base.anchor();
        if let Some(failure) = &self.broken {
            for (_, waiter) in self.canonical_waiters.drain(..) {
                let _gone = waiter.send(Err(CanonicalError::Failed(failure.clone())));
            }
            for waiter in self.flush_waiters.drain(..) {
                let _gone = waiter.send(Err(failure.clone()));
            }
            return;
        }
        self.canonical_waiters.retain(|(block, waiter)| {
            let done = block.number <= durable.block.number;
            if done {
                let _gone = waiter.send(Ok(()));
            }
            !done
        });
        if self.backlog.head == durable.block {
            for waiter in self.flush_waiters.drain(..) {
                let _gone = waiter.send(Ok(durable));
            }
        }
    }
}
