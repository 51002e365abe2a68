//! Counts of the bytes that tunnels carry, reported to the manager when they have ended.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, watch};
use traffic_proto::manager::TunnelMetrics;
use traffic_proto::tunnel::Message;
use traffic_proto::tunnel::frame::Frame;

/// Purpose of a tunnel; decides how its counts are named in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TunnelDirection {
    /// Intercepted traffic: bytes sent to the workstation count as its ingress.
    Workstation,
    /// A connection that the workstation opened into the cluster: bytes it sent count as ingress.
    Cluster,
}

/// Counts one tunnel's bytes of data; reports them when its last owner is dropped.
pub(crate) struct Meter {
    client: String,
    /// The number of open tunnels with intercepted traffic, if it is one.
    open: Option<watch::Sender<usize>>,
    sent: AtomicU64,
    received: AtomicU64,
    reports: mpsc::Sender<TunnelMetrics>,
}

impl Meter {
    /// A meter for `client`; a tunnel with intercepted traffic counts in `open`.
    pub(crate) fn new(
        client: &str,
        open: Option<&watch::Sender<usize>>,
        reports: &mpsc::Sender<TunnelMetrics>,
    ) -> Self {
        if let Some(open) = open {
            open.send_modify(|n| *n += 1);
        }
        Self {
            client: client.to_owned(),
            open: open.cloned(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            reports: reports.clone(),
        }
    }

    pub(crate) fn sent(&self, frame: &Frame) {
        let n = frame.data_len() as u64;
        self.sent.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, message: &Message) {
        if let Message::Normal(data) = message {
            self.received
                .fetch_add(data.len() as u64, Ordering::Relaxed);
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let (sent, received) = (*self.sent.get_mut(), *self.received.get_mut());
        let (ingress_bytes, egress_bytes) = match &self.open {
            Some(open) => {
                open.send_modify(|n| *n -= 1);
                (sent, received)
            }
            None => (received, sent),
        };
        let client_session_id = std::mem::take(&mut self.client);
        // Dials on behalf of the manager have no session to report to, and idle tunnels nothing to
        // report.
        if !client_session_id.is_empty() && (sent, received) != (0, 0) {
            let _ = self.reports.try_send(TunnelMetrics {
                client_session_id,
                ingress_bytes,
                egress_bytes,
                ..TunnelMetrics::default()
            });
        }
    }
}
