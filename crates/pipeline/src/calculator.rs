//! The calculator: one thread that owns the block tree and decides. It never computes, reads or writes state itself;
//! long work goes to the pool and to the committer, so that a request or a cancellation never waits behind it.
//!
//! ```text
//!   begin ----------> requests --\                     /--> pool: prepare, warm up, fold, compare --\
//!   executors ------> results  ---> [calculator] ------<                                             >--> answers
//!   set_canonical --> control  --/   owns the Tree     \--> committer: one store commit at a time --/
//! ```
//!
//! Every event touches a block; [`Calculator::step`] then does whatever has become possible for it, and touches its
//! children when they may profit. A step is a function of the block's stages and its parent's, so the order in which
//! events arrive does not matter. Requests are taken first, because a result may overtake its request's successors.
//!
//! Invariants:
//! 1. A block is judged valid only with its execution ended and confirmed, its root equal to the header's, and its
//!    parent judged valid.
//! 2. A block's fold starts only when its parent is committed, in memory or durably: never on what a list claims.
//! 3. An outcome is sent once; a block whose outcome was sent is out of the tree's blocks in flight.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use alloy_primitives::{B256, Bytes};
use crossbeam_channel::{Receiver, Sender, select_biased};
use foldgate_core::{
    BlockHash, BlockNumHash, HashedPostState, Layer, StateAnchor, TrieReader, TrieStore,
    trie::{FoldError, FoldOptions},
};

use crate::{
    config::{Canonical, OnEarlyMismatch, PipelineConfig},
    counters::{Counters, SkipReason},
    halt::Halt,
    handle::{Execution, ExecutionEnd, Shared},
    jobs::{self, Folded, JobMessage, Prepared},
    permits::Permit,
    pipeline::{Admission, BeginError, CanonicalError},
    request::{BalInput, BlockRequest, RebuiltBal},
    tree::{BalStage, Committed, CompareStage, Durability, Entry, ExecutionStage, FoldStage, Node, ParentStatus, Tree},
    verdict::{BlockError, BlockTimings, ConfirmedBy, Failure, InvalidBlock, InvalidReason, Mode, ValidBlock, Verdict},
    warm::Warm,
};

/// A request at a block's arrival.
#[derive(Debug)]
pub(crate) struct Request<R: TrieReader> {
    pub(crate) shared: Arc<Shared<R>>,
    pub(crate) request: BlockRequest,
    pub(crate) permit: Permit,
    pub(crate) reply: Sender<Result<Admission, BeginError>>,
}

/// Everything else that the pipeline's owner asks for.
#[derive(Debug)]
pub(crate) enum Control {
    SetCanonical {
        head: BlockHash,
        reply: Sender<Result<(), CanonicalError>>,
    },
    /// Answers when everything queued is durable.
    Flush {
        reply: Sender<Result<StateAnchor, Failure>>,
    },
    Shutdown,
}

/// The channels that feed the calculator.
#[derive(Debug)]
pub(crate) struct Inbox<S: TrieStore> {
    pub(crate) requests: Receiver<Request<S::Snapshot>>,
    pub(crate) results: Receiver<Execution>,
    pub(crate) answers: Receiver<JobMessage<S>>,
    pub(crate) control: Receiver<Control>,
}

/// What a step found.
enum Progress {
    /// Something is still missing.
    Pending,
    Invalid(InvalidReason),
    Failed(Failure),
    Valid(ConfirmedBy, Arc<Folded>),
}

/// How a block will be calculated.
struct Plan {
    mode: Mode,
    /// The list to prepare.
    raw: Option<Bytes>,
    sourced: bool,
}

/// See the module's documentation.
pub(crate) struct Calculator<S: TrieStore> {
    pub(crate) config: PipelineConfig,
    pub(crate) counters: Arc<Counters>,
    pub(crate) pool: Arc<jobs::Pool>,
    pub(crate) answers: Sender<JobMessage<S>>,
    pub(crate) commits: Sender<Arc<Layer>>,
    pub(crate) tree: Tree<S::Snapshot>,
    pub(crate) broken: Option<Failure>,
    pub(crate) canonical_waiters: Vec<(BlockNumHash, Sender<Result<(), CanonicalError>>)>,
    pub(crate) flush_waiters: Vec<Sender<Result<StateAnchor, Failure>>>,
    pub(crate) touched: VecDeque<BlockHash>,
}

