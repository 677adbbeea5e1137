//! The second phase of a fold: all nodes of an arena are hashed, many at once.
//!
//! Leaves first: nothing stands below them. Then the branches, depth by depth from the deepest, each written from the row
//! that was read and the references of its changed children, which are all done by then; then, as a second batch of
//! the same depth, the extensions that lead to these branches. It makes no difference to which trie a node belongs:
//! ten thousand tries of one slot fill the lanes as well as one trie of ten thousand.
//!
//! # Lanes
//!
//! A node is written straight into a place where it is padded and hashed, one of eight for its number of rate blocks.
//! When the eight places are taken they are hashed together. What waits at the end of a level is hashed as it is.
//!
//! # Why threads change nothing
//!
//! A level's nodes are cut into pieces. A piece reads only what is done (leaves and deeper levels) and writes only the
//! references and rows of its own nodes, each of which is a function of what was read. So neither the cuts nor the
//! order in which pieces are done can be seen in the result.
//!
//! Invariants:
//! 1. A level begins when all deeper ones have ended.
//! 2. Nothing waits in the lanes between two batches.

use alloy_primitives::{B256, Bytes};
use alloy_trie::{Nibbles, nodes::RlpNode};
use foldgate_keccak::{Hasher, RATE, keccak256, pad_in_place, rate_blocks};
use rayon::prelude::*;

use super::{
    FoldOptions,
    arena::{Arena, Branch, Leaf, Level, Node},
    encode::{BranchNode, LeafValue, ShortNode},
    row::{ChildKind, HASH_REFERENCE, Masks, encode_blinded, head_length, reference_length, write_head},
};

/// How many nodes are hashed together: the width of the widest kernel.
const WIDTH: usize = 8;
/// A node is hashed several times faster than a changed leaf goes down its trie: handing a level out pays later.
const NODES_PER_LEAF: usize = 4;
/// A branch takes four rate blocks at most. Longer leaves, which no state has, are hashed one by one.
const CLASSES: usize = 4;

/// Hashes all nodes of an arena.
pub(crate) fn hash<V: LeafValue>(arena: &mut Arena<V>, options: &FoldOptions) {
    let mut lanes = Lanes::new();
    let Arena { leaves, leaf_references, levels, children, ready, .. } = arena;
    leaf_references.resize_with(leaves.len(), RlpNode::default);
    match piece_length(leaves.len(), options) {
        None => hash_leaves(&mut lanes, leaves, leaf_references),
        Some(length) => leaves
            .par_chunks(length)
            .zip(leaf_references.par_chunks_mut(length))
            .for_each_init(Lanes::new, |lanes, (leaves, references)| hash_leaves(lanes, leaves, references)),
    }
    for depth in (0..levels.len()).rev() {
        let (above, below) = levels.split_at_mut(depth + 1);
        let Level { branches, references, rows } = &mut above[depth];
        references.resize_with(branches.len(), RlpNode::default);
        rows.resize_with(branches.len(), Bytes::new);
        let done = Done { children, leaves: leaf_references, ready, below, depth };
        match piece_length(branches.len(), options) {
            None => hash_branches(&mut lanes, &done, branches, references, rows),
            Some(length) => branches
                .par_chunks(length)
                .zip(references.par_chunks_mut(length))
                .zip(rows.par_chunks_mut(length))
                .for_each_init(Lanes::new, |lanes, ((branches, references), rows)| {
                    hash_branches(lanes, &done, branches, references, rows);
                }),
        }
    }
}

/// The number of nodes in a piece of a level, or `None` if it is not worth cutting up.
fn piece_length(nodes: usize, options: &FoldOptions) -> Option<usize> {
    if !options.parallel || nodes < options.split_leaves.saturating_mul(NODES_PER_LEAF) {
        return None;
    }
    // A few pieces for each thread, since another block's work may keep one of them busy.
    let pieces = 4 * rayon::current_num_threads();
    Some(nodes.div_ceil(pieces).next_multiple_of(WIDTH).min(nodes.div_ceil(2)))
}

