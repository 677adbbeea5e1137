//! One calculator without threads, and what is around it: executors, jobs' answers on their way, the committer's orders.

use std::{collections::BTreeSet, iter};

use crossbeam_channel::unbounded;
use foldgate_core::{
    BalStore, BlockAccessIndex, Cached, Forest, MemoryStore, trie::DEFAULT_NODE_BYTES, trie::bulk::StateLoad,
};
use foldgate_testing::sim::load_items;

use super::{super::*, End, Ended, Happens, List, Script};
use crate::{
    committer::Committer,
    config::{Canonical, Flush, OnEarlyMismatch},
    durability::WriteAhead,
    ground::Chain,
    handle::{AttemptId, BlockHandle, VerdictTicket},
    holdings::Holdings,
    permits::Permits,
    request::{BlockResult, RebuiltBal},
    retention::Retention,
    verdict::{BlockError, Outcome},
};

type Snapshot = <MemoryStore as TrieStore>::Snapshot;

pub(super) struct World<'a> {
    script: &'a Script,
    store: Arc<MemoryStore>,
    calculator: Calculator<MemoryStore>,
    results: (Sender<Execution>, Receiver<Execution>),
    answers: Receiver<JobMessage<MemoryStore>>,
    orders: Receiver<Order>,
    permits: Arc<Permits>,
    /// Answers that have not come yet.
    pending: Vec<(Happens, JobMessage<MemoryStore>)>,
    /// What of the script is still to happen.
    left: BTreeSet<Happens>,
    /// By block, like the tickets and what became of them.
    handles: Vec<Option<BlockHandle<Snapshot>>>,
    shared: Vec<Option<Arc<Shared<Snapshot>>>>,
    tickets: Vec<Option<VerdictTicket>>,
    fates: Vec<Option<String>>,
    heads: Vec<Receiver<Result<(), CanonicalError>>>,
}

impl<'a> World<'a> {
    pub(super) fn new(script: &'a Script) -> Self {
        let store = Arc::new(MemoryStore::new());
        let genesis = &script.blocks[0];
        let items = load_items(&genesis.state).into_iter().map(Ok::<_, std::convert::Infallible>);
        store.load(StateLoad::new(items, genesis.facts.block)).unwrap();
        let canonical = if script.heads.is_empty() { Canonical::Auto } else { Canonical::Explicit };
        let unwind_depth = script.unwind_depth;
        let on_early_mismatch = script.on_early_mismatch;
        let config = PipelineConfig { canonical, unwind_depth, on_early_mismatch, ..PipelineConfig::default() };
        let config = PipelineConfig { warm_up: false, ..config.with_flush(Flush::Synchronous) };
        let config = config.with_bal_driven(script.bal_driven).with_shadow(script.shadow);
        let cache = Arc::new(PageCache::new(0));
        let base = Cached::new(store.snapshot().unwrap(), cache).with_tries(Forest::new(DEFAULT_NODE_BYTES).unloaded());
        let permits = Permits::new(config.max_in_flight);
        let chain = Chain::new(genesis.anchor(), unwind_depth);
        let (answers, answers_in) = unbounded();
        let (orders, orders_in) = unbounded();
        let calculator = Calculator {
            backlog: Backlog::new(genesis.facts.block, None, Arc::clone(&permits)),
            tree: Tree::new(base, chain, config.max_remembered),
            config,
            counters: Arc::default(),
            pool: Arc::new(Pool::inline()),
            shadow_cache: Arc::new(PageCache::new(0)),
            answers,
            orders,
            store: Arc::clone(&store),
            broken: None,
            reorg: None,
            heads: VecDeque::new(),
            lost_ways: Vec::new(),
            viewers: Vec::new(),
            canonical_waiters: Vec::new(),
            flush_waiters: Vec::new(),
            touched: VecDeque::new(),
        };
        let count = script.blocks.len();
        let left = (1..count).flat_map(|block| {
            let supplied = matches!(script.line(block).list, List::Later | List::Again);
            [Some(Happens::Request(block)), supplied.then_some(Happens::Supply(block)), Some(Happens::End(block))]
        });
        let left = left.flatten().chain(script.heads.iter().map(|head| Happens::Head(*head))).collect();
        Self {
            script,
            store,
            calculator,
            results: unbounded(),
            answers: answers_in,
            orders: orders_in,
            permits,
            pending: Vec::new(),
            left,
            handles: iter::repeat_with(|| None).take(count).collect(),
            shared: vec![None; count],
            tickets: iter::repeat_with(|| None).take(count).collect(),
            fates: vec![None; count],
            heads: Vec::new(),
        }
    }

