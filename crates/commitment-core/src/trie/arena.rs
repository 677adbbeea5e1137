//! The nodes that a block touches, of one trie or of many, in flat tables.
//!
//! Leaves stand in one table, branches in one for each depth, what a branch has below it in a third. They refer to each
//! other by index, always downwards: a branch's children are leaves, deeper branches, or *ready*, that is, hashed before
//! and known by their reference alone. So the nodes of one depth can be hashed in any order and by any number of
//! threads once all deeper ones are done ([`super::levels`]).
//!
//! A branch keeps the row that was read for it as it is. Children that were not touched exist in those bytes only.
//!
//! A node is *settled* when the depth of its slot is known, that is, when its parent is sure to stay. Until then it may
//! still rise.
//!
//! Invariants:
//! 1. A branch in these tables has two children or more and stays; each node is settled once.
//! 2. The children of a branch lie together in `children`, sorted by nibble.
//! 3. A row that was read is a settled branch's under the same slot path, or its slot path is in `gone`.

use std::ops::Range;

use alloy_primitives::{B256, Bytes};
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles, nodes::RlpNode};

use super::{
    encode::root_hash,
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
}

/// A row as it was read.
#[derive(Debug, Clone)]
pub(super) struct StoredRow {
    pub(super) bytes: Bytes,
    pub(super) masks: Masks,
    /// Where in the row the references begin.
    pub(super) references_at: u8,
    /// The length of the slot path that it is filed under.
    pub(super) slot_depth: u8,
    /// Whether only the branch's own reference is known.
    pub(super) blinded: bool,
}

impl StoredRow {
    pub(super) fn references(&self) -> &[u8] {
        &self.bytes[usize::from(self.references_at)..]
    }
}

/// A branch whose hash is to be computed.
#[derive(Debug)]
pub(super) struct Branch {
    pub(super) own_path: Nibbles,
    /// The length of the slot path, once settled.
    pub(super) slot_depth: u8,
    pub(super) masks: Masks,
    /// Where its references come from, but for those in `children`.
    pub(super) stored: Option<StoredRow>,
    first_child: u32,
    child_count: u8,
}

impl Branch {
    pub(super) const fn children(&self) -> Range<usize> {
        self.first_child as usize..self.first_child as usize + self.child_count as usize
    }

    pub(super) fn slot(&self) -> Nibbles {
        self.own_path.slice(..usize::from(self.slot_depth))
    }

    pub(super) fn extension(&self) -> Nibbles {
        self.own_path.slice(usize::from(self.slot_depth)..)
    }
}

/// The branches of one depth, and what hashing gave for each.
#[derive(Debug, Default)]
pub(super) struct Level {
    pub(super) branches: Vec<Branch>,
    pub(super) references: Vec<RlpNode>,
    /// Empty where the row is the one that was read.
    pub(super) rows: Vec<Bytes>,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Arena<V> {
    pub(super) leaves: Vec<Leaf<V>>,
    pub(super) leaf_references: Vec<RlpNode>,
    /// By the length of their own path.
    pub(super) levels: Vec<Level>,
    pub(super) children: Vec<(u8, Node)>,
    pub(super) ready: Vec<(ChildKind, RlpNode)>,
    /// The slot paths of rows that were read and whose branch is no more, or moved.
    gone: Vec<Nibbles>,
}

/// A trie in an arena.
#[derive(Debug, Clone)]
pub(crate) struct TrieTop {
    pub(crate) node: Node,
    /// Its part of the slot paths that are gone.
    pub(crate) gone: Range<usize>,
}

/// How nodes are called after their arena was absorbed by another one.
#[derive(Debug)]
pub(super) struct Relocation {
    leaves: u32,
    ready: u32,
    gone: usize,
    levels: Vec<u32>,
}

impl Relocation {
    pub(super) fn node(&self, node: Node) -> Node {
        match node {
            Node::Empty => Node::Empty,
            Node::Leaf(index) => Node::Leaf(index + self.leaves),
            Node::Branch { depth, index } => Node::Branch { depth, index: index + self.levels[usize::from(depth)] },
            Node::Ready(index) => Node::Ready(index + self.ready),
        }
    }

    pub(super) fn top(&self, top: &TrieTop) -> TrieTop {
        TrieTop { node: self.node(top.node), gone: top.gone.start + self.gone..top.gone.end + self.gone }
    }
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

impl<V> Arena<V> {
    pub(crate) fn add_leaf(&mut self, key: B256, value: V) -> Node {
        self.leaves.push(Leaf { key, value, slot_depth: 0 });
        Node::Leaf(self.leaves.len() as u32 - 1)
    }

