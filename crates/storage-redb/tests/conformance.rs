//! The conformance suite on redb.

use foldgate_storage_redb::{Options, RedbStore};
use foldgate_testing::conformance::{DurableFactory, StoreFactory};
use tempfile::TempDir;

struct OnRedb {
    dir: TempDir,
}

impl OnRedb {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }
}

impl StoreFactory for OnRedb {
    type Store = RedbStore;

    fn fresh(&self) -> RedbStore {
        RedbStore::open(self.dir.path(), Options::default().with_cache_bytes(32 << 20)).unwrap()
    }
}

impl DurableFactory for OnRedb {
    fn reopen(&self, store: RedbStore) -> RedbStore {
        drop(store);
        self.fresh()
    }
}

foldgate_testing::conformance_suite!(durable OnRedb::new());
