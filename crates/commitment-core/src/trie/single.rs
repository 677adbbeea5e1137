//! The first phase of a fold, for one trie: sorted leaf changes go down from the root, nodes come back up, and only then
//! is it known where each of them is filed. Nothing is hashed on the way: only when a whole arena is done.
//!
//! # How it works
//!
//! A slot (a place at which a parent points) is folded with the changes below it:
//!
//! * nothing stands there: the new leaves are built into a subtrie;
//! * a leaf stands there: either one of the changes replaces or removes it, or it is read and joins the new leaves;
//! * a branch stands there: it is found in memory or its row is read, once; the changes are shared out to its children by their next nibble. If
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
//! Only settled branches are written, and a settled branch is determined by the leaves below it. Slot paths of branches
//! that were met and are not written again under the same one are listed as gone.
//!
//! # Why threads change nothing
//!
//! The sixteen children of the topmost branch have disjoint slot paths and share nothing but the reader. Each of them is
//! folded into an arena of its own, and hashed there. The branch above them is put together by one thread, when all of
//! them have come back: whether it collapses is decided there, from the same nodes in the same order as without threads.
//! A hashed child that rises then is taken up again, and hashed for its new place.
//!
//! Invariants:
//! 1. No row is read twice.
//! 2. Recursion is at most 64 deep, whatever the rows say: each level's path is longer than the last one's.

use alloy_primitives::{B256, Bytes};
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles, nodes::RlpNode};
use rayon::prelude::*;

use super::{
    Corruption, FoldError, FoldOptions,
    arena::{Arena, Node, Place, Ready, Stored},
    build::TrieBuilder,
    encode::{BranchNode, LeafValue, extension_reference, root_hash},
    forest::{Forest, Frame, Lists, Top, gather_rows, merge_rows},
    levels,
    path::{Path, nibble_at, shared_nibbles},
    pool::{NodeRef, Pool},
    row::{ChildKind, Masks, RowHead},
};
use crate::{
    node::{NodeKey, TrieId},
    parts,
};

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

/// A leaf that changes. What neither existed nor exists is not listed, nor what keeps its value: rows would be given that
/// stay as they are.
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

/// A leaf that changes, and where its account's storage trie is in memory.
#[derive(Debug, Clone)]
pub(super) struct Change<V> {
    pub(super) key: B256,
    pub(super) existed: bool,
    pub(super) new: Option<V>,
    /// `None` if it is where it was.
    pub(super) link: Option<NodeRef>,
}

/// Folds `changes`, strictly sorted by key, into the trie whose root is `root`, of which nothing is in memory.
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
    let changes: Vec<_> = changes
        .iter()
        .map(|LeafChange { key, existed, new }| Change { key: *key, existed: *existed, new: new.clone(), link: None })
        .collect();
    let forest = Forest::new(usize::MAX);
    let frame = forest.frame(0, 0);
    let mut writer = forest.writer();
    let mut descent = Descent::new(source.clone(), &forest, frame, options);
    let top = descent.trie(root, Top::default(), &changes)?;
    let Descent { mut arena, mut lists, gone, .. } = descent;
    levels::hash(&mut arena, &mut writer, frame, &mut lists);
    let mut rows = Vec::new();
    gather_rows(writer.pool(), source.trie(), arena.node_ref(top), 0, &mut rows);
    let rows = merge_rows(rows, gone.iter());
    Ok(TrieFold { root: arena.root(top), rows: rows.into_iter().map(|(key, row)| (key.path, row)).collect() })
}

/// Folds tries, one after the other, into an arena.
pub(super) struct Descent<'a, S: TrieSource> {
    /// The trie at work.
    pub(super) source: S,
    /// What was folded.
    pub(super) arena: Arena<S::Value>,
    /// The nodes of the parent's version that were met.
    pub(super) lists: Lists,
    /// The rows that are no more.
    pub(super) gone: Vec<NodeKey>,
    forest: &'a Forest,
    frame: Frame,
    options: &'a FoldOptions,
    builder: TrieBuilder<S::Value>,
    /// The changed children of the branches on the way down, each branch's behind those of the branch above it.
    changed: Vec<(u8, Node)>,
    /// The ways that [`Self::look_ahead`] goes.
    ways: Vec<Way>,
    root_to_check: Option<B256>,
    /// Whether the branch to come is the trie's topmost one, whose children may be shared out to threads.
    at_top: bool,
}

