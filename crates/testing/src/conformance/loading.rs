//! Empty stores, and how they are filled.

use alloy_primitives::{B256, Bytes, U256, keccak256};
use foldgate_core::{
    Account, BalStore, LoadError, LoadSource, Nibbles, NodeKey, Refusal, Rows, StateAnchor, StateReader, TrieId,
    TrieReader, TrieStore,
};

use super::{
    StoreFactory,
    world::{Pieces, State, World, good, refusal, scan, seeded},
};

/// Holds an empty store to what it must say and refuse.
///
/// # Panics
/// Where the store falls short.
pub fn check_empty(store: &impl BalStore) {
    assert_eq!(good(store.genesis()), None);
    assert_eq!(good(store.tip()), None);
    assert_eq!(refusal(store.snapshot()), Refusal::Empty);
    let mut world = World::new(0, State::default());
    world.extend(State::default(), None);
    assert_eq!(refusal(store.commit(&world.batch_from(0))), Refusal::Empty);
    assert_eq!(refusal(store.unwind(&world.unwind_to(0))), Refusal::Empty);
    for number in [0, 1, u64::MAX] {
        assert_eq!(good(store.committed(number)), None);
        assert_eq!(good(store.reverse_diff(number)), None);
        assert_eq!(good(store.prune_below(number)), 0);
    }
    assert_eq!(good(store.bal(world.genesis().anchor.block)), None);
}

/// An empty store has no tip and no genesis, and refuses what needs one.
///
/// # Panics
/// Where the backend falls short.
pub fn an_empty_store_has_nothing_and_refuses(factory: &impl StoreFactory) {
    check_empty(&factory.fresh());
}

/// What was loaded is there, and its block is genesis and tip.
///
/// # Panics
/// Where the backend falls short.
pub fn a_load_becomes_genesis_and_tip(factory: &impl StoreFactory) {
    let world = World::random(&mut seeded());
    let store = factory.fresh();
    world.load_into(&store);
    world.check_store(&store);
}

/// A genesis need not be block 0, and commits go on from where it is.
///
/// # Panics
/// Where the backend falls short.
pub fn a_load_may_start_at_any_height(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let height = 21_000_000_000;
    let mut world = World::new(height, World::random(&mut rng).genesis().state.as_ref().clone());
    let store = factory.fresh();
    world.load_into(&store);
    world.check_store(&store);
    assert_eq!(good(good(store.snapshot()).block_hash(height - 1)), None, "the chain does not reach below its genesis");
    world.extend_randomly(&mut rng);
    good(store.commit(&world.batch_from(height)));
    world.check_store(&store);
}

/// A state without a single row is a state.
///
/// # Panics
/// Where the backend falls short.
pub fn an_empty_state_loads(factory: &impl StoreFactory) {
    let mut world = World::new(0, State::default());
    let store = factory.fresh();
    world.load_into(&store);
    world.check_store(&store);
    world.extend(State::default(), Some(Bytes::from_static(&[0xc0])));
    good(store.commit(&world.batch_from(0)));
    world.check_store(&store);
}

/// A store is loaded once.
///
/// # Panics
/// Where the backend falls short.
pub fn a_second_load_is_refused(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (mut world, other) = (World::random(&mut rng), World::random(&mut rng));
    let store = factory.fresh();
    world.load_into(&store);
    for _ in 0..2 {
        match store.load(other.source(5)) {
            Err(LoadError::Store(error)) => {
                assert_eq!(refusal(Err::<(), _>(error)), Refusal::NotEmpty { tip: world.tip().anchor });
            }
            other => panic!("a second load gave {other:?}"),
        }
        world.check_store(&store);
        world.extend_randomly(&mut rng);
        good(store.commit(&world.batch_from(world.tip().anchor.block.number - 1)));
    }
    world.check_store(&store);
}

/// A source that breaks down.
struct Failing {
    pieces: Pieces,
    /// After so many pieces; `None`: when it is asked for its anchor.
    after: Option<usize>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the source failed on purpose")]
struct OnPurpose;

impl LoadSource for Failing {
    type Error = OnPurpose;

    fn next_rows(&mut self) -> Result<Option<Rows>, OnPurpose> {
        if let Some(left) = &mut self.after {
            *left = left.checked_sub(1).ok_or(OnPurpose)?;
        }
        Ok(good(self.pieces.next_rows()))
    }

