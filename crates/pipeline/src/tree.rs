//! The blocks that the pipeline knows: those between arrival and verdict, those committed in memory, and where they
//! stand on each other and on the durable tip.
//!
//! Owned by the calculator's thread alone; nothing here waits or locks.
//!
//! Invariants:
//! 1. A committed block's parent is committed too, or is of the durable chain.
//! 2. `attempts` names exactly the blocks in flight.
//! 3. `children` lists a block under its parent's hash, whether the parent is known or not.
//! 4. A block is named by number and hash: what claims another height than its parent's plus one has no parent here. So
//!    a walk from parent to parent ends, whatever hashes it is told.
//! 5. `orphans` holds exactly the blocks in flight that stand, directly or not, on a block that is unknown.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use foldgate_bal::Bal;
use foldgate_core::{
    BlockHash, BlockNumHash, Cached, HashedPostState, Layer, Overlay, ReadAhead, StateAnchor, TrieReader, Version,
    WrittenKey,
};

use crate::{
    counters::SkipReason,
    ground::{Chain, Ground, Grounds},
    handle::{AttemptId, Shared},
    jobs::Folded,
    permits::Permit,
    request::BlockResult,
    shadow::{Divergence, Shadowed},
    verdict::{BlockTimings, ConfirmedBy, InvalidReason, Mode, ValidBlock, Verdict},
    view::ExecutedLayer,
};

/// A block's access list on its way.
#[derive(Debug)]
pub(crate) enum BalStage {
    /// There is none, or it was dropped.
    None,
    Preparing,
    Ready(Arc<Bal>),
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

/// Reading ahead of the fold what a block's executed writes name.
#[derive(Debug)]
pub(crate) enum AheadStage<R> {
    /// Not done, or done with: what was read is at the fold's hand.
    Off,
    /// With what was read so far. Until something is read there is nothing that would hold a snapshot.
    Idle(Option<Box<ReadAhead<R>>>),
    Running,
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

/// A block's shadow on its way.
#[derive(Debug)]
pub(crate) enum ShadowStage {
    /// There is none.
    Off,
    /// Its source, or the parent's state, is not at hand.
    Idle,
    Running,
    Done(Arc<Shadowed>),
    Comparing,
    Agrees,
    Diverged(Arc<Divergence>),
}

/// A block between arrival and verdict.
#[derive(Debug)]
pub(crate) struct Entry<R: TrieReader> {
    pub(crate) shared: Arc<Shared<R>>,
    pub(crate) parent: BlockNumHash,
    /// What the parent's state is read over. At first the durable state at arrival, or when the unknown ancestor turned
    /// up, which is also what the warm-up reads.
    pub(crate) ground: Ground<R>,
    /// Given back before the outcome is sent, or handed on to the commit.
    pub(crate) permit: Option<Permit>,
    pub(crate) mode: Mode,
    pub(crate) bal: BalStage,
    /// Whether the list came from a source, and not in the payload.
    pub(crate) sourced: bool,
    pub(crate) execution: ExecutionStage,
    /// What the children's executors read: set when execution ended and was confirmed.
    pub(crate) executed: Option<Arc<HashedPostState>>,
    pub(crate) ahead: AheadStage<R>,
    /// What was written, and is to be read ahead.
    pub(crate) written: Vec<WrittenKey>,
    pub(crate) fold: FoldStage,
    /// Whether the fold gate was counted as open: it opens once, a fold may start twice.
    pub(crate) gate_opened: bool,
    pub(crate) compare: CompareStage,
    pub(crate) shadow: ShadowStage,
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

/// A block committed in memory.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) layer: Arc<Layer>,
    pub(crate) verdict: Arc<ValidBlock>,
    pub(crate) durability: Durability,
}

/// A block that the pipeline knows.
#[derive(Debug)]
pub(crate) enum Node<R: TrieReader> {
    InFlight(Box<Entry<R>>),
    Committed(Committed),
}

impl<R: TrieReader> Node<R> {
    fn block(&self) -> BlockNumHash {
        match self {
            Self::InFlight(entry) => entry.block(),
            Self::Committed(committed) => committed.layer.anchor.block,
        }
    }
}

/// What a block stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The durable chain, where it may still be left, or a block that will be durable.
    Rooted,
    /// Something that is neither, nor ever will be.
    Lost,
    /// A block that is unknown.
    Unknown,
}

/// What is known of a block's parent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ParentStatus {
    /// It is the durable tip.
    Durable,
    /// It is an ancestor of the durable tip on which a block may stand.
    Ancestor,
    /// It is committed in memory.
    Committed,
    /// It is in flight.
    InFlight,
    /// It was judged invalid.
    Invalid,
    /// It is too far below the durable tip, or on a branch that was dropped.
    BelowTip,
    /// Nothing is known of it.
    Unknown,
}

