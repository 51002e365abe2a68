//! Ports without a good secret, and what is told of secrets.

use std::process::Command;

use harness::certs::Authority;

use crate::fixture::{Fixture, ORIGINATE, Setup, TERMINATE, said};
use crate::nginx::{Nginx, Speaks};

/// A caller with a certificate of its own, since the app asks for one.
fn end_to_end(fixture: &Fixture) -> Result<String, String> {
    let pem = tempfile::NamedTempFile::new().unwrap();
    let signed = fixture.authority.sign(&["own-caller"]);
    std::fs::write(pem.path(), format!("{}{}", signed.cert, signed.key)).unwrap();
    fixture.curl(&["--http1.1", "--cert", pem.path().to_str().unwrap()])
}

const UNTOUCHED: &str = "app sni=app.test alpn=http/1.1 dn=CN=own-caller proto=HTTP/1.1 caller=\n";

#[test]
fn without_a_secret_tls_is_relayed_untouched_and_a_filtered_intercept_names_the_annotation() {
    for app_protocol in ["https", ""] {
        let authority = Authority::new("cluster");
        let app = Nginx::start("app", Speaks::MutualTls, false, &authority);
        let fixture = Fixture::start(
            authority,
            &Setup {
                app_protocol,
                ..Setup::new(app.addr, &[])
            },
        );
        assert_eq!(end_to_end(&fixture).unwrap(), UNTOUCHED);
        let intercept = fixture.begin_intercept(app.addr, &[]);
        let told = intercept.line("telepresence.io/downstream-tls-secret");
        assert!(
            told.contains(&format!("downstream-tls-secret.{}", app.addr.port())),
            "{told}"
        );
        assert_eq!(
            end_to_end(&fixture).unwrap(),
            UNTOUCHED,
            "declared {app_protocol:?}"
        );
    }
}

#[test]
fn a_declared_http2_port_is_not_probed_for_tls_without_a_secret() {
    // The declaration says which protocol, not whether TLS carries it, and nobody asked for a probe:
    // the intercept begins, and TLS that nothing terminates is relayed as before.
    let authority = Authority::new("cluster");
    let app = Nginx::start("app", Speaks::MutualTls, false, &authority);
    let fixture = Fixture::start(
        authority,
        &Setup {
            app_protocol: "grpc",
            ..Setup::new(app.addr, &[])
        },
    );
    assert_eq!(end_to_end(&fixture).unwrap(), UNTOUCHED);
    let intercept = fixture.begin_intercept(app.addr, &[]);
    intercept.line("state=ACTIVE");
    assert_eq!(end_to_end(&fixture).unwrap(), UNTOUCHED);
}

#[test]
fn a_bad_secret_is_told_once_and_its_port_relays() {
    let authority = Authority::new("cluster");
    let app = Nginx::start("app", Speaks::MutualTls, false, &authority);
    let spoil =
        |secrets: &std::path::Path| std::fs::write(secrets.join("server/tls.key"), "").unwrap();
    let setup = Setup {
        app_protocol: "https",
        secrets: &spoil,
        ..Setup::new(app.addr, &[TERMINATE, ORIGINATE])
    };
    let fixture = Fixture::start(authority, &setup);
    assert_eq!(end_to_end(&fixture).unwrap(), UNTOUCHED);
    let message = "server/tls.key: is empty; store the whole PEM text in the Secret";
    assert_eq!(fixture.agent.process.lines(message).len(), 1);
    let intercept = fixture.begin_intercept(app.addr, &[]);
    intercept.line(message);
    // Mended, the port terminates.
    let server = fixture.agent.root.path().join("downstream-tls/server");
    fixture.authority.write_secret(&server, &fixture.signed[0]);
    fixture.agent.process.line("certificate in use");
    harness::wait::until("the agent's own certificate", || {
        fixture
            .curl(&["--http1.1"])
            .ok()
            .filter(|answer| answer.contains("dn=CN=agent-client"))
    });
}

#[test]
fn metrics_tell_the_seconds_to_expiry_and_no_page_or_log_line_holds_a_key() {
    let authority = Authority::new("cluster");
    let app = Nginx::start("app", Speaks::MutualTls, true, &authority);
    let fixture = Fixture::start(
        authority,
        &Setup {
            log_level: "trace",
            ..Setup::new(app.addr, &[TERMINATE, ORIGINATE])
        },
    );
    fixture.curl(&["--http2"]).unwrap();
    let page = |path: &str| {
        let mut command = Command::new("curl");
        command
            .args(["-sS", "--max-time", "30"])
            .arg(format!("http://{}{path}", fixture.agent.admin()));
        said(command).unwrap()
    };
    let metrics = page("/stats/prometheus");
    let gauge = metrics
        .lines()
        .find(|line| line.contains("expir") && !line.starts_with('#'))
        .unwrap_or(&metrics);
    let seconds: f64 = gauge
        .rsplit(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap_or_else(|_| panic!("{gauge}"));
    assert!(seconds > 0.0, "{gauge}");
    let certificates = page("/certs");
    assert!(certificates.contains("app.test"), "{certificates}");
    let mut everything = vec![
        metrics,
        certificates,
        page("/config_dump"),
        page("/stats"),
        page("/listeners"),
        page("/clusters"),
    ];
    everything.extend(fixture.agent.process.lines(""));
    let text = everything.join("\n");
    assert!(text.contains("certificate in use") && text.len() > 5000);
    for signed in &fixture.signed {
        for line in signed.key.lines().filter(|line| !line.starts_with('-')) {
            assert!(
                !text.contains(&line[..line.len().min(24)]),
                "a key is in the output"
            );
        }
    }
}

#[test]
fn a_check_refuses_annotations_that_cannot_be_followed_and_a_running_agent_leaves_them_out() {
    let authority = Authority::new("cluster");
    let app = Nginx::start("app", Speaks::Clear, false, &authority);
    let odd = ("telepresence.io/upstream-insecure-skip-verify", "perhaps");
    let fixture = Fixture::start(
        authority,
        &Setup {
            app_protocol: "http",
            ..Setup::new(app.addr, &[TERMINATE, odd])
        },
    );
    fixture
        .agent
        .process
        .line("is neither enabled nor disabled");
    assert!(
        fixture
            .curl(&["--http1.1"])
            .unwrap()
            .starts_with("app sni= ")
    );
    let root = fixture.agent.root.path();
    let mut check = Command::new(harness::programs::path("traffic-agent"));
    check
        .arg("--check")
        .arg("--config")
        .arg(root.join("config.yaml"))
        .arg("--root")
        .arg(root);
    let output = check.env_clear().output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let told = String::from_utf8(output.stderr).unwrap();
    let key = format!(
        "telepresence.io/upstream-insecure-skip-verify.{}=\"perhaps\": ",
        app.addr.port()
    );
    assert!(
        told.starts_with(&key) && told.ends_with("; write enabled or disabled\n"),
        "{told}"
    );
}
