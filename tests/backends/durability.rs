//! Nothing that was acknowledged is lost, and nothing waits for the store: the record log, the background flush, recovery.

use std::{
    fs,
    num::NonZeroUsize,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use foldgate::{
    BlockRequest, MemoryStore, Pipeline, PipelineConfig, TrieStore, Verdict,
    core::{BalStore, Record, Redo},
    pipeline::{
        BackgroundFlush, BeginError, Begun, Canonical, ConfirmedBy, Failure, Flush, Mode, NotAcknowledged, OpenError,
        RecoveryError, SkipReason, ValidBlock,
    },
};
use foldgate_testing::{
    conformance::StoreFactory,
    sim::{SimBlock, SimSize},
};
use tempfile::TempDir;

use crate::{
    faulty::FaultyStore,
    logs::{SharedLog, file_log},
    support::{assert_state, assert_view, chain, execute, load, open_synchronous, request, start, valid},
};

stamp_all!([
    recorded_blocks_survive_without_a_flush,
    the_head_goes_on_without_its_last_records,
    reorganisations_in_memory_touch_no_store,
    a_torn_log_loses_what_was_torn_and_no_more,
    canonical_blocks_are_flushed_by_number_bytes_and_time,
    what_is_read_is_the_same_before_during_and_after_a_flush,
    old_lists_are_pruned,
]);

const MINUTE: Duration = Duration::from_secs(60);

pub(crate) fn background(keep_in_memory: usize, blocks: usize) -> Flush {
    let blocks = NonZeroUsize::new(blocks).unwrap();
    Flush::Background(BackgroundFlush { keep_in_memory, blocks, ..BackgroundFlush::default() })
}

fn config(flush: Flush) -> PipelineConfig {
    PipelineConfig::default().with_bal_driven(true).with_flush(flush)
}

/// Executes a block and waits until it is acknowledged.
pub(crate) fn acknowledged<S: TrieStore>(
    pipeline: &Pipeline<S>,
    request: BlockRequest,
    block: &SimBlock,
) -> Arc<ValidBlock> {
    let ticket = execute(start(pipeline, request), block);
    let acknowledgement = ticket.acknowledgement();
    let verdict = valid(ticket.wait());
    assert_eq!(verdict.computed_state_root, block.state_root);
    match acknowledgement.wait_timeout(MINUTE) {
        Some(Ok(())) => verdict,
        other => panic!("block {} was not acknowledged: {other:?}", block.facts.block),
    }
}

fn tip<S: TrieStore>(store: &S) -> u64 {
    store.tip().unwrap().unwrap().block.number
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + MINUTE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The verdict of a block that is known already.
pub(crate) fn known<S: TrieStore>(pipeline: &Pipeline<S>, block: &SimBlock) -> Arc<ValidBlock> {
    match pipeline.begin(request(block)).unwrap() {
        Begun::Known(Verdict::Valid(valid)) => valid,
        other => panic!("{} is not known to be valid: {other:?}", block.facts.block),
    }
}

fn recorded_blocks_survive_without_a_flush<F: StoreFactory>(factory: &F) {
    let (mut sim, blocks) = chain(21, 13, SimSize::default());
    let side = sim.child(&blocks[9]);
    let (store, dir) = (load(factory.fresh(), &blocks[0]), TempDir::new().unwrap());
    // However long it takes.
    let flush = Flush::Background(BackgroundFlush { interval: Duration::MAX, ..BackgroundFlush::default() });
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), file_log(dir.path()), config(flush)).unwrap();
    let mut diffs = Vec::new();
    for (at, block) in blocks[1..13].iter().enumerate() {
        // From lists, from writes with a list beside them, and from writes alone.
        let request = match at % 3 {
            0 => request(block),
            1 => request(block).before_cancun(true),
            _ => BlockRequest::new(block.facts),
        };
        diffs.push(acknowledged(&pipeline, request, block).layer.clone().unwrap());
    }
    acknowledged(&pipeline, request(&side), &side);
    assert_eq!(tip(&*store), 0, "the newest blocks stay in memory, and the others have not gathered");
    drop(pipeline);
    assert_eq!(tip(&*store), 0);

    let pipeline = Pipeline::open_with_log(Arc::clone(&store), file_log(dir.path()), config(Flush::default())).unwrap();
    let report = *pipeline.recovery();
    assert_eq!((report.recovered, report.dropped, report.in_the_store), (13, 0, 0));
    for (at, (block, layer)) in blocks[1..13].iter().zip(&diffs).enumerate() {
        let valid = known(&pipeline, block);
        assert_eq!(valid.confirmed_by, ConfirmedBy::Record);
        let expected = if at % 3 == 0 { Mode::BalDriven } else { Mode::Incremental(SkipReason::Recovered) };
        assert_eq!(valid.mode, expected);
        let recovered = valid.layer.as_ref().unwrap();
        assert_eq!((&recovered.diff, recovered.anchor), (&layer.diff, layer.anchor), "{}", block.facts.block);
        assert_eq!(recovered.bal, layer.bal, "{}", block.facts.block);
    }
    // The tree, branches included, and the head are what they were: the next block folds, and is canonical.
    let cousin = sim.child(&side);
    acknowledged(&pipeline, request(&cousin), &cousin);
    let verdict = acknowledged(&pipeline, request(&blocks[13]), &blocks[13]);
    assert_eq!(verdict.mode, Mode::BalDriven);
    assert_eq!(pipeline.counters().folds_ahead, 2);
    assert_eq!(pipeline.flush().unwrap(), blocks[13].anchor());
    drop(pipeline);
    assert_state(&*store, &blocks[13]);
    // What is in the store is not folded again; what stands beside it is.
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), file_log(dir.path()), config(Flush::default())).unwrap();
    assert_eq!(pipeline.recovery().recovered, 2);
    for block in [&side, &cousin] {
        known(&pipeline, block);
    }
}

