//! Committed in memory, not yet in the store: the layers of blocks over one snapshot.
//!
//! Invariants:
//! 1. A [`Layer`] is immutable. Siblings, reorganisations and shadow computations share it.
//! 2. In an [`Overlay`] the layers lead without a gap from the snapshot's block to the newest layer's: each layer's
//!    parent is the block of the layer below it, the lowest one's parent is the snapshot's block.
//! 3. A layer that removes an account lists every slot that it removes, so that a read never needs to know why.

use std::sync::Arc;

use alloy_primitives::{B256, Bytes, U256};
use alloy_trie::EMPTY_ROOT_HASH;

use crate::{
    account::{Account, AccountInfo},
    block::{BlockHash, BlockNumHash, BlockNumber, StateAnchor},
    diff::{AccountChange, SlotChange, StateDiff},
    node::{NodeKey, TrieId},
    sorted::{KeyIndex, Place, seek},
    store::{CommitBatch, CommittedBlock, Rows, StateReader, TrieReader, next_key, through_batch},
    trie::{FoldOutcome, Version},
};

/// What one block changed: leaves, code and trie nodes.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The block's parent.
    pub parent: BlockNumHash,
    /// The block, and the root of the state after it.
    pub anchor: StateAnchor,
    /// The changed leaves, with their old values.
    pub diff: StateDiff,
    /// The tries after the block.
    pub tries: Version,
    /// The raw access list for the sidecar.
    pub bal: Option<Bytes>,
    /// The keys of `diff`.
    index: KeyIndex,
}

/// Layers are equal if they say the same, wherever their nodes lie.
impl PartialEq for Layer {
    fn eq(&self, other: &Self) -> bool {
        (self.parent, self.anchor) == (other.parent, other.anchor)
            && (&self.diff, &self.bal) == (&other.diff, &other.bal)
            && self.tries.updates(&self.diff) == other.tries.updates(&other.diff)
    }
}

impl Layer {
    /// The layer of a block, of its fold's outcome.
    pub fn new(parent: BlockNumHash, block: BlockNumHash, outcome: FoldOutcome, bal: Option<Bytes>) -> Self {
        let FoldOutcome { computed_state_root, diff, tries } = outcome;
        let mut index = KeyIndex::with_capacity(diff.accounts.len(), diff.slot_count());
        for change in &diff.accounts {
            index.add(&change.hashed_address, change.slots.iter().map(|slot| &slot.hashed_slot));
        }
        let anchor = StateAnchor { block, state_root: computed_state_root };
        Self { parent, anchor, diff, tries, bal, index }
    }

    /// Where an account stands among the changed ones.
    fn place(&self, hashed_address: &B256) -> Option<usize> {
        let perhaps = self.index.may_hold(hashed_address);
        let place = perhaps.then(|| self.seek_account(0, hashed_address)).filter(|place| place.found)?;
        Some(place.at)
    }

    fn account(&self, hashed_address: &B256) -> Option<&AccountChange> {
        Some(&self.diff.accounts[self.place(hashed_address)?])
    }

    /// The changed slots of the account at a place, behind their keys' prefixes.
    fn slots(&self, account: usize) -> (&[u64], &[SlotChange]) {
        (self.index.slots(account).0, &self.diff.accounts[account].slots)
    }

    fn slot(&self, hashed_address: &B256, hashed_slot: &B256) -> Option<U256> {
        if !self.index.may_hold_slot(hashed_address, hashed_slot) {
            return None;
        }
        let (prefixes, changes) = self.slots(self.place(hashed_address)?);
        let Place { at, found } = seek(prefixes, 0, hashed_slot, |at| &changes[at].hashed_slot);
        found.then(|| changes[at].new)
    }

    /// The changes of an account's slots from a key on.
    fn slots_from(&self, hashed_address: &B256, start: &B256) -> Option<&[SlotChange]> {
        let (prefixes, changes) = self.slots(self.place(hashed_address)?);
        let Place { at, .. } = seek(prefixes, 0, start, |at| &changes[at].hashed_slot);
        Some(&changes[at..])
    }

