//! `foldgate witness`: blocks of public chains, verified on their execution witnesses alone.
//!
//! A block is executed on the witness, and its root folded from its access list if the file has one, else from what its
//! execution wrote. A list is then held to the one that execution rebuilt.
//!
//! Where the witness does not suffice to execute, and the file has the source's own account of the outcome, the root is
//! folded from that; the report says so.
//!
//! Invariant: no state but the witness' is read, and all of it is proven by the parent's state root.

use std::{
    fmt,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use alloy_consensus::Header;
use alloy_hardforks::EthereumHardforks;
use alloy_primitives::{B256, Sealed};
use foldgate_bal::{Bal, BalError, BalLimits, BalMismatch};
use foldgate_core::{
    AccountDelta, BlockNumHash, EmptyAccounts, FoldError, FoldOptions, FoldOutcome, HashedPostState, KeyHasher,
    StateAnchor, fold,
    hashed::Cleared,
    keys::{hash_address, hash_slot},
    resolve,
    witness::{Witness, WitnessError},
};
use foldgate_evm::{
    Block, BlockDecodeError, BlockInvalid, ChainSpec, ExecutedBlock, ExecutionError, SenderError, process_block,
    recover_senders, validate_body_roots,
};
use foldgate_pipeline::{Difference, SideResult, first_difference};
use foldgate_testing::{
    ReadError,
    witness::{WitnessBlock, WitnessDiff, read_witness},
};
use serde::Serialize;

use crate::{Causes, CliError, args::WitnessArgs};

/// Why a block could not be verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WitnessFault {
    /// The file cannot be read, or contradicts itself.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The rules of the chain are unknown.
    #[error("chainId: the rules of chain {got} are unknown")]
    UnknownChain {
        /// The chain's id.
        got: u64,
    },
    /// The block is malformed.
    #[error("block")]
    Block(#[from] BlockDecodeError),
    /// An ancestor's header is malformed.
    #[error("witness.headers: {0}")]
    Headers(alloy_rlp::Error),
    /// The ancestors' headers do not stand on each other, or the block not on the last of them.
    #[error("witness.headers: the parent of block {block} is {got}, expected {expected}")]
    NotLinked {
        /// The block.
        block: u64,
        /// The hash of the header before it.
        got: B256,
        /// The parent hash in its header.
        expected: B256,
    },
    /// There is no parent header.
    #[error("witness.headers: there is none")]
    NoParent,
    /// A transaction has no sender.
    #[error("block {block}: transactions")]
    Sender {
        /// The block.
        block: BlockNumHash,
        /// Which transaction.
        source: SenderError,
    },
    /// The block is invalid.
    #[error("block {block} is invalid: {reason}")]
    Invalid {
        /// The block.
        block: BlockNumHash,
        /// Why.
        reason: BlockInvalid,
    },
    /// The block cannot be executed on this witness.
    #[error("block {block}: execution")]
    Execution {
        /// The block.
        block: BlockNumHash,
        /// Why.
        source: Box<ExecutionError<WitnessError>>,
    },
    /// The access list is malformed, or has another hash than the file or the header says.
    #[error("block {block}: blockAccessList")]
    List {
        /// The block.
        block: BlockNumHash,
        /// What is wrong.
        source: BalError,
    },
    /// The access list is not the one that execution rebuilt.
    #[error("block {block}: blockAccessList is not what execution rebuilt: {difference}")]
    ListMismatch {
        /// The block.
        block: BlockNumHash,
        /// The first difference.
        difference: Box<BalMismatch>,
    },
    /// A leaf that the fold needs cannot be read.
    #[error("block {block}: reading the witness")]
    Resolve {
        /// The block.
        block: BlockNumHash,
        /// Which node is missing or malformed.
        source: WitnessError,
    },
    /// The fold failed.
    #[error("block {block}: folding")]
    Fold {
        /// The block.
        block: BlockNumHash,
        /// Why.
        source: Box<FoldError<WitnessError>>,
    },
    /// The access list and the executed writes lead to different states.
    #[error("block {block} diverges: {difference}")]
    Divergence {
        /// The block.
        block: BlockNumHash,
        /// The first difference.
        difference: Box<Difference>,
    },
    /// The state root is not the header's.
    #[error("block {block}: stateRoot: computed {got} from {by}, the header says {expected}")]
    StateRoot {
        /// The block.
        block: BlockNumHash,
        /// From what the root was computed.
        by: Source,
        /// The computed root.
        got: B256,
        /// The header's.
        expected: B256,
    },
}

/// What a root was computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The block's access list, confirmed by execution.
    List,
    /// What execution wrote.
    Writes,
    /// The file's `stateDiffs`: the witness does not suffice to execute.
    StateDiffs,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::List => "its access list, confirmed by execution",
            Self::Writes => "its executed writes",
            Self::StateDiffs => "the file's stateDiffs (not executed)",
        })
    }
}

