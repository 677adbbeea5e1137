//! Time per hash of each kernel, on one thread, beside the default of alloy-primitives.
//!
//! Invariants:
//! 1. An iteration hashes 1,000 inputs, so that a time in µs reads as ns per hash. On a noisy machine the `fastest`
//!    column is the one to compare.

use alloy_primitives::{B256, keccak256};
use divan::{Bencher, black_box};
use foldgate_keccak::{Hasher, Kernel, RATE, pad_in_place, padded_len, rate_blocks};

const HASHES: usize = 1000;

fn main() {
    println!("1,000 hashes per iteration: µs read as ns per hash");
    for kernel in Kernel::ALL {
        println!("{kernel}: {}", if kernel.is_available() { "available" } else { "not on this processor: skipped" });
    }
    divan::main();
}

/// Message lengths: an address, a slot, an account leaf, a storage leaf's node, and a full branch (four rate blocks).
const LENGTHS: [usize; 4] = [20, 32, 110, 532];

fn messages(len: impl Fn(usize) -> usize) -> Vec<Vec<u8>> {
    (0..HASHES).map(|salt| (0..len(salt)).map(|i| (i * 31 + salt * 97 + i * salt) as u8).collect()).collect()
}

fn with_kernel(bencher: Bencher<'_, '_>, kernel: Kernel, hash: impl Fn(Hasher, &mut [B256])) {
    let Ok(hasher) = Hasher::with_kernel(kernel) else { return };
    let mut digests = vec![B256::ZERO; HASHES];
    bencher.bench_local(|| {
        hash(hasher, black_box(&mut digests));
    });
}

fn batch<const LEN: usize>(bencher: Bencher<'_, '_>, kernel: Kernel) {
    let messages = messages(|_| LEN);
    with_kernel(bencher, kernel, |hasher, digests| hasher.messages(black_box(&messages), digests));
}

#[divan::bench(consts = LENGTHS, args = Kernel::available())]
fn messages_of<const LEN: usize>(bencher: Bencher<'_, '_>, kernel: Kernel) {
    batch::<LEN>(bencher, kernel);
}

#[divan::bench(consts = [20, 32], args = Kernel::available())]
fn keys_of<const LEN: usize>(bencher: Bencher<'_, '_>, kernel: Kernel) {
    let keys: Vec<[u8; LEN]> = messages(|_| LEN).iter().map(|key| key.as_slice().try_into().unwrap()).collect();
    with_kernel(bencher, kernel, |hasher, digests| hasher.keys(black_box(&keys), digests));
}

#[divan::bench(consts = [110, 532], args = Kernel::available())]
fn padded_of<const LEN: usize>(bencher: Bencher<'_, '_>, kernel: Kernel) {
    let stride = padded_len(LEN);
    let mut data = vec![0; HASHES * stride];
    for (message, place) in messages(|_| LEN).iter().zip(data.chunks_exact_mut(stride)) {
        place[..LEN].copy_from_slice(message);
        pad_in_place(place, LEN).unwrap();
    }
    assert_eq!(stride, rate_blocks(LEN) * RATE);
    with_kernel(bencher, kernel, |hasher, digests| hasher.padded(black_box(&data), stride, rate_blocks(LEN), digests));
}

/// The nodes of a level of a trie: lengths from 33 to 532 bytes in no order.
#[divan::bench(args = Kernel::available())]
fn mixed_nodes(bencher: Bencher<'_, '_>, kernel: Kernel) {
    let messages = messages(|i| 33 + (i * 7919) % 500);
    with_kernel(bencher, kernel, |hasher, digests| hasher.messages(black_box(&messages), digests));
}

#[divan::bench(consts = LENGTHS)]
fn alloy_of<const LEN: usize>(bencher: Bencher<'_, '_>) {
    let messages = messages(|_| LEN);
    let mut digests = vec![B256::ZERO; HASHES];
    bencher.bench_local(|| {
        for (message, digest) in black_box(&messages).iter().zip(black_box(&mut digests)) {
            *digest = keccak256(message);
        }
    });
}

#[divan::bench]
fn alloy_mixed_nodes(bencher: Bencher<'_, '_>) {
    let messages = messages(|i| 33 + (i * 7919) % 500);
    let mut digests = vec![B256::ZERO; HASHES];
    bencher.bench_local(|| {
        for (message, digest) in black_box(&messages).iter().zip(black_box(&mut digests)) {
            *digest = keccak256(message);
        }
    });
}
