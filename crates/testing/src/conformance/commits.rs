//! Commits, unwinds, and the history that they leave.

use alloy_primitives::{B256, Bytes, U256};
use foldgate_core::{
    Account, BalStore, BlockNumHash, CommitBatch, Nibbles, NodeKey, Refusal, StateReader, TrieId, TrieReader,
    TrieStore, UnwindBatch, store::BLOCK_HASH_WINDOW,
};
use rand::{Rng, rngs::StdRng};

use super::{
    StoreFactory,
    world::{Moment, State, World, good, refusal, seeded},
};

/// A store and its model, `blocks` blocks after a random genesis.
fn grown<F: StoreFactory>(factory: &F, rng: &mut StdRng, blocks: u64) -> (F::Store, World) {
    let (mut world, store) = (World::random(rng), factory.fresh());
    world.load_into(&store);
    for parent in 0..blocks {
        world.extend_randomly(rng);
        good(store.commit(&world.batch_from(parent)));
    }
    (store, world)
}

/// A batch onto the tip that would change much.
fn next_batch(world: &World, blocks: u64, rng: &mut StdRng) -> CommitBatch {
    let mut next = World::new(world.tip().anchor.block.number, world.tip().state.as_ref().clone());
    for _ in 0..blocks {
        next.extend_randomly(rng);
    }
    let mut state = next.tip().state.as_ref().clone();
    state.accounts.insert(B256::repeat_byte(0x77), Account { nonce: 77, ..Account::default() });
    state.slots.insert((B256::ZERO, B256::repeat_byte(0x77)), U256::from(77));
    state.accounts.remove(&B256::ZERO);
    next.extend(state, Some(Bytes::from_static(b"list")));
    let mut batch = next.batch_from(world.tip().anchor.block.number);
    batch.parent = world.tip().anchor.block;
    batch
}

/// A commit with another parent, without blocks, with a gap, or out of order is refused, and not a row of it is seen.
///
/// # Panics
/// Where the backend falls short.
pub fn refused_commits_change_nothing(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (store, world) = grown(factory, &mut rng, 3);
    let tip = world.tip().anchor.block;
    let before = good(store.snapshot());
    let refused = |change: &dyn Fn(&mut CommitBatch), expected: Refusal, rng: &mut StdRng| {
        let mut batch = next_batch(&world, 2, rng);
        change(&mut batch);
        assert_eq!(refusal(store.commit(&batch)), expected);
        world.check_store(&store);
        world.check_snapshot(&before, world.tip());
    };
    for got in [
        BlockNumHash::new(tip.number, B256::ZERO),
        BlockNumHash::new(tip.number + 1, tip.hash),
        world.at(2).map_or(tip, |moment| moment.anchor.block),
    ] {
        refused(&|batch| batch.parent = got, Refusal::NotTheTip { got, expected: tip }, &mut rng);
    }
    refused(&|batch| batch.blocks.clear(), Refusal::BrokenChain { parent: tip, tip }, &mut rng);
    let broken: [&dyn Fn(&mut CommitBatch); 4] = [
        &|batch| drop(batch.blocks.remove(0)),
        &|batch| drop(batch.blocks.remove(1)),
        &|batch| batch.blocks[2].anchor.block.number += 1,
        &|batch| batch.blocks[2].anchor.block.number = tip.number,
    ];
    for change in broken {
        let mut batch = next_batch(&world, 2, &mut rng);
        change(&mut batch);
        let last = batch.blocks[batch.blocks.len() - 1].anchor.block;
        assert_eq!(refusal(store.commit(&batch)), Refusal::BrokenChain { parent: tip, tip: last });
        world.check_store(&store);
    }
    let key = B256::repeat_byte;
    let node = |at: u8| (NodeKey::new(TrieId::Accounts, Nibbles::from_nibbles([at])), None);
    let unsorted = |table, position| Refusal::Unsorted { table, position };
    refused(&|batch| batch.rows.accounts = vec![(key(2), None), (key(1), None)], unsorted("account", 1), &mut rng);
    refused(
        &|batch| batch.rows.slots = [1, 2, 2].map(|at| ((key(1), key(at)), U256::from(7))).to_vec(),
        unsorted("slot", 2),
        &mut rng,
    );
    refused(&|batch| batch.rows.nodes = vec![node(1), node(0)], unsorted("node", 1), &mut rng);
    refused(&|batch| batch.rows.codes = vec![(key(1), Bytes::new()); 2], unsorted("code", 1), &mut rng);
}

