//! The AVX-512 kernel: eight states side by side, one vector register per state word.
//!
//! A round is 35 `vpternlogq`, 29 `vprolq` and 31 `vpxorq`. Message words reach the registers through 8x8 transposes of
//! plain 64-byte loads; the unpadded end of a message is loaded under a byte mask and padded in the register, without
//! a copy.
//!
//! Invariants:
//! 1. A value of [`Avx512`] exists only where the processor has AVX-512 F and BW.
//! 2. Every load stays inside the slice or array reference that it is made from; bytes under a zero mask bit are not
//!    accessed.

use crate::{
    lanes::{LaneKernel, LaneState},
    padding::last_word,
    permutation::{PAD_FIRST, PAD_LAST, RATE, RATE_WORDS, ROUND_CONSTANTS, STATE_WORDS, keccak_rounds},
};
use alloy_primitives::B256;
use std::arch::x86_64::*;

const LANES: usize = 8;

type State = [__m512i; STATE_WORDS];

/// Proof that the processor has what this kernel needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// Looks at the processor once; later calls read the answer from a cache.
    #[inline]
    pub(crate) fn detect() -> Option<Self> {
        (std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw")).then_some(Self(()))
    }
}

impl LaneKernel<LANES> for Avx512 {
    const WORTHWHILE: usize = 2;

    #[inline]
    fn hash_messages(self, messages: &[&[u8]; LANES], out: &mut [B256; LANES]) {
        #[cfg(test)]
        crate::tests::count_run(crate::Kernel::Avx512);
        // SAFETY: the processor has AVX-512 F and BW, for `self` exists (invariant 1).
        unsafe { hash::<true>(messages, out) }
    }

    #[inline]
    fn hash_padded(self, padded: &[&[u8]; LANES], out: &mut [B256; LANES]) {
        #[cfg(test)]
        crate::tests::count_run(crate::Kernel::Avx512);
        // SAFETY: the processor has AVX-512 F and BW, for `self` exists (invariant 1).
        unsafe { hash::<false>(padded, out) }
    }

    #[inline]
    fn permute(self, state: &mut LaneState<LANES>) {
        #[cfg(test)]
        crate::tests::count_run(crate::Kernel::Avx512);
        // SAFETY: the processor has AVX-512 F and BW, for `self` exists (invariant 1).
        unsafe { permute_in_memory(state) }
    }
}

/// Absorbs the whole rate blocks of the inputs, and with `PAD` also what remains of each, padded.
//
// Here and below plain loops stand where `map` would read better: a closure that needs the vector instructions is not
// inlined into a library function that is compiled without them, and each lane would cost a call.
#[target_feature(enable = "avx512f,avx512bw")]
fn hash<const PAD: bool>(inputs: &[&[u8]; LANES], out: &mut [B256; LANES]) {
    let mut whole: [&[[u8; RATE]]; LANES] = [&[]; LANES];
    let mut tails: [&[u8]; LANES] = [&[]; LANES];
    for lane in 0..LANES {
        (whole[lane], tails[lane]) = inputs[lane].as_chunks();
    }
    let blocks = whole[0].len();
    debug_assert!(whole.iter().all(|whole| whole.len() == blocks), "lanes of unequal block counts");
    let mut state = [_mm512_setzero_si512(); STATE_WORDS];
    for block in 0..blocks {
        absorb(&mut state, &whole, block);
        state = permute(state);
    }
    if PAD {
        absorb_tails(&mut state, &tails);
        state = permute(state);
    }
    squeeze(&state, out);
}

#[target_feature(enable = "avx512f,avx512bw")]
fn permute_in_memory(state: &mut LaneState<LANES>) {
    let mut words = [_mm512_setzero_si512(); STATE_WORDS];
    for (word, lanes) in words.iter_mut().zip(&state.words) {
        // SAFETY: a word's eight lanes are 64 bytes that the reference covers; the load needs no alignment.
        *word = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
    }
    words = permute(words);
    for (lanes, word) in state.words.iter_mut().zip(words) {
        // SAFETY: as for the load.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), word) };
    }
}