    fn anchor(&mut self) -> Result<StateAnchor, OnPurpose> {
        Err(OnPurpose)
    }
}

/// A load whose source fails leaves no trace, whenever it fails; the store can be loaded afterwards.
///
/// # Panics
/// Where the backend falls short.
pub fn a_failing_source_leaves_the_store_empty(factory: &impl StoreFactory) {
    let mut rng = seeded();
    let (world, other) = (World::random(&mut rng), World::random(&mut rng));
    let store = factory.fresh();
    for after in [Some(0), Some(1), Some(2), None] {
        match store.load(Failing { pieces: other.source(2), after }) {
            Err(LoadError::Source(OnPurpose)) => check_empty(&store),
            result => panic!("a load from a failing source gave {result:?}"),
        }
    }
    world.load_into(&store);
    world.check_store(&store);
}

/// Rows out of order are refused, within a piece and from piece to piece.
///
/// # Panics
/// Where the backend falls short.
pub fn unsorted_pieces_are_refused(factory: &impl StoreFactory) {
    let store = factory.fresh();
    let key = B256::repeat_byte;
    let account = |at| (key(at), Some(Account::default()));
    let slot = |at| ((key(1), key(at)), U256::from(1));
    let node = |at| (NodeKey::new(TrieId::Accounts, Nibbles::from_nibbles([at])), Some(Bytes::from_static(b"row")));
    let code = |at| (key(at), Bytes::from_static(b"code"));
    let rows = Rows::default;
    let cases = [
        (vec![Rows { accounts: vec![account(2), account(1)], ..rows() }], "account", 1),
        (vec![Rows { accounts: vec![account(1), account(1)], ..rows() }], "account", 1),
        (vec![Rows { slots: vec![slot(1), slot(3), slot(2)], ..rows() }], "slot", 2),
        (vec![Rows { nodes: vec![node(1), node(0)], ..rows() }], "node", 1),
        (vec![Rows { codes: vec![code(1), code(1)], ..rows() }], "code", 1),
        (
            vec![Rows { accounts: vec![account(5)], ..rows() }, rows(), Rows { accounts: vec![account(5)], ..rows() }],
            "account",
            0,
        ),
        (vec![Rows { slots: vec![slot(5)], ..rows() }, Rows { slots: vec![slot(4)], ..rows() }], "slot", 0),
    ];
    let anchor = World::new(0, State::default()).genesis().anchor;
    for (pieces, table, position) in cases {
        match store.load(Pieces::exactly(pieces, anchor)) {
            Err(LoadError::Store(error)) => {
                assert_eq!(refusal(Err::<(), _>(error)), Refusal::Unsorted { table, position });
            }
            result => panic!("an unsorted load gave {result:?}"),
        }
        check_empty(&store);
    }
}

/// Trie nodes and codes come in no order from piece to piece.
///
/// # Panics
/// Where the backend falls short.
pub fn nodes_and_codes_may_come_in_any_piece(factory: &impl StoreFactory) {
    let world = World::random(&mut seeded());
    let state = &world.genesis().state;
    let mut pieces: Vec<Rows> = (0..7).map(|_| Rows::default()).collect();
    let mut piece = (0..7).cycle().scan(3, |at, step| {
        *at = (*at * 5 + step) % 7;
        Some(*at)
    });
    for (key, row) in &state.nodes {
        pieces[piece.next().unwrap_or_default()].nodes.push((*key, Some(row.clone())));
    }
    for (hash, code) in &state.codes {
        pieces[piece.next().unwrap_or_default()].codes.push((*hash, code.clone()));
    }
    pieces[2].accounts = state.accounts.iter().map(|(key, account)| (*key, Some(*account))).collect();
    pieces[4].slots = state.slots.iter().map(|(key, value)| (*key, *value)).collect();
    let store = factory.fresh();
    good(store.load(Pieces::exactly(pieces, world.genesis().anchor)));
    world.check_store(&store);
}

/// A hundred thousand accounts and as many slots and nodes load in one step, and are read in pages.
///
/// # Panics
/// Where the backend falls short.
pub fn many_rows_load_and_page(factory: &impl StoreFactory) {
    load_many(&factory.fresh(), 100_000);
}

/// Loads `count` accounts, slots and nodes into an empty store, and reads them.
///
/// # Panics
/// Where the backend falls short.
pub fn load_many(store: &impl TrieStore, count: u64) {
    let source = Many { next: 0, count };
    let tip = good(store.load(source));
    assert_eq!(good(store.tip()), Some(tip));
    let snapshot = good(store.snapshot());
    let accounts = scan(4096, |start, limit| snapshot.accounts_from(start, limit));
    assert_eq!(accounts.len() as u64, count);
    assert!(accounts.iter().zip(0..).all(|((key, account), at)| *key == many_key(at) && account.nonce == at));
    let of = many_key(0);
    let slots = scan(4096, |start, limit| snapshot.slots_from(&of, start, limit));
    assert_eq!(slots.len() as u64, count);
    assert!(slots.iter().zip(0..).all(|((key, value), at)| *key == many_key(at) && *value == U256::from(at + 1)));
    for at in (0..count).step_by(997) {
        let row = good(snapshot.node(&many_node(at)));
        assert_eq!(row, Some(many_row(at)));
        assert_eq!(good(snapshot.account(&many_key(at))).map(|account| account.nonce), Some(at));
    }
}

/// Keys that spread over the key space and ascend with `at`.
fn many_key(at: u64) -> B256 {
    let mut key = keccak256(at.to_be_bytes());
    key.0[..8].copy_from_slice(&(at << 36).to_be_bytes());
    key
}

fn many_node(at: u64) -> NodeKey {
    NodeKey::new(TrieId::Accounts, Nibbles::unpack(many_key(at)).slice(..12))
}

fn many_row(at: u64) -> Bytes {
    vec![at as u8; 40].into()
}

struct Many {
    next: u64,
    count: u64,
}

impl LoadSource for Many {
    type Error = std::convert::Infallible;

    fn next_rows(&mut self) -> Result<Option<Rows>, Self::Error> {
        let range = self.next..self.count.min(self.next + 10_000);
        self.next = range.end;
        let of = many_key(0);
        Ok((!range.is_empty()).then(|| Rows {
            accounts: range
                .clone()
                .map(|at| (many_key(at), Some(Account { nonce: at, ..Account::default() })))
                .collect(),
            slots: range.clone().map(|at| ((of, many_key(at)), U256::from(at + 1))).collect(),
            nodes: range.map(|at| (many_node(at), Some(many_row(at)))).collect(),
            codes: Vec::new(),
        }))
    }

    fn anchor(&mut self) -> Result<StateAnchor, Self::Error> {
        Ok(World::new(3, State::default()).genesis().anchor)
    }
}
