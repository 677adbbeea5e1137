//! A branch in memory, and the bytes of its stored row.
//!
//! ```text
//! 1 byte     the number of extension nibbles (0..=63); 0x80 is added where an opaque mask follows
//! ceil(n/2)  the extension nibbles, two to a byte, the high half first; an odd last one is followed by a zero half
//! 2 bytes    state mask, big-endian: which of the 16 children are there; at least two are
//! 2 bytes    branch mask: which of them are branches, with rows of their own (the others are leaves)
//! [2 bytes]  opaque mask: which of them are not known to be the one or the other
//! ..         for each child in order, its reference as it stands in the branch's RLP: 0xa0 and the 32-byte hash, or
//!            the child's whole RLP where that is shorter than 32 bytes
//! ```
//!
//! A full branch without an extension takes 533 bytes.
//!
//! Of a partial trie ([`crate::witness`]) an extension may be known whose branch is not. Such a *blinded* branch has a
//! row of its own form: the number of extension nibbles with 0x40 added, the nibbles, and the branch's reference, which
//! is a hash.
//!
//! Invariants:
//! 1. A row has one encoding: [`Body::decode`] accepts what [`Body::encode`] writes and nothing else.
//! 2. Opaque children and blinded branches stand only in rows that a partial trie serves: stores never hold one,
//!    because a fold over a whole trie never meets one.

use alloy_primitives::Bytes;
use alloy_trie::{Nibbles, nodes::RlpNode};

/// The longest extension: a branch lies at a depth of at most 63 nibbles.
pub(crate) const MAX_EXTENSION: usize = 63;

const OPAQUE: u8 = 0x80;
const BLINDED: u8 = 0x40;
/// The first byte of a reference that is a hash.
const HASH_HEADER: u8 = 0xa0;
/// The first byte of a reference that is a node of `byte - 0xc0` bytes of payload.
const LIST_HEADER: u8 = 0xc0;
/// The payload of the longest node that is put into its parent.
const MAX_INLINE_PAYLOAD: u8 = 30;

/// What stands in one of a branch's sixteen places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildKind {
    /// Nothing.
    Empty,
    /// A leaf.
    Leaf,
    /// A branch, perhaps behind an extension; it has a row of its own.
    Branch,
    /// A leaf or a branch: the reader has to be asked.
    Opaque,
}

/// Why the bytes of a row are not a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedRow {
    /// The bytes end too early.
    #[error("the row ends too early")]
    Truncated,
    /// Bytes follow the last reference.
    #[error("the row has trailing bytes")]
    TrailingBytes,
    /// The extension is too long for the row's place, or its padding is not zero.
    #[error("the row's extension is malformed")]
    Extension,
    /// A blinded branch's row holds something else than a hash.
    #[error("the row of a blinded branch is malformed")]
    Blinded,
    /// The masks contradict each other, or name fewer than two children.
    #[error("the row's masks are malformed")]
    Masks,
    /// A child's reference is neither a hash nor a short node.
    #[error("the row's reference of child {0:x} is malformed")]
    Reference(u8),
}

/// A branch of 2 to 16 children (fewer only while a fold is at work on it).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Branch {
    state_mask: u16,
    branch_mask: u16,
    opaque_mask: u16,
    /// Empty where there is no child.
    references: [RlpNode; 16],
}

impl Branch {
    pub(crate) const fn kind(&self, nibble: u8) -> ChildKind {
        let bit = 1 << nibble;
        if self.state_mask & bit == 0 {
            ChildKind::Empty
        } else if self.branch_mask & bit != 0 {
            ChildKind::Branch
        } else if self.opaque_mask & bit != 0 {
            ChildKind::Opaque
        } else {
            ChildKind::Leaf
        }
    }

    pub(crate) const fn len(&self) -> u32 {
        self.state_mask.count_ones()
    }

    /// The lowest nibble that has a child.
    pub(crate) fn first(&self) -> Option<u8> {
        (self.state_mask != 0).then(|| self.state_mask.trailing_zeros() as u8)
    }

