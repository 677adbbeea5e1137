//! What a block's stages allow: opening its gates, starting its fold, holding its root and its list to what execution
//! and header say.
//!
//! Invariant: what a step comes to depends on the block's stages and on its ancestors' alone, never on which event came
//! last. Only the turn of its fold depends on whether it has children.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use alloy_primitives::B256;
use foldgate_core::{BlockHash, HashedPostState, TrieStore};

use super::{Calculator, Progress};
use crate::{
    config::OnEarlyMismatch,
    counters::SkipReason,
    jobs::{self, Folded, JobMessage},
    observe::Work,
    pool::{Ahead, Turn},
    request::RebuiltBal,
    tree::{BalStage, CompareStage, Entry, ExecutionStage, FoldStage, Node, ShadowStage},
    verdict::{ConfirmedBy, Failure, InvalidReason, Mode},
    view::StateView,
};

impl<S: TrieStore> Calculator<S> {
    pub(super) fn touch_children(&mut self, parent: &BlockHash) {
        if let Some(children) = self.tree.children.get(parent) {
            self.touched.extend(children);
        }
    }

    /// Does whatever has become possible for a block.
    pub(super) fn step(&mut self, hash: &BlockHash) {
        let Some(mut entry) = self.tree.take(hash) else { return };
        if self.tree.orphans.contains(hash) && !self.tree.is_orphan(entry.parent) {
            self.tree.orphans.retain(|orphan| orphan != hash);
            self.touch_children(hash);
        }
        self.open_state_gate(&mut entry);
        let progress = self.advance(&mut entry);
        self.settle(entry, progress);
    }

    pub(super) fn settle(&mut self, entry: Box<Entry<S::Snapshot>>, progress: Progress) {
        match progress {
            Progress::Pending => drop(self.tree.nodes.insert(entry.block().hash, Node::InFlight(entry))),
            Progress::Invalid(reason) => self.close_invalid(entry, reason),
            Progress::Failed(failure) => self.close_failed(entry, failure),
            Progress::Valid(confirmed_by, folded) => self.close_valid(*entry, confirmed_by, folded),
        }
    }

    /// Lets the executor read as soon as every ancestor in flight has been executed.
    fn open_state_gate(&mut self, entry: &mut Entry<S::Snapshot>) {
        if entry.shared.gate.is_open() {
            return;
        }
        let (executed, sight) = self.tree.state_view(&entry.ground, entry.parent);
        if let Some(committed) = self.look(entry, sight) {
            entry.shared.gate.open(StateView { executed, committed });
        }
    }

    fn advance(&mut self, entry: &mut Entry<S::Snapshot>) -> Progress {
        if let Some(ended) = self.confirm_execution(entry) {
            return ended;
        }
        if let Some(failed) = self.start_fold(entry) {
            return Progress::Failed(failed);
        }
        self.read_ahead(entry);
        self.start_shadow(entry);
        let progress = self.judge(entry);
        // A list that was dropped in judging: the executed writes may be at hand already.
        if matches!(entry.fold, FoldStage::Idle)
            && matches!(progress, Progress::Pending)
            && let Some(failed) = self.start_fold(entry)
        {
            return Progress::Failed(failed);
        }
        progress
    }

    /// Holds an ended execution to the list that the header commits to, and hands the executed state to the children.
    fn confirm_execution(&mut self, entry: &mut Entry<S::Snapshot>) -> Option<Progress> {
        let ExecutionStage::Finished { recorded, result } = &entry.execution else { return None };
        if let Some(error) = entry.shared.read_failure.get() {
            return Some(Progress::Failed(Failure::Read(error.clone())));
        }
        let prepared = match &entry.bal {
            BalStage::Ready(prepared) => Some(prepared),
            BalStage::None => None,
            // The judgement of the list comes before that of its confirmation.
            BalStage::Preparing => return Some(Progress::Pending),
        };
        if let Some(expected) = entry.shared.facts.expected_bal_hash {
            match &result.rebuilt_bal {
                None => return Some(Progress::Failed(Failure::NotRebuilt)),
                Some(rebuilt) if rebuilt.hash != expected => {
                    return Some(Progress::Invalid(bal_mismatch(rebuilt, expected, prepared.map(|bal| &**bal))));
                }
                Some(_) => {}
            }
        } else if let (Some(prepared), Some(rebuilt)) = (prepared, &result.rebuilt_bal)
            && rebuilt.hash != prepared.hash()
        {
            let recorded = recorded.clone();
            self.drop_bal(entry, SkipReason::NotConfirmed);
            return self.publish_executed(entry, recorded);
        }
        let confirmed = || Some(result.rebuilt_bal.as_ref()?.hash == prepared?.hash()).filter(|same| *same);
        let state = recorded.clone().or_else(|| confirmed().and(prepared).map(|bal| Arc::clone(bal.post_state())));
        self.publish_executed(entry, state)
    }