impl<S: TrieStore> Calculator<S> {
    /// Runs until told to shut down, or until every sender is gone.
    pub(crate) fn run(mut self, inbox: &Inbox<S>) {
        loop {
            let goes_on = select_biased! {
                recv(inbox.requests) -> request => request.map(|request| self.on_request(request)).is_ok(),
                recv(inbox.results) -> result => result.map(|result| self.on_execution(result)).is_ok(),
                recv(inbox.answers) -> answer => answer.map(|answer| self.on_answer(answer)).is_ok(),
                recv(inbox.control) -> control => match control {
                    Ok(Control::Shutdown) | Err(_) => false,
                    Ok(control) => { self.on_control(control); true }
                },
            };
            if !goes_on {
                break;
            }
            while let Some(hash) = self.touched.pop_front() {
                self.step(&hash);
            }
        }
        let in_flight: Vec<_> = self.tree.attempts.values().copied().collect();
        for hash in in_flight {
            self.halt(&hash, Halt::Shutdown);
        }
    }

    // ---- events ----

    fn on_request(&mut self, request: Request<S::Snapshot>) {
        let admission = self.admit(request.shared, request.request, request.permit);
        // The caller waits for the answer; if it is gone, its handle's drop follows.
        let _gone = request.reply.send(admission);
    }

    fn admit(
        &mut self,
        shared: Arc<Shared<S::Snapshot>>,
        request: BlockRequest,
        permit: Permit,
    ) -> Result<Admission, BeginError> {
        if let Some(failure) = &self.broken {
            return Err(BeginError::Broken(failure.clone()));
        }
        let facts = request.facts;
        let (block, parent) = (facts.block, facts.parent().ok_or(BeginError::Genesis)?);
        if let Some(verdict) = self.tree.verdict(&block.hash) {
            Counters::add(&self.counters.redelivered);
            return Ok(Admission::Known(verdict));
        }
        if self.tree.nodes.contains_key(&block.hash) {
            return Err(BeginError::InFlight(block));
        }
        let status = self.tree.parent_status(parent);
        match status {
            ParentStatus::Invalid => return Err(BeginError::ParentInvalid(parent)),
            ParentStatus::BelowTip => return Err(BeginError::BelowTip { parent, tip: self.tree.tip() }),
            ParentStatus::Durable | ParentStatus::Committed | ParentStatus::InFlight | ParentStatus::Unknown => {}
        }
        Counters::add(&self.counters.requests);
        let plan = self.plan(request);
        let base = self.tree.base.clone();
        let bal = match plan.raw {
            None => BalStage::None,
            Some(raw) => {
                self.prepare(&shared, raw, base.clone());
                BalStage::Preparing
            }
        };
        let entry = Entry {
            parent,
            base,
            permit: Some(permit),
            mode: plan.mode,
            bal,
            sourced: plan.sourced,
            execution: ExecutionStage::Running,
            executed: None,
            fold: FoldStage::Idle,
            gate_opened: false,
            compare: CompareStage::Idle,
            generation: 0,
            early: None,
            arrival: Instant::now(),
            leaves_ready: None,
            timings: BlockTimings::default(),
            shared,
        };
        self.tree.attempts.insert(entry.shared.attempt, block.hash);
        self.tree.children.entry(parent.hash).or_default().push(block.hash);
        self.tree.nodes.insert(block.hash, Node::InFlight(Box::new(entry)));
        if self.tree.is_orphan(parent) {
            self.hold_orphan(block.hash, &status);
        }
        self.touched.push_back(block.hash);
        self.touch_children(&block.hash);
        Ok(Admission::Started)
    }

