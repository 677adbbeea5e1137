//! A store in memory: the reference for what a backend does, and the home of tests and small chains.
//!
//! Rows live in sorted tables that keep a key's older values while a snapshot needs them ([`versioned`]), so a commit
//! costs its own changes, whatever the size of the state.
//!
//! # How a write stays invisible until it is whole
//!
//! A writer holds `writer`, pins the current version as a reader would, and writes its rows as of the *next* version in
//! short pieces, releasing the tables between them. No reader sees them: readers see their own version or older. Then
//! the next version is published under one lock, together with the tip, the anchors, the reverse diffs and the lists.
//! Only then is the pin given up, and values that no snapshot sees any more are dropped, in pieces again. So readers
//! never wait for a whole write. Nothing can fail between the checks and the publication.
//!
//! Invariants:
//! 1. Locks are taken in the order `writer`, `tables`, `live`. A snapshot holds none of them between its reads.
//! 2. `live` counts the snapshots of each version. A version is added only while `tables` is held and only if it is the
//!    published one, so a writer that holds a pin on it drops nothing that a later snapshot may read.

mod versioned;

use std::{collections::BTreeMap, sync::Arc};

use alloy_primitives::{B256, Bytes, U256};
use parking_lot::{Mutex, RwLock};

use self::versioned::{Version, Versioned};
use crate::{
    account::{Account, AccountInfo},
    block::{BlockHash, BlockNumHash, BlockNumber, StateAnchor},
    diff::ReverseDiff,
    node::NodeKey,
    store::{
        BackendError, BalStore, CommitBatch, LoadError, LoadOrder, LoadSource, Refusal, Retention, Rows, StateReader,
        TrieReader, TrieStore, UnwindBatch,
    },
};

/// How many rows are written, or old values dropped, before readers get their turn.
const PIECE: usize = 512;

/// Why a [`MemoryStore`] did not do what it was asked. Memory does not fail: it only refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The store refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl BackendError for MemoryError {
    fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
        }
    }
}

/// A store that lives as long as the process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

/// A view of a [`MemoryStore`] after one block. Clones share one pin.
#[derive(Debug, Clone)]
pub struct MemorySnapshot {
    pin: Arc<Pin>,
}

#[derive(Debug, Default)]
struct Shared {
    writer: Mutex<()>,
    tables: RwLock<Tables>,
    live: Mutex<BTreeMap<Version, usize>>,
}

#[derive(Debug, Default)]
struct Tables {
    version: Version,
    genesis: Option<StateAnchor>,
    tip: Option<StateAnchor>,
    accounts: Versioned<B256, Account>,
    slots: Versioned<(B256, B256), U256>,
    nodes: Versioned<NodeKey, Bytes>,
    codes: Versioned<B256, Bytes>,
    block_hashes: Versioned<BlockNumber, BlockHash>,
    anchors: BTreeMap<BlockNumber, StateAnchor>,
    reverse_diffs: BTreeMap<BlockNumber, Arc<ReverseDiff>>,
    bals: BTreeMap<BlockNumHash, Bytes>,
}

/// Keeps one version readable.
#[derive(Debug)]
struct Pin {
    shared: Arc<Shared>,
    version: Version,
    anchor: StateAnchor,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut live = self.shared.live.lock();
        if let Some(count) = live.get_mut(&self.version) {
            *count -= 1;
            if *count == 0 {
                live.remove(&self.version);
            }
        }
    }
}

/// What a write does to one block hash; `None` drops it.
type HashChange = (BlockNumber, Option<BlockHash>);

impl Shared {
    fn pin(self: &Arc<Self>) -> Result<Pin, Refusal> {
        let tables = self.tables.read();
        let anchor = tables.tip.ok_or(Refusal::Empty)?;
        *self.live.lock().entry(tables.version).or_default() += 1;
        Ok(Pin { shared: Arc::clone(self), version: tables.version, anchor })
    }

    /// Carries out a checked write: `rows` and `hashes` in pieces, `publish` at once. The caller holds `writer`.
    fn write(
        self: &Arc<Self>,
        rows: &Rows,
        hashes: &[HashChange],
        publish: impl FnOnce(&mut Tables),
    ) -> Result<(), Refusal> {
        let pin = self.pin()?;
        let next = pin.version + 1;
        self.each_piece(rows, hashes, |tables, piece| tables.put(piece, next));
        {
            let mut tables = self.tables.write();
            publish(&mut tables);
            tables.version = next;
        }
        drop(pin);
        let live: Vec<Version> = self.live.lock().keys().copied().collect();
        self.each_piece(rows, hashes, |tables, piece| tables.settle(piece, next, &live));
        let oldest = live.first().copied().unwrap_or(next);
        while self.tables.write().collect(oldest, &live) {}
        Ok(())
    }

