//! What the pipeline is told of a block: the request at its arrival, the result at the end of its execution.

use alloy_eip7928::AccountChanges;
use alloy_primitives::{B256, Bytes};
use foldgate_core::BlockFacts;

/// A block's access list as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BalInput {
    /// There is none.
    None,
    /// It came in the block's payload: a hash that does not fit the header makes the block invalid.
    Payload(Bytes),
    /// It came from a [`foldgate_core::BalSource`]: a hash that does not fit makes it worthless, and nothing more.
    Sourced(Bytes),
}

/// A block to be calculated, sent at its arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockRequest {
    pub(crate) facts: BlockFacts,
    pub(crate) bal: BalInput,
    pub(crate) before_cancun: bool,
}

impl BlockRequest {
    /// A block without an access list.
    pub const fn new(facts: BlockFacts) -> Self {
        Self { facts, bal: BalInput::None, before_cancun: false }
    }

    /// Adds the raw access list that came in the payload.
    #[must_use]
    pub fn with_bal(mut self, raw: Bytes) -> Self {
        self.bal = BalInput::Payload(raw);
        self
    }

    /// Adds a raw access list that came from elsewhere.
    #[must_use]
    pub fn with_sourced_bal(mut self, raw: Bytes) -> Self {
        self.bal = BalInput::Sourced(raw);
        self
    }

    /// Says that the block is older than Cancun: it is calculated incrementally whatever list it brings, since
    /// SELFDESTRUCT may delete storage there that no list names.
    #[must_use]
    pub const fn before_cancun(mut self, before: bool) -> Self {
        self.before_cancun = before;
        self
    }

    /// The block's facts.
    pub const fn facts(&self) -> &BlockFacts {
        &self.facts
    }
}

/// The access list that the executor rebuilt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RebuiltBal {
    /// keccak256 of its canonical RLP.
    pub hash: B256,
    /// The list itself: it lets a verdict name the first difference.
    pub list: Option<Vec<AccountChanges>>,
}

/// What the executor says at the end of a block that it found valid so far. A block that it found invalid is
/// [`crate::BlockHandle::reject`]ed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockResult {
    /// The rebuilt list: required where the header commits to one.
    pub rebuilt_bal: Option<RebuiltBal>,
    /// The header's state root, if the request did not have it yet.
    pub expected_state_root: Option<B256>,
}
