//! The threads for the long work, and in which order they take it up.
//!
//! rayon takes jobs up as they come. So a job goes into a queue here, ordered by its [`Turn`], and rayon is given a call
//! that takes up whatever is first by then. One thread or many, the same order: lists, then what blocks wait for, then
//! what is done ahead.
//!
//! Invariants:
//! 1. Each job is run, once: there is a call for each, and a call that finds nothing has been forestalled.
//! 2. A thread that waits for a part of its job takes up no other one, which could be longer than all that it waits for.
//!    Only a job that makes way ([`Queue::make_way`]) is laid aside, for what has a turn before all reading ahead.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fmt, io,
    num::NonZeroUsize,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use foldgate_core::{BlockNumber, affinity::keep_on_processor, trie::FoldOptions};
use parking_lot::Mutex;

/// Whose turn it is: the smallest comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Turn {
    /// Decoding a list: short, and both the executor and the fold are the faster for it.
    List(BlockNumber),
    /// What blocks wait for, the oldest block's first.
    Due(BlockNumber),
    /// What nobody waits for yet. A block is read ahead for before it is folded.
    Ahead(BlockNumber, Ahead),
}

/// What is done ahead, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ahead {
    Read,
    Fold,
}

type Job = Box<dyn FnOnce() + Send>;

/// The jobs that wait for a thread.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// How many have come so far.
    count: u64,
    /// By turn; of one turn the first that came first.
    jobs: BTreeMap<(Turn, u64), Job>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("jobs", &self.waiting.lock().jobs.len()).finish_non_exhaustive()
    }
}

thread_local! {
    /// How many calls the thread owes, if it has a job at hand.
    static OWED: Cell<Option<usize>> = const { Cell::new(None) };

    /// For how long the thread has laid jobs aside so far.
    static LAID_ASIDE: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

impl Queue {
    fn push(&self, turn: Turn, job: Job) {
        let waiting = &mut *self.waiting.lock();
        waiting.count += 1;
        waiting.jobs.insert((turn, waiting.count), job);
    }

    fn pop(&self, has_turn: impl FnOnce(Turn) -> bool) -> Option<Job> {
        let waiting = &mut *self.waiting.lock();
        let first = waiting.jobs.first_entry()?;
        has_turn(first.key().0).then(|| first.remove())
    }

    /// Runs the job whose turn it is. A thread that has one at hand does so when that is done.
    fn call(&self) {
        if let Some(owed) = OWED.get() {
            return OWED.set(Some(owed + 1));
        }
        OWED.set(Some(1));
        while let Some(owed) = OWED.get().and_then(|owed| owed.checked_sub(1)) {
            OWED.set(Some(owed));
            if let Some(job) = self.pop(|_| true) {
                job();
            }
        }
        OWED.set(None);
    }

    /// For a job that reads ahead, from time to time: runs what blocks wait for meanwhile.
    pub(crate) fn make_way(&self) {
        while let Some(job) = self.pop(|turn| !matches!(turn, Turn::Ahead(..))) {
            let begin = Instant::now();
            job();
            LAID_ASIDE.set(LAID_ASIDE.get() + begin.elapsed());
        }
    }
}

/// Measures what a thread's job takes, without those for which it made way.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    begin: Instant,
    laid_aside: Duration,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { begin: Instant::now(), laid_aside: LAID_ASIDE.get() }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begin.elapsed().saturating_sub(LAID_ASIDE.get() - self.laid_aside)
    }
}

/// The threads. Dropping it waits for the jobs that were given, and for the threads.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Without it, jobs are done by whoever asks for them. It is taken while dropping, when nobody asks any more.
    pool: Option<rayon::ThreadPool>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
    queue: Arc<Queue>,
}

