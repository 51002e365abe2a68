//! The schedule of faults: one for the manager and the network, one for developers, side by side.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::process::Process;
use rustix::process::Signal;

use crate::ledger::Standing;
use crate::seats::Testbed;

/// Numbers that a seed determines (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `limit`, which is above 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }

    /// Waits for up to so many milliseconds, or until `calm`.
    fn wait(&mut self, most: usize, calm: &AtomicBool) {
        let end = Instant::now() + Duration::from_millis(self.below(most) as u64);
        while Instant::now() < end && !calm.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
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
                random.wait(away, calm);
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
                random.wait(away, calm);
            }),
            _ => testbed.manager(|_| {
                testbed.count("manager cut off", None);
                let port = testbed.manager_address.port();
                let _cut = Cut::new(port);
                random.wait(away, calm);
            }),
        }
        random.wait(4000, calm);
    }
}

/// Faults of developers: they leave, die, sleep, and close what their requests go to.
pub(crate) fn of_developers(testbed: &Testbed, mut random: Random, calm: &AtomicBool) {
    while !calm.load(Ordering::Relaxed) {
        let seat = random.below(testbed.seats.len());
        testbed.unsettle(seat);
        match random.below(5) {
            0 | 1 => {
                testbed.count("intercept left", Some(seat));
                if testbed.leave(seat) {
                    testbed.ledger.stand(seat, Standing::Away);
                    random.wait(500, calm);
                    testbed.unsettle(seat);
                }
                testbed.create(seat);
            }
            2 => {
                testbed.count("client killed", Some(seat));
                testbed.kill(seat);
                random.wait(1000, calm);
                testbed.create(seat);
            }
            3 => {
                testbed.count("client stopped", Some(seat));
                testbed.signal(seat, Signal::STOP);
                random.wait(8000, calm);
                testbed.signal(seat, Signal::CONT);
            }
            _ => {
                testbed.count("local port closed", Some(seat));
                testbed.seats[seat].local.close();
                random.wait(2000, calm);
                testbed.seats[seat].local.open();
            }
        }
        testbed.here(seat);
        random.wait(300, calm);
    }
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
