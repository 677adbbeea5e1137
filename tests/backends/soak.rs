//! A long run of one pipeline, as a node has it: whatever comes, nothing it holds grows. Small blocks with everything that
//! happens to blocks, in an order that the seed names: missing lists, wrong lists, lying lists, cancellations, orphans,
//! reorganisations, most of them shallow, some 64 blocks deep, and back again.
//!
//! At intervals the store is held to the oracle's state, and these to their bounds: resident memory, threads, open files,
//! the log's folder, everything that the pipeline keeps ([`Holdings`]). Each run has a process of its own, since other
//! tests' threads and files would count as well.
//!
//! `FOLDGATE_SOAK` sets the number of blocks for each backend, 1,000 by default, `FOLDGATE_SOAK_SEED` the seed.

use std::{collections::VecDeque, env, fs, num::NonZeroUsize, process::Command, sync::Arc, time::Instant};

use alloy_primitives::Bytes;
use foldgate::{
    BlockRequest, FileLog, Pipeline, PipelineConfig, Verdict,
    core::BalStore,
    pipeline::{
        BackgroundFlush, Begun, BlockError, Canonical, CounterSnapshot, Flush, Halt, Holdings, InvalidReason,
        SkipReason, VerdictTicket,
    },
    record_log,
};
use foldgate_testing::{
    conformance::StoreFactory,
    sim::{Sim, SimBlock, SimSize},
};
use tempfile::TempDir;

use crate::{
    races::{eventually, resolved},
    support::{Dice, InMemory, OnMdbx, OnRedb, assert_state, assert_view, execute, load, request, start, valid},
};

#[test]
fn nothing_grows_in_memory() {
    in_a_process_of_its_own("soak::nothing_grows_in_memory", &InMemory);
}

#[test]
fn nothing_grows_on_redb() {
    in_a_process_of_its_own("soak::nothing_grows_on_redb", &OnRedb::default());
}

#[test]
fn nothing_grows_on_mdbx() {
    in_a_process_of_its_own("soak::nothing_grows_on_mdbx", &OnMdbx::default());
}

const CHILD: &str = "FOLDGATE_SOAK_CHILD";
const SIZE: SimSize = SimSize { addresses: 24, slots: 8, touched: 8, written: 4 };
/// One round in so many is a reorganisation of at least half of the greatest depth.
const DEEP_EVERY: u64 = 100;
/// The deepest reorganisation. The head is at most so many blocks above the durable tip that it stays in reach.
const DEEPEST: usize = 64;
const UNWIND_DEPTH: u64 = 72;
const MAX_REMEMBERED: usize = 256;

/// After the first quarter of the run, memory that is resident and not of mapped files grows by at most so much. Within a
/// short run a backend's own cache still fills.
const MAX_GROWTH_BYTES: usize = 4 << 20;
const MAX_GROWTH_BYTES_OF_A_SHORT_RUN: usize = 16 << 20;
const SHORT_RUN: u64 = 10_000;
/// The log's folder: records down to `UNWIND_DEPTH` below the tip, of all branches there, in whole segments.
const MAX_LOG_BYTES: u64 = 320 << 10;
const SEGMENT_BYTES: u64 = 64 << 10;
/// Blocks in memory: the branches that left the chain within `UNWIND_DEPTH` of the tip, few of which are long.
const MAX_COMMITTED: usize = 4 * UNWIND_DEPTH as usize;

fn in_a_process_of_its_own<F: StoreFactory>(test: &str, factory: &F) {
    let number = |name, default| env::var(name).map_or(default, |value: String| value.parse().unwrap());
    let (blocks, seed) = (number("FOLDGATE_SOAK", 1000), number("FOLDGATE_SOAK_SEED", 300));
    if env::var_os(CHILD).is_some() {
        return soak(factory, blocks, seed);
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    let child = command.output().unwrap();
    print!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success(), "{}", child.status);
}

