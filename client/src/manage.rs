//! `list` and `leave`: intercepts served by other processes.

use std::time::Duration;

use tokio::time::timeout;
use traffic_proto::manager::{InterceptInfo, RemoveInterceptRequest2, SessionInfo};

use crate::Failure;
use crate::flags::{Leave, ManagerFlags};
use crate::report::{Pairs, line};
use crate::session::{self, Way, call, status_text};

/// Time for the manager to send its intercepts.
const LIST_TIMEOUT: Duration = Duration::from_secs(15);

/// Prints one line for each intercept the manager knows.
pub async fn list(flags: &ManagerFlags) -> Result<(), Failure> {
    let way = Way::open(flags).await?;
    let mut manager = session::connect(&way, session::FIRST_CONTACT_TIMEOUT).await?;
    let intercepts = all(&mut manager).await?;
    if intercepts.is_empty() {
        line("No intercepts");
    }
    for info in intercepts {
        line(summary(&info));
    }
    Ok(())
}

/// Removes an intercept of this client; the process that serves it notices and ends.
pub async fn leave(flags: &Leave) -> Result<(), Failure> {
    let way = Way::open(&flags.manager).await?;
    let mut manager = session::connect(&way, session::FIRST_CONTACT_TIMEOUT).await?;
    let mut named = all(&mut manager).await?;
    named.retain(|info| {
        info.spec
            .as_ref()
            .is_some_and(|spec| spec.name == flags.name)
    });
    let client = |info: &InterceptInfo| {
        info.spec
            .as_ref()
            .map(|spec| spec.client.clone())
            .unwrap_or_default()
    };
    // Names are unique per client, so another user's intercept of that name must not be removed.
    let own = named
        .iter()
        .find(|info| client(info) == flags.manager.client);
    let Some(own) = own else {
        let others: Vec<_> = named.iter().map(client).collect();
        let hint = if others.is_empty() {
            "see the list command".into()
        } else {
            format!("--client {}", others.join(" or "))
        };
        return Err(Failure::Failed(format!(
            "no intercept {:?} of {}; {hint}",
            flags.name, flags.manager.client
        )));
    };
    let request = RemoveInterceptRequest2 {
        session: own.client_session.clone(),
        name: flags.name.clone(),
    };
    let removed = manager.remove_intercept(call(request)).await;
    removed.map_err(|status| {
        Failure::Failed(format!(
            "intercept {:?} was not removed: {}",
            flags.name,
            status_text(&status)
        ))
    })?;
    line(Pairs(&[("state", "REMOVED"), ("intercept", &flags.name)]));
    Ok(())
}

/// Formats an intercept as one line.
pub(crate) fn summary(info: &InterceptInfo) -> String {
    let spec = info.spec.clone().unwrap_or_default();
    let target = format!("{}:{}", spec.target_host, spec.target_port);
    let state = info.disposition();
    Pairs(&[
        ("state", state.as_str_name()),
        ("intercept", &spec.name),
        ("client", &spec.client),
        ("workload", &spec.agent),
        ("namespace", &spec.namespace),
        ("port", &spec.port_identifier),
        ("target", &target),
        ("mechanism", &spec.mechanism),
        ("takes", &info.mechanism_args_desc),
        ("pod", &info.pod_name),
        ("message", &info.message),
        ("id", &info.id),
    ])
    .to_string()
}

async fn all(manager: &mut session::Manager) -> Result<Vec<InterceptInfo>, Failure> {
    let first = async {
        let mut snapshots = manager
            // An empty session asks for the intercepts of all clients.
            .watch_intercepts(SessionInfo::default())
            .await?
            .into_inner();
        Ok(snapshots.message().await?.unwrap_or_default())
    };
    match timeout(LIST_TIMEOUT, first).await {
        Ok(Ok(snapshot)) => Ok(snapshot.intercepts),
        Ok(Err(status)) => Err(Failure::Failed(format!(
            "the manager does not list intercepts: {}",
            status_text(&status)
        ))),
        Err(_) => Err(Failure::Failed(
            "the manager does not list intercepts: no answer in time".into(),
        )),
    }
}
