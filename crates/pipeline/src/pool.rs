//! The threads for the long work, and in which order they take it up.
//!
//! ```text
//! calculator --jobs--> [queue, by turn] --> job threads: lists, reading ahead
//!                                              |  what folds, and wait for it
//!                                              v
//!                                           rayon's threads: folds, shared out
//! ```
//!
//! A job thread takes up whatever is first in the queue by then: lists, then what blocks wait for, then what is done ahead.
//! Where there are several of them, folds run on as many threads of rayon's, while the job thread waits. So a thread that
//! waits for another's part of a fold finds folds and parts of them to take up, and never a warm-up, which could be longer
//! than all that it waits for. With one job thread there is nothing to share out, and it folds itself.
//!
//! Invariants:
//! 1. Each job is run, once, but one whose block has ended before its turn: that is dropped.
//! 2. Only a job that makes way ([`Queue::make_way`]) is laid aside, for what has a turn before all reading ahead.
//! 3. No job is run under the queue's lock.

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
use parking_lot::{Condvar, Mutex};
use rayon::ThreadPool;

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

impl Turn {
    const fn folds(self) -> bool {
        matches!(self, Self::Due(_) | Self::Ahead(_, Ahead::Fold))
    }
}

/// What is done ahead, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ahead {
    Read,
    Fold,
}

struct Job {
    run: Box<dyn FnOnce() + Send>,
    /// Whether it need not be run any more.
    is_over: Box<dyn Fn() -> bool + Send>,
}

/// The jobs that wait for a thread.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    /// A job was given, or none will be any more.
    given: Condvar,
    /// Where folds run, unless it is the job's own thread.
    folds: Option<ThreadPool>,
}

#[derive(Default)]
struct Waiting {
    /// How many have come so far.
    count: u64,
    /// By turn; of one turn the first that came first.
    jobs: BTreeMap<(Turn, u64), Job>,
    /// How many may wait until it is looked which of them are over.
    look_at: usize,
    /// No job will be given any more.
    closed: bool,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("jobs", &self.waiting.lock().jobs.len()).finish_non_exhaustive()
    }
}

