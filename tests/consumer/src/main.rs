//! A dependent: opens a store of the backend that it was built for, loads an empty genesis, and calculates one block
//! that changes nothing.

use std::{env, error::Error, sync::Arc};

use foldgate::{
    BlockRequest, BlockResult, Pipeline, PipelineConfig, Verdict,
    core::{
        BlockAccessIndex, BlockFacts, BlockHash, BlockNumHash, EMPTY_ROOT_HASH, StateWrites, TrieStore,
        trie::bulk::StateLoad,
    },
    pipeline::Begun,
};

#[cfg(feature = "mdbx")]
fn open(dir: &str) -> Result<foldgate::MdbxStore, Box<dyn Error>> {
    Ok(foldgate::MdbxStore::open(dir, foldgate::storage_mdbx::Options::default())?)
}

#[cfg(feature = "redb")]
fn open(dir: &str) -> Result<foldgate::RedbStore, Box<dyn Error>> {
    Ok(foldgate::RedbStore::open(dir, foldgate::storage_redb::Options::default())?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let store = Arc::new(open(&env::args().nth(1).ok_or("usage: foldgate-consumer DIR")?)?);
    let genesis = BlockNumHash::new(0, BlockHash::repeat_byte(1));
    store.load(StateLoad::new(std::iter::empty::<Result<_, std::convert::Infallible>>(), genesis))?;

    let pipeline = Pipeline::open(store, PipelineConfig::from_env()?)?;
    let facts = BlockFacts {
        block: BlockNumHash::new(1, BlockHash::repeat_byte(2)),
        parent_hash: genesis.hash,
        timestamp: 0,
        gas_limit: 30_000_000,
        tx_count: 0,
        expected_state_root: Some(EMPTY_ROOT_HASH),
        expected_bal_hash: None,
    };
    let Begun::Started(mut block) = pipeline.begin(BlockRequest::new(facts))? else { return Err("known".into()) };
    block.record(BlockAccessIndex::PRE_EXECUTION, &StateWrites::default())?;
    match block.finish(BlockResult::default()).wait()? {
        Verdict::Valid(valid) => println!("{}", valid.computed_state_root),
        Verdict::Invalid(invalid) => return Err(invalid.reason.to_string().into()),
    }
    println!("{}", pipeline.flush()?);
    Ok(())
}
