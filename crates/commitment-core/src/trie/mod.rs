//! The fold: all changed leaves of a block become the root of the state after it, and the rows that lead there.
//!
//! ```text
//! LeafChanges -- checked, no-ops dropped
//!      |  storage tries   1. structure: each trie's changes go down its branches into an arena       (single)
//!      |                  2. hashes: level by level, across all tries of the block                   (levels)
//!      v
//! storage roots -- put into the accounts' leaves
//!      |  account trie    1. structure   2. hashes
//!      v
//! FoldOutcome { computed_state_root, diff: StateDiff, tries: Version }
//! ```
//!
//! # Two phases
//!
//! A keccak state leaves most of a vector unit idle; eight at a time fill it. But a node can be hashed only when all
//! nodes below it are, so whoever hashes on the way up a trie has one node at a time. Hence two phases. The first one
//! applies all changes to the structure: inserts, updates, removals, branches that split or collapse. It leaves the
//! nodes to be hashed in flat tables, by depth (`arena`). The second one hashes these tables, leaves first, then the
//! deepest branches, up to the roots, and writes each branch where it stays. Nodes of one depth do not depend on each
//! other, whatever trie they belong to, so they go through the hash function together.
//!
//! # Where nodes are
//!
//! Branches that recent blocks wrote are in memory (`pool`), linked to each other, and shared by all blocks whose tries
//! have them in common (`forest`): a fold follows links. Where a link leads to nothing that is in memory, the branch's
//! row is read through the [`TrieReader`]. Nothing of the parent is changed: the outcome holds a version of its own.
//!
//! The stored form has one row for each branch, filed under its slot path ([`crate::node`]); what leaves hold stands in
//! rows of the state alone. A trie of no leaf or of one has no row. A branch in memory holds its row as it would be
//! stored, so rows cost nothing before a commit asks for them ([`Version::updates`]).
//!
//! # Why the work can be shared out
//!
//! Threads take different tries, or different children of a large trie's topmost branch, and do both phases for their
//! part: parts that read and write nothing in common. Only the branch above such children can see that several of them
//! changed, and it is put together by one thread when all of them are back. If it collapses, the child that is left is
//! hashed again at its new place. Storage tries come first, since their roots stand in the accounts' leaves. Results are
//! collected in key order and no node's content depends on where it lies, so the outcome is that of one thread
//! ([`single`] and `levels` have the details).
//!
//! Invariants:
//! 1. The rows of a state are a function of its leaves, whatever way led there.
//! 2. Root, difference and updates are the same, byte for byte, for any [`FoldOptions`].
//! 3. Updates are strictly sorted and list no row that stays as it was.
//! 4. The fold removes what it is told to remove and nothing else: which accounts count as empty (EIP-161) is decided
//!    before it.

mod arena;
mod build;
pub mod bulk;
mod encode;
mod forest;
mod levels;
pub(crate) mod path;
mod pool;
pub(crate) mod row;
pub mod single;

use alloy_primitives::{B256, Bytes, U256};
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles};
use rayon::prelude::*;

use self::{
    bulk::Growing,
    forest::{Frame, Lists, Top},
    pool::NodeRef,
    single::{Change, Descent, TrieSource},
};
pub use self::{
    encode::LeafValue,
    forest::{DEFAULT_NODE_BYTES, Forest, Version},
    row::MalformedRow,
};
use crate::{
    account::Account,
    diff::{AccountChange, AccountLeafChange, LeafChanges, StateDiff},
    node::{NodeKey, TrieId, TrieUpdates},
    parts,
    store::TrieReader,
};

/// When a fold uses threads. No setting changes its result.
///
/// Threads are those of the rayon pool in which the fold is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoldOptions {
    /// Whether to use any thread but the calling one.
    pub parallel: bool,
    /// Storage tries are folded beside each other from this many changed slots on, counted over all tries.
    pub parallel_slots: usize,
    /// A trie's topmost branch shares its children out to threads from this many changed leaves on.
    pub split_leaves: usize,
}

impl Default for FoldOptions {
    /// Parallel where it pays.
    fn default() -> Self {
        Self { parallel: true, parallel_slots: 64, split_leaves: 128 }
    }
}

impl FoldOptions {
    /// Everything on the calling thread: the reference for all others.
    pub const SERIAL: Self = Self { parallel: false, parallel_slots: usize::MAX, split_leaves: usize::MAX };

