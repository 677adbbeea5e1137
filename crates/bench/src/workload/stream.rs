//! The blocks of a workload, drawn one after the other.
//!
//! A block of mainnet's shape lists about 600 accounts and changes 400 of them. Of these about 115 are contracts in which
//! 700 slots are written: 3 in the median contract, 6 at the 90th percentile, 50 at the 99th, at most 300; 7 % of the
//! slots end zero and 15 % are new. A fifth of the contracts change their balance too. The other changed accounts are
//! plain, ten of them new; 230 get a new nonce, all a new balance. 200 accounts are only read, with 980 slots.
//!
//! Invariants:
//! 1. Within a block no key is drawn twice; in the sixteen parts of an `m1g` block it may be, as it may on mainnet.
//! 2. What was deleted never comes back. Deletions are drawn uniformly whatever the rest is drawn by, so that they do
//!    not use up the popular keys.

use std::{collections::HashSet, sync::Arc};

use alloy_primitives::{B256, U256};
use foldgate_core::{AccountDelta, EmptyAccounts, HashedPostState};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    Draw, Scale,
    population::{account_key, slot_key},
    shape::{Change, Counts, Shape},
};

/// One block's changes as they arrive, and what it reads besides.
#[derive(Debug, Clone)]
pub struct Block {
    /// Its height; the state at first is block 0.
    pub number: u64,
    /// What changes, in hashed keys, unsorted, with optional fields.
    pub state: HashedPostState,
    /// Accounts that the block's list names and that do not change, each with the slots read. A warm-up reads them too.
    pub reads: Vec<(B256, Vec<B256>)>,
}

/// An endless stream of blocks.
#[derive(Debug)]
pub struct Blocks {
    shape: Arc<Shape>,
    draw: Draw,
    rng: StdRng,
    number: u64,
    accounts: Pool,
    /// The slots of each contract.
    contracts: Vec<Pool>,
    /// How many slots all contracts before each one had at first.
    slots_before: Vec<u64>,
    slots: u64,
}

/// What exists of a population: all numbers below `next` but the dead ones.
#[derive(Debug, Default)]
struct Pool {
    next: u32,
    dead: HashSet<u32>,
    /// Drawn for the block that is being made.
    taken: HashSet<u32>,
}

impl Pool {
    fn new(count: usize) -> Self {
        Self { next: count as u32, ..Self::default() }
    }

    fn insert(&mut self) -> u32 {
        let number = self.next;
        self.next += 1;
        self.taken.insert(number);
        number
    }

    fn delete(&mut self, rng: &mut StdRng) -> Option<u32> {
        let number = self.pick(rng, Draw::Uniform)?;
        self.dead.insert(number);
        Some(number)
    }

    /// One that exists and was not taken yet. `None` when half of them are gone or taken, which only tiny pools reach:
    /// so a few draws find one.
    fn pick(&mut self, rng: &mut StdRng, draw: Draw) -> Option<u32> {
        if 2 * (self.dead.len() + self.taken.len()) >= self.next as usize {
            return None;
        }
        let drawn = rank(rng, draw, self.next.into()) as u32;
        // The popular numbers may all be taken: then the next one that is not.
        let mut numbers = (drawn..self.next).chain(0..drawn);
        let free = numbers.find(|number| !self.dead.contains(number) && !self.taken.contains(number));
        self.taken.extend(free);
        free
    }
}

/// A number below `count`.
fn rank(rng: &mut StdRng, draw: Draw, count: u64) -> u64 {
    match draw {
        Draw::Uniform => rng.random_range(0..count),
        // Rank k has the probability log(1 + 1/k) / log(count + 1): Zipf's law, with the exponent 1.
        Draw::Zipf => {
            let drawn = (rng.random::<f64>() * (count as f64 + 1.0).ln()).exp();
            (drawn as u64).clamp(1, count) - 1
        }
    }
}

