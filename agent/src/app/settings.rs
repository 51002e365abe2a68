//! Settings from sidecar config, annotations and environment. Reading never stops at the first
//! mistake: every fault is collected with its key, value and remedy, so that an operator can fix
//! all of them in one restart.

pub mod check;
pub mod cli;
pub mod env;
pub mod protocol;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use traffic_proto::dial_policy::{AddressRange, NoRange};
use traffic_proto::fault::{Fault, Faults};
use traffic_proto::log_level::LogLevel;
use traffic_proto::sidecar::{self, Role, Sidecar, Target, annotations};

use crate::app::settings::env::Env;
use crate::limits::{LimitError, Limits};

/// Annotation file of the newest managers (2.25 and later); it includes the configuration.
pub const PODINFO_ANNOTATIONS: &str = "/etc/podinfo/annotations";
/// Annotation file of older injectors, without the configuration.
pub const TEL_POD_INFO_ANNOTATIONS: &str = "/tel_pod_info/annotations";
/// Configuration file of managers up to 2.21.
pub const CONFIG_FILE: &str = "/etc/traffic-agent/config.yaml";

/// Validated settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Prefix of every path that is opened.
    pub root: PathBuf,
    /// Source of the configuration.
    pub source: String,
    /// Configuration with the overrides of the environment.
    pub sidecar: Sidecar,
    /// Ports.
    pub targets: Vec<Target>,
    /// Pod annotations; empty without a file of them.
    pub annotations: BTreeMap<String, String>,
    /// Pod address; none in benches and tests, where the app is on loopback.
    pub pod_ip: Option<IpAddr>,
    /// Pod name.
    pub pod_name: String,
    /// Pod uid.
    pub pod_uid: String,
    /// Addresses of the admin and the agent's gRPC API.
    pub bind: Bind,
    /// Log level of the whole agent.
    pub log_level: LogLevel,
    /// Log lines are JSON.
    pub log_json: bool,
    /// `off`, `text`, `json` or a format string.
    pub access_log: String,
    /// Headers whose values may appear in the access log.
    pub access_log_headers: Vec<String>,
    /// Wanted port of the agent's gRPC API; 0: any free one.
    pub server_port: u16,
    /// Wanted port of the admin; 0: any free one.
    pub admin_port: u16,
    /// Port of the metrics alone, on every address; none: no such port.
    pub metrics_port: Option<u16>,
    /// Data-path worker threads.
    pub workers: usize,
    /// Limits in force.
    pub limits: Limits,
    /// Link-local addresses that workstations may reach through this agent.
    pub dial_allow: Vec<AddressRange>,
    /// The whole environment; intercepts report a part of it to workstations.
    pub environment: BTreeMap<String, String>,
    /// Harmless oddities, logged once.
    pub warnings: Vec<Fault>,
}

/// Exposure of the admin and the agent's gRPC API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bind {
    /// The pod itself and port-forwards: loopback.
    #[default]
    Pod,
    /// All addresses.
    All,
}

impl Settings {
    /// Reads all settings.
    ///
    /// # Errors
    /// Every fault found.
    pub fn load(args: &cli::AgentArgs, env: &Env) -> Result<Self, Faults> {
        let root = args.root.clone().unwrap_or_else(|| PathBuf::from("/"));
        let mut faults = Faults::default();
        let mut warnings = Vec::new();
        let found = find_config(args.config.as_deref(), &root, env);
        let (source, sidecar) = match found {
            Ok((source, sidecar)) => (source, Some(sidecar)),
            Err(more) => {
                faults.append(more);
                (String::new(), None)
            }
        };
        // Read even if the configuration is faulty, so that all faults are reported in one run.
        let annotations = read_annotations(&root, &mut warnings);
        // From here on every fault is known.
        let own = Own::read(env, &mut faults);
        let configured = sidecar.as_ref().map(|s| s.limits.as_slice());
        let limits = limits(configured.unwrap_or_default(), env, &mut faults);
        let configured = sidecar.as_ref().map(|s| s.dial_allow.as_slice());
        let dial_allow = dial_allow(configured.unwrap_or_default(), env, &mut faults);
        let sidecar = sidecar.map(|s| own.override_config(s));
        let (Some(mut sidecar), true) = (sidecar, faults.is_empty()) else {
            return Err(faults);
        };
        warnings.append(&mut sidecar.warnings);
        warnings.extend(check::protocols(&sidecar));
        warnings.extend(check::variables(env));
        let targets = sidecar.targets();
        if targets.is_empty() {
            warnings.push(Fault::missing(
                "containers",
                "no port to listen for",
                "check the workload's intercepts",
            ));
        }
        Ok(Self {
            source,
            targets,
            annotations,
            pod_ip: own.pod_ip,
            pod_name: own.pod_name,
            pod_uid: own.pod_uid,
            bind: own.bind,
            log_level: sidecar
                .log_level
                .or(own.log_level)
                .unwrap_or(LogLevel::Info),
            log_json: own.log_json,
            access_log: own.access_log,
            access_log_headers: own.access_log_headers,
            // The environment overrides the configuration, whose default is the stock agent's port.
            server_port: own
                .server_port
                .or(sidecar.envoy.server_port)
                .unwrap_or(18_000),
            admin_port: own
                .admin_port
                .or(sidecar.envoy.admin_port)
                .unwrap_or(19_000),
            metrics_port: match own.metrics_port {
                Some(port) => Some(port).filter(|port| *port != 0),
                None => sidecar.metrics_port,
            },
            workers: own.workers.unwrap_or_else(default_workers),
            limits: limits.within(open_files()),
            dial_allow,
            environment: env.all().clone(),
            warnings,
            sidecar,
            root,
        })
    }

