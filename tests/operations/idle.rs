//! Doing nothing: an agent that has arrived and is asked nothing says nothing, hardly wakes and
//! does not grow.

use std::time::{Duration, Instant};

use harness::system::System;

/// Duration of the watch in seconds: ten minutes for the long run.
fn watched() -> u64 {
    std::env::var("IDLE_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(8)
}

/// Returns a field of `status` in proc(5) for every thread of a process.
fn of_threads(pid: u32, field: &str) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |thread: std::fs::DirEntry| value(&thread.path().join("status"), field);
    threads.map(|thread| of(thread.unwrap())).sum()
}

fn value(status: &std::path::Path, field: &str) -> u64 {
    let text = std::fs::read_to_string(status).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// A thread's wake-ups of its own accord, all wake-ups, and the process's resident KiB: all of it,
/// and what is not a part of a file.
fn state(pid: u32) -> [u64; 4] {
    let voluntary = of_threads(pid, "voluntary_ctxt_switches");
    let resident = |field| value(format!("/proc/{pid}/status").as_ref(), field);
    let switches = voluntary + of_threads(pid, "nonvoluntary_ctxt_switches");
    [voluntary, switches, resident("VmRSS"), resident("RssAnon")]
}

#[test]
fn an_idle_agent_says_nothing_hardly_wakes_and_does_not_grow() {
    // The default level.
    let system = System::start_with(
        |_| {},
        |command| {
            command.env_remove("LOG_LEVEL");
        },
    );
    let (agent, pid) = (&system.agent.process, system.agent.process.pid());
    // What follows the arrival: first snapshots, and threads that find their rest.
    std::thread::sleep(Duration::from_secs(3));
    let (said, began) = (agent.lines(""), Instant::now());
    let before = state(pid);
    std::thread::sleep(Duration::from_secs(watched()));
    let (after, took) = (state(pid), began.elapsed().as_secs_f64());
    let lines = agent.lines("");
    assert_eq!(lines, said, "an idle agent has nothing to say");
    let per_second = |at: usize| (after[at] - before[at]) as f64 / took;
    println!(
        "{took:.0} s idle: {} lines at start, none since; {:.2} voluntary and {:.2} context \
        switches a second; RSS {} -> {} KiB, of it anonymous {} -> {} KiB",
        said.len(),
        per_second(0),
        per_second(1),
        before[2],
        after[2],
        before[3],
        after[3]
    );
    // Heartbeats and keep-alives with the manager, and whatever the machine's load adds.
    assert!(
        per_second(0) < 5.0,
        "it wakes {:.1} times a second",
        per_second(0)
    );
    assert!(
        after[3] <= before[3] + 256,
        "it grew from {} to {} KiB",
        before[3],
        after[3]
    );
    // Pages of code come with their use and are given back, so this is no more than a few of them.
    assert!(
        after[2] <= before[2] + 4096,
        "with its code it grew from {} to {} KiB",
        before[2],
        after[2]
    );
}
