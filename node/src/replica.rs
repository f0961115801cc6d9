//! The only writer of the store: mints dots, merges records, and remembers what it must for rules V1, V5 and V6.
//!
//! Each key's read-merge-insert runs as one job of the [`Executor`] under one of `STRIPES` locks. The job owns the lock: a
//! request that is given up in the middle leaves neither a half-done job nor an unlocked one behind. No lock is held while
//! waiting for a sync; the [`Ticket`] that comes with each answer is what an acknowledgement waits for.
//!
//! Data lies under `hash of the key, u64 BE | key`, so that a partition is one sequential scan. Stripes are slices of the hash
//! range, so that all keys of a leaf of a [hash tree](crate::hash_trees) lie under few locks; the same job changes the leaf
//! once the insert has succeeded.
//!
//! `healing` holds what anti-entropy asks of a replica: lists, whole records, and trees that are summed up anew.

mod healing;
mod hints;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use quorate_wire::codec::Blob;
use quorate_wire::ids::{NodeId, OpId, Partition, key_hash};
use quorate_wire::random::Random;
use quorate_wire::{CONTEXT_LEN_MAX, KEY_LEN_MAX, NotApplied, SIBLINGS_MAX, VALUE_LEN_MAX};
use quorate_wire::{buggify, dawdle, sometimes, story, tell};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

use crate::hash_trees::HashTrees;
use crate::metrics::Sample;
use crate::recovery::{Reading, Reason, Recovery};
use crate::store::room::Level;
use crate::store::{Committer, DiskRoom, Executor, Store, StoreError, Ticket, Tree};
use quorate_core::context_keys::sealed_len;
use quorate_core::merkle::{self, Leaves};
use quorate_core::mint::{self, Minter};
use quorate_core::record::{Dropped, Record, Sibling};
use quorate_core::version::{Actor, Context, Dot};

use self::hints::Kept;
#[doc(hidden)]
pub use self::hints::decode_hint;
pub use self::hints::{HintPage, HintTotals, Hinted};

/// One node's records. Clones share them.
#[derive(Debug, Clone)]
pub struct Replica(Arc<Inner>);

/// A write that was minted and inserted (not yet durable).
#[derive(Debug)]
pub struct Minted {
    /// Its name.
    pub dot: Dot,
    /// The merged record, to be sent to the others.
    pub record: Record,
    /// What the writer has now seen (rule V4).
    pub context: Context,
    /// How many live values it replaced here; 0 if it is repeated.
    pub replaced: u32,
    /// The operation was there already (rule V6): nothing new was minted.
    pub repeated: bool,
    /// What its acknowledgement has to wait for.
    pub ticket: Ticket,
}

/// A write's name (rule V6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// The same in every retry.
    pub id: OpId,
    /// It is a retry, and an earlier attempt may have been minted: how long ago the first one was sent at most.
    pub first_sent: Option<Duration>,
}

impl From<OpId> for Operation {
    /// A first attempt.
    fn from(id: OpId) -> Self {
        Self { id, first_sent: None }
    }
}

/// Why there is no [`Minted`].
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MintError {
    /// Before the mint: nothing was changed.
    #[error(transparent)]
    NotApplied(#[from] NotApplied),
    /// The insert was tried and failed: it may be there. The actor was given up.
    #[error("the write was minted, its insert failed and may or may not be there: {0}")]
    Unknown(String),
    /// It is a retry, this node has minted for the key what the writer has not seen, and does not remember what became of it. Nothing
    /// was changed now: a second dot could outlive what has replaced the first one.
    #[error(
        "an earlier attempt may have been minted here and replaced, which this node would not remember: it has started since, or \
             forgotten"
    )]
    Forgotten,
}

/// A record that was merged (not yet durable).
#[derive(Debug)]
pub struct Merged {
    /// The merge changed what was there.
    pub changed: bool,
    /// What was there was corrupt, and is replaced.
    pub was_corrupt: bool,
    /// The [digest](Record::digest) of what is there now.
    pub digest: u128,
    /// What its acknowledgement has to wait for; also when nothing changed.
    pub ticket: Ticket,
}

/// What a replica has done since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplicaStats {
    /// Writes that were minted here.
    pub minted: u64,
    /// Writes that were there already (rule V6).
    pub repeated: u64,
    /// Merges that changed a record.
    pub merged: u64,
    /// Merges that changed nothing.
    pub unchanged: u64,
    /// Actors that were drawn: one for each partition that is written to, and one after each loss.
    pub actors: u64,
    /// Superseded operations that are remembered now.
    pub operations: u64,
    /// Superseded operations that were forgotten before their time, for want of room.
    pub operations_evicted: u64,
    /// Records that were found to be corrupt (each once until it is replaced).
    pub corrupt: u64,
    /// Dots for which two replicas had different values. Must be 0.
    pub incidents: u64,
    /// Hints that were taken, new ones and merges.
    pub hints_kept: u64,
    /// Hints that were delivered and let go.
    pub hints_delivered: u64,
    /// Hints that were refused for want of room.
    pub hints_refused: u64,
    /// Hints that could not be read and were let go.
    pub hints_damaged: u64,
    /// Hints that are kept now.
    pub hints: u64,
    /// Bytes of keys and values that they take.
    pub hint_bytes: u64,
}

impl ReplicaStats {
    /// For the node's metrics.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::counter("writes_minted", "Writes that got their dot here", self.minted),
            Sample::counter("writes_repeated", "Writes that were there already, by their operation id", self.repeated),
            Sample::counter("merges_changed", "Merges that changed a record", self.merged),
            Sample::counter("merges_unchanged", "Merges that changed nothing", self.unchanged),
            Sample::counter(
                "actors_drawn",
                "Actors drawn: one a partition, and one after each loss in it",
                self.actors,
            ),
            Sample::gauge("operations_remembered", "Superseded operations that are remembered", self.operations),
            Sample::counter(
                "operations_evicted",
                "Superseded operations forgotten for want of room",
                self.operations_evicted,
            ),
            Sample::counter("records_corrupt", "Records that failed their checksum", self.corrupt),
            Sample::counter("incidents", "Dots with two different values; must be 0", self.incidents),
            Sample::counter("hints_kept", "Writes kept for other nodes, new hints and merges", self.hints_kept),
            Sample::counter("hints_delivered", "Hints that were handed over and let go", self.hints_delivered),
            Sample::counter("hints_refused", "Hints refused because their room was full", self.hints_refused),
            Sample::counter("hints_damaged", "Hints that could not be read and are lost", self.hints_damaged),
            Sample::gauge("hints", "Hints that are kept for other nodes", self.hints),
            Sample::gauge("hint_bytes", "Bytes that the kept hints take", self.hint_bytes),
        ]
    }
}

