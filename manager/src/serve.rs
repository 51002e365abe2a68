//! The listening side: one port that speaks gRPC in clear text and answers other requests as `web`
//! does.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::ready;
use futures_util::{Stream, TryStreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codegen::Service as HttpService;
use tonic::codegen::http::{Request, Response, Version, header};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use traffic_core::http2::authority::AuthorityRewriter;
use traffic_proto::manager::manager_server::ManagerServer;
use traffic_proto::rewrite_io::RewriteReads;
use traffic_proto::tunnel::MAX_FRAME;

use crate::cluster::gate::Gate;
use crate::cluster::{Cluster, ClusterError};
use crate::connection::{ClosableIo, ConnectionEnd};
use crate::connections::Connections;
use crate::gate;
use crate::limits::{LimitCounters, MAX_CONNECTIONS, ManagerLimit, of_descriptors};
use crate::listen::bind_everywhere;
use crate::metrics::Metrics;
use crate::presence::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use crate::registry::Shared;
use crate::served_body::ServedBody;
use crate::service::Service;
use crate::sessions::Party;
use crate::settings::Settings;
use crate::watch_body::WatchBodies;
use crate::web::Web;

/// Bytes one stream may send ahead of its reader.
const STREAM_WINDOW: u32 = 1 << 20;
/// Bytes one connection may send ahead of its readers. All tunnels of a peer share a connection, so
/// a stalled one must not use up the window of the others.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// How often to look whether the manager is ready.
const READY_INTERVAL: Duration = Duration::from_millis(200);
/// Time tunnels may continue after the manager was told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// A manager with its port bound, not yet serving.
#[derive(Debug)]
pub struct Bound {
    pub(crate) listener: TcpListener,
    address: SocketAddr,
    settings: Settings,
    /// The process has not served before.
    pub(crate) is_new: bool,
    started: std::time::Instant,
}

/// Binds the port; port 0 lets the kernel choose one.
pub async fn bind(address: SocketAddr, settings: Settings) -> io::Result<Bound> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok(Bound {
        listener,
        address,
        settings,
        is_new: true,
        started: std::time::Instant::now(),
    })
}

impl Bound {
    /// Returns the bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The manager has handed over to another one and waits for its turn.
    pub fn waiting(self) -> Self {
        Self {
            is_new: false,
            ..self
        }
    }

    /// Serves until `stop`, which ends all watches at once and tunnels after a few seconds, or
    /// until another manager of the cluster leads.
    ///
    /// # Errors
    /// The port fails, or the cluster cannot be managed.
    pub async fn run(self, stop: CancellationToken) -> Result<Ended, ServeError> {
        let (outer, stop) = (stop.clone(), stop.child_token());
        let shared = Shared::new(&self.settings, stop.clone());
        let tasks = TaskTracker::new();
        let Some(settings) = self.settings.cluster.clone() else {
            self.serve(shared, tasks, stop, None).await?;
            return Ok(Ended::Stopped);
        };
        self.in_cluster(settings, shared, tasks, outer, stop).await
    }

    pub(crate) async fn serve(
        self,
        shared: Arc<Shared>,
        tasks: TaskTracker,
        stop: CancellationToken,
        cluster: Option<Arc<Cluster>>,
    ) -> Result<(), ServeError> {
        tasks.spawn(expire(shared.clone(), self.settings.scan));
        let limit = self.settings.max_receive_size;
        let incoming = incoming(self.listener, shared.limits.clone());
        let service = Service::new(
            shared.clone(),
            self.settings.clone(),
            self.address,
            tasks.clone(),
            cluster.clone(),
        );
        let bytes = service.tunnel_bytes();
        let gate = cluster.as_ref().and_then(|it| it.gate());
        let metrics = Metrics::new(shared.clone(), bytes, cluster.clone(), &self.settings);
        let web = Arc::new(Web {
            shared,
            settings: Arc::new(self.settings.clone()),
            cluster: cluster.clone(),
            metrics,
            started: self.started,
        });
        if self.settings.prometheus_port != 0 {
            let port = self.settings.prometheus_port;
            let listener = bind_everywhere(port).await;
            let listener = listener.map_err(|error| ServeError::MetricsPort(port, error))?;
            tasks.spawn(web.metrics.clone().follow(stop.clone()));
            let scrapes = web.clone();
            tasks.spawn(scrapes.serve_metrics(listener, tasks.clone(), stop.clone()));
        }
        let manager = ManagerServer::new(service).max_decoding_message_size(limit);
        let (reporter, health) = tonic_health::server::health_reporter();
        if let Some(cluster) = cluster {
            reporter
                .set_service_status("", ServingStatus::NotServing)
                .await;
            tasks.spawn(report_ready(cluster, reporter.clone(), stop.clone()));
        }
        reporter.set_serving::<ManagerServer<Service>>().await;
        let grpc = Routes::new(WatchBodies(manager))
            .add_service(health)
            .into_axum_router();
        let routes = Routes::default()
            .into_axum_router()
            .fallback_service(GrpcFirst { grpc, web, gate });
        let server = Server::builder()
            .accept_http1(true)
            .max_frame_size(Some(MAX_FRAME))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .add_routes(Routes::from(routes))
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let grace = async {
            stop.cancelled().await;
            tasks.close();
            let _ = timeout(GRACE, tasks.wait()).await;
        };
        tokio::select! {
            served = server => Ok(served?),
            () = grace => Ok(()),
        }
    }
}