/// How many slots a contract of a block of mainnet's shape has written: the quantiles of the module's description.
fn slots_written(rng: &mut StdRng) -> u32 {
    const QUANTILES: [(f64, f64); 5] = [(0.0, 1.0), (0.5, 3.0), (0.9, 6.0), (0.99, 50.0), (1.0, 300.0)];
    let at: f64 = rng.random();
    let between = QUANTILES.windows(2).find(|pair| at < pair[1].0);
    between.map_or(1, |pair| {
        let part = (at - pair[0].0) / (pair[1].0 - pair[0].0);
        (pair[0].1 * (pair[1].1 / pair[0].1).powf(part)).round() as u32
    })
}

fn new_value(rng: &mut StdRng) -> U256 {
    U256::from(rng.random::<u64>() | 1)
}

impl Iterator for Blocks {
    type Item = Block;

    fn next(&mut self) -> Option<Block> {
        self.number += 1;
        let shape = Arc::clone(&self.shape);
        Some(match &shape.change {
            Change::Fixed { accounts, slots } => {
                let mut state = HashedPostState::new(EmptyAccounts::Remove);
                self.change_accounts(&mut state, *accounts);
                for (contracts, counts) in slots {
                    contracts.clone().for_each(|contract| self.change_slots(&mut state, contract as usize, *counts));
                }
                self.settle();
                Block { number: self.number, state, reads: Vec::new() }
            }
            Change::Mainnet { times, scale } => {
                let mut block = self.mainnet(*scale);
                for _ in 1..*times {
                    let more = self.mainnet(*scale);
                    block.state.merge(&more.state);
                    block.reads.extend(more.reads);
                }
                block
            }
        })
    }
}

impl Blocks {
    pub(crate) fn new(shape: Arc<Shape>, draw: Draw, seed: u64) -> Self {
        let accounts = Pool::new(shape.accounts.len());
        let sizes = shape.contracts.iter().map(|contract| contract.slots.len());
        let contracts = sizes.clone().map(Pool::new).collect();
        let mut slots = 0;
        let slots_before = sizes
            .map(|size| {
                let before = slots;
                slots += size as u64;
                before
            })
            .collect();
        Self { shape, draw, rng: StdRng::seed_from_u64(seed), number: 0, accounts, contracts, slots_before, slots }
    }

    /// Forgets what was taken for the block that is done.
    fn settle(&mut self) {
        self.accounts.taken.clear();
        self.contracts.iter_mut().filter(|pool| !pool.taken.is_empty()).for_each(|pool| pool.taken.clear());
    }

    fn change_accounts(&mut self, state: &mut HashedPostState, counts: Counts) {
        for at in 0..counts.update {
            let Some(number) = self.accounts.pick(&mut self.rng, self.draw) else { break };
            self.update_account(state, number, at % 2 == 0);
        }
        for _ in 0..counts.insert {
            self.insert_account(state);
        }
        for _ in 0..counts.delete {
            let Some(number) = self.accounts.delete(&mut self.rng) else { break };
            let empty = AccountDelta { nonce: Some(0), balance: Some(U256::ZERO), ..AccountDelta::default() };
            state.accounts.insert(account_key(number.into()), empty);
        }
    }

    fn update_account(&mut self, state: &mut HashedPostState, number: u32, sends: bool) {
        let delta = state.accounts.entry(account_key(number.into())).or_default();
        delta.balance = Some(new_value(&mut self.rng));
        delta.nonce = sends.then(|| u64::from(number) + self.number);
    }

    fn insert_account(&mut self, state: &mut HashedPostState) {
        let number = self.accounts.insert();
        let balance = Some(new_value(&mut self.rng));
        state.accounts.insert(account_key(number.into()), AccountDelta { balance, ..AccountDelta::default() });
    }

