//! Races on every backend: figures of the right kind, roots that hold, and a contender that is wrong is found out.

use std::{path::Path, sync::Mutex};

use alloy_primitives::B256;
use foldgate_bench::{
    BenchError, Contender, Draw, Scale, Scenario, Workload,
    contender::{Advanced, AnyError},
    foldgate::{Foldgate, Stores},
    harness::{Lineup, Plan, race},
    report::write_table,
    workload::Block,
};
use foldgate_core::MemoryStore;
use foldgate_storage_mdbx::MdbxStore;
use foldgate_storage_redb::RedbStore;

#[derive(Debug, Clone, Copy)]
struct Memory;

impl Stores for Memory {
    type Store = MemoryStore;

    fn backend(&self) -> &'static str {
        "memory"
    }

    fn is_durable(&self) -> bool {
        false
    }

    fn open(&self, _: &Path) -> Result<MemoryStore, AnyError> {
        Ok(MemoryStore::new())
    }
}

#[derive(Debug, Clone, Copy)]
struct Redb;

impl Stores for Redb {
    type Store = RedbStore;

    fn backend(&self) -> &'static str {
        "redb"
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn open(&self, directory: &Path) -> Result<RedbStore, AnyError> {
        Ok(RedbStore::open(directory, foldgate_storage_redb::Options::default())?)
    }
}

#[derive(Debug, Clone, Copy)]
struct Mdbx;

impl Stores for Mdbx {
    type Store = MdbxStore;

    fn backend(&self) -> &'static str {
        "mdbx"
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn open(&self, directory: &Path) -> Result<MdbxStore, AnyError> {
        Ok(MdbxStore::open(directory, foldgate_storage_mdbx::Options::default())?)
    }
}

/// Permutations are counted for the whole process: races whose counts matter run alone.
static COUNTED: Mutex<()> = Mutex::new(());

const PLAN: Plan = Plan { blocks: 6, cold_blocks: 2, merged_blocks: 3, flush_beside: false, checks: 4 };

#[test]
fn every_workload_on_every_backend() {
    let _alone = COUNTED.lock();
    let place = tempfile::tempdir().unwrap();
    for workload in Workload::ALL {
        for draw in workload.draws() {
            let scenario = Scenario::new(workload, *draw, Scale::one_in(500));
            let mut lineup = Lineup::default();
            lineup.enter_foldgate(&Memory, &[1, 2], &scenario, place.path()).unwrap();
            lineup.enter_foldgate(&Redb, &[2], &scenario, place.path()).unwrap();
            lineup.enter_foldgate(&Mdbx, &[1], &scenario, place.path()).unwrap();
            #[cfg(feature = "peers")]
            lineup.enter_peers(&scenario).unwrap();
            let mut steps = 0;
            let lines = race(&scenario, lineup, &PLAN, || steps += 1).unwrap();
            assert_eq!(steps, PLAN.steps());
            let who: Vec<_> = lines.iter().map(|line| (line.name, line.backend, line.threads)).collect();
            let ours = [("memory", 1), ("memory", 2), ("redb", 2), ("mdbx", 1)];
            assert_eq!(who[..4], ours.map(|(backend, threads)| ("foldgate", backend, threads)));
            for line in &lines[..4] {
                assert_eq!((line.workload, line.blocks, line.cold_blocks), (workload.name(), 6, 2));
                assert_eq!(line.roots_checked, 4);
                let (hashed, fewest) = (line.permutations.unwrap(), line.permutations_min.unwrap());
                // Two medians of different blocks, of which each is small.
                assert!(hashed > fewest / 2 && hashed < 2 * fewest, "{workload}: {hashed} of {fewest}");
                assert!(line.gate_ms_min <= line.gate_ms_median && line.total_ms_min <= line.total_ms_median);
                assert!(line.cold_ms_median.unwrap() > 0.0 && line.flush_cpu_ms.unwrap() > 0.0);
                assert!(
                    line.acknowledged_ms_min > line.gate_ms_min && line.acknowledged_ms_median > line.gate_ms_median
                );
                assert!(line.pe.unwrap() > 0.0 && line.floor_ratio.unwrap() > 0.0);
            }
            assert!(lines.iter().all(|line| line.roots_checked > 0));
            let mut table = Vec::new();
            write_table(&lines, &mut table).unwrap();
            assert_eq!(String::from_utf8(table).unwrap().lines().count(), 4 + lines.len());
        }
    }
}