thread_local! {
    /// For how long the thread has laid jobs aside so far.
    static LAID_ASIDE: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

impl Queue {
    fn push(&self, turn: Turn, job: Job) {
        let mut waiting = self.waiting.lock();
        waiting.count += 1;
        let key = (turn, waiting.count);
        waiting.jobs.insert(key, job);
        // Blocks in flight are bounded, and so are the jobs that are not over.
        let over = (waiting.jobs.len() > waiting.look_at).then(|| waiting.remove_over());
        drop(waiting);
        self.given.notify_one();
        // Outside of the lock: they may hold the last reference to a snapshot.
        drop(over);
    }

    /// The job whose turn it is, as soon as there is one; `None` when all are done and none will be given.
    fn next(&self) -> Option<(Turn, Job)> {
        let mut waiting = self.waiting.lock();
        loop {
            if let Some(((turn, _), job)) = waiting.jobs.pop_first() {
                return Some((turn, job));
            }
            if waiting.closed {
                return None;
            }
            self.given.wait(&mut waiting);
        }
    }

    /// The first job, if it has a turn before all that is done ahead.
    fn next_due(&self) -> Option<(Turn, Job)> {
        let waiting = &mut *self.waiting.lock();
        let first = waiting.jobs.first_entry()?;
        let (turn, _) = *first.key();
        (!matches!(turn, Turn::Ahead(..))).then(|| (turn, first.remove()))
    }

    fn run(&self, turn: Turn, job: Job) {
        if (job.is_over)() {
            return;
        }
        match &self.folds {
            Some(pool) if turn.folds() => pool.install(job.run),
            _ => (job.run)(),
        }
    }

    /// For a job that reads ahead, from time to time: runs what blocks wait for meanwhile. Gives whether the job is to
    /// stop, which it looks at before each of them.
    pub(crate) fn make_way(&self, stop: impl Fn() -> bool) -> bool {
        while !stop() {
            let Some((turn, job)) = self.next_due() else { return false };
            let begin = Instant::now();
            self.run(turn, job);
            LAID_ASIDE.set(LAID_ASIDE.get() + begin.elapsed());
        }
        true
    }

    /// What is folded ahead at this height is waited for from now on.
    pub(crate) fn promote(&self, number: BlockNumber) {
        let waiting = &mut *self.waiting.lock();
        let ahead = Turn::Ahead(number, Ahead::Fold);
        let keys: Vec<_> = waiting.jobs.range((ahead, 0)..=(ahead, u64::MAX)).map(|(key, _)| *key).collect();
        for key in keys {
            if let Some(job) = waiting.jobs.remove(&key) {
                waiting.jobs.insert((Turn::Due(number), key.1), job);
            }
        }
    }

    fn close(&self) {
        self.waiting.lock().closed = true;
        self.given.notify_all();
    }
}

impl Waiting {
    fn remove_over(&mut self) -> Vec<Job> {
        let over = self.jobs.extract_if(.., |_, job| (job.is_over)()).map(|(_, job)| job).collect();
        self.look_at = 2 * self.jobs.len() + 64;
        over
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
#[derive(Debug, Default)]
pub(crate) struct Pool {
    queue: Arc<Queue>,
    /// Without them, jobs are done by whoever gives them.
    threads: Vec<JoinHandle<()>>,
    folding: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Pool {
    pub(crate) fn new(threads: NonZeroUsize, pinned: bool) -> io::Result<Self> {
        // Where it cannot be, the thread works all the same.
        let pin = move |index: usize| _ = pinned.then(|| keep_on_processor(index + 1));
        let mut pool = Self::default();
        let folding = Arc::clone(&pool.folding);
        let folds = (threads.get() > 1).then(|| {
            let spawn = move |worker: rayon::ThreadBuilder| {
                let name = format!("foldgate-fold-{}", worker.index());
                let run = move || {
                    pin(worker.index());
                    worker.run();
                };
                folding.lock().push(thread::Builder::new().name(name).spawn(run)?);
                Ok(())
            };
            let builder = rayon::ThreadPoolBuilder::new().num_threads(threads.get());
            builder.spawn_handler(spawn).build().map_err(io::Error::other)
        });
        pool.queue = Arc::new(Queue { folds: folds.transpose()?, ..Queue::default() });
        for index in 0..threads.get() {
            let queue = Arc::clone(&pool.queue);
            let run = move || {
                pin(index);
                while let Some((turn, job)) = queue.next() {
                    queue.run(turn, job);
                }
            };
            pool.threads.push(thread::Builder::new().name(format!("foldgate-worker-{index}")).spawn(run)?);
        }
        Ok(pool)
    }

    /// Without threads: a job is done by whoever asks for it.
    #[cfg(test)]
    pub(crate) fn inline() -> Self {
        Self::default()
    }

    /// Gives a job, which catches its panics. If it `is_over` before its turn, it is dropped.
    pub(crate) fn give(
        &self,
        turn: Turn,
        is_over: impl Fn() -> bool + Send + 'static,
        job: impl FnOnce() + Send + 'static,
    ) {
        let job = Job { run: Box::new(job), is_over: Box::new(is_over) };
        match self.threads.is_empty() {
            true => self.queue.run(turn, job),
            false => self.queue.push(turn, job),
        }
    }

    /// How a job folds here: without a second thread there is nothing to share out.
    pub(crate) fn fold_options(&self) -> FoldOptions {
        if self.queue.folds.is_some() { FoldOptions::default() } else { FoldOptions::SERIAL }
    }

    /// Where jobs wait, and a job that reads ahead makes way.
    pub(crate) fn queue(&self) -> Arc<Queue> {
        Arc::clone(&self.queue)
    }

    /// Folds where jobs do, and as they do, without a turn, and waits for it.
    pub(crate) fn install<T: Send>(&self, work: impl FnOnce(&FoldOptions) -> T + Send) -> T {
        let options = self.fold_options();
        match &self.queue.folds {
            Some(pool) => pool.install(|| work(&options)),
            None => work(&options),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.close();
        for thread in self.threads.drain(..) {
            // A job's panics were caught in it.
            let _caught = thread.join();
        }
        // Jobs are gone, and with them all others who had the queue: rayon's threads end with it.
        self.queue = Arc::default();
        for thread in self.folding.lock().drain(..) {
            let _caught = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use crossbeam_channel::{Receiver, bounded, unbounded};

    use super::*;

    const ONE: NonZeroUsize = NonZeroUsize::MIN;
    const TWO: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

    fn never() -> bool {
        false
    }

    /// Keeps one of the pool's threads at a job until the sender is used or dropped.
    fn busy(pool: &Pool) -> crossbeam_channel::Sender<()> {
        let (go, wait) = bounded::<()>(0);
        let (begun, begun_in) = bounded(0);
        pool.give(Turn::List(0), never, move || {
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
            pool.give(turn, never, move || done.send(turn).unwrap());
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
    fn what_is_waited_for_later_has_its_turn_then() {
        let pool = Pool::new(ONE, false).unwrap();
        let go = busy(&pool);
        let (read, ahead, others) =
            (Turn::Ahead(3, Ahead::Read), Turn::Ahead(7, Ahead::Fold), Turn::Ahead(8, Ahead::Fold));
        let done = give(&pool, &[others, read, ahead, Turn::Due(9)]);
        pool.queue.promote(7);
        drop(go);
        drop(pool);
        assert_eq!(done.try_iter().collect::<Vec<_>>(), [ahead, Turn::Due(9), read, others]);
    }

    #[test]
    fn a_job_makes_way_for_what_blocks_wait_for_and_its_time_is_its_own() {
        let pool = Pool::new(ONE, false).unwrap();
        let go = busy(&pool);
        let done =
            give(&pool, &[Turn::Ahead(1, Ahead::Read), Turn::Due(3), Turn::Ahead(1, Ahead::Fold), Turn::List(4)]);
        let long = Duration::from_millis(100);
        pool.give(Turn::Due(9), never, move || thread::sleep(long));
        let (watch, begin) = (Stopwatch::start(), Instant::now());
        assert!(!pool.queue.make_way(never));
        let (own, all) = (watch.elapsed(), begin.elapsed());
        assert_eq!(done.try_iter().collect::<Vec<_>>(), [Turn::List(4), Turn::Due(3)]);
        assert_eq!(pool.queue.waiting.lock().jobs.len(), 2);
        assert!(all >= long && own < long / 2, "{own:?} of {all:?}");
        drop(go);
    }

    /// Its own fold may be what it would make way for.
    #[test]
    fn a_job_that_is_to_stop_makes_way_for_nothing() {
        let pool = Pool::new(ONE, false).unwrap();
        let go = busy(&pool);
        let done = give(&pool, &[Turn::Due(3), Turn::Due(4), Turn::Due(5)]);
        assert!(pool.queue.make_way(|| true));
        assert!(pool.queue.make_way(|| !done.is_empty()), "it looks before each of them");
        assert_eq!(done.try_iter().collect::<Vec<_>>(), [Turn::Due(3)]);
        drop(go);
    }

    /// A part of a fold is stolen, and a part of that stolen back: its thief waits, and takes up nothing that reads ahead.
    #[test]
    fn a_thread_that_waits_for_a_part_reads_nothing_ahead() {
        fn wait_for(flag: &AtomicBool) {
            while !flag.load(Ordering::Acquire) {
                thread::yield_now();
            }
        }
        let pool = Pool::new(TWO, false).unwrap();
        let (stolen, stolen_back) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (given, folded) = (Arc::new(AtomicBool::new(false)), bounded(1));
        let fold = {
            let (stolen, stolen_back, given, folded) =
                (Arc::clone(&stolen), Arc::clone(&stolen_back), Arc::clone(&given), folded.0);
            move || {
                let back = || {
                    stolen_back.store(true, Ordering::Release);
                    wait_for(&given);
                    // Time for the other thread to take up what it must not.
                    thread::sleep(Duration::from_millis(50));
                };
                let part = || {
                    stolen.store(true, Ordering::Release);
                    rayon::join(|| wait_for(&stolen_back), back);
                };
                rayon::join(|| wait_for(&stolen), part);
                folded.send(()).unwrap();
            }
        };
        pool.give(Turn::Due(1), never, fold);
        wait_for(&stolen_back);
        // It ends only when the fold has.
        let (go, wait) = bounded::<()>(0);
        pool.give(Turn::Ahead(9, Ahead::Read), never, move || _ = wait.recv());
        given.store(true, Ordering::Release);
        folded.1.recv_timeout(Duration::from_secs(20)).expect("the fold waits for another job");
        drop(go);
    }

    #[test]
    fn work_without_a_turn_folds_as_jobs_do() {
        let one = Pool::new(ONE, false).unwrap();
        let own = thread::current().id();
        one.install(|options| assert_eq!((*options, thread::current().id()), (FoldOptions::SERIAL, own)));
        let two = Pool::new(TWO, false).unwrap();
        two.install(|options| {
            assert_eq!((*options, rayon::current_num_threads()), (FoldOptions::default(), 2));
            assert!(rayon::current_thread_index().is_some(), "threads of rayon's own, not those of this pool");
        });
        let name = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&name);
        two.give(Turn::Due(1), never, move || *seen.lock() = thread::current().name().map(str::to_owned));
        drop(two);
        assert!(name.lock().as_ref().is_some_and(|name| name.starts_with("foldgate-fold-")), "{name:?}");
    }

    #[test]
    fn jobs_that_are_over_do_not_pile_up() {
        let pool = Pool::new(ONE, false).unwrap();
        let go = busy(&pool);
        let held = Arc::new(());
        for number in 0..1000 {
            let held = Arc::clone(&held);
            pool.give(Turn::Ahead(number, Ahead::Read), || true, move || drop(held));
        }
        assert!(Arc::strong_count(&held) < 70, "{} wait", Arc::strong_count(&held));
        let done = give(&pool, &[Turn::Due(1)]);
        drop(go);
        drop(pool);
        assert_eq!(done.try_iter().count(), 1);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
