//! Several blocks' layers in one batch, as a background flush commits them.

use std::sync::Arc;

use foldgate_core::{CommitBatch, Layer, Rows};

/// The batch of layers that follow on each other, oldest first: of each row the newest. `None` of no layers.
pub(super) fn merge(layers: &[Arc<Layer>]) -> Option<CommitBatch> {
    let mut batches = layers.iter().map(|layer| layer.to_batch());
    let mut merged = batches.next()?;
    for batch in batches {
        merged.blocks.extend(batch.blocks);
        append(&mut merged.rows, batch.rows);
    }
    newest(&mut merged.rows.accounts, |row| row.0);
    newest(&mut merged.rows.slots, |row| row.0);
    newest(&mut merged.rows.nodes, |row| row.0);
    newest(&mut merged.rows.codes, |row| row.0);
    Some(merged)
}

fn append(rows: &mut Rows, later: Rows) {
    rows.accounts.extend(later.accounts);
    rows.slots.extend(later.slots);
    rows.nodes.extend(later.nodes);
    rows.codes.extend(later.codes);
}

/// Sorts, and keeps the last one of equal keys.
fn newest<T, K: Ord>(rows: &mut Vec<T>, key: impl Fn(&T) -> K) {
    // Reversed, the newest comes first; the stable sort keeps it so.
    rows.reverse();
    rows.sort_by_key(&key);
    rows.dedup_by_key(|row| key(row));
}
