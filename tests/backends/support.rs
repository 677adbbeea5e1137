//! What the suites share: stores of each kind, and an executor of simulated blocks.

use std::{num::NonZeroUsize, ops::Deref, sync::Arc, time::Duration};

use alloy_primitives::{Address, B256, U256, keccak256};
use foldgate::{
    BlockRequest, BlockResult, MemoryStore, Pipeline, PipelineConfig, StateReader, TrieReader, TrieStore, Verdict,
    core::{BalStore, BlockAccessIndex, keys, trie::bulk::StateLoad},
    pipeline::{
        BackgroundFlush, Begun, BlockHandle, Flush, Outcome, RebuiltBal, RecordError, ValidBlock, VerdictTicket,
    },
};
use foldgate_storage_mdbx::MdbxStore;
use foldgate_storage_redb::RedbStore;
use foldgate_testing::{
    conformance::{DurableFactory, StoreFactory},
    sim::{Sim, SimBlock, SimSize, load_items},
};
use tempfile::TempDir;

use crate::logs::file_log;

/// Stores in memory.
#[derive(Default)]
pub(crate) struct InMemory;

impl StoreFactory for InMemory {
    type Store = MemoryStore;

    fn fresh(&self) -> Self::Store {
        MemoryStore::new()
    }
}

/// One redb store in a temporary folder.
pub(crate) struct OnRedb(TempDir);

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

/// One MDBX store in a temporary folder.
pub(crate) struct OnMdbx(TempDir);

impl Default for OnMdbx {
    fn default() -> Self {
        Self(TempDir::new().unwrap())
    }
}

impl StoreFactory for OnMdbx {
    type Store = MdbxStore;

    fn fresh(&self) -> MdbxStore {
        MdbxStore::open(self.0.path(), foldgate_storage_mdbx::Options::default()).unwrap()
    }
}

impl DurableFactory for OnMdbx {
    fn reopen(&self, store: MdbxStore) -> MdbxStore {
        drop(store);
        self.fresh()
    }
}

/// A chain of its own from a seed, its genesis first, and what goes on with it.
pub(crate) fn chain(seed: u64, length: usize, size: SimSize) -> (Sim, Vec<SimBlock>) {
    println!("seed {seed}");
    let mut sim = Sim::new(seed, size);
    let mut blocks = vec![sim.genesis()];
    for _ in 0..length {
        let next = sim.child(&blocks[blocks.len() - 1]);
        blocks.push(next);
    }
    (sim, blocks)
}

/// A genesis from a seed in a store in memory, and what goes on with it.
pub(crate) fn world(seed: u64) -> (Sim, SimBlock, Arc<MemoryStore>) {
    println!("seed {seed}");
    let mut sim = Sim::new(seed, SimSize::default());
    let genesis = sim.genesis();
    let store = load(MemoryStore::new(), &genesis);
    (sim, genesis, store)
}

/// Loads a simulated genesis.
pub(crate) fn load<S: TrieStore>(store: S, genesis: &SimBlock) -> Arc<S> {
    let items = load_items(&genesis.state).into_iter().map(Ok::<_, std::convert::Infallible>);
    let source = StateLoad::new(items, genesis.facts.block).expecting(genesis.state_root);
    store.load(source).unwrap();
    Arc::new(store)
}

/// A pipeline as nodes have it: with a record log, in a folder that goes with the pipeline, and flushed in the background.
pub(crate) struct Opened<S: TrieStore> {
    // Dropped in this order.
    pipeline: Pipeline<S>,
    _log: TempDir,
}

impl<S: TrieStore> Deref for Opened<S> {
    type Target = Pipeline<S>;

    fn deref(&self) -> &Pipeline<S> {
        &self.pipeline
    }
}

/// Opens a pipeline as suites do, unless they are about another kind: see [`Opened`]. It is flushed in small steps, so that
/// flushes fall into the tests. The store has what it was told after `flush`, and not before.
pub(crate) fn open<S: BalStore>(store: &Arc<S>, config: PipelineConfig) -> Opened<S> {
    let blocks = NonZeroUsize::new(3).unwrap();
    let flush = BackgroundFlush { keep_in_memory: 2, blocks, ..BackgroundFlush::default() };
    let log = TempDir::new().unwrap();
    let config = config.with_flush(Flush::Background(flush));
    let pipeline = Pipeline::open_with_log(Arc::clone(store), file_log(log.path()), config).unwrap();
    Opened { pipeline, _log: log }
}

/// Opens a pipeline without a log, which hands each canonical block to the store at once: for tests that are about that.
pub(crate) fn open_synchronous<S: BalStore>(store: &Arc<S>, config: PipelineConfig) -> Pipeline<S> {
    Pipeline::open(Arc::clone(store), config).unwrap()
}

