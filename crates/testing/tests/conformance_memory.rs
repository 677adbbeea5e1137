//! The conformance suite on the store in memory.

use foldgate_core::MemoryStore;
use foldgate_testing::conformance::StoreFactory;

#[derive(Default)]
struct InMemory;

impl StoreFactory for InMemory {
    type Store = MemoryStore;

    fn fresh(&self) -> MemoryStore {
        MemoryStore::new()
    }
}

foldgate_testing::conformance_suite!(InMemory);
