//! Room on the disk: a node stops taking values before its disk is full, and goes on by itself once there is room.
//!
//! An engine that runs into the end of its disk in the middle of a write or a sync cannot go on: nobody knows then what the disk
//! holds. So a part of the disk is kept free, the **reserve**, which is spent in two steps:
//!
//! | free | what is written |
//! |---|---|
//! | the reserve or more | everything |
//! | less | no value that is not held already: no new write, no copy of one, no hint. Deletes are merged, hints are handed over and let go |
//! | less than a quarter of it | nothing; what needs a write is refused before the engine is asked |
//!
//! Reads go on in all of them. What is refused was certainly not applied, so that other nodes stand in. Values are taken again once
//! an eighth more than the reserve is free.
//!
//! How much is free is a fact from outside, see [`Env`](crate::env::Env): asked once a second, and after every so many bytes
//! that were written in between.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorate_wire::sometimes;
use tokio::time::sleep;

use super::{Committer, Executor, Stats, Store, StoreError, Tree, Writes};
use crate::metrics::Sample;

/// How full a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that this process may still write.
    pub free: u64,
    /// Bytes of the whole.
    pub total: u64,
}

/// Asks how full the disk is that the store lies on. Called often: it must not block for long.
pub type AskSpace = Arc<dyn Fn() -> io::Result<Space> + Send + Sync>;

/// What is free on the file system of a directory, by `statvfs`.
pub fn space_of(dir: PathBuf) -> AskSpace {
    Arc::new(move || {
        let stat = rustix::fs::statvfs(&dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space { free: bytes(stat.f_bavail), total: bytes(stat.f_blocks) })
    })
}

/// How much of a disk is kept free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskReserve {
    /// A twentieth of the disk, but at most 1 GiB; at least 64 MiB, because the engine
    /// writes some megabytes more than it is given, but not more than a quarter of the disk.
    #[default]
    Auto,
    /// So many bytes; 0 for none.
    Bytes(u64),
    /// So many percent of the disk, 0 to 50.
    Percent(u8),
}

impl DiskReserve {
    /// The bytes of it on a disk of this size.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Auto => (total / 20).clamp(64 << 20, 1 << 30).min(total / 4),
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => total / 100 * u64::from(percent),
        }
    }

    /// What is odd about it on a disk of this size, if anything.
    pub fn warning(self, total: u64) -> Option<String> {
        let reserve = self.of(total);
        (reserve > total / 2).then(|| {
            format!(
                "disk_reserve keeps {reserve} bytes free of a disk of {total}, which is more than half of it: the node takes no values \
                 as soon as less is free"
            )
        })
    }
}

impl FromStr for DiskReserve {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.parse() {
                Ok(percent) if percent <= 50 => Ok(Self::Percent(percent)),
                _ => Err(format!("{text:?} is no share of a disk: 0% to 50%")),
            };
        }
        if text != "0" && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("{text:?} is no reserve: write {text}% or {text}MiB, 0 for none, or auto"));
        }
        match text.parse::<crate::config::ByteSize>() {
            Ok(bytes) => Ok(Self::Bytes(bytes.0)),
            Err(_) => Err(format!("{text:?} is no reserve: auto, a share such as 5%, or a size such as 512MiB")),
        }
    }
}

/// How much room there is. Clones share it.
#[derive(Clone)]
pub struct DiskRoom(Arc<Inner>);

struct Inner {
    /// Nobody who knows: then there is room always.
    ask: Option<AskSpace>,
    reserve: DiskReserve,
    level: AtomicU8,
    free: AtomicU64,
    reserved: AtomicU64,
    /// Bytes that were written since it was asked.
    written: AtomicU64,
    refused: AtomicU64,
    /// The engine has failed a write, and nobody has asked since whether it can go on.
    failed: AtomicBool,
}

/// What may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything.
    Plenty,
    /// No new values.
    Low,
    /// Nothing.
    Out,
}

impl DiskRoom {
    /// Asks at once.
    pub fn new(ask: Option<AskSpace>, reserve: DiskReserve) -> Self {
        let room = Self(Arc::new(Inner {
            ask,
            reserve,
            level: AtomicU8::new(Level::Plenty as u8),
            free: AtomicU64::new(u64::MAX),
            reserved: AtomicU64::new(0),
            written: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }));
        room.look();
        if let Some(Ok(space)) = room.0.ask.as_ref().map(|ask| ask())
            && let Some(why) = reserve.warning(space.total)
        {
            tracing::warn!("{why}");
        }
        room
    }

