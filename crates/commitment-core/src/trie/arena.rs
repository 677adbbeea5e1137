//! The nodes that a fold touches, of one trie or of many, in flat tables.
//!
//! Leaves stand in one table, branches in one for each depth, what a branch has below it in a third. They refer to each
//! other by index, always downwards: a branch's children are leaves, deeper branches, or *ready*, that is, hashed before.
//! So the nodes of one depth can be hashed in any order once all deeper ones are done ([`super::levels`]).
//!
//! A branch keeps what was stored of it as it is. Children that were not touched exist in those bytes only.
//!
//! A node is *settled* when the depth of its slot is known, that is, when its parent is sure to stay. Until then it may
//! still rise.
//!
//! Invariants:
//! 1. A branch in these tables has two children or more and stays; each node is settled once, but for ready ones that
//!    are taken up again.
//! 2. The children of a branch lie together in `children`, sorted by nibble.
//! 3. A stored branch is a settled branch under the same slot path, or its slot path is in `gone`.

use std::ops::Range;

use alloy_primitives::{B256, Bytes};
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles, nodes::RlpNode};

use super::{
    encode::root_hash,
    forest::Top,
    path::Path,
    pool::{NodeRef, NodeView, Pool},
    row::{ChildKind, Masks},
};

/// A node in an arena. Indices are 32 bits wide: nodes take 100 bytes and more, so memory ends before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Node {
    /// No node.
    #[default]
    Empty,
    /// A leaf.
    Leaf(u32),
    /// A branch. What lies between the slot path and its own path is its extension.
    Branch {
        /// The length of its own path.
        depth: u8,
        /// Its place among those.
        index: u32,
    },
    /// A node that was hashed before.
    Ready(u32),
}

/// A leaf whose hash is to be computed.
#[derive(Debug)]
pub(super) struct Leaf<V> {
    pub(super) key: B256,
    pub(super) value: V,
    /// The length of the slot path, once settled.
    pub(super) slot_depth: u8,
    /// Where the topmost branch of an account's storage trie is.
    pub(super) link: NodeRef,
}

/// Where the bytes of a stored branch are.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// In memory, with its links.
    Loaded(NodeRef),
    /// As the reader gave them.
    Read(Bytes),
}

/// The slot depth of a branch that this fold itself wrote before: it is filed nowhere yet.
pub(super) const NOWHERE: u8 = u8::MAX;

/// A branch as it was before the fold.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) place: Place,
    pub(super) masks: Masks,
    /// Where in the row the references begin.
    pub(super) references_at: u8,
    /// The length of the slot path that it is filed under, or [`NOWHERE`].
    pub(super) slot_depth: u8,
    /// Whether only the branch's own reference is known.
    pub(super) blinded: bool,
}

impl Stored {
    /// Its node in memory.
    pub(super) fn view<'p>(&self, pool: &'p Pool) -> Option<NodeView<'p>> {
        match &self.place {
            Place::Loaded(at) => Some(pool.node(*at)),
            Place::Read(_) => None,
        }
    }

    pub(super) fn row<'p>(&'p self, pool: &'p Pool) -> &'p [u8] {
        match &self.place {
            Place::Loaded(at) => pool.node(*at).row(),
            Place::Read(bytes) => bytes,
        }
    }

    pub(super) fn references<'p>(&'p self, pool: &'p Pool) -> &'p [u8] {
        &self.row(pool)[usize::from(self.references_at)..]
    }

    /// Where a child is.
    pub(super) fn link(&self, pool: &Pool, nibble: u8) -> NodeRef {
        self.view(pool).map_or(NodeRef::UNLOADED, |view| view.link(nibble))
    }
}

/// A branch whose hash is to be computed.
#[derive(Debug)]
pub(super) struct Branch {
    pub(super) own_path: Path,
    /// The length of the slot path, once settled.
    pub(super) slot_depth: u8,
    pub(super) masks: Masks,
    /// Where its references come from, but for those in `children`.
    pub(super) stored: Option<Stored>,
    first_child: u32,
    child_count: u8,
}

impl Branch {
    pub(super) const fn children(&self) -> Range<usize> {
        self.first_child as usize..self.first_child as usize + self.child_count as usize
    }

    pub(super) const fn has_extension(&self) -> bool {
        self.own_path.len() > self.slot_depth as usize
    }

    pub(super) fn extension(&self) -> Nibbles {
        self.own_path.rest(usize::from(self.slot_depth))
    }
}

/// The branches of one depth, and what hashing gave for each.
#[derive(Debug, Default)]
pub(super) struct Level {
    pub(super) branches: Vec<Branch>,
    pub(super) references: Vec<RlpNode>,
    pub(super) nodes: Vec<NodeRef>,
}

