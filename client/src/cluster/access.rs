//! The client of the API server. It is the stack of `kube::Client::try_from`, on sockets that send small
//! messages at once: in a port-forward each of them would otherwise wait for the acknowledgement of the
//! one before, which the other end delays by 40 ms.

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::{Client, Config};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

/// Makes a client from what the kubeconfig says.
pub(crate) fn client(config: Config) -> Result<Client, kube::Error> {
    if config.proxy_url.is_some() {
        // The error says which kinds of proxies are supported.
        return Client::try_from(config);
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
    let retry = config.default_retry.then(RetryPolicy::server_retry);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(retry.map(RetryLayer::new))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http.build::<_, Body>(connector));
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

#[cfg(test)]
mod tests {
    use std::fs::read_dir;
    use std::os::fd::OwnedFd;

    use rustix::net::{getsockname, sockopt};
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    /// The sockets of this process, as descriptors of their own.
    fn sockets() -> Vec<OwnedFd> {
        let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let numbers = read_dir("/proc/self/fd").unwrap();
        let numbers = numbers.filter_map(|it| it.ok()?.file_name().to_str()?.parse().ok());
        numbers
            .filter_map(|number| pidfd_getfd(&this, number, PidfdGetfdFlags::empty()).ok())
            .collect()
    }

    #[tokio::test]
    async fn small_messages_do_not_wait_for_acknowledgements() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let config = Config::new(format!("http://{address}").parse().unwrap());
        let client = client(config).unwrap();
        let asking = tokio::spawn(async move { client.apiserver_version().await.is_ok() });
        let (mut accepted, peer) = server.accept().await.unwrap();
        // The option is set once the connection is there, and before it is used.
        accepted.read_u8().await.unwrap();
        let ours = |it: &OwnedFd| {
            let name = getsockname(it).ok();
            name.and_then(|it| std::net::SocketAddr::try_from(it).ok()) == Some(peer)
        };
        let socket = sockets().into_iter().find(ours).unwrap();
        assert!(sockopt::tcp_nodelay(&socket).unwrap());
        asking.abort();
    }
}