/// Adds one whole rate block per lane.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn absorb(state: &mut State, whole: &[&[[u8; RATE]]; LANES], block: usize) {
    let mut low = [_mm512_setzero_si512(); LANES];
    let mut high = [_mm512_setzero_si512(); LANES];
    let mut last = [0; LANES];
    for lane in 0..LANES {
        let bytes = &whole[lane][block];
        // SAFETY: a block has 136 bytes: 64 at 0 and 64 at 64 are inside it. The loads need no alignment.
        low[lane] = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
        // SAFETY: as above.
        high[lane] = unsafe { _mm512_loadu_si512(bytes.as_ptr().add(64).cast()) };
        last[lane] = i64::from_le_bytes(*bytes.last_chunk().unwrap_or(&[0; 8]));
    }
    add_words(state, 0, transpose(low));
    add_words(state, 8, transpose(high));
    add_words(state, RATE_WORDS - 1, [gather(last)]);
}

/// Adds the last rate block of each lane, padding it on the way. Each tail is shorter than a rate block.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn absorb_tails(state: &mut State, tails: &[&[u8]; LANES]) {
    let mut rows = [_mm512_setzero_si512(); LANES];
    // Any bit from 6 on says that a tail reaches beyond 63 bytes, bit 7 that it reaches beyond 127.
    let mut lengths = 0;
    for lane in 0..LANES {
        rows[lane] = load_padded::<0>(tails[lane]);
        lengths |= tails[lane].len();
    }
    add_words(state, 0, transpose(rows));
    if lengths >= 64 {
        for lane in 0..LANES {
            rows[lane] = load_padded::<64>(tails[lane]);
        }
        add_words(state, 8, transpose(rows));
    }
    if lengths >= 128 {
        let mut last = [0; LANES];
        for lane in 0..LANES {
            if tails[lane].len() >= 128 {
                last[lane] = last_word(tails[lane]) as i64;
            }
        }
        add_words(state, RATE_WORDS - 1, [gather(last)]);
    }
    let closing = _mm512_set1_epi64(i64::from_le_bytes([0, 0, 0, 0, 0, 0, 0, PAD_LAST]));
    add_words(state, RATE_WORDS - 1, [closing]);
}

/// Loads the bytes `FROM..FROM + 64` of a message's end, followed by the first padding byte and zeros.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn load_padded<const FROM: usize>(tail: &[u8]) -> __m512i {
    // The length from `FROM` on: beyond 63 wherever the message covers all of the 64 bytes, or ends before them.
    let at = tail.len().wrapping_sub(FROM);
    let padding = if at < 64 { 1u64 << at } else { 0 };
    let message = if tail.len() >= FROM + 64 { u64::MAX } else { padding.saturating_sub(1) };
    // SAFETY: the mask selects bytes below the end of `tail` only; others are not accessed, so that the address may
    // even lie outside of it.
    let bytes = unsafe { _mm512_maskz_loadu_epi8(message, tail.as_ptr().wrapping_add(FROM).cast()) };
    _mm512_mask_mov_epi8(bytes, padding, _mm512_set1_epi8(PAD_FIRST as i8))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn add_words<const N: usize>(state: &mut State, from: usize, words: [__m512i; N]) {
    for (word, value) in state[from..].iter_mut().zip(words) {
        *word = _mm512_xor_si512(*word, value);
    }
}

/// One word of each lane as a vector.
#[target_feature(enable = "avx512f")]
#[inline]
fn gather([a, b, c, d, e, f, g, h]: [i64; LANES]) -> __m512i {
    _mm512_setr_epi64(a, b, c, d, e, f, g, h)
}

