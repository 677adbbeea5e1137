//! Properties of decoder, rules, values and comparison over generated, real and damaged lists.
//!
//! Invariants: the oracles are other people's code (the decoder and the validation of `alloy-eip7928`) or the definition
//! written out; a failure prints its smallest case and the seed. Without the published lists only generated ones are used.

use std::{collections::BTreeMap, ops::ControlFlow, sync::OnceLock};

use alloy_primitives::{Address, Bytes, U256};
use alloy_rlp::{Decodable, Encodable, Header};
use foldgate_bal::{
    AccountChanges, BalLimits, BalanceChange, BlockAccessIndex, BlockAccessList, CodeChange, Difference, NonceChange,
    SlotChanges, StorageChange, decode, encode, first_mismatch, touches, validate, writes,
};
use foldgate_testing::{bal_vectors, find_or_report, fixtures::visit_files, oracle};
use proptest::{collection::vec, prelude::*, sample::Index};

// Generated lists, with few distinct keys so that duplicates and disorder are frequent.

fn number() -> impl Strategy<Value = U256> {
    prop_oneof![
        4 => (0u64..4).prop_map(U256::from),
        2 => (0x7eu64..0x102).prop_map(U256::from),
        1 => any::<[u8; 32]>().prop_map(U256::from_be_bytes),
        1 => (0usize..256).prop_map(|bit| U256::from(1) << bit),
    ]
}

fn index() -> impl Strategy<Value = BlockAccessIndex> {
    prop_oneof![6 => 0u64..6, 1 => 0u64..1 << 17, 1 => Just(u64::from(u32::MAX))].prop_map(BlockAccessIndex::new)
}

fn account() -> impl Strategy<Value = AccountChanges> {
    let slot = (number(), vec((index(), number()), 0..4)).prop_map(|(slot, changes)| {
        SlotChanges::new(slot, changes.into_iter().map(|(index, value)| StorageChange::new(index, value)).collect())
    });
    let balance = (index(), number()).prop_map(|(index, balance)| BalanceChange::new(index, balance));
    let nonce = (index(), any::<u64>()).prop_map(|(index, nonce)| NonceChange::new(index, nonce));
    let code = (index(), vec(any::<u8>(), 0..70)).prop_map(|(index, code)| CodeChange::new(index, code.into()));
    let fields = (vec(slot, 0..4), vec(number(), 0..4), vec(balance, 0..4), vec(nonce, 0..4), vec(code, 0..3));
    (0u8..8, fields).prop_map(
        |(byte, (storage_changes, storage_reads, balance_changes, nonce_changes, code_changes))| {
            let address = Address::with_last_byte(byte);
            AccountChanges { address, storage_changes, storage_reads, balance_changes, nonce_changes, code_changes }
        },
    )
}

fn any_list() -> impl Strategy<Value = BlockAccessList> {
    vec(account(), 0..5)
}

/// Lists in the EIP's order, with each key once.
fn ordered_list() -> impl Strategy<Value = BlockAccessList> {
    any_list().prop_map(|mut list| {
        list.sort_by_key(|account| account.address);
        list.dedup_by_key(|account| account.address);
        for account in &mut list {
            account.storage_changes.retain(|slot| !slot.is_empty());
            account.sort();
            account.storage_changes.dedup_by_key(|slot| slot.slot);
            for slot in &mut account.storage_changes {
                slot.changes.dedup_by_key(|change| change.block_access_index);
            }
            let written: Vec<_> = account.storage_changes.iter().map(|slot| slot.slot).collect();
            account.storage_reads.retain(|slot| !written.contains(slot));
            account.storage_reads.dedup();
            account.balance_changes.dedup_by_key(|change| change.block_access_index);
            account.nonce_changes.dedup_by_key(|change| change.block_access_index);
            account.code_changes.dedup_by_key(|change| change.block_access_index);
        }
        list
    })
}

/// Encodings of published lists: small ones of the EIP's tests, and some of mainnet's size.
fn real_lists() -> &'static [Bytes] {
    static LISTS: OnceLock<Vec<Bytes>> = OnceLock::new();
    LISTS.get_or_init(|| {
        let mut lists = vec![Bytes::from_static(&[0xc0])];
        if let Some(path) = find_or_report("damaged real lists", "bal-amsterdam/eip7928-osaka-gas.tar.zst") {
            visit_files(&path, &mut |file| {
                let tests = file.unwrap().tests;
                let blocks = tests.iter().flat_map(|test| &test.blocks);
                lists.extend(blocks.filter_map(|block| Some(block.block_access_list.as_ref()?.rlp.clone())));
                ControlFlow::Continue(())
            });
        }
        if let Some(path) = find_or_report("damaged mainnet lists", "mainnet-bal-shapes/mainnet-bal-rlp.tar.zst") {
            let mainnet = bal_vectors::read_mainnet_lists(&path).unwrap();
            lists.extend(mainnet.iter().take(4).map(|list| encode(&list.accounts)));
        }
        lists
    })
}

