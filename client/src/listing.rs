//! Intercepts as `list` and `status` show them: a block each for people, objects for programs.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use traffic_proto::manager::{InterceptInfo, InterceptSpec};
use traffic_proto::port::Transport;

use crate::deliveries;
use crate::report::plain;
use crate::terminal::Style;

/// Sorts the user's own intercepts to the front, all by workload and name.
pub(crate) fn sort(intercepts: &mut [InterceptInfo], me: &str) {
    let key = |info: &InterceptInfo| {
        let spec = spec(info);
        (
            // False sorts before true.
            spec.client != me,
            spec.namespace,
            spec.agent,
            spec.name,
            spec.client,
        )
    };
    intercepts.sort_by_cached_key(key);
}

/// Formats one block for each intercept.
pub(crate) fn blocks(
    intercepts: &[InterceptInfo],
    me: &str,
    now: SystemTime,
    style: Style,
) -> String {
    let blocks: Vec<_> = intercepts
        .iter()
        .map(|info| block(info, me, now, style))
        .collect();
    blocks.join("\n")
}

/// Formats the intercepts as a JSON array.
pub(crate) fn json(intercepts: &[InterceptInfo], me: &str) -> Value {
    intercepts
        .iter()
        .map(|info| {
            let spec = spec(info);
            json!({
                "name": spec.name,
                "client": spec.client,
                "yours": spec.client == me,
                "workload": spec.agent,
                "namespace": spec.namespace,
                "port": spec.port_identifier,
                "transport": deliveries::transport(&spec).map(Transport::name),
                "ports": deliveries::json(&spec),
                "kind": kind(&spec),
                "mechanism": spec.mechanism,
                "headers": spec.header_filters,
                "paths": spec.path_filters,
                "takes": deliveries::described(info, &spec),
                "target": target(&spec),
                "state": info.disposition().as_str_name(),
                "since": info.modified_at.as_ref().map(ToString::to_string),
                "message": info.message,
                "pod": info.pod_name,
                "hits": info.hits,
                "failed_open": info.failed_open,
                "id": info.id,
            })
        })
        .collect()
}

fn block(info: &InterceptInfo, me: &str, now: SystemTime, style: Style) -> String {
    let spec = spec(info);
    let owner = if spec.client == me {
        "yours".to_owned()
    } else {
        format!("of {}", spec.client)
    };
    let state = style.state(info.disposition());
    let kind = match kind(&spec) {
        "intercept" => String::new(),
        other => format!(", {other}"),
    };
    let mut text = format!(
        "{} ({owner}{kind})  {state}",
        style.bold(&plain(&spec.name))
    );
    if let Some(age) = age(info, now) {
        let _ = write!(text, " for {age}");
    }
    text.push('\n');
    let ports = deliveries::of(&spec);
    let port = match (spec.port_identifier.as_str(), deliveries::transport(&spec)) {
        ("", Some(Transport::Udp)) => ", the UDP port".to_owned(),
        ("", _) => String::new(),
        (port, Some(Transport::Udp)) if !port.contains('/') => format!(", port {port}/UDP"),
        (port, _) => format!(", port {port}"),
    };
    let further: Vec<_> = ports.iter().skip(1).map(ToString::to_string).collect();
    let place = format!("{} in namespace {}{port}", spec.agent, spec.namespace);
    for (label, value) in [
        ("workload", place),
        (
            if spec.wiretap { "copies" } else { "takes" },
            takes(info, &spec),
        ),
        ("goes to", target(&spec)),
        ("and ports", further.join(", ")),
        ("to pod", spec.local_ports.join(", ")),
        ("pod", info.pod_name.clone()),
        ("requests", requests(info)),
        ("note", info.message.clone()),
    ] {
        if !value.is_empty() {
            let _ = writeln!(text, "  {label:<9} {}", plain(&value));
        }
    }
    text
}

fn kind(spec: &InterceptSpec) -> &'static str {
    match spec {
        InterceptSpec { wiretap: true, .. } => "wiretap",
        InterceptSpec { replace: true, .. } => "replace",
        _ => "intercept",
    }
}

/// Says how many requests came, where the manager counts them.
fn requests(info: &InterceptInfo) -> String {
    match (info.hits, info.failed_open) {
        (0, 0) => String::new(),
        (hits, 0) => format!("{hits} so far"),
        (hits, app) => format!("{hits} so far, and {app} went to the app"),
    }
}

/// Remedy for an intercept that stands in the way of the user `own`.
pub(crate) fn way_out(info: &InterceptInfo, own: &str) -> String {
    let spec = spec(info);
    let takes = takes(info, &spec);
    let remedy = match spec.header_filters.is_empty() && spec.path_filters.is_empty() {
        // Whatever one asks for, it takes it too.
        true => String::new(),
        false => "take other requests with --http-header, or ".to_owned(),
    };
    let (name, client) = (&spec.name, &spec.client);
    if client == own {
        return format!(
            "it is your own {name:?}, begun elsewhere, and takes {takes}; {remedy}end it there or \
             with: intercept leave {name}"
        );
    }
    format!(
        "it is {name:?} of {client} and takes {takes}; {remedy}ask {client} to leave it (intercept \
         leave {name})"
    )
}

