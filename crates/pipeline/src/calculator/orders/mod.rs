//! Every order in which a script's events can come, driven through the calculator without threads: what comes of each
//! block is the same in all of them, or what the protocol lets an order decide; and nobody is left waiting.
//!
//! ```text
//!   the script: requests, lists, executors' ends, heads --\
//!   answers of jobs, each done when it is asked for ------->  one after the other, in every order  --> [calculator]
//!   the committer's next order -----------------------/
//! ```
//!
//! An event may come as soon as what it answers has been asked for: an answer after its job was given, an end after its
//! request. [`Script::explore`] goes through all sequences that this allows, each on a calculator of its own, and gives
//! what came of the blocks in them. A log has no part in it: it tells the calculator nothing but that it failed.
//!
//! After each event: no executor may read, and no fold has run, on what was not executed, or not judged; and no block was
//! judged ahead of what its verdict waits for. At the end: one outcome for each block, or it stands on one that never came;
//! the heads asked for were answered; the store has the head's state, which the oracle gives; and the maps hold what is still
//! in reach, and nothing else.

mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use alloy_primitives::B256;
use foldgate_core::BlockNumHash;
use foldgate_testing::sim::{Sim, SimBlock, SimSize};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use self::world::World;
use crate::{config::OnEarlyMismatch, observe::COMMIT_BACKLOG};

/// How a block's list comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    Payload,
    /// There is none.
    Missing,
    /// By itself, at any time.
    Later,
    /// In the payload, and by itself once more, at any time.
    Again,
    /// Another one than the header's, in the payload.
    Wrong,
    /// A good one of another block, in the payload; the header commits to none.
    Lie,
}

/// How a block's execution ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Honest,
    /// Without a rebuilt list, where the header commits to none.
    NotRebuilt,
    /// With other writes than the list's, which it claims to have rebuilt all the same: as a fault of the machine would.
    Otherwise,
    /// With another list than the header's.
    RebuiltOther,
    Reject,
    Drop,
}

/// A block of a script, on the one at `parent`; the genesis is 0, the first of the script 1.
#[derive(Debug, Clone, Copy)]
struct Line {
    parent: usize,
    list: List,
    end: End,
    /// Whether the header's state root is another block's.
    wrong_root: bool,
}

const fn on(parent: usize) -> Line {
    Line { parent, list: List::Payload, end: End::Honest, wrong_root: false }
}

impl Line {
    const fn list(mut self, list: List) -> Self {
        self.list = list;
        self
    }

    const fn end(mut self, end: End) -> Self {
        self.end = end;
        self
    }

    const fn wrong_root(mut self) -> Self {
        self.wrong_root = true;
        self
    }
}

/// What happens, and to which block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Request(usize),
    Supply(usize),
    End(usize),
    Head(usize),
    Prepared(usize),
    /// Of a generation: one that folds a list that is dropped meanwhile answers all the same.
    Folded(usize, u32),
    Compared(usize),
    Shadowed(usize),
    HeldToShadow(usize),
    /// The way to the block was found.
    Way(usize),
    /// The committer carries out its next order.
    Commit,
}

struct Script {
    /// The genesis first.
    blocks: Vec<SimBlock>,
    /// For each block another one in its place.
    others: Vec<SimBlock>,
    lines: Vec<Line>,
    /// Blocks that are named the head, each once. With none, blocks become canonical by themselves.
    heads: Vec<usize>,
    unwind_depth: u64,
    /// Whether lists decide.
    bal_driven: bool,
    shadow: bool,
    on_early_mismatch: OnEarlyMismatch,
}

/// What became of the blocks of a script, and how many of them the store has.
type Ended = (Vec<String>, usize);

