//! The keys that a list names, plain and hashed, each hashed once for whoever needs it: the leaves, the warm-up, the
//! executor.
//!
//! Invariants:
//! 1. `hashed_addresses` and `hashed_slots` are the keccak256 of `addresses` and `slots`, in the list's order.
//! 2. The addresses ascend; so do, in each account's range, the written slots, and the slots only read. No key is there
//!    twice.
//! 3. `order` has the places of the accounts in the order of their hashed addresses; `slot_order` those of the slots,
//!    in the same ranges as `slots`, each in the order of the hashed slots.

use alloy_primitives::{Address, B256, U256};
use foldgate_keccak::{keccak256_20, keccak256_32};

use crate::flat::SlotRange;

/// The accounts and slots that a list names, read or written, with their hashes.
#[derive(Debug)]
pub struct ListedKeys {
    addresses: Vec<Address>,
    slots: Vec<[u8; 32]>,
    ranges: Vec<SlotRange>,
    hashed_addresses: Vec<B256>,
    hashed_slots: Vec<B256>,
    order: Vec<u32>,
    slot_order: Vec<u32>,
}

impl ListedKeys {
    /// Hashes the keys of a list that keeps the rules.
    pub(crate) fn new(addresses: Vec<Address>, slots: Vec<[u8; 32]>, ranges: Vec<SlotRange>) -> Self {
        let mut hashed_addresses = vec![B256::ZERO; addresses.len()];
        let mut hashed_slots = vec![B256::ZERO; slots.len()];
        keccak256_20(&addresses, &mut hashed_addresses);
        keccak256_32(&slots, &mut hashed_slots);
        let order = sorted_order(&hashed_addresses, [(0, addresses.len())]);
        let slot_order = sorted_order(&hashed_slots, ranges.iter().map(|range| (range.start, range.end)));
        Self { addresses, slots, ranges, hashed_addresses, hashed_slots, order, slot_order }
    }

    /// The number of accounts named.
    pub const fn account_count(&self) -> usize {
        self.addresses.len()
    }

    /// The number of slots named, over all accounts.
    pub const fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// The hashed address of each account with its hashed slots, and whether these are written, all in the order of the
    /// hashes: the order in which a store has them.
    pub fn sorted(&self) -> impl Iterator<Item = (&B256, impl ExactSizeIterator<Item = (&B256, bool)>)> {
        self.order.iter().map(move |account| {
            let account = *account as usize;
            let SlotRange { start, written_end, end } = self.ranges[account];
            let slots = self.slot_order[start..end].iter().map(move |place| {
                let place = *place as usize;
                (&self.hashed_slots[place], place < written_end)
            });
            (&self.hashed_addresses[account], slots)
        })
    }

    /// The hash of an address, if the list names it.
    pub fn hashed_address(&self, address: &Address) -> Option<B256> {
        Some(self.hashed_addresses[self.position(address)?])
    }

    /// The hash of a slot, if the list names it under this address.
    pub fn hashed_slot(&self, address: &Address, slot: &U256) -> Option<B256> {
        let SlotRange { start, written_end, end } = self.ranges[self.position(address)?];
        let slot = slot.to_be_bytes::<32>();
        let within = |start: usize, end: usize| Some(start + self.slots[start..end].binary_search(&slot).ok()?);
        let position = within(start, written_end).or_else(|| within(written_end, end))?;
        Some(self.hashed_slots[position])
    }

    fn position(&self, address: &Address) -> Option<usize> {
        self.addresses.binary_search(address).ok()
    }

    /// In the list's order, for each account: its hashed address, and its hashed written slots.
    pub(crate) fn written(&self) -> impl Iterator<Item = (&B256, &[B256])> {
        let slots = self.ranges.iter().map(|range| &self.hashed_slots[range.start..range.written_end]);
        self.hashed_addresses.iter().zip(slots)
    }
}

