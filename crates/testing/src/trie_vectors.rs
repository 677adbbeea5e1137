//! The trie vectors of ethereum/tests (`TrieTests/`).
//!
//! Invariants:
//! 1. Steps are kept in the given order, with deletions; a map's steps are in the order of their keys.
//! 2. Keys and values are the bytes that are meant: text that begins with `0x` is hex, other text is its UTF-8.

use std::{collections::BTreeMap, fmt, path::Path};

use alloy_primitives::{B256, hex, keccak256};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};

use crate::{
    ReadError,
    archive::{self, MAX_JSON_BYTES},
    json,
};

/// A key, and the value to set; `None` deletes.
pub type TrieStep = (Vec<u8>, Option<Vec<u8>>);

/// Steps on an empty trie, and the root they lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrieVector {
    /// The vector's name in its file.
    pub name: String,
    /// The steps.
    pub steps: Vec<TrieStep>,
    /// True if the steps may be taken in any order.
    pub any_order: bool,
    /// True if keys are hashed with keccak256 before they enter the trie.
    pub secure: bool,
    /// The root at the end.
    pub root: B256,
}

impl TrieVector {
    /// The leaves that the steps leave, under the keys as they are in the trie (hashed if [`Self::secure`]).
    pub fn leaves(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut leaves = BTreeMap::new();
        for (key, value) in &self.steps {
            let key = if self.secure { keccak256(key).to_vec() } else { key.clone() };
            match value {
                Some(value) if !value.is_empty() => leaves.insert(key, value.clone()),
                _ => leaves.remove(&key),
            };
        }
        leaves
    }
}

/// Reads a file of vectors with roots. By their name, files with `secure` in it have hashed keys.
///
/// # Errors
/// [`ReadError::Io`], [`ReadError::TooLarge`], [`ReadError::Json`] with vector and field.
pub fn read_trie_vectors(path: &Path) -> Result<Vec<TrieVector>, ReadError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let secure = name.contains("secure");
    let content = archive::read_file(path, "the trie vectors", MAX_JSON_BYTES)?;
    let vectors = json::parse_tests::<VectorJson>(&path.display().to_string(), &content)?;
    let vectors = vectors.into_iter().map(|(name, vector)| {
        let StepsJson { steps, any_order } = vector.steps;
        TrieVector { name, steps, any_order, secure, root: vector.root }
    });
    Ok(vectors.collect())
}

/// One question to an ordered set of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeighbourCase {
    /// The key in question, in the set or not.
    pub key: Vec<u8>,
    /// The greatest key below it, or `None`.
    pub previous: Option<Vec<u8>>,
    /// The least key above it, or `None`.
    pub next: Option<Vec<u8>>,
}

/// A set of keys and questions to it (`trietestnextprev.json`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeighbourVector {
    /// The vector's name in its file.
    pub name: String,
    /// The keys in the trie.
    pub keys: Vec<Vec<u8>>,
    /// The questions.
    pub cases: Vec<NeighbourCase>,
}

/// Reads a file of vectors on iteration.
///
/// # Errors
/// As [`read_trie_vectors`].
pub fn read_neighbour_vectors(path: &Path) -> Result<Vec<NeighbourVector>, ReadError> {
    let content = archive::read_file(path, "the trie vectors", MAX_JSON_BYTES)?;
    let vectors = json::parse_tests::<NeighbourJson>(&path.display().to_string(), &content)?;
    let some = |key: Text| Some(key.0).filter(|key| !key.is_empty());
    let vectors = vectors.into_iter().map(|(name, vector)| NeighbourVector {
        name,
        keys: vector.keys.into_iter().map(|key| key.0).collect(),
        cases: vector
            .tests
            .into_iter()
            .map(|(key, previous, next)| NeighbourCase { key: key.0, previous: some(previous), next: some(next) })
            .collect(),
    });
    Ok(vectors.collect())
}

#[derive(Deserialize)]
struct VectorJson {
    #[serde(rename = "in")]
    steps: StepsJson,
    root: B256,
}

#[derive(Deserialize)]
struct NeighbourJson {
    #[serde(rename = "in")]
    keys: Vec<Text>,
    tests: Vec<(Text, Text, Text)>,
}

/// Text that is meant as bytes.
struct Text(Vec<u8>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.strip_prefix("0x") {
            Some(digits) => hex::decode(digits).map(Self).map_err(D::Error::custom),
            None => Ok(Self(text.into_bytes())),
        }
    }
}

struct StepsJson {
    steps: Vec<TrieStep>,
    any_order: bool,
}

impl<'de> Deserialize<'de> for StepsJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StepsVisitor;
        impl<'de> Visitor<'de> for StepsVisitor {
            type Value = StepsJson;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of [key, value], or a map")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<StepsJson, A::Error> {
                let mut steps = Vec::new();
                while let Some((key, value)) = access.next_element::<(Text, Option<Text>)>()? {
                    steps.push((key.0, value.map(|value| value.0)));
                }
                Ok(StepsJson { steps, any_order: false })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<StepsJson, A::Error> {
                let mut steps = BTreeMap::new();
                while let Some((key, value)) = access.next_entry::<Text, Option<Text>>()? {
                    if steps.insert(key.0, value.map(|value| value.0)).is_some() {
                        return Err(A::Error::custom("a key occurs twice"));
                    }
                }
                Ok(StepsJson { steps: steps.into_iter().collect(), any_order: true })
            }
        }
        deserializer.deserialize_any(StepsVisitor)
    }
}
