//! The engine on disk: sled 0.34.7, with what it lacks for a promise that holds through a power cut.
//!
//! ```text
//!   DIR/lock           held as long as the store is open; names the process
//!   DIR/quorate.json   the sidecar: whose directory, and what must be found in the engine
//!   DIR/sled/db        sled's log          conf, snap.*: its settings and a shortcut for its start
//!   DIR/sled/blobs/    pages of more than 128 KiB, a file each
//!   DIR/sled.damaged/  an engine that was found damaged, kept as evidence
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
//!   hang. So syncs run on a thread of their own which is waited for with a bound; after the first failed write or sync the
//!   store refuses every further one, and is then never dropped: the process has to end, which is what a failed sync means anyway.
//! - A damaged log may open with fewer records, or none; or `open` panics. See [`sidecar`] for how that is noticed.
//! - `len()` is O(n): records are counted here.
//!
//! Known limit: sled deletes the blob of an overwritten value once the newer page is written but not yet fsynced by a [`sync`](Store::sync),
//! so a power cut (not a crash of the process) in that moment can take both. It touches pages above 128 KiB only.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use quorate_wire::ids::{ClusterId, DiskId, NodeId};
use quorate_wire::random::Random;
use tokio::time::Instant;

use super::envelope;
use super::private;
use super::quarantine::QuarantinedStore;
use super::sidecar::{self, Content};
use super::stuck::Watch;
use super::{Identity, Opened, Stats, Store, StoreError, Tree, WriteCount, Writes, with_descriptors};

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

/// Opens a node's data directory, or makes it.
///
/// An engine that is damaged or gone is moved aside, to `sled.damaged`, and the node begins with an empty one under a new disk
/// id. If there lies a damaged one already, which is evidence, the directory opens as [`Opened::quarantined`]: the store then
/// refuses what it cannot know, and the damaged files stay as they are, also through later starts, until an operator acts.
///
/// # Errors
/// - [`StoreError::Locked`] when another process has it open, after two seconds of trying.
/// - [`StoreError::Foreign`] when it is another node's or another cluster's; nothing in it was changed.
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
    let new = !dir.exists();
    fs::create_dir_all(dir)
        .map_err(|e| StoreError::from_io(&format!("making the data directory {}", dir.display()), &e))?;
    let lock = lock(dir)?;
    let engine_dir = dir.join(ENGINE_DIR);
    let engine_there = fs::metadata(engine_dir.join("db")).is_ok_and(|db| db.len() > 0);
    let mut content = match sidecar::read(dir)? {
        Some(content) if (content.cluster, content.node) != (cluster, node) => {
            return Err(StoreError::Foreign(format!(
                "node {} of cluster {}, and was opened as node {node} of cluster {cluster}: {}",
                content.node,
                content.cluster,
                dir.display()
            )));
        }
        Some(content) => content,
        None if engine_there => {
            return Err(StoreError::Quarantined(format!(
                "{} holds data, but {} is missing, so nobody can say whose data it is: restore the file from a copy, or move \
                 the whole directory away to begin with an empty disk",
                dir.display(),
                sidecar::path(dir).display()
            )));
        }
        None => Content {
            format: sidecar::FORMAT,
            cluster,
            node,
            disk: DiskId(random.u128()),
            boot: 0,
            clean: true,
            has_data: false,
            stamp: 0,
            records: 0,
            quarantined: None,
        },
    };
    // The directory keeps others from what the engine makes in it later.
    private::tighten(dir, new);
    make_room();
    content.boot += 1;
    let identity = Identity { cluster, node, disk: content.disk, boot: content.boot, clean: content.clean };
    content.clean = false;
    sidecar::write(dir, &content)?;
    if content.boot == 1 {
        sync_parent(dir)?;
    }

    let made = content.stamp > 0;
    let opened = match &content.quarantined {
        Some(_) => None,
        None if made && !engine_there => Some(Err(Refusal::Damaged("its files are gone".to_owned()))),
        None => Some(open_engine(&engine_dir, &content, options)),
    };
    match opened {
        Some(Ok((db, trees, stamp))) => {
            content.stamp = stamp;
            let store = SledStore::start(dir, db, trees, content, options, lock)?;
            return Ok(Opened { store: Arc::new(store), identity, quarantined: None });
        }
        Some(Err(Refusal::Failed(error))) => return Err(error),
        Some(Err(Refusal::Damaged(how))) => {
            content.quarantined =
                Some(format!("the store of disk {} in {} is damaged ({how})", content.disk, dir.display()));
            // Whatever happens from here on, nothing in it is served any more.
            sidecar::write(dir, &content)?;
        }
        None => {}
    }
    let damage = content.quarantined.clone().expect("else it would have been opened");
    let aside = dir.join(DAMAGED_DIR);
    if !aside.exists() || !engine_dir.exists() {
        if engine_dir.exists() {
            set_aside(dir, &engine_dir, &aside)?;
        }
        let lost = content.disk;
        let fresh = loop {
            let drawn = DiskId(random.u128());
            // Not even by a generator that began anew with its old seed.
            if drawn != lost {
                break drawn;
            }
        };
        content = Content { disk: fresh, has_data: false, stamp: 0, records: 0, quarantined: None, ..content };
        sidecar::write(dir, &content)?;
        tracing::error!(%lost, disk = %content.disk, aside = %aside.display(),
            "{damage}. It was moved aside, and the node begins with an empty disk: other owners bring back what it held");
        return match open_engine(&engine_dir, &content, options) {
            Ok((db, trees, stamp)) => {
                content.stamp = stamp;
                let identity = Identity { disk: content.disk, clean: true, ..identity };
                let store = SledStore::start(dir, db, trees, content, options, lock)?;
                Ok(Opened { store: Arc::new(store), identity, quarantined: None })
            }
            Err(Refusal::Failed(error)) => Err(error),
            Err(Refusal::Damaged(how)) => {
                Err(StoreError::Corrupt(format!("a new engine in {} is damaged: {how}", dir.display())))
            }
        };
    }
    let reason = format!(
        "{damage}. An earlier damaged store lies in {} already, so that this one stays where it is, and nothing in it is served \
         or changed. Find out what is wrong with the disk; then move {} away and start again: the node begins with an empty \
         disk under a new disk id, and other owners bring back what it held",
        aside.display(),
        aside.display()
    );
    tracing::error!(disk = %content.disk, reason, "the store is quarantined");
    let store = Arc::new(QuarantinedStore::new(reason.clone()));
    Ok(Opened { store, identity, quarantined: Some(reason) })
}

