//! One block through the pipeline: it arrives with its access list, is folded while it "executes", and is judged.

use std::{convert::Infallible, error::Error, sync::Arc};

use alloy_primitives::{Address, B256, U256, keccak256};
use foldgate::{
    BlockRequest, BlockResult, MemoryStore, Pipeline, PipelineConfig, StateReader, TrieStore, Verdict,
    bal::{self, AccountChanges, BalanceChange},
    core::{
        AccountWrites, BlockAccessIndex, BlockFacts, BlockNumHash, StateWrites, keys,
        trie::bulk::{GenesisAccount, LoadItem, StateLoad, genesis_items, state_root},
    },
    pipeline::{Begun, RebuiltBal},
};

/// A state of one account.
fn state(address: Address, balance: U256) -> impl Iterator<Item = Result<LoadItem, Infallible>> {
    genesis_items([(address, GenesisAccount { balance, ..Default::default() })]).into_iter().map(Ok)
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let (sender, value) = (Address::repeat_byte(0xaa), U256::from(93));

    // A store that holds the parent's state. `RedbStore::open` and `MdbxStore::open` take a folder instead.
    let store = Arc::new(MemoryStore::new());
    let genesis = BlockNumHash::new(0, B256::repeat_byte(0));
    store.load(StateLoad::new(state(sender, U256::from(100)), genesis))?;

    // What comes with the block: its access list, and a header that commits to the list and to the root after it.
    let mut changes = AccountChanges::new(sender);
    changes.balance_changes.push(BalanceChange::new(BlockAccessIndex::new(1), U256::from(7)));
    let raw_bal = bal::encode(&[changes]);
    let rebuilt_hash = keccak256(&raw_bal);
    let facts = BlockFacts {
        block: BlockNumHash::new(1, B256::repeat_byte(1)),
        parent_hash: genesis.hash,
        timestamp: 12,
        gas_limit: 30_000_000,
        tx_count: 1,
        expected_state_root: Some(state_root(state(sender, U256::from(7)))?),
        expected_bal_hash: Some(rebuilt_hash),
    };

    let pipeline = Pipeline::open(store, PipelineConfig::from_env()?)?;

    // The block arrives: its fold starts at once, whatever its execution does.
    let request = BlockRequest::new(facts).with_bal(raw_bal);
    let Begun::Started(mut block) = pipeline.begin(request)? else { return Ok(()) };

    // The executor reads the parent's state, and records what each transaction changed.
    let parent = block.parent_state();
    let before = parent.account_info(&keys::hash_address(&sender))?.unwrap_or_default();
    let spent = AccountWrites { balance: Some(before.balance - value), ..Default::default() };
    block.record(BlockAccessIndex::new(1), &StateWrites { accounts: vec![(sender, spent)] })?;

    // It ends with the list that it rebuilt while executing; the ticket yields the verdict.
    let rebuilt_bal = Some(RebuiltBal { hash: rebuilt_hash, list: None });
    let ticket = block.finish(BlockResult { rebuilt_bal, expected_state_root: None });
    match ticket.wait()? {
        Verdict::Valid(valid) => println!("{} in {:?}", valid.computed_state_root, valid.timings.fold),
        Verdict::Invalid(invalid) => println!("invalid: {}", invalid.reason),
    }

    assert_eq!(pipeline.counters().folds_ahead, 1);
    let durable = pipeline.flush()?;
    assert_eq!((durable.block, Some(durable.state_root)), (facts.block, facts.expected_state_root));
    Ok(())
}
