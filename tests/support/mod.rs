//! What the suites share: stores of each kind, an executor of simulated blocks, and a store that fails on demand.

pub mod faulty;

use std::{sync::Arc, time::Duration};

use foldgate::{
    BlockRequest, BlockResult, Pipeline, PipelineConfig, TrieReader, TrieStore, Verdict,
    core::trie::bulk::StateLoad,
    pipeline::{Begun, BlockHandle, Outcome, RebuiltBal, ValidBlock, VerdictTicket},
};
use foldgate_storage_redb::RedbStore;
use foldgate_testing::{
    conformance::{DurableFactory, StoreFactory},
    sim::{SimBlock, load_items},
};
use tempfile::TempDir;

/// Stores in memory.
#[derive(Default)]
pub struct InMemory;

impl StoreFactory for InMemory {
    type Store = foldgate::MemoryStore;

    fn fresh(&self) -> Self::Store {
        foldgate::MemoryStore::new()
    }
}

/// One redb store in a temporary folder.
pub struct OnRedb(TempDir);

impl Default for OnRedb {
    fn default() -> Self {
        Self(TempDir::new().unwrap())
    }
}

impl StoreFactory for OnRedb {
    type Store = RedbStore;

    fn fresh(&self) -> RedbStore {
        RedbStore::open(self.0.path(), foldgate_storage_redb::Options::default().with_cache_bytes(32 << 20)).unwrap()
    }
}

impl DurableFactory for OnRedb {
    fn reopen(&self, store: RedbStore) -> RedbStore {
        drop(store);
        self.fresh()
    }
}

/// Loads a simulated genesis.
pub fn load<S: TrieStore>(store: S, genesis: &SimBlock) -> Arc<S> {
    let items = load_items(&genesis.state).into_iter().map(Ok::<_, std::convert::Infallible>);
    let source = StateLoad::new(items, genesis.facts.block).expecting(genesis.state_root);
    store.load(source).unwrap();
    Arc::new(store)
}

/// Opens a pipeline in the BAL-driven mode.
pub fn bal_driven<S: TrieStore>(store: &Arc<S>) -> Pipeline<S> {
    Pipeline::open(Arc::clone(store), PipelineConfig::default().with_bal_driven(true)).unwrap()
}

/// The request of a block, with its list.
pub fn request(block: &SimBlock) -> BlockRequest {
    BlockRequest::new(block.facts).with_bal(block.raw.clone())
}

/// Begins a block that must not be known yet.
pub fn start<S: TrieStore>(pipeline: &Pipeline<S>, request: BlockRequest) -> BlockHandle<S::Snapshot> {
    assert!(pipeline.wait_for_room(Duration::from_secs(60)), "no room within a minute");
    match pipeline.begin(request).unwrap() {
        Begun::Started(handle) => handle,
        Begun::Known(verdict) => panic!("known already: {verdict:?}"),
    }
}

/// What an honest executor says at the end.
pub fn honest(block: &SimBlock) -> BlockResult {
    let rebuilt_bal = Some(RebuiltBal { hash: block.bal_hash, list: Some(block.list.clone()) });
    BlockResult { rebuilt_bal, expected_state_root: None }
}

/// Records the block's writes.
pub fn record<R: TrieReader>(handle: &mut BlockHandle<R>, block: &SimBlock) {
    handle.record(foldgate::core::BlockAccessIndex::PRE_EXECUTION, &Default::default()).unwrap();
    for (index, writes) in &block.writes {
        handle.record(*index, writes).unwrap();
    }
}

/// Executes a block honestly.
pub fn execute<R: TrieReader>(mut handle: BlockHandle<R>, block: &SimBlock) -> VerdictTicket {
    record(&mut handle, block);
    handle.finish(honest(block))
}

/// The valid block of an outcome, which must be one.
pub fn valid(outcome: Outcome) -> Arc<ValidBlock> {
    match outcome {
        Ok(Verdict::Valid(valid)) => valid,
        other => panic!("not valid: {other:?}"),
    }
}
