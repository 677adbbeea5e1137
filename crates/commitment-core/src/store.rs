//! The traits that the seams hang on: how the state is read, how tries are read, how a store commits.
//!
//! # The protocol, for whoever implements a backend
//!
//! * **Snapshot.** Everything that a [`TrieReader`] serves belongs to one block, [`TrieReader::anchor`]: a commit, an
//!   unwind or a load that ends later changes nothing of it. Many snapshots of different blocks may be alive at once.
//! * **Atomicity.** [`TrieStore::commit`], [`TrieStore::unwind`] and [`TrieStore::load`] take effect as a whole or not
//!   at all, also when the process is killed in their midst: state, tries, codes, block hashes, reverse diffs, lists
//!   and the tip belong together. An `Err` means that nothing took effect.
//! * **Durability.** When one of the three returns `Ok`, its effect survives a kill of the process. (After a kill in
//!   their midst the store may hold the effect without having returned: recovery reads the tip from the store.)
//! * **Order.** One writer at a time; further writers wait. Readers never wait for a writer. A commit is refused unless
//!   its parent is the tip: see [`Refusal`].
//! * **Threads.** Every type here is used from many threads at once.
//! * **Meaning.** A store keeps bytes. It decides nothing about tries: which rows exist, and what is in them, is the
//!   fold's business.
//!
//! The suite in `foldgate-testing` checks all of this on any implementation.

use alloy_primitives::{B256, Bytes, U256};

use crate::{
    account::{Account, AccountInfo},
    block::{BlockHash, BlockNumHash, BlockNumber, StateAnchor},
    diff::ReverseDiff,
    node::NodeKey,
    trie::Version,
};

/// For how many ancestors a store answers [`StateReader::block_hash`]: what the EVM's BLOCKHASH can ask for.
pub const BLOCK_HASH_WINDOW: u64 = 256;

/// What every error of a backend is.
pub trait BackendError: std::error::Error + Send + Sync + 'static {
    /// The refusal inside, if the store refused what was asked, and did not fail at it.
    fn refusal(&self) -> Option<&Refusal>;
}

/// Why a store refuses a write that it could have carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Nothing was loaded yet: there is no tip to stand on.
    #[error("the store is empty: load a genesis first")]
    Empty,
    /// A load needs an empty store.
    #[error("the store already holds a state, at {tip}")]
    NotEmpty {
        /// The tip.
        tip: StateAnchor,
    },
    /// The parent of what should be committed is not the tip.
    #[error("cannot commit onto block {got}: the tip is {expected}")]
    NotTheTip {
        /// The parent given.
        got: BlockNumHash,
        /// The tip.
        expected: BlockNumHash,
    },
    /// The target of an unwind is not an ancestor of the tip that the store's reverse diffs reach.
    #[error("cannot unwind to block {got}: it is not among the reachable ancestors of the tip {tip}")]
    NotAnAncestor {
        /// The target given.
        got: BlockNumHash,
        /// The tip.
        tip: BlockNumHash,
    },
    /// The rows of a batch are not sorted by key, or a key stands twice.
    #[error("the {table} rows of the batch are not strictly sorted at position {position}")]
    Unsorted {
        /// Which rows.
        table: &'static str,
        /// The index of the offending row.
        position: usize,
    },
    /// The batch's blocks do not lead from its parent to its tip.
    #[error("the batch's blocks do not lead from {parent} to {tip}")]
    BrokenChain {
        /// The batch's parent.
        parent: BlockNumHash,
        /// The batch's tip.
        tip: BlockNumHash,
    },
}

/// An immutable view of the state after one block, as an executor sees it.
///
/// Keys are hashed ([`crate::keys`]). Reads of what does not exist are not errors: `None`, or zero for a slot.
pub trait StateReader: Send + Sync {
    /// Why a read can fail. A failure is an error of the machine, never a property of a block.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The account's fields.
    ///
    /// # Errors
    /// If the underlying storage fails.
    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, Self::Error>;

    /// The slot's value; zero if there is none.
    ///
    /// # Errors
    /// If the underlying storage fails.
    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, Self::Error>;

