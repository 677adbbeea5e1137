//! The page cache: its protocol model-checked, and the models tried on faults; its reads held to the snapshot's, its
//! warm-up held to what a fold reads.

mod broken;
mod protocol;
mod threads;
mod warm;
