//! Plain keys become hashed keys, many at once.
//!
//! Invariants:
//! 1. `hashed_address = keccak256(address)`, `hashed_slot = keccak256(slot as 32 bytes big-endian)` (yellow paper, 4.1).
//! 2. Hashes stand in the order of their keys.

use alloy_primitives::{Address, B256, U256};
use foldgate_keccak::{keccak256, keccak256_20, keccak256_32};

use crate::writes::StateWrites;

/// keccak256 of an address.
pub fn hash_address(address: &Address) -> B256 {
    keccak256(address)
}

/// keccak256 of a slot's 32 bytes.
pub fn hash_slot(slot: &U256) -> B256 {
    keccak256(slot.to_be_bytes::<32>())
}

/// Hashes keys in batches and keeps its buffers from call to call.
#[derive(Debug, Default)]
pub struct KeyHasher {
    plain_addresses: Vec<Address>,
    plain_slots: Vec<[u8; 32]>,
    addresses: Vec<B256>,
    slots: Vec<B256>,
}

/// The hashed keys of one [`StateWrites`].
#[derive(Debug)]
pub struct HashedKeys<'a> {
    /// One for each account, in order.
    pub addresses: &'a [B256],
    /// One for each slot, account after account, in order.
    pub slots: &'a [B256],
}

impl KeyHasher {
    /// Hashes all keys of `writes`.
    pub fn hash_writes(&mut self, writes: &StateWrites) -> HashedKeys<'_> {
        self.plain_addresses.clear();
        self.plain_slots.clear();
        for (address, account) in &writes.accounts {
            self.plain_addresses.push(*address);
            self.plain_slots.extend(account.storage.iter().map(|(slot, _)| slot.to_be_bytes::<32>()));
        }
        self.addresses.resize(self.plain_addresses.len(), B256::ZERO);
        self.slots.resize(self.plain_slots.len(), B256::ZERO);
        keccak256_20(&self.plain_addresses, &mut self.addresses);
        keccak256_32(&self.plain_slots, &mut self.slots);
        HashedKeys { addresses: &self.addresses, slots: &self.slots }
    }
}
