//! The command line and its translation to an intercept's spec. Flags are spelled as in the stock
//! client.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use traffic_proto::Transport;
use traffic_proto::manager::InterceptSpec;
use traffic_proto::port_identifier::PortIdentifier;
use traffic_proto::tunnel::nanos_from_duration;

use crate::cluster::kubeconfig::ClusterFlags;
use crate::environment::Syntax;
use crate::filters;
use crate::genyaml::flags::Genyaml;
use crate::helm::flags::HelmCommand;
use crate::matchers::Matchers;
use crate::mount::wanted::Wanted;

/// Time for the round trip to a workstation, in addition to a dial, as granted by the stock client.
const ROUNDTRIP_TIMEOUT: Duration = Duration::from_secs(4);
/// Time for a dial on the workstation.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

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
        if let Command::Wiretap(create) = &mut self.command {
            create.kind = Attachment::Wiretap;
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
    /// Install, upgrade or uninstall the traffic-manager
    #[command(subcommand)]
    Helm(HelmCommand),
    /// Say why a request with these headers would, or would not, come to a workstation
    Explain(Box<Explain>),
    /// Look for everything an intercept takes
    Check(Check),
    /// Print the agent of a workload, to put it into a manifest by hand
    Genyaml(Box<Genyaml>),
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
    /// Container port; by default the only one
    #[arg(long, short, value_name = "NUMBER")]
    pub port: Option<u16>,
    /// Admin port of the agents
    #[arg(long, value_name = "NUMBER", default_value_t = 19000)]
    pub admin_port: u16,
    /// Address of an agent's admin port, instead of the workload's pods; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    pub admin: Vec<SocketAddr>,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterFlags,
}

/// Flags of `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Namespace of the workloads to intercept; by default the context's
    #[arg(long, short, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
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

/// Flags of `create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Name of the intercept, unique among yours
    pub name: String,
    /// Workload whose traffic to take; by default the intercept's name
    #[arg(long, short)]
    pub workload: Option<String>,
    /// Namespace of the workload; by default the kubeconfig context's
    #[arg(long, short)]
    pub namespace: Option<String>,
    /// Local port, and the container port by number or name, optionally with /TCP or /UDP
    #[arg(long, short, value_name = "LOCAL[:IDENTIFIER]")]
    pub port: Ports,
    /// Local host that requests are delivered to
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub address: String,
    /// Take requests with this header; several must all match. A value with one of \.+*?()[]{}^$|
    /// is a regular expression that may match anywhere in the header: user=jane.doe also takes
    /// maryjane.doe2
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    pub http_header: Vec<(String, String)>,
    /// Take requests with exactly this header
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    pub http_header_exact: Vec<(String, String)>,
    /// Take requests for exactly this path; one of several path flags must match
    #[arg(long, value_name = "PATH")]
    pub http_path_equal: Vec<String>,
    /// Take requests for paths with this prefix
    #[arg(long, value_name = "PREFIX")]
    pub http_path_prefix: Vec<String>,
    /// Take requests for paths in which this regular expression matches
    #[arg(long, value_name = "REGEX")]
    pub http_path_regex: Vec<String>,
    /// Matchers of parts of the request.
    #[command(flatten)]
    pub matchers: Matchers,
    /// Deliver in clear text even if the app is spoken to over TLS
    #[arg(long)]
    pub http_plaintext: bool,
    /// Key-value pair that the REST API of both ends answers with; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub metadata: Vec<(String, String)>,
    /// Mechanism: tcp or http; by default http with a flag that looks at requests, else tcp
    #[arg(long)]
    pub mechanism: Option<String>,
    /// Write the container's environment to this file once the intercept is active
    #[arg(long, short, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// Syntax of the file: docker, compose, sh, csh, ps or cmd; :export behind sh, csh and ps
    /// exports the variables
    #[arg(
        long,
        value_name = "SYNTAX",
        default_value = "docker",
        requires = "env_file"
    )]
    pub env_syntax: Syntax,
    /// Write the container's environment to this file as a JSON object
    #[arg(long, value_name = "FILE")]
    pub env_json: Option<PathBuf>,
    /// Mount the volumes of the container by sshfs, in this folder or, without a name, in a new one;
    /// TELEPRESENCE_ROOT of the environment says where. false: do not
    #[arg(
        long,
        value_name = "FOLDER",
        num_args = 0..=1,
        default_value = "false",
        hide_default_value = true,
        default_missing_value = "true"
    )]
    pub mount: Wanted,
    /// Address of the agent's own port, instead of its pod's; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    pub agent: Vec<SocketAddr>,
    /// Send all connections through the manager
    #[arg(long)]
    pub no_direct: bool,
    /// Form of the output: lines, or a JSON object for each event
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
    /// Seconds to wait for the intercept to become active
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub timeout: u64,
    /// Flags for the manager.
    #[command(flatten)]
    pub manager: ManagerFlags,
    /// Kind of attachment, by the command's name.
    #[arg(skip)]
    pub kind: Attachment,
    /// Command to run with the container's environment once the intercept is active; the intercept
    /// ends with it, and its exit code is passed on
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Kind of attachment that a command makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attachment {
    /// Matching requests come here.
    #[default]
    Intercept,
    /// Copies of matching requests come here.
    Wiretap,
}

