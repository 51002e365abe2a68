//! The listening side: one port that speaks gRPC in clear text and answers other requests with a
//! line of text.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codegen::Service as HttpService;
use tonic::codegen::http::{Request, Response, Version, header};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use traffic_proto::manager::manager_server::ManagerServer;
use traffic_proto::tunnel::GRPC_LIMIT;

use crate::registry::Shared;
use crate::service::Service;
use crate::sessions::Party;
use crate::settings::Settings;

/// Bytes one stream may send ahead of its reader.
const STREAM_WINDOW: u32 = 1 << 20;
/// Bytes one connection may send ahead of its readers. All tunnels of a peer share a connection, so
/// a stalled one must not use up the window of the others.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// Keepalive interval; detects peers that vanished without closing.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// Time tunnels may continue after the manager was told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// A manager with its port bound, not yet serving.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    settings: Settings,
}

/// Binds the port; port 0 lets the kernel choose one.
pub async fn bind(address: SocketAddr, settings: Settings) -> io::Result<Bound> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok(Bound {
        listener,
        address,
        settings,
    })
}

impl Bound {
    /// Returns the bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`, which ends all watches at once and tunnels after a few seconds.
    pub async fn run(self, stop: CancellationToken) -> Result<(), tonic::transport::Error> {
        let shared = Shared::new(&self.settings, stop.clone());
        let tasks = TaskTracker::new();
        tasks.spawn(expire(shared.clone(), self.settings.scan));
        let service = Service::new(shared, self.settings, self.address, tasks.clone());
        let manager = ManagerServer::new(service).max_decoding_message_size(GRPC_LIMIT);
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_serving::<ManagerServer<Service>>().await;
        let grpc = Routes::new(manager).add_service(health).into_axum_router();
        let routes = Routes::default()
            .into_axum_router()
            .fallback_service(GrpcOnly { grpc });
        let incoming = TcpIncoming::from(self.listener).with_nodelay(Some(true));
        let server = Server::builder()
            .accept_http1(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .add_routes(Routes::from(routes))
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let grace = async {
            stop.cancelled().await;
            tasks.close();
            let _ = timeout(GRACE, tasks.wait()).await;
        };
        tokio::select! {
            served = server => served,
            () = grace => Ok(()),
        }
    }
}

/// Ends sessions without contact for too long, at every interval.
async fn expire(shared: std::sync::Arc<Shared>, scan: Duration) {
    let mut ticks = interval(scan);
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        for (session, party) in shared.change(|registry| registry.expire(Instant::now())) {
            let name = match party {
                Party::Agent(agent) => agent.pod_name,
                Party::Client(client) => client.name,
            };
            tracing::info!(session, name, "session expired");
        }
    }
}

/// Passes gRPC on and answers other requests with a line of text.
#[derive(Clone)]
struct GrpcOnly<S> {
    grpc: S,
}

impl<S, B, R> HttpService<Request<B>> for GrpcOnly<S>
where
    S: HttpService<Request<B>, Response = Response<R>, Error = Infallible>,
    S::Future: Send + 'static,
    R: From<String> + Send + 'static,
{
    type Response = Response<R>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.grpc.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let content_type = request
            .headers()
            .get(header::CONTENT_TYPE)
            .map(|value| value.as_bytes());
        let is_grpc = content_type.is_some_and(|value| value.starts_with(b"application/grpc"));
        if is_grpc && request.version() == Version::HTTP_2 {
            return Box::pin(self.grpc.call(request));
        }
        let text = format!(
            "traffic-manager: {} is not a gRPC call\n",
            request.uri().path()
        );
        Box::pin(async { Ok(Response::new(R::from(text))) })
    }
}
