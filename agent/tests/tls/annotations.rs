//! All spellings of all annotations, and their effect on a port.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use traffic_agent::tls::secrets::annotations::{
    AppPort, CallerAuth, Plans, PortPlan, ToApp, plans,
};

/// 8443: TLS behind service port 443, named "web"; 9000: undeclared; 8080: declared clear text.
fn ports() -> Vec<AppPort> {
    let port =
        |container_port, service_ports: &[u16], names: &[&str], app_protocol: &str| AppPort {
            container_port,
            service_ports: service_ports.to_vec(),
            names: names.iter().map(|n| n.to_string()).collect(),
            app_protocol: app_protocol.into(),
            mount_point: PathBuf::from("/tel_app_mounts/app"),
        };
    vec![
        port(8443, &[443], &["web"], "https"),
        port(9000, &[], &[], ""),
        port(8080, &[80], &["http"], "http"),
    ]
}

fn read(annotations: &[(&str, &str)]) -> Plans {
    let annotations: BTreeMap<_, _> = annotations
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect();
    plans(&annotations, "shop", Path::new("/"), &ports())
}

#[track_caller]
fn good(annotations: &[(&str, &str)]) -> BTreeMap<u16, PortPlan> {
    let read = read(annotations);
    assert!(read.faults.is_empty(), "{}", read.faults);
    read.ports
        .into_iter()
        .map(|plan| (plan.container_port, plan))
        .collect()
}

fn dirs(plan: &PortPlan) -> (Vec<String>, Vec<String>) {
    let shown = |source: &traffic_agent::tls::secrets::secret::SecretSource| {
        source
            .dirs
            .iter()
            .map(|d| d.display().to_string())
            .collect::<Vec<_>>()
            .join(" ")
    };
    (
        plan.terminating.iter().map(shown).collect(),
        plan.originating.iter().map(shown).collect(),
    )
}

#[test]
fn every_spelling_names_its_directory() {
    let secret = "/downstream-tls/s";
    let path = "/tel_app_mounts/app/etc/tls /etc/tls";
    for (name, value, terminating, originating) in [
        ("downstream-tls-secret", "s", vec![secret], vec![]),
        ("downstream-cert-secret", "s", vec![secret], vec![]),
        ("downstream-tls-path", "/etc/tls", vec![path], vec![]),
        ("downstream-cert-path", "/etc/tls", vec![path], vec![]),
        ("upstream-tls-secret", "s", vec![], vec![secret]),
        ("upstream-cert-secret", "s", vec![], vec![secret]),
        ("upstream-tls-path", "/etc/tls", vec![], vec![path]),
        ("upstream-cert-path", "/etc/tls", vec![], vec![path]),
    ] {
        for prefix in ["telepresence.io/", "telepresence.getambassador.io/"] {
            // The container's port, the service's, and the name lead to the same port, and to no
            // other.
            for suffix in ["8443", "443", "web"] {
                let plans = good(&[(&format!("{prefix}{name}.{suffix}"), value)]);
                assert_eq!(
                    plans.keys().copied().collect::<Vec<_>>(),
                    [8443],
                    "{name}.{suffix}"
                );
                let (t, o) = dirs(&plans[&8443]);
                assert_eq!(
                    (t, o),
                    (
                        terminating.iter().map(|s| s.to_string()).collect(),
                        originating.iter().map(|s| s.to_string()).collect()
                    )
                );
                assert_eq!(plans[&8443].certain, name.starts_with("downstream"));
            }
        }
    }
}

#[test]
fn annotations_without_a_port_hold_for_every_port_not_declared_clear_text() {
    for prefix in [
        "telepresence.io/",
        "telepresence.getambassador.io/",
        "getambassador.io/",
    ] {
        let plans = good(&[
            (&format!("{prefix}inject-terminating-tls-secret"), "server"),
            (&format!("{prefix}inject-originating-tls-secret"), "client"),
        ]);
        assert_eq!(
            plans.keys().copied().collect::<Vec<_>>(),
            [8443, 9000],
            "{prefix}"
        );
        for plan in plans.values() {
            assert_eq!(
                dirs(plan),
                (
                    vec!["/terminating_tls".into()],
                    vec!["/originating_tls".into()]
                )
            );
            assert!(!plan.certain);
        }
        assert_eq!(
            (plans[&8443].to_app, plans[&9000].to_app),
            (ToApp::Tls, ToApp::Ask)
        );
    }
    for clear in [
        "http",
        "HTTP/1.1",
        "h2c",
        "ws",
        "tcp",
        "kubernetes.io/h2c",
        "kubernetes.io/ws",
        "kubernetes.io/http",
    ] {
        assert!(
            traffic_agent::tls::secrets::annotations::is_clear_text(clear),
            "{clear}"
        );
    }
    for other in [
        "",
        "grpc",
        "http2",
        "https",
        "tls",
        "wss",
        "kubernetes.io/wss",
        "mystery",
    ] {
        assert!(
            !traffic_agent::tls::secrets::annotations::is_clear_text(other),
            "{other}"
        );
    }
}

