//! The memory in which trie nodes live: nodes of many sizes, named by 32-bit numbers, freed one by one.
//!
//! A fold reads thousands of nodes at random and writes as many, so nodes have neither allocations nor counters of
//! their own. Memory comes in chunks of 2 MiB, which the system may back with huge pages; it is counted in units of 16
//! bytes, and a node's name is the number of its first unit. What was freed is kept in one list for each size.
//!
//! ```text
//! unit 0   epoch (4)  row length (2)  units (1)  flags (1)  linked (2)  state (2)  branch (2)  references at (2)
//! ..       one 4-byte name for each linked child, in order of their nibbles
//! ..       one age byte for each linked child
//! ..       the row, as it is stored ([`super::row`])
//! ```
//!
//! # Why it is sound
//!
//! A node is written by the one [`Writer`] that took its memory, before anyone else knows its name. Its name gets into
//! other hands with the version that holds it ([`super::forest`]), through an `Arc`, a channel or a lock, each of which
//! orders the writes before the reads. It is freed when no version is left from which it can be reached, and a name is
//! looked up only through such a version, or by the fold that made the node. So no node is ever written while it is
//! read.
//!
//! Invariants:
//! 1. A node lies within one chunk. Chunks are never given back before the pool is.
//! 2. The units of a chunk are in use, in one free list, or in one writer's hands: never in two of these.
//! 3. Names are handed out by [`Writer::node`] alone, and only names that were handed out and not freed are looked up.
//!    This module's callers see to the second half; nobody outside of `trie` can name a node.
//! 4. Every byte of a chunk is initialised as long as the chunk is there.

use std::{
    alloc::{Layout, alloc, dealloc, handle_alloc_error},
    fmt,
    ptr::{self, NonNull},
    sync::{
        Arc,
        atomic::{AtomicPtr, AtomicUsize, Ordering},
    },
};

use alloy_trie::Nibbles;
use parking_lot::Mutex;

use super::row::{ChildKind, Masks};

/// The bytes of a unit.
const UNIT: usize = 16;
/// The units of a chunk, as a power of two: 2 MiB.
const CHUNK_BITS: u32 = 17;
const CHUNK_UNITS: u32 = 1 << CHUNK_BITS;
const CHUNK_BYTES: usize = UNIT << CHUNK_BITS;
const CHUNK_LAYOUT: Layout = match Layout::from_size_align(CHUNK_BYTES, CHUNK_BYTES) {
    Ok(layout) => layout,
    Err(_) => panic!("a power of two"),
};
/// The most chunks that names reach.
const MAX_CHUNKS: usize = 1 << (32 - CHUNK_BITS);
/// The units of the largest node: the header, sixteen links with ages, and a row with the longest extension.
const MAX_UNITS: usize = (HEADER + 16 * 5 + 5 + 32 + 2 + 16 * 33).div_ceil(UNIT);
/// How many units a writer takes at a time.
const REGION_UNITS: u32 = 4096;
/// How many freed nodes of one size a writer takes at a time.
const REFILL: usize = 128;
/// How many nodes of one size ahead freed memory is fetched.
const PREFETCH_FREED: usize = 2;
/// The bytes before a node's links.
const HEADER: usize = UNIT;

const OPAQUE_FLAG: u8 = 1;
const BLINDED_FLAG: u8 = 2;

/// The name of a node in memory, or one of two things that are no node.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct NodeRef(u32);

impl NodeRef {
    /// The node, if there is one, is not in memory: the store knows it.
    pub(super) const UNLOADED: Self = Self(0);
    /// There is no branch here, whatever the store says.
    pub(super) const ABSENT: Self = Self(1);

    /// The node that this names, if it names one.
    pub(super) const fn loaded(self) -> Option<Self> {
        if self.0 > Self::ABSENT.0 { Some(self) } else { None }
    }
}

