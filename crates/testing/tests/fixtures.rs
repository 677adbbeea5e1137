//! The readers against the published data: the counts that the data's own descriptions state, and each hash that it holds.
//!
//! Invariant: nothing is compared with what a reader itself wrote.

use std::{collections::BTreeMap, ops::ControlFlow};

use alloy_consensus::Header;
use alloy_primitives::keccak256;
use alloy_rlp::Decodable;
use foldgate_testing::{
    fixtures::{BlockchainTest, read_tests, visit_files},
    fixtures_or_skip, oracle,
};

/// Counts, and checks of everything that a test's file says twice.
#[derive(Default)]
struct Seen {
    tests: usize,
    blocks: usize,
    valid: usize,
    refused_but_decoded: usize,
    lists: usize,
    tests_with_invalid: usize,
    hash_mismatches: Vec<String>,
    post_states: usize,
    networks: BTreeMap<String, usize>,
}

impl Seen {
    fn check(&mut self, test: &BlockchainTest) {
        let at = format!("{} in {}", test.name, test.file);
        self.tests += 1;
        self.blocks += test.blocks.len();
        self.tests_with_invalid += usize::from(test.blocks.iter().any(|block| !block.is_valid()));
        *self.networks.entry(test.network.clone()).or_default() += 1;
        assert_eq!(test.seal_engine.as_deref(), Some("NoProof"), "{at}");

        assert_eq!(test.genesis_header.hash_slow(), test.genesis_header.hash(), "genesis header of {at}");
        let genesis = test.genesis_rlp.as_ref().expect("each of these files has the genesis' RLP");
        let mut inner = alloy_rlp::Header::decode_bytes(&mut genesis.as_ref(), true).unwrap();
        assert_eq!(Header::decode(&mut inner).unwrap(), *test.genesis_header, "genesis RLP of {at}");
        assert_eq!(test.pre.state_root(), test.genesis_header.state_root, "pre-state of {at}");

        for block in &test.blocks {
            assert!(block.is_valid() != block.expect_exception.is_some(), "{at}");
            if let Some(header) = &block.header {
                self.valid += 1;
                let decoded = block.decode().unwrap_or_else(|error| panic!("block of {at}: {error}"));
                assert_eq!(decoded.header, **header, "block of {at}");
                assert_eq!(header.hash_slow(), header.hash(), "block of {at}");
            }
            if let (Some(declared), Ok(decoded)) = (block.declared, block.decode()) {
                self.refused_but_decoded += 1;
                assert_eq!(declared.state_root, Some(decoded.header.state_root), "refused block of {at}");
                assert_eq!(declared.block_access_list_hash, decoded.header.block_access_list_hash, "{at}");
            }
            if let Some(list) = &block.block_access_list {
                self.lists += 1;
                if block.block_access_list_hash() != Some(list.hash()) {
                    self.hash_mismatches.push(test.name.clone());
                }
            }
        }

        let last = test.last_header().unwrap_or_else(|| panic!("no block is the last of {at}"));
        match (&test.post_state, test.post_state_hash) {
            (Some(state), _) => assert_eq!(state.state_root(), last.state_root, "post-state of {at}"),
            (None, hash) => assert_eq!(hash, Some(last.state_root), "post-state hash of {at}"),
        }
        self.post_states += usize::from(test.post_state.is_some());
    }
}

fn check_all(path: &std::path::Path) -> Seen {
    let mut seen = Seen::default();
    visit_files(path, &mut |file| {
        let file = file.unwrap_or_else(|error| panic!("{error}"));
        file.tests.iter().for_each(|test| seen.check(test));
        ControlFlow::Continue(())
    });
    seen
}

/// For blocks with lists: the lists alone, laid onto the pre-state, reach each header's state root.
fn check_lists_reach_roots(path: &std::path::Path) -> usize {
    let mut roots = 0;
    for test in read_tests(path).unwrap() {
        // None of these tests has side chains, and a refused block leaves the state as it was.
        let mut state = test.pre.clone();
        for block in test.blocks.iter().filter(|block| block.is_valid()) {
            state.apply_access_list(&block.block_access_list.as_ref().unwrap().accounts);
            assert_eq!(Some(state.state_root()), block.state_root(), "{} in {}", test.name, test.file);
            roots += 1;
        }
        assert_eq!(Some(state), test.post_state, "{} in {}", test.name, test.file);
    }
    roots
}

