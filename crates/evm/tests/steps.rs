//! What single steps write, and how failing reads and cancellation come out: small blocks that no published test holds.

mod common;

use std::{
    cell::Cell,
    convert::Infallible,
    sync::atomic::{AtomicU64, Ordering},
};

use alloy_consensus::{EthereumTxEnvelope, Header, SignableTransaction, TxLegacy};
use alloy_eips::eip4895::Withdrawal;
use alloy_primitives::{Address, B256, Bytes, Sealable, Signature, TxKind, U256, address, bytes, keccak256};
use common::MapState;
use foldgate_core::{
    AccountInfo, AccountWrites, EmptyAccounts, HashedPostState, KeyHasher, LeafChanges, StateReader, StateWrites,
    keys::{hash_address, hash_slot},
    resolve,
};
use foldgate_evm::{
    AmsterdamRules, Block, BlockInvalid, ChainSpec, ExecutedBlock, ExecutionError, Transaction, execute_block,
};
use foldgate_testing::oracle::{PlainAccount, PlainState};

const SENDER: Address = Address::repeat_byte(0x11);
const CONTRACT: Address = Address::repeat_byte(0x22);
const OTHER: Address = Address::repeat_byte(0x33);

fn account(balance: u64, code: Bytes, slots: &[(u64, u64)]) -> PlainAccount {
    let storage = slots.iter().map(|(slot, value)| (U256::from(*slot), U256::from(*value))).collect();
    PlainAccount { nonce: 0, balance: U256::from(balance), code, storage }
}

fn parent(accounts: Vec<(Address, PlainAccount)>) -> MapState {
    let rich = (SENDER, account(u64::MAX, Bytes::new(), &[]));
    let state = PlainState { accounts: accounts.into_iter().chain([rich]).collect() };
    MapState::genesis(&state, &Header::default().seal_slow())
}

fn transaction(nonce: u64, to: TxKind, value: u64, input: Bytes) -> Transaction {
    let value = U256::from(value);
    let legacy = TxLegacy { chain_id: None, nonce, gas_price: 10, gas_limit: 200_000, to, value, input };
    EthereumTxEnvelope::Legacy(legacy.into_signed(Signature::test_signature()))
}

fn call(nonce: u64, to: Address, value: u64) -> Transaction {
    transaction(nonce, TxKind::Call(to), value, Bytes::new())
}

fn block(transactions: Vec<Transaction>) -> Block {
    let header = Header {
        number: 1,
        timestamp: 12,
        gas_limit: 30_000_000,
        base_fee_per_gas: Some(10),
        excess_blob_gas: Some(0),
        blob_gas_used: Some(0),
        parent_beacon_block_root: Some(B256::repeat_byte(7)),
        beneficiary: Address::repeat_byte(0xcb),
        ..Header::default()
    };
    Block { hash: header.hash_slow(), header, transactions, ommers: vec![], withdrawals: Some(vec![]), rlp_length: 0 }
}

type Steps = Vec<(u64, StateWrites)>;

fn run<R: StateReader>(
    network: &str,
    block: &Block,
    state: R,
) -> (Result<ExecutedBlock, ExecutionError<R::Error>>, Steps) {
    let spec = ChainSpec::from_network(network, AmsterdamRules::Full).unwrap();
    let senders = vec![SENDER; block.transactions.len()];
    let mut steps = Steps::new();
    let mut sink = |index: foldgate_core::BlockAccessIndex, writes| steps.push((index.get(), writes));
    let result = execute_block(&spec, block, &senders, state, &mut sink, &|| false);
    (result, steps)
}

/// The writes of one account at one index.
fn writes_of(steps: &Steps, at: u64, address: Address) -> Option<AccountWrites> {
    let at_index = steps.iter().filter(|(index, _)| *index == at);
    let mut found = at_index.flat_map(|(_, writes)| &writes.accounts).filter(|(found, _)| *found == address);
    let first = found.next().map(|(_, writes)| writes.clone());
    assert!(found.next().is_none(), "one write for each account and commit");
    first
}

