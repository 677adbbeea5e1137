//! A whole state from its sorted leaves, streamed into an empty store.
//!
//! Items come flat: an account, then its slots, then the next account; codes anywhere between. So neither the source
//! nor the load ever holds more than one piece, whatever the number of accounts or of slots in one account.
//!
//! Invariants:
//! 1. Accounts come strictly sorted by hashed address, the slots of each by hashed slot, codes by hash: anything else
//!    is a typed error, and the store stays empty.
//! 2. Memory is bounded by the size of a piece and the depth of two tries.
//! 3. The rows are those that any sequence of folds to the same state leaves behind.
//!
//! Nodes are hashed as a fold hashes them (`levels`), some thousands at a time: those whose subtrie is complete
//! wait in an arena until there are enough of them, or the piece ends. An account with storage waits for its root.
//!
//! # Order of the rows
//!
//! Pieces follow on each other in every table, but for the branches that are open where two pieces meet: each is a row
//! of the piece in which its last child comes, though it is filed before its children. A piece has no more of them than
//! a trie is deep, so a store appends nearly all rows.
//!
//! # Working ahead
//!
//! ```text
//! [read items] --batches--> [tries, hashes] --pieces--> [the calling thread: TrieStore::load writes rows]
//! ```
//!
//! The channels hold a few batches and pieces, so whoever is fast waits for the slowest. The end of a channel is no end
//! of a state: only a message says that. So a thread that dies makes the load fail, and the store stays empty.

mod ahead;
mod genesis;
mod growing;
mod progress;
mod state_items;
mod tries;

use std::{io, thread};

use alloy_primitives::{B256, Bytes, U256};

pub(super) use self::growing::Growing;
pub use self::{
    genesis::{GenesisAccount, genesis_items},
    progress::{LoadObserver, LoadProgress},
    state_items::{ItemsError, StateItems},
};
use self::{
    progress::Watch,
    tries::{Piece, Tries},
};
use crate::{
    account::AccountInfo,
    block::{BlockNumHash, StateAnchor},
    store::{LoadError, LoadSource, Rows, TrieStore},
};

/// The size of a piece, roughly, unless told otherwise.
pub const DEFAULT_PIECE_BYTES: usize = 8 << 20;

/// One item of a state. See the module's description for their order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadItem {
    /// Code of any number of accounts, given once.
    Code {
        /// keccak256 of the code; checked.
        code_hash: B256,
        /// The code.
        code: Bytes,
    },
    /// An account; its slots follow.
    Account {
        /// keccak256 of the address.
        hashed_address: B256,
        /// The account's fields. Its storage root is computed.
        info: AccountInfo,
    },
    /// A slot of the account that came last.
    Slot {
        /// keccak256 of the slot.
        hashed_slot: B256,
        /// The value, not zero.
        value: U256,
    },
}

/// Why a state cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BulkError<E> {
    /// The source of the items failed.
    #[error("reading the state to load failed")]
    Source(#[source] E),
    /// A key is not above the one before it.
    #[error("the {table} {got} does not come after {previous}")]
    Unsorted {
        /// Which items.
        table: &'static str,
        /// The key at fault.
        got: B256,
        /// The key before it.
        previous: B256,
    },
    /// A slot comes before any account.
    #[error("the slot {hashed_slot} belongs to no account")]
    SlotWithoutAccount {
        /// keccak256 of the slot.
        hashed_slot: B256,
    },
    /// A slot is zero: such a slot is not part of a state.
    #[error("the slot {hashed_slot} of account {hashed_address} is zero")]
    ZeroSlot {
        /// keccak256 of the address.
        hashed_address: B256,
        /// keccak256 of the slot.
        hashed_slot: B256,
    },
    /// Code has another hash than the one given with it.
    #[error("code has the hash {got}, not {expected}")]
    CodeHashMismatch {
        /// The code's hash.
        got: B256,
        /// The hash given with it.
        expected: B256,
    },
    /// The state has another root than the one it was said to have.
    #[error("the loaded state has the root {got}, not {expected}")]
    StateRootMismatch {
        /// The state's root.
        got: B256,
        /// The root it was said to have.
        expected: B256,
    },
    /// The anchor was asked for before all rows were taken.
    #[error("the load has not come to its end")]
    Unfinished,
    /// A thread to work ahead could not be started.
    #[error("no thread can be started for the load: {0}")]
    Thread(io::ErrorKind),
}

/// Turns the items of a state into rows: all at once into a store ([`Self::load_into`]), or, as a [`LoadSource`], piece
/// by piece on the thread that asks.
#[derive(Debug)]
pub struct StateLoad<I, O = ()> {
    items: I,
    pieces: Pieces,
    end: End,
    threads: usize,
    watch: Watch<O>,
}

