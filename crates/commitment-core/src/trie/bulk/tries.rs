//! The tries of a state in the making, and the rows that come of them.
//!
//! An account waits until its storage trie is hashed, some thousands of accounts at a time; then its leaf joins the
//! account trie.
//!
//! Invariant: what is held is one piece, one batch, and the open branches of two tries.

use alloy_primitives::{B256, Bytes, U256, keccak256};
use alloy_trie::EMPTY_ROOT_HASH;

use super::{
    BulkError, LoadItem,
    growing::{BATCH, Growing},
};
use crate::{
    account::{Account, AccountInfo},
    node::{NodeKey, TrieId},
    store::Rows,
    trie::{arena::Node, forest::Forest},
};

/// Rows that are ready to be written.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) rows: Rows,
    /// How many bytes they have, roughly.
    pub(super) bytes: usize,
}

/// An account that came before the current one.
#[derive(Debug)]
struct Waiting {
    hashed_address: B256,
    info: AccountInfo,
    /// Its storage trie.
    top: Node,
}

/// The account whose slots are coming, the tries around it, and the piece in the making.
#[derive(Debug)]
pub(super) struct Tries {
    accounts: Growing<Account>,
    current: Option<(B256, AccountInfo)>,
    slots: Growing<U256>,
    /// Accounts whose storage roots are to be hashed.
    waiting: Vec<Waiting>,
    last_code: Option<B256>,
    piece: Rows,
    piece_bytes: usize,
}

impl Default for Tries {
    fn default() -> Self {
        let forest = Forest::new(usize::MAX);
        Self {
            accounts: Growing::new(&forest),
            current: None,
            slots: Growing::new(&forest),
            waiting: Vec::new(),
            last_code: None,
            piece: Rows::default(),
            piece_bytes: 0,
        }
    }
}

impl Tries {
    pub(super) fn add<E>(&mut self, item: LoadItem) -> Result<(), BulkError<E>> {
        match item {
            LoadItem::Code { code_hash, code } => self.code(code_hash, code),
            LoadItem::Account { hashed_address, info } => {
                check_order("account", hashed_address, self.current.map(|(previous, _)| previous))?;
                self.end_account();
                self.current = Some((hashed_address, info));
                Ok(())
            }
            LoadItem::Slot { hashed_slot, value } => self.slot(hashed_slot, value),
        }
    }

    fn code<E>(&mut self, expected: B256, code: Bytes) -> Result<(), BulkError<E>> {
        let got = keccak256(&code);
        if got != expected {
            return Err(BulkError::CodeHashMismatch { got, expected });
        }
        check_order("code", expected, self.last_code.replace(expected))?;
        self.piece_bytes += 32 + code.len();
        self.piece.codes.push((expected, code));
        Ok(())
    }

    fn slot<E>(&mut self, hashed_slot: B256, value: U256) -> Result<(), BulkError<E>> {
        let Some((hashed_address, _)) = self.current else {
            return Err(BulkError::SlotWithoutAccount { hashed_slot });
        };
        if value.is_zero() {
            return Err(BulkError::ZeroSlot { hashed_address, hashed_slot });
        }
        check_order("slot", hashed_slot, self.slots.newest().copied())?;
        self.slots.push(hashed_slot, value);
        self.piece.slots.push(((hashed_address, hashed_slot), value));
        self.piece_bytes += 96;
        if self.slots.is_due() {
            self.hash();
        }
        Ok(())
    }

    /// Now the current account's slots are all there.
    fn end_account(&mut self) {
        let Some((hashed_address, info)) = self.current.take() else { return };
        let top = self.slots.end();
        self.waiting.push(Waiting { hashed_address, info, top });
        self.piece_bytes += 32 + size_of::<Account>();
        if self.waiting.len() >= BATCH || self.slots.is_due() {
            self.hash();
        }
    }

    /// Hashes what is complete: storage tries, then the accounts that waited for their roots.
    fn hash(&mut self) {
        let Self { accounts, current, slots, waiting, piece, piece_bytes, .. } = self;
        let mut name_row = |trie, slot, row: Bytes| {
            *piece_bytes += size_of::<NodeKey>() + row.len();
            piece.nodes.push((NodeKey::new(trie, slot), Some(row)));
        };
        let current = current.map_or(TrieId::Accounts, |(hashed_address, _)| TrieId::Storage(hashed_address));
        slots.hash(|slot, row| name_row(current, slot, row));
        for Waiting { hashed_address, info, top } in waiting.drain(..) {
            let trie = TrieId::Storage(hashed_address);
            slots.each_row(top, &mut |slot, row| name_row(trie, slot, row));
            let account = info.with_storage_root(slots.root(top));
            accounts.push(hashed_address, account);
            piece.accounts.push((hashed_address, Some(account)));
        }
        slots.forget();
        accounts.hash(|slot, row| name_row(TrieId::Accounts, slot, row));
        accounts.forget();
    }

    /// Closes everything and gives the root.
    pub(super) fn finish(&mut self) -> B256 {
        self.end_account();
        self.hash();
        let top = self.accounts.end();
        self.accounts.hash(|_, _| ());
        let Self { accounts, piece, piece_bytes, .. } = self;
        accounts.each_row(top, &mut |slot, row: Bytes| {
            *piece_bytes += size_of::<NodeKey>() + row.len();
            piece.nodes.push((NodeKey::new(TrieId::Accounts, slot), Some(row)));
        });
        let state_root = accounts.root(top);
        accounts.forget();
        debug_assert!(state_root != EMPTY_ROOT_HASH || self.piece.accounts.is_empty());
        state_root
    }

    /// How large the piece in the making is, roughly.
    pub(super) const fn piece_bytes(&self) -> usize {
        self.piece_bytes
    }

    pub(super) fn take_piece(&mut self) -> Piece {
        self.hash();
        let mut rows = std::mem::take(&mut self.piece);
        // Subtries are complete from the bottom up; rows are stored from the top down. This sort is fast where long
        // runs are sorted already, which they are.
        rows.nodes.sort_by_key(|(key, _)| *key);
        Piece { rows, bytes: std::mem::take(&mut self.piece_bytes) }
    }
}

fn check_order<E>(table: &'static str, got: B256, previous: Option<B256>) -> Result<(), BulkError<E>> {
    match previous {
        Some(previous) if previous >= got => Err(BulkError::Unsorted { table, got, previous }),
        _ => Ok(()),
    }
}
