//! Whole chains: concatenated RLP blocks, geth-style genesis, a chain's final state, and a folder of block access lists.
//!
//! Invariants:
//! 1. A chain is a stream: one block is held at a time, and its length is checked before it is read.
//! 2. An error of a chain names the block's index in the file (from 0) and the byte it begins at; after it the stream ends.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use alloy_consensus::{EMPTY_OMMER_ROOT_HASH, Header, constants::EMPTY_WITHDRAWALS};
use alloy_eip7928::EMPTY_BLOCK_ACCESS_LIST_HASH;
use alloy_eips::eip7685::EMPTY_REQUESTS_HASH;
use alloy_genesis::Genesis;
use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_rlp::Error as RlpError;
use alloy_trie::EMPTY_ROOT_HASH;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny},
};

use crate::{
    EthBlock, ReadError,
    archive::{self, MAX_JSON_BYTES},
    fixtures::decode_block,
    json::{self, UniqueMap},
    oracle::{PlainAccount, PlainState},
};

/// The longest block that is read. EIP-7934 allows 10 MiB less a margin.
pub const MAX_BLOCK_BYTES: u64 = 1 << 26;

/// The longest block access list that is read.
pub const MAX_BAL_BYTES: u64 = 1 << 26;

/// One block of a chain file.
#[derive(Debug, Clone)]
pub struct ChainBlock {
    /// Which block of the file it is, from 0. Not its number.
    pub index: u64,
    /// The byte of the file at which it begins.
    pub offset: u64,
    /// The block's RLP as it stands in the file.
    pub rlp: Bytes,
    /// The block.
    pub block: EthBlock,
}

/// The blocks of a file of concatenated RLP blocks (`chain.rlp`), in the file's order.
#[derive(Debug)]
pub struct ChainReader<R = BufReader<File>> {
    source: R,
    file: String,
    index: u64,
    offset: u64,
    done: bool,
}

impl ChainReader {
    /// Opens a chain file.
    ///
    /// # Errors
    /// [`ReadError::Io`].
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
        Ok(Self::new(BufReader::new(file), path.display().to_string()))
    }
}

impl<R: Read> ChainReader<R> {
    /// Reads a chain from any source, best a buffered one; `file` names it in errors.
    pub const fn new(source: R, file: String) -> Self {
        Self { source, file, index: 0, offset: 0, done: false }
    }

    /// The next block, or `None` at the end of the file.
    fn read_block(&mut self) -> Result<Option<ChainBlock>, ReadError> {
        let mut rlp = Vec::new();
        if self.fill(&mut rlp, 1)? == 0 {
            return Ok(None);
        }
        let payload = match rlp[0] {
            first @ 0xc0..=0xf7 => u64::from(first - 0xc0),
            first @ 0xf8..=0xff => {
                let length = usize::from(first - 0xf7);
                self.fill_all(&mut rlp, length as u64)?;
                let digits = &rlp[1..];
                if digits[0] == 0 {
                    return Err(self.rlp_error(RlpError::LeadingZero));
                }
                let size = digits.iter().fold(0u64, |size, digit| size << 8 | u64::from(*digit));
                if size < 56 {
                    return Err(self.rlp_error(RlpError::NonCanonicalSize));
                }
                size
            }
            _ => return Err(self.rlp_error(RlpError::UnexpectedString)),
        };
        if payload > MAX_BLOCK_BYTES {
            return Err(ReadError::TooLarge {
                file: format!("{}: block {} at byte {}", self.file, self.index, self.offset),
                what: "the block",
                got: payload,
                expected: MAX_BLOCK_BYTES,
            });
        }
        self.fill_all(&mut rlp, payload)?;
        let block = decode_block(&rlp).map_err(|source| self.rlp_error(source))?;
        let block = ChainBlock { index: self.index, offset: self.offset, rlp: rlp.into(), block };
        self.index += 1;
        self.offset += block.rlp.len() as u64;
        Ok(Some(block))
    }

    /// Appends up to `count` bytes; returns how many there were.
    fn fill(&mut self, rlp: &mut Vec<u8>, count: u64) -> Result<u64, ReadError> {
        let read = self.source.by_ref().take(count).read_to_end(rlp);
        read.map(|read| read as u64).map_err(|source| ReadError::Io { path: PathBuf::from(&self.file), source })
    }

