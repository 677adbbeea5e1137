//! How far a load has come.
//!
//! Invariant: what is counted was handed to the store and written into its transaction. It becomes durable with all the
//! rest, at the load's end.

use super::tries::Piece;
use crate::store::Rows;

/// What of a state is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LoadProgress {
    /// Accounts.
    pub accounts: u64,
    /// Slots.
    pub slots: u64,
    /// Codes.
    pub codes: u64,
    /// Rows of trie nodes.
    pub nodes: u64,
    /// The bytes of all these rows with their keys, roughly, before the store packs them.
    pub bytes: u64,
    /// Whether these are all: what is left is the store's commit.
    pub complete: bool,
}

/// Is told how far a load has come: after each piece, and once more when all is written. `()` does not listen.
pub trait LoadObserver {
    /// The load has come so far.
    fn progress(&mut self, progress: &LoadProgress);
}

impl LoadObserver for () {
    fn progress(&mut self, _: &LoadProgress) {}
}

impl<F: FnMut(&LoadProgress)> LoadObserver for F {
    fn progress(&mut self, progress: &LoadProgress) {
        self(progress);
    }
}

/// Counts pieces for an observer. A piece is written when the next one is asked for.
#[derive(Debug)]
pub(super) struct Watch<O> {
    observer: O,
    progress: LoadProgress,
    /// Whether `progress` counts a piece that is being written now.
    pending: bool,
}

impl<O> Watch<O> {
    pub(super) fn new(observer: O) -> Self {
        Self { observer, progress: LoadProgress::default(), pending: false }
    }
}

impl<O: LoadObserver> Watch<O> {
    /// The piece given last was written.
    pub(super) fn written(&mut self) {
        if std::mem::take(&mut self.pending) {
            self.observer.progress(&self.progress);
        }
    }

    /// Gives a piece out, or the end.
    pub(super) fn give(&mut self, piece: Option<Piece>) -> Option<Rows> {
        let Some(Piece { rows, bytes }) = piece else {
            self.progress.complete = true;
            self.observer.progress(&self.progress);
            return None;
        };
        let LoadProgress { accounts, slots, codes, nodes, bytes: all_bytes, .. } = &mut self.progress;
        *accounts += rows.accounts.len() as u64;
        *slots += rows.slots.len() as u64;
        *codes += rows.codes.len() as u64;
        *nodes += rows.nodes.len() as u64;
        *all_bytes += bytes as u64;
        self.pending = true;
        Some(rows)
    }
}