    /// Puts the configured root before the absolute `path`.
    #[must_use]
    pub fn rooted(&self, path: &str) -> PathBuf {
        below(&self.root, path)
    }

    /// Returns the time ended intercepts are remembered, if they are.
    #[must_use]
    pub fn remember(&self) -> Option<Duration> {
        let expired = self.sidecar.expired_notifications;
        expired.enabled.then_some(expired.deadline)
    }

    /// Returns the configuration in force as the admin shows it.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let s = &self.sidecar;
        let ports: Vec<_> = self
            .targets
            .iter()
            .map(|t| {
                serde_json::json!({
                    "container": t.container,
                    "containerPort": t.container_port.get(),
                    "agentPort": t.listen_port(),
                    "protocol": t.transport.name(),
                    "appPort": self.app_port(t),
                    "appProtocol": t.app_protocol,
                    "numeric": t.numeric,
                    "headless": t.headless,
                })
            })
            .collect();
        let containers: Vec<_> = s.containers.iter().map(|c| c.name.as_str()).collect();
        serde_json::json!({
            "source": self.source,
            "agentName": s.agent_name,
            "namespace": s.namespace,
            "workloadName": s.workload_name,
            "workloadKind": s.workload_kind,
            "managerHost": s.manager_host,
            "managerPort": s.manager_port,
            "logLevel": self.log_level.to_string(),
            "envoy": {
                "logLevel": s.envoy.log_level.map(|l| l.to_string()),
                "serverPort": self.server_port,
                "adminPort": self.admin_port,
            },
            "metrics": { "port": self.metrics_port },
            "appProtocolStrategy": s.app_protocol_strategy.to_string(),
            "enableH2cProbing": s.enable_h2c_probing,
            "expiredNotifications": {
                "enabled": s.expired_notifications.enabled,
                "deadline": format!("{:?}", s.expired_notifications.deadline),
            },
            "sessionGrace": format!("{:?}", s.session_grace),
            "drain": {
                "lameDuck": format!("{:?}", s.drain.lame_duck),
                "grace": format!("{:?}", s.drain.grace),
            },
            "bind": if self.bind == Bind::Pod { "pod" } else { "all" },
            "accessLog": self.access_log,
            "accessLogHeaders": self.access_log_headers,
            "workers": self.workers,
            "limits": self.limits.values().into_iter().collect::<BTreeMap<_, _>>(),
            "containers": containers,
            "ports": ports,
        })
    }

    /// Returns the port at which the app is reached past the redirect.
    #[must_use]
    pub fn app_port(&self, target: &Target) -> u16 {
        target
            .proxy_port
            .map_or(target.container_port.get(), |p| p.get())
    }
}

/// Puts `root` before an absolute path.
#[must_use]
pub fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Returns the CPU quota in whole cores, at most 2: one worker of this agent outruns the apps of
/// most pods.
fn default_workers() -> usize {
    // More workers rarely help a sidecar and cost memory in every pod.
    std::thread::available_parallelism().map_or(1, |n| n.get().min(2))
}

