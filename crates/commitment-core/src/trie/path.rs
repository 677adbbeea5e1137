//! Paths in a trie, as the first nibbles of 32 bytes.
//!
//! Invariant: what follows the path in its bytes is zero.

use alloy_primitives::B256;
use alloy_trie::Nibbles;

/// The nibble of a key at a depth below 64.
#[inline]
pub(crate) fn nibble_at(key: &B256, depth: usize) -> u8 {
    let byte = key.0[depth / 2];
    if depth.is_multiple_of(2) { byte >> 4 } else { byte & 0x0f }
}

/// The number of nibbles that two keys share at their beginning.
pub(crate) fn shared_nibbles(a: &B256, b: &B256) -> usize {
    match a.iter().zip(b.iter()).position(|(a, b)| a != b) {
        Some(at) => 2 * at + usize::from((a[at] ^ b[at]) < 0x10),
        None => 64,
    }
}

/// A path of at most 64 nibbles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Path {
    bytes: B256,
    len: u8,
}

impl Path {
    /// The first `len` nibbles of a key.
    pub(crate) fn of(key: &B256, len: usize) -> Self {
        let mut bytes = *key;
        bytes.0[len.div_ceil(2)..].fill(0);
        if len % 2 == 1 {
            bytes.0[len / 2] &= 0xf0;
        }
        Self { bytes, len: len as u8 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len as usize
    }

    /// The first key below this path.
    pub(crate) const fn first_key(&self) -> &B256 {
        &self.bytes
    }

    /// Whether a key lies below this path.
    pub(crate) fn covers(&self, key: &B256) -> bool {
        shared_nibbles(&self.bytes, key) >= self.len()
    }

    pub(crate) fn push(&mut self, nibble: u8) {
        let at = self.len();
        self.bytes.0[at / 2] |= if at.is_multiple_of(2) { nibble << 4 } else { nibble };
        self.len += 1;
    }

    /// This path and one nibble more.
    pub(crate) fn child(mut self, nibble: u8) -> Self {
        self.push(nibble);
        self
    }

    /// This path and an extension.
    pub(crate) fn join(mut self, extension: &Nibbles) -> Self {
        extension.iter().for_each(|nibble| self.push(nibble));
        self
    }

    pub(crate) fn truncated(&self, len: usize) -> Self {
        Self::of(&self.bytes, len.min(self.len()))
    }

    pub(crate) fn nibble(&self, at: usize) -> u8 {
        nibble_at(&self.bytes, at)
    }

    pub(crate) fn to_nibbles(self) -> Nibbles {
        Nibbles::unpack_array(&self.bytes.0).slice(..self.len())
    }

    /// What follows the first `from` nibbles.
    pub(crate) fn rest(&self, from: usize) -> Nibbles {
        if from == self.len() { Nibbles::new() } else { self.to_nibbles().slice(from..) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_agree_with_nibbles() {
        let key = alloy_primitives::keccak256(b"key");
        let nibbles = Nibbles::unpack(key);
        for len in 0..=64 {
            let path = Path::of(&key, len);
            assert_eq!(path.to_nibbles(), nibbles.slice(..len));
            assert!(path.covers(&key) && path.covers(path.first_key()));
            for from in 0..=len {
                assert_eq!(path.rest(from), nibbles.slice(from..len));
                assert_eq!(path.truncated(from).join(&path.rest(from)), path);
            }
            if len < 64 {
                let other = path.child(path.child(0).nibble(len) ^ nibble_at(&key, len) ^ 1);
                assert!(!other.covers(&key) && other.len() == len + 1);
                assert_eq!(path.child(nibble_at(&key, len)), Path::of(&key, len + 1));
            }
        }
    }
}