impl fmt::Debug for NodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UNLOADED => f.write_str("unloaded"),
            Self::ABSENT => f.write_str("absent"),
            Self(unit) => write!(f, "node {unit}"),
        }
    }
}

/// See the module's description.
pub(super) struct Pool {
    /// Null where no chunk was made yet. Written under `free`'s lock.
    chunks: Box<[AtomicPtr<u8>]>,
    free: Mutex<Free>,
    /// The bytes of all nodes in use, and of what writers have taken.
    used: AtomicUsize,
}

#[derive(Default)]
struct Free {
    /// The first units of freed nodes, by their number of units.
    nodes: Vec<Vec<u32>>,
    /// Ranges never used, or given back by writers: `(first, end)`.
    regions: Vec<(u32, u32)>,
    chunks: u32,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("used_bytes", &self.used_bytes()).finish_non_exhaustive()
    }
}

impl Pool {
    pub(super) fn new() -> Self {
        let chunks = (0..MAX_CHUNKS).map(|_| AtomicPtr::new(ptr::null_mut())).collect();
        let free = Free { nodes: vec![Vec::new(); MAX_UNITS + 1], ..Free::default() };
        Self { chunks, free: Mutex::new(free), used: AtomicUsize::new(0) }
    }

    /// The bytes that nodes take.
    pub(super) fn used_bytes(&self) -> usize {
        // A statistic: nothing is ordered by it.
        self.used.load(Ordering::Relaxed)
    }

