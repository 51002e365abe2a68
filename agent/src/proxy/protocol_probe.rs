//! Probes the app of an undeclared port for TLS and HTTP/2 once an intercept needs to know, and
//! again when the result may be stale. Callers' own bytes decide how they are carried; the result
//! serves messages, TLS towards workstations, and the warning that requests inside TLS cannot be
//! told apart.

use std::sync::Arc;
use std::time::Duration;

use crate::proxy::context::{AppProtocol, PortContext, ProtocolSource};
use crate::upstream::app::AppAddrs;
use crate::upstream::probe;

/// Delay before an app that was away or silent is probed again: the first, and the longest.
const PROBE_BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// Watches the port's rules and probes when needed, until the drain begins. A result is kept until a
/// connection contradicts it or the app was away.
pub(crate) async fn ask_when_needed(port: Arc<PortContext>) {
    let mut changes = port.routes.watch();
    let mut pause = PROBE_BACKOFF.0;
    loop {
        let needed = port.routes.load().has_filters();
        let unknown = port.app_protocol.get().1 == ProtocolSource::Bytes;
        let unanswered = needed && unknown && !probe(&port).await;
        tokio::select! {
            () = port.drain.draining() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = port.app_protocol.forgotten.notified() => {
                // Whoever makes it forgotten again and again must not have the app probed as often.
                tokio::time::sleep(PROBE_BACKOFF.0).await;
            }
            () = tokio::time::sleep(pause), if unanswered => {
                pause = (pause * 2).min(PROBE_BACKOFF.1);
            }
        }
    }
}

/// Probes unless the protocol is known, and keeps the result; false if the app gave none.
pub async fn probe(port: &PortContext) -> bool {
    let Some(addr) = port.app.app_addr() else {
        return true;
    };
    let _asking = port.app_protocol.asking.lock().await;
    if port.app_protocol.get().1 != ProtocolSource::Bytes {
        return true;
    }
    let found = match probe::speaks(&AppAddrs::of(&*port.app, addr)).await {
        Ok(Some(probe::Speaks::Tls)) => AppProtocol::Tls,
        Ok(Some(probe::Speaks::H2c)) => AppProtocol::Http2,
        Ok(Some(probe::Speaks::Other)) => AppProtocol::Http1,
        Ok(None) | Err(_) => return false,
    };
    port.app_protocol.set(found, ProtocolSource::Probe);
    tracing::info!(
        port = port.container_port,
        protocol = found.word(),
        source = "probe",
        "app protocol probed"
    );
    true
}

/// Returns if the app speaks TLS; none if it does not say.
pub async fn speaks_tls(port: &PortContext) -> Option<bool> {
    let addr = port.app.app_addr()?;
    let speaks = probe::speaks(&AppAddrs::of(&*port.app, addr))
        .await
        .ok()??;
    Some(speaks == probe::Speaks::Tls)
}
