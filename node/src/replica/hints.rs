//! Hints: writes that this node keeps for primaries that did not take them (hinted handoff; DeCandia et al., "Dynamo", 2007,
//! section 4.6).
//!
//! A hint is a record that merges, one for each (target, key), and lies under
//!
//! ```text
//!   length of the target's name, u8 | name | hash of the key, u64 BE | key   ->   begun at, ms, u64 BE | record
//! ```
//!
//! so that what is kept for one node is one sequential scan. It is let go only when the target has acknowledged, durably, exactly
//! what the hint holds now. A node that is no primary of the key mints in a hint too; what it holds of the key is then the join
//! of its hints for all primaries. So rule V1 asks that the actor goes before a hint does, unless this node is a primary, whose
//! own record has all of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_wire::codec::Blob;
use quorate_wire::ids::{NodeId, OpId, Partition, key_hash};
use quorate_wire::{NotApplied, VALUE_LEN_MAX};
use quorate_wire::{buggify, sometimes, story, tell};

use super::{
    Inner, Merged, MintError, Minted, Operation, Place, Replica, Unreadable, Write, check_key, check_len, count, lock,
    values_len,
};
use crate::store::{StoreError, Tree};
use quorate_core::keyspace::{self, Range, hint_key};
use quorate_core::partition::PartitionState;
use quorate_core::record::{DecodeError, Record};
use quorate_core::version::Context;

/// What is kept for one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HintTotals {
    /// Hints.
    pub count: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// When the oldest of them was begun, in milliseconds by the wall clock; may be older than that until the next full pass.
    pub oldest_ms: u64,
}

/// A hint, as it is handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hinted {
    /// The key.
    pub key: Blob,
    /// The record.
    pub record: Record,
    /// Names exactly this record: what the target acknowledges is compared with it.
    pub digest: u128,
    /// When it was begun, in milliseconds by the wall clock.
    pub since_ms: u64,
}

/// A page of the hints for one node, in (hash, key) order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HintPage {
    /// The hints.
    pub hints: Vec<Hinted>,
    /// The last key that was looked at, also of hints that cannot be read; nothing when there are no more.
    pub next: Option<Blob>,
}

impl Replica {
    /// Counts the hints that an earlier life has left. To be called once, before anything is kept.
    ///
    /// # Errors
    /// When the store cannot be read. Hints that are damaged are let go, those that a newer release has written stay.
    pub async fn load_hints(&self) -> Result<(), StoreError> {
        let inner = self.0.clone();
        self.0.executor.run(move || inner.load_hints()).await
    }

    /// As [`mint`](Self::mint), on a node that is none of the key's `primaries`: in its hint for `target`, one of them. `now_ms`
    /// is the wall clock's.
    ///
    /// # Errors
    /// As `mint`; [`NotApplied::Refused`] when there is no room for hints.
    #[allow(clippy::too_many_arguments, reason = "the write's own fields, and the place")]
    pub async fn mint_in_hint(
        &self,
        partition: Partition,
        key: &Blob,
        operation: impl Into<Operation>,
        value: Option<Blob>,
        cause: Context,
        (primaries, target): (Vec<NodeId>, NodeId),
        now_ms: u64,
    ) -> Result<Minted, MintError> {
        check_key(key)?;
        check_len("value", value.as_ref().map_or(0, |value| value.len()), VALUE_LEN_MAX)?;
        let len = value.as_ref().map_or(0, |value| value.len());
        let write = Write { partition, key: key.clone(), operation: operation.into(), value, cause };
        self.locked(key, len, move |inner, now| {
            let held = inner.joined(partition, &write.key, &primaries)?.unwrap_or_default();
            let place = inner.hint_place(target, &write.key, now_ms);
            inner.mint(write, &place, held, now)
        })
        .await
    }

    /// Keeps a record for a primary of its key, merged with what is kept for it already.
    ///
    /// # Errors
    /// [`NotApplied::Refused`] when there is no room for hints, [`NotApplied::Storage`] if the store failed. Either way it does
    /// not count as kept, and may be tried again.
    pub async fn keep_hint(
        &self,
        partition: Partition,
        key: &Blob,
        target: NodeId,
        record: Record,
        now_ms: u64,
    ) -> Result<Merged, NotApplied> {
        check_key(key)?;
        let (key_owned, len) = (key.clone(), values_len(&record));
        self.locked(key, len, move |inner, now| {
            let place = inner.hint_place(target, &key_owned, now_ms);
            let merged = inner.merge(partition, &place, &key_owned, &record, now)?;
            count(&inner.counters.hints_kept, 1);
            sometimes!("hints: one was merged with an earlier one", merged.changed && !inner.is_new(&place, now_ms));
            Ok(merged)
        })
        .await
    }

