//! Ports that an intercept takes and the local server that each is delivered to, for people and for
//! programs.

use std::fmt;

use serde_json::{Value, json};
use traffic_proto::manager::{InterceptInfo, InterceptSpec};
use traffic_proto::port::Transport;
use traffic_proto::port_identifier::{FurtherPort, PortIdentifier};

/// Description that stock agents give of every port taken whole.
const ALL_TCP: &str = "all TCP connections";
/// The same for datagrams, as our agents give it.
const ALL_UDP: &str = "all UDP datagrams";

/// A port that an intercept takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// Name or number; empty where the only port is meant.
    pub(crate) port: String,
    /// Transport, where it is known.
    pub(crate) transport: Option<Transport>,
    /// Local address.
    target: String,
}

/// Returns what an intercept takes, its main port first.
pub(crate) fn of(spec: &InterceptSpec) -> Vec<Delivery> {
    let main = (!spec.no_default_port).then(|| main(spec));
    let further = spec.pod_ports.iter();
    let further = further.map(|text| further_port(text, &spec.target_host));
    main.into_iter().chain(further).collect()
}

/// Returns the transport of the main port, where it is known.
pub(crate) fn transport(spec: &InterceptSpec) -> Option<Transport> {
    of(spec).first().and_then(|it| it.transport)
}

/// Formats the ports in one line.
pub(crate) fn line(spec: &InterceptSpec) -> String {
    let all: Vec<_> = of(spec).iter().map(ToString::to_string).collect();
    all.join(", ")
}

/// Formats the ports for programs.
pub(crate) fn json(spec: &InterceptSpec) -> Value {
    let object = |it: &Delivery| {
        json!({
            "port": it.port,
            "transport": it.transport.map(Transport::name),
            "target": it.target,
        })
    };
    of(spec).iter().map(object).collect()
}

/// Returns true if datagrams come, and nothing else.
pub(crate) fn are_datagrams(spec: &InterceptSpec) -> bool {
    let all = of(spec);
    let is_udp = |it: &Delivery| it.transport == Some(Transport::Udp);
    !all.is_empty() && all.iter().all(is_udp)
}

/// Returns what the agent says that is taken; empty if it has said nothing. Stock agents speak of
/// connections where they mean datagrams.
pub(crate) fn described(info: &InterceptInfo, spec: &InterceptSpec) -> String {
    let said = info.mechanism_args_desc.as_str();
    let all = of(spec);
    let has = |transport| all.iter().any(|it| it.transport == Some(transport));
    match (said, has(Transport::Udp)) {
        (ALL_TCP, true) if are_datagrams(spec) => ALL_UDP.to_owned(),
        (ALL_TCP, true) => format!("{ALL_TCP} and {ALL_UDP}"),
        _ => said.to_owned(),
    }
}

fn main(spec: &InterceptSpec) -> Delivery {
    let identifier = spec.port_identifier.parse::<PortIdentifier>().ok();
    let port = match (&identifier, spec.container_port) {
        (Some(identifier), _) => identifier.port.to_string(),
        (None, 0) => String::new(),
        (None, number) => number.to_string(),
    };
    let written = identifier.and_then(|it| it.transport);
    Delivery {
        port,
        transport: written.or_else(|| spec.protocol.parse().ok()),
        target: address(&spec.target_host, &spec.target_port.to_string()),
    }
}

fn further_port(text: &str, host: &str) -> Delivery {
    let Ok(FurtherPort { identifier, local }) = text.parse() else {
        // The agent refuses it.
        return Delivery {
            port: text.to_owned(),
            transport: None,
            target: host.to_owned(),
        };
    };
    let port = identifier.port.to_string();
    Delivery {
        target: address(host, local.as_ref().unwrap_or(&port)),
        port,
        transport: identifier.transport,
    }
}

/// Formats an address; names of hosts are kept.
pub(crate) fn address(host: &str, port: &str) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            port,
            transport,
            target,
        } = self;
        match (port.as_str(), transport) {
            ("", None) => f.write_str(target),
            ("", Some(transport)) => write!(f, "{transport} -> {target}"),
            (_, None) => write!(f, "{port} -> {target}"),
            (_, Some(transport)) => write!(f, "{port}/{transport} -> {target}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(identifier: &str, protocol: &str, further: &[&str]) -> InterceptSpec {
        InterceptSpec {
            port_identifier: identifier.to_owned(),
            protocol: protocol.to_owned(),
            target_host: "127.0.0.1".to_owned(),
            target_port: 9000,
            pod_ports: further.iter().map(|it| (*it).to_owned()).collect(),
            ..InterceptSpec::default()
        }
    }

    #[test]
    fn ports_are_shown_with_transport_and_target_as_far_as_they_are_known() {
        for (spec, shown) in [
            (spec("", "", &[]), "127.0.0.1:9000"),
            (spec("", "UDP", &[]), "UDP -> 127.0.0.1:9000"),
            (spec("http", "", &[]), "http -> 127.0.0.1:9000"),
            (spec("dns/UDP", "TCP", &[]), "dns/UDP -> 127.0.0.1:9000"),
            (
                spec("http", "TCP", &["admin:9001", "dns:5353/udp", "70/TCP"]),
                "http/TCP -> 127.0.0.1:9000, admin -> 127.0.0.1:9001, \
                 dns/UDP -> 127.0.0.1:5353, 70/TCP -> 127.0.0.1:70",
            ),
        ] {
            assert_eq!(line(&spec), shown);
        }
        let mut six = spec("http", "TCP", &["dns:53/UDP"]);
        six.target_host = "::1".to_owned();
        assert_eq!(line(&six), "http/TCP -> [::1]:9000, dns/UDP -> [::1]:53");
        six.no_default_port = true;
        assert_eq!(line(&six), "dns/UDP -> [::1]:53");
        let value = json(&six);
        assert_eq!(
            value,
            serde_json::json!([{"port": "dns", "transport": "UDP", "target": "[::1]:53"}])
        );
    }

    #[test]
    fn what_a_stock_agent_says_of_a_whole_port_is_put_right_for_datagrams() {
        let said = |text: &str, spec: &InterceptSpec| {
            let info = InterceptInfo {
                mechanism_args_desc: text.to_owned(),
                ..InterceptInfo::default()
            };
            described(&info, spec)
        };
        let (tcp, udp) = (spec("http", "TCP", &[]), spec("dns", "UDP", &[]));
        let both = spec("http", "TCP", &["dns:53/UDP"]);
        assert_eq!(said(ALL_TCP, &tcp), ALL_TCP);
        assert_eq!(said(ALL_TCP, &udp), ALL_UDP);
        assert_eq!(
            said(ALL_TCP, &both),
            "all TCP connections and all UDP datagrams"
        );
        assert_eq!(said("HTTP requests with a", &both), "HTTP requests with a");
        assert_eq!(said("", &udp), "");
    }
}
