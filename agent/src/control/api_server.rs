//! The server of the agent's gRPC API: its connections, their windows and their keepalive. Each
//! connection is one task, and so are the calls on it until they are answered.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use h2::server;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tonic_health::pb::health_server::Health;
use traffic_core::http2::authority::AuthorityRewriter;
use traffic_proto::rewrite_io::RewriteReads;
use traffic_proto::tunnel::MAX_FRAME;

use crate::control::api::{CallPeer, Service};
use crate::control::api_calls::{Answered, Services};
use crate::control::api_socket::{MovableSocket, Move};
use crate::control::keepalive::{HeardReads, Keepalive, SignsOfLife};
use crate::control::stream_windows::{STREAM_WINDOW, StreamWindows, UnreadTunnels};
use crate::io::listen;

/// Connection window, effectively unlimited: tunnels share a connection, and a few stalled ones
/// must not stop the rest.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Bytes that wait in one call for the connection; its sender waits beyond.
pub(crate) const SEND_BUFFER: usize = 192 * 1024;
/// Largest header section of a call.
const MAX_HEADERS: u32 = 16 * 1024;

/// Name of the agent's service in health calls.
const SERVICE: &str = "telepresence.agent.Agent";

/// Serves the agent's API and gRPC health on `listeners`, for ever. An error of a connection ends only
/// that connection.
///
/// A connection begins on this runtime. Once a workstation is let in and attached by it, it goes over
/// to one of `workers`: there its tunnels are read and written, so no thread waits for another.
pub(crate) async fn serve(service: Service, listeners: Vec<TcpListener>, workers: Vec<Handle>) {
    let (reporter, health) = tonic_health::server::health_reporter();
    let serving = tonic_health::ServingStatus::Serving;
    reporter.set_service_status(SERVICE, serving).await;
    let agent = service;
    let services = Arc::new(Services { agent, health });
    let unread = UnreadTunnels::default();
    let (here, turns) = (Handle::current(), AtomicUsize::new(0));
    let next_worker = || workers.get(turns.fetch_add(1, Ordering::Relaxed) % workers.len().max(1));
    let accepting = listeners.into_iter().map(async |listener| {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                socket = listen::accept(&listener, "agent API") => {
                    let opening = Box::pin(open(socket, Arc::clone(&services), unread.clone()));
                    connections.spawn(async {
                        let mut connection = opening.await?;
                        let served = connection.as_mut().await;
                        (served == Served::Attached).then_some(connection)
                    });
                }
                Some(ended) = connections.join_next() => {
                    let Ok(Some(mut connection)) = ended else {
                        continue;
                    };
                    connection.moves.over();
                    let worker = next_worker().unwrap_or(&here);
                    let rest = async move {
                        connection.as_mut().await;
                        None
                    };
                    connections.spawn_on(rest, worker);
                }
            }
        }
    });
    join_all(accepting).await;
}

/// Opens a connection, in a box: one that is open lasts for days and keeps no room for this.
async fn open<H: Health>(
    socket: TcpStream,
    services: Arc<Services<H>>,
    unread: UnreadTunnels,
) -> Option<Pin<Box<ApiConnection<impl WorkstationIo, H>>>> {
    let peer = socket.peer_addr().ok();
    let moves = Move::default();
    let socket = MovableSocket::new(socket, moves.clone());
    let rewritten = RewriteReads::new(socket, AuthorityRewriter::new("localhost"));
    let signs = SignsOfLife::default();
    let handshake = server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADERS)
        .handshake(HeardReads::new(rewritten, signs.clone()));
    match handshake.await {
        Ok(mut connection) => {
            let pings = connection.ping_pong();
            let windows = StreamWindows::new(unread);
            let tunnels = windows.tunnels().clone();
            Some(Box::pin(ApiConnection {
                connection,
                keepalive: pings.map(|pings| Keepalive::new(pings, signs.clone())),
                windows,
                calls: FuturesUnordered::new(),
                services,
                peer: CallPeer {
                    address: peer,
                    signs,
                    tunnels,
                },
                moves,
                placed: false,
            }))
        }
        Err(error) => {
            tracing::debug!(%error, ?peer, "a connection of the agent's gRPC API was not opened");
            None
        }
    }
}

/// A workstation's socket.
trait WorkstationIo: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<I: AsyncRead + AsyncWrite + Send + Unpin + 'static> WorkstationIo for I {}

/// A connection, and the calls on it that need more than an answer.
struct ApiConnection<I, H> {
    connection: server::Connection<I, Bytes>,
    /// None where the library gives no pings, which it does once.
    keepalive: Option<Keepalive>,
    windows: StreamWindows,
    calls: FuturesUnordered<Call>,
    services: Arc<Services<H>>,
    peer: CallPeer,
    moves: Move,
    /// It is on the runtime where it stays.
    placed: bool,
}

/// Why a connection is no longer polled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Served {
    Over,
    /// A workstation has attached itself: the connection is to go on elsewhere.
    Attached,
}

/// A call that is being answered, or the rest of one.
struct Call(BoxFuture<'static, Answered>);

impl Future for Call {
    type Output = Answered;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answered> {
        self.0.as_mut().poll(cx)
    }
}

impl<I, H> ApiConnection<I, H>
where
    I: WorkstationIo,
    H: Health,
{
    /// Works on the calls: what they send leaves when the connection is polled after them. True if a
    /// workstation has attached itself.
    fn poll_calls(&mut self, cx: &mut Context<'_>) -> bool {
        let mut attached = false;
        while let Poll::Ready(Some(answered)) = self.calls.poll_next_unpin(cx) {
            let rest = match answered {
                Answered::Whole => continue,
                Answered::InPart(rest) => rest,
                Answered::Attached(rest) => {
                    attached = true;
                    rest
                }
            };
            self.calls
                .push(Call(Box::pin(rest.map(|()| Answered::Whole))));
        }
        attached
    }

    /// Has the workstation told of other windows if they are wanted; true if it is to be.
    fn changes_windows(&mut self) -> bool {
        let Some(window) = self.windows.poll_change() else {
            return false;
        };
        // Refused while the workstation has not confirmed the last change; the next look says it anew.
        let said = self.connection.set_initial_window_size(window).is_ok();
        if said {
            self.windows.changed(window);
        }
        said
    }
}

impl<I, H> Future for ApiConnection<I, H>
where
    I: WorkstationIo,
    H: Health,
{
    type Output = Served;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Served> {
        let this = self.get_mut();
        loop {
            if this.poll_calls(cx) && !this.placed {
                this.placed = true;
                return Poll::Ready(Served::Attached);
            }
            if let Some(keepalive) = &mut this.keepalive
                && keepalive.poll_gone(cx).is_ready()
            {
                tracing::debug!(peer = ?this.peer.address, "a workstation gives no sign of life");
                return Poll::Ready(Served::Over);
            }
            let polled = this.connection.poll_accept(cx);
            // It leaves when the connection is polled again.
            if this.changes_windows() && polled.is_pending() {
                continue;
            }
            let (request, respond) = match ready!(polled) {
                Some(Ok(call)) => call,
                Some(Err(error)) => {
                    let peer = this.peer.address;
                    tracing::debug!(%error, ?peer, "a connection of the agent's gRPC API ended");
                    return Poll::Ready(Served::Over);
                }
                None => return Poll::Ready(Served::Over),
            };
            let (services, peer) = (Arc::clone(&this.services), this.peer.clone());
            this.calls.push(Call(Box::pin(async move {
                services.answer(request, respond, &peer).await
            })));
        }
    }
}
