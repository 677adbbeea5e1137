//! How long an append with its sync takes, one after the other and with pauses as between blocks: `cargo run --release -p foldgate-record-log --example latency [folder]`.

use std::{
    env,
    error::Error,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use alloy_primitives::{B256, Bytes};
use foldgate_core::{BlockNumHash, BlockRecord, Record, RecordLog, Redo, StateAnchor};
use foldgate_record_log::{FileLog, Options};

/// As long as a full block's list.
const BAL_BYTES: usize = 70_000;
const RECORDS: u64 = 2000;

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let dir = env::args_os().nth(1).map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    let mut log = FileLog::open(&dir, Options::default())?;
    for (batch, pause_ms) in [(1, 0), (8, 0), (1, 5)] {
        let (mut took, mut began) = (Vec::new(), Vec::new());
        let begin = Instant::now();
        for number in 0..RECORDS {
            let block = BlockNumHash::new(number, B256::ZERO);
            let anchor = StateAnchor { block, state_root: B256::ZERO };
            let redo = Redo::Bal(Bytes::from(vec![7; BAL_BYTES]));
            let record = Record::Block(BlockRecord { parent_hash: B256::ZERO, anchor, redo });
            thread::sleep(Duration::from_millis(pause_ms));
            let segments = log.segments();
            let begin = Instant::now();
            log.append(&record)?;
            if log.segments() > segments {
                began.push(begin.elapsed());
            }
            if number % batch == batch - 1 {
                log.sync()?;
                took.push(begin.elapsed());
            }
        }
        let total = begin.elapsed();
        took.sort();
        began.sort();
        let (begins, segment) = (began.len(), began[began.len() / 2]);
        let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
        let per_second = RECORDS as f64 / total.as_secs_f64();
        let [median, p99, max]: [Duration; 3] = [at(0.5), at(0.99), at(1.0)];
        println!(
            "{batch} records per sync, {pause_ms} ms between: sync {median:?} median, {p99:?} p99, {max:?} max; {per_second:.0} records/s; \
             beginning one of {begins} segments: {segment:?} median"
        );
        log.prune(RECORDS)?;
    }
    Ok(())
}
