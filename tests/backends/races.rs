//! The pipeline at its edges: bounds, odd input, failures of the machine, and what must not be kept.
//!
//! Whatever might never come is waited for with a deadline: a hang is a failure here, not a hung suite.

use std::{
    num::NonZeroUsize,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use alloy_primitives::{B256, Bytes, keccak256};
use foldgate::{
    BlockRequest, Pipeline, PipelineConfig, StateReader as _, Verdict,
    core::{BlockNumHash, TrieStore},
    pipeline::{BeginError, Begun, BlockError, Canonical, Failure, Halt, InvalidReason, Outcome, VerdictTicket},
};
use foldgate_testing::sim::{Sim, SimBlock, SimSize};

use crate::{
    faulty::FaultyStore,
    support::{bal_driven, execute, load, open, open_synchronous, request, start, valid, world},
};

/// The outcome, which has to be there within the deadline.
pub(crate) fn resolved(ticket: &VerdictTicket) -> Outcome {
    eventually("a ticket is never resolved", || ticket.try_wait())
}

/// Waits until `ready` gives something.
pub(crate) fn eventually<T>(complaint: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "{complaint}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until every block under way is judged and acknowledged.
pub(crate) fn settled<S: TrieStore>(pipeline: &Pipeline<S>) {
    eventually("blocks stay under way", || (pipeline.in_flight() == 0).then_some(()));
}

fn halted(outcome: Outcome) -> Halt {
    match outcome {
        Err(BlockError::Halted(halt)) => halt,
        other => panic!("not halted: {other:?}"),
    }
}

/// A child that changes something.
fn child(sim: &mut Sim, parent: &SimBlock) -> SimBlock {
    loop {
        let child = sim.child(parent);
        if child.state_root != parent.state_root {
            return child;
        }
    }
}

fn explicit() -> PipelineConfig {
    PipelineConfig { canonical: Canonical::Explicit, ..PipelineConfig::default().with_bal_driven(true) }
}

// ---- bounds ----

#[test]
fn where_no_orphan_is_held_none_is_leaked() {
    let (mut sim, genesis, store) = world(40);
    let parent = child(&mut sim, &genesis);
    let orphan = child(&mut sim, &parent);
    let config = PipelineConfig { max_orphans: 0, ..PipelineConfig::default().with_bal_driven(true) };
    let pipeline = open(&store, config);
    let ticket = execute(start(&pipeline, request(&orphan)), &orphan);
    assert_eq!(halted(resolved(&ticket)), Halt::UnknownParent(parent.facts.block));
    assert_eq!(pipeline.in_flight(), 0);
}

/// Blocks that wait for an unknown parent, and blocks that stand on those, never take the room that the parent needs.
#[test]
fn orphans_leave_room_for_their_parent() {
    for chained in [false, true] {
        let (mut sim, genesis, store) = world(41);
        let parent = child(&mut sim, &genesis);
        let mut orphans = vec![child(&mut sim, &parent)];
        for _ in 0..3 {
            let below = if chained { &orphans[orphans.len() - 1] } else { &parent };
            orphans.push(child(&mut sim, &below.clone()));
        }
        let max_in_flight = NonZeroUsize::new(4).unwrap();
        let config = PipelineConfig { max_in_flight, ..explicit() };
        let pipeline = open(&store, config);
        let tickets: Vec<_> = orphans.iter().map(|block| execute(start(&pipeline, request(block)), block)).collect();
        valid(resolved(&execute(start(&pipeline, request(&parent)), &parent)));
        let outcomes: Vec<_> = tickets.iter().map(resolved).collect();
        let judged = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(judged, 3, "all but the one for which there was no room: {outcomes:?}");
        settled(&pipeline);
    }
}

/// A block whose parent never comes must not keep what has become durable since.
#[test]
fn an_orphan_pins_no_durable_layer() {
    let (mut sim, genesis, store) = world(42);
    let mut far = sim.child(&genesis);
    far.facts.block.number = 1_000_000;
    far.facts.parent_hash = B256::repeat_byte(0xaa);
    let pipeline = bal_driven(&store);
    let held = start(&pipeline, request(&far));
    let mut parent = genesis;
    let mut layers = Vec::new();
    for _ in 0..8 {
        let block = child(&mut sim, &parent);
        let verdict = valid(execute(start(&pipeline, request(&block)), &block).wait());
        layers.push(Arc::downgrade(verdict.layer.as_ref().unwrap()));
        parent = block;
    }
    pipeline.flush().unwrap();
    eventually("durable layers stay in memory", || layers.iter().all(|layer| layer.strong_count() == 0).then_some(()));
    drop(held);
}

/// A remembered verdict is a verdict, not the block's whole difference.
#[test]
fn a_remembered_verdict_keeps_no_durable_layer() {
    let (mut sim, genesis, store) = world(43);
    let pipeline = bal_driven(&store);
    let block = child(&mut sim, &genesis);
    let verdict = valid(execute(start(&pipeline, request(&block)), &block).wait());
    let layer = Arc::downgrade(verdict.layer.as_ref().unwrap());
    drop(verdict);
    pipeline.flush().unwrap();
    eventually("a durable layer stays in memory", || (layer.strong_count() == 0).then_some(()));
    match pipeline.begin(request(&block)).unwrap() {
        Begun::Known(Verdict::Valid(known)) => {
            assert_eq!((known.computed_state_root, known.layer.is_none()), (block.state_root, true));
        }
        other => panic!("{other:?}"),
    }
}

/// Committed in memory, a block is known whatever the memory for verdicts holds.
#[test]
fn a_committed_block_is_known_without_a_remembered_verdict() {
    let (mut sim, genesis, store) = world(44);
    let config = PipelineConfig { max_remembered: 0, ..explicit() };
    let pipeline = open(&store, config);
    let block = child(&mut sim, &genesis);
    valid(execute(start(&pipeline, request(&block)), &block).wait());
    match pipeline.begin(request(&block)) {
        Ok(Begun::Known(Verdict::Valid(known))) => assert!(known.layer.is_some()),
        other => panic!("{other:?}"),
    }
}

/// Of a block that no record is made of: with a log, a valid block's room goes with it to its record.
#[test]
fn a_verdict_is_given_after_the_room_is_given_back() {
    let (mut sim, genesis, store) = world(45);
    let max_in_flight = NonZeroUsize::MIN;
    let pipeline = open_synchronous(&store, PipelineConfig { max_in_flight, ..explicit() });
    let mut parent = genesis;
    for _ in 0..50 {
        let block = child(&mut sim, &parent);
        let begin = |block: &SimBlock| match pipeline.begin(request(block)).expect("there is room") {
            Begun::Started(handle) => handle,
            Begun::Known(verdict) => panic!("{verdict:?}"),
        };
        let _judged = begin(&block).reject(std::fmt::Error).wait();
        let block = child(&mut sim, &parent);
        valid(execute(begin(&block), &block).wait());
        parent = block;
    }
    assert_eq!(pipeline.in_flight(), 0);
}

/// However long a chain in flight is, it falls with its first block.
#[test]
fn a_long_chain_falls_with_its_first_block() {
    let (mut sim, genesis, store) = world(47);
    let max_in_flight = NonZeroUsize::new(30_000).unwrap();
    let pipeline = open(&store, PipelineConfig { max_in_flight, ..explicit() });
    let first = child(&mut sim, &genesis);
    let head = start(&pipeline, request(&first));
    let mut parent = first.facts;
    let handles = (0..20_000).map(|_| {
        let mut facts = parent;
        facts.block = BlockNumHash::new(parent.block.number + 1, keccak256(parent.block.hash));
        facts.parent_hash = parent.block.hash;
        parent = facts;
        start(&pipeline, BlockRequest::new(facts))
    });
    let handles: Vec<_> = handles.collect();
    let _invalid = head.reject(std::fmt::Error).wait();
    for handle in handles {
        assert_eq!(halted(handle.stop().wait()), Halt::AncestorInvalid(first.facts.block));
    }
    assert_eq!(pipeline.in_flight(), 0);
}

/// What an executor reads stays readable, whatever becomes of the pipeline.
#[test]
fn the_view_of_a_judged_block_outlives_the_pipeline() {
    let (mut sim, genesis, store) = world(48);
    let pipeline = bal_driven(&store);
    let first = child(&mut sim, &genesis);
    let next = child(&mut sim, &first);
    let ticket = execute(start(&pipeline, request(&first)), &first);
    let handle = start(&pipeline, request(&next));
    let view = handle.parent_state();
    valid(ticket.wait());
    valid(execute(handle, &next).wait());
    let unjudged = start(&pipeline, request(&sim.child(&next)));
    let open = unjudged.parent_state();
    drop(pipeline);
    assert_eq!(view.block_hash(1).unwrap(), Some(first.facts.block.hash));
    assert!(open.account_info(&B256::ZERO).is_err(), "a block that was stopped reads no more");
}

#[test]
fn waiting_for_room_takes_any_timeout() {
    let (_, _, store) = world(46);
    assert!(bal_driven(&store).wait_for_room(Duration::MAX));
}

// ---- odd input ----

/// The header is innocent of the list that somebody delivered with it.
#[test]
fn a_wrong_list_does_not_poison_the_block() {
    let (mut sim, genesis, store) = world(50);
    let block = child(&mut sim, &genesis);
    let next = child(&mut sim, &block);
    let pipeline = bal_driven(&store);
    let handle = start(&pipeline, BlockRequest::new(block.facts).with_bal(Bytes::from_static(&[0xc0])));
    match execute(handle, &block).wait() {
        Ok(Verdict::Invalid(invalid)) => assert!(matches!(invalid.reason, InvalidReason::BalHashMismatch { .. })),
        other => panic!("{other:?}"),
    }
    // Delivered again with its own list.
    valid(execute(start(&pipeline, request(&block)), &block).wait());
    valid(execute(start(&pipeline, request(&next)), &next).wait());
}

/// A block is named by number and hash: one that claims another height than its parent's plus one has no parent.
#[test]
fn a_block_at_the_wrong_height_has_no_parent() {
    let (mut sim, genesis, store) = world(51);
    let parent = child(&mut sim, &genesis);
    let mut wrong = child(&mut sim, &parent);
    wrong.facts.block.number = 7;
    let onto = {
        let mut onto = child(&mut sim, &wrong);
        onto.facts.block.number = 8;
        onto
    };
    let good = child(&mut sim, &parent);
    let pipeline = bal_driven(&store);
    let first = start(&pipeline, request(&parent));
    let tickets = [&wrong, &onto].map(|block| execute(start(&pipeline, request(block)), block));
    valid(execute(first, &parent).wait());
    valid(execute(start(&pipeline, request(&good)), &good).wait());
    assert_eq!(pipeline.flush().unwrap(), good.anchor());
    assert!(tickets.iter().all(|ticket| ticket.try_wait().is_none()));
    eventually("judged blocks stay under way", || (pipeline.in_flight() == 2).then_some(()));
    drop(pipeline);
    assert!(tickets.into_iter().all(|ticket| halted(ticket.wait()) == Halt::Shutdown));
}

/// Made-up hashes can lead in a circle.
#[test]
fn a_circle_of_parents_stops_nothing() {
    let (mut sim, genesis, store) = world(52);
    let pipeline = bal_driven(&store);
    let (mut own, mut first, mut second) = (sim.child(&genesis), sim.child(&genesis), sim.child(&genesis));
    own.facts.block.number = 50;
    own.facts.parent_hash = own.facts.block.hash;
    (first.facts.block.number, second.facts.block.number) = (60, 61);
    first.facts.parent_hash = second.facts.block.hash;
    second.facts.parent_hash = first.facts.block.hash;
    let mut on_top = sim.child(&genesis);
    on_top.facts.block.number = 62;
    on_top.facts.parent_hash = second.facts.block.hash;
    let _held = [&own, &first, &second, &on_top].map(|block| execute(start(&pipeline, request(block)), block));
    let block = child(&mut sim, &genesis);
    valid(resolved(&execute(start(&pipeline, request(&block)), &block)));
    pipeline.flush().unwrap();
}

/// What stood on a branch that was dropped is refused, and not held for a parent that can never come.
#[test]
fn a_child_of_a_dropped_branch_is_refused() {
    let (mut sim, genesis, store) = world(53);
    let pipeline = open(&store, PipelineConfig { unwind_depth: 0, ..explicit() });
    let winner = child(&mut sim, &genesis);
    let mut side = vec![genesis];
    for _ in 0..3 {
        let block = child(&mut sim, &side[side.len() - 1]);
        valid(execute(start(&pipeline, request(&block)), &block).wait());
        side.push(block);
    }
    valid(execute(start(&pipeline, request(&winner)), &winner).wait());
    pipeline.set_canonical(winner.facts.block.hash).unwrap();
    pipeline.flush().unwrap();
    let late = child(&mut sim, &side[3]);
    assert!(matches!(pipeline.begin(request(&late)), Err(BeginError::BelowTip { .. })));
}

// ---- failures of the machine ----

/// After a failed commit there is no room to wait for: the caller learns what happened.
#[test]
fn a_broken_pipeline_says_so_and_gives_all_room_back() {
    let mut sim = Sim::new(60, SimSize::default());
    let genesis = sim.genesis();
    let store = load(FaultyStore::new(), &genesis);
    store.switches.commits_fail.store(true, Ordering::SeqCst);
    let max_in_flight = NonZeroUsize::MIN;
    let config = PipelineConfig { max_in_flight, ..PipelineConfig::default().with_bal_driven(true) };
    let pipeline = open(&store, config);
    let block = child(&mut sim, &genesis);
    valid(execute(start(&pipeline, request(&block)), &block).wait());
    assert!(matches!(pipeline.flush(), Err(Failure::Commit { .. })));
    settled(&pipeline);
    let next = child(&mut sim, &block);
    assert!(matches!(pipeline.begin(request(&next)), Err(BeginError::Broken(Failure::Commit { .. }))));
    assert!(pipeline.set_canonical(block.facts.block.hash).is_err());
}

/// A store that panics is a broken store: nobody waits for it for ever.
#[test]
fn a_panicking_commit_breaks_the_pipeline() {
    let mut sim = Sim::new(61, SimSize::default());
    let genesis = sim.genesis();
    let store = load(FaultyStore::new(), &genesis);
    store.switches.commits_panic.store(true, Ordering::SeqCst);
    let pipeline = Arc::new(bal_driven(&store));
    let block = child(&mut sim, &genesis);
    valid(execute(start(&pipeline, request(&block)), &block).wait());
    let flushed = {
        let pipeline = Arc::clone(&pipeline);
        thread::spawn(move || pipeline.flush())
    };
    eventually("a flush waits for a committer that is gone", || flushed.is_finished().then_some(()));
    assert!(matches!(flushed.join().unwrap(), Err(Failure::Panicked(message)) if message.contains("injected")));
    let next = child(&mut sim, &block);
    assert!(matches!(pipeline.begin(request(&next)), Err(BeginError::Broken(Failure::Panicked(_)))));
}

// ---- counters ----

/// The gate of a block whose list was refused before it could be folded opened all the same.
#[test]
fn a_gate_is_counted_whatever_became_of_the_list() {
    let (mut sim, genesis, store) = world(70);
    let pipeline = bal_driven(&store);
    let block = child(&mut sim, &genesis);
    let handle = start(&pipeline, BlockRequest::new(block.facts).with_sourced_bal(Bytes::from_static(&[0xc0])));
    valid(execute(handle, &block).wait());
    let counters = pipeline.counters();
    assert_eq!((counters.gates_opened_from_durable, counters.gates_opened_from_memory), (1, 0));
}
