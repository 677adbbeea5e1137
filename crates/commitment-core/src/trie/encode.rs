//! The RLP of leaves, branches and extensions (yellow paper, appendix D), written into a buffer that is used again.
//!
//! Invariants:
//! 1. Nothing here allocates once the buffers have grown.
//! 2. A node's reference is its RLP where that is shorter than 32 bytes, else 0xa0 and its keccak256.

use alloy_primitives::{B256, Bytes, U256, keccak256};
use alloy_rlp::{EMPTY_STRING_CODE, Encodable, Header};
use alloy_trie::{Nibbles, nodes::RlpNode};

use super::row::{Body, Branch};
use crate::account::Account;

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

/// Encodes nodes, one at a time.
#[derive(Debug, Default)]
pub(crate) struct NodeEncoder {
    node: Vec<u8>,
    value: Vec<u8>,
}

impl NodeEncoder {
    /// The RLP of the leaf of `key` that stands under a slot path of `depth` nibbles.
    pub(crate) fn leaf(&mut self, key: &B256, depth: usize, value: &impl LeafValue) -> &[u8] {
        self.value.clear();
        value.write(&mut self.value);
        let mut path = [0; 33];
        let path = compact_suffix(key, depth, &mut path);
        let payload_length = path.length() + self.value.as_slice().length();
        self.node.clear();
        Header { list: true, payload_length }.encode(&mut self.node);
        path.encode(&mut self.node);
        self.value.as_slice().encode(&mut self.node);
        &self.node
    }

    /// The RLP of the branch itself, without any extension.
    pub(crate) fn branch(&mut self, branch: &Branch) -> &[u8] {
        let references = branch.references();
        // Sixteen children, each at least the empty string, and the value, which no 32-byte key leads to.
        let payload_length = references.iter().map(|reference| reference.len().max(1)).sum::<usize>() + 1;
        self.node.clear();
        Header { list: true, payload_length }.encode(&mut self.node);
        for reference in references {
            if reference.is_empty() {
                self.node.push(EMPTY_STRING_CODE);
            } else {
                self.node.extend_from_slice(reference);
            }
        }
        self.node.push(EMPTY_STRING_CODE);
        &self.node
    }

    fn extension(&mut self, nibbles: &Nibbles, child: &RlpNode) -> &[u8] {
        let mut path = [0; 33];
        let odd = nibbles.len() % 2;
        let length = 1 + nibbles.len() / 2;
        let mut rest = nibbles.iter();
        path[0] = if odd == 1 { 0x10 | rest.next().unwrap_or_default() } else { 0 };
        for byte in &mut path[1..length] {
            *byte = rest.next().unwrap_or_default() << 4 | rest.next().unwrap_or_default();
        }
        let path = &path[..length];
        self.node.clear();
        Header { list: true, payload_length: path.length() + child.len() }.encode(&mut self.node);
        path.encode(&mut self.node);
        self.node.extend_from_slice(child);
        &self.node
    }

    /// The RLP of the branch behind its extension: what the parent refers to.
    pub(crate) fn branch_behind(&mut self, extension: &Nibbles, branch: &Branch) -> &[u8] {
        if extension.is_empty() {
            return self.branch(branch);
        }
        let reference = reference(self.branch(branch));
        self.extension(extension, &reference)
    }

    /// How the parent refers to a branch behind its extension, as far as that is known.
    pub(crate) fn reference_behind(&mut self, extension: &Nibbles, body: &Body) -> RlpNode {
        match body {
            Body::Known(branch) => reference(self.branch_behind(extension, branch)),
            Body::Blinded(branch) if extension.is_empty() => branch.clone(),
            Body::Blinded(branch) => reference(self.extension(extension, branch)),
        }
    }

    /// The root of a trie whose topmost node is this.
    pub(crate) fn root_behind(&mut self, extension: &Nibbles, body: &Body) -> B256 {
        match body {
            Body::Known(branch) => root_hash(self.branch_behind(extension, branch)),
            Body::Blinded(branch) => match branch.as_hash().filter(|_| extension.is_empty()) {
                Some(hash) => hash,
                None => root_hash(self.extension(extension, branch)),
            },
        }
    }
}

/// How a parent refers to a node.
pub(crate) fn reference(rlp: &[u8]) -> RlpNode {
    RlpNode::from_rlp(rlp)
}

/// How a trie is referred to: always by hash.
pub(crate) fn root_hash(rlp: &[u8]) -> B256 {
    keccak256(rlp)
}

/// The hex-prefix encoding of a leaf's path: the key's nibbles from `depth` on.
fn compact_suffix<'a>(key: &B256, depth: usize, out: &'a mut [u8; 33]) -> &'a [u8] {
    let whole = &key[depth.div_ceil(2)..];
    out[0] = if depth % 2 == 1 { 0x30 | key[depth / 2] & 0x0f } else { 0x20 };
    out[1..=whole.len()].copy_from_slice(whole);
    &out[..=whole.len()]
}

#[cfg(test)]
mod tests {
    use alloy_trie::nodes::{ExtensionNode, LeafNode};

    use super::*;

    #[test]
    fn leaves_and_extensions_of_every_length_equal_the_reference_encoding() {
        let key = keccak256(b"key");
        let nibbles = Nibbles::unpack(key);
        let mut encoder = NodeEncoder::default();
        for depth in 0..=64 {
            for value in [vec![1], vec![0x80], vec![7; 31], vec![7; 80], vec![7; 300]] {
                let expected = alloy_rlp::encode(LeafNode::new(nibbles.slice(depth..), value.clone()));
                assert_eq!(encoder.leaf(&key, depth, &Bytes::from(value)), expected, "leaf at depth {depth}");
            }
        }
        for length in 1..64 {
            for child in [RlpNode::word_rlp(&key), RlpNode::from_raw(&[0xc2, 0x20, 1]).unwrap()] {
                let path = nibbles.slice(..length);
                let expected = alloy_rlp::encode(ExtensionNode::new(path, child.clone()));
                assert_eq!(encoder.extension(&path, &child), expected, "extension of {length}");
            }
        }
    }
}
