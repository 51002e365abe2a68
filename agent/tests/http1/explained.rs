//! Explanations and access log: explanations on the wire and by the admin agree with the routing,
//! the access log has a line for each request, and callers who did not ask see nothing of it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use traffic_agent::admin::endpoints::answer;
use traffic_agent::admin::request::AdminRequest;
use traffic_agent::telemetry::access_log::{Access, AccessLog};
use traffic_core::routing::matcher::PathFilter;
use traffic_core::routing::{Entry, Intercept, RouteTable, State};

use agent_testkit::WAIT_TIMEOUT;
use agent_testkit::admin;
use agent_testkit::app::{Expect, ScriptedApp, named_server};
use agent_testkit::intercept::intercept;
use agent_testkit::port::PortFixture;
use agent_testkit::tunnels::Behaviour;

/// A small generator, so that a failure can be run again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % n).unwrap()
    }

    fn pick<'p>(&mut self, from: &[&'p str]) -> &'p str {
        from[self.below(from.len() as u64)]
    }
}

const NAMES: &[&str] = &["x-dev", "x-env", "baggage"];
const VALUES: &[&str] = &["a", "b", "^a", "a.*c", ""];
const SENT: &[&str] = &["a", "b", "abc", "ab", "c"];
const PATHS: &[&str] = &[
    "/api",
    ":path-prefix:/api",
    ":path-regex:v[12]$",
    ":path-equal:/",
];
const TARGETS: &[&str] = &["/", "/api", "/api/v1", "/%61pi", "/x?v=1"];

fn table(dice: &mut Dice) -> RouteTable {
    let rules = (0..dice.below(4)).map(|n| {
        let mut headers = Vec::new();
        for name in NAMES {
            if dice.below(3) == 0 {
                headers.push((*name, dice.pick(VALUES)));
            }
        }
        let mut rule = intercept("mine", &headers);
        rule.id = format!("session:rule-{n}");
        rule.name = format!("rule-{n}");
        if dice.below(3) == 0 {
            rule.filters.paths = vec![PathFilter::parse(dice.pick(PATHS)).unwrap()];
        }
        let state = if dice.below(5) == 0 {
            State::Expired
        } else {
            State::Active
        };
        Entry {
            intercept: Arc::new(rule),
            state,
        }
    });
    RouteTable::new(rules.collect())
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

#[tokio::test]
async fn explanations_agree_with_what_happens_for_a_thousand_tables_and_requests() {
    let (app, desk) = (named_server("app").await, named_server("client").await);
    let access = Access {
        log: None,
        pod: "echo-1".into(),
    };
    let fixture = PortFixture::configured(app, Behaviour::Dials(desk), |port| port.access = access);
    let agent = admin::agent(&fixture.port);
    let mut caller = BufReader::new(fixture.connect().await);
    let mut dice = Dice(7);
    let mut seen = [0; 3];
    for round in 0..1000 {
        let table = table(&mut dice);
        let empty = table.is_empty();
        fixture.port.routes.store(table);
        let target = dice.pick(TARGETS);
        let mut lines = String::new();
        let mut question = format!("port={}&method=GET&path={}", app.port(), encoded(target));
        for name in NAMES {
            if dice.below(2) == 0 {
                let value = dice.pick(SENT);
                lines += &format!("{name}: {value}\r\n");
                question += &format!("&header={name}:{}", encoded(value));
            }
        }
        let request = format!(
            "GET {target} HTTP/1.1\r\nhost: x\r\n{lines}X-Traffic-Agent-Explain: session\r\n\r\n"
        );
        caller
            .get_mut()
            .write_all(request.as_bytes())
            .await
            .unwrap();
        let (head, body) = tokio::time::timeout(WAIT_TIMEOUT, read_answer(&mut caller))
            .await
            .expect("no answer");
        let happened = if head.starts_with("HTTP/1.1 503") {
            "expired"
        } else {
            body.as_str()
        };
        let at = ["app", "client", "expired"]
            .iter()
            .position(|w| *w == happened)
            .unwrap();
        seen[at] += 1;
        let explained = head
            .lines()
            .find_map(|l| l.strip_prefix("x-traffic-agent-explained: "));
        match explained {
            None => assert!(empty, "round {round}: {request}{head}"),
            Some(text) => {
                assert!(text.starts_with("pod=echo-1; port="), "{text}");
                assert!(
                    text.contains(&format!("; route={happened}")),
                    "round {round}: {text}\n{request}{head}"
                );
            }
        }
        let asked = AdminRequest {
            post: false,
            method: "GET",
            path: "/explain",
            query: &question,
            accept: "",
            cross_site: false,
        };
        let page = answer(&asked, &agent);
        let told: serde_json::Value = serde_json::from_str(&page.body).unwrap();
        assert_eq!(
            told["decision"], happened,
            "round {round}: {question}: {told}"
        );
    }
    assert!(
        seen.iter().all(|n| *n > 30),
        "every decision has to occur: {seen:?}"
    );
}

async fn read_answer(from: &mut BufReader<tokio::net::TcpStream>) -> (String, String) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(
            from.read_line(&mut head).await.unwrap() > 0,
            "closed after {head:?}"
        );
    }
    let length = head.lines().find_map(|l| {
        l.to_ascii_lowercase()
            .strip_prefix("content-length: ")
            .map(str::to_owned)
    });
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    from.read_exact(&mut body).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

