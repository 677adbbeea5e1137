//! Why a replay stopped, with the place in the chain's file.

use std::{error::Error, path::PathBuf};

use alloy_primitives::B256;
use foldgate_bal::BalError;
use foldgate_core::BlockNumHash;
use foldgate_evm::{BlockDecodeError, BlockInvalid, SenderError};
use foldgate_pipeline::{BlockError, Failure};
use foldgate_testing::ReadError;

use crate::{chain_store::ChainStoreError, import::ImportError, state::StateMismatch};

/// Where a block stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The chain's file.
    pub file: PathBuf,
    /// Which of its blocks, from 0.
    pub index: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: block {} of the file", self.file.display(), self.index)
    }
}

/// Why a replay stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// A file cannot be read, or is malformed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Genesis and store do not go together, or the store failed.
    #[error(transparent)]
    Store(#[from] ChainStoreError),
    /// The chain's file holds no block.
    #[error("{}: there is no block", file.display())]
    Empty {
        /// The chain's file.
        file: PathBuf,
    },
    /// A block is malformed.
    #[error("{place}")]
    Block {
        /// Where.
        place: Place,
        /// What is wrong.
        source: BlockDecodeError,
    },
    /// A block's body is not its header's.
    #[error("{place}, {block}")]
    Body {
        /// Where.
        place: Place,
        /// The block.
        block: BlockNumHash,
        /// What is wrong.
        source: BlockInvalid,
    },
    /// A block does not stand on the one before it in the file.
    #[error("{place}, {block}: parentHash is {got}, the block before it is {expected}")]
    NotLinked {
        /// Where.
        place: Place,
        /// The block.
        block: BlockNumHash,
        /// In its header.
        got: B256,
        /// The block before it.
        expected: BlockNumHash,
    },
    /// The chain does not lead on from where the store stands.
    #[error("{}: the chain does not continue the store's tip {tip}: {why}", file.display())]
    NotContinuing {
        /// The chain's file.
        file: PathBuf,
        /// The store's tip.
        tip: BlockNumHash,
        /// What the chain has in the tip's place.
        why: Gap,
    },
    /// A list is not the one that the block's header commits to, or is malformed.
    #[error("{}: access list of block {block}", directory.display())]
    List {
        /// The folder of lists.
        directory: PathBuf,
        /// The block.
        block: BlockNumHash,
        /// What is wrong.
        source: BalError,
    },
    /// A transaction has no sender.
    #[error("{place}, {block}")]
    Sender {
        /// Where.
        place: Place,
        /// The block.
        block: BlockNumHash,
        /// Which transaction.
        source: SenderError,
    },
    /// A list could not be derived.
    #[error("{place}, {block}: deriving its access list")]
    Derive {
        /// Where.
        place: Place,
        /// The block.
        block: BlockNumHash,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A block was not found valid.
    #[error("{}", file.display())]
    Import {
        /// The chain's file.
        file: PathBuf,
        /// Which block, and why.
        source: ImportError,
    },
    /// The final state is not the expected one.
    #[error("{}", file.display())]
    HeadState {
        /// The file with the expected state.
        file: PathBuf,
        /// The first difference.
        source: StateMismatch,
    },
}

/// What a chain has in the place of a store's tip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Gap {
    /// Another block.
    #[error("it has {got} at that height")]
    Other {
        /// The chain's block.
        got: BlockNumHash,
    },
    /// Nothing: it begins above it.
    #[error("it begins with block {first}")]
    BeginsAbove {
        /// The chain's first block.
        first: BlockNumHash,
    },
    /// Nothing: it ends below it.
    #[error("it ends with block {last}")]
    EndsBelow {
        /// The chain's last block.
        last: BlockNumHash,
    },
}

impl ReplayError {
    /// Whether a block's two computations did not agree.
    pub fn is_divergence(&self) -> bool {
        let Self::Import { source: ImportError::Unjudged { source, .. }, .. } = self else { return false };
        matches!(source, BlockError::Failed(Failure::Divergence(_)))
    }
}