    fn seek_account(&self, from: usize, hashed_address: &B256) -> Place {
        seek(self.index.accounts(), from, hashed_address, |at| &self.diff.accounts[at].hashed_address)
    }

    /// The batch that commits this block alone.
    pub fn to_batch(&self) -> CommitBatch {
        let slots = self.diff.accounts.iter().flat_map(|account| {
            account.slots.iter().map(|slot| ((account.hashed_address, slot.hashed_slot), slot.new))
        });
        CommitBatch {
            parent: self.parent,
            blocks: vec![self.committed_block()],
            rows: Rows {
                accounts: self.diff.accounts.iter().map(|account| (account.hashed_address, account.new)).collect(),
                slots: slots.collect(),
                nodes: self.tries.updates(&self.diff).nodes,
                codes: self.diff.codes.clone(),
            },
        }
    }

    /// The batch that commits blocks, oldest first, at once: of what several of them changed only the newest is
    /// written. `None` without blocks.
    ///
    /// # Errors
    /// If a layer does not stand on the one before it, or its tries do not, or if the newest layer's tries have forgotten
    /// rows that these blocks changed: they were durable when it was folded.
    pub fn merged_batch(layers: &[Arc<Self>]) -> Result<Option<CommitBatch>, BrokenOverlay> {
        let (Some(first), Some(newest)) = (layers.first(), layers.last()) else { return Ok(None) };
        for pair in layers.windows(2) {
            let (below, layer) = (&pair[0], &pair[1]);
            check_stands_on(layer, below.anchor.block, Some(&below.tries))?;
        }
        let durable_epoch = first.tries.epoch() - 1;
        if !newest.tries.can_be_read_over(durable_epoch) {
            return Err(BrokenOverlay::Tries { layer: newest.anchor.block });
        }
        let (mut accounts, mut slots, mut codes) = (Vec::new(), Vec::new(), Vec::new());
        for layer in layers.iter().rev() {
            for account in &layer.diff.accounts {
                accounts.push((account.hashed_address, account.new));
                let address = account.hashed_address;
                slots.extend(account.slots.iter().map(|slot| ((address, slot.hashed_slot), slot.new)));
            }
            codes.extend(layer.diff.codes.iter().cloned());
        }
        // Stable: of equal keys the newest layer's comes first, and stays.
        accounts.sort_by_key(|(hashed_address, _)| *hashed_address);
        accounts.dedup_by_key(|(hashed_address, _)| *hashed_address);
        slots.sort_by_key(|(key, _)| *key);
        slots.dedup_by_key(|(key, _)| *key);
        codes.sort_by_key(|(hash, _)| *hash);
        codes.dedup_by_key(|(hash, _)| *hash);
        let mut written: Vec<B256> = slots.iter().map(|((hashed_address, _), _)| *hashed_address).collect();
        written.dedup();
        let exists = |address: &&B256| {
            accounts.binary_search_by(|(key, _)| key.cmp(address)).is_ok_and(|at| accounts[at].1.is_some())
        };
        let gone = layers.iter().flat_map(|layer| layer.tries.gone());
        let nodes = newest.tries.rows_since(durable_epoch, written.iter().filter(exists), gone).nodes;
        let blocks = layers.iter().map(|layer| layer.committed_block()).collect();
        Ok(Some(CommitBatch { parent: first.parent, blocks, rows: Rows { accounts, slots, nodes, codes } }))
    }

    fn committed_block(&self) -> CommittedBlock {
        CommittedBlock { anchor: self.anchor, reverse: self.diff.reverse(), bal: self.bal.clone() }
    }
}

/// Checks that a layer, and its tries, stand on the block below.
fn check_stands_on(layer: &Layer, below: BlockNumHash, tries: Option<&Version>) -> Result<(), BrokenOverlay> {
    let block = layer.anchor.block;
    if layer.parent != below {
        return Err(BrokenOverlay::Gap { layer: block, got: layer.parent, expected: below });
    }
    match tries {
        Some(below) if !layer.tries.follows(below) => Err(BrokenOverlay::Tries { layer: block }),
        _ => Ok(()),
    }
}

