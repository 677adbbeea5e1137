//! Rows are made on other threads than the one that writes them.
//!
//! ```text
//! thread 3        thread 2               calling thread
//! items --------> tries, hashes -------> TrieStore::load
//!        batches                 pieces
//! ```
//!
//! Why it is sound: each thread owns its part of the load and hands on values. The order of items, and so of rows, is
//! that of one thread, since each channel has one sender and one receiver.
//!
//! Invariants:
//! 1. A state ends with the message that says so. A channel that ends without it fails the load.
//! 2. When the store stops taking rows, for whatever reason, the channels close and the threads end.
//! 3. A panic on one of the threads reaches the caller, after the store has given up.

use std::{
    panic::resume_unwind,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, Scope, ScopedJoinHandle},
    vec,
};

use alloy_primitives::B256;

use super::{BulkError, End, LoadItem, LoadObserver, Pieces, StateLoad, progress::Watch, tries::Piece};
use crate::{
    block::StateAnchor,
    store::{LoadError, LoadSource, Rows, TrieStore},
};

/// How many items are handed on together at most.
const BATCH_ITEMS: usize = 1024;
/// A batch ends as soon as its codes have this many bytes.
const BATCH_CODE_BYTES: usize = 1 << 20;
/// How many batches wait at most.
const BATCHES_AHEAD: usize = 8;
/// How many pieces wait at most, beside the one that is made and the one that is written.
const PIECES_AHEAD: usize = 2;

/// What comes to the calling thread.
enum Made<E> {
    Piece(Piece),
    End { state_root: B256 },
    Failed(BulkError<E>),
}

/// What comes from the thread that reads items.
enum Batch<E> {
    Items(Vec<LoadItem>),
    Failed(BulkError<E>),
    End,
}

/// Loads with two threads beside the calling one, or with one.
pub(super) fn load<S, I, E, O>(
    store: &S,
    load: StateLoad<I, O>,
) -> Result<StateAnchor, LoadError<S::Error, BulkError<E>>>
where
    S: TrieStore,
    I: Iterator<Item = Result<LoadItem, E>> + Send,
    E: std::error::Error + Send + Sync + 'static,
    O: LoadObserver,
{
    let StateLoad { mut items, pieces, end, threads, watch } = load;
    thread::scope(|scope| {
        let (made_out, made) = sync_channel(PIECES_AHEAD);
        let mut running = Vec::new();
        if threads == 2 {
            let next = move || items.next().map(|item| item.map_err(BulkError::Source));
            running.push(spawn(scope, move || make_pieces(pieces, next, &made_out))?);
        } else {
            let (batches_out, batches) = sync_channel(BATCHES_AHEAD);
            running.push(spawn(scope, move || read_items(items, &batches_out))?);
            let mut batches = Batches { batches, items: Vec::new().into_iter(), ended: false };
            running.push(spawn(scope, move || make_pieces(pieces, move || batches.next(), &made_out))?);
        }
        // The source, and with it the receiver, is gone when the store returns: see invariant 2.
        let result = store.load(Ahead { made, end, state_root: None, watch });
        for thread in running {
            if let Err(panic) = thread.join() {
                resume_unwind(panic);
            }
        }
        result
    })
}

fn spawn<'scope, S, E>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, ()>, LoadError<S, BulkError<E>>> {
    let started = thread::Builder::new().name("foldgate-load".to_owned()).spawn_scoped(scope, work);
    started.map_err(|error| LoadError::Source(BulkError::Thread(error.kind())))
}

/// Reads items until they end, one fails, or nobody wants them any more.
fn read_items<E>(items: impl Iterator<Item = Result<LoadItem, E>>, out: &SyncSender<Batch<E>>) {
    let mut batch = Vec::with_capacity(BATCH_ITEMS);
    let mut code_bytes = 0;
    for item in items {
        match item {
            Ok(item) => {
                if let LoadItem::Code { code, .. } = &item {
                    code_bytes += code.len();
                }
                batch.push(item);
            }
            Err(error) => {
                let _gone =
                    out.send(Batch::Items(batch)).and_then(|()| out.send(Batch::Failed(BulkError::Source(error))));
                return;
            }
        }
        if batch.len() == BATCH_ITEMS || code_bytes >= BATCH_CODE_BYTES {
            code_bytes = 0;
            let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH_ITEMS));
            if out.send(Batch::Items(full)).is_err() {
                return;
            }
        }
    }
    let _gone = out.send(Batch::Items(batch)).and_then(|()| out.send(Batch::End));
}

/// The items out of the batches.
struct Batches<E> {
    batches: Receiver<Batch<E>>,
    items: vec::IntoIter<LoadItem>,
    ended: bool,
}

impl<E> Batches<E> {
    fn next(&mut self) -> Option<Result<LoadItem, BulkError<E>>> {
        loop {
            if let Some(item) = self.items.next() {
                return Some(Ok(item));
            }
            if self.ended {
                return None;
            }
            match self.batches.recv() {
                Ok(Batch::Items(items)) => self.items = items.into_iter(),
                Ok(Batch::End) => self.ended = true,
                Ok(Batch::Failed(error)) => return Some(Err(error)),
                Err(_) => return Some(Err(BulkError::Unfinished)),
            }
        }
    }
}

/// Makes pieces until the items end, something is wrong with them, or nobody wants pieces any more.
fn make_pieces<E>(
    mut pieces: Pieces,
    mut next_item: impl FnMut() -> Option<Result<LoadItem, BulkError<E>>>,
    out: &SyncSender<Made<E>>,
) {
    loop {
        let made = match (pieces.next(&mut next_item), pieces.state_root) {
            (Ok(Some(piece)), _) => Made::Piece(piece),
            (Ok(None), Some(state_root)) => Made::End { state_root },
            (Ok(None), None) => Made::Failed(BulkError::Unfinished),
            (Err(error), _) => Made::Failed(error),
        };
        let is_last = !matches!(made, Made::Piece(_));
        if out.send(made).is_err() || is_last {
            return;
        }
    }
}

/// The source that the store sees.
struct Ahead<E, O> {
    made: Receiver<Made<E>>,
    end: End,
    state_root: Option<B256>,
    watch: Watch<O>,
}

impl<E, O> LoadSource for Ahead<E, O>
where
    E: std::error::Error + Send + Sync + 'static,
    O: LoadObserver,
{
    type Error = BulkError<E>;

    fn next_rows(&mut self) -> Result<Option<Rows>, Self::Error> {
        self.watch.written();
        if self.state_root.is_some() {
            return Ok(None);
        }
        match self.made.recv() {
            Ok(Made::Piece(piece)) => Ok(self.watch.give(Some(piece))),
            Ok(Made::End { state_root }) => {
                self.state_root = Some(state_root);
                Ok(self.watch.give(None))
            }
            Ok(Made::Failed(error)) => Err(error),
            Err(_) => Err(BulkError::Unfinished),
        }
    }

    fn anchor(&mut self) -> Result<StateAnchor, Self::Error> {
        self.end.anchor(self.state_root)
    }
}
