//! Which rules hold at which block: forks by number and by timestamp, blob parameters, the chain's id.
//!
//! Invariants:
//! 1. Blob parameters are sorted by the timestamp from which they hold; the last one that has begun is in force.
//! 2. Under [`AmsterdamRules::Osaka`] the EVM never sees Amsterdam: [`EthereumHardforks`] says that it is never active,
//!    and only [`ChainSpec::commits_to_bal`] knows of it.
//! 3. Petersburg begins no later than Constantinople.
//! 4. The block of the merge is known: a chain whose merge depends on a total difficulty yet to be reached is refused.

use std::collections::BTreeMap;

use alloy_eips::{
    eip6110::MAINNET_DEPOSIT_CONTRACT_ADDRESS, eip7594::MAX_BLOBS_PER_TX_FUSAKA, eip7840::BLOB_BASE_COST,
    eip7840::BlobParams,
};
use alloy_evm::eth::spec::EthExecutorSpec;
use alloy_genesis::{ChainConfig, Genesis};
use alloy_hardforks::{EthereumChainHardforks, EthereumHardfork, EthereumHardforks, ForkCondition};
use alloy_primitives::{Address, U256};

mod network;

/// What "Amsterdam" means to the EVM.
///
/// EIP-7928 was first specified and tested on its own, on top of Osaka: test chains exist that commit to access lists
/// while gas, opcodes and precompiles are those of Osaka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AmsterdamRules {
    /// All rules of Amsterdam as revm implements them; headers carry a slot number (EIP-7843).
    #[default]
    Full,
    /// The rules of Osaka (with the blob parameters in force), and access lists; headers carry no slot number.
    Osaka,
}

/// Why a chain's rules cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainSpecError {
    /// The name is not one of a test network.
    #[error("unknown test network {got:?}")]
    UnknownNetwork {
        /// The name given.
        got: String,
    },
    /// The genesis says at which total difficulty the chain merges, and not at which block.
    #[error("the merge at total difficulty {total_difficulty} needs mergeNetsplitBlock in the genesis")]
    MergeBlockUnknown {
        /// The terminal total difficulty.
        total_difficulty: U256,
    },
    /// Blob parameters divide by zero, or allow less than they aim at.
    #[error(
        "the blob parameters {name:?} are not usable: target {target}, max {max}, update fraction {update_fraction}"
    )]
    BlobParams {
        /// The name of the schedule's entry.
        name: String,
        /// The target of blobs per block.
        target: u64,
        /// The maximum of blobs per block.
        max: u64,
        /// The base fee's update fraction.
        update_fraction: u128,
    },
}

/// The rules of one chain.
#[derive(Debug, Clone)]
pub struct ChainSpec {
    chain_id: u64,
    forks: EthereumChainHardforks,
    blob_params: Vec<(u64, BlobParams)>,
    /// From when each of [`network::BLOB_STEPS`] holds; empty but for networks of tests.
    blob_steps: Vec<u64>,
    deposit_contract: Address,
    amsterdam: ForkCondition,
    amsterdam_rules: AmsterdamRules,
}

/// Forks that bring blob parameters, oldest first, with the names that a blob schedule uses.
const BLOB_FORKS: [(EthereumHardfork, &str, Option<BlobParams>); 9] = [
    (EthereumHardfork::Cancun, "cancun", Some(BlobParams::cancun())),
    (EthereumHardfork::Prague, "prague", Some(BlobParams::prague())),
    (EthereumHardfork::Osaka, "osaka", Some(BlobParams::osaka())),
    (EthereumHardfork::Bpo1, "bpo1", Some(BlobParams::bpo1())),
    (EthereumHardfork::Bpo2, "bpo2", Some(BlobParams::bpo2())),
    (EthereumHardfork::Bpo3, "bpo3", None),
    (EthereumHardfork::Bpo4, "bpo4", None),
    (EthereumHardfork::Bpo5, "bpo5", None),
    (EthereumHardfork::Amsterdam, "amsterdam", None),
];

impl ChainSpec {
    /// The Ethereum mainnet.
    pub fn mainnet() -> Self {
        Self::public_chain(1, EthereumChainHardforks::mainnet())
    }

    /// The Hoodi test network.
    pub fn hoodi() -> Self {
        Self::public_chain(560_048, EthereumChainHardforks::hoodi())
    }