fn raw_list() -> impl Strategy<Value = Bytes> {
    prop_oneof![any_list().prop_map(|list| encode(&list)), any::<Index>().prop_map(|at| at.get(real_lists()).clone())]
}

// Damage to bytes, which mostly breaks lengths.

#[derive(Debug, Clone)]
enum Damage {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Cut(Index),
    Append(Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Insert(at, byte)),
        any::<Index>().prop_map(Damage::Remove),
        any::<Index>().prop_map(Damage::Cut),
        vec(any::<u8>(), 1..4).prop_map(Damage::Append),
    ]
}

fn damaged(raw: &[u8], damages: &[Damage]) -> Vec<u8> {
    let mut bytes = raw.to_vec();
    for damage in damages {
        // The end counts as a place, so that empty input has one.
        let place = |at: &Index| at.index(bytes.len() + 1);
        match damage {
            Damage::Set(at, byte) => {
                let at = place(at);
                bytes.get_mut(at).into_iter().for_each(|old| *old = *byte);
            }
            Damage::Flip(at, bit) => {
                let at = place(at);
                bytes.get_mut(at).into_iter().for_each(|old| *old ^= 1 << bit);
            }
            Damage::Insert(at, byte) => bytes.insert(place(at), *byte),
            Damage::Remove(at) => {
                let at = place(at);
                if at < bytes.len() {
                    bytes.remove(at);
                }
            }
            Damage::Cut(at) => bytes.truncate(place(at)),
            Damage::Append(more) => bytes.extend(more),
        }
    }
    bytes
}

// Damage to the tree of items, with all lengths put right again, which reaches the rules for single items.

#[derive(Debug, Clone)]
enum Item {
    String(Vec<u8>),
    List(Vec<Self>),
}

impl Item {
    fn parse(rlp: &mut &[u8]) -> Self {
        let header = Header::decode(rlp).unwrap();
        let (mut payload, rest) = rlp.split_at(header.payload_length);
        *rlp = rest;
        if !header.list {
            return Self::String(payload.to_vec());
        }
        let mut items = Vec::new();
        while !payload.is_empty() {
            items.push(Self::parse(&mut payload));
        }
        Self::List(items)
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::String(bytes) => bytes.as_slice().encode(out),
            Self::List(items) => {
                let mut payload = Vec::new();
                items.iter().for_each(|item| item.write(&mut payload));
                Header { list: true, payload_length: payload.len() }.encode(out);
                out.extend(payload);
            }
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::String(_) => 1,
            Self::List(items) => 1 + items.iter().map(Self::count).sum::<usize>(),
        }
    }

    /// The item at `position` in the order of the encoding.
    fn nth(&mut self, mut position: usize) -> Option<&mut Self> {
        if position == 0 {
            return Some(self);
        }
        position -= 1;
        let Self::List(items) = self else { return None };
        for item in items {
            let count = item.count();
            if position < count {
                return item.nth(position);
            }
            position -= count;
        }
        None
    }
}

#[derive(Debug, Clone)]
enum Graft {
    LeadingZero,
    Widen(u8),
    Shorten,
    Replace(Vec<u8>),
    EmptyList,
    DropLast,
    RepeatLast,
    SwapFirst,
}

fn graft() -> impl Strategy<Value = Graft> {
    prop_oneof![
        Just(Graft::LeadingZero),
        (1u8..).prop_map(Graft::Widen),
        Just(Graft::Shorten),
        vec(any::<u8>(), 0..34).prop_map(Graft::Replace),
        Just(Graft::EmptyList),
        Just(Graft::DropLast),
        Just(Graft::RepeatLast),
        Just(Graft::SwapFirst),
    ]
}

