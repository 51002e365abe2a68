//! What a caller may do with sessions and workloads.

use tonic::Status;
use traffic_proto::manager::{InterceptInfo, InterceptSpec, SessionInfo};

use super::{Service, id};
use crate::callers::Caller;
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
        self.shared.read(|registry| {
            let found = registry.sessions.get(session)?;
            caller.owns(found, session)
        })
    }

    /// Returns true if an agent asks whether a client has this session: its own port serves no other.
    pub(super) fn is_question(&self, caller: &Caller, session: &str) -> bool {
        self.shared.read(|registry| {
            let is_client = registry.sessions.client(session).is_ok();
            is_client && caller.is_proved_agent()
        })
    }

    /// Checks that a session is the caller's own, if there is one.
    pub(super) fn own_or_new(&self, caller: &Caller, session: &str) -> Result<(), Status> {
        self.shared
            .read(|registry| match registry.sessions.get(session) {
                Ok(found) => caller.owns(found, session),
                Err(_) => Ok(()),
            })
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
