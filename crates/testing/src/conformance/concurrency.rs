//! Many threads at once.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use alloy_primitives::{B256, U256, keccak256};
use foldgate_core::{Account, BlockNumber, Nibbles, NodeKey, Refusal, TrieId, TrieReader, TrieStore};

use super::{
    StoreFactory,
    world::{State, World, good, refusal, seeded},
};

const KEYS: u64 = 40;
pub(super) const READERS: usize = 3;

fn key(at: u64) -> B256 {
    keccak256(at.to_be_bytes())
}

fn node(at: u64) -> NodeKey {
    NodeKey::new(TrieId::Storage(key(at)), Nibbles::unpack(key(at)).slice(..5))
}

/// A state in which every row holds `stamp`.
pub(super) fn stamped(stamp: u64) -> State {
    let mut state = State::default();
    for at in 0..KEYS {
        state.accounts.insert(key(at), Account { nonce: stamp, ..Account::default() });
        state.slots.insert((key(at), key(at)), U256::from(stamp + 1));
        state.nodes.insert(node(at), stamp.to_be_bytes().to_vec().into());
    }
    state
}

/// Reads every row in every way and holds it to the stamp of the snapshot's block.
pub(super) fn check_stamp<R: TrieReader>(snapshot: &R, stamp_of: impl Fn(BlockNumber) -> u64) {
    let number = snapshot.anchor().block.number;
    let stamp = stamp_of(number);
    let accounts = good(snapshot.accounts_from(&B256::ZERO, KEYS as usize + 1));
    assert_eq!(accounts.len() as u64, KEYS);
    assert!(accounts.iter().all(|(_, account)| account.nonce == stamp), "block {number}: {accounts:?}");
    for at in 0..KEYS {
        assert_eq!(good(snapshot.account(&key(at))).map(|account| account.nonce), Some(stamp), "block {number}");
        assert_eq!(good(snapshot.storage(&key(at), &key(at))), U256::from(stamp + 1), "block {number}");
        let slots = good(snapshot.slots_from(&key(at), &B256::ZERO, 9));
        assert_eq!(slots, [(key(at), U256::from(stamp + 1))], "block {number}");
        assert_eq!(good(snapshot.node(&node(at))), Some(stamp.to_be_bytes().into()), "block {number}");
    }
    let keys: Vec<_> = (0..KEYS).map(key).collect();
    let nonces = good(snapshot.accounts(&keys)).into_iter().map(|account| account.map(|account| account.nonce));
    assert!(nonces.eq(keys.iter().map(|_| Some(stamp))), "block {number}");
    let pairs: Vec<_> = keys.iter().map(|key| (*key, *key)).collect();
    assert_eq!(good(snapshot.slots(&pairs)), vec![U256::from(stamp + 1); keys.len()], "block {number}");
    let nodes: Vec<_> = (0..KEYS).map(node).collect();
    assert_eq!(good(snapshot.nodes(&nodes)), vec![Some(stamp.to_be_bytes().into()); keys.len()], "block {number}");
    assert_eq!(good(snapshot.block_hash(number)), Some(snapshot.anchor().block.hash));
}

/// While one thread commits and unwinds, others take snapshots and find each of them to be one whole block.
///
/// # Panics
/// Where the backend falls short.
pub fn readers_see_whole_blocks_while_a_writer_commits(factory: &impl StoreFactory) {
    let store = factory.fresh();
    let mut world = World::new(0, stamped(0));
    world.load_into(&store);
    let (done, checked) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let mut last = None;
                while !done.load(Ordering::Acquire) {
                    let snapshot = good(store.snapshot());
                    check_stamp(&snapshot, |number| number);
                    // The one before is still what it was, a commit or more later.
                    last.iter().for_each(|snapshot| check_stamp(snapshot, |number| number));
                    last = Some(snapshot);
                    checked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..30_u64 {
            let tip = world.tip().anchor.block.number;
            if round % 7 == 6 {
                good(store.unwind(&world.unwind_to(tip - 3)));
            } else {
                world.extend(stamped(tip + 1), None);
                good(store.commit(&world.batch_from(tip)));
            }
        }
        while checked.load(Ordering::Relaxed) < READERS as u64 {
            thread::yield_now();
        }
        // Pairs with the readers' acquire: what they check last is not needed by anyone.
        done.store(true, Ordering::Release);
    });
    world.check_store(&store);
}

/// Threads that share one snapshot, or hold clones of it, all read the same block, also while commits go on.
///
/// # Panics
/// Where the backend falls short.
pub fn one_snapshot_serves_many_threads(factory: &impl StoreFactory) {
    let store = factory.fresh();
    let mut world = World::new(0, stamped(0));
    world.load_into(&store);
    world.extend(stamped(1), None);
    good(store.commit(&world.batch_from(0)));
    let shared = good(store.snapshot());
    thread::scope(|scope| {
        for reader in 0..4 {
            let (clone, shared) = (shared.clone(), &shared);
            scope.spawn(move || {
                for _ in 0..20 {
                    check_stamp(if reader % 2 == 0 { &clone } else { shared }, |_| 1);
                }
            });
        }
        for parent in 1..6 {
            world.extend(stamped(parent + 1), None);
            good(store.commit(&world.batch_from(parent)));
        }
    });
    check_stamp(&shared, |_| 1);
    check_stamp(&good(store.snapshot()), |number| number);
}

/// Writers that race for the same height wait for each other: one wins, the rest are refused, nothing is mixed.
///
/// # Panics
/// Where the backend falls short.
pub fn of_racing_writers_one_wins_each_height(factory: &impl StoreFactory) {
    let store = factory.fresh();
    let mut rng = seeded();
    let world = World::random(&mut rng);
    world.load_into(&store);
    let rivals = [1, 2, 3, 4].map(|salt| {
        let mut rival = world.fork(salt);
        (0..3).for_each(|_| rival.extend_randomly(&mut rng));
        rival
    });
    let accepted: Vec<u64> = thread::scope(|scope| {
        let racers = rivals.each_ref().map(|rival| scope.spawn(|| race(&store, rival)));
        racers.into_iter().map(|racer| good(racer.join())).collect()
    });
    let winners: Vec<_> = rivals.iter().zip(&accepted).filter(|(_, blocks)| **blocks > 0).collect();
    assert_eq!(winners.len(), 1, "blocks accepted of each branch: {accepted:?}");
    assert_eq!(*winners[0].1, 3, "the branch that won the first height has no rival at the next");
    winners[0].0.check_store(&store);
}

/// Commits the branch block by block, and gives how many blocks were accepted.
fn race(store: &impl TrieStore, rival: &World) -> u64 {
    for parent in 0..rival.tip().anchor.block.number {
        let result = store.commit(&rival.batch(parent, parent + 1));
        if result.is_err() {
            assert!(matches!(refusal(result), Refusal::NotTheTip { .. }));
            return parent;
        }
    }
    rival.tip().anchor.block.number
}
