//! What a block's executor reads: its parent's state, as soon as the parent's execution has ended.
//!
//! ```text
//!   ParentState --waits at--> StateGate --opens to--> StateView
//!                                                       executed, root not folded yet: ExecutedLayer, newest first
//!                                                       committed in memory:           Overlay's layers
//!                                                       durable:                       snapshot behind the page cache
//! ```
//!
//! Invariant: a layer above wins over the layers below it, field by field and slot by slot.

use std::sync::{Arc, OnceLock};

use alloy_primitives::{B256, Bytes, U256};
use foldgate_core::{
    AccountInfo, BlockHash, BlockNumHash, BlockNumber, Cached, EmptyAccounts, HashedPostState, Overlay, StateReader,
    TrieReader,
};

use crate::{gate::StateGate, halt::Halt};

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
    pub(crate) committed: Overlay<Cached<R>>,
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
        for (position, layer) in self.executed.iter().enumerate() {
            let Some(delta) = layer.state.accounts.get(hashed_address) else { continue };
            // A removed account takes its storage along, whatever was written to it in the same block.
            let may_be_removed =
                layer.state.empty_accounts == EmptyAccounts::Remove || delta.cleared != Default::default();
            if may_be_removed && self.info_below(&self.executed[position..], hashed_address)?.is_none() {
                return Ok(U256::ZERO);
            }
            if let Some(value) = delta.slot(hashed_slot) {
                return Ok(value);
            }
        }
        self.committed.storage(hashed_address, hashed_slot)
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

#[cfg(test)]
mod tests {
    use foldgate_core::{
        AccountDelta, MemoryStore, PageCache, TrieStore,
        trie::bulk::{GenesisAccount, StateLoad, genesis_items},
    };

    use super::*;

    const ADDRESS: B256 = B256::repeat_byte(7);
    const SLOT: B256 = B256::repeat_byte(5);

    fn layer(number: u64, empty_accounts: EmptyAccounts, delta: AccountDelta) -> ExecutedLayer {
        let mut state = HashedPostState::new(empty_accounts);
        state.accounts.insert(ADDRESS, delta);
        let hash = B256::repeat_byte(u8::try_from(number).unwrap());
        ExecutedLayer { block: BlockNumHash::new(number, hash), state: Arc::new(state) }
    }

    fn balance(wei: u64) -> AccountDelta {
        AccountDelta { balance: Some(U256::from(wei)), ..AccountDelta::default() }
    }

    /// What a view over these layers, oldest first, and over an empty state says of the account.
    fn read(mut executed: Vec<ExecutedLayer>) -> (Option<U256>, U256) {
        let store = MemoryStore::new();
        let none = genesis_items(Vec::<(alloy_primitives::Address, GenesisAccount)>::new());
        let source = none.into_iter().map(Ok::<_, std::convert::Infallible>);
        store.load(StateLoad::new(source, BlockNumHash::new(0, B256::ZERO))).unwrap();
        executed.reverse();
        let base = Cached::new(store.snapshot().unwrap(), Arc::new(PageCache::new(0)));
        let committed = Overlay::new(base, Vec::new()).unwrap();
        let view = StateView { executed, committed };
        (view.account_info(&ADDRESS).unwrap().map(|info| info.balance), view.storage(&ADDRESS, &SLOT).unwrap())
    }

    /// EIP-7610 knows accounts with storage and without nonce and code: emptied, they are removed by EIP-161.
    #[test]
    fn storage_goes_with_an_account_that_a_list_empties() {
        let owner = AccountDelta { storage: [(SLOT, U256::from(99))].into_iter().collect(), ..balance(10) };
        let created = layer(1, EmptyAccounts::Keep, owner.clone());
        assert_eq!(read(vec![created.clone()]), (Some(U256::from(10)), U256::from(99)));
        let emptied = layer(2, EmptyAccounts::Remove, balance(0));
        assert_eq!(read(vec![created.clone(), emptied.clone()]), (None, U256::ZERO));
        // Created again, it starts without storage.
        let again = layer(3, EmptyAccounts::Remove, balance(3));
        assert_eq!(read(vec![created.clone(), emptied, again.clone()]), (Some(U256::from(3)), U256::ZERO));
        // What the emptying block wrote goes too.
        let written = AccountDelta { balance: Some(U256::ZERO), ..owner };
        let written = layer(2, EmptyAccounts::Remove, written);
        assert_eq!(read(vec![created.clone(), written]), (None, U256::ZERO));
        // Not emptied, it keeps what it has.
        assert_eq!(read(vec![created, again]), (Some(U256::from(3)), U256::from(99)));
    }

    #[test]
    fn storage_goes_with_an_account_that_execution_deletes() {
        let owner = AccountDelta { storage: [(SLOT, U256::from(99))].into_iter().collect(), ..balance(10) };
        let created = layer(1, EmptyAccounts::Keep, owner);
        let mut deleted = AccountDelta::default();
        deleted.delete();
        let mut again = deleted.clone();
        again.balance = Some(U256::from(1));
        assert_eq!(read(vec![created.clone(), layer(2, EmptyAccounts::Keep, deleted)]), (None, U256::ZERO));
        assert_eq!(read(vec![created, layer(2, EmptyAccounts::Keep, again)]), (Some(U256::from(1)), U256::ZERO));
    }
}
