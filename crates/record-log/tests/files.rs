//! The log's files: what comes back after reopening, after a cut at every byte, after flips, and what is refused.

mod common;

use std::fs;

use alloy_primitives::B256;
use common::{log_files, log_with, open, record, replayed, segments};
use foldgate_core::{BlockNumHash, BlockRecord, Record, RecordLog, Redo, StateAnchor};
use foldgate_record_log::{FORMAT_VERSION, FileLog, LogError, Options};
use proptest::prelude::*;
use tempfile::TempDir;

fn damaged(result: Result<FileLog, LogError>) -> u64 {
    match result {
        Err(LogError::Damaged { sequence, .. }) => sequence,
        other => panic!("expected damage: {other:?}"),
    }
}

#[test]
fn what_was_synced_comes_back_in_order() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path());
    assert_eq!(replayed(&mut log), []);
    for number in 0..50 {
        log.append(&record(number)).unwrap();
        if number % 7 == 0 {
            log.sync().unwrap();
        }
    }
    // Not synced, and seen all the same by the process that wrote it.
    assert_eq!(replayed(&mut log), (0..50).map(record).collect::<Vec<_>>());
    log.sync().unwrap();
    drop(log);
    let mut log = open(dir.path());
    assert!(log.segments() > 3, "{} segments", log.segments());
    assert_eq!(log.cut(), None);
    assert_eq!(replayed(&mut log), (0..50).map(record).collect::<Vec<_>>());
}

#[test]
fn a_log_is_open_once() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    assert!(matches!(FileLog::open(dir.path(), Options::default()), Err(LogError::AlreadyOpen { .. })));
    drop(log);
    open(dir.path());
}

#[test]
fn a_record_longer_than_a_segment_gets_one_of_its_own() {
    let dir = TempDir::new().unwrap();
    let options = Options::default().with_segment_bytes(64);
    let mut log = FileLog::open(dir.path(), options).unwrap();
    for number in 0..4 {
        log.append(&record(number)).unwrap();
    }
    log.sync().unwrap();
    drop(log);
    let mut log = FileLog::open(dir.path(), options).unwrap();
    assert_eq!(replayed(&mut log), (0..4).map(record).collect::<Vec<_>>());
}

/// The last batch holds three records: wherever the file ends, those that are whole are kept, and the log goes on.
#[test]
fn a_file_cut_at_any_byte_keeps_the_records_before() {
    let dir = TempDir::new().unwrap();
    drop(log_with(dir.path(), &[&[0, 1], &[2, 3, 4]]));
    let path = segments(dir.path()).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut kept_before = 0;
    for length in 48..=end + 16 {
        fs::write(&path, &whole[..length]).unwrap();
        let mut log = open(dir.path());
        let mut found = replayed(&mut log);
        let kept = found.len() as u64;
        assert_eq!(found, (0..kept).map(record).collect::<Vec<_>>(), "cut at {length}");
        assert!(kept >= kept_before, "cut at {length}");
        kept_before = kept;
        // What is cut off is gone for good, and the log goes on behind it.
        log.append(&record(100)).unwrap();
        log.sync().unwrap();
        drop(log);
        let mut log = open(dir.path());
        assert_eq!(log.cut(), None, "cut at {length}");
        found.push(record(100));
        assert_eq!(replayed(&mut log), found, "cut at {length}");
    }
    assert_eq!(kept_before, 5);
}

/// The same, where the file keeps its length and the end was never written.
#[test]
fn zeros_from_any_byte_on_are_a_torn_end() {
    let dir = TempDir::new().unwrap();
    drop(log_with(dir.path(), &[&[0, 1], &[2, 3, 4]]));
    let path = segments(dir.path()).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for begin in 48..=end {
        let mut torn = whole.clone();
        torn[begin..].fill(0);
        fs::write(&path, &torn).unwrap();
        let mut log = open(dir.path());
        let found = replayed(&mut log);
        assert_eq!(found, (0..found.len() as u64).map(record).collect::<Vec<_>>(), "zeros from {begin}");
        assert_eq!(found.len() == 5, begin == end, "zeros from {begin}");
    }
}

