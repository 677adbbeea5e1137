//! Hashes the addresses of a state on each kernel that this processor has, and shows the time per address.
//!
//! Invariants:
//! 1. Every kernel gives the digests of the first one, or the example fails.
//!
//! Run with `cargo run --release -p foldgate-keccak --example state_keys`.

use alloy_primitives::{Address, B256};
use foldgate_keccak::{Hasher, Kernel, KernelError, keccak256};
use std::time::{Duration, Instant};

const ADDRESSES: usize = 100_000;

fn main() -> Result<(), KernelError> {
    // A setting that cannot be followed ends the program here; `Kernel::active` alone would pass over it.
    println!("active kernel: {}", Kernel::from_env()?);

    let addresses: Vec<Address> =
        (0..ADDRESSES as u64).map(|i| Address::from_slice(&keccak256(i.to_be_bytes())[..20])).collect();
    let expected: Vec<B256> = addresses.iter().map(keccak256).collect();

    for kernel in Kernel::available() {
        let hasher = Hasher::with_kernel(kernel)?;
        let mut hashed_addresses = vec![B256::ZERO; ADDRESSES];
        let fastest = (0..5).map(|_| timed(|| hasher.keys(&addresses, &mut hashed_addresses))).min();
        assert_eq!(hashed_addresses, expected, "{kernel}");
        let per_hash = fastest.unwrap_or_default().as_nanos() / ADDRESSES as u128;
        println!("{kernel:>7}: {per_hash:>4} ns per address, {} at a time", kernel.lanes());
    }
    Ok(())
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}
