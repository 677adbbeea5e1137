//! What two computations of one block say, and the first thing in which they differ.
//!
//! Invariant: differences are looked for in a fixed order: accounts by hashed address, of each its fields, then its slots;
//! codes; rows by key; the root. So the first one is the same on every machine.

use std::fmt;

use alloy_primitives::{B256, Bytes, U256};
use foldgate_core::{Account, AccountChange, FoldOutcome, NodeKey, SlotChange, StateDiff, TrieUpdates};
use serde::{Deserialize, Serialize};

use super::Shadowed;

/// What a computation came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SideResult {
    /// Its values.
    State {
        /// The root of the account trie after the block.
        computed_state_root: B256,
        /// The changed leaves, with their old values.
        diff: StateDiff,
        /// The changed rows.
        updates: TrieUpdates,
    },
    /// It failed.
    Failed {
        /// The fold's error, in words.
        error: String,
    },
}

impl From<&FoldOutcome> for SideResult {
    fn from(outcome: &FoldOutcome) -> Self {
        let FoldOutcome { computed_state_root, diff, .. } = outcome;
        Self::State { computed_state_root: *computed_state_root, diff: diff.clone(), updates: outcome.updates() }
    }
}

impl From<&Shadowed> for SideResult {
    fn from(shadowed: &Shadowed) -> Self {
        match shadowed {
            Ok(outcome) => Self::from(outcome),
            Err(error) => Self::Failed { error: error.clone() },
        }
    }
}

/// A field of a changed account. The old ones are what the parent's state was found to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "their names say it")]
pub enum AccountField {
    /// Whether it is listed at all.
    Listed,
    OldNonce,
    OldBalance,
    OldCodeHash,
    OldStorageRoot,
    Nonce,
    Balance,
    CodeHash,
    StorageRoot,
}

impl fmt::Display for AccountField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listed => "whether it changed",
            Self::OldNonce => "old nonce",
            Self::OldBalance => "old balance",
            Self::OldCodeHash => "old code hash",
            Self::OldStorageRoot => "old storage root",
            Self::Nonce => "nonce",
            Self::Balance => "balance",
            Self::CodeHash => "code hash",
            Self::StorageRoot => "storage root",
        })
    }
}

/// Where two computations differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// One of them failed, and the other did not, or they failed differently.
    Outcome,
    /// A field of an account.
    Account {
        /// keccak256 of the address.
        hashed_address: B256,
        /// The field.
        field: AccountField,
    },
    /// A slot.
    Slot {
        /// keccak256 of the address.
        hashed_address: B256,
        /// keccak256 of the slot.
        hashed_slot: B256,
        /// Whether it is the value before the block that differs.
        old: bool,
    },
    /// New code.
    Code {
        /// keccak256 of the code.
        code_hash: B256,
    },
    /// A row of a trie.
    Row {
        /// Its name.
        key: NodeKey,
    },
    /// The state root.
    StateRoot,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outcome => f.write_str("outcome"),
            Self::Account { hashed_address, field } => write!(f, "account {hashed_address}, {field}"),
            Self::Slot { hashed_address, hashed_slot, old } => {
                let what = if *old { "old value" } else { "value" };
                write!(f, "account {hashed_address}, slot {hashed_slot}, {what}")
            }
            Self::Code { code_hash } => write!(f, "code {code_hash}"),
            Self::Row { key } => write!(f, "the row at {key}"),
            Self::StateRoot => f.write_str("state root"),
        }
    }
}

/// What a computation says somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value {
    /// Nothing: there is no such thing.
    Absent,
    /// It is there, and is described by its parts.
    Present,
    /// It was removed.
    Removed,
    /// A number: a nonce, a balance, a slot's value.
    Number(U256),
    /// A hash.
    Hash(B256),
    /// Code, or a row.
    Bytes(Bytes),
    /// An error's words.
    Failed(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("nothing"),
            Self::Present => f.write_str("something"),
            Self::Removed => f.write_str("its removal"),
            Self::Number(number) => number.fmt(f),
            Self::Hash(hash) => hash.fmt(f),
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::Failed(error) => write!(f, "an error ({error})"),
        }
    }
}

