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
//! Each thread hashes an arena of its own, of tries, or children of a topmost branch, that have nothing in common with
//! those of other threads. A node's reference and row are functions of what stands in it and below it, whatever else is
//! hashed beside it.
//!
//! Invariants:
//! 1. A level begins when all deeper ones have ended.
//! 2. Nothing waits in the lanes between two batches.

use alloy_primitives::B256;
use alloy_trie::nodes::RlpNode;
use foldgate_keccak::{Hasher, RATE, keccak256, pad_in_place, rate_blocks};

use super::{
    arena::{Arena, Branch, Leaf, Level, Node, Origin, Place, Ready, Stored},
    encode::{BranchNode, LeafValue, PackedNibbles, ShortNode},
    forest::{Frame, Lists, age_of},
    pool::{Link, NodePlan, NodeRef, Pool, Writer},
    row::{HASH_REFERENCE, Masks, blinded_head_length, head_length, reference_length, write_blinded, write_head},
};

/// How many nodes are hashed together: the width of the widest kernel.
const WIDTH: usize = 8;
/// How many branches ahead of the one that is written memory is fetched.
const AHEAD: usize = 6;
/// A branch takes four rate blocks at most. Longer leaves, which no state has, are hashed one by one.
const CLASSES: usize = 4;

/// Hashes all nodes of an arena, and writes its branches to memory. `lists` learns what was made and what was cut.
pub(super) fn hash<V: LeafValue>(arena: &mut Arena<V>, writer: &mut Writer, frame: Frame, lists: &mut Lists) {
    let mut lanes = Lanes::new();
    let Arena { leaves, leaf_references, levels, children, ready, .. } = arena;
    leaf_references.resize_with(leaves.len(), RlpNode::default);
    hash_leaves(&mut lanes, leaves, leaf_references);
    let mut output = Output { writer, frame, lists };
    for depth in (0..levels.len()).rev() {
        let (above, below) = levels.split_at_mut(depth + 1);
        let Level { branches, references, nodes } = &mut above[depth];
        if branches.is_empty() {
            continue;
        }
        let done = Done { children, leaves, leaf_references, ready, below, depth };
        references.resize_with(branches.len(), RlpNode::default);
        nodes.clear();
        hash_branches(&mut lanes, &done, branches, references, nodes, &mut output);
    }
}

/// Where branches are written.
struct Output<'a> {
    writer: &'a mut Writer,
    frame: Frame,
    lists: &'a mut Lists,
}

/// What is hashed already when a level begins.
struct Done<'a, V> {
    children: &'a [(u8, Node)],
    leaves: &'a [Leaf<V>],
    leaf_references: &'a [RlpNode],
    ready: &'a [Ready<V>],
    /// The levels below `depth`.
    below: &'a [Level],
    depth: usize,
}

