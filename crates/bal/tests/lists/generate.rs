//! Lists to test with: generated and real ones, and the ways to damage them.
//!
//! Without the published lists only generated ones are used.

use std::{ops::ControlFlow, sync::OnceLock};

use alloy_primitives::{Address, Bytes, U256};
use alloy_rlp::{Encodable, Header};
use foldgate_bal::{
    AccountChanges, BalanceChange, BlockAccessIndex, BlockAccessList, CodeChange, NonceChange, SlotChanges,
    StorageChange, encode,
};
use foldgate_testing::{bal_vectors, find_or_report, fixtures::visit_files};
use proptest::{collection::vec, prelude::*, sample::Index};

// Generated lists, with few distinct keys so that duplicates and disorder are frequent.

pub(crate) fn number() -> impl Strategy<Value = U256> {
    prop_oneof![
        4 => (0u64..4).prop_map(U256::from),
        2 => (0x7eu64..0x102).prop_map(U256::from),
        1 => any::<[u8; 32]>().prop_map(U256::from_be_bytes),
        1 => (0usize..256).prop_map(|bit| U256::from(1) << bit),
    ]
}

pub(crate) fn index() -> impl Strategy<Value = BlockAccessIndex> {
    prop_oneof![6 => 0u64..6, 1 => 0u64..1 << 17, 1 => Just(u64::from(u32::MAX))].prop_map(BlockAccessIndex::new)
}

pub(crate) fn account() -> impl Strategy<Value = AccountChanges> {
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

pub(crate) fn any_list() -> impl Strategy<Value = BlockAccessList> {
    vec(account(), 0..5)
}

/// Lists in the EIP's order, with each key once.
pub(crate) fn ordered_list() -> impl Strategy<Value = BlockAccessList> {
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
pub(crate) fn real_lists() -> &'static [Bytes] {
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

pub(crate) fn raw_list() -> impl Strategy<Value = Bytes> {
    prop_oneof![any_list().prop_map(|list| encode(&list)), any::<Index>().prop_map(|at| at.get(real_lists()).clone())]
}

// Damage to bytes, which mostly breaks lengths.

#[derive(Debug, Clone)]
pub(crate) enum Damage {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Cut(Index),
    Append(Vec<u8>),
}

pub(crate) fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Insert(at, byte)),
        any::<Index>().prop_map(Damage::Remove),
        any::<Index>().prop_map(Damage::Cut),
        vec(any::<u8>(), 1..4).prop_map(Damage::Append),
    ]
}

pub(crate) fn damaged(raw: &[u8], damages: &[Damage]) -> Vec<u8> {
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
pub(crate) enum Item {
    String(Vec<u8>),
    List(Vec<Self>),
}

impl Item {
    pub(crate) fn parse(rlp: &mut &[u8]) -> Self {
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

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
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
pub(crate) enum Graft {
    LeadingZero,
    Widen(u8),
    Shorten,
    Replace(Vec<u8>),
    EmptyList,
    DropLast,
    RepeatLast,
    SwapFirst,
}

pub(crate) fn graft() -> impl Strategy<Value = Graft> {
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

pub(crate) fn grafted(raw: &[u8], grafts: &[(Index, Graft)]) -> Vec<u8> {
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
