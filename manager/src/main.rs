//! The program: options, logging, and serving until the first signal.

#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use traffic_manager::Settings;
use traffic_proto::duration::GoDuration;

/// A traffic-manager for agents and workstations, in one process and without Kubernetes.
#[derive(Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// Address and port to listen on; port 0 lets the kernel choose
    #[arg(long, default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// Log level: error, warn, info, debug or trace
    #[arg(long, default_value = "info")]
    log_level: tracing::Level,
    /// Namespace of the manager itself
    #[arg(long, default_value_t = Settings::default().namespace)]
    namespace: String,
    /// Time without contact after which a workstation counts as gone
    #[arg(long, default_value = "24h", value_parser = duration)]
    client_ttl: Duration,
    /// Time without contact after which an agent counts as gone
    #[arg(long, default_value = "15s", value_parser = duration)]
    agent_ttl: Duration,
    /// Time a new intercept waits for an agent of its workload to connect
    #[arg(long, default_value = "5s", value_parser = duration)]
    agent_arrival: Duration,
    /// Name of an environment variable that is not passed on to workstations; may be repeated
    #[arg(long, value_name = "VARIABLE")]
    exclude_env: Vec<String>,
    /// Name reported by the Version call
    #[arg(long, default_value_t = Settings::default().name)]
    name: String,
    /// Version reported by the Version call; clients choose their calls by it
    #[arg(long, default_value_t = Settings::default().version)]
    version_string: String,
}

/// Roles of the image, and commands of the chart's hooks.
#[derive(Subcommand)]
enum Command {
    /// Serve (the default)
    Manager,
    /// Print the version, or that of a running manager
    Version {
        /// Address of the manager to ask
        #[arg(long, value_name = "HOST:PORT")]
        of: Option<String>,
    },
    /// Ask the manager to remove all agents; the exit code is 0 also when it cannot be reached, so that
    /// nothing is held up
    Uninstall {
        /// Address of the manager's webhook
        #[arg(long, value_name = "https://HOST:PORT/uninstall")]
        url: hyper::Uri,
        /// CA of the webhook's certificate
        #[arg(long, value_name = "FILE")]
        ca_file: PathBuf,
        /// Time for the agents to go
        #[arg(long, default_value = "3m", value_parser = duration)]
        timeout: Duration,
    },
}

/// Runs the command, unless it is to serve.
async fn one_off(command: Option<&Command>) -> Option<anyhow::Result<()>> {
    match command? {
        Command::Manager => None,
        Command::Version { of: None } => {
            println!("traffic-manager {}", env!("CARGO_PKG_VERSION"));
            Some(Ok(()))
        }
        Command::Version { of: Some(address) } => {
            let version = traffic_manager::commands::version_of(address).await;
            let version = version.with_context(|| format!("no traffic-manager at {address}"));
            Some(version.map(|version| println!("{version}")))
        }
        Command::Uninstall {
            url,
            ca_file,
            timeout,
        } => {
            match traffic_manager::commands::uninstall(url, ca_file, *timeout).await {
                Ok(()) => println!("all agents are removed"),
                Err(error) => eprintln!(
                    "agents may stay: {error}; they go on relaying until their pods restart"
                ),
            }
            Some(Ok(()))
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        #[expect(clippy::disallowed_methods, reason = "nothing runs yet")]
        std::process::exit(if error.use_stderr() { 64 } else { 0 })
    });
    if let Some(done) = one_off(options.command.as_ref()).await {
        return done;
    }
    // Libraries log from warnings up; their details are for their own developers.
    let level = options.log_level;
    let filter = Targets::new()
        .with_default(Level::WARN)
        .with_targets([("traffic_manager", level), ("traffic_proto", level)]);
    let to_stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry()
        .with(to_stderr)
        .with(filter)
        .init();
    let settings = Settings {
        name: options.name,
        version: options.version_string,
        namespace: options.namespace,
        client_ttl: options.client_ttl,
        agent_ttl: options.agent_ttl,
        agent_arrival: options.agent_arrival,
        excluded_env: options.exclude_env,
        ..Settings::default()
    };
    let bound = traffic_manager::bind(options.listen, settings).await;
    let bound = bound.with_context(|| {
        format!(
            "cannot listen on {}; choose another --listen",
            options.listen
        )
    })?;
    println!("listening={}", bound.address());
    let stop = CancellationToken::new();
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let server = bound.run(stop.clone());
    tokio::pin!(server);
    tokio::select! {
        served = &mut server => return Ok(served?),
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    stop.cancel();
    Ok(server.await?)
}

/// Parses a duration in Go's notation, not negative.
fn duration(text: &str) -> Result<Duration, String> {
    let duration: GoDuration = text
        .parse()
        .map_err(|error| format!("{error}; write 15s, 10m or 24h"))?;
    duration
        .to_std()
        .ok_or_else(|| "negative; write 15s, 10m or 24h".into())
}
