//! Executes whole blocks, step by step: the system calls before the transactions, each transaction, what follows them.
//!
//! Invariants:
//! 1. Writes leave in the order of their block access index: 0, `1..=n`, `n + 1` (EIP-7928). Accumulated over the
//!    parent's state with [`foldgate_core::EmptyAccounts::Keep`] they give the state after the block.
//! 2. A read that failed decides before anything else: the block stays unjudged.
//! 3. The list is rebuilt from what the EVM did, and never from what a block claims.

use alloy_consensus::{Header, ReceiptEnvelope, TxReceipt, proofs, transaction::Recovered};
use alloy_eip7928::{AccountChanges, bal::Bal};
use alloy_eips::eip7685::Requests;
use alloy_evm::{
    Evm, EvmEnv, EvmFactory,
    block::{BlockExecutionError, BlockExecutor, BlockValidationError},
    eth::{EthBlockExecutionCtx, EthBlockExecutor, EthEvmFactory},
    revm::database::State,
};
use alloy_hardforks::EthereumHardforks;
use alloy_primitives::{Address, B256, Bloom, Bytes, Sealed, keccak256};
use foldgate_core::{BlockAccessIndex, StateReader, StateWrites};

use crate::{
    block::Block,
    chain_spec::ChainSpec,
    database::{FaultLatch, HashedAsAsked, KeyHashes, ReadFault, ReaderDatabase},
    invalid::BlockInvalid,
    receipt::EnvelopeReceipts,
    record::Recorder,
    system,
    system_gas::CappedSystemCalls,
    validate::{validate_block, validate_execution},
};

/// What was left out while judging a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Receipts roots not computed, because receipts before Byzantium hold state roots between transactions.
    pub receipts_roots_skipped: u64,
}

/// What the execution of a block gave.
#[derive(Debug, Clone)]
pub struct ExecutedBlock {
    /// The block's access list, canonical (EIP-7928), under the rules of any fork.
    pub rebuilt_bal: Bal,
    /// Its RLP.
    pub rebuilt_bal_rlp: Bytes,
    /// keccak256 of its RLP.
    pub rebuilt_bal_hash: B256,
    /// The gas used by the block.
    pub gas_used: u64,
    /// The blob gas used by the block; 0 before Cancun.
    pub blob_gas_used: u64,
    /// The receipts in order.
    pub receipts: Vec<ReceiptEnvelope>,
    /// The root of the receipts; `None` before Byzantium.
    pub receipts_root: Option<B256>,
    /// The bloom filter over all logs.
    pub logs_bloom: Bloom,
    /// The requests (EIP-7685); empty before Prague.
    pub requests: Requests,
    /// What was left out.
    pub counters: Counters,
}