    /// Everything in parallel that can be, however small.
    pub const FORCED_PARALLEL: Self = Self { parallel: true, parallel_slots: 1, split_leaves: 1 };
}

/// What a fold gives.
#[derive(Debug, Clone)]
pub struct FoldOutcome {
    /// The root of the account trie after the changes.
    pub computed_state_root: B256,
    /// The changed leaves, with the storage roots before and after.
    pub diff: StateDiff,
    /// The tries after the changes.
    pub tries: Version,
}

impl FoldOutcome {
    /// The changed rows.
    pub fn updates(&self) -> TrieUpdates {
        self.tries.updates(&self.diff)
    }
}

/// Outcomes are equal if they say the same, wherever their nodes lie.
impl PartialEq for FoldOutcome {
    fn eq(&self, other: &Self) -> bool {
        self.computed_state_root == other.computed_state_root
            && self.diff == other.diff
            && self.updates() == other.updates()
    }
}

/// How a store contradicts itself, or what it said when the changes were resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Corruption {
    /// The bytes of a row are not a branch.
    #[error(transparent)]
    MalformedRow(#[from] MalformedRow),
    /// A branch is referred to, but has no row.
    #[error("there is no row")]
    MissingRow,
    /// A leaf is referred to, or changed, but does not exist.
    #[error("a leaf that should be here is missing")]
    LeafMissing,
    /// A leaf exists that is added as a new one.
    #[error("a leaf stands here that should not exist")]
    LeafUnexpected,
    /// The topmost row is not that of the state root.
    #[error("the rows have the root {got}, not {expected}")]
    RootMismatch {
        /// The root of the row.
        got: B256,
        /// The root of the reader's block.
        expected: B256,
    },
}

/// Why a fold fails. None of it says anything about a block: the store, or the caller, is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FoldError<E> {
    /// The reader failed.
    #[error("reading for the fold failed")]
    Read(#[source] E),
    /// The parent's rows and leaves do not belong together, or not to the changes.
    #[error("the trie is corrupt at {key:?}: {what}")]
    Corrupt {
        /// Where.
        key: Box<NodeKey>,
        /// How.
        what: Corruption,
    },
    /// A change leads below a branch of which the reader, a partial trie, knows the hash alone. Changes that were
    /// resolved against the same reader lead to none.
    #[error("the fold leads below the branch {hash} at {key:?}, which is not known")]
    Blinded {
        /// The trie, and the branch's own path.
        key: Box<NodeKey>,
        /// The branch's hash.
        hash: B256,
    },
    /// The changes are not strictly sorted by key.
    #[error("the {table} changes are not strictly sorted at position {position}")]
    Unsorted {
        /// Which changes.
        table: &'static str,
        /// The index of the offending change.
        position: usize,
    },
    /// An account is removed, or was none, but has storage after the changes: they do not list all its slots.
    #[error("the account {hashed_address} does not exist any more, but its storage has the root {got}")]
    StorageWithoutAccount {
        /// keccak256 of the address.
        hashed_address: B256,
        /// The storage root after the changes.
        got: B256,
    },
}

