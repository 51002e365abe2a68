//! Name resolution from inside the pod, for workstations: the pod's search path and resolver
//! decide, and records are returned in wire format without compression.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder, NameEncoding};
use hickory_resolver::config::{LookupIpStrategy, ResolverOpts};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::{ResolverBuilder, TokioResolver, net::runtime::TokioRuntimeProvider};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use crate::limits::Limits;
use crate::telemetry::metrics::{ControlLimit, ControlMetrics};
use crate::telemetry::rate_limit::limited;

/// TTL of answers in seconds.
const TTL: u32 = 4;
/// Time for a query of the manager, which waits one second for an answer.
const QUERY_TIMEOUT: Duration = Duration::from_millis(450);
/// Time for a workstation's own query.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(250);

/// Names the resolver remembers, for seconds.
const CACHE_SIZE: u64 = 1024;

/// Resolver of the pod, set up from the system's configuration on first use. One for everybody, with
/// a cache, and with as many questions at a time as its limit says.
pub struct Dns {
    resolver: OnceCell<TokioResolver>,
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

/// Answer to the manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DnsAnswer {
    pub(crate) r_code: i32,
    pub(crate) rrs: Vec<u8>,
}

impl Dns {
    /// Creates one that asks the system's name servers.
    #[must_use]
    pub fn new(limits: &Limits, metrics: Arc<ControlMetrics>) -> Self {
        Self {
            resolver: OnceCell::new(),
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
        let found = self.resolver().await.ok()?.lookup_ip(host).await.ok()?;
        let first = found.iter().next();
        found.iter().find(IpAddr::is_ipv4).or(first)
    }

    /// Queries the name servers of `builder` instead of the system's.
    ///
    /// # Errors
    /// The configuration is unusable.
    pub fn with(builder: ResolverBuilder<TokioRuntimeProvider>) -> Result<Self, NetError> {
        Ok(Self {
            resolver: OnceCell::new_with(Some(build(builder)?)),
            ..Self::default()
        })
    }

    async fn resolver(&self) -> Result<&TokioResolver, NetError> {
        self.resolver
            .get_or_try_init(|| async { build(TokioResolver::builder_tokio()?) })
            .await
    }

    /// Answers a query of the manager; `None` if nothing is to be sent: other record types, and
    /// failures that another agent or a later try may not have.
    pub(crate) async fn answer(&self, name: &str, record_type: u32) -> Option<DnsAnswer> {
        let record_type = u16::try_from(record_type).ok().map(RecordType::from)?;
        let found = match record_type {
            // Record types as the stock agent answers them; others are left to other agents.
            RecordType::A | RecordType::AAAA => {
                self.by_dots(name, DnsQuestion::Address(record_type)).await
            }
            RecordType::CNAME => {
                self.by_dots(name, DnsQuestion::Records(RecordType::CNAME))
                    .await
            }
            RecordType::MX | RecordType::NS => self.records(without_dot(name), record_type).await,
            RecordType::SRV => self.services(without_dot(name)).await,
            RecordType::TXT => self.records(name, record_type).await.map(one_text),
            RecordType::PTR => self.pointers(name).await,
            _ => return None,
        };
        match found {
            Ok(found) => Some(DnsAnswer {
                r_code: 0,
                rrs: encoded(name, &found)?,
            }),
            Err(error) if is_not_found(&error) => Some(DnsAnswer {
                // NXDOMAIN.
                r_code: 3,
                rrs: Vec::new(),
            }),
            Err(error) => {
                tracing::debug!(name, %record_type, %error, "lookup failed");
                None
            }
        }
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
        let lookup = async { self.resolver().await?.lookup_ip(bare).await };
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, lookup)
            .await
            .map_err(|_| {
                Status::deadline_exceeded(format!(
                    "{name} was not resolved within {LOOKUP_TIMEOUT:?}"
                ))
            })?;
        match found {
            Ok(found) => Ok(found.iter().map(octets).collect()),
            Err(error) if is_not_found(&error) => {
                Err(Status::not_found(format!("no such host {name}")))
            }
            Err(NetError::Timeout) => Err(Status::deadline_exceeded(format!(
                "{name}: no answer in time"
            ))),
            Err(error) => Err(Status::unavailable(format!("{name}: {error}"))),
        }
    }

    /// Resolves by the number of dots: with one (the last) the search path is required, with a few
    /// it is tried first, with more the name is complete.
    async fn by_dots(&self, name: &str, asked: DnsQuestion) -> Result<Vec<RData>, NetError> {
        match name.matches('.').count() {
            0 | 1 => self.ask(without_dot(name), asked).await,
            // Like `ndots:5` in a pod's resolv.conf: names with fewer dots are completed first.
            2..=4 => match self.ask(without_dot(name), asked).await {
                Ok(found) => Ok(found),
                Err(_) => self.ask(name, asked).await,
            },
            _ => self.ask(name, asked).await,
        }
    }