    /// Adds a branch that stays: what was stored, with these children in place of the ones that were there (by nibble,
    /// in order; an empty node takes a child away). Settles the children.
    pub(super) fn add_branch(
        &mut self,
        own_path: Nibbles,
        stored: Option<StoredRow>,
        changed: impl Iterator<Item = (u8, Node)>,
    ) -> Node {
        let depth = own_path.len();
        let mut masks = stored.as_ref().map_or_else(Masks::default, |row| row.masks);
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

    /// Fixes the length of a node's slot path.
    pub(super) fn settle(&mut self, node: Node, slot_depth: usize) {
        match node {
            Node::Empty | Node::Ready(_) => {}
            Node::Leaf(index) => self.leaves[index as usize].slot_depth = slot_depth as u8,
            Node::Branch { depth, index } => {
                let branch = &mut self.levels[usize::from(depth)].branches[index as usize];
                branch.slot_depth = slot_depth as u8;
                if let Some(stored) = &branch.stored
                    && usize::from(stored.slot_depth) != slot_depth
                {
                    self.gone.push(branch.own_path.slice(..usize::from(stored.slot_depth)));
                }
            }
        }
    }

    /// Notes that the branch of a row that was read is no more.
    pub(super) fn forget(&mut self, slot: Nibbles) {
        self.gone.push(slot);
    }

    /// How many slot paths are gone: where the next trie's begin.
    pub(super) const fn gone_count(&self) -> usize {
        self.gone.len()
    }

    pub(super) fn kind(&self, node: Node) -> ChildKind {
        match node {
            Node::Empty => ChildKind::Empty,
            Node::Leaf(_) => ChildKind::Leaf,
            Node::Branch { .. } => ChildKind::Branch,
            Node::Ready(index) => self.ready[index as usize].0,
        }
    }

    /// How a parent refers to a node. Only for nodes that are hashed.
    pub(super) fn reference(&self, node: Node) -> RlpNode {
        match node {
            Node::Empty => RlpNode::default(),
            Node::Leaf(index) => self.leaf_references[index as usize].clone(),
            Node::Branch { depth, index } => self.levels[usize::from(depth)].references[index as usize].clone(),
            Node::Ready(index) => self.ready[index as usize].1.clone(),
        }
    }

    /// The root of the trie with this topmost node. Only for nodes that are hashed.
    pub(crate) fn root(&self, top: Node) -> B256 {
        if top == Node::Empty { EMPTY_ROOT_HASH } else { root_hash(&self.reference(top)) }
    }

    /// Takes over another arena's nodes. Neither may be hashed yet.
    pub(super) fn absorb(&mut self, other: Self) -> Relocation {
        /// Gives where `more` begins.
        fn join<T>(all: &mut Vec<T>, mut more: Vec<T>) -> usize {
            let start = all.len();
            if start == 0 {
                *all = more;
            } else {
                all.append(&mut more);
            }
            start
        }
        if self.levels.len() < other.levels.len() {
            self.levels.resize_with(other.levels.len(), Level::default);
        }
        let relocation = Relocation {
            leaves: join(&mut self.leaves, other.leaves) as u32,
            ready: join(&mut self.ready, other.ready) as u32,
            gone: join(&mut self.gone, other.gone),
            levels: self.levels.iter().map(|level| level.branches.len() as u32).collect(),
        };
        let children = join(&mut self.children, other.children);
        for (_, node) in &mut self.children[children..] {
            *node = relocation.node(*node);
        }
        for (level, more) in self.levels.iter_mut().zip(other.levels) {
            let start = join(&mut level.branches, more.branches);
            level.branches[start..].iter_mut().for_each(|branch| branch.first_child += children as u32);
        }
        relocation
    }

    /// Gives the rows of a hashed trie that differ from those that were read, in order of their slot paths; `None`
    /// where a row is no more.
    pub(crate) fn take_changed_rows(&mut self, top: &TrieTop, mut emit: impl FnMut(Nibbles, Option<Bytes>)) {
        let mut gone = self.gone[top.gone.clone()].to_vec();
        gone.sort_unstable();
        let mut gone = gone.into_iter().peekable();
        self.take_rows(top.node, &mut |slot, row| {
            while let Some(before) = gone.next_if(|before| *before < slot) {
                emit(before, None);
            }
            // Another branch stands at the slot that this one left.
            gone.next_if_eq(&slot);
            emit(slot, Some(row));
        });
        gone.for_each(|slot| emit(slot, None));
    }

    /// Gives the new rows from a hashed node downwards: a branch before its children, so in order of their slot paths.
    pub(crate) fn take_rows(&mut self, node: Node, emit: &mut impl FnMut(Nibbles, Bytes)) {
        let Node::Branch { depth, index } = node else { return };
        let level = &mut self.levels[usize::from(depth)];
        let branch = &level.branches[index as usize];
        let row = std::mem::take(&mut level.rows[index as usize]);
        let children = branch.children();
        if !row.is_empty() {
            emit(branch.slot(), row);
        }
        for at in children {
            self.take_rows(self.children[at].1, emit);
        }
    }

    /// Empties all tables after hashing. These nodes alone stay, as ready ones.
    pub(super) fn keep<'n>(&mut self, nodes: impl Iterator<Item = &'n mut Node>) {
        let mut ready = Vec::new();
        for node in nodes.filter(|node| **node != Node::Empty) {
            ready.push((self.kind(*node), self.reference(*node)));
            *node = Node::Ready(ready.len() as u32 - 1);
        }
        self.ready = ready;
        self.leaves.clear();
        self.leaf_references.clear();
        for level in &mut self.levels {
            level.branches.clear();
            level.references.clear();
            level.rows.clear();
        }
        self.children.clear();
        self.gone.clear();
    }
}
