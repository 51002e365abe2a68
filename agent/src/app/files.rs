//! Start of the file service, where a container has volumes that workstations may mount.

use std::path::Path;

use traffic_proto::sidecar::{Container, MountPolicy};

use crate::app::listeners::bind_families;
use crate::app::settings::{Bind, Settings};
use crate::control::container_env;
use crate::drain::Drain;
use crate::files::export::{ContainerVolumes, EXPORTS, Exports};
use crate::files::server;

/// The file service as workstations are told of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FileService {
    /// Port of the SFTP server; 0 where no volume is offered.
    pub(crate) sftp_port: u16,
}

impl FileService {
    /// Starts the servers on the current runtime. Without volumes, or where they cannot be offered,
    /// nothing is served and the log says why.
    pub(crate) fn start(settings: &Settings, tasks: &Drain) -> Self {
        let volumes: Vec<_> = settings
            .sidecar
            .containers
            .iter()
            .filter_map(|container| volumes(settings, container))
            .collect();
        if volumes.is_empty() {
            return Self::default();
        }
        let secrets = settings.rooted("/var/run/secrets");
        let exports = match Exports::open(&volumes, &secrets) {
            Ok(exports) => exports,
            Err(error) => {
                tracing::warn!(
                    %error,
                    "volumes are not offered to workstations: a mount point cannot be opened, or \
                     the node's kernel is older than Linux 5.6 (openat2)"
                );
                return Self::default();
            }
        };
        // On every address: a workstation's connection is dialled to the pod's own address. Peers
        // outside the pod are refused.
        let bound = bind_families(Bind::All, 0).and_then(|bound| {
            let listeners = bound.listeners.into_iter();
            let listeners: Result<Vec<_>, _> =
                listeners.map(tokio::net::TcpListener::from_std).collect();
            Ok((bound.port, listeners?))
        });
        match bound {
            Ok((sftp_port, listeners)) => {
                server::serve(listeners, exports, tasks);
                Self { sftp_port }
            }
            Err(error) => {
                tracing::warn!(%error, "volumes are not offered to workstations: no port is free");
                Self::default()
            }
        }
    }

    /// Directory at which a client finds the volumes of a container; empty without any.
    pub(crate) fn mount_point(&self, settings: &Settings, container: &str) -> String {
        let containers = &settings.sidecar.containers;
        let found = containers.iter().find(|c| c.name == container);
        match found.and_then(|c| volumes(settings, c)) {
            Some(volumes) if self.sftp_port != 0 => format!("{EXPORTS}/{}", volumes.name),
            _ => String::new(),
        }
    }
}

fn volumes(settings: &Settings, container: &Container) -> Option<ContainerVolumes> {
    let mounts = container_env::mounts(container, &settings.environment);
    let remote = [MountPolicy::Remote, MountPolicy::RemoteReadonly];
    let offered = mounts.iter().any(|(_, policy)| remote.contains(policy));
    let name = Path::new(&container.mount_point).file_name()?;
    offered.then(|| ContainerVolumes {
        name: name.to_string_lossy().into_owned(),
        mount_point: settings.rooted(&container.mount_point),
        mounts,
    })
}
