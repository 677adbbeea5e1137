//! A process is killed at named points of a reorganisation that takes the store back. Whatever it acknowledged is there
//! afterwards, on the branch that was left and on the one that was gone to, and the head is where it was to go, if that was
//! recorded.
//!
//! A kill of the process is not a loss of power.

use std::{
    env,
    num::NonZeroUsize,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use foldgate::{
    FileLog, Pipeline, PipelineConfig, Verdict,
    core::{BalStore, Record, RecordLog},
    pipeline::{Begun, Canonical, Flush},
};
use foldgate_testing::sim::{Sim, SimBlock, SimSize};
use tempfile::TempDir;

use crate::{
    durability::{acknowledged, background},
    kills::{PLACE, SCENARIO, live_and_die, open_mdbx, open_redb, stop_at_the_point},
    logs::{PointedLog, PointedStore, file_log_of_segments},
    support::{assert_state, execute, load, request, start, valid},
};

/// How deep the store may go back.
const DEPTH: u64 = 4;

/// The points at which one life after the other ends: the first begins with the chain, and the reorganisation is cut off; the
/// second opens what the first left.
const LIVES: [&[&str]; 10] = [
    &["append"],
    &["sync"],
    &["synced"],
    &["unwind"],
    &["unwound"],
    &["commit"],
    &["committed"],
    &["unwind", "unwind"],
    &["unwind", "unwound"],
    &["unwound", "replay"],
];

#[test]
fn a_reorganisation_on_redb_survives_kills() {
    survives_kills("reorg_kills::a_reorganisation_on_redb_survives_kills", open_redb, Scenario::Once);
}

#[test]
fn a_reorganisation_on_mdbx_survives_kills() {
    survives_kills("reorg_kills::a_reorganisation_on_mdbx_survives_kills", open_mdbx, Scenario::Once);
}

/// Where the second one goes, the log had let go of the records when the tip was higher.
#[test]
fn two_reorganisations_in_a_row_on_redb_survive_kills() {
    survives_kills("reorg_kills::two_reorganisations_in_a_row_on_redb_survive_kills", open_redb, Scenario::Twice);
}

#[test]
fn two_reorganisations_in_a_row_on_mdbx_survive_kills() {
    survives_kills("reorg_kills::two_reorganisations_in_a_row_on_mdbx_survive_kills", open_mdbx, Scenario::Twice);
}

#[test]
fn a_reorganisation_with_a_log_younger_than_its_redb_store_survives_kills() {
    let test = "reorg_kills::a_reorganisation_with_a_log_younger_than_its_redb_store_survives_kills";
    survives_kills(test, open_redb, Scenario::Younger);
}

#[test]
fn a_reorganisation_with_a_log_younger_than_its_mdbx_store_survives_kills() {
    let test = "reorg_kills::a_reorganisation_with_a_log_younger_than_its_mdbx_store_survives_kills";
    survives_kills(test, open_mdbx, Scenario::Younger);
}

#[test]
fn reorganisations_of_a_redb_store_that_is_written_at_once_survive_kills() {
    let test = "reorg_kills::reorganisations_of_a_redb_store_that_is_written_at_once_survive_kills";
    survives_kills(test, open_redb, Scenario::Synchronous);
}

#[test]
fn reorganisations_of_an_mdbx_store_that_is_written_at_once_survive_kills() {
    let test = "reorg_kills::reorganisations_of_an_mdbx_store_that_is_written_at_once_survive_kills";
    survives_kills(test, open_mdbx, Scenario::Synchronous);
}

/// What leads to the reorganisation that is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    /// One chain.
    Once,
    /// Another reorganisation, which has brought the tip lower.
    Twice,
    /// A chain that no log has seen.
    Younger,
    /// As [`Self::Twice`], and each block goes to the store at once.
    Synchronous,
}

/// The blocks of a scenario, the same in every process.
struct World {
    sim: Sim,
    genesis: SimBlock,
    /// Where the chain was left first.
    main: Vec<SimBlock>,
    /// A block on main, where there are two reorganisations.
    first: Option<SimBlock>,
    /// Where the reorganisation that is cut off goes.
    side: Vec<SimBlock>,
}

impl World {
    fn new(scenario: Scenario) -> Self {
        let mut sim = Sim::new(43, SimSize { addresses: 24, slots: 8, touched: 8, written: 4 });
        let genesis = sim.genesis();
        let main = branch(&mut sim, &genesis, 10);
        let twice = matches!(scenario, Scenario::Twice | Scenario::Synchronous);
        let first = twice.then(|| sim.child(&main[5]));
        let mut world = Self { sim, genesis, main, first, side: Vec::new() };
        let fork = world.fork().clone();
        world.side = branch(&mut world.sim, &fork, 3);
        world
    }

    /// Where the reorganisation that is cut off leaves the chain.
    fn fork(&self) -> &SimBlock {
        &self.main[if self.first.is_some() { 2 } else { 5 }]
    }

    /// The head of the branch that is left.
    fn left(&self) -> SimBlock {
        self.first.clone().unwrap_or_else(|| self.main[9].clone())
    }

    fn blocks(&self) -> impl Iterator<Item = &SimBlock> {
        self.main.iter().chain(&self.first).chain(&self.side)
    }
}

/// A log of segments with a record each: it holds on to nothing of what it is told to let go of.
fn log(place: &Path) -> FileLog {
    file_log_of_segments(place, 1)
}

/// Whether the log holds a record of the block.
fn holds(place: &Path, block: &SimBlock) -> bool {
    let mut holds = false;
    let replayed = log(place).replay(&mut |record| {
        holds |= matches!(&record, Record::Block(record) if record.anchor == block.anchor());
    });
    replayed.unwrap();
    holds
}

