//! `uninstall`: takes agents out of workloads.

use std::time::Duration;

use traffic_proto::manager::{ClientInfo, SessionInfo, UninstallAgentsRequest};

use crate::Failure;
use crate::flags::Uninstall;
use crate::report::{Pairs, line};
use crate::session::{self, Connected, Manager, Patience, Way, call, refused};

/// Time for the pods to be replaced; the manager gives up a little earlier and says why.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(150);

/// Removes agents and waits until their pods are replaced.
pub async fn uninstall(flags: &Uninstall) -> Result<(), Failure> {
    let way = Way::open(&flags.manager).await?;
    let namespace = flags.namespace.as_deref().unwrap_or(way.namespace());
    let mut connected = session::connect(&way, session::START_TIMEOUT).await?;
    let client = session::client_info(&flags.manager.client, namespace);
    // A manager that breaks off amid the removal goes on with it when it is asked again.
    let mut patience = Patience::new(REMOVAL_TIMEOUT);
    while let Err(failure) = arrive_and_remove(&mut connected, &client, flags).await {
        if !patience.allows_another_try(&failure).await {
            return Err(failure);
        }
    }
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

async fn arrive_and_remove(
    Connected {
        manager,
        credentials,
    }: &mut Connected,
    client: &ClientInfo,
    flags: &Uninstall,
) -> Result<(), Failure> {
    let session = session::arrive(manager, credentials, client).await?;
    let removed = remove(manager, &session, flags).await;
    let _ = manager.depart(call(session)).await;
    removed
}

async fn remove(
    manager: &mut Manager,
    session: &SessionInfo,
    flags: &Uninstall,
) -> Result<(), Failure> {
    let mut request = tonic::Request::new(UninstallAgentsRequest {
        session_info: Some(session.clone()),
        agents: flags.workloads.clone(),
    });
    request.set_timeout(REMOVAL_TIMEOUT);
    let removed = manager.uninstall_agents(request).await;
    removed.map(drop).map_err(|status| match status.code() {
        tonic::Code::Unimplemented => Failure::Failed(
            "agents were not removed: this manager is older than that; uninstall it to remove its \
             agents"
                .to_owned(),
        ),
        _ => refused("agents were not removed", &status),
    })
}