/// Folds a block's changed leaves into the state that `parent` reads.
///
/// `changes` must have been resolved against the same state ([`crate::resolve()`]): their old values are relied upon.
/// Reads the rows on the paths of changed leaves, and of neighbours that have to move; each of them once.
///
/// # Errors
/// See [`FoldError`].
pub fn fold<R: TrieReader>(
    parent: &R,
    mut changes: LeafChanges,
    options: &FoldOptions,
) -> Result<FoldOutcome, FoldError<R::Error>> {
    check_sorted(&changes)?;
    drop_no_ops(&mut changes);
    let before = parent.tries().unwrap_or_else(|| Forest::new(0).unloaded());
    let durable_epoch = parent.durable_epoch().unwrap_or_else(|| before.epoch());
    let fold = Fold { before: &before, frame: before.forest().frame(before.epoch(), durable_epoch), options };
    let storage = fold.storage(parent, &changes.accounts)?;
    let StorageFold { tops, mut lists, mut gone } = storage;
    let mut accounts = Vec::with_capacity(changes.accounts.len());
    let mut leaves = Vec::with_capacity(changes.accounts.len());
    for (change, top) in changes.accounts.into_iter().zip(tops) {
        let AccountLeafChange { hashed_address, old, new, slots } = change;
        let storage_root = match &top {
            Some(top) => top.root,
            None => old.map_or(EMPTY_ROOT_HASH, |account| account.storage_root),
        };
        if new.is_none() && storage_root != EMPTY_ROOT_HASH {
            return Err(FoldError::StorageWithoutAccount { hashed_address, got: storage_root });
        }
        let new = new.map(|info| info.with_storage_root(storage_root));
        let link = top.map(|top| top.node);
        // A storage trie that was written is linked, though it be the old one: wrong old values can make it so, and the
        // parent's nodes are given up all the same.
        if old != new || link.is_some() {
            leaves.push(Change { key: hashed_address, existed: old.is_some(), new, link });
        }
        accounts.push(AccountChange { hashed_address, old, new, slots });
    }
    let parent_state_root = parent.anchor().state_root;
    let (computed_state_root, top) = if leaves.is_empty() {
        (parent_state_root, before.top())
    } else {
        let mut descent = Descent::new(AccountLeaves(parent.clone()), before.forest(), fold.frame, options);
        let top = descent.trie(parent_state_root, before.top(), &leaves)?;
        let Descent { mut arena, lists: more, gone: more_gone, .. } = descent;
        lists.append(more);
        gone.extend(more_gone);
        levels::hash(&mut arena, &mut before.forest().writer(), fold.frame, &mut lists);
        (arena.root(top), arena.top(top))
    };
    let tries = before.forest().child(&before, &fold.frame, top, lists, gone);
    let diff = StateDiff { accounts, codes: changes.codes };
    Ok(FoldOutcome { computed_state_root, diff, tries })
}

/// The root of the trie of these leaves, which come strictly sorted by key; `None` if they do not.
pub fn trie_root<V: LeafValue>(leaves: impl IntoIterator<Item = (B256, V)>) -> Option<B256> {
    let mut trie = Growing::new(&Forest::new(usize::MAX));
    for (key, value) in leaves {
        if trie.newest().is_some_and(|newest| *newest >= key) {
            return None;
        }
        trie.push(key, value);
        if trie.is_due() {
            trie.hash(|_, _| ());
            trie.forget();
        }
    }
    Some(trie.finish())
}

/// The root of the storage trie of these slots, which come strictly sorted by hashed slot, none of them zero; `None` if
/// they do not.
pub fn storage_root(slots: impl IntoIterator<Item = (B256, U256)>) -> Option<B256> {
    let mut zero = false;
    let root = trie_root(slots.into_iter().inspect(|(_, value)| zero |= value.is_zero()));
    root.filter(|_| !zero)
}

fn check_sorted<E>(changes: &LeafChanges) -> Result<(), FoldError<E>> {
    fn check<T, E>(table: &'static str, changes: &[T], key: impl Fn(&T) -> B256) -> Result<(), FoldError<E>> {
        match changes.windows(2).position(|pair| key(&pair[0]) >= key(&pair[1])) {
            Some(at) => Err(FoldError::Unsorted { table, position: at + 1 }),
            None => Ok(()),
        }
    }
    check("account", &changes.accounts, |change| change.hashed_address)?;
    check("code", &changes.codes, |(hash, _)| *hash)?;
    changes.accounts.iter().try_for_each(|account| check("slot", &account.slots, |change| change.hashed_slot))
}

/// A resolved accumulation lists none of these; other callers may, and the difference must not.
fn drop_no_ops(changes: &mut LeafChanges) {
    changes.accounts.retain_mut(|account| {
        account.slots.retain(|slot| slot.old != slot.new);
        !account.slots.is_empty() || account.old.as_ref().map(Account::info) != account.new
    });
}

/// What all parts of one fold share.
struct Fold<'a> {
    before: &'a Version,
    frame: Frame,
    options: &'a FoldOptions,
}

/// A storage trie after the changes.
struct StorageTop {
    root: B256,
    node: NodeRef,
}

/// The storage tries after the changes, in the accounts' order; `None` where no slot changed.
struct StorageFold {
    tops: Vec<Option<StorageTop>>,
    lists: Lists,
    gone: Vec<NodeKey>,
}

