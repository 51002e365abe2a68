//! Asks the app of an undeclared port whether it speaks TLS or HTTP/2, once an intercept makes that
//! worth knowing, and again when the answer may be stale. Callers' own bytes decide what is
//! carried; the answer is for people, and for whoever has to speak first or to say that requests
//! cannot be told apart inside TLS.

use std::sync::Arc;
use std::time::Duration;

use crate::proxy::context::{AppProtocol, PortContext, ProtocolSource};
use crate::upstream::probe;

/// Until an app that was away, or said nothing, is asked again.
const PROBE_RETRY_DELAY: Duration = Duration::from_secs(5);

/// Watches the port's rules until the drain begins.
pub(crate) async fn ask_when_needed(port: Arc<PortContext>) {
    let mut changes = port.routes.watch();
    loop {
        let needed = port.routes.load().has_filters();
        let (_, source) = port.spoken.get();
        let pause = match (needed, source) {
            (true, ProtocolSource::Bytes) => probe(&port).await,
            // An answer is kept as long as it is needed: the next intercept may meet another app.
            (false, ProtocolSource::Probe) => {
                port.spoken.set(AppProtocol::Unknown, ProtocolSource::Bytes);
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

/// Asks now, unless it is known, and keeps the answer. Returns when to ask again, if the app gave
/// none.
pub async fn probe(port: &PortContext) -> Option<Duration> {
    let addr = port.app.app_addr()?;
    if port.spoken.get().1 != ProtocolSource::Bytes {
        return None;
    }
    let spoken = match probe::speaks(addr).await {
        Ok(Some(probe::Speaks::Tls)) => AppProtocol::Tls,
        Ok(Some(probe::Speaks::H2c)) => AppProtocol::Http2,
        Ok(Some(probe::Speaks::Other)) => AppProtocol::Http1,
        Ok(None) | Err(_) => return Some(PROBE_RETRY_DELAY),
    };
    port.spoken.set(spoken, ProtocolSource::Probe);
    tracing::info!(
        port = port.container_port,
        protocol = spoken.word(),
        source = "probe",
        "protocol of the app"
    );
    None
}

/// Whether the app speaks TLS; false also when it does not say.
pub async fn speaks_tls(port: &PortContext) -> bool {
    let Some(addr) = port.app.app_addr() else {
        return false;
    };
    matches!(probe::speaks(addr).await, Ok(Some(probe::Speaks::Tls)))
}
