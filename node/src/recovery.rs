//! What a replica has lost, and so must not speak of until others have told it.
//!
//! A replica that lost what it had acknowledged (its disk was emptied, exchanged, rolled back or damaged) is **recovering**: it
//! takes writes, which count for W, but it answers no read, never says that a key is absent, and is no complete source for
//! others. It serves again what it has exchanged completely, leaf by leaf:
//!
//! - with N - w + 1 owners that are not recovering there, where w is the layout's floor for writes, it serves every read whose
//!   R + W > N speaks of writes at or above the floor ([`Reading::AboveFloor`]): any write that w owners had acknowledged, this
//!   one among them, is held by one of those;
//! - with all N - 1 others, whatever their state, it serves every read: nobody holds more. So a power cut that takes
//!   something from all ends. Until then the leaf is **partly** recovered, and a read of R > N - w + 1, which promises to find
//!   writes that fewer than w owners have acknowledged, is refused here.
//!
//! What is lost is noted on disk before anything can take its place, so that a restart does not forget it.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use quorate_wire::codec::{self, Blob};
use quorate_wire::ids::{DiskId, LayoutVersion, NodeId, Partition};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::partitions::Partitions;
use crate::store::{Store, StoreError, Tree};
use quorate_core::losses::{self, Losses, Note, Unserved};
pub use quorate_core::losses::{Lost, Reading, Reason};
use quorate_core::merkle::{LEAVES, Leaves};
use quorate_core::partition::PartitionState;

/// What is lost on one node. Clones share it.
#[derive(Clone)]
pub struct Recovery(Arc<Shared>);

struct Shared {
    store: Arc<dyn Store>,
    /// What is lost of each partition.
    partitions: Partitions,
    /// The [`Doubt`]s, a bit each.
    doubts: AtomicU8,
    /// See [`Recovery::judged`]; [`TRUSTED`] if this disk is trusted.
    judged: AtomicU64,
    /// Held while what is lost changes and is noted, so that the notes on the disk follow each other like the changes. It is taken
    /// after a key's lock and before a partition's.
    notes: Mutex<Notes>,
    /// Wakes whoever recovers.
    lost: Notify,
}

/// The recovery under way.
#[derive(Debug, Clone, Copy, Default)]
struct Notes {
    /// Its partitions, those that are done included.
    total: u32,
    since: Option<Instant>,
}

/// Whoever has it may change what is lost, and notes that.
pub(crate) struct Noting<'a> {
    recovery: &'a Recovery,
    notes: MutexGuard<'a, Notes>,
}

/// What is not known yet, so that all is taken for lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// The layout, and so whether this disk is the one that it names.
    Layout = 1,
    /// What a disk lacks that was set back.
    SetBack = 2,
    /// Whether another node remembers this one further ahead: it has just started.
    Start = 4,
}

/// What a start is judged by.
#[derive(Debug, Clone)]
pub struct Facts {
    /// This disk.
    pub disk: DiskId,
    /// The disk that the layout names for this node; nothing if it does not name the node.
    pub named: Option<DiskId>,
    /// The partitions that the node owns.
    pub owned: Vec<Partition>,
    /// The stop before this start was unclean.
    pub unclean: bool,
    /// From now on writes are acknowledged before they are synced.
    pub interval: bool,
}

/// How a recovery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Why, the gravest reason.
    pub reason: Reason,
    /// Partitions of which something is served to no read.
    pub left: u32,
    /// Partitions of which something was lost when it began, or later.
    pub total: u32,
    /// Since when.
    pub since: Instant,
}

/// A look at what is lost of a partition, to be confirmed after what was looked at has been read.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    partition: Partition,
    look: losses::Look,
}

/// As it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    reason: Reason,
    leaves: Blob,
    partly: Blob,
}