/// The layers given do not make a view over the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BrokenOverlay {
    /// They do not lead from the snapshot's block to the newest one.
    #[error("the layer of block {layer} stands on {got}, not on {expected}")]
    Gap {
        /// The layer at fault.
        layer: BlockNumHash,
        /// Its parent.
        got: BlockNumHash,
        /// The block below it.
        expected: BlockNumHash,
    },
    /// A layer's tries were not folded over those of the layer below it, or need a newer snapshot: what they do not
    /// hold would be looked up where it does not stand.
    #[error("the tries of block {layer} were folded over another view")]
    Tries {
        /// The layer at fault.
        layer: BlockNumHash,
    },
}

/// A view of the state after a block that is committed in memory only.
#[derive(Debug, Clone)]
pub struct Overlay<R> {
    base: R,
    /// Oldest first.
    layers: Arc<[Arc<Layer>]>,
}

impl<R: TrieReader> Overlay<R> {
    /// Puts layers, oldest first, over a snapshot.
    ///
    /// # Errors
    /// If the layers do not lead on from the snapshot's block without a gap.
    pub fn new(base: R, layers: Vec<Arc<Layer>>) -> Result<Self, BrokenOverlay> {
        let (mut below, mut tries) = (base.anchor().block, base.tries());
        for layer in &layers {
            check_stands_on(layer, below, tries.as_ref())?;
            (below, tries) = (layer.anchor.block, Some(layer.tries.clone()));
        }
        if let (Some(durable_epoch), Some(newest)) = (durable_epoch(&base, &layers), layers.last())
            && !newest.tries.can_be_read_over(durable_epoch)
        {
            return Err(BrokenOverlay::Tries { layer: newest.anchor.block });
        }
        Ok(Self { base, layers: layers.into() })
    }

    /// The snapshot below all layers.
    pub const fn base(&self) -> &R {
        &self.base
    }

    /// The layers, oldest first.
    pub fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }

    fn newest_first(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().rev().map(Arc::as_ref)
    }

    /// The newest layer's word on an account.
    fn changed_account(&self, hashed_address: &B256) -> Option<Option<Account>> {
        self.newest_first().find_map(|layer| layer.account(hashed_address)).map(|change| change.new)
    }
}

/// The epoch of what is durable below layers. The base knows it, and may have layers of its own; where it has no tries in
/// memory, it is what the lowest layer stands on.
fn durable_epoch<R: TrieReader>(base: &R, layers: &[Arc<Layer>]) -> Option<u32> {
    base.durable_epoch().or_else(|| layers.first().map(|lowest| lowest.tries.epoch() - 1))
}

