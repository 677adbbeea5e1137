//! A state of which only some trie nodes are known: the pre-state of a block, without a database.
//!
//! Nodes are found by their keccak256, starting from the state root, so nothing that is not part of that state can be
//! read: a node that was tampered with is one that is missing.
//!
//! Rows are made from the nodes on demand. Where a branch refers to a node that the
//! witness does not hold, it cannot be told whether that is a leaf or a branch: the row marks the child *opaque*, which
//! is all the same to a fold as long as it has no need to go there. If it has, it asks for the row, and gets a
//! [`WitnessError::MissingNode`] that names the path. Likewise an extension may be there whose branch is not: its row is
//! a *blinded* one, which can move up or down without being opened. So a fold on a witness is the fold, and needs no proof, no
//! reveal and no retry.
//!
//! Invariants:
//! 1. Everything that is served is proven by the state root; a gap is an error, never an absence.
//! 2. Rows that a fold on a witness gives may hold opaque children: they serve layers over this witness, not a store.
//!
//! A witness is cut for one block. Further blocks can be folded as layers over it as far as its nodes reach; a leaf
//! that an earlier layer added beside a gap may be reported as missing when a later one has to move it, because the
//! ordered read that finds it begins in the witness.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use alloy_primitives::{B256, Bytes, KECCAK256_EMPTY, U256, keccak256, map::B256Map};
use alloy_rlp::{Decodable, Header};
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles, nodes::RlpNode};

use crate::{
    account::{Account, AccountInfo},
    block::{BlockHash, BlockNumber, StateAnchor},
    node::{NodeKey, TrieId},
    store::{BLOCK_HASH_WINDOW, StateReader, TrieReader},
    trie::row::{Branch, ChildKind, encode_blinded},
};

/// Why a witness cannot answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WitnessError {
    /// A node that is needed is not there (or was tampered with).
    #[error("the witness lacks the node {hash} in {at}")]
    MissingNode {
        /// The trie, and the path at which the node is referred to.
        at: Box<NodeKey>,
        /// The node's hash.
        hash: B256,
    },
    /// A node is not one of the secure trie's nodes.
    #[error("the witness's node in {at} is malformed: {what}")]
    MalformedNode {
        /// The trie, and the path at which the node is referred to.
        at: Box<NodeKey>,
        /// What is wrong with it.
        what: MalformedNode,
    },
    /// Code that is needed is not there.
    #[error("the witness lacks the code {code_hash}")]
    MissingCode {
        /// keccak256 of the code.
        code_hash: B256,
    },
    /// The hash of an ancestor that is needed is not there.
    #[error("the witness lacks the hash of block {number}")]
    MissingBlockHash {
        /// The ancestor's height.
        number: BlockNumber,
    },
}

/// What is wrong with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedNode {
    /// Not one canonical RLP list of strings and lists.
    #[error("not a canonical RLP list")]
    Rlp,
    /// Neither two items nor seventeen.
    #[error("neither 2 nor 17 items")]
    ItemCount,
    /// The hex-prefix encoding is wrong, or the path is too short or too long for its place.
    #[error("the path")]
    Path,
    /// A child is neither a hash nor a node of less than 32 bytes.
    #[error("a reference")]
    Reference,
    /// A branch with fewer than two children, or with a value; or an extension to anything but a branch.
    #[error("not a node of a trie of 32-byte keys")]
    Shape,
    /// A leaf's value is no account, or no slot's value.
    #[error("the leaf's value")]
    Value,
}

/// A view of the state after a block, of which only some nodes are known. Clones share it.
#[derive(Debug, Clone)]
pub struct Witness {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    anchor: StateAnchor,
    nodes: B256Map<Bytes>,
    codes: B256Map<Bytes>,
    block_hashes: BTreeMap<BlockNumber, BlockHash>,
}

