//! Tunnels through the manager, and what agents report of theirs.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use traffic_proto::manager as pb;

use super::{Answer, Service};
use crate::callers::Caller;
use crate::intercepts::Report;
use crate::metrics::TunnelBytes;
use crate::registry::Registry;
use crate::tunnels::{End, QUEUE_CAPACITY};

impl Service {
    pub(super) async fn open_tunnel(
        &self,
        request: Request<Streaming<pb::TunnelMessage>>,
    ) -> Answer<ReceiverStream<Result<pb::TunnelMessage, Status>>> {
        let (outgoing, messages) = mpsc::channel(QUEUE_CAPACITY);
        let caller = Caller::of(&request);
        let end = End {
            incoming: request.into_inner(),
            outgoing: outgoing.clone(),
        };
        let (shared, tunnels) = (self.shared.clone(), self.tunnels.clone());
        let stream = TunnelBytes::begin(&self.tunnel_bytes);
        self.tasks.spawn(async move {
            if let Err(status) = tunnels.serve(&shared, end, &caller).await {
                stream.failed();
                tracing::debug!("tunnel refused: {}", status.message());
                let _ = outgoing.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    pub(super) async fn take_report(&self, request: Request<pb::TunnelMetrics>) -> Answer<()> {
        let caller = Caller::of(&request);
        let pb::TunnelMetrics {
            client_session_id,
            ingress_bytes,
            egress_bytes,
            intercept_id,
            failed_open,
            failure,
            hits,
            agent_session_id,
        } = request.into_inner();
        if !agent_session_id.is_empty() {
            self.own_or_new(&caller, &agent_session_id)?;
        }
        if !intercept_id.is_empty() {
            let report = Report {
                hits,
                failed_open,
                failure,
            };
            // Counts alone are no news to watches: who wants them asks.
            let reported = |registry: &mut Registry| {
                registry.reported(&intercept_id, &agent_session_id, report)
            };
            if self.shared.change_unseen(reported) {
                self.shared.announce();
            }
            return Ok(Response::new(()));
        }
        self.tunnel_bytes.add(ingress_bytes, egress_bytes);
        tracing::debug!(
            session = client_session_id,
            ingress_bytes,
            egress_bytes,
            "bytes of ended tunnels"
        );
        Ok(Response::new(()))
    }
}
