//! Upstream selection for a matched request: an open tunnel of this connection, or a new one.
//! Nothing of a request is sent until the workstation has connected; every failure before that
//! falls back to the app.

use std::error::Error;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, timeout_at};

use crate::io::conn::Conn;
use crate::proxy::context::ConnContext;
use crate::proxy::http1::connection::{Connection, Upstream};
use crate::telemetry::metrics::{FailOpen, Label as _};
use crate::telemetry::rate_limit::limited;
use crate::upstream::{Transport, tunnel};
use traffic_core::routing::Intercept;

use crate::proxy::http1::tunnels::PooledTunnel;

impl Connection {
    /// Returns the upstream to the intercept's workstation, or the app if no tunnel can be had.
    pub(crate) async fn workstation(&mut self, intercept: Arc<Intercept>) -> Upstream {
        intercept.stats.hit(now_unix());
        poll_fn(|cx| {
            self.workstations.drop_ended(cx);
            Poll::Ready(())
        })
        .await;
        if let Some(at) = self.workstations.find(&intercept) {
            return Upstream::Tunnel(at);
        }
        match Box::pin(open(&self.context, &intercept)).await {
            Ok(conn) => {
                self.workstations
                    .open
                    .push(PooledTunnel { intercept, conn });
                Upstream::Tunnel(self.workstations.open.len() - 1)
            }
            Err(failure) => {
                self.context.port.metrics.fail_open.at(failure.why).inc();
                if let Some(record) = &mut self.record {
                    record.failed_open(failure.why, &self.context.app_address());
                }
                report(&self.context, &intercept, &failure);
                Upstream::App
            }
        }
    }
}

struct Failure {
    why: FailOpen,
    error: Box<dyn Error + Send + Sync>,
}

impl Failure {
    fn new(why: FailOpen, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            why,
            error: error.into(),
        }
    }
}

/// Opens a tunnel, waits until the workstation has connected, and starts TLS in it if the app is
/// spoken to in TLS.
async fn open(context: &ConnContext, intercept: &Arc<Intercept>) -> Result<Conn, Failure> {
    let port = &context.port;
    let deadline = Instant::now() + intercept.dial_budget();
    let mut tunnel = tunnel::open(
        &*port.tunnels,
        &port.metrics,
        intercept,
        context.caller,
        Transport::Tcp,
    )
    .await
    .map_err(|e| Failure::new(e.fail_open(), e))?;
    if let Err(failure) = tunnel.await_dial(deadline).await {
        return Err(Failure::new(failure.fail_open(), failure));
    }
    let tunnel = Box::new(tunnel);
    if intercept.plaintext || !port.app.speaks_tls(context.hello.as_deref()).await {
        return Ok(Conn::Other(tunnel));
    }
    let Some(handshake) = port
        .app
        .tls_to_workstation(tunnel, context.hello.as_deref())
    else {
        return Err(Failure::new(
            FailOpen::Handshake,
            "no TLS towards the workstation is configured",
        ));
    };
    match timeout_at(deadline, handshake).await {
        Ok(shaken) => shaken.map_err(|e| Failure::new(FailOpen::Handshake, e)),
        Err(_) => Err(Failure::new(
            FailOpen::Handshake,
            "the TLS handshake with the workstation took too long",
        )),
    }
}

fn report(context: &ConnContext, intercept: &Intercept, failure: &Failure) {
    let Failure { why, error } = failure;
    limited!(
        context.port.metrics.lines.fail_open, info, port = context.port.container_port, caller = %context.caller,
        intercept = %intercept.id, reason = why.label(), %error, "no workstation: the app answers"
    );
}

fn now_unix() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}
