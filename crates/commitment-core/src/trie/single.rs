//! The first phase of a fold, for one trie: sorted leaf changes go down from the root, nodes come back up, and only then
//! is it known where each of them is filed. Nothing is hashed here.
//!
//! # How it works
//!
//! A slot (a place at which a parent points) is folded with the changes below it:
//!
//! * nothing stands there: the new leaves are built into a subtrie;
//! * a leaf stands there: either one of the changes replaces or removes it, or it is read and joins the new leaves;
//! * a branch stands there: its row is read once, the changes are shared out to its children by their next nibble. If
//!   some of them leave its extension midway, a new branch stands at that point, with the old one as a child.
//!
//! What comes back is a node whose place may still move: a branch that is left with a single child gives that child to
//! its own parent instead, so a leaf may rise and a branch's extension may grow. A branch with two or more children
//! stays, enters the arena, and settles its changed children: now their depth is known. Untouched children are never
//! looked at, except for a sole one that has to rise.
//!
//! Because a branch is carried with its own full path, an extension is never edited: it is what lies between the slot
//! and the branch when the branch settles. Splitting and merging extensions need no code of their own.
//!
//! # Why the stored form is a function of the leaves alone
//!
//! Rows are written for settled branches only, and a settled branch is determined by the leaves below it. Rows that
//! were read and not written again under the same slot path are removed; rows that come out as they were are dropped.
//!
//! # Why threads change nothing
//!
//! The sixteen children of the topmost branch have disjoint slot paths and share nothing but the reader. Each of them is
//! folded into an arena of its own. The branch above them is put together by one thread, when all of them have come
//! back: whether it collapses is decided there, from the same nodes in the same order as without threads.
//!
//! Invariants:
//! 1. No row is read twice.
//! 2. Recursion is at most 64 deep, whatever the rows say: each level's path is longer than the last one's.

use alloy_primitives::{B256, Bytes};
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles, nodes::RlpNode};
use rayon::prelude::*;

use super::{
    Corruption, FoldError, FoldOptions,
    arena::{Arena, Node, StoredRow, TrieTop},
    build::{TrieBuilder, nibble_at},
    encode::{BranchNode, LeafValue, extension_reference, root_hash},
    levels,
    row::{ChildKind, Masks, RowHead},
};
use crate::node::{NodeKey, TrieId, first_key_below, key_is_below};

/// What the fold of one trie reads. A clone reads the same trie; threads work on clones.
pub trait TrieSource: Clone + Send + Sync {
    /// What the leaves hold.
    type Value: LeafValue;
    /// Why a read can fail.
    type Error: Send;

    /// The trie's name, for errors.
    fn trie(&self) -> TrieId;

    /// The row filed under a slot path.
    ///
    /// # Errors
    /// If the underlying storage fails.
    fn row(&self, slot: &Nibbles) -> Result<Option<Bytes>, Self::Error>;

    /// The first leaf whose key is `>= start`.
    ///
    /// # Errors
    /// If the underlying storage fails.
    fn first_leaf(&self, start: &B256) -> Result<Option<(B256, Self::Value)>, Self::Error>;
}

/// A leaf that changes. What neither existed nor exists is not listed.
#[derive(Debug, Clone)]
pub struct LeafChange<V> {
    /// The leaf's key.
    pub key: B256,
    /// Whether the trie holds the leaf. The rows do not say, since they hold no keys.
    pub existed: bool,
    /// The new value, or `None` if the leaf goes.
    pub new: Option<V>,
}

/// The fold's result for one trie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrieFold {
    /// The root after the changes.
    pub root: B256,
    /// The rows that differ, strictly sorted by slot path; `None` where a row is no more.
    pub rows: Vec<(Nibbles, Option<Bytes>)>,
}

/// Folds `changes`, strictly sorted by key, into the trie whose root is `root`.
///
/// # Errors
/// [`FoldError::Read`] if a read fails, [`FoldError::Corrupt`] if rows, leaves and `existed` contradict each other,
/// [`FoldError::Unsorted`].
pub fn fold_trie<S: TrieSource>(
    source: &S,
    root: B256,
    changes: &[LeafChange<S::Value>],
    options: &FoldOptions,
) -> Result<TrieFold, FoldError<S::Error>> {
    if let Some(at) = changes.windows(2).position(|pair| pair[0].key >= pair[1].key) {
        return Err(FoldError::Unsorted { table: "leaf", position: at + 1 });
    }
    if changes.is_empty() {
        return Ok(TrieFold { root, rows: Vec::new() });
    }
    let mut descent = Descent::new(source.clone(), options);
    let top = descent.trie(root, changes)?;
    let mut arena = descent.arena;
    levels::hash(&mut arena, options);
    let mut rows = Vec::new();
    arena.take_changed_rows(&top, |slot, row| rows.push((slot, row)));
    Ok(TrieFold { root: arena.root(top.node), rows })
}