/// A kill between a block's record and that of the head that it became left linear imports on an old head for ever.
fn the_head_goes_on_without_its_last_records<F: StoreFactory>(factory: &F) {
    let (mut sim, blocks) = chain(27, 6, SimSize::default());
    let side = sim.child(&blocks[3]);
    let (store, dir) = (load(factory.fresh(), &blocks[0]), TempDir::new().unwrap());
    // Nothing becomes canonical here: the log has blocks, and no head.
    let explicit = PipelineConfig { canonical: Canonical::Explicit, ..config(Flush::default()) };
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), file_log(dir.path()), explicit).unwrap();
    for block in blocks[1..6].iter().chain([&side]) {
        acknowledged(&pipeline, request(block), block);
    }
    drop(pipeline);
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), file_log(dir.path()), config(Flush::default())).unwrap();
    assert_eq!(pipeline.recovery().recovered, 6);
    known(&pipeline, &blocks[5]);
    acknowledged(&pipeline, request(&blocks[6]), &blocks[6]);
    assert_eq!(pipeline.flush().unwrap(), blocks[6].anchor());
    assert_eq!(tip(&*store), 6);
    drop(pipeline);
    assert_state(&*store, &blocks[6]);
}

fn reorganisations_in_memory_touch_no_store<F: StoreFactory>(factory: &F) {
    let (mut sim, blocks) = chain(22, 5, SimSize::default());
    let mut other = vec![blocks[1].clone()];
    for _ in 0..3 {
        other.push(sim.child(&other[other.len() - 1]));
    }
    let (store, dir) = (load(factory.fresh(), &blocks[0]), TempDir::new().unwrap());
    let config = PipelineConfig { canonical: Canonical::Explicit, ..config(background(8, 1)) };
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), file_log(dir.path()), config.clone()).unwrap();
    for block in blocks[1..].iter().chain(&other[1..]) {
        acknowledged(&pipeline, request(block), block);
    }
    for head in [&blocks[5], &other[3], &blocks[4], &other[2]] {
        pipeline.set_canonical(head.facts.block.hash).unwrap();
    }
    // An ancestor is canonical already, and does not take the head back.
    pipeline.set_canonical(other[1].facts.block.hash).unwrap();
    assert_eq!((tip(&*store), pipeline.counters().store_commits), (0, 0));
    drop(pipeline);
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), file_log(dir.path()), config).unwrap();
    assert_eq!(pipeline.recovery().recovered, 8);
    assert_eq!(pipeline.flush().unwrap(), other[2].anchor());
    drop(pipeline);
    assert_state(&*store, &other[2]);
}

