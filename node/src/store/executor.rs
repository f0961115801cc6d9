//! Where blocking storage calls run: on threads of their own, or on the caller's task in a simulation.
//!
//! To hand a job over to a thread and to be woken again takes longer than reading and inserting one record, which almost always
//! ends in memory. So [short](Executor::run_short) jobs run on the caller's task as well, as long as the store is not slow. Half of the
//! runtime's threads may be in such jobs at a time, so that a store that hangs leaves the other half to say so; of one thread it takes
//! that one, as a read of a single key does.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use crate::supervise;

/// Where blocking calls run.
#[derive(Debug, Clone)]
pub enum Executor {
    /// On the caller's task (simulation).
    Inline,
    /// On a task of its own, after as long as this says: a simulation's slow disk.
    Slow(Latency),
    /// On threads of its own.
    Threads(Threads),
}

impl Executor {
    /// Starts `count` threads (at least one) for storage. They end when the last clone is dropped, after the jobs that were
    /// accepted.
    ///
    /// # Panics
    /// When the system refuses to start a thread.
    pub fn threads(count: usize) -> Self {
        Self::named("store", count)
    }

    /// The same, for another purpose.
    ///
    /// # Panics
    /// When the system refuses to start a thread.
    pub fn named(purpose: &str, count: usize) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue { jobs: VecDeque::new(), closed: false }),
            filled: Condvar::new(),
            places: Arc::new(Semaphore::new(QUEUE_MAX)),
            pace: Pace::new(),
        });
        let workers = (0..count.max(1))
            .map(|number| {
                let shared = Arc::clone(&shared);
                thread::Builder::new()
                    .name(format!("quorate-{purpose}-{number}"))
                    .spawn(move || shared.work())
                    .expect("the system lets the process start its threads")
            })
            .collect();
        Self::Threads(Threads { pool: Arc::new(Pool { shared, workers: Mutex::new(workers) }) })
    }

    /// Runs a job of one key: a few reads and writes of small values. It runs on the caller's task as long as the store is quick, and
    /// else as [`run`](Self::run) does it.
    pub async fn run_short<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        if let Self::Threads(threads) = self
            && let Some(_timed) = threads.pool.shared.pace.quick()
        {
            return job();
        }
        self.run(job).await
    }

    /// Runs a blocking job and returns its result. Waits while the queue is full. A panic in the job resurfaces here.
    ///
    /// A job that has been accepted runs to its end also when the returned future is dropped: a write whose caller has gone
    /// may have been applied.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let threads = match self {
            Self::Inline => return job(),
            Self::Slow(latency) => return latency.run(job).await,
            Self::Threads(threads) => threads,
        };
        let shared = &threads.pool.shared;
        let place =
            Arc::clone(&shared.places).acquire_owned().await.expect("the semaphore of the queue is never closed");
        let (reply, result) = oneshot::channel();
        shared.push(Box::new(move || {
            // The place is one in the queue, not one at a thread, so it is free as soon as the job has left the queue.
            drop(place);
            // A caller that has gone does not want the result; but a panic that it will not see must not go unseen.
            if let Err(Err(panic)) = reply.send(catch_unwind(AssertUnwindSafe(job))) {
                supervise::report("a storage thread", &*panic);
            }
        }));
        match result.await.expect("a job that was accepted is run, and replies") {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// How long each call takes, asked anew for each.
#[derive(Clone)]
pub struct Latency(pub Arc<dyn Fn() -> Duration + Send + Sync>);

impl Latency {
    async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let latency = (self.0)();
        if latency.is_zero() {
            return job();
        }
        let task = supervise::spawn("a slow disk's call", async move {
            tokio::time::sleep(latency).await;
            job()
        });
        match task.await {
            Ok(value) => value,
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            // The runtime ends, and this future with it.
            Err(_) => std::future::pending().await,
        }
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Latency")
    }
}

/// A pool of storage threads.
#[derive(Clone)]
pub struct Threads {
    pool: Arc<Pool>,
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Threads")
    }
}

struct Pool {
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.filled.notify_all();
        let workers = self.workers.get_mut().unwrap_or_else(PoisonError::into_inner);
        for worker in workers.drain(..) {
            // A job may hold the last clone of its own executor; a thread cannot wait for its own end.
            if worker.thread().id() != thread::current().id() {
                // Jobs' panics are caught, so a thread ends in order.
                let _ = worker.join();
            }
        }
    }
}

struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    places: Arc<Semaphore>,
    pace: Pace,
}

/// Whether the store is quick. Whoever waits for it on a task of the runtime holds up a thread that everything else of the node runs on
/// as well, so that after a slow job others go to the storage threads, for a time that makes up for it.
struct Pace {
    started: Instant,
    /// Until when the store counts as slow, in microseconds since `started`.
    slow_until_us: AtomicU64,
    /// Jobs that run on their callers' tasks, and how many may, once that is known.
    here: AtomicUsize,
    here_max: OnceLock<usize>,
}

impl Pace {
    fn new() -> Self {
        let (slow_until_us, here) = (AtomicU64::new(0), AtomicUsize::new(0));
        Self { started: Instant::now(), slow_until_us, here, here_max: OnceLock::new() }
    }

    /// Half of the threads of the runtime that this is called in, at least one.
    fn here_max(&self) -> usize {
        *self.here_max.get_or_init(|| (Handle::current().metrics().num_workers() / 2).max(1))
    }

    /// To be held while a job runs on its caller's task; nothing if it must not.
    fn quick(&self) -> Option<Timed<'_>> {
        let begun_us = self.now_us();
        if begun_us < self.slow_until_us.load(Ordering::Relaxed) {
            return None;
        }
        let room = |here| (here < self.here_max()).then_some(here + 1);
        self.here.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok()?;
        Some(Timed { pace: self, begun_us })
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

struct Timed<'a> {
    pace: &'a Pace,
    begun_us: u64,
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.pace.here.fetch_sub(1, Ordering::Relaxed);
        let now_us = self.pace.now_us();
        let took_us = now_us.saturating_sub(self.begun_us);
        if took_us >= SLOW_US {
            let until_us = now_us.saturating_add(took_us.saturating_mul(SLOW_FOR));
            self.pace.slow_until_us.fetch_max(until_us, Ordering::Relaxed);
        }
    }
}

struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

type Job = Box<dyn FnOnce() + Send>;

impl Shared {
    fn push(&self, job: Job) {
        self.lock().jobs.push_back(job);
        self.filled.notify_one();
    }

