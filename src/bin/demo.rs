//! Demo of the main use: an app behind the agent, a manager, and two workstations that each take
//! the requests with their own header. Every part is a separate process on loopback. Exits 0 if
//! every request got the right answer, else 1. `SERVE=1` keeps it running and prints commands to
//! try.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::process::{Command, ExitCode};

use harness::caller::{Caller, get};
use harness::process::Process;
use harness::sidecar::Port;
use harness::system::{Agent, WORKLOAD, sidecar, start_manager};
use harness::{ports, programs};

/// Requests over one connection, interleaved.
const REQUESTS: usize = 300;

fn main() -> ExitCode {
    // A panic prints its reason itself; unwinding stops all started programs.
    std::panic::catch_unwind(demo).unwrap_or(ExitCode::FAILURE)
}

fn demo() -> ExitCode {
    println!("Starting all parts (logs are shown on failure)");
    let (_app, app) = start_app("app");
    let (_local_a, local_a) = start_app("laptop-a");
    let (_local_b, local_b) = start_app("laptop-b");
    let (manager, manager_address) = start_manager(0);
    say("app", &_app, app);
    say("traffic-manager", &manager, manager_address);
    let agent = Agent::start(
        &sidecar(manager_address, vec![Port::tcp(app.port(), ports::free())]),
        |_| {},
    );
    agent.ready();
    let pod = agent.address();
    say("traffic-agent", &agent.process, pod);
    let intercepts = [("a", local_a), ("b", local_b)].map(|(dev, local)| {
        let intercept = start_intercept(manager_address, dev, local, app.port());
        println!(
            "  {:<16} pid {:<7} x-dev: {dev} -> {local}",
            "intercept",
            intercept.pid()
        );
        intercept
    });

    let wrong = one_by_one(pod) + over_one_connection(pod);
    println!(
        "\nCallers used the pod's only port and did not notice the agent.\n\
         Requests with a developer's header were answered on that developer's machine, through a \
         gRPC tunnel.\n\
         All others reached the app unchanged, on the same connections."
    );
    if std::env::var_os("SERVE").is_some_and(|value| value != "0") {
        // A terminal interrupts the other programs as well, so nothing can be asked of them
        // afterwards.
        serve(pod);
        for intercept in &intercepts {
            intercept.terminate();
        }
        println!("\nStopped.");
        return exit_code(wrong);
    }
    for intercept in intercepts {
        intercept.terminate();
    }
    let back = get(pod, "/", &[("x-dev", "a")]).unwrap();
    println!(
        "\nAfter both intercepts ended, x-dev: a is answered by {}",
        back.by()
    );
    exit_code(wrong + usize::from(back.by() != "app"))
}

/// Returns success if no request got a wrong answer, and says how many did.
fn exit_code(wrong: usize) -> ExitCode {
    if wrong == 0 {
        return ExitCode::SUCCESS;
    }
    println!("{wrong} requests got the wrong answer");
    ExitCode::FAILURE
}

fn start_app(name: &str) -> (Process, SocketAddr) {
    let process = Process::start(name, Command::new(programs::path("app")).arg(name));
    let address = process
        .line("listening=")
        .trim_start_matches("listening=")
        .parse()
        .unwrap();
    (process, address)
}

fn start_intercept(
    manager: SocketAddr,
    dev: &str,
    local: SocketAddr,
    container_port: u16,
) -> Process {
    let mut command = Command::new(programs::path("intercept"));
    command.args([
        "create",
        &format!("{WORKLOAD}-{dev}"),
        "--workload",
        WORKLOAD,
    ]);
    command.args([
        "--port",
        &format!("{}:{container_port}", local.port()),
        "--http-header",
        &format!("x-dev={dev}"),
    ]);
    command.args([
        "--client",
        &format!("{dev}@laptop-{dev}"),
        "--manager",
        &manager.to_string(),
    ]);
    let process = Process::start(&format!("intercept {dev}"), &mut command);
    process.line("state=ACTIVE");
    process
}

fn say(what: &str, process: &Process, address: SocketAddr) {
    println!("  {what:<16} pid {:<7} {address}", process.pid());
}

/// Sends requests on separate connections; returns the number of wrong answers.
fn one_by_one(pod: SocketAddr) -> usize {
    println!(
        "\n  {:<28} {:<12} {:<12}",
        "request to the pod", "expected", "answered by"
    );
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[], "app"),
        (&[("x-dev", "a")], "laptop-a"),
        (&[("x-dev", "b")], "laptop-b"),
        (&[("X-DEV", "a")], "laptop-a"),
        (&[("x-dev", "c")], "app"),
        (&[("x-other", "a")], "app"),
    ];
    let mut wrong = 0;
    for (headers, expected) in cases {
        let header: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        let shown = if header.is_empty() {
            "(no header)".into()
        } else {
            header.join(", ")
        };
        let answer = get(pod, "/", headers).unwrap();
        let mark = if answer.by() == expected {
            ""
        } else {
            "  WRONG"
        };
        println!(
            "  GET / {shown:<22} {expected:<12} {:<12}{mark}",
            answer.by()
        );
        wrong += usize::from(answer.by() != expected);
    }
    wrong
}

/// Sends requests for all three in turn on one keep-alive connection; returns the number of wrong
/// answers.
fn over_one_connection(pod: SocketAddr) -> usize {
    let mut caller = Caller::connect(pod).unwrap();
    let turns: [(&[(&str, &str)], &str); 3] = [
        (&[], "app"),
        (&[("x-dev", "a")], "laptop-a"),
        (&[("x-dev", "b")], "laptop-b"),
    ];
    let mut right = [0; 3];
    for number in 0..REQUESTS {
        let (headers, expected) = turns[number % 3];
        right[number % 3] += usize::from(caller.get("/", headers).unwrap().by() == expected);
    }
    let expected = REQUESTS / 3;
    println!("\n  {REQUESTS} requests in turn on one connection");
    for ((_, name), right) in turns.iter().zip(right) {
        println!("  {name:<28} {expected:<12} {right:<12}");
    }
    REQUESTS - right.iter().sum::<usize>()
}

/// Keeps running until interrupted.
fn serve(pod: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).unwrap();
        let mut interrupt = signal(SignalKind::interrupt()).unwrap();
        // Said only now: whoever reads it may interrupt at once.
        println!("\nEverything stays up until interrupted. Try:");
        println!(
            "  curl -si http://{pod}/\n  curl -si -H 'x-dev: a' http://{pod}/\n  curl -si -H \
            'x-dev: b' http://{pod}/"
        );
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
}
