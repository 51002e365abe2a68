//! Bytes of the tunnels of one connection, moved between the router and workstations.

use std::task::{Context, Poll};

use crate::proxy::http2::streams::Streams;
use crate::proxy::http2::tunnels::{LinkState, OpenLink, TunnelLink, Turn};
use crate::telemetry::metrics::FailOpen;
use traffic_core::http2::router::Router;

/// Gives every tunnel a turn; returns true if something was moved.
pub(super) fn poll_tunnels(
    router: &mut Router,
    streams: &mut Streams,
    cx: &mut Context<'_>,
) -> bool {
    if streams.tunnels.links.is_empty() {
        return false;
    }
    // Taken out for the turn, because what is found in a tunnel is told to the streams.
    let mut links = std::mem::take(&mut streams.tunnels.links);
    let mut moved = false;
    links.retain_mut(|link| match link.poll(router, streams, cx) {
        Turn::Rest => true,
        Turn::Moved => {
            moved = true;
            true
        }
        Turn::Over(broke) => {
            moved = true;
            link.over(broke.as_deref(), router, streams);
            false
        }
    });
    links.append(&mut streams.tunnels.links);
    streams.tunnels.links = links;
    moved
}

impl TunnelLink {
    fn poll(&mut self, router: &mut Router, streams: &mut Streams, cx: &mut Context<'_>) -> Turn {
        match &mut self.state {
            LinkState::Opening(opening) => match opening.as_mut().poll(cx) {
                Poll::Pending => Turn::Rest,
                Poll::Ready(Ok(conn)) => {
                    self.state = LinkState::Open(OpenLink::new(conn));
                    router.tunnel_opened(self.id, streams);
                    Turn::Moved
                }
                Poll::Ready(Err(failure)) => {
                    streams.failure = failure.why;
                    Turn::Over(None)
                }
            },
            LinkState::Open(open) => {
                let turn = open.poll(self.id, router, streams, cx);
                self.usable &= !router.is_tunnel_parting(self.id);
                if !self.usable && router.is_tunnel_idle(self.id) && matches!(turn, Turn::Rest) {
                    return Turn::Over(None);
                }
                turn
            }
        }
    }

    /// Lets the router and the workstation know that the tunnel is over.
    fn over(&mut self, broke: Option<&str>, router: &mut Router, streams: &mut Streams) {
        let LinkState::Open(open) = &mut self.state else {
            return router.tunnel_failed(self.id, streams);
        };
        let metrics = &streams.context.port.metrics;
        match broke {
            Some(error) => {
                metrics.tunnel_failures.inc();
                tracing::debug!(intercept = %self.intercept.id, error, "tunnel ended");
                open.conn.abort();
            }
            None => open.close(),
        }
        streams.failure = FailOpen::Lost;
        router.tunnel_closed(self.id, streams);
    }
}
