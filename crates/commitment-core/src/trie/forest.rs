//! The tries of many blocks in memory, sharing what they have in common.
//!
//! A *version* is the tries after one block, as far as they are in memory: the account trie's topmost branch, and all
//! that is linked from there. A branch's links lead to those of its branches that are in memory, and from an account's
//! place to the topmost branch of the account's storage trie. A fold reads its parent's version and makes a new one: it
//! writes every branch on the way to a changed leaf anew, and links the rest of the parent's. So the parent's version
//! stays what it was, for siblings, shadow computations and what-if roots, and costs nothing to keep.
//!
//! # What a link that is not there means
//!
//! *Unloaded*: the branch, if there is one, stands in the store, and no block between the reader's durable snapshot and
//! this version changed anything below it. Three rules keep that true. Whatever a fold changes it writes, and links.
//! A branch that moves to another place without being changed is written too. And a link is cut only if all below it
//! is as old as the durable snapshot.
//!
//! *Absent*: there is no branch, whatever the store says: the trie has shrunk to one leaf since.
//!
//! # Epochs
//!
//! A version's *epoch* is its parent's and one, and each node has the epoch of the fold that wrote it. Since a change
//! writes all nodes above it, nothing below a node is younger than the node. So the nodes that differ from an ancestor
//! are found from the top, by following links to nodes younger than the ancestor: that is how rows for a commit are
//! gathered ([`Version::rows_since`]), of one block or of many at once.
//!
//! # When nodes are freed
//!
//! Nodes have no counters. Each version lists what its fold made and what of its parent's it left out. The versions
//! form a tree, and two rules look at nothing but that tree:
//!
//! * A version that nobody holds and nobody stands on goes with all that its fold made: nothing else links to it.
//! * The oldest version, once nobody holds it and just one other stands on it, goes with all that this one left out:
//!   whatever else it has, the other one has too.
//!
//! A version in the middle that nobody holds waits for one of the two.
//!
//! # Staying within the budget
//!
//! Each link has an *age*, the epoch at which the child was written, divided by [`EPOCHS_PER_AGE`]. When a branch is
//! written anew and the pool holds more than its budget, links to children that have not been written for long are cut.
//! What counts as long adapts: it shrinks while the pool is over its budget and grows while it is well below.
//!
//! Invariants:
//! 1. A version's nodes are alive as long as the version is held, or one that stands on it.
//! 2. Of a version that nobody stands on any more, its fold's list of what it made holds just what it alone can reach.
//! 3. The lock `versions` is taken before the pool's own.

use std::{
    collections::HashMap,
    fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use alloy_primitives::{B256, Bytes};
use parking_lot::Mutex;

use super::{
    path::{Path, nibble_at, shared_nibbles},
    pool::{Link, NodeRef, Pool, Writer},
    row::ChildKind,
};
use crate::{
    diff::StateDiff,
    node::{NodeKey, TrieId, TrieUpdates},
};

/// The bytes of nodes that a forest keeps unless told otherwise.
pub const DEFAULT_NODE_BYTES: usize = 512 << 20;

/// How many epochs make one step of age.
const EPOCHS_PER_AGE: u32 = 8;
/// The highest age that is kept under pressure, and the one that is kept without.
const MAX_AGE: u32 = 200;
const MIN_AGE: u32 = 1;

/// What the branches above a changed leaf take, roughly: two or three of its own, of 350 bytes, and some shared ones.
const BYTES_PER_LEAF: usize = 1200;

pub(super) const fn age_of(epoch: u32) -> u8 {
    (epoch / EPOCHS_PER_AGE) as u8
}

/// A row with its name; `None` where it is no more.
pub(super) type Row = (NodeKey, Option<Bytes>);

/// Where a trie begins in memory.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Top {
    /// Its topmost branch.
    pub(super) branch: NodeRef,
    /// What its only leaf is linked to, if it has no branch.
    pub(super) leaf_link: NodeRef,
}

impl Top {
    /// A storage trie: its leaves are linked to nothing.
    pub(super) const fn storage(branch: NodeRef) -> Self {
        Self { branch, leaf_link: NodeRef::UNLOADED }
    }
}

