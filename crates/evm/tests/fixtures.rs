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
    /// Tests of [`EIP_7610`], which fail.
    known_gaps: usize,
    valid: usize,
    compared: usize,
    gas: u64,
    /// For each invalid block: the test's reason, and ours.
    refused: BTreeMap<(String, String), usize>,
    failures: Vec<String>,
}

fn run_suite(path: &Path, rules: AmsterdamRules) -> Outcome {
    let mut outcome = Outcome::default();
    visit_files(path, &mut |file| {
        let file = file.unwrap();
        for test in &file.tests {
            outcome.tests += 1;
            let known_gap = EIP_7610.iter().any(|name| test.file.ends_with(&format!("/{name}.json")));
            let failure = match (run_test(test, rules, &mut outcome), known_gap) {
                (Ok(()), false) => continue,
                (Ok(()), true) => "passes, though the EVM is said to fail it".to_owned(),
                (Err(_), true) => {
                    outcome.known_gaps += 1;
                    continue;
                }
                (Err(failure), false) => failure,
            };
            outcome.failures.push(format!("{} {}: {failure}", test.file, test.name));
        }
        ControlFlow::Continue(())
    });
    println!(
        "{}: {} tests, {} known gaps, {} valid blocks, {} lists compared, {} gas, {} failures",
        path.display(),
        outcome.tests,
        outcome.known_gaps,
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

fn spec_of(test: &BlockchainTest, rules: AmsterdamRules) -> ChainSpec {
    let spec = ChainSpec::from_network(&test.network, rules).unwrap();
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

fn run_test(test: &BlockchainTest, rules: AmsterdamRules, outcome: &mut Outcome) -> Result<(), String> {
    let spec = spec_of(test, rules);
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
        let expected = block.expect_exception.clone().unwrap_or_default();
        if !expected.split('|').any(|expected| reasons(expected).contains(&&*kind)) {
            return Err(format!("block {position} is refused by {reason}, expected {expected}"));
        }
        *outcome.refused.entry((expected, kind)).or_default() += 1;
    }
    let (_, last) = known.get(&test.last_block_hash).ok_or("the last block is not known")?;
    match &test.post_state {
        Some(expected) if *last.accounts() != expected.hashed() => Err("the final state differs".into()),
        _ => Ok(()),
    }
}

/// Our reasons that amount to a test's reason.
fn reasons(expected: &str) -> &'static [&'static str] {
    let Some(expected) = expected.strip_prefix("BlockException.") else {
        // In ethereum/tests, blocks with an invalid transaction have headers computed without it.
        return match expected {
            "TransactionException.TYPE_3_TX_CONTRACT_CREATION" | "TransactionException.TYPE_4_TX_CONTRACT_CREATION" => {
                &["Decode"]
            }
            "TransactionException.TYPE_3_TX_MAX_BLOB_GAS_ALLOWANCE_EXCEEDED" => &["BlobGasAboveLimit"],
            _ => &["Transaction", "TransactionsRoot"],
        };
    };
    match expected {
        "BLOCK_ACCESS_LIST_GAS_LIMIT_EXCEEDED" => &["BalItems"],
        "INCORRECT_BLOCK_FORMAT" | "INVALID_BAL_HASH" | "INVALID_BLOCK_ACCESS_LIST" => &["BalHash"],
        "EXTRA_DATA_TOO_BIG" => &["ExtraData"],
        "IMPORT_IMPOSSIBLE_UNCLES_OVER_PARIS" => &["OmmerCount", "OmmersHash"],
        "INCORRECT_EXCESS_BLOB_GAS" => &["ExcessBlobGas"],
        "INVALID_BASEFEE_PER_GAS" => &["BaseFee"],
        "INVALID_BLOCK_NUMBER" => &["Number"],
        "INVALID_BLOCK_TIMESTAMP_OLDER_THAN_PARENT" => &["Timestamp"],
        "INVALID_DEPOSIT_EVENT_LAYOUT" => &["DepositEventLayout"],
        "INVALID_GASLIMIT" => &["GasLimit"],
        "INVALID_RECEIPTS_ROOT" => &["ReceiptsRoot"],
        "INVALID_TRANSACTIONS_ROOT" => &["TransactionsRoot"],
        "INVALID_WITHDRAWALS_ROOT" => &["WithdrawalsRoot"],
        "RLP_STRUCTURES_ENCODING" => &["Decode"],
        "SYSTEM_CONTRACT_CALL_FAILED" => &["SystemCallFailed"],
        "SYSTEM_CONTRACT_EMPTY" => &["SystemContractEmpty"],
        "UNKNOWN_PARENT" | "UNKNOWN_PARENT_ZERO" => &["UnknownParent"],
        _ => &[],
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
    let outcome = run_suite(&path, AmsterdamRules::Osaka);
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    assert_eq!((outcome.tests, outcome.known_gaps), (2049, 8));
}

#[test]
fn prague_fill() {
    let path = fixtures_or_skip!("EEST tests for Prague", "prague-fill/prague.tar.zst");
    let outcome = run_suite(&path, AmsterdamRules::Osaka);
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    assert_eq!((outcome.tests, outcome.known_gaps), (684, 0));
}

#[test]
fn access_lists_under_osaka() {
    for (name, tests) in [("eip7928", 295), ("other-eips", 768)] {
        let path = fixtures_or_skip!("EIP-7928 tests", &format!("bal-amsterdam/{name}-osaka-gas.tar.zst"));
        let outcome = run_suite(&path, AmsterdamRules::Osaka);
        assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
        assert_eq!((outcome.tests, outcome.known_gaps), (tests, 0));
    }
}

/// The rules of glamsterdam-devnet-8 are those that revm knows as Amsterdam.
#[test]
fn access_lists_under_amsterdam() {
    let path = fixtures_or_skip!("EIP-7928 tests of glamsterdam-devnet-8", "bal-glamsterdam");
    let outcome = run_suite(&path, AmsterdamRules::Full);
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    assert_eq!((outcome.tests, outcome.valid, outcome.known_gaps), (23, 13, 0));
}