fn a_torn_log_loses_what_was_torn_and_no_more<F: StoreFactory>(factory: &F) {
    let (_, blocks) = chain(23, 6, SimSize::default());
    let (store, dir) = (load(factory.fresh(), &blocks[0]), TempDir::new().unwrap());
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), file_log(dir.path()), config(Flush::default())).unwrap();
    for block in &blocks[1..7] {
        acknowledged(&pipeline, request(block), block);
    }
    drop(pipeline);
    // The last bytes are those of the last head, then come those of the last block.
    let mut files: Vec<_> = fs::read_dir(dir.path().join("log")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let newest = files.iter().rfind(|path| path.extension().is_some() && fs::read(path).unwrap()[0] != 0).unwrap();
    let bytes = fs::read(newest).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    fs::write(newest, &bytes[..end - 100]).unwrap();
    let log = file_log(dir.path());
    assert!(log.cut().is_some());
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), log, config(Flush::default())).unwrap();
    assert_eq!(pipeline.recovery().recovered, 5);
    known(&pipeline, &blocks[5]);
    acknowledged(&pipeline, request(&blocks[6]), &blocks[6]);
    assert_eq!(pipeline.flush().unwrap(), blocks[6].anchor());
    drop(pipeline);
    assert_state(&*store, &blocks[6]);
}

fn canonical_blocks_are_flushed_by_number_bytes_and_time<F: StoreFactory>(factory: &F) {
    let (_, blocks) = chain(24, 24, SimSize::default());
    let (store, dir) = (load(factory.fresh(), &blocks[0]), TempDir::new().unwrap());
    let never = BackgroundFlush { keep_in_memory: 3, interval: Duration::MAX, bytes: usize::MAX, ..Default::default() };
    let flushes = [
        BackgroundFlush { blocks: NonZeroUsize::new(5).unwrap(), ..never },
        BackgroundFlush { bytes: 1, ..never },
        BackgroundFlush { interval: Duration::from_millis(1), ..never },
    ];
    for (part, flush) in flushes.into_iter().enumerate() {
        let config = config(Flush::Background(flush));
        let pipeline = Pipeline::open_with_log(Arc::clone(&store), file_log(dir.path()), config).unwrap();
        let blocks = &blocks[1 + part * 8..][..8];
        let before = tip(&*store);
        for block in blocks {
            acknowledged(&pipeline, request(block), block);
        }
        until("a flush", || tip(&*store) == blocks[4].facts.block.number);
        assert!(before < tip(&*store));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(tip(&*store), blocks[4].facts.block.number, "the newest three stay in memory");
        assert_eq!(pipeline.flush().unwrap(), blocks[7].anchor());
    }
    assert_state(&*store, &blocks[24]);
    // By number: five together, then three. The store was opened without a record more.
    let pipeline = open_synchronous(&store, config(Flush::default()));
    assert_eq!(pipeline.recovery().recovered, 0);
}

/// An executor reads the parent's state all the while.
fn what_is_read_is_the_same_before_during_and_after_a_flush<F: StoreFactory>(factory: &F) {
    let (_, blocks) = chain(25, 12, SimSize::default());
    let (store, dir) = (load(factory.fresh(), &blocks[0]), TempDir::new().unwrap());
    let config = config(background(2, 64));
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), file_log(dir.path()), config).unwrap();
    for block in &blocks[1..12] {
        acknowledged(&pipeline, request(block), block);
    }
    let handle = start(&pipeline, request(&blocks[12]));
    let view = handle.parent_state();
    assert_view(&view, &blocks[11]);
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| pipeline.flush().unwrap());
        while !flush.is_finished() {
            assert_view(&view, &blocks[11]);
        }
    });
    assert_eq!(tip(&*store), 11);
    assert_view(&view, &blocks[11]);
    assert_eq!(valid(execute(handle, &blocks[12]).wait()).computed_state_root, blocks[12].state_root);
}

