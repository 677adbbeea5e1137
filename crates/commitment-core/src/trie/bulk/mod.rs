//! A whole state from its sorted leaves, streamed into an empty store.
//!
//! Items come flat: an account, then its slots, then the next account; codes anywhere between. So neither the source
//! nor the load ever holds more than one piece, whatever the number of accounts or of slots in one account.
//!
//! Invariants:
//! 1. Accounts come strictly sorted by hashed address, the slots of each by hashed slot, codes by hash: anything else
//!    is a typed error, and the store stays empty.
//! 2. Memory is bounded by the size of a piece and the depth of two tries.
//! 3. The rows are those that any sequence of folds to the same state leaves behind.
//!
//! Nodes are hashed as a fold hashes them (`levels`), some thousands at a time: those whose subtrie is complete
//! wait in an arena until there are enough of them, or the piece ends. An account with storage waits for its root.

use std::collections::{BTreeMap, BTreeSet, btree_set};

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256, keccak256};
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles};

use super::{
    arena::{Arena, Node},
    build::TrieBuilder,
    encode::LeafValue,
    forest::{Forest, Frame, Lists},
    levels,
    pool::{NodeRef, Writer},
};
use crate::{
    account::{Account, AccountInfo},
    block::{BlockNumHash, StateAnchor},
    keys::{hash_address, hash_slot},
    node::{NodeKey, TrieId},
    store::{LoadSource, Rows, TrieReader, next_key},
};

/// The size of a piece, roughly, unless told otherwise.
pub const DEFAULT_PIECE_BYTES: usize = 8 << 20;

/// One item of a state. See the module's description for their order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadItem {
    /// Code of any number of accounts, given once.
    Code {
        /// keccak256 of the code; checked.
        code_hash: B256,
        /// The code.
        code: Bytes,
    },
    /// An account; its slots follow.
    Account {
        /// keccak256 of the address.
        hashed_address: B256,
        /// The account's fields. Its storage root is computed.
        info: AccountInfo,
    },
    /// A slot of the account that came last.
    Slot {
        /// keccak256 of the slot.
        hashed_slot: B256,
        /// The value, not zero.
        value: U256,
    },
}

/// Why a state cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BulkError<E> {
    /// The source of the items failed.
    #[error("reading the state to load failed")]
    Source(#[source] E),
    /// A key is not above the one before it.
    #[error("the {table} {got} does not come after {previous}")]
    Unsorted {
        /// Which items.
        table: &'static str,
        /// The key at fault.
        got: B256,
        /// The key before it.
        previous: B256,
    },
    /// A slot comes before any account.
    #[error("the slot {hashed_slot} belongs to no account")]
    SlotWithoutAccount {
        /// keccak256 of the slot.
        hashed_slot: B256,
    },
    /// A slot is zero: such a slot is not part of a state.
    #[error("the slot {hashed_slot} of account {hashed_address} is zero")]
    ZeroSlot {
        /// keccak256 of the address.
        hashed_address: B256,
        /// keccak256 of the slot.
        hashed_slot: B256,
    },
    /// Code has another hash than the one given with it.
    #[error("code has the hash {got}, not {expected}")]
    CodeHashMismatch {
        /// The code's hash.
        got: B256,
        /// The hash given with it.
        expected: B256,
    },
    /// The state has another root than the one it was said to have.
    #[error("the loaded state has the root {got}, not {expected}")]
    StateRootMismatch {
        /// The state's root.
        got: B256,
        /// The root it was said to have.
        expected: B256,
    },
    /// The anchor was asked for before all rows were taken.
    #[error("the load has not come to its end")]
    Unfinished,
}

/// Turns the items of a state into rows. Goes to [`crate::TrieStore::load`].
#[derive(Debug)]
pub struct StateLoad<I> {
    items: I,
    block: BlockNumHash,
    expected_state_root: Option<B256>,
    piece_bytes: usize,
    state: Tries,
    computed_state_root: Option<B256>,
}

