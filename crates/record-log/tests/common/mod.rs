//! What the suites share: records that are a function of their number.

#![allow(dead_code, reason = "each suite uses a part")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use alloy_primitives::{B256, Bytes, U256, keccak256};
use foldgate_core::{
    AccountChange, BlockNumHash, BlockRecord, Record, RecordLog, Redo, SlotChange, StateAnchor, StateDiff,
};
use foldgate_record_log::{FileLog, Options};

/// Small segments, so that there are many.
pub(crate) const OPTIONS: Options = Options::DEFAULT.with_segment_bytes(2048);

/// The record with this number. Of three, one is a list, one is leaves, one is a head.
pub(crate) fn record(number: u64) -> Record {
    let seed = keccak256(number.to_be_bytes());
    let block = BlockNumHash::new(number, seed);
    let bytes = |length: usize| Bytes::from(seed.iter().copied().cycle().take(length).collect::<Vec<_>>());
    let redo = match number % 3 {
        0 => return Record::Canonical(block),
        1 => Redo::Bal(bytes(usize::from(seed[0]))),
        _ => {
            let slots = vec![SlotChange { hashed_slot: seed, old: U256::ZERO, new: U256::from(number) }];
            let accounts = vec![AccountChange { hashed_address: seed, old: None, new: None, slots }];
            let bal = number.is_multiple_of(2).then(|| bytes(usize::from(seed[1])));
            Redo::Diff { diff: StateDiff { accounts, codes: vec![(seed, bytes(40))] }.forward(), bal }
        }
    };
    let anchor = StateAnchor { block, state_root: keccak256(seed) };
    Record::Block(BlockRecord { parent_hash: B256::ZERO, anchor, redo })
}

/// The bytes that the frame of [`record`] takes.
pub(crate) fn frame_bytes(number: u64) -> usize {
    let mut payload = Vec::new();
    record(number).write_bytes(&mut payload);
    (40 + payload.len()).next_multiple_of(8)
}

/// The segment files that have a header, oldest first: without the one that is made ahead.
pub(crate) fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths = log_files(dir);
    paths.retain(|path| fs::read(path).unwrap().starts_with(b"foldredo"));
    paths
}

/// All of the log's files, oldest first.
pub(crate) fn log_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries.filter(|path| path.extension().is_some_and(|ext| ext == "log")).collect();
    paths.sort();
    paths
}

pub(crate) fn open(dir: &Path) -> FileLog {
    FileLog::open(dir, OPTIONS).unwrap()
}

/// A log of these records, synced after each batch.
pub(crate) fn log_with(dir: &Path, batches: &[&[u64]]) -> FileLog {
    let mut log = open(dir);
    for batch in batches {
        batch.iter().for_each(|number| log.append(&record(*number)).unwrap());
        log.sync().unwrap();
    }
    log
}

pub(crate) fn replayed(log: &mut FileLog) -> Vec<Record> {
    let mut records = Vec::new();
    log.replay(&mut |record| records.push(record)).unwrap();
    records
}
