//! App protocol of a port by configuration: the annotation of the port, else the Service's
//! `appProtocol`, else the strategy. Pure.

use std::collections::BTreeMap;

use traffic_proto::port::Transport;
use traffic_proto::sidecar::{AppProtocolStrategy, Target};

use crate::proxy::context::{AppProtocol, ProtocolSource};

/// Annotation that overrides the protocol of one port; `.<containerPort>` follows.
pub const ANNOTATION: &str = "telepresence.io/app-protocol";

/// Returns the protocol of `target`, its source, and a fault of the annotation if any.
#[must_use]
pub fn of(
    target: &Target,
    annotations: &BTreeMap<String, String>,
    strategy: AppProtocolStrategy,
) -> (AppProtocol, ProtocolSource, Option<String>) {
    if target.transport == Transport::Udp {
        return (AppProtocol::Opaque, ProtocolSource::AppProtocol, None);
    }
    let key = format!("{ANNOTATION}.{}", target.container_port);
    let mut odd = None;
    if let Some(value) = annotations.get(&key) {
        match known(value) {
            Some(declared) => return (declared, ProtocolSource::Annotation, None),
            None => {
                odd = Some(format!(
                    "{key}={value:?}: unknown protocol, the annotation is ignored; use http, \
                    https, http2, grpc, h2c, ws, wss or tcp"
                ));
            }
        }
    }
    let (declared, source) = declared_or_strategy(target, strategy);
    (declared, source, odd)
}

fn declared_or_strategy(
    target: &Target,
    strategy: AppProtocolStrategy,
) -> (AppProtocol, ProtocolSource) {
    if !target.app_protocol.is_empty() {
        // An unknown declaration still means that no strategy was wanted: the bytes decide.
        return known(&target.app_protocol)
            .map_or((AppProtocol::Unknown, ProtocolSource::Bytes), |declared| {
                (declared, ProtocolSource::AppProtocol)
            });
    }
    let secure = |e: &traffic_proto::sidecar::InterceptEntry| {
        e.service_port == Some(443) || e.service_port_name.eq_ignore_ascii_case("https")
    };
    match strategy {
        AppProtocolStrategy::Http => (AppProtocol::Http1, ProtocolSource::Strategy),
        AppProtocolStrategy::Http2 => (AppProtocol::Http2, ProtocolSource::Strategy),
        AppProtocolStrategy::PortName => by_port_name(target)
            .map_or((AppProtocol::Unknown, ProtocolSource::Bytes), |d| {
                (d, ProtocolSource::Strategy)
            }),
        AppProtocolStrategy::Http2Probe if target.entries.iter().any(secure) => {
            (AppProtocol::Tls, ProtocolSource::AppProtocol)
        }
        AppProtocolStrategy::Http2Probe => (AppProtocol::Unknown, ProtocolSource::Bytes),
    }
}

/// Returns the protocol that an unknown value of `appProtocol` was likely meant to be.
#[must_use]
pub fn misspelt(word: &str) -> Option<&'static str> {
    if word.is_empty() || known(word).is_some() {
        return None;
    }
    let usual = [
        "http", "https", "http2", "grpc", "h2c", "ws", "wss", "tcp", "tls", "udp",
    ];
    let word = word.trim();
    traffic_proto::near::nearest(word.strip_prefix("kubernetes.io/").unwrap_or(word), usual)
}

/// Parses a value of `appProtocol`.
fn known(word: &str) -> Option<AppProtocol> {
    let word = word.trim().to_ascii_lowercase();
    match word.strip_prefix("kubernetes.io/").unwrap_or(&word) {
        "tcp" | "udp" => Some(AppProtocol::Opaque),
        "http" | "http1" | "http1.0" | "http1.1" | "http/1.0" | "http/1.1" | "ws" => {
            Some(AppProtocol::Http1)
        }
        "http2" | "grpc" | "h2c" => Some(AppProtocol::Http2),
        "https" | "tls" | "wss" => Some(AppProtocol::Tls),
        _ => None,
    }
}

