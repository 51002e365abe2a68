//! Names as this pod resolves them, for workstations: its search list and its name servers decide,
//! and records are returned in wire format without compression.

mod servers;

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::rr::rdata::{CNAME, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder, NameEncoding};
use hickory_resolver::net::NetError;
use tokio::sync::OnceCell;

use servers::{Families, NameServers};

/// TTL of answers in seconds.
const ANSWER_TTL: u32 = 4;

/// The resolver of this pod, set up from the system's configuration on first use. One for everybody,
/// with a cache.
#[derive(Debug)]
pub struct SystemDns {
    times: LookupTimes,
    servers: OnceCell<NameServers>,
}

/// Times that lookups may take.
#[derive(Clone, Copy, Debug)]
pub struct LookupTimes {
    /// Time a name server gets for a question, which is asked twice.
    pub question: Duration,
    /// Time for all questions about a name, with its search list.
    pub name: Duration,
}

/// Records of an answer, or the reason why there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsAnswer {
    /// 0, or 3 (NXDOMAIN) for what does not exist.
    pub r_code: i32,
    /// Records in wire format, back to back.
    pub rrs: Vec<u8>,
}

/// Reason that nothing is known about a name.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The name servers say so.
    #[error("no such host")]
    NotFound,
    /// The record type is none that is answered.
    #[error("record type {0} is not looked up")]
    Unsupported(u32),
    /// No name server answered in time.
    #[error("no answer in time")]
    Timeout,
    /// A name server failed, or the name or the configuration is none.
    #[error("{0}")]
    Failed(NetError),
}

impl SystemDns {
    /// Creates one that asks the system's name servers.
    #[must_use]
    pub fn new(times: LookupTimes) -> Self {
        Self {
            times,
            servers: OnceCell::new(),
        }
    }

    /// Answers a question of a workstation as its type wants.
    ///
    /// # Errors
    /// The type is another, or nobody knows: another resolver or a later try may.
    pub async fn answer(&self, name: &str, record_type: u32) -> Result<DnsAnswer, LookupError> {
        let unsupported = LookupError::Unsupported(record_type);
        let Ok(record_type) = u16::try_from(record_type).map(RecordType::from) else {
            return Err(unsupported);
        };
        let found = match record_type {
            // As the stock agent answers them; others are left to other agents.
            RecordType::A | RecordType::AAAA | RecordType::CNAME => {
                self.in_time(self.by_dots(name, record_type)).await
            }
            RecordType::MX | RecordType::NS => {
                let found = self.records(without_dot(name), record_type);
                self.in_time(found).await
            }
            RecordType::SRV => self.in_time(self.services(without_dot(name))).await,
            RecordType::TXT => {
                let found = self.in_time(self.records(name, record_type)).await;
                found.map(one_text)
            }
            RecordType::PTR => self.in_time(self.pointers(name)).await,
            _ => return Err(unsupported),
        };
        match found {
            Ok(found) => Ok(DnsAnswer {
                r_code: 0,
                rrs: encoded(name, &found).map_err(LookupError::Failed)?,
            }),
            Err(LookupError::NotFound) => Ok(DnsAnswer {
                // NXDOMAIN.
                r_code: 3,
                rrs: Vec::new(),
            }),
            Err(error) => Err(error),
        }
    }

    /// Returns the addresses of a name, of both families.
    ///
    /// # Errors
    /// There are none, or nobody knows.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, LookupError> {
        let found = self.in_time(async { self.servers().await?.families(name).await });
        Ok(found.await?.all())
    }

    async fn servers(&self) -> Result<&NameServers, NetError> {
        let times = self.times;
        self.servers
            .get_or_try_init(|| async { NameServers::of_system(times.question) })
            .await
    }

    async fn in_time<T>(
        &self,
        lookup: impl Future<Output = Result<T, NetError>>,
    ) -> Result<T, LookupError> {
        match tokio::time::timeout(self.times.name, lookup).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) if servers::is_not_found(&error) => Err(LookupError::NotFound),
            Ok(Err(NetError::Timeout)) | Err(_) => Err(LookupError::Timeout),
            Ok(Err(error)) => Err(LookupError::Failed(error)),
        }
    }

    /// Resolves by the number of dots: with one (the last) the search list is required, with a few
    /// it is tried first, with more the name is complete.
    async fn by_dots(&self, name: &str, wanted: RecordType) -> Result<Vec<RData>, NetError> {
        match name.matches('.').count() {
            0 | 1 => self.wanted(without_dot(name), wanted).await,
            // Like `ndots:5` in a pod's resolv.conf: names with fewer dots are completed first.
            2..=4 => match self.wanted(without_dot(name), wanted).await {
                Ok(found) => Ok(found),
                Err(_) => self.wanted(name, wanted).await,
            },
            _ => self.wanted(name, wanted).await,
        }
    }

    async fn wanted(&self, name: &str, wanted: RecordType) -> Result<Vec<RData>, NetError> {
        let servers = self.servers().await?;
        let Families { v4, v6, canonical } = match servers.families(name).await {
            Ok(families) => families,
            // An alias of nothing is one all the same.
            Err(error) if wanted == RecordType::CNAME && servers::is_not_found(&error) => {
                return self.records(name, wanted).await;
            }
            Err(error) => return Err(error),
        };
        let ips = match wanted {
            RecordType::A => v4,
            RecordType::AAAA => v6,
            // The name that has the addresses: of several aliases the end, of none the name itself.
            _ => return Ok(vec![RData::CNAME(CNAME(canonical))]),
        };
        Ok(ips?.into_iter().map(RData::from).collect())
    }

    async fn records(&self, name: &str, record_type: RecordType) -> Result<Vec<RData>, NetError> {
        self.servers().await?.records(name, record_type).await
    }

    /// Resolves the short name of a service record by the addresses of its target.
    async fn services(&self, name: &str) -> Result<Vec<RData>, NetError> {
        let error = match self.records(name, RecordType::SRV).await {
            Err(error) if servers::is_not_found(&error) => error,
            other => return other,
        };
        // `_service._protocol.host` (RFC 2782).
        let mut labels = name.splitn(3, '.');
        let (Some(service), Some(protocol), Some(host)) =
            (labels.next(), labels.next(), labels.next())
        else {
            return Err(error);
        };
        let Ok(found) = self.servers().await?.families(host).await else {
            return Err(error);
        };
        let complete = found.canonical.to_ascii();
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

fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// Parses a name; labels may hold what host names may not, such as underscores.
fn parsed(name: &str) -> Result<Name, NetError> {
    let parsed = Name::from_ascii(name).or_else(|_| Name::from_utf8(name));
    parsed.map_err(NetError::from)
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
fn encoded(name: &str, found: &[RData]) -> Result<Vec<u8>, NetError> {
    let mut owner = parsed(name)?;
    // Absolute, so that the encoder does not append a search domain.
    owner.set_fqdn(true);
    let mut wire = Vec::new();
    let mut encoder = BinEncoder::new(&mut wire);
    encoder.set_name_encoding(NameEncoding::Uncompressed);
    for data in found {
        Record::from_rdata(owner.clone(), ANSWER_TTL, data.clone()).emit(&mut encoder)?;
    }
    Ok(wire)
}

#[cfg(test)]
mod tests;
