//! Loads: equal to the oracle whatever the size of a piece, and refused whole when anything is wrong.

use std::{collections::BTreeMap, convert::Infallible};

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256, keccak256};
use foldgate_core::{
    Account, AccountInfo, EMPTY_ROOT_HASH, FoldOptions, HashedPostState, LoadError, MemoryStore, StateReader,
    TrieReader, TrieStore, fold, resolve,
    trie::bulk::{
        BulkError, GenesisAccount, ItemsError, LoadItem, LoadProgress, StateItems, StateLoad, genesis_items, state_root,
    },
};
use foldgate_testing::{conformance::world::seeded, oracle};

use crate::{
    keys::SHAPES,
    model::{self, Model, apply, block, random_block},
};

fn infallible(items: Vec<LoadItem>) -> impl Iterator<Item = Result<LoadItem, Infallible>> {
    items.into_iter().map(Ok)
}

fn account(byte: u8) -> LoadItem {
    LoadItem::Account { hashed_address: B256::repeat_byte(byte), info: AccountInfo::default() }
}

fn slot(byte: u8, value: u64) -> LoadItem {
    LoadItem::Slot { hashed_slot: B256::repeat_byte(byte), value: U256::from(value) }
}

#[test]
fn a_genesis_keeps_what_it_lists() {
    let code = Bytes::from_static(&[0x60, 0x00]);
    let storage = BTreeMap::from([(U256::from(1), U256::from(9)), (U256::from(2), U256::ZERO)]);
    let contract = GenesisAccount { nonce: 1, balance: U256::ZERO, code: code.clone(), storage };
    let twin = GenesisAccount { code: code.clone(), ..GenesisAccount::default() };
    let listed = [
        (Address::repeat_byte(1), GenesisAccount { balance: U256::from(5), ..GenesisAccount::default() }),
        (Address::repeat_byte(2), contract),
        (Address::repeat_byte(3), GenesisAccount::default()),
        (Address::repeat_byte(4), twin),
    ];
    let items = genesis_items(listed.clone());
    let expected: BTreeMap<_, _> = listed
        .into_iter()
        .map(|(address, account)| {
            let GenesisAccount { nonce, balance, code, storage } = account;
            (address, oracle::PlainAccount { nonce, balance, code, storage })
        })
        .map(|(address, account)| {
            let hashed = oracle::HashedAccount {
                nonce: account.nonce,
                balance: account.balance,
                code_hash: account.code_hash(),
                storage: account.hashed_storage(),
            };
            (keccak256(address), hashed)
        })
        .collect();
    let root = oracle::state_root(&expected);
    assert_eq!(state_root(infallible(items.clone())), Ok(root));
    for piece_bytes in [0, 100, 1 << 20] {
        let store = MemoryStore::new();
        let load = StateLoad::new(infallible(items.clone()), block(0)).expecting(root).with_piece_bytes(piece_bytes);
        assert_eq!(store.load(load).unwrap().state_root, root);
        let snapshot = store.snapshot().unwrap();
        let read = |byte| snapshot.account(&keccak256(Address::repeat_byte(byte))).unwrap();
        assert_eq!(read(3), Some(Account::default()), "an empty account that is listed is kept");
        assert_ne!(read(2).unwrap().storage_root, EMPTY_ROOT_HASH);
        assert_eq!(read(4).unwrap().storage_root, EMPTY_ROOT_HASH);
        assert_eq!(snapshot.code(&keccak256(&code)).unwrap(), Some(code.clone()));
        let slots = snapshot.slots_from(&keccak256(Address::repeat_byte(2)), &B256::ZERO, 9).unwrap();
        assert_eq!(slots.len(), 1, "a zero slot is none");

        // Read back and loaded again, it is the same state.
        let again: Vec<_> = StateItems::new(snapshot.clone()).collect::<Result<_, _>>().unwrap();
        assert_eq!(again, items);
        let copy = MemoryStore::new();
        let load = StateLoad::new(StateItems::new(snapshot), block(0)).expecting(root);
        assert_eq!(copy.load(load).unwrap().state_root, root);
    }
}

#[test]
fn an_empty_state_has_the_empty_root() {
    assert_eq!(state_root(infallible(Vec::new())), Ok(EMPTY_ROOT_HASH));
    let store = MemoryStore::new();
    assert_eq!(store.load(StateLoad::new(infallible(Vec::new()), block(0))).unwrap().state_root, EMPTY_ROOT_HASH);
}

#[test]
fn a_wrong_root_leaves_the_store_empty() {
    let store = MemoryStore::new();
    let expected = B256::repeat_byte(1);
    let load = StateLoad::new(infallible(vec![account(1)]), block(0)).expecting(expected);
    let error = store.load(load).unwrap_err();
    let LoadError::Source(BulkError::StateRootMismatch { got, expected: named }) = error else { panic!("{error}") };
    assert_eq!(named, expected);
    assert_eq!(Ok(got), state_root(infallible(vec![account(1)])));
    assert_eq!(store.tip().unwrap(), None);
}

