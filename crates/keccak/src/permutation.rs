//! The rounds of keccak-f\[1600\] (FIPS 202, section 3.2), written once for every kernel.
//!
//! Invariants:
//! 1. Word `x + 5 * y` of a state is the lane `A[x, y]` of FIPS 202.
//! 2. [`keccak_rounds!`] names no type and no instruction: a kernel brings `xor`, `xor5`, `chi`, `iota` and `rol` into
//!    scope for its own word, which is one state's `u64` or a vector that holds the same word of several states.

/// Bytes that one permutation of keccak256 absorbs.
pub const RATE: usize = 136;

/// Words of the state that a rate block touches.
#[cfg(target_arch = "x86_64")]
pub(crate) const RATE_WORDS: usize = RATE / 8;

/// Words of a keccak-f\[1600\] state.
pub(crate) const STATE_WORDS: usize = 25;

/// The byte that keccak256 appends to a message: the first 1 of pad10*1, with no domain bits before it.
pub(crate) const PAD_FIRST: u8 = 0x01;

/// The closing 1 of pad10*1: the last bit of the last rate block.
pub(crate) const PAD_LAST: u8 = 0x80;

/// The round constants of the iota step.
pub(crate) static ROUND_CONSTANTS: [u64; 24] = [
    0x0000_0000_0000_0001,
    0x0000_0000_0000_8082,
    0x8000_0000_0000_808a,
    0x8000_0000_8000_8000,
    0x0000_0000_0000_808b,
    0x0000_0000_8000_0001,
    0x8000_0000_8000_8081,
    0x8000_0000_0000_8009,
    0x0000_0000_0000_008a,
    0x0000_0000_0000_0088,
    0x0000_0000_8000_8009,
    0x0000_0000_8000_000a,
    0x0000_0000_8000_808b,
    0x8000_0000_0000_008b,
    0x8000_0000_0000_8089,
    0x8000_0000_0000_8003,
    0x8000_0000_0000_8002,
    0x8000_0000_0000_0080,
    0x0000_0000_0000_800a,
    0x8000_0000_8000_000a,
    0x8000_0000_8000_8081,
    0x8000_0000_0000_8080,
    0x0000_0000_8000_0001,
    0x8000_0000_8000_8008,
];

/// Number of rate blocks that a message of `len` bytes fills once it is padded; at least one, for padding adds a byte.
#[inline]
pub const fn rate_blocks(len: usize) -> usize {
    len / RATE + 1
}

/// One output row: theta's correction and rho's rotation of the five lanes that pi moves into it, then chi.
macro_rules! keccak_row {
    ($a:ident, $d:ident; $($source:literal << $rotation:literal),+) => {{
        let b = [$(rol::<$rotation>(xor($a[$source], $d[$source % 5]))),+];
        [
            chi(b[0], b[1], b[2]),
            chi(b[1], b[2], b[3]),
            chi(b[2], b[3], b[4]),
            chi(b[3], b[4], b[0]),
            chi(b[4], b[0], b[1]),
        ]
    }};
}

/// Runs the rounds of the given constants over a state `[word; 25]` and evaluates to the new state.
///
/// The parity of a neighbouring column is folded into one correction word per column *before* it meets the 25 lanes.
/// A three-operand XOR per lane would save five instructions, but would keep ten words alive beside the state instead
/// of five, which the 32 vector registers do not hold: it measured 12 % slower.
macro_rules! keccak_rounds {
    ($state:expr, $($constant:expr),+) => {{
        let a = $state;
        $(
            let c = [
                xor5(a[0], a[5], a[10], a[15], a[20]),
                xor5(a[1], a[6], a[11], a[16], a[21]),
                xor5(a[2], a[7], a[12], a[17], a[22]),
                xor5(a[3], a[8], a[13], a[18], a[23]),
                xor5(a[4], a[9], a[14], a[19], a[24]),
            ];
            let d = [
                xor(c[4], rol::<1>(c[1])),
                xor(c[0], rol::<1>(c[2])),
                xor(c[1], rol::<1>(c[3])),
                xor(c[2], rol::<1>(c[4])),
                xor(c[3], rol::<1>(c[0])),
            ];
            let r0 = crate::permutation::keccak_row!(a, d; 0 << 0, 6 << 44, 12 << 43, 18 << 21, 24 << 14);
            let r1 = crate::permutation::keccak_row!(a, d; 3 << 28, 9 << 20, 10 << 3, 16 << 45, 22 << 61);
            let r2 = crate::permutation::keccak_row!(a, d; 1 << 1, 7 << 6, 13 << 25, 19 << 8, 20 << 18);
            let r3 = crate::permutation::keccak_row!(a, d; 4 << 27, 5 << 36, 11 << 10, 17 << 15, 23 << 56);
            let r4 = crate::permutation::keccak_row!(a, d; 2 << 62, 8 << 55, 14 << 39, 15 << 41, 21 << 2);
            let a = [
                iota(r0[0], $constant), r0[1], r0[2], r0[3], r0[4],
                r1[0], r1[1], r1[2], r1[3], r1[4],
                r2[0], r2[1], r2[2], r2[3], r2[4],
                r3[0], r3[1], r3[2], r3[3], r3[4],
                r4[0], r4[1], r4[2], r4[3], r4[4],
            ];
        )+
        a
    }};
}

pub(crate) use {keccak_rounds, keccak_row};