#[test]
fn blocks_go_on_beside_a_flush() {
    let _alone = COUNTED.lock();
    let place = tempfile::tempdir().unwrap();
    let scenario = Scenario::new(Workload::W1, Draw::Uniform, Scale::one_in(500));
    let plan = Plan { blocks: 9, flush_beside: true, checks: 9, ..PLAN };
    let mut lineup = Lineup::default();
    lineup.enter_foldgate(&Redb, &[2], &scenario, place.path()).unwrap();
    lineup.enter_foldgate(&Mdbx, &[1], &scenario, place.path()).unwrap();
    for line in race(&scenario, lineup, &plan, || {}).unwrap() {
        assert!(line.flush_beside);
        assert_eq!((line.roots_checked, line.blocks, line.cold_blocks), (9, 9, 2));
        assert!(line.flush_cpu_ms.unwrap() > 0.0);
    }
}

#[test]
fn a_flush_beside_ends_with_the_next_one() {
    let _alone = COUNTED.lock();
    let place = tempfile::tempdir().unwrap();
    let scenario = Scenario::new(Workload::W1, Draw::Uniform, Scale::one_in(500));
    let mut one = Foldgate::new(Redb, 1, &scenario, None, place.path()).unwrap();
    let mut blocks = scenario.blocks();
    let mut take = |one: &mut Foldgate<Redb>, count| {
        for block in blocks.by_ref().take(count) {
            one.advance(&block).unwrap();
        }
    };
    take(&mut one, 3);
    assert_eq!(one.flush_beside().unwrap().blocks, 0, "it was waited for");
    take(&mut one, 2);
    assert_eq!(one.flush_beside().unwrap().blocks, 3);
    take(&mut one, 1);
    assert_eq!(one.flush().unwrap().blocks, 3, "those of the flush beside, and the last one");
}

/// Always gives the same root.
#[derive(Debug)]
struct Stubborn;

impl Contender for Stubborn {
    fn name(&self) -> &'static str {
        "stubborn"
    }

    fn backend(&self) -> &'static str {
        "none"
    }

    fn threads(&self) -> usize {
        1
    }

    fn warm_up(&mut self, _: &Block) -> Result<(), AnyError> {
        Ok(())
    }

    fn advance(&mut self, _: &Block) -> Result<Advanced, AnyError> {
        Ok(Advanced { state_root: B256::ZERO, cost: Default::default() })
    }

    fn drop_caches(&mut self) -> Result<bool, AnyError> {
        Ok(false)
    }
}

#[test]
fn a_wrong_root_ends_the_race_and_is_named() {
    let scenario = Scenario::new(Workload::W1, Draw::Uniform, Scale::one_in(1000));
    for alone in [true, false] {
        let mut lineup = Lineup::default();
        if !alone {
            lineup.enter_foldgate(&Memory, &[1], &scenario, &std::env::temp_dir()).unwrap();
        }
        lineup.enter(|| Ok(Stubborn)).unwrap();
        let error = race(&scenario, lineup, &PLAN, || ()).unwrap_err();
        let BenchError::WrongRoot { name, block, got, .. } = error else { panic!("{error}") };
        assert_eq!((name, got), ("stubborn", B256::ZERO));
        // Alone, it is found out at the first check of the ledger.
        assert_eq!(block, if alone { 4 } else { 1 });
    }
}

#[cfg(not(feature = "peers"))]
#[test]
fn peers_that_were_not_built_are_refused() {
    let scenario = Scenario::new(Workload::W1, Draw::Uniform, Scale::one_in(1000));
    let error = Lineup::default().enter_peers(&scenario).unwrap_err();
    assert!(error.to_string().contains("cargo feature `peers`"));
}
