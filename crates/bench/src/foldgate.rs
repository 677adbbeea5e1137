//! foldgate as a contender: the one place of this crate that knows how resolution, fold, layers and stores go together.
//!
//! ```text
//! HashedPostState --resolve(view)--> LeafChanges --fold(view)--> FoldOutcome --> Layer, on top of the view
//!                                                                                  |  flush: several merged
//!                                                                                  v
//!                     view = layers over a snapshot with its caches <----------- store
//! ```
//!
//! Invariants:
//! 1. A block is measured from its unsorted changes to the view that its children read.
//! 2. The warm-up reads from the snapshot what a client can read before it knows the parent: the records and slots that
//!    the block's list names, and the rows on the way to them.

mod rows;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
};

use alloy_primitives::{B256, U256};
use foldgate_core::{
    BlockNumHash, BlockRecord, Cached, FoldOptions, Forest, Layer, Overlay, PageCache, Record, RecordLog, Redo,
    StateAnchor, TouchedAccount, TouchedSlot, TrieReader, TrieStore,
    affinity::keep_on_processor,
    fold, resolve_with,
    trie::{DEFAULT_NODE_BYTES, bulk::StateLoad},
};
use foldgate_record_log::{FileLog, Options};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tempfile::TempDir;

use self::rows::fewest_permutations;
use crate::{
    contender::{Advanced, AnyError, BenchError, Contender, Flushed},
    measure::{Cost, timed, timed_alone},
    workload::{Block, Scenario},
};

/// Opens stores of one backend.
pub trait Stores {
    /// The store.
    type Store: TrieStore;

    /// The backend's name.
    fn backend(&self) -> &'static str;

    /// Whether a store is files in a directory; others are gone when they are dropped.
    fn is_durable(&self) -> bool;

    /// Opens the store in a directory that is there.
    ///
    /// # Errors
    /// If it cannot be opened.
    fn open(&self, directory: &Path) -> Result<Self::Store, AnyError>;
}

type View<S> = Overlay<Cached<<S as TrieStore>::Snapshot>>;

/// See the module's description.
pub struct Foldgate<S: Stores> {
    /// `None` after a store could not be opened again. Closed before its directory goes.
    chain: Option<Chain<S::Store>>,
    directory: TempDir,
    stores: S,
    pool: ThreadPool,
    options: FoldOptions,
}

/// The state as blocks left it. Dropped in this order: what reads the store comes before it.
struct Chain<S: TrieStore> {
    view: View<S>,
    /// What the last block was folded into.
    parent_view: Option<View<S>>,
    base: Cached<S::Snapshot>,
    /// What the view has over the snapshot, oldest first.
    layers: Vec<Arc<Layer>>,
    flushing: Option<Flushing<S>>,
    log: Option<FileLog>,
    store: Arc<S>,
}

/// A flush that runs beside.
struct Flushing<S: TrieStore> {
    thread: JoinHandle<Result<Ended<S>, AnyError>>,
    blocks: usize,
}

/// What stands after a flush.
type Ended<S> = (Option<Cached<<S as TrieStore>::Snapshot>>, Cost);

impl<S: TrieStore> Chain<S> {
    /// Stands on the store's tip, with nothing cached.
    fn new(store: S) -> Result<Self, AnyError> {
        let snapshot = store.snapshot()?;
        let cache = PageCache::new(PAGE_CACHE_BYTES);
        cache.reset(snapshot.anchor().block);
        let tries = Forest::new(DEFAULT_NODE_BYTES).unloaded();
        Self::over(Cached::new(snapshot, Arc::new(cache)).with_tries(tries), store)
    }

    fn over(base: Cached<S::Snapshot>, store: S) -> Result<Self, AnyError> {
        let view = Overlay::new(base.clone(), Vec::new())?;
        let (layers, store) = (Vec::new(), Arc::new(store));
        Ok(Self { view, parent_view: None, base, layers, flushing: None, log: None, store })
    }

    /// The layer of a block on top of the view.
    fn fold(view: &View<S>, options: &FoldOptions, block: &Block) -> Result<Layer, AnyError> {
        let changes = resolve_with(&block.state, view, options)?;
        let outcome = fold(view, changes, options)?;
        Ok(Layer::new(view.anchor().block, name_of(block.number), outcome, None))
    }

    /// Writes layers to the store. Gives the base that has them, with the newest layer's tries.
    fn write(
        store: &S,
        base: &Cached<S::Snapshot>,
        layers: &[Arc<Layer>],
    ) -> Result<Option<Cached<S::Snapshot>>, AnyError> {
        let (Some(batch), Some(newest)) = (Layer::merged_batch(layers)?, layers.last()) else { return Ok(None) };
        store.commit(&batch)?;
        let snapshot = store.snapshot()?;
        base.cache().advance(batch.parent, snapshot.anchor().block, &batch.rows);
        Ok(Some(Cached::new(snapshot, Arc::clone(base.cache())).with_tries(newest.tries.clone())))
    }

