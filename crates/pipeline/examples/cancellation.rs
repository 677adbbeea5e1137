//! How long it takes until the executors of a block's descendants see that it is invalid, and that they have to stop:
//! `cargo run --release -p foldgate-pipeline --example cancellation`.
//!
//! A chain of nine blocks is in flight. The first one is rejected; the clock runs from there until an executor of one of
//! the eight above it has its answer. Either all eight wait in a read of their parent's state, or the last one executes,
//! and polls.

use std::{
    convert::Infallible,
    error::Error,
    fmt,
    hint::black_box,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use alloy_primitives::{B256, keccak256};
use foldgate_core::{MemoryStore, StateReader, TrieStore, trie::bulk::StateLoad};
use foldgate_pipeline::{Begun, BlockHandle, BlockRequest, Halt, Pipeline, PipelineConfig, ReadError};
use foldgate_testing::sim::{Sim, SimSize, load_items};

const DEPTH: usize = 8;
const ROUNDS: usize = 2000;
/// Long enough for the executors to be where they wait. The clock does not run.
const SETTLE: Duration = Duration::from_micros(300);

type Handle = BlockHandle<<MemoryStore as TrieStore>::Snapshot>;

/// Why the first block is invalid.
#[derive(Debug)]
struct Rejected;

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rejected")
    }
}

impl Error for Rejected {}

fn main() -> Result<(), Box<dyn Error>> {
    let mut sim = Sim::new(1, SimSize::default());
    let genesis = sim.genesis();
    let store = Arc::new(MemoryStore::new());
    let items = load_items(&genesis.state).into_iter().map(Ok::<_, Infallible>);
    store.load(StateLoad::new(items, genesis.facts.block))?;
    let pipeline = Pipeline::open(store, PipelineConfig::default())?;
    let (mut each, mut last, mut polling) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Each round has blocks of its own: an invalid one is remembered.
        let mut parent = genesis.clone();
        let mut handles = Vec::new();
        for _ in 0..=DEPTH {
            let block = sim.child(&parent);
            match pipeline.begin(BlockRequest::new(block.facts))? {
                Begun::Started(handle) => handles.push(handle),
                Begun::Known(_) => unreachable!("it is new"),
            }
            parent = block;
        }
        if round % 2 == 0 {
            let took = waiting_in_reads(handles);
            last.extend(took.iter().max());
            each.extend(took);
        } else {
            polling.push(poll(handles));
        }
    }
    report("waiting in a read, each of eight", &mut each);
    report("waiting in a read, the last of eight", &mut last);
    report("polling, the eighth", &mut polling);
    Ok(())
}

/// All descendants wait in a read of the parent's state.
fn waiting_in_reads(mut handles: Vec<Handle>) -> Vec<Duration> {
    let first = handles.remove(0);
    let ready = Barrier::new(DEPTH + 1);
    thread::scope(|scope| {
        let executors: Vec<_> = handles
            .iter()
            .map(|handle| {
                let (view, ready) = (handle.parent_state(), &ready);
                scope.spawn(move || {
                    ready.wait();
                    let read = view.account_info(&B256::ZERO);
                    let seen = Instant::now();
                    assert!(matches!(read, Err(ReadError::Halted(Halt::AncestorInvalid(_)))), "{read:?}");
                    seen
                })
            })
            .collect();
        ready.wait();
        thread::sleep(SETTLE);
        let begin = Instant::now();
        let _ticket = first.reject(Rejected);
        // UNWRAP: an executor's panic is this program's.
        executors.into_iter().map(|executor| executor.join().unwrap() - begin).collect()
    })
}

/// The last descendant executes: a few hundred nanoseconds of work, and a look at its token.
fn poll(mut handles: Vec<Handle>) -> Duration {
    let first = handles.remove(0);
    let ready = Barrier::new(2);
    thread::scope(|scope| {
        let executor = scope.spawn(|| {
            let mut work = B256::ZERO;
            ready.wait();
            while handles[DEPTH - 1].check_cancelled().is_ok() {
                work = black_box(keccak256(work));
            }
            Instant::now()
        });
        ready.wait();
        thread::sleep(SETTLE);
        let begin = Instant::now();
        let _ticket = first.reject(Rejected);
        // UNWRAP: an executor's panic is this program's.
        executor.join().unwrap() - begin
    })
}

fn report(what: &str, took: &mut [Duration]) {
    took.sort();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    let [median, p99, max] = [at(0.5), at(0.99), at(1.0)];
    let within = took.iter().filter(|took| **took <= Duration::from_millis(1)).count() as f64 / took.len() as f64;
    println!("{what}: {median:?} median, {p99:?} p99, {max:?} max; {:.2} % within 1 ms", within * 100.0);
}
