//! Every kernel that this processor has, against the keccak256 of alloy-primitives.
//!
//! Invariants:
//! 1. A test that says a kernel hashed reads it off the kernel's own counter, on its own thread.

use crate::*;
use alloy_primitives::{Address, B256, b256, hex, keccak256 as expected_keccak256};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use std::{cell::Cell, ffi::OsStr, process::Command};

thread_local! {
    /// Runs of each kernel on this thread, in the order of [`Kernel::ALL`].
    static RUNS: [Cell<usize>; 3] = const { [Cell::new(0), Cell::new(0), Cell::new(0)] };
}

/// Called by each kernel when it permutes, so that tests see which one really ran.
pub(crate) fn count_run(kernel: Kernel) {
    let place = Kernel::ALL.iter().position(|known| *known == kernel).expect("known to ALL");
    RUNS.with(|runs| runs[place].set(runs[place].get() + 1));
}

fn runs(kernel: Kernel) -> usize {
    let place = Kernel::ALL.iter().position(|known| *known == kernel).expect("known to ALL");
    RUNS.with(|runs| runs[place].get())
}

/// The seed of this run: `FOLDGATE_SEED`, or a new one; printed, so that a failure can be repeated.
fn seeded_rng() -> StdRng {
    let seed = std::env::var("FOLDGATE_SEED").ok().map_or_else(rand::random, |seed| seed.parse().expect("a u64"));
    println!("FOLDGATE_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

fn hashers() -> impl Iterator<Item = Hasher> {
    Kernel::available().map(|kernel| Hasher::with_kernel(kernel).expect("available"))
}

/// Bytes without a period that a lane or a block could hide.
fn bytes(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 7 + salt * 97 + (i * salt) / 5) as u8).collect()
}

fn expected(messages: &[impl AsRef<[u8]>]) -> Vec<B256> {
    messages.iter().map(expected_keccak256).collect()
}

#[track_caller]
fn assert_messages(hasher: Hasher, messages: &[impl AsRef<[u8]>], what: &str) {
    // Not zero, so that a digest that was never written shows.
    let mut digests = vec![B256::repeat_byte(0xee); messages.len()];
    hasher.messages(messages, &mut digests);
    for (index, (got, expected)) in digests.iter().zip(expected(messages)).enumerate() {
        let len = messages[index].as_ref().len();
        assert_eq!(*got, expected, "{}: {what}: message {index} of {len} bytes", hasher.kernel());
    }
}

#[test]
fn known_answers() {
    let million = vec![b'a'; 1_000_000];
    let answers: [(&[u8], B256); 6] = [
        (b"", b256!("c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470")),
        (b"abc", b256!("4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45")),
        // RLP of the empty string: the root of an empty trie.
        (&hex!("80"), b256!("56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421")),
        // RLP of the empty list: the hash of no ommers.
        (&hex!("c0"), b256!("1dcc4de8dec75d7aab85b567b6ccd41ad312451b948a7413f0a142fd40d49347")),
        (
            b"Transfer(address,address,uint256)",
            b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"),
        ),
        (&million, b256!("fadae6b49f129bbb812be8407b7b2894f34aecf6dbd1f9b0f0c7e9853098fc96")),
    ];
    let messages = answers.map(|(message, _)| message);
    for hasher in hashers() {
        let mut digests = [B256::ZERO; 6];
        hasher.messages(&messages, &mut digests);
        assert_eq!(digests, answers.map(|(_, digest)| digest), "{}", hasher.kernel());
    }
    for (message, digest) in answers {
        assert_eq!(keccak256(message), digest);
    }
}

#[test]
fn all_lengths_with_full_lanes() {
    for hasher in hashers() {
        for len in 0..=1200 {
            let messages: Vec<_> = (0..8).map(|salt| bytes(len, salt)).collect();
            assert_messages(hasher, &messages, "full lanes");
        }
    }
}

#[test]
fn all_lengths_in_one_batch() {
    let messages: Vec<_> = (0..=1200).map(|len| bytes(len, len)).collect();
    for hasher in hashers() {
        assert_messages(hasher, &messages, "ascending");
    }
    for message in &messages {
        assert_eq!(keccak256(message), expected_keccak256(message));
    }
}

/// Messages that end at unequal places of the same block share lanes: each has its own masks.
#[test]
fn unequal_tails_share_lanes() {
    for hasher in hashers() {
        for from in (0..RATE).step_by(3) {
            let messages: Vec<_> = (0..8).map(|lane| bytes((from + lane * 17) % RATE + 2 * RATE, lane)).collect();
            assert_messages(hasher, &messages, "unequal tails");
        }
    }
}