impl Replica {
    /// Serves the records of `store`. The number of partitions is told later, see [`set_partitions`](Self::set_partitions).
    pub fn new(
        node: NodeId,
        store: Arc<dyn Store>,
        executor: Executor,
        committer: Committer,
        random: Random,
        recovery: Recovery,
    ) -> Self {
        Self(Arc::new(Inner {
            kept: Mutex::new(Kept::new(HINT_BYTES_MAX)),
            node,
            store,
            executor,
            committer,
            random,
            partitions: AtomicU16::new(0),
            stripes: (0..STRIPES).map(|_| Arc::default()).collect(),
            minters: Mutex::default(),
            disputes: Mutex::default(),
            operations: Mutex::new(Operations::new(Instant::now())),
            corrupt: Mutex::default(),
            counters: Counters::default(),
            trees: HashTrees::default(),
            recovery,
            rebuild: tokio::sync::Mutex::default(),
            closed: AtomicBool::new(false),
            room: OnceLock::new(),
        }))
    }

    /// Tells how much room there is on the disk; without it there is always enough. A second call changes nothing.
    pub fn set_room(&self, room: DiskRoom) {
        let _ = self.0.room.set(room);
    }

    /// Tells how many partitions there are; the layout knows, and the number never changes.
    pub fn set_partitions(&self, partitions: u16) {
        let before = self.0.partitions.swap(partitions, Ordering::Relaxed);
        assert!(before == 0 || before == partitions, "Q never changes, but went from {before} to {partitions}");
        self.0.trees.set_partitions(partitions);
    }

    /// Mints the dot of a write (rules V2, V4, V5, V6) and inserts the merged record. No value: a delete.
    ///
    /// The operation must name this very write: key, value and cause are the same in every retry.
    ///
    /// # Errors
    /// [`MintError::NotApplied`] for everything that is refused beforehand: limits, a corrupt record, a store that cannot be
    /// read, a disk that is full. [`MintError::Unknown`] if the insert failed in any other way;
    /// [`MintError::Forgotten`].
    pub async fn mint(
        &self,
        partition: Partition,
        key: &Blob,
        operation: impl Into<Operation>,
        value: Option<Blob>,
        cause: Context,
    ) -> Result<Minted, MintError> {
        check_key(key)?;
        check_len("value", value.as_ref().map_or(0, |value| value.len()), VALUE_LEN_MAX)?;
        let write = Write { partition, key: key.clone(), operation: operation.into(), value, cause };
        self.locked(key, move |inner, now| {
            let held = inner.read_or_refuse(partition, &write.key)?.unwrap_or_default();
            inner.mint(write, &Place::Data, held, now)
        })
        .await
    }

    /// Merges another replica's record (rules V3, V6). Never refused for its size.
    ///
    /// # Errors
    /// [`NotApplied::Storage`] if the store failed. A merge may be repeated at any time, so that it does not matter whether a
    /// failed insert is there.
    pub async fn merge(&self, partition: Partition, key: &Blob, record: Record) -> Result<Merged, NotApplied> {
        check_key(key)?;
        let key_owned = key.clone();
        self.locked(key, move |inner, now| inner.merge(partition, &Place::Data, &key_owned, &record, now)).await
    }

    /// The record of a key for a read above the layout's floor, see [`read_for`](Self::read_for).
    ///
    /// # Errors
    /// As `read_for`.
    pub async fn read(&self, key: &Blob) -> Result<Option<Record>, NotApplied> {
        self.read_for(key, Reading::AboveFloor).await
    }

    /// The record of a key, or nothing if this replica has never heard of it. A deleted key has a record.
    ///
    /// # Errors
    /// [`NotApplied::Storage`] if the store failed or the record is corrupt: that is never said to be absent.
    /// [`NotApplied::NotServing`] if the replica is [recovering](crate::recovery) there.
    pub async fn read_for(&self, key: &Blob, reading: Reading) -> Result<Option<Record>, NotApplied> {
        check_key(key)?;
        let (partition, leaf) = self.0.leaf_of(key);
        self.0.unless_lost(partition, &leaf, reading, || self.read_anyhow(key)).await
    }

    /// How many bytes are stored of a key; with `hints_for` what this node keeps of it for those primaries. What cannot be read has
    /// none: whoever goes on will be told why.
    pub(crate) fn held_len(&self, key: &Blob, hints_for: Option<&[NodeId]>) -> usize {
        let len = |tree, stored: &[u8]| {
            let held = self.0.store.get(tree, stored).ok().flatten();
            held.map_or(0, |held| held.len())
        };
        match hints_for {
            None => len(Tree::Data, &data_key(key)),
            Some(primaries) => primaries.iter().map(|target| len(Tree::Hints, &hints::hint_key(*target, key))).sum(),
        }
    }

    /// Whether what was read of a key a moment ago may still be counted.
    ///
    /// # Errors
    /// [`NotApplied::NotServing`] if the replica has learned since that it may lack something there.
    pub fn still_speaks(&self, key: &[u8], reading: Reading) -> Result<(), NotApplied> {
        let (partition, leaf) = self.0.leaf_of(key);
        let looked = self.0.recovery.look(partition, &leaf, reading);
        looked.map(drop).map_err(|why| NotApplied::NotServing { node: self.0.node, why })
    }

    /// The same of a page of a partition.
    ///
    /// # Errors
    /// As `still_speaks`.
    pub fn still_speaks_of(&self, partition: Partition, reading: Reading) -> Result<(), NotApplied> {
        let looked = self.0.recovery.look(partition, &Leaves::ALL, reading);
        looked.map(drop).map_err(|why| NotApplied::NotServing { node: self.0.node, why })
    }

    async fn read_anyhow(&self, key: &Blob) -> Result<Option<Record>, NotApplied> {
        let inner = &self.0;
        match (inner.stored(key), inner.partitions.load(Ordering::Relaxed)) {
            (Ok(record), _) => {
                tell!(act = "reads", key = %story::text(key), node = %inner.node,
                    holds = record.as_ref().map(names));
                Ok(record)
            }
            (Err(Unreadable::Failed(why)), _) => Err(inner.failed(why)),
            // Whoever mints or merges knows the partition, looks again and gives up the actor.
            (Err(Unreadable::Corrupt(why)), 0) => Err(inner.refused_corrupt(&why)),
            // Under the lock, so that no merge is just replacing it.
            (Err(Unreadable::Corrupt(_)), partitions) => {
                let key_owned = key.clone();
                let partition = Partition::of(key_hash(key), partitions);
                self.locked(key, move |inner, _| inner.read_or_refuse(partition, &key_owned)).await
            }
        }
    }

