//! A block's access list: prepared and read ahead, supplied when the block is under way, given up.
//!
//! Invariants:
//! 1. A list that the header commits to and that is malformed makes the block invalid; any other bad list is dropped.
//! 2. Neither a fold that somebody waits for nor the judgement waits for a warm-up, but for the batch that is being read.

use std::{sync::Arc, time::Instant};

use alloy_primitives::Bytes;
use foldgate_bal::Bal;
use foldgate_core::{BlockHash, TrieStore};

use super::{Calculator, Plan, Progress};
use crate::{
    counters::SkipReason,
    handle::Shared,
    jobs::{self, JobMessage, Prepared},
    observe::Work,
    pool::{Ahead, Stopwatch, Turn},
    tree::{BalStage, CompareStage, Entry, ExecutionStage, FoldStage, Node},
    verdict::{InvalidReason, Mode},
};

impl<S: TrieStore> Calculator<S> {
    /// Has a list decoded and validated, and what it names read ahead.
    pub(super) fn prepare(&self, shared: &Arc<Shared<S::Snapshot>>, raw: Bytes) {
        let (turn, job) = (Turn::List(shared.facts.block.number), Arc::clone(shared));
        self.pool.spawn(turn, Work::Decode, &self.answers, shared, move || {
            let begin = Instant::now();
            let prepared = jobs::prepare(raw, &job.facts);
            if let Prepared::Good(good) = &prepared {
                // An attempt is prepared once, so nothing is there yet.
                let _first = job.listed.set(Arc::clone(good));
            }
            Some(JobMessage::Prepared { attempt: job.attempt, prepared, took: begin.elapsed() })
        });
    }

    /// Has what a list names read ahead.
    fn warm_up(&self, entry: &Entry<S::Snapshot>, bal: &Arc<Bal>) {
        let (base, tries) = (entry.ground.base.clone(), self.tree.nearest_tries(entry.parent));
        let (job, bal, queue) = (Arc::clone(&entry.shared), Arc::clone(bal), self.pool.queue());
        let turn = Turn::Ahead(entry.block().number, Ahead::Read);
        self.pool.spawn(turn, Work::WarmUp, &self.answers, &entry.shared, move || {
            let begin = Stopwatch::start();
            jobs::warm_up(&bal, &base, tries.as_ref(), || queue.make_way(|| job.needs_no_reading()));
            // An attempt is warmed up once.
            let _first = job.warm_up.set(begin.elapsed());
            None
        });
    }

    pub(super) fn on_prepared(&mut self, entry: &mut Entry<S::Snapshot>, prepared: Prepared) -> Progress {
        let committed_to = entry.shared.facts.expected_bal_hash.is_some();
        match prepared {
            Prepared::Good(bal) => {
                if self.config.warm_up {
                    self.warm_up(entry, &bal);
                }
                entry.bal = BalStage::Ready(bal);
                Progress::Pending
            }
            Prepared::WrongHash { got, expected } if !entry.sourced => {
                Progress::Invalid(InvalidReason::BalHashMismatch { got, expected })
            }
            Prepared::Malformed(error) if committed_to => Progress::Invalid(InvalidReason::BalMalformed(error)),
            Prepared::WrongHash { .. } | Prepared::Malformed(_) => {
                self.drop_bal(entry, SkipReason::BalRefused);
                Progress::Pending
            }
        }
    }

    /// A list that comes by itself: good as long as the block executes.
    pub(super) fn on_bal(&mut self, block: &BlockHash, raw: Bytes) {
        let waiting = |entry: &Entry<S::Snapshot>| entry.mode == Mode::Incremental(SkipReason::NoBal);
        let Some(mut entry) = self.tree.take(block) else { return self.counters.bals_late.add() };
        match &entry.execution {
            ExecutionStage::Running if waiting(&entry) => {
                let plan = Plan { mode: Mode::BalDriven, raw: Some(raw.clone()), sourced: true };
                (entry.mode, entry.sourced, entry.bal) = (plan.mode, plan.sourced, BalStage::Preparing);
                entry.shadow = self.shadow_stage(&plan);
                self.prepare(&entry.shared, raw);
            }
            ExecutionStage::Finished { .. } if waiting(&entry) && matches!(entry.fold, FoldStage::Idle) => {
                self.counters.bals_late.add();
                entry.mode = Mode::Incremental(SkipReason::Late);
            }
            _ => self.counters.bals_late.add(),
        }
        self.tree.nodes.insert(*block, Node::InFlight(entry));
        self.touched.push_back(*block);
    }

    /// Gives up a block's list: the block goes on incrementally.
    pub(super) fn drop_bal(&self, entry: &mut Entry<S::Snapshot>, reason: SkipReason) {
        self.counters.bals_dropped.add();
        if entry.mode == Mode::BalDriven {
            self.counters.skip(reason);
            entry.mode = Mode::Incremental(reason);
            entry.generation += 1;
            entry.fold = FoldStage::Idle;
            entry.compare = CompareStage::Idle;
            entry.leaves_ready = None;
        }
        entry.bal = BalStage::None;
        self.drop_shadow(entry);
    }
}