/// Moves a damaged engine to where evidence is kept, durably.
fn set_aside(dir: &Path, engine_dir: &Path, aside: &Path) -> Result<(), StoreError> {
    let moved = fs::rename(engine_dir, aside).and_then(|()| sidecar::sync_dir(dir));
    moved.map_err(|e| StoreError::from_io(&format!("moving {} to {}", engine_dir.display(), aside.display()), &e))
}

/// sled with checksums, real syncs and a sidecar. Made by [`open`].
#[derive(Debug)]
pub struct SledStore {
    core: Arc<Core>,
    syncer: Option<Syncer>,
}

impl SledStore {
    fn start(
        dir: &Path,
        db: sled::Db,
        trees: Trees,
        content: Content,
        options: &SledOptions,
        lock: File,
    ) -> Result<Self, StoreError> {
        let engine_dir = dir.join(ENGINE_DIR);
        let failed = |e: &io::Error| StoreError::from_io(&format!("opening {}", engine_dir.display()), e);
        let core = Arc::new(Core {
            has_data: AtomicBool::new(content.has_data),
            records: AtomicI64::new(i64::try_from(content.records).unwrap_or(0)),
            sidecar: Mutex::new(content),
            writes: WriteCount::default(),
            unstamped_bytes: AtomicU64::new(0),
            stamp_bytes: options.stamp_bytes.max(1),
            closed: AtomicBool::new(false),
            failed: OnceLock::new(),
            db_file: File::open(engine_dir.join("db")).map_err(|e| failed(&e))?,
            blobs: engine_dir.join("blobs"),
            trees,
            db,
            watch: Watch::start(format!("a call into the store in {}", dir.display())),
            dir: dir.to_owned(),
            _lock: lock,
        });
        let mut blobs = Blobs::default();
        // The names of sled's files have to survive as well; sled syncs neither its directory nor its settings.
        let names = || -> io::Result<()> {
            File::open(engine_dir.join("conf"))?.sync_all()?;
            sidecar::sync_dir(&engine_dir)?;
            sidecar::sync_dir(dir)
        };
        names().map_err(|e| failed(&e))?;
        core.stamp(&mut blobs, false)?;

        let (requests, queue) = sync_channel(SYNCS_WAITING_MAX);
        let thread = thread::Builder::new()
            .name("quorate-sync".to_owned())
            .spawn({
                let core = Arc::clone(&core);
                move || core.serve_syncs(&queue, blobs)
            })
            .map_err(|e| failed(&e))?;
        Ok(Self { core, syncer: Some(Syncer { requests, thread }) })
    }

    fn request(&self, work: Work) -> Result<(), StoreError> {
        self.core.check_writable()?;
        let syncer = self.syncer.as_ref().expect("the thread is taken by drop only");
        let (reply, result) = sync_channel(1);
        // The thread ends early only after a failure, and then says so below.
        let _ = syncer.requests.send(Request { work, reply });
        for _ in 0..SYNC_WAITS_MAX {
            match result.recv_timeout(SYNC_WAIT) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => self.core.check_failed()?,
            }
        }
        let waited = SYNC_WAIT * SYNC_WAITS_MAX;
        Err(self
            .core
            .fail(StoreError::Io(format!("a sync of {} did not end within {waited:?}", self.core.dir.display()))))
    }

    /// Flips one bit of a stored value, to show that reads notice. False when there is no such key.
    #[doc(hidden)]
    pub fn flip_bit(&self, tree: Tree, key: &[u8]) -> bool {
        let tree = self.core.tree(tree);
        let Some(sealed) = tree.get(key).expect("sled reads") else { return false };
        let mut sealed = sealed.to_vec();
        *sealed.last_mut().expect("a sealed value is at least a checksum long") ^= 1;
        tree.insert(key, sealed).expect("sled writes");
        true
    }
}

