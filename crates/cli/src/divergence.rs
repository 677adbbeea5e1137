//! `foldgate divergence`: computes the block of a shadow's report twice again, on the state in the report alone, and shows
//! where the two computations part.
//!
//! Invariant: the report is everything that is read.

use std::io::Write;

use alloy_primitives::{Address, B256, U256};
use foldgate_bal::Bal;
use foldgate_core::keys::{hash_address, hash_slot};
use foldgate_pipeline::{Difference, DivergenceReport, Place, Reproduction};
use serde::Serialize;

use crate::{CliError, args::DivergenceArgs};

/// What `foldgate divergence --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The block's height.
    pub number: u64,
    /// The block's hash.
    pub hash: B256,
    /// Whether the two computations differ again.
    pub reproduced: bool,
    /// The first difference: now, or else then.
    pub difference: Option<String>,
    /// Its address, where the block's list names it.
    pub address: Option<Address>,
    /// Its slot, where the block's list names it.
    pub slot: Option<U256>,
}

/// Says whether the divergence is reproduced.
pub(crate) fn command(args: &DivergenceArgs, out: &mut dyn Write) -> Result<bool, CliError> {
    let report = DivergenceReport::read(&args.file)?;
    let again = report.reproduce()?;
    let bal = report.bal()?;
    let (address, slot) = again.now.as_ref().or(again.then.as_ref()).map_or((None, None), |at| plain(&bal, &at.place));
    let reproduced = again.now.is_some();
    if args.json {
        let difference = again.now.as_ref().or(again.then.as_ref()).map(ToString::to_string);
        let block = report.facts.block;
        let summary = Summary { number: block.number, hash: block.hash, reproduced, difference, address, slot };
        writeln!(out, "{}", serde_json::to_string(&summary)?)?;
        return Ok(reproduced);
    }
    writeln!(out, "block    {}", report.facts.block)?;
    writeln!(out, "parent   {}", report.parent())?;
    let Reproduction { then, now, bal_since, execution_since, .. } = &again;
    write_difference(out, "then", then.as_ref())?;
    write_difference(out, "now", now.as_ref())?;
    if let Some(address) = address {
        writeln!(out, "address  {address}")?;
    }
    if let Some(slot) = slot {
        writeln!(out, "slot     {slot:#x}")?;
    }
    for (side, since) in [("access list", bal_since), ("executed writes", execution_since)] {
        match since {
            None => writeln!(out, "the {side} leads to what it led to then")?,
            Some(at) => writeln!(out, "the {side} leads to something else than then, first at {}", at.place)?,
        }
    }
    if !reproduced {
        writeln!(
            out,
            "not reproduced: the cause lies in what the report does not hold, the page cache or the branches in memory"
        )?;
    }
    Ok(reproduced)
}

fn write_difference(out: &mut dyn Write, when: &str, difference: Option<&Difference>) -> Result<(), CliError> {
    match difference {
        None => writeln!(out, "{when:8} no difference")?,
        Some(Difference { place, bal, execution, .. }) => {
            writeln!(out, "{when:8} {place}")?;
            writeln!(out, "         {bal} by the access list")?;
            writeln!(out, "         {execution} by the executed writes")?;
        }
    }
    Ok(())
}

/// The address and the slot of a place, where the list names them.
fn plain(bal: &Bal, place: &Place) -> (Option<Address>, Option<U256>) {
    let (hashed_address, hashed_slot) = match place {
        Place::Account { hashed_address, .. } => (hashed_address, None),
        Place::Slot { hashed_address, hashed_slot, .. } => (hashed_address, Some(hashed_slot)),
        _ => return (None, None),
    };
    let account = bal.accounts().iter().find(|account| hash_address(&account.address) == *hashed_address);
    let slot = hashed_slot.zip(account).and_then(|(hashed_slot, account)| {
        let changed = account.storage_changes.iter().map(|changes| changes.slot);
        changed.chain(account.storage_reads.iter().copied()).find(|slot| hash_slot(slot) == *hashed_slot)
    });
    (account.map(|account| account.address), slot)
}