/// What the process and the pipeline take at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    blocks: u64,
    /// Resident and not of mapped files.
    resident_bytes: usize,
    threads: usize,
    files: usize,
    log_bytes: u64,
    holdings: Holdings,
}

struct Soak<S: BalStore> {
    sim: Sim,
    dice: Dice,
    store: Arc<S>,
    pipeline: Pipeline<S>,
    log: TempDir,
    /// The canonical chain, as far back as it is left, the head last.
    chain: VecDeque<Arc<SimBlock>>,
    /// Blocks judged, valid or not.
    judged: u64,
    /// Runs whose first fold was seen to begin before any execution.
    ran_ahead: u64,
    rounds: u64,
    moves: u64,
    deepest: usize,
}

fn soak<F: StoreFactory>(factory: &F, blocks: u64, seed: u64) {
    println!("seed {seed}, {blocks} blocks");
    let mut soak = Soak::new(factory.fresh(), seed);
    let interval = (blocks / 40).max(1);
    let (begin, mut samples) = (Instant::now(), Vec::new());
    let mut next = interval;
    while soak.judged < blocks {
        soak.round();
        if soak.judged >= next {
            next = soak.judged + interval;
            samples.push(soak.sample());
            let Sample { blocks, resident_bytes, threads, files, log_bytes, holdings } = samples[samples.len() - 1];
            println!(
                "{blocks}: {} KiB, {threads} threads, {files} files, {} KiB of log, {holdings:?}",
                resident_bytes >> 10,
                log_bytes >> 10
            );
        }
    }
    samples.push(soak.sample());
    println!("{} blocks in {:?}, {} moves of the head", soak.judged, begin.elapsed(), soak.moves);
    soak.check(&samples);
}

impl<S: BalStore> Soak<S> {
    fn new(store: S, seed: u64) -> Self {
        let mut sim = Sim::new(seed, SIZE);
        let genesis = sim.genesis();
        let store = load(store, &genesis);
        let log = TempDir::new().unwrap();
        let options = record_log::Options::default().with_segment_bytes(SEGMENT_BYTES);
        let size = |number| NonZeroUsize::new(number).unwrap();
        let flush = BackgroundFlush { keep_in_memory: 4, blocks: size(4), ..BackgroundFlush::default() };
        let config = PipelineConfig {
            canonical: Canonical::Explicit,
            threads: size(2),
            unwind_depth: UNWIND_DEPTH,
            keep_bals: Some(UNWIND_DEPTH),
            max_remembered: MAX_REMEMBERED,
            page_cache_bytes: 1 << 20,
            ..PipelineConfig::default().with_bal_driven(true).with_flush(Flush::Background(flush))
        };
        let file_log = FileLog::open(log.path(), options).unwrap();
        let pipeline = Pipeline::open_with_log(Arc::clone(&store), file_log, config).unwrap();
        let chain = VecDeque::from([Arc::new(genesis)]);
        let dice = Dice(seed);
        Self { sim, dice, store, pipeline, log, chain, judged: 0, ran_ahead: 0, rounds: 0, moves: 0, deepest: 0 }
    }

    fn head(&self) -> Arc<SimBlock> {
        Arc::clone(&self.chain[self.chain.len() - 1])
    }

    /// Blocks that follow on each other. Each changes something, so that a list is never right by chance.
    fn branch(&mut self, parent: &Arc<SimBlock>, length: usize) -> Vec<Arc<SimBlock>> {
        let mut parent = Arc::clone(parent);
        let mut next = || {
            let child = loop {
                let child = self.sim.child(&parent);
                if child.state_root != parent.state_root {
                    break Arc::new(child);
                }
            };
            parent = Arc::clone(&child);
            child
        };
        (0..length).map(|_| next()).collect()
    }

