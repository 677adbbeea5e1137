//! Loading: a whole state into an empty store, in one durable write transaction.
//!
//! Rows come piece by piece, each table's almost in order: only trie nodes around the border between two pieces come
//! late, once all below them is known. Rows that come after all of their table are appended by a cursor, which packs
//! pages without searching for them; the few late ones are inserted.
//!
//! Invariants:
//! 1. Nothing is visible or durable before the transaction's commit; an error before it, or a kill, leaves no trace.
//! 2. No more than a piece is held beside redb's own cache.

use std::ops::Bound;

use foldgate_core::{LoadError, LoadSource, Refusal, Rows, StateAnchor, record, store::LoadOrder};
use redb::{ReadableTable, WriteTransaction};

use crate::{
    commit::{meta_anchor, put_block, put_meta_anchor},
    env::Env,
    error::RedbError,
    tables::{ACCOUNTS, CODES, Fixed, GENESIS, SLOTS, TIP, Table},
};

pub(crate) fn load<L: LoadSource>(env: &Env, mut source: L) -> Result<StateAnchor, LoadError<RedbError, L::Error>> {
    let txn = env.begin_write().map_err(LoadError::Store)?;
    if let Some(tip) = meta_anchor(&txn, TIP).map_err(LoadError::Store)? {
        return Err(LoadError::Store(Refusal::NotEmpty { tip }.into()));
    }
    let mut order = LoadOrder::default();
    while let Some(rows) = source.next_rows().map_err(LoadError::Source)? {
        order.check(&rows).map_err(|refusal| LoadError::Store(refusal.into()))?;
        put_piece(&txn, &rows).map_err(LoadError::Store)?;
    }
    let anchor = source.anchor().map_err(LoadError::Source)?;
    finish(txn, anchor).map_err(LoadError::Store)?;
    Ok(anchor)
}

fn finish(txn: WriteTransaction, anchor: StateAnchor) -> Result<(), RedbError> {
    put_block(&txn, &anchor)?;
    put_meta_anchor(&txn, GENESIS, &anchor)?;
    put_meta_anchor(&txn, TIP, &anchor)?;
    Ok(txn.commit()?)
}

fn put_piece(txn: &WriteTransaction, rows: &Rows) -> Result<(), RedbError> {
    put_sorted(txn, ACCOUNTS, record::account_table(rows))?;
    put_sorted(txn, SLOTS, record::slot_table(rows))?;
    put_sorted(txn, CODES, rows.codes.iter().map(|(hash, code)| (hash.0, Some(code))))
}

/// Writes sorted rows: those that come after all of the table by a cursor at its end. None deletes.
fn put_sorted<const N: usize, V: AsRef<[u8]>>(
    txn: &WriteTransaction,
    table: Table<Fixed<N>>,
    rows: impl Iterator<Item = ([u8; N], Option<V>)>,
) -> Result<(), RedbError> {
    let mut rows = rows.filter_map(|(key, row)| Some((key, row?))).peekable();
    let mut table = txn.open_table(table)?;
    let last = table.last()?.map(|(key, _)| *key.value());
    if let Some(last) = last {
        while let Some((key, row)) = rows.next_if(|(key, _)| *key <= last) {
            table.insert(&key, row.as_ref())?;
        }
    }
    let mut end = table.upper_bound_mut(Bound::<&[u8; N]>::Unbounded)?;
    for (key, row) in rows {
        end.insert_before(&key, row.as_ref())?;
    }
    Ok(end.close()?)
}