/// Finds the first configuration: the file named on the command line, the annotation file of the
/// newest managers, the environment variable, the file of the oldest.
fn find_config(
    explicit: Option<&Path>,
    root: &Path,
    env: &Env,
) -> Result<(String, Sidecar), Faults> {
    // A named file is the only candidate: falling back would hide a typing error.
    if let Some(path) = explicit {
        let shown = path.display().to_string();
        let text = read_text(path, "--config", &shown)?
            .ok_or_else(|| unreadable("--config", &shown, &std::io::ErrorKind::NotFound.into()))?;
        return sidecar::from_yaml(&text, &shown, Role::Agent).map(|s| (shown, s));
    }
    let podinfo = below(root, PODINFO_ANNOTATIONS);
    if let Some(text) = read_text(&podinfo, "configuration", PODINFO_ANNOTATIONS)?
        && let Some(sidecar) = sidecar::from_annotations(&text, PODINFO_ANNOTATIONS, Role::Agent)?
    {
        return Ok((
            format!("{PODINFO_ANNOTATIONS}: {}", annotations::AGENT_CONFIG),
            sidecar,
        ));
    }
    if let Some(json) = env.get(env::AGENT_CONFIG) {
        return sidecar::from_json(json, env::AGENT_CONFIG, Role::Agent)
            .map(|s| (env::AGENT_CONFIG.to_owned(), s));
    }
    if let Some(text) = read_text(&below(root, CONFIG_FILE), "configuration", CONFIG_FILE)? {
        return sidecar::from_config_map(&text, CONFIG_FILE, Role::Agent)
            .map(|s| (CONFIG_FILE.to_owned(), s));
    }
    Err(Fault::missing(
        "configuration",
        format!(
            "none found in {PODINFO_ANNOTATIONS} ({}), {} or {CONFIG_FILE}",
            annotations::AGENT_CONFIG,
            env::AGENT_CONFIG
        ),
        "inject the agent with a traffic-manager, or name a file with --config",
    )
    .into())
}

/// Reads a file of text; none if it is not there.
fn read_text(path: &Path, key: &str, shown: &str) -> Result<Option<String>, Faults> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(unreadable(key, shown, &e)),
    };
    let refused = |problem: &str, remedy: &str| Fault::text(key, shown, problem, remedy).into();
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(refused("is UTF-16 text", "save it as UTF-8"));
    }
    // A UTF-8 byte order mark, as editors on Windows write it.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(Some(text.to_owned())),
        _ => Err(refused(
            "is no text: a binary file, or in another encoding than UTF-8",
            "check that it is the configuration, and save it as UTF-8",
        )),
    }
}

fn unreadable(key: &str, path: &str, error: &std::io::Error) -> Faults {
    Fault::text(
        key,
        path,
        format!("cannot be read: {error}"),
        "check the path and its permissions",
    )
    .into()
}

fn read_annotations(root: &Path, warnings: &mut Vec<Fault>) -> BTreeMap<String, String> {
    for path in [PODINFO_ANNOTATIONS, TEL_POD_INFO_ANNOTATIONS] {
        if let Ok(text) = std::fs::read_to_string(below(root, path)) {
            let mut read = annotations::parse(&text, path);
            warnings.append(&mut read.warnings);
            return read.entries;
        }
    }
    BTreeMap::new()
}

/// Variables of the agent itself.
#[derive(Default)]
struct Own {
    pod_ip: Option<IpAddr>,
    pod_name: String,
    pod_uid: String,
    bind: Bind,
    log_level: Option<LogLevel>,
    log_json: bool,
    access_log: String,
    access_log_headers: Vec<String>,
    server_port: Option<u16>,
    admin_port: Option<u16>,
    metrics_port: Option<u16>,
    workers: Option<usize>,
    strategy: Option<sidecar::AppProtocolStrategy>,
    data_level: Option<LogLevel>,
    expired: Option<bool>,
    expired_deadline: Option<Duration>,
    session_grace: Option<Duration>,
    lame_duck: Option<Duration>,
    grace: Option<Duration>,
}

