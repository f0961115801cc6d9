//! What one coordinator does to one key when it mints, and one replica when it merges: the decisions, without store or locks.
//!
//! The caller holds the key's lock from reading the record until the new one is written, and remembers what was dropped
//! *after* it is written (rule V6: an operation must never be remembered as superseded while its value is all there is).
//!
//! # What retries are guaranteed
//!
//! The exhaustive model test in `tests/record_model.rs` holds exactly these sentences. *Remembers* means: has neither
//! restarted nor lost its copy since, and the operation has not left the bounded memory.
//!
//! - No retry, wherever and whenever it arrives, ever loses or replaces another write, and reads show one operation once.
//! - A replica that has the operation, or remembers or names it as superseded, mints nothing for its retry. So a retry at the
//!   coordinator that minted it and remembers leaves no trace. (A retried delete may take a second dot: what it drops is the
//!   same.)
//! - A replica that may have forgotten the operation (it has started, or lost or dropped something of the partition, since the first
//!   attempt was sent) mints nothing for a retry either, whatever its record says: a write that was replicated, read and replaced
//!   elsewhere may be missing from it, because it was minted here and never synced. Its answer is "unknown", unless another primary's
//!   record holds the operation or names it as superseded: it takes that over. So a retry that goes to the coordinator of the first
//!   attempt never brings a value back.
//! - A retry elsewhere may mint a second dot. If the operation had been superseded by then, its value shows again beside its
//!   successor: never at a replica that remembers or names it, and elsewhere until records have been exchanged with such a replica. If
//!   every replica that ever saw it superseded has lost its record, or the name was forgotten ([`super::names`]), it is a sibling until a
//!   client resolves it. A client therefore retries the same coordinator only, and gives up at half the window.

use quorate_wire::codec::Blob;
use quorate_wire::ids::OpId;

use super::record::{Dropped, Record, Sibling};
use super::version::{Actor, Context, Dot};

/// Who mints in one partition, and how far it has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Minter {
    actor: Actor,
    counter: u64,
}

impl Minter {
    /// A new actor: it has minted nothing. Its incarnation must be freshly drawn (rule V1).
    pub fn new(actor: Actor) -> Self {
        Self { actor, counter: 0 }
    }

    /// Who it is.
    pub fn actor(&self) -> Actor {
        self.actor
    }

    /// Rule V5: whether the writer's context and the record know no later dot of this actor than its own counter.
    ///
    /// If they do, somebody else is or was this actor (memory rolled back or cloned, a forged context), and the next dot could
    /// count as seen before it is minted: the node must draw a new actor.
    pub fn is_ahead_of(&self, record: &Record, cause: &Context) -> bool {
        cause.highest(&self.actor) <= self.counter && record.context.highest(&self.actor) <= self.counter
    }

    /// The next dot. One that is drawn and not used leaves a gap, which is harmless.
    pub fn next_dot(&mut self) -> Dot {
        self.counter =
            self.counter.checked_add(1).expect("2^64 writes to one partition take longer than there is time");
        Dot { actor: self.actor, counter: self.counter }
    }
}

/// A write that was there already (rule V6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeated {
    /// Its dot; the lowest one that is live, or else the one that is named or remembered.
    pub dot: Dot,
    /// What the writer has now seen.
    pub context: Context,
}

/// A write that was minted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fresh {
    /// The record to be written, and then to be sent to the others.
    pub record: Record,
    /// What the writer has now seen (rule V4).
    pub context: Context,
    /// What is to be remembered once the record is written.
    pub dropped: Dropped,
}

/// Rules V6 and V7, the coordinator's first look: the operation among the record's siblings, among those that the record names as
/// superseded, or among those remembered as superseded.
pub fn repeated(
    record: &Record,
    op_id: &OpId,
    cause: &Context,
    remembered: impl FnOnce(&OpId) -> Option<Dot>,
) -> Option<Repeated> {
    let mut dots = record.dots_of(op_id);
    if dots.is_empty() {
        dots.extend(record.superseded(op_id).or_else(|| remembered(op_id)));
    }
    let dot = *dots.first()?;
    Some(Repeated { dot, context: seen_by_writer(record, op_id, cause, &dots) })
}

