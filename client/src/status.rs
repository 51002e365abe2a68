//! `status`: what the `create` processes of this user are doing.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::time::timeout;
use traffic_proto::base64url;

use crate::Failure;
use crate::flags::{Output, Status};
use crate::listing::span;
use crate::live;
use crate::report::{self, counted, line, plain};
use crate::terminal::Style;

/// Time for a process to tell.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes that one tells.
const MAX_ANSWER: u64 = 64 * 1024;

/// Prints session, tunnels and failures of every intercept that runs on this machine.
///
/// # Errors
/// No folder is there in which they could be found.
pub async fn status(flags: &Status) -> Result<(), Failure> {
    let mut told = told().await?;
    for one in told.iter_mut().filter_map(Value::as_object_mut) {
        one.remove(live::TO_LEAVE);
    }
    told.sort_by_key(|one| (text(one, "name").to_owned(), one["pid"].as_u64()));
    match flags.output {
        Output::Json => report::block(&format!("{:#}", Value::from(told))),
        Output::Text if told.is_empty() => {
            line("No intercept runs on this machine; intercept list shows those of all");
        }
        Output::Text => {
            let style = Style::of_stdout();
            let now = SystemTime::now();
            let blocks: Vec<_> = told.iter().map(|one| block(one, now, style)).collect();
            report::block(&blocks.join("\n"));
        }
    }
    Ok(())
}

/// Asks this user's processes for their figures.
async fn told() -> Result<Vec<Value>, Failure> {
    let folder = live::folder().map_err(|error| Failure::Failed(error.to_string()))?;
    let mut told = Vec::new();
    for path in sockets(&folder) {
        if let Some(one) = ask(&path).await {
            told.push(one);
        }
    }
    Ok(told)
}

/// Returns what proves to the manager that a session's intercepts may be ended, from the process
/// that has it; none if it is not one of this user's on this machine.
pub(crate) async fn proof_to_leave(session: &str) -> Option<Vec<u8>> {
    let told = told().await.ok()?;
    let mut told = told.iter().map(|one| &one[live::TO_LEAVE]);
    let own = told.find(|one| text(one, "session") == session)?;
    base64url::decode(text(own, "proof").as_bytes())
}

fn sockets(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|it| it == "sock"))
        .collect()
}

