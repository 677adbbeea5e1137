//! A consensus client's script on every backend, told as the engine API tells it: new payloads and fork choices, with the
//! record log and the background flush on. Everything that such a client does to an execution client comes in one run
//! around a reorganisation 64 blocks deep, and back: siblings, payloads delivered twice, out of order, and in two halves
//! around a fork choice; an invalid block in the middle of a branch; heads that are not known yet, and old ones.
//!
//! At every fork choice the state of the head is held to the oracle, first as the next block's executor and fold see it,
//! before anything is flushed; at the turns also as the store has it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use alloy_primitives::B256;
use foldgate::{
    PipelineConfig, TrieStore, Verdict,
    core::{BalStore, HashedPostState},
    pipeline::{BeginError, Begun, BlockError, Canonical, CanonicalError, Halt, Mode, VerdictTicket},
};
use foldgate_testing::{
    conformance::StoreFactory,
    sim::{Sim, SimBlock, SimSize},
};

use crate::{
    races::{eventually, resolved, settled},
    support::{Opened, assert_state, assert_view, execute, load, open, request, start},
};

stamp_all!([a_consensus_client_goes_64_blocks_back_and_forth]);

const SMALL: SimSize = SimSize { addresses: 24, slots: 8, touched: 8, written: 4 };
const DEPTH: usize = 64;

/// What a payload's delivery comes to.
#[derive(Debug, PartialEq, Eq)]
enum Status {
    Valid,
    Invalid,
    /// It is held, or executed ahead: its verdict comes later.
    Syncing,
}

/// What a fork choice comes to.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Updated,
    /// The head is not known, or not judged.
    Syncing,
}

/// The execution client behind the engine API.
struct Engine<S: BalStore> {
    sim: Sim,
    store: Arc<S>,
    pipeline: Opened<S>,
    /// Every block made, by hash.
    blocks: HashMap<B256, SimBlock>,
    /// Blocks that an executor rejects.
    bad: Vec<B256>,
    /// Executed, and not judged when last looked at.
    open: Vec<(B256, VerdictTicket)>,
    choices: u64,
}

impl<S: BalStore> Engine<S> {
    fn new(store: S, seed: u64) -> (Self, SimBlock) {
        println!("seed {seed}");
        let mut sim = Sim::new(seed, SMALL);
        let genesis = sim.genesis();
        let store = load(store, &genesis);
        let config =
            PipelineConfig { canonical: Canonical::Explicit, ..PipelineConfig::default().with_bal_driven(true) };
        let pipeline = open(&store, config);
        let blocks = HashMap::from([(genesis.facts.block.hash, genesis.clone())]);
        (Self { sim, store, pipeline, blocks, bad: Vec::new(), open: Vec::new(), choices: 0 }, genesis)
    }

    /// Blocks that follow on each other, above `parent`.
    fn branch(&mut self, parent: &SimBlock, length: usize) -> Vec<SimBlock> {
        let mut branch: Vec<SimBlock> = Vec::new();
        while branch.len() < length {
            let parent = branch.last().unwrap_or(parent);
            let child = self.sim.child(parent);
            if child.state_root != parent.state_root {
                self.blocks.insert(child.facts.block.hash, child.clone());
                branch.push(child);
            }
        }
        branch
    }

    /// `engine_newPayload`: what can be said at once. Executes what was begun.
    fn new_payload(&mut self, block: &SimBlock) -> Status {
        let hash = block.facts.block.hash;
        assert!(self.pipeline.wait_for_room(Duration::from_secs(60)));
        let handle = match self.pipeline.begin(request(block)) {
            Ok(Begun::Started(handle)) => handle,
            Ok(Begun::Known(Verdict::Valid(known))) => {
                assert_eq!(known.computed_state_root, block.state_root);
                return Status::Valid;
            }
            Ok(Begun::Known(_)) | Err(BeginError::ParentInvalid(_)) => return Status::Invalid,
            Err(BeginError::InFlight(_)) => return Status::Syncing,
            Err(error) => panic!("{}: {error}", block.facts.block),
        };
        let ticket = if self.bad.contains(&hash) { handle.reject(std::fmt::Error) } else { execute(handle, block) };
        self.open.push((hash, ticket));
        Status::Syncing
    }