    /// A disk without end.
    pub fn endless() -> Self {
        Self::new(None, DiskReserve::Bytes(0))
    }

    /// What may be written, as of the last look.
    pub fn level(&self) -> Level {
        match self.0.level.load(Ordering::SeqCst) {
            0 => Level::Plenty,
            1 => Level::Low,
            _ => Level::Out,
        }
    }

    /// Why no new value is taken, if none is; counts as a refusal.
    pub fn refuse(&self) -> Option<String> {
        let why = self.why()?;
        self.0.refused.fetch_add(1, Ordering::Relaxed);
        Some(why)
    }

    /// Why no new value is taken, if none is.
    pub fn why(&self) -> Option<String> {
        let (free, reserved) = (self.0.free.load(Ordering::Relaxed), self.0.reserved.load(Ordering::Relaxed));
        let rest = match self.level() {
            Level::Plenty => return None,
            Level::Low => "no new values are taken until there is room, reads and deletes go on",
            Level::Out => "nothing is written until there is room, reads go on",
        };
        Some(format!(
            "the disk is full: {free} bytes are free and {reserved} are kept in reserve (disk_reserve); {rest}"
        ))
    }

    /// Asks again.
    pub fn look(&self) {
        let inner = &self.0;
        let Some(ask) = &inner.ask else { return };
        inner.written.store(0, Ordering::Relaxed);
        // Who cannot say leaves things as they are.
        let Ok(Space { free, total }) = ask() else { return };
        let reserve = inner.reserve.of(total);
        inner.free.store(free, Ordering::Relaxed);
        inner.reserved.store(reserve, Ordering::Relaxed);
        let before = self.level();
        let enough = if before == Level::Plenty { reserve } else { reserve + reserve / 8 };
        let level = match free {
            free if free < reserve / 4 => Level::Out,
            free if free < enough => Level::Low,
            _ => Level::Plenty,
        };
        self.set(level);
    }

    fn set(&self, level: Level) {
        let before = self.0.level.swap(level as u8, Ordering::SeqCst);
        if before == level as u8 {
            return;
        }
        match self.why() {
            None => {
                sometimes!("store: there is room again");
                tracing::info!("there is room on the disk again, everything is taken");
            }
            Some(why) => {
                sometimes!("store: the reserve of the disk is touched", level == Level::Low);
                tracing::warn!("{why}");
            }
        }
    }

    /// Looks again now and then, for as long as it is polled. When the engine has failed a write it is asked whether it can go on: what
    /// clients write asks at once, but a note that nobody waits for would leave a node that says it is ready until somebody syncs.
    pub(crate) async fn watch(self, executor: Executor, committer: Committer) {
        loop {
            sleep(LOOK_PAUSE).await;
            self.look();
            if self.0.failed.swap(false, Ordering::SeqCst) {
                let committer = committer.clone();
                executor.run(move || committer.check()).await;
            }
        }
    }

    /// To be asked before so many bytes are written.
    fn admit(&self, bytes: u64) -> Result<(), StoreError> {
        if self.0.ask.is_none() {
            return Ok(());
        }
        if self.0.written.fetch_add(bytes, Ordering::Relaxed) + bytes >= LOOK_BYTES {
            self.look();
        }
        match (self.level(), self.why()) {
            (Level::Out, Some(why)) => Err(StoreError::NoRoom(why)),
            (Level::Plenty | Level::Low | Level::Out, _) => Ok(()),
        }
    }

    /// The engine itself has run into the end of the disk.
    fn met_the_end(&self) {
        if self.0.ask.is_some() {
            self.set(Level::Out);
        }
    }

    /// For the node's metrics.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let mut samples = vec![
            Sample::gauge(
                "disk_full",
                "1 if no new values are taken for want of room on the disk, 2 if nothing is written",
                self.level() as u64,
            ),
            Sample::counter(
                "disk_full_refusals",
                "Writes and copies of writes refused for want of room on the disk",
                load(&self.0.refused),
            ),
        ];
        if self.0.ask.is_some() {
            samples.push(Sample::gauge(
                "disk_free_bytes",
                "Bytes that are free on the disk of the store",
                load(&self.0.free),
            ));
            samples.push(Sample::gauge(
                "disk_reserve_bytes",
                "Bytes of the disk that are kept in reserve",
                load(&self.0.reserved),
            ));
        }
        samples
    }
}

