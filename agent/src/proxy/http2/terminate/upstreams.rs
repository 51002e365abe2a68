//! Where the streams of a terminated connection go on: HTTP/2 connections to the app and to
//! workstations. Each is opened when its first stream needs it and kept for the caller's
//! connection.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, Shared};
use h2::client::{Builder, Connection, SendRequest};
use http::Request;

use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use crate::outcome::Ended;
use crate::proxy::context::ConnContext;
use crate::proxy::http2::terminate::h2_io::{InspectedIo, IoState};
use crate::telemetry::metrics::FailOpen;
use crate::telemetry::rate_limit::limited;
use crate::upstream::workstation::FirstWrite;
use traffic_core::routing::Intercept;

/// Header lists are limited as in Go's servers, so that none that passes without the agent fails
/// with it.
pub(crate) const HEADER_LIST: u32 = 1 << 20;
/// Bytes of one stream that may be on their way inside the agent while the next side does not take
/// them: enough to keep a stream busy inside a cluster.
pub(crate) const STREAM_WINDOW: u32 = 128 * 1024;
/// The same for a whole connection: as many stalled streams as fill it hold up no other.
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;
/// A workstation is some tens of milliseconds away, and so needs more on its way for the same pace.
const FAR_STREAM_WINDOW: u32 = 1 << 20;
/// Bytes of one stream that wait for the socket.
pub(crate) const SEND_BUFFER: usize = 64 * 1024;
/// Streams cancelled towards a server of which late frames are tolerated silently.
const CANCELLED: usize = 1024;

/// Heads of requests that may wait inside the agent for one caller, while a tunnel is opened or the
/// app is busy.
const WAITING: usize = 8 << 20;
/// Heads that may have been sent on a connection whose peer does not take them.
pub(crate) const UNSENT: usize = 1 << 20;

/// A way to send requests upstream, or why there is none.
pub(crate) type Opening<E> = Shared<BoxFuture<'static, Result<UpstreamConn, E>>>;

/// A connection to a server.
#[derive(Clone)]
pub(crate) struct UpstreamConn {
    pub(crate) send: SendRequest<Bytes>,
    pub(crate) signs: Arc<IoState>,
}

impl UpstreamConn {
    /// Whether the server has said that it takes no more requests; the library may hear of that a
    /// little later.
    pub(crate) fn parts(&self) -> bool {
        self.signs.parts.load(Ordering::Relaxed)
    }

    /// Whether so many heads were sent and not taken that more must not be.
    pub(crate) fn is_stuffed(&self) -> bool {
        self.signs.unsent.load(Ordering::Relaxed) > UNSENT
    }
}

/// The room that a request's head takes while it waits.
pub(crate) struct Held {
    legs: Arc<UpstreamPool>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.legs.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes of a request's head, counted as header lists are (RFC 9113 section 6.5.2).
pub(crate) fn head_size<B>(request: &Request<B>) -> usize {
    let fields = request
        .headers()
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 32);
    fields.sum::<usize>() + request.uri().path().len() + request.uri().query().map_or(0, str::len)
}

/// The connections of one caller beyond the one to the app that was opened with it.
pub(crate) struct UpstreamPool {
    lane: ConnContext,
    open: Mutex<Open>,
    /// Bytes of heads that wait.
    waiting: AtomicUsize,
}

#[derive(Default)]
struct Open {
    /// For streams that come after the app has parted with its first connection.
    app: Option<Opening<Ended>>,
    workstations: Vec<(Arc<Intercept>, Opening<FailOpen>)>,
}

impl UpstreamPool {
    pub(crate) fn new(lane: ConnContext) -> Arc<Self> {
        Arc::new(Self {
            lane,
            open: Mutex::default(),
            waiting: AtomicUsize::new(0),
        })
    }

    pub(crate) fn lane(&self) -> &ConnContext {
        &self.lane
    }