    /// The chain of a go-ethereum style genesis. Blob parameters come from its `blobSchedule`; entries that are missing
    /// take the values of mainnet, and for later forks those of the fork before.
    ///
    /// # Errors
    /// If the block of the merge cannot be told, or a blob schedule's entry is not usable.
    pub fn from_genesis(genesis: &Genesis, amsterdam_rules: AmsterdamRules) -> Result<Self, ChainSpecError> {
        let config = &genesis.config;
        let forks = genesis_forks(config, merge_condition(genesis)?);
        let deposit_contract = config.deposit_contract_address.unwrap_or(MAINNET_DEPOSIT_CONTRACT_ADDRESS);
        Self::new(config.chain_id, forks, deposit_contract, amsterdam_rules).with_blob_schedule(&config.blob_schedule)
    }

    /// The chain of an EEST or ethereum/tests `network` name: a fork ("Cancun"), or a transition between two of them
    /// ("CancunToPragueAtTime15k", "BerlinToLondonAt5"). The chain id is 1.
    ///
    /// # Errors
    /// If the name is unknown. Transitions at a total difficulty ("..AtDiffC0000") are not supported.
    pub fn from_network(name: &str, amsterdam_rules: AmsterdamRules) -> Result<Self, ChainSpecError> {
        let network::Network { forks, blob_steps } = network::network(name)
            .ok_or_else(|| ChainSpecError::UnknownNetwork { got: name.chars().take(80).collect() })?;
        let mut spec = Self::new(1, forks, MAINNET_DEPOSIT_CONTRACT_ADDRESS, amsterdam_rules);
        spec.blob_steps = blob_steps;
        spec.blob_params = spec.blob_params_of(&BTreeMap::new());
        Ok(spec)
    }

    /// Replaces the blob parameters by a schedule: fork name (case does not matter) to parameters, as in a genesis or in
    /// a fixture's `config.blobSchedule`. From Osaka on the limit per transaction (EIP-7594) and the reserve price
    /// (EIP-7918) are added, which schedules do not carry.
    ///
    /// # Errors
    /// If an entry is not usable.
    pub fn with_blob_schedule(mut self, schedule: &BTreeMap<String, BlobParams>) -> Result<Self, ChainSpecError> {
        for (name, params) in schedule {
            let usable = params.update_fraction != 0
                && params.max_blob_count != 0
                && params.target_blob_count <= params.max_blob_count
                && params.max_blob_count <= u64::from(u32::MAX);
            if !usable {
                return Err(ChainSpecError::BlobParams {
                    name: name.clone(),
                    target: params.target_blob_count,
                    max: params.max_blob_count,
                    update_fraction: params.update_fraction,
                });
            }
        }
        self.blob_params = self.blob_params_of(schedule);
        Ok(self)
    }

    /// The same rules under another chain id (EIP-155).
    #[must_use]
    pub const fn with_chain_id(mut self, chain_id: u64) -> Self {
        self.chain_id = chain_id;
        self
    }

    /// The chain's id (EIP-155).
    pub const fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// What Amsterdam means to the EVM.
    pub const fn amsterdam_rules(&self) -> AmsterdamRules {
        self.amsterdam_rules
    }

    /// The blob parameters in force at this time, `None` before Cancun.
    pub fn blob_params_at(&self, timestamp: u64) -> Option<BlobParams> {
        self.blob_params.iter().rev().find(|(from, _)| *from <= timestamp).map(|(_, params)| *params)
    }

    /// Whether headers of this time commit to the block's access list (EIP-7928).
    pub const fn commits_to_bal(&self, timestamp: u64) -> bool {
        self.amsterdam.active_at_timestamp(timestamp)
    }

    /// Whether headers of this time carry a slot number (EIP-7843).
    pub fn has_slot_number(&self, timestamp: u64) -> bool {
        self.amsterdam_rules == AmsterdamRules::Full && self.commits_to_bal(timestamp)
    }

    fn public_chain(chain_id: u64, forks: EthereumChainHardforks) -> Self {
        // Both public chains have their deposit contract at the same address.
        Self::with_forks(chain_id, forks, MAINNET_DEPOSIT_CONTRACT_ADDRESS, AmsterdamRules::Full)
    }

    fn new(
        chain_id: u64,
        forks: impl IntoIterator<Item = (EthereumHardfork, ForkCondition)>,
        deposit_contract: Address,
        amsterdam_rules: AmsterdamRules,
    ) -> Self {
        Self::with_forks(chain_id, EthereumChainHardforks::new(forks), deposit_contract, amsterdam_rules)
    }

    fn with_forks(
        chain_id: u64,
        forks: EthereumChainHardforks,
        deposit_contract: Address,
        amsterdam_rules: AmsterdamRules,
    ) -> Self {
        let amsterdam = forks.ethereum_fork_activation(EthereumHardfork::Amsterdam);
        let (blob_params, blob_steps) = (Vec::new(), Vec::new());
        let mut spec = Self { chain_id, forks, blob_params, blob_steps, deposit_contract, amsterdam, amsterdam_rules };
        spec.blob_params = spec.blob_params_of(&BTreeMap::new());
        spec
    }

