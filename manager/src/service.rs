//! The gRPC service: each call translated to the registry, the tunnels or the names.

mod access;
mod attach;
mod facts;
mod log_level;
mod names;
mod prepared;
mod sessions;
mod tunnels;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};
use traffic_proto::build_info;
use traffic_proto::clock::now_unix;
use traffic_proto::manager as pb;
use traffic_proto::manager::manager_server::Manager;
use traffic_proto::{client_certificate, manager_token};

use crate::callers::Caller;
use crate::cluster::Cluster;
use crate::connection::ConnectionEnd;
use crate::dns::Resolver;
use crate::metrics::TunnelBytes;
use crate::open_watches::WatchEnd;
use crate::own_dials::OwnDials;
use crate::presence::Presence;
use crate::registry::{Registry, Shared};
use crate::rights::Right;
use crate::settings::Settings;
use crate::snapshots;
use crate::tunnels::Tunnels;
use crate::watch_body;
use crate::watch_body::Messages;
use crate::watches::{all, changed, deliver, follow};

/// The manager's service. Clones share everything.
#[derive(Clone)]
pub(crate) struct Service {
    shared: Arc<Shared>,
    settings: Arc<Settings>,
    tunnels: Arc<Tunnels>,
    names: Arc<Resolver>,
    log_level: watch::Sender<Option<pb::LogLevelRequest>>,
    address: std::net::SocketAddr,
    tasks: TaskTracker,
    cluster: Option<Arc<Cluster>>,
    tunnel_bytes: Arc<TunnelBytes>,
    started: Instant,
}

/// Time after the manager's start in which agents come back that knew an earlier one; they try
/// again after at most 8 s.
const AGENT_RETURN_TIMEOUT: Duration = Duration::from_secs(10);
/// Metadata with the manager's own name and version.
const OWN_VERSION: &str = "x-traffic-manager";

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    /// Creates a service on `address`; its tunnels are tasks of `tasks`.
    pub(crate) fn new(
        shared: Arc<Shared>,
        settings: Settings,
        address: std::net::SocketAddr,
        tasks: TaskTracker,
        cluster: Option<Arc<Cluster>>,
    ) -> Self {
        // Before the settings are shared: they say which dials are refused.
        let own_dials = OwnDials::new(&settings, address, shared.limits.clone());
        Self {
            names: Arc::new(Resolver::new(shared.limits.clone())),
            shared,
            settings: Arc::new(settings),
            tunnels: Arc::new(Tunnels::new(own_dials)),
            log_level: watch::Sender::new(None),
            address,
            tasks,
            cluster,
            tunnel_bytes: Arc::default(),
            started: Instant::now(),
        }
    }

    /// Bytes that were reported.
    pub(crate) fn tunnel_bytes(&self) -> Arc<TunnelBytes> {
        self.tunnel_bytes.clone()
    }

    /// Returns the session of a watch, and the token that ends with it.
    fn session(&self, request: Request<pb::SessionInfo>) -> Result<(String, WatchEnd), Status> {
        let (connection, caller) = (ConnectionEnd::of(&request), Caller::of(&request));
        let session = request.into_inner().session_id;
        let end = self.end_of(&session, connection, &caller)?;
        Ok((session, end))
    }

    /// Returns the same; an empty id means all sessions.
    async fn session_or_all(
        &self,
        request: Request<pb::SessionInfo>,
    ) -> Result<(String, WatchEnd), Status> {
        match request.get_ref().session_id.as_str() {
            "" => {
                // Stock tools watch all intercepts without a session of their own.
                Caller::of(&request).may(Right::connect()).await?;
                let (connection, stop) = (ConnectionEnd::of(&request), self.shared.stop.clone());
                let end = self.shared.watches.begin("", connection, stop)?;
                Ok((String::new(), end))
            }
            _ => self.session(request),
        }
    }

    /// Counts a watch of a session, as long as the result is held.
    fn presence(&self, session: &str) -> Presence {
        Presence::begin(
            &self.shared,
            &self.tasks,
            session,
            self.settings.client_grace,
        )
    }

    /// Takes a place for a watch, which ends with the session.
    fn end_of(
        &self,
        session: &str,
        connection: ConnectionEnd,
        caller: &Caller,
    ) -> Result<WatchEnd, Status> {
        self.own(caller, session)?;
        // The session's end ends the watch, also where its connection lives on.
        let end = self.shared.read(|registry| {
            let found = registry.sessions.get(session);
            found.map(|session| session.end.clone())
        })?;
        Ok(self.shared.watches.begin(session, connection, end)?)
    }

    /// Waits for agents of a workload, at most as long as the settings say, and returns them.
    async fn arrived(&self, name: &str, namespace: &str) -> Vec<pb::AgentInfo> {
        let arrived = self.shared.until(|registry| {
            let agents = registry.agents_of(name, namespace);
            (!agents.is_empty()).then(|| agents.into_iter().cloned().collect())
        });
        // None is an answer as well: the caller says what is missing.
        timeout(self.arrival_timeout(), arrived)
            .await
            .ok()
            .flatten()
            .unwrap_or_default()
    }

    /// Returns the time that an agent has to arrive: more while those that knew an earlier manager
    /// are on their way to this one. Zero stays zero.
    fn arrival_timeout(&self) -> Duration {
        let usual = self.settings.agent_arrival;
        let return_timeout = AGENT_RETURN_TIMEOUT.saturating_sub(self.started.elapsed());
        match usual.is_zero() {
            true => usual,
            false => usual.max(return_timeout),
        }
    }
}

