//! Group commit: the one place that turns inserts into durable inserts.
//!
//! Batching is natural. A sync starts at once when none runs and somebody waits; whoever comes while it runs shares the
//! next one. So the batch grows by itself with the load and with the disk's slowness, a lone writer never waits for company,
//! and the bounds of 256 writes or 2 ms that a group commit may wait to fill are never reached: there is nothing that waits.
//! Nor is a batch split at 256: a sync of 300 writes costs what a sync of 256 costs.
//!
//! ```text
//!   tickets   1   2 3   4 5 6
//!   syncs      [--1--][--2,3--][--4,5,6--]      a ticket is released by the first sync that began after it was taken
//! ```

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate_wire::{buggify, dawdle, sometimes};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::beacon::Beacon;
use super::{Executor, Store, StoreError};
use crate::supervise;

/// When a write is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// After a sync of its own. Survives a power cut.
    Always,
    /// After a sync that it shares with the writes beside it. Survives a power cut.
    Group,
    /// At once; a sync follows every `sync_interval`. A crash of the process loses up to that interval on this replica, and
    /// acknowledgements say that they were not synced.
    Interval,
}

/// Told once, and why, when a sync has failed: nobody knows then what the disk holds, and the node must end.
pub type SyncFailed = Arc<dyn Fn(String) + Send + Sync>;

/// Turns inserts into durable inserts. Clones share one task, which ends when the last clone and the last ticket are gone.
#[derive(Debug, Clone)]
pub struct Committer {
    handle: Arc<Handle>,
}

impl Committer {
    /// Spawns its task. `sync_interval` is used by [`Durability::Interval`] only. `fatal` is called once with the reason when a
    /// sync fails: the process must end (or, in a simulation, the node); every ticket fails from then on.
    pub fn start(
        store: Arc<dyn Store>,
        executor: Executor,
        durability: Durability,
        sync_interval: Duration,
        fatal: SyncFailed,
    ) -> Self {
        let shared = Arc::new(Shared {
            beacon: Beacon::open(&*store),
            store,
            executor,
            fatal,
            withheld: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            wanted: Notify::new(),
            progress: watch::Sender::new(Progress::default()),
        });
        let (alive, gone) = watch::channel(());
        match durability {
            // Whoever waits syncs for itself.
            Durability::Always => drop(gone),
            Durability::Group => drop(supervise::spawn("sync", sync_on_demand(Arc::clone(&shared), gone))),
            Durability::Interval => {
                let syncing = sync_by_the_clock(Arc::clone(&shared), gone, sync_interval);
                drop(supervise::spawn("sync by the clock", syncing));
            }
        }
        Self { handle: Arc::new(Handle { shared, durability, _alive: alive }) }
    }

    /// To be called right after an insert has returned: gives the ticket that this insert's acknowledgement has to wait for.
    /// It covers everything inserted before the call, by whomever.
    pub fn ticket(&self) -> Ticket {
        let number = self.handle.shared.taken.fetch_add(1, Ordering::SeqCst) + 1;
        if self.handle.durability == Durability::Group {
            self.handle.shared.wanted.notify_one();
        }
        Ticket { handle: Arc::clone(&self.handle), number: Some(number) }
    }

    /// To be called where blocking is fine, after an insert has failed: syncs, and so finds out whether the engine can go on.
    /// One that cannot is fatal. Nobody else would notice, since what was not inserted has no ticket, and the node would go
    /// on to answer each write with "outcome unknown".
    pub fn check(&self) {
        self.handle.shared.sync_here();
    }

    /// The newest beacon that is durable: a number that grows on disk with every sync, see [`crate::beacons`].
    pub fn beacon(&self) -> u64 {
        self.handle.shared.beacon.durable()
    }

    /// The next beacon is above this one.
    pub(crate) fn pass_beacon(&self, number: u64) {
        self.handle.shared.beacon.pass(number);
    }

    /// As long as it is withheld, also [`Durability::Interval`] acknowledges after a sync only: while the disk does not say yet that
    /// the last writes of a process that dies may be missing on it.
    pub fn withhold(&self, withheld: bool) {
        self.handle.shared.withheld.store(withheld, Ordering::SeqCst);
    }

