//! What blocks stand on: the durable chain as far back as it may be left, and views of blocks beside or below its tip.
//!
//! A view of the state after a block needs a snapshot and what lies between. Above the durable tip that is the layers of
//! blocks. Below it, and on branches that left the chain below it, it is *one* layer that leads from the snapshot's block
//! there: reverse diffs back to the common ancestor, the branch's own changes forward, folded at once
//! ([`foldgate_core::compute_way`]). Such a layer stands on the snapshot's block like any block's, so that whatever is folded
//! over it is folded as ever. Siblings share it.
//!
//! Owned by the calculator's thread alone; nothing here waits or locks.
//!
//! Invariants:
//! 1. A [`Chain`] holds blocks of consecutive heights, the durable tip last.
//! 2. A ground's layer, if it has one, stands on the block of its snapshot.
//! 3. At most [`MAX_GROUNDS`] ways are kept, and none for more than [`GROUND_STEPS`] steps of the durable state: each
//!    holds a snapshot. Blocks in flight hold theirs as long as they need it.

use std::{collections::VecDeque, sync::Arc};

use foldgate_core::{BlockHash, BlockNumHash, BlockNumber, Cached, Layer, Overlay, StateAnchor, TrieReader, TrieStore};

/// How many ways are kept for blocks to come.
const MAX_GROUNDS: usize = 8;
/// For how many steps of the durable state.
const GROUND_STEPS: u64 = 16;

/// The newest blocks of the durable chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Oldest first, at least one.
    anchors: VecDeque<StateAnchor>,
    /// How far below the tip it may be left.
    depth: u64,
}

impl Chain {
    pub(crate) fn new(tip: StateAnchor, depth: u64) -> Self {
        Self { anchors: VecDeque::from([tip]), depth }
    }

    /// The chain that ends with the store's tip, as far back as it may be left and the store reaches.
    pub(crate) fn read<S: TrieStore>(store: &S, tip: StateAnchor, depth: u64) -> Result<Self, S::Error> {
        let mut chain = Self::new(tip, depth);
        for number in (chain.floor()..tip.block.number).rev() {
            let Some(anchor) = store.committed(number)? else { break };
            chain.anchors.push_front(anchor);
        }
        Ok(chain)
    }

    fn tip(&self) -> BlockNumHash {
        // UNWRAP: at least one stands in it.
        self.anchors.back().expect("a chain has a tip").block
    }

    /// The lowest height on which a block may stand.
    pub(crate) fn floor(&self) -> BlockNumber {
        self.tip().number.saturating_sub(self.depth)
    }

    /// The height of the lowest block that is held.
    pub(crate) fn lowest(&self) -> BlockNumber {
        // No block lies below the genesis.
        self.anchors.front().map_or(0, |lowest| lowest.block.number)
    }

    /// The block with its root, if it is of the chain and may still be left.
    pub(crate) fn get(&self, block: BlockNumHash) -> Option<StateAnchor> {
        self.known(block).filter(|anchor| anchor.block.number >= self.floor())
    }

    /// The block with its root, if it is of what is held of the chain.
    fn known(&self, block: BlockNumHash) -> Option<StateAnchor> {
        let at = block.number.checked_sub(self.lowest())?;
        self.anchors.get(usize::try_from(at).ok()?).copied().filter(|anchor| anchor.block == block)
    }

    pub(crate) fn contains(&self, block: BlockNumHash) -> bool {
        self.known(block).is_some()
    }

    pub(crate) fn contains_hash(&self, hash: &BlockHash) -> bool {
        self.anchors.iter().any(|anchor| anchor.block.hash == *hash)
    }

    /// Adds the block that is durable now.
    pub(crate) fn push(&mut self, anchor: StateAnchor) {
        self.anchors.push_back(anchor);
    }

    /// Lets go of blocks that may be left no more.
    pub(crate) fn trim(&mut self) {
        let floor = self.floor();
        while self.anchors.front().is_some_and(|anchor| anchor.block.number < floor) {
            self.anchors.pop_front();
        }
    }
}

/// A state to stand on: a snapshot, and where it is not the snapshot's own the layer that leads there.
#[derive(Debug, Clone)]
pub(crate) struct Ground<R: TrieReader> {
    pub(crate) base: Cached<R>,
    pub(crate) way: Option<Arc<Layer>>,
}

