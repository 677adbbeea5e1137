//! JSON with errors that name the field, and the number formats that test data is written in.
//!
//! Invariants: a number too large for its type is an error, never truncated; a key that occurs twice in a map is an error.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    marker::PhantomData,
};

use alloy_primitives::U256;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _, MapAccess, Unexpected, Visitor},
};

use crate::ReadError;

/// Parses a whole file of one value.
pub(crate) fn parse<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T, ReadError> {
    parse_path(bytes).map_err(|(path, source)| ReadError::Json {
        file: file.to_owned(),
        test: None,
        field: path.to_string(),
        source,
    })
}

/// Parses a whole file that maps the names of tests to tests.
pub(crate) fn parse_tests<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<BTreeMap<String, T>, ReadError> {
    parse_path::<UniqueMap<String, T>>(bytes).map(|tests| tests.0).map_err(|(path, source)| {
        use serde_path_to_error::Segment;
        let mut segments = path.iter();
        let test = match segments.next() {
            Some(Segment::Map { key }) => Some(key.clone()),
            _ => None,
        };
        let mut field = String::new();
        for segment in segments {
            if !field.is_empty() && !matches!(segment, Segment::Seq { .. }) {
                field.push('.');
            }
            field.push_str(&segment.to_string());
        }
        if field.is_empty() {
            field.push('.');
        }
        ReadError::Json { file: file.to_owned(), test, field, source }
    })
}

fn parse_path<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, (serde_path_to_error::Path, serde_json::Error)> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut track = serde_path_to_error::Track::new();
    let value = T::deserialize(serde_path_to_error::Deserializer::new(&mut deserializer, &mut track));
    match value.and_then(|value| deserializer.end().map(|()| value)) {
        Ok(value) => Ok(value),
        Err(source) => Err((track.path(), source)),
    }
}

/// A map of which each key may occur once.
#[derive(Debug)]
pub(crate) struct UniqueMap<K, V>(pub(crate) BTreeMap<K, V>);

impl<K, V> Default for UniqueMap<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, K, V> Deserialize<'de> for UniqueMap<K, V>
where
    K: Deserialize<'de> + Ord + fmt::Debug,
    V: Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor<K, V>(PhantomData<(K, V)>);
        impl<'de, K, V> Visitor<'de> for MapVisitor<K, V>
        where
            K: Deserialize<'de> + Ord + fmt::Debug,
            V: Deserialize<'de>,
        {
            type Value = UniqueMap<K, V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut map = BTreeMap::new();
                while let Some(key) = access.next_key::<K>()? {
                    match map.entry(key) {
                        Entry::Vacant(entry) => entry.insert(access.next_value()?),
                        Entry::Occupied(entry) => {
                            return Err(A::Error::custom(format_args!("duplicate key {:?}", entry.key())));
                        }
                    };
                }
                Ok(UniqueMap(map))
            }
        }
        deserializer.deserialize_map(MapVisitor(PhantomData))
    }
}

/// An unsigned number as `0x` hex of any number of digits (none is zero), as decimal text, or as a JSON number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Quantity(pub(crate) U256);

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberVisitor;
        impl Visitor<'_> for NumberVisitor {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an unsigned number of at most 256 bits, in 0x hex or decimal")
            }

            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Quantity, E> {
                Ok(Quantity(U256::from(value)))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Quantity, E> {
                parse_number(text).map(Quantity).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(NumberVisitor)
    }
}

/// Reads `0x` hex of any number of digits, or decimal digits; `None` if it is neither or over 256 bits.
pub(crate) fn parse_number(text: &str) -> Option<U256> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some("") => return Some(U256::ZERO),
        Some(digits) => (digits, 16),
        None if text.is_empty() => return None,
        None => (text, 10),
    };
    // The library skips underscores; test data has none, so they are a fault.
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    U256::from_str_radix(digits, u64::from(radix)).ok()
}

/// `deserialize_with` for a `U256`.
pub(crate) fn u256<'de, D: Deserializer<'de>>(deserializer: D) -> Result<U256, D::Error> {
    Quantity::deserialize(deserializer).map(|number| number.0)
}

/// `deserialize_with` for a `u64`.
pub(crate) fn u64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = u256(deserializer)?;
    u64::try_from(number).map_err(|_| D::Error::custom(format_args!("{number} does not fit 64 bits")))
}

/// `deserialize_with` for an `Option<u64>`; absent or null is `None` (use with `default`).
pub(crate) fn opt_u64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    match Option::<Quantity>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Quantity(number)) => {
            u64::try_from(number).map(Some).map_err(|_| D::Error::custom(format_args!("{number} does not fit 64 bits")))
        }
    }
}
