//! What a node knows of one partition beside its records: Riak's vnode as a value, without store, locks or clock.
//!
//! ```text
//!   minter       who mints here, and how far it has counted                       rules V1, V5
//!   disputes     actors given up over a claim that is not settled yet             rule  V5
//!   operations   which operations were superseded, for ten minutes                rule  V6
//!   corrupt      records that are known to be corrupt and were not replaced yet
//!   tree         the sums that owners compare, as far as they are known
//!   differed     the leaves in which an owner differed when it was last compared with
//!   losses       the leaves that are lost, and who has made up for them           see core::losses
//!   newer        the leaves that hold what a newer release has written
//! ```
//!
//! A transition changes this state and returns what follows from it: the record to be written, a [`Note`] to be put on the disk, and
//! [`Event`]s for metrics and the log. The shell around it (`replica`) holds a lock of the partition for each transition
//! and for nothing else: it reads and writes the store in between. What makes the steps of one write one thing is the key's lock,
//! which the shell holds around all of them.
//!
//! ```text
//!   a mint    judge ── New ──> mint  ─┬─> the store's insert ─┬─ succeeded ──> written
//!   a merge                    merge ─┘                       └─ failed ─────> insert_unknown
//!   a loss    found_corrupt, replace_corrupt, hint_gone, lost, removed: each of them is `lose`
//! ```
//!
//! Laws, which a property test checks over arbitrary sequences of transitions:
//! - an actor that has minted before a loss never mints after it (rule V1);
//! - an operation that is remembered, or may have been forgotten, is not minted anew for a retry (rule V6; a delete may be, as it leaves
//!   no value);
//! - a known leaf of the tree is the sum of the records that lie there.
//!
//! Layout changes will add what belongs here and nowhere else: a fence against writes of older layouts, whether the partition is
//! complete, what is being pushed to its next owners, and a clock of the partition.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_wire::codec::Blob;
use quorate_wire::ids::{NodeId, OpId};

use super::losses::{Losses, Note, Reason};
use super::merkle::{InTree, Leaves, LiveTree};
use super::mint::{self, Fresh, Minter, Repeated};
use super::operations::Operations;
use super::record::{Dropped, Record, Sibling};
use super::version::{Actor, Context, Dot};

/// The state of one partition on one node.
#[derive(Debug, Clone, Default)]
pub struct PartitionState {
    minter: Option<Minter>,
    /// By the place of the record that the claim was made about.
    disputes: BTreeMap<u128, Minter>,
    operations: Operations,
    /// By place: a loss is noted once for each corrupt record, not at every look.
    corrupt: BTreeSet<u128>,
    tree: LiveTree,
    /// By owner: the leaves in which it differed when it was last compared with.
    differed: BTreeMap<NodeId, Leaves>,
    losses: Losses,
    /// The leaves in which a record was found that a newer release has written.
    newer: Leaves,
}

/// A record of the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordAt<'a> {
    /// A hash of the key. Its operations are remembered by it: the node's own copy and its hints of the key share them.
    pub key: u128,
    /// A hash of where the record lies: one for the node's own copy, another one for each hint of the key.
    pub place: u128,
    /// Whose copy it is.
    pub copy: CopyKind<'a>,
}

/// Whose copy a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyKind<'a> {
    /// This node's own. Where it is in the hash tree is known once there is a layout.
    Own(Option<InTree<'a>>),
    /// A hint: a copy that is kept for another node.
    Hint,
}

/// A write that its coordinator is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The same in every retry.
    pub op_id: OpId,
    /// If it is a retry: how long ago the first attempt was sent at most.
    pub first_sent: Option<Duration>,
    /// It leaves no value.
    pub delete: bool,
    /// What the writer has seen.
    pub cause: &'a Context,
}

/// What a coordinator does about a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// It was minted already, and is not minted again.
    Repeated(Repeated),
    /// It may have been minted and replaced, and that may have been forgotten: nothing is minted, and the answer is "unknown".
    Forgotten,
    /// It is minted.
    New,
}

/// A write that was minted and is to be inserted.
#[derive(Debug)]
pub struct Minting {
    /// Its name.
    pub dot: Dot,
    /// The record, and what its writer has seen.
    pub fresh: Fresh,
    /// For metrics and the log.
    pub events: Vec<Event>,
}