/// Turns eight rows (eight words of one lane) into eight columns (one word of eight lanes).
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose(r: [__m512i; 8]) -> [__m512i; 8] {
    // Pairs of lanes: words 0, 2, 4, 6 in the even vectors, words 1, 3, 5, 7 in the odd ones.
    let p = [
        _mm512_unpacklo_epi64(r[0], r[1]),
        _mm512_unpackhi_epi64(r[0], r[1]),
        _mm512_unpacklo_epi64(r[2], r[3]),
        _mm512_unpackhi_epi64(r[2], r[3]),
        _mm512_unpacklo_epi64(r[4], r[5]),
        _mm512_unpackhi_epi64(r[4], r[5]),
        _mm512_unpacklo_epi64(r[6], r[7]),
        _mm512_unpackhi_epi64(r[6], r[7]),
    ];
    // Four lanes each: `low` has words 0, 2 (of even pairs) or 1, 3 (odd), `high` has 4, 6 or 5, 7.
    let low = [
        _mm512_shuffle_i64x2::<0b01_00_01_00>(p[0], p[2]),
        _mm512_shuffle_i64x2::<0b01_00_01_00>(p[1], p[3]),
        _mm512_shuffle_i64x2::<0b01_00_01_00>(p[4], p[6]),
        _mm512_shuffle_i64x2::<0b01_00_01_00>(p[5], p[7]),
    ];
    let high = [
        _mm512_shuffle_i64x2::<0b11_10_11_10>(p[0], p[2]),
        _mm512_shuffle_i64x2::<0b11_10_11_10>(p[1], p[3]),
        _mm512_shuffle_i64x2::<0b11_10_11_10>(p[4], p[6]),
        _mm512_shuffle_i64x2::<0b11_10_11_10>(p[5], p[7]),
    ];
    [
        _mm512_shuffle_i64x2::<0b10_00_10_00>(low[0], low[2]),
        _mm512_shuffle_i64x2::<0b10_00_10_00>(low[1], low[3]),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(low[0], low[2]),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(low[1], low[3]),
        _mm512_shuffle_i64x2::<0b10_00_10_00>(high[0], high[2]),
        _mm512_shuffle_i64x2::<0b10_00_10_00>(high[1], high[3]),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(high[0], high[2]),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(high[1], high[3]),
    ]
}

/// Writes the digest of each lane: the first four words of its state.
#[target_feature(enable = "avx512f")]
#[inline]
fn squeeze(state: &State, out: &mut [B256; LANES]) {
    let halves = [
        (_mm512_unpacklo_epi64(state[0], state[1]), _mm512_unpacklo_epi64(state[2], state[3])),
        (_mm512_unpackhi_epi64(state[0], state[1]), _mm512_unpackhi_epi64(state[2], state[3])),
    ];
    for (odd, (front, back)) in halves.into_iter().enumerate() {
        let low = _mm512_shuffle_i64x2::<0b01_00_01_00>(front, back);
        let high = _mm512_shuffle_i64x2::<0b11_10_11_10>(front, back);
        let low = _mm512_shuffle_i64x2::<0b11_01_10_00>(low, low);
        let high = _mm512_shuffle_i64x2::<0b11_01_10_00>(high, high);
        for (lane, digest) in [
            (odd, _mm512_castsi512_si256(low)),
            (odd + 2, _mm512_extracti64x4_epi64::<1>(low)),
            (odd + 4, _mm512_castsi512_si256(high)),
            (odd + 6, _mm512_extracti64x4_epi64::<1>(high)),
        ] {
            // SAFETY: a digest has 32 bytes, which the reference covers; the store needs no alignment.
            unsafe { _mm256_storeu_si256(out[lane].as_mut_ptr().cast(), digest) };
        }
    }
}

/// One round per turn: unrolling further measured slower.
#[target_feature(enable = "avx512f")]
#[inline]
fn permute(mut state: State) -> State {
    for rc in &ROUND_CONSTANTS {
        state = keccak_rounds!(state, *rc);
    }
    state
}

#[target_feature(enable = "avx512f")]
#[inline]
fn xor(a: __m512i, b: __m512i) -> __m512i {
    _mm512_xor_si512(a, b)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn xor5(a: __m512i, b: __m512i, c: __m512i, d: __m512i, e: __m512i) -> __m512i {
    /// The truth table of `a ^ b ^ c`.
    const XOR3: i32 = 0x96;
    _mm512_ternarylogic_epi64::<XOR3>(_mm512_ternarylogic_epi64::<XOR3>(a, b, c), d, e)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn chi(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    /// The truth table of `a ^ (!b & c)`.
    const CHI: i32 = 0xd2;
    _mm512_ternarylogic_epi64::<CHI>(a, b, c)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn iota(a: __m512i, constant: u64) -> __m512i {
    _mm512_xor_si512(a, _mm512_set1_epi64(constant as i64))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn rol<const N: i32>(a: __m512i) -> __m512i {
    _mm512_rol_epi64::<N>(a)
}
