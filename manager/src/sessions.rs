//! Sessions of agents and workstations; each lives as long as it is in contact.
//!
//! Plain functions of state and time. Ending a session cancels its token, which ends its watches;
//! its open tunnel streams continue, so that a peer may depart first and finish its work
//! afterwards.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use traffic_proto::manager::{AgentInfo, ClientInfo, DialRequest, DnsRequest};

use crate::error::RequestError;
use crate::identity::Identity;
use crate::limits::{
    LimitCounters, MAX_AGENT_BYTES, MAX_AGENTS, MAX_CLIENT_BYTES, MAX_CLIENTS, ManagerLimit,
};
use crate::mailbox::Mailbox;
use crate::viewed::Viewed;

/// Oldest supported client version.
const OLDEST_CLIENT: semver::Version = semver::Version::new(2, 6, 0);

/// A session with its queues.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) party: Party,
    /// Party that began it; none: nobody was asked for a proof.
    pub(crate) owner: Option<Arc<Identity>>,
    /// An agent as watches see it, made when it is asked for.
    viewed: OnceLock<Viewed<AgentInfo>>,
    /// Bytes of what the party says about itself.
    size: usize,
    /// Time of arrival or last contact.
    pub(crate) seen: Instant,
    /// Open watches of a client.
    watches: usize,
    /// Time the last of them ended; none while there is one, or before there was any.
    left: Option<Instant>,
    /// Cancelled when the session ends.
    pub(crate) end: CancellationToken,
    /// Connections it has to dial; fetched by its `WatchDial`.
    pub(crate) dials: Arc<Mailbox<DialRequest>>,
    /// Names it has to resolve; fetched by an agent's `WatchLookupDNS`.
    pub(crate) names: Arc<Mailbox<DnsRequest>>,
}

/// The party of a session.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Party {
    Agent(AgentInfo),
    Client(ClientInfo),
}

impl Party {
    fn size(&self) -> usize {
        match self {
            Self::Agent(agent) => agent.encoded_len(),
            Self::Client(client) => client.encoded_len(),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Agent(agent) => &agent.pod_name,
            Self::Client(client) => client.name.get(..80).unwrap_or(&client.name),
        }
    }
}

/// All sessions by id.
#[derive(Debug)]
pub(crate) struct Sessions {
    by_id: BTreeMap<String, Session>,
    all: CancellationToken,
    agent_ttl: Duration,
    client_ttl: Duration,
    limits: Arc<LimitCounters>,
}

impl Sessions {
    /// Creates an empty set; all future sessions end with `all` at the latest.
    pub(crate) fn new(
        agent_ttl: Duration,
        client_ttl: Duration,
        all: CancellationToken,
        limits: Arc<LimitCounters>,
    ) -> Self {
        Self {
            by_id: BTreeMap::new(),
            all,
            agent_ttl,
            client_ttl,
            limits,
        }
    }

    /// Starts a client's session and returns its id, which is that of its key if it has one.
    pub(crate) fn add_client(
        &mut self,
        client: ClientInfo,
        keyed: Option<String>,
        now: Instant,
    ) -> Result<String, RequestError> {
        check_client(&client)?;
        let party = Party::Client(client);
        self.check_number(&party)?;
        if keyed.as_ref().is_some_and(|id| self.by_id.contains_key(id)) {
            return Err(RequestError::Exists(
                "a session with this key is there already; make a key for each session".to_owned(),
            ));
        }
        // Nobody can guess it: for stock clients the id is all that proves whose session it is.
        let id = keyed.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        self.start(id.clone(), party, now);
        Ok(id)
    }

    /// Starts an agent's session and returns its id. The same pod arriving again replaces its old,
    /// lost session; another pod with the same uid is refused.
    pub(crate) fn add_agent(
        &mut self,
        agent: AgentInfo,
        now: Instant,
    ) -> Result<String, RequestError> {
        check_agent(&agent)?;
        // Older agents do not report a uid; each of their arrivals is a new session.
        let unique = if agent.pod_uid.is_empty() {
            uuid::Uuid::new_v4().to_string()
        } else {
            agent.pod_uid.clone()
        };
        let id = format!("agent:{unique}");
        if let Some(Session {
            party: Party::Agent(there),
            ..
        }) = self.by_id.get(&id)
            // The same pod arriving again has lost its session and may replace it.
            && !same_pod(there, &agent)
        {
            return Err(RequestError::Exists(format!(
                "an agent with pod uid {unique:?} is already connected: pod {:?} in namespace {:?}",
                there.pod_name, there.namespace
            )));
        }
        let party = Party::Agent(agent);
        // One that replaces its own former session is no further party.
        if !self.by_id.contains_key(&id) {
            self.check_number(&party)?;
        }
        self.start(id.clone(), party, now);
        Ok(id)
    }

