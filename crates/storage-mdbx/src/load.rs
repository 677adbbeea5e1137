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

use alloy_primitives::{B256, Bytes, U256};
use foldgate_core::{
    Account, LoadError, LoadSource, NodeKey, Refusal, Rows, StateAnchor, TrieId, record, store::LoadOrder,
};

use crate::{
    commit::{meta_anchor, put_block, put_meta_anchor},
    env::{Env, WriteTxn},
    error::MdbxError,
    tables::{ACCOUNT_NODES, ACCOUNTS, CODES, GENESIS, SLOTS, STORAGE_NODES, TIP, Table},
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

/// Where one row is encoded.
struct Scratch {
    key: [u8; NodeKey::MAX_BYTES],
    row: [u8; Account::MAX_BYTES],
}

/// The bytes of a row's key, and of the row; none if it deletes, which a load does not.
type Encoded<'a> = (&'a [u8], Option<&'a [u8]>);

fn encode_account<'a>((key, account): &'a (B256, Option<Account>), scratch: &'a mut Scratch) -> Encoded<'a> {
    (key.as_slice(), account.as_ref().map(|account| account.write_bytes(&mut scratch.row)))
}

fn encode_slot<'a>(((account, slot), value): &'a ((B256, B256), U256), scratch: &'a mut Scratch) -> Encoded<'a> {
    let Scratch { key, row } = scratch;
    key[..64].copy_from_slice(&record::slot_key(account, slot));
    let row = row.first_chunk_mut().map(|row| record::write_slot_value(value, row));
    (&key[..64], row.filter(|row| !row.is_empty()))
}

fn encode_node<'a>((key, row): &'a (NodeKey, Option<Bytes>), scratch: &'a mut Scratch) -> Encoded<'a> {
    (key.write_bytes(&mut scratch.key), row.as_ref().map(|row| row.as_ref()))
}

fn encode_code<'a>((hash, code): &'a (B256, Bytes), _: &'a mut Scratch) -> Encoded<'a> {
    (hash.as_slice(), Some(code))
}

fn put_piece(txn: &WriteTxn<'_>, rows: &Rows) -> Result<(), MdbxError> {
    put_sorted(txn, ACCOUNTS, &rows.accounts, encode_account)?;
    put_sorted(txn, SLOTS, &rows.slots, encode_slot)?;
    // Keys sort the account trie first.
    let split = rows.nodes.partition_point(|(key, _)| key.trie == TrieId::Accounts);
    let (account_nodes, storage_nodes) = rows.nodes.split_at(split);
    put_sorted(txn, ACCOUNT_NODES, account_nodes, encode_node)?;
    put_sorted(txn, STORAGE_NODES, storage_nodes, encode_node)?;
    put_sorted(txn, CODES, &rows.codes, encode_code)
}

/// Writes sorted rows: those that come after all of the table by a cursor at its end.
fn put_sorted<T>(
    txn: &WriteTxn<'_>,
    table: Table,
    rows: &[T],
    encode: impl for<'a> Fn(&'a T, &'a mut Scratch) -> Encoded<'a>,
) -> Result<(), MdbxError> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut scratch = Scratch { key: [0; NodeKey::MAX_BYTES], row: [0; Account::MAX_BYTES] };
    let mut end = txn.end_of(table)?;
    let last = end.last_key()?;
    let is_late = |row: &T, scratch: &mut Scratch| last.as_deref().is_some_and(|last| encode(row, scratch).0 <= last);
    let (late, rest) = rows.split_at(rows.partition_point(|row| is_late(row, &mut scratch)));
    for row in rest {
        if let (key, Some(row)) = encode(row, &mut scratch) {
            end.append(key, row)?;
        }
    }
    for row in late {
        if let (key, Some(row)) = encode(row, &mut scratch) {
            txn.put(table, key, row)?;
        }
    }
    Ok(())
}
