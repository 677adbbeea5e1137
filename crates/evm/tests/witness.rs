//! Real blocks of mainnet and Hoodi, executed on the trie nodes of their witnesses: gas, receipts and requests of the header,
//! and the access list that the reference implementation derives for the block.

use std::{collections::BTreeMap, path::Path};

use alloy_primitives::{B256, Bytes, Sealed, U256, b256, keccak256, map::B256Map};
use alloy_rlp::Decodable;
use alloy_trie::nodes::TrieNode;
use foldgate_core::{Account, AccountInfo, EMPTY_ROOT_HASH, Nibbles, StateReader};
use foldgate_evm::{Block, ChainSpec, ExecutionError, process_block, recover_senders};
use foldgate_testing::{fixtures_or_skip, witness};

/// Block 22188088 of mainnet, whose witness suffices to check its outcome, but not to execute it.
const PARTIAL_WITNESS: B256 = b256!("0xf727c8b84f1a27983e82e9d0b3e3dcfe870cd1448f2c3e6520c4c6c0064b10d6");

/// A state backed by the nodes of a witness alone.
#[derive(Debug, Clone)]
struct WitnessState<'a> {
    state_root: B256,
    nodes: &'a B256Map<Bytes>,
    codes: &'a B256Map<Bytes>,
    block_hashes: &'a BTreeMap<u64, B256>,
}

#[derive(Debug, thiserror::Error)]
#[error("the witness lacks node {0}, or it is malformed")]
struct MissingNode(B256);

impl WitnessState<'_> {
    /// The value of a leaf.
    fn get(&self, root: B256, key: &B256) -> Result<Option<Bytes>, MissingNode> {
        if root == EMPTY_ROOT_HASH {
            return Ok(None);
        }
        let mut path = Nibbles::unpack(key);
        let mut hash = root;
        let mut rlp: Bytes = self.nodes.get(&root).ok_or(MissingNode(root))?.clone();
        loop {
            let child = match TrieNode::decode(&mut rlp.as_ref()).map_err(|_| MissingNode(hash))? {
                TrieNode::EmptyRoot => return Ok(None),
                TrieNode::Leaf(leaf) => return Ok((leaf.key == path).then(|| leaf.value.into())),
                TrieNode::Extension(extension) if path.starts_with(&extension.key) => {
                    path = path.slice(extension.key.len()..);
                    extension.child
                }
                TrieNode::Extension(_) => return Ok(None),
                TrieNode::Branch(branch) => {
                    let nibble = path.get(0).ok_or(MissingNode(hash))?;
                    path = path.slice(1..);
                    if !branch.state_mask.is_bit_set(nibble) {
                        return Ok(None);
                    }
                    let before = branch.state_mask.get() & ((1 << nibble) - 1);
                    branch.stack.get(before.count_ones() as usize).ok_or(MissingNode(hash))?.clone()
                }
            };
            rlp = match child.as_hash() {
                Some(next) => {
                    hash = next;
                    self.nodes.get(&next).ok_or(MissingNode(next))?.clone()
                }
                None => Bytes::copy_from_slice(&child),
            };
        }
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, MissingNode> {
        let leaf = self.get(self.state_root, hashed_address)?;
        leaf.map(|leaf| Account::from_leaf_value(&leaf).ok_or(MissingNode(*hashed_address))).transpose()
    }
}

impl StateReader for WitnessState<'_> {
    type Error = MissingNode;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, MissingNode> {
        Ok(self.account(hashed_address)?.map(|account| account.info()))
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, MissingNode> {
        let Some(account) = self.account(hashed_address)? else { return Ok(U256::ZERO) };
        let Some(leaf) = self.get(account.storage_root, hashed_slot)? else { return Ok(U256::ZERO) };
        U256::decode(&mut leaf.as_ref()).map_err(|_| MissingNode(*hashed_slot))
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, MissingNode> {
        Ok(self.codes.get(code_hash).cloned())
    }

    fn block_hash(&self, number: u64) -> Result<Option<B256>, MissingNode> {
        Ok(self.block_hashes.get(&number).copied())
    }
}

/// Executes the block of a witness; panics unless everything fits.
fn execute(path: &Path) {
    let given = witness::read_witness(path).unwrap();
    let spec = match given.chain_id {
        1 => ChainSpec::mainnet(),
        560_048 => ChainSpec::hoodi(),
        other => panic!("unknown chain {other}"),
    };
    let block = Block::decode(&given.block).unwrap();
    assert_eq!(block.hash, given.block_hash);
    let headers = given.decode_headers().unwrap();
    let (parent_hash, parent) = headers.last().unwrap().clone();
    let parent = Sealed::new_unchecked(parent, parent_hash);
    let hashed = |all: &[Bytes]| all.iter().map(|bytes| (keccak256(bytes), bytes.clone())).collect::<B256Map<_>>();
    let (nodes, codes) = (hashed(&given.witness.state), hashed(&given.witness.codes));
    let block_hashes = headers.iter().map(|(hash, header)| (header.number, *hash)).collect();
    let state =
        WitnessState { state_root: given.parent_state_root, nodes: &nodes, codes: &codes, block_hashes: &block_hashes };
    let senders = recover_senders(&spec, &block).unwrap();
    let start = std::time::Instant::now();
    let executed = match process_block(&spec, &parent, &block, &senders, state, &mut |_, _| {}, &|| false) {
        // Its source recorded less than an execution reads: that is never the block's fault.
        Err(ExecutionError::Storage(MissingNode(_))) if given.block_hash == PARTIAL_WITNESS => return,
        result => result.unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    };
    assert_ne!(given.block_hash, PARTIAL_WITNESS, "the witness of {} suffices", path.display());
    let mgas = executed.gas_used as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("{}: {} gas, {mgas:.0} Mgas/s on a witness", path.display(), executed.gas_used);
    if let Some(expected) = given.block_access_list_hash {
        assert_eq!(executed.rebuilt_bal_hash, expected, "{}", path.display());
        assert_eq!(Some(&executed.rebuilt_bal_rlp), given.block_access_list.as_ref());
    }
}

macro_rules! witness_tests {
    ($($name:ident: $file:literal),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                execute(&fixtures_or_skip!("a real block", concat!("mainnet-witness/", $file, ".json.gz")));
            }
        )*
    };
}

witness_tests! {
    hoodi_1265656: "hoodi-1265656",
    mainnet_22188088: "mainnet-22188088",
    mainnet_22615247: "mainnet-22615247",
    mainnet_23879620: "mainnet-23879620",
    mainnet_24628607: "mainnet-24628607",
    mainnet_24628608: "mainnet-24628608",
}
