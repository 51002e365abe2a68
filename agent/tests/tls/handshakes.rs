//! Valid and invalid handshakes: results for callers, counters, and no effect on others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use traffic_agent::telemetry::metrics::{Limit, TlsFailure};
use traffic_agent::tls::server::accept::HandshakeLimits;

use crate::certs::{self, Ca};
use crate::listener::{Listener, eventually, plan};

const SECRET: &str = "telepresence.io/downstream-tls-secret.8443";
const CALLERS: &str = "telepresence.io/downstream-client-ca-secret.8443";

/// Echoes what it gets.
pub async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut r, mut w) = socket.split();
                let _ = tokio::io::copy(&mut r, &mut w).await;
                let _ = w.shutdown().await;
            });
        }
    });
    addr
}

pub type Stream = tokio_rustls::client::TlsStream<TcpStream>;

pub async fn connect(
    to: SocketAddr,
    config: Arc<rustls::ClientConfig>,
    name: &str,
) -> std::io::Result<Stream> {
    let socket = TcpStream::connect(to).await?;
    TlsConnector::from(config)
        .connect(ServerName::try_from(name.to_owned()).unwrap(), socket)
        .await
}

async fn echoes(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) {
    stream.write_all(b"hello over there").await.unwrap();
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"hello over there");
}

struct Setup {
    ca: Ca,
    listener: Listener,
    _root: tempfile::TempDir,
}

async fn terminating(limits: HandshakeLimits) -> Setup {
    let ca = Ca::default();
    let root = tempfile::tempdir().unwrap();
    certs::write_secret(
        &root.path().join("downstream-tls/web"),
        &ca.issue(&["web.test"]),
        None,
    );
    let plan = plan(root.path(), &[(SECRET, "web")], "");
    let listener = Listener::with_limits(plan, echo().await, limits).await;
    Setup {
        ca,
        listener,
        _root: root,
    }
}

#[tokio::test]
async fn a_handshake_is_rehearsed_whether_or_not_callers_need_a_certificate() {
    for annotations in [
        &[(SECRET, "web")][..],
        &[(SECRET, "web"), (CALLERS, "callers")],
        &[
            (SECRET, "web"),
            (CALLERS, "callers"),
            ("telepresence.io/downstream-client-auth.8443", "optional"),
        ],
    ] {
        let ca = Ca::default();
        let root = tempfile::tempdir().unwrap();
        let tls = root.path().join("downstream-tls");
        certs::write_secret(&tls.join("web"), &ca.issue(&["web.test"]), None);
        certs::write_secret(
            &tls.join("callers"),
            &ca.issue(&["callers.test"]),
            Some(&ca.pem),
        );
        let listener = Listener::start(plan(root.path(), annotations, ""), echo().await).await;
        assert!(listener.tls.in_force());
        listener.tls.self_test().unwrap();
        listener
            .tls
            .warm_up(&traffic_agent::tls::server::accept::hello().unwrap())
            .unwrap();
        assert!(listener.tls.warm_up(b"\x16\x03\x01\x00\x02no").is_err());
    }
}

#[tokio::test]
async fn tls_is_terminated_and_the_end_of_either_side_arrives() {
    let setup = terminating(HandshakeLimits::default()).await;
    let config = certs::client(&setup.ca, &[], None);
    let mut stream = connect(setup.listener.addr, config, "web.test")
        .await
        .unwrap();
    echoes(&mut stream).await;
    stream.shutdown().await.unwrap();
    // The echo closes after our end; its close arrives as close_notify, not as a cut.
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(setup.listener.metrics.tls_handshakes.get(), 1);
}

