//! The engine on disk: sled 0.34.7, with real syncs.
//!
//! ```text
//!   DIR/sled/db        sled's log          conf, snap.*: its settings and a shortcut for its start
//!   DIR/sled/blobs/    pages of more than 128 KiB, a file each
//! ```
//!
//! What was measured or read of sled, and what follows:
//! - `flush()` is no fsync on Linux (`sync_file_range`): a sync is `flush()`, then `sync_data()` of `db` through a descriptor
//!   of our own (so that a write-back error that sled's own periodic fsync met and only logged is reported to us too), then
//!   an fsync of each new blob and of their directory.
//! - Whether a write makes a blob cannot be told from its size: sled writes whole pages (up to 16 records), so the
//!   directory is looked at before each flush.
//! - Transactions and batches take one lock for the whole process and cost 45 times the bytes: never used here.
//! - When the write of a blob fails, sled leaves a writer counted for ever, and the next `flush()`, and the one in its `Drop`,
//!   hang: the store over it (`on_disk.rs`) waits with a bound.
//! - When one of sled's threads fails to write a buffer that its last writer has left (`Log::exit_reservation`), it notes the error and wakes
//!   nobody: a flush that waits for that buffer then waits for ever, while `Engine::check()` says what has happened.
//! - An insert that fails is in the log or not by the time it returns, and what is read afterwards says which: sled (`PageCache::link`) claims
//!   its place in a log buffer, which is where a full disk is met; links the page in memory; and only then completes the entry in the
//!   buffer. An entry that was never completed fails its checksum at the next start. Whoever still reads the old value therefore knows
//!   that the new one will not appear; whoever reads the new one knows nothing of what the disk has.
//! - A damaged log may open with fewer records, or none; or `open` panics. See [`sidecar`] for how that is noticed.
//! - `len()` is O(n): records are counted outside.
//!
//! Known limit: sled deletes the blob of an overwritten value once the newer page is written but not yet fsynced by a
//! [`sync`](super::Store::sync), so a power cut (not a crash of the process) in that moment can take both. It touches pages above 128 KiB
//! only.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use quorate_wire::ids::{ClusterId, NodeId};
use quorate_wire::random::Random;
use tokio::time::Instant;

use super::engine::{Engine, EngineError, EngineTree, Entry, Refusal};
use super::{Opened, StoreError, directory, sidecar, with_descriptors};

/// How sled is run.
#[derive(Debug, Clone)]
pub struct SledOptions {
    /// What sled may keep of its pages in memory, in bytes; it can pass this under load. Start with a quarter of the memory.
    pub cache_bytes: u64,
    /// After so many inserted bytes a sync also stamps the engine and the sidecar, for about three fsyncs more. A log that has
    /// lost its end is noticed if it lost more than this, or anything from before the last start or clean stop.
    pub stamp_bytes: u64,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self { cache_bytes: 256 << 20, stamp_bytes: 16 << 20 }
    }
}

/// Opens a node's data directory with sled in it, or makes it.
///
/// An engine that is damaged or gone is moved aside, to `sled.damaged`, and the node begins with an empty one under a new disk
/// id. If there lies a damaged one already, which is evidence, the directory opens as [`Opened::quarantined`]: the store then
/// refuses what it cannot know, and the damaged files stay as they are, also through later starts, until an operator acts.
///
/// # Errors
/// - [`StoreError::Locked`] when another process has it open, after two seconds of trying.
/// - [`StoreError::Foreign`] when it is another node's or another cluster's, [`StoreError::Occupied`] when it holds other things and
///   no data of a node; nothing in it was changed.
/// - [`StoreError::Corrupt`] when the sidecar is damaged, [`StoreError::Quarantined`] when there is data but no sidecar:
///   nobody can say whose data it is.
/// - [`StoreError::Full`], [`StoreError::Io`].
pub fn open(
    dir: &Path,
    cluster: ClusterId,
    node: NodeId,
    random: &Random,
    options: &SledOptions,
) -> Result<Opened, StoreError> {
    open_once_locked(dir, cluster, node, random, options, || ())
}

