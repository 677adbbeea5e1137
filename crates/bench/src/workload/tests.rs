//! The workloads are the same in every run, have the stated shape, and their blocks follow on each other.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
};

use alloy_primitives::{B256, U256};
use foldgate_core::{AccountInfo, trie::bulk};
use foldgate_testing::oracle::{self, HashedAccount};

use super::*;

const SCALE: Scale = Scale::one_in(100);

/// A state as an ordered map, with the blocks applied to it one by one, each change checked against what is there.
#[derive(Default)]
struct State(BTreeMap<B256, HashedAccount>);

/// What a block did: accounts and slots, each updated, inserted, deleted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Did {
    accounts: [usize; 3],
    slots: [usize; 3],
}

impl State {
    fn new(scenario: &Scenario) -> Self {
        let mut state = Self::default();
        for item in scenario.items() {
            match item {
                LoadItem::Account { hashed_address, info: AccountInfo { nonce, balance, code_hash } } => {
                    let account = HashedAccount { nonce, balance, code_hash, storage: BTreeMap::new() };
                    assert!(state.0.insert(hashed_address, account).is_none());
                }
                LoadItem::Slot { hashed_slot, value } => {
                    state.0.last_entry().unwrap().get_mut().storage.insert(hashed_slot, value);
                }
                _ => {}
            }
        }
        state
    }

    fn apply(&mut self, block: &Block) -> Did {
        let mut did = Did::default();
        for (key, delta) in &block.state.accounts {
            let exists = self.0.contains_key(key);
            let empty = HashedAccount { code_hash: AccountInfo::default().code_hash, ..HashedAccount::default() };
            let account = self.0.entry(*key).or_insert(empty);
            account.nonce = delta.nonce.unwrap_or(account.nonce);
            account.balance = delta.balance.unwrap_or(account.balance);
            for (slot, value) in &delta.storage {
                let what = match (account.storage.contains_key(slot), value.is_zero()) {
                    (true, false) => 0,
                    (false, false) => 1,
                    (true, true) => 2,
                    (false, true) => panic!("a slot is deleted that is not there"),
                };
                did.slots[what] += 1;
                assert_ne!(account.storage.insert(*slot, *value), Some(*value), "a slot that stays as it was");
            }
            account.storage.retain(|_, value| !value.is_zero());
            let what = match (exists, account.nonce == 0 && account.balance.is_zero()) {
                (true, true) => 2,
                (exists, false) => usize::from(!exists),
                (false, true) => panic!("an account is deleted that is not there"),
            };
            did.accounts[what] += 1;
            if what == 2 {
                self.0.remove(key);
            }
        }
        did
    }

    fn leaves(&self) -> u64 {
        self.0.values().map(|account| 1 + account.storage.len() as u64).sum()
    }
}

#[test]
fn every_workload_follows_on_itself_and_the_ledger_knows_its_roots() {
    for workload in Workload::ALL {
        for draw in workload.draws() {
            let scenario = Scenario::new(workload, *draw, Scale::one_in(1000));
            let (mut state, mut ledger) = (State::new(&scenario), scenario.ledger());
            let loaded = bulk::state_root(scenario.items().map(Ok::<_, Infallible>)).unwrap();
            assert_eq!(ledger.state_root(), loaded, "{workload}");
            assert_eq!(scenario.accounts() + scenario.slots(), ledger.leaves());
            for (number, block) in (1..).zip(scenario.blocks().take(8)) {
                assert_eq!(block.number, number);
                state.apply(&block);
                ledger.apply(&block);
                assert_eq!(ledger.state_root(), oracle::state_root(&state.0), "{workload}, {draw}, block {number}");
                assert_eq!(ledger.leaves(), state.leaves());
            }
        }
    }
}

#[test]
fn blocks_change_as_much_as_is_stated() {
    let did = |workload| {
        let scenario = Scenario::new(workload, Draw::Uniform, SCALE);
        let mut state = State::new(&scenario);
        let blocks: Vec<_> = scenario.blocks().take(4).map(|block| state.apply(&block)).collect();
        assert!(blocks.iter().all(|did| *did == blocks[0]), "{blocks:?}");
        (scenario.accounts(), scenario.slots(), blocks[0])
    };
    let w1 = Did { accounts: [20, 2, 1], slots: [0; 3] };
    assert_eq!(did(Workload::W1), (10_000, 0, w1));
    assert_eq!(did(Workload::W1At10M), (100_000, 0, w1));
    assert_eq!(did(Workload::W2), (1, 2_000, Did { accounts: [1, 0, 0], slots: [45, 3, 3] }));
    let w3 = Did { accounts: [10 + 1 + 5, 0, 0], slots: [50 + 5, 0, 0] };
    assert_eq!(did(Workload::W3), (10_000 + 6, 10_000 + 5 * 20, w3));
    assert_eq!(did(Workload::W4), (10_001, 100_000, Did { accounts: [1, 0, 0], slots: [50, 0, 0] }));
    assert_eq!(did(Workload::W4Spread), (10_005, 1_000, Did { accounts: [5, 0, 0], slots: [5, 0, 0] }));
}