    /// Decides how a block is calculated, and whether its list is worth preparing.
    fn plan(&self, request: BlockRequest) -> Plan {
        let (raw, sourced) = match request.bal {
            BalInput::None => (None, false),
            BalInput::Payload(raw) => (Some(raw), false),
            BalInput::Sourced(raw) => (Some(raw), true),
        };
        let reason = if request.before_cancun {
            SkipReason::BeforeCancun
        } else if !self.config.bal_driven {
            SkipReason::SwitchedOff
        } else if raw.is_none() {
            SkipReason::NoBal
        } else {
            return Plan { mode: Mode::BalDriven, raw, sourced };
        };
        self.counters.skip(reason);
        // A payload's list that the header commits to can make the block invalid in every mode.
        let judged = !sourced && !request.before_cancun && request.facts.expected_bal_hash.is_some();
        Plan { mode: Mode::Incremental(reason), raw: raw.filter(|_| judged), sourced }
    }

    /// Holds a block in flight until its unknown ancestor turns up. Where there are too many such blocks, the oldest one
    /// goes with all that stands on it; but a block that stands on others goes itself, rather than take them along.
    fn hold_orphan(&mut self, hash: BlockHash, parent: &ParentStatus) {
        Counters::add(&self.counters.orphans);
        self.tree.orphans.push_back(hash);
        // Room for one block is left: the missing ancestor must be able to begin.
        let max = self.config.max_orphans.min(self.config.max_in_flight.get() - 1);
        while self.tree.orphans.len() > max {
            let oldest = self.tree.orphans.front().copied().unwrap_or(hash);
            let evicted = if *parent == ParentStatus::InFlight { hash } else { oldest };
            let reason = match self.tree.nodes.get(&evicted) {
                Some(Node::InFlight(entry)) => Halt::UnknownParent(entry.parent),
                _ => break,
            };
            self.halt(&evicted, reason);
        }
    }

    fn prepare(&self, shared: &Arc<Shared<S::Snapshot>>, raw: Bytes, base: Warm<S::Snapshot>) {
        let (shared, answers, warm_up) = (Arc::clone(shared), self.answers.clone(), self.config.warm_up);
        self.pool.spawn(&self.answers, &Arc::clone(&shared), move || {
            let begin = Instant::now();
            let attempt = shared.attempt;
            let prepared = jobs::prepare(&raw, &shared.facts);
            let took = begin.elapsed();
            let Prepared::Good(good) = &prepared else {
                return Some(JobMessage::Prepared { attempt, prepared, took });
            };
            // The answer goes first: neither the fold nor the judgement waits for the warm-up.
            let good = Arc::clone(good);
            let answered = answers.send(JobMessage::Prepared { attempt, prepared, took });
            if warm_up && answered.is_ok() {
                jobs::warm_up(&good.bal, &base, || shared.gate.token().is_cancelled());
            }
            None
        });
    }

    fn on_execution(&mut self, message: Execution) {
        let block = message.facts.block;
        if self.tree.attempts.get(&message.attempt) != Some(&block.hash) {
            if !matches!(message.end, ExecutionEnd::Dropped) {
                Counters::add(&self.counters.late_messages);
            }
            return;
        }
        match message.end {
            ExecutionEnd::Finished { state, result } => {
                let Some(Node::InFlight(entry)) = self.tree.nodes.get_mut(&block.hash) else { return };
                entry.timings.execution = entry.arrival.elapsed();
                entry.execution = ExecutionStage::Finished { recorded: state, result };
                self.touched.push_back(block.hash);
            }
            ExecutionEnd::Rejected(reason) => {
                let Some(entry) = self.tree.take(&block.hash) else { return };
                match entry.shared.read_failure.get().cloned() {
                    // A failed read can look like an invalid block: it is not one.
                    Some(error) => self.close_failed(entry, Failure::Read(error)),
                    None => self.close_invalid(entry, InvalidReason::Execution(reason)),
                }
            }
            ExecutionEnd::Failed(error) => {
                let Some(entry) = self.tree.take(&block.hash) else { return };
                self.close_failed(entry, Failure::Executor(error));
            }
            ExecutionEnd::Dropped => self.halt(&block.hash, Halt::HandleDropped),
        }
    }

