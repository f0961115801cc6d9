//! The only writer of the store: mints dots, merges records, and remembers what it must for rules V1, V5 and V6.
//!
//! Each key's read-merge-insert runs as one job of the [`Executor`] under one of `STRIPES` locks. The job owns the lock: a
//! request that is given up in the middle leaves neither a half-done job nor an unlocked one behind. No lock is held while
//! waiting for a sync; the [`Ticket`] that comes with each answer is what an acknowledgement waits for.
//!
//! Keys are encoded ones ([`quorate_wire::key`]), and opaque here. Data lies under `hash of the key, u64 BE | key`, so that a partition
//! is one sequential scan. Stripes are slices of the hash range, so that all keys of a leaf of a [hash tree](quorate_core::merkle) lie
//! under few locks.
//!
//! What is known of a partition beside its records, and every rule about that, is its [state](quorate_core::partition). A job looks
//! a write up there, reads and inserts, and tells the state how that ended. Locks are taken in this order: the key's, the
//! [recovery](crate::recovery)'s if something is lost, the partition's; the last one is never held while the store is asked.
//!
//! `healing` holds what anti-entropy asks of a replica: lists, whole records, and trees that are summed up anew; `moving` what a change of
//! owners asks: the fence, and to drop a copy.

mod healing;
mod hints;
mod moving;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock};
use std::time::Duration;

use bytes::Bytes;
use quorate_wire::codec::Blob;
use quorate_wire::ids::{LayoutVersion, NodeId, OpId, Partition, key_hash};
use quorate_wire::random::Random;
use quorate_wire::{CONTEXT_LEN_MAX, ENCODED_KEY_LEN_MAX, NotApplied, SIBLINGS_MAX, VALUE_LEN_MAX};
use quorate_wire::{buggify, dawdle, sometimes, story, tell};
use tokio::sync::OwnedMutexGuard;
use tokio::time::sleep;
use xxhash_rust::xxh3::xxh3_128;

use crate::metrics::Sample;
use crate::partitions::Partitions;
use crate::recovery::{Reading, Recovery};
use crate::store::room::Level;
use crate::store::{Committer, DiskRoom, Executor, Store, StoreError, Ticket, Tree};
use quorate_core::context_keys::sealed_len;
use quorate_core::keyspace::{self, Range, data_key, hint_key};
use quorate_core::merkle::{self, InTree, Leaves};
use quorate_core::mint::Repeated;
use quorate_core::partition::{self, Asked, Change, Event, Found, Judgement, Merging, RecordAt, There};
use quorate_core::record::{DecodeError, Dropped, Record};
use quorate_core::version::{Context, Dot};

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
    /// The newest layout version that it names.
    pub under: LayoutVersion,
}

impl From<OpId> for Operation {
    /// A first attempt, under whatever layout is the newest.
    fn from(id: OpId) -> Self {
        Self { id, first_sent: None, under: LayoutVersion(u64::MAX) }
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
            stripes: (0..STRIPES).map(|_| Arc::default()).collect(),
            partitions: recovery.states().clone(),
            counters: Counters::default(),
            recovery,
            rebuild: tokio::sync::Mutex::default(),
            gate: RwLock::default(),
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
        self.0.partitions.set_count(partitions);
    }

