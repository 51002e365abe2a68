//! `/explain`: the rule that would decide a request, and for each rule the first clause that fails.
//! It uses the table of the data path.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value as Json, json};

use crate::admin::Agent;
use crate::admin::request::AdminRequest;
use crate::proxy::context::PortContext;
use crate::upstream::Transport;
use traffic_core::routing::dial_memory::Reachability;
use traffic_core::routing::{Decision, Intercept, Request};
use traffic_proto::port_identifier::PortIdentifier;

/// A request built from query parameters.
struct Imagined {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
}

impl Request for Imagined {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }

    fn target(&self) -> &[u8] {
        self.target.as_bytes()
    }

    fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
        for (name, value) in &self.headers {
            visit(name.as_bytes(), value.as_bytes());
        }
    }
}

/// Answers `?port=8080&method=GET&path=/x&header=x-dev:a`; `header` may repeat, `port` is a number or
/// name, possibly with `/UDP`, and may be left out if there is only one.
///
/// # Errors
/// A parameter is missing or malformed; the text names it and says what to write.
pub fn explain(agent: &Agent, asked: &AdminRequest<'_>) -> Result<Json, String> {
    let port = port_of(agent, asked)?;
    let request = Imagined {
        method: asked.param("method").unwrap_or_else(|| "GET".to_owned()),
        target: asked.param("path").unwrap_or_else(|| "/".to_owned()),
        headers: headers_of(asked)?,
    };
    let table = port.routes.load_full();
    let (decision, considered) = table.explain(&request);
    let (word, intercept, reason) = match decision {
        Decision::App if table.entries().is_empty() => (
            "app",
            None::<&Arc<Intercept>>,
            "no intercept on this port".to_owned(),
        ),
        Decision::App => ("app", None, "no intercept matches".to_owned()),
        Decision::Client(i) => match unreachable(i, std::time::Instant::now()) {
            Some(why) => (
                "app",
                Some(i),
                format!("all clauses of {} match, but {why}", i.name),
            ),
            None if port.transport == Transport::Udp => (
                "client",
                Some(i),
                format!("{} takes all datagrams of the port", i.name),
            ),
            None => (
                "client",
                Some(i),
                format!("all clauses of {} match", i.name),
            ),
        },
        Decision::Expired(i) => (
            "expired",
            Some(i),
            format!("{} has ended; its matches are answered with 503", i.name),
        ),
    };
    let copies = considered.iter().filter(|c| c.wiretap && c.matched);
    let copies: Vec<_> = copies.map(|c| c.id.as_str()).collect();
    let considered: Vec<_> = considered
        .iter()
        .map(|c| {
            json!({
                "id": c.id, "name": c.name, "wiretap": c.wiretap, "matched": c.matched,
                "failed": c.failed,
            })
        })
        .collect();
    Ok(json!({
        "port": port.container_port,
        "transport": transport_of(port),
        "decision": word,
        "intercept": intercept.map(|i| i.id.as_str()),
        "copies": copies,
        "reason": reason,
        "considered": considered,
        "failedOpen": intercept.map(|i| i.stats.failed_open.load(Ordering::Relaxed)),
        "appTls": port.app.tls_fault(),
        "unreadTls": port.unread_tls().map(|unread| unread.text),
    }))
}

/// Finds the port that is asked about, by number or name; the only one where none is named.
fn port_of<'a>(agent: &'a Agent, asked: &AdminRequest<'_>) -> Result<&'a PortContext, String> {
    let known = || {
        let ports = agent.ports.iter().map(|port| described(port));
        ports.collect::<Vec<_>>().join(", ")
    };
    let Some(text) = asked.param("port") else {
        return match &agent.ports[..] {
            [port] => Ok(port),
            _ => Err(format!(
                "port: missing; use one of the container ports {}",
                known()
            )),
        };
    };
    let wanted: PortIdentifier = text
        .parse()
        .map_err(|error| format!("port={text:?}: {error}; use one of {}", known()))?;
    let name = wanted.port.to_string();
    let is_number = |port: &PortContext| port.container_port.to_string() == name;
    let is_alias = |port: &PortContext| port.aliases.contains(&name);
    let found = fitting(agent, &wanted, is_number).or_else(|| fitting(agent, &wanted, is_alias));
    found.ok_or_else(|| {
        format!(
            "port={text}: not a port of this agent; use one of {}",
            known()
        )
    })
}

/// Returns the port of the wanted transport that `is_meant`; the one of TCP, by which requests come,
/// where there are both.
fn fitting<'a>(
    agent: &'a Agent,
    wanted: &PortIdentifier,
    is_meant: impl Fn(&PortContext) -> bool,
) -> Option<&'a PortContext> {
    let fits = |port: &&PortContext| {
        let is_wanted = wanted
            .transport
            .is_none_or(|it| it.name() == transport_of(port));
        is_wanted && is_meant(port)
    };
    let mut fitting = agent.ports.iter().map(AsRef::as_ref).filter(fits);
    let tcp = fitting.clone().find(|p| p.transport == Transport::Tcp);
    tcp.or_else(|| fitting.next())
}

fn transport_of(port: &PortContext) -> &'static str {
    match port.transport {
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
    }
}

fn described(port: &PortContext) -> String {
    let number = format!("{}/{}", port.container_port, transport_of(port));
    match port.aliases.as_slice() {
        [] => number,
        aliases => format!("{number} ({})", aliases.join(", ")),
    }
}

/// Reads the parameters `header=name:value`.
fn headers_of(asked: &AdminRequest<'_>) -> Result<Vec<(String, String)>, String> {
    let mut headers = Vec::new();
    for (_, line) in asked.params().filter(|(n, _)| n == "header") {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| format!("header={line:?}: no colon; write name:value"))?;
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    Ok(headers)
}

/// Says why the app gets what `intercept` matches, if that is so.
fn unreachable(intercept: &Intercept, now: std::time::Instant) -> Option<String> {
    let stats = &intercept.stats;
    let Reachability::Unreachable {
        failures,
        reason,
        retry_in,
    } = stats.dials.reachability(now)
    else {
        return None;
    };
    let retry = if retry_in.is_zero() {
        "the next request tries again".to_owned()
    } else {
        format!("tried again in {:.1} s", retry_in.as_secs_f32())
    };
    let lost = stats.failed_open.load(Ordering::Relaxed);
    Some(format!(
        "its workstation is not reached: {reason} ({failures} times in a row; {lost} requests went to the app so far; {retry})"
    ))
}
