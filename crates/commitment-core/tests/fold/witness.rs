//! Folds on partial tries: cut out of random states, and real blocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use alloy_primitives::{B256, Bytes, KECCAK256_EMPTY, U256, keccak256};
use alloy_rlp::Encodable;
use alloy_trie::{HashBuilder, proof::ProofRetainer};
use foldgate_bal::{Bal, BalLimits};
use foldgate_core::{
    AccountDelta, BlockNumHash, EMPTY_ROOT_HASH, FoldError, FoldOptions, HashedPostState, LeafChanges, Nibbles,
    NodeKey, Overlay, StateAnchor, StateReader, TrieId, TrieReader, Witness, WitnessError,
    diff::AccountLeafChange,
    fold,
    hashed::Cleared,
    keys::{hash_address, hash_slot},
    resolve,
    witness::MalformedNode,
};
use foldgate_testing::{
    fixtures_or_skip,
    oracle::{HashedAccount, state_root, storage_root},
    witness::{WitnessBlock, read_witness},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IteratorRandom};

use crate::{
    keys::SHAPES,
    model::{Model, apply, block, fold_every_way, layer, random_block, rows_of},
};

/// The nodes on the paths to `keys` in the trie of these leaves.
fn proof(leaves: impl Iterator<Item = (B256, Vec<u8>)>, keys: impl Iterator<Item = B256>) -> Vec<Bytes> {
    let mut builder = HashBuilder::default().with_proof_retainer(keys.map(Nibbles::unpack).collect::<ProofRetainer>());
    leaves.for_each(|(key, value)| builder.add_leaf(Nibbles::unpack(key), &value));
    builder.root();
    builder.take_proof_nodes().into_nodes_sorted().into_iter().map(|(_, node)| node).collect()
}

fn leaf_value(account: &HashedAccount) -> Vec<u8> {
    let mut out = Vec::new();
    let info =
        foldgate_core::AccountInfo { nonce: account.nonce, balance: account.balance, code_hash: account.code_hash };
    info.with_storage_root(storage_root(&account.storage)).encode(&mut out);
    out
}

/// A witness of `model` that holds the paths to these accounts and slots.
fn nodes(model: &Model, keys: &BTreeMap<B256, BTreeSet<B256>>) -> Vec<Bytes> {
    let leaves = model.iter().map(|(address, account)| (*address, leaf_value(account)));
    let mut nodes = proof(leaves, keys.keys().copied());
    for (address, slots) in keys {
        let storage = model.get(address).map(|account| account.storage.clone()).unwrap_or_default();
        let leaves = storage.iter().map(|(slot, value)| (*slot, alloy_rlp::encode(value)));
        nodes.extend(proof(leaves, slots.iter().copied()));
    }
    nodes
}

fn anchor(model: &Model) -> StateAnchor {
    StateAnchor { block: block(0), state_root: state_root(model) }
}

fn witness(model: &Model, keys: &BTreeMap<B256, BTreeSet<B256>>) -> Witness {
    Witness::new(anchor(model), nodes(model, keys), [], [])
}

/// Every account and slot of the model.
fn everything(model: &Model) -> BTreeMap<B256, BTreeSet<B256>> {
    model.iter().map(|(address, account)| (*address, account.storage.keys().copied().collect())).collect()
}

