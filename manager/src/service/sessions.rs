//! Sessions that begin, come back and end.

use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use traffic_proto::manager as pb;
use traffic_proto::session_key;

use super::{Answer, Service, id};
use crate::callers::Caller;
use crate::rights::Right;

impl Service {
    pub(super) async fn client_arrives(
        &self,
        request: Request<pb::ClientInfo>,
    ) -> Answer<pb::SessionInfo> {
        let caller = Caller::of(&request);
        caller.may(Right::connect()).await?;
        let keyed = self.keyed_id(&caller, request.metadata())?;
        let client = request.into_inner();
        let name = client.name.clone();
        let session = self.shared.change(|registry| {
            let arrived = registry.arrive_as_client(client, keyed, Instant::now());
            arrived.inspect(|it| {
                registry
                    .sessions
                    .belongs_to(&it.session_id, caller.identity())
            })
        })?;
        tracing::info!(
            client = name,
            session = session.session_id,
            "client arrived"
        );
        Ok(Response::new(session))
    }

    /// Returns the id of a session for the key that a client announces, once he has proved that it
    /// is his; none if he announces none.
    fn keyed_id(&self, caller: &Caller, metadata: &MetadataMap) -> Result<Option<String>, Status> {
        let Some(key) = metadata.get_bin(session_key::KEY) else {
            return Ok(None);
        };
        let key = key.to_bytes().unwrap_or_default();
        let id = session_key::id_of(&key).ok_or_else(|| {
            Status::invalid_argument(format!(
                "{} is not the public half of an Ed25519 key, which has 32 bytes: update the client",
                session_key::KEY
            ))
        })?;
        self.shared.proofs.check(&id, caller.proof())?;
        Ok(Some(id))
    }

    pub(super) async fn agent_arrives(
        &self,
        request: Request<pb::AgentInfo>,
    ) -> Answer<pb::SessionInfo> {
        let caller = Caller::of(&request);
        let agent = request.into_inner();
        caller.is_agent(&agent)?;
        let (name, pod) = (agent.name.clone(), agent.pod_name.clone());
        let session = self.shared.change(|registry| {
            let arrived = registry.arrive_as_agent(agent, Instant::now());
            arrived.inspect(|it| {
                registry
                    .sessions
                    .belongs_to(&it.session_id, caller.identity())
            })
        })?;
        tracing::info!(
            workload = name,
            pod,
            session = session.session_id,
            "agent arrived"
        );
        Ok(Response::new(session))
    }

    pub(super) async fn agent_comes_back(
        &self,
        request: Request<pb::ReconnectAgentRequest>,
    ) -> Answer<()> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let session = id(request.session.clone());
        caller.is_agent(&request.agent.clone().unwrap_or_default())?;
        self.own_or_new(&caller, &session)?;
        tracing::info!(session, "agent is back");
        self.shared.change(|registry| {
            let back = registry.reconnect_agent(request, Instant::now());
            back.inspect(|()| registry.sessions.belongs_to(&session, caller.identity()))
        })?;
        Ok(Response::new(()))
    }

    pub(super) async fn client_comes_back(
        &self,
        request: Request<pb::ReconnectClientRequest>,
    ) -> Answer<()> {
        let caller = Caller::of(&request);
        caller.may(Right::connect()).await?;
        let request = request.into_inner();
        let session = id(request.session.clone());
        self.own_or_new(&caller, &session)?;
        self.may_restore(&caller, &request.intercepts).await?;
        tracing::info!(session, "client is back");
        self.shared.change(|registry| {
            let back = registry.reconnect_client(request, Instant::now());
            back.inspect(|()| registry.sessions.belongs_to(&session, caller.identity()))
        })?;
        // A client counts as away until its first watch: if it is killed before, no watch ends that
        // would tell.
        drop(self.presence(&session));
        Ok(Response::new(()))
    }
}
