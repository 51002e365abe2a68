//! The name servers and the search list of `resolv.conf`.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::{TokioResolver, system_conf};

use super::{ANSWER_TTL, parsed};

/// Names a resolver remembers, for seconds.
const CACHE_SIZE: u64 = 1024;

/// Name servers, and how incomplete names are completed.
#[derive(Debug)]
pub(super) struct NameServers {
    search: Vec<Name>,
    ndots: usize,
    all: TokioResolver,
    /// Each alone, if there are several: what one of them cannot resolve another may.
    each: Vec<TokioResolver>,
}

/// Addresses of both families, of which at least one has some.
pub(super) struct Families {
    pub(super) v4: Result<Vec<IpAddr>, NetError>,
    pub(super) v6: Result<Vec<IpAddr>, NetError>,
    /// The name that has them.
    pub(super) canonical: Name,
}

impl Families {
    pub(super) fn all(self) -> Vec<IpAddr> {
        [self.v4, self.v6].into_iter().flatten().flatten().collect()
    }
}

impl NameServers {
    /// Reads the system's configuration; `time` is for a question, which is asked twice.
    pub(super) fn of_system(time: Duration) -> Result<Self, NetError> {
        let (config, options) = system_conf::read_system_conf()?;
        Self::new(&config, options, time)
    }

    pub(super) fn new(
        config: &ResolverConfig,
        mut options: ResolverOpts,
        time: Duration,
    ) -> Result<Self, NetError> {
        options.timeout = time;
        // After the first.
        options.attempts = 1;
        let servers = config.name_servers();
        // All at once, so that none of them that is silent takes the time.
        options.num_concurrent_reqs = servers.len();
        options.cache_size = CACHE_SIZE;
        options.positive_max_ttl = Some(Duration::from_secs(u64::from(ANSWER_TTL)));
        // Short, because a service may just be created.
        options.negative_max_ttl = Some(Duration::from_secs(1));
        let ndots = options.ndots;
        let of = |servers: &[_]| {
            let config = ResolverConfig::from_parts(None, Vec::new(), servers.to_vec());
            let provider = TokioRuntimeProvider::default();
            let mut builder = TokioResolver::builder_with_config(config, provider);
            *builder.options_mut() = options.clone();
            builder.build()
        };
        let alone = servers.chunks(1).filter(|_| servers.len() > 1);
        // The domain of the host's name counts where nothing else is said.
        let domain = || config.domain().cloned().into_iter().collect();
        Ok(Self {
            search: Some(config.search().to_vec())
                .filter(|search| !search.is_empty())
                .unwrap_or_else(domain),
            ndots,
            all: of(servers)?,
            each: alone.map(of).collect::<Result<_, _>>()?,
        })
    }

    /// Looks up the records of a name, by the search list unless it ends with a dot.
    pub(super) async fn records(
        &self,
        name: &str,
        record_type: RecordType,
    ) -> Result<Vec<RData>, NetError> {
        let mut missing = None;
        for name in self.candidates(parsed(name)?) {
            match self.find(&name, record_type).await {
                Ok(found) => return Ok(found.data),
                Err(error) if is_not_found(&error) => missing = Some(error),
                // Whether the name exists is not known: no other one is taken for it.
                Err(error) => return Err(error),
            }
        }
        Err(missing.unwrap_or(NetError::NoConnections))
    }

    /// Looks up the addresses of a name, by the search list unless it ends with a dot.
    pub(super) async fn families(&self, name: &str) -> Result<Families, NetError> {
        let complete = parsed(name);
        if let Ok(ip) = name.parse::<IpAddr>() {
            let (v4, v6) = if ip.is_ipv4() {
                (vec![ip], Vec::new())
            } else {
                (Vec::new(), vec![ip])
            };
            return Ok(Families {
                v4: Ok(v4),
                v6: Ok(v6),
                canonical: complete.unwrap_or_default(),
            });
        }
        let mut missing = None;
        for name in self.candidates(complete?) {
            let (v4, v6) = futures_util::join!(
                self.find(&name, RecordType::A),
                self.find(&name, RecordType::AAAA)
            );
            let found = [&v4, &v6].into_iter().find_map(|found| found.as_ref().ok());
            if let Some(canonical) = found.map(|found| found.name.clone()) {
                return Ok(Families {
                    v4: ips(v4),
                    v6: ips(v6),
                    canonical,
                });
            }
            for error in [v4, v6].into_iter().filter_map(Result::err) {
                if !is_not_found(&error) {
                    return Err(error);
                }
                missing = Some(error);
            }
        }
        Err(missing.unwrap_or(NetError::NoConnections))
    }

    /// Names to be asked for, in order.
    fn candidates(&self, name: Name) -> Vec<Name> {
        if name.is_fqdn() {
            return vec![name];
        }
        let completed = self
            .search
            .iter()
            .filter_map(|domain| name.clone().append_domain(domain).ok());
        let mut names: Vec<_> = completed.collect();
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        let at = if dots >= self.ndots || name.is_localhost() {
            0
        } else {
            names.len()
        };
        let mut bare = name;
        bare.set_fqdn(true);
        names.insert(at, bare);
        for name in &mut names {
            name.set_fqdn(true);
        }
        names
    }

    /// Asks for records of a complete name.
    async fn find(&self, name: &Name, record_type: RecordType) -> Result<Found, NetError> {
        let mut answer = self.all.lookup(name.clone(), record_type).await;
        for server in &self.each {
            if !matches!(&answer, Err(NetError::Dns(DnsError::ResponseCode(_)))) {
                break;
            }
            answer = server.lookup(name.clone(), record_type).await;
        }
        Found::of(name, record_type, &answer?)
    }
}

/// Records of one type, and their name.
struct Found {
    name: Name,
    data: Vec<RData>,
}

impl Found {
    fn of(name: &Name, record_type: RecordType, answer: &Lookup) -> Result<Self, NetError> {
        let records = answer.answers().iter();
        let records: Vec<_> = records
            .filter(|record| record.record_type() == record_type)
            .collect();
        if records.is_empty() {
            let query = Query::query(name.clone(), record_type);
            return Err(NoRecords::new(query, ResponseCode::NoError).into());
        }
        Ok(Self {
            name: records.first().map_or(name, |record| &record.name).clone(),
            data: records.iter().map(|record| record.data.clone()).collect(),
        })
    }
}

/// Addresses that were found; none if the name has none of this family.
fn ips(found: Result<Found, NetError>) -> Result<Vec<IpAddr>, NetError> {
    match found {
        Ok(found) => Ok(found.data.iter().filter_map(RData::ip_addr).collect()),
        Err(error) if is_not_found(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Says that name servers know that there is no such record.
pub(super) fn is_not_found(error: &NetError) -> bool {
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
