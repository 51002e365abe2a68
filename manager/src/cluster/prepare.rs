//! Intercepts of a client, resolved against the workload before they are created.

use traffic_proto::manager::{AgentInfo, InterceptSpec, PreparedIntercept};

use super::Cluster;
use super::ensure::{Chosen, ChosenPorts, Ensured};
use crate::error::RequestError;

impl Cluster {
    /// Agents of a workload for a client that asks for them.
    pub(crate) async fn ensure_agents(
        &self,
        name: &str,
        namespace: &str,
    ) -> Result<Vec<AgentInfo>, RequestError> {
        Ok(self.ensure(name, namespace).await?.agents)
    }

    /// Result of an intercept's preparation, once its workload has agents.
    pub(crate) async fn prepare(
        &self,
        id: &str,
        spec: &InterceptSpec,
    ) -> Result<PreparedIntercept, RequestError> {
        self.admits(spec)?;
        let (ensured, chosen) = self.ensure_for(id, spec).await?;
        check_mechanism(spec, &ensured)?;
        Ok(prepared(spec, &ensured, chosen, self.agent_image()))
    }

    /// The same for an intercept that is being created, whose port may still be open.
    pub(crate) async fn complete(
        &self,
        id: &str,
        spec: &mut InterceptSpec,
    ) -> Result<(), RequestError> {
        self.admits(spec)?;
        let (ensured, chosen) = self.ensure_for(id, spec).await?;
        if spec.workload_kind.is_empty() {
            spec.workload_kind = ensured.config.workload_kind.clone();
        }
        spec.pod_ports = chosen.further;
        let Some(Chosen { container, entry }) = chosen.main else {
            return Ok(());
        };
        if spec.container_port == 0 {
            spec.container_port = entry.container_port.into();
            spec.protocol = entry.protocol.to_string();
        }
        if spec.container_name.is_empty() {
            spec.container_name = container;
        }
        if spec.service_uid.is_empty() && !entry.service_name.is_empty() {
            spec.service_uid = entry.service_uid;
            spec.service_name = entry.service_name;
            spec.service_port = entry.service_port.into();
            // From here on an identifier means a port of the Service.
            spec.port_identifier = match entry.service_port_name.as_str() {
                "" => format!("{}/{}", entry.service_port, entry.protocol),
                name => format!("{name}/{}", entry.protocol),
            };
            spec.service_port_name = entry.service_port_name;
        }
        Ok(())
    }

    /// The operator may forbid intercepts of a whole port.
    fn admits(&self, spec: &InterceptSpec) -> Result<(), RequestError> {
        let filtered = !spec.header_filters.is_empty()
            || !spec.path_filters.is_empty()
            || !spec.mechanism_args.is_empty();
        if self.settings.allow_global || filtered || spec.wiretap {
            return Ok(());
        }
        Err(RequestError::Failed(
            "intercepts of a whole port are not allowed (set by the chart value \
             intercept.allowGlobalIntercepts); add --http-header NAME=VALUE"
                .to_owned(),
        ))
    }
}

fn check_mechanism(spec: &InterceptSpec, ensured: &Ensured) -> Result<(), RequestError> {
    let Some(agent) = ensured.agents.first() else {
        return Ok(());
    };
    let mut known = agent.mechanisms.iter().map(|it| it.name.as_str());
    if known.any(|it| it == spec.mechanism) {
        return Ok(());
    }
    Err(RequestError::Failed(format!(
        "the agent of {} {:?} has no mechanism {:?}",
        ensured.workload.kind, spec.agent, spec.mechanism
    )))
}

fn prepared(
    spec: &InterceptSpec,
    ensured: &Ensured,
    chosen: ChosenPorts,
    agent_image: String,
) -> PreparedIntercept {
    let mut prepared = PreparedIntercept {
        namespace: spec.namespace.clone(),
        workload_kind: ensured.config.workload_kind.clone(),
        agent_image,
        pod_ports: chosen.further,
        ..PreparedIntercept::default()
    };
    if let Some(Chosen { container, entry }) = &chosen.main {
        prepared.service_uid = entry.service_uid.clone();
        prepared.service_name = entry.service_name.clone();
        prepared.service_port_name = entry.service_port_name.clone();
        prepared.service_port = entry.service_port.into();
        prepared.protocol = entry.protocol.to_string();
        prepared.container_name = container.clone();
        prepared.container_port = entry.container_port.into();
    }
    prepared
}
