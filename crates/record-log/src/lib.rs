//! The redo log of foldgate in files: records that were synced survive a kill of the process, and, where the medium keeps
//! what it was told to keep, a loss of power.
//!
//! A folder with numbered segment files, which are made at their full length and deleted as a whole. The next one is made on
//! a thread of its own while the newest one fills. A record is
//! appended to the newest one; [`RecordLog::sync`] writes what has gathered and calls `fdatasync` once.
//!
//! # What opening finds
//!
//! | the log ends with | then |
//! |---|---|
//! | zeros behind its last record | it is whole |
//! | bytes that are no record, and no later record proves that they once were durable | they are torn: cut off, and told ([`FileLog::cut`]) |
//! | the same, and a later record in the segment, or a later segment, proves it | [`LogError::Damaged`]: nothing is changed |
//! | a file without a whole header, and nothing behind that | it was being made, or waited for its turn: it is removed |
//! | a gap between segments | [`LogError::MissingSegment`] |
//!
//! Each frame says how many records were durable when it was written. That is what tells a torn batch, of which a loss
//! of power may keep the end and lose the beginning, from damage. Damage within the last batch that was synced cannot be
//! told from a torn one, since nothing was written after it.
//!
//! The tests kill processes. A kill does not test a loss of power: that rests on `fdatasync`, on the medium, and on the
//! order of writes argued here.
//!
//! Invariants:
//! 1. A segment gets its header only when every record before it is durable; its name in the folder is durable before a
//!    record is written to it.
//! 2. One process has the folder open at a time: a lock file keeps others out.
//! 3. Segments are deleted oldest first, so that those left have no gap.
//!
//! | file | holds |
//! |---|---|
//! | `frame` | the bytes of headers and frames, what proves what |
//! | `segment` | one file |
//! | `next` | the file that comes next, made ahead |
//! | `error` | why something failed |

mod error;
mod frame;
mod next;
mod segment;

use std::{
    collections::VecDeque,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use foldgate_core::{BlockNumber, Record, RecordLog};

pub use crate::{error::LogError, frame::FORMAT_VERSION};
use crate::{
    frame::{FRAME_HEADER, MAX_PAYLOAD, SEGMENT_HEADER, SegmentHeader, close_frame, frame_bytes},
    next::Next,
    segment::{Active, Contents, Found, Rest, Sealed},
};

/// The lock file within the log's folder.
const LOCK: &str = "lock";

/// How many bytes of frames gather in memory before they are written, synced or not.
const WRITE_BYTES: usize = 1 << 20;

/// How a log is opened. None of it is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// The length of a new segment in bytes; one for a longer record is as long as that.
    pub segment_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Options {
    /// Segments of 16 MiB.
    pub const DEFAULT: Self = Self { segment_bytes: 16 << 20 };

    /// Sets [`Options::segment_bytes`].
    pub const fn with_segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }
}

/// What was cut off when the log was opened: the end of a write that never ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The segment's file.
    pub path: PathBuf,
    /// Where the last whole record ends.
    pub offset: u64,
    /// How many bytes stood behind it, up to the file's end.
    pub bytes: u64,
}

/// A record log in a folder. See the module's documentation.
#[derive(Debug)]
pub struct FileLog {
    dir: PathBuf,
    options: Options,
    /// Oldest first.
    sealed: VecDeque<Sealed>,
    active: Active,
    next: Next,
    /// Frames that are not written yet.
    pending: Vec<u8>,
    next_sequence: u64,
    /// How many records of the log's life are durable.
    durable: u64,
    /// Whether a write failed.
    broken: bool,
    cut: Option<Cut>,
    /// Let go of last, when the files above are closed.
    _lock: Lock,
}

