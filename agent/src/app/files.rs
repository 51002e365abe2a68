//! Start of the file service, where a container has volumes that workstations may mount.

use std::path::Path;
use std::sync::Arc;

use traffic_proto::sidecar::{Container, MountPolicy};

use crate::app::listeners::bind_families;
use crate::app::settings::{Bind, Settings};
use crate::control::container_env;
use crate::drain::Drain;
use crate::files::export::{ContainerVolumes, EXPORTS, Exports};
use crate::files::server::{self, FileProtocol};

/// The file service as workstations are told of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FileService {
    /// Port of the SFTP server; 0 where no volume is offered.
    pub(crate) sftp_port: u16,
    /// Port of the FTP server; 0 where no volume is offered.
    pub(crate) ftp_port: u16,
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
        let exports = Arc::new(exports);
        Self {
            sftp_port: serve(FileProtocol::SFTP, &exports, tasks),
            ftp_port: serve(FileProtocol::FTP, &exports, tasks),
        }
    }

    /// Directory at which a client finds the volumes of a container; empty without any.
    pub(crate) fn mount_point(&self, settings: &Settings, container: &str) -> String {
        let containers = &settings.sidecar.containers;
        let found = containers.iter().find(|c| c.name == container);
        match found.and_then(|c| volumes(settings, c)) {
            Some(volumes) if self.sftp_port != 0 || self.ftp_port != 0 => {
                format!("{EXPORTS}/{}", volumes.name)
            }
            _ => String::new(),
        }
    }
}

/// Starts one server on a free port and returns the port; 0 if there is none.
fn serve(protocol: FileProtocol, exports: &Arc<Exports>, tasks: &Drain) -> u16 {
    // On every address: a workstation's connection is dialled to the pod's own address. Peers
    // outside the pod are refused.
    let bound = bind_families(Bind::All, 0).and_then(|bound| {
        let listeners = bound.listeners.into_iter();
        let listeners: Result<Vec<_>, _> =
            listeners.map(tokio::net::TcpListener::from_std).collect();
        Ok((bound.port, listeners?))
    });
    match bound {
        Ok((port, listeners)) => {
            server::serve(protocol, listeners, exports, tasks);
            port
        }
        Err(error) => {
            let name = protocol.name();
            tracing::warn!(%error, "volumes are not offered by {name}: no port is free");
            0
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
