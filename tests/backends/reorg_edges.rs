//! Reorganisations at their edges: what is asked for, delivered again or dropped while the store goes back, what a failure
//! leaves, and what is recovered of branches below the durable tip.
//!
//! Whatever might never come is waited for with a deadline: a hang is a failure here, not a hung suite.

use std::{
    convert::Infallible,
    num::NonZeroUsize,
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use foldgate::{
    MemoryStore, Pipeline, PipelineConfig, TrieStore,
    core::{BalStore, Record, Redo},
    pipeline::{
        AdvanceOptions, BackgroundFlush, BlockError, Canonical, CanonicalError, Checkpoints, ConfirmedBy, Failure,
        Flush, Halt, advance,
    },
};
use foldgate_testing::{
    conformance::StoreFactory,
    sim::{Sim, SimBlock, SimSize},
};
use tempfile::TempDir;

use crate::{
    advance::given,
    durability::{acknowledged, background, known},
    faulty::FaultyStore,
    logs::{SharedLog, file_log},
    races::{eventually, resolved, settled},
    support::{assert_state, assert_view, chain, execute, load, request, start, valid},
};

stamp_all!([
    a_recorded_branch_below_the_tip_comes_back,
    a_recorded_branch_out_of_reach_is_dropped,
    a_durable_block_delivered_again_stays_when_the_store_goes_back,
]);

const SMALL: SimSize = SimSize { addresses: 24, slots: 8, touched: 8, written: 4 };

fn explicit(flush: Flush) -> PipelineConfig {
    PipelineConfig {
        canonical: Canonical::Explicit,
        ..PipelineConfig::default().with_bal_driven(true).with_flush(flush)
    }
}

/// Blocks that follow on each other, above `parent`.
fn branch(sim: &mut Sim, parent: &SimBlock, length: usize) -> Vec<SimBlock> {
    let mut blocks = vec![parent.clone()];
    for _ in 0..length {
        blocks.push(sim.child(&blocks[blocks.len() - 1]));
    }
    blocks.split_off(1)
}

/// Has blocks judged valid.
fn judged<S: TrieStore>(pipeline: &Pipeline<S>, blocks: &[SimBlock]) {
    for block in blocks {
        assert_eq!(valid(execute(start(pipeline, request(block)), block).wait()).block, block.facts.block);
    }
}

/// Makes a block durable; then the store is the oracle's.
fn choose<S: BalStore>(pipeline: &Pipeline<S>, store: &S, head: &SimBlock) {
    pipeline.set_canonical(head.facts.block.hash).unwrap();
    assert_eq!(pipeline.flush().unwrap(), head.anchor());
    assert_state(store, head);
}

/// Asks for a head on a thread of its own, which is not waited for if it is never answered.
fn ask<S: BalStore>(pipeline: &Arc<Pipeline<S>>, head: &SimBlock) -> JoinHandle<Result<(), CanonicalError>> {
    let (pipeline, head) = (Arc::clone(pipeline), head.facts.block.hash);
    thread::spawn(move || pipeline.set_canonical(head))
}

fn finished<T>(complaint: &str, thread: JoinHandle<T>) -> T {
    eventually(complaint, || thread.is_finished().then_some(()));
    thread.join().unwrap()
}

// ---- recovery ----

/// From lists and from leaves, with a branch on the branch.
fn a_recorded_branch_below_the_tip_comes_back<F: StoreFactory>(factory: &F) {
    let (mut sim, blocks) = chain(120, 10, SMALL);
    let side = branch(&mut sim, &blocks[4], 4);
    let cousin = branch(&mut sim, &side[1], 2);
    let (store, dir) = (load(factory.fresh(), &blocks[0]), TempDir::new().unwrap());
    let open =
        || Pipeline::open_with_log(Arc::clone(&store), file_log(dir.path()), explicit(background(0, 1))).unwrap();
    let pipeline = open();
    judged(&pipeline, &blocks[1..]);
    choose(&pipeline, &*store, &blocks[10]);
    let mut layers = Vec::new();
    for (at, block) in side.iter().chain(&cousin).enumerate() {
        let request = request(block).before_cancun(at % 2 == 1);
        layers.push(acknowledged(&pipeline, request, block).layer.clone().unwrap());
    }
    drop(pipeline);

    let pipeline = open();
    let report = *pipeline.recovery();
    assert_eq!((report.recovered, report.dropped), (6, 0));
    for (block, layer) in side.iter().chain(&cousin).zip(&layers) {
        let valid = known(&pipeline, block);
        let recovered = valid.layer.as_ref().unwrap();
        assert_eq!(valid.confirmed_by, ConfirmedBy::Record);
        assert_eq!((&recovered.diff, recovered.anchor, &recovered.bal), (&layer.diff, layer.anchor, &layer.bal));
    }
    // It can be stood on,
    let next = sim.child(&side[3]);
    let handle = start(&pipeline, request(&next));
    assert_view(&handle.parent_state(), &side[3]);
    valid(resolved(&execute(handle, &next)));
    assert_eq!(pipeline.counters().folds_ahead_below_tip, 1);
    // and made canonical, and be left again.
    choose(&pipeline, &*store, &side[2]);
    choose(&pipeline, &*store, &next);
    choose(&pipeline, &*store, &blocks[10]);
    choose(&pipeline, &*store, &cousin[1]);
    drop(pipeline);

    // The blocks that were durable are beside the chain now.
    let pipeline = open();
    assert_eq!((pipeline.recovery().recovered, pipeline.recovery().dropped), (6 + 3, 0));
    for block in blocks[5..].iter().chain(&side[2..]).chain([&next]) {
        known(&pipeline, block);
    }
    choose(&pipeline, &*store, &blocks[10]);
}

/// A block that the store was to forget is recorded behind blocks that stand on it.
#[test]
fn records_are_recovered_in_any_order() {
    let (mut sim, blocks) = chain(129, 6, SMALL);
    let side = branch(&mut sim, &blocks[2], 4);
    let (store, log) = (load(MemoryStore::new(), &blocks[0]), SharedLog::default());
    let open = || Pipeline::open_with_log(Arc::clone(&store), log.clone(), explicit(background(0, 1))).unwrap();
    let pipeline = open();
    judged(&pipeline, &blocks[1..]);
    choose(&pipeline, &*store, &blocks[6]);
    judged(&pipeline, &side);
    drop(pipeline);
    log.records.lock().unwrap().reverse();
    let pipeline = open();
    assert_eq!((pipeline.recovery().recovered, pipeline.recovery().dropped), (4, 0));
    choose(&pipeline, &*store, &side[3]);
}

/// Too deep for the settings, or for the reverse diffs that are kept.
fn a_recorded_branch_out_of_reach_is_dropped<F: StoreFactory>(factory: &F) {
    let (mut sim, blocks) = chain(121, 10, SMALL);
    let (deep, high) = (branch(&mut sim, &blocks[4], 5), branch(&mut sim, &blocks[8], 2));
    let (store, dir) = (load(factory.fresh(), &blocks[0]), TempDir::new().unwrap());
    let open = |unwind_depth| {
        let config = PipelineConfig { unwind_depth, ..explicit(background(0, 1)) };
        Pipeline::open_with_log(Arc::clone(&store), file_log(dir.path()), config).unwrap()
    };
    let pipeline = open(128);
    judged(&pipeline, &blocks[1..]);
    choose(&pipeline, &*store, &blocks[10]);
    for block in deep.iter().chain(&high) {
        acknowledged(&pipeline, request(block), block);
    }
    drop(pipeline);
    let report = *open(6).recovery();
    assert_eq!((report.recovered, report.dropped), (7, 0));
    // Its blocks above the lowest on which one may stand are dropped; the lowest of them is not looked at.
    let report = *open(5).recovery();
    assert_eq!((report.recovered, report.dropped, report.in_the_store), (2, 4, 11));
    // The lowest block on which one may stand is the parent of the lowest that has a reverse diff.
    store.prune_below(8).unwrap();
    let pipeline = open(128);
    let report = *pipeline.recovery();
    assert_eq!((report.recovered, report.dropped, report.in_the_store), (2, 2, 13));
    choose(&pipeline, &*store, &high[1]);
}

/// Of what a catch-up has folded together only the ends can be gone back to; of its last blocks, folded alone, each.
#[test]
fn a_recorded_branch_within_a_merged_fold_is_dropped() {
    let (mut sim, blocks) = chain(128, 12, SMALL);
    let (within, at) = (branch(&mut sim, &blocks[6], 3), branch(&mut sim, &blocks[8], 2));
    for unwind_depth in [0, 4, 128] {
        let log = SharedLog::default();
        let open = |store| Pipeline::open_with_log(store, log.clone(), explicit(Flush::default())).unwrap();
        let executed = open(load(MemoryStore::new(), &blocks[0]));
        judged(&executed, &blocks[1..]);
        judged(&executed, &within);
        judged(&executed, &at);
        drop(executed);
        let store = load(MemoryStore::new(), &blocks[0]);
        let options = AdvanceOptions {
            checkpoints: Checkpoints::At([8].into()),
            merged_blocks: NonZeroUsize::new(4).unwrap(),
            unwind_depth,
            ..AdvanceOptions::default()
        };
        let lists = blocks[1..].iter().map(given).map(Ok::<_, Infallible>);
        assert_eq!(advance(&*store, lists, &options, &mut |_| {}).unwrap(), blocks[12].anchor());
        let pipeline = open(Arc::clone(&store));
        let report = *pipeline.recovery();
        let dropped = if unwind_depth < 6 { 3 } else { 0 };
        assert_eq!((report.recovered, report.dropped, report.in_the_store), (5 - dropped, dropped, 12));
        known(&pipeline, &at[1]);
        if unwind_depth == 0 {
            // It cannot be gone to: what would be unwound cannot be made layers again. Nothing is lost of that.
            let refused = pipeline.set_canonical(at[1].facts.block.hash);
            assert!(matches!(refused, Err(CanonicalError::Failed(Failure::Unwind { .. }))), "{refused:?}");
            assert_state(&*store, &blocks[12]);
        } else {
            choose(&pipeline, &*store, &at[1]);
            choose(&pipeline, &*store, &blocks[12]);
        }
        if unwind_depth == 128 {
            choose(&pipeline, &*store, &within[2]);
            choose(&pipeline, &*store, &blocks[12]);
        }
        let next = sim.child(&blocks[12]);
        judged(&pipeline, std::slice::from_ref(&next));
        choose(&pipeline, &*store, &next);
    }
}

// ---- delivered again ----

/// Its verdict was forgotten, so that it is executed once more; meanwhile the store forgets it. It must not vanish: what
/// stands on it stands on nothing then.
fn a_durable_block_delivered_again_stays_when_the_store_goes_back<F: StoreFactory>(factory: &F) {
    let (mut sim, blocks) = chain(122, 6, SMALL);
    let side = branch(&mut sim, &blocks[2], 2);
    let (store, dir) = (load(factory.fresh(), &blocks[0]), TempDir::new().unwrap());
    let config = PipelineConfig { max_remembered: 0, ..explicit(background(0, 1)) };
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), file_log(dir.path()), config).unwrap();
    judged(&pipeline, &blocks[1..]);
    choose(&pipeline, &*store, &blocks[6]);
    judged(&pipeline, &side);
    let again = start(&pipeline, request(&blocks[4]));
    choose(&pipeline, &*store, &side[1]);
    match resolved(&again.stop()) {
        Err(BlockError::Halted(halt)) => assert_eq!(halt, Halt::ForkLost),
        other => panic!("{other:?}"),
    }
    for block in &blocks[3..] {
        assert_eq!(known(&pipeline, block).computed_state_root, block.state_root);
    }
    choose(&pipeline, &*store, &blocks[6]);
    assert_eq!(pipeline.in_flight(), 0);
}