impl FileLog {
    /// Opens the log in the folder `dir`, and makes both if there is none. The folder belongs to the log.
    ///
    /// # Errors
    /// [`LogError::AlreadyOpen`] if this or another process has it open; [`LogError::FormatVersion`] or
    /// [`LogError::Record`] if another version of the software wrote it; [`LogError::Damaged`],
    /// [`LogError::DamagedHeader`] or [`LogError::MissingSegment`] if what was durable is not there any more;
    /// [`LogError::Io`] if the machine fails.
    pub fn open(dir: impl Into<PathBuf>, options: Options) -> Result<Self, LogError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(LogError::io("create", &dir))?;
        // The folder's own name, too, has to outlive a loss of power.
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_folder(parent)?;
        }
        let lock = Lock::take(&dir)?;
        let mut sealed = VecDeque::new();
        let mut newest: Option<Contents> = None;
        let numbers = numbers(&dir)?;
        for number in &numbers {
            let path = segment::path(&dir, *number);
            match segment::read(&path, *number, &mut |_| {})? {
                Found::Segment(contents) => {
                    let header = contents.header;
                    if let Some(before) = newest.replace(contents) {
                        sealed.push_back(seal(&dir, &before, header)?);
                    }
                }
                Found::Unborn if Some(number) == numbers.last() => {
                    fs::remove_file(&path).map_err(LogError::io("remove", &path))?;
                    sync_folder(&dir)?;
                }
                Found::Unborn => return Err(LogError::DamagedHeader { path }),
            }
        }
        let mut cut = None;
        let mut next = Next::default();
        let (active, next_sequence) = match newest {
            None => {
                let header = SegmentHeader { number: 0, first_sequence: 0, seed: rand::random() };
                (next.take(&dir, 0, options.segment_bytes)?.begin(header, options.segment_bytes)?, 0)
            }
            Some(contents) => {
                let path = segment::path(&dir, contents.header.number);
                let (offset, sequence) = (contents.end, contents.next_sequence);
                match contents.rest {
                    Rest::Damaged => return Err(LogError::Damaged { path, offset, sequence }),
                    Rest::Torn(bytes) => cut = Some(Cut { path: path.clone(), offset, bytes }),
                    Rest::Clean => {}
                }
                (Active::resume(path, &contents, options.segment_bytes)?, sequence)
            }
        };
        Ok(Self {
            dir,
            options,
            sealed,
            active,
            next,
            pending: Vec::new(),
            next_sequence,
            durable: next_sequence,
            broken: false,
            cut,
            _lock: lock,
        })
    }

    /// What was cut off when the log was opened.
    pub const fn cut(&self) -> Option<&Cut> {
        self.cut.as_ref()
    }

    /// How many segment files there are.
    pub fn segments(&self) -> usize {
        self.sealed.len() + 1
    }

    /// Runs a step that writes; when it fails, nothing is written any more.
    fn guarded<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T, LogError>) -> Result<T, LogError> {
        if self.broken {
            return Err(LogError::Broken);
        }
        let result = step(self);
        self.broken = result.is_err();
        result
    }

    /// Appends what stands in `pending` behind `begin`: room for a frame's header, and a record of this block.
    fn append_frame(&mut self, mut begin: usize, block: BlockNumber) -> Result<(), LogError> {
        let bytes = frame_bytes(self.pending.len() - begin - FRAME_HEADER);
        if self.active.end + (begin + bytes) as u64 > self.active.capacity {
            let frame = self.pending.split_off(begin);
            self.sync_pending()?;
            self.next_segment(bytes)?;
            (self.pending, begin) = (frame, 0);
        }
        close_frame(&mut self.pending, begin, self.active.header.seed, self.next_sequence, self.durable);
        self.next_sequence += 1;
        self.active.highest = self.active.highest.max(Some(block));
        if self.active.end + self.pending.len() as u64 > self.active.capacity / 2 {
            self.next.prepare(&self.dir, self.active.header.number + 1, self.options.segment_bytes);
        }
        if self.pending.len() >= WRITE_BYTES { self.write_pending() } else { Ok(()) }
    }

    fn next_segment(&mut self, frame: usize) -> Result<(), LogError> {
        let capacity = self.options.segment_bytes.max((SEGMENT_HEADER + frame) as u64);
        let number = self.active.header.number + 1;
        let header = SegmentHeader { number, first_sequence: self.next_sequence, seed: rand::random() };
        let next = self.next.take(&self.dir, number, self.options.segment_bytes)?.begin(header, capacity)?;
        let Active { header, highest, .. } = std::mem::replace(&mut self.active, next);
        self.sealed.push_back(Sealed { number: header.number, highest });
        Ok(())
    }

    fn write_pending(&mut self) -> Result<(), LogError> {
        self.active.write(&self.pending)?;
        self.pending.clear();
        Ok(())
    }

    fn sync_pending(&mut self) -> Result<(), LogError> {
        if self.durable < self.next_sequence {
            self.write_pending()?;
            self.active.sync()?;
            self.durable = self.next_sequence;
        }
        Ok(())
    }
}