/// A block whose root is the header's.
#[derive(Debug)]
#[non_exhaustive]
pub struct Verified {
    /// The block.
    pub block: BlockNumHash,
    /// The computed state root.
    pub computed_state_root: B256,
    /// From what it was computed.
    pub source: Source,
    /// Why the block was not executed, where it was not.
    pub not_executed: Option<WitnessError>,
    /// Whether its two sources were held to each other.
    pub compared: bool,
}

/// What `foldgate witness --json` prints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Blocks looked at.
    pub blocks: u64,
    /// Blocks whose computed state root is the header's.
    pub roots_ok: u64,
}

/// What came of all files.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// The figures.
    pub summary: Summary,
    /// By file, in the order given.
    pub files: Vec<(PathBuf, Result<Verified, WitnessFault>)>,
}

pub(crate) fn command(args: &WitnessArgs, out: &mut dyn Write, notes: &mut dyn Write) -> Result<bool, CliError> {
    let report = run(&args.files);
    for (path, outcome) in &report.files {
        match outcome {
            Ok(verified) => {
                let to: &mut dyn Write = if args.json { notes } else { out };
                let Verified { block, computed_state_root, source, not_executed, .. } = verified;
                write!(to, "{}: block {block}: state root {computed_state_root} from {source}", path.display())?;
                match not_executed {
                    Some(why) => writeln!(to, ": {why}")?,
                    None => writeln!(to)?,
                }
            }
            Err(fault) => writeln!(notes, "FAILED {}: {}", path.display(), Causes(fault))?,
        }
    }
    let Summary { blocks, roots_ok } = report.summary;
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string(&report.summary)?)?,
        false => writeln!(out, "blocks  {blocks}: {roots_ok} roots right")?,
    }
    Ok(blocks == roots_ok)
}

/// Verifies the blocks of all files. What is wrong with one does not keep the others from being looked at.
pub fn run(files: &[PathBuf]) -> Report {
    let mut report = Report::default();
    for path in files {
        let outcome = verify_file(path);
        report.summary.blocks += 1;
        report.summary.roots_ok += u64::from(outcome.is_ok());
        report.files.push((path.clone(), outcome));
    }
    report
}

/// Verifies the block of one file.
///
/// # Errors
/// See [`WitnessFault`].
pub fn verify_file(path: &Path) -> Result<Verified, WitnessFault> {
    verify(&read_witness(path)?)
}

/// Verifies a block on its witness.
///
/// # Errors
/// See [`WitnessFault`].
pub fn verify(given: &WitnessBlock) -> Result<Verified, WitnessFault> {
    verify_with(given, false)
}

/// Verifies a block on its witness from both its sources, which must agree: from its access list, or else the one that
/// execution gives, and from what execution wrote. Where it cannot be executed, there is one source only.
///
/// # Errors
/// See [`WitnessFault`].
pub fn verify_twice(given: &WitnessBlock) -> Result<Verified, WitnessFault> {
    verify_with(given, true)
}