/// Where the tries of a store's newest blocks live in memory. Clones are the same forest.
#[derive(Debug, Clone)]
pub struct Forest {
    shared: Arc<Shared>,
}

struct Shared {
    pool: Arc<Pool>,
    budget: usize,
    /// Links older than this many steps are cut while the pool is over its budget.
    keep_age: AtomicU32,
    versions: Mutex<Versions>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("pool", &self.pool).field("budget", &self.budget).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Versions {
    next: u64,
    alive: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    parent: Option<u64>,
    children: Vec<u64>,
    /// Whether a [`Version`] exists.
    held: bool,
    top: Top,
    lists: Lists,
}

/// What a fold made and left out. Until a version takes it over, dropping it frees what was made: the fold failed.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// Nodes that it wrote.
    pub(super) made: Vec<NodeRef>,
    /// Nodes of the parent's version that it read and wrote anew, or that are no more; and those that it wrote itself
    /// and had to write again.
    pub(super) replaced: Vec<NodeRef>,
    /// Nodes of the parent's version to which it cut the links, with all below them.
    pub(super) cut: Vec<NodeRef>,
    /// Where to free what was made.
    guard: Option<Forest>,
}

impl Lists {
    pub(super) fn new(forest: &Forest) -> Self {
        let mut lists = Self::default();
        lists.guard = Some(forest.clone());
        lists
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.made.append(&mut other.made);
        self.replaced.append(&mut other.replaced);
        self.cut.append(&mut other.cut);
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        if let Some(forest) = &self.guard {
            forest.pool().free(&self.made);
        }
    }
}

