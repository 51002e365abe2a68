//! Direct attachments to agents: if an agent's own port can be reached, connections come from it
//! and not through the manager, and continue while the manager is away.
//!
//! Through the API server a port-forward leads to the pod and nowhere else. An address of a pod may
//! lead anywhere on other networks, so whoever answers there has to prove that he is the agent that
//! the manager announced, before he is told the session. Then the client proves to him, and to him
//! alone, that the session is its own.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};
use traffic_proto::agent::agent_client::AgentClient;
use traffic_proto::manager::{AgentPodInfo, SessionInfo, VersionInfo2};
use traffic_proto::proof;
use traffic_proto::session_key::{Peer, SessionKey};
use traffic_proto::tunnel::GRPC_LIMIT;

use crate::report::{Pairs, event};
use crate::session::{self, Way};
use crate::tunnels::{AgentProof, TunnelDialer, Via};

/// Time for an agent to be reached and to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Time to wait for response headers: some agents send none before there is a connection to
/// announce.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(1);

/// Means of reaching agents.
#[derive(Clone)]
pub(crate) struct Reach {
    pub(crate) way: Way,
    /// False: not at all.
    pub(crate) is_wanted: bool,
    /// Addresses given by the user; they replace those of the pods.
    pub(crate) fixed: Vec<SocketAddr>,
}

/// Place of one agent's own port.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Place {
    Address(SocketAddr),
    /// A pod, reached through the API server.
    Pod {
        namespace: String,
        name: String,
        port: u16,
    },
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Pod {
                namespace,
                name,
                port,
            } => write!(f, "{name}.{namespace}:{port}"),
        }
    }
}

impl Reach {
    /// Place of a pod's agent; an address only without a cluster, where pods can be reached from
    /// here.
    fn place(&self, pod: &AgentPodInfo) -> Option<Place> {
        let port = u16::try_from(pod.api_port).ok().filter(|port| *port != 0)?;
        match &self.way {
            // Without a key nobody can prove to be this agent.
            Way::Address(_) if pod.proof_key.is_empty() => None,
            Way::Address(_) => address(pod, port).map(Place::Address),
            Way::Cluster(_) => Some(Place::Pod {
                namespace: pod.namespace.clone(),
                name: pod.pod_name.clone(),
                port,
            }),
        }
    }

    /// Whether whoever answers at `place` has to prove to be the agent. Where none can, because it
    /// is a stock agent, an address that the user has named is taken for right.
    fn needs_proof(&self, place: &Place, keys: &BTreeSet<Bytes>) -> bool {
        match place {
            Place::Address(address) => !self.fixed.contains(address) || !keys.is_empty(),
            Place::Pod { .. } => false,
        }
    }

    /// The places where the agent of a pod may be.
    fn places(&self, pod: &AgentPodInfo) -> Vec<Place> {
        match &self.fixed[..] {
            // Without fixed addresses, each pod is reached by itself.
            [] => self.place(pod).into_iter().collect(),
            fixed => fixed.iter().copied().map(Place::Address).collect(),
        }
    }

    async fn channel(&self, place: &Place) -> Result<Channel, Status> {
        let failed = |error: crate::Failure| Status::invalid_argument(error.to_string());
        match (place, &self.way) {
            (
                Place::Pod {
                    namespace,
                    name,
                    port,
                },
                Way::Cluster(cluster),
            ) => session::forwarded(&cluster.pod(namespace, name, *port)).map_err(failed),
            (place, _) => {
                let endpoint = session::endpoint(&place.to_string()).map_err(failed)?;
                let channel = endpoint.connect().await;
                channel.map_err(|error| Status::from_error(Box::new(error)))
            }
        }
    }
}

/// Direct attachments of one session.
pub(crate) struct Direct {
    tunnel_dialer: TunnelDialer,
    session: OwnSession,
    reach: Reach,
    /// Keys of the announced agents.
    keys: Keys,
    /// Cancellation by place, for agents that are no longer wanted.
    attached: HashMap<Place, CancellationToken>,
    /// Cancelled to take no more connections from agents; those that are open continue.
    leaving: CancellationToken,
    /// Cancelled to end all attachments.
    all: CancellationToken,
}

