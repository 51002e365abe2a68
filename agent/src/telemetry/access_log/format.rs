//! Access-log formats: a documented subset of Envoy's command operators, compiled once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use traffic_proto::printable::printable;

use crate::telemetry::access_log::entry::LogEntry;

/// Envoy's default format string.
pub const DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% \
    %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"";

/// A compiled format.
#[derive(Clone, Debug)]
pub enum Format {
    /// Text of literals and operators.
    Text(Vec<Piece>),
    /// JSON: one object per line with all fields.
    Json,
}

/// Error in a format string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// An operator outside the subset.
    #[error(
        "access log format: operator %{0}% is not known; use one of START_TIME, REQ(name), \
        RESP(name), PROTOCOL, RESPONSE_CODE, RESPONSE_FLAGS, BYTES_RECEIVED, BYTES_SENT, DURATION, \
        RESPONSE_DURATION, DOWNSTREAM_REMOTE_ADDRESS, DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT, \
        UPSTREAM_HOST, ROUTE, ROUTE_REASON, INTERCEPT, WIRETAPS"
    )]
    Operator(String),
    /// A percent sign without a partner.
    #[error(
        "access log format: a percent sign at byte {0} has no partner; write %% for a literal one"
    )]
    Unfinished(usize),
}

/// One part of a text format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Literal text.
    Literal(String),
    /// A request header, or one of `:method`, `:path`, `:authority`; the second name is used if the
    /// first is absent.
    Request(String, Option<String>),
    /// A response header; only the upstream's time is available.
    Response(String),
    /// An operator without a parameter.
    Plain(Plain),
}

/// Operators without a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// Time the request head was complete, RFC 3339 with milliseconds.
    StartTime,
    /// HTTP version.
    Protocol,
    /// Final status, 0 if none arrived.
    ResponseCode,
    /// Envoy's response flags.
    ResponseFlags,
    /// Request body bytes.
    BytesReceived,
    /// Response body bytes.
    BytesSent,
    /// Milliseconds from head to end.
    Duration,
    /// Milliseconds to the upstream's first byte.
    ResponseDuration,
    /// Caller address with port.
    Remote,
    /// Caller address without port.
    RemoteWithoutPort,
    /// App address or `tunnel`.
    UpstreamHost,
    /// `app`, `client` or `expired`.
    Route,
    /// Reason for the route.
    RouteReason,
    /// The intercept's id.
    Intercept,
    /// Ids of the wiretaps that get a copy.
    Wiretaps,
}

const PLAIN: &[(&str, Plain)] = &[
    ("START_TIME", Plain::StartTime),
    ("PROTOCOL", Plain::Protocol),
    ("RESPONSE_CODE", Plain::ResponseCode),
    ("RESPONSE_FLAGS", Plain::ResponseFlags),
    ("BYTES_RECEIVED", Plain::BytesReceived),
    ("BYTES_SENT", Plain::BytesSent),
    ("DURATION", Plain::Duration),
    ("RESPONSE_DURATION", Plain::ResponseDuration),
    ("DOWNSTREAM_REMOTE_ADDRESS", Plain::Remote),
    (
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
        Plain::RemoteWithoutPort,
    ),
    ("UPSTREAM_HOST", Plain::UpstreamHost),
    ("ROUTE", Plain::Route),
    ("ROUTE_REASON", Plain::RouteReason),
    ("INTERCEPT", Plain::Intercept),
    ("WIRETAPS", Plain::Wiretaps),
];

impl Format {
    /// Compiles a setting; `None` for `off` or an empty one.
    ///
    /// # Errors
    /// An unknown operator or a stray percent sign.
    pub fn parse(setting: &str) -> Result<Option<Self>, FormatError> {
        Ok(match setting.trim() {
            "" | "off" => None,
            "json" => Some(Self::Json),
            "text" => Some(Self::Text(pieces(DEFAULT)?)),
            custom => Some(Self::Text(pieces(custom)?)),
        })
    }