/// As [`open`]. `make_room` is called once this process holds the directory's lock and knows that it is this node's, before
/// anything in it is written: what it does cannot harm a node that runs, or another one's data.
///
/// # Errors
/// As [`open`].
pub fn open_once_locked(
    dir: &Path,
    cluster: ClusterId,
    node: NodeId,
    random: &Random,
    options: &SledOptions,
    make_room: impl FnOnce(),
) -> Result<Opened, StoreError> {
    directory::open::<SledEngine>(dir, cluster, node, random, options, make_room)
}

/// Whether a start may take this directory: it is not there, empty, or a node's own. Looks only, and asks nobody whether it is in use.
///
/// # Errors
/// [`StoreError::Occupied`] when it holds other things, [`StoreError::Io`] when it cannot be looked at.
pub fn check_ours(dir: &Path) -> Result<(), StoreError> {
    directory::check_ours::<SledEngine>(dir)
}

/// sled, as an [`Engine`].
#[derive(Debug)]
pub(super) struct SledEngine {
    trees: [sled::Tree; EngineTree::COUNT],
    db: sled::Db,
    /// As it was opened: knows of an error that sled's own threads have met.
    config: sled::Config,
    /// For syncs that report what became of the log.
    db_file: File,
    blobs_dir: PathBuf,
    blobs: Mutex<Blobs>,
}

impl SledEngine {
    fn tree(&self, tree: EngineTree) -> &sled::Tree {
        &self.trees[tree.index()]
    }

    fn entries(&self, tree: EngineTree, from: &[u8], to: Option<&[u8]>) -> sled::Iter {
        match to {
            Some(to) => self.tree(tree).range(from..to),
            None => self.tree(tree).range(from..),
        }
    }
}

impl Engine for SledEngine {
    const NAME: &'static str = "sled";

    type Options = SledOptions;

    fn stamp_bytes(options: &SledOptions) -> u64 {
        options.stamp_bytes
    }

    fn is_there(dir: &Path) -> io::Result<bool> {
        // As sled opens it, so that what it may not open is known before anything is changed.
        let db = File::options().read(true).write(true).open(dir.join("db"))?;
        Ok(db.metadata()?.len() > 0)
    }

    fn open(dir: &Path, options: &SledOptions) -> Result<Self, Refusal> {
        // Syncs are the committer's. A flusher of sled's own would also have its thread before anything else, and panic without one.
        let config = sled::Config::new().path(dir).cache_capacity(options.cache_bytes).flush_every_ms(None);
        let open = || -> sled::Result<_> {
            let db = config.open()?;
            let trees = EngineTree::all().map(|tree| db.open_tree(tree.name())).collect::<sled::Result<Vec<_>>>()?;
            Ok((db, trees))
        };
        let mut tries = 0;
        let (db, trees) = loop {
            match catch_unwind(AssertUnwindSafe(open)) {
                Ok(Ok(opened)) => break opened,
                Ok(Err(error)) if is_lock(&error) => {
                    // Seen right after a drop: sled's own threads let go of its file a little later.
                    tries += 1;
                    if tries == LOCK_TRIES {
                        return Err(Refusal::Failed(StoreError::Locked(dir.display().to_string())));
                    }
                    thread::sleep(LOCK_WAIT);
                }
                Ok(Err(error)) => return Err(Refusal::of(error.into(), dir)),
                Err(panic) => return Err(Refusal::of_panic::<Self>(&*panic, dir)),
            }
        };
        let failed = |error| Refusal::Failed(StoreError::from_io(&format!("opening {}", dir.display()), &error));
        // The names of sled's files have to survive as well; sled syncs neither its directory nor its settings.
        let names = || -> io::Result<File> {
            File::open(dir.join("conf"))?.sync_all()?;
            sidecar::sync_dir(dir)?;
            File::open(dir.join("db"))
        };
        Ok(Self {
            trees: trees.try_into().expect("one of each"),
            db,
            config,
            db_file: names().map_err(failed)?,
            blobs_dir: dir.join("blobs"),
            blobs: Mutex::default(),
        })
    }