    /// The node of this name.
    pub(super) fn node(&self, at: NodeRef) -> NodeView<'_> {
        let start = self.unit(at.0);
        // SAFETY: the name was handed out for a node that is not freed (invariant 3), so its units lie within one chunk
        // (invariant 1), are initialised, and are not written while this view lives (the module's argument). The
        // seventh byte says how many units there are.
        let bytes = unsafe {
            let units = usize::from(start.add(6).read());
            std::slice::from_raw_parts(start.as_ptr(), units * UNIT)
        };
        NodeView { bytes }
    }

    /// Asks the processor to bring a node's first `lines` cache lines near.
    #[inline]
    pub(super) fn prefetch(&self, at: NodeRef, lines: usize) {
        #[cfg(target_arch = "x86_64")]
        if at.loaded().is_some() {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let start = self.unit(at.0).as_ptr().cast_const().cast::<i8>();
            for line in 0..lines {
                // SAFETY: a prefetch reads nothing, whatever the address.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(64 * line)) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (at, lines);
    }

    fn unit(&self, unit: u32) -> NonNull<u8> {
        // Acquire: pairs with the release in `add_chunk`, for a thread that learnt of the name by other means than from
        // the chunk's maker.
        let chunk = self.chunks[(unit >> CHUNK_BITS) as usize].load(Ordering::Acquire);
        let offset = (unit & (CHUNK_UNITS - 1)) as usize * UNIT;
        // No unit of a chunk that was not made was ever handed out.
        NonNull::new(chunk.wrapping_add(offset)).filter(|_| !chunk.is_null()).expect("a node of this pool")
    }

    /// Sees to it that so many bytes can be taken without asking the system for memory: for a time at which nobody waits.
    pub(super) fn reserve(&self, bytes: usize) {
        let missing = |free: &Free| {
            let ready: usize = free.regions.iter().map(|(first, end)| (*end - *first) as usize * UNIT).sum();
            bytes.saturating_sub(ready).div_ceil(CHUNK_BYTES)
        };
        let chunks = missing(&self.free.lock());
        for _ in 0..chunks {
            let chunk = Chunk::new();
            let mut free = self.free.lock();
            if missing(&free) > 0 {
                self.add_chunk(&mut free, chunk);
            }
        }
    }

    fn add_chunk(&self, free: &mut Free, chunk: Chunk) {
        let at = free.chunks;
        assert!((at as usize) < MAX_CHUNKS, "trie nodes fill 64 GiB");
        // Release: pairs with the acquire in `unit`.
        self.chunks[at as usize].store(chunk.into_raw(), Ordering::Release);
        free.chunks += 1;
        let first = at << CHUNK_BITS;
        // The first two names mean something else.
        free.regions.push((first.max(2), first + (CHUNK_UNITS - 1)));
    }

    /// Frees nodes. None of them may be looked up any more.
    pub(super) fn free(&self, nodes: &[NodeRef]) {
        if nodes.is_empty() {
            return;
        }
        // Outside of the lock: sizes lie far away.
        let sizes: Vec<u8> = nodes.iter().map(|node| self.node(*node).bytes[6]).collect();
        let mut free = self.free.lock();
        let mut units = 0;
        for (node, size) in nodes.iter().zip(sizes) {
            units += usize::from(size);
            free.nodes[usize::from(size)].push(node.0);
        }
        self.used.fetch_sub(units * UNIT, Ordering::Relaxed);
    }

    /// Frees a node and all that can be reached from it.
    pub(super) fn free_tree(&self, top: NodeRef) {
        let mut nodes: Vec<_> = top.loaded().into_iter().collect();
        let mut next = 0;
        while next < nodes.len() {
            let links = self.node(nodes[next]);
            nodes.extend(links.links().filter_map(NodeRef::loaded));
            next += 1;
        }
        self.free(&nodes);
    }
}

/// The memory of a chunk that no pool has yet.
struct Chunk(NonNull<u8>);

// SAFETY: it is the only owner of its memory.
unsafe impl Send for Chunk {}

impl Chunk {
    fn new() -> Self {
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc(CHUNK_LAYOUT) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(CHUNK_LAYOUT) };
        // Nodes lie scattered over the chunks: with small pages, most looks at one would miss the address cache too.
        #[cfg(target_os = "linux")]
        // SAFETY: the range is one that was just allocated; advice changes no content. A refusal changes nothing else.
        let _refused =
            unsafe { rustix::mm::madvise(start.as_ptr().cast(), CHUNK_BYTES, rustix::mm::Advice::LinuxHugepage) };
        // Invariant 4: once for all nodes to come. It puts memory behind every page, so advice comes first.
        // SAFETY: the whole of the chunk, which nobody else knows of.
        unsafe { start.as_ptr().write_bytes(0, CHUNK_BYTES) };
        Self(start)
    }

    fn into_raw(self) -> *mut u8 {
        std::mem::ManuallyDrop::new(self).0.as_ptr()
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this layout, and in no pool's hands.
        unsafe { dealloc(self.0.as_ptr(), CHUNK_LAYOUT) };
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for chunk in &mut self.chunks {
            let chunk = *chunk.get_mut();
            if !chunk.is_null() {
                // SAFETY: made by `Chunk::new` with this layout, and given back nowhere else.
                unsafe { dealloc(chunk, CHUNK_LAYOUT) };
            }
        }
    }
}

/// What makes nodes, for one thread. Takes memory from the pool in large pieces, and gives back what is left.
#[derive(Debug)]
pub(super) struct Writer {
    pool: Arc<Pool>,
    free: Vec<Vec<u32>>,
    /// Sizes of which the pool had none left when it was last asked.
    exhausted: u64,
    region: (u32, u32),
}

const _: () = assert!(MAX_UNITS < 64, "sizes fit a mask");

