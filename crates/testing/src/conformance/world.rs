//! The model that stores are held to: a chain of states in sorted maps, and what leads from one to the next.
//!
//! Invariants:
//! 1. `moments[i]` is the state after block `genesis + i`; the last one is the tip.
//! 2. Batches are made from two moments by comparing them, so they are right whatever the random step did.
//! 3. No two blocks ever share a hash, not even at one height on two branches.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fmt::Debug,
    sync::Arc,
};

use alloy_primitives::{B256, Bytes, U256, keccak256};
use foldgate_core::{
    Account, BackendError, BalStore, BlockHash, BlockNumHash, BlockNumber, CommitBatch, CommittedBlock, LoadSource,
    Nibbles, NodeKey, Refusal, ReverseDiff, Rows, StateAnchor, StateReader, TrieId, TrieReader, UnwindBatch,
    diff::{AccountValues, SlotValue},
    store::{BLOCK_HASH_WINDOW, Retention, next_key},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// Unwraps what a backend gave, and says where the suite stood if it failed.
///
/// # Panics
/// If the backend failed.
#[track_caller]
pub fn good<T, E: Debug>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("the store failed: {error:?}"),
    }
}

/// What a backend refused.
///
/// # Panics
/// If it accepted, or failed without a refusal.
#[track_caller]
pub fn refusal<T, E: BackendError>(result: Result<T, E>) -> Refusal {
    match result {
        Ok(_) => panic!("the store accepted what it must refuse"),
        Err(error) => match error.refusal() {
            Some(refusal) => refusal.clone(),
            None => panic!("the store failed instead of refusing: {error:?}"),
        },
    }
}

