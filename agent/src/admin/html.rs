//! The admin's pages for browsers.

use std::fmt::Write as _;

use serde_json::Value as Json;
use traffic_proto::build_info;
use traffic_proto::html::{Column, Html, Site, Table, escape, facts, span};

use crate::admin::request::{AdminRequest, Endpoint, Field, Kind};
use crate::admin::{Agent, explain as explanation, views};

/// Seconds after which the page of intercepts is loaded anew.
const REFRESH_INTERVAL: u32 = 5;

/// The admin, with the pages that its navigation leads to.
pub(crate) const SITE: Site = Site {
    program: "traffic-agent",
    pages: &[
        ("/", "index"),
        ("/intercepts", "intercepts"),
        ("/explain", "explain"),
        ("/stats", "stats"),
    ],
};

/// Renders the index: whose agent this is, and every path with its parameters.
#[must_use]
pub fn index(agent: &Agent, endpoints: &[Endpoint]) -> String {
    let state = agent.state();
    let is_connected = agent.control.connected.get() != 0;
    let session = if is_connected {
        "connected"
    } else {
        "not connected"
    };
    let manager = Html(format!(
        "{} {}",
        escape(&agent.manager),
        Html::verdict(is_connected, session).0
    ));
    let mut body = facts([
        ("workload", Html::text(&agent.workload)),
        ("namespace", Html::text(&agent.namespace)),
        ("pod", Html::text(&agent.pod)),
        ("version", Html::text(build_info::LONG)),
        ("state", Html::verdict(state == "LIVE", state)),
        ("up for", Html(span(agent.started.elapsed().as_secs()))),
        ("manager", manager),
    ]);
    let mut rows = Table::new([Column::Text("Command"), Column::Text("Description")]);
    for endpoint in endpoints {
        rows.row([Html(command(endpoint)), Html::text(endpoint.help)]);
    }
    body.push_str(&rows.or(""));
    SITE.page("Admin", None, &body)
}

/// Renders the way to call an endpoint: a link or a button, with fields for its parameters.
fn command(endpoint: &Endpoint) -> String {
    let path = endpoint.path;
    let fields = endpoint.fields.iter().map(field).collect::<String>();
    match endpoint.kind {
        Kind::Read if fields.is_empty() => format!("<a href='{path}'>{path}</a>"),
        Kind::Read => format!(
            "<a href='{path}'>{path}</a><br><form action='{path}' method='get'>{fields}<button>show</button></form>"
        ),
        Kind::Change => {
            format!("<form action='{path}' method='post'>{fields}<button>{path}</button></form>")
        }
        Kind::Danger(_) => format!(
            "<form action='/confirm' method='get'><input type='hidden' name='path' value='{path}'>{fields}\
             <button class='danger'>{path} …</button></form>"
        ),
    }
}

fn field(field: &Field) -> String {
    match field {
        Field::Text(name, example) => format!(
            "<label>{name} <input name='{name}' size='16' placeholder='{}'></label>",
            escape(example)
        ),
        Field::Flag(name) => {
            format!("<label><input type='checkbox' name='{name}' value=''> {name}</label>")
        }
        Field::Choice(name, words) => {
            let words = words
                .iter()
                .map(|word| format!("<option>{word}</option>"))
                .collect::<String>();
            format!("<label>{name} <select name='{name}'><option></option>{words}</select></label>")
        }
    }
}

/// Renders the question that stands before an endpoint that takes something away.
#[must_use]
pub fn confirm(endpoint: &Endpoint, consequence: &str, asked: &AdminRequest<'_>) -> String {
    let path = endpoint.path;
    let fields = asked.params().filter(|(name, _)| name != "path");
    let fields = fields
        .map(|(name, value)| {
            format!(
                "<input type='hidden' name='{}' value='{}'>",
                escape(&name),
                escape(&value)
            )
        })
        .collect::<String>();
    let body = format!(
        "<p>{}</p>\n<form action='{path}' method='post'>{fields}<button class='danger'>Yes, {path}</button></form>\n\
         <p><a href='/'>No, back to the index</a></p>\n",
        escape(consequence)
    );
    SITE.page(&format!("Really {path}?"), None, &body)
}

/// Renders what an endpoint answered that has changed something.
#[must_use]
pub fn done(endpoint: &Endpoint, answer: &str) -> String {
    let answer = answer.lines().map(escape).collect::<Vec<_>>().join("\n");
    let body = format!("<pre>{answer}</pre>\n<p><a href='/'>Back to the index</a></p>\n");
    SITE.page(endpoint.path, None, &body)
}