fn old_lists_are_pruned<F: StoreFactory>(factory: &F) {
    let (_, blocks) = chain(26, 30, SimSize::default());
    let (store, dir) = (load(factory.fresh(), &blocks[0]), TempDir::new().unwrap());
    let config = PipelineConfig { keep_bals: Some(10), unwind_depth: 4, ..config(background(0, 1)) };
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), file_log(dir.path()), config).unwrap();
    for block in &blocks[1..] {
        acknowledged(&pipeline, request(block), block);
    }
    pipeline.flush().unwrap();
    drop(pipeline);
    let kept = |number: usize| store.bal(blocks[number].facts.block).unwrap().is_some();
    assert!((1..20).all(|number| !kept(number)) && (20..=30).all(kept));
    // The records of what the store has are pruned by segments.
    let mut first = u64::MAX;
    let mut log = file_log(dir.path());
    foldgate::core::RecordLog::replay(&mut log, &mut |record| first = first.min(record.block().number)).unwrap();
    assert!((2..=27).contains(&first), "{first}");
}

#[test]
fn a_held_flush_delays_no_acknowledgement() {
    let (_, blocks) = chain(27, 20, SimSize::default());
    let store = load(FaultyStore::new(), &blocks[0]);
    let log = SharedLog::default();
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), log, config(background(0, 1))).unwrap();
    let held = store.switches.commits_wait.lock().unwrap();
    for block in &blocks[1..] {
        acknowledged(&pipeline, request(block), block);
    }
    assert_eq!(tip(&*store), 0, "the flush is held");
    assert_eq!(pipeline.in_flight(), 0, "a block that waits for a flush takes no room");
    drop(held);
    assert_eq!(pipeline.flush().unwrap(), blocks[20].anchor());
}

#[test]
fn heads_wait_for_their_record_and_for_no_flush() {
    let (_, blocks) = chain(28, 6, SimSize::default());
    let store = load(FaultyStore::new(), &blocks[0]);
    let config = PipelineConfig { canonical: Canonical::Explicit, ..config(background(0, 1)) };
    let log = SharedLog::default();
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), log.clone(), config).unwrap();
    let held = store.switches.commits_wait.lock().unwrap();
    for block in &blocks[1..] {
        acknowledged(&pipeline, request(block), block);
        pipeline.set_canonical(block.facts.block.hash).unwrap();
        let records = log.records.lock().unwrap();
        assert_eq!(records.last(), Some(&Record::Canonical(block.facts.block)));
    }
    assert_eq!(tip(&*store), 0);
    drop(held);
}

/// Memory is full while the flush is held: new blocks are refused, and nobody waits in a circle.
#[test]
fn full_memory_refuses_blocks_until_the_flush_has_made_room() {
    let (_, blocks) = chain(29, 12, SimSize::default());
    let store = load(FaultyStore::new(), &blocks[0]);
    let config = PipelineConfig { max_unflushed_bytes: 1, ..config(background(8, 64)) };
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), SharedLog::default(), config).unwrap();
    let held = store.switches.commits_wait.lock().unwrap();
    // Two are under way when memory gets full: they go on.
    let handles = [&blocks[1], &blocks[2]].map(|block| (block, start(&pipeline, request(block))));
    for (block, handle) in handles {
        valid(execute(handle, block).wait());
    }
    assert!(matches!(pipeline.begin(request(&blocks[3])), Err(BeginError::Busy { .. })));
    assert!(!pipeline.wait_for_room(Duration::from_millis(5)));
    assert_eq!(tip(&*store), 0);
    drop(held);
    for block in &blocks[3..] {
        acknowledged(&pipeline, request(block), block);
    }
    assert!(pipeline.wait_for_room(MINUTE));
    assert_eq!(pipeline.flush().unwrap(), blocks[12].anchor());
}

