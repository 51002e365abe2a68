//! The commands of the chart's hooks, against a real TLS listener and a real manager.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use traffic_manager::commands;

const UNINSTALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A listener that answers one request with `answer`, and gives back what it read.
struct Hook {
    url: hyper::Uri,
    ca: tempfile::NamedTempFile,
    read: JoinHandle<String>,
}

impl Hook {
    async fn answering(answer: &'static str) -> Self {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut ca = tempfile::NamedTempFile::new().unwrap();
        ca.write_all(pair.cert.pem().as_bytes()).unwrap();
        let key = PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der());
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![pair.cert.der().clone()], key.into())
            .unwrap();
        let listener = TcpListener::bind("localhost:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let read = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let accepted = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
            let Ok(mut stream) = accepted else {
                return String::new();
            };
            let mut request = vec![0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        Self {
            url: format!("https://localhost:{port}/uninstall")
                .parse()
                .unwrap(),
            ca,
            read,
        }
    }
}

#[tokio::test]
async fn uninstall_sends_delete_and_takes_the_answer() {
    let hook = Hook::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let done = commands::uninstall(&hook.url, hook.ca.path(), UNINSTALL_TIMEOUT).await;
    done.unwrap();
    let request = hook.read.await.unwrap();
    assert!(
        request.starts_with("DELETE /uninstall HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(request.contains("host: localhost:"), "{request}");
}

#[tokio::test]
async fn a_refusal_of_the_manager_is_told() {
    let hook = Hook::answering("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n").await;
    let failed = commands::uninstall(&hook.url, hook.ca.path(), UNINSTALL_TIMEOUT).await;
    let text = failed.unwrap_err().to_string();
    assert!(text.contains("500"), "{text}");
}

#[tokio::test]
async fn a_manager_with_another_ca_is_not_trusted() {
    let hook = Hook::answering("").await;
    let other = Hook::answering("").await;
    let failed = commands::uninstall(&hook.url, other.ca.path(), UNINSTALL_TIMEOUT).await;
    let text = failed.unwrap_err().to_string();
    assert!(text.contains("certificate"), "{text}");
    other.read.abort();
}

#[tokio::test]
async fn a_missing_ca_is_named_with_its_place() {
    let url = "https://localhost:1/uninstall".parse().unwrap();
    let failed = commands::uninstall(&url, "/no/ca.crt".as_ref(), UNINSTALL_TIMEOUT).await;
    let text = failed.unwrap_err().to_string();
    assert!(text.contains("--ca-file /no/ca.crt"), "{text}");
}

#[tokio::test]
async fn the_version_is_that_of_the_manager_asked() {
    let settings = traffic_manager::Settings {
        name: "Tested".into(),
        version: "v9.8.7".into(),
        ..traffic_manager::Settings::default()
    };
    let bound = traffic_manager::bind(([127, 0, 0, 1], 0).into(), settings).await;
    let bound = bound.unwrap();
    let address = bound.address().to_string();
    let stop = tokio_util::sync::CancellationToken::new();
    let served = tokio::spawn(bound.run(stop.clone()));
    assert_eq!(
        commands::version_of(&address).await.unwrap(),
        "Tested v9.8.7"
    );
    stop.cancel();
    served.await.unwrap().unwrap();
}