impl<R: TrieReader> Ground<R> {
    pub(crate) const fn durable(base: Cached<R>) -> Self {
        Self { base, way: None }
    }

    /// The block whose state it is.
    pub(crate) fn block(&self) -> BlockNumHash {
        self.way.as_ref().map_or_else(|| self.base.anchor().block, |way| way.anchor.block)
    }

    /// The view through layers, oldest first, that stand on this; `None` if they do not, or their tries do not.
    pub(crate) fn view(&self, layers: Vec<Arc<Layer>>) -> Option<Overlay<Cached<R>>> {
        let layers = self.way.iter().cloned().chain(layers).collect();
        Overlay::new(self.base.clone(), layers).ok()
    }
}

/// A way that is being computed, or was.
#[derive(Debug)]
pub(crate) enum GroundStage<R: TrieReader> {
    Computing,
    Ready {
        ground: Ground<R>,
        /// The step of the durable state at which it was computed.
        step: u64,
    },
}

/// The ways at hand.
#[derive(Debug)]
pub(crate) struct Grounds<R: TrieReader> {
    /// Oldest first.
    stages: VecDeque<(BlockNumHash, GroundStage<R>)>,
    /// How often the durable state has changed.
    step: u64,
}

impl<R: TrieReader> Default for Grounds<R> {
    fn default() -> Self {
        Self { stages: VecDeque::new(), step: 0 }
    }
}

impl<R: TrieReader> Grounds<R> {
    pub(crate) fn ready(&self, block: BlockNumHash) -> Option<&Ground<R>> {
        self.stages.iter().find_map(|(at, stage)| match stage {
            GroundStage::Ready { ground, .. } if *at == block => Some(ground),
            _ => None,
        })
    }

    /// How many are at hand, or being computed.
    pub(crate) fn count(&self) -> usize {
        self.stages.len()
    }

    /// Notes that the way to a block is asked for. Says whether it is to be computed.
    pub(crate) fn begin(&mut self, block: BlockNumHash) -> bool {
        if self.stages.iter().any(|(at, stage)| *at == block && matches!(stage, GroundStage::Computing)) {
            return false;
        }
        // One that is there, and asked for all the same, serves no more.
        self.forget(block);
        self.stages.push_back((block, GroundStage::Computing));
        true
    }

    pub(crate) fn forget(&mut self, block: BlockNumHash) {
        self.stages.retain(|(at, _)| *at != block);
    }

    pub(crate) fn put(&mut self, block: BlockNumHash, ground: Ground<R>) {
        self.forget(block);
        self.stages.push_back((block, GroundStage::Ready { ground, step: self.step }));
        let ready = |stage: &GroundStage<R>| matches!(stage, GroundStage::Ready { .. });
        if self.stages.iter().filter(|(_, stage)| ready(stage)).count() > MAX_GROUNDS
            && let Some(oldest) = self.stages.iter().position(|(_, stage)| ready(stage))
        {
            self.stages.remove(oldest);
        }
    }

    /// The number of the durable state's step.
    pub(crate) const fn current_step(&self) -> u64 {
        self.step
    }

    /// Notes that the durable state has changed.
    pub(crate) fn step(&mut self) {
        self.step += 1;
        let now = self.step;
        self.stages.retain(|(_, stage)| match stage {
            GroundStage::Computing => true,
            GroundStage::Ready { step, .. } => step + GROUND_STEPS > now,
        });
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::B256;

    use super::*;

    fn anchor(number: u64) -> StateAnchor {
        let hash = B256::from(alloy_primitives::U256::from(number + 1));
        StateAnchor { block: BlockNumHash::new(number, hash), state_root: hash }
    }

    #[test]
    fn a_chain_may_be_left_as_far_down_as_its_depth() {
        let mut chain = Chain::new(anchor(10), 3);
        for number in 11..=20 {
            chain.push(anchor(number));
        }
        assert!(chain.contains(anchor(10).block), "until it is trimmed");
        assert_eq!(chain.get(anchor(16).block), None, "too deep");
        chain.trim();
        assert_eq!(chain.floor(), 17);
        assert!(!chain.contains(anchor(16).block));
        for number in 17..=20 {
            assert_eq!(chain.get(anchor(number).block), Some(anchor(number)));
        }
        let other = BlockNumHash::new(18, B256::repeat_byte(0xee));
        assert_eq!((chain.get(other), chain.get(anchor(21).block)), (None, None));
    }
}
