//! Shutdown of the agent: not ready, departed from the manager and still accepting for the
//! lame-duck time; then no longer accepting while open connections end; then cut.
//!
//! The redirect to the agent outlives the agent's listener, so closing early would refuse callers
//! that have not yet learned that the pod terminates. Only if the app itself no longer listens (a
//! native sidecar is stopped after the app) the lame-duck time is skipped.

use std::fs;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{FutureExt as _, Shared};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::admin::AdminCommands;
use crate::drain::Drain;
use crate::ready::Ready;

/// Interval of checking that the app still listens.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Time for cut connections to be dropped and counted.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// State and limits of the shutdown.
#[derive(Debug)]
pub struct Shutdown {
    /// Drain phases of the data path.
    pub drain: Drain,
    /// Readiness.
    pub ready: Ready,
    /// Commands from the admin.
    pub commands: Arc<AdminCommands>,
    /// Time in which connections are still accepted.
    pub lame_duck: Duration,
    /// Time for open connections to end afterwards.
    pub grace: Duration,
    /// Ports of which at least one is listened on while the app runs; empty if that is unknown.
    pub app_ports: Vec<u16>,
}

/// Stream of SIGTERM and SIGINT.
pub fn signals() -> impl Stream<Item = ()> {
    let listen = |kind| {
        let signal = signal(kind)
            .inspect_err(|error| tracing::error!(%error, "a signal handler cannot be installed"))
            .ok();
        stream::iter(signal).flat_map(|signal| {
            Box::pin(stream::unfold(signal, |mut signal| async {
                signal.recv().await?;
                Some(((), signal))
            }))
        })
    };
    stream::select(
        listen(SignalKind::terminate()),
        listen(SignalKind::interrupt()),
    )
}

/// Result of the shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownReport {
    /// Connections that had to be cut.
    pub cut: usize,
    /// A second signal came.
    pub forced: bool,
}

impl ShutdownReport {
    /// Returns the exit code: 0 for an orderly end, 1 if something was cut or a second signal came.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        u8::from(self.cut > 0 || self.forced)
    }
}

type Departure<'d> = Shared<Pin<Box<dyn Future<Output = ()> + Send + 'd>>>;

