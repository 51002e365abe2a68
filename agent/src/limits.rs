//! Limits that operators may change, in one table: name, default, range, and where it shows that a
//! limit was reached. `docs/limits.md` is compared with it.
//!
//! They are written as `limits: {udpFlows: 8192}` in the configuration, or as
//! `AGENT_LIMITS=udpFlows=8192,udpIdle=30s`.

use std::fmt::Write as _;
use std::time::Duration;

use traffic_proto::duration::GoDuration;

/// A number of bytes, written with or without a unit (`65536`, `64KiB`, `16MiB`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub struct ByteCount(pub usize);

/// One row of the table of limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitRow {
    /// What is limited.
    pub what: String,
    /// Value unless configured.
    pub default: String,
    /// Name of the setting; empty for a limit that cannot be changed.
    pub setting: &'static str,
    /// Metric that counts how often the limit was reached.
    pub metric: &'static str,
    /// Message that says so.
    pub message: &'static str,
}

/// A value that was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// There is no such limit.
    #[error("unknown limit")]
    Unknown,
    /// The value cannot be read or is out of range.
    #[error("not a value from {min} to {max}")]
    Value {
        /// Least value.
        min: String,
        /// Largest value.
        max: String,
    },
}

/// A kind of value that a limit may have.
trait LimitValue: Copy + PartialOrd {
    fn parse(text: &str) -> Option<Self>;
    fn show(self) -> String;
}

macro_rules! limits {
    ($(
        $(#[doc = $doc:literal])+
        $field:ident: $kind:ty = $name:literal, $default:expr, from $min:expr, to $max:expr,
            $metric:literal, $message:literal;
    )+) => {
        /// Limits in force.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Limits {
            $($(#[doc = $doc])+ pub $field: $kind,)+
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl Limits {
            /// Names of all settings.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// Changes one limit.
            ///
            /// # Errors
            /// The name is unknown, or the value is out of range.
            pub fn set(&mut self, name: &str, value: &str) -> Result<(), LimitError> {
                match name {
                    $($name => set(&mut self.$field, value, $min, $max),)+
                    _ => Err(LimitError::Unknown),
                }
            }

            /// Names and values.
            #[must_use]
            pub fn values(&self) -> Vec<(&'static str, String)> {
                vec![$(($name, LimitValue::show(self.$field))),+]
            }
        }

        /// Rows of all limits that can be changed.
        #[must_use]
        pub fn rows() -> Vec<LimitRow> {
            vec![$(LimitRow {
                what: concat!($($doc),+).trim().trim_end_matches('.').to_owned(),
                default: LimitValue::show($default),
                setting: $name,
                metric: $metric,
                message: $message,
            }),+]
        }
    };
}

limits! {
    /// UDP flows of one port; more take the place of the least recently used ones.
    udp_flows: usize = "udpFlows", 4096, from 16, to 1 << 18,
        "traffic_agent_limits_total{limit=\"udp_flows\"}",
        "UDP flow limit reached: the least recently used flows give way";
    /// Time without a datagram after which a UDP flow ends.
    udp_idle: Duration = "udpIdle", Duration::from_secs(60), from Duration::from_secs(1), to LONGEST_TIMEOUT,
        "", "";
    /// The same for a flow of one question and one answer.
    udp_one_shot: Duration = "udpOneShot", Duration::from_secs(5), from Duration::from_millis(100), to LONGEST_TIMEOUT,
        "", "";
    /// Dials for workstations that are under way; more are refused.
    dials: usize = "dials", 256, from 1, to 1 << 16,
        "traffic_agent_control_limits_total{limit=\"dials\"}",
        "dial refused: too many dials are under way; raise dials";
    /// Connections dialled for workstations, at most a quarter of all descriptors; more are refused.
    dialled_connections: usize = "dialledConnections", 1024, from 1, to 1 << 16,
        "traffic_agent_control_limits_total{limit=\"dialled_connections\"}",
        "dial refused: too many connections for workstations; raise dialledConnections";
    /// DNS questions under way; more are left to other agents.
    dns_questions: usize = "dnsQuestions", 64, from 1, to 1 << 16,
        "traffic_agent_control_limits_total{limit=\"dns_questions\"}",
        "DNS question dropped: too many are under way; raise dnsQuestions";
    /// Intercepts that are looked at; more are refused.
    intercepts: usize = "intercepts", 1000, from 1, to 1 << 16,
        "traffic_agent_control_limits_total{limit=\"intercepts\"}", "intercept refused: a bound is reached";
    /// Intercepts of one port.
    intercepts_per_port: usize = "interceptsPerPort", 250, from 1, to 1 << 16,
        "traffic_agent_control_limits_total{limit=\"intercepts\"}", "intercept refused: a bound is reached";
    /// Intercepts of one client on one port.
    intercepts_per_client: usize = "interceptsPerClient", 50, from 1, to 1 << 16,
        "traffic_agent_control_limits_total{limit=\"intercepts\"}", "intercept refused: a bound is reached";
    /// Header and path filters of one intercept.
    filters: usize = "filters", 64, from 1, to 1 << 16,
        "traffic_agent_control_limits_total{limit=\"intercepts\"}", "intercept refused: a bound is reached";
    /// Text of all filters of one intercept.
    filter_bytes: ByteCount = "filterBytes", ByteCount(64 << 10), from ByteCount(1 << 10), to ByteCount(4 << 20),
        "traffic_agent_control_limits_total{limit=\"intercepts\"}", "intercept refused: a bound is reached";
    /// Compiled patterns of one intercept: 64KiB for each small one, 304KiB for others.
    pattern_bytes: ByteCount = "patternBytes", ByteCount(1 << 20), from ByteCount(64 << 10), to ByteCount(1 << 30),
        "traffic_agent_control_limits_total{limit=\"intercepts\"}", "intercept refused: a bound is reached";
    /// Compiled patterns of one port.
    port_pattern_bytes: ByteCount = "portPatternBytes", ByteCount(4 << 20), from ByteCount(64 << 10), to ByteCount(1 << 30),
        "traffic_agent_control_limits_total{limit=\"intercepts\"}", "intercept refused: a bound is reached";
    /// Memory of the agent, near which new connections are refused; 0 takes the container's limit.
    memory: ByteCount = "memory", ByteCount(0), from ByteCount(0), to ByteCount(1 << 40),
        "traffic_agent_limits_total{limit=\"memory\"}",
        "memory limit near: connection refused; raise the container's memory limit, or memory";
}

// Beyond it a flow that nobody ends would hold its socket for most of a pod's life.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3600);

fn set<T: LimitValue>(slot: &mut T, text: &str, min: T, max: T) -> Result<(), LimitError> {
    match T::parse(text.trim()).filter(|value| (min..=max).contains(value)) {
        Some(value) => {
            *slot = value;
            Ok(())
        }
        None => Err(LimitError::Value {
            min: min.show(),
            max: max.show(),
        }),
    }
}

impl LimitValue for usize {
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(self) -> String {
        self.to_string()
    }
}

impl LimitValue for ByteCount {
    fn parse(text: &str) -> Option<Self> {
        let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("", 0)];
        let (number, shift) = units
            .iter()
            .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))?;
        let number: usize = number.trim().parse().ok()?;
        number.checked_mul(1 << shift).map(Self)
    }

    fn show(self) -> String {
        self.to_string()
    }
}

