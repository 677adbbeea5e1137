//! Chains, witnesses, trie vectors and list vectors against the published data.
//!
//! Invariant: nothing is compared with what a reader itself wrote.

use std::{collections::BTreeSet, path::Path};

use alloy_primitives::{B256, keccak256};
use foldgate_testing::{
    bal_vectors::{read_bal_vectors, read_invalid_bal_vectors, read_mainnet_lists, read_mainnet_stats},
    chains::{BalDir, ChainReader, genesis_header, genesis_state, read_genesis, read_head_state},
    fixtures_or_skip, oracle,
    trie_vectors::{read_neighbour_vectors, read_trie_vectors},
    witness::read_witness,
};

/// Checks that the chain hangs together from its genesis on, and returns the last state root.
fn check_chain(dir: &Path, blocks: u64, transactions: usize, withdrawals: usize, gas: u64) -> B256 {
    let genesis = read_genesis(&dir.join("genesis.json")).unwrap();
    let header = genesis_header(&genesis, genesis_state(&genesis).state_root());
    let (mut parent, mut last_root, mut seen) = (header.hash_slow(), header.state_root, (0, 0, 0, 0));
    let mut end = 0;
    for block in ChainReader::open(&dir.join("chain.rlp")).unwrap() {
        let block = block.unwrap();
        assert_eq!(block.offset, end);
        end += block.rlp.len() as u64;
        let header = &block.block.header;
        assert_eq!(header.parent_hash, parent, "block {}", header.number);
        assert_eq!(header.number, block.index + 1);
        assert_eq!(alloy_rlp::encode(&block.block), block.rlp, "block {}", header.number);
        (parent, last_root) = (header.hash_slow(), header.state_root);
        let body = &block.block.body;
        seen.0 += 1;
        seen.1 += body.transactions.len();
        seen.2 += body.withdrawals.iter().flatten().count();
        seen.3 += header.gas_used;
    }
    assert_eq!(seen, (blocks, transactions, withdrawals, gas));
    assert_eq!(end, std::fs::metadata(dir.join("chain.rlp")).unwrap().len());
    last_root
}

#[test]
fn chain_of_600_blocks_and_its_final_state() {
    let dir = fixtures_or_skip!("chain of 600 blocks", "chains/ethtest-600");
    let last_root = check_chain(&dir, 600, 603, 54, 121_816_101);
    let head = read_head_state(&dir.join("headstate.json")).unwrap();
    assert_eq!(head.state_root, last_root);
    assert_eq!(head.state.state_root(), last_root);
    assert_eq!(head.state.accounts.len(), 194);
    let slots = head.state.accounts.values().map(|account| account.storage.len());
    assert_eq!((slots.clone().filter(|slots| *slots > 0).count(), slots.sum::<usize>()), (60, 2164));
    for (address, root) in &head.storage_roots {
        assert_eq!(head.state.accounts[address].storage_root(), *root, "{address}");
    }
}

#[test]
fn chain_of_54_blocks_over_all_forks() {
    let dir = fixtures_or_skip!("chain of 54 blocks", "chains/execution-apis-54");
    check_chain(&dir, 54, 249, 6, 103_418_778);
}

#[test]
fn lists_are_found_by_hash_and_by_number() {
    let dir = tempfile::tempdir().unwrap();
    let hash = keccak256("a block");
    std::fs::write(dir.path().join("7.rlp"), [0xc0]).unwrap();
    std::fs::write(dir.path().join(format!("{hash}.rlp")), [0xc1, 0xc0]).unwrap();
    let lists = BalDir::open(dir.path()).unwrap();
    assert_eq!(lists.get(7, B256::ZERO).unwrap().unwrap()[..], [0xc0]);
    assert_eq!(lists.get(7, hash).unwrap().unwrap()[..], [0xc1, 0xc0], "the hash goes before the number");
    assert_eq!(lists.get(8, B256::ZERO).unwrap(), None);
    BalDir::open(&dir.path().join("nowhere")).unwrap_err();
}

