//! The MDBX backend of foldgate: state, tries and history of a chain in one memory-mapped database.
//!
//! Each commit is one durable write transaction (`SyncMode::Durable`). A snapshot is a few read transactions of one
//! version of the database, so that several threads read it without waiting for each other ([`MdbxSnapshot`]).
//!
//! A snapshot that lives long keeps every page that was replaced since: the file grows while it lives, and the pages are
//! used again afterwards.
//!
//! Invariants:
//! 1. A database directory is open in one [`MdbxStore`] at a time, of all processes; it is closed when the store and all
//!    its snapshots are gone.
//! 2. What is written first is the format: no row is read or written in a store of another format.
//! 3. One write transaction at a time: libmdbx lets writers of one process wait for each other, the lock keeps other
//!    processes out, and no function here opens a second one while it holds the first.
//!
//! | file | holds |
//! |---|---|
//! | `env` | opening: directory, lock, format; the only file that calls libmdbx |
//! | `error` | why something failed |
//! | `tables` | names of the tables, and how rows are decoded |
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
    BalStore, BlockNumHash, BlockNumber, CommitBatch, LoadError, LoadSource, ReverseDiff, StateAnchor, TrieStore,
    UnwindBatch,
};

use crate::{env::Env, reader::View};
pub use crate::{env::Options, error::MdbxError, reader::MdbxSnapshot, tables::FORMAT_VERSION};

/// A durable store on MDBX.
#[derive(Debug)]
pub struct MdbxStore {
    env: Arc<Env>,
}

impl MdbxStore {
    /// Opens the store in the directory `dir`, and makes both if there is none. The directory belongs to the store.
    ///
    /// # Errors
    /// [`MdbxError::AlreadyOpen`] if this or another process has it open; [`MdbxError::FormatVersion`] or
    /// [`MdbxError::RowFormat`] if another version of the software made it; [`MdbxError::NotAStore`] if the database
    /// there is something else; [`MdbxError::Directory`] or [`MdbxError::Database`] if the machine fails.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self, MdbxError> {
        Ok(Self { env: Arc::new(Env::open(dir.as_ref(), options)?) })
    }
}

impl TrieStore for MdbxStore {
    type Error = MdbxError;
    type Snapshot = MdbxSnapshot;

    fn genesis(&self) -> Result<Option<StateAnchor>, MdbxError> {
        View::new(&self.env)?.meta_anchor(tables::GENESIS)
    }

    fn tip(&self) -> Result<Option<StateAnchor>, MdbxError> {
        View::new(&self.env)?.meta_anchor(tables::TIP)
    }

    fn snapshot(&self) -> Result<MdbxSnapshot, MdbxError> {
        MdbxSnapshot::new(View::new(&self.env)?)
    }

    fn load<L: LoadSource>(&self, source: L) -> Result<StateAnchor, LoadError<MdbxError, L::Error>> {
        load::load(&self.env, source)
    }

    fn commit(&self, batch: &CommitBatch) -> Result<(), MdbxError> {
        commit::commit(&self.env, batch)
    }

    fn unwind(&self, batch: &UnwindBatch) -> Result<(), MdbxError> {
        commit::unwind(&self.env, batch)
    }

    fn committed(&self, number: BlockNumber) -> Result<Option<StateAnchor>, MdbxError> {
        View::new(&self.env)?.committed(number)
    }

    fn reverse_diff(&self, number: BlockNumber) -> Result<Option<ReverseDiff>, MdbxError> {
        View::new(&self.env)?.reverse_diff(number)
    }
}

impl BalStore for MdbxStore {
    fn bal(&self, block: BlockNumHash) -> Result<Option<Bytes>, MdbxError> {
        View::new(&self.env)?.bal(&block)
    }

    fn prune_below(&self, below: BlockNumber) -> Result<u64, MdbxError> {
        commit::prune_below(&self.env, below)
    }
}
