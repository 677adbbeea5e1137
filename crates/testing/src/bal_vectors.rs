//! Block access lists beside those of the blockchain tests: vectors of the encoding, and lists of real mainnet size.
//!
//! Invariants:
//! 1. Vectors are kept as given, faults and all.
//! 2. The mainnet lists are not canonical (leading zeros are kept in them): only [`MainnetList`] reads them, into numbers.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use alloy_consensus::Header;
use alloy_eip7928::{
    AccountChanges, BalanceChange, BlockAccessIndex, BlockAccessList, CodeChange, NonceChange, SlotChanges,
    StorageChange,
};
use alloy_primitives::{Address, B256, Bytes, Sealed, U256};
use alloy_rlp::Error as RlpError;
use serde::Deserialize;

use crate::{
    ReadError,
    archive::{self, MAX_JSON_BYTES},
    chains::MAX_BAL_BYTES,
    fixtures::{HeaderJson, TestAccessList},
    json,
};

/// A list as JSON, with the RLP and hash that it has to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalVector {
    /// The vector's name.
    pub name: String,
    /// The list read from JSON, encoded anew.
    pub list: TestAccessList,
    /// The RLP that the source states.
    pub rlp: Bytes,
    /// The hash that the source states.
    pub hash: B256,
}

/// A block that a client has to refuse for its list.
#[derive(Debug, Clone)]
pub struct InvalidBalVector {
    /// The test's name.
    pub name: String,
    /// The block's header with the hash that the source states.
    pub header: Sealed<Header>,
    /// The faulty list.
    pub list: TestAccessList,
}

/// Reads `vectors.json` in `dir` and the lists that it names.
///
/// # Errors
/// [`ReadError::Io`], [`ReadError::TooLarge`], [`ReadError::Json`]; [`ReadError::Name`] where a list's file is not beside it.
pub fn read_bal_vectors(dir: &Path) -> Result<Vec<BalVector>, ReadError> {
    #[derive(Deserialize)]
    struct Entry {
        name: String,
        json: String,
        rlp: Bytes,
        keccak256: B256,
    }
    let entries: Vec<Entry> = read_json(&dir.join("vectors.json"))?;
    let read = |entry: Entry| {
        if Path::new(&entry.json).file_name() != Some(entry.json.as_ref()) {
            return Err(ReadError::Name { file: entry.json, expected: "that of a file beside vectors.json" });
        }
        let list: BlockAccessList = read_json(&dir.join(&entry.json))?;
        Ok(BalVector { name: entry.name, list: TestAccessList::new(list), rlp: entry.rlp, hash: entry.keccak256 })
    };
    entries.into_iter().map(read).collect()
}

/// Reads the files `bal_invalid_*.json` in `dir`, by name.
///
/// # Errors
/// [`ReadError::Io`], [`ReadError::TooLarge`], [`ReadError::Json`] with test and field.
pub fn read_invalid_bal_vectors(dir: &Path) -> Result<Vec<InvalidBalVector>, ReadError> {
    #[derive(Deserialize)]
    struct TestJson {
        blocks: Vec<BlockJson>,
    }
    #[derive(Deserialize)]
    struct BlockJson {
        rlp_decoded: DecodedJson,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct DecodedJson {
        block_header: HeaderJson,
        block_access_list: BlockAccessList,
    }
    let fault = |source| ReadError::Io { path: dir.to_owned(), source };
    let mut paths = Vec::<PathBuf>::new();
    for entry in std::fs::read_dir(dir).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("bal_invalid_") && name.ends_with(".json") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    let mut vectors = Vec::new();
    for path in paths {
        let content = archive::read_file(&path, "the list's test", MAX_JSON_BYTES)?;
        for (name, test) in json::parse_tests::<TestJson>(&path.display().to_string(), &content)? {
            for DecodedJson { block_header, block_access_list } in
                test.blocks.into_iter().map(|block| block.rlp_decoded)
            {
                let (header, list) = (block_header.into_header(), TestAccessList::new(block_access_list));
                vectors.push(InvalidBalVector { name: name.clone(), header, list });
            }
        }
    }
    Ok(vectors)
}

/// The list of a real mainnet block, derived by a script from traces, of before EIP-7928.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MainnetList {
    /// The block's number.
    pub number: u64,
    /// The length of the list as stored, in bytes.
    pub stored_bytes: usize,
    /// The list; encoded anew it has no leading zeros.
    pub accounts: BlockAccessList,
}