/// A node that was hashed before, perhaps in another arena.
#[derive(Debug, Clone)]
pub(super) struct Ready<V> {
    pub(super) reference: RlpNode,
    pub(super) origin: Origin<V>,
}

/// What a ready node is, so that it can rise.
#[derive(Debug, Clone)]
pub(super) enum Origin<V> {
    Leaf {
        key: B256,
        value: V,
        link: NodeRef,
    },
    Branch {
        own_path: Path,
        slot_depth: u8,
        node: NodeRef,
        /// Whether a branch was stored under the same slot path.
        in_place: bool,
    },
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Arena<V> {
    pub(super) leaves: Vec<Leaf<V>>,
    pub(super) leaf_references: Vec<RlpNode>,
    /// By the length of their own path.
    pub(super) levels: Vec<Level>,
    pub(super) children: Vec<(u8, Node)>,
    pub(super) ready: Vec<Ready<V>>,
    /// The slot paths of branches that were stored and are no more, or moved.
    pub(super) gone: Vec<Path>,
}

impl<V> Default for Arena<V> {
    fn default() -> Self {
        Self {
            leaves: Vec::new(),
            leaf_references: Vec::new(),
            levels: Vec::new(),
            children: Vec::new(),
            ready: Vec::new(),
            gone: Vec::new(),
        }
    }
}

impl<V: Clone> Arena<V> {
    pub(crate) fn add_leaf(&mut self, key: B256, value: V, link: NodeRef) -> Node {
        self.leaves.push(Leaf { key, value, slot_depth: 0, link });
        Node::Leaf(self.leaves.len() as u32 - 1)
    }

    pub(super) fn add_ready(&mut self, ready: Ready<V>) -> Node {
        self.ready.push(ready);
        Node::Ready(self.ready.len() as u32 - 1)
    }

    /// Adds a branch that stays: what was stored, with these children in place of the ones that were there (by nibble,
    /// in order; an empty node takes a child away). Settles the children.
    pub(super) fn add_branch(
        &mut self,
        own_path: Path,
        stored: Option<Stored>,
        changed: impl Iterator<Item = (u8, Node)>,
    ) -> Node {
        let depth = own_path.len();
        let mut masks = stored.as_ref().map_or_else(Masks::default, |stored| stored.masks);
        let first_child = self.children.len() as u32;
        for (nibble, node) in changed {
            masks.set(nibble, self.kind(node));
            if node != Node::Empty {
                self.settle(node, depth + 1);
                self.children.push((nibble, node));
            }
        }
        let child_count = (self.children.len() as u32 - first_child) as u8;
        if self.levels.len() <= depth {
            self.levels.resize_with(depth + 1, Level::default);
        }
        let level = &mut self.levels[depth].branches;
        level.push(Branch { own_path, slot_depth: 0, masks, stored, first_child, child_count });
        Node::Branch { depth: depth as u8, index: level.len() as u32 - 1 }
    }

    /// Fixes the length of a node's slot path. A ready one has its own, and is taken up before it gets another.
    pub(super) fn settle(&mut self, node: Node, slot_depth: usize) {
        match node {
            Node::Empty | Node::Ready(_) => {}
            Node::Leaf(index) => self.leaves[index as usize].slot_depth = slot_depth as u8,
            Node::Branch { depth, index } => {
                let branch = &mut self.levels[usize::from(depth)].branches[index as usize];
                branch.slot_depth = slot_depth as u8;
                if let Some(stored) = &branch.stored
                    && usize::from(stored.slot_depth) != slot_depth
                    && stored.slot_depth != NOWHERE
                {
                    self.gone.push(branch.own_path.truncated(usize::from(stored.slot_depth)));
                }
            }
        }
    }

    /// Notes that a stored branch is no more.
    pub(super) fn forget(&mut self, slot: Path) {
        self.gone.push(slot);
    }

    pub(super) fn kind(&self, node: Node) -> ChildKind {
        match node {
            Node::Empty => ChildKind::Empty,
            Node::Leaf(_) => ChildKind::Leaf,
            Node::Branch { .. } => ChildKind::Branch,
            Node::Ready(index) => match self.ready[index as usize].origin {
                Origin::Leaf { .. } => ChildKind::Leaf,
                Origin::Branch { .. } => ChildKind::Branch,
            },
        }
    }

    /// How a parent refers to a node. Only for nodes that are hashed.
    pub(super) fn reference(&self, node: Node) -> RlpNode {
        match node {
            Node::Empty => RlpNode::default(),
            Node::Leaf(index) => self.leaf_references[index as usize].clone(),
            Node::Branch { depth, index } => self.levels[usize::from(depth)].references[index as usize].clone(),
            Node::Ready(index) => self.ready[index as usize].reference.clone(),
        }
    }