#[test]
fn a_whole_witness_serves_the_rows_of_a_load_and_folds_on() {
    for seed in 0..16 {
        println!("seed {seed}");
        let rng = &mut StdRng::seed_from_u64(seed);
        let shape = SHAPES[seed as usize % SHAPES.len()];
        let mut model = Model::new();
        let founders = random_block(rng, &model, shape, 25);
        apply(&mut model, &founders);
        let whole = witness(&model, &everything(&model));
        for (key, row) in rows_of(&model) {
            assert_eq!(whole.node(&key).unwrap(), Some(row), "{key:?}");
        }
        let accounts = whole.accounts_from(&B256::ZERO, usize::MAX).unwrap();
        assert!(accounts.iter().map(|(address, _)| address).eq(model.keys()));
        for (address, account) in &model {
            let slots = whole.slots_from(address, &B256::ZERO, usize::MAX).unwrap();
            assert!(slots.iter().map(|(slot, value)| (slot, value)).eq(&account.storage));
            for (slot, value) in &account.storage {
                assert_eq!(whole.storage(address, slot).unwrap(), *value);
                let from_here = whole.slots_from(address, slot, 1).unwrap();
                assert_eq!(from_here, [(*slot, *value)]);
            }
        }
        // Three blocks, as layers over the witness.
        let mut layers = Vec::new();
        for number in 1..4 {
            let state = random_block(rng, &model, shape, 15);
            apply(&mut model, &state);
            let overlay = Overlay::new(whole.clone(), layers.clone()).unwrap();
            let outcome = fold_every_way(&overlay, &state);
            assert_eq!(outcome.computed_state_root, state_root(&model), "block {number}");
            layers.push(layer(outcome, block(number - 1), block(number)));
        }
    }
}

/// The paths of the changed leaves alone: either the fold needs no more, and is right; or it names the gap. With the
/// paths to each such gap's leaves added, it gets through.
#[test]
fn a_partial_witness_gives_the_root_or_names_the_gap() {
    let (mut complete, mut gaps) = (0, 0);
    for seed in 0..40 {
        println!("seed {seed}");
        let rng = &mut StdRng::seed_from_u64(seed);
        let shape = SHAPES[seed as usize % SHAPES.len()];
        let mut model = Model::new();
        let founders = random_block(rng, &model, shape, 60);
        apply(&mut model, &founders);
        let state = narrow_block(rng, &model);
        let mut keys: BTreeMap<B256, BTreeSet<B256>> =
            state.accounts.iter().map(|(address, delta)| (*address, delta.storage.keys().copied().collect())).collect();
        let mut after = model.clone();
        apply(&mut after, &state);
        loop {
            let partial = witness(&model, &keys);
            let changes = resolve(&state, &partial).unwrap();
            let serial = fold(&partial, changes.clone(), &FoldOptions::SERIAL);
            assert_eq!(fold(&partial, changes, &FoldOptions::FORCED_PARALLEL), serial);
            let at = match serial {
                Ok(outcome) => {
                    assert_eq!(outcome.computed_state_root, state_root(&after));
                    complete += 1;
                    break;
                }
                Err(FoldError::Read(WitnessError::MissingNode { at, .. })) => at,
                Err(other) => panic!("{other}"),
            };
            gaps += 1;
            let below = |key: &&B256| Nibbles::unpack(key).starts_with(&at.path);
            let added = match at.trie {
                TrieId::Accounts => {
                    let address = model.keys().find(below).unwrap();
                    keys.insert(*address, BTreeSet::new()).is_none()
                }
                TrieId::Storage(address) => {
                    let slot = model[&address].storage.keys().find(below).unwrap();
                    keys.get_mut(&address).unwrap().insert(*slot)
                }
            };
            assert!(added, "the gap at {at:?} was not one");
        }
    }
    assert_eq!(complete, 40);
    assert!(gaps > 0, "some removals need a neighbour");
}

/// Updates, inserts and removals of single leaves; storage is never removed as a whole, which would need all of it.
fn narrow_block(rng: &mut StdRng, model: &Model) -> HashedPostState {
    let mut state = HashedPostState::default();
    for (address, account) in model.iter().choose_multiple(rng, 12) {
        let delta = state.accounts.entry(*address).or_default();
        if account.storage.is_empty() && rng.random_bool(0.7) {
            delta.delete();
            continue;
        }
        delta.balance = Some(U256::from(rng.random::<u32>()));
        for slot in account.storage.keys().choose_multiple(rng, 4) {
            delta.storage.insert(*slot, U256::from(rng.random_range(0..2)));
        }
        delta.storage.insert(B256::new(rng.random()), U256::from(1));
    }
    state.accounts.entry(B256::new(rng.random())).or_default().balance = Some(U256::from(1));
    state
}

