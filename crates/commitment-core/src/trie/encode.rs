//! The RLP of leaves, branches and extensions (yellow paper, appendix D), written where it will be hashed.
//!
//! Each node's length is known before it is written, so that its writer can be given a place of just that length.
//!
//! Invariants:
//! 1. Nothing here allocates.
//! 2. A node's reference is its RLP where that is shorter than 32 bytes, else 0xa0 and its keccak256.

use alloy_primitives::{B256, Bytes, U256, keccak256};
use alloy_rlp::{EMPTY_STRING_CODE, Encodable};
use alloy_trie::{Nibbles, nodes::RlpNode};

use super::row::{HASH_REFERENCE, reference_length};
use crate::account::Account;

/// The length of the longest branch: sixteen hashes.
pub(crate) const MAX_BRANCH: usize = 532;
/// The length of the longest extension.
const MAX_EXTENSION_NODE: usize = 2 + 33 + HASH_REFERENCE;

/// What a leaf holds.
pub trait LeafValue: Clone + Send + Sync {
    /// Appends the value's bytes as the leaf holds them, without the string header that the leaf puts around them.
    fn write(&self, out: &mut Vec<u8>);
}

/// An account's leaf holds the RLP of its four fields.
impl LeafValue for Account {
    fn write(&self, out: &mut Vec<u8>) {
        self.encode(out);
    }
}

/// A slot's leaf holds the RLP of the number.
impl LeafValue for U256 {
    fn write(&self, out: &mut Vec<u8>) {
        self.encode(out);
    }
}

/// Bytes stand as they are.
impl LeafValue for Bytes {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
}

/// Puts bytes one behind the other into a place that is long enough.
struct Pen<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Pen<'a> {
    const fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0 }
    }

    #[inline]
    fn byte(&mut self, byte: u8) {
        self.out[self.at] = byte;
        self.at += 1;
    }

    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    /// The header of a string (`short` 0x80) or a list (0xc0) of this length.
    fn header(&mut self, short: u8, length: usize) {
        if length < 56 {
            self.byte(short + length as u8);
        } else {
            let bytes = length.to_be_bytes();
            let bytes = &bytes[length.leading_zeros() as usize / 8..];
            self.byte(short + 55 + bytes.len() as u8);
            self.bytes(bytes);
        }
    }

    fn string(&mut self, bytes: &[u8]) {
        match bytes {
            [byte] if *byte < EMPTY_STRING_CODE => self.byte(*byte),
            _ => {
                self.header(EMPTY_STRING_CODE, bytes.len());
                self.bytes(bytes);
            }
        }
    }
}

const fn header_length(length: usize) -> usize {
    if length < 56 { 1 } else { 1 + (usize::BITS - length.leading_zeros()).div_ceil(8) as usize }
}

/// The length of a path's string: a first byte below 0x80, and these.
const fn path_length(path: &[u8]) -> usize {
    1 + path.len() + if path.is_empty() { 0 } else { 1 }
}

const fn string_length(bytes: &[u8]) -> usize {
    match bytes {
        [byte] if *byte < EMPTY_STRING_CODE => 1,
        _ => header_length(bytes.len()) + bytes.len(),
    }
}

/// The nibbles of an extension in whole bytes, as the hex-prefix encoding has them: the second and all further ones if
/// their number is odd.
pub(crate) struct PackedNibbles {
    first: u8,
    bytes: [u8; 32],
    length: usize,
}

impl PackedNibbles {
    pub(crate) fn new(nibbles: &Nibbles) -> Self {
        let mut bytes = [0; 32];
        let length = nibbles.len() / 2;
        let mut rest = nibbles.iter();
        let first = match nibbles.len() % 2 {
            1 => 0x10 | rest.next().unwrap_or_default(),
            _ => 0,
        };
        for byte in &mut bytes[..length] {
            *byte = rest.next().unwrap_or_default() << 4 | rest.next().unwrap_or_default();
        }
        Self { first, bytes, length }
    }
}

/// A leaf or an extension: a path, and a value or a reference.
pub(crate) struct ShortNode<'a> {
    /// The hex-prefix encoding of the path: its first byte, and the others, which lie in the key as they are.
    first: u8,
    path: &'a [u8],
    rest: &'a [u8],
    is_leaf: bool,
    payload: usize,
}

impl<'a> ShortNode<'a> {
    /// The leaf of `key` that stands under a slot path of `depth` nibbles.
    pub(crate) fn leaf(key: &'a B256, depth: usize, value: &'a [u8]) -> Self {
        let path = &key[depth.div_ceil(2)..];
        let first = if depth % 2 == 1 { 0x30 | key[depth / 2] & 0x0f } else { 0x20 };
        let payload = path_length(path) + string_length(value);
        Self { first, path, rest: value, is_leaf: true, payload }
    }

    /// The extension by nibbles, at least one, to a branch.
    pub(crate) const fn extension(nibbles: &'a PackedNibbles, branch: &'a [u8]) -> Self {
        let (path, _) = nibbles.bytes.split_at(nibbles.length);
        let payload = path_length(path) + branch.len();
        Self { first: nibbles.first, path, rest: branch, is_leaf: false, payload }
    }

    /// The length of the node's RLP.
    pub(crate) const fn len(&self) -> usize {
        header_length(self.payload) + self.payload
    }

    /// Writes the node's RLP to the first [`Self::len`] bytes of `out`.
    pub(crate) fn write(&self, out: &mut [u8]) {
        let mut pen = Pen::new(out);
        pen.header(0xc0, self.payload);
        // At most 33 bytes, and a first one below 0x80: a string of one byte is that byte.
        if !self.path.is_empty() {
            pen.byte(EMPTY_STRING_CODE + 1 + self.path.len() as u8);
        }
        pen.byte(self.first);
        pen.bytes(self.path);
        if self.is_leaf {
            pen.string(self.rest);
        } else {
            pen.bytes(self.rest);
        }
    }
}

