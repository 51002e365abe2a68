//! One HTTP/2 connection. Its frames are relayed, and followed on the way, so that rules hold for
//! the next stream of a connection that is open: those that a rule gives to a workstation are taken
//! out and go through a tunnel. The machine is `traffic_core::http2::router`; here are its sockets.

mod connection;
mod expired;
mod flow;
mod streams;
mod tunnel_io;
mod tunnels;

use std::time::Instant;

use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use crate::outcome::Ended;
use crate::proxy::context::ConnContext;
use crate::proxy::http2::connection::Connection;
use crate::telemetry::metrics::Protocol;
use traffic_core::http2::router::{Router, VouchedField};

/// Carries a connection whose caller speaks HTTP/2: `first` is what was read from it, preface
/// included, `app` the connection that was opened for it, `said` what the app has sent on it and
/// the caller has not got. Without an app, workstations may still answer.
pub async fn carry(
    down: Conn,
    first: Buf,
    app: Option<Conn>,
    said: Buf,
    context: &ConnContext,
) -> Ended {
    let router = Router::new(vouched(context), Instant::now());
    run(down, first, app, said, router, context).await
}

/// Carries a connection that the app has just switched from HTTP/1 (RFC 7540 section 3.2), where
/// the request carried `settings`: what comes next from the caller is the preface.
pub async fn carry_upgraded(
    down: Conn,
    first: Buf,
    app: Conn,
    said: Buf,
    settings: &[u8],
    context: &ConnContext,
) -> Ended {
    let router = Router::upgraded(settings, vouched(context), Instant::now());
    run(down, first, Some(app), said, router, context).await
}

async fn run(
    down: Conn,
    first: Buf,
    app: Option<Conn>,
    said: Buf,
    router: Router,
    context: &ConnContext,
) -> Ended {
    context.port.metrics.carried.at(Protocol::Http2).inc();
    let changes = context.port.routes.watch();
    let connection = Connection::new(down, first, app, said, router, context.clone());
    connection.carry(changes).await
}

/// The field by which the port hands callers' identities on.
fn vouched(context: &ConnContext) -> Option<VouchedField> {
    let (name, identity) = context.identity()?;
    Some(VouchedField {
        name: name.to_ascii_lowercase(),
        value: identity.map(|identity| identity.header_value().to_owned()),
    })
}
