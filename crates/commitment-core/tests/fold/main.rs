//! The fold, the load, the unwinding and the witness, each held to an oracle that builds every trie anew from its leaves.

mod batches;
mod bulk;
mod corrupt;
mod histories;
mod keys;
mod model;
mod overlays;
mod siblings;
mod single;
mod unwind;
mod vectors;
mod versions;
mod witness;
