//! A manager that misbehaves on request: what none of ours would do, the agent has to live through.

use std::collections::HashSet;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use traffic_proto::conn_id::ConnId;
use traffic_proto::manager::manager_server::{Manager, ManagerServer};
use traffic_proto::manager::{self, *};
use traffic_proto::tunnel::{Message, StreamInfo};

use crate::WAIT_TIMEOUT;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Behaviour of the manager; can be changed while it runs.
#[derive(Clone, Debug)]
pub struct Script {
    pub version: String,
    /// Watches for dials and DNS are offered.
    pub side_watches: bool,
    /// The watch of intercept deltas is offered.
    pub deltas: bool,
    /// Lifetime of a watch.
    pub lifetime: Option<Duration>,
    /// Reviews that fail before one is taken.
    pub failing_reviews: usize,
    /// Number of arrivals refused because the agent exists already, unless it departs first.
    pub already_exists: bool,
    /// Time a workstation takes to answer a dial.
    pub dial_delay: Duration,
    /// Clients of intercepts that are not shown are unknown, as after a restart.
    pub forgetful: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            version: "v2.27.5".to_owned(),
            side_watches: true,
            deltas: true,
            lifetime: None,
            failing_reviews: 0,
            already_exists: false,
            dial_delay: Duration::ZERO,
            forgetful: false,
        }
    }
}

/// Calls the agent has made.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub arrivals: Vec<AgentInfo>,
    pub departed: Vec<String>,
    pub reviews: Vec<ReviewInterceptRequest>,
    pub remains: usize,
    pub answers: Vec<DnsAgentResponse>,
    pub reports: Vec<TunnelMetrics>,
    pub watched: Vec<&'static str>,
    pub tunnels: Vec<(StreamInfo, Option<String>)>,
}

#[derive(Clone)]
pub struct Fake {
    pub address: SocketAddr,
    script: Arc<Mutex<Script>>,
    seen: watch::Sender<Seen>,
    intercepts: watch::Sender<Vec<InterceptInfo>>,
    dials: broadcast::Sender<DialRequest>,
    /// Connections we asked the agent to dial.
    asked: Arc<Mutex<HashSet<ConnId>>>,
    pub questions: broadcast::Sender<DnsRequest>,
    pub levels: broadcast::Sender<LogLevelRequest>,
    /// Tunnels that the agent opened for a dial of ours.
    pub dialled_tx: mpsc::Sender<(StreamInfo, Wire)>,
    stop: CancellationToken,
}

/// One end of a tunnel.
pub struct Wire {
    pub tx: mpsc::Sender<Bytes>,
    pub rx: Streaming<TunnelMessage>,
}

impl Wire {
    pub async fn next(&mut self) -> Message {
        let next = tokio::time::timeout(WAIT_TIMEOUT, self.rx.next())
            .await
            .expect("a message in time");
        Message::decode(
            next.expect("a message before the end")
                .expect("no error")
                .payload,
        )
        .unwrap()
    }

    pub async fn send(&self, message: Message) {
        self.tx
            .send(message.encode())
            .await
            .expect("the agent listens");
    }
}

impl Fake {
    pub async fn start(address: SocketAddr) -> (Self, mpsc::Receiver<(StreamInfo, Wire)>) {
        Self::start_as(address, Script::default()).await
    }

