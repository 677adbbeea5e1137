//! A process that commits, or loads, is killed again and again; what it leaves is held to the model.
//!
//! A backend's test calls [`survives_kills`], which starts the test's own binary again as the process to be killed: in
//! that process the same call commits blocks until it dies. Each commit that returned is acknowledged on standard
//! output. [`survives_killed_loads`] does the same with a load, of which each piece is acknowledged. A kill of the
//! process is not a loss of power: nothing here tests the disk's caches.
//!
//! Invariant: block `n` is the same in every process, so that whoever finds a store at height `n` knows all of it.

use std::{
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use alloy_primitives::{B256, Bytes, U256, keccak256};
use foldgate_core::{
    Account, BalStore, BlockNumHash, MemoryStore, Nibbles, NodeKey, TrieId,
    trie::bulk::{LoadObserver, LoadProgress},
};
use rand::Rng;

use super::{
    loading::check_empty,
    states::Whole,
    world::{State, World, good, seeded},
};

const PLACE: &str = "FOLDGATE_KILL_PLACE";
const ACKNOWLEDGED: &str = "acknowledged ";
/// A child that nobody kills ends by itself.
const MOST_BLOCKS: u64 = 5000;

/// What is loaded where loads are killed, and in which pieces.
const LOADED_ACCOUNTS: u64 = 3000;
const LOADED_PIECE_BYTES: usize = 64 << 10;

/// Kills a committing process `kills` times and holds the store in `place` to the model after each. `test` is the name
/// of the calling `#[test]`, as libtest knows it; `open` opens the store there.
///
/// # Panics
/// Where the backend falls short, or if no process can be started.
pub fn survives_kills<S: BalStore>(test: &str, place: &Path, kills: u32, open: impl Fn(&Path) -> S) {
    if let Some(place) = env::var_os(PLACE) {
        return commit_until_killed(&open(Path::new(&place)));
    }
    let mut rng = seeded();
    let mut height = 0;
    for _ in 0..kills {
        let acknowledged = run_and_kill(test, place, rng.random_range(1..8), rng.random_range(0..30_000));
        let store = open(place);
        let tip = good(store.tip()).map(|tip| tip.block.number);
        let Some(tip) = tip else { panic!("the load was acknowledged, and the store is empty") };
        assert!(tip >= acknowledged, "block {acknowledged} was acknowledged, the store is at {tip}");
        assert!(tip >= height, "the store fell back from {height} to {tip}");
        height = tip;
        world_at(tip).check_store(&store);
    }
    assert!(height > 0, "no block was ever committed");
}

/// Kills a loading process `kills` times, and once more when all its rows are written: the store in `place` is empty
/// after each kill, or, after the last, whole. Then loads it, and holds it to the model. `test` and `open` are as for
/// [`survives_kills`].
///
/// # Panics
/// Where the backend falls short, or if no process can be started.
pub fn survives_killed_loads<S: BalStore>(test: &str, place: &Path, kills: u32, open: impl Fn(&Path) -> S) {
    let state = Whole::of_size(LOADED_ACCOUNTS);
    let block = BlockNumHash::new(0, B256::repeat_byte(7));
    let load = || state.load(block).with_piece_bytes(LOADED_PIECE_BYTES);
    if let Some(place) = env::var_os(PLACE) {
        good(load().observed_by(Slowly(0)).load_into(&open(Path::new(&place))));
        return;
    }
    let mut rng = seeded();
    let mut reports = 0;
    good(load().observed_by(|_: &LoadProgress| reports += 1).load_into(&MemoryStore::new()));
    assert!(reports > 10, "the load has too few pieces to be killed at");
    for kill in 0..=kills {
        let (reports, wait) = if kill == kills { (reports, 30_000) } else { (rng.random_range(1..reports / 2), 5_000) };
        run_and_kill(test, place, reports, rng.random_range(0..wait));
        let store = open(place);
        if good(store.tip()).is_some() {
            assert!(kill == kills, "a killed load was finished");
            return state.check_store(&store, block);
        }
        check_empty(&store);
    }
    let store = open(place);
    good(load().load_into(&store));
    state.check_store(&store, block);
}

/// Gives whoever kills the time to do it.
struct Slowly(u64);

impl LoadObserver for Slowly {
    fn progress(&mut self, progress: &LoadProgress) {
        self.0 += 1;
        println!("\n{ACKNOWLEDGED}{}", self.0);
        if !progress.complete {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Starts the child, lets it commit `blocks` blocks and run on for a moment, kills it. Gives the last height that it
/// acknowledged.
fn run_and_kill(test: &str, place: &Path, blocks: usize, then_wait_us: u64) -> u64 {
    let mut command = Command::new(good(env::current_exe()));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(PLACE, place);
    let mut child = good(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn());
    let Some(stdout) = child.stdout.take() else { panic!("the child has no standard output") };
    let mut lines = BufReader::new(stdout).lines();
    let acknowledged = |line: std::io::Result<String>| line.ok()?.strip_prefix(ACKNOWLEDGED)?.parse::<u64>().ok();
    let first: Vec<u64> = lines.by_ref().filter_map(acknowledged).take(blocks).collect();
    thread::sleep(Duration::from_micros(then_wait_us));
    good(child.kill());
    good(child.wait());
    let last = first.into_iter().chain(lines.filter_map(acknowledged)).last();
    last.unwrap_or_else(|| panic!("the child died before it committed anything"))
}

fn commit_until_killed<S: BalStore>(store: &S) {
    let mut world = match good(store.tip()) {
        Some(tip) => world_at(tip.block.number),
        None => {
            let world = world_at(0);
            world.load_into(store);
            world
        }
    };
    while world.tip().anchor.block.number < MOST_BLOCKS {
        let parent = world.tip().anchor.block.number;
        grow(&mut world);
        good(store.commit(&world.batch_from(parent)));
        // The newline ends whatever libtest left on the line.
        println!("\n{ACKNOWLEDGED}{}", parent + 1);
    }
}

fn world_at(height: u64) -> World {
    let mut world = World::new(0, state_at(0));
    (0..height).for_each(|_| grow(&mut world));
    world
}

fn grow(world: &mut World) {
    let number = world.tip().anchor.block.number + 1;
    let bal = vec![number as u8; 5000];
    world.extend(state_at(number), Some(Bytes::from(bal)));
}

/// Rows of which each block replaces most and deletes some.
fn state_at(number: u64) -> State {
    let mut state = State::default();
    for at in (0..60_u64).filter(|at| !(at + number).is_multiple_of(7)) {
        let key = keccak256(at.to_be_bytes());
        state.accounts.insert(key, Account { nonce: number, ..Account::default() });
        state.slots.insert((B256::ZERO, key), U256::from(number + 1));
        let node = NodeKey::new(TrieId::Accounts, Nibbles::unpack(key).slice(..4));
        state.nodes.insert(node, vec![number as u8; 300].into());
    }
    state
}
