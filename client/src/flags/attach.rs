//! Flags of the commands that attach this machine to a workload.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, value_parser};
use traffic_core::routing::go_regex;
use traffic_proto::Transport;
use traffic_proto::manager::InterceptSpec;
use traffic_proto::port_identifier::{FurtherPort, PortIdentifier};
use traffic_proto::tunnel::nanos_from_duration;

use super::{ManagerFlags, Output};
use crate::environment::Syntax;
use crate::filters;
use crate::matchers::Matchers;
use crate::mount::wanted::Wanted;
use crate::to_pod::PodPort;

/// Time for the round trip to a workstation, in addition to a dial, as granted by the stock client.
const ROUNDTRIP_TIMEOUT: Duration = Duration::from_secs(4);
/// Time for a dial on the workstation.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Seconds that can be waited: no deadline lies beyond what a clock can tell.
const TIMEOUT_SECONDS: RangeInclusive<u64> = 1..=86_400;

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
    /// Local port, and the container port by number or name, optionally with /TCP or /UDP; without
    /// either, TCP where the port has both. May be repeated for further ports of the same pods, which
    /// have to be named
    #[arg(long, short, required = true, value_name = "LOCAL[:IDENTIFIER][/UDP]")]
    pub port: Vec<Ports>,
    /// Port of the pod that is to be at this machine's loopback too, under the same number, as long as
    /// the intercept lives; optionally with /TCP or /UDP. May be repeated
    #[arg(long, value_name = "PORT")]
    pub to_pod: Vec<PodPort>,
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
    #[arg(long, value_name = "PATH", value_parser = path)]
    pub http_path_equal: Vec<String>,
    /// Take requests for paths with this prefix
    #[arg(long, value_name = "PREFIX", value_parser = path)]
    pub http_path_prefix: Vec<String>,
    /// Take requests for paths in which this regular expression matches
    #[arg(long, value_name = "REGEX", value_parser = path_regex)]
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
    /// Address of the agent's own port, instead of its pod's; may be repeated
    #[arg(long, value_name = "IP:PORT", value_parser = socket_address)]
    pub agent: Vec<SocketAddr>,
    /// Send all connections through the manager
    #[arg(long)]
    pub no_direct: bool,
    /// Form of the output: lines, or a JSON object for each event
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
    /// Seconds to wait for the intercept to become active
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = value_parser!(u64).range(TIMEOUT_SECONDS))]
    pub timeout: u64,
    /// Flags for the manager.
    #[command(flatten)]
    pub manager: ManagerFlags,
    /// Kind of attachment, by the command's name.
    #[arg(skip)]
    pub kind: Attachment,
    /// Flags of what comes here of the container.
    #[command(flatten)]
    pub container: ContainerFlags,
}

/// Flags of what comes to this machine of the app's container.
#[derive(Debug, Args)]
pub struct ContainerFlags {
    /// Write the container's environment to this file once it is known
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
    /// Command to run with the container's environment; the attachment ends with it, and its exit code
    /// is passed on
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Flags of `ingest`.
#[derive(Debug, Args)]
pub struct Ingest {
    /// Workload whose container is wanted
    pub workload: String,
    /// Container of the workload's pods; by default the only one
    #[arg(long = "container", short, value_name = "NAME")]
    pub container_name: Option<String>,
    /// Namespace of the workload; by default the kubeconfig context's
    #[arg(long, short)]
    pub namespace: Option<String>,
    /// Form of the output: lines, or a JSON object for each event
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
    /// Seconds to wait for an agent of the workload
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = value_parser!(u64).range(TIMEOUT_SECONDS))]
    pub timeout: u64,
    /// Flags for the manager.
    #[command(flatten)]
    pub manager: ManagerFlags,
    /// Flags of what comes here of the container.
    #[command(flatten)]
    pub container: ContainerFlags,
}

/// Kind of attachment that a command makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attachment {
    /// Matching requests come here.
    #[default]
    Intercept,
    /// Copies of matching requests come here.
    Wiretap,
    /// Everything comes here, and the app's container is away meanwhile.
    Replace,
}

/// Value of `--port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Local port that requests are delivered to.
    pub local: u16,
    /// Port of the workload; none if left out.
    pub identifier: Option<PortIdentifier>,
    /// Transport, if written.
    pub transport: Option<Transport>,
}

impl std::str::FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (local, identifier) = match text.split_once(':') {
            // Else a typing error would take the only port without a word.
            Some((_, "")) => {
                return Err("nothing after the colon; write LOCAL or LOCAL:IDENTIFIER".into());
            }
            Some((_, identifier)) if identifier.contains(':') => {
                return Err(format!(
                    "{text:?} has two colons; write LOCAL:IDENTIFIER, and --port again for a further \
                     port"
                ));
            }
            Some((local, identifier)) => (local, Some(identifier)),
            None => (text, None),
        };
        let (number, transport) = match (identifier, local.split_once('/')) {
            (None, Some((number, transport))) => (number, Some(transport)),
            _ => (local, None),
        };
        let read = number.parse().ok().filter(|port| *port != 0);
        let local =
            read.ok_or_else(|| format!("{number:?} is not a port number; write 1 to 65535"))?;
        let transport = transport
            .map(str::parse::<Transport>)
            .transpose()
            .map_err(|_| {
                format!("{text:?} with an unknown protocol; write {local}/TCP or {local}/UDP")
            })?;
        let identifier = identifier.map(str::parse::<PortIdentifier>).transpose();
        let identifier = identifier.map_err(|error| error.to_string())?;
        Ok(Self {
            local,
            transport: identifier.as_ref().map_or(transport, |it| it.transport),
            identifier,
        })
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.identifier, self.transport) {
            (Some(identifier), _) => write!(f, "{identifier}"),
            (None, Some(transport)) => write!(f, "{}/{transport}", self.local),
            (None, None) => write!(f, "{}", self.local),
        }
    }
}

