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
//! 4. Too many bytes between the durable tip and the head refuse new blocks, and hand everything there to the committer:
//!    room comes with its commits, which wait for nobody. What is beside the canonical chain is not counted, since no
//!    commit would make room of it.

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
    acknowledge::Acknowledge,
    config::Flush,
    durability::LogOrder,
    observe,
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
    permits: Arc<Permits>,
}

impl Backlog {
    pub(crate) fn new(head: BlockNumHash, log: Option<Sender<LogOrder>>, permits: Arc<Permits>) -> Self {
        Self { head, log, held: HashMap::new(), permits }
    }

    /// How many valid blocks are not in the store.
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// Counts a block that is in memory, and not in the store.
    pub(crate) fn hold(&mut self, layer: &Layer, acknowledge: Option<Acknowledge>) {
        let held = Held { bytes: layer_bytes(layer), since: Instant::now(), acknowledge };
        self.held.insert(layer.anchor.block.hash, held);
    }

    fn bytes<'a>(&self, blocks: impl IntoIterator<Item = &'a Arc<Layer>>) -> usize {
        let held = blocks.into_iter().filter_map(|layer| self.held.get(&layer.anchor.block.hash));
        held.map(|held| held.bytes).sum()
    }

    /// The store has the block.
    pub(crate) fn acknowledge_durable(&mut self, hash: &BlockHash) {
        if let Some(acknowledge) = self.held.remove(hash).and_then(|held| held.acknowledge) {
            // Nobody may be waiting.
            let _unasked = acknowledge.send(Ok(()));
        }
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
        } else if self.tree.is_durable(block) {
            // Executed once more: the store has it. Nobody may be waiting.
            let _unasked = acknowledge.send(Ok(()));
            drop(permit);
        } else {
            self.backlog.hold(layer, Some(acknowledge));
            if extends {
                self.queue(block, permit);
            } else {
                // Before the verdict is out: whoever has it finds the room.
                drop(permit);
            }
        }
        self.release();
    }

    /// Whether a block is canonical and was not handed to the committer.
    pub(super) fn is_canonical_in_memory(&self, block: BlockNumHash) -> bool {
        let path = self.tree.path_to(self.backlog.head.hash);
        path.is_some_and(|path| path.iter().any(|layer| layer.anchor.block == block))
    }

    /// Records that the head is what it is; nobody waits for that.
    pub(super) fn record_head(&self) {
        self.backlog.order(LogOrder::Canonical { head: self.backlog.head, reply: None });
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

    /// Hands to the committer what is due, and refuses new blocks while what waits for the store takes too much memory.
    pub(super) fn release(&mut self) {
        if self.broken.is_some() {
            return;
        }
        let Some(path) = self.tree.path_to(self.backlog.head.hash) else { return };
        let queued = self.tree.nodes.values().filter_map(|node| match node {
            Node::Committed(Committed { layer, durability: Durability::Queued { .. }, .. }) => Some(layer),
            _ => None,
        });
        let unflushed: Vec<_> = path.iter().chain(queued).collect();
        let bytes = self.backlog.bytes(unflushed.iter().copied());
        observe::unflushed(unflushed.len(), bytes);
        let full = bytes > self.config.max_unflushed_bytes;
        self.backlog.permits.set_full(full);
        let due = if full || !self.flush_waiters.is_empty() { path.len() } else { self.due(&path) };
        path[..due].iter().for_each(|layer| self.queue(layer.anchor.block, None));
    }

    /// How many of the canonical blocks in memory, oldest first, are to be flushed now.
    fn due(&self, path: &[Arc<Layer>]) -> usize {
        let Flush::Background(settings) = &self.config.flush else { return path.len() };
        let ready = &path[..path.len().saturating_sub(settings.keep_in_memory)];
        let oldest = ready.first().and_then(|layer| self.backlog.held.get(&layer.anchor.block.hash));
        let due = ready.len() >= settings.blocks.get()
            || !ready.is_empty() && self.backlog.bytes(ready) >= settings.bytes
            || oldest.is_some_and(|oldest| oldest.since.elapsed() >= settings.interval);
        if due { ready.len() } else { 0 }
    }

    /// Lets go of what the tree has let go of, and of the records that nobody will ask for.
    pub(super) fn sweep(&mut self) {
        // Whoever waits for one hears that it was given up.
        let nodes = &self.tree.nodes;
        self.backlog.held.retain(|hash, _| matches!(nodes.get(hash), Some(Node::Committed(_))));
        if let Some(up_to) = self.tree.tip().number.checked_sub(self.config.unwind_depth) {
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
