//! The page cache: its protocol model-checked, its reads held to the snapshot's, its warm-up held to what a fold reads.

mod protocol;
mod threads;
mod warm;
