//! Redo records: what is needed to compute a judged block's state again without executing it, and the log that keeps
//! them.
//!
//! A store's commit takes hundreds of milliseconds and carries many blocks. A redo record is small and goes to a log of
//! its own, where it is durable within milliseconds: from then on the block is *acknowledged*, and survives whatever
//! happens before the store has it. After a kill the records of blocks that the store does not have are folded again, each
//! block's root held to its record.
//!
//! Invariants:
//! 1. [`Record::write_bytes`] and [`Record::from_bytes`] are inverses: each record has one encoding, and decoding
//!    refuses every other with a typed error, whatever the bytes are.
//! 2. A block that was just folded from its access list is recorded by the list; every other one, and one that a store is
//!    about to forget, by its leaves, never by a list: see [`Redo`].

use alloy_primitives::{B256, Bytes};

use crate::{
    block::{BlockHash, BlockNumHash, BlockNumber, StateAnchor},
    forward::{ForwardDiff, MalformedForwardDiff},
};

/// The version of the records' encoding: their first byte.
pub const RECORD_FORMAT: u8 = 1;

/// What a block's state is computed from again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redo {
    /// The raw access list. It was confirmed by execution, and holds everything: code, indices 0 and n + 1, zeroed slots.
    Bal(Bytes),
    /// The changed leaves, of a block that had no list, or whose list does not say all (before Cancun) or was not
    /// confirmed, or of which none of that is known any more.
    Diff {
        /// The leaves and the new code.
        diff: ForwardDiff,
        /// The raw list for the sidecar, if the block has one.
        bal: Option<Bytes>,
    },
}

/// The record of a block that was judged valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockRecord {
    /// The parent's hash; its number is one less than the block's.
    pub parent_hash: BlockHash,
    /// The block and the root of the state after it.
    pub anchor: StateAnchor,
    /// What leads there from the parent's state.
    pub redo: Redo,
}

impl BlockRecord {
    /// The name of the parent, or `None` for a genesis, which has none and is never recorded.
    pub fn parent(&self) -> Option<BlockNumHash> {
        let number = self.anchor.block.number.checked_sub(1)?;
        Some(BlockNumHash::new(number, self.parent_hash))
    }
}

/// One entry of a record log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A block was judged valid.
    Block(BlockRecord),
    /// A block became the canonical head.
    Canonical(BlockNumHash),
}

const KIND_BAL: u8 = 1;
const KIND_DIFF: u8 = 2;
const KIND_CANONICAL: u8 = 3;

