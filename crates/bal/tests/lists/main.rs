//! Tests of whole lists: published, generated, damaged.

mod fixtures;
mod generate;
mod one_pass;
mod properties;
mod reference;