impl Direct {
    pub(crate) fn new(
        tunnel_dialer: TunnelDialer,
        (info, key): (SessionInfo, Option<Arc<SessionKey>>),
        reach: Reach,
    ) -> Self {
        Self {
            tunnel_dialer,
            session: OwnSession { info, key },
            reach,
            keys: Keys::default(),
            attached: HashMap::new(),
            leaving: CancellationToken::new(),
            all: CancellationToken::new(),
        }
    }

    /// Takes no more connections. Agents see it by the end of their watches, also while no manager
    /// could tell them that the intercept is over.
    pub(crate) fn leave(&self) {
        self.leaving.cancel();
    }

    /// Attaches to the intercepted agents. Attachments to agents no longer listed stay until they
    /// end by themselves: a manager that has just restarted may not list them yet.
    pub(crate) fn follow(&mut self, pods: &[AgentPodInfo]) {
        self.keys.replace(&self.reach, pods);
        let mut wanted: HashMap<Place, String> = HashMap::new();
        for pod in pods
            .iter()
            .filter(|pod| self.reach.is_wanted && pod.intercepted)
        {
            let places = self.reach.places(pod).into_iter();
            wanted.extend(places.map(|place| (place, pod.pod_name.clone())));
        }
        self.attached.retain(|place, retired| {
            let keep = wanted.contains_key(place);
            // Retired, not cancelled: an open attachment continues until it ends by itself.
            if !keep {
                retired.cancel();
            }
            keep
        });
        for (place, pod) in wanted {
            self.attached.entry(place.clone()).or_insert_with(|| {
                let retired = self.all.child_token();
                let attachment = attach(
                    self.tunnel_dialer.clone(),
                    self.session.clone(),
                    (self.reach.clone(), self.keys.clone(), place),
                    pod,
                    retired.clone(),
                );
                let (all, leaving) = (self.all.clone(), self.leaving.clone());
                let attachment = leaving.run_until_cancelled_owned(attachment);
                #[expect(
                    clippy::disallowed_methods,
                    reason = "it ends with `all`, which the drop cancels"
                )]
                tokio::spawn(async move { all.run_until_cancelled(attachment).await });
                retired
            });
        }
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.all.cancel();
    }
}

