//! The accept loop of one listening port: connections are admitted until the drain begins, and
//! every admitted one becomes a task.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use rustix::io::Errno;
use tokio::net::TcpListener;

use crate::addr::Caller;
use crate::io::fd_reserve;
use crate::outcome::Ended;
use crate::proxy::connection::carry;
use crate::proxy::context::PortContext;
use crate::proxy::listener::bind::{self, Accepted};
use crate::telemetry::memory;
use crate::telemetry::metrics::Limit;
use crate::telemetry::rate_limit::limited;

/// Maximum of open connections on one port; more are refused. Far above what a pod serves, far
/// below what its memory holds.
pub const MAX_CONNECTIONS: i64 = 32 * 1024;
/// Pause in accepting after file descriptors ran out.
const EXHAUSTED_DELAY: Duration = Duration::from_millis(50);

/// Time in which the backlog is still accepted after accepting ended, because closing the listener
/// resets queued callers.
const BACKLOG_DRAIN_TIMEOUT: Duration = Duration::from_millis(50);

/// Accepts until the drain stops it. Every connection is one task.
pub async fn accept(listener: TcpListener, port: Arc<PortContext>) {
    // Asked for each time, because a crowd that is never all accepted would keep the other branch
    // from its turn.
    while !port.drain.is_closed() {
        if !fd_reserve::ensure() {
            pause_accepting(&port, &Errno::MFILE.into()).await;
            continue;
        }
        let accepted = tokio::select! {
            biased;
            accepted = next(&listener) => accepted,
            () = port.drain.closed() => break,
        };
        match accepted {
            Ok(accepted) => admit(accepted, &port),
            Err(error) if bind::is_exhausted(&error) => pause_accepting(&port, &error).await,
            // The caller left before it was accepted.
            Err(error) => tracing::debug!(port = port.agent_port, %error, "accept"),
        }
    }
    drain_backlog(&listener, &port);
}

async fn next(listener: &TcpListener) -> io::Result<Accepted> {
    let (io, peer) = listener.accept().await?;
    Ok(Accepted {
        io,
        caller: Caller::new(peer),
    })
}

/// Accepts all queued connections without waiting for more.
fn drain_backlog(listener: &TcpListener, port: &Arc<PortContext>) {
    let end = Instant::now() + BACKLOG_DRAIN_TIMEOUT;
    while Instant::now() < end {
        match next(listener).now_or_never() {
            Some(Ok(accepted)) => admit(accepted, port),
            // Gone before its turn; others may wait behind it.
            Some(Err(error)) if !bind::is_exhausted(&error) => {}
            Some(Err(_)) | None => return,
        }
    }
}

/// Pauses accepting, so that callers wait in the backlog until connections have ended.
async fn pause_accepting(port: &PortContext, error: &io::Error) {
    // Released, because it may be the last descriptor, and a caller accepted by another worker may
    // need one to dial the app.
    fd_reserve::release();
    port.metrics.limits.at(Limit::Descriptors).inc();
    limited!(
        port.metrics.lines.refused, warn, port = port.agent_port, %error,
        "out of file descriptors: accepting paused; raise the limit of open files (ulimit -n), two \
        for each connection"
    );
    tokio::select! {
        () = tokio::time::sleep(EXHAUSTED_DELAY) => {}
        () = port.drain.closed() => {}
    }
}

fn admit(accepted: Accepted, port: &Arc<PortContext>) {
    port.metrics.connections.inc();
    if port.metrics.active.get() >= MAX_CONNECTIONS {
        port.metrics.limits.at(Limit::Connections).inc();
        port.metrics.ended.at(Ended::Limit).inc();
        limited!(
            port.metrics.lines.refused,
            warn,
            port = port.agent_port,
            caller = %accepted.caller,
            open = MAX_CONNECTIONS,
            "connection limit reached: connection refused"
        );
        return accepted.refuse();
    }
    if !memory::BUDGET.has_room() {
        port.metrics.limits.at(Limit::Memory).inc();
        port.metrics.ended.at(Ended::Limit).inc();
        limited!(
            port.metrics.lines.refused,
            warn,
            port = port.agent_port,
            caller = %accepted.caller,
            "memory limit near: connection refused; raise the container's memory limit, or memory"
        );
        return accepted.refuse();
    }
    if accepted.is_our_own(port.app.app_addr()) {
        port.metrics.self_connections.inc();
        limited!(
            port.metrics.lines.refused,
            error,
            port = port.agent_port,
            caller = %accepted.caller,
            "redirect loop: the agent's own connection to the app came back to the agent and is \
            closed; run the init container with the agent's uid or gid"
        );
        return accepted.refuse();
    }
    port.drain.carry(carry(accepted, Arc::clone(port)));
}