/// An unwind from another block, to a block that is not below the tip, or with rows out of order is refused.
///
/// # Panics
/// Where the backend falls short.
pub fn refused_unwinds_change_nothing(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (store, world) = grown(factory, &mut rng, 3);
    let tip = world.tip().anchor.block;
    let target = world.moments[1].anchor;
    let rows = next_batch(&world, 1, &mut rng).rows;
    let good_batch = UnwindBatch { from: tip, to: target, rows };
    let refused = |change: &dyn Fn(&mut UnwindBatch), expected: Refusal| {
        let mut batch = good_batch.clone();
        change(&mut batch);
        assert_eq!(refusal(store.unwind(&batch)), expected);
        world.check_store(&store);
    };
    for got in [BlockNumHash::new(tip.number, B256::ZERO), world.moments[2].anchor.block] {
        refused(&|batch| batch.from = got, Refusal::NotTheTip { got, expected: tip });
    }
    let mut wrong_hash = target;
    wrong_hash.block.hash = B256::ZERO;
    let mut wrong_root = target;
    wrong_root.state_root = B256::ZERO;
    let mut above = world.tip().anchor;
    above.block.number += 1;
    for to in [wrong_hash, wrong_root, above, world.tip().anchor] {
        refused(&|batch| batch.to = to, Refusal::NotAnAncestor { got: to.block, tip });
    }
    let twice = vec![(B256::ZERO, None); 2];
    refused(&|batch| batch.rows.accounts.clone_from(&twice), Refusal::Unsorted { table: "account", position: 1 });
}

/// Deleted rows are gone from point reads and scans, deleting what is not there does no harm, and rows come back.
///
/// # Panics
/// Where the backend falls short.
pub fn deletions_remove_rows(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (store, mut world) = grown(factory, &mut rng, 2);
    let full = world.tip().state.as_ref().clone();
    let emptied = State { codes: full.codes.clone(), ..State::default() };
    world.extend(emptied, None);
    let mut batch = world.batch_from(2);
    for key in &world.pool.keys {
        if let Err(at) = batch.rows.accounts.binary_search_by(|(hashed_address, _)| hashed_address.cmp(key)) {
            batch.rows.accounts.insert(at, (*key, None));
        }
        if let Err(at) = batch.rows.slots.binary_search_by(|(slot, _)| slot.cmp(&(*key, *key))) {
            batch.rows.slots.insert(at, ((*key, *key), U256::ZERO));
        }
    }
    good(store.commit(&batch));
    world.check_store(&store);
    assert_eq!(good(good(store.snapshot()).accounts_from(&B256::ZERO, 1)), []);
    world.extend(full, None);
    good(store.commit(&world.batch_from(3)));
    world.check_store(&store);
}

/// Code that an unwound block brought stays.
///
/// # Panics
/// Where the backend falls short.
pub fn code_stays_after_an_unwind(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (store, mut world) = grown(factory, &mut rng, 1);
    let mut state = world.tip().state.as_ref().clone();
    let (hash, code) = (B256::repeat_byte(0xc0), Bytes::from_static(b"some code"));
    state.codes.insert(hash, code.clone());
    world.extend(state, None);
    good(store.commit(&world.batch_from(1)));
    let before = good(store.snapshot());
    good(store.unwind(&world.unwind_to(1)));
    assert_eq!(good(before.code(&hash)), Some(code.clone()));
    assert_eq!(good(good(store.snapshot()).code(&hash)), Some(code));
    world.check_store(&store);
}

