//! The program: flags, signals, exit codes (0 done, 1 failed, 64 wrong usage, 130 interrupted).

#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use intercept::flags::{Command, Flags};
use intercept::{Failure, Stop};
use tokio::signal::unix::{SignalKind, signal};
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use traffic_proto::log_queue::LogQueue;
use traffic_proto::printable::{Notation, printable};

/// Time the last log lines get to be written.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// Exit code of an interrupted command, as shells have it.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let flags = match Flags::try_parse().map(Flags::with_kind) {
        Ok(flags) => flags,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let asked = std::env::var("RUST_LOG")
        .ok()
        .and_then(|filter| filter.parse::<Targets>().ok());
    let filter = asked.unwrap_or_else(|| Targets::new().with_default(Level::ERROR));
    // A terminal that has been stopped must not stop the tunnels.
    let lines = LogQueue::start("log", std::io::stderr(), Some(Notation::Text), |_| {});
    let lines = match lines {
        Ok(lines) => Arc::new(lines),
        Err(error) => {
            eprintln!("intercept: no thread for the log: {error}");
            return ExitCode::FAILURE;
        }
    };
    let to_stderr = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(Arc::clone(&lines));
    tracing_subscriber::registry()
        .with(to_stderr)
        .with(filter)
        .init();
    let stop = Stop::default();
    if let Err(error) = stop_on_signals(stop.clone()) {
        eprintln!("intercept: cannot wait for signals: {error}");
        return ExitCode::FAILURE;
    }
    let done = run(&flags.command, stop).await;
    lines.flush(LAST_LINES_TIMEOUT);
    exit_code(done)
}

/// Exit code of a command that has ended; says what failed.
fn exit_code(done: Result<(), Failure>) -> ExitCode {
    let failure = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Command(code)) => return ExitCode::from(code),
        Err(Failure::Interrupted) => return ExitCode::from(INTERRUPTED),
        Err(failure) => failure,
    };
    // Reasons come from the cluster; each of their lines stays one.
    for line in format!("intercept: {failure}").lines() {
        eprintln!("{}", printable(line));
    }
    match failure {
        Failure::Usage(_) => ExitCode::from(64),
        _ => ExitCode::FAILURE,
    }
}

/// Runs a command. Those that leave nothing behind end at once when the user interrupts them.
async fn run(command: &Command, stop: Stop) -> Result<(), Failure> {
    let interrupted = stop.orderly.clone();
    let work = async {
        match command {
            Command::List(flags) => intercept::list(flags).await,
            Command::Status(flags) => intercept::status::status(flags).await,
            Command::Dashboard(flags) => intercept::dashboard::dashboard(flags).await,
            Command::Leave(flags) => intercept::leave(flags).await,
            Command::Uninstall(flags) => intercept::uninstall::uninstall(flags).await,
            Command::Explain(flags) => intercept::explain(flags).await,
            Command::Cluster(command) => command.run().await,
            Command::Completions { shell } => {
                intercept::generate::completions(*shell);
                Ok(())
            }
            Command::Man { folder } => intercept::generate::man(folder),
            Command::Create(create) | Command::Wiretap(create) | Command::Replace(create) => {
                intercept::create(create, stop).await
            }
            Command::Ingest(flags) => intercept::ingest(flags, stop).await,
        }
    };
    let cleans_up = match command {
        Command::Create(_) | Command::Wiretap(_) | Command::Replace(_) | Command::Ingest(_) => true,
        // A half-done release is worse than waiting.
        Command::Cluster(command) => command.cleans_up(),
        _ => false,
    };
    if cleans_up {
        return work.await;
    }
    let done = interrupted.run_until_cancelled(work).await;
    done.unwrap_or(Err(Failure::Interrupted))
}

/// Handles signals: the first asks for an orderly end, the second does not wait for connections, and
/// the third exits at once.
fn stop_on_signals(stop: Stop) -> std::io::Result<()> {
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    #[expect(clippy::disallowed_methods, reason = "it lives as long as the program")]
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.at_once.is_cancelled() {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the third signal asks for exactly that"
                )]
                std::process::exit(1);
            }
            if stop.orderly.is_cancelled() {
                stop.at_once.cancel();
            }
            stop.orderly.cancel();
        }
    });
    Ok(())
}
