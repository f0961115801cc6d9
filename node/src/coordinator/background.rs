//! Tasks that outlive their request: a write that goes on to the remaining primaries, a read that hears the late answers.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_wire::buggify;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::supervise;

/// The tasks, and the bound on how many may go on after their reply.
#[derive(Debug)]
pub(super) struct Background {
    /// Nothing once it is shut down.
    tasks: Mutex<Option<JoinSet<()>>>,
    permits: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

impl Background {
    pub(super) fn new() -> Self {
        let most = buggify!("coordinator: few requests go on after their reply", AFTER_REPLY_MAX, 1);
        Self {
            tasks: Mutex::new(Some(JoinSet::new())),
            permits: Arc::new(Semaphore::new(most)),
            places: Arc::new(Semaphore::new(WRITES_MAX)),
        }
    }

    /// Starts a task. Returns false, and drops it unpolled, after a shutdown.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> bool {
        let mut guard = self.tasks.lock().expect("nothing panics while it holds the task set");
        let Some(tasks) = guard.as_mut() else { return false };
        // Those that have ended are let go here, so that the set holds little more than what is running.
        while let Some(ended) = tasks.try_join_next() {
            report(ended);
        }
        tasks.spawn(supervise::watched("the rest of a request", task));
        true
    }

    /// The place of a write, from before its mint to its end; none if too many are under way.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().ok()
    }

    /// The leave to go on after the reply, if there are not too many doing so.
    pub(super) fn try_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }

    /// The same, once others have ended.
    pub(super) async fn permit(&self) -> OwnedSemaphorePermit {
        self.permits.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Starts no more tasks, waits for the running ones so long, then ends them where they stand.
    pub(super) async fn shutdown(&self, grace: Duration) {
        let taken = self.tasks.lock().expect("nothing panics while it holds the task set").take();
        let Some(mut tasks) = taken else { return };
        let ended = async {
            while let Some(ended) = tasks.join_next().await {
                report(ended);
            }
        };
        if tokio::time::timeout(grace, ended).await.is_err() {
            tracing::warn!(running = tasks.len(), "requests are cut off by the shutdown");
            tasks.shutdown().await;
        }
    }
}

/// Writes that go on after their reply. At 10,000 writes a second and the 50 ms of a slow peer 500 are on their way; eight
/// times that is a peer that hangs and has not been noticed, and then new writes have to feel it. Each holds its record,
/// a kilobyte or so.
const AFTER_REPLY_MAX: usize = 4096;

/// Writes under way, replied to or not. A write is never cut off between its mint and its replication, not even when its client has
/// gone, so that a disk that hangs would gather them without end. It is as many as can go on after their reply, and three times
/// as many that wait for theirs. What large ones take is bounded by [`crate::request_memory`].
const WRITES_MAX: usize = 4 * AFTER_REPLY_MAX;

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a request's task panicked");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_waits_for_its_grace_then_ends_what_is_left_and_takes_nothing_more() {
        let background = Background::new();
        let done = Arc::new(AtomicU32::new(0));
        for seconds in [1, 3] {
            let done = done.clone();
            assert!(background.spawn(async move {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                done.fetch_add(1, Ordering::Relaxed);
            }));
        }
        background.shutdown(Duration::from_secs(2)).await;
        assert_eq!((done.load(Ordering::Relaxed), Arc::strong_count(&done)), (1, 1), "the second was dropped");
        assert!(!background.spawn(async {}));
        background.shutdown(Duration::ZERO).await;
    }

    #[test]
    fn places_are_counted_and_come_back() {
        let background = Background::new();
        let all: Vec<_> = (0..WRITES_MAX).map(|_| background.place().expect("a place")).collect();
        assert!(background.place().is_none());
        drop(all);
        assert!(background.place().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_set_holds_no_tasks_that_have_ended() {
        let background = Background::new();
        for _ in 0..100 {
            assert!(background.spawn(async {}));
            tokio::task::yield_now().await;
        }
        let held = background.tasks.lock().expect("no panic").as_ref().expect("running").len();
        assert!(held <= 2, "{held} tasks");
    }
}
