//! Builds a trie, or the part below one slot, from its sorted leaves in one streaming pass.
//!
//! The open branches are those on the path of the newest leaf. When the next leaf comes, the common prefix of the two
//! says which branches can get no further child: these are closed, deepest first, and leave a row and a reference in
//! the branch above. So memory is bounded by the depth, whatever the number of leaves.
//!
//! Invariants:
//! 1. The depths of the open branches rise strictly, and all of them lie on the path of the newest leaf.
//! 2. The topmost node gets no row here: where it is filed depends on what stands beside it.

use alloy_primitives::{B256, Bytes};
use alloy_trie::Nibbles;

use super::{
    encode::{LeafValue, NodeEncoder, reference},
    row::{Body, Branch, ChildKind},
};

/// A node whose place is not settled yet: only with the parent's depth do its path, encoding and row follow.
#[derive(Debug)]
pub(crate) enum Node<V> {
    /// Nothing is left.
    Empty,
    /// A leaf.
    Leaf(B256, V),
    /// A branch at its own path. What lies between the slot path and that is its extension.
    Branch(Nibbles, Body),
}

/// Rows in the making, by slot path.
pub(crate) type NewRows = Vec<(Nibbles, Bytes)>;

/// The nibble of a key at a depth below 64.
pub(crate) fn nibble_at(key: &B256, depth: usize) -> u8 {
    let byte = key[depth / 2];
    if depth.is_multiple_of(2) { byte >> 4 } else { byte & 0x0f }
}

/// The number of nibbles that two keys share at their beginning.
pub(crate) fn shared_nibbles(a: &B256, b: &B256) -> usize {
    match a.iter().zip(b.iter()).position(|(a, b)| a != b) {
        Some(at) => 2 * at + usize::from((a[at] ^ b[at]) < 0x10),
        None => 64,
    }
}

#[derive(Debug)]
struct OpenBranch {
    depth: usize,
    branch: Branch,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct TrieBuilder<V> {
    open: Vec<OpenBranch>,
    newest: Option<(B256, V)>,
}

impl<V> Default for TrieBuilder<V> {
    fn default() -> Self {
        Self { open: Vec::new(), newest: None }
    }
}

impl<V: LeafValue> TrieBuilder<V> {
    /// The key of the newest leaf.
    pub(crate) fn newest(&self) -> Option<&B256> {
        self.newest.as_ref().map(|(key, _)| key)
    }

    /// Adds the next leaf. Its key must be above the newest one's.
    pub(crate) fn push(&mut self, encoder: &mut NodeEncoder, rows: &mut NewRows, key: B256, value: V) {
        debug_assert!(self.newest().is_none_or(|newest| *newest < key), "leaves come in order");
        if let Some((newest, value)) = self.newest.replace((key, value)) {
            let shared = shared_nibbles(&newest, &key);
            self.attach(encoder, rows, &newest, &value, Some(shared));
        }
    }

    /// Closes everything, gives the topmost node, and is empty again.
    pub(crate) fn finish(&mut self, encoder: &mut NodeEncoder, rows: &mut NewRows) -> Node<V> {
        let Some((key, value)) = self.newest.take() else { return Node::Empty };
        if self.open.is_empty() {
            return Node::Leaf(key, value);
        }
        self.attach(encoder, rows, &key, &value, None);
        match self.open.pop() {
            Some(top) => Node::Branch(Nibbles::unpack(key).slice(..top.depth), Body::Known(Box::new(top.branch))),
            None => Node::Leaf(key, value),
        }
    }

    /// Puts the newest leaf into the deepest open branch, and closes the branches below the depth at which the next
    /// leaf departs, which opens a branch there if there is none. Without a next leaf the topmost branch stays open.
    fn attach(&mut self, encoder: &mut NodeEncoder, rows: &mut NewRows, key: &B256, value: &V, departs: Option<usize>) {
        let path = Nibbles::unpack_array(&key.0);
        let floor = departs.unwrap_or(0);
        let parent_depth = |open: &[OpenBranch]| open.last().map_or(floor, |top| top.depth.max(floor));
        let mut kind = ChildKind::Leaf;
        let mut child = reference(encoder.leaf(key, parent_depth(&self.open) + 1, value));
        while let Some(mut top) = self.open.pop_if(|top| top.depth >= floor) {
            top.branch.set(path.get_unchecked(top.depth), kind, child);
            let stays = departs.map_or(self.open.is_empty(), |departs| top.depth == departs);
            if stays {
                self.open.push(top);
                return;
            }
            let slot = path.slice(..=parent_depth(&self.open));
            let extension = path.slice(slot.len()..top.depth);
            rows.push((slot, top.branch.encode(&extension)));
            child = reference(encoder.branch_behind(&extension, &top.branch));
            kind = ChildKind::Branch;
        }
        let mut branch = Branch::default();
        branch.set(path.get_unchecked(floor), kind, child);
        self.open.push(OpenBranch { depth: floor, branch });
    }
}
