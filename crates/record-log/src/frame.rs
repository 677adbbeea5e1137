//! The bytes of segments: a header, then frames, then zeros up to the file's end.
//!
//! ```text
//!  segment: magic 8 | version 4 | zero 4 | number 8 | first sequence 8 | seed 8 | checksum 8
//!  frame:   magic 4 | length 4 | sequence 8 | durable 8 | payload's checksum 8 | header's checksum 8 | payload | zeros
//! ```
//!
//! All numbers are big-endian; a frame begins at a multiple of eight bytes. The checksums are XXH3 with 64 bits: fast
//! without special instructions. They are seeded with a number drawn for the segment: payloads come from the network, and
//! nobody there can make one that holds something that would pass for a frame.
//!
//! Invariants:
//! 1. `sequence` counts the records of the log's whole life, one by one.
//! 2. `durable` is how many of them were durable when the frame was written. So a good frame proves that every frame with
//!    a smaller number than its `durable` once was whole on the medium. What it does not prove is torn, not damaged.
//! 3. A header of a frame is checked before its length is believed: finding frames in arbitrary bytes takes time linear
//!    in their number.

use twox_hash::XxHash3_64;

/// The version of the segments' format.
pub const FORMAT_VERSION: u32 = 1;

const SEGMENT_MAGIC: [u8; 8] = *b"foldredo";
const FRAME_MAGIC: [u8; 4] = *b"redo";

/// The bytes of a segment's header.
pub(crate) const SEGMENT_HEADER: usize = 48;
/// The bytes of a frame before its payload.
pub(crate) const FRAME_HEADER: usize = 40;
/// Frames begin at multiples of this.
pub(crate) const ALIGNMENT: usize = 8;
/// The longest payload.
pub(crate) const MAX_PAYLOAD: usize = 1 << 30;

const _: () = assert!(SEGMENT_HEADER.is_multiple_of(ALIGNMENT) && FRAME_HEADER.is_multiple_of(ALIGNMENT));
const _: () = assert!(MAX_PAYLOAD <= u32::MAX as usize);

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Segments are numbered one by one; the file is named after it.
    pub(crate) number: u64,
    /// The sequence of the first record.
    pub(crate) first_sequence: u64,
    /// What the frames' checksums are seeded with.
    pub(crate) seed: u64,
}

/// What the first bytes of a file are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HeaderFound {
    Good(SegmentHeader),
    OtherVersion(u32),
    Bad,
}

impl SegmentHeader {
    pub(crate) fn to_bytes(self) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_be_bytes());
        for (at, number) in [(16, self.number), (24, self.first_sequence), (32, self.seed)] {
            bytes[at..at + 8].copy_from_slice(&number.to_be_bytes());
        }
        let checksum = XxHash3_64::oneshot(&bytes[..40]);
        bytes[40..].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    pub(crate) fn find(bytes: &[u8]) -> HeaderFound {
        let Some(version) = bytes.strip_prefix(&SEGMENT_MAGIC).and_then(|rest| rest.first_chunk::<4>()) else {
            return HeaderFound::Bad;
        };
        let version = u32::from_be_bytes(*version);
        // Zero is what a torn header has there.
        if version != FORMAT_VERSION && version != 0 {
            return HeaderFound::OtherVersion(version);
        }
        let (Some(number), Some(first_sequence), Some(seed)) =
            (number_at(bytes, 16), number_at(bytes, 24), number_at(bytes, 32))
        else {
            return HeaderFound::Bad;
        };
        let header = Self { number, first_sequence, seed };
        if bytes.get(..SEGMENT_HEADER) == Some(&header.to_bytes()) {
            HeaderFound::Good(header)
        } else {
            HeaderFound::Bad
        }
    }
}

fn number_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// How many bytes a frame takes, padding included.
pub(crate) const fn frame_bytes(payload: usize) -> usize {
    (FRAME_HEADER + payload).next_multiple_of(ALIGNMENT)
}

/// Makes a frame of what stands behind `begin`: room for a header, and a payload no longer than [`MAX_PAYLOAD`], which
/// is summed up where it lies.
pub(crate) fn close_frame(out: &mut Vec<u8>, begin: usize, seed: u64, sequence: u64, durable: u64) {
    let (header, payload) = out[begin..].split_at_mut(FRAME_HEADER);
    debug_assert!(payload.len() <= MAX_PAYLOAD);
    header[..4].copy_from_slice(&FRAME_MAGIC);
    header[4..8].copy_from_slice(&(payload.len() as u32).to_be_bytes());
    let of_payload = XxHash3_64::oneshot_with_seed(seed, payload);
    for (at, number) in [(8, sequence), (16, durable), (24, of_payload)] {
        header[at..at + 8].copy_from_slice(&number.to_be_bytes());
    }
    let of_header = XxHash3_64::oneshot_with_seed(seed, &header[..32]);
    header[32..].copy_from_slice(&of_header.to_be_bytes());
    let bytes = frame_bytes(payload.len());
    out.resize(begin + bytes, 0);
}

