//! The names that ethereum/tests and EEST give to sets of rules.
//!
//! Invariants:
//! 1. A fork implies all forks before it; the glacier forks and the blob-parameter forks are part of that order.
//! 2. A transition starts with its first fork at genesis and turns to the second at the block or time in its name.

use alloy_eips::eip7840::BlobParams;
use alloy_hardforks::{EthereumHardfork, ForkCondition};

use EthereumHardfork::*;

/// Forks in order, with the names they go by.
const FORKS: [(EthereumHardfork, &[&str]); 25] = [
    (Frontier, &["Frontier"]),
    (Homestead, &["Homestead"]),
    (Dao, &["Dao"]),
    (Tangerine, &["EIP150", "TangerineWhistle"]),
    (SpuriousDragon, &["EIP158", "SpuriousDragon"]),
    (Byzantium, &["Byzantium"]),
    (Constantinople, &["Constantinople"]),
    (Petersburg, &["ConstantinopleFix", "Petersburg"]),
    (Istanbul, &["Istanbul"]),
    (MuirGlacier, &["MuirGlacier"]),
    (Berlin, &["Berlin"]),
    (London, &["London"]),
    (ArrowGlacier, &["ArrowGlacier"]),
    (GrayGlacier, &["GrayGlacier"]),
    (Paris, &["Paris", "Merge"]),
    (Shanghai, &["Shanghai"]),
    (Cancun, &["Cancun"]),
    (Prague, &["Prague"]),
    (Osaka, &["Osaka"]),
    (Bpo1, &["BPO1"]),
    (Bpo2, &["BPO2"]),
    (Bpo3, &["BPO3"]),
    (Bpo4, &["BPO4"]),
    (Bpo5, &["BPO5"]),
    (Amsterdam, &["Amsterdam"]),
];

/// Steps of the blob schedule after Amsterdam that only tests know, oldest first, each implying the one before.
pub(super) const BLOB_STEPS: [(&str, BlobParams); 2] = [
    (
        "BPOIncrease",
        BlobParams { target_blob_count: 21, max_blob_count: 32, update_fraction: 20_609_697, ..BlobParams::osaka() },
    ),
    (
        "BPODecrease",
        BlobParams { target_blob_count: 14, max_blob_count: 21, update_fraction: 13_739_630, ..BlobParams::osaka() },
    ),
];

/// What a network's name stands for.
pub(super) struct Network {
    /// The forks with their activations.
    pub(super) forks: Vec<(EthereumHardfork, ForkCondition)>,
    /// From when each of [`BLOB_STEPS`] holds, as far as the network has them.
    pub(super) blob_steps: Vec<u64>,
}

/// The rules of a network; `None` if the name is unknown.
pub(super) fn network(name: &str) -> Option<Network> {
    let step = |name: &str| BLOB_STEPS.iter().position(|(step, _)| *step == name);
    let (from, to, at) = transition(name)?;
    let Some(last) = step(to) else {
        let (from, to) = (position(from)?, position(to)?);
        return Some(Network { forks: forks(from, to, at)?, blob_steps: Vec::new() });
    };
    let amsterdam = forks(position("Amsterdam")?, position("Amsterdam")?, None)?;
    let at = match at {
        Some(ForkCondition::Timestamp(at)) => at,
        Some(_) => return None,
        None => 0,
    };
    // The steps up to `last` hold at genesis, but for those that the transition turns to.
    let first_later = match step(from) {
        Some(from) if from <= last => from + 1,
        None if from == "Amsterdam" => 0,
        _ => return None,
    };
    let blob_steps = (0..=last).map(|step| if step < first_later { 0 } else { at }).collect();
    Some(Network { forks: amsterdam, blob_steps })
}

/// The names of the rules at genesis and at the end, and when the first turn to the second. A name alone is both.
fn transition(name: &str) -> Option<(&str, &str, Option<ForkCondition>)> {
    let Some((from, rest)) = name.split_once("To") else {
        return Some((name, name, None));
    };
    let (to, at) = rest.rsplit_once("At")?;
    let at = match at.strip_prefix("Time") {
        Some(time) => ForkCondition::Timestamp(time.strip_suffix('k')?.parse::<u64>().ok()?.checked_mul(1000)?),
        None => ForkCondition::Block(at.parse().ok()?),
    };
    (from != to).then_some((from, to, Some(at)))
}

fn forks(from: usize, to: usize, at: Option<ForkCondition>) -> Option<Vec<(EthereumHardfork, ForkCondition)>> {
    let Some(at) = at else {
        return Some(conditions(to, None));
    };
    // Forks since Shanghai go by time, the ones before by number.
    let by_time = FORKS[to].0 >= Shanghai;
    (from < to && by_time == at.is_timestamp()).then(|| conditions(from, Some((to, at))))
}

fn position(name: &str) -> Option<usize> {
    FORKS.iter().position(|(_, names)| names.contains(&name))
}