// ---- what comes while the store goes back ----

/// Each is the head for a moment, and whoever asked for it is answered.
#[test]
fn siblings_asked_for_in_a_row_are_all_answered_without_a_log() {
    let (mut sim, blocks) = chain(123, 4, SMALL);
    let side = branch(&mut sim, &blocks[1], 2);
    let siblings = [sim.child(&side[1]), sim.child(&side[1]), sim.child(&side[1])];
    let store = load(FaultyStore::new(), &blocks[0]);
    let pipeline = Arc::new(Pipeline::open(Arc::clone(&store), explicit(Flush::Synchronous)).unwrap());
    judged(&pipeline, &blocks[1..]);
    pipeline.set_canonical(blocks[4].facts.block.hash).unwrap();
    judged(&pipeline, &side);
    judged(&pipeline, &siblings);
    let held = store.switches.commits_wait.lock().unwrap();
    let reorganise = ask(&pipeline, &side[1]);
    // They are asked for while the reorganisation is under way; in which order does not matter.
    thread::sleep(Duration::from_millis(20));
    let asked = siblings.each_ref().map(|block| ask(&pipeline, block));
    thread::sleep(Duration::from_millis(20));
    drop(held);
    for head in [reorganise].into_iter().chain(asked) {
        finished("a head is never answered", head).unwrap();
    }
    let durable = pipeline.flush().unwrap();
    let head = siblings.iter().find(|block| block.anchor() == durable).expect("one of them is the head");
    assert_state(&*store, head);
    for block in &siblings {
        known(&pipeline, block);
    }
    assert_eq!(pipeline.counters().reorganisations, 3);
}

