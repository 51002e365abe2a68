//! A client in Go against agent and manager: grpc-go sends authorities that are no host names, as
//! the stock client does through its port-forwards, and expects an answer from both.
#![allow(clippy::unwrap_used)] // A test that cannot go on panics.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::programs;
use harness::system::System;
use prost::Message as _;
use traffic_proto::ConnId;
use traffic_proto::manager::{
    ClientInfo, InterceptInfoSnapshot, SessionInfo, TunnelMessage, VersionInfo2,
};
use traffic_proto::port::Transport;
use traffic_proto::tunnel::{Message, STREAM_VERSION, StreamInfo};

/// Targets whose authority grpc-go makes itself, and authorities that a program may set; each as
/// arguments of the client.
const AUTHORITIES: [&[&str]; 10] = [
    // The forms of the stock client.
    &["passthrough:///pod/hello-5d8f.default:18000"],
    &["passthrough:///svc/traffic-manager.ambassador:api"],
    &["passthrough:///under_score.default:8081"],
    &["passthrough:///%2Frun%2Fagent.sock"],
    &["passthrough:///host.default:8081"],
    // As it is for every socket of the file system.
    &["passthrough:///x", "localhost"],
    &["passthrough:///x", "unix:/run/agent.sock"],
    &["passthrough:///x", "/run/agent.sock"],
    &["passthrough:///x", "extension/ns/auth server"],
    &["passthrough:///x", "[fe80::1%25eth0]:18000"],
];

#[test]
fn a_unary_call_of_a_go_client_is_answered_whatever_its_authority() {
    let system = System::start();
    let servers = [
        (system.agent.api(), "/telepresence.agent.Agent/Version"),
        (
            system.manager_address,
            "/telepresence.manager.Manager/Version",
        ),
    ];
    for (server, method) in servers {
        for authority in AUTHORITIES {
            let answer = Call {
                server,
                method,
                form: "unary",
                authority,
            }
            .send(&[]);
            let version = VersionInfo2::decode(&answer[..]).unwrap();
            assert!(
                version.version.starts_with('v'),
                "{authority:?}: {version:?}"
            );
        }
    }
}

#[test]
fn a_stream_of_a_go_client_is_served_whatever_its_authority() {
    let system = System::start();
    let (agent, manager) = (system.agent.api(), system.manager_address);
    for authority in AUTHORITIES {
        let client = ClientInfo {
            name: "dev@laptop".into(),
            install_id: "dev@laptop".into(),
            product: "telepresence".into(),
            version: "v2.27.5".into(),
            ..ClientInfo::default()
        };
        let to_manager = |method, form| Call {
            server: manager,
            method,
            form,
            authority,
        };
        let arrive = to_manager("/telepresence.manager.Manager/ArriveAsClient", "unary");
        let session = SessionInfo::decode(&arrive.send(&client.encode_to_vec())[..]).unwrap();

        let watch = to_manager("/telepresence.manager.Manager/WatchIntercepts", "stream");
        let shown = watch.send(&session.encode_to_vec());
        let shown = InterceptInfoSnapshot::decode(&shown[..]).unwrap();
        assert!(shown.intercepts.is_empty(), "{authority:?}");

        // A tunnel to the app, as the client opens for connections into the cluster.
        let conn = ConnId::new(
            Transport::Tcp,
            SocketAddr::from(([127, 0, 0, 1], 40_000)),
            system.app.address(),
        );
        let timeout = Duration::from_secs(4);
        let open = StreamInfo::new(conn, &session.session_id[..], timeout, timeout);
        let tunnel = Call {
            server: agent,
            method: "/telepresence.agent.Agent/Tunnel",
            form: "stream",
            authority,
        };
        let payload = Message::StreamInfo(open).encode();
        let answer = tunnel.send(&TunnelMessage { payload }.encode_to_vec());
        let answer = TunnelMessage::decode(&answer[..]).unwrap();
        let answer = Message::decode(answer.payload).unwrap();
        assert_eq!(answer, Message::StreamOk(STREAM_VERSION), "{authority:?}");
    }
}

#[test]
fn a_session_that_the_manager_does_not_know_is_refused_by_the_agent() {
    let system = System::start();
    let conn = ConnId::new(
        Transport::Tcp,
        SocketAddr::from(([127, 0, 0, 1], 40_000)),
        system.app.address(),
    );
    let timeout = Duration::from_secs(4);
    let open = StreamInfo::new(conn, "nobody", timeout, timeout);
    let payload = Message::StreamInfo(open).encode();
    let session = SessionInfo {
        session_id: "nobody".into(),
        ..SessionInfo::default()
    };
    let calls = [
        ("Tunnel", TunnelMessage { payload }.encode_to_vec()),
        ("WatchDial", session.encode_to_vec()),
    ];
    for (count, (name, message)) in (1..).zip(calls) {
        let said = Call {
            server: system.agent.api(),
            method: &format!("/telepresence.agent.Agent/{name}"),
            form: "stream",
            authority: AUTHORITIES[0],
        }
        .say(&message);
        assert!(said.contains("code = PermissionDenied"), "{name}: {said}");
        assert_eq!(system.agent.stat("session.denied"), count);
    }
}

/// One call of the Go client.
struct Call<'a> {
    server: SocketAddr,
    method: &'a str,
    form: &'a str,
    authority: &'a [&'a str],
}

impl Call<'_> {
    /// Sends a message and returns the first answer.
    fn send(&self, message: &[u8]) -> Vec<u8> {
        let said = self.say(message);
        let (method, authority) = (self.method, self.authority);
        assert!(!said.starts_with("error"), "{method} {authority:?}: {said}");
        from_hex(said.trim())
    }

    /// Sends a message and returns what the client says.
    fn say(&self, message: &[u8]) -> String {
        let mut client = Command::new(programs::go("grpc_go"))
            .args([&self.server.to_string(), self.method, self.form])
            .args(self.authority)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        client.stdin.take().unwrap().write_all(message).unwrap();
        String::from_utf8(client.wait_with_output().unwrap().stdout).unwrap()
    }
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}
