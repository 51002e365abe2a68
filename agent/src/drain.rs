//! Shutdown phases of the data path: stop, grace, kill. Connection tasks are spawned only here, so
//! that every task is known and counted at the end.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Poll, Waker};

use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;

/// Shared handle on the drain phases; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    closed: CancellationToken,
    draining: CancellationToken,
    tasks: TaskTracker,
    phase: Arc<Phase>,
}

/// Phase flags that can be read without the tokens' locks; connections check them at every pause.
#[derive(Debug, Default)]
struct Phase {
    draining: AtomicBool,
    killed: AtomicBool,
    /// Copy of the kill token: cloning it takes a lock, and every connection needs it.
    kill: CancellationToken,
    /// Connections currently carried.
    open: AtomicUsize,
}

/// Counts a connection as carried until dropped.
#[derive(Debug)]
struct OpenTasks(Arc<Phase>);

impl OpenTasks {
    fn of(phase: &Arc<Phase>) -> Self {
        phase.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(phase))
    }
}

impl Drop for OpenTasks {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drain {
    /// Returns true once draining began: new work is declined and connections end at their next
    /// pause (HTTP/1 after the response in flight, HTTP/2 by GOAWAY).
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.phase.draining.load(Ordering::Acquire)
    }

    /// Resolves when draining begins.
    pub fn draining(&self) -> WaitForCancellationFuture<'_> {
        self.draining.cancelled()
    }

    /// Resolves when accepting stops, at the latest when draining begins.
    pub fn closed(&self) -> WaitForCancellationFuture<'_> {
        self.closed.cancelled()
    }

    /// Returns true once new connections are no longer accepted.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Stops accepting; open connections continue.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Starts the draining phase.
    pub fn start(&self) {
        self.closed.cancel();
        // Set before the token is cancelled: a woken task must see it.
        self.phase.draining.store(true, Ordering::Release);
        self.draining.cancel();
        self.tasks.close();
    }

    /// Spawns the task of a connection; only these are counted when they are killed.
    pub fn carry<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let open = OpenTasks::of(&self.phase);
        self.tasks.spawn(self.task(Box::pin(task), Some(open)));
    }

    /// Spawns a task on the current runtime; it is aborted when the grace is over.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(self.task(Box::pin(task), None));
    }

    /// Spawns a task on another runtime.
    pub fn spawn_on<F>(&self, runtime: &Handle, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = self.task(Box::pin(task), None);
        self.tasks.spawn_on(task, runtime);
    }

    /// What is spawned for a boxed task. The box is needed because an async block reserves room for its captures
    /// beside its locals, which would double the memory of every idle connection.
    fn task<F>(
        &self,
        mut task: Pin<Box<F>>,
        open: Option<OpenTasks>,
    ) -> impl Future<Output = ()> + Send + use<F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let phase = Arc::clone(&self.phase);
        async move {
            // Dropped with the task, also when it is aborted or panics.
            let _open = open;
            let mut end = pin!(phase.kill.cancelled());
            // Waiting for the kill takes locks that all tasks share, so the waker is registered
            // once and not at every wake-up.
            let mut asked: Option<Waker> = None;
            poll_fn(|cx| {
                if phase.killed.load(Ordering::Acquire) || task.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                if asked
                    .as_ref()
                    .is_some_and(|waker| waker.will_wake(cx.waker()))
                {
                    return Poll::Pending;
                }
                asked = Some(cx.waker().clone());
                end.as_mut().poll(cx)
            })
            .await;
        }
    }

    /// Number of connections carried.
    #[must_use]
    pub fn open(&self) -> usize {
        self.phase.open.load(Ordering::Relaxed)
    }

    /// Resolves when no task is alive; meaningful only once draining.
    pub async fn finished(&self) {
        self.tasks.wait().await;
    }

    /// Aborts every task that is still alive and returns the number of connections cut.
    pub fn kill(&self) -> usize {
        // Counted before the kill, which drops the tasks.
        let cut = self.open();
        self.phase.killed.store(true, Ordering::Release);
        self.phase.kill.cancel();
        cut
    }
}

/// Spawns short cleanup work that outlives its connection. It must bound itself to seconds; the
/// drain does not wait for it. Does nothing outside of a runtime.
#[expect(
    clippy::disallowed_methods,
    reason = "the one way to spawn what nobody waits for"
)]
pub fn afterwards<F>(task: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stuck_task_is_counted_and_ended() {
        let drain = Drain::default();
        drain.carry(std::future::pending());
        drain.carry(async {});
        // Tasks that only serve connections are aborted as well, but not counted.
        drain.spawn(std::future::pending());
        drain.start();
        tokio::task::yield_now().await;
        assert_eq!(drain.kill(), 1);
        drain.finished().await;
    }
}