#[test]
fn disorder_is_refused_and_leaves_the_store_empty() {
    type Error = BulkError<Infallible>;
    let code = Bytes::from_static(&[1]);
    let code_item = || LoadItem::Code { code_hash: keccak256(&code), code: code.clone() };
    let unsorted = |error: &Error, name: &str| matches!(error, BulkError::Unsorted { table, .. } if *table == name);
    type Check<'a> = Box<dyn Fn(&Error) -> bool + 'a>;
    let cases: Vec<(Vec<LoadItem>, Check<'_>)> = vec![
        (vec![account(2), account(1)], Box::new(|error| unsorted(error, "account"))),
        (vec![account(1), account(1)], Box::new(|error| unsorted(error, "account"))),
        (vec![account(1), slot(2, 1), slot(1, 1)], Box::new(|error| unsorted(error, "slot"))),
        (vec![account(1), slot(2, 1), slot(2, 1)], Box::new(|error| unsorted(error, "slot"))),
        (vec![code_item(), code_item()], Box::new(|error| unsorted(error, "code"))),
        (vec![slot(1, 1)], Box::new(|error| matches!(error, BulkError::SlotWithoutAccount { .. }))),
        (vec![account(1), slot(1, 0)], Box::new(|error| matches!(error, BulkError::ZeroSlot { .. }))),
        (
            vec![LoadItem::Code { code_hash: KECCAK256_EMPTY, code: code.clone() }],
            Box::new(|error| matches!(error, BulkError::CodeHashMismatch { .. })),
        ),
        (
            genesis_items([0, 0].map(|_| (Address::ZERO, GenesisAccount::default()))),
            Box::new(|error| unsorted(error, "account")),
        ),
    ];
    for (items, expected) in cases {
        let store = MemoryStore::new();
        let error = store.load(StateLoad::new(infallible(items.clone()), block(0)).with_piece_bytes(1)).unwrap_err();
        let LoadError::Source(error) = error else { panic!("{error}") };
        assert!(expected(&error), "{error} for {items:?}");
        assert_eq!(state_root(infallible(items)), Err(error));
        assert_eq!(store.tip().unwrap(), None);
    }
    // The same slot in two accounts, and accounts that follow slots, are in order.
    let fine = vec![account(1), slot(2, 1), account(2), slot(1, 1), slot(2, 1)];
    assert!(state_root(infallible(fine)).is_ok());
}

#[test]
fn a_failing_source_fails_the_load() {
    let store = MemoryStore::new();
    let items = vec![Ok(account(1)), Err(std::fmt::Error)];
    let error = store.load(StateLoad::new(items.into_iter(), block(0))).unwrap_err();
    assert!(matches!(error, LoadError::Source(BulkError::Source(std::fmt::Error))), "{error}");
    assert_eq!(store.tip().unwrap(), None);
}

/// Working ahead gives the rows that folds from the empty state leave behind, whatever the pieces and threads.
#[test]
fn loads_on_any_threads_leave_the_rows_of_folds() {
    let mut rng = seeded();
    for shape in SHAPES {
        let mut model = Model::new();
        for _ in 0..3 {
            let state = random_block(&mut rng, &model, shape, 120);
            apply(&mut model, &state);
        }
        let empty = MemoryStore::new();
        empty.load(model::load(&Model::new(), block(0))).unwrap();
        let mut state = HashedPostState::default();
        for (hashed_address, account) in &model {
            let delta = state.accounts.entry(*hashed_address).or_default();
            (delta.nonce, delta.balance) = (Some(account.nonce), Some(account.balance));
            delta.code_hash = Some(account.code_hash);
            delta.storage.extend(account.storage.iter().map(|(slot, value)| (*slot, *value)));
        }
        let empty = empty.snapshot().unwrap();
        let changes = resolve(&state, &empty).unwrap();
        for options in [FoldOptions::SERIAL, FoldOptions::FORCED_PARALLEL] {
            let folded = fold(&empty, changes.clone(), &options).unwrap();
            let updates = folded.updates();
            for (threads, piece_bytes) in [(1, 700), (2, 0), (2, 3000), (3, 1), (8, 1 << 20)] {
                let store = MemoryStore::new();
                let mut nodes = 0;
                let load = model::load(&model, block(0)).with_threads(threads).with_piece_bytes(piece_bytes);
                let load = load.observed_by(|progress: &LoadProgress| nodes = progress.nodes);
                assert_eq!(load.load_into(&store).unwrap().state_root, folded.computed_state_root);
                let loaded = store.snapshot().unwrap();
                assert!(updates.nodes.iter().all(|(key, row)| loaded.node(key).unwrap() == *row), "{shape:?}");
                assert_eq!(nodes, updates.nodes.len() as u64);
            }
        }
    }
}

/// More leaves than a page of ordered reads, in the accounts and in one account.
#[test]
fn a_state_of_many_pages_moves_from_store_to_store() {
    let key = |i: u64| B256::from(U256::from(i) << 200);
    let mut items: Vec<_> = (0..9000)
        .map(|i| LoadItem::Account { hashed_address: key(i), info: AccountInfo { nonce: i, ..AccountInfo::default() } })
        .collect();
    let slots = (0..8192).map(|i| LoadItem::Slot { hashed_slot: key(i), value: U256::from(i + 1) });
    items.splice(6000..6000, slots);
    let store = MemoryStore::new();
    let anchor = store.load(StateLoad::new(infallible(items.clone()), block(0)).with_piece_bytes(50_000)).unwrap();
    let read: Vec<_> = StateItems::new(store.snapshot().unwrap()).collect::<Result<_, _>>().unwrap();
    assert_eq!(read, items);
    assert_eq!(state_root(read.into_iter().map(Ok::<_, Infallible>)), Ok(anchor.state_root));
}

#[test]
fn a_state_whose_code_is_missing_does_not_move() {
    let info = AccountInfo { code_hash: B256::repeat_byte(3), ..AccountInfo::default() };
    let items = vec![account(1), LoadItem::Account { hashed_address: B256::repeat_byte(2), info }];
    let store = MemoryStore::new();
    store.load(StateLoad::new(infallible(items), block(0))).unwrap();
    let read: Vec<_> = StateItems::new(store.snapshot().unwrap()).collect();
    assert!(
        matches!(read[..], [Err(ItemsError::MissingCode { code_hash })] if code_hash == info.code_hash),
        "{read:?}"
    );
}