    fn on_answer(&mut self, answer: JobMessage<S>) {
        let attempt = match &answer {
            JobMessage::Prepared { attempt, .. }
            | JobMessage::Folded { attempt, .. }
            | JobMessage::Compared { attempt, .. }
            | JobMessage::Panicked { attempt, .. } => *attempt,
            JobMessage::Committed { .. } => {
                if let JobMessage::Committed { layer, result } = answer {
                    self.on_committed(&layer, result);
                }
                return;
            }
        };
        let entry = self.tree.attempts.get(&attempt).copied().and_then(|hash| self.tree.take(&hash));
        let Some(mut entry) = entry else {
            Counters::add(&self.counters.late_messages);
            return;
        };
        let hash = entry.block().hash;
        let closed = match answer {
            JobMessage::Prepared { prepared, took, .. } => {
                entry.timings.decode = took;
                self.on_prepared(&mut entry, prepared)
            }
            JobMessage::Folded { generation, folded, .. } if generation == entry.generation => match folded {
                Ok(folded) => {
                    entry.timings.gate_wait = folded.gate_wait;
                    entry.timings.resolve = folded.resolve;
                    entry.timings.fold = folded.fold;
                    entry.fold = FoldStage::Done(Arc::new(folded));
                    Progress::Pending
                }
                Err(FoldError::Read(error)) => Progress::Failed(Failure::Read(Arc::new(error))),
                Err(error) => Progress::Failed(Failure::Fold(Arc::new(error))),
            },
            JobMessage::Compared { generation, equal, .. } if generation == entry.generation => match equal {
                Ok(true) => {
                    entry.compare = CompareStage::Equal;
                    Progress::Pending
                }
                Ok(false) => {
                    self.drop_bal(&mut entry, SkipReason::NotConfirmed);
                    Progress::Pending
                }
                Err(error) => Progress::Failed(Failure::Read(Arc::new(error))),
            },
            JobMessage::Panicked { message, .. } => Progress::Failed(Failure::Panicked(message)),
            // The answer of a job whose list was dropped meanwhile.
            _ => Progress::Pending,
        };
        self.settle(entry, closed);
        self.touched.push_back(hash);
    }

    fn on_prepared(&mut self, entry: &mut Entry<S::Snapshot>, prepared: Prepared) -> Progress {
        let committed_to = entry.shared.facts.expected_bal_hash.is_some();
        match prepared {
            Prepared::Good(bal) => {
                entry.bal = BalStage::Ready(bal);
                Progress::Pending
            }
            Prepared::WrongHash { got, expected } if !entry.sourced => {
                Progress::Invalid(InvalidReason::BalHashMismatch { got, expected })
            }
            Prepared::Malformed(error) if committed_to => Progress::Invalid(InvalidReason::BalMalformed(error)),
            Prepared::WrongHash { .. } | Prepared::Malformed(_) => {
                self.drop_bal(entry, SkipReason::BalRefused);
                Progress::Pending
            }
        }
    }

    fn on_control(&mut self, control: Control) {
        match control {
            Control::SetCanonical { head, reply } => self.set_canonical(head, reply),
            Control::Flush { reply } => {
                self.flush_waiters.push(reply);
                self.answer_waiters();
            }
            // Handled by the loop.
            Control::Shutdown => {}
        }
    }

    fn set_canonical(&mut self, head: BlockHash, reply: Sender<Result<(), CanonicalError>>) {
        let durable = self.tree.tip();
        let answer = match self.tree.nodes.get(&head) {
            _ if head == durable.hash => Some(Ok(())),
            Some(Node::InFlight(entry)) => Some(Err(CanonicalError::NotJudged(entry.block()))),
            None => Some(Err(CanonicalError::Unknown(head))),
            Some(Node::Committed(Committed { layer, durability: Durability::Queued { .. }, .. })) => {
                self.canonical_waiters.push((layer.anchor.block, reply.clone()));
                None
            }
            Some(Node::Committed(Committed { layer, .. })) => {
                let block = layer.anchor.block;
                match self.tree.path_to(head) {
                    None => Some(Err(CanonicalError::NotADescendant { block, of: self.tree.queued_head })),
                    Some(path) => {
                        self.canonical_waiters.push((block, reply.clone()));
                        path.iter().for_each(|layer| self.queue(layer.anchor.block, None));
                        None
                    }
                }
            }
        };
        if let Some(answer) = answer {
            // The caller waits for the answer; if it is gone, nobody does.
            let _gone = reply.send(answer);
        }
        self.answer_waiters();
    }

