//! What a race gives: one line for each contender, as JSON or in a table.

use std::io::{self, Write};

use serde::Serialize;

use crate::{
    contender::Contender,
    harness::{Figures, Plan},
    measure::{Cost, Permutation, mebibytes, median, milliseconds, resident_bytes},
    workload::{SEED, Scenario},
};

/// The figures of one contender. Times are of one block.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// The implementation.
    pub name: &'static str,
    /// Where it keeps the state.
    pub backend: &'static str,
    /// How many threads it uses.
    pub threads: usize,
    /// The workload.
    pub workload: &'static str,
    /// How many blocks `gate` was measured on; `total` on as many others.
    pub blocks: usize,
    /// With the warm-up done: the fastest block.
    pub gate_ms_min: Option<f64>,
    /// With the warm-up done: the median.
    pub gate_ms_median: Option<f64>,
    /// `gate`, and until the block survives a kill of the process: the fastest block. Nothing where there is no log.
    pub acknowledged_ms_min: Option<f64>,
    /// The same: the median.
    pub acknowledged_ms_median: Option<f64>,
    /// With the caches as the last blocks left them: the fastest block.
    pub total_ms_min: Option<f64>,
    /// With the caches as the last blocks left them: the median.
    pub total_ms_median: Option<f64>,
    /// With the process's caches empty: the median. Nothing where there is no cache to drop.
    pub cold_ms_median: Option<f64>,
    /// The CPU time of `gate`: the median. It is the process's: a flush that runs beside counts, here as in `total_cpu_ms`.
    pub cpu_ms: Option<f64>,
    /// The CPU time of flushes for each block flushed. Nothing where nothing is flushed.
    pub flush_cpu_ms: Option<f64>,
    /// By how much the process's resident memory grew while this contender loaded and worked; mapped files count.
    pub rss_mb: f64,
    /// Permutations hashed: the median. Nothing where they cannot be counted.
    pub permutations: Option<u64>,
    /// The fewest permutations that the blocks' roots need: the median.
    pub permutations_min: Option<u64>,
    /// The median of `gate` in permutations of alloy's default backend.
    pub pe: Option<f64>,
    /// How often the root was held to that of a full rebuild.
    pub roots_checked: u32,
    /// How keys were drawn.
    pub keys: String,
    /// The hash kernel of foldgate.
    pub kernel: &'static str,
    /// The fewest permutations on that kernel, on one thread.
    pub floor_ms: Option<f64>,
    /// The median of `gate` as a multiple of `floor_ms`.
    pub floor_ratio: Option<f64>,
    /// The CPU time of `total`: the median.
    pub total_cpu_ms: Option<f64>,
    /// The time of flushes for each block flushed.
    pub flush_ms: Option<f64>,
    /// How many blocks `cold` was measured on.
    pub cold_blocks: usize,
    /// How many blocks each flush merged.
    pub merged_blocks: u32,
    /// Whether flushes ran beside the blocks that were measured.
    pub flush_beside: bool,
    /// The state's accounts at first.
    pub accounts: u64,
    /// The state's slots at first.
    pub slots: u64,
    /// One permutation of alloy's default backend in this run.
    pub scalar_permutation_ns: f64,
    /// One permutation of the kernel in this run, for each state.
    pub kernel_permutation_ns: f64,
    /// The resident memory of the whole process in the end.
    pub process_rss_mb: f64,
    /// What the draws started from.
    pub seed: u64,
}

/// A figure that is worth printing.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