    fn blob_params_of(&self, schedule: &BTreeMap<String, BlobParams>) -> Vec<(u64, BlobParams)> {
        let scheduled =
            |name: &str| schedule.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, params)| *params);
        let since_osaka = |params: BlobParams| {
            params.with_blob_base_cost(BLOB_BASE_COST).with_max_blobs_per_tx(MAX_BLOBS_PER_TX_FUSAKA)
        };
        let mut all = Vec::new();
        for (fork, name, default) in BLOB_FORKS {
            let ForkCondition::Timestamp(from) = self.forks.ethereum_fork_activation(fork) else { continue };
            let params = match scheduled(name) {
                Some(params) if fork < EthereumHardfork::Osaka => {
                    Some(params.with_max_blobs_per_tx(params.max_blob_count))
                }
                Some(params) => Some(since_osaka(params)),
                None => default,
            };
            all.extend(params.map(|params| (from, params)));
        }
        for (from, (name, default)) in self.blob_steps.iter().zip(network::BLOB_STEPS) {
            all.push((*from, scheduled(name).map_or(default, since_osaka)));
        }
        // The sort is stable: of two forks at one time the later one stands last, and wins.
        all.sort_by_key(|(from, _)| *from);
        all
    }
}

impl EthereumHardforks for ChainSpec {
    fn ethereum_fork_activation(&self, fork: EthereumHardfork) -> ForkCondition {
        if self.amsterdam_rules == AmsterdamRules::Osaka && fork >= EthereumHardfork::Amsterdam {
            return ForkCondition::Never;
        }
        let activation = self.forks.ethereum_fork_activation(fork);
        match (fork, self.forks.ethereum_fork_activation(EthereumHardfork::Constantinople), activation) {
            // The EVM has no rules for the time between the two. Those of Petersburg are Constantinople's but for the gas
            // of SSTORE (EIP-1283); those of Byzantium would lack its opcodes, too.
            (EthereumHardfork::Petersburg, ForkCondition::Block(earlier), ForkCondition::Block(own)) => {
                ForkCondition::Block(own.min(earlier))
            }
            (EthereumHardfork::Petersburg, earlier, ForkCondition::Never) => earlier,
            (_, _, activation) => activation,
        }
    }
}

impl EthExecutorSpec for ChainSpec {
    fn deposit_contract_address(&self) -> Option<Address> {
        Some(self.deposit_contract)
    }
}

/// The block of the merge, from what a genesis says of it.
fn merge_condition(genesis: &Genesis) -> Result<ForkCondition, ChainSpecError> {
    let config = &genesis.config;
    let by_time = config.shanghai_time.is_some();
    match (config.merge_netsplit_block, config.terminal_total_difficulty) {
        (Some(block), _) => Ok(ForkCondition::Block(block)),
        // The flag alone proves nothing: go-ethereum's own test chains of proof of work have set it. Their genesis has a
        // difficulty, and no fork by time.
        (None, None) if config.terminal_total_difficulty_passed && (genesis.difficulty.is_zero() || by_time) => {
            Ok(ForkCondition::Block(0))
        }
        (None, None) => Ok(ForkCondition::Never),
        // The genesis itself reaches the difficulty: its child is the first block after the merge.
        (None, Some(ttd)) if genesis.difficulty >= ttd => Ok(ForkCondition::Block(0)),
        (None, Some(total_difficulty)) => Err(ChainSpecError::MergeBlockUnknown { total_difficulty }),
    }
}

