//! The interleavings, up to three preemptions, of readers, a commit and an unwind, for a table of two entries. The
//! protocol is the product's own file with the model checker's locks in it.
//!
//! That the models catch a fault is shown by copies that have one (`broken.rs`).

#[path = "../../src/cache/versions.rs"]
#[expect(dead_code, reason = "the product also asks its table for figures")]
mod versions;

pub(super) mod sync {
    pub(crate) use loom::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
}

use loom::{sync::Arc, thread};

use self::versions::{Dated, Index, Versions};

const KEYS: usize = 2;

/// Blocks: the second and the third are siblings on the first.
const BLOCKS: usize = 3;

/// The value of a key in a block's state: key 0 changes with every block, key 1 with the second one alone, which a step to
/// its sibling does not tell.
fn value(block: usize, key: usize) -> usize {
    if key == 0 { 10 + block } else { usize::from(block == 1) }
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

/// What the models need of the protocol.
pub(super) trait Protocol: Send + Sync + 'static {
    type Version: Copy + Send;

    fn version_of(&self, block: usize) -> Option<Self::Version>;
    fn get(&self, reader: Self::Version, key: usize) -> Option<usize>;
    fn put(&self, reader: Self::Version, key: usize, value: usize);
    fn advance(&self, from: usize, to: usize, changed: impl Iterator<Item = (usize, usize)>);
    fn reset(&self, to: usize);
}

impl Protocol for Versions<usize, Slots> {
    type Version = versions::Version;

    fn version_of(&self, block: usize) -> Option<versions::Version> {
        self.version_of(&block)
    }

    fn get(&self, reader: versions::Version, key: usize) -> Option<usize> {
        self.get(reader, &key)
    }

    fn put(&self, reader: versions::Version, key: usize, value: usize) {
        self.put_all(reader, std::iter::once((key, value)));
    }

    fn advance(&self, from: usize, to: usize, changed: impl Iterator<Item = (usize, usize)>) {
        self.advance(&from, to, changed);
    }

    fn reset(&self, to: usize) {
        self.reset(to);
    }
}

fn product() -> Versions<usize, Slots> {
    Versions::new(Slots(std::array::from_fn(|_| sync::Mutex::new(None))))
}

/// Reads a key at a block as a reader does, and holds what the cache gives to the block's state.
fn read<P: Protocol>(protocol: &P, reader: P::Version, block: usize, key: usize) {
    match protocol.get(reader, key) {
        Some(cached) => assert_eq!(cached, value(block, key), "key {key} of block {block}"),
        None => protocol.put(reader, key, value(block, key)),
    }
}

fn read_if_in_step<P: Protocol>(protocol: &P, block: usize, keys: &[usize]) {
    if let Some(reader) = protocol.version_of(block) {
        keys.iter().for_each(|key| read(protocol, reader, block, *key));
    }
}

fn advance<P: Protocol>(protocol: &P, from: usize, to: usize) {
    let changed = (0..KEYS).filter(|key| value(from, *key) != value(to, *key));
    protocol.advance(from, to, changed.map(|key| (key, value(to, key))));
}

/// Checks all schedules with at most three preemptions, which is where such races lie.
pub(super) fn check<P: Protocol>(protocol: impl Fn() -> P + Send + Sync + 'static, model: fn(&Arc<P>)) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let protocol = Arc::new(protocol());
        protocol.reset(0);
        model(&protocol);
    });
}

/// A commit meets a reader before it and one after it.
pub(super) fn commit<P: Protocol>(protocol: &Arc<P>) {
    let before = protocol.version_of(0).unwrap();
    let old = thread::spawn({
        let protocol = Arc::clone(protocol);
        // Twice: the second read may find what the first one put.
        move || [0, 1, 0].iter().for_each(|key| read(&*protocol, before, 0, *key))
    });
    let new = thread::spawn({
        let protocol = Arc::clone(protocol);
        move || read_if_in_step(&*protocol, 1, &[0, 0])
    });
    advance(&**protocol, 0, 1);
    read_if_in_step(&**protocol, 1, &[0, 1]);
    old.join().unwrap();
    new.join().unwrap();
    read(&**protocol, before, 0, 0);
    read_if_in_step(&**protocol, 1, &[0, 1]);
}

/// An unwind leaves readers of the lost branch behind.
pub(super) fn unwind<P: Protocol>(protocol: &Arc<P>) {
    advance(&**protocol, 0, 1);
    let lost = protocol.version_of(1).unwrap();
    let reader = thread::spawn({
        let protocol = Arc::clone(protocol);
        move || [0, 0].iter().for_each(|key| read(&*protocol, lost, 1, *key))
    });
    let beside = thread::spawn({
        let protocol = Arc::clone(protocol);
        move || read_if_in_step(&*protocol, 2, &[0])
    });
    protocol.reset(0);
    read_if_in_step(&**protocol, 0, &[0]);
    // A sibling of the same height.
    advance(&**protocol, 0, 2);
    reader.join().unwrap();
    beside.join().unwrap();
    for block in 0..BLOCKS {
        read_if_in_step(&**protocol, block, &[0, 1]);
    }
    read(&**protocol, lost, 1, 0);
}

/// Steps that do not lead on forget everything.
pub(super) fn siblings<P: Protocol>(protocol: &Arc<P>) {
    read_if_in_step(&**protocol, 0, &[0, 1]);
    // Two that step at the same time: the second one does not stand on the block that the cache is at.
    let sibling = thread::spawn({
        let protocol = Arc::clone(protocol);
        move || advance(&*protocol, 0, 2)
    });
    advance(&**protocol, 0, 1);
    read_if_in_step(&**protocol, 1, &[0, 1]);
    sibling.join().unwrap();
    for block in 0..BLOCKS {
        read_if_in_step(&**protocol, block, &[0, 1]);
    }
}

#[test]
fn a_commit_meets_a_reader_before_it_and_one_after_it() {
    check(product, commit);
}

#[test]
fn an_unwind_leaves_readers_of_the_lost_branch_behind() {
    check(product, unwind);
}

#[test]
fn steps_that_do_not_lead_on_forget_everything() {
    check(product, siblings);
}
