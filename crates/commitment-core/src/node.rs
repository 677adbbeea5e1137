//! How a stored trie node is named.
//!
//! Invariants:
//! 1. A branch is filed under its *slot path*: the path at which its parent points to it (the parent branch's own path
//!    and one nibble; the root: the empty path). An extension is part of its branch's row, so a row is found without
//!    knowing the extension.
//! 2. Keys sort the account trie first, then storage tries by hashed address; within a trie in preorder, so that a
//!    subtree is one range.

use core::fmt;

use alloy_primitives::{B256, Bytes};
use alloy_trie::Nibbles;
use serde::{Deserialize, Serialize};

/// Which trie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TrieId {
    /// The account trie.
    Accounts,
    /// The storage trie of the account with this hashed address.
    Storage(B256),
}

impl fmt::Display for TrieId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accounts => f.write_str("the account trie"),
            Self::Storage(hashed_address) => write!(f, "the storage trie of {hashed_address}"),
        }
    }
}

/// The name of a stored node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct NodeKey {
    /// The trie.
    pub trie: TrieId,
    /// The slot path, at most 63 nibbles.
    pub path: Nibbles,
}

impl fmt::Display for NodeKey {
    /// The path in hexadecimal digits, one for each nibble: `the account trie, path 8a3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, path ", self.trie)?;
        if self.path.is_empty() {
            return f.write_str("(root)");
        }
        self.path.iter().try_for_each(|nibble| write!(f, "{nibble:x}"))
    }
}

impl NodeKey {
    /// Names a node.
    pub const fn new(trie: TrieId, path: Nibbles) -> Self {
        Self { trie, path }
    }
}

/// As text a key is the hashed address, or `accounts`, and the path after a colon, one hexadecimal digit for each nibble.
impl From<NodeKey> for String {
    fn from(key: NodeKey) -> Self {
        let trie = match key.trie {
            TrieId::Accounts => "accounts".to_owned(),
            TrieId::Storage(hashed_address) => hashed_address.to_string(),
        };
        let digits = key.path.iter().filter_map(|nibble| char::from_digit(nibble.into(), 16));
        format!("{trie}:{}", digits.collect::<Self>())
    }
}

/// A text that names no node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{got:?} names no node of a trie")]
pub struct MalformedNodeKey {
    /// The text.
    pub got: String,
}

impl TryFrom<String> for NodeKey {
    type Error = MalformedNodeKey;

    fn try_from(got: String) -> Result<Self, MalformedNodeKey> {
        let parse = |text: &str| {
            let (trie, digits) = text.split_once(':')?;
            let trie = match trie {
                "accounts" => TrieId::Accounts,
                hashed_address => TrieId::Storage(hashed_address.parse().ok()?),
            };
            let nibble = |digit: char| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            let nibbles = digits.chars().map(nibble).collect::<Option<Vec<_>>>()?;
            (nibbles.len() <= 64).then(|| Self::new(trie, Nibbles::from_nibbles(&nibbles)))
        };
        parse(&got).ok_or(MalformedNodeKey { got })
    }
}

/// The first key of the 32-byte key space that lies below `prefix`: the prefix padded with zero nibbles.
pub fn first_key_below(prefix: &Nibbles) -> B256 {
    let mut key = B256::ZERO;
    for (at, nibble) in prefix.iter().enumerate() {
        key.0[at / 2] |= if at % 2 == 0 { nibble << 4 } else { nibble };
    }
    key
}

/// Whether `key`, as 64 nibbles, starts with `prefix`.
pub fn key_is_below(key: &B256, prefix: &Nibbles) -> bool {
    Nibbles::unpack_array(&key.0).starts_with(prefix)
}

/// The nodes that a fold wrote or removed.
///
/// Invariant: strictly sorted by key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrieUpdates {
    /// The node's new row, or `None` if there is no such node any more.
    pub nodes: Vec<(NodeKey, Option<Bytes>)>,
}

impl TrieUpdates {
    /// What these updates say of a node: `None` if nothing, `Some(None)` if it was removed.
    pub fn get(&self, key: &NodeKey) -> Option<&Option<Bytes>> {
        let at = self.nodes.binary_search_by(|(candidate, _)| candidate.cmp(key)).ok()?;
        Some(&self.nodes[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_from_its_text() {
        for trie in [TrieId::Accounts, TrieId::Storage(B256::repeat_byte(0xab))] {
            for path in [&[][..], &[8, 0xa, 3], &[15; 64]] {
                let key = NodeKey::new(trie, Nibbles::from_nibbles(path));
                assert_eq!(NodeKey::try_from(String::from(key)), Ok(key));
            }
        }
        let too_long = format!("accounts:{}", "0".repeat(65));
        for bad in ["", "accounts", "accounts:g", "0x12:3", "accounts:8é", too_long.as_str()] {
            assert_eq!(NodeKey::try_from(bad.to_owned()), Err(MalformedNodeKey { got: bad.to_owned() }));
        }
    }

    #[test]
    fn a_key_names_its_trie_and_its_path() {
        let key = NodeKey::new(TrieId::Accounts, Nibbles::from_nibbles([8, 0xa, 3]));
        assert_eq!(key.to_string(), "the account trie, path 8a3");
        let root = NodeKey::new(TrieId::Storage(B256::ZERO), Nibbles::default());
        assert_eq!(root.to_string(), format!("the storage trie of {}, path (root)", B256::ZERO));
    }
}
