//! Time of one block's fold, resolved changes to root, difference and rows, on one thread and on those of the pool.
//!
//! Invariants:
//! 1. Every iteration folds the next of several blocks onto the same parent, so that no block's keys are always warm.
//! 2. `memory` reads a [`MemoryStore`], with its lock and its sorted tables; `map` reads the same rows from hash maps,
//!    which shows what is left once reading costs little. On a noisy machine the `fastest` column is the one to compare.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    ops::Bound,
    sync::{Arc, LazyLock},
};

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use divan::{Bencher, counter::ItemsCount};
use foldgate_core::{
    Account, AccountInfo, BlockHash, BlockNumHash, BlockNumber, FoldOptions, HashedPostState, LeafChanges, LoadSource,
    MemorySnapshot, MemoryStore, NodeKey, StateAnchor, StateReader, StateWrites, TrieReader, TrieStore, fold, resolve,
    trie::bulk::{LoadItem, StateLoad},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::index};

const ACCOUNTS: u64 = 200_000;
const BLOCKS: u64 = 16;
/// The large contract's slots, and those of each of the small ones.
const LARGE: u64 = 100_000;
const SMALL: u64 = 100;
const CONTRACTS: u64 = 400;

fn main() {
    println!("{ACCOUNTS} accounts; contracts of {LARGE} and of {CONTRACTS} times {SMALL} slots");
    divan::main();
}

/// A state and blocks on it.
struct World {
    memory: MemorySnapshot,
    map: MapReader,
    blocks: HashMap<Workload, Vec<LeafChanges>>,
    items: Vec<LoadItem>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Workload {
    /// 2,000 accounts change, 200 come, 50 go.
    Accounts,
    /// Of one large contract 2,000 slots change, 150 come, 100 go.
    Whale,
    /// 400 contracts change 5 slots each.
    Spread,
    /// 170 plain accounts, and 230 contracts of which 3 slots change each.
    Mainnet,
}

const WORKLOADS: [Workload; 4] = [Workload::Accounts, Workload::Whale, Workload::Spread, Workload::Mainnet];

fn address(i: u64) -> B256 {
    keccak256(Address::from_slice(&keccak256(i.to_be_bytes())[..20]))
}

fn slot(i: u64) -> B256 {
    keccak256(B256::from(U256::from(i)))
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let mut accounts: BTreeMap<B256, (AccountInfo, u64)> = (0..ACCOUNTS)
        .map(|i| {
            (
                address(i),
                (AccountInfo { nonce: i, balance: U256::from(i * 1_000_000_001), ..AccountInfo::default() }, 0),
            )
        })
        .collect();
    for contract in 0..=CONTRACTS {
        let code_hash = B256::with_last_byte(1);
        let slots = if contract == 0 { LARGE } else { SMALL };
        accounts.insert(
            address(ACCOUNTS + contract),
            (AccountInfo { nonce: 1, code_hash, ..AccountInfo::default() }, slots),
        );
    }
    let mut items = Vec::new();
    for (hashed_address, (info, slots)) in accounts {
        items.push(LoadItem::Account { hashed_address, info });
        let slots: BTreeMap<_, _> = (0..slots).map(|i| (slot(i), U256::from(i + 1))).collect();
        items.extend(slots.into_iter().map(|(hashed_slot, value)| LoadItem::Slot { hashed_slot, value }));
    }
    let store = MemoryStore::new();
    let load = || StateLoad::new(items.clone().into_iter().map(Ok::<_, Infallible>), BlockNumHash::new(0, B256::ZERO));
    store.load(load()).unwrap();
    let memory = store.snapshot().unwrap();
    let map = MapReader::new(load());
    let blocks = WORKLOADS.map(|workload| (workload, (0..BLOCKS).map(|seed| block(workload, seed, &memory)).collect()));
    World { memory, map, blocks: blocks.into(), items }
});

fn block(workload: Workload, seed: u64, parent: &MemorySnapshot) -> LeafChanges {
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut state = HashedPostState::default();
    let touch = |state: &mut HashedPostState, rng: &mut StdRng, i: u64| {
        state.accounts.entry(address(i)).or_default().balance = Some(U256::from(rng.random::<u64>()));
    };
    let slots = |state: &mut HashedPostState, rng: &mut StdRng, contract: u64, size: u64, counts: [usize; 3]| {
        let delta = state.accounts.entry(address(ACCOUNTS + contract)).or_default();
        for (at, i) in index::sample(rng, size as usize, counts[0] + counts[2]).iter().enumerate() {
            let value = if at < counts[0] { U256::from(rng.random::<u64>()) } else { U256::ZERO };
            delta.storage.insert(slot(i as u64), value);
        }
        for _ in 0..counts[1] {
            delta.storage.insert(B256::new(rng.random()), U256::from(rng.random::<u64>()));
        }
    };
    match workload {
        Workload::Accounts => {
            for (at, i) in index::sample(rng, ACCOUNTS as usize, 2050).iter().enumerate() {
                if at < 2000 {
                    touch(&mut state, rng, i as u64);
                } else {
                    state.accounts.entry(address(i as u64)).or_default().delete();
                }
            }
            (0..200).for_each(|i| touch(&mut state, rng, (seed + 1) * 1_000_000 + i));
        }
        Workload::Whale => slots(&mut state, rng, 0, LARGE, [2000, 150, 100]),
        Workload::Spread => (1..=CONTRACTS).for_each(|i| slots(&mut state, rng, i, SMALL, [4, 1, 0])),
        Workload::Mainnet => {
            index::sample(rng, ACCOUNTS as usize, 170).iter().for_each(|i| touch(&mut state, rng, i as u64));
            let contracts = index::sample(rng, CONTRACTS as usize, 230);
            contracts.iter().for_each(|i| slots(&mut state, rng, 1 + i as u64, SMALL, [2, 1, 0]));
        }
    }
    resolve(&state, parent).unwrap()
}

