//! A block as it comes over the wire or from a chain file: decoded once, its hash taken from the bytes as given.
//!
//! Invariants:
//! 1. [`Block::hash`] is keccak256 of the header's RLP as it was given, never of a re-encoding.
//! 2. Blob transactions carry no sidecar: the type cannot hold one.

use alloy_consensus::{EthereumTxEnvelope, Header, TxEip4844};
use alloy_eips::{Decodable2718, eip4895::Withdrawal};
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
        let transaction = decode_transaction(&mut list)
            .map_err(|source| BlockDecodeError::Transaction { index: transactions.len(), source })?;
        transactions.push(transaction);
    }
    Ok(transactions)
}

/// Decodes a list as a legacy transaction, and a string as exactly one typed transaction (EIP-2718).
///
/// The library's own way of a transaction over the wire is not used: it also takes a typed transaction that stands
/// outside of a string, or that does not fill its string.
fn decode_transaction(list: &mut &[u8]) -> alloy_rlp::Result<Transaction> {
    let mut ahead = *list;
    if RlpHeader::decode(&mut ahead)?.list {
        return Transaction::fallback_decode(list).map_err(Into::into);
    }
    let mut envelope = RlpHeader::decode_bytes(list, false)?;
    let transaction = match envelope.split_first() {
        // A type byte alone is its own string in RLP; the transaction it would announce is no part of it.
        Some((transaction_type, rest)) if !rest.is_empty() => {
            envelope = rest;
            Transaction::typed_decode(*transaction_type, &mut envelope)?
        }
        _ => return Err(alloy_rlp::Error::InputTooShort),
    };
    if envelope.is_empty() { Ok(transaction) } else { Err(alloy_rlp::Error::UnexpectedLength) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_consensus::{SignableTransaction, TxEip1559};
    use alloy_eips::Encodable2718;
    use alloy_primitives::{B256, Signature};
    use alloy_rlp::Encodable;

    fn rlp(header: &Header, transactions: &[Transaction], extra: Option<&[u8]>) -> Vec<u8> {
        let mut payload = Vec::new();
        header.encode(&mut payload);
        alloy_rlp::encode_list(transactions, &mut payload);
        Vec::<Header>::new().encode(&mut payload);
        if let Some(extra) = extra {
            vec![Withdrawal::default()].encode(&mut payload);
            payload.extend_from_slice(extra);
        }
        let mut block = Vec::new();
        RlpHeader { list: true, payload_length: payload.len() }.encode(&mut block);
        block.extend(payload);
        block
    }

    /// A header with every field up to `slot_number`.
    fn amsterdam_header() -> Header {
        Header {
            number: 7,
            base_fee_per_gas: Some(1),
            withdrawals_root: Some(B256::ZERO),
            blob_gas_used: Some(2),
            excess_blob_gas: Some(3),
            parent_beacon_block_root: Some(B256::ZERO),
            requests_hash: Some(B256::ZERO),
            block_access_list_hash: Some(B256::repeat_byte(9)),
            slot_number: Some(11),
            ..Header::default()
        }
    }

    #[test]
    fn all_parts_are_read_and_the_hash_is_that_of_the_bytes() {
        let transaction = Transaction::Eip1559(TxEip1559::default().into_signed(Signature::test_signature()));
        let without_slot = Header { slot_number: None, ..amsterdam_header() };
        for header in [Header::default(), without_slot, amsterdam_header()] {
            let bytes = rlp(&header, &[transaction.clone(), transaction.clone()], Some(&[]));
            let block = Block::decode(&bytes).unwrap();
            assert_eq!((&block.header, block.hash), (&header, header.hash_slow()));
            assert_eq!((block.transactions.len(), block.rlp_length), (2, bytes.len()));
            assert_eq!(block.withdrawals, Some(vec![Withdrawal::default()]));
            let facts = block.facts();
            assert_eq!((facts.tx_count, facts.expected_bal_hash), (2, header.block_access_list_hash));
        }
        assert_eq!(Block::decode(&rlp(&Header::default(), &[], None)).unwrap().withdrawals, None);
    }

    /// EIP-2718: in a block a typed transaction is one string, no more and no less.
    #[test]
    fn a_typed_transaction_fills_a_string() {
        let transaction = Transaction::Eip1559(TxEip1559::default().into_signed(Signature::test_signature()));
        let typed = transaction.encoded_2718();
        let block = |transactions: &[u8]| {
            let mut payload = Vec::new();
            Header::default().encode(&mut payload);
            RlpHeader { list: true, payload_length: transactions.len() }.encode(&mut payload);
            payload.extend_from_slice(transactions);
            Vec::<Header>::new().encode(&mut payload);
            let mut block = Vec::new();
            RlpHeader { list: true, payload_length: payload.len() }.encode(&mut block);
            Block::decode(&[block, payload].concat()).map(|block| block.transactions)
        };
        assert_eq!(block(&alloy_rlp::encode(&typed[..])).unwrap(), [transaction]);
        let refused = |bytes: &[u8], why: &str| {
            let error = block(bytes).unwrap_err();
            assert!(matches!(error, BlockDecodeError::Transaction { index: 0, .. }), "{why}: {error}");
        };
        refused(&typed, "outside of a string");
        let longer = [&typed[..], &[0x80]].concat();
        refused(&alloy_rlp::encode(&longer[..]), "bytes after it in the string");
        let short = [&[0xb8, 0x40][..], &typed].concat();
        refused(&short, "a string that ends within it");
        refused(&[0x02], "a type alone");
        refused(&[0x80], "an empty string");
        refused(&alloy_rlp::encode(&[&[0][..], &typed[1..]].concat()[..]), "a list under type 0");
    }

    #[test]
    fn other_bytes_are_refused() {
        let transaction = Transaction::Eip1559(TxEip1559::default().into_signed(Signature::test_signature()));
        let good = rlp(&amsterdam_header(), std::slice::from_ref(&transaction), Some(&[]));
        for cut in 0..good.len() {
            assert!(Block::decode(&good[..cut]).is_err(), "cut at {cut}");
        }
        let longer = [&good[..], &[0]].concat();
        assert_eq!(Block::decode(&longer).unwrap_err(), BlockDecodeError::TrailingBytes { got: 1 });
        let extra = rlp(&amsterdam_header(), &[], Some(&[0x80, 0x80]));
        assert_eq!(Block::decode(&extra).unwrap_err(), BlockDecodeError::ExtraParts { got: 2 });
        let mut two = &[&good[..], &good[..]].concat()[..];
        assert_eq!(Block::decode_from(&mut two).unwrap().hash, Block::decode(&good).unwrap().hash);
        assert_eq!(two.len(), good.len());
    }
}
