//! Chains of this tool's own: blocks of real signed transactions, each executed once to make its header and its access list.
//! What the transactions do is a script's matter.
//!
//! Invariants:
//! 1. The same script gives the same chain, byte for byte: keys and choices come from a fixed seed.
//! 2. Blocks follow the rules of Osaka, and their headers commit to their access lists (EIP-7928).
//! 3. Whoever imports the blocks has nothing of what made them but their bytes.

use std::{collections::BTreeMap, error::Error, sync::Arc};

use alloy_consensus::{Header, SignableTransaction, TxEip1559, proofs};
use alloy_eips::{
    eip1559::BaseFeeParams,
    eip2935::{HISTORY_STORAGE_ADDRESS, HISTORY_STORAGE_CODE},
    eip4788::{BEACON_ROOTS_ADDRESS, BEACON_ROOTS_CODE},
    eip4895::Withdrawal,
    eip7002::{WITHDRAWAL_REQUEST_PREDEPLOY_ADDRESS, WITHDRAWAL_REQUEST_PREDEPLOY_CODE},
    eip7251::{CONSOLIDATION_REQUEST_PREDEPLOY_ADDRESS, CONSOLIDATION_REQUEST_PREDEPLOY_CODE},
};
use alloy_genesis::{Genesis, GenesisAccount};
use alloy_primitives::{Address, B256, Bytes, Sealed, Signature, TxKind, U256, keccak256};
use foldgate_core::{
    EmptyAccounts, HashedPostState, KeyHasher, Layer, MemoryStore, TrieReader, TrieStore, resolve,
    trie::{FoldOptions, fold},
};
use foldgate_evm::{Block, ChainSpec, Transaction, execute_block};
use k256::ecdsa::SigningKey;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::import::{List, Ready};

/// Why a chain could not be made: a fault of this tool.
#[derive(Debug, thiserror::Error)]
#[error("making block {block}: {step}")]
pub struct ChainError {
    block: u64,
    step: &'static str,
    source: Box<dyn Error + Send + Sync>,
}

const TIP: u128 = 1_000_000_000;

/// What a transaction does.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) to: TxKind,
    /// In wei.
    pub(crate) value: u64,
    pub(crate) input: Bytes,
    pub(crate) gas_limit: u64,
}

/// What a chain's blocks hold.
pub(crate) trait Script {
    /// The transactions of a block, each from one of the wallets, at random.
    fn transactions(&self) -> usize;

    /// What the next one does.
    fn call(&mut self, rng: &mut StdRng) -> Call;

    /// Whom a block's withdrawal goes to.
    fn withdraws_to(&mut self, rng: &mut StdRng) -> Address;
}

/// A genesis with all forks up to Osaka from the start, access lists, rich wallets, and these accounts.
pub(crate) fn genesis(
    gas_limit: u64,
    wallets: usize,
    mut alloc: BTreeMap<Address, GenesisAccount>,
) -> Result<Genesis, serde_json::Error> {
    let config = serde_json::json!({
        "chainId": 7928,
        "homesteadBlock": 0, "eip150Block": 0, "eip155Block": 0, "eip158Block": 0, "byzantiumBlock": 0,
        "constantinopleBlock": 0, "petersburgBlock": 0, "istanbulBlock": 0, "berlinBlock": 0, "londonBlock": 0,
        "mergeNetsplitBlock": 0, "terminalTotalDifficulty": 0, "terminalTotalDifficultyPassed": true,
        "shanghaiTime": 0, "cancunTime": 0, "pragueTime": 0, "osakaTime": 0, "bpo1Time": 0, "bpo2Time": 0,
        "amsterdamTime": 0,
    });
    for (address, code) in [
        (BEACON_ROOTS_ADDRESS, &BEACON_ROOTS_CODE),
        (HISTORY_STORAGE_ADDRESS, &HISTORY_STORAGE_CODE),
        (WITHDRAWAL_REQUEST_PREDEPLOY_ADDRESS, &WITHDRAWAL_REQUEST_PREDEPLOY_CODE),
        (CONSOLIDATION_REQUEST_PREDEPLOY_ADDRESS, &CONSOLIDATION_REQUEST_PREDEPLOY_CODE),
    ] {
        alloc.insert(address, contract(code.clone(), BTreeMap::new()));
    }
    let ether = U256::from(10).pow(U256::from(18));
    for address in wallet_addresses(wallets) {
        let balance = U256::from(1_000_000) * ether;
        alloc.insert(address, GenesisAccount { balance, ..GenesisAccount::default() });
    }
    Ok(Genesis {
        config: serde_json::from_value(config)?,
        gas_limit,
        timestamp: 1_800_000_000,
        alloc,
        ..Genesis::default()
    })
}

