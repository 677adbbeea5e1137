//! The pipeline's settings: explicit ones beat the environment, unparsable ones are errors.

use std::{env, num::NonZeroUsize, path::PathBuf, thread, time::Duration};

/// The environment variable that turns the BAL-driven mode on and off.
pub const BAL_DRIVEN_VARIABLE: &str = "BAL_DRIVEN_COMMITMENT";

/// The environment variable that turns the shadow computation on and off.
pub const BAL_SHADOW_VARIABLE: &str = "BAL_SHADOW_COMPUTE";

/// The environment variable that names the folder for reports of divergences.
pub const DIVERGENCE_DIRECTORY_VARIABLE: &str = "FOLDGATE_DIVERGENCE_DIR";

/// The environment variable that sets the budget of the page cache, in bytes.
pub const PAGE_CACHE_BYTES_VARIABLE: &str = "FOLDGATE_PAGE_CACHE_BYTES";

/// How far below the durable tip the chain may be left, unless the settings say otherwise.
pub(crate) const UNWIND_DEPTH: u64 = 128;

/// Which blocks' state is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Canonical {
    /// Each valid block at once: linear import. Of siblings, the first one judged valid wins.
    #[default]
    Auto,
    /// Those that [`crate::Pipeline::set_canonical`] names.
    Explicit,
}

/// What happens when the root that was folded from the access list differs from the header's, and the header commits
/// to the list. The block is invalid in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnEarlyMismatch {
    /// The executor is cancelled and the block judged at once.
    #[default]
    Fail,
    /// Execution goes on to its end, since the true reason may be another, and both are reported.
    FindReason,
}

/// When canonical blocks go from memory to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// At once, each as soon as it is canonical; those that gather while the store commits go together. So it always is
    /// without a record log: nothing but the store keeps a block then.
    Synchronous,
    /// In the background, merged, and not the newest ones. A block is durable by its record.
    Background(BackgroundFlush),
}

impl Default for Flush {
    fn default() -> Self {
        Self::Background(BackgroundFlush::default())
    }
}

/// What is flushed in the background, and when. The blocks beyond those that are kept go together, as soon as one of the
/// limits is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackgroundFlush {
    /// So many of the newest canonical blocks stay in memory: reorganisations among them touch no store.
    pub keep_in_memory: usize,
    /// How many blocks gather.
    pub blocks: NonZeroUsize,
    /// How many bytes of leaves, code and lists gather.
    pub bytes: usize,
    /// For how long the oldest block waits.
    pub interval: Duration,
}

impl Default for BackgroundFlush {
    fn default() -> Self {
        Self {
            keep_in_memory: 8,
            // UNWRAP: the constant is not zero.
            blocks: NonZeroUsize::new(24).unwrap(),
            bytes: 64 << 20,
            interval: Duration::from_secs(30),
        }
    }
}

/// For how many blocks EIP-7928 asks to keep access lists: 3,533 epochs of 32 slots.
pub const BAL_RETENTION_BLOCKS: u64 = 3533 * 32;

