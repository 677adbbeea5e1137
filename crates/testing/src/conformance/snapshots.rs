//! Snapshots stay what they were.

use foldgate_core::{TrieReader, TrieStore};
use rand::Rng;

use super::{
    StoreFactory,
    world::{World, good, seeded},
};

/// Snapshots taken before commits and unwinds serve their own block, between and after them.
///
/// # Panics
/// Where the backend falls short.
pub fn snapshots_outlive_commits_and_unwinds(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (mut world, store) = (World::random(&mut rng), factory.fresh());
    world.load_into(&store);
    let genesis = (good(store.snapshot()), world.tip().clone());
    for parent in 0..5 {
        world.extend_randomly(&mut rng);
        good(store.commit(&world.batch_from(parent)));
        world.check_snapshot(&genesis.0, &genesis.1);
    }
    let fifth = (good(store.snapshot()), world.tip().clone());
    good(store.unwind(&world.unwind_to(2)));
    let second = (good(store.snapshot()), world.tip().clone());
    for parent in 2..8 {
        world.extend_randomly(&mut rng);
        good(store.commit(&world.batch_from(parent)));
        for (snapshot, moment) in [&genesis, &fifth, &second] {
            world.check_snapshot(snapshot, moment);
        }
    }
    world.check_store(&store);
}

/// A clone serves the same block as its original, also when the original is gone.
///
/// # Panics
/// Where the backend falls short.
pub fn a_clone_sees_the_same_block(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (mut world, store) = (World::random(&mut rng), factory.fresh());
    world.load_into(&store);
    let (original, moment) = (good(store.snapshot()), world.tip().clone());
    world.extend_randomly(&mut rng);
    good(store.commit(&world.batch_from(0)));
    let clone = original.clone();
    assert_eq!(clone.anchor(), original.anchor());
    world.check_snapshot(&clone, &moment);
    drop(original);
    world.extend_randomly(&mut rng);
    good(store.commit(&world.batch_from(1)));
    world.check_snapshot(&clone, &moment);
}

/// A snapshot can be read after its store was dropped.
///
/// # Panics
/// Where the backend falls short.
pub fn a_snapshot_outlives_its_store(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (mut world, store) = (World::random(&mut rng), factory.fresh());
    world.load_into(&store);
    let (old, genesis) = (good(store.snapshot()), world.tip().clone());
    world.extend_randomly(&mut rng);
    good(store.commit(&world.batch_from(0)));
    let new = good(store.snapshot());
    drop(store);
    world.check_snapshot(&old, &genesis);
    world.check_snapshot(&new, world.tip());
}

/// Fifty snapshots of as many blocks live at once, and are dropped in any order.
///
/// # Panics
/// Where the backend falls short.
pub fn many_snapshots_of_many_blocks_live_at_once(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (mut world, store) = (World::random(&mut rng), factory.fresh());
    world.load_into(&store);
    let mut alive = vec![(good(store.snapshot()), world.tip().clone())];
    for parent in 0..50 {
        world.extend_randomly(&mut rng);
        good(store.commit(&world.batch_from(parent)));
        alive.push((good(store.snapshot()), world.tip().clone()));
    }
    while !alive.is_empty() {
        let (snapshot, moment) = alive.swap_remove(rng.random_range(0..alive.len()));
        world.check_snapshot(&snapshot, &moment);
        drop(snapshot);
        if alive.len() % 10 == 0 {
            world.extend_randomly(&mut rng);
            good(store.commit(&world.batch_from(world.tip().anchor.block.number - 1)));
        }
    }
    world.check_store(&store);
}