/// A contract as a genesis has it.
pub(crate) fn contract(code: Bytes, storage: BTreeMap<B256, B256>) -> GenesisAccount {
    GenesisAccount { nonce: Some(1), code: Some(code), storage: Some(storage), ..GenesisAccount::default() }
}

/// The address of this number.
pub(crate) fn plain_address(index: u64) -> Address {
    Address::from_word(keccak256(index.to_be_bytes()))
}

/// The first wallets' addresses.
pub(crate) fn wallet_addresses(count: usize) -> impl Iterator<Item = Address> {
    wallets(count).into_iter().map(|wallet| wallet.address)
}

/// Calldata of whole words.
pub(crate) fn words(words: impl IntoIterator<Item = U256>) -> Bytes {
    words.into_iter().flat_map(|word| word.to_be_bytes::<32>()).collect()
}

struct Wallet {
    key: SigningKey,
    address: Address,
    nonce: u64,
}

fn wallets(count: usize) -> Vec<Wallet> {
    (0..count)
        .filter_map(|index| {
            let secret = keccak256(format!("the key of wallet {index}"));
            // A hash that is no key is a chance of 1 in 2^128.
            let key = SigningKey::from_slice(secret.as_slice()).ok()?;
            let address = Address::from_public_key(key.verifying_key());
            Some(Wallet { key, address, nonce: 0 })
        })
        .collect()
}

/// Makes a chain's blocks, one after the other.
pub(crate) struct Maker<S> {
    script: S,
    spec: ChainSpec,
    store: Arc<MemoryStore>,
    parent: Sealed<Header>,
    wallets: Vec<Wallet>,
    rng: StdRng,
}

impl<S: Script> Maker<S> {
    /// Stands at the genesis, whose state `store` holds, with as many wallets.
    pub(crate) fn new(
        script: S,
        wallets: usize,
        spec: ChainSpec,
        store: Arc<MemoryStore>,
        genesis: Sealed<Header>,
    ) -> Self {
        let rng = StdRng::seed_from_u64(7928);
        Self { script, spec, store, parent: genesis, wallets: self::wallets(wallets), rng }
    }

    /// Makes the next block.
    pub(crate) fn next(&mut self) -> Result<Ready, ChainError> {
        let number = self.parent.number + 1;
        let fault = |step| move |source| ChainError { block: number, step, source };
        let header = self.header(number);
        let base_fee = u128::from(header.base_fee_per_gas.unwrap_or_default());
        let (transactions, senders) = self.transactions(base_fee).map_err(|error| fault("signing")(error.into()))?;
        self.seal(header, transactions, senders).map_err(fault("executing"))
    }

    fn header(&self, number: u64) -> Header {
        let parent = &self.parent;
        let timestamp = parent.timestamp + 12;
        let excess_blob_gas =
            self.spec.blob_params_at(timestamp).and_then(|params| parent.next_block_excess_blob_gas(params));
        Header {
            parent_hash: parent.hash(),
            beneficiary: Address::repeat_byte(0xfe),
            number,
            gas_limit: parent.gas_limit,
            timestamp,
            mix_hash: keccak256(number.to_be_bytes()),
            base_fee_per_gas: parent.next_block_base_fee(BaseFeeParams::ethereum()),
            blob_gas_used: Some(0),
            excess_blob_gas,
            parent_beacon_block_root: Some(keccak256(parent.hash())),
            ..Header::default()
        }
    }