/// Renders the intercepts of every port.
#[must_use]
pub fn intercepts(agent: &Agent) -> String {
    let view = views::intercepts(agent);
    let mut body = String::new();
    for port in view["ports"].as_array().into_iter().flatten() {
        let _ = writeln!(
            body,
            "<h2>port {} <small>(agent port {}, {}, {}; source: {})</small></h2>",
            port["containerPort"],
            port["agentPort"],
            escape(text(&port["protocol"])),
            escape(text(&port["appProtocol"])),
            escape(text(&port["source"]))
        );
        let mut rows = Table::new([
            Column::Text("Name"),
            Column::Text("Owner"),
            Column::Text("Takes"),
            Column::Text("State"),
            Column::Number("Hits"),
            Column::Number("Misses"),
            Column::Number("To the app"),
            Column::Number("Copies dropped"),
            Column::Text("Workstation"),
            Column::Text("Tunnel"),
        ]);
        for i in port["intercepts"].as_array().into_iter().flatten() {
            let state = text(&i["state"]);
            rows.row([
                Html::text(text(&i["name"])),
                Html::text(text(&i["client"])),
                clauses(i),
                Html::verdict(state == "active", state),
                Html(i["hits"].to_string()),
                Html(i["misses"].to_string()),
                Html(i["failedOpen"].to_string()),
                copies_dropped(i),
                workstation(i),
                Html::text(text(&i["tunnel"])),
            ]);
        }
        body.push_str(&rows.or("No intercepts: all requests go to the app."));
    }
    if body.is_empty() {
        body.push_str("<p>This agent has no ports.</p>\n");
    }
    SITE.page("Intercepts", Some(REFRESH_INTERVAL), &body)
}

/// Says how many copies were dropped; for a wiretap only.
fn copies_dropped(intercept: &Json) -> Html {
    match intercept["wiretap"] {
        Json::Bool(true) => Html(intercept["copiesDropped"].to_string()),
        _ => Html::default(),
    }
}

/// Says whether the workstation was reached when it was last tried, and why not.
fn workstation(intercept: &Json) -> Html {
    let word = text(&intercept["workstation"]);
    match text(&intercept["lastFailure"]) {
        "" => Html::text(word),
        why => Html::lines(&[Html::verdict(false, word), Html::text(why)]),
    }
}

fn clauses(intercept: &Json) -> Html {
    let headers = intercept["headers"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(n, v)| Html::code(&format!("{n}: {}", text(v))));
    let paths = intercept["paths"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|p| Html::code(text(p)));
    let kind = (intercept["wiretap"] == Json::Bool(true)).then(|| Html::text("copies of"));
    let mut all: Vec<_> = kind.into_iter().chain(headers).chain(paths).collect();
    if !all.iter().any(|line| line.0.starts_with("<code>")) {
        all.push(Html::text("everything"));
    }
    Html::lines(&all)
}

/// Renders a form for `/explain` and its answer.
#[must_use]
pub fn explain(agent: &Agent, asked: &AdminRequest<'_>) -> String {
    let mut body = explain_form(agent, asked);
    if asked.query.is_empty() {
        return SITE.page("Explain a request", None, &body);
    }
    // The form sends its empty slot too.
    let kept = asked
        .query
        .split('&')
        .filter(|p| *p != "header=")
        .collect::<Vec<_>>()
        .join("&");
    match explanation::explain(
        agent,
        &AdminRequest {
            query: &kept,
            ..*asked
        },
    ) {
        Ok(answer) => body.push_str(&verdict(&answer)),
        Err(problem) => {
            let _ = writeln!(body, "<p class='no'>{}</p>", escape(&problem));
        }
    }
    SITE.page("Explain a request", None, &body)
}

fn explain_form(agent: &Agent, asked: &AdminRequest<'_>) -> String {
    let value = |name: &str, default: &str| {
        escape(&asked.param(name).unwrap_or_else(|| default.to_owned()))
    };
    let first = agent
        .ports
        .first()
        .map_or_else(String::new, |p| p.container_port.to_string());
    let headers: Vec<_> = asked
        .params()
        .filter(|(n, _)| n == "header")
        .map(|(_, v)| v)
        .collect();
    let mut body = format!(
        "<form method='get' action='/explain'>\n<label>port <input name='port' size='6' value='{}'></label>\n\
         <label>method <input name='method' size='8' value='{}'></label>\n<label>path <input name='path' size='30' value='{}'></label>\n",
        value("port", &first),
        value("method", "GET"),
        value("path", "/")
    );
    for slot in 0..headers.len() + 1 {
        let filled = headers.get(slot).map_or("", String::as_str);
        let _ = writeln!(
            body,
            "<label>header <input name='header' size='30' placeholder='name: value' \
            value='{}'></label>",
            escape(filled)
        );
    }
    body.push_str("<button>explain</button>\n</form>\n");
    body
}

fn verdict(answer: &Json) -> String {
    let mut rows = Table::new([
        Column::Text("Intercept"),
        Column::Text("Matches"),
        Column::Text("First clause that fails"),
    ]);
    for c in answer["considered"].as_array().into_iter().flatten() {
        let matched = c["matched"] == Json::Bool(true);
        rows.row([
            Html::text(text(&c["name"])),
            Html::verdict(
                matched,
                match (matched, c["wiretap"] == Json::Bool(true)) {
                    (true, true) => "yes, gets a copy",
                    (true, false) => "yes",
                    (false, _) => "no",
                },
            ),
            match text(&c["failed"]) {
                "" => Html::default(),
                clause => Html::code(clause),
            },
        ]);
    }
    format!(
        "<h2>route: <span class='yes'>{}</span></h2>\n<p>{}</p>\n{}",
        escape(text(&answer["decision"])),
        escape(text(&answer["reason"])),
        rows.or("There is nothing that could take it.")
    )
}

fn text(value: &Json) -> &str {
    value.as_str().unwrap_or_default()
}
