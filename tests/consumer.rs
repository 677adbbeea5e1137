//! A dependent outside the workspace picks a backend by feature, gets that backend, and no other comes along.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The consumer, copied out of the tree, with the workspace's lock file beside it: it resolves to the same versions.
fn consumer() -> TempDir {
    let dir = TempDir::new().unwrap();
    let source = Path::new(ROOT).join("tests/consumer");
    let manifest = fs::read_to_string(source.join("Cargo.toml")).unwrap();
    let here = format!("path = {ROOT:?}");
    assert!(manifest.contains("path = \"../..\""), "the manifest's path to the workspace");
    fs::write(dir.path().join("Cargo.toml"), manifest.replace("path = \"../..\"", &here)).unwrap();
    fs::create_dir(dir.path().join("src")).unwrap();
    fs::copy(source.join("src/main.rs"), dir.path().join("src/main.rs")).unwrap();
    fs::copy(Path::new(ROOT).join("Cargo.lock"), dir.path().join("Cargo.lock")).unwrap();
    dir
}

fn cargo(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO"));
    // Built beside the workspace's own artefacts, and kept from run to run.
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("consumer");
    command.current_dir(dir).env("CARGO_TARGET_DIR", target);
    command
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn only(backend: &str, own: &[&str], others: &[&str]) {
    let dir = consumer();
    let tree = output(cargo(dir.path()).args(["tree", "--edges", "normal", "--prefix", "none", "--features", backend]));
    let crates: Vec<_> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    for name in own {
        assert!(crates.contains(name), "{name} is missing from\n{tree}");
    }
    for name in others {
        assert!(!crates.contains(name), "{name} came along:\n{tree}");
    }
    let store = TempDir::new().unwrap();
    let run = ["run", "--quiet", "--features", backend, "--"];
    let printed = output(cargo(dir.path()).args(run).arg(store.path()));
    let root = "0x56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421";
    assert!(printed.contains(root), "the root of the empty state: {printed}");
}

/// One test, since both builds share a folder.
#[test]
fn each_backend_comes_alone() {
    let tools = ["foldgate-evm", "foldgate-testing", "revm", "clap"];
    only("redb", &["foldgate-storage-redb", "redb"], &[&["foldgate-storage-mdbx", "libmdbx"], &tools[..]].concat());
    only("mdbx", &["foldgate-storage-mdbx", "libmdbx"], &[&["foldgate-storage-redb", "redb"], &tools[..]].concat());
}
