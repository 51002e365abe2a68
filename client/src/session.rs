//! The workstation's session with the manager: connect, arrive, remain, resume, depart.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::time::{Instant, interval_at, sleep, timeout_at};
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use traffic_proto::manager::manager_client::ManagerClient;
use traffic_proto::manager::{
    ClientInfo, InterceptInfo, ReconnectClientRequest, RemainRequest, SessionInfo, VersionInfo2,
};
use traffic_proto::session_key::{self, Peer, SessionKey};
use traffic_proto::tunnel::{GRPC_LIMIT, MAX_FRAME};

use crate::Failure;
use crate::cluster::{Cluster, Login, Port, is_not_ready};
use crate::credentials::Credentials;
use crate::report::note;

/// Protocol generation we speak; managers refuse clients that are too old by it.
const VERSION: &str = "v2.27.5";
/// Time for one call.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Time to look for the manager at the start.
pub(crate) const FIRST_CONTACT_TIMEOUT: Duration = Duration::from_secs(15);
/// The same for one that is installed and not ready, such as one that has just died.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Time after which a user is told what is waited for.
const QUIET_TIMEOUT: Duration = Duration::from_secs(1);
/// Delay before a manager that did not answer the first call is asked again.
const CONTACT_DELAY: Duration = Duration::from_millis(100);
/// Delay before a manager that broke off is asked again.
const RETRY_DELAY: Duration = Duration::from_millis(300);
/// Interval of the Remain call.
const REMAIN_INTERVAL: Duration = Duration::from_secs(5);
/// Bytes one stream may send ahead of its reader.
const STREAM_WINDOW: u32 = 1 << 20;
/// Bytes one connection may send ahead of its readers: all tunnels share it, so a stalled one must
/// not use up the window of the others.
const CONNECTION_WINDOW: u32 = 1 << 30;

/// Metadata in which our manager tells its own name and version.
const OWN_VERSION: &str = "x-traffic-manager";

/// A client of the manager.
pub(crate) type Manager = ManagerClient<InterceptedService<Channel, Credentials>>;

/// Way to the manager.
#[derive(Clone)]
pub(crate) enum Way {
    /// Straight to this address.
    Address(String),
    /// A manager reached through the API server of a cluster.
    Cluster(Cluster),
}

impl Way {
    /// Opens the way that the flags choose: an address, else a cluster.
    pub(crate) async fn open(flags: &crate::flags::ManagerFlags) -> Result<Self, Failure> {
        match &flags.manager {
            Some(address) => Ok(Self::Address(address.clone())),
            None => Ok(Self::Cluster(Cluster::open(&flags.cluster).await?)),
        }
    }

    /// Namespace that is meant when none is named.
    pub(crate) fn namespace(&self) -> &str {
        match self {
            Self::Address(_) => "default",
            Self::Cluster(cluster) => &cluster.namespace,
        }
    }

    fn channel(&self) -> Result<Channel, Failure> {
        match self {
            Self::Address(address) => Ok(endpoint(address)?.connect_lazy()),
            Self::Cluster(cluster) => forwarded(&cluster.manager()),
        }
    }

    /// The user's proof for the manager; none towards an address, which may be anybody's.
    fn login(&self) -> Option<&Login> {
        match self {
            Self::Address(_) => None,
            Self::Cluster(cluster) => Some(&cluster.login),
        }
    }

    /// Advice when no manager answers.
    fn hint(&self) -> &'static str {
        match self {
            Self::Address(_) => "check --manager",
            Self::Cluster(_) => "intercept check says more",
        }
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => f.write_str(address),
            Self::Cluster(cluster) => {
                write!(f, "{} (context {})", cluster.manager(), cluster.context)
            }
        }
    }
}

/// Channel whose connections are port-forwards.
pub(crate) fn forwarded(port: &Port) -> Result<Channel, Failure> {
    let port = port.clone();
    let connector = tower::service_fn(move |_| {
        let port = port.clone();
        async move { port.open().await.map(TokioIo::new) }
    });
    // The name is never looked up; it is what requests carry as their host.
    Ok(endpoint("forwarded:8081")?.connect_with_connector_lazy(connector))
}