/// Opens a pipeline in the BAL-driven mode.
pub(crate) fn bal_driven<S: BalStore>(store: &Arc<S>) -> Opened<S> {
    open(store, PipelineConfig::default().with_bal_driven(true))
}

/// The request of a block, with its list.
pub(crate) fn request(block: &SimBlock) -> BlockRequest {
    BlockRequest::new(block.facts).with_bal(block.raw.clone())
}

/// Begins a block that must not be known yet.
pub(crate) fn start<S: TrieStore>(pipeline: &Pipeline<S>, request: BlockRequest) -> BlockHandle<S::Snapshot> {
    assert!(pipeline.wait_for_room(Duration::from_secs(60)), "no room within a minute");
    match pipeline.begin(request).unwrap() {
        Begun::Started(handle) => handle,
        Begun::Known(verdict) => panic!("known already: {verdict:?}"),
    }
}

/// What an honest executor says at the end.
pub(crate) fn honest(block: &SimBlock) -> BlockResult {
    let rebuilt_bal = Some(RebuiltBal { hash: block.bal_hash, list: Some(block.list.clone()) });
    BlockResult { rebuilt_bal, expected_state_root: None }
}

/// Records the block's writes.
pub(crate) fn record<R: TrieReader>(handle: &mut BlockHandle<R>, block: &SimBlock) {
    handle.record(BlockAccessIndex::PRE_EXECUTION, &Default::default()).unwrap();
    for (index, writes) in &block.writes {
        handle.record(*index, writes).unwrap();
    }
}

/// Executes a block honestly; stops where the block was stopped.
pub(crate) fn execute<R: TrieReader>(mut handle: BlockHandle<R>, block: &SimBlock) -> VerdictTicket {
    let recorded = handle.record(BlockAccessIndex::PRE_EXECUTION, &Default::default());
    let recorded =
        recorded.and_then(|()| block.writes.iter().try_for_each(|(index, writes)| handle.record(*index, writes)));
    match recorded {
        Ok(()) => handle.finish(honest(block)),
        Err(RecordError::Halted(_)) => handle.stop(),
        Err(error) => panic!("{error}"),
    }
}

/// The stored state, leaf by leaf, is the oracle's.
pub(crate) fn assert_state<S: TrieStore>(store: &S, block: &SimBlock) {
    let snapshot = store.snapshot().unwrap();
    assert_eq!(snapshot.anchor(), block.anchor());
    let expected = block.state.hashed();
    let accounts = snapshot.accounts_from(&B256::ZERO, expected.len() + 1).unwrap();
    assert_eq!(accounts.len(), expected.len());
    for ((hashed_address, account), (expected_address, expected)) in accounts.iter().zip(&expected) {
        assert_eq!(hashed_address, expected_address);
        assert_eq!(
            (account.nonce, account.balance, account.code_hash),
            (expected.nonce, expected.balance, expected.code_hash)
        );
        let slots = snapshot.slots_from(hashed_address, &B256::ZERO, expected.storage.len() + 1).unwrap();
        assert!(slots.into_iter().eq(expected.storage.iter().map(|(slot, value)| (*slot, *value))));
    }
}

/// The valid block of an outcome, which must be one.
pub(crate) fn valid(outcome: Outcome) -> Arc<ValidBlock> {
    match outcome {
        Ok(Verdict::Valid(valid)) => valid,
        other => panic!("not valid: {other:?}"),
    }
}

/// The executor's view is the parent's state.
pub(crate) fn assert_view<R: StateReader>(view: &R, parent: &SimBlock) {
    for index in 0..48_u64 {
        let address = Address::from_slice(&keccak256(index.to_be_bytes())[..20]);
        let hashed_address = keys::hash_address(&address);
        let info = view.account_info(&hashed_address).unwrap_or_else(|error| panic!("{error}"));
        let expected = parent.state.accounts.get(&address);
        assert_eq!(
            info.map(|info| (info.nonce, info.balance, info.code_hash)),
            expected.map(|account| (account.nonce, account.balance, account.code_hash())),
            "{address} after {}",
            parent.facts.block
        );
        for slot in (0..24).map(U256::from) {
            let value = view.storage(&hashed_address, &keys::hash_slot(&slot)).unwrap();
            let expected = expected.and_then(|account| account.storage.get(&slot)).copied().unwrap_or_default();
            assert_eq!(value, expected, "{address} slot {slot} after {}", parent.facts.block);
        }
        if let Some(account) = expected.filter(|account| !account.code.is_empty()) {
            assert_eq!(view.code(&account.code_hash()).unwrap().as_ref(), Some(&account.code));
        }
    }
    assert_eq!(view.block_hash(parent.facts.block.number).unwrap(), Some(parent.facts.block.hash));
    assert_eq!(view.block_hash(parent.facts.block.number + 1).unwrap(), None);
}

/// splitmix64: a stream of choices that the seed names.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    pub(crate) fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}
