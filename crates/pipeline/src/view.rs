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

use alloy_primitives::{Address, B256, Bytes, U256};
use foldgate_bal::Bal;
use foldgate_core::{
    AccountInfo, BlockHash, BlockNumHash, BlockNumber, Cached, EmptyAccounts, HashedPostState, Overlay, StateReader,
    TrieReader,
    keys::{hash_address, hash_slot},
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
    /// The block's own list, whose keys are hashed already; empty until it is prepared, and where there is none.
    pub(crate) listed: Arc<OnceLock<Arc<Bal>>>,
}

impl<R: TrieReader> Clone for ParentState<R> {
    fn clone(&self) -> Self {
        Self { gate: Arc::clone(&self.gate), failure: Arc::clone(&self.failure), listed: Arc::clone(&self.listed) }
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

    /// The hash of an address: looked up if the block's list names it, which costs a fraction of hashing it again.
    pub fn hash_address(&self, address: &Address) -> B256 {
        let listed = self.listed.get().and_then(|bal| bal.keys().hashed_address(address));
        listed.unwrap_or_else(|| hash_address(address))
    }

    /// The hash of an account's slot: looked up if the block's list names it.
    pub fn hash_slot(&self, address: &Address, slot: &U256) -> B256 {
        let listed = self.listed.get().and_then(|bal| bal.keys().hashed_slot(address, slot));
        listed.unwrap_or_else(|| hash_slot(slot))
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
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use alloy_primitives::keccak256;
    use foldgate_bal::AccountChanges;
    use foldgate_core::{
        AccountDelta, BlockFacts, MemoryStore, PageCache, TrieStore,
        trie::bulk::{GenesisAccount, StateLoad, genesis_items},
    };

    use super::*;
    use crate::{Begun, BlockRequest, Pipeline, PipelineConfig};

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

    fn empty_store() -> MemoryStore {
        let store = MemoryStore::new();
        let none = genesis_items(Vec::<(Address, GenesisAccount)>::new());
        let source = none.into_iter().map(Ok::<_, std::convert::Infallible>);
        store.load(StateLoad::new(source, BlockNumHash::new(0, B256::ZERO))).unwrap();
        store
    }

    /// What a view over these layers, oldest first, and over an empty state says of the account.
    fn read(mut executed: Vec<ExecutedLayer>) -> (Option<U256>, U256) {
        executed.reverse();
        let base = Cached::new(empty_store().snapshot().unwrap(), Arc::new(PageCache::new(0)));
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

    /// Hashes are right whether they are looked up or not, so it is the list's arrival that is waited for here.
    #[test]
    fn the_executor_gets_the_hashes_of_its_list() {
        let pipeline =
            Pipeline::open(Arc::new(empty_store()), PipelineConfig::default().with_bal_driven(true)).unwrap();
        let (listed, other) = (Address::with_last_byte(1), Address::with_last_byte(2));
        let (slot, other_slot) = (U256::from(5), U256::from(6));
        let list = [AccountChanges { storage_reads: vec![slot], ..AccountChanges::new(listed) }];
        let facts = BlockFacts {
            block: BlockNumHash::new(1, B256::repeat_byte(1)),
            parent_hash: B256::ZERO,
            timestamp: 0,
            gas_limit: 60_000_000,
            tx_count: 0,
            expected_state_root: None,
            expected_bal_hash: None,
        };
        let request = BlockRequest::new(facts).with_sourced_bal(foldgate_bal::encode(&list));
        let Begun::Started(handle) = pipeline.begin(request).unwrap() else { panic!("a new block") };
        let state = handle.parent_state();
        let deadline = Instant::now() + Duration::from_secs(60);
        while state.listed.get().is_none() {
            assert!(Instant::now() < deadline, "the list never came");
            thread::yield_now();
        }
        assert_eq!(state.listed.get().unwrap().keys().hashed_slot(&listed, &slot), Some(hash_slot(&slot)));
        for (address, slot) in [(listed, slot), (listed, other_slot), (other, slot), (other, other_slot)] {
            assert_eq!((state.hash_address(&address), state.hash_slot(&address, &slot)), {
                (keccak256(address), keccak256(slot.to_be_bytes::<32>()))
            });
        }
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
