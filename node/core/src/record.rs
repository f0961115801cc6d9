//! Records: what a replica keeps for a key, and how two copies of it become one.
//!
//! The dotted causal container of Goncalves, Almeida, Baquero, Fonte, "Concise Server-Wide Causality Management for
//! Eventually Consistent Data Stores" (2015), in the explicit-dot form:
//!
//! ```text
//! { siblings: dot -> (value, op_id, type, time), .. | context: every dot that this record has ever had or been told of }
//! ```
//!
//! A dot that the context covers and that is not among the siblings has been replaced or deleted; the operation of such a dot is named
//! in the context for a while ([`super::names`]). Invariants: the context covers every sibling's dot, and names the operation of none.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_wire::codec::Blob;
use quorate_wire::ids::OpId;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::compact::{Length, Sink, Source};
use super::version::{Actor, Context, Dot};

/// One of several concurrent values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// The value.
    pub value: Blob,
    /// The client's name for the write (rule V6).
    pub op_id: OpId,
    /// XXH3-64 of the value.
    pub value_hash: u64,
    /// What the bytes of the value mean: 0, bytes as the client gave them, is all that this release writes and reads.
    pub value_type: u8,
    /// A time that belongs to the write; 0, none, is all that this release writes and reads.
    pub time: u64,
}

impl Sibling {
    /// Hashes the value.
    pub fn new(value: Blob, op_id: OpId) -> Self {
        let value_hash = xxh3_64(&value);
        Self { value, op_id, value_hash, value_type: PLAIN, time: NO_TIME }
    }

    /// What decides between two values of one dot, on every replica alike.
    fn rank(&self) -> (u64, OpId, u8, u64) {
        (self.value_hash, self.op_id, self.value_type, self.time)
    }
}

/// What a replica keeps for a key. No siblings and a context left: a deleted key.
///
/// Laws: [`merge`](Self::merge) (with nothing superseded) is commutative, associative and idempotent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The live values by the dots of their writes.
    pub siblings: BTreeMap<Dot, Sibling>,
    /// What has been seen of the key; covers at least the siblings.
    pub context: Context,
}

/// What one mint or merge dropped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Writes that are superseded: siblings that are gone now, and siblings of the other side that were not taken.
    pub writes: Vec<(Dot, OpId)>,
    /// Dots for which the two sides had different values. Must never happen; the greater value hash was kept.
    pub incidents: Vec<Dot>,
}

impl Record {
    /// Rule V2: drops what `cause` covers, joins `cause` and the new dot into the context, adds the value (none: a delete).
    ///
    /// Covering one dot of an operation, or naming it, covers all its dots that are present (rules V6 and V7), and names it. The caller
    /// holds the key's lock and has just drawn `dot` from the node's current actor of the partition, which has every dot that it ever minted for this
    /// key in this record (rule V1); so the context takes it as an entry of the vector.
    pub fn mint(&mut self, dot: Dot, op_id: OpId, value: Option<Blob>, cause: &Context) -> Dropped {
        let seen = |(dot, sibling): &(&Dot, &Sibling)| cause.covers(dot) || cause.names().contains(&sibling.op_id);
        let covered: BTreeSet<OpId> = self.siblings.iter().filter(seen).map(|(_, sibling)| sibling.op_id).collect();
        let writes = self.drop_operations(|op_id| covered.contains(op_id));
        self.context.join(cause);
        self.context.advance(dot.actor, dot.counter);
        self.name(&writes);
        if let Some(value) = value {
            // Nobody has seen a write before it was minted, unless a client uses an operation's id for two.
            self.context.names_mut().remove(&op_id);
            self.siblings.insert(dot, Sibling::new(value, op_id));
        }
        self.trim_names();
        Dropped { writes, incidents: Vec::new() }
    }

    /// Rule V5: a value lives on under another dot, which the node's current actor has just drawn. The caller holds the key's lock.
    pub fn keep(&mut self, dot: Dot, sibling: Sibling) {
        self.context.advance(dot.actor, dot.counter);
        self.siblings.insert(dot, sibling);
    }

