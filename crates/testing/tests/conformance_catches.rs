//! The conformance suite is itself held to something: each fault that a backend might have, planted into the store in
//! memory, is found by the property that is there for it.

use std::{
    collections::BTreeMap,
    panic,
    sync::{Arc, Mutex},
};

use alloy_primitives::{B256, Bytes, U256};
use foldgate_core::{
    Account, AccountInfo, BalStore, BlockHash, BlockNumHash, BlockNumber, CommitBatch, LoadError, LoadSource,
    MemoryError, MemorySnapshot, MemoryStore, NodeKey, ReverseDiff, StateAnchor, StateReader, TrieId, TrieReader,
    TrieStore, UnwindBatch, store::next_key,
};
use foldgate_testing::conformance::{StoreFactory, commits, loading, reading, snapshots};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    SlotScanRunsOn,
    ScanSkipsStart,
    ScanIgnoresLimit,
    TriesShareTheirRoot,
    WindowTooShort,
    HashAboveTheBlock,
    SortsWhatIsUnsorted,
    UnwindKeepsLists,
    ListsByNumberAlone,
    OneReverseDiffPerBatch,
    PruneDropsOneTooMany,
    LoadsTwice,
    SnapshotFollowsTheTip,
}

struct Faulty {
    fault: Fault,
    inner: Arc<MemoryStore>,
    lists: Mutex<BTreeMap<BlockNumHash, Bytes>>,
}

#[derive(Clone)]
struct View {
    fault: Fault,
    inner: MemorySnapshot,
    store: Arc<MemoryStore>,
}

impl StoreFactory for Fault {
    type Store = Faulty;

    fn fresh(&self) -> Faulty {
        Faulty { fault: *self, inner: Arc::default(), lists: Mutex::default() }
    }
}