    /// To be called before the store is closed, which syncs once more by itself: nothing is acknowledged from here on, and that
    /// later syncs are refused is no failure.
    pub fn stop(&self) {
        let stopped = StoreError::Io("the node is shutting down; the write may or may not be there".to_owned());
        self.handle.shared.progress.send_modify(|progress| {
            progress.failed.get_or_insert(stopped);
        });
    }

    /// Waits for a sync that begins from now on, also in `interval` mode: for what somebody else gives up because of it.
    ///
    /// # Errors
    /// As [`Ticket::durable`].
    pub async fn synced(&self) -> Result<(), StoreError> {
        match self.handle.durability {
            Durability::Interval => self.handle.shared.sync().await,
            Durability::Always | Durability::Group => self.ticket().durable().await.map(|_| ()),
        }
    }

    /// The ticket of an acknowledgement without an insert (a merge that changed nothing, an operation that was there, a
    /// monotonic read). Durable at once when nothing was written since a sync that has been completed began; else it covers
    /// what [`ticket`](Self::ticket) would.
    pub fn ticket_unchanged(&self) -> Ticket {
        let shared = &self.handle.shared;
        // The store is asked first: a sync that ends in between can only have covered more.
        match shared.store.writes() {
            Some(writes) if shared.progress.borrow().synced_writes == Some(writes.begun) => {
                Ticket { handle: Arc::clone(&self.handle), number: None }
            }
            Some(_) | None => self.ticket(),
        }
    }
}

/// A place in the queue for durability.
#[derive(Debug)]
pub struct Ticket {
    handle: Arc<Handle>,
    /// None: durable when it was taken.
    number: Option<u64>,
}

impl Ticket {
    /// Waits for a sync that began after the ticket was taken, then says `Ok(true)`. In `interval` mode it answers at once:
    /// `Ok(false)`, not synced, unless the sync has been.
    ///
    /// # Errors
    /// When a sync failed, this one or any before: the write may or may not survive, and the process is about to end.
    pub async fn durable(self) -> Result<bool, StoreError> {
        let shared = &self.handle.shared;
        let settled = |progress: &Progress| match (&progress.failed, self.number, self.handle.durability) {
            (Some(error), _, _) => Some(Err(error.clone())),
            (None, None, _) => Some(Ok(true)),
            (None, Some(_), Durability::Always) => None,
            (None, Some(number), Durability::Group | Durability::Interval) => {
                (progress.synced >= number).then_some(Ok(true))
            }
        };
        if let Some(settled) = settled(&shared.progress.borrow()) {
            return settled;
        }
        match self.handle.durability {
            Durability::Always => shared.sync().await.map(|()| true),
            Durability::Interval if shared.withheld.load(Ordering::SeqCst) => shared.sync().await.map(|()| true),
            Durability::Interval => Ok(false),
            Durability::Group if buggify!("store: a ticket syncs for itself") => shared.sync().await.map(|()| true),
            Durability::Group => {
                let mut progress = shared.progress.subscribe();
                let progress = progress
                    .wait_for(|progress| settled(progress).is_some())
                    .await
                    .expect("the ticket holds what the sender lives in");
                settled(&progress).expect("that is what was waited for")
            }
        }
    }
}

/// What committers and tickets hold, so that the task notices when all of them are gone.
struct Handle {
    shared: Arc<Shared>,
    durability: Durability,
    _alive: watch::Sender<()>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Committer").field("durability", &self.durability).finish_non_exhaustive()
    }
}

struct Shared {
    store: Arc<dyn Store>,
    beacon: Beacon,
    executor: Executor,
    fatal: SyncFailed,
    /// See [`Committer::withhold`].
    withheld: AtomicBool,
    /// Tickets given out.
    taken: AtomicU64,
    wanted: Notify,
    progress: watch::Sender<Progress>,
}

#[derive(Default)]
struct Progress {
    /// Every ticket up to this one is durable.
    synced: u64,
    /// The store's count of writes when the last completed sync began, if none was under way then.
    synced_writes: Option<u64>,
    failed: Option<StoreError>,
}

impl Shared {
    /// One sync, which releases every ticket that was taken before it began.
    async fn sync(self: &Arc<Self>) -> Result<(), StoreError> {
        self.run_syncs(Self::sync_here).await
    }