impl Store for SledStore {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let sealed = self.core.guard("reading", || self.core.tree(tree).get(key))?;
        sealed.map(|sealed| open_value(tree, key, sealed)).transpose()
    }

    fn insert(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let sealed = envelope::seal(tree, key, value);
        self.core.check_writable()?;
        if tree == Tree::Data && !self.core.has_data.load(Ordering::SeqCst) {
            self.core.note_first_data()?;
        }
        let bytes = (key.len() + sealed.len()) as u64;
        let old = self.core.write("writing", || self.core.tree(tree).insert(key, sealed))?;
        if tree == Tree::Data && old.is_none() {
            self.core.records.fetch_add(1, Ordering::Relaxed);
        }
        self.core.unstamped_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn remove(&self, tree: Tree, key: &[u8]) -> Result<(), StoreError> {
        self.core.check_writable()?;
        let old = self.core.write("removing", || self.core.tree(tree).remove(key))?;
        if tree == Tree::Data && old.is_some() {
            self.core.records.fetch_sub(1, Ordering::Relaxed);
        }
        self.core.unstamped_bytes.fetch_add(key.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn scan(
        &self,
        tree: Tree,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(Vec::new());
        }
        let mut entries = match to {
            Some(to) => self.core.tree(tree).range(from..to),
            None => self.core.tree(tree).range(from..),
        };
        let mut found = Vec::new();
        let mut bytes = 0;
        while found.len() < limit && (bytes < bytes_max || found.is_empty()) {
            let Some((key, sealed)) = self.core.guard("scanning", || entries.next().transpose())? else { break };
            let value = open_value(tree, &key, sealed)?;
            bytes += key.len() + value.len();
            found.push((Bytes::copy_from_slice(&key), value));
        }
        Ok(found)
    }

    fn keys(&self, tree: Tree, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Bytes>, StoreError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(Vec::new());
        }
        let entries = match to {
            Some(to) => self.core.tree(tree).range(from..to),
            None => self.core.tree(tree).range(from..),
        };
        let mut entries = entries.keys();
        let mut found = Vec::new();
        while found.len() < limit {
            let Some(key) = self.core.guard("scanning", || entries.next().transpose())? else { break };
            found.push(Bytes::copy_from_slice(&key));
        }
        Ok(found)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.request(Work::Sync)
    }

    fn close(&self) -> Result<(), StoreError> {
        if self.core.closed.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.request(Work::Close)
    }

    fn writes(&self) -> Option<Writes> {
        Some(self.core.writes.get())
    }

    fn stats(&self) -> Stats {
        Stats {
            records_estimate: u64::try_from(self.core.records.load(Ordering::Relaxed)).unwrap_or(0),
            disk_bytes: self.core.db.size_on_disk().unwrap_or(0),
            engine: "sled",
        }
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        let Some(Syncer { requests, thread }) = self.syncer.take() else { return };
        drop(requests);
        if self.core.failed.get().is_none() {
            // Its panics are caught; and sled is closed when this returns, so that the directory can be opened again.
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Syncer {
    requests: SyncSender<Request>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Request {
    work: Work,
    reply: SyncSender<Result<(), StoreError>>,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    Sync,
    Close,
}

#[derive(Debug)]
struct Trees {
    named: [sled::Tree; Tree::ALL.len()],
    /// Holds the stamp.
    engine: sled::Tree,
}

/// What the store and its sync thread share. Fields are dropped in order: the lock last.
#[derive(Debug)]
struct Core {
    has_data: AtomicBool,
    records: AtomicI64,
    sidecar: Mutex<Content>,
    writes: WriteCount,
    unstamped_bytes: AtomicU64,
    stamp_bytes: u64,
    closed: AtomicBool,
    failed: OnceLock<StoreError>,
    db_file: File,
    blobs: PathBuf,
    trees: Trees,
    db: sled::Db,
    dir: PathBuf,
    watch: Watch,
    _lock: File,
}

impl Core {
    fn tree(&self, tree: Tree) -> &sled::Tree {
        &self.trees.named[tree.index()]
    }

    /// Runs a call into sled; a panic in it (which is how sled meets some kinds of damage) is an error.
    fn guard<T>(&self, what: &str, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
        let what = || format!("{what} in {}", self.dir.display());
        match catch_unwind(AssertUnwindSafe(|| self.watch.call(call))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(from_sled(&what(), &error)),
            Err(panic) => Err(StoreError::Corrupt(format!("{}: sled panicked: {}", what(), panic_text(&*panic)))),
        }
    }

    /// A write: the first one that fails is the last one that is tried.
    fn write<T>(&self, what: &str, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
        self.writes.count(|| self.guard(what, call)).map_err(|error| self.fail(error))
    }

    fn check_failed(&self) -> Result<(), StoreError> {
        self.failed.get().cloned().map_or(Ok(()), Err)
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        self.check_failed()?;
        if self.closed.load(Ordering::SeqCst) {
            return Err(StoreError::Io(format!("{} has been closed; nothing was written", self.dir.display())));
        }
        Ok(())
    }

    /// Notes the first failure and gives back the error to report.
    fn fail(&self, error: StoreError) -> StoreError {
        if self.failed.set(error.clone()).is_ok() {
            tracing::error!(%error, "storage failed; nothing is written any more");
        }
        error
    }

    /// Makes the sidecar say, durably, that there is data, before the first of it is inserted.
    fn note_first_data(&self) -> Result<(), StoreError> {
        let mut content = self.content();
        if !content.has_data {
            let noted = Content { has_data: true, ..content.clone() };
            sidecar::write(&self.dir, &noted)?;
            *content = noted;
        }
        self.has_data.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // It is replaced as a whole.
        self.sidecar.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve_syncs(self: Arc<Self>, queue: &Receiver<Request>, mut blobs: Blobs) {
        while let Ok(Request { work, reply }) = queue.recv() {
            let done = self.check_writable().and_then(|()| {
                catch_unwind(AssertUnwindSafe(|| match work {
                    Work::Sync => self.sync_and_stamp(&mut blobs),
                    Work::Close => {
                        // Writes that begin from here on are refused, and those that have returned are in this sync.
                        self.closed.store(true, Ordering::SeqCst);
                        self.stamp(&mut blobs, true)
                    }
                }))
                .unwrap_or_else(|panic| Err(StoreError::Io(format!("sled panicked: {}", panic_text(&*panic)))))
                .map_err(|error| self.fail(error))
            });
            // Whoever asked may have given up.
            let _ = reply.send(done);
        }
        if self.failed.get().is_some() {
            // sled's Drop flushes, which can hang for ever now.
            std::mem::forget(self);
        }
    }

    fn sync_and_stamp(&self, blobs: &mut Blobs) -> Result<(), StoreError> {
        self.sync_files(blobs)?;
        if self.unstamped_bytes.load(Ordering::Relaxed) >= self.stamp_bytes {
            self.stamp(blobs, false)?;
        }
        Ok(())
    }

    /// Makes everything that was written before the call survive a power cut.
    fn sync_files(&self, blobs: &mut Blobs) -> Result<(), StoreError> {
        let what = || format!("syncing {}", self.dir.display());
        let new = with_descriptors(|| blobs.list_new(&self.blobs)).map_err(|e| StoreError::from_io(&what(), &e))?;
        self.db.flush().map_err(|e| from_sled(&what(), &e))?;
        self.db_file.sync_data().map_err(|e| StoreError::from_io(&what(), &e))?;
        // A blob that was there before the flush is complete after it, for the flush waits for its writer.
        with_descriptors(|| blobs.sync(&self.blobs, new.clone())).map_err(|e| StoreError::from_io(&what(), &e))
    }

    /// Writes the next stamp into sled, syncs, then notes it in the sidecar.
    fn stamp(&self, blobs: &mut Blobs, clean: bool) -> Result<(), StoreError> {
        self.unstamped_bytes.store(0, Ordering::Relaxed);
        let mut next = self.content().clone();
        next.stamp += 1;
        let value = stamp_value(next.disk, next.stamp);
        self.guard("stamping", || self.trees.engine.insert(STAMP_KEY, value))?;
        self.sync_files(blobs)?;
        let mut content = self.content();
        // A first record may have been noted meanwhile.
        next.has_data = content.has_data;
        next.records = u64::try_from(self.records.load(Ordering::Relaxed)).unwrap_or(0);
        next.clean = clean;
        if clean {
            next.has_data = self.guard("reading", || self.tree(Tree::Data).first())?.is_some();
        }
        sidecar::write(&self.dir, &next)?;
        *content = next;
        Ok(())
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

/// Why the engine did not open.
enum Refusal {
    Damaged(String),
    Failed(StoreError),
}

/// Opens sled and compares it with the sidecar; returns the stamp that was found.
fn open_engine(dir: &Path, content: &Content, options: &SledOptions) -> Result<(sled::Db, Trees, u64), Refusal> {
    // Syncs are the committer's. A flusher of sled's own would also have its thread before anything else, and panic without one.
    let config = sled::Config::new().path(dir).cache_capacity(options.cache_bytes).flush_every_ms(None);
    let open = || -> sled::Result<_> {
        let db = config.open()?;
        let mut named = Vec::with_capacity(Tree::ALL.len());
        for tree in Tree::ALL {
            named.push(db.open_tree(tree.name())?);
        }
        let trees = Trees { named: named.try_into().expect("one of each"), engine: db.open_tree("engine")? };
        let stamp = trees.engine.get(STAMP_KEY)?;
        let empty = trees.named[Tree::Data.index()].first()?.is_none();
        Ok((db, trees, stamp, empty))
    };
    let mut tries = 0;
    let (db, trees, stamp, empty) = loop {
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
            Ok(Err(error)) if is_damage(&error) => return Err(Refusal::Damaged(error.to_string())),
            Ok(Err(error)) => return Err(Refusal::Failed(from_sled(&format!("opening {}", dir.display()), &error))),
            Err(panic) => {
                let text = panic_text(&*panic);
                if is_want(text) {
                    return Err(Refusal::Failed(StoreError::Io(format!("opening {}: {text}", dir.display()))));
                }
                return Err(Refusal::Damaged(format!("sled panicked: {text}")));
            }
        }
    };
    let stamp = match stamp {
        None if content.stamp == 0 => 0,
        None => return Err(Refusal::Damaged("it opens as if it were new".to_owned())),
        Some(value) => match open_stamp(&value) {
            Some((disk, _)) if disk != content.disk => {
                return Err(Refusal::Damaged(format!("it is the engine of disk {disk}")));
            }
            Some((_, stamp)) if stamp < content.stamp => {
                let want = content.stamp;
                return Err(Refusal::Damaged(format!(
                    "the end of its log is lost: stamp {stamp} found, {want} expected"
                )));
            }
            Some((_, stamp)) => stamp,
            None => return Err(Refusal::Damaged("its stamp fails its checksum".to_owned())),
        },
    };
    if content.has_data && empty {
        return Err(Refusal::Damaged("there were records, and none is left".to_owned()));
    }
    Ok((db, trees, stamp))
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("lock");
    let failed = |error: &io::Error| StoreError::from_io(&format!("locking {}", path.display()), error);
    let file = File::options().create(true).append(true).open(&path).map_err(|e| failed(&e))?;
    for attempt in 0..LOCK_TRIES {
        if attempt > 0 {
            thread::sleep(LOCK_WAIT);
        }
        match file.try_lock() {
            Ok(()) => {
                // Only for people: a disk that is full may have no room for it.
                let _ = file.set_len(0).and_then(|()| writeln!(&file, "{}", std::process::id()));
                return Ok(file);
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(failed(&error)),
        }
    }
    let holder = fs::read_to_string(&path).ok().filter(|holder| !holder.trim().is_empty());
    let holder = holder.map_or_else(String::new, |pid| format!(" (process {} holds its lock)", pid.trim()));
    Err(StoreError::Locked(format!("{}{holder}", dir.display())))
}

fn sync_parent(dir: &Path) -> Result<(), StoreError> {
    let synced = match dir.canonicalize() {
        Ok(whole) => whole.parent().map_or(Ok(()), sidecar::sync_dir),
        Err(error) => Err(error),
    };
    synced.map_err(|e| StoreError::from_io(&format!("syncing the parent directory of {}", dir.display()), &e))
}

fn open_value(tree: Tree, key: &[u8], sealed: sled::IVec) -> Result<Bytes, StoreError> {
    envelope::open(tree, key, &sealed)?;
    Ok(Bytes::from_owner(sealed).slice(envelope::OVERHEAD..))
}

fn stamp_value(disk: DiskId, stamp: u64) -> Vec<u8> {
    let mut value = disk.0.to_be_bytes().to_vec();
    value.extend_from_slice(&stamp.to_be_bytes());
    envelope::seal_tagged(ENGINE_TAG, STAMP_KEY, &value)
}

fn open_stamp(sealed: &[u8]) -> Option<(DiskId, u64)> {
    let value = envelope::open_tagged(ENGINE_TAG, STAMP_KEY, sealed)?;
    let (disk, stamp) = value.split_first_chunk::<16>()?;
    Some((DiskId(u128::from_be_bytes(*disk)), u64::from_be_bytes(stamp.try_into().ok()?)))
}

fn from_sled(what: &str, error: &sled::Error) -> StoreError {
    match error {
        sled::Error::Io(error) => StoreError::from_io(what, error),
        sled::Error::Corruption { .. } => StoreError::Corrupt(format!("{what}: {error}")),
        sled::Error::CollectionNotFound(_) | sled::Error::Unsupported(_) | sled::Error::ReportableBug(_) => {
            StoreError::Io(format!("{what}: {error}"))
        }
    }
}

fn is_lock(error: &sled::Error) -> bool {
    // sled wraps the refusal in an error of kind Other and tells it by this text only.
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

/// Errors at opening that say something about what is in the files, and not about the system around them.
fn is_damage(error: &sled::Error) -> bool {
    match error {
        sled::Error::Io(error) => matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::InvalidData
                | io::ErrorKind::InvalidInput
                | io::ErrorKind::NotFound
        ),
        sled::Error::Corruption { .. }
        | sled::Error::ReportableBug(_)
        | sled::Error::Unsupported(_)
        | sled::Error::CollectionNotFound(_) => true,
    }
}

/// Whether a panic of sled's tells of something that has run out, such as threads, and says nothing of the data.
fn is_want(text: &str) -> bool {
    // EAGAIN, ENOMEM, ENFILE, EMFILE and ENOSPC, as a Rust error is written.
    [11, 12, 23, 24, 28].iter().any(|code| text.contains(&format!("Os {{ code: {code},")))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "no message",
    }
}

const ENGINE_DIR: &str = "sled";
/// Where a damaged engine is moved to.
const DAMAGED_DIR: &str = "sled.damaged";

/// Stands for the engine's own tree in checksums.
const ENGINE_TAG: u8 = 0xff;

const STAMP_KEY: &[u8] = b"stamp";

/// Two seconds in all: what a stopped process may still hold is let go within milliseconds, so whoever holds it longer is alive.
const LOCK_TRIES: u32 = 40;
const LOCK_WAIT: Duration = Duration::from_millis(50);

/// Callers of sync that wait for a place; beyond it they wait without one. At least as many as there are storage threads.
const SYNCS_WAITING_MAX: usize = 64;

/// A minute in all, with a look at whether the store has failed in between: a disk that takes longer for one sync has failed.
const SYNC_WAITS_MAX: u32 = 600;
const SYNC_WAIT: Duration = Duration::from_millis(100);

/// Longer than the coarsest step of the kernel's file clock (10 ms): a directory whose time is older than this and the same as
/// before has not changed in between.
const MTIME_TICK: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use tempfile::TempDir;

    use super::*;
    use crate::store::contract::{self, Subject};

    const CLUSTER: ClusterId = ClusterId(0xc1);

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("legal")
    }

    /// Stamps often, so that small logs can show what large ones do.
    fn options() -> SledOptions {
        SledOptions { cache_bytes: 32 << 20, stamp_bytes: 64 << 10 }
    }

    fn open_n1(dir: &Path) -> Result<Opened, StoreError> {
        open(dir, CLUSTER, node("n1"), &Random::from_seed(1), &options())
    }

    fn key(i: u32) -> [u8; 4] {
        i.to_be_bytes()
    }

    fn value(i: u32) -> Vec<u8> {
        i.to_le_bytes().repeat(50)
    }

    /// A directory with 4,000 synced records, closed or as a crash leaves it.
    fn filled(clean: bool) -> TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        let opened = open_n1(dir.path()).expect("a new directory");
        for i in 0..RECORDS {
            opened.store.insert(Tree::Data, &key(i), &value(i)).expect("room");
            if i % 400 == 0 {
                opened.store.sync().expect("synced");
            }
        }
        opened.store.sync().expect("synced");
        if clean {
            opened.store.close().expect("closed");
        }
        dir
    }

    const RECORDS: u32 = 4000;

    struct OnDisk {
        dir: TempDir,
        store: Option<Arc<SledStore>>,
    }

    impl OnDisk {
        fn open(&mut self) {
            let dir = self.dir.path();
            let lock = lock(dir).expect("not in use");
            drop(lock);
            let opened = open_n1(dir).expect("it opens");
            assert_eq!(opened.quarantined, None);
            drop(opened);
            // The same by hand, for the concrete type.
            let content = sidecar::read(dir).expect("whole").expect("there");
            let (db, trees, stamp) = open_engine(&dir.join(ENGINE_DIR), &content, &options()).ok().expect("whole");
            let content = Content { stamp, ..content };
            let lock = super::lock(dir).expect("not in use");
            self.store =
                Some(Arc::new(SledStore::start(dir, db, trees, content, &options(), lock).expect("it starts")));
        }
    }

    impl Subject for OnDisk {
        fn store(&self) -> Arc<dyn Store> {
            Arc::<SledStore>::clone(self.store.as_ref().expect("open"))
        }
        fn reopen(&mut self) {
            let store = Arc::into_inner(self.store.take().expect("open")).expect("nobody else holds it");
            drop(store);
            self.open();
        }
        fn flip_bit(&self, tree: Tree, key: &[u8]) -> bool {
            self.store.as_ref().expect("open").flip_bit(tree, key)
        }
    }

    /// As sled says it when a thread is not to be had.
    #[test]
    fn a_want_is_no_damage() {
        for code in [11, 12, 23, 24, 28] {
            let spawn = || -> io::Result<()> { Err(io::Error::from_raw_os_error(code)) };
            let panic = catch_unwind(AssertUnwindSafe(|| spawn().unwrap())).expect_err("an unwrap of an error");
            assert!(is_want(panic_text(&*panic)), "{}", panic_text(&*panic));
        }
        assert!(!is_want("assertion failed: Os { code: 5, kind: Uncategorized }"));
        assert!(!is_want("index out of bounds: the len is 11"));
    }

    #[test]
    fn sled_keeps_the_contract() {
        contract::check(&mut || {
            let mut subject = OnDisk { dir: tempfile::tempdir().expect("a directory"), store: None };
            subject.open();
            Box::new(subject)
        });
    }

    #[test]
    fn starts_are_counted_and_the_disk_keeps_its_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = open_n1(dir.path()).expect("a new directory").identity;
        assert_eq!((first.boot, first.clean), (1, true), "nothing before it was unclean");
        let opened = open_n1(dir.path()).expect("it opens again");
        let second = opened.identity.clone();
        assert_eq!(
            (second.boot, second.clean, second.disk),
            (2, false, first.disk),
            "the first was dropped without close"
        );
        opened.store.close().expect("closed");
        let refused = opened.store.insert(Tree::Data, b"k", b"v").expect_err("closed");
        assert!(refused.to_string().contains("closed; nothing was written"), "{refused}");
        opened.store.sync().expect_err("closed");
        drop(opened);
        let third = open_n1(dir.path()).expect("it opens again").identity;
        assert_eq!((third.boot, third.clean, third.disk), (3, true, first.disk));
    }

    #[test]
    fn another_nodes_or_clusters_directory_is_refused_and_left_alone() {
        let dir = filled(true);
        let before = fs::read(sidecar::path(dir.path())).expect("written");
        let log = dir.path().join(ENGINE_DIR).join("db");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("set");
        fs::set_permissions(&log, Permissions::from_mode(0o644)).expect("set");
        let modes = || [dir.path(), &log].map(|path| fs::metadata(path).expect("there").permissions().mode() & 0o777);
        for (cluster, name) in [(CLUSTER, "n2"), (ClusterId(0xc2), "n1")] {
            let make_room = || panic!("another node's directory is made room in");
            let opened =
                open_once_locked(dir.path(), cluster, node(name), &Random::from_seed(2), &options(), make_room);
            let error = opened.expect_err("foreign");
            let text = error.to_string();
            assert!(matches!(error, StoreError::Foreign(_)), "{text}");
            assert!(text.contains("node n1 of cluster") && text.contains(&format!("as node {name} of")), "{text}");
        }
        assert_eq!(fs::read(sidecar::path(dir.path())).expect("there"), before);
        assert_eq!(modes(), [0o755, 0o644]);
        assert_eq!(open_n1(dir.path()).expect("its own").quarantined, None);
        assert_eq!(modes(), [0o700, 0o600]);
    }

    #[test]
    fn a_directory_in_use_is_refused_after_a_bounded_wait() {
        let dir = tempfile::tempdir().expect("a directory");
        let opened = open_n1(dir.path()).expect("a new directory");
        let make_room = || panic!("the directory of a node that runs is made room in");
        let again = open_once_locked(dir.path(), CLUSTER, node("n1"), &Random::from_seed(1), &options(), make_room);
        let error = again.expect_err("in use");
        assert!(matches!(&error, StoreError::Locked(path) if path.contains(&*dir.path().to_string_lossy())), "{error}");
        let boot = || sidecar::read(dir.path()).expect("whole").expect("there").boot;
        assert_eq!(boot(), 1, "a refused start does not count");
        let release = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            drop(opened);
        });
        let mut boot_then = None;
        let make_room = || boot_then = Some(boot());
        open_once_locked(dir.path(), CLUSTER, node("n1"), &Random::from_seed(1), &options(), make_room)
            .expect("let go within the wait");
        assert_eq!(boot_then, Some(1), "there is to be room before anything is written");
        release.join().expect("no panic");
    }

    #[test]
    fn a_log_cut_to_any_part_is_set_aside_once_and_then_quarantined() {
        for (clean, part) in [(true, 0.0), (true, 0.5), (true, 0.9), (false, 0.1), (false, 0.5)] {
            let dir = filled(clean);
            let log = dir.path().join(ENGINE_DIR).join("db");
            let cut = |log: &Path| {
                let file = File::options().write(true).open(log).expect("there");
                let length = file.metadata().expect("there").len();
                file.set_len((length as f64 * part) as u64).expect("cut");
            };
            cut(&log);
            let before = sidecar::read(dir.path()).expect("whole").expect("there");
            let case = format!("clean: {clean}, cut to {part}");

            let opened = open_n1(dir.path()).expect("it starts");
            assert_eq!(opened.quarantined, None, "{case}");
            assert_ne!(opened.identity.disk, before.disk, "{case}: not noticed");
            assert_eq!((opened.identity.boot, opened.identity.clean), (before.boot + 1, true));
            assert_eq!(opened.store.get(Tree::Data, &key(1)).expect("empty, under another disk id"), None);
            assert!(dir.path().join(DAMAGED_DIR).join("db").exists(), "{case}: the evidence is kept");
            for i in 0..RECORDS {
                opened.store.insert(Tree::Data, &key(i), &value(i)).expect("room");
            }
            let fresh = opened.identity.disk;
            opened.store.close().expect("closed");
            drop(opened);

            cut(&log);
            let opened = open_n1(dir.path()).expect("it starts");
            assert_eq!(opened.identity.disk, fresh);
            let reason = opened.quarantined.clone().unwrap_or_else(|| panic!("{case}: not noticed"));
            assert!(reason.contains("sled.damaged away and start again"), "{reason}");
            let error = opened.store.get(Tree::Data, &key(1)).expect_err("never 'not found'");
            assert!(matches!(error, StoreError::Quarantined(_)), "{case}: {error}");
            opened.store.insert(Tree::Data, &key(1), b"v").expect_err("takes nothing");
            opened.store.scan(Tree::Data, b"", None, 1, 1).expect_err("knows nothing");
            opened.store.keys(Tree::Data, b"", None, 1).expect_err("knows nothing");
            opened.store.sync().expect("nothing to do");
            let after = fs::metadata(&log).map(|m| m.modified().expect("a time")).ok();
            drop(opened);
            let again = open_n1(dir.path()).expect("it starts");
            assert_eq!(again.quarantined, Some(reason), "{case}");
            assert_eq!(fs::metadata(&log).map(|m| m.modified().expect("a time")).ok(), after, "{case}: touched again");
            drop(again);

            // What the reason says to do.
            fs::remove_dir_all(dir.path().join(DAMAGED_DIR)).expect("there");
            let fresher = open_n1(dir.path()).expect("it starts");
            assert_eq!(fresher.quarantined, None, "{case}");
            assert_ne!(fresher.identity.disk, fresh, "{case}");
            assert_eq!(fresher.store.get(Tree::Data, &key(1)).expect("empty"), None);
        }
    }

    #[test]
    fn a_crash_between_setting_aside_and_beginning_anew_goes_on() {
        let dir = filled(true);
        let content = sidecar::read(dir.path()).expect("whole").expect("there");
        let damaged = Content { quarantined: Some("it is damaged".to_owned()), ..content.clone() };
        sidecar::write(dir.path(), &damaged).expect("room");
        fs::rename(dir.path().join(ENGINE_DIR), dir.path().join(DAMAGED_DIR)).expect("moved");
        let opened = open_n1(dir.path()).expect("it starts");
        assert_eq!(opened.quarantined, None);
        assert_ne!(opened.identity.disk, content.disk);
    }

    #[test]
    fn flipped_bytes_are_never_a_wrong_answer() {
        let source = filled(true);
        let log = source.path().join(ENGINE_DIR).join("db");
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
            let _ = fs::remove_dir_all(source.path().join(DAMAGED_DIR));
            fs::remove_dir_all(source.path().join(ENGINE_DIR)).expect("there");
            fs::create_dir_all(source.path().join(ENGINE_DIR).join("blobs")).expect("room");
            sidecar::write(source.path(), &before).expect("room");
        }
        assert!(quarantined + corrupt > 0, "{quarantined} quarantined, {corrupt} corrupt, {harmless} harmless");
    }

    #[test]
    fn an_engine_that_is_gone_or_not_this_disks_gives_way_to_an_empty_one() {
        let replaced = |dir: &tempfile::TempDir| {
            let before = sidecar::read(dir.path()).expect("whole").expect("there").disk;
            let opened = open_n1(dir.path()).expect("it starts");
            assert_eq!(opened.store.get(Tree::Meta, b"layout").expect("readable"), None);
            opened.identity.disk != before && opened.quarantined.is_none()
        };
        let gone = filled(true);
        fs::remove_dir_all(gone.path().join(ENGINE_DIR)).expect("there");
        assert!(replaced(&gone), "vanished");
        assert!(!gone.path().join(DAMAGED_DIR).exists(), "there is no evidence");

        let (dir, other) = (filled(true), tempfile::tempdir().expect("a directory"));
        let seed = Random::from_seed(99);
        open(other.path(), CLUSTER, node("n1"), &seed, &options()).expect("new").store.close().expect("closed");
        fs::remove_dir_all(dir.path().join(ENGINE_DIR)).expect("there");
        fs::rename(other.path().join(ENGINE_DIR), dir.path().join(ENGINE_DIR)).expect("moved");
        assert!(replaced(&dir), "another disk's");

        let dir = filled(true);
        let (copy, engine) = (dir.path().join("copy"), dir.path().join(ENGINE_DIR));
        copy_dir(&engine, &copy);
        let opened = open_n1(dir.path()).expect("whole");
        opened.store.insert(Tree::Data, b"later", b"v").expect("room");
        opened.store.close().expect("closed");
        drop(opened);
        fs::remove_dir_all(&engine).expect("there");
        fs::rename(&copy, &engine).expect("moved");
        assert!(replaced(&dir), "an older copy");
    }

    fn copy_dir(from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("room");
        for entry in fs::read_dir(from).expect("there") {
            let entry = entry.expect("readable");
            if entry.file_type().expect("a type").is_dir() {
                copy_dir(&entry.path(), &to.join(entry.file_name()));
            } else {
                fs::copy(entry.path(), to.join(entry.file_name())).expect("room");
            }
        }
    }

    #[test]
    fn data_without_a_sidecar_and_a_damaged_sidecar_are_refused_with_the_way_out() {
        let dir = filled(true);
        let path = sidecar::path(dir.path());
        let text = fs::read_to_string(&path).expect("there");
        fs::write(&path, text.replace("\"n1\"", "\"n2\"")).expect("room");
        let error = open_n1(dir.path()).expect_err("changed by hand");
        assert!(matches!(error, StoreError::Corrupt(_)) && error.to_string().contains("checksum"), "{error}");
        fs::remove_file(&path).expect("there");
        let error = open_n1(dir.path()).expect_err("whose data is it");
        assert!(matches!(error, StoreError::Quarantined(_)), "{error}");
        assert!(error.to_string().contains("restore the file"), "{error}");
        assert!(!path.exists(), "no new identity beside old data");
        fs::write(&path, text).expect("room");
        let opened = open_n1(dir.path()).expect("restored");
        assert_eq!(opened.quarantined, None);
        assert_eq!(opened.store.get(Tree::Data, &key(5)).expect("readable").as_deref(), Some(&value(5)[..]));
    }

    #[test]
    fn a_start_that_died_while_it_made_the_directory_is_finished_by_the_next() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(open_n1(dir.path()).expect("a new directory"));
        let content = sidecar::read(dir.path()).expect("whole").expect("there");
        for engine_kept in [true, false] {
            sidecar::write(dir.path(), &Content { stamp: 0, ..content.clone() }).expect("room");
            if !engine_kept {
                fs::remove_dir_all(dir.path().join(ENGINE_DIR)).expect("there");
            }
            let opened = open_n1(dir.path()).expect("it starts");
            assert_eq!((opened.quarantined, opened.identity.disk), (None, content.disk));
        }
    }

    #[test]
    fn the_sidecar_knows_of_data_before_the_first_record_is_in() {
        let dir = tempfile::tempdir().expect("a directory");
        let has_data = || sidecar::read(dir.path()).expect("whole").expect("there").has_data;
        let opened = open_n1(dir.path()).expect("a new directory");
        opened.store.insert(Tree::Meta, b"layout", b"v").expect("room");
        assert!(!has_data(), "metadata is no record");
        opened.store.insert(Tree::Data, b"k", b"v").expect("room");
        assert!(has_data());
        opened.store.remove(Tree::Data, b"k").expect("room");
        opened.store.close().expect("closed");
        assert!(!has_data(), "all of it was removed in order");
        drop(opened);
        assert_eq!(open_n1(dir.path()).expect("it opens").quarantined, None);
    }

    #[test]
    fn the_number_of_records_survives_a_clean_stop() {
        let dir = filled(true);
        let opened = open_n1(dir.path()).expect("whole");
        assert_eq!(opened.store.stats().records_estimate, u64::from(RECORDS));
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