/// Folds tries, one after the other, into an arena.
pub(super) struct Descent<'a, S: TrieSource> {
    /// The trie at work.
    pub(super) source: S,
    /// What was folded.
    pub(super) arena: Arena<S::Value>,
    options: &'a FoldOptions,
    builder: TrieBuilder<S::Value>,
    /// The changed children of the branches on the way down, each branch's behind those of the branch above it.
    changed: Vec<(u8, Node)>,
    root_to_check: Option<B256>,
    /// Whether the branch to come is the trie's topmost one, whose children may be shared out to threads.
    at_top: bool,
}

/// A branch that was read: its own path and its row.
type Found = (Nibbles, StoredRow);

/// What a group of changes meets at its slot.
enum Start {
    /// What the branch above says of its child.
    Child(ChildKind),
    /// A branch in hand, whose extension a new branch above it cuts short.
    Displaced(Found),
}

type Changes<'a, S> = &'a [LeafChange<<S as TrieSource>::Value>];
type FoldResult<T, S> = Result<T, FoldError<<S as TrieSource>::Error>>;

impl<'a, S: TrieSource> Descent<'a, S> {
    pub(super) fn new(source: S, options: &'a FoldOptions) -> Self {
        Self {
            source,
            arena: Arena::default(),
            options,
            builder: TrieBuilder::default(),
            changed: Vec::new(),
            root_to_check: None,
            at_top: false,
        }
    }

    /// Folds changes, at least one and strictly sorted, into the trie whose root is `root`.
    pub(super) fn trie(&mut self, root: B256, changes: Changes<'_, S>) -> FoldResult<TrieTop, S> {
        let kind = if root == EMPTY_ROOT_HASH { ChildKind::Empty } else { ChildKind::Opaque };
        // Storage roots are not held against their rows: that would cost a hash for each trie of each block. The
        // account trie's is, so that a state root that belongs to other rows is found before it makes a block look
        // invalid.
        self.root_to_check = (self.source.trie() == TrieId::Accounts && kind != ChildKind::Empty).then_some(root);
        self.at_top = true;
        let gone = self.arena.gone_count();
        let node = self.slot(&Nibbles::new(), kind, changes)?;
        self.arena.settle(node, 0);
        Ok(TrieTop { node, gone: gone..self.arena.gone_count() })
    }

    fn corrupt<T>(&self, slot: &Nibbles, what: Corruption) -> FoldResult<T, S> {
        Err(FoldError::Corrupt { key: Box::new(NodeKey::new(self.source.trie(), *slot)), what })
    }

    /// Folds at least one change into what stands at `slot`.
    fn slot(&mut self, slot: &Nibbles, kind: ChildKind, changes: Changes<'_, S>) -> FoldResult<Node, S> {
        match kind {
            ChildKind::Empty => self.fill(slot, changes),
            ChildKind::Leaf => self.beside_leaf(slot, changes),
            ChildKind::Branch => match self.read_branch(slot)? {
                Some(found) => self.branch(slot.len(), found, changes),
                None => self.corrupt(slot, Corruption::MissingRow),
            },
            ChildKind::Opaque => match self.read_branch(slot)? {
                Some(found) => self.branch(slot.len(), found, changes),
                None => self.beside_leaf(slot, changes),
            },
        }
    }

    /// Builds what the changes bring where nothing stands.
    fn fill(&mut self, slot: &Nibbles, changes: Changes<'_, S>) -> FoldResult<Node, S> {
        if changes.iter().any(|change| change.existed) {
            return self.corrupt(slot, Corruption::LeafMissing);
        }
        Ok(self.build(changes, None))
    }

    /// Folds changes into a slot that holds a single leaf.
    fn beside_leaf(&mut self, slot: &Nibbles, changes: Changes<'_, S>) -> FoldResult<Node, S> {
        match changes.iter().filter(|change| change.existed).count() {
            0 => {
                let (key, value) = self.read_leaf(slot)?;
                if changes.binary_search_by(|change| change.key.cmp(&key)).is_ok() {
                    return self.corrupt(slot, Corruption::LeafUnexpected);
                }
                Ok(self.build(changes, Some((key, value))))
            }
            // The leaf itself changes: its old value is not needed.
            1 => Ok(self.build(changes, None)),
            _ => self.corrupt(slot, Corruption::LeafMissing),
        }
    }

