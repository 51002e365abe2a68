//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use traffic_proto::build_info;

/// The sidecar of an intercepted pod: requests that no intercept matches reach the app unchanged.
///
/// The configuration is searched in this order: --config FILE; /etc/podinfo/annotations
/// (telepresence.io/agent-config); AGENT_CONFIG; /etc/traffic-agent/config.yaml.
#[derive(Debug, Parser)]
#[command(
    name = "traffic-agent",
    version = build_info::LONG,
    args_conflicts_with_subcommands = false
)]
pub struct Cli {
    /// Command to run; by default: agent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of the agent.
    #[command(flatten)]
    pub agent: AgentArgs,
}

/// Command of the program.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the sidecar (the default).
    Agent,
    /// Start the init program beside this one with the following arguments.
    #[command(disable_help_flag = true, disable_help_subcommand = true)]
    AgentInit {
        /// Arguments of the init program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Wait briefly until the running agent has arrived at a traffic-manager: the readiness probe.
    Ready {
        /// Milliseconds to wait; below the probe's own timeout, so that it sees the answer.
        #[arg(long, value_name = "MILLISECONDS", default_value_t = 800)]
        wait: u64,
    },
    /// Print the version.
    Version,
    /// Show the state of the running agent: ports, protocols, intercepts, traffic.
    Status {
        /// Admin port of the running agent; by default as in <root>/tmp/agent/ports.json.
        #[arg(long, value_name = "PORT")]
        admin_port: Option<u16>,
    },
}

/// Options of the agent.
#[derive(Clone, Debug, Default, Args)]
pub struct AgentArgs {
    /// Read the configuration from this file (YAML or JSON).
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Check the configuration, print its effect, and exit.
    #[arg(long, global = true)]
    pub check: bool,
    /// With --check: take warnings, such as unknown keys, for faults.
    #[arg(long, global = true, requires = "check")]
    pub strict: bool,
    /// Put DIR before every well-known absolute path (not before --config FILE).
    #[arg(long, value_name = "DIR", global = true)]
    pub root: Option<PathBuf>,
}

/// Reads the command line.
///
/// # Errors
/// Usage errors, and the texts of `--help` and `--version`.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut command = Cli::command().after_help(crate::app::settings::env::help());
    let cli = Cli::from_arg_matches(&command.try_get_matches_from_mut(args)?)?;
    match (&cli.command, cli.agent.of_the_agent()) {
        (None | Some(Command::Agent), _) | (_, None) => Ok(cli),
        (Some(_), Some(flag)) => Err(command.error(
            ErrorKind::ArgumentConflict,
            format!("{flag} belongs to the agent itself: leave the command or the flag out"),
        )),
    }
}

impl AgentArgs {
    /// Returns a given flag that means nothing to other commands than the agent.
    fn of_the_agent(&self) -> Option<&'static str> {
        let Self {
            config,
            check,
            strict,
            root: _,
        } = self;
        let given = [
            (config.is_some(), "--config"),
            (*check, "--check"),
            (*strict, "--strict"),
        ];
        let found = given.into_iter().find(|(is_given, _)| *is_given);
        found.map(|(_, flag)| flag)
    }
}