fn resolved(steps: &Steps, state: &MapState) -> LeafChanges {
    let mut accumulated = HashedPostState::new(EmptyAccounts::Keep);
    let mut hasher = KeyHasher::default();
    steps.iter().for_each(|(_, writes)| accumulated.apply_writes(writes, &mut hasher));
    let Ok(changes) = resolve(&accumulated, state);
    changes
}

#[test]
fn selfdestruct_before_cancun_takes_the_storage_along() {
    // PUSH1 0 SELFDESTRUCT
    let state = parent(vec![(CONTRACT, account(3, bytes!("6000ff"), &[(1, 7), (2, 8)]))]);
    let block = block(vec![call(0, CONTRACT, 0), call(1, CONTRACT, 5)]);
    let (result, steps) = run("Shanghai", &block, state.clone());
    result.unwrap();
    let gone = AccountWrites { deleted: true, ..AccountWrites::default() };
    assert_eq!(writes_of(&steps, 1, CONTRACT), Some(gone));
    let back = AccountWrites { balance: Some(U256::from(5)), ..AccountWrites::default() };
    assert_eq!(writes_of(&steps, 2, CONTRACT), Some(back));

    let changes = resolved(&steps, &state);
    let change = changes.accounts.iter().find(|change| change.hashed_address == hash_address(&CONTRACT)).unwrap();
    assert_eq!(change.new, Some(AccountInfo { balance: U256::from(5), ..AccountInfo::default() }));
    assert!(change.slots.len() == 2 && change.slots.iter().all(|slot| slot.new.is_zero()));

    // From Cancun on the contract and its storage stay (EIP-6780).
    let (result, steps) = run("Cancun", &block, state.clone());
    result.unwrap();
    let moved = AccountWrites { balance: Some(U256::ZERO), ..AccountWrites::default() };
    assert_eq!(writes_of(&steps, 1, CONTRACT), Some(moved));
}

#[test]
fn empty_accounts_come_and_go_as_the_fork_says() {
    let state = parent(vec![(CONTRACT, account(0, Bytes::new(), &[]))]);
    let block = block(vec![call(0, OTHER, 0), call(1, CONTRACT, 0)]);
    let at = |changes: &LeafChanges, address: Address| {
        changes.accounts.iter().find(|change| change.hashed_address == hash_address(&address)).map(|change| change.new)
    };
    // Before EIP-161 a call makes an empty account, and one that is there stays.
    let (result, steps) = run("Homestead", &block, state.clone());
    result.unwrap();
    let changes = resolved(&steps, &state);
    assert_eq!(at(&changes, OTHER), Some(Some(AccountInfo::default())));
    assert_eq!(at(&changes, CONTRACT), None);
    // Since then none is made, and one that is touched goes.
    let (result, steps) = run("SpuriousDragon", &block, state.clone());
    result.unwrap();
    assert_eq!(writes_of(&steps, 1, OTHER), None);
    assert_eq!(writes_of(&steps, 2, CONTRACT).map(|writes| writes.deleted), Some(true));
    assert_eq!(at(&resolved(&steps, &state), CONTRACT), Some(None));
}

#[test]
fn what_a_transaction_changes_back_is_not_written() {
    // SSTORE(1, 9), SSTORE(1, 7), SSTORE(2, 5): slot 1 held 7 before.
    let code = bytes!("600960015560076001556005600255");
    let state = parent(vec![(CONTRACT, account(0, code, &[(1, 7)]))]);
    let (result, steps) = run("Cancun", &block(vec![call(0, CONTRACT, 0)]), state);
    result.unwrap();
    let expected = AccountWrites { storage: vec![(U256::from(2), U256::from(5))], ..AccountWrites::default() };
    assert_eq!(writes_of(&steps, 1, CONTRACT), Some(expected));
}

