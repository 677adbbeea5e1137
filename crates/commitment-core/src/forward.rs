//! The leaves that lead from a parent's state to a block's, as a redo record holds them: written once, straight from
//! the block's difference, and read by a recovery alone.
//!
//! The encoding is RLP: `[[[hashed_address, record, [[hashed_slot, value], ..]], ..], [code, ..]]`, where `record` is
//! [`Account::to_bytes`], or nothing if there is no account, and the value zero says that the slot is not there.
//!
//! Invariants:
//! 1. A [`ForwardDiff`] is its own encoding, and the only one: accounts in the order of their hashed addresses, slots
//!    of their hashes, codes of theirs, each once.
//! 2. The encoding is written front to back in one pass and without memory of its own for any account.

use alloy_primitives::{Bytes, keccak256};
use alloy_rlp::{Decodable, Encodable, Header, RlpDecodable};

use crate::{
    account::Account,
    diff::{AccountChange, AccountValues, SlotChange, StateDiff, check_values, post_state},
    hashed::HashedPostState,
};

/// What has to be put to go on from a parent's state to a block's: what a redo record holds of a block that was not
/// judged by its access list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardDiff(Bytes);

/// A forward diff that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed forward diff: {0}")]
pub struct MalformedForwardDiff(&'static str);

/// What a forward diff says.
#[derive(Debug, RlpDecodable)]
#[cfg_attr(test, derive(alloy_rlp::RlpEncodable))]
struct Decoded {
    accounts: Vec<AccountValues>,
    codes: Vec<Bytes>,
}

impl ForwardDiff {
    /// The encoding.
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Takes an encoding, which it checks.
    ///
    /// # Errors
    /// If the bytes are not such a list, are out of order, or hold a malformed account record.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, MalformedForwardDiff> {
        let Decoded { accounts, codes } = decode(&bytes)?;
        check_values(&accounts).map_err(MalformedForwardDiff)?;
        let hashes: Vec<_> = codes.iter().map(keccak256).collect();
        if !hashes.is_sorted_by(|a, b| a < b) {
            return Err(MalformedForwardDiff("codes out of order"));
        }
        Ok(Self(bytes))
    }

    /// As an accumulated state: resolved against the parent's state, it leads to the block's.
    pub fn to_post_state(&self) -> HashedPostState {
        // UNWRAP: it was written here, or decoded before.
        let Decoded { accounts, codes } = decode(&self.0).expect("a forward diff decodes");
        let mut state = post_state(&accounts);
        state.codes = codes.into_iter().map(|code| (keccak256(&code), code)).collect();
        state
    }
}

fn decode(mut bytes: &[u8]) -> Result<Decoded, MalformedForwardDiff> {
    let decoded = Decoded::decode(&mut bytes).map_err(|_| MalformedForwardDiff("not RLP"))?;
    if bytes.is_empty() { Ok(decoded) } else { Err(MalformedForwardDiff("trailing bytes")) }
}

/// The longest header.
const HEADER: usize = 9;
/// What most accounts take at most, and a slot.
const ACCOUNT: usize = 64;
const SLOT: usize = 68;

impl StateDiff {
    /// What has to be put to go on from the parent's state to the block's.
    pub fn forward(&self) -> ForwardDiff {
        let codes = list(self.codes.iter().map(|(_, code)| code.length()).sum());
        let length = codes.length_with_payload() + self.accounts.len() * ACCOUNT + self.slot_count() * SLOT;
        let mut out = Vec::with_capacity(2 * HEADER + length);
        // How long the accounts are is known behind them: their header and that of the whole end where they begin.
        out.resize(2 * HEADER, 0);
        for change in &self.accounts {
            encode_account(change, &mut out);
        }
        let accounts = list(out.len() - 2 * HEADER);
        codes.encode(&mut out);
        self.codes.iter().for_each(|(_, code)| code.encode(&mut out));
        let begin = put_before(accounts, 2 * HEADER, &mut out);
        let whole = list(out.len() - begin);
        let begin = put_before(whole, begin, &mut out);
        ForwardDiff(Bytes::from(out).slice(begin..))
    }
}

const fn list(payload_length: usize) -> Header {
    Header { list: true, payload_length }
}

/// Writes a header that ends at `end`; gives where it begins.
fn put_before(header: Header, end: usize, out: &mut [u8]) -> usize {
    let begin = end - header.length();
    header.encode(&mut &mut out[begin..end]);
    begin
}

