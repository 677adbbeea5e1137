//! What becomes durable: the canonical head, the orders to the committer, and what a new durable tip changes.
//!
//! The head moves forward by commits. Where the branch of a new head leaves the durable chain below its tip, it is a
//! reorganisation: one order, given when all orders before it were carried out, and awaited before the next. Heads are
//! followed in the order in which they were asked for. A block that is of the canonical chain already moves nothing.
//!
//! Invariants:
//! 1. Blocks go to the committer parents first, each once.
//! 2. After a failed commit nothing more is admitted or committed, and nobody waits for ever.
//! 3. While a reorganisation is under way no order is given: what becomes canonical meanwhile is held.

use std::sync::Arc;

use crossbeam_channel::Sender;
use foldgate_core::{BlockHash, BlockNumHash, Cached, Layer, TrieReader, TrieStore};

use super::{Calculator, Reorg};
use crate::{
    committer::{Order, ReorgFailure, Reorganised},
    halt::Halt,
    observe,
    permits::Permit,
    pipeline::CanonicalError,
    tree::{Committed, Durability, Node},
    verdict::Failure,
};

/// What a head asked for comes to.
pub(super) enum Move {
    Answer(Result<(), CanonicalError>),
    /// It is canonical, in memory or on its way to the store.
    Await(BlockNumHash),
    /// It is canonical when the store has it.
    AwaitStore(BlockNumHash),
    /// Orders have to be carried out before.
    Later,
}

impl<S: TrieStore> Calculator<S> {
    pub(super) fn set_canonical(&mut self, head: BlockHash, reply: Sender<Result<(), CanonicalError>>) {
        self.heads.push_back((head, reply));
        self.follow_heads();
        self.release();
        self.answer_waiters();
    }

    /// Follows the heads that were asked for, as far as can be now.
    fn follow_heads(&mut self) {
        while self.broken.is_none()
            && self.reorg.is_none()
            && let Some((head, _)) = self.heads.front()
        {
            let moved = self.follow(*head);
            if matches!(moved, Move::Later) {
                break;
            }
            let Some((_, reply)) = self.heads.pop_front() else { break };
            match moved {
                // The caller waits for the answer; if it is gone, nobody does.
                Move::Answer(answer) => drop(reply.send(answer)),
                Move::Await(block) => {
                    self.await_head(block, reply);
                    // What is due of this head goes to the store, though the next one leaves its branch.
                    self.release();
                }
                Move::AwaitStore(block) => self.canonical_waiters.push((block, reply)),
                Move::Later => {}
            }
        }
    }

    pub(super) fn follow(&mut self, head: BlockHash) -> Move {
        let (block, durability) = match self.tree.nodes.get(&head) {
            _ if self.tree.chain.contains_hash(&head) => return Move::Answer(Ok(())),
            Some(Node::InFlight(entry)) => return Move::Answer(Err(CanonicalError::NotJudged(entry.block()))),
            None => return Move::Answer(Err(CanonicalError::Unknown(head))),
            Some(Node::Committed(committed)) => (committed.layer.anchor.block, &committed.durability),
        };
        match durability {
            Durability::Durable => return Move::Answer(Ok(())),
            Durability::Queued { .. } => return Move::Await(block),
            Durability::InMemory => {}
        }
        if self.is_canonical_in_memory(block) {
            return Move::Await(block);
        }
        if self.tree.path_to(head).is_some() {
            self.backlog.head = block;
            return Move::Await(block);
        }
        if self.tree.queued_head != self.tree.tip() {
            return Move::Later;
        }
        let Some((to, branch)) = self.tree.branch_to(block) else {
            return Move::Answer(Err(CanonicalError::NotADescendant { block, of: self.tree.queued_head }));
        };
        for layer in &branch {
            self.mark_queued(layer.anchor.block, None);
        }
        self.reorg = Some(Reorg { held: Vec::new(), left: self.backlog.head });
        self.backlog.head = block;
        // Before the store moves: afterwards an older head might be found in its place.
        self.record_head();
        // The committer is gone only after a failure, whose answer is on its way.
        let _failed = self.orders.send(Order::Reorganise { to, branch });
        Move::AwaitStore(block)
    }

    fn mark_queued(&mut self, block: BlockNumHash, permit: Option<Permit>) -> Option<Arc<Layer>> {
        let Some(Node::Committed(committed)) = self.tree.nodes.get_mut(&block.hash) else { return None };
        committed.durability = Durability::Queued { _permit: permit };
        observe::queued();
        self.tree.queued_head = block;
        Some(Arc::clone(&committed.layer))
    }

    /// Hands a committed block to the committer.
    pub(super) fn queue(&mut self, block: BlockNumHash, permit: Option<Permit>) {
        let Some(layer) = self.mark_queued(block, permit) else { return };
        match &mut self.reorg {
            Some(reorg) => reorg.held.push(layer),
            // The committer is gone only after a failure, whose answer is on its way.
            None => drop(self.orders.send(Order::Commit(layer))),
        }
    }

