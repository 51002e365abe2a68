//! The schedule of faults: one for the manager and the network, one for developers, side by side.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::process::Process;
use harness::random::Random;
use rustix::process::Signal;

use crate::ledger::Standing;
use crate::seats::Testbed;

/// Waits for up to so many milliseconds, or until `calm`.
fn wait(random: &mut Random, most: usize, calm: &AtomicBool) {
    let end = Instant::now() + Duration::from_millis(random.below(most) as u64);
    while Instant::now() < end && !calm.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Faults of the manager, and of the network on the way to it. Intercepts with a direct tunnel
/// stay in force through all of them.
pub(crate) fn of_the_manager(testbed: &Testbed, mut random: Random, calm: &AtomicBool) {
    while !calm.load(Ordering::Relaxed) {
        let away = 3000;
        match random.below(4) {
            0 => testbed.manager(|manager| {
                testbed.count("manager killed", None);
                manager.kill();
                wait(&mut random, away, calm);
                testbed.begin_manager(manager);
            }),
            1 => testbed.manager(|manager| {
                testbed.count("manager ended", None);
                manager.terminate();
                testbed.begin_manager(manager);
            }),
            2 => testbed.manager(|manager| {
                testbed.count("manager stopped", None);
                let _running = Stopped::new(manager);
                wait(&mut random, away, calm);
            }),
            _ => testbed.manager(|_| {
                testbed.count("manager cut off", None);
                let port = testbed.manager_address.port();
                let _cut = Cut::new(port);
                wait(&mut random, away, calm);
            }),
        }
        wait(&mut random, 4000, calm);
    }
}

/// Faults of developers: they leave, die, sleep, and close what their requests go to.
pub(crate) fn of_developers(testbed: &Testbed, mut random: Random, calm: &AtomicBool) {
    while !calm.load(Ordering::Relaxed) {
        if random.below(12) == 0 {
            testbed.count("workstations cut off", None);
            testbed.everybody(|| {
                let _cut = Cut::new(testbed.agent.api().port());
                wait(&mut random, 12_000, calm);
            });
        }
        let seat = random.below(testbed.seats.len());
        match random.below(5) {
            0 | 1 => leave(testbed, &mut random, seat, calm),
            2 => {
                testbed.count("client killed", Some(seat));
                testbed.unsettle(seat);
                testbed.kill(seat);
                wait(&mut random, 1000, calm);
                testbed.create(seat);
            }
            3 => {
                testbed.count("client stopped", Some(seat));
                testbed.unsettle(seat);
                testbed.signal(seat, Signal::STOP);
                wait(&mut random, 8000, calm);
                testbed.signal(seat, Signal::CONT);
            }
            _ => {
                testbed.count("local port closed", Some(seat));
                // What the closed port had taken and not yet accepted is reset.
                testbed.unsettle(seat);
                testbed.seats[seat].local.close();
                // A connection's first bytes do not wait for the dial, and nobody knows whether a
                // datagram is received.
                if !testbed.seats[seat].kind.is_whole_port() {
                    testbed.change(seat);
                }
                wait(&mut random, 2000, calm);
                testbed.seats[seat].local.open();
            }
        }
        testbed.here(seat);
        wait(&mut random, 300, calm);
    }
}

/// A developer leaves and comes back. No request may be lost by it, unless the manager was away.
fn leave(testbed: &Testbed, random: &mut Random, seat: usize, calm: &AtomicBool) {
    testbed.count("intercept left", Some(seat));
    testbed.change(seat);
    if testbed.leave(seat) {
        testbed.ledger.stand(seat, Standing::Away);
        wait(random, 500, calm);
        testbed.change(seat);
    } else {
        testbed.unsettle(seat);
    }
    testbed.create(seat);
}

/// A program that stands still until this is dropped.
struct Stopped<'a>(&'a Process);

impl<'a> Stopped<'a> {
    fn new(program: &'a Process) -> Self {
        program.signal(Signal::STOP);
        Self(program)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}

/// A port whose packets are dropped until this is.
struct Cut(u16);

impl Cut {
    fn new(port: u16) -> Self {
        let cut = Self(port);
        cut.change("-A");
        cut
    }

    fn change(&self, verb: &str) {
        let port = self.0.to_string();
        for side in ["--dport", "--sport"] {
            let done = Command::new("iptables")
                .args(["-w", verb, "INPUT", "-p", "tcp", side, &port, "-j", "DROP"])
                .status()
                .unwrap();
            assert!(done.success(), "iptables {verb} {side} {port}");
        }
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.change("-D");
    }
}
