//! What-if roots on every backend: many at once on one parent, wherever it is in reach, equal to the fold of a block.

use std::thread;

use foldgate::{
    PipelineConfig,
    bal::{Bal, BalLimits},
    core::{BlockNumHash, HashedPostState},
    pipeline::{Canonical, ComputeError},
};
use foldgate_testing::{
    conformance::StoreFactory,
    sim::{Sim, SimBlock, SimSize},
};

use crate::{
    races::settled,
    support::{assert_state, execute, load, open, request, start, valid},
};

stamp_all!([hundreds_at_once_on_any_parent, out_of_reach]);

const SMALL: SimSize = SimSize { addresses: 24, slots: 8, touched: 8, written: 4 };

fn changes(block: &SimBlock) -> HashedPostState {
    let bal = Bal::decode_checked(block.raw.clone(), None, &BalLimits::from(&block.facts)).unwrap();
    (**bal.post_state()).clone()
}

fn explicit(unwind_depth: u64) -> PipelineConfig {
    PipelineConfig { canonical: Canonical::Explicit, unwind_depth, ..PipelineConfig::default().with_bal_driven(true) }
}

/// Parents: an ancestor of the tip, the tip, a block in memory above it, and one in memory beside it. While they are asked
/// for, the head moves to the other branch and back.
fn hundreds_at_once_on_any_parent<F: StoreFactory>(factory: &F) {
    println!("seed 200");
    let mut sim = Sim::new(200, SMALL);
    let mut main = vec![sim.genesis()];
    for _ in 0..8 {
        main.push(sim.child(&main[main.len() - 1]));
    }
    let beside = sim.child(&main[4]);
    let store = load(factory.fresh(), &main[0]);
    let pipeline = open(&store, explicit(128));
    for block in main[1..].iter().chain([&beside]) {
        valid(execute(start(&pipeline, request(block)), block).wait());
    }
    pipeline.set_canonical(main[7].facts.block.hash).unwrap();
    pipeline.flush().unwrap();
    let before = pipeline.counters();

    let parents = [&main[2], &main[7], &main[8], &beside];
    let candidates: Vec<Vec<SimBlock>> =
        parents.iter().map(|parent| (0..30).map(|_| sim.child(parent)).collect()).collect();
    thread::scope(|scope| {
        for part in 0..10 {
            let (pipeline, candidates) = (&pipeline, &candidates);
            scope.spawn(move || {
                for (parent, candidates) in parents.iter().zip(candidates) {
                    for candidate in candidates.iter().skip(part * 3).take(3) {
                        let computed = pipeline.compute(parent.facts.block, &changes(candidate)).unwrap();
                        assert_eq!(computed.state_root, candidate.state_root);
                        let expected = candidate.state.hashed();
                        for (hashed_address, storage_root) in computed.storage_roots() {
                            let account = expected.iter().find(|(address, _)| **address == hashed_address);
                            let expected = account.map(|(_, account)| account.storage.clone());
                            let expected = foldgate::core::trie::storage_root(expected.into_iter().flatten()).unwrap();
                            assert_eq!(storage_root, expected);
                        }
                    }
                }
            });
        }
        for head in [&beside, &main[7]] {
            pipeline.set_canonical(head.facts.block.hash).unwrap();
            pipeline.flush().unwrap();
        }
    });
    let after = pipeline.counters();
    assert_eq!((before.requests, before.valid, before.failed), (after.requests, after.valid, after.failed));
    settled(&pipeline);
    assert_state(&*store, &main[7]);

    // The same as the fold of a block, leaf by leaf and row by row.
    for (parent, candidates) in parents.iter().zip(&candidates) {
        let candidate = &candidates[0];
        let computed = pipeline.compute(parent.facts.block, &changes(candidate)).unwrap();
        let verdict = valid(execute(start(&pipeline, request(candidate)), candidate).wait());
        let layer = verdict.layer.as_ref().unwrap();
        assert_eq!(computed.diff, layer.diff);
        assert_eq!(computed.updates, layer.tries.updates(&layer.diff));
    }
}

fn out_of_reach<F: StoreFactory>(factory: &F) {
    println!("seed 201");
    let mut sim = Sim::new(201, SMALL);
    let mut main = vec![sim.genesis()];
    for _ in 0..6 {
        main.push(sim.child(&main[main.len() - 1]));
    }
    let store = load(factory.fresh(), &main[0]);
    let pipeline = open(&store, explicit(2));
    for block in &main[1..6] {
        valid(execute(start(&pipeline, request(block)), block).wait());
    }
    pipeline.set_canonical(main[5].facts.block.hash).unwrap();
    pipeline.flush().unwrap();
    let none = HashedPostState::default();
    for (at, reachable) in [(5, true), (3, true), (2, false), (0, false)] {
        match pipeline.compute(main[at].facts.block, &none) {
            Ok(computed) => assert_eq!((computed.state_root, reachable), (main[at].state_root, true)),
            Err(ComputeError::OutOfReach(block)) => assert_eq!((block, reachable), (main[at].facts.block, false)),
            Err(error) => panic!("{error}"),
        }
    }
    let wrong_height = BlockNumHash::new(9, main[5].facts.block.hash);
    assert!(matches!(pipeline.compute(wrong_height, &none), Err(ComputeError::OutOfReach(_))));
    let handle = start(&pipeline, request(&main[6]));
    assert!(matches!(pipeline.compute(main[6].facts.block, &none), Err(ComputeError::NotJudged(_))));
    drop(handle);
}
