//! How a block's state is reached that stands below or beside the durable tip: the way there is computed on the pool, once
//! for all who wait for it.
//!
//! Invariants:
//! 1. Whoever waits for a way is touched when it is there; whoever waits for one that cannot be found is failed, unless
//!    the durable chain has moved since it was asked for: then it is asked for again.
//! 2. Nothing is read here.

use std::sync::Arc;

use crossbeam_channel::Sender;
use foldgate_core::{BlockHash, BlockNumHash, Cached, Layer, Overlay, TrieStore};

use super::Calculator;
use crate::{
    compute::{Unseen, View},
    ground::Ground,
    jobs::{self, JobMessage},
    pool::Turn,
    tree::{Entry, Node, ParentStatus, Sight},
    verdict::Failure,
};

impl<S: TrieStore> Calculator<S> {
    /// The view that a block has, if it has any yet. What it lacks is asked for.
    pub(super) fn look(
        &mut self,
        entry: &mut Entry<S::Snapshot>,
        sight: Sight<S::Snapshot>,
    ) -> Option<Overlay<Cached<S::Snapshot>>> {
        match sight {
            Sight::Clear { view, moved } => {
                if let Some(ground) = moved {
                    entry.ground = ground;
                }
                Some(view)
            }
            Sight::Needs(block) => {
                self.ask_way(block);
                None
            }
            Sight::Shut => None,
        }
    }

    fn ask_way(&mut self, block: BlockNumHash) {
        // Asked for again when the head has moved.
        if self.lost_ways.contains(&block) {
            return;
        }
        let Some((ancestor, branch)) = self.tree.branch_to(block) else { return };
        if !self.tree.grounds.begin(block) {
            return;
        }
        let (store, base, step) = (Arc::clone(&self.store), self.tree.base.clone(), self.tree.grounds.current_step());
        let options = self.pool.fold_options();
        let found = {
            let base = base.clone();
            move || {
                let way = jobs::find_way(&*store, &base, ancestor, &branch, &options);
                JobMessage::Grounded { block, base, step, way }
            }
        };
        let panicked = move |failure| JobMessage::Grounded { block, base, step, way: Err(failure) };
        self.pool.spawn_free(Turn::Due(block.number), &self.answers, found, panicked);
    }

    pub(super) fn on_grounded(
        &mut self,
        block: BlockNumHash,
        base: Cached<S::Snapshot>,
        step: u64,
        way: Result<Arc<Layer>, Failure>,
    ) {
        match way {
            Ok(layer) => {
                self.counters.ways.add();
                self.tree.grounds.put(block, Ground { base, way: Some(layer) });
                self.touch_descendants(&block.hash);
                self.answer_viewers();
            }
            Err(failure) => {
                self.tree.grounds.forget(block);
                if self.reorg.is_some() {
                    self.lost_ways.push(block);
                } else if step != self.tree.grounds.current_step() {
                    self.touch_descendants(&block.hash);
                    self.answer_viewers();
                } else {
                    self.refuse_viewers(&failure, |at| *at == block);
                    for child in self.tree.children.get(&block.hash).cloned().unwrap_or_default() {
                        if let Some(entry) = self.tree.take(&child) {
                            self.close_failed(entry, failure.clone());
                        }
                    }
                }
            }
        }
    }

    /// The durable chain has moved: what was not found may be found now.
    pub(super) fn ask_again(&mut self) {
        for block in std::mem::take(&mut self.lost_ways) {
            self.touch_descendants(&block.hash);
        }
        self.answer_viewers();
    }

    /// Answers with a view of a committed block's state, as soon as there is one.
    pub(super) fn see(&mut self, block: BlockNumHash, reply: Sender<Result<View<S::Snapshot>, Unseen>>) {
        let durable = Ground::durable(self.tree.base.clone());
        let answer = match self.tree.committed_view(&durable, block) {
            Sight::Clear { view, .. } => Ok(view),
            Sight::Needs(way) => {
                self.viewers.push((block, reply));
                self.ask_way(way);
                return;
            }
            Sight::Shut if self.tree.parent_status(block) == ParentStatus::InFlight => Err(Unseen::NotJudged),
            Sight::Shut => Err(Unseen::OutOfReach),
        };
        // Whoever asked may be gone.
        let _gone = reply.send(answer);
    }

    fn answer_viewers(&mut self) {
        for (block, reply) in std::mem::take(&mut self.viewers) {
            self.see(block, reply);
        }
    }

    /// Tells those who wait for these blocks that there is no way.
    pub(super) fn refuse_viewers(&mut self, failure: &Failure, of: impl Fn(&BlockNumHash) -> bool) {
        self.viewers.retain(|(block, reply)| {
            let refused = of(block);
            if refused {
                let _gone = reply.send(Err(Unseen::Failed(failure.clone())));
            }
            !refused
        });
    }

    /// Touches all blocks in flight that stand on a committed one through blocks in flight.
    fn touch_descendants(&mut self, block: &BlockHash) {
        let mut below = vec![*block];
        while let Some(at) = below.pop() {
            for child in self.tree.children.get(&at).into_iter().flatten() {
                if matches!(self.tree.nodes.get(child), Some(Node::InFlight(_))) {
                    self.touched.push_back(*child);
                    below.push(*child);
                }
            }
        }
    }
}
