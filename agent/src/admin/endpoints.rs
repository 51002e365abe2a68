//! All paths of the admin server in one table with their handlers.

use std::fmt::Write as _;

use serde_json::json;

use crate::admin::request::{AdminRequest, Endpoint, Page};
use crate::admin::stats;
use crate::admin::stats::Value;
use crate::admin::{Agent, explain, exposition, html, views};
use crate::telemetry::logging;

/// Endpoints in the order of the index page.
pub const ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        path: "/",
        post: false,
        help: "Admin home page",
        answer: |_, _| html_page(html::index(ENDPOINTS)),
    },
    Endpoint {
        path: "/certs",
        post: false,
        help: "print certs on machine",
        answer: |_, a| json_page(&views::certs(a)),
    },
    Endpoint {
        path: "/clusters",
        post: false,
        help: "upstream cluster status (?format=json)",
        answer: clusters,
    },
    Endpoint {
        path: "/config_dump",
        post: false,
        help: "dump the current configuration, secrets redacted",
        answer: |_, a| json_page(&views::config_dump(a)),
    },
    Endpoint {
        path: "/drain_listeners",
        post: true,
        help: "drain listeners (?graceful)",
        answer: drain,
    },
    Endpoint {
        path: "/explain",
        post: false,
        help: "which rule decides a request (?port=&method=&path=&header=name:value)",
        answer: explained,
    },
    Endpoint {
        path: "/healthcheck/fail",
        post: true,
        help: "cause the agent to fail health checks",
        answer: |_, a| {
            a.ready.fail(true);
            ok()
        },
    },
    Endpoint {
        path: "/healthcheck/ok",
        post: true,
        help: "cause the agent to pass health checks",
        answer: |_, a| {
            a.ready.fail(false);
            ok()
        },
    },
    Endpoint {
        path: "/help",
        post: false,
        help: "print out list of admin commands",
        answer: |_, _| text(200, help_text()),
    },
    Endpoint {
        path: "/intercepts",
        post: false,
        help: "intercepts by port, with owners and match counts",
        answer: intercepts,
    },
    Endpoint {
        path: "/listeners",
        post: false,
        help: "print listener info (?format=json)",
        answer: listeners,
    },
    Endpoint {
        path: "/logging",
        post: true,
        help: "query/change logging levels (?level=, ?paths=name:level,…, ?name=level)",
        answer: logging_levels,
    },
    Endpoint {
        path: "/memory",
        post: false,
        help: "print current memory usage",
        answer: |_, _| json_page(&views::memory()),
    },
    Endpoint {
        path: "/quitquitquit",
        post: true,
        help: "shut the agent down gracefully",
        answer: |_, a| {
            a.commands.quit.notify_one();
            ok()
        },
    },
    Endpoint {
        path: "/ready",
        post: false,
        help: "print server state, return 200 if LIVE, otherwise return 503",
        answer: ready,
    },
    Endpoint {
        path: "/reset_counters",
        post: true,
        help: "reset all counters to zero",
        answer: |_, a| {
            stats::reset(a);
            ok()
        },
    },
    Endpoint {
        path: "/server_info",
        post: false,
        help: "print server version/status information",
        answer: |_, a| json_page(&views::server_info(a)),
    },
    Endpoint {
        path: "/stats",
        post: false,
        help: "print server stats (?filter=regex, ?usedonly, ?format=json|prometheus)",
        answer: stats_page,
    },
    Endpoint {
        path: "/stats/prometheus",
        post: false,
        help: "print server stats in prometheus format",
        answer: prometheus,
    },
];

/// Answers one request.
#[must_use]
pub fn answer(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    let path = if asked.path.len() > 1 {
        asked.path.trim_end_matches('/')
    } else {
        asked.path
    };
    let Some(endpoint) = ENDPOINTS.iter().find(|e| e.path == path) else {
        return text(404, format!("invalid path. {}", help_text()));
    };
    if endpoint.post && !asked.post {
        return text(
            405,
            format!("Method {} not allowed, POST required.", asked.method),
        );
    }
    if !matches!(asked.method, "GET" | "HEAD" | "POST") {
        return text(
            405,
            format!("Method {} not allowed, GET or POST required.", asked.method),
        );
    }
    if endpoint.post && asked.cross_site {
        return text(
            403,
            "requests from another site may not change anything\n".to_owned(),
        );
    }
    (endpoint.answer)(asked, agent)
}

