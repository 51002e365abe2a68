use std::collections::BTreeMap;

use traffic_proto::manager::InterceptSpec;

use super::*;

fn create(flags: &[&str]) -> Result<InterceptSpec, String> {
    let command = ["intercept", "create", "hello", "--workload", "app"]
        .iter()
        .chain(flags);
    let flags = Flags::try_parse_from(command).map_err(|error| error.to_string())?;
    let Command::Create(create) = flags.command else {
        panic!("not create")
    };
    let local = create.local_ports()[0];
    create.spec("default", SocketAddr::from(([127, 0, 0, 1], local)))
}

#[test]
fn filters_choose_the_http_mechanism() {
    let flags = [
        "--port=9000:8080",
        "--http-header=x-dev=a=b",
        "--http-path-prefix=/api",
        "--http-path-equal=/",
    ];
    let spec = create(&flags).unwrap();
    assert_eq!(spec.mechanism, "http");
    assert_eq!(
        spec.header_filters,
        BTreeMap::from([("x-dev".into(), "a=b".into())])
    );
    assert_eq!(spec.path_filters, [":path-equal:/", ":path-prefix:/api"]);
    assert_eq!(
        (spec.target_host.as_str(), spec.target_port),
        ("127.0.0.1", 9000)
    );
    assert_eq!(
        (spec.port_identifier.as_str(), spec.protocol.as_str()),
        ("8080", "")
    );
    assert_eq!(spec.agent, "app");
    assert_eq!(
        (spec.dial_timeout, spec.roundtrip_latency),
        (3_000_000_000, 4_000_000_000)
    );
}

#[test]
fn an_exact_header_is_sent_as_an_anchored_regex() {
    let spec = create(&["--port=9000:80", "--http-header-exact=user=jane.doe"]).unwrap();
    let filters = BTreeMap::from([("user".into(), r"^jane\.doe$".into())]);
    assert_eq!(spec.header_filters, filters);
}

#[test]
fn an_address_that_cannot_be_right_is_refused() {
    for right in ["localhost:8081", "http://[::1]:8081", "http://10.0.0.1:80/"] {
        assert_eq!(manager_address(right).as_deref(), Ok(right));
    }
    for (wrong, why) in [
        ("localhost", "no port"),
        (":8081", "no host"),
        ("localhost:0", "1 to 65535"),
        ("localhost:99999", "1 to 65535"),
        ("https://localhost:1", "scheme https"),
        ("::1:8081", "no valid host"),
        ("a b:80", "no valid host"),
    ] {
        let error = manager_address(wrong).unwrap_err();
        assert!(
            error.contains(why) && error.contains("write HOST:PORT"),
            "{error}"
        );
    }
}

#[test]
fn without_filters_it_is_tcp_and_udp_is_said_in_the_identifier() {
    let spec = create(&["--port=5353:dns/UDP"]).unwrap();
    assert_eq!(
        (
            spec.mechanism.as_str(),
            spec.protocol.as_str(),
            spec.port_identifier.as_str()
        ),
        ("tcp", "UDP", "dns/UDP")
    );
}

#[test]
fn a_transport_that_is_not_written_is_left_to_the_workload() {
    for (flag, identifier, protocol) in [
        ("--port=5353:dns", "dns", ""),
        ("--port=5353:dns/udp", "dns/UDP", "UDP"),
        ("--port=5353:53/TCP", "53/TCP", "TCP"),
        ("--port=5353", "", ""),
        ("--port=5353/udp", "", "UDP"),
    ] {
        let spec = create(&[flag]).unwrap();
        assert_eq!(
            (spec.port_identifier.as_str(), spec.protocol.as_str()),
            (identifier, protocol),
            "{flag}"
        );
    }
}

#[test]
fn filters_on_datagrams_are_refused_with_their_flags() {
    for (flags, said) in [
        (
            &[
                "--port=53:dns/UDP",
                "--http-header=a=b",
                "--http-method=GET",
            ][..],
            "--http-header, --http-method: port dns/UDP carries datagrams",
        ),
        (
            &["--port=80:http", "--port=53:53/udp", "--http-path-equal=/"],
            "--http-path-equal: port 53/UDP carries datagrams",
        ),
        (&["--port=53/UDP", "--grpc-service=a"], "name a TCP port"),
    ] {
        let error = create(flags).unwrap_err();
        assert!(error.contains(said), "{flags:?}: {error}");
    }
    create(&["--port=53:dns/UDP"]).unwrap();
    create(&["--port=53:dns", "--http-header=a=b"]).unwrap();
}

#[test]
fn further_ports_are_sent_with_the_local_port_of_each() {
    let ports = ["--port=9000:http", "--port=9001:admin", "--port=53:dns/UDP"];
    let spec = create(&ports).unwrap();
    assert_eq!(
        (spec.port_identifier.as_str(), spec.target_port),
        ("http", 9000)
    );
    assert_eq!(spec.pod_ports, ["admin:9001", "dns:53/UDP"]);
}

#[test]
fn ports_of_the_pod_are_told_to_the_manager_with_their_transport() {
    let spec = create(&["--port=80", "--to-pod=9090", "--to-pod=53/udp"]).unwrap();
    assert_eq!(spec.local_ports, ["9090/TCP", "53/UDP"]);
    let error = create(&["--port=80", "--to-pod=http"]).unwrap_err();
    assert!(error.contains("1 to 65535"), "{error}");
}

#[test]
fn replace_takes_everything() {
    let spec = |flags: &[&str]| {
        let command = ["intercept", "replace", "hello", "--port=80"].iter();
        let flags = Flags::try_parse_from(command.chain(flags)).unwrap();
        let Command::Replace(replace) = flags.with_kind().command else {
            panic!("not replace")
        };
        replace.spec("default", SocketAddr::from(([127, 0, 0, 1], 80)))
    };
    let plain = spec(&[]).unwrap();
    assert!(plain.replace && plain.mechanism == "tcp");
    let error = spec(&["--http-header=a=b"]).unwrap_err();
    assert!(error.contains("leave the filters out"), "{error}");
}

#[test]
fn mistakes_are_named() {
    for (flags, status_text) in [
        (&["--port=0"][..], "is not a port number"),
        (&["--port=80:"], "after the colon"),
        (&["--port=80:x/SCTP"], "/TCP or /UDP"),
        (&["--port=80/SCTP"], "80/TCP or 80/UDP"),
        (&["--port=80/TCP:x"], "is not a port number"),
        (&["--port=80:x", "--port=81"], "81:IDENTIFIER"),
        (&["--port=80", "--http-header=x"], "NAME=VALUE"),
        (
            &["--port=80", "--http-header=a b=c"],
            "is not a header name",
        ),
        (
            &["--port=80", "--http-header=a=1", "--http-header=a=2"],
            "given twice",
        ),
        (
            &["--port=80", "--http-header=a=1", "--http-header-exact=a=2"],
            "given twice",
        ),
        (
            &["--port=80", "--http-header=a=(b"],
            "--http-header-exact 'a=(b'",
        ),
        (
            &["--port=80", "--http-header=a=1", "--mechanism=tcp"],
            "--mechanism tcp",
        ),
    ] {
        let error = create(flags).unwrap_err();
        assert!(error.contains(status_text), "{flags:?}: {error}");
    }
}
