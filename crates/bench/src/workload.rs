//! The workloads: a state each, and an endless stream of blocks on it.
//!
//! | name | state | a block |
//! |---|---|---|
//! | `w1` | 1,000,000 plain accounts | updates 2,000, inserts 200, deletes 50 |
//! | `w1-10m` | 10,000,000 of them | the same |
//! | `w2` | one contract of 200,000 slots | updates 4,500 slots, inserts 250, deletes 250 |
//! | `w3` | accounts as `w1`, a contract of 1,000,000 slots, 500 of 2,000 | 5,000 slots of the large one, 20 in each of the others, 1,000 accounts |
//! | `w4` | accounts as `w1`, a contract of 10,000,000 slots | 5,000 slots of it |
//! | `w4-spread` | accounts as `w1`, 500 contracts of 20,000 slots | 10 slots in each of them |
//! | `m60` | accounts as `w1`, 10,000 contracts of 8 to 32,768 slots | the shape of mainnet's at 60 Mgas (`stream`) |
//! | `m1g` | the same | sixteen of these at once |
//!
//! Account `i` has the first 20 bytes of keccak256(`i` as eight bytes, big-endian) as its address, the nonce `i` and the
//! balance `i * 1e9 + 1`; slot `i` of a contract has the number `i`. Blocks give hashed keys and optional fields, as an
//! access list does; deletions are fields that end empty (EIP-161) and slots that end zero.
//!
//! Invariants:
//! 1. A workload is a function of its name, how keys are drawn, its scale, and [`SEED`]: every run sees the same blocks.
//! 2. Every block follows on the last one: what it updates or deletes exists, what it inserts does not.
//! 3. No state is held in memory as a whole: keys are made again from their numbers, in sorted order (`population`).

mod population;
mod shape;
mod stream;

use std::{fmt, str::FromStr, sync::Arc};

use foldgate_core::trie::bulk::LoadItem;

pub use self::{
    population::{Population, account_key, contract_key, slot_key},
    stream::{Block, Blocks},
};
pub(crate) use self::{
    population::{initial_account, initial_contract, initial_slot},
    shape::Shape,
};
use crate::ledger::Ledger;

/// What the random draws of every workload start from.
pub const SEED: u64 = 0xf01d_6a7e;

/// See the module's description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Workload {
    /// `w1`
    W1,
    /// `w1-10m`
    W1At10M,
    /// `w2`
    W2,
    /// `w3`
    W3,
    /// `w4`
    W4,
    /// `w4-spread`
    W4Spread,
    /// `m60`
    M60,
    /// `m1g`
    M1G,
}

/// A name that no workload has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no workload {got:?}")]
pub struct UnknownWorkload {
    /// The name given.
    pub got: String,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::W1, Self::W1At10M, Self::W2, Self::W3, Self::W4, Self::W4Spread, Self::M60, Self::M1G];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::W1 => "w1",
            Self::W1At10M => "w1-10m",
            Self::W2 => "w2",
            Self::W3 => "w3",
            Self::W4 => "w4",
            Self::W4Spread => "w4-spread",
            Self::M60 => "m60",
            Self::M1G => "m1g",
        }
    }

    /// How many blocks are measured unless told otherwise: 200, and fewer where a state or a block is so large that 200
    /// would take more than a few minutes.
    pub const fn default_blocks(self) -> u32 {
        match self {
            Self::W1 | Self::W2 | Self::M60 => 200,
            Self::W3 | Self::M1G => 100,
            Self::W1At10M | Self::W4 | Self::W4Spread => 50,
        }
    }

    /// How its keys may be drawn.
    pub const fn draws(self) -> &'static [Draw] {
        match self {
            Self::M60 | Self::M1G => &[Draw::Uniform, Draw::Zipf],
            _ => &[Draw::Uniform],
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Workload {
    type Err = UnknownWorkload;

    fn from_str(name: &str) -> Result<Self, UnknownWorkload> {
        let found = Self::ALL.into_iter().find(|workload| workload.name() == name);
        found.ok_or_else(|| UnknownWorkload { got: name.to_owned() })
    }
}

/// How the keys of a block are drawn from those that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Draw {
    /// Each with the same probability; contracts by their number of slots.
    #[default]
    Uniform,
    /// By Zipf's law with the exponent 1, so that blocks share their most popular keys.
    Zipf,
}

impl fmt::Display for Draw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
        })
    }
}

/// By how much the states and blocks of a workload are smaller than defined: for tests of the harness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale(u32);

impl Scale {
    /// As defined.
    pub const FULL: Self = Self(1);

    /// Everything divided by `divisor`; 0 counts as 1.
    pub const fn one_in(divisor: u32) -> Self {
        Self(if divisor == 0 { 1 } else { divisor })
    }

    /// What becomes of a number of the definition. Nothing vanishes.
    const fn of(self, number: u32) -> u32 {
        number.div_ceil(self.0)
    }
}

/// A workload with all that has to be chosen.
#[derive(Debug, Clone)]
pub struct Scenario {
    workload: Workload,
    draw: Draw,
    shape: Arc<Shape>,
}

impl Scenario {
    /// Lays the workload out: sorts the numbers of its keys.
    pub fn new(workload: Workload, draw: Draw, scale: Scale) -> Self {
        Self { workload, draw, shape: Arc::new(Shape::new(workload, scale)) }
    }

    /// Which workload.
    pub const fn workload(&self) -> Workload {
        self.workload
    }

    /// How keys are drawn.
    pub const fn draw(&self) -> Draw {
        self.draw
    }

    /// How many accounts the state has at first, contracts included.
    pub fn accounts(&self) -> u64 {
        (self.shape.accounts.len() + self.shape.contracts.len()) as u64
    }

    /// How many slots the state has at first.
    pub fn slots(&self) -> u64 {
        self.shape.contracts.iter().map(|contract| contract.slots.len() as u64).sum()
    }

    /// The state at first, sorted as a load wants it, made while it is read.
    pub fn items(&self) -> impl Iterator<Item = LoadItem> {
        shape::items(Arc::clone(&self.shape))
    }

    /// The blocks.
    pub fn blocks(&self) -> Blocks {
        Blocks::new(Arc::clone(&self.shape), self.draw, SEED ^ (self.workload as u64) << 32)
    }

    /// The leaves that the state should have, before any block.
    pub fn ledger(&self) -> Ledger {
        Ledger::new(&self.shape)
    }
}

#[cfg(test)]
mod tests;