    /// Hands a committed block to the committer.
    fn queue(&mut self, block: BlockNumHash, permit: Option<Permit>) {
        let Some(Node::Committed(committed)) = self.tree.nodes.get_mut(&block.hash) else { return };
        committed.durability = Durability::Queued { _permit: permit };
        self.tree.queued_head = block;
        // The committer is gone only after a failure, whose answer is on its way.
        let _failed = self.commits.send(Arc::clone(&committed.layer));
    }

    fn on_committed(&mut self, layer: &Layer, result: Result<S::Snapshot, Failure>) {
        let block = layer.anchor.block;
        match result {
            Ok(snapshot) => {
                Counters::add(&self.counters.commits);
                self.tree.base = Warm::new(snapshot);
                if let Some(Node::Committed(committed)) = self.tree.nodes.get_mut(&block.hash) {
                    committed.durability = Durability::Durable;
                }
                for lost in self.tree.prune() {
                    self.halt(&lost, Halt::ForkLost);
                }
            }
            Err(failure) => {
                self.broken = Some(failure.clone());
                // What was queued will not be committed: its room is given back, so that callers get to hear why.
                for node in self.tree.nodes.values_mut() {
                    if let Node::Committed(Committed { durability: durability @ Durability::Queued { .. }, .. }) = node
                    {
                        *durability = Durability::InMemory;
                    }
                }
                let in_flight: Vec<_> = self.tree.attempts.values().copied().collect();
                for hash in in_flight {
                    if let Some(entry) = self.tree.take(&hash) {
                        self.close_failed(entry, failure.clone());
                    }
                }
            }
        }
        self.answer_waiters();
    }

    fn answer_waiters(&mut self) {
        let durable = self.tree.base.anchor();
        if let Some(failure) = &self.broken {
            for (_, waiter) in self.canonical_waiters.drain(..) {
                let _gone = waiter.send(Err(CanonicalError::Failed(failure.clone())));
            }
            for waiter in self.flush_waiters.drain(..) {
                let _gone = waiter.send(Err(failure.clone()));
            }
            return;
        }
        self.canonical_waiters.retain(|(block, waiter)| {
            let done = block.number <= durable.block.number;
            if done {
                let _gone = waiter.send(Ok(()));
            }
            !done
        });
        if self.tree.queued_head == durable.block {
            for waiter in self.flush_waiters.drain(..) {
                let _gone = waiter.send(Ok(durable));
            }
        }
    }

    // ---- steps ----

    fn touch_children(&mut self, parent: &BlockHash) {
        if let Some(children) = self.tree.children.get(parent) {
            self.touched.extend(children);
        }
    }

    /// Does whatever has become possible for a block.
    fn step(&mut self, hash: &BlockHash) {
        let Some(mut entry) = self.tree.take(hash) else { return };
        if self.tree.orphans.contains(hash) && !self.tree.is_orphan(entry.parent) {
            self.tree.orphans.retain(|orphan| orphan != hash);
            self.touch_children(hash);
        }
        self.open_state_gate(&mut entry);
        let progress = self.advance(&mut entry);
        self.settle(entry, progress);
    }

    fn settle(&mut self, entry: Box<Entry<S::Snapshot>>, progress: Progress) {
        match progress {
            Progress::Pending => drop(self.tree.nodes.insert(entry.block().hash, Node::InFlight(entry))),
            Progress::Invalid(reason) => self.close_invalid(entry, reason),
            Progress::Failed(failure) => self.close_failed(entry, failure),
            Progress::Valid(confirmed_by, folded) => self.close_valid(*entry, confirmed_by, folded),
        }
    }

    /// Lets the executor read as soon as every ancestor in flight has been executed.
    fn open_state_gate(&self, entry: &mut Entry<S::Snapshot>) {
        if !entry.shared.gate.is_open()
            && let Some(view) = self.tree.state_view(&entry.base, entry.parent)
        {
            entry.shared.gate.open(view);
        }
    }

    fn advance(&mut self, entry: &mut Entry<S::Snapshot>) -> Progress {
        if let Some(ended) = self.confirm_execution(entry) {
            return ended;
        }
        if let Some(failed) = self.start_fold(entry) {
            return Progress::Failed(failed);
        }
        let progress = self.judge(entry);
        // A list that was dropped in judging: the executed writes may be at hand already.
        if matches!(entry.fold, FoldStage::Idle)
            && matches!(progress, Progress::Pending)
            && let Some(failed) = self.start_fold(entry)
        {
            return Progress::Failed(failed);
        }
        progress
    }

