//! ethrex-trie: nodes stay in memory once they were read, and are written to a map by their path.
//!
//! It is built without its `std` feature, which brings in a library under the LGPL. Its trie is then the same but for the
//! locks, which are cheaper, and its hash function, which is the assembly for one state at a time.

use alloy_primitives::B256;
use ethrex_crypto::NativeCrypto;
use ethrex_trie::{InMemoryTrieDB, Trie, db::NodeMap};

use super::PeerTrie;
use crate::contender::AnyError;

/// See the module's description.
pub(super) struct EthrexTries {
    trie: Trie,
    nodes: NodeMap,
}

impl PeerTrie for EthrexTries {
    const NAME: &'static str = "ethrex-trie";

    fn empty() -> Self {
        let nodes = NodeMap::default();
        Self { trie: Trie::new(Box::new(InMemoryTrieDB::new(nodes.clone()))), nodes }
    }

    fn get(&self, key: &B256) -> Result<Option<Vec<u8>>, AnyError> {
        Ok(self.trie.get(key.as_slice())?)
    }

    fn insert(&mut self, key: &B256, value: Vec<u8>) -> Result<(), AnyError> {
        Ok(self.trie.insert(key.to_vec(), value)?)
    }

    fn remove(&mut self, key: &B256) -> Result<(), AnyError> {
        self.trie.remove(key.as_slice())?;
        Ok(())
    }

    fn root(&mut self) -> Result<B256, AnyError> {
        Ok(B256::from(self.trie.hash(&NativeCrypto)?.0))
    }

    fn reopen(&mut self) -> Result<(), AnyError> {
        let root = self.trie.hash(&NativeCrypto)?;
        self.trie = Trie::open(Box::new(InMemoryTrieDB::new(self.nodes.clone())), root);
        Ok(())
    }
}
