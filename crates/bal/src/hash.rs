//! The hash to which a header commits.

use alloy_primitives::B256;
use foldgate_keccak::keccak256;

/// A list is not the one that the header commits to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the access list's hash is {got}, expected {expected}")]
pub struct HashMismatch {
    /// keccak256 of the list's raw bytes.
    pub got: B256,
    /// The header's commitment.
    pub expected: B256,
}

/// keccak256 of a list's raw bytes (EIP-7928, `block_access_list_hash`).
pub fn bal_hash(raw: &[u8]) -> B256 {
    keccak256(raw)
}

/// Holds raw bytes to a header's commitment; gives their hash. The bytes are not decoded.
///
/// # Errors
/// [`HashMismatch`].
pub fn check_hash(raw: &[u8], expected: B256) -> Result<B256, HashMismatch> {
    let got = bal_hash(raw);
    if got == expected { Ok(got) } else { Err(HashMismatch { got, expected }) }
}
