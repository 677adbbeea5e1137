//! Writing: commit, unwind and prune, each one durable write transaction.
//!
//! Invariants:
//! 1. What is checked is read in the same transaction that writes: no other writer comes between.
//! 2. Nothing is visible or durable before the transaction's commit; an error before it leaves no trace.
//! 3. Rows are written in order of their keys.

use foldgate_core::{BlockNumHash, BlockNumber, CommitBatch, Rows, StateAnchor, UnwindBatch, record, store::Retention};
use redb::{ReadableTable, WriteTransaction};

use crate::{
    env::Env,
    error::RedbError,
    tables::{
        ACCOUNTS, ANCHORS, BALS, BLOCK_HASHES, CODES, Fixed, META, REVERSE_DIFFS, SLOTS, TIP, Table, decode_anchor,
    },
};

pub(crate) fn commit(env: &Env, batch: &CommitBatch) -> Result<(), RedbError> {
    let txn = env.begin_write()?;
    let tip = batch.check(meta_anchor(&txn, TIP)?)?;
    put_rows(&txn, &batch.rows)?;
    for block in &batch.blocks {
        put_block(&txn, &block.anchor)?;
        let key = record::number_key(block.anchor.block.number);
        txn.open_table(REVERSE_DIFFS)?.insert(&key, block.reverse.to_bytes().as_slice())?;
        if let Some(bal) = &block.bal {
            txn.open_table(BALS)?.insert(&record::block_key(&block.anchor.block), bal.as_ref())?;
        }
    }
    put_meta_anchor(&txn, TIP, &tip)?;
    Ok(txn.commit()?)
}

pub(crate) fn unwind(env: &Env, batch: &UnwindBatch) -> Result<(), RedbError> {
    let txn = env.begin_write()?;
    let committed = anchor_at(&txn, batch.to.block.number)?;
    batch.check(meta_anchor(&txn, TIP)?, committed)?;
    put_rows(&txn, &batch.rows)?;
    // The target lies below the tip: see the check.
    let above = batch.to.block.number + 1;
    let key = record::number_key(above);
    for table in [BLOCK_HASHES, ANCHORS, REVERSE_DIFFS] {
        txn.open_table(table)?.retain_in::<&[u8; 8], _>(&key.., |_, _| false)?;
    }
    let first = record::block_key(&BlockNumHash::new(above, Default::default()));
    txn.open_table(BALS)?.retain_in::<&[u8; 40], _>(&first.., |_, _| false)?;
    put_meta_anchor(&txn, TIP, &batch.to)?;
    Ok(txn.commit()?)
}

pub(crate) fn prune_below(env: &Env, below: BlockNumber) -> Result<u64, RedbError> {
    let txn = env.begin_write()?;
    let Some(tip) = meta_anchor(&txn, TIP)? else { return Ok(0) };
    let keep = Retention::below(below, tip);
    for (table, first) in [(BLOCK_HASHES, keep.block_hashes), (ANCHORS, keep.anchors), (REVERSE_DIFFS, keep.diffs)] {
        let key = record::number_key(first);
        txn.open_table(table)?.retain_in::<&[u8; 8], _>(..&key, |_, _| false)?;
    }
    let mut dropped = 0;
    let first = record::block_key(&BlockNumHash::new(keep.diffs, Default::default()));
    txn.open_table(BALS)?.retain_in::<&[u8; 40], _>(..&first, |_, _| {
        dropped += 1;
        false
    })?;
    txn.commit()?;
    Ok(dropped)
}

fn put_rows(txn: &WriteTransaction, rows: &Rows) -> Result<(), RedbError> {
    put_all(txn, ACCOUNTS, record::account_table(rows))?;
    put_all(txn, SLOTS, record::slot_table(rows))?;
    put_all(txn, CODES, rows.codes.iter().map(|(hash, code)| (hash.0, Some(code))))
}

/// Writes or, where there is no row, deletes, key after key.
fn put_all<const N: usize, V: AsRef<[u8]>>(
    txn: &WriteTransaction,
    table: Table<Fixed<N>>,
    rows: impl Iterator<Item = ([u8; N], Option<V>)>,
) -> Result<(), RedbError> {
    let mut table = txn.open_table(table)?;
    for (key, row) in rows {
        match row {
            Some(row) => drop(table.insert(&key, row.as_ref())?),
            None => drop(table.remove(&key)?),
        }
    }
    Ok(())
}

pub(crate) fn put_block(txn: &WriteTransaction, anchor: &StateAnchor) -> Result<(), RedbError> {
    let key = record::number_key(anchor.block.number);
    txn.open_table(BLOCK_HASHES)?.insert(&key, anchor.block.hash.as_slice())?;
    txn.open_table(ANCHORS)?.insert(&key, record::anchor_bytes(anchor).as_slice())?;
    Ok(())
}

pub(crate) fn put_meta_anchor(txn: &WriteTransaction, key: &str, anchor: &StateAnchor) -> Result<(), RedbError> {
    txn.open_table(META)?.insert(key, record::anchor_bytes(anchor).as_slice())?;
    Ok(())
}

pub(crate) fn meta_anchor(txn: &WriteTransaction, key: &'static str) -> Result<Option<StateAnchor>, RedbError> {
    let table = txn.open_table(META)?;
    let row = table.get(key)?;
    row.map(|row| decode_anchor("meta", key.as_bytes(), row.value())).transpose()
}

fn anchor_at(txn: &WriteTransaction, number: BlockNumber) -> Result<Option<StateAnchor>, RedbError> {
    let key = record::number_key(number);
    let table = txn.open_table(ANCHORS)?;
    let row = table.get(&key)?;
    row.map(|row| decode_anchor("anchors", &key, row.value())).transpose()
}
