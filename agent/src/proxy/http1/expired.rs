//! The only response the agent makes itself: 503 for a request that matches an expired intercept
//! whose owner wants such requests to be noticed.

use std::sync::Arc;

use tokio::io::AsyncWriteExt as _;

use crate::outcome::Ended;
use crate::proxy::http1::connection::Connection;
use crate::telemetry::metrics::Class;
use traffic_core::http1::body::Body;
use traffic_core::http1::head::{Head, Method};
use traffic_core::routing::Intercept;

/// The message in the response body: the cause and the remedy.
#[must_use]
pub(crate) fn text(intercept: &Intercept) -> String {
    format!(
        "The intercept \"{}\" of {} has expired, so this request was not served.\nCreate the \
        intercept again to receive such requests, or remove the header or path that it matches to \
        reach the service.\n",
        intercept.name, intercept.client
    )
}

impl Connection {
    /// Answers with 503. `None` if the next request may follow; if the request's body has not fully
    /// arrived, the connection ends after the response.
    pub(crate) async fn expired(
        &mut self,
        intercept: Arc<Intercept>,
        head: Head,
        body: Body,
    ) -> Option<Ended> {
        let text = text(&intercept);
        let keeps = head.persists() && body.is_done();
        let connection = match (keeps, head.minor) {
            (false, _) => "Connection: close\r\n",
            (true, 0) => "Connection: keep-alive\r\n",
            (true, _) => "",
        };
        let explained = self
            .record
            .as_ref()
            .and_then(|n| n.explained_line())
            .unwrap_or_default();
        let content = if head.method() == Method::Head {
            ""
        } else {
            &text
        };
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {}\r\n{explained}{connection}\r\n{content}",
            text.len(),
        );
        self.request.discard_sendable();
        self.stale_app = true;
        let metrics = &self.context.port.metrics;
        metrics.responses.at(Class::C5xx).inc();
        if self.down.write_all(answer.as_bytes()).await.is_err() || self.down.flush().await.is_err()
        {
            return Some(Ended::CallerReset);
        }
        metrics.bytes_out.add(answer.len() as u64);
        if let Some(record) = &mut self.record {
            record.answered(503, None);
            record.moved(0, content.len() as u64);
        }
        if keeps {
            None
        } else {
            Some(self.linger().await)
        }
    }
}
