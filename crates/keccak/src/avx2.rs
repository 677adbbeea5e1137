//! The AVX2 kernel: four states side by side, one vector per state word.
//!
//! With sixteen registers for 25 words part of the state lives on the stack, and a rotation takes three instructions
//! (one byte shuffle where it moves whole bytes), so that four lanes bring a factor of two and a half, not of four.
//!
//! Invariants:
//! 1. A value of [`Avx2`] exists only where the processor has AVX2.
//! 2. Every load stays inside the slice or array reference that it is made from; words under a zero mask are not
//!    accessed.

use crate::{
    lanes::{LaneKernel, LaneState},
    padding::last_word,
    permutation::{PAD_LAST, RATE, RATE_WORDS, ROUND_CONSTANTS, STATE_WORDS, keccak_rounds},
};
use alloy_primitives::B256;
use std::arch::x86_64::*;

const LANES: usize = 4;

type State = [__m256i; STATE_WORDS];

/// Proof that the processor has what this kernel needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// Looks at the processor once; later calls read the answer from a cache.
    #[inline]
    pub(crate) fn detect() -> Option<Self> {
        std::is_x86_feature_detected!("avx2").then_some(Self(()))
    }
}

impl LaneKernel<LANES> for Avx2 {
    const WORTHWHILE: usize = 2;

    #[inline]
    fn hash_messages(self, messages: &[&[u8]; LANES], out: &mut [B256; LANES]) {
        #[cfg(test)]
        crate::tests::count_run(crate::Kernel::Avx2);
        // SAFETY: the processor has AVX2, for `self` exists (invariant 1).
        unsafe { hash::<true>(messages, out) }
    }

    #[inline]
    fn hash_padded(self, padded: &[&[u8]; LANES], out: &mut [B256; LANES]) {
        #[cfg(test)]
        crate::tests::count_run(crate::Kernel::Avx2);
        // SAFETY: the processor has AVX2, for `self` exists (invariant 1).
        unsafe { hash::<false>(padded, out) }
    }

    #[inline]
    fn permute(self, state: &mut LaneState<LANES>) {
        #[cfg(test)]
        crate::tests::count_run(crate::Kernel::Avx2);
        // SAFETY: the processor has AVX2, for `self` exists (invariant 1).
        unsafe { permute_in_memory(state) }
    }
}

/// Absorbs the whole rate blocks of the inputs, and with `PAD` also what remains of each, padded.
//
// Here and below plain loops stand where `map` would read better: a closure that needs the vector instructions is not
// inlined into a library function that is compiled without them, and each lane would cost a call.
#[target_feature(enable = "avx2")]
fn hash<const PAD: bool>(inputs: &[&[u8]; LANES], out: &mut [B256; LANES]) {
    let mut whole: [&[[u8; RATE]]; LANES] = [&[]; LANES];
    let mut tails: [&[u8]; LANES] = [&[]; LANES];
    for lane in 0..LANES {
        (whole[lane], tails[lane]) = inputs[lane].as_chunks();
    }
    let blocks = whole[0].len();
    debug_assert!(whole.iter().all(|whole| whole.len() == blocks), "lanes of unequal block counts");
    let mut state = [_mm256_setzero_si256(); STATE_WORDS];
    for block in 0..blocks {
        absorb(&mut state, &whole, block);
        permute(&mut state);
    }
    if PAD {
        absorb_tails(&mut state, tails);
        permute(&mut state);
    }
    squeeze(&state, out);
}

#[target_feature(enable = "avx2")]
fn permute_in_memory(state: &mut LaneState<LANES>) {
    let mut words = [_mm256_setzero_si256(); STATE_WORDS];
    for (word, lanes) in words.iter_mut().zip(&state.words) {
        // SAFETY: a word's four lanes are 32 bytes that the reference covers; the load needs no alignment.
        *word = unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) };
    }
    permute(&mut words);
    for (lanes, word) in state.words.iter_mut().zip(words) {
        // SAFETY: as for the load.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), word) };
    }
}

/// Adds one whole rate block per lane.
#[target_feature(enable = "avx2")]
#[inline]
fn absorb(state: &mut State, whole: &[&[[u8; RATE]]; LANES], block: usize) {
    for quarter in 0..4 {
        let mut rows = [_mm256_setzero_si256(); LANES];
        for (row, whole) in rows.iter_mut().zip(whole) {
            // SAFETY: a block has 136 bytes, of which this reads 32 at 0, 32, 64 or 96. The load needs no alignment.
            *row = unsafe { _mm256_loadu_si256(whole[block].as_ptr().add(32 * quarter).cast()) };
        }
        for (word, value) in state[4 * quarter..].iter_mut().zip(transpose(rows)) {
            *word = _mm256_xor_si256(*word, value);
        }
    }
    let [a, b, c, d] = whole.map(|whole| i64::from_le_bytes(*whole[block].last_chunk().unwrap_or(&[0; 8])));
    state[RATE_WORDS - 1] = _mm256_xor_si256(state[RATE_WORDS - 1], _mm256_setr_epi64x(a, b, c, d));
}