impl Forest {
    /// A forest that keeps about `node_bytes` bytes of nodes: more only as long as the blocks above the durable ones
    /// need it. With zero, nodes are forgotten as soon as they are durable.
    pub fn new(node_bytes: usize) -> Self {
        let shared = Shared {
            pool: Arc::new(Pool::new()),
            budget: node_bytes,
            keep_age: AtomicU32::new(MAX_AGE),
            versions: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// A version of which nothing is in memory: that of a durable snapshot which is read for the first time.
    pub fn unloaded(&self) -> Version {
        self.version(None, 0, None, Top::default(), Lists::default(), Vec::new())
    }

    /// The bytes that nodes take.
    pub fn node_bytes(&self) -> usize {
        self.shared.pool.used_bytes()
    }

    /// Whether what a fold writes now stays: nodes take less than their budget.
    pub fn has_room(&self) -> bool {
        self.shared.pool.used_bytes() < self.shared.budget
    }

    /// Gets memory for the fold of so many changed leaves ahead of it, so that the fold need not wait for the system.
    pub fn reserve(&self, leaves: usize) {
        self.shared.pool.reserve(leaves * BYTES_PER_LEAF);
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    pub(super) fn writer(&self) -> Writer {
        Writer::new(&self.shared.pool)
    }

    /// What the folds of a version's child need to know.
    pub(super) fn frame(&self, parent_epoch: u32, durable_epoch: u32) -> Frame {
        let used = self.shared.pool.used_bytes();
        let keep = &self.shared.keep_age;
        let mut keep_age = keep.load(Ordering::Relaxed);
        if used > self.shared.budget {
            keep_age = (keep_age - keep_age / 4).saturating_sub(1).max(MIN_AGE);
        } else if used < self.shared.budget / 8 * 7 {
            keep_age = (keep_age + 1).min(MAX_AGE);
        }
        // Relaxed, and raced by other folds: any value serves.
        keep.store(keep_age, Ordering::Relaxed);
        let over_budget = used > self.shared.budget;
        let cut_age = match (over_budget, self.shared.budget) {
            (false, _) => None,
            (true, 0) => Some(0),
            (true, _) => Some(keep_age as u8),
        };
        Frame { epoch: parent_epoch + 1, durable_epoch, cut_age }
    }

    fn version(
        &self,
        parent: Option<&Version>,
        epoch: u32,
        cut_at: Option<u32>,
        top: Top,
        mut lists: Lists,
        gone: Vec<NodeKey>,
    ) -> Version {
        lists.guard = None;
        let mut versions = self.shared.versions.lock();
        let id = versions.next;
        versions.next += 1;
        let needs = parent.map_or(0, |parent| parent.inner.needs).max(cut_at.unwrap_or(0));
        let parent = parent.map(|parent| parent.inner.id);
        if let Some(entry) = parent.and_then(|parent| versions.alive.get_mut(&parent)) {
            entry.children.push(id);
        }
        versions.alive.insert(id, Entry { parent, children: Vec::new(), held: true, top, lists });
        Version { inner: Arc::new(Inner { forest: self.clone(), id, parent, epoch, needs, top, gone }) }
    }

    /// The version that a fold over `parent` made.
    pub(super) fn child(&self, parent: &Version, frame: &Frame, top: Top, lists: Lists, gone: Vec<NodeKey>) -> Version {
        let cut_at = (!lists.cut.is_empty()).then_some(frame.durable_epoch);
        self.version(Some(parent), frame.epoch, cut_at, top, lists, gone)
    }
}

/// What nodes that are written need to know of their time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    /// The epoch of what is written.
    pub(super) epoch: u32,
    /// What is not younger than this is in the snapshot that the fold reads.
    durable_epoch: u32,
    /// Links that are this many steps of age old, or older, are cut; none if the pool is within its budget.
    cut_age: Option<u8>,
}

impl Frame {
    /// For tries that stand on nothing.
    pub(super) const FRESH: Self = Self { epoch: 1, durable_epoch: 0, cut_age: None };

    /// Whether a link that a branch keeps is to be cut.
    #[inline]
    pub(super) fn cuts(&self, pool: &Pool, link: Link) -> bool {
        let Some(cut_age) = self.cut_age else { return false };
        if age_of(self.epoch).wrapping_sub(link.age) < cut_age {
            return false;
        }
        link.node.loaded().is_some_and(|node| pool.node(node).epoch() <= self.durable_epoch)
    }
}

/// The tries after one block, as far as they are in memory. A clone is the same version.
#[derive(Clone)]
pub struct Version {
    inner: Arc<Inner>,
}

struct Inner {
    forest: Forest,
    id: u64,
    /// The version that it was folded over.
    parent: Option<u64>,
    epoch: u32,
    /// The oldest durable epoch that this version can be read over: what was cut is as old, or older.
    needs: u32,
    /// The account trie.
    top: Top,
    /// The rows that the parent's tries have and these have no more, or have elsewhere.
    gone: Vec<NodeKey>,
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Version")
            .field("epoch", &self.inner.epoch)
            .field("top", &self.inner.top)
            .finish_non_exhaustive()
    }
}

/// Slot paths at which ways of keys end or leave memory, each with the range of the keys that lead there.
#[derive(Debug, Default)]
pub(crate) struct Frontier {
    /// Branches that have to be read, sorted.
    pub(crate) rows: Vec<(Path, Range<usize>)>,
    /// Leaves.
    pub(crate) leaves: Vec<(Path, Range<usize>)>,
}

impl Version {
    /// The forest that it is part of.
    pub fn forest(&self) -> &Forest {
        &self.inner.forest
    }

    /// How many folds lie between this version and the first one.
    pub fn epoch(&self) -> u32 {
        self.inner.epoch
    }

    /// Whether this version can stand on `below`: it was folded over it, and not over another one of the same epoch.
    pub(crate) fn follows(&self, below: &Self) -> bool {
        Arc::ptr_eq(&self.inner.forest.shared, &below.inner.forest.shared) && self.inner.parent == Some(below.inner.id)
    }

    /// Whether what is not in memory stands in the durable snapshot of this epoch.
    pub(crate) fn can_be_read_over(&self, durable_epoch: u32) -> bool {
        durable_epoch >= self.inner.needs
    }

    pub(super) fn top(&self) -> Top {
        self.inner.top
    }

    pub(super) fn pool(&self) -> &Pool {
        self.inner.forest.pool()
    }