fn verify_with(given: &WitnessBlock, shadow: bool) -> Result<Verified, WitnessFault> {
    let spec = match given.chain_id {
        1 => ChainSpec::mainnet(),
        560_048 => ChainSpec::hoodi(),
        got => return Err(WitnessFault::UnknownChain { got }),
    };
    let block = Block::decode(&given.block)?;
    let name = block.num_hash();
    let invalid = |reason| WitnessFault::Invalid { block: name, reason };
    validate_body_roots(&block).map_err(invalid)?;
    let ancestors = ancestors(given, &block)?;
    let parent = ancestors.last().ok_or(WitnessFault::NoParent)?;
    let anchor = StateAnchor { block: BlockNumHash::new(parent.number, parent.hash()), state_root: parent.state_root };
    let hashes = ancestors.iter().map(|header| (header.number, header.hash()));
    let witness = Witness::new(anchor, given.witness.state.clone(), given.witness.codes.clone(), hashes);

    let senders = recover_senders(&spec, &block).map_err(|source| WitnessFault::Sender { block: name, source })?;
    let mut written = HashedPostState::new(EmptyAccounts::Keep);
    let mut hasher = KeyHasher::default();
    let mut sink = |_, writes| written.apply_writes(&writes, &mut hasher);
    let executed = process_block(&spec, parent, &block, &senders, witness.clone(), &mut sink, &|| false);
    let mut compared = false;
    let (state, source, not_executed) = match (executed, &given.state_diffs) {
        (Ok(executed), _) => {
            let list = list(given, &block)?;
            if let Some(list) = &list {
                confirm(list, &executed, name)?;
            }
            let derived = || {
                let limits = BalLimits::from(&block.facts());
                Bal::decode_checked(executed.rebuilt_bal_rlp.clone(), None, &limits)
                    .map_err(|source| WitnessFault::List { block: name, source })
            };
            let both = match &list {
                _ if !shadow || !spec.is_cancun_active_at_timestamp(block.header.timestamp) => None,
                Some(list) => Some(Arc::clone(list.post_state())),
                None => Some(Arc::clone(derived()?.post_state())),
            };
            if let Some(listed) = &both {
                let computed = |state| folded(state, &witness, name).map(|outcome| SideResult::from(&outcome));
                if let Some(difference) = first_difference(&computed(listed)?, &computed(&written)?) {
                    return Err(WitnessFault::Divergence { block: name, difference: Box::new(difference) });
                }
            }
            compared = both.is_some();
            match list {
                Some(list) => (Arc::clone(list.post_state()), Source::List, None),
                None => (Arc::new(written), Source::Writes, None),
            }
        }
        (Err(ExecutionError::Invalid(reason)), _) => return Err(invalid(reason)),
        (Err(ExecutionError::Storage(why)), Some(diffs)) => (Arc::new(stated(diffs)), Source::StateDiffs, Some(why)),
        (Err(error), _) => return Err(WitnessFault::Execution { block: name, source: Box::new(error) }),
    };
    let outcome = folded(&state, &witness, name)?;
    let (got, expected) = (outcome.computed_state_root, block.header.state_root);
    if got != expected {
        return Err(WitnessFault::StateRoot { block: name, by: source, got, expected });
    }
    Ok(Verified { block: name, computed_state_root: got, source, not_executed, compared })
}

fn folded(state: &HashedPostState, witness: &Witness, block: BlockNumHash) -> Result<FoldOutcome, WitnessFault> {
    let changes = resolve(state, witness).map_err(|source| WitnessFault::Resolve { block, source })?;
    fold(witness, changes, &FoldOptions::default())
        .map_err(|error| WitnessFault::Fold { block, source: Box::new(error) })
}

/// The ancestors' headers, oldest first, each standing on the one before, the block on the last.
fn ancestors(given: &WitnessBlock, block: &Block) -> Result<Vec<Sealed<Header>>, WitnessFault> {
    let headers = given.decode_headers().map_err(WitnessFault::Headers)?;
    let headers: Vec<_> = headers.into_iter().map(|(hash, header)| Sealed::new_unchecked(header, hash)).collect();
    let children = headers.iter().skip(1).map(|header| &**header).chain([&block.header]);
    for (parent, child) in headers.iter().zip(children) {
        let (got, expected) = (parent.hash(), child.parent_hash);
        if got != expected || parent.number.checked_add(1) != Some(child.number) {
            return Err(WitnessFault::NotLinked { block: child.number, got, expected });
        }
    }
    Ok(headers)
}

/// The file's access list, held to the rules, and to the header's hash where the header commits to one. (That it has the
/// hash that the file says was found while reading.)
fn list(given: &WitnessBlock, block: &Block) -> Result<Option<Bal>, WitnessFault> {
    let Some(raw) = given.block_access_list.clone() else { return Ok(None) };
    let limits = BalLimits::from(&block.facts());
    let checked = Bal::decode_checked(raw, block.header.block_access_list_hash, &limits);
    checked.map(Some).map_err(|source| WitnessFault::List { block: block.num_hash(), source })
}

fn confirm(list: &Bal, executed: &ExecutedBlock, block: BlockNumHash) -> Result<(), WitnessFault> {
    match list.first_mismatch(&executed.rebuilt_bal) {
        None => Ok(()),
        Some(difference) => Err(WitnessFault::ListMismatch { block, difference: Box::new(difference) }),
    }
}

/// The state that the source of the witness says the block led to.
fn stated(diffs: &[WitnessDiff]) -> HashedPostState {
    let mut state = HashedPostState::new(EmptyAccounts::Keep);
    for diff in diffs {
        let storage = diff.storage.iter().map(|slot| (hash_slot(&slot.slot), slot.post_value)).collect();
        let delta = match &diff.post_account {
            Some(account) => AccountDelta {
                nonce: Some(account.nonce),
                balance: Some(account.balance),
                code_hash: Some(account.code_hash),
                storage,
                ..AccountDelta::default()
            },
            None => AccountDelta { cleared: Cleared::Account, ..AccountDelta::default() },
        };
        state.accounts.insert(hash_address(&diff.address), delta);
    }
    state
}