/// What can be seen of a block's state.
#[derive(Debug)]
pub(crate) enum Sight<R: TrieReader> {
    Clear {
        view: Overlay<Cached<R>>,
        /// Where the view stands on another ground than the one given.
        moved: Option<Ground<R>>,
    },
    /// The way to this block has to be computed.
    Needs(BlockNumHash),
    /// The block, or an ancestor, is not committed.
    Shut,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Tree<R: TrieReader> {
    /// The durable state.
    pub(crate) base: Cached<R>,
    /// The durable chain up to it.
    pub(crate) chain: Chain,
    /// The ways from a durable state to blocks below or beside it.
    pub(crate) grounds: Grounds<R>,
    /// The newest block handed to the committer, or the durable tip.
    pub(crate) queued_head: BlockNumHash,
    pub(crate) nodes: HashMap<BlockHash, Node<R>>,
    pub(crate) children: HashMap<BlockHash, Vec<BlockHash>>,
    pub(crate) attempts: HashMap<AttemptId, BlockHash>,
    /// Blocks in flight that wait for an unknown ancestor, oldest first.
    pub(crate) orphans: VecDeque<BlockHash>,
    verdicts: Remembered,
}

impl<R: TrieReader> Tree<R> {
    pub(crate) fn new(base: Cached<R>, chain: Chain, max_remembered: usize) -> Self {
        Self {
            queued_head: base.anchor().block,
            base,
            chain,
            grounds: Grounds::default(),
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

    pub(crate) fn verdict(&self, hash: &BlockHash) -> Option<Verdict> {
        match self.nodes.get(hash) {
            Some(Node::Committed(committed)) => Some(Verdict::Valid(Arc::clone(&committed.verdict))),
            _ => self.verdicts.by_hash.get(hash).cloned(),
        }
    }

    /// The block of exactly this name.
    fn node(&self, block: BlockNumHash) -> Option<&Node<R>> {
        self.nodes.get(&block.hash).filter(|node| node.block() == block)
    }

    /// Puts in a block that was recovered from its record, whose parent is in the tree or of the durable chain.
    pub(crate) fn put_recovered(&mut self, verdict: &Arc<ValidBlock>) {
        let Some(layer) = verdict.layer.clone() else { return };
        let (parent, hash) = (layer.parent.hash, verdict.block.hash);
        let committed = Committed { layer, verdict: Arc::clone(verdict), durability: Durability::InMemory };
        self.children.entry(parent).or_default().push(hash);
        self.nodes.insert(hash, Node::Committed(committed));
    }

    /// How many verdicts of blocks that are gone are remembered.
    pub(crate) fn remembered(&self) -> usize {
        self.verdicts.by_hash.len()
    }

    pub(crate) fn remember(&mut self, verdict: Verdict) {
        self.verdicts.insert(verdict);
    }

    pub(crate) fn parent_status(&self, parent: BlockNumHash) -> ParentStatus {
        if parent == self.tip() {
            return ParentStatus::Durable;
        }
        match self.node(parent) {
            Some(Node::InFlight(_)) => return ParentStatus::InFlight,
            Some(Node::Committed(Committed { durability: Durability::Durable, .. })) | None => {}
            Some(Node::Committed(_)) => return ParentStatus::Committed,
        }
        if self.chain.get(parent).is_some() {
            return ParentStatus::Ancestor;
        }
        match self.verdicts.by_hash.get(&parent.hash) {
            Some(Verdict::Invalid(_)) => ParentStatus::Invalid,
            // It was committed and is no more: durable far below the tip, or on a branch that was dropped.
            Some(Verdict::Valid(valid)) if valid.block == parent => ParentStatus::BelowTip,
            _ if parent.number <= self.chain.floor() => ParentStatus::BelowTip,
            _ => ParentStatus::Unknown,
        }
    }

    /// Whether a block on this parent waits for an ancestor that is unknown.
    pub(crate) fn is_orphan(&self, parent: BlockNumHash) -> bool {
        match self.parent_status(parent) {
            ParentStatus::Unknown => true,
            ParentStatus::InFlight => self.orphans.contains(&parent.hash),
            _ => false,
        }
    }

    /// Whether the block is of the durable chain.
    pub(crate) fn is_durable(&self, block: BlockNumHash) -> bool {
        self.chain.contains(block)
    }

    /// Keeps a block that was durable and is no more: it may become durable again.
    pub(crate) fn keep_unwound(&mut self, layer: &Arc<Layer>) {
        let block = layer.anchor.block;
        if let Some(node) = self.nodes.get_mut(&block.hash) {
            if let Node::Committed(committed) = node {
                committed.durability = Durability::InMemory;
            }
            return;
        }
        let (layer_of_it, computed_state_root) = (Some(Arc::clone(layer)), layer.anchor.state_root);
        let verdict = match self.verdicts.by_hash.get(&block.hash) {
            Some(Verdict::Valid(valid)) => ValidBlock { layer: layer_of_it, ..(**valid).clone() },
            _ => ValidBlock {
                block,
                computed_state_root,
                mode: if layer.bal.is_some() { Mode::BalDriven } else { Mode::Incremental(SkipReason::NoBal) },
                confirmed_by: ConfirmedBy::Store,
                timings: BlockTimings::default(),
                layer: layer_of_it,
            },
        };
        let (layer, verdict, parent) = (Arc::clone(layer), Arc::new(verdict), layer.parent);
        self.nodes.insert(block.hash, Node::Committed(Committed { layer, verdict, durability: Durability::InMemory }));
        self.children.entry(parent.hash).or_default().push(block.hash);
    }

    /// Takes a block in flight out of the tree.
    pub(crate) fn take(&mut self, hash: &BlockHash) -> Option<Box<Entry<R>>> {
        match self.nodes.remove(hash)? {
            Node::InFlight(entry) => Some(entry),
            committed @ Node::Committed(_) => {
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

    /// The tries of the nearest committed ancestor, as far as they are in memory: what is there need not be read ahead.
    pub(crate) fn nearest_tries(&self, parent: BlockNumHash) -> Option<Version> {
        let mut at = parent;
        loop {
            match self.node(at) {
                Some(Node::InFlight(entry)) => at = entry.parent,
                Some(Node::Committed(committed)) => return Some(committed.layer.tries.clone()),
                None => return self.base.tries(),
            }
        }
    }

    /// The view of a committed block's state over `own`, or, where that does not reach it, over the newest durable state
    /// or a way that is at hand.
    pub(crate) fn committed_view(&self, own: &Ground<R>, block: BlockNumHash) -> Sight<R> {
        if let Some(view) = self.view_over(own, block) {
            return Sight::Clear { view, moved: None };
        }
        let durable = Ground::durable(self.base.clone());
        if let Some(view) = self.view_over(&durable, block) {
            return Sight::Clear { view, moved: Some(durable) };
        }
        let mut at = block;
        loop {
            if let Some(ground) = self.grounds.ready(at) {
                // The block's own snapshot, if it is of the same state: it may have been read ahead for the block.
                let own = Ground { base: own.base.clone(), way: ground.way.clone() };
                let grounds = [own, ground.clone()];
                let seen = grounds.into_iter().find_map(|ground| Some((self.view_over(&ground, block)?, ground)));
                if let Some((view, ground)) = seen {
                    return Sight::Clear { view, moved: Some(ground) };
                }
            }
            match self.node(at) {
                Some(Node::Committed(Committed { layer, .. })) => at = layer.parent,
                _ => break,
            }
        }
        if self.branch_to(block).is_some() { Sight::Needs(block) } else { Sight::Shut }
    }

    fn view_over(&self, ground: &Ground<R>, block: BlockNumHash) -> Option<Overlay<Cached<R>>> {
        let bottom = ground.block();
        let mut layers = Vec::new();
        let mut at = block;
        while at != bottom {
            let Some(Node::Committed(Committed { layer, .. })) = self.node(at) else { return None };
            layers.push(Arc::clone(layer));
            at = layer.parent;
        }
        layers.reverse();
        ground.view(layers)
    }

    /// The view of the parent's state for an executor: executed ancestors, newest first, over committed ones. Shut while
    /// an ancestor's execution has not ended, or was not confirmed.
    pub(crate) fn state_view(&self, own: &Ground<R>, parent: BlockNumHash) -> (Vec<ExecutedLayer>, Sight<R>) {
        let mut executed = Vec::new();
        let mut at = parent;
        while let Some(Node::InFlight(entry)) = self.node(at) {
            let Some(state) = entry.executed.clone() else { return (executed, Sight::Shut) };
            executed.push(ExecutedLayer { block: at, state });
            at = entry.parent;
        }
        (executed, self.committed_view(own, at))
    }

    /// Where the branch of a committed block leaves the durable chain, and the layers from there up to the block, oldest
    /// first. `None` if it does not, or too far below the tip.
    pub(crate) fn branch_to(&self, block: BlockNumHash) -> Option<(StateAnchor, Vec<Arc<Layer>>)> {
        let mut branch = Vec::new();
        let mut at = block;
        loop {
            if let Some(ancestor) = self.chain.get(at) {
                branch.reverse();
                return Some((ancestor, branch));
            }
            let Some(Node::Committed(Committed { layer, .. })) = self.node(at) else { return None };
            branch.push(Arc::clone(layer));
            at = layer.parent;
        }
    }

    /// The committed blocks that lead from the committer's newest block to `head`, oldest first; `None` if they do not.
    pub(crate) fn path_to(&self, head: BlockHash) -> Option<Vec<Arc<Layer>>> {
        let mut path = Vec::new();
        let mut at = head;
        while at != self.queued_head.hash {
            let Some(Node::Committed(committed)) = self.nodes.get(&at) else { return None };
            if !matches!(committed.durability, Durability::InMemory) {
                return None;
            }
            path.push(Arc::clone(&committed.layer));
            at = committed.layer.parent.hash;
        }
        path.reverse();
        Some(path)
    }

    /// Drops what the new durable tip has made useless. Gives the blocks in flight that can no longer win.
    pub(crate) fn prune(&mut self) -> Vec<BlockHash> {
        let standings: Vec<_> = self.nodes.keys().map(|hash| (*hash, self.standing(hash))).collect();
        let mut lost_in_flight = Vec::new();
        for (hash, standing) in standings {
            match (standing, self.nodes.get_mut(&hash)) {
                (Standing::Lost, Some(Node::InFlight(_))) => lost_in_flight.push(hash),
                (Standing::Lost, Some(Node::Committed(_))) => self.retire(&hash),
                // Nothing tells when, or whether, its ancestor turns up: until then it must keep no old snapshot, nor
                // the layers above that.
                (Standing::Unknown, Some(Node::InFlight(entry))) => {
                    entry.ground = Ground::durable(self.base.for_block());
                }
                _ => {}
            }
        }
        let oldest_base = self.nodes.values().filter_map(|node| match node {
            Node::InFlight(entry) => Some(entry.ground.block().number),
            Node::Committed(_) => None,
        });
        let tip = self.tip().number;
        let oldest_base = oldest_base.min().unwrap_or(tip).min(tip);
        let done = |committed: &Committed| {
            matches!(committed.durability, Durability::Durable) && committed.layer.anchor.block.number <= oldest_base
        };
        let done: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|(hash, node)| matches!(node, Node::Committed(committed) if done(committed)).then_some(*hash))
            .collect();
        done.iter().for_each(|hash| self.retire(hash));
        lost_in_flight
    }

    /// Lets go of a committed block, but for its verdict.
    fn retire(&mut self, hash: &BlockHash) {
        if let Some(Node::Committed(Committed { layer, verdict, .. })) = self.nodes.remove(hash) {
            self.unlink(&layer.parent.hash, hash);
            self.remember(Verdict::Valid(Arc::new(ValidBlock { layer: None, ..(*verdict).clone() })));
        }
    }

    fn standing(&self, hash: &BlockHash) -> Standing {
        let mut node = self.nodes.get(hash);
        loop {
            let parent = match node {
                Some(Node::InFlight(entry)) => entry.parent,
                Some(Node::Committed(Committed { layer, durability: Durability::InMemory, .. })) => layer.parent,
                Some(Node::Committed(_)) => return Standing::Rooted,
                None => return Standing::Unknown,
            };
            if self.chain.get(parent).is_some() {
                return Standing::Rooted;
            }
            if parent.number <= self.chain.floor() {
                return Standing::Lost;
            }
            node = self.node(parent);
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
