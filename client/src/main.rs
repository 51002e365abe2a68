//! The program: flags, signals, exit codes (0 done, 1 failed, 64 wrong usage).

#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]

use std::process::ExitCode;

use clap::Parser;
use intercept::flags::{Command, Flags};
use intercept::{Failure, Stop};
use tokio::signal::unix::{SignalKind, signal};
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

#[tokio::main]
async fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
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
    let to_stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry()
        .with(to_stderr)
        .with(filter)
        .init();
    let stop = Stop::default();
    if let Err(error) = stop_on_signals(stop.clone()) {
        eprintln!("intercept: cannot wait for signals: {error}");
        return ExitCode::FAILURE;
    }
    let done = match &flags.command {
        Command::Create(create) => intercept::create(create, stop).await,
        Command::List(manager) => intercept::list(manager).await,
        Command::Leave(leave) => intercept::leave(leave).await,
        Command::Helm(command) => intercept::helm::run(command).await,
        Command::Genyaml(flags) => intercept::genyaml::run(flags).await,
        Command::Check(flags) => {
            intercept::cluster::check(&flags.cluster, flags.namespace.as_deref()).await
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("intercept: {failure}");
            match failure {
                Failure::Usage(_) => ExitCode::from(64),
                Failure::Failed(_) => ExitCode::FAILURE,
            }
        }
    }
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