impl Fold<'_> {
    fn storage<R: TrieReader>(
        &self,
        parent: &R,
        accounts: &[AccountLeafChange],
    ) -> Result<StorageFold, FoldError<R::Error>> {
        let slots: usize = accounts.iter().map(|account| account.slots.len()).sum();
        if !self.options.parallel || slots < self.options.parallel_slots {
            return self.storage_part(parent, accounts);
        }
        // A few parts for each thread, many small tries in each: tries differ in what they have to read. A large one is
        // shared out to threads itself.
        let runs = parts::cut(accounts.iter().map(|account| account.slots.len()), 4 * rayon::current_num_threads());
        let parts: Vec<_> = runs.into_par_iter().map(|run| self.storage_part(parent, &accounts[run])).collect();
        let tops = Vec::with_capacity(accounts.len());
        let mut all = StorageFold { tops, lists: Lists::new(self.before.forest()), gone: Vec::new() };
        // Of several failures the first in key order is reported, as a serial fold would.
        for part in parts {
            let part = part?;
            all.tops.extend(part.tops);
            all.lists.append(part.lists);
            all.gone.extend(part.gone);
        }
        Ok(all)
    }

    /// Some accounts' storage tries.
    fn storage_part<R: TrieReader>(
        &self,
        parent: &R,
        accounts: &[AccountLeafChange],
    ) -> Result<StorageFold, FoldError<R::Error>> {
        let source = SlotLeaves { reader: parent.clone(), hashed_address: B256::ZERO };
        let mut descent = Descent::new(source, self.before.forest(), self.frame, self.options);
        let mut nodes = Vec::with_capacity(accounts.len());
        let mut leaves = Vec::new();
        for change in accounts {
            if change.slots.is_empty() {
                nodes.push(None);
                continue;
            }
            leaves.clear();
            leaves.extend(change.slots.iter().map(|slot| Change {
                key: slot.hashed_slot,
                existed: !slot.old.is_zero(),
                new: (!slot.new.is_zero()).then_some(slot.new),
                link: None,
            }));
            descent.source.hashed_address = change.hashed_address;
            let (root, top) = match change.old {
                Some(account) => (account.storage_root, self.before.storage_top(&change.hashed_address)),
                None => (EMPTY_ROOT_HASH, NodeRef::UNLOADED),
            };
            nodes.push(Some(descent.trie(root, Top::storage(top), &leaves)?));
        }
        let Descent { mut arena, mut lists, gone, .. } = descent;
        levels::hash(&mut arena, &mut self.before.forest().writer(), self.frame, &mut lists);
        let tops = nodes
            .into_iter()
            .map(|node| node.map(|node| StorageTop { root: arena.root(node), node: arena.node_ref(node) }));
        Ok(StorageFold { tops: tops.collect(), lists, gone })
    }
}

/// The account trie of a reader's block.
#[derive(Debug, Clone)]
struct AccountLeaves<R>(R);

impl<R: TrieReader> TrieSource for AccountLeaves<R> {
    type Value = Account;
    type Error = R::Error;

    fn trie(&self) -> TrieId {
        TrieId::Accounts
    }

    fn row(&self, slot: &Nibbles) -> Result<Option<Bytes>, Self::Error> {
        self.0.durable_node(&NodeKey::new(TrieId::Accounts, *slot))
    }

    fn first_leaf(&self, start: &B256) -> Result<Option<(B256, Account)>, Self::Error> {
        Ok(self.0.accounts_from(start, 1)?.into_iter().next())
    }
}

/// A storage trie of a reader's block.
#[derive(Debug, Clone)]
struct SlotLeaves<R> {
    reader: R,
    hashed_address: B256,
}

impl<R: TrieReader> TrieSource for SlotLeaves<R> {
    type Value = U256;
    type Error = R::Error;

    fn trie(&self) -> TrieId {
        TrieId::Storage(self.hashed_address)
    }

    fn row(&self, slot: &Nibbles) -> Result<Option<Bytes>, Self::Error> {
        self.reader.durable_node(&NodeKey::new(TrieId::Storage(self.hashed_address), *slot))
    }

    fn first_leaf(&self, start: &B256) -> Result<Option<(B256, U256)>, Self::Error> {
        Ok(self.reader.slots_from(&self.hashed_address, start, 1)?.into_iter().next())
    }
}