/// The pipeline's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineConfig {
    /// Whether blocks with an access list are folded from it, ahead of their execution: the default. Off: every block is
    /// folded from its executed writes after execution.
    pub bal_driven: bool,
    /// Whether each block is computed from its other source, too: from the executed writes where its access list decides,
    /// from the list where it does not. The verdict waits for both. Where they diverge, that is counted and reported, and
    /// fails the block if its list was to decide. A header's root that the list does not lead to is not held against the
    /// block before the executed writes lead to the same.
    pub shadow: bool,
    /// Where a divergence is written down, one file each ([`crate::DivergenceReport`]); without a folder, nowhere.
    pub divergence_directory: Option<PathBuf>,
    /// Which blocks are made durable.
    pub canonical: Canonical,
    /// What a wrong early root leads to.
    pub on_early_mismatch: OnEarlyMismatch,
    /// Whether a block's records are read ahead: ahead of its execution where it has a list, else ahead of its fold, as its
    /// execution writes them.
    pub warm_up: bool,
    /// How many bytes of memory the page cache over the durable state may take; with none, every read that no block in
    /// memory answers goes to the store.
    pub page_cache_bytes: usize,
    /// Threads for decoding, warming up and folding. With more than one, as many again share out folds, while the one
    /// whose fold it is waits.
    pub threads: NonZeroUsize,
    /// Whether each of these threads stays on a processor of its own, from the second one on: good where nothing else
    /// competes for them, and needed on two processors, where the system was seen to put such threads on one of them
    /// ([`foldgate_core::affinity`]).
    pub pin_threads: bool,
    /// How many blocks may be between their arrival and their end; further ones are refused as busy. A block ends with
    /// its verdict; a valid one when its record is durable, or, without a log, with its commit where
    /// [`Canonical::Auto`] makes it canonical. Valid blocks that wait for [`crate::Pipeline::set_canonical`] are not
    /// counted: they are held until it names a head.
    pub max_in_flight: NonZeroUsize,
    /// How many blocks are held that wait for an unknown parent, or stand on one that does: at most one less than
    /// `max_in_flight`, so that the parent finds room.
    pub max_orphans: usize,
    /// How far below the durable tip a block may stand, and the head may go back: so many blocks. The log keeps their
    /// records, too: a move of the head that is cut off halfway is recovered from them. After a catch-up it is what
    /// [`crate::AdvanceOptions::unwind_depth`] allows, if that is less.
    pub unwind_depth: u64,
    /// How many verdicts are remembered for blocks that are delivered again, beyond those of blocks still in memory.
    pub max_remembered: usize,
    /// When canonical blocks go to the store. Without a record log it is [`Flush::Synchronous`], whatever stands here.
    pub flush: Flush,
    /// How many bytes of leaves, code and lists the canonical blocks that are not in the store may take. Beyond it new
    /// blocks are refused as busy until a flush, of the newest ones too, has made room.
    pub max_unflushed_bytes: usize,
    /// How many records one sync of the log makes durable at most: those that have gathered during the sync before. What a
    /// reorganisation has recorded before the store moves counts as one.
    pub records_per_sync: NonZeroUsize,
    /// For how many blocks below the durable tip the store keeps access lists and reverse diffs, at least `unwind_depth`;
    /// `None` for ever.
    pub keep_bals: Option<u64>,
}

impl Default for PipelineConfig {
    fn default() -> Self {
        Self {
            bal_driven: true,
            shadow: false,
            divergence_directory: None,
            canonical: Canonical::Auto,
            on_early_mismatch: OnEarlyMismatch::Fail,
            warm_up: true,
            page_cache_bytes: 256 << 20,
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            pin_threads: false,
            // UNWRAP: the constant is not zero.
            max_in_flight: NonZeroUsize::new(64).unwrap(),
            max_orphans: 64,
            unwind_depth: UNWIND_DEPTH,
            max_remembered: 1024,
            flush: Flush::default(),
            max_unflushed_bytes: 512 << 20,
            // UNWRAP: the constant is not zero.
            records_per_sync: NonZeroUsize::new(64).unwrap(),
            keep_bals: Some(BAL_RETENTION_BLOCKS),
        }
    }
}

/// An environment variable that does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} is {got:?}: expected {expected}")]
pub struct ConfigError {
    /// The variable.
    pub variable: &'static str,
    /// Its value.
    pub got: String,
    /// What it may be.
    pub expected: &'static str,
}

