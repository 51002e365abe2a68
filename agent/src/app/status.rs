//! `traffic-agent status`: reads the running agent's admin port and prints a compact table.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value as Json;
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a response, in bytes.
const MAX_RESPONSE: usize = 16 * 1024 * 1024;

/// Error of reading the status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The file with the port numbers is missing or malformed.
    #[error(
        "{path}: {problem}; is the agent running here? Give its admin port with --admin-port N"
    )]
    Ports {
        /// Path of the file.
        path: PathBuf,
        /// Problem with it.
        problem: String,
    },
    /// The admin port did not answer as expected.
    #[error(
        "admin port {address}{page}: {problem}; check that the agent runs and that this is its \
        admin port"
    )]
    Admin {
        /// Address of the admin port.
        address: SocketAddr,
        /// Requested page.
        page: &'static str,
        /// Problem of the request.
        problem: String,
    },
}

/// Reads the admin port's number from `<root>/tmp/agent/ports.json`.
///
/// # Errors
/// The file is missing, or has no number under `admin`.
pub fn admin_port(root: &Path) -> Result<u16, StatusError> {
    let path = root.join("tmp/agent/ports.json");
    let problem = |problem: String| StatusError::Ports {
        path: path.clone(),
        problem,
    };
    let text = std::fs::read_to_string(&path).map_err(|e| problem(e.to_string()))?;
    let ports: Json = serde_json::from_str(&text).map_err(|e| problem(e.to_string()))?;
    let port = ports["admin"].as_u64().and_then(|p| u16::try_from(p).ok());
    port.ok_or_else(|| problem(format!("no port number under \"admin\" in {}", text.trim())))
}

/// Requests the status from the admin port on loopback and renders the table.
///
/// # Errors
/// The port does not answer, or not as an agent does.
pub async fn table(port: u16) -> Result<String, StatusError> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let info = page(address, "/server_info").await?;
    let intercepts = page(address, "/intercepts").await?;
    let stats = page(address, "/stats?format=json").await?;
    let certs = page(address, "/certs").await?;
    Ok(render(&info, &intercepts, &stats, &certs))
}

async fn page(address: SocketAddr, page: &'static str) -> Result<Json, StatusError> {
    let failed = |problem: String| StatusError::Admin {
        address,
        page,
        problem,
    };
    let body = tokio::time::timeout(TIMEOUT, fetch(address, page))
        .await
        .map_err(|_| failed(format!("no answer within {TIMEOUT:?}")))?
        .map_err(|e| failed(e.to_string()))?;
    serde_json::from_slice(&body).map_err(|e| failed(format!("not JSON: {e}")))
}

async fn fetch(
    address: SocketAddr,
    page: &str,
) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let socket = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    let request = hyper::Request::get(page)
        .header("host", "localhost")
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        if !answer.status().is_success() {
            return Err(format!("answered {}", answer.status()).into());
        }
        // The port may belong to another program, so its response is bounded.
        Ok(Limited::new(answer.into_body(), MAX_RESPONSE)
            .collect()
            .await?
            .to_bytes())
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection may end before its response was delivered to us, so its end is not a
        // result yet.
        ended = connection => {
            ended?;
            exchange.await
        }
    }
}

fn render(info: &Json, intercepts: &Json, stats: &Json, certs: &Json) -> String {
    let mut out = heading(info);
    port_tables(&mut out, intercepts, stats);
    for cert in certs["certificates"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|c| c["cert_chain"].get(0))
    {
        let _ = writeln!(
            out,
            "\nTLS port {} {}: {} expires {} ({} days)",
            cert["port"],
            text(&cert["role"]),
            text(&cert["path"]),
            text(&cert["expiration_time"]),
            text(&cert["days_until_expiration"])
        );
    }
    out
}

fn heading(info: &Json) -> String {
    let own = &info["traffic_agent"];
    let session = if own["session_connected"] == Json::Bool(true) {
        "connected"
    } else {
        "NOT CONNECTED"
    };
    format!(
        "{} {}  up {}  {}\nmanager {}  {session}\n\n",
        text(&info["node"]["cluster"]),
        text(&info["version"]),
        text(&info["uptime_current_epoch"]),
        text(&info["state"]),
        text(&own["manager"])
    )
}

/// Writes a table of the ports and, if there are any, one of the intercepts.
fn port_tables(out: &mut String, intercepts: &Json, stats: &Json) {
    let mut rows = vec![
        [
            "PORT",
            "AGENT",
            "PROTOCOL",
            "OPEN",
            "CONNECTIONS",
            "REQUESTS",
            "APP",
            "CLIENT",
            "FAIL-OPEN",
            "5XX",
            "INTERCEPTS",
        ]
        .map(str::to_owned),
    ];
    for port in intercepts["ports"].as_array().into_iter().flatten() {
        rows.push(port_row(port, stats));
    }
    columns(out, &rows);
    let mut rows = vec![
        [
            "INTERCEPT",
            "OWNER",
            "TAKES",
            "STATE",
            "HITS",
            "FAIL-OPEN",
            "TUNNEL",
            "WORKSTATION",
        ]
        .map(str::to_owned),
    ];
    for port in intercepts["ports"].as_array().into_iter().flatten() {
        rows.extend(
            port["intercepts"]
                .as_array()
                .into_iter()
                .flatten()
                .map(intercept_row),
        );
    }
    if rows.len() > 1 {
        out.push('\n');
        columns(out, &rows);
    }
}

