//! A flow that an intercept takes: to the workstation, and to the app while that is not reached or
//! refuses datagrams. Then some flow's next datagram tries again when the memory of dials allows
//! it, and every flow follows once the workstation takes them: a caller that keeps its socket for
//! good would never get there otherwise.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::addr::Caller;
use crate::proxy::context::PortContext;
use crate::proxy::udp::app_end::{AppEnd, OneFamily};
use crate::proxy::udp::flow::{Clock, Flow, FlowTarget, Reply, UdpLimits, Work, answers_of_app};
use crate::upstream::datagrams::{DatagramTunnel, FlowEnd};
use crate::upstream::workstation;
use crate::upstream::workstation::NoWorkstation;
use traffic_core::routing::Intercept;

/// Datagrams queued for a tunnel that is opening or too slow; more are dropped.
const QUEUE_CAPACITY: usize = 64;

/// Starts a flow into a tunnel that is opened meanwhile; falls back to the app if it cannot be, or
/// if nothing listens at its other end.
pub(crate) fn to_workstation(
    shared: Arc<PortContext>,
    intercept: Arc<Intercept>,
    reply: Reply,
    limits: UdpLimits,
    one_family: OneFamily,
) -> (Flow, Work) {
    let (queue_tx, queue) = mpsc::channel(QUEUE_CAPACITY);
    let flow = Flow::new(Some(intercept.clone()), FlowTarget::Queue(queue_tx));
    let (clock, stop) = (flow.clock.clone(), flow.stop.clone());
    let work = async move {
        let _live = shared.metrics.udp_flows.hold();
        let flow = Intercepted {
            shared: shared.clone(),
            intercept,
            reply,
            clock: clock.clone(),
            one_family,
        };
        tokio::select! {
            () = flow.carry(queue) => {}
            () = clock.idle(limits) => {}
            () = stop.requested() => {}
        }
    };
    (flow, Box::pin(work))
}

/// One caller's flow of an intercepted port.
struct Intercepted {
    shared: Arc<PortContext>,
    intercept: Arc<Intercept>,
    reply: Reply,
    clock: Arc<Clock>,
    one_family: OneFamily,
}

impl Intercepted {
    /// Carries what comes out of `queue` until an end has gone.
    async fn carry(self, mut queue: mpsc::Receiver<Bytes>) {
        // Kept once it is open, so that the app sees one peer.
        let mut app = None;
        // Datagrams ahead of those in the queue.
        let mut first = Vec::new();
        workstation::hit(&self.intercept);
        loop {
            match self.connect(app.as_ref()).await {
                Ok(tunnel) => {
                    if app.is_some() {
                        workstation::hit(&self.intercept);
                    }
                    match self.through(tunnel, first, &mut queue, app.as_ref()).await {
                        FlowEnd::Refused(unanswered) => first = unanswered,
                        end => return self.ended(&end),
                    }
                    let workstations = self.shared.workstations();
                    workstations.refused(&self.intercept, Caller::new(self.reply.caller));
                }
                // A flow that the app has already stays there.
                Err(_) if app.is_some() => {}
                Err(failure) => {
                    let workstations = self.shared.workstations();
                    workstations.fell_back(&self.intercept, failure.why);
                }
            }
            let app = match &app {
                Some(open) => open,
                None => match AppEnd::open(&self.shared, self.reply.local, &self.one_family) {
                    Ok(opened) => app.insert(opened),
                    Err(error) => return self.has_no_app(&error),
                },
            };
            match self.through_app(app, first, &mut queue).await {
                Some(datagram) => first = vec![datagram],
                None => return,
            }
        }
    }

    /// Opens a tunnel, while answers of the app still pass.
    async fn connect(&self, app: Option<&AppEnd>) -> Result<DatagramTunnel, NoWorkstation> {
        let (caller, workstations) = (Caller::new(self.reply.caller), self.shared.workstations());
        tokio::select! {
            connected = workstations.connect_udp(&self.intercept, caller) => connected,
            never = self.late_answers(app) => match never {},
        }
    }

    /// Moves datagrams both ways through an open tunnel until it ends.
    async fn through(
        &self,
        mut tunnel: DatagramTunnel,
        first: Vec<Bytes>,
        queue: &mut mpsc::Receiver<Bytes>,
        app: Option<&AppEnd>,
    ) -> FlowEnd {
        for datagram in first {
            tunnel.send(datagram);
        }
        let carried = async {
            let mut more = true;
            loop {
                tokio::select! {
                    datagram = queue.recv(), if more => match datagram {
                        Some(datagram) => tunnel.send(datagram),
                        // The caller's datagrams go to another flow now; answers may still arrive.
                        None => more = false,
                    },
                    answer = tunnel.recv() => match answer {
                        Ok(answer) => {
                            self.clock.answered();
                            self.reply.send(&answer, &self.shared);
                        }
                        Err(end) => return end,
                    },
                }
            }
        };
        tokio::select! {
            end = carried => end,
            never = self.late_answers(app) => match never {},
        }
    }

    /// Moves datagrams both ways between the caller and the app; returns one that may try the
    /// workstation again, or nothing when the app's end is lost.
    async fn through_app(
        &self,
        app: &AppEnd,
        first: Vec<Bytes>,
        queue: &mut mpsc::Receiver<Bytes>,
    ) -> Option<Bytes> {
        for datagram in first {
            app.send(&datagram);
        }
        let outward = async {
            while let Some(datagram) = queue.recv().await {
                if self.may_try() {
                    return datagram;
                }
                app.send(&datagram);
            }
            // Answers may still come after the caller's last datagram.
            std::future::pending().await
        };
        tokio::select! {
            datagram = outward => Some(datagram),
            () = answers_of_app(app, &self.reply, &self.shared, &self.clock) => None,
        }
    }

    fn may_try(&self) -> bool {
        let tunnels = &self.shared.tunnels;
        let attachment = tunnels.attachment(&self.intercept.client_session);
        let now = Instant::now().into_std();
        self.intercept.stats.dials.may_try(now, attachment)
    }

    /// Forwards answers of an app that the flow has left, as long as there are any.
    async fn late_answers(&self, app: Option<&AppEnd>) -> std::convert::Infallible {
        if let Some(app) = app {
            answers_of_app(app, &self.reply, &self.shared, &self.clock).await;
        }
        std::future::pending().await
    }

    fn ended(&self, end: &FlowEnd) {
        if let FlowEnd::Broken(error) = end {
            self.shared.metrics.tunnel_failures.inc();
            tracing::debug!(caller = %self.reply.caller, %error, "tunnel of a UDP flow ended");
        }
    }

    fn has_no_app(&self, error: &io::Error) {
        self.shared.metrics.app_connect_failures.inc();
        tracing::debug!(caller = %self.reply.caller, %error, "no socket to the app for this flow");
    }
}