fn id(session: Option<pb::SessionInfo>) -> String {
    session.unwrap_or_default().session_id
}

fn unimplemented<T>(what: &str) -> Answer<T> {
    Err(Status::unimplemented(format!("this manager has no {what}")))
}

fn agent_snapshot(agents: Vec<pb::AgentInfo>) -> pb::AgentInfoSnapshot {
    pb::AgentInfoSnapshot { agents }
}

#[tonic::async_trait]
impl Manager for Service {
    type WatchLogLevelStream = Messages<pb::LogLevelRequest>;
    type WatchAgentPodsStream = Messages<pb::AgentPodInfoSnapshot>;
    type WatchAgentsStream = Messages<pb::AgentInfoSnapshot>;
    type WatchAgentsNSStream = Messages<pb::AgentInfoSnapshot>;
    type WatchInterceptsStream = Messages<pb::InterceptInfoSnapshot>;
    type WatchAgentPodsDeltaStream = Messages<pb::AgentPodInfoDelta>;
    type WatchAgentsDeltaStream = Messages<pb::AgentInfoDelta>;
    type WatchInterceptsDeltaStream = Messages<pb::InterceptInfoDelta>;
    type WatchWorkloadsStream = Messages<pb::WorkloadEventsDelta>;
    type WatchClusterInfoStream = Messages<pb::ClusterInfo>;
    type WatchLookupDNSStream = Messages<pb::DnsRequest>;
    type TunnelStream = ReceiverStream<Result<pb::TunnelMessage, Status>>;
    type WatchDialStream = Messages<pb::DialRequest>;

    async fn version(&self, _: Request<()>) -> Answer<pb::VersionInfo2> {
        let Settings { name, version, .. } = &*self.settings;
        let mut answer = Response::new(pb::VersionInfo2 {
            name: name.clone(),
            version: version.clone(),
        });
        // Stock clients know managers by the name of the stock one; ours stands beside it.
        if let Ok(own) = format!("traffic-manager {}", build_info::LONG).parse() {
            answer.metadata_mut().insert(OWN_VERSION, own);
        }
        if let Some(gate) = self.cluster.as_ref().and_then(|it| it.gate()) {
            let mode = MetadataValue::from_static(gate.mode());
            answer.metadata_mut().insert(manager_token::MODE, mode);
            let time = now_unix().into();
            answer.metadata_mut().insert(client_certificate::TIME, time);
        }
        Ok(answer)
    }

    async fn get_agent_image_fqn(&self, _: Request<()>) -> Answer<pb::AgentImageFqn> {
        Ok(Response::new(pb::AgentImageFqn {
            f_q_n: self.settings.agent_image.clone(),
        }))
    }

    async fn get_license(&self, _: Request<()>) -> Answer<pb::License> {
        unimplemented("licence")
    }

    async fn can_connect_ambassador_cloud(
        &self,
        _: Request<()>,
    ) -> Answer<pb::AmbassadorCloudConnection> {
        unimplemented("cloud")
    }

    async fn get_cloud_config(&self, _: Request<()>) -> Answer<pb::AmbassadorCloudConfig> {
        unimplemented("cloud")
    }

    async fn get_client_config(&self, _: Request<()>) -> Answer<pb::CliConfig> {
        let config_yaml = match &self.cluster {
            Some(cluster) => cluster.client_config(),
            None => Bytes::from_static(b"{}\n"),
        };
        Ok(Response::new(pb::CliConfig { config_yaml }))
    }

    async fn get_telepresence_api(&self, _: Request<()>) -> Answer<pb::TelepresenceApiInfo> {
        let port = self.cluster.as_ref().map_or(0, |it| it.rest_api_port());
        Ok(Response::new(pb::TelepresenceApiInfo { port: port.into() }))
    }

    async fn arrive_as_client(&self, request: Request<pb::ClientInfo>) -> Answer<pb::SessionInfo> {
        self.client_arrives(request).await
    }

    async fn arrive_as_agent(&self, request: Request<pb::AgentInfo>) -> Answer<pb::SessionInfo> {
        self.agent_arrives(request).await
    }

