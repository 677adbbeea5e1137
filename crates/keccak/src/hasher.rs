//! The entry points: a [`Hasher`] over one kernel, and free functions over the active one.
//!
//! Invariants:
//! 1. A [`Hasher`] exists only for a kernel that this processor can run.
//! 2. Every entry point writes each digest of `out` or panics before it hashes anything.

#[cfg(target_arch = "x86_64")]
use crate::batch::{hash_equal, hash_equal_padded, hash_mixed};
use crate::{
    counter::count,
    kernel::{Engine, Kernel, KernelError},
    permutation::{RATE, rate_blocks},
    scalar::Scalar,
};
use alloy_primitives::B256;
use std::borrow::Borrow;

/// Hashes with one kernel. Holds no scratch memory: a copy costs nothing, and threads may share one.
///
/// ```
/// use foldgate_keccak::{Hasher, Kernel, keccak256};
///
/// for kernel in Kernel::available() {
///     let mut digests = [Default::default(); 2];
///     Hasher::with_kernel(kernel)?.messages(&["dog", "cat"], &mut digests);
///     assert_eq!(digests, [keccak256("dog"), keccak256("cat")]);
/// }
/// # Ok::<(), foldgate_keccak::KernelError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Hasher {
    engine: Engine,
}

impl Hasher {
    /// A hasher on the [active](Kernel::active) kernel.
    #[inline]
    pub fn new() -> Self {
        let engine = Engine::new(Kernel::active());
        Self { engine: engine.unwrap_or_else(|| Engine::Scalar(Scalar::detect())) }
    }

    /// A hasher on the given kernel.
    ///
    /// # Errors
    /// [`KernelError::Unavailable`] if this processor cannot run it.
    pub fn with_kernel(kernel: Kernel) -> Result<Self, KernelError> {
        let engine =
            Engine::new(kernel).ok_or_else(|| KernelError::Unavailable { got: kernel, best: Kernel::best() })?;
        Ok(Self { engine })
    }

    /// The kernel that hashes.
    pub const fn kernel(self) -> Kernel {
        self.engine.kernel()
    }

    /// Hashes messages of any lengths, `messages[i]` into `out[i]`.
    ///
    /// Messages that fill the same number of rate blocks share the lanes; their order does not matter. Nothing is
    /// allocated.
    ///
    /// # Panics
    /// If `messages` and `out` differ in length.
    pub fn messages<T: AsRef<[u8]>>(self, messages: &[T], out: &mut [B256]) {
        check_digests(messages.len(), out);
        count(|| messages.iter().map(|message| rate_blocks(message.as_ref().len())).sum());
        match self.engine {
            Engine::Scalar(scalar) => scalar.hash_each(messages, out),
            #[cfg(target_arch = "x86_64")]
            Engine::Avx2(kernel) => hash_mixed(kernel, messages, out),
            #[cfg(target_arch = "x86_64")]
            Engine::Avx512(kernel) => hash_mixed(kernel, messages, out),
        }
    }

    /// Hashes keys of `N` bytes each, `keys[i]` into `out[i]`: `N` = 20 for addresses, 32 for slots.
    ///
    /// Takes `[u8; N]`, `FixedBytes<N>`, `Address` (for 20) and references to them.
    ///
    /// # Panics
    /// If `keys` and `out` differ in length.
    pub fn keys<const N: usize, T: Borrow<[u8; N]>>(self, keys: &[T], out: &mut [B256]) {
        check_digests(keys.len(), out);
        count(|| keys.len() * rate_blocks(N));
        let key = |index: usize| keys[index].borrow().as_slice();
        match self.engine {
            Engine::Scalar(scalar) => out.iter_mut().enumerate().for_each(|(i, digest)| *digest = scalar.hash(key(i))),
            #[cfg(target_arch = "x86_64")]
            Engine::Avx2(kernel) => hash_equal(kernel, key, out),
            #[cfg(target_arch = "x86_64")]
            Engine::Avx512(kernel) => hash_equal(kernel, key, out),
        }
    }

    /// Hashes messages that lie padded in `data`, one every `stride` bytes: the `blocks * RATE` bytes from `i * stride`
    /// on into `out[i]`. They are read where they lie; what is between them is not.
    ///
    /// [`pad_in_place`] writes the padding. It is not checked here: bytes that are not padded give the digest of no
    /// message, or of another one.
    ///
    /// # Panics
    /// If `blocks` is 0, or `data` does not hold all of the messages.
    ///
    /// [`pad_in_place`]: crate::pad_in_place
    pub fn padded(self, data: &[u8], stride: usize, blocks: usize, out: &mut [B256]) {
        let len = padded_bytes(blocks);
        let end = out.len().checked_sub(1).and_then(|last| last.checked_mul(stride)).and_then(|at| at.checked_add(len));
        assert!(
            out.is_empty() || end.is_some_and(|end| end <= data.len()),
            "padded messages outside of their data: got {} bytes, expected {} messages of {len} bytes at stride {stride}",
            data.len(),
            out.len(),
        );
        count(|| out.len() * blocks);
        self.padded_by(|index| &data[index * stride..][..len], out);
    }

