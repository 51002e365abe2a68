//! Life cycle of one intercept: arrive, prepare, create, serve, leave.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use traffic_proto::manager::{
    ClientInfo, CreateInterceptRequest, InterceptDispositionType as Disposition, InterceptInfo,
    InterceptSpec, PreparedIntercept, RemoveInterceptRequest2, SessionInfo,
};
use traffic_proto::port::Transport;

use crate::Failure;
use crate::container::{self, Container};
use crate::credentials::Credentials;
use crate::deliveries;
use crate::deliveries::Delivery;
use crate::direct::{Direct, Reach};
use crate::filters;
use crate::flags::{Attachment, Create, Output};
use crate::live::Live;
use crate::local::resolve;
use crate::manage::{self, tell};
use crate::mount::leftovers;
use crate::report::{self, Pairs, event, line, note};
use crate::rest_api::RestApi;
use crate::session::{self, Manager, Patience, Resumed, Way, call, refused, status_text};
use crate::to_pod::PodPorts;
use crate::tunnels::TunnelDialer;
use crate::watches::{agents, dials};

/// Time after leaving in which connections may still be announced, for requests routed before the
/// agent learned of it.
const LATE_DIAL_GRACE: Duration = Duration::from_millis(500);
/// Time connections may continue after leaving.
const GRACE: Duration = Duration::from_secs(5);

/// Requests of the user to end.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Ends in order: connections may finish.
    pub orderly: CancellationToken,
    /// Ends without waiting for connections; what was created is removed all the same.
    pub at_once: CancellationToken,
}

/// Creates an intercept and serves it until `stop`, or until it is removed by another process.
pub async fn create(flags: &Create, stop: Stop) -> Result<(), Failure> {
    if flags.output == Output::Json {
        report::as_json();
    }
    // Before anything is created: a wrong address must not leave an intercept behind.
    let local_ports = flags.local_ports();
    let first = local_ports.first().copied().unwrap_or_default();
    let target = resolve(&flags.address, first).await?;
    leftovers::take_away_all();
    container::check(&flags.container)?;
    let pod_ports = PodPorts::open(&flags.to_pod)?;
    let timeout = Duration::from_secs(flags.timeout);
    let connected = async {
        let way = Way::open(&flags.manager).await?;
        let namespace = flags.namespace.as_deref().unwrap_or(way.namespace());
        let spec = flags.spec(namespace, target).map_err(Failure::Usage)?;
        for (name, value) in &flags.http_header {
            filters::advice(name, value).iter().for_each(note);
        }
        let connected = session::connect(&way, timeout).await?;
        Ok((namespace.to_owned(), spec, connected, way))
    };
    // Nothing exists yet that would have to be removed.
    let connected = stop.orderly.run_until_cancelled(connected).await;
    let Some(connected) = connected else {
        return Err(Failure::Interrupted);
    };
    let (namespace, spec, connected, way) = connected?;
    let client = session::client_info(&flags.manager.client, &namespace);
    let tunnel_dialer = TunnelDialer {
        target,
        local_ports: local_ports.into(),
        tunnels: TaskTracker::new(),
        warnings: Arc::default(),
        live: Live::new(way.to_string(), target),
    };
    let live = tunnel_dialer.live.clone();
    let mut intercept_session = InterceptSession {
        flags,
        way,
        manager: connected.manager,
        credentials: connected.credentials,
        client,
        spec,
        tunnel_dialer,
        stop,
        became_active: false,
        container: Container::default(),
        pod_ports,
        rest_api: None,
    };
    // A manager that was there comes back, if several times within seconds.
    let mut patience = Patience::new(timeout);
    let begun = loop {
        match intercept_session.begin().await {
            Err(failure) if patience.allows_another_try(&failure).await => {}
            begun => break begun?,
        }
    };
    let Some((session, info)) = begun else {
        return Err(Failure::Interrupted);
    };
    let is_shown = has_terminal(flags);
    let show = async {
        match is_shown {
            true => live.show().await,
            false => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = intercept_session.run(session, info) => ended,
        never = live.tell() => match never {},
        never = show => match never {},
    };
    if is_shown {
        report::footer("");
    }
    ended
}

/// Returns true if the figures may be shown below the lines: a command has the terminal for itself.
fn has_terminal(flags: &Create) -> bool {
    flags.output == Output::Text
        && flags.container.command.is_empty()
        && std::io::stdout().is_terminal()
}

struct InterceptSession<'a> {
    flags: &'a Create,
    way: Way,
    manager: Manager,
    credentials: Credentials,
    client: ClientInfo,
    /// Spec as prepared by the manager.
    spec: InterceptSpec,
    tunnel_dialer: TunnelDialer,
    stop: Stop,
    became_active: bool,
    /// The app's container on this machine.
    container: Container,
    /// Ports of the pod on this machine.
    pod_ports: PodPorts,
    /// Answers to consumers of messages, once the intercept is active.
    rest_api: Option<RestApi>,
}

