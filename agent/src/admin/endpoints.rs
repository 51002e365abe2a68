//! All paths of the admin server in one table.

use std::fmt::Write as _;

use traffic_proto::printable::printable;

use crate::admin::request::{AdminRequest, Endpoint, Field, Kind, Page};
use crate::admin::{Agent, html, stats, views};

mod handlers;

const FORMAT: Field = Field::Choice("format", &["json"]);
const LEVELS: &[&str] = &[
    "trace", "debug", "info", "warning", "error", "critical", "off",
];

/// Endpoints in the order of the index page.
pub const ENDPOINTS: &[Endpoint] = &[
    Endpoint::get("/", "Admin home page", &[], |_, a| {
        Page::html(200, html::index(a, ENDPOINTS))
    }),
    Endpoint::get("/certs", "print certs on machine", &[], |_, a| {
        Page::json(&views::certs(a))
    }),
    Endpoint::get(
        "/clusters",
        "upstream cluster status (?format=json)",
        &[FORMAT],
        handlers::clusters,
    ),
    Endpoint::get(
        "/config_dump",
        "dump the current configuration, secrets redacted",
        &[],
        |_, a| Page::json(&views::config_dump(a)),
    ),
    Endpoint::post(
        "/drain_listeners",
        Kind::Danger(
            "The agent stops accepting connections. It does not begin again until the pod is restarted.",
        ),
        "drain listeners (?graceful)",
        &[Field::Flag("graceful")],
        handlers::drain,
    ),
    Endpoint::get(
        "/explain",
        "which rule decides a request (?port=&method=&path=&header=name:value)",
        &[
            Field::Text("path", "/"),
            Field::Text("header", "name: value"),
        ],
        handlers::explained,
    ),
    Endpoint::post(
        "/healthcheck/fail",
        Kind::Danger(
            "The agent reports that it is not ready, so that the pod gets no new traffic, until /healthcheck/ok.",
        ),
        "cause the agent to fail health checks",
        &[],
        |_, a| {
            a.ready.fail(true);
            Page::ok()
        },
    ),
    Endpoint::post(
        "/healthcheck/ok",
        Kind::Change,
        "cause the agent to pass health checks",
        &[],
        |_, a| {
            a.ready.fail(false);
            Page::ok()
        },
    ),
    Endpoint::get("/help", "print out list of admin commands", &[], |_, _| {
        Page::text(200, help_text())
    }),
    Endpoint::get(
        "/intercepts",
        "intercepts by port, with owners and match counts",
        &[],
        handlers::intercepts,
    ),
    Endpoint::get(
        "/listeners",
        "print listener info (?format=json)",
        &[FORMAT],
        handlers::listeners,
    ),
    Endpoint::post(
        "/logging",
        Kind::Change,
        "query/change logging levels (?level=, ?paths=name:level,…, ?name=level)",
        &[
            Field::Choice("level", LEVELS),
            Field::Text("paths", "http1:debug,session:info"),
        ],
        handlers::logging_levels,
    ),
    Endpoint::get("/memory", "print current memory usage", &[], |_, _| {
        Page::json(&views::memory())
    }),
    Endpoint::get(
        "/metrics",
        "the same as /stats/prometheus, where scrapers look by default",
        &[],
        handlers::prometheus,
    ),
    Endpoint::post(
        "/quitquitquit",
        Kind::Danger(
            "The agent shuts down as after SIGTERM: connections drain and the process ends. The kubelet starts it again.",
        ),
        "shut the agent down gracefully",
        &[],
        |_, a| {
            a.commands.quit.notify_one();
            Page::ok()
        },
    ),
    Endpoint::get(
        "/ready",
        "print server state, return 200 if LIVE, otherwise return 503",
        &[],
        handlers::ready,
    ),
    Endpoint::post(
        "/reset_counters",
        Kind::Danger("All counters begin at zero again; what they counted so far is lost."),
        "reset all counters to zero",
        &[],
        |_, a| {
            stats::reset(a);
            Page::ok()
        },
    ),
    Endpoint::get(
        "/server_info",
        "print server version/status information",
        &[],
        |_, a| Page::json(&views::server_info(a)),
    ),
    Endpoint::get(
        "/stats",
        "print server stats (?filter=regex, ?usedonly, ?format=json|prometheus)",
        &[
            Field::Text("filter", "regex"),
            Field::Flag("usedonly"),
            Field::Choice("format", &["json", "prometheus"]),
        ],
        handlers::stats_page,
    ),
    Endpoint::get(
        "/stats/prometheus",
        "print server stats in prometheus format",
        &[],
        handlers::prometheus,
    ),
];

/// Path of the page that asks before something is taken away.
const CONFIRM: &str = "/confirm";

/// Answers one request.
#[must_use]
pub fn answer(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    let path = if asked.path.len() > 1 {
        // As Envoy's admin takes it.
        asked.path.trim_end_matches('/')
    } else {
        asked.path
    };
    if path == CONFIRM && !asked.post {
        return confirm(asked);
    }
    // Two dozen rows: a search of the table costs nothing beside the request.
    let Some(endpoint) = ENDPOINTS.iter().find(|e| e.path == path) else {
        return Page::text(404, format!("invalid path. {}", help_text()));
    };
    if endpoint.is_post() && !asked.post {
        return Page::text(
            405,
            format!("Method {} not allowed, POST required.", asked.method),
        );
    }
    if !matches!(asked.method, "GET" | "HEAD" | "POST") {
        return Page::text(
            405,
            format!("Method {} not allowed, GET or POST required.", asked.method),
        );
    }
    // A page of another site can make a browser send a POST, without seeing its answer.
    if endpoint.is_post() && asked.cross_site {
        return Page::text(
            403,
            "requests from another site may not change anything\n".to_owned(),
        );
    }
    let page = (endpoint.answer)(asked, agent);
    if endpoint.is_post() && asked.wants_html() {
        return Page::html(page.status, html::done(endpoint, &page.body));
    }
    page
}

/// Asks a person whether the endpoint that `?path=` names is to be called.
fn confirm(asked: &AdminRequest<'_>) -> Page {
    let path = asked.param("path").unwrap_or_default();
    let dangers = ENDPOINTS.iter().filter_map(|e| match e.kind {
        Kind::Danger(consequence) => Some((e, consequence)),
        _ => None,
    });
    match dangers.into_iter().find(|(e, _)| e.path == path) {
        Some((endpoint, consequence)) => {
            Page::html(200, html::confirm(endpoint, consequence, asked))
        }
        None => Page::text(404, format!("nothing to confirm at {path:?}\n")),
    }
}

/// Answers a request for a host that is not this agent.
#[must_use]
pub fn foreign_host(host: &str) -> Page {
    let host = printable(host);
    Page::text(
        403,
        format!(
            "{host:?} is no name of this agent; use localhost, the pod's address or the pod's name\n"
        ),
    )
}

fn help_text() -> String {
    let mut out = "admin commands are:\n".to_owned();
    for e in ENDPOINTS {
        let post = if e.is_post() { " (POST)" } else { "" };
        let _ = writeln!(out, "  {}{post}: {}", e.path, e.help);
    }
    out
}