/// In mainnet block 23879620 a removal leaves a branch with one child, an extension that the witness holds. The two are
/// joined, for which the branch behind the extension need not be known: the witness rightly lacks it.
#[test]
fn an_extension_moves_without_the_branch_behind_it() {
    let key = |head: &[u8]| {
        let mut nibbles = [0; 64];
        nibbles[..head.len()].copy_from_slice(head);
        B256::from_slice(&Nibbles::from_nibbles(nibbles).pack())
    };
    let neighbour = key(&[1, 0]);
    let below = [key(&[1, 8, 5, 5, 5, 2]), key(&[1, 8, 5, 5, 5, 3])];
    let account = HashedAccount { nonce: 1, code_hash: KECCAK256_EMPTY, ..HashedAccount::default() };
    let model: Model =
        [neighbour, below[0], below[1], key(&[9])].into_iter().map(|key| (key, account.clone())).collect();
    let absent = key(&[1, 8, 5, 9]);
    let known = [neighbour, absent, key(&[9])].map(|key| (key, BTreeSet::new()));
    let partial = witness(&model, &known.into());
    assert!(matches!(partial.account(&below[0]), Err(WitnessError::MissingNode { .. })));

    let mut removal = HashedPostState::default();
    removal.accounts.entry(neighbour).or_default().delete();
    // At each place of the extension: its first nibble, its midst, its last.
    let inserts = [key(&[1, 8, 6]), absent, key(&[1, 8, 5, 5, 6])].map(|inserted| {
        let mut insert = HashedPostState::default();
        insert.accounts.entry(inserted).or_default().nonce = Some(1);
        insert
    });
    for first in inserts.iter().chain([&removal]) {
        // One, then all others, in layers; and back to where it began.
        let (mut after, mut layers) = (model.clone(), Vec::new());
        let back = {
            let mut back = HashedPostState::default();
            back.accounts.entry(neighbour).or_default().nonce = Some(1);
            inserts.iter().for_each(|insert| {
                insert.accounts.keys().for_each(|key| {
                    back.accounts.entry(*key).or_default().delete();
                })
            });
            back
        };
        for (number, state) in [first].into_iter().chain(&inserts).chain([&removal, &back]).enumerate() {
            let number = number as u64;
            apply(&mut after, state);
            let overlay = Overlay::new(partial.clone(), layers.clone()).unwrap();
            let outcome = fold_every_way(&overlay, state);
            assert_eq!(outcome.computed_state_root, state_root(&after), "step {number}");
            layers.push(layer(outcome, block(number), block(number + 1)));
        }
        let end = Overlay::new(partial.clone(), layers).unwrap();
        assert_eq!(after, model);
        for slot in [&[][..], &[1], &[1, 8]] {
            let key = NodeKey::new(TrieId::Accounts, Nibbles::from_nibbles(slot));
            assert_eq!(end.node(&key).unwrap(), partial.node(&key).unwrap(), "{key:?}");
        }
    }

    // A change below the branch cannot have been resolved here, but if it comes, the gap is named.
    let old = foldgate_core::AccountInfo { nonce: 1, ..Default::default() }.with_storage_root(EMPTY_ROOT_HASH);
    let change = AccountLeafChange { hashed_address: below[0], old: Some(old), new: None, slots: Vec::new() };
    let changes = LeafChanges { accounts: vec![change], codes: Vec::new() };
    let error = fold(&partial, changes, &FoldOptions::SERIAL).unwrap_err();
    let FoldError::Blinded { key, .. } = error else { panic!("{error}") };
    assert_eq!(key.path, Nibbles::from_nibbles([1, 8, 5, 5, 5]));
}

