//! Connections that are upgraded to HTTP/2 by a request that offers it. Only the app may agree: a
//! workstation would get all later streams of the connection, whomever they are meant for, so it is
//! not told of the offer and answers in HTTP/1.

use crate::io::buffers::Buf;
use crate::outcome::Ended;
use crate::proxy::http1::connection::{Connection, Upstream};
use crate::proxy::http2;
use traffic_core::http1::body::Body;
use traffic_core::http1::h2c::{self, Offer};
use traffic_core::http1::head::{Head, Kind, Parser, Step};

impl Connection {
    /// Takes note of a request's offer to go on in HTTP/2, or takes it out of the head where a
    /// workstation will read it. Returns the offer if the app gets it.
    pub(crate) fn take_offer(
        &mut self,
        upstream: Upstream,
        head: &mut Head,
        body: &mut Body,
    ) -> Option<Box<Offer>> {
        if !head.upgrade {
            return None;
        }
        let bytes = self.request.buf.unread();
        if upstream == Upstream::App {
            return h2c::offered(head, bytes).map(Box::new);
        }
        let mut without = h2c::without_offer(head, bytes)?;
        if let Ok(Step::Complete(shorter)) = Parser::new(Kind::Request).parse(&without) {
            without.extend_from_slice(bytes.get(head.len..).unwrap_or_default());
            self.request.buf = Buf::from(&without[..]);
            *head = shorter;
            *body = Body::of_request(head);
            // Its framing has been found sound with the offer in it.
            let _ = self.request.mark_head_sendable(head.len, body);
        }
        None
    }

    /// Goes on in HTTP/2: the request that the app has answered with 101 is stream 1.
    pub(crate) async fn into_http2(mut self, offer: Option<Box<Offer>>) -> Ended {
        let (first, _) = self.request.take();
        let (said, _) = self.answer.take();
        let upgraded = http2::Upgraded {
            settings: offer.map(|offer| offer.settings).unwrap_or_default(),
            record: self.record.take(),
        };
        match self.app.into_conn().await {
            Ok(app) => {
                http2::carry_upgraded(self.down, first, app, said, upgraded, &self.context).await
            }
            Err(ended) => ended,
        }
    }
}