    fn change_slots(&mut self, state: &mut HashedPostState, contract: usize, counts: Counts) {
        let (rng, pool) = (&mut self.rng, &mut self.contracts[contract]);
        let storage = &mut state.accounts.entry(self.shape.contracts[contract].key).or_default().storage;
        for _ in 0..counts.update {
            let Some(number) = pool.pick(rng, self.draw) else { break };
            storage.insert(slot_key(number), new_value(rng));
        }
        for _ in 0..counts.insert {
            storage.insert(slot_key(pool.insert()), new_value(rng));
        }
        for _ in 0..counts.delete {
            let Some(number) = pool.delete(rng) else { break };
            storage.insert(slot_key(number), U256::ZERO);
        }
    }

    /// A contract that was not drawn yet.
    fn pick_contract(&mut self, taken: &mut HashSet<usize>) -> Option<usize> {
        if 2 * taken.len() >= self.contracts.len() {
            return None;
        }
        let count = self.contracts.len();
        let drawn = match self.draw {
            Draw::Uniform => {
                let slot = self.rng.random_range(0..self.slots);
                self.slots_before.partition_point(|before| *before <= slot) - 1
            }
            Draw::Zipf => rank(&mut self.rng, Draw::Zipf, count as u64) as usize,
        };
        let free = (drawn..count).chain(0..drawn).find(|contract| !taken.contains(contract));
        taken.extend(free);
        free
    }

    /// One block of mainnet's shape.
    fn mainnet(&mut self, scale: Scale) -> Block {
        let mut state = HashedPostState::new(EmptyAccounts::Remove);
        let mut contracts = HashSet::new();
        let mut slots = scale.of(700);
        while slots > 0 {
            let Some(contract) = self.pick_contract(&mut contracts) else { break };
            let written = slots_written(&mut self.rng).min(slots).min(self.contracts[contract].next / 4).max(1);
            slots -= written;
            self.write_slots(&mut state, contract, written);
            if self.rng.random_ratio(1, 5) {
                let delta = state.accounts.entry(self.shape.contracts[contract].key).or_default();
                delta.balance = Some(new_value(&mut self.rng));
            }
        }
        let (plain, new) = (scale.of(400).saturating_sub(contracts.len() as u32), scale.of(10));
        for at in 0..plain.saturating_sub(new) {
            let Some(number) = self.accounts.pick(&mut self.rng, self.draw) else { break };
            self.update_account(&mut state, number, at < scale.of(230));
        }
        (0..new).for_each(|_| self.insert_account(&mut state));
        let reads = self.reads(scale, &mut contracts);
        self.settle();
        Block { number: self.number, state, reads }
    }

    fn write_slots(&mut self, state: &mut HashedPostState, contract: usize, count: u32) {
        for _ in 0..count {
            let one = match self.rng.random_range(0..100) {
                0..7 => Counts { delete: 1, ..Counts::default() },
                7..22 => Counts { insert: 1, ..Counts::default() },
                _ => Counts { update: 1, ..Counts::default() },
            };
            self.change_slots(state, contract, one);
        }
    }

    /// 80 plain accounts, and 120 contracts with 980 slots.
    fn reads(&mut self, scale: Scale, contracts: &mut HashSet<usize>) -> Vec<(B256, Vec<B256>)> {
        let mut reads = Vec::new();
        for _ in 0..scale.of(80) {
            let Some(number) = self.accounts.pick(&mut self.rng, self.draw) else { break };
            reads.push((account_key(number.into()), Vec::new()));
        }
        let (mut slots, accounts) = (scale.of(980), scale.of(120));
        for left in (1..=accounts).rev() {
            let Some(contract) = self.pick_contract(contracts) else { break };
            let pool = &mut self.contracts[contract];
            let numbers = (0..slots.div_ceil(left)).map_while(|_| pool.pick(&mut self.rng, self.draw));
            let keys: Vec<_> = numbers.map(slot_key).collect();
            // What a small contract has not is left to those after it.
            slots -= keys.len() as u32;
            reads.push((self.shape.contracts[contract].key, keys));
        }
        reads
    }
}