/// The forks of a go-ethereum style genesis. The DAO's irregular state change is made only where the genesis supports it.
fn genesis_forks(config: &ChainConfig, merge: ForkCondition) -> Vec<(EthereumHardfork, ForkCondition)> {
    use EthereumHardfork::*;
    let dao = config.dao_fork_block.filter(|_| config.dao_fork_support);
    let blocks = [
        (Frontier, Some(0)),
        (Homestead, config.homestead_block),
        (Dao, dao),
        (Tangerine, config.eip150_block),
        (SpuriousDragon, config.eip158_block),
        (Byzantium, config.byzantium_block),
        (Constantinople, config.constantinople_block),
        // A genesis without it has it together with Constantinople.
        (Petersburg, config.petersburg_block.or(config.constantinople_block)),
        (Istanbul, config.istanbul_block),
        (MuirGlacier, config.muir_glacier_block),
        (Berlin, config.berlin_block),
        (London, config.london_block),
        (ArrowGlacier, config.arrow_glacier_block),
        (GrayGlacier, config.gray_glacier_block),
    ];
    let times = [
        (Shanghai, config.shanghai_time),
        (Cancun, config.cancun_time),
        (Prague, config.prague_time),
        (Osaka, config.osaka_time),
        (Bpo1, config.bpo1_time),
        (Bpo2, config.bpo2_time),
        (Bpo3, config.bpo3_time),
        (Bpo4, config.bpo4_time),
        (Bpo5, config.bpo5_time),
        (Amsterdam, config.amsterdam_time),
        (Bogota, config.bogota_time),
    ];
    let blocks = blocks.into_iter().filter_map(|(fork, at)| Some((fork, ForkCondition::Block(at?))));
    let times = times.into_iter().filter_map(|(fork, at)| Some((fork, ForkCondition::Timestamp(at?))));
    blocks.chain([(Paris, merge)]).chain(times).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mainnet_schedule_of_blobs() {
        let spec = ChainSpec::mainnet();
        let max = |timestamp| spec.blob_params_at(timestamp).map(|params| params.max_blob_count);
        assert_eq!(max(1_700_000_000), None);
        assert_eq!(max(1_710_338_135), Some(6), "Cancun");
        assert_eq!(max(1_746_612_311), Some(9), "Prague");
        assert_eq!(max(1_764_798_551), Some(9), "Osaka");
        assert_eq!(max(1_765_290_071), Some(15), "BPO1");
        assert_eq!(max(1_767_747_671), Some(21), "BPO2");
    }

    #[test]
    fn osaka_rules_hide_amsterdam_from_the_evm() {
        let spec = ChainSpec::from_network("Amsterdam", AmsterdamRules::Osaka).unwrap();
        assert!(!spec.is_amsterdam_active_at_timestamp(0));
        assert!(spec.is_osaka_active_at_timestamp(0));
        assert!(spec.commits_to_bal(0) && !spec.has_slot_number(0));
        let full = ChainSpec::from_network("Amsterdam", AmsterdamRules::Full).unwrap();
        assert!(full.is_amsterdam_active_at_timestamp(0) && full.has_slot_number(0));
        assert_eq!(full.blob_params_at(0), Some(BlobParams::bpo2()));
    }

    #[test]
    fn a_schedule_overrides_and_is_checked() {
        let spec = ChainSpec::from_network("PragueToOsakaAtTime15k", AmsterdamRules::Full).unwrap();
        let custom = BlobParams { target_blob_count: 2, max_blob_count: 4, ..BlobParams::prague() };
        let with = |params| spec.clone().with_blob_schedule(&BTreeMap::from([("Osaka".to_owned(), params)]));
        let changed = with(custom).unwrap();
        assert_eq!(changed.blob_params_at(14_999), Some(BlobParams::prague()));
        let osaka = changed.blob_params_at(15_000).unwrap();
        assert_eq!((osaka.max_blob_count, osaka.max_blobs_per_tx, osaka.blob_base_cost), (4, 6, 1 << 13));
        assert!(matches!(
            with(BlobParams { update_fraction: 0, ..custom }),
            Err(ChainSpecError::BlobParams { update_fraction: 0, .. })
        ));
    }

    #[test]
    fn a_chain_of_proof_of_work_may_claim_the_merge() {
        let mut genesis = Genesis { difficulty: U256::from(0x20000), ..Genesis::default() };
        genesis.config.terminal_total_difficulty_passed = true;
        let merged = |genesis: &Genesis| {
            ChainSpec::from_genesis(genesis, AmsterdamRules::Full).unwrap().is_paris_active_at_block(1)
        };
        assert!(!merged(&genesis), "no terminal difficulty, no fork after the merge");
        genesis.config.shanghai_time = Some(0);
        assert!(merged(&genesis), "a fork after the merge");
        genesis.config.shanghai_time = None;
        genesis.difficulty = U256::ZERO;
        assert!(merged(&genesis), "nothing was ever mined");
    }

    #[test]
    fn the_merge_block_must_be_known() {
        let mut genesis = Genesis::default();
        genesis.config.terminal_total_difficulty = Some(U256::from(5));
        let spec = |genesis: &Genesis| ChainSpec::from_genesis(genesis, AmsterdamRules::Full);
        assert!(matches!(spec(&genesis), Err(ChainSpecError::MergeBlockUnknown { .. })));
        genesis.difficulty = U256::from(5);
        assert!(spec(&genesis).unwrap().is_paris_active_at_block(1));
        genesis.config.merge_netsplit_block = Some(7);
        assert!(!spec(&genesis).unwrap().is_paris_active_at_block(6));
    }
}
