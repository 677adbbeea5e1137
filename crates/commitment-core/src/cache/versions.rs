//! Which readers may use which entries of a cache that outlives the blocks it was filled at.
//!
//! A cache is told of each step of the durable state: forwards ([`Versions::advance`]), or anywhere else
//! ([`Versions::reset`]). Each step has a number of its own, its *version*, and no number is given twice: two blocks of
//! one height, before and after an unwind, have different ones. A reader holds the version of its block. An entry says
//! *since* which version its value holds.
//!
//! ```text
//!   reader of version r                               who has committed the block after it
//!   -------------------                               ------------------------------------
//!   get: the entry, if since <= r                     1. state: version + 1, anchor unknown
//!   put: under the state's read lock,                 2. sweep: each changed key that is cached gets its new
//!        if the version is still r and the               value, since = version + 1
//!        anchor known: since = r                      3. state: anchor = the new block
//! ```
//!
//! Invariants, and why a reader never sees another block's value:
//! 1. The version is raised before a sweep begins, and readers of the new version exist only after it has ended: a
//!    reader gets its version only while the anchor is known and is its own block.
//! 2. A put is made while the state's read lock is held and the version is the reader's. The write lock of step 1 waits
//!    for it, so every put of version `r` comes before the sweep of `r + 1`; a later one is refused.
//! 3. So when a sweep has ended, an entry of a key that the step changed has `since` of that step's version, or there is
//!    none. An entry with an older `since` is of a key that did not change, and its value holds for the new version too.
//!    By induction an entry's value holds for each version from `since` to the newest.
//! 4. A reader of version `r` uses entries of `since <= r` only, and `r` is not newer than the newest version: by 3 the
//!    value is that of its block. What a sweep writes meanwhile is newer, and passed over.
//! 5. A reset empties the cache in its sweep. Entries put or swept afterwards have a `since` beyond every version given
//!    out before, so readers of blocks that were left behind find nothing and put nothing.
//! 6. If a sweep is cut off by a panic, the anchor stays unknown: nobody gets the version, and the next step resets.
//!
//! Locks are taken in the order `steps`, `state`, the index's own. No lock is held while a store is read.

use std::sync::PoisonError;

use super::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The number of a step of the durable state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u64);

/// A value, and since which version it holds.
#[derive(Debug, Clone)]
pub(crate) struct Dated<V> {
    pub(crate) since: Version,
    pub(crate) value: V,
}

/// Where the entries are. Each call is atomic, and any entry may be gone at any time.
pub(crate) trait Index {
    type Key;
    type Value;

    /// What is found of the entry.
    fn get(&self, key: &Self::Key) -> Option<Dated<Self::Value>>;

    /// Whether there is an entry.
    fn holds(&self, key: &Self::Key) -> bool;

    /// Puts an entry, in the place of the one that there is.
    fn put(&self, key: Self::Key, entry: Dated<Self::Value>);

    /// Puts an entry in the place of the one that there is; where there is none, or the new one does not fit, there is
    /// none afterwards.
    fn replace(&self, key: Self::Key, entry: Dated<Self::Value>);

    /// Removes all entries.
    fn clear(&self);
}

#[derive(Debug)]
struct State<A> {
    version: Version,
    /// The block that the version is of; `None` before the first one, and while a sweep is under way.
    anchor: Option<A>,
}

/// An index that is used by the rules above. `A` names a block.
#[derive(Debug)]
pub(crate) struct Versions<A, I> {
    index: I,
    /// Held for a whole step: steps wait for each other.
    steps: Mutex<()>,
    state: RwLock<State<A>>,
}

impl<A: PartialEq, I: Index> Versions<A, I> {
    pub(crate) fn new(index: I) -> Self {
        Self { index, steps: Mutex::new(()), state: RwLock::new(State { version: Version(0), anchor: None }) }
    }

    pub(crate) const fn index(&self) -> &I {
        &self.index
    }

    // A panic while a lock is held leaves the state whole: see invariant 6.

    fn state(&self) -> RwLockReadGuard<'_, State<A>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State<A>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version for a reader of this block, if it is the newest one.
    pub(crate) fn version_of(&self, anchor: &A) -> Option<Version> {
        let state = self.state();
        (state.anchor.as_ref() == Some(anchor)).then_some(state.version)
    }

    /// The value of a key at the reader's version, if it is at hand.
    pub(crate) fn get(&self, reader: Version, key: &I::Key) -> Option<I::Value> {
        self.index.get(key).filter(|entry| entry.since <= reader).map(|entry| entry.value)
    }

    /// Keeps what a reader has read in its own snapshot; drops it where the reader's version is not the newest one.
    pub(crate) fn put_all(&self, reader: Version, entries: impl Iterator<Item = (I::Key, I::Value)>) {
        let state = self.state();
        if state.version == reader && state.anchor.is_some() {
            for (key, value) in entries {
                self.index.put(key, Dated { since: reader, value });
            }
        }
    }

    /// Steps from block `from` to `to`; `changed` gives each key whose value differs, with its new value. Where `from` is
    /// not the newest block known, it is a reset. Says whether it was not.
    pub(crate) fn advance(
        &self,
        from: &A,
        to: A,
        changed: impl Iterator<Item = (I::Key, impl Into<I::Value>)>,
    ) -> bool {
        let _steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let (leads_on, version) = self.begin_step(Some(from));
        if leads_on {
            // Nobody puts anything meanwhile: what is not there stays so, and its value need not be made.
            for (key, value) in changed.filter(|(key, _)| self.index.holds(key)) {
                self.index.replace(key, Dated { since: version, value: value.into() });
            }
        } else {
            self.index.clear();
        }
        self.state_mut().anchor = Some(to);
        leads_on
    }

    /// Steps to block `to` from anywhere: nothing is kept.
    pub(crate) fn reset(&self, to: A) {
        let _steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        self.begin_step(None);
        self.index.clear();
        self.state_mut().anchor = Some(to);
    }

    /// Raises the version. Says whether the newest block was `from`.
    fn begin_step(&self, from: Option<&A>) -> (bool, Version) {
        let mut state = self.state_mut();
        let leads_on = from.is_some() && state.anchor.as_ref() == from;
        state.anchor = None;
        state.version.0 += 1;
        (leads_on, state.version)
    }
}
