//! Which store a command works on, and how it is opened.
//!
//! Invariant: everything else in this crate is generic over the store; a backend is named here and nowhere else.

use std::{
    error::Error,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::ValueEnum;
use foldgate_core::{BalStore, MemoryStore, TrieStore};
use foldgate_record_log::{FileLog, LogError, Options as LogOptions};

/// The folder of the record log within a store's directory.
const LOG: &str = "log";

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
        f.write_str(self.name())
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
    /// The record log beside the store does not open.
    #[error("opening the record log in {}", path.display())]
    Log {
        /// The log's folder.
        path: PathBuf,
        /// The log's reason.
        source: Box<LogError>,
    },
    /// A directory was named for a store that has none.
    #[error("the memory backend keeps nothing, so it takes no directory (got {})", path.display())]
    NoDirectory {
        /// The directory given.
        path: PathBuf,
    },
    /// The directory holds the store of another backend.
    #[error("{} holds a store of the {found} backend, not of {backend}", path.display())]
    OtherBackend {
        /// The backend asked for.
        backend: BackendKind,
        /// The backend whose store is there.
        found: BackendKind,
        /// The directory.
        path: PathBuf,
    },
    /// A temporary directory could not be made.
    #[error("making a temporary directory")]
    TemporaryDirectory(#[source] std::io::Error),
}

/// Opens stores of one kind.
pub trait Backend: Copy + Send + Sync + 'static {
    /// The store.
    type Store: TrieStore + BalStore;

    /// Opens the store in `directory`, which is made where it is not there. `cache_bytes` bounds the store's own
    /// cache, where it has one.
    ///
    /// # Errors
    /// [`BackendError::Open`].
    fn open(self, directory: &Path, cache_bytes: usize) -> Result<Self::Store, BackendError>;

    /// Which backend it is.
    fn kind(self) -> BackendKind;

    /// Whether the store lives in a directory.
    fn is_durable(self) -> bool {
        self.kind().file().is_some()
    }
}

/// What a command does on any backend.
pub trait OnBackend {
    /// What comes of it.
    type Output;

    /// Does it.
    fn on<B: Backend>(self, backend: B) -> Self::Output;
}