    /// Calls `apply` with short pieces of the changes, each under a lock of its own.
    fn each_piece(&self, rows: &Rows, hashes: &[HashChange], mut apply: impl FnMut(&mut Tables, Piece<'_>)) {
        let accounts = rows.accounts.chunks(PIECE).map(Piece::Accounts);
        let slots = rows.slots.chunks(PIECE).map(Piece::Slots);
        let nodes = rows.nodes.chunks(PIECE).map(Piece::Nodes);
        let codes = rows.codes.chunks(PIECE).map(Piece::Codes);
        let hashes = hashes.chunks(PIECE).map(Piece::BlockHashes);
        for piece in accounts.chain(slots).chain(nodes).chain(codes).chain(hashes) {
            apply(&mut self.tables.write(), piece);
        }
    }
}

/// A few rows of one table.
#[derive(Clone, Copy)]
enum Piece<'a> {
    Accounts(&'a [(B256, Option<Account>)]),
    Slots(&'a [((B256, B256), U256)]),
    Nodes(&'a [(NodeKey, Option<Bytes>)]),
    Codes(&'a [(B256, Bytes)]),
    BlockHashes(&'a [(BlockNumber, Option<BlockHash>)]),
}

impl Tables {
    fn put(&mut self, piece: Piece<'_>, version: Version) {
        match piece {
            Piece::Accounts(rows) => rows.iter().for_each(|(key, value)| self.accounts.put(*key, *value, version)),
            Piece::Slots(rows) => rows.iter().for_each(|(key, value)| {
                self.slots.put(*key, (!value.is_zero()).then_some(*value), version);
            }),
            Piece::Nodes(rows) => rows.iter().for_each(|(key, value)| self.nodes.put(*key, value.clone(), version)),
            Piece::Codes(rows) => rows.iter().for_each(|(key, value)| {
                self.codes.put(*key, Some(value.clone()), version);
            }),
            Piece::BlockHashes(rows) => {
                rows.iter().for_each(|(key, value)| self.block_hashes.put(*key, *value, version));
            }
        }
    }

    fn settle(&mut self, piece: Piece<'_>, version: Version, live: &[Version]) {
        match piece {
            Piece::Accounts(rows) => rows.iter().for_each(|(key, _)| self.accounts.settle(*key, version, live)),
            Piece::Slots(rows) => rows.iter().for_each(|(key, _)| self.slots.settle(*key, version, live)),
            Piece::Nodes(rows) => rows.iter().for_each(|(key, _)| self.nodes.settle(*key, version, live)),
            Piece::Codes(rows) => rows.iter().for_each(|(key, _)| self.codes.settle(*key, version, live)),
            Piece::BlockHashes(rows) => rows.iter().for_each(|(key, _)| self.block_hashes.settle(*key, version, live)),
        }
    }

    /// Drops a piece of what only versions before `oldest` saw. Gives whether there may be more.
    fn collect(&mut self, oldest: Version, live: &[Version]) -> bool {
        self.accounts.collect(oldest, live, PIECE)
            || self.slots.collect(oldest, live, PIECE)
            || self.nodes.collect(oldest, live, PIECE)
            || self.codes.collect(oldest, live, PIECE)
            || self.block_hashes.collect(oldest, live, PIECE)
    }

    /// Writes a piece of a load; deletions delete nothing here.
    fn load(&mut self, rows: &Rows) {
        self.put(Piece::Accounts(&rows.accounts), 0);
        self.put(Piece::Slots(&rows.slots), 0);
        self.put(Piece::Nodes(&rows.nodes), 0);
        self.put(Piece::Codes(&rows.codes), 0);
    }
}

impl TrieStore for MemoryStore {
    type Error = MemoryError;
    type Snapshot = MemorySnapshot;

    fn genesis(&self) -> Result<Option<StateAnchor>, MemoryError> {
        Ok(self.shared.tables.read().genesis)
    }

    fn tip(&self) -> Result<Option<StateAnchor>, MemoryError> {
        Ok(self.shared.tables.read().tip)
    }

    fn snapshot(&self) -> Result<MemorySnapshot, MemoryError> {
        Ok(MemorySnapshot { pin: Arc::new(self.shared.pin()?) })
    }

    fn load<L: LoadSource>(&self, mut source: L) -> Result<StateAnchor, LoadError<MemoryError, L::Error>> {
        let _writer = self.shared.writer.lock();
        if let Some(tip) = self.shared.tables.read().tip {
            return Err(LoadError::Store(Refusal::NotEmpty { tip }.into()));
        }
        let mut tables = Tables::default();
        let mut order = LoadOrder::default();
        while let Some(rows) = source.next_rows().map_err(LoadError::Source)? {
            order.check(&rows).map_err(|refusal| LoadError::Store(refusal.into()))?;
            tables.load(&rows);
        }
        let anchor = source.anchor().map_err(LoadError::Source)?;
        tables.genesis = Some(anchor);
        tables.tip = Some(anchor);
        tables.anchors.insert(anchor.block.number, anchor);
        tables.block_hashes.put(anchor.block.number, Some(anchor.block.hash), 0);
        *self.shared.tables.write() = tables;
        Ok(anchor)
    }

    fn commit(&self, batch: &CommitBatch) -> Result<(), MemoryError> {
        let _writer = self.shared.writer.lock();
        let tip = batch.check(self.tip()?)?;
        let anchors = batch.blocks.iter().map(|block| (block.anchor.block.number, block.anchor));
        let reverse = batch.blocks.iter().map(|block| (block.anchor.block.number, Arc::new(block.reverse.clone())));
        let (anchors, reverse): (Vec<_>, Vec<_>) = (anchors.collect(), reverse.collect());
        let hashes = anchors.iter().map(|(number, anchor)| (*number, Some(anchor.block.hash))).collect::<Vec<_>>();
        self.shared.write(&batch.rows, &hashes, |tables| {
            tables.tip = Some(tip);
            tables.anchors.extend(anchors);
            tables.reverse_diffs.extend(reverse);
            let lists = batch.blocks.iter().filter_map(|block| Some((block.anchor.block, block.bal.clone()?)));
            tables.bals.extend(lists);
        })?;
        Ok(())
    }

    fn unwind(&self, batch: &UnwindBatch) -> Result<(), MemoryError> {
        let _writer = self.shared.writer.lock();
        let tip = self.tip()?;
        batch.check(tip, self.committed(batch.to.block.number)?)?;
        let above = batch.to.block.number + 1;
        let dropped =
            self.shared.tables.read().anchors.range(above..).map(|(number, _)| (*number, None)).collect::<Vec<_>>();
        self.shared.write(&batch.rows, &dropped, |tables| {
            tables.tip = Some(batch.to);
            tables.anchors.split_off(&above);
            tables.reverse_diffs.split_off(&above);
            tables.bals.split_off(&BlockNumHash::new(above, B256::ZERO));
        })?;
        Ok(())
    }

    fn committed(&self, number: BlockNumber) -> Result<Option<StateAnchor>, MemoryError> {
        Ok(self.shared.tables.read().anchors.get(&number).copied())
    }

    fn reverse_diff(&self, number: BlockNumber) -> Result<Option<ReverseDiff>, MemoryError> {
        let diff = self.shared.tables.read().reverse_diffs.get(&number).cloned();
        Ok(diff.map(|diff| diff.as_ref().clone()))
    }
}

impl BalStore for MemoryStore {
    fn bal(&self, block: BlockNumHash) -> Result<Option<Bytes>, MemoryError> {
        Ok(self.shared.tables.read().bals.get(&block).cloned())
    }

    fn prune_below(&self, below: BlockNumber) -> Result<u64, MemoryError> {
        let _writer = self.shared.writer.lock();
        let (keep, hashes) = {
            let tables = self.shared.tables.read();
            let Some(tip) = tables.tip else { return Ok(0) };
            let keep = Retention::below(below, tip);
            let hashes = tables.block_hashes.range(..keep.block_hashes, tables.version);
            (keep, hashes.map(|(number, _)| (*number, None)).collect::<Vec<_>>())
        };
        let mut dropped = 0;
        self.shared.write(&Rows::default(), &hashes, |tables| {
            let kept = tables.bals.split_off(&BlockNumHash::new(keep.diffs, B256::ZERO));
            dropped = std::mem::replace(&mut tables.bals, kept).len() as u64;
            tables.reverse_diffs = tables.reverse_diffs.split_off(&keep.diffs);
            tables.anchors = tables.anchors.split_off(&keep.anchors);
        })?;
        Ok(dropped)
    }
}

impl MemorySnapshot {
    fn read<T>(&self, read: impl FnOnce(&Tables, Version) -> T) -> T {
        read(&self.pin.shared.tables.read(), self.pin.version)
    }
}

impl StateReader for MemorySnapshot {
    type Error = MemoryError;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, MemoryError> {
        Ok(self.account(hashed_address)?.map(Account::into))
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, MemoryError> {
        let key = (*hashed_address, *hashed_slot);
        Ok(self.read(|tables, version| tables.slots.get(&key, version).copied()).unwrap_or_default())
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, MemoryError> {
        Ok(self.read(|tables, version| tables.codes.get(code_hash, version).cloned()))
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, MemoryError> {
        Ok(self.read(|tables, version| tables.block_hashes.get(&number, version).copied()))
    }
}

impl TrieReader for MemorySnapshot {
    fn anchor(&self) -> StateAnchor {
        self.pin.anchor
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, MemoryError> {
        Ok(self.read(|tables, version| tables.accounts.get(hashed_address, version).copied()))
    }

    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, MemoryError> {
        Ok(self.read(|tables, version| tables.nodes.get(key, version).cloned()))
    }

    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, MemoryError> {
        Ok(self.read(|tables, version| {
            let rows = tables.accounts.range(start.., version);
            rows.take(limit).map(|(key, account)| (*key, *account)).collect()
        }))
    }

    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, MemoryError> {
        Ok(self.read(|tables, version| {
            let rows =
                tables.slots.range((*hashed_address, *start)..=(*hashed_address, B256::repeat_byte(0xff)), version);
            rows.take(limit).map(|((_, slot), value)| (*slot, *value)).collect()
        }))
    }
}

#[cfg(test)]
mod tests;
