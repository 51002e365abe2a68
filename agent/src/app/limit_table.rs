//! The table of every limit of the agent: those that can be set, and those that are fixed. The page
//! `docs/limits.md` is compared with it.

use traffic_core::ftp::MAX_LINE;
use traffic_core::http1::head::MAX_HEAD;
use traffic_core::routing::go_regex::{MAX_COMPILED, MAX_PATTERN};
use traffic_core::sftp::MAX_PACKET;
use traffic_proto::log_queue;
use traffic_proto::session_key::MAX_PROOFS;
use traffic_proto::tunnel::GRPC_LIMIT;

use crate::admin::metrics_port;
use crate::admin::server::MAX_FORM;
use crate::control::api_server::SEND_BUFFER;
use crate::control::dial_queue::MAX_QUEUED_DIALS;
use crate::control::manager_call::QUEUE_CAPACITY;
use crate::control::reviews::{MAX_REVIEW, MAX_REVIEWS_UNDER_WAY};
use crate::control::stream_windows::{MIN_STREAM_WINDOW, SHARED_WINDOWS, STREAM_WINDOW};
use crate::files::ftp::{CONNECT_TIMEOUT, IDLE_TIMEOUT};
use crate::files::server;
use crate::files::sftp::MAX_HANDLES;
use crate::limits::{ByteCount, LimitRow, rows};
use crate::proxy::listener::accept::MAX_CONNECTIONS;
use crate::proxy::wiretap::copy::MAX_COPY_BYTES_WAITING;
use crate::proxy::wiretap::slots::{MAX_LANES, MAX_LANES_OF_WIRETAP};
use crate::rest_api;
use crate::telemetry::explain_header;
use crate::tls::server::accept::HandshakeLimits;
use crate::upstream::copy_memory::{MAX_COPY_BYTES, MAX_COPY_BYTES_OF_WIRETAP};

/// All limits, those that can be set first.
#[must_use]
pub fn all() -> Vec<LimitRow> {
    let mut all = rows();
    all.extend(FIXED.iter().map(FixedLimit::row));
    all
}

/// A limit that can't be set.
struct FixedLimit {
    what: &'static str,
    // A function, because a constant cannot hold a text that is made from a number.
    value: fn() -> String,
    metric: &'static str,
    message: &'static str,
}

const fn fixed(
    what: &'static str,
    value: fn() -> String,
    metric: &'static str,
    message: &'static str,
) -> FixedLimit {
    FixedLimit {
        what,
        value,
        metric,
        message,
    }
}