impl PipelineConfig {
    /// The default settings, with the modes that the environment names.
    ///
    /// # Errors
    /// If a variable is set to something that it cannot be.
    pub fn from_env() -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some(on) = switch(BAL_DRIVEN_VARIABLE, env::var_os(BAL_DRIVEN_VARIABLE))? {
            config.bal_driven = on;
        }
        if let Some(on) = switch(BAL_SHADOW_VARIABLE, env::var_os(BAL_SHADOW_VARIABLE))? {
            config.shadow = on;
        }
        if let Some(folder) = folder(DIVERGENCE_DIRECTORY_VARIABLE, env::var_os(DIVERGENCE_DIRECTORY_VARIABLE))? {
            config.divergence_directory = Some(folder);
        }
        if let Some(bytes) = number(PAGE_CACHE_BYTES_VARIABLE, env::var_os(PAGE_CACHE_BYTES_VARIABLE))? {
            config.page_cache_bytes = bytes;
        }
        Ok(config)
    }

    /// Sets the mode explicitly.
    #[must_use]
    pub const fn with_bal_driven(mut self, on: bool) -> Self {
        self.bal_driven = on;
        self
    }

    /// Turns the shadow computation on or off explicitly.
    #[must_use]
    pub const fn with_shadow(mut self, on: bool) -> Self {
        self.shadow = on;
        self
    }

    /// Sets the folder for reports of divergences explicitly.
    #[must_use]
    pub fn with_divergence_directory(mut self, folder: impl Into<PathBuf>) -> Self {
        self.divergence_directory = Some(folder.into());
        self
    }

    /// Sets when canonical blocks go to the store.
    #[must_use]
    pub const fn with_flush(mut self, flush: Flush) -> Self {
        self.flush = flush;
        self
    }

    /// Sets the budget of the page cache explicitly.
    #[must_use]
    pub const fn with_page_cache_bytes(mut self, bytes: usize) -> Self {
        self.page_cache_bytes = bytes;
        self
    }
}

fn switch(variable: &'static str, value: Option<std::ffi::OsString>) -> Result<Option<bool>, ConfigError> {
    let Some(value) = value else { return Ok(None) };
    match value.to_str().map(str::to_ascii_lowercase).as_deref() {
        Some("1" | "true" | "on") => Ok(Some(true)),
        Some("0" | "false" | "off") => Ok(Some(false)),
        _ => {
            let expected = "one of 1, 0, true, false, on, off";
            Err(ConfigError { variable, got: value.to_string_lossy().into_owned(), expected })
        }
    }
}

fn folder(variable: &'static str, value: Option<std::ffi::OsString>) -> Result<Option<PathBuf>, ConfigError> {
    match value {
        Some(value) if value.is_empty() => {
            Err(ConfigError { variable, got: String::new(), expected: "the name of a folder" })
        }
        value => Ok(value.map(PathBuf::from)),
    }
}

fn number(variable: &'static str, value: Option<std::ffi::OsString>) -> Result<Option<usize>, ConfigError> {
    let Some(value) = value else { return Ok(None) };
    match value.to_str().and_then(|digits| digits.parse().ok()) {
        Some(number) => Ok(Some(number)),
        None => {
            let expected = "a number of bytes";
            Err(ConfigError { variable, got: value.to_string_lossy().into_owned(), expected })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_parse_or_are_refused() {
        let parse = |value: &str| switch(BAL_DRIVEN_VARIABLE, Some(value.into()));
        assert_eq!(switch(BAL_DRIVEN_VARIABLE, None), Ok(None));
        for on in ["1", "true", "ON"] {
            assert_eq!(parse(on), Ok(Some(true)));
        }
        for off in ["0", "False", "off"] {
            assert_eq!(parse(off), Ok(Some(false)));
        }
        for bad in ["", "yes", "2"] {
            let error = parse(bad).unwrap_err();
            assert_eq!(error.got, bad);
            assert!(error.to_string().contains(BAL_DRIVEN_VARIABLE));
        }
    }

    #[test]
    fn folders_have_a_name() {
        let parse = |value: Option<&str>| folder(DIVERGENCE_DIRECTORY_VARIABLE, value.map(Into::into));
        assert_eq!(parse(None), Ok(None));
        assert_eq!(parse(Some("there")), Ok(Some(PathBuf::from("there"))));
        assert!(parse(Some("")).unwrap_err().to_string().contains(DIVERGENCE_DIRECTORY_VARIABLE));
    }

    #[test]
    fn numbers_parse_or_are_refused() {
        let parse = |value: &str| number(PAGE_CACHE_BYTES_VARIABLE, Some(value.into()));
        assert_eq!(number(PAGE_CACHE_BYTES_VARIABLE, None), Ok(None));
        assert_eq!(parse("0"), Ok(Some(0)));
        assert_eq!(parse("268435456"), Ok(Some(256 << 20)));
        for bad in ["", "-1", "256M", "1e6", "99999999999999999999999"] {
            let error = parse(bad).unwrap_err();
            assert_eq!(error.got, bad);
            assert!(error.to_string().contains(PAGE_CACHE_BYTES_VARIABLE));
        }
    }
}
