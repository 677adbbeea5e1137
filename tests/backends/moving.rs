//! A whole state moves from one backend to the next, and nothing of it is lost.

use foldgate::{
    TrieReader, TrieStore,
    core::trie::bulk::{StateItems, StateLoad},
};
use foldgate_testing::{
    conformance::StoreFactory,
    sim::{Sim, SimSize},
};

use crate::support::{InMemory, OnMdbx, OnRedb, assert_state, load};

stamp_all!([a_state_moves_through_all_backends]);

/// Loads into `to` what `from` holds.
fn move_state(from: &impl TrieStore, to: &impl TrieStore) {
    let snapshot = from.snapshot().unwrap();
    let anchor = snapshot.anchor();
    let load = StateLoad::new(StateItems::new(snapshot), anchor.block).expecting(anchor.state_root);
    assert_eq!(load.with_piece_bytes(2000).with_threads(3).load_into(to).unwrap(), anchor);
}

fn a_state_moves_through_all_backends(factory: &impl StoreFactory) {
    let size = SimSize { addresses: 300, slots: 60, touched: 80, written: 20 };
    let genesis = Sim::new(7, size).genesis();
    let memory = load(InMemory.fresh(), &genesis);
    let (on_redb, on_mdbx) = (OnRedb::default(), OnMdbx::default());
    let (redb, mdbx, last) = (on_redb.fresh(), on_mdbx.fresh(), factory.fresh());
    move_state(&*memory, &redb);
    move_state(&redb, &mdbx);
    move_state(&mdbx, &last);
    assert_state(&last, &genesis);
}
