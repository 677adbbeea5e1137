//! What a pipeline keeps in memory, in numbers: whoever runs one for long can see that nothing grows without bound.
//!
//! Invariant: every number has a bound in the settings. When nothing is in flight, nobody waits and the branches beside
//! the durable chain are out of reach, only verdicts, ways and tries are left.

use foldgate_core::{TrieReader, TrieStore};

use crate::{
    calculator::{Calculator, Control},
    pipeline::Pipeline,
    tree::Node,
    verdict::Failure,
};

/// What a pipeline holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Holdings {
    /// Blocks in flight.
    pub in_flight: usize,
    /// Of those, blocks that wait for an unknown ancestor.
    pub orphans: usize,
    /// Valid blocks whose layers are in memory.
    pub committed: usize,
    /// Of those, blocks that are not in the store: canonical ones that wait for a flush, and those beside the chain.
    pub unflushed: usize,
    /// Blocks, known or not, on which others stand.
    pub parents: usize,
    /// Verdicts of blocks that are gone otherwise.
    pub verdicts: usize,
    /// Ways to blocks below or beside the durable tip, at hand or being computed.
    pub ways: usize,
    /// Callers that wait for a head, a flush or a view.
    pub waiting: usize,
    /// Bytes of the tries' branches in memory.
    pub trie_bytes: usize,
}

impl<S: TrieStore> Calculator<S> {
    pub(crate) fn holdings(&self) -> Holdings {
        let tree = &self.tree;
        Holdings {
            in_flight: tree.attempts.len(),
            orphans: tree.orphans.len(),
            committed: tree.nodes.values().filter(|node| matches!(node, Node::Committed(_))).count(),
            unflushed: self.backlog.held(),
            parents: tree.children.len(),
            verdicts: tree.remembered(),
            ways: tree.grounds.count() + self.lost_ways.len(),
            waiting: self.heads.len() + self.canonical_waiters.len() + self.flush_waiters.len() + self.viewers.len(),
            trie_bytes: tree.base.tries().map_or(0, |tries| tries.forest().node_bytes()),
        }
    }
}

impl<S: TrieStore> Pipeline<S> {
    /// What the pipeline holds in memory now. The page cache has figures of its own: [`Pipeline::page_cache`].
    ///
    /// # Errors
    /// If the calculator's thread is gone, after a panic.
    pub fn holdings(&self) -> Result<Holdings, Failure> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        let gone = || Failure::Panicked("the calculator's thread is gone".to_owned());
        self.control.send(Control::Holdings { reply }).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())
    }
}