/// What is hashed already when a level begins.
struct Done<'a> {
    children: &'a [(u8, Node)],
    leaves: &'a [RlpNode],
    ready: &'a [(ChildKind, RlpNode)],
    /// The levels below `depth`.
    below: &'a [Level],
    depth: usize,
}

impl Done<'_> {
    fn reference(&self, node: Node) -> &[u8] {
        match node {
            Node::Empty => &[],
            Node::Leaf(index) => &self.leaves[index as usize],
            Node::Branch { depth, index } => {
                &self.below[usize::from(depth) - self.depth - 1].references[index as usize]
            }
            Node::Ready(index) => &self.ready[index as usize].1,
        }
    }
}

fn hash_leaves<V: LeafValue>(lanes: &mut Lanes, leaves: &[Leaf<V>], references: &mut [RlpNode]) {
    let mut value = Vec::new();
    for (at, leaf) in leaves.iter().enumerate() {
        value.clear();
        leaf.value.write(&mut value);
        let node = ShortNode::leaf(&leaf.key, usize::from(leaf.slot_depth), &value);
        lanes.push(node.len(), at, references, |out| node.write(out));
    }
    lanes.flush(references);
}

fn hash_branches(
    lanes: &mut Lanes,
    done: &Done<'_>,
    branches: &[Branch],
    references: &mut [RlpNode],
    rows: &mut [Bytes],
) {
    for (at, (branch, row)) in branches.iter().zip(rows.iter_mut()).enumerate() {
        let extension = branch.extension();
        if let Some(stored) = branch.stored.as_ref().filter(|stored| stored.blinded) {
            references[at] = RlpNode::from_raw(stored.references()).unwrap_or_default();
            *row = encode_blinded(&extension, stored.references());
        } else {
            *row = write_row(done, branch, &extension);
            let at_references = head_length(extension.len(), branch.masks);
            let node = BranchNode { state_mask: branch.masks.state, references: &row[at_references..] };
            lanes.push(node.len(), at, references, |out| node.write(out));
        }
        if branch.stored.as_ref().is_some_and(|stored| stored.slot_depth == branch.slot_depth && stored.bytes == *row) {
            *row = Bytes::new();
        }
    }
    lanes.flush(references);
    for (at, branch) in branches.iter().enumerate() {
        if branch.own_path.len() > usize::from(branch.slot_depth) {
            let behind = references[at].clone();
            let extension = branch.extension();
            let node = ShortNode::extension(&extension, &behind);
            lanes.push(node.len(), at, references, |out| node.write(out));
        }
    }
    lanes.flush(references);
}

/// The row of a branch all of whose changed children are done.
fn write_row(done: &Done<'_>, branch: &Branch, extension: &Nibbles) -> Bytes {
    let changed = &done.children[branch.children()];
    if let Some(row) = patch_row(done, branch, changed) {
        return row.into();
    }
    let (stored_state, mut stored) = match &branch.stored {
        Some(stored) => (stored.masks.state, stored.references()),
        None => (0, &[][..]),
    };
    let mut changed = changed.iter().peekable();
    let mut row = Vec::with_capacity(head_length(extension.len(), branch.masks) + HASH_REFERENCE * branch.masks.len());
    write_head(&mut row, extension, branch.masks);
    let mut rest = stored_state | branch.masks.state;
    while rest != 0 {
        let (nibble, bit) = (rest.trailing_zeros() as u8, rest & rest.wrapping_neg());
        rest ^= bit;
        let mut kept: &[u8] = &[];
        if stored_state & bit != 0 {
            (kept, stored) = stored.split_at(reference_length(stored[0]));
        }
        if let Some((_, node)) = changed.next_if(|(changed, _)| *changed == nibble) {
            row.extend_from_slice(done.reference(*node));
        } else if branch.masks.state & bit != 0 {
            row.extend_from_slice(kept);
        }
    }
    row.shrink_to_fit();
    row.into()
}

