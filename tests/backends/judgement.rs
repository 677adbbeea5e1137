//! Rules of judgement, failures and cancellation: what becomes of wrong lists, wrong roots, silent executors, dropped
//! handles and failing disks. On the store in memory.

use std::{
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use alloy_primitives::{B256, Bytes, keccak256};
use foldgate::{
    BlockRequest, BlockResult, Pipeline, PipelineConfig, StateReader, TrieStore, Verdict,
    core::{BlockAccessIndex, StateWrites},
    pipeline::{
        BeginError, Begun, BlockError, Canonical, ConfirmedBy, Failure, Halt, InvalidReason, Mode, OnEarlyMismatch,
        Outcome, ReadError, RebuiltBal, RecordError, SkipReason,
    },
};
use foldgate_testing::sim::{Sim, SimBlock, SimSize};

use crate::{
    faulty::FaultyStore,
    logs::SharedLog,
    races::settled,
    support::{assert_state, assert_view, bal_driven, execute, honest, load, open, record, request, start, valid},
};

struct World {
    sim: Sim,
    genesis: SimBlock,
    store: Arc<foldgate::MemoryStore>,
}

fn world(seed: u64) -> World {
    println!("seed {seed}");
    let mut sim = Sim::new(seed, SimSize::default());
    let genesis = sim.genesis();
    let store = load(foldgate::MemoryStore::new(), &genesis);
    World { sim, genesis, store }
}

impl World {
    /// A child that changes something.
    fn child(&mut self, parent: &SimBlock) -> SimBlock {
        loop {
            let child = self.sim.child(parent);
            if child.state_root != parent.state_root {
                return child;
            }
        }
    }
}

fn invalid(outcome: Outcome) -> InvalidReason {
    match outcome {
        Ok(Verdict::Invalid(invalid)) => invalid.reason.clone(),
        other => panic!("not invalid: {other:?}"),
    }
}

fn halted(outcome: Outcome) -> Halt {
    match outcome {
        Err(BlockError::Halted(halt)) => halt,
        other => panic!("not halted: {other:?}"),
    }
}

fn failed(outcome: Outcome) -> Failure {
    match outcome {
        Err(BlockError::Failed(failure)) => failure,
        other => panic!("not failed: {other:?}"),
    }
}

#[test]
fn a_payload_with_another_hash_is_invalid_in_every_mode() {
    for on in [true, false] {
        let mut world = world(10);
        let block = world.child(&world.genesis.clone());
        let config = PipelineConfig::default().with_bal_driven(on);
        let pipeline = open(&world.store, config);
        let other = Bytes::from_static(&[0xc0]);
        let handle = start(&pipeline, BlockRequest::new(block.facts).with_bal(other));
        match invalid(execute(handle, &block).wait()) {
            InvalidReason::BalHashMismatch { got, expected } => {
                assert_eq!((got, expected), (keccak256([0xc0]), block.bal_hash));
            }
            other => panic!("{other:?}"),
        }
        drop(pipeline);
        assert_eq!(world.store.tip().unwrap().unwrap(), world.genesis.anchor());
    }
}

#[test]
fn a_sourced_list_with_another_hash_is_dropped_and_the_block_goes_on() {
    let mut world = world(11);
    let block = world.child(&world.genesis.clone());
    let pipeline = bal_driven(&world.store);
    let handle = start(&pipeline, BlockRequest::new(block.facts).with_sourced_bal(Bytes::from_static(&[0xc0])));
    let verdict = valid(execute(handle, &block).wait());
    assert_eq!(verdict.mode, Mode::Incremental(SkipReason::BalRefused));
    let counters = pipeline.counters();
    assert_eq!((counters.bals_dropped, counters.skipped(SkipReason::BalRefused)), (1, 1));
    // The next block with a list folds ahead again.
    let next = world.child(&block);
    assert_eq!(valid(execute(start(&pipeline, request(&next)), &next).wait()).mode, Mode::BalDriven);
}

#[test]
fn a_malformed_list_is_invalid_where_the_header_commits_to_it_and_dropped_elsewhere() {
    let mut world = world(12);
    let mut block = world.child(&world.genesis.clone());
    let garbage = Bytes::from_static(&[0xc1, 0x80]);
    block.facts.expected_bal_hash = Some(keccak256(&garbage));
    let pipeline = bal_driven(&world.store);
    let handle = start(&pipeline, BlockRequest::new(block.facts).with_bal(garbage.clone()));
    let token = handle.cancel_token();
    while !token.is_cancelled() {
        thread::yield_now();
    }
    assert!(matches!(invalid(handle.stop().wait()), InvalidReason::BalMalformed(_)));

    let block = world.child(&world.genesis.clone()).uncommitted();
    let handle = start(&pipeline, BlockRequest::new(block.facts).with_bal(garbage));
    let verdict = valid(execute(handle, &block).wait());
    assert_eq!(verdict.mode, Mode::Incremental(SkipReason::BalRefused));
}

/// A list that is not true, with its right hash: the early root proves the block invalid before execution ends.
#[test]
fn a_wrong_early_root_stops_the_executor_at_once() {
    let mut world = world(13);
    let (honest_block, liar) = lying_block(&mut world);
    let pipeline = bal_driven(&world.store);
    let handle = start(&pipeline, request(&liar));
    let token = handle.cancel_token();
    while !token.is_cancelled() {
        thread::yield_now();
    }
    assert_eq!(handle.check_cancelled(), Err(Halt::Judged));
    assert!(matches!(handle.parent_state().account_info(&B256::ZERO), Err(ReadError::Halted(Halt::Judged))));
    match invalid(handle.stop().wait()) {
        InvalidReason::StateRootMismatch { got, expected } => {
            assert_ne!(got, expected);
            assert_eq!(expected, honest_block.state_root);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(pipeline.counters().folds_before_execution_ended, 1);
}

/// A block whose list claims what another block does.
fn lying_block(world: &mut World) -> (SimBlock, SimBlock) {
    let genesis = world.genesis.clone();
    let honest_block = world.child(&genesis);
    let mut liar = world.child(&genesis);
    while liar.state_root == honest_block.state_root {
        liar = world.child(&genesis);
    }
    let mut lying = honest_block.clone();
    (lying.list, lying.raw, lying.bal_hash) = (liar.list, liar.raw, liar.bal_hash);
    lying.facts.expected_bal_hash = Some(lying.bal_hash);
    // The lying list's indices have to fit.
    lying.facts.tx_count = 10;
    (honest_block, lying)
}

#[test]
fn find_reason_reports_both_the_early_root_and_what_execution_found() {
    let mut world = world(14);
    let (honest_block, liar) = lying_block(&mut world);
    let config = PipelineConfig {
        on_early_mismatch: OnEarlyMismatch::FindReason,
        ..PipelineConfig::default().with_bal_driven(true)
    };
    let pipeline = open(&world.store, config);
    let mut handle = start(&pipeline, request(&liar));
    // Long enough for the fold to end: execution must not be stopped by it.
    thread::sleep(Duration::from_millis(30));
    record(&mut handle, &honest_block);
    let outcome = handle.finish(honest(&honest_block)).wait();
    let Ok(Verdict::Invalid(verdict)) = outcome else { panic!("{outcome:?}") };
    match &verdict.reason {
        InvalidReason::BalMismatch { got, expected, difference } => {
            assert_eq!((*got, *expected), (honest_block.bal_hash, liar.bal_hash));
            let difference = difference.as_ref().expect("both lists were at hand");
            assert!(verdict.reason.to_string().contains(&difference.address.to_string()), "{}", verdict.reason);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(verdict.early, Some(InvalidReason::StateRootMismatch { .. })));
}

/// An extra read gives the header's root, and the block is invalid all the same.
#[test]
fn a_list_with_the_right_root_and_an_extra_read_is_invalid() {
    let mut world = world(15);
    let block = world.child(&world.genesis.clone());
    let mut padded = block.clone();
    let extra = alloy_primitives::Address::repeat_byte(0xfe);
    padded.list.push(alloy_eip7928_account(extra));
    padded.list.sort_unstable_by_key(|account| account.address);
    padded.raw = foldgate::bal::encode(&padded.list);
    padded.bal_hash = keccak256(&padded.raw);
    padded.facts.expected_bal_hash = Some(padded.bal_hash);
    let pipeline = bal_driven(&world.store);
    let mut handle = start(&pipeline, request(&padded));
    record(&mut handle, &block);
    match invalid(handle.finish(honest(&block)).wait()) {
        InvalidReason::BalMismatch { difference, .. } => {
            assert_eq!(difference.expect("both lists were at hand").address, extra);
        }
        other => panic!("{other:?}"),
    }
}

fn alloy_eip7928_account(address: alloy_primitives::Address) -> foldgate::bal::AccountChanges {
    foldgate::bal::AccountChanges::new(address)
}

#[test]
fn a_wrong_derived_list_is_dropped_and_never_a_verdict() {
    for by_root in [true, false] {
        let mut world = world(16);
        let (honest_block, liar) = lying_block(&mut world);
        let mut facts = liar.uncommitted().facts;
        let raw = if by_root {
            lying_raw(&mut world, &honest_block)
        } else {
            // The root is right; an account too many is listed.
            let mut list = honest_block.list.clone();
            list.push(alloy_eip7928_account(alloy_primitives::Address::repeat_byte(0xff)));
            list.sort_unstable_by_key(|account| account.address);
            foldgate::bal::encode(&list)
        };
        facts.expected_bal_hash = None;
        let pipeline = bal_driven(&world.store);
        let handle = start(&pipeline, BlockRequest::new(facts).with_sourced_bal(raw));
        thread::sleep(Duration::from_millis(10));
        assert_eq!(handle.check_cancelled(), Ok(()));
        let verdict = valid(execute(handle, &honest_block).wait());
        assert_eq!(verdict.computed_state_root, honest_block.state_root);
        let reason = match verdict.mode {
            Mode::Incremental(reason) => reason,
            Mode::BalDriven => panic!("the list is wrong"),
        };
        assert_eq!(pipeline.counters().skipped(reason), 1);
        let expected: &[SkipReason] = if by_root {
            &[SkipReason::EarlyRootMismatch, SkipReason::NotConfirmed]
        } else {
            &[SkipReason::NotConfirmed]
        };
        assert!(expected.contains(&reason), "{reason:?}");
        assert_eq!(verdict.layer.as_ref().unwrap().bal, None, "a dropped list is not kept");
    }
}

fn lying_raw(world: &mut World, honest_block: &SimBlock) -> Bytes {
    loop {
        let other = world.child(&world.genesis.clone());
        if other.state_root != honest_block.state_root {
            return other.raw;
        }
    }
}

#[test]
fn without_a_rebuilt_list_the_writes_confirm_where_the_header_commits_to_none() {
    let mut world = world(17);
    let block = world.child(&world.genesis.clone()).uncommitted();
    let pipeline = bal_driven(&world.store);
    let mut handle = start(&pipeline, request(&block));
    record(&mut handle, &block);
    let verdict = valid(handle.finish(BlockResult::default()).wait());
    assert_eq!((verdict.mode, verdict.confirmed_by), (Mode::BalDriven, ConfirmedBy::PostState));

    // Writes that lead elsewhere: the list is dropped, and the writes are judged.
    let next = world.child(&block).uncommitted();
    let mut handle = start(&pipeline, request(&next));
    handle.record(BlockAccessIndex::PRE_EXECUTION, &StateWrites::default()).unwrap();
    assert!(matches!(
        invalid(handle.finish(BlockResult::default()).wait()),
        InvalidReason::StateRootMismatch { got, .. } if got == block.state_root
    ));

    // The header commits to a list: somebody has to have rebuilt it.
    let committed = world.child(&block);
    let mut handle = start(&pipeline, request(&committed));
    record(&mut handle, &committed);
    assert!(matches!(failed(handle.finish(BlockResult::default()).wait()), Failure::NotRebuilt));
}

#[test]
fn a_confirmed_list_stands_in_for_writes_that_were_not_recorded() {
    let mut world = world(18);
    let block = world.child(&world.genesis.clone());
    let next = world.child(&block);
    let pipeline = bal_driven(&world.store);
    let first = start(&pipeline, request(&block));
    let second = start(&pipeline, request(&next));
    let ticket = first.finish(honest(&block));
    assert_view(&second.parent_state(), &block);
    assert_eq!(valid(ticket.wait()).mode, Mode::BalDriven);
    valid(second.finish(honest(&next)).wait());

    // Without a list there is nothing to go by.
    let last = world.child(&next).uncommitted();
    let handle = start(&pipeline, BlockRequest::new(last.facts));
    assert!(matches!(failed(handle.finish(BlockResult::default()).wait()), Failure::NoWrites));
}

#[test]
fn blocks_before_cancun_and_without_lists_are_incremental_and_counted() {
    let mut world = world(19);
    let before = world.child(&world.genesis.clone()).uncommitted();
    let without = world.child(&before).uncommitted();
    let with = world.child(&without);
    let pipeline = bal_driven(&world.store);
    let handle = start(&pipeline, request(&before).before_cancun(true));
    assert_eq!(valid(execute(handle, &before).wait()).mode, Mode::Incremental(SkipReason::BeforeCancun));
    let handle = start(&pipeline, BlockRequest::new(without.facts));
    assert_eq!(valid(execute(handle, &without).wait()).mode, Mode::Incremental(SkipReason::NoBal));
    assert_eq!(valid(execute(start(&pipeline, request(&with)), &with).wait()).mode, Mode::BalDriven);
    let counters = pipeline.counters();
    assert_eq!(counters.skipped(SkipReason::BeforeCancun), 1);
    assert_eq!(counters.skipped(SkipReason::NoBal), 1);
    assert_eq!(counters.folds_ahead, 1);
}

#[test]
fn the_expected_root_may_come_with_the_result() {
    let mut world = world(20);
    let mut block = world.child(&world.genesis.clone());
    block.facts.expected_state_root = None;
    let pipeline = bal_driven(&world.store);
    let mut handle = start(&pipeline, request(&block));
    record(&mut handle, &block);
    let result = BlockResult { expected_state_root: Some(block.state_root), ..honest(&block) };
    valid(handle.finish(result).wait());

    let mut next = world.child(&block);
    next.facts.expected_state_root = None;
    let mut handle = start(&pipeline, request(&next));
    record(&mut handle, &next);
    assert!(matches!(failed(handle.finish(honest(&next)).wait()), Failure::NoExpectedRoot));
}

#[test]
fn an_invalid_block_takes_its_descendants_with_it_and_no_other() {
    let mut world = world(21);
    let genesis = world.genesis.clone();
    let (parent, sibling) = (world.child(&genesis), world.child(&genesis));
    let child = world.child(&parent);
    let grandchild = world.child(&child);
    let config = PipelineConfig { canonical: Canonical::Explicit, ..PipelineConfig::default().with_bal_driven(true) };
    let pipeline = open(&world.store, config);
    let handle = start(&pipeline, request(&parent));
    let beside = start(&pipeline, request(&sibling));
    let waiting = start(&pipeline, request(&child));
    let last = start(&pipeline, request(&grandchild));
    let view = waiting.parent_state();
    // An executor that waits in a read is woken.
    let reader = thread::spawn(move || view.account_info(&B256::ZERO));
    let reason = invalid(handle.reject(std::fmt::Error).wait());
    assert!(matches!(reason, InvalidReason::Execution(_)));
    let name = parent.facts.block;
    assert!(matches!(reader.join().unwrap(), Err(ReadError::Halted(Halt::AncestorInvalid(block))) if block == name));
    assert_eq!(halted(waiting.stop().wait()), Halt::AncestorInvalid(name));
    assert_eq!(halted(execute(last, &grandchild).wait()), Halt::AncestorInvalid(name));
    valid(execute(beside, &sibling).wait());
    // The verdict is remembered; what stands on the block is refused.
    assert!(matches!(pipeline.begin(request(&parent)), Ok(Begun::Known(Verdict::Invalid(_)))));
    assert!(matches!(pipeline.begin(request(&child)), Err(BeginError::ParentInvalid(block)) if block == name));
}

#[test]
fn a_dropped_handle_cancels_and_the_block_may_begin_again() {
    let mut world = world(22);
    let block = world.child(&world.genesis.clone());
    let child = world.child(&block);
    let pipeline = bal_driven(&world.store);
    let handle = start(&pipeline, request(&block));
    let onto = start(&pipeline, request(&child));
    let view = handle.parent_state();
    assert!(matches!(pipeline.begin(request(&block)), Err(BeginError::InFlight(name)) if name == block.facts.block));
    drop(handle);
    assert!(matches!(view.account_info(&B256::ZERO), Err(ReadError::Halted(Halt::HandleDropped))));
    assert_eq!(halted(onto.stop().wait()), Halt::AncestorCancelled(block.facts.block));
    let handle = loop {
        // The calculator may not have heard of the drop yet.
        match pipeline.begin(request(&block)) {
            Ok(Begun::Started(handle)) => break handle,
            Err(BeginError::InFlight(_)) => thread::yield_now(),
            other => panic!("{other:?}"),
        }
    };
    valid(execute(handle, &block).wait());
    valid(execute(start(&pipeline, request(&child)), &child).wait());
    pipeline.flush().unwrap();
    assert_eq!(pipeline.counters().cancelled, 2);
    settled(&pipeline);
}

#[test]
fn a_delivered_block_is_not_calculated_twice() {
    let mut world = world(23);
    let block = world.child(&world.genesis.clone());
    let pipeline = bal_driven(&world.store);
    valid(execute(start(&pipeline, request(&block)), &block).wait());
    match pipeline.begin(request(&block)).unwrap() {
        Begun::Known(Verdict::Valid(verdict)) => assert_eq!(verdict.computed_state_root, block.state_root),
        other => panic!("{other:?}"),
    }
    let counters = pipeline.counters();
    assert_eq!((counters.folds_ahead, counters.redelivered), (1, 1));
}

#[test]
fn blocks_of_unknown_parents_are_held_within_bounds() {
    let mut world = world(24);
    let genesis = world.genesis.clone();
    let config = PipelineConfig { max_orphans: 2, unwind_depth: 0, ..PipelineConfig::default().with_bal_driven(true) };
    let pipeline = open(&world.store, config);
    let parents: Vec<_> = (0..3).map(|_| world.child(&genesis)).collect();
    let children: Vec<_> = parents.iter().map(|parent| world.child(parent)).collect();
    let mut handles: Vec<_> = children.iter().map(|child| start(&pipeline, request(child))).collect();
    let evicted = handles.remove(0);
    assert_eq!(halted(evicted.stop().wait()), Halt::UnknownParent(parents[0].facts.block));
    // The second one's parent turns up.
    valid(execute(start(&pipeline, request(&parents[1])), &parents[1]).wait());
    let verdict = valid(execute(handles.remove(0), &children[1]).wait());
    assert_eq!(verdict.computed_state_root, children[1].state_root);
    // The third one's can no longer: another branch was made durable.
    pipeline.flush().unwrap();
    assert_eq!(halted(handles.remove(0).stop().wait()), Halt::ForkLost);
    assert_eq!(pipeline.counters().orphans, 3);
}

#[test]
fn too_many_blocks_are_refused_as_busy() {
    let mut world = world(25);
    let mut parent = world.genesis.clone();
    let max_in_flight = std::num::NonZeroUsize::new(2).unwrap();
    let config = PipelineConfig { max_in_flight, ..PipelineConfig::default().with_bal_driven(true) };
    let pipeline = open(&world.store, config);
    let mut handles = Vec::new();
    for _ in 0..2 {
        let block = world.child(&parent);
        handles.push((start(&pipeline, request(&block)), block.clone()));
        parent = block;
    }
    let block = world.child(&parent);
    assert!(matches!(pipeline.begin(request(&block)), Err(BeginError::Busy { max: 2 })));
    assert!(!pipeline.wait_for_room(Duration::from_millis(5)));
    for (handle, block) in handles {
        valid(execute(handle, &block).wait());
    }
    valid(execute(start(&pipeline, request(&block)), &block).wait());
}

#[test]
fn recorded_indices_are_checked() {
    let mut world = world(26);
    let block = world.child(&world.genesis.clone());
    let pipeline = bal_driven(&world.store);
    let mut handle = start(&pipeline, request(&block));
    let beyond = block.facts.tx_count + 2;
    assert_eq!(
        handle.record(BlockAccessIndex::new(beyond), &StateWrites::default()),
        Err(RecordError::OutOfRange { got: beyond, max: beyond - 1 })
    );
    handle.record(BlockAccessIndex::new(1), &StateWrites::default()).unwrap();
    assert_eq!(
        handle.record(BlockAccessIndex::PRE_EXECUTION, &StateWrites::default()),
        Err(RecordError::OutOfOrder { got: 0, last: 1 })
    );
}

/// Executors can turn a failed read into a "validation" error: the block stays unjudged.
#[test]
fn a_failed_read_is_never_a_verdict() {
    let mut sim = Sim::new(27, SimSize::default());
    let genesis = sim.genesis();
    let store = load(FaultyStore::new(), &genesis);
    let mut block = sim.child(&genesis);
    while block.state_root == genesis.state_root {
        block = sim.child(&genesis);
    }
    let config = PipelineConfig { warm_up: false, ..PipelineConfig::default().with_bal_driven(false) };
    let pipeline = open(&store, config);
    let handle = start(&pipeline, request(&block));
    let view = handle.parent_state();
    store.switches.reads_fail.store(true, Ordering::SeqCst);
    assert!(matches!(view.account_info(&B256::ZERO), Err(ReadError::Storage(_))));
    store.switches.reads_fail.store(false, Ordering::SeqCst);
    assert!(matches!(failed(handle.reject(std::fmt::Error).wait()), Failure::Read(_)));
    // The fold's own reads too.
    let handle = start(&pipeline, request(&block));
    let mut handle = handle;
    record(&mut handle, &block);
    store.switches.reads_fail.store(true, Ordering::SeqCst);
    assert!(matches!(failed(handle.finish(honest(&block)).wait()), Failure::Read(_)));
    store.switches.reads_fail.store(false, Ordering::SeqCst);
    // Nothing was judged, so that the block can be tried again.
    valid(execute(start(&pipeline, request(&block)), &block).wait());
    let counters = pipeline.counters();
    assert_eq!((counters.failed, counters.invalid, counters.valid), (2, 0, 1));
}

#[test]
fn a_failed_commit_breaks_the_pipeline_and_leaves_the_store() {
    let mut sim = Sim::new(28, SimSize::default());
    let genesis = sim.genesis();
    let store = load(FaultyStore::new(), &genesis);
    let pipeline = bal_driven(&store);
    let block = sim.child(&genesis);
    store.switches.commits_fail.store(true, Ordering::SeqCst);
    valid(execute(start(&pipeline, request(&block)), &block).wait());
    assert!(matches!(pipeline.flush(), Err(Failure::Commit { block: name, .. }) if name == block.facts.block));
    let next = sim.child(&block);
    assert!(matches!(pipeline.begin(request(&next)), Err(BeginError::Broken(Failure::Commit { .. }))));
    drop(pipeline);
    assert_eq!(store.tip().unwrap().unwrap(), genesis.anchor());
}

/// Blocks are judged, and read by their children, while a commit is held; afterwards those that have gathered are
/// committed at once.
#[test]
fn verdicts_wait_for_no_commit_and_commits_gather_blocks() {
    let mut sim = Sim::new(30, SimSize::default());
    let mut parent = sim.genesis();
    let store = load(FaultyStore::new(), &parent);
    let pipeline = bal_driven(&store);
    let held = store.switches.commits_wait.lock().unwrap();
    for _ in 0..10 {
        let block = sim.child(&parent);
        valid(execute(start(&pipeline, request(&block)), &block).wait());
        parent = block;
    }
    assert_eq!(pipeline.counters().commits, 0);
    drop(held);
    pipeline.flush().unwrap();
    let counters = pipeline.counters();
    assert_eq!((counters.commits, counters.folds_ahead), (10, 10));
    // What was at the gate when the others came, the others together, and the newest, which stay in memory until then.
    assert!(counters.store_commits <= 3, "{counters:?}");
    drop(pipeline);
    assert_eq!(store.tip().unwrap().unwrap(), parent.anchor());
    assert_state(&*store, &parent);
}

#[test]
fn shutdown_stops_what_is_in_flight() {
    let mut world = world(29);
    let block = world.child(&world.genesis.clone());
    let child = world.child(&block);
    let pipeline = bal_driven(&world.store);
    let handle = start(&pipeline, request(&block));
    let waiting = start(&pipeline, request(&child));
    let view = waiting.parent_state();
    let reader = thread::spawn(move || view.account_info(&B256::ZERO));
    drop(pipeline);
    assert!(matches!(reader.join().unwrap(), Err(ReadError::Halted(Halt::Shutdown))));
    assert_eq!(handle.check_cancelled(), Err(Halt::Shutdown));
    assert_eq!(halted(handle.finish(honest(&block)).wait()), Halt::Shutdown);
    assert_eq!(halted(waiting.stop().wait()), Halt::Shutdown);
}

#[test]
fn an_empty_store_is_no_start() {
    let store = Arc::new(foldgate::MemoryStore::new());
    assert!(Pipeline::open(Arc::clone(&store), PipelineConfig::default()).is_err());
    assert!(Pipeline::open_with_log(store, SharedLog::default(), PipelineConfig::default()).is_err());
}

#[test]
fn a_rebuilt_list_is_checked_without_a_given_one() {
    let mut world = world(30);
    let block = world.child(&world.genesis.clone());
    let pipeline = bal_driven(&world.store);
    let mut handle = start(&pipeline, BlockRequest::new(block.facts));
    record(&mut handle, &block);
    let wrong = BlockResult {
        rebuilt_bal: Some(RebuiltBal { hash: B256::repeat_byte(9), list: None }),
        expected_state_root: None,
    };
    match invalid(handle.finish(wrong).wait()) {
        InvalidReason::BalMismatch { got, expected, difference } => {
            assert_eq!((got, expected), (B256::repeat_byte(9), block.bal_hash));
            assert!(difference.is_none());
        }
        other => panic!("{other:?}"),
    }
}