fn encode_account(change: &AccountChange, out: &mut Vec<u8>) {
    let mut buffer = [0; Account::MAX_BYTES];
    let record = change.new.as_ref().map_or(&[][..], |account| account.write_bytes(&mut buffer));
    let slots = list(change.slots.iter().map(|slot| slot_header(slot).length_with_payload()).sum());
    list(change.hashed_address.length() + record.length() + slots.length_with_payload()).encode(out);
    change.hashed_address.encode(out);
    record.encode(out);
    slots.encode(out);
    for slot in &change.slots {
        slot_header(slot).encode(out);
        slot.hashed_slot.encode(out);
        slot.new.encode(out);
    }
}

fn slot_header(slot: &SlotChange) -> Header {
    list(slot.hashed_slot.length() + slot.new.length())
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{B256, U256};
    use proptest::{collection::vec, option, prelude::*};

    use super::*;
    use crate::diff::SlotValue;

    fn any_account() -> impl Strategy<Value = Account> {
        let hash = || any::<Option<[u8; 32]>>();
        (any::<u64>(), any::<[u64; 4]>(), 0..256_u32, hash(), hash()).prop_map(|(nonce, balance, shift, code, root)| {
            let plain = Account::default();
            Account {
                nonce: nonce >> (shift % 64),
                balance: U256::from_limbs(balance) >> shift,
                code_hash: code.map_or(plain.code_hash, B256::new),
                storage_root: root.map_or(plain.storage_root, B256::new),
            }
        })
    }

    fn any_slot() -> impl Strategy<Value = SlotChange> {
        (any::<[u8; 32]>(), any::<[u64; 4]>(), 0..=256_usize).prop_map(|(key, value, shift)| SlotChange {
            hashed_slot: key.into(),
            old: U256::from(7),
            new: U256::from_limbs(value).checked_shr(shift).unwrap_or_default(),
        })
    }

    fn any_diff() -> impl Strategy<Value = StateDiff> {
        let account = (any::<[u8; 32]>(), option::of(any_account()), vec(any_slot(), 0..9));
        let account = account.prop_map(|(key, new, mut slots)| {
            slots.sort_by_key(|slot| slot.hashed_slot);
            AccountChange { hashed_address: key.into(), old: None, new, slots }
        });
        let code = vec(any::<u8>(), 0..90).prop_map(|code| (keccak256(&code), Bytes::from(code)));
        (vec(account, 0..40), vec(code, 0..4)).prop_map(|(mut accounts, mut codes)| {
            accounts.sort_by_key(|change| change.hashed_address);
            codes.sort();
            codes.dedup();
            StateDiff { accounts, codes }
        })
    }

    /// The same through the derived encoder.
    fn derived(diff: &StateDiff) -> Vec<u8> {
        let accounts = diff.accounts.iter().map(|change| AccountValues {
            hashed_address: change.hashed_address,
            record: change.new.map_or_else(Bytes::new, |account| account.to_bytes().into()),
            slots: change
                .slots
                .iter()
                .map(|slot| SlotValue { hashed_slot: slot.hashed_slot, value: slot.new })
                .collect(),
        });
        let codes = diff.codes.iter().map(|(_, code)| code.clone());
        alloy_rlp::encode(Decoded { accounts: accounts.collect(), codes: codes.collect() })
    }

    proptest! {
        #[test]
        fn one_pass_writes_what_the_derived_encoder_writes(diff in any_diff()) {
            let forward = diff.forward();
            prop_assert_eq!(&forward.as_bytes()[..], derived(&diff));
            prop_assert_eq!(ForwardDiff::from_bytes(forward.as_bytes().clone()), Ok(forward.clone()));
            prop_assert_eq!(forward.to_post_state(), diff.to_post_state());
        }
    }

    #[test]
    fn keys_out_of_order_are_refused() {
        let change =
            |byte| AccountChange { hashed_address: B256::repeat_byte(byte), old: None, new: None, slots: Vec::new() };
        let mut codes: Vec<_> = [&b"one"[..], b"two"].map(|code| (keccak256(code), Bytes::from_static(code))).into();
        codes.sort();
        let sorted = StateDiff { accounts: vec![change(1), change(2)], codes };
        let accepted = |diff: &StateDiff| ForwardDiff::from_bytes(diff.forward().as_bytes().clone()).is_ok();
        assert!(accepted(&sorted));
        let mut unsorted = sorted.clone();
        unsorted.accounts.reverse();
        assert!(!accepted(&unsorted));
        let mut unsorted = sorted;
        unsorted.codes.reverse();
        assert!(!accepted(&unsorted));
    }
}