    /// Checks if there may be one more such party.
    fn check_number(&self, party: &Party) -> Result<(), RequestError> {
        let is_agent = |party: &Party| matches!(party, Party::Agent(_));
        let wanted = is_agent(party);
        let same = self
            .by_id
            .values()
            .filter(|it| is_agent(&it.party) == wanted);
        let (number, bytes) = same.fold((0, party.size()), |(number, bytes), it| {
            (number + 1, bytes + it.size)
        });
        let bounds = match wanted {
            true => [
                (number, MAX_AGENTS, ManagerLimit::Agents),
                (bytes, MAX_AGENT_BYTES, ManagerLimit::AgentBytes),
            ],
            false => [
                (party.size(), MAX_CLIENT_BYTES, ManagerLimit::ClientBytes),
                (number, MAX_CLIENTS, ManagerLimit::Clients),
            ],
        };
        match bounds.into_iter().find(|(number, most, _)| number >= most) {
            Some((_, most, limit)) => Err(self.limits.refuse(limit, party.name(), most)),
            None => Ok(()),
        }
    }

    /// Returns the client that is away longest, if there are as many as there may be.
    pub(crate) fn client_to_give_way(&self) -> Option<String> {
        let clients = self
            .by_id
            .iter()
            .filter(|(_, it)| matches!(it.party, Party::Client(_)));
        if clients.clone().count() < MAX_CLIENTS {
            return None;
        }
        // One that still watches is at work, however long ago it called.
        let (id, _) = clients
            .filter(|(_, it)| it.watches == 0)
            .min_by_key(|(_, it)| it.seen)?;
        self.limits.reached(ManagerLimit::Clients, id);
        Some(id.clone())
    }

    /// Restores a session of an earlier manager; for one still present only the contact is
    /// recorded.
    pub(crate) fn restore(
        &mut self,
        id: &str,
        party: Party,
        now: Instant,
    ) -> Result<(), RequestError> {
        if id.is_empty() {
            return Err(RequestError::Invalid("session id is empty".into()));
        }
        match &party {
            Party::Agent(agent) => check_agent(agent)?,
            Party::Client(client) => check_client(client)?,
        }
        match self.by_id.get_mut(id) {
            Some(session) => {
                session.seen = now;
                session.size = party.size();
                session.party = party;
                session.viewed.take();
            }
            None => {
                self.check_number(&party)?;
                self.start(id.to_owned(), party, now);
            }
        }
        Ok(())
    }

    fn start(&mut self, id: String, party: Party, now: Instant) {
        let session = Session {
            size: party.size(),
            party,
            owner: None,
            viewed: OnceLock::new(),
            seen: now,
            watches: 0,
            left: None,
            end: self.all.child_token(),
            dials: Arc::new(Mailbox::new()),
            names: Arc::new(Mailbox::new()),
        };
        if let Some(old) = self.by_id.insert(id, session) {
            // Ends the watches of a session that the same pod has replaced.
            old.end.cancel();
        }
    }

    /// Says whose session it is.
    pub(crate) fn belongs_to(&mut self, id: &str, owner: Option<Arc<Identity>>) {
        if let Some(session) = self.by_id.get_mut(id) {
            session.owner = owner;
        }
    }

    /// Records a contact of the session.
    pub(crate) fn touch(&mut self, id: &str, now: Instant) -> Result<(), RequestError> {
        let session = self
            .by_id
            .get_mut(id)
            .ok_or_else(|| RequestError::no_session(id))?;
        session.seen = now;
        Ok(())
    }

    /// Counts a client's watch; false for other sessions.
    pub(crate) fn attach(&mut self, id: &str) -> bool {
        let Some(session) = self.by_id.get_mut(id) else {
            return false;
        };
        let is_client = matches!(session.party, Party::Client(_));
        if is_client {
            session.watches += 1;
            session.left = None;
        }
        is_client
    }

    /// Counts the end of a client's watch; true if it was the last one.
    pub(crate) fn detach(&mut self, id: &str, now: Instant) -> bool {
        let Some(session) = self.by_id.get_mut(id) else {
            return false;
        };
        session.watches = session.watches.saturating_sub(1);
        if session.watches == 0 {
            session.left = Some(now);
        }
        session.watches == 0
    }

    /// Returns true if the client had watches and has none any more.
    pub(crate) fn is_absent(&self, id: &str) -> bool {
        self.by_id.get(id).is_some_and(|it| it.left.is_some())
    }

    /// Returns true if the client is absent since `left`.
    pub(crate) fn is_absent_since(&self, id: &str, left: Instant) -> bool {
        self.by_id.get(id).is_some_and(|it| it.left == Some(left))
    }