    pub(super) fn on_committed(&mut self, layers: &[Arc<Layer>], result: Result<Cached<S::Snapshot>, Failure>) {
        match result {
            Ok(base) => {
                self.counters.store_commits.add();
                // Readers of the old snapshot go on with what they have; those of the new one begin with nothing.
                self.shadow_cache.reset(base.anchor().block);
                self.tree.base = base;
                layers.iter().for_each(|layer| self.tree.chain.push(layer.anchor));
                self.note_durable(layers);
                self.moved();
            }
            Err(failure) => self.break_down(failure),
        }
        self.answer_waiters();
    }

    pub(super) fn on_reorganised(&mut self, result: Result<Reorganised<S>, ReorgFailure>) {
        let (held, left) = self.reorg.take().map_or((Vec::new(), self.backlog.head), |reorg| (reorg.held, reorg.left));
        match result {
            Ok(Reorganised { base, chain, unwound, branch, store_commits }) => {
                self.counters.reorganisations.add();
                self.counters.unwound.add_many(unwound.len() as u64);
                self.counters.store_commits.add_many(store_commits);
                self.shadow_cache.reset(base.anchor().block);
                (self.tree.base, self.tree.chain) = (base, chain);
                for layer in &unwound {
                    // One that is executed once more, though it was durable, stands no more where it stood.
                    self.halt(&layer.anchor.block.hash, Halt::ForkLost);
                    self.tree.keep_unwound(layer);
                    self.backlog.hold(layer, None);
                }
                self.record_head();
                self.note_durable(&branch);
                for layer in held {
                    // As above.
                    let _failed = self.orders.send(Order::Commit(layer));
                }
                self.moved();
            }
            Err(ReorgFailure::Before(failure)) => {
                observe::head_stays(self.backlog.head, &failure);
                self.unqueue();
                self.tree.queued_head = self.tree.tip();
                self.backlog.head = left;
                for (_, waiter) in self.canonical_waiters.drain(..) {
                    let _gone = waiter.send(Err(CanonicalError::Failed(failure.clone())));
                }
                self.record_head();
                self.ask_again();
                self.follow_heads();
                self.release();
            }
            Err(ReorgFailure::Midway(failure)) => self.break_down(failure),
        }
        self.answer_waiters();
    }

    fn note_durable(&mut self, layers: &[Arc<Layer>]) {
        for layer in layers {
            self.counters.commits.add();
            if let Some(Node::Committed(committed)) = self.tree.nodes.get_mut(&layer.anchor.block.hash) {
                let before = std::mem::replace(&mut committed.durability, Durability::Durable);
                if matches!(before, Durability::Queued { .. }) {
                    observe::unqueued();
                }
            }
            self.backlog.acknowledge_durable(&layer.anchor.block.hash);
        }
    }

    /// The durable tip is another one.
    fn moved(&mut self) {
        self.tree.grounds.step();
        for lost in self.tree.prune() {
            self.halt(&lost, Halt::ForkLost);
        }
        self.ask_again();
        if self.broken.is_none() {
            // Some may be so deep that the chain forgets them now.
            self.answer_heads();
        }
        self.tree.chain.trim();
        self.follow_heads();
        self.sweep();
        // Who waited for a flush finds the figures of what is not flushed told.
        self.answer_waiters();
    }

    /// What was queued will not be committed, or nobody will hear of it: its room is given back, so that callers get to
    /// hear why.
    pub(super) fn unqueue(&mut self) {
        for node in self.tree.nodes.values_mut() {
            if let Node::Committed(Committed { durability: durability @ Durability::Queued { .. }, .. }) = node {
                *durability = Durability::InMemory;
                observe::unqueued();
            }
        }
    }

    /// A commit, or the log, has failed: nothing is admitted any more, and everything in flight is told.
    pub(super) fn break_down(&mut self, failure: Failure) {
        self.broken = Some(failure.clone());
        self.unqueue();
        self.give_up_backlog(&failure);
        self.refuse_viewers(&failure, |_| true);
        let in_flight: Vec<_> = self.tree.attempts.values().copied().collect();
        for hash in in_flight {
            if let Some(entry) = self.tree.take(&hash) {
                self.close_failed(entry, failure.clone());
            }
        }
        self.answer_waiters();
    }

    pub(super) fn answer_waiters(&mut self) {
        if let Some(failure) = &self.broken {
            let heads = self.heads.drain(..).map(|(_, waiter)| waiter);
            for waiter in self.canonical_waiters.drain(..).map(|(_, waiter)| waiter).chain(heads) {
                let _gone = waiter.send(Err(CanonicalError::Failed(failure.clone())));
            }
            for waiter in self.flush_waiters.drain(..) {
                let _gone = waiter.send(Err(failure.clone()));
            }
            return;
        }
        self.answer_heads();
        self.answer_flushes();
    }

    fn answer_heads(&mut self) {
        let chain = &self.tree.chain;
        self.canonical_waiters.retain(|(block, waiter)| {
            let done = chain.contains(*block);
            if done {
                let _gone = waiter.send(Ok(()));
            }
            !done
        });
    }

    fn answer_flushes(&mut self) {
        let durable = self.tree.base.anchor();
        if self.backlog.head == durable.block && self.heads.is_empty() {
            for waiter in self.flush_waiters.drain(..) {
                let _gone = waiter.send(Ok(durable));
            }
        }
    }
}