/// A merge, to be inserted if it changed anything.
#[derive(Debug)]
pub struct Merging {
    /// The merged record.
    pub record: Record,
    /// What is to be remembered once the record is written.
    pub dropped: Dropped,
    /// The record differs from the one that was held.
    pub changed: bool,
    /// Values that live on under new dots, because the other record's claim to have replaced them is disputed.
    pub renamed: Vec<Dot>,
    /// The claim is disputed until this merge is [settled](PartitionState::settle_dispute).
    pub disputed: bool,
    /// A superseded operation of the other record was not taken.
    pub kept_out: bool,
    /// For metrics and the log.
    pub events: Vec<Event>,
}

/// How an insert that succeeded has changed the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A record took the place of another one, by their digests; nothing stands for no record.
    Replaced(Option<u128>, Option<u128>),
    /// A record took the place of one that could not be read.
    ReplacedCorrupt,
    /// There was nothing to insert.
    Nothing,
}

/// Whether a record is there after its insert failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum There {
    /// It was read back; it dropped these.
    Yes(Dropped),
    /// Another one was read back.
    No,
    /// It cannot be read back.
    Unknown,
}

/// A record was found to be corrupt for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// What is lost now, if the record is one that others rely on.
    pub note: Option<Note>,
    /// Its leaf was being recovered already: that begins anew.
    pub again: bool,
}

/// What a comparison with another owner says beside the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Differs {
    /// The leaves that differed the last time, too: it is not a write that is on its way.
    pub lasting: Leaves,
    /// Those that differ no more.
    pub gone: Leaves,
}

/// What happened in a transition, for metrics and the log. The data does not depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A new actor mints.
    ActorDrawn {
        /// There was none, and the record knows an earlier actor of this node.
        beside_an_earlier_one: bool,
    },
    /// A writer's context or a record knows dots of this actor that it has not minted, so that another one takes over (rule V5).
    ContextAhead(Actor),
    /// Another replica's record knows such dots, and may name dots that were minted since (rule V5).
    ClaimDisputed {
        /// Whose dots; it is given up.
        actor: Actor,
        /// How many values are kept against the claim.
        kept: usize,
    },
    /// Dots for which there were two values; one of them is lost.
    TwoValues(Vec<Dot>),
    /// How many superseded operations were forgotten before their time, for want of room.
    OperationsEvicted(u64),
}

/// What a loss is about.
enum Gone<'a> {
    /// A record that cannot be read, or a hint.
    Record(&'a RecordAt<'a>),
    /// Whatever the disk lacks in these leaves. What does lie there can be read.
    Leaves(&'a Leaves, Reason),
    /// All records, on purpose.
    All,
}

impl RecordAt<'_> {
    fn in_tree(&self) -> Option<InTree<'_>> {
        match self.copy {
            CopyKind::Own(in_tree) => in_tree,
            CopyKind::Hint => None,
        }
    }
}

impl PartitionState {
    /// That of a partition of which an earlier process has noted losses.
    pub fn restored(losses: Losses) -> Self {
        Self { losses, ..Self::default() }
    }

    // Writes.

    /// Rule V6, a coordinator's first look at a write. `held` is all that this node holds of the key; `in_doubt` says that it is not
    /// known yet whether the disk lacks something.
    pub fn judge(
        &self,
        me: NodeId,
        at: &RecordAt<'_>,
        asked: &Asked<'_>,
        held: &Record,
        in_doubt: bool,
        now: Duration,
    ) -> Judgement {
        let remembered = |op_id: &OpId| self.operations.dot_of(at.key, op_id, now);
        if let Some(repeated) = mint::repeated(held, &asked.op_id, asked.cause, remembered) {
            return Judgement::Repeated(repeated);
        }
        // A retried delete needs no proof: it leaves no value that could outlive what has replaced it.
        let Some(first_sent) = asked.first_sent.filter(|_| !asked.delete) else { return Judgement::New };
        let proved = self.operations.remembers_since(first_sent, now)
            || !in_doubt && self.shows_all_mints(me, at, held, asked.cause, first_sent, now);
        if proved { Judgement::New } else { Judgement::Forgotten }
    }

    /// Rule V6, for a retry whose first attempt was sent before the memory of operations begins: whether the record alone proves that
    /// no earlier attempt was minted here and superseded since. It does if this node has been up for the whole time, so that a mint
    /// which was replicated and never synced cannot be missing from the record; if nothing of the partition was lost or dropped; and if
    /// the record knows no dot of this node that the writer has not seen. Hints that were handed over are not there to tell.
    fn shows_all_mints(
        &self,
        me: NodeId,
        at: &RecordAt<'_>,
        held: &Record,
        cause: &Context,
        first_sent: Duration,
        now: Duration,
    ) -> bool {
        matches!(at.copy, CopyKind::Own(_))
            && self.operations.whole_since(first_sent, now)
            && !self.losses.ever()
            && !held.context.has_news_of(me, cause)
    }

