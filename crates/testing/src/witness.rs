//! Real blocks with the pre-state trie nodes, codes and headers that they need (`mainnet-witness/*.json.gz`).
//!
//! Invariants:
//! 1. Nodes, codes and headers are kept as bytes, in the file's order: whoever uses them hashes them.
//! 2. The file's own statements agree: block hash and state root are those of the block's header, the parent's of the last header.

use std::path::Path;

use alloy_consensus::Header;
use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_rlp::Decodable;
use serde::Deserialize;

use crate::{EthBlock, ReadError, archive, fixtures::decode_block, json};

/// The largest witness, uncompressed.
pub const MAX_WITNESS_BYTES: u64 = 1 << 29;

/// A block and all that is needed to execute it without a database.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WitnessBlock {
    /// The chain's id (EIP-155).
    #[serde(deserialize_with = "json::u64")]
    pub chain_id: u64,
    /// The block's number.
    #[serde(deserialize_with = "json::u64")]
    pub number: u64,
    /// The block's time in seconds since 1970.
    #[serde(deserialize_with = "json::u64")]
    pub timestamp: u64,
    /// The name of the fork rules, such as `Prague` or `Osaka+BPO2`.
    pub fork: String,
    /// Gas used by the block.
    #[serde(deserialize_with = "json::u64")]
    pub gas_used: u64,
    /// The block's RLP `[header, transactions, uncles, withdrawals]`.
    pub block: Bytes,
    /// keccak256 of the header's RLP.
    pub block_hash: B256,
    /// The header's state root, after the block.
    pub state_root: B256,
    /// The parent header's state root.
    pub parent_state_root: B256,
    /// The pre-state.
    pub witness: Witness,
    /// The source's own account of the outcome, where it gave one.
    pub state_diffs: Option<Vec<WitnessDiff>>,
    /// The RLP of the list of the reference implementation (EIP-7928). The header does not commit to it.
    pub block_access_list: Option<Bytes>,
    /// keccak256 of that list.
    pub block_access_list_hash: Option<B256>,
}

/// Trie nodes, codes and headers from before the block.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Witness {
    /// RLP of trie nodes of the account trie and of storage tries, in no order.
    pub state: Vec<Bytes>,
    /// Contract codes.
    pub codes: Vec<Bytes>,
    /// RLP of ancestor headers, oldest first, the parent last.
    pub headers: Vec<Bytes>,
    /// Preimages of trie keys: 20-byte addresses and 32-byte slots. In some files only.
    #[serde(default)]
    pub keys: Vec<Bytes>,
}

/// How one account changed, by the source of the witness.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WitnessDiff {
    /// The account.
    pub address: Address,
    /// Before the block; `None` if it did not exist.
    pub pre_account: Option<WitnessAccount>,
    /// After the block; `None` if it does not exist.
    pub post_account: Option<WitnessAccount>,
    /// The slots that changed.
    #[serde(default)]
    pub storage: Vec<WitnessSlot>,
}

/// An account in a [`WitnessDiff`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WitnessAccount {
    /// The nonce.
    #[serde(deserialize_with = "json::u64")]
    pub nonce: u64,
    /// The balance in wei.
    #[serde(deserialize_with = "json::u256")]
    pub balance: U256,
    /// keccak256 of the code.
    pub code_hash: B256,
    /// The storage root.
    #[serde(rename = "storageHash")]
    pub storage_root: B256,
}

/// A changed slot in a [`WitnessDiff`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WitnessSlot {
    /// The slot, not hashed.
    #[serde(rename = "storageKey", deserialize_with = "json::u256")]
    pub slot: U256,
    /// Before the block; zero is absent.
    #[serde(deserialize_with = "json::u256")]
    pub pre_value: U256,
    /// After the block; zero is absent.
    #[serde(deserialize_with = "json::u256")]
    pub post_value: U256,
}

impl WitnessBlock {
    /// Decodes [`Self::block`].
    ///
    /// # Errors
    /// As [`decode_block`].
    pub fn decode(&self) -> Result<EthBlock, alloy_rlp::Error> {
        decode_block(&self.block)
    }

    /// Decodes the ancestors' headers with their hashes, oldest first, the parent last.
    ///
    /// # Errors
    /// The decoder's, for the first header that is none.
    pub fn decode_headers(&self) -> Result<Vec<(B256, Header)>, alloy_rlp::Error> {
        let decode = |rlp: &Bytes| decode_header(rlp).map(|header| (keccak256(rlp), header));
        self.witness.headers.iter().map(decode).collect()
    }

    /// What this file says twice has to agree.
    fn check(&self, file: &str) -> Result<(), ReadError> {
        let rlp = |what, index, source| ReadError::Rlp { file: file.to_owned(), what, index, offset: 0, source };
        let same = |what, got: B256, expected: B256| {
            let (file, got_text, expected_text) = (file.to_owned(), got.to_string(), expected.to_string());
            let error = ReadError::Mismatch { file, what, got: got_text, expected: expected_text };
            if got == expected { Ok(()) } else { Err(error) }
        };
        let block = self.decode().map_err(|source| rlp("block", 0, source))?;
        same("the hash of `block`", block.header.hash_slow(), self.block_hash)?;
        same("the state root in `block`", block.header.state_root, self.state_root)?;
        let Some((last, parent)) = self.witness.headers.iter().enumerate().next_back() else {
            return same("the parent hash in `block` (no header is given)", block.header.parent_hash, B256::ZERO);
        };
        same("the hash of the last of `witness.headers`", keccak256(parent), block.header.parent_hash)?;
        let parent = decode_header(parent).map_err(|source| rlp("header", last as u64, source))?;
        same("the state root in the last of `witness.headers`", parent.state_root, self.parent_state_root)?;
        match (&self.block_access_list, self.block_access_list_hash) {
            (Some(list), Some(expected)) => same("the hash of `blockAccessList`", keccak256(list), expected),
            _ => Ok(()),
        }
    }
}

/// Reads a witness file: `.json.gz`, or `.json`.
///
/// # Errors
/// [`ReadError::Io`], [`ReadError::Compression`], [`ReadError::TooLarge`]; [`ReadError::Json`] with the field; [`ReadError::Rlp`]
/// or [`ReadError::Mismatch`] where block and headers are not what the file says of them.
pub fn read_witness(path: &Path) -> Result<WitnessBlock, ReadError> {
    let file = path.display().to_string();
    let content = if file.ends_with(".gz") {
        archive::read_gzip(path, "the witness", MAX_WITNESS_BYTES)?
    } else {
        archive::read_file(path, "the witness", MAX_WITNESS_BYTES)?
    };
    let witness: WitnessBlock = json::parse(&file, &content)?;
    witness.check(&file)?;
    Ok(witness)
}

fn decode_header(mut rlp: &[u8]) -> Result<Header, alloy_rlp::Error> {
    let header = Header::decode(&mut rlp)?;
    if rlp.is_empty() { Ok(header) } else { Err(alloy_rlp::Error::UnexpectedLength) }
}