/// A frame whose checksums are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) sequence: u64,
    pub(crate) durable: u64,
    pub(crate) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame that begins here, if one does and all of it is there.
    pub(crate) fn read(bytes: &'a [u8], seed: u64) -> Option<Self> {
        let rest = bytes.strip_prefix(&FRAME_MAGIC)?;
        let length = u32::from_be_bytes(*rest.first_chunk()?) as usize;
        let (sequence, durable) = (number_at(bytes, 8)?, number_at(bytes, 16)?);
        let (of_payload, of_header) = (number_at(bytes, 24)?, number_at(bytes, 32)?);
        if XxHash3_64::oneshot_with_seed(seed, &bytes[..32]) != of_header || length > MAX_PAYLOAD {
            return None;
        }
        let frame = bytes.get(..frame_bytes(length))?;
        let (payload, padding) = frame[FRAME_HEADER..].split_at(length);
        let good = XxHash3_64::oneshot_with_seed(seed, payload) == of_payload && is_zero(padding);
        good.then_some(Self { sequence, durable, payload })
    }

    /// How many bytes it takes.
    pub(crate) const fn bytes(&self) -> usize {
        frame_bytes(self.payload.len())
    }
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Whether a good frame anywhere in `bytes`, which begin at a multiple of [`ALIGNMENT`], proves that the record
/// `sequence` was durable.
pub(crate) fn proves_durable(bytes: &[u8], seed: u64, sequence: u64) -> bool {
    (0..bytes.len())
        .step_by(ALIGNMENT)
        .filter_map(|at| Frame::read(&bytes[at..], seed))
        .any(|frame| frame.durable > sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_frame(out: &mut Vec<u8>, seed: u64, sequence: u64, durable: u64, payload: &[u8]) {
        let begin = out.len();
        out.resize(begin + FRAME_HEADER, 0);
        out.extend(payload);
        close_frame(out, begin, seed, sequence, durable);
    }

    #[test]
    fn headers_round_trip_and_say_what_they_are() {
        let header = SegmentHeader { number: 3, first_sequence: 70, seed: 9 };
        let bytes = header.to_bytes();
        assert_eq!(SegmentHeader::find(&bytes), HeaderFound::Good(header));
        for cut in 0..bytes.len() {
            assert_eq!(SegmentHeader::find(&bytes[..cut]), HeaderFound::Bad, "cut at {cut}");
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes;
            flipped[at] ^= 0x10;
            let expected = if (8..12).contains(&at) {
                HeaderFound::OtherVersion(1 ^ 0x10 << (8 * (11 - at)))
            } else {
                HeaderFound::Bad
            };
            assert_eq!(SegmentHeader::find(&flipped), expected, "flipped at {at}");
        }
    }

    #[test]
    fn frames_round_trip_and_every_flip_and_cut_shows() {
        for payload in [&b""[..], b"seven b", b"eight by", b"a somewhat longer payload"] {
            let mut bytes = Vec::new();
            write_frame(&mut bytes, 5, 11, 10, payload);
            assert_eq!(Frame::read(&bytes, 5), Some(Frame { sequence: 11, durable: 10, payload }));
            assert_eq!(bytes.len(), frame_bytes(payload.len()));
            assert_eq!(Frame::read(&bytes, 6), None, "another segment's frame");
            for cut in 0..bytes.len() {
                assert_eq!(Frame::read(&bytes[..cut], 5), None, "cut at {cut}");
            }
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Frame::read(&flipped, 5), None, "bit {bit}");
            }
        }
    }

    #[test]
    fn a_frame_proves_what_was_durable_before_it() {
        let mut bytes = vec![7; 64];
        write_frame(&mut bytes, 5, 11, 10, b"payload");
        assert!(proves_durable(&bytes, 5, 9));
        assert!(!proves_durable(&bytes, 5, 10), "of the same batch");
        assert!(!proves_durable(&bytes, 6, 0), "another segment's");
        assert!(!proves_durable(&bytes[..bytes.len() - 8], 5, 0), "not whole");
    }
}