    /// Room for a head of this size to wait; `None` when too many wait already.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        let waiting = self.waiting.load(Ordering::Relaxed) + bytes;
        if waiting > WAITING {
            return None;
        }
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        Some(Held {
            legs: Arc::clone(self),
            bytes,
        })
    }

    /// The connection to an intercept's workstation, opened where there is none.
    pub(crate) fn workstation(&self, intercept: &Arc<Intercept>) -> Opening<FailOpen> {
        let mut open = self.lock();
        if let Some((_, opening)) = open
            .workstations
            .iter()
            .find(|(known, _)| known.same_target(intercept))
        {
            return opening.clone();
        }
        let opening = workstation(self.lane.clone(), intercept.clone())
            .boxed()
            .shared();
        open.workstations.push((intercept.clone(), opening.clone()));
        opening
    }

    /// Forgets a connection that failed, so that the next stream tries again.
    pub(crate) fn forget(&self, failed: &Opening<FailOpen>) {
        self.lock()
            .workstations
            .retain(|(_, opening)| !opening.ptr_eq(failed));
    }

    /// A further connection to the app.
    pub(crate) fn spare_app(&self) -> Opening<Ended> {
        let mut open = self.lock();
        open.app
            .get_or_insert_with(|| spare_app(self.lane.clone()).boxed().shared())
            .clone()
    }

    /// Forgets a further connection to the app that failed.
    pub(crate) fn forget_app(&self, failed: &Opening<Ended>) {
        let mut open = self.lock();
        if open
            .app
            .as_ref()
            .is_some_and(|opening| opening.ptr_eq(failed))
        {
            open.app = None;
        }
    }

    /// Lets go of workstations whose intercepts are over; streams on the way keep theirs.
    pub(crate) fn prune(&self) {
        let table = self.lane.port.routes.load();
        let still = |known: &Arc<Intercept>| {
            table
                .entries()
                .iter()
                .any(|e| e.intercept.same_target(known))
        };
        self.lock().workstations.retain(|(known, _)| still(known));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How we speak to servers.
pub(crate) fn client(stream_window: u32) -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(stream_window)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(CANCELLED)
        // The server beyond is the user's own: what it gets wrong is not held against its other
        // streams.
        .max_local_error_reset_streams(None);
    builder
}

/// Opens HTTP/2 on a connection to a server.
pub(crate) async fn handshake(
    conn: Conn,
    said: Buf,
    stream_window: u32,
) -> Result<(UpstreamConn, Connection<InspectedIo, Bytes>), h2::Error> {
    let watched = InspectedIo::server(conn, said);
    let signs = watched.signs.clone();
    let (send, driver) = client(stream_window).handshake(watched).await?;
    Ok((UpstreamConn { send, signs }, driver))
}

async fn spare_app(lane: ConnContext) -> Result<UpstreamConn, Ended> {
    let port = &lane.port;
    let conn = port.app.dial(lane.hello.as_deref()).await.map_err(|error| {
        port.metrics.app_connect_failures.inc();
        limited!(port.metrics.lines.app, warn, port = port.container_port, caller = %lane.caller, %error, "cannot connect to the app");
        Ended::AppRefused
    })?;
    let (way, driver) = handshake(conn, Buf::default(), STREAM_WINDOW)
        .await
        .map_err(|_| Ended::AppReset)?;
    port.drain.spawn(async move {
        // Its streams have seen what ended it.
        let _ = driver.await;
    });
    Ok(way)
}

/// Opens a tunnel, waits for the workstation's dial, and speaks HTTP/2 through it. No byte is sent
/// before DialOK.
async fn workstation(
    lane: ConnContext,
    intercept: Arc<Intercept>,
) -> Result<UpstreamConn, FailOpen> {
    let port = &lane.port;
    let hello = lane.hello.as_deref();
    let workstations = port.workstations();
    let dial = workstations.connect(&intercept, lane.caller, hello, FirstWrite::AfterDial);
    let conn = dial.await.map_err(|failure| failure.why)?;
    let (way, driver) = handshake(conn, Buf::default(), FAR_STREAM_WINDOW)
        .await
        .map_err(|_| FailOpen::Lost)?;
    let (metrics, signs) = (port.metrics.clone(), way.signs.clone());
    port.drain.spawn(async move {
        let failed = driver.await.is_err();
        let lost = signs.over.load(Ordering::Relaxed);
        if failed && lost {
            metrics.tunnel_failures.inc();
        }
    });
    Ok(way)
}
