//! Name resolution for workstations: agents are asked first, since their pods see the cluster's
//! names, then the manager's own resolver.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::{Instant, timeout_at};
use traffic_proto::manager::{DnsAgentResponse, DnsRequest, DnsResponse};

use crate::error::RequestError;
use crate::limits::{LimitCounters, MAX_LOOKUPS, MAX_NAME_BYTES, ManagerLimit};
use crate::registry::Shared;
use traffic_proto::sync::lock;
use traffic_proto::system_dns::{DnsAnswer, LookupError, LookupTimes, SystemDns};

/// Maximum of agents asked for one name.
const MAX_ASKED_AGENTS: usize = 2;
/// Time for the manager's own resolver.
const OWN_TIMES: LookupTimes = LookupTimes {
    question: Duration::from_secs(2),
    name: Duration::from_secs(5),
};

const SERVER_FAILURE: i32 = 2;
const NOT_IMPLEMENTED: i32 = 4;

/// Queries waiting for an agent's answer.
pub(crate) struct Resolver {
    places: Semaphore,
    limits: Arc<LimitCounters>,
    open: Mutex<HashMap<Question, Vec<mpsc::Sender<DnsResponse>>>>,
    own: SystemDns,
}

/// Client session, name and type; agents' answers are matched by these.
type Question = (String, String, u32);

impl Resolver {
    pub(crate) fn new(limits: Arc<LimitCounters>) -> Self {
        Self {
            places: Semaphore::new(MAX_LOOKUPS),
            limits,
            open: Mutex::default(),
            own: SystemDns::new(OWN_TIMES),
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
            return self.own_answer(&request).await;
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
            None => self.own_answer(&request).await,
        }
    }

    async fn own_answer(&self, request: &DnsRequest) -> DnsResponse {
        answer(self.own.answer(&request.name, request.r#type).await)
    }

    /// Returns the addresses of a name as this process resolves it.
    pub(crate) async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, LookupError> {
        let bare = name.strip_suffix('.').unwrap_or(name);
        self.own.addresses(bare).await
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

/// What is said of a name that this process looked up.
fn answer(found: Result<DnsAnswer, LookupError>) -> DnsResponse {
    match found {
        Ok(DnsAnswer { r_code, rrs }) => DnsResponse {
            r_code,
            rrs: rrs.into(),
        },
        Err(LookupError::Unsupported(_)) => DnsResponse {
            r_code: NOT_IMPLEMENTED,
            rrs: Bytes::new(),
        },
        Err(_) => failure(),
    }
}
