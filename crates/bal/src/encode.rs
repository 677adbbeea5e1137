//! A list becomes its canonical bytes.
//!
//! Invariant: `decode(encode(list)) == list` for every list whose indices fit 32 bits; other lists have no canonical form.

use alloy_eip7928::AccountChanges;
use alloy_primitives::Bytes;

/// The canonical RLP of a list: what a header's commitment is the keccak256 of.
///
/// The entries are written as they stand, also where they break the rules of order.
pub fn encode(accounts: &[AccountChanges]) -> Bytes {
    let mut out = Vec::new();
    alloy_rlp::encode_list(accounts, &mut out);
    out.into()
}