#[test]
fn a_contract_created_over_a_balance_has_no_older_storage() {
    let created = SENDER.create(0);
    let state = parent(vec![(created, account(4, Bytes::new(), &[]))]);
    // SSTORE(1, 1), then return one byte of memory (STOP) as the code.
    let deploy = transaction(0, TxKind::Create, 0, bytes!("600160015560016000f3"));
    let (result, steps) = run("Cancun", &block(vec![deploy]), state.clone());
    assert!(alloy_consensus::TxReceipt::status(&result.unwrap().receipts[0]));
    let writes = writes_of(&steps, 1, created).unwrap();
    assert!(writes.storage_wiped && !writes.deleted);
    assert_eq!((writes.nonce, writes.balance), (Some(1), None));
    assert_eq!(writes.code.as_ref().map(|code| code.hash()), Some(keccak256([0])));
    let changes = resolved(&steps, &state);
    let change = changes.accounts.iter().find(|change| change.hashed_address == hash_address(&created)).unwrap();
    assert_eq!(change.new.unwrap().balance, U256::from(4));
    assert_eq!(change.slots.iter().map(|slot| slot.hashed_slot).collect::<Vec<_>>(), [hash_slot(&U256::from(1))]);
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("the disk failed")]
struct DiskFailed;

/// Fails when one account is read.
#[derive(Clone)]
struct Failing {
    state: MapState,
    account: B256,
}

impl StateReader for Failing {
    type Error = DiskFailed;

    fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, DiskFailed> {
        if *hashed_address == self.account {
            return Err(DiskFailed);
        }
        let Ok(info) = self.state.account_info(hashed_address);
        Ok(info)
    }

    fn storage(&self, hashed_address: &B256, hashed_slot: &B256) -> Result<U256, DiskFailed> {
        let Ok(value) = self.state.storage(hashed_address, hashed_slot);
        Ok(value)
    }

    fn code(&self, code_hash: &B256) -> Result<Option<Bytes>, DiskFailed> {
        let Ok(code) = self.state.code(code_hash);
        Ok(code)
    }

    fn block_hash(&self, number: u64) -> Result<Option<B256>, DiskFailed> {
        let Ok(hash) = self.state.block_hash(number);
        Ok(hash)
    }
}

/// A disk that fails is never the block's fault, wherever in the block it fails.
#[test]
fn a_failing_read_is_reported_as_such() {
    let mut block = block(vec![call(0, OTHER, 1)]);
    block.withdrawals = Some(vec![Withdrawal { address: CONTRACT, amount: 1, ..Withdrawal::default() }]);
    let places = [
        ("Prague", "the system call before the transactions", alloy_eips::eip4788::BEACON_ROOTS_ADDRESS),
        ("Prague", "a transaction's sender", SENDER),
        ("Prague", "a transaction's recipient", OTHER),
        ("Cancun", "a withdrawal", CONTRACT),
        ("Prague", "a request contract", alloy_eips::eip7002::WITHDRAWAL_REQUEST_PREDEPLOY_ADDRESS),
    ];
    for (network, place, address) in places {
        let state = Failing { state: parent(vec![]), account: hash_address(&address) };
        let (result, _) = run(network, &block, state);
        assert!(matches!(result, Err(ExecutionError::Storage(DiskFailed))), "{place}: {result:?}");
    }
}

#[test]
fn missing_code_and_missing_ancestors_are_reported_as_such() {
    let state = parent(vec![]);
    // NUMBER PUSH1 1 SWAP1 SUB BLOCKHASH asks for the parent, which this view does not know.
    let asks = account(0, bytes!("4360019003405000"), &[]);
    let plain = PlainState { accounts: [(CONTRACT, asks), (SENDER, account(u64::MAX, Bytes::new(), &[]))].into() };
    let mut late = block(vec![call(0, CONTRACT, 0)]);
    late.header.number = 500;
    let (result, _) = run("Cancun", &late, MapState::genesis(&plain, &Header::default().seal_slow()));
    assert!(matches!(result, Err(ExecutionError::MissingBlockHash { number: 499 })), "{result:?}");

    #[derive(Clone)]
    struct NoCode(MapState);
    impl StateReader for NoCode {
        type Error = Infallible;
        fn account_info(&self, hashed_address: &B256) -> Result<Option<AccountInfo>, Infallible> {
            let info = self.0.account_info(hashed_address)?;
            let code_hash = B256::repeat_byte(9);
            let other = AccountInfo { code_hash, ..AccountInfo::default() };
            Ok(if *hashed_address == hash_address(&OTHER) { Some(other) } else { info })
        }
        fn storage(&self, _: &B256, _: &B256) -> Result<U256, Infallible> {
            Ok(U256::ZERO)
        }
        fn code(&self, _: &B256) -> Result<Option<Bytes>, Infallible> {
            Ok(None)
        }
        fn block_hash(&self, _: u64) -> Result<Option<B256>, Infallible> {
            Ok(None)
        }
    }
    let (result, _) = run("Cancun", &block(vec![call(0, OTHER, 0)]), NoCode(state));
    assert!(matches!(result, Err(ExecutionError::MissingCode { code_hash }) if code_hash == B256::repeat_byte(9)));
}

