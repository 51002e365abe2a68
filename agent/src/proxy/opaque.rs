//! Opaque connections: relayed to the app, or whole to a workstation if a TCP intercept takes the
//! port's connections when it begins. A connection keeps its upstream; changes of rules do not
//! reset it.

use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use crate::io::relay;
use crate::io::relay::{PendingBytes, Relayed, Side};
use crate::outcome::{Ended, Stage};
use crate::proxy::context::ConnContext;
use crate::telemetry::access_log::record::AccessRecord;
use crate::telemetry::metrics::{FailOpen, Label as _, OpaqueReason, PortMetrics, Protocol};
use crate::telemetry::rate_limit::limited;
use crate::upstream::app::ended_by_app;
use crate::upstream::{AppError, Transport, tunnel};
use traffic_core::routing::{Intercept, Mechanism};

/// Carries a connection of which nothing has been forwarded yet. `first` is what the caller has
/// sent; `app` is the app's connection if one is open. The workstation gets it if a TCP intercept
/// takes the port and its tunnel can be opened, else the app.
pub async fn carry(
    mut down: Conn,
    first: Buf,
    app: Option<Conn>,
    context: &ConnContext,
    reason: OpaqueReason,
) -> Ended {
    let global = context
        .port
        .routes
        .load()
        .global()
        .filter(|i| i.mechanism == Mechanism::Tcp)
        .cloned();
    if let Some(intercept) = global {
        match to_workstation(&intercept, context).await {
            Ok(mut workstation) => {
                drop(app);
                count(context, OpaqueReason::TcpIntercept);
                intercept.stats.hit(now_unix());
                let first = PendingBytes {
                    from_down: first,
                    from_up: Buf::default(),
                };
                let record = context.opaque_record(OpaqueReason::TcpIntercept, Some(&intercept));
                let relayed =
                    relay::both(&mut down, &mut workstation, first, &context.port.metrics).await;
                if matches!(relayed.broken, Some((Side::Up, _))) {
                    context.port.metrics.tunnel_failures.inc();
                }
                return finish_record(record, &relayed, Ended::TunnelLost);
            }
            Err((why, error)) => {
                context.port.metrics.fail_open.at(why).inc();
                limited!(
                    context.port.metrics.lines.fail_open, info, port = context.port.container_port, caller = %context.caller,
                    intercept = %intercept.id, reason = why.label(), %error, "no workstation: the app gets it"
                );
            }
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
    to_app(
        down,
        PendingBytes {
            from_down: first,
            from_up: Buf::default(),
        },
        app,
        context,
        reason,
    )
    .await
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

/// Opens a tunnel, with TLS inside if the app is spoken to in TLS. Bytes are sent without waiting
/// for the dial's result; a rejection resets the caller.
async fn to_workstation(
    intercept: &Arc<Intercept>,
    context: &ConnContext,
) -> Result<Conn, (FailOpen, Box<dyn std::error::Error + Send + Sync>)> {
    let port = &context.port;
    let tunnel = tunnel::open(
        &*port.tunnels,
        &port.metrics,
        intercept,
        context.caller,
        Transport::Tcp,
    )
    .await
    .map_err(|e| (e.fail_open(), e.into()))?;
    if intercept.plaintext {
        return Ok(Conn::Other(Box::new(tunnel)));
    }
    let tunnel = Box::new(tunnel);
    if !port.app.speaks_tls(context.hello.as_deref()).await {
        return Ok(Conn::Other(tunnel));
    }
    match port
        .app
        .tls_to_workstation(tunnel, context.hello.as_deref())
    {
        Some(handshake) => handshake
            .await
            .map_err(|e: io::Error| (FailOpen::Handshake, e.into())),
        None => Err((
            FailOpen::Handshake,
            "no TLS towards the workstation is configured".into(),
        )),
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
            tracing::debug!(caller = %context.caller, %error, "app not reached");
            match error {
                AppError::Timeout { .. } => Ended::TimedOut(Stage::AppConnect),
                AppError::Connect { .. } | AppError::Tls { .. } => Ended::AppRefused,
            }
        })
}

fn count(context: &ConnContext, reason: OpaqueReason) {
    context.port.metrics.carried.at(Protocol::Opaque).inc();
    context.port.metrics.opaque.at(reason).inc();
}

fn now_unix() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}
