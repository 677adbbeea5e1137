//! A state as plain maps, random blocks on it, and what must hold of every fold.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

use alloy_primitives::{B256, KECCAK256_EMPTY, U256, map::B256Map};
use foldgate_core::{
    AccountDelta, AccountInfo, BlockNumHash, FoldOptions, FoldOutcome, HashedPostState, Layer, LoadSource, NodeKey,
    TrieReader, fold,
    hashed::Cleared,
    resolve,
    trie::bulk::{LoadItem, StateLoad},
};
use foldgate_testing::oracle::{HashedAccount, state_root};
use rand::{Rng, rngs::StdRng, seq::IteratorRandom};

use crate::keys::Shape;

/// A state's leaves.
pub(crate) type Model = BTreeMap<B256, HashedAccount>;
/// A state's rows.
pub(crate) type RowMap = BTreeMap<NodeKey, alloy_primitives::Bytes>;

/// The items of a load of this state.
pub(crate) fn items(model: &Model) -> Vec<LoadItem> {
    let mut items = Vec::new();
    for (hashed_address, account) in model {
        let info = AccountInfo { nonce: account.nonce, balance: account.balance, code_hash: account.code_hash };
        items.push(LoadItem::Account { hashed_address: *hashed_address, info });
        let slots = account.storage.iter();
        items.extend(slots.map(|(hashed_slot, value)| LoadItem::Slot { hashed_slot: *hashed_slot, value: *value }));
    }
    items
}

/// A load of this state.
pub(crate) fn load(
    model: &Model,
    block: BlockNumHash,
) -> StateLoad<impl Iterator<Item = Result<LoadItem, Infallible>> + use<>> {
    StateLoad::new(items(model).into_iter().map(Ok), block)
}

/// The rows of a fresh load of this state.
pub(crate) fn rows_of(model: &Model) -> RowMap {
    let mut load = load(model, block(0)).with_piece_bytes(2048).expecting(state_root(model));
    let mut rows = RowMap::new();
    while let Some(piece) = load.next_rows().unwrap() {
        for (key, row) in piece.nodes {
            assert!(rows.insert(key, row.unwrap()).is_none(), "the load gave {key:?} twice");
        }
    }
    load.anchor().unwrap();
    rows
}

/// A block's name.
pub(crate) fn block(number: u64) -> BlockNumHash {
    BlockNumHash::new(number, B256::with_last_byte(number as u8 + 1))
}

/// Applies a delta to the leaves, independently of how the library resolves it.
pub(crate) fn apply(model: &mut Model, state: &HashedPostState) {
    for (hashed_address, delta) in &state.accounts {
        let before = model.remove(hashed_address);
        let has_fields = delta.nonce.is_some() || delta.balance.is_some() || delta.code_hash.is_some();
        let before = match delta.cleared {
            Cleared::Nothing => before,
            Cleared::Storage => before.map(|account| HashedAccount { storage: BTreeMap::new(), ..account }),
            Cleared::Account => None,
        };
        if before.is_none() && !has_fields {
            continue;
        }
        let mut account =
            before.unwrap_or_else(|| HashedAccount { code_hash: KECCAK256_EMPTY, ..HashedAccount::default() });
        account.nonce = delta.nonce.unwrap_or(account.nonce);
        account.balance = delta.balance.unwrap_or(account.balance);
        account.code_hash = delta.code_hash.unwrap_or(account.code_hash);
        account.storage.extend(delta.storage.iter().map(|(slot, value)| (*slot, *value)));
        account.storage.retain(|_, value| !value.is_zero());
        model.insert(*hashed_address, account);
    }
}

/// A random block on `model`: updates, inserts, removals, wiped storage, accounts removed and created again.
pub(crate) fn random_block(rng: &mut StdRng, model: &Model, shape: Shape, changes: usize) -> HashedPostState {
    let mut state = HashedPostState::default();
    // Now and then everything goes, or nearly so.
    let purge = !model.is_empty() && rng.random_ratio(1, 8);
    if purge {
        let spared = rng.random_range(0..3);
        for hashed_address in model.keys().skip(spared) {
            state.accounts.entry(*hashed_address).or_default().delete();
        }
    }
    for _ in 0..if purge { rng.random_range(0..3) } else { changes } {
        let existing = model.keys().choose(rng).copied().filter(|_| rng.random_ratio(2, 3));
        let hashed_address = existing.unwrap_or_else(|| shape.key(rng, 400));
        let old = model.get(&hashed_address);
        let delta = state.accounts.entry(hashed_address).or_default();
        match rng.random_range(0..12) {
            0 | 1 => delta.delete(),
            2 => {
                delta.delete();
                random_fields(rng, delta);
                random_slots(rng, delta, None, shape);
            }
            3 => {
                delta.wipe_storage();
                random_slots(rng, delta, None, shape);
            }
            4 => {
                let slots = old.into_iter().flat_map(|account| account.storage.keys());
                delta.storage.extend(slots.map(|slot| (*slot, U256::ZERO)));
            }
            5..8 => random_slots(rng, delta, old, shape),
            _ => random_fields(rng, delta),
        }
        if old.is_none() && !delta.has_fields() {
            random_fields(rng, delta);
        }
    }
    state
}