impl Witness {
    /// The state at `anchor` as far as these nodes (RLP, accounts' and storage tries' in any order) and codes show it.
    /// `block_hashes` are those of the block and its ancestors, as far as BLOCKHASH may ask for them; the block's own
    /// is known from `anchor`.
    pub fn new(
        anchor: StateAnchor,
        nodes: impl IntoIterator<Item = Bytes>,
        codes: impl IntoIterator<Item = Bytes>,
        block_hashes: impl IntoIterator<Item = (BlockNumber, BlockHash)>,
    ) -> Self {
        let by_hash = |bytes: Bytes| (keccak256(&bytes), bytes);
        let nodes = nodes.into_iter().map(by_hash).collect();
        let codes = codes.into_iter().map(by_hash).collect();
        let mut block_hashes: BTreeMap<_, _> = block_hashes.into_iter().collect();
        block_hashes.insert(anchor.block.number, anchor.block.hash);
        Self { inner: Arc::new(Inner { anchor, nodes, codes, block_hashes }) }
    }
}

impl StateReader for Witness {
    type Error = WitnessError;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, WitnessError> {
        Ok(self.account(hashed_address)?.map(Account::into))
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, WitnessError> {
        let Some(trie) = self.inner.storage_trie(hashed_address)? else { return Ok(U256::ZERO) };
        Ok(trie.get(hashed_slot, decode_slot)?.unwrap_or_default())
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, WitnessError> {
        match self.inner.codes.get(code_hash) {
            Some(code) => Ok(Some(code.clone())),
            None if *code_hash == KECCAK256_EMPTY => Ok(Some(Bytes::new())),
            None => Err(WitnessError::MissingCode { code_hash: *code_hash }),
        }
    }

    fn block_hash(&self, number: BlockNumber) -> Result<Option<BlockHash>, WitnessError> {
        let newest = self.inner.anchor.block.number;
        match self.inner.block_hashes.get(&number).filter(|_| number <= newest) {
            Some(hash) => Ok(Some(*hash)),
            None if number > newest || newest - number >= BLOCK_HASH_WINDOW => Ok(None),
            None => Err(WitnessError::MissingBlockHash { number }),
        }
    }
}

impl TrieReader for Witness {
    fn anchor(&self) -> StateAnchor {
        self.inner.anchor
    }

    fn account(&self, hashed_address: &B256) -> Result<Option<Account>, WitnessError> {
        self.inner.account_trie().get(hashed_address, Account::from_leaf_value)
    }

    fn node(&self, key: &NodeKey) -> Result<Option<Bytes>, WitnessError> {
        match key.trie {
            TrieId::Accounts => self.inner.account_trie().row(&key.path),
            TrieId::Storage(hashed_address) => match self.inner.storage_trie(&hashed_address)? {
                Some(trie) => trie.row(&key.path),
                None => Ok(None),
            },
        }
    }

    /// A gap in the range is an error unless the limit is reached before it.
    fn accounts_from(&self, start: &B256, limit: usize) -> Result<Vec<(B256, Account)>, WitnessError> {
        self.inner.account_trie().leaves_from(start, limit, Account::from_leaf_value)
    }

    /// A gap in the range is an error unless the limit is reached before it.
    fn slots_from(&self, hashed_address: &B256, start: &B256, limit: usize) -> Result<Vec<(B256, U256)>, WitnessError> {
        match self.inner.storage_trie(hashed_address)? {
            Some(trie) => trie.leaves_from(start, limit, decode_slot),
            None => Ok(Vec::new()),
        }
    }
}

fn decode_slot(mut rlp: &[u8]) -> Option<U256> {
    let value = U256::decode(&mut rlp).ok()?;
    (rlp.is_empty() && !value.is_zero()).then_some(value)
}

impl Inner {
    const fn account_trie(&self) -> PartialTrie<'_> {
        PartialTrie { nodes: &self.nodes, trie: TrieId::Accounts, root: self.anchor.state_root }
    }

    /// The storage trie of an account, if the account exists.
    fn storage_trie(&self, hashed_address: &B256) -> Result<Option<PartialTrie<'_>>, WitnessError> {
        let account = self.account_trie().get(hashed_address, Account::from_leaf_value)?;
        let trie = TrieId::Storage(*hashed_address);
        Ok(account.map(|account| PartialTrie { nodes: &self.nodes, trie, root: account.storage_root }))
    }
}