#[test]
fn reads_outside_the_witness_are_errors() {
    let rng = &mut StdRng::seed_from_u64(7);
    let mut model = Model::new();
    let founders = random_block(rng, &model, SHAPES[0], 80);
    apply(&mut model, &founders);
    let known = *model.keys().next().unwrap();
    let partial = witness(&model, &BTreeMap::from([(known, BTreeSet::new())]));
    assert!(partial.account(&known).unwrap().is_some());
    assert_eq!(partial.accounts_from(&B256::ZERO, 1).unwrap().len(), 1, "a limit that ends before the gap");
    assert!(matches!(partial.accounts_from(&B256::ZERO, 2), Err(WitnessError::MissingNode { .. })));
    let unknown = model.keys().last().unwrap();
    let Err(WitnessError::MissingNode { at, .. }) = partial.account(unknown) else { panic!("the path is unknown") };
    assert!(Nibbles::unpack(unknown).starts_with(&at.path) && !at.path.is_empty());
    assert_eq!(partial.code(&B256::ZERO), Err(WitnessError::MissingCode { code_hash: B256::ZERO }));
    assert_eq!(partial.code(&KECCAK256_EMPTY), Ok(Some(Bytes::new())));
    assert_eq!(partial.block_hash(0), Ok(Some(block(0).hash)));
    assert_eq!(partial.block_hash(1), Ok(None));

    let empty = Witness::new(anchor(&Model::new()), [], [], []);
    assert_eq!(empty.account(&known), Ok(None));
    assert_eq!(empty.accounts_from(&B256::ZERO, 9), Ok(Vec::new()));
    assert_eq!(empty.node(&NodeKey::new(TrieId::Accounts, Nibbles::new())), Ok(None));
}

#[test]
fn block_hashes_within_the_window_are_needed() {
    let state_root = EMPTY_ROOT_HASH;
    let witness = Witness::new(StateAnchor { block: block(300), state_root }, [], [], [(299, B256::ZERO)]);
    assert_eq!(witness.block_hash(299), Ok(Some(B256::ZERO)));
    assert_eq!(witness.block_hash(298), Err(WitnessError::MissingBlockHash { number: 298 }));
    assert_eq!(witness.block_hash(45), Err(WitnessError::MissingBlockHash { number: 45 }));
    assert_eq!(witness.block_hash(44), Ok(None));
}

/// Any byte changed: the node is another one, and missing. The state root is taken of the changed node: malformed, or
/// another trie, but never a panic.
#[test]
fn tampered_nodes() {
    let rng = &mut StdRng::seed_from_u64(11);
    let mut model = Model::new();
    let founders = random_block(rng, &model, SHAPES[1], 6);
    apply(&mut model, &founders);
    let all = nodes(&model, &everything(&model));
    let address = model.keys().next().unwrap();
    let trees = [all[0].clone()].into_iter().chain(all.iter().skip(1).take(6).cloned());
    for node in trees {
        for at in 0..node.len() {
            let mut bytes = node.to_vec();
            bytes[at] ^= 1 << (at % 8);
            let bytes = Bytes::from(bytes);
            let others = all.iter().filter(|other| **other != node).cloned();
            let changed = Witness::new(anchor(&model), others.clone().chain([bytes.clone()]), [], []);
            if node == all[0] {
                assert!(matches!(changed.account(address), Err(WitnessError::MissingNode { .. })));
            }
            let root = StateAnchor { block: block(0), state_root: keccak256(&bytes) };
            let forged = Witness::new(root, others.chain([bytes]), [], []);
            let _ = forged.account(address);
            let _ = forged.accounts_from(&B256::ZERO, 9);
            let _ = forged.node(&NodeKey::new(TrieId::Accounts, Nibbles::new()));
            let mut state = HashedPostState::default();
            state.accounts.entry(*address).or_default().balance = Some(U256::from(1));
            if let Ok(changes) = resolve(&state, &forged) {
                let _ = fold(&forged, changes, &FoldOptions::SERIAL);
            }
        }
    }
}

