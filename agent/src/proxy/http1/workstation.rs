//! The way of a matched request to its workstation: a tunnel of this connection that is open, or a
//! new one. Until the workstation has connected, nothing of a request is sent and every failure
//! lets the app answer.

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
    /// The way to the intercept's workstation, or to the app where there is none.
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
        match Box::pin(open(&self.lane, &intercept)).await {
            Ok(conn) => {
                self.workstations
                    .open
                    .push(PooledTunnel { intercept, conn });
                Upstream::Tunnel(self.workstations.open.len() - 1)
            }
            Err(failure) => {
                self.lane.port.metrics.fail_open.at(failure.why).inc();
                if let Some(notes) = &mut self.notes {
                    notes.failed_open(failure.why, &self.lane.app_address());
                }
                report(&self.lane, &intercept, &failure);
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

/// Opens a tunnel, waits for the workstation to have connected, and speaks TLS in it where the app
/// would be spoken to in TLS.
async fn open(lane: &ConnContext, intercept: &Arc<Intercept>) -> Result<Conn, Failure> {
    let port = &lane.port;
    let deadline = Instant::now() + intercept.dial_budget();
    let mut tunnel = tunnel::open(
        &*port.tunnels,
        &port.metrics,
        intercept,
        lane.caller,
        Transport::Tcp,
    )
    .await
    .map_err(|e| Failure::new(e.fail_open(), e))?;
    if let Err(failure) = tunnel.await_dial(deadline).await {
        return Err(Failure::new(failure.fail_open(), failure));
    }
    let tunnel = Box::new(tunnel);
    if intercept.plaintext || !port.app.speaks_tls(lane.hello.as_deref()).await {
        return Ok(Conn::Other(tunnel));
    }
    let Some(handshake) = port.app.tls_to_workstation(tunnel, lane.hello.as_deref()) else {
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

fn report(lane: &ConnContext, intercept: &Intercept, failure: &Failure) {
    let Failure { why, error } = failure;
    limited!(
        lane.port.metrics.lines.fail_open, info, port = lane.port.container_port, caller = %lane.caller,
        intercept = %intercept.id, reason = why.label(), %error, "no workstation: the app answers"
    );
}

fn now_unix() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}
