//! What reads cost on this backend: `cargo test --release -p foldgate-storage-redb --test reads -- --ignored --nocapture`.

use foldgate_storage_redb::{Options, RedbStore};
use tempfile::TempDir;

#[test]
#[ignore = "a measurement"]
fn reads() {
    let dir = TempDir::new().unwrap();
    let store = RedbStore::open(dir.path(), Options::default()).unwrap();
    foldgate_testing::reads::measure_reads(&store, 1_000_000);
}