#[test]
fn random_mixed_batches() {
    let mut rng = seeded_rng();
    for hasher in hashers() {
        for _ in 0..200 {
            let count = rng.random_range(0..200);
            let longest = [40, 140, 600, 1500, 9000][rng.random_range(0..5)];
            let messages: Vec<Vec<u8>> = (0..count)
                .map(|_| {
                    let mut message = vec![0; rng.random_range(0..longest)];
                    rng.fill(&mut message[..]);
                    message
                })
                .collect();
            assert_messages(hasher, &messages, "random");
        }
    }
}

/// A lane goes to the next message as soon as its own ends, and the scalar kernel ends the last one.
#[test]
fn few_long_messages_among_short_ones() {
    let mut rng = seeded_rng();
    for hasher in hashers() {
        for long in 1..=10 {
            let lengths = (0..long).map(|i| 24_576 - 999 * i).chain((0..10).map(|i| i * 100));
            let mut messages: Vec<_> = lengths.map(|len| bytes(len, len)).collect();
            messages.shuffle(&mut rng);
            assert_messages(hasher, &messages, "long");
        }
    }
}

#[test]
fn all_batch_sizes() {
    for hasher in hashers() {
        for count in 0..=33 {
            for len in [0, 1, 32, 135, 136, 137, 532] {
                let messages: Vec<_> = (0..count).map(|salt| bytes(len, salt)).collect();
                assert_messages(hasher, &messages, "batch size");
            }
        }
    }
}

#[test]
fn keys_of_every_size_and_type() {
    fn keys_of<const N: usize>(hasher: Hasher) {
        for count in 0..=17 {
            let keys: Vec<[u8; N]> = (0..count).map(|salt| bytes(N, salt).try_into().expect("N bytes")).collect();
            let mut digests = vec![B256::repeat_byte(0xee); count];
            hasher.keys(&keys, &mut digests);
            assert_eq!(digests, expected(&keys), "{}: {count} keys of {N} bytes", hasher.kernel());
        }
    }
    for hasher in hashers() {
        keys_of::<0>(hasher);
        keys_of::<1>(hasher);
        keys_of::<20>(hasher);
        keys_of::<32>(hasher);
        keys_of::<63>(hasher);
        keys_of::<64>(hasher);
        keys_of::<128>(hasher);
        keys_of::<135>(hasher);
        keys_of::<136>(hasher);
        keys_of::<300>(hasher);
    }

    let addresses: Vec<Address> = (0..19).map(|salt| Address::from_slice(&bytes(20, salt))).collect();
    let references: Vec<&[u8; 20]> = addresses.iter().map(|address| &address.0.0).collect();
    let words: Vec<B256> = (0..19).map(|salt| B256::from_slice(&bytes(32, salt))).collect();
    let mut digests = vec![B256::ZERO; 19];
    keccak256_20(&addresses, &mut digests);
    assert_eq!(digests, expected(&addresses));
    digests.fill(B256::ZERO);
    let owned: Vec<[u8; 20]> = references.into_iter().copied().collect();
    keccak256_20(&owned, &mut digests);
    assert_eq!(digests, expected(&addresses));
    keccak256_32(&words, &mut digests);
    assert_eq!(digests, expected(&words));
}

#[test]
fn padding_is_written_in_place() {
    for len in 0..=1200 {
        let message = bytes(len, 3);
        let mut buffer = message.clone();
        buffer.resize(padded_len(len) + 5, 0xcc);
        let blocks = pad_in_place(&mut buffer, len).expect("large enough");
        assert_eq!(blocks, rate_blocks(len));
        assert_eq!(blocks, len / 136 + 1);
        assert_eq!(buffer[..len], message, "the message is left alone");
        assert_eq!(buffer[padded_len(len)..], [0xcc; 5], "nothing behind the padding is touched");
        for hasher in hashers() {
            let mut digest = [B256::ZERO];
            hasher.padded(&buffer, RATE, blocks, &mut digest);
            assert_eq!(digest[0], expected_keccak256(&message), "{}: {len} bytes", hasher.kernel());
        }
    }
}

#[test]
fn padding_refuses_a_small_buffer() {
    let mut buffer = [0x55; 2 * RATE];
    assert_eq!(pad_in_place(&mut buffer[..135], 100), Err(BufferTooSmall { got: 135, expected: 136 }));
    assert_eq!(pad_in_place(&mut buffer[..136], 136), Err(BufferTooSmall { got: 136, expected: 272 }));
    assert_eq!(pad_in_place(&mut buffer, 272), Err(BufferTooSmall { got: 272, expected: 408 }));
    assert!(pad_in_place(&mut buffer, usize::MAX).is_err());
    assert_eq!(buffer, [0x55; 2 * RATE], "unchanged when refused");
}

