//! A caller at 200 requests a second beside whatever is done to a program, and the program's
//! anonymous memory meanwhile. Both are judged by a control run right before, because other tests
//! share the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two calls.
const CALL_INTERVAL: Duration = Duration::from_millis(5);
/// Calls that are made at least, so that there is something to judge.
const MIN_CALLS: usize = 300;
/// Calls between two looks at the memory.
const MEMORY_CALLS: usize = 8;
/// How much later than 99 of 100 answers of the control run answers may come: so many times, and a
/// delay.
const MAX_LATER_FACTOR: u32 = 4;
/// Delay that 90 of 100 answers may have.
const MAX_LATER_DELAY: Duration = Duration::from_millis(800);
/// Delay that 99 of 100 may have: a busy machine may hold up a few.
const MAX_RARE_DELAY: Duration = Duration::from_secs(3);

/// The caller, on a thread of its own.
#[derive(Debug)]
pub struct Pace {
    stop: Arc<AtomicBool>,
    calls: JoinHandle<Calls>,
}

/// What the caller has met.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    /// Time of each answered call, sorted.
    times: Vec<Duration>,
    /// Why others failed.
    failures: Vec<String>,
    /// Most anonymous memory of the program, in KiB.
    memory_kib: u64,
}

impl Pace {
    /// Starts calling; `pid` is the program whose memory is watched.
    pub fn start(pid: u32, mut call: impl FnMut() -> Result<(), String> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let calls = std::thread::spawn(move || {
            let (mut calls, mut due) = (Calls::default(), Instant::now());
            while calls.count() < MIN_CALLS || !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let begin = Instant::now();
                match call() {
                    Ok(()) => calls.times.push(begin.elapsed()),
                    Err(why) => calls.failures.push(why),
                }
                if calls.count() % MEMORY_CALLS == 1 {
                    calls.look(pid);
                }
                // A call that was late puts off the next ones, instead of making a burst of them.
                due = (due + CALL_INTERVAL).max(Instant::now() - CALL_INTERVAL);
            }
            calls.look(pid);
            calls.times.sort();
            calls
        });
        Self { stop, calls }
    }

    /// Ends the caller.
    pub fn end(self) -> Calls {
        self.stop.store(true, Ordering::Relaxed);
        self.calls.join().expect("the caller's thread")
    }
}

impl Calls {
    /// The control run: nothing is done to the program.
    pub fn control(pid: u32, call: impl FnMut() -> Result<(), String> + Send + 'static) -> Self {
        Pace::start(pid, call).end()
    }

    /// Number of calls.
    pub fn count(&self) -> usize {
        self.times.len() + self.failures.len()
    }

    /// Returns the time within which `percent` of 100 calls were answered.
    pub fn percentile(&self, percent: usize) -> Duration {
        let at = self.times.len() * percent / 100;
        self.times.get(at).copied().unwrap_or(Duration::MAX)
    }

    /// Compares with a control run: no call failed, none is much later, and the program has taken
    /// no more than `most_kib` of memory.
    pub fn assert_unharmed(&self, control: &Self, most_kib: u64) {
        let [p90, p99] = [90, 99].map(|percent| self.percentile(percent));
        let before = control.percentile(99);
        let growth = self.memory_kib.saturating_sub(control.memory_kib);
        println!(
            "{} calls, {} failed; p90 {p90:?} and p99 {p99:?} after {before:?}; {growth} KiB more",
            self.count(),
            self.failures.len()
        );
        assert_eq!(control.failures, [""; 0], "the control run");
        assert_eq!(self.failures, [""; 0], "of {} calls", self.count());
        for (time, delay) in [(p90, MAX_LATER_DELAY), (p99, MAX_RARE_DELAY)] {
            assert!(
                time < before * MAX_LATER_FACTOR + delay,
                "p90 {p90:?}, p99 {p99:?} after {before:?}"
            );
        }
        assert!(growth < most_kib, "{growth} KiB more");
    }

    fn look(&mut self, pid: u32) {
        self.memory_kib = self.memory_kib.max(anonymous_kib(pid));
    }
}

/// Reads how much memory of a process is its own, in KiB: without what is mapped from files, which
/// comes and goes. A process that has ended has none.
pub fn anonymous_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(call: impl FnMut() -> Result<(), String> + Send + 'static) -> Calls {
        Calls::control(std::process::id(), call)
    }

    fn is_harmed(calls: &Calls, control: &Calls, most_kib: u64) -> bool {
        let judge = std::panic::AssertUnwindSafe(|| calls.assert_unharmed(control, most_kib));
        std::panic::catch_unwind(judge).is_err()
    }

    #[test]
    fn late_and_failed_calls_and_memory_are_found() {
        let control = run(|| Ok(()));
        assert!(control.count() >= MIN_CALLS && control.memory_kib > 0);
        assert!(!is_harmed(&control, &control, 1));
        assert!(is_harmed(&control, &control, 0));
        let mut number = 0;
        let failing = run(move || {
            number += 1;
            (number != 7).then_some(()).ok_or("broken".to_owned())
        });
        assert!(is_harmed(&failing, &control, u64::MAX));
        for (percent, delay) in [(12, MAX_LATER_DELAY), (3, MAX_RARE_DELAY)] {
            let mut late = control.clone();
            let calls = late.count() * percent / 100;
            let slowest = late.times.iter_mut().rev().take(calls);
            slowest.for_each(|time| *time += 2 * delay);
            assert!(is_harmed(&late, &control, u64::MAX), "{percent} of 100");
        }
    }
}