#[test]
fn malformed_nodes_are_named() {
    let string = |bytes: &[u8]| alloy_rlp::encode(bytes);
    let list = |items: &[Vec<u8>]| {
        let payload = items.concat();
        let mut out = Vec::new();
        alloy_rlp::Header { list: true, payload_length: payload.len() }.encode(&mut out);
        [out, payload].concat()
    };
    let empty = || vec![0x80];
    let hash = || string(&[7; 32]);
    let branch = |children: usize, value: &[u8]| {
        let mut items = vec![hash(); children];
        items.resize(16, empty());
        items.push(string(value));
        list(&items)
    };
    let full_path = |head: u8| string(&[&[head][..], &[5; 32]].concat());
    let cases = [
        (string(b"no list"), MalformedNode::Rlp),
        (vec![0xc2, 0x81], MalformedNode::Rlp),
        ([branch(2, b""), vec![0]].concat(), MalformedNode::Rlp),
        (list(&[hash(), hash(), hash()]), MalformedNode::ItemCount),
        (list(&vec![empty(); 40]), MalformedNode::ItemCount),
        (branch(1, b""), MalformedNode::Shape),
        (branch(3, b"value"), MalformedNode::Shape),
        (list(&[full_path(0x20), string(b"no account")]), MalformedNode::Value),
        (list(&[full_path(0x20), list(&[])]), MalformedNode::Value),
        (list(&[full_path(0x21), string(b"padding")]), MalformedNode::Path),
        (list(&[full_path(0x60), string(b"flags")]), MalformedNode::Path),
        (list(&[full_path(0x30), string(b"65 nibbles")]), MalformedNode::Path),
        (list(&[string(&[0x20; 20]), string(b"too short")]), MalformedNode::Path),
        (list(&[string(&[0x20; 60]), string(b"too long")]), MalformedNode::Path),
        (list(&[empty(), hash()]), MalformedNode::Path),
        (list(&[string(&[0x00]), hash()]), MalformedNode::Path),
        (list(&[full_path(0x00), hash()]), MalformedNode::Path),
        (list(&[string(&[0x15]), empty()]), MalformedNode::Reference),
        (list(&[string(&[0x15]), string(&[1; 31])]), MalformedNode::Reference),
        (list(&[string(&[0x15]), list(&[string(&[1; 40])])]), MalformedNode::Reference),
    ];
    for (node, expected) in cases {
        let root = StateAnchor { block: block(0), state_root: keccak256(&node) };
        let witness = Witness::new(root, [Bytes::from(node.clone())], [], []);
        let error = witness.account(&B256::repeat_byte(5)).unwrap_err();
        let WitnessError::MalformedNode { at, what } = error else { panic!("{error} for {node:02x?}") };
        assert_eq!((what, *at), (expected, NodeKey::new(TrieId::Accounts, Nibbles::new())), "{node:02x?}");
    }
    // An extension to an extension.
    let inner = list(&[string(&[0x15]), hash()]);
    let outer = list(&[string(&[0x15]), string(keccak256(&inner).as_slice())]);
    let root = StateAnchor { block: block(0), state_root: keccak256(&outer) };
    let witness = Witness::new(root, [Bytes::from(outer), Bytes::from(inner)], [], []);
    let error = witness.node(&NodeKey::new(TrieId::Accounts, Nibbles::new())).unwrap_err();
    assert!(matches!(error, WitnessError::MalformedNode { what: MalformedNode::Shape, .. }), "{error}");
}

/// The hashes of the ancestors whose headers the file brings.
fn headers(file: &WitnessBlock) -> BTreeMap<u64, B256> {
    let headers = file.decode_headers().unwrap();
    headers.into_iter().map(|(hash, header)| (header.number, hash)).collect()
}