fn grafted(raw: &[u8], grafts: &[(Index, Graft)]) -> Vec<u8> {
    let mut tree = Item::parse(&mut &raw[..]);
    for (at, graft) in grafts {
        let position = at.index(tree.count());
        let item = tree.nth(position).unwrap();
        match (graft, &mut *item) {
            (Graft::LeadingZero, Item::String(bytes)) => bytes.insert(0, 0),
            (Graft::Widen(byte), Item::String(bytes)) => bytes.insert(0, *byte),
            (Graft::Shorten, Item::String(bytes)) => drop(bytes.pop()),
            (Graft::Replace(bytes), _) => *item = Item::String(bytes.clone()),
            (Graft::EmptyList, _) => *item = Item::List(vec![]),
            (Graft::DropLast, Item::List(items)) => drop(items.pop()),
            (Graft::RepeatLast, Item::List(items)) => items.extend(items.last().cloned()),
            (Graft::SwapFirst, Item::List(items)) if items.len() > 1 => items.swap(0, 1),
            _ => {}
        }
    }
    let mut out = Vec::new();
    tree.write(&mut out);
    out
}

/// What the decoders that `alloy-eip7928` derives accept, less what they leave to their caller.
fn derived_decoder(mut raw: &[u8]) -> Option<BlockAccessList> {
    let list = BlockAccessList::decode(&mut raw).ok()?;
    let fits = |index: BlockAccessIndex| index.get() <= u64::from(u32::MAX);
    let all_fit = list.iter().all(|account| {
        account.storage_changes.iter().all(|slot| slot.changes.iter().all(|change| fits(change.block_access_index)))
            && account.balance_changes.iter().all(|change| fits(change.block_access_index))
            && account.nonce_changes.iter().all(|change| fits(change.block_access_index))
            && account.code_changes.iter().all(|change| fits(change.block_access_index))
    });
    (raw.is_empty() && all_fit).then_some(list)
}

fn check_decoder(raw: &[u8]) -> Result<(), TestCaseError> {
    match decode(raw) {
        Ok(list) => {
            prop_assert_eq!(&encode(&list)[..], raw, "accepted bytes re-encode to themselves");
            prop_assert_eq!(derived_decoder(raw), Some(list));
        }
        Err(error) => {
            prop_assert!(error.offset <= raw.len());
            prop_assert_eq!(derived_decoder(raw), None, "{}", error);
        }
    }
    Ok(())
}

/// The final values by the definition: all changes in range, applied in ascending order of their index.
fn replayed(account: &AccountChanges, up_to: BlockAccessIndex) -> (Vec<Option<U256>>, BTreeMap<U256, U256>) {
    let mut indices: Vec<(BlockAccessIndex, usize, U256)> = Vec::new();
    indices.extend(account.balance_changes.iter().map(|c| (c.block_access_index, 0, c.post_balance)));
    indices.extend(account.nonce_changes.iter().map(|c| (c.block_access_index, 1, U256::from(c.new_nonce))));
    indices.sort_by_key(|change| change.0);
    let mut fields = vec![None; 2];
    for (_, field, value) in indices.into_iter().filter(|change| change.0 <= up_to) {
        fields[field] = Some(value);
    }
    let mut slots: Vec<_> = account
        .storage_changes
        .iter()
        .flat_map(|slot| slot.changes.iter().map(|change| (change.block_access_index, slot.slot, change.new_value)))
        .filter(|change| change.0 <= up_to)
        .collect();
    slots.sort_by_key(|change| change.0);
    (fields, slots.into_iter().map(|(_, slot, value)| (slot, value)).collect())
}