    /// Rule V3: keeps the dots that both have and each dot that the other side's context does not cover; contexts join. Rule V7: the
    /// operations of dots that are not kept are named, and every dot of an operation that either side names goes.
    ///
    /// Dots whose operation `superseded` knows are dropped as well (rule V6). Returns what was dropped and whether this record
    /// changed.
    pub fn merge(&mut self, other: &Record, superseded: &dyn Fn(&OpId) -> bool) -> (Dropped, bool) {
        let (mut writes, mut incidents, mut changed) = (BTreeMap::new(), Vec::new(), false);
        self.siblings.retain(|dot, sibling| {
            let unknown_there = other.siblings.contains_key(dot) || !other.context.covers(dot);
            let named = other.context.names().contains(&sibling.op_id);
            let keep = unknown_there && !named && !superseded(&sibling.op_id);
            if !keep {
                writes.insert(*dot, sibling.op_id);
                changed = true;
            }
            keep
        });
        for (dot, theirs) in &other.siblings {
            match self.siblings.get_mut(dot) {
                Some(ours) if ours.rank() == theirs.rank() => {}
                Some(ours) => {
                    incidents.push(*dot);
                    if theirs.rank() > ours.rank() {
                        *ours = theirs.clone();
                        changed = true;
                    }
                }
                None if self.context.covers(dot)
                    || self.context.names().contains(&theirs.op_id)
                    || superseded(&theirs.op_id) =>
                {
                    writes.insert(*dot, theirs.op_id);
                }
                None => {
                    self.siblings.insert(*dot, theirs.clone());
                    changed = true;
                }
            }
        }
        // What is joined and forgotten again has changed nothing.
        let named = self.context.names().clone();
        changed |= self.context.join_dots(&other.context);
        self.context.names_mut().join(other.context.names());
        let mut writes: Vec<(Dot, OpId)> = writes.into_iter().collect();
        self.name(&writes);
        let more = match self.context.names().is_empty() {
            true => Vec::new(),
            false => self.drop_named(),
        };
        // The name has the lowest of its dots, whichever record is merged first.
        self.name(&more);
        changed |= !more.is_empty();
        writes.extend(more);
        self.trim_names();
        changed |= *self.context.names() != named;
        (Dropped { writes, incidents }, changed)
    }

    /// What a client that has been shown this record has seen: its dots, and its values by name (rule V7).
    pub fn seen(&self) -> Context {
        let mut seen = self.context.without_names();
        for (dot, sibling) in &self.siblings {
            seen.names_mut().insert(sibling.op_id, *dot);
        }
        seen
    }

    /// The dot of an operation that was superseded here, if that is known by its name (rule V7).
    pub fn superseded(&self, op_id: &OpId) -> Option<Dot> {
        self.context.names().dot_of(op_id)
    }

    fn name(&mut self, writes: &[(Dot, OpId)]) {
        for (dot, op_id) in writes {
            // One that was not taken may be of an operation that was dropped by its name: its dot comes with the other context.
            self.context.names_mut().insert(*op_id, *dot);
        }
    }

    fn drop_named(&mut self) -> Vec<(Dot, OpId)> {
        let names = std::mem::take(self.context.names_mut());
        let writes = self.drop_operations(|op_id| names.contains(op_id));
        *self.context.names_mut() = names;
        writes
    }

    /// Forgets the names whose time is over, and the oldest of too many.
    fn trim_names(&mut self) {
        if !self.context.names().is_empty() {
            let newest = self.siblings.values().filter_map(|sibling| sibling.op_id.begun_ms()).max();
            self.context.names_mut().trim(newest);
        }
    }

    /// Drops the siblings of some operations; the context goes on covering them.
    pub(crate) fn drop_operations(&mut self, superseded: impl Fn(&OpId) -> bool) -> Vec<(Dot, OpId)> {
        let mut writes = Vec::new();
        self.siblings.retain(|dot, sibling| {
            let keep = !superseded(&sibling.op_id);
            if !keep {
                writes.push((*dot, sibling.op_id));
            }
            keep
        });
        writes
    }

    /// The dots that carry this operation, in order (rule V6).
    pub fn dots_of(&self, op_id: &OpId) -> Vec<Dot> {
        let of_op = self.siblings.iter().filter(|(_, sibling)| sibling.op_id == *op_id);
        of_op.map(|(dot, _)| *dot).collect()
    }

    /// The values as a read shows them: in the order of their dots, those of one operation once.
    pub fn values(&self) -> Vec<Blob> {
        let mut shown = BTreeSet::new();
        let once = self.siblings.values().filter(|sibling| shown.insert(sibling.op_id));
        once.map(|sibling| sibling.value.clone()).collect()
    }

    /// How many values a read shows.
    pub fn value_count(&self) -> usize {
        match self.siblings.len() {
            few @ 0..=1 => few,
            _ => self.siblings.values().map(|sibling| sibling.op_id).collect::<BTreeSet<_>>().len(),
        }
    }

    /// 128 bits of (key, dots, operations, types, times, value hashes, context): the same on two replicas exactly if they hold the same.
    /// Digest reads and anti-entropy build on it.
    pub fn digest(&self, key: &[u8]) -> u128 {
        let mut hasher = Xxh3::new();
        hasher.put_number(key.len() as u64);
        hasher.put(key);
        self.encode_with(&mut hasher, |hasher, sibling| hasher.put(&sibling.value_hash.to_be_bytes()));
        hasher.digest128()
    }

