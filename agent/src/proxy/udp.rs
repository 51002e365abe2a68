//! UDP: one flow for each caller, to the app through its own socket, or into a tunnel if an
//! intercept takes the port; to the app after all where nothing takes them at the workstation,
//! until something does. An idle flow is dropped after a minute, one of a single question and its
//! answer after seconds; the number of flows is bounded, and beyond the bound the least recently
//! used ones give way to new callers. Datagrams of a known caller follow the current rules at once,
//! while late answers from the former upstream still reach it for a moment. All flows of a
//! listening socket run in the task that reads it.

mod app_end;
mod flow;
mod intercepted;
pub mod packet;
mod table;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::Instant;

use crate::proxy::context::PortContext;
use crate::proxy::listener::bind;
use crate::proxy::udp::app_end::OneFamily;
pub use crate::proxy::udp::flow::UdpLimits;
use crate::proxy::udp::flow::{Flow, FlowFuture, FlowKey, Reply};
use crate::proxy::udp::packet::Received;
use crate::proxy::udp::table::FlowTable;
use crate::telemetry::metrics;
use crate::telemetry::rate_limit::limited;

/// Time without any datagram, while draining, after which no traffic is taken to be in flight.
const QUIET_PERIOD: Duration = Duration::from_secs(1);
/// Datagrams taken in one turn before flows run.
const MAX_DATAGRAMS_PER_TURN: usize = 64;

/// Serves datagrams arriving at `socket` until the drain begins and traffic has ceased.
///
/// # Errors
/// The kernel does not report destinations, or the socket failed.
pub async fn serve(
    socket: UdpSocket,
    shared: Arc<PortContext>,
    limits: UdpLimits,
) -> io::Result<()> {
    packet::report_destination(socket.as_fd(), socket.local_addr()?.is_ipv6())?;
    let mut server = Server {
        socket: Arc::new(socket),
        shared: shared.clone(),
        limits,
        one_family: OneFamily::default(),
        flows: FlowTable::new(limits.flows),
        running: FuturesUnordered::new(),
        started: 0,
        active: Instant::now(),
        draining: false,
    };
    let mut buf = vec![0; traffic_proto::tunnel::MAX_DATAGRAM];
    loop {
        // Recomputed at every turn, so that any datagram postpones the end of the drain.
        let quiet_until = server.active + QUIET_PERIOD;
        tokio::select! {
            got = next(&server.socket, &mut buf) => server.take_all(got?, &mut buf),
            Some((key, id)) = server.running.next() => server.forget(key, id),
            () = shared.drain.draining(), if !server.draining => server.draining = true,
            () = tokio::time::sleep_until(quiet_until), if server.draining => return Ok(()),
        }
    }
}

struct Server {
    socket: Arc<UdpSocket>,
    shared: Arc<PortContext>,
    limits: UdpLimits,
    one_family: OneFamily,
    /// Target of each caller's next datagram.
    flows: FlowTable,
    /// Work of all flows, including replaced ones that still bring answers.
    running: FuturesUnordered<FlowFuture>,
    started: u64,
    active: Instant,
    draining: bool,
}

async fn next(socket: &UdpSocket, buf: &mut [u8]) -> io::Result<Received> {
    socket
        .async_io(Interest::READABLE, || receive(socket, buf))
        .await
}

/// Receives, skipping errors that belong to an earlier send (a caller whose port is closed).
fn receive(socket: &UdpSocket, buf: &mut [u8]) -> io::Result<Received> {
    loop {
        match packet::recv(socket.as_fd(), buf) {
            // A pending ICMP error says nothing about the next datagram.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
            other => return other,
        }
    }
}

impl Server {
    fn take_all(&mut self, first: Received, buf: &mut [u8]) {
        self.take(first, buf.get(..first.len).unwrap_or_default());
        let socket = self.socket.clone();
        for _ in 1..MAX_DATAGRAMS_PER_TURN {
            // A failure here shows again at the next wait.
            let Ok(got) = socket.try_io(Interest::READABLE, || receive(&socket, buf)) else {
                break;
            };
            self.take(got, buf.get(..got.len).unwrap_or_default());
        }
    }

    fn take(&mut self, got: Received, datagram: &[u8]) {
        let metrics = self.shared.metrics.clone();
        metrics.datagrams_in.inc();
        metrics.bytes_in.add(datagram.len() as u64);
        let key = (got.from, got.to);
        let intercept = self.shared.routes.load().global().cloned();
        match self.flows.get(&key) {
            Some(flow) if flow.leads_to(intercept.as_deref()) => {
                // Only traffic counts as activity, so a silent flow does not delay the drain.
                self.active = Instant::now();
                flow.send(datagram);
                return;
            }
            // The rules now lead elsewhere: the old flow only delivers late answers from here on.
            Some(_) => self.flows.replace(&key),
            None => {}
        }
        // Known callers finish their exchange; new ones are not accepted while draining.
        if self.draining {
            return;
        }
        self.make_room();
        self.started += 1;
        let reply = Reply {
            socket: self.socket.clone(),
            caller: got.from,
            local: got.to,
        };
        let started = match intercept {
            Some(intercept) => Ok(intercepted::to_workstation(
                self.shared.clone(),
                intercept,
                reply,
                self.limits,
                self.one_family.clone(),
            )),
            None => self.start_to_app(&reply),
        };
        match started {
            Ok((flow, work)) => {
                let id = self.started;
                self.running.push(Box::pin(async move {
                    work.await;
                    (key, id)
                }));
                flow.send(datagram);
                self.flows.insert(key, id, flow);
            }
            Err(error) => {
                metrics.app_connect_failures.inc();
                tracing::debug!(caller = %got.from, %error,
                "no socket to the app for this datagram");
            }
        }
    }

    /// Starts a flow to the app. Where descriptors have run out, flows give way as at the limit.
    fn start_to_app(&mut self, reply: &Reply) -> io::Result<(Flow, flow::Work)> {
        let one_family = self.one_family.clone();
        let (shared, limits) = (self.shared.clone(), self.limits);
        let start = || flow::to_app(shared.clone(), reply.clone(), limits, &one_family);
        let started = start();
        if started.as_ref().is_err_and(bind::is_exhausted) {
            self.flows.evict();
            self.say_full();
            // Those that gave way let their sockets go now.
            while let Some(Some((key, id))) = self.running.next().now_or_never() {
                self.forget(key, id);
            }
            return start();
        }
        started
    }

    /// Ends flows until there is room for one more.
    fn make_room(&mut self) {
        while self.flows.is_full() {
            self.flows.evict();
            self.say_full();
        }
    }

    fn say_full(&self) {
        let metrics = &self.shared.metrics;
        metrics.limits.at(metrics::Limit::UdpFlows).inc();
        limited!(
            metrics.lines.refused,
            warn,
            port = self.shared.agent_port,
            limit = self.limits.flows,
            "UDP flow limit reached: the least recently used flows give way; raise udpFlows or the \
            limit of open files"
        );
    }

    fn forget(&mut self, key: FlowKey, id: u64) {
        self.active = Instant::now();
        self.flows.forget(&key, id);
    }
}
