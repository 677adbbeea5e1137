//! The arrows of ARCHITECTURE.md: which crate may know which. Checked on `cargo metadata`.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// Package, and the workspace's packages that it may depend on. Dev-dependencies are free: tests see everything.
const ARROWS: &[(&str, &[&str])] = &[
    ("foldgate-keccak", &[]),
    ("foldgate-core", &["foldgate-keccak"]),
    ("foldgate-bal", &["foldgate-core", "foldgate-keccak"]),
    ("foldgate-storage-redb", &["foldgate-core"]),
    ("foldgate-storage-mdbx", &["foldgate-core"]),
    ("foldgate-record-log", &["foldgate-core"]),
    ("foldgate-pipeline", &["foldgate-core", "foldgate-bal"]),
    ("foldgate-evm", &["foldgate-core", "foldgate-bal", "foldgate-pipeline"]),
    ("foldgate-testing", &["foldgate-core", "foldgate-bal"]),
    ("foldgate-bench", &["foldgate-core", "foldgate-keccak", "foldgate-record-log"]),
    (
        "foldgate",
        &[
            "foldgate-core",
            "foldgate-bal",
            "foldgate-pipeline",
            "foldgate-evm",
            "foldgate-record-log",
            "foldgate-storage-redb",
            "foldgate-storage-mdbx",
        ],
    ),
];

/// Sees everything, and nothing depends on it.
const TOOL: &str = "foldgate-cli";

/// Crates that bring I/O or a backend: the pure rooms must not know them.
const BACKENDS: &[&str] = &["redb", "libmdbx"];

#[test]
fn crates_know_only_what_the_map_allows() {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages: BTreeMap<&str, Vec<&str>> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (package["name"].as_str().unwrap(), normal_dependencies(package)))
        .collect();
    assert_eq!(packages.len(), ARROWS.len() + 1, "a crate is missing from the map: {:?}", packages.keys());
    for (name, allowed) in ARROWS {
        for dependency in &packages[name] {
            let ours = dependency.starts_with("foldgate");
            assert!(!ours || allowed.contains(dependency), "{name} must not know {dependency}");
            let holds_backend = name.starts_with("foldgate-storage-");
            assert!(holds_backend || !BACKENDS.contains(dependency), "{name} must not name a backend: {dependency}");
        }
        assert!(!packages[name].contains(&TOOL), "nothing depends on the tool");
    }
}

fn normal_dependencies(package: &Value) -> Vec<&str> {
    let dependencies = package["dependencies"].as_array().unwrap().iter();
    let normal = dependencies.filter(|dependency| dependency["kind"].is_null());
    normal.map(|dependency| dependency["name"].as_str().unwrap()).collect()
}
