//! Run of the program, from the command line to the exit code.

use std::io::Write;

use traffic_proto::log_level::LogLevel;

use crate::apply;
use crate::args::{self, Args, Form, Mode};
use crate::error::Error;
use crate::facts::{self, Env, Interfaces, Process};
use crate::plan::{self, Pod, PortPlan};
use crate::render;
use crate::settings::{self, Settings};

/// Runs the command line `words` and gives the exit code: 0, 1 when `--check` found a difference,
/// or an [`Error::exit_code`]. Results go to `out`, the log to `log`, one line each.
pub fn run(
    words: impl IntoIterator<Item = String>,
    env: Env<'_>,
    out: &mut dyn Write,
    log: &mut dyn Write,
) -> u8 {
    let mut log = Log {
        to: log,
        level: LogLevel::Info,
    };
    match args::parse(words).and_then(|args| dispatch(&args, env, out, &mut log)) {
        Ok(code) => code,
        Err(error) => {
            for line in error.to_string().lines() {
                log.line(LogLevel::Error, line);
            }
            error.exit_code()
        }
    }
}

fn dispatch(
    args: &Args,
    env: Env<'_>,
    out: &mut dyn Write,
    log: &mut Log<'_>,
) -> Result<u8, Error> {
    match args.mode {
        Mode::Help => print(out, args::HELP),
        Mode::Version => print(out, concat!("agent-init ", env!("CARGO_PKG_VERSION"), "\n")),
        Mode::Remove => {
            log.obey(env, None);
            let from = apply::remove()?;
            log.line(
                LogLevel::Info,
                &match from.as_slice() {
                    [] => "there was no rule of ours".to_owned(),
                    from => format!("took our rules away ({})", from.join(", ")),
                },
            );
            Ok(0)
        }
        Mode::DryRun(form) => {
            let wanted = Wanted::gather(args, env, log)?;
            let rules = wanted.rules();
            print(
                out,
                &match form {
                    Form::Iptables => render::iptables_text(&rules),
                    Form::Nft => render::nft_text(&rules),
                    Form::Json => render::json_text(&rules, &wanted.pod),
                },
            )
        }
        Mode::Check => {
            let wanted = Wanted::gather(args, env, log)?;
            let (differences, backend) = apply::differences(&wanted.rules(), args.backend)?;
            for line in &differences {
                print(out, &format!("{line}\n"))?;
            }
            match differences.len() {
                0 => print(out, &format!("in force ({backend})\n")),
                _ => print(out, &format!("not in force ({backend})\n")).map(|_| 1),
            }
        }
        Mode::Apply => put_into_force(args, env, log).inspect_err(|error| {
            // A failed run must not leave what an earlier one did: nobody would know which rules
            // hold.
            if matches!(error, Error::Config(_)) {
                apply::remove_quietly();
            }
        }),
    }
}

fn put_into_force(args: &Args, env: Env<'_>, log: &mut Log<'_>) -> Result<u8, Error> {
    let wanted = Wanted::gather(args, env, log)?;
    let rules = wanted.rules();
    if rules.is_empty() {
        log.line(
            LogLevel::Info,
            "no port is asked for by number: nothing to redirect",
        );
        apply::remove_quietly();
        return Ok(0);
    }
    let backend = apply::apply(&rules, args.backend)?;
    for port in &wanted.ports {
        log.line(LogLevel::Info, &wanted.told(port, backend));
    }
    log.line(
        LogLevel::Debug,
        &format!("{} rules are in force", rules.len()),
    );
    Ok(0)
}

/// Ports of the configuration and facts of the pod.
struct Wanted {
    ports: Vec<PortPlan>,
    pod: Pod,
}

impl Wanted {
    fn gather(args: &Args, env: Env<'_>, log: &mut Log<'_>) -> Result<Self, Error> {
        let Settings {
            ports,
            log_level,
            warnings,
        } = settings::read(args.config.as_deref(), env, args.root.as_deref())?;
        log.obey(env, log_level);
        for warning in warnings {
            log.line(LogLevel::Warning, &warning);
        }
        let interfaces: Interfaces = facts::interfaces();
        let (pod, warning) = facts::gather(env, &interfaces, Process::current())?;
        if let Some(warning) = warning {
            log.line(LogLevel::Warning, &warning);
        }
        Ok(Self { ports, pod })
    }

    fn rules(&self) -> Vec<crate::rule::Rule> {
        plan::plan(&self.ports, &self.pod)
    }

    /// Describes in one line what became of a port.
    fn told(&self, port: &PortPlan, backend: &str) -> String {
        let PortPlan {
            container,
            container_port,
            agent_port,
            proxy_port,
            transport,
            ..
        } = port;
        if !port.numeric {
            return format!(
                "{transport} {container_port} ({container}): named target port, not redirected"
            );
        }
        let addresses: Vec<String> = self.pod.addresses.iter().map(ToString::to_string).collect();
        format!(
            "{transport} {container_port} ({container}): callers reach the agent at {agent_port}, the agent ({}) \
             reaches the app by {proxy_port}; {backend}, {}",
            self.pod.agent,
            addresses.join(" ")
        )
    }
}

fn print(out: &mut dyn Write, text: &str) -> Result<u8, Error> {
    // A reader that closed our output does not want it.
    let _ = out.write_all(text.as_bytes());
    Ok(0)
}

/// Log: one line for each event, down to a level.
struct Log<'a> {
    to: &'a mut dyn Write,
    level: LogLevel,
}

impl Log<'_> {
    /// Sets the level: the configuration's wins over the environment's, as everywhere in this system.
    fn obey(&mut self, env: Env<'_>, configured: Option<LogLevel>) {
        let named = env("LOG_LEVEL").and_then(|word| word.parse().ok());
        self.level = configured.or(named).unwrap_or(LogLevel::Info);
    }

    fn line(&mut self, level: LogLevel, text: &str) {
        if level <= self.level {
            let _ = writeln!(self.to, "agent-init: {level}: {text}");
        }
    }
}