impl<R: TrieReader> StateReader for Overlay<R> {
    type Error = R::Error;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, Self::Error> {
        match self.changed_account(hashed_address) {
            Some(account) => Ok(account.map(Account::into)),
            None => self.base.account_info(hashed_address),
        }
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, Self::Error> {
        let changed = self.newest_first().find_map(|layer| layer.slot(hashed_address, hashed_slot));
        match changed {
            Some(value) => Ok(value),
            None => self.base.storage(hashed_address, hashed_slot),
        }
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, Self::Error> {
        match self.newest_first().find_map(|layer| layer.diff.code(code_hash)) {
            Some(code) => Ok(Some(code.clone())),
            None => self.base.code(code_hash),
        }
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, Self::Error> {
        if number > self.anchor().block.number {
            return Ok(None);
        }
        match self.newest_first().find(|layer| layer.anchor.block.number == number) {
            Some(layer) => Ok(Some(layer.anchor.block.hash)),
            None => self.base.block_hash(number),
        }
    }
}

impl<R: TrieReader> TrieReader for Overlay<R> {
    fn anchor(&self) -> StateAnchor {
        self.layers.last().map_or_else(|| self.base.anchor(), |layer| layer.anchor)
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, Self::Error> {
        match self.changed_account(hashed_address) {
            Some(account) => Ok(account),
            None => self.base.account(hashed_address),
        }
    }

    fn tries(&self) -> Option<Version> {
        self.layers.last().map_or_else(|| self.base.tries(), |layer| Some(layer.tries.clone()))
    }

    fn durable_epoch(&self) -> Option<u32> {
        durable_epoch(&self.base, &self.layers)
    }

    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, Self::Error> {
        let Some(newest) = self.layers.last() else { return self.base.node(key) };
        if let TrieId::Storage(hashed_address) = &key.trie
            && self.account(hashed_address)?.is_none_or(|account| account.storage_root == EMPTY_ROOT_HASH)
        {
            return Ok(None);
        }
        newest.tries.row(key).map_or_else(|| self.base.node(key), Ok)
    }

    fn durable_node(&self, key: &NodeKey) -> Result<Option<Bytes>, Self::Error> {
        self.base.durable_node(key)
    }

    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, Self::Error> {
        let layers = self.newest_first().map(|layer| &layer.diff.accounts[layer.seek_account(0, start).at..]).collect();
        let changes = Changes {
            layers,
            key: |change: &AccountChange| change.hashed_address,
            value: |change: &AccountChange| change.new,
        };
        merge(changes, start, limit, |from, limit| self.base.accounts_from(from, limit))
    }

    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, Self::Error> {
        let layers = self.newest_first().filter_map(|layer| layer.slots_from(hashed_address, start));
        let changes = Changes {
            layers: layers.collect(),
            key: |change: &SlotChange| change.hashed_slot,
            value: |change: &SlotChange| (!change.new.is_zero()).then_some(change.new),
        };
        merge(changes, start, limit, |from, limit| self.base.slots_from(hashed_address, from, limit))
    }

    fn accounts(&self, hashed_addresses: &[B256]) -> Result<Vec<Option<Account>>, Self::Error> {
        let mut cursors = Cursors::new(&self.layers);
        let changed = |hashed_address: &B256| cursors.find(hashed_address).map(|change| change.new);
        through_batch(hashed_addresses, changed, |keys| self.base.accounts(keys))
    }

    fn slots(&self, keys: &[(B256, B256)]) -> Result<Vec<U256>, Self::Error> {
        let mut cursors = SlotCursors { accounts: Cursors::new(&self.layers), at: None, slots: Vec::new() };
        let changed = |(hashed_address, hashed_slot): &(B256, B256)| cursors.find(hashed_address, hashed_slot);
        through_batch(keys, changed, |keys| self.base.slots(keys))
    }
}

/// Looks sorted addresses up in layers: in each of them a cursor moves forward.
struct Cursors<'a> {
    /// Newest first.
    layers: Vec<(&'a Layer, usize)>,
    last: Option<B256>,
}

impl<'a> Cursors<'a> {
    fn new(layers: &'a [Arc<Layer>]) -> Self {
        Self { layers: layers.iter().rev().map(|layer| (&**layer, 0)).collect(), last: None }
    }

    /// The layers' changes of an account, newest first. Addresses that come out of order cost a search from the beginning,
    /// no more.
    fn changes(&mut self, hashed_address: &B256) -> impl Iterator<Item = (&'a Layer, usize)> {
        if self.last.replace(*hashed_address).is_some_and(|last| last > *hashed_address) {
            self.layers.iter_mut().for_each(|(_, at)| *at = 0);
        }
        self.layers.iter_mut().filter(|(layer, _)| layer.index.may_hold(hashed_address)).filter_map(
            |(layer, cursor)| {
                let Place { at, found } = layer.seek_account(*cursor, hashed_address);
                *cursor = at;
                found.then_some((*layer, at))
            },
        )
    }

    /// The newest layer's change of an account.
    fn find(&mut self, hashed_address: &B256) -> Option<&'a AccountChange> {
        self.changes(hashed_address).next().map(|(layer, at)| &layer.diff.accounts[at])
    }
}

/// Looks sorted slots up in layers, in the same way.
struct SlotCursors<'a> {
    accounts: Cursors<'a>,
    /// The account at which the slots' cursors are.
    at: Option<B256>,
    /// Its changed slots in each layer, newest first.
    slots: Vec<SlotCursor<'a>>,
}

struct SlotCursor<'a> {
    index: &'a KeyIndex,
    prefixes: &'a [u64],
    changes: &'a [SlotChange],
    at: usize,
}

impl SlotCursors<'_> {
    fn find(&mut self, hashed_address: &B256, hashed_slot: &B256) -> Option<U256> {
        if self.at != Some(*hashed_address) {
            self.at = Some(*hashed_address);
            self.slots.clear();
            self.slots.extend(self.accounts.changes(hashed_address).map(|(layer, at)| {
                let (prefixes, changes) = layer.slots(at);
                SlotCursor { index: &layer.index, prefixes, changes, at: 0 }
            }));
        }
        let perhaps = |cursor: &&mut SlotCursor<'_>| cursor.index.may_hold_slot(hashed_address, hashed_slot);
        self.slots.iter_mut().filter(perhaps).find_map(|SlotCursor { prefixes, changes, at, .. }| {
            let key_at = |at: usize| &changes[at].hashed_slot;
            // Slots that come out of order cost a search from the beginning, no more.
            let from = if *at > 0 && key_at(*at - 1) >= hashed_slot { 0 } else { *at };
            let place = seek(prefixes, from, hashed_slot, key_at);
            *at = place.at;
            place.found.then(|| changes[place.at].new)
        })
    }
}

