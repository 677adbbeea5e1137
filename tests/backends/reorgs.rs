//! Reorganisations on every backend: a driver that behaves as a consensus client does, across the durable tip and back.
//! The oracle has the state of every block; after each move of the head the store is held to it.
//!
//! Folds on ancestors below the tip run ahead of execution like any others: the counters are asserted.

use std::sync::Arc;

use foldgate::{
    PipelineConfig, TrieStore, Verdict,
    core::BalStore,
    pipeline::{BeginError, Begun, BlockError, Canonical, CanonicalError, Halt, Mode},
};
use foldgate_testing::{
    conformance::StoreFactory,
    sim::{Sim, SimBlock, SimSize},
};

use crate::{
    races::{eventually, resolved, settled},
    support::{Opened, assert_state, assert_view, bal_driven, execute, load, open, request, start, valid},
};

stamp_all!([
    to_depth_64_and_back,
    siblings_below_the_tip_share_a_way,
    a_consensus_client_changes_its_mind,
    deeper_than_the_settings_allow,
    a_merged_commit_can_be_left_at_any_of_its_blocks,
    a_linear_import_is_reorganised,
]);

const SMALL: SimSize = SimSize { addresses: 24, slots: 8, touched: 8, written: 4 };

/// A world with a pipeline that makes durable what it is told to.
struct Driver<S: BalStore> {
    sim: Sim,
    genesis: SimBlock,
    store: Arc<S>,
    pipeline: Opened<S>,
}

impl<S: BalStore> Driver<S> {
    fn new(store: S, seed: u64, unwind_depth: u64) -> Self {
        println!("seed {seed}");
        let mut sim = Sim::new(seed, SMALL);
        let genesis = sim.genesis();
        let store = load(store, &genesis);
        let config = PipelineConfig {
            canonical: Canonical::Explicit,
            unwind_depth,
            ..PipelineConfig::default().with_bal_driven(true)
        };
        let pipeline = open(&store, config);
        Self { sim, genesis, store, pipeline }
    }

    /// Blocks that follow on each other, above `parent`.
    fn branch(&mut self, parent: &SimBlock, length: usize) -> Vec<SimBlock> {
        let mut blocks = vec![parent.clone()];
        for _ in 0..length {
            let next = loop {
                let child = self.sim.child(&blocks[blocks.len() - 1]);
                if child.state_root != blocks[blocks.len() - 1].state_root {
                    break child;
                }
            };
            blocks.push(next);
        }
        blocks.split_off(1)
    }

    /// Delivers a block, looks at its parent's state, executes it, and gets it judged valid, folded ahead.
    fn deliver(&self, block: &SimBlock, parent: &SimBlock) {
        let handle = start(&self.pipeline, request(block));
        assert_view(&handle.parent_state(), parent);
        let verdict = valid(resolved(&execute(handle, block)));
        assert_eq!((verdict.computed_state_root, verdict.mode), (block.state_root, Mode::BalDriven));
    }

    fn deliver_all(&self, parent: &SimBlock, blocks: &[SimBlock]) {
        let mut parent = parent;
        for block in blocks {
            self.deliver(block, parent);
            parent = block;
        }
    }

    /// Moves the head and has it flushed; then the store is the oracle's.
    fn choose(&self, head: &SimBlock) {
        self.pipeline.set_canonical(head.facts.block.hash).unwrap();
        assert_eq!(self.pipeline.flush().unwrap(), head.anchor());
        assert_state(&*self.store, head);
    }
}

fn to_depth_64_and_back<F: StoreFactory>(factory: &F) {
    let mut driver = Driver::new(factory.fresh(), 100, 128);
    let genesis = driver.genesis.clone();
    let main = driver.branch(&genesis, 70);
    for part in main.chunks(8) {
        let first = part[0].facts.block.number as usize - 1;
        driver.deliver_all(first.checked_sub(1).map_or(&genesis, |at| &main[at]), part);
        driver.choose(&part[part.len() - 1]);
    }
    let side = driver.branch(&main[5], 66);
    driver.deliver_all(&main[5], &side);
    let counters = driver.pipeline.counters();
    assert_eq!((counters.folds_ahead, counters.folds_ahead_below_tip), (136, 66), "{counters:?}");
    driver.choose(&side[65]);
    let counters = driver.pipeline.counters();
    assert_eq!((counters.reorganisations, counters.unwound), (1, 64));
    // Back, by a word: what was durable was kept.
    match driver.pipeline.begin(request(&main[69])).unwrap() {
        Begun::Known(Verdict::Valid(known)) => {
            let layer = known.layer.as_ref().expect("the layer was kept");
            assert_eq!((layer.anchor, layer.bal.as_ref()), (main[69].anchor(), Some(&main[69].raw)));
        }
        other => panic!("{other:?}"),
    }
    driver.choose(&main[69]);
    for block in &main {
        assert_eq!(driver.store.bal(block.facts.block).unwrap().as_ref(), Some(&block.raw), "{}", block.facts.block);
        let committed = driver.store.committed(block.facts.block.number).unwrap();
        assert_eq!(committed, Some(block.anchor()));
    }
    // Both branches go on.
    for (head, parent) in [(driver.branch(&side[65], 2), &side[65]), (driver.branch(&main[69], 2), &main[69])] {
        driver.deliver_all(parent, &head);
        driver.choose(&head[1]);
    }
    let counters = driver.pipeline.counters();
    assert_eq!((counters.reorganisations, counters.folds_incremental, counters.failed), (4, 0, 0));
    settled(&driver.pipeline);
}

