//! The core of foldgate: state types, storage traits, and the trie fold; no I/O.
