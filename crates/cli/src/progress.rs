//! Progress on a terminal, and silence elsewhere.

use std::time::Duration;

use foldgate_testing::fixtures::BlockchainTest;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

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

    /// Counts so many accounts.
    pub(crate) fn accounts(length: u64, quiet: bool) -> Self {
        let bar = Self::bar(Some(length), quiet);
        bar.set_style(style("{wide_bar} {human_pos}/{human_len} accounts, {elapsed}, {per_sec}"));
        Self(bar)
    }

    /// So many more accounts went by.
    pub(crate) fn step_accounts(&self, count: u64) {
        self.0.inc(count);
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

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
