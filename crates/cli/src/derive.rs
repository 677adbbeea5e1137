//! Access lists for blocks that came without one: the block is executed beforehand, on a throw-away view of its parent's
//! state, and the list that this gives then goes with the block as if it had arrived with it.
//!
//! Invariants:
//! 1. Nothing of the derivation but the list's bytes reaches the pipeline: the list is judged like any other.
//! 2. A block that turns out invalid has no list, and is left to the pipeline to refuse.

use alloy_consensus::Header;
use alloy_hardforks::EthereumHardforks;
use alloy_primitives::{Address, B256, Bytes, Sealed, U256, map::HashMap};
use foldgate_core::{AccountInfo, BlockHash, BlockNumber, EmptyAccounts, HashedPostState, KeyHasher, StateReader};
use foldgate_evm::{Block, ChainSpec, ExecutionError, process_block};

/// The raw list of `block` over its parent's state, or `None` for a block that is found invalid or older than Cancun
/// (no list tells everything that such a block changes).
///
/// # Errors
/// If a read fails.
pub fn derive_list<R: StateReader>(
    spec: &ChainSpec,
    parent: &Sealed<Header>,
    block: &Block,
    senders: &[Address],
    parent_state: R,
) -> Result<Option<Bytes>, ExecutionError<R::Error>> {
    if !spec.is_cancun_active_at_timestamp(block.header.timestamp) {
        return Ok(None);
    }
    match process_block(spec, parent, block, senders, parent_state, &mut |_, _| {}, &|| false) {
        Ok(executed) => Ok(Some(executed.rebuilt_bal_rlp)),
        Err(ExecutionError::Invalid(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The state after some blocks that were executed over a snapshot, their roots unknown: what the next block's derivation
/// reads. It grows with each block, so it is for a window of blocks.
#[derive(Debug)]
pub struct Executed<R> {
    base: R,
    state: HashedPostState,
    hasher: KeyHasher,
    block_hashes: HashMap<BlockNumber, BlockHash>,
}

impl<R: StateReader> Executed<R> {
    /// Nothing was executed yet over `base`.
    pub fn new(base: R) -> Self {
        let state = HashedPostState::new(EmptyAccounts::Keep);
        Self { base, state, hasher: KeyHasher::default(), block_hashes: HashMap::default() }
    }

    /// Executes `block` over what was executed before it, keeps what it changed, and gives its list, unless it is older
    /// than Cancun. `None` also for an invalid block: then nothing is kept, and no later block can be executed.
    ///
    /// # Errors
    /// If a read fails.
    pub fn execute(
        &mut self,
        spec: &ChainSpec,
        parent: &Sealed<Header>,
        block: &Block,
        senders: &[Address],
    ) -> Result<Execution, ExecutionError<R::Error>> {
        let mut changes = HashedPostState::new(EmptyAccounts::Keep);
        let hasher = &mut self.hasher;
        let view = View { base: &self.base, state: &self.state, block_hashes: &self.block_hashes };
        let mut sink = |_, writes| changes.apply_writes(&writes, hasher);
        match process_block(spec, parent, block, senders, view, &mut sink, &|| false) {
            Ok(executed) => {
                self.state.merge(&changes);
                self.block_hashes.insert(block.header.number, block.hash);
                let cancun = spec.is_cancun_active_at_timestamp(block.header.timestamp);
                Ok(Execution::Valid { list: cancun.then_some(executed.rebuilt_bal_rlp) })
            }
            Err(ExecutionError::Invalid(_)) => Ok(Execution::Invalid),
            Err(error) => Err(error),
        }
    }
}

/// What [`Executed::execute`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Execution {
    /// The block is valid as far as can be told without its state root.
    Valid {
        /// Its list, unless it is older than Cancun.
        list: Option<Bytes>,
    },
    /// The block is invalid.
    Invalid,
}

struct View<'a, R> {
    base: &'a R,
    state: &'a HashedPostState,
    block_hashes: &'a HashMap<BlockNumber, BlockHash>,
}

impl<R: StateReader> StateReader for View<'_, R> {
    type Error = R::Error;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, R::Error> {
        let below = self.base.account_info(hashed_address)?;
        Ok(match self.state.accounts.get(hashed_address) {
            Some(delta) => delta.merge_info(below),
            None => below,
        })
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, R::Error> {
        match self.state.accounts.get(hashed_address).and_then(|delta| delta.slot(hashed_slot)) {
            Some(value) => Ok(value),
            None => self.base.storage(hashed_address, hashed_slot),
        }
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, R::Error> {
        match self.state.codes.get(code_hash) {
            Some(code) => Ok(Some(code.clone())),
            None => self.base.code(code_hash),
        }
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, R::Error> {
        match self.block_hashes.get(&number) {
            Some(hash) => Ok(Some(*hash)),
            None => self.base.block_hash(number),
        }
    }
}
