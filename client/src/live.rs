//! Figures of a running `create`: shown on its terminal, and told to `intercept status` through a
//! socket that only its user can reach.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::time::{sleep, timeout};
use traffic_proto::base64url;
use traffic_proto::manager::{GetInterceptRequest, InterceptInfo, SessionInfo};
use traffic_proto::port::Transport;
use traffic_proto::session_key::{Peer, SessionKey};
use traffic_proto::sync::lock;

use crate::deliveries;
use crate::report;
use crate::report::counted;
use crate::session::{Manager, call};

/// Pause between two looks at the figures on a terminal.
const SHOW_INTERVAL: Duration = Duration::from_secs(1);
/// Pause between two looks at the counts of requests.
const COUNTS_INTERVAL: Duration = Duration::from_secs(2);
/// Time for `status` to read what it is told.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failed accept.
const ACCEPT_DELAY: Duration = Duration::from_secs(1);

/// Member of what is told that is for `intercept leave` alone: the session, and the proof by which
/// its intercepts may be ended.
pub(crate) const TO_LEAVE: &str = "to_leave";

/// Figures of one intercept that this process serves.
#[derive(Debug)]
pub(crate) struct Live {
    manager: String,
    target: SocketAddr,
    opened: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    info: InterceptInfo,
    /// Why the manager is not reached; empty while it is.
    lost: String,
    since: SystemTime,
    /// The key of the session.
    key: Option<Arc<SessionKey>>,
}

/// A connection under way, as long as it is held.
#[derive(Debug)]
pub(crate) struct OpenTunnel {
    live: Arc<Live>,
    has_failed: AtomicBool,
}

impl OpenTunnel {
    /// Counts it, once, as one that did not reach the local server.
    pub(crate) fn failed(&self) {
        if !self.has_failed.swap(true, Ordering::Relaxed) {
            self.live.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.live.ended.fetch_add(1, Ordering::Relaxed);
    }
}

impl Live {
    pub(crate) fn new(manager: String, target: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            manager,
            target,
            opened: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            state: Mutex::new(State {
                info: InterceptInfo::default(),
                lost: "not connected yet".into(),
                since: SystemTime::now(),
                key: None,
            }),
        })
    }

    /// A session has begun, with this key.
    pub(crate) fn begun(&self, key: Option<Arc<SessionKey>>) {
        lock(&self.state).key = key;
    }

    /// Counts a connection until the result is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> OpenTunnel {
        self.opened.fetch_add(1, Ordering::Relaxed);
        OpenTunnel {
            live: self.clone(),
            has_failed: AtomicBool::new(false),
        }
    }

    /// Takes in what the manager says of the intercept.
    pub(crate) fn says(&self, info: &InterceptInfo) {
        let mut state = lock(&self.state);
        // Figures of a snapshot may be older than those that were asked for.
        let before = (state.info.hits, state.info.failed_open);
        let is_same = state.info.id == info.id;
        state.info = info.clone();
        if is_same {
            state.info.hits = info.hits.max(before.0);
            state.info.failed_open = info.failed_open.max(before.1);
        }
        if !state.lost.is_empty() {
            state.lost.clear();
            state.since = SystemTime::now();
        }
    }

    /// The manager cannot be reached.
    pub(crate) fn lost(&self, why: &str) {
        let mut state = lock(&self.state);
        state.lost = why.to_owned();
        state.since = SystemTime::now();
    }

    /// Open connections and those so far.
    fn tunnels(&self) -> (u64, u64) {
        let ended = self.ended.load(Ordering::Relaxed);
        let opened = self.opened.load(Ordering::Relaxed);
        (opened.saturating_sub(ended), opened)
    }

    /// The figures in one line.
    fn summary(&self) -> String {
        let (open, so_far) = self.tunnels();
        let state = lock(&self.state);
        let spec = state.info.spec.clone().unwrap_or_default();
        // The datagrams of one caller are one flow.
        let is_udp = deliveries::are_datagrams(&spec);
        let [connection, request] = match is_udp {
            true => ["flow", "flow"],
            false => ["connection", "request"],
        };
        // Managers of others do not count requests.
        let here = match state.info.hits {
            0 => format!("{} here", counted(so_far, connection)),
            hits => format!("{} here", counted(hits, request)),
        };
        let mut text = format!(
            "{here} · {} to the app · {open} open · {} failed",
            state.info.failed_open,
            self.failed.load(Ordering::Relaxed)
        );
        if is_udp || deliveries::of(&spec).len() > 1 {
            text.push_str(&format!(" · {}", deliveries::line(&spec)));
        }
        if !state.lost.is_empty() {
            text.push_str(" · manager lost");
        }
        text
    }

    /// Asks for the counts of requests: watches tell of changes of the state alone.
    pub(crate) async fn ask(
        &self,
        mut manager: Manager,
        session: &SessionInfo,
        name: String,
    ) -> Infallible {
        loop {
            sleep(COUNTS_INTERVAL).await;
            let request = GetInterceptRequest {
                session: Some(session.clone()),
                name: name.clone(),
            };
            if let Ok(info) = manager.get_intercept(call(request)).await {
                self.says(&info.into_inner());
            }
        }
    }

    /// Shows the figures below the other lines of a terminal.
    pub(crate) async fn show(&self) -> Infallible {
        loop {
            report::footer(&self.summary());
            sleep(SHOW_INTERVAL).await;
        }
    }

    /// The figures for programs.
    fn json(&self) -> Value {
        let (open, so_far) = self.tunnels();
        let state = lock(&self.state);
        let spec = state.info.spec.clone().unwrap_or_default();
        let since = state.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        json!({
            "pid": std::process::id(),
            "name": spec.name,
            "workload": spec.agent,
            "namespace": spec.namespace,
            "target": self.target.to_string(),
            "transport": deliveries::transport(&spec).map(Transport::name),
            "ports": deliveries::json(&spec),
            "state": state.info.disposition().as_str_name(),
            "message": state.info.message,
            "pod": state.info.pod_name,
            "manager": self.manager,
            "manager_lost": state.lost,
            "manager_since": since.as_secs(),
            "tunnels_open": open,
            "tunnels_so_far": so_far,
            "tunnels_failed": self.failed.load(Ordering::Relaxed),
            "hits": state.info.hits,
            "failed_open": state.info.failed_open,
            TO_LEAVE: state.key.as_deref().map(|key| json!({
                "session": key.id(),
                "proof": base64url::encode(&key.prove(&Peer::manager_to_leave())),
            })),
        })
    }

    /// Tells the figures to whoever of the same user asks. Without a place for the socket nobody
    /// can.
    pub(crate) async fn tell(&self) -> Infallible {
        let socket = folder().and_then(|folder| Socket::new(&folder));
        let socket = match socket {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!("intercept status will not see this process: {error}");
                std::future::pending().await
            }
        };
        loop {
            let Ok((mut stream, _)) = socket.listener.accept().await else {
                sleep(ACCEPT_DELAY).await;
                continue;
            };
            let text = self.json().to_string();
            // A reader that stalls does not matter.
            let _ = timeout(WRITE_TIMEOUT, stream.write_all(text.as_bytes())).await;
        }
    }
}