impl Ports {
    /// Formats a further port of an intercept, `PORT:LOCAL[/UDP]`.
    fn further(&self) -> Result<String, String> {
        let local = self.local;
        let identifier = self.identifier.clone().ok_or_else(|| {
            format!(
                "--port {local}: a port beside the first one has to be named; write \
                {local}:IDENTIFIER"
            )
        })?;
        let further = FurtherPort {
            identifier,
            local: Some(local.to_string()),
        };
        Ok(further.to_string())
    }
}

impl Create {
    /// Returns the local ports, the first one's first.
    pub(crate) fn local_ports(&self) -> Vec<u16> {
        self.port.iter().map(|port| port.local).collect()
    }

    /// Returns the workload's ports as they were asked for.
    pub(crate) fn asked_ports(&self) -> String {
        let named = self.port.iter().filter_map(|it| it.identifier.as_ref());
        let named: Vec<_> = named.map(ToString::to_string).collect();
        named.join(", ")
    }

    /// Returns the requested workload.
    pub fn workload(&self) -> &str {
        self.workload.as_ref().unwrap_or(&self.name)
    }

    /// Builds the spec to send to the manager, with requests delivered to `target`. An error is the
    /// user's mistake.
    pub fn spec(&self, namespace: &str, target: SocketAddr) -> Result<InterceptSpec, String> {
        let header_filters = self.header_filters()?;
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
            // Whole connections are taken unless a filter has to look at requests.
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
        if self.kind == Attachment::Replace && filtered {
            return Err(
                "replace takes everything, since the app is away: leave the filters out, or use \
                create"
                    .into(),
            );
        }
        let datagrams = |port: &&Ports| port.transport == Some(Transport::Udp);
        if let Some(port) = self.port.iter().find(datagrams) {
            self.check_datagrams(&port.to_string())?;
        }
        let (first, others) = self.port.split_first().ok_or("--port is missing")?;
        let pod_ports = others
            .iter()
            .map(Ports::further)
            .collect::<Result<_, _>>()?;
        Ok(InterceptSpec {
            name: self.name.clone(),
            client: self.manager.client.clone(),
            agent: self.workload().to_owned(),
            mechanism: mechanism.to_owned(),
            namespace: namespace.to_owned(),
            target_host: target.ip().to_string(),
            target_port: target.port().into(),
            port_identifier: first
                .identifier
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
            // Nothing, as from stock clients, where it depends on what the workload has.
            protocol: first
                .transport
                .map_or_else(String::new, |it| it.to_string()),
            pod_ports,
            local_ports: self.to_pod.iter().map(ToString::to_string).collect(),
            replace: self.kind == Attachment::Replace,
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

impl Create {
    /// Returns all filters but those of paths, as they go over the wire.
    fn header_filters(&self) -> Result<BTreeMap<String, String>, String> {
        let mut header_filters = BTreeMap::new();
        // The wire has one form for both: exact text with metacharacters is an anchored expression.
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
        Ok(header_filters)
    }

    /// Checks that the flags make sense for a port that carries datagrams. An error is the user's
    /// mistake.
    pub(crate) fn check_datagrams(&self, port: &str) -> Result<(), String> {
        if self.kind == Attachment::Wiretap {
            return Err(format!(
                "wiretap: port {port} carries datagrams, and copies are made of TCP connections and \
                HTTP requests alone; use create, or name a TCP port with --port LOCAL:PORT"
            ));
        }
        let own = [
            ("--http-header", self.http_header.is_empty()),
            ("--http-header-exact", self.http_header_exact.is_empty()),
            ("--http-path-equal", self.http_path_equal.is_empty()),
            ("--http-path-prefix", self.http_path_prefix.is_empty()),
            ("--http-path-regex", self.http_path_regex.is_empty()),
        ];
        let own = own.into_iter().filter(|(_, is_empty)| !is_empty);
        let mut given: Vec<_> = own.map(|(flag, _)| flag).collect();
        given.extend(self.matchers.given());
        if given.is_empty() {
            return Ok(());
        }
        Err(format!(
            "{}: port {port} carries datagrams, which have no headers and no path; leave that out \
            to take the whole port, or name a TCP port with --port LOCAL:PORT",
            given.join(", ")
        ))
    }
}

/// Checks the text that a path is, or begins with.
fn path(text: &str) -> Result<String, String> {
    // A request for the server as a whole (OPTIONS *) has no other.
    match text.starts_with('/') || text == "*" {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "{text:?} matches no request, since paths begin with '/'; write /{text}"
        )),
    }
}

/// Checks an expression for paths, as agents read it.
fn path_regex(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("an empty expression matches every path; leave the flag out".into());
    }
    let compiled = go_regex::compile(text).map(|_| text.to_owned());
    compiled.map_err(|error| format!("{error}; for text as it is use --http-path-prefix"))
}

/// Reads the address of an agent.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let read = text.parse();
    read.map_err(|_| format!("{text:?} is no IP address with a port; write 10.1.2.3:19900"))
}

pub(super) fn header(text: &str) -> Result<(String, String), String> {
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