#[test]
fn a_workload_is_the_same_in_every_run_and_draws_differ() {
    let blocks = |draw| {
        let scenario = Scenario::new(Workload::M60, draw, SCALE);
        scenario.blocks().take(3).map(|block| (block.state, block.reads)).collect::<Vec<_>>()
    };
    assert_eq!(blocks(Draw::Uniform), blocks(Draw::Uniform));
    assert_eq!(blocks(Draw::Zipf), blocks(Draw::Zipf));
    assert_ne!(blocks(Draw::Uniform), blocks(Draw::Zipf));
}

#[test]
fn m60_has_the_shape_of_mainnet_and_zipf_comes_back_to_its_keys() {
    let mut shared = HashMap::new();
    for draw in [Draw::Uniform, Draw::Zipf] {
        let scenario = Scenario::new(Workload::M60, draw, Scale::FULL);
        assert_eq!(scenario.accounts(), 1_010_000);
        let blocks: Vec<_> = scenario.blocks().take(30).collect();
        let mut writes = Vec::new();
        let (mut zero, mut nonces) = (0, 0);
        let mut seen: BTreeSet<B256> = BTreeSet::new();
        let mut again = 0;
        for block in &blocks {
            let accounts = &block.state.accounts;
            assert_eq!(accounts.len(), 400);
            assert_eq!(block.reads.len(), 200);
            let read: usize = block.reads.iter().map(|(_, slots)| slots.len()).sum();
            assert!((975..=980).contains(&read), "{read} slots read");
            let slots: Vec<_> = accounts.values().map(|delta| delta.storage.len()).filter(|count| *count > 0).collect();
            assert_eq!(slots.iter().sum::<usize>(), 700);
            writes.extend(slots);
            zero += accounts.values().flat_map(|delta| delta.storage.values()).filter(|value| value.is_zero()).count();
            nonces += accounts.values().filter(|delta| delta.nonce.is_some()).count();
            again += accounts.keys().filter(|key| seen.contains(*key)).count();
            seen.extend(accounts.keys());
        }
        writes.sort_unstable();
        let quantile = |part: f64| writes[(part * (writes.len() - 1) as f64) as usize];
        assert!((2..=4).contains(&quantile(0.5)), "{}", quantile(0.5));
        assert!((5..=7).contains(&quantile(0.9)), "{}", quantile(0.9));
        assert!((20..=80).contains(&quantile(0.99)), "{}", quantile(0.99));
        assert!(quantile(1.0) <= 300);
        assert!((4..=10).contains(&(100 * zero / (30 * 700))), "{zero} slots end zero");
        assert!((200..=230).contains(&(nonces / 30)), "{nonces} nonces");
        shared.insert(draw, again);
    }
    assert!(shared[&Draw::Zipf] > 2 * shared[&Draw::Uniform], "{shared:?}");
}

#[test]
fn m1g_is_sixteen_blocks_in_one() {
    let scenario = Scenario::new(Workload::M1G, Draw::Uniform, SCALE);
    let mut state = State::new(&scenario);
    let did = state.apply(&scenario.blocks().next().unwrap());
    assert!(did.slots.iter().sum::<usize>() > 16 * 3, "{did:?}");
    assert_eq!(did.accounts[1], 16, "one new account in each");
}

#[test]
fn populations_are_sorted_by_key_and_find_their_members() {
    for (population, key) in [
        (Population::accounts(3000), (|i| account_key(u64::from(i))) as fn(u32) -> B256),
        (Population::slots(3000), slot_key),
    ] {
        let mut expected: Vec<_> = (0..3000).map(|i| (key(i), i)).collect();
        expected.sort_unstable();
        assert_eq!(population.in_order().collect::<Vec<_>>(), expected);
        assert_eq!(population.len(), 3000);
        assert!(!population.is_empty());
        assert_eq!(population.find(&key(1234)), Some(1234));
        assert_eq!(population.find(&key(3000)), None);
    }
    assert_eq!(Population::accounts(0).in_order().next(), None);
    assert_ne!(initial_slot(0), U256::ZERO);
}

#[test]
fn names_lead_back_to_their_workloads() {
    for workload in Workload::ALL {
        assert_eq!(workload.name().parse(), Ok(workload));
    }
    assert!("w5".parse::<Workload>().unwrap_err().to_string().contains("\"w5\""));
}
