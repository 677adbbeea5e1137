//! Random histories of whole states: through commits, and through layers that are never committed.

use foldgate_core::{FoldOptions, MemoryStore, Overlay, TrieStore, fold, resolve};
use foldgate_testing::oracle::state_root;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    keys::SHAPES,
    model::{Model, apply, apply_updates, block, check_diff, fold_every_way, layer, load, random_block, rows_of},
};

const BLOCKS: u64 = 12;

fn run(seed: u64) {
    println!("seed {seed}");
    let rng = &mut StdRng::seed_from_u64(seed);
    let shape = SHAPES[seed as usize % SHAPES.len()];
    let mut model = Model::new();
    let founders = [0, 1, 2, 40][rng.random_range(0..4)];
    let genesis = random_block(rng, &model, shape, founders);
    apply(&mut model, &genesis);

    let committed = MemoryStore::new();
    let layered = MemoryStore::new();
    committed.load(load(&model, block(0))).unwrap();
    layered.load(load(&model, block(0)).with_piece_bytes(1)).unwrap();
    let mut layers = Vec::new();
    let mut rows = rows_of(&model);
    for number in 1..=BLOCKS {
        let changes = rng.random_range(0..30);
        let state = random_block(rng, &model, shape, changes);
        let before = model.clone();
        apply(&mut model, &state);

        let outcome = fold_every_way(&committed.snapshot().unwrap(), &state);
        let overlay = Overlay::new(layered.snapshot().unwrap(), layers.clone()).unwrap();
        let over_layers = fold_every_way(&overlay, &state);
        assert_eq!(over_layers, outcome, "layers and commits agree at block {number}");

        assert_eq!(outcome.computed_state_root, state_root(&model), "block {number}");
        check_diff(&outcome, &before, &model);
        apply_updates(&mut rows, &outcome);
        assert_eq!(rows, rows_of(&model), "rows after block {number} are those of a fresh load");

        let layer = self::layer(outcome, block(number - 1), block(number));
        committed.commit(&layer.to_batch()).unwrap();
        layers.push(self::layer(over_layers, block(number - 1), block(number)));
    }
}

#[test]
fn random_histories_reach_the_roots_of_full_rebuilds() {
    // More of them by hand: FOLDGATE_SEEDS=5000
    let seeds = std::env::var("FOLDGATE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(48);
    (0..seeds).for_each(run);
}

/// Siblings fold from the same parent, whatever was folded before.
#[test]
fn siblings_leave_their_parent_as_it_was() {
    for seed in 100..108 {
        println!("seed {seed}");
        let rng = &mut StdRng::seed_from_u64(seed);
        let shape = SHAPES[seed as usize % SHAPES.len()];
        let mut model = Model::new();
        let genesis = random_block(rng, &model, shape, 40);
        apply(&mut model, &genesis);
        let store = MemoryStore::new();
        store.load(load(&model, block(0))).unwrap();
        let parent = store.snapshot().unwrap();
        let blocks: Vec<_> = (0..6).map(|_| random_block(rng, &model, shape, 20)).collect();
        let first: Vec<_> = blocks.iter().map(|state| fold_every_way(&parent, state)).collect();
        let again: Vec<_> = blocks.iter().map(|state| fold_every_way(&parent, state)).collect();
        assert_eq!(first, again);
        for (state, outcome) in blocks.iter().zip(first) {
            let mut after = model.clone();
            apply(&mut after, state);
            assert_eq!(outcome.computed_state_root, state_root(&after));
        }
    }
}

/// Pools of one, two and eight threads.
#[test]
fn the_number_of_threads_changes_nothing() {
    let rng = &mut StdRng::seed_from_u64(200);
    let mut model = Model::new();
    let genesis = random_block(rng, &model, SHAPES[0], 300);
    apply(&mut model, &genesis);
    let store = MemoryStore::new();
    store.load(load(&model, block(0))).unwrap();
    let parent = store.snapshot().unwrap();
    let state = random_block(rng, &model, SHAPES[0], 200);
    let changes = resolve(&state, &parent).unwrap();
    let serial = fold(&parent, changes.clone(), &FoldOptions::SERIAL).unwrap();
    for threads in [1, 2, 8] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for options in [FoldOptions::FORCED_PARALLEL, FoldOptions::default()] {
            let parallel = pool.install(|| fold(&parent, changes.clone(), &options)).unwrap();
            assert_eq!(parallel, serial, "{threads} threads");
        }
    }
}