    /// Executes the block, completes its header, and keeps the state after it.
    fn seal(
        &mut self,
        mut header: Header,
        transactions: Vec<Transaction>,
        senders: Vec<Address>,
    ) -> Result<Ready, Box<dyn Error + Send + Sync>> {
        let withdrawals = vec![Withdrawal {
            index: header.number,
            validator_index: header.number,
            address: self.script.withdraws_to(&mut self.rng),
            amount: 17_000_000,
        }];
        header.transactions_root = proofs::calculate_transaction_root(&transactions);
        header.withdrawals_root = Some(proofs::calculate_withdrawals_root(&withdrawals));
        let draft = Block {
            hash: B256::ZERO,
            header,
            transactions,
            ommers: Vec::new(),
            withdrawals: Some(withdrawals),
            rlp_length: 0,
        };
        let parent = self.store.snapshot()?;
        let (mut state, mut hasher) = (HashedPostState::new(EmptyAccounts::Keep), KeyHasher::default());
        let executed = execute_block(
            &self.spec,
            &draft,
            &senders,
            parent.clone(),
            &mut |_, writes| state.apply_writes(&writes, &mut hasher),
            &|| false,
        )?;
        let outcome = fold(&parent, resolve(&state, &parent)?, &FoldOptions::default())?;

        let Block { mut header, transactions, withdrawals, .. } = draft;
        header.gas_used = executed.gas_used;
        header.receipts_root = executed.receipts_root.unwrap_or_default();
        header.logs_bloom = executed.logs_bloom;
        header.requests_hash = Some(executed.requests.requests_hash());
        header.block_access_list_hash = Some(executed.rebuilt_bal_hash);
        header.state_root = outcome.computed_state_root;
        let body = alloy_consensus::BlockBody {
            transactions,
            ommers: Vec::<Header>::new(),
            withdrawals: withdrawals.map(Into::into),
        };
        // Decoded from its bytes: what is imported is what any node would receive.
        let block = Block::decode(&alloy_rlp::encode(alloy_consensus::Block { header, body }))?;
        let layer = Layer::new(parent.anchor().block, block.num_hash(), outcome, None);
        self.store.commit(&layer.to_batch())?;
        self.parent = block.sealed_header();
        Ok(Ready { block, senders, list: List::Payload(executed.rebuilt_bal_rlp) })
    }

    fn transactions(&mut self, base_fee: u128) -> Result<(Vec<Transaction>, Vec<Address>), k256::ecdsa::Error> {
        let count = self.script.transactions();
        let mut signed = Vec::with_capacity(count);
        let mut senders = Vec::with_capacity(count);
        for _ in 0..count {
            let Call { to, value, input, gas_limit } = self.script.call(&mut self.rng);
            let wallet = self.rng.random_range(0..self.wallets.len());
            let wallet = &mut self.wallets[wallet];
            let transaction = TxEip1559 {
                chain_id: self.spec.chain_id(),
                nonce: wallet.nonce,
                gas_limit,
                max_fee_per_gas: 2 * base_fee + TIP,
                max_priority_fee_per_gas: TIP,
                to,
                value: U256::from(value),
                access_list: Default::default(),
                input,
            };
            wallet.nonce += 1;
            let (signature, recovery) = wallet.key.sign_prehash_recoverable(transaction.signature_hash().as_slice())?;
            signed.push(transaction.into_signed(Signature::from((signature, recovery))).into());
            senders.push(wallet.address);
        }
        Ok((signed, senders))
    }
}
