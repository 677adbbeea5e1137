//! On its way to the disk: the records of valid blocks, the canonical head in memory, and when its ancestors go to the
//! store.
//!
//! ```text
//!   durable tip --- queued_head --- .. ready .. --- .. kept in memory .. --- head
//!      store         committer                    the newest few: a small reorganisation
//!                                                 moves `head` and touches no store
//! ```
//!
//! Invariants:
//! 1. `Backlog::head` is the newest canonical block. It descends from `Tree::queued_head`, or is it.
//! 2. `Backlog::held` has exactly the valid blocks that are in memory and not in the store.
//! 3. Without a log every canonical block is handed to the committer at once: nothing but the store keeps it.
//! 4. Too many bytes held refuse new blocks, and hand everything canonical to the committer. Neither waits for the other,
//!    and blocks in flight go on: there is no cycle of waiting.

use std::{
    collections::HashMap,
    mem::size_of,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, never, tick};
use foldgate_core::{AccountChange, BlockHash, BlockNumHash, Layer, SlotChange, TrieStore};

use super::Calculator;
use crate::{
    config::Flush,
    durability::{Acknowledge, LogOrder},
    permits::{Permit, Permits},
    pipeline::CanonicalError,
    tree::{Committed, Durability, Node},
    verdict::Failure,
};

/// A valid block that is not in the store.
#[derive(Debug)]
struct Held {
    bytes: usize,
    since: Instant,
    /// Without a log: told when the store has the block.
    acknowledge: Option<Acknowledge>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Backlog {
    pub(crate) head: BlockNumHash,
    log: Option<Sender<LogOrder>>,
    held: HashMap<BlockHash, Held>,
    bytes: usize,
    permits: Arc<Permits>,
}

impl Backlog {
    pub(crate) fn new(head: BlockNumHash, log: Option<Sender<LogOrder>>, permits: Arc<Permits>) -> Self {
        Self { head, log, held: HashMap::new(), bytes: 0, permits }
    }

    /// Counts a block that was recovered.
    pub(crate) fn hold(&mut self, layer: &Layer, acknowledge: Option<Acknowledge>) {
        let held = Held { bytes: layer_bytes(layer), since: Instant::now(), acknowledge };
        self.bytes += held.bytes;
        self.held.insert(layer.anchor.block.hash, held);
    }

    fn let_go(&mut self, hash: &BlockHash) -> Option<Acknowledge> {
        let held = self.held.remove(hash)?;
        self.bytes -= held.bytes;
        held.acknowledge
    }

    /// Hands an order to the log, if there is one.
    fn order(&self, order: LogOrder) {
        if let Some(log) = &self.log {
            // The log's thread ends only after this sender is gone.
            let _unheard = log.send(order);
        }
    }
}

/// How much memory a layer takes, about: its leaves, code and list. Its tries have a budget of their own.
fn layer_bytes(layer: &Layer) -> usize {
    let account = size_of::<AccountChange>() + size_of::<BlockHash>();
    layer.diff.accounts.len() * account
        + layer.diff.slot_count() * size_of::<SlotChange>()
        + layer.diff.codes.iter().map(|(_, code)| code.len()).sum::<usize>()
        + layer.bal.as_ref().map_or(0, |bal| bal.len())
}

/// Ticks when blocks may have waited for long enough.
pub(super) fn ticks(flush: &Flush) -> Receiver<Instant> {
    const SHORTEST: Duration = Duration::from_millis(5);
    match flush {
        Flush::Background(settings) if Instant::now().checked_add(settings.interval).is_some() => {
            tick(settings.interval.max(SHORTEST))
        }
        _ => never(),
    }
}

impl<S: TrieStore> Calculator<S> {
    /// Takes in a block that was just judged valid: records it, and moves the head where it `extends` it.
    pub(super) fn take_in(
        &mut self,
        layer: &Arc<Layer>,
        by_list: bool,
        extends: bool,
        permit: Option<Permit>,
        acknowledge: Acknowledge,
    ) {
        let block = layer.anchor.block;
        if extends {
            self.backlog.head = block;
        }
        if self.backlog.log.is_some() {
            self.backlog.hold(layer, None);
            self.backlog.order(LogOrder::Block { layer: Arc::clone(layer), by_list, acknowledge, permit });
            if extends {
                self.backlog.order(LogOrder::Canonical { head: block, reply: None });
            }
            self.release();
        } else {
            self.backlog.hold(layer, Some(acknowledge));
            if extends {
                self.queue(block, permit);
            } else {
                // Before the verdict is out: whoever has it finds the room.
                drop(permit);
            }
            self.note_room();
        }
    }