    async fn ask(&self, name: &str, asked: DnsQuestion) -> Result<Vec<RData>, NetError> {
        match asked {
            DnsQuestion::Records(record_type) => self.records(name, record_type).await,
            DnsQuestion::Address(wanted) => {
                let found = self.resolver().await?.lookup_ip(name).await?;
                Ok(found
                    .iter()
                    .map(RData::from)
                    .filter(|data| data.record_type() == wanted)
                    .collect())
            }
        }
    }

    async fn records(&self, name: &str, record_type: RecordType) -> Result<Vec<RData>, NetError> {
        let found = self.resolver().await?.lookup(name, record_type).await?;
        let data = found.answers().iter().map(|record| record.data.clone());
        Ok(data
            .filter(|data| data.record_type() == record_type)
            .collect())
    }

    /// Resolves the short name of a service record by the addresses of its target.
    async fn services(&self, name: &str) -> Result<Vec<RData>, NetError> {
        let error = match self.records(name, RecordType::SRV).await {
            Err(error) if is_not_found(&error) => error,
            other => return other,
        };
        // `_service._protocol.host` (RFC 2782).
        let mut labels = name.splitn(3, '.');
        let (Some(service), Some(protocol), Some(host)) =
            (labels.next(), labels.next(), labels.next())
        else {
            return Err(error);
        };
        let Ok(found) = self.resolver().await?.lookup_ip(host).await else {
            return Err(error);
        };
        let complete = found.query().name().to_ascii();
        self.records(&format!("{service}.{protocol}.{complete}"), RecordType::SRV)
            .await
    }

    async fn pointers(&self, name: &str) -> Result<Vec<RData>, NetError> {
        match without_dot(name).parse::<IpAddr>() {
            Ok(ip) => {
                self.records(&Name::from(ip).to_ascii(), RecordType::PTR)
                    .await
            }
            Err(_) => self.records(name, RecordType::PTR).await,
        }
    }
}

#[derive(Clone, Copy)]
enum DnsQuestion {
    Address(RecordType),
    Records(RecordType),
}

fn build(mut builder: ResolverBuilder<TokioRuntimeProvider>) -> Result<TokioResolver, NetError> {
    let options: &mut ResolverOpts = builder.options_mut();
    options.timeout = QUERY_TIMEOUT;
    // Two tries of 450 ms fit into the second that the manager waits.
    options.attempts = 2;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.cache_size = CACHE_SIZE;
    options.positive_max_ttl = Some(Duration::from_secs(u64::from(TTL)));
    // Short, because a service may just be created.
    options.negative_max_ttl = Some(Duration::from_secs(1));
    builder.build()
}

fn is_not_found(error: &NetError) -> bool {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            matches!(
                none.response_code,
                // NoError without records means that the name has no record of this type.
                ResponseCode::NXDomain | ResponseCode::NoError
            )
        }
        NetError::Dns(DnsError::ResponseCode(code)) => *code == ResponseCode::NXDomain,
        _ => false,
    }
}

fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// Joins all strings into one record.
fn one_text(found: Vec<RData>) -> Vec<RData> {
    let texts = found.iter().filter_map(|data| match data {
        RData::TXT(text) => Some(
            text.txt_data
                .iter()
                .map(|t| String::from_utf8_lossy(t).into_owned()),
        ),
        _ => None,
    });
    vec![RData::TXT(TXT::new(texts.flatten().collect()))]
}

/// Encodes records in wire format, back to back, all under the queried name.
fn encoded(name: &str, found: &[RData]) -> Option<Vec<u8>> {
    let mut owner = Name::from_ascii(name)
        .or_else(|_| Name::from_utf8(name))
        .ok()?;
    // Absolute, so that the encoder does not append a search domain.
    owner.set_fqdn(true);
    let mut wire = Vec::new();
    let mut encoder = BinEncoder::new(&mut wire);
    encoder.set_name_encoding(NameEncoding::Uncompressed);
    for data in found {
        Record::from_rdata(owner.clone(), TTL, data.clone())
            .emit(&mut encoder)
            .ok()?;
    }
    Some(wire)
}

fn octets(ip: IpAddr) -> Bytes {
    fn v4(ip: Ipv4Addr) -> Bytes {
        Bytes::copy_from_slice(&ip.octets())
    }
    fn v6(ip: Ipv6Addr) -> Bytes {
        ip.to_ipv4_mapped()
            .map_or_else(|| Bytes::copy_from_slice(&ip.octets()), v4)
    }
    match ip {
        IpAddr::V4(ip) => v4(ip),
        IpAddr::V6(ip) => v6(ip),
    }
}

impl std::fmt::Debug for Dns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dns").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
