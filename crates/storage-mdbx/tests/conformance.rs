//! The conformance suite on MDBX.

use foldgate_storage_mdbx::{MdbxStore, Options};
use foldgate_testing::conformance::{DurableFactory, StoreFactory};
use tempfile::TempDir;

struct OnMdbx {
    dir: TempDir,
}

impl OnMdbx {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }
}

impl StoreFactory for OnMdbx {
    type Store = MdbxStore;

    fn fresh(&self) -> MdbxStore {
        MdbxStore::open(self.dir.path(), Options::default().with_growth_bytes(4 << 20)).unwrap()
    }
}

impl DurableFactory for OnMdbx {
    fn reopen(&self, store: MdbxStore) -> MdbxStore {
        drop(store);
        self.fresh()
    }
}

foldgate_testing::conformance_suite!(durable OnMdbx::new());
