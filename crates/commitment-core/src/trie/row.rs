//! The bytes of a branch's stored row.
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
//! References lie in a row as they lie in the branch's RLP, one behind the other. So a fold never takes a row apart: it
//! keeps the bytes, knows where the references begin, and copies those that stay.
//!
//! Invariants:
//! 1. A row has one encoding: [`RowHead::decode`] accepts what [`Branch::encode`] and [`encode_blinded`] write and
//!    nothing else.
//! 2. Opaque children and blinded branches stand only in rows that a partial trie serves: stores never hold one,
//!    because a fold over a whole trie never meets one.

use alloy_primitives::Bytes;
use alloy_trie::{Nibbles, nodes::RlpNode};

/// The longest extension: a branch lies at a depth of at most 63 nibbles.
pub(crate) const MAX_EXTENSION: usize = 63;
/// The length of a reference that is a hash. No other one is so long.
pub(crate) const HASH_REFERENCE: usize = 33;

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

/// Which children a branch has, and what is known of them. No child is in two of the lower masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Masks {
    /// Which children are there.
    pub(crate) state: u16,
    /// Which of them are branches.
    pub(crate) branch: u16,
    /// Which of them may be leaves or branches.
    pub(crate) opaque: u16,
}

impl Masks {
    pub(crate) const fn kind(self, nibble: u8) -> ChildKind {
        let bit = 1 << nibble;
        if self.state & bit == 0 {
            ChildKind::Empty
        } else if self.branch & bit != 0 {
            ChildKind::Branch
        } else if self.opaque & bit != 0 {
            ChildKind::Opaque
        } else {
            ChildKind::Leaf
        }
    }

    pub(crate) const fn len(self) -> usize {
        self.state.count_ones() as usize
    }

    /// The lowest nibble that has a child.
    pub(crate) const fn first(self) -> Option<u8> {
        if self.state == 0 { None } else { Some(self.state.trailing_zeros() as u8) }
    }

    pub(crate) const fn set(&mut self, nibble: u8, kind: ChildKind) {
        let bit = 1 << nibble;
        self.clear(bit);
        match kind {
            ChildKind::Empty => return,
            ChildKind::Leaf => {}
            ChildKind::Branch => self.branch |= bit,
            ChildKind::Opaque => self.opaque |= bit,
        }
        self.state |= bit;
    }

    /// Takes away the children of which `bits` has the bit.
    pub(crate) const fn clear(&mut self, bits: u16) {
        self.state &= !bits;
        self.branch &= !bits;
        self.opaque &= !bits;
    }
}

/// The number of nibbles of a valid row's extension.
pub(crate) fn extension_length(row: &[u8]) -> usize {
    usize::from(row[0] & !(OPAQUE | BLINDED))
}

/// The extension of a valid row.
pub(crate) fn extension_of(row: &[u8]) -> Nibbles {
    let length = extension_length(row);
    if length == 0 { Nibbles::new() } else { Nibbles::unpack(&row[1..=length.div_ceil(2)]).slice(..length) }
}

/// The opaque mask of a valid row that has one.
pub(crate) fn opaque_mask(row: &[u8]) -> u16 {
    let at = 5 + extension_length(row).div_ceil(2);
    u16::from_be_bytes([row[at], row[at + 1]])
}

/// The length of a reference that begins with `head`.
pub(crate) const fn reference_length(head: u8) -> usize {
    if head == HASH_HEADER { HASH_REFERENCE } else { (head - LIST_HEADER) as usize + 1 }
}

/// What a row says before its references.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowHead {
    pub(crate) extension: Nibbles,
    pub(crate) masks: Masks,
    /// Where in the row the references begin; of a blinded branch, the only one: its own.
    pub(crate) references_at: u8,
    /// Whether only the branch's reference is known.
    pub(crate) blinded: bool,
}

impl RowHead {
    /// Checks the row filed under a slot path of `depth` nibbles, to its last byte.
    pub(crate) fn decode(row: &[u8], depth: usize) -> Result<Self, MalformedRow> {
        let length = row.len();
        let mut row = Cursor(row);
        let [head] = row.array()?;
        let extension = decode_extension(&mut row, usize::from(head & !(OPAQUE | BLINDED)), depth)?;
        let blinded = head & BLINDED != 0;
        let masks = if blinded { Masks::default() } else { decode_masks(&mut row, head & OPAQUE != 0)? };
        let references_at = (length - row.0.len()) as u8;
        if blinded {
            if head & OPAQUE != 0 || row.0.first() != Some(&HASH_HEADER) {
                return Err(MalformedRow::Blinded);
            }
            skip_reference(&mut row, 0)?;
        }
        let head = Self { extension, masks, references_at, blinded };
        if are_hashes(row.0, masks) {
            return Ok(head);
        }
        let mut rest = masks.state;
        while rest != 0 {
            skip_reference(&mut row, rest.trailing_zeros() as u8)?;
            rest &= rest - 1;
        }
        if row.0.is_empty() { Ok(head) } else { Err(MalformedRow::TrailingBytes) }
    }
}

/// Whether these are just the references that the masks name, and all of them hashes. Their places are known then, so
/// that the processor need not wait for one to look at the next: a row comes from far away in memory.
fn are_hashes(references: &[u8], masks: Masks) -> bool {
    references.len() == HASH_REFERENCE * masks.len()
        && references.iter().step_by(HASH_REFERENCE).all(|head| *head == HASH_HEADER)
}

