//! One-off commands of the manager's image, for the chart's hooks: they stand in for programs that
//! would have to come from elsewhere.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;
use traffic_proto::manager::manager_client::ManagerClient;

/// Time for connecting to a manager.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the manager behind `url` to remove every agent, and waits until it has.
///
/// # Errors
/// The reason why the manager did not do it.
pub async fn uninstall(url: &Uri, ca_file: &Path, limit: Duration) -> io::Result<()> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {limit:?}"));
    let status = timeout(limit, delete(url, ca_file)).await.map_err(late)??;
    if status == StatusCode::OK {
        return Ok(());
    }
    Err(io::Error::other(format!("the manager answers {status}")))
}

/// Name and version of the manager at `address`.
///
/// # Errors
/// No manager answers there.
pub async fn version_of(address: &str) -> io::Result<String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(io::Error::other)?;
    let channel = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(CONNECT_TIMEOUT)
        .connect()
        .await
        .map_err(io::Error::other)?;
    let answer = ManagerClient::new(channel).version(()).await;
    let version = answer.map_err(io::Error::other)?.into_inner();
    Ok(format!("{} {}", version.name, version.version))
}

async fn delete(url: &Uri, ca_file: &Path) -> io::Result<StatusCode> {
    let invalid = |what: &str| {
        let message = format!("--url {url}: {what}; write https://HOST:PORT/uninstall");
        io::Error::new(io::ErrorKind::InvalidInput, message)
    };
    let authority = url.authority().ok_or_else(|| invalid("no host"))?;
    let port = authority.port_u16().unwrap_or(443);
    let config = trusting(ca_file)?;
    let name = ServerName::try_from(authority.host().to_owned())
        .map_err(|_| invalid("no name that a certificate could have"))?;
    let connect = TcpStream::connect((authority.host(), port));
    let stream = timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| {
        let message = format!("{authority} does not answer in {CONNECT_TIMEOUT:?}");
        io::Error::new(io::ErrorKind::TimedOut, message)
    })??;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    let request = Request::builder()
        .method(Method::DELETE)
        .uri(url.path())
        .header(HOST, authority.as_str())
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(io::Error::other)?;
    let exchange = async move {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        answer.into_body().collect().await?;
        Ok::<_, hyper::Error>(status)
    };
    // An error of the connection is the exchange's as well.
    let (status, _) = tokio::join!(exchange, connection);
    status.map_err(io::Error::other)
}

/// TLS that trusts the certificates of one file.
fn trusting(ca_file: &Path) -> io::Result<ClientConfig> {
    let named = |error: &dyn std::fmt::Display| {
        io::Error::other(format!(
            "--ca-file {}: {error}; it is ca.crt of the webhook's Secret",
            ca_file.display()
        ))
    };
    let certificates = CertificateDer::pem_file_iter(ca_file).map_err(|it| named(&it))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let certificate = certificate.map_err(|it| named(&it))?;
        roots.add(certificate).map_err(|it| named(&it))?;
    }
    if roots.is_empty() {
        return Err(named(&"no certificate"));
    }
    Ok(ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth())
}