    /// Code by its hash. The empty code need not be stored.
    ///
    /// # Errors
    /// If the underlying storage fails.
    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, Self::Error>;

    /// The hash of the ancestor at this height, at least for the [`BLOCK_HASH_WINDOW`] newest heights up to and
    /// including the view's own block, as far as the chain reaches.
    ///
    /// # Errors
    /// If the underlying storage fails.
    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, Self::Error>;
}

/// An immutable view of state and tries after one block: what a fold reads.
///
/// Cloning is cheap and gives a view of the same block.
pub trait TrieReader: StateReader + Clone + 'static {
    /// The block whose state this is, and its root.
    fn anchor(&self) -> StateAnchor;

    /// The account with its storage root.
    ///
    /// # Errors
    /// If the underlying storage fails.
    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, Self::Error>;

    /// The block's tries as far as they are in memory; `None` if nothing is.
    fn tries(&self) -> Option<Version> {
        None
    }

    /// The epoch of the tries of the durable block below this one, if there are any in memory: what is not younger is
    /// in the durable snapshot.
    fn durable_epoch(&self) -> Option<u32> {
        self.tries().map(|tries| tries.epoch())
    }

    /// The stored row of a trie node.
    ///
    /// # Errors
    /// If the underlying storage fails.
    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, Self::Error>;

    /// The same row in the durable snapshot below all blocks in memory: for those who know from [`Self::tries`] that no
    /// block above it changed the node.
    ///
    /// # Errors
    /// If the underlying storage fails.
    fn durable_node(&self, key: &NodeKey) -> Result<Option<Bytes>, Self::Error> {
        self.node(key)
    }

    /// Up to `limit` leaves of the account trie in order of their keys, from the first key that is `>= start`.
    /// Fewer than `limit` only if there are no more.
    ///
    /// # Errors
    /// If the underlying storage fails.
    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, Self::Error>;

    /// Up to `limit` leaves of one storage trie in order of their keys, from the first key that is `>= start`.
    /// Fewer than `limit` only if there are no more. No value is zero.
    ///
    /// # Errors
    /// If the underlying storage fails.
    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, Self::Error>;

    /// [`Self::account`] of each key, in the keys' order.
    ///
    /// Callers give the keys of a batch in ascending order: that is what implementations are fast with. They answer
    /// rightly in any order, and a key that stands twice is answered twice.
    ///
    /// # Errors
    /// If the underlying storage fails at any of the keys.
    fn accounts(&self, hashed_addresses: &[B256]) -> Result<Vec<Option<Account>>, Self::Error> {
        hashed_addresses.iter().map(|hashed_address| self.account(hashed_address)).collect()
    }

    /// [`StateReader::storage`] of each `(hashed address, hashed slot)`, in the keys' order; as [`Self::accounts`].
    ///
    /// # Errors
    /// If the underlying storage fails at any of the keys.
    fn slots(&self, keys: &[(B256, B256)]) -> Result<Vec<U256>, Self::Error> {
        keys.iter().map(|(hashed_address, hashed_slot)| self.storage(hashed_address, hashed_slot)).collect()
    }

    /// [`Self::node`] of each key, in the keys' order; as [`Self::accounts`].
    ///
    /// # Errors
    /// If the underlying storage fails at any of the keys.
    fn nodes(&self, keys: &[NodeKey]) -> Result<Vec<Option<Bytes>>, Self::Error> {
        keys.iter().map(|key| self.node(key)).collect()
    }
}

/// The rows that a commit, an unwind or a load writes. Each list is strictly sorted by its key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// Hashed address to account; `None` deletes.
    pub accounts: Vec<(B256, Option<Account>)>,
    /// `(hashed address, hashed slot)` to value; zero deletes.
    pub slots: Vec<((B256, B256), U256)>,
    /// Trie nodes; `None` deletes.
    pub nodes: Vec<(NodeKey, Option<Bytes>)>,
    /// Code hash to code. Code is never deleted.
    pub codes: Vec<(B256, Bytes)>,
}

