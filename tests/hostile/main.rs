//! Peers that speak gRPC and mean harm: callers of every method of manager and agent, and a manager
//! (with an agent behind it) that answers agent and client with whatever a seed brings. Nobody
//! panics, memory is bounded, and callers of the app notice nothing.
//!
//! `HOSTILE_CALLS` sets how many calls are made or answered, `HOSTILE_SEED` which.

#![allow(clippy::unwrap_used)] // A test that meets what it does not expect may say so by panicking.

mod calls;
mod garbage;
mod peer;

use std::process::Command;
use std::time::Duration;

use harness::apps::App;
use harness::caller::get;
use harness::pace::{Calls, Pace};
use harness::process::Process;
use harness::random::Random;
use harness::sidecar::Port;
use harness::system::{Agent, NAMESPACE, System, WORKLOAD, sidecar};
use harness::wait::{until, until_within};
use harness::{ports, programs};

use crate::peer::Peer;

/// Memory an agent may take for hostile peers, KiB.
const AGENT_GROWTH: u64 = 16 * 1024;
/// The same of a manager.
const MANAGER_GROWTH: u64 = 64 * 1024;

/// Time for an agent to ask often enough, in the long form of the test too.
const AGENT_TIMEOUT: Duration = Duration::from_secs(600);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect(name))
}

fn calls() -> usize {
    usize::try_from(setting("HOSTILE_CALLS", 1500)).unwrap()
}

fn random() -> Random {
    Random::new(setting("HOSTILE_SEED", 20_261_129))
}

/// Returns a call to the app that has to be answered by it.
fn ask(agent: &Agent) -> impl FnMut() -> Result<(), String> + Send + 'static + use<> {
    let address = agent.address();
    move || match get(address, "/", &[]) {
        Ok(answer) if answer.by() == "app" => Ok(()),
        Ok(answer) => Err(format!("answered by {}", answer.by())),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn garbage_in_every_call_of_the_manager_harms_nobody() {
    let system = System::start();
    let manager = system.manager.pid();
    let control = Calls::control(manager, ask(&system.agent));
    let pace = Pace::start(manager, ask(&system.agent));
    calls::make(system.manager_address, "manager", calls(), random());
    pace.end().assert_unharmed(&control, MANAGER_GROWTH);
    still_works(&system);
}

#[test]
fn garbage_in_every_call_of_the_agent_harms_nobody() {
    let system = System::start();
    let agent = system.agent.process.pid();
    let control = Calls::control(agent, ask(&system.agent));
    let pace = Pace::start(agent, ask(&system.agent));
    calls::make(system.agent.api(), "agent", calls(), random());
    pace.end().assert_unharmed(&control, AGENT_GROWTH);
    still_works(&system);
}

/// An intercept can be made and takes its requests.
fn still_works(system: &System) {
    let local = App::start("laptop");
    let _intercept = system.intercept("mine", local.address(), &["--http-header=x-dev=me"]);
    let answer = get(system.address(), "/", &[("x-dev", "me")]).unwrap();
    assert_eq!(answer.by(), "laptop");
    no_panic(&system.agent.process);
    no_panic(&system.manager);
}

fn no_panic(program: &Process) {
    assert!(program.is_running());
    let panics = program.lines("panicked");
    assert!(panics.is_empty(), "{panics:#?}");
}

#[test]
fn a_manager_that_answers_with_garbage_harms_no_caller_of_the_agents() {
    let peer = Peer::start(random());
    let app = App::start("app");
    let port = Port::tcp(app.address().port(), ports::free());
    let agent = Agent::start(&sidecar(peer.address(), vec![port]), |_| {});
    // Others that ask too: an agent takes its time between two sessions.
    let others = [0; 5].map(|_| {
        let port = Port::tcp(app.address().port(), ports::free());
        Agent::start(&sidecar(peer.address(), vec![port]), |_| {})
    });
    until("the agent to listen", || ask(&agent)().ok());
    let pid = agent.process.pid();
    let control = Calls::control(pid, ask(&agent));
    let pace = Pace::start(pid, ask(&agent));
    let wanted = calls() / 20;
    until_within(AGENT_TIMEOUT, "the agents to have asked often", || {
        (peer.answered() >= wanted || !agent.process.is_running()).then_some(())
    });
    pace.end().assert_unharmed(&control, AGENT_GROWTH);
    no_panic(&agent.process);
    others.iter().for_each(|other| no_panic(&other.process));
}

#[test]
fn a_manager_that_answers_with_garbage_ends_no_client_by_a_panic() {
    let peer = Peer::start(random());
    let manager = peer.address().to_string();
    let local = App::start("laptop").address().port();
    let port = format!("{local}:8080");
    let create = [
        "create",
        "mine",
        "--workload",
        WORKLOAD,
        "--namespace",
        NAMESPACE,
        "--port",
        &port,
        "--timeout",
        "5",
        "--http-header",
        "x-dev=me",
    ];
    let ingest = [
        "ingest",
        WORKLOAD,
        "--namespace",
        NAMESPACE,
        "--timeout",
        "5",
    ];
    let commands: [&[&str]; 6] = [
        &create,
        &["list"],
        &ingest,
        &["status"],
        &["leave", "mine"],
        &["uninstall", WORKLOAD],
    ];
    for round in 0..calls() / 100 {
        let mut command = Command::new(programs::path("intercept"));
        let arguments = commands[round % commands.len()];
        command.args(arguments).args(["--manager", &manager]);
        let client = Process::start("intercept", &mut command);
        let before = peer.answered();
        // Either it gives up, or it is asked for something again and again, until its user has enough.
        until("the client to end or to have had many answers", || {
            (!client.is_running() || peer.answered() > before + 50).then_some(())
        });
        client.terminate();
        let panics = client.lines("panicked");
        assert!(panics.is_empty(), "{arguments:?}: {panics:#?}");
    }
}
