//! Opening: the directory, the lock, the format; and the two kinds of transactions. No other file calls libmdbx, so that
//! another wrapper of MDBX could take its place here.
//!
//! Invariants:
//! 1. A lock file keeps other opens out, in this process and in others: MDBX itself would let other processes in.
//! 2. The tables and the format are made in one transaction; a store without a format has no table.
//! 3. Table handles are opened once and are valid as long as the database. Whoever holds a transaction holds the
//!    database, and drops the transaction first.

use std::{
    borrow::Cow,
    fs::{self, File, TryLockError},
    mem,
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use foldgate_core::record::ROW_FORMAT;
use libmdbx::{
    Database, DatabaseOptions, Mode, NoWriteMap, RO, RW, ReadWriteOptions, SyncMode, TableFlags, Transaction,
    WriteFlags,
};

use crate::{
    error::MdbxError,
    tables::{FORMAT_VERSION, FORMAT_VERSION_KEY, META, ROW_FORMAT_KEY, TABLES, Table, decode_version},
};

type Handle = libmdbx::Table<'static>;

/// The lock file within the store's directory.
const LOCK: &str = "foldgate.lock";

/// The size of a page where the system's pages have the same: what [`Options::dirty_bytes`] is counted in.
const PAGE_BYTES: usize = 4096;
/// MDBX takes no other numbers of changed pages.
const MIN_DIRTY_PAGES: usize = 256;
const MAX_DIRTY_PAGES: usize = 1 << 28;

/// How a store is opened. None of it is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// How large the database may become, in bytes. So much address space is reserved, not memory and not disk.
    pub map_bytes: usize,
    /// By how many bytes the file grows when it is full.
    pub growth_bytes: usize,
    /// How many bytes of changed pages a write transaction holds in memory, about. Beyond that it writes some of them
    /// to where they belong, which nobody sees before its commit.
    pub dirty_bytes: usize,
    /// How many read transactions may be open at once.
    pub max_readers: u32,
    /// How many threads may read one snapshot without waiting for each other. Each costs a read transaction, while
    /// there are enough: one for each snapshot comes first.
    pub lanes: usize,
}

impl Default for Options {
    /// A map of 1 TiB that grows by 64 MiB, 512 MiB of changed pages, 256 readers, and a lane for each processor up to
    /// four.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            map_bytes: 1 << 40,
            growth_bytes: 64 << 20,
            dirty_bytes: 512 << 20,
            max_readers: 256,
            lanes: processors.min(4),
        }
    }
}

impl Options {
    /// Sets [`Options::map_bytes`].
    pub const fn with_map_bytes(mut self, bytes: usize) -> Self {
        self.map_bytes = bytes;
        self
    }

    /// Sets [`Options::growth_bytes`].
    pub const fn with_growth_bytes(mut self, bytes: usize) -> Self {
        self.growth_bytes = bytes;
        self
    }

    /// Sets [`Options::dirty_bytes`].
    pub const fn with_dirty_bytes(mut self, bytes: usize) -> Self {
        self.dirty_bytes = bytes;
        self
    }

    /// Sets [`Options::max_readers`].
    pub const fn with_max_readers(mut self, readers: u32) -> Self {
        self.max_readers = readers;
        self
    }

    /// Sets [`Options::lanes`].
    pub const fn with_lanes(mut self, lanes: usize) -> Self {
        self.lanes = lanes;
        self
    }
}

/// The lock of a store's folder.
struct Lock(File);

impl Lock {
    fn take(dir: &Path) -> Result<Self, MdbxError> {
        let directory = |source| MdbxError::Directory { path: dir.to_owned(), source };
        let file = File::options().create(true).truncate(false).write(true).open(dir.join(LOCK)).map_err(directory)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(MdbxError::AlreadyOpen { path: dir.to_owned() }),
            Err(TryLockError::Error(source)) => Err(directory(source)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing would not do: a child process that was started, and does not execute its own program yet, has the file
        // open, too. If it fails, the lock goes with the last of them.
        let _kept = self.0.unlock();
    }
}

/// An open database of the right format.
pub(crate) struct Env {
    /// One for each of [`TABLES`].
    handles: Vec<Handle>,
    db: Database<NoWriteMap>,
    pub(crate) lanes: usize,
    /// How many more read transactions may be opened beyond the first of each snapshot.
    spare_readers: AtomicUsize,
    /// Let go of last, when the database is closed.
    _lock: Lock,
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").field("lanes", &self.lanes).finish_non_exhaustive()
    }
}

