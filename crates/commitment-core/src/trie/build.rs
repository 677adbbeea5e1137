//! Builds a trie, or the part below one slot, from its sorted leaves in one streaming pass.
//!
//! The open branches are those on the path of the newest leaf. When the next leaf comes, the common prefix of the two
//! says which branches can get no further child: these are closed, deepest first, and become nodes of the arena.
//!
//! Invariants:
//! 1. The depths of the open branches rise strictly, and all of them lie on the path of the newest leaf.
//! 2. A branch is opened for two leaves that part there: it has two children or more when it is closed.

use alloy_primitives::B256;

use super::{
    arena::{Arena, Node},
    path::{Path, nibble_at, shared_nibbles},
    pool::NodeRef,
};

#[derive(Debug)]
struct OpenBranch {
    depth: usize,
    children: [Node; 16],
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct TrieBuilder<V> {
    open: Vec<OpenBranch>,
    newest: Option<(B256, V, NodeRef)>,
}

impl<V> Default for TrieBuilder<V> {
    fn default() -> Self {
        Self { open: Vec::new(), newest: None }
    }
}

impl<V: Clone> TrieBuilder<V> {
    /// The key of the newest leaf.
    pub(crate) fn newest(&self) -> Option<&B256> {
        self.newest.as_ref().map(|(key, ..)| key)
    }

    /// Adds the next leaf. Its key must be above the newest one's.
    pub(crate) fn push(&mut self, arena: &mut Arena<V>, key: B256, value: V, link: NodeRef) {
        debug_assert!(self.newest().is_none_or(|newest| *newest < key), "leaves come in order");
        if let Some((newest, value, link)) = self.newest.replace((key, value, link)) {
            let departs = shared_nibbles(&newest, &key);
            let leaf = arena.add_leaf(newest, value, link);
            self.attach(arena, &newest, leaf, departs);
        }
    }

    /// Closes everything, gives the topmost node, which is not settled, and is empty again.
    pub(crate) fn finish(&mut self, arena: &mut Arena<V>) -> Node {
        let Some((key, value, link)) = self.newest.take() else { return Node::Empty };
        let mut node = arena.add_leaf(key, value, link);
        while let Some(top) = self.open.pop() {
            node = Self::close(arena, top, &key, node);
        }
        node
    }

    /// The children of the open branches, with the length of their slot paths: to be put in another form.
    pub(super) fn open_children(&mut self) -> impl Iterator<Item = (usize, &mut Node)> {
        self.open.iter_mut().flat_map(|OpenBranch { depth, children }| {
            let slot_depth = *depth + 1;
            children.iter_mut().map(move |child| (slot_depth, child))
        })
    }

    /// Puts the newest leaf into the deepest open branch, and closes the branches below the depth at which the next
    /// leaf departs, which opens a branch there if there is none.
    fn attach(&mut self, arena: &mut Arena<V>, key: &B256, leaf: Node, departs: usize) {
        let mut node = leaf;
        while let Some(top) = self.open.pop_if(|top| top.depth > departs) {
            node = Self::close(arena, top, key, node);
        }
        if self.open.last().is_none_or(|top| top.depth < departs) {
            self.open.push(OpenBranch { depth: departs, children: [Node::Empty; 16] });
        }
        if let Some(top) = self.open.last_mut() {
            top.children[usize::from(nibble_at(key, departs))] = node;
        }
    }

    /// Makes a node of an open branch that gets its last child now.
    fn close(arena: &mut Arena<V>, mut open: OpenBranch, key: &B256, last: Node) -> Node {
        open.children[usize::from(nibble_at(key, open.depth))] = last;
        let own_path = Path::of(key, open.depth);
        let children = (0..).zip(open.children).filter(|(_, child)| *child != Node::Empty);
        arena.add_branch(own_path, None, children)
    }
}
