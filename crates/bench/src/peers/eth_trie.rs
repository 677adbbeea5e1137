//! eth_trie: nodes in a hash map by their hash; what is no longer referred to is dropped.

use std::sync::Arc;

use ::eth_trie::{EthTrie, MemoryDB, Trie};
use alloy_primitives::B256;

use super::PeerTrie;
use crate::contender::AnyError;

/// See the module's description.
pub(super) struct EthTries {
    trie: EthTrie<MemoryDB>,
    database: Arc<MemoryDB>,
}

impl PeerTrie for EthTries {
    const NAME: &'static str = "eth_trie";

    fn empty() -> Self {
        let database = Arc::new(MemoryDB::new(true));
        Self { trie: EthTrie::new(Arc::clone(&database)), database }
    }

    fn get(&self, key: &B256) -> Result<Option<Vec<u8>>, AnyError> {
        Ok(self.trie.get(key.as_slice())?)
    }

    fn insert(&mut self, key: &B256, value: Vec<u8>) -> Result<(), AnyError> {
        Ok(self.trie.insert(key.as_slice(), &value)?)
    }

    fn remove(&mut self, key: &B256) -> Result<(), AnyError> {
        self.trie.remove(key.as_slice())?;
        Ok(())
    }

    fn root(&mut self) -> Result<B256, AnyError> {
        Ok(B256::from(self.trie.root_hash()?.0))
    }

    fn reopen(&mut self) -> Result<(), AnyError> {
        let root = self.trie.root_hash()?;
        self.trie = EthTrie::from(Arc::clone(&self.database), root)?;
        Ok(())
    }
}