/// Nobody waits for a reorganisation that is gone on with at opening: the pipeline may be dropped while it is under way. What
/// became canonical on the new branch meanwhile is in the store all the same.
#[test]
fn what_stands_on_a_reorganisation_is_in_the_store_after_a_shutdown() {
    let (mut sim, blocks) = chain(124, 4, SMALL);
    let side = branch(&mut sim, &blocks[1], 4);
    let (store, log) = (load(FaultyStore::new(), &blocks[0]), SharedLog::default());
    let config = PipelineConfig { canonical: Canonical::Auto, ..explicit(Flush::Synchronous) };
    let open = || Pipeline::open_with_log(Arc::clone(&store), log.clone(), config.clone()).unwrap();
    let pipeline = open();
    judged(&pipeline, &blocks[1..]);
    assert_eq!(pipeline.flush().unwrap(), blocks[4].anchor());
    judged(&pipeline, &side[..2]);
    drop(pipeline);
    // As a kill leaves it behind the head's record.
    log.records.lock().unwrap().push(Record::Canonical(side[1].facts.block));
    let held = store.switches.commits_wait.lock().unwrap();
    let pipeline = open();
    judged(&pipeline, &side[2..]);
    assert_eq!(store.tip().unwrap(), Some(blocks[4].anchor()));
    let dropped = thread::spawn(move || drop(pipeline));
    thread::sleep(Duration::from_millis(50));
    drop(held);
    finished("a shutdown does not end", dropped);
    assert_state(&*store, &side[3]);
}

