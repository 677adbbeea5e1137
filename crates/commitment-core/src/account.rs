//! The account as the state holds it: four fields, of which executors see three.
//!
//! Invariants:
//! 1. An account without code has `code_hash == KECCAK256_EMPTY`; one without storage has
//!    `storage_root == EMPTY_ROOT_HASH`. Never zero.
//! 2. [`Account::to_bytes`] and [`Account::from_bytes`] are inverses, and the bytes are the same on every backend.

use alloy_primitives::{B256, KECCAK256_EMPTY, U256};
use alloy_rlp::{BufMut, Decodable, Encodable, RlpDecodable, RlpEncodable};
use alloy_trie::EMPTY_ROOT_HASH;
use serde::{Deserialize, Serialize};

/// What an executor may know of an account: everything but the storage root, which is computed only when the block's
/// fold ends, while the next block's execution may already have begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountInfo {
    /// The number of transactions sent, or of contracts created by it.
    pub nonce: u64,
    /// In wei.
    pub balance: U256,
    /// keccak256 of the code.
    pub code_hash: B256,
}

impl Default for AccountInfo {
    fn default() -> Self {
        Self { nonce: 0, balance: U256::ZERO, code_hash: KECCAK256_EMPTY }
    }
}

impl AccountInfo {
    /// Whether the account is empty in the sense of EIP-161: nonce 0, balance 0 and no code. Storage plays no part.
    pub fn is_empty(&self) -> bool {
        self.nonce == 0 && self.balance.is_zero() && self.code_hash == KECCAK256_EMPTY
    }
}

/// An account as the account trie holds it (yellow paper, 4.1: nonce, balance, storageRoot, codeHash).
///
/// Its RLP encoding is the value of the account's leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, RlpEncodable, RlpDecodable, Serialize, Deserialize)]
pub struct Account {
    /// The number of transactions sent, or of contracts created by it.
    pub nonce: u64,
    /// In wei.
    pub balance: U256,
    /// The root of the account's storage trie.
    pub storage_root: B256,
    /// keccak256 of the code.
    pub code_hash: B256,
}

impl Default for Account {
    fn default() -> Self {
        AccountInfo::default().with_storage_root(EMPTY_ROOT_HASH)
    }
}

impl AccountInfo {
    /// Adds the storage root.
    pub const fn with_storage_root(self, storage_root: B256) -> Account {
        Account { nonce: self.nonce, balance: self.balance, storage_root, code_hash: self.code_hash }
    }
}

impl From<Account> for AccountInfo {
    fn from(account: Account) -> Self {
        Self { nonce: account.nonce, balance: account.balance, code_hash: account.code_hash }
    }
}

const HAS_CODE: u8 = 1;
const HAS_STORAGE: u8 = 2;

impl Account {
    /// The account without its storage root.
    pub const fn info(&self) -> AccountInfo {
        AccountInfo { nonce: self.nonce, balance: self.balance, code_hash: self.code_hash }
    }

    /// The longest record in bytes.
    pub const MAX_BYTES: usize = 1 + 9 + 33 + 64;

    /// Encodes the record that backends store: one byte of flags (1 = has code, 2 = has storage), nonce and balance
    /// as RLP integers, then the 32-byte code hash and the 32-byte storage root as far as the flags name them.
    /// A plain account takes about 12 bytes instead of the 70 and more of its RLP. Gives the buffer's used part.
    pub fn write_bytes<'a>(&self, buffer: &'a mut [u8; Self::MAX_BYTES]) -> &'a [u8] {
        let (has_code, has_storage) = (self.code_hash != KECCAK256_EMPTY, self.storage_root != EMPTY_ROOT_HASH);
        let mut rest = &mut buffer[..];
        rest.put_u8(if has_code { HAS_CODE } else { 0 } | if has_storage { HAS_STORAGE } else { 0 });
        self.nonce.encode(&mut rest);
        self.balance.encode(&mut rest);
        if has_code {
            rest.put_slice(self.code_hash.as_slice());
        }
        if has_storage {
            rest.put_slice(self.storage_root.as_slice());
        }
        let used = Self::MAX_BYTES - rest.len();
        &buffer[..used]
    }

    /// [`Self::write_bytes`] into memory of its own.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.write_bytes(&mut [0; Self::MAX_BYTES]).to_vec()
    }

    /// Decodes what [`Account::to_bytes`] wrote; `None` if the bytes are anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&flags, mut rest) = bytes.split_first()?;
        if flags & !(HAS_CODE | HAS_STORAGE) != 0 {
            return None;
        }
        let nonce = u64::decode(&mut rest).ok()?;
        let balance = U256::decode(&mut rest).ok()?;
        let mut hash = |present: bool, absent: B256| {
            if !present {
                return Some(absent);
            }
            let (head, tail) = rest.split_first_chunk::<32>()?;
            rest = tail;
            // A hash that the flags should have left out would make two encodings of one account.
            (head != &absent.0).then_some(B256::from(*head))
        };
        let code_hash = hash(flags & HAS_CODE != 0, KECCAK256_EMPTY)?;
        let storage_root = hash(flags & HAS_STORAGE != 0, EMPTY_ROOT_HASH)?;
        rest.is_empty().then_some(Self { nonce, balance, storage_root, code_hash })
    }

    /// Decodes the RLP of an account's leaf; `None` if it is not exactly one canonical account.
    pub fn from_leaf_value(mut rlp: &[u8]) -> Option<Self> {
        let account = Self::decode(&mut rlp).ok()?;
        rlp.is_empty().then_some(account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_round_trips_and_refuses_other_bytes() {
        let accounts = [
            Account::default(),
            Account { nonce: u64::MAX, balance: U256::MAX, storage_root: B256::ZERO, code_hash: B256::ZERO },
            Account { nonce: 1, balance: U256::from(7), ..Account::default() },
            Account { code_hash: B256::repeat_byte(3), ..Account::default() },
            Account { storage_root: B256::repeat_byte(4), ..Account::default() },
        ];
        for account in accounts {
            let bytes = account.to_bytes();
            assert_eq!(Account::from_bytes(&bytes), Some(account));
            let rlp = alloy_rlp::encode(account);
            assert_eq!(Account::from_leaf_value(&rlp), Some(account));
            for cut in 0..bytes.len() {
                assert_eq!(Account::from_bytes(&bytes[..cut]), None, "cut at {cut}");
            }
            let mut longer = bytes.clone();
            longer.push(0);
            assert_eq!(Account::from_bytes(&longer), None);
        }
        assert_eq!(Account::from_bytes(&[4, 0x80, 0x80]), None, "unknown flag");
        let mut two_ways = vec![HAS_CODE, 0x80, 0x80];
        two_ways.extend_from_slice(KECCAK256_EMPTY.as_slice());
        assert_eq!(Account::from_bytes(&two_ways), None, "the empty code's hash is never spelt out");
    }
}