    /// For disk and peers. Equal records are equal bytes; the checksum is the storage layer's.
    ///
    /// ```text
    /// version u8 = 3 | context | siblings
    ///   index of the dot's actor in the context | counter | operation, 16 bytes | type u8 | time | value length | value
    /// ```
    ///
    /// Type and time are seats: both are 0 in this release. A release that gives them a meaning need not raise the version, because
    /// [`decode`](Self::decode) refuses what it does not know, as [newer](DecodeError::Newer).
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(self.encoded_len());
        bytes.push(RECORD_VERSION);
        self.encode_with(&mut bytes, |bytes, sibling| {
            bytes.put_number(sibling.value.len() as u64);
            bytes.put(&sibling.value);
        });
        bytes.into()
    }

    /// How many bytes [`encode`](Self::encode) makes.
    pub fn encoded_len(&self) -> usize {
        let mut length = Length(1);
        self.encode_with(&mut length, |length, sibling| {
            length.put_number(sibling.value.len() as u64);
            length.0 += sibling.value.len();
        });
        length.0
    }

    /// What [`encode`](Self::encode) wrote. Values are slices of `bytes`, not copies.
    ///
    /// # Errors
    /// When the bytes are of an unknown version or anything but the encoding of one record; the error says what is wrong, and whether
    /// that is damage. Any bytes may be given; memory use is bounded.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let of_version = |version: u8| format!("record version {version} is unknown, this node knows {RECORD_VERSION}");
        match bytes.first() {
            None => return Err(DecodeError::Damaged("the record is empty".into())),
            Some(&RECORD_VERSION) => {}
            Some(version) if *version > RECORD_VERSION => return Err(DecodeError::Newer(of_version(*version))),
            Some(version) => return Err(DecodeError::Damaged(of_version(*version))),
        }
        let mut source = Source::new(bytes.slice(1..));
        let context = Context::decode(&mut source)?;
        let actors = context.actors();
        let count = source.number("the number of siblings")?;
        if count > DECODED_SIBLINGS_MAX {
            return Err(format!("{count} siblings are above the limit of {DECODED_SIBLINGS_MAX}").into());
        }
        let (mut siblings, mut newer) = (BTreeMap::new(), None);
        let mut last = None;
        for _ in 0..count {
            let actor = sibling_actor(&actors, source.number("a sibling's actor")?)?;
            let dot = Dot { actor, counter: source.number("a sibling's counter")? };
            if last.is_some_and(|last| last >= dot) {
                return Err(format!("sibling {dot} is out of order").into());
            }
            if dot.counter == 0 || !context.covers(&dot) {
                return Err(format!("sibling {dot} is not in the record's context").into());
            }
            last = Some(dot);
            let op_id = OpId(u128::from_be_bytes(source.array("an operation")?));
            let [value_type] = source.array("a value's type")?;
            let time = source.number("a value's time")?;
            if (value_type, time) != (PLAIN, NO_TIME) {
                newer = newer.or(Some((dot, value_type, time)));
            }
            let len = source.number("a value's length")?;
            siblings.insert(dot, Sibling::new(Blob(source.bytes(len, "a value")?), op_id));
        }
        source.end()?;
        // Said last, so that it is said of whole records only.
        match newer {
            Some((dot, value_type, time)) => Err(DecodeError::Newer(format!(
                "sibling {dot} has type {value_type} and time {time}, this node knows type {PLAIN} and time {NO_TIME}"
            ))),
            None => Ok(Self { siblings, context }),
        }
    }

    fn encode_with<S: Sink>(&self, sink: &mut S, value: impl Fn(&mut S, &Sibling)) {
        self.context.encode(sink);
        let actors = if self.siblings.is_empty() { Vec::new() } else { self.context.actors() };
        sink.put_number(self.siblings.len() as u64);
        for (dot, sibling) in &self.siblings {
            let index = actors.binary_search(&dot.actor).expect("a record's context covers the dots of its siblings");
            sink.put_number(index as u64);
            sink.put_number(dot.counter);
            sink.put(&sibling.op_id.0.to_be_bytes());
            sink.put(&[sibling.value_type]);
            sink.put_number(sibling.time);
            value(sink, sibling);
        }
    }
}

fn sibling_actor(actors: &[Actor], index: u64) -> Result<Actor, String> {
    let actor = usize::try_from(index).ok().and_then(|index| actors.get(index)).copied();
    actor.ok_or_else(|| format!("a sibling names actor {index} of {}", actors.len()))
}

/// Why bytes are not decoded to a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They are the encoding of no record.
    #[error("{0}")]
    Damaged(String),
    /// A newer release has written them, and they are as it has written them as far as this one can tell. So this is no loss: nobody
    /// has to make up for it, and nothing may take the record's place.
    #[error("a newer version of quorate has written it: {0}")]
    Newer(String),
}

