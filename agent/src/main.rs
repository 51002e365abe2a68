//! The program: reads command line and environment, starts logging, runs the agent, maps the result
//! to an exit code.

#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use traffic_agent::app;
use traffic_agent::app::StartError;
use traffic_agent::app::readiness;
use traffic_agent::app::settings::Settings;
use traffic_agent::app::settings::cli;
use traffic_agent::app::settings::cli::{AgentArgs, Command};
use traffic_agent::app::settings::env::Env;
use traffic_agent::app::status;
use traffic_agent::telemetry::logging;
use traffic_agent::telemetry::logging::{Levels, LogControl, LogFormat};
use traffic_proto::build_info;
use traffic_proto::printable::printable;

/// Exit code for wrong configuration or usage (`EX_USAGE`).
const USAGE: u8 = 64;
/// Exit code for a listening port in use or a missing program (`EX_UNAVAILABLE`).
const UNAVAILABLE: u8 = 69;
/// Exit code for a bug in the agent (`EX_SOFTWARE`).
const SOFTWARE: u8 = 70;

/// Time the last log lines get to be written; a reader that stalls must not keep the process.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// The kernel refuses the capability that agent-init needs.
const NO_PERMISSION: u8 = 77;

fn main() -> ExitCode {
    if let Some(code) = readiness::as_stat(std::env::args_os()) {
        return code.into();
    }
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(told) => {
            let code = if told.use_stderr() { USAGE } else { 0 };
            // There is no other place to report to if standard output is closed.
            let _ = told.print();
            return code.into();
        }
    };
    match cli.command {
        None | Some(Command::Agent) => {
            // The panic's own message says what happened.
            std::panic::catch_unwind(|| agent(&cli.agent))
                .unwrap_or(SOFTWARE)
                .into()
        }
        Some(Command::AgentInit { args }) => init(args).into(),
        Some(Command::Ready { wait }) => {
            let root = cli.agent.root.unwrap_or_else(|| PathBuf::from("/"));
            readiness::ready(&root, Duration::from_millis(wait)).into()
        }
        Some(Command::Version) => {
            println!("traffic-agent {}", build_info::LONG);
            ExitCode::SUCCESS
        }
        Some(Command::Status { admin_port }) => status(admin_port, cli.agent.root).into(),
    }
}

fn agent(args: &AgentArgs) -> u8 {
    let settings = match Settings::load(args, &Env::of_process()) {
        Ok(settings) => settings,
        Err(faults) => {
            eprintln!("{faults}");
            return USAGE;
        }
    };
    if args.check {
        if let Err(faults) = app::check(&settings, args.strict).into_result() {
            eprintln!("{faults}");
            return USAGE;
        }
        println!("OK\n{}", app::summary(&settings).trim_end());
        return 0;
    }
    let levels = Levels::new(settings.log_level, settings.sidecar.envoy.log_level);
    let format = if settings.log_json {
        LogFormat::Json
    } else {
        LogFormat::Text
    };
    let log = match logging::start(levels, format) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("the log's writer thread could not be started: {error}");
            return SOFTWARE;
        }
    };
    // The panic's own line says what happened.
    let code = std::panic::catch_unwind(AssertUnwindSafe(|| run(settings, log.clone())))
        .unwrap_or(SOFTWARE);
    log.flush(LAST_LINES_TIMEOUT);
    code
}

fn run(settings: Settings, log: LogControl) -> u8 {
    let wrong = traffic_agent::app::settings::check::faults(&settings);
    for warning in settings.warnings.iter().chain(wrong.iter()) {
        tracing::warn!("{warning}");
    }
    match app::build(settings, log).and_then(app::RunningAgent::run) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error}");
            match error {
                StartError::Port(_) | StartError::Servers(_) => UNAVAILABLE,
                StartError::Threads(_) => SOFTWARE,
            }
        }
    }
}

/// Replaces this process with the init program that lies beside it.
fn init(args: Vec<OsString>) -> u8 {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("agent-init")));
    let program = beside
        .filter(|p| p.exists())
        .unwrap_or_else(|| PathBuf::from("agent-init"));
    let error = std::process::Command::new(&program).args(args).exec();
    if error.kind() == std::io::ErrorKind::PermissionDenied {
        eprintln!(
            "{}: cannot be started: {error}; it carries the capability NET_ADMIN, which this container drops: \
             add NET_ADMIN to its capabilities, or name the Service's target port so that no redirect is needed",
            program.display()
        );
        return NO_PERMISSION;
    }
    eprintln!(
        "{}: cannot be started: {error}; put the agent-init program beside traffic-agent",
        program.display()
    );
    UNAVAILABLE
}

fn status(admin_port: Option<u16>, root: Option<PathBuf>) -> u8 {
    let port = admin_port.map_or_else(
        || status::admin_port(root.as_deref().unwrap_or(Path::new("/"))),
        Ok,
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let told = match (port, runtime) {
        (Ok(port), Ok(runtime)) => runtime
            .block_on(status::table(port))
            .map_err(|e| e.to_string()),
        (Err(error), _) => Err(error.to_string()),
        (_, Err(error)) => Err(format!("no runtime: {error}")),
    };
    match told {
        Ok(table) => {
            // Names in it were chosen by others.
            for line in table.lines() {
                println!("{}", printable(line));
            }
            0
        }
        Err(problem) => {
            eprintln!("traffic-agent status: {}", printable(&problem));
            UNAVAILABLE
        }
    }
}
