//! Copies of the cache's protocol with one fault each: the models have to fail on them. Without a fault they pass, so that
//! it is the fault that is caught.

use loom::sync::Arc;

use crate::protocol::{Protocol, check, commit, siblings, sync, unwind};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// A reader looks whether it is in step, and puts when it may be no more.
    PutWithoutLock,
    /// A reader puts whatever step it is of.
    PutOutOfStep,
    /// A reader takes what is newer than its block.
    GetIgnoresSince,
    /// Readers of the new block exist before the changed entries are swept.
    AnchorBeforeSweep,
    /// Entries that were swept still say that they hold for the block before.
    SweepIsDatedBack,
    /// After an unwind entries of the lost branch are found.
    ResetKeepsEntries,
    /// A step that does not lead on is taken for one that does.
    AnyStepLeadsOn,
}

struct State {
    version: u64,
    anchor: Option<usize>,
}

/// The protocol once more, short, over slots of its own.
struct Broken {
    fault: Fault,
    slots: [sync::Mutex<Option<(u64, usize)>>; 2],
    steps: sync::Mutex<()>,
    state: sync::RwLock<State>,
}

impl Broken {
    fn new(fault: Fault) -> Self {
        Self {
            fault,
            slots: std::array::from_fn(|_| sync::Mutex::new(None)),
            steps: sync::Mutex::new(()),
            state: sync::RwLock::new(State { version: 0, anchor: None }),
        }
    }

    fn step(&self, from: Option<usize>, to: usize, changed: impl Iterator<Item = (usize, usize)>) {
        let _steps = self.steps.lock().unwrap();
        let (leads_on, version) = {
            let mut state = self.state.write().unwrap();
            let leads_on = from.is_some() && (state.anchor == from || self.fault == Fault::AnyStepLeadsOn);
            state.anchor = (self.fault == Fault::AnchorBeforeSweep).then_some(to);
            state.version += 1;
            (leads_on, state.version)
        };
        if leads_on {
            let since = if self.fault == Fault::SweepIsDatedBack { version - 1 } else { version };
            for (key, value) in changed {
                let mut slot = self.slots[key].lock().unwrap();
                if slot.is_some() {
                    *slot = Some((since, value));
                }
            }
        } else if self.fault != Fault::ResetKeepsEntries {
            self.slots.iter().for_each(|slot| *slot.lock().unwrap() = None);
        }
        self.state.write().unwrap().anchor = Some(to);
    }
}

impl Protocol for Broken {
    type Version = u64;

    fn version_of(&self, block: usize) -> Option<u64> {
        let state = self.state.read().unwrap();
        (state.anchor == Some(block)).then_some(state.version)
    }

    fn get(&self, reader: u64, key: usize) -> Option<usize> {
        let found = *self.slots[key].lock().unwrap();
        found.filter(|(since, _)| *since <= reader || self.fault == Fault::GetIgnoresSince).map(|(_, value)| value)
    }

    fn put(&self, reader: u64, key: usize, value: usize) {
        let state = self.state.read().unwrap();
        let in_step = state.version == reader && state.anchor.is_some();
        let _held = (self.fault != Fault::PutWithoutLock).then_some(state);
        if in_step || self.fault == Fault::PutOutOfStep {
            *self.slots[key].lock().unwrap() = Some((reader, value));
        }
    }

    fn advance(&self, from: usize, to: usize, changed: impl Iterator<Item = (usize, usize)>) {
        self.step(Some(from), to, changed);
    }

    fn reset(&self, to: usize) {
        self.step(None, to, std::iter::empty());
    }
}

fn with(fault: Fault, model: fn(&Arc<Broken>)) {
    check(move || Broken::new(fault), model);
}

#[test]
fn without_a_fault_the_models_pass() {
    for model in [commit, unwind, siblings] {
        with(Fault::None, model);
    }
}

/// Stamps a test for each fault: what a reader finds is another block's.
macro_rules! caught {
    ($($test:ident: $fault:ident by $model:ident,)*) => {
        $(
            #[test]
            #[should_panic(expected = "of block")]
            fn $test() {
                with(Fault::$fault, $model);
            }
        )*
    };
}

caught! {
    a_put_without_the_lock_is_caught: PutWithoutLock by commit,
    a_put_out_of_step_is_caught: PutOutOfStep by commit,
    a_value_that_is_too_new_is_caught: GetIgnoresSince by commit,
    a_reader_before_the_sweep_is_caught: AnchorBeforeSweep by commit,
    a_sweep_that_is_dated_back_is_caught: SweepIsDatedBack by commit,
    entries_of_a_lost_branch_are_caught: ResetKeepsEntries by unwind,
    a_step_from_elsewhere_is_caught: AnyStepLeadsOn by siblings,
}
