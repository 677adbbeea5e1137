//! The names of a list's parts, as errors and comparisons give them.

use core::fmt;

use alloy_primitives::U256;

/// One of the six fields of an account's entry (EIP-7928, `AccountChanges`), in the order of the encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BalField {
    /// The account's address.
    Address,
    /// The slots written, each with its changes.
    StorageChanges,
    /// The slots only read.
    StorageReads,
    /// The balances after each index that changed it.
    BalanceChanges,
    /// The nonces after each index that changed it.
    NonceChanges,
    /// The codes after each index that changed it.
    CodeChanges,
}

impl fmt::Display for BalField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "address",
            Self::StorageChanges => "storage_changes",
            Self::StorageReads => "storage_reads",
            Self::BalanceChanges => "balance_changes",
            Self::NonceChanges => "nonce_changes",
            Self::CodeChanges => "code_changes",
        })
    }
}

/// A list of changes by block access index within an account's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeList {
    /// The changes of one slot.
    Slot(U256),
    /// The changes of the balance.
    Balance,
    /// The changes of the nonce.
    Nonce,
    /// The changes of the code.
    Code,
}

impl ChangeList {
    /// The field of the account's entry that holds this list.
    pub const fn field(&self) -> BalField {
        match self {
            Self::Slot(_) => BalField::StorageChanges,
            Self::Balance => BalField::BalanceChanges,
            Self::Nonce => BalField::NonceChanges,
            Self::Code => BalField::CodeChanges,
        }
    }
}

impl fmt::Display for ChangeList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot(slot) => write!(f, "changes of slot {slot:#x}"),
            Self::Balance => f.write_str("balance_changes"),
            Self::Nonce => f.write_str("nonce_changes"),
            Self::Code => f.write_str("code_changes"),
        }
    }
}