    /// Rules V2, V4 and V5: mints a write that was [judged](Self::judge) to be new. The record is to be inserted, and then
    /// [`written`](Self::written) or [`insert_unknown`](Self::insert_unknown) to be called; if it is not inserted at all, the dot
    /// leaves a gap, which is harmless. `random` draws incarnations.
    pub fn mint(
        &mut self,
        me: NodeId,
        held: Record,
        op_id: OpId,
        value: Option<Blob>,
        cause: &Context,
        random: &mut dyn FnMut() -> u64,
    ) -> Minting {
        let mut events = Vec::new();
        let dot = self.next_dot(me, &held, cause, random, &mut events);
        Minting { dot, fresh: mint::mint(held, dot, op_id, value, cause), events }
    }

    /// Rules V3, V5 and V6: merges another replica's record into the one that is held. If that changed it, the record is to be
    /// inserted; then, or if there is nothing to insert, [`written`](Self::written) is to be called, or
    /// [`insert_unknown`](Self::insert_unknown).
    pub fn merge(
        &mut self,
        me: NodeId,
        at: &RecordAt<'_>,
        held: Record,
        other: &Record,
        now: Duration,
        random: &mut dyn FnMut() -> u64,
    ) -> Merging {
        let mut events = Vec::new();
        let superseded = self.superseded_in(at.key, &held, other, now);
        let kept_out =
            |(dot, theirs): (&Dot, &Sibling)| !held.context.covers(dot) && superseded.contains(&theirs.op_id);
        let kept_out = other.siblings.iter().any(kept_out);
        let disputed = self.dispute(at, &held, other, &mut events);
        let mut record = held;
        let (dropped, changed) = mint::merge(&mut record, other, &|op_id| superseded.contains(op_id));
        let mut merging =
            Merging { record, dropped, changed, renamed: Vec::new(), disputed: disputed.is_some(), kept_out, events };
        for sibling in disputed.into_iter().flatten() {
            // The disputed dot stays covered, so that every replica drops it and takes its operation for superseded; the value lives on
            // under a dot and an operation that nobody can have named.
            let dot = self.next_dot(me, &merging.record, &Context::new(), random, &mut merging.events);
            // One that does not tell when it began: a made-up time would order the names of this record (rule V7).
            let op_id = OpId((u128::from(random()) << 64 | u128::from(random())) & !(0xf << 76));
            merging.record.keep(dot, Sibling { op_id, ..sibling });
            merging.renamed.push(dot);
            merging.changed = true;
        }
        merging
    }

    /// The record of a mint or a merge is written, or there was nothing to write: the tree follows the data, and what was dropped is
    /// remembered (rule V6: only now), up to `most` operations in all.
    pub fn written(
        &mut self,
        at: &RecordAt<'_>,
        change: Change,
        dropped: Dropped,
        now: Duration,
        most: usize,
    ) -> Vec<Event> {
        match (change, at.in_tree()) {
            (Change::Replaced(old, new), Some(in_tree)) => self.tree.replaced(in_tree, old, new),
            // Whether the leaf counted what was lost is not known.
            (Change::ReplacedCorrupt, Some(in_tree)) => self.tree.doubt(in_tree.leaf),
            (Change::Nothing, _) | (_, None) => {}
        }
        if change != Change::Nothing {
            self.corrupt.remove(&at.place);
        }
        self.remember(at.key, dropped, now, most)
    }

    /// An insert has failed, and the record may be there all the same: the actor is given up (rule V1), and the leaf's sum is not
    /// known. What the record dropped is remembered if it is there, so that a retry of what it replaced is not taken for a new write
    /// (rule V6); if that cannot be told, those operations may be forgotten. What was known of a corrupt record there is known no more:
    /// one that is found afterwards is another loss.
    pub fn insert_unknown(&mut self, at: &RecordAt<'_>, there: There, now: Duration, most: usize) -> Vec<Event> {
        self.minter = None;
        self.corrupt.remove(&at.place);
        if let Some(in_tree) = at.in_tree() {
            self.tree.doubt(in_tree.leaf);
        }
        match there {
            There::Yes(dropped) => return self.remember(at.key, dropped, now, most),
            There::No => {}
            There::Unknown => self.operations.forget_key(at.key, now),
        }
        Vec::new()
    }

    /// A merge that [disputed](Merging::disputed) a claim is written: the dispute is over.
    pub fn settle_dispute(&mut self, at: &RecordAt<'_>) {
        self.disputes.remove(&at.place);
    }

    /// The actor mints no more. A new one may take over at any time, also without a loss.
    pub fn give_up_actor(&mut self) {
        self.minter = None;
    }