/// Reads the lists in an archive of files named `<block number>_with_reads.rlp`, in the archive's order.
///
/// # Errors
/// Those of [`archive::visit_members`]; [`ReadError::Name`]; [`ReadError::Rlp`] with the block's number as index.
pub fn read_mainnet_lists(path: &Path) -> Result<Vec<MainnetList>, ReadError> {
    let mut lists = Ok(Vec::new());
    archive::visit_members(path, MAX_BAL_BYTES, &mut |member, content| {
        let read = parse_mainnet_list(&format!("{}!{member}", path.display()), &member, &content);
        match (read, &mut lists) {
            (Ok(list), Ok(lists)) => lists.push(list),
            (Err(error), _) => {
                lists = Err(error);
                return ControlFlow::Break(());
            }
            (Ok(_), Err(_)) => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    })?;
    lists
}

fn parse_mainnet_list(file: &str, member: &str, content: &[u8]) -> Result<MainnetList, ReadError> {
    let stem = member.rsplit('/').next().unwrap_or_default().strip_suffix("_with_reads.rlp");
    let Some(number) = stem.and_then(|stem| stem.parse().ok()) else {
        return Err(ReadError::Name { file: file.to_owned(), expected: "<block number>_with_reads.rlp" });
    };
    match loose_list(content) {
        Ok(accounts) => Ok(MainnetList { number, stored_bytes: content.len(), accounts }),
        Err(source) => {
            Err(ReadError::Rlp { file: file.to_owned(), what: "list of block", index: number, offset: 0, source })
        }
    }
}

/// One row of `stats.csv`: counts of one mainnet block's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MainnetListStats {
    /// The block's number.
    pub block: u64,
    /// Length as stored, leading zeros kept.
    pub bytes: u64,
    /// Length without leading zeros.
    pub bytes_canonical: u64,
    /// Accounts in the list.
    pub accounts: u64,
    /// Accounts with a change.
    pub accounts_changed: u64,
    /// Accounts with changed slots.
    pub accounts_with_slot_changes: u64,
    /// Slots changed.
    pub slots_changed: u64,
    /// Of these, zero at the block's end.
    pub slots_ending_zero: u64,
    /// Changes of slots; a slot may change in several transactions.
    pub slot_change_entries: u64,
    /// Slots only read.
    pub slots_read_only: u64,
    /// Changes of balances.
    pub balance_change_entries: u64,
    /// Accounts with a changed balance.
    pub accounts_with_balance_change: u64,
    /// Changes of nonces.
    pub nonce_change_entries: u64,
    /// Changes of code.
    pub code_change_entries: u64,
    /// Length of all new codes.
    pub code_bytes: u64,
    /// The most slots changed in one account.
    pub max_slots_in_one_account: u64,
}

const STATS_COLUMNS: [&str; 16] = [
    "block",
    "bytes",
    "bytes_canonical",
    "accounts",
    "accounts_changed",
    "accounts_with_slot_changes",
    "slots_changed",
    "slots_ending_zero",
    "slot_change_entries",
    "slots_read_only",
    "balance_change_entries",
    "accounts_with_balance_change",
    "nonce_change_entries",
    "code_change_entries",
    "code_bytes",
    "max_slots_in_one_account",
];

/// Reads `stats.csv`.
///
/// # Errors
/// [`ReadError::Io`], [`ReadError::TooLarge`]; [`ReadError::Table`] with line and column.
pub fn read_mainnet_stats(path: &Path) -> Result<Vec<MainnetListStats>, ReadError> {
    let content = archive::read_file(path, "the table", 1 << 24)?;
    let text = String::from_utf8_lossy(&content);
    let fault = |line: usize, column, got: &str, expected| {
        let (file, got) = (path.display().to_string(), got.to_owned());
        ReadError::Table { file, line, column, got, expected }
    };
    let mut rows = Vec::new();
    for (line, text) in text.lines().enumerate().map(|(index, text)| (index + 1, text)) {
        let cells: Vec<&str> = text.trim_end().split(',').collect();
        let mut numbers = [0u64; STATS_COLUMNS.len()];
        for ((place, column), number) in STATS_COLUMNS.iter().enumerate().zip(&mut numbers) {
            let cell = cells.get(place).copied().unwrap_or_default();
            if line == 1 && cell != *column {
                return Err(fault(line, column, cell, "the column's name"));
            }
            if line > 1 {
                *number = cell.parse().map_err(|_| fault(line, column, cell, "a number"))?;
            }
        }
        if line > 1 {
            rows.push(stats_row(numbers));
        }
    }
    Ok(rows)
}

