//! All environment variables the agent reads, in one table, and typed reading of them. Values come
//! from a map, so this module does not touch the process's own environment.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use traffic_proto::duration::GoDuration;
use traffic_proto::fault::{Fault, Faults};

macro_rules! variables {
    ($($(#[doc = $doc:literal])+ $name:ident = $key:literal;)+) => {
        $($(#[doc = $doc])+ pub const $name: &str = $key;)+

        /// Name and meaning of every variable, in the order of `--help`.
        pub const TABLE: &[(&str, &str)] = &[$(($key, concat!($($doc),+))),+];
    };
}

variables! {
    /// The configuration as JSON (managers 2.22 to 2.24).
    AGENT_CONFIG = "AGENT_CONFIG";
    /// Detection of an undeclared port's protocol: http2Probe (default), portName, http, http2.
    STRATEGY = "AGENT_APP_PROTOCOL_STRATEGY";
    /// Log level of the data path alone; follows the agent's when unset.
    DATA_LEVEL = "AGENT_ENVOY_LOG_LEVEL";
    /// Port of the agent's gRPC API; 18000, 0 for any free one.
    SERVER_PORT = "AGENT_ENVOY_SERVER_PORT";
    /// Port of the admin; 19000, 0 for any free one.
    ADMIN_PORT = "AGENT_ENVOY_ADMIN_PORT";
    /// Port on every address that shows /metrics and nothing else; off by default.
    METRICS_PORT = "AGENT_METRICS_PORT";
    /// true: requests that match an ended intercept get 503 until the deadline; false (default).
    EXPIRED = "AGENT_EXPIRED_NOTIFICATIONS";
    /// Time an intercept is remembered after its end; 24h.
    EXPIRED_DEADLINE = "AGENT_EXPIRED_DEADLINE";
    /// Time the last intercepts stay in force without a manager; 60s.
    SESSION_GRACE = "AGENT_SESSION_GRACE";
    /// Time connections are still accepted after SIGTERM; 5s.
    LAME_DUCK = "AGENT_DRAIN_LAME_DUCK";
    /// Time open connections may then take to finish; 20s.
    GRACE = "AGENT_DRAIN_GRACE";
    /// pod (default): admin and gRPC API on loopback only; all: on every address.
    BIND = "AGENT_BIND";
    /// Access log: off (default), text, json or a format string.
    ACCESS_LOG = "AGENT_ACCESS_LOG";
    /// Comma-separated headers whose values may appear in the access log.
    ACCESS_LOG_HEADERS = "AGENT_ACCESS_LOG_HEADERS";
    /// Format of the agent's log: text (default) or json.
    LOG_FORMAT = "AGENT_LOG_FORMAT";
    /// Data-path threads; by default the CPU quota, at most 2.
    WORKERS = "AGENT_WORKERS";
    /// Comma-separated link-local addresses and ranges that workstations may reach through the agent.
    DIAL_ALLOW = "AGENT_DIAL_ALLOW";
    /// Comma-separated limits, such as udpFlows=8192; docs/limits.md lists them.
    LIMITS = "AGENT_LIMITS";
    /// Log level if the configuration names none; info.
    LOG_LEVEL = "LOG_LEVEL";
    /// Pod address (status.podIP), set by the injector; without it the app is dialled on 127.0.0.1.
    POD_IP = "_TEL_AGENT_POD_IP";
    /// Pod name, set by the injector.
    POD_NAME = "_TEL_AGENT_NAME";
    /// Pod uid (metadata.uid), set by the injector.
    POD_UID = "_TEL_AGENT_POD_UID";
}

/// Variables of the system's other programs, which may be set in the agent's container as well.
pub const OTHERS: [&str; 3] = ["AGENT_GID", "AGENT_UID", "AGENT_ENVOY_HTTP_IDLE_TIMEOUT"];

/// Frequent uses, for `--help`.
const EXAMPLES: &str = "\
Examples:
  traffic-agent --check --config agent.yaml       What would happen: ports, protocols, TLS, warnings
  traffic-agent                                   Run, as the pod's sidecar does
  AGENT_ACCESS_LOG=json traffic-agent             Run, with a line for each request
  kubectl exec POD -c traffic-agent -- traffic-agent status
                                                  Ports, protocols, intercepts, traffic of a running one
  kubectl port-forward POD 19000                  Then browse http://localhost:19000: index, intercepts, explain
  curl -XPOST 'localhost:19000/logging?level=debug'
                                                  More log lines, until the next restart or ?level=info

Exit codes:
  0   orderly end, also after SIGTERM
  1   connections had to be cut when the drain's time was over, or a second signal came
  64  wrong configuration or usage; every fault is on a line of its own
  69  a listening port is taken; for status: the agent does not answer
  70  a bug
";

/// Returns examples, exit codes and the variables as text for `--help`.
#[must_use]
pub fn help() -> String {
    let mut text = String::from(EXAMPLES);
    text.push_str("\nEnvironment (wins over the configuration; durations as 500ms, 5s, 1h30m):\n");
    for (name, meaning) in TABLE {
        let _ = writeln!(text, "  {name:<28} {}", meaning.trim());
    }
    text.push_str(
        "  _TEL_APP_<prefix><NAME>      The app containers' variables, set by the injector.\n",
    );
    text
}

/// A set of environment variables.
#[derive(Clone, Debug, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// Reads the process's own environment; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn of_process() -> Self {
        let text = |s: std::ffi::OsString| s.to_string_lossy().into_owned();
        Self(
            std::env::vars_os()
                .map(|(k, v)| (text(k), text(v)))
                .collect(),
        )
    }

    /// Builds one from pairs, for tests.
    #[must_use]
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        Self(
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        )
    }

    /// Returns all variables.
    #[must_use]
    pub fn all(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// Returns a variable that is set and not empty.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|v| v.trim()).filter(|v| !v.is_empty())
    }

    /// Parses a variable.
    pub fn parsed<T: FromStr>(
        &self,
        key: &str,
        problem: &str,
        remedy: &str,
        faults: &mut Faults,
    ) -> Option<T> {
        let value = self.get(key)?;
        let parsed = value.parse().ok();
        if parsed.is_none() {
            faults.push(Fault::text(key, value, problem, remedy));
        }
        parsed
    }

    /// Reads one of a few words, in any letter case.
    pub fn one_of<T: Copy>(
        &self,
        key: &str,
        words: &[(&str, T)],
        faults: &mut Faults,
    ) -> Option<T> {
        let value = self.get(key)?;
        let found = words
            .iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(value))
            .map(|(_, t)| *t);
        if found.is_none() {
            let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            faults.push(Fault::text(
                key,
                value,
                "unknown value",
                format!("use {}", names.join(" or ")),
            ));
        }
        found
    }

    /// Reads a whole number within a range.
    pub fn within(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
        faults: &mut Faults,
    ) -> Option<usize> {
        let value = self.get(key)?;
        let number = value.parse().ok().filter(|n| range.contains(n));
        if number.is_none() {
            let remedy = format!(
                "use a whole number from {} to {}",
                range.start(),
                range.end()
            );
            faults.push(Fault::text(key, value, "not a number in range", remedy));
        }
        number
    }

    /// Reads a duration with units, not negative.
    pub fn duration(&self, key: &str, faults: &mut Faults) -> Option<Duration> {
        let value = self.get(key)?;
        let fault = match value.parse::<GoDuration>() {
            Ok(duration) => match duration.to_std() {
                Some(duration) => return Some(duration),
                None => Fault::text(
                    key,
                    value,
                    "negative duration",
                    "use 0 or more, such as 30s",
                ),
            },
            Err(e) => Fault::text(key, value, e.to_string(), e.remedy()),
        };
        faults.push(fault);
        None
    }

    /// Reads comma-separated words.
    #[must_use]
    pub fn list(&self, key: &str) -> Vec<String> {
        let words = self.get(key).unwrap_or_default().split(',');
        words
            .map(str::trim)
            .filter(|w| !w.is_empty())
            .map(str::to_owned)
            .collect()
    }
}
