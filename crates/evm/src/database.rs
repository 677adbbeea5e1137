//! The parent's state as revm's database: hashes plain keys, and remembers why a read failed.
//!
//! Invariants:
//! 1. The first failure of a read is latched outside of the EVM, because the EVM turns failures inside system calls and
//!    withdrawals into validation errors. Whoever judges a block looks at the latch first.
//! 2. An address is hashed once for each block at most. Slots need no cache: revm's state keeps what it has read. What
//!    the block's access list names is not hashed here at all where the pipeline has hashed it.

use core::cell::OnceCell;
use core::fmt;

use alloy_evm::revm::{
    Database,
    database_interface::DBErrorMarker,
    primitives::{StorageKey, StorageValue},
    state::{AccountInfo, Bytecode},
};
use alloy_primitives::{Address, B256, KECCAK256_EMPTY, map::AddressMap};
use foldgate_bal::Bal;
use foldgate_core::{
    StateReader, TrieReader,
    keys::{hash_address, hash_slot},
};
use foldgate_pipeline::ParentState;

/// Why the parent's state could not be read.
#[derive(Debug)]
pub(crate) enum ReadFault<E> {
    /// The reader failed.
    Reader(E),
    /// An account refers to code that the reader does not have.
    MissingCode(B256),
    /// The reader does not know the hash of an ancestor within the reach of BLOCKHASH.
    MissingBlockHash(u64),
}

/// Where the first [`ReadFault`] of a block's execution is kept.
pub(crate) type FaultLatch<E> = OnceCell<ReadFault<E>>;

/// What the EVM is told of a failed read; the reason is in the latch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the parent's state could not be read")]
pub(crate) struct ReadFailed;

impl DBErrorMarker for ReadFailed {}

/// Where the hashes of plain keys come from.
pub(crate) trait KeyHashes {
    fn address(&self, address: &Address) -> B256;
    fn slot(&self, address: &Address, slot: &StorageKey) -> B256;
}

/// Every key is hashed when it is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HashedAsAsked;

impl KeyHashes for HashedAsAsked {
    fn address(&self, address: &Address) -> B256 {
        hash_address(address)
    }

    fn slot(&self, _address: &Address, slot: &StorageKey) -> B256 {
        hash_slot(slot)
    }
}

/// What the list names was hashed with it.
impl KeyHashes for &Bal {
    fn address(&self, address: &Address) -> B256 {
        self.keys().hashed_address(address).unwrap_or_else(|| hash_address(address))
    }

    fn slot(&self, address: &Address, slot: &StorageKey) -> B256 {
        self.keys().hashed_slot(address, slot).unwrap_or_else(|| hash_slot(slot))
    }
}

impl<R: TrieReader> KeyHashes for ParentState<R> {
    fn address(&self, address: &Address) -> B256 {
        self.hash_address(address)
    }

    fn slot(&self, address: &Address, slot: &StorageKey) -> B256 {
        self.hash_slot(address, slot)
    }
}

/// A [`StateReader`] as revm's [`Database`].
pub(crate) struct ReaderDatabase<'a, R: StateReader, K> {
    reader: R,
    key_hashes: K,
    hashed_addresses: AddressMap<B256>,
    latch: &'a FaultLatch<R::Error>,
}

impl<'a, R: StateReader, K: KeyHashes> ReaderDatabase<'a, R, K> {
    pub(crate) fn new(reader: R, key_hashes: K, latch: &'a FaultLatch<R::Error>) -> Self {
        Self { reader, key_hashes, hashed_addresses: AddressMap::default(), latch }
    }

    fn hashed(&mut self, address: Address) -> B256 {
        *self.hashed_addresses.entry(address).or_insert_with(|| self.key_hashes.address(&address))
    }

    fn fail(&self, fault: ReadFault<R::Error>) -> ReadFailed {
        // Only the first fault is the cause; later ones are lost on purpose.
        let _ = self.latch.set(fault);
        ReadFailed
    }
}

impl<R: StateReader, K> fmt::Debug for ReaderDatabase<'_, R, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReaderDatabase").field("hashed_addresses", &self.hashed_addresses.len()).finish_non_exhaustive()
    }
}

impl<R: StateReader, K: KeyHashes> Database for ReaderDatabase<'_, R, K> {
    type Error = ReadFailed;

    fn basic(&mut self, address: Address) -> Result<Option<AccountInfo>, ReadFailed> {
        let hashed_address = self.hashed(address);
        let info = self.reader.account_info(&hashed_address).map_err(|error| self.fail(ReadFault::Reader(error)))?;
        Ok(info.map(|info| AccountInfo {
            balance: info.balance,
            nonce: info.nonce,
            code_hash: info.code_hash,
            account_id: None,
            code: (info.code_hash == KECCAK256_EMPTY).then(Bytecode::default),
        }))
    }

    fn code_by_hash(&mut self, code_hash: B256) -> Result<Bytecode, ReadFailed> {
        if code_hash == KECCAK256_EMPTY {
            return Ok(Bytecode::default());
        }
        let code = self.reader.code(&code_hash).map_err(|error| self.fail(ReadFault::Reader(error)))?;
        let code = code.ok_or_else(|| self.fail(ReadFault::MissingCode(code_hash)))?;
        // Bytes that only look like a delegation (EIP-7702) are plain code: they were there before the EIP was.
        Ok(Bytecode::new_raw_checked(code.clone()).unwrap_or_else(|_| Bytecode::new_legacy(code)))
    }

    fn storage(&mut self, address: Address, slot: StorageKey) -> Result<StorageValue, ReadFailed> {
        let hashed_address = self.hashed(address);
        let value = self.reader.storage(&hashed_address, &self.key_hashes.slot(&address, &slot));
        value.map_err(|error| self.fail(ReadFault::Reader(error)))
    }

    fn block_hash(&mut self, number: u64) -> Result<B256, ReadFailed> {
        let hash = self.reader.block_hash(number).map_err(|error| self.fail(ReadFault::Reader(error)))?;
        hash.ok_or_else(|| self.fail(ReadFault::MissingBlockHash(number)))
    }
}