/// A branch as its children's references, one behind the other.
#[derive(Clone, Copy)]
pub(crate) struct BranchNode<'a> {
    pub(crate) state_mask: u16,
    pub(crate) references: &'a [u8],
}

impl BranchNode<'_> {
    /// The references, an empty string for each child that is not there, and the value, which no 32-byte key leads to.
    const fn payload(self) -> usize {
        self.references.len() + self.state_mask.count_zeros() as usize + 1
    }

    /// The length of the node's RLP.
    pub(crate) const fn len(self) -> usize {
        header_length(self.payload()) + self.payload()
    }

    /// Writes the node's RLP to the first [`Self::len`] bytes of `out`.
    pub(crate) fn write(self, out: &mut [u8]) {
        let mut pen = Pen::new(out);
        pen.header(0xc0, self.payload());
        let mut references = self.references;
        let all_hashes = references.len() == HASH_REFERENCE * self.state_mask.count_ones() as usize;
        let mut nibble = 0;
        while nibble < 16 {
            let rest = self.state_mask >> nibble;
            if rest & 1 == 0 {
                pen.byte(EMPTY_STRING_CODE);
                nibble += 1;
                continue;
            }
            // Neighbours lie together in both.
            let (children, length) = match all_hashes {
                true => (rest.trailing_ones(), HASH_REFERENCE * rest.trailing_ones() as usize),
                false => (1, reference_length(references[0])),
            };
            let (run, others) = references.split_at(length);
            pen.bytes(run);
            references = others;
            nibble += children;
        }
        pen.byte(EMPTY_STRING_CODE);
    }

    /// How a parent refers to this branch behind `extension`. For single nodes: hashes on its own.
    pub(crate) fn reference_behind(self, extension: &Nibbles) -> RlpNode {
        let mut rlp = [0; MAX_BRANCH];
        self.write(&mut rlp);
        let branch = RlpNode::from_rlp(&rlp[..self.len()]);
        if extension.is_empty() { branch } else { extension_reference(extension, &branch) }
    }
}

/// How a parent refers to the extension by `nibbles` to a branch. For single nodes: hashes on its own.
pub(crate) fn extension_reference(nibbles: &Nibbles, branch: &RlpNode) -> RlpNode {
    let nibbles = PackedNibbles::new(nibbles);
    let node = ShortNode::extension(&nibbles, branch);
    let mut rlp = [0; MAX_EXTENSION_NODE];
    node.write(&mut rlp);
    RlpNode::from_rlp(&rlp[..node.len()])
}

/// The root of a trie whose topmost node has this reference: always a hash.
pub(crate) fn root_hash(top: &RlpNode) -> B256 {
    top.as_hash().unwrap_or_else(|| keccak256(top))
}

#[cfg(test)]
mod tests {
    use alloy_trie::TrieMask;
    use alloy_trie::nodes::{BranchNode as ReferenceBranch, ExtensionNode, LeafNode};

    use super::*;

    fn written(len: usize, write: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut out = vec![0; len];
        write(&mut out);
        out
    }

    #[test]
    fn leaves_and_extensions_of_every_length_equal_the_reference_encoding() {
        let key = keccak256(b"key");
        let nibbles = Nibbles::unpack(key);
        for depth in 0..=64 {
            for value in [vec![], vec![1], vec![0x80], vec![7; 31], vec![7; 80], vec![7; 300], vec![7; 70_000]] {
                let expected = alloy_rlp::encode(LeafNode::new(nibbles.slice(depth..), value.clone()));
                let node = ShortNode::leaf(&key, depth, &value);
                assert_eq!(written(node.len(), |out| node.write(out)), expected, "leaf at depth {depth}");
            }
        }
        for length in 1..64 {
            for child in [RlpNode::word_rlp(&key), RlpNode::from_raw(&[0xc2, 0x20, 1]).unwrap()] {
                let path = nibbles.slice(..length);
                let expected = alloy_rlp::encode(ExtensionNode::new(path, child.clone()));
                let packed = PackedNibbles::new(&path);
                let node = ShortNode::extension(&packed, &child);
                assert_eq!(written(node.len(), |out| node.write(out)), expected, "extension of {length}");
                assert_eq!(extension_reference(&path, &child), RlpNode::from_rlp(&expected));
            }
        }
    }

    #[test]
    fn branches_of_every_mask_equal_the_reference_encoding() {
        let hash = RlpNode::word_rlp(&keccak256(b"child"));
        let short = RlpNode::from_raw(&[0xc2, 0x20, 1]).unwrap();
        for state_mask in (1..=u16::MAX).step_by(7) {
            for every in [1, 3, u32::MAX] {
                let children = (0..state_mask.count_ones()).map(|i| if i % every == 0 { &hash } else { &short });
                let stack: Vec<_> = children.cloned().collect();
                let expected = alloy_rlp::encode(ReferenceBranch::new(stack.clone(), TrieMask::new(state_mask)));
                let references = stack.iter().flat_map(|child| child.to_vec()).collect::<Vec<_>>();
                let node = BranchNode { state_mask, references: &references };
                assert_eq!(written(node.len(), |out| node.write(out)), expected, "mask {state_mask:016b}");
                assert!(node.len() <= MAX_BRANCH);
                assert_eq!(node.reference_behind(&Nibbles::new()), RlpNode::from_rlp(&expected));
            }
        }
    }
}
