//! `list` and `leave`: intercepts that other processes serve.

use std::time::{Duration, SystemTime};

use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use traffic_proto::manager::{InterceptInfo, RemoveInterceptRequest2, SessionInfo};
use traffic_proto::port::Transport;
use traffic_proto::session_key;

use crate::Failure;
use crate::deliveries;
use crate::flags::{Leave, List, Output};
use crate::listing;
use crate::report::{Pairs, block, event, line};
use crate::session::{self, Way, call, status_text};
use crate::status;
use crate::terminal::Style;

/// Time for the manager to send its intercepts.
const LIST_TIMEOUT: Duration = Duration::from_secs(15);

/// Prints all intercepts the manager knows.
pub async fn list(flags: &List) -> Result<(), Failure> {
    let way = Way::open(&flags.manager).await?;
    let connected = session::connect(&way, session::START_TIMEOUT).await?;
    let mut manager = connected.manager;
    let mut intercepts = all(&mut manager).await?;
    let me = &flags.manager.client;
    listing::sort(&mut intercepts, me);
    match flags.output {
        Output::Json => block(&format!("{:#}", listing::json(&intercepts, me))),
        Output::Text if intercepts.is_empty() => line("No intercepts"),
        Output::Text => {
            let style = Style::of_stdout();
            block(&listing::blocks(&intercepts, me, SystemTime::now(), style));
        }
    }
    Ok(())
}

/// Removes an intercept of this client; the process that serves it notices and ends.
pub async fn leave(flags: &Leave) -> Result<(), Failure> {
    let way = Way::open(&flags.manager).await?;
    let connected = session::connect(&way, session::START_TIMEOUT).await?;
    let mut manager = connected.manager;
    let mut named = all(&mut manager).await?;
    named.retain(|info| {
        let spec = info.spec.as_ref();
        info.id == flags.name || spec.is_some_and(|spec| spec.name == flags.name)
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
    let name = own.spec.as_ref().map(|spec| spec.name.clone());
    let session = own.client_session.clone();
    let id = session.as_ref().map(|it| it.session_id.clone());
    let mut request = call(RemoveInterceptRequest2 {
        session,
        name: name.unwrap_or_default(),
    });
    // The session is of the process that serves it, which tells its user's others how to end it.
    if let Some(proof) = status::proof_to_leave(&id.unwrap_or_default()).await {
        let proof = MetadataValue::from_bytes(&proof);
        let metadata = request.metadata_mut();
        metadata.insert_bin(session_key::PROOF, proof);
    }
    let removed = manager.remove_intercept(request).await;
    removed.map_err(|status| {
        Failure::Failed(format!(
            "intercept {:?} was not removed: {}",
            flags.name,
            status_text(&status)
        ))
    })?;
    event(&Pairs(&[("state", "REMOVED"), ("intercept", &flags.name)]));
    Ok(())
}

/// Prints the state of an intercept as an event.
pub(crate) fn tell(info: &InterceptInfo) {
    let spec = info.spec.clone().unwrap_or_default();
    let target = format!("{}:{}", spec.target_host, spec.target_port);
    let transport = deliveries::transport(&spec).map_or("", Transport::name);
    let ports = match deliveries::of(&spec).len() {
        0 | 1 => String::new(),
        _ => deliveries::line(&spec),
    };
    let takes = deliveries::described(info, &spec);
    let state = info.disposition();
    event(&Pairs(&[
        ("state", state.as_str_name()),
        ("intercept", &spec.name),
        ("client", &spec.client),
        ("workload", &spec.agent),
        ("namespace", &spec.namespace),
        ("port", &spec.port_identifier),
        ("transport", transport),
        ("target", &target),
        ("ports", &ports),
        ("mechanism", &spec.mechanism),
        ("takes", &takes),
        ("pod", &info.pod_name),
        ("message", &info.message),
        ("id", &info.id),
    ]));
}

/// Adds to an agent's word of a conflict whose intercept it is, what it takes, and what to do. The
/// word names it by an id in quotes.
pub(crate) async fn with_way_out(
    manager: &mut session::Manager,
    own: &str,
    message: &str,
) -> String {
    let id = message
        .split('"')
        .nth(1)
        .filter(|_| message.contains("onflict"));
    let others = match id {
        Some(_) => all(manager).await.unwrap_or_default(),
        None => Vec::new(),
    };
    let rival = others.iter().find(|info| Some(info.id.as_str()) == id);
    rival.map_or(message.to_owned(), |info| {
        format!("{message}; {}", listing::way_out(info, own))
    })
}

pub(crate) async fn all(manager: &mut session::Manager) -> Result<Vec<InterceptInfo>, Failure> {
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