/// Stays attached to one agent; reconnects when it closes, until it is retired.
async fn attach(
    tunnel_dialer: TunnelDialer,
    session: OwnSession,
    (reach, keys, place): (Reach, Keys, Place),
    pod: String,
    retired: CancellationToken,
) {
    let say = |state: &str, message: &str| {
        let address = place.to_string();
        event(&Pairs(&[
            ("direct", state),
            ("pod", &pod),
            ("address", &address),
            ("message", message),
        ]));
    };
    let mut pause = Duration::from_millis(200);
    let mut unreachable_logged = false;
    loop {
        let known = keys.of(&place);
        match attach_once(&tunnel_dialer, &session, (&reach, &known, &place), || {
            say("connected", "")
        })
        .await
        {
            Ok(()) => {
                say("ended", "");
                pause = Duration::from_millis(200);
                unreachable_logged = false;
            }
            // One line until it has been reachable again; most clusters do not route pods to
            // workstations.
            Err(status) if !unreachable_logged => {
                say("unreachable", &session::status_text(&status));
                unreachable_logged = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = retired.cancelled() => return,
            () = sleep(pause) => {}
            // An agent that has started again is there at once.
            () = keys.changed(&place, &known) => {}
        }
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Serves one attachment to its end; an error means that it could not be established.
async fn attach_once(
    tunnel_dialer: &TunnelDialer,
    session: &OwnSession,
    (reach, keys, place): (&Reach, &BTreeSet<Bytes>, &Place),
    connected: impl FnOnce(),
) -> Result<(), Status> {
    let opening = timeout(ANSWER_TIMEOUT, async {
        let channel = reach.channel(place).await?;
        // An agent has to answer at this address before connections depend on it.
        let challenge = proof::random().map_err(|error| Status::internal(error.to_string()))?;
        let mut asked = AgentClient::new(channel.clone());
        let answer = asked.version(challenged(&challenge)).await?;
        let proved = proved(keys, &challenge, &answer);
        if reach.needs_proof(place, keys) && proved.is_none() {
            return Err(Status::unauthenticated(
                "whoever answers there is not the agent that the manager has announced",
            ));
        }
        let agent = AgentClient::with_interceptor(channel, session.proof(proved));
        Ok::<_, Status>(agent.max_decoding_message_size(GRPC_LIMIT))
    });
    let via = Via::Agent(
        opening
            .await
            .map_err(|_| Status::deadline_exceeded("no answer in time"))??,
    );
    let session = &session.info;
    let mut announced = std::pin::pin!(tunnel_dialer.open(&via, session));
    let announced = match timeout(HEADERS_TIMEOUT, &mut announced).await {
        Ok(announced) => {
            let announced = announced?;
            connected();
            announced
        }
        // Headers arrive with the first announcement, so the attachment is taken to be
        // established.
        Err(_) => {
            connected();
            announced.await?
        }
    };
    if let Err(status) = tunnel_dialer.serve(announced, via.clone(), session).await {
        tracing::debug!(
            "direct connection to {place} lost: {}",
            session::status_text(&status)
        );
    }
    Ok(())
}

/// The client's session, and its key if it has one.
#[derive(Clone)]
struct OwnSession {
    info: SessionInfo,
    key: Option<Arc<SessionKey>>,
}

impl OwnSession {
    /// The proof for the agent with this key, which nobody but that agent takes for one.
    fn proof(&self, agent: Option<&Bytes>) -> AgentProof {
        let own = self.key.as_ref().zip(agent);
        AgentProof(own.map(|(key, agent)| key.metadata(&Peer::agent(agent))))
    }
}

/// Keys of the agents that the manager has announced, by the places where they may be; cheap to
/// clone. They are other ones when an agent has started again. Each place has those of its own
/// agents alone: an agent that knows the key of another must not be taken for that.
#[derive(Clone, Default)]
struct Keys(Arc<watch::Sender<HashMap<Place, BTreeSet<Bytes>>>>);

impl Keys {
    fn replace(&self, reach: &Reach, pods: &[AgentPodInfo]) {
        let mut keys: HashMap<Place, BTreeSet<Bytes>> = HashMap::new();
        for pod in pods.iter().filter(|pod| !pod.proof_key.is_empty()) {
            for place in reach.places(pod) {
                let of_place = keys.entry(place).or_default();
                of_place.insert(pod.proof_key.clone());
            }
        }
        self.0.send_replace(keys);
    }

    /// Returns the keys of the agents at a place.
    fn of(&self, place: &Place) -> BTreeSet<Bytes> {
        self.0.borrow().get(place).cloned().unwrap_or_default()
    }

    /// Resolves when a place has others than those that were known.
    async fn changed(&self, place: &Place, known: &BTreeSet<Bytes>) {
        let mut keys = self.0.subscribe();
        let is_news = |keys: &HashMap<Place, BTreeSet<Bytes>>| {
            keys.get(place).is_some_and(|of_place| of_place != known)
        };
        // The sender lives in `self`, so waiting cannot fail.
        let _ = keys.wait_for(is_news).await;
    }
}

/// Returns the key that the answer could not have been made without.
fn proved<'a>(
    keys: &'a BTreeSet<Bytes>,
    challenge: &[u8],
    answer: &tonic::Response<VersionInfo2>,
) -> Option<&'a Bytes> {
    let given = answer.metadata().get_bin(proof::PROOF)?.to_bytes().ok()?;
    let mut keys = keys.iter();
    keys.find(|key| proof::holds(key, challenge, &given))
}

/// The call that asks for a proof.
fn challenged(challenge: &[u8]) -> Request<()> {
    let mut request = Request::new(());
    let value = MetadataValue::from_bytes(challenge);
    request.metadata_mut().insert_bin(proof::CHALLENGE, value);
    request
}

fn address(pod: &AgentPodInfo, port: u16) -> Option<SocketAddr> {
    let ip: IpAddr = match pod.pod_ip.len() {
        4 => <[u8; 4]>::try_from(&pod.pod_ip[..]).ok()?.into(),
        16 => <[u8; 16]>::try_from(&pod.pod_ip[..]).ok()?.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}
