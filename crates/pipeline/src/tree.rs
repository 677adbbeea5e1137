//! The blocks that the pipeline knows: those between arrival and verdict, those committed in memory, and where they
//! stand on each other and on the durable tip.
//!
//! Owned by the calculator's thread alone; nothing here waits or locks.
//!
//! Invariants:
//! 1. A committed block's parent is committed too, or is the durable tip of some snapshot still in use.
//! 2. `attempts` names exactly the blocks in flight.
//! 3. `children` lists a block under its parent's hash, whether the parent is known or not.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use foldgate_core::{BlockHash, BlockNumHash, HashedPostState, Layer, Overlay, TrieReader};

use crate::{
    handle::{AttemptId, Shared},
    jobs::{Folded, PreparedBal},
    permits::Permit,
    request::BlockResult,
    verdict::{BlockTimings, InvalidReason, Mode, Verdict},
    view::{ExecutedLayer, StateView},
    warm::Warm,
};

/// A block's access list on its way.
#[derive(Debug)]
pub(crate) enum BalStage {
    /// There is none, or it was dropped.
    None,
    Preparing,
    Ready(Arc<PreparedBal>),
}

/// A block's execution on its way.
#[derive(Debug)]
pub(crate) enum ExecutionStage {
    Running,
    Finished {
        /// What was recorded, if anything was.
        recorded: Option<Arc<HashedPostState>>,
        result: BlockResult,
    },
}

/// A block's fold on its way.
#[derive(Debug)]
pub(crate) enum FoldStage {
    Idle,
    Running,
    Done(Arc<Folded>),
}

/// The comparison of executed writes with the folded state, where no rebuilt list confirms it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CompareStage {
    Idle,
    Running,
    Equal,
}

/// A block between arrival and verdict.
#[derive(Debug)]
pub(crate) struct Entry<R: TrieReader> {
    pub(crate) shared: Arc<Shared<R>>,
    pub(crate) parent: BlockNumHash,
    /// The durable state at arrival: what the warm-up reads.
    pub(crate) base: Warm<R>,
    pub(crate) permit: Permit,
    pub(crate) mode: Mode,
    pub(crate) bal: BalStage,
    /// Whether the list came from a source, and not in the payload.
    pub(crate) sourced: bool,
    pub(crate) execution: ExecutionStage,
    /// What the children's executors read: set when execution ended and was confirmed.
    pub(crate) executed: Option<Arc<HashedPostState>>,
    pub(crate) fold: FoldStage,
    pub(crate) compare: CompareStage,
    /// Raised when the list is dropped: answers of older jobs count no more.
    pub(crate) generation: u32,
    /// A wrong early root whose reason is still looked for.
    pub(crate) early: Option<InvalidReason>,
    pub(crate) arrival: Instant,
    /// When the leaves to fold were at hand.
    pub(crate) leaves_ready: Option<Instant>,
    pub(crate) timings: BlockTimings,
}

impl<R: TrieReader> Entry<R> {
    pub(crate) fn block(&self) -> BlockNumHash {
        self.shared.facts.block
    }
}

/// How durable a committed block is.
#[derive(Debug)]
pub(crate) enum Durability {
    /// In memory only, on a branch that is not (yet) canonical.
    InMemory,
    /// Handed to the committer.
    Queued {
        /// Given back when the block is durable.
        _permit: Option<Permit>,
    },
    /// In the store; kept while a block in flight still reads an older snapshot.
    Durable,
}

/// A block that the pipeline knows.
#[derive(Debug)]
pub(crate) enum Node<R: TrieReader> {
    InFlight(Box<Entry<R>>),
    Committed(Arc<Layer>, Durability),
}