/// A generator from `FOLDGATE_TEST_SEED`, or from a new seed; prints it.
///
/// # Panics
/// If the variable is set to something else than a number.
pub fn seeded() -> StdRng {
    let seed = match std::env::var("FOLDGATE_TEST_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("FOLDGATE_TEST_SEED is not a number: {text:?}")),
        Err(_) => rand::random(),
    };
    println!("FOLDGATE_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// A state: what a store holds apart from the chain's history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// By hashed address.
    pub accounts: BTreeMap<B256, Account>,
    /// By hashed address and hashed slot; no value is zero.
    pub slots: BTreeMap<(B256, B256), U256>,
    /// Trie rows.
    pub nodes: BTreeMap<NodeKey, Bytes>,
    /// By code hash.
    pub codes: BTreeMap<B256, Bytes>,
}

impl State {
    /// All rows, as a load gives them.
    pub fn rows(&self) -> Rows {
        rows_between(&Self::default(), self)
    }
}

/// The rows that lead from one state to another. Code is added, never removed.
pub fn rows_between(from: &State, to: &State) -> Rows {
    fn changes<K: Ord + Copy, V: Clone + PartialEq>(from: &BTreeMap<K, V>, to: &BTreeMap<K, V>) -> Vec<(K, Option<V>)> {
        let keys: BTreeSet<K> = from.keys().chain(to.keys()).copied().collect();
        let changed = keys.into_iter().filter(|key| from.get(key) != to.get(key));
        changed.map(|key| (key, to.get(&key).cloned())).collect()
    }
    let slots = changes(&from.slots, &to.slots).into_iter().map(|(key, value)| (key, value.unwrap_or_default()));
    let codes = changes(&from.codes, &to.codes).into_iter().filter_map(|(key, code)| Some((key, code?)));
    Rows {
        accounts: changes(&from.accounts, &to.accounts),
        slots: slots.collect(),
        nodes: changes(&from.nodes, &to.nodes),
        codes: codes.collect(),
    }
}

/// What leads from `to` back to `from`.
pub fn reverse_between(from: &State, to: &State) -> ReverseDiff {
    let rows = rows_between(to, from);
    let mut touched: BTreeMap<B256, Vec<SlotValue>> =
        rows.accounts.iter().map(|(hashed_address, _)| (*hashed_address, Vec::new())).collect();
    for ((hashed_address, hashed_slot), value) in rows.slots {
        touched.entry(hashed_address).or_default().push(SlotValue { hashed_slot, value });
    }
    let accounts = touched.into_iter().map(|(hashed_address, slots)| AccountValues {
        hashed_address,
        record: from.accounts.get(&hashed_address).map_or_else(Bytes::new, |account| account.to_bytes().into()),
        slots,
    });
    ReverseDiff { accounts: accounts.collect() }
}

/// Everything that a snapshot of one block has to serve.
#[derive(Debug, Clone)]
pub struct Moment {
    /// The block.
    pub anchor: StateAnchor,
    /// The state after it.
    pub state: Arc<State>,
    /// The hashes of the block and of its ancestors back to the genesis.
    pub block_hashes: Arc<BTreeMap<BlockNumber, BlockHash>>,
    /// What leads back to the moment before; none for the genesis.
    pub reverse: Option<ReverseDiff>,
    /// The block's raw list.
    pub bal: Option<Bytes>,
}

/// Keys of which random steps draw, so that they meet again and again: edges, neighbours, and some in between.
#[derive(Debug, Clone)]
pub struct KeyPool {
    /// Hashed addresses and hashed slots.
    pub keys: Vec<B256>,
    /// Slot paths of nodes.
    pub paths: Vec<Nibbles>,
}

impl Default for KeyPool {
    fn default() -> Self {
        let one = B256::with_last_byte(1);
        let middle = keccak256(b"middle");
        let mut keys = vec![B256::ZERO, one, B256::repeat_byte(0xff), B256::repeat_byte(0x11), middle];
        keys.extend(next_key(&middle));
        keys.push(B256::from(U256::MAX - U256::from(1)));
        keys.extend((0_u8..12).map(|at| keccak256([at])));
        let full = Nibbles::unpack(middle);
        let paths = [0, 1, 2, 31, 32, 33, 62, 63].map(|length| full.slice(..length));
        let mut paths: Vec<_> = paths.into_iter().collect();
        paths.extend([[0_u8; 1], [15; 1]].map(Nibbles::from_nibbles));
        paths.extend([[0_u8; 63], [15; 63]].map(Nibbles::from_nibbles));
        Self { keys, paths }
    }
}

/// The chain.
#[derive(Debug, Clone)]
pub struct World {
    /// Its states, the genesis first.
    pub moments: Vec<Moment>,
    /// Every state was reached through these keys.
    pub pool: KeyPool,
    /// The lists of all blocks that ever were, kept or dropped.
    pub seen_blocks: Vec<BlockNumHash>,
    /// Everything below was pruned.
    pub pruned_below: BlockNumber,
    /// All code that was ever written.
    pub codes: BTreeMap<B256, Bytes>,
    made: u64,
}

impl World {
    /// A chain that consists of its genesis, at height `number`.
    pub fn new(number: BlockNumber, genesis: State) -> Self {
        let mut world = Self {
            moments: Vec::new(),
            pool: KeyPool::default(),
            seen_blocks: Vec::new(),
            pruned_below: 0,
            codes: genesis.codes.clone(),
            made: 0,
        };
        world.push(number, genesis, None, None);
        world
    }

    /// A chain from a random genesis at height 0.
    pub fn random(rng: &mut StdRng) -> Self {
        let mut state = State::default();
        for _ in 0..4 {
            mutate(&mut state, &KeyPool::default(), rng);
        }
        Self::new(0, state)
    }

    fn push(&mut self, number: BlockNumber, state: State, reverse: Option<ReverseDiff>, bal: Option<Bytes>) {
        self.made += 1;
        let block = BlockNumHash::new(number, keccak256([b"block".as_slice(), &self.made.to_be_bytes()].concat()));
        let mut block_hashes = self.moments.last().map(|tip| tip.block_hashes.as_ref().clone()).unwrap_or_default();
        block_hashes.insert(number, block.hash);
        self.codes.extend(state.codes.iter().map(|(hash, code)| (*hash, code.clone())));
        self.seen_blocks.push(block);
        self.moments.push(Moment {
            anchor: StateAnchor { block, state_root: keccak256(block.hash) },
            state: Arc::new(state),
            block_hashes: Arc::new(block_hashes),
            reverse,
            bal,
        });
    }

    /// The newest block's moment.
    pub fn tip(&self) -> &Moment {
        &self.moments[self.moments.len() - 1]
    }

    /// The genesis' moment.
    pub fn genesis(&self) -> &Moment {
        &self.moments[0]
    }

    /// The moment at this height, if the chain has it.
    pub fn at(&self, number: BlockNumber) -> Option<&Moment> {
        let index = number.checked_sub(self.genesis().anchor.block.number)?;
        self.moments.get(usize::try_from(index).ok()?)
    }

    /// Adds a block with this state and list.
    pub fn extend(&mut self, state: State, bal: Option<Bytes>) {
        let tip = self.tip();
        let reverse = reverse_between(&tip.state, &state);
        let number = tip.anchor.block.number + 1;
        self.push(number, state, Some(reverse), bal);
    }

    /// Adds a block with random changes; every third one brings no list.
    pub fn extend_randomly(&mut self, rng: &mut StdRng) {
        let mut state = self.tip().state.as_ref().clone();
        mutate(&mut state, &self.pool, rng);
        let bal = (rng.random_range(0..3) > 0).then(|| random_bytes(rng, 200));
        self.extend(state, bal);
    }

    /// A copy whose further blocks have other hashes than those of this chain and of copies with another `salt`.
    pub fn fork(&self, salt: u32) -> Self {
        Self { made: self.made + (u64::from(salt) << 32), ..self.clone() }
    }

    /// The batch that leads from the block at height `parent` to the tip.
    ///
    /// # Panics
    /// If there is no such block below the tip.
    pub fn batch_from(&self, parent: BlockNumber) -> CommitBatch {
        self.batch(parent, self.tip().anchor.block.number)
    }

    /// The batch that leads from the block at height `parent` to the one at height `tip`.
    ///
    /// # Panics
    /// If there are no such blocks.
    pub fn batch(&self, parent: BlockNumber, tip: BlockNumber) -> CommitBatch {
        let (Some(from), Some(to)) = (self.at(parent), self.at(tip)) else { panic!("no blocks {parent} and {tip}") };
        let moments = (parent + 1..=tip).filter_map(|number| self.at(number));
        let blocks = moments.map(|moment| CommittedBlock {
            anchor: moment.anchor,
            reverse: moment.reverse.clone().unwrap_or_default(),
            bal: moment.bal.clone(),
        });
        CommitBatch { parent: from.anchor.block, blocks: blocks.collect(), rows: rows_between(&from.state, &to.state) }
    }

    /// Cuts the chain back to this height and gives the batch that does the same to a store.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn unwind_to(&mut self, number: BlockNumber) -> UnwindBatch {
        let (from, old) = (self.tip().anchor.block, Arc::clone(&self.tip().state));
        self.moments.retain(|moment| moment.anchor.block.number <= number);
        assert_eq!(self.tip().anchor.block.number, number, "no block {number} to unwind to");
        let rows = rows_between(&old, &self.tip().state);
        UnwindBatch { from, to: self.tip().anchor, rows }
    }

    /// What the store still keeps of the history.
    pub fn retention(&self) -> Retention {
        Retention::below(self.pruned_below, self.tip().anchor)
    }

    /// A source that loads the genesis in pieces of about `piece` rows of each kind.
    pub fn source(&self, piece: usize) -> Pieces {
        Pieces::new(self.genesis().state.rows(), self.genesis().anchor, piece)
    }

    /// A new store's worth of the genesis in it.
    ///
    /// # Panics
    /// If the store fails.
    pub fn load_into(&self, store: &impl BalStore) {
        assert_eq!(good(store.load(self.source(7))), self.genesis().anchor);
    }

    /// Holds everything in the store to the model.
    ///
    /// # Panics
    /// Where the store differs.
    pub fn check_store(&self, store: &impl BalStore) {
        assert_eq!(good(store.genesis()), Some(self.genesis().anchor), "genesis");
        assert_eq!(good(store.tip()), Some(self.tip().anchor), "tip");
        self.check_history(store);
        self.check_snapshot(&good(store.snapshot()), self.tip());
        for (hash, code) in &self.codes {
            let snapshot = good(store.snapshot());
            assert_eq!(good(snapshot.code(hash)).as_ref(), Some(code), "code is never deleted: {hash}");
        }
    }

    fn check_history(&self, store: &impl BalStore) {
        let keeps = self.retention();
        let numbers: BTreeSet<_> = self.seen_blocks.iter().map(|block| block.number).collect();
        for number in numbers {
            let anchor = self.at(number).map(|moment| moment.anchor).filter(|_| number >= keeps.anchors);
            assert_eq!(good(store.committed(number)), anchor, "committed block {number}");
            let reverse = self.at(number).filter(|_| number >= keeps.diffs).and_then(|moment| moment.reverse.clone());
            assert_eq!(good(store.reverse_diff(number)), reverse, "reverse diff of block {number}");
        }
        for block in &self.seen_blocks {
            let moment = self.at(block.number).filter(|moment| moment.anchor.block == *block);
            let bal = moment.filter(|_| block.number >= keeps.diffs).and_then(|moment| moment.bal.clone());
            assert_eq!(good(store.bal(*block)), bal, "list of block {block}");
        }
    }

    /// Holds a snapshot to a moment, which need not be on the chain any more.
    ///
    /// # Panics
    /// Where the snapshot differs.
    pub fn check_snapshot<R: TrieReader>(&self, snapshot: &R, moment: &Moment) {
        let state = &moment.state;
        assert_eq!(snapshot.anchor(), moment.anchor, "anchor");
        let accounts = scan(7, |start, limit| snapshot.accounts_from(start, limit));
        assert!(
            accounts.iter().eq(state.accounts.iter().map(|(key, value)| (*key, *value)).collect::<Vec<_>>().iter())
        );
        let addresses: BTreeSet<_> = self.pool.keys.iter().chain(state.accounts.keys()).copied().collect();
        for hashed_address in &addresses {
            let account = state.accounts.get(hashed_address).copied();
            assert_eq!(good(snapshot.account(hashed_address)), account, "account {hashed_address}");
            let info = account.map(|account| account.info());
            assert_eq!(good(snapshot.account_info(hashed_address)), info, "info of {hashed_address}");
            self.check_slots(snapshot, state, hashed_address);
        }
        let tries = addresses.into_iter().map(TrieId::Storage).chain([TrieId::Accounts]);
        let pool = tries.flat_map(|trie| self.pool.paths.iter().map(move |path| NodeKey::new(trie, *path)));
        for key in pool.chain(state.nodes.keys().copied()) {
            assert_eq!(good(snapshot.node(&key)).as_ref(), state.nodes.get(&key), "node {key:?}");
        }
        for (hash, code) in &state.codes {
            assert_eq!(good(snapshot.code(hash)).as_ref(), Some(code), "code {hash}");
        }
        assert_eq!(good(snapshot.code(&keccak256(b"no such code"))), None);
        self.check_batches(snapshot, state);
        check_block_hashes(snapshot, moment);
    }

    /// Batches answer as single reads do: sorted ones, with keys that are absent and keys that stand twice; unsorted
    /// ones; and empty ones.
    fn check_batches<R: TrieReader>(&self, snapshot: &R, state: &State) {
        let mut keys = self.pool.keys.clone();
        keys.extend(state.accounts.keys().take(20));
        keys.sort_unstable();
        let mut pairs: Vec<_> = keys.iter().flat_map(|address| keys.iter().map(|slot| (*address, *slot))).collect();
        let tries = keys.iter().map(|key| TrieId::Storage(*key)).chain([TrieId::Accounts]);
        let mut nodes: Vec<_> =
            tries.flat_map(|trie| self.pool.paths.iter().map(move |path| NodeKey::new(trie, *path))).collect();
        nodes.sort_unstable();
        for order in ["ascending", "descending"] {
            let accounts: Vec<_> = keys.iter().map(|key| state.accounts.get(key).copied()).collect();
            assert_eq!(good(snapshot.accounts(&keys)), accounts, "a batch of accounts, {order}");
            let slots: Vec<_> = pairs.iter().map(|key| state.slots.get(key).copied().unwrap_or_default()).collect();
            assert_eq!(good(snapshot.slots(&pairs)), slots, "a batch of slots, {order}");
            let rows: Vec<_> = nodes.iter().map(|key| state.nodes.get(key).cloned()).collect();
            assert_eq!(good(snapshot.nodes(&nodes)), rows, "a batch of rows, {order}");
            keys.reverse();
            pairs.reverse();
            nodes.reverse();
        }
        assert_eq!(good(snapshot.accounts(&[])), []);
        assert_eq!(good(snapshot.slots(&[])), Vec::<U256>::new());
        assert_eq!(good(snapshot.nodes(&[])), Vec::<Option<Bytes>>::new());
    }

    fn check_slots<R: TrieReader>(&self, snapshot: &R, state: &State, hashed_address: &B256) {
        let slots = scan(5, |start, limit| snapshot.slots_from(hashed_address, start, limit));
        let all = (*hashed_address, B256::ZERO)..=(*hashed_address, B256::repeat_byte(0xff));
        let expected: Vec<_> = state.slots.range(all).map(|((_, slot), value)| (*slot, *value)).collect();
        assert_eq!(slots, expected, "slots of {hashed_address}");
        for hashed_slot in self.pool.keys.iter().chain(expected.iter().map(|(slot, _)| slot)) {
            let value = state.slots.get(&(*hashed_address, *hashed_slot)).copied().unwrap_or_default();
            assert_eq!(good(snapshot.storage(hashed_address, hashed_slot)), value, "{hashed_address} {hashed_slot}");
        }
    }
}