/// The EVM's BLOCKHASH can ask for 256 ancestors: also right after long batches, single commits and an unwind.
///
/// # Panics
/// Where the backend falls short.
pub fn block_hashes_reach_back_a_whole_window(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (store, mut world) = grown(factory, &mut rng, 1);
    let extend = |world: &mut World, blocks: u64| {
        let parent = world.tip().anchor.block.number;
        for _ in 0..blocks {
            world.extend(world.tip().state.as_ref().clone(), None);
        }
        good(store.commit(&world.batch_from(parent)));
        world.check_snapshot(&good(store.snapshot()), world.tip());
    };
    for blocks in [BLOCK_HASH_WINDOW - 2, 1, 1, 300, 1, 1] {
        extend(&mut world, blocks);
    }
    let old = (good(store.snapshot()), world.tip().clone());
    let tip = world.tip().anchor.block.number;
    good(store.unwind(&world.unwind_to(tip - 200)));
    world.check_snapshot(&good(store.snapshot()), world.tip());
    extend(&mut world, 5);
    extend(&mut world, 100);
    world.check_snapshot(&old.0, &old.1);
    assert_ne!(good(old.0.block_hash(tip - 199)), good(good(store.snapshot()).block_hash(tip - 199)), "a sibling");
    world.check_store(&store);
}

/// A batch of several blocks keeps for each its own anchor, reverse diff and list, and becomes visible at once.
///
/// # Panics
/// Where the backend falls short.
pub fn a_batch_of_many_blocks_keeps_each_ones_diff_and_list(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (store, mut world) = grown(factory, &mut rng, 1);
    for blocks in [2, 30] {
        let parent = world.tip().anchor.block.number;
        for _ in 0..blocks {
            world.extend_randomly(&mut rng);
        }
        good(store.commit(&world.batch_from(parent)));
        world.check_store(&store);
    }
    good(store.unwind(&world.unwind_to(17)));
    world.check_store(&store);
}

/// A list belongs to a number and a hash: a sibling's is not given, and a dropped block's is gone.
///
/// # Panics
/// Where the backend falls short.
pub fn lists_are_found_by_number_and_hash(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (store, mut world) = grown(factory, &mut rng, 1);
    let list = Bytes::from_static(b"first");
    world.extend(world.tip().state.as_ref().clone(), Some(list.clone()));
    good(store.commit(&world.batch_from(1)));
    let first = world.tip().anchor.block;
    assert_eq!(good(store.bal(first)), Some(list));
    assert_eq!(good(store.bal(BlockNumHash::new(2, B256::ZERO))), None);
    assert_eq!(good(store.bal(BlockNumHash::new(1, first.hash))), None);
    good(store.unwind(&world.unwind_to(1)));
    assert_eq!(good(store.bal(first)), None);
    let other = Bytes::from_static(b"second");
    world.extend(world.tip().state.as_ref().clone(), Some(other.clone()));
    good(store.commit(&world.batch_from(1)));
    assert_eq!(good(store.bal(world.tip().anchor.block)), Some(other));
    assert_eq!(good(store.bal(first)), None);
    world.extend(world.tip().state.as_ref().clone(), Some(Bytes::new()));
    good(store.commit(&world.batch_from(2)));
    assert_eq!(good(store.bal(world.tip().anchor.block)), Some(Bytes::new()), "an empty list is not a missing one");
}

/// An unwind leads back to the ancestor's state; another branch grows from there.
///
/// # Panics
/// Where the backend falls short.
pub fn unwinding_leads_back_and_on_to_a_sibling(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (store, mut world) = grown(factory, &mut rng, 6);
    for (back_to, on) in [(5, 2), (3, 4), (0, 3)] {
        good(store.unwind(&world.unwind_to(back_to)));
        world.check_store(&store);
        for _ in 0..on {
            world.extend_randomly(&mut rng);
            good(store.commit(&world.batch_from(world.tip().anchor.block.number - 1)));
        }
        world.check_store(&store);
    }
}