    fn get(&self, tree: EngineTree, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.tree(tree).get(key)?.map(Bytes::from_owner))
    }

    fn insert(&self, tree: EngineTree, key: &[u8], value: Vec<u8>) -> Result<bool, EngineError> {
        Ok(self.tree(tree).insert(key, value)?.is_some())
    }

    fn remove(&self, tree: EngineTree, key: &[u8]) -> Result<bool, EngineError> {
        Ok(self.tree(tree).remove(key)?.is_some())
    }

    fn range(&self, tree: EngineTree, from: &[u8], to: Option<&[u8]>) -> impl Iterator<Item = Entry> {
        let entry = |entry: sled::Result<(sled::IVec, sled::IVec)>| -> Entry {
            let (key, value) = entry?;
            Ok((Bytes::copy_from_slice(&key), Bytes::from_owner(value)))
        };
        self.entries(tree, from, to).map(entry)
    }

    fn keys(
        &self,
        tree: EngineTree,
        from: &[u8],
        to: Option<&[u8]>,
    ) -> impl Iterator<Item = Result<Bytes, EngineError>> {
        self.entries(tree, from, to).keys().map(|key| Ok(Bytes::copy_from_slice(&key?)))
    }

    fn sync(&self) -> Result<(), EngineError> {
        // What a panic left behind is listed anew.
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        let new = with_descriptors(|| blobs.list_new(&self.blobs_dir)).map_err(EngineError::Io)?;
        self.db.flush()?;
        self.db_file.sync_data().map_err(EngineError::Io)?;
        // A blob that was there before the flush is complete after it, for the flush waits for its writer.
        with_descriptors(|| blobs.sync(&self.blobs_dir, new.clone())).map_err(EngineError::Io)
    }

    fn check(&self) -> Result<(), EngineError> {
        Ok(self.config.global_error()?)
    }

    fn disk_bytes(&self) -> u64 {
        self.db.size_on_disk().unwrap_or(0)
    }
}

/// Which blob files have been synced.
#[derive(Debug, Default)]
struct Blobs {
    synced: BTreeSet<OsString>,
    /// When the directory last changed, and when that was first seen here.
    changed: Option<(SystemTime, Instant)>,
    /// Nothing has been made since the last listing: a listing can be spared until the directory changes.
    settled: bool,
}

impl Blobs {
    fn list_new(&mut self, dir: &Path) -> io::Result<Option<BTreeSet<OsString>>> {
        let modified = fs::metadata(dir)?.modified()?;
        match self.changed {
            Some((seen, _)) if seen == modified && self.settled => return Ok(None),
            Some((seen, since)) if seen == modified => self.settled = since.elapsed() >= MTIME_TICK,
            Some(_) | None => {
                self.changed = Some((modified, Instant::now()));
                self.settled = false;
            }
        }
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>().map(Some)
    }

    fn sync(&mut self, dir: &Path, listed: Option<BTreeSet<OsString>>) -> io::Result<()> {
        let Some(listed) = listed else { return Ok(()) };
        let mut any = false;
        for name in listed.difference(&self.synced) {
            match File::open(dir.join(name)) {
                Ok(blob) => blob.sync_all()?,
                // Replaced and removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            any = true;
        }
        if any {
            sidecar::sync_dir(dir)?;
        }
        self.synced = listed;
        Ok(())
    }
}

impl From<sled::Error> for EngineError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => Self::Io(error),
            sled::Error::Corruption { .. } => Self::Corrupt(error.to_string()),
            sled::Error::CollectionNotFound(_) | sled::Error::Unsupported(_) | sled::Error::ReportableBug(_) => {
                Self::Other(error.to_string())
            }
        }
    }
}