/// The changes of several layers in order of their keys; of equal keys the newest layer's.
struct Changes<'a, C, K, V> {
    /// The rest of each layer, newest first.
    layers: Vec<&'a [C]>,
    key: K,
    value: V,
}

impl<'a, C, T, K: Fn(&C) -> B256, V: Fn(&C) -> Option<T>> Changes<'a, C, K, V> {
    fn peek(&self) -> Option<B256> {
        self.layers.iter().filter_map(|layer| layer.first()).map(&self.key).min()
    }

    /// Takes the change at `at`, which [`Self::peek`] gave.
    fn take(&mut self, at: B256) -> Option<T> {
        let mut newest = None;
        for layer in &mut self.layers {
            if let Some((first, rest)) = layer.split_first()
                && (self.key)(first) == at
            {
                newest.get_or_insert(first);
                *layer = rest;
            }
        }
        newest.and_then(&self.value)
    }
}

/// Merges changes over pages of the snapshot, up to `limit` leaves.
fn merge<C, T: Copy, K, V, E>(
    mut changes: Changes<'_, C, K, V>,
    start: &B256,
    limit: usize,
    mut page: impl FnMut(&B256, usize) -> Result<Vec<(B256, T)>, E>,
) -> Result<Vec<(B256, T)>, E>
where
    K: Fn(&C) -> B256,
    V: Fn(&C) -> Option<T>,
{
    let mut merged = Vec::new();
    let mut next_page = Some(*start);
    let mut base: std::vec::IntoIter<(B256, T)> = Vec::new().into_iter();
    while merged.len() < limit {
        if base.as_slice().is_empty()
            && let Some(from) = next_page
        {
            let rows = page(&from, limit)?;
            next_page = rows.last().filter(|_| rows.len() == limit).and_then(|(last, _)| next_key(last));
            base = rows.into_iter();
        }
        let in_base = base.as_slice().first().map(|(key, _)| *key);
        match (in_base, changes.peek()) {
            (None, None) => break,
            (Some(key), changed) if changed.is_none_or(|changed| key < changed) => merged.extend(base.next()),
            (in_base, Some(changed)) => {
                if in_base == Some(changed) {
                    base.next();
                }
                merged.extend(changes.take(changed).map(|value| (changed, value)));
            }
            // Covered above: with nothing changed, the snapshot's key comes first.
            (Some(_), None) => break,
        }
    }
    Ok(merged)
}