    /// Waits until all that has been read from here so far is durable (in the durability mode `interval`: does not wait).
    ///
    /// # Errors
    /// [`NotApplied::Storage`] when a sync failed.
    pub async fn settled(&self) -> Result<(), NotApplied> {
        let durable = self.0.committer.ticket_unchanged().durable().await;
        durable.map(|_| ()).map_err(|error| self.0.failed(format!("no sync: {error}")))
    }

    /// Syncs all that has been written so far, also in the durability mode `interval`.
    ///
    /// # Errors
    /// [`NotApplied::Storage`] when it failed.
    pub async fn sync(&self) -> Result<(), NotApplied> {
        self.0.committer.synced().await.map_err(|error| self.0.failed(format!("no sync: {error}")))
    }

    /// A page of a partition, in (hash, key) order after the key `after`: keys and records, and whether it was the last page.
    /// A page ends at `limit` records or when it passes [`PAGE_BYTES`].
    ///
    /// # Errors
    /// [`NotApplied::Storage`] if the store failed or a record is corrupt, [`NotApplied::NotServing`] before the layout is
    /// known and while the replica is [recovering](crate::recovery) anything of the partition.
    pub async fn range(
        &self,
        partition: Partition,
        after: Option<&Blob>,
        limit: usize,
        reading: Reading,
    ) -> Result<(Vec<(Blob, Record)>, bool), NotApplied> {
        let inner = &self.0;
        let partitions = inner.partitions.load(Ordering::Relaxed);
        if partition.0 >= partitions {
            let why = match partitions {
                0 => "there is no layout yet".to_owned(),
                _ => format!("partition {partition} is not one of the {partitions}"),
            };
            return Err(NotApplied::NotServing { node: inner.node, why });
        }
        let first = partition.first_hash(partitions).to_be_bytes().to_vec();
        let end = (partition.0 + 1 < partitions)
            .then(|| Partition(partition.0 + 1).first_hash(partitions).to_be_bytes().to_vec());
        let from = match after {
            // The smallest key that is larger.
            Some(key) => [&data_key(key)[..], &[0]].concat().max(first),
            None => first,
        };
        if end.as_ref().is_some_and(|end| from >= *end) {
            return Ok((Vec::new(), true));
        }
        let page = || {
            let (job, from, end) = (inner.clone(), from.clone(), end.clone());
            inner.executor.run(move || job.page(partition, &from, end.as_deref(), limit.max(1)))
        };
        inner.unless_lost(partition, &Leaves::ALL, reading, page).await
    }

    /// Rule V1, to be called *before* records of a partition are deleted or known to be lost in any way other than by `mint`
    /// and `merge`: its actor mints no more, and what is remembered of its operations goes with the records.
    pub fn give_up_actor(&self, partition: Partition) {
        self.0.draw_new_actor(partition);
        lock(&self.0.operations).forget_partition(partition, Instant::now());
    }

    /// What it has done.
    pub fn stats(&self) -> ReplicaStats {
        let counters = &self.0.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (operations, kept) = (lock(&self.0.operations), lock(&self.0.kept));
        ReplicaStats {
            minted: count(&counters.minted),
            repeated: count(&counters.repeated),
            merged: count(&counters.merged),
            unchanged: count(&counters.unchanged),
            actors: count(&counters.actors),
            operations: operations.known.len() as u64,
            operations_evicted: operations.evicted,
            corrupt: count(&counters.corrupt),
            incidents: count(&counters.incidents),
            hints_kept: count(&counters.hints_kept),
            hints_delivered: count(&counters.hints_delivered),
            hints_refused: count(&counters.hints_refused),
            hints_damaged: count(&counters.hints_damaged),
            hints: kept.totals().values().map(|of_target| of_target.count).sum(),
            hint_bytes: kept.bytes(),
        }
    }

    /// Runs a job under the key's lock. The job has the lock, so that both end together, also if nobody waits any longer.
    async fn locked<T, F>(&self, key: &Blob, job: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(&Inner, Instant) -> T + Send + 'static,
    {
        let stripe = stripe_of(key_hash(key));
        dawdle!("replica: a pause before a key is locked");
        let lock: OwnedMutexGuard<()> = self.0.stripes[stripe].clone().lock_owned().await;
        dawdle!("replica: a pause with a key locked");
        // A storage thread has no runtime, whose clock may be a simulation's.
        let now = Instant::now();
        let inner = self.0.clone();
        self.0
            .executor
            .run(move || {
                let done = job(&inner, now);
                drop(lock);
                done
            })
            .await
    }
}

struct Inner {
    node: NodeId,
    store: Arc<dyn Store>,
    executor: Executor,
    committer: Committer,
    random: Random,
    partitions: AtomicU16,
    stripes: Vec<Arc<tokio::sync::Mutex<()>>>,
    /// The current actor of each partition that was written to; at most 65,536.
    minters: Mutex<BTreeMap<Partition, Minter>>,
    /// Actors that were given up because of a record that could not be written yet, by its key; see `disputed`.
    disputes: Mutex<BTreeMap<(Partition, u128), Minter>>,
    operations: Mutex<Operations>,
    /// Corrupt records that were seen already, by where they lie: the actor is given up once for each, not at every look.
    corrupt: Mutex<BTreeSet<(Partition, u128)>>,
    /// How much is kept for whom.
    kept: Mutex<Kept>,
    counters: Counters,
    trees: HashTrees,
    recovery: Recovery,
    /// One partition is summed up at a time.
    rebuild: tokio::sync::Mutex<()>,
    /// Nothing is written any more, so that the trees can be saved.
    closed: AtomicBool,
    room: OnceLock<DiskRoom>,
}

/// Where a record lies: this node's own copy, or one that it keeps for another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Data,
    Hint {
        target: NodeId,
        /// When the hint was begun, by the wall clock, for people.
        since_ms: u64,
    },
}

impl Place {
    /// For whom it is kept, if it is not this node's own copy.
    fn kept_for(&self) -> Option<String> {
        match self {
            Self::Data => None,
            Self::Hint { target, .. } => Some(target.to_string()),
        }
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("node", &self.node).field("store", &self.store).finish_non_exhaustive()
    }
}

