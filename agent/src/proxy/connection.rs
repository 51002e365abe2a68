//! START HERE: one listening port, its accept loop, then one connection from end to end.

use std::future::{Future, poll_fn, ready};
use std::io;
use std::sync::Arc;
use std::task::Poll;

use futures_util::FutureExt as _;
use tokio::net::TcpStream;

use crate::addr::Caller;
use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use crate::io::relay;
use crate::outcome::{Ended, Stage};
use crate::proxy::context::{AppProtocol, ConnContext, PortContext};
use crate::proxy::detect;
use crate::proxy::detect::Protocol;
use crate::proxy::listener::bind::Accepted;
use crate::proxy::wiretap::tee::tee;
use crate::proxy::{http1, http2, opaque};
use crate::telemetry::metrics;
use crate::telemetry::metrics::{Label as _, OpaqueReason};
use crate::telemetry::rate_limit::limited;
use crate::tls;
use crate::upstream::DialApp;
use crate::upstream::app::{AppLeg, OwnPort};
use crate::upstream::app_tls::Passthrough;
use traffic_core::routing::Mechanism;
use traffic_core::sniff::{FirstBytes, classify};

/// Builds the task of one connection: carries it, then reports its outcome.
pub(crate) fn carry(accepted: Accepted, port: Arc<PortContext>) -> impl Future<Output = ()> + Send {
    let context = ConnContext {
        caller: accepted.caller,
        port: Arc::clone(&port),
        hello: None,
    };
    let carried = ConnGuard::begin(port, accepted.caller);
    connection(accepted.io, context).map(|ended| carried.end(ended))
}

/// Carries one connection from its first byte to its end. Every open connection holds memory for
/// this future, so the steps share one slot; an async function would keep both at once.
pub fn connection(io: TcpStream, context: ConnContext) -> impl Future<Output = Ended> + Send {
    begin(io, context).then(|begun| match begun {
        Ok(begun) => begun.carry().left_future(),
        Err(ended) => ready(ended).right_future(),
    })
}

/// A connection whose protocol is known.
struct ReadyConn {
    down: Conn,
    app: AppLeg,
    own: Option<OwnPort>,
    protocol: Protocol,
    first: relay::PendingBytes,
    context: ConnContext,
}

/// Runs TLS where annotations ask for it, connects to the app, and reads the first bytes.
async fn begin(io: TcpStream, mut context: ConnContext) -> Result<ReadyConn, Ended> {
    learn_other_family(&io, &context);
    let (mut down, dial) = match &context.port.tls {
        None => (Conn::Tcp(io), Arc::clone(&context.port.app)),
        // Boxed: a handshake needs much room for a short time.
        Some(_) => Box::pin(accept_tls(io, &mut context)).await?,
    };
    let port = &context.port;
    let mut app = AppLeg::new(dial, context.hello.clone(), Arc::clone(&port.metrics));
    let declared = port.app_protocol.get().0;
    let mut received = Buf::default();
    if read_available(&mut down, &mut received).await.is_err() {
        return Err(Ended::CallerReset);
    }
    if !workstation_takes_all(port) {
        // At once, also for a silent caller: the app may speak first.
        app.begin_with(classify(received.unread()) != FirstBytes::NeedMore);
    }
    let own = OwnPort::of(&mut app);
    // Declared opaque: detection must not hold back a byte.
    if declared == AppProtocol::Opaque {
        let first = relay::PendingBytes {
            from_down: received,
            ..relay::PendingBytes::default()
        };
        return Ok(ReadyConn {
            down,
            app,
            own,
            protocol: Protocol::Opaque(OpaqueReason::Declared),
            first,
            context,
        });
    }
    let first = match detect::first_bytes(&mut down, received, &mut app, &context).await {
        Ok(first) => first,
        Err(ended) => {
            // A clean close would look like an empty but complete response.
            if ended.resets_caller() {
                down.abort();
            }
            return Err(ended);
        }
    };
    report(port, first.protocol);
    let (protocol, first) = (
        first.protocol,
        relay::PendingBytes {
            from_down: first.from_caller,
            from_up: first.from_app,
        },
    );
    Ok(ReadyConn {
        down,
        app,
        own,
        protocol,
        first,
        context,
    })
}

