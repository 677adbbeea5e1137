//! Writing: commit, unwind and prune, each one durable write transaction.
//!
//! Invariants:
//! 1. What is checked is read in the same transaction that writes: no other writer comes between.
//! 2. Nothing is visible or durable before the transaction's commit; an error before it leaves no trace.
//! 3. Rows are written in order of their keys.

use foldgate_core::{BlockNumHash, BlockNumber, CommitBatch, Rows, StateAnchor, UnwindBatch, record, store::Retention};

use crate::{
    env::{Env, WriteTxn},
    error::MdbxError,
    tables::{ACCOUNTS, ANCHORS, BALS, BLOCK_HASHES, CODES, META, REVERSE_DIFFS, SLOTS, TIP, decode_anchor},
};

pub(crate) fn commit(env: &Env, batch: &CommitBatch) -> Result<(), MdbxError> {
    let txn = env.begin_write()?;
    let tip = batch.check(meta_anchor(&txn, TIP)?)?;
    put_rows(&txn, &batch.rows)?;
    for block in &batch.blocks {
        put_block(&txn, &block.anchor)?;
        let key = record::number_key(block.anchor.block.number);
        txn.put(REVERSE_DIFFS, &key, &block.reverse.to_bytes())?;
        if let Some(bal) = &block.bal {
            txn.put(BALS, &record::block_key(&block.anchor.block), bal)?;
        }
    }
    put_meta_anchor(&txn, TIP, &tip)?;
    txn.commit()
}

pub(crate) fn unwind(env: &Env, batch: &UnwindBatch) -> Result<(), MdbxError> {
    let txn = env.begin_write()?;
    let committed = anchor_at(&txn, batch.to.block.number)?;
    batch.check(meta_anchor(&txn, TIP)?, committed)?;
    put_rows(&txn, &batch.rows)?;
    // The target lies below the tip: see the check.
    let above = batch.to.block.number + 1;
    let key = record::number_key(above);
    for table in [BLOCK_HASHES, ANCHORS, REVERSE_DIFFS] {
        txn.delete_range(table, &key, None)?;
    }
    txn.delete_range(BALS, &record::block_key(&BlockNumHash::new(above, Default::default())), None)?;
    put_meta_anchor(&txn, TIP, &batch.to)?;
    txn.commit()
}

pub(crate) fn prune_below(env: &Env, below: BlockNumber) -> Result<u64, MdbxError> {
    let txn = env.begin_write()?;
    let Some(tip) = meta_anchor(&txn, TIP)? else { return Ok(0) };
    let keep = Retention::below(below, tip);
    for (table, first) in [(BLOCK_HASHES, keep.block_hashes), (ANCHORS, keep.anchors), (REVERSE_DIFFS, keep.diffs)] {
        txn.delete_range(table, &[], Some(&record::number_key(first)))?;
    }
    let first = record::block_key(&BlockNumHash::new(keep.diffs, Default::default()));
    let dropped = txn.delete_range(BALS, &[], Some(&first))?;
    txn.commit()?;
    Ok(dropped)
}

fn put_rows(txn: &WriteTxn<'_>, rows: &Rows) -> Result<(), MdbxError> {
    txn.put_all(ACCOUNTS, record::account_table(rows))?;
    txn.put_all(SLOTS, record::slot_table(rows))?;
    txn.put_all(CODES, rows.codes.iter().map(|(hash, code)| (hash, Some(code))))
}

pub(crate) fn put_block(txn: &WriteTxn<'_>, anchor: &StateAnchor) -> Result<(), MdbxError> {
    let key = record::number_key(anchor.block.number);
    txn.put(BLOCK_HASHES, &key, anchor.block.hash.as_slice())?;
    txn.put(ANCHORS, &key, &record::anchor_bytes(anchor))
}

pub(crate) fn put_meta_anchor(txn: &WriteTxn<'_>, key: &str, anchor: &StateAnchor) -> Result<(), MdbxError> {
    txn.put(META, key.as_bytes(), &record::anchor_bytes(anchor))
}

pub(crate) fn meta_anchor(txn: &WriteTxn<'_>, key: &'static str) -> Result<Option<StateAnchor>, MdbxError> {
    let row = txn.get(META, key.as_bytes())?;
    row.map(|row| decode_anchor("meta", key.as_bytes(), &row)).transpose()
}

fn anchor_at(txn: &WriteTxn<'_>, number: BlockNumber) -> Result<Option<StateAnchor>, MdbxError> {
    let key = record::number_key(number);
    txn.get(ANCHORS, &key)?.map(|row| decode_anchor("anchors", &key, &row)).transpose()
}
