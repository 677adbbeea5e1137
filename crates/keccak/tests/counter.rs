//! The count of permutations, in a process of its own: it is shared by all of a process's threads.

use alloy_primitives::{Address, B256};
use foldgate_keccak::{
    Hasher, Kernel, RATE, count_permutations, keccak256, pad_in_place, padded_len, permutations_counted,
};

#[test]
fn every_entry_point_counts_its_messages_rate_blocks_when_asked_to() {
    let counted = |work: &dyn Fn()| {
        let before = permutations_counted();
        work();
        permutations_counted() - before
    };
    let single = || assert_ne!(keccak256([7; RATE]), B256::ZERO);
    assert_eq!(counted(&single), 0, "off at first");
    count_permutations(true);
    assert_eq!(counted(&single), 2, "a full rate block is padded by a whole one");
    for kernel in Kernel::available() {
        let hasher = Hasher::with_kernel(kernel).unwrap();
        let digests = |count| vec![B256::ZERO; count];
        let mixed: Vec<_> = [0, 135, 136, 532, 2000].map(|len| vec![1; len]).into();
        assert_eq!(counted(&|| hasher.messages(&mixed, &mut digests(5))), 1 + 1 + 2 + 4 + 15, "{kernel}");
        let keys = vec![Address::ZERO; 11];
        assert_eq!(counted(&|| hasher.keys(&keys, &mut digests(11))), 11, "{kernel}");
        let stride = padded_len(200);
        let mut data = vec![0; 3 * stride];
        for place in data.chunks_exact_mut(stride) {
            pad_in_place(place, 200).unwrap();
        }
        assert_eq!(counted(&|| hasher.padded(&data, stride, 2, &mut digests(3))), 6, "{kernel}");
        assert_eq!(counted(&|| hasher.padded_at(&data, &[0, stride], 2, &mut digests(2))), 4, "{kernel}");
    }
    count_permutations(false);
    assert_eq!(counted(&single), 0, "off again");
}
