//! Counts of the bytes that tunnels carry, reported to the manager when they have ended.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, watch};
use traffic_proto::manager::TunnelMetrics;
use traffic_proto::sync::lock;
use traffic_proto::tunnel::Message;
use traffic_proto::tunnel::frame::Frame;

/// Clients whose reports may wait; those of more are dropped, since they are only statistics.
const MAX_REPORTS: usize = 256;

/// Reports of ended tunnels that the manager is still to get, one for each client; cheap to clone.
///
/// Callers that open a connection for each request end thousands of tunnels a second: a call to the
/// manager for each costs a third of all that such a tunnel takes.
#[derive(Clone, Default)]
pub(crate) struct TunnelReports(Arc<PendingReports>);

#[derive(Default)]
struct PendingReports {
    reports: Mutex<Vec<TunnelMetrics>>,
    /// Signals that there are some again.
    some: Notify,
}

impl TunnelReports {
    /// Adds the bytes of an ended tunnel to its client's report.
    fn add(&self, ended: TunnelMetrics) {
        let mut reports = lock(&self.0.reports);
        let client = &ended.client_session_id;
        if let Some(report) = reports.iter_mut().find(|r| r.client_session_id == *client) {
            report.ingress_bytes += ended.ingress_bytes;
            report.egress_bytes += ended.egress_bytes;
        } else if reports.len() < MAX_REPORTS {
            reports.push(ended);
            // Whoever waits is on another thread, and is woken once.
            if reports.len() == 1 {
                self.0.some.notify_one();
            }
        }
    }

    /// Takes the reports there are.
    pub(crate) fn take(&self) -> Vec<TunnelMetrics> {
        std::mem::take(&mut lock(&self.0.reports))
    }

    /// Takes the reports as soon as there are some.
    pub(crate) async fn next(&self) -> Vec<TunnelMetrics> {
        loop {
            let reports = self.take();
            if !reports.is_empty() {
                return reports;
            }
            self.0.some.notified().await;
        }
    }
}

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
    reports: TunnelReports,
}

impl Meter {
    /// A meter for `client`; a tunnel with intercepted traffic counts in `open`.
    pub(crate) fn new(
        client: &str,
        open: Option<&watch::Sender<usize>>,
        reports: &TunnelReports,
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
            self.reports.add(TunnelMetrics {
                client_session_id,
                ingress_bytes,
                egress_bytes,
                ..TunnelMetrics::default()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn end(reports: &TunnelReports, client: &str, sent: &[u8]) {
        let meter = Meter::new(client, None, reports);
        meter.received(&Message::Normal(sent.to_vec().into()));
    }

    #[tokio::test]
    async fn the_tunnels_of_a_client_are_reported_together_and_those_of_two_apart() {
        let reports = TunnelReports::default();
        let mut waiting = Box::pin(reports.next());
        assert!((&mut waiting).now_or_never().is_none());
        for _ in 0..1000 {
            end(&reports, "one", b"four");
        }
        end(&reports, "two", b"bytes");
        // Nothing was carried.
        end(&reports, "three", b"");
        let told: Vec<_> = waiting.await;
        let told = told
            .iter()
            .map(|r| (&*r.client_session_id, r.ingress_bytes));
        assert_eq!(told.collect::<Vec<_>>(), [("one", 4000), ("two", 5)]);
        assert!(reports.next().now_or_never().is_none());
    }

    #[test]
    fn clients_that_are_too_many_are_left_out() {
        let reports = TunnelReports::default();
        for n in 0..=MAX_REPORTS {
            end(&reports, &n.to_string(), b"four");
        }
        end(&reports, "0", b"more");
        let told = reports.take();
        assert_eq!((told.len(), told[0].ingress_bytes), (MAX_REPORTS, 8));
    }
}
