//! What only this store promises: that it forgets what no snapshot sees. The rest is the conformance suite's.

use std::convert::Infallible;

use super::*;
use crate::store::CommittedBlock;

struct Pieces(std::vec::IntoIter<Rows>, StateAnchor);

impl LoadSource for Pieces {
    type Error = Infallible;

    fn next_rows(&mut self) -> Result<Option<Rows>, Infallible> {
        Ok(self.0.next())
    }

    fn anchor(&mut self) -> Result<StateAnchor, Infallible> {
        Ok(self.1)
    }
}

fn key(number: u64) -> B256 {
    B256::from(U256::from(number))
}

fn anchor(number: u64) -> StateAnchor {
    StateAnchor { block: BlockNumHash::new(number, key(1000 + number)), state_root: key(2000 + number) }
}

fn account(nonce: u64) -> Account {
    Account { nonce, ..Account::default() }
}

fn loaded(accounts: u64) -> MemoryStore {
    let store = MemoryStore::new();
    let rows = Rows { accounts: (0..accounts).map(|at| (key(at), Some(account(0)))).collect(), ..Rows::default() };
    store.load(Pieces(vec![rows].into_iter(), anchor(0))).unwrap();
    store
}

fn write(store: &MemoryStore, number: u64, accounts: Vec<(B256, Option<Account>)>) {
    let block = CommittedBlock { anchor: anchor(number), reverse: ReverseDiff::default(), bal: None };
    let parent = anchor(number - 1).block;
    let rows = Rows { accounts, ..Rows::default() };
    store.commit(&CommitBatch { parent, blocks: vec![block], rows }).unwrap();
}

fn footprint(store: &MemoryStore) -> (usize, usize) {
    store.shared.tables.read().accounts.footprint()
}

#[test]
fn without_snapshots_nothing_old_is_kept() {
    let store = loaded(2000);
    for number in 1..=3 {
        write(&store, number, (0..2000).map(|at| (key(at), Some(account(number)))).collect());
        assert_eq!(footprint(&store), (0, 2000));
    }
    write(&store, 4, (0..1500).map(|at| (key(at), None)).collect());
    assert_eq!(footprint(&store), (0, 500), "a deleted row leaves nothing behind");
    assert!(store.shared.live.lock().is_empty());
}

#[test]
fn an_old_snapshot_keeps_its_own_values_and_none_between() {
    let store = loaded(10);
    let first = store.snapshot().unwrap();
    for number in 1..=20 {
        write(&store, number, (0..10).map(|at| (key(at), Some(account(number)))).collect());
    }
    assert_eq!(footprint(&store), (10, 10), "one old value for each key, not twenty");
    let middle = store.snapshot().unwrap();
    write(&store, 21, (0..10).map(|at| (key(at), None)).collect());
    assert_eq!(footprint(&store), (20, 10));
    let clone = first.clone();
    drop(first);
    write(&store, 22, Vec::new());
    assert_eq!(clone.account(&key(3)).unwrap(), Some(account(0)));
    assert_eq!(middle.accounts_from(&B256::ZERO, 99).unwrap().len(), 10);
    drop(clone);
    write(&store, 23, Vec::new());
    assert_eq!(footprint(&store), (10, 10), "what only the dropped snapshot saw is gone");
    assert_eq!(middle.account(&key(3)).unwrap(), Some(account(20)));
    drop(middle);
    write(&store, 24, Vec::new());
    assert_eq!(footprint(&store), (0, 0));
}

#[test]
fn a_row_written_after_a_snapshot_stays_invisible_to_it_for_ever() {
    let store = loaded(1);
    let before = store.snapshot().unwrap();
    write(&store, 1, vec![(key(7), Some(account(1)))]);
    write(&store, 2, vec![(key(7), None)]);
    write(&store, 3, vec![(key(7), Some(account(3)))]);
    assert_eq!(before.account(&key(7)).unwrap(), None);
    assert_eq!(before.accounts_from(&B256::ZERO, 9).unwrap(), [(key(0), account(0))]);
    assert_eq!(store.snapshot().unwrap().account(&key(7)).unwrap(), Some(account(3)));
}
