//! Generated chains with the shadow on: random trees of blocks, of which now this branch wins, now that one.
//!
//! Each round a few blocks are made, begun together, and executed; then, now and then, some leaf of the tree becomes the
//! canonical head, and what does not descend from it is gone. Invalid blocks are among them, with a wrong root, or with a
//! list that execution does not confirm. Roots are the oracle's.
//!
//! Invariant: the same seed gives the same chain, and the same sum.

use std::{error::Error, io, io::Write, sync::Arc, time::Duration};

use alloy_primitives::{B256, U256, keccak256};
use foldgate_core::{BlockAccessIndex, BlockHash, TrieStore, trie::bulk::StateLoad};
use foldgate_pipeline::{
    BeginError, Begun, BlockError, BlockHandle, BlockRequest, BlockResult, Canonical, CanonicalError, Failure, Mode,
    Outcome, Pipeline, PipelineConfig, RebuiltBal, RecordError, Verdict, VerdictTicket,
};
use foldgate_record_log::{FileLog, Options};
use foldgate_testing::sim::{Sim, SimBlock, SimSize, load_items};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::Summary;
use crate::{
    Causes, CliError,
    args::{ModeArg, ValidateArgs},
    backend::{Backend, BackendError, Home, OnBackend},
    progress::Progress,
    shadow::{self, ShadowFigures},
};

/// The blocks of one chain, all branches together.
const CHAIN_BLOCKS: u64 = 250;
/// What a chain's store may cache.
const CACHE_BYTES: usize = 32 << 20;

/// How long a segment of a chain's log is.
const LOG_SEGMENT_BYTES: u64 = 64 << 10;

/// Why generated blocks could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GeneratedError {
    /// The store could not be had.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A pipeline could not be opened, or a genesis not be loaded.
    #[error("opening the chain of seed {seed}")]
    Open {
        /// The chain's seed.
        seed: u64,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A block could not be begun.
    #[error("a block of seed {seed} could not be begun")]
    Begin {
        /// The chain's seed.
        seed: u64,
        /// Why.
        source: BeginError,
    },
    /// A head could not be made canonical.
    #[error("a head of seed {seed} could not be made canonical")]
    Canonical {
        /// The chain's seed.
        seed: u64,
        /// Why.
        source: CanonicalError,
    },
    /// What is wrong could not be said.
    #[error("writing the report")]
    Output(#[from] io::Error),
}

pub(super) fn run(args: &ValidateArgs, summary: &mut Summary, notes: &mut dyn Write) -> Result<(), CliError> {
    let config = PipelineConfig { canonical: Canonical::Explicit, ..shadow::config(ModeArg::Shadow)? };
    let progress = Progress::blocks(args.generated, args.json);
    let mut seed = args.seed;
    while summary.generated < args.generated {
        let blocks = CHAIN_BLOCKS.min(args.generated - summary.generated);
        let chain = OneChain { seed, blocks, config: &config, progress: &progress, summary, notes };
        args.backend.run(chain)??;
        seed += 1;
    }
    progress.finish();
    Ok(())
}

struct OneChain<'a> {
    seed: u64,
    blocks: u64,
    config: &'a PipelineConfig,
    progress: &'a Progress,
    summary: &'a mut Summary,
    notes: &'a mut dyn Write,
}

/// What a block ought to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Valid, and folded ahead if it comes with a list.
    Valid {
        listed: bool,
    },
    Invalid,
}

/// A block to be delivered.
struct Delivery {
    block: SimBlock,
    request: BlockRequest,
    /// What the executor rebuilds.
    rebuilt: RebuiltBal,
    expected: Expected,
}

