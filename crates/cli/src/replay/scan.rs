//! Looks a chain's file through before anything is written: every block decoded, its body held to its header, each
//! standing on the one before, and all of them leading on from the store's tip.
//!
//! Invariants:
//! 1. One block is held at a time.
//! 2. What a scan found is good for a second reading of the same file: that reading trusts nothing else.

use std::path::{Path, PathBuf};

use alloy_consensus::Header;
use alloy_primitives::Sealed;
use foldgate_bal::{Bal, BalLimits};
use foldgate_core::{BlockNumHash, StateAnchor};
use foldgate_evm::{Block, validate_body_roots};
use foldgate_testing::chains::{BalDir, ChainReader};

use super::error::{Gap, Place, ReplayError};
use crate::import::List;

/// A block of the file, and which one it is.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) place: Place,
    pub(super) block: Block,
}

/// The blocks of a file, decoded.
#[derive(Debug)]
pub(super) struct Blocks {
    file: PathBuf,
    reader: ChainReader,
}

impl Blocks {
    pub(super) fn open(file: &Path) -> Result<Self, ReplayError> {
        Ok(Self { file: file.to_owned(), reader: ChainReader::open(file)? })
    }
}

impl Iterator for Blocks {
    type Item = Result<Placed, ReplayError>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = match self.reader.next()? {
            Ok(found) => found,
            Err(error) => return Some(Err(error.into())),
        };
        let place = Place { file: self.file.clone(), index: found.index };
        Some(match Block::decode(&found.rlp) {
            Ok(block) => Ok(Placed { place, block }),
            Err(source) => Err(ReplayError::Block { place, source }),
        })
    }
}

/// A folder of lists.
#[derive(Debug)]
pub(super) struct Lists {
    directory: PathBuf,
    files: BalDir,
}

impl Lists {
    pub(super) fn open(directory: &Path) -> Result<Self, ReplayError> {
        Ok(Self { directory: directory.to_owned(), files: BalDir::open(directory)? })
    }

    /// The list of a block, if the folder has it: the one that the header commits to, or, where the header commits to
    /// none, one that is well formed.
    pub(super) fn get(&self, block: &Block) -> Result<List, ReplayError> {
        let Some(raw) = self.files.get(block.header.number, block.hash)? else { return Ok(List::None) };
        let limits = BalLimits::from(&block.facts());
        let expected_hash = block.header.block_access_list_hash;
        match Bal::decode_checked(raw.clone(), expected_hash, &limits) {
            Ok(_) if expected_hash.is_some() => Ok(List::Payload(raw)),
            Ok(_) => Ok(List::Sourced(raw)),
            Err(source) => {
                Err(ReplayError::List { directory: self.directory.clone(), block: block.num_hash(), source })
            }
        }
    }
}

/// What a scan found.
#[derive(Debug)]
pub(super) struct Scan {
    /// The header of the store's tip.
    pub(super) tip: Sealed<Header>,
    /// How many blocks of the file lie above it.
    pub(super) blocks: u64,
}

/// Looks the file through; see the module's description.
pub(super) fn scan(
    file: &Path,
    lists: Option<&Lists>,
    genesis: &Sealed<Header>,
    tip: StateAnchor,
) -> Result<Scan, ReplayError> {
    let tip = tip.block;
    let not_continuing = |why| ReplayError::NotContinuing { file: file.to_owned(), tip, why };
    let mut tip_header = (genesis.hash() == tip.hash).then(|| genesis.clone());
    let (mut last, mut blocks) = (None::<BlockNumHash>, 0);
    for placed in Blocks::open(file)? {
        let Placed { place, block } = placed?;
        let this = block.num_hash();
        if let Some(expected) = last {
            check_link(&place, &block, expected)?;
        }
        if this.number == tip.number {
            if this.hash != tip.hash {
                return Err(not_continuing(Gap::Other { got: this }));
            }
            tip_header = Some(block.sealed_header());
        }
        if this.number > tip.number {
            if last.is_none() {
                // The file begins above the tip: its first block must stand on it, and the tip's header be known.
                let continues = this.number - tip.number == 1 && block.header.parent_hash == tip.hash;
                if !continues || tip_header.is_none() {
                    return Err(not_continuing(Gap::BeginsAbove { first: this }));
                }
            }
            blocks += 1;
            if let Some(lists) = lists {
                lists.get(&block)?;
            }
        }
        validate_body_roots(&block).map_err(|source| ReplayError::Body { place, block: this, source })?;
        last = Some(this);
    }
    match (last, tip_header) {
        (None, _) => Err(ReplayError::Empty { file: file.to_owned() }),
        (Some(last), _) if last.number < tip.number => Err(not_continuing(Gap::EndsBelow { last })),
        (Some(last), None) => Err(not_continuing(Gap::Other { got: last })),
        (Some(_), Some(tip)) => Ok(Scan { tip, blocks }),
    }
}

fn check_link(place: &Place, block: &Block, expected: BlockNumHash) -> Result<(), ReplayError> {
    let follows = expected.number.checked_add(1) == Some(block.header.number);
    if follows && block.header.parent_hash == expected.hash {
        return Ok(());
    }
    Err(ReplayError::NotLinked {
        place: place.clone(),
        block: block.num_hash(),
        got: block.header.parent_hash,
        expected,
    })
}