    /// Syncs until no ticket waits. The thread that has synced sees by itself whether another one was taken meanwhile, which spares two
    /// wake-ups for each sync.
    async fn sync_all(self: &Arc<Self>) -> Result<(), StoreError> {
        self.run_syncs(|shared| {
            while shared.is_owed() && shared.progress.borrow().failed.is_none() {
                shared.sync_here();
            }
        })
        .await
    }

    async fn run_syncs(self: &Arc<Self>, syncs: impl FnOnce(&Self) + Send + 'static) -> Result<(), StoreError> {
        dawdle!("store: a pause before a sync");
        let shared = Arc::clone(self);
        // The job itself notes how it ended: with `always` whoever waits for it may go away, and a failure that nobody
        // heard of would let a later sync vouch for what this one has lost.
        self.executor.run(move || syncs(&shared)).await;
        // A sync that succeeds after another has failed proves nothing: what failed may have been dropped.
        self.progress.borrow().failed.clone().map_or(Ok(()), Err)
    }

    /// Whether a ticket waits for a sync.
    fn is_owed(&self) -> bool {
        self.taken.load(Ordering::SeqCst) > self.progress.borrow().synced
    }

    fn sync_here(&self) {
        let taken = self.taken.load(Ordering::SeqCst);
        sometimes!("store: writes shared a sync", taken > self.progress.borrow().synced + 1);
        let beacon = self.unsynced().then(|| self.beacon.write_next(&*self.store).ok()).flatten();
        // After the beacon, which is a write as well, and before the sync begins.
        let writes = self.store.writes();
        let synced = catch_unwind(AssertUnwindSafe(|| self.store.sync()))
            .unwrap_or_else(|_| Err(StoreError::Io("the engine panicked while it synced".to_owned())));
        let mut reason = None;
        self.progress.send_modify(|progress| match synced {
            Ok(()) => {
                // With `always` syncs overlap, and an earlier one may end later.
                progress.synced = progress.synced.max(taken);
                if let Some(beacon) = beacon {
                    self.beacon.reached(beacon);
                }
                let quiet = writes.filter(|writes| writes.begun == writes.finished).map(|writes| writes.begun);
                progress.synced_writes = progress.synced_writes.max(quiet);
            }
            Err(error) if progress.failed.is_none() => {
                sometimes!("store: a sync failed");
                reason = Some(format!("a sync failed, so nobody knows what is on disk: {error}"));
                progress.failed = Some(error);
            }
            Err(_) => {}
        });
        if let Some(reason) = reason {
            (self.fatal)(reason);
        }
    }

    fn unsynced(&self) -> bool {
        let synced_writes = self.progress.borrow().synced_writes.unwrap_or(0);
        self.is_owed() || self.store.writes().is_some_and(|writes| synced_writes != writes.begun)
    }
}

async fn sync_on_demand(shared: Arc<Shared>, mut gone: watch::Receiver<()>) {
    loop {
        while shared.is_owed() {
            if shared.sync_all().await.is_err() {
                return;
            }
        }
        tokio::select! {
            biased;
            () = shared.wanted.notified() => {}
            _ = gone.changed() => return,
        }
    }
}

async fn sync_by_the_clock(shared: Arc<Shared>, mut gone: watch::Receiver<()>, every: Duration) {
    let every = every.max(INTERVAL_MIN);
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = gone.changed() => return,
            _ = ticks.tick() => {}
        }
        if shared.unsynced() && shared.sync().await.is_err() {
            return;
        }
    }
}

