//! A container's environment and volumes on this machine, without any of its traffic.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tonic::Status;
use traffic_proto::manager::agent_info::ContainerInfo;
use traffic_proto::manager::{AgentInfo, ClientInfo, EnsureAgentRequest, SessionInfo};

use crate::Failure;
use crate::container::facts::Facts;
use crate::container::{self, Container};
use crate::credentials::Credentials;
use crate::flags::{Ingest, Output};
use crate::intercept::Stop;
use crate::mount::leftovers;
use crate::report::{self, Pairs, event, line};
use crate::session::{self, Manager, Patience, Resumed, Way, call, refused, status_text};

/// Pause before a lost session is begun again.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Time for the manager to take note of the end.
const DEPART_TIMEOUT: Duration = Duration::from_secs(2);

/// Brings a container's environment and volumes to this machine until `stop`, or until the command
/// beside them ends.
pub async fn ingest(flags: &Ingest, stop: Stop) -> Result<(), Failure> {
    if flags.output == Output::Json {
        report::as_json();
    }
    leftovers::take_away_all();
    container::check(&flags.container)?;
    let timeout = Duration::from_secs(flags.timeout);
    let connected = async {
        let way = Way::open(&flags.manager).await?;
        let namespace = flags.namespace.as_deref().unwrap_or(way.namespace());
        let client = session::client_info(&flags.manager.client, namespace);
        let connected = session::connect(&way, timeout).await?;
        Ok((connected, client, way))
    };
    let Some(connected) = stop.orderly.run_until_cancelled(connected).await else {
        return Err(Failure::Interrupted);
    };
    // The way holds a port-forward open.
    let (connected, client, _way) = connected?;
    let mut ingest = IngestSession {
        flags,
        manager: connected.manager,
        credentials: connected.credentials,
        client,
        container: Container::default(),
        pod: String::new(),
    };
    // A manager that was there comes back, if several times within seconds.
    let mut patience = Patience::new(timeout);
    let arriving = ingest.arrive_patiently(&mut patience);
    let Some(session) = stop.orderly.run_until_cancelled(arriving).await else {
        return Err(Failure::Interrupted);
    };
    let mut session = session?;
    let served = stop
        .orderly
        .run_until_cancelled(ingest.serve(&mut session, patience));
    let failure = served.await;
    ingest.container.end().await;
    ingest.depart(session).await;
    failure.map_or_else(|| ingest.stopped(), Err)
}

struct IngestSession<'a> {
    flags: &'a Ingest,
    manager: Manager,
    credentials: Credentials,
    client: ClientInfo,
    container: Container,
    /// Pod whose container is here; empty at first.
    pod: String,
}

/// Reason serving ended.
enum FollowEnd {
    Failed(Failure),
    /// The manager cannot be reached, or no longer knows the session.
    Lost(Status),
}