impl Writer {
    pub(super) fn new(pool: &Arc<Pool>) -> Self {
        let free = vec![Vec::new(); MAX_UNITS + 1];
        Self { pool: Arc::clone(pool), free, exhausted: 0, region: (0, 0) }
    }

    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Makes a node with a row of `row_length` bytes that `write` fills.
    pub(super) fn node(&mut self, plan: &NodePlan<'_>, row_length: usize, write: impl FnOnce(&mut [u8])) -> NodeRef {
        let links = plan.linked.count_ones() as usize;
        debug_assert_eq!(links, plan.links.len());
        let length = HEADER + 5 * links + row_length;
        let units = length.div_ceil(UNIT);
        let at = self.take(units);
        let start = self.pool.unit(at);
        // SAFETY: these units belong to this writer alone (invariant 2), lie within one chunk (invariant 1), are
        // initialised (invariant 4), and nobody knows their name yet.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), units * UNIT) };
        bytes[0..4].copy_from_slice(&plan.epoch.to_le_bytes());
        bytes[4..6].copy_from_slice(&(row_length as u16).to_le_bytes());
        bytes[6] = units as u8;
        bytes[7] = if plan.masks.opaque != 0 { OPAQUE_FLAG } else { 0 } | if plan.blinded { BLINDED_FLAG } else { 0 };
        bytes[8..10].copy_from_slice(&plan.linked.to_le_bytes());
        bytes[10..12].copy_from_slice(&plan.masks.state.to_le_bytes());
        bytes[12..14].copy_from_slice(&plan.masks.branch.to_le_bytes());
        bytes[14..16].copy_from_slice(&(plan.references_at as u16).to_le_bytes());
        for (at, link) in plan.links.iter().enumerate() {
            bytes[HEADER + 4 * at..][..4].copy_from_slice(&link.node.0.to_le_bytes());
            bytes[HEADER + 4 * links + at] = link.age;
        }
        write(&mut bytes[HEADER + 5 * links..][..row_length]);
        NodeRef(at)
    }

    fn take(&mut self, units: usize) -> u32 {
        if let Some(at) = self.free[units].pop() {
            self.prefetch_next(units);
            return at;
        }
        if self.exhausted & 1 << units == 0 {
            let mut free = self.pool.free.lock();
            let freed = &mut free.nodes[units];
            let more = freed.split_off(freed.len().saturating_sub(REFILL));
            self.pool.used.fetch_add(more.len() * units * UNIT, Ordering::Relaxed);
            self.free[units] = more;
            if let Some(at) = self.free[units].pop() {
                return at;
            }
            self.exhausted |= 1 << units;
        }
        if self.region.1 - self.region.0 < units as u32 {
            self.next_region();
        }
        let at = self.region.0;
        self.region.0 += units as u32;
        at
    }

    /// Brings freed memory near that will soon be written: it was last looked at long ago.
    fn prefetch_next(&self, units: usize) {
        let waiting = &self.free[units];
        if let Some(at) = waiting.len().checked_sub(PREFETCH_FREED) {
            self.pool.prefetch(NodeRef(waiting[at]), units.div_ceil(64 / UNIT));
        }
    }

    /// Gives the rest of the region back, and takes another one.
    fn next_region(&mut self) {
        let pool = Arc::clone(&self.pool);
        let mut free = pool.free.lock();
        self.return_region(&mut free);
        let (first, end) = match free.regions.pop_if(|(first, end)| (*end - *first) as usize >= MAX_UNITS) {
            Some(region) => region,
            None => {
                pool.add_chunk(&mut free, Chunk::new());
                // UNWRAP: a chunk adds its region at the end.
                free.regions.pop().expect("a chunk was added")
            }
        };
        let taken = end.min(first + REGION_UNITS);
        if taken < end {
            free.regions.push((taken, end));
        }
        pool.used.fetch_add((taken - first) as usize * UNIT, Ordering::Relaxed);
        self.region = (first, taken);
    }

    fn return_region(&mut self, free: &mut Free) {
        let (first, end) = std::mem::take(&mut self.region);
        if first == end {
            return;
        }
        self.pool.used.fetch_sub((end - first) as usize * UNIT, Ordering::Relaxed);
        if (end - first) as usize > MAX_UNITS {
            free.regions.push((first, end));
        } else {
            // A rest too short for any node is found by the size it has.
            free.nodes[(end - first) as usize].push(first);
        }
    }