#[test]
fn what_names_a_port_counts_before_what_names_none() {
    let plans = good(&[
        (
            "telepresence.getambassador.io/inject-terminating-tls-secret",
            "old",
        ),
        (
            "telepresence.getambassador.io/inject-originating-tls-secret",
            "old-client",
        ),
        ("telepresence.io/downstream-tls-secret.8443", "own"),
    ]);
    assert_eq!(
        dirs(&plans[&8443]),
        (
            vec!["/downstream-tls/own".into()],
            vec!["/originating_tls".into()]
        )
    );
    assert_eq!(dirs(&plans[&9000]).0, ["/terminating_tls"]);
    // The oldest prefix is read only where neither of the two is written with a newer one.
    let plans = good(&[
        ("getambassador.io/inject-originating-tls-secret", "oldest"),
        (
            "telepresence.getambassador.io/inject-terminating-tls-secret",
            "old",
        ),
    ]);
    assert_eq!(
        dirs(&plans[&9000]),
        (vec!["/terminating_tls".into()], vec![])
    );
}

#[test]
fn several_certificates_share_a_port_and_the_injectors_own_path_is_no_second_one() {
    let plans = good(&[
        ("telepresence.io/downstream-tls-secret.8443", "a, b"),
        (
            "telepresence.io/downstream-tls-path.8443",
            "/downstream-tls/a,/etc/c",
        ),
    ]);
    assert_eq!(
        dirs(&plans[&8443]).0,
        [
            "/downstream-tls/a",
            "/downstream-tls/b",
            "/tel_app_mounts/app/etc/c /etc/c"
        ]
    );
}

#[test]
fn the_agents_name_is_put_in_and_the_root_before() {
    for variable in ["$AGENT_NAME", "${AGENT_NAME}", "$_TEL_AGENT_NAME"] {
        let annotation = BTreeMap::from([(
            "telepresence.io/downstream-tls-secret.8443".into(),
            format!("{variable}-tls"),
        )]);
        let read = plans(&annotation, "shop", Path::new("/tmp/pod"), &ports());
        assert_eq!(
            dirs(&read.ports[0]).0,
            ["/tmp/pod/downstream-tls/shop-tls"],
            "{variable}"
        );
        assert_eq!(read.ports[0].terminating[0].value, "shop-tls");
    }
}

#[test]
fn checks_and_extras_are_read() {
    let upstream = ("telepresence.io/upstream-tls-secret.8443", "s");
    for (value, skip) in [("enabled", true), ("disabled", false)] {
        let plans = good(&[
            upstream,
            ("telepresence.io/upstream-insecure-skip-verify.8443", value),
        ]);
        assert_eq!(plans[&8443].skip_verify, skip);
    }
    let plan = &good(&[
        upstream,
        ("telepresence.io/downstream-tls-secret.8443", "t"),
        ("telepresence.io/upstream-probe-timeout.443", "1m30s"),
        ("telepresence.io/upstream-server-name.8443", "app.internal"),
        (
            "telepresence.io/downstream-client-ca-secret.8443",
            "callers",
        ),
        ("telepresence.io/downstream-client-auth.8443", "optional"),
        ("telepresence.io/forwarded-identity-header.8443", "X-Caller"),
    ])[&8443];
    assert_eq!(plan.probe_timeout, Duration::from_secs(90));
    assert_eq!(plan.server_name.as_deref(), Some("app.internal"));
    assert_eq!(plan.identity_header.as_deref(), Some("x-caller"));
    let (ca, auth) = plan.caller_ca.as_ref().unwrap();
    assert_eq!(
        (ca.dirs[0].display().to_string(), *auth),
        ("/downstream-tls/callers".into(), CallerAuth::Optional)
    );
    let plain = &good(&[upstream])[&8443];
    assert_eq!(
        (plain.probe_timeout, plain.skip_verify),
        (Duration::from_secs(2), false)
    );
}

