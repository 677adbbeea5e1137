//! The segment that comes next, made ahead of need on a thread of its own: no append waits while a file is filled.
//!
//! Invariants:
//! 1. It has no header before [`Next::take`]: what opening finds of it is a segment that was being made, and is removed.
//! 2. The thread ends before the log's lock is let go.

use std::{
    path::Path,
    thread::{self, JoinHandle},
};

use crate::{
    error::LogError,
    segment::{self, Blank},
    sync_folder,
};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Next(Option<JoinHandle<Result<Blank, LogError>>>);

impl Next {
    /// Begins to make it, if that was not begun.
    pub(crate) fn prepare(&mut self, dir: &Path, number: u64, length: u64) {
        if self.0.is_none() {
            let dir = dir.to_path_buf();
            let made = move || make(&dir, number, length);
            // Without a thread it is made when it is needed.
            self.0 = thread::Builder::new().name("foldgate-log-next".to_owned()).spawn(made).ok();
        }
    }

    /// The segment with this number, made now where it was not made ahead.
    pub(crate) fn take(&mut self, dir: &Path, number: u64, length: u64) -> Result<Blank, LogError> {
        // Why it could not be made ahead is met again, if it still holds.
        match self.0.take().map(JoinHandle::join) {
            Some(Ok(Ok(blank))) => Ok(blank),
            _ => make(dir, number, length),
        }
    }
}

impl Drop for Next {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // What it made counts for nothing.
            let _unused = thread.join();
        }
    }
}

/// Makes it, and its name durable.
fn make(dir: &Path, number: u64, length: u64) -> Result<Blank, LogError> {
    let blank = Blank::make(segment::path(dir, number), length)?;
    sync_folder(dir)?;
    Ok(blank)
}
