//! How the shadow goes along with a block: it begins when its source and the parent's state are at hand, and the verdict
//! waits for the comparison.
//!
//! | decides | shadow computes from | begins | a divergence |
//! |---|---|---|---|
//! | the access list | the executed writes | after execution | is counted and reported, and fails the block |
//! | the executed writes, since the mode is off | the access list | ahead of execution | is counted and reported |
//!
//! A block that comes without a list, whose list is dropped, or that is older than Cancun has one source, and no shadow.
//!
//! Invariant: computations are held to each other only when execution has ended, and then never without the list being
//! what execution rebuilt, or leading to the leaves that execution wrote: a wrong list is no divergence.

use std::sync::Arc;

use foldgate_bal::Bal;
use foldgate_core::{HashedPostState, StateReader, TrieStore};

use super::{Calculator, Plan, Progress};
use crate::{
    counters::SkipReason,
    jobs::{Folded, JobMessage},
    observe::{self, Work},
    pool::Turn,
    shadow::{self, Case, Compared, Shadowed, Source},
    tree::{BalStage, Entry, ExecutionStage, ShadowStage},
    verdict::{Failure, Mode},
};

impl<S: TrieStore> Calculator<S> {
    /// Whether a block that is admitted will have a shadow, as far as its request tells.
    pub(super) fn shadow_stage(&self, plan: &Plan) -> ShadowStage {
        let two_sources = matches!(plan.mode, Mode::BalDriven | Mode::Incremental(SkipReason::SwitchedOff));
        match (self.config.shadow, two_sources && plan.raw.is_some()) {
            (false, _) => ShadowStage::Off,
            (true, true) => ShadowStage::Idle,
            (true, false) => {
                // A list may still be supplied.
                if plan.mode != Mode::Incremental(SkipReason::NoBal) {
                    self.counters.shadows_skipped.add();
                }
                ShadowStage::Off
            }
        }
    }

    /// The block has one source only.
    pub(super) fn drop_shadow(&self, entry: &mut Entry<S::Snapshot>) {
        let compared = matches!(entry.shadow, ShadowStage::Agrees | ShadowStage::Diverged(_));
        if !compared && !matches!(entry.shadow, ShadowStage::Off) {
            self.counters.shadows_skipped.add();
        }
        entry.shadow = ShadowStage::Off;
    }

    pub(super) fn start_shadow(&mut self, entry: &mut Entry<S::Snapshot>) {
        if !matches!(entry.shadow, ShadowStage::Idle) {
            return;
        }
        let state = match (entry.mode, &entry.execution, &entry.bal) {
            (Mode::BalDriven, ExecutionStage::Running, _) | (Mode::Incremental(_), _, BalStage::Preparing) => return,
            (Mode::BalDriven, ExecutionStage::Finished { recorded, .. }, _) => recorded.clone(),
            (Mode::Incremental(_), _, BalStage::Ready(bal)) => Some(Arc::clone(bal.post_state())),
            (Mode::Incremental(_), _, BalStage::None) => None,
        };
        let Some(state) = state else { return self.drop_shadow(entry) };
        let sight = self.tree.committed_view(&entry.ground, entry.parent);
        let Some(parent) = self.look(entry, sight) else { return };
        entry.shadow = ShadowStage::Running;
        let (attempt, cache) = (entry.shared.attempt, Arc::clone(&self.shadow_cache));
        let (turn, options) = (Turn::Due(entry.block().number), self.pool.fold_options());
        self.pool.spawn(turn, Work::Shadow, &self.answers, &entry.shared, move || {
            let shadowed = shadow::compute(&state, &parent, &cache, &options);
            Some(JobMessage::Shadowed { attempt, shadowed })
        });
    }