/// What is known of a block's parent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ParentStatus {
    /// It is the durable tip.
    Durable,
    /// It is committed in memory.
    Committed,
    /// It is in flight.
    InFlight,
    /// It was judged invalid.
    Invalid,
    /// It is an ancestor of the durable tip, or beside one.
    BelowTip,
    /// Nothing is known of it.
    Unknown,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Tree<R: TrieReader> {
    /// The durable state.
    pub(crate) base: Warm<R>,
    /// The newest block handed to the committer, or the durable tip.
    pub(crate) queued_head: BlockNumHash,
    pub(crate) nodes: HashMap<BlockHash, Node<R>>,
    pub(crate) children: HashMap<BlockHash, Vec<BlockHash>>,
    pub(crate) attempts: HashMap<AttemptId, BlockHash>,
    /// Blocks in flight whose parent is unknown, oldest first.
    pub(crate) orphans: VecDeque<BlockHash>,
    verdicts: Remembered,
}

impl<R: TrieReader> Tree<R> {
    pub(crate) fn new(base: Warm<R>, max_remembered: usize) -> Self {
        Self {
            queued_head: base.anchor().block,
            base,
            nodes: HashMap::new(),
            children: HashMap::new(),
            attempts: HashMap::new(),
            orphans: VecDeque::new(),
            verdicts: Remembered { max: max_remembered, by_hash: HashMap::new(), order: VecDeque::new() },
        }
    }

    pub(crate) fn tip(&self) -> BlockNumHash {
        self.base.anchor().block
    }

    pub(crate) fn verdict(&self, hash: &BlockHash) -> Option<&Verdict> {
        self.verdicts.by_hash.get(hash)
    }

    pub(crate) fn remember(&mut self, verdict: Verdict) {
        self.verdicts.insert(verdict);
    }

    pub(crate) fn parent_status(&self, parent: BlockNumHash) -> ParentStatus {
        if parent == self.tip() {
            return ParentStatus::Durable;
        }
        match self.nodes.get(&parent.hash) {
            Some(Node::InFlight(_)) => return ParentStatus::InFlight,
            Some(Node::Committed(_, Durability::Durable)) => return ParentStatus::BelowTip,
            Some(Node::Committed(..)) => return ParentStatus::Committed,
            None => {}
        }
        match self.verdict(&parent.hash) {
            Some(Verdict::Invalid(_)) => ParentStatus::Invalid,
            _ if parent.number <= self.tip().number => ParentStatus::BelowTip,
            _ => ParentStatus::Unknown,
        }
    }

    /// Takes a block in flight out of the tree.
    pub(crate) fn take(&mut self, hash: &BlockHash) -> Option<Box<Entry<R>>> {
        match self.nodes.remove(hash)? {
            Node::InFlight(entry) => Some(entry),
            committed @ Node::Committed(..) => {
                self.nodes.insert(*hash, committed);
                None
            }
        }
    }

    /// Forgets a block that was taken out for good. Gives its children, who have lost their parent.
    pub(crate) fn forget(&mut self, entry: &Entry<R>) -> Vec<BlockHash> {
        let block = entry.block();
        self.attempts.remove(&entry.shared.attempt);
        self.orphans.retain(|orphan| *orphan != block.hash);
        self.unlink(&entry.parent.hash, &block.hash);
        self.children.remove(&block.hash).unwrap_or_default()
    }

    fn unlink(&mut self, parent: &BlockHash, child: &BlockHash) {
        if let Some(children) = self.children.get_mut(parent) {
            children.retain(|candidate| candidate != child);
            if children.is_empty() {
                self.children.remove(parent);
            }
        }
    }

    /// The view of a committed parent's state over `base`, or over the newest durable state where `base` no longer
    /// reaches it. `None` while the parent is not committed.
    pub(crate) fn committed_view(&self, base: &Warm<R>, parent: BlockNumHash) -> Option<Overlay<Warm<R>>> {
        self.view_over(base, parent).or_else(|| self.view_over(&self.base, parent))
    }

    fn view_over(&self, base: &Warm<R>, parent: BlockNumHash) -> Option<Overlay<Warm<R>>> {
        let bottom = base.anchor().block;
        let mut layers = Vec::new();
        let mut at = parent;
        while at != bottom {
            let Some(Node::Committed(layer, _)) = self.nodes.get(&at.hash) else { return None };
            layers.push(Arc::clone(layer));
            at = layer.parent;
        }
        layers.reverse();
        Overlay::new(base.clone(), layers).ok()
    }