#[test]
fn six_witnesses() {
    let dir = fixtures_or_skip!("witnesses", "mainnet-witness");
    // File, transactions, gas used, trie nodes, codes, headers, whether there is a list, accounts of the source's diff.
    let expected = [
        ("hoodi-1265656", 11, 4_402_947, 1_705, 22, 6, true, 0),
        ("mainnet-22188088", 28, 1_290_555, 854, 24, 19, false, 53),
        ("mainnet-22615247", 26, 1_331_413, 868, 30, 1, true, 49),
        ("mainnet-23879620", 142, 50_224_062, 3_747, 102, 7, true, 0),
        ("mainnet-24628607", 66, 7_372_614, 3_854, 120, 1, true, 0),
        ("mainnet-24628608", 146, 12_907_474, 5_347, 117, 1, true, 0),
    ];
    for (name, transactions, gas, nodes, codes, headers, has_list, diffs) in expected {
        let block = read_witness(&dir.join(format!("{name}.json.gz"))).unwrap();
        let decoded = block.decode().unwrap();
        assert_eq!(name.rsplit('-').next().unwrap(), block.number.to_string());
        assert_eq!(decoded.header.number, block.number);
        assert_eq!(decoded.header.timestamp, block.timestamp);
        assert_eq!(
            (decoded.body.transactions.len(), decoded.header.gas_used, block.gas_used),
            (transactions, gas, gas)
        );
        let witness = &block.witness;
        assert_eq!(
            (witness.state.len(), witness.codes.len(), witness.headers.len()),
            (nodes, codes, headers),
            "{name}"
        );
        assert!(witness.state.iter().any(|node| keccak256(node) == block.parent_state_root), "{name}");
        let ancestors = block.decode_headers().unwrap();
        assert!(ancestors.windows(2).all(|pair| pair[1].1.parent_hash == pair[0].0), "{name}");
        assert_eq!((block.block_access_list.is_some(), block.block_access_list_hash.is_some()), (has_list, has_list));
        assert_eq!(block.state_diffs.as_ref().map_or(0, Vec::len), diffs, "{name}");
    }
}

#[test]
fn trie_vectors_reach_their_roots() {
    let dir = fixtures_or_skip!("trie vectors", "trie-tests");
    let files = [
        ("hex_encoded_securetrie_test.json", true, 3),
        ("trieanyorder.json", false, 7),
        ("trieanyorder_secureTrie.json", true, 7),
        ("trietest.json", false, 5),
        ("trietest_secureTrie.json", true, 3),
    ];
    for (file, secure, count) in files {
        let vectors = read_trie_vectors(&dir.join(file)).unwrap();
        assert_eq!(vectors.len(), count, "{file}");
        for vector in vectors {
            assert_eq!(vector.secure, secure, "{file}");
            assert_eq!(oracle::trie_root(&vector.leaves()), vector.root, "{} in {file}", vector.name);
        }
    }
}

#[test]
fn neighbour_vectors_hold_for_ordered_keys() {
    let path = fixtures_or_skip!("iteration vectors", "trie-tests/trietestnextprev.json");
    let vectors = read_neighbour_vectors(&path).unwrap();
    assert_eq!(vectors.iter().map(|vector| vector.cases.len()).collect::<Vec<_>>(), [12]);
    for vector in &vectors {
        let keys: BTreeSet<_> = vector.keys.iter().cloned().collect();
        for case in &vector.cases {
            assert_eq!(keys.range(..case.key.clone()).next_back(), case.previous.as_ref(), "{case:?}");
            assert_eq!(keys.iter().find(|key| **key > case.key), case.next.as_ref(), "{case:?}");
        }
    }
}

#[test]
fn list_vectors_have_their_encoding_and_hash() {
    let dir = fixtures_or_skip!("list vectors", "bal-rlp-vectors");
    let vectors = read_bal_vectors(&dir).unwrap();
    assert_eq!(vectors.iter().map(|vector| vector.list.accounts.len()).collect::<Vec<_>>(), [8, 4, 16]);
    for vector in vectors {
        assert_eq!((&vector.list.rlp, vector.list.hash()), (&vector.rlp, vector.hash), "{}", vector.name);
    }
    let invalid = read_invalid_bal_vectors(&dir).unwrap();
    assert_eq!(invalid.len(), 3);
    for vector in invalid {
        assert_eq!(vector.header.hash_slow(), vector.header.hash(), "{}", vector.name);
        let fits = vector.header.block_access_list_hash == Some(vector.list.hash());
        assert_eq!(fits, !vector.name.contains("hash_mismatch"), "{}", vector.name);
    }
}

#[test]
fn mainnet_lists_agree_with_their_table() {
    let dir = fixtures_or_skip!("mainnet list sizes", "mainnet-bal-shapes");
    let table = read_mainnet_stats(&dir.join("stats.csv")).unwrap();
    let lists = read_mainnet_lists(&dir.join("mainnet-bal-rlp.tar.zst")).unwrap();
    assert_eq!((table.len(), lists.len()), (81, 41));
    for list in lists {
        let row = table.iter().find(|row| row.block == list.number).unwrap();
        assert_eq!(list.stored_bytes as u64, row.bytes);
        assert_eq!(alloy_rlp::encode(&list.accounts).len() as u64, row.bytes_canonical, "block {}", list.number);
        assert_eq!(list.accounts.len() as u64, row.accounts);
        let slots = list.accounts.iter().flat_map(|account| &account.storage_changes);
        assert_eq!(slots.clone().count() as u64, row.slots_changed, "block {}", list.number);
        assert_eq!(slots.map(|slot| slot.changes.len() as u64).sum::<u64>(), row.slot_change_entries);
        assert_eq!(
            list.accounts.iter().map(|account| account.storage_reads.len() as u64).sum::<u64>(),
            row.slots_read_only
        );
        assert_eq!(
            list.accounts.iter().map(|account| account.balance_changes.len() as u64).sum::<u64>(),
            row.balance_change_entries
        );
    }
}