/// Syncing more often than this is `group` with extra steps; also, a tokio interval must not be 0.
const INTERVAL_MIN: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use bytes::Bytes;
    use tokio::task::JoinHandle;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::store::{MemoryStore, Stats, Tree, Writes};

    /// A store whose syncs wait until the test lets each of them end.
    #[derive(Debug)]
    struct Gated {
        memory: MemoryStore,
        began: AtomicU64,
        gate: Mutex<Receiver<Result<(), StoreError>>>,
    }

    impl Store for Gated {
        fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
            self.memory.get(tree, key)
        }
        fn insert(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
            self.memory.insert(tree, key, value)
        }
        fn remove(&self, tree: Tree, key: &[u8]) -> Result<(), StoreError> {
            self.memory.remove(tree, key)
        }
        fn scan(
            &self,
            tree: Tree,
            from: &[u8],
            to: Option<&[u8]>,
            limit: usize,
            bytes_max: usize,
        ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
            self.memory.scan(tree, from, to, limit, bytes_max)
        }
        fn keys(&self, tree: Tree, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Bytes>, StoreError> {
            self.memory.keys(tree, from, to, limit)
        }
        fn sync(&self) -> Result<(), StoreError> {
            self.began.fetch_add(1, Ordering::SeqCst);
            self.gate.lock().expect("no panic").recv().expect("the test lives")
        }
        fn writes(&self) -> Option<Writes> {
            self.memory.writes()
        }
        fn stats(&self) -> Stats {
            self.memory.stats()
        }
    }

    struct World {
        store: Arc<Gated>,
        open: SyncSender<Result<(), StoreError>>,
        committer: Committer,
        fatal: Arc<Mutex<Vec<String>>>,
    }

    fn world(durability: Durability, executor: Executor, every: Duration) -> World {
        let (open, gate) = sync_channel(100);
        let store = Arc::new(Gated { memory: MemoryStore::new(), began: AtomicU64::new(0), gate: Mutex::new(gate) });
        let fatal = Arc::new(Mutex::new(Vec::new()));
        let calls = Arc::clone(&fatal);
        let fatal_call = Arc::new(move |reason| calls.lock().expect("no panic").push(reason));
        let committer = Committer::start(Arc::<Gated>::clone(&store), executor, durability, every, fatal_call);
        World { store, open, committer, fatal }
    }

    impl World {
        fn insert(&self) -> JoinHandle<Result<bool, StoreError>> {
            self.store.insert(Tree::Data, b"k", b"v").expect("memory takes everything");
            tokio::spawn(self.committer.ticket().durable())
        }

        /// Whoever is told of a fatal failure is told just after those who wait for it.
        async fn until_fatal(&self) {
            let told = || self.fatal.lock().expect("no panic").len();
            for _ in 0..5000 {
                if told() > 0 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(told(), 1, "told once");
        }

        async fn until_began(&self, syncs: u64) {
            let reached = async {
                while self.store.began.load(Ordering::SeqCst) < syncs {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(Duration::from_secs(10), reached).await.expect("the sync begins");
        }

        fn end_sync(&self, result: Result<(), StoreError>) {
            self.open.send(result).expect("the store lives");
        }
    }

    fn io_error() -> StoreError {
        StoreError::Io("on purpose".to_owned())
    }

    #[tokio::test]
    async fn a_ticket_is_released_only_by_a_sync_that_began_after_it() {
        let world = world(Durability::Group, Executor::threads(1), Duration::ZERO);
        let first = world.insert();
        world.until_began(1).await;
        let second = world.insert();
        let third = world.insert();
        world.end_sync(Ok(()));
        assert!(first.await.expect("no panic").expect("synced"));
        world.until_began(2).await;
        sleep(Duration::from_millis(20)).await;
        assert!(!second.is_finished() && !third.is_finished(), "the first sync began before these inserts");
        world.end_sync(Ok(()));
        assert!(second.await.expect("no panic").expect("synced"));
        assert!(third.await.expect("no panic").expect("synced"));
        assert_eq!(world.store.began.load(Ordering::SeqCst), 2, "one sync for both");
    }

    #[tokio::test]
    async fn a_failed_sync_is_fatal_once_and_fails_every_ticket_for_ever() {
        let world = world(Durability::Group, Executor::threads(1), Duration::ZERO);
        let first = world.insert();
        world.until_began(1).await;
        let second = world.insert();
        let early = world.committer.ticket();
        world.end_sync(Err(io_error()));
        first.await.expect("no panic").expect_err("its sync failed");
        second.await.expect("no panic").expect_err("no sync after a failed one counts");
        early.durable().await.expect_err("taken before the failure");
        world.committer.ticket().durable().await.expect_err("taken after the failure");
        world.committer.ticket_unchanged().durable().await.expect_err("taken after the failure");
        world.until_fatal().await;
        assert_eq!(world.store.began.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn always_syncs_for_each_write_by_itself() {
        let world = world(Durability::Always, Executor::threads(4), Duration::ZERO);
        let writes: Vec<_> = (0..3).map(|_| world.insert()).collect();
        for _ in 0..3 {
            world.end_sync(Ok(()));
        }
        for write in writes {
            assert!(write.await.expect("no panic").expect("synced"));
        }
        assert_eq!(world.store.began.load(Ordering::SeqCst), 3);
        let write = world.insert();
        world.until_began(4).await;
        assert!(!write.is_finished());
        world.end_sync(Err(io_error()));
        write.await.expect("no panic").expect_err("its sync failed");
        world.until_fatal().await;
    }

    #[tokio::test]
    async fn a_sync_that_fails_after_its_caller_has_gone_is_fatal_all_the_same() {
        let world = world(Durability::Always, Executor::threads(1), Duration::ZERO);
        let gone = world.insert();
        world.until_began(1).await;
        gone.abort();
        gone.await.expect_err("given up");
        world.end_sync(Err(io_error()));
        // What the failed sync has dropped is not made durable by one that succeeds.
        world.end_sync(Ok(()));
        world.insert().await.expect("no panic").expect_err("a sync has failed before");
        world.until_fatal().await;
    }

    #[tokio::test(start_paused = true)]
    async fn interval_answers_at_once_and_syncs_by_the_clock() {
        let world = world(Durability::Interval, Executor::Inline, Duration::from_millis(100));
        for _ in 0..10 {
            world.end_sync(Ok(()));
        }
        let insert = || world.store.insert(Tree::Data, b"k", b"v").expect("memory takes everything");
        insert();
        assert!(!world.committer.ticket().durable().await.expect("no sync failed"), "acknowledged, and not synced");
        sleep(Duration::from_millis(250)).await;
        assert_eq!(world.store.began.load(Ordering::SeqCst), 1, "one sync, and none while there is nothing to sync");
        assert!(world.committer.ticket_unchanged().durable().await.expect("no sync failed"), "synced by now");
        insert();
        assert!(!world.committer.ticket_unchanged().durable().await.expect("no sync failed"), "changed since");
        sleep(Duration::from_millis(250)).await;
        assert_eq!(world.store.began.load(Ordering::SeqCst), 2);
        // The ticket of this insert was never asked for, and it is synced all the same.
        insert();
        sleep(Duration::from_millis(250)).await;
        assert_eq!(world.store.began.load(Ordering::SeqCst), 3);
        // As long as the disk does not say what a crash would cost.
        world.committer.withhold(true);
        insert();
        assert!(world.committer.ticket().durable().await.expect("no sync failed"), "synced");
        world.committer.withhold(false);
        insert();
        assert!(!world.committer.ticket().durable().await.expect("no sync failed"));
    }

    #[tokio::test]
    async fn what_did_not_change_is_durable_at_once_only_after_a_sync_that_covers_it() {
        let world = world(Durability::Group, Executor::threads(1), Duration::ZERO);
        let first = world.insert();
        world.until_began(1).await;
        // Inserted while a sync runs, and its ticket was never asked for: a caller that went away.
        world.store.insert(Tree::Data, b"k", b"w").expect("memory takes everything");
        world.end_sync(Ok(()));
        first.await.expect("no panic").expect("synced");
        let unchanged = tokio::spawn(world.committer.ticket_unchanged().durable());
        world.until_began(2).await;
        assert!(!unchanged.is_finished(), "the value that it vouches for is not synced");
        world.end_sync(Ok(()));
        assert!(unchanged.await.expect("no panic").expect("synced"));
        assert!(world.committer.ticket_unchanged().durable().await.expect("synced"));
        assert_eq!(world.store.began.load(Ordering::SeqCst), 2, "the last one needed no sync");
    }

    #[tokio::test(start_paused = true)]
    async fn inline_needs_no_thread_and_the_task_ends_with_the_last_handle() {
        let world = world(Durability::Group, Executor::Inline, Duration::ZERO);
        world.end_sync(Ok(()));
        assert!(world.insert().await.expect("no panic").expect("synced"));
        let shared = Arc::downgrade(&world.committer.handle.shared);
        drop(world.committer);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(shared.strong_count(), 0, "nothing holds the store any more");
    }
}