/// The first thing in which two computations of a block differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where.
    pub place: Place,
    /// What the access list leads to.
    pub bal: Value,
    /// What the executed writes lead to.
    pub execution: Value,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, bal, execution } = self;
        write!(f, "{place}: {bal} by the access list, {execution} by the executed writes")
    }
}

/// The first thing in which two computations differ; `None` if they are equal.
pub fn first_difference(bal: &SideResult, execution: &SideResult) -> Option<Difference> {
    let (left, right) = match (bal, execution) {
        (SideResult::State { .. }, SideResult::State { .. }) => (bal, execution),
        (SideResult::Failed { error: left }, SideResult::Failed { error: right }) if left == right => return None,
        _ => return Some(Difference { place: Place::Outcome, bal: outcome(bal), execution: outcome(execution) }),
    };
    let (
        SideResult::State { computed_state_root: left_root, diff: left, updates: left_rows },
        SideResult::State { computed_state_root: right_root, diff: right, updates: right_rows },
    ) = (left, right)
    else {
        return None;
    };
    let accounts = first_in(&left.accounts, &right.accounts, |change| change.hashed_address, account_difference);
    let codes = || {
        first_in(
            &left.codes,
            &right.codes,
            |(hash, _)| *hash,
            |code_hash, left, right| {
                let bytes =
                    |code: Option<&(B256, Bytes)>| code.map_or(Value::Absent, |code| Value::Bytes(code.1.clone()));
                differ(Place::Code { code_hash }, bytes(left), bytes(right))
            },
        )
    };
    let rows = || {
        first_in(
            &left_rows.nodes,
            &right_rows.nodes,
            |(key, _)| *key,
            |key, left, right| {
                let row = |row: Option<&(NodeKey, Option<Bytes>)>| match row {
                    None => Value::Absent,
                    Some((_, None)) => Value::Removed,
                    Some((_, Some(row))) => Value::Bytes(row.clone()),
                };
                differ(Place::Row { key }, row(left), row(right))
            },
        )
    };
    let roots = || differ(Place::StateRoot, Value::Hash(*left_root), Value::Hash(*right_root));
    accounts.or_else(codes).or_else(rows).or_else(roots)
}

fn outcome(computed: &SideResult) -> Value {
    match computed {
        SideResult::State { computed_state_root, .. } => Value::Hash(*computed_state_root),
        SideResult::Failed { error } => Value::Failed(error.clone()),
    }
}

fn differ(place: Place, bal: Value, execution: Value) -> Option<Difference> {
    (bal != execution).then_some(Difference { place, bal, execution })
}

/// Goes through two lists that are sorted by key, side by side.
fn first_in<T, K: Ord + Copy>(
    left: &[T],
    right: &[T],
    key: impl Fn(&T) -> K,
    difference: impl Fn(K, Option<&T>, Option<&T>) -> Option<Difference>,
) -> Option<Difference> {
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    loop {
        let at = match (left.peek().map(|item| key(item)), right.peek().map(|item| key(item))) {
            (None, None) => return None,
            (Some(at), None) | (None, Some(at)) => at,
            (Some(left), Some(right)) => left.min(right),
        };
        let here = |item: &&T| key(item) == at;
        let found = difference(at, left.next_if(here), right.next_if(here));
        if found.is_some() {
            return found;
        }
    }
}