impl Env {
    pub(crate) fn open(dir: &Path, options: Options) -> Result<Self, MdbxError> {
        let directory = |source| MdbxError::Directory { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(directory)?;
        let lock = Lock::take(dir)?;
        let size = |bytes| Some(isize::try_from(bytes).unwrap_or(isize::MAX));
        let db = Database::open_with_options(
            dir,
            DatabaseOptions {
                max_tables: Some(TABLES.len() as u64),
                max_readers: Some(options.max_readers),
                txn_dp_limit: Some((options.dirty_bytes / PAGE_BYTES).clamp(MIN_DIRTY_PAGES, MAX_DIRTY_PAGES) as u64),
                mode: Mode::ReadWrite(ReadWriteOptions {
                    sync_mode: SyncMode::Durable,
                    max_size: size(options.map_bytes),
                    growth_step: size(options.growth_bytes),
                    ..ReadWriteOptions::default()
                }),
                ..DatabaseOptions::default()
            },
        )?;
        let is_new = !has_format(&db, dir)?;
        let handles = open_tables(&db, is_new)?;
        let spare_readers = AtomicUsize::new(options.max_readers as usize / 2);
        Ok(Self { handles, db, lanes: options.lanes.max(1), spare_readers, _lock: lock })
    }

    /// A read transaction of the newest version.
    pub(crate) fn begin_read(self: &Arc<Self>) -> Result<ReadTxn, MdbxError> {
        let txn = self.db.begin_ro_txn()?;
        // SAFETY: the transaction borrows `self.db`, which lies in the `Arc`'s allocation and is neither moved nor
        // changed there. `ReadTxn` holds that `Arc`, drops the transaction before it (order of its fields), and lends
        // nothing of the transaction for longer than itself is borrowed.
        let txn =
            unsafe { mem::transmute::<Transaction<'_, RO, NoWriteMap>, Transaction<'static, RO, NoWriteMap>>(txn) };
        Ok(ReadTxn { txn, env: Arc::clone(self), is_spare: false })
    }

    /// A further read transaction of the same version as `first`, if a reader is to spare and no commit came between.
    pub(crate) fn begin_same_read(self: &Arc<Self>, first: &ReadTxn) -> Option<ReadTxn> {
        // Counts only: no other memory is published by it.
        let take = |spare: usize| spare.checked_sub(1);
        self.spare_readers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        let Ok(mut txn) = self.begin_read() else {
            self.spare_readers.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        txn.is_spare = true;
        // MDBX numbers its versions: equal numbers are the same version.
        (txn.txn.id() == first.txn.id()).then_some(txn)
    }

    /// A durable write transaction. Waits for the one before it; dropped, it leaves no trace.
    pub(crate) fn begin_write(&self) -> Result<WriteTxn<'_>, MdbxError> {
        Ok(WriteTxn { txn: self.db.begin_rw_txn()?, handles: &self.handles })
    }
}

/// Whether the store has a format, which is then the right one.
fn has_format(db: &Database<NoWriteMap>, dir: &Path) -> Result<bool, MdbxError> {
    let not_a_store = || MdbxError::NotAStore { path: dir.to_owned() };
    let txn = db.begin_ro_txn()?;
    let meta = match txn.open_table(Some(TABLES[META.0])) {
        Ok(meta) => meta,
        Err(libmdbx::Error::NotFound) => {
            let is_empty = txn.table_stat(&txn.open_table(None)?)?.entries() == 0;
            return if is_empty { Ok(false) } else { Err(not_a_store()) };
        }
        Err(libmdbx::Error::Incompatible) => return Err(not_a_store()),
        Err(other) => return Err(other.into()),
    };
    let version = |key: &str| match txn.get::<Vec<u8>>(&meta, key.as_bytes())? {
        Some(row) => decode_version(key, &row),
        None => Err(not_a_store()),
    };
    let got = version(FORMAT_VERSION_KEY)?;
    if got != FORMAT_VERSION {
        return Err(MdbxError::FormatVersion { got, expected: FORMAT_VERSION });
    }
    let got = version(ROW_FORMAT_KEY)?;
    if got != ROW_FORMAT {
        return Err(MdbxError::RowFormat { got, expected: ROW_FORMAT });
    }
    Ok(true)
}

/// Opens all tables for as long as the database is open; makes them and writes the format if the store is new.
fn open_tables(db: &Database<NoWriteMap>, is_new: bool) -> Result<Vec<Handle>, MdbxError> {
    let txn = db.begin_rw_txn()?;
    for name in TABLES {
        let table = match is_new {
            true => txn.create_table(Some(name), TableFlags::empty())?,
            false => txn.open_table(Some(name))?,
        };
        if is_new && name == TABLES[META.0] {
            let put = |key: &str, version: u32| txn.put(&table, key, version.to_be_bytes(), WriteFlags::UPSERT);
            put(FORMAT_VERSION_KEY, FORMAT_VERSION)?;
            put(ROW_FORMAT_KEY, ROW_FORMAT)?;
        }
        txn.prime_for_permaopen(table);
    }
    let (_, handles) = txn.commit_and_rebind_open_dbs()?;
    // SAFETY: a handle is a number without an owner. It was opened to stay valid until the database is closed, and
    // `Env` uses it with its own database only.
    Ok(handles.into_iter().map(|table| unsafe { mem::transmute::<libmdbx::Table<'_>, Handle>(table) }).collect())
}

/// A read transaction together with the database that it reads. All its calls wait for each other in libmdbx.
pub(crate) struct ReadTxn {
    /// Dropped before `env`.
    txn: Transaction<'static, RO, NoWriteMap>,
    pub(crate) env: Arc<Env>,
    is_spare: bool,
}

impl Drop for ReadTxn {
    fn drop(&mut self) {
        if self.is_spare {
            self.env.spare_readers.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl ReadTxn {
    /// The row at `key`, decoded where it lies.
    pub(crate) fn get<T>(
        &self,
        table: Table,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> Result<T, MdbxError>,
    ) -> Result<Option<T>, MdbxError> {
        let row = self.txn.get::<Cow<'_, [u8]>>(&self.env.handles[table.0], key)?;
        row.map(|row| decode(&row)).transpose()
    }

    /// Calls `each` with the rows from the first key `>= start` on, in order, until it breaks.
    pub(crate) fn scan(
        &self,
        table: Table,
        start: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, MdbxError>,
    ) -> Result<(), MdbxError> {
        let mut cursor = self.txn.cursor(&self.env.handles[table.0])?;
        for row in cursor.iter_from::<Cow<'_, [u8]>, Cow<'_, [u8]>>(start) {
            let (key, value) = row?;
            if each(&key, &value)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// A write transaction.
pub(crate) struct WriteTxn<'env> {
    txn: Transaction<'env, RW, NoWriteMap>,
    handles: &'env [Handle],
}

impl WriteTxn<'_> {
    /// The row at `key`.
    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MdbxError> {
        Ok(self.txn.get(&self.handles[table.0], key)?)
    }

    /// Writes a row.
    pub(crate) fn put(&self, table: Table, key: &[u8], row: &[u8]) -> Result<(), MdbxError> {
        Ok(self.txn.put(&self.handles[table.0], key, row, WriteFlags::UPSERT)?)
    }

    /// A cursor that appends to a table.
    pub(crate) fn end_of(&self, table: Table) -> Result<TableEnd<'_>, MdbxError> {
        Ok(TableEnd { cursor: self.txn.cursor(&self.handles[table.0])? })
    }

    /// Writes or, where there is no row, deletes, key after key.
    pub(crate) fn put_all<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        table: Table,
        rows: impl Iterator<Item = (K, Option<V>)>,
    ) -> Result<(), MdbxError> {
        let handle = &self.handles[table.0];
        let mut cursor = self.txn.cursor(handle)?;
        for (key, row) in rows {
            match row {
                Some(row) => cursor.put(key.as_ref(), row.as_ref(), WriteFlags::UPSERT)?,
                None => drop(self.txn.del(handle, key, None)?),
            }
        }
        Ok(())
    }

    /// Deletes the rows from the first key `>= start` up to the last key `< end` (to the table's end, if there is no
    /// `end`). Gives how many.
    pub(crate) fn delete_range(&self, table: Table, start: &[u8], end: Option<&[u8]>) -> Result<u64, MdbxError> {
        let handle = &self.handles[table.0];
        let mut keys = Vec::new();
        for row in self.txn.cursor(handle)?.iter_from::<Vec<u8>, ()>(start) {
            let (key, ()) = row?;
            if end.is_some_and(|end| key.as_slice() >= end) {
                break;
            }
            keys.push(key);
        }
        for key in &keys {
            self.txn.del(handle, key, None)?;
        }
        Ok(keys.len() as u64)
    }

    /// Makes all of it visible and durable.
    pub(crate) fn commit(self) -> Result<(), MdbxError> {
        self.txn.commit()?;
        Ok(())
    }
}

/// The end of a table, where rows fill pages without a search.
pub(crate) struct TableEnd<'txn> {
    cursor: libmdbx::Cursor<'txn, RW>,
}

impl TableEnd<'_> {
    /// The last key of the table.
    pub(crate) fn last_key(&mut self) -> Result<Option<Vec<u8>>, MdbxError> {
        Ok(self.cursor.last::<Vec<u8>, ()>()?.map(|(key, ())| key))
    }

    /// Writes a row whose key comes after all keys of the table: MDBX refuses any other.
    pub(crate) fn append(&mut self, key: &[u8], row: &[u8]) -> Result<(), MdbxError> {
        Ok(self.cursor.put(key, row, WriteFlags::APPEND)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child process has what its parent has open, until it executes its own program.
    #[test]
    fn a_closed_store_opens_again_though_its_lock_file_is_open_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::open(dir.path(), Options::default()).unwrap();
        let elsewhere = env._lock.0.try_clone().unwrap();
        drop(env);
        Env::open(dir.path(), Options::default()).unwrap();
        drop(elsewhere);
    }
}