    pub async fn start_as(
        address: SocketAddr,
        script: Script,
    ) -> (Self, mpsc::Receiver<(StreamInfo, Wire)>) {
        let listener = TcpListener::bind(address).await.unwrap();
        let (dialled_tx, dialled) = mpsc::channel(16);
        let fake = Self {
            address: listener.local_addr().unwrap(),
            script: Arc::new(Mutex::new(script)),
            seen: watch::Sender::new(Seen::default()),
            intercepts: watch::Sender::new(Vec::new()),
            dials: broadcast::channel(16).0,
            asked: Arc::default(),
            questions: broadcast::channel(16).0,
            levels: broadcast::channel(16).0,
            dialled_tx,
            stop: CancellationToken::new(),
        };
        let (service, stop) = (fake.clone(), fake.stop.clone());
        // As ours does: else answers of several messages wait for acknowledgements.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(async move {
            let serving = tonic::transport::Server::builder()
                .add_service(ManagerServer::new(service))
                .serve_with_incoming(incoming);
            tokio::select! {
                _ = serving => {}
                () = stop.cancelled() => {}
            }
        });
        (fake, dialled)
    }

    pub fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    pub fn show(&self, intercepts: &[InterceptInfo]) {
        self.intercepts.send_replace(intercepts.to_vec());
    }

    /// Waits until the agent has done something.
    pub async fn until(&self, what: &str, done: impl FnMut(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.subscribe();
        let waited = tokio::time::timeout(WAIT_TIMEOUT, seen.wait_for(done)).await;
        waited
            .unwrap_or_else(|_| panic!("waited for {what}; seen: {:#?}", self.seen.borrow()))
            .unwrap()
            .clone()
    }

    /// Asks the agent to dial.
    pub fn dial(&self, conn_id: ConnId) {
        self.asked.lock().unwrap().insert(conn_id);
        let request = DialRequest {
            conn_id: conn_id.to_bytes(),
            dial_timeout: 2_000_000_000,
            ..Default::default()
        };
        self.dials.send(request).expect("the agent watches");
    }

    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    fn note(&self, change: impl FnOnce(&mut Seen)) {
        self.seen.send_modify(change);
    }

    fn current(&self) -> Script {
        self.script.lock().unwrap().clone()
    }

    /// A watch as long as the script lets it live, and as the server does.
    fn live<T: Send + 'static>(
        &self,
        name: &'static str,
        items: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> Result<Response<Answers<T>>, Status> {
        self.note(|seen| seen.watched.push(name));
        let (lifetime, stop) = (self.current().lifetime, self.stop.clone());
        let end = async move {
            tokio::select! {
                () = stop.cancelled_owned() => {}
                () = async { match lifetime {
                    Some(lifetime) => tokio::time::sleep(lifetime).await,
                    None => std::future::pending().await,
                } } => {}
            }
        };
        Ok(Response::new(Box::pin(items.take_until(Box::pin(end)))))
    }

    fn side<T: Clone + Send + 'static>(
        &self,
        name: &'static str,
        items: &broadcast::Sender<T>,
    ) -> Result<Response<Answers<T>>, Status> {
        if !self.current().side_watches {
            return Err(Status::unimplemented("unknown method"));
        }
        self.live(
            name,
            BroadcastStream::new(items.subscribe()).filter_map(|i| async { i.ok().map(Ok) }),
        )
    }

    /// The client's end of a tunnel that the agent opens: an HTTP server that names itself, or a
    /// dial of ours.
    async fn carry(self, mut rx: Streaming<TunnelMessage>, tx: mpsc::Sender<Bytes>) {
        let Some(Ok(first)) = rx.next().await else {
            return;
        };
        let Ok(Message::StreamInfo(info)) = Message::decode(first.payload) else {
            return;
        };
        let _ = tx.send(Message::StreamOk(2).encode()).await;
        if self.asked.lock().unwrap().remove(&info.conn_id) {
            self.note(|seen| seen.tunnels.push((info.clone(), None)));
            let _ = self.dialled_tx.send((info, Wire { tx, rx })).await;
            return;
        }
        let Some(Ok(second)) = rx.next().await else {
            return;
        };
        let Ok(Message::Session(session)) = Message::decode(second.payload) else {
            return;
        };
        self.note(|seen| seen.tunnels.push((info, Some(session))));
        tokio::time::sleep(self.current().dial_delay).await;
        let _ = tx.send(Message::DialOk.encode()).await;
        serve_http(&mut rx, &tx).await;
    }
}

/// Answers each request head that arrives in the tunnel.
pub async fn serve_http(rx: &mut Streaming<TunnelMessage>, tx: &mpsc::Sender<Bytes>) {
    let mut head = Vec::new();
    while let Some(Ok(message)) = rx.next().await {
        let Ok(Message::Normal(data)) = Message::decode(message.payload) else {
            continue;
        };
        head.extend_from_slice(&data);
        while let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") {
            head.drain(..end + 4);
            let answer =
                Bytes::from_static(b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nworkstation");
            if tx.send(Message::Normal(answer).encode()).await.is_err() {
                return;
            }
        }
    }
}

impl Fake {
    /// Goes away as a killed process does: every connection ends.
    pub fn vanish(&self) {
        self.stop.cancel();
    }
}

macro_rules! methods {
    ($(fn $name:ident($this:ident, $request:ident: $req:ty) -> $res:ty $body:block)*
     $(absent $absent:ident($areq:ty) -> $ares:ty;)*) => {
        $(fn $name<'a, 'f>(&'a self, $request: Request<$req>)
            -> Pin<Box<dyn Future<Output = Result<Response<$res>, Status>> + Send + 'f>>
        where 'a: 'f, Self: 'f {
            let $this = self;
            Box::pin(async move { $body })
        })*
        $(fn $absent<'a, 'f>(&'a self, _: Request<$areq>)
            -> Pin<Box<dyn Future<Output = Result<Response<$ares>, Status>> + Send + 'f>>
        where 'a: 'f, Self: 'f {
            Box::pin(async { Err(Status::unimplemented("unknown method")) })
        })*
    };
}