impl BackendKind {
    /// The file by which a store's directory is known, whether the backend is compiled in or not.
    const fn file(self) -> Option<&'static str> {
        match self {
            Self::Memory => None,
            Self::Redb => Some("foldgate.redb"),
            Self::Mdbx => Some("mdbx.dat"),
        }
    }

    /// Refuses a directory that holds the store of another backend: a second store beside it would be empty.
    fn check_directory(self, path: &Path) -> Result<(), BackendError> {
        let others = [Self::Redb, Self::Mdbx].into_iter().filter(|other| *other != self);
        let mut there = others.filter(|other| other.file().is_some_and(|file| path.join(file).exists()));
        match there.next() {
            Some(found) => Err(BackendError::OtherBackend { backend: self, found, path: path.to_owned() }),
            None => Ok(()),
        }
    }

    /// The backends that this tool was built with.
    pub const BUILT_IN: &[Self] = &[
        Self::Memory,
        #[cfg(feature = "redb")]
        Self::Redb,
        #[cfg(feature = "mdbx")]
        Self::Mdbx,
    ];

    /// The name by which arguments know it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redb => "redb",
            Self::Mdbx => "mdbx",
        }
    }

    /// Does `work` on this backend.
    ///
    /// # Errors
    /// [`BackendError::NotCompiledIn`].
    pub fn run<W: OnBackend>(self, work: W) -> Result<W::Output, BackendError> {
        match self {
            Self::Memory => Ok(work.on(Memory)),
            #[cfg(feature = "redb")]
            Self::Redb => Ok(work.on(Redb)),
            #[cfg(feature = "mdbx")]
            Self::Mdbx => Ok(work.on(Mdbx)),
            #[cfg(not(all(feature = "redb", feature = "mdbx")))]
            absent => Err(BackendError::NotCompiledIn { backend: absent }),
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

    fn kind(self) -> BackendKind {
        BackendKind::Memory
    }
}

/// [`BackendKind::Redb`].
#[cfg(feature = "redb")]
#[derive(Debug, Clone, Copy)]
struct Redb;

#[cfg(feature = "redb")]
impl Backend for Redb {
    type Store = foldgate_storage_redb::RedbStore;

    fn open(self, directory: &Path, cache_bytes: usize) -> Result<Self::Store, BackendError> {
        let options = foldgate_storage_redb::Options::default().with_cache_bytes(cache_bytes);
        foldgate_storage_redb::RedbStore::open(directory, options)
            .map_err(|error| open_error(BackendKind::Redb, directory, error))
    }

    fn kind(self) -> BackendKind {
        BackendKind::Redb
    }
}

/// [`BackendKind::Mdbx`]. It has no cache of its own: the system's is its cache.
#[cfg(feature = "mdbx")]
#[derive(Debug, Clone, Copy)]
struct Mdbx;

#[cfg(feature = "mdbx")]
impl Backend for Mdbx {
    type Store = foldgate_storage_mdbx::MdbxStore;

    fn open(self, directory: &Path, cache_bytes: usize) -> Result<Self::Store, BackendError> {
        let defaults = foldgate_storage_mdbx::Options::default();
        // The file grows in steps; a small store should stay a small file.
        let growth = defaults.growth_bytes.min(cache_bytes);
        foldgate_storage_mdbx::MdbxStore::open(directory, defaults.with_growth_bytes(growth))
            .map_err(|error| open_error(BackendKind::Mdbx, directory, error))
    }

    fn kind(self) -> BackendKind {
        BackendKind::Mdbx
    }
}

#[cfg(any(feature = "redb", feature = "mdbx"))]
fn open_error(backend: BackendKind, directory: &Path, error: impl Error + Send + Sync + 'static) -> BackendError {
    BackendError::Open { backend, path: directory.to_owned(), source: Box::new(error) }
}

/// A store in a directory of its own: the one named, or a temporary one that goes with this.
#[derive(Debug)]
pub struct Home<S> {
    // Dropped in this order: the store is closed before its directory is removed.
    store: Arc<S>,
    /// `None` for a store that has none.
    directory: Option<PathBuf>,
    _temporary: Option<tempfile::TempDir>,
}

impl<S> Home<S> {
    /// Opens a store in `directory`, or in a temporary one.
    ///
    /// # Errors
    /// If there is no such directory to be had, or the store does not open.
    pub fn open<B: Backend<Store = S>>(
        backend: B,
        directory: Option<&Path>,
        cache_bytes: usize,
    ) -> Result<Self, BackendError> {
        if let (false, Some(path)) = (backend.is_durable(), directory) {
            return Err(BackendError::NoDirectory { path: path.to_owned() });
        }
        if let Some(path) = directory {
            backend.kind().check_directory(path)?;
        }
        let temporary = match directory {
            None if backend.is_durable() => Some(tempfile::tempdir().map_err(BackendError::TemporaryDirectory)?),
            _ => None,
        };
        let path = temporary.as_ref().map(tempfile::TempDir::path).or(directory);
        let store = Arc::new(backend.open(path.unwrap_or(Path::new("")), cache_bytes)?);
        Ok(Self { store, directory: path.map(Path::to_owned), _temporary: temporary })
    }

    /// Opens a fresh store in a temporary directory, made in `place`.
    ///
    /// # Errors
    /// If there is no such directory to be had, or the store does not open.
    pub fn temporary_in<B: Backend<Store = S>>(
        backend: B,
        place: &Path,
        cache_bytes: usize,
    ) -> Result<Self, BackendError> {
        let temporary = tempfile::tempdir_in(place).map_err(BackendError::TemporaryDirectory)?;
        let store = Arc::new(backend.open(temporary.path(), cache_bytes)?);
        let directory = backend.is_durable().then(|| temporary.path().to_owned());
        Ok(Self { store, directory, _temporary: Some(temporary) })
    }

    /// The store.
    pub const fn store(&self) -> &Arc<S> {
        &self.store
    }

    /// Opens the record log beside the store; `None` for a store that is gone when the command ends.
    ///
    /// # Errors
    /// [`BackendError::Log`].
    pub fn log(&self) -> Result<Option<FileLog>, BackendError> {
        let Some(path) = self.directory.as_ref().map(|directory| directory.join(LOG)) else { return Ok(None) };
        match FileLog::open(&path, LogOptions::DEFAULT) {
            Ok(log) => Ok(Some(log)),
            Err(source) => Err(BackendError::Log { path, source: Box::new(source) }),
        }
    }
}

#[cfg(all(test, feature = "redb", feature = "mdbx"))]
mod tests {
    use super::*;

    #[test]
    fn a_directory_holds_the_store_of_one_backend() {
        let directory = tempfile::tempdir().unwrap();
        let path = Some(directory.path());
        drop(Home::open(Redb, path, 1 << 20).unwrap());
        let mixed = Home::open(Mdbx, path, 1 << 20);
        assert!(matches!(mixed, Err(BackendError::OtherBackend { found: BackendKind::Redb, .. })));
        drop(Home::open(Redb, path, 1 << 20).unwrap());

        let directory = tempfile::tempdir().unwrap();
        let path = Some(directory.path());
        drop(Home::open(Mdbx, path, 1 << 20).unwrap());
        let mixed = Home::open(Redb, path, 1 << 20);
        assert!(matches!(mixed, Err(BackendError::OtherBackend { found: BackendKind::Mdbx, .. })));
    }
}