    /// The root of the trie with this topmost node. Only for nodes that are hashed.
    pub(crate) fn root(&self, top: Node) -> B256 {
        if top == Node::Empty { EMPTY_ROOT_HASH } else { root_hash(&self.reference(top)) }
    }

    /// A ready node as one of this arena's own, so that it can move: a leaf to be hashed again, or a branch to be
    /// written again. In the latter case gives what was written in vain.
    pub(super) fn take_up(&mut self, node: Node, pool: &Pool) -> (Node, Option<NodeRef>) {
        let Node::Ready(index) = node else { return (node, None) };
        match self.ready[index as usize].origin.clone() {
            Origin::Leaf { key, value, link } => (self.add_leaf(key, value, link), None),
            Origin::Branch { own_path, slot_depth, node: written, in_place } => {
                let view = pool.node(written);
                let stored = Stored {
                    masks: view.masks(),
                    references_at: view.references_at() as u8,
                    slot_depth: if in_place { slot_depth } else { NOWHERE },
                    blinded: view.is_blinded(),
                    place: Place::Loaded(written),
                };
                (self.add_branch(own_path, Some(stored), std::iter::empty()), Some(written))
            }
        }
    }

    /// Where a node is in memory: absent unless it is a branch. Only for nodes that are hashed.
    pub(super) fn node_ref(&self, node: Node) -> NodeRef {
        match node {
            Node::Empty | Node::Leaf(_) => NodeRef::ABSENT,
            Node::Branch { depth, index } => self.levels[usize::from(depth)].nodes[index as usize],
            Node::Ready(index) => match self.ready[index as usize].origin {
                Origin::Leaf { .. } => NodeRef::ABSENT,
                Origin::Branch { node, .. } => node,
            },
        }
    }

    /// Where the trie with this topmost node begins in memory. Only for nodes that are hashed.
    pub(super) fn top(&self, node: Node) -> Top {
        let leaf_link = match node {
            Node::Leaf(index) => self.leaves[index as usize].link,
            Node::Ready(index) => match self.ready[index as usize].origin {
                Origin::Leaf { link, .. } => link,
                Origin::Branch { .. } => NodeRef::UNLOADED,
            },
            Node::Empty | Node::Branch { .. } => NodeRef::UNLOADED,
        };
        Top { branch: self.node_ref(node), leaf_link }
    }

    /// A settled and hashed node in a form that another arena can take. Not for empty ones.
    pub(super) fn to_ready(&self, node: Node) -> Option<Ready<V>> {
        let origin = match node {
            Node::Empty => return None,
            Node::Leaf(index) => {
                let leaf = &self.leaves[index as usize];
                Origin::Leaf { key: leaf.key, value: leaf.value.clone(), link: leaf.link }
            }
            Node::Branch { depth, index } => {
                let branch = &self.levels[usize::from(depth)].branches[index as usize];
                Origin::Branch {
                    own_path: branch.own_path,
                    slot_depth: branch.slot_depth,
                    node: self.node_ref(node),
                    in_place: branch.stored.as_ref().is_some_and(|stored| stored.slot_depth == branch.slot_depth),
                }
            }
            Node::Ready(index) => return Some(self.ready[index as usize].clone()),
        };
        Some(Ready { reference: self.reference(node), origin })
    }

    /// Gives the rows from a hashed node downwards, a branch before its children. What was ready before is left out.
    pub(super) fn each_row(&self, pool: &Pool, node: Node, emit: &mut impl FnMut(Nibbles, Bytes)) {
        let Node::Branch { depth, index } = node else { return };
        let level = &self.levels[usize::from(depth)];
        let branch = &level.branches[index as usize];
        let row = pool.node(level.nodes[index as usize]).row();
        emit(branch.own_path.truncated(usize::from(branch.slot_depth)).to_nibbles(), Bytes::copy_from_slice(row));
        for (_, child) in &self.children[branch.children()] {
            self.each_row(pool, *child, emit);
        }
    }

    /// Empties all tables after hashing. These nodes alone stay, as ready ones.
    pub(super) fn keep<'n>(&mut self, nodes: impl Iterator<Item = &'n mut Node>) {
        let mut ready = Vec::new();
        for node in nodes {
            if let Some(kept) = self.to_ready(*node) {
                ready.push(kept);
                *node = Node::Ready(ready.len() as u32 - 1);
            }
        }
        self.ready = ready;
        self.leaves.clear();
        self.leaf_references.clear();
        for level in &mut self.levels {
            level.branches.clear();
            level.references.clear();
            level.nodes.clear();
        }
        self.children.clear();
        self.gone.clear();
    }
}
