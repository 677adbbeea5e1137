//! A chain of its own: a genesis, and blocks of real signed transactions, each executed once to make its header and its
//! access list.
//!
//! Invariants:
//! 1. The same size gives the same chain, byte for byte: keys and choices come from a fixed seed.
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
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::contracts;
use crate::import::{List, Ready};

/// Why the demonstration's chain could not be made: a fault of this tool.
#[derive(Debug, thiserror::Error)]
#[error("making block {block}: {step}")]
pub struct ChainError {
    block: u64,
    step: &'static str,
    source: Box<dyn Error + Send + Sync>,
}

/// How large the genesis is: enough for tries of several levels.
const PLAIN_ACCOUNTS: u64 = 20_000;
const TOKEN_HOLDERS: u64 = 20_000;
const WALLETS: usize = 64;
const TRANSACTIONS: usize = 300;
const TIP: u128 = 1_000_000_000;

const TOKEN: Address = Address::repeat_byte(0x70);
const REGISTRY: Address = Address::repeat_byte(0x7e);

/// The chain's genesis, with all forks up to Osaka from the start, and access lists.
pub(super) fn genesis() -> Result<Genesis, serde_json::Error> {
    let config = serde_json::json!({
        "chainId": 7928,
        "homesteadBlock": 0, "eip150Block": 0, "eip155Block": 0, "eip158Block": 0, "byzantiumBlock": 0,
        "constantinopleBlock": 0, "petersburgBlock": 0, "istanbulBlock": 0, "berlinBlock": 0, "londonBlock": 0,
        "mergeNetsplitBlock": 0, "terminalTotalDifficulty": 0, "terminalTotalDifficultyPassed": true,
        "shanghaiTime": 0, "cancunTime": 0, "pragueTime": 0, "osakaTime": 0, "bpo1Time": 0, "bpo2Time": 0,
        "amsterdamTime": 0,
    });
    let mut alloc: BTreeMap<Address, GenesisAccount> = BTreeMap::new();
    for (address, code) in [
        (BEACON_ROOTS_ADDRESS, &BEACON_ROOTS_CODE),
        (HISTORY_STORAGE_ADDRESS, &HISTORY_STORAGE_CODE),
        (WITHDRAWAL_REQUEST_PREDEPLOY_ADDRESS, &WITHDRAWAL_REQUEST_PREDEPLOY_CODE),
        (CONSOLIDATION_REQUEST_PREDEPLOY_ADDRESS, &CONSOLIDATION_REQUEST_PREDEPLOY_CODE),
    ] {
        alloc.insert(address, contract(code.clone(), BTreeMap::new()));
    }
    let holders = (0..TOKEN_HOLDERS).map(plain_address).chain(wallets().into_iter().map(|wallet| wallet.address));
    let balances = holders.map(|holder| (holder.into_word(), B256::from(U256::from(1_000_000_000_u64))));
    alloc.insert(TOKEN, contract(contracts::TOKEN.into(), balances.collect()));
    alloc.insert(REGISTRY, contract(contracts::REGISTRY.into(), BTreeMap::new()));
    let ether = U256::from(10).pow(U256::from(18));
    for index in 0..PLAIN_ACCOUNTS {
        let balance = U256::from(index + 1);
        alloc.insert(plain_address(index), GenesisAccount { balance, ..GenesisAccount::default() });
    }
    for wallet in wallets() {
        let balance = U256::from(1_000_000) * ether;
        alloc.insert(wallet.address, GenesisAccount { balance, ..GenesisAccount::default() });
    }
    Ok(Genesis {
        config: serde_json::from_value(config)?,
        gas_limit: 60_000_000,
        timestamp: 1_800_000_000,
        alloc,
        ..Genesis::default()
    })
}

fn contract(code: Bytes, storage: BTreeMap<B256, B256>) -> GenesisAccount {
    GenesisAccount { nonce: Some(1), code: Some(code), storage: Some(storage), ..GenesisAccount::default() }
}

fn plain_address(index: u64) -> Address {
    Address::from_word(keccak256(index.to_be_bytes()))
}

struct Wallet {
    key: SigningKey,
    address: Address,
    nonce: u64,
}

fn wallets() -> Vec<Wallet> {
    (0..WALLETS)
        .filter_map(|index| {
            let secret = keccak256(format!("the key of wallet {index}"));
            // A hash that is no key is a chance of 1 in 2^128.
            let key = SigningKey::from_slice(secret.as_slice()).ok()?;
            let address = Address::from_public_key(key.verifying_key());
            Some(Wallet { key, address, nonce: 0 })
        })
        .collect()
}

/// Makes the chain's blocks, one after the other.
pub(super) struct Maker {
    spec: ChainSpec,
    store: Arc<MemoryStore>,
    parent: Sealed<Header>,
    wallets: Vec<Wallet>,
    rng: StdRng,
    /// Registry keys that hold a value.
    registered: Vec<u64>,
    next_key: u64,
}

impl Maker {
    /// Stands at the genesis, whose state `store` holds.
    pub(super) fn new(spec: ChainSpec, store: Arc<MemoryStore>, genesis: Sealed<Header>) -> Self {
        let rng = StdRng::seed_from_u64(7928);
        Self { spec, store, parent: genesis, wallets: wallets(), rng, registered: Vec::new(), next_key: 0 }
    }

    /// Makes the next block.
    pub(super) fn next(&mut self) -> Result<Ready, ChainError> {
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
            address: plain_address(self.rng.random_range(0..2 * PLAIN_ACCOUNTS)),
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
        let mut signed = Vec::with_capacity(TRANSACTIONS);
        let mut senders = Vec::with_capacity(TRANSACTIONS);
        for _ in 0..TRANSACTIONS {
            let (to, value, input, gas_limit) = self.call();
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

    /// What a random transaction does: recipient, value in wei, calldata, gas limit.
    fn call(&mut self) -> (TxKind, u64, Bytes, u64) {
        match self.rng.random_range(0..100) {
            // A transfer, to an account that exists or to a new one.
            0..45 => {
                let to = plain_address(self.rng.random_range(0..2 * PLAIN_ACCOUNTS));
                (to.into(), self.rng.random_range(1..1_000), Bytes::new(), 21_000)
            }
            // A transfer of tokens, to a holder or to a new one.
            45..85 => {
                let to = plain_address(self.rng.random_range(0..2 * TOKEN_HOLDERS));
                (TOKEN.into(), 0, contracts::transfer(to, self.rng.random_range(1..1_000)), 100_000)
            }
            // New slots, or slots that are cleared.
            85..93 => {
                let keys = self.next_key..self.next_key + 6;
                self.next_key = keys.end;
                self.registered.extend(keys.clone());
                (REGISTRY.into(), 0, contracts::set(self.rng.random_range(1..u64::MAX), keys), 250_000)
            }
            93..97 => {
                let cleared: Vec<_> = self.registered.choose_multiple(&mut self.rng, 6).copied().collect();
                self.registered.retain(|key| !cleared.contains(key));
                (REGISTRY.into(), 0, contracts::set(0, cleared), 250_000)
            }
            // A new contract, or one that is gone again when the transaction ends (EIP-6780).
            97..99 => (TxKind::Create, 0, contracts::creation(contracts::TOKEN), 300_000),
            _ => (TxKind::Create, 5, contracts::CREATE_AND_DESTROY.into(), 150_000),
        }
    }
}
