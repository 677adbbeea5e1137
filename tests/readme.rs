//! README's example is the middle of `examples/quickstart.rs`, line by line, and that runs.

#[path = "../examples/quickstart.rs"]
mod quickstart;

#[test]
fn the_example_runs_and_is_the_readmes() {
    quickstart::main().unwrap();
    let readme = include_str!("../README.md");
    let (_, example) = readme.split_once("```rust,ignore\n").expect("the example");
    let (example, _) = example.split_once("```").expect("its end");
    let source: Vec<_> = include_str!("../examples/quickstart.rs").lines().map(str::trim).collect();
    let example: Vec<_> = example.lines().map(str::trim).collect();
    assert!(!example.is_empty());
    assert!(source.windows(example.len()).any(|lines| lines == example), "README's example is not in the source");
}