/// A branch that was found: its own path and what is stored of it.
type Found = (Path, Stored);

/// What a group of changes meets at its slot.
enum Start {
    /// What the branch above says of its child, and where that is.
    Child(ChildKind, NodeRef),
    /// A branch in hand, whose extension a new branch above it cuts short.
    Displaced(Found),
}

/// How far a change has been looked ahead for.
struct Way {
    change: u32,
    at: NodeRef,
    depth: u8,
}

/// What a thread made of some children of a topmost branch.
struct Part<V> {
    children: Vec<(u8, Option<Ready<V>>)>,
    lists: Lists,
    gone: Vec<Path>,
}

/// How many runs of changes each thread gets, since some take longer than others.
const PARTS_PER_THREAD: usize = 2;

/// How many changes are looked ahead for together: what they meet, a few nodes each, has to stay near until they come.
const SIGHT: usize = 192;

type Changes<'a, S> = &'a [Change<<S as TrieSource>::Value>];
type Job<'a, S> = (u8, Start, Changes<'a, S>);
type FoldResult<T, S> = Result<T, FoldError<<S as TrieSource>::Error>>;

impl<'a, S: TrieSource> Descent<'a, S> {
    pub(super) fn new(source: S, forest: &'a Forest, frame: Frame, options: &'a FoldOptions) -> Self {
        Self {
            source,
            arena: Arena::default(),
            lists: Lists::new(forest),
            gone: Vec::new(),
            forest,
            frame,
            options,
            builder: TrieBuilder::default(),
            changed: Vec::new(),
            ways: Vec::new(),
            root_to_check: None,
            at_top: false,
        }
    }

