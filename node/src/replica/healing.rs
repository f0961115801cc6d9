//! What anti-entropy asks of a replica: lists of what it holds, whole records whatever their state, and hash trees that are
//! summed up anew.
//!
//! A record that is corrupt counts as missing here: a peer's copy of it is what heals it. So does one that a newer release has written, but
//! that one is not lost: a merge refuses to take its place.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use quorate_wire::NotApplied;
use quorate_wire::codec::Blob;
use quorate_wire::ids::{LayoutVersion, NodeId, Partition, key_hash};
use quorate_wire::{buggify, dawdle, sometimes};
use tokio::sync::OwnedMutexGuard;

use super::{Inner, PAGE_BYTES, Place, Replica, Unreadable, digest_of, stripe_of};
use crate::beacons::Beacons;
use crate::recovery::{Doubt, Facts, Lost, Reason, Recovery};
use crate::store::{StoreError, Tree};
use quorate_core::exchange::Listed;
use quorate_core::keyspace::{self, Range, data_key};
use quorate_core::merkle::{self, HashTree, LEAVES, Leaves, LiveTree};
use quorate_core::record::{DecodeError, Record};

impl Replica {
    /// What it has lost.
    pub fn recovery(&self) -> &Recovery {
        &self.0.recovery
    }

    /// Judges the start, see [`Recovery::decide`].
    ///
    /// # Errors
    /// When the store fails; nothing is served then.
    pub async fn decide(&self, facts: Facts) -> Result<(), StoreError> {
        let inner = self.0.clone();
        let job = move || inner.recovery.decide(&facts).inspect_err(|error| inner.check_engine(error));
        self.0.executor.run(job).await
    }

    /// This disk was set back: all of these partitions are lost, which are owned under layouts up to `judged`.
    ///
    /// # Errors
    /// When the store fails; nothing is served then.
    pub async fn set_back(&self, owned: Vec<Partition>, judged: LayoutVersion) -> Result<(), StoreError> {
        let inner = self.0.clone();
        let job = move || {
            inner.recovery.lose_all(&owned, Reason::RolledBack)?;
            inner.recovery.note_judged(judged)?;
            inner.store.sync()?;
            inner.recovery.settle(Doubt::SetBack);
            Ok(())
        };
        self.0.executor.run(job).await
    }

    /// All of these partitions are lost.
    ///
    /// # Errors
    /// When the store fails; some of them may have been noted then.
    pub(crate) async fn lose_all(&self, partitions: Vec<Partition>, reason: Reason) -> Result<(), StoreError> {
        let inner = self.0.clone();
        let job = move || {
            inner.recovery.lose_all(&partitions, reason)?;
            inner.store.sync()
        };
        self.0.executor.run(job).await
    }

    /// As [`set_back`](Self::set_back), of a disk that was set back or exchanged before this layout was learned.
    ///
    /// # Errors
    /// When the store fails; it is to be done again then.
    pub(crate) async fn lose_learned(&self, owned: Vec<Partition>, judged: LayoutVersion) -> Result<(), StoreError> {
        let inner = self.0.clone();
        let job = move || {
            inner.recovery.lose_all(&owned, Reason::OtherDisk)?;
            inner.recovery.note_judged(judged)?;
            inner.store.sync()
        };
        self.0.executor.run(job).await
    }

    /// Stores what is remembered of other nodes' disks, durably: nothing else may be written for hours. It is no write for which this node's
    /// own beacon would grow, or nodes would have news for each other for ever.
    pub(crate) async fn save_beacons(&self, beacons: &Beacons) {
        let (inner, beacons) = (self.0.clone(), beacons.clone());
        let save = move || {
            beacons.save(&*inner.store)?;
            inner.store.sync().inspect_err(|error| inner.check_engine(error))
        };
        if let Err(error) = self.0.executor.run(save).await {
            tracing::debug!("how far other disks are is not stored: {error}");
        }
    }

