//! What survives the store's being closed.

use foldgate_core::{LoadError, Refusal, TrieStore};

use super::{
    DurableFactory,
    commits::random_history,
    loading::check_empty,
    world::{World, good, refusal, seeded},
};

/// Everything that was committed is there after reopening, and commits go on from there.
///
/// # Panics
/// Where the backend falls short.
pub fn everything_survives_reopening(factory: &impl DurableFactory) {
    let mut rng = seeded();
    let (mut world, mut store) = (World::random(&mut rng), factory.fresh());
    world.load_into(&store);
    store = factory.reopen(store);
    world.check_store(&store);
    for parent in 0..6 {
        world.extend_randomly(&mut rng);
        good(store.commit(&world.batch_from(parent)));
        if parent % 2 == 0 {
            store = factory.reopen(store);
            world.check_store(&store);
        }
    }
    good(store.unwind(&world.unwind_to(4)));
    store = factory.reopen(store);
    world.check_store(&store);
    match store.load(world.source(3)) {
        Err(LoadError::Store(error)) => {
            assert_eq!(refusal(Err::<(), _>(error)), Refusal::NotEmpty { tip: world.tip().anchor });
        }
        result => panic!("a second load gave {result:?}"),
    }
    world.extend_randomly(&mut rng);
    good(store.commit(&world.batch_from(4)));
    world.check_store(&factory.reopen(store));
}

/// A store that was never loaded is empty when it is opened again, and can be loaded then.
///
/// # Panics
/// Where the backend falls short.
pub fn an_empty_store_reopens_empty(factory: &impl DurableFactory) {
    let store = factory.reopen(factory.fresh());
    check_empty(&store);
    let world = World::random(&mut seeded());
    world.load_into(&store);
    world.check_store(&factory.reopen(store));
}

/// What was refused is not there after reopening either.
///
/// # Panics
/// Where the backend falls short.
pub fn refused_and_failed_writes_leave_nothing_behind(factory: &impl DurableFactory) {
    let mut rng = seeded();
    let (mut world, mut store) = (World::random(&mut rng), factory.fresh());
    world.load_into(&store);
    world.extend_randomly(&mut rng);
    let mut batch = world.batch_from(0);
    batch.rows.accounts = vec![(world.pool.keys[1], None), (world.pool.keys[0], None)];
    assert_eq!(refusal(store.commit(&batch)), Refusal::Unsorted { table: "account", position: 1 });
    store = factory.reopen(store);
    assert_eq!(good(store.tip()), Some(world.genesis().anchor));
    good(store.commit(&world.batch_from(0)));
    world.check_store(&factory.reopen(store));
}

/// The random history, with the store closed and opened in between.
///
/// # Panics
/// Where the backend falls short.
pub fn random_histories_with_reopening_match_the_model(factory: &impl DurableFactory) {
    random_history(factory.fresh(), 60, |store| factory.reopen(store));
}
