//! Probes the app of an undeclared port for TLS and HTTP/2 once an intercept needs to know, and
//! again when the result may be stale. Callers' own bytes decide how they are carried; the result
//! serves messages, TLS towards workstations, and the warning that requests inside TLS cannot be
//! told apart.

use std::sync::Arc;
use std::time::Duration;

use crate::proxy::context::{AppProtocol, PortContext, ProtocolSource};
use crate::upstream::app::AppAddrs;
use crate::upstream::probe;

/// Delay before an app that was away or silent is probed again.
const PROBE_RETRY_DELAY: Duration = Duration::from_secs(5);

/// Watches the port's rules and probes when needed, until the drain begins.
pub(crate) async fn ask_when_needed(port: Arc<PortContext>) {
    let mut changes = port.routes.watch();
    loop {
        let needed = port.routes.load().has_filters();
        let (_, source) = port.app_protocol.get();
        let pause = match (needed, source) {
            (true, ProtocolSource::Bytes) => probe(&port).await,
            // A result is dropped when it is no longer needed: the next intercept may meet another
            // app.
            (false, ProtocolSource::Probe) => {
                port.app_protocol
                    .set(AppProtocol::Unknown, ProtocolSource::Bytes);
                None
            }
            _ => None,
        };
        tokio::select! {
            () = port.drain.draining() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

/// Probes now unless the result is known, and keeps it. Returns the delay to the next probe if the
/// app gave no result.
pub async fn probe(port: &PortContext) -> Option<Duration> {
    let addr = port.app.app_addr()?;
    if port.app_protocol.get().1 != ProtocolSource::Bytes {
        return None;
    }
    let found = match probe::speaks(&AppAddrs::of(&*port.app, addr)).await {
        Ok(Some(probe::Speaks::Tls)) => AppProtocol::Tls,
        Ok(Some(probe::Speaks::H2c)) => AppProtocol::Http2,
        Ok(Some(probe::Speaks::Other)) => AppProtocol::Http1,
        Ok(None) | Err(_) => return Some(PROBE_RETRY_DELAY),
    };
    port.app_protocol.set(found, ProtocolSource::Probe);
    tracing::info!(
        port = port.container_port,
        protocol = found.word(),
        source = "probe",
        "app protocol probed"
    );
    None
}

/// Returns true if the app speaks TLS; false if that is unknown.
pub async fn speaks_tls(port: &PortContext) -> bool {
    let Some(addr) = port.app.app_addr() else {
        return false;
    };
    matches!(
        probe::speaks(&AppAddrs::of(&*port.app, addr)).await,
        Ok(Some(probe::Speaks::Tls))
    )
}
