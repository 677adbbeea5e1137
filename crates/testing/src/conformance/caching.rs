//! The page cache over the backend: it is there for speed alone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use foldgate_core::{CommitBatch, PageCache, TrieStore, cache::Cached};
use rand::Rng;

use super::{
    StoreFactory,
    concurrency::{READERS, check_stamp, stamped},
    world::{Moment, World, good, seeded},
};

/// None, a few dozen entries, and more than there is to keep.
const BUDGETS: [usize; 3] = [0, 10 << 10, 64 << 20];

fn follow(cache: &PageCache, batch: &CommitBatch) {
    let tip = batch.blocks.last().map_or(batch.parent, |block| block.anchor.block);
    cache.advance(batch.parent, tip, &batch.rows);
}

/// Readers through caches of several budgets, kept over commits and unwinds, give what the model says; cold and warm.
///
/// # Panics
/// Where a reader differs.
pub fn a_cache_answers_as_the_snapshot_does(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (mut world, store) = (World::random(&mut rng), factory.fresh());
    world.load_into(&store);
    let caches = BUDGETS.map(|budget| Arc::new(PageCache::new(budget)));
    caches.iter().for_each(|cache| cache.reset(world.tip().anchor.block));
    let mut readers: Vec<(Cached<_>, Moment)> = Vec::new();
    for _ in 0..25 {
        let tip = world.tip().anchor.block.number;
        match rng.random_range(0..10) {
            0..7 => {
                (0..rng.random_range(1..3)).for_each(|_| world.extend_randomly(&mut rng));
                let batch = world.batch_from(tip);
                good(store.commit(&batch));
                caches.iter().for_each(|cache| follow(cache, &batch));
            }
            7..9 if tip > 0 => {
                good(store.unwind(&world.unwind_to(rng.random_range(0..tip))));
                caches.iter().for_each(|cache| cache.reset(world.tip().anchor.block));
            }
            _ => readers.clear(),
        }
        for cache in &caches {
            readers.push((Cached::new(good(store.snapshot()), Arc::clone(cache)), world.tip().clone()));
        }
        for (reader, moment) in readers.iter().rev().take(9) {
            world.check_snapshot(reader, moment);
        }
    }
    for (reader, moment) in &readers {
        world.check_snapshot(reader, moment);
    }
    let [none, few, all] = caches.map(|cache| cache.stats());
    assert_eq!((none.hits, none.misses, none.entries), (0, 0, 0), "nothing is kept, nor looked for");
    assert!(few.bytes <= BUDGETS[1] as u64 && few.evictions > 0, "{few:?}");
    assert!(all.hits > all.misses && all.evictions <= all.misses, "{all:?}");
}

/// A reader that is newer or older than the cache, or of another branch, reads its own snapshot.
///
/// # Panics
/// Where a reader differs.
pub fn a_reader_out_of_step_does_without_the_cache(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (mut world, store) = (World::random(&mut rng), factory.fresh());
    world.load_into(&store);
    let cache = Arc::new(PageCache::new(BUDGETS[2]));
    let reader = || Cached::new(good(store.snapshot()), Arc::clone(&cache));
    let mut readers = vec![(reader(), world.tip().clone())];
    world.check_snapshot(&readers[0].0, world.tip());
    assert_eq!(cache.stats().misses, 0, "the cache was told of no block");
    cache.reset(world.tip().anchor.block);
    readers.push((reader(), world.tip().clone()));
    world.check_snapshot(&readers[1].0, world.tip());
    let check = |world: &World, readers: &[(Cached<_>, Moment)]| {
        // Twice: what the first reader left is what the second one meets.
        for (reader, moment) in readers.iter().chain(readers) {
            world.check_snapshot(reader, moment);
        }
    };
    for round in 0..4 {
        let tip = world.tip().anchor.block.number;
        world.extend_randomly(&mut rng);
        let batch = world.batch_from(tip);
        good(store.commit(&batch));
        // A commit that the cache is told of late, and every other one that it is never told of.
        readers.push((reader(), world.tip().clone()));
        check(&world, &readers);
        if round % 2 == 0 {
            follow(&cache, &batch);
            readers.push((reader(), world.tip().clone()));
            check(&world, &readers);
        }
    }
    good(store.unwind(&world.unwind_to(1)));
    readers.push((reader(), world.tip().clone()));
    check(&world, &readers);
    let batch = {
        world.extend_randomly(&mut rng);
        world.batch_from(1)
    };
    good(store.commit(&batch));
    // It was told of another block of this height.
    follow(&cache, &batch);
    readers.push((reader(), world.tip().clone()));
    check(&world, &readers);
}

/// While one thread commits and unwinds, and tells the caches, others read through them and find whole blocks.
///
/// # Panics
/// Where a reader differs.
pub fn cached_readers_see_whole_blocks_while_a_writer_commits(factory: &impl StoreFactory) {
    let store = factory.fresh();
    let mut world = World::new(0, stamped(0));
    world.load_into(&store);
    let caches = BUDGETS.map(|budget| Arc::new(PageCache::new(budget)));
    caches.iter().for_each(|cache| cache.reset(world.tip().anchor.block));
    let (done, checked) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for at in 0..READERS {
            let cache = &caches[at % caches.len()];
            let (done, checked, store) = (&done, &checked, &store);
            scope.spawn(move || {
                let mut last = None;
                while !done.load(Ordering::Acquire) {
                    let reader = Cached::new(good(store.snapshot()), Arc::clone(cache));
                    check_stamp(&reader, |number| number);
                    last.iter().for_each(|reader| check_stamp(reader, |number| number));
                    last = Some(reader);
                    checked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..30_u64 {
            let tip = world.tip().anchor.block.number;
            if round % 7 == 6 {
                good(store.unwind(&world.unwind_to(tip - 3)));
                caches.iter().for_each(|cache| cache.reset(world.tip().anchor.block));
            } else {
                world.extend(stamped(tip + 1), None);
                let batch = world.batch_from(tip);
                good(store.commit(&batch));
                caches.iter().for_each(|cache| follow(cache, &batch));
            }
        }
        while checked.load(Ordering::Relaxed) < READERS as u64 {
            thread::yield_now();
        }
        // Pairs with the readers' acquire: what they check last is not needed by anyone.
        done.store(true, Ordering::Release);
    });
    for cache in &caches {
        world.check_snapshot(&Cached::new(good(store.snapshot()), Arc::clone(cache)), world.tip());
    }
}
