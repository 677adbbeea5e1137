//! What takes part in a benchmark, and how that fails.

use std::{error::Error, io};

use alloy_primitives::B256;

use crate::{measure::Cost, workload::Block};

/// Any error of a contender's own.
pub type AnyError = Box<dyn Error + Send + Sync>;

/// What a contender made of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advanced {
    /// The root of the state after the block.
    pub state_root: B256,
    /// What it cost, from the block's unsorted changes to the root, with the state after the block in place for the next
    /// one.
    pub cost: Cost,
}

/// What a flush cost, and of how many blocks it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flushed {
    /// The blocks.
    pub blocks: u64,
    /// The cost.
    pub cost: Cost,
}

/// One implementation with the state of a workload, which it keeps up with block by block.
///
/// Nothing that a block costs may be put off into [`Contender::warm_up`], [`Contender::flush`] or
/// [`Contender::drop_caches`], but for writing to a disk what already is visible to the next block.
pub trait Contender {
    /// The implementation's name.
    fn name(&self) -> &'static str;

    /// Where it keeps the state.
    fn backend(&self) -> &'static str;

    /// How many threads it uses.
    fn threads(&self) -> usize;

    /// Whether a block takes so long that only those are measured whose roots are checked; the others are followed.
    fn is_slow(&self) -> bool {
        false
    }

    /// Reads ahead what a client could read before the block's parent is known. Not measured.
    ///
    /// # Errors
    /// If the contender fails.
    fn warm_up(&mut self, block: &Block) -> Result<(), AnyError>;

    /// Takes the block, and measures itself from the first look at its changes to the root.
    ///
    /// # Errors
    /// If the contender fails.
    fn advance(&mut self, block: &Block) -> Result<Advanced, AnyError>;

    /// Takes the block without a root, for contenders that are slow.
    ///
    /// # Errors
    /// If the contender fails.
    fn follow(&mut self, block: &Block) -> Result<(), AnyError> {
        self.advance(block).map(drop)
    }

    /// The fewest permutations that the last block's root needs, where the contender can tell: those of each leaf,
    /// branch and extension that the new tries have and the old ones had not.
    ///
    /// # Errors
    /// If the contender fails.
    fn fewest_permutations(&mut self) -> Result<Option<u64>, AnyError> {
        Ok(None)
    }

    /// Whether foldgate-keccak counts its permutations.
    fn is_counted(&self) -> bool {
        false
    }

    /// Makes the last block survive a kill of the process, without writing the whole of it to the store: what that takes
    /// after [`Contender::advance`]. `None` where there is no such way.
    ///
    /// # Errors
    /// If the contender fails.
    fn acknowledge(&mut self) -> Result<Option<Cost>, AnyError> {
        Ok(None)
    }

    /// Ends the flush that runs beside, if there is one, and begins the next one on a thread of its own: blocks go on
    /// meanwhile. Gives what ended; its CPU time is the thread's. That blocks wait for a flush which is slower than they
    /// are is seen in its wall time alone. A contender that cannot flushes at once.
    ///
    /// # Errors
    /// If the contender fails.
    fn flush_beside(&mut self) -> Result<Flushed, AnyError> {
        self.flush()
    }

    /// Writes to the disk what is not there yet, and waits for it.
    ///
    /// # Errors
    /// If the contender fails.
    fn flush(&mut self) -> Result<Flushed, AnyError> {
        Ok(Flushed::default())
    }

    /// Drops all of the process's caches, as a restart would. Says whether it has any that can be dropped.
    ///
    /// # Errors
    /// If the contender fails.
    fn drop_caches(&mut self) -> Result<bool, AnyError>;
}

/// Why a benchmark stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A contender failed.
    #[error("{name} on {backend} failed at block {block}")]
    Contender {
        /// Its name.
        name: &'static str,
        /// Where it keeps the state.
        backend: &'static str,
        /// The block's height; 0 for the state at first.
        block: u64,
        /// Why.
        source: AnyError,
    },
    /// A contender has another root than the oracle, or than the contenders before it.
    #[error("{name} on {backend} has the state root {got} after block {block}, not {expected}")]
    WrongRoot {
        /// Its name.
        name: &'static str,
        /// Where it keeps the state.
        backend: &'static str,
        /// The block's height; 0 for the state at first.
        block: u64,
        /// Its root.
        got: B256,
        /// The root expected.
        expected: B256,
    },
    /// Threads could not be started.
    #[error("starting {threads} threads")]
    Threads {
        /// How many.
        threads: usize,
        /// Why.
        source: rayon::ThreadPoolBuildError,
    },
    /// A directory for a store could not be made, or copied.
    #[error("making a directory for a store")]
    Directory(#[from] io::Error),
    /// Contenders of this feature were asked for, and were not built.
    #[error("this program was built without the peers: build it with the cargo feature `peers`")]
    NoPeers,
}