    /// The states of its partitions.
    pub fn partitions(&self) -> &Partitions {
        &self.0.partitions
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
        let len = value.as_ref().map_or(0, |value| value.len());
        let write = Write { partition, key: key.clone(), operation: operation.into(), value, cause };
        self.locked(key, len, move |inner, now| {
            let _gate = inner.passes(partition, write.operation.under)?;
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
        let (key_owned, len) = (key.clone(), values_len(&record));
        let merge = move |inner: &Inner, now| {
            let _gate = inner.passes(partition, LayoutVersion(u64::MAX))?;
            inner.merge(partition, &Place::Data, &key_owned, &record, now)
        };
        self.locked(key, len, merge).await
    }

    /// Merges what a coordinator has sent; `under` is the newest layout version that its write names.
    ///
    /// # Errors
    /// As [`merge`](Self::merge), and [`NotApplied::StaleLayout`] if the [fence](Self::raise_fence) has passed that version.
    pub async fn merge_under(
        &self,
        partition: Partition,
        key: &Blob,
        record: Record,
        under: LayoutVersion,
    ) -> Result<Merged, NotApplied> {
        check_key(key)?;
        let (key_owned, len) = (key.clone(), values_len(&record));
        let merge = move |inner: &Inner, now| {
            let _gate = inner.passes(partition, under)?;
            inner.merge(partition, &Place::Data, &key_owned, &record, now)
        };
        self.locked(key, len, merge).await
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
            Some(primaries) => primaries.iter().map(|target| len(Tree::Hints, &hint_key(*target, key))).sum(),
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
        match (inner.stored(key), inner.partitions.count()) {
            (Ok(record), _) => {
                tell!(act = "reads", key = %story::text(key), node = %inner.node,
                    holds = record.as_ref().map(names));
                Ok(record)
            }
            (Err(Unreadable::Failed(why)), _) => Err(inner.failed(why)),
            // Whoever mints or merges knows the partition, looks again and gives up the actor.
            (Err(Unreadable::Corrupt(why)), None) => Err(inner.refused_corrupt(&why)),
            // Under the lock, so that no merge is just replacing it.
            (Err(Unreadable::Corrupt(_)), Some(partitions)) => {
                let key_owned = key.clone();
                let partition = Partition::of(key_hash(key), partitions);
                self.locked(key, 0, move |inner, _| inner.read_or_refuse(partition, &key_owned)).await
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

    /// As [`settled`](Self::settled), for an answer that says what is held of writes that name no newer version than `under`.
    ///
    /// # Errors
    /// As `settled`, and [`NotApplied::StaleLayout`] if newer ones may be among what was read.
    pub(crate) async fn settled_under(&self, under: LayoutVersion) -> Result<(), NotApplied> {
        self.settled().await?;
        match self.fence() {
            need if under < need => Err(NotApplied::StaleLayout { need, had: LayoutVersion::NONE }),
            _ => Ok(()),
        }
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
        let partitions = inner.partitions.count().unwrap_or(0);
        if partition.0 >= partitions {
            let why = match partitions {
                0 => "there is no layout yet".to_owned(),
                _ => format!("partition {partition} is not one of the {partitions}"),
            };
            return Err(NotApplied::NotServing { node: inner.node, why });
        }
        let range = keyspace::partition(partition, partitions);
        let left = match after {
            Some(key) => range.after(&data_key(key)),
            None => Some(range),
        };
        let Some(Range { from, to: end }) = left else { return Ok((Vec::new(), true)) };
        let page = || {
            let (job, from, end) = (inner.clone(), from.clone(), end.clone());
            inner.executor.run(move || job.page(partition, &from, end.as_deref(), limit.max(1)))
        };
        inner.unless_lost(partition, &Leaves::ALL, reading, page).await
    }

    /// Rule V1, to be called *before* records of a partition are deleted in any way other than by `mint` and `merge`: its actor mints
    /// no more, and what is remembered of its operations goes with the records.
    pub fn give_up_actor(&self, partition: Partition) {
        let now = self.0.partitions.now();
        self.0.partitions.with(partition, |state, _| state.removed(now));
    }

    /// Forgets the superseded operations whose time is over, and shares out the room for them, for as long as it is polled.
    pub(crate) async fn trim_operations(self) {
        loop {
            sleep(TRIM_PAUSE).await;
            self.0.operations_evicted(self.0.partitions.trim_operations());
        }
    }

    /// What it has done.
    pub fn stats(&self) -> ReplicaStats {
        let counters = &self.0.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let kept = lock(&self.0.kept);
        ReplicaStats {
            minted: count(&counters.minted),
            repeated: count(&counters.repeated),
            merged: count(&counters.merged),
            unchanged: count(&counters.unchanged),
            actors: count(&counters.actors),
            operations: self.0.partitions.operations(),
            operations_evicted: count(&counters.operations_evicted),
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

    /// Runs a job under the key's lock. The job has the lock, so that both end together, also if nobody waits any longer. It is a
    /// [short](Executor::run_short) one if the values that it brings take few bytes.
    async fn locked<T, F>(&self, key: &Blob, values_len: usize, job: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(&Inner, Duration) -> T + Send + 'static,
    {
        let stripe = stripe_of(key_hash(key));
        dawdle!("replica: a pause before a key is locked");
        let lock: OwnedMutexGuard<()> = self.0.stripes[stripe].clone().lock_owned().await;
        dawdle!("replica: a pause with a key locked");
        // A storage thread has no runtime, whose clock may be a simulation's.
        let now = self.0.partitions.now();
        let inner = self.0.clone();
        let job = move || {
            let done = job(&inner, now);
            drop(lock);
            done
        };
        match values_len <= SHORT_LEN_MAX {
            true => self.0.executor.run_short(job).await,
            false => self.0.executor.run(job).await,
        }
    }
}

struct Inner {
    node: NodeId,
    store: Arc<dyn Store>,
    executor: Executor,
    committer: Committer,
    random: Random,
    stripes: Vec<Arc<tokio::sync::Mutex<()>>>,
    partitions: Partitions,
    /// How much is kept for whom.
    kept: Mutex<Kept>,
    counters: Counters,
    recovery: Recovery,
    /// One partition is summed up at a time.
    rebuild: tokio::sync::Mutex<()>,
    /// What is refused because of a layout. Whoever writes holds it for reading meanwhile, so that who has changed it knows that nothing is
    /// under way which it refuses. It is taken after a key's lock.
    gate: RwLock<moving::Gate>,
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

/// What the state of a partition knows a record by.
struct Name {
    key: u128,
    place: u128,
    data_key: Vec<u8>,
    /// Once there is a layout.
    leaf: Option<u8>,
    own: bool,
}

impl Name {
    fn at(&self) -> RecordAt<'_> {
        let in_tree = self.leaf.map(|leaf| InTree { leaf, data_key: &self.data_key });
        let copy = if self.own { partition::CopyKind::Own(in_tree) } else { partition::CopyKind::Hint };
        RecordAt { key: self.key, place: self.place, copy }
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
    /// It is lost, and other owners have to make up for it.
    Corrupt(String),
    /// The store failed, or a newer release has written the record: nothing may take its place.
    Failed(String),
}

impl From<DecodeError> for Unreadable {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Damaged(why) => Self::Corrupt(why),
            newer @ DecodeError::Newer(_) => Self::Failed(format!("the record is left as it is: {newer}")),
        }
    }
}

impl Inner {
    /// `held` is all that this node holds of the key: the mint is a record that has every dot that it ever minted for it.
    fn mint(&self, write: Write, place: &Place, held: Record, now: Duration) -> Result<Minted, MintError> {
        let Write { partition, key, operation: Operation { id: op_id, first_sent, .. }, value, cause } = write;
        self.assert_partition(partition, &key);
        self.check_open()?;
        let name = self.name(place, &key);
        let asked = Asked { op_id, first_sent, delete: value.is_none(), cause: &cause };
        let in_doubt = self.recovery.is_in_doubt();
        let judge =
            |state: &partition::PartitionState| state.judge(self.node, &name.at(), &asked, &held, in_doubt, now);
        match self.partitions.look(partition, judge) {
            Judgement::New => {}
            Judgement::Repeated(repeated) => return Ok(self.repeated(&key, op_id, held, repeated)),
            Judgement::Forgotten => {
                sometimes!("mint: a retry of what this node would not remember");
                return Err(MintError::Forgotten);
            }
        }
        if value.is_some() {
            self.room_for_a_value()?;
        }
        let (siblings, len) = (held.value_count(), held.encoded_len());
        let before = match place {
            Place::Data => held.context.clone(),
            Place::Hint { .. } => self.stored_at(place, &key).ok().flatten().unwrap_or_default().context,
        };
        let old_digest = digest_of(&held, &key);
        let elsewhere = self.has_minted_elsewhere(partition, place, &key, &held);
        sometimes!("mint: the actor had minted for the key elsewhere", elsewhere);
        let minting = self.partitions.with(partition, |state, _| {
            if elsewhere || buggify!("replica: a new actor for no reason") {
                state.give_up_actor();
            }
            state.mint(self.node, held, op_id, value, &cause, &mut || self.random.u64())
        });
        self.tell_of(partition, minting.events);
        let (dot, fresh) = (minting.dot, minting.fresh);
        if fresh.record.value_count() > SIBLINGS_MAX.max(siblings) {
            let refused = NotApplied::TooManySiblings { got: siblings as u32, limit: SIBLINGS_MAX as u32 };
            return Err(refused.into());
        }
        let (context_len, record_len) = (sealed_len(&fresh.record.context), fresh.record.encoded_len());
        check_len("context", context_len.max(sealed_len(&fresh.context)), CONTEXT_LEN_MAX)?;
        // Whoever makes a record smaller that merges have made too large is welcome.
        check_len("record", record_len, RECORD_LEN_MAX.max(len))?;

        self.make_room(place, &key, record_len)?;
        match self.insert(partition, &name, place, &key, &fresh.record) {
            Ok(()) => {}
            Err(error @ (StoreError::NoRoom(_) | StoreError::Full(_))) if self.still_holds(place, &key, &before) => {
                sometimes!("mint: the disk was full");
                self.check_engine(&error);
                self.insert_unknown(partition, &name, There::No, now);
                return Err(self.failed(error.to_string()).into());
            }
            Err(error) => {
                sometimes!("mint: an insert failed and nobody knows whether it is there");
                self.check_engine(&error);
                let there = self.is_there(place, &key, &fresh.record, fresh.dropped);
                self.insert_unknown(partition, &name, there, now);
                return Err(MintError::Unknown(error.to_string()));
            }
        }
        let replaced = fresh.dropped.writes.iter().map(|(_, op_id)| op_id).collect::<BTreeSet<_>>().len();
        let change = Change::Replaced(old_digest, Some(fresh.record.digest(&key)));
        let events = self
            .partitions
            .with(partition, |state, room| state.written(&name.at(), change, fresh.dropped, now, room.operations()));
        self.tell_of(partition, events);
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

    fn repeated(&self, key: &[u8], op_id: OpId, held: Record, repeated: Repeated) -> Minted {
        let Repeated { dot, context } = repeated;
        count(&self.counters.repeated, 1);
        sometimes!("mint: a retry returned the first dot", held.siblings.contains_key(&dot));
        sometimes!("mint: a retry found its operation superseded", !held.siblings.contains_key(&dot));
        sometimes!("mint: a retry of another coordinator's write", dot.actor.node != self.node);
        tell!(act = "repeats", key = %story::text(key), node = %self.node, %op_id, %dot, holds = names(&held));
        let ticket = self.committer.ticket_unchanged();
        Minted { dot, record: held, context, replaced: 0, repeated: true, ticket }
    }

    fn merge(
        &self,
        partition: Partition,
        place: &Place,
        key: &Blob,
        other: &Record,
        now: Duration,
    ) -> Result<Merged, NotApplied> {
        self.assert_partition(partition, key);
        self.check_open()?;
        let name = self.name(place, key);
        let mut corrupt = false;
        let held = match self.stored_at(place, key) {
            Ok(record) => record.unwrap_or_default(),
            Err(Unreadable::Failed(why)) => return Err(self.failed(why)),
            Err(Unreadable::Corrupt(why)) => {
                // Noted before anything takes its place, or the next process would not know of the loss.
                let noted = self.note_corrupt(partition, place, key, &why);
                let noted = noted.and_then(|()| self.replace_corrupt(partition, &name));
                noted.map_err(|error| self.failed(error.to_string()))?;
                corrupt = true;
                Record::default()
            }
        };
        let siblings = held.value_count();
        let dots: Option<BTreeSet<Dot>> = self.is_tight().then(|| held.siblings.keys().copied().collect());
        let old_digest = digest_of(&held, key);
        let merging = self.partitions.with(partition, |state, _| {
            state.merge(self.node, &name.at(), held, other, now, &mut || self.random.u64())
        });
        let Merging { record, dropped, changed, renamed, disputed, kept_out, events } = merging;
        self.tell_of(partition, events);
        sometimes!("merge: kept a superseded operation out", kept_out);
        sometimes!("merge: dropped a superseded sibling", record.value_count() < siblings);
        sometimes!("merge: made siblings", record.value_count() > siblings.max(1));
        sometimes!("merge: one operation with two dots", record.siblings.len() > record.value_count());
        let wrote = changed || corrupt;
        let (mut digest, mut change) = (old_digest.unwrap_or(0), Change::Nothing);
        if wrote {
            let is_new = |dot: &Dot, dots: &BTreeSet<Dot>| !dots.contains(dot) && !renamed.contains(dot);
            if dots.is_some_and(|dots| record.siblings.keys().any(|dot| is_new(dot, &dots))) {
                self.room_for_a_value()?;
            }
            self.make_room(place, key, record.encoded_len())?;
            if let Err(error) = self.insert(partition, &name, place, key, &record) {
                self.check_engine(&error);
                let there = self.is_there(place, key, &record, dropped);
                self.insert_unknown(partition, &name, there, now);
                return Err(self.failed(format!("{error} (the merge can be repeated)")));
            }
            digest = record.digest(key);
            change = if corrupt { Change::ReplacedCorrupt } else { Change::Replaced(old_digest, Some(digest)) };
        }
        sometimes!("merge: replaced a corrupt record", corrupt);
        let events = self.partitions.with(partition, |state, room| {
            if disputed {
                state.settle_dispute(&name.at());
            }
            state.written(&name.at(), change, dropped, now, room.operations())
        });
        self.tell_of(partition, events);
        tell!(act = "merges", key = %story::text(key), node = %self.node, got = names(other), changed = wrote,
            kept_for = place.kept_for(), holds = names(&record));
        count(if wrote { &self.counters.merged } else { &self.counters.unchanged }, 1);
        let ticket = if wrote { self.committer.ticket() } else { self.committer.ticket_unchanged() };
        Ok(Merged { changed: wrote, was_corrupt: corrupt, digest, ticket })
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
            let key = Blob(keyspace::key_of_data(&key));
            match Record::decode(&value) {
                Ok(record) => Ok((key, record)),
                Err(error) => Err(self.refuse_unreadable(partition, &key, error.into())),
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
            Place::Data => Ok(Some(Record::decode(&bytes)?)),
            Place::Hint { .. } => Ok(Some(hints::decode(&bytes)?.1)),
        }
    }

    fn raw(&self, place: &Place, key: &[u8]) -> Result<Option<Bytes>, Unreadable> {
        let found = match place {
            Place::Data => self.store.get(Tree::Data, &data_key(key)),
            Place::Hint { target, .. } => self.store.get(Tree::Hints, &hint_key(*target, key)),
        };
        found.map_err(|error| match error {
            StoreError::Corrupt(why) => Unreadable::Corrupt(why),
            error => Unreadable::Failed(error.to_string()),
        })
    }

    fn insert(
        &self,
        partition: Partition,
        name: &Name,
        place: &Place,
        key: &[u8],
        record: &Record,
    ) -> Result<(), StoreError> {
        let doubt = InDoubt { inner: self, partition, name };
        let inserted = match place {
            Place::Data => self.store.insert(Tree::Data, &name.data_key, &record.encode()),
            Place::Hint { target, since_ms } => self.insert_hint(*target, *since_ms, key, record),
        };
        std::mem::forget(doubt);
        inserted
    }

    /// Rule V1: whether this node's actor has minted for a key in a record that is not part of `held`, its own or a hint. Its next dot there
    /// would cover those of that record as well, without holding their values. That can be when the owners of the partition have changed:
    /// who keeps hints of a key now has owned it before, or the other way round.
    fn has_minted_elsewhere(&self, partition: Partition, place: &Place, key: &[u8], held: &Record) -> bool {
        let Some(actor) = self.partitions.look(partition, partition::PartitionState::actor) else { return false };
        // What is minted in its own record is all of that: `held` is what was read of it just now.
        let data = matches!(place, Place::Hint { .. }).then_some(Place::Data);
        let hints = self.hint_targets().into_iter().map(|target| Place::Hint { target, since_ms: 0 });
        data.into_iter().chain(hints).any(|place| match self.stored_at(&place, key) {
            Ok(record) => record.unwrap_or_default().context.highest(&actor) > held.context.highest(&actor),
            // What cannot be read may show it.
            Err(_) => true,
        })
    }

    /// Whether a record is there though its insert has failed, and dropped what it was to drop.
    fn is_there(&self, place: &Place, key: &[u8], record: &Record, dropped: Dropped) -> There {
        match self.stored_at(place, key) {
            Ok(held) if held.as_ref() == Some(record) => There::Yes(dropped),
            Ok(_) => There::No,
            Err(_) => There::Unknown,
        }
    }

    fn insert_unknown(&self, partition: Partition, name: &Name, there: There, now: Duration) {
        let events = self
            .partitions
            .with(partition, |state, room| state.insert_unknown(&name.at(), there, now, room.operations()));
        self.tell_of(partition, events);
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
        self.stored(key).map_err(|unreadable| self.refuse_unreadable(partition, key, unreadable))
    }

    fn refuse_unreadable(&self, partition: Partition, key: &[u8], unreadable: Unreadable) -> NotApplied {
        match unreadable {
            Unreadable::Corrupt(why) => self.found_corrupt(partition, &Place::Data, key, &why),
            Unreadable::Failed(why) => self.failed(why),
        }
    }

    /// A record is lost: see [`note_corrupt`](Self::note_corrupt). If that cannot be noted now, it is at the next look, and
    /// until then nothing takes the record's place.
    fn found_corrupt(&self, partition: Partition, place: &Place, key: &[u8], why: &str) -> NotApplied {
        if let Err(error) = self.note_corrupt(partition, place, key, why) {
            tracing::error!(node = %self.node, %partition, %error, "that a record is corrupt cannot be noted");
        }
        self.refused_corrupt(why)
    }

    /// Notes once for each corrupt record that it is lost, and with it what every loss takes with it: see
    /// [`PartitionState::found_corrupt`](partition::PartitionState::found_corrupt).
    ///
    /// A caller without the key's lock may be late: a merge may have replaced the record since it was read. A merge notes the loss itself
    /// before it does so, and that stays known until the new record is written. So whoever finds the loss unknown while nobody else can note
    /// one, and the record corrupt after that, is not late.
    fn note_corrupt(&self, partition: Partition, place: &Place, key: &[u8], why: &str) -> Result<(), StoreError> {
        let name = self.name(place, key);
        let is_known = || self.partitions.look(partition, |state| state.is_corrupt(&name.at()));
        if is_known() {
            return Ok(());
        }
        let mut noting = self.recovery.noting();
        if is_known() || self.stored_at(place, key).is_ok() {
            return Ok(());
        }
        let now = self.partitions.now();
        let found = self.partitions.with(partition, |state, _| state.found_corrupt(&name.at(), now));
        let Some(Found { note, again }) = found else { return Ok(()) };
        tell!(act = "finds its record corrupt", key = %story::text(key), node = %self.node);
        sometimes!("replica: found a corrupt record");
        sometimes!("recovery: a record was lost while others of its leaf were being recovered", again);
        if let Some(note) = note {
            noting.note(partition, &note)?;
        }
        self.partitions.with(partition, |state, room| state.noted_corrupt(&name.at(), room.corrupt()));
        drop(noting);
        count(&self.counters.corrupt, 1);
        tracing::error!(node = %self.node, %partition, why, "a record is corrupt; it is recovered from the other owners");
        Ok(())
    }

    /// Another replica's copy is about to take the place of a corrupt record, whose loss was noted.
    fn replace_corrupt(&self, partition: Partition, name: &Name) -> Result<(), StoreError> {
        let mut noting = self.recovery.noting();
        let now = self.partitions.now();
        let note = self.partitions.with(partition, |state, _| state.replace_corrupt(&name.at(), now));
        note.map_or(Ok(()), |note| noting.note(partition, &note))
    }

    /// What the state of its partition knows a record by.
    fn name(&self, place: &Place, key: &[u8]) -> Name {
        let of_key = xxh3_128(key);
        let (at, own) = match place {
            Place::Data => (of_key, true),
            Place::Hint { target, .. } => (xxh3_128(&hint_key(*target, key)), false),
        };
        let leaf = self.partitions.count().map(|partitions| merkle::leaf_of(key_hash(key), partitions));
        Name { key: of_key, place: at, data_key: data_key(key), leaf, own }
    }

    /// Where a key is, as far as that is known: before there is a layout, nothing is lost but by a doubt, which is about all.
    fn leaf_of(&self, key: &[u8]) -> (Partition, Leaves) {
        let hash = key_hash(key);
        self.partitions.count().map_or((Partition(0), Leaves::NONE), |partitions| {
            (Partition::of(hash, partitions), [merkle::leaf_of(hash, partitions)].into_iter().collect())
        })
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
        let is_of_it = |partitions| Partition::of(key_hash(key), partitions) == partition;
        assert!(self.partitions.count().is_none_or(is_of_it), "a key of another partition");
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

    /// Counts and logs what happened in a transition.
    fn tell_of(&self, partition: Partition, events: Vec<Event>) {
        for event in events {
            match event {
                Event::ActorDrawn { beside_an_earlier_one } => {
                    sometimes!("mint: an actor was drawn anew beside an earlier one", beside_an_earlier_one);
                    count(&self.counters.actors, 1);
                }
                Event::ContextAhead(actor) => {
                    sometimes!("mint: a context was ahead of its actor");
                    tracing::warn!(node = %self.node, %partition, %actor,
                        "a context knows dots of this actor that it never minted; a new actor takes over");
                }
                Event::ClaimDisputed { actor, kept } => {
                    sometimes!("merge: a record was ahead of its actor");
                    count(&self.counters.incidents, 1);
                    tracing::error!(node = %self.node, %partition, %actor, kept,
                        "another replica's record knows writes of this actor that it never minted: a context was made up, or this process's \
                         memory was set back; the values in doubt are kept, and a new actor takes over");
                }
                Event::TwoValues(dots) => {
                    count(&self.counters.incidents, dots.len() as u64);
                    tracing::error!(node = %self.node, ?dots, "two values have the same dot; one of them is lost");
                }
                Event::OperationsEvicted(evicted) => self.operations_evicted(evicted),
            }
        }
    }

    fn operations_evicted(&self, evicted: u64) {
        sometimes!("replica: forgot an operation before its time", evicted > 0);
        count(&self.counters.operations_evicted, evicted);
    }
}

/// An insert that has begun: if the engine panics, nobody knows how it ended.
struct InDoubt<'a> {
    inner: &'a Inner,
    partition: Partition,
    name: &'a Name,
}

impl Drop for InDoubt<'_> {
    fn drop(&mut self) {
        self.inner.insert_unknown(self.partition, self.name, There::Unknown, self.inner.partitions.now());
    }
}

#[derive(Debug, Default)]
struct Counters {
    minted: AtomicU64,
    repeated: AtomicU64,
    merged: AtomicU64,
    unchanged: AtomicU64,
    actors: AtomicU64,
    operations_evicted: AtomicU64,
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

/// Keys are opaque here. Whoever serves requests has seen to it that they are encoded keys and of a legal length.
fn check_key(key: &[u8]) -> Result<(), NotApplied> {
    if key.is_empty() {
        return Err(NotApplied::EmptyKey);
    }
    check_len("key", key.len(), ENCODED_KEY_LEN_MAX)
}

fn check_len(what: &str, got: usize, limit: usize) -> Result<(), NotApplied> {
    if got <= limit {
        return Ok(());
    }
    Err(NotApplied::TooLarge { what: what.into(), limit: limit as u64, got: got as u64 })
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

/// How many bytes the values take in a record.
fn values_len(record: &Record) -> usize {
    record.siblings.values().map(|sibling| sibling.value.len()).sum()
}

/// Values that take more are not stored in microseconds: sled writes them, with the records beside them, to files of their own.
const SHORT_LEN_MAX: usize = 16 << 10;
/// Locks that keys share by the first ten bits of their hash: far more than there are requests in flight on few keys, and
/// 64 KiB in all.
const STRIPES: usize = 1024;
/// A write that would make a record longer is refused: it has to fit a peer's frame of 112 MiB, also after some merges.
const RECORD_LEN_MAX: usize = 16 << 20;
/// A page of a partition ends when it passes this; one record more still fits a peer's frame of 112 MiB.
pub const PAGE_BYTES: usize = 4 << 20;
/// What the hints of a node may take, in bytes of keys and values: a million writes of 1 KiB, an hour at 300 a second for one
/// node that is down. Past it a fallback refuses, and is not counted; nothing is dropped.
pub const HINT_BYTES_MAX: u64 = 1 << 30;
/// How often it is looked which superseded operations can go. At 10,000 overwrites a second in one partition all the room is taken in 26 s:
/// others then have only their shares until the next look.
const TRIM_PAUSE: Duration = Duration::from_secs(10);
/// How often a read is repeated because something was lost in its partition while it was under way.
const LOOKS_MAX: u32 = 4;

#[cfg(test)]
#[path = "replica_test.rs"]
mod tests;

#[cfg(test)]
#[path = "replica_loss_test.rs"]
mod losses;