/// Begun together, before the way to their parent is known.
fn siblings_below_the_tip_share_a_way<F: StoreFactory>(factory: &F) {
    let mut driver = Driver::new(factory.fresh(), 101, 128);
    let genesis = driver.genesis.clone();
    let main = driver.branch(&genesis, 12);
    driver.deliver_all(&genesis, &main);
    driver.choose(&main[11]);
    let siblings: Vec<_> = (0..6).map(|_| driver.branch(&main[1], 2)).collect();
    let handles: Vec<_> = siblings.iter().flatten().map(|block| start(&driver.pipeline, request(block))).collect();
    let parents = siblings.iter().flat_map(|pair| [&main[1], &pair[0]]);
    let tickets: Vec<_> = handles
        .into_iter()
        .zip(siblings.iter().flatten().zip(parents))
        .map(|(handle, (block, parent))| {
            assert_view(&handle.parent_state(), parent);
            execute(handle, block)
        })
        .collect();
    for (block, ticket) in siblings.iter().flatten().zip(tickets) {
        assert_eq!(valid(resolved(&ticket)).computed_state_root, block.state_root);
    }
    let counters = driver.pipeline.counters();
    assert_eq!((counters.ways, counters.folds_ahead_below_tip), (1, 12), "{counters:?}");
    for pair in siblings.iter().rev() {
        driver.choose(&pair[1]);
    }
    driver.choose(&main[11]);
}

