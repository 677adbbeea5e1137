//! How a block ends: valid, invalid, failed, or stopped; and what that means for its descendants.
//!
//! Invariant: an outcome is sent once, when the room that the block took was given back, or went on with the block to the
//! log or the committer.

use std::sync::{Arc, atomic::Ordering};

use foldgate_core::{BlockHash, Layer, TrieStore};

use super::Calculator;
use crate::{
    acknowledge::Acknowledge,
    config::Canonical,
    halt::Halt,
    jobs::Folded,
    observe,
    tree::{BalStage, Committed, Durability, Entry, FoldStage, Node},
    verdict::{BlockError, ConfirmedBy, Failure, InvalidBlock, InvalidReason, Mode, ValidBlock, Verdict},
};

impl<S: TrieStore> Calculator<S> {
    pub(super) fn close_valid(
        &mut self,
        mut entry: Entry<S::Snapshot>,
        confirmed_by: ConfirmedBy,
        folded: Arc<Folded>,
    ) {
        self.counters.valid.add();
        let block = entry.block();
        entry.timings.verdict = entry.arrival.elapsed();
        entry.timings.confirm = entry.timings.verdict.saturating_sub(entry.timings.execution);
        entry.timings.warm_up += entry.shared.warm_up.get().copied().unwrap_or_default();
        // Relaxed: it only saves work.
        entry.shared.valid.store(true, Ordering::Relaxed);
        observe::valid(block, entry.mode, &entry.timings);
        let bal = match &entry.bal {
            BalStage::Ready(bal) => Some(bal.raw().clone()),
            BalStage::None | BalStage::Preparing => None,
        };
        entry.fold = FoldStage::Idle;
        // The job has ended, so that this is the last reference: nothing is copied but where a panic kept one.
        let outcome = Arc::try_unwrap(folded).map_or_else(|shared| shared.outcome.clone(), |folded| folded.outcome);
        let layer = Arc::new(Layer::new(entry.parent, block, outcome, bal));
        let verdict = Arc::new(ValidBlock {
            block,
            computed_state_root: layer.anchor.state_root,
            mode: entry.mode,
            confirmed_by,
            timings: entry.timings,
            layer: Some(Arc::clone(&layer)),
        });
        self.tree.attempts.remove(&entry.shared.attempt);
        let auto = self.config.canonical == Canonical::Auto;
        let extends = auto && layer.parent == self.backlog.head;
        if let Some(reorg) = self.reorg.as_mut().filter(|reorg| auto && layer.parent == reorg.left) {
            // If the move fails, the head is where it would be without it.
            reorg.left = block;
        }
        let by_list = entry.mode == Mode::BalDriven;
        let Entry { shared, permit, .. } = entry;
        let durability = Durability::InMemory;
        let committed = Committed { layer: Arc::clone(&layer), verdict: Arc::clone(&verdict), durability };
        self.tree.nodes.insert(block.hash, Node::Committed(committed));
        self.take_in(&layer, by_list, extends, permit, Acknowledge::new(shared.acknowledge.clone()));
        // The ticket may be gone: nobody asked.
        let _unasked = shared.outcome.send(Ok(Verdict::Valid(verdict)));
        self.touch_children(&block.hash);
    }

    pub(super) fn close_invalid(&mut self, mut entry: Box<Entry<S::Snapshot>>, reason: InvalidReason) {
        self.counters.invalid.add();
        let block = entry.block();
        let early = entry.early.take();
        // A list that is not the header's came with this delivery; the block's hash does not name it, and the next
        // delivery may bring the right one.
        let of_the_block = !matches!(reason, InvalidReason::BalHashMismatch { .. });
        let invalid = InvalidBlock { block, reason, early };
        observe::invalid(&invalid);
        let verdict = Verdict::Invalid(Arc::new(invalid));
        if of_the_block {
            self.tree.remember(verdict.clone());
        }
        self.close(&mut entry, Halt::Judged, Ok(verdict), &Halt::AncestorInvalid(block));
    }

    pub(super) fn close_failed(&mut self, mut entry: Box<Entry<S::Snapshot>>, failure: Failure) {
        self.counters.failed.add();
        observe::failed(entry.block(), &failure);
        let halt = Halt::AncestorFailed(entry.block());
        self.close(&mut entry, Halt::Failed, Err(BlockError::Failed(failure)), &halt);
    }

    /// Stops a block in flight without a verdict, and its descendants with it.
    pub(super) fn halt(&mut self, hash: &BlockHash, reason: Halt) {
        let Some(mut entry) = self.tree.take(hash) else { return };
        self.counters.cancelled.add();
        observe::cancelled(entry.block(), &reason);
        let descendants = match &reason {
            Halt::HandleDropped | Halt::UnknownParent(_) => Halt::AncestorCancelled(entry.block()),
            other => other.clone(),
        };
        self.close(&mut entry, reason.clone(), Err(BlockError::Halted(reason)), &descendants);
    }

    /// Ends a block in flight that is not valid, and stops its descendants.
    fn close(
        &mut self,
        entry: &mut Entry<S::Snapshot>,
        halt: Halt,
        outcome: Result<Verdict, BlockError>,
        descendants: &Halt,
    ) {
        let mut below = self.end(entry, halt, outcome);
        // Not by recursion: a chain may be as long as there is room for blocks.
        while let Some(hash) = below.pop() {
            let Some(mut entry) = self.tree.take(&hash) else { continue };
            self.counters.cancelled.add();
            observe::cancelled(entry.block(), descendants);
            let outcome = Err(BlockError::Halted(descendants.clone()));
            below.extend(self.end(&mut entry, descendants.clone(), outcome));
        }
    }

    /// Ends one block. Gives its children.
    fn end(
        &mut self,
        entry: &mut Entry<S::Snapshot>,
        halt: Halt,
        outcome: Result<Verdict, BlockError>,
    ) -> Vec<BlockHash> {
        let children = self.tree.forget(entry);
        // Before the outcome is out: whoever has it finds the room.
        drop(entry.permit.take());
        // The outcome before the gate: an executor that stops at once finds it waiting. Its ticket may be gone.
        let _unasked = entry.shared.outcome.send(outcome);
        entry.shared.gate.cancel(halt);
        children
    }
}
