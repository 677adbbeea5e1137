//! The shadow: every block computed twice, from its list and from its writes, which share nothing but the parent.
//!
//! Faults are injected into one side: an executor that records something else than it rebuilt, a list that the executor
//! confirms though it is wrong, a store that lies once. None may go by.

use std::{fs, num::NonZeroUsize, path::Path, sync::Arc};

use alloy_primitives::{B256, U256, keccak256};
use foldgate::{
    BlockRequest, PipelineConfig, Verdict,
    core::{BalStore, StateWrites, keys},
    pipeline::{
        AccountField, BlockError, BlockResult, Canonical, Divergence, DivergenceReport, Failure, Halt, InvalidReason,
        Mode, Outcome, Place, RebuiltBal, ReportError, SkipReason, Source, Value,
    },
};
use foldgate_testing::{
    conformance::StoreFactory,
    sim::{Sim, SimBlock, SimSize},
};
use tempfile::TempDir;

use crate::{
    faulty::FaultyStore,
    races::eventually,
    support::{Opened, assert_state, chain, execute, honest, load, open, record, request, start, valid},
};

stamp_all!([
    both_computations_agree,
    trees_of_blocks_agree,
    writes_that_are_not_the_lists_fail_the_block,
    the_shadow_of_the_list_is_reported_and_decides_nothing,
]);

fn shadowed<S: BalStore>(store: &Arc<S>, bal_driven: bool, folder: Option<&Path>) -> Opened<S> {
    let mut config = PipelineConfig::default().with_bal_driven(bal_driven).with_shadow(true);
    config.divergence_directory = folder.map(Path::to_owned);
    open(store, config)
}

fn divergence(outcome: Outcome) -> Arc<Divergence> {
    match outcome {
        Err(BlockError::Failed(Failure::Divergence(divergence))) => divergence,
        other => panic!("no divergence: {other:?}"),
    }
}

fn both_computations_agree<F: StoreFactory>(factory: &F) {
    let (_, blocks) = chain(40, 24, SimSize::default());
    let store = load(factory.fresh(), &blocks[0]);
    // One store goes on from mode to mode.
    for (bal_driven, part) in [(true, &blocks[1..13]), (false, &blocks[13..])] {
        let pipeline = shadowed(&store, bal_driven, None);
        for (at, block) in part.iter().enumerate() {
            // Every kind of list: in the payload, sourced, not committed to, none.
            let block = if at % 3 == 1 { block.clone().uncommitted() } else { block.clone() };
            let asked = match at % 4 {
                0 | 1 => request(&block),
                2 => BlockRequest::new(block.facts).with_sourced_bal(block.raw.clone()),
                _ => BlockRequest::new(block.facts),
            };
            let verdict = valid(execute(start(&pipeline, asked), &block).wait());
            assert_eq!(verdict.computed_state_root, block.state_root);
            assert_eq!(verdict.mode == Mode::BalDriven, bal_driven && at % 4 != 3);
        }
        let counters = pipeline.counters();
        assert_eq!((counters.shadows, counters.shadows_skipped, counters.divergences), (9, 3, 0));
        let reason = if bal_driven { SkipReason::NoBal } else { SkipReason::SwitchedOff };
        assert_eq!(counters.skipped(reason), if bal_driven { 3 } else { 12 });
        pipeline.flush().unwrap();
        drop(pipeline);
    }
    assert_state(&*store, &blocks[24]);
}

