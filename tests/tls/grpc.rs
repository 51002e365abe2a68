//! gRPC over TLS: a tonic client through the agent to tonic servers.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use harness::certs::Authority;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint, Server};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::fixture::{Fixture, ORIGINATE, Setup, TERMINATE};

/// A health service over TLS that knows one service, named after itself. The harness runs it until
/// the test ends.
async fn serve(name: &'static str, authority: &Authority) -> SocketAddr {
    let signed = authority.sign(&["app.test"]);
    let chain = CertificateDer::pem_slice_iter(signed.cert.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap())
        .unwrap();
    let provider = traffic_agent::tls::alpn::provider();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter
        .set_service_status(name, tonic_health::ServingStatus::Serving)
        .await;
    let (tx, rx) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, tx) = (acceptor.clone(), tx.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(socket).await else {
                    return;
                };
                // The server takes only streams of kinds it knows.
                let (inside, mut outside) = tokio::io::duplex(64 * 1024);
                let _ = tx.send(Ok::<_, std::io::Error>(inside)).await;
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut outside).await;
            });
        }
    });
    let incoming = tokio_stream::wrappers::ReceiverStream::new(rx);
    tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    addr
}

async fn channel(to: SocketAddr, authority: &str) -> Channel {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap())
        .unwrap();
    let mut config =
        rustls::ClientConfig::builder_with_provider(traffic_agent::tls::alpn::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = Connector {
        to,
        tls: TlsConnector::from(Arc::new(config)),
    };
    Endpoint::from_static("http://app.test")
        .connect_with_connector(connector)
        .await
        .unwrap()
}

/// TLS beneath a tonic channel.
struct Connector {
    to: SocketAddr,
    tls: TlsConnector,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (to, tls) = (self.to, self.tls.clone());
        Box::pin(async move {
            let socket = TcpStream::connect(to).await?;
            let stream = tls
                .connect(ServerName::try_from("app.test").unwrap(), socket)
                .await?;
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            Ok(TokioIo::new(stream))
        })
    }
}

/// Which of the two servers answers.
async fn asked(client: &mut HealthClient<Channel>, service: &str, dev: bool) -> bool {
    let mut request = tonic::Request::new(HealthCheckRequest {
        service: service.into(),
    });
    if dev {
        request.metadata_mut().insert("x-dev", "a".parse().unwrap());
    }
    client.check(request).await.map_or_else(
        |status| {
            assert_eq!(status.code(), tonic::Code::NotFound, "{status}");
            false
        },
        |_| true,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_over_tls_reaches_app_and_workstation_over_mutual_tls() {
    let authority = Authority::new("cluster");
    let (app, local) = (
        serve("app", &authority).await,
        serve("local", &authority).await,
    );
    let fixture = tokio::task::spawn_blocking(move || {
        Fixture::start(
            authority,
            &Setup {
                app_protocol: "grpc",
                ..Setup::new(app, &[TERMINATE, ORIGINATE])
            },
        )
    });
    let fixture = fixture.await.unwrap();
    let mut before =
        HealthClient::new(channel(fixture.agent.address(), fixture.authority.pem()).await);
    assert!(asked(&mut before, "app", true).await, "no intercept yet");
    let (fixture, _intercept) = tokio::task::spawn_blocking(move || {
        let intercept = fixture.intercept(local, &[]);
        (fixture, intercept)
    })
    .await
    .unwrap();
    let mut after =
        HealthClient::new(channel(fixture.agent.address(), fixture.authority.pem()).await);
    // A request may be on its way while the old connection is being left.
    let deadline = tokio::time::Instant::now() + harness::wait::WAIT_TIMEOUT;
    while !asked(&mut before, "local", true).await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "an open connection never follows the intercept"
        );
    }
    for client in [&mut before, &mut after] {
        assert!(asked(client, "local", true).await);
        assert!(asked(client, "app", false).await);
        assert!(!asked(client, "app", true).await);
    }
    tokio::task::spawn_blocking(move || drop((fixture, _intercept)))
        .await
        .unwrap();
}
