//! nginx as the app, curl and openssl as callers.

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use traffic_agent::telemetry::metrics::TlsFailure;
use traffic_agent::tls::secrets::annotations::PortPlan;

use crate::certs::{Ca, Issued, write_secret};
use crate::handshakes::echo;
use crate::listener::{Listener, plan};

/// Protocol of nginx.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Speaks {
    Clear,
    Tls,
    MutualTls,
}

/// nginx from Debian; answers and logs what it saw of the handshake.
struct Nginx {
    dir: tempfile::TempDir,
    addr: SocketAddr,
    child: Child,
}

impl Nginx {
    fn start(speaks: Speaks, http2: bool, ca: &Ca) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_secret(dir.path(), &ca.issue(&["app.test"]), Some(&ca.pem));
        let addr = std::net::SocketAddr::from(([127, 0, 0, 1], harness::ports::free()));
        let h2 = if http2 { " http2" } else { "" };
        let (listen, tls) = match speaks {
            Speaks::Clear => (format!("listen {addr}{h2};"), ""),
            Speaks::Tls => (
                format!("listen {addr} ssl{h2};"),
                "ssl_certificate tls.crt; ssl_certificate_key tls.key;",
            ),
            Speaks::MutualTls => (
                format!("listen {addr} ssl{h2};"),
                "ssl_certificate tls.crt; ssl_certificate_key tls.key; ssl_client_certificate \
                ca.crt; ssl_verify_client on;",
            ),
        };
        let facts = "sni=$ssl_server_name alpn=$ssl_alpn_protocol dn=$ssl_client_s_dn \
            proto=$server_protocol";
        let config = format!(
            "daemon off; worker_processes 1; user root; pid nginx.pid; error_log error.log;\n\
             events {{}}\n\
             http {{ log_format facts '{facts}'; access_log access.log facts;\n\
             client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;\n\
             server {{ {listen} {tls} location / {{ return 200 '{facts}\\n'; }} }} }}\n"
        );
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let child = Command::new("nginx")
            .args([
                "-p",
                &dir.path().display().to_string(),
                "-c",
                "nginx.conf",
                "-e",
                "error.log",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let nginx = Self { dir, addr, child };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(addr).is_err() {
            assert!(Instant::now() < deadline, "{}", nginx.file("error.log"));
            std::thread::sleep(Duration::from_millis(20));
        }
        nginx
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its worker on SIGTERM; a kill would leave it behind.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// A pod's secrets: `server` to terminate with, `client` to show the app, `bare` the same without a
/// CA.
struct Pod {
    root: tempfile::TempDir,
    ca: Ca,
}

impl Pod {
    fn new() -> Self {
        let (root, ca) = (tempfile::tempdir().unwrap(), Ca::default());
        let secrets = root.path().join("downstream-tls");
        write_secret(
            &secrets.join("server"),
            &ca.issue(&["app.test", "other.test"]),
            None,
        );
        let client = ca.issue(&["agent-client"]);
        write_secret(&secrets.join("client"), &client, Some(&ca.pem));
        write_secret(&secrets.join("bare"), &client, None);
        let stranger = Ca::named("Stranger");
        write_secret(&secrets.join("stranger"), &client, Some(&stranger.pem));
        fs::write(root.path().join("ca.pem"), &ca.pem).unwrap();
        Self { root, ca }
    }

    fn plan(&self, annotations: &[(&str, &str)], app_protocol: &str) -> PortPlan {
        plan(self.root.path(), annotations, app_protocol)
    }

    fn ca_file(&self) -> PathBuf {
        self.root.path().join("ca.pem")
    }
}

const TERMINATE: (&str, &str) = ("telepresence.io/downstream-tls-secret.8443", "server");
const ORIGINATE: (&str, &str) = ("telepresence.io/upstream-tls-secret.8443", "client");

/// Runs curl for `https://NAME/` at `addr`.
async fn curl(addr: SocketAddr, name: &str, ca: &Path, args: &[&str]) -> String {
    let mut command = Command::new("curl");
    command
        .args(["-sS", "--max-time", "30", "--cacert"])
        .arg(ca)
        .args(args);
    command.args([
        "--resolve",
        &format!("{name}:{}:127.0.0.1", addr.port()),
        &format!("https://{name}:{}/", addr.port()),
    ]);
    let output = run(command).await;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output().unwrap())
        .await
        .unwrap()
}

async fn s_client(addr: SocketAddr, args: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command
        .args(["s_client", "-connect", &addr.to_string()])
        .args(args);
    let output = run(command).await;
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_app_sees_the_callers_name_and_protocol_and_the_annotated_certificate() {
    let pod = Pod::new();
    for (speaks, http2, app_protocol) in [
        (Speaks::MutualTls, true, ""),
        (Speaks::MutualTls, false, "https"),
        (Speaks::Tls, true, "grpc"),
        (Speaks::Tls, false, ""),
    ] {
        let nginx = Nginx::start(speaks, http2, &pod.ca);
        let listener =
            Listener::start(pod.plan(&[TERMINATE, ORIGINATE], app_protocol), nginx.addr).await;
        let dn = if speaks == Speaks::MutualTls {
            "CN=agent-client"
        } else {
            ""
        };
        let both = if http2 {
            "sni=app.test alpn=h2 dn=DN proto=HTTP/2.0\n"
        } else {
            "sni=app.test alpn=http/1.1 dn=DN proto=HTTP/1.1\n"
        };
        let ca = pod.ca_file();
        let answer = curl(listener.addr, "app.test", &ca, &["--http2"]).await;
        assert_eq!(answer, both.replace("DN", dn), "{speaks:?} {http2}");
        let answer = curl(listener.addr, "app.test", &ca, &["--http1.1"]).await;
        assert_eq!(
            answer,
            format!("sni=app.test alpn=http/1.1 dn={dn} proto=HTTP/1.1\n"),
            "{speaks:?} {http2}"
        );
        // A caller without ALPN gets none, and neither does the app.
        let answer = curl(listener.addr, "app.test", &ca, &["--no-alpn", "--http1.1"]).await;
        assert_eq!(
            answer,
            format!("sni=app.test alpn= dn={dn} proto=HTTP/1.1\n"),
            "{speaks:?} {http2}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_in_clear_text_is_found_out_and_spoken_to_in_clear_text() {
    let pod = Pod::new();
    for annotations in [&[TERMINATE][..], &[TERMINATE, ORIGINATE][..]] {
        for app_protocol in ["", "grpc", "https"] {
            let nginx = Nginx::start(Speaks::Clear, false, &pod.ca);
            let listener = Listener::start(pod.plan(annotations, app_protocol), nginx.addr).await;
            let answer = curl(listener.addr, "app.test", &pod.ca_file(), &["--http2"]).await;
            assert_eq!(
                answer, "sni= alpn= dn= proto=HTTP/1.1\n",
                "declared {app_protocol:?}"
            );
        }
    }
    // With prior knowledge of HTTP/2 on the app's side, h2 is on offer.
    let nginx = Nginx::start(Speaks::Clear, true, &pod.ca);
    let listener = Listener::start(pod.plan(&[TERMINATE], ""), nginx.addr).await;
    let answer = curl(listener.addr, "app.test", &pod.ca_file(), &["--http2"]).await;
    assert_eq!(answer, "sni= alpn= dn= proto=HTTP/2.0\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_app_is_verified_by_the_callers_name_or_the_annotated_one() {
    let pod = Pod::new();
    let nginx = Nginx::start(Speaks::MutualTls, false, &pod.ca);
    let ask = |annotations: Vec<(&'static str, &'static str)>, name: &'static str| {
        let plan = pod.plan(&annotations, "https");
        let (ca, app) = (pod.ca_file(), nginx.addr);
        async move {
            let listener = Listener::start(plan, app).await;
            let mut command = Command::new("curl");
            command
                .args(["-sS", "--max-time", "30", "--cacert"])
                .arg(ca);
            let port = listener.addr.port();
            command.args([
                "--resolve",
                &format!("{name}:{port}:127.0.0.1"),
                &format!("https://{name}:{port}/"),
            ]);
            run(command).await.status.success()
        }
    };
    let skip = (
        "telepresence.io/upstream-insecure-skip-verify.8443",
        "enabled",
    );
    let named = ("telepresence.io/upstream-server-name.8443", "app.test");
    let bare = ("telepresence.io/upstream-tls-secret.8443", "bare");
    let stranger = ("telepresence.io/upstream-tls-secret.8443", "stranger");
    // The app's certificate is for app.test and of the CA in `client`.
    assert!(ask(vec![TERMINATE, ORIGINATE], "app.test").await);
    assert!(
        !ask(vec![TERMINATE, ORIGINATE], "other.test").await,
        "the caller's name is not the app's"
    );
    assert!(
        ask(vec![TERMINATE, ORIGINATE, named], "other.test").await,
        "the annotated name is"
    );
    assert!(
        ask(vec![TERMINATE, ORIGINATE, skip], "other.test").await,
        "nothing is verified"
    );
    assert!(
        ask(vec![TERMINATE, bare], "other.test").await,
        "no CA, no verification"
    );
    assert!(
        !ask(vec![TERMINATE, stranger], "app.test").await,
        "the CA is another one"
    );
    // Without a name from anybody, the CA alone decides.
    let listener = Listener::start(pod.plan(&[TERMINATE, ORIGINATE], "https"), nginx.addr).await;
    let request =
        "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | openssl s_client -noservername -quiet -connect";
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{request} {}", listener.addr)]);
    let answer = run(command).await;
    let answer = String::from_utf8_lossy(&answer.stdout);
    assert!(
        answer.ends_with("sni= alpn= dn=CN=agent-client proto=HTTP/1.0\n"),
        "{answer}"
    );
    let log = nginx.file("access.log");
    assert!(
        log.contains("sni=app.test alpn=http/1.1 dn=CN=agent-client"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_in_clear_text_reaches_a_tls_app_where_a_client_certificate_is_configured() {
    let pod = Pod::new();
    let nginx = Nginx::start(Speaks::MutualTls, true, &pod.ca);
    let clear = |args: &'static [&'static str], addr: SocketAddr| async move {
        let mut command = Command::new("curl");
        command
            .args(["-sS", "--max-time", "30"])
            .args(args)
            .arg(format!("http://{addr}/"));
        String::from_utf8(run(command).await.stdout).unwrap()
    };
    let originating = Listener::start(pod.plan(&[ORIGINATE], ""), nginx.addr).await;
    assert_eq!(
        clear(&["--http1.1"], originating.addr).await,
        "sni= alpn=http/1.1 dn=CN=agent-client proto=HTTP/1.1\n"
    );
    let h2 = clear(&["--http2-prior-knowledge"], originating.addr).await;
    assert_eq!(h2, "sni= alpn=h2 dn=CN=agent-client proto=HTTP/2.0\n");
    // A caller's own TLS is its own matter: the app asks it for a certificate.
    let own = s_client(originating.addr, &["-servername", "app.test", "-brief"]).await;
    assert!(own.contains("Peer certificate: CN = app.test"), "{own}");
    // Without a client certificate the caller's clear text stays what it is.
    let terminating = Listener::start(pod.plan(&[TERMINATE], ""), nginx.addr).await;
    let refused = clear(&["--http1.1"], terminating.addr).await;
    assert!(
        refused.contains("plain HTTP request was sent to HTTPS port"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_versions_and_unknown_ciphers_are_refused_by_an_alert_and_counted() {
    let pod = Pod::new();
    let listener = Listener::start(pod.plan(&[TERMINATE], "http"), echo().await).await;
    let failures = &listener.metrics.tls_failures;
    for version in ["-tls1", "-tls1_1"] {
        let said = s_client(listener.addr, &[version, "-cipher", "ALL:@SECLEVEL=0"]).await;
        assert!(said.contains("alert protocol version"), "{version}: {said}");
    }
    assert_eq!(failures.at(TlsFailure::Version).get(), 2);
    let said = s_client(listener.addr, &["-tls1_2", "-cipher", "AES128-SHA256"]).await;
    assert!(said.contains("alert handshake failure"), "{said}");
    let said = s_client(listener.addr, &["-tls1_3", "-curves", "secp521r1"]).await;
    assert!(said.contains("alert handshake failure"), "{said}");
    assert_eq!(failures.at(TlsFailure::Cipher).get(), 2);
    for version in ["-tls1_2", "-tls1_3"] {
        let said = s_client(
            listener.addr,
            &[
                version,
                "-brief",
                "-CAfile",
                pod.ca_file().to_str().unwrap(),
            ],
        )
        .await;
        assert!(said.contains("Verification: OK"), "{version}: {said}");
    }
    assert_eq!(listener.metrics.tls_handshakes.get(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_resumed_and_other_protocols_alpn_is_no_obstacle() {
    let pod = Pod::new();
    let listener = Listener::start(pod.plan(&[TERMINATE], "http"), echo().await).await;
    let said = s_client(listener.addr, &["-tls1_2", "-reconnect"]).await;
    assert!(said.matches("Reused, TLSv1.2").count() >= 5, "{said}");
    let said = s_client(listener.addr, &["-alpn", "postgresql", "-brief"]).await;
    assert!(said.contains("CONNECTION ESTABLISHED"), "{said}");
    let said = s_client(listener.addr, &["-alpn", "h2"]).await;
    assert!(said.contains("alert no application protocol"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_are_verified_where_a_ca_is_annotated() {
    let pod = Pod::new();
    let callers = Ca::named("Callers");
    let secrets = pod.root.path().join("downstream-tls");
    fs::create_dir(secrets.join("callers")).unwrap();
    fs::write(secrets.join("callers/ca.crt"), &callers.pem).unwrap();
    let ca = (
        "telepresence.io/downstream-client-ca-secret.8443",
        "callers",
    );
    let optional = ("telepresence.io/downstream-client-auth.8443", "optional");
    let store = |name: &str, issued: &Issued| {
        let path = pod.root.path().join(name);
        fs::write(&path, format!("{}{}", issued.chain, issued.key)).unwrap();
        path.display().to_string()
    };
    let good = store("good.pem", &callers.issue(&["caller.test"]));
    let wrong = store("wrong.pem", &Ca::named("Callers").issue(&["caller.test"]));
    let expired = store(
        "expired.pem",
        &callers.issue_with(&["caller.test"], |p| {
            p.not_after = rcgen::date_time_ymd(2020, 1, 1)
        }),
    );
    let echo = echo().await;
    for (annotations, anonymous_allowed) in [
        (vec![TERMINATE, ca], false),
        (vec![TERMINATE, ca, optional], true),
    ] {
        let listener = Listener::start(pod.plan(&annotations, "http"), echo).await;
        let accepted = |args: Vec<String>| {
            let addr = listener.addr;
            // The word comes back only through a finished handshake; TLS 1.3 clients learn of a
            // refusal afterwards.
            async move {
                let mut command = Command::new("openssl");
                command
                    .args([
                        "s_client",
                        "-quiet",
                        "-no_ign_eof",
                        "-connect",
                        &addr.to_string(),
                    ])
                    .args(args);
                tokio::task::spawn_blocking(move || {
                    let mut child = command
                        .stdin(Stdio::piped())
                        .stdout(Stdio::piped())
                        .stderr(Stdio::null())
                        .spawn()
                        .unwrap();
                    let mut stdin = child.stdin.take().unwrap();
                    let _ = stdin.write_all(b"hello\n");
                    let mut line = String::new();
                    let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
                    let _ = std::io::BufRead::read_line(&mut stdout, &mut line);
                    drop(stdin);
                    let _ = child.wait();
                    line == "hello\n"
                })
                .await
                .unwrap()
            }
        };
        for version in ["-tls1_2", "-tls1_3"] {
            let with = |file: &str| {
                vec![
                    version.to_owned(),
                    "-cert".into(),
                    file.into(),
                    "-key".into(),
                    file.into(),
                ]
            };
            assert!(accepted(with(&good)).await, "{version}");
            assert!(
                !accepted(with(&wrong)).await,
                "{version}: the CA is another one of the same name"
            );
            assert!(!accepted(with(&expired)).await, "{version}");
            assert_eq!(
                accepted(vec![version.to_owned()]).await,
                anonymous_allowed,
                "{version}"
            );
        }
        let refused = listener
            .metrics
            .tls_failures
            .at(TlsFailure::Certificate)
            .get();
        assert_eq!(refused, if anonymous_allowed { 4 } else { 6 });
    }
}

/// The protocols in seconds; all that testssl knows, in a minute or two, with
/// `TLS_TESTSSL=full`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn testssl_finds_nothing_worse_than_informational() {
    let pod = Pod::new();
    let nginx = Nginx::start(Speaks::Clear, false, &pod.ca);
    let listener = Listener::start(pod.plan(&[TERMINATE], "http"), nginx.addr).await;
    let report = pod.root.path().join("report.json");
    let mut command = Command::new("testssl");
    command
        .args([
            "--quiet",
            "--color",
            "0",
            "--warnings",
            "off",
            "--ip",
            "127.0.0.1",
            "--jsonfile",
        ])
        .arg(&report);
    command.arg("--add-ca").arg(pod.ca_file());
    if std::env::var("TLS_TESTSSL").is_ok_and(|v| v == "full") {
        command.args([
            "--protocols",
            "--std",
            "--fs",
            "--server-preference",
            "--server-defaults",
            "--vulnerable",
        ]);
    } else {
        command.arg("--protocols");
    }
    command.arg(format!("app.test:{}", listener.addr.port()));
    let output = run(command).await;
    println!("{}", String::from_utf8_lossy(&output.stdout));
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    let findings = report.as_array().unwrap();
    assert!(
        findings
            .iter()
            .any(|f| f["id"] == "TLS1_3" && f["severity"] == "OK"),
        "{findings:?}"
    );
    for finding in findings {
        let told = finding["severity"].as_str().unwrap();
        // What is said of the test's certificate: that nobody revokes it, and that it has no CA
        // known to the world.
        let of_the_certificate = ["cert_", "OCSP", "DNS_CAA"]
            .iter()
            .any(|p| finding["id"].as_str().unwrap().starts_with(p));
        assert!(
            matches!(told, "OK" | "INFO" | "DEBUG" | "WARN") || of_the_certificate,
            "{finding}"
        );
    }
}