impl AdminRequest<'_> {
    /// Returns the decoded value of a query parameter; empty for one without `=`.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<String> {
        self.params().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    /// Iterates over the decoded query parameters in order.
    pub fn params(&self) -> impl Iterator<Item = (String, String)> + '_ {
        self.query.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
    }

    fn wants_html(&self) -> bool {
        self.accept
            .split(',')
            .any(|m| m.trim().starts_with("text/html"))
            && self.param("format").is_none()
    }

    fn wants_json(&self) -> bool {
        self.param("format").as_deref() == Some("json")
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let hex = bytes
            .get(at + 1..at + 3)
            .and_then(|h| std::str::from_utf8(h).ok())
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match (byte, hex) {
            (b'%', Some(decoded)) => {
                out.push(decoded);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (other, _) => out.push(*other),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn text(status: u16, body: String) -> Page {
    Page {
        status,
        content_type: "text/plain; charset=UTF-8",
        body,
    }
}

fn ok() -> Page {
    text(200, "OK\n".to_owned())
}

fn html_page(body: String) -> Page {
    Page {
        status: 200,
        content_type: "text/html; charset=UTF-8",
        body,
    }
}

fn json_page(value: &serde_json::Value) -> Page {
    let body = serde_json::to_string_pretty(value).unwrap_or_default() + "\n";
    Page {
        status: 200,
        content_type: "application/json",
        body,
    }
}

fn help_text() -> String {
    let mut out = "admin commands are:\n".to_owned();
    for e in ENDPOINTS {
        let post = if e.post { " (POST)" } else { "" };
        let _ = writeln!(out, "  {}{post}: {}", e.path, e.help);
    }
    out
}

fn ready(_: &AdminRequest<'_>, agent: &Agent) -> Page {
    let state = agent.state();
    text(
        if state == "LIVE" { 200 } else { 503 },
        format!("{state}\n"),
    )
}

fn listeners(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    if asked.wants_json() {
        json_page(&views::listeners_json(agent))
    } else {
        text(200, views::listeners_text(agent))
    }
}

fn clusters(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    if asked.wants_json() {
        json_page(&views::clusters_json(agent))
    } else {
        text(200, views::clusters_text(agent))
    }
}

fn intercepts(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    if asked.wants_html() {
        html_page(html::intercepts(agent))
    } else {
        json_page(&views::intercepts(agent))
    }
}

fn explained(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    if asked.wants_html() {
        return html_page(html::explain(agent, asked));
    }
    match explain::explain(agent, asked) {
        Ok(value) => json_page(&value),
        Err(problem) => Page {
            status: 400,
            ..json_page(&json!({ "error": problem }))
        },
    }
}

fn drain(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    agent.commands.graceful.store(
        asked.params().any(|(n, _)| n == "graceful"),
        std::sync::atomic::Ordering::Relaxed,
    );
    agent.commands.drain.notify_one();
    ok()
}

fn logging_levels(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    match change_levels(asked, agent) {
        Ok(()) => {
            let mut body = "active loggers:\n".to_owned();
            for (module, level) in agent.log.loggers() {
                let _ = writeln!(body, "  {module}: {level}");
            }
            text(200, body + "\n")
        }
        Err(error) => text(
            400,
            format!(
                "error: {error}\n\nusage: /logging?<name>=<level> (change single level)\nusage: /logging?paths=name1:level1,name2:level2,... \
                 (change multiple levels)\nusage: /logging?level=<level> (change all levels)\nlevels: trace debug info warning error critical off\n"
            ),
        ),
    }
}

fn change_levels(asked: &AdminRequest<'_>, agent: &Agent) -> Result<(), logging::LevelError> {
    for (name, value) in asked.params() {
        match name.as_str() {
            "level" => agent.log.set_all(logging::parse_level(&value)?),
            "paths" => {
                for pair in value.split(',').filter(|p| !p.is_empty()) {
                    let (module, level) = pair.split_once(':').unwrap_or((pair, ""));
                    agent.log.set_module(module, logging::parse_level(level)?)?;
                }
            }
            module => agent
                .log
                .set_module(module, logging::parse_level(&value)?)?,
        }
    }
    Ok(())
}

fn stats_page(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    if asked.param("format").as_deref() == Some("prometheus") {
        return prometheus(asked, agent);
    }
    let list = match filtered(asked, agent) {
        Ok(list) => list,
        Err(page) => return page,
    };
    if asked.wants_json() {
        let stats: Vec<_> = list
            .iter()
            .map(|s| json!({ "name": s.name, "value": views::plain(&s.value) }))
            .collect();
        return Page {
            status: 200,
            content_type: "application/json",
            body: json!({ "stats": stats }).to_string(),
        };
    }
    let mut body = String::with_capacity(list.len() * 48);
    for stat in &list {
        let _ = match &stat.value {
            Value::Counter(n) => writeln!(body, "{}: {n}", stat.name),
            Value::Gauge(n) => writeln!(body, "{}: {n}", stat.name),
            Value::Latency(buckets, sum) => {
                writeln!(
                    body,
                    "{}: count={} sum_us={sum}",
                    stat.name,
                    buckets.iter().sum::<u64>()
                )
            }
        };
    }
    text(200, body)
}

fn filtered(asked: &AdminRequest<'_>, agent: &Agent) -> Result<Vec<stats::Stat>, Page> {
    let mut list = stats::collect(agent);
    if let Some(filter) = asked.param("filter") {
        let regex = regex::RegexBuilder::new(&filter)
            .size_limit(64 * 1024)
            .build()
            .map_err(|_| text(400, format!("Invalid re2 regex: {filter}\n")))?;
        list.retain(|s| regex.is_match(&s.name));
    }
    if asked.params().any(|(n, _)| n == "usedonly") {
        list.retain(|s| !matches!(&s.value, Value::Counter(0) | Value::Gauge(0)));
    }
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

fn prometheus(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    let list = match filtered(asked, agent) {
        Ok(list) => list,
        Err(page) => return page,
    };
    let open = asked.accept.contains("application/openmetrics-text");
    let (rendered, content_type) = if open {
        (exposition::render(list), exposition::OPEN_METRICS)
    } else {
        (exposition::render_plain(list), "text/plain; charset=UTF-8")
    };
    match rendered {
        Ok(body) => Page {
            status: 200,
            content_type,
            body,
        },
        Err(_) => text(500, "the statistics could not be written\n".to_owned()),
    }
}