fn a_consensus_client_changes_its_mind<F: StoreFactory>(factory: &F) {
    let mut driver = Driver::new(factory.fresh(), 102, 128);
    let genesis = driver.genesis.clone();
    let main = driver.branch(&genesis, 10);
    driver.deliver_all(&genesis, &main);
    driver.choose(&main[9]);

    // A branch below the tip comes in the wrong order, and its first block last.
    let side = driver.branch(&main[3], 5);
    let early: Vec<_> = side[1..].iter().rev().map(|block| (block, start(&driver.pipeline, request(block)))).collect();
    assert_eq!(driver.pipeline.counters().orphans, 4);
    let unknown = driver.pipeline.set_canonical(side[0].facts.block.hash);
    assert!(matches!(unknown, Err(CanonicalError::Unknown(_))), "{unknown:?}");
    let not_judged = driver.pipeline.set_canonical(side[4].facts.block.hash);
    assert!(matches!(not_judged, Err(CanonicalError::NotJudged(_))), "{not_judged:?}");
    driver.deliver(&side[0], &main[3]);
    for (block, handle) in early.into_iter().rev() {
        assert_eq!(valid(resolved(&execute(handle, block))).computed_state_root, block.state_root);
    }
    driver.choose(&side[2]);
    driver.choose(&side[4]);

    // Delivered again: known, on both branches, durable or not.
    for block in side.iter().chain(&main) {
        match driver.pipeline.begin(request(block)).unwrap() {
            Begun::Known(Verdict::Valid(known)) => assert_eq!(known.computed_state_root, block.state_root),
            other => panic!("{other:?}"),
        }
    }

    // A block in the middle of another branch is invalid: what stands on it falls, the branch below stays.
    let third = driver.branch(&main[6], 5);
    let mut handles: Vec<_> = third.iter().map(|block| start(&driver.pipeline, request(block))).collect();
    let above: Vec<_> = handles.split_off(3);
    let reject = handles.pop().unwrap();
    for (handle, block) in handles.into_iter().zip(&third) {
        valid(resolved(&execute(handle, block)));
    }
    assert!(matches!(resolved(&reject.reject(std::fmt::Error)), Ok(Verdict::Invalid(_))));
    for handle in above {
        match resolved(&handle.stop()) {
            Err(BlockError::Halted(Halt::AncestorInvalid(block))) => assert_eq!(block, third[2].facts.block),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(driver.pipeline.begin(request(&third[3])), Err(BeginError::ParentInvalid(_))));
    driver.choose(&third[1]);

    // A block whose parent nobody knows is held, and one that is cancelled may begin again.
    let lost = driver.branch(&third[1], 2);
    let held = start(&driver.pipeline, request(&lost[1]));
    drop(start(&driver.pipeline, request(&lost[0])));
    assert!(matches!(resolved(&held.stop()), Err(BlockError::Halted(_))));
    eventually("a dropped block stays", || (driver.pipeline.in_flight() == 0).then_some(()));
    driver.deliver_all(&third[1], &lost);
    driver.choose(&lost[1]);

    // And back to where it began; the head does not move to its own ancestor.
    driver.choose(&main[9]);
    driver.pipeline.set_canonical(main[4].facts.block.hash).unwrap();
    assert_eq!(driver.pipeline.flush().unwrap(), main[9].anchor());
    assert_state(&*driver.store, &main[9]);
    let counters = driver.pipeline.counters();
    assert_eq!((counters.reorganisations, counters.failed), (3, 0), "{counters:?}");
    assert!(counters.folds_ahead_below_tip >= 7 && counters.folds_incremental == 0, "{counters:?}");
}

fn deeper_than_the_settings_allow<F: StoreFactory>(factory: &F) {
    let mut driver = Driver::new(factory.fresh(), 103, 3);
    let genesis = driver.genesis.clone();
    let main = driver.branch(&genesis, 8);
    let old = driver.branch(&genesis, 2);
    driver.deliver_all(&genesis, &old);
    driver.deliver_all(&genesis, &main);
    driver.choose(&main[7]);
    // The branch can no longer win: it is gone.
    let gone = driver.pipeline.set_canonical(old[1].facts.block.hash);
    assert!(matches!(gone, Err(CanonicalError::Unknown(_))), "{gone:?}");
    let tip = main[7].facts.block;
    for parent in [&main[3], &old[1], &genesis] {
        let below = driver.branch(parent, 1);
        match driver.pipeline.begin(request(&below[0])) {
            Err(BeginError::BelowTip { parent: got, tip: at }) => assert_eq!((got, at), (parent.facts.block, tip)),
            other => panic!("{other:?}"),
        }
    }
    // As deep as they allow.
    let deepest = driver.branch(&main[4], 1);
    driver.deliver(&deepest[0], &main[4]);
    driver.choose(&deepest[0]);
    // The head went back, so that blocks further down are in reach again.
    let further = driver.branch(&main[2], 1);
    driver.deliver(&further[0], &main[2]);
    driver.choose(&further[0]);
}

/// Blocks that were committed at once have a reverse diff each.
fn a_merged_commit_can_be_left_at_any_of_its_blocks<F: StoreFactory>(factory: &F) {
    let mut driver = Driver::new(factory.fresh(), 104, 128);
    let genesis = driver.genesis.clone();
    let main = driver.branch(&genesis, 12);
    driver.deliver_all(&genesis, &main);
    driver.choose(&main[11]);
    let merged = driver.pipeline.counters();
    assert!(merged.store_commits < merged.commits, "nothing was merged: {merged:?}");
    for at in (0..11).rev() {
        assert!(driver.store.reverse_diff(at as u64 + 1).unwrap().is_some());
        let side = driver.branch(&main[at], 1);
        driver.deliver(&side[0], &main[at]);
        driver.choose(&side[0]);
        driver.choose(&main[11]);
    }
}

/// Where every valid block becomes durable at once, a named head changes the branch that is gone on with.
fn a_linear_import_is_reorganised<F: StoreFactory>(factory: &F) {
    println!("seed 105");
    let mut sim = Sim::new(105, SMALL);
    let genesis = sim.genesis();
    let store = load(factory.fresh(), &genesis);
    let pipeline = bal_driven(&store);
    let deliver = |block: &SimBlock| {
        valid(resolved(&execute(start(&pipeline, request(block)), block)));
    };
    let mut main = vec![genesis];
    for _ in 0..6 {
        let next = sim.child(&main[main.len() - 1]);
        deliver(&next);
        main.push(next);
    }
    assert_eq!(pipeline.flush().unwrap(), main[6].anchor());
    let mut side = vec![main[3].clone()];
    for length in 1..=5 {
        let next = sim.child(&side[length - 1]);
        deliver(&next);
        side.push(next);
        if length == 2 {
            assert_eq!(pipeline.flush().unwrap(), main[6].anchor(), "the first one judged valid wins");
            pipeline.set_canonical(side[2].facts.block.hash).unwrap();
        }
    }
    assert_eq!(pipeline.flush().unwrap(), side[5].anchor());
    assert_state(&*store, &side[5]);
    drop(pipeline);
    // Another pipeline finds the chain in the store, and may leave it as well.
    let pipeline = bal_driven(&store);
    let late = sim.child(&side[1]);
    let handle = start(&pipeline, request(&late));
    assert_view(&handle.parent_state(), &side[1]);
    valid(resolved(&execute(handle, &late)));
    pipeline.set_canonical(late.facts.block.hash).unwrap();
    assert_eq!(pipeline.flush().unwrap(), late.anchor());
    assert_state(&*store, &late);
    pipeline.set_canonical(side[5].facts.block.hash).unwrap();
    assert_eq!(pipeline.flush().unwrap(), side[5].anchor());
    assert_state(&*store, &side[5]);
}
