//! The scalar kernel: one state in general-purpose registers, on every processor.
//!
//! Invariants:
//! 1. [`Scalar::bmi`](Scalar) is true only where the processor has BMI1 and BMI2.

use crate::{
    padding::padded_block,
    permutation::{RATE, ROUND_CONSTANTS, STATE_WORDS, keccak_rounds},
};
use alloy_primitives::B256;

/// The scalar kernel; on x86-64 with `andn` and `rorx` where the processor has them (about 5 % faster).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar {
    #[cfg(target_arch = "x86_64")]
    bmi: bool,
}

impl Scalar {
    /// Looks at the processor once; later calls read the answer from a cache.
    #[inline]
    pub(crate) fn detect() -> Self {
        Self {
            #[cfg(target_arch = "x86_64")]
            bmi: std::is_x86_feature_detected!("bmi1") && std::is_x86_feature_detected!("bmi2"),
        }
    }

    /// Hashes one message.
    #[inline]
    pub(crate) fn hash(self, message: &[u8]) -> B256 {
        self.finish([0; STATE_WORDS], message)
    }

    /// Hashes messages one after the other.
    pub(crate) fn hash_each(self, messages: &[impl AsRef<[u8]>], out: &mut [B256]) {
        for (message, digest) in messages.iter().zip(out) {
            *digest = self.hash(message.as_ref());
        }
    }

    /// Absorbs what is left of a message into a state, pads, and gives the digest.
    pub(crate) fn finish(self, mut state: [u64; STATE_WORDS], rest: &[u8]) -> B256 {
        let (blocks, tail) = rest.as_chunks::<RATE>();
        for block in blocks {
            self.absorb(&mut state, block);
        }
        self.absorb(&mut state, &padded_block(tail));
        digest(|word| state[word])
    }

    /// Hashes one message that is padded to whole rate blocks already.
    pub(crate) fn hash_padded(self, padded: &[u8]) -> B256 {
        let mut state = [0; STATE_WORDS];
        for block in padded.as_chunks::<RATE>().0 {
            self.absorb(&mut state, block);
        }
        digest(|word| state[word])
    }

    #[inline]
    fn absorb(self, state: &mut [u64; STATE_WORDS], block: &[u8; RATE]) {
        for (word, bytes) in state.iter_mut().zip(block.as_chunks::<8>().0) {
            *word ^= u64::from_le_bytes(*bytes);
        }
        self.f1600(state);
    }

    /// Applies keccak-f\[1600\].
    #[inline]
    fn f1600(self, state: &mut [u64; STATE_WORDS]) {
        #[cfg(test)]
        crate::tests::count_run(crate::Kernel::Scalar);
        #[cfg(target_arch = "x86_64")]
        if self.bmi {
            // SAFETY: `bmi` is true only where the processor has BMI1 and BMI2 (invariant 1).
            unsafe { f1600_bmi(state) };
            return;
        }
        f1600(state);
    }
}

/// The first 32 bytes of a state, given its words.
#[inline]
pub(crate) fn digest(word: impl Fn(usize) -> u64) -> B256 {
    let mut digest = B256::ZERO;
    for (index, bytes) in digest.0.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *bytes = word(index).to_le_bytes();
    }
    digest
}

#[inline(always)]
fn xor(a: u64, b: u64) -> u64 {
    a ^ b
}

#[inline(always)]
fn xor5(a: u64, b: u64, c: u64, d: u64, e: u64) -> u64 {
    a ^ b ^ c ^ d ^ e
}

#[inline(always)]
fn chi(a: u64, b: u64, c: u64) -> u64 {
    a ^ (!b & c)
}

#[inline(always)]
fn iota(a: u64, constant: u64) -> u64 {
    a ^ constant
}

#[inline(always)]
fn rol<const N: u32>(a: u64) -> u64 {
    a.rotate_left(N)
}

/// Four rounds per turn leave the fewest moves between registers and stack.
fn f1600(state: &mut [u64; STATE_WORDS]) {
    let mut a = *state;
    for rc in ROUND_CONSTANTS.as_chunks::<4>().0 {
        a = keccak_rounds!(a, rc[0], rc[1], rc[2], rc[3]);
    }
    *state = a;
}

/// [`f1600`] compiled for BMI1 and BMI2; two rounds per turn do as well as four here.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi1,bmi2")]
fn f1600_bmi(state: &mut [u64; STATE_WORDS]) {
    let mut a = *state;
    for rc in ROUND_CONSTANTS.as_chunks::<2>().0 {
        a = keccak_rounds!(a, rc[0], rc[1]);
    }
    *state = a;
}