    fn publish_executed(
        &mut self,
        entry: &mut Entry<S::Snapshot>,
        state: Option<Arc<HashedPostState>>,
    ) -> Option<Progress> {
        if entry.executed.is_none() {
            let Some(state) = state else { return Some(Progress::Failed(Failure::NoWrites)) };
            entry.executed = Some(state);
            self.touch_children(&entry.block().hash);
        }
        None
    }

    /// Starts the fold if the gate is open and the leaves are at hand.
    fn start_fold(&mut self, entry: &mut Entry<S::Snapshot>) -> Option<Failure> {
        match entry.fold {
            FoldStage::Idle => {}
            FoldStage::Running => {
                // Relaxed: it only saves work.
                if self.is_waited_for(entry) && !entry.shared.fold_first.swap(true, Ordering::Relaxed) {
                    self.pool.queue().promote(entry.block().number);
                }
                return None;
            }
            FoldStage::Done(_) => return None,
        }
        let state = match (&entry.mode, &entry.bal) {
            (Mode::BalDriven, BalStage::Ready(bal)) => Arc::clone(bal.post_state()),
            (Mode::BalDriven, _) => return None,
            (Mode::Incremental(_), _) => Arc::clone(entry.executed.as_ref()?),
        };
        let ready = *entry.leaves_ready.get_or_insert_with(Instant::now);
        let sight = self.tree.committed_view(&entry.ground, entry.parent);
        let parent = self.look(entry, sight)?;
        let counters = &self.counters;
        match entry.mode {
            Mode::BalDriven => {
                counters.folds_ahead.add();
                if entry.ground.way.is_some() {
                    counters.folds_ahead_below_tip.add();
                }
                if matches!(entry.execution, ExecutionStage::Running) {
                    counters.folds_before_execution_ended.add();
                }
            }
            Mode::Incremental(reason) => {
                counters.folds_incremental.add();
                // The others were counted when they were found.
                if matches!(reason, SkipReason::NoBal | SkipReason::Late) {
                    counters.skip(reason);
                    if self.config.shadow {
                        counters.shadows_skipped.add();
                    }
                }
            }
        }
        if !entry.gate_opened {
            entry.gate_opened = true;
            let durable = entry.parent == entry.ground.block();
            if durable {
                counters.gates_opened_from_durable.add();
            } else {
                counters.gates_opened_from_memory.add();
            }
        }
        entry.fold = FoldStage::Running;
        if matches!(entry.mode, Mode::Incremental(_)) {
            Self::hand_over(entry);
        }
        let (attempt, generation) = (entry.shared.attempt, entry.generation);
        let options = self.pool.fold_options();
        let (number, waited_for) = (entry.block().number, self.is_waited_for(entry));
        let turn = if waited_for { Turn::Due(number) } else { Turn::Ahead(number, Ahead::Fold) };
        entry.shared.fold_first.store(waited_for, Ordering::Relaxed);
        self.pool.spawn(turn, Work::Fold, &self.answers, &entry.shared, move || {
            let folded = jobs::resolve_and_fold(&state, &parent, &options, ready);
            Some(JobMessage::Folded { attempt, generation, folded })
        });
        None
    }