struct Write {
    partition: Partition,
    key: Blob,
    operation: Operation,
    value: Option<Blob>,
    cause: Context,
}

enum Unreadable {
    Corrupt(String),
    Failed(String),
}

impl Inner {
    /// `held` is all that this node holds of the key: the mint is a record that has every dot that it ever minted for it.
    fn mint(&self, write: Write, place: &Place, held: Record, now: Instant) -> Result<Minted, MintError> {
        let Write { partition, key, operation: Operation { id: op_id, first_sent }, value, cause } = write;
        self.assert_partition(partition, &key);
        self.check_open()?;
        let of_key = Operations::of_key(partition, &key);
        let remembered = |op_id: &OpId| lock(&self.operations).dot_of(of_key, op_id, now);
        if let Some(repeated) = mint::repeated(&held, &op_id, &cause, remembered) {
            count(&self.counters.repeated, 1);
            sometimes!("mint: a retry returned the first dot", held.siblings.contains_key(&repeated.dot));
            sometimes!("mint: a retry found its operation superseded", !held.siblings.contains_key(&repeated.dot));
            sometimes!("mint: a retry of another coordinator's write", repeated.dot.actor.node != self.node);
            tell!(act = "repeats", key = %story::text(&key), node = %self.node, %op_id, dot = %repeated.dot,
                holds = names(&held));
            return Ok(Minted {
                dot: repeated.dot,
                record: held,
                context: repeated.context,
                replaced: 0,
                repeated: true,
                ticket: self.committer.ticket_unchanged(),
            });
        }
        if let (Some(first_sent), true) = (first_sent, value.is_some())
            && !lock(&self.operations).remembers_since(partition, first_sent, now)
            && !self.shows_all_mints(partition, place, &held, &cause, first_sent, now)
        {
            sometimes!("mint: a retry of what this node would not remember");
            return Err(MintError::Forgotten);
        }
        if value.is_some() {
            self.room_for_a_value()?;
        }
        let (siblings, len) = (held.value_count(), held.encoded_len());
        let before = match place {
            Place::Data => held.context.clone(),
            Place::Hint { .. } => self.stored_at(place, &key).ok().flatten().unwrap_or_default().context,
        };
        let data_key = data_key(&key);
        let old_digest = digest_of(&held, &key);
        let dot = self.next_dot(partition, &held, &cause);
        let fresh = mint::mint(held, dot, op_id, value, &cause);
        if fresh.record.value_count() > SIBLINGS_MAX.max(siblings) {
            let refused = NotApplied::TooManySiblings { got: siblings as u32, limit: SIBLINGS_MAX as u32 };
            return Err(refused.into());
        }
        let (context_len, record_len) = (sealed_len(&fresh.record.context), fresh.record.encoded_len());
        check_len("context", context_len.max(sealed_len(&fresh.context)), CONTEXT_LEN_MAX)?;
        // Whoever makes a record smaller that merges have made too large is welcome.
        check_len("record", record_len, RECORD_LEN_MAX.max(len))?;

        self.make_room(place, &key, record_len)?;
        let doubt = InDoubt { inner: self, partition, place, data_key: &data_key };
        match self.insert(place, &key, &fresh.record) {
            Ok(()) => doubt.settled(old_digest, fresh.record.digest(&key)),
            Err(error @ (StoreError::NoRoom(_) | StoreError::Full(_))) if self.still_holds(place, &key, &before) => {
                sometimes!("mint: the disk was full");
                self.check_engine(&error);
                return Err(self.failed(error.to_string()).into());
            }
            Err(error) => {
                sometimes!("mint: an insert failed and nobody knows whether it is there");
                self.check_engine(&error);
                self.remember_if_there(of_key, place, &key, &fresh.record, fresh.dropped, now);
                return Err(MintError::Unknown(error.to_string()));
            }
        }
        let replaced = fresh.dropped.writes.iter().map(|(_, op_id)| op_id).collect::<BTreeSet<_>>().len();
        lock(&self.corrupt).remove(&at(partition, place, &key));
        self.remember(of_key, fresh.dropped, now);
        count(&self.counters.minted, 1);
        tell!(act = "mints", key = %story::text(&key), node = %self.node, %op_id, %dot, replaced,
            kept_for = place.kept_for(), holds = names(&fresh.record));
        Ok(Minted {
            dot,
            record: fresh.record,
            context: fresh.context,
            replaced: replaced as u32,
            repeated: false,
            ticket: self.committer.ticket(),
        })
    }

    /// Rule V6, for a retry whose first attempt was sent before the memory of operations begins: whether the record alone proves that
    /// no earlier attempt was minted here and superseded since. It does if this node has been up for the whole time, so that a mint
    /// which was replicated and never synced cannot be missing from the record; if nothing of the partition was lost or dropped; and if
    /// the record knows no dot of this node that the writer has not seen. Hints that were handed over are not there to tell.
    ///
    /// A retried delete needs no such proof: it leaves no value that could outlive what has replaced it.
    fn shows_all_mints(
        &self,
        partition: Partition,
        place: &Place,
        held: &Record,
        cause: &Context,
        first_sent: Duration,
        now: Instant,
    ) -> bool {
        *place == Place::Data
            && lock(&self.operations).was_up_since(partition, first_sent, now)
            && !self.recovery.has_lost(partition)
            && !held.context.has_news_of(self.node, cause)
    }

    /// Rule V6: the operations of either record that this one knows to be superseded. A record that has not seen that itself (a hint,
    /// one that takes the place of a corrupt one) must not say so: it would cover the write without holding what has replaced it,
    /// and whoever merges it would lose the write.
    fn superseded_in(&self, of_key: (Partition, u128), record: &Record, other: &Record, now: Instant) -> Vec<OpId> {
        let operations = lock(&self.operations);
        let seen = |op_id: &OpId| {
            let dot = operations.dot_of(of_key, op_id, now);
            dot.is_some_and(|dot| record.context.covers(&dot) && !record.siblings.contains_key(&dot))
        };
        let live = record.siblings.values().chain(other.siblings.values());
        live.map(|sibling| sibling.op_id).filter(seen).collect()
    }

