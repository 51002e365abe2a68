//! The one way to a workstation: leave from the memory of earlier dials, a tunnel, the dial's
//! answer, TLS where the app would be spoken to in TLS, and one limited log line where any of that
//! fails. All within the intercept's dial budget, since a caller is waiting.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::{Instant, timeout_at};

use crate::addr::Caller;
use crate::io::conn::Conn;
use crate::telemetry::metrics::{FailOpen, Label as _, PortMetrics};
use crate::telemetry::rate_limit::limited;
use crate::tls::alpn::TlsInfo;
use crate::upstream::datagrams::DatagramTunnel;
use crate::upstream::tunnel::{DialFailure, Tunnel, nothing_listens};
use crate::upstream::{DialApp, OpenTunnel, Transport, TunnelError};
use traffic_core::routing::dial_memory::{Admission, Attempt, Skipped};
use traffic_core::routing::{Intercept, TunnelPath};

/// The way from one port to workstations.
#[derive(Clone, Copy)]
pub struct Workstations<'p> {
    /// The container port, for the log.
    pub port: u16,
    /// Opens tunnels.
    pub tunnels: &'p dyn OpenTunnel,
    /// The app that the workstation stands for, which decides about TLS.
    pub app: &'p dyn DialApp,
    /// There is no app that could answer instead.
    pub app_away: bool,
    /// The port's counters.
    pub metrics: &'p Arc<PortMetrics>,
}

/// Time of the first write to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstWrite {
    /// After the workstation has connected: until then the app can still get all bytes.
    AfterDial,
    /// Immediate, for a whole connection: a rejected dial then resets the caller. After failed
    /// earlier dials the dial is awaited all the same.
    AtOnce,
}

/// The path of an open tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathInUse {
    path: TunnelPath,
    /// Attachments that had begun or ended when the path was last compared with the present one.
    changes: u64,
}

/// Reason the app answers instead of a workstation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct NoWorkstation {
    /// The label it is counted under.
    pub why: FailOpen,
    what: String,
}

impl NoWorkstation {
    fn new(why: FailOpen, what: impl ToString) -> Self {
        Self {
            why,
            what: what.to_string(),
        }
    }

    fn of_dial(failure: &DialFailure, intercept: &Intercept) -> Self {
        let what = match failure {
            DialFailure::Rejected => nothing_listens(intercept),
            DialFailure::Lost(_) | DialFailure::Timeout => failure.to_string(),
        };
        Self::new(failure.fail_open(), what)
    }

    fn skipped(skipped: &Skipped) -> Self {
        let again = if skipped.retry_in.is_zero() {
            "one request tries again".to_owned()
        } else {
            format!("the next try is in {:.1} s", skipped.retry_in.as_secs_f32())
        };
        Self::new(FailOpen::Skipped, format!("{}; {again}", skipped.reason))
    }
}

impl From<TunnelError> for NoWorkstation {
    fn from(error: TunnelError) -> Self {
        Self::new(error.fail_open(), error)
    }
}