fn is_lock(error: &sled::Error) -> bool {
    // sled wraps the refusal in an error of kind Other and tells it by this text only.
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

/// Two seconds in all: what a stopped process may still hold is let go within milliseconds, so whoever holds it longer is alive.
const LOCK_TRIES: u32 = 40;
const LOCK_WAIT: Duration = Duration::from_millis(50);

/// Longer than the coarsest step of the kernel's file clock (10 ms): a directory whose time is older than this and the same as
/// before has not changed in between.
const MTIME_TICK: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Arc;

    use super::*;
    use crate::store::Tree;
    use crate::store::contract;
    use crate::store::directory::tests::{OnDisk, RECORDS, filled, key, open_n1, options, value};

    #[test]
    fn sled_keeps_the_contract() {
        contract::check(&mut || Box::new(OnDisk::<SledEngine>::new(options())));
    }

    #[test]
    fn flipped_bytes_are_never_a_wrong_answer() {
        let source = filled(true);
        let log = source.path().join("sled").join("db");
        let whole = fs::read(&log).expect("there");
        // Where the log was written; behind it a segment holds zeros that nothing reads.
        let used = whole.iter().rposition(|byte| *byte != 0).expect("not empty");
        let random = Random::from_seed(7);
        let (mut quarantined, mut corrupt, mut harmless) = (0, 0, 0);
        let rounds = std::env::var("QUORATE_FLIP_ROUNDS").map_or(12, |text| text.parse().expect("a number"));
        for round in 0..rounds {
            let mut damaged = whole.clone();
            for _ in 0..=round % 4 {
                damaged[random.below(used as u64) as usize] ^= 1 << random.below(8);
            }
            fs::write(&log, damaged).expect("room");
            let before = sidecar::read(source.path()).expect("whole").expect("there");
            let opened = open_n1(source.path()).expect("it starts");
            assert_eq!(opened.quarantined, None, "there is no other damaged one");
            if opened.identity.disk != before.disk {
                quarantined += 1;
            } else {
                let mut bad = 0;
                for i in 0..RECORDS {
                    match opened.store.get(Tree::Data, &key(i)) {
                        Ok(Some(found)) => assert_eq!(found, value(i), "round {round}: a wrong value"),
                        Ok(None) => panic!("round {round}: record {i} of {RECORDS} is silently missing"),
                        Err(StoreError::Corrupt(_) | StoreError::Io(_)) => bad += 1,
                        Err(other) => panic!("round {round}: {other}"),
                    }
                }
                if bad > 0 { corrupt += 1 } else { harmless += 1 }
            }
            drop(opened);
            let _ = fs::remove_dir_all(source.path().join("sled.damaged"));
            fs::remove_dir_all(source.path().join("sled")).expect("there");
            fs::create_dir_all(source.path().join("sled").join("blobs")).expect("room");
            sidecar::write(source.path(), &before).expect("room");
        }
        assert!(quarantined + corrupt > 0, "{quarantined} quarantined, {corrupt} corrupt, {harmless} harmless");
    }

    #[test]
    fn blobs_are_listed_until_the_directory_has_been_quiet() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut blobs = Blobs::default();
        let list = |blobs: &mut Blobs| {
            let listed = blobs.list_new(dir.path()).expect("readable");
            blobs.sync(dir.path(), listed.clone()).expect("synced");
            listed.map(|names| names.len())
        };
        fs::write(dir.path().join("1"), b"a").expect("room");
        assert_eq!(list(&mut blobs), Some(1));
        fs::write(dir.path().join("2"), b"b").expect("room");
        assert_eq!(list(&mut blobs), Some(2), "made in the same tick of the file clock, perhaps");
        thread::sleep(MTIME_TICK * 2);
        assert_eq!(list(&mut blobs), Some(2), "once more after it was quiet");
        assert_eq!(list(&mut blobs), None, "spared");
        fs::remove_file(dir.path().join("1")).expect("there");
        fs::write(dir.path().join("3"), b"c").expect("room");
        assert_eq!(list(&mut blobs), Some(2), "it has changed");
        assert_eq!(blobs.synced.iter().map(|name| name.to_string_lossy()).collect::<Vec<_>>(), ["2", "3"]);
    }

    /// What the kernel says when a file reaches a limit takes the same way as a full disk, and needs no mount: the test runs
    /// itself in a child with a file size limit.
    #[test]
    fn a_full_disk_is_a_clear_error_and_takes_no_acknowledged_write() {
        // Small values fill the log, large ones make blobs.
        for size in ["200", "300000"] {
            let dir = tempfile::tempdir().expect("a directory");
            let blocks = if size == "200" { "8192" } else { "2048" };
            let output = Command::new("sh")
                .args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"")])
                .arg(std::env::current_exe().expect("a test binary has a path"))
                .args(["--exact", "store::sled::tests::fills_its_disk", "--nocapture", "--test-threads=1"])
                .env("QUORATE_TEST_FILL", dir.path())
                .env("QUORATE_TEST_FILL_SIZE", size)
                .output()
                .expect("sh runs");
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
            let acknowledged: u32 =
                fs::read_to_string(dir.path().join("acknowledged")).expect("written").parse().expect("a number");
            assert!(acknowledged > 0, "some fitted");
            let opened = open_n1(dir.path()).expect("it opens where there is room");
            assert_eq!(opened.quarantined, None);
            let value = vec![b'v'; size.parse().expect("a number")];
            for i in 0..acknowledged {
                assert!(opened.store.get(Tree::Data, &key(i)).expect("readable").is_some_and(|v| v == value), "{i}");
            }
            opened.store.insert(Tree::Data, b"again", b"v").expect("room");
            opened.store.sync().expect("synced");
        }
    }

    /// The child of the test above; by itself it does nothing.
    #[test]
    fn fills_its_disk() {
        let Some(dir) = std::env::var_os("QUORATE_TEST_FILL").map(PathBuf::from) else { return };
        let size: usize = std::env::var("QUORATE_TEST_FILL_SIZE").expect("set beside it").parse().expect("a number");
        let opened = open_n1(&dir).expect("a new directory");
        let value = vec![b'v'; size];
        // A flush that is under way when a write fails is one that never ends; whoever waits for it must not.
        let store = Arc::clone(&opened.store);
        let beside = thread::spawn(move || {
            loop {
                if let Err(error) = store.sync() {
                    return error;
                }
            }
        });
        let mut acknowledged = 0;
        let error = loop {
            let batch = if size > 1000 { 1 } else { 100 };
            let inserted = (0..batch).try_for_each(|i| opened.store.insert(Tree::Data, &key(acknowledged + i), &value));
            match inserted.and_then(|()| opened.store.sync()) {
                Ok(()) => acknowledged += batch,
                Err(error) => break error,
            }
            assert!(acknowledged < 100_000, "the limit works");
        };
        fs::write(dir.join("acknowledged"), acknowledged.to_string()).expect("a small file has room");
        assert!(matches!(error, StoreError::Full(_)), "{error}");
        let error = beside.join().expect("no panic");
        assert!(matches!(error, StoreError::Full(_)), "{error}");
        // Nothing hangs, everything is refused with the same reason, and reads go on.
        let refused = opened.store.insert(Tree::Data, b"more", b"v").expect_err("after a failed write");
        assert!(matches!(refused, StoreError::Full(_)), "{refused}");
        let refused = opened.store.sync().expect_err("after a failed write");
        assert!(matches!(refused, StoreError::Full(_)), "{refused}");
        opened.store.close().expect_err("not clean");
        assert!(acknowledged > 0, "some fitted");
        assert!(opened.store.get(Tree::Data, &key(0)).expect("readable").is_some_and(|found| found == value));
    }
}
