//! Log levels by all names that peers and users write: Envoy's, logrus', slog's and syslog's.

use std::fmt;
use std::str::FromStr;

/// Level of logging; a greater level logs more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// No lines.
    Off,
    /// Events that end the process.
    Critical,
    /// Failures.
    Error,
    /// Events an operator should look at.
    Warning,
    /// Events that happen once or seldom.
    Info,
    /// Events of each connection.
    Debug,
    /// Full detail.
    Trace,
}

/// Error: the text names no level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown log level; write trace, debug, info, warning, error, critical or off")]
pub struct UnknownLogLevel;

impl LogLevel {
    /// Returns Envoy's name of the level, which is also ours.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Critical => "critical",
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// Returns the filter directive of the `tracing` crates, which have nothing above errors.
    pub const fn directive(self) -> &'static str {
        match self {
            Self::Critical => "error",
            Self::Warning => "warn",
            other => other.name(),
        }
    }

    /// Parses a level sent by a manager: an unknown name must not stop us, so it means `info`.
    pub fn lenient(text: &str) -> Self {
        text.parse().unwrap_or(Self::Info)
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for LogLevel {
    type Err = UnknownLogLevel;

    /// Parses a name in any letter case, or slog's way to write a level between names, such as
    /// `INFO+2`.
    fn from_str(text: &str) -> Result<Self, UnknownLogLevel> {
        let text = text.trim().to_ascii_lowercase();
        match text.find(['+', '-']) {
            None => named(&text),
            Some(at) => {
                let offset: i16 = text[at..].parse().map_err(|_| UnknownLogLevel)?;
                let base = match named(&text[..at])? {
                    Self::Debug => -4,
                    Self::Info => 0,
                    Self::Warning => 4,
                    Self::Error => 8,
                    _ => return Err(UnknownLogLevel),
                };
                Ok(match base + i32::from(offset) {
                    ..=-5 => Self::Trace,
                    -4..=-1 => Self::Debug,
                    0..=3 => Self::Info,
                    4..=7 => Self::Warning,
                    8..=11 => Self::Error,
                    12.. => Self::Critical,
                })
            }
        }
    }
}

fn named(text: &str) -> Result<LogLevel, UnknownLogLevel> {
    Ok(match text {
        "off" | "none" => LogLevel::Off,
        "critical" | "crit" | "fatal" | "panic" | "alert" | "emerg" | "emergency" => {
            LogLevel::Critical
        }
        "error" | "err" => LogLevel::Error,
        "warning" | "warn" => LogLevel::Warning,
        "info" | "notice" => LogLevel::Info,
        "debug" => LogLevel::Debug,
        "trace" => LogLevel::Trace,
        _ => return Err(UnknownLogLevel),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_by_any_of_their_names_in_any_case() {
        for (text, level) in [
            ("trace", LogLevel::Trace),
            ("Debug", LogLevel::Debug),
            ("INFO", LogLevel::Info),
            ("notice", LogLevel::Info),
            ("warn", LogLevel::Warning),
            ("Warning", LogLevel::Warning),
            ("err", LogLevel::Error),
            ("ERROR", LogLevel::Error),
            ("crit", LogLevel::Critical),
            ("fatal", LogLevel::Critical),
            ("panic", LogLevel::Critical),
            (" off\n", LogLevel::Off),
        ] {
            assert_eq!(text.parse(), Ok(level), "{text}");
        }
    }

    #[test]
    fn slog_levels_between_names_fall_to_the_name_below() {
        for (text, level) in [
            ("DEBUG-4", LogLevel::Trace),
            ("DEBUG-1", LogLevel::Trace),
            ("DEBUG+3", LogLevel::Debug),
            ("INFO+2", LogLevel::Info),
            ("INFO-1", LogLevel::Debug),
            ("WARN+3", LogLevel::Warning),
            ("ERROR+4", LogLevel::Critical),
        ] {
            assert_eq!(text.parse(), Ok(level), "{text}");
        }
    }

    #[test]
    fn other_texts_name_no_level_and_mean_info_where_one_is_needed() {
        for text in [
            "",
            "verbose",
            "5",
            "info+",
            "info+99999",
            "off+1",
            "-",
            "+1",
            "trace-1",
        ] {
            assert_eq!(text.parse::<LogLevel>(), Err(UnknownLogLevel), "{text}");
            assert_eq!(LogLevel::lenient(text), LogLevel::Info);
        }
    }

    #[test]
    fn every_level_reads_back_from_its_name_and_greater_logs_more() {
        use LogLevel::*;
        let all = [Off, Critical, Error, Warning, Info, Debug, Trace];
        for level in all {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert!(all.is_sorted());
        assert_eq!(Critical.directive(), "error");
        assert_eq!(Warning.directive(), "warn");
    }
}
