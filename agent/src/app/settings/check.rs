//! Settings that can be read and are wrong all the same. A running agent says so and serves; `--check`
//! refuses them.

use std::collections::HashSet;

use traffic_proto::fault::{Fault, Faults};
use traffic_proto::near::nearest;
use traffic_proto::port::Transport;

use crate::app::settings::env::{self, Env};
use crate::app::settings::{Settings, protocol};

/// Beginning of the names of the agent's variables.
const PREFIX: &str = "AGENT_";

/// Returns what cannot be meant.
#[must_use]
pub fn faults(settings: &Settings) -> Faults {
    let mut faults = Faults::default();
    manager(settings, &mut faults);
    ports(settings, &mut faults);
    containers(settings, &mut faults);
    faults
}

fn manager(settings: &Settings, faults: &mut Faults) {
    let host = &settings.sidecar.manager_host;
    let is_ipv6 = host.trim_matches(['[', ']']).parse::<std::net::Ipv6Addr>();
    let problem = if host.contains("://") || host.contains('/') {
        "a URL is no host"
    } else if host.contains(char::is_whitespace) {
        "a host has no spaces"
    } else if host.contains(':') && is_ipv6.is_err() {
        "the port is a setting of its own"
    } else {
        return;
    };
    let remedy =
        "write the host alone, such as traffic-manager.ambassador, and its port as managerPort";
    faults.push(Fault::text("managerHost", host, problem, remedy));
}

fn ports(settings: &Settings, faults: &mut Faults) {
    let metrics = settings.metrics_port.unwrap_or_default();
    let servers = [
        (settings.server_port, "gRPC API", "envoy.serverPort"),
        (settings.admin_port, "admin", "envoy.adminPort"),
        (metrics, "metrics", "metrics.port"),
    ];
    for target in &settings.targets {
        let agent_port = target.agent_port.get();
        if target.transport != Transport::Tcp {
            continue;
        }
        for (port, server, key) in servers.iter().filter(|(port, ..)| *port == agent_port) {
            faults.push(Fault::new(
                "agentPort",
                port,
                format!("it is the port of the agent's {server} as well"),
                format!("choose another agentPort, or another {key}"),
            ));
        }
    }
    for (port, server, key) in servers.iter().take(2) {
        if *port == metrics && metrics != 0 {
            faults.push(Fault::new(
                "metrics.port",
                metrics,
                format!("it is the port of the agent's {server} as well"),
                format!("choose another metrics.port or {key}"),
            ));
        }
    }
    if settings.server_port == settings.admin_port && settings.server_port != 0 {
        faults.push(Fault::new(
            "envoy.adminPort",
            settings.admin_port,
            "it is the port of the agent's gRPC API as well",
            "choose another envoy.adminPort or envoy.serverPort",
        ));
    }
}

fn containers(settings: &Settings, faults: &mut Faults) {
    let mut names = HashSet::new();
    for container in &settings.sidecar.containers {
        if !names.insert(container.name.as_str()) {
            faults.push(Fault::text(
                "containers[].name",
                &container.name,
                "two containers have this name",
                "write each container once, with all of its ports",
            ));
        }
    }
}

/// Returns doubts about protocols: names that are likely misspelt. Others are somebody's own.
pub(super) fn protocols(sidecar: &traffic_proto::sidecar::Sidecar) -> Vec<Fault> {
    let entries = sidecar.containers.iter().flat_map(|c| &c.intercepts);
    let odd = entries.filter_map(|entry| {
        let written = entry.app_protocol.as_str();
        let meant = protocol::misspelt(written)?;
        Some(Fault::text(
            "appProtocol",
            written,
            "unknown protocol: each connection's first bytes decide",
            format!("did you mean {meant}?"),
        ))
    });
    odd.collect()
}

/// Returns doubts about variables whose names begin as ours and are none of them.
pub(super) fn variables(env: &Env) -> Vec<Fault> {
    let doubt = |(name, value): (&String, &String)| {
        let own = name.strip_prefix(PREFIX)?;
        let all = env::TABLE.iter().map(|(name, _)| *name).chain(env::OTHERS);
        let known: Vec<_> = all.filter_map(|name| name.strip_prefix(PREFIX)).collect();
        // Kubernetes sets variables for each Service, and one may be called agent.
        let of_a_service = own.contains("SERVICE_") || own.contains("PORT");
        let remedy = match nearest(own, known.iter().copied()) {
            Some(_) if known.contains(&own) => return None,
            Some(meant) => format!("did you mean {PREFIX}{meant}?"),
            None if of_a_service => return None,
            None => "check the spelling, or remove it; --help lists all variables".to_owned(),
        };
        let problem = "unknown variable, ignored";
        Some(Fault::text(name, value, problem, remedy))
    };
    env.all().iter().filter_map(doubt).collect()
}