/// Siblings and blocks in flight, of which nothing is durable: the shadow reads through the layers.
fn trees_of_blocks_agree<F: StoreFactory>(factory: &F) {
    let mut sim = Sim::new(41, SimSize { addresses: 200, slots: 60, touched: 60, written: 20 });
    let genesis = sim.genesis();
    let store = load(factory.fresh(), &genesis);
    let config = PipelineConfig { canonical: Canonical::Explicit, ..PipelineConfig::default() };
    let pipeline = open(&store, config.with_bal_driven(true).with_shadow(true));
    let mut generation = vec![genesis];
    let mut all = Vec::new();
    for width in [2, 2, 1, 2, 1] {
        generation = generation.iter().flat_map(|parent| vec![parent.clone(); width]).map(|p| sim.child(&p)).collect();
        all.extend(generation.clone());
    }
    let handles: Vec<_> = all.iter().map(|block| (block, start(&pipeline, request(block)))).collect();
    let tickets: Vec<_> = handles.into_iter().map(|(block, handle)| (block, execute(handle, block))).collect();
    for (block, ticket) in tickets {
        assert_eq!(valid(ticket.wait()).computed_state_root, block.state_root);
    }
    let counters = pipeline.counters();
    assert_eq!((counters.shadows, counters.divergences), (all.len() as u64, 0));
    assert_eq!(counters.folds_ahead, all.len() as u64);
    let head = &all[all.len() - 1];
    pipeline.set_canonical(head.facts.block.hash).unwrap();
    pipeline.flush().unwrap();
    drop(pipeline);
    assert_state(&*store, head);
}

/// A slot that some write sets, with a value that it does not set.
fn falsify(block: &SimBlock) -> (SimBlock, B256, B256) {
    let mut block = block.clone();
    // The last write of all: no later one corrects it.
    let (_, writes) = block.writes.iter_mut().rev().find(|(_, writes)| has_slot(writes)).expect("a slot is written");
    let (address, account) = writes.accounts.iter_mut().rev().find(|(_, account)| !account.storage.is_empty()).unwrap();
    let (slot, value) = account.storage.iter_mut().next_back().unwrap();
    *value = value.wrapping_add(U256::from(77));
    let keys = (keys::hash_address(address), keys::hash_slot(slot));
    (block, keys.0, keys.1)
}

fn has_slot(writes: &StateWrites) -> bool {
    writes.accounts.iter().any(|(_, account)| !account.storage.is_empty())
}

/// A block whose last index writes a slot.
fn block_with_a_slot(sim: &mut Sim, parent: &SimBlock) -> SimBlock {
    loop {
        let block = sim.child(parent);
        if block.writes.last().is_some_and(|(_, writes)| has_slot(writes)) {
            return block;
        }
    }
}

fn writes_that_are_not_the_lists_fail_the_block<F: StoreFactory>(factory: &F) {
    let (mut sim, blocks) = chain(42, 4, SimSize::default());
    let folder = TempDir::new().unwrap();
    let store = load(factory.fresh(), &blocks[0]);
    let pipeline = shadowed(&store, true, Some(folder.path()));
    for block in &blocks[1..] {
        valid(execute(start(&pipeline, request(block)), block).wait());
    }
    let block = block_with_a_slot(&mut sim, &blocks[4]);
    let child = sim.child(&block);
    let (lie, hashed_address, hashed_slot) = falsify(&block);
    let waiting = start(&pipeline, request(&block));
    let below = start(&pipeline, request(&child));
    // The executor says that it rebuilt the list, and records another slot's value.
    let divergence = divergence(execute(waiting, &lie).wait());
    assert_eq!((divergence.block, divergence.decided_by), (block.facts.block, Source::Bal));
    assert_eq!(divergence.difference.place, Place::Slot { hashed_address, hashed_slot, old: false });
    match (&divergence.difference.bal, &divergence.difference.execution) {
        (Value::Number(bal), Value::Number(execution)) => assert_eq!(bal.wrapping_add(U256::from(77)), *execution),
        other => panic!("{other:?}"),
    }
    let ended = below.stop().wait();
    assert!(matches!(ended, Err(BlockError::Halted(Halt::AncestorFailed(_)))), "{ended:?}");
    let counters = pipeline.counters();
    assert_eq!((counters.divergences, counters.failed, counters.shadows), (1, 1, 5));
    // The file alone reproduces it.
    let path = divergence.report.as_ref().unwrap().as_ref().unwrap();
    let report = DivergenceReport::read(path).unwrap();
    assert_eq!((report.facts, &report.raw_bal), (block.facts, &block.raw));
    assert_eq!(report.parent(), blocks[4].anchor());
    let again = report.reproduce().unwrap();
    assert_eq!(again.then.as_ref(), Some(&divergence.difference));
    assert_eq!((&again.now, &again.bal_since, &again.execution_since), (&again.then, &None, &None));
    // It was no verdict: the block begins again.
    let verdict = valid(execute(start(&pipeline, request(&block)), &block).wait());
    assert_eq!(verdict.computed_state_root, block.state_root);
    pipeline.flush().unwrap();
    drop(pipeline);
    assert_state(&*store, &block);
}

