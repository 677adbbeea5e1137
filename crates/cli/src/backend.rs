//! Which store a command works on, and how it is opened.
//!
//! Invariant: everything else in this crate is generic over the store; a backend is named here and nowhere else.

use std::{error::Error, fmt, path::Path, path::PathBuf};

use clap::ValueEnum;
use foldgate_core::{BalStore, MemoryStore, TrieStore};

/// The stores that the tool can work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendKind {
    /// In memory, gone when the command ends.
    Memory,
    /// One file, managed by redb.
    Redb,
    /// One file, managed by libmdbx.
    Mdbx,
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Redb => "redb",
            Self::Mdbx => "mdbx",
        })
    }
}

/// Why a store could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The tool was built without this backend.
    #[error("this tool was built without the {backend} backend: build it with the cargo feature `{backend}`")]
    NotCompiledIn {
        /// The backend asked for.
        backend: BackendKind,
    },
    /// The store's directory holds nothing that can be opened.
    #[error("opening the {backend} store in {}", path.display())]
    Open {
        /// The backend.
        backend: BackendKind,
        /// The store's directory.
        path: PathBuf,
        /// The store's reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A directory was named for a store that has none.
    #[error("the memory backend keeps nothing, so it takes no directory (got {})", path.display())]
    NoDirectory {
        /// The directory given.
        path: PathBuf,
    },
    /// A temporary directory could not be made.
    #[error("making a temporary directory")]
    TemporaryDirectory(#[source] std::io::Error),
}

/// Opens stores of one kind.
pub trait Backend: Copy + Send + Sync {
    /// The store.
    type Store: TrieStore + BalStore;

    /// Opens the store in `directory`, which is made where it is not there. `cache_bytes` bounds the store's own
    /// cache, where it has one.
    ///
    /// # Errors
    /// [`BackendError::Open`].
    fn open(self, directory: &Path, cache_bytes: usize) -> Result<Self::Store, BackendError>;

    /// Whether the store lives in a directory.
    fn is_durable(self) -> bool;
}

/// What a command does on any backend.
pub trait OnBackend {
    /// What comes of it.
    type Output;

    /// Does it.
    fn on<B: Backend>(self, backend: B) -> Self::Output;
}

impl BackendKind {
    /// Does `work` on this backend.
    ///
    /// # Errors
    /// [`BackendError::NotCompiledIn`].
    pub fn run<W: OnBackend>(self, work: W) -> Result<W::Output, BackendError> {
        match self {
            Self::Memory => Ok(work.on(Memory)),
            Self::Redb | Self::Mdbx => Err(BackendError::NotCompiledIn { backend: self }),
        }
    }
}

/// [`BackendKind::Memory`].
#[derive(Debug, Clone, Copy)]
struct Memory;

impl Backend for Memory {
    type Store = MemoryStore;

    fn open(self, _directory: &Path, _cache_bytes: usize) -> Result<MemoryStore, BackendError> {
        Ok(MemoryStore::default())
    }

    fn is_durable(self) -> bool {
        false
    }
}
