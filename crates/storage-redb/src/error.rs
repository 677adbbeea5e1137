//! Why the store failed or refused.
//!
//! Invariant: what the caller may ask for and must not get is a [`Refusal`]; what is wrong with the bytes on disk names
//! the table and the key; everything else is the database's own error.

use std::{io, path::PathBuf};

use alloy_primitives::Bytes;
use foldgate_core::{BackendError, Refusal};

/// Why a [`RedbStore`](crate::RedbStore) did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedbError {
    /// The store refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// redb failed.
    #[error("redb: {0}")]
    Database(#[source] Box<redb::Error>),
    /// A row does not hold what was written there.
    #[error("corrupt row in table {table} at key {key}")]
    CorruptRow {
        /// The table.
        table: &'static str,
        /// The row's key.
        key: Bytes,
    },
    /// Another version of the software made the store.
    #[error("the store has format version {got}, this software reads {expected}")]
    FormatVersion {
        /// The store's version.
        got: u32,
        /// [`FORMAT_VERSION`](crate::FORMAT_VERSION).
        expected: u32,
    },
    /// The store's rows mean something else.
    #[error("the store has row format {got}, this software reads {expected}")]
    RowFormat {
        /// The store's row format.
        got: u32,
        /// [`foldgate_core::record::ROW_FORMAT`].
        expected: u32,
    },
    /// The database there was made by something else.
    #[error("the database in {path} is not a store of this software")]
    NotAStore {
        /// The store's directory.
        path: PathBuf,
    },
    /// This process or another has the store open.
    #[error("the store in {path} is already open")]
    AlreadyOpen {
        /// The store's directory.
        path: PathBuf,
    },
    /// The store's directory cannot be made or used.
    #[error("cannot use the directory {path}: {source}")]
    Directory {
        /// The store's directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl RedbError {
    pub(crate) fn corrupt(table: &'static str, key: &[u8]) -> Self {
        Self::CorruptRow { table, key: Bytes::copy_from_slice(key) }
    }
}

impl BackendError for RedbError {
    fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for RedbError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        }
    )*};
}

from_redb!(
    redb::CommitError,
    redb::CursorError,
    redb::DatabaseError,
    redb::SetDurabilityError,
    redb::StorageError,
    redb::TableError,
    redb::TransactionError
);