const fn stats_row(numbers: [u64; STATS_COLUMNS.len()]) -> MainnetListStats {
    let [
        block,
        bytes,
        bytes_canonical,
        accounts,
        accounts_changed,
        accounts_with_slot_changes,
        slots_changed,
        rest @ ..,
    ] = numbers;
    let [slots_ending_zero, slot_change_entries, slots_read_only, balance_change_entries, rest @ ..] = rest;
    let [accounts_with_balance_change, nonce_change_entries, code_change_entries, code_bytes, max_slots_in_one_account] =
        rest;
    MainnetListStats {
        block,
        bytes,
        bytes_canonical,
        accounts,
        accounts_changed,
        accounts_with_slot_changes,
        slots_changed,
        slots_ending_zero,
        slot_change_entries,
        slots_read_only,
        balance_change_entries,
        accounts_with_balance_change,
        nonce_change_entries,
        code_change_entries,
        code_bytes,
        max_slots_in_one_account,
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ReadError> {
    json::parse(&path.display().to_string(), &archive::read_file(path, "the list", MAX_JSON_BYTES)?)
}

// A decoder that takes leading zeros, which the strict one has to refuse.

fn loose_list(mut rlp: &[u8]) -> Result<BlockAccessList, RlpError> {
    let accounts = items(&mut rlp, loose_account)?;
    if rlp.is_empty() { Ok(accounts) } else { Err(RlpError::UnexpectedLength) }
}

fn loose_account(rlp: &mut &[u8]) -> Result<AccountChanges, RlpError> {
    tuple(rlp, |rlp| {
        Ok(AccountChanges {
            address: address(rlp)?,
            storage_changes: items(rlp, |rlp| {
                tuple(rlp, |rlp| {
                    let slot = number(rlp)?;
                    Ok(SlotChanges::new(slot, items(rlp, |rlp| change(rlp, number, StorageChange::new))?))
                })
            })?,
            storage_reads: items(rlp, number)?,
            balance_changes: items(rlp, |rlp| change(rlp, number, BalanceChange::new))?,
            nonce_changes: items(rlp, |rlp| change(rlp, small_number, NonceChange::new))?,
            code_changes: items(rlp, |rlp| change(rlp, bytes, CodeChange::new))?,
        })
    })
}

fn change<V, C>(
    rlp: &mut &[u8],
    value: impl FnOnce(&mut &[u8]) -> Result<V, RlpError>,
    make: impl FnOnce(BlockAccessIndex, V) -> C,
) -> Result<C, RlpError> {
    tuple(rlp, |rlp| Ok(make(BlockAccessIndex::new(small_number(rlp)?), value(rlp)?)))
}

/// A list whose items are all of one kind.
fn items<T>(rlp: &mut &[u8], item: impl Fn(&mut &[u8]) -> Result<T, RlpError>) -> Result<Vec<T>, RlpError> {
    let mut payload = alloy_rlp::Header::decode_bytes(rlp, true)?;
    let mut items = Vec::new();
    while !payload.is_empty() {
        items.push(item(&mut payload)?);
    }
    Ok(items)
}

/// A list of a fixed shape, which has to be used up.
fn tuple<T>(rlp: &mut &[u8], read: impl FnOnce(&mut &[u8]) -> Result<T, RlpError>) -> Result<T, RlpError> {
    let mut payload = alloy_rlp::Header::decode_bytes(rlp, true)?;
    let value = read(&mut payload)?;
    if payload.is_empty() { Ok(value) } else { Err(RlpError::UnexpectedLength) }
}

fn address(rlp: &mut &[u8]) -> Result<Address, RlpError> {
    let address = alloy_rlp::Header::decode_bytes(rlp, false)?;
    Address::try_from(address).map_err(|_| RlpError::UnexpectedLength)
}

fn number(rlp: &mut &[u8]) -> Result<U256, RlpError> {
    let digits = alloy_rlp::Header::decode_bytes(rlp, false)?;
    U256::try_from_be_slice(digits).ok_or(RlpError::Overflow)
}

fn small_number(rlp: &mut &[u8]) -> Result<u64, RlpError> {
    number(rlp)?.try_into().map_err(|_| RlpError::Overflow)
}

fn bytes(rlp: &mut &[u8]) -> Result<Bytes, RlpError> {
    alloy_rlp::Header::decode_bytes(rlp, false).map(Bytes::copy_from_slice)
}
