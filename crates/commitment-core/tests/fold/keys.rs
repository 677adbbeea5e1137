//! Keys that make tries of awkward shapes, crafted as hashed keys.

use alloy_primitives::{B256, keccak256};
use rand::{Rng, rngs::StdRng};

/// How keys lie to each other.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// As hashes: branches at the top, no long shared prefix.
    Hashed,
    /// All nibbles but the last two are shared: a long extension, branches at the deepest levels, inlined nodes.
    LastTwo,
    /// Each key leaves one of a few trunks at a random depth, with nibbles of a four-letter alphabet.
    Trunks,
    /// All sixteen children of a few branches.
    Wide,
}

pub(crate) const SHAPES: [Shape; 4] = [Shape::Hashed, Shape::LastTwo, Shape::Trunks, Shape::Wide];

impl Shape {
    /// A key of at most `variety` different ones or so.
    pub(crate) fn key(self, rng: &mut StdRng, variety: u32) -> B256 {
        match self {
            Self::Hashed => keccak256(rng.random_range(0..variety).to_be_bytes()),
            Self::LastTwo => {
                let mut key = B256::repeat_byte(0x5a);
                key[31] = letters(rng) << 4 | letters(rng);
                key
            }
            Self::Trunks => {
                let mut key = B256::repeat_byte([0x00, 0x0f, 0xf0][rng.random_range(0..3)]);
                let departs = [0, 1, 2, 7, 31, 32, 61, 62, 63][rng.random_range(0..9)];
                set_nibble(&mut key, departs, letters(rng));
                let twist = rng.random_range(departs..64);
                set_nibble(&mut key, twist, letters(rng));
                key
            }
            Self::Wide => {
                let mut key = B256::repeat_byte(0x77);
                key[0] = rng.random();
                key[rng.random_range(1..4)] = rng.random_range(0..16) << 4;
                key
            }
        }
    }
}

fn letters(rng: &mut StdRng) -> u8 {
    [0, 1, 14, 15][rng.random_range(0..4)]
}

fn set_nibble(key: &mut B256, at: usize, nibble: u8) {
    let byte = &mut key[at / 2];
    *byte = if at.is_multiple_of(2) { *byte & 0x0f | nibble << 4 } else { *byte & 0xf0 | nibble };
}
