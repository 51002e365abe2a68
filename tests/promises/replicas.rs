//! Replicas: every replica of a workload delivers to the workstation, also when replicas come and
//! go.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::apps::App;
use harness::caller::{Caller, get};
use harness::ports;
use harness::sidecar::Port;
use harness::system::{Agent, System};
use harness::wait::{SetAtEnd, until};

/// Starts another replica in front of the system's app.
fn replica(system: &System) -> Agent {
    let mut sidecar = system.agent.sidecar.clone();
    sidecar.ports = vec![Port {
        agent: ports::free(),
        ..sidecar.ports.remove(0)
    }];
    let agent = Agent::start(&sidecar, |_| {});
    agent.ready();
    agent
}

fn who_answers(address: SocketAddr) -> String {
    get(address, "/", &[("x-dev", "a")])
        .unwrap()
        .by()
        .to_owned()
}

#[test]
fn all_replicas_deliver_and_a_new_one_does_so_too() {
    let system = System::start();
    let replicas = [replica(&system), replica(&system), replica(&system)];
    let laptop = App::start("laptop");
    let _intercept = system.intercept("a", laptop.address(), &["--http-header=x-dev=a"]);
    let addresses = [&system.agent, &replicas[0], &replicas[1], &replicas[2]].map(Agent::address);
    for address in addresses {
        // A replica may hear of the intercept a moment after the one that reviewed it.
        until("a replica to deliver", || {
            (who_answers(address) == "laptop").then_some(())
        });
    }
    let before = laptop.served();
    let mut callers = addresses.map(|address| Caller::connect(address).unwrap());
    for number in 0..400 {
        let answer = callers[number % 4].get("/", &[("x-dev", "a")]).unwrap();
        assert_eq!(answer.by(), "laptop", "request {number}");
    }
    assert_eq!(laptop.served() - before, 400);
    let newcomer = replica(&system);
    until("the newcomer to deliver", || {
        (who_answers(newcomer.address()) == "laptop").then_some(())
    });
}

#[test]
fn a_replica_that_goes_takes_nothing_of_the_others_along() {
    let system = System::start();
    let other = replica(&system);
    let laptop = App::start("laptop");
    let intercept = system.intercept("a", laptop.address(), &["--http-header=x-dev=a"]);
    for address in [system.address(), other.address()] {
        until("a replica to deliver", || {
            (who_answers(address) == "laptop").then_some(())
        });
    }
    // Whichever reviewed the intercept goes, so that the other has to take that over.
    let reviewed_by_other = intercept
        .line("state=ACTIVE")
        .contains(&format!("pod={} ", other.pod));
    let (goes, stays) = if reviewed_by_other {
        (&other, &system.agent)
    } else {
        (&system.agent, &other)
    };
    let gone = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut caller = Caller::connect(stays.address()).unwrap();
            while !gone.load(Ordering::Relaxed) {
                let answer = caller
                    .get("/", &[("x-dev", "a")])
                    .expect("no request fails");
                // Until the other has reviewed the intercept, the app may have to step in.
                assert!(["laptop", "app"].contains(&answer.by()));
            }
        });
        let _gone = SetAtEnd(&gone);
        assert!(goes.process.terminate().success());
        intercept.nth_line("state=ACTIVE", 2);
    });
    until("the other to deliver", || {
        (who_answers(stays.address()) == "laptop").then_some(())
    });
}