fn check_block_hashes<R: TrieReader>(snapshot: &R, moment: &Moment) {
    let tip = moment.anchor.block.number;
    for number in tip.saturating_sub(BLOCK_HASH_WINDOW - 1)..=tip {
        let expected = moment.block_hashes.get(&number).copied();
        assert_eq!(good(snapshot.block_hash(number)), expected, "hash of block {number} as seen from {tip}");
    }
    for above in [tip.checked_add(1), tip.checked_add(2), Some(u64::MAX)] {
        if let Some(above) = above.filter(|above| *above > tip) {
            assert_eq!(good(snapshot.block_hash(above)), None, "hash of block {above} above {tip}");
        }
    }
}

/// Reads all leaves in pages of `limit`.
///
/// # Panics
/// If a read fails, or gives more than it was asked for.
pub fn scan<T, E: Debug>(
    limit: usize,
    mut page: impl FnMut(&B256, usize) -> Result<Vec<(B256, T)>, E>,
) -> Vec<(B256, T)> {
    let mut all = Vec::new();
    let mut start = Some(B256::ZERO);
    while let Some(from) = start {
        let rows = good(page(&from, limit));
        assert!(rows.len() <= limit, "{} leaves where {limit} were asked for", rows.len());
        start = rows.last().filter(|_| rows.len() == limit).and_then(|(last, _)| next_key(last));
        all.extend(rows);
    }
    all
}