/// The places of `hashes`, range by range, each range in the order of the hashes. The ranges lie one after the other
/// and cover all. The first eight bytes decide nearly always.
fn sorted_order(hashes: &[B256], ranges: impl IntoIterator<Item = (usize, usize)>) -> Vec<u32> {
    // A hash's beginning with its place in the lowest bits: one number, which is sorted fastest.
    let place_bits = u64::BITS - (hashes.len() as u64).leading_zeros();
    let prefix = |hash: &B256| hash.first_chunk().map_or(0, |prefix| u64::from_be_bytes(*prefix));
    let place = |key: &u64| (key & !(u64::MAX << place_bits)) as u32;
    let mut keyed: Vec<_> =
        (0u64..).zip(hashes).map(|(place, hash)| prefix(hash) & u64::MAX << place_bits | place).collect();
    for (start, end) in ranges.into_iter().filter(|(start, end)| end - start > 1) {
        let range = &mut keyed[start..end];
        range.sort_unstable();
        let equal = range.chunk_by_mut(|left, right| left >> place_bits == right >> place_bits);
        for equal in equal.filter(|equal| equal.len() > 1) {
            equal.sort_unstable_by_key(|key| hashes[place(key) as usize]);
        }
    }
    keyed.iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use alloy_primitives::keccak256;

    use super::*;

    fn be(slot: u64) -> [u8; 32] {
        U256::from(slot).to_be_bytes()
    }

    /// Three accounts: bare, with two written and two read slots, with one read slot.
    fn keys() -> ListedKeys {
        let range = |start, written_end, end| SlotRange { start, written_end, end };
        ListedKeys::new(
            [1, 2, 3].map(Address::with_last_byte).to_vec(),
            [4, 9, 1, 6, 4].map(be).to_vec(),
            vec![range(0, 0, 0), range(0, 2, 4), range(4, 4, 5)],
        )
    }

    #[test]
    fn each_key_is_found_under_its_own_account_alone() {
        let keys = keys();
        assert_eq!((keys.account_count(), keys.slot_count()), (3, 5));
        let slots: [&[u64]; 5] = [&[], &[], &[1, 4, 6, 9], &[4], &[]];
        for byte in 0..5u8 {
            let address = Address::with_last_byte(byte);
            let listed = (1..=3).contains(&byte).then(|| keccak256(address));
            assert_eq!(keys.hashed_address(&address), listed, "{address}");
            for slot in 0..12 {
                let listed = slots[usize::from(byte)].contains(&slot).then(|| keccak256(be(slot)));
                assert_eq!(keys.hashed_slot(&address, &U256::from(slot)), listed, "slot {slot} of {address}");
            }
        }
    }

    #[test]
    fn accounts_and_slots_come_in_the_order_of_their_hashes() {
        let keys = keys();
        let sorted: Vec<_> = keys.sorted().map(|(address, slots)| (*address, slots.collect::<Vec<_>>())).collect();
        assert!(sorted.is_sorted_by_key(|(address, _)| *address));
        assert!(sorted.iter().all(|(_, slots)| slots.is_sorted()));
        assert_eq!(sorted.iter().map(|(_, slots)| slots.len()).sum::<usize>(), 5);
        let busy = sorted.iter().find(|(address, _)| *address == keccak256(Address::with_last_byte(2))).unwrap();
        let mut expected = [1, 4, 6, 9].map(|slot| keccak256(be(slot)));
        expected.sort();
        let written = [4, 9].map(|slot| keccak256(be(slot)));
        assert_eq!(busy.1, expected.each_ref().map(|slot| (slot, written.contains(slot))));
        let written: Vec<_> = keys.written().map(|(_, slots)| slots.to_vec()).collect();
        assert_eq!(written, [vec![], [4, 9].map(|slot| keccak256(be(slot))).to_vec(), vec![]]);
    }

    /// Eight bytes of a hash can be ground out by whoever writes a list: ties are broken by the rest.
    #[test]
    fn hashes_with_a_common_beginning_are_ordered_by_their_end() {
        let hash = |first: u8, last: u8| {
            let mut hash = B256::repeat_byte(first);
            hash[31] = last;
            hash
        };
        let hashes = [hash(7, 3), hash(7, 1), hash(2, 9), hash(7, 2), hash(2, 8)];
        assert_eq!(sorted_order(&hashes, [(0, 5)]), [4, 2, 1, 3, 0]);
        assert_eq!(sorted_order(&hashes, [(0, 2), (2, 2), (2, 5)]), [1, 0, 4, 2, 3]);
    }
}
