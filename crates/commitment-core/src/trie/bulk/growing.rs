//! Tries that grow from their sorted leaves and are hashed some thousands of leaves at a time.
//!
//! Nodes whose subtrie is complete wait in an arena until there are enough of them to fill the lanes of the hash
//! function (`levels`). Then their rows are given out, and only the references stay that branches still need which
//! grow.
//!
//! Invariant: memory is bounded by a batch and the depth of a trie.

use alloy_primitives::{B256, Bytes};
use alloy_trie::Nibbles;

use crate::trie::{
    arena::{Arena, Node},
    build::TrieBuilder,
    encode::LeafValue,
    forest::{Forest, Frame, Lists},
    levels,
    pool::{NodeRef, Writer},
};

/// How many leaves wait to be hashed together.
pub(super) const BATCH: usize = 4096;

/// Tries that grow from their sorted leaves, one after the other, and are hashed a batch at a time.
#[derive(Debug)]
pub(in crate::trie) struct Growing<V> {
    builder: TrieBuilder<V>,
    arena: Arena<V>,
    /// Where branches stay until their rows are given out.
    writer: Writer,
    lists: Lists,
}

impl<V: LeafValue> Growing<V> {
    pub(in crate::trie) fn new(forest: &Forest) -> Self {
        let (builder, arena) = (TrieBuilder::default(), Arena::default());
        Self { builder, arena, writer: forest.writer(), lists: Lists::new(forest) }
    }

    /// The key of the newest leaf of the trie that grows.
    pub(in crate::trie) fn newest(&self) -> Option<&B256> {
        self.builder.newest()
    }

    /// Adds the next leaf. Its key must be above the newest one's.
    pub(in crate::trie) fn push(&mut self, key: B256, value: V) {
        self.builder.push(&mut self.arena, key, value, NodeRef::UNLOADED);
    }

    /// Whether there is enough to be hashed.
    pub(in crate::trie) const fn is_due(&self) -> bool {
        self.arena.leaves.len() >= BATCH
    }

    /// Ends the trie and gives its topmost node. Another one may follow.
    pub(super) fn end(&mut self) -> Node {
        let top = self.builder.finish(&mut self.arena);
        self.arena.settle(top, 0);
        top
    }

    /// Ends the only trie and gives its root.
    pub(in crate::trie) fn finish(&mut self) -> B256 {
        let top = self.end();
        self.hash(|_, _| ());
        self.arena.root(top)
    }

    /// Hashes all nodes whose subtrie is complete, and gives the rows of those below the branches that still grow.
    /// They stay in the arena until [`Self::forget`].
    pub(in crate::trie) fn hash(&mut self, mut emit: impl FnMut(Nibbles, Bytes)) {
        for (slot_depth, child) in self.builder.open_children() {
            self.arena.settle(*child, slot_depth);
        }
        levels::hash(&mut self.arena, &mut self.writer, Frame::FRESH, &mut self.lists);
        for (_, child) in self.builder.open_children() {
            self.arena.each_row(self.writer.pool(), *child, &mut emit);
        }
    }

    /// Gives the rows of a trie that was hashed and has ended.
    pub(super) fn each_row(&self, top: Node, emit: &mut impl FnMut(Nibbles, Bytes)) {
        self.arena.each_row(self.writer.pool(), top, emit);
    }

    /// Empties the arena after [`Self::hash`]: of complete nodes below a branch that still grows only the references
    /// stay.
    pub(in crate::trie) fn forget(&mut self) {
        self.arena.keep(self.builder.open_children().map(|(_, child)| child));
        self.writer.discard(&std::mem::take(&mut self.lists.made));
    }

    /// The root of a trie that was hashed and has ended.
    pub(super) fn root(&self, top: Node) -> B256 {
        self.arena.root(top)
    }
}
