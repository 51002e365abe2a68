//! The access log: one line per finished exchange, in Envoy's default format, as JSON, or in a
//! format string of Envoy's operators. Off by default; header values appear only for headers the
//! operator listed.
//!
//! Lines go through a bounded queue to a separate thread: a stalled reader costs lines, which are
//! counted and said, but never a request; they are written again as soon as it reads.

mod entry;
pub mod format;
pub mod record;

use std::sync::Arc;
use std::time::Duration;

use traffic_proto::log_queue::{LogEvent, LogQueue};
use traffic_proto::printable::Notation;

use crate::addr::Caller;
use crate::outcome::{Ended, Stage};
pub use crate::telemetry::access_log::entry::LogEntry;
use crate::telemetry::access_log::format::{Format, FormatError};
use traffic_core::routing::Request;

/// Per-request reporting of a port; off by default.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The access log, if enabled.
    pub log: Option<Arc<AccessLog>>,
    /// Pod name for explanations.
    pub pod: Arc<str>,
}

/// Returns Envoy's response flag for an outcome: `UF` no connection to the upstream, `UC` the
/// upstream broke off, `DC` the caller left, `DPE` the caller broke the protocol, `LR` cut by the
/// agent (drain, limit, bug), `-` a clean end.
#[must_use]
pub fn flag(ended: Ended) -> &'static str {
    match ended {
        Ended::Clean => "-",
        Ended::CallerLeft | Ended::CallerReset | Ended::Handshake => "DC",
        Ended::Malformed => "DPE",
        Ended::AppRefused | Ended::TimedOut(Stage::AppConnect) => "UF",
        Ended::AppReset | Ended::AppCut | Ended::TunnelLost => "UC",
        Ended::TimedOut(_) | Ended::Limit | Ended::Drained | Ended::Bug => "LR",
    }
}

/// Writer of access log lines; shared by all ports.
#[derive(Debug)]
pub struct AccessLog {
    format: Format,
    listed: Vec<String>,
    lines: LogQueue,
}

impl AccessLog {
    /// Reads the setting (`off`, `text`, `json` or a format string) and starts the writer to `out`.
    ///
    /// # Errors
    /// The format string has an operator outside the documented subset.
    pub fn start(
        setting: &str,
        listed: &[String],
        out: impl std::io::Write + Send + 'static,
    ) -> Result<Option<Self>, FormatError> {
        let Some(format) = Format::parse(setting)? else {
            return Ok(None);
        };
        // Values in a text format are escaped one by one; its literals are the operator's.
        let notation = matches!(format, Format::Json).then_some(Notation::Json);
        let lines = match LogQueue::start("access-log", out, notation, said) {
            Ok(lines) => lines,
            Err(error) => {
                tracing::error!(%error, "access log stays off: its writer thread could not be started");
                return Ok(None);
            }
        };
        let listed = listed.iter().map(|h| h.to_ascii_lowercase()).collect();
        Ok(Some(Self {
            format,
            listed,
            lines,
        }))
    }

    /// Lines dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.lines.dropped()
    }

    /// Waits at most `limit` until all lines are written.
    pub fn flush(&self, limit: Duration) {
        self.lines.flush(limit);
    }

    /// Starts the entry of an opaque connection: no method, path or status, only bytes and an
    /// outcome.
    #[must_use]
    pub fn begin_connection(&self, caller: Caller) -> Box<LogEntry> {
        Box::new(LogEntry::of(caller))
    }

    /// Starts the entry of an exchange whose request head is complete.
    pub fn begin<R: Request + ?Sized>(
        &self,
        request: &R,
        method: &[u8],
        protocol: &'static str,
        caller: Caller,
    ) -> Box<LogEntry> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut authority = String::new();
        let mut headers = Vec::new();
        request.visit_headers(&mut |name, value| {
            if name.eq_ignore_ascii_case(b"host") || name == b":authority" {
                authority = text(value);
            }
            if self
                .listed
                .iter()
                .any(|l| name.eq_ignore_ascii_case(l.as_bytes()))
            {
                headers.push((text(name).to_ascii_lowercase(), text(value)));
            }
        });
        let (method, target) = (text(method), text(request.target()));
        Box::new(LogEntry {
            method,
            target,
            authority,
            protocol,
            headers,
            ..LogEntry::of(caller)
        })
    }

    /// Writes the line of a finished exchange.
    pub fn end(&self, entry: &LogEntry) {
        let line = self.format.render(entry, entry.clock.elapsed());
        // Never waits: a stalled reader must not delay a request.
        self.lines.push(line.into_bytes());
    }
}

fn said(event: LogEvent<'_>) {
    match event {
        LogEvent::Dropping => tracing::warn!(
            "access log: the reader of standard output stalls; lines are dropped and counted"
        ),
        LogEvent::Failed(error) => {
            tracing::warn!(%error, "access log: lines cannot be written; trying on");
        }
        LogEvent::Resumed(dropped) => {
            tracing::warn!(dropped, "access log: lines are written again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    struct Head;
    impl Request for Head {
        fn method(&self) -> &[u8] {
            b"GET"
        }

        fn target(&self) -> &[u8] {
            b"/a?q=1"
        }
        fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
            visit(b"Host", b"shop");
            visit(b"X-Dev", b"a");
            visit(b"Authorization", b"secret-token");
        }
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Sink {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn line_of(setting: &str, listed: &[&str]) -> String {
        let sink = Sink::default();
        let listed: Vec<String> = listed.iter().map(ToString::to_string).collect();
        let log = AccessLog::start(setting, &listed, sink.clone())
            .unwrap()
            .unwrap();
        let mut entry = log.begin(
            &Head,
            b"GET",
            "HTTP/1.1",
            Caller("10.0.0.9:1234".parse().unwrap()),
        );
        (entry.status, entry.sent, entry.route) = (200, 17, "client");
        entry.reason = "header x-dev: a".to_owned();
        log.end(&entry);
        drop(log);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
            if text.ends_with('\n') || Instant::now() > deadline {
                return text;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_default_format_is_envoys_and_hides_what_is_not_listed() {
        let line = line_of("text", &[]);
        assert!(
            line.contains("\"GET /a?q=1 HTTP/1.1\" 200 - 0 17 "),
            "{line}"
        );
        assert!(line.contains("\"shop\""), "{line}");
        assert!(!line.contains("secret-token"), "{line}");
    }

    #[test]
    fn json_names_route_and_reason_and_only_listed_headers() {
        let line: serde_json::Value = serde_json::from_str(&line_of("json", &["X-Dev"])).unwrap();
        assert_eq!(line["route"], "client");
        assert_eq!(line["reason"], "header x-dev: a");
        assert_eq!(line["headers"]["x-dev"], "a");
        assert!(!line.to_string().contains("secret-token"));
    }

    #[test]
    fn a_format_string_takes_envoys_operators() {
        assert_eq!(
            line_of(
                "%REQ(:METHOD)% %RESPONSE_CODE% %REQ(X-DEV)% %REQ(AUTHORIZATION)% %ROUTE% 100%%",
                &["x-dev"]
            ),
            "GET 200 a - client 100%\n"
        );
        let error = Format::parse("%NO_SUCH_OPERATOR%").unwrap_err().to_string();
        assert!(error.contains("NO_SUCH_OPERATOR"), "{error}");
    }

    #[test]
    fn off_is_nothing() {
        assert!(
            AccessLog::start("off", &[], std::io::sink())
                .unwrap()
                .is_none()
        );
    }
}
