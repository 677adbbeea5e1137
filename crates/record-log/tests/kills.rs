//! A process that appends is killed again and again; whatever it acknowledged is there when the log is opened again.
//!
//! `FOLDGATE_KILLS` sets how often, 20 times by default. A kill of the process is not a loss of power: the system still
//! writes what it was given.

mod common;

use std::{
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use alloy_primitives::B256;
use common::{log_files, open, record, replayed, segments};
use foldgate_core::{BlockNumHash, BlockRecord, Record, RecordLog, Redo, StateAnchor};
use foldgate_record_log::{FileLog, Options};
use rand::Rng;
use tempfile::TempDir;

const PLACE: &str = "FOLDGATE_KILL_PLACE";
const ACKNOWLEDGED: &str = "acknowledged ";

#[test]
fn what_was_acknowledged_survives_kills() {
    if let Some(place) = env::var_os(PLACE) {
        return append_until_killed(Path::new(&place));
    }
    let kills: u32 = env::var("FOLDGATE_KILLS").map_or(20, |kills| kills.parse().unwrap());
    let dir = TempDir::new().unwrap();
    let mut rng = rand::rng();
    let (mut torn, mut length) = (0, 0);
    for kill in 0..kills {
        let (batches, then_wait_us) = (rng.random_range(1..20), rng.random_range(0..10_000));
        let acknowledged = run_and_kill("what_was_acknowledged_survives_kills", dir.path(), |so_far| {
            let enough = so_far >= batches;
            if enough {
                thread::sleep(Duration::from_micros(then_wait_us));
            }
            enough
        });
        let mut log = open(dir.path());
        torn += u32::from(log.cut().is_some());
        let found = replayed(&mut log);
        let first = found.first().map_or(0, |record| record.block().number);
        let count = first + found.len() as u64;
        assert!(count > acknowledged, "kill {kill}: {acknowledged} was acknowledged, the log ends before {count}");
        assert!(count >= length, "kill {kill}: the log fell back from {length} to {count}");
        assert!(first <= acknowledged.saturating_sub(50), "kill {kill}: pruned too much");
        assert!(found.into_iter().eq((first..count).map(record)), "kill {kill}");
        length = count;
    }
    println!("{kills} kills, {torn} torn ends, {length} records");
}

/// A kill as soon as the newest segment is half full: while the next one is being made, or waits for its turn.
#[test]
fn what_was_acknowledged_survives_kills_while_a_segment_is_made() {
    if let Some(place) = env::var_os(PLACE) {
        return append_long_until_killed(Path::new(&place));
    }
    let kills: u64 = env::var("FOLDGATE_KILLS").map_or(5, |kills| kills.parse().unwrap());
    let dir = TempDir::new().unwrap();
    let is_made_ahead = || log_files(dir.path()).len() > segments(dir.path()).len();
    let (mut length, mut made_ahead, mut kill) = (0, 0, 0);
    // A child goes on until it is killed, and the segment may begin until then: not every kill hits one that has not.
    while kill < kills || made_ahead == 0 && kill < kills + 50 {
        let test = "what_was_acknowledged_survives_kills_while_a_segment_is_made";
        let acknowledged = run_and_kill(test, dir.path(), |batches| batches >= 100 || is_made_ahead());
        made_ahead += u64::from(is_made_ahead());
        let mut log = open_long(dir.path());
        assert!(!is_made_ahead(), "kill {kill}: what was being made is still there");
        let found = replayed(&mut log);
        let count = found.len() as u64;
        assert!(count > acknowledged && count >= length, "kill {kill}: {acknowledged}, {length}, {count}");
        assert!(found.into_iter().eq((0..count).map(long_record)), "kill {kill}");
        length = count;
        kill += 1;
    }
    assert!(made_ahead > 0, "no kill hit a segment that had not begun");
    println!("{kill} kills, {made_ahead} while the next segment was being made or waited, {length} records");
}

fn open_long(dir: &Path) -> FileLog {
    FileLog::open(dir, Options::default().with_segment_bytes(2 << 20)).unwrap()
}

/// A record as long as a large block's.
fn long_record(number: u64) -> Record {
    let block = BlockNumHash::new(number, B256::ZERO);
    let anchor = StateAnchor { block, state_root: B256::ZERO };
    Record::Block(BlockRecord { parent_hash: B256::ZERO, anchor, redo: Redo::Bal(vec![number as u8; 100_000].into()) })
}

fn append_long_until_killed(place: &Path) {
    let mut log = open_long(place);
    for number in replayed(&mut log).len() as u64.. {
        log.append(&long_record(number)).unwrap();
        log.sync().unwrap();
        println!("\n{ACKNOWLEDGED}{number}");
    }
}

/// Appends batches of random length, and prunes; acknowledges what was synced.
fn append_until_killed(place: &Path) {
    let mut log = open(place);
    let mut rng = rand::rng();
    let mut next = replayed(&mut log).last().map_or(0, |record| record.block().number + 1);
    loop {
        for _ in 0..rng.random_range(1..12) {
            log.append(&record(next)).unwrap();
            next += 1;
        }
        log.sync().unwrap();
        // The newline ends whatever libtest left on the line.
        println!("\n{ACKNOWLEDGED}{}", next - 1);
        if next.is_multiple_of(8) {
            log.prune(next.saturating_sub(60)).unwrap();
        }
    }
}

/// Starts the child of a test, kills it when it is `enough`, which is asked after each batch with their number, and gives the
/// last record that it acknowledged.
fn run_and_kill(test: &str, place: &Path, mut enough: impl FnMut(usize) -> bool) -> u64 {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    let mut child = command.env(PLACE, place).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let acknowledged = |line: std::io::Result<String>| line.ok()?.strip_prefix(ACKNOWLEDGED)?.parse::<u64>().ok();
    let mut acknowledged = lines.filter_map(acknowledged);
    let mut last = None;
    for batches in 1.. {
        let Some(number) = acknowledged.next() else { break };
        last = Some(number);
        if enough(batches) {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    acknowledged.last().or(last).expect("the child died before it acknowledged anything")
}
