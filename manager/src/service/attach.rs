//! Agents and intercepts that clients ask for.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::{Request, Response, Status};
use traffic_proto::manager as pb;

use super::prepared::{no_agent, prepare, refused};
use super::{Answer, Service, agent_snapshot, id, unimplemented};
use crate::callers::Caller;
use crate::error::RequestError;
use crate::intercepts;
use crate::presence::VANISH_TIMEOUT;

/// How often to look whether an earlier run gives a sign of life.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

impl Service {
    pub(super) async fn agents_of(
        &self,
        request: Request<pb::EnsureAgentRequest>,
    ) -> Answer<pb::AgentInfoSnapshot> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let session = self.own_id(&caller, request.session)?;
        let own = self.shared.read(|registry| {
            registry
                .sessions
                .client(&session)
                .map(|it| it.namespace.clone())
        })?;
        let namespace = if request.namespace.is_empty() {
            own
        } else {
            request.namespace
        };
        self.may_ingest(&caller, &namespace, &request.name).await?;
        if let Some(cluster) = &self.cluster {
            let agents = cluster.ensure_agents(&request.name, &namespace).await?;
            return Ok(Response::new(agent_snapshot(agents)));
        }
        let agents = self.arrived(&request.name, &namespace).await;
        if agents.is_empty() {
            return Err(Status::not_found(no_agent(&request.name, &namespace)));
        }
        Ok(Response::new(agent_snapshot(agents)))
    }

    pub(super) async fn remove_agents(
        &self,
        request: Request<pb::UninstallAgentsRequest>,
    ) -> Answer<()> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let session = self.own_id(&caller, request.session_info)?;
        let namespace = self.shared.read(|registry| {
            let client = registry.sessions.client(&session);
            client.map(|it| it.namespace.clone())
        })?;
        let Some(cluster) = &self.cluster else {
            return unimplemented("cluster: it puts no agents into pods");
        };
        self.may_remove(&caller, &namespace, &request.agents)
            .await?;
        cluster.remove_agents(&namespace, &request.agents).await?;
        Ok(Response::new(()))
    }

    pub(super) async fn prepare(
        &self,
        request: Request<pb::CreateInterceptRequest>,
    ) -> Answer<pb::PreparedIntercept> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let session = self.own_id(&caller, request.session)?;
        self.shared
            .read(|registry| registry.sessions.client(&session).map(|_| ()))?;
        let spec = request.intercept_spec.unwrap_or_default();
        self.may_intercept(&caller, &spec).await?;
        if let Some(cluster) = &self.cluster {
            let id = intercepts::id(&session, &spec.name);
            let prepared = cluster.prepare(&id, &spec).await;
            return Ok(Response::new(
                prepared.unwrap_or_else(|refusal| refused(refusal.to_string())),
            ));
        }
        let agents = self.arrived(&spec.agent, &spec.namespace).await;
        Ok(Response::new(prepare(
            &spec,
            &agents,
            &self.settings.agent_image,
        )))
    }

    pub(super) async fn create(
        &self,
        request: Request<pb::CreateInterceptRequest>,
    ) -> Answer<pb::InterceptInfo> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let session = request.session.unwrap_or_default();
        self.own(&caller, &session.session_id)?;
        let mut spec = request.intercept_spec.unwrap_or_default();
        self.may_intercept(&caller, &spec).await?;
        if let Some(cluster) = &self.cluster {
            let client = &session.session_id;
            self.shared
                .read(|registry| registry.sessions.client(client).map(|_| ()))?;
            let id = intercepts::id(client, &spec.name);
            cluster.complete(&id, &mut spec).await?;
        }
        self.await_earlier_run(&session, &spec).await;
        let id = intercepts::id(&session.session_id, &spec.name);
        let created = self
            .shared
            .change(|registry| registry.create(&session, spec));
        // Whatever came of it: what the workload is to be depends on the intercepts there are.
        if let Some(cluster) = &self.cluster {
            cluster.settle(&id);
        }
        let info = created?;
        tracing::info!(
            intercept = info.id,
            disposition = info.disposition().as_str_name(),
            "intercept created"
        );
        Ok(Response::new(info))
    }

    /// Waits while an earlier run of the same user may have vanished without a word: its network
    /// was cut, say. It shows by its next heartbeat, or by the end of its connection, which makes
    /// it give way.
    async fn await_earlier_run(&self, session: &pb::SessionInfo, spec: &pb::InterceptSpec) {
        let look = || self.shared.read(|all| all.earlier_run(session, spec));
        let Some(first) = look() else { return };
        let deadline = Instant::now() + VANISH_TIMEOUT;
        while Instant::now() < deadline {
            sleep(LOOK_INTERVAL).await;
            if look().as_ref() != Some(&first) {
                return;
            }
        }
    }

    pub(super) async fn remove(&self, request: Request<pb::RemoveInterceptRequest2>) -> Answer<()> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let session = id(request.session);
        self.may_leave(&caller, &session)?;
        self.shared
            .read(|registry| registry.sessions.client(&session).map(|_| ()))?;
        if !self
            .shared
            .change(|registry| registry.intercepts.remove(&session, &request.name))
        {
            return Err(RequestError::no_intercept(&request.name).into());
        }
        tracing::info!(session, name = request.name, "intercept removed");
        Ok(Response::new(()))
    }
}