impl fmt::Debug for DiskRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DiskRoom").field(&self.level()).finish()
    }
}

/// A store that is not written to when there is no room: see [`Level::Out`].
#[derive(Debug)]
pub(crate) struct Reserved {
    inner: Arc<dyn Store>,
    room: DiskRoom,
}

impl Reserved {
    pub(crate) fn new(inner: Arc<dyn Store>, room: DiskRoom) -> Self {
        Self { inner, room }
    }

    fn write(&self, bytes: usize, write: impl FnOnce() -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.room.admit(bytes as u64)?;
        let written = write();
        if let Err(error) = &written {
            self.room.0.failed.store(true, Ordering::SeqCst);
            if let StoreError::Full(_) = error {
                self.room.met_the_end();
            }
        }
        written
    }
}

impl Store for Reserved {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(tree, key)
    }

    fn insert(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.write(key.len() + value.len(), || self.inner.insert(tree, key, value))
    }

    fn remove(&self, tree: Tree, key: &[u8]) -> Result<(), StoreError> {
        self.write(key.len(), || self.inner.remove(tree, key))
    }

    fn scan(
        &self,
        tree: Tree,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.inner.scan(tree, from, to, limit, bytes_max)
    }

    fn keys(&self, tree: Tree, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Bytes>, StoreError> {
        self.inner.keys(tree, from, to, limit)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.inner.sync()
    }

    fn close(&self) -> Result<(), StoreError> {
        self.inner.close()
    }

    fn writes(&self) -> Option<Writes> {
        self.inner.writes()
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}

/// How often it is asked how much is free.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// After so many bytes that were written it is asked anew: a small part of the smallest reserve.
const LOOK_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::store::MemoryStore;

    fn room(free: &Arc<Mutex<u64>>, reserve: u64) -> DiskRoom {
        let free = Arc::clone(free);
        let ask: AskSpace = Arc::new(move || Ok(Space { free: *free.lock().expect("no panic"), total: 1 << 40 }));
        DiskRoom::new(Some(ask), DiskReserve::Bytes(reserve))
    }

    fn set(free: &Arc<Mutex<u64>>, room: &DiskRoom, bytes: u64) -> Level {
        *free.lock().expect("no panic") = bytes;
        room.look();
        room.level()
    }

    #[test]
    fn values_are_refused_below_the_reserve_and_taken_again_well_above_it() {
        let free = Arc::new(Mutex::new(1000));
        let room = room(&free, 800);
        assert_eq!((room.level(), room.refuse()), (Level::Plenty, None));
        assert_eq!(set(&free, &room, 799), Level::Low);
        assert!(room.refuse().is_some_and(|why| why.contains("the disk is full") && why.contains("799")));
        assert_eq!(set(&free, &room, 850), Level::Low, "not at once, lest it goes to and fro");
        assert_eq!(set(&free, &room, 199), Level::Out);
        assert_eq!(set(&free, &room, 200), Level::Low);
        assert_eq!(set(&free, &room, 900), Level::Plenty);
        assert_eq!(room.samples()[1].value, 1, "refusals are counted");
    }

    #[test]
    fn an_engine_is_not_asked_to_write_where_there_is_no_room() {
        let free = Arc::new(Mutex::new(1000));
        let room = room(&free, 800);
        let memory = MemoryStore::new();
        let store = Reserved::new(Arc::new(memory.clone()), room.clone());
        store.insert(Tree::Data, b"a", b"1").expect("there is room");
        set(&free, &room, 300);
        store.insert(Tree::Meta, b"b", b"2").expect("low, and not out");
        set(&free, &room, 100);
        let refused = store.insert(Tree::Data, b"c", b"3").expect_err("out of room");
        assert!(matches!(&refused, StoreError::NoRoom(_)), "{refused}");
        assert!(refused.to_string().starts_with("nothing was written, the disk is full"), "{refused}");
        store.remove(Tree::Data, b"a").expect_err("out of room");
        store.sync().expect("a sync is of what was written before");
        assert_eq!(store.get(Tree::Data, b"a").expect("reads go on").as_deref(), Some(&b"1"[..]));
        assert_eq!(memory.get(Tree::Data, b"c").expect("reads"), None);
        set(&free, &room, 5000);
        store.insert(Tree::Data, b"c", b"3").expect("there is room again");
    }

    /// An engine that has met the end of its disk.
    #[derive(Debug)]
    struct Broken(MemoryStore);

    impl Store for Broken {
        fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
            self.0.get(tree, key)
        }
        fn insert(&self, _: Tree, _: &[u8], _: &[u8]) -> Result<(), StoreError> {
            Err(StoreError::Full("no space left".into()))
        }
        fn remove(&self, _: Tree, _: &[u8]) -> Result<(), StoreError> {
            Err(StoreError::Full("no space left".into()))
        }
        fn scan(
            &self,
            tree: Tree,
            from: &[u8],
            to: Option<&[u8]>,
            limit: usize,
            bytes_max: usize,
        ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
            self.0.scan(tree, from, to, limit, bytes_max)
        }
        fn keys(&self, tree: Tree, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Bytes>, StoreError> {
            self.0.keys(tree, from, to, limit)
        }
        fn sync(&self) -> Result<(), StoreError> {
            Err(StoreError::Full("no space left".into()))
        }
        fn stats(&self) -> Stats {
            Stats::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_fails_a_write_that_nobody_waits_for_is_asked_whether_it_can_go_on() {
        let free = Arc::new(Mutex::new(1000));
        let room = room(&free, 800);
        let store: Arc<dyn Store> = Arc::new(Reserved::new(Arc::new(Broken(MemoryStore::new())), room.clone()));
        let told = Arc::new(Mutex::new(Vec::new()));
        let fatal = {
            let told = Arc::clone(&told);
            Arc::new(move |why| told.lock().expect("no panic").push(why))
        };
        let (seldom, executor) = (Duration::from_secs(3600), Executor::Inline);
        let durability = crate::store::Durability::Interval;
        let committer = Committer::start(Arc::clone(&store), executor.clone(), durability, seldom, fatal);
        let watching = tokio::spawn(room.watch(executor, committer));
        sleep(10 * LOOK_PAUSE).await;
        assert!(told.lock().expect("no panic").is_empty(), "nothing has failed");
        store.insert(Tree::Meta, b"a", b"1").expect_err("it has met the end");
        sleep(2 * LOOK_PAUSE).await;
        assert_eq!(told.lock().expect("no panic").len(), 1);
        watching.abort();
    }

    #[test]
    fn much_that_is_written_between_two_looks_makes_it_look() {
        let free = Arc::new(Mutex::new(1000));
        let room = room(&free, 800);
        let store = Reserved::new(Arc::new(MemoryStore::new()), room.clone());
        *free.lock().expect("no panic") = 0;
        store.insert(Tree::Data, b"a", b"small").expect("nobody has looked");
        let large = vec![0; LOOK_BYTES as usize];
        store.insert(Tree::Data, b"b", &large).expect_err("it was looked");
    }

    #[test]
    fn reserves_are_read_and_bounded_by_the_disk() {
        assert_eq!("5%".parse(), Ok(DiskReserve::Percent(5)));
        assert_eq!("512MiB".parse(), Ok(DiskReserve::Bytes(512 << 20)));
        assert_eq!("0".parse(), Ok(DiskReserve::Bytes(0)));
        for wrong in ["51%", "-1", "much", "5 %", "", "5", "1048576"] {
            assert!(wrong.parse::<DiskReserve>().is_err(), "{wrong:?}");
        }
        let auto = |total: u64| DiskReserve::Auto.of(total);
        assert_eq!(auto(1 << 40), 1 << 30);
        assert_eq!(auto(10 << 30), (10 << 30) / 20);
        assert_eq!((auto(64 << 20), auto(1 << 30)), (16 << 20, 64 << 20));
        assert_eq!(auto(16 << 20), 4 << 20);
        assert_eq!(DiskReserve::Percent(10).of(1000), 100);
        assert_eq!((DiskReserve::Percent(50).warning(1000), DiskReserve::Bytes(500).warning(1000)), (None, None));
        assert!(DiskReserve::Bytes(501).warning(1000).is_some_and(|why| why.contains("501") && why.contains("1000")));
    }
}