    async fn reconnect_agent(&self, request: Request<pb::ReconnectAgentRequest>) -> Answer<()> {
        self.agent_comes_back(request).await
    }

    async fn reconnect_client(&self, request: Request<pb::ReconnectClientRequest>) -> Answer<()> {
        self.client_comes_back(request).await
    }

    async fn remain(&self, request: Request<pb::RemainRequest>) -> Answer<()> {
        let caller = Caller::of(&request);
        let session = id(request.into_inner().session);
        if self.is_question(&caller, &session) {
            return Ok(Response::new(()));
        }
        self.own(&caller, &session)?;
        self.shared
            .change_unseen(|registry| registry.sessions.touch(&session, Instant::now()))?;
        Ok(Response::new(()))
    }

    async fn depart(&self, request: Request<pb::SessionInfo>) -> Answer<()> {
        let caller = Caller::of(&request);
        let session = request.into_inner().session_id;
        self.own_or_new(&caller, &session)?;
        if self
            .shared
            .change(|registry| registry.depart(&session))
            .is_some()
        {
            tracing::info!(session, "session departed");
        }
        Ok(Response::new(()))
    }

    async fn set_log_level(&self, request: Request<pb::LogLevelRequest>) -> Answer<()> {
        self.change_log_level(request).await
    }

    async fn watch_log_level(&self, request: Request<()>) -> Answer<Self::WatchLogLevelStream> {
        self.log_levels(request).await
    }

    async fn get_logs(&self, _: Request<pb::GetLogsRequest>) -> Answer<pb::LogsResponse> {
        Ok(Response::new(pb::LogsResponse::default()))
    }

    async fn watch_agent_pods(
        &self,
        request: Request<pb::SessionInfo>,
    ) -> Answer<Self::WatchAgentPodsStream> {
        let (session, end) = self.session(request)?;
        let presence = self.presence(&session);
        let view = move |registry: &Registry| snapshots::agent_pods(registry, &session);
        let message = all(|agents| pb::AgentPodInfoSnapshot { agents });
        let messages = follow(&self.shared, end, view, message);
        Ok(watch_body::answer(presence.hold(messages)))
    }

    async fn watch_agent_pods_delta(
        &self,
        request: Request<pb::SessionInfo>,
    ) -> Answer<Self::WatchAgentPodsDeltaStream> {
        let (session, end) = self.session(request)?;
        let presence = self.presence(&session);
        let view = move |registry: &Registry| snapshots::agent_pods(registry, &session);
        let message = changed(|upserts, removals| pb::AgentPodInfoDelta { upserts, removals });
        let messages = follow(&self.shared, end, view, message);
        Ok(watch_body::answer(presence.hold(messages)))
    }

    async fn watch_agents(
        &self,
        request: Request<pb::SessionInfo>,
    ) -> Answer<Self::WatchAgentsStream> {
        let (session, end) = self.session(request)?;
        let presence = self.presence(&session);
        let view = move |registry: &Registry| snapshots::agents(registry, &session, &[]);
        let messages = follow(&self.shared, end, view, all(agent_snapshot));
        Ok(watch_body::answer(presence.hold(messages)))
    }

    async fn watch_agents_ns(
        &self,
        request: Request<pb::AgentsRequest>,
    ) -> Answer<Self::WatchAgentsNSStream> {
        let (connection, caller) = (ConnectionEnd::of(&request), Caller::of(&request));
        let request = request.into_inner();
        let session = id(request.session);
        let end = self.end_of(&session, connection, &caller)?;
        let presence = self.presence(&session);
        let view =
            move |registry: &Registry| snapshots::agents(registry, &session, &request.namespaces);
        let messages = follow(&self.shared, end, view, all(agent_snapshot));
        Ok(watch_body::answer(presence.hold(messages)))
    }

    async fn watch_agents_delta(
        &self,
        request: Request<pb::SessionInfo>,
    ) -> Answer<Self::WatchAgentsDeltaStream> {
        let (session, end) = self.session(request)?;
        let presence = self.presence(&session);
        let view = move |registry: &Registry| snapshots::agents(registry, &session, &[]);
        let message = changed(|upserts, removals| pb::AgentInfoDelta { upserts, removals });
        let messages = follow(&self.shared, end, view, message);
        Ok(watch_body::answer(presence.hold(messages)))
    }

    async fn watch_intercepts(
        &self,
        request: Request<pb::SessionInfo>,
    ) -> Answer<Self::WatchInterceptsStream> {
        let (session, end) = self.session_or_all(request).await?;
        let presence = self.presence(&session);
        let view = move |registry: &Registry| snapshots::intercepts(registry, &session);
        let message = all(|intercepts| pb::InterceptInfoSnapshot { intercepts });
        let messages = follow(&self.shared, end, view, message);
        Ok(watch_body::answer(presence.hold(messages)))
    }