    fn merge(
        &self,
        partition: Partition,
        place: &Place,
        key: &Blob,
        other: &Record,
        now: Instant,
    ) -> Result<Merged, NotApplied> {
        self.assert_partition(partition, key);
        self.check_open()?;
        let mut corrupt = false;
        let mut record = match self.stored_at(place, key) {
            Ok(record) => record.unwrap_or_default(),
            Err(Unreadable::Failed(why)) => return Err(self.failed(why)),
            Err(Unreadable::Corrupt(why)) => {
                let failed = |error: StoreError| self.failed(error.to_string());
                // What takes its place may be older than what was acknowledged here, so that the loss is noted first: now, or at an
                // earlier look, unless the recovery that began then is over and could not bring the record back.
                self.note_corrupt(partition, place, key, &why).map_err(failed)?;
                if *place == Place::Data && !self.recovery.is_lost(partition, &self.leaf_of(key).1) {
                    self.lose(partition, key).map_err(failed)?;
                }
                // Also if it was corrupt before, and this node has minted in it since.
                self.draw_new_actor(partition);
                corrupt = true;
                Record::default()
            }
        };
        let of_key = Operations::of_key(partition, key);
        let superseded = self.superseded_in(of_key, &record, other, now);
        sometimes!(
            "merge: kept a superseded operation out",
            other
                .siblings
                .iter()
                .any(|(dot, theirs)| !record.context.covers(dot) && superseded.contains(&theirs.op_id))
        );
        let siblings = record.value_count();
        let mut held: Option<BTreeSet<Dot>> = self.is_tight().then(|| record.siblings.keys().copied().collect());
        let old_digest = digest_of(&record, key);
        let of_record = at(partition, place, key);
        let (claimed, disputed) = self.disputed(partition, of_record, &record, other);
        // What is disputed must be again when this merge fails and is repeated: the actor is given up already.
        let mut dispute = Dispute { inner: self, of_record, claimed };
        let (dropped, mut changed) = mint::merge(&mut record, other, &|op_id| superseded.contains(op_id));
        for sibling in disputed {
            // The disputed dot stays covered, so that every replica drops it and takes its operation for superseded; the value lives on
            // under a dot and an operation that nobody can have named.
            let dot = self.next_dot(partition, &record, &Context::new());
            let op_id = OpId(self.random.u128());
            record.keep(dot, Sibling { op_id, ..sibling });
            changed = true;
            if let Some(held) = &mut held {
                held.insert(dot);
            }
        }
        sometimes!("merge: dropped a superseded sibling", record.value_count() < siblings);
        sometimes!("merge: made siblings", record.value_count() > siblings.max(1));
        sometimes!("merge: one operation with two dots", record.siblings.len() > record.value_count());
        let mut digest = old_digest.unwrap_or(0);
        if changed || corrupt {
            if held.is_some_and(|held| record.siblings.keys().any(|dot| !held.contains(dot))) {
                self.room_for_a_value()?;
            }
            self.make_room(place, key, record.encoded_len())?;
            let data_key = data_key(key);
            let doubt = InDoubt { inner: self, partition, place, data_key: &data_key };
            digest = record.digest(key);
            match self.insert(place, key, &record) {
                Ok(()) => {
                    doubt.settled(old_digest, digest);
                    if corrupt && *place == Place::Data {
                        // Whether the leaf counted what is lost is not known.
                        self.trees.doubt(partition, &data_key);
                    }
                }
                Err(error) => {
                    self.check_engine(&error);
                    self.remember_if_there(of_key, place, key, &record, dropped, now);
                    return Err(self.failed(format!("{error} (the merge can be repeated)")));
                }
            }
        }
        sometimes!("merge: replaced a corrupt record", corrupt);
        dispute.settled();
        let wrote = changed || corrupt;
        if wrote {
            lock(&self.corrupt).remove(&at(partition, place, key));
        }
        self.remember(of_key, dropped, now);
        tell!(act = "merges", key = %story::text(key), node = %self.node, got = names(other), changed = wrote,
            kept_for = place.kept_for(), holds = names(&record));
        count(if wrote { &self.counters.merged } else { &self.counters.unchanged }, 1);
        let ticket = if wrote { self.committer.ticket() } else { self.committer.ticket_unchanged() };
        Ok(Merged { changed: wrote, was_corrupt: corrupt, digest, ticket })
    }

    /// Rule V5, for a merge: the values of this record whose dots the other record claims to know as replaced, when that claim cannot
    /// be believed. The other record names dots that this node's actor has not minted yet, so that whoever made them up may have
    /// named dots that were minted since. The actor is given up, and returned: until the record is written the dispute is not over.
    fn disputed(
        &self,
        partition: Partition,
        of_record: (Partition, u128),
        record: &Record,
        other: &Record,
    ) -> (Option<Minter>, Vec<Sibling>) {
        let before = lock(&self.disputes).get(&of_record).cloned();
        if let Some(minter) = before
            && let Some(disputed) = mint::disputed(&minter, record, other)
        {
            return (Some(minter), disputed);
        }
        let mut minters = lock(&self.minters);
        let Some(minter) = minters.get(&partition) else { return (None, Vec::new()) };
        let disputed = mint::disputed(minter, record, other);
        let Some(disputed) = disputed else { return (None, Vec::new()) };
        sometimes!("merge: a record was ahead of its actor");
        count(&self.counters.incidents, 1);
        tracing::error!(node = %self.node, %partition, actor = %minter.actor(), kept = disputed.len(),
            "another replica's record knows writes of this actor that it never minted: a context was made up, or this process's memory \
             was set back; the values in doubt are kept, and a new actor takes over");
        (minters.remove(&partition), disputed)
    }