    fn round(&mut self) {
        let head = self.head();
        self.rounds += 1;
        if self.rounds.is_multiple_of(DEEP_EVERY) {
            let depth = DEEPEST - self.dice.roll(DEEPEST as u64 / 2) as usize;
            return self.reorganise(depth);
        }
        match self.dice.roll(99) {
            0..45 => {
                let length = 1 + self.dice.roll(6) as usize;
                let run = self.branch(&head, length);
                self.run_ahead(&head, &run);
                self.extend(run);
            }
            45..55 => self.without_a_right_list(&head),
            55..65 => self.wrong(&head),
            65..75 => self.cancelled(&head),
            75..80 => self.orphans_first(&head),
            _ => {
                let depth = 1 + self.dice.roll(8) as usize;
                self.reorganise(depth);
            }
        }
    }

    /// Begins all, sees the first fold begin while nothing was executed, then executes one after the other.
    fn run_ahead(&mut self, parent: &SimBlock, run: &[Arc<SimBlock>]) {
        for (part, blocks) in run.chunks(16).enumerate() {
            let below = part.checked_sub(1).map_or(parent, |before| &*run[before * 16 + 15]);
            let before = self.pipeline.counters().folds_before_execution_ended;
            let handles: Vec<_> = blocks.iter().map(|block| start(&self.pipeline, request(block))).collect();
            eventually("no fold begins ahead", || {
                (self.pipeline.counters().folds_before_execution_ended > before).then_some(())
            });
            self.ran_ahead += 1;
            if self.dice.one_in(20) {
                assert_view(&handles[0].parent_state(), below);
            }
            let tickets: Vec<_> = blocks.iter().zip(handles).map(|(block, handle)| execute(handle, block)).collect();
            blocks.iter().zip(&tickets).for_each(|(block, ticket)| self.judge(block, ticket));
        }
    }

    fn judge(&mut self, block: &SimBlock, ticket: &VerdictTicket) {
        assert_eq!(valid(resolved(ticket)).computed_state_root, block.state_root);
        self.judged += 1;
    }

    fn deliver(&mut self, request: BlockRequest, block: &SimBlock) {
        let ticket = execute(start(&self.pipeline, request), block);
        self.judge(block, &ticket);
    }

    /// The head goes on to the end of the run.
    fn extend(&mut self, run: Vec<Arc<SimBlock>>) {
        self.chain.extend(run);
        while self.chain.len() > DEEPEST + 2 {
            self.chain.pop_front();
        }
        self.move_head();
    }

    fn move_head(&mut self) {
        self.pipeline.set_canonical(self.head().facts.block.hash).unwrap();
        self.moves += 1;
    }

    /// No list, one that is supplied meanwhile, or one from a source that lies.
    fn without_a_right_list(&mut self, head: &Arc<SimBlock>) {
        let run = self.branch(head, 1);
        let block = &run[0];
        let asked = BlockRequest::new(block.facts);
        match self.dice.roll(3) {
            0 => self.deliver(asked, block),
            1 => self.deliver(asked.with_sourced_bal(wrong_list()), block),
            _ => {
                let handle = start(&self.pipeline, asked);
                self.pipeline.supply_bal(block.facts.block.hash, block.raw.clone());
                let ticket = execute(handle, block);
                self.judge(block, &ticket);
            }
        }
        self.extend(run);
    }

