//! Name resolution for workstations: agents are asked first, since their pods see the cluster's
//! names, then the manager's own resolver.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use traffic_proto::manager::{DnsAgentResponse, DnsRequest, DnsResponse};

use crate::error::RequestError;
use crate::limits::{LimitCounters, MAX_LOOKUPS, MAX_NAME_BYTES, ManagerLimit};
use crate::registry::Shared;
use traffic_proto::sync::lock;

/// Maximum of agents asked for one name.
const MAX_ASKED_AGENTS: usize = 2;
/// TTL of records in seconds, as the agents use.
const RECORD_TTL_SECONDS: u32 = 4;
/// Time for the manager's own resolver.
const OWN_LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

const NO_ERROR: i32 = 0;
const SERVER_FAILURE: i32 = 2;
const NAME_ERROR: i32 = 3;
const NOT_IMPLEMENTED: i32 = 4;
const A: u32 = 1;
const AAAA: u32 = 28;

/// Queries waiting for an agent's answer.
pub(crate) struct Resolver {
    places: Semaphore,
    limits: Arc<LimitCounters>,
    open: Mutex<HashMap<Question, Vec<mpsc::Sender<DnsResponse>>>>,
}

/// Client session, name and type; agents' answers are matched by these.
type Question = (String, String, u32);

impl Resolver {
    pub(crate) fn new(limits: Arc<LimitCounters>) -> Self {
        Self {
            places: Semaphore::new(MAX_LOOKUPS),
            limits,
            open: Mutex::default(),
        }
    }

    /// Takes a place for a question.
    pub(crate) fn place(&self, name: &str) -> Result<SemaphorePermit<'_>, RequestError> {
        if name.len() > MAX_NAME_BYTES {
            let limit = ManagerLimit::NameBytes;
            return Err(self.limits.refuse(limit, "a client", MAX_NAME_BYTES));
        }
        let place = self.places.try_acquire();
        place.map_err(|_| {
            self.limits
                .refuse(ManagerLimit::Lookups, "clients", MAX_LOOKUPS)
        })
    }

    /// Answers a workstation's query, with the agents' best answer if there is one.
    pub(crate) async fn resolve(
        &self,
        shared: &Shared,
        request: DnsRequest,
        deadline_after: Duration,
    ) -> DnsResponse {
        let (mailboxes, client) = shared.read(|registry| {
            let client = request
                .session
                .as_ref()
                .map_or("", |session| session.session_id.as_str())
                .to_owned();
            // Two answers are enough: one agent may be about to leave.
            let helpers = registry.helpers(&client).into_iter().take(MAX_ASKED_AGENTS);
            let names =
                helpers.filter_map(|id| registry.sessions.get(&id).ok().map(|it| it.names.clone()));
            (names.collect::<Vec<_>>(), client)
        });
        if mailboxes.is_empty() {
            return own_lookup(&request).await;
        }
        let question = (client, request.name.clone(), request.r#type);
        let deadline = Instant::now() + deadline_after;
        let (answer_tx, mut answer_rx) = mpsc::channel(MAX_ASKED_AGENTS);
        self.open()
            .entry(question.clone())
            .or_default()
            .push(answer_tx);
        let asked = mailboxes
            .iter()
            .filter(|mailbox| mailbox.post(request.clone(), deadline))
            .count();
        let mut answers = Vec::new();
        while answers.len() < asked
            && let Ok(Some(answer)) = timeout_at(deadline, answer_rx.recv()).await
        {
            answers.push(answer);
        }
        // Closes the channel, so that `forget` finds and removes its sender.
        drop(answer_rx);
        self.forget(&question);
        match answers
            .into_iter()
            // A success beats an error, and more records beat fewer.
            .min_by_key(|answer| (answer.r_code, std::cmp::Reverse(answer.rrs.len())))
        {
            Some(best) => best,
            None => own_lookup(&request).await,
        }
    }

    /// Passes an agent's answer to its waiter; a late one is dropped.
    pub(crate) fn answer(&self, answer: DnsAgentResponse) {
        let (Some(request), Some(response)) = (answer.request, answer.response) else {
            return;
        };
        let client = request
            .session
            .map(|session| session.session_id)
            .unwrap_or_default();
        for waiting in self
            .open()
            .get(&(client, request.name, request.r#type))
            .into_iter()
            .flatten()
        {
            let _ = waiting.try_send(response.clone());
        }
    }

    fn forget(&self, question: &Question) {
        let mut open = self.open();
        if let Some(waiting) = open.get_mut(question) {
            waiting.retain(|tx| !tx.is_closed());
            if waiting.is_empty() {
                open.remove(question);
            }
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Question, Vec<mpsc::Sender<DnsResponse>>>> {
        lock(&self.open)
    }
}

/// The answer to a question that is not looked at.
pub(crate) fn failure() -> DnsResponse {
    DnsResponse {
        r_code: SERVER_FAILURE,
        rrs: Bytes::new(),
    }
}

/// Returns the addresses of a name as this process resolves it; empty if it has none.
pub(crate) async fn addresses(name: &str) -> Vec<IpAddr> {
    let name = name.strip_suffix('.').unwrap_or(name);
    match timeout(OWN_LOOKUP_TIMEOUT, tokio::net::lookup_host((name, 0))).await {
        Ok(Ok(found)) => found.map(|address| address.ip().to_canonical()).collect(),
        _ => Vec::new(),
    }
}

async fn own_lookup(request: &DnsRequest) -> DnsResponse {
    // The system resolver returns addresses only.
    if !matches!(request.r#type, A | AAAA) {
        return DnsResponse {
            r_code: NOT_IMPLEMENTED,
            rrs: Bytes::new(),
        };
    }
    let addresses = addresses(&request.name).await;
    if addresses.is_empty() {
        return DnsResponse {
            r_code: NAME_ERROR,
            rrs: Bytes::new(),
        };
    }
    let mut rrs = BytesMut::new();
    for address in addresses {
        let record = match (request.r#type, address) {
            (A, IpAddr::V4(ip)) => record(&request.name, A, &ip.octets()),
            (AAAA, IpAddr::V6(ip)) => record(&request.name, AAAA, &ip.octets()),
            _ => continue,
        };
        match record {
            Some(record) => rrs.put(record),
            None => {
                return failure();
            }
        }
    }
    DnsResponse {
        r_code: NO_ERROR,
        rrs: rrs.freeze(),
    }
}

/// Encodes one record in wire format (RFC 1035, 3.2.1), class IN, its name uncompressed; `None` if
/// a label of the name is too long for that.
fn record(name: &str, kind: u32, data: &[u8]) -> Option<Bytes> {
    let mut record = BytesMut::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        record.put_u8(
            u8::try_from(label.len())
                .ok()
                .filter(|length| *length < 64)?,
        );
        record.put_slice(label.as_bytes());
    }
    record.put_u8(0);
    record.put_u16(u16::try_from(kind).ok()?);
    record.put_u16(1);
    record.put_u32(RECORD_TTL_SECONDS);
    record.put_u16(u16::try_from(data.len()).ok()?);
    record.put_slice(data);
    Some(record.freeze())
}