#[test]
fn flips_before_the_last_batch_are_damage_and_in_it_a_torn_end() {
    let dir = TempDir::new().unwrap();
    drop(log_with(dir.path(), &[&[0, 1], &[2], &[3, 4]]));
    let path = segments(dir.path()).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let (mut damages, mut cuts) = (0, 0);
    for at in 48..end {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&path, &flipped).unwrap();
        match FileLog::open(dir.path(), common::OPTIONS) {
            Err(LogError::Damaged { sequence, path: named, .. }) => {
                assert!(sequence < 3 && named == path, "flipped at {at}");
                assert_eq!(fs::read(&path).unwrap(), flipped, "damage is left as it is");
                damages += 1;
            }
            Ok(mut log) => {
                let found = replayed(&mut log);
                assert!((3..5).contains(&found.len()), "flipped at {at}");
                assert_eq!(found, (0..found.len() as u64).map(record).collect::<Vec<_>>());
                assert!(log.cut().is_some(), "flipped at {at}");
                cuts += 1;
            }
            Err(other) => panic!("flipped at {at}: {other}"),
        }
    }
    assert!(damages > 100 && cuts > 100, "{damages} {cuts}");
}

/// A loss of power may keep the end of a batch that was never synced, and lose its beginning.
#[test]
fn a_hole_in_the_last_batch_is_torn_and_one_before_it_is_damage() {
    let dir = TempDir::new().unwrap();
    let with_hole = |batches: &[&[u64]]| {
        drop(log_with(dir.path(), batches));
        let path = segments(dir.path()).pop().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        // The payload of the second record of all.
        let at = 48 + common::frame_bytes(0) + 60;
        bytes[at..at + 8].fill(0);
        fs::write(&path, bytes).unwrap();
        let opened = FileLog::open(dir.path(), common::OPTIONS);
        for path in segments(dir.path()) {
            fs::remove_file(path).unwrap();
        }
        opened
    };
    let mut torn = with_hole(&[&[0, 1, 2]]).unwrap();
    assert!(torn.cut().is_some());
    drop(torn.append(&record(7)));
    drop(torn);
    assert_eq!(damaged(with_hole(&[&[0, 1], &[2]])), 1);
    assert_eq!(damaged(with_hole(&[&[0], &[1], &[2]])), 1);
}

#[test]
fn damage_in_an_older_segment_is_an_error() {
    let dir = TempDir::new().unwrap();
    let numbers: Vec<_> = (0..40).collect();
    drop(log_with(dir.path(), &[&numbers]));
    let paths = segments(dir.path());
    assert!(paths.len() > 2);
    let whole = fs::read(&paths[0]).unwrap();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    // Its last record: nothing follows it in its own segment, but there is a younger segment.
    for broken in [whole[..end - 3].to_vec(), whole[..48].to_vec(), {
        let mut flipped = whole.clone();
        flipped[end - 20] ^= 1;
        flipped
    }] {
        fs::write(&paths[0], broken).unwrap();
        damaged(FileLog::open(dir.path(), common::OPTIONS));
    }
    let mut header = whole.clone();
    header[30] ^= 1;
    fs::write(&paths[0], header).unwrap();
    assert!(matches!(FileLog::open(dir.path(), common::OPTIONS), Err(LogError::DamagedHeader { .. })));
    fs::write(&paths[0], [0; 4096]).unwrap();
    assert!(matches!(FileLog::open(dir.path(), common::OPTIONS), Err(LogError::DamagedHeader { .. })));
    fs::write(&paths[0], whole).unwrap();
    fs::remove_file(&paths[1]).unwrap();
    assert!(matches!(FileLog::open(dir.path(), common::OPTIONS), Err(LogError::MissingSegment { number: 1, .. })));
}