    pub(super) fn on_shadowed(
        &self,
        entry: &mut Entry<S::Snapshot>,
        shadowed: Result<Shadowed, <S::Snapshot as StateReader>::Error>,
    ) -> Progress {
        match (shadowed, &entry.shadow) {
            (Err(error), _) => return Progress::Failed(Failure::Read(Arc::new(error))),
            (Ok(shadowed), ShadowStage::Running) => entry.shadow = ShadowStage::Done(Arc::new(shadowed)),
            // The list was dropped meanwhile.
            (Ok(_), _) => {}
        }
        Progress::Pending
    }

    /// Holds a fold of a block whose execution has ended to the shadow. `None` if nothing stands against a verdict.
    pub(super) fn hold_to_shadow(&mut self, entry: &mut Entry<S::Snapshot>, folded: &Arc<Folded>) -> Option<Progress> {
        match &entry.shadow {
            ShadowStage::Off | ShadowStage::Agrees => None,
            ShadowStage::Idle | ShadowStage::Running | ShadowStage::Comparing => Some(Progress::Pending),
            ShadowStage::Diverged(divergence) => match entry.mode {
                Mode::BalDriven => Some(Progress::Failed(Failure::Divergence(Arc::clone(divergence)))),
                Mode::Incremental(_) => None,
            },
            ShadowStage::Done(shadowed) => {
                let shadowed = Arc::clone(shadowed);
                let (ExecutionStage::Finished { recorded: Some(executed), .. }, BalStage::Ready(bal)) =
                    (&entry.execution, &entry.bal)
                else {
                    // Without records the list was taken for them: there is nothing to compare.
                    self.drop_shadow(entry);
                    return None;
                };
                let (executed, bal) = (Arc::clone(executed), Arc::clone(bal));
                self.start_comparison(entry, &bal, executed, Arc::clone(folded), shadowed);
                Some(Progress::Pending)
            }
        }
    }

    fn start_comparison(
        &mut self,
        entry: &mut Entry<S::Snapshot>,
        bal: &Arc<Bal>,
        executed: Arc<HashedPostState>,
        folded: Arc<Folded>,
        shadowed: Arc<Shadowed>,
    ) {
        // The parent is committed: both folds have ended.
        let sight = self.tree.committed_view(&entry.ground, entry.parent);
        let Some(parent) = self.look(entry, sight) else { return };
        let bal = Arc::clone(bal);
        let list_confirmed = match &entry.execution {
            ExecutionStage::Finished { result, .. } => {
                result.rebuilt_bal.as_ref().is_some_and(|rebuilt| rebuilt.hash == bal.hash())
            }
            ExecutionStage::Running => false,
        };
        let decided_by = if entry.mode == Mode::BalDriven { Source::Bal } else { Source::Execution };
        let (attempt, facts) = (entry.shared.attempt, entry.shared.facts);
        let directory = self.config.divergence_directory.clone();
        entry.shadow = ShadowStage::Comparing;
        let turn = Turn::Due(facts.block.number);
        self.pool.spawn(turn, Work::HoldToShadow, &self.answers, &entry.shared, move || {
            let case = Case {
                facts,
                decided_by,
                raw: bal.raw(),
                listed: bal.post_state(),
                executed: &executed,
                decided: &folded.outcome,
                shadowed: &shadowed,
                list_confirmed,
                parent: &parent,
            };
            let compared = shadow::compare(&case, directory.as_deref());
            Some(JobMessage::HeldToShadow { attempt, compared })
        });
    }

    pub(super) fn on_held_to_shadow(&self, entry: &mut Entry<S::Snapshot>, compared: Compared) -> Progress {
        if matches!(entry.shadow, ShadowStage::Comparing) {
            match compared {
                Compared::ListDiffers => self.drop_bal(entry, SkipReason::NotConfirmed),
                Compared::Same => {
                    self.counters.shadows.add();
                    entry.shadow = ShadowStage::Agrees;
                }
                Compared::Diverged(divergence) => {
                    self.counters.shadows.add();
                    self.counters.divergences.add();
                    observe::diverged(&divergence);
                    entry.shadow = ShadowStage::Diverged(divergence);
                }
            }
        }
        Progress::Pending
    }
}