/// Rules V2 and V4: mints `dot` for a write that [`repeated`] does not know.
pub fn mint(mut record: Record, dot: Dot, op_id: OpId, value: Option<Blob>, cause: &Context) -> Fresh {
    let dropped = record.mint(dot, op_id, value, cause);
    let context = seen_by_writer(&record, &op_id, cause, &[dot]);
    Fresh { record, context, dropped }
}

/// Rules V3 and V6: takes another replica's record. Returns what is to be remembered once the record is written, and whether
/// it has to be.
///
/// An operation of which one dot has just turned out to be superseded is superseded as a whole: no replica shows what it
/// remembers. `remembered` are the operations that *this record* has superseded, not those of another record of the node (a hint):
/// it goes on covering what it drops, and so must hold what has replaced it.
pub fn merge(record: &mut Record, other: &Record, remembered: &dyn Fn(&OpId) -> bool) -> (Dropped, bool) {
    let (mut dropped, mut changed) = record.merge(other, remembered);
    if !dropped.writes.is_empty() {
        let superseded: Vec<OpId> = dropped.writes.iter().map(|(_, op_id)| *op_id).collect();
        let more = record.drop_operations(|op_id| superseded.contains(op_id));
        changed |= !more.is_empty();
        dropped.writes.extend(more);
    }
    (dropped, changed)
}

/// Rule V5, for a merge: nothing if `other` knows no later dot of this replica's actor than the actor has minted. Otherwise somebody
/// has claimed dots before they were minted (a made-up context, or this process's memory was set back), and the claim may name
/// dots that were minted since: then the values of `record` that this actor wrote and `other` says to be replaced. They have to
/// be kept under new dots of a new actor, and as new operations, since other replicas remember the old ones as superseded. A value
/// too many can be resolved, a lost one cannot.
pub fn disputed(minter: &Minter, record: &Record, other: &Record) -> Option<Vec<Sibling>> {
    if other.context.highest(&minter.actor) <= minter.counter {
        return None;
    }
    let replaced = |dot: &Dot| other.context.covers(dot) && !other.siblings.contains_key(dot);
    let own = record.siblings.iter().filter(|(dot, _)| dot.actor == minter.actor && replaced(dot));
    Some(own.map(|(_, sibling)| sibling.clone()).collect())
}