/// Limits that can't be set.
const FIXED: &[FixedLimit] = &[
    fixed(
        "Open connections of one port; more are refused",
        || MAX_CONNECTIONS.to_string(),
        "traffic_agent_limits_total{limit=\"connections\"}",
        "connection limit reached: connection refused",
    ),
    fixed(
        "File descriptors; callers wait in the backlog meanwhile",
        || "`ulimit -n`".to_owned(),
        "traffic_agent_limits_total{limit=\"descriptors\"}",
        "out of file descriptors: accepting paused",
    ),
    fixed(
        "Head of an HTTP/1 message; the connection is relayed unread beyond it",
        || bytes(MAX_HEAD),
        "traffic_agent_limits_total{limit=\"head_bytes\"}",
        "",
    ),
    fixed(
        "Time for a head",
        || "60s".to_owned(),
        "traffic_agent_limits_total{limit=\"head_time\"}",
        "",
    ),
    fixed(
        "HTTP/2 frames that cost much and say little",
        || "a budget for each connection".to_owned(),
        "traffic_agent_limits_total{limit=\"http2_flood\"}",
        "",
    ),
    fixed(
        "TLS handshakes under way on one port; more wait",
        || HandshakeLimits::default().concurrent.to_string(),
        "traffic_agent_limits_total{limit=\"handshakes\"}",
        "",
    ),
    fixed(
        "A TLS ClientHello",
        || bytes(HandshakeLimits::default().hello_bytes),
        "traffic_agent_tls_failures_total{cause=\"malformed\"}",
        "",
    ),
    fixed(
        "A regular expression of a filter",
        || bytes(MAX_PATTERN),
        "",
        "",
    ),
    fixed("The same, compiled", || bytes(MAX_COMPILED), "", ""),
    fixed(
        "A message of the traffic-manager or a workstation",
        || bytes(GRPC_LIMIT),
        "",
        "",
    ),
    fixed(
        "Messages queued in one tunnel through the traffic-manager; its sender waits",
        || QUEUE_CAPACITY.to_string(),
        "",
        "",
    ),
    fixed(
        "Bytes that wait in one tunnel to an attached workstation; its sender waits",
        || bytes(SEND_BUFFER),
        "",
        "",
    ),
    fixed(
        "Bytes that an attached workstation may send into one tunnel ahead of its reader; in all tunnels with \
         something unread, and yet in one; it waits",
        || {
            let sizes = [STREAM_WINDOW, SHARED_WINDOWS, MIN_STREAM_WINDOW];
            sizes.map(|it| bytes(it as usize)).join(", ")
        },
        "",
        "",
    ),
    fixed(
        "Bytes that wait in one copy for a wiretap; the copy is dropped",
        || bytes(MAX_COPY_BYTES_WAITING),
        "traffic_agent_wiretap_copies_total{end=\"slow\"}",
        "a copy for a wiretap was dropped; its request is not affected",
    ),
    fixed(
        "The same for all copies of one wiretap, and of all wiretaps",
        || {
            let (one, all) = (MAX_COPY_BYTES_OF_WIRETAP, MAX_COPY_BYTES);
            format!("{}, {}", bytes(one), bytes(all))
        },
        "traffic_agent_wiretap_copies_total{end=\"memory\"}",
        "a copy for a wiretap was dropped; its request is not affected",
    ),
    fixed(
        "Connections to the workstation of one wiretap, and of all wiretaps; copies that would need more are dropped",
        || format!("{MAX_LANES_OF_WIRETAP}, {MAX_LANES}"),
        "traffic_agent_wiretap_copies_total{end=\"lanes\"}",
        "a copy for a wiretap was dropped; its request is not affected",
    ),
    fixed(
        "Dial requests queued for one workstation; it is skipped",
        || MAX_QUEUED_DIALS.to_string(),
        "",
        "",
    ),
    fixed(
        "Proofs of sessions' keys that are remembered; beyond, they are checked anew",
        || MAX_PROOFS.to_string(),
        "",
        "",
    ),
    fixed(
        "Connections to the REST API; more wait",
        || rest_api::MAX_CONNECTIONS.to_string(),
        "",
        "",
    ),
    fixed(
        "A form sent to the REST API",
        || bytes(traffic_core::rest_api::MAX_FORM),
        "",
        "",
    ),
    fixed(
        "SFTP connections; more wait",
        || server::MAX_SFTP_CONNECTIONS.to_string(),
        "",
        "",
    ),
    fixed(
        "Open files of one SFTP connection",
        || MAX_HANDLES.to_string(),
        "",
        "",
    ),
    fixed("An SFTP packet", || bytes(MAX_PACKET), "", ""),
    fixed(
        "FTP connections, each with one data connection; more wait",
        || server::MAX_FTP_CONNECTIONS.to_string(),
        "",
        "",
    ),
    fixed("An FTP command", || bytes(MAX_LINE), "", ""),
    fixed(
        "Time without an FTP command, or without progress of a transfer; for a data connection to come",
        || {
            format!(
                "{}s, {}s",
                IDLE_TIMEOUT.as_secs(),
                CONNECT_TIMEOUT.as_secs()
            )
        },
        "",
        "",
    ),
    fixed(
        "Log lines that wait for a reader; more are dropped",
        || format!("{}, {}", log_queue::MAX_LINES, bytes(log_queue::MAX_BYTES)),
        "traffic_agent_log_dropped_total",
        "log: lines were dropped because the reader of standard error stalled",
    ),
    fixed(
        "The same for the access log",
        || format!("{}, {}", log_queue::MAX_LINES, bytes(log_queue::MAX_BYTES)),
        "traffic_agent_access_log_dropped_total",
        "access log: the reader of standard output stalls; lines are dropped and counted",
    ),
    fixed(
        "An explanation header",
        || bytes(explain_header::MAX_LENGTH),
        "",
        "",
    ),
    fixed(
        "Connections to the metrics port at once; more wait",
        || metrics_port::MAX_CONNECTIONS.to_string(),
        "",
        "",
    ),
    fixed(
        "Reviews sent to the traffic-manager at once; more wait",
        || MAX_REVIEWS_UNDER_WAY.to_string(),
        "",
        "",
    ),
    fixed(
        "Fields of a form on the admin; a larger one counts as none",
        || bytes(MAX_FORM),
        "",
        "",
    ),
    fixed(
        "An arrival or review sent to the traffic-manager; the environment is left out of a larger one",
        || bytes(MAX_REVIEW),
        "traffic_agent_control_limits_total{limit=\"message_size\"}",
        "the environment is left out, exclude large variables to have the rest",
    ),
    fixed(
        "Dials for workstations to a port of the agent itself (admin, API, metrics; volumes but at the pod's address)",
        || "refused".to_owned(),
        "traffic_agent_control_limits_total{limit=\"dial_own_port\"}",
        "dial refused: the destination is a port of this agent",
    ),
    fixed(
        "Dials for workstations to link-local and metadata addresses, but for those of `dial.allow`",
        || "refused".to_owned(),
        "traffic_agent_control_limits_total{limit=\"dial_link_local\"}",
        "dial refused: the destination is a link-local or metadata address; dial.allow permits it",
    ),
    fixed(
        "Host names of the admin: loopback, the pod's addresses and its name; others get 403",
        || "–".to_owned(),
        "traffic_agent_control_limits_total{limit=\"admin_host\"}",
        "admin: a request for a foreign host name was refused",
    ),
];