    /// Waits for the verdicts of all that was delivered, but for those that `held` says are held. Gives how many were valid
    /// and how many were not.
    fn settle(&mut self, held: &[&SimBlock]) -> (usize, usize) {
        let (mut good, mut bad) = (0, 0);
        for (hash, ticket) in std::mem::take(&mut self.open) {
            if held.iter().any(|block| block.facts.block.hash == hash) {
                assert!(ticket.try_wait().is_none(), "{hash} has no parent to stand on");
                self.open.push((hash, ticket));
                continue;
            }
            match resolved(&ticket) {
                Ok(Verdict::Valid(valid)) => {
                    assert_eq!(valid.computed_state_root, self.blocks[&hash].state_root);
                    assert_eq!(valid.mode, Mode::BalDriven);
                    good += 1;
                }
                Ok(Verdict::Invalid(invalid)) => {
                    assert!(self.bad.contains(&invalid.block.hash), "{invalid:?}");
                    bad += 1;
                }
                Err(BlockError::Halted(Halt::AncestorInvalid(block))) => {
                    assert!(self.bad.contains(&block.hash), "{block}");
                    bad += 1;
                }
                other => panic!("{hash}: {other:?}"),
            }
        }
        (good, bad)
    }

    /// Delivers blocks and waits until all are valid.
    fn import(&mut self, blocks: &[SimBlock]) {
        for part in blocks.chunks(8) {
            part.iter().for_each(|block| assert_eq!(self.new_payload(block), Status::Syncing));
            assert_eq!(self.settle(&[]), (part.len(), 0));
        }
    }

    /// `engine_forkchoiceUpdated`. Where the head moves, its state is the oracle's.
    fn forkchoice(&mut self, head: &SimBlock) -> Choice {
        match self.pipeline.set_canonical(head.facts.block.hash) {
            Ok(()) => {}
            Err(CanonicalError::Unknown(_) | CanonicalError::NotJudged(_)) => return Choice::Syncing,
            Err(error) => panic!("{}: {error}", head.facts.block),
        }
        self.choices += 1;
        // As the fold of a next block sees it, and its executor.
        let nothing = self.pipeline.compute(head.facts.block, &HashedPostState::default()).unwrap();
        assert_eq!(nothing.state_root, head.state_root);
        let next = self.sim.child(head);
        let building = start(&self.pipeline, request(&next));
        assert_view(&building.parent_state(), head);
        // It was built to look, and is not wanted.
        drop(building);
        Choice::Updated
    }

    /// A fork choice after which the store has the head's state, too.
    fn turn(&mut self, head: &SimBlock) {
        assert_eq!(self.forkchoice(head), Choice::Updated);
        assert_eq!(self.pipeline.flush().unwrap(), head.anchor());
        assert_state(&*self.store, head);
    }
}