    /// Ends a session; `None` if there is none.
    pub(crate) fn end(&mut self, id: &str) -> Option<Party> {
        let session = self.by_id.remove(id)?;
        session.end.cancel();
        Some(session.party)
    }

    /// Returns ids of the sessions without contact for too long.
    pub(crate) fn expired(&self, now: Instant) -> Vec<String> {
        let ttl = |party: &Party| match party {
            Party::Agent(_) => self.agent_ttl,
            Party::Client(_) => self.client_ttl,
        };
        let is_over = |session: &Session| now.duration_since(session.seen) > ttl(&session.party);
        self.by_id
            .iter()
            .filter(|(_, session)| is_over(session))
            .map(|(id, _)| id.clone())
            .collect()
    }

    pub(crate) fn get(&self, id: &str) -> Result<&Session, RequestError> {
        self.by_id
            .get(id)
            .ok_or_else(|| RequestError::no_session(id))
    }

    pub(crate) fn client(&self, id: &str) -> Result<&ClientInfo, RequestError> {
        match &self.get(id)?.party {
            Party::Client(client) => Ok(client),
            Party::Agent(_) => Err(RequestError::Invalid(format!(
                "session {id:?} is an agent's; a client's is needed"
            ))),
        }
    }

    pub(crate) fn agent(&self, id: &str) -> Result<&AgentInfo, RequestError> {
        match &self.get(id)?.party {
            Party::Agent(agent) => Ok(agent),
            Party::Client(_) => Err(RequestError::Invalid(format!(
                "session {id:?} is a client's; an agent's is needed"
            ))),
        }
    }

    /// All sessions by their ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Session)> {
        self.by_id
            .iter()
            .map(|(id, session)| (id.as_str(), session))
    }

    /// Iterates over the same agents as watches see them.
    pub(crate) fn agents_viewed(&self) -> impl Iterator<Item = (&str, &Viewed<AgentInfo>)> {
        self.by_id
            .iter()
            .filter_map(|(id, session)| Some((id.as_str(), session.viewed()?)))
    }

    /// Iterates over all agents with their session ids, in order of the ids.
    pub(crate) fn agents(&self) -> impl Iterator<Item = (&str, &AgentInfo)> {
        self.by_id
            .iter()
            .filter_map(|(id, session)| match &session.party {
                Party::Agent(agent) => Some((id.as_str(), agent)),
                Party::Client(_) => None,
            })
    }
}

impl Session {
    /// Returns the agent as watches see it.
    fn viewed(&self) -> Option<&Viewed<AgentInfo>> {
        let Party::Agent(agent) = &self.party else {
            return None;
        };
        let viewed = || Viewed::new(Arc::new(agent.clone()));
        Some(self.viewed.get_or_init(viewed))
    }
}

fn same_pod(one: &AgentInfo, other: &AgentInfo) -> bool {
    one.namespace == other.namespace && one.pod_name == other.pod_name
}

fn check_client(client: &ClientInfo) -> Result<(), RequestError> {
    for (field, value) in [
        ("name", &client.name),
        ("product", &client.product),
        ("version", &client.version),
    ] {
        required("client", field, value)?;
    }
    // Clients report `v2.x.y`; semver has no prefix.
    let version = client.version.strip_prefix('v').unwrap_or(&client.version);
    match semver::Version::parse(version) {
        Ok(version) if version >= OLDEST_CLIENT => Ok(()),
        Ok(version) => Err(RequestError::Invalid(format!(
            "client version {version} is too old; {OLDEST_CLIENT} or later is served"
        ))),
        Err(error) => Err(RequestError::Invalid(format!(
            "client version {:?} is not a version: {error}",
            client.version
        ))),
    }
}

fn check_agent(agent: &AgentInfo) -> Result<(), RequestError> {
    let fields = [
        ("name", &agent.name),
        ("namespace", &agent.namespace),
        ("product", &agent.product),
        ("version", &agent.version),
    ];
    for (field, value) in fields {
        required("agent", field, value)?;
    }
    if agent.mechanisms.is_empty() {
        return Err(RequestError::Invalid(
            "agent without a mechanism; name at least one, such as tcp".into(),
        ));
    }
    for mechanism in &agent.mechanisms {
        required("mechanism", "name", &mechanism.name)?;
        required("mechanism", "product", &mechanism.product)?;
        required("mechanism", "version", &mechanism.version)?;
    }
    Ok(())
}

fn required(what: &str, field: &str, value: &str) -> Result<(), RequestError> {
    if value.is_empty() {
        return Err(RequestError::Invalid(format!(
            "{what} {field} must not be empty"
        )));
    }
    Ok(())
}
