//! `/explain`: the rule that would decide a request, and for each rule the first clause that fails.
//! It uses the table of the data path.

use std::sync::atomic::Ordering;

use serde_json::{Value as Json, json};

use crate::admin::Agent;
use crate::admin::request::AdminRequest;
use traffic_core::routing::dial_memory::Reachability;
use traffic_core::routing::{Decision, Intercept, Request};

/// A request built from query parameters.
struct Imagined {
    target: String,
    headers: Vec<(String, String)>,
}

impl Request for Imagined {
    fn target(&self) -> &[u8] {
        self.target.as_bytes()
    }

    fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
        for (name, value) in &self.headers {
            visit(name.as_bytes(), value.as_bytes());
        }
    }
}

/// Answers `?port=8080&method=GET&path=/x&header=x-dev:a`; `header` may repeat, `port` may be left
/// out if there is only one.
///
/// # Errors
/// A parameter is missing or malformed; the text names it and says what to write.
pub fn explain(agent: &Agent, asked: &AdminRequest<'_>) -> Result<Json, String> {
    let known = || {
        agent
            .ports
            .iter()
            .map(|p| p.container_port.to_string())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let port = match asked.param("port") {
        None if agent.ports.len() == 1 => agent.ports.first(),
        None => {
            return Err(format!(
                "port: missing; use one of the container ports {}",
                known()
            ));
        }
        Some(text) => {
            let number: u16 = text
                .parse()
                .map_err(|_| format!("port={text:?}: not a port number; use one of {}", known()))?;
            agent.ports.iter().find(|p| p.container_port == number)
        }
    };
    let Some(port) = port else {
        return Err(format!(
            "port={}: not a container port of this agent; use one of {}",
            asked.param("port").unwrap_or_default(),
            known()
        ));
    };
    let mut headers = Vec::new();
    for (_, line) in asked.params().filter(|(n, _)| n == "header") {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| format!("header={line:?}: no colon; write name:value"))?;
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    let request = Imagined {
        target: asked.param("path").unwrap_or_else(|| "/".to_owned()),
        headers,
    };
    let table = port.routes.load_full();
    let (decision, considered) = table.explain(&request);
    let now = std::time::Instant::now();
    let (word, intercept, reason) = match decision {
        Decision::App if table.is_empty() => ("app", None, "no intercept on this port".to_owned()),
        Decision::App => ("app", None, "no intercept matches".to_owned()),
        Decision::Client(i) => match unreachable(i, now) {
            Some(why) => (
                "app",
                Some(i.id.clone()),
                format!("all clauses of {} match, but {why}", i.name),
            ),
            None => (
                "client",
                Some(i.id.clone()),
                format!("all clauses of {} match", i.name),
            ),
        },
        Decision::Expired(i) => (
            "expired",
            Some(i.id.clone()),
            format!("{} has ended; its matches are answered with 503", i.name),
        ),
    };
    let considered: Vec<_> = considered
        .iter()
        .map(|c| json!({ "id": c.id, "name": c.name, "matched": c.matched, "failed": c.failed }))
        .collect();
    Ok(json!({
        "port": port.container_port,
        "decision": word,
        "intercept": intercept,
        "reason": reason,
        "considered": considered,
        "appTls": port.app.tls_fault(),
    }))
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
