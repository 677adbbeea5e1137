//! A whole state, read from a store as the items that load it into another.
//!
//! Invariants:
//! 1. Items come in the order that a load asks for.
//! 2. Memory is bounded by two pages of leaves, and 32 bytes for each different code.

use std::collections::{BTreeSet, btree_set};

use alloy_primitives::{B256, KECCAK256_EMPTY, U256};
use alloy_trie::EMPTY_ROOT_HASH;

use super::LoadItem;
use crate::{
    account::Account,
    store::{TrieReader, next_key},
};

/// Why a state cannot be read as items.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ItemsError<E> {
    /// The reader failed.
    #[error("reading the state failed")]
    Read(#[source] E),
    /// An account refers to code that the reader does not have.
    #[error("the code {code_hash} is missing")]
    MissingCode {
        /// keccak256 of the code.
        code_hash: B256,
    },
}

/// How many leaves one ordered read asks for.
const PAGE: usize = 4096;

/// Everything that a reader serves, as items: what moves a state from one store into another.
///
/// Accounts are read twice, the first time for the hashes of their codes, which are kept (32 bytes for each different
/// code); all else is read page by page. Ends after the first error.
#[derive(Debug)]
pub struct StateItems<R> {
    reader: R,
    /// `None` until they were gathered.
    codes: Option<btree_set::IntoIter<B256>>,
    accounts: Pages<Account>,
    slots: Option<(B256, Pages<U256>)>,
    failed: bool,
}

/// What was read and not yet given of a range of leaves.
#[derive(Debug)]
struct Pages<T> {
    page: std::vec::IntoIter<(B256, T)>,
    /// Where to read on.
    next: Option<B256>,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self { page: Vec::new().into_iter(), next: Some(B256::ZERO) }
    }
}

impl<T> Pages<T> {
    fn next<E>(&mut self, read: impl FnOnce(&B256) -> Result<Vec<(B256, T)>, E>) -> Result<Option<(B256, T)>, E> {
        if self.page.as_slice().is_empty()
            && let Some(from) = self.next
        {
            let page = read(&from)?;
            self.next = page.last().filter(|_| page.len() == PAGE).and_then(|(last, _)| next_key(last));
            self.page = page.into_iter();
        }
        Ok(self.page.next())
    }
}

impl<R: TrieReader> StateItems<R> {
    /// The items of the state that `reader` serves.
    pub fn new(reader: R) -> Self {
        Self { reader, codes: None, accounts: Pages::default(), slots: None, failed: false }
    }

    fn advance(&mut self) -> Result<Option<LoadItem>, ItemsError<R::Error>> {
        if let Some(item) = self.next_code()? {
            return Ok(Some(item));
        }
        let reader = &self.reader;
        if let Some((hashed_address, slots)) = &mut self.slots {
            let slot = slots.next(|from| reader.slots_from(hashed_address, from, PAGE)).map_err(ItemsError::Read)?;
            if let Some((hashed_slot, value)) = slot {
                return Ok(Some(LoadItem::Slot { hashed_slot, value }));
            }
            self.slots = None;
        }
        let account = self.accounts.next(|from| reader.accounts_from(from, PAGE)).map_err(ItemsError::Read)?;
        Ok(account.map(|(hashed_address, account)| {
            if account.storage_root != EMPTY_ROOT_HASH {
                self.slots = Some((hashed_address, Pages::default()));
            }
            LoadItem::Account { hashed_address, info: account.info() }
        }))
    }

    fn next_code(&mut self) -> Result<Option<LoadItem>, ItemsError<R::Error>> {
        let codes = match &mut self.codes {
            Some(codes) => codes,
            None => {
                let hashes = code_hashes(&self.reader).map_err(ItemsError::Read)?;
                self.codes.insert(hashes.into_iter())
            }
        };
        let Some(code_hash) = codes.next() else { return Ok(None) };
        let code = self.reader.code(&code_hash).map_err(ItemsError::Read)?;
        let code = code.ok_or(ItemsError::MissingCode { code_hash })?;
        Ok(Some(LoadItem::Code { code_hash, code }))
    }
}

impl<R: TrieReader> Iterator for StateItems<R> {
    type Item = Result<LoadItem, ItemsError<R::Error>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.advance().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

fn code_hashes<R: TrieReader>(reader: &R) -> Result<BTreeSet<B256>, R::Error> {
    let mut hashes = BTreeSet::new();
    let mut accounts = Pages::default();
    while let Some((_, account)) = accounts.next(|from| reader.accounts_from(from, PAGE))? {
        if account.code_hash != KECCAK256_EMPTY {
            hashes.insert(account.code_hash);
        }
    }
    Ok(hashes)
}