#[test]
fn a_segment_that_was_being_made_is_removed() {
    let dir = TempDir::new().unwrap();
    drop(log_with(dir.path(), &[&[0, 1]]));
    let unborn = dir.path().join(format!("{:020}.log", 1));
    let header = fs::read(segments(dir.path()).pop().unwrap()).unwrap();
    for length in (0..48).chain([4096]) {
        // Up to a torn header: its first bytes, or zeros.
        let bytes = if length < 48 { header[..length].to_vec() } else { vec![0; length] };
        fs::write(&unborn, bytes).unwrap();
        let mut log = open(dir.path());
        assert_eq!(replayed(&mut log), [record(0), record(1)], "{length} bytes");
        assert!(!unborn.exists());
    }
}

/// The next segment is there before it is needed, and counts for nothing until then.
#[test]
fn the_next_segment_is_made_ahead_and_removed_at_opening() {
    let dir = TempDir::new().unwrap();
    let options = Options::default().with_segment_bytes(1 << 20);
    let mut log = FileLog::open(dir.path(), options).unwrap();
    let list = Record::Block(BlockRecord {
        parent_hash: B256::ZERO,
        anchor: StateAnchor { block: BlockNumHash::new(1, B256::ZERO), state_root: B256::ZERO },
        redo: Redo::Bal(vec![7; 100_000].into()),
    });
    for number in 0..5 {
        log.append(&list).unwrap();
        log.sync().unwrap();
        assert_eq!(log_files(dir.path()).len(), 1, "after {number}: less than half is full");
    }
    log.append(&list).unwrap();
    log.sync().unwrap();
    // Waits until it is made.
    drop(log);
    let next = log_files(dir.path()).pop().unwrap();
    assert_eq!((segments(dir.path()).len(), log_files(dir.path()).len()), (1, 2));
    assert_eq!(fs::read(&next).unwrap(), vec![0; 1 << 20]);
    let mut log = FileLog::open(dir.path(), options).unwrap();
    assert!(!next.exists());
    assert_eq!((log.segments(), log.cut()), (1, None));
    assert_eq!(replayed(&mut log).len(), 6);
    // Three more records fill it, and the next one is taken.
    for _ in 0..8 {
        log.append(&list).unwrap();
    }
    assert_eq!((log.segments(), segments(dir.path()).len()), (2, 2));
    log.sync().unwrap();
    drop(log);
    let mut log = FileLog::open(dir.path(), options).unwrap();
    assert_eq!(replayed(&mut log), vec![list; 14]);
}

/// What an attempt to make the next segment has left, that failed late, is in nobody's way.
#[test]
fn what_is_left_of_a_segment_that_could_not_be_made_is_overwritten() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path());
    fs::write(dir.path().join(format!("{:020}.log", 1)), [7; 5000]).unwrap();
    let numbers: Vec<_> = (0..20).collect();
    numbers.iter().for_each(|number| log.append(&record(*number)).unwrap());
    log.sync().unwrap();
    assert!(log.segments() > 1);
    drop(log);
    assert_eq!(replayed(&mut open(dir.path())), numbers.into_iter().map(record).collect::<Vec<_>>());
}

/// A record for which the segment made ahead is too short makes it longer.
#[test]
fn a_segment_that_was_made_ahead_grows_for_a_long_record() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path());
    let numbers: Vec<_> = (0..12).collect();
    numbers.iter().for_each(|number| log.append(&record(*number)).unwrap());
    let block = BlockNumHash::new(12, B256::ZERO);
    let anchor = StateAnchor { block, state_root: B256::ZERO };
    let long = Record::Block(BlockRecord { parent_hash: B256::ZERO, anchor, redo: Redo::Bal(vec![7; 50_000].into()) });
    log.append(&long).unwrap();
    log.sync().unwrap();
    drop(log);
    let longest = segments(dir.path()).iter().map(|path| fs::metadata(path).unwrap().len()).max();
    assert!(longest > Some(50_000));
    let mut log = open(dir.path());
    assert_eq!(replayed(&mut log), numbers.into_iter().map(record).chain([long]).collect::<Vec<_>>());
}

