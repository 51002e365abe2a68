//! The program: options, logging, and serving until the first signal.

#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
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

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        #[expect(clippy::disallowed_methods, reason = "nothing runs yet")]
        std::process::exit(if error.use_stderr() { 64 } else { 0 })
    });
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
