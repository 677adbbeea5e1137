//! Random trees of blocks, delivered by many threads in any order, with every fate that a delivery can meet. Whatever
//! happens, every ticket resolves, no honest delivery is judged invalid, nothing is left in flight, the counters add up,
//! and the store holds the oracle's state of the block that it says it holds.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use alloy_primitives::{Address, B256, Bytes, keccak256};
use foldgate::{
    BlockRequest, BlockResult, Pipeline, PipelineConfig, StateReader as _, TrieReader, TrieStore, Verdict,
    core::{BalStore, keys::hash_address},
    pipeline::{
        BackgroundFlush, BeginError, Begun, BlockError, BlockHandle, Canonical, CanonicalError, CounterSnapshot, Flush,
        InvalidReason, OnEarlyMismatch, Outcome, ReadError, RecordError, VerdictTicket,
    },
};
use foldgate_testing::{
    conformance::StoreFactory,
    sim::{Sim, SimBlock, SimSize},
};

use crate::{
    faulty::FaultyStore,
    logs::SharedLog,
    races::{eventually, resolved},
    support::{Dice, assert_state, honest, load, open_synchronous},
};

stamp_all!([any_order_of_deliveries]);

const SIZE: SimSize = SimSize { addresses: 16, slots: 6, touched: 6, written: 3 };

/// How a block's list comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    Payload,
    Sourced,
    None,
    /// Another list than the header's, in the payload: whoever sent it lies.
    WrongPayload,
    WrongSourced,
}

/// How a block's execution ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Honest,
    /// Nothing recorded: the confirmed list stands in, where there is one.
    Unrecorded,
    /// No rebuilt list.
    NotRebuilt,
    /// The one end that makes a block invalid for good.
    Reject,
    Fail,
    Drop,
    Stop,
}

#[derive(Debug)]
struct Delivery {
    block: usize,
    list: List,
    end: End,
    hesitates: bool,
    reads: bool,
}

struct Tree {
    /// The genesis first; a parent comes before its children.
    blocks: Vec<SimBlock>,
    parents: Vec<usize>,
    /// What a rejecting executor is handed.
    rejected: HashSet<usize>,
}

fn tree(dice: &mut Dice, sim: &mut Sim, genesis: SimBlock) -> Tree {
    let mut tree = Tree { blocks: vec![genesis], parents: vec![0], rejected: HashSet::new() };
    let bad = dice.one_in(2);
    for at in 1..=8 + dice.roll(10) as usize {
        let newest = at.saturating_sub(1 + dice.roll(3) as usize);
        let parent = if dice.one_in(6) { dice.roll(at as u64) as usize } else { newest };
        let mut block = sim.child(&tree.blocks[parent]);
        if dice.one_in(3) {
            block = block.uncommitted();
        }
        tree.blocks.push(block);
        tree.parents.push(parent);
        if bad && dice.one_in(10) {
            tree.rejected.insert(at);
        }
    }
    tree
}

impl Tree {
    /// Whether `at` is the block of this hash, or stands on it.
    fn descends(&self, mut at: usize, hash: B256) -> bool {
        while at != 0 && self.blocks[at].facts.block.hash != hash {
            at = self.parents[at];
        }
        self.blocks[at].facts.block.hash == hash
    }

    fn is_ancestor_of(&self, at: usize, hash: B256) -> bool {
        let found = self.blocks.iter().position(|block| block.facts.block.hash == hash);
        found.is_some_and(|found| self.descends(found, self.blocks[at].facts.block.hash))
    }

    /// Whether a block stands on one that is never judged valid, or is one.
    fn is_doomed(&self, mut at: usize) -> bool {
        while at != 0 {
            if self.rejected.contains(&at) {
                return true;
            }
            at = self.parents[at];
        }
        false
    }
}

fn delivery(dice: &mut Dice, tree: &Tree, block: usize) -> Delivery {
    let list = match dice.roll(12) {
        0 => List::WrongPayload,
        1 => List::WrongSourced,
        2 => List::None,
        3 | 4 => List::Sourced,
        _ => List::Payload,
    };
    let end = match dice.roll(14) {
        _ if tree.rejected.contains(&block) => End::Reject,
        0 => End::Unrecorded,
        1 => End::NotRebuilt,
        2 => End::Fail,
        3 => End::Drop,
        4 => End::Stop,
        _ => End::Honest,
    };
    Delivery { block, list, end, hesitates: dice.one_in(3), reads: dice.one_in(2) }
}