fn account_difference(
    hashed_address: B256,
    left: Option<&AccountChange>,
    right: Option<&AccountChange>,
) -> Option<Difference> {
    let place = |field| Place::Account { hashed_address, field };
    let (Some(left), Some(right)) = (left, right) else {
        let there = |change: Option<&AccountChange>| if change.is_some() { Value::Present } else { Value::Absent };
        return differ(place(AccountField::Listed), there(left), there(right));
    };
    type Part = (AccountField, fn(&Account) -> Value);
    let old: [Part; 4] = [
        (AccountField::OldNonce, |account| Value::Number(U256::from(account.nonce))),
        (AccountField::OldBalance, |account| Value::Number(account.balance)),
        (AccountField::OldCodeHash, |account| Value::Hash(account.code_hash)),
        (AccountField::OldStorageRoot, |account| Value::Hash(account.storage_root)),
    ];
    let new = [AccountField::Nonce, AccountField::Balance, AccountField::CodeHash];
    let value = |account: &Option<Account>, part: fn(&Account) -> Value| account.as_ref().map_or(Value::Absent, part);
    let olds = old.iter().map(|(field, part)| (*field, value(&left.old, *part), value(&right.old, *part)));
    let news =
        new.iter().zip(&old).map(|(field, (_, part))| (*field, value(&left.new, *part), value(&right.new, *part)));
    let fields = olds.chain(news).find_map(|(field, left, right)| differ(place(field), left, right));
    // A storage root follows from the slots: they say more.
    let slots = || {
        first_in(
            &left.slots,
            &right.slots,
            |slot| slot.hashed_slot,
            |hashed_slot, left, right| {
                let at = |old| Place::Slot { hashed_address, hashed_slot, old };
                let value = |slot: Option<&SlotChange>, of: fn(&SlotChange) -> U256| {
                    slot.map_or(Value::Absent, |slot| Value::Number(of(slot)))
                };
                differ(at(false), value(left, |slot| slot.new), value(right, |slot| slot.new))
                    .or_else(|| differ(at(true), value(left, |slot| slot.old), value(right, |slot| slot.old)))
            },
        )
    };
    let root = |account: &Option<Account>| value(account, |account| Value::Hash(account.storage_root));
    let storage_root = || differ(place(AccountField::StorageRoot), root(&left.new), root(&right.new));
    fields.or_else(slots).or_else(storage_root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: u8, nonce: u64, slots: Vec<SlotChange>) -> AccountChange {
        let account = Account { nonce, ..Account::default() };
        AccountChange { hashed_address: B256::repeat_byte(key), old: None, new: Some(account), slots }
    }

    fn slot(key: u8, old: u64, new: u64) -> SlotChange {
        SlotChange { hashed_slot: B256::repeat_byte(key), old: U256::from(old), new: U256::from(new) }
    }

    fn state(root: u8, accounts: Vec<AccountChange>) -> SideResult {
        let diff = StateDiff { accounts, codes: Vec::new() };
        SideResult::State { computed_state_root: B256::repeat_byte(root), diff, updates: TrieUpdates::default() }
    }

    #[test]
    fn the_first_difference_is_named() {
        let base = state(1, vec![change(1, 1, vec![slot(1, 0, 5), slot(2, 1, 6)]), change(2, 1, vec![])]);
        assert_eq!(first_difference(&base, &base), None);
        let (address, number) = (B256::repeat_byte(1), |number: u64| Value::Number(U256::from(number)));
        let cases = [
            (
                state(9, vec![change(1, 1, vec![slot(1, 0, 5), slot(2, 1, 7)]), change(2, 8, vec![])]),
                Place::Slot { hashed_address: address, hashed_slot: B256::repeat_byte(2), old: false },
                (number(6), number(7)),
            ),
            (
                state(9, vec![change(1, 1, vec![slot(1, 4, 5), slot(2, 1, 6)]), change(2, 1, vec![])]),
                Place::Slot { hashed_address: address, hashed_slot: B256::repeat_byte(1), old: true },
                (number(0), number(4)),
            ),
            (
                state(9, vec![change(1, 2, vec![]), change(2, 1, vec![])]),
                Place::Account { hashed_address: address, field: AccountField::Nonce },
                (number(1), number(2)),
            ),
            (
                state(9, vec![change(2, 1, vec![])]),
                Place::Account { hashed_address: address, field: AccountField::Listed },
                (Value::Present, Value::Absent),
            ),
            (
                state(9, vec![change(1, 1, vec![slot(1, 0, 5), slot(2, 1, 6)]), change(2, 1, vec![])]),
                Place::StateRoot,
                (Value::Hash(B256::repeat_byte(1)), Value::Hash(B256::repeat_byte(9))),
            ),
            (
                SideResult::Failed { error: "why".to_owned() },
                Place::Outcome,
                (Value::Hash(B256::repeat_byte(1)), Value::Failed("why".to_owned())),
            ),
        ];
        for (other, place, (bal, execution)) in cases {
            assert_eq!(first_difference(&base, &other), Some(Difference { place, bal, execution }));
        }
    }
}
