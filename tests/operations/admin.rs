//! The admin of a running agent: what it says is what happens, it costs callers nothing, and it
//! tells no secrets.

use std::io::{Read, Write};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::apps::App;
use harness::caller::{self, Caller};
use harness::programs;
use harness::system::System;
use harness::wait::until;
use serde_json::Value;

use crate::exposition;
use crate::mixed_load::{DEV, GRPC, HTTP, RELAYED, Testbed};

const PAGES: &[&str] = &[
    "/",
    "/certs",
    "/clusters",
    "/clusters?format=json",
    "/config_dump",
    "/help",
    "/intercepts",
    "/listeners",
    "/listeners?format=json",
    "/memory",
    "/ready",
    "/server_info",
    "/stats",
    "/stats?format=json",
    "/stats/prometheus",
];

fn page(system: &System, path: &str) -> String {
    let answer = caller::get(system.agent.admin(), path, &[]).unwrap();
    assert_eq!(answer.status, 200, "{path}");
    String::from_utf8(answer.body).unwrap()
}

fn json(system: &System, path: &str) -> Value {
    serde_json::from_str(&page(system, path)).unwrap()
}

#[test]
fn the_admin_says_what_is_intercepted_what_happened_and_why() {
    let system = System::start();
    let local = App::start("local");
    let _intercept = system.intercept("mine", local.address(), &["--http-header=x-dev=a"]);
    let mut caller = Caller::connect(system.address()).unwrap();
    for _ in 0..3 {
        assert_eq!(caller.get("/", &[("x-dev", "a")]).unwrap().by(), "local");
    }
    let answer = caller.get("/", &[]).unwrap();
    assert_eq!(answer.by(), "app");
    assert!(!answer.head.contains("x-traffic-agent"), "{}", answer.head);

    let port = system.app.address().port();
    let intercept = json(&system, "/intercepts")["ports"][0]["intercepts"][0].clone();
    assert_eq!(
        (&intercept["name"], &intercept["hits"]),
        (&"mine".into(), &3.into())
    );
    assert_eq!(
        (&intercept["misses"], &intercept["tunnel"]),
        (&1.into(), &"direct".into())
    );
    let why = json(
        &system,
        &format!("/explain?port={port}&path=/&header=x-dev:a"),
    );
    assert_eq!(
        (&why["decision"], &why["intercept"]),
        (&"client".into(), &intercept["id"])
    );
    let why = json(&system, &format!("/explain?port={port}&path=/"));
    assert_eq!(
        why["considered"][0]["failed"],
        "header x-dev: a (header absent)"
    );

    let token = intercept["id"].as_str().unwrap();
    let answer = caller
        .get("/", &[("x-traffic-agent-explain", token)])
        .unwrap();
    assert!(
        answer
            .head
            .contains("x-traffic-agent-explained: pod=hello-"),
        "{}",
        answer.head
    );
    assert!(
        answer
            .head
            .contains("route=app; mine: header x-dev: a (header absent)"),
        "{}",
        answer.head
    );

    let families = exposition::parse(&page(&system, "/stats/prometheus"));
    let requests = |route: &str| {
        let all = families["traffic_agent_requests_total"].iter();
        all.filter(|(l, _)| l["route"] == route && l["protocol"] == "http1")
            .map(|(_, v)| *v)
            .sum::<f64>()
    };
    assert_eq!((requests("client"), requests("app")), (3.0, 2.0));
    let named = |name: &String| name.starts_with("envoy_") || name.starts_with("traffic_agent_");
    assert!(families.keys().all(named), "{:?}", families.keys());

    let status = Command::new(programs::path("traffic-agent"))
        .args([
            "status",
            "--admin-port",
            &system.agent.admin().port().to_string(),
        ])
        .output()
        .unwrap();
    let table = String::from_utf8(status.stdout).unwrap();
    assert!(
        status.status.success() && table.contains("x-dev=a") && table.contains("connected"),
        "{table}"
    );
}

