//! Views of a parent's state for the shadow: in the process, and recorded for a machine that has not the store.
//!
//! Invariants:
//! 1. An [`Isolated`] view gives no branch in memory: a fold over it begins with a forest of its own, and reads each
//!    branch as a row.
//! 2. A [`RecordedState`] answers what it was asked when it was recorded, and is an error at anything else.

use std::{collections::BTreeMap, sync::Arc};

use alloy_primitives::{B256, Bytes, U256};
use foldgate_core::{
    Account, AccountInfo, BlockHash, BlockNumber, NodeKey, Overlay, StateAnchor, StateReader, TrieReader,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// A parent's state without the branches in memory. It can note what is asked of it.
#[derive(Debug, Clone)]
pub(super) struct Isolated<R> {
    inner: Overlay<R>,
    noted: Option<Arc<Mutex<Noted>>>,
}

/// Leaves in order of their keys.
type Page<V> = Vec<(B256, V)>;

/// What was asked, and the answers.
#[derive(Debug, Default)]
pub(super) struct Noted {
    accounts: BTreeMap<B256, Option<Account>>,
    slots: BTreeMap<(B256, B256), U256>,
    rows: BTreeMap<NodeKey, Option<Bytes>>,
    account_pages: BTreeMap<(B256, usize), Page<Account>>,
    slot_pages: BTreeMap<(B256, B256, usize), Page<U256>>,
}

impl<R: TrieReader> Isolated<R> {
    pub(super) const fn new(inner: Overlay<R>) -> Self {
        Self { inner, noted: None }
    }

    /// The same, noting what is asked from here on.
    pub(super) fn noting(self) -> Self {
        Self { noted: Some(Arc::default()), ..self }
    }

    /// What was noted.
    pub(super) fn recorded(&self) -> RecordedState {
        let noted = self.noted.as_ref().map(|noted| std::mem::take(&mut *noted.lock())).unwrap_or_default();
        RecordedState {
            anchor: self.inner.anchor(),
            accounts: noted.accounts.into_iter().collect(),
            slots: noted.slots.into_iter().collect(),
            rows: noted.rows.into_iter().collect(),
            account_pages: noted.account_pages.into_iter().collect(),
            slot_pages: noted.slot_pages.into_iter().collect(),
        }
    }

    fn note(&self, note: impl FnOnce(&mut Noted)) {
        if let Some(noted) = &self.noted {
            note(&mut noted.lock());
        }
    }
}

impl<R: TrieReader> StateReader for Isolated<R> {
    type Error = R::Error;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, R::Error> {
        Ok(self.account(hashed_address)?.map(Account::into))
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, R::Error> {
        let value = self.inner.storage(hashed_address, hashed_slot)?;
        self.note(|noted| noted.slots.extend([((*hashed_address, *hashed_slot), value)]));
        Ok(value)
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, R::Error> {
        self.inner.code(code_hash)
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, R::Error> {
        self.inner.block_hash(number)
    }
}

impl<R: TrieReader> TrieReader for Isolated<R> {
    fn anchor(&self) -> StateAnchor {
        self.inner.anchor()
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, R::Error> {
        let account = self.inner.account(hashed_address)?;
        self.note(|noted| noted.accounts.extend([(*hashed_address, account)]));
        Ok(account)
    }

    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, R::Error> {
        let row = self.inner.node(key)?;
        self.note(|noted| noted.rows.extend([(*key, row.clone())]));
        Ok(row)
    }

    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, R::Error> {
        let page = self.inner.accounts_from(start, limit)?;
        self.note(|noted| noted.account_pages.extend([((*start, limit), page.clone())]));
        Ok(page)
    }

    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, R::Error> {
        let page = self.inner.slots_from(hashed_address, start, limit)?;
        self.note(|noted| noted.slot_pages.extend([((*hashed_address, *start, limit), page.clone())]));
        Ok(page)
    }

    fn accounts(&self, hashed_addresses: &[B256]) -> Result<Vec<Option<Account>>, R::Error> {
        let accounts = self.inner.accounts(hashed_addresses)?;
        self.note(|noted| noted.accounts.extend(hashed_addresses.iter().copied().zip(accounts.iter().copied())));
        Ok(accounts)
    }

    fn slots(&self, keys: &[(B256, B256)]) -> Result<Vec<U256>, R::Error> {
        let values = self.inner.slots(keys)?;
        self.note(|noted| noted.slots.extend(keys.iter().copied().zip(values.iter().copied())));
        Ok(values)
    }
}

/// As much of a parent's state as two computations asked for. Each list is sorted by its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedState {
    anchor: StateAnchor,
    accounts: Vec<(B256, Option<Account>)>,
    slots: Vec<((B256, B256), U256)>,
    rows: Vec<(NodeKey, Option<Bytes>)>,
    account_pages: Vec<((B256, usize), Page<Account>)>,
    slot_pages: Vec<((B256, B256, usize), Page<U256>)>,
}

/// Something was asked of a recorded state that was not asked when it was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the report does not hold {what} {key}")]
pub struct NotRecorded {
    /// What.
    what: &'static str,
    /// Its key, or the hashed address for what belongs to an account.
    key: B256,
}

fn find<K: Ord, V: Clone>(list: &[(K, V)], key: &K, what: &'static str, name: B256) -> Result<V, NotRecorded> {
    match list.binary_search_by(|(candidate, _)| candidate.cmp(key)) {
        Ok(at) => Ok(list[at].1.clone()),
        Err(_) => Err(NotRecorded { what, key: name }),
    }
}

impl RecordedState {
    /// Nothing but the block's name.
    pub(super) const fn empty(anchor: StateAnchor) -> Self {
        Self {
            anchor,
            accounts: Vec::new(),
            slots: Vec::new(),
            rows: Vec::new(),
            account_pages: Vec::new(),
            slot_pages: Vec::new(),
        }
    }

    /// The block whose state it is, and its root.
    pub const fn anchor(&self) -> StateAnchor {
        self.anchor
    }

    /// Puts the lists, which may come from anywhere, into order.
    pub(super) fn sort(&mut self) {
        self.accounts.sort_by_key(|(key, _)| *key);
        self.slots.sort_by_key(|(key, _)| *key);
        self.rows.sort_by_key(|(key, _)| *key);
        self.account_pages.sort_by_key(|(key, _)| *key);
        self.slot_pages.sort_by_key(|(key, _)| *key);
    }
}

/// Shared, so that a fold may clone it.
#[derive(Debug, Clone)]
pub(super) struct Recording(pub(super) Arc<RecordedState>);

impl StateReader for Recording {
    type Error = NotRecorded;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, NotRecorded> {
        Ok(self.account(hashed_address)?.map(Account::into))
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, NotRecorded> {
        find(&self.0.slots, &(*hashed_address, *hashed_slot), "a slot of the account", *hashed_address)
    }

    /// Neither resolving nor folding reads code.
    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, NotRecorded> {
        Err(NotRecorded { what: "the code", key: *code_hash })
    }

    /// Neither resolving nor folding reads hashes of blocks.
    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, NotRecorded> {
        Err(NotRecorded { what: "the hash of the block", key: B256::from(U256::from(number)) })
    }
}

impl TrieReader for Recording {
    fn anchor(&self) -> StateAnchor {
        self.0.anchor
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, NotRecorded> {
        find(&self.0.accounts, hashed_address, "the account", *hashed_address)
    }

    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, NotRecorded> {
        let name = foldgate_core::node::first_key_below(&key.path);
        find(&self.0.rows, key, "the row on the path to", name)
    }

    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, NotRecorded> {
        find(&self.0.account_pages, &(*start, limit), "the accounts from", *start)
    }

    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, NotRecorded> {
        find(&self.0.slot_pages, &(*hashed_address, *start, limit), "a range of slots of the account", *hashed_address)
    }
}