/// Parses a port name, `<protocol>[-suffix]`.
fn by_port_name(target: &Target) -> Option<AppProtocol> {
    let entry = target.entries.first()?;
    let name = if entry.service_name.is_empty() {
        &entry.container_port_name
    } else {
        &entry.service_port_name
    };
    match name
        .split('-')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase()
        .as_str()
    {
        "http" => Some(AppProtocol::Http1),
        "https" | "tls" | "h2" => Some(AppProtocol::Tls),
        "grpc" | "http2" | "h2c" => Some(AppProtocol::Http2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use traffic_proto::sidecar::{self, Role};

    fn target(name: &str, app_protocol: &str, service_port: u16) -> Target {
        let config = format!(
            "{{agentName: a, namespace: n, managerHost: m, containers: [{{name: c, envPrefix: A_, \
            mountPoint: /m, intercepts: [{{serviceName: s, servicePortName: {name:?}, servicePort: \
            {service_port}, protocol: TCP, appProtocol: {app_protocol:?}, containerPort: 8080, \
            agentPort: 9900}}]}}]}}"
        );
        sidecar::from_yaml(&config, "test", Role::Agent)
            .unwrap()
            .targets()
            .remove(0)
    }

    #[test]
    fn declarations_strategies_and_annotations_rank_as_documented() {
        use AppProtocolStrategy as S;
        let rows = [
            (
                "x",
                "http",
                80,
                S::Http2,
                AppProtocol::Http1,
                ProtocolSource::AppProtocol,
            ),
            (
                "x",
                "kubernetes.io/h2c",
                80,
                S::Http,
                AppProtocol::Http2,
                ProtocolSource::AppProtocol,
            ),
            (
                "x",
                "KUBERNETES.IO/WSS",
                80,
                S::Http,
                AppProtocol::Tls,
                ProtocolSource::AppProtocol,
            ),
            (
                "x",
                "grpc",
                80,
                S::Http,
                AppProtocol::Http2,
                ProtocolSource::AppProtocol,
            ),
            (
                "x",
                "tcp",
                80,
                S::Http,
                AppProtocol::Opaque,
                ProtocolSource::AppProtocol,
            ),
            (
                "x",
                "mongo",
                80,
                S::Http,
                AppProtocol::Unknown,
                ProtocolSource::Bytes,
            ),
            (
                "x",
                "",
                80,
                S::Http,
                AppProtocol::Http1,
                ProtocolSource::Strategy,
            ),
            (
                "x",
                "",
                80,
                S::Http2,
                AppProtocol::Http2,
                ProtocolSource::Strategy,
            ),
            (
                "x",
                "",
                80,
                S::Http2Probe,
                AppProtocol::Unknown,
                ProtocolSource::Bytes,
            ),
            (
                "x",
                "",
                443,
                S::Http2Probe,
                AppProtocol::Tls,
                ProtocolSource::AppProtocol,
            ),
            (
                "https",
                "",
                80,
                S::Http2Probe,
                AppProtocol::Tls,
                ProtocolSource::AppProtocol,
            ),
            (
                "http-web",
                "",
                80,
                S::PortName,
                AppProtocol::Http1,
                ProtocolSource::Strategy,
            ),
            (
                "GRPC-api",
                "",
                80,
                S::PortName,
                AppProtocol::Http2,
                ProtocolSource::Strategy,
            ),
            (
                "https",
                "",
                80,
                S::PortName,
                AppProtocol::Tls,
                ProtocolSource::Strategy,
            ),
            (
                "web",
                "",
                80,
                S::PortName,
                AppProtocol::Unknown,
                ProtocolSource::Bytes,
            ),
        ];
        for (name, app_protocol, port, strategy, declared, source) in rows {
            let got = of(
                &target(name, app_protocol, port),
                &BTreeMap::new(),
                strategy,
            );
            assert_eq!(
                got,
                (declared, source, None),
                "{name} {app_protocol:?} {port} {strategy}"
            );
        }
    }

    #[test]
    fn the_annotation_of_a_port_wins_and_a_wrong_one_is_named() {
        let annotated =
            |value: &str| BTreeMap::from([(format!("{ANNOTATION}.8080"), value.to_owned())]);
        let target = target("http", "http", 80);
        let strategy = AppProtocolStrategy::Http;
        assert_eq!(
            of(&target, &annotated("h2c"), strategy),
            (AppProtocol::Http2, ProtocolSource::Annotation, None)
        );
        let (declared, source, odd) = of(&target, &annotated("htpp"), strategy);
        assert_eq!(
            (declared, source),
            (AppProtocol::Http1, ProtocolSource::AppProtocol)
        );
        assert!(
            odd.unwrap()
                .starts_with("telepresence.io/app-protocol.8080=\"htpp\": unknown protocol")
        );
    }
}
