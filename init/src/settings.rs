//! Where the sidecar configuration comes from, and what of it concerns the redirect.

use std::path::Path;

use traffic_proto::fault::Faults;
use traffic_proto::log_level::LogLevel;
use traffic_proto::sidecar::{self, Role, Sidecar};

use crate::error::Error;
use crate::facts::Env;
use crate::plan::PortPlan;

/// Where the injector mounts the configuration.
pub const FILE: &str = "/etc/traffic-agent/config.yaml";
const VARIABLE: &str = "AGENT_CONFIG";

/// What the configuration says to this program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Every port that can be intercepted, numeric or named.
    pub ports: Vec<PortPlan>,
    /// How much to log, if it says so.
    pub log_level: Option<LogLevel>,
    /// What is odd in it, one line each.
    pub warnings: Vec<String>,
}

/// Reads the configuration: the file named on the command line, else `AGENT_CONFIG`, else [`FILE`]; `root` stands
/// before every path.
///
/// Errors: no configuration, or every fault of it on a line of its own.
pub fn read(named: Option<&Path>, env: Env<'_>, root: &Path) -> Result<Settings, Error> {
    let inline = env(VARIABLE).filter(|text| !text.trim().is_empty());
    let parsed = match (named, inline) {
        (Some(path), _) => from_file(path, root)?,
        (None, Some(text)) => sidecar::from_json(&text, VARIABLE, Role::Init),
        (None, None) => from_file(Path::new(FILE), root)?,
    };
    parsed.map(|sidecar| settings(&sidecar)).map_err(|faults| Error::Config(faults.to_string()))
}

fn from_file(path: &Path, root: &Path) -> Result<Result<Sidecar, Faults>, Error> {
    let path = root.join(path.strip_prefix("/").unwrap_or(path));
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Error::Config(format!(
            "{}: {error}; mount the sidecar configuration there, name its file with --config, or put it into {VARIABLE}",
            path.display()
        ))
    })?;
    // YAML is read as well where JSON is meant: every JSON document is one.
    Ok(sidecar::from_yaml(&text, &path.display().to_string(), Role::Init))
}

fn settings(sidecar: &Sidecar) -> Settings {
    let ports = sidecar.targets().into_iter().map(|target| PortPlan {
        container: target.container.clone(),
        container_port: target.container_port.get(),
        agent_port: target.agent_port.get(),
        proxy_port: target.proxy_port.map_or(0, |port| port.get()),
        transport: target.transport,
        numeric: target.proxy_port.is_some(),
    });
    Settings {
        ports: ports.collect(),
        log_level: sidecar.log_level,
        warnings: sidecar.warnings.iter().map(ToString::to_string).collect(),
    }
}
