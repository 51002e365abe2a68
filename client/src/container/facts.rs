//! Facts about a container: from an active intercept, or from an agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use traffic_proto::manager::agent_info::ContainerInfo;
use traffic_proto::manager::{AgentInfo, InterceptInfo};

use crate::mount::link::Files;

/// What is known of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Name of what this machine has it by: the intercept's, or the workload's.
    pub(crate) name: String,
    /// Id of the intercept, if there is one.
    pub(crate) intercept: Option<String>,
    /// Variables of the container.
    pub(crate) environment: BTreeMap<String, String>,
    /// Where its volumes are offered; `None` if there are none.
    pub(crate) files: Option<Files>,
    /// The volumes are for reading only.
    pub(crate) is_read_only: bool,
}

impl From<&InterceptInfo> for Facts {
    fn from(info: &InterceptInfo) -> Self {
        let spec = info.spec.as_ref();
        Self {
            name: spec.map_or_else(String::new, |spec| spec.name.clone()),
            intercept: Some(info.id.clone()),
            environment: info.environment.clone(),
            files: files(&info.pod_ip, info.sftp_port, &info.mount_point),
            is_read_only: spec.is_some_and(|spec| spec.wiretap),
        }
    }
}

impl Facts {
    /// Returns the facts about a container of an agent's pod.
    pub(crate) fn of(agent: &AgentInfo, container: &ContainerInfo) -> Self {
        Self {
            name: agent.name.clone(),
            intercept: None,
            environment: container.environment.clone(),
            files: files(&agent.pod_ip, agent.sftp_port, &container.mount_point),
            is_read_only: false,
        }
    }
}

fn files(pod: &str, port: i32, folder: &str) -> Option<Files> {
    let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
    let ip: IpAddr = pod.parse().ok()?;
    (!folder.is_empty()).then(|| Files {
        address: SocketAddr::new(ip, port),
        folder: folder.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_file_service_there_is_nothing_to_mount() {
        let folder = "/tel_app_exports/app";
        let found = files("10.1.2.3", 4022, folder).unwrap();
        assert_eq!(found.address, ([10, 1, 2, 3], 4022).into());
        assert!(files("fd00::1", 4022, folder).is_some());
        for (pod, port, folder) in [
            ("10.1.2.3", 0, folder),
            ("10.1.2.3", 70_000, folder),
            ("web", 4022, folder),
            ("10.1.2.3", 4022, ""),
        ] {
            assert_eq!(files(pod, port, folder), None, "{pod} {port} {folder}");
        }
    }
}