impl Line {
    pub(crate) fn new(
        scenario: &Scenario,
        plan: &Plan,
        contender: &dyn Contender,
        figures: &Figures,
        fewest: &[u64],
        permutation: Permutation,
    ) -> Self {
        let of = |costs: &[Cost], figure: fn(&Cost) -> std::time::Duration| {
            median(costs.iter().map(figure)).map(|middle| rounded(milliseconds(middle)))
        };
        let fastest = |costs: &[Cost]| costs.iter().map(|cost| cost.wall).min().map(milliseconds).map(rounded);
        let each = |cost| (figures.flushed > 0).then(|| rounded(milliseconds(cost) / figures.flushed as f64));
        let gate = of(&figures.gate, |cost| cost.wall);
        let permutations_min = median(fewest.iter().copied());
        let floor = permutations_min.map(|count| count as f64 * permutation.kernel_ns / 1e6);
        let counted = figures.gate.iter().chain(&figures.total).map(|cost| cost.permutations);
        Self {
            name: contender.name(),
            backend: contender.backend(),
            threads: contender.threads(),
            workload: scenario.workload().name(),
            blocks: figures.gate.len(),
            gate_ms_min: fastest(&figures.gate),
            gate_ms_median: gate,
            acknowledged_ms_min: figures.acknowledged.iter().min().copied().map(milliseconds).map(rounded),
            acknowledged_ms_median: median(figures.acknowledged.iter().copied()).map(milliseconds).map(rounded),
            total_ms_min: fastest(&figures.total),
            total_ms_median: of(&figures.total, |cost| cost.wall),
            cold_ms_median: of(&figures.cold, |cost| cost.wall),
            cpu_ms: of(&figures.gate, |cost| cost.cpu),
            flush_cpu_ms: each(figures.flush.cpu),
            rss_mb: rounded(mebibytes(figures.resident.max(0).unsigned_abs())),
            permutations: contender.is_counted().then(|| median(counted)).flatten(),
            permutations_min,
            pe: gate.map(|gate| rounded(gate * 1e6 / permutation.scalar_ns)),
            roots_checked: figures.roots_checked,
            keys: scenario.draw().to_string(),
            kernel: permutation.kernel.name(),
            floor_ms: floor.map(rounded),
            floor_ratio: gate.zip(floor).map(|(gate, floor)| rounded(gate / floor)),
            total_cpu_ms: of(&figures.total, |cost| cost.cpu),
            flush_ms: each(figures.flush.wall),
            cold_blocks: figures.cold.len(),
            merged_blocks: plan.merged_blocks,
            flush_beside: plan.flush_beside,
            accounts: scenario.accounts(),
            slots: scenario.slots(),
            scalar_permutation_ns: rounded(permutation.scalar_ns),
            kernel_permutation_ns: rounded(permutation.kernel_ns),
            process_rss_mb: rounded(mebibytes(resident_bytes())),
            seed: SEED,
        }
    }
}

/// Prints lines of one race as a table.
///
/// # Errors
/// If `out` fails.
pub fn write_table(lines: &[Line], out: &mut dyn Write) -> io::Result<()> {
    let Some(line) = lines.first() else { return Ok(()) };
    let (workload, keys, accounts, slots) = (line.workload, &line.keys, line.accounts, line.slots);
    writeln!(out, "{workload}, {keys} keys, seed {:#x}: {accounts} accounts, {slots} slots", line.seed)?;
    let (scalar, kernel) = (line.scalar_permutation_ns, line.kernel_permutation_ns);
    writeln!(out, "a permutation: {scalar:.1} ns by alloy's default, {kernel:.1} ns by the kernel {}", line.kernel)?;
    if let (Some(fewest), Some(floor)) = (line.permutations_min, line.floor_ms) {
        writeln!(out, "a block needs {fewest} permutations at least: {floor:.3} ms by the kernel on one thread")?;
    }
    let columns = ["gate min", "median", "ackn.", "total min", "median", "cold", "cpu", "flush cpu"];
    write!(out, "{:22} {:7} {:>3} {:>6}", "ms per block", "", "thr", "blocks")?;
    columns.iter().try_for_each(|column| write!(out, " {column:>9}"))?;
    writeln!(out, " {:>9} {:>7} {:>8} {:>6} {:>6}", "permut.", "floors", "pe", "MB", "roots")?;
    for line in lines {
        write!(out, "{:22} {:7} {:3} {:6}", line.name, line.backend, line.threads, line.blocks)?;
        let gate = [line.gate_ms_min, line.gate_ms_median, line.acknowledged_ms_median];
        let total = [line.total_ms_min, line.total_ms_median];
        for figure in gate.into_iter().chain(total).chain([line.cold_ms_median, line.cpu_ms, line.flush_cpu_ms]) {
            write!(out, " {:>9}", shown(figure, 3))?;
        }
        let permutations = line.permutations.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let (floors, pe) = (shown(line.floor_ratio, 2), shown(line.pe, 0));
        let (rss, roots) = (line.rss_mb, line.roots_checked);
        writeln!(out, " {permutations:>9} {floors:>7} {pe:>8} {rss:6.0} {roots:6}")?;
    }
    Ok(())
}

fn shown(figure: Option<f64>, places: usize) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.places$}"))
}
