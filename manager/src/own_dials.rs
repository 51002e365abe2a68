//! Connections that the manager dials itself, for clients in whose namespace no agent could: anywhere
//! but to its own ports and link-local addresses, and not without bound.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::Streaming;
use traffic_proto::dial_policy::{DialPolicy, DialRefusal};
use traffic_proto::dialer::{self, Outgoing};
use traffic_proto::manager::TunnelMessage;
use traffic_proto::tunnel::StreamInfo;

use crate::limits::{LimitCounters, MAX_DIALLED, ManagerLimit, of_descriptors};
use crate::settings::Settings;

/// The manager as a dialler.
#[derive(Debug)]
pub(crate) struct OwnDials {
    policy: DialPolicy,
    /// Connections that are open or being opened.
    places: Semaphore,
    limits: Arc<LimitCounters>,
}

impl OwnDials {
    /// Creates it for a manager whose API has `address`.
    pub(crate) fn new(
        settings: &Settings,
        address: SocketAddr,
        limits: Arc<LimitCounters>,
    ) -> Self {
        let webhook = settings.cluster.as_ref().map_or(0, |it| it.webhook_port);
        let own = [address.port(), settings.prometheus_port, webhook];
        let own = own.into_iter().filter(|port| *port != 0);
        Self {
            policy: DialPolicy::new(settings.dial_allow.clone()).with_own(own, [address.ip()]),
            places: Semaphore::new(of_descriptors(4, MAX_DIALLED)),
            limits,
        }
    }

    /// Dials for the client that opened a stream, and carries bytes until the end. What is refused,
    /// or fails, is rejected.
    pub(crate) async fn serve(
        &self,
        info: &StreamInfo,
        mut incoming: Streaming<TunnelMessage>,
        outgoing: Outgoing<Result<TunnelMessage, tonic::Status>>,
    ) {
        let conn = info.conn_id;
        let refused = match self.policy.check(conn.transport(), conn.destination()) {
            Ok(()) => None,
            Err(DialRefusal::OwnPort) => Some(ManagerLimit::DialOwnPort),
            Err(DialRefusal::LinkLocal) => Some(ManagerLimit::DialLinkLocal),
        };
        let place = self.places.try_acquire();
        let refused = refused.or_else(|| place.is_err().then_some(ManagerLimit::Dialled));
        if let Some(limit) = refused {
            let by = format!("session {} to {}", info.session_id, conn.destination());
            self.limits.reached(limit, &by);
            return dialer::reject(&mut incoming, outgoing).await;
        }
        let dialled = dialer::serve(conn, info.dial_timeout, incoming, outgoing, &());
        if let Err(error) = dialled.await {
            tracing::debug!(session = info.session_id, "{error}");
        }
    }
}