    /// A list in the payload that is not the header's; or a block whose list is the header's and a lie.
    fn wrong(&mut self, head: &Arc<SimBlock>) {
        let [block, other] = [self.branch(head, 1), self.branch(head, 1)].map(|mut run| run.remove(0));
        if self.dice.one_in(2) {
            let asked = BlockRequest::new(block.facts).with_bal(wrong_list());
            let outcome = resolved(&execute(start(&self.pipeline, asked), &block));
            let Ok(Verdict::Invalid(invalid)) = outcome else { panic!("{outcome:?}") };
            assert!(matches!(invalid.reason, InvalidReason::BalHashMismatch { .. }), "{invalid:?}");
            // The header is innocent.
            self.judged += 1;
            self.deliver(request(&block), &block);
            self.extend(vec![block]);
        } else if block.state_root != other.state_root {
            let mut lying = (*block).clone();
            (lying.raw, lying.facts.expected_bal_hash) = (other.raw.clone(), Some(other.bal_hash));
            // The other's indices have to fit.
            lying.facts.tx_count = 10;
            // The child first: it has no parent to stand on when that is judged.
            let child = self.branch(&block, 1);
            let above = start(&self.pipeline, request(&child[0]));
            let handle = start(&self.pipeline, request(&lying));
            // Its early root is wrong: it is stopped, whether its executor goes on or not.
            let outcome = resolved(&execute(handle, &lying));
            assert!(matches!(outcome, Ok(Verdict::Invalid(_))), "{outcome:?}");
            let outcome = resolved(&execute(above, &child[0]));
            let fell =
                matches!(&outcome, Err(BlockError::Halted(Halt::AncestorInvalid(at))) if *at == lying.facts.block);
            assert!(fell, "{outcome:?}");
            self.judged += 1;
        }
    }

    /// A run is cut off at a random block; what stands on it falls with it. Then it is delivered again.
    fn cancelled(&mut self, head: &Arc<SimBlock>) {
        let length = 2 + self.dice.roll(4) as usize;
        let run = self.branch(head, length);
        let at = self.dice.roll(run.len() as u64) as usize;
        let mut handles: Vec<_> = run.iter().map(|block| start(&self.pipeline, request(block))).collect();
        let above = handles.split_off(at + 1);
        let cut = handles.pop();
        for (handle, block) in handles.into_iter().zip(&run) {
            let ticket = execute(handle, block);
            self.judge(block, &ticket);
        }
        drop(cut);
        for handle in above {
            let outcome = resolved(&handle.stop());
            assert!(matches!(outcome, Err(BlockError::Halted(_))), "{outcome:?}");
        }
        eventually("a dropped block stays", || (self.pipeline.holdings().unwrap().in_flight == 0).then_some(()));
        let below = at.checked_sub(1).map_or_else(|| Arc::clone(head), |below| Arc::clone(&run[below]));
        self.run_ahead(&below, &run[at..]);
        self.extend(run);
    }

    fn orphans_first(&mut self, head: &Arc<SimBlock>) {
        let run = self.branch(head, 3);
        let handles: Vec<_> = run.iter().rev().map(|block| start(&self.pipeline, request(block))).collect();
        for (handle, block) in handles.into_iter().rev().zip(&run) {
            let ticket = execute(handle, block);
            self.judge(block, &ticket);
        }
        self.extend(run);
    }

    /// The head moves to a new branch, and sometimes back by a word.
    fn reorganise(&mut self, depth: usize) {
        let depth = depth.min(self.chain.len() - 1);
        self.deepest = self.deepest.max(depth);
        let mut before = self.chain.clone();
        self.chain.truncate(self.chain.len() - depth);
        let fork = self.head();
        let length = 1 + self.dice.roll(depth as u64 + 1) as usize;
        let branch = self.branch(&fork, length);
        self.run_ahead(&fork, &branch);
        self.extend(branch);
        if self.dice.one_in(3) {
            std::mem::swap(&mut self.chain, &mut before);
            self.move_head();
            let known = self.pipeline.begin(request(&self.head())).unwrap();
            assert!(matches!(known, Begun::Known(Verdict::Valid(_))), "{known:?}");
        }
    }