    fn page(
        &self,
        partition: Partition,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<(Vec<(Blob, Record)>, bool), NotApplied> {
        let limit = buggify!("replica: a page ends early", limit, 1);
        let entries = match self.store.scan(Tree::Data, from, to, limit, PAGE_BYTES) {
            Ok(entries) => entries,
            Err(StoreError::Corrupt(why)) => {
                // Which key it is turns out when they are read one by one.
                self.digests(partition, from, to, limit)?;
                return Err(self.refused_corrupt(&why));
            }
            Err(error) => return Err(self.failed(error.to_string())),
        };
        let bytes: usize = entries.iter().map(|(key, value)| key.len() + value.len()).sum();
        let last = entries.len() < limit && bytes < PAGE_BYTES;
        // Then there is one more page, an empty one.
        let last = last && (entries.is_empty() || !buggify!("replica: the last page does not know that it is"));
        let decode = |(key, value): (Bytes, Bytes)| {
            let key = Blob(key.slice(HASH_LEN.min(key.len())..));
            match Record::decode(&value) {
                Ok(record) => Ok((key, record)),
                Err(why) => Err(self.found_corrupt(partition, &Place::Data, &key, &why)),
            }
        };
        Ok((entries.into_iter().map(decode).collect::<Result<_, _>>()?, last))
    }

    fn stored(&self, key: &[u8]) -> Result<Option<Record>, Unreadable> {
        self.stored_at(&Place::Data, key)
    }

    fn stored_at(&self, place: &Place, key: &[u8]) -> Result<Option<Record>, Unreadable> {
        let Some(bytes) = self.raw(place, key)? else { return Ok(None) };
        match place {
            Place::Data => Record::decode(&bytes).map(Some).map_err(Unreadable::Corrupt),
            Place::Hint { .. } => hints::decode(&bytes).map(|hint| Some(hint.1)).map_err(Unreadable::Corrupt),
        }
    }

    fn raw(&self, place: &Place, key: &[u8]) -> Result<Option<Bytes>, Unreadable> {
        let found = match place {
            Place::Data => self.store.get(Tree::Data, &data_key(key)),
            Place::Hint { target, .. } => self.store.get(Tree::Hints, &hints::hint_key(*target, key)),
        };
        found.map_err(|error| match error {
            StoreError::Corrupt(why) => Unreadable::Corrupt(why),
            error => Unreadable::Failed(error.to_string()),
        })
    }

    fn insert(&self, place: &Place, key: &[u8], record: &Record) -> Result<(), StoreError> {
        match place {
            Place::Data => self.store.insert(Tree::Data, &data_key(key), &record.encode()),
            Place::Hint { target, since_ms } => self.insert_hint(*target, *since_ms, key, record),
        }
    }

    /// An engine that was not asked for want of room is well; any error of its own, a full disk as well, may be its end.
    fn check_engine(&self, error: &StoreError) {
        if !matches!(error, StoreError::NoRoom(_)) {
            self.committer.check();
        }
    }

    /// Whether a failed insert has left the record as it was. Each mint changes the context.
    fn still_holds(&self, place: &Place, key: &[u8], before: &Context) -> bool {
        self.stored_at(place, key).is_ok_and(|record| record.unwrap_or_default().context == *before)
    }

    fn read_or_refuse(&self, partition: Partition, key: &[u8]) -> Result<Option<Record>, NotApplied> {
        self.stored(key).map_err(|unreadable| match unreadable {
            Unreadable::Corrupt(why) => self.found_corrupt(partition, &Place::Data, key, &why),
            Unreadable::Failed(why) => self.failed(why),
        })
    }

    /// A record is lost (rule V1): see [`note_corrupt`](Self::note_corrupt). If that cannot be noted now, it is at the next look, and
    /// until then nothing takes the record's place.
    fn found_corrupt(&self, partition: Partition, place: &Place, key: &[u8], why: &str) -> NotApplied {
        if let Err(error) = self.note_corrupt(partition, place, key, why) {
            tracing::error!(node = %self.node, %partition, %error, "that a record is corrupt cannot be noted");
        }
        self.refused_corrupt(why)
    }

    /// Notes once for each corrupt record that it is lost: its actor mints no more, its operations are forgotten with it, its leaf
    /// of the hash tree is in doubt, and the partition's recovery begins (anew, if it is under way: what other owners have told so
    /// far need not cover this record).
    fn note_corrupt(&self, partition: Partition, place: &Place, key: &[u8], why: &str) -> Result<(), StoreError> {
        let at = at(partition, place, key);
        let mut corrupt = lock(&self.corrupt);
        if corrupt.contains(&at) {
            return Ok(());
        }
        tell!(act = "finds its record corrupt", key = %story::text(key), node = %self.node);
        sometimes!("replica: found a corrupt record");
        self.draw_new_actor(partition);
        lock(&self.operations).forget_key(Operations::of_key(partition, key), Instant::now());
        if *place == Place::Data {
            self.trees.doubt(partition, &data_key(key));
            sometimes!(
                "recovery: a record was lost while others of its leaf were being recovered",
                self.recovery.is_lost(partition, &self.leaf_of(key).1)
            );
            self.lose(partition, key)?;
        }
        if corrupt.len() < CORRUPT_MAX {
            corrupt.insert(at);
        }
        count(&self.counters.corrupt, 1);
        tracing::error!(node = %self.node, %partition, why, "a record is corrupt; it is recovered from the other owners");
        Ok(())
    }

    /// Notes that what was held of a key is lost.
    fn lose(&self, partition: Partition, key: &[u8]) -> Result<(), StoreError> {
        match self.leaf_of(key) {
            (_, leaf) if leaf.is_empty() => Ok(()),
            (_, leaf) => self.recovery.lose(partition, &leaf, Reason::Corrupt),
        }
    }

    /// Where a key is, as far as that is known: before there is a layout, nothing is lost but by a doubt, which is about all.
    fn leaf_of(&self, key: &[u8]) -> (Partition, Leaves) {
        let (hash, partitions) = (key_hash(key), self.partitions.load(Ordering::Relaxed));
        match partitions {
            0 => (Partition(0), Leaves::NONE),
            _ => (Partition::of(hash, partitions), [merkle::leaf_of(hash, partitions)].into_iter().collect()),
        }
    }

    /// Reads, unless something of it is lost, or was lost while it was read.
    async fn unless_lost<T, F: Future<Output = Result<T, NotApplied>>>(
        &self,
        partition: Partition,
        leaves: &Leaves,
        reading: Reading,
        read: impl Fn() -> F,
    ) -> Result<T, NotApplied> {
        let not_serving = |why| NotApplied::NotServing { node: self.node, why };
        for _ in 0..LOOKS_MAX {
            let look = self.recovery.look(partition, leaves, reading).map_err(|why| {
                sometimes!("recovery: a read was refused");
                not_serving(why)
            })?;
            let read = read().await;
            if read.is_err() || self.recovery.confirm(look) {
                return read;
            }
        }
        Err(not_serving("much is being lost at the moment".into()))
    }

    fn refused_corrupt(&self, why: &str) -> NotApplied {
        self.failed(format!("a record is corrupt here and waits for another replica's copy ({why})"))
    }

    /// Actors are given up by partition, so that both sides must mean the same one.
    fn assert_partition(&self, partition: Partition, key: &[u8]) {
        let partitions = self.partitions.load(Ordering::Relaxed);
        assert!(partitions == 0 || Partition::of(key_hash(key), partitions) == partition, "a key of another partition");
    }

    fn is_tight(&self) -> bool {
        self.room.get().is_some_and(|room| room.level() != Level::Plenty)
    }

    /// Whether the disk has room for a value that is not held yet: see [`crate::store::room`].
    fn room_for_a_value(&self) -> Result<(), NotApplied> {
        match self.room.get().and_then(DiskRoom::refuse) {
            None => Ok(()),
            Some(why) => {
                sometimes!("replica: a value was refused, the disk's reserve was touched");
                Err(self.failed(why))
            }
        }
    }

    fn check_open(&self) -> Result<(), NotApplied> {
        match self.closed.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(NotApplied::NotServing { node: self.node, why: "it is shutting down".into() }),
        }
    }