/// Reason serving ended.
enum Ended {
    Stopped,
    Removed,
    /// The manager cannot be reached, or no longer knows the session.
    Lost(Status),
}

impl InterceptSession<'_> {
    /// Arrives and creates the intercept; `None` if stopped meanwhile.
    async fn begin(&mut self) -> Result<Option<(SessionInfo, InterceptInfo)>, Failure> {
        let arriving = session::arrive(&mut self.manager, &self.credentials, &self.client);
        let session = arriving.await?;
        self.tunnel_dialer.live.begun(self.credentials.key());
        let stop = self.stop.orderly.clone();
        // The session exists from here on, so every way out departs from it.
        match stop.run_until_cancelled(self.make(&session)).await {
            Some(Ok(info)) => {
                self.tunnel_dialer.live.says(&info);
                tell(&info);
                Ok(Some((session, info)))
            }
            Some(Err(failure)) => {
                self.depart(session).await;
                Err(failure)
            }
            None => {
                self.depart(session).await;
                Ok(None)
            }
        }
    }

    /// Prepares and creates the intercept.
    async fn make(&mut self, session: &SessionInfo) -> Result<InterceptInfo, Failure> {
        let mut request = CreateInterceptRequest {
            session: Some(session.clone()),
            intercept_spec: Some(self.spec.clone()),
            ..CreateInterceptRequest::default()
        };
        let mut prepare = tonic::Request::new(request.clone());
        // The manager may have to wait for the workload to roll out.
        prepare.set_timeout(Duration::from_secs(self.flags.timeout) + session::CALL_TIMEOUT);
        let prepared = self.manager.prepare_intercept(prepare).await;
        let prepared =
            prepared.map_err(|status| refused("the intercept cannot be prepared", &status))?;
        // The manager knows the workload's service and ports; the agent matches by them.
        complete(&mut self.spec, prepared.into_inner())?;
        let all = deliveries::of(&self.spec);
        let datagrams = all.iter().find(|it| it.transport == Some(Transport::Udp));
        if let Some(Delivery { port, .. }) = datagrams {
            let checked = self.flags.check_datagrams(&format!("{port}/UDP"));
            checked.map_err(Failure::Usage)?;
        }
        request.intercept_spec = Some(self.spec.clone());
        let info = self.manager.create_intercept(call(request)).await;
        Ok(info
            .map_err(|status| refused("the intercept cannot be created", &status))?
            .into_inner())
    }

    /// Serves the intercept to its end, over as many connections to the manager as needed.
    async fn run(
        mut self,
        mut session: SessionInfo,
        mut info: InterceptInfo,
    ) -> Result<(), Failure> {
        let mut direct = self.direct(&session);
        let result = loop {
            match self.serve(&session, &mut info, &mut direct).await {
                Ok(Ended::Stopped) => break self.stopped(),
                Ok(Ended::Removed) => {
                    event(&Pairs(&[
                        ("state", "REMOVED"),
                        ("intercept", &self.spec.name),
                    ]));
                    break Ok(());
                }
                Err(failure) => break Err(failure),
                Ok(Ended::Lost(status)) => {
                    self.tunnel_dialer.live.lost(&status_text(&status));
                    event(&Pairs(&[
                        ("manager", "lost"),
                        ("message", &status_text(&status)),
                    ]));
                    let resumed = session::resume(
                        self.manager.clone(),
                        &session,
                        &self.client,
                        std::slice::from_ref(&info),
                    );
                    match self.stop.orderly.run_until_cancelled(resumed).await {
                        None => break self.stopped(),
                        Some(Resumed::Same) => {}
                        Some(Resumed::Unknown) => match self.begin().await {
                            // Interrupted while arriving, and already departed.
                            Ok(None) => {
                                self.container.end().await;
                                return self.stopped();
                            }
                            Ok(Some((new, created))) => {
                                // The former session is gone with its attachments; the new one
                                // starts its own.
                                (session, info) = (new, created);
                                direct = self.direct(&session);
                            }
                            Err(failure) => {
                                // The manager may have restarted again, so it is asked again.
                                event(&Pairs(&[
                                    ("manager", "lost"),
                                    ("message", &failure.to_string()),
                                ]));
                                sleep(Duration::from_secs(1)).await;
                                continue;
                            }
                        },
                    }
                    event(&Pairs(&[("manager", "back")]));
                    self.tunnel_dialer.live.says(&info);
                    // A manager that restores the session only to end it again must not be called
                    // in a tight loop.
                    sleep(Duration::from_millis(200)).await;
                }
            }
        };
        self.leave(&session, &direct).await;
        // After the requests under way, which the command answers.
        self.container.end().await;
        self.depart(session).await;
        drop(direct);
        result
    }

    /// Result of an orderly end. An intercept that was never active is no success, so that scripts
    /// stop.
    fn stopped(&self) -> Result<(), Failure> {
        if self.became_active {
            return Ok(());
        }
        Err(Failure::Interrupted)
    }

    fn direct(&self, session: &SessionInfo) -> Direct {
        Direct::new(
            self.tunnel_dialer.clone(),
            (session.clone(), self.credentials.key()),
            Reach {
                way: self.way.clone(),
                is_wanted: !self.flags.no_direct,
                fixed: self.flags.agent.clone(),
            },
        )
    }

    /// Serves as long as the manager can be reached.
    async fn serve(
        &mut self,
        session: &SessionInfo,
        info: &mut InterceptInfo,
        direct: &mut Direct,
    ) -> Result<Ended, Failure> {
        let stop = self.stop.orderly.clone();
        let warnings = self.tunnel_dialer.warnings.clone();
        let (live, name) = (self.tunnel_dialer.live.clone(), self.spec.name.clone());
        let (manager, tunnel_dialer) = (self.manager.clone(), self.tunnel_dialer.clone());
        tokio::select! {
            // The watches and the heartbeat end together: losing one means that the manager is
            // lost.
            () = stop.cancelled() => Ok(Ended::Stopped),
            status = session::remain(manager.clone(), session.clone()) => Ok(Ended::Lost(status)),
            status = dials(tunnel_dialer, manager.clone(), session) => Ok(Ended::Lost(status)),
            status = agents(manager.clone(), session, direct) => Ok(Ended::Lost(status)),
            ended = self.states(manager.clone(), session, info) => ended,
            never = warnings.run() => match never {},
            never = live.ask(manager.clone(), session, name) => match never {},
        }
    }

    /// Follows the intercept's state.
    async fn states(
        &mut self,
        mut manager: Manager,
        session: &SessionInfo,
        info: &mut InterceptInfo,
    ) -> Result<Ended, Failure> {
        let deadline = Instant::now() + Duration::from_secs(self.flags.timeout);
        let mut snapshots = match manager.watch_intercepts(session.clone()).await {
            Ok(snapshots) => snapshots.into_inner(),
            Err(status) => return Ok(Ended::Lost(status)),
        };
        loop {
            let snapshot = tokio::select! {
                snapshot = snapshots.message() => snapshot,
                // Once active, an intercept may wait again for a new replica without a time limit.
                () = sleep_until(deadline), if !self.became_active => return Err(self.never_active()),
                failure = self.container.ended() => return Err(failure),
            };
            let snapshot = match snapshot {
                Ok(Some(snapshot)) => snapshot,
                Ok(None) => return Ok(Ended::Lost(Status::unavailable("the session has ended"))),
                Err(status) => return Ok(Ended::Lost(status)),
            };
            let Some(state) = snapshot
                .intercepts
                .into_iter()
                .find(|other| other.id == info.id)
            else {
                return Ok(Ended::Removed);
            };
            // A line for each change a user would notice, not for each snapshot.
            let is_news = state.disposition != info.disposition || state.pod_name != info.pod_name;
            *info = state;
            let facts = (&*info).into();
            self.container.follow(self.manager.clone(), session, &facts);
            self.pod_ports.lead(self.manager.clone(), session, info);
            self.tunnel_dialer.live.says(info);
            if is_news {
                tell(info);
            }
            let is_active = info.disposition() == Disposition::Active;
            let warning = if is_active { &info.message } else { "" };
            self.tunnel_dialer.warnings.manager_says(warning);
            match info.disposition() {
                Disposition::Active if !self.became_active => {
                    self.rest_api = RestApi::start(info).await;
                    self.activated(session, info).await?;
                }
                Disposition::Active | Disposition::Waiting => {}
                // A workload being rolled out has no agent for a moment; the intercept comes back
                // by itself. What an agent refused does not.
                Disposition::AgentError | Disposition::BadArgs if self.became_active => {
                    return Err(turned_down(&self.spec.name, info, &info.message));
                }
                _ if self.became_active => {}
                _ => {
                    let why = if info.message.is_empty() {
                        "no reason given".to_owned()
                    } else {
                        manage::with_way_out(&mut self.manager, &self.client.name, &info.message)
                            .await
                    };
                    return Err(turned_down(&self.spec.name, info, &why));
                }
            }
        }
    }

    async fn activated(
        &mut self,
        session: &SessionInfo,
        info: &InterceptInfo,
    ) -> Result<(), Failure> {
        self.became_active = true;
        let (flags, manager) = (&self.flags.container, self.manager.clone());
        self.container
            .begin(flags, manager, session, &info.into())
            .await?;
        let spec = info.spec.as_ref().unwrap_or(&self.spec);
        let takes = match deliveries::described(info, spec) {
            said if said.is_empty() => "matching traffic".to_owned(),
            said => said,
        };
        let way = match deliveries::of(spec).len() {
            0 | 1 => format!("{takes} -> {}", self.tunnel_dialer.target),
            _ => format!("{takes}: {}", deliveries::line(spec)),
        };
        let workload = self.flags.workload();
        match self.flags.kind {
            Attachment::Intercept => line(format_args!(
                "Intercepting {workload}: {way}. Press Ctrl-C to leave."
            )),
            Attachment::Replace => line(format_args!(
                "Replacing container {} of {workload}: {way}. It comes back when you leave; press \
                 Ctrl-C.",
                self.spec.container_name
            )),
            Attachment::Wiretap => line(format_args!(
                "Wiretapping {workload}: copies of {way}; the app answers. Press Ctrl-C to leave."
            )),
        }
        Ok(())
    }

    fn never_active(&self) -> Failure {
        Failure::Failed(format!(
            "intercept {:?} is still waiting after {} s: no agent of {:?} accepted it; does the \
            port {:?} exist there?",
            self.spec.name,
            self.flags.timeout,
            self.flags.workload(),
            self.flags.asked_ports()
        ))
    }

    /// Removes the intercept, and lets connections finish for a while.
    async fn leave(&mut self, session: &SessionInfo, direct: &Direct) {
        let request = RemoveInterceptRequest2 {
            session: Some(session.clone()),
            name: self.spec.name.clone(),
        };
        let mut remove = call(request);
        // Short, because the user is waiting for the prompt.
        remove.set_timeout(Duration::from_secs(2));
        if self.manager.remove_intercept(remove).await.is_err() {
            direct.leave();
        }
        let finished = async {
            sleep(LATE_DIAL_GRACE).await;
            // `wait` needs a closed tracker; later announcements may still add tasks.
            self.tunnel_dialer.tunnels.close();
            let _ = timeout(GRACE, self.tunnel_dialer.tunnels.wait()).await;
        };
        let at_once = self.stop.at_once.clone();
        tokio::select! {
            () = finished => {}
            () = at_once.cancelled() => {}
            // Requests already routed here are still announced while leaving.
            () = async {
                dials(self.tunnel_dialer.clone(), self.manager.clone(), session).await;
                std::future::pending().await
            } => {}
        }
    }

    async fn depart(&mut self, session: SessionInfo) {
        let mut depart = call(session);
        depart.set_timeout(Duration::from_secs(2));
        let _ = self.manager.depart(depart).await;
    }
}