impl<I, E> StateLoad<I>
where
    I: Iterator<Item = Result<LoadItem, E>>,
{
    /// The state of `block` from its items.
    pub fn new(items: I, block: BlockNumHash) -> Self {
        Self {
            items,
            pieces: Pieces { tries: Tries::default(), piece_bytes: DEFAULT_PIECE_BYTES, state_root: None },
            end: End { block, expected_state_root: None },
            threads: thread::available_parallelism().map_or(1, usize::from),
            watch: Watch::new(()),
        }
    }
}

impl<I, O> StateLoad<I, O> {
    /// Holds the computed root to this one.
    pub const fn expecting(mut self, expected_state_root: B256) -> Self {
        self.end.expected_state_root = Some(expected_state_root);
        self
    }

    /// Ends a piece as soon as it holds about this many bytes. Memory holds a few pieces.
    pub const fn with_piece_bytes(mut self, piece_bytes: usize) -> Self {
        self.pieces.piece_bytes = piece_bytes;
        self
    }

    /// How many threads [`Self::load_into`] may keep busy, the calling one included; as many as there are processors,
    /// unless told otherwise. With two, the calling thread writes rows while another makes the next ones; with three
    /// or more, a third one reads the items.
    pub const fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Tells `observer` how far the load has come, on the thread that writes.
    pub fn observed_by<P: LoadObserver>(self, observer: P) -> StateLoad<I, P> {
        let Self { items, pieces, end, threads, watch: _ } = self;
        StateLoad { items, pieces, end, threads, watch: Watch::new(observer) }
    }
}

impl<I, E, O> StateLoad<I, O>
where
    I: Iterator<Item = Result<LoadItem, E>> + Send,
    E: std::error::Error + Send + Sync + 'static,
    O: LoadObserver,
{
    /// Fills an empty store with the state, working ahead of the writes. The outcome is that of
    /// [`TrieStore::load`] with this source.
    ///
    /// # Errors
    /// As [`TrieStore::load`]; [`BulkError::Thread`] if the system has no more threads. The store stays as it was.
    ///
    /// # Panics
    /// If the iterator of the items panics. The store stays as it was.
    pub fn load_into<S: TrieStore>(self, store: &S) -> Result<StateAnchor, LoadError<S::Error, BulkError<E>>> {
        if self.threads < 2 { store.load(self) } else { ahead::load(store, self) }
    }
}

impl<I, E, O> LoadSource for StateLoad<I, O>
where
    I: Iterator<Item = Result<LoadItem, E>>,
    E: std::error::Error + Send + Sync + 'static,
    O: LoadObserver,
{
    type Error = BulkError<E>;

    fn next_rows(&mut self) -> Result<Option<Rows>, Self::Error> {
        self.watch.written();
        let items = &mut self.items;
        let piece = self.pieces.next(|| items.next().map(|item| item.map_err(BulkError::Source)))?;
        Ok(self.watch.give(piece))
    }

    fn anchor(&mut self) -> Result<StateAnchor, Self::Error> {
        self.end.anchor(self.pieces.state_root)
    }
}

/// A state's rows in the making.
#[derive(Debug)]
struct Pieces {
    tries: Tries,
    piece_bytes: usize,
    /// Known once all items came.
    state_root: Option<B256>,
}

impl Pieces {
    /// The next piece, or none at the end.
    fn next<E>(
        &mut self,
        mut next_item: impl FnMut() -> Option<Result<LoadItem, BulkError<E>>>,
    ) -> Result<Option<Piece>, BulkError<E>> {
        if self.state_root.is_some() {
            return Ok(None);
        }
        while self.tries.piece_bytes() < self.piece_bytes.max(1) {
            match next_item() {
                Some(item) => self.tries.add(item?)?,
                None => {
                    self.state_root = Some(self.tries.finish());
                    break;
                }
            }
        }
        let piece = self.tries.take_piece();
        Ok((!piece.rows.is_empty()).then_some(piece))
    }
}

/// What a load ends with.
#[derive(Debug, Clone, Copy)]
struct End {
    block: BlockNumHash,
    expected_state_root: Option<B256>,
}

impl End {
    /// The anchor of the state whose root was computed, if it was.
    fn anchor<E>(&self, computed_state_root: Option<B256>) -> Result<StateAnchor, BulkError<E>> {
        let got = computed_state_root.ok_or(BulkError::Unfinished)?;
        match self.expected_state_root {
            Some(expected) if expected != got => Err(BulkError::StateRootMismatch { got, expected }),
            _ => Ok(StateAnchor { block: self.block, state_root: got }),
        }
    }
}

/// The root of the state of these items, which is loaded nowhere. A genesis block's hash depends on it.
///
/// # Errors
/// As the load of these items.
pub fn state_root<E>(items: impl IntoIterator<Item = Result<LoadItem, E>>) -> Result<B256, BulkError<E>> {
    let mut state = Tries::default();
    for item in items {
        state.add(item.map_err(BulkError::Source)?)?;
        if state.piece_bytes() >= DEFAULT_PIECE_BYTES {
            state.take_piece();
        }
    }
    Ok(state.finish())
}
