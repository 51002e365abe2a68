//! An intercept as the manager shows it, less what no agent needs: a message's fields for other
//! readers, and its maps, take 1.2 kB of each, and an agent keeps every one that is shown.

use std::collections::BTreeMap;
use std::time::SystemTime;

use traffic_proto::manager::{
    InterceptDispositionType as Disposition, InterceptInfo, InterceptSpec, SessionInfo,
};

/// An intercept of a snapshot.
#[derive(Debug)]
pub struct Shown {
    pub(crate) id: String,
    disposition: Disposition,
    pub(crate) message: String,
    /// Session of its owner.
    pub(crate) owner: String,
    pub(crate) created: Option<SystemTime>,
    pub(crate) spec: Option<ShownSpec>,
}

/// What its owner wants; the names are the wire's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ShownSpec {
    pub(crate) name: String,
    pub(crate) client: String,
    pub(crate) agent: String,
    pub(crate) namespace: String,
    pub(crate) mechanism: String,
    pub(crate) mechanism_args: Vec<String>,
    pub(crate) target_host: String,
    pub(crate) target_port: i32,
    pub(crate) port_identifier: String,
    pub(crate) service_uid: String,
    pub(crate) service_name: String,
    pub(crate) protocol: String,
    pub(crate) container_port: i32,
    pub(crate) container_name: String,
    pub(crate) pod_ports: Vec<String>,
    pub(crate) no_default_port: bool,
    pub(crate) roundtrip_latency: i64,
    pub(crate) dial_timeout: i64,
    pub(crate) wiretap: bool,
    pub(crate) plaintext: bool,
    /// In the order of their names.
    pub(crate) header_filters: Vec<(String, String)>,
    pub(crate) path_filters: Vec<String>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Shown {
    pub(crate) fn disposition(&self) -> Disposition {
        self.disposition
    }
}

impl From<InterceptInfo> for Shown {
    fn from(info: InterceptInfo) -> Self {
        let disposition = info.disposition();
        Self {
            owner: owner(&info.id, info.client_session),
            id: info.id,
            disposition,
            message: info.message,
            created: info.created_at.and_then(|at| at.try_into().ok()),
            spec: info.spec.map(ShownSpec::from),
        }
    }
}

/// The owner's session; ids begin with it if the field is missing.
fn owner(id: &str, session: Option<SessionInfo>) -> String {
    match session {
        Some(session) if !session.session_id.is_empty() => session.session_id,
        _ => id.split_once(':').map_or("", |(owner, _)| owner).to_owned(),
    }
}

impl From<InterceptSpec> for ShownSpec {
    fn from(spec: InterceptSpec) -> Self {
        Self {
            name: spec.name,
            client: spec.client,
            agent: spec.agent,
            namespace: spec.namespace,
            mechanism: spec.mechanism,
            mechanism_args: spec.mechanism_args,
            target_host: spec.target_host,
            target_port: spec.target_port,
            port_identifier: spec.port_identifier,
            service_uid: spec.service_uid,
            service_name: spec.service_name,
            protocol: spec.protocol,
            container_port: spec.container_port,
            container_name: spec.container_name,
            pod_ports: spec.pod_ports,
            no_default_port: spec.no_default_port,
            roundtrip_latency: spec.roundtrip_latency,
            dial_timeout: spec.dial_timeout,
            wiretap: spec.wiretap,
            plaintext: spec.plaintext,
            header_filters: spec.header_filters.into_iter().collect(),
            path_filters: spec.path_filters,
            metadata: spec.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_named_by_the_session_or_by_the_id() {
        let session = |id: &str| {
            Some(SessionInfo {
                session_id: id.to_owned(),
                ..SessionInfo::default()
            })
        };
        for (id, session, named) in [
            ("a:web", session("b"), "b"),
            ("a:web", session(""), "a"),
            ("a:web", None, "a"),
            ("web", None, ""),
        ] {
            assert_eq!(owner(id, session), named);
        }
    }

    #[test]
    fn what_is_kept_of_an_intercept_is_small() {
        assert!(size_of::<Shown>() <= 640, "{}", size_of::<Shown>());
        assert!(size_of::<InterceptInfo>() > size_of::<Shown>() + 400);
    }
}
