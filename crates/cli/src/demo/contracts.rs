//! The contracts of the demonstration, assembled by hand.
//!
//! Invariant: none of them can fail on the calls that the demonstration makes, given the gas it gives.

use alloy_primitives::{Address, Bytes, U256, hex};

use crate::maker::words;

/// A token: the slot of an address holds its balance. `transfer(to, amount)` takes two words and checks nothing.
pub(super) const TOKEN: &[u8] = &hex!(
    "602035"     // amount
    "80335403"   // balance of the caller, less the amount
    "3355"       // stored
    "600035"     // to
    "805482019055" // its balance, and the amount, stored
    "5000"
);

/// A registry: `set(value, key..)` stores the value under every key; zero clears.
pub(super) const REGISTRY: &[u8] = &hex!(
    "6020"       // the position of the next key
    "5b"         // loop:
    "36811015601657" // beyond the calldata? end
    "6000358135" // value, key
    "55"
    "602001600256" // the next one
    "5b00"       // end:
);

/// Calldata of the token's transfer.
pub(super) fn transfer(to: Address, amount: u64) -> Bytes {
    words([U256::from_be_slice(to.as_slice()), U256::from(amount)])
}

/// Calldata of the registry's set.
pub(super) fn set(value: u64, keys: impl IntoIterator<Item = u64>) -> Bytes {
    words(std::iter::once(value).chain(keys).map(U256::from))
}

/// Code that creates a contract with `runtime`, and with 1 in slot 0.
pub(super) fn creation(runtime: &[u8]) -> Bytes {
    // The runtime code is shorter than 256 bytes: one byte holds its length.
    let length = runtime.len() as u8;
    let mut code = vec![
        0x60, 1, 0x60, 0, 0x55, // SSTORE(0, 1)
        0x60, length, 0x60, 17, 0x60, 0, 0x39, // CODECOPY(0, 17, length)
        0x60, length, 0x60, 0, 0xf3, // RETURN(0, length)
    ];
    code.extend_from_slice(runtime);
    code.into()
}

/// Code that creates a contract and destroys it in the same breath: its balance goes back.
pub(super) const CREATE_AND_DESTROY: &[u8] = &hex!("33ff");
