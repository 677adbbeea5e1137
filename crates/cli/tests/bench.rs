//! `foldgate bench` from end to end, on states small enough for a test.

mod common;

use std::collections::BTreeSet;

use clap::Parser;
use common::{count, process, run};
use foldgate_cli::{Cli, CliError};
use serde_json::Value;

/// The keys that every line of a race has, in order, before any others.
const KEYS: [&str; 18] = [
    "name",
    "backend",
    "threads",
    "workload",
    "blocks",
    "gate_ms_min",
    "gate_ms_median",
    "total_ms_min",
    "total_ms_median",
    "cold_ms_median",
    "cpu_ms",
    "flush_cpu_ms",
    "rss_mb",
    "permutations",
    "permutations_min",
    "pe",
    "roots_checked",
    "keys",
];

/// Figures that are numbers for foldgate on every backend.
const NUMBERS: [&str; 12] = [
    "gate_ms_min",
    "gate_ms_median",
    "total_ms_min",
    "total_ms_median",
    "cold_ms_median",
    "cpu_ms",
    "flush_cpu_ms",
    "rss_mb",
    "permutations",
    "permutations_min",
    "pe",
    "floor_ratio",
];

fn lines(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn race(workload: &str, more: &[&str]) -> Vec<Value> {
    let mut arguments = vec!["bench", "fold", "--workload", workload, "--scale", "500", "--blocks", "5", "--json"];
    arguments.extend(more);
    let ran = run(&arguments).unwrap();
    assert!(ran.good);
    lines(&ran.out)
}

fn check(line: &Value) {
    for key in KEYS {
        assert!(line.get(key).is_some(), "{key} in {line}");
    }
    assert_eq!(count(line, "blocks"), 5);
    assert_eq!(count(line, "cold_blocks"), 1);
    assert!(count(line, "roots_checked") > 0);
}

fn check_ours(line: &Value) {
    check(line);
    assert_eq!(line["name"], "foldgate");
    for key in NUMBERS {
        assert!(line[key].as_f64().is_some_and(|figure| figure >= 0.0), "{key} in {line}");
    }
    assert!(line["gate_ms_min"].as_f64() <= line["gate_ms_median"].as_f64());
    assert!(count(line, "permutations_min") > 0);
}

/// The backends that this test was built with.
fn backends() -> Vec<&'static str> {
    let mut names = vec!["memory"];
    names.extend(cfg!(feature = "redb").then_some("redb"));
    names.extend(cfg!(feature = "mdbx").then_some("mdbx"));
    names
}

#[test]
fn a_line_for_each_backend_and_number_of_threads_has_every_key() {
    let got = race("w1", &[]);
    assert_eq!(got.len(), 2 * backends().len());
    got.iter().for_each(check_ours);
    let who: BTreeSet<_> = got.iter().map(|line| (line["backend"].as_str().unwrap(), count(line, "threads"))).collect();
    assert_eq!(who, backends().into_iter().flat_map(|backend| [(backend, 1), (backend, 2)]).collect());
}