#[test]
fn amsterdam_lists_under_osaka_gas() {
    let path = fixtures_or_skip!("EIP-7928 tests", "bal-amsterdam/eip7928-osaka-gas.tar.zst");
    let seen = check_all(&path);
    assert_eq!((seen.tests, seen.blocks, seen.tests_with_invalid), (295, 301, 43));
    assert_eq!((seen.valid, seen.lists, seen.post_states), (258, 301, 295));
    assert_eq!(seen.refused_but_decoded, 43);
    assert!(seen.hash_mismatches.is_empty(), "{:?}", seen.hash_mismatches);
    assert_eq!(check_lists_reach_roots(&path), 258);
}

#[test]
fn amsterdam_lists_of_other_eips() {
    let path = fixtures_or_skip!("other EIPs' tests with lists", "bal-amsterdam/other-eips-osaka-gas.tar.zst");
    let seen = check_all(&path);
    assert_eq!((seen.tests, seen.blocks, seen.tests_with_invalid), (768, 1083, 65));
    assert_eq!((seen.valid, seen.lists, seen.post_states), (1018, 1083, 768));
    assert!(seen.hash_mismatches.is_empty(), "{:?}", seen.hash_mismatches);
    assert_eq!(check_lists_reach_roots(&path), 1018);
}

#[test]
fn amsterdam_lists_of_bal_devnet_4() {
    let path = fixtures_or_skip!("EIP-7928 devnet tests", "bal-amsterdam/eip7928-bal-devnet-4.tar.zst");
    let seen = check_all(&path);
    assert_eq!((seen.tests, seen.blocks, seen.tests_with_invalid), (295, 301, 43));
    assert_eq!((seen.valid, seen.lists), (258, 301));
    assert!(seen.hash_mismatches.is_empty(), "{:?}", seen.hash_mismatches);
    assert_eq!(check_lists_reach_roots(&path), 258);
}

#[test]
fn glamsterdam_folder() {
    let path = fixtures_or_skip!("glamsterdam tests", "bal-glamsterdam");
    let seen = check_all(&path);
    assert_eq!((seen.tests, seen.blocks, seen.valid), (23, 23, 13));
    assert_eq!(seen.lists, 23);
    assert_eq!(seen.hash_mismatches.len(), 1, "{:?}", seen.hash_mismatches);
    assert!(seen.hash_mismatches[0].contains("bal_invalid_hash_mismatch"));
    assert_eq!(check_lists_reach_roots(&path), 13);
}

#[test]
fn amsterdam_examples_are_in_the_archive_too() {
    let path = fixtures_or_skip!("unpacked examples", "bal-amsterdam/examples");
    let seen = check_all(&path);
    assert_eq!((seen.tests, seen.blocks), (3, 3));
}

#[test]
fn ethereum_tests_cancun() {
    let path = fixtures_or_skip!("ethereum/tests", "ethereum-tests/cancun.tar.zst");
    let seen = check_all(&path);
    assert_eq!(seen.tests, 2049);
    assert_eq!((seen.lists, seen.post_states), (0, 2041));
    assert_eq!(seen.networks["Cancun"] + seen.networks["ShanghaiToCancunAtTime15k"], 2049);
}

#[test]
fn prague_fill() {
    let path = fixtures_or_skip!("Prague tests", "prague-fill/prague.tar.zst");
    let seen = check_all(&path);
    assert_eq!((seen.tests, seen.blocks, seen.tests_with_invalid), (684, 977, 64));
    assert_eq!(seen.post_states, 684);
}

#[test]
fn faulty_lists_stay_faulty() {
    let path = fixtures_or_skip!("faulty lists", "bal-amsterdam/examples/bal_invalid_account_order.json");
    let tests = read_tests(&path).unwrap();
    let block = &tests[0].blocks[0];
    assert!(!block.is_valid());
    assert!(block.expect_exception.as_deref().unwrap().contains("INCORRECT_BLOCK_FORMAT"));
    let list = block.block_access_list.as_ref().unwrap();
    assert!(!list.accounts.is_sorted_by_key(|account| account.address), "the order is the fault");
    assert_eq!(keccak256(&list.rlp), block.block_access_list_hash().unwrap());
}

#[test]
fn recursion_and_hash_builder_agree_on_states() {
    let path = fixtures_or_skip!("states for the two oracles", "bal-glamsterdam");
    for test in read_tests(&path).unwrap() {
        for account in test.pre.accounts.values() {
            let leaves = account.hashed_storage();
            let leaves = leaves.iter().map(|(slot, value)| (slot.to_vec(), alloy_rlp::encode(value))).collect();
            assert_eq!(oracle::trie_root(&leaves), account.storage_root());
        }
    }
}
