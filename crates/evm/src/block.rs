//! A block as it comes over the wire or from a chain file: decoded once, its hash taken from the bytes as given.
//!
//! Invariants:
//! 1. [`Block::hash`] is keccak256 of the header's RLP as it was given, never of a re-encoding.
//! 2. Blob transactions carry no sidecar: the type cannot hold one.

use alloy_consensus::{EthereumTxEnvelope, Header, TxEip4844};
use alloy_eips::eip4895::Withdrawal;
use alloy_primitives::{Sealed, keccak256};
use alloy_rlp::{Decodable, Header as RlpHeader};
use foldgate_core::{BlockFacts, BlockHash, BlockNumHash};

/// A signed transaction of a block's body, of type 0 to 4.
pub type Transaction = EthereumTxEnvelope<TxEip4844>;

/// A decoded block: `[header, transactions, ommers(, withdrawals)]` (yellow paper 4.3, EIP-4895).
#[derive(Debug, Clone)]
pub struct Block {
    /// keccak256 of the header's RLP.
    pub hash: BlockHash,
    /// The header, with `block_access_list_hash` (EIP-7928) and `slot_number` (EIP-7843) where it has them.
    pub header: Header,
    /// The transactions in order.
    pub transactions: Vec<Transaction>,
    /// The headers of the ommers; always empty after the merge.
    pub ommers: Vec<Header>,
    /// The withdrawals; `None` before Shanghai.
    pub withdrawals: Option<Vec<Withdrawal>>,
    /// The length of the whole block's RLP in bytes (EIP-7934 bounds it).
    pub rlp_length: usize,
}

/// Why bytes are not a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockDecodeError {
    /// A part of the block is malformed.
    #[error("malformed {part}: {source}")]
    Malformed {
        /// Which part.
        part: &'static str,
        /// What the decoder found.
        source: alloy_rlp::Error,
    },
    /// A transaction is malformed.
    #[error("malformed transaction {index}: {source}")]
    Transaction {
        /// Its position in the block.
        index: usize,
        /// What the decoder found.
        source: alloy_rlp::Error,
    },
    /// The block's list holds more than header, transactions, ommers and withdrawals.
    #[error("{got} bytes too many after the last part of the block")]
    ExtraParts {
        /// How many bytes are left over.
        got: usize,
    },
    /// Bytes follow the block.
    #[error("{got} bytes follow the block")]
    TrailingBytes {
        /// How many.
        got: usize,
    },
}

fn malformed(part: &'static str) -> impl Fn(alloy_rlp::Error) -> BlockDecodeError {
    move |source| BlockDecodeError::Malformed { part, source }
}

impl Block {
    /// Decodes one block that fills `rlp` exactly.
    ///
    /// # Errors
    /// If the bytes are not the canonical RLP of one block.
    pub fn decode(mut rlp: &[u8]) -> Result<Self, BlockDecodeError> {
        let block = Self::decode_from(&mut rlp)?;
        match rlp.len() {
            0 => Ok(block),
            got => Err(BlockDecodeError::TrailingBytes { got }),
        }
    }

    /// Decodes the block at the start of `rlp` and moves `rlp` behind it: chain files are blocks one after another.
    ///
    /// # Errors
    /// If the bytes do not start with the canonical RLP of a block.
    pub fn decode_from(rlp: &mut &[u8]) -> Result<Self, BlockDecodeError> {
        let before = rlp.len();
        let mut body = RlpHeader::decode_bytes(rlp, true).map_err(malformed("block"))?;
        let rlp_length = before - rlp.len();

        let header = decode_header(&mut body)?;
        let transactions = decode_transactions(&mut body)?;
        let ommers = Vec::<Header>::decode(&mut body).map_err(malformed("list of ommers"))?;
        let withdrawals = match body.is_empty() {
            true => None,
            false => Some(Vec::<Withdrawal>::decode(&mut body).map_err(malformed("list of withdrawals"))?),
        };
        if !body.is_empty() {
            return Err(BlockDecodeError::ExtraParts { got: body.len() });
        }
        let (header, hash) = header.split();
        Ok(Self { hash, header, transactions, ommers, withdrawals, rlp_length })
    }

    /// The block's name.
    pub const fn num_hash(&self) -> BlockNumHash {
        BlockNumHash::new(self.header.number, self.hash)
    }

    /// The header with its hash: what the next block is validated against.
    pub fn sealed_header(&self) -> Sealed<Header> {
        Sealed::new_unchecked(self.header.clone(), self.hash)
    }

    /// What the calculator needs to know of the block at its arrival.
    pub const fn facts(&self) -> BlockFacts {
        BlockFacts {
            block: self.num_hash(),
            parent_hash: self.header.parent_hash,
            timestamp: self.header.timestamp,
            gas_limit: self.header.gas_limit,
            tx_count: self.transactions.len() as u64,
            expected_state_root: Some(self.header.state_root),
            expected_bal_hash: self.header.block_access_list_hash,
        }
    }
}

/// Decodes the header at the start of `rlp` and moves `rlp` behind it; its hash is taken from the bytes as given.
///
/// # Errors
/// If the bytes do not start with the canonical RLP of a header.
pub fn decode_header(rlp: &mut &[u8]) -> Result<Sealed<Header>, BlockDecodeError> {
    let start = *rlp;
    let header = Header::decode(rlp).map_err(malformed("header"))?;
    let hash = keccak256(&start[..start.len() - rlp.len()]);
    Ok(Sealed::new_unchecked(header, hash))
}

fn decode_transactions(body: &mut &[u8]) -> Result<Vec<Transaction>, BlockDecodeError> {
    let mut list = RlpHeader::decode_bytes(body, true).map_err(malformed("list of transactions"))?;
    let mut transactions = Vec::new();
    while !list.is_empty() {
        let transaction = Transaction::decode(&mut list)
            .map_err(|source| BlockDecodeError::Transaction { index: transactions.len(), source })?;
        transactions.push(transaction);
    }
    Ok(transactions)
}