    fn fill_all(&mut self, rlp: &mut Vec<u8>, count: u64) -> Result<(), ReadError> {
        let before = rlp.len() as u64;
        let got = self.fill(rlp, count)?;
        if got == count {
            return Ok(());
        }
        Err(ReadError::Truncated {
            file: format!("{}: block {} at byte {}", self.file, self.index, self.offset),
            what: "the block",
            got: before + got,
            expected: before.saturating_add(count),
        })
    }

    fn rlp_error(&self, source: RlpError) -> ReadError {
        let (index, offset) = (self.index, self.offset);
        ReadError::Rlp { file: self.file.clone(), what: "block", index, offset, source }
    }
}

impl<R: Read> Iterator for ChainReader<R> {
    type Item = Result<ChainBlock, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let block = self.read_block().transpose();
        self.done = !matches!(block, Some(Ok(_)));
        block
    }
}

/// Reads a geth-style genesis (config, header fields, alloc). It has to have `config` and `alloc`; other fields have defaults.
///
/// # Errors
/// [`ReadError::Io`], [`ReadError::TooLarge`], [`ReadError::Json`] with the field.
pub fn read_genesis(path: &Path) -> Result<Genesis, ReadError> {
    let (file, content) = (path.display().to_string(), archive::read_file(path, "the genesis", MAX_JSON_BYTES)?);
    let RequiredJson { .. } = json::parse(&file, &content)?;
    json::parse(&file, &content)
}

/// What makes a JSON object a genesis: the library takes any object for one.
#[derive(Deserialize)]
struct RequiredJson {
    #[serde(rename = "config")]
    _config: IgnoredAny,
    #[serde(rename = "alloc")]
    _alloc: IgnoredAny,
}

/// The state that a genesis allocates; its empty accounts are kept.
pub fn genesis_state(genesis: &Genesis) -> PlainState {
    let accounts = genesis.alloc.iter().map(|(address, account)| {
        let slots = account.storage.iter().flatten();
        let storage = slots.map(|(slot, value)| ((*slot).into(), (*value).into()));
        let plain = PlainAccount {
            nonce: account.nonce.unwrap_or_default(),
            balance: account.balance,
            code: account.code.clone().unwrap_or_default(),
            storage: storage.filter(|(_, value): &(U256, U256)| !value.is_zero()).collect(),
        };
        (*address, plain)
    });
    PlainState { accounts: accounts.collect() }
}

/// The header of the genesis block over the given state root, with the fields of the forks that the config has active in it.
pub fn genesis_header(genesis: &Genesis, state_root: B256) -> Header {
    let config = &genesis.config;
    let number = genesis.number.unwrap_or_default();
    let at = |time: Option<u64>| time.is_some_and(|time| time <= genesis.timestamp);
    let london = config.london_block.is_some_and(|block| block <= number);
    // A fork includes the ones before it, even where the config leaves those out.
    let amsterdam = at(config.amsterdam_time);
    let prague = amsterdam || at(config.prague_time) || at(config.osaka_time);
    let cancun = prague || at(config.cancun_time);
    let shanghai = cancun || at(config.shanghai_time);
    let base_fee = || u64::try_from(genesis.base_fee_per_gas.unwrap_or(1_000_000_000)).unwrap_or(u64::MAX);
    Header {
        parent_hash: genesis.parent_hash.unwrap_or_default(),
        ommers_hash: EMPTY_OMMER_ROOT_HASH,
        beneficiary: genesis.coinbase,
        state_root,
        transactions_root: EMPTY_ROOT_HASH,
        receipts_root: EMPTY_ROOT_HASH,
        difficulty: genesis.difficulty,
        number,
        gas_limit: genesis.gas_limit,
        timestamp: genesis.timestamp,
        extra_data: genesis.extra_data.clone(),
        mix_hash: genesis.mix_hash,
        nonce: genesis.nonce.into(),
        base_fee_per_gas: (london || shanghai).then(base_fee),
        withdrawals_root: shanghai.then_some(EMPTY_WITHDRAWALS),
        blob_gas_used: cancun.then(|| genesis.blob_gas_used.unwrap_or_default()),
        excess_blob_gas: cancun.then(|| genesis.excess_blob_gas.unwrap_or_default()),
        parent_beacon_block_root: cancun.then_some(B256::ZERO),
        requests_hash: prague.then_some(EMPTY_REQUESTS_HASH),
        block_access_list_hash: amsterdam.then_some(EMPTY_BLOCK_ACCESS_LIST_HASH),
        slot_number: genesis.slot_number.filter(|_| amsterdam),
        ..Default::default()
    }
}

