//! The race: block by block, all contenders one after the other.
//!
//! Blocks are measured in turn with and without the warm-up before them (`gate` and `total`), and every few blocks what
//! came up is flushed, between blocks or beside them. So the caches before a block are what the last blocks left, and
//! nothing is measured twice. In the end come blocks of which each finds the process's caches empty (`cold`).
//!
//! Invariants:
//! 1. Every block is taken by every contender, each once; who begins changes from block to block.
//! 2. Roots are compared and memory is looked at outside of what is measured.

use std::{path::Path, time::Duration};

use alloy_primitives::B256;
use foldgate_keccak::count_permutations;

use crate::{
    contender::{AnyError, BenchError, Contender},
    foldgate::{Foldgate, Stores, Template},
    measure::{Cost, Permutation, resident_bytes},
    report::Line,
    workload::{Block, Scenario},
};

/// How often the fewest permutations of a block are computed: they differ little from block to block.
const COUNT_EVERY: u32 = 8;

/// How many blocks are flushed at once unless told otherwise.
pub const MERGED_BLOCKS: u32 = 32;

/// A state of more leaves than this is large.
const LARGE: u64 = 8_000_000;

/// How long a race is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// How many blocks are measured with the warm-up before them, and as many without it.
    pub blocks: u32,
    /// How many blocks are measured with empty caches.
    pub cold_blocks: u32,
    /// How many blocks are flushed at once.
    pub merged_blocks: u32,
    /// Whether flushes run beside the blocks that follow, instead of between blocks. Contenders would disturb each other:
    /// it is for one.
    pub flush_beside: bool,
    /// How often roots are held to the ledger's.
    pub checks: u32,
}

impl Plan {
    /// For so many blocks: a tenth as many cold ones, flushed [`MERGED_BLOCKS`] at a time, eight checks, or three where
    /// a rebuild of the state takes long.
    pub fn new(scenario: &Scenario, blocks: u32) -> Self {
        let leaves = scenario.accounts() + scenario.slots();
        let checks = if leaves > LARGE { 3 } else { 8 };
        Self { blocks, cold_blocks: blocks.div_ceil(10), merged_blocks: MERGED_BLOCKS, flush_beside: false, checks }
    }

    /// How many blocks there are in all.
    pub const fn steps(&self) -> u64 {
        2 * self.blocks as u64 + self.cold_blocks as u64
    }

    /// Whether roots are held to the ledger's at this step: after every part of the race, so at its end too.
    const fn checks_at(&self, step: u64) -> bool {
        let (checks, steps) = (self.checks as u64, self.steps());
        step * checks / steps != (step + 1) * checks / steps
    }

    const fn phase(&self, step: u64) -> Phase {
        match step {
            step if step >= 2 * self.blocks as u64 => Phase::Cold,
            step if step.is_multiple_of(2) => Phase::Gate,
            _ => Phase::Total,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Gate,
    Total,
    Cold,
}

/// What was measured of one contender.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) gate: Vec<Cost>,
    /// `gate`, and until the block is acknowledged.
    pub(crate) acknowledged: Vec<Duration>,
    pub(crate) total: Vec<Cost>,
    pub(crate) cold: Vec<Cost>,
    pub(crate) flush: Cost,
    pub(crate) flushed: u64,
    pub(crate) roots_checked: u32,
    /// By how much the process grew while this contender was at work.
    pub(crate) resident: i64,
}

struct Entry {
    contender: Box<dyn Contender>,
    figures: Figures,
}

impl Entry {
    fn failed(&self, block: u64) -> impl FnOnce(AnyError) -> BenchError + use<> {
        let (name, backend) = (self.contender.name(), self.contender.backend());
        move |source| BenchError::Contender { name, backend, block, source }
    }

    /// Lets the contender work, and keeps its memory's account.
    fn work<T>(
        &mut self,
        block: u64,
        work: impl FnOnce(&mut dyn Contender, &mut Figures) -> Result<T, AnyError>,
    ) -> Result<T, BenchError> {
        let before = resident_bytes();
        let done = work(&mut *self.contender, &mut self.figures);
        self.figures.resident += resident_bytes() as i64 - before as i64;
        done.map_err(self.failed(block))
    }

    /// Takes the block. Gives the root after it, unless the contender only followed.
    fn take(&mut self, block: &Block, phase: Phase, checked: bool) -> Result<Option<B256>, BenchError> {
        self.work(block.number, |contender, figures| {
            if contender.is_slow() && !checked {
                contender.follow(block)?;
                return Ok(None);
            }
            let dropped = match phase {
                Phase::Gate => contender.warm_up(block).map(|()| true),
                Phase::Total => Ok(true),
                Phase::Cold => contender.drop_caches(),
            }?;
            let advanced = contender.advance(block)?;
            match phase {
                // Nothing is warmed up or dropped in so few blocks: they are all alike.
                _ if contender.is_slow() => {
                    figures.gate.push(advanced.cost);
                    figures.total.push(advanced.cost);
                }
                Phase::Gate => {
                    figures.gate.push(advanced.cost);
                    let acknowledged = contender.acknowledge()?.map(|cost| advanced.cost.wall + cost.wall);
                    figures.acknowledged.extend(acknowledged);
                }
                Phase::Total => figures.total.push(advanced.cost),
                Phase::Cold if dropped => figures.cold.push(advanced.cost),
                Phase::Cold => {}
            }
            Ok(Some(advanced.state_root))
        })
    }