/// Changes a few rows of a state: writes, overwrites and deletes.
pub fn mutate(state: &mut State, pool: &KeyPool, rng: &mut StdRng) {
    let key = |rng: &mut StdRng| *pool.keys.choose(rng).unwrap_or(&B256::ZERO);
    for _ in 0..rng.random_range(0..6) {
        let account = Account {
            nonce: rng.random(),
            balance: U256::from(rng.random::<u128>()),
            storage_root: B256::from(rng.random::<[u8; 32]>()),
            code_hash: B256::from(rng.random::<[u8; 32]>()),
        };
        change(&mut state.accounts, key(rng), account, rng);
    }
    for _ in 0..rng.random_range(0..12) {
        let value = U256::from(rng.random_range(1..=u128::MAX));
        change(&mut state.slots, (key(rng), key(rng)), value, rng);
    }
    for _ in 0..rng.random_range(0..12) {
        let trie = if rng.random() { TrieId::Accounts } else { TrieId::Storage(key(rng)) };
        let path = pool.paths.choose(rng).copied().unwrap_or_default();
        change(&mut state.nodes, NodeKey::new(trie, path), random_bytes(rng, 600), rng);
    }
    if rng.random_range(0..3) == 0 {
        let code = random_bytes(rng, 300);
        state.codes.insert(keccak256(&code), code);
    }
}