impl Recovery {
    /// Goes on from what the store knows. Blocking.
    ///
    /// # Errors
    /// When it cannot be read, or is something else.
    pub fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let partitions = Partitions::default();
        let mut total = 0;
        let to = [PREFIX, &[u8::MAX; 3]].concat();
        for key in store.keys(Tree::Meta, PREFIX, Some(&to), usize::MAX)? {
            let number = key.strip_prefix(PREFIX).and_then(|number| number.try_into().ok());
            let Some(partition) = number.map(|number| Partition(u16::from_be_bytes(number))) else { continue };
            let value = match store.get(Tree::Meta, &key) {
                Ok(value) => value,
                Err(StoreError::Corrupt(_)) => None,
                Err(error) => return Err(error),
            };
            // A note that is damaged still says of which partition something is lost.
            let noted = value.as_ref().and_then(decode);
            let (reason, leaves, partly) = noted.unwrap_or((Reason::Corrupt, Leaves::ALL, Leaves::NONE));
            total += u32::from(!leaves.is_empty());
            partitions.restore(partition, PartitionState::restored(Losses::restored(reason, leaves, partly)));
        }
        let judged = match store.get(Tree::Meta, JUDGED_KEY) {
            Ok(None) => TRUSTED,
            Ok(Some(version)) => version.as_ref().try_into().map(u64::from_be_bytes).unwrap_or(0),
            Err(StoreError::Corrupt(_)) => 0,
            Err(error) => return Err(error),
        };
        let notes = Mutex::new(Notes { total, since: (total > 0).then(Instant::now) });
        let (doubts, judged) = (AtomicU8::new(0), AtomicU64::new(judged));
        Ok(Self(Arc::new(Shared { store, partitions, doubts, judged, notes, lost: Notify::new() })))
    }

    /// The states of the partitions that it is about.
    pub fn states(&self) -> &Partitions {
        &self.0.partitions
    }

    /// Nothing is served until this doubt is [settled](Self::settle).
    pub fn doubt(&self, doubt: Doubt) {
        self.0.doubts.fetch_or(doubt as u8, Ordering::SeqCst);
    }

    /// Whether it is still to be noted what this disk lacks, which only its state at the start tells.
    pub fn must_be_judged(&self) -> bool {
        self.0.doubts.load(Ordering::SeqCst) & (Doubt::Layout as u8 | Doubt::SetBack as u8) != 0
    }

    /// Whether it is not known what this disk lacks, or not yet.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.0.doubts.load(Ordering::SeqCst) != 0
    }

    /// What is lost, as far as this doubt goes, is noted now.
    pub fn settle(&self, doubt: Doubt) {
        self.0.doubts.fetch_and(!(doubt as u8), Ordering::SeqCst);
        self.0.lost.notify_one();
    }

    /// Judges a start under a layout, notes durably what is lost, and settles [`Doubt::Layout`]. Blocking.
    ///
    /// # Errors
    /// When the store fails; the doubt stays then.
    pub fn decide(&self, facts: &Facts) -> Result<(), StoreError> {
        let store = &*self.0.store;
        // A note that is damaged counts as missing where that loses more, and as there where that does.
        let note = |key, damaged: &'static [u8]| match store.get(Tree::Meta, key) {
            Err(StoreError::Corrupt(_)) => Ok(Some(bytes::Bytes::from_static(damaged))),
            other => other,
        };
        let mut changed = false;
        if let Some(named) = facts.named.filter(|named| *named != facts.disk) {
            // Noted once for this layout's disk, so that a restart does not begin anew.
            let noted = [named.0.to_be_bytes(), facts.disk.0.to_be_bytes()].concat();
            if note(DISK_KEY, b"")?.as_deref() != Some(&noted) {
                self.lose_all(&facts.owned, Reason::OtherDisk)?;
                store.insert(Tree::Meta, DISK_KEY, &noted)?;
                changed = true;
            }
        }
        let was_interval = note(MODE_KEY, INTERVAL)?.as_deref() == Some(INTERVAL);
        if was_interval && facts.unclean {
            self.lose_all(&facts.owned, Reason::Unclean)?;
            changed = true;
        }
        if was_interval != facts.interval {
            store.insert(Tree::Meta, MODE_KEY, if facts.interval { INTERVAL } else { b"synced" })?;
            changed = true;
        }
        if changed {
            store.sync()?;
        }
        self.settle(Doubt::Layout);
        Ok(())
    }

    /// If this disk is not the one that this node has last lived on, or not as it was then: the newest layout by which it was judged what it
    /// lacks. The node may have known and served a newer one, which it has to learn again; what it owns under that is lost as well.
    pub fn judged(&self) -> Option<LayoutVersion> {
        Some(self.0.judged.load(Ordering::SeqCst)).filter(|version| *version != TRUSTED).map(LayoutVersion)
    }

    /// What this disk lacks is noted, as far as this layout goes; see [`judged`](Self::judged). On its way to the disk when this returns.
    /// Blocking.
    ///
    /// # Errors
    /// When the store does not take it; then it is to be noted again.
    pub fn note_judged(&self, version: LayoutVersion) -> Result<(), StoreError> {
        self.0.store.insert(Tree::Meta, JUDGED_KEY, &version.0.to_be_bytes())?;
        self.0.judged.store(version.0, Ordering::SeqCst);
        Ok(())
    }

    /// All of these partitions are lost; see [`lose`](Self::lose).
    ///
    /// # Errors
    /// As `lose`; some of them may have been noted then.
    pub fn lose_all(&self, partitions: &[Partition], reason: Reason) -> Result<(), StoreError> {
        tracing::warn!(partitions = partitions.len(), %reason, "recovering: reads are refused until the other owners were asked");
        partitions.iter().try_for_each(|partition| self.lose(*partition, &Leaves::ALL, reason))
    }

    /// Something is lost. It is on its way to the disk when this returns, ahead of whatever is written later. Blocking.
    ///
    /// # Errors
    /// When the store does not take it. Then it is lost as long as this process lives: nothing of it is served, and what was found to be
    /// damaged must not be replaced, so that the next one finds it too.
    pub fn lose(&self, partition: Partition, leaves: &Leaves, reason: Reason) -> Result<(), StoreError> {
        let mut noting = self.noting();
        let now = self.0.partitions.now();
        let note = self.0.partitions.with(partition, |state, _| state.lost(leaves, reason, now));
        noting.note(partition, &note)
    }

    /// For a loss that is more than that of some leaves.
    pub(crate) fn noting(&self) -> Noting<'_> {
        let notes = self.0.notes.lock().expect("nothing panics while it is locked");
        Noting { recovery: self, notes }
    }

    /// Counts the losses of a partition in this life.
    pub fn count(&self, partition: Partition) -> u64 {
        self.of_losses(partition, Losses::count)
    }

    /// Whether all of these leaves are known to be lost.
    pub fn is_lost(&self, partition: Partition, leaves: &Leaves) -> bool {
        self.of_losses(partition, |losses| losses.is_lost(leaves))
    }

    /// Whether anything of a partition was lost in this life or still is, as far as is known.
    pub fn has_lost(&self, partition: Partition) -> bool {
        self.is_in_doubt() || self.of_losses(partition, Losses::ever)
    }

    /// Whether these leaves may be served to such a read, to be asked before they are read.
    ///
    /// # Errors
    /// Why not.
    pub fn look(&self, partition: Partition, leaves: &Leaves, reading: Reading) -> Result<Look, String> {
        if self.is_in_doubt() {
            return Err("it is not known yet whether its disk lacks something".into());
        }
        match self.of_losses(partition, |losses| losses.look(leaves, reading)) {
            Ok(look) => Ok(Look { partition, look }),
            Err(Unserved::Lost(reason)) => Err(format!("it is recovering partition {partition} ({reason})")),
            Err(Unserved::Partly(reason)) => Err(format!(
                "it is recovering partition {partition} ({reason}), and has yet to ask some owners for writes below the layout's floor"
            )),
        }
    }

    /// Whether nothing of the partition was lost since that look: what was read in between may be served.
    pub fn confirm(&self, look: Look) -> bool {
        self.of_losses(look.partition, |losses| losses.confirm(look.look)) && !self.is_in_doubt()
    }

    /// The leaves of a partition for which this replica cannot speak, not even of writes at or above the floor.
    pub fn recovering(&self, partition: Partition) -> Leaves {
        if self.is_in_doubt() { Leaves::ALL } else { self.of_losses(partition, Losses::recovering) }
    }

    /// The partitions of which something is lost, or only partly recovered, in order.
    pub fn partitions(&self) -> Vec<Partition> {
        if self.is_in_doubt() {
            return Vec::new();
        }
        let under_way = |partition, state: &PartitionState| state.losses().is_under_way().then_some(partition);
        self.0.partitions.look_at_all(under_way).into_iter().flatten().collect()
    }

    /// What is to be exchanged of a partition.
    pub fn lost(&self, partition: Partition) -> Option<Lost> {
        self.of_losses(partition, Losses::lost)
    }

    /// What is to be exchanged of it with one owner: what is partly recovered need not be exchanged with the same one again.
    pub fn to_ask(&self, partition: Partition, owner: NodeId) -> Option<Lost> {
        self.of_losses(partition, |losses| losses.to_ask(owner))
    }

    /// The reason why a leaf is lost, if it is.
    pub fn reason(&self, partition: Partition, leaf: u8) -> Option<Reason> {
        self.of_losses(partition, |losses| losses.reason(leaf))
    }

    /// The leaves of `lost` were exchanged completely with an owner that could not speak for `recovering` of them, and what
    /// came is durable here. `need` such owners that can speak make a leaf partly whole, all the `others` make it whole. Tells
    /// whether all of the partition is served again, at least to reads [above the floor](Reading::AboveFloor). Blocking.
    ///
    /// # Errors
    /// When the store does not take it; then it is to be done again.
    pub fn exchanged(
        &self,
        partition: Partition,
        lost: Lost,
        with: NodeId,
        recovering: &Leaves,
        need: usize,
        others: usize,
    ) -> Result<bool, StoreError> {
        let mut noting = self.noting();
        let exchanged = |state: &mut PartitionState, _| {
            let note = state.losses_mut().exchanged(lost, with, recovering, need, others);
            (note, state.losses().recovering().is_empty())
        };
        let (note, served) = self.0.partitions.with(partition, exchanged);
        let Some(note) = note else { return Ok(served) };
        noting.keep(partition, &note)?;
        self.0.partitions.with(partition, |state, _| state.losses_mut().noted(&note));
        if self.left().is_empty() {
            *noting.notes = Notes::default();
        }
        Ok(note.leaves.is_empty())
    }

    /// How it stands; nothing if every partition is served, at least to reads [above the floor](Reading::AboveFloor).
    pub fn progress(&self) -> Option<Progress> {
        let noting = self.noting();
        let (left, Notes { total, since }) = (self.left(), *noting.notes);
        Some(Progress { reason: left.iter().copied().max()?, left: left.len() as u32, total, since: since? })
    }

    /// Waits until something is lost, or what is lost is known.
    pub(crate) async fn news(&self) {
        self.0.lost.notified().await;
    }

    /// The reasons for which partitions are served to no read, at least in part.
    fn left(&self) -> Vec<Reason> {
        let left = |_, state: &PartitionState| {
            let losses = state.losses();
            losses.gravest().filter(|_| !losses.recovering().is_empty())
        };
        self.0.partitions.look_at_all(left).into_iter().flatten().collect()
    }

    fn of_losses<T>(&self, partition: Partition, look: impl FnOnce(&Losses) -> T) -> T {
        self.0.partitions.look(partition, |state| look(state.losses()))
    }
}