/// The end of a manager that served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// Another manager of the cluster leads; this one may wait for its turn.
    Replaced,
}

/// The reason why a manager ended that was not told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The API's port failed.
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
    /// The port of the metrics is taken.
    #[error("PROMETHEUS_PORT={0}: cannot listen: {1}; choose another port (prometheus.port)")]
    MetricsPort(u16, std::io::Error),
    /// The cluster cannot be managed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// Says that the manager is ready, once it is.
async fn report_ready(cluster: Arc<Cluster>, reporter: HealthReporter, stop: CancellationToken) {
    let mut ticks = interval(READY_INTERVAL);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if cluster.is_ready() {
            tracing::info!("ready");
            return reporter
                .set_service_status("", ServingStatus::Serving)
                .await;
        }
    }
}

/// A connection of the API.
type ApiConnection = RewriteReads<ClosableIo<TcpStream>, AuthorityRewriter>;

/// Returns the connections of the API that find a place.
fn incoming(
    listener: TcpListener,
    limits: Arc<LimitCounters>,
) -> impl Stream<Item = io::Result<ApiConnection>> {
    let most = of_descriptors(2, MAX_CONNECTIONS);
    let connections = Connections::new(most, ManagerLimit::Connections, limits);
    let sockets = TcpIncoming::from(listener).with_nodelay(Some(true));
    sockets.try_filter_map(move |socket| {
        let peer = socket.peer_addr().ok();
        // One whose peer is gone already is refused with those that find no place.
        let place = peer.and_then(|peer| connections.enter(peer.ip()));
        let socket = place.map(|place| {
            let socket = ClosableIo::new(socket, peer, place);
            // gRPC clients may send an authority that is no host name (`svc%2Fname.namespace:api`),
            // which the `http` crate refuses.
            RewriteReads::new(socket, AuthorityRewriter::new("localhost"))
        });
        ready(Ok(socket))
    })
}

/// Ends sessions without contact for too long, at every interval.
async fn expire(shared: Arc<Shared>, scan: Duration) {
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

/// Passes gRPC on and answers other requests as web requests.
#[derive(Clone)]
struct GrpcFirst<S> {
    grpc: S,
    web: Arc<Web>,
    gate: Option<Arc<Gate>>,
}

impl<S, B, R> HttpService<Request<B>> for GrpcFirst<S>
where
    S: HttpService<Request<B>, Response = Response<R>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Send + 'static,
    R: From<String> + Default + Send + 'static,
{
    type Response = Response<ServedBody<R>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.grpc.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let connection = request.extensions().get::<ConnectionEnd>().cloned();
        let serving = connection.as_ref().and_then(ConnectionEnd::serves);
        let content_type = request
            .headers()
            .get(header::CONTENT_TYPE)
            .map(|value| value.as_bytes());
        let is_grpc = content_type.is_some_and(|value| value.starts_with(b"application/grpc"));
        if !is_grpc || request.version() != Version::HTTP_2 {
            let (head, _) = request.into_parts();
            let peer = connection.as_ref().and_then(ConnectionEnd::peer);
            let answer = self.web.answer(&head, peer.map(|peer| peer.ip()));
            let answer = answer.map(|text| ServedBody::new(text.into(), serving));
            return Box::pin(async { Ok(answer) });
        }
        // The one that is ready goes with the call, its copy stays.
        let copy = self.grpc.clone();
        let mut ready = std::mem::replace(&mut self.grpc, copy);
        let gate = self.gate.clone();
        Box::pin(async move {
            let answer = match gate {
                Some(gate) => gate::pass(gate, ready, request).await?,
                None => ready.call(request).await?,
            };
            Ok(answer.map(|body| ServedBody::new(body, serving)))
        })
    }
}