/// The store stays at its chain, whose newest blocks are in memory. Whoever flushes them waits for them, and gets them.
#[test]
fn a_reorganisation_that_fails_before_the_store_moves_releases_what_it_held_up() {
    let (mut sim, blocks) = chain(125, 5, SMALL);
    let side = branch(&mut sim, &blocks[1], 2);
    let (store, log) = (load(FaultyStore::new(), &blocks[0]), SharedLog::default());
    let flush = BackgroundFlush {
        keep_in_memory: 8,
        blocks: NonZeroUsize::new(64).unwrap(),
        bytes: usize::MAX,
        interval: Duration::MAX,
    };
    let config = explicit(Flush::Background(flush));
    let pipeline = Arc::new(Pipeline::open_with_log(Arc::clone(&store), log.clone(), config).unwrap());
    judged(&pipeline, &blocks[1..4]);
    choose(&pipeline, &*store, &blocks[3]);
    judged(&pipeline, &blocks[4..]);
    pipeline.set_canonical(blocks[5].facts.block.hash).unwrap();
    judged(&pipeline, &side);
    store.switches.unwinds_fail.store(true, Ordering::SeqCst);
    let held = store.switches.commits_wait.lock().unwrap();
    let asked = ask(&pipeline, &side[1]);
    let head = Record::Canonical(side[1].facts.block);
    eventually("the head is not recorded", || (log.records.lock().unwrap().contains(&head)).then_some(()));
    let flushed = {
        let pipeline = Arc::clone(&pipeline);
        thread::spawn(move || pipeline.flush())
    };
    thread::sleep(Duration::from_millis(20));
    drop(held);
    let failed = finished("a head is never answered", asked);
    assert!(matches!(failed, Err(CanonicalError::Failed(Failure::Unwind { .. }))), "{failed:?}");
    assert_eq!(finished("a flush is never answered", flushed).unwrap(), blocks[5].anchor());
    assert_state(&*store, &blocks[5]);
    // A kill finds the head where it stayed.
    assert_eq!(log.records.lock().unwrap().last(), Some(&Record::Canonical(blocks[5].facts.block)));
    store.switches.unwinds_fail.store(false, Ordering::SeqCst);
    choose(&pipeline, &*store, &side[1]);
}