impl Noting<'_> {
    /// Notes a loss that has just happened: on the disk, and for whoever recovers.
    ///
    /// # Errors
    /// When the store does not take it.
    pub(crate) fn note(&mut self, partition: Partition, note: &Note) -> Result<(), StoreError> {
        let kept = self.keep(partition, note);
        self.notes.total += u32::from(note.begins);
        self.notes.since.get_or_insert_with(Instant::now);
        self.recovery.0.lost.notify_one();
        kept
    }

    fn keep(&self, partition: Partition, note: &Note) -> Result<(), StoreError> {
        let (store, key) = (&self.recovery.0.store, meta_key(partition));
        if note.is_over() {
            return store.remove(Tree::Meta, &key);
        }
        let blob = |leaves: &Leaves| Blob::copy_from(&leaves.to_bytes());
        let stored = Stored { reason: note.reason, leaves: blob(&note.leaves), partly: blob(&note.partly) };
        store.insert(Tree::Meta, &key, &codec::encode(&stored))
    }
}

impl fmt::Debug for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recovery({} in doubt, {} under way)", self.is_in_doubt(), self.partitions().len())
    }
}

fn meta_key(partition: Partition) -> Vec<u8> {
    [PREFIX, &partition.0.to_be_bytes()].concat()
}

fn decode(value: &bytes::Bytes) -> Option<(Reason, Leaves, Leaves)> {
    let stored: Stored = codec::decode(value).ok()?;
    Some((stored.reason, Leaves::from_bytes(&stored.leaves)?, Leaves::from_bytes(&stored.partly)?))
}