impl std::fmt::Display for ByteCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            n if n >= 1 << 20 && n % (1 << 20) == 0 => write!(f, "{}MiB", n >> 20),
            n if n >= 1 << 10 && n % (1 << 10) == 0 => write!(f, "{}KiB", n >> 10),
            n => write!(f, "{n}"),
        }
    }
}

impl LimitValue for Duration {
    fn parse(text: &str) -> Option<Self> {
        text.parse::<GoDuration>().ok()?.to_std()
    }

    fn show(self) -> String {
        format!("{self:?}")
    }
}

impl Limits {
    /// Keeps what is not for callers to a share of `descriptors`, the limit of open files.
    #[must_use]
    pub fn within(mut self, descriptors: usize) -> Self {
        let quarter = (descriptors / 4).max(1);
        self.dialled_connections = self.dialled_connections.min(quarter);
        self.dials = self.dials.min(quarter);
        self.dns_questions = self.dns_questions.min(quarter / 4).max(1);
        self.udp_flows = self.udp_flows.min(descriptors / 2).max(16);
        self
    }
}

/// Rows as a table in Markdown.
#[must_use]
pub fn markdown(rows: &[LimitRow]) -> String {
    let mut text = String::from(
        "| what | default | setting | metric | message |\n| --- | --- | --- | --- | --- |\n",
    );
    let code = |word: &str| match word {
        "" => "–".to_owned(),
        word => format!("`{word}`"),
    };
    for row in rows {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            row.what,
            row.default,
            code(row.setting),
            code(row.metric),
            if row.message.is_empty() {
                "–"
            } else {
                row.message
            },
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_their_units_and_kept_in_range() {
        let mut limits = Limits::default();
        limits.set("udpFlows", "100").unwrap();
        limits.set("udpIdle", "1m30s").unwrap();
        assert_eq!(limits.udp_flows, 100);
        assert_eq!(limits.udp_idle, Duration::from_secs(90));
        for (name, value) in [("udpFlows", "0"), ("udpFlows", "-1"), ("udpIdle", "30")] {
            let refused = limits.set(name, value).unwrap_err();
            assert!(
                matches!(refused, LimitError::Value { .. }),
                "{name}={value}"
            );
        }
        assert_eq!(limits.set("nope", "1"), Err(LimitError::Unknown));
        assert_eq!(limits.udp_flows, 100);
    }

    #[test]
    fn callers_keep_most_descriptors() {
        let few = Limits::default().within(1024);
        let of_workstations = few.dialled_connections + few.dns_questions;
        assert!(of_workstations <= 1024 / 3, "{few:?}");
        assert_eq!(Limits::default().within(1 << 20), Limits::default());
    }

    #[test]
    fn bytes_have_units() {
        for (text, bytes) in [("65536", 65536), ("64KiB", 65536), ("2 MiB", 2 << 20)] {
            assert_eq!(ByteCount::parse(text), Some(ByteCount(bytes)), "{text}");
        }
        assert_eq!(ByteCount::parse("1GB"), None);
        assert_eq!(ByteCount(65536).show(), "64KiB");
    }
}
