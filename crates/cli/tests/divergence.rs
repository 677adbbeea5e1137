//! `foldgate divergence`: a pipeline's report, reproduced from the file alone.

use std::{path::PathBuf, sync::Arc};

use alloy_primitives::U256;
use clap::Parser;
use foldgate_cli::{Cli, run};
use foldgate_core::{BlockAccessIndex, MemoryStore, TrieStore, trie::bulk::StateLoad};
use foldgate_pipeline::{Begun, BlockError, BlockRequest, BlockResult, Failure, Pipeline, PipelineConfig, RebuiltBal};
use foldgate_record_log::{FileLog, Options};
use foldgate_testing::sim::{Sim, SimBlock, SimSize, load_items};

/// Has an executor confirm a list and record another balance, and gives the report's file and the falsified block.
fn diverge(folder: &std::path::Path) -> (PathBuf, SimBlock, alloy_primitives::Address) {
    let mut sim = Sim::new(50, SimSize::default());
    let genesis = sim.genesis();
    let store = Arc::new(MemoryStore::new());
    let items = load_items(&genesis.state).into_iter().map(Ok::<_, std::convert::Infallible>);
    store.load(StateLoad::new(items, genesis.facts.block)).unwrap();
    let (block, address) = loop {
        let mut block = sim.child(&genesis);
        let found = block.writes.last_mut().and_then(|(_, writes)| {
            let (address, account) = writes.accounts.iter_mut().find(|(_, account)| account.balance.is_some())?;
            account.balance = account.balance.map(|balance| balance + U256::from(1));
            Some(*address)
        });
        if let Some(address) = found {
            break (block, address);
        }
    };
    let config = PipelineConfig::default().with_bal_driven(true).with_shadow(true).with_divergence_directory(folder);
    let records = tempfile::tempdir().unwrap();
    let log = FileLog::open(records.path(), Options::DEFAULT).unwrap();
    let pipeline = Pipeline::open_with_log(store, log, config).unwrap();
    let request = BlockRequest::new(block.facts).with_bal(block.raw.clone());
    let Begun::Started(mut handle) = pipeline.begin(request).unwrap() else { panic!("known") };
    handle.record(BlockAccessIndex::PRE_EXECUTION, &Default::default()).unwrap();
    block.writes.iter().for_each(|(index, writes)| handle.record(*index, writes).unwrap());
    let rebuilt_bal = Some(RebuiltBal { hash: block.bal_hash, list: None });
    match handle.finish(BlockResult { rebuilt_bal, expected_state_root: None }).wait() {
        Err(BlockError::Failed(Failure::Divergence(divergence))) => {
            let path = divergence.report.as_ref().unwrap().as_ref().unwrap().clone();
            (path, block, address)
        }
        other => panic!("{other:?}"),
    }
}

fn foldgate(args: &[&str]) -> Result<(bool, String), String> {
    let mut out = Vec::new();
    let good = run(Cli::parse_from(args), &mut out, &mut Vec::new()).map_err(|error| error.to_string())?;
    Ok((good, String::from_utf8(out).unwrap()))
}

#[test]
fn a_divergence_is_reproduced_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let (path, block, address) = diverge(folder.path());
    let path = path.to_str().unwrap();
    let (reproduced, text) = foldgate(&["foldgate", "divergence", path]).unwrap();
    assert!(reproduced, "{text}");
    assert!(text.contains(&format!("address  {address}")), "{text}");
    assert_eq!(text.matches(", balance").count(), 2, "then and now: {text}");
    let (reproduced, line) = foldgate(&["foldgate", "divergence", path, "--json"]).unwrap();
    assert!(reproduced);
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(json["number"], block.facts.block.number);
    assert_eq!(json["reproduced"], true);
    assert_eq!(json["address"].as_str().unwrap().parse(), Ok(address));
}

#[test]
fn what_is_no_report_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.json");
    std::fs::write(&path, "{}").unwrap();
    let error = foldgate(&["foldgate", "divergence", path.to_str().unwrap()]).unwrap_err();
    assert!(error.contains("other.json"), "{error}");
}