impl<I, E> StateLoad<I>
where
    I: Iterator<Item = Result<LoadItem, E>>,
{
    /// The state of `block` from its items.
    pub fn new(items: I, block: BlockNumHash) -> Self {
        Self {
            items,
            block,
            expected_state_root: None,
            piece_bytes: DEFAULT_PIECE_BYTES,
            state: Tries::default(),
            computed_state_root: None,
        }
    }

    /// Holds the computed root to this one.
    pub const fn expecting(mut self, expected_state_root: B256) -> Self {
        self.expected_state_root = Some(expected_state_root);
        self
    }

    /// Ends a piece as soon as it holds about this many bytes.
    pub const fn with_piece_bytes(mut self, piece_bytes: usize) -> Self {
        self.piece_bytes = piece_bytes;
        self
    }
}

impl<I, E> LoadSource for StateLoad<I>
where
    I: Iterator<Item = Result<LoadItem, E>>,
    E: std::error::Error + Send + Sync + 'static,
{
    type Error = BulkError<E>;

    fn next_rows(&mut self) -> Result<Option<Rows>, Self::Error> {
        if self.computed_state_root.is_some() {
            return Ok(None);
        }
        while self.state.piece_bytes < self.piece_bytes.max(1) {
            match self.items.next() {
                Some(item) => self.state.add(item.map_err(BulkError::Source)?)?,
                None => {
                    self.computed_state_root = Some(self.state.finish());
                    break;
                }
            }
        }
        let rows = self.state.take_piece();
        Ok((!rows.is_empty()).then_some(rows))
    }

    fn anchor(&mut self) -> Result<StateAnchor, Self::Error> {
        let got = self.computed_state_root.ok_or(BulkError::Unfinished)?;
        match self.expected_state_root {
            Some(expected) if expected != got => Err(BulkError::StateRootMismatch { got, expected }),
            _ => Ok(StateAnchor { block: self.block, state_root: got }),
        }
    }
}

/// The root of the state of these items, which is loaded nowhere. A genesis block's hash depends on it.
///
/// # Errors
/// As the load of these items.
pub fn state_root<E>(items: impl IntoIterator<Item = Result<LoadItem, E>>) -> Result<B256, BulkError<E>> {
    let mut state = Tries::default();
    for item in items {
        state.add(item.map_err(BulkError::Source)?)?;
        if state.piece_bytes >= DEFAULT_PIECE_BYTES {
            state.take_piece();
        }
    }
    Ok(state.finish())
}

/// An account as a genesis file lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GenesisAccount {
    /// The nonce.
    pub nonce: u64,
    /// The balance in wei.
    pub balance: U256,
    /// The code; empty for an account without.
    pub code: Bytes,
    /// Values by slot. Zero values are no slots.
    pub storage: BTreeMap<U256, U256>,
}

/// The items of a genesis, sorted. Every account that is listed becomes one, also an empty one.
///
/// An address that is listed twice makes the load fail with [`BulkError::Unsorted`].
pub fn genesis_items(accounts: impl IntoIterator<Item = (Address, GenesisAccount)>) -> Vec<LoadItem> {
    let mut codes = BTreeMap::new();
    let mut hashed: Vec<_> = accounts
        .into_iter()
        .map(|(address, account)| {
            let code_hash = if account.code.is_empty() { KECCAK256_EMPTY } else { keccak256(&account.code) };
            if code_hash != KECCAK256_EMPTY {
                codes.entry(code_hash).or_insert(account.code);
            }
            let info = AccountInfo { nonce: account.nonce, balance: account.balance, code_hash };
            let slots = account.storage.into_iter().filter(|(_, value)| !value.is_zero());
            let mut slots: Vec<_> = slots.map(|(slot, value)| (hash_slot(&slot), value)).collect();
            slots.sort_unstable_by_key(|(hashed_slot, _)| *hashed_slot);
            (hash_address(&address), info, slots)
        })
        .collect();
    hashed.sort_by_key(|(hashed_address, ..)| *hashed_address);
    let mut items: Vec<_> = codes.into_iter().map(|(code_hash, code)| LoadItem::Code { code_hash, code }).collect();
    for (hashed_address, info, slots) in hashed {
        items.push(LoadItem::Account { hashed_address, info });
        items.extend(slots.into_iter().map(|(hashed_slot, value)| LoadItem::Slot { hashed_slot, value }));
    }
    items
}

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

/// How many leaves wait to be hashed together.
const BATCH: usize = 4096;