/// Writes all of a row that stands before the references. The extension has at most [`MAX_EXTENSION`] nibbles, and
/// `out` is [`head_length`] bytes long or longer.
pub(crate) fn write_head(out: &mut [u8], extension: &Nibbles, masks: Masks) {
    debug_assert!(extension.len() <= MAX_EXTENSION && masks.len() >= 2);
    let opaque = if masks.opaque == 0 { 0 } else { OPAQUE };
    out[0] = extension.len() as u8 | opaque;
    let at = 1 + write_nibbles(&mut out[1..], extension);
    out[at..at + 2].copy_from_slice(&masks.state.to_be_bytes());
    out[at + 2..at + 4].copy_from_slice(&masks.branch.to_be_bytes());
    if masks.opaque != 0 {
        out[at + 4..at + 6].copy_from_slice(&masks.opaque.to_be_bytes());
    }
}

/// Writes nibbles two to a byte, and gives the number of bytes.
fn write_nibbles(out: &mut [u8], nibbles: &Nibbles) -> usize {
    if nibbles.is_empty() {
        return 0;
    }
    let packed = nibbles.pack();
    out[..packed.len()].copy_from_slice(&packed);
    packed.len()
}

/// The length of what [`write_head`] writes.
pub(crate) const fn head_length(extension: usize, masks: Masks) -> usize {
    5 + extension.div_ceil(2) + if masks.opaque == 0 { 0 } else { 2 }
}

/// Where the reference begins in a row that [`write_blinded`] writes.
pub(crate) const fn blinded_head_length(extension: usize) -> usize {
    1 + extension.div_ceil(2)
}

/// Writes the row of a branch behind `extension`, of which the reference alone is known: a hash.
pub(crate) fn write_blinded(out: &mut [u8], extension: &Nibbles, reference: &[u8]) {
    out[0] = extension.len() as u8 | BLINDED;
    let at = 1 + write_nibbles(&mut out[1..], extension);
    out[at..at + reference.len()].copy_from_slice(reference);
}

/// The same as bytes of its own.
pub(crate) fn encode_blinded(extension: &Nibbles, reference: &[u8]) -> Bytes {
    let mut out = vec![0; blinded_head_length(extension.len()) + reference.len()];
    write_blinded(&mut out, extension, reference);
    out.into()
}

/// A branch put together from nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Branch {
    masks: Masks,
    /// Empty where there is no child.
    references: [RlpNode; 16],
}

impl Branch {
    pub(crate) fn set(&mut self, nibble: u8, kind: ChildKind, reference: RlpNode) {
        self.masks.set(nibble, kind);
        self.references[usize::from(nibble)] = reference;
    }

    /// The row of this branch, which has two children or more, behind `extension`.
    pub(crate) fn encode(&self, extension: &Nibbles) -> Bytes {
        let mut out = vec![0; head_length(extension.len(), self.masks)];
        write_head(&mut out, extension, self.masks);
        for reference in &self.references {
            out.extend_from_slice(reference);
        }
        out.into()
    }
}

fn decode_extension(row: &mut Cursor<'_>, length: usize, depth: usize) -> Result<Nibbles, MalformedRow> {
    if length + depth > MAX_EXTENSION {
        return Err(MalformedRow::Extension);
    }
    if length == 0 {
        return Ok(Nibbles::new());
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

fn decode_masks(row: &mut Cursor<'_>, has_opaque: bool) -> Result<Masks, MalformedRow> {
    let state = u16::from_be_bytes(row.array()?);
    let branch = u16::from_be_bytes(row.array()?);
    let opaque = if has_opaque { u16::from_be_bytes(row.array()?) } else { 0 };
    let masks_fit = state.count_ones() >= 2
        && branch & !state == 0
        && opaque & !(state & !branch) == 0
        && has_opaque == (opaque != 0);
    if masks_fit { Ok(Masks { state, branch, opaque }) } else { Err(MalformedRow::Masks) }
}

fn skip_reference(row: &mut Cursor<'_>, nibble: u8) -> Result<(), MalformedRow> {
    let &head = row.0.first().ok_or(MalformedRow::Truncated)?;
    // No node has an empty payload.
    if head != HASH_HEADER && !(LIST_HEADER + 1..=LIST_HEADER + MAX_INLINE_PAYLOAD).contains(&head) {
        return Err(MalformedRow::Reference(nibble));
    }
    row.take(reference_length(head)).map(drop)
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

    /// What a row says, taken apart.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Body {
        Known(Box<Branch>),
        Blinded(RlpNode),
    }

    impl Body {
        fn encode(&self, extension: &Nibbles) -> Bytes {
            match self {
                Self::Known(branch) => branch.encode(extension),
                Self::Blinded(reference) => encode_blinded(extension, reference),
            }
        }

        fn decode(row: &[u8], depth: usize) -> Result<(Nibbles, Self), MalformedRow> {
            let RowHead { extension, masks, references_at, blinded } = RowHead::decode(row, depth)?;
            let mut rest = &row[usize::from(references_at)..];
            let mut next = || {
                let (reference, others) = rest.split_at(reference_length(rest[0]));
                rest = others;
                RlpNode::from_raw(reference).unwrap()
            };
            if blinded {
                return Ok((extension, Self::Blinded(next())));
            }
            let mut branch = Branch::default();
            for nibble in (0..16).filter(|nibble| masks.kind(*nibble) != ChildKind::Empty) {
                branch.set(nibble, masks.kind(nibble), next());
            }
            assert_eq!(branch.masks, masks);
            Ok((extension, Self::Known(Box::new(branch))))
        }
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
                assert!(RowHead::decode(&row[..cut], 3).is_err(), "cut at {cut}");
            }
            let longer = [&row[..], &[0]].concat();
            assert_eq!(RowHead::decode(&longer, 3), Err(MalformedRow::TrailingBytes));
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
        assert!(RowHead::decode(&row, 53).is_ok());
        assert_eq!(RowHead::decode(&row, 54), Err(MalformedRow::Extension));
    }
}
