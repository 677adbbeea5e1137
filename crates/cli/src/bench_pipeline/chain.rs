//! The chains that the pipeline is measured on, over a state of 1,000,000 accounts.
//!
//! | chain | a block |
//! |---|---|
//! | `m60` | the shape of mainnet's at 60 Mgas: 230 transactions, 170 of them to contracts of a few slots each; half of the gas limit used |
//! | `m1g` | sixteen of these in one |
//! | `sstore` | 150 transactions that write 30 slots each of 50 contracts with 20,000 slots: executing takes about as long as folding what it writes |
//!
//! All contracts have the same code: it writes some slots, reads others, and hashes for as long as it is told.

use std::collections::BTreeMap;

use alloy_genesis::{Genesis, GenesisAccount};
use alloy_primitives::{Address, B256, Bytes, U256, hex, keccak256};
use clap::ValueEnum;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use crate::maker::{self, Call, Script, contract, plain_address, words};

/// The chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ChainArg {
    /// Blocks like mainnet's at 60 Mgas.
    #[default]
    M60,
    /// Blocks of 1 Ggas: sixteen of `m60` in one.
    M1g,
    /// Blocks that write storage above all.
    Sstore,
}

impl ChainArg {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::M60 => "m60",
            Self::M1g => "m1g",
            Self::Sstore => "sstore",
        }
    }

    /// How many blocks are measured unless told otherwise.
    pub const fn default_blocks(self) -> u64 {
        match self {
            Self::M60 | Self::Sstore => 96,
            Self::M1g => 16,
        }
    }

    /// With everything divided by `scale`.
    fn shape(self, scale: u64) -> Shape {
        let Shape { transactions, contracts, slots, .. } = self.full();
        let scaled = |count: u64| (count / scale).max(1);
        let transactions = scaled(transactions as u64) as usize;
        Shape { transactions, contracts: scaled(contracts), slots: scaled(slots), ..self.full() }
    }

    const fn full(self) -> Shape {
        match self {
            Self::M60 => Shape { gas_limit: 60_000_000, transactions: 230, ..Shape::MAINNET },
            Self::M1g => Shape { gas_limit: 1_000_000_000, transactions: 16 * 230, ..Shape::MAINNET },
            Self::Sstore => Shape::SSTORE,
        }
    }
}

/// How many wallets send.
pub(super) const WALLETS: usize = 2_000;
/// Accounts that are no contracts.
const PLAIN_ACCOUNTS: u64 = 990_000;

/// What there is, and what a block does with it.
#[derive(Debug, Clone, Copy)]
struct Shape {
    gas_limit: u64,
    transactions: usize,
    contracts: u64,
    slots: u64,
    /// Of 100 transactions, those that only pay.
    payments: u32,
    /// Turns of the hashing loop.
    turns: u64,
    writes: Writes,
}

#[derive(Debug, Clone, Copy)]
enum Writes {
    /// Median 3, a tenth of them 6 and more, a hundredth 50 and more.
    Mainnet,
    Exactly(usize),
}

impl Shape {
    const MAINNET: Self = Self {
        gas_limit: 0,
        transactions: 0,
        contracts: 10_000,
        slots: 20,
        payments: 26,
        turns: 900,
        writes: Writes::Mainnet,
    };
    const SSTORE: Self = Self {
        gas_limit: 100_000_000,
        transactions: 150,
        contracts: 50,
        slots: 20_000,
        payments: 0,
        turns: 10,
        writes: Writes::Exactly(30),
    };
}

/// `(value, turns, where writes end, keys..)`: stores the value under each key before that end, loads those behind it, and
/// hashes a word so many times.
const WORKER: &[u8] = &hex!(
    "6060"             // the position of the first key
    "5b"               // writes:
    "604035811015601757" // at their end? reads
    "5f35813555"       // value, key, stored
    "602001600256"     // the next one
    "5b"               // reads:
    "36811015602957"   // at the end of the calldata? turns
    "80355450"         // key, loaded
    "602001601756"     // the next one
    "5b602035"         // the number of turns
    "5b"               // turns:
    "8015604257"       // none left? end
    "805f5260205f2050" // a word, hashed
    "60019003602d56"   // one less
    "5b00"             // end
);

