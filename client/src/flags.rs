//! The command line and its translation to an intercept's spec. Flags are spelled as in the stock
//! client.

mod attach;
pub(crate) mod cluster;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use traffic_proto::port_identifier::PortIdentifier;

use crate::cluster::ClusterCommand;

pub use self::attach::{Attachment, ContainerFlags, Create, Ingest, Ports};
use self::attach::{header, socket_address};
pub use self::cluster::ClusterFlags;

/// Routes matching requests for a workload to this machine.
#[derive(Debug, Parser)]
#[command(name = "intercept", version = traffic_proto::build_info::LONG)]
pub struct Flags {
    /// Command to run.
    #[command(subcommand)]
    pub command: Command,
}

impl Flags {
    /// Notes the kind of attachment that the command's name says.
    #[must_use]
    pub fn with_kind(mut self) -> Self {
        match &mut self.command {
            Command::Wiretap(create) => create.kind = Attachment::Wiretap,
            Command::Replace(create) => create.kind = Attachment::Replace,
            _ => {}
        }
        self
    }
}

/// Command of the program.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create an intercept and serve it until interrupted
    Create(Box<Create>),
    /// Get copies of matching requests: the app answers, what this machine answers is dropped
    Wiretap(Box<Create>),
    /// Take the place of the app's container, which is away until you leave
    Replace(Box<Create>),
    /// Get a container's environment and volumes, and none of its traffic
    Ingest(Box<Ingest>),
    /// List all intercepts the manager knows, yours first
    List(List),
    /// Tell session, tunnels and failures of the intercepts that run on this machine
    Status(Status),
    /// Show the manager's page in a browser: who intercepts what, agents, clients
    Dashboard(Dashboard),
    /// Remove an intercept; the process that serves it ends
    Leave(Leave),
    /// Remove agents from workloads
    Uninstall(Uninstall),
    /// What takes a cluster.
    #[command(flatten)]
    Cluster(ClusterCommand),
    /// Say why a request with these headers would, or would not, come to a workstation
    Explain(Box<Explain>),
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages into a folder
    Man {
        /// The folder; it is made if it is not there
        folder: PathBuf,
    },
}

/// Flags of `explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// Workload whose agents are asked
    #[arg(
        long,
        short,
        default_value = "",
        hide_default_value = true,
        required_unless_present = "admin"
    )]
    pub workload: String,
    /// Namespace of the workload; by default the kubeconfig context's
    #[arg(long, short)]
    pub namespace: Option<String>,
    /// Header of the request; may be repeated
    #[arg(long = "http-header", visible_alias = "header", value_name = "NAME=VALUE", value_parser = header)]
    pub http_header: Vec<(String, String)>,
    /// Method of the request
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    pub method: String,
    /// Path of the request, possibly with a query
    #[arg(long, default_value = "/")]
    pub path: String,
    /// Port by number or name, optionally with /TCP or /UDP; by default the only one
    #[arg(long, short, value_name = "PORT")]
    pub port: Option<PortIdentifier>,
    /// Admin port of the agents
    #[arg(long, value_name = "NUMBER", default_value_t = 19000)]
    pub admin_port: u16,
    /// Address of an agent's admin port, instead of the workload's pods; may be repeated
    #[arg(long, value_name = "IP:PORT", value_parser = socket_address)]
    pub admin: Vec<SocketAddr>,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterFlags,
}

/// Flags of `uninstall`.
#[derive(Debug, Args)]
pub struct Uninstall {
    /// Workloads whose agents to remove
    #[arg(
        value_name = "WORKLOAD",
        required_unless_present = "all_agents",
        conflicts_with = "all_agents"
    )]
    pub workloads: Vec<String>,
    /// Remove the agents of all workloads of the namespace
    #[arg(long, short)]
    pub all_agents: bool,
    /// Namespace of the workloads; by default the kubeconfig context's
    #[arg(long, short, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Flags for the manager.
    #[command(flatten)]
    pub manager: ManagerFlags,
}

/// Address of the manager, and the name of the user.
#[derive(Debug, Args)]
pub struct ManagerFlags {
    /// Host and port of the traffic-manager; by default it is reached through the cluster of the
    /// kubeconfig
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_parser = manager_address,
        conflicts_with_all = ["context", "kubeconfig"]
    )]
    pub manager: Option<String>,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterFlags,
    /// Your name as colleagues see it
    #[arg(long, value_name = "USER@HOST", default_value_t = whoami())]
    pub client: String,
}

/// Form of what is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Flags of `list`.
#[derive(Debug, Args)]
pub struct List {
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
    /// Flags for the manager.
    #[command(flatten)]
    pub manager: ManagerFlags,
}

/// Flags of `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// Flags of `dashboard`.
#[derive(Debug, Args)]
pub struct Dashboard {
    /// Local port of the page, where it comes through the cluster; 0 for any free one
    #[arg(long, short, value_name = "NUMBER", default_value_t = 0)]
    pub port: u16,
    /// Open the page, with xdg-open or open
    #[arg(long)]
    pub open: bool,
    /// Flags for the manager.
    #[command(flatten)]
    pub manager: ManagerFlags,
}

/// Flags of `leave`.
#[derive(Debug, Args)]
pub struct Leave {
    /// Name or id of the intercept, as listed
    pub name: String,
    /// Flags for the manager.
    #[command(flatten)]
    pub manager: ManagerFlags,
}

/// Checks the address of a manager: HOST:PORT, or a URL with both.
fn manager_address(text: &str) -> Result<String, String> {
    let wrong = |why: &str| {
        Err(format!(
            "{text:?} {why}; write HOST:PORT, such as localhost:8081"
        ))
    };
    let authority = match text.split_once("://") {
        Some(("http", rest)) => rest.trim_end_matches('/'),
        Some((scheme, _)) => return wrong(&format!("has the scheme {scheme}, which is not http")),
        None => text,
    };
    let Some((host, port)) = authority.rsplit_once(':') else {
        return wrong("has no port");
    };
    if host.is_empty() {
        return wrong("has no host");
    }
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    if host.contains(|c: char| c.is_whitespace() || c == '/') || host.contains(':') && !is_bracketed
    {
        return wrong("has no valid host");
    }
    match port.parse::<u16>() {
        Ok(1..) => Ok(text.to_owned()),
        _ => wrong(&format!(
            "has the port {port:?}, which is not from 1 to 65535"
        )),
    }
}

fn whoami() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| "developer".into());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() {
        "localhost"
    } else {
        host.trim()
    };
    format!("{user}@{host}")
}

#[cfg(test)]
mod tests;
