//! Real execution of whole blocks on revm, behind the executor's side of the pipeline.
//!
//! The way of a block through it:
//!
//! ```text
//! RLP --block::Block::decode--> Block --senders::recover_senders--> senders
//!                                 |                                    |
//!              validate::validate_block(parent header)                 |
//!                                 v                                    v
//!                    execute::execute_block(parent's view: any StateReader)
//!                                 |  sink(index, StateWrites): what each step changed
//!                                 v
//!                    ExecutedBlock --validate::validate_execution--> valid, or BlockInvalid
//! ```
//!
//! Invariants:
//! 1. Nothing here knows a store: the parent's state is any [`foldgate_core::StateReader`].
//! 2. A block is judged only by its own content. A failing read, or a cancellation, is an error of the machine and never
//!    a [`BlockInvalid`].
//! 3. The executor needs no access list; it rebuilds the block's list (EIP-7928) under the rules of every fork.
//!
//! Limits: creating a contract at an address that holds storage but neither code nor nonce succeeds, though EIP-7610 forbids
//! it, because the EVM is not told of storage roots; blocks of Constantinople before Petersburg pay Petersburg's gas for SSTORE;
//! receipts roots before Byzantium are skipped and counted; seals and difficulties of proof of work are not checked.

pub mod block;
pub mod chain_spec;
mod database;
pub mod drive;
pub mod execute;
pub mod genesis;
pub mod invalid;
mod receipt;
mod record;
pub mod senders;
mod system;
mod system_gas;
pub mod validate;

pub use block::{Block, BlockDecodeError, Transaction};
pub use chain_spec::{AmsterdamRules, ChainSpec, ChainSpecError};
pub use drive::{Driven, drive, request};
pub use execute::{Counters, ExecutedBlock, ExecutionError, execute_block, execute_block_with_list, process_block};
pub use genesis::{GenesisEntry, GenesisError, genesis_entries, genesis_header};
pub use invalid::BlockInvalid;
pub use senders::{SenderError, recover_senders};
pub use validate::{validate_block, validate_body_roots, validate_execution};