impl Own {
    fn read(env: &Env, faults: &mut Faults) -> Self {
        let levels = "use trace, debug, info, warning, error, critical or off";
        Self {
            pod_ip: env.parsed(env::POD_IP, "no IP address", "pass status.podIP", faults),
            pod_name: env.get(env::POD_NAME).unwrap_or_default().to_owned(),
            pod_uid: env.get(env::POD_UID).unwrap_or_default().to_owned(),
            bind: env
                .one_of(env::BIND, &[("pod", Bind::Pod), ("all", Bind::All)], faults)
                .unwrap_or_default(),
            log_level: env.parsed(env::LOG_LEVEL, "unknown level", levels, faults),
            log_json: env
                .one_of(env::LOG_FORMAT, &[("text", false), ("json", true)], faults)
                .unwrap_or_default(),
            access_log: access_log(env, faults),
            access_log_headers: env.list(env::ACCESS_LOG_HEADERS),
            server_port: env.parsed(
                env::SERVER_PORT,
                "no port",
                "use 1 to 65535, or 0 for any free port",
                faults,
            ),
            admin_port: env.parsed(
                env::ADMIN_PORT,
                "no port",
                "use 1 to 65535, or 0 for any free port",
                faults,
            ),
            metrics_port: env.parsed(
                env::METRICS_PORT,
                "no port",
                "use 1 to 65535, or 0 for none",
                faults,
            ),
            // 64 bounds memory on a mistyped value; no pod needs as many.
            workers: env.within(env::WORKERS, 1..=64, faults),
            strategy: env.parsed(
                env::STRATEGY,
                "unknown strategy",
                "use http2Probe, portName, http or http2",
                faults,
            ),
            data_level: env.parsed(env::DATA_LEVEL, "unknown level", levels, faults),
            expired: env.one_of(env::EXPIRED, &[("true", true), ("false", false)], faults),
            expired_deadline: env.duration(env::EXPIRED_DEADLINE, faults),
            session_grace: env.duration(env::SESSION_GRACE, faults),
            lame_duck: env.duration(env::LAME_DUCK, faults),
            grace: env.duration(env::GRACE, faults),
        }
    }

    /// Overrides the configuration by the environment.
    fn override_config(&self, mut s: Sidecar) -> Sidecar {
        let set = |slot: &mut Duration, value: Option<Duration>| *slot = value.unwrap_or(*slot);
        s.app_protocol_strategy = self.strategy.unwrap_or(s.app_protocol_strategy);
        s.envoy.log_level = self.data_level.or(s.envoy.log_level);
        s.expired_notifications.enabled = self.expired.unwrap_or(s.expired_notifications.enabled);
        set(&mut s.expired_notifications.deadline, self.expired_deadline);
        set(&mut s.session_grace, self.session_grace);
        set(&mut s.drain.lame_duck, self.lame_duck);
        set(&mut s.drain.grace, self.grace);
        s
    }
}

/// Reads the limits: those of the configuration, then those of the environment.
fn limits(configured: &[(String, String)], env: &Env, faults: &mut Faults) -> Limits {
    let mut limits = Limits::default();
    let mut set = |key: String, name: &str, value: &str| {
        let remedy = match limits.set(name, value) {
            Ok(()) => return,
            Err(LimitError::Unknown) => format!("use one of {}", Limits::NAMES.join(", ")),
            Err(LimitError::Value { min, max }) => format!("use {min} to {max}"),
        };
        faults.push(Fault::text(&key, value, "no limit that can be set", remedy));
    };
    for (name, value) in configured {
        set(format!("limits.{name}"), name, value);
    }
    for pair in env.list(env::LIMITS) {
        let (name, value) = pair.split_once('=').unwrap_or((&pair, ""));
        set(format!("{} {name}", env::LIMITS), name.trim(), value);
    }
    limits
}

/// Reads the addresses that may be dialled nevertheless; the environment wins.
fn dial_allow(configured: &[String], env: &Env, faults: &mut Faults) -> Vec<AddressRange> {
    let listed = env.list(env::DIAL_ALLOW);
    let (key, texts) = match listed.is_empty() {
        true => ("dial.allow", configured),
        false => (env::DIAL_ALLOW, listed.as_slice()),
    };
    let mut ranges = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(range) => ranges.push(range),
            Err(NoRange) => faults.push(Fault::text(
                key,
                text,
                NoRange.to_string(),
                "write 169.254.20.10 or 169.254.20.0/24",
            )),
        }
    }
    ranges
}

/// Returns the limit of open files.
fn open_files() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit
        .current
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(usize::MAX)
}

fn access_log(env: &Env, faults: &mut Faults) -> String {
    let setting = env.get(env::ACCESS_LOG).unwrap_or("off").to_owned();
    if let Err(problem) = crate::telemetry::access_log::format::Format::parse(&setting) {
        faults.push(Fault::text(
            env::ACCESS_LOG,
            &setting,
            problem.to_string(),
            "use off, text, json or a format string of the documented operators",
        ));
    }
    setting
}

#[cfg(test)]
mod tests;