impl Manager for Fake {
    type WatchLogLevelStream = Answers<manager::LogLevelRequest>;
    type WatchAgentPodsStream = Answers<manager::AgentPodInfoSnapshot>;
    type WatchAgentsStream = Answers<manager::AgentInfoSnapshot>;
    type WatchAgentsNSStream = Answers<manager::AgentInfoSnapshot>;
    type WatchInterceptsStream = Answers<manager::InterceptInfoSnapshot>;
    type WatchAgentPodsDeltaStream = Answers<manager::AgentPodInfoDelta>;
    type WatchAgentsDeltaStream = Answers<manager::AgentInfoDelta>;
    type WatchInterceptsDeltaStream = Answers<manager::InterceptInfoDelta>;
    type WatchWorkloadsStream = Answers<manager::WorkloadEventsDelta>;
    type WatchClusterInfoStream = Answers<manager::ClusterInfo>;
    type WatchLookupDNSStream = Answers<manager::DnsRequest>;
    type TunnelStream = Answers<manager::TunnelMessage>;
    type WatchDialStream = Answers<manager::DialRequest>;

    methods! {
        fn version(this, _request: ()) -> VersionInfo2 {
            Ok(Response::new(VersionInfo2 { name: "Fake Manager".to_owned(), version: this.current().version }))
        }

        fn arrive_as_agent(this, request: AgentInfo) -> SessionInfo {
            let info = request.into_inner();
            let id = format!("agent:{}", info.pod_uid);
            let seen = this.seen();
            if this.current().already_exists && !seen.departed.contains(&id) {
                return Err(Status::already_exists("session is already there"));
            }
            let number = seen.arrivals.len();
            this.note(|seen| seen.arrivals.push(info));
            Ok(Response::new(SessionInfo { session_id: format!("session-{number}"), ..SessionInfo::default() }))
        }

        fn remain(this, request: RemainRequest) -> () {
            let session = request.into_inner().session.unwrap_or_default().session_id;
            let is_agent = session.starts_with("session-");
            let client = Some(session.as_str());
            let shows = this.intercepts.borrow().iter().any(|i| {
                i.client_session.as_ref().map(|it| it.session_id.as_str()) == client
            });
            if this.current().forgetful && !is_agent && !shows {
                return Err(Status::not_found("session not found"));
            }
            this.note(|seen| seen.remains += 1);
            Ok(Response::new(()))
        }

        fn depart(this, request: SessionInfo) -> () {
            this.note(|seen| seen.departed.push(request.into_inner().session_id));
            Ok(Response::new(()))
        }

        fn watch_log_level(this, _request: ()) -> Answers<LogLevelRequest> {
            this.side("levels", &this.levels)
        }

        fn watch_intercepts(this, _request: SessionInfo) -> Answers<InterceptInfoSnapshot> {
            let shown = WatchStream::new(this.intercepts.subscribe());
            this.live("intercepts", shown.map(|intercepts| Ok(InterceptInfoSnapshot { intercepts })))
        }

        fn watch_intercepts_delta(this, _request: SessionInfo) -> Answers<InterceptInfoDelta> {
            if !this.current().deltas {
                return Err(Status::unimplemented("unknown method"));
            }
            let shown = WatchStream::new(this.intercepts.subscribe());
            let deltas = shown.scan(Vec::<String>::new(), |known, intercepts| {
                let removals = known.iter().filter(|id| intercepts.iter().all(|i| i.id != **id)).cloned().collect();
                *known = intercepts.iter().map(|i| i.id.clone()).collect();
                let upserts = intercepts.into_iter().map(|i| (i.id.clone(), i)).collect();
                std::future::ready(Some(Ok(InterceptInfoDelta { upserts, removals })))
            });
            this.live("deltas", deltas)
        }

        fn review_intercept(this, request: ReviewInterceptRequest) -> () {
            if this.current().failing_reviews > 0 {
                this.script(|script| script.failing_reviews -= 1);
                return Err(Status::unavailable("not now"));
            }
            this.note(|seen| seen.reviews.push(request.into_inner()));
            Ok(Response::new(()))
        }

        fn agent_lookup_dns_response(this, request: DnsAgentResponse) -> () {
            this.note(|seen| seen.answers.push(request.into_inner()));
            Ok(Response::new(()))
        }

        fn watch_lookup_dns(this, _request: SessionInfo) -> Answers<DnsRequest> {
            this.side("questions", &this.questions)
        }

        fn tunnel(this, request: Streaming<TunnelMessage>) -> Answers<TunnelMessage> {
            let (tx, rx) = mpsc::channel(16);
            tokio::spawn(this.clone().carry(request.into_inner(), tx));
            let answers: Answers<_> = Box::pin(ReceiverStream::new(rx).map(|payload| Ok(TunnelMessage { payload })));
            Ok(Response::new(answers))
        }

        fn report_metrics(this, request: TunnelMetrics) -> () {
            this.note(|seen| seen.reports.push(request.into_inner()));
            Ok(Response::new(()))
        }

        fn watch_dial(this, _request: SessionInfo) -> Answers<DialRequest> {
            this.side("dials", &this.dials)
        }

        absent get_agent_image_fqn(()) -> manager::AgentImageFqn;
        absent get_license(()) -> manager::License;
        absent can_connect_ambassador_cloud(()) -> manager::AmbassadorCloudConnection;
        absent get_cloud_config(()) -> manager::AmbassadorCloudConfig;
        absent get_client_config(()) -> manager::CliConfig;
        absent get_telepresence_api(()) -> manager::TelepresenceApiInfo;
        absent arrive_as_client(manager::ClientInfo) -> manager::SessionInfo;
        absent reconnect_agent(manager::ReconnectAgentRequest) -> ();
        absent reconnect_client(manager::ReconnectClientRequest) -> ();
        absent set_log_level(manager::LogLevelRequest) -> ();
        absent get_logs(manager::GetLogsRequest) -> manager::LogsResponse;
        absent watch_agent_pods(manager::SessionInfo) -> Self::WatchAgentPodsStream;
        absent watch_agents(manager::SessionInfo) -> Self::WatchAgentsStream;
        absent watch_agents_ns(manager::AgentsRequest) -> Self::WatchAgentsNSStream;
        absent watch_agent_pods_delta(manager::SessionInfo) -> Self::WatchAgentPodsDeltaStream;
        absent watch_agents_delta(manager::SessionInfo) -> Self::WatchAgentsDeltaStream;
        absent watch_workloads(manager::WorkloadEventsRequest) -> Self::WatchWorkloadsStream;
        absent watch_cluster_info(manager::SessionInfo) -> Self::WatchClusterInfoStream;
        absent ensure_agent(manager::EnsureAgentRequest) -> manager::AgentInfoSnapshot;
        absent uninstall_agents(manager::UninstallAgentsRequest) -> ();
        absent prepare_intercept(manager::CreateInterceptRequest) -> manager::PreparedIntercept;
        absent create_intercept(manager::CreateInterceptRequest) -> manager::InterceptInfo;
        absent remove_intercept(manager::RemoveInterceptRequest2) -> ();
        absent update_intercept(manager::UpdateInterceptRequest) -> manager::InterceptInfo;
        absent get_intercept(manager::GetInterceptRequest) -> manager::InterceptInfo;
        absent get_known_workload_kinds(manager::SessionInfo) -> manager::KnownWorkloadKinds;
        absent lookup_dns(manager::DnsRequest) -> manager::DnsResponse;
        absent lookup(manager::LookupRequest) -> manager::LookupResponse;
    }
}