/// Answer of the process behind a socket; none if it has ended.
async fn ask(path: &Path) -> Option<Value> {
    let Ok(stream) = UnixStream::connect(path).await else {
        // It was killed.
        let _ = std::fs::remove_file(path);
        return None;
    };
    let mut told = Vec::new();
    let mut stream = stream.take(MAX_ANSWER);
    let read = timeout(ANSWER_TIMEOUT, stream.read_to_end(&mut told)).await;
    read.ok()?.ok()?;
    serde_json::from_slice(&told).ok()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn block(one: &Value, now: SystemTime, style: Style) -> String {
    let number = |key: &str| one[key].as_u64().unwrap_or_default();
    let word = |key: &str| plain(text(one, key));
    let since = UNIX_EPOCH + Duration::from_secs(number("manager_since"));
    let since = span(now.duration_since(since).unwrap_or_default());
    let session = match word("manager_lost") {
        lost if lost.is_empty() => format!("connected to {} for {since}", word("manager")),
        lost => format!("{} not reached for {since}: {lost}", word("manager")),
    };
    let state = traffic_proto::manager::InterceptDispositionType::from_str_name(text(one, "state"))
        .unwrap_or_default();
    let ports = one["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let is_udp = |port: &&Value| text(port, "transport") == "UDP";
    let unit = match ports.iter().filter(is_udp).count() {
        0 => "connection",
        all if all == ports.len() => "flow",
        _ => "tunnel",
    };
    // One port has one target, which is told here; several are told below.
    let target = match ports {
        [] | [_] => word("target"),
        _ => "the local servers".to_owned(),
    };
    let mut lines = vec![
        format!("{}  {}", style.bold(&word("name")), style.state(state)),
        format!(
            "  workload  {} in namespace {}",
            word("workload"),
            word("namespace")
        ),
        format!("  session   {session}"),
        format!(
            "  tunnels   {} open, {} so far, to {target}",
            number("tunnels_open"),
            number("tunnels_so_far"),
        ),
    ];
    if unit != "connection" || ports.len() > 1 {
        let ports: Vec<_> = ports.iter().map(port).collect();
        lines.push(format!("  ports     {}", ports.join(", ")));
    }
    // Agents tell how many every few seconds, to managers that want to know.
    if number("hits") + number("failed_open") > 0 {
        lines.push(format!(
            "  requests  {} came here, {} went to the app",
            number("hits"),
            number("failed_open")
        ));
    }
    let failed = number("tunnels_failed");
    let unreached = format!("{} did not reach {target}", counted(failed, unit));
    let failures = match (failed, word("message")) {
        (0, message) if message.is_empty() => "none".to_owned(),
        (0, message) => message,
        (_, message) if message.is_empty() => unreached,
        (_, message) => format!("{unreached}; {message}"),
    };
    lines.push(format!("  failures  {failures}"));
    lines.push(format!("  process   {}", number("pid")));
    lines.join("\n") + "\n"
}

/// Formats a port with its transport and local address.
fn port(value: &Value) -> String {
    let [port, transport, target] =
        ["port", "transport", "target"].map(|key| plain(text(value, key)));
    let slash = if port.is_empty() || transport.is_empty() {
        ""
    } else {
        "/"
    };
    format!("{port}{slash}{transport} -> {target}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_tells_session_tunnels_and_failures() {
        let one = serde_json::json!({
            "pid": 42, "name": "mine", "workload": "echo", "namespace": "shop", "target": "127.0.0.1:3000",
            "state": "ACTIVE", "message": "", "manager": "localhost:8081", "manager_lost": "", "manager_since": 100,
            "tunnels_open": 1, "tunnels_so_far": 5, "tunnels_failed": 2, "hits": 9, "failed_open": 2,
        });
        let now = UNIX_EPOCH + Duration::from_secs(160);
        assert_eq!(
            block(&one, now, Style::PLAIN),
            "mine  ACTIVE\n  workload  echo in namespace shop\n  session   connected to localhost:8081 for 1 min\n  \
             tunnels   1 open, 5 so far, to 127.0.0.1:3000\n  requests  9 came here, 2 went to the app\n  \
             failures  2 connections did not reach 127.0.0.1:3000\n  process   42\n"
        );
    }

    #[test]
    fn several_ports_are_told_with_transport_and_target() {
        let mut one = serde_json::json!({
            "name": "mine", "target": "127.0.0.1:3000", "tunnels_failed": 1,
            "ports": [
                {"port": "http", "transport": "TCP", "target": "127.0.0.1:3000"},
                {"port": "dns", "transport": "UDP", "target": "127.0.0.1:5353"},
                {"port": "x", "transport": null, "target": "127.0.0.1:1"},
            ],
        });
        let shown = |one: &Value| block(one, UNIX_EPOCH, Style::PLAIN);
        for part in [
            "  tunnels   0 open, 0 so far, to the local servers\n",
            "  ports     http/TCP -> 127.0.0.1:3000, dns/UDP -> 127.0.0.1:5353, x -> 127.0.0.1:1\n",
            "  failures  1 tunnel did not reach the local servers\n",
        ] {
            assert!(shown(&one).contains(part), "no {part:?} in {}", shown(&one));
        }
        let udp = one["ports"][1].clone();
        one["ports"] = Value::from(vec![udp]);
        one["target"] = "127.0.0.1:5353".into();
        for part in [
            "  ports     dns/UDP -> 127.0.0.1:5353\n",
            "  failures  1 flow did not reach 127.0.0.1:5353\n",
        ] {
            assert!(shown(&one).contains(part), "no {part:?} in {}", shown(&one));
        }
    }
}
