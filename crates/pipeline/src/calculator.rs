//! The calculator: one thread that owns the block tree and decides. It never computes, reads or writes state itself;
//! long work goes to the pool and to the committer, so that a request or a cancellation never waits behind it.
//!
//! ```text
//!   begin ----------> requests --\                     /--> pool: prepare, warm up, fold, compare --\
//!   executors ------> results  ---> [calculator] ------<                                             >--> answers
//!   set_canonical --> control  --/   owns the Tree     \--> committer: one store commit at a time --/
//! ```
//!
//! Every event touches a block; `Calculator::step` (in `steps.rs`) then does whatever has become possible for it, and touches its
//! children when they may profit. A step is a function of the block's stages and its parent's, so the order in which
//! events arrive does not matter (`orders` goes through all of them). How blocks end is in `ends.rs`, what becomes durable
//! in `canonical.rs`, and when in `durable.rs`; what becomes of access lists in `lists.rs`, how executed writes are read
//! ahead in `ahead.rs`; how states below and beside the durable tip are reached in `ways.rs`, how the shadow goes along in
//! `shadowing.rs`. Requests are taken first, because a result may overtake its request's successors.
//!
//! Invariants:
//! 1. A block is judged valid only with its execution ended and confirmed, its root equal to the header's, and its
//!    parent judged valid.
//! 2. A block's fold starts only when its parent is committed, in memory or durably: never on what a list claims.
//! 3. An outcome is sent once; a block whose outcome was sent is out of the tree's blocks in flight.

mod ahead;
mod canonical;
mod durable;
mod ends;
mod lists;
#[cfg(test)]
mod orders;
mod shadowing;
mod steps;
mod ways;

pub(crate) use durable::Backlog;

use std::{collections::VecDeque, sync::Arc, time::Instant};

use alloy_primitives::Bytes;
use crossbeam_channel::{Receiver, Sender, select_biased};
use foldgate_core::{BlockHash, BlockNumHash, Layer, PageCache, StateAnchor, TrieReader, TrieStore, trie::FoldError};

