//! Time from a list's raw bytes to all that its block needs of it in hashed keys, beside what it takes to decode the
//! same bytes with `alloy-eip7928` and to hash the same keys with alloy-primitives, and nothing more.
//!
//! Invariants:
//! 1. The lists have the sizes of mainnet's at 60 million gas: 600 accounts of which 400 change, 700 slots written (3 in
//!    the median contract, 300 in the largest; 7 % end zero), 980 only read, 230 nonces; or sixteen times as much.
//! 2. Each iteration takes the next of several lists. On a noisy machine the `fastest` column is the one to compare.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use alloy_eip7928::BlockAccessList;
use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_rlp::Decodable;
use divan::{Bencher, black_box};
use foldgate_bal::{
    AccountChanges, Bal, BalLimits, BalanceChange, BlockAccessIndex, CodeChange, NonceChange, SlotChanges,
    StorageChange, bal_hash, decode, encode,
};
use foldgate_core::keys::{hash_address, hash_slot};
use foldgate_keccak::Kernel;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

/// How many times the size of a block of 60 million gas.
const SIZES: [usize; 2] = [1, 16];
const LISTS: u64 = 8;
const TRANSACTIONS: u64 = 230;

fn main() {
    println!("kernel: {}; a list as its multiple of 60 million gas", Kernel::active());
    for size in SIZES {
        let raw = lists(size).swap_remove(0);
        let bal = Bal::decode_checked(raw, None, &limits(size)).expect("the generated list keeps the rules");
        let state = bal.post_state();
        let written: usize = state.accounts.values().map(|delta| delta.storage.len()).sum();
        println!(
            "{size}: {} bytes, {} accounts, {} changed, {written} slots written, {} only read",
            bal.raw().len(),
            bal.keys().account_count(),
            state.accounts.len(),
            bal.keys().slot_count() - written,
        );
    }
    for size in SIZES {
        side_by_side(size);
    }
    divan::main();
}