    /// What may happen now.
    pub(super) fn possible(&self) -> Vec<Happens> {
        let of_the_script = self.left.iter().copied().filter(|happens| match happens {
            Happens::End(block) => self.handles[*block].is_some(),
            _ => true,
        });
        let answers = self.pending.iter().map(|(happens, _)| *happens);
        let commit = (!self.orders.is_empty()).then_some(Happens::Commit);
        let mut possible: Vec<_> = of_the_script.chain(answers).chain(commit).collect();
        possible.sort_unstable();
        possible
    }

    /// Lets go of what leads back from the store's tip.
    pub(super) fn lose_the_way_back(&self) {
        self.store.prune_below(u64::MAX).unwrap();
    }

    pub(super) fn happens(&mut self, happens: Happens, order: &[Happens]) {
        self.left.remove(&happens);
        match happens {
            Happens::Request(block) => self.request(block),
            Happens::Supply(block) => {
                let block = &self.script.blocks[block];
                self.tell(Event::Control(Control::Bal { block: block.facts.block.hash, raw: block.raw.clone() }));
            }
            Happens::End(block) => self.end(block),
            Happens::Head(block) => {
                let (reply, answer) = unbounded();
                self.heads.push(answer);
                let head = self.script.blocks[block].facts.block.hash;
                self.tell(Event::Control(Control::SetCanonical { head, reply }));
            }
            Happens::Commit => self.commit(),
            Happens::Prepared(_)
            | Happens::Folded(..)
            | Happens::Compared(_)
            | Happens::Shadowed(_)
            | Happens::HeldToShadow(_)
            | Happens::Way(_) => {
                let at = self.pending.iter().position(|(pending, _)| *pending == happens).unwrap();
                let (_, answer) = self.pending.remove(at);
                self.tell(Event::Answer(answer));
            }
        }
        self.check_gates(order);
    }

    /// Tells the calculator, and takes what has come of it.
    fn tell(&mut self, event: Event<MemoryStore>) {
        let diverged = self.divergences();
        self.calculator.handle(event);
        assert!(self.calculator.touched.is_empty());
        for answer in self.answers.try_iter() {
            let of = |attempt: AttemptId| usize::try_from(attempt.0).unwrap();
            let happens = match &answer {
                JobMessage::Prepared { attempt, .. } => Happens::Prepared(of(*attempt)),
                JobMessage::Folded { attempt, generation, .. } => Happens::Folded(of(*attempt), *generation),
                JobMessage::Compared { attempt, .. } => Happens::Compared(of(*attempt)),
                JobMessage::Shadowed { attempt, .. } => Happens::Shadowed(of(*attempt)),
                JobMessage::HeldToShadow { attempt, .. } => Happens::HeldToShadow(of(*attempt)),
                JobMessage::Grounded { block, .. } => Happens::Way(self.script.at(*block)),
                other => panic!("{other:?}"),
            };
            assert!(self.pending.iter().all(|(pending, _)| *pending != happens), "{happens:?} was asked for twice");
            self.pending.push((happens, answer));
        }
        for (block, ticket) in self.tickets.iter().enumerate() {
            if let Some(outcome) = ticket.as_ref().and_then(VerdictTicket::try_wait) {
                self.check_judgement(block, &outcome);
                let mut fate = fate(&outcome);
                if outcome.is_ok() && self.divergences() > diverged {
                    fate.push_str(", diverged");
                }
                assert_eq!(self.fates[block].replace(fate), None, "block {block} has two outcomes");
            }
        }
    }

    fn divergences(&self) -> u64 {
        self.calculator.counters.snapshot().divergences
    }

    /// No verdict comes ahead of what it waits for.
    fn check_judgement(&self, block: usize, outcome: &Outcome) {
        let executed = !self.left.contains(&Happens::End(block));
        let held = |at: &(Happens, _)| matches!(at.0, Happens::Shadowed(at) | Happens::HeldToShadow(at) if at == block);
        match outcome {
            Ok(Verdict::Valid(_)) => {
                assert!(executed, "{block} is valid and was not executed");
                // With a list that lies its shadow is dropped, too.
                let waits = self.script.line(block).list != List::Lie;
                assert!(!waits || !self.pending.iter().any(held), "{block} is valid ahead of its shadow");
            }
            Ok(Verdict::Invalid(invalid)) if matches!(invalid.reason, InvalidReason::StateRootMismatch { .. }) => {
                let waits = self.script.shadow || self.script.on_early_mismatch == OnEarlyMismatch::FindReason;
                assert!(executed || !waits, "the early root of {block} was held against it");
            }
            _ => {}
        }
    }