    /// Frees nodes that this writer made and nobody else knows of: their memory is used again at once.
    pub(super) fn discard(&mut self, nodes: &[NodeRef]) {
        for node in nodes {
            let units = self.pool.node(*node).bytes.len() / UNIT;
            self.free[units].push(node.0);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let pool = Arc::clone(&self.pool);
        let mut free = pool.free.lock();
        self.return_region(&mut free);
        let mut units = 0;
        for (size, nodes) in self.free.iter_mut().enumerate() {
            units += size * nodes.len();
            free.nodes[size].append(nodes);
        }
        pool.used.fetch_sub(units * UNIT, Ordering::Relaxed);
    }
}

/// What a node holds besides its row.
#[derive(Debug)]
pub(super) struct NodePlan<'a> {
    pub(super) epoch: u32,
    pub(super) masks: Masks,
    pub(super) blinded: bool,
    /// Where in the row the references begin.
    pub(super) references_at: usize,
    /// Which children are linked.
    pub(super) linked: u16,
    /// One for each linked child.
    pub(super) links: &'a [Link],
}

/// A child in memory, or one that is known to be none.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Link {
    pub(super) node: NodeRef,
    /// When it was written, coarsely: see [`super::forest`].
    pub(super) age: u8,
}

/// A node in memory.
#[derive(Clone, Copy)]
pub(super) struct NodeView<'a> {
    bytes: &'a [u8],
}

impl<'a> NodeView<'a> {
    fn half(self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// In which fold it was written.
    pub(super) fn epoch(self) -> u32 {
        u32::from_le_bytes([self.bytes[0], self.bytes[1], self.bytes[2], self.bytes[3]])
    }

    /// Which children are linked.
    pub(super) fn linked(self) -> u16 {
        self.half(8)
    }

    pub(super) fn masks(self) -> Masks {
        let (state, branch) = (self.half(10), self.half(12));
        let opaque = if self.bytes[7] & OPAQUE_FLAG == 0 { 0 } else { super::row::opaque_mask(self.row()) };
        Masks { state, branch, opaque }
    }

    pub(super) fn is_blinded(self) -> bool {
        self.bytes[7] & BLINDED_FLAG != 0
    }

    pub(super) fn references_at(self) -> usize {
        usize::from(self.half(14))
    }

    /// The stored form.
    pub(super) fn row(self) -> &'a [u8] {
        &self.bytes[HEADER + 5 * self.linked().count_ones() as usize..][..usize::from(self.half(4))]
    }

    pub(super) fn extension(self) -> Nibbles {
        super::row::extension_of(self.row())
    }

    pub(super) fn extension_length(self) -> usize {
        super::row::extension_length(self.row())
    }

    /// Where a child that is a branch is.
    pub(super) fn branch_link(self, nibble: u8) -> NodeRef {
        if self.half(12) & 1 << nibble == 0 { NodeRef::UNLOADED } else { self.link(nibble) }
    }

    /// Where a child is.
    pub(super) fn link(self, nibble: u8) -> NodeRef {
        let linked = self.linked();
        if linked & 1 << nibble == 0 {
            return NodeRef::UNLOADED;
        }
        self.link_at((linked & ((1 << nibble) - 1)).count_ones() as usize)
    }

    pub(super) fn link_with_age(self, nibble: u8) -> Link {
        let linked = self.linked();
        if linked & 1 << nibble == 0 {
            return Link::default();
        }
        let at = (linked & ((1 << nibble) - 1)).count_ones() as usize;
        Link { node: self.link_at(at), age: self.bytes[HEADER + 4 * linked.count_ones() as usize + at] }
    }

    fn link_at(self, at: usize) -> NodeRef {
        let bytes = &self.bytes[HEADER + 4 * at..][..4];
        NodeRef(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// All links.
    pub(super) fn links(self) -> impl Iterator<Item = NodeRef> + 'a {
        (0..self.linked().count_ones() as usize).map(move |at| self.link_at(at))
    }

    /// What stands in one of the sixteen places.
    pub(super) fn kind(self, nibble: u8) -> ChildKind {
        self.masks().kind(nibble)
    }
}

#[cfg(test)]
mod tests;
