//! The demonstration's chain: transfers of ether and tokens, slots set and cleared, contracts created and destroyed.

use std::collections::BTreeMap;

use alloy_genesis::{Genesis, GenesisAccount};
use alloy_primitives::{Address, B256, Bytes, TxKind, U256};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use super::contracts;
use crate::maker::{self, Call, Script, contract, plain_address, wallet_addresses};

/// How large the genesis is: enough for tries of several levels.
const PLAIN_ACCOUNTS: u64 = 20_000;
const TOKEN_HOLDERS: u64 = 20_000;
pub(super) const WALLETS: usize = 64;
const TRANSACTIONS: usize = 300;

const TOKEN: Address = Address::repeat_byte(0x70);
const REGISTRY: Address = Address::repeat_byte(0x7e);

/// The chain's genesis.
pub(super) fn genesis() -> Result<Genesis, serde_json::Error> {
    let mut alloc: BTreeMap<Address, GenesisAccount> = BTreeMap::new();
    let holders = (0..TOKEN_HOLDERS).map(plain_address).chain(wallet_addresses(WALLETS));
    let balances = holders.map(|holder| (holder.into_word(), B256::from(U256::from(1_000_000_000_u64))));
    alloc.insert(TOKEN, contract(contracts::TOKEN.into(), balances.collect()));
    alloc.insert(REGISTRY, contract(contracts::REGISTRY.into(), BTreeMap::new()));
    for index in 0..PLAIN_ACCOUNTS {
        let balance = U256::from(index + 1);
        alloc.insert(plain_address(index), GenesisAccount { balance, ..GenesisAccount::default() });
    }
    maker::genesis(60_000_000, WALLETS, alloc)
}

/// What the blocks do.
#[derive(Debug, Default)]
pub(super) struct Demonstration {
    /// Registry keys that hold a value.
    registered: Vec<u64>,
    next_key: u64,
}

impl Script for Demonstration {
    fn transactions(&self) -> usize {
        TRANSACTIONS
    }

    fn call(&mut self, rng: &mut StdRng) -> Call {
        let (to, value, input, gas_limit) = match rng.random_range(0..100) {
            // A transfer, to an account that exists or to a new one.
            0..45 => {
                let to = plain_address(rng.random_range(0..2 * PLAIN_ACCOUNTS));
                (to.into(), rng.random_range(1..1_000), Bytes::new(), 21_000)
            }
            // A transfer of tokens, to a holder or to a new one.
            45..85 => {
                let to = plain_address(rng.random_range(0..2 * TOKEN_HOLDERS));
                (TOKEN.into(), 0, contracts::transfer(to, rng.random_range(1..1_000)), 100_000)
            }
            // New slots, or slots that are cleared.
            85..93 => {
                let keys = self.next_key..self.next_key + 6;
                self.next_key = keys.end;
                self.registered.extend(keys.clone());
                (REGISTRY.into(), 0, contracts::set(rng.random_range(1..u64::MAX), keys), 250_000)
            }
            93..97 => {
                let cleared: Vec<_> = self.registered.choose_multiple(rng, 6).copied().collect();
                self.registered.retain(|key| !cleared.contains(key));
                (REGISTRY.into(), 0, contracts::set(0, cleared), 250_000)
            }
            // A new contract, or one that is gone again when the transaction ends (EIP-6780).
            97..99 => (TxKind::Create, 0, contracts::creation(contracts::TOKEN), 300_000),
            _ => (TxKind::Create, 5, contracts::CREATE_AND_DESTROY.into(), 150_000),
        };
        Call { to, value, input, gas_limit }
    }

    fn withdraws_to(&mut self, rng: &mut StdRng) -> Address {
        plain_address(rng.random_range(0..2 * PLAIN_ACCOUNTS))
    }
}