/// A chain's complete final state (`headstate.json`, the form of geth's `dump`), with the roots that the file states.
#[derive(Debug, Clone)]
pub struct HeadState {
    /// The state root.
    pub state_root: B256,
    /// All accounts.
    pub state: PlainState,
    /// The storage root of each account.
    pub storage_roots: Vec<(Address, B256)>,
}

/// Reads a `headstate.json`.
///
/// # Errors
/// [`ReadError::Io`], [`ReadError::TooLarge`], [`ReadError::Json`] with the field; [`ReadError::Mismatch`] where an account's
/// code does not have its hash.
pub fn read_head_state(path: &Path) -> Result<HeadState, ReadError> {
    let file = path.display().to_string();
    let dump: DumpJson = json::parse(&file, &archive::read_file(path, "the head state", MAX_JSON_BYTES)?)?;
    let mut head = HeadState { state_root: dump.root, state: PlainState::default(), storage_roots: Vec::new() };
    for (address, account) in dump.accounts.0 {
        let storage = account.storage.0.into_iter().map(|(slot, value)| (slot.into(), value.0));
        let plain = PlainAccount {
            nonce: account.nonce,
            balance: account.balance,
            code: account.code,
            storage: storage.filter(|(_, value)| !value.is_zero()).collect(),
        };
        if plain.code_hash() != account.code_hash {
            let (got, expected) = (plain.code_hash().to_string(), account.code_hash.to_string());
            let file = format!("{file}: account {address}");
            return Err(ReadError::Mismatch { file, what: "the code's hash", got, expected });
        }
        head.storage_roots.push((address, account.root));
        head.state.accounts.insert(address, plain);
    }
    Ok(head)
}

#[derive(Deserialize)]
struct DumpJson {
    root: B256,
    accounts: UniqueMap<Address, DumpAccountJson>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DumpAccountJson {
    #[serde(deserialize_with = "json::u256")]
    balance: U256,
    #[serde(deserialize_with = "json::u64")]
    nonce: u64,
    root: B256,
    code_hash: B256,
    #[serde(default)]
    code: Bytes,
    #[serde(default)]
    storage: UniqueMap<B256, BareHex>,
}

/// Hex digits without `0x` and without leading zeros.
#[derive(Debug)]
struct BareHex(U256);

impl<'de> Deserialize<'de> for BareHex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digits = String::deserialize(deserializer)?;
        let text = if digits.starts_with("0x") { digits } else { format!("0x{digits}") };
        json::parse_number(&text)
            .map(Self)
            .ok_or_else(|| D::Error::custom(format_args!("`{text}` is not hex of at most 256 bits")))
    }
}

/// A folder of block access lists: one file a block, named `<block hash>.rlp` (0x and 64 digits, lower case) or
/// `<block number>.rlp` (decimal), each holding the raw RLP of the list and nothing else.
///
/// A list under the block's hash goes before one under its number. Files with other names are not looked at.
#[derive(Debug, Clone)]
pub struct BalDir {
    dir: PathBuf,
}

impl BalDir {
    /// Opens a folder.
    ///
    /// # Errors
    /// [`ReadError::Io`] where the folder cannot be listed.
    pub fn open(dir: &Path) -> Result<Self, ReadError> {
        std::fs::read_dir(dir).map_err(|source| ReadError::Io { path: dir.to_owned(), source })?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// The list of a block as raw bytes, neither decoded nor checked; `None` where the folder has none.
    ///
    /// # Errors
    /// [`ReadError::Io`], [`ReadError::TooLarge`].
    pub fn get(&self, number: u64, hash: B256) -> Result<Option<Bytes>, ReadError> {
        for name in [format!("{hash}.rlp"), format!("{number}.rlp")] {
            match archive::read_file(&self.dir.join(name), "the block access list", MAX_BAL_BYTES) {
                Ok(bytes) => return Ok(Some(bytes.into())),
                Err(ReadError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}