/// Rule V4: the writer has seen its own cause and its own write. Where the record holds nothing else, it may have the record's
/// context: everything in that was superseded by this write or by something that has itself been superseded. Of operations by name
/// (rule V7) its own is enough: what it has replaced is named in the record.
fn seen_by_writer(record: &Record, op_id: &OpId, cause: &Context, dots: &[Dot]) -> Context {
    let alone = record.siblings.values().all(|sibling| sibling.op_id == *op_id);
    let mut context = if alone { record.seen() } else { cause.without_names() };
    for dot in dots {
        context.insert(*dot);
        context.names_mut().insert(*op_id, *dot);
    }
    context
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::blob;
    use super::super::version::tests::dot;
    use super::*;

    /// A record with one sibling.
    fn one(dot: Dot, op_id: u128) -> Record {
        mint(Record::default(), dot, OpId(op_id), Some(blob("v")), &Context::new()).record
    }

    #[test]
    fn a_repeated_write_has_its_lowest_live_dot_or_else_the_one_that_is_remembered() {
        let mut record = one(dot(0, 1), 1);
        record.merge(&one(dot(1, 1), 1), &|_| false);
        let found = repeated(&record, &OpId(1), &Context::new(), |_| panic!("it is live")).expect("known");
        assert_eq!((found.dot, found.context), (dot(0, 1), record.context.clone()));
        let found = repeated(&record, &OpId(2), &Context::new(), |_| Some(dot(2, 7))).expect("remembered");
        assert_eq!(found.dot, dot(2, 7));
        assert!(found.context.covers(&dot(2, 7)) && !found.context.covers(&dot(0, 1)), "what is live was not seen");
        assert_eq!(repeated(&record, &OpId(3), &Context::new(), |_| None), None);
    }

    #[test]
    fn an_operation_of_which_one_dot_was_superseded_is_dropped_as_a_whole() {
        // Its second dot was replaced here; a peer that has not heard of that tells of it again.
        let mut record = one(dot(0, 1), 1);
        record.context.insert(dot(1, 1));
        let (dropped, changed) = merge(&mut record, &one(dot(1, 1), 1), &|_| false);
        assert!(changed, "its first dot is gone, which has to be written");
        assert_eq!(dropped.writes, [(dot(1, 1), OpId(1)), (dot(0, 1), OpId(1))]);
        assert!(record.siblings.is_empty() && record.context.covers(&dot(0, 1)));
    }

    #[test]
    fn a_writer_is_told_of_what_it_has_seen_and_of_everything_only_where_nothing_else_is_left() {
        let seen = one(dot(0, 1), 1);
        let beside = mint(seen.clone(), dot(1, 1), OpId(2), Some(blob("w")), &Context::new());
        assert!(beside.context.covers(&dot(1, 1)) && !beside.context.covers(&dot(0, 1)));
        let instead = mint(seen.clone(), dot(1, 1), OpId(2), Some(blob("w")), &seen.context);
        assert_eq!(instead.context, instead.record.context);
        assert_eq!(instead.dropped.writes, [(dot(0, 1), OpId(1))]);
    }

    #[test]
    fn a_claim_is_disputed_where_it_names_what_was_not_minted_and_for_own_values_that_it_says_to_be_replaced() {
        let mut minter = Minter::new(dot(0, 1).actor);
        let own = minter.next_dot();
        let mut record = one(own, 1);
        record.merge(&one(dot(1, 1), 2), &|_| false);
        let claims = |own_up_to: u64| {
            let mut claims = Record::default();
            claims.context.advance(own.actor, own_up_to);
            claims.context.advance(dot(1, 1).actor, 1);
            claims
        };
        assert_eq!(disputed(&minter, &record, &claims(own.counter)), None, "that was minted, and may be replaced");
        let kept = disputed(&minter, &record, &claims(own.counter + 1)).expect("nobody can know of it");
        assert_eq!(kept, [record.siblings[&own].clone()], "another actor's value is no matter of this one");
        let mut live = claims(own.counter + 1);
        live.siblings.insert(own, record.siblings[&own].clone());
        assert_eq!(disputed(&minter, &record, &live), Some(Vec::new()), "it holds that value as well");
        let mut gap = Record::default();
        gap.context.insert(dot(0, 3));
        assert_eq!(disputed(&minter, &record, &gap), Some(Vec::new()), "it says nothing of that value");
    }

    #[test]
    fn a_writer_has_seen_its_own_write_by_name_as_well() {
        let op_id = OpId::new(5, 5);
        let other = one(dot(1, 1), 7);
        let written = mint(other, dot(0, 1), op_id, Some(blob("v")), &Context::new());
        assert!(written.context.names().contains(&op_id), "also where something else stands beside it");
        let deleted = mint(written.record.clone(), dot(0, 2), OpId::new(6, 6), None, &written.record.seen());
        assert!(deleted.context.names().contains(&OpId::new(6, 6)), "a delete shows no value");
    }

    #[test]
    fn a_minter_is_ahead_of_what_it_has_minted_and_of_nothing_later() {
        let mut minter = Minter::new(dot(0, 1).actor);
        let record = one(dot(0, 1), 1);
        let cause = record.context.clone();
        assert!(!minter.is_ahead_of(&record, &Context::new()) && !minter.is_ahead_of(&Record::default(), &cause));
        assert_eq!(minter.next_dot(), dot(0, 1));
        assert!(minter.is_ahead_of(&record, &cause));
    }
}
