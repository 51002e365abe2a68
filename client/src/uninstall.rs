//! `uninstall`: takes agents out of workloads.

use std::time::Duration;

use traffic_proto::manager::{SessionInfo, UninstallAgentsRequest};

use crate::Failure;
use crate::flags::Uninstall;
use crate::report::{Pairs, line};
use crate::session::{self, Way, call, status_text};

/// Time for the pods to be replaced; the manager gives up a little earlier and says why.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(150);

/// Removes agents and waits until their pods are replaced.
pub async fn uninstall(flags: &Uninstall) -> Result<(), Failure> {
    let way = Way::open(&flags.manager).await?;
    let namespace = flags.namespace.as_deref().unwrap_or(way.namespace());
    let mut manager = session::connect(&way, session::FIRST_CONTACT_TIMEOUT).await?;
    let client = session::client_info(&flags.manager.client, namespace);
    let session = manager.arrive_as_client(call(client)).await;
    let session = session
        .map_err(|status| {
            let why = status_text(&status);
            Failure::Failed(format!("the manager refuses this client: {why}"))
        })?
        .into_inner();
    let removed = remove(&mut manager, &session, flags).await;
    let _ = manager.depart(call(session)).await;
    removed?;
    let workloads = match flags.all_agents {
        true => "all".to_owned(),
        false => flags.workloads.join(","),
    };
    line(Pairs(&[
        ("state", "REMOVED"),
        ("agents", &workloads),
        ("namespace", namespace),
    ]));
    Ok(())
}

async fn remove(
    manager: &mut session::Manager,
    session: &SessionInfo,
    flags: &Uninstall,
) -> Result<(), Failure> {
    let mut request = tonic::Request::new(UninstallAgentsRequest {
        session_info: Some(session.clone()),
        agents: flags.workloads.clone(),
    });
    request.set_timeout(REMOVAL_TIMEOUT);
    let removed = manager.uninstall_agents(request).await;
    removed.map(drop).map_err(|status| {
        let why = match status.code() {
            tonic::Code::Unimplemented => {
                "this manager is older than that; uninstall it to remove its agents".to_owned()
            }
            _ => status_text(&status),
        };
        Failure::Failed(format!("agents were not removed: {why}"))
    })
}
