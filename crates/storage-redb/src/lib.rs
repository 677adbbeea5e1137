//! The redb backend of foldgate: state, tries and history of a chain in one file of a pure-Rust embedded database.
//!
//! Each commit is one durable write transaction (`Durability::Immediate`, with quick repair, so that a store reopens in
//! milliseconds after a kill). A snapshot is one read transaction with its tables open; redb serves it from any number
//! of threads at once.
//!
//! Invariants:
//! 1. A database file is open in one [`RedbStore`] at a time, of all processes; it is closed when the store and all its
//!    snapshots are gone.
//! 2. What is written first is the format: no row is read or written in a store of another format.
//!
//! | file | holds |
//! |---|---|
//! | `env` | opening: directory, lock, format |
//! | `error` | why something failed |
//! | `tables` | names and types of the tables |
//! | `reader` | the snapshot |
//! | `load` | a whole state into an empty store |
//! | `commit` | commit, unwind, prune |

mod commit;
mod env;
mod error;
mod load;
mod reader;
mod tables;

use std::{path::Path, sync::Arc};

use alloy_primitives::Bytes;
use foldgate_core::{
    BalStore, BlockNumHash, BlockNumber, CommitBatch, LoadError, LoadSource, Refusal, ReverseDiff, StateAnchor,
    TrieStore, UnwindBatch,
};

use crate::{env::Env, reader::View};
pub use crate::{env::Options, error::RedbError, reader::RedbSnapshot, tables::FORMAT_VERSION};

/// A durable store on redb.
#[derive(Debug)]
pub struct RedbStore {
    env: Arc<Env>,
}

impl RedbStore {
    /// Opens the store in the directory `dir`, and makes both if there is none. The directory belongs to the store.
    ///
    /// # Errors
    /// [`RedbError::AlreadyOpen`] if this or another process has it open; [`RedbError::FormatVersion`] or
    /// [`RedbError::RowFormat`] if another version of the software made it; [`RedbError::NotAStore`] if the database
    /// there is something else; [`RedbError::Directory`] or [`RedbError::Database`] if the machine fails.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self, RedbError> {
        Ok(Self { env: Arc::new(Env::open(dir.as_ref(), options)?) })
    }
}

impl TrieStore for RedbStore {
    type Error = RedbError;
    type Snapshot = RedbSnapshot;

    fn genesis(&self) -> Result<Option<StateAnchor>, RedbError> {
        View::new(&self.env)?.meta_anchor(tables::GENESIS)
    }

    fn tip(&self) -> Result<Option<StateAnchor>, RedbError> {
        View::new(&self.env)?.meta_anchor(tables::TIP)
    }

    fn snapshot(&self) -> Result<RedbSnapshot, RedbError> {
        let view = View::new(&self.env)?;
        let anchor = view.meta_anchor(tables::TIP)?.ok_or(Refusal::Empty)?;
        RedbSnapshot::new(&view, anchor)
    }

    fn load<L: LoadSource>(&self, source: L) -> Result<StateAnchor, LoadError<RedbError, L::Error>> {
        load::load(&self.env, source)
    }

    fn commit(&self, batch: &CommitBatch) -> Result<(), RedbError> {
        commit::commit(&self.env, batch)
    }

    fn unwind(&self, batch: &UnwindBatch) -> Result<(), RedbError> {
        commit::unwind(&self.env, batch)
    }

    fn committed(&self, number: BlockNumber) -> Result<Option<StateAnchor>, RedbError> {
        View::new(&self.env)?.committed(number)
    }

    fn reverse_diff(&self, number: BlockNumber) -> Result<Option<ReverseDiff>, RedbError> {
        View::new(&self.env)?.reverse_diff(number)
    }
}

impl BalStore for RedbStore {
    fn bal(&self, block: BlockNumHash) -> Result<Option<Bytes>, RedbError> {
        View::new(&self.env)?.bal(&block)
    }

    fn prune_below(&self, below: BlockNumber) -> Result<u64, RedbError> {
        commit::prune_below(&self.env, below)
    }
}
