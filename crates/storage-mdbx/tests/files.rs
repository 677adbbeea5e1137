//! What becomes of a store's files: opened twice, killed, damaged, or made by something else.

use std::{fs, path::Path};

use alloy_primitives::{B256, U256};
use foldgate_core::{
    BackendError, BalStore, BlockNumHash, StateReader, TrieReader, TrieStore,
    record::{self, ROW_FORMAT},
};
use foldgate_storage_mdbx::{FORMAT_VERSION, MdbxError, MdbxStore, Options};
use foldgate_testing::conformance::{
    kills::{survives_killed_loads, survives_kills},
    loading::load_many,
    world::{State, World},
};
use libmdbx::{Database, DatabaseOptions, NoWriteMap, TableFlags, WriteFlags};
use tempfile::TempDir;

fn open(dir: &Path) -> Result<MdbxStore, MdbxError> {
    MdbxStore::open(dir, Options::default())
}

/// A database that no store has opened.
fn database(dir: &Path) -> Database<NoWriteMap> {
    Database::open_with_options(dir, DatabaseOptions { max_tables: Some(16), ..Default::default() }).unwrap()
}

/// Writes a row behind the store's back.
fn poke(dir: &Path, table: &str, key: &[u8], value: &[u8]) {
    let db = database(dir);
    let txn = db.begin_rw_txn().unwrap();
    let table = txn.create_table(Some(table), TableFlags::empty()).unwrap();
    txn.put(&table, key, value, WriteFlags::UPSERT).unwrap();
    txn.commit().unwrap();
}

/// A closed store of one block over a genesis.
fn stored(dir: &Path) -> World {
    let mut state = State::default();
    state.slots.insert((B256::repeat_byte(1), B256::repeat_byte(2)), U256::from(3));
    let mut world = World::new(0, state.clone());
    let store = open(dir).unwrap();
    world.load_into(&store);
    world.extend(state, None);
    store.commit(&world.batch_from(0)).unwrap();
    world
}

#[test]
fn a_second_open_is_refused_until_store_and_snapshots_are_gone() {
    let dir = TempDir::new().unwrap();
    let world = stored(dir.path());
    let store = open(dir.path()).unwrap();
    assert!(matches!(open(dir.path()), Err(MdbxError::AlreadyOpen { path }) if path == dir.path()));
    let snapshot = store.snapshot().unwrap();
    drop(store);
    assert!(matches!(open(dir.path()), Err(MdbxError::AlreadyOpen { .. })), "a snapshot keeps the database open");
    drop(snapshot);
    world.check_store(&open(dir.path()).unwrap());
}

#[test]
fn another_format_is_refused_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let world = stored(dir.path());
    poke(dir.path(), "meta", b"format_version", &(FORMAT_VERSION + 1).to_be_bytes());
    let error = open(dir.path()).unwrap_err();
    let (got, expected) = (FORMAT_VERSION + 1, FORMAT_VERSION);
    assert!(matches!(error, MdbxError::FormatVersion { got: g, expected: e } if (g, e) == (got, expected)), "{error}");
    assert!(error.refusal().is_none());
    poke(dir.path(), "meta", b"format_version", &FORMAT_VERSION.to_be_bytes());
    poke(dir.path(), "meta", b"row_format", &(ROW_FORMAT + 7).to_be_bytes());
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, MdbxError::RowFormat { got, expected: ROW_FORMAT } if got == ROW_FORMAT + 7), "{error}");
    poke(dir.path(), "meta", b"row_format", &ROW_FORMAT.to_be_bytes()[1..]);
    assert!(matches!(open(dir.path()), Err(MdbxError::CorruptRow { table: "meta", .. })));
    poke(dir.path(), "meta", b"row_format", &ROW_FORMAT.to_be_bytes());
    world.check_store(&open(dir.path()).unwrap());
}

#[test]
fn a_database_of_something_else_is_refused() {
    let dir = TempDir::new().unwrap();
    poke(dir.path(), "other", b"key", b"value");
    assert!(matches!(open(dir.path()), Err(MdbxError::NotAStore { path }) if path == dir.path()));

    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("mdbx.dat"), vec![7; 100_000]).unwrap();
    assert!(matches!(open(dir.path()), Err(MdbxError::Database(_))));

    let file = dir.path().join("a file");
    fs::write(&file, b"no directory").unwrap();
    assert!(matches!(open(&file), Err(MdbxError::Directory { .. })));
}