fn request(block: &SimBlock, list: List) -> BlockRequest {
    let wrong = Bytes::from_static(&[0xc1, 0x80]);
    let request = BlockRequest::new(block.facts);
    match list {
        List::Payload => request.with_bal(block.raw.clone()),
        List::Sourced => request.with_sourced_bal(block.raw.clone()),
        List::None => request,
        List::WrongPayload => request.with_bal(wrong),
        List::WrongSourced => request.with_sourced_bal(wrong),
    }
}

fn config(dice: &mut Dice) -> PipelineConfig {
    let size = |number: u64| NonZeroUsize::new(number as usize).unwrap();
    let background = BackgroundFlush {
        keep_in_memory: dice.roll(6) as usize,
        blocks: size(1 + dice.roll(8)),
        bytes: [1, 64 << 20][dice.roll(2) as usize],
        interval: Duration::from_millis([1, 60_000][dice.roll(2) as usize]),
    };
    PipelineConfig {
        bal_driven: !dice.one_in(5),
        canonical: if dice.one_in(2) { Canonical::Auto } else { Canonical::Explicit },
        on_early_mismatch: if dice.one_in(2) { OnEarlyMismatch::Fail } else { OnEarlyMismatch::FindReason },
        warm_up: dice.one_in(2),
        threads: size(1 + dice.roll(4)),
        pin_threads: dice.one_in(4),
        max_in_flight: size(1 + dice.roll(24)),
        max_orphans: dice.roll(8) as usize,
        unwind_depth: [0, 1, 2, 128][dice.roll(4) as usize],
        max_remembered: if dice.one_in(2) { 1024 } else { dice.roll(4) as usize },
        page_cache_bytes: [0, 20 << 10, 256 << 20][dice.roll(3) as usize],
        shadow: dice.one_in(2),
        divergence_directory: None,
        flush: if dice.one_in(4) { Flush::Synchronous } else { Flush::Background(background) },
        max_unflushed_bytes: [2000, 512 << 20][dice.roll(2) as usize],
        records_per_sync: size(1 + dice.roll(8)),
        keep_bals: [None, Some(64)][dice.roll(2) as usize],
    }
}

