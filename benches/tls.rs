//! Full TLS 1.3 handshakes with a port that terminates TLS; client and agent share one thread.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::future::BoxFuture;
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use traffic_agent::telemetry::metrics::PortMetrics;
use traffic_agent::tls;
use traffic_agent::tls::alpn::{AlpnOffer, AppUnavailable};
use traffic_agent::tls::secrets::annotations;
use traffic_agent::tls::secrets::annotations::AppPort;
use traffic_agent::tls::secrets::store::Stores;
use traffic_agent::tls::server::accept::Arrival;

/// A clear-text app that speaks only HTTP/1.
#[derive(Debug)]
struct App;

impl tls::alpn::AppTls for App {
    fn offers(&self) -> BoxFuture<'_, Result<AlpnOffer, AppUnavailable>> {
        Box::pin(std::future::ready(Ok(AlpnOffer {
            h2: false,
            http1: true,
        })))
    }

    fn speaks_first(&self) -> BoxFuture<'_, bool> {
        Box::pin(std::future::ready(false))
    }
}

fn handshake(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let root = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(["app.test".to_owned()]).expect("a certificate");
    let folder = root.path().join("certs");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("tls.crt"), made.cert.pem()).expect("written");
    std::fs::write(folder.join("tls.key"), made.signing_key.serialize_pem()).expect("written");
    let annotation = (
        "telepresence.io/downstream-tls-path.8443".to_owned(),
        "/certs".to_owned(),
    );
    let app = AppPort {
        container_port: 8443,
        app_protocol: "http".into(),
        ..AppPort::default()
    };
    let mut plans = annotations::plans(&BTreeMap::from([annotation]), "web", root.path(), &[app]);
    let plan = plans.ports.pop().expect("one port");
    let port = tls::server::accept::TlsPort::new(
        &plan,
        &mut Stores::default(),
        Arc::new(App),
        tls::server::accept::HandshakeLimits::default(),
    );

    let mut trusted = rustls::RootCertStore::empty();
    trusted.add(made.cert.der().clone()).expect("a root");
    let client = rustls::ClientConfig::builder_with_provider(tls::alpn::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(trusted)
        .with_no_client_auth();
    let mut client = client;
    client.resumption = rustls::client::Resumption::disabled();
    let client = tokio_rustls::TlsConnector::from(Arc::new(client));
    let metrics = PortMetrics::default();

    let mut group = c.benchmark_group("tls");
    group.sample_size(50);
    group.bench_function("full handshake", |b| {
        b.iter(|| {
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0")
                    .await
                    .expect("a loopback port");
                let addr = listener
                    .local_addr()
                    .expect("a bound listener has an address");
                let (out, into) = tokio::join!(TcpStream::connect(addr), listener.accept());
                let (out, into) = (out.expect("connect"), into.expect("accept").0);
                let name = ServerName::try_from("app.test").expect("a name");
                let (there, here) =
                    tokio::join!(client.connect(name, out), port.accept(into, true, &metrics));
                there.expect("the client's handshake");
                assert!(matches!(here, Ok(Arrival::Terminated(..))));
            });
        });
    });
}

criterion_group!(benches, handshake);
criterion_main!(benches);