    /// The topmost branch of the storage trie of an account, which exists.
    pub(super) fn storage_top(&self, hashed_address: &B256) -> NodeRef {
        let pool = self.pool();
        let Top { branch: mut at, leaf_link } = self.top();
        if at == NodeRef::ABSENT {
            return leaf_link;
        }
        let mut depth = 0;
        while let Some(loaded) = at.loaded() {
            let node = pool.node(loaded);
            let extension = node.extension();
            if !extension_fits(&extension, hashed_address, depth) {
                return NodeRef::UNLOADED;
            }
            depth += extension.len();
            let nibble = nibble_at(hashed_address, depth);
            at = node.link(nibble);
            match node.kind(nibble) {
                ChildKind::Branch => depth += 1,
                ChildKind::Leaf => return at,
                ChildKind::Empty | ChildKind::Opaque => return NodeRef::UNLOADED,
            }
        }
        NodeRef::UNLOADED
    }

    /// Where the ways of sorted keys end or leave what is in memory of a trie. The trie must have a leaf.
    pub(crate) fn frontier(&self, trie: &TrieId, keys: &[B256]) -> Frontier {
        let pool = self.pool();
        let top = match trie {
            TrieId::Accounts => self.top().branch,
            TrieId::Storage(hashed_address) => self.storage_top(hashed_address),
        };
        let mut frontier = Frontier::default();
        let mut waiting = vec![(Path::default(), top, 0..keys.len())];
        while let Some((slot, at, range)) = waiting.pop() {
            let Some(node) = at.loaded().map(|at| pool.node(at)) else {
                let ends = if at == NodeRef::UNLOADED { &mut frontier.rows } else { &mut frontier.leaves };
                ends.push((slot, range));
                continue;
            };
            let own_path = slot.join(&node.extension());
            let mut next = range.start;
            for group in keys[range].chunk_by(|a, b| nibble_at(a, own_path.len()) == nibble_at(b, own_path.len())) {
                let (first, nibble) = (next, nibble_at(&group[0], own_path.len()));
                next += group.len();
                // Of keys that leave the extension some may have this nibble, too: they are taken along.
                if group.iter().any(|key| own_path.covers(key)) {
                    match node.kind(nibble) {
                        ChildKind::Branch => waiting.push((own_path.child(nibble), node.link(nibble), first..next)),
                        ChildKind::Leaf => frontier.leaves.push((own_path.child(nibble), first..next)),
                        ChildKind::Empty | ChildKind::Opaque => {}
                    }
                }
            }
        }
        frontier.rows.sort_unstable_by_key(|(slot, _)| *slot);
        frontier
    }

    /// The row filed under a key, as far as this version knows: `None` if the store has to be asked.
    pub fn row(&self, key: &NodeKey) -> Option<Option<Bytes>> {
        let (mut at, path) = match key.trie {
            TrieId::Accounts => (self.top().branch, key.path),
            TrieId::Storage(hashed_address) => (self.storage_top(&hashed_address), key.path),
        };
        let mut depth = 0;
        loop {
            let Some(loaded) = at.loaded() else { return (at == NodeRef::ABSENT).then_some(None) };
            let node = self.pool().node(loaded);
            if depth == path.len() {
                return Some(Some(Bytes::copy_from_slice(node.row())));
            }
            let extension = node.extension();
            let below = path.slice(depth..);
            if !below.starts_with(&extension) || below.len() == extension.len() {
                return Some(None);
            }
            if node.is_blinded() {
                return None;
            }
            depth += extension.len();
            let nibble = path.get_unchecked(depth);
            depth += 1;
            match node.kind(nibble) {
                ChildKind::Branch => at = node.link(nibble),
                ChildKind::Opaque => return None,
                ChildKind::Empty | ChildKind::Leaf => return Some(None),
            }
        }
    }

    /// The rows that differ from those of the version that has the given epoch among this one's ancestors, strictly
    /// sorted. `storage` names the storage tries that may differ; `gone` is the list of each version from there on.
    ///
    /// A row that differed in between and is again what it was may be among them, and a row that is no more may be
    /// listed although the ancestor does not have it either.
    pub(crate) fn rows_since<'a>(
        &self,
        epoch: u32,
        storage: impl Iterator<Item = &'a B256>,
        gone: impl Iterator<Item = &'a NodeKey>,
    ) -> TrieUpdates {
        let mut rows = Vec::new();
        gather_rows(self.pool(), TrieId::Accounts, self.top().branch, epoch, &mut rows);
        for hashed_address in storage {
            let trie = TrieId::Storage(*hashed_address);
            gather_rows(self.pool(), trie, self.storage_top(hashed_address), epoch, &mut rows);
        }
        TrieUpdates { nodes: merge_rows(rows, gone) }
    }

