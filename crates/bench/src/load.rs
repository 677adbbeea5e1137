//! The time of a bulk load: generated plain accounts, sorted, into a fresh store.
//!
//! Invariants:
//! 1. Keys are sorted before the clock starts; making them again from their numbers, some 100 ns each, is part of the
//!    time.
//! 2. The store's root is held to alloy-trie's `HashBuilder` over all accounts.

use std::{
    convert::Infallible,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use alloy_primitives::B256;
use foldgate_core::{
    BlockNumHash,
    trie::bulk::{LoadItem, LoadObserver, LoadProgress, StateLoad},
};
use serde::Serialize;
use tempfile::TempDir;

use crate::{
    contender::{AnyError, BenchError},
    foldgate::Stores,
    ledger,
    measure::{mebibytes, resident_bytes, timed},
    report::rounded,
    workload::{Population, initial_account},
};

/// Accounts to be loaded.
#[derive(Debug, Clone)]
pub struct Accounts {
    population: Population,
    sorted_in: Duration,
    state_root: B256,
}

/// What a load took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadLine {
    /// Where the accounts went.
    pub backend: &'static str,
    /// How many there were.
    pub accounts: u64,
    /// The time from the open, empty store to the loaded one.
    pub seconds: f64,
    /// The CPU time of it.
    pub cpu_seconds: f64,
    /// How many rows were written, those of the tries included.
    pub rows: u64,
    /// How many of them are the tries'.
    pub trie_rows: u64,
    /// The store's files in the end.
    pub file_mb: f64,
    /// The largest resident memory of the process that was seen during the load; mapped files count.
    pub peak_rss_mb: f64,
    /// The resident memory before the load.
    pub rss_before_mb: f64,
    /// The time before, in which the keys were sorted.
    pub sort_seconds: f64,
    /// The root of the state.
    pub state_root: B256,
}

impl Accounts {
    /// Sorts so many accounts, and computes the root that they should have.
    pub fn new(count: u32) -> Self {
        let start = Instant::now();
        let population = Population::accounts(count);
        let sorted_in = start.elapsed();
        let state_root = ledger::root_of_accounts(&population);
        Self { population, sorted_in, state_root }
    }

    /// Loads them into a store in a new directory in `place`, which goes afterwards. `observer` hears how far the
    /// load has come.
    ///
    /// # Errors
    /// [`BenchError::Contender`] if the store fails, [`BenchError::WrongRoot`] if its root is wrong,
    /// [`BenchError::Directory`] if there is no place for it.
    pub fn load<S: Stores>(
        &self,
        stores: &S,
        place: &Path,
        mut observer: impl LoadObserver,
    ) -> Result<LoadLine, BenchError> {
        let directory = TempDir::new_in(place)?;
        let rss_before = resident_bytes();
        let (name, backend) = ("load", stores.backend());
        let failed = |source: AnyError| BenchError::Contender { name, backend, block: 0, source };
        let store = stores.open(directory.path()).map_err(failed)?;
        let (mut progress, mut peak) = (LoadProgress::default(), rss_before);
        let observe = |now: &LoadProgress| {
            progress = *now;
            peak = peak.max(resident_bytes());
            observer.progress(now);
        };
        let items = self.items().map(Ok::<_, Infallible>);
        let load = StateLoad::new(items, BlockNumHash::new(0, B256::ZERO)).observed_by(observe);
        let (loaded, cost) = timed(|| load.load_into(&store));
        let got = loaded.map_err(|error| failed(error.into()))?.state_root;
        if got != self.state_root {
            return Err(BenchError::WrongRoot { name, backend, block: 0, got, expected: self.state_root });
        }
        drop(store);
        let mut bytes = 0;
        for file in fs::read_dir(directory.path())? {
            bytes += file?.metadata()?.len();
        }
        let LoadProgress { accounts, slots, codes, nodes, .. } = progress;
        Ok(LoadLine {
            backend,
            accounts: self.population.len() as u64,
            seconds: rounded(cost.wall.as_secs_f64()),
            cpu_seconds: rounded(cost.cpu.as_secs_f64()),
            rows: accounts + slots + codes + nodes,
            trie_rows: nodes,
            file_mb: rounded(mebibytes(bytes)),
            peak_rss_mb: rounded(mebibytes(peak.max(resident_bytes()))),
            rss_before_mb: rounded(mebibytes(rss_before)),
            sort_seconds: rounded(self.sorted_in.as_secs_f64()),
            state_root: got,
        })
    }

    fn items(&self) -> impl Iterator<Item = LoadItem> + use<> {
        let info = |(hashed_address, number)| LoadItem::Account { hashed_address, info: initial_account(number) };
        self.population.in_order().map(info)
    }
}
