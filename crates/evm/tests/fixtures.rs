//! Published blockchain tests: valid blocks reach their roots, invalid ones are refused for the reason that the test names.

mod common;

use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
    path::Path,
};

use alloy_consensus::Header;
use alloy_eips::eip7840::BlobParams;
use alloy_primitives::{B256, Sealed};
use common::{MapState, Refused, import};
use foldgate_evm::{AmsterdamRules, Block, ChainSpec};
use foldgate_testing::{
    fixtures::{BlockchainTest, visit_files},
    fixtures_or_skip,
};

/// Tests that create a contract at an address that holds storage, but neither code nor nonce: EIP-7610 forbids it, and the EVM
/// cannot see it.
const EIP_7610: [&str; 5] = [
    "create2collisionStorageParis",
    "InitCollisionParis",
    "RevertInCreateInInit_Paris",
    "RevertInCreateInInitCreate2Paris",
    "dynamicAccountOverwriteEmpty_Paris",
];

/// What a suite came to.
#[derive(Debug, Default)]
struct Outcome {
    tests: usize,
    skipped: usize,
    valid: usize,
    compared: usize,
    gas: u64,
    /// For each invalid block: the test's reason, and ours.
    refused: BTreeMap<(String, String), usize>,
    failures: Vec<String>,
}

fn run_suite(path: &Path) -> Outcome {
    let mut outcome = Outcome::default();
    visit_files(path, &mut |file| {
        let file = file.unwrap();
        for test in &file.tests {
            outcome.tests += 1;
            if EIP_7610.iter().any(|name| test.file.ends_with(&format!("/{name}.json"))) {
                outcome.skipped += 1;
                continue;
            }
            if let Err(failure) = run_test(test, &mut outcome) {
                outcome.failures.push(format!("{} {}: {failure}", test.file, test.name));
            }
        }
        ControlFlow::Continue(())
    });
    println!(
        "{}: {} tests, {} skipped, {} valid blocks, {} lists compared, {} gas, {} failures",
        path.display(),
        outcome.tests,
        outcome.skipped,
        outcome.valid,
        outcome.compared,
        outcome.gas,
        outcome.failures.len()
    );
    for ((expected, got), count) in &outcome.refused {
        println!("  refused {count}: {expected} by {got}");
    }
    outcome
}

fn spec_of(test: &BlockchainTest) -> ChainSpec {
    let spec = ChainSpec::from_network(&test.network, AmsterdamRules::Osaka).unwrap();
    let Some(config) = &test.config else { return spec };
    assert_eq!(config.chain_id, spec.chain_id());
    let schedule = config.blob_schedule.iter().map(|(fork, entry)| {
        let params = BlobParams {
            target_blob_count: entry.target,
            max_blob_count: entry.max,
            update_fraction: entry.base_fee_update_fraction.into(),
            ..BlobParams::cancun()
        };
        (fork.clone(), params)
    });
    spec.with_blob_schedule(&schedule.collect()).unwrap()
}

fn run_test(test: &BlockchainTest, outcome: &mut Outcome) -> Result<(), String> {
    let spec = spec_of(test);
    let genesis = MapState::genesis(&test.pre, &test.genesis_header);
    if genesis.state_root() != test.genesis_header.state_root {
        return Err("the genesis has another root".into());
    }
    let mut known: HashMap<B256, (Sealed<Header>, MapState)> = HashMap::new();
    known.insert(test.genesis_header.hash(), (test.genesis_header.clone(), genesis));
    for (position, block) in test.blocks.iter().enumerate() {
        let reason = match import_bytes(&spec, &known, &block.rlp) {
            Ok(imported) if block.is_valid() => {
                outcome.valid += 1;
                outcome.compared += usize::from(imported.compared);
                outcome.gas += imported.executed.gas_used;
                known.insert(imported.header.hash(), (imported.header, imported.state));
                continue;
            }
            Ok(_) => return Err(format!("block {position} is accepted, expected {:?}", block.expect_exception)),
            Err(reason) if block.is_valid() => return Err(format!("block {position} is refused: {reason}")),
            Err(reason) => reason,
        };
        let kind = reason.split(['{', '(', ' ']).next().unwrap_or_default().to_owned();
        *outcome.refused.entry((block.expect_exception.clone().unwrap_or_default(), kind)).or_default() += 1;
    }
    let (_, last) = known.get(&test.last_block_hash).ok_or("the last block is not known")?;
    match &test.post_state {
        Some(expected) if *last.accounts() != expected.hashed() => Err("the final state differs".into()),
        _ => Ok(()),
    }
}

/// Imports a block; the reason of a refusal begins with its kind.
fn import_bytes(
    spec: &ChainSpec,
    known: &HashMap<B256, (Sealed<Header>, MapState)>,
    rlp: &[u8],
) -> Result<common::Imported, String> {
    let block = Block::decode(rlp).map_err(|error| format!("Decode({error})"))?;
    let Some((parent, state)) = known.get(&block.header.parent_hash) else {
        return Err("UnknownParent".into());
    };
    import(spec, (parent, state), &block).map_err(|refused| match refused {
        Refused::Invalid(reason) => format!("{reason:?}"),
        Refused::StateRoot => "StateRoot".into(),
    })
}

#[test]
fn ethereum_tests_cancun() {
    let path = fixtures_or_skip!("ethereum/tests for Cancun", "ethereum-tests/cancun.tar.zst");
    let outcome = run_suite(&path);
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    assert_eq!((outcome.tests, outcome.skipped), (2049, 0));
}

#[test]
fn prague_fill() {
    let path = fixtures_or_skip!("EEST tests for Prague", "prague-fill/prague.tar.zst");
    let outcome = run_suite(&path);
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    assert_eq!((outcome.tests, outcome.skipped), (684, 0));
}

#[test]
fn access_lists_under_osaka() {
    for (name, tests) in [("eip7928", 295), ("other-eips", 768)] {
        let path = fixtures_or_skip!("EIP-7928 tests", &format!("bal-amsterdam/{name}-osaka-gas.tar.zst"));
        let outcome = run_suite(&path);
        assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
        assert_eq!((outcome.tests, outcome.skipped), (tests, 0));
    }
}