/// Creates the endpoint of a peer that speaks gRPC in clear text.
pub(crate) fn endpoint(address: &str) -> Result<Endpoint, Failure> {
    let uri = if address.contains("://") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    let endpoint = Endpoint::from_shared(uri);
    let endpoint = endpoint.map_err(|error| {
        Failure::Failed(format!(
            "{address:?} is not an address: {error}; write HOST:PORT"
        ))
    })?;
    Ok(endpoint
        .connect_timeout(Duration::from_secs(3))
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(30)))
        .max_frame_size(MAX_FRAME)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW))
}

/// A manager, and what is proved to it.
pub(crate) struct Connected {
    pub(crate) manager: Manager,
    pub(crate) credentials: Credentials,
}

/// Connects to the manager, within [`FIRST_CONTACT_TIMEOUT`], or [`START_TIMEOUT`] if one is about
/// to start, and never longer than `longest`.
pub(crate) async fn connect(way: &Way, longest: Duration) -> Result<Connected, Failure> {
    let credentials = Credentials::default();
    let manager = ManagerClient::with_interceptor(way.channel()?, credentials.clone());
    let mut manager = manager.max_decoding_message_size(GRPC_LIMIT);
    let answer = first_answer(&mut manager, longest);
    let waiting = async {
        // A manager that is there answers before anybody reads a line.
        sleep(QUIET_TIMEOUT).await;
        note(format_args!("Waiting for the traffic-manager at {way}"));
        std::future::pending().await
    };
    let answer = tokio::select! {
        answer = answer => answer,
        never = waiting => match never {},
    };
    let version = answer.map_err(|last| {
        let why = last.map(|status| status_text(&status)).unwrap_or_default();
        Failure::Failed(format!(
            "no traffic-manager answers at {way}: {why}; {}",
            way.hint()
        ))
    })?;
    credentials.answer(version.metadata(), way.login()).await?;
    // Ours has a name and a version of its own beside the one that stock clients choose their calls
    // by.
    let own = version.metadata().get(OWN_VERSION);
    let own = own.and_then(|it| it.to_str().ok()).map(str::to_owned);
    let version = version.into_inner();
    let announced = format!("{} {}", version.name, version.version);
    match own {
        Some(own) => note(format_args!(
            "Connected to {own} at {way}, feature level {announced}"
        )),
        None => note(format_args!("Connected to {announced} at {way}")),
    }
    Ok(Connected {
        manager,
        credentials,
    })
}

/// Begins a session, with a new key that further calls prove. Managers of others take no notice of
/// it and give an id of their own, which is then all that proves whose session it is.
pub(crate) async fn arrive(
    manager: &mut Manager,
    credentials: &Credentials,
    client: &ClientInfo,
) -> Result<SessionInfo, Failure> {
    let key = SessionKey::generate().map_err(|error| Failure::Failed(error.to_string()))?;
    let mut request = call(client.clone());
    let (metadata, public) = (request.metadata_mut(), key.public());
    metadata.insert_bin(session_key::KEY, MetadataValue::from_bytes(public));
    metadata.insert_bin(session_key::PROOF, key.metadata(&Peer::manager()));
    let arrived = manager.arrive_as_client(request).await;
    let session = arrived
        .map_err(|status| refused("the manager refuses this client", &status))?
        .into_inner();
    let is_taken = session.session_id == key.id();
    credentials.hold(is_taken.then(|| Arc::new(key)));
    Ok(session)
}

/// The manager's answer to the first call, else the last error, if it gave any.
async fn first_answer(
    manager: &mut Manager,
    longest: Duration,
) -> Result<Response<VersionInfo2>, Option<Status>> {
    let (begin, mut allowed) = (Instant::now(), FIRST_CONTACT_TIMEOUT);
    let mut last = None;
    loop {
        let deadline = begin + allowed.min(longest);
        match timeout_at(deadline, manager.version(())).await {
            Ok(Ok(version)) => return Ok(version),
            Ok(Err(status)) => {
                if causes(&status).any(is_not_ready) {
                    allowed = START_TIMEOUT;
                }
                last = Some(status);
            }
            Err(_elapsed) => return Err(last),
        }
        sleep(CONTACT_DELAY).await;
    }
}

/// Time in which a manager that breaks off while something begins, because it restarts, is asked
/// again.
pub(crate) struct Patience {
    deadline: Instant,
    has_said: bool,
}

