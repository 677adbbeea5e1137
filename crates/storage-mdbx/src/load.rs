//! Loading: a whole state into an empty store, in one durable write transaction.
//!
//! Rows come piece by piece, each table's almost in order: only trie nodes around the border between two pieces come
//! late, once all below them is known. Rows that come after all of their table are appended by a cursor, which packs
//! pages without searching for them; the few late ones are inserted.
//!
//! Invariants:
//! 1. Nothing is visible or durable before the transaction's commit; an error before it, or a kill, leaves no trace.
//! 2. No more than a piece is held beside the pages that MDBX has not written yet ([`Options::dirty_bytes`]).
//!
//! [`Options::dirty_bytes`]: crate::Options::dirty_bytes

use foldgate_core::{LoadError, LoadSource, Refusal, Rows, StateAnchor, record, store::LoadOrder};

use crate::{
    commit::{meta_anchor, put_block, put_meta_anchor},
    env::{Env, WriteTxn},
    error::MdbxError,
    tables::{ACCOUNTS, CODES, GENESIS, SLOTS, TIP, Table},
};

pub(crate) fn load<L: LoadSource>(env: &Env, mut source: L) -> Result<StateAnchor, LoadError<MdbxError, L::Error>> {
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

fn finish(txn: WriteTxn<'_>, anchor: StateAnchor) -> Result<(), MdbxError> {
    put_block(&txn, &anchor)?;
    put_meta_anchor(&txn, GENESIS, &anchor)?;
    put_meta_anchor(&txn, TIP, &anchor)?;
    txn.commit()
}

fn put_piece(txn: &WriteTxn<'_>, rows: &Rows) -> Result<(), MdbxError> {
    put_sorted(txn, ACCOUNTS, record::account_table(rows))?;
    put_sorted(txn, SLOTS, record::slot_table(rows))?;
    put_sorted(txn, CODES, rows.codes.iter().map(|(hash, code)| (hash, Some(code))))
}

/// Writes sorted rows: those that come after all of the table by a cursor at its end. None deletes.
fn put_sorted<K: AsRef<[u8]>, V: AsRef<[u8]>>(
    txn: &WriteTxn<'_>,
    table: Table,
    rows: impl Iterator<Item = (K, Option<V>)>,
) -> Result<(), MdbxError> {
    let mut rows = rows.filter_map(|(key, row)| Some((key, row?))).peekable();
    let Some(last) = txn.end_of(table)?.last_key()? else { return append(txn, table, rows) };
    while let Some((key, row)) = rows.next_if(|(key, _)| key.as_ref() <= last.as_slice()) {
        txn.put(table, key.as_ref(), row.as_ref())?;
    }
    append(txn, table, rows)
}

fn append<K: AsRef<[u8]>, V: AsRef<[u8]>>(
    txn: &WriteTxn<'_>,
    table: Table,
    rows: impl Iterator<Item = (K, V)>,
) -> Result<(), MdbxError> {
    let mut end = txn.end_of(table)?;
    for (key, row) in rows {
        end.append(key.as_ref(), row.as_ref())?;
    }
    Ok(())
}