/// `count` messages of `blocks` rate blocks, padded, one every `stride` bytes; and their digests.
fn padded_arena(count: usize, blocks: usize, stride: usize) -> (Vec<u8>, Vec<B256>) {
    let mut data = vec![0xdd; count.saturating_sub(1) * stride + if count > 0 { blocks * RATE } else { 0 }];
    let mut digests = Vec::new();
    for index in 0..count {
        // Every length that fills so many blocks comes up as `index` grows.
        let message = bytes((blocks - 1) * RATE + (index * 29) % RATE, index);
        let place = &mut data[index * stride..][..blocks * RATE];
        place[..message.len()].copy_from_slice(&message);
        assert_eq!(pad_in_place(place, message.len()), Ok(blocks));
        digests.push(expected_keccak256(&message));
    }
    (data, digests)
}

#[test]
fn padded_messages_in_an_arena() {
    for hasher in hashers() {
        for count in (0..=17).chain([136, 150]) {
            for blocks in 1..=5 {
                for gap in [0, 1, 64] {
                    let stride = blocks * RATE + gap;
                    let (data, expected) = padded_arena(count, blocks, stride);
                    let mut digests = vec![B256::repeat_byte(0xee); count];
                    hasher.padded(&data, stride, blocks, &mut digests);
                    assert_eq!(digests, expected, "{}: {count} x {blocks} blocks", hasher.kernel());

                    let offsets: Vec<_> = (0..count).rev().map(|index| index * stride).collect();
                    hasher.padded_at(&data, &offsets, blocks, &mut digests);
                    digests.reverse();
                    assert_eq!(digests, expected, "{}: {count} x {blocks} blocks at offsets", hasher.kernel());
                }
            }
        }
    }
    let (data, expected) = padded_arena(20, 4, 4 * RATE);
    let mut digests = vec![B256::ZERO; 20];
    keccak256_padded(&data, 4 * RATE, 4, &mut digests);
    assert_eq!(digests, expected);
    let offsets: Vec<_> = (0..20).map(|index| index * 4 * RATE).collect();
    digests.fill(B256::ZERO);
    keccak256_padded_at(&data, &offsets, 4, &mut digests);
    assert_eq!(digests, expected);
}

/// A message at the very end of an allocation, at each of its alignments: masked loads stay inside.
#[test]
fn messages_at_the_end_of_their_allocation() {
    for hasher in hashers() {
        for len in 0..=RATE {
            let boxes: Vec<Box<[u8]>> = (0..8).map(|salt| bytes(len + salt, salt).into_boxed_slice()).collect();
            let ends: Vec<&[u8]> = boxes.iter().enumerate().map(|(salt, bytes)| &bytes[salt..]).collect();
            assert_messages(hasher, &ends, "end of allocation");
        }
    }
}

/// Whether a call panics.
fn refuses(call: impl FnOnce() + std::panic::UnwindSafe) -> bool {
    std::panic::catch_unwind(call).is_err()
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    for hasher in hashers() {
        assert!(refuses(|| hasher.messages(&["a", "b"], &mut [B256::ZERO])));
        assert!(refuses(|| hasher.keys(&[[0u8; 20]], &mut [B256::ZERO; 2])));
        assert!(refuses(|| hasher.padded(&[0; RATE], RATE, 0, &mut [B256::ZERO])));
        assert!(refuses(|| hasher.padded(&[0; RATE - 1], RATE, 1, &mut [B256::ZERO])));
        assert!(refuses(|| hasher.padded(&[0; RATE], RATE, 1, &mut [B256::ZERO; 2])));
        assert!(refuses(|| hasher.padded(&[0; RATE], usize::MAX, 1, &mut [B256::ZERO; 3])));
        assert!(refuses(|| hasher.padded(&[0; RATE], RATE, usize::MAX, &mut [B256::ZERO])));
        assert!(refuses(|| hasher.padded_at(&[0; RATE], &[0], 1, &mut [])));
        assert!(refuses(|| hasher.padded_at(&[0; RATE], &[1], 1, &mut [B256::ZERO])));
        assert!(refuses(|| hasher.padded_at(&[0; RATE], &[usize::MAX], 1, &mut [B256::ZERO])));
        hasher.padded(&[], RATE, 1, &mut []);
        hasher.padded_at(&[], &[], 1, &mut []);
        hasher.messages::<&[u8]>(&[], &mut []);
    }
}

