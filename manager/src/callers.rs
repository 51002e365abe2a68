//! Callers of the API: what they have proved to be, and what that lets them do.
//!
//! Without a gate everybody is who he says. With one, a call carries the caller's proof, a session
//! belongs to the party that began it, and rights are asked of the API server. A permissive gate
//! only says what an enforcing one would refuse. A session that has a key is held to it in any
//! case.

use std::sync::Arc;

use bytes::Bytes;
use tonic::{Request, Status};
use traffic_proto::manager::AgentInfo;
use traffic_proto::session_key;

use crate::cluster::gate::Gate;
use crate::identity::{Credential, Identity};
use crate::registry::Shared;
use crate::rights::Right;
use crate::sessions::Session;

const NO_CREDENTIAL: &str = "this traffic-manager asks callers who they are \
    (security.authentication.mode) and the call carries neither a token nor a client certificate: use \
    our client with a kubeconfig whose user has one (stock clients up to 2.30 send none); for an \
    agent, restart its pod, so that it gets a token";

/// The caller of one call.
#[derive(Clone, Default)]
pub(crate) struct Caller {
    /// None: nobody is asked for a proof.
    gate: Option<Arc<Gate>>,
    /// None: he has not proved anything, which a permissive gate lets pass.
    identity: Option<Arc<Identity>>,
    /// Proof that the session he names is his own, as yet unchecked.
    proof: Option<Bytes>,
}

impl Caller {
    /// Finds out who calls with this credential.
    ///
    /// # Errors
    /// He has to prove it and has not.
    pub(crate) async fn with(
        gate: Arc<Gate>,
        credential: Option<Credential<'_>>,
    ) -> Result<Self, Status> {
        let identified = match credential {
            Some(credential) => gate.identify(credential).await,
            None => Err(Status::unauthenticated(NO_CREDENTIAL)),
        };
        let identity = match identified {
            Ok(identity) => Some(identity),
            Err(status) => {
                gate.refuse(status)?;
                None
            }
        };
        Ok(Self {
            gate: Some(gate),
            identity,
            proof: None,
        })
    }

    /// Returns that of a call.
    pub(crate) fn of<T>(request: &Request<T>) -> Self {
        let caller = request.extensions().get().cloned();
        Self {
            proof: session_key::given(request.metadata()),
            ..caller.unwrap_or_default()
        }
    }

    /// Returns the proof that the session he names is his own, as yet unchecked.
    pub(crate) fn proof(&self) -> Option<&[u8]> {
        self.proof.as_deref()
    }

    /// Returns true if a proof is wanted of him.
    pub(crate) fn is_asked(&self) -> bool {
        self.gate.is_some()
    }

    /// Returns what is known of him.
    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.clone()
    }

    /// Returns true if he has proved to be some agent.
    pub(crate) fn is_proved_agent(&self) -> bool {
        self.identity.as_ref().is_some_and(|it| it.is_agent)
    }

    /// Returns true if he may ask whether a session is there that is not his own: agents do, and
    /// those that have no token can't be told from others.
    pub(crate) fn may_ask(&self) -> bool {
        let is_enforcing = self.gate.as_ref().is_some_and(|gate| gate.is_enforcing());
        self.is_proved_agent() || !is_enforcing
    }

    /// Returns true if he has proved to be the party that began a session.
    pub(crate) fn began(&self, session: &Session) -> bool {
        match (&session.owner, &self.identity) {
            (Some(owner), Some(caller)) => owner.is_same(caller),
            _ => false,
        }
    }

    /// Checks that he is the agent that he says to be.
    pub(crate) fn is_agent(&self, agent: &AgentInfo) -> Result<(), Status> {
        let Some(gate) = &self.gate else {
            return Ok(());
        };
        let why = match &self.identity {
            Some(identity) => identity.differs_from(agent),
            None => Some("it has no token".to_owned()),
        };
        let Some(why) = why else { return Ok(()) };
        gate.refuse(Status::permission_denied(format!(
            "agent of pod {} in namespace {} refused: {why}; restart the pod, so that it gets a new \
             token",
            agent.pod_name, agent.namespace
        )))
    }

    /// Checks that a session is his own. Ids of sessions are no secret: other clients and agents
    /// see them.
    pub(crate) fn owns(&self, session: &Session, id: &str) -> Result<(), Status> {
        let Some(gate) = &self.gate else {
            return Ok(());
        };
        let is_nobodys = session.owner.is_none() && self.identity.is_none();
        if self.began(session) || is_nobodys && !gate.is_enforcing() {
            return Ok(());
        }
        gate.refuse(Status::permission_denied(format!(
            "session {id:?} was not begun by {}; arrive with a session of your own",
            self.name()
        )))
    }

    /// Returns what `look` sees of a session that he has shown to be his own.
    pub(crate) fn owned<R>(
        &self,
        shared: &Shared,
        id: &str,
        look: impl FnOnce(&Session) -> R,
    ) -> Result<R, Status> {
        let seen = shared.read(|registry| {
            let found = registry.sessions.get(id)?;
            self.owns(found, id)?;
            Ok::<_, Status>(look(found))
        })?;
        // Without the lock, since it takes longer. One that is not known at all has been told so.
        shared.proofs.check(id, self.proof())?;
        Ok(seen)
    }

    /// Checks that he is a user and may do something.
    pub(crate) async fn may(&self, right: Right) -> Result<(), Status> {
        let Some(gate) = &self.gate else {
            return Ok(());
        };
        let Some(identity) = &self.identity else {
            // It has been said, or refused, at the gate.
            return Ok(());
        };
        if identity.is_agent {
            return gate.refuse(Status::permission_denied(format!(
                "{} is an agent and may not {right}",
                self.name()
            )));
        }
        gate.may(identity, right).await
    }

    fn name(&self) -> String {
        match &self.identity {
            Some(identity) => format!("user {:?}", identity.user),
            None => "a caller without a credential".to_owned(),
        }
    }
}
