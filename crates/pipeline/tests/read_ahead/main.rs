//! Blocks without a list: what execution writes is read ahead of the fold, in parts, and changes nothing but who reads.

mod counted;

use std::{
    num::NonZeroUsize,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use alloy_primitives::Address;
use counted::{CountedSnapshot, CountedStore};
use foldgate_core::{
    AccountWrites, BlockAccessIndex, EmptyAccounts, HashedPostState, KeyHasher, Layer, StateWrites, TrieStore,
    trie::bulk::StateLoad,
};
use foldgate_pipeline::{
    Begun, BlockHandle, BlockRequest, BlockResult, Canonical, Mode, Pipeline, PipelineConfig, RebuiltBal, SkipReason,
    ValidBlock, Verdict, VerdictTicket,
};
use foldgate_testing::sim::{Sim, SimBlock, SimSize, load_items};

/// The keys that are read between two questions whether to stop.
const BATCH: u64 = 512;

fn one_thread() -> PipelineConfig {
    PipelineConfig { threads: NonZeroUsize::MIN, page_cache_bytes: 0, ..PipelineConfig::default() }
}

fn open(genesis: &SimBlock, config: PipelineConfig) -> (Arc<CountedStore>, Pipeline<CountedStore>) {
    let store = Arc::new(CountedStore::default());
    let items = load_items(&genesis.state).into_iter().map(Ok::<_, std::convert::Infallible>);
    store.load(StateLoad::new(items, genesis.facts.block)).unwrap();
    // No commit: what is read is read for the blocks.
    let config = PipelineConfig { canonical: Canonical::Explicit, ..config };
    let pipeline = Pipeline::open(Arc::clone(&store), config).unwrap();
    (store, pipeline)
}

fn begin(pipeline: &Pipeline<CountedStore>, block: &SimBlock) -> BlockHandle<CountedSnapshot> {
    match pipeline.begin(BlockRequest::new(block.facts)).unwrap() {
        Begun::Started(handle) => handle,
        Begun::Known(verdict) => panic!("known already: {verdict:?}"),
    }
}

fn record(handle: &mut BlockHandle<CountedSnapshot>, block: &SimBlock) {
    handle.record(BlockAccessIndex::PRE_EXECUTION, &StateWrites::default()).unwrap();
    block.writes.iter().for_each(|(index, writes)| handle.record(*index, writes).unwrap());
}

fn finish(handle: BlockHandle<CountedSnapshot>, block: &SimBlock) -> VerdictTicket {
    let rebuilt_bal = Some(RebuiltBal { hash: block.bal_hash, list: None });
    handle.finish(BlockResult { rebuilt_bal, expected_state_root: None })
}

fn valid(ticket: VerdictTicket) -> Arc<ValidBlock> {
    match ticket.wait() {
        Ok(Verdict::Valid(valid)) => valid,
        other => panic!("not valid: {other:?}"),
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::yield_now();
    }
}

/// Waits until so many written keys were read ahead since the pipeline was opened. An executor that goes on is asked for
/// what has gathered.
fn until_read_ahead(pipeline: &Pipeline<CountedStore>, handle: &mut BlockHandle<CountedSnapshot>, keys: u64) {
    let last = BlockAccessIndex::new(handle.facts().tx_count + 1);
    until("read ahead", || {
        handle.record(last, &StateWrites::default()).unwrap();
        pipeline.counters().writes_read_ahead >= keys
    });
}

fn written_keys(block: &SimBlock) -> u64 {
    let (mut state, mut hasher) = (HashedPostState::new(EmptyAccounts::Keep), KeyHasher::default());
    block.writes.iter().for_each(|(_, writes)| state.apply_writes(writes, &mut hasher));
    state.written_keys().count() as u64
}

/// A child that writes something, removes no leaf, and writes slots only of accounts that have storage in the genesis, which
/// is what is durable. What a removal reads is not foreseen, nor that a new account's storage is empty in the store.
fn child_that_is_foreseen(sim: &mut Sim, genesis: &SimBlock, parent: &SimBlock) -> SimBlock {
    let has_storage =
        |address: &Address| genesis.state.accounts.get(address).is_some_and(|account| !account.storage.is_empty());
    loop {
        let block = sim.child(parent);
        let mut written = block.writes.iter().flat_map(|(_, writes)| &writes.accounts);
        if !written.all(|(address, account)| account.storage.is_empty() || has_storage(address)) {
            continue;
        }
        let stays = parent.state.accounts.iter().all(|(address, before)| {
            let after = block.state.accounts.get(address);
            after.is_some_and(|after| before.storage.keys().all(|slot| after.storage.contains_key(slot)))
        });
        if stays && written_keys(&block) > 8 {
            return block;
        }
    }
}

/// Writes of so many accounts.
fn many_writes(first: u64, accounts: u64) -> StateWrites {
    let write = AccountWrites { nonce: Some(7), ..AccountWrites::default() };
    let address = |at: u64| Address::left_padding_from(&at.to_be_bytes());
    let accounts = (first..first + accounts).map(|at| (address(at), write.clone())).collect();
    StateWrites { accounts }
}

fn assert_same(one: &Layer, other: &Layer) {
    assert_eq!((one.anchor, &one.diff), (other.anchor, &other.diff));
    assert_eq!(one.to_batch().rows, other.to_batch().rows);
}

#[test]
fn a_fold_reads_nothing_after_its_writes_were_read_ahead() {
    for page_cache_bytes in [64 << 20, 0] {
        let mut sim = Sim::new(81, SimSize { addresses: 300, slots: 40, touched: 10, written: 6 });
        let genesis = sim.genesis();
        let config = PipelineConfig { page_cache_bytes, ..PipelineConfig::default() };
        let (store, pipeline) = open(&genesis, config.clone());
        let (bare_store, bare) = open(&genesis, PipelineConfig { warm_up: false, ..config });
        let (mut parent, mut keys) = (genesis.clone(), 0);
        for _ in 0..6 {
            let block = child_that_is_foreseen(&mut sim, &genesis, &parent);
            let mut handle = begin(&pipeline, &block);
            record(&mut handle, &block);
            keys += written_keys(&block);
            until_read_ahead(&pipeline, &mut handle, keys);
            let before = store.reads();
            let ahead = valid(finish(handle, &block));
            assert_eq!(store.reads(), before, "the fold read the store");
            assert_eq!(ahead.mode, Mode::Incremental(SkipReason::NoBal));
            assert_eq!(ahead.computed_state_root, block.state_root);
            assert!(!ahead.timings.warm_up.is_zero());

            let mut handle = begin(&bare, &block);
            record(&mut handle, &block);
            let before = bare_store.reads();
            let alone = valid(finish(handle, &block));
            assert!(bare_store.reads() > before, "without reading ahead there is something to read");
            assert_same(ahead.layer.as_ref().unwrap(), alone.layer.as_ref().unwrap());
            parent = block;
        }
        let counters = pipeline.counters();
        assert_eq!((counters.writes_read_ahead, counters.folds_incremental), (keys, 6));
        assert!(counters.warm_ups_from_writes >= 6);
        assert_eq!(bare.counters().warm_ups_from_writes, 0);
    }
}

/// The executor goes on while the store is slow, and what it writes meanwhile goes as one part.
#[test]
fn what_is_written_while_a_part_is_read_goes_together() {
    let mut sim = Sim::new(82, SimSize::default());
    let genesis = sim.genesis();
    let mut block = sim.child(&genesis);
    block.facts.tx_count = 100;
    let (store, pipeline) = open(&genesis, PipelineConfig::default());
    let release = store.hold_next();
    let mut handle = begin(&pipeline, &block);
    for index in 0..100 {
        handle.record(BlockAccessIndex::new(index), &many_writes(10 * index, 10)).unwrap();
        // The first part is under way before the others are written.
        until("a read is held", || store.is_held());
    }
    assert_eq!(pipeline.counters().warm_ups_from_writes, 0);
    drop(release);
    until_read_ahead(&pipeline, &mut handle, 1000);
    assert_eq!(pipeline.counters().warm_ups_from_writes, 2);
    drop(handle);
}

#[test]
fn a_cancelled_block_is_read_ahead_no_further() {
    let mut sim = Sim::new(83, SimSize::default());
    let genesis = sim.genesis();
    let block = sim.child(&genesis);
    let (store, pipeline) = open(&genesis, PipelineConfig::default());
    let release = store.hold_next();
    let mut handle = begin(&pipeline, &block);
    handle.record(BlockAccessIndex::PRE_EXECUTION, &many_writes(0, 10 * BATCH)).unwrap();
    until("a read is held", || store.is_held());
    drop(handle);
    drop(release);
    until("cancelled", || pipeline.counters().cancelled == 1);
    assert_eq!(pipeline.counters().writes_read_ahead, 0);
    // Waits for the pool.
    drop(pipeline);
    assert!(store.reads() <= BATCH, "{} reads", store.reads());
}

#[test]
fn a_block_that_was_judged_is_read_ahead_no_further() {
    let mut sim = Sim::new(84, SimSize { addresses: 3000, slots: 6, touched: 2500, written: 3 });
    let genesis = sim.genesis();
    let block = loop {
        let block = sim.child(&genesis);
        if written_keys(&block) > 4 * BATCH {
            break block;
        }
    };
    let config = PipelineConfig { page_cache_bytes: 0, ..PipelineConfig::default() };
    // The fold has a thread besides the one that is held.
    let threads = NonZeroUsize::new(3).unwrap();
    let (store, pipeline) = open(&genesis, PipelineConfig { threads, ..config });
    let release = store.hold_next();
    let mut handle = begin(&pipeline, &block);
    // All of it is one part.
    let mut whole = StateWrites::default();
    block.writes.iter().for_each(|(_, writes)| whole.accounts.extend(writes.accounts.clone()));
    handle.record(BlockAccessIndex::PRE_EXECUTION, &whole).unwrap();
    until("a read is held", || store.is_held());
    let judged = valid(finish(handle, &block));
    assert_eq!(judged.computed_state_root, block.state_root);
    let before = store.reads();
    drop(release);
    drop(pipeline);
    assert!(store.reads() - before <= BATCH, "{} reads after the verdict", store.reads() - before);
}

/// On one thread: what a warm-up has not read when its own block's fold is waited for, the fold reads, if it has to.
#[test]
fn a_block_whose_fold_is_due_is_read_ahead_no_further() {
    let mut sim = Sim::new(87, SimSize { addresses: 3000, slots: 6, touched: 2500, written: 3 });
    let genesis = sim.genesis();
    let block = loop {
        let block = sim.child(&genesis);
        if written_keys(&block) > 4 * BATCH {
            break block;
        }
    };
    let child = sim.child(&block);
    let (store, pipeline) = open(&genesis, one_thread());
    let release = store.hold_next();
    let mut handle = begin(&pipeline, &block);
    let mut whole = StateWrites::default();
    block.writes.iter().for_each(|(_, writes)| whole.accounts.extend(writes.accounts.clone()));
    handle.record(BlockAccessIndex::PRE_EXECUTION, &whole).unwrap();
    until("a read is held", || store.is_held());
    let ticket = finish(handle, &block);
    until("the fold is given", || pipeline.counters().folds_incremental == 1);
    // Who is answered comes after that step.
    drop(begin(&pipeline, &child));
    drop(release);
    assert_eq!(valid(ticket).computed_state_root, block.state_root);
    assert_eq!(pipeline.counters().writes_read_ahead, 0, "the part was read to its end");
}

/// The fold begins ahead, behind the warm-up; a child makes it due.
#[test]
fn a_list_is_read_ahead_no_further_once_a_child_waits() {
    let mut sim = Sim::new(88, SimSize { addresses: 4000, slots: 6, touched: 3500, written: 1 });
    let genesis = sim.genesis();
    let block = loop {
        let block = sim.child(&genesis);
        if block.list.len() as u64 > 6 * BATCH {
            break block;
        }
    };
    let children = [sim.child(&block), sim.child(&block)];
    let reads = [false, true].map(|waits| {
        let (store, pipeline) = open(&genesis, one_thread().with_bal_driven(true));
        let release = store.hold_next();
        let request = BlockRequest::new(block.facts).with_bal(block.raw.clone());
        let Begun::Started(mut handle) = pipeline.begin(request).unwrap() else { panic!("known already") };
        until("a read is held", || store.is_held());
        until("the fold is given", || pipeline.counters().folds_before_execution_ended == 1);
        if waits {
            // When the second one is answered the first one's coming has been seen to.
            children.iter().for_each(|child| drop(begin(&pipeline, child)));
        }
        drop(release);
        record(&mut handle, &block);
        // Accounts come first in a warm-up. Of the rest it leaves to the fold what is changed.
        until("all accounts are read", || waits || store.reads() >= block.list.len() as u64);
        assert_eq!(valid(finish(handle, &block)).computed_state_root, block.state_root);
        drop(pipeline);
        store.reads()
    });
    println!("reads {reads:?}, {} accounts", block.list.len());
    assert!(reads[1] + 2 * BATCH < reads[0], "{reads:?}");
}

/// A list that is refused was never read ahead: its block's writes are, those too that came before.
#[test]
fn a_refused_list_leaves_its_block_to_its_writes() {
    let mut sim = Sim::new(85, SimSize { addresses: 300, slots: 40, touched: 10, written: 6 });
    let genesis = sim.genesis();
    let mut block = child_that_is_foreseen(&mut sim, &genesis, &genesis);
    block.facts.expected_bal_hash = None;
    let (store, pipeline) = open(&genesis, PipelineConfig::default().with_bal_driven(true));
    let request = BlockRequest::new(block.facts).with_sourced_bal(vec![0xc1, 0xff].into());
    let Begun::Started(mut handle) = pipeline.begin(request).unwrap() else { panic!("known already") };
    record(&mut handle, &block);
    until("the list is dropped", || pipeline.counters().bals_dropped == 1);
    until_read_ahead(&pipeline, &mut handle, written_keys(&block));
    let before = store.reads();
    let judged = valid(finish(handle, &block));
    assert_eq!((judged.mode, store.reads()), (Mode::Incremental(SkipReason::BalRefused), before));
}

/// A block that waits for its parent holds no old snapshot, whatever it writes; once the parent is there, what it has written
/// is read ahead.
#[test]
fn an_orphan_keeps_no_old_snapshot_and_is_read_ahead_later() {
    let mut sim = Sim::new(86, SimSize { addresses: 300, slots: 40, touched: 10, written: 6 });
    let genesis = sim.genesis();
    let mut chain = vec![genesis.clone()];
    for _ in 0..8 {
        let next = child_that_is_foreseen(&mut sim, &genesis, &chain[chain.len() - 1]);
        chain.push(next);
    }
    let [missing, orphan] = [&chain[7], &chain[8]];
    let (store, pipeline) = open(&genesis, PipelineConfig::default());
    let mut waits = begin(&pipeline, orphan);
    record(&mut waits, orphan);
    for block in &chain[1..7] {
        let mut handle = begin(&pipeline, block);
        record(&mut handle, block);
        valid(finish(handle, block));
        pipeline.set_canonical(block.facts.block.hash).unwrap();
    }
    until("old snapshots are let go of", || store.oldest_kept() == Some(6));
    let mut handle = begin(&pipeline, missing);
    record(&mut handle, missing);
    let before = pipeline.counters().writes_read_ahead;
    until_read_ahead(&pipeline, &mut waits, before + written_keys(orphan));
    valid(finish(handle, missing));
    assert_eq!(valid(finish(waits, orphan)).computed_state_root, orphan.state_root);
}
