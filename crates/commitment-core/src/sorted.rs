//! Sorted lists of hashed keys, looked through by the keys' first eight bytes alone: eight of those lie in a cache line,
//! where of the lists themselves not even one entry does.
//!
//! Hashes that differ nearly always differ there. Where they do not, the keys themselves decide, one after the other.

use alloy_primitives::B256;

/// A key's first eight bytes, in its order.
pub(crate) fn prefix(key: &B256) -> u64 {
    key.first_chunk().map_or(0, |prefix| u64::from_be_bytes(*prefix))
}

/// Where a key stands in a list, or would stand, if it is not before `from`. Fast where that is near `from`: steps grow
/// as they do not find it.
pub(crate) fn seek<'k>(prefixes: &[u64], from: usize, key: &B256, key_at: impl Fn(usize) -> &'k B256) -> Place {
    let wanted = prefix(key);
    let rest = prefixes.get(from..).unwrap_or_default();
    let mut end = 1;
    while end < rest.len() && rest[end - 1] < wanted {
        end *= 2;
    }
    let mut at = from + rest[..end.min(rest.len())].partition_point(|prefix| *prefix < wanted);
    while prefixes.get(at) == Some(&wanted) {
        match key_at(at).cmp(key) {
            std::cmp::Ordering::Less => at += 1,
            std::cmp::Ordering::Equal => return Place { at, found: true },
            std::cmp::Ordering::Greater => break,
        }
    }
    Place { at, found: false }
}

/// Where [`seek`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) at: usize,
    pub(crate) found: bool,
}

/// Sorts by hashed keys.
pub(crate) fn sort<T>(items: impl Iterator<Item = T>, key: impl Fn(&T) -> &B256) -> Vec<T> {
    // The keys' beginnings lie beside the items' places, so that sorting moves and compares little.
    let mut items: Vec<_> = items.map(Some).collect();
    let mut order: Vec<_> =
        (0u32..).zip(&items).filter_map(|(at, item)| Some((prefix(key(item.as_ref()?)), at))).collect();
    order.sort_unstable();
    order.chunk_by_mut(|a, b| a.0 == b.0).filter(|equal| equal.len() > 1).for_each(|equal| {
        equal.sort_by_key(|(_, at)| items[*at as usize].as_ref().map(|item| *key(item)));
    });
    order.into_iter().filter_map(|(_, at)| items[at as usize].take()).collect()
}

/// Tells of most keys that are not in a list that they are not, by one bit.
#[derive(Debug, Clone, Default)]
struct Filter {
    words: Vec<u64>,
    shift: u32,
}

impl Filter {
    /// For so many keys: of sixteen that are absent, one is not told so.
    fn new(keys: usize) -> Self {
        let bits = (keys * 16).next_power_of_two().max(64);
        Self { words: vec![0; bits / 64], shift: u64::BITS - bits.trailing_zeros() }
    }

    const fn place(&self, hash: u64) -> (usize, u64) {
        let bit = hash >> self.shift;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    fn add(&mut self, hash: u64) {
        let (word, bit) = self.place(hash);
        self.words[word] |= bit;
    }

    fn may_hold(&self, hash: u64) -> bool {
        let (word, bit) = self.place(hash);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }
}

/// The keys of accounts and of their slots, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeyIndex {
    accounts: Vec<u64>,
    /// Where each account's slots end.
    ends: Vec<usize>,
    slots: Vec<u64>,
    account_filter: Filter,
    slot_filter: Filter,
}

impl KeyIndex {
    pub(crate) fn with_capacity(accounts: usize, slots: usize) -> Self {
        Self {
            accounts: Vec::with_capacity(accounts),
            ends: Vec::with_capacity(accounts),
            slots: Vec::with_capacity(slots),
            account_filter: Filter::new(accounts),
            slot_filter: Filter::new(slots),
        }
    }