    fn begin_flush(&mut self) {
        let (store, base, layers) = (Arc::clone(&self.store), self.base.clone(), self.layers.clone());
        let blocks = layers.len();
        let thread = thread::spawn(move || {
            let (ended, cost) = timed_alone(|| Self::write(&store, &base, &layers));
            Ok((ended?, cost))
        });
        self.flushing = Some(Flushing { thread, blocks });
    }

    /// Waits for the flush that runs beside.
    fn end_flush(&mut self) -> Result<Flushed, AnyError> {
        let Some(Flushing { thread, blocks }) = self.flushing.take() else { return Ok(Flushed::default()) };
        let (ended, cost) = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (stands, rest) = timed_alone(|| self.stand_on(ended, blocks));
        stands?;
        let (wall, cpu) = (cost.wall + rest.wall, cost.cpu + rest.cpu);
        Ok(Flushed { blocks: blocks as u64, cost: Cost { wall, cpu, ..cost } })
    }

    /// Puts the view over a new base, which has the oldest of its layers.
    fn stand_on(&mut self, base: Option<Cached<S::Snapshot>>, blocks: usize) -> Result<(), AnyError> {
        let Some(base) = base else { return Ok(()) };
        self.layers.drain(..blocks);
        self.parent_view = None;
        self.view = Overlay::new(base.clone(), self.layers.clone())?;
        self.base = base;
        if let Some(log) = &mut self.log {
            log.prune(self.base.anchor().block.number)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<Flushed, AnyError> {
        let before = self.end_flush()?;
        let blocks = self.layers.len();
        let (stands, cost) = timed(|| {
            let ended = Self::write(&self.store, &self.base, &self.layers)?;
            self.stand_on(ended, blocks)
        });
        stands?;
        let (wall, cpu) = (before.cost.wall + cost.wall, before.cost.cpu + cost.cpu);
        Ok(Flushed { blocks: before.blocks + blocks as u64, cost: Cost { wall, cpu, ..cost } })
    }

    /// Makes a durable record of the last block, as a pipeline does: its leaves, since it has no list, and that it is the
    /// head.
    fn acknowledge(&mut self, folder: &Path) -> Result<Option<Cost>, AnyError> {
        let Some(layer) = self.layers.last() else { return Ok(None) };
        let log = match &mut self.log {
            Some(log) => log,
            none => none.insert(FileLog::open(folder, Options::DEFAULT)?),
        };
        let (done, cost) = timed(|| {
            let redo = Redo::Diff { diff: layer.diff.forward(), bal: None };
            let record = BlockRecord { parent_hash: layer.parent.hash, anchor: layer.anchor, redo };
            log.append(&Record::Block(record))?;
            log.append(&Record::Canonical(layer.anchor.block))?;
            log.sync()
        });
        done?;
        Ok(Some(cost))
    }
}

impl<S: TrieStore> Drop for Chain<S> {
    /// The store's files may go as soon as this has ended.
    fn drop(&mut self) {
        if let Some(Flushing { thread, .. }) = self.flushing.take() {
            // Whoever drops it does not want to know any more how it ended.
            drop(thread.join());
        }
    }
}

impl<S: Stores> std::fmt::Debug for Foldgate<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Foldgate").field("backend", &self.stores.backend()).finish_non_exhaustive()
    }
}

/// The state at first, in the files of a store that nobody has open: copies of it are loaded faster.
#[derive(Debug)]
pub struct Template(TempDir);

impl Template {
    /// Loads a scenario's state into files; `None` if the backend has none.
    ///
    /// # Errors
    /// [`BenchError::Contender`] if the store fails, [`BenchError::Directory`] if there is no place for it.
    pub fn load<S: Stores>(stores: &S, scenario: &Scenario, place: &Path) -> Result<Option<Self>, BenchError> {
        if !stores.is_durable() {
            return Ok(None);
        }
        let directory = TempDir::new_in(place)?;
        let loaded = stores.open(directory.path()).and_then(|store| load(&store, scenario));
        loaded.map_err(|source| failed(stores, 0, source))?;
        Ok(Some(Self(directory)))
    }
}

fn failed<S: Stores>(stores: &S, block: u64, source: AnyError) -> BenchError {
    BenchError::Contender { name: NAME, backend: stores.backend(), block, source }
}

const NAME: &str = "foldgate";
/// The page cache's budget in bytes. Trie nodes in memory have their default one.
const PAGE_CACHE_BYTES: usize = 256 << 20;

fn load<S: TrieStore>(store: &S, scenario: &Scenario) -> Result<StateAnchor, AnyError> {
    let items = scenario.items().map(Ok::<_, Infallible>);
    Ok(StateLoad::new(items, name_of(0)).load_into(store)?)
}

/// A block's name: nothing here has a header.
fn name_of(number: u64) -> BlockNumHash {
    BlockNumHash::new(number, B256::from(U256::from(number + 1)))
}