impl Rows {
    /// Checks that each list is strictly sorted by key. Every store does so before it writes.
    ///
    /// # Errors
    /// [`Refusal::Unsorted`].
    pub fn check_sorted(&self) -> Result<(), Refusal> {
        fn check<T, K: Ord>(table: &'static str, rows: &[T], key: impl Fn(&T) -> K) -> Result<(), Refusal> {
            match rows.windows(2).position(|pair| key(&pair[0]) >= key(&pair[1])) {
                Some(at) => Err(Refusal::Unsorted { table, position: at + 1 }),
                None => Ok(()),
            }
        }
        check("account", &self.accounts, |row| row.0)?;
        check("slot", &self.slots, |row| row.0)?;
        check("node", &self.nodes, |row| row.0)?;
        check("code", &self.codes, |row| row.0)
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty() && self.slots.is_empty() && self.nodes.is_empty() && self.codes.is_empty()
    }
}

/// One of the blocks whose changes a commit carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedBlock {
    /// The block and the root of the state after it.
    pub anchor: StateAnchor,
    /// What leads back to the state of the block before it in the batch (or of the batch's parent).
    pub reverse: ReverseDiff,
    /// The block's raw access list for the sidecar, if it had one.
    pub bal: Option<Bytes>,
}

/// One atomic step of a store from its tip to a descendant of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitBatch {
    /// The block that the batch stands on: must be the tip.
    pub parent: BlockNumHash,
    /// The blocks committed, oldest first, at least one; the last one becomes the tip. Heights follow on each other.
    pub blocks: Vec<CommittedBlock>,
    /// The rows, all blocks merged.
    pub rows: Rows,
}

impl CommitBatch {
    /// Checks everything that a store has to check before it writes: the parent is `tip`, the blocks lead on from it
    /// height by height, the rows are sorted. Gives the new tip.
    ///
    /// # Errors
    /// [`Refusal::Empty`], [`Refusal::NotTheTip`], [`Refusal::BrokenChain`] or [`Refusal::Unsorted`].
    pub fn check(&self, tip: Option<StateAnchor>) -> Result<StateAnchor, Refusal> {
        let tip = tip.ok_or(Refusal::Empty)?;
        if self.parent != tip.block {
            return Err(Refusal::NotTheTip { got: self.parent, expected: tip.block });
        }
        let last = self.blocks.last().map_or(tip, |block| block.anchor);
        let numbers = self.blocks.iter().map(|block| block.anchor.block.number);
        let expected = std::iter::successors(self.parent.number.checked_add(1), |number| number.checked_add(1));
        if self.blocks.is_empty() || !numbers.eq(expected.take(self.blocks.len())) {
            return Err(Refusal::BrokenChain { parent: self.parent, tip: last.block });
        }
        self.rows.check_sorted()?;
        Ok(last)
    }
}

/// One atomic step of a store from its tip back to an ancestor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnwindBatch {
    /// The tip that the batch was computed from: must be the tip still.
    pub from: BlockNumHash,
    /// The ancestor that becomes the tip.
    pub to: StateAnchor,
    /// The rows that lead back.
    pub rows: Rows,
}

impl UnwindBatch {
    /// Checks everything that a store has to check before it writes: `from` is `tip`, `to` is what the store committed
    /// at its height and still reaches (`committed`), and lies below the tip; the rows are sorted.
    ///
    /// # Errors
    /// [`Refusal::Empty`], [`Refusal::NotTheTip`], [`Refusal::NotAnAncestor`] or [`Refusal::Unsorted`].
    pub fn check(&self, tip: Option<StateAnchor>, committed: Option<StateAnchor>) -> Result<(), Refusal> {
        let tip = tip.ok_or(Refusal::Empty)?.block;
        if self.from != tip {
            return Err(Refusal::NotTheTip { got: self.from, expected: tip });
        }
        if committed != Some(self.to) || self.to.block.number >= tip.number {
            return Err(Refusal::NotAnAncestor { got: self.to.block, tip });
        }
        self.rows.check_sorted()
    }
}