/// Reverses what stands in memory without changing what it means.
fn reversed(mut list: BlockAccessList) -> BlockAccessList {
    for account in &mut list {
        account.storage_changes.iter_mut().for_each(|slot| slot.changes.reverse());
        account.balance_changes.reverse();
        account.nonce_changes.reverse();
        account.code_changes.reverse();
    }
    list
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lists_survive_encoding(list in any_list()) {
        prop_assert_eq!(decode(&encode(&list)), Ok(list));
    }

    #[test]
    fn random_bytes_are_judged_as_by_the_derived_decoder(raw in vec(any::<u8>(), 0..200)) {
        check_decoder(&raw)?;
    }

    #[test]
    fn damaged_bytes_are_judged_as_by_the_derived_decoder(raw in raw_list(), damages in vec(damage(), 1..4)) {
        check_decoder(&damaged(&raw, &damages))?;
    }

    #[test]
    fn damaged_items_are_judged_as_by_the_derived_decoder(
        list in any_list(),
        grafts in vec((any::<Index>(), graft()), 1..3),
    ) {
        check_decoder(&grafted(&encode(&list), &grafts))?;
    }

    #[test]
    fn rules_of_order_agree_with_those_of_the_types_crate(
        list in prop_oneof![any_list(), ordered_list()],
        tx_count in prop_oneof![0u64..8, Just(u64::from(u32::MAX))],
    ) {
        let ours = validate(&list, &BalLimits::new(tx_count, u64::MAX));
        let theirs = alloy_eip7928::validate_block_access_list(&list, tx_count as usize);
        prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} {:?}", ours, theirs);
    }

    #[test]
    fn items_are_counted_as_by_the_types_crate(list in ordered_list()) {
        let items = alloy_eip7928::total_bal_items(&list);
        prop_assert_eq!(touches(&list).count() as u64, items);
        let at = |gas_limit| validate(&list, &BalLimits::new(u64::from(u32::MAX), gas_limit)).is_ok();
        prop_assert!(at(items * 2000));
        prop_assert!(items == 0 || !at(items * 2000 - 1));
    }

    #[test]
    fn values_are_those_of_a_replay_whatever_the_order(list in ordered_list(), up_to in index()) {
        let expected = writes(&list, Some(up_to));
        prop_assert_eq!(&writes(&reversed(list.clone()), Some(up_to)), &expected);
        let by_address: BTreeMap<_, _> = expected.accounts.into_iter().collect();
        for account in &list {
            let (fields, slots) = replayed(account, up_to);
            let write = by_address.get(&account.address).cloned().unwrap_or_default();
            prop_assert_eq!(write.balance, fields[0]);
            prop_assert_eq!(write.nonce.map(U256::from), fields[1]);
            prop_assert_eq!(write.storage.into_iter().collect::<BTreeMap<_, _>>(), slots);
        }
    }

    #[test]
    fn values_are_those_of_the_oracle(list in ordered_list(), up_to in proptest::option::of(index())) {
        let ours: BTreeMap<_, _> = writes(&list, up_to).accounts.into_iter().collect();
        let theirs = oracle::access_list_diff(&list, up_to);
        prop_assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (address, write) in ours {
            let expected = &theirs[&address];
            prop_assert_eq!((write.nonce, write.balance), (expected.nonce, expected.balance));
            prop_assert_eq!(write.code.map(|code| code.bytes().clone()), expected.code.clone());
            prop_assert_eq!(&write.storage.into_iter().collect::<BTreeMap<_, _>>(), &expected.storage);
        }
    }

    #[test]
    fn comparison_finds_nothing_exactly_in_equal_lists(left in any_list(), right in any_list()) {
        prop_assert_eq!(first_mismatch(&left, &left), None);
        prop_assert_eq!(first_mismatch(&left, &right).is_none(), left == right);
        // The same first place, seen from the other side.
        let (there, back) = (first_mismatch(&left, &right), first_mismatch(&right, &left));
        prop_assert_eq!(there.is_none(), back.is_none());
        if let Some(mismatch) = there {
            prop_assert!(mismatch.to_string().contains(&mismatch.address.to_string()));
        }
    }

    #[test]
    fn comparison_names_the_account_that_was_altered(
        list in ordered_list().prop_filter("an account to alter", |list| !list.is_empty()),
        at in any::<Index>(),
        other in account(),
    ) {
        let at = at.index(list.len());
        let mut altered = list.clone();
        altered[at] = AccountChanges { address: list[at].address, ..other };
        let mismatch = first_mismatch(&altered, &list);
        prop_assert_eq!(mismatch.is_some(), altered != list);
        if let Some(mismatch) = mismatch {
            prop_assert_eq!(mismatch.address, list[at].address);
        }
        altered.remove(at);
        let missing = first_mismatch(&altered, &list).expect("an account is gone");
        prop_assert_eq!(missing.address, list[at].address);
        prop_assert_eq!(missing.difference, Difference::Account { got: false, expected: true });
    }
}

proptest! {
    // Real lists are large, so fewer of them.
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_items_of_real_lists_are_judged_as_by_the_derived_decoder(
        at in any::<Index>(),
        grafts in vec((any::<Index>(), graft()), 1..3),
    ) {
        check_decoder(&grafted(at.get::<Bytes>(real_lists()), &grafts))?;
    }
}

#[test]
fn every_beginning_of_a_list_is_refused() {
    for raw in real_lists().iter().filter(|raw| raw.len() < 4_000).take(40) {
        for end in 0..raw.len() {
            assert!(decode(&raw[..end]).is_err());
        }
    }
}
