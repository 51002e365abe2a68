//! The command line and its translation to an intercept's spec. Flags are spelled as in the stock
//! client.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use traffic_proto::Transport;
use traffic_proto::manager::InterceptSpec;
use traffic_proto::port_identifier::PortIdentifier;
use traffic_proto::tunnel::nanos_from_duration;

use crate::cluster::kubeconfig::ClusterFlags;
use crate::genyaml::flags::Genyaml;
use crate::helm::flags::HelmCommand;

/// Time for the round trip to a workstation, in addition to a dial, as granted by the stock client.
const ROUNDTRIP_TIMEOUT: Duration = Duration::from_secs(4);
/// Time for a dial on the workstation.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Routes matching requests for a workload to this machine.
#[derive(Debug, Parser)]
#[command(name = "intercept", version)]
pub struct Flags {
    /// Command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Command of the program.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create an intercept and serve it until interrupted
    Create(Box<Create>),
    /// List all intercepts the manager knows
    List(ManagerFlags),
    /// Remove an intercept; the process that serves it ends
    Leave(Leave),
    /// Install, upgrade or uninstall the traffic-manager
    #[command(subcommand)]
    Helm(HelmCommand),
    /// Look for everything an intercept takes
    Check(Check),
    /// Print the agent of a workload, to put it into a manifest by hand
    Genyaml(Box<Genyaml>),
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

/// Address of the manager, and the name of the user.
#[derive(Debug, Args)]
pub struct ManagerFlags {
    /// Host and port of the traffic-manager; by default it is reached through the cluster of the
    /// kubeconfig
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["context", "kubeconfig"])]
    pub manager: Option<String>,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterFlags,
    /// Your name as colleagues see it
    #[arg(long, value_name = "USER@HOST", default_value_t = whoami())]
    pub client: String,
}

/// Flags of `leave`.
#[derive(Debug, Args)]
pub struct Leave {
    /// Name of the intercept
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
    /// Take requests with this header; the value may be a regular expression; several must all
    /// match
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    pub http_header: Vec<(String, String)>,
    /// Take requests for exactly this path; one of several path flags must match
    #[arg(long, value_name = "PATH")]
    pub http_path_equal: Vec<String>,
    /// Take requests for paths with this prefix
    #[arg(long, value_name = "PREFIX")]
    pub http_path_prefix: Vec<String>,
    /// Take requests for paths in which this regular expression matches
    #[arg(long, value_name = "REGEX")]
    pub http_path_regex: Vec<String>,
    /// Deliver in clear text even if the app is spoken to over TLS
    #[arg(long)]
    pub http_plaintext: bool,
    /// Mechanism: tcp or http; by default http with an --http-header or --http-path-… flag, else
    /// tcp
    #[arg(long)]
    pub mechanism: Option<String>,
    /// Write the container's environment to this file once the intercept is active
    #[arg(long, short, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// Address of the agent's own port, instead of its pod's; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    pub agent: Vec<SocketAddr>,
    /// Send all connections through the manager
    #[arg(long)]
    pub no_direct: bool,
    /// Seconds to wait for the intercept to become active
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub timeout: u64,
    /// Flags for the manager.
    #[command(flatten)]
    pub manager: ManagerFlags,
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
        for (name, value) in &self.http_header {
            if header_filters.insert(name.clone(), value.clone()).is_some() {
                return Err(format!(
                    "--http-header {name} is given twice; put alternatives into one regular \
                    expression"
                ));
            }
        }
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
                    "--mechanism tcp takes whole connections and cannot look for headers or paths; \
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
            ..InterceptSpec::default()
        })
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} has no '='; write NAME=VALUE"))?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("{name:?} is not a header name; write NAME=VALUE"));
    }
    Ok((name.to_owned(), value.to_owned()))
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
mod tests {
    use super::*;

    fn create(flags: &[&str]) -> Result<InterceptSpec, String> {
        let command = ["intercept", "create", "hello", "--workload", "app"]
            .iter()
            .chain(flags);
        let flags = Flags::try_parse_from(command).map_err(|error| error.to_string())?;
        let Command::Create(create) = flags.command else {
            panic!("not create")
        };
        let local = create.port.local;
        create.spec("default", SocketAddr::from(([127, 0, 0, 1], local)))
    }

    #[test]
    fn filters_choose_the_http_mechanism() {
        let flags = [
            "--port=9000:8080",
            "--http-header=x-dev=a=b",
            "--http-path-prefix=/api",
            "--http-path-equal=/",
        ];
        let spec = create(&flags).unwrap();
        assert_eq!(spec.mechanism, "http");
        assert_eq!(
            spec.header_filters,
            BTreeMap::from([("x-dev".into(), "a=b".into())])
        );
        assert_eq!(spec.path_filters, [":path-equal:/", ":path-prefix:/api"]);
        assert_eq!(
            (spec.target_host.as_str(), spec.target_port),
            ("127.0.0.1", 9000)
        );
        assert_eq!(
            (spec.port_identifier.as_str(), spec.protocol.as_str()),
            ("8080", "TCP")
        );
        assert_eq!(spec.agent, "app");
        assert_eq!(
            (spec.dial_timeout, spec.roundtrip_latency),
            (3_000_000_000, 4_000_000_000)
        );
    }

    #[test]
    fn without_filters_it_is_tcp_and_udp_is_said_in_the_identifier() {
        let spec = create(&["--port=5353:dns/UDP"]).unwrap();
        assert_eq!(
            (
                spec.mechanism.as_str(),
                spec.protocol.as_str(),
                spec.port_identifier.as_str()
            ),
            ("tcp", "UDP", "dns/UDP")
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (flags, status_text) in [
            (&["--port=0"][..], "is not a port number"),
            (&["--port=80:"], "after the colon"),
            (&["--port=80:x/SCTP"], "/TCP or /UDP"),
            (&["--port=80", "--http-header=x"], "NAME=VALUE"),
            (
                &["--port=80", "--http-header=a b=c"],
                "is not a header name",
            ),
            (
                &["--port=80", "--http-header=a=1", "--http-header=a=2"],
                "given twice",
            ),
            (
                &["--port=80", "--http-header=a=1", "--mechanism=tcp"],
                "--mechanism tcp",
            ),
        ] {
            let error = create(flags).unwrap_err();
            assert!(error.contains(status_text), "{flags:?}: {error}");
        }
    }
}