use crate::{
    committer::Order,
    compute::{Unseen, View},
    config::PipelineConfig,
    counters::{Counters, SkipReason},
    ground::Ground,
    halt::Halt,
    handle::{Execution, ExecutionNews, Shared},
    holdings::Holdings,
    jobs::{Folded, JobMessage},
    permits::Permit,
    pipeline::{Admission, BeginError, CanonicalError},
    pool::Pool,
    request::{BalInput, BlockRequest},
    tree::{AheadStage, BalStage, CompareStage, Entry, ExecutionStage, FoldStage, Node, ParentStatus, Tree},
    verdict::{BlockTimings, ConfirmedBy, Failure, InvalidReason, Mode, Verdict},
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
pub(crate) enum Control<R: TrieReader> {
    SetCanonical {
        head: BlockHash,
        reply: Sender<Result<(), CanonicalError>>,
    },
    /// A list of a block that came without one.
    Bal {
        block: BlockHash,
        raw: Bytes,
    },
    /// Answers when everything queued is durable.
    Flush {
        reply: Sender<Result<StateAnchor, Failure>>,
    },
    /// Answers with a view of a committed block's state.
    See {
        block: BlockNumHash,
        reply: Sender<Result<View<R>, Unseen>>,
    },
    Holdings {
        reply: Sender<Holdings>,
    },
    Shutdown,
}

/// The channels that feed the calculator.
#[derive(Debug)]
pub(crate) struct Inbox<S: TrieStore> {
    pub(crate) requests: Receiver<Request<S::Snapshot>>,
    pub(crate) results: Receiver<Execution>,
    pub(crate) answers: Receiver<JobMessage<S>>,
    pub(crate) control: Receiver<Control<S::Snapshot>>,
}

/// What the calculator is told, by whichever channel.
enum Event<S: TrieStore> {
    Request(Request<S::Snapshot>),
    Execution(Execution),
    Answer(JobMessage<S>),
    Control(Control<S::Snapshot>),
    /// Blocks may have waited for long enough.
    Tick,
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

/// Who waits to see a block's state, and which.
type Viewer<R> = (BlockNumHash, Sender<Result<View<R>, Unseen>>);

/// A reorganisation under way, and what became canonical meanwhile.
#[derive(Debug)]
pub(crate) struct Reorg {
    /// Blocks to commit after it.
    held: Vec<Arc<Layer>>,
    /// The head that is left.
    left: BlockNumHash,
}

/// See the module's documentation.
pub(crate) struct Calculator<S: TrieStore> {
    pub(crate) config: PipelineConfig,
    pub(crate) counters: Arc<Counters>,
    pub(crate) pool: Arc<Pool>,
    /// What shadows have read of the durable tip. Nothing else reads it.
    pub(crate) shadow_cache: Arc<PageCache>,
    pub(crate) answers: Sender<JobMessage<S>>,
    pub(crate) orders: Sender<Order>,
    /// For the pool's jobs; the calculator itself reads nothing.
    pub(crate) store: Arc<S>,
    pub(crate) tree: Tree<S::Snapshot>,
    pub(crate) broken: Option<Failure>,
    /// The reorganisation that is under way.
    pub(crate) reorg: Option<Reorg>,
    /// Heads asked for and not yet followed, oldest first.
    pub(crate) heads: VecDeque<(BlockHash, Sender<Result<(), CanonicalError>>)>,
    /// Ways that could not be found while the durable chain was being left.
    pub(crate) lost_ways: Vec<BlockNumHash>,
    /// Those who wait for a way to see a block's state.
    pub(crate) viewers: Vec<Viewer<S::Snapshot>>,
    pub(crate) canonical_waiters: Vec<(BlockNumHash, Sender<Result<(), CanonicalError>>)>,
    pub(crate) flush_waiters: Vec<Sender<Result<StateAnchor, Failure>>>,
    pub(crate) touched: VecDeque<BlockHash>,
    pub(crate) backlog: Backlog,
}

impl<S: TrieStore> Calculator<S> {
    /// Runs until told to shut down, or until every sender is gone. `head` is what the canonical head was when the log was
    /// closed, or cut off.
    pub(crate) fn run(mut self, inbox: &Inbox<S>, head: BlockHash) {
        let ticks = durable::ticks(&self.config.flush);
        // Where it lies beside the durable chain this goes on with a reorganisation. Nobody waits for it.
        let _unasked = self.follow(head);
        self.release();
        loop {
            let event = select_biased! {
                recv(inbox.requests) -> request => request.map(Event::Request),
                recv(inbox.results) -> result => result.map(Event::Execution),
                recv(inbox.answers) -> answer => answer.map(Event::Answer),
                recv(inbox.control) -> control => control.map(Event::Control),
                recv(ticks) -> _ => Ok(Event::Tick),
            };
            match event {
                Ok(Event::Control(Control::Shutdown)) | Err(_) => break,
                Ok(event) => self.handle(event),
            }
        }
        self.shut_down();
    }

    /// Takes an event in, and does whatever has become possible. Waits for nothing.
    fn handle(&mut self, event: Event<S>) {
        match event {
            Event::Request(request) => self.on_request(request),
            Event::Execution(execution) => self.on_execution(execution),
            Event::Answer(answer) => self.on_answer(answer),
            Event::Control(control) => self.on_control(control),
            Event::Tick => self.release(),
        }
        while let Some(hash) = self.touched.pop_front() {
            self.step(&hash);
        }
    }

    fn shut_down(&mut self) {
        let in_flight: Vec<_> = self.tree.attempts.values().copied().collect();
        for hash in in_flight {
            self.halt(&hash, Halt::Shutdown);
        }
        // What stands on a reorganisation that is under way. If that fails, the store refuses it.
        for layer in self.reorg.take().map(|reorg| reorg.held).unwrap_or_default() {
            let _failed = self.orders.send(Order::Commit(layer));
        }
        self.unqueue();
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
        let status = self.tree.parent_status(parent);
        if let Some(verdict) = self.tree.verdict(&block.hash).filter(|verdict| !self.begins_anew(verdict, &status)) {
            self.counters.redelivered.add();
            return Ok(Admission::Known(verdict));
        }
        if self.tree.nodes.contains_key(&block.hash) {
            return Err(BeginError::InFlight(block));
        }
        match status {
            ParentStatus::Invalid => return Err(BeginError::ParentInvalid(parent)),
            ParentStatus::BelowTip => return Err(BeginError::BelowTip { parent, tip: self.tree.tip() }),
            ParentStatus::Durable
            | ParentStatus::Ancestor
            | ParentStatus::Committed
            | ParentStatus::InFlight
            | ParentStatus::Unknown => {}
        }
        self.counters.requests.add();
        let plan = self.plan(request);
        let shadow = self.shadow_stage(&plan);
        let ground = Ground::durable(self.tree.base.for_block());
        let bal = match plan.raw {
            None => BalStage::None,
            Some(raw) => {
                self.prepare(&shared, raw);
                BalStage::Preparing
            }
        };
        let mut entry = Entry {
            parent,
            ground,
            permit: Some(permit),
            mode: plan.mode,
            bal,
            sourced: plan.sourced,
            execution: ExecutionStage::Running,
            executed: None,
            ahead: AheadStage::Off,
            written: Vec::new(),
            fold: FoldStage::Idle,
            gate_opened: false,
            compare: CompareStage::Idle,
            shadow,
            generation: 0,
            early: None,
            arrival: Instant::now(),
            leaves_ready: None,
            timings: BlockTimings::default(),
            shared,
        };
        if self.config.warm_up {
            entry.ahead = AheadStage::Idle(None);
        }
        // Before the executor has its handle: what it writes first is read first.
        self.read_ahead(&mut entry);
        self.tree.attempts.insert(entry.shared.attempt, block.hash);
        self.tree.children.entry(parent.hash).or_default().push(block.hash);
        self.tree.nodes.insert(block.hash, Node::InFlight(Box::new(entry)));
        if self.tree.is_orphan(parent) {
            self.hold_orphan(block.hash, &status);
        }
        self.touched.push_back(block.hash);
        self.touch_children(&block.hash);
        // Its fold is waited for from now on.
        self.touched.push_back(parent.hash);
        Ok(Admission::Started)
    }

    /// Whether a block with a verdict is calculated again: it was let go with the branch that it stands on, and the head
    /// has gone back so far since that it may win once more.
    fn begins_anew(&self, verdict: &Verdict, parent: &ParentStatus) -> bool {
        let gone = matches!(verdict, Verdict::Valid(valid) if valid.layer.is_none());
        gone && !self.tree.is_durable(verdict.block())
            && !matches!(parent, ParentStatus::BelowTip | ParentStatus::Invalid)
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
        // A list may still be supplied: that one is counted when the block is folded without.
        if reason != SkipReason::NoBal {
            self.counters.skip(reason);
        }
        // A payload's list that the header commits to can make the block invalid in every mode.
        let judged = !sourced && !request.before_cancun && request.facts.expected_bal_hash.is_some();
        let shadowed = self.config.shadow && reason == SkipReason::SwitchedOff;
        Plan { mode: Mode::Incremental(reason), raw: raw.filter(|_| judged || shadowed), sourced }
    }

    /// Holds a block in flight until its unknown ancestor turns up. Where there are too many such blocks, the oldest one
    /// goes with all that stands on it; but a block that stands on others goes itself, rather than take them along.
    fn hold_orphan(&mut self, hash: BlockHash, parent: &ParentStatus) {
        self.counters.orphans.add();
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

    fn on_execution(&mut self, message: Execution) {
        let block = message.facts.block;
        if self.tree.attempts.get(&message.attempt) != Some(&block.hash) {
            if !matches!(message.news, ExecutionNews::Wrote(_) | ExecutionNews::Dropped) {
                self.counters.late_messages.add();
            }
            return;
        }
        match message.news {
            ExecutionNews::Wrote(keys) => {
                let Some(Node::InFlight(entry)) = self.tree.nodes.get_mut(&block.hash) else { return };
                entry.written.extend(keys);
                self.touched.push_back(block.hash);
            }
            ExecutionNews::Finished { state, untold, result } => {
                let Some(Node::InFlight(entry)) = self.tree.nodes.get_mut(&block.hash) else { return };
                entry.timings.execution = entry.arrival.elapsed();
                entry.written.extend(untold);
                entry.execution = ExecutionStage::Finished { recorded: state, result };
                self.touched.push_back(block.hash);
            }
            ExecutionNews::Rejected(reason) => {
                let Some(entry) = self.tree.take(&block.hash) else { return };
                match entry.shared.read_failure.get().cloned() {
                    // A failed read can look like an invalid block: it is not one.
                    Some(error) => self.close_failed(entry, Failure::Read(error)),
                    None => self.close_invalid(entry, InvalidReason::Execution(reason)),
                }
            }
            ExecutionNews::Failed(error) => {
                let Some(entry) = self.tree.take(&block.hash) else { return };
                self.close_failed(entry, Failure::Executor(error));
            }
            ExecutionNews::Dropped => self.halt(&block.hash, Halt::HandleDropped),
        }
    }

    fn on_answer(&mut self, answer: JobMessage<S>) {
        let attempt = match &answer {
            JobMessage::Prepared { attempt, .. }
            | JobMessage::ReadAhead { attempt, .. }
            | JobMessage::Folded { attempt, .. }
            | JobMessage::Compared { attempt, .. }
            | JobMessage::Shadowed { attempt, .. }
            | JobMessage::HeldToShadow { attempt, .. }
            | JobMessage::Panicked { attempt, .. } => *attempt,
            JobMessage::Committed { .. }
            | JobMessage::Reorganised { .. }
            | JobMessage::Grounded { .. }
            | JobMessage::Broken(_) => {
                match answer {
                    JobMessage::Committed { layers, result } => self.on_committed(&layers, result),
                    JobMessage::Reorganised { result } => self.on_reorganised(result),
                    JobMessage::Grounded { block, base, step, way } => self.on_grounded(block, base, step, way),
                    JobMessage::Broken(failure) => self.break_down(failure),
                    _ => {}
                }
                return;
            }
        };
        let entry = self.tree.attempts.get(&attempt).copied().and_then(|hash| self.tree.take(&hash));
        let Some(mut entry) = entry else {
            self.counters.late_messages.add();
            return;
        };
        let hash = entry.block().hash;
        let closed = match answer {
            JobMessage::Prepared { prepared, took, .. } => {
                entry.timings.decode = took;
                self.on_prepared(&mut entry, prepared)
            }
            JobMessage::ReadAhead { ahead, read, took, .. } => {
                entry.timings.warm_up += took;
                self.on_read_ahead(&mut entry, ahead, read);
                Progress::Pending
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
            JobMessage::Shadowed { shadowed, .. } => self.on_shadowed(&mut entry, shadowed),
            JobMessage::HeldToShadow { compared, .. } => self.on_held_to_shadow(&mut entry, compared),
            JobMessage::Panicked { message, .. } => Progress::Failed(Failure::Panicked(message)),
            // The answer of a job whose list was dropped meanwhile.
            _ => Progress::Pending,
        };
        self.settle(entry, closed);
        self.touched.push_back(hash);
    }

    fn on_control(&mut self, control: Control<S::Snapshot>) {
        match control {
            Control::SetCanonical { head, reply } => self.set_canonical(head, reply),
            Control::Bal { block, raw } => self.on_bal(&block, raw),
            Control::Flush { reply } => {
                self.flush_waiters.push(reply);
                self.release();
                self.answer_waiters();
            }
            Control::See { block, reply } => self.see(block, reply),
            // Whoever asked may be gone.
            Control::Holdings { reply } => drop(reply.send(self.holdings())),
            // Handled by the loop.
            Control::Shutdown => {}
        }
    }
}
