//! How large each workload's state is, and what its blocks change.

use std::{collections::BTreeMap, iter::Peekable, ops::Range, sync::Arc};

use alloy_primitives::{B256, keccak256};
use foldgate_core::trie::bulk::LoadItem;

use super::{
    Scale, Workload,
    population::{CONTRACT_CODE, InOrder, Population, contract_key, initial_account, initial_contract, initial_slot},
};

/// How many members of a population a block changes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) update: u32,
    pub(crate) insert: u32,
    pub(crate) delete: u32,
}

/// What a block changes.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// The same numbers in every block.
    Fixed {
        /// Of the plain accounts.
        accounts: Counts,
        /// Of the slots of each contract in the range.
        slots: Vec<(Range<u32>, Counts)>,
    },
    /// So many blocks of mainnet's shape in one, at the scale.
    Mainnet { times: u32, scale: Scale },
}

/// A contract at first.
#[derive(Debug, Clone)]
pub(crate) struct Contract {
    pub(crate) key: B256,
    pub(crate) slots: Population,
}

/// A workload's sizes.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) accounts: Population,
    /// By their numbers.
    pub(crate) contracts: Vec<Contract>,
    pub(crate) change: Change,
}

/// How many contracts of which size the states of `m60` and `m1g` have, the largest first: 10,000 contracts with 4.2
/// million slots.
const MAINNET_CONTRACTS: [(u32, u32); 7] =
    [(30, 32_768), (170, 8_192), (500, 2_048), (1_000, 512), (1_800, 128), (2_500, 32), (4_000, 8)];

impl Shape {
    pub(crate) fn new(workload: Workload, scale: Scale) -> Self {
        let of = |number| scale.of(number);
        let update = |number| Counts { update: of(number), ..Counts::default() };
        let million = of(1_000_000);
        let fixed = |accounts, slots| Change::Fixed { accounts, slots };
        let w1 = Counts { update: of(2_000), insert: of(200), delete: of(50) };
        let (accounts, contracts, change) = match workload {
            Workload::W1 => (million, vec![], fixed(w1, vec![])),
            Workload::W1At10M => (of(10_000_000), vec![], fixed(w1, vec![])),
            Workload::W2 => {
                let slots = Counts { update: of(4_500), insert: of(250), delete: of(250) };
                (0, vec![(1, of(200_000))], fixed(Counts::default(), vec![(0..1, slots)]))
            }
            Workload::W3 => {
                let small = of(500);
                let slots = vec![(0..1, update(5_000)), (1..1 + small, update(20))];
                (million, vec![(1, million), (small, of(2_000))], fixed(update(1_000), slots))
            }
            Workload::W4 => (million, vec![(1, of(10_000_000))], fixed(Counts::default(), vec![(0..1, update(5_000))])),
            Workload::W4Spread => {
                let many = of(500);
                (million, vec![(many, of(20_000))], fixed(Counts::default(), vec![(0..many, update(10))]))
            }
            Workload::M60 | Workload::M1G => {
                let times = if workload == Workload::M60 { 1 } else { 16 };
                let contracts = MAINNET_CONTRACTS.map(|(count, slots)| (of(count), of(slots).max(8)));
                (million, contracts.into(), Change::Mainnet { times, scale })
            }
        };
        Self { accounts: Population::accounts(accounts), contracts: contracts_of(&contracts), change }
    }
}

/// Contracts of one size share their slots' order.
fn contracts_of(sizes: &[(u32, u32)]) -> Vec<Contract> {
    let mut populations = BTreeMap::new();
    let mut contracts = Vec::new();
    for (count, size) in sizes {
        let slots = populations.entry(*size).or_insert_with(|| Population::slots(*size));
        for _ in 0..*count {
            contracts.push(Contract { key: contract_key(contracts.len() as u32), slots: slots.clone() });
        }
    }
    contracts
}

/// The state, sorted.
pub(crate) fn items(shape: Arc<Shape>) -> impl Iterator<Item = LoadItem> {
    let mut contracts: Vec<_> = shape.contracts.clone();
    contracts.sort_unstable_by_key(|contract| contract.key);
    let code = LoadItem::Code { code_hash: keccak256(CONTRACT_CODE), code: CONTRACT_CODE.into() };
    let code = (!contracts.is_empty()).then_some(code);
    let accounts = shape.accounts.in_order().peekable();
    code.into_iter().chain(Items { accounts, contracts: contracts.into_iter().peekable(), slots: None })
}

struct Items {
    accounts: Peekable<InOrder>,
    contracts: Peekable<std::vec::IntoIter<Contract>>,
    /// Of the contract that came last.
    slots: Option<InOrder>,
}

impl Iterator for Items {
    type Item = LoadItem;

    fn next(&mut self) -> Option<LoadItem> {
        if let Some((hashed_slot, number)) = self.slots.as_mut().and_then(Iterator::next) {
            return Some(LoadItem::Slot { hashed_slot, value: initial_slot(number) });
        }
        let account = self.accounts.peek().map(|(key, _)| *key);
        if let Some(contract) = self.contracts.next_if(|contract| account.is_none_or(|key| contract.key < key)) {
            self.slots = Some(contract.slots.in_order());
            return Some(LoadItem::Account { hashed_address: contract.key, info: initial_contract() });
        }
        let (hashed_address, number) = self.accounts.next()?;
        Some(LoadItem::Account { hashed_address, info: initial_account(number) })
    }
}