/// One trie, as far as its nodes are known.
struct PartialTrie<'a> {
    nodes: &'a B256Map<Bytes>,
    trie: TrieId,
    root: B256,
}

impl PartialTrie<'_> {
    fn root(&self) -> Option<RlpNode> {
        (self.root != EMPTY_ROOT_HASH).then(|| RlpNode::word_rlp(&self.root))
    }

    /// The value of the leaf at `key`.
    fn get<T>(&self, key: &B256, decode: fn(&[u8]) -> Option<T>) -> Result<Option<T>, WitnessError> {
        let key = Nibbles::unpack(key);
        let Some(mut reference) = self.root() else { return Ok(None) };
        let mut path = Nibbles::new();
        loop {
            let rlp = self.load(&path, &reference)?;
            reference = match self.decode(&path, &rlp)? {
                Node::Leaf(rest, value) if path.join(&rest) == key => {
                    return self.value(&path, value, decode).map(Some);
                }
                Node::Leaf(..) => return Ok(None),
                Node::Extension(extension, child) => {
                    path.extend(&extension);
                    if !key.starts_with(&path) {
                        return Ok(None);
                    }
                    child
                }
                Node::Branch(mut children) => {
                    let nibble = key.get_unchecked(path.len());
                    path.push(nibble);
                    std::mem::take(&mut children[usize::from(nibble)])
                }
            };
            if reference.is_empty() {
                return Ok(None);
            }
        }
    }

    /// The row of the branch whose slot path is `slot`.
    fn row(&self, slot: &Nibbles) -> Result<Option<Bytes>, WitnessError> {
        let Some(mut reference) = self.root() else { return Ok(None) };
        let mut path = Nibbles::new();
        while path.len() < slot.len() {
            let rlp = self.load(&path, &reference)?;
            let (own_path, mut children) = match self.decode(&path, &rlp)? {
                Node::Leaf(..) => return Ok(None),
                Node::Branch(children) => (path, children),
                Node::Extension(extension, child) => self.branch_below(path.join(&extension), &child, slot)?,
            };
            if own_path.len() >= slot.len() || !slot.starts_with(&own_path) {
                return Ok(None);
            }
            let nibble = slot.get_unchecked(own_path.len());
            path = own_path;
            path.push(nibble);
            reference = std::mem::take(&mut children[usize::from(nibble)]);
            if reference.is_empty() {
                return Ok(None);
            }
        }
        let rlp = self.load(slot, &reference)?;
        match self.decode(slot, &rlp)? {
            Node::Leaf(..) => Ok(None),
            Node::Branch(children) => Ok(Some(self.to_row(&Nibbles::new(), slot, children)?)),
            // Removing a neighbour joins this extension with what is above, for which the branch need not be known.
            Node::Extension(extension, child) if self.find(&child).is_none() => {
                Ok(Some(encode_blinded(&extension, &child)))
            }
            Node::Extension(extension, child) => {
                let own_path = slot.join(&extension);
                let children = self.branch(&own_path, &child)?;
                Ok(Some(self.to_row(&extension, &own_path, children)?))
            }
        }
    }

    /// The branch behind an extension that leads to `own_path`; without children where `slot` does not lie below it,
    /// in which case the branch need not be known.
    fn branch_below(
        &self,
        own_path: Nibbles,
        child: &RlpNode,
        slot: &Nibbles,
    ) -> Result<(Nibbles, Box<Children>), WitnessError> {
        if own_path.len() >= slot.len() || !slot.starts_with(&own_path) {
            return Ok((own_path, Box::default()));
        }
        Ok((own_path, self.branch(&own_path, child)?))
    }

    fn branch(&self, path: &Nibbles, reference: &RlpNode) -> Result<Box<Children>, WitnessError> {
        let rlp = self.load(path, reference)?;
        match self.decode(path, &rlp)? {
            Node::Branch(children) => Ok(children),
            _ => self.malformed(path, MalformedNode::Shape),
        }
    }

    fn to_row(&self, extension: &Nibbles, own_path: &Nibbles, children: Box<Children>) -> Result<Bytes, WitnessError> {
        let mut branch = Branch::default();
        for (nibble, reference) in (0..16).zip(*children).filter(|(_, reference)| !reference.is_empty()) {
            let mut path = *own_path;
            path.push(nibble);
            branch.set(nibble, self.kind(&path, &reference)?, reference);
        }
        Ok(branch.encode(extension))
    }

    fn kind(&self, path: &Nibbles, reference: &RlpNode) -> Result<ChildKind, WitnessError> {
        let Some(rlp) = self.find(reference) else { return Ok(ChildKind::Opaque) };
        Ok(match self.decode(path, &rlp)? {
            Node::Leaf(..) => ChildKind::Leaf,
            Node::Extension(..) | Node::Branch(..) => ChildKind::Branch,
        })
    }

    fn leaves_from<T>(
        &self,
        start: &B256,
        limit: usize,
        decode: fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<(B256, T)>, WitnessError> {
        let mut leaves = Vec::new();
        if let Some(root) = self.root() {
            let start = Nibbles::unpack(start);
            self.walk(Nibbles::new(), &root, &mut |path, key, value| {
                if leaves.len() == limit || *path < start.slice(..path.len()) {
                    return Ok(false);
                }
                if let Some((key, value)) = key.zip(value) {
                    leaves.push((key, self.value(path, value, decode)?));
                }
                Ok(true)
            })?;
        }
        Ok(leaves)
    }

    /// Visits nodes in order. `enter` is told a path before its node is loaded (and decides whether it is), and each
    /// leaf's whole path with its key and value.
    fn walk(&self, path: Nibbles, reference: &RlpNode, enter: &mut Enter<'_>) -> Result<(), WitnessError> {
        if !enter(&path, None, None)? {
            return Ok(());
        }
        let rlp = self.load(&path, reference)?;
        match self.decode(&path, &rlp)? {
            Node::Leaf(rest, value) => {
                let path = path.join(&rest);
                enter(&path, Some(B256::from_slice(&path.pack())), Some(value))?;
            }
            Node::Extension(extension, child) => self.walk(path.join(&extension), &child, enter)?,
            Node::Branch(children) => {
                for (nibble, reference) in (0..16).zip(children.iter()).filter(|(_, reference)| !reference.is_empty()) {
                    let mut path = path;
                    path.push(nibble);
                    self.walk(path, reference, enter)?;
                }
            }
        }
        Ok(())
    }

    fn find<'n>(&'n self, reference: &'n RlpNode) -> Option<Cow<'n, [u8]>> {
        match reference.as_hash() {
            Some(hash) => self.nodes.get(&hash).map(|node| Cow::Borrowed(&node[..])),
            None => Some(Cow::Borrowed(reference.as_slice())),
        }
    }

    fn load<'n>(&'n self, path: &Nibbles, reference: &'n RlpNode) -> Result<Cow<'n, [u8]>, WitnessError> {
        self.find(reference).ok_or_else(|| WitnessError::MissingNode {
            at: Box::new(NodeKey::new(self.trie, *path)),
            hash: reference.as_hash().unwrap_or_default(),
        })
    }

    fn decode<'n>(&self, path: &Nibbles, rlp: &'n [u8]) -> Result<Node<'n>, WitnessError> {
        Node::decode(rlp, path.len()).or_else(|what| self.malformed(path, what))
    }

    fn value<T>(&self, path: &Nibbles, value: &[u8], decode: fn(&[u8]) -> Option<T>) -> Result<T, WitnessError> {
        decode(value).map_or_else(|| self.malformed(path, MalformedNode::Value), Ok)
    }

    fn malformed<T>(&self, path: &Nibbles, what: MalformedNode) -> Result<T, WitnessError> {
        Err(WitnessError::MalformedNode { at: Box::new(NodeKey::new(self.trie, *path)), what })
    }
}

