//! EIP-7928 block access lists: decoding, hash, structural rules, final values, comparison, and where lists come from.
//!
//! Invariants:
//! 1. Nothing here reads state, executes, or knows of tries: a list is judged by its bytes and its block's facts alone.
//! 2. A list whose hash is not the header's is one matter, and a list with the header's hash and a bad structure is an
//!    invalid block: the errors tell them apart.
//! 3. Input is never trusted: bad bytes give typed errors that say where and what, never a panic.
//!
//! [`Bal`] is the way of a list through the product: checked and hashed in one walk over its bytes. [`decode`],
//! [`validate`] and [`writes`] stand apart from it, for whoever wants a list as the types of `alloy-eip7928`, which the
//! EVM shares, or its state between two transactions.
//!
//! ```
//! use alloy_primitives::Bytes;
//! use foldgate_bal::{Bal, BalLimits, bal_hash};
//!
//! // The list of a block that touched nothing: an empty RLP list.
//! let raw = Bytes::from_static(&[0xc0]);
//! let expected_hash = bal_hash(&raw);
//! let bal = Bal::decode_checked(raw, Some(expected_hash), &BalLimits::new(0, 60_000_000))?;
//! assert!(bal.post_state().is_empty());
//! assert_eq!(bal.keys().sorted().count(), 0);
//! # Ok::<(), foldgate_bal::BalError>(())
//! ```

mod bal;
mod decode;
mod encode;
mod field;
mod flat;
mod hash;
mod keys;
mod mismatch;
mod rlp;
mod source;
mod validate;
mod values;
mod visit;

pub use alloy_eip7928::{
    AccountChanges, BalanceChange, BlockAccessIndex, BlockAccessList, CodeChange, NonceChange, SlotChanges,
    StorageChange,
};
pub use bal::{Bal, BalError};
pub use decode::{DecodeError, decode};
pub use encode::encode;
pub use field::{BalField, ChangeList};
pub use hash::{HashMismatch, bal_hash, check_hash};
pub use keys::ListedKeys;
pub use mismatch::{BalMismatch, Difference, first_mismatch};
pub use rlp::RlpFault;
pub use source::{DEFAULT_MAX_FILE_BYTES, DirectorySource, MemorySource, SourceError};
pub use validate::{BalLimits, ITEM_COST, MAX_CODE_SIZE, Violation, validate};
pub use values::{account_writes, writes};