    // Losses.

    /// A record turned out to be corrupt: it is lost, unless that is known. What is lost is to be noted durably, and then
    /// [`noted_corrupt`](Self::noted_corrupt) to be called: until then each look finds it anew, and nothing may take its place.
    pub fn found_corrupt(&mut self, at: &RecordAt<'_>, now: Duration) -> Option<Found> {
        if self.corrupt.contains(&at.place) {
            return None;
        }
        let again = at.in_tree().is_some_and(|in_tree| self.losses.is_lost(&leaf(in_tree)));
        Some(Found { note: self.lose(Gone::Record(at), now), again })
    }

    /// The loss of a corrupt record is noted, once for all looks at it. Without `room` the next look counts as a loss of its own.
    pub fn noted_corrupt(&mut self, at: &RecordAt<'_>, room: bool) {
        if room {
            self.corrupt.insert(at.place);
        }
    }

    /// Another replica's copy is about to take the place of a corrupt record that was [noted](Self::noted_corrupt). The copy may be older
    /// than what was acknowledged here, so that if the recovery which began then is over, and could not bring the record back, the
    /// record is lost once more. The actor is given up in any case: it may have minted in the copy since.
    pub fn replace_corrupt(&mut self, at: &RecordAt<'_>, now: Duration) -> Option<Note> {
        self.minter = None;
        let in_tree = at.in_tree()?;
        let is_lost = self.losses.is_lost(&leaf(in_tree));
        if is_lost { None } else { self.lose(Gone::Record(at), now) }
    }

    /// A hint is about to go, and may be the only place of dots that were minted here: it was delivered by a node that is no owner of
    /// the key, or cannot be read.
    pub fn hint_gone(&mut self, at: &RecordAt<'_>, now: Duration) {
        let note = self.lose(Gone::Record(at), now);
        assert_eq!(note, None, "a hint is not in the hash tree");
        self.corrupt.remove(&at.place);
    }

    /// The disk lacks what was acknowledged in these leaves: it was set back or exchanged, or not synced before a crash.
    pub fn lost(&mut self, leaves: &Leaves, reason: Reason, now: Duration) -> Note {
        self.lose(Gone::Leaves(leaves, reason), now).expect("lost leaves are noted")
    }

    /// Records of the partition are about to be removed on purpose, in another way than by a mint or a merge.
    pub fn removed(&mut self, now: Duration) {
        self.lose(Gone::All, now);
    }

    /// What every loss takes with it. Rule V1: the actor is given up; the operations of what is lost are forgotten, which retries are
    /// told; the sum of a record that cannot be read is not known; and what other owners have to make up for is to be noted.
    fn lose(&mut self, gone: Gone<'_>, now: Duration) -> Option<Note> {
        self.minter = None;
        match gone {
            Gone::Record(at) => {
                self.operations.forget_key(at.key, now);
                let in_tree = at.in_tree()?;
                self.tree.doubt(in_tree.leaf);
                Some(self.losses.lose(&leaf(in_tree), Reason::Corrupt))
            }
            Gone::Leaves(leaves, reason) => {
                self.operations.forget_all(now);
                Some(self.losses.lose(leaves, reason))
            }
            Gone::All => {
                self.operations.forget_all(now);
                self.tree = LiveTree::default();
                None
            }
        }
    }

    // Comparisons with other owners.

    /// An owner was found to hold the same.
    pub fn equals(&mut self, owner: NodeId) {
        self.differed.remove(&owner);
    }

    /// An owner was found to differ in these leaves.
    pub fn differs(&mut self, owner: NodeId, leaves: Leaves) -> Differs {
        let before = self.differed.insert(owner, leaves).unwrap_or(Leaves::NONE);
        Differs { lasting: leaves.and(&before), gone: before.without(&leaves) }
    }

    /// The owners that differed when they were last compared with.
    pub fn differing(&self) -> impl Iterator<Item = NodeId> {
        self.differed.keys().copied()
    }

    // The parts.

    /// What is lost.
    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    /// What is lost, to note what other owners have made up for. A loss itself is always one of the transitions above.
    pub fn losses_mut(&mut self) -> &mut Losses {
        &mut self.losses
    }

    /// The hash tree.
    pub fn tree(&self) -> &LiveTree {
        &self.tree
    }

    /// The hash tree, to be summed up from the data.
    pub fn tree_mut(&mut self) -> &mut LiveTree {
        &mut self.tree
    }

    /// The superseded operations that are remembered.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Forgets the operations whose time is over, and the oldest beyond `most`; how many of them went before their time.
    pub fn trim_operations(&mut self, now: Duration, most: usize) -> u64 {
        self.operations.trim(now, most)
    }