#[tokio::test]
async fn clear_text_on_a_tls_port_reaches_the_app_and_is_counted() {
    let setup = terminating(HandshakeLimits::default()).await;
    let mut socket = TcpStream::connect(setup.listener.addr).await.unwrap();
    echoes(&mut socket).await;
    assert_eq!(
        setup
            .listener
            .metrics
            .tls_failures
            .at(TlsFailure::NotTls)
            .get(),
        1
    );
    assert_eq!(setup.listener.metrics.tls_handshakes.get(), 0);
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_where_only_an_annotation_without_a_port_asks_for_tls()
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.write_all(b"220 ready\r\n").await;
            tokio::spawn(async move { while let Ok(1..) = socket.read(&mut [0; 64]).await {} });
        }
    });
    let ca = Ca::default();
    let root = tempfile::tempdir().unwrap();
    certs::write_secret(
        &root.path().join("terminating_tls"),
        &ca.issue(&["web.test"]),
        None,
    );
    let legacy = (
        "telepresence.getambassador.io/inject-terminating-tls-secret",
        "web",
    );
    let listener = Listener::start(plan(root.path(), &[legacy], ""), app).await;
    for _ in 0..2 {
        let mut socket = TcpStream::connect(listener.addr).await.unwrap();
        let mut banner = [0; 11];
        socket.read_exact(&mut banner).await.unwrap();
        assert_eq!(&banner, b"220 ready\r\n");
    }
}

#[tokio::test]
async fn a_caller_of_an_app_that_is_away_is_turned_away_without_a_certificate() {
    let ca = Ca::default();
    let root = tempfile::tempdir().unwrap();
    certs::write_secret(
        &root.path().join("downstream-tls/web"),
        &ca.issue(&["web.test"]),
        None,
    );
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], harness::ports::free()));
    let listener = Listener::start(plan(root.path(), &[(SECRET, "web")], ""), nobody).await;
    let config = certs::client(&ca, &[b"h2", b"http/1.1"], None);
    connect(listener.addr, Arc::clone(&config), "web.test")
        .await
        .unwrap_err();
    let failures: u64 = listener.metrics.tls_failures.iter().map(|(_, n)| n).sum();
    assert_eq!(
        (failures, listener.metrics.tls_handshakes.get()),
        (0, 0),
        "it is the app's absence, no fault of TLS"
    );
    // Once it listens, it is asked again.
    let app = TcpListener::bind(nobody).await.unwrap();
    tokio::spawn(async move {
        loop {
            drop(app.accept().await.unwrap());
        }
    });
    let stream = connect(listener.addr, config, "web.test").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[tokio::test]
async fn a_hello_in_single_bytes_is_a_hello() {
    let setup = terminating(HandshakeLimits::default()).await;
    let socket = TcpStream::connect(setup.listener.addr).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let name = ServerName::try_from("web.test").unwrap();
    let mut client =
        rustls::ClientConnection::new(certs::client(&setup.ca, &[b"h2"], None), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let (mut r, mut w) = socket.into_split();
    for byte in hello {
        w.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut record = [0; 5];
    r.read_exact(&mut record).await.unwrap();
    assert!(record[0] == 21 || record[0] == 22, "{record:?}");
    drop(w);
}

#[tokio::test]
async fn slow_and_oversized_hellos_are_ended_while_others_get_through() {
    let limits = HandshakeLimits {
        handshake: Duration::from_millis(1500),
        concurrent: 8,
        ..HandshakeLimits::default()
    };
    let setup = terminating(limits).await;
    let metrics = &setup.listener.metrics;
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut socket = TcpStream::connect(setup.listener.addr).await.unwrap();
        socket.write_all(&[22, 3, 1, 0x01]).await.unwrap();
        slow.push(socket);
    }
    let mut large = TcpStream::connect(setup.listener.addr).await.unwrap();
    // Two records of a ClientHello that says it has 60 000 bytes.
    let mut record = vec![22, 3, 1, 0x3f, 0xff, 1, 0, 0xea, 0x60];
    record.resize(5 + 0x3fff, 0);
    let _ = large.write_all(&record).await;
    let _ = large.write_all(&record).await;
    // All places are taken; somebody with a good handshake comes along.
    let config = certs::client(&setup.ca, &[], None);
    let mut stream = connect(setup.listener.addr, config, "web.test")
        .await
        .unwrap();
    echoes(&mut stream).await;
    for mut socket in slow {
        let end = tokio::time::timeout(Duration::from_secs(20), socket.read(&mut [0; 8]))
            .await
            .unwrap();
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    eventually("the failures are counted", || {
        metrics.tls_failures.at(TlsFailure::Malformed).get() == 1
            && metrics.tls_failures.at(TlsFailure::Timeout).get() == 8
    })
    .await;
    assert!(
        metrics.limits.at(Limit::Handshakes).get() >= 1,
        "somebody gave way"
    );
    assert_eq!(metrics.tls_handshakes.get(), 1);
}
