//! The fold of one trie: sorted leaf changes go down from the root, nodes come back up, and only then is it known where
//! each of them is filed.
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
//! What comes back is a node that is not yet encoded, because its place may still move: a branch that is left with
//! a single child gives that child to its own parent instead, so a leaf may rise and a branch's extension may grow. A
//! branch with two or more children stays, and settles its changed children: now their depth is known, they are
//! encoded, hashed and filed. Untouched children are never looked at, except for a sole one that has to rise.
//!
//! Because a branch is carried with its own full path, an extension is never edited: it is what lies between the slot
//! and the branch when the branch settles. Splitting and merging extensions need no code of their own.
//!
//! # Why the stored form is a function of the leaves alone
//!
//! Rows are written by settling only, and a settled branch is determined by the leaves below it. Rows that were read
//! and not written again under the same slot path are removed; rows written with the bytes that were there are dropped.
//!
//! # Why threads change nothing
//!
//! The sixteen children of the topmost branch have disjoint slot paths and share nothing but the reader. Their nodes
//! are put together in nibble order, and rows are sorted by path in the end.
//!
//! Invariants:
//! 1. No row is read twice.
//! 2. Recursion is at most 64 deep, whatever the rows say: each level's path is longer than the last one's.

use alloy_primitives::{B256, Bytes};
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles, nodes::RlpNode};
use rayon::prelude::*;

use super::{
    Corruption, FoldError, FoldOptions,
    build::{NewRows, Node, TrieBuilder, nibble_at},
    encode::{LeafValue, NodeEncoder, reference, root_hash},
    row::{Body, Branch, ChildKind},
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
    let mut folder = Folder::new(source, options);
    let kind = if root == EMPTY_ROOT_HASH { ChildKind::Empty } else { ChildKind::Opaque };
    // Storage roots are not held against their rows: that would cost a hash for each trie of each block. The account
    // trie's is, so that a state root that belongs to other rows is found before it makes a block look invalid.
    folder.root_to_check = (source.trie() == TrieId::Accounts && kind != ChildKind::Empty).then_some(root);
    folder.at_top = true;
    let top = folder.slot(&Nibbles::new(), kind, changes)?;
    Ok(folder.finish(top))
}

struct Folder<'a, S: TrieSource> {
    source: &'a S,
    options: &'a FoldOptions,
    encoder: NodeEncoder,
    builder: TrieBuilder<S::Value>,
    /// The rows that were read, as they were.
    old_rows: NewRows,
    /// The rows of all branches that settled.
    new_rows: NewRows,
    root_to_check: Option<B256>,
    /// Whether the branch to come is the trie's topmost one, whose children may be shared out to threads.
    at_top: bool,
}

/// What a group of changes meets at its slot.
enum Start {
    /// What the branch above says of its child.
    Child(ChildKind),
    /// A branch in hand, whose extension a new branch above it cuts short.
    Displaced(Nibbles, Body),
}

type Changes<'a, S> = &'a [LeafChange<<S as TrieSource>::Value>];
/// Nibbles with the nodes that came back.
type ChangedChildren<S> = Vec<(u8, Node<<S as TrieSource>::Value>)>;
type FoldResult<T, S> = Result<T, FoldError<<S as TrieSource>::Error>>;

impl<'a, S: TrieSource> Folder<'a, S> {
    fn new(source: &'a S, options: &'a FoldOptions) -> Self {
        Self {
            source,
            options,
            encoder: NodeEncoder::default(),
            builder: TrieBuilder::default(),
            old_rows: Vec::new(),
            new_rows: Vec::new(),
            root_to_check: None,
            at_top: false,
        }
    }

    fn corrupt<T>(&self, slot: &Nibbles, what: Corruption) -> FoldResult<T, S> {
        Err(FoldError::Corrupt { key: Box::new(NodeKey::new(self.source.trie(), *slot)), what })
    }

    /// Folds at least one change into what stands at `slot`.
    fn slot(&mut self, slot: &Nibbles, kind: ChildKind, changes: Changes<'_, S>) -> FoldResult<Node<S::Value>, S> {
        match kind {
            ChildKind::Empty => self.fill(slot, changes),
            ChildKind::Leaf => self.beside_leaf(slot, changes),
            ChildKind::Branch => match self.read_branch(slot)? {
                Some((own_path, body)) => self.branch(slot, own_path, body, changes),
                None => self.corrupt(slot, Corruption::MissingRow),
            },
            ChildKind::Opaque => match self.read_branch(slot)? {
                Some((own_path, body)) => self.branch(slot, own_path, body, changes),
                None => self.beside_leaf(slot, changes),
            },
        }
    }

