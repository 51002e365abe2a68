//! Clients whose sessions have keys: the agent serves nobody else in their place.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use traffic_proto::agent::agent_client::AgentClient;
use traffic_proto::conn_id::ConnId;
use traffic_proto::manager::{InterceptDispositionType as Disposition, SessionInfo};
use traffic_proto::port::Transport;
use traffic_proto::session_key::{KEY, PROOF, Peer, SessionKey};
use traffic_proto::tunnel::{Message, StreamInfo};

use crate::fake::{Fake, Wire, intercept, outgoing, serve_http};
use crate::pod::Pod;

/// A session as a caller claims it.
#[derive(Clone)]
struct Claim {
    id: String,
    proof: Option<MetadataValue<tonic::metadata::Binary>>,
}

impl Claim {
    fn of(id: &str, proof: impl AsRef<[u8]>) -> Self {
        let proof = Some(MetadataValue::from_bytes(proof.as_ref()));
        let id = id.to_owned();
        Self { id, proof }
    }

    fn own(key: &SessionKey, agent: &Peer) -> Self {
        Self::of(key.id(), key.prove(agent))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(proof) = self.proof.clone() {
            request.metadata_mut().insert_bin(PROOF, proof);
        }
        request
    }

    async fn watch(
        &self,
        agent: &mut AgentClient<Channel>,
    ) -> Result<tonic::Streaming<traffic_proto::manager::DialRequest>, Status> {
        let session = SessionInfo {
            session_id: self.id.clone(),
            ..SessionInfo::default()
        };
        let watch = agent.watch_dial(self.request(session)).await;
        watch.map(tonic::Response::into_inner)
    }

    async fn tunnel(&self, agent: &mut AgentClient<Channel>, conn: ConnId) -> Result<Wire, Status> {
        let (tx, rx) = mpsc::channel(16);
        let info = StreamInfo::new(conn, &self.id, Duration::ZERO, Duration::from_secs(2));
        let first = Message::StreamInfo(info);
        tx.send(first.encode()).await.unwrap();
        let rx = agent.tunnel(self.request(outgoing(rx))).await?.into_inner();
        let mut wire = Wire { tx, rx };
        assert_eq!(wire.next().await, Message::StreamOk(2));
        Ok(wire)
    }
}

/// A connection to a port where nobody listens.
fn nowhere() -> ConnId {
    let [closed] = crate::pod::free_ports();
    let closed = SocketAddr::from(([127, 0, 0, 1], closed));
    ConnId::new(Transport::Tcp, "10.9.9.9:4711".parse().unwrap(), closed)
}

