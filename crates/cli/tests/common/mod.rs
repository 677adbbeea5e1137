//! What the tests of the tool share: running it within the process and as a process, and a demo chain in files.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use clap::Parser;
use foldgate_cli::{Causes, Cli, CliError};
use foldgate_testing::chains::ChainReader;
use serde_json::Value;
use tempfile::TempDir;

/// What a command printed within this process, and whether all was well.
#[derive(Debug)]
pub struct Ran {
    pub good: bool,
    pub out: String,
    pub notes: String,
}

impl Ran {
    /// The one line of JSON.
    pub fn json(&self) -> Value {
        assert_eq!(self.out.lines().count(), 1, "{}", self.out);
        serde_json::from_str(&self.out).unwrap()
    }
}

/// Runs the tool within this process.
pub fn run(arguments: &[&str]) -> Result<Ran, CliError> {
    let cli = Cli::try_parse_from([&["foldgate"], arguments].concat()).unwrap();
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let good = foldgate_cli::run(cli, &mut out, &mut notes)?;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ok(Ran { good, out: text(out), notes: text(notes) })
}

/// Runs the built tool.
pub fn process(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_foldgate")).args(arguments).output().unwrap()
}

/// An error with everything that caused it.
pub fn chain(error: &dyn Error) -> String {
    Causes(error).to_string()
}

/// The number under a key.
pub fn count(json: &Value, key: &str) -> u64 {
    json[key].as_u64().unwrap_or_else(|| panic!("{key} in {json}"))
}

/// A chain that `foldgate demo --export` wrote.
#[derive(Debug)]
pub struct DemoChain {
    directory: TempDir,
}

impl DemoChain {
    pub fn new(blocks: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().to_str().unwrap();
        let blocks_text = blocks.to_string();
        let ran = run(&["demo", "--backend", "memory", "--blocks", &blocks_text, "--export", dir, "--json"]).unwrap();
        let json = ran.json();
        assert_eq!(count(&json, "folded_ahead"), blocks, "{json}");
        Self { directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The RLP of its blocks.
    pub fn blocks(&self) -> Vec<Vec<u8>> {
        let reader = ChainReader::open(&self.path("chain.rlp")).unwrap();
        reader.map(|block| block.unwrap().rlp.to_vec()).collect()
    }

    /// Writes these blocks to a new chain file.
    pub fn write(&self, name: &str, blocks: &[Vec<u8>]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, blocks.concat()).unwrap();
        path
    }

    /// Replays a chain file on this chain's genesis.
    pub fn replay(&self, chain: &Path, more: &[&str]) -> Result<Ran, CliError> {
        let genesis = self.path("genesis.json");
        let mut arguments = vec!["replay", "--amsterdam-rules", "osaka", "--json", "--genesis"];
        arguments.extend([genesis.to_str().unwrap(), "--chain", chain.to_str().unwrap()]);
        arguments.extend(more);
        run(&arguments)
    }
}