    /// Builds a subtrie of the changes' new leaves and one that was there, whose key is none of theirs.
    fn build(&mut self, changes: Changes<'_, S>, mut resident: Option<(B256, S::Value)>) -> Node {
        let Self { arena, builder, .. } = self;
        for change in changes {
            if let Some((key, value)) = resident.take_if(|(key, _)| *key < change.key) {
                builder.push(arena, key, value);
            }
            if let Some(value) = &change.new {
                builder.push(arena, change.key, value.clone());
            }
        }
        if let Some((key, value)) = resident {
            builder.push(arena, key, value);
        }
        builder.finish(arena)
    }

    /// Folds changes into a branch that stands, or stood, under a slot path of `slot_depth` nibbles.
    fn branch(&mut self, slot_depth: usize, found: Found, changes: Changes<'_, S>) -> FoldResult<Node, S> {
        let (own_path, row) = &found;
        let fork = fork_depth(own_path, slot_depth, changes);
        if fork < own_path.len() {
            return self.children(own_path.slice(..fork), None, Some(found), changes);
        }
        if row.blinded {
            let hash = RlpNode::from_raw(row.references()).and_then(|reference| reference.as_hash());
            let key = Box::new(NodeKey::new(self.source.trie(), *own_path));
            return Err(FoldError::Blinded { key, hash: hash.unwrap_or_default() });
        }
        let (own_path, row) = found;
        self.children(own_path, Some(row), None, changes)
    }

    /// Shares changes out to the children of the branch at `own_path`, and puts together what comes back.
    fn children(
        &mut self,
        own_path: Nibbles,
        row: Option<StoredRow>,
        mut displaced: Option<Found>,
        changes: Changes<'_, S>,
    ) -> FoldResult<Node, S> {
        let depth = own_path.len();
        let masks = row.as_ref().map_or_else(Masks::default, |row| row.masks);
        let groups = changes.chunk_by(|a, b| nibble_at(&a.key, depth) == nibble_at(&b.key, depth));
        let mut jobs = groups.map(|group| {
            let nibble = nibble_at(&group[0].key, depth);
            let start = match displaced.take_if(|(path, _)| path.get_unchecked(depth) == nibble) {
                Some(found) => Start::Displaced(found),
                None => Start::Child(masks.kind(nibble)),
            };
            (nibble, start, group)
        });
        let first = self.changed.len();
        let at_top = std::mem::take(&mut self.at_top);
        if at_top && self.options.parallel && changes.len() >= self.options.split_leaves {
            let jobs = jobs.collect();
            self.run_parallel(&own_path, jobs)?;
        } else {
            jobs.try_for_each(|(nibble, start, group)| {
                let node = self.run(&own_path, nibble, start, group)?;
                self.changed.push((nibble, node));
                Ok(())
            })?;
        }
        if let Some((path, row)) = displaced {
            let nibble = path.get_unchecked(depth);
            let node = self.arena.add_branch(path, Some(row), std::iter::empty());
            self.changed.push((nibble, node));
            self.changed[first..].sort_unstable_by_key(|(nibble, _)| *nibble);
        }
        let node = self.assemble(own_path, row, first);
        self.changed.truncate(first);
        node
    }

    fn run(&mut self, own_path: &Nibbles, nibble: u8, start: Start, changes: Changes<'_, S>) -> FoldResult<Node, S> {
        match start {
            Start::Child(kind) => self.slot(&child_slot(own_path, nibble), kind, changes),
            Start::Displaced(found) => self.branch(own_path.len() + 1, found, changes),
        }
    }