/// Bytes that are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedRecord {
    /// Another version of the software wrote it.
    #[error("the record has format version {got}, this software reads {expected}")]
    Version {
        /// The record's version.
        got: u8,
        /// [`RECORD_FORMAT`].
        expected: u8,
    },
    /// A kind of record that this version does not know.
    #[error("unknown kind of record: {0}")]
    Kind(u8),
    /// It ends too early.
    #[error("the record ends in its {0}")]
    Cut(&'static str),
    /// Bytes are left over.
    #[error("the record has {0} bytes too many")]
    Trailing(usize),
    /// The flag of the list is neither 0 nor 1.
    #[error("the list's flag is {0}")]
    Flag(u8),
    /// The leaves are malformed.
    #[error(transparent)]
    Diff(#[from] MalformedForwardDiff),
}

impl Record {
    /// The block that the record is about.
    pub const fn block(&self) -> BlockNumHash {
        match self {
            Self::Block(record) => record.anchor.block,
            Self::Canonical(block) => *block,
        }
    }

    /// Appends the encoding: version, kind, number and hash; then, of a block, its parent's hash, its state root, and
    /// the raw list, or a flag, the list's length in eight bytes and the list where the flag is 1, and the leaves
    /// ([`ForwardDiff::as_bytes`]). Numbers are big-endian.
    pub fn write_bytes(&self, out: &mut Vec<u8>) {
        let (kind, block) = match self {
            Self::Block(BlockRecord { redo: Redo::Bal(_), anchor, .. }) => (KIND_BAL, anchor.block),
            Self::Block(BlockRecord { redo: Redo::Diff { .. }, anchor, .. }) => (KIND_DIFF, anchor.block),
            Self::Canonical(block) => (KIND_CANONICAL, *block),
        };
        out.extend([RECORD_FORMAT, kind]);
        out.extend(block.number.to_be_bytes());
        out.extend(block.hash);
        let Self::Block(BlockRecord { parent_hash, anchor, redo }) = self else { return };
        out.extend(parent_hash);
        out.extend(anchor.state_root);
        match redo {
            Redo::Bal(raw) => out.extend_from_slice(raw),
            Redo::Diff { diff, bal } => {
                out.push(bal.is_some().into());
                if let Some(raw) = bal {
                    out.extend((raw.len() as u64).to_be_bytes());
                    out.extend_from_slice(raw);
                }
                out.extend_from_slice(diff.as_bytes());
            }
        }
    }

    /// Decodes what [`Self::write_bytes`] wrote.
    ///
    /// # Errors
    /// If the bytes are anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MalformedRecord> {
        let mut input = Input(bytes);
        let version = input.byte("version")?;
        if version != RECORD_FORMAT {
            return Err(MalformedRecord::Version { got: version, expected: RECORD_FORMAT });
        }
        let kind = input.byte("kind")?;
        if !matches!(kind, KIND_BAL | KIND_DIFF | KIND_CANONICAL) {
            return Err(MalformedRecord::Kind(kind));
        }
        let block = BlockNumHash::new(input.number("block number")?, input.hash("block hash")?);
        if kind == KIND_CANONICAL {
            return match input.0.len() {
                0 => Ok(Self::Canonical(block)),
                more => Err(MalformedRecord::Trailing(more)),
            };
        }
        let parent_hash = input.hash("parent hash")?;
        let anchor = StateAnchor { block, state_root: input.hash("state root")? };
        let redo = match kind {
            KIND_BAL => Redo::Bal(Bytes::copy_from_slice(input.0)),
            _ => Redo::Diff { bal: input.bal()?, diff: ForwardDiff::from_bytes(Bytes::copy_from_slice(input.0))? },
        };
        Ok(Self::Block(BlockRecord { parent_hash, anchor, redo }))
    }
}

/// What is left to decode.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], MalformedRecord> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(MalformedRecord::Cut(what))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], MalformedRecord> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(MalformedRecord::Cut(what))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, MalformedRecord> {
        self.array(what).map(u8::from_be_bytes)
    }

    fn number(&mut self, what: &'static str) -> Result<BlockNumber, MalformedRecord> {
        self.array(what).map(u64::from_be_bytes)
    }

    fn hash(&mut self, what: &'static str) -> Result<B256, MalformedRecord> {
        self.array(what).map(B256::new)
    }

    fn bal(&mut self) -> Result<Option<Bytes>, MalformedRecord> {
        match self.byte("list's flag")? {
            0 => Ok(None),
            1 => {
                // A length that no memory holds is beyond the end as well.
                let length = usize::try_from(self.number("list's length")?).unwrap_or(usize::MAX);
                Ok(Some(Bytes::copy_from_slice(self.take(length, "list")?)))
            }
            flag => Err(MalformedRecord::Flag(flag)),
        }
    }
}

