//! The interleavings, up to three preemptions, of readers, a commit and an unwind, for a table of two entries. The
//! protocol is the product's own file with the model checker's locks in it.

#[path = "../../src/cache/versions.rs"]
#[expect(dead_code, reason = "the product also asks its table for figures")]
mod versions;

mod sync {
    pub(super) use loom::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
}

use loom::{sync::Arc, thread};

use self::versions::{Dated, Index, Versions};

const KEYS: usize = 2;

/// Blocks: the second and the third are siblings on the first.
const BLOCKS: usize = 3;

/// The value of a key in a block's state: key 0 changes with every block, key 1 never.
fn value(block: usize, key: usize) -> usize {
    if key == 0 { 10 + block } else { 1 }
}

/// A table with a lock for each entry, as a shard has one for its entries.
struct Slots([sync::Mutex<Option<Dated<usize>>>; KEYS]);

impl Index for Slots {
    type Key = usize;
    type Value = usize;

    fn get(&self, key: &usize) -> Option<Dated<usize>> {
        self.0[*key].lock().unwrap().clone()
    }

    fn put(&self, key: usize, entry: Dated<usize>) {
        *self.0[key].lock().unwrap() = Some(entry);
    }

    fn holds(&self, key: &usize) -> bool {
        self.get(key).is_some()
    }

    fn replace(&self, key: usize, entry: Dated<usize>) {
        let mut slot = self.0[key].lock().unwrap();
        if slot.is_some() {
            *slot = Some(entry);
        }
    }

    fn clear(&self) {
        for slot in &self.0 {
            *slot.lock().unwrap() = None;
        }
    }
}

type Protocol = Versions<usize, Slots>;

fn protocol() -> Arc<Protocol> {
    let protocol = Versions::new(Slots(std::array::from_fn(|_| sync::Mutex::new(None))));
    protocol.reset(0);
    Arc::new(protocol)
}

/// Reads a key at a block as a reader does, and holds what the cache gives to the block's state.
fn read(protocol: &Protocol, reader: versions::Version, block: usize, key: usize) {
    match protocol.get(reader, &key) {
        Some(cached) => assert_eq!(cached, value(block, key), "key {key} of block {block}"),
        None => protocol.put_all(reader, std::iter::once((key, value(block, key)))),
    }
}

fn read_if_in_step(protocol: &Protocol, block: usize, keys: &[usize]) {
    if let Some(reader) = protocol.version_of(&block) {
        keys.iter().for_each(|key| read(protocol, reader, block, *key));
    }
}

fn advance(protocol: &Protocol, from: usize, to: usize) {
    protocol.advance(&from, to, std::iter::once((0, value(to, 0))));
}

/// Checks all schedules with at most three preemptions, which is where such races lie.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn a_commit_meets_a_reader_before_it_and_one_after_it() {
    check(|| {
        let protocol = protocol();
        let before = protocol.version_of(&0).unwrap();
        let old = thread::spawn({
            let protocol = Arc::clone(&protocol);
            // Twice: the second read may find what the first one put.
            move || [0, 1, 0].iter().for_each(|key| read(&protocol, before, 0, *key))
        });
        let new = thread::spawn({
            let protocol = Arc::clone(&protocol);
            move || read_if_in_step(&protocol, 1, &[0, 0])
        });
        advance(&protocol, 0, 1);
        read_if_in_step(&protocol, 1, &[0, 1]);
        old.join().unwrap();
        new.join().unwrap();
        read(&protocol, before, 0, 0);
        read_if_in_step(&protocol, 1, &[0, 1]);
    });
}

#[test]
fn an_unwind_leaves_readers_of_the_lost_branch_behind() {
    check(|| {
        let protocol = protocol();
        advance(&protocol, 0, 1);
        let lost = protocol.version_of(&1).unwrap();
        let reader = thread::spawn({
            let protocol = Arc::clone(&protocol);
            move || [0, 0].iter().for_each(|key| read(&protocol, lost, 1, *key))
        });
        let beside = thread::spawn({
            let protocol = Arc::clone(&protocol);
            move || read_if_in_step(&protocol, 2, &[0])
        });
        protocol.reset(0);
        // A sibling of the same height.
        advance(&protocol, 0, 2);
        reader.join().unwrap();
        beside.join().unwrap();
        for block in 0..BLOCKS {
            read_if_in_step(&protocol, block, &[0, 1]);
        }
        read(&protocol, lost, 1, 0);
    });
}

#[test]
fn steps_that_do_not_lead_on_forget_everything() {
    check(|| {
        let protocol = protocol();
        read_if_in_step(&protocol, 0, &[0, 1]);
        // Two that step at the same time: the second one does not stand on the block that the cache is at.
        let sibling = thread::spawn({
            let protocol = Arc::clone(&protocol);
            move || advance(&protocol, 0, 2)
        });
        advance(&protocol, 0, 1);
        read_if_in_step(&protocol, 1, &[0, 1]);
        sibling.join().unwrap();
        for block in 0..BLOCKS {
            read_if_in_step(&protocol, block, &[0, 1]);
        }
    });
}
