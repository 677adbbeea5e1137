//! A cursor over RLP (yellow paper, appendix B) that accepts the canonical form and nothing else.
//!
//! Invariants:
//! 1. A cursor never leaves its own bytes: the payload of a list is a cursor of its own, bounded by the declared length,
//!    and that length was checked against the bytes that are left before anything is done with it.
//! 2. Whatever is accepted has one encoding: lengths in their shortest form, a single byte below 0x80 as itself, integers
//!    without leading zeros. So bytes that are accepted as a whole re-encode to themselves.
//! 3. A fault names the offset, in the outermost bytes, at which the faulty item begins.

use alloy_primitives::{Address, U256};

/// Header byte of an empty string; also the first that is not a single byte.
const STRING: u8 = 0x80;
/// Header byte from which a string's length follows.
const LONG_STRING: u8 = 0xb7;
/// Header byte of an empty list.
const LIST: u8 = 0xc0;
/// Header byte from which a list's length follows.
const LONG_LIST: u8 = 0xf7;
/// The longest payload whose length fits the header byte.
const MAX_SHORT_PAYLOAD: u64 = 55;

/// The bytes of the widest integer.
const UINT_BYTES: usize = 32;

/// What is wrong with an item of the encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RlpFault {
    /// The enclosing bytes end where an item should begin.
    #[error("an item is missing")]
    Missing,
    /// An item declares more bytes than its enclosing item has left.
    #[error("{got} bytes are declared, but only {expected} are left")]
    PastTheEnd {
        /// The declared bytes.
        got: u64,
        /// The bytes left.
        expected: u64,
    },
    /// A length has a leading zero byte, or is written apart from the header byte although it would fit.
    #[error("the length is not in its shortest form")]
    LongLength,
    /// A single byte below 0x80 is written with a header.
    #[error("a single byte below 0x80 has a header")]
    LongSingleByte,
    /// A list stands where a string should.
    #[error("got a list, expected a string")]
    UnexpectedList,
    /// A string stands where a list should.
    #[error("got a string, expected a list")]
    UnexpectedString,
    /// An integer has leading zero bytes. Zero itself is the empty string.
    #[error("the integer has leading zeros")]
    LeadingZero,
    /// An integer does not fit its type.
    #[error("the integer has {got} bytes, expected at most {expected}")]
    TooWide {
        /// The integer's bytes.
        got: usize,
        /// The type's bytes.
        expected: usize,
    },
    /// A string of fixed length has another one.
    #[error("the string has {got} bytes, expected {expected}")]
    WrongLength {
        /// The string's bytes.
        got: usize,
        /// The bytes it should have.
        expected: usize,
    },
    /// Bytes follow the last item.
    #[error("{got} bytes follow the last item")]
    Trailing {
        /// How many.
        got: usize,
    },
}

/// A fault and the offset at which the faulty item begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RlpError {
    pub(crate) offset: usize,
    pub(crate) fault: RlpFault,
}

/// The bytes of a payload that are still to be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
    /// The offset, in the outermost bytes, of the end of `rest`. It does not move, so that a step costs one update.
    end: usize,
}

/// An integer as it is encoded: at most 32 bytes, big-endian, the first of them not zero. What is read of a list is
/// seldom needed as a number: most values are replaced by later ones, and slots are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Uint<'a>(&'a [u8]);

impl Uint<'_> {
    pub(crate) const ZERO: Self = Self(&[]);

    /// Padded to full width.
    #[inline]
    pub(crate) fn to_be_bytes(self) -> [u8; UINT_BYTES] {
        // Most numbers of a list are hashes in full width.
        if let Ok(word) = self.0.try_into() {
            return word;
        }
        let mut word = [0; UINT_BYTES];
        word[UINT_BYTES - self.0.len()..].copy_from_slice(self.0);
        word
    }

    #[inline]
    pub(crate) fn to_u256(self) -> U256 {
        U256::from_be_bytes(self.to_be_bytes())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    String,
    List,
}