    /// The rows that differ from the parent's, strictly sorted. `diff` is what this version was folded from.
    pub fn updates(&self, diff: &StateDiff) -> TrieUpdates {
        let written = diff.accounts.iter().filter(|change| change.new.is_some() && !change.slots.is_empty());
        let epoch = self.epoch() - 1;
        self.rows_since(epoch, written.map(|change| &change.hashed_address), self.gone().iter())
    }

    /// The rows that the parent's tries have and these have no more.
    pub(crate) fn gone(&self) -> &[NodeKey] {
        &self.inner.gone
    }
}

/// The rows of a trie's branches that are younger than `epoch`, in any order.
pub(super) fn gather_rows(pool: &Pool, trie: TrieId, top: NodeRef, epoch: u32, rows: &mut Vec<Row>) {
    let mut waiting = vec![(Path::default(), top)];
    while let Some((slot, at)) = waiting.pop() {
        let Some(node) = at.loaded().map(|at| pool.node(at)).filter(|node| node.epoch() > epoch) else { continue };
        rows.push((NodeKey::new(trie, slot.to_nibbles()), Some(Bytes::copy_from_slice(node.row()))));
        let own_path = slot.join(&node.extension());
        let mut branches = node.masks().branch;
        while branches != 0 {
            let nibble = branches.trailing_zeros() as u8;
            branches &= branches - 1;
            waiting.push((own_path.child(nibble), node.link(nibble)));
        }
    }
}

/// Rows and the names of those that are no more, strictly sorted. A name may be that of a row, too: another branch
/// stands at the slot that one left.
pub(super) fn merge_rows<'a>(mut rows: Vec<Row>, gone: impl Iterator<Item = &'a NodeKey>) -> Vec<Row> {
    rows.extend(gone.map(|key| (*key, None)));
    rows.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.is_some().cmp(&a.1.is_some())));
    rows.dedup_by_key(|(key, _)| *key);
    rows
}

/// Whether the extension below `depth` is on the way to a key.
pub(super) fn extension_fits(extension: &alloy_trie::Nibbles, key: &B256, depth: usize) -> bool {
    extension.is_empty() || {
        let joined = Path::of(key, depth).join(extension);
        shared_nibbles(joined.first_key(), key) >= joined.len()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let shared = &self.forest.shared;
        let mut versions = shared.versions.lock();
        if let Some(entry) = versions.alive.get_mut(&self.id) {
            entry.held = false;
        }
        let mut freed = Freed::default();
        versions.prune(self.id, &mut freed);
        drop(versions);
        shared.pool.free(&freed.nodes);
        freed.trees.into_iter().for_each(|top| shared.pool.free_tree(top));
    }
}

/// What can be reached no more.
#[derive(Debug, Default)]
struct Freed {
    nodes: Vec<NodeRef>,
    trees: Vec<NodeRef>,
}

impl Versions {
    /// Takes away what nobody needs, beginning with a version that changed.
    fn prune(&mut self, id: u64, freed: &mut Freed) {
        let mut next = Some(id);
        while let Some(id) = next.take() {
            let Some(entry) = self.alive.get(&id) else { return };
            if entry.held {
                return;
            }
            match (entry.parent, entry.children.as_slice()) {
                (parent, []) => {
                    // UNWRAP: it was just looked at.
                    let mut entry = self.alive.remove(&id).expect("looked at");
                    match parent.and_then(|parent| self.alive.get_mut(&parent)) {
                        Some(below) => {
                            below.children.retain(|child| *child != id);
                            freed.nodes.append(&mut entry.lists.made);
                            next = parent;
                        }
                        None => freed.trees.extend([entry.top.branch, entry.top.leaf_link]),
                    }
                }
                (None, &[sole]) => {
                    self.alive.remove(&id);
                    if let Some(child) = self.alive.get_mut(&sole) {
                        child.parent = None;
                        let mut lists = std::mem::take(&mut child.lists);
                        freed.nodes.append(&mut lists.replaced);
                        freed.trees.append(&mut lists.cut);
                        next = Some(sole);
                    }
                }
                _ => return,
            }
        }
    }
}
