//! `foldgate bench`: the benchmarks of `foldgate-bench` on the tool's backends.
//!
//! Invariants:
//! 1. A wrong root is an error, never a figure.
//! 2. Lines come out race by race, so that a long run that is stopped has printed what it knows.

use std::{env, io::Write, path::Path};

use foldgate_bench::{
    BenchError, Draw, Scale, Scenario, Workload,
    contender::AnyError,
    foldgate::Stores,
    harness::{Lineup, Plan, race},
    load::{Accounts, LoadLine},
    report::{Line, write_table},
};

use crate::{
    CliError,
    args::{BenchCommand, BenchFoldArgs, BenchLoadArgs},
    backend::{Backend, BackendKind, OnBackend},
    bench_pipeline,
    progress::Progress,
};

/// What each store may cache, where it has a cache of its own.
const CACHE_BYTES: usize = 512 << 20;

pub(crate) fn command(command: &BenchCommand, out: &mut dyn Write) -> Result<bool, CliError> {
    match command {
        BenchCommand::Fold(args) => fold(args, out)?,
        BenchCommand::Load(args) => load(args, out)?,
        BenchCommand::Pipeline(args) => bench_pipeline::command(args, out)?,
    }
    Ok(true)
}

fn fold(args: &BenchFoldArgs, out: &mut dyn Write) -> Result<(), CliError> {
    if args.peers && cfg!(not(feature = "peers")) {
        return Err(BenchError::NoPeers.into());
    }
    for workload in args.workload.iter().flat_map(|workload| races(*workload)) {
        let draws = match args.keys {
            Some(keys) => vec![Draw::from(keys)],
            None => workload.draws().to_vec(),
        };
        for draw in draws {
            let lines = run(args, &Scenario::new(workload, draw, Scale::one_in(args.scale)))?;
            if args.json {
                for line in &lines {
                    writeln!(out, "{}", serde_json::to_string(line)?)?;
                }
            } else {
                write_table(&lines, out)?;
                writeln!(out)?;
            }
            out.flush()?;
        }
    }
    Ok(())
}

/// The whale is raced against the same changes spread over many contracts.
fn races(workload: Workload) -> Vec<Workload> {
    match workload {
        Workload::W4 => vec![Workload::W4, Workload::W4Spread],
        other => vec![other],
    }
}

/// One race.
fn run(args: &BenchFoldArgs, scenario: &Scenario) -> Result<Vec<Line>, CliError> {
    let place = args.dir.clone().unwrap_or_else(env::temp_dir);
    let threads: Vec<_> = args.threads.iter().copied().map(usize::from).collect();
    let mut lineup = Lineup::default();
    for backend in backends(&args.backend) {
        backend.run(Enter { lineup: &mut lineup, scenario, threads: &threads, place: &place })??;
    }
    if args.peers {
        lineup.enter_peers(scenario)?;
    }
    let blocks = args.blocks.unwrap_or(scenario.workload().default_blocks());
    let merged_blocks = args.merged_blocks.min(blocks.max(1));
    let plan = Plan { merged_blocks, flush_beside: args.flush_beside, ..Plan::new(scenario, blocks) };
    let progress = Progress::blocks(plan.steps(), args.json);
    let lines = race(scenario, lineup, &plan, || progress.step_block());
    progress.finish();
    Ok(lines?)
}

fn backends(chosen: &[BackendKind]) -> &[BackendKind] {
    if chosen.is_empty() { BackendKind::BUILT_IN } else { chosen }
}

/// Lets foldgate take part on a backend.
struct Enter<'a> {
    lineup: &'a mut Lineup,
    scenario: &'a Scenario,
    threads: &'a [usize],
    place: &'a Path,
}

impl OnBackend for Enter<'_> {
    type Output = Result<(), BenchError>;

    fn on<B: Backend>(self, backend: B) -> Self::Output {
        self.lineup.enter_foldgate(&On(backend), self.threads, self.scenario, self.place)
    }
}

/// Stores of a backend of the tool.
#[derive(Debug, Clone, Copy)]
struct On<B>(B);

impl<B: Backend> Stores for On<B> {
    type Store = B::Store;

    fn backend(&self) -> &'static str {
        self.0.kind().name()
    }

    fn is_durable(&self) -> bool {
        self.0.is_durable()
    }

    fn open(&self, directory: &Path) -> Result<B::Store, AnyError> {
        Ok(self.0.open(directory, CACHE_BYTES)?)
    }
}

fn load(args: &BenchLoadArgs, out: &mut dyn Write) -> Result<(), CliError> {
    let place = args.dir.clone().unwrap_or_else(env::temp_dir);
    let accounts = Accounts::new(args.accounts);
    for backend in backends(&args.backend) {
        let progress = Progress::load(args.accounts.into(), args.json);
        let line = backend.run(Load { accounts: &accounts, place: &place, progress: &progress });
        progress.finish();
        let line = line??;
        match args.json {
            true => writeln!(out, "{}", serde_json::to_string(&line)?)?,
            false => write_load(&line, out)?,
        }
        out.flush()?;
    }
    Ok(())
}

fn write_load(line: &LoadLine, out: &mut dyn Write) -> Result<(), CliError> {
    let LoadLine { backend, accounts, seconds, cpu_seconds, rows, trie_rows, file_mb, peak_rss_mb, .. } = line;
    writeln!(out, "{backend:7} {accounts} accounts in {seconds:.2} s (CPU {cpu_seconds:.2} s): {rows} rows,")?;
    writeln!(out, "        {trie_rows} of them of the trie; files {file_mb:.0} MB, peak memory {peak_rss_mb:.0} MB")?;
    Ok(())
}

/// Loads accounts into a backend.
struct Load<'a> {
    accounts: &'a Accounts,
    place: &'a Path,
    progress: &'a Progress,
}

impl OnBackend for Load<'_> {
    type Output = Result<LoadLine, BenchError>;

    fn on<B: Backend>(self, backend: B) -> Self::Output {
        self.accounts.load(&On(backend), self.place, self.progress)
    }
}