fn conditions(at_genesis: usize, later: Option<(usize, ForkCondition)>) -> Vec<(EthereumHardfork, ForkCondition)> {
    let last = later.map_or(at_genesis, |(to, _)| to);
    let mut forks = Vec::with_capacity(last + 1);
    for (index, (fork, _)) in FORKS.iter().enumerate().take(last + 1) {
        let genesis = if *fork >= Shanghai { ForkCondition::Timestamp(0) } else { ForkCondition::Block(0) };
        let condition = match later {
            Some((_, at)) if index > at_genesis => at,
            _ => genesis,
        };
        // No test but those named after it makes the DAO's irregular state change.
        if *fork != Dao || last == index {
            forks.push((*fork, condition));
        }
    }
    forks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain_spec::{AmsterdamRules, ChainSpec, ChainSpecError};
    use alloy_hardforks::EthereumHardforks;

    #[test]
    fn every_fork_is_known_and_implies_the_earlier_ones() {
        for (index, (fork, names)) in FORKS.iter().enumerate() {
            for name in *names {
                let spec = ChainSpec::from_network(name, AmsterdamRules::Full).unwrap();
                // Constantinople stands in for Petersburg.
                let index = if *fork == Constantinople { index + 1 } else { index };
                for (other, (earlier, _)) in FORKS.iter().enumerate().filter(|(_, (fork, _))| *fork != Dao) {
                    let active = spec.ethereum_fork_activation(*earlier).active_at_timestamp_or_number(0, 0);
                    assert_eq!(active, other <= index, "{earlier:?} in {fork:?}");
                }
            }
        }
    }

    #[test]
    fn transitions_turn_where_they_say() {
        let spec = ChainSpec::from_network("ShanghaiToCancunAtTime15k", AmsterdamRules::Full).unwrap();
        assert!(spec.is_shanghai_active_at_timestamp(0));
        assert!(!spec.is_cancun_active_at_timestamp(14_999) && spec.is_cancun_active_at_timestamp(15_000));
        let spec = ChainSpec::from_network("BPO1ToBPO2AtTime15k", AmsterdamRules::Full).unwrap();
        assert_eq!(spec.blob_params_at(14_999).map(|params| params.max_blob_count), Some(15));
        assert_eq!(spec.blob_params_at(15_000).map(|params| params.max_blob_count), Some(21));
        let spec = ChainSpec::from_network("BerlinToLondonAt5", AmsterdamRules::Full).unwrap();
        assert!(!spec.is_london_active_at_block(4) && spec.is_london_active_at_block(5));
    }

    #[test]
    fn the_blob_schedule_steps_on_after_amsterdam() {
        let max_at = |name, time| {
            let spec = ChainSpec::from_network(name, AmsterdamRules::Full).unwrap();
            assert!(spec.is_amsterdam_active_at_timestamp(0), "{name}");
            spec.blob_params_at(time).map(|params| (params.max_blob_count, params.max_blobs_per_tx))
        };
        assert_eq!(max_at("BPOIncrease", 0), Some((32, 6)));
        assert_eq!(max_at("BPODecrease", 0), Some((21, 6)));
        assert_eq!(max_at("AmsterdamToBPOIncreaseAtTime15k", 14_999), Some((21, 6)));
        assert_eq!(max_at("AmsterdamToBPOIncreaseAtTime15k", 15_000), Some((32, 6)));
        assert_eq!(max_at("BPOIncreaseToBPODecreaseAtTime15k", 14_999), Some((32, 6)));
        assert_eq!(max_at("BPOIncreaseToBPODecreaseAtTime15k", 15_000), Some((21, 6)));

        let spec = ChainSpec::from_network("AmsterdamToBPOIncreaseAtTime15k", AmsterdamRules::Full).unwrap();
        let given = BlobParams { target_blob_count: 2, max_blob_count: 4, ..BlobParams::prague() };
        let schedule = std::collections::BTreeMap::from([("BPOIncrease".to_owned(), given)]);
        let spec = spec.with_blob_schedule(&schedule).unwrap();
        assert_eq!(spec.blob_params_at(14_999), Some(BlobParams::bpo2()));
        let later = spec.blob_params_at(15_000).unwrap();
        assert_eq!((later.max_blob_count, later.max_blobs_per_tx, later.blob_base_cost), (4, 6, 1 << 13));
    }

    #[test]
    fn other_names_are_refused() {
        for name in [
            "",
            "Atlantis",
            "ArrowGlacierToParisAtDiffC0000",
            "PragueToCancunAtTime15k",
            "ToAt",
            "CancunToPragueAt5",
            "PragueToPragueAtTime15k",
            "OsakaToBPOIncreaseAtTime15k",
            "AmsterdamToBPOIncreaseAt5",
            "BPODecreaseToBPOIncreaseAtTime15k",
            "BPOIncreaseToBPOIncreaseAtTime15k",
            "BPOIncreaseToAmsterdamAtTime15k",
        ] {
            let got = ChainSpec::from_network(name, AmsterdamRules::Full);
            assert!(matches!(got, Err(ChainSpecError::UnknownNetwork { .. })), "{name}");
        }
    }
}