    /// Holds an ended execution to the list that the header commits to, and hands the executed state to the children.
    fn confirm_execution(&mut self, entry: &mut Entry<S::Snapshot>) -> Option<Progress> {
        let ExecutionStage::Finished { recorded, result } = &entry.execution else { return None };
        if let Some(error) = entry.shared.read_failure.get() {
            return Some(Progress::Failed(Failure::Read(error.clone())));
        }
        let prepared = match &entry.bal {
            BalStage::Ready(prepared) => Some(prepared),
            BalStage::None => None,
            // The judgement of the list comes before that of its confirmation.
            BalStage::Preparing => return Some(Progress::Pending),
        };
        if let Some(expected) = entry.shared.facts.expected_bal_hash {
            match &result.rebuilt_bal {
                None => return Some(Progress::Failed(Failure::NotRebuilt)),
                Some(rebuilt) if rebuilt.hash != expected => {
                    return Some(Progress::Invalid(bal_mismatch(rebuilt, expected, prepared.map(|p| &p.bal))));
                }
                Some(_) => {}
            }
        } else if let (Some(prepared), Some(rebuilt)) = (prepared, &result.rebuilt_bal)
            && rebuilt.hash != prepared.bal.hash()
        {
            let recorded = recorded.clone();
            self.drop_bal(entry, SkipReason::NotConfirmed);
            return self.publish_executed(entry, recorded);
        }
        let confirmed = || Some(result.rebuilt_bal.as_ref()?.hash == prepared?.bal.hash()).filter(|same| *same);
        let state = recorded.clone().or_else(|| confirmed().and(prepared).map(|prepared| Arc::clone(&prepared.state)));
        self.publish_executed(entry, state)
    }

    fn publish_executed(
        &mut self,
        entry: &mut Entry<S::Snapshot>,
        state: Option<Arc<HashedPostState>>,
    ) -> Option<Progress> {
        if entry.executed.is_none() {
            let Some(state) = state else { return Some(Progress::Failed(Failure::NoWrites)) };
            entry.executed = Some(state);
            self.touch_children(&entry.block().hash);
        }
        None
    }

    /// Starts the fold if the gate is open and the leaves are at hand.
    fn start_fold(&mut self, entry: &mut Entry<S::Snapshot>) -> Option<Failure> {
        if !matches!(entry.fold, FoldStage::Idle) {
            return None;
        }
        let state = match (&entry.mode, &entry.bal) {
            (Mode::BalDriven, BalStage::Ready(prepared)) => Arc::clone(&prepared.state),
            (Mode::BalDriven, _) => return None,
            (Mode::Incremental(_), _) => Arc::clone(entry.executed.as_ref()?),
        };
        let ready = *entry.leaves_ready.get_or_insert_with(Instant::now);
        let parent = self.tree.committed_view(&entry.base, entry.parent)?;
        let counters = &self.counters;
        match entry.mode {
            Mode::BalDriven => {
                Counters::add(&counters.folds_ahead);
                if matches!(entry.execution, ExecutionStage::Running) {
                    Counters::add(&counters.folds_before_execution_ended);
                }
            }
            Mode::Incremental(_) => Counters::add(&counters.folds_incremental),
        }
        if !entry.gate_opened {
            entry.gate_opened = true;
            let durable = entry.parent == parent.base().anchor().block;
            Counters::add(if durable {
                &counters.gates_opened_from_durable
            } else {
                &counters.gates_opened_from_memory
            });
        }
        entry.fold = FoldStage::Running;
        let (attempt, generation) = (entry.shared.attempt, entry.generation);
        let options = FoldOptions::default();
        self.pool.spawn(&self.answers, &entry.shared, move || {
            let folded = jobs::resolve_and_fold(&state, &parent, &options, ready);
            Some(JobMessage::Folded { attempt, generation, folded })
        });
        None
    }