    /// Notes an exchange of what is lost, see [`Recovery::exchanged`]. What came must be durable.
    ///
    /// # Errors
    /// When the store does not take it; then it is to be done again.
    pub async fn exchanged(
        &self,
        partition: Partition,
        lost: Lost,
        with: NodeId,
        recovering: Leaves,
        need: usize,
        others: usize,
    ) -> Result<bool, StoreError> {
        let recovery = self.0.recovery.clone();
        let job = move || recovery.exchanged(partition, lost, with, &recovering, need, others);
        self.0.executor.run(job).await
    }

    /// Takes the trees that were saved by the start before `boot`, which must have ended cleanly; tells how many. To be called
    /// once the number of partitions is known and before anything is written.
    pub async fn load_trees(&self, boot: u64) -> usize {
        let inner = self.0.clone();
        self.0.executor.run(move || inner.partitions.load_trees(&*inner.store, boot)).await
    }

    /// Refuses every write from here on, waits for those that have begun, and saves the trees for the next start.
    ///
    /// # Errors
    /// When the trees could not be saved; they are summed up anew then.
    pub async fn close(&self, boot: u64) -> Result<(), StoreError> {
        self.0.closed.store(true, Ordering::SeqCst);
        for stripe in &self.0.stripes {
            drop(stripe.clone().lock_owned().await);
        }
        let inner = self.0.clone();
        self.0.executor.run(move || inner.partitions.save_trees(&*inner.store, boot)).await
    }

