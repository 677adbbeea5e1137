//! Opening: the directory, the lock, the format.
//!
//! Invariants:
//! 1. redb locks its file: a second open fails, in this process and in others.
//! 2. The tables and the format are made in one transaction; a store without a format has no table.

use std::{fs, path::Path};

use foldgate_core::record::ROW_FORMAT;
use redb::{Database, DatabaseError, Durability, ReadableDatabase, TableError, WriteTransaction};

use crate::{
    error::RedbError,
    tables::{
        ACCOUNTS, ANCHORS, BALS, BLOCK_HASHES, CODES, FORMAT_VERSION, FORMAT_VERSION_KEY, META, REVERSE_DIFFS,
        ROW_FORMAT_KEY, SLOTS, decode_version,
    },
};

/// The database's file within the store's directory.
const FILE: &str = "foldgate.redb";

/// How a store is opened. None of it is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// How many bytes of pages redb keeps in memory. Its memory use was measured at up to 1.7 times this.
    pub cache_bytes: usize,
}

impl Default for Options {
    /// A cache of 512 MiB.
    fn default() -> Self {
        Self { cache_bytes: 512 << 20 }
    }
}

impl Options {
    /// Sets [`Options::cache_bytes`].
    pub const fn with_cache_bytes(mut self, bytes: usize) -> Self {
        self.cache_bytes = bytes;
        self
    }
}

/// An open database of the right format.
#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) db: Database,
}

impl Env {
    pub(crate) fn open(dir: &Path, options: Options) -> Result<Self, RedbError> {
        fs::create_dir_all(dir).map_err(|source| RedbError::Directory { path: dir.to_owned(), source })?;
        let opened = Database::builder().set_cache_size(options.cache_bytes).create(dir.join(FILE));
        let db = opened.map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => RedbError::AlreadyOpen { path: dir.to_owned() },
            other => other.into(),
        })?;
        let env = Self { db };
        if !env.has_format(dir)? {
            env.create_tables()?;
        }
        Ok(env)
    }

    /// Whether the store has a format, which is then the right one.
    fn has_format(&self, dir: &Path) -> Result<bool, RedbError> {
        let txn = self.db.begin_read()?;
        let meta = match txn.open_table(META) {
            Ok(meta) => meta,
            Err(TableError::TableDoesNotExist(_)) if txn.list_tables()?.next().is_none() => return Ok(false),
            Err(TableError::TableDoesNotExist(_) | TableError::TableTypeMismatch { .. }) => {
                return Err(RedbError::NotAStore { path: dir.to_owned() });
            }
            Err(other) => return Err(other.into()),
        };
        let version = |key| match meta.get(key)? {
            Some(row) => decode_version(key, row.value()),
            None => Err(RedbError::NotAStore { path: dir.to_owned() }),
        };
        let got = version(FORMAT_VERSION_KEY)?;
        if got != FORMAT_VERSION {
            return Err(RedbError::FormatVersion { got, expected: FORMAT_VERSION });
        }
        let got = version(ROW_FORMAT_KEY)?;
        if got != ROW_FORMAT {
            return Err(RedbError::RowFormat { got, expected: ROW_FORMAT });
        }
        Ok(true)
    }

    fn create_tables(&self) -> Result<(), RedbError> {
        let txn = self.begin_write()?;
        {
            txn.open_table(ACCOUNTS)?;
            txn.open_table(SLOTS)?;
            txn.open_table(CODES)?;
            txn.open_table(BLOCK_HASHES)?;
            txn.open_table(ANCHORS)?;
            txn.open_table(REVERSE_DIFFS)?;
            txn.open_table(BALS)?;
            let mut meta = txn.open_table(META)?;
            meta.insert(FORMAT_VERSION_KEY, FORMAT_VERSION.to_be_bytes().as_slice())?;
            meta.insert(ROW_FORMAT_KEY, ROW_FORMAT.to_be_bytes().as_slice())?;
        }
        Ok(txn.commit()?)
    }

    /// A durable write transaction. Waits for the one before it; dropped, it leaves no trace.
    pub(crate) fn begin_write(&self) -> Result<WriteTransaction, RedbError> {
        let mut txn = self.db.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        txn.set_quick_repair(true);
        Ok(txn)
    }
}
