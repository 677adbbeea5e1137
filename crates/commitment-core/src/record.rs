//! The bytes of a store's rows, the same on every backend that files them by key.
//!
//! Accounts are [`Account::to_bytes`](crate::Account::to_bytes), nodes are filed under
//! [`NodeKey::write_bytes`](crate::NodeKey::write_bytes), reverse diffs are
//! [`ReverseDiff::to_bytes`](crate::ReverseDiff::to_bytes); the rest is here.
//!
//! Invariants:
//! 1. Bytes of keys sort as the keys do: all numbers are big-endian.
//! 2. Each value has one encoding, and decoding refuses every other.

use alloy_primitives::{B256, U256};

use crate::block::{BlockNumHash, BlockNumber, StateAnchor};

/// The version of the rows' meaning, which every store remembers: of the encodings named above, and of what the fold
/// writes into the rows of nodes. It changes when any of them does.
pub const ROW_FORMAT: u32 = 1;

/// The key of a slot's row: hashed address, then hashed slot.
pub fn slot_key(hashed_address: &B256, hashed_slot: &B256) -> [u8; 64] {
    let mut key = [0; 64];
    key[..32].copy_from_slice(hashed_address.as_slice());
    key[32..].copy_from_slice(hashed_slot.as_slice());
    key
}

/// The hashed slot of a slot's row, if the key is one of this account.
pub fn slot_of_key(hashed_address: &B256, key: &[u8]) -> Option<B256> {
    let slot = key.strip_prefix(hashed_address.as_slice())?;
    B256::try_from(slot).ok()
}

/// Writes the value of a slot's row: big-endian without leading zero bytes. Gives the buffer's used part.
pub fn write_slot_value<'a>(value: &U256, buffer: &'a mut [u8; 32]) -> &'a [u8] {
    *buffer = value.to_be_bytes();
    &buffer[value.leading_zeros() / 8..]
}

/// Decodes what [`write_slot_value`] wrote of a value that is not zero; `None` if the bytes are anything else.
pub fn slot_value(bytes: &[u8]) -> Option<U256> {
    let canonical = bytes.len() <= 32 && bytes.first().is_some_and(|first| *first != 0);
    canonical.then(|| U256::from_be_slice(bytes))
}

/// The key of what is filed by height.
pub const fn number_key(number: BlockNumber) -> [u8; 8] {
    number.to_be_bytes()
}

/// The key of what is filed by height and hash.
pub fn block_key(block: &BlockNumHash) -> [u8; 40] {
    let mut key = [0; 40];
    key[..8].copy_from_slice(&block.number.to_be_bytes());
    key[8..].copy_from_slice(block.hash.as_slice());
    key
}

/// Encodes an anchor: height, hash, state root.
pub fn anchor_bytes(anchor: &StateAnchor) -> [u8; 72] {
    let mut bytes = [0; 72];
    bytes[..40].copy_from_slice(&block_key(&anchor.block));
    bytes[40..].copy_from_slice(anchor.state_root.as_slice());
    bytes
}

/// Decodes what [`anchor_bytes`] wrote; `None` if the bytes are anything else.
pub fn anchor(bytes: &[u8]) -> Option<StateAnchor> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    let (hash, state_root) = rest.split_first_chunk::<32>()?;
    Some(StateAnchor {
        block: BlockNumHash::new(u64::from_be_bytes(*number), B256::from(hash)),
        state_root: B256::try_from(state_root).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_values_have_one_encoding() {
        let mut buffer = [0; 32];
        for value in [U256::from(1), U256::from(0x100), U256::from(1) << 255, U256::MAX] {
            assert_eq!(slot_value(write_slot_value(&value, &mut buffer)), Some(value));
        }
        assert_eq!(write_slot_value(&U256::from(0x1ff), &mut buffer), [1, 0xff]);
        assert_eq!(slot_value(&[]), None, "no row holds zero");
        assert_eq!(slot_value(&[0, 1]), None);
        assert_eq!(slot_value(&[1; 33]), None);
    }

    #[test]
    fn anchors_round_trip_at_one_length_only() {
        let block = BlockNumHash::new(7, B256::repeat_byte(1));
        let bytes = anchor_bytes(&StateAnchor { block, state_root: B256::repeat_byte(2) });
        assert_eq!(anchor(&bytes), Some(StateAnchor { block, state_root: B256::repeat_byte(2) }));
        assert!((0..72).all(|length| anchor(&bytes[..length]).is_none()));
        assert_eq!(anchor(&[bytes.as_slice(), &[0]].concat()), None);
    }

    #[test]
    fn slot_keys_are_taken_apart_only_within_their_account() {
        let (address, slot) = (B256::repeat_byte(1), B256::repeat_byte(2));
        let key = slot_key(&address, &slot);
        assert_eq!(slot_of_key(&address, &key), Some(slot));
        assert_eq!(slot_of_key(&slot, &key), None);
        assert_eq!(slot_of_key(&address, &key[..63]), None);
    }
}