    pub(crate) fn set(&mut self, nibble: u8, kind: ChildKind, reference: RlpNode) {
        debug_assert!(kind != ChildKind::Empty, "a child is removed with `clear`");
        self.clear(nibble);
        let bit = 1 << nibble;
        self.state_mask |= bit;
        match kind {
            ChildKind::Branch => self.branch_mask |= bit,
            ChildKind::Opaque => self.opaque_mask |= bit,
            ChildKind::Leaf | ChildKind::Empty => {}
        }
        self.references[usize::from(nibble)] = reference;
    }

    pub(crate) fn clear(&mut self, nibble: u8) {
        let keep = !(1 << nibble);
        self.state_mask &= keep;
        self.branch_mask &= keep;
        self.opaque_mask &= keep;
        self.references[usize::from(nibble)] = RlpNode::default();
    }

    /// One reference for each nibble, empty where there is no child.
    pub(crate) const fn references(&self) -> &[RlpNode; 16] {
        &self.references
    }

    /// The row of this branch behind `extension`, which has at most [`MAX_EXTENSION`] nibbles.
    pub(crate) fn encode(&self, extension: &Nibbles) -> Bytes {
        debug_assert!(extension.len() <= MAX_EXTENSION && self.len() >= 2);
        let packed = extension.pack();
        let references: usize = self.references.iter().map(|reference| reference.len()).sum();
        let mut out = Vec::with_capacity(7 + packed.len() + references);
        let opaque = if self.opaque_mask == 0 { 0 } else { OPAQUE };
        out.push(extension.len() as u8 | opaque);
        out.extend_from_slice(&packed);
        out.extend_from_slice(&self.state_mask.to_be_bytes());
        out.extend_from_slice(&self.branch_mask.to_be_bytes());
        if self.opaque_mask != 0 {
            out.extend_from_slice(&self.opaque_mask.to_be_bytes());
        }
        for reference in &self.references {
            out.extend_from_slice(reference);
        }
        out.into()
    }

    fn decode(row: &mut Cursor<'_>, has_opaque: bool) -> Result<Self, MalformedRow> {
        let state_mask = u16::from_be_bytes(row.array()?);
        let branch_mask = u16::from_be_bytes(row.array()?);
        let opaque_mask = if has_opaque { u16::from_be_bytes(row.array()?) } else { 0 };
        let masks_fit = state_mask.count_ones() >= 2
            && branch_mask & !state_mask == 0
            && opaque_mask & !(state_mask & !branch_mask) == 0
            && has_opaque == (opaque_mask != 0);
        if !masks_fit {
            return Err(MalformedRow::Masks);
        }
        let mut branch = Self { state_mask, branch_mask, opaque_mask, ..Self::default() };
        for nibble in (0..16u8).filter(|nibble| state_mask & (1 << nibble) != 0) {
            branch.references[usize::from(nibble)] = decode_reference(row, nibble)?;
        }
        Ok(branch)
    }
}

/// What is known of a branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    /// Its children.
    Known(Box<Branch>),
    /// Its reference alone, which is a hash.
    Blinded(RlpNode),
}

impl Body {
    /// The row of this branch behind `extension`, which has at most [`MAX_EXTENSION`] nibbles.
    pub(crate) fn encode(&self, extension: &Nibbles) -> Bytes {
        match self {
            Self::Known(branch) => branch.encode(extension),
            Self::Blinded(reference) => {
                let head = [extension.len() as u8 | BLINDED];
                [&head[..], &extension.pack(), reference].concat().into()
            }
        }
    }

    /// Decodes the row filed under a slot path of `depth` nibbles: the extension and the branch behind it.
    pub(crate) fn decode(row: &[u8], depth: usize) -> Result<(Nibbles, Self), MalformedRow> {
        let mut row = Cursor(row);
        let [head] = row.array()?;
        let extension = decode_extension(&mut row, usize::from(head & !(OPAQUE | BLINDED)), depth)?;
        let body = match (head & BLINDED != 0, head & OPAQUE != 0) {
            (false, has_opaque) => Self::Known(Box::new(Branch::decode(&mut row, has_opaque)?)),
            (true, false) if row.0.first() == Some(&HASH_HEADER) => Self::Blinded(decode_reference(&mut row, 0)?),
            (true, _) => return Err(MalformedRow::Blinded),
        };
        if row.0.is_empty() { Ok((extension, body)) } else { Err(MalformedRow::TrailingBytes) }
    }
}