    fn work(&self) {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job();
                queue = self.lock();
            } else if queue.closed {
                return;
            } else {
                queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // No code that can panic runs under the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Jobs that wait for a thread. At 20 us an insert this is 20 ms of work for one thread: enough to ride out a stall of the
/// engine, and small enough that a request which waits here still meets its deadline. Beyond it callers wait in order.
const QUEUE_MAX: usize = 1024;

/// A job that takes longer has waited for the disk, or for another job that does: an insert takes 20 us. A busy machine may take the
/// thread away for some milliseconds.
const SLOW_US: u64 = 10_000;
/// So many times as long as it took, the storage threads take all jobs: a store that is slow all the time holds up the node for a
/// hundredth of its time.
const SLOW_FOR: u64 = 100;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn jobs_run_on_named_threads_and_inline_ones_on_the_caller() {
        let name = || thread::current().name().map(str::to_owned);
        let here = name();
        assert_eq!(Executor::Inline.run(name).await, here);
        let elsewhere = Executor::threads(2).run(name).await.expect("a name");
        assert!(elsewhere.starts_with("quorate-store-"), "{elsewhere}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 6)]
    async fn a_store_that_hangs_takes_no_more_than_half_of_the_runtimes_threads() {
        let executor = Executor::threads(1);
        let Executor::Threads(threads) = &executor else { unreachable!("made with threads") };
        let pace = &threads.pool.shared.pace;
        let name = || thread::current().name().unwrap_or_default().to_owned();
        let hang: Vec<_> = (0..3).map(|_| pace.quick().expect("there is room")).collect();
        assert!(executor.run_short(name).await.starts_with("quorate-"), "the other half is for the rest of the node");
        drop(hang);
        assert!(!executor.run_short(name).await.starts_with("quorate-"));
    }

    #[tokio::test(start_paused = true)]
    async fn short_jobs_run_on_the_caller_until_one_of_them_shows_that_the_store_is_slow() {
        let executor = Executor::threads(1);
        let Executor::Threads(threads) = &executor else { unreachable!("made with threads") };
        let pace = &threads.pool.shared.pace;
        let here = || thread::current().id();
        let takes = async |us| {
            let timed = pace.quick().expect("the store is quick");
            tokio::time::advance(Duration::from_micros(us)).await;
            drop(timed);
        };
        assert_eq!(executor.run_short(here).await, here());
        takes(SLOW_US - 1).await;
        assert_eq!(executor.run_short(here).await, here(), "that was quick enough");
        takes(2 * SLOW_US).await;
        assert_ne!(executor.run_short(here).await, here(), "that was slow");
        tokio::time::advance(Duration::from_micros(2 * SLOW_US * SLOW_FOR - 1)).await;
        assert_ne!(executor.run_short(here).await, here());
        tokio::time::advance(Duration::from_micros(1)).await;
        assert_eq!(executor.run_short(here).await, here(), "it is tried again");
        let panicked = tokio::spawn(async move { executor.run_short(|| panic!("on purpose")).await }).await;
        assert!(panicked.expect_err("the job panicked").is_panic());
    }

    #[tokio::test(start_paused = true)]
    async fn slow_jobs_take_their_time_and_outlive_their_callers() {
        let slow = Executor::Slow(Latency(Arc::new(|| Duration::from_secs(3))));
        let begun = tokio::time::Instant::now();
        assert_eq!(slow.run(|| 7).await, 7);
        assert_eq!(begun.elapsed(), Duration::from_secs(3));
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = runs.clone();
        let job = slow.run(move || counted.fetch_add(1, Ordering::SeqCst));
        tokio::time::timeout(Duration::from_secs(1), job).await.expect_err("it takes longer");
        assert_eq!(runs.load(Ordering::SeqCst), 0);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_panic_in_a_job_resurfaces_at_its_caller_and_spares_the_threads() {
        let executor = Executor::threads(1);
        let caller = executor.clone();
        let panicked = tokio::spawn(async move { caller.run(|| panic!("on purpose")).await }).await;
        let panic = panicked.expect_err("the job panicked").into_panic();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
        assert_eq!(executor.run(|| 7).await, 7);
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_callers_wait() {
        let executor = Executor::threads(1);
        let (open, gate) = mpsc::sync_channel::<()>(1);
        let blocked = executor.clone();
        let blocked = tokio::spawn(async move { blocked.run(move || gate.recv().is_ok()).await });
        let done = Arc::new(AtomicUsize::new(0));
        let jobs: Vec<_> = (0..QUEUE_MAX + 10)
            .map(|_| {
                let (executor, done) = (executor.clone(), Arc::clone(&done));
                tokio::spawn(async move { executor.run(move || done.fetch_add(1, Ordering::SeqCst)).await })
            })
            .collect();
        let Executor::Threads(threads) = &executor else { unreachable!("made with threads") };
        while threads.pool.shared.places.available_permits() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(threads.pool.shared.lock().jobs.len() <= QUEUE_MAX);
        assert_eq!(done.load(Ordering::SeqCst), 0);
        open.send(()).expect("the job waits");
        assert!(blocked.await.expect("no panic"));
        for job in jobs {
            job.await.expect("no panic");
        }
        assert_eq!(done.load(Ordering::SeqCst), QUEUE_MAX + 10);
    }

    #[tokio::test]
    async fn dropping_the_executor_ends_its_threads_after_what_was_accepted() {
        let executor = Executor::threads(3);
        let held = Arc::new(());
        let job_holds = Arc::clone(&held);
        let mut run = Box::pin(executor.run(move || {
            thread::sleep(Duration::from_millis(30));
            drop(job_holds);
        }));
        assert!(futures_poll_once(&mut run).is_none());
        drop(run);
        let Executor::Threads(threads) = &executor else { unreachable!("made with threads") };
        let shared = Arc::downgrade(&threads.pool.shared);
        drop(executor);
        assert_eq!(Arc::strong_count(&held), 1, "the accepted job has run though its caller had gone");
        assert_eq!(shared.strong_count(), 0, "the threads have ended");
    }

    #[tokio::test]
    async fn the_last_clone_may_be_dropped_on_one_of_its_threads() {
        let executor = Executor::threads(1);
        let clone = executor.clone();
        let (open, gate) = mpsc::sync_channel::<()>(1);
        let (tell, told) = mpsc::sync_channel::<()>(1);
        let mut run = Box::pin(executor.run(move || {
            let _ = gate.recv();
            drop(clone);
            let _ = tell.send(());
        }));
        assert!(futures_poll_once(&mut run).is_none());
        drop(run);
        drop(executor);
        open.send(()).expect("the job waits");
        told.recv_timeout(Duration::from_secs(10)).expect("no deadlock");
    }

    fn futures_poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }
}
