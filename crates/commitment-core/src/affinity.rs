//! Keeping threads on processors of their own.
//!
//! A scheduler that looks for an idle processor gives up early where there are few of them and one is busy: on two
//! processors, Linux 6.18 was seen to wake a pool's second worker on the processor of the first, fold after fold, so that
//! two threads took as long as one. Workers that stay where they are cannot be put together.
//!
//! Invariant: a thread is only ever confined to processors on which it was allowed to run.

/// Keeps the calling thread on one of the processors on which it may run, the `worker`-th, counted round. Says whether it
/// is kept there now: not where the system refuses, or is not Linux.
pub fn keep_on_processor(worker: usize) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let Ok(allowed) = sched_getaffinity(None) else { return false };
        let count = allowed.count() as usize;
        if count == 0 {
            return false;
        }
        let Some(processor) = (0..CpuSet::MAX_CPU).filter(|at| allowed.is_set(*at)).nth(worker % count) else {
            return false;
        };
        let mut own = CpuSet::new();
        own.set(processor);
        sched_setaffinity(None, &own).is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = worker;
        false
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::thread;

    use rustix::thread::sched_getaffinity;

    use super::*;

    #[test]
    fn threads_stay_within_what_was_allowed() {
        let allowed = sched_getaffinity(None).unwrap();
        let mut kept = Vec::new();
        for worker in 0..=allowed.count() as usize {
            let own = thread::spawn(move || keep_on_processor(worker).then(|| sched_getaffinity(None).unwrap()));
            let own = own.join().unwrap().expect("a thread may confine itself");
            assert_eq!(own.count(), 1);
            let at = (0..4096).find(|at| own.is_set(*at)).unwrap();
            assert!(allowed.is_set(at));
            kept.push(at);
        }
        assert_eq!(kept.first(), kept.last(), "counted round");
        kept.pop();
        kept.dedup();
        assert_eq!(kept.len(), allowed.count() as usize, "one processor each");
        assert_eq!(sched_getaffinity(None).unwrap(), allowed, "only the calling thread is kept");
    }
}