impl Pool {
    pub(crate) fn new(threads: NonZeroUsize, pinned: bool) -> io::Result<Self> {
        let handles = Arc::new(Mutex::new(Vec::new()));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.get())
            .spawn_handler(|worker| {
                let name = format!("foldgate-worker-{}", worker.index());
                let run = move || {
                    if pinned {
                        // Where it cannot be, the thread works all the same.
                        let _pinned = keep_on_processor(worker.index() + 1);
                    }
                    worker.run();
                };
                handles.lock().push(thread::Builder::new().name(name).spawn(run)?);
                Ok(())
            })
            .build()
            .map_err(io::Error::other)?;
        Ok(Self { pool: Some(pool), threads: handles, queue: Arc::default() })
    }

    /// Without threads: a job is done by whoever asks for it.
    #[cfg(test)]
    pub(crate) fn inline() -> Self {
        Self { pool: None, threads: Arc::default(), queue: Arc::default() }
    }

    /// Gives a job, which catches its panics.
    pub(crate) fn give(&self, turn: Turn, job: impl FnOnce() + Send + 'static) {
        match &self.pool {
            Some(pool) => {
                self.queue.push(turn, Box::new(job));
                let queue = Arc::clone(&self.queue);
                pool.spawn(move || queue.call());
            }
            None => job(),
        }
    }

    /// How a job folds here: without a second thread there is nothing to share out.
    pub(crate) fn fold_options(&self) -> FoldOptions {
        match &self.pool {
            Some(pool) if pool.current_num_threads() > 1 => FoldOptions::default(),
            _ => FoldOptions::SERIAL,
        }
    }

    /// Where a job that reads ahead makes way.
    pub(crate) fn queue(&self) -> Arc<Queue> {
        Arc::clone(&self.queue)
    }

    /// Runs work on the pool's threads, and waits for it.
    pub(crate) fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // The pool first: its threads end when the jobs under way have ended.
        drop(self.pool.take());
        for thread in self.threads.lock().drain(..) {
            // A worker's panics were caught in its jobs.
            let _caught = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, bounded, unbounded};

    use super::*;

    const ONE: NonZeroUsize = NonZeroUsize::MIN;

    /// Keeps the pool's one thread at a job until the sender is used or dropped.
    fn busy(pool: &Pool) -> crossbeam_channel::Sender<()> {
        let (go, wait) = bounded::<()>(0);
        let (begun, begun_in) = bounded(0);
        pool.give(Turn::List(0), move || {
            begun.send(()).unwrap();
            let _dropped = wait.recv();
        });
        begun_in.recv().unwrap();
        go
    }

    /// Gives jobs of these turns, each of which says that it is run.
    fn give(pool: &Pool, turns: &[Turn]) -> Receiver<Turn> {
        let (done, done_in) = unbounded();
        for turn in turns.iter().copied() {
            let done = done.clone();
            pool.give(turn, move || done.send(turn).unwrap());
        }
        done_in
    }

    #[test]
    fn each_job_has_its_turn_whatever_came_first() {
        let pool = Pool::new(ONE, false).unwrap();
        let go = busy(&pool);
        let turns = [
            Turn::Ahead(7, Ahead::Fold),
            Turn::Ahead(8, Ahead::Read),
            Turn::Due(6),
            Turn::Ahead(7, Ahead::Read),
            Turn::List(9),
            Turn::Due(5),
            Turn::List(9),
        ];
        let done = give(&pool, &turns);
        drop(go);
        drop(pool);
        let mut sorted = turns;
        sorted.sort();
        assert_eq!(done.try_iter().collect::<Vec<_>>(), sorted);
        assert_eq!(sorted[2..5], [Turn::Due(5), Turn::Due(6), Turn::Ahead(7, Ahead::Read)]);
    }

    #[test]
    fn a_job_makes_way_for_what_blocks_wait_for_and_its_time_is_its_own() {
        let queue = Queue::default();
        let (done, done_in) = unbounded();
        for turn in [Turn::Ahead(1, Ahead::Read), Turn::Due(3), Turn::Ahead(1, Ahead::Fold), Turn::List(4)] {
            let done = done.clone();
            queue.push(turn, Box::new(move || done.send(turn).unwrap()));
        }
        let long = Duration::from_millis(100);
        queue.push(Turn::Due(9), Box::new(move || thread::sleep(long)));
        let (watch, begin) = (Stopwatch::start(), Instant::now());
        queue.make_way();
        let (own, all) = (watch.elapsed(), begin.elapsed());
        assert_eq!(done_in.try_iter().collect::<Vec<_>>(), [Turn::List(4), Turn::Due(3)]);
        assert_eq!(queue.waiting.lock().jobs.len(), 2);
        assert!(all >= long && own < long / 2, "{own:?} of {all:?}");
    }

    #[test]
    fn a_thread_that_waits_for_its_own_job_takes_up_no_other() {
        let pool = Pool::new(ONE, false).unwrap();
        let (go, wait) = bounded::<()>(0);
        let (begun, begun_in) = bounded(0);
        let (at, at_in) = unbounded();
        let first = at.clone();
        pool.give(Turn::Due(1), move || {
            begun.send(()).unwrap();
            wait.recv().unwrap();
            // What a thread does that waits in a join.
            while rayon::yield_now() == Some(rayon::Yield::Executed) {}
            first.send("first").unwrap();
        });
        begun_in.recv().unwrap();
        for _ in 0..3 {
            let at = at.clone();
            pool.give(Turn::List(1), move || at.send("other").unwrap());
        }
        go.send(()).unwrap();
        drop(pool);
        assert_eq!(at_in.try_iter().collect::<Vec<_>>(), ["first", "other", "other", "other"]);
    }
}