    /// Gives up a block's list: the block goes on incrementally.
    fn drop_bal(&self, entry: &mut Entry<S::Snapshot>, reason: SkipReason) {
        Counters::add(&self.counters.bals_dropped);
        if entry.mode == Mode::BalDriven {
            self.counters.skip(reason);
            entry.mode = Mode::Incremental(reason);
            entry.generation += 1;
            entry.fold = FoldStage::Idle;
            entry.compare = CompareStage::Idle;
            entry.leaves_ready = None;
        }
        entry.bal = BalStage::None;
    }

    /// Compares the folded root with the header's, and judges when execution has confirmed the state.
    fn judge(&mut self, entry: &mut Entry<S::Snapshot>) -> Progress {
        let FoldStage::Done(folded) = &entry.fold else { return Progress::Pending };
        let folded = Arc::clone(folded);
        let facts = &entry.shared.facts;
        let finished = match &entry.execution {
            ExecutionStage::Running => None,
            ExecutionStage::Finished { recorded, result } => Some((recorded, result)),
        };
        let late_root = finished.and_then(|(_, result)| result.expected_state_root);
        let Some(expected) = facts.expected_state_root.or(late_root) else {
            return if finished.is_some() { Progress::Failed(Failure::NoExpectedRoot) } else { Progress::Pending };
        };
        let got = folded.outcome.computed_state_root;
        if got != expected {
            let mismatch = InvalidReason::StateRootMismatch { got, expected };
            return match entry.mode {
                Mode::BalDriven if facts.expected_bal_hash.is_none() => {
                    self.drop_bal(entry, SkipReason::EarlyRootMismatch);
                    Progress::Pending
                }
                Mode::BalDriven
                    if self.config.on_early_mismatch == OnEarlyMismatch::FindReason && finished.is_none() =>
                {
                    entry.early = Some(mismatch);
                    Progress::Pending
                }
                _ => Progress::Invalid(mismatch),
            };
        }
        let Some((recorded, result)) = finished else { return Progress::Pending };
        if matches!(entry.bal, BalStage::Preparing) {
            return Progress::Pending;
        }
        match entry.mode {
            Mode::Incremental(_) => Progress::Valid(ConfirmedBy::Execution, folded),
            // `confirm_execution` has compared the hashes.
            Mode::BalDriven if result.rebuilt_bal.is_some() => Progress::Valid(ConfirmedBy::Bal, folded),
            Mode::BalDriven => match entry.compare {
                CompareStage::Equal => Progress::Valid(ConfirmedBy::PostState, folded),
                CompareStage::Running => Progress::Pending,
                CompareStage::Idle => {
                    let Some(executed) = recorded.clone() else { return Progress::Failed(Failure::NoWrites) };
                    self.start_compare(entry, executed, folded);
                    Progress::Pending
                }
            },
        }
    }

    fn start_compare(&self, entry: &mut Entry<S::Snapshot>, executed: Arc<HashedPostState>, folded: Arc<Folded>) {
        // The parent is committed: the fold has ended.
        let Some(parent) = self.tree.committed_view(&entry.base, entry.parent) else { return };
        entry.compare = CompareStage::Running;
        let (attempt, generation) = (entry.shared.attempt, entry.generation);
        self.pool.spawn(&self.answers, &entry.shared, move || {
            let equal = jobs::leads_to(&executed, &parent, &folded.outcome);
            Some(JobMessage::Compared { attempt, generation, equal })
        });
    }

    // ---- ends ----

    fn close_valid(&mut self, mut entry: Entry<S::Snapshot>, confirmed_by: ConfirmedBy, folded: Arc<Folded>) {
        Counters::add(&self.counters.valid);
        let block = entry.block();
        entry.timings.verdict = entry.arrival.elapsed();
        let bal = match &entry.bal {
            BalStage::Ready(prepared) => Some(prepared.bal.raw().clone()),
            BalStage::None | BalStage::Preparing => None,
        };
        entry.fold = FoldStage::Idle;
        // The job has ended, so that this is the last reference: nothing is copied but where a panic kept one.
        let outcome = Arc::try_unwrap(folded).map_or_else(|shared| shared.outcome.clone(), |folded| folded.outcome);
        let layer = Arc::new(Layer {
            parent: entry.parent,
            anchor: StateAnchor { block, state_root: outcome.computed_state_root },
            diff: outcome.diff,
            updates: outcome.updates,
            bal,
        });
        let verdict = Arc::new(ValidBlock {
            block,
            computed_state_root: layer.anchor.state_root,
            mode: entry.mode,
            confirmed_by,
            timings: entry.timings,
            layer: Some(Arc::clone(&layer)),
        });
        self.tree.attempts.remove(&entry.shared.attempt);
        let goes_on = self.config.canonical == Canonical::Auto && layer.parent == self.tree.queued_head;
        let Entry { shared, permit, .. } = entry;
        let committed = Committed { layer, verdict: Arc::clone(&verdict), durability: Durability::InMemory };
        self.tree.nodes.insert(block.hash, Node::Committed(committed));
        if goes_on {
            self.queue(block, permit);
        } else {
            // Before the verdict is out: whoever has it finds the room.
            drop(permit);
        }
        // The ticket may be gone: nobody asked.
        let _unasked = shared.outcome.send(Ok(Verdict::Valid(verdict)));
        self.touch_children(&block.hash);
    }

