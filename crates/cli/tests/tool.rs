//! The tool as a process: exit statuses, and the shape of its JSON.

mod common;

use std::fs;

use common::process;
use serde_json::Value;

/// The keys of the one line that a command printed.
fn keys(stdout: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let json: Value = serde_json::from_str(text).unwrap();
    json.as_object().unwrap().keys().cloned().collect()
}

fn sorted<const N: usize>(mut keys: [&str; N]) -> Vec<&str> {
    keys.sort_unstable();
    keys.to_vec()
}

const RUN: [&str; 8] =
    ["blocks", "roots_ok", "folded_ahead", "folded_incremental", "skips", "exec_ms", "fold_ms", "wall_ms"];

#[test]
fn demo_prints_one_line_of_json() {
    let output = process(&["demo", "--blocks", "2", "--backend", "memory", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut got = keys(&output.stdout);
    got.sort_unstable();
    assert_eq!(got, sorted(RUN));
}

#[test]
fn demo_tells_people_of_each_block() {
    let output = process(&["demo", "--blocks", "2", "--backend", "memory"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("wall ms") && text.contains("the overlap hid") && text.contains("2 ahead"), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("   300 ")).count(), 2, "{text}");
}

#[test]
fn what_cannot_be_done_has_status_1_and_says_why() {
    let empty = tempfile::tempdir().unwrap();
    let broken = empty.path().join("broken.json");
    fs::write(&broken, "{\"test\": {\"network\": 7}}").unwrap();
    let (folder, broken) = (empty.path().join("none"), broken.to_str().unwrap());
    fs::create_dir(&folder).unwrap();
    let folder = folder.to_str().unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&["fixtures", folder], "there is no test here"),
        (&["fixtures", broken], "field `network`"),
        (&["witness", broken], "missing field"),
        (&["witness", "/nowhere/at/all.json.gz"], "/nowhere/at/all.json.gz"),
        (&["replay", "--genesis", broken, "--chain", broken], "missing field `config`"),
        (&["witness", "/nowhere/at/all.json.gz", broken], "missing field"),
    ];
    for (arguments, says) in cases {
        let output = process(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains(says), "{arguments:?}: {stderr}");
    }
}

#[test]
fn arguments_without_sense_have_status_2() {
    for arguments in [&["fixtures"][..], &["fixtures", "x", "--no-execute", "--mode", "bal"], &["unknown"]] {
        assert_eq!(process(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[cfg(not(feature = "mdbx"))]
#[test]
fn a_backend_that_was_not_built_in_is_named_with_its_feature() {
    let output = process(&["demo", "--backend", "mdbx"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("cargo feature `mdbx`"), "{stderr}");
}