/// The row that was read with the changed references put over the old ones, where all of them are hashes and none comes
/// or goes: the common case.
fn patch_row(done: &Done<'_>, branch: &Branch, changed: &[(u8, Node)]) -> Option<Vec<u8>> {
    let stored = branch.stored.as_ref()?;
    let Masks { state, branch: branch_mask, opaque } = branch.masks;
    let fits = stored.slot_depth == branch.slot_depth
        && stored.masks.state == state
        && stored.masks.opaque | opaque == 0
        && stored.references().len() == HASH_REFERENCE * branch.masks.len()
        && changed.iter().all(|(_, node)| done.reference(*node).len() == HASH_REFERENCE);
    if !fits {
        return None;
    }
    let start = usize::from(stored.references_at);
    let mut row = stored.bytes.to_vec();
    row[start - 2..start].copy_from_slice(&branch_mask.to_be_bytes());
    for (nibble, node) in changed {
        let before = (state & ((1 << nibble) - 1)).count_ones() as usize;
        row[start + HASH_REFERENCE * before..][..HASH_REFERENCE].copy_from_slice(done.reference(*node));
    }
    Some(row)
}

/// Nodes on their way through the hash function.
struct Lanes {
    hasher: Hasher,
    /// The places of each class behind one another, those of one rate block first.
    places: Vec<u8>,
    classes: [Class; CLASSES],
}

/// Which nodes wait in the places for one number of rate blocks.
#[derive(Clone, Copy, Default)]
struct Class {
    owners: [usize; WIDTH],
    waiting: usize,
}

impl Lanes {
    fn new() -> Self {
        let places = vec![0; WIDTH * RATE * CLASSES * (CLASSES + 1) / 2];
        Self { hasher: Hasher::new(), places, classes: [Class::default(); CLASSES] }
    }

    /// Takes a node of `length` bytes in. Sooner or later, and at the latest with the next [`Self::flush`], its
    /// reference is put into `references[owner]`.
    #[inline]
    fn push(&mut self, length: usize, owner: usize, references: &mut [RlpNode], write: impl FnOnce(&mut [u8])) {
        let blocks = rate_blocks(length);
        if length < 32 {
            let mut inline = [0; 32];
            write(&mut inline);
            references[owner] = RlpNode::from_raw(&inline[..length]).unwrap_or_default();
            return;
        }
        if blocks > CLASSES {
            let mut long = vec![0; length];
            write(&mut long);
            references[owner] = RlpNode::word_rlp(&keccak256(&long));
            return;
        }
        let class = &mut self.classes[blocks - 1];
        let place = &mut self.places[Self::start(blocks) + class.waiting * blocks * RATE..][..blocks * RATE];
        write(place);
        let padded = pad_in_place(place, length);
        debug_assert_eq!(padded, Ok(blocks), "a place holds its class");
        class.owners[class.waiting] = owner;
        class.waiting += 1;
        if class.waiting == WIDTH {
            self.hash_class(blocks, references);
        }
    }

    /// Hashes what waits.
    fn flush(&mut self, references: &mut [RlpNode]) {
        (1..=CLASSES).for_each(|blocks| self.hash_class(blocks, references));
    }

    fn hash_class(&mut self, blocks: usize, references: &mut [RlpNode]) {
        let class = &mut self.classes[blocks - 1];
        let mut digests = [B256::ZERO; WIDTH];
        let digests = &mut digests[..std::mem::take(&mut class.waiting)];
        self.hasher.padded(&self.places[Self::start(blocks)..], blocks * RATE, blocks, digests);
        for (owner, digest) in class.owners.iter().zip(digests) {
            references[*owner] = RlpNode::word_rlp(digest);
        }
    }

    /// Where the places for nodes of so many rate blocks begin.
    const fn start(blocks: usize) -> usize {
        WIDTH * RATE * (blocks - 1) * blocks / 2
    }
}
