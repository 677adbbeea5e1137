//! Threads that read through one cache, in batches and one by one, while commits and unwinds go on: whatever they read is
//! what their snapshot says without the cache.

use std::{
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use foldgate_core::{
    Cached, MemorySnapshot, MemoryStore, NodeKey, PageCache, StateReader, TrieId, TrieReader, TrieStore,
};
use foldgate_testing::conformance::world::{World, seeded};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// Reads a few random records both ways.
fn compare(world: &World, reader: &Cached<MemorySnapshot>, rng: &mut StdRng) {
    let bare = reader.snapshot();
    let mut keys: Vec<_> = (0..rng.random_range(1..8)).filter_map(|_| world.pool.keys.choose(rng).copied()).collect();
    keys.sort_unstable();
    let pairs: Vec<_> = keys.iter().map(|address| (*address, keys[0])).collect();
    let node = |rng: &mut StdRng| {
        let trie = if rng.random() { TrieId::Accounts } else { TrieId::Storage(keys[0]) };
        NodeKey::new(trie, *world.pool.paths.choose(rng).unwrap())
    };
    let mut nodes: Vec<_> = (0..6).map(|_| node(rng)).collect();
    nodes.sort_unstable();
    match rng.random_range(0..6) {
        0 => assert_eq!(reader.accounts(&keys), bare.accounts(&keys)),
        1 => assert_eq!(reader.slots(&pairs), bare.slots(&pairs)),
        2 => assert_eq!(reader.nodes(&nodes), bare.nodes(&nodes)),
        3 => assert_eq!(reader.account(&keys[0]), bare.account(&keys[0])),
        4 => assert_eq!(reader.storage(&keys[0], &keys[0]), bare.storage(&keys[0], &keys[0])),
        _ => assert_eq!(reader.node(&nodes[0]), bare.node(&nodes[0])),
    }
}

#[test]
fn every_read_is_the_snapshots() {
    for budget in [8 << 10, 64 << 20] {
        let mut rng = seeded();
        let (mut world, store) = (World::random(&mut rng), MemoryStore::new());
        world.load_into(&store);
        let cache = Arc::new(PageCache::new(budget));
        cache.reset(world.tip().anchor.block);
        let newest = RwLock::new(Cached::new(store.snapshot().unwrap(), Arc::clone(&cache)));
        let done = AtomicBool::new(false);
        let pool = world.clone();
        thread::scope(|scope| {
            for _ in 0..3 {
                let mut rng = StdRng::seed_from_u64(rng.random());
                let (newest, done, pool, store, cache) = (&newest, &done, &pool, &store, &cache);
                scope.spawn(move || {
                    let mut readers = vec![newest.read().unwrap().clone()];
                    while !done.load(Ordering::Acquire) {
                        match rng.random_range(0..40) {
                            0 => readers.push(newest.read().unwrap().clone()),
                            // Perhaps ahead of the cache.
                            1 => readers.push(Cached::new(store.snapshot().unwrap(), Arc::clone(cache))),
                            2 if readers.len() > 3 => drop(readers.swap_remove(rng.random_range(0..3))),
                            _ => {}
                        }
                        compare(pool, readers.choose(&mut rng).unwrap(), &mut rng);
                    }
                });
            }
            for _ in 0..300 {
                let tip = world.tip().anchor.block.number;
                if tip > 2 && rng.random_ratio(1, 12) {
                    store.unwind(&world.unwind_to(tip - rng.random_range(1..3))).unwrap();
                    cache.reset(world.tip().anchor.block);
                } else {
                    world.extend_randomly(&mut rng);
                    let batch = world.batch_from(tip);
                    store.commit(&batch).unwrap();
                    cache.advance(batch.parent, world.tip().anchor.block, &batch.rows);
                }
                *newest.write().unwrap() = Cached::new(store.snapshot().unwrap(), Arc::clone(&cache));
                thread::yield_now();
            }
            // Pairs with the readers' acquire.
            done.store(true, Ordering::Release);
        });
        let stats = cache.stats();
        println!("{budget}: {stats:?}");
        assert!(stats.hits > 0 && stats.misses > 0 && stats.bytes <= budget as u64);
    }
}
