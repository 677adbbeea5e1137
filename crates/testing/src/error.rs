//! The one error of all readers.
//!
//! Invariant: each variant names the file (for an archive's member `archive!member`), and the place in it as far as it
//! is known.

use std::{io, path::PathBuf};

/// Why test data could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The operating system refused to open, list or read the path.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path in question.
        path: PathBuf,
        /// The reason given.
        source: io::Error,
    },
    /// A length (declared or met while reading) is beyond what the reader is willing to hold.
    #[error("{file}: {what} is {got} bytes, the limit is {expected}")]
    TooLarge {
        /// The file, or `archive!member`.
        file: String,
        /// What is too large.
        what: &'static str,
        /// The length in bytes; where it is not declared, the first length that is known to be too large.
        got: u64,
        /// The limit in bytes.
        expected: u64,
    },
    /// The data ends before what it announced.
    #[error("{file}: {what} is cut off: {got} of {expected} bytes")]
    Truncated {
        /// The file, or `archive!member`.
        file: String,
        /// What is cut off.
        what: &'static str,
        /// Bytes that were there.
        got: u64,
        /// Bytes that were announced.
        expected: u64,
    },
    /// The compressed stream is damaged or cut off.
    #[error("{file}: compressed stream: {source}")]
    Compression {
        /// The compressed file.
        file: String,
        /// The decoder's reason.
        source: io::Error,
    },
    /// A zstd frame's content does not have the checksum that the frame carries.
    #[error("{file}: zstd checksum is {got:#010x}, expected {expected:#010x}")]
    Checksum {
        /// The compressed file.
        file: String,
        /// The checksum of what was decoded.
        got: u32,
        /// The checksum in the frame.
        expected: u32,
    },
    /// A file's content is not JSON of the expected shape.
    #[error("{file}: {}field `{field}`: {source}", test.as_ref().map(|test| format!("test `{test}`: ")).unwrap_or_default())]
    Json {
        /// The file, or `archive!member`.
        file: String,
        /// The test within the file, where the file holds several.
        test: Option<String>,
        /// The path to the field, such as `blocks[0].blockHeader.number`; `.` is the whole.
        field: String,
        /// The reason, with line and column.
        source: serde_json::Error,
    },
    /// An item that should be RLP is not, or not of the expected shape.
    #[error("{file}: {what} {index} at byte {offset}: {source}")]
    Rlp {
        /// The file.
        file: String,
        /// What the item is.
        what: &'static str,
        /// Which one it is, counted from 0.
        index: u64,
        /// Where it begins in the (uncompressed) file.
        offset: u64,
        /// The decoder's reason.
        source: alloy_rlp::Error,
    },
    /// A line of a table does not have the expected columns or numbers.
    #[error("{file}: line {line}: column `{column}`: got `{got}`, expected {expected}")]
    Table {
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// The column's name.
        column: &'static str,
        /// The text that was there.
        got: String,
        /// What should be there.
        expected: &'static str,
    },
    /// The file's name does not say what it should.
    #[error("{file}: the name should be {expected}")]
    Name {
        /// The file.
        file: String,
        /// The form of a fitting name.
        expected: &'static str,
    },
    /// A value does not agree with what the file says elsewhere.
    #[error("{file}: {what} is {got}, expected {expected}")]
    Mismatch {
        /// The file.
        file: String,
        /// What disagrees.
        what: &'static str,
        /// The value that was there.
        got: String,
        /// The value that should be there.
        expected: String,
    },
}