impl Patience {
    /// Starts counting.
    pub(crate) fn new(time: Duration) -> Self {
        Self {
            deadline: Instant::now() + time,
            has_said: false,
        }
    }

    /// Waits for a moment and returns true if another try may succeed where one failed like this.
    /// The first failure is told.
    pub(crate) async fn allows_another_try(&mut self, failure: &Failure) -> bool {
        let Failure::Away(text) = failure else {
            return false;
        };
        if Instant::now() >= self.deadline {
            return false;
        }
        if !self.has_said {
            note(format_args!("{text}; trying again"));
            self.has_said = true;
        }
        sleep(RETRY_DELAY).await;
        true
    }
}

/// Wraps a message as a call with a deadline.
pub(crate) fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// Returns the identity sent to the manager.
pub(crate) fn client_info(client: &str, namespace: &str) -> ClientInfo {
    ClientInfo {
        name: client.to_owned(),
        // Stable across runs, since managers recognise a returning user by it.
        install_id: client.to_owned(),
        // Managers accept only this product name.
        product: "telepresence".into(),
        version: VERSION.into(),
        namespace: namespace.to_owned(),
        keeps_watches: true,
        ..ClientInfo::default()
    }
}

/// Calls Remain at every interval. Returns when the manager does not know the session or cannot be
/// reached.
pub(crate) async fn remain(mut manager: Manager, session: SessionInfo) -> Status {
    let mut ticks = interval_at(Instant::now() + REMAIN_INTERVAL, REMAIN_INTERVAL);
    loop {
        ticks.tick().await;
        let request = RemainRequest {
            session: Some(session.clone()),
            ..RemainRequest::default()
        };
        if let Err(status) = manager.remain(call(request)).await {
            return status;
        }
    }
}

/// Result of resuming a session.
pub(crate) enum Resumed {
    /// The session continues.
    Same,
    /// The manager is reachable and does not know the session.
    Unknown,
}

/// Resumes a session once the manager can be reached, restoring what it may have lost.
pub(crate) async fn resume(
    mut manager: Manager,
    session: &SessionInfo,
    client: &ClientInfo,
    intercepts: &[InterceptInfo],
) -> Resumed {
    // A manager that restarts is usually back within seconds, so the first tries are quick.
    let mut pause = Duration::from_millis(100);
    loop {
        let request = ReconnectClientRequest {
            session: Some(session.clone()),
            client: Some(client.clone()),
            intercepts: intercepts.to_vec(),
            agents: Vec::new(),
        };
        let mut answer = manager.reconnect_client(call(request)).await;
        if answer
            .as_ref()
            .is_err_and(|status| status.code() == Code::Unimplemented)
        {
            let request = RemainRequest {
                session: Some(session.clone()),
                ..RemainRequest::default()
            };
            // Without ReconnectClient, a heartbeat tells if the session still exists.
            answer = manager.remain(call(request)).await;
        }
        match answer {
            Ok(_) => return Resumed::Same,
            // Any other error is an answer: the manager is there and rejects the session.
            Err(status) if is_away(&status) => {}
            Err(_) => return Resumed::Unknown,
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(3));
    }
}

/// Returns true if the manager could not be reached.
pub(crate) fn is_away(status: &Status) -> bool {
    matches!(
        status.code(),
        // tonic reports broken connections as any of these.
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown
    )
}

/// Returns true if the connection to the manager broke before it answered a call.
pub(crate) fn is_broken_off(status: &Status) -> bool {
    // Answers have no source, whatever their code.
    is_away(status) && Error::source(status).is_some()
}

/// Errors behind a status, nearest first.
fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(Error::source(status), |&error| error.source())
}

/// Returns the failure of a call; it may be made again if the manager broke off.
pub(crate) fn refused(what: &str, status: &Status) -> Failure {
    let text = format!("{what}: {}", status_text(status));
    match is_broken_off(status) {
        true => Failure::Away(text),
        false => Failure::Failed(text),
    }
}

/// Formats a status: the message, and its cause if the transport knows more.
pub(crate) fn status_text(status: &Status) -> String {
    let mut text = if status.message().is_empty() {
        status.code().to_string()
    } else {
        status.message().to_owned()
    };
    for cause in causes(status) {
        let cause = cause.to_string();
        // Layers between here and the connection repeat what they pass on.
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