fn a_consensus_client_goes_64_blocks_back_and_forth<F: StoreFactory>(factory: &F) {
    let (mut engine, genesis) = Engine::new(factory.fresh(), 400);
    let main = engine.branch(&genesis, 6 + DEPTH);

    // The chain, with a sibling of every eighth block, each payload delivered twice, a fork choice every fourth.
    for (at, block) in main.iter().enumerate() {
        assert_eq!(engine.new_payload(block), Status::Syncing);
        // In flight, or judged meanwhile.
        assert_ne!(engine.new_payload(block), Status::Invalid);
        let mut delivered = 1;
        if at % 8 == 7 {
            let sibling = engine.branch(&main[at - 1], 1);
            assert_eq!(engine.new_payload(&sibling[0]), Status::Syncing);
            delivered = 2;
        }
        assert_eq!(engine.settle(&[]), (delivered, 0));
        assert_eq!(engine.new_payload(block), Status::Valid);
        if at % 4 == 3 {
            assert_eq!(engine.forkchoice(block), Choice::Updated);
        }
    }
    let head = &main[5 + DEPTH];
    engine.turn(head);

    // A branch that leaves the chain 64 blocks down comes in the wrong order: the upper half is held. A fork choice of its
    // tip is too early, and the chain goes on meanwhile.
    let side = engine.branch(&main[5], DEPTH + 2);
    let (lower, upper) = side.split_at(8);
    let held: Vec<_> = upper[..8].iter().rev().collect();
    held.iter().for_each(|block| assert_eq!(engine.new_payload(block), Status::Syncing));
    assert_eq!(engine.forkchoice(&upper[7]), Choice::Syncing, "it is not judged");
    assert_eq!(engine.forkchoice(&side[DEPTH + 1]), Choice::Syncing, "it is unknown");
    let on = engine.branch(head, 2);
    on.iter().for_each(|block| assert_eq!(engine.new_payload(block), Status::Syncing));
    assert_eq!(engine.settle(&held), (2, 0));
    assert_eq!(engine.forkchoice(&on[1]), Choice::Updated);
    lower.iter().for_each(|block| assert_eq!(engine.new_payload(block), Status::Syncing));
    assert_eq!(engine.settle(&[]), (16, 0));

    // In the middle of a third branch a block is invalid: those above it fall, and so does whatever comes later.
    let third = engine.branch(&lower[3], 6);
    engine.bad.push(third[2].facts.block.hash);
    let invalid = &third[2];
    third[3..5].iter().for_each(|block| assert_eq!(engine.new_payload(block), Status::Syncing));
    third[..3].iter().for_each(|block| assert_eq!(engine.new_payload(block), Status::Syncing));
    assert_eq!(engine.settle(&[]), (2, 3));
    assert_eq!((engine.new_payload(invalid), engine.new_payload(&third[3])), (Status::Invalid, Status::Invalid));
    assert_eq!(engine.forkchoice(&third[5]), Choice::Syncing);

    // The rest of the branch, and the head goes there: 64 blocks back and 66 forward.
    engine.import(&upper[8..]);
    let before = engine.pipeline.counters();
    engine.turn(&side[DEPTH + 1]);
    let after = engine.pipeline.counters();
    let unwound = after.unwound - before.unwound;
    assert_eq!(after.reorganisations - before.reorganisations, 1);
    assert!(unwound >= DEPTH as u64, "{unwound} blocks back");

    // To the third branch's valid part, and back to the chain that was left, by a word; what was delivered is known.
    assert_eq!(engine.forkchoice(&third[1]), Choice::Updated);
    for block in on.iter().chain(&main) {
        assert_eq!(engine.new_payload(block), Status::Valid, "{}", block.facts.block);
    }
    engine.turn(&on[1]);
    for block in main.iter().chain(&on) {
        let committed = engine.store.committed(block.facts.block.number).unwrap();
        assert_eq!(committed, Some(block.anchor()));
    }

    // An ancestor of the head is an old fork choice: nothing moves. And both branches go on, in memory and in the store.
    engine.pipeline.set_canonical(main[9].facts.block.hash).unwrap();
    assert_eq!(engine.pipeline.flush().unwrap(), on[1].anchor());
    for parent in [&side[DEPTH + 1], &on[1], &side[DEPTH + 1], &on[1]] {
        let more = engine.branch(parent, 3);
        engine.import(&more);
        engine.turn(&more[2]);
    }
    eventually("blocks built to look stay", || (engine.pipeline.holdings().unwrap().in_flight == 0).then_some(()));
    settled(&engine.pipeline);
    let counters = engine.pipeline.counters();
    println!("{} fork choices, {counters:?}", engine.choices);
    assert_eq!((counters.folds_incremental, counters.failed, counters.invalid), (0, 0, 1));
    assert!(counters.folds_ahead_below_tip >= DEPTH as u64 && counters.reorganisations >= 6, "{counters:?}");
    assert!(counters.orphans >= 10 && counters.redelivered >= 2 * DEPTH as u64, "{counters:?}");
    assert!(engine.choices >= 25);
}