fn random_fields(rng: &mut StdRng, delta: &mut AccountDelta) {
    delta.nonce = rng.random_bool(0.7).then(|| rng.random_range(0..1000));
    delta.balance = Some(U256::from(rng.random::<u64>()));
    delta.code_hash = rng.random_bool(0.2).then(|| B256::new(rng.random()));
}

fn random_slots(rng: &mut StdRng, delta: &mut AccountDelta, old: Option<&HashedAccount>, shape: Shape) {
    for _ in 0..rng.random_range(1..24) {
        let existing = old.and_then(|account| account.storage.keys().choose(rng)).filter(|_| rng.random_bool(0.6));
        let hashed_slot = existing.copied().unwrap_or_else(|| shape.key(rng, 60));
        let value = match rng.random_range(0..6) {
            0 | 1 => U256::ZERO,
            2 | 3 => U256::from(rng.random_range(1..200)),
            _ => U256::from_be_bytes(rng.random::<[u8; 32]>()),
        };
        delta.storage.insert(hashed_slot, value);
    }
}

/// Folds in every setting and checks that all agree.
pub(crate) fn fold_every_way<R: TrieReader>(reader: &R, state: &HashedPostState) -> FoldOutcome {
    let changes = resolve(state, reader).unwrap();
    let serial = fold(reader, changes.clone(), &FoldOptions::SERIAL).unwrap();
    for options in [FoldOptions::default(), FoldOptions::FORCED_PARALLEL] {
        assert_eq!(fold(reader, changes.clone(), &options).unwrap(), serial, "{options:?}");
    }
    serial
}

/// Applies updates to rows, each of which must be a change.
pub(crate) fn apply_updates(rows: &mut RowMap, outcome: &FoldOutcome) {
    assert!(outcome.updates().nodes.is_sorted_by(|a, b| a.0 < b.0), "updates are strictly sorted");
    for (key, row) in &outcome.updates().nodes {
        let before = match row {
            Some(row) => rows.insert(*key, row.clone()),
            None => rows.remove(key),
        };
        assert_ne!(before.as_ref(), row.as_ref(), "the update of {key:?} changes nothing");
    }
}

/// Checks the difference against the states before and after.
pub(crate) fn check_diff(outcome: &FoldOutcome, before: &Model, after: &Model) {
    let slot = |model: &Model, address: &B256, slot: &B256| {
        model.get(address).and_then(|account| account.storage.get(slot)).copied().unwrap_or_default()
    };
    let mut expected: B256Map<usize> = B256Map::default();
    for address in before.keys().chain(after.keys()) {
        let (old, new) = (before.get(address), after.get(address));
        if old == new {
            continue;
        }
        let slots = old.into_iter().chain(new).flat_map(|account| account.storage.keys());
        let mut changed: Vec<_> = slots.filter(|key| slot(before, address, key) != slot(after, address, key)).collect();
        changed.sort_unstable();
        changed.dedup();
        expected.insert(*address, changed.len());
    }
    assert_eq!(outcome.diff.accounts.len(), expected.len());
    for change in &outcome.diff.accounts {
        let address = &change.hashed_address;
        assert_eq!(expected.get(address), Some(&change.slots.len()), "slots of {address}");
        for (record, model) in [(change.old, before), (change.new, after)] {
            let expected = model.get(address).map(|account| {
                let info = AccountInfo { nonce: account.nonce, balance: account.balance, code_hash: account.code_hash };
                info.with_storage_root(foldgate_testing::oracle::storage_root(&account.storage))
            });
            assert_eq!(record, expected, "record of {address}");
        }
        for changed in &change.slots {
            assert_eq!(changed.old, slot(before, address, &changed.hashed_slot));
            assert_eq!(changed.new, slot(after, address, &changed.hashed_slot));
        }
    }
}

/// The outcome as a layer.
pub(crate) fn layer(outcome: FoldOutcome, parent: BlockNumHash, block: BlockNumHash) -> Arc<Layer> {
    Arc::new(Layer::new(parent, block, outcome, None))
}