impl Script {
    fn new(lines: &[Line]) -> Self {
        let mut sim = Sim::new(1, SimSize { addresses: 4, slots: 2, touched: 2, written: 2 });
        let mut blocks = vec![sim.genesis()];
        let mut others = blocks.clone();
        for line in lines {
            let parent = blocks[line.parent].clone();
            let mut child_unlike = |roots: &[B256], fits: &dyn Fn(&SimBlock) -> bool| {
                let unlike = |child: &SimBlock| !roots.contains(&child.state_root) && fits(child);
                iter::repeat_with(|| sim.child(&parent)).find(unlike).unwrap()
            };
            let mut child = child_unlike(&[parent.state_root], &|_| true);
            let other = child_unlike(&[parent.state_root, child.state_root], &|other| {
                other.facts.tx_count == child.facts.tx_count
            });
            if line.wrong_root {
                child.facts.expected_state_root = Some(other.state_root);
            }
            let uncommitted = line.end == End::NotRebuilt || line.list == List::Lie;
            blocks.push(if uncommitted { child.uncommitted() } else { child });
            others.push(other);
        }
        Self {
            blocks,
            others,
            lines: lines.to_vec(),
            heads: Vec::new(),
            unwind_depth: 128,
            bal_driven: true,
            shadow: false,
            on_early_mismatch: OnEarlyMismatch::Fail,
        }
    }

    fn shadow(mut self) -> Self {
        self.shadow = true;
        self
    }

    fn incremental(mut self) -> Self {
        self.bal_driven = false;
        self
    }

    fn find_reason(mut self) -> Self {
        self.on_early_mismatch = OnEarlyMismatch::FindReason;
        self
    }

    fn heads(mut self, heads: &[usize]) -> Self {
        self.heads = heads.to_vec();
        self
    }

    fn unwind_depth(mut self, unwind_depth: u64) -> Self {
        self.unwind_depth = unwind_depth;
        self
    }

    fn line(&self, block: usize) -> Line {
        self.lines[block - 1]
    }

    fn at(&self, block: BlockNumHash) -> usize {
        self.blocks.iter().position(|candidate| candidate.facts.block == block).unwrap()
    }

    /// Goes through all orders. Gives what came of the blocks, each with the number of orders that led there.
    fn explore(&self) -> BTreeMap<Ended, usize> {
        let (mut ends, mut choices) = (BTreeMap::new(), Vec::new());
        loop {
            let (mut world, mut widths, mut order) = (World::new(self), Vec::new(), Vec::new());
            while let possible = world.possible()
                && !possible.is_empty()
            {
                let at = widths.len();
                if at == choices.len() {
                    choices.push(0);
                }
                widths.push(possible.len());
                order.push(possible[choices[at]]);
                world.happens(possible[choices[at]], &order);
            }
            *ends.entry(world.ended(&order)).or_default() += 1;
            // The next one in the order of choices: the last that has an alternative takes it.
            while choices.pop_if(|choice| *choice + 1 == widths[widths.len() - 1]).is_some() {
                widths.pop();
            }
            match choices.last_mut() {
                Some(choice) => *choice += 1,
                None => return ends,
            }
        }
    }
}

/// Holds all orders to what may come of them.
fn check(script: &Script, expected: &[(&[&str], usize)]) {
    let ends = script.explore();
    println!("{} orders: {ends:#?}", ends.values().sum::<usize>());
    let owned = |(fates, durable): &(&[&str], usize)| (fates.iter().map(|fate| (*fate).to_owned()).collect(), *durable);
    let expected: BTreeSet<Ended> = expected.iter().map(owned).collect();
    assert_eq!(ends.into_keys().collect::<BTreeSet<_>>(), expected);
}

/// The first block falls, for any of these reasons and for each in some order; so does its child, whether it was begun
/// before that or after.
fn check_fall(script: &Script, reasons: &[&str]) {
    let pairs = reasons.iter().flat_map(|reason| ["AncestorInvalid", "ParentInvalid"].map(|child| [*reason, child]));
    let pairs: Vec<_> = pairs.collect();
    let expected: Vec<_> = pairs.iter().map(|pair| (&pair[..], 0)).collect();
    check(script, &expected);
}

#[test]
fn a_chain_is_folded() {
    check(&Script::new(&[on(0), on(1)]), &[(&["valid", "valid"], 2)]);
}

/// The first one judged valid becomes durable, the other one stays in memory.
#[test]
fn siblings_are_folded() {
    let missing = |parent| on(parent).list(List::Missing);
    let script = Script::new(&[missing(0), missing(1), missing(1)]);
    check(&script, &[(&["valid", "valid", "valid"], 2)]);
}

