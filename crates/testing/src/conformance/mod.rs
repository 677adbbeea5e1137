//! The conformance suite: what every backend has to do, whoever wrote it.
//!
//! A backend describes in a [`StoreFactory`] how to make an empty store and stamps the suite in one of its test files:
//!
//! ```
//! use foldgate_core::MemoryStore;
//! use foldgate_testing::conformance::StoreFactory;
//!
//! #[derive(Default)]
//! struct InMemory;
//!
//! impl StoreFactory for InMemory {
//!     type Store = MemoryStore;
//!
//!     fn fresh(&self) -> MemoryStore {
//!         MemoryStore::new()
//!     }
//! }
//!
//! foldgate_testing::conformance_suite!(InMemory::default());
//! ```
//!
//! `conformance_suite!(durable ..)` adds, for a [`DurableFactory`], what has to survive the store's being closed;
//! [`kills::survives_kills`] and [`kills::survives_killed_loads`] what has to survive the death of the process.
//!
//! Invariants:
//! 1. Each property is one public function that takes a factory, needs nothing else, and panics where the backend falls
//!    short. All expectations come from a model of sorted maps ([`world`]), never from the store itself.
//! 2. Random tests print their seed; `FOLDGATE_TEST_SEED` repeats one.

use foldgate_core::BalStore;

pub mod caching;
pub mod commits;
pub mod concurrency;
pub mod durability;
pub mod kills;
pub mod loading;
pub mod reading;
pub mod snapshots;
pub mod states;
pub mod world;

/// Makes stores for the suite. One factory serves one property.
pub trait StoreFactory: Sync {
    /// The backend.
    type Store: BalStore;

    /// An empty store. What it needs to live (a temporary directory) lives at least as long as the factory.
    ///
    /// # Panics
    /// If there can be no store.
    fn fresh(&self) -> Self::Store;
}

/// Makes stores that outlive their handle.
pub trait DurableFactory: StoreFactory {
    /// Closes the store and opens it again, as another process would find it.
    ///
    /// # Panics
    /// If it cannot be opened.
    fn reopen(&self, store: Self::Store) -> Self::Store;
}

/// Stamps one `#[test]` for each property of the suite: `conformance_suite!(factory)`, or for a
/// [`DurableFactory`](crate::conformance::DurableFactory) `conformance_suite!(durable factory)`. The expression is
/// evaluated anew in each test.
#[macro_export]
macro_rules! conformance_suite {
    (durable $factory:expr) => {
        $crate::conformance_suite!($factory);
        $crate::conformance_suite!(@stamp $factory, durability: [
            everything_survives_reopening,
            an_empty_store_reopens_empty,
            refused_and_failed_writes_leave_nothing_behind,
            random_histories_with_reopening_match_the_model,
        ]);
    };
    ($factory:expr) => {
        $crate::conformance_suite!(@stamp $factory, loading: [
            an_empty_store_has_nothing_and_refuses,
            a_load_becomes_genesis_and_tip,
            a_load_may_start_at_any_height,
            an_empty_state_loads,
            a_second_load_is_refused,
            a_failing_source_leaves_the_store_empty,
            unsorted_pieces_are_refused,
            many_rows_load_and_page,
            nodes_and_codes_may_come_in_any_piece,
        ]);
        $crate::conformance_suite!(@stamp $factory, states: [
            whole_states_load_on_one_thread,
            whole_states_load_on_two_threads,
            whole_states_load_on_three_threads,
            loads_that_fail_late_leave_the_store_empty,
        ]);
        $crate::conformance_suite!(@stamp $factory, reading: [
            scans_are_ordered_limited_and_start_anywhere,
            slot_scans_stay_within_their_account,
            keys_at_the_edges_are_kept_apart,
            tries_are_kept_apart,
            extreme_values_come_back,
            large_values_come_back,
        ]);
        $crate::conformance_suite!(@stamp $factory, commits: [
            refused_commits_change_nothing,
            refused_unwinds_change_nothing,
            deletions_remove_rows,
            code_stays_after_an_unwind,
            block_hashes_reach_back_a_whole_window,
            a_batch_of_many_blocks_keeps_each_ones_diff_and_list,
            lists_are_found_by_number_and_hash,
            unwinding_leads_back_and_on_to_a_sibling,
            pruning_drops_lists_and_diffs_and_limits_unwinding,
            pruning_keeps_the_hashes_that_readers_may_ask_for,
            random_histories_match_the_model,
        ]);
        $crate::conformance_suite!(@stamp $factory, snapshots: [
            snapshots_outlive_commits_and_unwinds,
            a_clone_sees_the_same_block,
            a_snapshot_outlives_its_store,
            many_snapshots_of_many_blocks_live_at_once,
        ]);
        $crate::conformance_suite!(@stamp $factory, concurrency: [
            readers_see_whole_blocks_while_a_writer_commits,
            one_snapshot_serves_many_threads,
            of_racing_writers_one_wins_each_height,
        ]);
        $crate::conformance_suite!(@stamp $factory, caching: [
            a_cache_answers_as_the_snapshot_does,
            a_reader_out_of_step_does_without_the_cache,
            cached_readers_see_whole_blocks_while_a_writer_commits,
        ]);
    };
    (@stamp $factory:expr, $room:ident: [$($property:ident),* $(,)?]) => {
        $(
            #[test]
            fn $property() {
                $crate::conformance::$room::$property(&$factory);
            }
        )*
    };
}