/// Pruning drops lists and reverse diffs below a height, and what is not reached without them; the state stays.
///
/// # Panics
/// Where the backend falls short.
pub fn pruning_drops_lists_and_diffs_and_limits_unwinding(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (store, mut world) = grown(factory, &mut rng, 8);
    let snapshot = (good(store.snapshot()), world.tip().clone());
    let prune = |world: &mut World, below: u64| {
        let lists = world
            .moments
            .iter()
            .filter(|moment| (world.pruned_below..below).contains(&moment.anchor.block.number) && moment.bal.is_some());
        assert_eq!(good(store.prune_below(below)), lists.count() as u64, "lists dropped below {below}");
        world.pruned_below = world.pruned_below.max(below);
        world.check_store(&store);
    };
    prune(&mut world, 0);
    prune(&mut world, 4);
    prune(&mut world, 4);
    prune(&mut world, 2);
    let (tip, unreachable) = (world.tip().anchor.block, world.moments[2].anchor);
    let batch = UnwindBatch { from: tip, to: unreachable, rows: world.genesis().state.rows() };
    assert_eq!(refusal(store.unwind(&batch)), Refusal::NotAnAncestor { got: unreachable.block, tip });
    good(store.unwind(&world.unwind_to(3)));
    world.check_store(&store);
    for _ in 0..2 {
        world.extend_randomly(&mut rng);
        good(store.commit(&world.batch_from(world.tip().anchor.block.number - 1)));
    }
    prune(&mut world, 1000);
    assert_eq!(good(store.committed(5)), Some(world.tip().anchor), "the tip stays");
    world.check_snapshot(&snapshot.0, &snapshot.1);
}

/// Pruning keeps the block hashes that a reader at the oldest block still reached may ask for.
///
/// # Panics
/// Where the backend falls short.
pub fn pruning_keeps_the_hashes_that_readers_may_ask_for(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (store, mut world) = grown(factory, &mut rng, 1);
    for _ in 0..600 {
        world.extend(world.tip().state.as_ref().clone(), None);
    }
    good(store.commit(&world.batch_from(1)));
    let old = (good(store.snapshot()), world.tip().clone());
    assert_eq!(good(store.prune_below(550)), u64::from(world.moments[1].bal.is_some()));
    world.pruned_below = 550;
    world.check_snapshot(&old.0, &old.1);
    world.check_snapshot(&good(store.snapshot()), world.tip());
    good(store.unwind(&world.unwind_to(549)));
    world.check_snapshot(&good(store.snapshot()), world.tip());
    world.check_store(&store);
}

/// Random commits, unwinds, prunes and snapshots, everything held to the model after each.
///
/// # Panics
/// Where the backend falls short.
pub fn random_histories_match_the_model(factory: &impl StoreFactory) {
    random_history(factory.fresh(), 60, |store| store);
}

/// `steps` random steps on an empty store; `between` may exchange the store for itself opened anew. Snapshots taken
/// before do not survive that, and are dropped.
///
/// # Panics
/// Where the store differs from the model.
pub fn random_history<S: BalStore>(mut store: S, steps: u32, between: impl Fn(S) -> S) {
    let mut rng = seeded();
    let mut world = World::random(&mut rng);
    world.load_into(&store);
    let mut snapshots: Vec<(S::Snapshot, Moment)> = Vec::new();
    for _ in 0..steps {
        let tip = world.tip().anchor.block.number;
        match rng.random_range(0..20) {
            0..12 => {
                for _ in 0..rng.random_range(1..4) {
                    world.extend_randomly(&mut rng);
                }
                good(store.commit(&world.batch_from(tip)));
            }
            12..15 if world.retention().anchors < tip => {
                let to = rng.random_range(world.retention().anchors..tip);
                good(store.unwind(&world.unwind_to(to)));
            }
            15 => {
                let below = rng.random_range(0..=tip);
                good(store.prune_below(below));
                world.pruned_below = world.pruned_below.max(below);
            }
            16 if !snapshots.is_empty() => drop(snapshots.swap_remove(rng.random_range(0..snapshots.len()))),
            17 => {
                snapshots.clear();
                store = between(store);
            }
            _ => snapshots.push((good(store.snapshot()), world.tip().clone())),
        }
        world.check_store(&store);
        if let Some(at) = snapshots.len().checked_sub(1) {
            let (snapshot, moment) = &snapshots[rng.random_range(0..=at)];
            world.check_snapshot(snapshot, moment);
        }
    }
    for (snapshot, moment) in &snapshots {
        world.check_snapshot(snapshot, moment);
    }
}
