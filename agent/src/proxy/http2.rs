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
use crate::proxy::http2::streams::Streams;
use crate::telemetry::access_log::record::AccessRecord;
use crate::telemetry::metrics::Protocol;
use traffic_core::http2::router::{Router, VouchedField};

/// Carries a connection whose caller speaks HTTP/2: `first` is what was read from it, preface
/// included, `app` the connection that was opened for it, `said` what the app has sent on it and
/// the caller has not got. Without an app, workstations may still answer.
pub fn carry(
    down: Conn,
    first: Buf,
    app: Option<Conn>,
    said: Buf,
    context: &ConnContext,
) -> impl Future<Output = Ended> + Send + use<> {
    let router = Router::new(vouched(context), Instant::now());
    let streams = Streams::new(context.clone());
    run(down, first, app, said, router, streams)
}

/// The request by which a connection was upgraded: stream 1.
pub struct Upgraded {
    /// The payload of the caller's SETTINGS that it carried.
    pub settings: Vec<u8>,
    /// Its record, if one is kept.
    pub record: Option<Box<AccessRecord>>,
}

/// Carries a connection that the app has just switched from HTTP/1 (RFC 7540 section 3.2): what
/// comes next from the caller is the preface.
pub fn carry_upgraded(
    down: Conn,
    first: Buf,
    app: Conn,
    said: Buf,
    upgraded: Upgraded,
    context: &ConnContext,
) -> impl Future<Output = Ended> + Send + use<> {
    let Upgraded { settings, record } = upgraded;
    let explains = record.as_ref().is_some_and(|r| r.explained().is_some());
    let vouched = vouched(context);
    let router = Router::upgraded(&settings, explains, vouched, Instant::now());
    let mut streams = Streams::new(context.clone());
    if let Some(record) = record {
        streams.keep(1, record);
    }
    run(down, first, Some(app), said, router, streams)
}

/// Not async, and the connection on the heap: futures hold what they are given once more in each
/// step, and every idle connection would hold all of that.
fn run(
    down: Conn,
    first: Buf,
    app: Option<Conn>,
    said: Buf,
    router: Router,
    streams: Streams,
) -> impl Future<Output = Ended> + Send + use<> {
    let port = &streams.context.port;
    port.metrics.carried.at(Protocol::Http2).inc();
    let changes = port.routes.watch();
    let connection = Connection::new(down, first, app, said, router, streams);
    Box::new(connection).carry(changes)
}

/// The field by which the port hands callers' identities on.
fn vouched(context: &ConnContext) -> Option<VouchedField> {
    let (name, identity) = context.identity()?;
    Some(VouchedField {
        name: name.to_ascii_lowercase(),
        value: identity.map(|identity| identity.header_value().to_owned()),
    })
}