impl OnBackend for OneChain<'_> {
    type Output = Result<(), GeneratedError>;

    fn on<B: Backend>(mut self, backend: B) -> Self::Output {
        let seed = self.seed;
        let open = |source: Box<dyn Error + Send + Sync>| GeneratedError::Open { seed, source };
        let size = match seed % 3 {
            0 => SimSize { addresses: 12, slots: 6, touched: 8, written: 4 },
            1 => SimSize::default(),
            _ => SimSize { addresses: 300, slots: 60, touched: 60, written: 20 },
        };
        let mut sim = Sim::new(seed, size);
        let mut rng = StdRng::seed_from_u64(!seed);
        let genesis = sim.genesis();
        let home = Home::open(backend, None, CACHE_BYTES)?;
        let items = load_items(&genesis.state).into_iter().map(Ok::<_, std::convert::Infallible>);
        let load = StateLoad::new(items, genesis.facts.block).expecting(genesis.state_root);
        home.store().load(load).map_err(|error| open(Box::new(error)))?;
        // As a node has it: a log, and the flush in the background.
        let records = tempfile::tempdir().map_err(|error| open(Box::new(error)))?;
        let options = Options::DEFAULT.with_segment_bytes(LOG_SEGMENT_BYTES);
        let log = FileLog::open(records.path(), options).map_err(|error| open(Box::new(error)))?;
        let pipeline = Pipeline::open_with_log(Arc::clone(home.store()), log, self.config.clone())
            .map_err(|error| open(Box::new(error)))?;
        // The durable block first; parents before children.
        let mut live = vec![genesis];
        let mut left = self.blocks;
        while left > 0 {
            let round: Vec<_> =
                (0..rng.random_range(1..=6).min(left)).map(|_| next(&mut sim, &mut rng, &mut live)).collect();
            left -= round.len() as u64;
            self.round(&pipeline, round)?;
            if rng.random_bool(0.4) || left == 0 {
                self.choose(&pipeline, &mut rng, &mut live)?;
            }
        }
        self.summary.add_shadow(Some(ShadowFigures::of(&pipeline.counters())));
        let failed = |failure| GeneratedError::Canonical { seed, source: CanonicalError::Failed(failure) };
        pipeline.flush().map_err(failed)?;
        drop(pipeline);
        let got = home.store().tip().map_err(|error| open(Box::new(error)))?;
        if got != Some(live[0].anchor()) {
            self.wrong(&format!("the store stands at {got:?}, not at {}", live[0].anchor()))?;
        }
        Ok(())
    }
}

/// Makes a block on the newest one, or on another that lives. A valid one lives from now on.
fn next(sim: &mut Sim, rng: &mut StdRng, live: &mut Vec<SimBlock>) -> Delivery {
    let newest = live.len() - 1;
    let parent = if rng.random_bool(0.6) { newest } else { rng.random_range(newest.saturating_sub(12)..=newest) };
    let mut block = sim.child(&live[parent]);
    let rebuilt = RebuiltBal { hash: block.bal_hash, list: Some(block.list.clone()) };
    let (request, expected) = match rng.random_range(0..16) {
        0 => {
            block.facts.expected_state_root = Some(B256::repeat_byte(0xee));
            (BlockRequest::new(block.facts).with_bal(block.raw.clone()), Expected::Invalid)
        }
        1 if !block.list.is_empty() => {
            // A read that never was, or a balance that is not so: the header commits to it.
            let account = &mut block.list[0];
            match account.balance_changes.last_mut() {
                Some(change) => change.post_balance ^= U256::from(1),
                None => account.storage_reads = vec![U256::MAX],
            }
            let raw = foldgate_bal::encode(&block.list);
            block.facts.expected_bal_hash = Some(keccak256(&raw));
            (BlockRequest::new(block.facts).with_bal(raw), Expected::Invalid)
        }
        2 => (BlockRequest::new(block.facts), Expected::Valid { listed: false }),
        3 | 4 => {
            block.facts.expected_bal_hash = None;
            (BlockRequest::new(block.facts).with_sourced_bal(block.raw.clone()), Expected::Valid { listed: true })
        }
        _ => (BlockRequest::new(block.facts).with_bal(block.raw.clone()), Expected::Valid { listed: true }),
    };
    if expected != Expected::Invalid {
        live.push(block.clone());
    }
    Delivery { block, request, rebuilt, expected }
}