    /// Makes a committed block the head, if the head can move there. Gives the block.
    pub(super) fn move_head(&mut self, head: BlockHash) -> Result<BlockNumHash, CanonicalError> {
        let durable = self.tree.tip();
        let (block, queued) = match self.tree.nodes.get(&head) {
            _ if head == durable.hash => return Ok(durable),
            Some(Node::InFlight(entry)) => return Err(CanonicalError::NotJudged(entry.block())),
            None => return Err(CanonicalError::Unknown(head)),
            Some(Node::Committed(Committed { layer, durability, .. })) => {
                (layer.anchor.block, matches!(durability, Durability::Queued { .. }))
            }
        };
        // An ancestor of the head is canonical already, and the head does not move back to it.
        let canonical = self.tree.path_to(self.backlog.head.hash);
        let is_canonical = |path: Vec<Arc<Layer>>| path.iter().any(|layer| layer.anchor.block == block);
        if !queued && !canonical.is_some_and(is_canonical) {
            if self.tree.path_to(head).is_none() {
                return Err(CanonicalError::NotADescendant { block, of: self.tree.queued_head });
            }
            self.backlog.head = block;
        }
        Ok(block)
    }

    /// Has `reply` answered when it is certain that the head stays what it is.
    pub(super) fn await_head(&mut self, block: BlockNumHash, reply: Sender<Result<(), CanonicalError>>) {
        let by_record = matches!(self.config.flush, Flush::Background(_)) && self.broken.is_none();
        let waiter = match &self.backlog.log {
            Some(_) if by_record => Some(reply),
            _ => {
                self.canonical_waiters.push((block, reply));
                None
            }
        };
        self.backlog.order(LogOrder::Canonical { head: self.backlog.head, reply: waiter });
    }

    /// Hands to the committer what is due.
    pub(super) fn release(&mut self) {
        self.note_room();
        if self.broken.is_some() {
            return;
        }
        let Some(path) = self.tree.path_to(self.backlog.head.hash) else { return };
        let due = self.due(&path);
        path[..due].iter().for_each(|layer| self.queue(layer.anchor.block, None));
    }

    /// How many of the canonical blocks in memory, oldest first, are to be flushed now.
    fn due(&self, path: &[Arc<Layer>]) -> usize {
        let Flush::Background(settings) = &self.config.flush else { return path.len() };
        if self.is_full() || !self.flush_waiters.is_empty() {
            return path.len();
        }
        let ready = &path[..path.len().saturating_sub(settings.keep_in_memory)];
        let held = || ready.iter().filter_map(|layer| self.backlog.held.get(&layer.anchor.block.hash));
        let bytes: usize = held().map(|held| held.bytes).sum();
        let waited = held().next().map(|held| held.since.elapsed());
        let due = ready.len() >= settings.blocks.get()
            || bytes >= settings.bytes
            || waited.is_some_and(|waited| waited >= settings.interval);
        if due { ready.len() } else { 0 }
    }

    fn is_full(&self) -> bool {
        self.backlog.bytes > self.config.max_unflushed_bytes
    }

    fn note_room(&self) {
        self.backlog.permits.set_full(self.is_full());
    }

    /// The store has these blocks.
    pub(super) fn note_durable(&mut self, layers: &[Arc<Layer>]) {
        for layer in layers {
            if let Some(acknowledge) = self.backlog.let_go(&layer.anchor.block.hash) {
                // Nobody may be waiting.
                let _unasked = acknowledge.send(Ok(()));
            }
        }
    }

    /// Lets go of what the tree has let go of, and of the records that nobody will ask for.
    pub(super) fn sweep(&mut self) {
        let gone = |hash: &&BlockHash| !matches!(self.tree.nodes.get(*hash), Some(Node::Committed(_)));
        let gone: Vec<_> = self.backlog.held.keys().filter(gone).copied().collect();
        for hash in gone {
            // Dropped: whoever waits hears that the block was given up.
            drop(self.backlog.let_go(&hash));
        }
        if let Some(up_to) = self.tree.tip().number.checked_sub(self.config.keep_records) {
            self.backlog.order(LogOrder::Prune(up_to));
        }
        self.release();
    }

    /// Nothing will be durable any more.
    pub(super) fn give_up_backlog(&mut self, failure: &Failure) {
        for held in self.backlog.held.values_mut() {
            if let Some(acknowledge) = held.acknowledge.take() {
                let _unasked = acknowledge.send(Err(failure.clone()));
            }
        }
        // Callers get to hear why.
        self.backlog.permits.set_full(false);
    }
}