impl<S: Stores> Foldgate<S> {
    /// Loads a scenario's state, or takes a copy of a template, into a directory of its own in `place`.
    ///
    /// # Errors
    /// [`BenchError::Contender`] if the store fails, [`BenchError::Directory`] if there is no place for it,
    /// [`BenchError::Threads`] if the threads do not start.
    pub fn new(
        stores: S,
        threads: usize,
        scenario: &Scenario,
        template: Option<&Template>,
        place: &Path,
    ) -> Result<Self, BenchError> {
        // On a machine that runs nothing else, each has a processor to itself; a scheduler may see to it late.
        let keep = |worker| _ = keep_on_processor(worker);
        let pool = ThreadPoolBuilder::new().num_threads(threads).start_handler(keep).build();
        let pool = pool.map_err(|source| BenchError::Threads { threads, source })?;
        let directory = TempDir::new_in(place)?;
        if let Some(Template(template)) = template {
            for file in fs::read_dir(template.path())? {
                let file = file?;
                fs::copy(file.path(), directory.path().join(file.file_name()))?;
            }
        }
        let opened = stores.open(directory.path()).and_then(|store| {
            if template.is_none() {
                load(&store, scenario)?;
            }
            Chain::new(store)
        });
        let chain = Some(opened.map_err(|source| failed(&stores, 0, source))?);
        let options = if threads == 1 { FoldOptions::SERIAL } else { FoldOptions::default() };
        Ok(Self { chain, directory, stores, pool, options })
    }
}

impl<S: Stores> Contender for Foldgate<S> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn backend(&self) -> &'static str {
        self.stores.backend()
    }

    fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    fn is_counted(&self) -> bool {
        true
    }

    fn warm_up(&mut self, block: &Block) -> Result<(), AnyError> {
        let Chain { base, view, layers, .. } = self.chain.as_mut().ok_or(Closed)?;
        let reads = block.reads.iter().map(|(hashed_address, slots)| (*hashed_address, slots.as_slice()));
        let mut reads: BTreeMap<_, _> = reads.collect();
        let mut touched = Vec::new();
        for (hashed_address, delta) in &block.state.accounts {
            let read = reads.remove(hashed_address).unwrap_or_default();
            let changed = delta.storage.keys().map(|slot| TouchedSlot { hashed_slot: *slot, changed: true });
            let read = read.iter().map(|slot| TouchedSlot { hashed_slot: *slot, changed: false });
            touched.push(TouchedAccount {
                hashed_address: *hashed_address,
                changed: true,
                slots: changed.chain(read).collect(),
            });
        }
        for (hashed_address, slots) in reads {
            let slots = slots.iter().map(|slot| TouchedSlot { hashed_slot: *slot, changed: false });
            touched.push(TouchedAccount { hashed_address, changed: false, slots: slots.collect() });
        }
        touched.sort_unstable_by_key(|account| account.hashed_address);
        touched.iter_mut().for_each(|account| account.slots.sort_unstable_by_key(|slot| slot.hashed_slot));
        let base = base.for_block();
        base.warm(&touched, view.tries().as_ref(), || false)?;
        *view = Overlay::new(base, layers.clone())?;
        Ok(())
    }

    fn advance(&mut self, block: &Block) -> Result<Advanced, AnyError> {
        let Chain { view, base, layers, parent_view, .. } = self.chain.as_mut().ok_or(Closed)?;
        let (parent, options) = (&*view, &self.options);
        let (next, cost) = self.pool.install(|| {
            timed(|| {
                layers.push(Arc::new(Chain::<S::Store>::fold(parent, options, block)?));
                Ok::<_, AnyError>(Overlay::new(base.clone(), layers.clone())?)
            })
        });
        *parent_view = Some(std::mem::replace(view, next?));
        Ok(Advanced { state_root: view.anchor().state_root, cost })
    }

    fn fewest_permutations(&mut self) -> Result<Option<u64>, AnyError> {
        let Chain { parent_view, layers, .. } = self.chain.as_ref().ok_or(Closed)?;
        let (Some(parent), Some(layer)) = (parent_view, layers.last()) else { return Ok(None) };
        Ok(Some(fewest_permutations(parent, &layer.diff, &layer.tries.updates(&layer.diff))?))
    }

    fn acknowledge(&mut self) -> Result<Option<Cost>, AnyError> {
        self.chain.as_mut().ok_or(Closed)?.acknowledge(&self.directory.path().join("log"))
    }

    fn flush_beside(&mut self) -> Result<Flushed, AnyError> {
        let chain = self.chain.as_mut().ok_or(Closed)?;
        let ended = chain.end_flush()?;
        chain.begin_flush();
        Ok(ended)
    }

    fn flush(&mut self) -> Result<Flushed, AnyError> {
        self.chain.as_mut().ok_or(Closed)?.flush()
    }

    fn drop_caches(&mut self) -> Result<bool, AnyError> {
        let chain = self.chain.as_mut().ok_or(Closed)?;
        chain.flush()?;
        if self.stores.is_durable() {
            self.chain = None;
            self.chain = Some(Chain::new(self.stores.open(self.directory.path())?)?);
        }
        Ok(true)
    }
}

/// A store could not be opened again after it had been closed.
#[derive(Debug, thiserror::Error)]
#[error("the store is closed")]
struct Closed;
