//! Lays a message out in whole rate blocks, as the padded entry points read it.
//!
//! Invariants:
//! 1. A padded message is the message, the byte `0x01`, zeros, and the bit `0x80` of the last byte: pad10*1 of the
//!    original Keccak submission, which keccak256 kept (SHA-3 appends `0x06` instead).

use crate::permutation::{PAD_FIRST, PAD_LAST, RATE, rate_blocks};

/// A buffer does not hold its message with the padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("buffer too small for the padded message: got {got} bytes, expected at least {expected}")]
pub struct BufferTooSmall {
    /// Length of the buffer.
    pub got: usize,
    /// Length of the padded message.
    pub expected: usize,
}

/// Length of a message of `len` bytes once it is padded: `rate_blocks(len) * RATE`.
///
/// Saturates where that does not fit: no buffer is so long.
#[inline]
pub const fn padded_len(len: usize) -> usize {
    rate_blocks(len).saturating_mul(RATE)
}

/// Pads the message in `buffer[..len]` where it lies, and gives the number of rate blocks that it fills.
///
/// Overwrites `buffer[len..padded_len(len)]`, and nothing behind it.
///
/// # Errors
/// [`BufferTooSmall`] if the buffer is shorter than [`padded_len`]`(len)`; it is unchanged then.
///
/// ```
/// use foldgate_keccak::{RATE, keccak256, keccak256_padded, pad_in_place};
///
/// let mut buffer = [0u8; RATE];
/// buffer[..3].copy_from_slice(b"dog");
/// let blocks = pad_in_place(&mut buffer, 3)?;
///
/// let mut digest = [Default::default()];
/// keccak256_padded(&buffer, RATE, blocks, &mut digest);
/// assert_eq!(digest[0], keccak256("dog"));
/// # Ok::<(), foldgate_keccak::BufferTooSmall>(())
/// ```
#[inline]
pub fn pad_in_place(buffer: &mut [u8], len: usize) -> Result<usize, BufferTooSmall> {
    let expected = padded_len(len);
    let got = buffer.len();
    let padding = buffer.get_mut(len..expected).ok_or(BufferTooSmall { got, expected })?;
    padding.fill(0);
    // One byte takes both bits where they meet.
    if let Some(first) = padding.first_mut() {
        *first |= PAD_FIRST;
    }
    if let Some(last) = padding.last_mut() {
        *last |= PAD_LAST;
    }
    Ok(rate_blocks(len))
}

/// Writes the last rate block of a message: the bytes left over after its whole blocks, then pad10*1.
#[inline]
pub(crate) fn padded_block(tail: &[u8]) -> [u8; RATE] {
    let mut block = [0u8; RATE];
    block[..tail.len()].copy_from_slice(tail);
    block[tail.len()] = PAD_FIRST;
    block[RATE - 1] |= PAD_LAST;
    block
}

/// The bytes of `tail` behind its last whole 8-byte word, followed by the first padding byte, as a state word.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn last_word(tail: &[u8]) -> u64 {
    let bytes = tail.len() % 8;
    let message = match tail.last_chunk() {
        // Read with the seven or fewer bytes before it, which are shifted out: a copy of unknown length takes longer.
        Some(chunk) => u64::from_le_bytes(*chunk).checked_shr(64 - 8 * bytes as u32).unwrap_or(0),
        None => tail.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    };
    message | u64::from(PAD_FIRST) << (8 * bytes)
}