    fn request(&mut self, block: usize) {
        let (line, sim) = (self.script.line(block), &self.script.blocks[block]);
        let request = BlockRequest::new(sim.facts);
        let request = match line.list {
            List::Payload | List::Again => request.with_bal(sim.raw.clone()),
            List::Wrong => request.with_bal(Bytes::from_static(&[0xc1, 0x80])),
            List::Lie => request.with_bal(self.script.others[block].raw.clone()),
            List::Missing | List::Later => request,
        };
        let (shared, ticket) = Shared::new(AttemptId(block as u64), sim.facts);
        let (reply, answer) = unbounded();
        let permit = self.permits.try_acquire().unwrap();
        self.tickets[block] = Some(ticket);
        self.tell(Event::Request(Request { shared: Arc::clone(&shared), request, permit, reply }));
        match answer.try_recv().unwrap() {
            Ok(Admission::Started) => {
                let (_, ticket) = Shared::<Snapshot>::new(shared.attempt, sim.facts);
                self.handles[block] = Some(BlockHandle::new(Arc::clone(&shared), self.results.0.clone(), ticket));
                self.shared[block] = Some(shared);
            }
            Ok(Admission::Known(_)) => panic!("block {block} was not delivered before"),
            Err(refused) => {
                self.tickets[block] = None;
                self.left.remove(&Happens::End(block));
                self.fates[block] = Some(first_word(&refused));
            }
        }
    }

    fn end(&mut self, block: usize) {
        let (end, sim) = (self.script.line(block).end, &self.script.blocks[block]);
        let mut handle = self.handles[block].take().unwrap();
        let writes = if end == End::Otherwise { &self.script.others[block].writes } else { &sim.writes };
        // A block that was stopped records nothing more, and ends all the same.
        let _stopped = handle
            .record(BlockAccessIndex::PRE_EXECUTION, &Default::default())
            .and_then(|()| writes.iter().try_for_each(|(index, writes)| handle.record(*index, writes)));
        let hash = if end == End::RebuiltOther { self.script.others[block].bal_hash } else { sim.bal_hash };
        let rebuilt_bal = Some(RebuiltBal { hash, list: None });
        let _ticket = match end {
            End::Honest | End::Otherwise | End::RebuiltOther => {
                Some(handle.finish(BlockResult { rebuilt_bal, expected_state_root: None }))
            }
            End::NotRebuilt => Some(handle.finish(BlockResult::default())),
            End::Reject => Some(handle.reject(std::fmt::Error)),
            End::Drop => {
                drop(handle);
                None
            }
        };
        let execution = self.results.1.try_recv().unwrap();
        self.tell(Event::Execution(execution));
    }

    /// The product's committer, for one order. Its answer comes at once: what is on its way is still being carried out.
    fn commit(&mut self) {
        let (order, order_in) = unbounded();
        order.send(self.orders.try_recv().unwrap()).unwrap();
        drop(order);
        let base = self.calculator.tree.base.clone();
        let committer = Committer {
            log: WriteAhead::new(None),
            store: Arc::clone(&self.store),
            cache: Arc::clone(base.cache()),
            base,
            pool: Arc::clone(&self.calculator.pool),
            unwind_depth: self.script.unwind_depth,
            retention: Retention::new(None),
        };
        let (answers, answers_in) = unbounded();
        committer.run(&order_in, &answers);
        self.tell(Event::Answer(answers_in.try_recv().unwrap()));
    }

    fn is_valid(&self, block: usize) -> bool {
        block == 0 || self.fates[block].as_deref().is_some_and(|fate| fate.starts_with("valid"))
    }

    /// Whether the block's executor may read: every ancestor in flight has ended, and its list is no riddle any more.
    fn may_read(&self, block: usize) -> bool {
        let mut at = self.script.line(block).parent;
        while !self.is_valid(at) {
            let in_flight = self.shared[at].is_some() && self.fates[at].is_none();
            let is_pending = self.pending.iter().any(|(pending, _)| *pending == Happens::Prepared(at));
            if !in_flight || is_pending || self.left.contains(&Happens::End(at)) {
                return false;
            }
            at = self.script.line(at).parent;
        }
        !self.pending.iter().any(|(pending, _)| matches!(pending, Happens::Way(_)))
    }

    /// No gate is open too early, and no state gate too late.
    fn check_gates(&self, order: &[Happens]) {
        for (block, shared) in self.shared.iter().enumerate() {
            let Some(shared) = shared else { continue };
            let parent = self.script.line(block).parent;
            let is_open = shared.gate.is_open();
            let ended = self.is_valid(parent) || !self.left.contains(&Happens::End(parent));
            assert!(ended || !is_open, "the state gate of {block} opens to what was not executed: {order:?}");
            let waits = self.fates[block].is_none() && self.may_read(block);
            assert!(is_open || !waits, "the state gate of {block} stays shut: {order:?}");
            let folded =
                self.pending.iter().any(|(pending, _)| matches!(pending, Happens::Folded(at, _) if *at == block));
            assert!(self.is_valid(parent) || !folded, "{block} is folded over what was not judged: {order:?}");
        }
    }