    fn pool(&self) -> &'a Pool {
        self.forest.pool()
    }

    /// Folds changes, at least one and strictly sorted, into the trie whose root is `root`.
    pub(super) fn trie(&mut self, root: B256, top: Top, changes: Changes<'_, S>) -> FoldResult<Node, S> {
        let (kind, at) = match top.branch {
            _ if root == EMPTY_ROOT_HASH => (ChildKind::Empty, NodeRef::UNLOADED),
            NodeRef::UNLOADED => (ChildKind::Opaque, NodeRef::UNLOADED),
            NodeRef::ABSENT => (ChildKind::Leaf, top.leaf_link),
            branch => (ChildKind::Branch, branch),
        };
        // Storage roots are not held against their rows: that would cost a hash for each trie of each block. The
        // account trie's is, so that a state root that belongs to other rows is found before it makes a block look
        // invalid.
        self.root_to_check = (self.source.trie() == TrieId::Accounts && kind == ChildKind::Opaque).then_some(root);
        self.at_top = true;
        if kind == ChildKind::Branch && (2..=SIGHT).contains(&changes.len()) {
            self.look_ahead(0, at, changes);
        }
        let node = self.slot(0, kind, at, changes)?;
        self.arena.settle(node, 0);
        let trie = self.source.trie();
        self.gone.extend(self.arena.gone.drain(..).map(|slot| NodeKey::new(trie, slot.to_nibbles())));
        Ok(node)
    }

    fn corrupt<T>(&self, slot: &Path, what: Corruption) -> FoldResult<T, S> {
        Err(FoldError::Corrupt { key: Box::new(NodeKey::new(self.source.trie(), slot.to_nibbles())), what })
    }

    /// Folds at least one change into what stands at the slot of `depth` nibbles on the changes' way.
    fn slot(&mut self, depth: usize, kind: ChildKind, at: NodeRef, changes: Changes<'_, S>) -> FoldResult<Node, S> {
        match kind {
            ChildKind::Empty => self.fill(depth, changes),
            ChildKind::Leaf => self.beside_leaf(depth, at, changes),
            ChildKind::Branch | ChildKind::Opaque => {
                let slot = || Path::of(&changes[0].key, depth);
                match self.find(slot, at)? {
                    Some(found) => self.branch(depth, found, changes),
                    None if kind == ChildKind::Opaque => self.beside_leaf(depth, at, changes),
                    None => self.corrupt(&slot(), Corruption::MissingRow),
                }
            }
        }
    }

    /// Builds what the changes bring where nothing stands.
    fn fill(&mut self, depth: usize, changes: Changes<'_, S>) -> FoldResult<Node, S> {
        if changes.iter().any(|change| change.existed) {
            return self.corrupt(&Path::of(&changes[0].key, depth), Corruption::LeafMissing);
        }
        Ok(self.build(changes, None, NodeRef::UNLOADED))
    }

    /// Folds changes into a slot that holds a single leaf, which is linked to `link`.
    fn beside_leaf(&mut self, depth: usize, link: NodeRef, changes: Changes<'_, S>) -> FoldResult<Node, S> {
        let slot = || Path::of(&changes[0].key, depth);
        match changes.iter().filter(|change| change.existed).count() {
            0 => {
                let (key, value) = self.read_leaf(&slot())?;
                if changes.binary_search_by(|change| change.key.cmp(&key)).is_ok() {
                    return self.corrupt(&slot(), Corruption::LeafUnexpected);
                }
                Ok(self.build(changes, Some((key, value)), link))
            }
            // The leaf itself changes: its old value is not needed.
            1 => Ok(self.build(changes, None, link)),
            _ => self.corrupt(&slot(), Corruption::LeafMissing),
        }
    }

    /// Builds a subtrie of the changes' new leaves and one that was there, whose key is none of theirs. `link` belongs
    /// to that one, or to the change of a leaf that was there.
    fn build(&mut self, changes: Changes<'_, S>, mut resident: Option<(B256, S::Value)>, link: NodeRef) -> Node {
        let Self { arena, builder, .. } = self;
        for change in changes {
            if let Some((key, value)) = resident.take_if(|(key, _)| *key < change.key) {
                builder.push(arena, key, value, link);
            }
            if let Some(value) = &change.new {
                let own = if change.existed { link } else { NodeRef::UNLOADED };
                builder.push(arena, change.key, value.clone(), change.link.unwrap_or(own));
            }
        }
        if let Some((key, value)) = resident {
            builder.push(arena, key, value, link);
        }
        builder.finish(arena)
    }

    /// Folds changes into a branch that stands, or stood, under a slot path of `slot_depth` nibbles.
    fn branch(&mut self, slot_depth: usize, found: Found, changes: Changes<'_, S>) -> FoldResult<Node, S> {
        let (own_path, stored) = &found;
        let fork = fork_depth(own_path, slot_depth, changes);
        if fork < own_path.len() {
            return self.children(own_path.truncated(fork), None, Some(found), changes);
        }
        if stored.blinded {
            let hash = RlpNode::from_raw(stored.references(self.pool())).and_then(|reference| reference.as_hash());
            let key = Box::new(NodeKey::new(self.source.trie(), own_path.to_nibbles()));
            return Err(FoldError::Blinded { key, hash: hash.unwrap_or_default() });
        }
        let (own_path, stored) = found;
        self.children(own_path, Some(stored), None, changes)
    }

    /// Shares changes out to the children of the branch at `own_path`, and puts together what comes back.
    fn children(
        &mut self,
        own_path: Path,
        stored: Option<Stored>,
        mut displaced: Option<Found>,
        changes: Changes<'_, S>,
    ) -> FoldResult<Node, S> {
        let depth = own_path.len();
        let pool = self.pool();
        let groups = changes.chunk_by(|a, b| nibble_at(&a.key, depth) == nibble_at(&b.key, depth));
        let mut jobs = groups.map(|group| {
            let nibble = nibble_at(&group[0].key, depth);
            let start = match displaced.take_if(|(path, _)| path.nibble(depth) == nibble) {
                Some(found) => Start::Displaced(found),
                None => match &stored {
                    Some(stored) => Start::Child(stored.masks.kind(nibble), stored.link(pool, nibble)),
                    None => Start::Child(ChildKind::Empty, NodeRef::UNLOADED),
                },
            };
            (nibble, start, group)
        });
        let first = self.changed.len();
        let at_top = std::mem::take(&mut self.at_top);
        if at_top && self.options.parallel && changes.len() >= self.options.split_leaves {
            let jobs = jobs.collect();
            self.run_parallel(depth, jobs)?;
        } else {
            let in_sight = changes.len() <= SIGHT;
            jobs.try_for_each(|(nibble, start, group)| {
                if let Start::Child(ChildKind::Branch, at) = start
                    && !in_sight
                    && (2..=SIGHT).contains(&group.len())
                {
                    self.look_ahead(depth + 1, at, group);
                }
                let node = self.run(depth + 1, start, group)?;
                self.changed.push((nibble, node));
                Ok(())
            })?;
        }
        if let Some((path, stored)) = displaced {
            let nibble = path.nibble(depth);
            let node = self.arena.add_branch(path, Some(stored), std::iter::empty());
            self.changed.push((nibble, node));
            self.changed[first..].sort_unstable_by_key(|(nibble, _)| *nibble);
        }
        let node = self.assemble(own_path, stored, first);
        self.changed.truncate(first);
        node
    }

    /// Brings the nodes on the way of a group of changes near, all ways one step at a time, so that the waits for
    /// memory overlap.
    fn look_ahead(&mut self, depth: usize, at: NodeRef, changes: Changes<'_, S>) {
        let pool = self.pool();
        let ways = &mut self.ways;
        ways.clear();
        ways.extend(changes.iter().enumerate().map(|(change, _)| Way {
            change: change as u32,
            at,
            depth: depth as u8,
        }));
        while !ways.is_empty() {
            ways.retain_mut(|way| {
                let Some(loaded) = way.at.loaded() else { return false };
                let view = pool.node(loaded);
                let depth = usize::from(way.depth) + view.extension_length();
                if depth >= 64 {
                    return false;
                }
                way.at = view.branch_link(nibble_at(&changes[way.change as usize].key, depth));
                way.depth = depth as u8 + 1;
                pool.prefetch(way.at, 2);
                way.at.loaded().is_some()
            });
        }
    }

    fn run(&mut self, slot_depth: usize, start: Start, changes: Changes<'_, S>) -> FoldResult<Node, S> {
        match start {
            Start::Child(kind, at) => self.slot(slot_depth, kind, at, changes),
            Start::Displaced(found) => self.branch(slot_depth, found, changes),
        }
    }

    /// Folds and hashes a topmost branch's children on several threads.
    fn run_parallel(&mut self, depth: usize, jobs: Vec<Job<'_, S>>) -> FoldResult<(), S> {
        let (forest, frame, options, source) = (self.forest, self.frame, self.options, &self.source);
        let results: Vec<FoldResult<Part<S::Value>, S>> = share_out::<S>(jobs)
            .into_par_iter()
            .with_max_len(1)
            .map(|jobs| {
                let mut descent = Descent::new(source.clone(), forest, frame, options);
                let mut children = Vec::with_capacity(jobs.len());
                for (nibble, start, group) in jobs {
                    let node = descent.run(depth + 1, start, group)?;
                    descent.arena.settle(node, depth + 1);
                    children.push((nibble, node));
                }
                let Descent { mut arena, mut lists, .. } = descent;
                levels::hash(&mut arena, &mut forest.writer(), frame, &mut lists);
                let children = children.into_iter().map(|(nibble, node)| (nibble, arena.to_ready(node))).collect();
                Ok(Part { children, lists, gone: arena.gone })
            })
            .collect();
        // Of several failures the first in key order is reported, as a serial fold would.
        let mut failure = None;
        for result in results {
            match result {
                Ok(part) => {
                    for (nibble, ready) in part.children {
                        let node = ready.map_or(Node::Empty, |ready| self.arena.add_ready(ready));
                        self.changed.push((nibble, node));
                    }
                    self.lists.append(part.lists);
                    self.arena.gone.extend(part.gone);
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Puts changed children, those from `first` on, into their branch. With fewer than two children left there is no
    /// branch.
    fn assemble(&mut self, own_path: Path, stored: Option<Stored>, first: usize) -> FoldResult<Node, S> {
        let changed = &self.changed[first..];
        let mut kept = stored.as_ref().map_or_else(Masks::default, |stored| stored.masks);
        changed.iter().for_each(|(nibble, _)| kept.clear(1 << nibble));
        let mut left = changed.iter().map(|(_, node)| *node).filter(|node| *node != Node::Empty);
        let (sole, others) = (left.next().unwrap_or_default(), left.count());
        let nodes = if sole == Node::Empty { 0 } else { 1 + others };
        if kept.len() + nodes >= 2 {
            return Ok(self.arena.add_branch(own_path, stored, changed.iter().copied()));
        }
        let mut at = NodeRef::UNLOADED;
        if let Some(stored) = stored {
            self.arena.forget(own_path.truncated(usize::from(stored.slot_depth)));
            at = kept.first().map_or(at, |nibble| stored.link(self.pool(), nibble));
        }
        match kept.first() {
            Some(nibble) => self.rise(&own_path.child(nibble), kept.kind(nibble), at),
            None => {
                let (node, in_vain) = self.arena.take_up(sole, self.forest.pool());
                self.lists.replaced.extend(in_vain);
                Ok(node)
            }
        }
    }

    /// Takes up a child that was not touched, but is the last one of its parent and takes its place.
    fn rise(&mut self, slot: &Path, kind: ChildKind, at: NodeRef) -> FoldResult<Node, S> {
        if kind != ChildKind::Leaf {
            if let Some((own_path, stored)) = self.find(|| *slot, at)? {
                return Ok(self.arena.add_branch(own_path, Some(stored), std::iter::empty()));
            }
            if kind == ChildKind::Branch {
                return self.corrupt(slot, Corruption::MissingRow);
            }
        }
        let (key, value) = self.read_leaf(slot)?;
        Ok(self.arena.add_leaf(key, value, at))
    }

    /// The branch filed under a slot path, with its own path: in memory if it is loaded, else as its row.
    fn find(&mut self, slot: impl Fn() -> Path, at: NodeRef) -> FoldResult<Option<Found>, S> {
        let Some(loaded) = at.loaded() else { return self.read_branch(slot()) };
        let view = self.pool().node(loaded);
        let slot = slot();
        let stored = Stored {
            place: Place::Loaded(loaded),
            masks: view.masks(),
            references_at: view.references_at() as u8,
            slot_depth: slot.len() as u8,
            blinded: view.is_blinded(),
        };
        self.lists.replaced.push(loaded);
        Ok(Some((slot.join(&view.extension()), stored)))
    }

    /// The branch whose row is filed under `slot`, with its own path.
    fn read_branch(&mut self, slot: Path) -> FoldResult<Option<Found>, S> {
        let Some(bytes) = self.source.row(&slot.to_nibbles()).map_err(FoldError::Read)? else { return Ok(None) };
        let head = match RowHead::decode(&bytes, slot.len()) {
            Ok(head) => head,
            Err(malformed) => return self.corrupt(&slot, Corruption::MalformedRow(malformed)),
        };
        let RowHead { extension, masks, references_at, blinded } = head;
        let stored = Stored { place: Place::Read(bytes), masks, references_at, slot_depth: slot.len() as u8, blinded };
        if slot.len() == 0
            && let Some(expected) = self.root_to_check
        {
            let got = root_of_row(&extension, &stored, self.pool());
            if got != expected {
                return self.corrupt(&slot, Corruption::RootMismatch { got, expected });
            }
        }
        Ok(Some((slot.join(&extension), stored)))
    }

    /// The one leaf below `slot`.
    fn read_leaf(&self, slot: &Path) -> FoldResult<(B256, S::Value), S> {
        let leaf = self.source.first_leaf(slot.first_key()).map_err(FoldError::Read)?;
        match leaf.filter(|(key, _)| slot.covers(key)) {
            Some(leaf) => Ok(leaf),
            None => self.corrupt(slot, Corruption::LeafMissing),
        }
    }
}

/// Cuts jobs into runs of about as many changes each, a few for each thread: what a run holds is hashed together.
fn share_out<S: TrieSource>(jobs: Vec<Job<'_, S>>) -> Vec<Vec<Job<'_, S>>> {
    let runs = parts::cut(jobs.iter().map(|(.., group)| group.len()), PARTS_PER_THREAD * rayon::current_num_threads());
    let mut jobs = jobs.into_iter();
    runs.into_iter().map(|run| jobs.by_ref().take(run.len()).collect()).collect()
}

/// The root of the trie whose topmost row is this.
fn root_of_row(extension: &Nibbles, stored: &Stored, pool: &Pool) -> B256 {
    let references = stored.references(pool);
    if !stored.blinded {
        return root_hash(&BranchNode { state_mask: stored.masks.state, references }.reference_behind(extension));
    }
    let branch = RlpNode::from_raw(references).unwrap_or_default();
    root_hash(&if extension.is_empty() { branch } else { extension_reference(extension, &branch) })
}

/// The depth at which the first change leaves the way to the branch at `own_path`, or that branch's depth. Since
/// changes are sorted, the first or the last one is it.
fn fork_depth<V>(own_path: &Path, slot_depth: usize, changes: &[Change<V>]) -> usize {
    if own_path.len() == slot_depth {
        return slot_depth;
    }
    let shared = |change: Option<&Change<V>>| {
        change.map_or(own_path.len(), |change| shared_nibbles(own_path.first_key(), &change.key).min(own_path.len()))
    };
    shared(changes.first()).min(shared(changes.last()))
}