    /// The view of the parent's state for an executor: executed ancestors over committed ones. `None` while an
    /// ancestor's execution has not ended, or was not confirmed.
    pub(crate) fn state_view(&self, base: &Warm<R>, parent: BlockNumHash) -> Option<StateView<R>> {
        let mut executed = Vec::new();
        let mut at = parent;
        while let Some(Node::InFlight(entry)) = self.nodes.get(&at.hash) {
            executed.push(ExecutedLayer { block: at, state: Arc::clone(entry.executed.as_ref()?) });
            at = entry.parent;
        }
        Some(StateView { executed, committed: self.committed_view(base, at)? })
    }

    /// The committed blocks that lead from the committer's newest block to `head`, oldest first; `None` if they do not.
    pub(crate) fn path_to(&self, head: BlockHash) -> Option<Vec<Arc<Layer>>> {
        let mut path = Vec::new();
        let mut at = head;
        while at != self.queued_head.hash {
            let Some(Node::Committed(layer, Durability::InMemory)) = self.nodes.get(&at) else { return None };
            path.push(Arc::clone(layer));
            at = layer.parent.hash;
        }
        path.reverse();
        Some(path)
    }

    /// Drops what the new durable tip has made useless. Gives the blocks in flight that can no longer win.
    pub(crate) fn prune(&mut self) -> Vec<BlockHash> {
        let tip = self.tip();
        let (lost, lost_in_flight): (Vec<_>, Vec<_>) = self
            .nodes
            .keys()
            .filter(|hash| self.is_lost(hash))
            .copied()
            .partition(|hash| matches!(self.nodes.get(hash), Some(Node::Committed(..))));
        for hash in lost {
            if let Some(Node::Committed(layer, _)) = self.nodes.remove(&hash) {
                self.unlink(&layer.parent.hash, &hash);
            }
        }
        let oldest_base = self.nodes.values().filter_map(|node| match node {
            Node::InFlight(entry) => Some(entry.base.anchor().block.number),
            Node::Committed(..) => None,
        });
        let oldest_base = oldest_base.min().unwrap_or(tip.number).min(tip.number);
        let done: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|(hash, node)| match node {
                Node::Committed(layer, Durability::Durable) if layer.anchor.block.number <= oldest_base => {
                    Some((*hash, layer.parent.hash))
                }
                _ => None,
            })
            .collect();
        for (hash, parent) in done {
            self.nodes.remove(&hash);
            self.unlink(&parent, &hash);
        }
        lost_in_flight
    }

    /// Whether a block stands on something that is neither the durable tip nor a block that may follow it.
    fn is_lost(&self, hash: &BlockHash) -> bool {
        let tip = self.tip();
        let mut at = *hash;
        loop {
            let parent = match self.nodes.get(&at) {
                Some(Node::InFlight(entry)) => entry.parent,
                Some(Node::Committed(_, Durability::Durable | Durability::Queued { .. })) => return false,
                Some(Node::Committed(layer, Durability::InMemory)) => layer.parent,
                None => return false,
            };
            if parent == tip {
                return false;
            }
            if parent.number <= tip.number {
                return true;
            }
            at = parent.hash;
        }
    }
}

/// The newest verdicts, by block.
#[derive(Debug)]
struct Remembered {
    max: usize,
    by_hash: HashMap<BlockHash, Verdict>,
    order: VecDeque<BlockHash>,
}

impl Remembered {
    fn insert(&mut self, verdict: Verdict) {
        let hash = verdict.block().hash;
        if self.by_hash.insert(hash, verdict).is_none() {
            self.order.push_back(hash);
        }
        while self.order.len() > self.max {
            if let Some(oldest) = self.order.pop_front() {
                self.by_hash.remove(&oldest);
            }
        }
    }
}
