//! Why the log failed.
//!
//! Invariant: damage names the file and the place; what a torn write leaves behind is no damage and never an error.

use std::{io, path::PathBuf};

use foldgate_core::MalformedRecord;

/// Why a [`FileLog`](crate::FileLog) did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The operating system failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// This process or another has the log open.
    #[error("the log in {path} is already open")]
    AlreadyOpen {
        /// The log's folder.
        path: PathBuf,
    },
    /// Another version of the software wrote the segment.
    #[error("{path} has format version {got}, this software reads {expected}")]
    FormatVersion {
        /// The segment's file.
        path: PathBuf,
        /// Its version.
        got: u32,
        /// [`FORMAT_VERSION`](crate::FORMAT_VERSION).
        expected: u32,
    },
    /// A segment's header is not what was written there, and records may stand behind it.
    #[error("{path} has a damaged header")]
    DamagedHeader {
        /// The segment's file.
        path: PathBuf,
    },
    /// A record that was durable is not what was written there.
    #[error("{path} is damaged at byte {offset}: record {sequence} was durable, and is gone")]
    Damaged {
        /// The segment's file.
        path: PathBuf,
        /// Where the damage begins.
        offset: u64,
        /// The number of the first record lost, counted over the log's life.
        sequence: u64,
    },
    /// A segment between others is not there.
    #[error("segment {number} of the log in {path} is missing")]
    MissingSegment {
        /// The log's folder.
        path: PathBuf,
        /// The segment's number.
        number: u64,
    },
    /// The bytes are as they were written, and are no record: another version of the software wrote them.
    #[error("{path}, at byte {offset}: {source}")]
    Record {
        /// The segment's file.
        path: PathBuf,
        /// Where the record begins.
        offset: u64,
        /// What is wrong.
        source: MalformedRecord,
    },
    /// A record is longer than the format can say.
    #[error("a record of {got} bytes is too large: at most {max}")]
    TooLarge {
        /// The record's length.
        got: usize,
        /// The longest.
        max: usize,
    },
    /// An earlier write failed: what is durable is known only when the log is opened again.
    #[error("the log failed earlier, and has to be opened again")]
    Broken,
}

impl LogError {
    /// Adds to an error of the system what was tried.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}
