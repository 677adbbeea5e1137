//! The core of foldgate: state types, storage traits, the trie fold, and the page cache over a store. It does no I/O, names
//! no backend, and knows no thread's protocol but the cache's own ([`cache`]).
//!
//! The way of a block through it:
//!
//! ```text
//! StateWrites (plain keys, from execution)        an access list, its keys hashed by foldgate-bal
//!      |  HashedPostState::apply_writes                 |
//!      v                                                v
//! HashedPostState --resolve(parent)--> LeafChanges --fold(parent)--> FoldOutcome { state_root, StateDiff, TrieUpdates }
//!                                                                        |  Layer: visible to children, in memory
//!                                                                        v
//!                                                                   CommitBatch --> TrieStore
//! ```

pub mod account;
pub mod affinity;
pub mod block;
pub mod cache;
pub mod diff;
pub mod forward;
pub mod hashed;
pub mod keys;
pub mod memory;
pub mod node;
pub mod overlay;
mod parts;
pub mod record;
pub mod redo;
pub mod resolve;
mod sorted;
pub mod store;
pub mod trie;
pub mod unwind;
pub mod witness;
pub mod writes;

pub use account::{Account, AccountInfo};
pub use alloy_trie::{EMPTY_ROOT_HASH, Nibbles};
pub use block::{BlockAccessIndex, BlockFacts, BlockHash, BlockNumHash, BlockNumber, StateAnchor};
pub use cache::{CacheStats, Cached, PageCache, ReadAhead, TouchedAccount, TouchedSlot, Warmed};
pub use diff::{AccountChange, LeafChanges, ReverseDiff, SlotChange, StateDiff};
pub use forward::ForwardDiff;
pub use hashed::{AccountDelta, EmptyAccounts, HashedPostState, WrittenKey};
pub use keys::KeyHasher;
pub use memory::{MemoryError, MemorySnapshot, MemoryStore};
pub use node::{NodeKey, TrieId, TrieUpdates};
pub use overlay::{BrokenOverlay, Layer, Overlay};
pub use redo::{BlockRecord, MalformedRecord, Record, RecordLog, Redo};
pub use resolve::{resolve, resolve_all, resolve_with};
pub use store::{
    BackendError, BalSource, BalStore, CommitBatch, CommittedBlock, LoadError, LoadOrder, LoadSource, Refusal,
    Retention, Rows, StateReader, TrieReader, TrieStore, UnwindBatch,
};
pub use trie::{FoldError, FoldOptions, FoldOutcome, Forest, Version, fold};
pub use unwind::{UnwindError, Unwound, compute_unwind, compute_way, unwind, unwound_layers};
pub use witness::{Witness, WitnessError};
pub use writes::{AccountWrites, CodeWrite, StateWrites};
