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

use common::{open, record, replayed};
use foldgate_core::RecordLog;
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
        let acknowledged = run_and_kill(dir.path(), rng.random_range(1..20), rng.random_range(0..10_000));
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

/// Starts the child, kills it some time after so many batches, and gives the last record that it acknowledged.
fn run_and_kill(place: &Path, batches: usize, then_wait_us: u64) -> u64 {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "what_was_acknowledged_survives_kills", "--nocapture", "--test-threads=1"]);
    let mut child = command.env(PLACE, place).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let acknowledged = |line: std::io::Result<String>| line.ok()?.strip_prefix(ACKNOWLEDGED)?.parse::<u64>().ok();
    let first: Vec<_> = lines.by_ref().filter_map(acknowledged).take(batches).collect();
    thread::sleep(Duration::from_micros(then_wait_us));
    child.kill().unwrap();
    child.wait().unwrap();
    let last = first.into_iter().chain(lines.filter_map(acknowledged)).last();
    last.expect("the child died before it acknowledged anything")
}
