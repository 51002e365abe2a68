//! Worker threads: each has a single-threaded runtime and its own listener of every port, so that a
//! connection stays on one thread for its whole life.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::Handle;

use crate::drain::Drain;
use crate::proxy::context::PortContext;
use crate::proxy::listener::bind;
use crate::proxy::listener::bind::{BindError, PortSpec};

/// All listening ports, bound and not yet served.
#[derive(Debug)]
pub struct Ports {
    bound: Vec<Bound>,
    workers: usize,
}

#[derive(Debug)]
struct Bound {
    addr: SocketAddr,
    /// Listeners of one port, one for each worker.
    listeners: Vec<std::net::TcpListener>,
    port: Arc<PortContext>,
    probes: bool,
}

/// Running worker threads.
#[derive(Debug)]
pub struct RunningWorkers {
    threads: Vec<JoinHandle<()>>,
    runtimes: Vec<Handle>,
}

impl Ports {
    /// Binds every port for `workers` threads.
    ///
    /// # Errors
    /// The first port that could not be bound.
    pub fn bind(
        specs: Vec<(PortSpec, Arc<PortContext>)>,
        workers: usize,
    ) -> Result<Self, BindError> {
        bind::raise_descriptor_limit();
        let workers = workers.max(1);
        let bound = specs
            .into_iter()
            .map(|(spec, port)| Bound::new(&spec, port, workers))
            .collect::<Result<_, BindError>>()?;
        Ok(Self { bound, workers })
    }

    /// Bound addresses in the order the ports were given.
    #[must_use]
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.bound.iter().map(|bound| bound.addr).collect()
    }

    /// Starts the threads. They end when `drain` has begun and the last connection has ended or was
    /// killed.
    ///
    /// # Errors
    /// A thread or a runtime could not be made.
    pub fn run(mut self, drain: &Drain) -> io::Result<RunningWorkers> {
        let (mut threads, mut runtimes) = (Vec::new(), Vec::new());
        for n in 0..self.workers {
            let mine: Vec<_> = self
                .bound
                .iter_mut()
                .filter_map(|b| Some((b.listeners.pop()?, Arc::clone(&b.port))))
                .collect();
            let asking: Vec<_> = self
                .bound
                .iter()
                .filter(|b| b.probes && n == 0)
                .map(|b| Arc::clone(&b.port))
                .collect();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtimes.push(runtime.handle().clone());
            let drain = drain.clone();
            let work = move || runtime.block_on(serve(mine, asking, drain));
            threads.push(
                std::thread::Builder::new()
                    .name(format!("worker-{n}"))
                    .spawn(work)?,
            );
        }
        Ok(RunningWorkers { threads, runtimes })
    }
}

impl Bound {
    fn new(spec: &PortSpec, port: Arc<PortContext>, workers: usize) -> Result<Self, BindError> {
        let listeners = spec.bind(workers)?;
        let addr = listeners.first().map_or(
            Err(io::ErrorKind::NotFound.into()),
            std::net::TcpListener::local_addr,
        );
        let addr = addr.map_err(|source| BindError::Refused {
            port: spec.port,
            owner: spec.owner.clone(),
            source,
        })?;
        Ok(Self {
            addr,
            listeners,
            port,
            probes: spec.probes,
        })
    }
}

impl RunningWorkers {
    /// The threads' runtimes, for what belongs to their connections.
    #[must_use]
    pub fn runtimes(&self) -> &[Handle] {
        &self.runtimes
    }

    /// Waits for the threads to end; false if one of them panicked.
    pub fn join(self) -> bool {
        let panicked = self
            .threads
            .into_iter()
            .map(JoinHandle::join)
            .filter(Result::is_err)
            .count();
        panicked == 0
    }
}

async fn serve(
    listeners: Vec<(std::net::TcpListener, Arc<PortContext>)>,
    asking: Vec<Arc<PortContext>>,
    drain: Drain,
) {
    for (listener, port) in listeners {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => drain.spawn(super::accept::accept(listener, port)),
            // The only cause is a runtime that cannot register another descriptor.
            Err(error) => tracing::error!(port = port.agent_port, %error, "the port is not served"),
        }
    }
    for port in asking {
        drain.spawn(crate::proxy::protocol_probe::ask_when_needed(port));
    }
    drain.draining().await;
    drain.finished().await;
}
