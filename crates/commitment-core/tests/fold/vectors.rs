//! The vectors of ethereum/tests whose keys are hashed.

use alloy_primitives::{B256, Bytes, keccak256};
use foldgate_testing::{fixtures_or_skip, trie_vectors::read_trie_vectors};

use crate::single::MapTrie;

#[test]
fn secure_trie_vectors() {
    let dir = fixtures_or_skip!("secure trie vectors", "trie-tests");
    let mut vectors = 0;
    for file in ["trietest_secureTrie.json", "trieanyorder_secureTrie.json", "hex_encoded_securetrie_test.json"] {
        for vector in read_trie_vectors(&dir.join(file)).unwrap() {
            assert!(vector.secure, "{file}");
            let steps: Vec<(B256, Option<Bytes>)> = vector
                .steps
                .iter()
                .map(|(key, value)| (keccak256(key), value.clone().filter(|value| !value.is_empty()).map(Bytes::from)))
                .collect();
            // Step by step, and as one batch: of several steps on one key the last one counts.
            let mut stepwise = MapTrie::<Bytes>::default();
            steps.iter().for_each(|step| drop(stepwise.apply([step.clone()])));
            let mut at_once = MapTrie::<Bytes>::default();
            at_once.apply(steps.clone());
            assert_eq!(stepwise.root, vector.root, "{}", vector.name);
            assert_eq!((at_once.root, at_once.rows), (stepwise.root, stepwise.rows.clone()), "{}", vector.name);
            stepwise.check();
            vectors += 1;
        }
    }
    println!("{vectors} vectors");
    assert!(vectors >= 7, "{vectors} vectors");
}