/// Both sides in turn, with the hash of the list's bytes taken off: what decoding, rules and hashed keys take.
fn side_by_side(size: usize) {
    let (mut whole, mut list_hash, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for raw in lists(size).iter().cycle().take(2_000 / size) {
        let time = |work: &dyn Fn()| {
            let begin = Instant::now();
            work();
            begin.elapsed()
        };
        whole.push(time(&|| drop(black_box(Bal::decode_checked(raw.clone(), None, &limits(size))))));
        list_hash.push(time(&|| _ = black_box(bal_hash(raw))));
        theirs.push(time(&|| drop(black_box(alloy(raw)))));
    }
    [&mut whole, &mut list_hash, &mut theirs].into_iter().for_each(|times| times.sort());
    let less_hash = |at: usize| whole[at].saturating_sub(list_hash[at]);
    let median = whole.len() / 2;
    println!("{size}: one pass: median {:?}, min {:?}", less_hash(median), less_hash(0));
    println!("{size}:    alloy: median {:?}, min {:?}", theirs[median], theirs[0]);
}

fn limits(size: usize) -> BalLimits {
    BalLimits::new(TRANSACTIONS * size as u64, 60_000_000 * size as u64)
}

/// Slots written by each of the storage-writing contracts: 700 in 150 contracts, most of them few.
fn written_counts(size: usize) -> Vec<usize> {
    let mut counts = Vec::new();
    for _ in 0..size {
        counts.extend([300, 50]);
        counts.extend([6; 13]);
        counts.extend([3; 60]);
        counts.extend([1; 75]);
        counts.push(17);
    }
    counts
}

fn slot(rng: &mut StdRng) -> U256 {
    // Fields of a contract lie low; entries of its mappings at hashes.
    if rng.random_bool(0.2) { U256::from(rng.random_range(0..40u64)) } else { U256::from_be_bytes::<32>(rng.random()) }
}

fn value(rng: &mut StdRng) -> U256 {
    match rng.random_range(0..100) {
        0..7 => U256::ZERO,
        7..40 => U256::from(rng.random::<u64>()),
        40..70 => U256::from_be_slice(&rng.random::<[u8; 20]>()),
        _ => U256::from_be_bytes::<32>(rng.random()),
    }
}

/// One index in four of five cases, more in the others.
fn indices(rng: &mut StdRng, size: usize) -> BTreeSet<BlockAccessIndex> {
    let count = if rng.random_bool(0.8) { 1 } else { rng.random_range(2..4) };
    (0..count).map(|_| BlockAccessIndex::new(rng.random_range(0..TRANSACTIONS * size as u64))).collect()
}

fn list(size: usize, rng: &mut StdRng) -> BlockAccessList {
    let mut accounts = BTreeMap::<Address, AccountChanges>::new();
    while accounts.len() < 600 * size {
        let address = Address::from(rng.random::<[u8; 20]>());
        accounts.insert(address, AccountChanges::new(address));
    }
    let written = written_counts(size);
    // What an account does does not depend on where it stands.
    let mut positions: Vec<usize> = (0..accounts.len()).collect();
    positions.shuffle(rng);
    for (position, account) in positions.into_iter().zip(accounts.values_mut()) {
        let slots: BTreeSet<_> = (0..written.get(position).copied().unwrap_or(0)).map(|_| slot(rng)).collect();
        // Contracts that are only called, and those that write, are read.
        let reads = if position < 350 * size { rng.random_range(0..7) } else { 0 };
        account.storage_reads = (0..reads).map(|_| slot(rng)).filter(|slot| !slots.contains(slot)).collect();
        account.storage_reads.sort();
        account.storage_reads.dedup();
        for slot in slots {
            let changes = indices(rng, size).into_iter().map(|at| StorageChange::new(at, value(rng))).collect();
            account.storage_changes.push(SlotChanges::new(slot, changes));
        }
        if (120 * size..400 * size).contains(&position) {
            let balance = |rng: &mut StdRng| U256::from(rng.random::<u128>() >> 48);
            account.balance_changes =
                indices(rng, size).into_iter().map(|at| BalanceChange::new(at, balance(rng))).collect();
        }
        if (170 * size..400 * size).contains(&position) {
            let nonce = rng.random_range(1..5_000);
            account.nonce_changes =
                (indices(rng, size).into_iter().zip(nonce..)).map(|(at, nonce)| NonceChange::new(at, nonce)).collect();
        }
        if position % (300 * size) == 7 {
            let code: Vec<u8> = (0..6_000).map(|_| rng.random()).collect();
            account.code_changes = vec![CodeChange::new(BlockAccessIndex::new(3), code.into())];
        }
    }
    accounts.into_values().collect()
}

fn lists(size: usize) -> Vec<Bytes> {
    (0..LISTS).map(|seed| encode(&list(size, &mut StdRng::seed_from_u64(seed)))).collect()
}

fn each_list<T>(bencher: Bencher<'_, '_>, size: usize, work: impl Fn(&Bytes) -> T) {
    let lists = lists(size);
    let mut next = lists.iter().cycle();
    bencher.bench_local(|| next.next().map(|raw| work(black_box(raw))));
}

/// With the hash of the list's bytes.
#[divan::bench(args = SIZES)]
fn one_pass(bencher: Bencher<'_, '_>, size: usize) {
    each_list(bencher, size, |raw| Bal::decode_checked(raw.clone(), None, &limits(size)).is_ok());
}

#[divan::bench(args = SIZES)]
fn hash_of_the_list(bencher: Bencher<'_, '_>, size: usize) {
    each_list(bencher, size, |raw| bal_hash(raw));
}

#[divan::bench(args = SIZES)]
fn nested_decode(bencher: Bencher<'_, '_>, size: usize) {
    each_list(bencher, size, |raw| decode(raw).is_ok());
}

/// Decodes, and hashes each key by itself; keeps the hashes in one list.
fn alloy(raw: &[u8]) -> (BlockAccessList, Vec<B256>) {
    let list = BlockAccessList::decode(&mut &raw[..]).unwrap_or_default();
    let mut hashes = Vec::new();
    for account in &list {
        hashes.push(keccak256(account.address));
        let written = account.storage_changes.iter().map(|changes| changes.slot);
        let slots = written.chain(account.storage_reads.iter().copied());
        hashes.extend(slots.map(|slot| keccak256(slot.to_be_bytes::<32>())));
    }
    (list, hashes)
}

#[divan::bench(args = SIZES)]
fn alloy_decode_and_scalar_hashes(bencher: Bencher<'_, '_>, size: usize) {
    each_list(bencher, size, |raw| alloy(raw));
}

#[divan::bench(args = SIZES)]
fn alloy_decode(bencher: Bencher<'_, '_>, size: usize) {
    each_list(bencher, size, |raw| BlockAccessList::decode(&mut &raw[..]).is_ok());
}

/// What an executor pays to have the hashes of all keys that it reads: looked up, and hashed one by one.
#[divan::bench(args = SIZES)]
fn look_keys_up(bencher: Bencher<'_, '_>, size: usize) {
    let raw = lists(size).swap_remove(0);
    let bal = Bal::decode_checked(raw, None, &limits(size)).expect("the generated list keeps the rules");
    let touched = touched(bal.accounts());
    bencher.bench_local(|| {
        for (address, slots) in &touched {
            black_box(bal.keys().hashed_address(address));
            slots.iter().for_each(|slot| _ = black_box(bal.keys().hashed_slot(address, slot)));
        }
    });
}

#[divan::bench(args = SIZES)]
fn hash_keys_one_by_one(bencher: Bencher<'_, '_>, size: usize) {
    let list = decode(&lists(size)[0]).unwrap_or_default();
    let touched = touched(&list);
    bencher.bench_local(|| {
        for (address, slots) in &touched {
            black_box(hash_address(address));
            slots.iter().for_each(|slot| _ = black_box(hash_slot(slot)));
        }
    });
}

/// The keys of a list, accounts in no order.
fn touched(list: &[AccountChanges]) -> Vec<(Address, Vec<U256>)> {
    let slots = |account: &AccountChanges| {
        let written = account.storage_changes.iter().map(|changes| changes.slot);
        written.chain(account.storage_reads.iter().copied()).collect()
    };
    let mut touched: Vec<_> = list.iter().map(|account| (account.address, slots(account))).collect();
    touched.sort_by_key(|(address, _)| keccak256(address));
    touched
}
