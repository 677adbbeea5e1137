//! Spreads many inputs over a kernel's lanes.
//!
//! Invariants:
//! 1. Nothing here allocates: inputs wait for company in arrays on the stack, at most `L - 1` per class.
//! 2. A group of lanes holds inputs of one rate-block count only; inputs left without company, and those of more than
//!    [`CLASSES`] blocks, run through [`hash_jobs`], which needs no equal counts.

use crate::{
    lanes::{Job, LaneKernel, hash_jobs},
    permutation::rate_blocks,
    scalar::Scalar,
};
use alloy_primitives::B256;

/// Inputs of one to this many rate blocks wait for others of their count: 1,087 bytes, twice the largest trie node.
const CLASSES: usize = 8;

/// Inputs of one rate-block count that wait until they fill the lanes.
#[derive(Clone, Copy)]
struct Class<'a, const L: usize> {
    messages: [&'a [u8]; L],
    /// The place of each message in the caller's slices.
    indices: [usize; L],
    waiting: usize,
}

impl<'a, const L: usize> Class<'a, L> {
    /// Adds a message; hashes all that wait when there is one per lane.
    #[inline]
    fn push<K: LaneKernel<L>>(&mut self, kernel: K, message: &'a [u8], index: usize, out: &mut [B256]) {
        self.messages[self.waiting] = message;
        self.indices[self.waiting] = index;
        self.waiting += 1;
        if self.waiting == L {
            self.waiting = 0;
            let mut digests = [B256::ZERO; L];
            kernel.hash_messages(&self.messages, &mut digests);
            for (index, digest) in self.indices.iter().zip(digests) {
                out[*index] = digest;
            }
        }
    }
}

/// Hashes messages of any lengths.
pub(crate) fn hash_mixed<const L: usize, K: LaneKernel<L>>(kernel: K, messages: &[impl AsRef<[u8]>], out: &mut [B256]) {
    if messages.len() < K::WORTHWHILE {
        return Scalar::detect().hash_each(messages, out);
    }
    let mut classes = [Class { messages: [&[]; L], indices: [0; L], waiting: 0 }; CLASSES];
    let mut any_long = false;
    let mut index = 0;
    while index < messages.len() {
        // Neighbours that already are of one count need not wait.
        if let Some(neighbours) = messages[index..].first_chunk::<L>() {
            let lanes = neighbours.each_ref().map(|message| message.as_ref());
            let blocks = rate_blocks(lanes[0].len());
            if lanes.iter().all(|message| rate_blocks(message.len()) == blocks)
                && let Some(digests) = out[index..].first_chunk_mut()
            {
                kernel.hash_messages(&lanes, digests);
                index += L;
                continue;
            }
        }
        let message = messages[index].as_ref();
        match classes.get_mut(rate_blocks(message.len()) - 1) {
            Some(class) => class.push(kernel, message, index, out),
            None => any_long = true,
        }
        index += 1;
    }

    // Longest first: what is short fills the lanes that the long ones leave idle.
    let is_long = |message: &[u8]| rate_blocks(message.len()) > CLASSES;
    let long = messages[..if any_long { messages.len() } else { 0 }]
        .iter()
        .enumerate()
        .map(|(index, message)| Job { rest: message.as_ref(), index })
        .filter(|job| is_long(job.rest));
    let left_over = classes.iter().rev().flat_map(|class| {
        let waiting = class.messages.iter().zip(&class.indices).take(class.waiting);
        waiting.map(|(message, index)| Job { rest: message, index: *index })
    });
    hash_jobs(kernel, long.chain(left_over), out);
}

/// Hashes messages of equal length, `message(i)` into `out[i]`.
pub(crate) fn hash_equal<'a, const L: usize, K: LaneKernel<L>>(
    kernel: K,
    message: impl Fn(usize) -> &'a [u8],
    out: &mut [B256],
) {
    let scalar = Scalar::detect();
    fill_lanes::<L>(
        K::WORTHWHILE,
        message,
        |lanes, digests| kernel.hash_messages(lanes, digests),
        |message| scalar.hash(message),
        out,
    );
}

/// Hashes padded messages of equal length, `padded(i)` into `out[i]`.
pub(crate) fn hash_equal_padded<'a, const L: usize, K: LaneKernel<L>>(
    kernel: K,
    padded: impl Fn(usize) -> &'a [u8],
    out: &mut [B256],
) {
    let scalar = Scalar::detect();
    fill_lanes::<L>(
        K::WORTHWHILE,
        padded,
        |lanes, digests| kernel.hash_padded(lanes, digests),
        |padded| scalar.hash_padded(padded),
        out,
    );
}

/// Takes `L` inputs at a time to `all_lanes`; of a last, smaller group the free lanes repeat its last input.
#[inline]
fn fill_lanes<'a, const L: usize>(
    worthwhile: usize,
    input: impl Fn(usize) -> &'a [u8],
    all_lanes: impl Fn(&[&[u8]; L], &mut [B256; L]),
    one: impl Fn(&[u8]) -> B256,
    out: &mut [B256],
) {
    let (groups, rest) = out.as_chunks_mut::<L>();
    let grouped = groups.len() * L;
    for (group, digests) in groups.iter_mut().enumerate() {
        all_lanes(&std::array::from_fn(|lane| input(group * L + lane)), digests);
    }
    if rest.is_empty() {
        return;
    }
    if rest.len() < worthwhile {
        for (index, digest) in rest.iter_mut().enumerate() {
            *digest = one(input(grouped + index));
        }
        return;
    }
    let mut digests = [B256::ZERO; L];
    all_lanes(&std::array::from_fn(|lane| input(grouped + lane.min(rest.len() - 1))), &mut digests);
    rest.copy_from_slice(&digests[..rest.len()]);
}
