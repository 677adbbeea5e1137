//! Many keccak256 hashes at once, one kernel per instruction set, chosen at run time.
