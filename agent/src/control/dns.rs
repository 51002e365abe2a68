//! Name resolution for workstations: as many questions at a time as the limit says.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use traffic_proto::system_dns::{DnsAnswer, LookupError, LookupTimes, SystemDns};

use crate::limits::Limits;
use crate::telemetry::metrics::{ControlLimit, ControlMetrics};
use crate::telemetry::rate_limit::limited;

/// Time for a query of the manager, which waits one second for an answer: twice a question, or a few
/// of them that are answered.
const QUERY_TIMES: LookupTimes = LookupTimes {
    question: Duration::from_millis(450),
    name: Duration::from_secs(1),
};
/// Time for a workstation's own query.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(250);

/// The pod's resolver, and a bound for those who ask it.
pub struct Dns {
    system: SystemDns,
    questions: Arc<Semaphore>,
    metrics: Arc<ControlMetrics>,
}

/// A place among the questions under way.
pub(crate) struct DnsPlace(
    #[expect(dead_code, reason = "held until dropped")] OwnedSemaphorePermit,
);

impl Default for Dns {
    fn default() -> Self {
        Self::new(&Limits::default(), Arc::default())
    }
}

impl Dns {
    /// Creates one that asks the system's name servers.
    #[must_use]
    pub fn new(limits: &Limits, metrics: Arc<ControlMetrics>) -> Self {
        Self {
            system: SystemDns::new(QUERY_TIMES),
            questions: Arc::new(Semaphore::new(limits.dns_questions)),
            metrics,
        }
    }

    /// Takes a place for a question; none, counted and said, if too many are under way.
    pub(crate) fn place(&self) -> Option<DnsPlace> {
        if let Ok(place) = Arc::clone(&self.questions).try_acquire_owned() {
            return Some(DnsPlace(place));
        }
        self.metrics.limits.at(ControlLimit::DnsQuestions).inc();
        limited!(
            self.metrics.lines.dns,
            warn,
            "DNS question dropped: too many are under way; raise dnsQuestions"
        );
        None
    }

    /// The address of an intercept's target that is a name, an IPv4 one if it has any.
    pub(crate) async fn target(&self, host: &str) -> Option<IpAddr> {
        let found = self.system.addresses(host).await.ok()?;
        let v4 = found.iter().find(|ip| ip.is_ipv4());
        v4.or(found.first()).copied()
    }

    /// Answers a query of the manager; `None` if nothing is to be sent: other record types, and
    /// failures that another agent or a later try may not have.
    pub(crate) async fn answer(&self, name: &str, record_type: u32) -> Option<DnsAnswer> {
        let answer = self.system.answer(name, record_type).await;
        answer
            .inspect_err(|error| tracing::debug!(name, record_type, %error, "lookup failed"))
            .ok()
    }

    /// Returns the addresses of `name`, which ends with a dot, for a workstation that asks this
    /// agent itself.
    pub(crate) async fn addresses(&self, name: &str) -> Result<Vec<Bytes>, Status> {
        let bare = name.strip_suffix('.').filter(|n| !n.is_empty());
        let bare = bare
            .ok_or_else(|| Status::invalid_argument(format!("{name:?} does not end with a dot")))?;
        let _place = self
            .place()
            .ok_or_else(|| Status::resource_exhausted("too many questions are under way"))?;
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, self.system.addresses(bare)).await;
        match found.unwrap_or(Err(LookupError::Timeout)) {
            Ok(found) => Ok(found.into_iter().map(octets).collect()),
            Err(LookupError::NotFound) => Err(Status::not_found(format!("no such host {name}"))),
            Err(LookupError::Timeout) => Err(Status::deadline_exceeded(format!(
                "{name} was not resolved within {LOOKUP_TIMEOUT:?}"
            ))),
            Err(error) => Err(Status::unavailable(format!("{name}: {error}"))),
        }
    }
}

fn octets(ip: IpAddr) -> Bytes {
    match ip.to_canonical() {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    }
}

impl std::fmt::Debug for Dns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dns").finish_non_exhaustive()
    }
}