    /// Builds what the changes bring where nothing stands.
    fn fill(&mut self, slot: &Nibbles, changes: Changes<'_, S>) -> FoldResult<Node<S::Value>, S> {
        if changes.iter().any(|change| change.existed) {
            return self.corrupt(slot, Corruption::LeafMissing);
        }
        Ok(self.build(changes, None))
    }

    /// Folds changes into a slot that holds a single leaf.
    fn beside_leaf(&mut self, slot: &Nibbles, changes: Changes<'_, S>) -> FoldResult<Node<S::Value>, S> {
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
    fn build(&mut self, changes: Changes<'_, S>, mut resident: Option<(B256, S::Value)>) -> Node<S::Value> {
        let Self { encoder, builder, new_rows, .. } = self;
        for change in changes {
            if let Some((key, value)) = resident.take_if(|(key, _)| *key < change.key) {
                builder.push(encoder, new_rows, key, value);
            }
            if let Some(value) = &change.new {
                builder.push(encoder, new_rows, change.key, value.clone());
            }
        }
        if let Some((key, value)) = resident {
            builder.push(encoder, new_rows, key, value);
        }
        builder.finish(encoder, new_rows)
    }

    /// Folds changes into a branch that stands, or stood, at `slot`.
    fn branch(
        &mut self,
        slot: &Nibbles,
        own_path: Nibbles,
        body: Body,
        changes: Changes<'_, S>,
    ) -> FoldResult<Node<S::Value>, S> {
        let fork = fork_depth(&own_path, slot.len(), changes);
        if fork < own_path.len() {
            return self.children(own_path.slice(..fork), Box::default(), Some((own_path, body)), changes);
        }
        match body {
            Body::Known(branch) => self.children(own_path, branch, None, changes),
            Body::Blinded(reference) => Err(FoldError::Blinded {
                key: Box::new(NodeKey::new(self.source.trie(), own_path)),
                hash: reference.as_hash().unwrap_or_default(),
            }),
        }
    }

    /// Shares changes out to the children of the branch at `own_path`, and puts together what comes back.
    fn children(
        &mut self,
        own_path: Nibbles,
        branch: Box<Branch>,
        mut displaced: Option<(Nibbles, Body)>,
        changes: Changes<'_, S>,
    ) -> FoldResult<Node<S::Value>, S> {
        let depth = own_path.len();
        let mut jobs = Vec::with_capacity(16);
        for group in changes.chunk_by(|a, b| nibble_at(&a.key, depth) == nibble_at(&b.key, depth)) {
            let nibble = nibble_at(&group[0].key, depth);
            let start = match displaced.take_if(|(path, _)| path.get_unchecked(depth) == nibble) {
                Some((path, body)) => Start::Displaced(path, body),
                None => Start::Child(branch.kind(nibble)),
            };
            jobs.push((nibble, start, group));
        }
        let at_top = std::mem::take(&mut self.at_top);
        let mut changed = if at_top && self.options.parallel && changes.len() >= self.options.split_leaves {
            self.run_parallel(&own_path, jobs)?
        } else {
            let run = |(nibble, start, group)| Ok((nibble, self.run(&own_path, nibble, start, group)?));
            jobs.into_iter().map(run).collect::<FoldResult<ChangedChildren<S>, S>>()?
        };
        if let Some((path, body)) = displaced {
            changed.push((path.get_unchecked(depth), Node::Branch(path, body)));
        }
        self.assemble(own_path, branch, changed)
    }

    fn run(
        &mut self,
        own_path: &Nibbles,
        nibble: u8,
        start: Start,
        changes: Changes<'_, S>,
    ) -> FoldResult<Node<S::Value>, S> {
        let slot = child_slot(own_path, nibble);
        match start {
            Start::Child(kind) => self.slot(&slot, kind, changes),
            Start::Displaced(path, body) => self.branch(&slot, path, body, changes),
        }
    }

    fn run_parallel(
        &mut self,
        own_path: &Nibbles,
        jobs: Vec<(u8, Start, Changes<'_, S>)>,
    ) -> FoldResult<ChangedChildren<S>, S> {
        let options = self.options;
        let results: Vec<_> = jobs
            .into_par_iter()
            .with_max_len(1)
            .map_with(self.source.clone(), |source, (nibble, start, group)| {
                let mut folder = Folder::new(&*source, options);
                let node = folder.run(own_path, nibble, start, group)?;
                Ok((nibble, node, folder.old_rows, folder.new_rows))
            })
            .collect();
        let mut nodes = Vec::with_capacity(results.len());
        // Of several failures the first in key order is reported, as a serial fold would.
        for result in results {
            let (nibble, node, old_rows, new_rows) = result?;
            nodes.push((nibble, node));
            self.old_rows.extend(old_rows);
            self.new_rows.extend(new_rows);
        }
        Ok(nodes)
    }

    /// Puts changed children into their branch. With fewer than two children left there is no branch.
    fn assemble(
        &mut self,
        own_path: Nibbles,
        mut branch: Box<Branch>,
        mut changed: ChangedChildren<S>,
    ) -> FoldResult<Node<S::Value>, S> {
        for (nibble, _) in &changed {
            branch.clear(*nibble);
        }
        changed.retain(|(_, node)| !matches!(node, Node::Empty));
        match (branch.first(), branch.len() as usize + changed.len()) {
            (_, 0) => Ok(Node::Empty),
            (None, 1) => Ok(changed.pop().map_or(Node::Empty, |(_, node)| node)),
            (Some(nibble), 1) => self.rise(&child_slot(&own_path, nibble), branch.kind(nibble)),
            _ => {
                for (nibble, node) in changed {
                    let (kind, reference) = self.settle(child_slot(&own_path, nibble), node);
                    branch.set(nibble, kind, reference);
                }
                Ok(Node::Branch(own_path, Body::Known(branch)))
            }
        }
    }

    /// Reads a child that was not touched, but is the last one of its parent and takes its place.
    fn rise(&mut self, slot: &Nibbles, kind: ChildKind) -> FoldResult<Node<S::Value>, S> {
        if kind != ChildKind::Leaf {
            if let Some((own_path, body)) = self.read_branch(slot)? {
                return Ok(Node::Branch(own_path, body));
            }
            if kind == ChildKind::Branch {
                return self.corrupt(slot, Corruption::MissingRow);
            }
        }
        let (key, value) = self.read_leaf(slot)?;
        Ok(Node::Leaf(key, value))
    }

    /// Encodes a node for the slot at which it stays.
    fn settle(&mut self, slot: Nibbles, node: Node<S::Value>) -> (ChildKind, RlpNode) {
        match node {
            Node::Empty => (ChildKind::Empty, RlpNode::default()),
            Node::Leaf(key, value) => (ChildKind::Leaf, reference(self.encoder.leaf(&key, slot.len(), &value))),
            Node::Branch(own_path, body) => {
                let extension = own_path.slice(slot.len()..);
                self.new_rows.push((slot, body.encode(&extension)));
                (ChildKind::Branch, self.encoder.reference_behind(&extension, &body))
            }
        }
    }

    fn finish(mut self, top: Node<S::Value>) -> TrieFold {
        let root = settle_root(&mut self.encoder, &mut self.new_rows, top);
        TrieFold { root, rows: changed_rows(self.old_rows, self.new_rows) }
    }

    /// The branch filed under `slot`, with its own path.
    fn read_branch(&mut self, slot: &Nibbles) -> FoldResult<Option<(Nibbles, Body)>, S> {
        let Some(row) = self.source.row(slot).map_err(FoldError::Read)? else { return Ok(None) };
        let (extension, body) = match Body::decode(&row, slot.len()) {
            Ok(decoded) => decoded,
            Err(malformed) => return self.corrupt(slot, Corruption::MalformedRow(malformed)),
        };
        if slot.is_empty()
            && let Some(expected) = self.root_to_check
        {
            let got = self.encoder.root_behind(&extension, &body);
            if got != expected {
                return self.corrupt(slot, Corruption::RootMismatch { got, expected });
            }
        }
        self.old_rows.push((*slot, row));
        Ok(Some((slot.join(&extension), body)))
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

/// Encodes a trie's topmost node and gives the trie's root.
pub(crate) fn settle_root<V: LeafValue>(encoder: &mut NodeEncoder, rows: &mut NewRows, top: Node<V>) -> B256 {
    match top {
        Node::Empty => EMPTY_ROOT_HASH,
        Node::Leaf(key, value) => root_hash(encoder.leaf(&key, 0, &value)),
        Node::Branch(own_path, body) => {
            rows.push((Nibbles::new(), body.encode(&own_path)));
            encoder.root_behind(&own_path, &body)
        }
    }
}

/// What differs between the rows that were read and those that settled.
fn changed_rows(mut old: NewRows, mut new: NewRows) -> Vec<(Nibbles, Option<Bytes>)> {
    old.sort_unstable_by_key(|(slot, _)| *slot);
    new.sort_unstable_by_key(|(slot, _)| *slot);
    let mut changed = Vec::with_capacity(new.len());
    let mut old = old.into_iter().peekable();
    for (slot, row) in new {
        while let Some((gone, _)) = old.next_if(|(before, _)| *before < slot) {
            changed.push((gone, None));
        }
        let before = old.next_if(|(before, _)| *before == slot);
        if before.is_none_or(|(_, before)| before != row) {
            changed.push((slot, Some(row)));
        }
    }
    changed.extend(old.map(|(gone, _)| (gone, None)));
    changed
}