#[test]
fn a_client_certificate_for_a_port_declared_clear_text_has_the_app_asked() {
    let plans = good(&[("telepresence.io/upstream-tls-secret.8080", "s")]);
    assert_eq!(plans[&8080].to_app, ToApp::Ask);
    let plans = good(&[("telepresence.io/downstream-tls-secret.8080", "s")]);
    assert_eq!(plans[&8080].to_app, ToApp::Clear);
}

#[test]
fn mistakes_name_annotation_value_and_remedy() {
    let upstream = ("telepresence.io/upstream-tls-secret.8443", "s");
    for (key, value, parts) in [
        (
            "telepresence.io/downstream-tls-secret",
            "s",
            [
                "names no port",
                "downstream-tls-secret.<container or service port>",
            ],
        ),
        (
            "telepresence.io/upstream-cert-path",
            "/x",
            ["names no port", "upstream-cert-path.<"],
        ),
        (
            "telepresence.io/downstream-tls-path.8443",
            "/etc/../root",
            ["..", "full path"],
        ),
        (
            "telepresence.io/upstream-tls-path.8443",
            "../x",
            ["..", "full path"],
        ),
        (
            "telepresence.io/downstream-tls-secret.8443",
            "../x",
            ["not a Secret's name", "without a path"],
        ),
        (
            "telepresence.getambassador.io/inject-terminating-tls-secret",
            "a/b",
            ["not a Secret's name", "without a path"],
        ),
        (
            "telepresence.io/upstream-insecure-skip-verify.8443",
            "yes",
            ["neither enabled", "enabled or disabled"],
        ),
        (
            "telepresence.io/upstream-probe-timeout.8443",
            "2",
            ["unit", "s"],
        ),
        (
            "telepresence.io/upstream-probe-timeout.8443",
            "-2s",
            ["negative", "2s"],
        ),
        (
            "telepresence.io/upstream-server-name.8443",
            "10.0.0.1",
            ["not a DNS name", "certificate"],
        ),
        (
            "telepresence.io/downstream-client-auth.8443",
            "maybe",
            ["neither required", "required or optional"],
        ),
        (
            "telepresence.io/downstream-client-auth.8443",
            "required",
            ["without a CA", "downstream-client-ca-secret.8443"],
        ),
        (
            "telepresence.io/forwarded-identity-header.8443",
            "Content-Length",
            ["identity header", "x-caller-identity"],
        ),
        (
            "telepresence.io/forwarded-identity-header.8443",
            "x y",
            ["identity header", "x-caller-identity"],
        ),
    ] {
        let text = read(&[upstream, (key, value)]).faults.to_string();
        assert!(text.starts_with(&format!("{key}={value:?}: ")), "{text}");
        assert!(
            parts.iter().all(|part| text.contains(part)) && text.lines().count() == 1,
            "{text}"
        );
    }
    let unknown = read(&[("telepresence.io/downstream-tls-secret.7777", "s")]);
    assert!(unknown.faults.is_empty() && unknown.ports.is_empty());
    assert!(
        unknown.notes[0].to_string().contains("8443, 9000, 8080"),
        "{}",
        unknown.notes[0]
    );
    let idle = read(&[
        upstream,
        ("telepresence.io/downstream-client-ca-secret.8443", "c"),
    ]);
    assert!(
        idle.notes[0].to_string().contains("no effect"),
        "{}",
        idle.notes[0]
    );
}

#[test]
fn of_two_spellings_with_different_values_the_usual_one_counts() {
    let read = read(&[
        ("telepresence.io/downstream-cert-secret.8443", "cert"),
        ("telepresence.io/downstream-tls-secret.8443", "tls"),
    ]);
    assert_eq!(dirs(&read.ports[0]).0, ["/downstream-tls/tls"]);
    assert!(
        read.notes[0].to_string().contains("two spellings"),
        "{}",
        read.notes[0]
    );
}

#[test]
fn a_port_without_annotations_has_no_plan() {
    assert!(
        good(&[
            ("unrelated/annotation", "x"),
            ("telepresence.io/downstream-tls", "x")
        ])
        .is_empty()
    );
}
