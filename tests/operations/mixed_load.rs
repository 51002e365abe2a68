//! Mixed load on one agent with four ports: HTTP/1 on kept connections, HTTP/2 relayed and
//! terminated, gRPC calls and streams by tonic, WebSockets; on three ports a part is intercepted.
//!
//! Callers behave as real clients do when a server closes gracefully: they continue on a new
//! connection, and repeat requests that were not processed. Anything else that happens to a request
//! is recorded as a failure.

mod endless;
mod grpc;
mod http1;
mod http2;
mod servers;
mod websocket;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use harness::apps::App;
use harness::ports;
use harness::process::Process;
use harness::sidecar::Port;
use harness::system::System;
use harness::wait::until;
use tokio::runtime::Runtime;

pub(crate) use endless::Endless;

/// The header that an intercept takes.
pub(crate) const DEV: (&str, &str) = ("x-dev", "a");

/// HTTP/1 with an intercept.
pub(crate) const HTTP: usize = 0;
/// HTTP/2 with an intercept, so that connections are terminated.
pub(crate) const GRPC: usize = 1;
/// HTTP/2 without one, so that frames are relayed.
pub(crate) const RELAYED: usize = 2;
/// WebSockets with an intercept.
pub(crate) const WEBSOCKET: usize = 3;

/// An agent with something of every kind behind it.
pub(crate) struct Testbed {
    pub(crate) system: System,
    _local: App,
    _intercepts: Vec<Process>,
    runtime: Runtime,
}

impl Testbed {
    /// `extra` are further top-level keys of the agent's configuration, `arrange` may change its
    /// command.
    pub(crate) fn start(extra: &str, arrange: impl FnOnce(&mut Command)) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let grpc = ["app", "local"].map(|name| servers::grpc(&runtime, name));
        let websocket = ["app", "local"].map(|name| servers::websocket(&runtime, name));
        let system = System::start_with(
            |sidecar| {
                sidecar.extra = extra.to_owned();
                for app in [grpc[0], servers::grpc(&runtime, "app"), websocket[0]] {
                    sidecar.ports.push(Port::tcp(app.port(), ports::free()));
                }
            },
            arrange,
        );
        let local = App::start("local");
        let container = |at: usize| system.agent.sidecar.ports[at].container;
        let begun = [
            (HTTP, "http", local.address()),
            (GRPC, "grpc", grpc[1]),
            (WEBSOCKET, "ws", websocket[1]),
        ]
        .map(|(at, name, local)| {
            let port = format!("{}:{}", local.port(), container(at));
            (
                name,
                system.begin_intercept(name, &port, &["--http-header=x-dev=a"]),
            )
        });
        let active = |(name, process): (&str, Process)| {
            process.line("state=ACTIVE");
            process.line("direct=connected");
            system.agent.serves(name);
            process
        };
        let intercepts = begun.map(active).into();
        Self {
            system,
            _local: local,
            _intercepts: intercepts,
            runtime,
        }
    }

    /// Returns the address of a port for callers.
    pub(crate) fn address(&self, at: usize) -> SocketAddr {
        SocketAddr::from((
            Ipv4Addr::LOCALHOST,
            self.system.agent.sidecar.ports[at].agent,
        ))
    }

    /// Runs a caller of one's own.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Begins something on a port that never ends, and returns when it has begun.
    pub(crate) fn hold(&self, at: usize, dev: bool) -> Endless {
        match at {
            HTTP => endless::http1(self.address(at), dev),
            WEBSOCKET => self
                .runtime
                .block_on(endless::websocket(self.address(at), dev)),
            _ => self.runtime.block_on(endless::grpc(self.address(at), dev)),
        }
    }

    /// Sends the callers in.
    pub(crate) fn start_load(self: &Arc<Self>) -> MixedLoad {
        let state = Arc::new(State::default());
        let mut callers = Vec::new();
        let mut call = |kind: Kind, dev: bool| {
            let (testbed, state) = (Arc::clone(self), Arc::clone(&state));
            callers.push(std::thread::spawn(move || {
                let caller = Call {
                    testbed: &testbed,
                    state: &state,
                    kind,
                    dev,
                };
                let ended = match kind {
                    Kind::Http1 => http1::call(&caller),
                    Kind::Http2 => testbed.runtime.block_on(http2::call(&caller, GRPC)),
                    Kind::Http2Relayed => testbed.runtime.block_on(http2::call(&caller, RELAYED)),
                    Kind::Unary => testbed.runtime.block_on(grpc::unary(&caller)),
                    Kind::Streaming => testbed.runtime.block_on(grpc::streaming(&caller)),
                    Kind::WebSocket => testbed.runtime.block_on(websocket::call(&caller)),
                };
                if let Err(problem) = ended {
                    state
                        .failures
                        .lock()
                        .unwrap()
                        .push(format!("{kind:?}, dev {dev}: {problem}"));
                }
            }));
        };
        for kind in Kind::ALL {
            for dev in [true, false] {
                if !(dev && kind == Kind::Http2Relayed) {
                    call(kind, dev);
                    call(kind, dev);
                }
            }
        }
        MixedLoad { state, callers }
    }
}

