//! A divergence as a file: everything that is needed to compute the block twice again, on a machine that has not the
//! store.
//!
//! The file is JSON: the block's facts, its raw access list, the executed writes in hashed keys, what either computation
//! came to when they diverged, and as much of the parent's state as they read.
//!
//! The state is recorded when the divergence is there, by computing both once more on the shadow's view. So a cause that
//! lies in what the shadow does not share, the page cache or the branches in memory, is not in the file: then the
//! computations agree when they are repeated, and the file tells which of the two results of that time is the other.
//!
//! Invariants:
//! 1. A report is written under another name and renamed: a file of a report's name is whole.
//! 2. Reproducing needs the file alone.

use std::{
    fs,
    io::{self, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use alloy_primitives::Bytes;
use foldgate_bal::{Bal, BalError, BalLimits};
use foldgate_core::{BlockFacts, FoldOptions, HashedPostState, StateAnchor, TrieReader, fold, resolve};
use serde::{Deserialize, Serialize};

use super::{
    Case, Source,
    difference::{Difference, SideResult, first_difference},
    isolated,
    isolated::{RecordedState, Recording},
};

/// The form of the file.
const VERSION: u32 = 1;

/// Everything about a divergence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DivergenceReport {
    version: u32,
    /// The block's facts.
    pub facts: BlockFacts,
    /// What the block's state was taken from, or would have been.
    pub decided_by: Source,
    /// The raw access list.
    pub raw_bal: Bytes,
    /// The executed writes, in hashed keys.
    pub executed: HashedPostState,
    /// What the list led to.
    pub by_bal: SideResult,
    /// What the executed writes led to.
    pub by_execution: SideResult,
    /// As much of the parent's state as either computation read.
    pub parent_state: RecordedState,
}

/// Why a report cannot be read or reproduced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The file cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no report.
    #[error("{} is no report of a divergence", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where, and how.
        source: serde_json::Error,
    },
    /// The file is of another version of this program.
    #[error("the report has the version {got}, expected {expected}")]
    Version {
        /// The file's version.
        got: u32,
        /// This program's.
        expected: u32,
    },
    /// The report's list is malformed.
    #[error("the report's access list")]
    Bal(#[from] BalError),
}

/// What came of computing a block twice again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reproduction {
    /// Where the computations differed when the report was written.
    pub then: Option<Difference>,
    /// Where they differ now: the divergence is reproduced if it is there.
    pub now: Option<Difference>,
    /// Where the list's computation differs from what it was then. `bal` is what it says now, `execution` what then.
    pub bal_since: Option<Difference>,
    /// Where the computation of the executed writes differs from what it was then. `execution` is what it says now,
    /// `bal` what then.
    pub execution_since: Option<Difference>,
}

/// Computes both once more in isolation, and notes what they read.
pub(super) fn record<R: TrieReader>(
    case: &Case<'_, R>,
    by_bal: SideResult,
    by_execution: SideResult,
) -> DivergenceReport {
    let cache = Arc::new(foldgate_core::PageCache::new(0));
    let noting = isolated(case.parent, &cache).map(super::Isolated::noting);
    let parent_state = match &noting {
        Some(view) => {
            // What fails is as far as it got: the report says what was read.
            let _listed = compute_on(case.listed, view);
            let _executed = compute_on(case.executed, view);
            view.recorded()
        }
        None => RecordedState::empty(case.parent.anchor()),
    };
    DivergenceReport {
        version: VERSION,
        facts: case.facts,
        decided_by: case.decided_by,
        raw_bal: case.raw.clone(),
        executed: case.executed.clone(),
        by_bal,
        by_execution,
        parent_state,
    }
}

fn compute_on<R: TrieReader>(state: &HashedPostState, parent: &R) -> SideResult {
    // One thread: the same reads each time.
    let options = FoldOptions::SERIAL;
    let folded = match resolve(state, parent) {
        Ok(changes) => fold(parent, changes, &options).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    SideResult::from(&folded)
}

impl DivergenceReport {
    /// The name of the report's file.
    fn file_name(&self) -> String {
        format!("divergence-{}-{}.json", self.facts.block.number, self.facts.block.hash)
    }

    /// The block that the report's state belongs to.
    pub fn parent(&self) -> StateAnchor {
        self.parent_state.anchor()
    }

    /// Writes the report into a folder, which is made where it is not there, over one of the same block.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<PathBuf> {
        fs::create_dir_all(folder)?;
        let path = folder.join(self.file_name());
        let unfinished = path.with_extension("unfinished");
        let mut file = BufWriter::new(fs::File::create(&unfinished)?);
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        file.into_inner()?.sync_all()?;
        fs::rename(&unfinished, &path)?;
        Ok(path)
    }

    /// Reads a report.
    ///
    /// # Errors
    /// If the file cannot be read, or is no report of this version.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let malformed = |source| ReportError::Malformed { path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(|source| ReportError::Read { path: path.to_owned(), source })?;
        let content: serde_json::Value = serde_json::from_reader(BufReader::new(file)).map_err(malformed)?;
        let Head { version } = Head::deserialize(&content).map_err(malformed)?;
        if version != VERSION {
            return Err(ReportError::Version { got: version, expected: VERSION });
        }
        let mut report: Self = serde_json::from_value(content).map_err(malformed)?;
        report.parent_state.sort();
        Ok(report)
    }

    /// The report's access list.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn bal(&self) -> Result<Bal, ReportError> {
        Ok(Bal::decode_checked(self.raw_bal.clone(), None, &BalLimits::from(&self.facts))?)
    }

    /// Computes the block twice again, on what the report holds of its parent's state.
    ///
    /// # Errors
    /// If the report's list is malformed.
    pub fn reproduce(&self) -> Result<Reproduction, ReportError> {
        let state = Recording(Arc::new(self.parent_state.clone()));
        let by_bal = compute_on(self.bal()?.post_state(), &state);
        let by_execution = compute_on(&self.executed, &state);
        Ok(Reproduction {
            then: first_difference(&self.by_bal, &self.by_execution),
            now: first_difference(&by_bal, &by_execution),
            bal_since: first_difference(&by_bal, &self.by_bal),
            execution_since: first_difference(&self.by_execution, &by_execution),
        })
    }
}