#[test]
fn where_the_chain_cannot_be_left_one_sibling_is_lost() {
    let script = Script::new(&[on(0), on(0).list(List::Missing)]).unwind_depth(0);
    let expected: [(&[&str], _); 5] = [
        (&["valid", "valid"], 1),
        (&["valid", "ForkLost"], 1),
        (&["valid", "BelowTip"], 1),
        (&["ForkLost", "valid"], 1),
        (&["BelowTip", "valid"], 1),
    ];
    check(&script, &expected);
}

/// Writes that confirm a list are held to the fold on the pool.
#[test]
fn without_a_rebuilt_list_a_chain_is_folded() {
    let script = Script::new(&[on(0).end(End::NotRebuilt), on(1).list(List::Missing)]);
    check(&script, &[(&["valid", "valid"], 2)]);
}

#[test]
fn a_list_may_come_at_any_time() {
    let script = Script::new(&[on(0).list(List::Later), on(1).list(List::Missing)]);
    check(&script, &[(&["valid", "valid"], 2)]);
}

/// What was begun falls with its ancestor; what comes later stands on nobody, and is held.
#[test]
fn a_cancelled_block_takes_its_descendants_along() {
    let script = Script::new(&[on(0).end(End::Drop), on(1), on(2).list(List::Missing)]);
    let expected: [(&[&str], _); 3] = [
        (&["HandleDropped", "AncestorCancelled", "AncestorCancelled"], 0),
        (&["HandleDropped", "AncestorCancelled", "held"], 0),
        (&["HandleDropped", "held", "held"], 0),
    ];
    check(&script, &expected);
}

#[test]
fn an_invalid_block_takes_its_child_along() {
    let script = Script::new(&[on(0).end(End::Reject), on(1)]);
    check_fall(&script, &["Execution"]);
}

/// The block's header is innocent of the list: its child falls with the delivery, and may wait for another one.
#[test]
fn a_wrong_list_takes_the_child_along() {
    let script = Script::new(&[on(0).list(List::Wrong), on(1)]);
    check(&script, &[(&["BalHashMismatch", "AncestorInvalid"], 0), (&["BalHashMismatch", "held"], 0)]);
}

/// Where both heads come too early, none is followed. Where both are, the store goes back and forth.
#[test]
fn the_head_moves_between_siblings() {
    let missing = on(0).list(List::Missing);
    let script = Script::new(&[missing, missing]).heads(&[1, 2]);
    check(&script, &[(&["valid", "valid"], 0), (&["valid", "valid"], 1)]);
}

#[test]
fn the_head_moves_along_a_chain() {
    let script = Script::new(&[on(0).list(List::Missing), on(1).list(List::Missing)]).heads(&[1, 2]);
    check(&script, &[(&["valid", "valid"], 0), (&["valid", "valid"], 1), (&["valid", "valid"], 2)]);
}

/// The verdict comes with the early root, or with the execution: whichever is first.
#[test]
fn a_wrong_early_root_ends_a_block() {
    let script = Script::new(&[on(0).wrong_root().end(End::Reject), on(1)]);
    check_fall(&script, &["Execution", "StateRootMismatch"]);
}

/// The reason is what execution found, whenever; the early root is told of where it came before.
#[test]
fn the_reason_of_a_wrong_early_root_is_found() {
    for (end, reason) in [(End::Reject, "Execution"), (End::RebuiltOther, "BalMismatch")] {
        let script = Script::new(&[on(0).wrong_root().end(end), on(1)]).find_reason();
        check_fall(&script, &[reason, &format!("{reason}, early")]);
    }
}

/// Execution finds nothing wrong: the root is the reason.
#[test]
fn a_wrong_early_root_is_the_reason_where_there_is_no_other() {
    let script = Script::new(&[on(0).wrong_root(), on(1).list(List::Missing)]).find_reason();
    check_fall(&script, &["StateRootMismatch", "StateRootMismatch, early"]);
}

/// What stops a block while its reason is looked for stops it as ever.
#[test]
fn a_block_whose_reason_is_looked_for_may_be_dropped() {
    let script = Script::new(&[on(0).wrong_root().end(End::Drop), on(1)]).find_reason();
    check(&script, &[(&["HandleDropped", "AncestorCancelled"], 0), (&["HandleDropped", "held"], 0)]);
}

