//! Endings as servers make them that people run: through the agent a caller sees what it sees of
//! Go's server, nginx and Node's without it, every time, with no intercept, beside one and through
//! one. `ENDINGS_ROUNDS` sets how often each row is tried.
#![allow(clippy::unwrap_used)] // A test that cannot go on panics.

mod caller;
mod servers;

use std::net::SocketAddr;
use std::process::Command;

use harness::apps::App;
use harness::ports;
use harness::process::Process;
use harness::sidecar::Port;
use harness::system::{Agent, System, sidecar, start_manager};

use caller::{End, Outcome, ask};
use servers::{Go, Nginx, Node, go_program};

/// Rounds of each row and path.
fn rounds() -> usize {
    let rounds = std::env::var("ENDINGS_ROUNDS");
    rounds.map_or(3, |rounds| rounds.parse().unwrap())
}

/// Path of a caller's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// Through the agent, without an intercept.
    Plain,
    /// Through the agent, beside an intercept that takes other requests.
    Beside,
    /// To a workstation, where the server runs.
    Taken,
    /// To a workstation that has the whole port.
    WholePort,
    /// With an intercept that matches, and the server in the pod as well as at the workstation:
    /// what is never a workstation's ends in the same way.
    Both,
}

/// A system in front of `server`, or with the server at the workstation.
fn towards(server: SocketAddr, path: Path) -> (System, Option<Process>) {
    let (manager, manager_address) = start_manager(0);
    let app = App::start("app");
    let behind = if matches!(path, Path::Taken | Path::WholePort) {
        app.address()
    } else {
        server
    };
    let port = Port::tcp(behind.port(), ports::free());
    let agent = Agent::start(&sidecar(manager_address, vec![port]), |_| {});
    agent.ready();
    let system = System {
        manager,
        manager_address,
        agent,
        app,
    };
    let client = match path {
        Path::Plain => None,
        Path::Beside => {
            let elsewhere = App::start("elsewhere");
            let filter = ["--http-header=x-dev=somebody-else"];
            Some(system.intercept("other", elsewhere.address(), &filter))
        }
        Path::WholePort => Some(system.intercept("all", server, &[])),
        Path::Taken | Path::Both => {
            Some(system.intercept("mine", server, &["--http-header=x-dev=me"]))
        }
    };
    (system, client)
}

/// Compares all rows of a server with what callers see without the agent.
fn compare(server: SocketAddr, rows: &[(&str, Vec<u8>)], paths: &[Path]) {
    let direct: Vec<Vec<Outcome>> = rows
        .iter()
        .map(|(_, request)| (0..5).map(|_| ask(server, request, 1)).collect())
        .collect();
    for path in paths {
        let (system, _client) = towards(server, *path);
        for ((name, request), direct) in rows.iter().zip(&direct) {
            // A reset may cost a direct caller the end of an answer; it must not cost ours more.
            let whole = direct.iter().max_by_key(|seen| seen.bytes.len()).unwrap();
            for round in 0..rounds() {
                let seen = ask(system.address(), request, whole.bytes.len());
                let place = format!("{name}, {path:?}, round {round}");
                if !seen.bytes.starts_with(&whole.bytes) {
                    assert_eq!(seen.text(), whole.text(), "{place}");
                }
                let ends: Vec<End> = direct.iter().map(|seen| seen.end).collect();
                assert!(
                    ends.contains(&seen.end) || is_as_good(name, seen.end),
                    "{place}: {:?}, straight {ends:?}",
                    seen.end
                );
            }
        }
    }
}

/// Ends that may differ: where a server hangs up on a sender behind its last words, it depends on
/// the size of the sender's pieces and on the moment whether a reset comes, and the agent takes
/// what is still sent; an answer that was cut may end in a reset behind a tunnel, since it must not
/// look whole.
fn is_as_good(name: &str, end: End) -> bool {
    let hung_up_on = [
        "unknown transfer coding",
        "HTTP/1.0, chunked",
        "denied",
        "refused",
    ]
    .contains(&name);
    match end {
        End::Closed => hung_up_on,
        End::Reset => hung_up_on || name == "cut",
        End::Open => false,
    }
}

const ALL: &[Path] = &[Path::Plain, Path::Beside, Path::Taken];
/// Paths of what no workstation gets.
const UNTAKEN: &[Path] = &[Path::Plain, Path::Beside, Path::Both];
/// Paths of connections that are not looked into.
const OPAQUE: &[Path] = &[Path::Plain, Path::Beside, Path::WholePort];

/// A request with the header that intercepts look for.
fn request(line: &str, fields: &str) -> String {
    format!("{line}\r\nHost: app.test\r\nx-dev: me\r\n{fields}\r\n")
}

fn large_body(line: &str, fields: &str, length: usize) -> Vec<u8> {
    let mut all = request(line, fields).into_bytes();
    all.resize(all.len() + length, b'x');
    all
}

fn chunked_body(line: &str, fields: &str, chunks: usize) -> Vec<u8> {
    let mut all = request(line, &format!("Transfer-Encoding: chunked\r\n{fields}")).into_bytes();
    for _ in 0..chunks {
        all.extend(b"10000\r\n");
        all.resize(all.len() + 0x10000, b'x');
        all.extend(b"\r\n");
    }
    all.extend(b"0\r\n\r\n");
    all
}

/// Rows that every server of HTTP has to answer.
fn common() -> Vec<(&'static str, Vec<u8>)> {
    let get = |path: &str, fields: &str| request(&format!("GET {path} HTTP/1.1"), fields);
    vec![
        ("one", get("/small", "Connection: close\r\n").into()),
        ("large", get("/large", "Connection: close\r\n").into()),
        (
            "HTTP/1.0 until the end",
            request("GET /large HTTP/1.0", "").into(),
        ),
    ]
}

