//! Executes a block on the executor's side of the pipeline: what the EVM changed is recorded as it happens, and how it
//! ended becomes the block's result.
//!
//! Invariants:
//! 1. What the machine could not do never rejects a block: a failed read or a failing EVM leaves it unjudged, a
//!    cancellation stops it.
//! 2. A rebuilt list that is not the header's goes to the calculator, which names the first difference.

use std::time::{Duration, Instant};

use alloy_consensus::Header;
use alloy_hardforks::EthereumHardforks;
use alloy_primitives::{Address, Sealed};
use foldgate_core::{BlockAccessIndex, StateWrites, TrieReader};
use foldgate_pipeline::{BlockHandle, BlockRequest, BlockResult, ReadError, RebuiltBal, VerdictTicket};

use crate::{
    block::Block,
    chain_spec::ChainSpec,
    execute::{ExecutedBlock, ExecutionError, execute_with},
    invalid::BlockInvalid,
    validate::{validate_block, validate_execution},
};

/// A block that went through the executor.
#[derive(Debug)]
pub struct Driven {
    /// Waits for the verdict.
    pub ticket: VerdictTicket,
    /// What execution gave, if it came to its end, whatever came of it then.
    pub executed: Option<ExecutedBlock>,
    /// The time from when the parent's state could be read to the end of execution.
    pub execution: Duration,
}

/// The request of a block as its header tells: facts, and whether it is older than Cancun. Add its list, if it has one.
///
/// Verdicts are remembered by the block's hash: make sure beforehand that the body is the header's
/// ([`crate::validate_body_roots`]).
pub fn request(spec: &ChainSpec, block: &Block) -> BlockRequest {
    BlockRequest::new(block.facts()).before_cancun(!spec.is_cancun_active_at_timestamp(block.header.timestamp))
}

/// Validates and executes a block over its parent's state, recording into `handle`, and ends the handle with the
/// result. Waits until the parent's state can be read.
pub fn drive<R: TrieReader>(
    spec: &ChainSpec,
    parent: &Sealed<Header>,
    block: &Block,
    senders: &[Address],
    mut handle: BlockHandle<R>,
) -> Driven {
    let unexecuted = |ticket| Driven { ticket, executed: None, execution: Duration::ZERO };
    if let Err(invalid) = validate_block(spec, parent, block) {
        return unexecuted(handle.reject(invalid));
    }
    let parent_state = handle.parent_state();
    // An empty record: tells a block that changes nothing from an executor that records nothing.
    let ready = parent_state.wait_until_ready().is_ok()
        && handle.record(BlockAccessIndex::PRE_EXECUTION, &StateWrites::default()).is_ok();
    if !ready {
        return unexecuted(handle.stop());
    }
    let begin = Instant::now();
    let token = handle.cancel_token();
    let mut refused = None;
    let executed = execute_with(
        parent_state.clone(),
        spec,
        block,
        senders,
        parent_state,
        &mut |index, writes| {
            if refused.is_none() {
                refused = handle.record(index, &writes).err();
            }
        },
        &|| token.is_cancelled(),
    );
    let execution = begin.elapsed();
    let (ticket, executed) = match (executed, refused) {
        // Stopped, or the executor's indices are wrong: a bug, which must not become a verdict.
        (_, Some(error)) if !token.is_cancelled() => (handle.fail(error), None),
        (_, Some(_)) | (Err(ExecutionError::Cancelled | ExecutionError::Storage(ReadError::Halted(_))), None) => {
            (handle.stop(), None)
        }
        (Ok(executed), None) => match validate_execution(spec, block, &executed) {
            confirmed @ (Ok(()) | Err(BlockInvalid::BalHash { .. })) => {
                // Looked into for the first difference alone.
                let list = confirmed.is_err().then(|| executed.rebuilt_bal.as_slice().to_vec());
                let rebuilt_bal = Some(RebuiltBal { hash: executed.rebuilt_bal_hash, list });
                (handle.finish(BlockResult { rebuilt_bal, expected_state_root: None }), Some(executed))
            }
            Err(invalid) => (handle.reject(invalid), Some(executed)),
        },
        (Err(ExecutionError::Invalid(invalid)), None) => (handle.reject(invalid), None),
        (Err(error), None) => (handle.fail(error), None),
    };
    Driven { ticket, executed, execution }
}