impl<'a> Cursor<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, end: bytes.len() }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Refuses what is left.
    pub(crate) const fn finish(&self) -> Result<(), RlpError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.fault(RlpFault::Trailing { got: self.rest.len() })) }
    }

    /// The payload of the list that comes next.
    #[inline(always)]
    pub(crate) fn list(&mut self) -> Result<Self, RlpError> {
        // Nearly all lists are changes, and short. What is not plain is left to `item`, here and below.
        if let [first @ LIST..=LONG_LIST, after @ ..] = self.rest
            && let Some((payload, rest)) = after.split_at_checked(usize::from(first - LIST))
        {
            self.rest = rest;
            return Ok(Self { rest: payload, end: self.offset() });
        }
        let start = *self;
        match self.item()? {
            (Kind::List, payload) => Ok(payload),
            (Kind::String, _) => Err(start.fault(RlpFault::UnexpectedString)),
        }
    }

    /// The string that comes next.
    #[inline(always)]
    pub(crate) fn string(&mut self) -> Result<&'a [u8], RlpError> {
        if let [first @ ..STRING, rest @ ..] = self.rest {
            self.rest = rest;
            return Ok(core::slice::from_ref(first));
        }
        if let [first @ STRING..=LONG_STRING, after @ ..] = self.rest
            && let Some((payload, rest)) = after.split_at_checked(usize::from(first - STRING))
            && !matches!(payload, [..STRING])
        {
            self.rest = rest;
            return Ok(payload);
        }
        let start = *self;
        match self.item()? {
            (Kind::String, payload) => Ok(payload.rest),
            (Kind::List, _) => Err(start.fault(RlpFault::UnexpectedList)),
        }
    }

    #[inline]
    pub(crate) fn address(&mut self) -> Result<Address, RlpError> {
        let start = *self;
        let bytes = self.string()?;
        let wrong = RlpFault::WrongLength { got: bytes.len(), expected: Address::len_bytes() };
        Address::try_from(bytes).map_err(|_| start.fault(wrong))
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, RlpError> {
        Ok(self.integer(size_of::<u32>())?.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Result<u64, RlpError> {
        Ok(self.integer(size_of::<u64>())?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// An integer of at most 32 bytes.
    #[inline(always)]
    pub(crate) fn uint(&mut self) -> Result<Uint<'a>, RlpError> {
        self.integer(UINT_BYTES).map(Uint)
    }

    /// The bytes of an integer: at most `width`, the first of them not zero.
    #[inline(always)]
    fn integer(&mut self, width: usize) -> Result<&'a [u8], RlpError> {
        let start = *self;
        let bytes = self.string()?;
        if bytes.first() == Some(&0) {
            return Err(start.fault(RlpFault::LeadingZero));
        }
        if bytes.len() > width {
            return Err(start.fault(RlpFault::TooWide { got: bytes.len(), expected: width }));
        }
        Ok(bytes)
    }

    /// The kind and the payload of the item that comes next, whatever it is.
    #[inline(never)]
    fn item(&mut self) -> Result<(Kind, Self), RlpError> {
        let Some((&first, after_first)) = self.rest.split_first() else {
            return Err(self.fault(RlpFault::Missing));
        };
        if first < STRING {
            return Ok((Kind::String, self.take(0, 1)));
        }
        let (kind, short, long) =
            if first < LIST { (Kind::String, STRING, LONG_STRING) } else { (Kind::List, LIST, LONG_LIST) };
        let (header, payload) = if first <= long {
            (1, u64::from(first - short))
        } else {
            self.long_length(after_first, usize::from(first - long))?
        };
        let left = (self.rest.len() - header) as u64;
        if payload > left {
            return Err(self.fault(RlpFault::PastTheEnd { got: payload, expected: left }));
        }
        if kind == Kind::String && payload == 1 && self.rest[header] < STRING {
            return Err(self.fault(RlpFault::LongSingleByte));
        }
        // The payload is no longer than what is in memory, so its length fits.
        Ok((kind, self.take(header, payload as usize)))
    }

    /// The header's length and the payload's, where the latter is written in `width` bytes (1 to 8) after the first one.
    fn long_length(&self, after_first: &[u8], width: usize) -> Result<(usize, u64), RlpError> {
        let Some(length) = after_first.get(..width) else {
            return Err(self.fault(RlpFault::PastTheEnd { got: width as u64, expected: after_first.len() as u64 }));
        };
        let payload = length.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        if length[0] == 0 || payload <= MAX_SHORT_PAYLOAD {
            return Err(self.fault(RlpFault::LongLength));
        }
        Ok((1 + width, payload))
    }

    /// Steps over an item of which both lengths were checked; gives its payload.
    #[inline]
    fn take(&mut self, header: usize, payload: usize) -> Self {
        let (item, rest) = self.rest.split_at(header + payload);
        self.rest = rest;
        Self { rest: &item[header..], end: self.offset() }
    }

    /// The offset of `rest` in the outermost bytes.
    const fn offset(&self) -> usize {
        self.end - self.rest.len()
    }

    const fn fault(&self, fault: RlpFault) -> RlpError {
        RlpError { offset: self.offset(), fault }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(bytes: &[u8]) -> Result<&[u8], RlpFault> {
        Cursor::new(bytes).string().map_err(|error| error.fault)
    }

    #[test]
    fn strings_have_one_form() {
        assert_eq!(string(&[0x7f]), Ok(&[0x7f][..]));
        assert_eq!(string(&[0x00]), Ok(&[0x00][..]));
        assert_eq!(string(&[0x80]), Ok(&[][..]));
        assert_eq!(string(&[0x81, 0x80]), Ok(&[0x80][..]));
        assert_eq!(string(&[0x81, 0x7f]), Err(RlpFault::LongSingleByte));
        let mut short_as_long = vec![0xb8, 55];
        short_as_long.resize(57, 1);
        assert_eq!(string(&short_as_long), Err(RlpFault::LongLength));
        let mut long = vec![0xb8, 56];
        long.resize(58, 1);
        assert_eq!(string(&long), Ok(&[1u8; 56][..]));
        let mut padded_length = vec![0xb9, 0, 56];
        padded_length.resize(59, 1);
        assert_eq!(string(&padded_length), Err(RlpFault::LongLength));
    }

    #[test]
    fn declared_lengths_are_checked_before_use() {
        assert_eq!(string(&[]), Err(RlpFault::Missing));
        assert_eq!(string(&[0x82, 1]), Err(RlpFault::PastTheEnd { got: 2, expected: 1 }));
        assert_eq!(string(&[0x81]), Err(RlpFault::PastTheEnd { got: 1, expected: 0 }));
        assert_eq!(string(&[0xb9, 1]), Err(RlpFault::PastTheEnd { got: 2, expected: 1 }));
        let huge = [&[0xbf][..], &[0xff; 8]].concat();
        assert_eq!(string(&huge), Err(RlpFault::PastTheEnd { got: u64::MAX, expected: 0 }));
        let huge_list = [&[0xff][..], &[0xff; 8]].concat();
        let fault = Cursor::new(&huge_list).list().map(|_| ()).map_err(|error| error.fault);
        assert_eq!(fault, Err(RlpFault::PastTheEnd { got: u64::MAX, expected: 0 }));
    }

    #[test]
    fn an_item_cannot_leave_its_list() {
        // A list of two bytes whose string declares three; three bytes follow in the outer input.
        let mut outer = Cursor::new(&[0xc2, 0x83, 1, 2, 3]);
        let mut inner = outer.list().unwrap();
        assert_eq!(inner.string(), Err(RlpError { offset: 1, fault: RlpFault::PastTheEnd { got: 3, expected: 1 } }));
        assert_eq!(outer.finish(), Err(RlpError { offset: 3, fault: RlpFault::Trailing { got: 2 } }));
    }

    #[test]
    fn integers_have_one_form_and_fit() {
        let u32 = |bytes: &[u8]| Cursor::new(bytes).u32().map_err(|error| error.fault);
        assert_eq!(u32(&[0x80]), Ok(0));
        assert_eq!(u32(&[0x00]), Err(RlpFault::LeadingZero));
        assert_eq!(u32(&[0x82, 0, 1]), Err(RlpFault::LeadingZero));
        assert_eq!(u32(&[0x84, 0xff, 0xff, 0xff, 0xff]), Ok(u32::MAX));
        assert_eq!(u32(&[0x85, 1, 0, 0, 0, 0]), Err(RlpFault::TooWide { got: 5, expected: 4 }));
        assert_eq!(u32(&[0xc0]), Err(RlpFault::UnexpectedList));
        let max = [&[0xa0][..], &[0xff; 32]].concat();
        assert_eq!(Cursor::new(&max).uint().map(Uint::to_u256), Ok(U256::MAX));
        assert_eq!(Cursor::new(&[0x80]).uint(), Ok(Uint::ZERO));
        assert_eq!(Cursor::new(&[0x82, 1, 2]).uint().map(Uint::to_u256), Ok(U256::from(0x102)));
        let wide = [&[0xa1][..], &[0xff; 33]].concat();
        let fault = Cursor::new(&wide).uint().map_err(|error| error.fault);
        assert_eq!(fault, Err(RlpFault::TooWide { got: 33, expected: 32 }));
        let nonce = [&[0x88][..], &[0xff; 8]].concat();
        assert_eq!(Cursor::new(&nonce).u64(), Ok(u64::MAX));
    }

    #[test]
    fn lists_and_strings_are_told_apart() {
        assert_eq!(Cursor::new(&[0x80]).list().map(|_| ()).unwrap_err().fault, RlpFault::UnexpectedString);
        assert_eq!(Cursor::new(&[0x05]).list().map(|_| ()).unwrap_err().fault, RlpFault::UnexpectedString);
        assert_eq!(string(&[0xc0]), Err(RlpFault::UnexpectedList));
        let short_address = [&[0x93][..], &[1; 19]].concat();
        let fault = Cursor::new(&short_address).address().unwrap_err().fault;
        assert_eq!(fault, RlpFault::WrongLength { got: 19, expected: 20 });
    }
}
