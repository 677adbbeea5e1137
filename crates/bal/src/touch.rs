//! Everything that a list names, for whoever fetches it before it is asked for.

use alloy_eip7928::AccountChanges;
use alloy_primitives::{Address, U256};

/// An account or a slot that the block reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Touch {
    /// An account.
    Account {
        /// The account.
        address: Address,
        /// Whether one of its fields or slots changes.
        written: bool,
    },
    /// A slot of the account that came last.
    Slot {
        /// The account.
        address: Address,
        /// The slot.
        slot: U256,
        /// Whether it changes.
        written: bool,
    },
}

impl Touch {
    /// The account, or the account whose slot it is.
    pub const fn address(&self) -> Address {
        match *self {
            Self::Account { address, .. } | Self::Slot { address, .. } => address,
        }
    }

    /// The slot, if it is one.
    pub const fn slot(&self) -> Option<U256> {
        match *self {
            Self::Account { .. } => None,
            Self::Slot { slot, .. } => Some(slot),
        }
    }

    /// Whether it changes.
    pub const fn written(&self) -> bool {
        match *self {
            Self::Account { written, .. } | Self::Slot { written, .. } => written,
        }
    }
}

/// Everything that the list names, in its order: each account, then its written slots, then those only read.
pub fn touches(accounts: &[AccountChanges]) -> impl Iterator<Item = Touch> {
    accounts.iter().flat_map(|account| {
        let address = account.address;
        let written = account.storage_changes.iter().map(|changes| (changes.slot, !changes.is_empty()));
        let read = account.storage_reads.iter().map(|slot| (*slot, false));
        let slots = written.chain(read).map(move |(slot, written)| Touch::Slot { address, slot, written });
        core::iter::once(Touch::Account { address, written: account.has_changes() }).chain(slots)
    })
}

#[cfg(test)]
mod tests {
    use alloy_eip7928::{BlockAccessIndex, SlotChanges, StorageChange};

    use super::*;

    #[test]
    fn everything_listed_is_given_once_and_in_order() {
        let (bare, busy) = (Address::with_last_byte(1), Address::with_last_byte(2));
        let change = StorageChange::new(BlockAccessIndex::new(1), U256::from(5));
        let accounts = [
            AccountChanges::new(bare),
            AccountChanges {
                storage_changes: vec![SlotChanges::new(U256::from(9), vec![change])],
                storage_reads: vec![U256::from(3)],
                ..AccountChanges::new(busy)
            },
        ];
        let all: Vec<_> = touches(&accounts).collect();
        let expected = [
            Touch::Account { address: bare, written: false },
            Touch::Account { address: busy, written: true },
            Touch::Slot { address: busy, slot: U256::from(9), written: true },
            Touch::Slot { address: busy, slot: U256::from(3), written: false },
        ];
        assert_eq!(all, expected);
        assert_eq!(all[2].address(), busy);
        assert_eq!((all[0].slot(), all[3].slot()), (None, Some(U256::from(3))));
        assert!(all[2].written() && !all[3].written());
    }
}
