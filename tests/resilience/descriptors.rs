//! File descriptors run out: callers wait in the backlog and are served when there is room again.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use harness::apps::raw;
use harness::process::Process;
use harness::wait::until;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::rig::{connect, cpu, in_front_of, read_out};

/// Bytes that no HTTP request begins with, so that detection does not wait.
const HELLO: &[u8; 5] = b"\0ello";

fn descriptors(process: &Process) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", process.pid()))
        .unwrap()
        .count() as u64
}

/// Sets how many it may open; without a number as many as ever.
fn limit(process: &Process, current: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(process.pid()).unwrap());
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(
        pid,
        Resource::Nofile,
        Rlimit {
            current: current.or(maximum),
            maximum,
        },
    )
    .unwrap();
}

#[test]
fn callers_wait_for_descriptors_without_a_reset_or_a_spin_and_are_served_later() {
    // A server that answers what it reads, until the caller is done.
    let app = raw(|mut stream| {
        let mut buffer = [0; 64];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            let _ = stream.write_all(&buffer[..count]);
        }
    });
    let system = in_front_of(app, |_| {});
    let agent = &system.agent.process;
    let echo = |stream: &mut TcpStream| {
        let mut back = [0; 5];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, HELLO);
    };
    let call = || {
        let mut stream = connect(system.address());
        stream.write_all(HELLO).unwrap();
        stream
    };
    let mut first = call();
    echo(&mut first);
    limit(agent, Some(descriptors(agent) + 20));

    let mut callers: Vec<TcpStream> = (0..100).map(|_| call()).collect();
    let line = agent.line("descriptors");
    assert!(line.contains("raise the limit"), "{line}");
    let (begin, used) = (Instant::now(), cpu(agent));
    std::thread::sleep(Duration::from_secs(2));
    let share = (cpu(agent) - used).as_secs_f64() / begin.elapsed().as_secs_f64();
    eprintln!(
        "out of descriptors the agent uses {:.1} % of a CPU",
        share * 100.0
    );
    assert!(share < 0.3, "it spins: {share}");
    let said = agent
        .lines("accepting paused")
        .into_iter()
        .filter(|line| line.contains(" WARN "))
        .count();
    assert_eq!(said, 1, "said once in a while");

    // Whoever was served before goes on.
    first.write_all(HELLO).unwrap();
    echo(&mut first);
    // Each that is served makes room for the next, and nobody is turned away.
    for caller in &mut callers {
        caller.set_nonblocking(true).unwrap();
    }
    until("everybody to be served", || {
        callers.retain_mut(|caller| {
            let mut back = [0; 5];
            match caller.read(&mut back) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => true,
                read => {
                    assert_eq!((read.unwrap(), &back), (5, HELLO), "turned away");
                    false
                }
            }
        });
        callers.is_empty().then_some(())
    });
    limit(agent, None);
    let mut last = call();
    echo(&mut last);
    last.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_out(&mut last), (Vec::new(), None));
    assert!(system.agent.stat(".limits.descriptors") > 0);
}