/// The real blocks among the fixtures, each with a witness of its parent's state.
fn real_blocks(dir: &Path) -> Vec<(String, WitnessBlock, Witness)> {
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "gz"));
    paths.sort();
    let blocks = paths.into_iter().map(|path| {
        let file = read_witness(&path).unwrap();
        let hashes = headers(&file);
        let parent = BlockNumHash::new(file.number - 1, hashes[&(file.number - 1)]);
        let anchor = StateAnchor { block: parent, state_root: file.parent_state_root };
        let witness = Witness::new(anchor, file.witness.state.clone(), file.witness.codes.clone(), hashes);
        (path.display().to_string(), file, witness)
    });
    blocks.collect()
}

/// Real blocks whose source says how each account and slot changed.
#[test]
fn state_differences_of_real_blocks_lead_to_the_header_state_root() {
    let dir = fixtures_or_skip!("state differences of real blocks", "mainnet-witness");
    let mut blocks = 0;
    for (name, file, witness) in real_blocks(&dir) {
        let Some(diffs) = file.state_diffs else { continue };
        let mut state = HashedPostState::default();
        for diff in &diffs {
            let delta = match &diff.post_account {
                Some(after) => AccountDelta {
                    nonce: Some(after.nonce),
                    balance: Some(after.balance),
                    code_hash: Some(after.code_hash),
                    storage: diff.storage.iter().map(|slot| (hash_slot(&slot.slot), slot.post_value)).collect(),
                    ..AccountDelta::default()
                },
                None => AccountDelta { cleared: Cleared::Account, ..AccountDelta::default() },
            };
            state.accounts.insert(hash_address(&diff.address), delta);
        }
        let outcome = fold_every_way(&witness, &state);
        assert_eq!(outcome.computed_state_root, file.state_root, "{name}");
        for diff in &diffs {
            if let (Some(change), Some(after)) =
                (outcome.diff.account(&hash_address(&diff.address)), &diff.post_account)
            {
                assert_eq!(change.new.unwrap().storage_root, after.storage_root, "{}", diff.address);
                let old = change.old.map(|account| account.balance);
                assert_eq!(old, diff.pre_account.as_ref().map(|before| before.balance), "{}", diff.address);
            }
        }
        println!("{name}: {} accounts changed", outcome.diff.accounts.len());
        // The same again on the layer changes nothing; its opaque children stay what they are.
        let block = BlockNumHash::new(file.number, file.block_hash);
        let layer = layer(outcome, witness.anchor().block, block);
        let child = Overlay::new(witness, vec![layer]).unwrap();
        let same = fold_every_way(&child, &state);
        assert_eq!(same.computed_state_root, file.state_root);
        assert!(same.diff.accounts.is_empty() && same.updates().nodes.is_empty());
        blocks += 1;
    }
    assert!(blocks >= 2, "{blocks} blocks with differences");
}

/// Real blocks from the access list of the reference implementation, without executing anything.
#[test]
fn access_lists_of_real_blocks_lead_to_the_header_state_root() {
    let dir = fixtures_or_skip!("access lists of real blocks", "mainnet-witness");
    let mut blocks = 0;
    for (name, file, witness) in real_blocks(&dir) {
        let Some(raw) = file.block_access_list else { continue };
        // The rules are not in question here, so the limits are wide.
        let limits = BalLimits::new(u64::MAX, u64::MAX);
        let bal = Bal::decode_checked(raw, file.block_access_list_hash, &limits).unwrap();
        assert!(file.block_access_list_hash.is_some());
        let outcome = fold_every_way(&witness, bal.post_state());
        assert_eq!(outcome.computed_state_root, file.state_root, "{name}");
        println!("{name}: {} accounts, {} slots", outcome.diff.accounts.len(), outcome.diff.slot_count());
        blocks += 1;
    }
    assert!(blocks >= 5, "{blocks} blocks with lists");
}
