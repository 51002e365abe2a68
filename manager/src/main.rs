//! The program: options or a cluster's environment, logging, and serving until the first signal.

#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;
use traffic_manager::{ClusterCommand, ClusterSettings, Ended, LogLevels, Settings};
use traffic_proto::build_info;
use traffic_proto::dial_policy::{AddressRange, NoRange};
use traffic_proto::duration::GoDuration;
use traffic_proto::log_queue::{LogEvent, LogQueue};
use traffic_proto::printable::Notation;

/// Exit code of wrong usage or configuration.
const USAGE: u8 = 64;
/// Exit code of something that is not there, or does not answer.
const UNAVAILABLE: u8 = 69;

/// Time the last log lines get to be written.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// Queue of log lines, once logging has begun.
static LOG: OnceLock<Arc<LogQueue>> = OnceLock::new();

/// A traffic-manager for agents and workstations: in a cluster by the environment that the chart
/// sets, elsewhere in one process by the options here.
#[derive(Parser)]
#[command(version = build_info::LONG)]
struct Program {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
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
    /// How long a client may be away until its intercepts end, where it comes back by itself
    #[arg(long, default_value = "2m", value_parser = duration)]
    client_grace: Duration,
    /// Time without contact after which an agent counts as gone
    #[arg(long, default_value = "15s", value_parser = duration)]
    agent_ttl: Duration,
    /// Time a new intercept waits for an agent of its workload to connect
    #[arg(long, default_value = "5s", value_parser = duration)]
    agent_arrival: Duration,
    /// Name of an environment variable that is not passed on to workstations, or a pattern with *;
    /// may be repeated
    #[arg(long, value_name = "VARIABLE")]
    exclude_env: Vec<String>,
    /// Link-local address, or range of them, that is dialled for workstations nevertheless; may be
    /// repeated. DIAL_ALLOW lists more, separated by commas
    #[arg(long, value_name = "ADDRESS[/BITS]")]
    dial_allow: Vec<AddressRange>,
    /// Name reported by the Version call
    #[arg(long, default_value_t = Settings::default().name)]
    name: String,
    /// Version reported by the Version call; clients choose their calls by it
    #[arg(long, default_value_t = Settings::default().version)]
    version_string: String,
    /// Manage the cluster of the kubeconfig, by the environment that the chart would set
    #[arg(long)]
    cluster: bool,
}