#[test]
fn corrupt_rows_are_named() {
    let dir = TempDir::new().unwrap();
    stored(dir.path());
    let (address, slot) = (B256::repeat_byte(1), B256::repeat_byte(2));
    let (account_key, slot_key) = (record::account_key(&address), record::slot_key(&address, &slot));
    let number = record::number_key(1);
    poke(dir.path(), "accounts", &account_key, &[0xff, 1, 2]);
    poke(dir.path(), "slots", &slot_key, &[0, 1]);
    poke(dir.path(), "block_hashes", &number, &[1; 31]);
    poke(dir.path(), "anchors", &number, &[1; 71]);
    poke(dir.path(), "reverse_diffs", &number, &[0xc1]);
    let store = open(dir.path()).unwrap();
    let snapshot = store.snapshot().unwrap();
    fn corrupt<T: std::fmt::Debug>(result: Result<T, MdbxError>, expected: &str, at: &[u8]) {
        match result {
            Err(MdbxError::CorruptRow { table, key }) => assert_eq!((table, key.as_ref()), (expected, at)),
            other => panic!("a corrupt row gave {other:?}"),
        }
    }
    corrupt(snapshot.account(&address), "accounts", &account_key);
    corrupt(snapshot.account_info(&address), "accounts", &account_key);
    corrupt(snapshot.accounts_from(&B256::ZERO, 9), "accounts", &account_key);
    corrupt(snapshot.storage(&address, &slot), "slots", &slot_key);
    corrupt(snapshot.slots_from(&address, &B256::ZERO, 9), "slots", &slot_key);
    corrupt(snapshot.block_hash(1), "block_hashes", &number);
    corrupt(store.committed(1), "anchors", &number);
    corrupt(store.reverse_diff(1), "reverse_diffs", &number);
    assert_eq!(store.bal(BlockNumHash::new(1, B256::ZERO)).unwrap(), None);
    drop((store, snapshot));
    poke(dir.path(), "meta", b"tip", b"short");
    let store = open(dir.path()).unwrap();
    corrupt(store.tip(), "meta", b"tip");
    corrupt(store.snapshot(), "meta", b"tip");
}

#[test]
fn a_killed_process_leaves_a_whole_block() {
    let dir = TempDir::new().unwrap();
    survives_kills("a_killed_process_leaves_a_whole_block", dir.path(), 5, |dir| open(dir).unwrap());
}

#[test]
fn a_killed_load_leaves_an_empty_store() {
    let dir = TempDir::new().unwrap();
    survives_killed_loads("a_killed_load_leaves_an_empty_store", dir.path(), 4, |dir| open(dir).unwrap());
}

/// Extreme bounds are taken, and a load that has to write pages before its commit is as good as any.
#[test]
fn a_load_beyond_the_memory_of_a_transaction() {
    for dirty_bytes in [0, 2 << 20, usize::MAX] {
        let dir = TempDir::new().unwrap();
        let store = MdbxStore::open(dir.path(), Options::default().with_dirty_bytes(dirty_bytes)).unwrap();
        load_many(&store, 50_000);
    }
}

/// A small chain's worth of state in one transaction.
#[test]
fn a_million_accounts_load_at_once() {
    let dir = TempDir::new().unwrap();
    load_many(&open(dir.path()).unwrap(), 1_000_000);
}

#[test]
fn a_full_map_is_an_error_and_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let options = Options::default().with_map_bytes(4 << 20).with_growth_bytes(1 << 20);
    let store = MdbxStore::open(dir.path(), options).unwrap();
    let mut world = World::new(0, State::default());
    world.load_into(&store);
    let mut larger = world.clone();
    larger.extend(State::default(), Some(vec![1; 8 << 20].into()));
    let error = store.commit(&larger.batch_from(0)).unwrap_err();
    assert!(matches!(error, MdbxError::Database(libmdbx::Error::MapFull)), "{error}");
    world.check_store(&store);
    world.extend(State::default(), Some(vec![1; 1 << 10].into()));
    store.commit(&world.batch_from(0)).unwrap();
    drop(store);
    world.check_store(&open(dir.path()).unwrap());
}
