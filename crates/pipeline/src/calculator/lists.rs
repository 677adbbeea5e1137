//! A block's access list: prepared and read ahead, supplied when the block is under way, given up.
//!
//! Invariants:
//! 1. A list that the header commits to and that is malformed makes the block invalid; any other bad list is dropped.
//! 2. Neither the fold nor the judgement waits for a warm-up.

use std::{sync::Arc, time::Instant};

use alloy_primitives::Bytes;
use foldgate_core::{BlockHash, Cached, TrieStore, Version};

use super::{Calculator, Plan, Progress};
use crate::{
    counters::SkipReason,
    handle::Shared,
    jobs::{self, JobMessage, Prepared},
    observe::Work,
    tree::{BalStage, CompareStage, Entry, ExecutionStage, FoldStage, Node},
    verdict::{InvalidReason, Mode},
};

impl<S: TrieStore> Calculator<S> {
    /// Has a list decoded and validated, and what it names read ahead.
    pub(super) fn prepare(
        &self,
        shared: &Arc<Shared<S::Snapshot>>,
        raw: Bytes,
        base: Cached<S::Snapshot>,
        tries: Option<Version>,
    ) {
        let (shared, answers, warm_up) = (Arc::clone(shared), self.answers.clone(), self.config.warm_up);
        self.pool.spawn(Work::Decode, &self.answers, &Arc::clone(&shared), move || {
            let begin = Instant::now();
            let attempt = shared.attempt;
            let prepared = jobs::prepare(raw, &shared.facts);
            let took = begin.elapsed();
            let Prepared::Good(good) = &prepared else {
                return Some(JobMessage::Prepared { attempt, prepared, took });
            };
            // An attempt is prepared once, so nothing is there yet.
            let _first = shared.listed.set(Arc::clone(good));
            // The answer goes first: neither the fold nor the judgement waits for the warm-up.
            let good = Arc::clone(good);
            let answered = answers.send(JobMessage::Prepared { attempt, prepared, took });
            if warm_up && answered.is_ok() {
                let begin = Instant::now();
                Work::WarmUp.span(shared.facts.block).in_scope(|| {
                    jobs::warm_up(&good, &base, tries.as_ref(), || shared.is_over());
                });
                let took = begin.elapsed();
                // An attempt is warmed up once, too.
                let _first = shared.warm_up.set(took);
                Work::WarmUp.took(took);
            }
            None
        });
    }

    pub(super) fn on_prepared(&mut self, entry: &mut Entry<S::Snapshot>, prepared: Prepared) -> Progress {
        let committed_to = entry.shared.facts.expected_bal_hash.is_some();
        match prepared {
            Prepared::Good(bal) => {
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
                self.prepare(&entry.shared, raw, entry.ground.base.clone(), self.tree.nearest_tries(entry.parent));
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
