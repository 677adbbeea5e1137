//! Loads a state into a fresh store, and says how long each part of it took.
//!
//! `cargo run --release --example bulk_load -- ACCOUNTS redb|mdbx|memory|rows|keys [DIRECTORY]`
//!
//! `keys` makes the sorted keys alone, `rows` turns leaves into rows on one thread and drops these. The variable
//! `THREADS` says how many threads take part, `SLOTS` how many slots each account has. Account `i` has the first 20
//! bytes of keccak256(`i` as 8 bytes, big-endian) as its address, the nonce `i` and the balance `i * 10^9 + 1`.

use std::{convert::Infallible, env, error::Error, fs, iter, path::Path, thread, time::Instant};

use alloy_primitives::{Address, B256, KECCAK256_EMPTY, U256, keccak256};
use foldgate::core::{
    AccountInfo, BlockNumHash, LoadSource, MemoryStore,
    keys::{hash_address, hash_slot},
    trie::bulk::{LoadItem, StateLoad},
};
use foldgate_storage_mdbx::MdbxStore;
use foldgate_storage_redb::RedbStore;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let accounts: u32 = arguments.next().ok_or("how many accounts?")?.replace('_', "").parse()?;
    let what = arguments.next().ok_or("redb, mdbx, memory, rows or keys?")?;
    let begin = Instant::now();
    let keys = sorted_keys(accounts);
    let slots = sorted_slots(env::var("SLOTS").map_or(Ok(0), |slots| slots.parse())?);
    println!("{accounts} keys: {:.2} s, {}", begin.elapsed().as_secs_f64(), memory());
    let threads = env::var("THREADS").ok().and_then(|threads| threads.parse().ok());
    let threads = threads.or(thread::available_parallelism().ok()).map_or(1, usize::from);
    let load = || StateLoad::new(items(&keys, &slots), BlockNumHash::new(0, B256::ZERO)).with_threads(threads);
    let begin = Instant::now();
    match what.as_str() {
        "keys" => {}
        "rows" => {
            let mut load = load();
            let mut bytes = 0;
            while let Some(rows) = load.next_rows()? {
                bytes += rows.nodes.iter().filter_map(|(_, row)| row.as_ref()).map(|row| row.len()).sum::<usize>();
            }
            println!("state root {}, {} MB of node rows", load.anchor()?.state_root, bytes >> 20);
        }
        "memory" => println!("state root {}", load().load_into(&MemoryStore::new())?.state_root),
        durable => {
            let place = arguments.next().ok_or("in which directory?")?;
            let place = Path::new(&place).join(durable);
            let state_root = match durable {
                "redb" => load().load_into(&RedbStore::open(&place, Default::default())?)?.state_root,
                "mdbx" => load().load_into(&MdbxStore::open(&place, Default::default())?)?.state_root,
                other => return Err(format!("no backend is called {other}").into()),
            };
            println!("state root {state_root}, {} MB of files", size(&place)? >> 20);
            fs::remove_dir_all(&place)?;
        }
    }
    println!("{what}: {:.2} s, {}", begin.elapsed().as_secs_f64(), memory());
    Ok(())
}

/// The hashed addresses of accounts, sorted, with the accounts' numbers.
fn sorted_keys(accounts: u32) -> Vec<(B256, u32)> {
    let hashed = |i: u32| hash_address(&Address::from_slice(&keccak256(u64::from(i).to_be_bytes())[..20]));
    let mut keys: Vec<_> = (0..accounts).map(|i| (hashed(i), i)).collect();
    keys.sort_unstable();
    keys
}

/// The hashed slots that each account has, sorted.
fn sorted_slots(slots: u32) -> Vec<B256> {
    let mut slots: Vec<_> = (0..slots).map(|slot| hash_slot(&U256::from(slot))).collect();
    slots.sort_unstable();
    slots
}

fn items<'a>(
    keys: &'a [(B256, u32)],
    slots: &'a [B256],
) -> impl Iterator<Item = Result<LoadItem, Infallible>> + Send + use<'a> {
    keys.iter().flat_map(move |(hashed_address, i)| {
        let balance = U256::from(*i) * U256::from(1_000_000_000) + U256::from(1);
        let info = AccountInfo { nonce: u64::from(*i), balance, code_hash: KECCAK256_EMPTY };
        let account = LoadItem::Account { hashed_address: *hashed_address, info };
        let slots =
            slots.iter().map(|slot| LoadItem::Slot { hashed_slot: *slot, value: U256::from(*i) + U256::from(1) });
        iter::once(account).chain(slots).map(Ok)
    })
}

fn size(directory: &Path) -> std::io::Result<u64> {
    fs::read_dir(directory)?.try_fold(0, |sum, entry| Ok(sum + entry?.metadata()?.len()))
}

/// What the system says of this process' memory, where it says anything.
fn memory() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lines = status.lines().filter(|line| ["VmHWM", "VmRSS", "RssAnon"].iter().any(|name| line.starts_with(name)));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}