/// Kind of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Http1,
    Http2,
    Http2Relayed,
    Unary,
    Streaming,
    WebSocket,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] = [
        Self::Http1,
        Self::Http2,
        Self::Http2Relayed,
        Self::Unary,
        Self::Streaming,
        Self::WebSocket,
    ];
}

#[derive(Debug, Default)]
struct State {
    /// Answers, or messages, by kind.
    answered: [AtomicU64; 6],
    /// Requests repeated because the server had reported them as not processed.
    repeated: AtomicU64,
    failures: Mutex<Vec<String>>,
    /// The agent has been told to leave: an intercept may have ended.
    leaving: AtomicBool,
    /// Log line of the agent when it stops accepting.
    closing_line: Mutex<&'static str>,
    /// Callers end at the next pause.
    stop: AtomicBool,
}

/// State of one caller.
struct Call<'t> {
    testbed: &'t Testbed,
    state: &'t State,
    kind: Kind,
    dev: bool,
}

/// Reason a request was not answered.
#[derive(Debug)]
enum Unanswered {
    /// Not processed: it may be repeated on another connection.
    Repeat,
    /// Failed.
    Failed(String),
}

impl Call<'_> {
    /// Returns true if the caller is to stop at this pause.
    fn should_stop(&self) -> bool {
        self.state.stop.load(Ordering::Relaxed)
    }

    /// Counts an answer, after a look at who gave it.
    fn answered(&self, by: &str) -> Result<(), String> {
        let expected = if self.dev { "local" } else { "app" };
        let leaving = self.state.leaving.load(Ordering::SeqCst);
        if by != expected && !(leaving && by == "app") {
            return Err(format!("answered by {by:?}"));
        }
        self.state.answered[self.kind as usize].fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn repeated(&self) {
        self.state.repeated.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection could not be had: that is the end when the agent accepts no more, and a failure
    /// before.
    fn gone(&self, error: &dyn std::fmt::Display) -> Result<(), String> {
        if !self.state.leaving.load(Ordering::SeqCst) {
            return Err(format!("no connection: {error}"));
        }
        // What it logs may arrive here a moment later than what it does.
        let closing_line = *self.state.closing_line.lock().unwrap();
        self.testbed.system.agent.process.line(closing_line);
        Ok(())
    }
}

/// The callers at work.
pub(crate) struct MixedLoad {
    state: Arc<State>,
    callers: Vec<JoinHandle<()>>,
}

impl MixedLoad {
    /// Waits until every kind of them has had `more` more answers.
    pub(crate) fn busy(&self, more: u64) {
        let before = self.answered();
        until("answers of every kind", || {
            assert!(self.failures().is_empty(), "{:#?}", self.failures());
            self.answered()
                .iter()
                .zip(&before)
                .all(|(now, before)| now - before >= more)
                .then_some(())
        });
    }

    /// The agent is about to be told something after which it ends accepting, and says so with this
    /// line.
    pub(crate) fn expect_closing(&self, closing_line: &'static str) {
        *self.state.closing_line.lock().unwrap() = closing_line;
        self.state.leaving.store(true, Ordering::SeqCst);
    }

    /// Answers so far, by kind.
    pub(crate) fn answered(&self) -> [u64; 6] {
        std::array::from_fn(|at| self.state.answered[at].load(Ordering::Relaxed))
    }

    /// Returns the failures so far.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.state.failures.lock().unwrap().clone()
    }

    /// Stops all callers at their next pause; returns the numbers of responses and of repetitions.
    pub(crate) fn stop(mut self) -> ([u64; 6], u64) {
        self.state.stop.store(true, Ordering::Relaxed);
        for caller in std::mem::take(&mut self.callers) {
            caller.join().unwrap();
        }
        assert!(self.failures().is_empty(), "{:#?}", self.failures());
        (self.answered(), self.state.repeated.load(Ordering::Relaxed))
    }
}

impl Drop for MixedLoad {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
    }
}
