//! Lists that come by themselves, after their block: in time while it executes, and late after its result.

use std::{
    thread,
    time::{Duration, Instant},
};

use alloy_primitives::B256;
use foldgate::{
    BlockRequest, PipelineConfig,
    pipeline::{Mode, SkipReason},
};

use crate::support::{bal_driven, execute, open, request, start, valid, world};

/// A list may come by itself, as long as the block executes.
#[test]
fn a_list_is_supplied_while_the_block_executes() {
    for shadow in [false, true] {
        let (mut sim, genesis, store) = world(31);
        let block = sim.child(&genesis);
        let config = PipelineConfig::default().with_bal_driven(true).with_shadow(shadow);
        let pipeline = open(&store, config);
        let handle = start(&pipeline, BlockRequest::new(block.facts));
        pipeline.supply_bal(block.facts.block.hash, block.raw.clone());
        let deadline = Instant::now() + Duration::from_secs(60);
        while pipeline.counters().folds_ahead == 0 {
            assert!(Instant::now() < deadline, "never folded ahead");
            thread::yield_now();
        }
        let verdict = valid(execute(handle, &block).wait());
        assert_eq!((verdict.mode, verdict.computed_state_root), (Mode::BalDriven, block.state_root));
        let counters = pipeline.counters();
        assert_eq!((counters.skipped(SkipReason::NoBal), counters.bals_late), (0, 0));
        assert_eq!((counters.folds_before_execution_ended, counters.shadows), (1, u64::from(shadow)));
    }
}

/// The list overtaken by its block's result is dropped and counted, and the block is folded from its writes.
#[test]
fn a_list_that_comes_after_the_result_is_late() {
    let (mut sim, genesis, store) = world(32);
    let parent = sim.child(&genesis);
    let block = sim.child(&parent);
    let pipeline = bal_driven(&store);
    let first = start(&pipeline, request(&parent));
    let second = start(&pipeline, BlockRequest::new(block.facts));
    let ticket = execute(second, &block);
    // The parent has not been executed, so the fold waits still.
    pipeline.supply_bal(block.facts.block.hash, block.raw.clone());
    let deadline = Instant::now() + Duration::from_secs(60);
    while pipeline.counters().bals_late == 0 {
        assert!(Instant::now() < deadline, "never counted");
        thread::yield_now();
    }
    valid(execute(first, &parent).wait());
    let verdict = valid(ticket.wait());
    assert_eq!((verdict.mode, verdict.computed_state_root), {
        (Mode::Incremental(SkipReason::Late), block.state_root)
    });
    let counters = pipeline.counters();
    assert_eq!((counters.skipped(SkipReason::Late), counters.skipped(SkipReason::NoBal)), (1, 0));
    // Nothing comes of lists for blocks that are judged, or never heard of.
    pipeline.supply_bal(block.facts.block.hash, block.raw.clone());
    pipeline.supply_bal(B256::repeat_byte(9), block.raw.clone());
    pipeline.flush().unwrap();
    assert_eq!((pipeline.counters().bals_late, pipeline.counters().failed), (3, 0));
    let next = sim.child(&block);
    assert_eq!(valid(execute(start(&pipeline, request(&next)), &next).wait()).mode, Mode::BalDriven);
}