#[test]
fn no_page_and_no_line_tells_a_secret_even_when_everything_is_traced() {
    let system = System::start_with(
        |_| {},
        |command| {
            command
                .env("LOG_LEVEL", "trace")
                .env("AGENT_ENVOY_LOG_LEVEL", "trace");
            command
                .env("AGENT_ACCESS_LOG", "json")
                .env("AGENT_ACCESS_LOG_HEADERS", "x-shown");
            command
                .env("A_TOKEN", "canary-environment")
                .env("SOME_PASSWORD", "canary-own-environment");
        },
    );
    let local = App::start("local");
    let _intercept = system.intercept("mine", local.address(), &["--http-header=x-dev=a"]);
    let mut caller = Caller::connect(system.address()).unwrap();
    for who in [&[("x-dev", "a")][..], &[]] {
        let secrets = [
            ("authorization", "Bearer canary-token"),
            ("cookie", "id=canary-cookie"),
            ("x-shown", "shown"),
        ];
        let headers: Vec<_> = secrets.iter().chain(who).copied().collect();
        assert_eq!(
            caller
                .post("/path", &headers, b"canary-body")
                .unwrap()
                .status,
            200
        );
    }
    for path in PAGES {
        let text = page(&system, path);
        assert!(!text.contains("canary"), "{path}: {text}");
    }
    until("the access log", || {
        system
            .agent
            .process
            .lines("\"x-shown\":\"shown\"")
            .first()
            .cloned()
    });
    let told = system.agent.process.lines("canary");
    assert!(told.is_empty(), "{told:?}");
}

#[test]
fn no_page_and_no_line_tells_what_passes_in_other_protocols() {
    let testbed = Arc::new(Testbed::start("", |command| {
        command
            .env("LOG_LEVEL", "trace")
            .env("AGENT_ENVOY_LOG_LEVEL", "trace")
            .env("AGENT_ACCESS_LOG", "json");
    }));
    testbed.block_on(async {
        for (port, dev) in [(GRPC, true), (GRPC, false), (RELAYED, false)] {
            let socket = tokio::net::TcpStream::connect(testbed.address(port))
                .await
                .unwrap();
            let (send, connection) = h2::client::handshake(socket).await.unwrap();
            let connection = tokio::spawn(connection);
            let mut request = http::Request::post("http://app.example/test.Crowd/Unary")
                .header("content-type", "application/grpc")
                .header("authorization", "Bearer canary-token")
                .header("grpc-metadata-bin", "canary-metadata");
            if dev {
                request = request.header(DEV.0, DEV.1);
            }
            let mut send = send.ready().await.unwrap();
            let (answer, mut body) = send.send_request(request.body(()).unwrap(), false).unwrap();
            body.send_data(
                [&[0, 0, 0, 0, 12][..], b"canary-bytes"].concat().into(),
                true,
            )
            .unwrap();
            assert_eq!(answer.await.unwrap().status(), 200);
            connection.abort();
        }
    });
    // Opaque bytes, a body in a tunnel, and what the app says of a head that two readers could
    // understand differently.
    let mut odd = std::net::TcpStream::connect(testbed.address(HTTP)).unwrap();
    odd.write_all(b"\x00canary-opaque").unwrap();
    odd.read_to_end(&mut Vec::new()).unwrap();
    drop(odd);
    let mut caller = Caller::connect(testbed.address(HTTP)).unwrap();
    assert_eq!(
        caller
            .post("/", &[DEV, ("cookie", "canary-cookie")], b"canary-body")
            .unwrap()
            .by(),
        "local"
    );
    let ambiguous = [
        ("content-length", "1"),
        ("content-length", "2"),
        ("cookie", "canary-ambiguous"),
    ];
    caller.send("GET", "/", &ambiguous, b"").unwrap();
    drop(caller);
    testbed.system.agent.process.line("opaque: ambiguous");
    for path in PAGES {
        let text = page(&testbed.system, path);
        assert!(!text.contains("canary"), "{path}: {text}");
    }
    let told = testbed.system.agent.process.lines("canary");
    assert!(told.is_empty(), "{told:?}");
    assert!(
        testbed.system.agent.process.lines("TRACE").len()
            + testbed.system.agent.process.lines("DEBUG").len()
            > 10
    );
}

#[test]
fn scraping_and_dumping_under_load_costs_no_request() {
    let system = System::start();
    let local = App::start("local");
    let _intercept = system.intercept("mine", local.address(), &["--http-header=x-dev=a"]);
    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (stop, asked, address) = (&stop, &asked, system.address());
            scope.spawn(move || {
                let mut caller = Caller::connect(address).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let (headers, by) = if n == 0 {
                        (&[("x-dev", "a")][..], "local")
                    } else {
                        (&[][..], "app")
                    };
                    assert_eq!(caller.get("/", headers).unwrap().by(), by);
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let began = Instant::now();
        for n in 0..30 {
            exposition::parse(&page(&system, "/stats/prometheus"));
            if n % 10 == 0 {
                json(&system, "/config_dump");
            }
            std::thread::sleep(
                Duration::from_millis(100).saturating_sub(began.elapsed() / (n + 1) / 2),
            );
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(asked.load(Ordering::Relaxed) > 100);
}