    fn flush(&mut self, block: u64, beside: bool) -> Result<(), BenchError> {
        self.work(block, |contender, figures| {
            let flushed = if beside { contender.flush_beside() } else { contender.flush() }?;
            figures.flushed += flushed.blocks;
            figures.flush.wall += flushed.cost.wall;
            figures.flush.cpu += flushed.cost.cpu;
            Ok(())
        })
    }

    fn check(&mut self, block: u64, got: B256, expected: B256, by_ledger: bool) -> Result<(), BenchError> {
        if got != expected {
            let (name, backend) = (self.contender.name(), self.contender.backend());
            return Err(BenchError::WrongRoot { name, backend, block, got, expected });
        }
        self.figures.roots_checked += u32::from(by_ledger);
        Ok(())
    }
}

/// Who takes part.
#[derive(Default)]
pub struct Lineup(Vec<Entry>);

impl std::fmt::Debug for Lineup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|entry| entry.contender.name())).finish()
    }
}

impl Lineup {
    /// Makes a contender with its state, and lets it take part. Its memory counts from here on.
    ///
    /// # Errors
    /// If the contender cannot be made.
    pub fn enter<C: Contender + 'static>(
        &mut self,
        make: impl FnOnce() -> Result<C, BenchError>,
    ) -> Result<(), BenchError> {
        let before = resident_bytes();
        let contender = Box::new(make()?);
        let resident = resident_bytes() as i64 - before as i64;
        self.0.push(Entry { contender, figures: Figures { resident, ..Figures::default() } });
        Ok(())
    }

    /// foldgate on a backend, once for each number of threads. Stores lie in `place`.
    ///
    /// # Errors
    /// As of [`Template::load`] and [`Foldgate::new`].
    pub fn enter_foldgate<S: Stores + Clone + 'static>(
        &mut self,
        stores: &S,
        threads: &[usize],
        scenario: &Scenario,
        place: &Path,
    ) -> Result<(), BenchError> {
        let template = Template::load(stores, scenario, place)?;
        threads.iter().try_for_each(|threads| {
            self.enter(|| Foldgate::new(stores.clone(), *threads, scenario, template.as_ref(), place))
        })
    }

    /// The other implementations.
    ///
    /// # Errors
    /// [`BenchError::NoPeers`] without the cargo feature `peers`; otherwise if a contender fails.
    #[cfg(not(feature = "peers"))]
    pub fn enter_peers(&mut self, _: &Scenario) -> Result<(), BenchError> {
        Err(BenchError::NoPeers)
    }

    /// The other implementations.
    ///
    /// # Errors
    /// If a contender fails.
    #[cfg(feature = "peers")]
    pub fn enter_peers(&mut self, scenario: &Scenario) -> Result<(), BenchError> {
        crate::peers::enter(self, scenario)
    }
}

/// Runs the race, and tells `on_block` after each of its [`Plan::steps`]. One line for each contender, in order.
///
/// # Errors
/// [`BenchError::Contender`] if one fails, [`BenchError::WrongRoot`] if a root is wrong.
pub fn race(
    scenario: &Scenario,
    mut lineup: Lineup,
    plan: &Plan,
    mut on_block: impl FnMut(),
) -> Result<Vec<Line>, BenchError> {
    let entries = &mut lineup.0;
    let mut ledger = scenario.ledger();
    let mut fewest = Vec::new();
    let before = Permutation::measure();
    count_permutations(true);
    for (step, block) in (0..plan.steps()).zip(scenario.blocks()) {
        ledger.apply(&block);
        let (phase, checked) = (plan.phase(step), plan.checks_at(step));
        let mut expected = checked.then(|| ledger.state_root());
        let first = step as usize % entries.len().max(1);
        for turn in 0..entries.len() {
            let at = (first + turn) % entries.len();
            let entry = &mut entries[at];
            if let Some(got) = entry.take(&block, phase, checked)? {
                entry.check(block.number, got, *expected.get_or_insert(got), checked)?;
            }
        }
        if step.is_multiple_of(COUNT_EVERY.into()) {
            let mut counted = entries.iter_mut().filter(|entry| entry.contender.is_counted());
            let count = counted.next().map(|entry| entry.work(block.number, |one, _| one.fewest_permutations()));
            fewest.extend(count.transpose()?.flatten());
        }
        if phase != Phase::Cold && (step + 1).is_multiple_of(plan.merged_blocks.max(1).into()) {
            entries.iter_mut().try_for_each(|entry| entry.flush(block.number, plan.flush_beside))?;
        }
        on_block();
    }
    count_permutations(false);
    let permutation = before.min(Permutation::measure());
    let lines =
        entries.iter().map(|entry| Line::new(scenario, plan, &*entry.contender, &entry.figures, &fewest, permutation));
    Ok(lines.collect())
}