/// Fails where the processor has a kernel's instructions and yet another kernel hashed.
#[test]
fn each_kernel_of_this_processor_really_hashes() {
    #[cfg(target_arch = "x86_64")]
    {
        let has_avx512 = std::is_x86_feature_detected!("avx512f");
        assert_eq!(Kernel::available().any(|kernel| kernel == Kernel::Avx512), has_avx512, "AVX-512");
        let has_avx2 = std::is_x86_feature_detected!("avx2");
        assert_eq!(Kernel::available().any(|kernel| kernel == Kernel::Avx2), has_avx2, "AVX2");
    }
    for kernel in Kernel::ALL {
        if !kernel.is_available() {
            println!("{kernel}: not on this processor");
            let refused = keccak256_batch_with(kernel, &["a"], &mut [B256::ZERO]);
            assert_eq!(refused, Err(KernelError::Unavailable { got: kernel, best: Kernel::best() }));
            continue;
        }
        let before = Kernel::ALL.map(runs);
        let messages: Vec<_> = (0..64).map(|salt| bytes(100, salt)).collect();
        let mut digests = vec![B256::ZERO; 64];
        keccak256_batch_with(kernel, &messages, &mut digests).expect("available");
        assert_eq!(digests, expected(&messages));
        let (data, expected) = padded_arena(64, 2, 2 * RATE);
        Hasher::with_kernel(kernel).expect("available").padded(&data, 2 * RATE, 2, &mut digests);
        assert_eq!(digests, expected);
        for (other, before) in Kernel::ALL.into_iter().zip(before) {
            let ran = runs(other) - before;
            // The scalar kernel counts permutations, the others groups of lanes.
            let expected = match (other == kernel, kernel) {
                (false, _) => 0,
                (true, Kernel::Scalar) => 64 + 64 * 2,
                (true, _) => 2 * 64 / kernel.lanes(),
            };
            assert_eq!(ran, expected, "runs of {other} when {kernel} was asked for");
        }
        println!("{kernel}: hashed {} lanes at a time", kernel.lanes());
    }
}

#[test]
fn kernels_by_name() {
    for kernel in Kernel::ALL {
        assert_eq!(kernel.name().parse(), Ok(kernel));
        assert_eq!(kernel.to_string().to_uppercase().parse(), Ok(kernel));
        let chosen = Kernel::choose(Some(OsStr::new(kernel.name())));
        if kernel.is_available() {
            assert_eq!(chosen, Ok(kernel));
        } else {
            assert_eq!(chosen, Err(KernelError::Unavailable { got: kernel, best: Kernel::best() }));
        }
    }
    assert_eq!(Kernel::choose(None), Ok(Kernel::best()));
    for bad in ["", "sse2", "avx512 ", "1"] {
        assert_eq!(Kernel::choose(Some(OsStr::new(bad))), Err(KernelError::Unknown { got: bad.to_owned() }));
    }
    assert_eq!(Kernel::available().last(), Some(Kernel::Scalar));
    assert_eq!(Kernel::available().next(), Some(Kernel::best()));
}

/// Run by [`the_variable_decides`] in a process of its own; says what the process made of its environment.
#[test]
fn report_active_kernel() {
    println!("active={} checked={:?}", Kernel::active(), Kernel::from_env());
    assert_eq!(Hasher::new().kernel(), Kernel::active());
    let messages: Vec<_> = (0..20).map(|salt| bytes(50 * salt, salt)).collect();
    let mut digests = vec![B256::ZERO; 20];
    keccak256_batch(&messages, &mut digests);
    assert_eq!(digests, expected(&messages));
}

#[test]
fn the_variable_decides() {
    let report = |value: &str| {
        let test = std::env::current_exe().expect("the path of this test");
        let output = Command::new(test)
            .args(["--exact", "tests::report_active_kernel", "--nocapture"])
            .env(KERNEL_VARIABLE, value)
            .output()
            .expect("the test runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    for kernel in Kernel::available() {
        let expected = format!("active={kernel} checked=Ok({kernel:?})");
        let got = report(kernel.name());
        assert!(got.contains(&expected), "got {got}, expected {expected}");
    }
    let expected = format!("active={} checked=Err(Unknown {{ got: \"turbo\" }})", Kernel::best());
    let got = report("turbo");
    assert!(got.contains(&expected), "got {got}, expected {expected}");
}
