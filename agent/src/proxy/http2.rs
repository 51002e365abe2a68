//! One HTTP/2 connection. While nothing is intercepted on its port its frames are relayed as they
//! are; once rules have to be asked for each request, the caller is sent away kindly (GOAWAY) and
//! its next connection is terminated and carried stream by stream.

mod relay;
pub mod terminate;

use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use crate::outcome::Ended;
use crate::proxy::context::ConnContext;
use crate::telemetry::metrics::Protocol;

/// Carries a connection whose caller speaks HTTP/2: `first` is what was read from it, preface
/// included, `app` the connection that was opened for it, `said` what the app has sent on it and
/// the caller has not got.
pub async fn carry(down: Conn, first: Buf, app: Conn, said: Buf, lane: &ConnContext) -> Ended {
    lane.port.metrics.carried.at(Protocol::Http2).inc();
    // Subscribed before the table is read, so that no change falls between.
    let changes = lane.port.routes.watch();
    // Where callers' identities are handed on, every request's head is ours to write; and the
    // access log has a line for each request, which relayed frames do not show.
    let port = &lane.port;
    let needs_requests = port.routes.load().needs_requests()
        || lane.identity().is_some()
        || port.access.log.is_some();
    if needs_requests {
        terminate::connection::carry(down, first, app, said, changes, lane).await
    } else {
        relay::frame_relay::relay(down, first, app, said, changes, lane).await
    }
}
