//! The names that ethereum/tests and EEST give to sets of rules.
//!
//! Invariants:
//! 1. A fork implies all forks before it; the glacier forks and the blob-parameter forks are part of that order.
//! 2. A transition starts with its first fork at genesis and turns to the second at the block or time in its name.

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

/// The forks of a network with their activations; `None` if the name is unknown.
pub(super) fn forks(name: &str) -> Option<Vec<(EthereumHardfork, ForkCondition)>> {
    let Some((from, rest)) = name.split_once("To") else {
        return Some(conditions(position(name)?, None));
    };
    let (to, at) = rest.rsplit_once("At")?;
    let at = match at.strip_prefix("Time") {
        Some(time) => ForkCondition::Timestamp(time.strip_suffix('k')?.parse::<u64>().ok()?.checked_mul(1000)?),
        None => ForkCondition::Block(at.parse().ok()?),
    };
    let (from, to) = (position(from)?, position(to)?);
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
    fn other_names_are_refused() {
        for name in
            ["", "Atlantis", "ArrowGlacierToParisAtDiffC0000", "PragueToCancunAtTime15k", "ToAt", "CancunToPragueAt5"]
        {
            let got = ChainSpec::from_network(name, AmsterdamRules::Full);
            assert!(matches!(got, Err(ChainSpecError::UnknownNetwork { .. })), "{name}");
        }
    }
}