/// Keeps where a caller has arrived who uses the other IP family than the app's configured address:
/// an app may listen on one of the pod's families only.
fn learn_other_family(io: &TcpStream, context: &ConnContext) {
    let app = &context.port.app;
    let other = app
        .app_addr()
        .is_some_and(|app| app.0.is_ipv4() != context.caller.0.is_ipv4());
    if other
        && app.other_addr().is_none()
        && let Ok(local) = io.local_addr()
    {
        app.learn_other_family(local.ip().to_canonical());
    }
}

impl ReadyConn {
    /// Carries the connection by its protocol. All but HTTP/1 are boxed, so that the many HTTP/1
    /// connections do not hold room for them.
    fn carry(self) -> impl Future<Output = Ended> + Send {
        let Self {
            down,
            app,
            own,
            protocol,
            first,
            context,
        } = self;
        match protocol {
            Protocol::Http1 => {
                http1::exchanges::exchanges(down, first.from_down, app, context).left_future()
            }
            Protocol::Http2 => http2(down, app, first, context).boxed().right_future(),
            Protocol::Opaque(reason) => relay_opaque(down, app, first, context, reason)
                .boxed()
                .right_future(),
        }
        .inspect(move |_| drop(own))
    }
}

async fn http2(
    mut down: Conn,
    app: AppLeg,
    first: relay::PendingBytes,
    context: ConnContext,
) -> Ended {
    match app.into_conn().await {
        Ok(app) => http2::carry(down, first.from_down, Some(app), first.from_up, &context).await,
        // While there are rules, requests may yet be a workstation's.
        Err(_) if !context.port.routes.load().is_empty() => {
            http2::carry(down, first.from_down, None, first.from_up, &context).await
        }
        Err(ended) => {
            down.abort();
            ended
        }
    }
}

/// Reads what the caller has already sent, without waiting.
async fn read_available(down: &mut Conn, received: &mut Buf) -> io::Result<()> {
    if let Conn::Tcp(socket) = down {
        return received.fill_now(socket).map(drop);
    }
    match poll_fn(|cx| Poll::Ready(received.poll_fill(down, cx))).await {
        Poll::Ready(read) => read.map(drop),
        Poll::Pending => Ok(()),
    }
}

/// Logs the protocol found on a port, once for each port and protocol.
fn report(port: &PortContext, found: Protocol) {
    let (carried, reason) = match found {
        Protocol::Http1 => (metrics::Protocol::Http1, None),
        Protocol::Http2 => (metrics::Protocol::Http2, None),
        Protocol::Opaque(reason) => (metrics::Protocol::Opaque, Some(reason.label())),
    };
    if port.metrics.carried.at(carried).get() == 0 {
        let (declared, source) = port.app_protocol.get();
        tracing::info!(
            port = port.container_port,
            carried = carried.label(),
            reason,
            declared = declared.word(),
            source = source.word(),
            "protocol detected"
        );
    }
}

/// Accepts TLS where annotations ask for it: finds ALPN and caller identity, and prepares the
/// matching TLS towards the app.
async fn accept_tls(
    io: TcpStream,
    context: &mut ConnContext,
) -> Result<(Conn, Arc<dyn DialApp>), Ended> {
    let port = Arc::clone(&context.port);
    let Some(tls) = &port.tls else {
        return Ok((Conn::Tcp(io), Arc::clone(&port.app)));
    };
    let arrival = tokio::select! {
        biased;
        arrival = tls.accept(io, port.routes.load().is_empty(), &port.metrics) => arrival,
        // A caller that has sent nothing by now loses nothing by being refused.
        () = port.drain.draining() => return Err(Ended::Drained),
    };
    match arrival {
        Ok(tls::server::accept::Arrival::Terminated(conn, hello)) => {
            context.hello = Some(Arc::new(hello));
            Ok((conn, Arc::clone(&port.app)))
        }
        Ok(tls::server::accept::Arrival::Clear(io, hello)) => {
            context.hello = hello.map(Arc::new);
            Ok((Conn::Tcp(io), Arc::clone(&port.app)))
        }
        Ok(tls::server::accept::Arrival::Passthrough(io)) => {
            Ok((Conn::Tcp(io), Arc::new(Passthrough(Arc::clone(&port.app)))))
        }
        Err(refused) => {
            limited!(
                port.metrics.lines.handshake,
                info,
                port = port.container_port,
                caller = %context.caller,
                "{refused}"
            );
            Err(refused.ended)
        }
    }
}