/// Value of `--port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Local port that requests are delivered to.
    pub local: u16,
    /// Port of the workload as typed; empty if left out.
    pub identifier: String,
    /// Transport of the identifier.
    pub transport: Transport,
}

impl std::str::FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (local, identifier) = text.split_once(':').unwrap_or((text, ""));
        let number = local.parse().ok().filter(|port| *port != 0);
        let local =
            number.ok_or_else(|| format!("{local:?} is not a port number; write 1 to 65535"))?;
        let transport = match identifier {
            "" if text.ends_with(':') => {
                return Err("nothing after the colon; write LOCAL or LOCAL:IDENTIFIER".into());
            }
            "" => Transport::Tcp,
            _ => identifier
                .parse::<PortIdentifier>()
                .map_err(|error| error.to_string())?
                .transport_or_tcp(),
        };
        Ok(Self {
            local,
            identifier: identifier.to_owned(),
            transport,
        })
    }
}

impl Create {
    /// Returns the requested workload.
    pub fn workload(&self) -> &str {
        self.workload.as_ref().unwrap_or(&self.name)
    }

    /// Builds the spec to send to the manager, with requests delivered to `target`. An error is the
    /// user's mistake.
    pub fn spec(&self, namespace: &str, target: SocketAddr) -> Result<InterceptSpec, String> {
        let mut header_filters = BTreeMap::new();
        let exact = self.http_header_exact.iter();
        let exact = exact.map(|(name, text)| (name.clone(), filters::exact(text)));
        for (name, value) in self.http_header.iter().cloned().chain(exact) {
            filters::check(&name, &value)?;
            if header_filters.insert(name.clone(), value).is_some() {
                return Err(format!(
                    "--http-header {name} is given twice; put alternatives into one regular \
                    expression"
                ));
            }
        }
        header_filters.extend(self.matchers.on_wire()?);
        let paths = [
            ("equal", &self.http_path_equal),
            ("prefix", &self.http_path_prefix),
            ("regex", &self.http_path_regex),
        ];
        let path = |kind: &'static str, paths: &[String]| -> Vec<_> {
            paths
                .iter()
                .map(|path| format!(":path-{kind}:{path}"))
                .collect()
        };
        let path_filters: Vec<_> = paths
            .iter()
            .flat_map(|(kind, paths)| path(kind, paths))
            .collect();
        let filtered = !header_filters.is_empty() || !path_filters.is_empty();
        let mechanism = match self.mechanism.as_deref() {
            None if filtered => "http",
            None => "tcp",
            Some("tcp") if filtered => {
                return Err(
                    "--mechanism tcp takes whole connections and cannot look at requests; \
                    use http or leave the filters out"
                        .into(),
                );
            }
            Some(mechanism) => mechanism,
        };
        Ok(InterceptSpec {
            name: self.name.clone(),
            client: self.manager.client.clone(),
            agent: self.workload().to_owned(),
            mechanism: mechanism.to_owned(),
            namespace: namespace.to_owned(),
            target_host: target.ip().to_string(),
            target_port: target.port().into(),
            port_identifier: self.port.identifier.clone(),
            protocol: self.port.transport.to_string(),
            roundtrip_latency: nanos_from_duration(ROUNDTRIP_TIMEOUT),
            dial_timeout: nanos_from_duration(DIAL_TIMEOUT),
            header_filters,
            path_filters,
            plaintext: self.http_plaintext,
            metadata: self.metadata.iter().cloned().collect(),
            wiretap: self.kind == Attachment::Wiretap,
            ..InterceptSpec::default()
        })
    }
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

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} has no '='; write NAME=VALUE"))?;
    if !traffic_proto::token::is_token_text(name) {
        return Err(format!("{name:?} is not a header name; write NAME=VALUE"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or_else(|| format!("{text:?} is no pair; write KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
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