    /// Holds the store to the oracle, and everything to its bound.
    fn sample(&self) -> Sample {
        let head = self.head();
        assert_eq!(self.pipeline.flush().unwrap(), head.anchor());
        assert_state(&*self.store, &head);
        // What was judged is recorded a little later.
        eventually("blocks are not acknowledged", || (self.pipeline.in_flight() == 0).then_some(()));
        let count = |folder: &str| fs::read_dir(folder).unwrap().count();
        let log = fs::read_dir(self.log.path()).unwrap();
        let holdings = self.pipeline.holdings().unwrap();
        let Holdings { in_flight, orphans, waiting, verdicts, ways, committed, unflushed, parents, .. } = holdings;
        assert_eq!((in_flight, orphans, waiting), (0, 0, 0), "{holdings:?}");
        assert!(verdicts <= MAX_REMEMBERED && ways <= 8 && committed <= MAX_COMMITTED, "{holdings:?}");
        assert!(unflushed <= committed && parents <= committed + 1, "{holdings:?}");
        Sample {
            blocks: self.judged,
            resident_bytes: resident_bytes(),
            threads: count("/proc/self/task"),
            files: count("/proc/self/fd"),
            log_bytes: log.map(|entry| entry.unwrap().metadata().unwrap().len()).sum(),
            holdings,
        }
    }

    fn check(self, samples: &[Sample]) {
        let (warm_up, rest) = samples.split_at(samples.len() / 4);
        let most = |samples: &[Sample], of: fn(&Sample) -> usize| samples.iter().map(of).max().unwrap();
        let [before, after] = [warm_up, rest].map(|part| most(part, |sample| sample.resident_bytes));
        println!("at most {} KiB in the first quarter, {} KiB afterwards", before >> 10, after >> 10);
        let most_growth = if self.judged < SHORT_RUN { MAX_GROWTH_BYTES_OF_A_SHORT_RUN } else { MAX_GROWTH_BYTES };
        assert!(after <= before + most_growth, "memory grows: {before} bytes, then {after}");
        let threads = most(warm_up, |sample| sample.threads);
        // The thread that makes the log's next segment comes and goes, and so do the segment and the folder that it has open.
        assert!(rest.iter().all(|sample| sample.threads <= threads + 1), "threads: {samples:?}");
        let files = most(warm_up, |sample| sample.files);
        assert!(rest.iter().all(|sample| sample.files <= files + 2), "files: {samples:?}");
        assert!(samples.iter().all(|sample| sample.log_bytes <= MAX_LOG_BYTES), "the log: {samples:?}");
        let counters = self.pipeline.counters();
        println!("{counters:?}");
        self.check_counters(&counters);
        let head = self.head();
        drop(self.pipeline);
        assert_eq!(self.store.tip().unwrap(), Some(head.anchor()));
        assert_state(&*self.store, &head);
    }

    /// That the run was what it says it was.
    fn check_counters(&self, counters: &CounterSnapshot) {
        assert_eq!(counters.valid + counters.invalid, self.judged);
        assert_eq!(counters.requests, counters.valid + counters.invalid + counters.cancelled);
        assert!(counters.folds_before_execution_ended >= self.ran_ahead && self.ran_ahead > 0, "{counters:?}");
        assert!(counters.folds_ahead > 4 * counters.folds_incremental, "{counters:?}");
        assert!(counters.reorganisations > 0 && counters.unwound > 0 && counters.ways > 0, "{counters:?}");
        assert!(counters.folds_ahead_below_tip > 0 && counters.orphans > 0, "{counters:?}");
        assert!(counters.cancelled > 0 && counters.invalid > 0 && counters.bals_dropped > 0, "{counters:?}");
        assert!(counters.skipped(SkipReason::NoBal) > 0 && counters.store_commits < counters.commits, "{counters:?}");
        assert_eq!(counters.failed, 0);
        assert!(self.rounds < 2 * DEEP_EVERY || self.deepest > DEEPEST / 2, "no reorganisation was deep");
    }
}

fn wrong_list() -> Bytes {
    Bytes::from_static(&[0xc1, 0x80])
}

fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: Vec<usize> = statm.split_whitespace().map(|pages| pages.parse().unwrap()).collect();
    // Resident without shared, which are the pages of mapped files.
    (pages[1] - pages[2]) * 4096
}