impl IngestSession<'_> {
    /// Result of an orderly end. A container that never came is no success, so that scripts stop.
    fn stopped(&self) -> Result<(), Failure> {
        if self.pod.is_empty() {
            return Err(Failure::Interrupted);
        }
        Ok(())
    }

    async fn arrive(&mut self) -> Result<SessionInfo, Failure> {
        session::arrive(&mut self.manager, &self.credentials, &self.client).await
    }

    /// Arrives; a manager that breaks off meanwhile is asked again.
    async fn arrive_patiently(&mut self, patience: &mut Patience) -> Result<SessionInfo, Failure> {
        loop {
            match self.arrive().await {
                Err(failure) if patience.allows_another_try(&failure).await => {}
                arrived => return arrived,
            }
        }
    }

    async fn depart(&mut self, session: SessionInfo) {
        let mut depart = call(session);
        depart.set_timeout(DEPART_TIMEOUT);
        let _ = self.manager.depart(depart).await;
    }

    /// Serves until something fails, over as many sessions as needed.
    async fn serve(&mut self, session: &mut SessionInfo, mut patience: Patience) -> Failure {
        while let Err(failure) = self.ensure(session).await {
            if !patience.allows_another_try(&failure).await {
                return failure;
            }
            // The one that is back may have forgotten the session.
            if let Ok(new) = self.arrive().await {
                *session = new;
            }
        }
        loop {
            let status = match self.follow(session).await {
                FollowEnd::Failed(failure) => return failure,
                FollowEnd::Lost(status) => status,
            };
            let message = status_text(&status);
            event(&Pairs(&[("manager", "lost"), ("message", &message)]));
            let resumed = session::resume(self.manager.clone(), session, &self.client, &[]);
            if let Resumed::Unknown = resumed.await {
                match self.arrive().await {
                    Ok(new) => *session = new,
                    Err(failure) => {
                        let message = failure.to_string();
                        event(&Pairs(&[("manager", "lost"), ("message", &message)]));
                        sleep(RETRY_DELAY).await;
                        continue;
                    }
                }
            }
            event(&Pairs(&[("manager", "back")]));
            // A manager that ends every session at once must not be called in a tight loop.
            sleep(RETRY_DELAY).await;
        }
    }

    /// Has the manager put an agent into the workload's pods.
    async fn ensure(&mut self, session: &SessionInfo) -> Result<(), Failure> {
        let mut request = tonic::Request::new(EnsureAgentRequest {
            session: Some(session.clone()),
            name: self.flags.workload.clone(),
            namespace: self.client.namespace.clone(),
        });
        // The workload may have to be rolled out.
        request.set_timeout(Duration::from_secs(self.flags.timeout) + session::CALL_TIMEOUT);
        let ensured = self.manager.ensure_agent(request).await;
        let what = format!("workload {:?} gets no agent", self.flags.workload);
        ensured.map(drop).map_err(|status| refused(&what, &status))
    }

    async fn follow(&mut self, session: &SessionInfo) -> FollowEnd {
        let manager = self.manager.clone();
        tokio::select! {
            status = session::remain(manager, session.clone()) => FollowEnd::Lost(status),
            ended = self.agents(session) => ended,
        }
    }

    /// Follows the workload's agents: the container is taken from one of them, and from another
    /// when its pod goes.
    async fn agents(&mut self, session: &SessionInfo) -> FollowEnd {
        let deadline = Instant::now() + Duration::from_secs(self.flags.timeout);
        let mut snapshots = match self.manager.watch_agents(session.clone()).await {
            Ok(snapshots) => snapshots.into_inner(),
            Err(status) => return FollowEnd::Lost(status),
        };
        loop {
            let snapshot = tokio::select! {
                snapshot = snapshots.message() => snapshot,
                () = sleep_until(deadline), if self.pod.is_empty() => {
                    return FollowEnd::Failed(self.no_agent());
                }
                failure = self.container.ended() => return FollowEnd::Failed(failure),
            };
            let agents = match snapshot {
                Ok(Some(snapshot)) => snapshot.agents,
                Ok(None) => return FollowEnd::Lost(Status::unavailable("the session has ended")),
                Err(status) => return FollowEnd::Lost(status),
            };
            if let Err(failure) = self.take_from(agents, session).await {
                return FollowEnd::Failed(failure);
            }
        }
    }

    async fn take_from(
        &mut self,
        agents: Vec<AgentInfo>,
        session: &SessionInfo,
    ) -> Result<(), Failure> {
        let Some(agent) = self.chosen(agents) else {
            return Ok(());
        };
        let (name, container) = self.container_of(&agent)?;
        let facts = Facts::of(&agent, container);
        let manager = self.manager.clone();
        // The environment was handed out once and stays; files come from where the pod is now.
        if !self.pod.is_empty() {
            self.container.follow(manager, session, &facts);
            self.pod.clone_from(&agent.pod_name);
            return Ok(());
        }
        let flags = &self.flags.container;
        self.container
            .begin(flags, manager, session, &facts)
            .await?;
        self.pod.clone_from(&agent.pod_name);
        let workload = &self.flags.workload;
        event(&Pairs(&[
            ("state", "ACTIVE"),
            ("ingest", workload),
            ("container", name),
            ("pod", &self.pod),
        ]));
        line(format_args!(
            "Ingesting {workload}: environment and volumes of container {name}; its traffic stays \
             with the app. Press Ctrl-C to leave."
        ));
        Ok(())
    }

    /// Chooses an agent of the workload: the one of before, or the first by name.
    fn chosen(&self, agents: Vec<AgentInfo>) -> Option<AgentInfo> {
        let ours = |agent: &AgentInfo| {
            agent.name == self.flags.workload && agent.namespace == self.client.namespace
        };
        let ours = agents.into_iter().filter(ours);
        ours.min_by_key(|agent| (agent.pod_name != self.pod, agent.pod_name.clone()))
    }

    fn container_of<'b>(
        &self,
        agent: &'b AgentInfo,
    ) -> Result<(&'b String, &'b ContainerInfo), Failure> {
        let mut names: Vec<_> = agent.containers.keys().map(String::as_str).collect();
        names.sort_unstable();
        let (workload, names) = (&self.flags.workload, names.join(", "));
        let wanted = self.flags.container_name.as_ref();
        let mut found = agent.containers.iter();
        let mut found = found
            .by_ref()
            .filter(|(name, _)| wanted.is_none_or(|wanted| wanted == *name));
        match (found.next(), found.next(), wanted) {
            (Some(container), None, _) => Ok(container),
            (Some(_), Some(_), _) => Err(Failure::Usage(format!(
                "the pods of {workload:?} have several containers: {names}; choose one with \
                 --container"
            ))),
            (None, _, Some(wanted)) if !names.is_empty() => Err(Failure::Usage(format!(
                "--container {wanted}: the pods of {workload:?} have no such container, but: {names}"
            ))),
            (None, ..) => Err(Failure::Failed(format!(
                "the agent of {workload:?} ({} {}) says nothing about containers; Telepresence \
                 2.21 is the first whose agents do",
                agent.product, agent.version
            ))),
        }
    }

    fn no_agent(&self) -> Failure {
        Failure::Failed(format!(
            "no agent of {:?} has arrived in namespace {:?} within {} s; `intercept check` looks \
             for the cause, --timeout waits longer",
            self.flags.workload, self.client.namespace, self.flags.timeout
        ))
    }
}