    fn failed(&self, why: String) -> NotApplied {
        NotApplied::Storage { node: self.node, why }
    }

    fn draw_new_actor(&self, partition: Partition) {
        lock(&self.minters).remove(&partition);
    }

    fn next_dot(&self, partition: Partition, held: &Record, cause: &Context) -> Dot {
        let mut minters = lock(&self.minters);
        if buggify!("replica: a new actor for no reason") {
            minters.remove(&partition);
        }
        sometimes!(
            "mint: an actor was drawn anew beside an earlier one",
            !minters.contains_key(&partition) && held.context.actors().iter().any(|actor| actor.node == self.node)
        );
        let draw = || {
            count(&self.counters.actors, 1);
            Minter::new(Actor { node: self.node, incarnation: self.random.u64() })
        };
        let minter = minters.entry(partition).or_insert_with(draw);
        if !minter.is_ahead_of(held, cause) {
            sometimes!("mint: a context was ahead of its actor");
            tracing::warn!(node = %self.node, %partition, actor = %minter.actor(),
                "a context knows dots of this actor that it never minted; a new actor takes over");
            *minter = draw();
        }
        minter.next_dot()
    }

    /// After an insert that failed: it may be there all the same, and then a retry of what it replaced must not be taken for
    /// a new write. If it cannot be read back either, those operations are forgotten, as in a restart.
    fn remember_if_there(
        &self,
        of_key: (Partition, u128),
        place: &Place,
        key: &[u8],
        record: &Record,
        dropped: Dropped,
        now: Instant,
    ) {
        let Ok(Some(held)) = self.stored_at(place, key) else { return };
        if held == *record {
            self.remember(of_key, dropped, now);
        }
    }

    /// Only after the data is written (rule V6).
    fn remember(&self, of_key: (Partition, u128), dropped: Dropped, now: Instant) {
        if !dropped.writes.is_empty() {
            let mut operations = lock(&self.operations);
            for (dot, op_id) in dropped.writes {
                operations.remember(of_key, op_id, dot, now);
            }
        }
        if !dropped.incidents.is_empty() {
            count(&self.counters.incidents, dropped.incidents.len() as u64);
            tracing::error!(node = %self.node, dots = ?dropped.incidents, "two values have the same dot; one of them is lost");
        }
    }
}

/// An insert that has begun: the actor is given up unless it is known how it ended, also when the engine panics.
struct InDoubt<'a> {
    inner: &'a Inner,
    partition: Partition,
    place: &'a Place,
    data_key: &'a [u8],
}

impl InDoubt<'_> {
    /// It succeeded: the tree follows the data.
    fn settled(self, old: Option<u128>, new: u128) {
        if *self.place == Place::Data {
            self.inner.trees.replaced(self.partition, self.data_key, old, Some(new));
        }
        std::mem::forget(self);
    }
}

impl Drop for InDoubt<'_> {
    fn drop(&mut self) {
        self.inner.draw_new_actor(self.partition);
        if *self.place == Place::Data {
            self.inner.trees.doubt(self.partition, self.data_key);
        }
    }
}

/// What another record claims of an actor is disputed until the record that says so is written: see [`Inner::disputed`].
struct Dispute<'a> {
    inner: &'a Inner,
    of_record: (Partition, u128),
    /// The actor, if there is a dispute.
    claimed: Option<Minter>,
}

impl Dispute<'_> {
    /// It is written, or there is nothing to be written.
    fn settled(&mut self) {
        if self.claimed.take().is_some() {
            lock(&self.inner.disputes).remove(&self.of_record);
        }
    }
}

impl Drop for Dispute<'_> {
    fn drop(&mut self) {
        let Some(claimed) = self.claimed.take() else { return };
        let mut disputes = lock(&self.inner.disputes);
        if disputes.len() >= DISPUTES_MAX {
            disputes.pop_first();
        }
        disputes.insert(self.of_record, claimed);
    }
}

/// More than there will ever be: each is an incident.
const DISPUTES_MAX: usize = 1_024;

/// Superseded operations and their dots (rule V6), for [`OPERATION_WINDOW`] each, oldest out first.
#[derive(Debug)]
struct Operations {
    known: BTreeMap<(Partition, u128, OpId), Remembered>,
    /// In the order in which they were remembered. What was forgotten in between is skipped by its number.
    order: VecDeque<(u64, (Partition, u128, OpId))>,
    next: u64,
    evicted: u64,
    /// When this node started: nothing is known of what it had minted before.
    started: Instant,
    /// Everything since then is known, but for what was [forgotten](Self::forget).
    complete_since: Instant,
    /// When something of a partition was forgotten; at most 65,536.
    forgotten: BTreeMap<Partition, Instant>,
}

#[derive(Debug)]
struct Remembered {
    dot: Dot,
    until: Instant,
    number: u64,
}

impl Operations {
    fn new(now: Instant) -> Self {
        Self {
            known: BTreeMap::new(),
            order: VecDeque::new(),
            next: 0,
            evicted: 0,
            started: now,
            complete_since: now,
            forgotten: BTreeMap::new(),
        }
    }

    /// Whether an operation whose first attempt was sent so long ago would be known, had it been superseded here.
    fn remembers_since(&self, partition: Partition, first_sent: Duration, now: Instant) -> bool {
        let ago = first_sent.saturating_add(TRAVEL_MAX);
        ago < OPERATION_WINDOW
            && now.checked_sub(ago).is_some_and(|since| since >= self.complete_since)
            && self.was_up_since(partition, first_sent, now)
    }

    /// Whether this node was up when the first attempt was sent, however long it took to arrive, and nothing of the partition was
    /// forgotten since.
    fn was_up_since(&self, partition: Partition, first_sent: Duration, now: Instant) -> bool {
        let whole = |since| self.forgotten.get(&partition).is_none_or(|forgotten| since >= *forgotten);
        let since = now.checked_sub(first_sent.saturating_add(TRAVEL_MAX));
        since.is_some_and(|since| since >= self.started && whole(since))
    }