impl RecordLog for FileLog {
    type Error = LogError;

    fn append(&mut self, record: &Record) -> Result<(), LogError> {
        self.guarded(|log| {
            let begin = log.pending.len();
            log.pending.resize(begin + FRAME_HEADER, 0);
            record.write_bytes(&mut log.pending);
            match log.pending.len() - begin - FRAME_HEADER {
                got if got > MAX_PAYLOAD => Err(LogError::TooLarge { got, max: MAX_PAYLOAD }),
                _ => log.append_frame(begin, record.block().number),
            }
        })
    }

    fn sync(&mut self) -> Result<(), LogError> {
        self.guarded(Self::sync_pending)
    }

    fn replay(&mut self, visit: &mut dyn FnMut(Record)) -> Result<(), LogError> {
        self.guarded(Self::write_pending)?;
        let numbers = self.sealed.iter().map(|sealed| sealed.number).chain([self.active.header.number]);
        let mut expected = None;
        for number in numbers {
            let path = segment::path(&self.dir, number);
            let Found::Segment(contents) = segment::read(&path, number, visit)? else {
                return Err(LogError::DamagedHeader { path });
            };
            let Contents { header, end: offset, next_sequence: sequence, rest, .. } = contents;
            let begins = expected.is_none_or(|expected| expected == header.first_sequence);
            // The newest one has to reach as far as was written.
            let ends = number != self.active.header.number || sequence == self.next_sequence;
            if rest != Rest::Clean || !begins || !ends {
                return Err(LogError::Damaged { path, offset, sequence });
            }
            expected = Some(sequence);
        }
        Ok(())
    }

    fn prune(&mut self, up_to: BlockNumber) -> Result<(), LogError> {
        let mut removed = false;
        while self.sealed.front().is_some_and(|oldest| oldest.highest.is_none_or(|highest| highest <= up_to)) {
            if let Some(Sealed { number, .. }) = self.sealed.pop_front() {
                let path = segment::path(&self.dir, number);
                fs::remove_file(&path).map_err(LogError::io("remove", path))?;
                removed = true;
            }
        }
        if removed { sync_folder(&self.dir) } else { Ok(()) }
    }
}

/// Takes a segment that has a younger one, if it is whole and the younger one goes on where it ends.
fn seal(dir: &Path, contents: &Contents, next: SegmentHeader) -> Result<Sealed, LogError> {
    let number = contents.header.number;
    if next.number != number + 1 {
        return Err(LogError::MissingSegment { path: dir.into(), number: number + 1 });
    }
    if contents.rest != Rest::Clean || contents.next_sequence != next.first_sequence {
        let (offset, sequence) = (contents.end, contents.next_sequence);
        return Err(LogError::Damaged { path: segment::path(dir, number), offset, sequence });
    }
    Ok(Sealed { number, highest: contents.highest })
}

/// The lock of a log's folder.
#[derive(Debug)]
struct Lock(File);

impl Lock {
    fn take(dir: &Path) -> Result<Self, LogError> {
        let path = dir.join(LOCK);
        let opened = File::options().create(true).truncate(false).write(true).open(&path);
        let file = opened.map_err(LogError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(LogError::AlreadyOpen { path: dir.into() }),
            Err(TryLockError::Error(source)) => Err(LogError::Io { what: "lock", path, source }),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing would not do: a child process that was started, and does not execute its own program yet, has the file
        // open, too. If it fails, the lock goes with the last of them.
        let _kept = self.0.unlock();
    }
}

/// The numbers of the segments in a folder, in order. Other files are passed over.
fn numbers(dir: &Path) -> Result<Vec<u64>, LogError> {
    let failed = || LogError::io("list", dir);
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed())? {
        numbers.extend(entry.map_err(failed())?.file_name().to_str().and_then(segment::number));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Makes the names in a folder durable.
fn sync_folder(dir: &Path) -> Result<(), LogError> {
    File::open(dir).and_then(|folder| folder.sync_all()).map_err(LogError::io("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child process has what its parent has open, until it executes its own program.
    #[test]
    fn a_closed_log_opens_again_though_its_lock_file_is_open_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let log = FileLog::open(dir.path(), Options::default()).unwrap();
        let elsewhere = log._lock.0.try_clone().unwrap();
        drop(log);
        FileLog::open(dir.path(), Options::default()).unwrap();
        drop(elsewhere);
    }
}