    /// Sums up the unknown leaves of a partition from the data. Requests for its keys wait for one page at a time at most.
    ///
    /// # Errors
    /// When the store cannot be read. A leaf that fell into doubt again and again is left unknown, which is no error.
    pub async fn rebuild(&self, partition: Partition) -> Result<(), NotApplied> {
        let Some(partitions) = self.0.partitions.count() else { return Ok(()) };
        let _one = self.0.rebuild.lock().await;
        let unknown = self.0.partitions.unknown(partition);
        if unknown.len() > WHOLE_FROM && self.rebuild_whole(partition, partitions).await? {
            sometimes!("hash trees: a partition was summed up at once");
            return Ok(());
        }
        for leaf in unknown.iter() {
            sometimes!("hash trees: a leaf was summed up");
            for _ in 0..ATTEMPTS_MAX {
                if self.rebuild_leaf(partition, leaf, partitions).await? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// A list of what it holds in some leaves of a partition, in the order of (key hash, key) after the key `after`: at most
    /// `limit` records, and whether nothing follows on them.
    ///
    /// # Errors
    /// [`NotApplied::Storage`] if the store failed, [`NotApplied::NotServing`] before the layout is known.
    pub async fn list(
        &self,
        partition: Partition,
        leaves: &Leaves,
        after: Option<&Blob>,
        limit: usize,
    ) -> Result<(Vec<Listed>, bool), NotApplied> {
        let inner = &self.0;
        let partitions = inner.partitions.count().ok_or_else(|| {
            let why = "there is no layout yet".into();
            NotApplied::NotServing { node: inner.node, why }
        })?;
        let limit = buggify!("exchange: short pages", limit.max(1), 1);
        let after = after.map(|key| data_key(key));
        let mut found = Vec::new();
        for range in ranges(partition, leaves, partitions) {
            let left = match &after {
                Some(after) => range.after(after),
                None => Some(range),
            };
            let Some(Range { mut from, to }) = left else { continue };
            while to.as_ref().is_none_or(|to| from < *to) {
                if found.len() >= limit {
                    return Ok((found, false));
                }
                let (job, to, left) = (inner.clone(), to.clone(), limit - found.len());
                let page = inner.executor.run(move || job.digests(partition, &from, to.as_deref(), left)).await?;
                found.extend(page.entries);
                match page.next {
                    Some(next) => from = next,
                    None => break,
                }
            }
        }
        Ok((found, true))
    }

    /// Reads a page of a partition's records from a place in the data on, or from its beginning, and notes those that are corrupt.
    /// Nobody waits for it.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub(crate) async fn scrub(&self, partition: Partition, from: Option<Vec<u8>>) -> Result<Scrubbed, NotApplied> {
        let Some(partitions) = self.0.partitions.count() else { return Ok(Scrubbed::default()) };
        let Range { from: first, to } = keyspace::partition(partition, partitions);
        let (job, from) = (self.0.clone(), from.unwrap_or(first));
        let page = self.0.executor.run(move || job.digests(partition, &from, to.as_deref(), SCRUB_PAGE)).await?;
        let DigestPage { entries, tombstones, corrupt, next } = page;
        Ok(Scrubbed { records: entries.len() as u64, tombstones, corrupt, next })
    }

    /// The leaves of a partition that it cannot give to others completely: it has lost some of them, or a newer release has written there, as
    /// far as it has looked. Whoever lists the leaves that are not summed up has had it look at all of them.
    pub(crate) fn withholds(&self, partition: Partition) -> Leaves {
        let newer = self.0.partitions.look(partition, |state| state.newer());
        self.0.recovery.recovering(partition).or(&newer)
    }

    /// The record of a key as it lies here, whether or not this replica may serve it; nothing if there is none, it is corrupt, or a newer
    /// release has written it.
    ///
    /// # Errors
    /// [`NotApplied::Storage`] if the store failed.
    pub async fn held(&self, partition: Partition, key: &Blob) -> Result<Option<Record>, NotApplied> {
        let (inner, key) = (self.0.clone(), key.clone());
        let job = move || match inner.raw(&Place::Data, &key).map(|bytes| bytes.map(|bytes| Record::decode(&bytes))) {
            Ok(None) | Ok(Some(Err(DecodeError::Newer(_)))) => Ok(None),
            Ok(Some(Ok(record))) => Ok(Some(record)),
            Err(Unreadable::Failed(why)) => Err(inner.failed(why)),
            Err(Unreadable::Corrupt(why)) | Ok(Some(Err(DecodeError::Damaged(why)))) => {
                inner.found_corrupt(partition, &Place::Data, &key, &why);
                Ok(None)
            }
        };
        self.0.executor.run(job).await
    }

    /// Sums up a partition in one page. False if it does not fit into one.
    async fn rebuild_whole(&self, partition: Partition, partitions: u16) -> Result<bool, NotApplied> {
        let Range { from, to } = keyspace::partition(partition, partitions);
        let locks = self.lock_between(&from, to.as_deref()).await;
        let inner = self.0.clone();
        let job = move || {
            let _locks = locks;
            let page = inner.digests(partition, &from, to.as_deref(), REBUILD_PAGE)?;
            if page.next.is_some() {
                return Ok(false);
            }
            let mut sums = [0u128; LEAVES];
            for (key, digest) in &page.entries {
                let sum = &mut sums[usize::from(merkle::leaf_of(key_hash(key), partitions))];
                *sum = sum.wrapping_add(*digest);
            }
            let mut tree = HashTree::unknown();
            (0..=u8::MAX).zip(sums).for_each(|(leaf, sum)| tree.set(leaf, sum));
            inner.partitions.with(partition, |state, _| *state.tree_mut() = LiveTree::of(tree));
            Ok(true)
        };
        self.0.executor.run(job).await
    }

    /// Sums up a leaf page by page. False if it fell into doubt meanwhile.
    async fn rebuild_leaf(&self, partition: Partition, leaf: u8, partitions: u16) -> Result<bool, NotApplied> {
        let Range { from: first, to } = keyspace::leaves(partition, leaf.into(), u16::from(leaf) + 1, partitions);
        let mut from = first.clone();
        loop {
            let locks = self.lock_between(&first, to.as_deref()).await;
            let (inner, at, begins, end) = (self.0.clone(), from.clone(), from == first, to.clone());
            let job = move || {
                let _locks = locks;
                let page = inner.digests(partition, &at, end.as_deref(), REBUILD_PAGE)?;
                let sum = page.entries.iter().fold(0u128, |sum, (_, digest)| sum.wrapping_add(*digest));
                let counted = inner.partitions.with(partition, |state, _| {
                    if begins {
                        state.tree_mut().begin(leaf, at);
                    }
                    state.tree_mut().add_page(leaf, sum, page.next.clone())
                });
                Ok((counted, page.next))
            };
            match self.0.executor.run(job).await? {
                (true, Some(next)) => from = next,
                (done, _) => return Ok(done),
            }
            dawdle!("hash trees: a pause in the middle of a leaf");
        }
    }

    /// Every lock of keys that lie between two places, in ascending order, as everybody takes more than one.
    async fn lock_between(&self, from: &[u8], to: Option<&[u8]>) -> Vec<OwnedMutexGuard<()>> {
        let hash = |place: &[u8]| place.first_chunk().map_or(0, |hash| u64::from_be_bytes(*hash));
        let last = to.map_or(u64::MAX, |to| hash(to).saturating_sub(1));
        let mut locks = Vec::new();
        for stripe in &self.0.stripes[stripe_of(hash(from))..=stripe_of(last)] {
            locks.push(stripe.clone().lock_owned().await);
        }
        locks
    }
}

impl DigestPage {
    fn add(&mut self, key: Blob, record: &Record) {
        if let Some(digest) = digest_of(record, &key) {
            self.tombstones += u64::from(record.siblings.is_empty());
            self.entries.push((key, digest));
        }
    }
}

/// What reading a page again has found.
#[derive(Debug, Default)]
pub(crate) struct Scrubbed {
    /// Records that are well.
    pub(crate) records: u64,
    /// Those of them that are tombstones.
    pub(crate) tombstones: u64,
    /// Records that are corrupt.
    pub(crate) corrupt: u64,
    /// Where the next page begins, if there is one.
    pub(crate) next: Option<Vec<u8>>,
}

/// A page of a list, and where the next one begins.
pub(super) struct DigestPage {
    entries: Vec<Listed>,
    tombstones: u64,
    corrupt: u64,
    next: Option<Vec<u8>>,
}

impl Inner {
    /// The digests of the records between two places, at most `limit`. Corrupt records are left out, and noted; those that a newer release
    /// has written are left out.
    pub(super) fn digests(
        &self,
        partition: Partition,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<DigestPage, NotApplied> {
        let next_after = |last: &[u8]| [last, &[0]].concat();
        let mut page = DigestPage { entries: Vec::new(), tombstones: 0, corrupt: 0, next: None };
        let found_corrupt = |key: &Blob, why: &str| drop(self.found_corrupt(partition, &Place::Data, key, why));
        let mut newer: Option<(usize, DecodeError)> = None;
        let mut add = |page: &mut DigestPage, key: Blob, value: &Bytes| match Record::decode(value) {
            Ok(record) => page.add(key, &record),
            Err(DecodeError::Damaged(why)) => {
                page.corrupt += 1;
                found_corrupt(&key, &why);
            }
            Err(error @ DecodeError::Newer(_)) => {
                self.found_newer(partition, &key);
                newer = Some(newer.take().map_or((1, error), |(count, first)| (count + 1, first)));
            }
        };
        match self.store.scan(Tree::Data, from, to, limit, PAGE_BYTES) {
            Ok(entries) => {
                let bytes: usize = entries.iter().map(|(key, value)| key.len() + value.len()).sum();
                if entries.len() >= limit || bytes >= PAGE_BYTES {
                    page.next = entries.last().map(|(key, _)| next_after(key));
                }
                for (place, value) in entries {
                    add(&mut page, Blob(keyspace::key_of_data(&place)), &value);
                }
            }
            // A scan does not get past a damaged value, and does not say whose it is.
            Err(StoreError::Corrupt(_)) => {
                let limit = limit.min(ONE_BY_ONE);
                let keys =
                    self.store.keys(Tree::Data, from, to, limit).map_err(|error| self.failed(error.to_string()))?;
                if keys.len() >= limit {
                    page.next = keys.last().map(|key| next_after(key));
                }
                for place in keys {
                    let key = Blob(keyspace::key_of_data(&place));
                    match self.raw(&Place::Data, &key) {
                        Ok(Some(value)) => add(&mut page, key, &value),
                        Ok(None) => {}
                        Err(Unreadable::Corrupt(why)) => {
                            page.corrupt += 1;
                            found_corrupt(&key, &why);
                        }
                        Err(Unreadable::Failed(why)) => return Err(self.failed(why)),
                    }
                }
            }
            Err(error) => return Err(self.failed(error.to_string())),
        }
        if let Some((records, first)) = newer {
            tracing::error!(node = %self.node, %partition, records, why = %first,
                "records are neither served nor replaced: start a newer version of quorate");
        }
        Ok(page)
    }

    /// A newer release has written the record of a key. Tells whether that was not known of its leaf.
    pub(super) fn found_newer(&self, partition: Partition, key: &Blob) -> bool {
        let leaf = merkle::leaf_of(key_hash(key), self.partitions.count().unwrap_or(1));
        self.partitions.with(partition, |state, _| state.found_newer(leaf))
    }
}

/// Where some leaves of a partition lie in the data, neighbours in one piece.
fn ranges(partition: Partition, leaves: &Leaves, partitions: u16) -> Vec<Range> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for leaf in leaves.iter().map(u16::from) {
        match ranges.last_mut() {
            Some((_, end)) if *end == leaf => *end += 1,
            _ => ranges.push((leaf, leaf + 1)),
        }
    }
    ranges.into_iter().map(|(first, end)| keyspace::leaves(partition, first, end, partitions)).collect()
}

/// From so many unknown leaves on it is tried whether all of the partition fits into a page: 256 scans of nothing cost more.
const WHOLE_FROM: usize = 8;
/// Records that are summed up while their keys are locked: a few milliseconds of reading and hashing.
const REBUILD_PAGE: usize = 512;
/// Records that the scrub reads at once.
const SCRUB_PAGE: usize = 256;
/// How often a leaf is begun anew before it is left to the next round.
const ATTEMPTS_MAX: u32 = 3;
/// Keys that are read one by one around a damaged value.
const ONE_BY_ONE: usize = 64;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use quorate_wire::ids::OpId;
    use quorate_wire::random::Random;

    use super::*;
    use crate::store::{Committer, Durability, Executor, MemoryStore, Store};
    use quorate_core::exchange::order;
    use quorate_core::version::Context;

    const PARTITIONS: u16 = 8;

    fn replica(store: &MemoryStore, executor: Executor) -> Replica {
        let node = NodeId::new("n1").expect("legal");
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let committer = Committer::start(
            shared.clone(),
            executor.clone(),
            Durability::Group,
            Duration::from_secs(1),
            Arc::new(|why| panic!("{why}")),
        );
        let recovery = Recovery::open(shared.clone()).expect("readable");
        let replica = Replica::new(node, shared, executor, committer, Random::from_seed(7), recovery);
        replica.set_partitions(PARTITIONS);
        replica
    }

    fn key(i: u32) -> Blob {
        Blob::copy_from(format!("key-{i}").as_bytes())
    }

    fn partition(key: &Blob) -> Partition {
        Partition::of(key_hash(key), PARTITIONS)
    }

    async fn put(replica: &Replica, i: u32, value: &str) {
        let (key, op_id) = (key(i), OpId(key_hash(value.as_bytes()).into()));
        let value = Some(Blob::copy_from(value.as_bytes()));
        replica.mint(partition(&key), &key, op_id, value, Context::new()).await.expect("minted");
    }

    async fn roots(replica: &Replica) -> Vec<Option<u128>> {
        for partition in (0..PARTITIONS).map(Partition) {
            replica.rebuild(partition).await.expect("readable");
        }
        (0..PARTITIONS).map(|partition| replica.partitions().root(Partition(partition))).collect()
    }

    /// What the data says, whatever the trees say.
    async fn truth(store: &MemoryStore) -> Vec<Option<u128>> {
        roots(&replica(store, Executor::Inline)).await
    }

    #[tokio::test]
    async fn writes_keep_the_trees_in_step_with_the_data() {
        let store = MemoryStore::new();
        let one = replica(&store, Executor::Inline);
        assert!(roots(&one).await.iter().all(|root| *root == Some(0)));
        for i in 0..2000 {
            put(&one, i % 700, &i.to_string()).await;
        }
        let kept: Vec<_> = (0..PARTITIONS).map(|partition| one.partitions().root(Partition(partition))).collect();
        assert!(kept.iter().all(|root| root.is_some_and(|root| root != 0)));
        assert_eq!(kept, truth(&store).await);
    }

    #[tokio::test]
    async fn trees_that_are_summed_up_while_writes_go_on_are_right() {
        let store = MemoryStore::new();
        let executor = Executor::threads(2);
        let one = replica(&store, executor.clone());
        // More than a page in each partition, so that leaves are summed up one by one.
        for i in 0..8000 {
            put(&one, i, "first").await;
        }
        for partition in (0..PARTITIONS).map(Partition) {
            one.partitions().forget_sums(partition, &Leaves::ALL);
        }
        let writer = one.clone();
        let writing = tokio::spawn(async move {
            for i in 0..8000u32 {
                put(&writer, i.wrapping_mul(2_654_435_761) % 9000, &format!("second {i}")).await;
            }
        });
        for _ in 0..3 {
            roots(&one).await;
            one.partitions().forget_sums(Partition(3), &(0..40).collect());
        }
        writing.await.expect("no panic");
        assert_eq!(roots(&one).await, truth(&store).await);
    }

    #[tokio::test]
    async fn lists_are_whole_sorted_and_paged() {
        let store = MemoryStore::new();
        let one = replica(&store, Executor::Inline);
        for i in 0..500 {
            put(&one, i, "x").await;
        }
        for (leaves, limit) in [(Leaves::ALL, 7), (Leaves::ALL, 1000), ((0..100).chain(200..=255).collect(), 5)] {
            let mut listed: Vec<Listed> = Vec::new();
            loop {
                let after = listed.last().map(|(key, _)| key.clone());
                let (page, done) = one.list(Partition(2), &leaves, after.as_ref(), limit).await.expect("readable");
                assert!(page.len() <= limit && (done || !page.is_empty()));
                listed.extend(page);
                if done {
                    break;
                }
            }
            let of_leaf = |key: &Blob| leaves.contains(merkle::leaf_of(key_hash(key), PARTITIONS));
            let mut expected: Vec<Blob> = (0..500).map(key).filter(|key| partition(key) == Partition(2)).collect();
            expected.retain(of_leaf);
            expected.sort_by(|one, other| order(one, other));
            assert_eq!(listed.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), expected);
            for (key, digest) in listed {
                let record = one.held(Partition(2), &key).await.expect("readable").expect("listed");
                assert_eq!(record.digest(&key), digest);
            }
        }
    }

