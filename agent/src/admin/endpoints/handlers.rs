//! What the endpoints do.

use std::fmt::Write as _;

use serde_json::json;

use crate::admin::request::{AdminRequest, Page};
use crate::admin::stats::Value;
use crate::admin::{Agent, explain, exposition, html, stats, stats_html, views};
use crate::telemetry::logging;
use crate::telemetry::logging::LevelChange;

pub(super) fn ready(_: &AdminRequest<'_>, agent: &Agent) -> Page {
    let state = agent.state();
    Page::text(
        // Probes look at the status alone, people at the text.
        if state == "LIVE" { 200 } else { 503 },
        format!("{state}\n"),
    )
}

pub(super) fn listeners(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    if asked.wants_json() {
        Page::json(&views::listeners_json(agent))
    } else {
        Page::text(200, views::listeners_text(agent))
    }
}

pub(super) fn clusters(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    if asked.wants_json() {
        Page::json(&views::clusters_json(agent))
    } else {
        Page::text(200, views::clusters_text(agent))
    }
}

pub(super) fn intercepts(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    if asked.wants_html() {
        Page::html(200, html::intercepts(agent))
    } else {
        Page::json(&views::intercepts(agent))
    }
}

pub(super) fn explained(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    if asked.wants_html() {
        return Page::html(200, html::explain(agent, asked));
    }
    match explain::explain(agent, asked) {
        Ok(value) => Page::json(&value),
        Err(problem) => Page {
            status: 400,
            ..Page::json(&json!({ "error": problem }))
        },
    }
}

pub(super) fn drain(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    // Stored before the notification, which the shutdown logic wakes up by.
    agent.commands.graceful.store(
        asked.params().any(|(n, _)| n == "graceful"),
        std::sync::atomic::Ordering::Relaxed,
    );
    agent.commands.drain.notify_one();
    Page::ok()
}

pub(super) fn logging_levels(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    match change_levels(asked, agent) {
        Ok(()) => {
            let mut body = "active loggers:\n".to_owned();
            for (module, level) in agent.log.loggers() {
                let _ = writeln!(body, "  {module}: {level}");
            }
            Page::text(200, body + "\n")
        }
        Err(error) => Page::text(
            400,
            format!(
                "error: {error}\n\nusage: /logging?<name>=<level> (change single level)\nusage: /logging?paths=name1:level1,name2:level2,... \
                 (change multiple levels)\nusage: /logging?level=<level> (change all levels)\nlevels: trace debug info warning error critical off\n"
            ),
        ),
    }
}

/// Applies all changes, or none if one of them cannot be.
fn change_levels(asked: &AdminRequest<'_>, agent: &Agent) -> Result<(), logging::LevelError> {
    let mut changes = Vec::new();
    for (name, value) in asked.params() {
        match name.as_str() {
            // A form sends its empty fields too.
            "level" | "paths" if value.is_empty() && asked.wants_html() => {}
            "level" => changes.push(LevelChange::all(&value)?),
            "paths" => {
                for pair in value.split(',').filter(|p| !p.is_empty()) {
                    // An empty level is refused with the list of those that there are.
                    let (module, level) = pair.split_once(':').unwrap_or((pair, ""));
                    changes.push(LevelChange::of_module(module, level)?);
                }
            }
            module => changes.push(LevelChange::of_module(module, &value)?),
        }
    }
    agent.log.apply(changes);
    Ok(())
}

pub(super) fn stats_page(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    if asked.param("format").as_deref() == Some("prometheus") {
        return prometheus(asked, agent);
    }
    let list = match filtered(asked, agent) {
        Ok(list) => list,
        Err(page) if asked.wants_html() => {
            return Page::html(page.status, stats_html::refused(asked, &page.body));
        }
        Err(page) => return page,
    };
    if asked.wants_html() {
        return Page::html(200, stats_html::page(asked, &list));
    }
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
    Page::text(200, body)
}

fn filtered(asked: &AdminRequest<'_>, agent: &Agent) -> Result<Vec<stats::Stat>, Page> {
    let mut list = stats::collect(agent);
    // A form sends its empty fields too.
    if let Some(filter) = asked.param("filter").filter(|it| !it.is_empty()) {
        let regex = regex::RegexBuilder::new(&filter)
            // A few bytes of a regular expression can ask for gigabytes of its program.
            .size_limit(64 * 1024)
            .build()
            .map_err(|_| Page::text(400, format!("Invalid re2 regex: {filter}\n")))?;
        list.retain(|s| regex.is_match(&s.name));
    }
    if asked.params().any(|(n, _)| n == "usedonly") {
        list.retain(|s| !matches!(&s.value, Value::Counter(0) | Value::Gauge(0)));
    }
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

pub(super) fn prometheus(asked: &AdminRequest<'_>, agent: &Agent) -> Page {
    match filtered(asked, agent) {
        Ok(list) => exposition::page(list, asked.accept),
        Err(page) => page,
    }
}