#[tokio::test]
async fn whoever_has_no_token_gets_the_answer_as_it_is_and_the_request_is_never_changed() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    fixture.intercept();
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    for token in [
        "",
        "X-Traffic-Agent-Explain: nobody\r\n",
        "X-Traffic-Agent-Explain:\r\n",
    ] {
        let mut caller = fixture.connect().await;
        let request = format!("GET / HTTP/1.1\r\nHost: x\r\n{token}\r\n");
        caller.send(&request).await;
        let mut server = app.accept().await;
        server.expect(&request).await;
        server.send(answer).await;
        caller.expect(answer).await;
    }
    let mut caller = fixture.connect().await;
    let request = "GET / HTTP/1.1\r\nx-traffic-agent-explain: session:mine\r\n\r\n";
    caller.send(request).await;
    let mut server = app.accept().await;
    server.expect(request).await;
    // Arriving in pieces, so that the line is put in wherever the head is complete.
    server.send("HTTP/1.1 200 OK\r\nContent-").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.send("Length: 2\r\n\r\nok").await;
    caller
        .expect("HTTP/1.1 200 OK\r\nx-traffic-agent-explained: pod=; port=")
        .await;
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Sink {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Sink {
    async fn line(&self, n: usize) -> serde_json::Value {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            if let Some(line) = text.lines().nth(n).filter(|_| text.ends_with('\n')) {
                return serde_json::from_str(line).unwrap();
            }
            assert!(Instant::now() < deadline, "no line {n} in {text:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn the_access_log_says_where_each_request_went_and_why() {
    let (app, desk) = (named_server("app").await, named_server("client").await);
    let sink = Sink::default();
    let log = AccessLog::start("json", &["x-shown".to_owned()], sink.clone())
        .unwrap()
        .unwrap();
    let access = Access {
        log: Some(Arc::new(log)),
        pod: "echo-1".into(),
    };
    let fixture = PortFixture::configured(app, Behaviour::Dials(desk), |port| port.access = access);
    let mut caller = BufReader::new(fixture.connect().await);
    let mut ask = async |headers: &str, body: &str| {
        let request = format!(
            "POST /p?q=1 HTTP/1.1\r\nHost: shop\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        caller
            .get_mut()
            .write_all(request.as_bytes())
            .await
            .unwrap();
        read_answer(&mut caller).await.1
    };
    ask("x-shown: yes\r\nAuthorization: canary\r\n", "12345").await;
    let line = sink.line(0).await;
    assert_eq!(
        (&line["method"], &line["path"], &line["authority"]),
        (&"POST".into(), &"/p?q=1".into(), &"shop".into())
    );
    assert_eq!(
        (&line["response_code"], &line["response_flags"]),
        (&200.into(), &"-".into())
    );
    assert_eq!(
        (&line["bytes_received"], &line["bytes_sent"]),
        (&5.into(), &3.into())
    );
    assert_eq!(
        (&line["route"], &line["reason"]),
        (&"app".into(), &"nothing intercepted".into())
    );
    assert_eq!(line["upstream_host"], app.to_string());
    assert_eq!(line["headers"], serde_json::json!({ "x-shown": "yes" }));
    fixture.intercept();
    ask("x-dev: b\r\n", "").await;
    assert_eq!(sink.line(1).await["reason"], "no match");
    ask("x-dev: a\r\n", "").await;
    let line = sink.line(2).await;
    assert_eq!(
        (&line["route"], &line["intercept"]),
        (&"client".into(), &"session:mine".into())
    );
    assert_eq!(line["upstream_host"], "tunnel");
    fixture.rule(&[("x-dev", "a")], State::Expired);
    ask("x-dev: a\r\n", "").await;
    let line = sink.line(3).await;
    assert_eq!(
        (
            &line["response_code"],
            &line["response_flags"],
            &line["route"]
        ),
        (&503.into(), &"NR".into(), &"expired".into())
    );
    assert!(
        !String::from_utf8(sink.0.lock().unwrap().clone())
            .unwrap()
            .contains("canary")
    );
    assert_eq!(fixture.tunnels.opened(), 1);
}

#[tokio::test]
async fn a_request_that_fails_open_says_so_in_the_log_and_to_the_owner() {
    let app = named_server("app").await;
    let sink = Sink::default();
    let log = AccessLog::start("json", &[], sink.clone())
        .unwrap()
        .unwrap();
    let access = Access {
        log: Some(Arc::new(log)),
        pod: "echo-1".into(),
    };
    let fixture = PortFixture::configured(app, Behaviour::Rejects, |port| port.access = access);
    let _: Arc<Intercept> = fixture.intercept();
    let mut caller = BufReader::new(fixture.connect().await);
    let request = "GET / HTTP/1.1\r\nx-dev: a\r\nx-traffic-agent-explain: session\r\n\r\n";
    caller
        .get_mut()
        .write_all(request.as_bytes())
        .await
        .unwrap();
    let (head, body) = read_answer(&mut caller).await;
    assert_eq!(body, "app");
    assert!(
        head.contains("route=app instead of client (dial_rejected)"),
        "{head}"
    );
    let line = sink.line(0).await;
    assert_eq!(
        (&line["route"], &line["reason"]),
        (&"app".into(), &"matched mine, dial_rejected".into())
    );
}
