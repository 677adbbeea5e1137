//! Work in order, cut into runs of about the same weight, for threads to take.

use std::ops::Range;

/// Cuts items, given by their weights, into at most so many runs, none of them empty: an item belongs to the run in which
/// its middle lies.
pub(crate) fn cut(weights: impl Iterator<Item = usize> + Clone, parts: usize) -> Vec<Range<usize>> {
    let total = weights.clone().sum::<usize>().max(1);
    let mut runs: Vec<Range<usize>> = Vec::with_capacity(parts);
    let (mut before, mut last) = (0, None);
    for (at, weight) in weights.enumerate() {
        let part = ((before + weight / 2) * parts / total).min(parts.saturating_sub(1));
        match runs.last_mut().filter(|_| last == Some(part)) {
            Some(run) => run.end = at + 1,
            None => runs.push(at..at + 1),
        }
        (before, last) = (before + weight, Some(part));
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_near_to_even_and_hold_each_item_once() {
        let even = cut([143, 139, 141, 138, 140, 142, 137, 144].into_iter(), 4);
        assert_eq!(even, [0..2, 2..4, 4..6, 6..8]);
        // The middles of the light ones lie in the first and the last quarter, that of the heavy one in the third.
        let whale = cut([10, 10, 1000, 10, 10].into_iter(), 4);
        assert_eq!(whale, [0..2, 2..3, 3..5]);
        assert!(cut([0, 0, 0].into_iter(), 2).into_iter().flatten().eq(0..3));
        assert_eq!(cut([5, 0].into_iter(), 2), [0..1, 1..2]);
        assert_eq!(cut([].into_iter(), 3), []);
    }

    #[test]
    fn no_weights_lose_an_item() {
        for seed in 0..200usize {
            let weights: Vec<_> = (0..seed % 40).map(|at| (at * 7919 + seed * 31) % 97 % (1 + seed % 50)).collect();
            for parts in 1..9 {
                let runs = cut(weights.iter().copied(), parts);
                assert!(runs.len() <= parts);
                assert!(runs.iter().all(|run| !run.is_empty()));
                assert!(runs.iter().flat_map(Clone::clone).eq(0..weights.len()), "{weights:?} {parts}");
            }
        }
    }
}
