//! `foldgate validate`: everything that there is to run, with the shadow on, and how often the two computations parted.
//!
//! ```text
//! folders --sorted by what the files are--> tests      fixtures, in the mode "shadow"
//!                                           witnesses  each block from both its sources
//!                                           chains     replay, in the mode "shadow"
//! seeds ----------------------------------> generated chains (generated.rs)
//! ```
//!
//! A `.json` file is one of tests if it speaks of a genesis header, a `.json.gz` file is a witness, a folder with
//! `genesis.json` and `chain.rlp` is a chain. Whatever else is found is counted, and left alone.
//!
//! Invariant: nothing is left out for how it ends: what cannot be run is named with its reason.

mod generated;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use foldgate_evm::AmsterdamRules;
use foldgate_testing::{archive::is_archive, witness::read_witness};
use serde::Serialize;

pub use self::generated::GeneratedError;
use crate::{
    Causes, CliError,
    args::{FixturesArgs, ModeArg, ReplayArgs, RulesArg, ValidateArgs},
    fixtures, replay,
    shadow::ShadowFigures,
    witness,
};

/// What `foldgate validate` prints in its last line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The store.
    pub backend: &'static str,
    /// Blocks looked at: of tests, witnesses, chains and generated ones, invalid ones among them.
    pub blocks: u64,
    /// Valid blocks whose root was computed from their list, ahead of execution, or with its execution left out.
    pub folded_ahead: u64,
    /// Valid blocks whose root was computed from executed writes.
    pub folded_incremental: u64,
    /// Blocks whose two computations were held to each other.
    pub compared: u64,
    /// Blocks whose two computations did not agree.
    pub divergences: u64,
    /// Tests that did not end as their file demands, blocks of witnesses and chains with another outcome than they should
    /// have, and generated blocks with a wrong verdict.
    pub wrong: u64,
    /// Tests.
    pub tests: u64,
    /// Of those, not run, or not to the point that their file is after.
    pub tests_skipped: u64,
    /// Their reasons.
    pub skips: BTreeMap<&'static str, u64>,
    /// Blocks of witnesses.
    pub witnesses: u64,
    /// Chains.
    pub chains: u64,
    /// Generated blocks.
    pub generated: u64,
    /// How often a generated chain went over to another branch.
    pub generated_reorgs: u64,
    /// How often its head moved to a branch that left it below its durable tip.
    pub generated_below_tip: u64,
    /// Files that are none of these.
    pub other_files: u64,
}

impl Summary {
    const fn is_good(&self) -> bool {
        self.divergences == 0 && self.wrong == 0
    }

    fn add_shadow(&mut self, shadow: Option<ShadowFigures>) {
        let ShadowFigures { compared, divergences, .. } = shadow.unwrap_or_default();
        self.compared += compared;
        self.divergences += divergences;
    }
}

/// What lies below the folders.
#[derive(Debug, Default)]
struct Found {
    /// Tests by how they are run.
    full: Vec<PathBuf>,
    osaka: Vec<PathBuf>,
    no_execute: Vec<PathBuf>,
    witnesses: Vec<PathBuf>,
    chains: Vec<PathBuf>,
    others: u64,
}

pub(crate) fn command(args: &ValidateArgs, out: &mut dyn Write, notes: &mut dyn Write) -> Result<bool, CliError> {
    let summary = run(args, notes)?;
    if !args.json {
        let Summary { blocks, folded_ahead, folded_incremental, compared, divergences, wrong, .. } = &summary;
        let Summary {
            tests, tests_skipped, witnesses, chains, generated, generated_reorgs, generated_below_tip, ..
        } = &summary;
        writeln!(out, "data    {tests} tests ({tests_skipped} skipped), {witnesses} witnesses, {chains} chains")?;
        writeln!(
            out,
            "        {generated} generated blocks, {generated_reorgs} reorganisations, {generated_below_tip} below the tip"
        )?;
        writeln!(out, "blocks  {blocks}: {folded_ahead} folded ahead, {folded_incremental} incremental")?;
        writeln!(out, "shadow  {compared} compared: {divergences} divergences")?;
        writeln!(out, "wrong   {wrong}")?;
    }
    writeln!(out, "{}", serde_json::to_string(&summary)?)?;
    Ok(summary.is_good())
}

/// Runs everything; what is wrong goes to `notes`, one line each.
///
/// # Errors
/// If the backend is not there, or a folder cannot be searched. What is wrong with tests and blocks is in the figures.
pub fn run(args: &ValidateArgs, notes: &mut dyn Write) -> Result<Summary, CliError> {
    let mut found = Found::default();
    for folder in &args.fixtures {
        search(args, folder, &mut found)?;
    }
    let mut summary = Summary { backend: args.backend.name(), other_files: found.others, ..Summary::default() };
    run_tests(args, &found, &mut summary, notes)?;
    for path in &found.witnesses {
        run_witness(path, &mut summary, notes)?;
    }
    for folder in &found.chains {
        run_chain(args, folder, &mut summary, notes)?;
    }
    generated::run(args, &mut summary, notes)?;
    Ok(summary)
}