/// Why a block was not executed to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutionError<E: core::error::Error + 'static> {
    /// The block is invalid.
    #[error("the block is invalid: {0}")]
    Invalid(#[from] BlockInvalid),
    /// The parent's state could not be read.
    #[error("reading the parent's state failed: {0}")]
    Storage(#[source] E),
    /// An account of the parent's state refers to code that is not there.
    #[error("code {code_hash} is missing from the parent's state")]
    MissingCode {
        /// keccak256 of the code.
        code_hash: B256,
    },
    /// The hash of an ancestor within the reach of BLOCKHASH is not there.
    #[error("the hash of ancestor {number} is missing")]
    MissingBlockHash {
        /// The ancestor's number.
        number: u64,
    },
    /// The caller cancelled.
    #[error("the execution was cancelled")]
    Cancelled,
    /// Not one sender for each transaction.
    #[error("{got} senders for {expected} transactions")]
    SenderCount {
        /// The senders given.
        got: usize,
        /// The transactions of the block.
        expected: usize,
    },
    /// The EVM failed in a way that says nothing of the block.
    #[error("the EVM failed: {0}")]
    Evm(#[source] BlockExecutionError),
}

/// Validates a block, executes it, and validates what execution gave: [`validate_block`], [`execute_block`],
/// [`validate_execution`]. Nothing is left to check but the state root.
///
/// # Errors
/// See [`ExecutionError`].
pub fn process_block<R: StateReader>(
    spec: &ChainSpec,
    parent: &Sealed<Header>,
    block: &Block,
    senders: &[Address],
    parent_state: R,
    sink: &mut dyn FnMut(BlockAccessIndex, StateWrites),
    cancelled: &dyn Fn() -> bool,
) -> Result<ExecutedBlock, ExecutionError<R::Error>> {
    validate_block(spec, parent, block)?;
    let executed = execute_block(spec, block, senders, parent_state, sink, cancelled)?;
    validate_execution(spec, block, &executed)?;
    Ok(executed)
}

/// Executes `block` over the state of its parent, which must have passed [`validate_block`].
///
/// `sink` receives what each step changed, in order; an index may come several times (one time for each system call),
/// and indices that changed nothing do not come. `cancelled` is asked before each step.
///
/// # Errors
/// See [`ExecutionError`]. What went to the sink until then is of no use.
pub fn execute_block<R: StateReader>(
    spec: &ChainSpec,
    block: &Block,
    senders: &[Address],
    parent_state: R,
    sink: &mut dyn FnMut(BlockAccessIndex, StateWrites),
    cancelled: &dyn Fn() -> bool,
) -> Result<ExecutedBlock, ExecutionError<R::Error>> {
    execute_with(HashedAsAsked, spec, block, senders, parent_state, sink, cancelled)
}

/// [`execute_block`] for a block whose list was decoded: the keys that it names were hashed then. Everything else is read
/// and executed as without a list, whatever it says.
///
/// # Errors
/// As of [`execute_block`].
pub fn execute_block_with_list<R: StateReader>(
    spec: &ChainSpec,
    block: &Block,
    senders: &[Address],
    list: &foldgate_bal::Bal,
    parent_state: R,
    sink: &mut dyn FnMut(BlockAccessIndex, StateWrites),
    cancelled: &dyn Fn() -> bool,
) -> Result<ExecutedBlock, ExecutionError<R::Error>> {
    execute_with(list, spec, block, senders, parent_state, sink, cancelled)
}

/// [`execute_block`] with the hashes of keys from `key_hashes`.
pub(crate) fn execute_with<R: StateReader>(
    key_hashes: impl KeyHashes,
    spec: &ChainSpec,
    block: &Block,
    senders: &[Address],
    parent_state: R,
    sink: &mut dyn FnMut(BlockAccessIndex, StateWrites),
    cancelled: &dyn Fn() -> bool,
) -> Result<ExecutedBlock, ExecutionError<R::Error>> {
    let (got, expected) = (senders.len(), block.transactions.len());
    if got != expected {
        return Err(ExecutionError::SenderCount { got, expected });
    }
    let latch = FaultLatch::new();
    let mut stepped = Stepped { spec, block, senders, sink, cancelled };
    let result = stepped.run(ReaderDatabase::new(parent_state, key_hashes, &latch));
    match latch.into_inner() {
        Some(ReadFault::Reader(error)) => Err(ExecutionError::Storage(error)),
        Some(ReadFault::MissingCode(code_hash)) => Err(ExecutionError::MissingCode { code_hash }),
        Some(ReadFault::MissingBlockHash(number)) => Err(ExecutionError::MissingBlockHash { number }),
        None => result.map_err(Stop::into_error),
    }
}

/// Why the steps stopped, with failed reads left to the latch.
enum Stop {
    Invalid(BlockInvalid),
    Cancelled,
    Evm(BlockExecutionError),
}

impl Stop {
    fn into_error<E: core::error::Error + 'static>(self) -> ExecutionError<E> {
        match self {
            Self::Invalid(reason) => ExecutionError::Invalid(reason),
            Self::Cancelled => ExecutionError::Cancelled,
            Self::Evm(error) => ExecutionError::Evm(error),
        }
    }
}

impl From<BlockInvalid> for Stop {
    fn from(reason: BlockInvalid) -> Self {
        Self::Invalid(reason)
    }
}

/// One block on its way through the EVM.
struct Stepped<'a> {
    spec: &'a ChainSpec,
    block: &'a Block,
    senders: &'a [Address],
    sink: &'a mut dyn FnMut(BlockAccessIndex, StateWrites),
    cancelled: &'a dyn Fn() -> bool,
}

