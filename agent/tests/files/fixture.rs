//! A pod's volumes in a temporary folder, served by the file service.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use traffic_agent::drain::Drain;
use traffic_agent::files::export::{ContainerVolumes, Exports};
use traffic_agent::files::server::{self, FileProtocol};
use traffic_proto::sidecar::MountPolicy;

/// Volumes of one container: `/data` writable, `/etc/ro` read-only, `/tmp` local to the pod, and
/// `/config` laid out as the kubelet writes a ConfigMap. `outside` lies beside the mount point.
pub(crate) struct Pod {
    folder: TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) ftp: SocketAddr,
    _tasks: Drain,
}

impl Pod {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mount_point = folder.path().join("tel_app_mounts/app");
        for directory in ["data/inner", "etc/ro", "tmp", "config/..2026"] {
            fs::create_dir_all(mount_point.join(directory)).unwrap();
        }
        fs::write(mount_point.join("data/hello"), "hello").unwrap();
        fs::write(mount_point.join("etc/ro/fixed"), "fixed").unwrap();
        fs::write(mount_point.join("tmp/private"), "private").unwrap();
        fs::write(mount_point.join("config/..2026/key"), "value").unwrap();
        symlink("..2026", mount_point.join("config/..data")).unwrap();
        symlink("..data/key", mount_point.join("config/key")).unwrap();
        fs::create_dir_all(folder.path().join("secrets/eks.amazonaws.com")).unwrap();
        fs::write(
            folder.path().join("secrets/eks.amazonaws.com/token"),
            "token",
        )
        .unwrap();
        fs::write(folder.path().join("outside"), "secret of the agent").unwrap();
        let mounts = [
            ("/data", MountPolicy::Remote),
            ("/etc/ro", MountPolicy::RemoteReadonly),
            ("/tmp", MountPolicy::Local),
            ("/config", MountPolicy::Remote),
        ];
        let volumes = ContainerVolumes {
            name: "app".to_owned(),
            mount_point,
            mounts: mounts
                .map(|(path, policy)| (path.to_owned(), policy))
                .to_vec(),
        };
        let exports = Exports::open(&[volumes], &folder.path().join("secrets")).unwrap();
        let exports = Arc::new(exports);
        let tasks = Drain::default();
        let mut addresses = Vec::new();
        for protocol in [FileProtocol::SFTP, FileProtocol::FTP] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            server::serve(protocol, vec![listener], &exports, &tasks);
        }
        Self {
            folder,
            address: addresses[0],
            ftp: addresses[1],
            _tasks: tasks,
        }
    }

    /// A path in the agent of what the app sees at `path`.
    pub(crate) fn volume(&self, path: &str) -> PathBuf {
        self.folder.path().join("tel_app_mounts/app").join(path)
    }

    /// Makes a named pipe, a device and a socket in the volume `data`.
    pub(crate) fn make_special_files(&self) {
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        for (name, kind, device) in [
            ("data/fifo", rustix::fs::FileType::Fifo, 0),
            // `/dev/zero`
            (
                "data/zero",
                rustix::fs::FileType::CharacterDevice,
                rustix::fs::makedev(1, 5),
            ),
        ] {
            rustix::fs::mknodat(rustix::fs::CWD, self.volume(name), kind, mode, device).unwrap();
        }
        drop(std::os::unix::net::UnixListener::bind(self.volume("data/socket")).unwrap());
    }

    pub(crate) fn outside(&self) -> PathBuf {
        self.folder.path().join("outside")
    }
}
