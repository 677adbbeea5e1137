# Short names for the scripts that CI runs too. `just --list` shows them.

# Everything that has to pass before a change lands.
check:
    .ci/run

# All tests of all crates with all backends.
test *arguments:
    scripts/test {{arguments}}

# The suites that every backend has to pass.
suite:
    cargo test --test backends
    cargo test -p foldgate-storage-redb -p foldgate-storage-mdbx

# The soak on every backend, at length.
soak blocks="20000":
    FOLDGATE_SOAK={{blocks}} cargo test --release --test backends soak -- --nocapture

# Processes killed at named points of record, flush and unwind: so many times on every backend.
kills runs="100":
    FOLDGATE_KILLS={{runs}} cargo test --release --test backends kills
    FOLDGATE_KILLS={{runs}} cargo test --release -p foldgate-record-log --test kills

# The validation run: all published data that is there, and generated blocks, with the shadow on.
validate blocks="10000" *arguments:
    cargo run --release --package foldgate-cli --features mdbx -- validate --fixtures "${FOLDGATE_FIXTURES:-../shared/fixtures}" --generated {{blocks}} {{arguments}}

# The demonstration.
demo *arguments:
    scripts/demo {{arguments}}

# The tool with both backends.
foldgate *arguments:
    cargo run --release --package foldgate-cli --features mdbx -- {{arguments}}

# Benchmarks of the hash kernels, of the fold and of access lists.
bench:
    cargo bench -p foldgate-keccak -p foldgate-core -p foldgate-bal

# A race on a workload (w1, w1-10m, w2, w3, w4, m60, m1g), all backends beside other implementations.
race workload *arguments:
    cargo run --release --package foldgate-cli --features mdbx,peers -- bench fold --peers --workload {{workload}} {{arguments}}