/// Roles of the image, and commands of the chart's hooks.
#[derive(Subcommand)]
enum Command {
    /// Serve (the default)
    Manager,
    /// What takes Kubernetes.
    #[command(flatten)]
    Cluster(ClusterCommand),
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
async fn one_off(command: Option<&Command>) -> Option<Result<(), (u8, String)>> {
    match command? {
        Command::Manager => None,
        Command::Version { of: None } => {
            println!("traffic-manager {}", build_info::LONG);
            Some(Ok(()))
        }
        Command::Version { of: Some(address) } => {
            let version = traffic_manager::commands::version_of(address).await;
            let failed = |error| format!("no traffic-manager at {address}: {error}");
            let version = version.map_err(|error| (UNAVAILABLE, failed(error)));
            Some(version.map(|version| println!("{version}")))
        }
        Command::Cluster(command) => {
            let said = command.run().await.map_err(|error| (USAGE, error));
            Some(said.map(|text| print!("{text}")))
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

fn main() -> ExitCode {
    let program = match Program::try_parse() {
        Ok(program) => program,
        Err(error) => {
            // There is nowhere else to say that it cannot be printed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(UNAVAILABLE, &format!("no runtime: {error}")),
    };
    let code = runtime.block_on(run(program));
    flush_log();
    // A name look-up has a thread of its own, which may not end for long.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

async fn run(program: Program) -> ExitCode {
    // All crates use one; the first call decides, and this is the first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if let Some(done) = one_off(program.command.as_ref()).await {
        return match done {
            Ok(()) => ExitCode::SUCCESS,
            Err((code, error)) => failed(code, &error),
        };
    }
    match serve(program.options).await {
        Ok(code) => code,
        Err(error) => failed(UNAVAILABLE, &format!("{error:#}")),
    }
}

fn failed(code: u8, error: &str) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(code)
}

async fn serve(options: Options) -> anyhow::Result<ExitCode> {
    let variable = |name: &str| std::env::var(name).ok();
    let mut dial_allow = options.dial_allow.clone();
    for range in variable("DIAL_ALLOW").unwrap_or_default().split([',', ' ']) {
        match range.parse() {
            Ok(range) => dial_allow.push(range),
            Err(_) if range.is_empty() => {}
            Err(NoRange) => {
                eprintln!(
                    "DIAL_ALLOW={range:?}: {NoRange}; write 169.254.20.10 or 169.254.20.0/24"
                );
                return Ok(ExitCode::from(USAGE));
            }
        }
    }
    // Charts set the port; other pods of a cluster have the first variable as well.
    let in_cluster =
        variable("KUBERNETES_SERVICE_HOST").is_some() && variable("SERVER_PORT").is_some();
    if !in_cluster && !options.cluster {
        let log = log(options.log_level);
        let listen = options.listen;
        let settings = Settings {
            log,
            dial_allow,
            ..own(options)
        };
        return serve_on(listen, settings, "choose another --listen").await;
    }
    let settings = match ClusterSettings::read(variable) {
        Ok(settings) => settings,
        Err(faults) => {
            eprintln!("{faults}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    let log = log(traffic_manager::level(&settings.log_level));
    for ignored in &settings.ignored {
        tracing::warn!("{ignored}");
    }
    let listen = settings.listen();
    let remedy = "choose another SERVER_PORT";
    let settings = Settings {
        log,
        dial_allow,
        ..Settings::of_cluster(settings)
    };
    serve_on(listen, settings, remedy).await
}

fn own(options: Options) -> Settings {
    Settings {
        name: options.name,
        version: options.version_string,
        namespace: options.namespace,
        client_ttl: options.client_ttl,
        client_grace: options.client_grace,
        agent_ttl: options.agent_ttl,
        agent_arrival: options.agent_arrival,
        excluded_env: options.exclude_env,
        ..Settings::default()
    }
}

async fn serve_on(
    listen: SocketAddr,
    settings: Settings,
    remedy: &str,
) -> anyhow::Result<ExitCode> {
    let stop = CancellationToken::new();
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let mut is_new = true;
    loop {
        let bound = traffic_manager::bind(listen, settings.clone()).await;
        let bound = bound.with_context(|| format!("cannot listen on {listen}; {remedy}"))?;
        println!("listening={}", bound.address());
        let bound = if is_new { bound } else { bound.waiting() };
        is_new = false;
        let server = bound.run(stop.clone());
        tokio::pin!(server);
        let ended = tokio::select! {
            ended = &mut server => ended,
            _ = interrupt.recv() => stop_and(&stop, server).await,
            _ = terminate.recv() => stop_and(&stop, server).await,
        };
        if ended? == Ended::Stopped {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

async fn stop_and<F: Future>(stop: &CancellationToken, server: F) -> F::Output {
    stop.cancel();
    server.await
}

/// Starts the log and returns the way to change its level.
fn log(level: Level) -> LogLevels {
    let (filter, changing) = reload::Layer::new(targets(level));
    // A reader of the log that stalls must not stop the manager.
    let lines = LogQueue::start("log", std::io::stderr(), Some(Notation::Text), said);
    let lines = match lines {
        Ok(lines) => Arc::new(lines),
        Err(error) => {
            eprintln!("the log stays off: its writer thread could not be started: {error}");
            return LogLevels::default();
        }
    };
    let _ = LOG.set(Arc::clone(&lines));
    let to_stderr = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(lines);
    tracing_subscriber::registry()
        .with(filter)
        .with(to_stderr)
        .init();
    LogLevels::new(level, move |level| {
        // It fails only when the subscriber is gone, and then there is no log.
        let _ = changing.reload(targets(level));
    })
}

/// Libraries log from warnings up; their details are for their own developers.
fn targets(level: Level) -> Targets {
    Targets::new()
        .with_default(Level::WARN)
        .with_targets([("traffic_manager", level), ("traffic_proto", level)])
}

fn said(event: LogEvent<'_>) {
    if let LogEvent::Resumed(dropped) = event {
        tracing::warn!(
            dropped,
            "log: lines were dropped because the reader of standard error stalled"
        );
    }
}

/// Waits for the last lines; a reader that stalls must not keep the process.
fn flush_log() {
    if let Some(lines) = LOG.get() {
        lines.flush(LAST_LINES_TIMEOUT);
    }
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
