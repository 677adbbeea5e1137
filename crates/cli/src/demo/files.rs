//! The demonstration's chain in files, as `foldgate replay` reads them: `genesis.json`, `chain.rlp`, and
//! `bals/<number>.rlp` for each block.
//!
//! Invariant: nothing that is there already is overwritten.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use alloy_consensus::{Block as WireBlock, BlockBody};
use alloy_genesis::Genesis;

use super::DemoError;
use crate::import::{List, Ready};

/// The files in the making.
#[derive(Debug)]
pub(super) struct ChainFiles {
    lists: PathBuf,
    path: PathBuf,
    chain: BufWriter<File>,
}

impl ChainFiles {
    /// Makes the folder, and writes the genesis.
    pub(super) fn create(directory: &Path, genesis: &Genesis) -> Result<Self, DemoError> {
        let lists = directory.join("bals");
        fs::create_dir_all(&lists).map_err(fault(&lists))?;
        let path = directory.join("genesis.json");
        let file = File::create_new(&path).map_err(fault(&path))?;
        let mut file = BufWriter::new(file);
        serde_json::to_writer(&mut file, genesis)?;
        file.flush().map_err(fault(&path))?;
        let path = directory.join("chain.rlp");
        let chain = BufWriter::new(File::create_new(&path).map_err(fault(&path))?);
        Ok(Self { lists, path, chain })
    }

    /// Writes a block, and its list.
    pub(super) fn add(&mut self, ready: &Ready) -> Result<(), DemoError> {
        let block = ready.block.clone();
        let withdrawals = block.withdrawals.map(Into::into);
        let body = BlockBody { transactions: block.transactions, ommers: block.ommers, withdrawals };
        let rlp = alloy_rlp::encode(WireBlock { header: block.header, body });
        self.chain.write_all(&rlp).map_err(fault(&self.path))?;
        if let List::Payload(raw) | List::Sourced(raw) = &ready.list {
            let path = self.lists.join(format!("{}.rlp", ready.block.header.number));
            fs::write(&path, raw).map_err(fault(&path))?;
        }
        Ok(())
    }

    /// Ends the chain's file.
    pub(super) fn finish(mut self) -> Result<(), DemoError> {
        self.chain.flush().map_err(fault(&self.path))
    }
}

fn fault(path: &Path) -> impl FnOnce(io::Error) -> DemoError {
    let path = path.to_owned();
    move |source| DemoError::Export { path, source }
}
