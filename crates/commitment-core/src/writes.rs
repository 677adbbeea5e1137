//! What execution changed at one block access index, in plain keys.
//!
//! Invariants:
//! 1. A field that is `None` did not change; a slot that is not listed did not change.
//! 2. Within one account the order of application is: deletion, then storage wipe, then the fields and slots. So
//!    "destroyed and created again" is one write with `deleted` and the new fields.

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256, keccak256};

/// New code of an account: the bytes and their hash. The bytes are empty where code is cleared (EIP-7702).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeWrite {
    hash: B256,
    bytes: Bytes,
}

impl CodeWrite {
    /// Hashes `bytes`.
    pub fn new(bytes: Bytes) -> Self {
        let hash = if bytes.is_empty() { KECCAK256_EMPTY } else { keccak256(&bytes) };
        Self { hash, bytes }
    }

    /// Takes a hash that the caller has already computed.
    ///
    /// The pairing is the caller's promise; debug builds check it.
    pub fn from_parts(hash: B256, bytes: Bytes) -> Self {
        debug_assert_eq!(hash, keccak256(&bytes));
        Self { hash, bytes }
    }

    /// keccak256 of the code.
    pub const fn hash(&self) -> B256 {
        self.hash
    }

    /// The code itself.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// What changed of one account at one index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountWrites {
    /// The account ceased to exist (SELFDESTRUCT, or EIP-161): all its fields and its storage are gone. Fields and
    /// slots of the same write apply afterwards, onto a new account.
    pub deleted: bool,
    /// All storage is gone while the account stays. Slots of the same write apply afterwards.
    pub storage_wiped: bool,
    /// The new nonce.
    pub nonce: Option<u64>,
    /// The new balance in wei.
    pub balance: Option<U256>,
    /// The new code.
    pub code: Option<CodeWrite>,
    /// `(slot, value)`; zero removes the slot. A slot is listed once.
    pub storage: Vec<(U256, U256)>,
}

impl AccountWrites {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What execution changed at one block access index, every account once, in any order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateWrites {
    /// The changed accounts.
    pub accounts: Vec<(Address, AccountWrites)>,
}