    /// Hashes messages that lie padded anywhere in `data`: the `blocks * RATE` bytes from `offsets[i]` on into `out[i]`.
    /// They are read where they lie, and may overlap.
    ///
    /// As for [`Hasher::padded`] the padding is the caller's.
    ///
    /// # Panics
    /// If `blocks` is 0, `offsets` and `out` differ in length, or `data` does not hold all of the messages.
    pub fn padded_at(self, data: &[u8], offsets: &[usize], blocks: usize, out: &mut [B256]) {
        check_digests(offsets.len(), out);
        let len = padded_bytes(blocks);
        let last = offsets.iter().max();
        assert!(
            last.is_none_or(|last| last.checked_add(len).is_some_and(|end| end <= data.len())),
            "padded message outside of its data: got {} bytes, expected {len} bytes at offset {last:?}",
            data.len(),
        );
        count(|| out.len() * blocks);
        self.padded_by(|index| &data[offsets[index]..][..len], out);
    }

    fn padded_by<'a>(self, padded: impl Fn(usize) -> &'a [u8], out: &mut [B256]) {
        match self.engine {
            Engine::Scalar(scalar) => {
                out.iter_mut().enumerate().for_each(|(i, digest)| *digest = scalar.hash_padded(padded(i)));
            }
            #[cfg(target_arch = "x86_64")]
            Engine::Avx2(kernel) => hash_equal_padded(kernel, padded, out),
            #[cfg(target_arch = "x86_64")]
            Engine::Avx512(kernel) => hash_equal_padded(kernel, padded, out),
        }
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

/// The keccak256 of one message.
///
/// Alone a message has no company for the lanes of a vector kernel: this is the scalar kernel, whichever is active.
#[inline]
pub fn keccak256(message: impl AsRef<[u8]>) -> B256 {
    count(|| rate_blocks(message.as_ref().len()));
    Scalar::detect().hash(message.as_ref())
}

/// [`Hasher::messages`] on the active kernel.
///
/// # Panics
/// If `messages` and `out` differ in length.
pub fn keccak256_batch<T: AsRef<[u8]>>(messages: &[T], out: &mut [B256]) {
    Hasher::new().messages(messages, out);
}

/// [`Hasher::messages`] on the given kernel.
///
/// # Errors
/// [`KernelError::Unavailable`] if this processor cannot run it; nothing is written then.
///
/// # Panics
/// If `messages` and `out` differ in length.
pub fn keccak256_batch_with<T: AsRef<[u8]>>(
    kernel: Kernel,
    messages: &[T],
    out: &mut [B256],
) -> Result<(), KernelError> {
    Hasher::with_kernel(kernel)?.messages(messages, out);
    Ok(())
}

/// [`Hasher::keys`] for addresses, on the active kernel.
///
/// # Panics
/// If `addresses` and `out` differ in length.
pub fn keccak256_20<T: Borrow<[u8; 20]>>(addresses: &[T], out: &mut [B256]) {
    Hasher::new().keys(addresses, out);
}

/// [`Hasher::keys`] for slots and other words, on the active kernel.
///
/// # Panics
/// If `words` and `out` differ in length.
pub fn keccak256_32<T: Borrow<[u8; 32]>>(words: &[T], out: &mut [B256]) {
    Hasher::new().keys(words, out);
}

/// [`Hasher::padded`] on the active kernel.
///
/// # Panics
/// If `blocks` is 0, or `data` does not hold all of the messages.
pub fn keccak256_padded(data: &[u8], stride: usize, blocks: usize, out: &mut [B256]) {
    Hasher::new().padded(data, stride, blocks, out);
}

/// [`Hasher::padded_at`] on the active kernel.
///
/// # Panics
/// If `blocks` is 0, `offsets` and `out` differ in length, or `data` does not hold all of the messages.
pub fn keccak256_padded_at(data: &[u8], offsets: &[usize], blocks: usize, out: &mut [B256]) {
    Hasher::new().padded_at(data, offsets, blocks, out);
}

#[track_caller]
fn check_digests(inputs: usize, out: &[B256]) {
    assert_eq!(inputs, out.len(), "one digest per input: left inputs, right digests");
}

/// Length of a padded message of so many rate blocks; no slice holds one of `usize::MAX` bytes.
#[track_caller]
fn padded_bytes(blocks: usize) -> usize {
    assert_ne!(blocks, 0, "a padded message fills at least one rate block");
    blocks.saturating_mul(RATE)
}