/// The head that stays is what it would be had nobody asked: blocks that came to stand on it meanwhile are canonical, and so
/// is what comes after them.
#[test]
fn blocks_on_the_head_that_was_to_be_left_are_canonical_if_the_move_fails() {
    let (mut sim, blocks) = chain(127, 6, SMALL);
    let side = branch(&mut sim, &blocks[2], 2);
    let (store, log) = (load(FaultyStore::new(), &blocks[0]), SharedLog::default());
    let config = PipelineConfig { canonical: Canonical::Auto, ..explicit(background(8, 64)) };
    let pipeline = Arc::new(Pipeline::open_with_log(Arc::clone(&store), log.clone(), config).unwrap());
    judged(&pipeline, &blocks[1..5]);
    assert_eq!(pipeline.flush().unwrap(), blocks[4].anchor());
    judged(&pipeline, &side);
    // A sync of theirs would wait, and what comes after it.
    settled(&pipeline);
    store.switches.unwinds_fail.store(true, Ordering::SeqCst);
    let held = log.syncs_wait.lock().unwrap();
    let asked = ask(&pipeline, &side[1]);
    let head = Record::Canonical(side[1].facts.block);
    eventually("the head is not recorded", || (log.records.lock().unwrap().contains(&head)).then_some(()));
    judged(&pipeline, &blocks[5..6]);
    drop(held);
    let failed = finished("a head is never answered", asked);
    assert!(matches!(failed, Err(CanonicalError::Failed(Failure::Unwind { .. }))), "{failed:?}");
    judged(&pipeline, &blocks[6..]);
    assert_eq!(pipeline.flush().unwrap(), blocks[6].anchor());
    assert_state(&*store, &blocks[6]);
}

// ---- the log goes ahead ----

/// However slow the log is, and however eager the store: a kill finds no block in the store whose record is not there.
#[test]
fn the_store_takes_no_step_ahead_of_the_log() {
    let (mut sim, blocks) = chain(126, 6, SMALL);
    let side = branch(&mut sim, &blocks[3], 2);
    let (store, log) = (load(FaultyStore::new(), &blocks[0]), SharedLog::default());
    // The log is younger than the first blocks.
    let pipeline = Pipeline::open(Arc::clone(&store), explicit(Flush::Synchronous)).unwrap();
    judged(&pipeline, &blocks[1..5]);
    choose(&pipeline, &*store, &blocks[4]);
    drop(pipeline);
    let config = explicit(Flush::Synchronous);
    let pipeline = Arc::new(Pipeline::open_with_log(Arc::clone(&store), log.clone(), config).unwrap());
    let stays = |head: &SimBlock, at: &SimBlock| {
        let held = log.syncs_wait.lock().unwrap();
        judged(&pipeline, std::slice::from_ref(head));
        let asked = ask(&pipeline, head);
        thread::sleep(Duration::from_millis(50));
        assert_eq!(store.tip().unwrap(), Some(at.anchor()), "the store is ahead of the log");
        drop(held);
        finished("a head is never answered", asked).unwrap();
        assert_eq!(store.tip().unwrap(), Some(head.anchor()));
    };
    stays(&blocks[5], &blocks[4]);
    stays(&blocks[6], &blocks[5]);
    judged(&pipeline, &side[..1]);
    stays(&side[1], &blocks[6]);
    // What the store has forgotten is recorded: by its leaves, where the log had not seen it, and once.
    let records = log.records.lock().unwrap();
    for (at, block) in blocks.iter().enumerate().skip(4) {
        let of_it = |record: &&Record| matches!(record, Record::Block(_)) && record.block() == block.facts.block;
        let recorded: Vec<_> = records.iter().filter(of_it).collect();
        let [Record::Block(record)] = recorded[..] else { panic!("{}: {recorded:?}", block.facts.block) };
        match &record.redo {
            Redo::Diff { bal, .. } => assert_eq!((at, bal.as_ref()), (4, Some(&block.raw))),
            Redo::Bal(raw) => assert!(at > 4 && *raw == block.raw),
        }
    }
}

/// A log that fails keeps the store where it is.
#[test]
fn a_log_that_fails_stops_a_reorganisation_before_the_store_moves() {
    let (mut sim, blocks) = chain(127, 4, SMALL);
    let side = branch(&mut sim, &blocks[1], 2);
    let (store, log) = (load(FaultyStore::new(), &blocks[0]), SharedLog::default());
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), log.clone(), explicit(background(0, 1))).unwrap();
    judged(&pipeline, &blocks[1..]);
    choose(&pipeline, &*store, &blocks[4]);
    for block in &side {
        acknowledged(&pipeline, request(block), block);
    }
    log.fails.store(true, Ordering::SeqCst);
    let failed = pipeline.set_canonical(side[1].facts.block.hash);
    assert!(matches!(failed, Err(CanonicalError::Failed(Failure::Log(_)))), "{failed:?}");
    drop(pipeline);
    assert_state(&*store, &blocks[4]);
    log.fails.store(false, Ordering::SeqCst);
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), log, explicit(background(0, 1))).unwrap();
    // The record was appended, though nobody knew whether it would last.
    assert_eq!(pipeline.flush().unwrap(), side[1].anchor());
    known(&pipeline, &blocks[4]);
}