/// Checks the order of the rows that a [`LoadSource`] gives, piece by piece. Every store does so while it loads.
#[derive(Debug, Default)]
pub struct LoadOrder {
    last_account: Option<B256>,
    last_slot: Option<(B256, B256)>,
}

impl LoadOrder {
    /// Checks that each list of the piece is strictly sorted, and that its leaves come after those of the pieces before.
    ///
    /// # Errors
    /// [`Refusal::Unsorted`].
    pub fn check(&mut self, rows: &Rows) -> Result<(), Refusal> {
        rows.check_sorted()?;
        if let (Some(first), Some(last)) = (rows.accounts.first(), rows.accounts.last()) {
            if self.last_account.is_some_and(|before| before >= first.0) {
                return Err(Refusal::Unsorted { table: "account", position: 0 });
            }
            self.last_account = Some(last.0);
        }
        if let (Some(first), Some(last)) = (rows.slots.first(), rows.slots.last()) {
            if self.last_slot.is_some_and(|before| before >= first.0) {
                return Err(Refusal::Unsorted { table: "slot", position: 0 });
            }
            self.last_slot = Some(last.0);
        }
        Ok(())
    }
}

/// What [`BalStore::prune_below`] leaves: the lowest height kept of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Of lists and reverse diffs.
    pub diffs: BlockNumber,
    /// Of [`TrieStore::committed`] blocks: those that the reverse diffs kept lead back to; at least the tip.
    pub anchors: BlockNumber,
    /// Of block hashes: what readers at any of these blocks may ask for.
    pub block_hashes: BlockNumber,
}

impl Retention {
    /// What stays of a store at `tip` after everything below `below` was pruned.
    pub fn below(below: BlockNumber, tip: StateAnchor) -> Self {
        let anchors = below.saturating_sub(1).min(tip.block.number);
        Self { diffs: below, anchors, block_hashes: anchors.saturating_sub(BLOCK_HASH_WINDOW - 1) }
    }
}

/// A source of leaves and nodes for a load, pulled piece by piece so that memory stays bounded.
///
/// The store's writer is held all the while: a source that writes to the store which it loads waits for itself.
pub trait LoadSource {
    /// Why the source can fail.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The next rows, or `None` at the end. Each list is sorted within its piece, no key comes twice, nothing is
    /// deleted. Leaves come in ascending order over all pieces; nodes and codes may come in any, though stores are fast
    /// with those that follow on the ones before.
    ///
    /// # Errors
    /// If the source fails; the store then stays empty.
    fn next_rows(&mut self) -> Result<Option<Rows>, Self::Error>;

    /// The block whose state was loaded: asked for once, after the last rows.
    ///
    /// # Errors
    /// If the source finds at its end that what it gave is not what was asked for; the store then stays empty.
    fn anchor(&mut self) -> Result<StateAnchor, Self::Error>;
}

/// Why a load failed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError<S, E> {
    /// The store failed or refused.
    #[error(transparent)]
    Store(S),
    /// The source failed.
    #[error(transparent)]
    Source(E),
}

