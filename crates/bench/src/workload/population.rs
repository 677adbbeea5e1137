//! Keys in sorted order without the keys: numbers, sorted by what they hash to.
//!
//! Invariants:
//! 1. Sixteen bytes for each member: the key's first eight bytes and the member's number. The rest is hashed again when
//!    it is asked for, many at a time.
//! 2. Members are numbered from 0 without a gap.

use std::sync::Arc;

use alloy_primitives::{B256, U256, b256, keccak256};
use foldgate_core::AccountInfo;
use foldgate_keccak::{keccak256_20, keccak256_32, keccak256_batch};

/// How many keys are made at once.
const BATCH: usize = 1024;

/// Contracts are accounts whose numbers begin here, far above those of plain accounts.
const FIRST_CONTRACT: u64 = 1 << 40;

/// The code of every contract.
pub(crate) const CONTRACT_CODE: [u8; 1] = [0];
/// keccak256 of [`CONTRACT_CODE`].
const CONTRACT_CODE_HASH: B256 = b256!("bc36789e7a1e281436464229828f817d6612f7b477d66591ff96a9e064bcc98a");

/// The hashed address of plain account `i`.
pub fn account_key(i: u64) -> B256 {
    keccak256(&keccak256(i.to_be_bytes())[..20])
}

/// The hashed address of contract `i`.
pub fn contract_key(i: u32) -> B256 {
    account_key(FIRST_CONTRACT + u64::from(i))
}

/// The hashed slot `i`, of any contract.
pub fn slot_key(i: u32) -> B256 {
    keccak256(U256::from(i).to_be_bytes::<32>())
}

/// Plain account `i` at first.
pub(crate) fn initial_account(i: u32) -> AccountInfo {
    let balance = U256::from(u64::from(i) * 1_000_000_000 + 1);
    AccountInfo { nonce: i.into(), balance, ..AccountInfo::default() }
}

/// Every contract's fields at first.
pub(crate) fn initial_contract() -> AccountInfo {
    AccountInfo { nonce: 1, code_hash: CONTRACT_CODE_HASH, ..AccountInfo::default() }
}

/// The value of slot `i` at first: eight bytes, not zero.
pub(crate) fn initial_slot(i: u32) -> U256 {
    U256::from(u64::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Accounts,
    Slots,
}

impl Kind {
    fn key(self, number: u32) -> B256 {
        match self {
            Self::Accounts => account_key(number.into()),
            Self::Slots => slot_key(number),
        }
    }

    /// The keys of many.
    fn keys(self, numbers: impl Iterator<Item = u32>) -> Vec<B256> {
        match self {
            Self::Accounts => {
                let numbers: Vec<_> = numbers.map(|number| u64::from(number).to_be_bytes()).collect();
                let mut words = vec![B256::ZERO; numbers.len()];
                keccak256_batch(&numbers, &mut words);
                let addresses: Vec<[u8; 20]> =
                    words.iter().map(|word| std::array::from_fn(|byte| word[byte])).collect();
                keccak256_20(&addresses, &mut words);
                words
            }
            Self::Slots => {
                let slots: Vec<_> = numbers.map(|number| U256::from(number).to_be_bytes::<32>()).collect();
                let mut keys = vec![B256::ZERO; slots.len()];
                keccak256_32(&slots, &mut keys);
                keys
            }
        }
    }
}

/// The first eight bytes: they sort as the keys do.
fn head(key: &B256) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|byte| key[byte]))
}

/// Plain accounts, or the slots of a contract, as they are at first.
#[derive(Debug, Clone)]
pub struct Population {
    kind: Kind,
    /// Head of the key, number. Sorted by key.
    sorted: Arc<[(u64, u32)]>,
}

impl Population {
    /// Plain accounts 0 to `count`.
    pub fn accounts(count: u32) -> Self {
        Self::new(Kind::Accounts, count)
    }

    /// Slots 0 to `count`.
    pub fn slots(count: u32) -> Self {
        Self::new(Kind::Slots, count)
    }

    fn new(kind: Kind, count: u32) -> Self {
        let mut sorted = Vec::with_capacity(count as usize);
        for first in (0..count).step_by(BATCH) {
            let numbers = first..count.min(first + BATCH as u32);
            sorted.extend(kind.keys(numbers.clone()).iter().map(head).zip(numbers));
        }
        sorted.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| kind.key(a.1).cmp(&kind.key(b.1))));
        Self { kind, sorted: sorted.into() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// The member with this key.
    pub fn find(&self, key: &B256) -> Option<u32> {
        let from = self.sorted.partition_point(|(head_of, _)| *head_of < head(key));
        let alike = self.sorted[from..].iter().take_while(|(head_of, _)| *head_of == head(key));
        alike.map(|(_, number)| *number).find(|number| self.kind.key(*number) == *key)
    }

    /// All keys in order, each with its member's number.
    pub fn in_order(&self) -> InOrder {
        InOrder { population: self.clone(), next: 0, batch: Vec::new().into_iter() }
    }
}

/// What [`Population::in_order`] gives.
#[derive(Debug)]
pub struct InOrder {
    population: Population,
    /// The place of the batch's next key.
    next: usize,
    batch: std::vec::IntoIter<B256>,
}

impl Iterator for InOrder {
    type Item = (B256, u32);

    fn next(&mut self) -> Option<Self::Item> {
        let (_, number) = *self.population.sorted.get(self.next)?;
        if self.batch.as_slice().is_empty() {
            let end = self.population.len().min(self.next + BATCH);
            let numbers = self.population.sorted[self.next..end].iter().map(|(_, number)| *number);
            self.batch = self.population.kind.keys(numbers).into_iter();
        }
        self.next += 1;
        self.batch.next().map(|key| (key, number))
    }
}