/// The header commits to a wrong list, and the executor confirms it, but records the truth.
fn the_shadow_of_the_list_is_reported_and_decides_nothing<F: StoreFactory>(factory: &F) {
    let (mut sim, blocks) = chain(43, 3, SimSize::default());
    let folder = TempDir::new().unwrap();
    let store = load(factory.fresh(), &blocks[0]);
    let pipeline = shadowed(&store, false, Some(folder.path()));
    for block in &blocks[1..] {
        valid(execute(start(&pipeline, request(block)), block).wait());
    }
    let (block, wrong) = loop {
        let block = sim.child(&blocks[3]);
        let mut wrong = block.clone();
        if let Some(change) = wrong.list.iter_mut().find_map(|account| account.balance_changes.last_mut()) {
            change.post_balance += U256::from(5);
            break (block, wrong);
        }
    };
    let raw = foldgate::bal::encode(&wrong.list);
    let mut facts = block.facts;
    facts.expected_bal_hash = Some(keccak256(&raw));
    let confirm = || {
        let rebuilt_bal = Some(RebuiltBal { hash: keccak256(&raw), list: None });
        BlockResult { rebuilt_bal, expected_state_root: None }
    };
    let begin = |pipeline: &Opened<F::Store>| {
        let mut handle = start(pipeline, BlockRequest::new(facts).with_bal(raw.clone()));
        record(&mut handle, &block);
        handle.finish(confirm()).wait()
    };
    let verdict = valid(begin(&pipeline));
    assert_eq!((verdict.computed_state_root, verdict.mode), {
        (block.state_root, Mode::Incremental(SkipReason::SwitchedOff))
    });
    let counters = pipeline.counters();
    assert_eq!((counters.divergences, counters.failed, counters.valid, counters.shadows), (1, 0, 4, 4));
    let files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()).collect();
    let [path] = &files[..] else { panic!("{files:?}") };
    let report = DivergenceReport::read(path).unwrap();
    assert_eq!(report.decided_by, Source::Execution);
    let again = report.reproduce().unwrap();
    let Some(Place::Account { field: AccountField::Balance, .. }) = again.now.as_ref().map(|at| at.place) else {
        panic!("{again:?}")
    };
    assert_eq!(again.now, again.then);
    pipeline.flush().unwrap();
    drop(pipeline);
    assert_state(&*store, &SimBlock { facts, ..block.clone() });
}

/// Where the list decides, a root that it leads to and execution does not is the machine's fault, not the block's.
#[test]
fn a_wrong_early_root_is_held_against_no_block_that_execution_confirms() {
    let (mut sim, blocks) = chain(44, 1, SimSize::default());
    let store = load(FaultyStore::new(), &blocks[0]);
    // An account that only has slots written: its fields come from the parent's state.
    let (block, hashed_address) = loop {
        let block = sim.child(&blocks[0]);
        let storage_only = block.list.iter().find(|account| {
            !account.storage_changes.is_empty()
                && account.nonce_changes.is_empty()
                && blocks[0].state.accounts.contains_key(&account.address)
                && block.state.accounts.contains_key(&account.address)
        });
        if let Some(account) = storage_only {
            break (block.clone(), keys::hash_address(&account.address));
        }
    };
    let folder = TempDir::new().unwrap();
    // On one thread nobody reads beside the warm-up.
    let mut config = PipelineConfig::default().with_bal_driven(true).with_shadow(true);
    config.threads = NonZeroUsize::MIN;
    config.divergence_directory = Some(folder.path().to_owned());
    let pipeline = open(&store, config);
    // Whoever reads first gets it wrong, and the page cache keeps it: this is the warm-up, or the resolution, as long as no
    // execution has ended that a shadow could be computed from.
    *store.switches.lie.lock().unwrap() = Some(hashed_address);
    let begun = start(&pipeline, request(&block));
    eventually("nobody reads the account", || store.switches.lie.lock().unwrap().is_none().then_some(()));
    let divergence = divergence(execute(begun, &block).wait());
    assert_eq!(divergence.difference.place, Place::Account { hashed_address, field: AccountField::OldNonce });
    assert_eq!((pipeline.counters().divergences, pipeline.counters().invalid), (1, 0));
    // The state was recorded when the store had ceased to lie: the report shows which side is another now.
    let report = DivergenceReport::read(divergence.report.as_ref().unwrap().as_ref().unwrap()).unwrap();
    let again = report.reproduce().unwrap();
    assert_eq!((again.now, again.execution_since), (None, None));
    assert_eq!(again.then.as_ref(), Some(&divergence.difference));
    let since = again.bal_since.expect("the list leads to something else");
    assert_eq!(since.place, divergence.difference.place);
}