type Enter<'a> = dyn FnMut(&Nibbles, Option<B256>, Option<&[u8]>) -> Result<bool, WitnessError> + 'a;

/// Empty where there is no child.
type Children = [RlpNode; 16];

/// A node's RLP, taken apart.
enum Node<'a> {
    /// The rest of the key, and the value.
    Leaf(Nibbles, &'a [u8]),
    Extension(Nibbles, RlpNode),
    Branch(Box<Children>),
}

impl<'a> Node<'a> {
    /// Takes apart a node that is referred to at a depth of `depth` nibbles.
    fn decode(mut rlp: &'a [u8], depth: usize) -> Result<Self, MalformedNode> {
        let mut payload = Header::decode_bytes(&mut rlp, true).map_err(|_| MalformedNode::Rlp)?;
        if !rlp.is_empty() {
            return Err(MalformedNode::Rlp);
        }
        // At most 17 items are kept, however many the list holds.
        let mut items: Vec<&[u8]> = Vec::with_capacity(17);
        while !payload.is_empty() && items.len() < 18 {
            items.push(next_item(&mut payload)?);
        }
        match items.as_slice() {
            [path, rest] => Self::decode_short(path, rest, depth),
            [children @ .., value] if children.len() == 16 => Self::decode_branch(children, value, depth),
            _ => Err(MalformedNode::ItemCount),
        }
    }

