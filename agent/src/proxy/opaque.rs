//! Opaque connections: relayed to the app, or whole to a workstation if a TCP intercept takes the
//! port's connections when it begins. A connection keeps its upstream; changes of rules do not
//! reset it.

use std::io;

use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use crate::io::relay;
use crate::io::relay::{PendingBytes, Relayed, Side};
use crate::outcome::{Ended, Stage};
use crate::proxy::context::ConnContext;
use crate::telemetry::access_log::record::AccessRecord;
use crate::telemetry::metrics::{OpaqueReason, PortMetrics, Protocol};
use crate::telemetry::rate_limit::limited;
use crate::upstream::AppError;
use crate::upstream::app::{ended_by_app, report_dial_failure};
use crate::upstream::workstation;
use crate::upstream::workstation::FirstWrite;
use traffic_core::routing::{Intercept, Mechanism};

/// Carries a connection of which nothing has been forwarded yet. `first` is what the caller has
/// sent; `app` is the app's connection if one is open. The workstation gets it if a TCP intercept
/// takes the port and its tunnel can be opened, else the app.
pub async fn carry(
    mut down: Conn,
    first: Buf,
    mut app: Option<Conn>,
    context: &ConnContext,
    reason: OpaqueReason,
) -> Ended {
    // Looked up once: a connection keeps the upstream that it begins with.
    let global = context
        .port
        .routes
        .load()
        .global()
        .filter(|i| i.mechanism == Mechanism::Tcp)
        .cloned();
    if let Some(intercept) = global {
        let way = context.port.workstations();
        let hello = context.hello.as_deref();
        workstation::hit(&intercept);
        let dial = way.connect(&intercept, context.caller, hello, FirstWrite::AtOnce);
        match dial.await {
            Ok(workstation) => {
                // Nothing was sent to the app, which sees a caller that has changed its mind.
                drop(app.take());
                return to_workstation(down, first, workstation, &intercept, context).await;
            }
            Err(failure) => way.fell_back(&intercept, failure.why),
        }
    }
    let app = match app {
        Some(app) => app,
        None => match dial_app(context).await {
            Ok(app) => app,
            Err(ended) => {
                down.abort();
                if let Some(record) = context.opaque_record(reason, None) {
                    record.end(ended);
                }
                return ended;
            }
        },
    };
    let first = PendingBytes {
        from_down: first,
        from_up: Buf::default(),
    };
    to_app(down, first, app, context, reason).await
}

/// Carries a whole connection that a TCP intercept takes.
async fn to_workstation(
    mut down: Conn,
    first: Buf,
    mut workstation: Conn,
    intercept: &Intercept,
    context: &ConnContext,
) -> Ended {
    count(context, OpaqueReason::TcpIntercept);
    let first = PendingBytes {
        from_down: first,
        from_up: Buf::default(),
    };
    let record = context.opaque_record(OpaqueReason::TcpIntercept, Some(intercept));
    let relayed = relay::both(&mut down, &mut workstation, first, &context.port.metrics).await;
    // A caller that leaves is no failure of the workstation.
    if matches!(relayed.broken, Some((Side::Up, _))) {
        context.port.metrics.tunnel_failures.inc();
    }
    finish_record(record, &relayed, Ended::TunnelLost)
}

/// Carries a connection that belongs to the app: bytes were already exchanged, or its reason allows
/// no other upstream.
pub async fn to_app(
    mut down: Conn,
    first: PendingBytes,
    mut app: Conn,
    context: &ConnContext,
    reason: OpaqueReason,
) -> Ended {
    count(context, reason);
    let record = context.opaque_record(reason, None);
    let relayed = relay::both(&mut down, &mut app, first, &context.port.metrics).await;
    finish_record(
        record,
        &relayed,
        app_failed(&relayed, &context.port.metrics),
    )
}

/// Maps a failing app to an outcome. Its socket may still have been connecting when the relay
/// began, so a refusal can show here.
#[must_use]
pub fn app_failed(relayed: &Relayed, metrics: &PortMetrics) -> Ended {
    let failed = match &relayed.broken {
        Some((Side::Up, error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Ended::AppCut;
        }
        Some((Side::Up, error)) if relayed.bytes_in + relayed.bytes_out == 0 => ended_by_app(error),
        _ => Ended::AppReset,
    };
    if failed != Ended::AppReset {
        metrics.app_connect_failures.inc();
    }
    failed
}

/// Maps a relay's end like [`ended`] and writes the access record.
fn finish_record(
    record: Option<Box<AccessRecord>>,
    relayed: &Relayed,
    upstream_failed: Ended,
) -> Ended {
    let ended = ended(relayed, upstream_failed);
    if let Some(mut record) = record {
        record.moved(relayed.bytes_in, relayed.bytes_out);
        record.end(ended);
    }
    ended
}

/// Maps the end of a relay to an outcome; `upstream_failed` is the one for a failing upstream.
#[must_use]
pub fn ended(relayed: &Relayed, upstream_failed: Ended) -> Ended {
    match relayed.broken {
        None => Ended::Clean,
        Some((Side::Down, _)) => Ended::CallerReset,
        Some((Side::Up, _)) => upstream_failed,
    }
}

async fn dial_app(context: &ConnContext) -> Result<Conn, Ended> {
    context
        .port
        .app
        .dial(context.hello.as_deref())
        .await
        .map_err(|error| {
            context.port.metrics.app_connect_failures.inc();
            report_dial_failure(&error, &context.port.metrics);
            match error {
                AppError::Timeout { .. } => Ended::TimedOut(Stage::AppConnect),
                AppError::Connect { .. } | AppError::Tls { .. } => Ended::AppRefused,
            }
        })
}

fn count(context: &ConnContext, reason: OpaqueReason) {
    context.port.metrics.carried.at(Protocol::Opaque).inc();
    context.port.metrics.opaque.at(reason).inc();
    if reason == OpaqueReason::TlsRelayed
        && let Some(unread) = context.port.unread_tls()
    {
        let lines = &context.port.metrics.lines.handshake;
        limited!(lines, warn, caller = %context.caller, "{}", unread.text);
        // The developer waits for requests that no filter will ever see.
        context.port.tunnels.fell_back();
    }
}