    fn run_parallel(&mut self, own_path: &Nibbles, jobs: Vec<(u8, Start, Changes<'_, S>)>) -> FoldResult<(), S> {
        let options = self.options;
        let results: Vec<_> = jobs
            .into_par_iter()
            .with_max_len(1)
            .map_with(self.source.clone(), |source, (nibble, start, group)| {
                let mut descent = Descent::new(source.clone(), options);
                let node = descent.run(own_path, nibble, start, group)?;
                Ok((nibble, node, descent.arena))
            })
            .collect();
        // Of several failures the first in key order is reported, as a serial fold would.
        for result in results {
            let (nibble, node, arena) = result?;
            let node = self.arena.absorb(arena).node(node);
            self.changed.push((nibble, node));
        }
        Ok(())
    }

    /// Puts changed children, those from `first` on, into their branch. With fewer than two children left there is no
    /// branch.
    fn assemble(&mut self, own_path: Nibbles, row: Option<StoredRow>, first: usize) -> FoldResult<Node, S> {
        let changed = &self.changed[first..];
        let mut kept = row.as_ref().map_or_else(Masks::default, |row| row.masks);
        changed.iter().for_each(|(nibble, _)| kept.clear(1 << nibble));
        let mut left = changed.iter().map(|(_, node)| *node).filter(|node| *node != Node::Empty);
        let (sole, others) = (left.next().unwrap_or_default(), left.count());
        let nodes = if sole == Node::Empty { 0 } else { 1 + others };
        if kept.len() + nodes >= 2 {
            return Ok(self.arena.add_branch(own_path, row, changed.iter().copied()));
        }
        if let Some(row) = row {
            self.arena.forget(own_path.slice(..usize::from(row.slot_depth)));
        }
        match kept.first() {
            Some(nibble) => self.rise(&child_slot(&own_path, nibble), kept.kind(nibble)),
            None => Ok(sole),
        }
    }

    /// Reads a child that was not touched, but is the last one of its parent and takes its place.
    fn rise(&mut self, slot: &Nibbles, kind: ChildKind) -> FoldResult<Node, S> {
        if kind != ChildKind::Leaf {
            if let Some((own_path, row)) = self.read_branch(slot)? {
                return Ok(self.arena.add_branch(own_path, Some(row), std::iter::empty()));
            }
            if kind == ChildKind::Branch {
                return self.corrupt(slot, Corruption::MissingRow);
            }
        }
        let (key, value) = self.read_leaf(slot)?;
        Ok(self.arena.add_leaf(key, value))
    }

    /// The branch filed under `slot`, with its own path.
    fn read_branch(&mut self, slot: &Nibbles) -> FoldResult<Option<Found>, S> {
        let Some(bytes) = self.source.row(slot).map_err(FoldError::Read)? else { return Ok(None) };
        let head = match RowHead::decode(&bytes, slot.len()) {
            Ok(head) => head,
            Err(malformed) => return self.corrupt(slot, Corruption::MalformedRow(malformed)),
        };
        let RowHead { extension, masks, references_at, blinded } = head;
        let row = StoredRow { bytes, masks, references_at, slot_depth: slot.len() as u8, blinded };
        if slot.is_empty()
            && let Some(expected) = self.root_to_check
        {
            let got = root_of_row(&extension, &row);
            if got != expected {
                return self.corrupt(slot, Corruption::RootMismatch { got, expected });
            }
        }
        let own_path = if extension.is_empty() { *slot } else { slot.join(&extension) };
        Ok(Some((own_path, row)))
    }

    /// The one leaf below `slot`.
    fn read_leaf(&self, slot: &Nibbles) -> FoldResult<(B256, S::Value), S> {
        let leaf = self.source.first_leaf(&first_key_below(slot)).map_err(FoldError::Read)?;
        match leaf.filter(|(key, _)| key_is_below(key, slot)) {
            Some(leaf) => Ok(leaf),
            None => self.corrupt(slot, Corruption::LeafMissing),
        }
    }
}

/// The root of the trie whose topmost row is this.
fn root_of_row(extension: &Nibbles, row: &StoredRow) -> B256 {
    let references = row.references();
    if !row.blinded {
        return root_hash(&BranchNode { state_mask: row.masks.state, references }.reference_behind(extension));
    }
    let branch = RlpNode::from_raw(references).unwrap_or_default();
    root_hash(&if extension.is_empty() { branch } else { extension_reference(extension, &branch) })
}

/// The slot path of a branch's child.
fn child_slot(own_path: &Nibbles, nibble: u8) -> Nibbles {
    let mut slot = *own_path;
    slot.push(nibble);
    slot
}

/// The depth at which the first change leaves the way to the branch at `own_path`, or that branch's depth. Since
/// changes are sorted, the first or the last one is it.
fn fork_depth<V>(own_path: &Nibbles, slot_depth: usize, changes: &[LeafChange<V>]) -> usize {
    if own_path.len() == slot_depth {
        return slot_depth;
    }
    let shared = |change: Option<&LeafChange<V>>| {
        change.map_or(own_path.len(), |change| own_path.common_prefix_length(&Nibbles::unpack_array(&change.key.0)))
    };
    shared(changes.first()).min(shared(changes.last()))
}
