//! What a kernel has to offer, and the sponge that runs inputs of unequal lengths through it.
//!
//! Invariants:
//! 1. A value of a type that implements [`LaneKernel`] exists only where the processor has its instructions, so that
//!    every method here is safe to call.
//! 2. No method reads an input outside its slice, whatever the lengths are.

use crate::{
    padding::padded_block,
    permutation::{RATE, STATE_WORDS},
    scalar::{Scalar, digest},
};
use alloy_primitives::B256;

/// `L` keccak states side by side: `words[w][lane]` is word `w` of the state of `lane`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct LaneState<const L: usize> {
    pub(crate) words: [[u64; L]; STATE_WORDS],
}

/// One instruction set's keccak over `L` inputs at a time.
pub(crate) trait LaneKernel<const L: usize>: Copy {
    /// From how many inputs on one run of all lanes beats the scalar kernel.
    const WORTHWHILE: usize;

    /// Hashes `L` messages that all fill the same number of rate blocks once padded.
    fn hash_messages(self, messages: &[&[u8]; L], out: &mut [B256; L]);

    /// Hashes `L` padded messages, all of the same whole number of rate blocks.
    fn hash_padded(self, padded: &[&[u8]; L], out: &mut [B256; L]);

    /// Applies keccak-f\[1600\] to each of the `L` states.
    fn permute(self, state: &mut LaneState<L>);
}

/// A message on its way through a lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job<'a> {
    /// What is not absorbed yet.
    pub(crate) rest: &'a [u8],
    /// Where the digest goes.
    pub(crate) index: usize,
}

/// Hashes messages of any lengths, one per lane, and gives a lane that ends to the next message at once.
///
/// Lanes never wait for one another, so a long message among short ones costs no more than its own blocks. To keep
/// lanes busy to the end the longest jobs should come first. When fewer lanes are in use than are
/// [worthwhile](LaneKernel::WORTHWHILE) and no job waits, the scalar kernel ends them.
pub(crate) fn hash_jobs<'a, const L: usize, K: LaneKernel<L>>(
    kernel: K,
    mut jobs: impl Iterator<Item = Job<'a>>,
    out: &mut [B256],
) {
    let mut state = LaneState { words: [[0; L]; STATE_WORDS] };
    let mut lanes: [Option<Job<'a>>; L] = [None; L];
    loop {
        let mut used = 0;
        for (lane, slot) in lanes.iter_mut().enumerate() {
            if slot.is_none() {
                *slot = jobs.next();
                if slot.is_some() {
                    state.words.iter_mut().for_each(|word| word[lane] = 0);
                }
            }
            used += usize::from(slot.is_some());
        }
        if used < K::WORTHWHILE {
            // Lanes were refilled above, so no job waits any more.
            return finish_scalar(&state, &lanes, out);
        }

        let mut ended = [false; L];
        for (lane, slot) in lanes.iter_mut().enumerate() {
            let Some(job) = slot else { continue };
            match job.rest.split_first_chunk::<RATE>() {
                Some((block, rest)) => {
                    absorb_into_lane(&mut state, lane, block);
                    job.rest = rest;
                }
                None => {
                    absorb_into_lane(&mut state, lane, &padded_block(job.rest));
                    ended[lane] = true;
                }
            }
        }
        kernel.permute(&mut state);
        for (lane, slot) in lanes.iter_mut().enumerate() {
            if ended[lane]
                && let Some(job) = slot.take()
            {
                out[job.index] = digest(|word| state.words[word][lane]);
            }
        }
    }
}

/// Ends the jobs that are still in lanes, one after the other.
fn finish_scalar<const L: usize>(state: &LaneState<L>, lanes: &[Option<Job<'_>>; L], out: &mut [B256]) {
    for (lane, slot) in lanes.iter().enumerate() {
        if let Some(job) = slot {
            let words = std::array::from_fn(|word| state.words[word][lane]);
            out[job.index] = Scalar::detect().finish(words, job.rest);
        }
    }
}

/// Adds one rate block to the state of one lane.
#[inline]
fn absorb_into_lane<const L: usize>(state: &mut LaneState<L>, lane: usize, block: &[u8; RATE]) {
    for (word, bytes) in state.words.iter_mut().zip(block.as_chunks::<8>().0) {
        word[lane] ^= u64::from_le_bytes(*bytes);
    }
}