fn change<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: V, rng: &mut StdRng) {
    if rng.random_range(0..3) == 0 {
        map.remove(&key);
    } else {
        map.insert(key, value);
    }
}

/// Up to `limit` random bytes, at least one.
pub fn random_bytes(rng: &mut StdRng, limit: usize) -> Bytes {
    let mut bytes = vec![0; rng.random_range(1..=limit)];
    rng.fill(bytes.as_mut_slice());
    bytes.into()
}

/// A source that gives its rows in pieces.
#[derive(Debug)]
pub struct Pieces {
    pieces: std::vec::IntoIter<Rows>,
    anchor: StateAnchor,
}

impl Pieces {
    /// Cuts `rows` into pieces of up to `piece` rows of each kind.
    pub fn new(mut rows: Rows, anchor: StateAnchor, piece: usize) -> Self {
        fn cut<T>(rows: &mut Vec<T>, piece: usize) -> Vec<T> {
            rows.drain(..piece.min(rows.len())).collect()
        }
        let mut pieces = Vec::new();
        while !rows.is_empty() {
            pieces.push(Rows {
                accounts: cut(&mut rows.accounts, piece),
                slots: cut(&mut rows.slots, piece),
                nodes: cut(&mut rows.nodes, piece),
                codes: cut(&mut rows.codes, piece),
            });
        }
        Self { pieces: pieces.into_iter(), anchor }
    }

    /// Gives exactly these pieces.
    pub fn exactly(pieces: Vec<Rows>, anchor: StateAnchor) -> Self {
        Self { pieces: pieces.into_iter(), anchor }
    }
}

impl LoadSource for Pieces {
    type Error = Infallible;

    fn next_rows(&mut self) -> Result<Option<Rows>, Infallible> {
        Ok(self.pieces.next())
    }

    fn anchor(&mut self) -> Result<StateAnchor, Infallible> {
        Ok(self.anchor)
    }
}
