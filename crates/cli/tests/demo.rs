//! The demonstration: its blocks are folded ahead, its figures have the promised shape, and it touches no store in use.

use foldgate_cli::{
    args::{DemoArgs, ModeArg},
    backend::BackendKind,
    demo::run,
};

fn folded_ahead(backend: BackendKind) {
    let args = |mode| DemoArgs { blocks: 4, backend, dir: None, export: None, mode, json: true };
    let report = run(&args(ModeArg::Bal)).unwrap();
    let summary = &report.summary;
    assert_eq!((summary.blocks, summary.roots_ok, summary.folded_ahead, summary.folded_incremental), (4, 4, 4, 0));
    assert!(summary.skips.is_empty());
    assert!(report.leaves > 40_000, "{}", report.leaves);
    assert!(report.blocks.iter().all(|block| block.transactions == 300 && block.gas_used > 5_000_000));

    let incremental = run(&args(ModeArg::Incremental)).unwrap().summary;
    assert_eq!((incremental.roots_ok, incremental.folded_ahead, incremental.folded_incremental), (4, 0, 4));
    assert_eq!(incremental.skips.get("switched_off"), Some(&4));
}

#[test]
fn memory() {
    folded_ahead(BackendKind::Memory);
}

#[cfg(feature = "mdbx")]
#[test]
fn mdbx() {
    folded_ahead(BackendKind::Mdbx);
}

#[cfg(feature = "redb")]
mod on_redb {
    use std::process::Command;

    use serde_json::Value;
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn redb() {
        folded_ahead(BackendKind::Redb);
    }

    #[test]
    fn the_tool_prints_one_line_and_refuses_a_store_in_use() {
        let dir = TempDir::new().unwrap();
        let demo = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_foldgate"));
            command.args(["demo", "--blocks", "2", "--json", "--dir"]).arg(dir.path()).output().unwrap()
        };
        let first = demo();
        assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
        let lines: Vec<_> = first.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.len(), 1);
        let line: Value = serde_json::from_slice(lines[0]).unwrap();
        let keys: Vec<_> = line.as_object().unwrap().keys().map(String::as_str).collect();
        let promised =
            ["blocks", "exec_ms", "fold_ms", "folded_ahead", "folded_incremental", "roots_ok", "skips", "wall_ms"];
        assert_eq!(keys, promised);
        assert_eq!(line["roots_ok"], 2);

        let second = demo();
        assert!(!second.status.success());
        let said = String::from_utf8_lossy(&second.stderr);
        assert!(said.contains(&dir.path().display().to_string()), "{said}");
    }
}
