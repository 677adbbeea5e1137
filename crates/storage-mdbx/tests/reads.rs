//! What reads cost on this backend: `cargo test --release -p foldgate-storage-mdbx --test reads -- --ignored --nocapture`.

use foldgate_storage_mdbx::{MdbxStore, Options};
use tempfile::TempDir;

#[test]
#[ignore = "a measurement"]
fn reads() {
    let dir = TempDir::new().unwrap();
    let store = MdbxStore::open(dir.path(), Options::default()).unwrap();
    foldgate_testing::reads::measure_reads(&store, 1_000_000);
}
