//! Direct attachments to agents: if an agent's own port can be reached, connections come from it
//! and not through the manager, and continue while the manager is away.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use traffic_proto::agent::agent_client::AgentClient;
use traffic_proto::manager::{AgentPodInfo, SessionInfo};
use traffic_proto::tunnel::GRPC_LIMIT;

use crate::dials::{Answers, Via};
use crate::report::{Pairs, line};
use crate::session;

/// Time for an agent to be reached and to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Time to wait for response headers: some agents send none before there is a connection to
/// announce.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(1);

/// Direct attachments of one session.
pub(crate) struct Direct {
    answers: Answers,
    session: SessionInfo,
    enabled: bool,
    /// Addresses given by the user; they replace those of the pods.
    fixed: Vec<SocketAddr>,
    /// Cancellation by address, for agents that are no longer wanted.
    attached: HashMap<SocketAddr, CancellationToken>,
    /// Cancelled to end all attachments.
    all: CancellationToken,
}

impl Direct {
    pub(crate) fn new(
        answers: Answers,
        session: SessionInfo,
        enabled: bool,
        fixed: Vec<SocketAddr>,
    ) -> Self {
        Self {
            answers,
            session,
            enabled,
            fixed,
            attached: HashMap::new(),
            all: CancellationToken::new(),
        }
    }

    /// Attaches to the intercepted agents. Attachments to agents no longer listed stay until they
    /// end by themselves: a manager that has just restarted may not list them yet.
    pub(crate) fn follow(&mut self, pods: &[AgentPodInfo]) {
        let mut wanted: HashMap<SocketAddr, String> = HashMap::new();
        for pod in pods.iter().filter(|pod| self.enabled && pod.intercepted) {
            match &self.fixed[..] {
                [] => wanted.extend(address(pod).map(|address| (address, pod.pod_name.clone()))),
                fixed => {
                    wanted.extend(fixed.iter().map(|address| (*address, pod.pod_name.clone())))
                }
            }
        }
        self.attached.retain(|address, retired| {
            let keep = wanted.contains_key(address);
            if !keep {
                retired.cancel();
            }
            keep
        });
        for (address, pod) in wanted {
            self.attached.entry(address).or_insert_with(|| {
                let retired = self.all.child_token();
                let attachment = attach(
                    self.answers.clone(),
                    self.session.clone(),
                    address,
                    pod,
                    retired.clone(),
                );
                let all = self.all.clone();
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
    answers: Answers,
    session: SessionInfo,
    address: SocketAddr,
    pod: String,
    retired: CancellationToken,
) {
    let say = |state: &str, message: &str| {
        let address = address.to_string();
        line(Pairs(&[
            ("direct", state),
            ("pod", &pod),
            ("address", &address),
            ("message", message),
        ]));
    };
    let mut pause = Duration::from_millis(200);
    let mut unreachable_is_said = false;
    loop {
        match attach_once(&answers, &session, address, || say("connected", "")).await {
            Ok(()) => {
                say("ended", "");
                pause = Duration::from_millis(200);
                unreachable_is_said = false;
            }
            Err(status) if !unreachable_is_said => {
                say("unreachable", &session::said(&status));
                unreachable_is_said = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = retired.cancelled() => return,
            () = sleep(pause) => {}
        }
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Serves one attachment to its end; an error means that it could not be established.
async fn attach_once(
    answers: &Answers,
    session: &SessionInfo,
    address: SocketAddr,
    connected: impl FnOnce(),
) -> Result<(), Status> {
    let endpoint = session::endpoint(&address.to_string())
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let opening = timeout(ANSWER_TIMEOUT, async {
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| Status::from_error(Box::new(error)))?;
        let mut agent = AgentClient::new(channel).max_decoding_message_size(GRPC_LIMIT);
        agent.version(()).await?;
        Ok::<_, Status>(agent)
    });
    let via = Via::Agent(
        opening
            .await
            .map_err(|_| Status::deadline_exceeded("no answer in time"))??,
    );
    let mut announced = std::pin::pin!(answers.open(&via, session));
    let announced = match timeout(HEADERS_TIMEOUT, &mut announced).await {
        Ok(announced) => {
            let announced = announced?;
            connected();
            announced
        }
        Err(_) => {
            connected();
            announced.await?
        }
    };
    if let Err(status) = answers.serve(announced, via.clone(), session).await {
        tracing::debug!(
            "direct connection to {address} lost: {}",
            session::said(&status)
        );
    }
    Ok(())
}

fn address(pod: &AgentPodInfo) -> Option<SocketAddr> {
    let ip: IpAddr = match pod.pod_ip.len() {
        4 => <[u8; 4]>::try_from(&pod.pod_ip[..]).ok()?.into(),
        16 => <[u8; 16]>::try_from(&pod.pod_ip[..]).ok()?.into(),
        _ => return None,
    };
    let port = u16::try_from(pod.api_port).ok().filter(|port| *port != 0)?;
    Some(SocketAddr::new(ip.to_canonical(), port))
}