fn port_row(port: &Json, stats: &Json) -> [String; 11] {
    let number = &port["containerPort"];
    // A number may serve TCP and UDP, which have statistics of their own.
    let name = match text(&port["protocol"]) {
        "UDP" => format!("port_{number}_udp"),
        _ => format!("port_{number}"),
    };
    let ours = format!("traffic_agent.{name}.");
    let total_of = |counts: &dyn Fn(&str) -> bool| -> u64 {
        let list = stats["stats"].as_array().into_iter().flatten();
        list.filter(|s| text(&s["name"]).strip_prefix(&ours).is_some_and(counts))
            .filter_map(|s| s["value"].as_u64())
            .sum()
    };
    let sum = |names: &[&str]| total_of(&|name| names.contains(&name));
    let fail_open = total_of(&|name| name.starts_with("fail_open."));
    let app = sum(&["http1.requests.app", "http2.requests.app", "http2.relayed"]);
    let client = sum(&["http1.requests.client", "http2.requests.client"]);
    let named = |stat: &str| {
        let mut list = stats["stats"].as_array().into_iter().flatten();
        list.find(|s| text(&s["name"]) == format!("http.{name}.{stat}"))
            .map_or(0, |s| s["value"].as_i64().unwrap_or(0))
    };
    let total = app + client + sum(&["http1.requests.expired", "http2.requests.expired"]);
    [
        format!("{number}/{}", text(&port["protocol"])),
        port["agentPort"].to_string(),
        format!(
            "{} by {}",
            text(&port["appProtocol"]),
            text(&port["source"])
        ),
        named("downstream_cx_active").to_string(),
        sum(&[
            "connections.http1",
            "connections.http2",
            "connections.opaque",
        ])
        .to_string(),
        total.to_string(),
        app.to_string(),
        client.to_string(),
        fail_open.to_string(),
        named("downstream_rq_5xx").to_string(),
        port["intercepts"]
            .as_array()
            .map_or(0, Vec::len)
            .to_string(),
    ]
}

fn intercept_row(i: &Json) -> [String; 8] {
    let headers = i["headers"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(n, v)| format!("{n}={}", text(v)));
    let paths = i["paths"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|p| text(p).trim_start_matches(':').to_owned());
    let takes = headers.chain(paths).collect::<Vec<_>>().join(" ");
    [
        text(&i["name"]).to_owned(),
        text(&i["client"]).to_owned(),
        if takes.is_empty() {
            "everything".to_owned()
        } else {
            takes
        },
        text(&i["state"]).to_owned(),
        i["hits"].to_string(),
        i["failedOpen"].as_u64().unwrap_or(0).to_string(),
        text(&i["tunnel"]).to_owned(),
        match text(&i["lastFailure"]) {
            "" => text(&i["workstation"]).to_owned(),
            why => format!("{}: {why}", text(&i["workstation"])),
        },
    ]
}

fn columns<const N: usize>(out: &mut String, rows: &[[String; N]]) {
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..N).map(width).collect();
    for row in rows {
        let line = row
            .iter()
            .zip(&widths)
            .map(|(cell, w)| format!("{cell:w$}"))
            .collect::<Vec<_>>()
            .join("  ");
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

fn text(value: &Json) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_sums_what_went_where() {
        let info = json!({ "version": "v1", "state": "LIVE", "uptime_current_epoch": "7s", "node": { "cluster": "echo" },
            "traffic_agent": { "manager": "tm:8081", "session_connected": true } });
        let intercepts = json!({ "ports": [{ "containerPort": 8080, "agentPort": 9900, "protocol": "TCP", "appProtocol": "http", "source": "declared",
            "intercepts": [{ "name": "mine", "client": "jane@host", "headers": { "x-dev": "a" }, "paths": [":path-prefix:/api"], "state": "active", "hits": 3, "failedOpen": 2,
                "workstation": "unreachable", "lastFailure": "nothing listens on 127.0.0.1:3000", "tunnel": "direct" }] },
            { "containerPort": 8080, "agentPort": 9901, "protocol": "UDP", "appProtocol": "tcp", "source": "declared", "intercepts": [] }] });
        let stats = json!({ "stats": [
            { "name": "traffic_agent.port_8080.http1.requests.app", "value": 5 },
            { "name": "traffic_agent.port_8080.http1.requests.client", "value": 3 },
            { "name": "traffic_agent.port_8080.fail_open.no_tunnel", "value": 1 },
            { "name": "http.port_8080.downstream_cx_active", "value": 2 },
            { "name": "http.port_8080.downstream_rq_5xx", "value": 4 },
            { "name": "http.port_8080_udp.downstream_cx_active", "value": 7 },
            { "name": "traffic_agent.port_80801.http1.requests.app", "value": 99 } ] });
        let table = render(&info, &intercepts, &stats, &json!({ "certificates": [] }));
        let row: Vec<_> = table
            .lines()
            .find(|l| l.starts_with("8080/TCP"))
            .unwrap()
            .split_whitespace()
            .collect();
        assert_eq!(
            row,
            [
                "8080/TCP", "9900", "http", "by", "declared", "2", "0", "8", "5", "3", "1", "4",
                "1"
            ]
        );
        assert!(table.contains("x-dev=a path-prefix:/api"), "{table}");
        assert!(
            table.contains("unreachable: nothing listens on 127.0.0.1:3000"),
            "{table}"
        );
        let udp = table.lines().find(|l| l.starts_with("8080/UDP")).unwrap();
        assert!(udp.contains("  7  "), "{table}");
    }

    #[test]
    fn a_missing_ports_file_is_named_with_the_way_out() {
        let error = admin_port(Path::new("/nonexistent-root"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nonexistent-root/tmp/agent/ports.json")
                && error.contains("--admin-port"),
            "{error}"
        );
    }
}
