//! Where lists come from when a block did not bring its own: a folder of files, or memory.
//!
//! Invariant: what a source gives is not trusted. It is bounded in size, and whoever asked checks its hash.

use std::{
    convert::Infallible,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use alloy_primitives::Bytes;
use dashmap::DashMap;
use foldgate_core::{block::BlockNumHash, store::BalSource};

/// The largest file that a [`DirectorySource`] reads unless told otherwise, in bytes: several times the largest list
/// that a gas limit of a thousand million allows.
pub const DEFAULT_MAX_FILE_BYTES: u64 = 1 << 26;

/// Why a [`DirectorySource`] fails. A missing file is no failure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The operating system refused to open or read the file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason given.
        source: io::Error,
    },
    /// The file is larger than the source is willing to read.
    #[error("{}: the file has at least {got} bytes, expected at most {expected}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bytes that it has, or that were met while reading.
        got: u64,
        /// The limit in bytes.
        expected: u64,
    },
}

/// A folder of files `<0xhash>.rlp` or `<number>.rlp`, each the raw list of a block.
///
/// The name with the hash is tried first, because siblings share a number. A file named by number may belong to a
/// sibling; its hash tells.
#[derive(Debug, Clone)]
pub struct DirectorySource {
    directory: PathBuf,
    max_file_bytes: u64,
}

impl DirectorySource {
    /// Reads from `directory`, which need not exist yet.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), max_file_bytes: DEFAULT_MAX_FILE_BYTES }
    }

    /// With another limit on the size of a file, in bytes.
    #[must_use]
    pub const fn with_max_file_bytes(mut self, max_file_bytes: u64) -> Self {
        self.max_file_bytes = max_file_bytes;
        self
    }

    /// The folder.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file's content, or `None` if there is no such file.
    fn read(&self, path: PathBuf) -> Result<Option<Bytes>, SourceError> {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SourceError::Io { path, source }),
        };
        let declared = match file.metadata() {
            Ok(metadata) => metadata.len(),
            Err(source) => return Err(SourceError::Io { path, source }),
        };
        let expected = self.max_file_bytes;
        if declared > expected {
            return Err(SourceError::TooLarge { path, got: declared, expected });
        }
        // The file may grow while it is read, so the reader is bounded too.
        let mut content = Vec::new();
        if let Err(source) = file.take(expected.saturating_add(1)).read_to_end(&mut content) {
            return Err(SourceError::Io { path, source });
        }
        match content.len() as u64 {
            got if got > expected => Err(SourceError::TooLarge { path, got, expected }),
            _ => Ok(Some(content.into())),
        }
    }
}

impl BalSource for DirectorySource {
    type Error = SourceError;

    fn bal(&self, block: BlockNumHash) -> Result<Option<Bytes>, SourceError> {
        match self.read(self.directory.join(format!("{}.rlp", block.hash)))? {
            Some(raw) => Ok(Some(raw)),
            None => self.read(self.directory.join(format!("{}.rlp", block.number))),
        }
    }
}

/// Lists in memory, by the name of their block. Filled and read from many threads at once.
#[derive(Debug, Default)]
pub struct MemorySource {
    lists: DashMap<BlockNumHash, Bytes>,
}

impl MemorySource {
    /// A source without lists.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps the raw list of a block; gives the one that it replaces.
    pub fn insert(&self, block: BlockNumHash, raw: Bytes) -> Option<Bytes> {
        self.lists.insert(block, raw)
    }

    /// Forgets the list of a block, and gives it.
    pub fn remove(&self, block: BlockNumHash) -> Option<Bytes> {
        self.lists.remove(&block).map(|(_, raw)| raw)
    }
}

impl FromIterator<(BlockNumHash, Bytes)> for MemorySource {
    fn from_iter<I: IntoIterator<Item = (BlockNumHash, Bytes)>>(lists: I) -> Self {
        Self { lists: lists.into_iter().collect() }
    }
}

impl BalSource for MemorySource {
    type Error = Infallible;

    fn bal(&self, block: BlockNumHash) -> Result<Option<Bytes>, Infallible> {
        Ok(self.lists.get(&block).map(|raw| raw.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use alloy_primitives::B256;

    use super::*;

    fn block(number: u64) -> BlockNumHash {
        BlockNumHash::new(number, B256::repeat_byte(number as u8))
    }

    #[test]
    fn files_are_found_by_hash_first_then_by_number() {
        let directory = tempfile::tempdir().unwrap();
        let source = DirectorySource::new(directory.path());
        assert_eq!(source.bal(block(7)).unwrap(), None);
        fs::write(directory.path().join("7.rlp"), [0xc0]).unwrap();
        assert_eq!(source.bal(block(7)).unwrap().unwrap(), [0xc0][..]);
        fs::write(directory.path().join(format!("{}.rlp", block(7).hash)), [0xc1, 0xc0]).unwrap();
        assert_eq!(source.bal(block(7)).unwrap().unwrap(), [0xc1, 0xc0][..]);
        let sibling = BlockNumHash::new(7, B256::ZERO);
        assert_eq!(source.bal(sibling).unwrap().unwrap(), [0xc0][..]);
        assert_eq!(source.bal(block(8)).unwrap(), None);
    }

    #[test]
    fn large_files_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("3.rlp");
        fs::write(&path, [0; 11]).unwrap();
        let source = DirectorySource::new(directory.path()).with_max_file_bytes(10);
        let error = source.bal(block(3)).unwrap_err();
        assert!(
            matches!(&error, SourceError::TooLarge { path: got, got: 11, expected: 10 } if *got == path),
            "{error}"
        );
        assert!(source.with_max_file_bytes(11).bal(block(3)).unwrap().is_some());
    }

    #[test]
    fn an_unreadable_file_is_named_and_a_missing_folder_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        // A folder cannot be read as a file.
        let path = directory.path().join("4.rlp");
        fs::create_dir(&path).unwrap();
        let error = DirectorySource::new(directory.path()).bal(block(4)).unwrap_err();
        assert!(matches!(&error, SourceError::Io { path: got, .. } if *got == path), "{error}");
        assert_eq!(DirectorySource::new(directory.path().join("none")).bal(block(4)).unwrap(), None);
    }

    #[test]
    fn memory_keeps_lists_by_number_and_hash() {
        let source = MemorySource::from_iter([(block(1), Bytes::from_static(&[0xc0]))]);
        assert_eq!(source.insert(block(2), Bytes::from_static(&[1])), None);
        assert_eq!(source.bal(block(1)).unwrap().unwrap(), [0xc0][..]);
        assert_eq!(source.bal(BlockNumHash::new(1, B256::ZERO)).unwrap(), None);
        assert_eq!(source.remove(block(2)).unwrap(), [1][..]);
        assert_eq!(source.bal(block(2)).unwrap(), None);
    }
}