#[test]
fn a_shadow_goes_along() {
    check(&Script::new(&[on(0), on(1)]).shadow(), &[(&["valid", "valid"], 2)]);
    let script = Script::new(&[on(0), on(1).list(List::Missing)]).shadow().incremental();
    check(&script, &[(&["valid", "valid"], 2)]);
}

#[test]
fn a_shadow_goes_along_where_the_list_comes_later_or_is_not_rebuilt() {
    let script = Script::new(&[on(0).list(List::Later), on(1).list(List::Missing)]).shadow();
    check(&script, &[(&["valid", "valid"], 2)]);
    let script = Script::new(&[on(0).end(End::NotRebuilt), on(1).list(List::Missing)]).shadow();
    check(&script, &[(&["valid", "valid"], 2)]);
}

/// What comes while the computations are held to each other ends no waiting.
#[test]
fn a_list_that_comes_again_changes_nothing() {
    let script = Script::new(&[on(0).list(List::Again), on(1).list(List::Missing)]).shadow();
    check(&script, &[(&["valid", "valid"], 2)]);
}

/// A list that nobody answers for is dropped, and is no divergence.
#[test]
fn a_shadow_is_dropped_with_a_list_that_lies() {
    for end in [End::Honest, End::NotRebuilt] {
        let script = Script::new(&[on(0).list(List::Lie).end(end), on(1).list(List::Missing)]);
        check(&script, &[(&["valid", "valid"], 2)]);
        let script = script.shadow();
        check(&script, &[(&["valid", "valid"], 2)]);
        check(&script.incremental(), &[(&["valid", "valid"], 2)]);
    }
}

/// Not before the executed writes lead to the same root.
#[test]
fn with_a_shadow_a_wrong_early_root_waits() {
    let script = Script::new(&[on(0).wrong_root(), on(1)]).shadow();
    check_fall(&script, &["StateRootMismatch", "StateRootMismatch, early"]);
}

/// It fails the block where the list decides, and stops what stands on it.
#[test]
fn a_divergence_is_no_verdict() {
    let script = Script::new(&[on(0).end(End::Otherwise), on(1)]).shadow();
    check(&script, &[(&["Divergence", "AncestorFailed"], 0), (&["Divergence", "held"], 0)]);
}

/// Where the writes decide, it is counted, and the writes are judged.
#[test]
fn a_divergence_is_counted_where_the_writes_decide() {
    let script = Script::new(&[on(0).end(End::Otherwise).wrong_root()]).shadow().incremental();
    check(&script, &[(&["valid, diverged"], 1)]);
    let script = Script::new(&[on(0).end(End::Otherwise)]).shadow().incremental();
    check(&script, &[(&["StateRootMismatch, diverged"], 0)]);
}

/// Hears of [`COMMIT_BACKLOG`] alone.
struct Backlog(Arc<AtomicU64>);

impl Recorder for Backlog {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        if key.name() == COMMIT_BACKLOG { Gauge::from_arc(Arc::clone(&self.0)) } else { Gauge::noop() }
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// The branch that was handed to the committer waits for it no more.
#[test]
fn a_reorganisation_that_fails_leaves_nothing_in_the_backlog() {
    let backlog = Arc::new(AtomicU64::new(0));
    let waiting = || f64::from_bits(backlog.load(Ordering::Relaxed));
    metrics::with_local_recorder(&Backlog(Arc::clone(&backlog)), || {
        let missing = |parent| on(parent).list(List::Missing);
        let script = Script::new(&[missing(0), missing(1), missing(0)]).heads(&[2, 3]);
        let (mut world, mut order, mut most) = (World::new(&script), Vec::new(), 0.0);
        // All are judged before a head is named; then the heads in their order, each as far as the store goes along.
        while let possible = world.possible()
            && let Some(next) =
                possible.iter().find(|happens| !matches!(happens, Happens::Head(_))).or(possible.first())
        {
            order.push(*next);
            world.lose_the_way_back();
            world.happens(*next, &order);
            most = waiting().max(most);
        }
        assert_eq!(most, 2.0);
        assert_eq!(waiting(), 0.0);
        assert_eq!(world.ended(&order).1, 2);
    });
    assert_eq!(waiting(), 0.0);
}