    /// Whether somebody waits for the block's fold: others stand on it, or its execution has ended. From then on it has its
    /// turn before all reading ahead, and what is not read ahead for it yet is read once, by the fold.
    fn is_waited_for(&self, entry: &Entry<S::Snapshot>) -> bool {
        matches!(entry.execution, ExecutionStage::Finished { .. })
            || self.tree.children.contains_key(&entry.block().hash)
    }

    /// Compares the folded root with the header's, and judges when execution has confirmed the state.
    fn judge(&mut self, entry: &mut Entry<S::Snapshot>) -> Progress {
        let FoldStage::Done(folded) = &entry.fold else { return Progress::Pending };
        let folded = Arc::clone(folded);
        let facts = entry.shared.facts;
        let (running, late_root) = match &entry.execution {
            ExecutionStage::Running => (true, None),
            ExecutionStage::Finished { result, .. } => (false, result.expected_state_root),
        };
        let Some(expected) = facts.expected_state_root.or(late_root) else {
            return if running { Progress::Pending } else { Progress::Failed(Failure::NoExpectedRoot) };
        };
        let got = folded.outcome.computed_state_root;
        let shadowed = !matches!(entry.shadow, ShadowStage::Off);
        if got != expected && running && entry.mode == Mode::BalDriven {
            // With the shadow on, the executed writes have to lead to the same before it counts.
            if facts.expected_bal_hash.is_none() {
                if shadowed {
                    return Progress::Pending;
                }
            } else if shadowed || self.config.on_early_mismatch == OnEarlyMismatch::FindReason {
                entry.early = Some(InvalidReason::StateRootMismatch { got, expected });
                return Progress::Pending;
            }
        }
        if !running && let Some(held) = self.hold_to_shadow(entry, &folded) {
            return held;
        }
        if got != expected {
            let mismatch = InvalidReason::StateRootMismatch { got, expected };
            return match entry.mode {
                Mode::BalDriven if facts.expected_bal_hash.is_none() => {
                    self.drop_bal(entry, SkipReason::EarlyRootMismatch);
                    Progress::Pending
                }
                _ => Progress::Invalid(mismatch),
            };
        }
        let ExecutionStage::Finished { recorded, result } = &entry.execution else { return Progress::Pending };
        if matches!(entry.bal, BalStage::Preparing) {
            return Progress::Pending;
        }
        match entry.mode {
            Mode::Incremental(_) => Progress::Valid(ConfirmedBy::Execution, folded),
            // `confirm_execution` has compared the hashes.
            Mode::BalDriven if result.rebuilt_bal.is_some() => Progress::Valid(ConfirmedBy::Bal, folded),
            Mode::BalDriven => match entry.compare {
                CompareStage::Equal => Progress::Valid(ConfirmedBy::PostState, folded),
                CompareStage::Running => Progress::Pending,
                CompareStage::Idle => {
                    let Some(executed) = recorded.clone() else { return Progress::Failed(Failure::NoWrites) };
                    self.start_compare(entry, executed, folded);
                    Progress::Pending
                }
            },
        }
    }

    fn start_compare(&mut self, entry: &mut Entry<S::Snapshot>, executed: Arc<HashedPostState>, folded: Arc<Folded>) {
        // The parent is committed: the fold has ended.
        let sight = self.tree.committed_view(&entry.ground, entry.parent);
        let Some(parent) = self.look(entry, sight) else { return };
        entry.compare = CompareStage::Running;
        let (attempt, generation) = (entry.shared.attempt, entry.generation);
        let turn = Turn::Due(entry.block().number);
        self.pool.spawn(turn, Work::Confirm, &self.answers, &entry.shared, move || {
            let equal = jobs::leads_to(&executed, &parent, &folded.outcome);
            Some(JobMessage::Compared { attempt, generation, equal })
        });
    }
}

fn bal_mismatch(rebuilt: &RebuiltBal, expected: B256, given: Option<&foldgate_bal::Bal>) -> InvalidReason {
    let difference =
        given.zip(rebuilt.list.as_ref()).and_then(|(given, rebuilt)| given.first_mismatch(rebuilt).map(Arc::new));
    InvalidReason::BalMismatch { got: rebuilt.hash, expected, difference }
}