/// An intercept of the client `client-1`, as a manager shows it.
pub fn intercept(
    name: &str,
    disposition: InterceptDispositionType,
    port: u16,
    header: Option<(&str, &str)>,
) -> InterceptInfo {
    let spec = InterceptSpec {
        name: name.to_owned(),
        client: "dev@box".to_owned(),
        agent: "web".to_owned(),
        namespace: "shop".to_owned(),
        mechanism: if header.is_some() { "http" } else { "tcp" }.to_owned(),
        target_host: "127.0.0.1".to_owned(),
        target_port: 1,
        container_port: i32::from(port),
        dial_timeout: 1_000_000_000,
        header_filters: header
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        ..InterceptSpec::default()
    };
    InterceptInfo {
        id: format!("client-1:{name}"),
        disposition: disposition.into(),
        spec: Some(spec),
        client_session: Some(SessionInfo {
            session_id: "client-1".to_owned(),
            ..SessionInfo::default()
        }),
        ..InterceptInfo::default()
    }
}

/// A stream of tunnel messages for a call of ours.
pub fn outgoing(rx: mpsc::Receiver<Bytes>) -> impl Stream<Item = TunnelMessage> {
    stream::unfold(rx, |mut rx| async {
        rx.recv()
            .await
            .map(|payload| (TunnelMessage { payload }, rx))
    })
}