#[test]
fn other_versions_are_refused() {
    let dir = TempDir::new().unwrap();
    drop(log_with(dir.path(), &[&[0, 1]]));
    let path = segments(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[8..12].copy_from_slice(&(FORMAT_VERSION + 1).to_be_bytes());
    fs::write(&path, bytes).unwrap();
    let refused = FileLog::open(dir.path(), common::OPTIONS);
    assert!(
        matches!(refused, Err(LogError::FormatVersion { got, expected, .. }) if (got, expected) == (FORMAT_VERSION + 1, FORMAT_VERSION)),
        "{refused:?}"
    );
}

#[test]
fn pruning_removes_whole_segments_from_the_oldest_on() {
    let dir = TempDir::new().unwrap();
    let numbers: Vec<_> = (0..60).collect();
    let mut log = log_with(dir.path(), &[&numbers]);
    let mut before = log.segments();
    for up_to in [0, 10, 30, 31, 59, 59] {
        log.prune(up_to).unwrap();
        let found = replayed(&mut log);
        let first = found[0].block().number;
        assert!(first <= up_to + 1, "{first} after pruning up to {up_to}");
        assert_eq!(found, (first..60).map(record).collect::<Vec<_>>());
        assert!(log.segments() <= before);
        before = log.segments();
        assert_eq!(segments(dir.path()).len(), before);
    }
    assert_eq!(before, 1, "the newest stays");
    log.append(&record(60)).unwrap();
    log.sync().unwrap();
    drop(log);
    let found = replayed(&mut open(dir.path()));
    assert_eq!(found.last(), Some(&record(60)));
}

/// One thing that is done to a log.
#[derive(Debug, Clone)]
enum Step {
    Append(u64),
    Sync,
    Reopen,
    Prune(u64),
    /// Closes it and cuts so many bytes off the end of what was written last.
    Tear(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..200_u64).prop_map(Step::Append),
        3 => Just(Step::Sync),
        1 => Just(Step::Reopen),
        1 => (0..100_u64).prop_map(Step::Prune),
        1 => (1..400_usize).prop_map(Step::Tear),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is done, the log is a run of what was appended: it ends where something was torn off, and begins where
    /// something was pruned.
    #[test]
    fn a_log_is_a_run_of_what_was_appended(steps in steps()) {
        let dir = TempDir::new().unwrap();
        let mut log = open(dir.path());
        let mut expected: Vec<u64> = Vec::new();
        for step in steps {
            match step {
                Step::Append(number) => {
                    log.append(&record(number)).unwrap();
                    expected.push(number);
                }
                Step::Sync => log.sync().unwrap(),
                Step::Reopen => {
                    log.sync().unwrap();
                    drop(log);
                    log = open(dir.path());
                }
                Step::Prune(up_to) => {
                    log.prune(up_to).unwrap();
                    let found = replayed(&mut log);
                    let gone = expected.len() - found.len();
                    prop_assert!(expected[..gone].iter().all(|number| *number <= up_to));
                    expected.drain(..gone);
                }
                Step::Tear(bytes) => {
                    log.sync().unwrap();
                    drop(log);
                    let path = segments(dir.path()).pop().unwrap();
                    let whole = fs::read(&path).unwrap();
                    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
                    fs::write(&path, &whole[..end.saturating_sub(bytes).max(48)]).unwrap();
                    log = open(dir.path());
                    let found = replayed(&mut log);
                    prop_assert!(found.len() <= expected.len());
                    expected.truncate(found.len());
                }
            }
            let found = replayed(&mut log);
            prop_assert_eq!(found, expected.iter().copied().map(record).collect::<Vec<_>>());
        }
    }
}
