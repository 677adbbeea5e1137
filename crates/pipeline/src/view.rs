//! What a block's executor reads: its parent's state, as soon as the parent's execution has ended.
//!
//! ```text
//!   ParentState --waits at--> StateGate --opens to--> StateView
//!                                                       executed, root not folded yet: ExecutedLayer, newest first
//!                                                       committed in memory:           Overlay's layers
//!                                                       durable:                       snapshot + warm-up cache
//! ```
//!
//! Invariant: a layer above wins over the layers below it, field by field and slot by slot.

use std::sync::{Arc, OnceLock};

use alloy_primitives::{B256, Bytes, U256};
use foldgate_core::{
    AccountInfo, BlockHash, BlockNumHash, BlockNumber, HashedPostState, Overlay, StateReader, TrieReader,
};

use crate::{gate::StateGate, halt::Halt, warm::Warm};

/// What the execution of one block changed, before its root is known.
#[derive(Debug, Clone)]
pub(crate) struct ExecutedLayer {
    pub(crate) block: BlockNumHash,
    pub(crate) state: Arc<HashedPostState>,
}

/// The state after one executed block.
#[derive(Debug)]
pub(crate) struct StateView<R> {
    /// Newest first.
    pub(crate) executed: Vec<ExecutedLayer>,
    pub(crate) committed: Overlay<Warm<R>>,
}

impl<R: TrieReader> StateView<R> {
    fn info_below(&self, executed: &[ExecutedLayer], hashed_address: &B256) -> Result<Option<AccountInfo>, R::Error> {
        let Some((layer, below)) = executed.split_first() else {
            return self.committed.account_info(hashed_address);
        };
        match layer.state.accounts.get(hashed_address) {
            None => self.info_below(below, hashed_address),
            Some(delta) => {
                let parent = self.info_below(below, hashed_address)?;
                Ok(delta.merge_info(parent).filter(|info| layer.state.keeps(info)))
            }
        }
    }

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, R::Error> {
        self.info_below(&self.executed, hashed_address)
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, R::Error> {
        let executed = self.executed.iter().filter_map(|layer| layer.state.accounts.get(hashed_address));
        match executed.filter_map(|delta| delta.slot(hashed_slot)).next() {
            Some(value) => Ok(value),
            None => self.committed.storage(hashed_address, hashed_slot),
        }
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, R::Error> {
        match self.executed.iter().find_map(|layer| layer.state.codes.get(code_hash)) {
            Some(code) => Ok(Some(code.clone())),
            None => self.committed.code(code_hash),
        }
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, R::Error> {
        match self.executed.iter().find(|layer| layer.block.number == number) {
            Some(layer) => Ok(Some(layer.block.hash)),
            None => self.committed.block_hash(number),
        }
    }
}

/// Why a read of the parent's state failed. Neither says anything about the block's validity.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError<E> {
    /// The block was stopped; the executor should stop too.
    #[error("stopped: {0}")]
    Halted(#[from] Halt),
    /// The storage failed. It is remembered: the block cannot be judged any more.
    #[error("storage: {0}")]
    Storage(Arc<E>),
}

/// The parent's state, for the block's executor. At hand at once; a read waits until the parent has been executed, and
/// fails when the block is cancelled.
#[derive(Debug)]
pub struct ParentState<R: TrieReader> {
    pub(crate) gate: Arc<StateGate<StateView<R>>>,
    /// The first failed read.
    pub(crate) failure: Arc<OnceLock<Arc<R::Error>>>,
}

impl<R: TrieReader> Clone for ParentState<R> {
    fn clone(&self) -> Self {
        Self { gate: Arc::clone(&self.gate), failure: Arc::clone(&self.failure) }
    }
}

impl<R: TrieReader> ParentState<R> {
    /// Waits until the parent's state can be read.
    ///
    /// # Errors
    /// If the block is cancelled.
    pub fn wait_until_ready(&self) -> Result<(), Halt> {
        self.gate.wait().map(|_| ())
    }

    /// Whether a read would be served without waiting for the parent.
    pub fn is_ready(&self) -> bool {
        self.gate.is_open()
    }

    fn read<T>(&self, read: impl FnOnce(&StateView<R>) -> Result<T, R::Error>) -> Result<T, ReadError<R::Error>> {
        read(self.gate.wait()?).map_err(|error| {
            let error = Arc::new(error);
            // Only the first failure is kept.
            let _first = self.failure.set(Arc::clone(&error));
            ReadError::Storage(error)
        })
    }
}

impl<R: TrieReader> StateReader for ParentState<R> {
    type Error = ReadError<R::Error>;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, Self::Error> {
        self.read(|view| view.account_info(hashed_address))
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, Self::Error> {
        self.read(|view| view.storage(hashed_address, hashed_slot))
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, Self::Error> {
        self.read(|view| view.code(code_hash))
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, Self::Error> {
        self.read(|view| view.block_hash(number))
    }
}