impl<V> Done<'_, V> {
    fn reference(&self, node: Node) -> &[u8] {
        match node {
            Node::Empty => &[],
            Node::Leaf(index) => &self.leaf_references[index as usize],
            Node::Branch { depth, index } => &self.level(depth).references[index as usize],
            Node::Ready(index) => &self.ready[index as usize].reference,
        }
    }

    /// Where a node, or what hangs on a leaf, is in memory.
    fn link(&self, node: Node) -> NodeRef {
        match node {
            Node::Empty => NodeRef::UNLOADED,
            Node::Leaf(index) => self.leaves[index as usize].link,
            Node::Branch { depth, index } => self.level(depth).nodes[index as usize],
            Node::Ready(index) => match self.ready[index as usize].origin {
                Origin::Leaf { link, .. } => link,
                Origin::Branch { node, .. } => node,
            },
        }
    }

    fn level(&self, depth: u8) -> &Level {
        &self.below[usize::from(depth) - self.depth - 1]
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

fn hash_branches<V>(
    lanes: &mut Lanes,
    done: &Done<'_, V>,
    branches: &[Branch],
    references: &mut [RlpNode],
    nodes: &mut Vec<NodeRef>,
    output: &mut Output<'_>,
) {
    let pool = std::sync::Arc::clone(output.writer.pool());
    for (at, branch) in branches.iter().enumerate() {
        if let Some(Place::Loaded(ahead)) =
            branches.get(at + AHEAD).and_then(|branch| Some(&branch.stored.as_ref()?.place))
        {
            pool.prefetch(*ahead, 10);
        }
        if let Some(stored) = branch.stored.as_ref().filter(|stored| stored.blinded) {
            let reference = stored.references(&pool);
            references[at] = RlpNode::from_raw(reference).unwrap_or_default();
            nodes.push(write_blinded_node(branch, reference, output));
            continue;
        }
        let node = write_node(done, branch, &pool, output);
        nodes.push(node);
        let view = pool.node(node);
        let rlp = BranchNode { state_mask: branch.masks.state, references: &view.row()[view.references_at()..] };
        lanes.push(rlp.len(), at, references, |out| rlp.write(out));
    }
    output.lists.made.extend_from_slice(nodes);
    lanes.flush(references);
    for (at, branch) in branches.iter().enumerate().filter(|(_, branch)| branch.has_extension()) {
        let behind = references[at].clone();
        let extension = PackedNibbles::new(&branch.extension());
        let node = ShortNode::extension(&extension, &behind);
        lanes.push(node.len(), at, references, |out| node.write(out));
    }
    lanes.flush(references);
}

fn write_blinded_node(branch: &Branch, reference: &[u8], output: &mut Output<'_>) -> NodeRef {
    let extension = branch.extension();
    let references_at = blinded_head_length(extension.len());
    let masks = Masks::default();
    let plan = NodePlan { epoch: output.frame.epoch, masks, blinded: true, references_at, linked: 0, links: &[] };
    output.writer.node(&plan, references_at + reference.len(), |row| write_blinded(row, &extension, reference))
}

/// Writes a branch all of whose changed children are done.
fn write_node<V>(done: &Done<'_, V>, branch: &Branch, pool: &Pool, output: &mut Output<'_>) -> NodeRef {
    let changed = &done.children[branch.children()];
    let (linked, links) = gather_links(done, branch, changed, pool, output);
    let links = &links[..linked.count_ones() as usize];
    let masks = branch.masks;
    let extension = branch.extension();
    let references_at = head_length(extension.len(), masks);
    let plan = NodePlan { epoch: output.frame.epoch, masks, blinded: false, references_at, linked, links };
    let writer = &mut *output.writer;
    let (stored_masks, stored_row, stored_at) = match &branch.stored {
        Some(stored) => (stored.masks, stored.row(pool), usize::from(stored.references_at)),
        None => (Masks::default(), &[][..], 0),
    };
    let stored_references = &stored_row[stored_at..];
    let hashes_only = stored_references.len() == HASH_REFERENCE * stored_masks.len()
        && changed.iter().all(|(_, node)| done.reference(*node).len() == HASH_REFERENCE);
    if !hashes_only {
        let references = mixed_references(done, masks, stored_masks.state, stored_references, changed);
        return writer.node(&plan, references_at + references.len(), |row| {
            write_head(row, &extension, masks);
            row[references_at..].copy_from_slice(&references);
        });
    }
    let place = |state: u16, nibble: u8| HASH_REFERENCE * (state & ((1 << nibble) - 1)).count_ones() as usize;
    writer.node(&plan, references_at + HASH_REFERENCE * masks.len(), |row| {
        let (head, references) = row.split_at_mut(references_at);
        write_head(head, &extension, masks);
        if masks.state == stored_masks.state {
            references.copy_from_slice(stored_references);
        } else {
            let mut kept = masks.state & stored_masks.state;
            changed.iter().for_each(|(nibble, _)| kept &= !(1 << nibble));
            while kept != 0 {
                let nibble = kept.trailing_zeros() as u8;
                kept &= kept - 1;
                let from = &stored_references[place(stored_masks.state, nibble)..][..HASH_REFERENCE];
                references[place(masks.state, nibble)..][..HASH_REFERENCE].copy_from_slice(from);
            }
        }
        for (nibble, node) in changed {
            references[place(masks.state, *nibble)..][..HASH_REFERENCE].copy_from_slice(done.reference(*node));
        }
    })
}

/// The references of a branch some of whose children are shorter than a hash.
fn mixed_references<V>(
    done: &Done<'_, V>,
    masks: Masks,
    stored_state: u16,
    mut stored: &[u8],
    changed: &[(u8, Node)],
) -> Vec<u8> {
    let mut changed = changed.iter().peekable();
    let mut references = Vec::with_capacity(HASH_REFERENCE * masks.len());
    let mut rest = stored_state | masks.state;
    while rest != 0 {
        let (nibble, bit) = (rest.trailing_zeros() as u8, rest & rest.wrapping_neg());
        rest ^= bit;
        let mut kept: &[u8] = &[];
        if stored_state & bit != 0 {
            (kept, stored) = stored.split_at(reference_length(stored[0]));
        }
        if let Some((_, node)) = changed.next_if(|(changed, _)| *changed == nibble) {
            references.extend_from_slice(done.reference(*node));
        } else if masks.state & bit != 0 {
            references.extend_from_slice(kept);
        }
    }
    references
}

/// Where a branch's children are: the changed ones where they were written, the others where they were, unless they are
/// forgotten.
fn gather_links<V>(
    done: &Done<'_, V>,
    branch: &Branch,
    changed: &[(u8, Node)],
    pool: &Pool,
    output: &mut Output<'_>,
) -> (u16, [Link; 16]) {
    let mut links = [Link::default(); 16];
    let mut linked = 0u16;
    let mut count = 0;
    let stored = branch.stored.as_ref().and_then(|stored: &Stored| stored.view(pool));
    let kept = stored.map_or(0, |view| view.linked()) & branch.masks.state;
    let mut changed = changed.iter().peekable();
    let mut rest = kept | changed.clone().fold(0, |mask, (nibble, _)| mask | 1 << nibble);
    while rest != 0 {
        let nibble = rest.trailing_zeros() as u8;
        rest &= rest - 1;
        let link = match changed.next_if(|(changed, _)| *changed == nibble) {
            Some((_, node)) => Link { node: done.link(*node), age: age_of(output.frame.epoch) },
            None => {
                let link = stored.map_or_else(Link::default, |view| view.link_with_age(nibble));
                if output.frame.cuts(pool, link) {
                    output.lists.cut.push(link.node);
                    continue;
                }
                link
            }
        };
        if link.node != NodeRef::UNLOADED {
            links[count] = link;
            count += 1;
            linked |= 1 << nibble;
        }
    }
    (linked, links)
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
