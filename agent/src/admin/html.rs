//! HTML pages: no script, no external resource, everything escaped.

use std::fmt::Write as _;

use serde_json::Value as Json;

use crate::admin::request::{AdminRequest, Endpoint};
use crate::admin::{Agent, explain as explanation, views};

const HEAD: &str = "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n\
<meta name='viewport' content='width=device-width, initial-scale=1'>\n<link rel='icon' href='data:,'>\n<style>\n\
body{font-family:sans-serif;margin:2em;color:#1a1a1a;background:#fff}a{color:#0b57a4}h1{font-size:1.3em}h2{font-size:1.1em}\n\
table{border-collapse:collapse;margin:.5em 0 1.5em}th,td{text-align:left;padding:.35em .9em;border-bottom:1px solid #ddd;vertical-align:top}\n\
th{background:#f4f6f8}code{font-family:monospace}nav a{margin-right:1em}.yes{color:#136c2e;font-weight:bold}.no{color:#8a5a00}\n\
button{font:inherit;cursor:pointer}input{font:inherit;padding:.2em .4em}form{margin:0}label{display:inline-block;margin:.2em 1em .2em 0}main{overflow-x:auto}\n</style>\n";

fn page(title: &str, body: &str) -> String {
    format!(
        "{HEAD}<title>{title} · traffic-agent</title>\n</head>\n<body>\n<nav><a href='/'>index</a><a href='/intercepts'>intercepts</a>\
         <a href='/explain'>explain</a><a href='/stats'>stats</a></nav>\n<h1>{title}</h1>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

/// Escapes text for elements and quoted attributes.
fn escape(text: &str) -> String {
    text.chars()
        .fold(String::with_capacity(text.len()), |mut out, c| {
            match c {
                '&' => out.push_str("&amp;"),
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                '"' => out.push_str("&quot;"),
                '\'' => out.push_str("&#39;"),
                other => out.push(other),
            }
            out
        })
}

/// Renders the index: every path, with a button for those that change something.
#[must_use]
pub fn index(endpoints: &[Endpoint]) -> String {
    let mut rows = String::from("<table>\n<tr><th>Command</th><th>Description</th></tr>\n");
    for e in endpoints {
        let command = if e.post {
            format!(
                "<form action='{0}' method='post'><button>{0}</button></form>",
                e.path
            )
        } else {
            format!("<a href='{0}'>{0}</a>", e.path)
        };
        let _ = writeln!(
            rows,
            "<tr><td>{command}</td><td>{}</td></tr>",
            escape(e.help)
        );
    }
    rows.push_str("</table>\n");
    page("Admin", &rows)
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
        let list = port["intercepts"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        if list.is_empty() {
            body.push_str("<p>No intercepts: all requests go to the app.</p>\n");
            continue;
        }
        body.push_str(
            "<table>\n<tr><th>Name</th><th>Owner</th><th>Takes</th><th>State</th>\
            <th>Hits</th><th>Misses</th><th>Tunnel</th></tr>\n",
        );
        for i in list {
            let _ = writeln!(
                body,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
                <td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(text(&i["name"])),
                escape(text(&i["client"])),
                clauses(i),
                escape(text(&i["state"])),
                i["hits"],
                i["misses"],
                escape(text(&i["tunnel"]))
            );
        }
        body.push_str("</table>\n");
    }
    if body.is_empty() {
        body.push_str("<p>This agent has no ports.</p>\n");
    }
    page("Intercepts", &body)
}

fn clauses(intercept: &Json) -> String {
    let headers = intercept["headers"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(n, v)| format!("<code>{}: {}</code>", escape(n), escape(text(v))));
    let paths = intercept["paths"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|p| format!("<code>{}</code>", escape(text(p))));
    let all: Vec<_> = headers.chain(paths).collect();
    if all.is_empty() {
        "everything".to_owned()
    } else {
        all.join("<br>")
    }
}

/// Renders a form for `/explain` and its answer.
#[must_use]
pub fn explain(agent: &Agent, asked: &AdminRequest<'_>) -> String {
    let mut body = explain_form(agent, asked);
    if asked.query.is_empty() {
        return page("Explain a request", &body);
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
    page("Explain a request", &body)
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
    let mut out = format!(
        "<h2>route: <span class='yes'>{}</span></h2>\n<p>{}</p>\n<table>\n\
        <tr><th>Intercept</th><th>Matches</th><th>First clause that fails</th></tr>\n",
        escape(text(&answer["decision"])),
        escape(text(&answer["reason"]))
    );
    for c in answer["considered"].as_array().into_iter().flatten() {
        let (class, word) = if c["matched"] == Json::Bool(true) {
            ("yes", "yes")
        } else {
            ("no", "no")
        };
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td class='{class}'>{word}</td><td><code>{}</code></td></tr>",
            escape(text(&c["name"])),
            escape(text(&c["failed"]))
        );
    }
    out.push_str("</table>\n");
    out
}

fn text(value: &Json) -> &str {
    value.as_str().unwrap_or_default()
}