/// The chain's genesis: 1,000,000 accounts, contracts among them.
pub(super) fn genesis(chain: ChainArg, scale: u64) -> Result<Genesis, serde_json::Error> {
    let shape = chain.shape(scale);
    let mut alloc: BTreeMap<Address, GenesisAccount> = BTreeMap::new();
    for index in 0..PLAIN_ACCOUNTS / scale {
        let balance = U256::from(index + 1);
        alloc.insert(plain_address(index), GenesisAccount { balance, ..GenesisAccount::default() });
    }
    for index in 0..shape.contracts {
        let storage = (0..shape.slots).map(|slot| (slot_key(slot), B256::with_last_byte(1)));
        alloc.insert(contract_address(index), contract(Bytes::from_static(WORKER), storage.collect()));
    }
    maker::genesis(shape.gas_limit, WALLETS, alloc)
}

fn contract_address(index: u64) -> Address {
    Address::from_word(keccak256(format!("worker {index}")))
}

fn slot_key(slot: u64) -> B256 {
    B256::from(U256::from(slot))
}

/// What the blocks do.
#[derive(Debug)]
pub(super) struct Load {
    shape: Shape,
    plain_accounts: u64,
    next_slot: u64,
}

impl Load {
    pub(super) fn new(chain: ChainArg, scale: u64) -> Self {
        let shape = chain.shape(scale);
        Self { shape, plain_accounts: PLAIN_ACCOUNTS / scale, next_slot: shape.slots }
    }

    /// A tenth of mainnet's writes go to new slots.
    fn write_key(&mut self, rng: &mut StdRng) -> B256 {
        if matches!(self.shape.writes, Writes::Mainnet) && rng.random_ratio(1, 10) {
            self.next_slot += 1;
            return slot_key(self.next_slot);
        }
        slot_key(rng.random_range(0..self.shape.slots))
    }
}

impl Script for Load {
    fn transactions(&self) -> usize {
        self.shape.transactions
    }

    fn call(&mut self, rng: &mut StdRng) -> Call {
        if rng.random_range(0..100) < self.shape.payments {
            let to = plain_address(rng.random_range(0..self.plain_accounts));
            return Call { to: to.into(), value: rng.random_range(1..1_000), input: Bytes::new(), gas_limit: 21_000 };
        }
        let writes = match self.shape.writes {
            Writes::Exactly(count) => count,
            Writes::Mainnet => match rng.random_range(0..100) {
                0..90 => *[1, 2, 3, 3, 3, 4, 5].choose(rng).unwrap_or(&3),
                90..99 => rng.random_range(6..12),
                _ => rng.random_range(50..100),
            },
        };
        let reads = match self.shape.writes {
            Writes::Exactly(_) => 0,
            Writes::Mainnet => rng.random_range(2..10),
        };
        // A few contracts are in every block; a value in fourteen is zero.
        let contract = match rng.random_ratio(3, 10) {
            true => rng.random_range(0..self.shape.contracts.min(20)),
            false => rng.random_range(0..self.shape.contracts),
        };
        let value = if rng.random_ratio(7, 100) { U256::ZERO } else { U256::from(rng.random::<u64>()) };
        let end = U256::from(96 + 32 * writes);
        let mut input = vec![value, U256::from(self.shape.turns), end];
        input.extend((0..writes).map(|_| U256::from_be_bytes(self.write_key(rng).0)));
        input.extend((0..reads).map(|_| U256::from(rng.random_range(0..self.shape.slots))));
        let gas_limit = 60_000 + 100 * self.shape.turns + 23_000 * writes as u64 + 3_000 * reads as u64;
        Call { to: contract_address(contract).into(), value: 0, input: words(input), gas_limit }
    }

    fn withdraws_to(&mut self, rng: &mut StdRng) -> Address {
        plain_address(rng.random_range(0..self.plain_accounts))
    }
}