    #[tokio::test]
    async fn corrupt_records_count_as_missing_and_a_merge_brings_the_tree_back() {
        let store = MemoryStore::new();
        let one = replica(&store, Executor::Inline);
        for i in 0..100 {
            put(&one, i, "x").await;
        }
        let whole = roots(&one).await;
        let key = key(4);
        let partition = partition(&key);
        let record = one.held(partition, &key).await.expect("readable").expect("there");
        assert!(store.flip_bit(Tree::Data, &data_key(&key)));
        assert_eq!(one.held(partition, &key).await, Ok(None));
        assert_eq!(one.partitions().unknown(partition).len(), 1, "its leaf is in doubt");
        let without = roots(&one).await;
        let lost = whole[usize::from(partition.0)].map(|sum| sum.wrapping_sub(record.digest(&key)));
        assert_eq!(without[usize::from(partition.0)], lost);
        let (listed, _) = one.list(partition, &Leaves::ALL, None, 1000).await.expect("readable");
        assert!(!listed.is_empty() && listed.iter().all(|(listed, _)| *listed != key));

        let merged = one.merge(partition, &key, record.clone()).await.expect("merged");
        assert_eq!((merged.changed, merged.was_corrupt, merged.digest), (true, true, record.digest(&key)));
        assert_eq!(roots(&one).await, whole);
    }

