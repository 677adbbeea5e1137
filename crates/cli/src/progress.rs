//! Progress on a terminal, and silence elsewhere.

use std::time::Duration;

use foldgate_core::trie::bulk::{LoadObserver, LoadProgress};
use foldgate_testing::fixtures::BlockchainTest;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A progress bar on the standard error. It draws nothing where that is no terminal, or under `--json`.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Counts tests, of which the number is not known.
    pub(crate) fn tests(quiet: bool) -> Self {
        let bar = Self::bar(None, quiet);
        bar.set_style(style("{spinner} {pos} tests, {elapsed}: {wide_msg}"));
        Self(bar)
    }

    /// Counts so many blocks.
    pub(crate) fn blocks(length: u64, quiet: bool) -> Self {
        let bar = Self::bar(Some(length), quiet);
        bar.set_style(style("{wide_bar} {pos}/{len} blocks, {elapsed}, {per_sec}"));
        Self(bar)
    }

    /// Counts so many accounts and slots of a state that is loaded.
    pub(crate) fn load(leaves: u64, quiet: bool) -> Self {
        let bar = Self::bar(Some(leaves), quiet);
        bar.set_style(style("{wide_bar} {human_pos}/{human_len} accounts and slots, {elapsed}, {per_sec}, {msg}"));
        Self(bar)
    }

    /// Counts blocks, of which the number is not known.
    pub(crate) fn unknown_blocks(quiet: bool) -> Self {
        let bar = Self::bar(None, quiet);
        bar.set_style(style("{spinner} {pos} blocks, {elapsed}, {per_sec}"));
        Self(bar)
    }

    /// So many blocks were done.
    pub(crate) fn step_blocks(&self, blocks: u64) {
        self.0.inc(blocks);
    }

    /// A block was judged, or measured.
    pub(crate) fn step_block(&self) {
        self.0.inc(1);
    }

    fn bar(length: Option<u64>, quiet: bool) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr());
        match quiet || bar.is_hidden() {
            true => ProgressBar::hidden(),
            false => {
                bar.enable_steady_tick(Duration::from_millis(200));
                bar
            }
        }
    }

    /// A test begins.
    pub(crate) fn step(&self, test: &BlockchainTest) {
        if !self.0.is_hidden() {
            self.0.inc(1);
            self.0.set_message(test.name.clone());
        }
    }

    /// Clears the line.
    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

impl LoadObserver for &Progress {
    fn progress(&mut self, progress: &LoadProgress) {
        if self.0.is_hidden() {
            return;
        }
        self.0.set_position(progress.accounts + progress.slots);
        self.0.set_message(match progress.complete {
            false => HumanBytes(progress.bytes).to_string(),
            true => "making it durable".to_owned(),
        });
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
