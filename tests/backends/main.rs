//! The suites that every backend has to pass, stamped for the store in memory, redb and MDBX. One binary, so that they
//! are linked once.

/// Stamps tests, functions of a store factory, for one backend.
macro_rules! stamp {
    ($backend:ident, $factory:ty, [$($test:ident),* $(,)?]) => {
        mod $backend {
            $(
                #[test]
                fn $test() {
                    super::$test(&<$factory>::default());
                }
            )*
        }
    };
}

/// Stamps tests for every backend.
macro_rules! stamp_all {
    ($tests:tt) => {
        stamp!(memory, crate::support::InMemory, $tests);
        stamp!(redb, crate::support::OnRedb, $tests);
        stamp!(mdbx, crate::support::OnMdbx, $tests);
    };
}

mod advance;
mod differential;
mod durability;
mod engine;
mod faulty;
mod judgement;
mod kills;
mod late;
mod logs;
mod moving;
mod pipeline;
mod races;
mod reorg_edges;
mod reorg_kills;
mod reorgs;
mod shadow;
mod soak;
mod storm;
mod support;
mod what_if;