impl From<String> for DecodeError {
    fn from(damage: String) -> Self {
        Self::Damaged(damage)
    }
}

/// The version of encoded records. Version 1 had no type and no time, version 2 named no operations.
const RECORD_VERSION: u8 = 3;
/// The type of values that are bytes as the client gave them.
const PLAIN: u8 = 0;
/// The time of writes that have none.
const NO_TIME: u64 = 0;
/// The most siblings that are decoded: bounds memory (about 10 MiB beside the values) when the bytes are garbage. Coordinators
/// mint up to 100, a merge joins those of at most 255.
const DECODED_SIBLINGS_MAX: u64 = 1 << 16;

#[cfg(test)]
pub(crate) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::names::{NAMES_MAX, NAMES_WINDOW_MS};
    use super::super::version::tests::{actor, contexts, dot};
    use super::*;

    pub(crate) fn blob(text: &str) -> Blob {
        Blob::copy_from(text.as_bytes())
    }

    const NOTHING: &dyn Fn(&OpId) -> bool = &|_| false;

    fn merged(a: &Record, b: &Record) -> Record {
        let mut merged = a.clone();
        let (dropped, changed) = merged.merge(b, NOTHING);
        assert_eq!(changed, merged != *a, "merge says whether it changed something");
        assert_eq!(dropped.incidents, []);
        merged
    }

    /// Three records that one history of mints and merges on three replicas has reached, some of whose writes are minted again elsewhere
    /// (rule V7). Operations begin so many milliseconds after one another.
    fn histories(apart_ms: u64, again: bool) -> impl Strategy<Value = [Record; 3]> {
        vec((0..3usize, 0..3usize, any::<bool>(), any::<bool>(), 0..4u8, 1..20u64), 0..14).prop_map(move |steps| {
            let mut replicas = [Record::default(), Record::default(), Record::default()];
            let mut counter = 0u64;
            for (at, from, mint, blind, what, back) in steps {
                let other = replicas[from].clone();
                if mint {
                    counter += 1;
                    let repeats = if again { counter.saturating_sub(back) } else { 0 };
                    let number = if repeats > 0 { repeats } else { counter };
                    let op_id = OpId::new(number * apart_ms, u128::from(number));
                    let cause = if blind { Context::new() } else { other.seen() };
                    let known =
                        |record: &Record| !record.dots_of(&op_id).is_empty() || record.superseded(&op_id).is_some();
                    if known(&replicas[at]) || repeats > 0 && cause.names().contains(&op_id) {
                        continue;
                    }
                    let value = (what > 0).then(|| blob(&number.to_string()));
                    replicas[at].mint(dot(at as u64, counter), op_id, value, &cause);
                } else {
                    replicas[at].merge(&other, NOTHING);
                }
            }
            replicas
        })
    }

    fn reachable() -> impl Strategy<Value = [Record; 3]> {
        prop_oneof![histories(1, false), histories(NAMES_WINDOW_MS / 3, false), histories(1, true)]
    }

    #[test]
    fn a_write_replaces_what_its_cause_covers_and_nothing_else() {
        let mut record = Record::default();
        record.mint(dot(0, 1), OpId(1), Some(blob("a")), &Context::new());
        let seen = record.context.clone();
        record.mint(dot(1, 1), OpId(2), Some(blob("b")), &Context::new());
        assert_eq!(record.values(), [blob("a"), blob("b")]);
        let dropped = record.mint(dot(2, 5), OpId(3), Some(blob("c")), &seen);
        assert_eq!(dropped.writes, [(dot(0, 1), OpId(1))]);
        assert_eq!(record.values(), [blob("b"), blob("c")]);
        let dropped = record.mint(dot(2, 9), OpId(4), None, &record.context.clone());
        assert_eq!(dropped.writes.len(), 2);
        assert!(record.values().is_empty());
        assert!(!record.context.is_empty(), "a deleted key keeps its context");
        assert_eq!(record.context.len(), 3, "one entry an actor, also with gaps in its counters");
    }

    /// An operation that tells when it began.
    fn op(begun_ms: u64) -> OpId {
        OpId::new(begun_ms, u128::from(begun_ms))
    }

    fn minted(dot: Dot, op_id: OpId, value: &str, held: &Record, cause: &Context) -> Record {
        let mut record = held.clone();
        record.mint(dot, op_id, Some(blob(value)), cause);
        record
    }

    #[test]
    fn a_merge_tells_of_everything_that_it_has_dropped_and_that_it_has() {
        // What the other side knows to be superseded goes, and nothing else shows that.
        let first = minted(dot(0, 1), OpId(1), "a", &Record::default(), &Context::new());
        let mut dropped = first.clone();
        dropped.drop_operations(|_| true);
        assert_eq!(merged(&first, &dropped), dropped);

        // A dot that is not taken drops the other dot of its operation here, whose name is too old to stay.
        let (old, new) = (op(1), op(2 + NAMES_WINDOW_MS));
        let mut ours = minted(
            dot(2, 1),
            new,
            "b",
            &minted(dot(1, 1), old, "a", &Record::default(), &Context::new()),
            &Context::new(),
        );
        ours.context.advance(dot(0, 1).actor, 1);
        let theirs = minted(dot(0, 1), old, "a", &Record::default(), &Context::new());
        let after = merged(&ours, &theirs);
        assert_eq!((after.values(), after.superseded(&old)), (vec![blob("b")], None));
        let (told, _) = ours.clone().merge(&theirs, NOTHING);
        assert_eq!(told.writes, [(dot(0, 1), old), (dot(1, 1), old)]);
    }

    #[test]
    fn a_name_goes_when_a_merge_brings_an_operation_that_began_so_much_later() {
        let first = minted(dot(0, 1), op(1), "a", &Record::default(), &Context::new());
        let next = minted(dot(0, 2), op(2), "b", &first, &first.seen());
        for (later, stays) in [(NAMES_WINDOW_MS, true), (NAMES_WINDOW_MS + 1, false)] {
            let newest = minted(dot(1, 1), op(later), "c", &Record::default(), &Context::new());
            assert_eq!(merged(&next, &newest).superseded(&op(1)).is_some(), stays, "{later}");
            assert_eq!(merged(&newest, &next), merged(&next, &newest));
        }
    }

    #[test]
    fn a_write_that_its_own_cause_names_lives() {
        let first = minted(dot(0, 1), op(1), "a", &Record::default(), &Context::new());
        let again = minted(dot(1, 1), op(1), "a", &Record::default(), &first.seen());
        assert_eq!((again.superseded(&op(1)), again.values()), (None, vec![blob("a")]));
        assert_eq!(merged(&again, &Record::default()).values(), [blob("a")]);
    }

    #[test]
    fn a_value_that_lives_on_under_another_dot_is_covered_by_the_context() {
        let mut record = minted(dot(0, 1), op(1), "a", &Record::default(), &Context::new());
        let sibling = record.siblings.remove(&dot(0, 1)).expect("it was minted");
        record.keep(dot(1, 1), sibling);
        assert!(record.context.covers(&dot(1, 1)));
        assert_eq!(Record::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn a_second_dot_of_a_write_that_was_replaced_is_dropped_by_its_name_wherever_it_comes_from() {
        let nothing = Record::default();
        let first = minted(dot(0, 1), op(1), "a", &nothing, &Context::new());
        let next = minted(dot(0, 2), op(2), "b", &first, &first.seen());
        assert_eq!((next.superseded(&op(1)), next.superseded(&op(2))), (Some(dot(0, 1)), None));
        let second = minted(dot(1, 1), op(1), "a", &nothing, &Context::new());
        assert_eq!(merged(&next, &second).values(), [blob("b")]);
        assert_eq!(merged(&second, &next), merged(&next, &second));
        // Whoever drops a dot names its operation, also where what covers the dot does not.
        let unnamed = |record: &Record| Record { context: record.context.without_names(), ..record.clone() };
        let dropped = minted(dot(0, 2), op(2), "b", &first, &first.seen().without_names());
        assert_eq!(dropped.superseded(&op(1)), Some(dot(0, 1)));
        assert_eq!(merged(&first, &unnamed(&dropped)).superseded(&op(1)), Some(dot(0, 1)));
        // Whoever has seen one dot of it has seen them all.
        let replaced = minted(dot(2, 1), op(3), "c", &second, &first.seen());
        assert_eq!((replaced.values(), replaced.superseded(&op(1))), (vec![blob("c")], Some(dot(0, 1))));
        let mut deleted = second.clone();
        deleted.mint(dot(2, 2), op(4), None, &first.seen());
        assert!(deleted.values().is_empty() && merged(&first, &deleted).values().is_empty());
    }

    /// What goes by its name lowers the dot of the name, as what is dropped otherwise does: else the next delivery of the same record
    /// would be news once more.
    #[test]
    fn merging_a_record_again_is_no_news_also_where_a_second_dot_went_by_its_name() {
        let (nothing, x) = (Record::default(), op(1));
        let minted_at = |actor| minted(dot(actor, 1), x, "x", &nothing, &Context::new());
        let first = minted_at(0);
        let both = merged(&minted_at(1), &first);
        let third = minted_at(2);
        let mut cause = third.seen().without_names();
        cause.insert(dot(1, 1));
        let replaced = minted(dot(2, 2), op(2), "w", &third, &cause);
        let beside = minted(dot(0, 2), op(3), "z", &first, &replaced.seen());
        assert_eq!(beside.values(), [blob("x"), blob("z")], "its first dot is neither covered nor named");
        let once = merged(&beside, &both);
        assert_eq!((once.values(), once.superseded(&x)), (vec![blob("z")], Some(dot(0, 1))));
        assert_eq!(merged(&once, &both), once);
        assert_eq!(merged(&both, &beside), once);
    }

    #[test]
    fn what_was_never_replaced_names_nothing_and_what_is_replaced_rarely_its_last_change_at_most() {
        let mut record = Record::default();
        let mut at = 0;
        let mut write = |record: &mut Record, apart: u64| {
            at += apart;
            let cause = record.seen();
            record.mint(dot(0, at), op(at), Some(blob("v")), &cause);
            record.context.names().len()
        };
        assert_eq!(write(&mut record, 1), 0);
        assert_eq!(write(&mut record, NAMES_WINDOW_MS - 1), 1);
        let unnamed = Record { context: record.context.without_names(), ..record.clone() };
        assert_eq!(record.encoded_len() - unnamed.encoded_len(), 16 + 1 + 1, "what a name costs");
        assert_eq!(write(&mut record, NAMES_WINDOW_MS), 0);
        for _ in 0..3 * NAMES_MAX {
            write(&mut record, 1);
        }
        assert_eq!(record.context.names().len(), NAMES_MAX);
        // What does not tell when it began is dropped and not named.
        let cause = record.seen();
        record.mint(dot(0, at + 1), OpId(1), Some(blob("w")), &cause);
        let cause = record.seen();
        assert!(cause.names().is_empty());
        record.mint(dot(0, at + 2), op(at), Some(blob("x")), &cause);
        assert_eq!(record.superseded(&OpId(1)), None);
        assert_eq!(record.values(), [blob("x")], "an operation's id that is used for another write hides none");
    }

    #[test]
    fn a_deleted_value_does_not_come_back() {
        let mut old = Record::default();
        old.mint(dot(0, 1), OpId(1), Some(blob("a")), &Context::new());
        let mut deleted = old.clone();
        deleted.mint(dot(0, 2), OpId(2), None, &old.context);
        let (dropped, changed) = deleted.merge(&old, NOTHING);
        assert!(!changed);
        assert_eq!(dropped.writes, [(dot(0, 1), OpId(1))], "a refused sibling is named");
        assert!(merged(&old, &deleted).values().is_empty());
    }

    #[test]
    fn one_operation_is_shown_once_and_covered_as_one() {
        let mut record = Record::default();
        record.mint(dot(0, 1), OpId(1), Some(blob("a")), &Context::new());
        let seen = record.context.clone();
        record.mint(dot(1, 1), OpId(1), Some(blob("a")), &Context::new());
        record.mint(dot(1, 2), OpId(2), Some(blob("b")), &Context::new());
        assert_eq!((record.values(), record.value_count()), (vec![blob("a"), blob("b")], 2));
        assert_eq!(record.dots_of(&OpId(1)), [dot(0, 1), dot(1, 1)]);
        record.mint(dot(2, 1), OpId(3), Some(blob("c")), &seen);
        assert_eq!(record.dots_of(&OpId(1)), []);
        assert_eq!(record.value_count(), 2);
    }

    #[test]
    fn superseded_operations_are_dropped_from_both_sides() {
        let one = |at, op_id| {
            let mut record = Record::default();
            record.mint(dot(at, 1), OpId(op_id), Some(blob("x")), &Context::new());
            record
        };
        let mut record = one(0, 1);
        let (dropped, changed) = record.merge(&one(1, 1), &|op_id| *op_id == OpId(1));
        assert_eq!(dropped.writes, [(dot(0, 1), OpId(1)), (dot(1, 1), OpId(1))]);
        assert!(changed && record.siblings.is_empty());
        assert!(record.context.covers(&dot(0, 1)) && record.context.covers(&dot(1, 1)));
    }

    #[test]
    fn both_sides_settle_on_one_value_of_an_impossible_dot() {
        let with = |value| {
            let mut record = Record::default();
            record.mint(dot(0, 1), OpId(1), Some(blob(value)), &Context::new());
            record
        };
        let (mut a, mut b) = (with("a"), with("b"));
        let (here, changed_here) = a.merge(&b, NOTHING);
        let (there, changed_there) = b.merge(&with("a"), NOTHING);
        assert_eq!((here.incidents, there.incidents), (vec![dot(0, 1)], vec![dot(0, 1)]));
        assert_eq!(a, b);
        let greater = [with("a"), with("b")].map(|record| record.siblings[&dot(0, 1)].rank()).into_iter().max();
        assert_eq!(Some(a.siblings[&dot(0, 1)].rank()), greater);
        assert!(changed_here != changed_there, "exactly one side gave way");
    }

    #[test]
    fn decoded_values_are_slices() {
        let mut record = Record::default();
        record.mint(dot(0, 1), OpId(1), Some(blob("a value")), &Context::new());
        let bytes = record.encode();
        let decoded = Record::decode(&bytes).expect("decodes");
        assert!(bytes.as_ptr_range().contains(&decoded.values()[0].as_ptr()), "no copy was made");
    }

    #[test]
    fn garbage_is_refused_with_a_reason() {
        let mut record = Record::default();
        record.mint(dot(0, 1), OpId(1), Some(blob("a")), &Context::new());
        record.mint(dot(0, 2), OpId(2), Some(blob("b")), &Context::new());
        let good = record.encode().to_vec();
        let why = |bytes: Vec<u8>| match Record::decode(&bytes.into()).expect_err("refused") {
            DecodeError::Damaged(why) => why,
            DecodeError::Newer(why) => panic!("it is damaged, not newer: {why}"),
        };
        assert!(why(vec![]).contains("empty"));
        assert!(why(vec![2]).contains("version 2"));
        assert!(why([&good[..], &[0]].concat()).contains("follow"));
        for len in 1..good.len() {
            why(good[..len].to_vec());
        }
        // One sibling is 1 + 1 + 16 + 1 + 1 + 1 + 1 bytes; before the two stands their number.
        let (head, siblings) = good.split_at(good.len() - 44);
        assert!(why([head, &siblings[22..], &siblings[..22]].concat()).contains("out of order"));
        assert!(why([head, &siblings[..22], &siblings[..22]].concat()).contains("out of order"));
        let mut uncovered = good.clone();
        uncovered[good.len() - 21] = 3;
        assert!(why(uncovered).contains("not in the record's context"));
        let mut stranger = good.clone();
        stranger[good.len() - 22] = 1;
        assert!(why(stranger).contains("actor 1 of 1"));
        let mut many = head[..head.len() - 1].to_vec();
        many.put_number(u64::MAX);
        assert!(why(many).contains("above the limit"));
        let mut most = head[..head.len() - 1].to_vec();
        most.put_number(DECODED_SIBLINGS_MAX);
        assert!(!why(most).contains("above the limit"), "it just ends too early");
    }

    /// The seats for a type and a time, as a later release fills them.
    fn typed(value_type: u8, time: u64) -> Record {
        let mut record = Record::default();
        record.mint(dot(0, 1), OpId(1), Some(blob("a")), &Context::new());
        record.mint(dot(1, 7), OpId(2), Some(blob("b")), &Context::new());
        let sibling = record.siblings.get_mut(&dot(1, 7)).expect("just minted");
        (sibling.value_type, sibling.time) = (value_type, time);
        record
    }

    /// Disks and messages hold it.
    #[test]
    fn the_format_is_fixed_for_ever() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(&typed(0, 0).encode()), ENCODED);
        assert_eq!(hex(&typed(3, 300).encode()), ENCODED_WITH_TYPE_AND_TIME);
        assert_eq!(format!("{:032x}", typed(0, 0).digest(b"k")), DIGEST);
        assert_eq!(format!("{:032x}", typed(3, 300).digest(b"k")), DIGEST_WITH_TYPE_AND_TIME);
        let first = minted(dot(0, 1), op(1), "a", &Record::default(), &Context::new());
        let named = minted(dot(1, 300), op(2), "b", &first, &first.seen());
        assert_eq!(hex(&named.encode()), ENCODED_WITH_A_NAME);
        assert_eq!(format!("{:032x}", named.digest(b"k")), DIGEST_WITH_A_NAME);
    }

    const ENCODED_WITH_A_NAME: &str = "0302026e300100000000000000000100026e31010000000000000000ac0200010000000000017000\
        800000000000000100010101ac020000000000027000800000000000000200000162";
    const DIGEST_WITH_A_NAME: &str = "c44e9db85b46f715ecb15679403d82c9";

    const ENCODED: &str = "0302026e300100000000000000000100026e31010000000000000000070000020001000000000000000000000000\
        000000010000016101070000000000000000000000000000000200000162";
    const ENCODED_WITH_TYPE_AND_TIME: &str = "0302026e300100000000000000000100026e3101000000000000000007000002000100000\
        0000000000000000000000000010000016101070000000000000000000000000000000203ac020162";
    const DIGEST: &str = "a80a72fd3fa9b01497eee5b6d1bbe8b9";
    const DIGEST_WITH_TYPE_AND_TIME: &str = "735a042df19611196d841834f36c03bf";

    #[test]
    fn what_a_newer_version_has_written_is_refused_and_is_not_called_damage() {
        for (value_type, time, named) in [(1, 0, "type 1"), (0, 1, "time 1"), (255, u64::MAX, "type 255")] {
            let bytes = typed(value_type, time).encode();
            assert_eq!(bytes.len(), typed(value_type, time).encoded_len());
            let refused = Record::decode(&bytes).expect_err("newer");
            assert!(matches!(&refused, DecodeError::Newer(why) if why.contains(named)), "{refused}");
            assert!(refused.to_string().contains("newer version of quorate"), "{refused}");
            // Where the rest is not whole that is what is said.
            for len in 0..bytes.len() {
                let cut = Record::decode(&bytes.slice(..len));
                assert!(matches!(cut, Err(DecodeError::Damaged(_))), "cut to {len}: {cut:?}");
            }
        }
        let version = Record::decode(&Bytes::from_static(&[4])).expect_err("newer");
        assert!(matches!(&version, DecodeError::Newer(why) if why.contains("version 4")), "{version}");
    }

    #[test]
    fn type_and_time_are_part_of_a_records_digest_and_of_what_decides_between_two_values() {
        let all = [typed(0, 0), typed(1, 0), typed(0, 1), typed(1, 1), typed(1, 256)];
        for (at, one) in all.iter().enumerate() {
            for other in &all[at + 1..] {
                assert_ne!(one.digest(b"k"), other.digest(b"k"));
                let (mut here, mut there) = (one.clone(), other.clone());
                assert_eq!(here.merge(other, NOTHING).0.incidents, [dot(1, 7)]);
                there.merge(one, NOTHING);
                assert_eq!(here, there, "every replica decides alike");
            }
        }
    }

    #[test]
    fn digests_tell_keys_values_and_contexts_apart() {
        let with = |value: Option<&str>, counter| {
            let mut record = Record::default();
            record.mint(dot(0, counter), OpId(1), value.map(blob), &Context::new());
            record
        };
        let a = with(Some("a"), 1);
        assert_eq!(a.digest(b"k"), with(Some("a"), 1).digest(b"k"));
        for (other, key) in
            [(&a, b"l"), (&with(Some("b"), 1), b"k"), (&with(Some("a"), 2), b"k"), (&with(None, 1), b"k")]
        {
            assert_ne!(a.digest(b"k"), other.digest(key));
        }
        // A key that ends as a record begins. The last three bytes of a tombstone are those of the empty record.
        let tombstone = with(None, 1);
        let encoded = &tombstone.encode()[1..];
        assert_eq!(encoded[encoded.len() - 3..], Record::default().encode()[1..]);
        let longer = [b"k", &encoded[..encoded.len() - 3]].concat();
        assert_ne!(tombstone.digest(b"k"), Record::default().digest(&longer));
    }

    proptest! {
        #[test]
        fn merge_is_commutative_associative_and_idempotent([a, b, c] in reachable()) {
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(&merged(&a, &a), &a);
            prop_assert_eq!(&merged(&merged(&a, &b), &b), &merged(&a, &b));
        }

        #[test]
        fn reachable_records_keep_their_invariants(records in reachable()) {
            for record in records {
                let entries = record.context.len();
                prop_assert!(record.siblings.keys().all(|dot| record.context.covers(dot)));
                prop_assert!(entries <= 3, "one entry an actor, not {}", entries);
                prop_assert_eq!(record.values().len(), record.value_count());
                prop_assert!(record.context.names().len() <= NAMES_MAX);
                for (op_id, dot) in record.context.names().iter() {
                    prop_assert!(record.context.covers(dot) && record.dots_of(op_id).is_empty(), "{}", op_id);
                }
            }
        }

        #[test]
        fn records_come_back_from_their_bytes(records in reachable(), context in contexts()) {
            for mut record in records {
                record.context.join(&context);
                let bytes = record.encode();
                prop_assert_eq!(bytes.len(), record.encoded_len());
                prop_assert_eq!(Record::decode(&bytes), Ok(record));
            }
        }

        #[test]
        fn any_bytes_decode_to_themselves_or_are_refused(
            mut bytes in vec(prop_oneof![0..4u8, any::<u8>()], 0..60),
            at in any::<prop::sample::Index>(),
            to: u8,
            records in reachable(),
        ) {
            bytes.insert(0, RECORD_VERSION);
            let mut damaged = records[0].encode().to_vec();
            let at = at.index(damaged.len());
            damaged[at] = to;
            for bytes in [bytes, damaged] {
                if let Ok(record) = Record::decode(&bytes.clone().into()) {
                    prop_assert_eq!(record.encode(), bytes::Bytes::from(bytes));
                }
            }
        }
    }

    #[test]
    fn actors_of_one_node_are_told_apart() {
        assert_ne!(actor(0), actor(3));
        assert_eq!(actor(0).node, actor(3).node);
    }
}