/// Before the partition in the keys of [`Tree::Meta`].
const PREFIX: &[u8] = b"recovery/partition/";
/// The disk that the layout names, and this one, once what that means is noted.
const DISK_KEY: &[u8] = b"recovery/disk";
/// See [`Recovery::judged`]: the version, big-endian.
const JUDGED_KEY: &[u8] = b"recovery/judged";
/// There is nothing to judge.
const TRUSTED: u64 = u64::MAX;
/// Whether writes are acknowledged before they are synced.
const MODE_KEY: &[u8] = b"recovery/mode";
const INTERVAL: &[u8] = b"interval";

const _: () = assert!(LEAVES == 256, "leaves are stored in 32 bytes");

#[cfg(test)]
#[path = "recovery_test.rs"]
mod steps;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    const PARTITION: Partition = Partition(3);

    fn recovery(store: &MemoryStore) -> Recovery {
        Recovery::open(Arc::new(store.clone())).expect("readable")
    }

    fn node(i: u32) -> NodeId {
        NodeId::new(&format!("n{i}")).expect("legal")
    }

    fn some() -> Leaves {
        [3, 4].into_iter().collect()
    }

    #[test]
    fn enough_owners_that_can_speak_make_it_whole() {
        let recovery = recovery(&MemoryStore::new());
        recovery.lose(PARTITION, &some(), Reason::OtherDisk).expect("room");
        let lost = recovery.lost(PARTITION).expect("lost");
        let exchanged = |with, recovering: &Leaves| {
            recovery.exchanged(PARTITION, lost, node(with), recovering, 2, 4).expect("room")
        };
        assert!(!exchanged(1, &Leaves::NONE));
        assert!(!exchanged(1, &Leaves::NONE), "nobody counts twice");
        assert!(!exchanged(2, &[4].into_iter().collect()), "it cannot speak for leaf 4");
        assert_eq!(recovery.recovering(PARTITION), [4].into_iter().collect());
        assert!(recovery.look(PARTITION, &[3].into_iter().collect(), Reading::AboveFloor).is_ok());
        assert!(
            recovery
                .look(PARTITION, &some(), Reading::AboveFloor)
                .expect_err("lost")
                .contains("recovering partition 3")
        );
        assert!(exchanged(3, &Leaves::NONE));
        assert_eq!((recovery.recovering(PARTITION), recovery.progress()), (Leaves::NONE, None));
        assert!(recovery.look(PARTITION, &some(), Reading::AboveFloor).is_ok());
    }

    /// N = 5, w = 3: a write of W = 2 may have been acknowledged by this node and the one that was not asked yet.
    #[test]
    fn reads_that_must_find_writes_below_the_floor_wait_for_every_other_owner() {
        let store = MemoryStore::new();
        let first = recovery(&store);
        first.lose(PARTITION, &some(), Reason::OtherDisk).expect("room");
        let exchange = |recovery: &Recovery, with| {
            let lost = recovery.to_ask(PARTITION, node(with)).expect("it is to be asked");
            recovery.exchanged(PARTITION, lost, node(with), &Leaves::NONE, 3, 4).expect("room")
        };
        let below = |recovery: &Recovery| recovery.look(PARTITION, &some(), Reading::BelowFloor).is_ok();
        assert!(!exchange(&first, 1) && !exchange(&first, 2));
        assert!(exchange(&first, 3));
        assert!(first.look(PARTITION, &some(), Reading::AboveFloor).is_ok() && !below(&first));
        assert_eq!((first.to_ask(PARTITION, node(3)), first.partitions()), (None, vec![PARTITION]));
        let again = recovery(&store);
        assert!(again.look(PARTITION, &some(), Reading::AboveFloor).is_ok() && !below(&again), "a restart goes on");
        assert!(exchange(&first, 4));
        assert!(below(&first) && first.partitions().is_empty() && recovery(&store).partitions().is_empty());
        // A leaf that is partly recovered and is lost again is lost.
        assert!(exchange(&again, 1) && exchange(&again, 2) && exchange(&again, 3));
        let early = again.to_ask(PARTITION, node(4)).expect("it is to be asked");
        again.lose(PARTITION, &[3].into_iter().collect(), Reason::Corrupt).expect("room");
        assert!(again.look(PARTITION, &[3].into_iter().collect(), Reading::AboveFloor).is_err());
        assert!(again.look(PARTITION, &[4].into_iter().collect(), Reading::AboveFloor).is_ok());
        assert!(!again.exchanged(PARTITION, early, node(4), &Leaves::NONE, 3, 4).expect("room"), "it began before");
        assert!(!exchange(&again, 1) && !exchange(&again, 2) && !below(&again));
        assert!(exchange(&again, 3) && !below(&again));
        assert!(exchange(&again, 4) && below(&again));
    }

    #[test]
    fn all_others_in_any_state_make_it_whole() {
        let recovery = recovery(&MemoryStore::new());
        recovery.lose(PARTITION, &Leaves::ALL, Reason::Unclean).expect("room");
        let lost = recovery.lost(PARTITION).expect("lost");
        assert!(!recovery.exchanged(PARTITION, lost, node(1), &Leaves::ALL, 2, 2).expect("room"));
        assert!(recovery.exchanged(PARTITION, lost, node(2), &Leaves::ALL, 2, 2).expect("room"));
    }

    #[test]
    fn exchanges_that_began_before_a_loss_do_not_count() {
        let recovery = recovery(&MemoryStore::new());
        recovery.lose(PARTITION, &some(), Reason::Corrupt).expect("room");
        let early = recovery.lost(PARTITION).expect("lost");
        recovery.exchanged(PARTITION, early, node(1), &Leaves::NONE, 2, 2).expect("room");
        recovery.lose(PARTITION, &some(), Reason::Corrupt).expect("room");
        assert!(!recovery.exchanged(PARTITION, early, node(2), &Leaves::NONE, 2, 2).expect("room"));
        let lost = recovery.lost(PARTITION).expect("lost");
        assert!(!recovery.exchanged(PARTITION, lost, node(2), &Leaves::NONE, 2, 2).expect("room"));
        assert!(recovery.exchanged(PARTITION, lost, node(1), &Leaves::NONE, 2, 2).expect("room"));
    }

    #[test]
    fn a_restart_forgets_nothing_but_who_was_asked() {
        let store = MemoryStore::new();
        let first = recovery(&store);
        first.lose(PARTITION, &some(), Reason::Corrupt).expect("room");
        first.lose(Partition(260), &Leaves::ALL, Reason::RolledBack).expect("room");
        let again = recovery(&store);
        assert_eq!(again.partitions(), [PARTITION, Partition(260)]);
        assert_eq!((again.recovering(PARTITION), again.recovering(Partition(260))), (some(), Leaves::ALL));
        assert_eq!(again.reason(PARTITION, 3), Some(Reason::Corrupt));
        let progress = again.progress().expect("under way");
        assert_eq!((progress.reason, progress.left, progress.total), (Reason::RolledBack, 2, 2));
        let lost = again.lost(PARTITION).expect("lost");
        assert!(again.exchanged(PARTITION, lost, node(1), &Leaves::NONE, 1, 1).expect("room"));
        assert_eq!(recovery(&store).partitions(), [Partition(260)]);
        store.insert(Tree::Meta, &meta_key(PARTITION), b"garbage").expect("room");
        assert_eq!(recovery(&store).recovering(PARTITION), Leaves::ALL);
        assert!(store.flip_bit(Tree::Meta, &meta_key(PARTITION)));
        assert_eq!(recovery(&store).recovering(PARTITION), Leaves::ALL, "a damaged note is still one");
    }

    #[test]
    fn what_was_read_around_a_loss_is_not_served() {
        let recovery = recovery(&MemoryStore::new());
        let look = recovery.look(PARTITION, &some(), Reading::AboveFloor).expect("nothing is lost");
        assert!(recovery.confirm(look));
        recovery.lose(PARTITION, &some(), Reason::Corrupt).expect("room");
        let lost = recovery.lost(PARTITION).expect("lost");
        assert!(recovery.exchanged(PARTITION, lost, node(1), &Leaves::NONE, 1, 1).expect("room"));
        assert!(!recovery.confirm(look), "though it is whole again");
        let look = recovery.look(PARTITION, &some(), Reading::AboveFloor).expect("whole");
        recovery.doubt(Doubt::Layout);
        recovery.doubt(Doubt::SetBack);
        recovery.settle(Doubt::SetBack);
        assert!(!recovery.confirm(look) && recovery.look(PARTITION, &some(), Reading::AboveFloor).is_err());
        assert_eq!(recovery.recovering(Partition(9)), Leaves::ALL);
        recovery.settle(Doubt::Layout);
        assert!(recovery.confirm(look));
    }

    #[test]
    fn a_start_is_judged_once_by_what_the_layout_says_and_how_the_last_life_ended() {
        let store = MemoryStore::new();
        let facts = |disk, unclean, interval| Facts {
            disk: DiskId(disk),
            named: Some(DiskId(1)),
            owned: vec![PARTITION, Partition(4)],
            unclean,
            interval,
        };
        let judged = |facts: &Facts| {
            let recovery = recovery(&store);
            recovery.doubt(Doubt::Layout);
            recovery.decide(facts).expect("room");
            recovery
        };
        assert_eq!(judged(&facts(1, true, false)).progress(), None, "whatever was acknowledged was synced");
        assert_eq!(judged(&facts(1, true, true)).progress(), None, "that begins now");
        assert_eq!(judged(&facts(1, false, true)).progress(), None, "a clean stop");
        let unclean = judged(&facts(1, true, false));
        assert_eq!(unclean.progress().expect("lost").reason, Reason::Unclean);
        let whole = |recovery: &Recovery| {
            for partition in recovery.partitions() {
                let lost = recovery.lost(partition).expect("lost");
                assert!(recovery.exchanged(partition, lost, node(1), &Leaves::NONE, 1, 1).expect("room"));
            }
        };
        whole(&unclean);
        assert_eq!(judged(&facts(1, true, false)).progress(), None, "the mode is another one now");

        let wiped = judged(&facts(2, false, false));
        assert_eq!(wiped.progress().expect("lost").left, 2);
        let lost = wiped.lost(PARTITION).expect("lost");
        assert!(wiped.exchanged(PARTITION, lost, node(1), &Leaves::NONE, 1, 1).expect("room"));
        let again = judged(&facts(2, true, false));
        assert_eq!(again.partitions(), [Partition(4)], "a restart goes on");
        whole(&again);
        assert_eq!(judged(&facts(2, true, false)).progress(), None);
        assert_eq!(judged(&facts(3, true, false)).progress().expect("wiped again").left, 2);
        let stranger = Facts { named: None, ..facts(9, false, false) };
        whole(&recovery(&store));
        assert_eq!(judged(&stranger).progress(), None);
    }
}