/// Tries that grow from their sorted leaves, one after the other, and are hashed a batch at a time.
#[derive(Debug)]
pub(super) struct Growing<V> {
    builder: TrieBuilder<V>,
    arena: Arena<V>,
    /// Where branches stay until their rows are given out.
    writer: Writer,
    lists: Lists,
}

impl<V: LeafValue> Growing<V> {
    pub(super) fn new(forest: &Forest) -> Self {
        let (builder, arena) = (TrieBuilder::default(), Arena::default());
        Self { builder, arena, writer: forest.writer(), lists: Lists::new(forest) }
    }

    /// The key of the newest leaf of the trie that grows.
    pub(super) fn newest(&self) -> Option<&B256> {
        self.builder.newest()
    }

    /// Adds the next leaf. Its key must be above the newest one's.
    pub(super) fn push(&mut self, key: B256, value: V) {
        self.builder.push(&mut self.arena, key, value, NodeRef::UNLOADED);
    }

    /// Whether there is enough to be hashed.
    pub(super) const fn is_due(&self) -> bool {
        self.arena.leaves.len() >= BATCH
    }

    /// Ends the trie and gives its topmost node. Another one may follow.
    fn end(&mut self) -> Node {
        let top = self.builder.finish(&mut self.arena);
        self.arena.settle(top, 0);
        top
    }

    /// Ends the only trie and gives its root.
    pub(super) fn finish(&mut self) -> B256 {
        let top = self.end();
        self.hash(|_, _| ());
        self.arena.root(top)
    }

    /// Hashes all nodes whose subtrie is complete, and gives the rows of those below the branches that still grow.
    /// They stay in the arena until [`Self::forget`].
    pub(super) fn hash(&mut self, mut emit: impl FnMut(Nibbles, Bytes)) {
        for (slot_depth, child) in self.builder.open_children() {
            self.arena.settle(*child, slot_depth);
        }
        levels::hash(&mut self.arena, &mut self.writer, Frame::FRESH, &mut self.lists);
        for (_, child) in self.builder.open_children() {
            self.arena.each_row(self.writer.pool(), *child, &mut emit);
        }
    }

    /// Gives the rows of a trie that was hashed and has ended.
    fn each_row(&self, top: Node, emit: &mut impl FnMut(Nibbles, Bytes)) {
        self.arena.each_row(self.writer.pool(), top, emit);
    }

    /// Empties the arena after [`Self::hash`]: of complete nodes below a branch that still grows only the references
    /// stay.
    pub(super) fn forget(&mut self) {
        self.arena.keep(self.builder.open_children().map(|(_, child)| child));
        self.writer.discard(&std::mem::take(&mut self.lists.made));
    }
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
struct Tries {
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
    fn add<E>(&mut self, item: LoadItem) -> Result<(), BulkError<E>> {
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
            let account = info.with_storage_root(slots.arena.root(top));
            accounts.push(hashed_address, account);
            piece.accounts.push((hashed_address, Some(account)));
        }
        slots.forget();
        accounts.hash(|slot, row| name_row(TrieId::Accounts, slot, row));
        accounts.forget();
    }

    /// Closes everything and gives the root.
    fn finish(&mut self) -> B256 {
        self.end_account();
        self.hash();
        let top = self.accounts.end();
        self.accounts.hash(|_, _| ());
        let Self { accounts, piece, .. } = self;
        accounts.each_row(top, &mut |slot, row| {
            piece.nodes.push((NodeKey::new(TrieId::Accounts, slot), Some(row)));
        });
        let state_root = accounts.arena.root(top);
        accounts.forget();
        debug_assert!(state_root != EMPTY_ROOT_HASH || self.piece.accounts.is_empty());
        state_root
    }

    fn take_piece(&mut self) -> Rows {
        self.hash();
        let mut piece = std::mem::take(&mut self.piece);
        self.piece_bytes = 0;
        // Subtries are complete from the bottom up; rows are stored from the top down.
        piece.nodes.sort_unstable_by_key(|(key, _)| *key);
        piece
    }
}

fn check_order<E>(table: &'static str, got: B256, previous: Option<B256>) -> Result<(), BulkError<E>> {
    match previous {
        Some(previous) if previous >= got => Err(BulkError::Unsorted { table, got, previous }),
        _ => Ok(()),
    }
}