/// Adds the last rate block of each lane, padding it on the way. Each tail is shorter than a rate block.
#[target_feature(enable = "avx2")]
#[inline]
fn absorb_tails(state: &mut State, tails: [&[u8]; LANES]) {
    let lengths = tails.iter().fold(0, |lengths, tail| lengths | tail.len());
    let mut end_words = [0; LANES];
    for (word, tail) in end_words.iter_mut().zip(tails) {
        *word = last_word(tail) as i64;
    }
    for quarter in 0..4 {
        if lengths < 32 * quarter {
            break;
        }
        let mut rows = [_mm256_setzero_si256(); LANES];
        for lane in 0..LANES {
            rows[lane] = load_padded(tails[lane], 32 * quarter, end_words[lane]);
        }
        for (word, value) in state[4 * quarter..].iter_mut().zip(transpose(rows)) {
            *word = _mm256_xor_si256(*word, value);
        }
    }
    let mut last = [i64::from_le_bytes([0, 0, 0, 0, 0, 0, 0, PAD_LAST]); LANES];
    for lane in 0..LANES {
        if tails[lane].len() >= 128 {
            last[lane] |= end_words[lane];
        }
    }
    let [a, b, c, d] = last;
    state[RATE_WORDS - 1] = _mm256_xor_si256(state[RATE_WORDS - 1], _mm256_setr_epi64x(a, b, c, d));
}

/// Loads the bytes `from..from + 32` of a message's end: whole words, then its last word with the padding, then zeros.
#[target_feature(enable = "avx2")]
#[inline]
fn load_padded(tail: &[u8], from: usize, end_word: i64) -> __m256i {
    let Some(bytes) = tail.get(from..) else { return _mm256_setzero_si256() };
    if bytes.len() >= 32 {
        // SAFETY: the slice has the 32 bytes that are read; the load needs no alignment.
        return unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
    }
    let place = _mm256_setr_epi64x(0, 1, 2, 3);
    let whole = _mm256_set1_epi64x((bytes.len() / 8) as i64);
    // SAFETY: the mask selects the words that lie inside of the slice as a whole; others are not accessed.
    let words = unsafe { _mm256_maskload_epi64(bytes.as_ptr().cast(), _mm256_cmpgt_epi64(whole, place)) };
    _mm256_or_si256(words, _mm256_and_si256(_mm256_cmpeq_epi64(whole, place), _mm256_set1_epi64x(end_word)))
}

/// Turns four rows (four words of one lane) into four columns (one word of four lanes), and back.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose(r: [__m256i; 4]) -> [__m256i; 4] {
    let p = [
        _mm256_unpacklo_epi64(r[0], r[1]),
        _mm256_unpackhi_epi64(r[0], r[1]),
        _mm256_unpacklo_epi64(r[2], r[3]),
        _mm256_unpackhi_epi64(r[2], r[3]),
    ];
    [
        _mm256_permute2x128_si256::<0x20>(p[0], p[2]),
        _mm256_permute2x128_si256::<0x20>(p[1], p[3]),
        _mm256_permute2x128_si256::<0x31>(p[0], p[2]),
        _mm256_permute2x128_si256::<0x31>(p[1], p[3]),
    ]
}

/// Writes the digest of each lane: the first four words of its state.
#[target_feature(enable = "avx2")]
#[inline]
fn squeeze(state: &State, out: &mut [B256; LANES]) {
    for (out, digest) in out.iter_mut().zip(transpose([state[0], state[1], state[2], state[3]])) {
        // SAFETY: a digest has 32 bytes, which the reference covers; the store needs no alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), digest) };
    }
}

/// One round per turn: unrolling further measured no faster.
#[target_feature(enable = "avx2")]
fn permute(state: &mut State) {
    let mut a = *state;
    for rc in &ROUND_CONSTANTS {
        a = keccak_rounds!(a, *rc);
    }
    *state = a;
}

#[target_feature(enable = "avx2")]
#[inline]
fn xor(a: __m256i, b: __m256i) -> __m256i {
    _mm256_xor_si256(a, b)
}

#[target_feature(enable = "avx2")]
#[inline]
fn xor5(a: __m256i, b: __m256i, c: __m256i, d: __m256i, e: __m256i) -> __m256i {
    xor(xor(xor(a, b), xor(c, d)), e)
}

#[target_feature(enable = "avx2")]
#[inline]
fn chi(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
    _mm256_xor_si256(a, _mm256_andnot_si256(b, c))
}

#[target_feature(enable = "avx2")]
#[inline]
fn iota(a: __m256i, constant: u64) -> __m256i {
    _mm256_xor_si256(a, _mm256_set1_epi64x(constant as i64))
}

/// Rotates each word left by `N`: a byte shuffle where `N` is 8 or 56, shifts otherwise.
#[target_feature(enable = "avx2")]
#[inline]
fn rol<const N: i64>(a: __m256i) -> __m256i {
    match N {
        0 => a,
        8 => {
            let bytes = _mm_setr_epi8(7, 0, 1, 2, 3, 4, 5, 6, 15, 8, 9, 10, 11, 12, 13, 14);
            _mm256_shuffle_epi8(a, _mm256_broadcastsi128_si256(bytes))
        }
        56 => {
            let bytes = _mm_setr_epi8(1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12, 13, 14, 15, 8);
            _mm256_shuffle_epi8(a, _mm256_broadcastsi128_si256(bytes))
        }
        1 => _mm256_or_si256(_mm256_add_epi64(a, a), _mm256_srli_epi64::<63>(a)),
        // The counts are constants, so that these become shifts by an immediate.
        _ => _mm256_or_si256(_mm256_sll_epi64(a, _mm_cvtsi64_si128(N)), _mm256_srl_epi64(a, _mm_cvtsi64_si128(64 - N))),
    }
}