/// Fills the spec with the manager's facts about the workload.
fn complete(spec: &mut InterceptSpec, prepared: PreparedIntercept) -> Result<(), Failure> {
    if !prepared.error.is_empty() {
        return Err(Failure::Failed(format!(
            "intercept {:?} cannot be prepared: {}",
            spec.name, prepared.error
        )));
    }
    if !prepared.service_uid.is_empty() {
        // Names survive a change of the number in the service.
        let port = match prepared.service_port_name.as_str() {
            "" => prepared.service_port.to_string(),
            name => name.to_owned(),
        };
        spec.port_identifier = format!("{port}/{}", prepared.protocol);
    }
    spec.service_uid = prepared.service_uid;
    spec.service_name = prepared.service_name;
    spec.service_port_name = prepared.service_port_name;
    spec.service_port = prepared.service_port;
    spec.workload_kind = prepared.workload_kind;
    spec.container_name = prepared.container_name;
    spec.container_port = prepared.container_port;
    spec.pod_ports = prepared.pod_ports;
    spec.service_ips = prepared.service_ips;
    if !prepared.protocol.is_empty() {
        spec.protocol = prepared.protocol;
    }
    Ok(())
}

fn turned_down(name: &str, info: &InterceptInfo, why: &str) -> Failure {
    let state = info.disposition().as_str_name();
    Failure::Failed(format!("intercept {name:?}: {state}: {why}"))
}
