//! A manager in this process, an agent's calls, and the client as a process.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use harness::process::Process;
use harness::wait::WAIT_TIMEOUT;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use traffic_manager::Settings;
use traffic_proto::manager::agent_info::Mechanism;
use traffic_proto::manager::manager_client::ManagerClient;
use traffic_proto::manager::{
    AgentInfo, InterceptDispositionType as Disposition, InterceptInfo, InterceptInfoSnapshot,
    ReviewInterceptRequest, SessionInfo,
};

/// Awaits a future within a time that only failures reach.
pub(crate) async fn within_timeout<T>(what: impl Future<Output = T>) -> T {
    timeout(WAIT_TIMEOUT, what)
        .await
        .expect("nothing came in time")
}

/// A running manager.
pub(crate) struct Manager {
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

impl Manager {
    pub(crate) async fn start() -> Self {
        Self::on(([127, 0, 0, 1], 0).into()).await
    }

    pub(crate) async fn on(address: SocketAddr) -> Self {
        let settings = Settings {
            agent_arrival: Duration::ZERO,
            ..Settings::default()
        };
        let bound = traffic_manager::bind(address, settings).await.unwrap();
        let (address, stop) = (bound.address(), CancellationToken::new());
        let running = bound.run(stop.clone());
        let ended = tokio::spawn(async move {
            running.await.unwrap();
        });
        Self {
            address,
            stop,
            ended,
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.ended.await.unwrap();
    }

    pub(crate) async fn connect(&self) -> ManagerClient<Channel> {
        ManagerClient::new(
            Endpoint::from_shared(format!("http://{}", self.address))
                .unwrap()
                .connect()
                .await
                .unwrap(),
        )
    }

    /// An agent of workload `app` arrives.
    pub(crate) async fn agent(&self) -> Agent {
        let mut manager = self.connect().await;
        let session = manager
            .arrive_as_agent(agent_info())
            .await
            .unwrap()
            .into_inner();
        let intercepts = manager
            .watch_intercepts(session.clone())
            .await
            .unwrap()
            .into_inner();
        Agent {
            manager,
            session,
            intercepts,
        }
    }

    /// The client, to run with these arguments.
    pub(crate) fn client(&self, arguments: &[&str]) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_intercept"));
        let (name, flags) = arguments.split_first().unwrap();
        command
            .arg(name)
            .args(["--manager", &self.address.to_string()])
            .args(flags);
        Process::start("intercept", &mut command)
    }

    /// The client creating an intercept that is delivered to `local`.
    pub(crate) fn create(&self, local: SocketAddr, more: &[&str]) -> Process {
        let port = format!("--port={}:80", local.port());
        self.client(
            &[
                &[
                    "create",
                    "one",
                    "--workload=app",
                    &port,
                    "--client=dev@laptop",
                ],
                more,
            ]
            .concat(),
        )
    }
}

pub(crate) fn agent_info() -> AgentInfo {
    let mechanism = |name: &str| Mechanism {
        name: name.into(),
        product: "p".into(),
        version: "v1.0.0".into(),
    };
    AgentInfo {
        name: "app".into(),
        namespace: "default".into(),
        pod_name: "app-1".into(),
        pod_uid: "uid-1".into(),
        product: "p".into(),
        version: "v1.0.0".into(),
        mechanisms: vec![mechanism("tcp"), mechanism("http")],
        ..AgentInfo::default()
    }
}

/// An agent's session.
pub(crate) struct Agent {
    pub(crate) manager: ManagerClient<Channel>,
    pub(crate) session: SessionInfo,
    pub(crate) intercepts: Streaming<InterceptInfoSnapshot>,
}

impl Agent {
    /// Waits for an intercept in this state.
    pub(crate) async fn until(&mut self, disposition: Disposition) -> InterceptInfo {
        loop {
            let seen = within_timeout(self.intercepts.message())
                .await
                .unwrap()
                .expect("the watch goes on")
                .intercepts;
            if let Some(info) = seen
                .into_iter()
                .find(|info| info.disposition() == disposition)
            {
                return info;
            }
        }
    }

    /// Waits until there are no intercepts.
    pub(crate) async fn until_none(&mut self) {
        while !within_timeout(self.intercepts.message())
            .await
            .unwrap()
            .expect("the watch goes on")
            .intercepts
            .is_empty()
        {}
    }

    /// Reviews the waiting intercept.
    pub(crate) async fn review(
        &mut self,
        disposition: Disposition,
        message: &str,
    ) -> InterceptInfo {
        let info = self.until(Disposition::Waiting).await;
        let request = ReviewInterceptRequest {
            session: Some(self.session.clone()),
            id: info.id.clone(),
            disposition: disposition.into(),
            message: message.into(),
            mechanism_args_desc: "all TCP connections".into(),
            environment: [
                ("COLOUR".into(), "blue".into()),
                ("TEXT".into(), "two\nlines".into()),
            ]
            .into(),
            ..ReviewInterceptRequest::default()
        };
        self.manager.review_intercept(request).await.unwrap();
        info
    }
}