#[test]
fn the_whale_brings_the_spread_and_mainnet_both_ways_to_draw() {
    let memory = ["--backend", "memory", "--threads", "1"];
    let of = |workload, key: &str| -> Vec<String> {
        let got = race(workload, &memory);
        got.iter().for_each(check_ours);
        got.iter().map(|line| line[key].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(of("w4", "workload"), ["w4", "w4-spread"]);
    assert_eq!(of("m60", "keys"), ["uniform", "zipf"]);
    let zipf = race("m1g", &[&memory[..], &["--keys", "zipf"]].concat());
    assert_eq!(zipf.len(), 1);
    assert_eq!(zipf[0]["keys"], "zipf");
    assert_eq!(race("w2", &memory).len() + race("w3", &memory).len(), 2);
}

#[test]
fn people_get_a_table() {
    let more = ["--backend", "memory", "--scale", "500", "--blocks", "5"];
    let out = run(&[&["bench", "fold", "--workload", "w1-10m"][..], &more].concat()).unwrap().out;
    assert!(out.contains("w1-10m, uniform keys") && out.contains("permutations at least"), "{out}");
    assert_eq!(out.lines().filter(|line| line.starts_with("foldgate")).count(), 2, "{out}");
}

#[test]
fn a_load_says_how_long_it_took_and_how_large_it_is() {
    let got = lines(&run(&["bench", "load", "--accounts", "5000", "--json"]).unwrap().out);
    assert_eq!(got.iter().map(|line| line["backend"].as_str().unwrap()).collect::<Vec<_>>(), backends());
    for line in &got {
        assert_eq!(count(line, "accounts"), 5000);
        assert_eq!(count(line, "rows"), 5000 + count(line, "trie_rows"));
        assert_eq!(line["state_root"], got[0]["state_root"]);
        assert!(line["seconds"].as_f64().unwrap() > 0.0 && line["peak_rss_mb"].as_f64().unwrap() > 0.0, "{line}");
        assert_eq!(line["file_mb"].as_f64().unwrap() > 0.0, line["backend"] != "memory", "{line}");
    }
    assert!(
        run(&["bench", "load", "--accounts", "100", "--backend", "memory"]).unwrap().out.contains("100 accounts in")
    );
}

#[test]
fn a_pipeline_folds_every_block_ahead_on_every_chain_and_backend() {
    for chain in ["m60", "m1g", "sstore"] {
        let ran = run(&["bench", "pipeline", "--chain", chain, "--scale", "100", "--blocks", "5", "--json"]).unwrap();
        assert!(ran.good);
        let lines = lines(&ran.out);
        let names: Vec<_> = lines.iter().map(|line| line["backend"].as_str().unwrap()).collect();
        assert_eq!(names, backends());
        for line in &lines {
            assert_eq!(line["chain"], chain);
            // A window of sixteen, besides the first one.
            assert_eq!((count(line, "blocks"), count(line, "folded_ahead")), (16, 16), "{line}");
            let times = ["exec_ms", "fold_ms", "wall_ms", "wall_incremental_ms"].map(|key| line[key].as_f64().unwrap());
            assert!(times.iter().all(|time| *time > 0.0), "{line}");
            let over = times[2] / times[0].max(times[1]);
            assert!((line["wall_over_max"].as_f64().unwrap() - over).abs() < 1e-6, "{line}");
            assert!((0.0..=1.0).contains(&line["hidden"].as_f64().unwrap()), "{line}");
        }
    }
}

#[test]
fn arguments_without_sense_are_refused() {
    for more in [
        &["--workload", "w5"][..],
        &["--workload", "w1", "--threads", "0"],
        &["--workload", "w1", "--blocks", "0"],
        &[],
    ] {
        assert!(Cli::try_parse_from([&["foldgate", "bench", "fold"], more].concat()).is_err(), "{more:?}");
    }
    let output = process(&["bench", "fold", "--workload", "w1", "--scale", "500", "--dir", "/nowhere/at/all"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("making a directory for a store"));
}

#[cfg(not(feature = "peers"))]
#[test]
fn peers_that_were_not_built_in_are_named_with_their_feature() {
    let error = run(&["bench", "fold", "--workload", "w1", "--peers"]).unwrap_err();
    assert!(matches!(error, CliError::Bench(foldgate_bench::BenchError::NoPeers)));
    assert!(common::chain(&error).contains("cargo feature `peers`"));
}

#[cfg(feature = "peers")]
#[test]
fn peers_take_part_on_every_workload() -> Result<(), CliError> {
    for workload in ["w1", "w2", "w3", "w4", "m60"] {
        let got = race(workload, &["--peers", "--backend", "memory", "--threads", "1", "--keys", "uniform"]);
        for race in got.chunks(4) {
            let names: Vec<_> = race.iter().map(|line| line["name"].as_str().unwrap()).collect();
            assert_eq!(names, ["foldgate", "alloy-trie HashBuilder", "eth_trie", "ethrex-trie"]);
            for line in race {
                assert!(count(line, "roots_checked") > 0);
                assert!(KEYS.iter().all(|key| line.get(key).is_some()), "{line}");
                assert!(line["gate_ms_median"].as_f64().unwrap() > 0.0 && line["permutations_min"].is_u64());
            }
            assert!(race[0]["permutations"].is_u64());
            race[1..].iter().for_each(|line| assert!(line["permutations"].is_null() && line["flush_cpu_ms"].is_null()));
        }
    }
    Ok(())
}