    /// Nothing happens any more: what became of the blocks. Then the pipeline shuts down.
    pub(super) fn ended(mut self, order: &[Happens]) -> Ended {
        let script = self.script;
        for (block, shared) in self.shared.iter().enumerate() {
            let Some(shared) = shared else { continue };
            if self.fates[block].is_none() {
                assert!(self.stands_on_nothing(block), "{block} waits for ever: {order:?}");
                self.fates[block] = Some("held".to_owned());
            } else if self.is_valid(block) {
                assert!(shared.gate.is_open(), "the state gate of {block} stays shut: {order:?}");
            } else {
                assert!(shared.gate.token().is_cancelled(), "{block} runs on: {order:?}");
            }
        }
        assert!(self.heads.iter().all(|head| !head.is_empty()), "a head is waited for: {order:?}");
        let tip = self.store.tip().unwrap().unwrap();
        let head = script.at(tip.block);
        assert_eq!(Some(tip.state_root), script.blocks[head].facts.expected_state_root);
        assert_eq!(self.calculator.backlog.head, tip.block, "{order:?}");
        self.check_maps(head, order);
        if script.shadow && (1..script.blocks.len()).all(|block| self.is_valid(block)) {
            let counters = self.calculator.counters.snapshot();
            let sources = counters.shadows + counters.shadows_skipped;
            assert_eq!(sources, script.lines.len() as u64, "{counters:?}: {order:?}");
        }
        self.calculator.shut_down();
        let holdings = self.calculator.holdings();
        assert_eq!((holdings.in_flight, holdings.orphans), (0, 0), "{order:?}");
        for (block, ticket) in self.tickets.iter().enumerate() {
            let held = self.fates[block].as_deref() == Some("held");
            assert_eq!(ticket.as_ref().and_then(VerdictTicket::try_wait).is_some(), held);
        }
        assert_eq!(self.permits.used(), 0, "{order:?}");
        (self.fates.into_iter().skip(1).flatten().collect(), tip.block.number as usize)
    }

    /// Whether some ancestor never became a block that one can stand on, and was never found invalid.
    fn stands_on_nothing(&self, block: usize) -> bool {
        let parent = self.script.line(block).parent;
        !self.is_valid(parent) && (self.fates[parent].is_some() || self.stands_on_nothing(parent))
    }

    /// The maps hold the blocks that are held, and the valid ones beside the durable chain that may still win.
    fn check_maps(&mut self, head: usize, order: &[Happens]) {
        // The next commit lets go of what readers kept that are gone.
        assert!(self.calculator.tree.prune().is_empty(), "{order:?}");
        let holdings = self.calculator.holdings();
        let held = self.fates.iter().flatten().filter(|fate| *fate == "held").count();
        let mut durable = head;
        let mut chain = vec![0];
        while durable != 0 {
            chain.push(durable);
            durable = self.script.line(durable).parent;
        }
        let beside = (1..self.script.blocks.len()).filter(|block| self.is_valid(*block) && !chain.contains(block));
        let beside = if self.script.unwind_depth == 0 { 0 } else { beside.count() };
        let Holdings { in_flight, orphans, committed, unflushed, parents, waiting, .. } = holdings;
        assert_eq!((in_flight, orphans, waiting), (held, held, 0), "{order:?}");
        assert_eq!((committed, unflushed), (beside, beside), "{order:?}");
        assert!(parents <= held + beside, "{holdings:?}: {order:?}");
        assert!(self.calculator.lost_ways.is_empty() && self.calculator.reorg.is_none(), "{order:?}");
    }
}

/// The first word of what a thing says of itself: its kind.
fn first_word(thing: &impl std::fmt::Debug) -> String {
    let text = format!("{thing:?}");
    text[..text.find(|at: char| !at.is_alphanumeric()).unwrap_or(text.len())].to_owned()
}

fn fate(outcome: &Outcome) -> String {
    match outcome {
        Ok(Verdict::Valid(_)) => "valid".to_owned(),
        Ok(Verdict::Invalid(invalid)) => {
            let early = if invalid.early.is_some() { ", early" } else { "" };
            first_word(&invalid.reason) + early
        }
        Err(BlockError::Halted(halt)) => first_word(halt),
        Err(BlockError::Failed(failure @ Failure::Divergence(_))) => first_word(failure),
        Err(BlockError::Failed(failure)) => panic!("{failure}"),
    }
}