    /// Whether an actor mints here.
    pub fn has_actor(&self) -> bool {
        self.minter.is_some()
    }

    /// Who mints here, if anybody does.
    pub fn actor(&self) -> Option<Actor> {
        self.minter.as_ref().map(Minter::actor)
    }

    /// A record of this leaf was found to be written by a newer release; whether that is the first one there.
    pub fn found_newer(&mut self, leaf: u8) -> bool {
        let first = !self.newer.contains(leaf);
        self.newer.insert(leaf);
        first
    }

    /// The leaves in which records were found that a newer release has written. They are neither summed up nor listed, so that who compares
    /// these leaves does not learn of them. They stay as long as this release runs: nothing replaces them.
    pub fn newer(&self) -> Leaves {
        self.newer
    }

    /// How many corrupt records are known.
    pub fn corrupt(&self) -> usize {
        self.corrupt.len()
    }

    /// Whether a record is known to be corrupt.
    pub fn is_corrupt(&self, at: &RecordAt<'_>) -> bool {
        self.corrupt.contains(&at.place)
    }

    fn next_dot(
        &mut self,
        me: NodeId,
        held: &Record,
        cause: &Context,
        random: &mut dyn FnMut() -> u64,
        events: &mut Vec<Event>,
    ) -> Dot {
        let mut draw = || Minter::new(Actor { node: me, incarnation: random() });
        let minter = self.minter.get_or_insert_with(|| {
            let earlier = held.context.actors().iter().any(|actor| actor.node == me);
            events.push(Event::ActorDrawn { beside_an_earlier_one: earlier });
            draw()
        });
        if !minter.is_ahead_of(held, cause) {
            events.push(Event::ContextAhead(minter.actor()));
            events.push(Event::ActorDrawn { beside_an_earlier_one: false });
            *minter = draw();
        }
        minter.next_dot()
    }

    /// Rule V6: the operations of either record that this one knows to be superseded. A record that has not seen that itself (a hint,
    /// one that takes the place of a corrupt one) must not say so: it would cover the write without holding what has replaced it,
    /// and whoever merges it would lose the write.
    fn superseded_in(&self, key: u128, record: &Record, other: &Record, now: Duration) -> Vec<OpId> {
        let seen = |op_id: &OpId| {
            let dot = self.operations.dot_of(key, op_id, now);
            dot.is_some_and(|dot| record.context.covers(&dot) && !record.siblings.contains_key(&dot))
        };
        let live = record.siblings.values().chain(other.siblings.values());
        live.map(|sibling| sibling.op_id).filter(seen).collect()
    }

    /// Rule V5, for a merge: the values of this record whose dots the other record claims to know as replaced, when that claim cannot
    /// be believed. The other record names dots that this node's actor has not minted yet, so that whoever made them up may have
    /// named dots that were minted since. The actor is given up; until the record is written the dispute is not over, as the merge may
    /// fail and be repeated.
    fn dispute(
        &mut self,
        at: &RecordAt<'_>,
        record: &Record,
        other: &Record,
        events: &mut Vec<Event>,
    ) -> Option<Vec<Sibling>> {
        let before = self.disputes.get(&at.place);
        if let Some(disputed) = before.and_then(|minter| mint::disputed(minter, record, other)) {
            return Some(disputed);
        }
        let disputed = mint::disputed(self.minter.as_ref()?, record, other)?;
        let minter = self.minter.take()?;
        events.push(Event::ClaimDisputed { actor: minter.actor(), kept: disputed.len() });
        if self.disputes.len() >= DISPUTES_MAX {
            self.disputes.pop_first();
        }
        self.disputes.insert(at.place, minter);
        Some(disputed)
    }

    fn remember(&mut self, key: u128, dropped: Dropped, now: Duration, most: usize) -> Vec<Event> {
        let Dropped { writes, incidents } = dropped;
        let remember = |(dot, op_id)| self.operations.remember(key, op_id, dot, now, most);
        let forgotten: u64 = writes.into_iter().map(remember).sum();
        let two_values = (!incidents.is_empty()).then_some(Event::TwoValues(incidents));
        let evicted = (forgotten > 0).then_some(Event::OperationsEvicted(forgotten));
        two_values.into_iter().chain(evicted).collect()
    }
}

fn leaf(in_tree: InTree<'_>) -> Leaves {
    [in_tree.leaf].into_iter().collect()
}

/// More than there will ever be in one partition: each is an incident.
const DISPUTES_MAX: usize = 64;

#[cfg(test)]
#[path = "partition_test.rs"]
mod tests;