impl OneChain<'_> {
    fn wrong(&mut self, what: &str) -> io::Result<()> {
        self.summary.wrong += 1;
        writeln!(self.notes, "FAILED seed {}: {what}", self.seed)
    }

    /// Begins the blocks together, executes them in order, and holds the verdicts to what they ought to be.
    fn round<S: TrieStore>(&mut self, pipeline: &Pipeline<S>, round: Vec<Delivery>) -> Result<(), GeneratedError> {
        let begin = |delivery: Delivery| {
            // Room comes back when blocks before are acknowledged.
            pipeline.wait_for_room(Duration::MAX);
            match pipeline.begin(delivery.request.clone()) {
                Ok(begun) => Ok((delivery, begun)),
                Err(source) => Err(GeneratedError::Begin { seed: self.seed, source }),
            }
        };
        let begun = round.into_iter().map(begin).collect::<Result<Vec<_>, _>>()?;
        let executed: Vec<_> = begun
            .into_iter()
            .map(|(delivery, begun)| match begun {
                Begun::Started(handle) => {
                    let ticket = execute(handle, &delivery);
                    (delivery, Ok(ticket))
                }
                Begun::Known(verdict) => (delivery, Err(verdict)),
            })
            .collect();
        for (delivery, ended) in executed {
            let outcome = ended.map_or_else(Ok, VerdictTicket::wait);
            self.summary.blocks += 1;
            self.summary.generated += 1;
            self.progress.step_block();
            self.judge(&delivery, outcome)?;
        }
        Ok(())
    }

    fn judge(&mut self, delivery: &Delivery, outcome: Outcome) -> io::Result<()> {
        let block = delivery.block.facts.block;
        match (outcome, delivery.expected) {
            (Ok(Verdict::Invalid(_)), Expected::Invalid) => Ok(()),
            (Ok(Verdict::Valid(valid)), Expected::Valid { listed }) => {
                match valid.mode {
                    Mode::BalDriven => self.summary.folded_ahead += 1,
                    Mode::Incremental(_) => self.summary.folded_incremental += 1,
                }
                if valid.computed_state_root != delivery.block.state_root || (valid.mode == Mode::BalDriven) != listed {
                    self.wrong(&format!("block {block}: {} by {:?}", valid.computed_state_root, valid.mode))?;
                }
                Ok(())
            }
            // Counted by the pipeline, too; its descendants fall with it.
            (Err(BlockError::Failed(Failure::Divergence(divergence))), _) => self.wrong(&divergence.to_string()),
            (Err(error), _) => self.wrong(&format!("block {block}: {}", Causes(&error))),
            (Ok(Verdict::Valid(_)), Expected::Invalid) => {
                self.wrong(&format!("block {block}: an invalid block passed"))
            }
            (Ok(Verdict::Invalid(invalid)), Expected::Valid { .. }) => {
                self.wrong(&format!("block {block}: a valid block was refused: {}", invalid.reason))
            }
        }
    }

    /// Makes some leaf of the tree the canonical head.
    fn choose<S: TrieStore>(
        &mut self,
        pipeline: &Pipeline<S>,
        rng: &mut StdRng,
        live: &mut Vec<SimBlock>,
    ) -> Result<(), GeneratedError> {
        let is_parent = |hash: BlockHash| live.iter().any(|block| block.facts.parent_hash == hash);
        let leaves: Vec<_> = live[1..].iter().filter(|block| !is_parent(block.facts.block.hash)).collect();
        let Some(head) = leaves.choose(rng).map(|block| (*block).clone()) else { return Ok(()) };
        let newest = live.iter().max_by_key(|block| block.facts.block.number).map(|block| block.facts.block.hash);
        let stood_on = live[0].facts.block.hash;
        let hash = head.facts.block.hash;
        match pipeline.set_canonical(hash) {
            Ok(()) => {}
            Err(source) => return Err(GeneratedError::Canonical { seed: self.seed, source }),
        }
        if newest.is_some_and(|newest| newest != hash && newest != stood_on) {
            self.summary.generated_reorgs += 1;
        }
        *live = vec![head];
        Ok(())
    }
}

/// Records what the block's execution writes, and ends with the list that it rebuilds.
fn execute<R: foldgate_core::TrieReader>(mut handle: BlockHandle<R>, delivery: &Delivery) -> VerdictTicket {
    let begun = handle.record(BlockAccessIndex::PRE_EXECUTION, &Default::default());
    let writes = &delivery.block.writes;
    let recorded = begun.and_then(|()| writes.iter().try_for_each(|(index, writes)| handle.record(*index, writes)));
    match recorded {
        Ok(()) => handle.finish(BlockResult { rebuilt_bal: Some(delivery.rebuilt.clone()), expected_state_root: None }),
        Err(RecordError::Halted(_)) => handle.stop(),
        Err(error) => handle.fail(error),
    }
}