impl Workstations<'_> {
    /// A connection to the intercept's workstation on behalf of `caller`.
    ///
    /// # Errors
    /// Why there is none; [`Self::fell_back`] counts what the app gets for it.
    pub async fn connect(
        &self,
        intercept: &Arc<Intercept>,
        caller: Caller,
        hello: Option<&TlsInfo>,
        write: FirstWrite,
    ) -> Result<Conn, NoWorkstation> {
        let in_tls = !intercept.plaintext && self.app.plain_addr().is_none();
        let attempt = self.admit(intercept, caller)?;
        let deadline = deadline(intercept, &attempt);
        // TLS waits for the dial anyway.
        if write == FirstWrite::AtOnce && !in_tls && !attempt.is_doubted() {
            let opening = async {
                let opening = self.open(intercept, caller, Transport::Tcp, deadline);
                let mut tunnel = opening.await?;
                // Open as soon as the manager has it, whatever the workstation does: behind an
                // unanswered dial no byte goes into it, and the app can still get the connection.
                if tunnel.is_through_manager() && attempt.patience().is_some() {
                    let dialled = tunnel.await_dial(deadline).await;
                    dialled.map_err(|failure| NoWorkstation::of_dial(&failure, intercept))?;
                }
                Ok(tunnel)
            };
            let opened = within_patience(&attempt, opening).await;
            return self.begun(opened, intercept, caller, attempt, deadline);
        }
        let dialling = async {
            let opening = self.open(intercept, caller, Transport::Tcp, deadline);
            let mut tunnel = opening.await?;
            let dialled = tunnel.await_dial(deadline).await;
            dialled.map_err(|failure| NoWorkstation::of_dial(&failure, intercept))?;
            let tunnel = Box::new(tunnel.remembered(intercept, None));
            if !in_tls {
                return Ok(Conn::Other(tunnel));
            }
            match timeout_at(deadline, self.app.secure_tunnel(tunnel, hello)).await {
                Ok(secured) => secured.map_err(|e| NoWorkstation::new(FailOpen::Handshake, e)),
                Err(_) => Err(NoWorkstation::new(
                    FailOpen::Handshake,
                    "the TLS handshake with the workstation took too long",
                )),
            }
        };
        let dialled = within_patience(&attempt, dialling).await;
        self.concluded(dialled, intercept, caller, attempt)
    }

    /// A way for a flow's datagrams, which may be sent at once.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_udp(
        &self,
        intercept: &Arc<Intercept>,
        caller: Caller,
    ) -> Result<DatagramTunnel, NoWorkstation> {
        let attempt = self.admit(intercept, caller)?;
        let deadline = deadline(intercept, &attempt);
        let waits = attempt.is_doubted();
        let opening = async {
            let opening = self.open(intercept, caller, Transport::Udp, deadline);
            let mut tunnel = opening.await?;
            if waits {
                let dialled = tunnel.await_dial(deadline).await;
                dialled.map_err(|failure| NoWorkstation::of_dial(&failure, intercept))?;
            }
            Ok(tunnel)
        };
        match within_patience(&attempt, opening).await {
            Ok(tunnel) if waits => {
                let tunnel = tunnel.remembered(intercept, None);
                Ok(DatagramTunnel::on_trial(tunnel, intercept, attempt))
            }
            Ok(tunnel) => {
                let tunnel = tunnel.remembered(intercept, Some(attempt));
                Ok(DatagramTunnel::new(tunnel, intercept))
            }
            Err(failure) => self.concluded(Err(failure), intercept, caller, attempt),
        }
    }

    /// Counts a flow whose datagrams nothing takes at the workstation, and that the app gets
    /// instead.
    pub fn refused(&self, intercept: &Intercept, caller: Caller) {
        self.metrics.tunnel_failures.inc();
        let failure = NoWorkstation::of_dial(&DialFailure::Rejected, intercept);
        self.report(intercept, caller, &failure);
        self.fell_back(intercept, failure.why);
    }

    /// Returns the path that a tunnel takes now.
    #[must_use]
    pub fn path(&self, intercept: &Intercept) -> PathInUse {
        // Read first, so that a change between the two lines is looked at again.
        let changes = self.tunnels.attachment_changes();
        let path = match self.tunnels.attachment(&intercept.client_session) {
            Some(_) => TunnelPath::Direct,
            None => TunnelPath::Manager,
        };
        PathInUse { path, changes }
    }

    /// Returns true if the next request should have another tunnel than one of this path: through
    /// the manager it is slower, and would end with it. A workstation that has ended its attachment
    /// and keeps the connection is about to leave, and only finishes what is under way.
    #[must_use]
    pub fn is_outdated(&self, used: &mut PathInUse, intercept: &Intercept) -> bool {
        // The look-up takes a lock, and hardly any request comes after a change.
        if used.changes == self.tunnels.attachment_changes() {
            return false;
        }
        let present = self.path(intercept);
        used.changes = present.changes;
        used.path != present.path
    }

    /// Counts one request, connection or flow that the app gets instead of the workstation.
    pub fn fell_back(&self, intercept: &Intercept, why: FailOpen) {
        self.metrics.fail_open.at(why).inc();
        intercept.stats.failed_open.fetch_add(1, Ordering::Relaxed);
        self.tunnels.fell_back();
    }

    /// Leave to dial, or word that the workstation is skipped.
    fn admit(&self, intercept: &Arc<Intercept>, caller: Caller) -> Result<Attempt, NoWorkstation> {
        let attachment = self.tunnels.attachment(&intercept.client_session);
        // Nobody is helped by giving up a workstation early where no app can answer instead.
        let hasty = intercept.takes_whole_port() && !self.app_away;
        match intercept.stats.dials.admit(now(), attachment, hasty) {
            Admission::Dial(attempt) => Ok(attempt),
            Admission::Skip(skipped) => {
                let failure = NoWorkstation::skipped(&skipped);
                self.report(intercept, caller, &failure);
                Err(failure)
            }
        }
    }

    async fn open(
        &self,
        intercept: &Arc<Intercept>,
        caller: Caller,
        transport: Transport,
        deadline: Instant,
    ) -> Result<Tunnel, NoWorkstation> {
        let opening = self.tunnels.open(Arc::clone(intercept), caller, transport);
        let allowed = deadline.saturating_duration_since(Instant::now());
        let opened = timeout_at(deadline, opening).await;
        let io = opened.unwrap_or(Err(TunnelError::Timeout(allowed)))?;
        self.metrics.tunnels.inc();
        Ok(Tunnel::new(io).counted(self.metrics).bounded(intercept))
    }

    /// A connection whose dial is still under way: its outcome is noted when it shows.
    fn begun(
        &self,
        opened: Result<Tunnel, NoWorkstation>,
        intercept: &Arc<Intercept>,
        caller: Caller,
        attempt: Attempt,
        deadline: Instant,
    ) -> Result<Conn, NoWorkstation> {
        match opened {
            Ok(tunnel) if tunnel.is_dialled() => {
                attempt.succeeded(now());
                Ok(Conn::Other(Box::new(tunnel.remembered(intercept, None))))
            }
            Ok(tunnel) => {
                let tunnel = tunnel.remembered(intercept, Some(attempt));
                Ok(Conn::Other(Box::new(tunnel.dialled_by(deadline))))
            }
            Err(failure) => self.concluded(Err(failure), intercept, caller, attempt),
        }
    }

    /// Notes how a dial ended.
    fn concluded<C>(
        &self,
        dialled: Result<C, NoWorkstation>,
        intercept: &Intercept,
        caller: Caller,
        attempt: Attempt,
    ) -> Result<C, NoWorkstation> {
        match &dialled {
            Ok(_) => attempt.succeeded(now()),
            // It only waited for another dial, which reports the failure.
            Err(failure) if failure.why == FailOpen::Skipped => drop(attempt),
            Err(failure) => {
                self.metrics.tunnel_failures.inc();
                attempt.failed(now(), &failure.what);
            }
        }
        if let Err(failure) = &dialled {
            self.report(intercept, caller, failure);
            let unanswered = matches!(failure.why, FailOpen::Skipped | FailOpen::DialTimeout);
            // The callers of a whole port are anybody: those whose bytes are in its tunnels already
            // shall not wait for the usual keepalive.
            if unanswered && intercept.takes_whole_port() {
                self.tunnels.doubt(&intercept.client_session);
            }
        }
        dialled
    }

    fn report(&self, intercept: &Intercept, caller: Caller, failure: &NoWorkstation) {
        if intercept.wiretap {
            limited!(
                self.metrics.lines.fail_open, info, port = self.port,
                wiretap = %intercept.id, reason = failure.why.label(), error = %failure,
                "workstation not reached: it gets no copies"
            );
            return;
        }
        limited!(
            self.metrics.lines.fail_open, info, port = self.port, %caller,
            intercept = %intercept.id, reason = failure.why.label(), error = %failure,
            "workstation not reached: the app answers"
        );
    }
}

/// The end of a dial's time.
fn deadline(intercept: &Intercept, attempt: &Attempt) -> Instant {
    let budget = intercept.dial_budget();
    Instant::now() + attempt.limit().map_or(budget, |limit| limit.min(budget))
}

/// Counts a match of `intercept`.
pub fn hit(intercept: &Intercept) {
    intercept.stats.hit(traffic_proto::clock::now_unix());
}

/// Waits for a dial, behind another one that is unanswered not for long: unless the workstation
/// answers somebody meanwhile, it is given up.
async fn within_patience<C>(
    attempt: &Attempt,
    dial: impl Future<Output = Result<C, NoWorkstation>>,
) -> Result<C, NoWorkstation> {
    let Some(patience) = attempt.patience() else {
        return dial.await;
    };
    let mut dial = std::pin::pin!(dial);
    match timeout_at(Instant::now() + patience, &mut dial).await {
        Ok(dialled) => dialled,
        Err(_) if attempt.others_succeeded() => dial.await,
        Err(_) => Err(NoWorkstation::new(
            FailOpen::Skipped,
            "an earlier dial is unanswered",
        )),
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