    fn close_invalid(&mut self, mut entry: Box<Entry<S::Snapshot>>, reason: InvalidReason) {
        Counters::add(&self.counters.invalid);
        let block = entry.block();
        let early = entry.early.take();
        // A list that is not the header's came with this delivery; the block's hash does not name it, and the next
        // delivery may bring the right one.
        let of_the_block = !matches!(reason, InvalidReason::BalHashMismatch { .. });
        let verdict = Verdict::Invalid(Arc::new(InvalidBlock { block, reason, early }));
        if of_the_block {
            self.tree.remember(verdict.clone());
        }
        self.close(&mut entry, Halt::Judged, Ok(verdict), &Halt::AncestorInvalid(block));
    }

    fn close_failed(&mut self, mut entry: Box<Entry<S::Snapshot>>, failure: Failure) {
        Counters::add(&self.counters.failed);
        let halt = Halt::AncestorFailed(entry.block());
        self.close(&mut entry, Halt::Failed, Err(BlockError::Failed(failure)), &halt);
    }

    /// Stops a block in flight without a verdict, and its descendants with it.
    fn halt(&mut self, hash: &BlockHash, reason: Halt) {
        let Some(mut entry) = self.tree.take(hash) else { return };
        Counters::add(&self.counters.cancelled);
        let descendants = match &reason {
            Halt::HandleDropped | Halt::UnknownParent(_) => Halt::AncestorCancelled(entry.block()),
            other => other.clone(),
        };
        self.close(&mut entry, reason.clone(), Err(BlockError::Halted(reason)), &descendants);
    }

    /// Ends a block in flight that is not valid, and stops its descendants.
    fn close(
        &mut self,
        entry: &mut Entry<S::Snapshot>,
        halt: Halt,
        outcome: Result<Verdict, BlockError>,
        descendants: &Halt,
    ) {
        let mut below = self.end(entry, halt, outcome);
        // Not by recursion: a chain may be as long as there is room for blocks.
        while let Some(hash) = below.pop() {
            let Some(mut entry) = self.tree.take(&hash) else { continue };
            Counters::add(&self.counters.cancelled);
            let outcome = Err(BlockError::Halted(descendants.clone()));
            below.extend(self.end(&mut entry, descendants.clone(), outcome));
        }
    }

    /// Ends one block. Gives its children.
    fn end(
        &mut self,
        entry: &mut Entry<S::Snapshot>,
        halt: Halt,
        outcome: Result<Verdict, BlockError>,
    ) -> Vec<BlockHash> {
        let children = self.tree.forget(entry);
        // Before the outcome is out: whoever has it finds the room.
        drop(entry.permit.take());
        // The outcome before the gate: an executor that stops at once finds it waiting. Its ticket may be gone.
        let _unasked = entry.shared.outcome.send(outcome);
        entry.shared.gate.cancel(halt);
        children
    }
}

fn bal_mismatch(rebuilt: &RebuiltBal, expected: B256, given: Option<&foldgate_bal::Bal>) -> InvalidReason {
    let difference = given
        .zip(rebuilt.list.as_ref())
        .and_then(|(given, rebuilt)| foldgate_bal::first_mismatch(given.accounts(), rebuilt).map(Arc::new));
    InvalidReason::BalMismatch { got: rebuilt.hash, expected, difference }
}