    #[tokio::test]
    async fn a_scrub_reads_everything_and_finds_what_nobody_asks_for() {
        let store = MemoryStore::new();
        let one = replica(&store, Executor::Inline);
        for i in 0..3000 {
            put(&one, i, "x").await;
        }
        for i in 0..10 {
            let (key, op_id) = (key(i), OpId(u128::from(i) + 1));
            let record = one.held(partition(&key), &key).await.expect("readable").expect("there");
            one.mint(partition(&key), &key, op_id, None, record.context).await.expect("deleted");
        }
        let all = async || {
            let (mut records, mut tombstones, mut corrupt) = (0, 0, 0);
            for partition in (0..PARTITIONS).map(Partition) {
                let mut from = None;
                loop {
                    let page = one.scrub(partition, from).await.expect("readable");
                    records += page.records;
                    tombstones += page.tombstones;
                    corrupt += page.corrupt;
                    match page.next {
                        Some(next) => from = Some(next),
                        None => break,
                    }
                }
            }
            (records, tombstones, corrupt)
        };
        assert_eq!(all().await, (3000, 10, 0));
        for rotten in [5, 77, 2999] {
            assert!(store.flip_bit(Tree::Data, &data_key(&key(rotten))));
        }
        let before: Vec<_> = (0..PARTITIONS).map(|partition| one.recovery().reason(Partition(partition), 0)).collect();
        assert!(before.iter().all(Option::is_none));
        assert_eq!(all().await, (2997, 9, 3));
        for rotten in [5, 77, 2999] {
            let leaf = merkle::leaf_of(key_hash(&key(rotten)), PARTITIONS);
            let reason = one.recovery().reason(partition(&key(rotten)), leaf);
            assert_eq!(reason, Some(Reason::Corrupt), "key {rotten} is to be recovered");
        }
    }