    fn of_key(partition: Partition, key: &[u8]) -> (Partition, u128) {
        (partition, xxh3_128(key))
    }

    fn dot_of(&self, (partition, key): (Partition, u128), op_id: &OpId, now: Instant) -> Option<Dot> {
        let remembered = self.known.get(&(partition, key, *op_id))?;
        (now < remembered.until).then_some(remembered.dot)
    }

    fn remember(&mut self, (partition, key): (Partition, u128), op_id: OpId, dot: Dot, now: Instant) {
        let entry = (partition, key, op_id);
        if self.known.get(&entry).is_some_and(|known| now < known.until) {
            return;
        }
        let number = self.next;
        self.next += 1;
        self.known.insert(entry, Remembered { dot, until: now + OPERATION_WINDOW, number });
        self.order.push_back((number, entry));
        let most = buggify!("replica: few superseded operations are remembered", OPERATIONS_MAX, 8);
        while let Some((number, oldest)) = self.order.front() {
            let current = self.known.get(oldest).filter(|known| known.number == *number);
            let expired = current.is_none_or(|known| known.until <= now);
            if !expired && self.order.len() <= most {
                break;
            }
            if let Some(current) = current {
                sometimes!("replica: forgot an operation before its time", !expired);
                if !expired {
                    self.evicted += 1;
                    let remembered = current.until.checked_sub(OPERATION_WINDOW).unwrap_or(now);
                    self.complete_since = self.complete_since.max(remembered);
                }
                self.known.remove(oldest);
            }
            self.order.pop_front();
        }
    }

    /// The record of a key is gone, and with it what it held of operations.
    fn forget_key(&mut self, (partition, key): (Partition, u128), now: Instant) {
        self.forgotten.insert(partition, now);
        self.forget((partition, key, OpId(0)), (partition, key, OpId(u128::MAX)));
    }

    fn forget_partition(&mut self, partition: Partition, now: Instant) {
        self.forgotten.insert(partition, now);
        self.forget((partition, 0, OpId(0)), (partition, u128::MAX, OpId(u128::MAX)));
    }

    fn forget(&mut self, from: (Partition, u128, OpId), to: (Partition, u128, OpId)) {
        let entries: Vec<_> = self.known.range(from..=to).map(|(entry, _)| *entry).collect();
        for entry in entries {
            self.known.remove(&entry);
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    minted: AtomicU64,
    repeated: AtomicU64,
    merged: AtomicU64,
    unchanged: AtomicU64,
    actors: AtomicU64,
    corrupt: AtomicU64,
    incidents: AtomicU64,
    hints_kept: AtomicU64,
    hints_delivered: AtomicU64,
    hints_refused: AtomicU64,
    hints_damaged: AtomicU64,
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}

fn check_key(key: &[u8]) -> Result<(), NotApplied> {
    if key.is_empty() {
        return Err(NotApplied::EmptyKey);
    }
    check_len("key", key.len(), KEY_LEN_MAX)
}

fn check_len(what: &str, got: usize, limit: usize) -> Result<(), NotApplied> {
    if got <= limit {
        return Ok(());
    }
    Err(NotApplied::TooLarge { what: what.into(), limit: limit as u64, got: got as u64 })
}

/// What a record that lies somewhere is called in the set of corrupt ones.
fn at(partition: Partition, place: &Place, key: &[u8]) -> (Partition, u128) {
    match place {
        Place::Data => Operations::of_key(partition, key),
        Place::Hint { target, .. } => (partition, xxh3_128(&hints::hint_key(*target, key))),
    }
}

/// The digest of a record, if there is one.
fn digest_of(record: &Record, key: &[u8]) -> Option<u128> {
    (*record != Record::default()).then(|| record.digest(key))
}

/// The lock of a hash.
fn stripe_of(hash: u64) -> usize {
    (hash >> (u64::BITS - STRIPES.ilog2())) as usize
}

/// The live values of a record for people: their dots, each with the operation that wrote it.
fn names(record: &Record) -> String {
    let names: Vec<_> = record.siblings.iter().map(|(dot, sibling)| format!("{dot}={}", sibling.op_id)).collect();
    names.join(" ")
}

/// Where a record lies in [`Tree::Data`]. Public for whoever looks at disks from outside.
#[doc(hidden)]
pub fn data_key(key: &[u8]) -> Vec<u8> {
    [&key_hash(key).to_be_bytes()[..], key].concat()
}

/// The key's hash before the key.
const HASH_LEN: usize = 8;
/// Locks that keys share by the first ten bits of their hash: far more than there are requests in flight on few keys, and
/// 64 KiB in all.
const STRIPES: usize = 1024;
/// A write that would make a record longer is refused: it has to fit a peer's frame of 112 MiB, also after some merges.
const RECORD_LEN_MAX: usize = 16 << 20;
/// A page of a partition ends when it passes this; one record more still fits a peer's frame of 112 MiB.
pub const PAGE_BYTES: usize = 4 << 20;
/// How long a retry is on its way at most, after it was said how long ago the first attempt was sent: the longest silence that a
/// connection outlives.
pub(crate) const TRAVEL_MAX: Duration = Duration::from_secs(30);
/// How long a superseded operation is remembered. Clients give up at half of it.
const OPERATION_WINDOW: Duration = Duration::from_secs(600);
/// How many superseded operations are remembered: about 60 MB. That is the whole window at 430 overwrites a second, and 26
/// seconds at 10,000, when a client's retries end after about a second by default.
const OPERATIONS_MAX: usize = 1 << 18;
/// What the hints of a node may take, in bytes of keys and values: a million writes of 1 KiB, an hour at 300 a second for one
/// node that is down. Past it a fallback refuses, and is not counted; nothing is dropped.
pub const HINT_BYTES_MAX: u64 = 1 << 30;
/// How often a read is repeated because something was lost, somewhere, while it was under way.
const LOOKS_MAX: u32 = 4;
/// How many corrupt records are known one by one, about 4 MB. Beyond it each look at another one counts as a loss of its own, so that
/// a disk with more of them gives up its actors and begins its recovery again and again: it serves nothing wrong, and needs replacing.
const CORRUPT_MAX: usize = 1 << 16;

#[cfg(test)]
#[path = "replica_test.rs"]
mod tests;

#[cfg(test)]
#[path = "replica_loss_test.rs"]
mod losses;
