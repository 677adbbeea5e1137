//! Generated chains with the shadow on: random trees of blocks, of which now this branch wins, now that one.
//!
//! Each round a few blocks are made, begun together, and executed; then, now and then, some leaf of the tree becomes the
//! canonical head, and what does not descend from it is gone. Some rounds make their blocks far below the head, where the
//! chain is durable already: one of these becomes the head, and then, as often as not, the head that was left does again.
//! Invalid blocks are among them, with a wrong root, or with a list that execution does not confirm. Roots are the oracle's.
//!
//! Every other chain has a record log, and is flushed in the background but for its newest blocks; the others go to the
//! store at once.
//!
//! Invariant: the same seed gives the same chain, and the same sum.

use std::{
    collections::VecDeque, error::Error, io, io::Write, num::NonZeroUsize, ops::RangeInclusive, sync::Arc,
    time::Duration,
};

use alloy_primitives::{B256, U256, keccak256};
use foldgate_core::{BalStore, BlockAccessIndex, BlockHash, TrieStore, trie::bulk::StateLoad};
use foldgate_pipeline::{
    BackgroundFlush, BeginError, Begun, BlockError, BlockHandle, BlockRequest, BlockResult, Canonical, CanonicalError,
    Failure, Flush, Mode, Outcome, Pipeline, PipelineConfig, RebuiltBal, RecordError, Verdict, VerdictTicket,
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
/// The length of a segment of a chain's log: a chain is short.
const SEGMENT_BYTES: u64 = 1 << 20;
/// How far below the head the branches of a deep reorganisation begin.
const DEPTHS: RangeInclusive<usize> = 10..=60;
/// What is flushed of a chain with a log: all but the newest few blocks, which are fewer than any of the depths.
const FLUSH: BackgroundFlush =
    BackgroundFlush { keep_in_memory: 3, blocks: NonZeroUsize::MIN, bytes: usize::MAX, interval: Duration::MAX };

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
        let folder = tempfile::tempdir()?;
        let store = Arc::clone(home.store());
        let pipeline = if seed % 2 == 1 {
            let log = FileLog::open(folder.path(), Options::DEFAULT.with_segment_bytes(SEGMENT_BYTES));
            let config = self.config.clone().with_flush(Flush::Background(FLUSH));
            Pipeline::open_with_log(store, log.map_err(|error| open(Box::new(error)))?, config)
        } else {
            Pipeline::open(store, self.config.clone())
        };
        let pipeline = pipeline.map_err(|error| open(Box::new(error)))?;
        // The canonical chain as far back as it is left, its head last.
        let mut chain = VecDeque::from([genesis.clone()]);
        // The head first; parents before children.
        let mut live = vec![genesis];
        let mut left = self.blocks;
        while left > 0 {
            let round: Vec<_> =
                (0..rng.random_range(1..=6).min(left)).map(|_| next(&mut sim, &mut rng, &mut live)).collect();
            left -= round.len() as u64;
            self.round(&pipeline, round)?;
            if rng.random_bool(0.4) || left == 0 {
                self.choose(&pipeline, &mut rng, &mut live, &mut chain)?;
                if left > 0 && rng.random_bool(0.3) {
                    left -= self.leave(&pipeline, &mut sim, &mut rng, left, &mut live, &mut chain)?;
                }
            }
        }
        pipeline.flush().map_err(|error| open(Box::new(error)))?;
        let counters = pipeline.counters();
        self.summary.add_shadow(Some(ShadowFigures::of(&counters)));
        self.summary.generated_below_tip += counters.reorganisations;
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

    /// Makes some leaf of the tree the canonical head, and adds the way there to the chain.
    fn choose<S: TrieStore>(
        &mut self,
        pipeline: &Pipeline<S>,
        rng: &mut StdRng,
        live: &mut Vec<SimBlock>,
        chain: &mut VecDeque<SimBlock>,
    ) -> Result<(), GeneratedError> {
        let Some(head) = leaf(rng, live) else { return Ok(()) };
        let newest = live.iter().max_by_key(|block| block.facts.block.number).map(|block| block.facts.block.hash);
        let hash = head.facts.block.hash;
        self.set_canonical(pipeline, hash)?;
        if newest.is_some_and(|newest| newest != hash) {
            self.summary.generated_reorgs += 1;
        }
        extend(chain, live, &head);
        *live = vec![head];
        Ok(())
    }

    /// Makes a branch far below the head, and one of its blocks the head; as often as not the old head is the head again
    /// in the end. Gives the number of blocks made.
    fn leave<S: BalStore>(
        &mut self,
        pipeline: &Pipeline<S>,
        sim: &mut Sim,
        rng: &mut StdRng,
        left: u64,
        live: &mut Vec<SimBlock>,
        chain: &mut VecDeque<SimBlock>,
    ) -> Result<u64, GeneratedError> {
        let deepest = (chain.len() - 1).min(*DEPTHS.end());
        if deepest < *DEPTHS.start() {
            return Ok(0);
        }
        let fork = chain.len() - 1 - rng.random_range(*DEPTHS.start()..=deepest);
        let mut branch = vec![chain[fork].clone()];
        let round: Vec<_> = (0..rng.random_range(1..=4).min(left)).map(|_| next(sim, rng, &mut branch)).collect();
        let made = round.len() as u64;
        self.round(pipeline, round)?;
        // None where all of them are invalid.
        if let Some(head) = leaf(rng, &branch) {
            self.set_canonical(pipeline, head.facts.block.hash)?;
            if rng.random_bool(0.5) {
                self.set_canonical(pipeline, live[0].facts.block.hash)?;
            } else {
                chain.truncate(fork + 1);
                extend(chain, &branch, &head);
                *live = vec![head];
            }
        }
        Ok(made)
    }

    fn set_canonical<S: TrieStore>(&self, pipeline: &Pipeline<S>, head: BlockHash) -> Result<(), GeneratedError> {
        pipeline.set_canonical(head).map_err(|source| GeneratedError::Canonical { seed: self.seed, source })
    }
}

/// Some block of a tree, but its root, that none stands on.
fn leaf(rng: &mut StdRng, tree: &[SimBlock]) -> Option<SimBlock> {
    let is_parent = |hash: BlockHash| tree.iter().any(|block| block.facts.parent_hash == hash);
    let leaves: Vec<_> = tree[1..].iter().filter(|block| !is_parent(block.facts.block.hash)).collect();
    leaves.choose(rng).map(|block| (*block).clone())
}

/// Adds the blocks of a tree on the way to `head` to a chain that ends with the tree's root.
fn extend(chain: &mut VecDeque<SimBlock>, tree: &[SimBlock], head: &SimBlock) {
    let at = chain.len();
    let mut next = Some(head);
    while let Some(block) = next.filter(|block| block.facts.block != tree[0].facts.block) {
        chain.insert(at, block.clone());
        next = tree.iter().find(|parent| parent.facts.block.hash == block.facts.parent_hash);
    }
    // The fork of the deepest branch, and what stands on it.
    chain.drain(..chain.len().saturating_sub(DEPTHS.end() + 1));
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
