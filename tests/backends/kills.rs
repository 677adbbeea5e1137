//! A process with a pipeline is killed at named points of append, flush and recovery; whatever it acknowledged is there
//! when the pipeline is opened again, and the next block folds.
//!
//! `FOLDGATE_KILLS` sets the number of kills for each backend, two at each point by default. A kill of the process is
//! not a loss of power.

use std::{
    env,
    io::{BufRead, BufReader},
    num::NonZeroUsize,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use foldgate::{
    Pipeline, PipelineConfig, TrieStore, Verdict,
    core::BalStore,
    pipeline::{BackgroundFlush, Begun, Flush},
};
use foldgate_storage_mdbx::MdbxStore;
use foldgate_storage_redb::RedbStore;
use foldgate_testing::sim::{SimBlock, SimSize};
use rand::Rng;
use tempfile::TempDir;

use crate::{
    logs::{PointedLog, PointedStore, Reached, file_log},
    support::{assert_state, chain, execute, load, request, start, valid},
};

pub(crate) const PLACE: &str = "FOLDGATE_KILL_PLACE";
/// The point, and how often it is passed before.
const POINT: &str = "FOLDGATE_KILL_POINT";
/// What the child does, where there is a choice.
pub(crate) const SCENARIO: &str = "FOLDGATE_KILL_SCENARIO";
const ACKNOWLEDGED: &str = "acknowledged ";
const AT_POINT: &str = "at point";

/// `commit~` is the time after the commit began: it goes on until the kill.
const POINTS: [&str; 10] =
    ["append", "sync", "synced", "commit", "commit~", "committed", "snapshot", "replay", "prune", "pruned"];

/// The length of the chain, which is the same in every process. A child executes at most [`BLOCKS_PER_LIFE`] blocks.
const LENGTH: usize = 48;
const BLOCKS_PER_LIFE: usize = 14;

#[test]
fn a_pipeline_on_redb_survives_kills() {
    survives_kills("kills::a_pipeline_on_redb_survives_kills", open_redb);
}

#[test]
fn a_pipeline_on_mdbx_survives_kills() {
    survives_kills("kills::a_pipeline_on_mdbx_survives_kills", open_mdbx);
}

pub(crate) fn open_redb(place: &Path) -> RedbStore {
    RedbStore::open(place, foldgate_storage_redb::Options::default().with_cache_bytes(8 << 20)).unwrap()
}

pub(crate) fn open_mdbx(place: &Path) -> MdbxStore {
    MdbxStore::open(place, foldgate_storage_mdbx::Options::default()).unwrap()
}

fn config() -> PipelineConfig {
    let flush =
        BackgroundFlush { keep_in_memory: 2, blocks: NonZeroUsize::new(3).unwrap(), ..BackgroundFlush::default() };
    let config = PipelineConfig::default().with_bal_driven(true).with_flush(Flush::Background(flush));
    PipelineConfig { unwind_depth: 1, threads: NonZeroUsize::MIN, ..config }
}

fn survives_kills<S: BalStore>(test: &str, open: impl Fn(&Path) -> S) {
    let blocks = chain(41, LENGTH, SimSize::default()).1;
    if let Some(place) = env::var_os(PLACE) {
        return run_until_killed(Path::new(&place), open, &blocks);
    }
    let kills: usize = env::var("FOLDGATE_KILLS").map_or(2 * POINTS.len(), |kills| kills.parse().unwrap());
    let mut rng = rand::rng();
    let mut place = TempDir::new().unwrap();
    drop(load(open(place.path()), &blocks[0]));
    let (mut height, mut reached) = (0, [0; POINTS.len()]);
    for kill in 0..kills {
        if height + BLOCKS_PER_LIFE >= LENGTH {
            place = TempDir::new().unwrap();
            drop(load(open(place.path()), &blocks[0]));
            height = 0;
        }
        let at = kill % POINTS.len();
        // What comes once in a life is not passed.
        let passes = if matches!(POINTS[at], "snapshot" | "replay") { 0 } else { rng.random_range(0..3) };
        let life = live_and_die(test, place.path(), "", POINTS[at], passes);
        reached[at] += u32::from(life.reached);
        let acknowledged = life.acknowledged.unwrap_or(0).max(height);
        let what = format!("kill {kill} at {}, {passes} times passed", POINTS[at]);
        height = check(place.path(), &open, &blocks, acknowledged, &what);
    }
    println!("{kills} kills: {:?}", POINTS.iter().zip(reached).collect::<Vec<_>>());
    // The log may have nothing to replay, or to prune, in the life that was to be killed there.
    let seldom = ["replay", "prune", "pruned"];
    for (point, reached) in POINTS.iter().zip(reached) {
        assert!(kills < POINTS.len() || reached > 0 || seldom.contains(point), "{point} was never reached");
    }
}

/// Opens what the killed process left. Gives the height of the head.
fn check<S: BalStore>(
    place: &Path,
    open: &impl Fn(&Path) -> S,
    blocks: &[SimBlock],
    acknowledged: usize,
    what: &str,
) -> usize {
    let store = Arc::new(open(place));
    let tip = store.tip().unwrap().unwrap().block.number as usize;
    assert_state(&*store, &blocks[tip]);
    let pipeline = Pipeline::open_with_log(Arc::clone(&store), file_log(place), config()).unwrap();
    let recovered = pipeline.recovery().recovered as usize;
    let head = tip + recovered;
    assert!(head >= acknowledged, "{what}: {acknowledged} was acknowledged, {tip} + {recovered} is there");
    for block in &blocks[tip + 1..=head] {
        let known = pipeline.begin(request(block)).unwrap();
        assert!(matches!(known, Begun::Known(Verdict::Valid(_))), "{what}: {}", block.facts.block);
    }
    let next = &blocks[head + 1];
    let ticket = execute(start(&pipeline, request(next)), next);
    let acknowledgement = ticket.acknowledgement();
    assert_eq!(valid(ticket.wait()).computed_state_root, next.state_root, "{what}");
    acknowledgement.wait().unwrap();
    head + 1
}

pub(crate) struct Life {
    pub(crate) reached: bool,
    acknowledged: Option<usize>,
}

/// Starts the child and kills it at the point, or somewhat later; it may end before.
pub(crate) fn live_and_die(test: &str, place: &Path, scenario: &str, point: &str, passes: u32) -> Life {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(PLACE, place);
    command.env(SCENARIO, scenario);
    command.env(POINT, format!("{point}:{passes}")).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn().unwrap();
    let mut life = Life { reached: false, acknowledged: None };
    let note = |life: &mut Life, line: &str| {
        if let Some(number) = line.strip_prefix(ACKNOWLEDGED) {
            life.acknowledged = number.parse().ok();
        }
        life.reached |= line == AT_POINT;
    };
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while !life.reached
        && let Some(Ok(line)) = lines.next()
    {
        note(&mut life, &line);
    }
    if point.ends_with('~') {
        thread::sleep(Duration::from_micros(rand::rng().random_range(0..20_000)));
    }
    // It may have ended.
    let _ended = child.kill();
    let status = child.wait().unwrap();
    assert!(life.reached || status.success(), "the child failed: {status}");
    for line in lines.map_while(Result::ok) {
        note(&mut life, &line);
    }
    life
}

/// In the child: stops for ever at the point, once it is armed.
pub(crate) fn stop_at_the_point(armed: Arc<AtomicBool>) -> Reached {
    let point = env::var(POINT).unwrap();
    let (point, passes) = point.split_once(':').unwrap();
    let (goes_on, point) = (point.ends_with('~'), point.trim_end_matches('~').to_owned());
    let passes: u32 = passes.parse().unwrap();
    let count = AtomicU32::new(0);
    Arc::new(move |at| {
        if at != point || !armed.load(Ordering::SeqCst) || count.fetch_add(1, Ordering::Relaxed) != passes {
            return;
        }
        // The newline ends whatever libtest left on the line.
        println!("\n{AT_POINT}");
        if !goes_on {
            loop {
                thread::park();
            }
        }
    })
}

/// The child: executes blocks, and stops for ever at the point.
fn run_until_killed<S: BalStore>(place: &Path, open: impl Fn(&Path) -> S, blocks: &[SimBlock]) {
    let reached = stop_at_the_point(Arc::new(AtomicBool::new(true)));
    let store = Arc::new(PointedStore { inner: open(place), reached: Arc::clone(&reached) });
    let log = PointedLog { inner: file_log(place), reached };
    let tip = store.tip().unwrap().unwrap().block.number as usize;
    let pipeline = Pipeline::open_with_log(store, log, config()).unwrap();
    let mut executed = 0;
    for (number, block) in blocks.iter().enumerate().skip(tip + 1) {
        match pipeline.begin(request(block)).unwrap() {
            Begun::Known(Verdict::Valid(_)) => continue,
            Begun::Known(other) => panic!("{other:?}"),
            Begun::Started(handle) => {
                let ticket = execute(handle, block);
                let acknowledgement = ticket.acknowledgement();
                valid(ticket.wait());
                acknowledgement.wait().unwrap();
                println!("\n{ACKNOWLEDGED}{number}");
            }
        }
        executed += 1;
        if executed == BLOCKS_PER_LIFE {
            break;
        }
    }
    pipeline.flush().unwrap();
}