    async fn watch_intercepts_delta(
        &self,
        request: Request<pb::SessionInfo>,
    ) -> Answer<Self::WatchInterceptsDeltaStream> {
        let (session, end) = self.session_or_all(request).await?;
        let presence = self.presence(&session);
        let view = move |registry: &Registry| snapshots::intercepts(registry, &session);
        let message = changed(|upserts, removals| pb::InterceptInfoDelta { upserts, removals });
        let messages = follow(&self.shared, end, view, message);
        Ok(watch_body::answer(presence.hold(messages)))
    }

    async fn watch_workloads(
        &self,
        request: Request<pb::WorkloadEventsRequest>,
    ) -> Answer<Self::WatchWorkloadsStream> {
        self.workloads(request).await
    }

    async fn watch_cluster_info(
        &self,
        request: Request<pb::SessionInfo>,
    ) -> Answer<Self::WatchClusterInfoStream> {
        self.cluster_info(request).await
    }

    async fn ensure_agent(
        &self,
        request: Request<pb::EnsureAgentRequest>,
    ) -> Answer<pb::AgentInfoSnapshot> {
        self.agents_of(request).await
    }

    async fn uninstall_agents(&self, request: Request<pb::UninstallAgentsRequest>) -> Answer<()> {
        self.remove_agents(request).await
    }

    async fn prepare_intercept(
        &self,
        request: Request<pb::CreateInterceptRequest>,
    ) -> Answer<pb::PreparedIntercept> {
        self.prepare(request).await
    }

    async fn create_intercept(
        &self,
        request: Request<pb::CreateInterceptRequest>,
    ) -> Answer<pb::InterceptInfo> {
        self.create(request).await
    }

    async fn remove_intercept(&self, request: Request<pb::RemoveInterceptRequest2>) -> Answer<()> {
        self.remove(request).await
    }

    async fn update_intercept(
        &self,
        _: Request<pb::UpdateInterceptRequest>,
    ) -> Answer<pb::InterceptInfo> {
        unimplemented("preview domains")
    }

    async fn get_intercept(
        &self,
        request: Request<pb::GetInterceptRequest>,
    ) -> Answer<pb::InterceptInfo> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let session = self.own_id(&caller, request.session)?;
        let info = self
            .shared
            .read(|registry| registry.intercepts.get(&session, &request.name))?;
        Ok(Response::new(info))
    }

    async fn review_intercept(&self, request: Request<pb::ReviewInterceptRequest>) -> Answer<()> {
        let caller = Caller::of(&request);
        let review = request.into_inner();
        self.own_or_new(&caller, &id(review.session.clone()))?;
        tracing::info!(
            intercept = review.id,
            disposition = review.disposition().as_str_name(),
            message = review.message,
            "intercept reviewed"
        );
        self.shared.change(|registry| registry.review(review))?;
        Ok(Response::new(()))
    }

    async fn get_known_workload_kinds(
        &self,
        _: Request<pb::SessionInfo>,
    ) -> Answer<pb::KnownWorkloadKinds> {
        use pb::workload_info::Kind;
        let kinds = match &self.cluster {
            Some(cluster) => cluster.workload_kinds(),
            None => vec![Kind::Deployment, Kind::Replicaset, Kind::Statefulset],
        };
        Ok(Response::new(pb::KnownWorkloadKinds {
            kinds: kinds.into_iter().map(i32::from).collect(),
        }))
    }

    async fn lookup_dns(&self, request: Request<pb::DnsRequest>) -> Answer<pb::DnsResponse> {
        self.resolve(request).await
    }

    async fn agent_lookup_dns_response(
        &self,
        request: Request<pb::DnsAgentResponse>,
    ) -> Answer<()> {
        self.take_answer(request).await
    }

    async fn watch_lookup_dns(
        &self,
        request: Request<pb::SessionInfo>,
    ) -> Answer<Self::WatchLookupDNSStream> {
        self.questions(request).await
    }

    async fn lookup(&self, request: Request<pb::LookupRequest>) -> Answer<pb::LookupResponse> {
        self.look_up(request).await
    }

    async fn tunnel(
        &self,
        request: Request<Streaming<pb::TunnelMessage>>,
    ) -> Answer<Self::TunnelStream> {
        self.open_tunnel(request).await
    }

    async fn report_metrics(&self, request: Request<pb::TunnelMetrics>) -> Answer<()> {
        self.take_report(request).await
    }

    async fn watch_dial(&self, request: Request<pb::SessionInfo>) -> Answer<Self::WatchDialStream> {
        let (session, end) = self.session(request)?;
        let presence = self.presence(&session);
        let dials = self
            .shared
            .read(|registry| registry.sessions.get(&session).map(|it| it.dials.clone()))?;
        Ok(Response::new(presence.hold(deliver(dials, end))))
    }
}