fn search(args: &ValidateArgs, path: &Path, found: &mut Found) -> Result<(), CliError> {
    let failed = |source| CliError::Search { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.is_dir() {
        if path.join("genesis.json").is_file() && path.join("chain.rlp").is_file() {
            found.chains.push(path.to_owned());
            return Ok(());
        }
        let entries = fs::read_dir(path).map_err(failed)?.map(|entry| Ok(entry?.path()));
        let mut entries = entries.collect::<Result<Vec<_>, std::io::Error>>().map_err(failed)?;
        entries.sort_unstable();
        return entries.iter().try_for_each(|entry| search(args, entry, found));
    }
    let name = path.to_string_lossy().into_owned();
    let has = |texts: &[String]| texts.iter().any(|text| name.contains(text.as_str()));
    let is_test = || -> Result<bool, CliError> {
        let content = fs::read(path).map_err(failed)?;
        let needle = b"\"genesisBlockHeader\"";
        Ok(content.windows(needle.len()).any(|window| window == needle))
    };
    if name.ends_with(".json.gz") {
        found.witnesses.push(path.to_owned());
    } else if is_archive(path) || (name.ends_with(".json") && is_test()?) {
        let list = match () {
            () if has(&args.no_execute) => &mut found.no_execute,
            () if has(&args.osaka_rules) => &mut found.osaka,
            () => &mut found.full,
        };
        list.push(path.to_owned());
    } else {
        found.others += 1;
    }
    Ok(())
}

fn run_tests(args: &ValidateArgs, found: &Found, summary: &mut Summary, notes: &mut dyn Write) -> Result<(), CliError> {
    let kinds = [
        (&found.full, AmsterdamRules::Full, false),
        (&found.osaka, AmsterdamRules::Osaka, false),
        (&found.no_execute, AmsterdamRules::Full, true),
    ];
    for (paths, rules, no_execute) in kinds {
        for path in paths {
            let tests = FixturesArgs {
                paths: vec![path.clone()],
                backend: args.backend,
                mode: ModeArg::Shadow,
                amsterdam_rules: if rules == AmsterdamRules::Osaka { RulesArg::Osaka } else { RulesArg::Full },
                no_execute,
                filter: None,
                json: args.json,
            };
            let report = match fixtures::run(&tests) {
                Ok(report) => report,
                // An archive of something else.
                Err(CliError::NoTests { .. }) => {
                    summary.other_files += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            report.write_notes(notes)?;
            let fixtures::Summary { tests, failed, skipped, blocks, folded_ahead, folded_incremental, .. } =
                report.summary;
            summary.tests += tests;
            summary.tests_skipped += skipped;
            summary.blocks += blocks;
            summary.folded_ahead += folded_ahead;
            summary.folded_incremental += folded_incremental;
            summary.wrong += failed + report.unreadable.len() as u64;
            summary.add_shadow(report.summary.shadow);
            for (reason, count) in report.summary.skips {
                *summary.skips.entry(reason).or_default() += count;
            }
        }
    }
    Ok(())
}

fn run_witness(path: &Path, summary: &mut Summary, notes: &mut dyn Write) -> Result<(), CliError> {
    summary.witnesses += 1;
    summary.blocks += 1;
    let verified = read_witness(path).map_err(Into::into).and_then(|given| witness::verify_twice(&given));
    match verified {
        Ok(verified) => {
            summary.compared += u64::from(verified.compared);
            match verified.source {
                witness::Source::List => summary.folded_ahead += 1,
                _ => summary.folded_incremental += 1,
            }
            if verified.not_executed.is_some() {
                *summary.skips.entry("witness_not_executed").or_default() += 1;
            }
        }
        Err(fault) => {
            if matches!(fault, witness::WitnessFault::Divergence { .. }) {
                summary.divergences += 1;
            }
            summary.wrong += 1;
            writeln!(notes, "FAILED {}: {}", path.display(), Causes(&fault))?;
        }
    }
    Ok(())
}

fn run_chain(args: &ValidateArgs, folder: &Path, summary: &mut Summary, notes: &mut dyn Write) -> Result<(), CliError> {
    summary.chains += 1;
    let there = |name: &str| Some(folder.join(name)).filter(|path| path.exists());
    let chain = ReplayArgs {
        genesis: folder.join("genesis.json"),
        chain: folder.join("chain.rlp"),
        bals: there("bals"),
        db: None,
        backend: args.backend,
        mode: ModeArg::Shadow,
        amsterdam_rules: RulesArg::Full,
        head_state: there("headstate.json"),
        json: args.json,
    };
    match replay::run(&chain) {
        Ok(report) => {
            summary.blocks += report.summary.blocks;
            summary.folded_ahead += report.summary.folded_ahead;
            summary.folded_incremental += report.summary.folded_incremental;
            summary.add_shadow(report.summary.shadow);
        }
        Err(CliError::Replay(error)) => {
            if error.is_divergence() {
                summary.divergences += 1;
            }
            summary.wrong += 1;
            writeln!(notes, "FAILED {}: {}", folder.display(), Causes(&*error))?;
        }
        Err(error) => return Err(error),
    }
    Ok(())
}