/// With the shadow on, too, what is wrong with a block is its verdict.
#[test]
fn invalid_blocks_stay_invalid() {
    for bal_driven in [true, false] {
        let (mut sim, blocks) = chain(45, 1, SimSize::default());
        let store = load(foldgate::MemoryStore::new(), &blocks[0]);
        // Siblings, none of which is to win.
        let config = PipelineConfig { canonical: Canonical::Explicit, ..PipelineConfig::default() };
        let pipeline = open(&store, config.with_bal_driven(bal_driven).with_shadow(true));
        let mut wrong_root = block_with_a_slot(&mut sim, &blocks[0]);
        wrong_root.facts.expected_state_root = Some(B256::repeat_byte(1));
        match execute(start(&pipeline, request(&wrong_root)), &wrong_root).wait() {
            Ok(Verdict::Invalid(invalid)) => {
                let InvalidReason::StateRootMismatch { got, expected } = &invalid.reason else { panic!("{invalid:?}") };
                assert_eq!((*got, *expected), (wrong_root.state_root, B256::repeat_byte(1)));
            }
            other => panic!("{other:?}"),
        }
        // A list that the header does not commit to, and that execution does not confirm, is dropped.
        let block = block_with_a_slot(&mut sim, &blocks[0]).uncommitted();
        let other = sim.child(&blocks[0]);
        let asked = BlockRequest::new(block.facts).with_sourced_bal(other.raw.clone());
        let verdict = valid(execute(start(&pipeline, asked), &block).wait());
        assert_eq!(verdict.computed_state_root, block.state_root);
        // The same without a rebuilt list: the writes tell.
        let block = block_with_a_slot(&mut sim, &blocks[0]).uncommitted();
        let asked = BlockRequest::new(block.facts).with_sourced_bal(other.raw.clone());
        let mut handle = start(&pipeline, asked);
        record(&mut handle, &block);
        let verdict = valid(handle.finish(BlockResult::default()).wait());
        assert_eq!(verdict.computed_state_root, block.state_root);
        let counters = pipeline.counters();
        assert_eq!((counters.bals_dropped, counters.divergences, counters.shadows), (2, 0, 1), "{bal_driven}");
        assert_eq!(counters.shadows_skipped, 2);
    }
}

/// An executor may record nothing where its list is confirmed: there is nothing to compare then.
#[test]
fn a_block_without_records_has_no_shadow() {
    for bal_driven in [true, false] {
        let (_, blocks) = chain(46, 1, SimSize::default());
        let store = load(foldgate::MemoryStore::new(), &blocks[0]);
        let pipeline = shadowed(&store, bal_driven, None);
        let handle = start(&pipeline, request(&blocks[1]));
        assert_eq!(valid(handle.finish(honest(&blocks[1])).wait()).computed_state_root, blocks[1].state_root);
        assert_eq!((pipeline.counters().shadows, pipeline.counters().shadows_skipped), (0, 1));
    }
}

#[test]
fn what_is_no_report_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("report.json");
    assert!(matches!(DivergenceReport::read(&path), Err(ReportError::Read { .. })));
    for bad in ["", "{}", "{\"version\": 1}", "[1, 2]"] {
        fs::write(&path, bad).unwrap();
        assert!(matches!(DivergenceReport::read(&path), Err(ReportError::Malformed { .. })), "{bad}");
    }
    fs::write(&path, "{\"version\": 99}").unwrap();
    assert!(matches!(DivergenceReport::read(&path), Err(ReportError::Version { got: 99, .. })));
}
