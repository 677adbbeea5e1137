//! One segment's file: made, read, cut.
//!
//! Invariants:
//! 1. A segment's header is durable before the first record is written behind it, and its file has its full length then:
//!    writing records changes no metadata of the file. Before it has a header, the file counts for nothing.
//! 2. Behind the last record there are zeros only.

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
};

use foldgate_core::{BlockNumber, Record};

use crate::{
    error::LogError,
    frame::{FORMAT_VERSION, Frame, HeaderFound, SEGMENT_HEADER, SegmentHeader, is_zero, proves_durable},
};

/// How many zero bytes are written at once.
const ZEROS: usize = 1 << 20;

/// The name of a segment's file: the number with all digits, so that names sort as numbers do.
pub(crate) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.log"))
}

/// The number of a segment's file, if the name is one.
pub(crate) fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// A segment that is written no more.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) number: u64,
    /// The highest block that it has a record of.
    pub(crate) highest: Option<BlockNumber>,
}

/// A segment that has no header yet: zeros at their full length.
#[derive(Debug)]
pub(crate) struct Blank {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Blank {
    /// Makes one of this length, in the place of what an attempt that failed may have left. The folder's entry is made
    /// durable by the caller.
    pub(crate) fn make(path: PathBuf, length: u64) -> Result<Self, LogError> {
        let created = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        let mut file = created.map_err(LogError::io("create", &path))?;
        if let Err(error) = fill_with_zeros(&mut file, &path, 0..length) {
            // A full disk gets its room back. The error is what counts.
            let _left = fs::remove_file(&path);
            return Err(error);
        }
        Ok(Self { path, file, length })
    }

    /// Makes a segment of it, at least as long as `capacity`.
    pub(crate) fn begin(mut self, header: SegmentHeader, capacity: u64) -> Result<Active, LogError> {
        if self.length < capacity {
            fill_with_zeros(&mut self.file, &self.path, self.length..capacity)?;
        }
        let Self { path, file, length } = self;
        let (end, capacity) = (SEGMENT_HEADER as u64, capacity.max(length));
        let mut segment = Active { path, file, header, end, capacity, highest: None };
        segment.write_at(0, &header.to_bytes())?;
        segment.sync()?;
        Ok(segment)
    }
}

/// Writes zeros, so that the file's blocks are allocated. Each piece is made durable for itself: other syncs of the disk wait
/// for no more than one.
fn fill_with_zeros(file: &mut File, path: &Path, range: Range<u64>) -> Result<(), LogError> {
    let zeros = vec![0; ZEROS];
    let mut at = range.start;
    while at < range.end {
        let length = (range.end - at).min(ZEROS as u64);
        let written = file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&zeros[..length as usize]));
        written.and_then(|()| file.sync_data()).map_err(LogError::io("write", path))?;
        at += length;
    }
    file.sync_all().map_err(LogError::io("sync", path))
}

/// The segment that records go to.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) path: PathBuf,
    file: File,
    pub(crate) header: SegmentHeader,
    /// Where the next record goes.
    pub(crate) end: u64,
    /// The file's length.
    pub(crate) capacity: u64,
    /// The highest block that it has a record of, those not written yet included.
    pub(crate) highest: Option<BlockNumber>,
}

/// What was read of a segment.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) header: SegmentHeader,
    /// Where the last good record ends.
    pub(crate) end: u64,
    /// The sequence that the next record would have.
    pub(crate) next_sequence: u64,
    pub(crate) highest: Option<BlockNumber>,
    pub(crate) rest: Rest,
    pub(crate) length: u64,
}

/// What stands behind the last good record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Zeros, or nothing.
    Clean,
    /// What no later record proves to have been durable, and how many bytes up to the file's end.
    Torn(u64),
    /// A record that a later one proves to have been durable.
    Damaged,
}

/// What a segment's file is.
#[derive(Debug)]
pub(crate) enum Found {
    Segment(Contents),
    /// Its header is not whole, and nothing stands behind it: it was being made.
    Unborn,
}

/// Reads a segment, and gives its records to `visit`.
pub(crate) fn read(path: &Path, number: u64, visit: &mut dyn FnMut(Record)) -> Result<Found, LogError> {
    let bytes = fs::read(path).map_err(LogError::io("read", path))?;
    let header = match SegmentHeader::find(&bytes) {
        HeaderFound::Good(header) if header.number == number => header,
        HeaderFound::OtherVersion(got) => {
            return Err(LogError::FormatVersion { path: path.into(), got, expected: FORMAT_VERSION });
        }
        HeaderFound::Bad if is_zero(bytes.get(SEGMENT_HEADER..).unwrap_or_default()) => return Ok(Found::Unborn),
        HeaderFound::Bad | HeaderFound::Good(_) => return Err(LogError::DamagedHeader { path: path.into() }),
    };
    let (mut end, mut next_sequence, mut highest) = (SEGMENT_HEADER, header.first_sequence, None);
    while let Some(frame) = Frame::read(&bytes[end..], header.seed).filter(|frame| frame.sequence == next_sequence) {
        let record = Record::from_bytes(frame.payload).map_err(|source| LogError::Record {
            path: path.into(),
            offset: end as u64,
            source,
        })?;
        highest = highest.max(Some(record.block().number));
        visit(record);
        end += frame.bytes();
        next_sequence += 1;
    }
    let rest = match &bytes[end..] {
        rest if is_zero(rest) => Rest::Clean,
        rest if proves_durable(rest, header.seed, next_sequence) => Rest::Damaged,
        rest => Rest::Torn(rest.len() as u64),
    };
    let (end, length) = (end as u64, bytes.len() as u64);
    Ok(Found::Segment(Contents { header, end, next_sequence, highest, rest, length }))
}

impl Active {
    /// Goes on with a segment that was read: cuts off what is torn, gives it its full length back, and makes what it
    /// holds durable: records may have been written, and not synced, by a process that was killed.
    pub(crate) fn resume(path: PathBuf, contents: &Contents, capacity: u64) -> Result<Self, LogError> {
        let opened = OpenOptions::new().write(true).open(&path);
        let mut file = opened.map_err(LogError::io("open", &path))?;
        let &Contents { header, end, highest, length, rest, .. } = contents;
        let capacity = capacity.max(length);
        let whole = match rest {
            Rest::Clean => length,
            Rest::Torn(_) | Rest::Damaged => {
                file.set_len(end).map_err(LogError::io("cut", &path))?;
                end
            }
        };
        fill_with_zeros(&mut file, &path, whole..capacity)?;
        Ok(Self { path, file, header, end, capacity, highest })
    }

    fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), LogError> {
        let written = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.write_all(bytes));
        written.map_err(LogError::io("write", &self.path))
    }

    /// Writes frames behind the last one.
    pub(crate) fn write(&mut self, frames: &[u8]) -> Result<(), LogError> {
        self.write_at(self.end, frames)?;
        self.end += frames.len() as u64;
        Ok(())
    }

    /// Makes everything written durable.
    pub(crate) fn sync(&self) -> Result<(), LogError> {
        self.file.sync_data().map_err(LogError::io("sync", &self.path))
    }
}