    /// Adds an account behind all others.
    pub(crate) fn add<'k>(&mut self, hashed_address: &B256, slots: impl Iterator<Item = &'k B256>) {
        let (address, begin) = (prefix(hashed_address), self.slots.len());
        self.accounts.push(address);
        self.account_filter.add(address);
        self.slots.extend(slots.map(prefix));
        self.slots[begin..].iter().for_each(|slot| self.slot_filter.add(slot ^ address));
        self.ends.push(self.slots.len());
    }

    /// Whether an account may be among these: if not, it is not worth looking.
    pub(crate) fn may_hold(&self, hashed_address: &B256) -> bool {
        self.account_filter.may_hold(prefix(hashed_address))
    }

    /// Whether a slot of an account may be among these.
    pub(crate) fn may_hold_slot(&self, hashed_address: &B256, hashed_slot: &B256) -> bool {
        self.slot_filter.may_hold(prefix(hashed_slot) ^ prefix(hashed_address))
    }

    pub(crate) fn accounts(&self) -> &[u64] {
        &self.accounts
    }

    /// The slots of the account at a place, and where they begin among all.
    pub(crate) fn slots(&self, account: usize) -> (&[u64], usize) {
        let begin = account.checked_sub(1).map_or(0, |before| self.ends[before]);
        (&self.slots[begin..self.ends[account]], begin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(first: u64, last: u8) -> B256 {
        let mut key = B256::ZERO;
        key[..8].copy_from_slice(&first.to_be_bytes());
        key[31] = last;
        key
    }

    #[test]
    fn keys_are_found_from_anywhere_before_them_and_prefixes_alone_decide_nothing() {
        let keys = [key(1, 0), key(5, 1), key(5, 3), key(5, 7), key(9, 0), key(u64::MAX, 255)];
        let prefixes: Vec<_> = keys.iter().map(prefix).collect();
        let candidates =
            [0, 1, 2, 5, 8, 9, 10, u64::MAX].into_iter().flat_map(|a| [0, 1, 2, 3, 7, 8, 255].map(|b| key(a, b)));
        for wanted in candidates {
            let expected = keys.partition_point(|key| *key < wanted);
            for from in 0..=expected {
                let place = seek(&prefixes, from, &wanted, |at| &keys[at]);
                assert_eq!(
                    place,
                    Place { at: expected, found: keys.get(expected) == Some(&wanted) },
                    "{wanted} {from}"
                );
            }
        }
        assert_eq!(seek(&[], 0, &keys[0], |_| unreachable!()), Place { at: 0, found: false });
    }

    #[test]
    fn sorting_is_that_of_whole_keys() {
        let mut keys: Vec<_> = (0..200u64).map(|i| key(i * 7919 % 13, (i * 31 % 251) as u8)).collect();
        let sorted = sort(keys.iter().copied(), |key| key);
        keys.sort_unstable();
        assert_eq!(sorted, keys);
    }

    #[test]
    fn a_filter_holds_what_was_added_and_refuses_most_else() {
        let hash = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut filter = Filter::new(1000);
        (0..1000).for_each(|i| filter.add(hash(i)));
        assert!((0..1000).all(|i| filter.may_hold(hash(i))));
        let wrong = (1000..11_000).filter(|i| filter.may_hold(hash(*i))).count();
        assert!(wrong < 1000, "{wrong} of 10,000");
    }

    #[test]
    fn each_account_has_its_own_slots() {
        let mut index = KeyIndex::with_capacity(3, 3);
        index.add(&key(1, 0), [key(4, 0), key(6, 0)].iter());
        index.add(&key(2, 0), [].iter());
        index.add(&key(3, 0), [key(5, 0)].iter());
        assert_eq!(index.accounts(), [1, 2, 3]);
        assert!([1, 2, 3].iter().all(|first| index.may_hold(&key(*first, 9))));
        assert!(index.may_hold_slot(&key(1, 0), &key(4, 0)) && index.may_hold_slot(&key(3, 0), &key(5, 0)));
        assert!(!KeyIndex::with_capacity(0, 0).may_hold(&key(1, 0)));
        assert_eq!([0, 1, 2].map(|at| index.slots(at)), [(&[4, 6][..], 0), (&[][..], 2), (&[5][..], 2)]);
    }
}
