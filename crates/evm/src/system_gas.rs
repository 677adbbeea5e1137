//! Holds system calls to the 30,000,000 gas of the EIPs.
//!
//! revm gives every system call the budget of Amsterdam, which adds a reservoir for state gas (EIP-8037). Before Amsterdam a
//! call that needs more than 30,000,000 has failed.
//!
//! Invariants:
//! 1. A call that is cut off changes nothing; what it read stays in its state, because an access list names it.
//! 2. Everything else is the inner EVM's.

use alloy_evm::{
    Evm, EvmEnv,
    revm::{
        context::CfgEnv,
        context_interface::result::{ExecutionResult, HaltReason, OutOfGasError, ResultAndState},
        primitives::hardfork::SpecId,
        state::EvmState,
    },
};
use alloy_primitives::{Address, Bytes};

/// The gas of a system call (EIP-2935, EIP-4788, EIP-7002, EIP-7251).
const SYSTEM_CALL_GAS: u64 = 30_000_000;

/// An EVM whose system calls get no more gas than their EIPs grant.
#[derive(Debug)]
pub(crate) struct CappedSystemCalls<E>(pub(crate) E);

impl<E: Evm<HaltReason = HaltReason, Spec = SpecId>> Evm for CappedSystemCalls<E> {
    type DB = E::DB;
    type Tx = E::Tx;
    type Error = E::Error;
    type HaltReason = HaltReason;
    type Spec = SpecId;
    type BlockEnv = E::BlockEnv;
    type Precompiles = E::Precompiles;
    type Inspector = E::Inspector;

    fn block(&self) -> &E::BlockEnv {
        self.0.block()
    }

    fn cfg_env(&self) -> &CfgEnv<SpecId> {
        self.0.cfg_env()
    }

    fn chain_id(&self) -> u64 {
        self.0.chain_id()
    }

    fn transact_raw(&mut self, tx: E::Tx) -> Result<ResultAndState, E::Error> {
        self.0.transact_raw(tx)
    }

    fn transact_system_call(
        &mut self,
        caller: Address,
        contract: Address,
        data: Bytes,
    ) -> Result<ResultAndState, E::Error> {
        let mut outcome = self.0.transact_system_call(caller, contract, data)?;
        let gas = *outcome.result.gas();
        if !self.cfg_env().spec().is_enabled_in(SpecId::AMSTERDAM) && gas.total_gas_spent() > SYSTEM_CALL_GAS {
            let reason = HaltReason::OutOfGas(OutOfGasError::Basic);
            outcome.result = ExecutionResult::Halt { reason, gas, logs: Vec::new() };
            undo(&mut outcome.state);
        }
        Ok(outcome)
    }

    fn finish(self) -> (E::DB, EvmEnv<SpecId, E::BlockEnv>) {
        self.0.finish()
    }

    fn set_inspector_enabled(&mut self, enabled: bool) {
        self.0.set_inspector_enabled(enabled);
    }

    fn components(&self) -> (&E::DB, &E::Inspector, &E::Precompiles) {
        self.0.components()
    }

    fn components_mut(&mut self) -> (&mut E::DB, &mut E::Inspector, &mut E::Precompiles) {
        self.0.components_mut()
    }
}

/// Turns all changes into reads.
fn undo(state: &mut EvmState) {
    for account in state.values_mut() {
        account.info = account.original_info();
        account.unmark_touch();
        account.storage.values_mut().for_each(|slot| slot.present_value = slot.original_value);
    }
}