/// A log of redo records, apart from the store: a record behind a running commit would wait for it.
///
/// # The protocol
///
/// * **Order.** Records are replayed in the order in which they were appended. Whoever appends a block has appended its
///   parent before it, unless that is in the store.
/// * **Durability.** When [`Self::sync`] returns `Ok`, every record appended before survives a kill of the process, and
///   whatever else the implementation promises of its medium. A record that was appended and not synced may be lost; it
///   is lost as a whole, with all that were appended after it.
/// * **Atomicity.** A record is replayed as it was appended, or not at all. Damage to a record that was durable is an
///   error when the log is opened or replayed: it is never passed over.
/// * **Failure.** After an `Err` of [`Self::append`] or [`Self::sync`], what is durable is unknown until the log is opened
///   again, and every later call of the two fails.
/// * **Threads.** A log has one owner, who may be any thread.
pub trait RecordLog: Send + 'static {
    /// Why a log fails.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Appends a record, without making it durable.
    ///
    /// # Errors
    /// If the medium fails, or the record is too large.
    fn append(&mut self, record: &Record) -> Result<(), Self::Error>;

    /// Makes every record appended so far durable.
    ///
    /// # Errors
    /// If the medium fails.
    fn sync(&mut self) -> Result<(), Self::Error>;

    /// Gives every record of the log, oldest first, those that are not durable yet included.
    ///
    /// # Errors
    /// If the medium fails, or what it holds is damaged.
    fn replay(&mut self, visit: &mut dyn FnMut(Record)) -> Result<(), Self::Error>;

    /// Lets go of records about blocks up to this height, which nobody will ask for again. Some of them, or all, may be
    /// kept; those above it are.
    ///
    /// # Errors
    /// If the medium fails. No record above the height is lost.
    fn prune(&mut self, up_to: BlockNumber) -> Result<(), Self::Error>;
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{U256, keccak256};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        account::Account,
        diff::{AccountChange, SlotChange, StateDiff},
    };

    fn diff() -> StateDiff {
        let slots = vec![SlotChange { hashed_slot: B256::repeat_byte(3), old: U256::from(1), new: U256::ZERO }];
        let account = Account { nonce: 3, balance: U256::from(1) << 200, ..Account::default() };
        let change =
            |byte, old, new| AccountChange { hashed_address: B256::repeat_byte(byte), old, new, slots: slots.clone() };
        let mut codes: Vec<_> =
            [&b"one"[..], b"two", b"three"].map(|code| (keccak256(code), Bytes::from_static(code))).into();
        codes.sort();
        let accounts = vec![
            change(1, None, Some(account)),
            change(2, Some(account), None),
            change(3, Some(account), Some(account)),
        ];
        StateDiff { accounts, codes }
    }

    fn records() -> Vec<Record> {
        let block = BlockNumHash::new(7, B256::repeat_byte(7));
        let record = |redo| {
            let anchor = StateAnchor { block, state_root: B256::repeat_byte(9) };
            Record::Block(BlockRecord { parent_hash: B256::repeat_byte(6), anchor, redo })
        };
        let bal = Bytes::from_static(b"a list");
        vec![
            record(Redo::Bal(bal.clone())),
            record(Redo::Bal(Bytes::new())),
            record(Redo::Diff { diff: diff().forward(), bal: None }),
            record(Redo::Diff { diff: diff().forward(), bal: Some(bal) }),
            record(Redo::Diff { diff: StateDiff::default().forward(), bal: Some(Bytes::new()) }),
            Record::Canonical(block),
        ]
    }

    fn bytes(record: &Record) -> Vec<u8> {
        let mut out = Vec::new();
        record.write_bytes(&mut out);
        out
    }

    #[test]
    fn records_round_trip_and_no_shorter_bytes_are_one_of_them() {
        for record in records() {
            let whole = bytes(&record);
            assert_eq!(Record::from_bytes(&whole), Ok(record.clone()));
            for cut in 0..whole.len() {
                // A list goes on to the end: a shorter one is another list.
                let decoded = Record::from_bytes(&whole[..cut]);
                let of_a_list = matches!(&record, Record::Block(BlockRecord { redo: Redo::Bal(_), .. }));
                assert!(decoded.is_err() || (of_a_list && decoded != Ok(record.clone())), "cut at {cut}");
            }
        }
    }

    #[test]
    fn malformed_records_say_what_is_wrong() {
        let whole = bytes(&records()[3]);
        let with = |at: usize, byte| {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            Record::from_bytes(&bytes)
        };
        assert_eq!(with(0, 2), Err(MalformedRecord::Version { got: 2, expected: 1 }));
        assert_eq!(with(1, 9), Err(MalformedRecord::Kind(9)));
        assert_eq!(with(106, 2), Err(MalformedRecord::Flag(2)));
        assert_eq!(with(107, 0xff), Err(MalformedRecord::Cut("list")));
        let trailing = [bytes(&records()[5]), vec![0; 3]].concat();
        assert_eq!(Record::from_bytes(&trailing), Err(MalformedRecord::Trailing(3)));
        let trailing = [whole, vec![0]].concat();
        assert!(matches!(Record::from_bytes(&trailing), Err(MalformedRecord::Diff(_))));
    }

    proptest! {
        /// Whatever the bytes are: an error, or a record that has exactly these bytes.
        #[test]
        fn any_bytes_are_refused_or_canonical(
            which in 0..6_usize,
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            noise in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut mutated = bytes(&records()[which]);
            for (at, byte) in flips {
                let at = at.index(mutated.len());
                mutated[at] = byte;
            }
            for candidate in [&mutated, &noise] {
                if let Ok(record) = Record::from_bytes(candidate) {
                    prop_assert_eq!(&bytes(&record), candidate);
                }
            }
        }
    }
}
