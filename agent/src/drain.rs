//! Stop, grace, kill: the phases of leaving, and the only place that spawns connection tasks, so that at the end
//! every task is known and counted.

use std::future::Future;

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;

/// What tasks of the data path look at; clone freely.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    draining: CancellationToken,
    killed: CancellationToken,
    tasks: TaskTracker,
}

impl Drain {
    /// Whether new work is to be declined and connections are to end at the next pause (HTTP/1 after the answer in
    /// flight, HTTP/2 by GOAWAY).
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Resolves when draining begins.
    pub fn draining(&self) -> WaitForCancellationFuture<'_> {
        self.draining.cancelled()
    }

    /// Starts the draining phase.
    pub fn start(&self) {
        self.draining.cancel();
        self.tasks.close();
    }

    /// Spawns a task on the current runtime; it is dropped where it stands when the grace is over.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let killed = self.killed.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = task => {}
                () = killed.cancelled() => {}
            }
        });
    }

    /// How many tasks are alive.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.tasks.len()
    }

    /// Resolves when no task is alive; only meaningful once draining.
    pub async fn finished(&self) {
        self.tasks.wait().await;
    }

    /// Ends every task that is still alive and says how many there were.
    pub fn kill(&self) -> usize {
        let cut = self.tasks.len();
        self.killed.cancel();
        cut
    }
}

/// Spawns work that finishes something after its connection is gone, bounds itself to seconds, and is not waited for
/// at the end. Nothing happens outside of a runtime.
pub fn afterwards<F>(task: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stuck_task_is_counted_and_ended() {
        let drain = Drain::default();
        drain.spawn(std::future::pending());
        drain.spawn(async {});
        drain.start();
        tokio::task::yield_now().await;
        assert_eq!(drain.kill(), 1);
        drain.finished().await;
    }
}