    /// What this node keeps of a key for any of its primaries, joined; nothing if it keeps nothing, which says nothing of the
    /// key.
    ///
    /// # Errors
    /// [`NotApplied::Storage`] if the store failed.
    pub async fn hinted(
        &self,
        partition: Partition,
        key: &Blob,
        primaries: &[NodeId],
    ) -> Result<Option<Record>, NotApplied> {
        check_key(key)?;
        if lock(&self.0.kept).totals.is_empty() {
            return Ok(None);
        }
        self.0.joined(partition, key, primaries)
    }

    /// Whether a write of this operation was minted here or is kept here, so that its retry belongs to this node.
    ///
    /// # Errors
    /// As [`hinted`](Self::hinted).
    pub async fn knows_in_hints(
        &self,
        partition: Partition,
        key: &Blob,
        primaries: &[NodeId],
        op_id: OpId,
    ) -> Result<bool, NotApplied> {
        let held = self.hinted(partition, key, primaries).await?;
        if held.is_some_and(|record| !record.dots_of(&op_id).is_empty() || record.superseded(&op_id).is_some()) {
            return Ok(true);
        }
        let (name, now) = (self.0.name(&Place::Data, key), self.0.partitions.now());
        let superseded = |state: &PartitionState| state.operations().dot_of(name.key, &op_id, now);
        Ok(self.0.partitions.look(partition, superseded).is_some())
    }

    /// A page of the hints for `target` after the key `after`: at most `limit` of them, ending with the one that passes
    /// `bytes_max`. Those that are damaged are let go on the way, and those that a newer release has written are passed over.
    ///
    /// # Errors
    /// [`NotApplied::Storage`] if the store failed.
    pub async fn hint_page(
        &self,
        target: NodeId,
        after: Option<&Blob>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<HintPage, NotApplied> {
        let range = keyspace::hints(target);
        let left = match after {
            Some(key) => range.after(&hint_key(target, key)),
            None => Some(range),
        };
        let Some(Range { from, to }) = left else { return Ok(HintPage { hints: Vec::new(), next: None }) };
        let limit = buggify!("hints: they are handed over one by one", limit, 1);
        let inner = self.0.clone();
        let job = move || inner.hint_entries(&from, to.as_deref(), limit, bytes_max);
        let entries = self.0.executor.run(job).await.map_err(|error| self.0.failed(error.to_string()))?;
        let key_of = |stored: &Bytes| {
            let (_, key) = keyspace::target_and_key_of_hint(stored).expect("nothing but hints for it lies there");
            Blob(key)
        };
        let mut page = HintPage { hints: Vec::new(), next: entries.last().map(|(stored, _)| key_of(stored)) };
        for (stored, entry) in entries {
            let key = key_of(&stored);
            match entry {
                Ok((since_ms, record, _)) => {
                    page.hints.push(Hinted { digest: record.digest(&key), key, record, since_ms });
                }
                Err(Unusable::Newer { .. }) => {}
                Err(Unusable::Damaged(_)) => {
                    let key_owned = key.clone();
                    self.locked(&key, 0, move |inner, _| inner.let_damaged_go(target, &key_owned)).await?;
                }
            }
        }
        Ok(page)
    }

    /// The target has acknowledged, durably, the record of this digest: lets the hint go if it is still that one. Returns
    /// whether it went. `owner` says that this node is a primary of the partition itself.
    ///
    /// # Errors
    /// [`NotApplied::Storage`] if the store failed; the hint may then be handed over once more.
    pub async fn hint_delivered(
        &self,
        partition: Partition,
        key: &Blob,
        target: NodeId,
        digest: u128,
        owner: bool,
    ) -> Result<bool, NotApplied> {
        let key_owned = key.clone();
        self.locked(key, 0, move |inner, _| inner.hint_delivered(partition, &key_owned, target, digest, owner)).await
    }

    /// How much is kept for whom.
    pub fn hint_totals(&self) -> BTreeMap<NodeId, HintTotals> {
        lock(&self.0.kept).totals.clone()
    }

    /// What hints may take, in bytes.
    pub fn set_hint_bytes_max(&self, bytes_max: u64) {
        lock(&self.0.kept).bytes_max = bytes_max;
    }

    /// A full pass has seen what is left for a node: since when.
    pub fn note_oldest_hint(&self, target: NodeId, oldest_ms: u64) {
        if let Some(totals) = lock(&self.0.kept).totals.get_mut(&target) {
            totals.oldest_ms = oldest_ms;
        }
    }
}

impl Inner {
    fn load_hints(&self) -> Result<(), StoreError> {
        let mut from: Vec<u8> = Vec::new();
        loop {
            let entries = self.hint_entries(&from, None, LOAD_LIMIT, LOAD_BYTES)?;
            let Some((last, _)) = entries.last() else { return Ok(()) };
            from = [&last[..], &[0]].concat();
            for (stored, entry) in entries {
                let target = keyspace::target_and_key_of_hint(&stored).map(|(target, _)| target);
                match (target, entry) {
                    // It is no loss: it stays, for a newer release to hand over.
                    (Some(target), Err(Unusable::Newer { why, since_ms, len })) => {
                        tracing::error!(node = %self.node, why, "a hint is left as it is: start a newer version of quorate");
                        lock(&self.kept).add(target, since_ms, 0, (stored.len() + len) as u64);
                    }
                    (Some(target), Ok((since_ms, _, len))) => {
                        lock(&self.kept).add(target, since_ms, 0, (stored.len() + len) as u64);
                    }
                    (_, entry) => {
                        let why = match entry {
                            Err(Unusable::Damaged(why)) => why,
                            Ok(_) | Err(Unusable::Newer { .. }) => "it names no target".into(),
                        };
                        self.tell_damaged(&why);
                        match (self.store.remove(Tree::Hints, &stored), target) {
                            (Ok(()), _) => {}
                            // It goes when it is met again, with room.
                            (Err(StoreError::NoRoom(_)), Some(target)) => {
                                lock(&self.kept).add(target, u64::MAX, 0, stored.len() as u64);
                            }
                            (Err(StoreError::NoRoom(_)), None) => {}
                            (Err(error), _) => return Err(error),
                        }
                    }
                }
            }
        }
    }