fn decode_extension(row: &mut Cursor<'_>, length: usize, depth: usize) -> Result<Nibbles, MalformedRow> {
    if length + depth > MAX_EXTENSION {
        return Err(MalformedRow::Extension);
    }
    let mut extension = Nibbles::unpack(row.take(length.div_ceil(2))?);
    if extension.len() > length {
        if extension.last() != Some(0) {
            return Err(MalformedRow::Extension);
        }
        extension.truncate(length);
    }
    Ok(extension)
}

fn decode_reference(row: &mut Cursor<'_>, nibble: u8) -> Result<RlpNode, MalformedRow> {
    let &head = row.0.first().ok_or(MalformedRow::Truncated)?;
    let length = match head {
        HASH_HEADER => 33,
        // No node has an empty payload.
        head if (LIST_HEADER + 1..=LIST_HEADER + MAX_INLINE_PAYLOAD).contains(&head) => {
            usize::from(head - LIST_HEADER) + 1
        }
        _ => return Err(MalformedRow::Reference(nibble)),
    };
    RlpNode::from_raw(row.take(length)?).ok_or(MalformedRow::Reference(nibble))
}

/// The rest of the bytes.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], MalformedRow> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(MalformedRow::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MalformedRow> {
        let (head, rest) = self.0.split_first_chunk().ok_or(MalformedRow::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::B256;

    use super::*;

    fn hash(byte: u8) -> RlpNode {
        RlpNode::word_rlp(&B256::repeat_byte(byte))
    }

    fn samples() -> Vec<(Nibbles, Body)> {
        let mut two = Branch::default();
        two.set(0, ChildKind::Leaf, hash(1));
        two.set(15, ChildKind::Branch, hash(2));
        let mut opaque = two.clone();
        opaque.set(3, ChildKind::Opaque, hash(3));
        let mut inlined = two.clone();
        inlined.set(7, ChildKind::Leaf, RlpNode::from_raw(&[0xc2, 0x20, 0x01]).unwrap());
        let mut full = Branch::default();
        (0..16).for_each(|nibble| full.set(nibble, ChildKind::Branch, hash(nibble)));
        let known = |branch| Body::Known(Box::new(branch));
        vec![
            (Nibbles::new(), known(two)),
            (Nibbles::from_nibbles([1, 2, 3]), known(opaque)),
            (Nibbles::from_nibbles([15; 60]), known(inlined)),
            (Nibbles::from_nibbles([1, 2, 3]), Body::Blinded(hash(9))),
            (Nibbles::from_nibbles([0, 0]), known(full)),
        ]
    }

    #[test]
    fn rows_round_trip_and_every_cut_is_refused() {
        for (extension, branch) in samples() {
            let row = branch.encode(&extension);
            assert_eq!(Body::decode(&row, 3), Ok((extension, branch)));
            for cut in 0..row.len() {
                assert!(Body::decode(&row[..cut], 3).is_err(), "cut at {cut}");
            }
            let longer = [&row[..], &[0]].concat();
            assert_eq!(Body::decode(&longer, 3), Err(MalformedRow::TrailingBytes));
        }
    }

    #[test]
    fn a_full_row_takes_533_bytes() {
        let (_, full) = samples().pop().unwrap();
        assert_eq!(full.encode(&Nibbles::new()).len(), 533);
    }

    #[test]
    fn any_changed_byte_is_refused_or_gives_another_branch() {
        for (extension, branch) in samples() {
            let row = branch.encode(&extension);
            for at in 0..row.len() {
                for flip in 1..=255u8 {
                    let mut changed = row.to_vec();
                    changed[at] ^= flip;
                    if let Ok((extension, branch)) = Body::decode(&changed, 3) {
                        assert_eq!(branch.encode(&extension), changed, "two encodings of one row");
                    }
                }
            }
        }
    }

    #[test]
    fn extensions_that_reach_below_the_last_branch_are_refused() {
        let (_, branch) = samples().swap_remove(0);
        let row = branch.encode(&Nibbles::from_nibbles([1; 10]));
        assert!(Body::decode(&row, 53).is_ok());
        assert_eq!(Body::decode(&row, 54), Err(MalformedRow::Extension));
    }
}