/// The parent's state, as far as it can be read without waiting for what may never come.
///
/// # Errors
/// If the disk failed.
fn look<R: TrieReader>(handle: &BlockHandle<R>, parent: &SimBlock) -> Result<(), ReadError<R::Error>> {
    let view = handle.parent_state();
    if !view.is_ready() {
        return Ok(());
    }
    for address in (0..SIZE.addresses).map(|index| Address::from_slice(&keccak256(index.to_be_bytes())[..20])) {
        let info = match view.account_info(&hash_address(&address)) {
            Ok(info) => info,
            Err(ReadError::Halted(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let expected = parent.state.accounts.get(&address);
        assert_eq!(info.map(|info| info.balance), expected.map(|account| account.balance));
    }
    Ok(())
}

struct Storm<'a, S: TrieStore> {
    tree: &'a Tree,
    pipeline: &'a Pipeline<S>,
    tickets: Mutex<Vec<(usize, List, VerdictTicket)>>,
    admitted: AtomicU64,
}

impl<S: TrieStore> Storm<'_, S> {
    /// Delivers a block once. Says whether it is to be tried again.
    fn deliver(&self, delivery: &Delivery) -> bool {
        let block = &self.tree.blocks[delivery.block];
        let handle = match self.pipeline.begin(request(block, delivery.list)) {
            Ok(Begun::Started(handle)) => handle,
            Ok(Begun::Known(verdict)) => {
                self.check(delivery.block, delivery.list, &Ok(verdict));
                return false;
            }
            Err(BeginError::Busy { .. }) => {
                self.pipeline.wait_for_room(Duration::from_millis(1));
                return true;
            }
            Err(BeginError::InFlight(_) | BeginError::ParentInvalid(_) | BeginError::BelowTip { .. }) => return false,
            Err(error) => panic!("{error}"),
        };
        self.execute(delivery, handle);
        false
    }

    fn execute(&self, delivery: &Delivery, mut handle: BlockHandle<S::Snapshot>) {
        let block = &self.tree.blocks[delivery.block];
        self.admitted.fetch_add(1, Ordering::Relaxed);
        if delivery.hesitates {
            thread::sleep(Duration::from_micros(300));
        }
        if delivery.reads
            && let Err(error) = look(&handle, &self.tree.blocks[self.tree.parents[delivery.block]])
        {
            // As executors do that mistake a failed read for an invalid block.
            let ticket = handle.reject(error);
            self.tickets.lock().unwrap().push((delivery.block, delivery.list, ticket));
            return;
        }
        let recorded = match delivery.end {
            End::Unrecorded => Ok(()),
            _ => handle
                .record(foldgate::core::BlockAccessIndex::PRE_EXECUTION, &Default::default())
                .and_then(|()| block.writes.iter().try_for_each(|(index, writes)| handle.record(*index, writes))),
        };
        let ticket = match (recorded, delivery.end) {
            (Err(RecordError::Halted(_)), _) | (_, End::Stop) => handle.stop(),
            (Err(error), _) => panic!("{error}"),
            (Ok(()), End::Honest | End::Unrecorded) => handle.finish(honest(block)),
            (Ok(()), End::NotRebuilt) => handle.finish(BlockResult::default()),
            (Ok(()), End::Reject) => handle.reject(std::fmt::Error),
            (Ok(()), End::Fail) => handle.fail(std::fmt::Error),
            (Ok(()), End::Drop) => return,
        };
        self.tickets.lock().unwrap().push((delivery.block, delivery.list, ticket));
    }

    /// Delivers a block honestly until it is judged, or said to be out of reach. Says whether it was judged.
    fn see_judged(&self, at: usize) -> bool {
        let delivery = Delivery { block: at, list: List::Payload, end: End::Honest, hesitates: false, reads: true };
        let request = || request(&self.tree.blocks[at], List::Payload);
        eventually("a block is never judged", || match self.pipeline.begin(request()) {
            Ok(Begun::Known(verdict)) => {
                self.check(at, List::Payload, &Ok(verdict));
                Some(true)
            }
            Ok(Begun::Started(handle)) => {
                self.execute(&delivery, handle);
                None
            }
            // Durable already, and the verdict forgotten; or out of reach.
            Err(BeginError::BelowTip { .. }) => Some(false),
            Err(BeginError::Busy { .. } | BeginError::InFlight(_)) => None,
            Err(error) => panic!("block {at}: {error}"),
        })
    }

    fn see_all_judged_above_tip(&self, store: &S) {
        for at in 1..self.tree.blocks.len() {
            self.pipeline.flush().unwrap();
            if !self.tree.is_doomed(at) && self.tree.descends(self.tree.parents[at], tip(store)) {
                let _durable_or_judged = self.see_judged(at);
            }
        }
    }

    /// Moves the head to any block of the tree, from wherever it is. Where the settings allow any depth, no block is out
    /// of reach.
    fn hop(&self, store: &S, at: usize, any_depth: bool) {
        let mut path = vec![at];
        while path[path.len() - 1] != 0 {
            path.push(self.tree.parents[path[path.len() - 1]]);
        }
        for block in path.into_iter().rev().skip(1) {
            if !self.see_judged(block) && !self.tree.is_ancestor_of(block, tip(store)) {
                assert!(!any_depth, "block {block} is out of reach");
                return;
            }
        }
        match self.pipeline.set_canonical(self.tree.blocks[at].facts.block.hash) {
            Ok(()) => {
                self.pipeline.flush().unwrap();
                assert!(self.tree.is_ancestor_of(at, tip(store)), "the head is elsewhere");
            }
            Err(CanonicalError::Unknown(_) | CanonicalError::NotADescendant { .. }) if !any_depth => {}
            Err(error) => panic!("block {at}: {error}"),
        }
        let found = self.tree.blocks.iter().find(|block| block.facts.block.hash == tip(store));
        assert_state(store, found.unwrap());
    }

    fn check(&self, at: usize, list: List, outcome: &Outcome) {
        check(self.tree, at, list, outcome);
    }
}

/// No outcome says what the delivery does not deserve.
fn check(tree: &Tree, at: usize, list: List, outcome: &Outcome) {
    let block = &tree.blocks[at];
    match outcome {
        Ok(Verdict::Valid(valid)) => {
            assert_eq!((valid.block, valid.computed_state_root), (block.facts.block, block.state_root));
            assert!(!tree.is_doomed(at));
        }
        Ok(Verdict::Invalid(invalid)) => match &invalid.reason {
            InvalidReason::Execution(_) => assert!(tree.rejected.contains(&at)),
            InvalidReason::BalHashMismatch { .. } => assert_eq!(list, List::WrongPayload),
            reason => panic!("block {at}: {reason}"),
        },
        Err(error) => assert!(matches!(error, BlockError::Halted(_) | BlockError::Failed(_))),
    }
}

/// What all rounds must have seen together.
#[derive(Debug, Default)]
struct Sum {
    folds_ahead: u64,
    below_tip: u64,
    reorganisations: u64,
}

impl Sum {
    fn add(&mut self, counters: &CounterSnapshot) {
        self.folds_ahead += counters.folds_ahead;
        self.below_tip += counters.folds_ahead_below_tip;
        self.reorganisations += counters.reorganisations;
    }

    fn check(&self) {
        println!("{self:?}");
        assert!(self.folds_ahead > 0 && self.below_tip > 0 && self.reorganisations > 0, "{self:?}");
    }
}

fn any_order_of_deliveries<F: StoreFactory + Default>(_: &F) {
    let mut sum = Sum::default();
    for seed in seeds() {
        println!("seed {seed}");
        let factory = F::default();
        sum.add(&storm(factory.fresh(), seed, &|_| {}));
    }
    sum.check();
}

/// Whatever a disk does that fails now and then, it makes no block invalid.
#[test]
fn any_order_of_deliveries_on_a_disk_that_fails_now_and_then() {
    let mut sum = Sum::default();
    for seed in seeds() {
        println!("seed {seed}");
        let store = FaultyStore::new();
        let switches = Arc::clone(&store.switches);
        sum.add(&storm(store, seed, &|fail| switches.reads_fail.store(fail, Ordering::SeqCst)));
    }
    sum.check();
}

/// `FOLDGATE_STORMS` rounds from `FOLDGATE_STORM_SEED` on.
fn seeds() -> Range<u64> {
    let variable = |name, default| std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default);
    let first = variable("FOLDGATE_STORM_SEED", 9_000);
    first..first + variable("FOLDGATE_STORMS", 12)
}