fn branch(sim: &mut Sim, parent: &SimBlock, length: usize) -> Vec<SimBlock> {
    let mut blocks = vec![parent.clone()];
    for _ in 0..length {
        blocks.push(sim.child(&blocks[blocks.len() - 1]));
    }
    blocks.split_off(1)
}

fn config(scenario: Scenario) -> PipelineConfig {
    let flush = if scenario == Scenario::Synchronous { Flush::Synchronous } else { background(0, 1) };
    let config = PipelineConfig::default().with_bal_driven(true).with_flush(flush);
    PipelineConfig { canonical: Canonical::Explicit, unwind_depth: DEPTH, threads: NonZeroUsize::MIN, ..config }
}

fn survives_kills<S: BalStore>(test: &str, open: impl Fn(&Path) -> S, scenario: Scenario) {
    if let Some(place) = env::var_os(PLACE) {
        return run_until_killed(Path::new(&place), open, scenario);
    }
    for lives in LIVES {
        let place = TempDir::new().unwrap();
        let world = World::new(scenario);
        drop(load(open(place.path()), &world.genesis));
        for (life, point) in lives.iter().enumerate() {
            let passed = if life == 0 { "reorganise" } else { "reopen" };
            let life = live_and_die(test, place.path(), passed, point, 0);
            assert!(life.reached, "{lives:?}: {point} was never reached");
        }
        if *lives == ["append"] {
            let first_to_unwind = &world.main[world.fork().facts.block.number as usize];
            assert_eq!(holds(place.path(), first_to_unwind), scenario == Scenario::Once);
        }
        check(place.path(), &open, scenario, world, lives);
    }
}

/// The child: builds the chain, begins the reorganisation and stops for ever at the point; or opens what there is.
fn run_until_killed<S: BalStore>(place: &Path, open: impl Fn(&Path) -> S, scenario: Scenario) {
    let armed = Arc::new(AtomicBool::new(env::var(SCENARIO).unwrap() == "reopen"));
    let reached = stop_at_the_point(Arc::clone(&armed));
    let world = World::new(scenario);
    let first_life = !armed.load(Ordering::SeqCst);
    if first_life && scenario == Scenario::Younger {
        let pipeline = Pipeline::open(Arc::new(open(place)), config(scenario)).unwrap();
        deliver(&pipeline, &world.main);
    }
    let store = Arc::new(PointedStore { inner: open(place), reached: Arc::clone(&reached) });
    let log = PointedLog { inner: log(place), reached };
    let pipeline = Pipeline::open_with_log(store, log, config(scenario)).unwrap();
    if first_life {
        if scenario != Scenario::Younger {
            deliver(&pipeline, &world.main);
        }
        deliver(&pipeline, world.first.as_slice());
        for block in &world.side {
            acknowledged(&pipeline, request(block), block);
        }
        armed.store(true, Ordering::SeqCst);
        pipeline.set_canonical(world.side[2].facts.block.hash).unwrap();
    }
    pipeline.flush().unwrap();
}

/// Delivers blocks, and makes the last one durable.
fn deliver<S: BalStore>(pipeline: &Pipeline<S>, blocks: &[SimBlock]) {
    for block in blocks {
        // Without a log a block is acknowledged when it is canonical.
        valid(execute(start(pipeline, request(block)), block).wait());
    }
    if let Some(head) = blocks.last() {
        pipeline.set_canonical(head.facts.block.hash).unwrap();
        assert_eq!(pipeline.flush().unwrap(), head.anchor());
    }
}

/// Opens what the killed processes left.
fn check<S: BalStore>(place: &Path, open: &impl Fn(&Path) -> S, scenario: Scenario, mut world: World, lives: &[&str]) {
    let what = format!("{scenario:?}, killed at {lives:?}");
    let store = Arc::new(open(place));
    let tip = store.tip().unwrap().unwrap();
    let at = world.blocks().find(|block| block.anchor() == tip).unwrap_or_else(|| panic!("{what}: the tip is {tip:?}"));
    assert_state(&*store, at);
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), log(place), config(scenario)).unwrap();
    assert_eq!(pipeline.recovery().dropped, 0, "{what}");
    // A head is recorded before anything moves.
    let (left, gone_to) = (world.left(), world.side[2].clone());
    let durable = pipeline.flush().unwrap();
    let head = if durable == left.anchor() { &left } else { &gone_to };
    assert_eq!(durable, head.anchor(), "{what}");
    match lives[0] {
        "append" => assert_eq!(durable, left.anchor(), "{what}"),
        // Records that filled a segment before were synced with it.
        "sync" => {}
        _ => assert_eq!(durable, gone_to.anchor(), "{what}"),
    }
    assert_state(&*store, head);
    for block in world.blocks() {
        let facts = block.facts.block;
        if store.committed(facts.number).unwrap() != Some(block.anchor()) {
            let begun = pipeline.begin(request(block)).unwrap();
            assert!(matches!(begun, Begun::Known(Verdict::Valid(_))), "{what}: {facts} is lost");
        }
    }
    // Every branch goes on.
    let heads = [gone_to, left, world.main[9].clone()];
    for parent in &heads {
        let next = world.sim.child(parent);
        acknowledged(&pipeline, request(&next), &next);
        pipeline.set_canonical(next.facts.block.hash).unwrap();
        assert_eq!(pipeline.flush().unwrap(), next.anchor(), "{what}");
        assert_state(&*store, &next);
    }
}