/// Returns what the agent says it takes, else what was asked for.
fn takes(info: &InterceptInfo, spec: &InterceptSpec) -> String {
    let said = deliveries::described(info, spec);
    if !said.is_empty() {
        return said;
    }
    let headers = spec
        .header_filters
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    let asked: Vec<_> = headers.chain(spec.path_filters.iter().cloned()).collect();
    if asked.is_empty() {
        match deliveries::transport(spec) {
            Some(Transport::Tcp) => "every connection to the port".into(),
            Some(Transport::Udp) => "every datagram to the port".into(),
            None => "everything to the port".into(),
        }
    } else {
        format!("requests with {}", asked.join(", "))
    }
}

fn spec(info: &InterceptInfo) -> InterceptSpec {
    info.spec.clone().unwrap_or_default()
}

fn target(spec: &InterceptSpec) -> String {
    deliveries::address(&spec.target_host, &spec.target_port.to_string())
}

/// Returns how long the intercept has been in its state; `None` if the manager does not say.
fn age(info: &InterceptInfo, now: SystemTime) -> Option<String> {
    let since = SystemTime::try_from(*info.modified_at.as_ref()?).ok()?;
    // Clocks of manager and workstation may differ a little.
    Some(span(now.duration_since(since).unwrap_or_default()))
}

/// Formats a time span by its largest unit.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use traffic_proto::manager::InterceptDispositionType as Disposition;

    fn info(name: &str, client: &str, disposition: Disposition) -> InterceptInfo {
        let mut info = InterceptInfo {
            spec: Some(InterceptSpec {
                name: name.into(),
                client: client.into(),
                agent: "echo".into(),
                namespace: "shop".into(),
                port_identifier: "http".into(),
                target_host: "127.0.0.1".into(),
                target_port: 3000,
                header_filters: [("x-dev".to_owned(), "me".to_owned())].into(),
                ..InterceptSpec::default()
            }),
            pod_name: "echo-1".into(),
            modified_at: Some(SystemTime::UNIX_EPOCH.into()),
            ..InterceptInfo::default()
        };
        info.set_disposition(disposition);
        info
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_block_says_what_where_and_since_when() {
        let text = blocks(
            &[info("one", "me@here", Disposition::Active)],
            "me@here",
            at(200),
            Style::PLAIN,
        );
        assert_eq!(
            text,
            "one (yours)  ACTIVE for 3 min\n  workload  echo in namespace shop, port http\n  \
             takes     requests with x-dev=me\n  goes to   127.0.0.1:3000\n  pod       echo-1\n"
        );
    }

    #[test]
    fn further_ports_and_transports_are_shown() {
        let mut one = info("one", "me@here", Disposition::Waiting);
        let spec = one.spec.as_mut().unwrap();
        spec.header_filters.clear();
        (spec.port_identifier, spec.protocol) = ("dns".into(), "UDP".into());
        spec.pod_ports = vec!["http:3001/TCP".into()];
        let text = blocks(&[one.clone()], "me@here", at(200), Style::PLAIN);
        for part in [
            "  workload  echo in namespace shop, port dns/UDP\n",
            "  takes     every datagram to the port\n",
            "  goes to   127.0.0.1:3000\n",
            "  and ports http/TCP -> 127.0.0.1:3001\n",
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        let value = &json(&[one], "me@here")[0];
        assert_eq!(value["transport"], "UDP");
        assert_eq!(value["ports"][0]["target"], "127.0.0.1:3000");
        assert_eq!(value["ports"][1]["port"], "http");
    }

    #[test]
    fn a_wiretap_is_named_as_one() {
        let mut tap = info("tap", "me@here", Disposition::Active);
        tap.spec.as_mut().unwrap().wiretap = true;
        let text = blocks(&[tap.clone()], "me@here", at(200), Style::PLAIN);
        assert!(
            text.starts_with("tap (yours, wiretap)  ACTIVE for 3 min\n"),
            "{text}"
        );
        assert!(
            text.contains("\n  copies    requests with x-dev=me\n"),
            "{text}"
        );
        assert_eq!(json(&[tap], "me")[0]["kind"], "wiretap");
    }

    #[test]
    fn yours_come_first_and_others_are_named() {
        let mut list = [
            info("a", "eve@desk", Disposition::Active),
            info("z", "me@here", Disposition::Waiting),
        ];
        sort(&mut list, "me@here");
        let text = blocks(&list, "me@here", at(0), Style::PLAIN);
        let heads: Vec<_> = text.lines().filter(|line| !line.starts_with(' ')).collect();
        assert_eq!(
            heads,
            [
                "z (yours)  WAITING for 0 s",
                "",
                "a (of eve@desk)  ACTIVE for 0 s"
            ]
        );
    }

    #[test]
    fn control_characters_of_others_do_not_reach_the_terminal() {
        let text = blocks(
            &[info("a\x1b[2J\nb", "eve", Disposition::Active)],
            "me",
            at(0),
            Style::PLAIN,
        );
        assert!(text.starts_with(r"a\u{1b}[2J\nb (of eve)"), "{text}");
    }

    #[test]
    fn programs_get_objects() {
        let value = json(&[info("one", "me", Disposition::Active)], "me");
        assert_eq!(value[0]["state"], "ACTIVE");
        assert_eq!(value[0]["yours"], true);
        assert_eq!(value[0]["headers"]["x-dev"], "me");
        assert_eq!(value[0]["since"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn spans_are_given_in_their_largest_unit() {
        for (seconds, text) in [
            (59, "59 s"),
            (60, "1 min"),
            (7_200, "2 h"),
            (200_000, "2 days"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }
}