    /// Hints between two places: since when each is kept, its record and the length of its value, or why it is of no use.
    fn hint_entries(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<(Bytes, Entry)>, StoreError> {
        let read = |value: Bytes| match decode(&value) {
            Ok((since_ms, record)) => Ok((since_ms, record, value.len())),
            Err(DecodeError::Damaged(why)) => Err(Unusable::Damaged(why)),
            Err(newer @ DecodeError::Newer(_)) => {
                let since_ms = value.first_chunk().map_or(u64::MAX, |since_ms| u64::from_be_bytes(*since_ms));
                Err(Unusable::Newer { why: newer.to_string(), since_ms, len: value.len() })
            }
        };
        match self.store.scan(Tree::Hints, from, to, limit, bytes_max) {
            Ok(entries) => Ok(entries.into_iter().map(|(stored, value)| (stored, read(value))).collect()),
            // A scan does not get past a damaged value, and does not say whose it is.
            Err(StoreError::Corrupt(_)) => {
                let keys = self.store.keys(Tree::Hints, from, to, limit.min(ONE_BY_ONE))?;
                let entry = |stored: Bytes| match self.store.get(Tree::Hints, &stored) {
                    Ok(value) => value.map(|value| Ok((stored, read(value)))),
                    Err(StoreError::Corrupt(why)) => Some(Ok((stored, Err(Unusable::Damaged(why))))),
                    Err(error) => Some(Err(error)),
                };
                keys.into_iter().filter_map(entry).collect()
            }
            Err(error) => Err(error),
        }
    }

    /// Lets a hint go that cannot be read, if it still cannot: what it held is lost here, and the owners have to make up for it.
    fn let_damaged_go(&self, target: NodeId, key: &Blob) -> Result<(), NotApplied> {
        let place = Place::Hint { target, since_ms: 0 };
        let why = match self.raw(&place, key) {
            Ok(None) => return Ok(()),
            Ok(Some(value)) => match decode(&value) {
                Ok(_) | Err(DecodeError::Newer(_)) => return Ok(()),
                Err(DecodeError::Damaged(why)) => why,
            },
            Err(Unreadable::Corrupt(why)) => why,
            Err(Unreadable::Failed(why)) => return Err(self.failed(why)),
        };
        sometimes!("hints: a damaged one was let go");
        self.tell_damaged(&why);
        if let Some(partitions) = self.partitions.count() {
            self.hint_gone(Partition::of(key_hash(key), partitions), &place, key);
        }
        let stored = hint_key(target, key);
        self.store.remove(Tree::Hints, &stored).map_err(|error| {
            self.check_engine(&error);
            self.failed(error.to_string())
        })?;
        lock(&self.kept).remove(target, stored.len() as u64);
        Ok(())
    }

    /// Before a hint goes that may have been the only place of dots that were minted here (rule V1).
    fn hint_gone(&self, partition: Partition, place: &Place, key: &[u8]) {
        let (name, now) = (self.name(place, key), self.partitions.now());
        self.partitions.with(partition, |state, _| state.hint_gone(&name.at(), now));
    }

    fn tell_damaged(&self, why: &str) {
        count(&self.counters.hints_damaged, 1);
        tracing::error!(node = %self.node, why, "a hint is damaged and lost; the owners of its key make up for it");
    }

    /// The hint that is there, with its age, or a new one.
    fn hint_place(&self, target: NodeId, key: &[u8], now_ms: u64) -> Place {
        let place = Place::Hint { target, since_ms: now_ms };
        match self.raw(&place, key).ok().flatten().map(|bytes| decode(&bytes)) {
            Some(Ok((since_ms, _))) => Place::Hint { target, since_ms },
            Some(Err(_)) | None => place,
        }
    }

    fn is_new(&self, place: &Place, now_ms: u64) -> bool {
        matches!(place, Place::Hint { since_ms, .. } if *since_ms == now_ms)
    }

    /// What is kept of a key for any of these. A hint that cannot be read is lost (rule V1), not absent: it is passed over, and
    /// what others hold has to do.
    fn joined(&self, partition: Partition, key: &[u8], primaries: &[NodeId]) -> Result<Option<Record>, NotApplied> {
        let mut joined: Option<Record> = None;
        for target in primaries {
            let place = Place::Hint { target: *target, since_ms: 0 };
            match self.stored_at(&place, key) {
                Ok(None) => {}
                Ok(Some(record)) => match &mut joined {
                    Some(joined) => drop(joined.merge(&record, &|_| false)),
                    None => joined = Some(record),
                },
                Err(Unreadable::Corrupt(why)) => drop(self.found_corrupt(partition, &place, key, &why)),
                Err(Unreadable::Failed(why)) => return Err(self.failed(why)),
            }
        }
        Ok(joined)
    }

    fn hint_delivered(
        &self,
        partition: Partition,
        key: &Blob,
        target: NodeId,
        digest: u128,
        owner: bool,
    ) -> Result<bool, NotApplied> {
        let place = Place::Hint { target, since_ms: 0 };
        let held = match self.stored_at(&place, key) {
            Ok(Some(record)) => record,
            Ok(None) | Err(Unreadable::Corrupt(_)) => return Ok(false),
            Err(Unreadable::Failed(why)) => return Err(self.failed(why)),
        };
        if held.digest(key) != digest {
            sometimes!("hints: one had grown while it was handed over");
            return Ok(false);
        }
        // An owner that holds all of it goes on; one that became an owner after it had minted in the hint may not.
        let own = || self.stored_at(&Place::Data, key).ok().flatten().unwrap_or_default().context;
        let actor = self.partitions.look(partition, PartitionState::actor);
        let covers = actor.is_none_or(|actor| own().highest(&actor) >= held.context.highest(&actor));
        if !(owner && covers) {
            sometimes!("hints: an actor went with one", actor.is_some());
            self.hint_gone(partition, &place, key);
        }
        let bytes = self.raw(&place, key).ok().flatten().map_or(0, |value| value.len());
        let stored = hint_key(target, key);
        self.store.remove(Tree::Hints, &stored).map_err(|error| {
            self.check_engine(&error);
            self.failed(error.to_string())
        })?;
        lock(&self.kept).remove(target, (stored.len() + bytes) as u64);
        count(&self.counters.hints_delivered, 1);
        tell!(act = "lets a delivered hint go", key = %story::text(key), node = %self.node, kept_for = %target);
        Ok(true)
    }

    /// The nodes that anything is kept for.
    pub(super) fn hint_targets(&self) -> Vec<NodeId> {
        lock(&self.kept).totals.keys().copied().collect()
    }

    pub(super) fn insert_hint(
        &self,
        target: NodeId,
        since_ms: u64,
        key: &[u8],
        record: &Record,
    ) -> Result<(), StoreError> {
        let (stored, value) = (hint_key(target, key), encode(since_ms, record));
        let len = |value: usize| (stored.len() + value) as u64;
        let before = match self.store.get(Tree::Hints, &stored) {
            Ok(before) => before.map_or(0, |value| len(value.len())),
            // It is there, and counted, though nobody can read it.
            Err(_) => len(0),
        };
        self.store.insert(Tree::Hints, &stored, &value)?;
        lock(&self.kept).add(target, since_ms, before, len(value.len()));
        Ok(())
    }

    /// # Errors
    /// When a hint of this length would pass the bound: it is refused before anything is written.
    pub(super) fn make_room(&self, place: &Place, key: &[u8], record_len: usize) -> Result<(), NotApplied> {
        let Place::Hint { target, .. } = place else { return Ok(()) };
        let kept = lock(&self.kept);
        let bytes_max = buggify!("hints: there is little room", kept.bytes_max, 4096);
        let more = (hint_key(*target, key).len() + TIME_LEN + record_len) as u64;
        if kept.bytes() + more <= bytes_max {
            return Ok(());
        }
        sometimes!("hints: one was refused for want of room");
        count(&self.counters.hints_refused, 1);
        tracing::warn!(node = %self.node, bytes = kept.bytes(), bytes_max,
            "a hint is refused: what is kept for nodes that are down has reached its bound");
        let why = format!("the hints on {} take {} of {bytes_max} bytes", self.node, kept.bytes());
        Err(NotApplied::Refused { why })
    }
}

/// How much is kept for whom, and the bound.
#[derive(Debug)]
pub(super) struct Kept {
    totals: BTreeMap<NodeId, HintTotals>,
    bytes_max: u64,
}

impl Kept {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { totals: BTreeMap::new(), bytes_max }
    }