/// Relays a connection without parsing it. It stays with the app if the app has already sent
/// something, if the bytes were not understood on a port with an identity header (they could forge
/// it), if it is TLS of the caller's own, or if the port is declared opaque.
async fn relay_opaque(
    mut down: Conn,
    app: AppLeg,
    first: relay::PendingBytes,
    context: ConnContext,
    reason: OpaqueReason,
) -> Ended {
    let context = &context;
    down = tee(down, first.from_down.unread(), context);
    // Bytes that were not understood could still carry a forged identity header.
    if !matches!(reason, OpaqueReason::TlsRelayed | OpaqueReason::Declared)
        && context.identity().is_some()
    {
        context.port.metrics.opaque.at(reason).inc();
        down.abort();
        return Ended::Malformed;
    }
    // The app was not dialled, because a workstation takes the connection.
    if app.is_idle() {
        return opaque::carry(down, first.from_down, None, context, reason).await;
    }
    match app.into_conn().await {
        Ok(app) if first.from_up.is_empty() => {
            opaque::carry(down, first.from_down, Some(app), context, reason).await
        }
        Ok(app) => opaque::to_app(down, first, app, context, reason).await,
        Err(ended) => {
            down.abort();
            ended
        }
    }
}

/// Returns true if a rule sends every opaque connection to a workstation, so that the app may not
/// be needed.
fn workstation_takes_all(port: &PortContext) -> bool {
    port.routes
        .load()
        .global()
        .is_some_and(|i| i.mechanism == Mechanism::Tcp)
}

/// Counts a connection as open until dropped and reports its outcome, also after a panic or a kill
/// by the drain.
struct ConnGuard {
    port: Arc<PortContext>,
    caller: Caller,
    ended: Option<Ended>,
}

impl ConnGuard {
    fn begin(port: Arc<PortContext>, caller: Caller) -> Self {
        port.metrics.active.add(1);
        Self {
            port,
            caller,
            ended: None,
        }
    }

    fn end(mut self, ended: Ended) {
        self.ended = Some(ended);
    }
}

impl Drop for ConnGuard {
    fn drop(&mut self) {
        self.port.metrics.active.add(-1);
        let ended = match self.ended {
            Some(ended) => ended,
            // Dropped without an outcome: by unwinding, or by the drain that aborts its task.
            None if std::thread::panicking() => Ended::Bug,
            None => Ended::Drained,
        };
        self.port.metrics.ended.at(ended).inc();
        let (port, caller, label) = (self.port.container_port, self.caller, ended.label());
        let lines = &self.port.metrics.lines;
        match ended {
            Ended::Bug => tracing::error!(port, %caller, ended = label, "connection"),
            Ended::Drained => tracing::info!(port, %caller, ended = label, "connection"),
            Ended::TunnelLost => {
                limited!(lines.tunnel, info, port, %caller, ended = label, "connection")
            }
            Ended::Limit => {
                limited!(lines.refused, warn, port, %caller, ended = label, "connection")
            }
            Ended::AppRefused | Ended::TimedOut(Stage::AppConnect) => {
                self.port.app_protocol.forget_probe();
                limited!(
                    lines.app, warn, port, %caller, ended = label,
                    "the app refuses connections: callers are refused as without the agent"
                );
            }
            _ => tracing::debug!(port, %caller, ended = label, "connection"),
        }
    }
}
