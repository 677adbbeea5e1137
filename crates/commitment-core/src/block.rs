//! How a block is named and what is known of it when it arrives.
//!
//! Invariants:
//! 1. A block is named by number AND hash ([`BlockNumHash`]): two siblings share a number, never a name.
//! 2. A [`BlockAccessIndex`] is 0 before the transactions, `i + 1` for transaction `i`, `tx_count + 1` after them
//!    (EIP-7928, "Block Access Index").

use core::fmt;

pub use alloy_eip7928::BlockAccessIndex;
use alloy_primitives::B256;
use serde::{Deserialize, Serialize};

/// The height of a block; the genesis is 0.
pub type BlockNumber = u64;

/// keccak256 of a block's RLP-encoded header.
pub type BlockHash = B256;

/// The name of a block: its height and its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockNumHash {
    /// The height.
    pub number: BlockNumber,
    /// The hash of the header.
    pub hash: BlockHash,
}

impl BlockNumHash {
    /// Names a block.
    pub const fn new(number: BlockNumber, hash: BlockHash) -> Self {
        Self { number, hash }
    }
}

impl fmt::Display for BlockNumHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {}", self.number, self.hash)
    }
}

/// A block together with the root of the state after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StateAnchor {
    /// The block.
    pub block: BlockNumHash,
    /// The root of the account trie after the block.
    pub state_root: B256,
}

impl fmt::Display for StateAnchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (state root {})", self.block, self.state_root)
    }
}

/// The facts of a block that the calculator needs at its arrival.
///
/// `state_root` and `bal_hash` are optional because an access list may be announced before its header, and because
/// headers older than EIP-7928 commit to no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockFacts {
    /// The name of the block.
    pub block: BlockNumHash,
    /// The hash of the parent; the parent's number is `block.number - 1`.
    pub parent_hash: BlockHash,
    /// Seconds since the Unix epoch, as in the header.
    pub timestamp: u64,
    /// The header's gas limit: bounds the access list's items (EIP-7928: `block_gas_limit / 2000`).
    pub gas_limit: u64,
    /// The number of transactions: bounds the access list's indices (the highest is `tx_count + 1`).
    pub tx_count: u64,
    /// The header's state root, to which the computed one is held.
    pub expected_state_root: Option<B256>,
    /// The header's commitment to the access list (`block_access_list_hash`), if it has one.
    pub expected_bal_hash: Option<B256>,
}

impl BlockFacts {
    /// The name of the parent, or `None` for a genesis (number 0), which has none.
    pub fn parent(&self) -> Option<BlockNumHash> {
        self.block.number.checked_sub(1).map(|number| BlockNumHash::new(number, self.parent_hash))
    }
}
