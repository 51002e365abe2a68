//! Memory of an idle TLS connection in the agent.

use std::net::SocketAddr;
use std::sync::Arc;

use harness::certs::Authority;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::fixture::{Fixture, Setup, TERMINATE};

const CONNECTIONS: u64 = 400;
/// Memory of one connection: two sockets, the task and the TLS state; a leaked record buffer (16
/// KiB each way) would show.
const BOUND: u64 = 24 * 1024;

/// Answers each request line with a fixed answer, and keeps every connection.
async fn app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buf = [0; 1024];
                while let Ok(1..) = socket.read(&mut buf).await {
                    let _ = socket
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                        .await;
                }
            });
        }
    });
    addr
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

async fn open(
    to: SocketAddr,
    connector: &TlsConnector,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let socket = TcpStream::connect(to).await.unwrap();
    let mut stream = connector
        .connect(ServerName::try_from("app.test").unwrap(), socket)
        .await
        .unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: app.test\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 40];
    stream.read_exact(&mut answer).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_tls_connection_costs_little() {
    let app = app().await;
    let fixture = tokio::task::spawn_blocking(move || {
        Fixture::start(
            Authority::new("cluster"),
            &Setup {
                app_protocol: "http",
                ..Setup::new(app, &[TERMINATE])
            },
        )
    });
    let fixture = fixture.await.unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(fixture.authority.pem().as_bytes()).unwrap())
        .unwrap();
    let config = rustls::ClientConfig::builder_with_provider(traffic_agent::tls::alpn::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let (pid, to) = (fixture.agent.process.pid(), fixture.agent.address());
    // What is allocated once for all is there before the measurement begins.
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS / 4 {
        held.push(open(to, &connector).await);
    }
    let before = resident(pid);
    for _ in 0..CONNECTIONS {
        held.push(open(to, &connector).await);
    }
    let each = resident(pid).saturating_sub(before) / CONNECTIONS;
    println!("{each} bytes for each idle TLS connection");
    assert!(each <= BOUND, "{each} bytes for each idle TLS connection");
    tokio::task::spawn_blocking(move || drop(fixture))
        .await
        .unwrap();
}