    fn decode_short(mut path: &[u8], mut rest: &'a [u8], depth: usize) -> Result<Self, MalformedNode> {
        let path = Header::decode_bytes(&mut path, false).map_err(|_| MalformedNode::Path)?;
        let (&head, packed) = path.split_first().ok_or(MalformedNode::Path)?;
        let (is_leaf, is_odd) = (head & 0x20 != 0, head & 0x10 != 0);
        // Flags beside these two, or a padding nibble, would make two encodings of one path.
        if head & 0xc0 != 0 || (!is_odd && head & 0x0f != 0) || packed.len() > 32 {
            return Err(MalformedNode::Path);
        }
        let length = 2 * packed.len() + usize::from(is_odd);
        let fits = if is_leaf { depth + length == 64 } else { length > 0 && depth + length < 64 };
        if !fits {
            return Err(MalformedNode::Path);
        }
        let mut nibbles = Nibbles::new();
        if is_odd {
            nibbles.push(head & 0x0f);
        }
        nibbles.extend(&Nibbles::unpack(packed));
        if is_leaf {
            let value = Header::decode_bytes(&mut rest, false).map_err(|_| MalformedNode::Value)?;
            return Ok(Self::Leaf(nibbles, value));
        }
        let child = decode_reference(rest)?;
        if child.is_empty() { Err(MalformedNode::Reference) } else { Ok(Self::Extension(nibbles, child)) }
    }

    fn decode_branch(items: &[&[u8]], value: &[u8], depth: usize) -> Result<Self, MalformedNode> {
        let mut children = Box::<Children>::default();
        for (child, item) in children.iter_mut().zip(items) {
            *child = decode_reference(item)?;
        }
        let count = children.iter().filter(|child| !child.is_empty()).count();
        if depth > 63 || count < 2 || value != [alloy_rlp::EMPTY_STRING_CODE] {
            return Err(MalformedNode::Shape);
        }
        Ok(Self::Branch(children))
    }
}

/// The next item of a list with its header.
fn next_item<'a>(payload: &mut &'a [u8]) -> Result<&'a [u8], MalformedNode> {
    let whole = *payload;
    let header = Header::decode(payload).map_err(|_| MalformedNode::Rlp)?;
    // A string of one small byte is its own header: decoding it leaves the byte to be taken.
    let start = whole.len() - payload.len();
    let (item, rest) = whole.split_at_checked(start + header.payload_length).ok_or(MalformedNode::Rlp)?;
    *payload = rest;
    Ok(item)
}

/// A child of a node, which is empty where the branch has none.
fn decode_reference(item: &[u8]) -> Result<RlpNode, MalformedNode> {
    match item {
        [alloy_rlp::EMPTY_STRING_CODE] => Ok(RlpNode::default()),
        [0xa0, hash @ ..] if hash.len() == 32 => RlpNode::from_raw(item).ok_or(MalformedNode::Reference),
        [0xc1..=0xff, ..] if item.len() < 32 => RlpNode::from_raw(item).ok_or(MalformedNode::Reference),
        _ => Err(MalformedNode::Reference),
    }
}