    /// Renders the line of `entry`, including its newline.
    #[must_use]
    pub fn render(&self, entry: &LogEntry, took: Duration) -> String {
        match self {
            Self::Json => json_line(entry, took),
            Self::Text(pieces) => {
                let mut line = String::with_capacity(256);
                for piece in pieces {
                    match piece {
                        Piece::Literal(text) => line.push_str(text),
                        Piece::Request(first, second) => {
                            let value = request_value(entry, first)
                                .or_else(|| request_value(entry, second.as_deref()?));
                            push_value(&mut line, value.as_deref().unwrap_or("-"));
                        }
                        Piece::Response(name) => {
                            // Responses are not looked at; this one header is Envoy's own
                            // measurement, as which ours stands.
                            let known = name == "x-envoy-upstream-service-time";
                            let time = entry
                                .upstream_time
                                .filter(|_| known)
                                .map(|t| t.as_millis().to_string());
                            // Digits alone need no escapes.
                            line.push_str(time.as_deref().unwrap_or("-"));
                        }
                        Piece::Plain(op) => push_value(&mut line, &plain_value(*op, entry, took)),
                    }
                }
                line.push('\n');
                line
            }
        }
    }
}

/// Appends a value with escapes: callers choose values, and control characters could forge another
/// line.
fn push_value(line: &mut String, value: &str) {
    line.push_str(&printable(value));
}

fn pieces(format: &str) -> Result<Vec<Piece>, FormatError> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = format;
    while let Some(open) = rest.find('%') {
        let (before, after) = rest.split_at(open);
        literal.push_str(before);
        let after = after.get(1..).unwrap_or_default();
        let close = after
            .find('%')
            .ok_or(FormatError::Unfinished(format.len() - after.len() - 1))?;
        let (operator, tail) = after.split_at(close);
        rest = tail.get(1..).unwrap_or_default();
        // `%%` is a percent sign.
        if operator.is_empty() {
            literal.push('%');
            continue;
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(std::mem::take(&mut literal)));
        }
        pieces.push(piece(operator)?);
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    Ok(pieces)
}

fn piece(operator: &str) -> Result<Piece, FormatError> {
    let parameter = |name: &str| {
        operator
            .strip_prefix(name)?
            .strip_prefix('(')?
            .strip_suffix(')')
            .map(str::to_ascii_lowercase)
    };
    if let Some(names) = parameter("REQ") {
        return Ok(match names.split_once('?') {
            Some((first, second)) => Piece::Request(first.to_owned(), Some(second.to_owned())),
            None => Piece::Request(names, None),
        });
    }
    if let Some(name) = parameter("RESP") {
        return Ok(Piece::Response(name));
    }
    let known = PLAIN.iter().find(|(name, _)| *name == operator);
    known
        .map(|(_, op)| Piece::Plain(*op))
        .ok_or_else(|| FormatError::Operator(operator.to_owned()))
}