    #[tokio::test]
    async fn after_close_nothing_is_written_and_the_next_start_takes_the_trees() {
        let store = MemoryStore::new();
        let one = replica(&store, Executor::Inline);
        for i in 0..100 {
            put(&one, i, "x").await;
        }
        let expected = roots(&one).await;
        one.close(3).await.expect("room");
        let refused = one.mint(partition(&key(1)), &key(1), OpId(1), None, Context::new()).await.expect_err("closed");
        assert!(refused.to_string().contains("shutting down"), "{refused}");
        let record = one.held(partition(&key(1)), &key(1)).await.expect("readable").expect("there");
        assert!(one.merge(partition(&key(1)), &key(1), record).await.is_err());
        let next = replica(&store, Executor::Inline);
        assert_eq!(next.load_trees(4).await, usize::from(PARTITIONS));
        let taken: Vec<_> = (0..PARTITIONS).map(|partition| next.partitions().root(Partition(partition))).collect();
        assert_eq!(taken, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_writes_between_two_places_that_are_locked() {
        let replica = replica(&MemoryStore::new(), Executor::Inline);
        let key = key(1);
        for (partition, waits) in [(partition(&key), true), (Partition((partition(&key).0 + 1) % PARTITIONS), false)] {
            let Range { from, to } = keyspace::partition(partition, PARTITIONS);
            let locks = replica.lock_between(&from, to.as_deref()).await;
            let write = tokio::time::timeout(Duration::from_secs(1), put(&replica, 1, "v"));
            assert_eq!(write.await.is_err(), waits);
            drop(locks);
        }
        put(&replica, 1, "w").await;
    }
}
