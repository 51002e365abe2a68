//! The datagrams of one flow into a tunnel. Their dial succeeds whoever listens, so only a
//! rejection tells that nobody does, and it comes behind datagrams. Those that nothing has answered
//! are kept for a moment, within a small bound, so that the app can get them; and a workstation
//! that others were refused by is trusted again by an answer, or when none of that comes for as
//! long.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::upstream::tunnel::{Tunnel, nothing_listens};
use traffic_core::routing::Intercept;
use traffic_core::routing::dial_memory::Attempt;

/// Time in which a rejection comes, if one does.
const REJECTION_TIMEOUT: Duration = Duration::from_secs(1);
/// Datagrams of a flow that are kept, and their bytes.
const MAX_KEPT: (usize, usize) = (16, 16 * 1024);

/// A tunnel that carries the datagrams of one flow.
#[derive(Debug)]
pub struct DatagramTunnel {
    tunnel: Tunnel,
    intercept: Arc<Intercept>,
    /// The dial of a workstation that is not trusted yet.
    trial: Option<Trial>,
    unanswered: SentDatagrams,
    timer: Option<Pin<Box<Sleep>>>,
}

/// A dial that has yet to prove that somebody listens.
#[derive(Debug)]
struct Trial {
    attempt: Attempt,
    opened: Instant,
    /// Time of the first datagram.
    began: Option<Instant>,
}

/// End of a flow's tunnel.
#[derive(Debug)]
pub enum FlowEnd {
    /// Nothing listens at the workstation; these datagrams, as far as they were kept, were not
    /// answered.
    Refused(Vec<Bytes>),
    /// The workstation has ended the flow.
    Over,
    /// The tunnel broke.
    Broken(io::Error),
}

impl DatagramTunnel {
    /// A flow to a workstation that is trusted.
    #[must_use]
    pub fn new(mut tunnel: Tunnel, intercept: &Arc<Intercept>) -> Self {
        tunnel.announce_rejections();
        Self {
            tunnel,
            intercept: Arc::clone(intercept),
            trial: None,
            unanswered: SentDatagrams::default(),
            timer: None,
        }
    }

    /// A flow that is the first to try the workstation after others have failed, and whose dial has
    /// just been answered.
    #[must_use]
    pub fn on_trial(tunnel: Tunnel, intercept: &Arc<Intercept>, attempt: Attempt) -> Self {
        let trial = Trial {
            attempt,
            opened: Instant::now(),
            began: None,
        };
        let mut on_trial = Self::new(tunnel, intercept);
        on_trial.trial = Some(trial);
        on_trial
    }

    /// Sends a datagram, or drops it where the tunnel has no room.
    pub fn send(&mut self, datagram: Bytes) {
        if !self.tunnel.send_datagram(&datagram) {
            return;
        }
        let now = Instant::now();
        if let Some(trial) = &mut self.trial {
            trial.began.get_or_insert(now);
        }
        self.unanswered.push(now, datagram);
        self.timer
            .get_or_insert_with(|| Box::pin(sleep_until(now + REJECTION_TIMEOUT)));
    }

    /// Receives the next datagram. Cancel-safe.
    ///
    /// # Errors
    /// The flow is over, in one way or another.
    pub async fn recv(&mut self) -> Result<Bytes, FlowEnd> {
        loop {
            let received = tokio::select! {
                received = self.tunnel.recv_datagram() => received,
                () = elapsed(&mut self.timer) => {
                    self.look(Instant::now());
                    continue;
                }
            };
            return match received {
                Ok(Some(datagram)) => {
                    self.unanswered.clear();
                    self.proven();
                    Ok(datagram)
                }
                Ok(None) => {
                    self.lost("the tunnel of datagrams ended before one was answered");
                    Err(FlowEnd::Over)
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    Err(self.refused())
                }
                Err(error) => {
                    self.lost(&error.to_string());
                    Err(FlowEnd::Broken(error))
                }
            };
        }
    }

    /// Forgets datagrams that are old enough, and sets the timer for the others.
    fn look(&mut self, now: Instant) {
        let old = |then: Instant| then + REJECTION_TIMEOUT <= now;
        if self
            .trial
            .as_ref()
            .is_some_and(|it| it.began.is_some_and(old))
        {
            self.proven();
        }
        self.unanswered.forget(old);
        match (self.unanswered.oldest(), &mut self.timer) {
            (Some(oldest), Some(timer)) => timer.as_mut().reset(oldest + REJECTION_TIMEOUT),
            _ => self.timer = None,
        }
    }

    fn proven(&mut self) {
        if let Some(trial) = self.trial.take() {
            trial.attempt.succeeded(trial.opened.into_std());
        }
    }

    fn refused(&mut self) -> FlowEnd {
        let (now, why) = (Instant::now().into_std(), nothing_listens(&self.intercept));
        match self.trial.take() {
            Some(trial) => trial.attempt.failed(now, &why),
            None => self.intercept.stats.dials.refused(now, &why),
        }
        FlowEnd::Refused(self.unanswered.take())
    }

    /// The tunnel has ended. Behind an unanswered datagram that is the way in which stock
    /// workstations show that nothing listens, so the next flow tries alone.
    fn lost(&mut self, why: &str) {
        match self.trial.take() {
            Some(trial) => trial.attempt.failed(Instant::now().into_std(), why),
            None if self.unanswered.oldest().is_some() => {
                self.intercept.stats.dials.tunnel_lost();
            }
            None => {}
        }
    }
}

impl Drop for DatagramTunnel {
    /// A flow that ends early has proved nothing.
    fn drop(&mut self) {
        if let Some(trial) = self.trial.take() {
            trial.attempt.opened(trial.opened.into_std());
        }
    }
}

async fn elapsed(timer: &mut Option<Pin<Box<Sleep>>>) {
    match timer {
        Some(timer) => timer.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Datagrams that were sent and not answered.
#[derive(Debug, Default)]
struct SentDatagrams {
    sent: VecDeque<(Instant, Bytes)>,
    bytes: usize,
}

impl SentDatagrams {
    fn push(&mut self, now: Instant, datagram: Bytes) {
        self.bytes += datagram.len();
        self.sent.push_back((now, datagram));
        while self.sent.len() > MAX_KEPT.0 || self.bytes > MAX_KEPT.1 {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some((_, datagram)) = self.sent.pop_front() {
            self.bytes -= datagram.len();
        }
    }

    fn forget(&mut self, is_old: impl Fn(Instant) -> bool) {
        while self.oldest().is_some_and(&is_old) {
            self.pop();
        }
    }

    fn oldest(&self) -> Option<Instant> {
        self.sent.front().map(|(sent, _)| *sent)
    }

    fn clear(&mut self) {
        self.sent.clear();
        self.bytes = 0;
    }

    fn take(&mut self) -> Vec<Bytes> {
        self.bytes = 0;
        self.sent.drain(..).map(|(_, datagram)| datagram).collect()
    }
}