impl Stepped<'_> {
    fn run<R: StateReader, K: KeyHashes>(&mut self, database: ReaderDatabase<'_, R, K>) -> Result<ExecutedBlock, Stop> {
        let (spec, block) = (self.spec, self.block);
        let header = &block.header;
        let state = State::builder().with_database(database).with_bal_builder().build();
        let blob_params = spec.blob_params_at(header.timestamp);
        let env = EvmEnv::for_eth_block(header, spec, spec.chain_id(), blob_params);
        let evm = CappedSystemCalls(EthEvmFactory::default().create_evm(Recorder::new(state), env));
        let ctx = EthBlockExecutionCtx {
            parent_hash: header.parent_hash,
            parent_beacon_block_root: header.parent_beacon_block_root,
            ommers: &block.ommers,
            withdrawals: block.withdrawals.as_deref().map(Into::into),
            extra_data: header.extra_data.clone(),
            tx_count_hint: Some(block.transactions.len()),
            slot_number: header.slot_number,
        };
        let mut executor = EthBlockExecutor::new(evm, ctx, spec, EnvelopeReceipts);

        self.check_cancelled()?;
        executor.evm_mut().db_mut().state.set_bal_index(BlockAccessIndex::PRE_EXECUTION);
        executor.apply_pre_execution_changes().map_err(|error| stop(None, error))?;
        self.send(BlockAccessIndex::PRE_EXECUTION, executor.evm_mut().db_mut());

        for (index, (transaction, sender)) in block.transactions.iter().zip(self.senders).enumerate() {
            self.check_cancelled()?;
            let transaction = Recovered::new_unchecked(transaction, *sender);
            executor.execute_transaction_with_index(transaction, index).map_err(|error| stop(Some(index), error))?;
            self.send(BlockAccessIndex::from_tx_index(index as u64), executor.evm_mut().db_mut());
        }

        self.check_cancelled()?;
        let last = BlockAccessIndex::from_tx_index(block.transactions.len() as u64);
        executor.evm_mut().db_mut().state.set_bal_index(last);
        if spec.is_prague_active_at_timestamp(header.timestamp) {
            system::check_deposits(spec, executor.receipts())?;
            // A failed read is in the latch; whatever is returned for it is replaced.
            system::check_request_contracts(spec, header.timestamp, executor.evm_mut().db_mut())
                .map_err(|_| Stop::Cancelled)??;
        }
        let (evm, result) = executor.finish().map_err(|error| stop(None, error))?;
        let mut recorder = evm.into_db();
        self.send(last, &mut recorder);

        let bal = recorder.state.take_built_alloy_bal().unwrap_or_default();
        let byzantium = spec.is_byzantium_active_at_block(header.number);
        Ok(executed_block(bal, result, byzantium))
    }

    fn check_cancelled(&self) -> Result<(), Stop> {
        if (self.cancelled)() { Err(Stop::Cancelled) } else { Ok(()) }
    }

    fn send<DB>(&mut self, index: BlockAccessIndex, recorder: &mut Recorder<DB>) {
        for writes in recorder.drain() {
            (self.sink)(index, writes);
        }
    }
}

fn executed_block(
    bal: Vec<AccountChanges>,
    result: alloy_evm::block::BlockExecutionResult<ReceiptEnvelope>,
    byzantium: bool,
) -> ExecutedBlock {
    let mut rlp = Vec::new();
    alloy_rlp::encode_list(&bal, &mut rlp);
    let logs_bloom = result.receipts.iter().fold(Bloom::ZERO, |bloom, receipt| bloom | receipt.bloom());
    ExecutedBlock {
        rebuilt_bal_hash: keccak256(&rlp),
        rebuilt_bal_rlp: rlp.into(),
        rebuilt_bal: Bal::new(bal),
        gas_used: result.gas_used,
        blob_gas_used: result.blob_gas_used,
        receipts_root: byzantium.then(|| proofs::calculate_receipt_root(&result.receipts)),
        logs_bloom,
        receipts: result.receipts,
        requests: result.requests,
        counters: Counters { receipts_roots_skipped: u64::from(!byzantium) },
    }
}

/// Sorts an error of the executor: what is the block's fault, and what is not.
fn stop(tx_index: Option<usize>, error: BlockExecutionError) -> Stop {
    use BlockValidationError as V;
    let index = tx_index.unwrap_or_default();
    let validation = match error {
        BlockExecutionError::Validation(validation) => validation,
        internal => return Stop::Evm(internal),
    };
    let failed = |contract, reason| Stop::Invalid(BlockInvalid::SystemCallFailed { contract, reason });
    match validation {
        V::InvalidTx { hash, error } => match error.as_invalid_tx_err().cloned() {
            Some(reason) => Stop::Invalid(BlockInvalid::Transaction { index, reason }),
            None => Stop::Evm(V::InvalidTx { hash, error }.into()),
        },
        V::TransactionGasLimitMoreThanAvailableBlockGas {
            transaction_gas_limit: got,
            block_available_gas: available,
        } => Stop::Invalid(BlockInvalid::TransactionGas { index, got, available }),
        V::MissingParentBeaconBlockRoot => {
            Stop::Invalid(BlockInvalid::FieldMissing { field: "parent_beacon_block_root" })
        }
        V::DepositRequestDecode(_) => Stop::Invalid(BlockInvalid::DepositEventLayout { tx_index: index }),
        V::BlockHashContractCall { message } => failed("block hash", message),
        V::BeaconRootContractCall { message, .. } => failed("beacon root", message),
        V::WithdrawalRequestsContractCall { message } => failed("withdrawal requests", message),
        V::ConsolidationRequestsContractCall { message } => failed("consolidation requests", message),
        V::BuilderDepositRequestsContractCall { message } => failed("builder deposit requests", message),
        V::BuilderExitRequestsContractCall { message } => failed("builder exit requests", message),
        other => Stop::Evm(other.into()),
    }
}
