//! What a caller may do with sessions and workloads.

use tonic::Status;
use traffic_proto::manager::{InterceptInfo, InterceptSpec, SessionInfo};
use traffic_proto::session_key::{self, Peer};

use super::{Service, id};
use crate::callers::Caller;
use crate::registry::Registry;
use crate::rights::Right;

impl Service {
    /// Returns the id of a caller's own session; unknown ones are told later.
    pub(super) fn own_id(
        &self,
        caller: &Caller,
        session: Option<SessionInfo>,
    ) -> Result<String, Status> {
        let session = id(session);
        self.own(caller, &session)?;
        Ok(session)
    }

    /// Checks that a session is the caller's own.
    pub(super) fn own(&self, caller: &Caller, session: &str) -> Result<(), Status> {
        caller.owned(&self.shared, session, |_| ())
    }

    /// Returns true if an agent asks whether a client has this session: its own port serves no
    /// other.
    pub(super) fn is_question(&self, caller: &Caller, session: &str) -> bool {
        // An agent has no client's key, so who brings none to a session with one only asks.
        let only_asks = session_key::is_keyed(session) && caller.proof().is_none();
        let is_agent = caller.is_proved_agent() || only_asks && caller.may_ask();
        let is_client = |registry: &Registry| registry.sessions.client(session).is_ok();
        is_agent && self.shared.read(is_client)
    }

    /// Checks that a session is the caller's own, if there is one, or may become his own.
    pub(super) fn own_or_new(&self, caller: &Caller, session: &str) -> Result<(), Status> {
        self.shared
            .read(|registry| match registry.sessions.get(session) {
                Ok(found) => caller.owns(found, session),
                Err(_) => Ok(()),
            })?;
        Ok(self.shared.proofs.check(session, caller.proof())?)
    }

    /// Checks that the caller may end intercepts of a session: it is his own, or of another program
    /// of his, which he shows by a proof for this alone or by being the same user. Those of a
    /// client that is away anybody may end, as the next run of its user takes them over.
    pub(super) fn may_leave(&self, caller: &Caller, session: &str) -> Result<(), Status> {
        let may = self.shared.read(|registry| {
            let found = registry.sessions.get(session)?;
            caller.owns(found, session)?;
            let is_absent = registry.sessions.is_absent(session);
            Ok::<_, Status>(is_absent || caller.began(found))
        })?;
        let proof = caller.proof();
        let leaves = || session_key::check(&Peer::manager_to_leave(), session, proof).is_ok();
        if may || leaves() || self.shared.proofs.check(session, proof).is_ok() {
            return Ok(());
        }
        Err(Status::permission_denied(
            "the session has a key, and the caller shows neither that nor that he is the user who began \
             it: run intercept leave on the machine where the intercept runs, as the same user, or end \
             its program",
        ))
    }

    /// Checks that the caller may intercept what a spec says.
    pub(super) async fn may_intercept(
        &self,
        caller: &Caller,
        spec: &InterceptSpec,
    ) -> Result<(), Status> {
        let InterceptSpec {
            workload_kind,
            namespace,
            agent,
            ..
        } = spec;
        self.may_attach(caller, "create", workload_kind, namespace, agent)
            .await
    }

    /// Checks that the caller may have what a workload's agents say of their containers.
    pub(super) async fn may_ingest(
        &self,
        caller: &Caller,
        namespace: &str,
        name: &str,
    ) -> Result<(), Status> {
        self.may_attach(caller, "get", "", namespace, name).await
    }

    /// Checks that the caller may have intercepts that an earlier manager held.
    pub(super) async fn may_restore(
        &self,
        caller: &Caller,
        intercepts: &[InterceptInfo],
    ) -> Result<(), Status> {
        for spec in intercepts.iter().filter_map(|it| it.spec.as_ref()) {
            self.may_intercept(caller, spec).await?;
        }
        Ok(())
    }

    /// Checks that the caller may take agents out of pods; no names are all of the namespace.
    pub(super) async fn may_remove(
        &self,
        caller: &Caller,
        namespace: &str,
        names: &[String],
    ) -> Result<(), Status> {
        if names.is_empty() {
            let all = Right::attach("delete", "", namespace, "");
            return caller.may(all).await;
        }
        for name in names {
            self.may_attach(caller, "delete", "", namespace, name)
                .await?;
        }
        Ok(())
    }

    async fn may_attach(
        &self,
        caller: &Caller,
        verb: &'static str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<(), Status> {
        let Some(cluster) = self.cluster.as_ref().filter(|_| caller.is_asked()) else {
            return Ok(());
        };
        let kind = cluster.kind_of(name, namespace, kind).await;
        caller
            .may(Right::attach(verb, &kind, namespace, name))
            .await
    }
}