/// A socket that goes with this process.
struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    fn new(folder: &Path) -> io::Result<Self> {
        let path = folder.join(format!("{}.sock", std::process::id()));
        // A process of the same number may have been killed.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        Ok(Self { path, listener })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The folder of the sockets of this user's processes.
///
/// # Errors
/// No folder is there for it, or others could write into it.
pub(crate) fn folder() -> io::Result<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|it| !it.is_empty())
            .map(PathBuf::from)
    };
    let folder = match (variable("XDG_RUNTIME_DIR"), variable("HOME")) {
        (Some(runtime), _) => runtime.join("intercept"),
        (None, Some(home)) => home.join(".cache/intercept"),
        (None, None) => {
            let text = "neither XDG_RUNTIME_DIR nor HOME is set";
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", folder.display())))?;
    let found = fs::symlink_metadata(&folder)?;
    let is_ours = found.is_dir() && found.uid() == rustix::process::getuid().as_raw();
    if !is_ours || found.mode() & 0o022 != 0 {
        let text = format!("{} can be written by others", folder.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use traffic_proto::manager::InterceptSpec;

    #[test]
    fn the_line_counts_requests_where_the_manager_does_and_connections_elsewhere() {
        let live = Live::new("localhost:8081".into(), ([127, 0, 0, 1], 3000).into());
        let tunnel = live.begin();
        drop(live.begin());
        let mut info = InterceptInfo::default();
        live.says(&info);
        assert_eq!(
            live.summary(),
            "2 connections here · 0 to the app · 1 open · 0 failed"
        );
        tunnel.failed();
        drop(tunnel);
        (info.hits, info.failed_open) = (7, 1);
        live.says(&info);
        live.lost("gone");
        assert_eq!(
            live.summary(),
            "7 requests here · 1 to the app · 0 open · 1 failed · manager lost"
        );
        let mut spec = InterceptSpec::default();
        (spec.target_host, spec.target_port) = ("127.0.0.1".into(), 5353);
        spec.port_identifier = "dns/UDP".into();
        info.spec = Some(spec.clone());
        live.says(&info);
        assert_eq!(
            live.summary(),
            "7 flows here · 1 to the app · 0 open · 1 failed · dns/UDP -> 127.0.0.1:5353"
        );
        spec.pod_ports.push("web:3000/TCP".into());
        info.spec = Some(spec);
        live.says(&info);
        assert_eq!(
            live.summary(),
            "7 requests here · 1 to the app · 0 open · 1 failed · dns/UDP -> 127.0.0.1:5353, \
            web/TCP -> 127.0.0.1:3000"
        );
    }
}
