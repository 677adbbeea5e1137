//! The fewest permutations, from the rows that a fold wrote, beside those that its hash function counted: in a process
//! of its own, since the count is shared by all of a process's threads.

use std::path::Path;

use foldgate_bench::{
    Contender, Draw, Scale, Scenario, Workload,
    contender::AnyError,
    foldgate::{Foldgate, Stores},
};
use foldgate_core::MemoryStore;
use foldgate_keccak::count_permutations;

#[derive(Debug, Clone, Copy)]
struct Memory;

impl Stores for Memory {
    type Store = MemoryStore;

    fn backend(&self) -> &'static str {
        "memory"
    }

    fn is_durable(&self) -> bool {
        false
    }

    fn open(&self, _: &Path) -> Result<MemoryStore, AnyError> {
        Ok(MemoryStore::new())
    }
}

#[test]
fn a_fold_hashes_hardly_more_than_the_fewest() {
    let place = tempfile::tempdir().unwrap();
    count_permutations(true);
    for workload in [Workload::W1, Workload::W2, Workload::W3, Workload::M60] {
        let scenario = Scenario::new(workload, Draw::Uniform, Scale::one_in(50));
        let mut contender = Foldgate::new(Memory, 1, &scenario, None, place.path()).unwrap();
        for block in scenario.blocks().take(12) {
            let hashed = contender.advance(&block).unwrap().cost.permutations;
            let fewest = contender.fewest_permutations().unwrap().unwrap();
            assert!(fewest > 0 && fewest <= hashed, "{workload}, block {}: {hashed} of {fewest}", block.number);
            assert!(hashed <= fewest + fewest / 50, "{workload}, block {}: {hashed} of {fewest}", block.number);
        }
    }
}