async fn pod() -> (Fake, Pod, AgentClient<Channel>, Peer) {
    let (fake, _) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let pod = Pod::start(fake.address, "").await;
    let seen = fake
        .until("the watch", |seen| seen.watched.contains(&"deltas"))
        .await;
    let announced = Peer::agent(&seen.arrivals[0].proof_key);
    let agent = AgentClient::connect(format!("http://127.0.0.1:{}", pod.api_port()))
        .await
        .unwrap();
    (fake, pod, agent, announced)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_served_in_the_place_of_a_session_with_a_key() {
    let (_fake, pod, mut agent, announced) = pod().await;
    let key = SessionKey::generate().unwrap();
    let other = SessionKey::generate().unwrap();
    let (id, good) = (key.id(), key.prove(&announced));
    let anothers = Peer::agent(&[1; 32]);
    let none = |id: &str| Claim {
        id: id.to_owned(),
        proof: None,
    };
    let stock = format!("key-{}", "5f0c1d3e-0b1a-4f7e-9a53-1f2e3d4c5b6a");
    let rows = [
        ("no proof", none(id), Code::Unauthenticated),
        ("an empty one", Claim::of(id, []), Code::PermissionDenied),
        (
            "half of it",
            Claim::of(id, &good[..32]),
            Code::PermissionDenied,
        ),
        (
            "more behind it",
            Claim::of(id, [&good[..], b"+"].concat()),
            Code::PermissionDenied,
        ),
        ("zeros", Claim::of(id, [0; 64]), Code::PermissionDenied),
        (
            "kilobytes",
            Claim::of(id, [7; 4096]),
            Code::PermissionDenied,
        ),
        (
            "another key's",
            Claim::of(id, other.prove(&announced)),
            Code::PermissionDenied,
        ),
        (
            "its own, for another agent or an earlier process",
            Claim::own(&key, &anothers),
            Code::PermissionDenied,
        ),
        (
            "its own, for the manager",
            Claim::own(&key, &Peer::manager()),
            Code::PermissionDenied,
        ),
        (
            "replayed for another session",
            Claim::of(other.id(), &good),
            Code::PermissionDenied,
        ),
        (
            "a longer id",
            Claim::of(&format!("{id}A"), &good),
            Code::PermissionDenied,
        ),
        (
            "no key in the id",
            Claim::of("key-", &good),
            Code::PermissionDenied,
        ),
        ("a stock id behind it", none(&stock), Code::PermissionDenied),
        (
            "a long id",
            none(&format!("key-{}", "A".repeat(4000))),
            Code::PermissionDenied,
        ),
    ];
    let counted = pod.stat("traffic_agent.session.denied").await;
    for (number, (what, claim, code)) in rows.iter().enumerate() {
        let watch = claim.watch(&mut agent).await;
        let refused = watch.map(drop).expect_err(what);
        assert_eq!(refused.code(), *code, "watch, {what}: {refused}");
        assert!(
            refused.message().contains("session of your own"),
            "{what}: {refused}"
        );
        let tunnel = claim.tunnel(&mut agent, nowhere()).await;
        let refused = tunnel.map(drop).expect_err(what);
        assert_eq!(refused.code(), *code, "tunnel, {what}: {refused}");
        let denied = pod.stat("traffic_agent.session.denied").await - counted;
        assert_eq!(denied, 2 * (number as u64 + 1), "{what}");
    }
    // Text that is no base64.
    let (host, port) = ("127.0.0.1", pod.api_port());
    assert_eq!(garbage(host, port, id).await, "7");
    let own = Claim::own(&key, &announced);
    for time in ["first", "again"] {
        own.watch(&mut agent).await.expect(time);
        let mut wire = own.tunnel(&mut agent, nowhere()).await.expect(time);
        assert_eq!(wire.next().await, Message::DialReject, "{time}");
    }
    // Clients without keys, as all were before.
    let id = "5f0c1d3e-0b1a-4f7e-9a53-1f2e3d4c5b6a";
    none(id).watch(&mut agent).await.unwrap();
    // Whatever comes with it.
    Claim::of(id, &good).watch(&mut agent).await.unwrap();
    assert_eq!(pod.ask("").await.unwrap(), "app");
}

/// Watches with a proof that no library would send; returns the gRPC status.
async fn garbage(host: &str, port: u16, id: &str) -> String {
    let socket = tokio::net::TcpStream::connect((host, port)).await.unwrap();
    let (mut h2, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://agent/telepresence.agent.Agent/WatchDial")
        .header("content-type", "application/grpc")
        .header(PROOF, "?! not base64")
        .header(KEY, "nor this")
        .body(())
        .unwrap();
    let (answer, mut send) = h2.send_request(request, false).unwrap();
    let session = SessionInfo {
        session_id: id.to_owned(),
        ..SessionInfo::default()
    };
    let message = prost::Message::encode_to_vec(&session);
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = [&[0][..], &length, &message].concat();
    send.send_data(body.into(), true).unwrap();
    let head = answer.await.unwrap();
    head.headers()["grpc-status"].to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dial_is_answered_by_the_one_who_was_asked_alone() {
    let (fake, pod, mut agent, announced) = pod().await;
    let key = SessionKey::generate().unwrap();
    let own = Claim::own(&key, &announced);
    let mut dials = own.watch(&mut agent).await.unwrap();
    let header = Some(("x-dev", "a"));
    let mut shown = intercept("i", Disposition::Active, pod.app_port, header);
    shown.client_session.as_mut().unwrap().session_id = key.id().to_owned();
    fake.show(&[shown]);
    let answering = tokio::spawn(async move {
        let request = dials.message().await.unwrap().unwrap();
        let conn = ConnId::parse(&request.conn_id).unwrap();
        // He knows the id of the session, and even that of the connection.
        let stranger = Claim {
            id: own.id.clone(),
            proof: None,
        };
        let refused = stranger.tunnel(&mut agent, conn).await.map(drop);
        assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
        let mut wire = own.tunnel(&mut agent, conn).await.unwrap();
        wire.send(Message::DialOk).await;
        serve_http(&mut wire.rx, &wire.tx).await;
    });
    pod.until_answered_by("x-dev: a\r\n", "workstation").await;
    assert!(fake.seen().tunnels.is_empty(), "none by the manager");
    answering.await.unwrap();
}
