//! Many keccak256 hashes at once, one kernel per instruction set, chosen at run time.
//!
//! A trie that folds a block has thousands of keys and nodes to hash, all known together. One keccak state leaves most
//! of a vector unit idle; eight states side by side fill it. This crate spreads inputs over the lanes of the widest
//! kernel that the processor has:
//!
//! | [`Kernel`] | inputs at a time | needs |
//! |---|---|---|
//! | [`Avx512`](Kernel::Avx512) | 8 | AVX-512 F and BW |
//! | [`Avx2`](Kernel::Avx2) | 4 | AVX2 |
//! | [`Scalar`](Kernel::Scalar) | 1 | nothing |
//!
//! ```
//! use alloy_primitives::{Address, B256};
//! use foldgate_keccak::{keccak256, keccak256_20, keccak256_batch};
//!
//! // Inputs of any lengths: those that fill the same number of rate blocks share the lanes.
//! let inputs: [&[u8]; 3] = [b"", b"a short one", &[7; 532]];
//! let mut digests = [B256::ZERO; 3];
//! keccak256_batch(&inputs, &mut digests);
//! assert_eq!(digests[2], keccak256([7; 532]));
//!
//! // Keys of one size.
//! let addresses: Vec<Address> = (0..100).map(Address::with_last_byte).collect();
//! let mut hashed_addresses = vec![B256::ZERO; addresses.len()];
//! keccak256_20(&addresses, &mut hashed_addresses);
//! assert_eq!(hashed_addresses[42], keccak256(addresses[42]));
//! ```
//!
//! # Which entry point
//! - [`keccak256_batch`]: inputs of mixed lengths, anywhere in memory.
//! - [`keccak256_20`], [`keccak256_32`], [`Hasher::keys`]: keys of one size.
//! - [`keccak256_padded`], [`keccak256_padded_at`]: messages that their writer laid out in whole rate blocks with
//!   [`pad_in_place`]; hashed where they lie, without a copy. The fastest way for nodes built in an arena.
//! - [`keccak256`]: one input.
//!
//! None of them allocates, locks or starts a thread. Lengths that do not fit together (`inputs` and `out`) are a
//! mistake of the caller and panic, as `copy_from_slice` does; no content and no length of an input can.
//!
//! # Which kernel
//! The free functions run [`Kernel::active`]: the one that the environment variable `FOLDGATE_KECCAK` names (`avx512`,
//! `avx2` or `scalar`), else the fastest. They pass over a name that is unknown or not available here; a program that
//! wants to refuse it calls [`Kernel::from_env`] when it starts. A [`Hasher`] runs the kernel that it is made with.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod batch;
mod counter;
mod hasher;
mod kernel;
#[cfg(target_arch = "x86_64")]
mod lanes;
mod padding;
mod permutation;
mod scalar;
#[cfg(test)]
mod tests;

pub use counter::{count_permutations, permutations_counted};
pub use hasher::{
    Hasher, keccak256, keccak256_20, keccak256_32, keccak256_batch, keccak256_batch_with, keccak256_padded,
    keccak256_padded_at,
};
pub use kernel::{KERNEL_VARIABLE, Kernel, KernelError};
pub use padding::{BufferTooSmall, pad_in_place, padded_len};
pub use permutation::{RATE, rate_blocks};