#[test]
fn a_log_that_fails_acknowledges_nothing_and_stops_the_pipeline() {
    let (_, blocks) = chain(30, 4, SimSize::default());
    let store = load(MemoryStore::new(), &blocks[0]);
    let log = SharedLog::default();
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), log.clone(), config(Flush::default())).unwrap();
    acknowledged(&pipeline, request(&blocks[1]), &blocks[1]);
    log.fails.store(true, Ordering::SeqCst);
    let ticket = execute(start(&pipeline, request(&blocks[2])), &blocks[2]);
    let acknowledgement = ticket.acknowledgement();
    valid(ticket.wait());
    let refused = acknowledgement.wait();
    assert!(matches!(refused, Err(NotAcknowledged::Failed(Failure::Log(_)))), "{refused:?}");
    until("the pipeline's end", || {
        matches!(pipeline.begin(request(&blocks[3])), Err(BeginError::Broken(Failure::Log(_))))
    });
    assert!(matches!(pipeline.flush(), Err(Failure::Log(_))));
    assert!(pipeline.set_canonical(blocks[2].facts.block.hash).is_err());
}

#[test]
fn records_that_lead_elsewhere_are_refused() {
    let (_, blocks) = chain(31, 3, SimSize::default());
    let store = load(MemoryStore::new(), &blocks[0]);
    let log = SharedLog::default();
    let open = |log: &SharedLog| Pipeline::open_with_log(Arc::clone(&store), log.clone(), config(Flush::default()));
    let pipeline = open(&log).unwrap();
    for block in &blocks[1..] {
        acknowledged(&pipeline, request(block), block);
    }
    drop(pipeline);
    let with = |at: usize, change: &dyn Fn(&mut foldgate::core::BlockRecord)| {
        let mut records = log.records.lock().unwrap().clone();
        let mut seen = 0;
        for record in &mut records {
            if let Record::Block(block) = record {
                seen += 1;
                if seen == at {
                    change(block);
                }
            }
        }
        let changed = SharedLog::default();
        *changed.records.lock().unwrap() = records;
        changed
    };
    let wrong_root = with(2, &|record| record.anchor.state_root.0[3] ^= 1);
    let refused = open(&wrong_root).err();
    let expected = blocks[2].facts.block;
    assert!(
        matches!(&refused, Some(OpenError::Recovery(RecoveryError::StateRootMismatch { block, got, .. }))
            if *block == expected && *got == blocks[2].state_root),
        "{refused:?}"
    );
    let bad_list = with(2, &|record| record.redo = Redo::Bal(vec![0xc1, 0xc0, 0].into()));
    let refused = open(&bad_list).err();
    assert!(matches!(&refused, Some(OpenError::Recovery(RecoveryError::Bal { .. }))), "{refused:?}");
    // A parent that is nowhere: its descendants are dropped, and counted.
    let unknown = with(2, &|record| record.parent_hash.0[0] ^= 1);
    let pipeline = open(&unknown).unwrap();
    assert_eq!((pipeline.recovery().recovered, pipeline.recovery().dropped), (1, 2));
    assert_eq!(pipeline.flush().unwrap(), blocks[1].anchor());
}

/// Without a log, acknowledged means that the store has the block.
#[test]
fn without_a_log_blocks_are_acknowledged_by_the_store() {
    let (mut sim, blocks) = chain(32, 3, SimSize::default());
    let side = sim.child(&blocks[0]);
    let store = load(FaultyStore::new(), &blocks[0]);
    let config = PipelineConfig { unwind_depth: 0, ..config(Flush::default()) };
    let pipeline = open_synchronous(&store, config);
    let held = store.switches.commits_wait.lock().unwrap();
    let ticket = execute(start(&pipeline, request(&blocks[1])), &blocks[1]);
    let acknowledgement = ticket.acknowledgement();
    valid(ticket.wait());
    let ticket = execute(start(&pipeline, request(&side)), &side);
    let of_the_side = ticket.acknowledgement();
    valid(ticket.wait());
    assert!(acknowledgement.wait_timeout(Duration::from_millis(20)).is_none());
    drop(held);
    acknowledgement.wait().unwrap();
    assert_eq!(tip(&*store), 1);
    assert!(matches!(of_the_side.wait(), Err(NotAcknowledged::GivenUp)), "it lost");
    store.switches.commits_fail.store(true, Ordering::SeqCst);
    let ticket = execute(start(&pipeline, request(&blocks[2])), &blocks[2]);
    let acknowledgement = ticket.acknowledgement();
    valid(ticket.wait());
    assert!(matches!(acknowledgement.wait(), Err(NotAcknowledged::Failed(Failure::Commit { .. }))));
}