    pub(super) fn totals(&self) -> &BTreeMap<NodeId, HintTotals> {
        &self.totals
    }

    pub(super) fn bytes(&self) -> u64 {
        self.totals.values().map(|totals| totals.bytes).sum()
    }

    /// A hint takes `after` bytes now and took `before`, 0 for a new one.
    fn add(&mut self, target: NodeId, since_ms: u64, before: u64, after: u64) {
        let totals = self.totals.entry(target).or_default();
        totals.oldest_ms = if totals.count == 0 { since_ms } else { totals.oldest_ms.min(since_ms) };
        totals.count += u64::from(before == 0);
        totals.bytes = totals.bytes + after - before.min(totals.bytes + after);
    }

    fn remove(&mut self, target: NodeId, bytes: u64) {
        let Some(totals) = self.totals.get_mut(&target) else { return };
        totals.count = totals.count.saturating_sub(1);
        totals.bytes = totals.bytes.saturating_sub(bytes);
        if totals.count == 0 {
            self.totals.remove(&target);
        }
    }
}

fn encode(since_ms: u64, record: &Record) -> Vec<u8> {
    [&since_ms.to_be_bytes()[..], &record.encode()].concat()
}

/// A hint as it lies in a store: for whom, the key, and the record. For whoever looks at disks from outside.
///
/// # Errors
/// When it is no hint.
#[doc(hidden)]
pub fn decode_hint(stored: &Bytes, value: &Bytes) -> Result<(NodeId, Bytes, Record), String> {
    let (target, key) = keyspace::target_and_key_of_hint(stored).ok_or("it names no target")?;
    Ok((target, key, decode(value).map_err(|error| error.to_string())?.1))
}

/// When a hint was begun, and its record.
pub(super) fn decode(value: &Bytes) -> Result<(u64, Record), DecodeError> {
    let since_ms = value.first_chunk().ok_or_else(|| "a hint is too short".to_owned())?;
    Ok((u64::from_be_bytes(*since_ms), Record::decode(&value.slice(TIME_LEN..))?))
}

/// Since when it is kept, its record and the length of its value; or why it is of no use.
type Entry = Result<(u64, Record, usize), Unusable>;

/// A hint that cannot be handed over.
enum Unusable {
    /// It is lost.
    Damaged(String),
    /// A newer release has written it, at this time, in so many bytes.
    Newer { why: String, since_ms: u64, len: usize },
}

const TIME_LEN: usize = 8;
/// How many hints, and bytes of them, are counted at once when a node starts.
const LOAD_LIMIT: usize = 1000;
const LOAD_BYTES: usize = 4 << 20;
/// Hints that are read one by one around a damaged one.
const ONE_BY_ONE: usize = 64;

#[cfg(test)]
#[path = "hints_test.rs"]
mod tests;
