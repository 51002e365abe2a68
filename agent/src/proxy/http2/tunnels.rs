//! The tunnels of one caller's connection: each is opened when the first stream needs it, and kept
//! until its intercept is over or the workstation leaves.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::io::AsyncWrite;

use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use crate::proxy::context::ConnContext;
use crate::proxy::http2::flow::wrote;
use crate::upstream::workstation::{FirstWrite, NoWorkstation, PathInUse};
use traffic_core::http2::frames::{code, goaway};
use traffic_core::http2::router::{Host, Router, TunnelId};
use traffic_core::routing::Intercept;

/// The tunnels.
#[derive(Default)]
pub(super) struct TunnelLinks {
    pub(super) links: Vec<TunnelLink>,
    newest: u32,
}

/// One tunnel.
pub(super) struct TunnelLink {
    pub(super) id: TunnelId,
    pub(super) intercept: Arc<Intercept>,
    pub(super) state: LinkState,
    /// New streams may take it.
    pub(super) usable: bool,
    path: PathInUse,
}

pub(super) enum LinkState {
    Opening(BoxFuture<'static, Result<Conn, NoWorkstation>>),
    Open(OpenLink),
}

/// A tunnel that is open.
pub(super) struct OpenLink {
    pub(super) conn: Conn,
    buf: Buf,
    dirty: bool,
}

/// Result of a turn with one tunnel.
pub(super) enum Turn {
    /// No more can be done now.
    Rest,
    /// Something was moved.
    Moved,
    /// The tunnel is over; the reason, where it broke.
    Over(Option<String>),
}

impl TunnelLinks {
    /// The tunnel to an intercept's workstation, opened where there is none.
    pub(super) fn to(&mut self, intercept: &Arc<Intercept>, context: &ConnContext) -> TunnelId {
        let way = context.port.workstations();
        let known = self
            .links
            .iter_mut()
            .find(|link| link.usable && link.intercept.same_target(intercept));
        if let Some(link) = known {
            link.usable = !way.is_outdated(&mut link.path, intercept);
            if link.usable {
                return link.id;
            }
        }
        self.newest += 1;
        let id = TunnelId(self.newest);
        self.links.push(TunnelLink {
            id,
            intercept: Arc::clone(intercept),
            state: LinkState::Opening(Box::pin(open(context.clone(), Arc::clone(intercept)))),
            usable: true,
            path: way.path(intercept),
        });
        id
    }

    /// Lets no new stream take tunnels whose intercepts are over; streams on the way keep theirs.
    pub(super) fn prune(&mut self, context: &ConnContext) {
        let table = context.port.routes.load();
        for link in &mut self.links {
            let mut entries = table.entries().iter();
            link.usable &= entries.any(|e| e.intercept.same_target(&link.intercept));
        }
    }

    /// Ends all tunnels, in order where nothing is under way in them.
    pub(super) fn end(&mut self, router: &Router) {
        for mut link in self.links.drain(..) {
            if let LinkState::Open(open) = &mut link.state
                && !router.is_tunnel_idle(link.id)
            {
                open.conn.abort();
            }
        }
    }
}

async fn open(context: ConnContext, intercept: Arc<Intercept>) -> Result<Conn, NoWorkstation> {
    let way = context.port.workstations();
    let hello = context.hello.as_deref();
    way.connect(&intercept, context.caller, hello, FirstWrite::AfterDial)
        .await
}

impl OpenLink {
    pub(super) fn new(conn: Conn) -> Self {
        Self {
            conn,
            buf: Buf::default(),
            dirty: false,
        }
    }

    /// Writes what the router has for the workstation, and reads what it says.
    pub(super) fn poll<H: Host>(
        &mut self,
        id: TunnelId,
        router: &mut Router,
        host: &mut H,
        cx: &mut Context<'_>,
    ) -> Turn {
        let mut moved = false;
        match self.poll_write(id, router, cx) {
            Poll::Ready(Ok(0)) | Poll::Pending => {}
            Poll::Ready(Ok(_)) => {
                router.tunnel_writable(id, host);
                moved = true;
            }
            Poll::Ready(Err(error)) => return Turn::Over(Some(error.to_string())),
        }
        while router.reads_tunnel(id) {
            if self.buf.is_full() {
                // Bytes that wait for more are never this many.
                return Turn::Over(Some("a frame that is too large".to_owned()));
            }
            match self.buf.poll_fill(&mut self.conn, cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Turn::Over(None),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Turn::Over(Some(error.to_string())),
            }
            match router.tunnel_sent(id, self.buf.unread(), host) {
                Ok(used) => self.buf.consume(used),
                Err(broken) => return Turn::Over(Some(broken.to_string())),
            }
            moved = true;
        }
        if moved { Turn::Moved } else { Turn::Rest }
    }

    /// Writes what there is; says how many bytes that were.
    fn poll_write(
        &mut self,
        id: TunnelId,
        router: &mut Router,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let Some(out) = router.tunnel_output(id) else {
            return Poll::Ready(Ok(0));
        };
        let mut written = 0;
        while written < out.len() {
            let bytes = out.get(written..).unwrap_or_default();
            match Pin::new(&mut self.conn).poll_write(cx, bytes) {
                Poll::Pending => break,
                Poll::Ready(result) => written += wrote(result)?,
            }
        }
        out.drain(..written);
        if out.is_empty() {
            out.shrink_to(1024);
        }
        self.dirty |= written > 0;
        if self.dirty && Pin::new(&mut self.conn).poll_flush(cx)?.is_ready() {
            self.dirty = false;
        }
        Poll::Ready(Ok(written))
    }

    /// Says farewell where there is room for it. A workstation that has ended its side already does
    /// not mind.
    pub(super) fn close(&mut self) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let farewell = goaway(0, code::NO_ERROR);
        let _ = Pin::new(&mut self.conn).poll_write(&mut cx, &farewell);
        let _ = Pin::new(&mut self.conn).poll_shutdown(&mut cx);
    }
}
