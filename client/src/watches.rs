//! Streams of the manager that a session follows beside the intercept's state.

use tonic::{Code, Status};
use traffic_proto::manager::SessionInfo;

use crate::direct::Direct;
use crate::session::Manager;
use crate::tunnels::{TunnelDialer, Via};

/// Answers connections announced by the manager. A manager that never announces any is no error:
/// later versions do not.
pub(crate) async fn dials(
    tunnel_dialer: TunnelDialer,
    manager: Manager,
    session: &SessionInfo,
) -> Status {
    match tunnel_dialer.watch(Via::Manager(manager), session).await {
        Ok(()) => Status::unavailable("the manager ended the session"),
        // The manager lacks this optional watch; the others keep the session.
        Err(status) if status.code() == Code::Unimplemented => std::future::pending().await,
        Err(status) => status,
    }
}

/// Follows the agents that can be attached to directly, if the manager lists them.
pub(crate) async fn agents(
    mut manager: Manager,
    session: &SessionInfo,
    direct: &mut Direct,
) -> Status {
    let mut snapshots = match manager.watch_agent_pods(session.clone()).await {
        Ok(snapshots) => snapshots.into_inner(),
        Err(status) if status.code() == Code::Unimplemented => std::future::pending().await,
        Err(status) => return status,
    };
    loop {
        match snapshots.message().await {
            Ok(Some(snapshot)) => direct.follow(&snapshot.agents),
            Ok(None) => return Status::unavailable("the manager ended the session"),
            Err(status) => return status,
        }
    }
}
