//! A store and the genesis it was filled from: a chain goes on in a store only where its genesis began.
//!
//! Invariant: a store that holds another genesis is never written to.

use std::{convert::Infallible, error::Error, sync::Arc};

use alloy_consensus::Header;
use alloy_genesis::Genesis;
use alloy_primitives::Sealed;
use foldgate_core::{
    BlockNumHash, StateAnchor, TrieStore,
    trie::bulk::{BulkError, LoadItem, LoadObserver, StateLoad, state_root},
};
use foldgate_evm::{AmsterdamRules, ChainSpec, ChainSpecError, GenesisError, genesis::genesis_header_with_state_root};

use crate::state::genesis_load_items;

/// Why a chain cannot go on in a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainStoreError {
    /// The genesis does not tell the chain's rules.
    #[error("genesis: config")]
    Rules(#[from] ChainSpecError),
    /// The genesis has no header.
    #[error("genesis: header")]
    Header(#[from] GenesisError),
    /// The genesis' accounts make no state.
    #[error("genesis: alloc")]
    Alloc(#[from] BulkError<Infallible>),
    /// The store was filled from another genesis.
    #[error("the store's genesis is {got}, the genesis given is {expected}")]
    OtherGenesis {
        /// In the store.
        got: BlockNumHash,
        /// The one given.
        expected: BlockNumHash,
    },
    /// The store failed.
    #[error("the store failed")]
    Store(#[source] Box<dyn Error + Send + Sync>),
}

/// A chain's beginning: its rules, its first block, and its first state.
#[derive(Debug)]
pub struct Origin {
    /// The rules.
    pub spec: ChainSpec,
    /// The genesis' header.
    pub header: Sealed<Header>,
    items: Vec<LoadItem>,
}

impl Origin {
    /// Works out what follows from a genesis.
    ///
    /// # Errors
    /// If the genesis does not tell the rules, or makes no state or header.
    pub fn new(genesis: &Genesis, rules: AmsterdamRules) -> Result<Self, ChainStoreError> {
        let spec = ChainSpec::from_genesis(genesis, rules)?;
        let items = genesis_load_items(genesis);
        let root = state_root(items.iter().cloned().map(Ok))?;
        let header = genesis_header_with_state_root(&spec, genesis, root)?;
        Ok(Self { spec, header, items })
    }

    /// The genesis block and its state root.
    pub fn anchor(&self) -> StateAnchor {
        let block = BlockNumHash::new(self.header.number, self.header.hash());
        StateAnchor { block, state_root: self.header.state_root }
    }

    /// Where a store stands that is to hold this chain: its tip, or this genesis while it is empty. Writes nothing.
    ///
    /// # Errors
    /// [`ChainStoreError::OtherGenesis`], or the store's failure.
    pub fn tip<S: TrieStore>(&self, store: &S) -> Result<StateAnchor, ChainStoreError> {
        let expected = self.anchor().block;
        match store.genesis().map_err(failed)? {
            None => Ok(self.anchor()),
            Some(genesis) if genesis.block != expected => {
                Err(ChainStoreError::OtherGenesis { got: genesis.block, expected })
            }
            Some(_) => Ok(store.tip().map_err(failed)?.unwrap_or_else(|| self.anchor())),
        }
    }

    /// The accounts and slots of the genesis.
    pub fn leaves(&self) -> u64 {
        self.items.iter().filter(|item| !matches!(item, LoadItem::Code { .. })).count() as u64
    }

    /// Fills the store from this genesis if it is empty, and tells `observer` how far it has come.
    ///
    /// # Errors
    /// The store's failure.
    pub fn load<S: TrieStore>(&self, store: &Arc<S>, observer: impl LoadObserver) -> Result<(), ChainStoreError> {
        if store.tip().map_err(failed)?.is_some() {
            return Ok(());
        }
        let items = self.items.iter().cloned().map(Ok::<_, Infallible>);
        let load = StateLoad::new(items, self.anchor().block).expecting(self.header.state_root);
        load.observed_by(observer).load_into(&**store).map_err(failed)?;
        Ok(())
    }
}

fn failed(error: impl Error + Send + Sync + 'static) -> ChainStoreError {
    ChainStoreError::Store(Box::new(error))
}