impl FixedLimit {
    fn row(&self) -> LimitRow {
        LimitRow {
            what: self.what.to_owned(),
            default: (self.value)(),
            setting: "",
            metric: self.metric,
            message: self.message,
        }
    }
}

fn bytes(n: usize) -> String {
    ByteCount(n).to_string()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::limits::{Limits, markdown};
    use crate::telemetry::metrics::{ControlLimit, Label as _, Limit};

    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if !path.ends_with("limit_table.rs") && !path.ends_with("src/limits.rs") {
                found.push(path);
            }
        }
    }

    #[test]
    fn the_page_says_what_the_code_does() {
        let page = include_str!("../../../docs/limits.md");
        let table = markdown(&all());
        assert!(
            page.contains(&table),
            "docs/limits.md has to contain:\n{table}"
        );
    }

    #[test]
    fn every_message_of_the_table_is_said_by_the_code() {
        let mut files = Vec::new();
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut files,
        );
        let texts = files
            .iter()
            .map(|file| std::fs::read_to_string(file).unwrap());
        // Literals go on behind a backslash at the end of a line.
        let code: String = texts
            .flat_map(|text| {
                let lines = text
                    .lines()
                    .map(|l| format!("{} ", l.trim().trim_end_matches('\\').trim_end()));
                lines.collect::<Vec<_>>()
            })
            .collect();
        for row in all().iter().filter(|row| !row.message.is_empty()) {
            assert!(code.contains(row.message), "nobody says {:?}", row.message);
        }
    }

    #[test]
    fn every_counted_limit_has_a_row() {
        let all = all();
        let labels = Limit::ALL.iter().map(|l| l.label());
        for label in labels.chain(ControlLimit::ALL.iter().map(|l| l.label())) {
            let counted = |row: &LimitRow| row.metric.contains(&format!("limit=\"{label}\""));
            assert!(all.iter().any(counted), "{label}");
        }
        assert_eq!(rows().len(), Limits::NAMES.len());
    }
}
