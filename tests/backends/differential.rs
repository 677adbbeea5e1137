//! Random histories of blocks through resolution, fold, commit and unwinding, on every backend: roots and leaves are the
//! oracle's, nodes are those of a fresh load, in whatever way a state was reached.

use std::sync::Arc;

use alloy_primitives::B256;
use foldgate::{
    MemoryStore, TrieReader, TrieStore,
    bal::{Bal, BalLimits},
    core::{
        EmptyAccounts, HashedPostState, KeyHasher, Layer, resolve,
        trie::{FoldOptions, bulk::StateLoad, fold},
        unwind::unwind,
    },
};
use foldgate_testing::{
    conformance::StoreFactory,
    sim::{Sim, SimBlock, SimSize, load_items},
};

use crate::support::{assert_state, load};

stamp_all!([histories_agree_with_the_oracle, unwinding_leads_back_to_each_ancestor]);

const SIZES: [SimSize; 3] = [
    SimSize { addresses: 3, slots: 3, touched: 3, written: 3 },
    SimSize { addresses: 40, slots: 12, touched: 20, written: 8 },
    SimSize { addresses: 600, slots: 80, touched: 120, written: 30 },
];

/// Folds a block onto the store's tip, from its list or from its writes, and commits it.
fn advance<S: TrieStore>(store: &S, block: &SimBlock, from_list: bool, options: &FoldOptions) {
    let parent = store.snapshot().unwrap();
    let state = if from_list {
        let limits = BalLimits::from(&block.facts);
        let list = Bal::decode_checked(block.raw.clone(), Some(block.bal_hash), &limits).unwrap();
        Arc::clone(list.post_state())
    } else {
        let (mut state, mut hasher) = (HashedPostState::new(EmptyAccounts::Keep), KeyHasher::default());
        block.writes.iter().for_each(|(_, writes)| state.apply_writes(writes, &mut hasher));
        Arc::new(state)
    };
    let changes = resolve(&state, &parent).unwrap();
    let outcome = fold(&parent, changes, options).unwrap();
    assert_eq!(outcome.computed_state_root, block.state_root, "block {}", block.facts.block);
    let layer = Layer::new(parent.anchor().block, block.facts.block, outcome, Some(block.raw.clone()));
    store.commit(&layer.to_batch()).unwrap();
}

/// The nodes of the state, in preorder, as a fresh load into memory has them, are those of the store.
fn assert_nodes<S: TrieStore>(store: &S, block: &SimBlock) {
    let (fresh, recorder) = (MemoryStore::new(), Recorder::default());
    let items = load_items(&block.state).into_iter().map(Ok::<_, std::convert::Infallible>);
    let source = RecordingSource { inner: StateLoad::new(items, block.facts.block), recorder: &recorder };
    fresh.load(source).unwrap();
    let snapshot = store.snapshot().unwrap();
    for (key, node) in recorder.nodes.borrow().iter() {
        assert_eq!(&snapshot.node(key).unwrap(), node, "{key:?} after block {}", block.facts.block);
    }
}

type Nodes = Vec<(foldgate::core::NodeKey, Option<alloy_primitives::Bytes>)>;

#[derive(Default)]
struct Recorder {
    nodes: std::cell::RefCell<Nodes>,
}

/// Passes a load on and keeps the nodes that it writes.
struct RecordingSource<'a, L> {
    inner: L,
    recorder: &'a Recorder,
}

impl<L: foldgate::core::LoadSource> foldgate::core::LoadSource for RecordingSource<'_, L> {
    type Error = L::Error;

    fn next_rows(&mut self) -> Result<Option<foldgate::core::Rows>, Self::Error> {
        let rows = self.inner.next_rows()?;
        if let Some(rows) = &rows {
            self.recorder.nodes.borrow_mut().extend(rows.nodes.iter().cloned());
        }
        Ok(rows)
    }

    fn anchor(&mut self) -> Result<foldgate::core::StateAnchor, Self::Error> {
        self.inner.anchor()
    }
}

fn histories_agree_with_the_oracle<F: StoreFactory>(factory: &F) {
    // A factory may give the same place again: one history for each.
    let (seed, size) = (77, SIZES[1]);
    history(factory.fresh(), seed, size, 24);
    for (seed, size) in (100..).zip(SIZES) {
        history(MemoryStore::new(), seed, size, 12);
    }
}

fn history<S: TrieStore>(store: S, seed: u64, size: SimSize, length: u64) {
    println!("seed {seed}, {size:?}");
    let mut sim = Sim::new(seed, size);
    let mut block = sim.genesis();
    let store = load(store, &block);
    for number in 1..=length {
        block = sim.child(&block);
        let options = if number % 3 == 0 { FoldOptions::SERIAL } else { FoldOptions::FORCED_PARALLEL };
        advance(&*store, &block, number % 2 == 0, &options);
        assert_nodes(&*store, &block);
    }
    assert_state(&*store, &block);
}

fn unwinding_leads_back_to_each_ancestor<F: StoreFactory>(factory: &F) {
    let seed = 78;
    println!("seed {seed}");
    let mut sim = Sim::new(seed, SIZES[1]);
    let mut blocks = vec![sim.genesis()];
    let store = load(factory.fresh(), &blocks[0]);
    for _ in 0..12 {
        let block = sim.child(&blocks[blocks.len() - 1]);
        advance(&*store, &block, true, &FoldOptions::default());
        blocks.push(block);
    }
    for target in [11, 7, 3, 0] {
        let anchor = unwind(&*store, blocks[target].facts.block).unwrap();
        assert_eq!(anchor, blocks[target].anchor());
        assert_state(&*store, &blocks[target]);
        assert_nodes(&*store, &blocks[target]);
        // On to a sibling of what was left, and back again.
        let sibling = sim.child(&blocks[target]);
        advance(&*store, &sibling, false, &FoldOptions::default());
        assert_state(&*store, &sibling);
        unwind(&*store, blocks[target].facts.block).unwrap();
    }
    assert!(unwind(&*store, foldgate::core::BlockNumHash::new(0, B256::ZERO)).is_err(), "no such ancestor");
    assert_state(&*store, &blocks[0]);
}