impl Shutdown {
    /// Waits for the first signal or the quit command, then shuts down; another signal cuts the
    /// rest. `depart` is polled from then on: it sends all traffic to the app, lets open tunnels
    /// finish and ends the session with the manager, beside the phases.
    pub async fn run<'d>(
        &self,
        signals: impl Stream<Item = ()>,
        depart: impl Future<Output = ()> + Send + 'd,
    ) -> ShutdownReport {
        let mut signals = pin!(signals.fuse());
        self.handle_commands(&mut signals).await;
        self.ready.fail(true);
        tracing::info!(lame_duck = ?self.lame_duck, grace = ?self.grace, "shutdown: not ready");
        let departure: Pin<Box<dyn Future<Output = ()> + Send + 'd>> = Box::pin(depart);
        let departure = departure.shared();
        let again = async {
            // Without working signal handlers no second signal can come.
            if signals.next().await.is_none() {
                std::future::pending::<()>().await;
            }
        };
        let forced = tokio::select! {
            // A second signal takes precedence over a phase that ends at the same time.
            biased;
            () = again => true,
            () = self.phases(&departure) => false,
        };
        self.drain.start();
        let cut = self.drain.kill();
        if cut > 0 {
            tracing::warn!(connections = cut, "shutdown: connections cut");
        }
        // Dropped tasks are counted by their own guards, and the rest of departing from the manager
        // is short; a thread or a manager that hangs does not keep the process.
        let _ = timeout(
            KILL_TIMEOUT,
            futures_util::future::join(self.drain.finished(), departure),
        )
        .await;
        tracing::info!(cut, forced, "left");
        ShutdownReport { cut, forced }
    }

    /// Handles admin commands until the shutdown begins.
    async fn handle_commands(&self, signals: &mut (impl Stream<Item = ()> + Unpin)) {
        let mut closing: Option<Instant> = None;
        loop {
            tokio::select! {
                Some(()) = signals.next() => return,
                () = self.commands.quit.notified() => return,
                () = self.commands.drain.notified() => {
                    if self.commands.graceful.load(Ordering::Relaxed) {
                        tracing::info!(lame_duck = ?self.lame_duck, "draining listeners");
                        self.ready.fail(true);
                        closing = Some(Instant::now() + self.lame_duck);
                    } else {
                        tracing::info!("listeners closed");
                        // Like Envoy's drain without `graceful`: the process stays and open
                        // connections continue.
                        self.drain.close();
                    }
                }
                () = sleep_until(closing.unwrap_or_else(Instant::now)), if closing.is_some() => {
                    closing = None;
                    self.drain.start();
                }
            }
        }
    }

    async fn phases(&self, departure: &Departure<'_>) {
        // A finished departure stays ready when polled, but must not end a phase.
        let beside = || async {
            departure.clone().await;
            std::future::pending::<()>().await;
        };
        // A drained listener has had its lame-duck time.
        if !self.drain.is_draining() {
            tokio::select! {
                () = beside() => {}
                () = sleep(self.lame_duck) => {}
                () = self.app_gone() => tracing::info!("shutdown: the app no longer listens"),
            }
        }
        self.drain.start();
        tracing::info!(open = self.drain.open(), "shutdown: no longer accepting");
        tokio::select! {
            () = beside() => {}
            () = self.drain.finished() => {}
            () = sleep(self.grace) => {}
        }
    }

    /// Resolves when no app port is listened on.
    async fn app_gone(&self) {
        if self.app_ports.is_empty() {
            std::future::pending::<()>().await;
        }
        // Polled, because the kernel reports no event for another process's listener.
        while listened_on(&self.app_ports) {
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// Returns true if a TCP socket of this network namespace listens on one of `ports`, or if that
/// cannot be read.
fn listened_on(ports: &[u16]) -> bool {
    let Ok(v4) = fs::read_to_string("/proc/net/tcp") else {
        return true;
    };
    // Absent where the kernel has no IPv6.
    let v6 = fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
    listening(&v4)
        .chain(listening(&v6))
        .any(|port| ports.contains(&port))
}

/// Returns the ports of listening sockets in the kernel's table (proc(5), `/proc/net/tcp`): state
/// `0A`.
fn listening(table: &str) -> impl Iterator<Item = u16> + '_ {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        // Columns: slot, local address, remote address, state.
        let (local, state) = (fields.next()?, fields.nth(1)?);
        let port = local.rsplit_once(':')?.1;
        (state == "0A")
            .then(|| u16::from_str_radix(port, 16).ok())
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    const LAME_DUCK_PERIOD: Duration = Duration::from_secs(5);
    const GRACE: Duration = Duration::from_secs(20);

    struct Stage {
        leaving: Shutdown,
        signal: mpsc::Sender<()>,
        signals: Option<ReceiverStream<()>>,
        departed: Arc<AtomicBool>,
    }

    fn stage() -> Stage {
        let (signal, signals) = mpsc::channel(4);
        let leaving = Shutdown {
            drain: Drain::default(),
            ready: Ready::default(),
            commands: Arc::default(),
            lame_duck: LAME_DUCK_PERIOD,
            grace: GRACE,
            app_ports: Vec::new(),
        };
        Stage {
            leaving,
            signal,
            signals: Some(ReceiverStream::new(signals)),
            departed: Arc::default(),
        }
    }

    impl Stage {
        async fn leave(&mut self) -> (ShutdownReport, Duration) {
            let started = Instant::now();
            let signals = self.signals.take().unwrap();
            let departed = self.departed.clone();
            let left = self
                .leaving
                .run(
                    signals,
                    async move { departed.store(true, Ordering::SeqCst) },
                )
                .await;
            (left, started.elapsed())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_accepts_unready_for_the_lame_duck_time_and_leaves_when_nothing_is_open() {
        let mut s = stage();
        let (drain, ready) = (s.leaving.drain.clone(), s.leaving.ready.clone());
        let watch = tokio::spawn(async move {
            sleep(LAME_DUCK_PERIOD - Duration::from_millis(1)).await;
            (ready.is_ready(), drain.is_closed())
        });
        s.signal.send(()).await.unwrap();
        let (left, took) = s.leave().await;
        assert_eq!(
            (left, left.exit_code()),
            (
                ShutdownReport {
                    cut: 0,
                    forced: false
                },
                0
            )
        );
        assert!(
            took >= LAME_DUCK_PERIOD && took < LAME_DUCK_PERIOD + Duration::from_millis(50),
            "{took:?}"
        );
        assert_eq!(watch.await.unwrap(), (false, false));
        assert!(s.departed.load(Ordering::SeqCst));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_open_may_finish_and_what_is_stuck_is_cut_and_counted() {
        let mut s = stage();
        s.leaving
            .drain
            .carry(sleep(LAME_DUCK_PERIOD + Duration::from_secs(7)));
        s.signal.send(()).await.unwrap();
        let (left, took) = s.leave().await;
        assert_eq!((left.cut, left.exit_code()), (0, 0));
        assert!(
            took >= LAME_DUCK_PERIOD + Duration::from_secs(7)
                && took < LAME_DUCK_PERIOD + Duration::from_secs(8),
            "{took:?}"
        );

        let mut s = stage();
        s.leaving.drain.carry(std::future::pending());
        s.signal.send(()).await.unwrap();
        let (left, took) = s.leave().await;
        assert_eq!((left.cut, left.exit_code()), (1, 1));
        assert!(
            took >= LAME_DUCK_PERIOD + GRACE
                && took < LAME_DUCK_PERIOD + GRACE + Duration::from_secs(1),
            "{took:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_skips_to_the_end() {
        let mut s = stage();
        s.signal.send(()).await.unwrap();
        let again = s.signal.clone();
        tokio::spawn(async move {
            sleep(Duration::from_secs(1)).await;
            again.send(()).await.unwrap();
        });
        let (left, took) = s.leave().await;
        assert_eq!((left.forced, left.exit_code()), (true, 1));
        assert!(took < Duration::from_secs(2), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn orders_of_the_admin_close_drain_and_quit() {
        let mut s = stage();
        let (commands, drain) = (s.leaving.commands.clone(), s.leaving.drain.clone());
        let operator = tokio::spawn(async move {
            commands.drain.notify_one();
            sleep(Duration::from_secs(1)).await;
            let closed = (drain.is_closed(), drain.is_draining());
            commands.graceful.store(true, Ordering::Relaxed);
            commands.drain.notify_one();
            sleep(LAME_DUCK_PERIOD + Duration::from_secs(1)).await;
            let drained = drain.is_draining();
            commands.quit.notify_one();
            (closed, drained)
        });
        let (left, took) = s.leave().await;
        assert_eq!(operator.await.unwrap(), ((true, false), true));
        assert_eq!(left.exit_code(), 0);
        assert!(
            took < LAME_DUCK_PERIOD + Duration::from_secs(3),
            "no second lame-duck time: {took:?}"
        );
    }

    #[tokio::test]
    async fn an_app_that_is_gone_needs_no_lame_duck() {
        let port = harness::ports::free();
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        assert!(listened_on(&[port]));
        drop(listener);
        let mut s = stage();
        s.leaving.app_ports = vec![port];
        s.signal.send(()).await.unwrap();
        let (left, took) = s.leave().await;
        assert_eq!(left.exit_code(), 0);
        assert!(took < LAME_DUCK_PERIOD, "{took:?}");
    }
}