fn run<R: TrieReader>(bencher: Bencher<'_, '_>, reader: &R, workload: Workload, options: FoldOptions) {
    let blocks = &WORLD.blocks[&workload];
    let next = Cell::new(0);
    bencher
        .with_inputs(|| {
            next.set((next.get() + 1) % blocks.len());
            blocks[next.get()].clone()
        })
        .bench_local_values(|changes| fold(reader, changes, &options).unwrap());
}

#[divan::bench(args = WORKLOADS, sample_count = 200, sample_size = 1)]
fn memory_serial(bencher: Bencher<'_, '_>, workload: Workload) {
    run(bencher, &WORLD.memory, workload, FoldOptions::SERIAL);
}

#[divan::bench(args = WORKLOADS, sample_count = 200, sample_size = 1)]
fn memory_parallel(bencher: Bencher<'_, '_>, workload: Workload) {
    run(bencher, &WORLD.memory, workload, FoldOptions::default());
}

#[divan::bench(args = WORKLOADS, sample_count = 200, sample_size = 1)]
fn map_serial(bencher: Bencher<'_, '_>, workload: Workload) {
    run(bencher, &WORLD.map, workload, FoldOptions::SERIAL);
}

#[divan::bench(args = WORKLOADS, sample_count = 200, sample_size = 1)]
fn map_parallel(bencher: Bencher<'_, '_>, workload: Workload) {
    run(bencher, &WORLD.map, workload, FoldOptions::default());
}

/// The whole state from its items to rows, which are thrown away.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn load(bencher: Bencher<'_, '_>) {
    let items = &WORLD.items;
    bencher.counter(ItemsCount::new(items.len())).bench_local(|| {
        let items = items.iter().cloned().map(Ok::<_, Infallible>);
        let mut load = StateLoad::new(items, BlockNumHash::new(0, B256::ZERO));
        while load.next_rows().unwrap().is_some() {}
        load.anchor().unwrap()
    });
}

/// Keys of 400 accounts with 3 slots each.
#[divan::bench]
fn hash_keys(bencher: Bencher<'_, '_>) {
    let account = |i: u64| {
        let storage = (0..3).map(|slot| (U256::from(i * 3 + slot), U256::from(1))).collect();
        let address = Address::from_slice(&keccak256(i.to_be_bytes())[..20]);
        (address, foldgate_core::AccountWrites { storage, ..Default::default() })
    };
    let writes = StateWrites { accounts: (0..400).map(account).collect() };
    let mut hasher = foldgate_core::KeyHasher::default();
    bencher.bench_local(|| hasher.hash_writes(&writes).slots.len());
}

/// A state's rows in hash maps.
#[derive(Debug, Clone)]
struct MapReader(Arc<Maps>);

#[derive(Debug)]
struct Maps {
    anchor: StateAnchor,
    nodes: HashMap<NodeKey, Bytes, alloy_primitives::map::DefaultHashBuilder>,
    accounts: BTreeMap<B256, Account>,
    slots: BTreeMap<(B256, B256), U256>,
}

impl MapReader {
    fn new<L: LoadSource>(mut load: L) -> Self {
        let anchor = StateAnchor { block: BlockNumHash::new(0, B256::ZERO), state_root: B256::ZERO };
        let mut maps = Maps { anchor, nodes: HashMap::default(), accounts: BTreeMap::new(), slots: BTreeMap::new() };
        while let Some(rows) = load.next_rows().unwrap() {
            maps.nodes.extend(rows.nodes.into_iter().filter_map(|(key, row)| Some((key, row?))));
            maps.accounts.extend(rows.accounts.into_iter().filter_map(|(key, account)| Some((key, account?))));
            maps.slots.extend(rows.slots);
        }
        maps.anchor = load.anchor().unwrap();
        Self(Arc::new(maps))
    }
}

impl StateReader for MapReader {
    type Error = Infallible;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, Infallible> {
        Ok(self.0.accounts.get(hashed_address).map(Account::info))
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, Infallible> {
        Ok(self.0.slots.get(&(*hashed_address, *hashed_slot)).copied().unwrap_or_default())
    }

    fn code(&self, _: &B256) -> Result<Option<Bytes>, Infallible> {
        Ok(None)
    }

    fn block_hash(&self, _: BlockNumber) -> Result<Option<BlockHash>, Infallible> {
        Ok(None)
    }
}

impl TrieReader for MapReader {
    fn anchor(&self) -> StateAnchor {
        self.0.anchor
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, Infallible> {
        Ok(self.0.accounts.get(hashed_address).copied())
    }

    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, Infallible> {
        Ok(self.0.nodes.get(key).cloned())
    }

    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, Infallible> {
        Ok(self.0.accounts.range::<B256, _>(start..).take(limit).map(|(key, account)| (*key, *account)).collect())
    }

    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, Infallible> {
        let range =
            (Bound::Included((*hashed_address, *start)), Bound::Included((*hashed_address, B256::repeat_byte(255))));
        Ok(self.0.slots.range(range).take(limit).map(|((_, slot), value)| (*slot, *value)).collect())
    }
}