/// `disk` makes reads fail, and no longer. Gives what was counted.
fn storm<S: BalStore>(store: S, seed: u64, disk: &(dyn Fn(bool) + Sync)) -> CounterSnapshot {
    let mut dice = Dice(seed);
    let mut sim = Sim::new(seed, SIZE);
    let genesis = sim.genesis();
    let store = load(store, &genesis);
    let tree = tree(&mut dice, &mut sim, genesis);
    let config = config(&mut dice);
    println!("{config:?}, {} blocks, rejected: {:?}", tree.blocks.len() - 1, tree.rejected);
    let explicit = config.canonical == Canonical::Explicit;
    let log = (!dice.one_in(4)).then(SharedLog::default);
    let any_depth = config.unwind_depth as usize > tree.blocks.len();
    let pipeline = match &log {
        Some(log) => Pipeline::open_with_log(Arc::clone(&store), log.clone(), config.clone()).unwrap(),
        None => open_synchronous(&store, config.clone()),
    };
    let storm = Storm { tree: &tree, pipeline: &pipeline, tickets: Mutex::default(), admitted: AtomicU64::new(0) };

    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let executors: Vec<_> = (0..4)
            .map(|_| {
                let mut deliveries = Vec::new();
                for _ in 0..tree.blocks.len() {
                    let block = 1 + dice.roll(tree.blocks.len() as u64 - 1) as usize;
                    deliveries.push(delivery(&mut dice, &tree, block));
                }
                // Roughly in order, as a client delivers them.
                if dice.one_in(2) {
                    deliveries.sort_by_key(|delivery| delivery.block / 3);
                }
                let storm = &storm;
                scope.spawn(move || {
                    for delivery in deliveries {
                        // A block for which there is no room for long is given up.
                        for _ in 0..20 {
                            if !storm.deliver(&delivery) {
                                break;
                            }
                        }
                    }
                })
            })
            .collect();
        let mut heads = Dice(seed ^ 1);
        let (pipeline, tree, over) = (&pipeline, &tree, &over);
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let head = &tree.blocks[heads.roll(tree.blocks.len() as u64) as usize];
                if explicit && heads.one_in(4) {
                    // Most are refused, which is well.
                    let _refused = pipeline.set_canonical(head.facts.block.hash);
                }
                disk(heads.one_in(4));
                pipeline.flush().unwrap();
                thread::sleep(Duration::from_micros(500));
            }
            disk(false);
        });
        for executor in executors {
            if let Err(panic) = executor.join() {
                over.store(true, Ordering::Relaxed);
                std::panic::resume_unwind(panic);
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    let counters = settle(storm, &*store, explicit, any_depth, &mut dice);
    drop(pipeline);
    if let Some(log) = log {
        // What is left in the log, of branches that may still win, folds again over what is in the store.
        let before = store.tip().unwrap().unwrap();
        let pipeline = Pipeline::open_with_log(Arc::clone(&store), log, config).unwrap();
        assert_eq!(pipeline.flush().unwrap(), before);
    }
    let by_hash: HashMap<_, _> = tree.blocks.iter().map(|block| (block.facts.block.hash, block)).collect();
    let tip = store.tip().unwrap().unwrap().block.hash;
    assert_state(&*store, by_hash[&tip]);
    counters
}

/// Delivers every block that can still be judged honestly, parents first, and moves the head across the tree; then all is
/// in order.
fn settle<S: TrieStore>(
    storm: Storm<'_, S>,
    store: &S,
    explicit: bool,
    any_depth: bool,
    dice: &mut Dice,
) -> CounterSnapshot {
    let (tree, pipeline) = (storm.tree, storm.pipeline);
    storm.see_all_judged_above_tip(store);
    pipeline.flush().unwrap();
    let leaves = (0..tree.blocks.len()).filter(|at| !tree.is_doomed(*at) && tree.descends(*at, tip(store)));
    let leaves: Vec<_> = leaves.collect();
    if explicit {
        pipeline.set_canonical(tree.blocks[*leaves.last().unwrap()].facts.block.hash).unwrap();
    }
    let durable = pipeline.flush().unwrap();
    assert_eq!(durable, store.tip().unwrap().unwrap());
    if !explicit {
        assert_eq!(durable.block.hash, tip(store));
        assert!(
            leaves.iter().all(|at| tree.blocks[*at].facts.block.hash == tip(store)),
            "valid blocks were left behind"
        );
    }
    for _ in 0..4 {
        let at = dice.roll(tree.blocks.len() as u64) as usize;
        if !tree.is_doomed(at) {
            storm.hop(store, at, any_depth);
        }
    }
    // What stands on the tip now may have been held since it was delivered without its parent.
    storm.see_all_judged_above_tip(store);
    pipeline.flush().unwrap();

    // What stands beside the durable branch, or on a rejected block, may be held as an orphan until the end.
    let tickets = storm.tickets.into_inner().unwrap();
    let beside = |at| tree.is_doomed(at) || !(tree.descends(at, tip(store)) || tree.is_ancestor_of(at, tip(store)));
    let held = tickets.into_iter().filter_map(|(at, list, ticket)| {
        let outcome = if beside(at) { ticket.try_wait() } else { Some(resolved(&ticket)) };
        let Some(outcome) = outcome else { return Some((at, list, ticket)) };
        check(tree, at, list, &outcome);
        None
    });
    let held: Vec<_> = held.collect();
    // Handles dropped at the very end are still on their way.
    eventually("blocks are leaked", || (pipeline.in_flight() <= held.len()).then_some(()));
    pipeline.flush().unwrap();
    // What stands beside the durable branch within reach is judged some time, or held.
    let mut held = held;
    eventually("room is not given back", || {
        held.retain(|(_, _, ticket)| ticket.try_wait().is_none());
        (pipeline.in_flight() == held.len()).then_some(())
    });
    let counters = pipeline.counters();
    let ended = counters.valid + counters.invalid + counters.cancelled + counters.failed;
    assert_eq!(counters.requests, ended + held.len() as u64, "{counters:?}");
    assert_eq!(counters.requests, storm.admitted.into_inner());
    assert_eq!(counters.divergences, 0);
    counters
}

fn tip<S: TrieStore>(store: &S) -> B256 {
    store.tip().unwrap().unwrap().block.hash
}