impl StateReader for View {
    type Error = MemoryError;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, MemoryError> {
        self.inner.account_info(hashed_address)
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, MemoryError> {
        self.inner.storage(hashed_address, hashed_slot)
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, MemoryError> {
        self.inner.code(code_hash)
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, MemoryError> {
        let tip = self.anchor().block;
        match self.fault {
            Fault::WindowTooShort if number + 255 <= tip.number => Ok(None),
            Fault::HashAboveTheBlock if number > tip.number => Ok(Some(tip.hash)),
            _ => self.inner.block_hash(number),
        }
    }
}

impl TrieReader for View {
    fn anchor(&self) -> StateAnchor {
        self.inner.anchor()
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, MemoryError> {
        match self.fault {
            Fault::SnapshotFollowsTheTip => self.store.snapshot()?.account(hashed_address),
            _ => self.inner.account(hashed_address),
        }
    }

    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, MemoryError> {
        match self.fault {
            Fault::TriesShareTheirRoot if key.path.is_empty() => {
                self.inner.node(&NodeKey::new(TrieId::Accounts, key.path))
            }
            _ => self.inner.node(key),
        }
    }

    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, MemoryError> {
        match self.fault {
            Fault::ScanIgnoresLimit => self.inner.accounts_from(start, usize::MAX),
            Fault::ScanSkipsStart => match next_key(start) {
                Some(after) => self.inner.accounts_from(&after, limit),
                None => Ok(Vec::new()),
            },
            _ => self.inner.accounts_from(start, limit),
        }
    }

    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, MemoryError> {
        let mut slots = self.inner.slots_from(hashed_address, start, limit)?;
        if let (Fault::SlotScanRunsOn, Some(neighbour)) = (self.fault, next_key(hashed_address)) {
            slots.extend(self.inner.slots_from(&neighbour, &B256::ZERO, limit - slots.len())?);
        }
        Ok(slots)
    }
}

impl TrieStore for Faulty {
    type Error = MemoryError;
    type Snapshot = View;

    fn genesis(&self) -> Result<Option<StateAnchor>, MemoryError> {
        self.inner.genesis()
    }

    fn tip(&self) -> Result<Option<StateAnchor>, MemoryError> {
        self.inner.tip()
    }

    fn snapshot(&self) -> Result<View, MemoryError> {
        Ok(View { fault: self.fault, inner: self.inner.snapshot()?, store: Arc::clone(&self.inner) })
    }

    fn load<L: LoadSource>(&self, source: L) -> Result<StateAnchor, LoadError<MemoryError, L::Error>> {
        match self.inner.tip() {
            Ok(Some(tip)) if self.fault == Fault::LoadsTwice => Ok(tip),
            _ => self.inner.load(source),
        }
    }

    fn commit(&self, batch: &CommitBatch) -> Result<(), MemoryError> {
        let mut batch = batch.clone();
        if self.fault == Fault::SortsWhatIsUnsorted {
            batch.rows.accounts.sort_by_key(|(hashed_address, _)| *hashed_address);
        }
        if self.fault == Fault::OneReverseDiffPerBatch {
            let others = batch.blocks.iter_mut().rev().skip(1);
            others.for_each(|block| block.reverse = ReverseDiff::default());
        }
        self.inner.commit(&batch)?;
        let lists = batch.blocks.into_iter().filter_map(|block| Some((block.anchor.block, block.bal?)));
        self.lists.lock().unwrap().extend(lists);
        Ok(())
    }

    fn unwind(&self, batch: &UnwindBatch) -> Result<(), MemoryError> {
        self.inner.unwind(batch)
    }

    fn committed(&self, number: BlockNumber) -> Result<Option<StateAnchor>, MemoryError> {
        self.inner.committed(number)
    }

    fn reverse_diff(&self, number: BlockNumber) -> Result<Option<ReverseDiff>, MemoryError> {
        self.inner.reverse_diff(number)
    }
}

impl BalStore for Faulty {
    fn bal(&self, block: BlockNumHash) -> Result<Option<Bytes>, MemoryError> {
        match self.fault {
            Fault::UnwindKeepsLists => Ok(self.lists.lock().unwrap().get(&block).cloned()),
            Fault::ListsByNumberAlone => match self.inner.committed(block.number)? {
                Some(anchor) => self.inner.bal(anchor.block),
                None => Ok(None),
            },
            _ => self.inner.bal(block),
        }
    }

    fn prune_below(&self, below: BlockNumber) -> Result<u64, MemoryError> {
        self.inner.prune_below(below + u64::from(self.fault == Fault::PruneDropsOneTooMany))
    }
}

type Property = fn(&Fault);

#[test]
fn each_planted_fault_is_found_by_its_property() {
    let plants: [(Fault, Property); 13] = [
        (Fault::SlotScanRunsOn, reading::slot_scans_stay_within_their_account),
        (Fault::ScanSkipsStart, reading::scans_are_ordered_limited_and_start_anywhere),
        (Fault::ScanIgnoresLimit, reading::scans_are_ordered_limited_and_start_anywhere),
        (Fault::TriesShareTheirRoot, reading::tries_are_kept_apart),
        (Fault::WindowTooShort, commits::block_hashes_reach_back_a_whole_window),
        (Fault::HashAboveTheBlock, loading::a_load_becomes_genesis_and_tip),
        (Fault::SortsWhatIsUnsorted, commits::refused_commits_change_nothing),
        (Fault::UnwindKeepsLists, commits::lists_are_found_by_number_and_hash),
        (Fault::ListsByNumberAlone, commits::lists_are_found_by_number_and_hash),
        (Fault::OneReverseDiffPerBatch, commits::a_batch_of_many_blocks_keeps_each_ones_diff_and_list),
        (Fault::PruneDropsOneTooMany, commits::pruning_drops_lists_and_diffs_and_limits_unwinding),
        (Fault::LoadsTwice, loading::a_second_load_is_refused),
        (Fault::SnapshotFollowsTheTip, snapshots::snapshots_outlive_commits_and_unwinds),
    ];
    for (fault, property) in plants {
        property(&Fault::None);
        assert!(panic::catch_unwind(|| property(&fault)).is_err(), "{fault:?} was not found");
    }
}

#[test]
fn a_store_without_a_fault_passes() {
    commits::random_histories_match_the_model(&Fault::None);
    snapshots::snapshots_outlive_commits_and_unwinds(&Fault::None);
}
