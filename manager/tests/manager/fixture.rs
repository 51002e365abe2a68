//! A manager in this process, and parties that call it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use traffic_manager::Settings;
use traffic_proto::manager::agent_info::Mechanism;
use traffic_proto::manager::manager_client::ManagerClient;
use traffic_proto::manager::{
    AgentInfo, ClientInfo, CreateInterceptRequest, InterceptDispositionType as Disposition,
    InterceptInfo, InterceptSpec, ReviewInterceptRequest, SessionInfo,
};

pub(crate) type Client = ManagerClient<Channel>;

/// Makes a message wrong.
pub(crate) type Spoil<T> = fn(&mut T);

/// Time any event may take before a test fails.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// A running manager, stopped when dropped.
pub(crate) struct Fixture {
    pub(crate) address: SocketAddr,
    pub(crate) stop: CancellationToken,
    _guard: DropGuard,
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings {
            agent_arrival: Duration::ZERO,
            ..Settings::default()
        };
        change(&mut settings);
        let bound = traffic_manager::bind(([127, 0, 0, 1], 0).into(), settings)
            .await
            .unwrap();
        let (address, stop) = (bound.address(), CancellationToken::new());
        tokio::spawn(bound.run(stop.clone()));
        Self {
            address,
            stop: stop.clone(),
            _guard: stop.drop_guard(),
        }
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> Client {
        ManagerClient::new(
            Endpoint::from_shared(format!("http://{}", self.address))
                .unwrap()
                .connect()
                .await
                .unwrap(),
        )
    }

    pub(crate) async fn client(&self, name: &str) -> Party {
        let mut manager = self.connect().await;
        let session = manager
            .arrive_as_client(client(name))
            .await
            .unwrap()
            .into_inner();
        Party { manager, session }
    }

    pub(crate) async fn agent(&self, pod: &str) -> Party {
        self.arrive(agent(pod)).await
    }

    pub(crate) async fn arrive(&self, agent: AgentInfo) -> Party {
        let mut manager = self.connect().await;
        let session = manager.arrive_as_agent(agent).await.unwrap().into_inner();
        Party { manager, session }
    }
}

/// A connection with a session.
pub(crate) struct Party {
    pub(crate) manager: Client,
    pub(crate) session: SessionInfo,
}

impl Party {
    pub(crate) fn id(&self) -> &str {
        &self.session.session_id
    }

    pub(crate) fn create_request(&self, spec: InterceptSpec) -> CreateInterceptRequest {
        CreateInterceptRequest {
            session: Some(self.session.clone()),
            intercept_spec: Some(spec),
            ..CreateInterceptRequest::default()
        }
    }

    pub(crate) async fn create(&mut self, spec: InterceptSpec) -> InterceptInfo {
        let request = self.create_request(spec);
        self.manager
            .create_intercept(request)
            .await
            .unwrap()
            .into_inner()
    }

    pub(crate) async fn review(&mut self, id: &str, disposition: Disposition, pod_ip: &str) {
        let request = ReviewInterceptRequest {
            session: Some(self.session.clone()),
            id: id.into(),
            disposition: disposition.into(),
            pod_ip: pod_ip.into(),
            mechanism_args_desc: "all TCP connections".into(),
            environment: [("A".into(), "1".into()), ("SECRET".into(), "2".into())].into(),
            ..ReviewInterceptRequest::default()
        };
        self.manager.review_intercept(request).await.unwrap();
    }

    pub(crate) async fn intercepts(&mut self) -> Intercepts {
        Intercepts(
            self.manager
                .watch_intercepts(self.session.clone())
                .await
                .unwrap()
                .into_inner(),
        )
    }

    pub(crate) async fn depart(&mut self) {
        self.manager.depart(self.session.clone()).await.unwrap();
    }
}

/// A watch of intercepts.
pub(crate) struct Intercepts(pub(crate) Streaming<traffic_proto::manager::InterceptInfoSnapshot>);

impl Intercepts {
    /// The next snapshot.
    pub(crate) async fn next(&mut self) -> Vec<InterceptInfo> {
        within_timeout(self.0.message())
            .await
            .unwrap()
            .expect("the watch goes on")
            .intercepts
    }

    /// Waits for a snapshot with exactly one intercept in this state.
    pub(crate) async fn until(&mut self, disposition: Disposition) -> InterceptInfo {
        loop {
            if let [one] = &self.next().await[..]
                && one.disposition() == disposition
            {
                return one.clone();
            }
        }
    }
}

/// Awaits a future within [`WAIT_TIMEOUT`].
pub(crate) async fn within_timeout<T>(what: impl Future<Output = T>) -> T {
    timeout(WAIT_TIMEOUT, what)
        .await
        .expect("nothing came in time")
}

pub(crate) fn client(name: &str) -> ClientInfo {
    ClientInfo {
        name: name.into(),
        install_id: "install".into(),
        product: "telepresence".into(),
        version: "2.20.2".into(),
        namespace: "default".into(),
        ..ClientInfo::default()
    }
}

pub(crate) fn mechanism(name: &str) -> Mechanism {
    Mechanism {
        name: name.into(),
        product: "telepresence".into(),
        version: "v1.0.0".into(),
    }
}

/// An agent of workload `app`; the last byte of its address is its pod's number.
pub(crate) fn agent(pod: &str) -> AgentInfo {
    let number = pod.bytes().last().unwrap_or_default();
    AgentInfo {
        name: "app".into(),
        namespace: "default".into(),
        pod_name: pod.into(),
        pod_uid: format!("uid-{pod}"),
        pod_ip: format!("10.0.0.{number}"),
        product: "telepresence".into(),
        version: "v1.0.0".into(),
        mechanisms: vec![mechanism("tcp"), mechanism("http")],
        api_port: 4000,
        ..AgentInfo::default()
    }
}

pub(crate) fn spec(name: &str) -> InterceptSpec {
    InterceptSpec {
        name: name.into(),
        client: "dev@laptop".into(),
        agent: "app".into(),
        namespace: "default".into(),
        mechanism: "http".into(),
        target_host: "127.0.0.1".into(),
        target_port: 8080,
        port_identifier: "80".into(),
        header_filters: [("x-dev".into(), "a".into())].into(),
        path_filters: vec![":path-prefix:/api".into()],
        ..InterceptSpec::default()
    }
}