/// A durable (or, for [`crate::memory::MemoryStore`], process-long) home of state and tries.
pub trait TrieStore: Send + Sync + 'static {
    /// Why an operation fails, or is refused.
    type Error: BackendError;
    /// What readers get.
    type Snapshot: TrieReader<Error = Self::Error>;

    /// The genesis: the first block loaded, or `None` while the store is empty.
    ///
    /// # Errors
    /// If the underlying storage fails.
    fn genesis(&self) -> Result<Option<StateAnchor>, Self::Error>;

    /// The newest committed block, or `None` while the store is empty.
    ///
    /// # Errors
    /// If the underlying storage fails.
    fn tip(&self) -> Result<Option<StateAnchor>, Self::Error>;

    /// A view of the newest committed block.
    ///
    /// # Errors
    /// [`Refusal::Empty`] while nothing was loaded; or if the underlying storage fails.
    fn snapshot(&self) -> Result<Self::Snapshot, Self::Error>;

    /// Fills an empty store: the block that the source ends with becomes genesis and tip.
    ///
    /// # Errors
    /// [`Refusal::NotEmpty`]; [`Refusal::Unsorted`] ([`LoadOrder`]); what the source fails with; or if the underlying storage fails. The store stays as it was.
    fn load<L: LoadSource>(&self, source: L) -> Result<StateAnchor, LoadError<Self::Error, L::Error>>;

    /// Steps from the tip to a descendant: writes rows, codes, hashes, reverse diffs, lists and the new tip.
    ///
    /// # Errors
    /// What [`CommitBatch::check`] refuses; or if the underlying storage fails. The store stays as it was.
    fn commit(&self, batch: &CommitBatch) -> Result<(), Self::Error>;

    /// Steps back from the tip to an ancestor: writes rows and the new tip, and drops the hashes, reverse diffs and
    /// lists of the blocks above it. Code stays.
    ///
    /// # Errors
    /// [`Refusal::NotTheTip`] if `from` is not the tip, [`Refusal::NotAnAncestor`] if `to` is not a committed block
    /// below it, [`Refusal::Unsorted`]; or if the underlying storage fails. The store stays as it was.
    fn unwind(&self, batch: &UnwindBatch) -> Result<(), Self::Error>;

    /// The committed block at this height (the genesis included) and its state root, as far back as the store keeps
    /// reverse diffs.
    ///
    /// # Errors
    /// If the underlying storage fails.
    fn committed(&self, number: BlockNumber) -> Result<Option<StateAnchor>, Self::Error>;

    /// What leads from the committed block at this height back to the one before it.
    ///
    /// # Errors
    /// If the underlying storage fails, or holds a malformed diff.
    fn reverse_diff(&self, number: BlockNumber) -> Result<Option<ReverseDiff>, Self::Error>;
}

/// The sidecar of raw access lists: written with the commit, read by number and hash, pruned apart.
pub trait BalStore: TrieStore {
    /// The raw list of a committed block.
    ///
    /// # Errors
    /// If the underlying storage fails.
    fn bal(&self, block: BlockNumHash) -> Result<Option<Bytes>, Self::Error>;

    /// Drops the lists and reverse diffs of all blocks below `below`, and what is not reached without them
    /// ([`Retention`]). Gives the number of lists dropped.
    ///
    /// # Errors
    /// If the underlying storage fails.
    fn prune_below(&self, below: BlockNumber) -> Result<u64, Self::Error>;
}

/// Where raw access lists come from when the block did not bring one: a sidecar, the network, a folder of files.
pub trait BalSource: Send + Sync {
    /// Why the source can fail.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The raw RLP of the block's list, or `None` if this source has none. The bytes are not trusted: whoever asks
    /// checks their hash.
    ///
    /// # Errors
    /// If the source fails.
    fn bal(&self, block: BlockNumHash) -> Result<Option<Bytes>, Self::Error>;
}

/// The end of a leaf range that a page of `*_from` has reached: the key to go on from, or `None` at the key space's end.
pub fn next_key(key: &B256) -> Option<B256> {
    let next = U256::from_be_bytes(key.0).checked_add(U256::from(1))?;
    Some(B256::from(next))
}

/// Answers a batch of reads from what is at hand (`known`) and puts the rest, in the same order, to `below` in one batch.
pub(crate) fn through_batch<K: Copy, V: Default, E>(
    keys: &[K],
    mut known: impl FnMut(&K) -> Option<V>,
    below: impl FnOnce(&[K]) -> Result<Vec<V>, E>,
) -> Result<Vec<V>, E> {
    let (mut unknown, mut places) = (Vec::new(), Vec::new());
    let mut values = Vec::with_capacity(keys.len());
    for (place, key) in keys.iter().enumerate() {
        values.push(known(key).unwrap_or_else(|| {
            unknown.push(*key);
            places.push(place);
            V::default()
        }));
    }
    if unknown.is_empty() {
        return Ok(values);
    }
    for (place, value) in places.into_iter().zip(below(&unknown)?) {
        values[place] = value;
    }
    Ok(values)
}
