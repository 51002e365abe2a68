//! Intercepts of ports that carry datagrams, which cannot do what those of requests can.

use traffic_proto::manager::InterceptSpec;
use traffic_proto::port::Transport;
use traffic_proto::port_identifier::{FurtherPort, PortIdentifier};

/// Returns why an intercept cannot be had of a UDP port, with the remedy; none if it can.
pub(crate) fn refusal(spec: &InterceptSpec, port: &str) -> Option<String> {
    if spec.wiretap {
        return Some(format!(
            "port {port} carries datagrams, and a wiretap copies TCP connections and HTTP requests \
            alone; intercept it, or name a TCP port with --port LOCAL:PORT"
        ));
    }
    let header = spec.header_filters.keys().next();
    let header = header.map(|name| format!("--http-header {name}"));
    let path = spec.path_filters.first();
    let filter = header.or_else(|| path.map(|path| format!("--http-path-… {path}")))?;
    Some(format!(
        "{filter}: port {port} carries datagrams, which have no headers and no path; leave the filters \
        out to take the whole port, or name a TCP port with --port LOCAL:PORT"
    ))
}

/// Returns the same for the ports that a spec itself calls UDP.
pub(crate) fn refusal_of_named(spec: &InterceptSpec) -> Option<String> {
    let main = spec.port_identifier.parse::<PortIdentifier>().ok();
    let further = spec.pod_ports.iter().filter_map(|text| text.parse().ok());
    let further = further.map(|port: FurtherPort| port.identifier);
    let named = main.into_iter().chain(further);
    let mut udp = named.filter(|port| port.transport == Some(Transport::Udp));
    refusal(spec, &udp.next()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_and_wiretaps_of_udp_ports_are_refused_by_what_was_asked_for() {
        let spec = |identifier: &str, further: &[&str]| InterceptSpec {
            port_identifier: identifier.to_owned(),
            pod_ports: further.iter().map(|it| (*it).to_owned()).collect(),
            ..InterceptSpec::default()
        };
        let filtered = |spec: InterceptSpec| InterceptSpec {
            header_filters: [("x-dev".to_owned(), "me".to_owned())].into(),
            ..spec
        };
        let by_path = InterceptSpec {
            path_filters: vec![":path-equal:/".to_owned()],
            ..spec("dns/UDP", &[])
        };
        let copies = InterceptSpec {
            wiretap: true,
            ..spec("dns/UDP", &[])
        };
        for (spec, said) in [
            (
                filtered(spec("dns/UDP", &[])),
                "--http-header x-dev: port dns/UDP carries",
            ),
            (
                filtered(spec("http", &["53:5353/udp"])),
                "port 53/UDP carries",
            ),
            (by_path, "--http-path-… :path-equal:/: port dns/UDP"),
            (copies, "a wiretap copies TCP connections"),
        ] {
            let refusal = refusal_of_named(&spec).unwrap();
            assert!(refusal.contains(said), "{refusal}");
        }
        for spec in [
            spec("dns/UDP", &[]),
            filtered(spec("dns", &["http:80"])),
            filtered(spec("dns/TCP", &[])),
        ] {
            assert_eq!(refusal_of_named(&spec), None);
        }
    }
}
