//! What the pipeline did, counted: a gate that silently never opens breaks nothing and costs everything, so tests
//! assert on these.

use crate::observe::{self, Counter};

/// Why a block was not folded ahead from an access list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SkipReason {
    /// The BAL-driven mode is switched off.
    SwitchedOff,
    /// The block came without a list, and none was supplied.
    NoBal,
    /// A list was supplied when execution had ended already.
    Late,
    /// The block is older than Cancun: SELFDESTRUCT may delete storage that no list names.
    BeforeCancun,
    /// A list from a source, or one that the header does not commit to, had the wrong hash or a bad structure.
    BalRefused,
    /// The root folded from a list that the header does not commit to was wrong.
    EarlyRootMismatch,
    /// Execution did not confirm a list that the header does not commit to.
    NotConfirmed,
    /// It was judged before a restart, from its executed writes for one of the other reasons, and computed again from its
    /// record. Verdicts name it; it is never counted.
    Recovered,
}

impl SkipReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [Self; 8] = [
        Self::SwitchedOff,
        Self::NoBal,
        Self::Late,
        Self::BeforeCancun,
        Self::BalRefused,
        Self::EarlyRootMismatch,
        Self::NotConfirmed,
        Self::Recovered,
    ];

    /// The reason's name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SwitchedOff => "switched_off",
            Self::NoBal => "no_bal",
            Self::Late => "late",
            Self::BeforeCancun => "before_cancun",
            Self::BalRefused => "bal_refused",
            Self::EarlyRootMismatch => "early_root_mismatch",
            Self::NotConfirmed => "not_confirmed",
            Self::Recovered => "recovered",
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The running counters: two of them read one after the other need not fit each other while the pipeline runs.
        #[derive(Debug)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
            skips: [Counter; SkipReason::ALL.len()],
        }

        impl Default for Counters {
            fn default() -> Self {
                Self {
                    $($name: Counter::new(concat!("foldgate_", stringify!($name))),)*
                    skips: SkipReason::ALL.map(|_| Counter::unnamed()),
                }
            }
        }

        /// The counters at one moment.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct CounterSnapshot {
            $($(#[$doc])* pub $name: u64,)*
            /// Blocks not folded ahead, by reason.
            pub skips: Vec<(SkipReason, u64)>,
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> CounterSnapshot {
                CounterSnapshot {
                    $($name: self.$name.get(),)*
                    skips: SkipReason::ALL
                        .into_iter()
                        .map(|reason| (reason, self.skips[reason as usize].get()))
                        .collect(),
                }
            }
        }
    };
}

counters! {
    /// Blocks requested and admitted.
    requests,
    /// Folds started from an access list.
    folds_ahead,
    /// Of those, folds started while the block's execution had not ended.
    folds_before_execution_ended,
    /// Folds started from executed writes.
    folds_incremental,
    /// Warm-ups from executed writes: each reads ahead what was written while the one before it ran.
    warm_ups_from_writes,
    /// Accounts and slots that they read ahead, with the rows on their paths.
    writes_read_ahead,
    /// Blocks whose fold gate was opened by the durable state: the first of a batch.
    gates_opened_from_durable,
    /// Blocks whose fold gate was opened by a parent committed in memory.
    gates_opened_from_memory,
    /// Of the folds ahead, those that read through a way below or beside the durable tip.
    folds_ahead_below_tip,
    /// Ways computed from the durable state to a block below or beside it, for blocks that stand there.
    ways,
    /// Blocks judged valid.
    valid,
    /// Blocks judged invalid.
    invalid,
    /// Blocks cancelled before a verdict: handle dropped, ancestor gone, fork lost, shutdown.
    cancelled,
    /// Blocks left unjudged by an error of the machine.
    failed,
    /// Lists dropped, whose blocks went on incrementally.
    bals_dropped,
    /// Lists supplied in vain: too late, or for a block that is unknown, has a list, or takes none.
    bals_late,
    /// Blocks held because their parent, or one that it stands on, was unknown.
    orphans,
    /// Messages of executions or jobs whose block was gone already.
    late_messages,
    /// Blocks made durable.
    commits,
    /// Commits of the store: each makes one block durable, or several that have gathered.
    store_commits,
    /// Blocks whose two computations were held to each other by the shadow, whatever came of it.
    shadows,
    /// Blocks that were to have a shadow and had none: there was no list that counted, or no recorded writes.
    shadows_skipped,
    /// Blocks whose two computations did not agree.
    divergences,
    /// Moves of the head to a branch that left the durable chain below its tip.
    reorganisations,
    /// Blocks that were durable and are no more.
    unwound,
    /// Requests of blocks that had a verdict already.
    redelivered,
}

impl Counters {
    pub(crate) fn skip(&self, reason: SkipReason) {
        self.skips[reason as usize].add();
        observe::skipped(reason.name());
    }
}

impl CounterSnapshot {
    /// The number of blocks skipped for one reason.
    pub fn skipped(&self, reason: SkipReason) -> u64 {
        self.skips.iter().find(|(candidate, _)| *candidate == reason).map_or(0, |(_, count)| *count)
    }
}
