//! Clocks and scales: time, CPU time, memory, and what one permutation costs here and now.

use std::{
    fs,
    hint::black_box,
    time::{Duration, Instant},
};

use alloy_primitives::{B256, keccak256};
use foldgate_keccak::{Hasher, Kernel, RATE, pad_in_place, permutations_counted};
use rustix::{
    param::page_size,
    time::{ClockId, clock_gettime},
};

/// What a piece of work took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// On the clock.
    pub wall: Duration,
    /// Of all of the process's threads.
    pub cpu: Duration,
    /// As foldgate-keccak counted them, if it was told to count.
    pub permutations: u64,
}

/// Does `work` and measures it.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let (permutations, cpu, start) = (permutations_counted(), cpu_time(), Instant::now());
    let done = work();
    let wall = start.elapsed();
    let cpu = cpu_time().saturating_sub(cpu);
    (done, Cost { wall, cpu, permutations: permutations_counted() - permutations })
}

/// Does `work` and measures it, with the CPU time of this thread alone.
pub fn timed_alone<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let (cpu, start) = (time_of(ClockId::ThreadCPUTime), Instant::now());
    let done = work();
    let wall = start.elapsed();
    (done, Cost { wall, cpu: time_of(ClockId::ThreadCPUTime).saturating_sub(cpu), permutations: 0 })
}

/// The CPU time of this process so far.
fn cpu_time() -> Duration {
    time_of(ClockId::ProcessCPUTime)
}

fn time_of(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// The memory of this process that is resident now, files mapped into it included; 0 where the system does not say.
pub fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or_default() * page_size() as u64
}

/// A duration in milliseconds.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Bytes in mebibytes.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// What one keccak-f\[1600\] costs on this machine while it is measured. Of several trials the fastest counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Permutation {
    /// The default backend of alloy-primitives, one state at a time.
    pub scalar_ns: f64,
    /// The active kernel with all of its lanes full, for each state.
    pub kernel_ns: f64,
    /// Which kernel that is.
    pub kernel: Kernel,
}

impl Permutation {
    /// Measures both.
    pub fn measure() -> Self {
        // 64 rate blocks once padded: what comes around the permutations does not count beside them.
        let long = vec![7; 64 * RATE - 1];
        let scalar = fastest(20, || {
            black_box(keccak256(black_box(&long)));
        });
        let (messages, blocks) = (64, 4);
        let mut padded = vec![7; messages * blocks * RATE];
        for message in padded.chunks_exact_mut(blocks * RATE) {
            // A message of one byte less than it fills always fits.
            let fits = pad_in_place(message, blocks * RATE - 1);
            debug_assert!(fits.is_ok());
        }
        let (hasher, mut digests) = (Hasher::new(), vec![B256::ZERO; messages]);
        let kernel = fastest(20, || hasher.padded(black_box(&padded), blocks * RATE, blocks, black_box(&mut digests)));
        Self { scalar_ns: scalar / 64.0, kernel_ns: kernel / (messages * blocks) as f64, kernel: hasher.kernel() }
    }

    /// The faster one of two measurements, each on its own.
    pub fn min(self, other: Self) -> Self {
        Self {
            scalar_ns: self.scalar_ns.min(other.scalar_ns),
            kernel_ns: self.kernel_ns.min(other.kernel_ns),
            kernel: self.kernel,
        }
    }
}

/// The nanoseconds of the fastest of so many trials, of ten calls each.
fn fastest(trials: u32, mut work: impl FnMut()) -> f64 {
    const CALLS: u32 = 10;
    let mut trial = || {
        let start = Instant::now();
        (0..CALLS).for_each(|_| work());
        start.elapsed() / CALLS
    };
    let shortest = (0..trials).map(|_| trial()).min();
    shortest.unwrap_or_default().as_nanos() as f64
}

/// The middle value, of an even number the lower one of the two; `None` of nothing.
pub(crate) fn median<T: Copy + PartialOrd>(values: impl IntoIterator<Item = T>) -> Option<T> {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_unstable_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    let middle = values.len().checked_sub(1)? / 2;
    values.get(middle).copied()
}