#[test]
fn cancelling_stops_between_steps() {
    let spec = ChainSpec::from_network("Cancun", AmsterdamRules::Full).unwrap();
    let block = block((0..5).map(|nonce| call(nonce, OTHER, 1)).collect());
    for steps_allowed in 0..7u64 {
        let asked = AtomicU64::new(0);
        let cancelled = || asked.fetch_add(1, Ordering::Relaxed) >= steps_allowed;
        let last = Cell::new(None);
        let mut sink = |index: foldgate_core::BlockAccessIndex, _| last.set(Some(index.get()));
        let result = execute_block(&spec, &block, &[SENDER; 5], parent(vec![]), &mut sink, &cancelled);
        assert!(matches!(result, Err(ExecutionError::Cancelled)), "{steps_allowed}: {result:?}");
        // Nothing is written before the transactions: the contract of EIP-4788 is not there.
        assert_eq!(last.get(), (steps_allowed > 1).then(|| steps_allowed - 1));
    }
}

#[test]
fn senders_must_be_as_many_as_transactions() {
    let spec = ChainSpec::from_network("Cancun", AmsterdamRules::Full).unwrap();
    let block = block(vec![call(0, OTHER, 1)]);
    let result = execute_block(&spec, &block, &[], parent(vec![]), &mut |_, _| {}, &|| false);
    assert!(matches!(result, Err(ExecutionError::SenderCount { got: 0, expected: 1 })));
}

/// EIP-7002, EIP-7251, EIP-8282: a block is invalid if a contract that it ends with is not there.
#[test]
fn each_request_contract_must_have_code() {
    let addresses = [
        alloy_eips::eip7002::WITHDRAWAL_REQUEST_PREDEPLOY_ADDRESS,
        alloy_eips::eip7251::CONSOLIDATION_REQUEST_PREDEPLOY_ADDRESS,
        address!("0000bff46984e3725691fa540a8c7589300d8282"),
        address!("000064d678505ad48f8ccb093bc65613800e8282"),
    ];
    for (network, due) in [("Cancun", 0), ("Osaka", 2), ("Amsterdam", 4)] {
        for missing in 0..=addresses.len() {
            let there = addresses.iter().enumerate().filter(|(index, _)| *index != missing);
            // STOP: returns no requests.
            let contracts = there.map(|(_, address)| (*address, account(0, bytes!("00"), &[])));
            let (result, _) = run(network, &block(vec![]), parent(contracts.collect()));
            match result {
                Ok(executed) => assert!(missing >= due && executed.requests.is_empty(), "{network} without {missing}"),
                Err(ExecutionError::Invalid(BlockInvalid::SystemContractEmpty { address })) => {
                    assert!(missing < due && address == addresses[missing], "{network} without {missing}");
                }
                Err(error) => panic!("{network} without {missing}: {error}"),
            }
        }
    }
}

/// EIP-145 came with Constantinople, whether or not Petersburg has begun.
#[test]
fn constantinople_has_its_opcodes() {
    // PUSH1 7 PUSH1 1 SHL PUSH1 0 SSTORE: slot 0 = 7 << 1.
    let contract = || (CONTRACT, account(0, bytes!("600760011b600055"), &[]));
    for (network, shifted) in [("Byzantium", false), ("Constantinople", true), ("ConstantinopleFix", true)] {
        let (result, steps) = run(network, &block(vec![call(0, CONTRACT, 0)]), parent(vec![contract()]));
        assert_eq!(alloy_consensus::TxReceipt::status(&result.unwrap().receipts[0]), shifted, "{network}");
        let storage = writes_of(&steps, 1, CONTRACT).map(|writes| writes.storage);
        assert_eq!(storage, shifted.then(|| vec![(U256::ZERO, U256::from(14))]), "{network}");
    }
}