/// Returns the text unless it is empty, as for opaque connections.
fn non_empty(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

fn request_value(entry: &LogEntry, name: &str) -> Option<String> {
    match name {
        ":method" => non_empty(&entry.method),
        ":path" => non_empty(&entry.target),
        ":authority" | "host" => non_empty(&entry.authority),
        listed => entry
            .headers
            .iter()
            .find(|(n, _)| n == listed)
            .map(|(_, v)| v.clone()),
    }
}

fn plain_value(op: Plain, entry: &LogEntry, took: Duration) -> String {
    let or_dash = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text.to_owned()
        }
    };
    match op {
        Plain::StartTime => rfc3339(entry.started),
        Plain::Protocol => or_dash(entry.protocol),
        Plain::ResponseCode => entry.status.to_string(),
        Plain::ResponseFlags => entry.flags.to_owned(),
        Plain::BytesReceived => entry.received.to_string(),
        Plain::BytesSent => entry.sent.to_string(),
        Plain::Duration => took.as_millis().to_string(),
        Plain::ResponseDuration => entry
            .upstream_time
            .map_or_else(|| "-".to_owned(), |t| t.as_millis().to_string()),
        Plain::Remote => entry.caller.to_string(),
        Plain::RemoteWithoutPort => entry.caller.0.ip().to_string(),
        Plain::UpstreamHost => or_dash(&entry.upstream),
        Plain::Route => entry.route.to_owned(),
        Plain::RouteReason => or_dash(&entry.reason),
        Plain::Intercept => or_dash(entry.intercept.as_deref().unwrap_or_default()),
        Plain::Wiretaps => or_dash(&entry.copies.join(",")),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn json_line(entry: &LogEntry, took: Duration) -> String {
    let headers: serde_json::Map<_, _> = entry
        .headers
        .iter()
        .map(|(n, v)| (n.clone(), json!(v)))
        .collect();
    let line = json!({
        "start_time": rfc3339(entry.started),
        "method": non_empty(&entry.method),
        "path": non_empty(&entry.target),
        "authority": non_empty(&entry.authority),
        "protocol": non_empty(entry.protocol),
        "response_code": entry.status,
        "response_flags": entry.flags,
        "bytes_received": entry.received,
        "bytes_sent": entry.sent,
        "duration": milliseconds(took),
        "upstream_service_time": entry.upstream_time.map(milliseconds),
        "downstream_remote_address": entry.caller.to_string(),
        "upstream_host": non_empty(&entry.upstream),
        "route": entry.route,
        "reason": entry.reason,
        "intercept": entry.intercept,
        "wiretaps": entry.copies,
        "headers": headers,
    });
    line.to_string() + "\n"
}

/// Formats a time as RFC 3339 in UTC with milliseconds; the civil date by Howard Hinnant's
/// day-number arithmetic.
#[must_use]
pub fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days_and_year_ends() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (1_735_689_600, "2025-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_stray_percent_sign_is_named_by_its_place() {
        assert_eq!(
            Format::parse("a %").unwrap_err(),
            FormatError::Unfinished(2)
        );
    }

    #[test]
    fn a_value_cannot_forge_a_line() {
        let mut line = String::new();
        push_value(&mut line, "a\nb\u{1b}");
        assert_eq!(line, "a\\nb\\u{1b}");
    }

    /// Operators documented in docs/operations.md.
    fn documented() -> Vec<String> {
        let text = include_str!("../../../../docs/operations.md");
        let table = text
            .split("## Access log")
            .nth(1)
            .unwrap()
            .split("## ")
            .next()
            .unwrap();
        let cells = table
            .lines()
            .filter_map(|line| line.strip_prefix("| `%")?.split(" | ").next());
        cells
            .flat_map(|cell| {
                format!("`%{cell}")
                    .split(", ")
                    .map(|op| op.trim_matches('`').to_owned())
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn every_documented_operator_says_what_the_document_says_and_every_operator_is_documented() {
        let mut entry = LogEntry::of(crate::addr::Caller("10.0.0.9:1234".parse().unwrap()));
        entry.started = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        (entry.method, entry.target, entry.protocol) =
            ("GET".to_owned(), "/a?b".to_owned(), "HTTP/2");
        entry.headers = vec![("name".to_owned(), "listed".to_owned())];
        (entry.status, entry.flags, entry.received, entry.sent) = (503, "UF", 7, 11);
        (entry.upstream_time, entry.upstream) =
            (Some(Duration::from_millis(5)), "10.0.0.1:80".to_owned());
        (entry.route, entry.reason, entry.intercept) =
            ("client", "matched mine".to_owned(), Some("id".to_owned()));
        entry.copies = vec!["tap".to_owned(), "other".to_owned()];
        let expected = [
            ("%START_TIME%", "2023-11-14T22:13:20.123Z"),
            ("%REQ(NAME)%", "listed"),
            ("%REQ(NAME?OTHER)%", "listed"),
            ("%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%", "5"),
            ("%PROTOCOL%", "HTTP/2"),
            ("%RESPONSE_CODE%", "503"),
            ("%RESPONSE_FLAGS%", "UF"),
            ("%BYTES_RECEIVED%", "7"),
            ("%BYTES_SENT%", "11"),
            ("%DURATION%", "9"),
            ("%RESPONSE_DURATION%", "5"),
            ("%DOWNSTREAM_REMOTE_ADDRESS%", "10.0.0.9:1234"),
            ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.9"),
            ("%UPSTREAM_HOST%", "10.0.0.1:80"),
            ("%ROUTE%", "client"),
            ("%ROUTE_REASON%", "matched mine"),
            ("%INTERCEPT%", "id"),
            ("%WIRETAPS%", "tap,other"),
        ];
        assert_eq!(documented(), expected.map(|(operator, _)| operator));
        for (operator, value) in expected {
            let format = Format::parse(operator).unwrap().unwrap();
            assert_eq!(
                format.render(&entry, Duration::from_millis(9)),
                format!("{value}\n"),
                "{operator}"
            );
        }
        let refusal = FormatError::Operator(String::new()).to_string();
        for (name, _) in PLAIN {
            assert!(
                documented().contains(&format!("%{name}%")) && refusal.contains(name),
                "{name}"
            );
        }
    }
}
