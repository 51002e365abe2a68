//! Log on standard error: one line for each event, as text or as JSON.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::time::{Duration, SystemTime};

use traffic_proto::log_level::LogLevel;

use crate::env::{Env, value};
use crate::error::Error;

/// Variable that chooses the form of a line, for the agent and for this program.
const FORMAT: &str = "AGENT_LOG_FORMAT";

/// Log of one run.
pub struct Log<'a> {
    to: RefCell<&'a mut dyn Write>,
    level: Cell<LogLevel>,
    json: Cell<bool>,
}

impl<'a> Log<'a> {
    /// Starts a log at level `info` in text.
    pub fn new(to: &'a mut dyn Write) -> Self {
        Self {
            to: RefCell::new(to),
            level: Cell::new(LogLevel::Info),
            json: Cell::new(false),
        }
    }

    /// Takes form and level from the environment.
    ///
    /// Errors: a form that does not exist.
    pub fn obey(&self, env: Env<'_>) -> Result<(), Error> {
        let form = value(env, FORMAT)?.unwrap_or_default();
        match form.to_ascii_lowercase().as_str() {
            "" | "text" => {}
            "json" => self.json.set(true),
            _ => {
                return Err(Error::Config(format!(
                    "{FORMAT}={form:?}: no such form; write text or json"
                )));
            }
        }
        let level = value(env, "LOG_LEVEL")?.and_then(|word| word.parse().ok());
        self.level.set(level.unwrap_or(LogLevel::Info));
        Ok(())
    }

    /// Takes the level of the configuration, which wins over the environment's, as everywhere in
    /// this system.
    pub fn configured(&self, level: Option<LogLevel>) {
        if let Some(level) = level {
            self.level.set(level);
        }
    }

    /// Writes one line.
    pub fn line(&self, level: LogLevel, text: &str) {
        if level > self.level.get() {
            return;
        }
        let line = if self.json.get() {
            json_line(SystemTime::now(), level, text)
        } else {
            format!("agent-init: {level}: {text}\n")
        };
        // One system call a line: other processes of the container may write there as well.
        let _ = self.to.borrow_mut().write_all(line.as_bytes());
    }

    /// Writes a line at level `info`.
    pub fn info(&self, text: &str) {
        self.line(LogLevel::Info, text);
    }

    /// Writes a line at level `warning`.
    pub fn warning(&self, text: &str) {
        self.line(LogLevel::Warning, text);
    }
}

/// Renders a line with the agent's keys, so that one pipeline reads both.
fn json_line(now: SystemTime, level: LogLevel, text: &str) -> String {
    let level = match level {
        LogLevel::Critical => "ERROR".to_owned(),
        LogLevel::Warning => "WARN".to_owned(),
        other => other.name().to_ascii_uppercase(),
    };
    let line = serde_json::json!({
        "timestamp": timestamp(now),
        "level": level,
        "message": text,
        "target": "agent_init",
    });
    format!("{line}\n")
}

/// Formats a time as RFC 3339 in UTC with microseconds.
fn timestamp(now: SystemTime) -> String {
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_micros()
    )
}

/// Date of a day since 1970, by the Gregorian calendar's 400-year cycle counted from 1 March.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_by_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(timestamp(time), text);
        }
    }

    #[test]
    fn a_json_line_has_the_agents_keys_and_one_line() {
        let line = json_line(SystemTime::UNIX_EPOCH, LogLevel::Warning, "a \"b\"\nc");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "WARN");
        assert_eq!(value["message"], "a \"b\"\nc");
        assert_eq!(value["timestamp"], "1970-01-01T00:00:00.000000Z");
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn an_unknown_form_is_refused_with_the_known_ones() {
        let mut out = Vec::new();
        let log = Log::new(&mut out);
        let env = |key: &str| (key == FORMAT).then(|| "xml".into());
        let message = log.obey(&env).unwrap_err().to_string();
        assert!(
            message.contains("xml") && message.contains("json"),
            "{message}"
        );
    }
}