/// Rows that are never a workstation's: what is malformed, and what stands behind a last request.
fn untaken() -> Vec<(&'static str, Vec<u8>)> {
    let get = |path: &str, fields: &str| request(&format!("GET {path} HTTP/1.1"), fields);
    let last = get("/large", "Connection: close\r\n");
    vec![
        ("no version", b"GET /small\r\n\r\n".to_vec()),
        ("no method", b"\x01\x02\x03\r\n\r\n".to_vec()),
        (
            "unknown transfer coding",
            large_body(
                "POST /small HTTP/1.1",
                "Transfer-Encoding: foo\r\n",
                500_000,
            ),
        ),
        (
            "two framings",
            large_body(
                "POST /small HTTP/1.1",
                "Content-Length: 5\r\nTransfer-Encoding: foo\r\n",
                5,
            ),
        ),
        (
            "another behind the last",
            format!("{last}{}", get("/large", "")).into(),
        ),
        (
            "nonsense behind the last",
            format!("{last}nonsense\r\n\r\n").into(),
        ),
        (
            "nonsense behind another",
            format!("{}nonsense\r\n\r\n", get("/large", "")).into(),
        ),
    ]
}

/// Empty lines between requests, which go where the request before them went.
fn empty_lines(name: &str) -> (&str, Vec<u8>) {
    let get = |fields: &str| request("GET /small HTTP/1.1", fields);
    let (first, last) = (get(""), get("Connection: close\r\n"));
    let all = format!("{first}\r\n\r\n{last}");
    (name, all.into())
}

/// A head that can't become complete, which these servers answer at once.
fn incomplete() -> (&'static str, Vec<u8>) {
    ("incomplete", b"GET /small HTTX".to_vec())
}

#[test]
fn nginx_ends_as_without_the_agent() {
    let nginx = Nginx::start();
    let get = |path: &str| request(&format!("GET {path} HTTP/1.1"), "");
    let too_large = |length| {
        let fields = format!("Content-Length: {length}\r\n");
        large_body("POST /small HTTP/1.1", &fields, length)
    };
    let mut rows = common();
    rows.push(("body too large", too_large(5_000_000)));
    rows.push((
        "body too large, chunked",
        chunked_body("POST /large HTTP/1.1", "", 50),
    ));
    compare(nginx.http, &rows, ALL);
    let mut rows = untaken();
    rows.push((
        "three where two are allowed",
        get("/large").repeat(3).into(),
    ));
    rows.push((
        "two small and one",
        [get("/small").repeat(2), get("/large")].concat().into(),
    ));
    rows.push(incomplete());
    compare(nginx.http, &rows, UNTAKEN);
    compare(nginx.http, &[empty_lines("empty lines")], UNTAKEN);
}

#[test]
fn go_ends_as_without_the_agent() {
    let go = Go::start();
    let mut rows = common();
    let close = "Connection: close\r\n";
    rows.push(("chunked", chunked_body("POST /small HTTP/1.1", close, 80)));
    rows.push(("denied", chunked_body("POST /denied HTTP/1.1", "", 80)));
    rows.push(("cut", request("GET /cut HTTP/1.1", "").into()));
    rows.push(("hijacked", request("GET /hijacked HTTP/1.1", "").into()));
    compare(go.http, &rows, ALL);
    let mut rows = untaken();
    rows.push((
        "HTTP/1.0, chunked",
        chunked_body("POST /small HTTP/1.0", "", 80),
    ));
    compare(go.http, &rows, UNTAKEN);
    // This server takes them for a malformed request and hangs up.
    compare(go.http, &[empty_lines("empty lines")], ALL);
}

#[test]
fn node_ends_as_without_the_agent() {
    let node = Node::start();
    let mut rows = common();
    rows.push(("denied", chunked_body("POST /denied HTTP/1.1", "", 80)));
    rows.push(("cut", request("GET /cut HTTP/1.1", "").into()));
    compare(node.http, &rows, ALL);
    let get = |path: &str| request(&format!("GET {path} HTTP/1.1"), "");
    let mut rows = untaken();
    rows.push(incomplete());
    compare(node.http, &rows, UNTAKEN);
    // This server says that its second answer is the last, and refuses the third request all the
    // same. From a workstation nothing is taken behind a last answer.
    let rows = [
        empty_lines("empty lines"),
        (
            "three where two are allowed",
            get("/large").repeat(3).into(),
        ),
    ];
    compare(node.http, &rows, &[Path::Plain, Path::Beside]);
}

#[test]
fn a_server_that_refuses_in_words_is_heard() {
    let go = Go::start();
    let rows = [("refused", b"*1\r\n$4\r\nPING\r\n".to_vec())];
    compare(go.refusing, &rows, OPAQUE);
}

#[test]
fn a_tls_alert_behind_the_handshake_is_heard() {
    let go = Go::start();
    let told = |address: SocketAddr| -> usize {
        let told = Command::new(go_program())
            .args(["tls", &address.to_string(), &rounds().to_string()])
            .output()
            .unwrap();
        String::from_utf8(told.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    let straight = told(go.tls);
    // No intercept of single requests can stand beside it: the agent has no certificate.
    for path in [Path::Plain, Path::WholePort] {
        let (system, _client) = towards(go.tls, path);
        let seen = told(system.address());
        eprintln!(
            "{path:?}: {seen} of {} heard, straight {straight}",
            rounds()
        );
        assert_eq!(seen, rounds(), "{path:?}; straight {straight}");
    }
}
