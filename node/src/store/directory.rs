//! A node's data directory: whose it is, who has it open, and what becomes of an engine that is damaged.
//!
//! ```text
//!   DIR/lock              held as long as the store is open; names the process
//!   DIR/quorate.json      the sidecar: whose directory, and what must be found in the engine
//!   DIR/ENGINE/           the engine's files, as in `sled/`
//!   DIR/ENGINE.damaged/   an engine that was found damaged, kept as evidence
//!   DIR/quorate.json.DISK the sidecar of an engine that was given up: with it the engine is taken again once it is put back. Those of
//!                         the last eight are kept, and each may be removed by hand
//! ```
//!
//! All of it is the same for every [`Engine`].

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use quorate_wire::ids::{ClusterId, DiskId, NodeId};
use quorate_wire::random::Random;

use super::engine::{Engine, EngineError, EngineTree, Refusal};
use super::on_disk::{DiskStore, STAMP_KEY, open_stamp};
use super::private;
use super::quarantine::QuarantinedStore;
use super::sidecar::{self, Content};
use super::{Identity, Opened, StoreError, Tree, with_descriptors};

/// Opens a node's data directory, or makes it; [`sled::open`](super::sled::open) says what its callers are promised. `make_room` is called
/// once this process holds the directory's lock and knows that it is this node's, before anything in it is written.
pub(super) fn open<E: Engine>(
    dir: &Path,
    cluster: ClusterId,
    node: NodeId,
    random: &Random,
    options: &E::Options,
    make_room: impl FnOnce(),
) -> Result<Opened, StoreError> {
    let new = !is_there(dir)?;
    check_ours::<E>(dir)?;
    fs::create_dir_all(dir)
        .map_err(|e| StoreError::from_io(&format!("making the data directory {}", dir.display()), &e))?;
    let lock = lock(dir)?;
    let engine_dir = dir.join(E::NAME);
    let engine_there = engine_is_there::<E>(&engine_dir)?;
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
    let mut identity = Identity { cluster, node, disk: content.disk, boot: content.boot, clean: content.clean };
    content.clean = false;
    sidecar::write(dir, &content)?;
    if content.boot == 1 {
        sync_parent(dir)?;
    }

    let made = content.stamp > 0;
    let opened = match &content.quarantined {
        Some(_) => None,
        None if made && !engine_there => Some(Err(Refusal::Damaged("its files are gone".to_owned()))),
        None => Some(open_engine::<E>(dir, &content, options)),
    };
    match opened {
        Some(Ok((engine, found))) => {
            if found.disk != content.disk {
                tracing::warn!(disk = %found.disk, other = %content.disk,
                    "the engine of an earlier disk of this node was put back, and the node goes on with it");
                // The other one's engine may come back as well.
                sidecar::keep(dir, &Content { clean: identity.clean, ..content })?;
                (identity.disk, identity.clean) = (found.disk, found.clean);
            }
            let content = Content { boot: identity.boot, clean: false, ..found };
            let store = DiskStore::start(dir, engine, content, E::stamp_bytes(options), lock)?;
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
    let aside = dir.join(format!("{}.damaged", E::NAME));
    let anything_there = is_entry(&engine_dir)?;
    if !anything_there || !is_entry(&aside)? {
        let lost = content.disk;
        sidecar::keep(dir, &Content { quarantined: None, ..content.clone() })?;
        if anything_there {
            set_aside(dir, &engine_dir, &aside)?;
        }
        let fresh = loop {
            let drawn = DiskId(random.u128());
            // Not even by a generator that began anew with its old seed.
            if drawn != lost {
                break drawn;
            }
        };
        content = Content { disk: fresh, has_data: false, stamp: 0, records: 0, quarantined: None, ..content };
        sidecar::write(dir, &content)?;
        let (kept, whole) = (sidecar::kept_path(dir, lost), engine_dir.display());
        tracing::error!(%lost, disk = %content.disk, aside = %aside.display(),
            "{damage}. What there was of it was moved aside, and the node begins with an empty disk: other owners bring back what it held. \
             Should the store of disk {lost} turn up whole: stop the node, move {whole} away, put that store in its place and keep {}; the \
             next start goes on with it", kept.display());
        return match open_engine::<E>(dir, &content, options) {
            Ok((engine, content)) => {
                let identity = Identity { disk: content.disk, clean: true, ..identity };
                let store = DiskStore::start(dir, engine, content, E::stamp_bytes(options), lock)?;
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

/// Refuses a directory without a sidecar that holds what no node has made: the first start would close it to everybody else. Nothing is
/// changed, or made.
pub(super) fn check_ours<E: Engine>(dir: &Path) -> Result<(), StoreError> {
    if !is_there(dir)? || is_there(&sidecar::path(dir))? || engine_is_there::<E>(&dir.join(E::NAME))? {
        return Ok(());
    }
    let failed = |e: &io::Error| StoreError::from_io(&format!("listing the data directory {}", dir.display()), e);
    for entry in fs::read_dir(dir).map_err(|e| failed(&e))? {
        let name = entry.map_err(|e| failed(&e))?.file_name();
        // A file system of its own has this one.
        if name != "lost+found" && !private::is_ours(&name) {
            return Err(StoreError::Occupied(format!(
                "{} is not empty and is not a data directory of Quorate: it holds {}. Nothing was changed; name a new directory or an \
                 empty one",
                dir.display(),
                Path::new(&name).display()
            )));
        }
    }
    Ok(())
}

/// Whether there is something at this path. Only what is said not to be there is not there: what may not be looked at, or cannot,
/// says nothing of what is in it, and no start goes on from there.
fn is_there(path: &Path) -> Result<bool, StoreError> {
    known(path, fs::metadata(path).map(|_| true))
}

/// As [`is_there`]; a link is there also if what it leads to is not.
fn is_entry(path: &Path) -> Result<bool, StoreError> {
    known(path, fs::symlink_metadata(path).map(|_| true))
}

/// Whether the files of an engine are there.
fn engine_is_there<E: Engine>(engine_dir: &Path) -> Result<bool, StoreError> {
    if is_entry(engine_dir)? && !is_there(engine_dir)? {
        return Err(StoreError::Io(format!(
            "{} is a link that leads nowhere: is the disk that it leads to not mounted? Nothing was changed",
            engine_dir.display()
        )));
    }
    known(engine_dir, with_descriptors(|| E::is_there(engine_dir)))
}

fn known(path: &Path, found: io::Result<bool>) -> Result<bool, StoreError> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        found => found.map_err(|error| {
            let path = path.display();
            StoreError::Io(format!(
                "cannot tell what is in {path}: {error}. Nothing was changed: let this user read and write {path} and all that is in it"
            ))
        }),
    }
}

/// Opens the engine in a data directory and compares it with the sidecar, or with the kept one of the disk that it is the engine of;
/// with what the sidecar has to say from now on.
fn open_engine<E: Engine>(data_dir: &Path, content: &Content, options: &E::Options) -> Result<(E, Content), Refusal> {
    let dir = &data_dir.join(E::NAME);
    let engine = E::open(dir, options)?;
    // A damaged engine may open without a word, and panic when it is read.
    let read = || -> Result<_, EngineError> {
        let stamp = engine.get(EngineTree::Directory, STAMP_KEY)?;
        let first = engine.keys(EngineTree::Store(Tree::Data), b"", None).next().transpose()?;
        Ok((stamp, first.is_none()))
    };
    let (stamp, empty) = match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(Refusal::of(error, dir)),
        Err(panic) => return Err(Refusal::of_panic::<E>(&*panic, dir)),
    };
    let mut content = content.clone();
    content.stamp = match stamp {
        None if content.stamp == 0 => 0,
        None => return Err(Refusal::Damaged("it opens as if it were new".to_owned())),
        Some(value) => {
            let Some((disk, stamp)) = open_stamp(&value) else {
                return Err(Refusal::Damaged("its stamp fails its checksum".to_owned()));
            };
            if disk != content.disk {
                content = earlier(data_dir, &content, disk)?;
            }
            let want = content.stamp;
            if stamp < want {
                return Err(Refusal::Damaged(format!(
                    "the end of its log is lost: stamp {stamp} found, {want} expected"
                )));
            }
            stamp
        }
    };
    if content.has_data && empty {
        return Err(Refusal::Damaged("there were records, and none is left".to_owned()));
    }
    Ok((engine, content))
}

/// The sidecar of an earlier disk of this node, whose engine was found. It is no danger that the node has lived on another disk since:
/// its beacons went on above this one's, so that others tell it what it lacks (see [`beacons`](crate::beacons)).
fn earlier(dir: &Path, content: &Content, disk: DiskId) -> Result<Content, Refusal> {
    let of_another = |why: &str| Refusal::Damaged(format!("it is the engine of disk {disk}, {why}"));
    match sidecar::kept(dir, disk) {
        Ok(Some(kept)) if (kept.cluster, kept.node, kept.disk) == (content.cluster, content.node, disk) => Ok(kept),
        Ok(Some(_)) => Err(of_another("which was another node's")),
        Ok(None) => Err(of_another("which this node has not had")),
        Err(StoreError::Corrupt(why)) => Err(of_another(&format!("and {why}"))),
        Err(error) => Err(Refusal::Failed(error)),
    }
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

/// Two seconds in all: what a stopped process may still hold is let go within milliseconds, so whoever holds it longer is alive.
const LOCK_TRIES: u32 = 40;
const LOCK_WAIT: Duration = Duration::from_millis(50);

#[cfg(test)]
pub(super) mod tests {
    use std::ffi::OsString;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use tempfile::TempDir;

    use super::*;
    use crate::store::contract::Subject;
    use crate::store::{SledOptions, Store, open, open_once_locked};

    pub(in crate::store) const CLUSTER: ClusterId = ClusterId(0xc1);

    pub(in crate::store) fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("legal")
    }

    /// Stamps often, so that small logs can show what large ones do.
    pub(in crate::store) fn options() -> SledOptions {
        SledOptions { cache_bytes: 32 << 20, stamp_bytes: 64 << 10 }
    }

    pub(in crate::store) fn open_n1(dir: &Path) -> Result<Opened, StoreError> {
        open(dir, CLUSTER, node("n1"), &Random::from_seed(1), &options())
    }

    pub(in crate::store) fn key(i: u32) -> [u8; 4] {
        i.to_be_bytes()
    }

    pub(in crate::store) fn value(i: u32) -> Vec<u8> {
        i.to_le_bytes().repeat(50)
    }

    /// A directory with 4,000 synced records, closed or as a crash leaves it.
    pub(in crate::store) fn filled(clean: bool) -> TempDir {
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

    pub(in crate::store) const RECORDS: u32 = 4000;

    /// A data directory for the contract of engines.
    pub(in crate::store) struct OnDisk<E: Engine> {
        dir: TempDir,
        options: E::Options,
        store: Option<Arc<DiskStore<E>>>,
    }

    impl<E: Engine> OnDisk<E> {
        pub(in crate::store) fn new(options: E::Options) -> Self {
            let mut made = Self { dir: tempfile::tempdir().expect("a directory"), options, store: None };
            made.open();
            made
        }

        fn open(&mut self) {
            let dir = self.dir.path();
            let opened = super::open::<E>(dir, CLUSTER, node("n1"), &Random::from_seed(1), &self.options, || ())
                .expect("it opens");
            assert_eq!(opened.quarantined, None);
            drop(opened);
            // The same by hand, for the concrete type.
            let content = sidecar::read(dir).expect("whole").expect("there");
            let (engine, content) = open_engine::<E>(dir, &content, &self.options).expect("whole");
            let lock = lock(dir).expect("not in use");
            let store = DiskStore::start(dir, engine, content, E::stamp_bytes(&self.options), lock);
            self.store = Some(Arc::new(store.expect("it starts")));
        }
    }

    impl<E: Engine> Subject for OnDisk<E> {
        fn store(&self) -> Arc<dyn Store> {
            Arc::<DiskStore<E>>::clone(self.store.as_ref().expect("open"))
        }
        fn reopen(&mut self) {
            drop(Arc::into_inner(self.store.take().expect("open")).expect("nobody else holds it"));
            self.open();
        }
        fn flip_bit(&self, tree: Tree, key: &[u8]) -> bool {
            self.store.as_ref().expect("open").flip_bit(tree, key)
        }
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
        let log = dir.path().join("sled").join("db");
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
            let log = dir.path().join("sled").join("db");
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
            assert!(dir.path().join("sled.damaged").join("db").exists(), "{case}: the evidence is kept");
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
            fs::remove_dir_all(dir.path().join("sled.damaged")).expect("there");
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
        fs::rename(dir.path().join("sled"), dir.path().join("sled.damaged")).expect("moved");
        let opened = open_n1(dir.path()).expect("it starts");
        assert_eq!(opened.quarantined, None);
        assert_ne!(opened.identity.disk, content.disk);
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
        fs::remove_dir_all(gone.path().join("sled")).expect("there");
        assert!(replaced(&gone), "vanished");
        assert!(!gone.path().join("sled.damaged").exists(), "there is no evidence");

        let (dir, other) = (filled(true), tempfile::tempdir().expect("a directory"));
        let seed = Random::from_seed(99);
        open(other.path(), CLUSTER, node("n1"), &seed, &options()).expect("new").store.close().expect("closed");
        fs::remove_dir_all(dir.path().join("sled")).expect("there");
        fs::rename(other.path().join("sled"), dir.path().join("sled")).expect("moved");
        assert!(replaced(&dir), "another disk's");

        let dir = filled(true);
        let (copy, engine) = (dir.path().join("copy"), dir.path().join("sled"));
        copy_dir(&engine, &copy);
        let opened = open_n1(dir.path()).expect("whole");
        opened.store.insert(Tree::Data, b"later", b"v").expect("room");
        opened.store.close().expect("closed");
        drop(opened);
        fs::remove_dir_all(&engine).expect("there");
        fs::rename(&copy, &engine).expect("moved");
        assert!(replaced(&dir), "an older copy");
    }

    #[test]
    fn a_directory_with_other_things_in_it_is_left_as_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data");
        fs::create_dir(&data).expect("room");
        fs::write(data.join("thesis.tex"), b"mine").expect("room");
        let mode = |mode: u32| fs::set_permissions(&data, Permissions::from_mode(mode)).expect("set");
        let mode_now = || fs::metadata(&data).expect("there").permissions().mode() & 0o7777;
        let names = || -> Vec<OsString> {
            fs::read_dir(&data).expect("there").map(|e| e.expect("readable").file_name()).collect()
        };
        mode(0o1777);
        let error = open_n1(&data).expect_err("somebody else's");
        assert!(matches!(&error, StoreError::Occupied(text) if text.contains("thesis.tex")), "{error}");
        assert_eq!((mode_now(), names()), (0o1777, vec![OsString::from("thesis.tex")]));

        // What a first start leaves that was killed before it had a sidecar, on a file system of its own.
        fs::remove_file(data.join("thesis.tex")).expect("there");
        for name in ["lock", "ballast", "quorate.json.new"] {
            fs::write(data.join(name), b"").expect("room");
        }
        fs::create_dir(data.join("lost+found")).expect("room");
        assert_eq!(open_n1(&data).expect("ours").identity.boot, 1);
        assert_eq!(mode_now() & 0o077, 0, "it is tightened");
        fs::write(data.join("notes"), b"beside").expect("room");
        assert_eq!(open_n1(&data).expect("it has a sidecar").identity.boot, 2);
    }

    #[test]
    fn an_engine_that_cannot_be_looked_at_is_not_gone() {
        use std::os::unix::fs::symlink;

        let dir = filled(true);
        let (engine, away) = (dir.path().join("sled"), dir.path().join("away"));
        let before = fs::read(sidecar::path(dir.path())).expect("there");
        let refused = |hurt: &dyn Fn(), mend: &dyn Fn(), words: &str| {
            hurt();
            let error = open_n1(dir.path()).expect_err("nobody knows what is there").to_string();
            assert!(
                error.contains("sled") && error.contains(words) && error.contains("Nothing was changed"),
                "{error}"
            );
            mend();
            assert_eq!(fs::read(sidecar::path(dir.path())).expect("there"), before, "{words}");
            assert!(!dir.path().join("sled.damaged").exists(), "{words}");
        };
        let moved = || fs::rename(&engine, &away).expect("moved");
        let back = || {
            fs::remove_file(&engine).expect("there");
            fs::rename(&away, &engine).expect("moved");
        };
        // What may not be read cannot be shown to a test that root runs; these are other answers that are not "it is not there".
        let to = |target: &Path| {
            moved();
            symlink(target, &engine).expect("linked");
        };
        refused(&|| to(&engine), &back, "symbolic links");
        refused(&|| to(&dir.path().join("not mounted")), &back, "leads nowhere");
        let file = || {
            moved();
            fs::write(&engine, b"").expect("room");
        };
        refused(&file, &back, "Not a directory");
        let opened = open_n1(dir.path()).expect("as before");
        assert_eq!(opened.store.get(Tree::Data, &key(5)).expect("readable").as_deref(), Some(&value(5)[..]));
    }

    #[test]
    fn an_engine_that_is_put_back_is_taken_again() {
        let dir = filled(true);
        let (engine, away, fresh) = (dir.path().join("sled"), dir.path().join("away"), dir.path().join("sled.fresh"));
        let first = sidecar::read(dir.path()).expect("whole").expect("there").disk;
        fs::rename(&engine, &away).expect("moved");
        let opened = open_n1(dir.path()).expect("it begins anew");
        let second = opened.identity.disk;
        assert_ne!(second, first);
        opened.store.insert(Tree::Data, b"second", b"v").expect("room");
        opened.store.close().expect("closed");
        drop(opened);

        fs::rename(&engine, &fresh).expect("moved");
        fs::rename(&away, &engine).expect("moved");
        for boot in 3..=4 {
            let opened = open_n1(dir.path()).expect("it is put back");
            let found = (opened.identity.disk, opened.identity.boot, opened.quarantined.clone());
            assert_eq!(found, (first, boot, None), "the starts are counted over all disks");
            assert_eq!(opened.store.get(Tree::Data, &key(5)).expect("readable").as_deref(), Some(&value(5)[..]));
            opened.store.close().expect("closed");
        }
        assert!(!dir.path().join("sled.damaged").exists());

        fs::rename(&engine, &away).expect("moved");
        fs::rename(&fresh, &engine).expect("moved");
        let opened = open_n1(dir.path()).expect("the other one is put back");
        assert_eq!((opened.identity.disk, opened.identity.clean), (second, true));
        assert_eq!(opened.store.get(Tree::Data, b"second").expect("readable").as_deref(), Some(&b"v"[..]));
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
                fs::remove_dir_all(dir.path().join("sled")).expect("there");
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
}
