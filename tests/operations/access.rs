//! Access log and explanations: a line for each request, and an explanation for callers entitled to
//! one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use bytes::Bytes;
use harness::apps::App;
use harness::caller;
use harness::system::System;
use harness::wait::until;
use http::{HeaderMap, Request};
use serde_json::Value;

use crate::exposition;
use crate::mixed_load::{DEV, GRPC, HTTP, Kind, Testbed};

/// The lines of an access log in JSON.
fn lines(system: &System) -> Vec<Value> {
    let lines = system.agent.process.lines("\"start_time\"");
    lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

fn dropped(system: &System) -> u64 {
    let page = caller::get(system.agent.admin(), "/stats/prometheus", &[]).unwrap();
    let families = exposition::parse(&String::from_utf8(page.body).unwrap());
    families["traffic_agent_access_log_dropped_total"][0].1 as u64
}

#[test]
fn every_request_of_a_crowd_has_its_line_whatever_it_speaks() {
    let testbed = Arc::new(Testbed::start("", |command| {
        command
            .env("AGENT_ACCESS_LOG", "json")
            .env("LOG_LEVEL", "warning");
    }));
    // Neither HTTP nor TLS: the app hangs up.
    let mut odd = TcpStream::connect(testbed.address(HTTP)).unwrap();
    odd.write_all(b"\x00\x01\x02").unwrap();
    odd.read_to_end(&mut Vec::new()).unwrap();
    drop(odd);
    let mixed_load = testbed.start_load();
    mixed_load.busy(4);
    let (answered, repeated) = mixed_load.stop();
    assert_eq!(repeated, 0);
    let of = |kinds: &[Kind]| {
        kinds
            .iter()
            .map(|kind| answered[*kind as usize])
            .sum::<u64>()
    };
    let (http1, http2) = (
        of(&[Kind::Http1]),
        of(&[
            Kind::Http2,
            Kind::Http2Relayed,
            Kind::Unary,
            Kind::Streaming,
        ]),
    );
    let counted = |what: &dyn Fn(&Value) -> bool| {
        lines(&testbed.system)
            .iter()
            .filter(|line| what(line))
            .count() as u64
    };
    let of_http1 = |line: &Value| line["protocol"] == "HTTP/1.1" && line["response_code"] == 200;
    let of_http2 = |line: &Value| line["protocol"] == "HTTP/2";
    until("all lines", || {
        let all = counted(&of_http1) + counted(&of_http2) + dropped(&testbed.system);
        (all >= http1 + http2).then_some(())
    });
    let lost = dropped(&testbed.system);
    assert_eq!(
        counted(&of_http1) + counted(&of_http2) + lost,
        http1 + http2
    );
    let all = lines(&testbed.system);
    for line in all.iter().filter(|line| line["protocol"] == "HTTP/2") {
        assert_eq!(
            (&line["method"], &line["response_code"]),
            (&"POST".into(), &200.into()),
            "{line}"
        );
        assert_eq!(line["response_flags"], "-", "{line}");
        let away = line["route"] == "client";
        assert_eq!(line["reason"] == "matched grpc", away, "{line}");
        assert_eq!(
            (
                line["upstream_host"] == "tunnel",
                line["intercept"].is_null()
            ),
            (away, !away),
            "{line}"
        );
        assert!(
            line["bytes_received"].as_u64().unwrap() > 0
                && line["bytes_sent"].as_u64().unwrap() > 0,
            "{line}"
        );
        let (whole, first) = (
            line["duration"].as_u64().unwrap(),
            line["upstream_service_time"].as_u64().unwrap(),
        );
        // A stream's messages come over 0.8 s.
        let streams = line["path"] == "/test.Crowd/Count";
        assert!(whole >= first && (!streams || whole >= 700), "{line}");
    }
    for kind in ["app", "client"] {
        assert!(
            all.iter()
                .any(|line| line["protocol"] == "HTTP/2" && line["route"] == kind),
            "{kind}"
        );
        let talk = all
            .iter()
            .find(|line| line["response_code"] == 101 && line["route"] == kind);
        let talk = talk.unwrap_or_else(|| panic!("no WebSocket to the {kind}"));
        assert!(
            talk["bytes_sent"].as_u64().unwrap() > 100 && talk["duration"].as_u64().unwrap() > 0,
            "{talk}"
        );
    }
    let odd = all
        .iter()
        .find(|line| line["method"].is_null())
        .expect("the line of the odd connection");
    assert_eq!(
        (&odd["protocol"], &odd["path"], &odd["response_code"]),
        (&Value::Null, &Value::Null, &0.into())
    );
    assert_eq!(
        (&odd["bytes_received"], &odd["reason"]),
        (&3.into(), &"opaque: not_http".into()),
        "{odd}"
    );
    assert_eq!(
        odd["upstream_host"],
        testbed.system.app.address().to_string()
    );
}

#[test]
fn the_default_format_shows_connections_in_envoys_manner() {
    let system = System::start_with(
        |_| {},
        |command| {
            command
                .env("AGENT_ACCESS_LOG", "text")
                .env("LOG_LEVEL", "warning");
        },
    );
    let mut odd = TcpStream::connect(system.address()).unwrap();
    odd.write_all(b"\x00\x01\x02").unwrap();
    odd.read_to_end(&mut Vec::new()).unwrap();
    drop(odd);
    let line = system.agent.process.line("\"- - -\" 0 - 3 0 ");
    let app = system.app.address();
    assert!(
        line.ends_with(&format!(" - \"-\" \"-\" \"-\" \"-\" \"{app}\"")),
        "{line}"
    );
}

/// Reads a raw HTTP/1 connection to its end.
fn raw(address: SocketAddr, request: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

#[test]
fn nothing_is_added_to_anything_unless_an_owner_asks_why() {
    let system = System::start();
    let local = App::start("local");
    let _intercept = system.intercept("mine", local.address(), &["--http-header=x-dev=a"]);
    let cases = [
        ("", system.app.address()),
        (
            "x-traffic-agent-explain: somebody\r\n",
            system.app.address(),
        ),
        ("X-Dev: a\r\n", local.address()),
    ];
    for (line, app) in cases {
        // The app repeats what it got in its body, so both directions are compared.
        let request = format!(
            "POST /a?b=c HTTP/1.1\r\nHost:  app\r\n{line}connection: close\r\nContent-Length: \
            2\r\n\r\nhi"
        );
        let (through, direct) = (raw(system.address(), &request), raw(app, &request));
        assert!(!direct.is_empty());
        assert_eq!(
            String::from_utf8(through).unwrap(),
            String::from_utf8(direct).unwrap(),
            "{line:?}"
        );
    }
}

/// The head of an HTTP/2 answer.
async fn head(address: SocketAddr, headers: &[(&str, &str)]) -> HeaderMap {
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let (send, connection) = h2::client::handshake(socket).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = Request::post("http://app.example/test.Crowd/Unary")
        .header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut send = send.ready().await.unwrap();
    let (answer, mut body) = send.send_request(request.body(()).unwrap(), false).unwrap();
    body.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
    let head = answer.await.unwrap().headers().clone();
    connection.abort();
    head
}

#[test]
fn an_owner_is_told_why_over_http2_and_nobody_else_is_told_anything() {
    let testbed = Arc::new(Testbed::start("", |_| {}));
    let page = caller::get(testbed.system.agent.admin(), "/intercepts", &[]).unwrap();
    let page: Value = serde_json::from_slice(&page.body).unwrap();
    let token = page["ports"][GRPC]["intercepts"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let ask = ("x-traffic-agent-explain", token.as_str());
    let told = |headers: &[(&str, &str)]| {
        let head = testbed.block_on(head(testbed.address(GRPC), headers));
        (
            head.get("x-traffic-agent-explained")
                .map(|v| v.to_str().unwrap().to_owned()),
            head,
        )
    };
    let (to_app, _) = told(&[ask]);
    let to_app = to_app.unwrap();
    assert!(
        to_app.contains("protocol=HTTP/2 ")
            && to_app.contains("route=app; grpc: header x-dev: a (header absent)"),
        "{to_app}"
    );
    let (away, _) = told(&[ask, DEV]);
    assert!(
        away.unwrap()
            .contains("route=client; intercept=grpc; grpc: matches")
    );

    let port = testbed.system.agent.sidecar.ports[GRPC].container;
    let without_date = |mut head: HeaderMap| {
        head.remove("date");
        head.iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect::<Vec<_>>()
    };
    let direct =
        without_date(testbed.block_on(head(SocketAddr::from(([127, 0, 0, 1], port)), &[])));
    for headers in [
        &[][..],
        &[("x-traffic-agent-explain", "somebody")],
        &[("x-traffic-agent-explain", "")],
    ] {
        assert_eq!(without_date(told(headers).1), direct, "{headers:?}");
    }
}
