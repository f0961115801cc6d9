//! Quorum arithmetic: what was asked of whom, what they said, and whether the quorum is met, possible or impossible.
//!
//! A quorum is a **matching**: every counted acknowledgement has a node of its own *and* a primary slot of its own.
//!
//! ```text
//!   slot 0   slot 1   slot 2        A, B, C are the primaries; F stands in for B.
//!     A        B        C           F and a late B are one acknowledgement, not two;
//!              F                    so are two acknowledgements of A.
//! ```
//!
//! What never counts: an acknowledgement of a node that was not asked, a second one of the same node, one after a failure
//! of the same node, and everything that arrives after the request was decided ([`Tally::close`]).
//!
//! While a layout change is under way a partition has the owners of several versions, a [`Group`] for each. A write needs the
//! quorum of **every** group (rule L1 of the layout change); a read that of **any one**, to which only those replicas count that
//! may speak for its version (rule L6: replies of different versions are never added up). One acknowledgement of a node that is
//! in several groups counts in each of them.

use std::fmt;

use quorate_wire::Quorum;
use quorate_wire::ids::{LayoutVersion, NodeId};
use quorate_wire::{Acks, Asked, NotApplied, Role};

/// The owners of a key under one layout version, and how many of them a request needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The version.
    pub version: LayoutVersion,
    /// All owners, in the order of the preference list.
    pub primaries: Vec<NodeId>,
    /// At least 1, and no more than there are primaries.
    pub need: u8,
}

/// The count that a quorum means with `n` replicas.
///
/// # Errors
/// [`NotApplied::QuorumImpossible`] when it is 0 or above `n`; `what` is `R` or `W`.
pub fn required(what: &str, quorum: Quorum, n: u8) -> Result<u8, NotApplied> {
    match quorum.count(n) {
        count if (1..=n).contains(&count) => Ok(count),
        asked => Err(NotApplied::QuorumImpossible { what: what.into(), asked, n }),
    }
}

/// How many of `n` primaries have to hold what a monotonic read of `r` of them returns, so that no later read of `r` or more
/// misses it, nor one of a majority: every `r` of them have one in common with n - r + 1.
pub fn write_back(n: u8, r: u8) -> u8 {
    (n / 2 + 1).max((n + 1).saturating_sub(r))
}

/// The questions of one request and what became of them.
///
/// Times are microseconds since the start of the request; they serve evidence only and decide nothing.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Which quorums make the request's.
    rule: Rule,
    /// Only primaries count.
    strict: bool,
    /// One for each live version, in the order in which they were given.
    groups: Vec<Counted>,
    /// How many primary slots there are, in all groups together.
    slots: usize,
    /// The primaries in slot order, then one seat for every question to a fallback.
    seats: Vec<Seat>,
    /// The order in which seats were asked, for evidence.
    order: Vec<usize>,
    closed: bool,
}

/// A group as the tally counts it.
#[derive(Debug, Clone)]
struct Counted {
    version: LayoutVersion,
    need: u8,
    /// The slots of its primaries, a bit each.
    slots: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Every group must have its quorum: a write.
    Every,
    /// One group's quorum is enough: a read.
    Any,
}

/// Whether a quorum can still be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Enough have acknowledged.
    Met,
    /// Not yet, but those that have not failed would be enough.
    Possible,
    /// Too many have failed.
    Impossible,
}

/// What a replica said, as evidence shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It holds the write.
    Ack {
        /// After a sync to its disk.
        synced: bool,
        /// It did not hold it before.
        changed: bool,
    },
    /// It holds so many values of the key; 0 of a deleted key.
    Values(usize),
    /// It is an owner of the key and holds nothing for it.
    Absent,
    /// It gave so many records of a page.
    Page(usize),
    /// It is no owner and has nothing to say, which is not absence.
    NoInfo,
    /// It refused, failed or could not be asked.
    Failed(String),
}

#[derive(Debug, Clone)]
struct Seat {
    node: NodeId,
    slot: usize,
    role: Role,
    state: State,
    /// The groups for which what it said counts, a bit each; all of them unless it has said for which versions it may speak.
    speaks: u8,
    sent_us: u64,
    answered_us: u64,
    said: Option<Said>,
    /// It raised the count of the quorum when it arrived.
    counted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not asked yet.
    Idle,
    Asked,
    Acked,
    Failed,
    /// Acknowledged after the request was decided.
    Late,
}

impl Tally {
    /// The tally of a write: the quorum of every group. Nobody has been asked yet.
    ///
    /// # Panics
    /// When a group needs nobody or more than it has: [`required`] comes first. When there is no group, or a node is twice in one.
    pub fn of_every(groups: &[Group], strict: bool) -> Self {
        Self::new(groups, Rule::Every, strict)
    }

    /// The tally of a read: the quorum of any one group, the first in the list preferred.
    ///
    /// # Panics
    /// As [`of_every`](Self::of_every).
    pub fn of_any(groups: &[Group], strict: bool) -> Self {
        Self::new(groups, Rule::Any, strict)
    }

    fn new(groups: &[Group], rule: Rule, strict: bool) -> Self {
        assert!((1..=GROUPS_MAX).contains(&groups.len()), "a key has owners, of at most {GROUPS_MAX} live versions");
        let mut seats: Vec<Seat> = Vec::with_capacity(groups[0].primaries.len());
        let count = |group: &Group| {
            assert!(group.need >= 1, "a quorum of nobody is refused before a tally is made");
            assert!(
                usize::from(group.need) <= group.primaries.len(),
                "a quorum above N is refused before a tally is made"
            );
            let slots = group.primaries.iter().fold(0, |slots, node| {
                let slot = seats.iter().position(|seat| seat.node == *node).unwrap_or(seats.len());
                if slot == seats.len() {
                    seats.push(Seat::new(*node, slot, Role::Primary));
                }
                let bit = 1u64.checked_shl(slot as u32).expect("the live versions have at most 64 owners of a key");
                assert!(slots & bit == 0, "a node is one primary of a key");
                slots | bit
            });
            Counted { version: group.version, need: group.need, slots }
        };
        let groups = groups.iter().map(count).collect();
        Self { rule, strict, groups, slots: seats.len(), order: Vec::with_capacity(seats.len()), seats, closed: false }
    }

    /// All primaries, those of the first group first.
    pub fn primaries(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.seats[..self.slots].iter().map(|seat| seat.node)
    }

    /// How many acknowledgements are needed: in the group that lacks most of a write's, or is nearest to a read's quorum.
    pub fn need(&self) -> u8 {
        self.deciding(|state| state == State::Acked).0.need
    }

    /// Notes that a primary is asked now. Returns false, and changes nothing, if it was asked before or is no primary.
    pub fn ask(&mut self, primary: NodeId, at_us: u64) -> bool {
        let idle = |seat: &Seat| seat.node == primary && seat.role == Role::Primary && seat.state == State::Idle;
        let Some(index) = self.seats.iter().position(idle) else { return false };
        self.seats[index].state = State::Asked;
        self.seats[index].sent_us = at_us;
        self.order.push(index);
        true
    }

    /// Notes that a fallback is asked now to stand in for a primary; one fallback may stand in for several.
    ///
    /// Returns false, and changes nothing, if it was asked that before, is a primary itself, or `instead_of` is none.
    pub fn ask_fallback(&mut self, fallback: NodeId, instead_of: NodeId, at_us: u64) -> bool {
        let primaries = &self.seats[..self.slots];
        let Some(slot) = primaries.iter().position(|seat| seat.node == instead_of) else { return false };
        let fallbacks = &self.seats[self.slots..];
        if primaries.iter().any(|seat| seat.node == fallback)
            || fallbacks.iter().any(|seat| seat.node == fallback && seat.slot == slot)
        {
            return false;
        }
        let mut seat = Seat::new(fallback, slot, Role::Fallback);
        seat.state = State::Asked;
        seat.sent_us = at_us;
        self.order.push(self.seats.len());
        self.seats.push(seat);
        true
    }

    /// The role in which a node was asked; nothing if it was not, or has answered.
    pub fn awaited(&self, node: NodeId) -> Option<Role> {
        self.seats.iter().find(|seat| seat.node == node && seat.state == State::Asked).map(|seat| seat.role)
    }

    /// Notes an acknowledgement: of a primary, or of a fallback in all its seats at once (an answer to a read). Returns whether
    /// it raised the count of a group; see the module's text for what does not.
    pub fn ack(&mut self, node: NodeId, said: Said, at_us: u64) -> bool {
        let seats = self.seats_of(node);
        self.acknowledged(&seats, said, at_us)
    }

    /// As [`ack`](Self::ack), of a replica that speaks for these versions only.
    pub fn ack_for_versions(&mut self, node: NodeId, versions: &[LayoutVersion], said: Said, at_us: u64) -> bool {
        let speaks = self.groups.iter().enumerate().filter(|(_, group)| versions.contains(&group.version));
        let speaks = speaks.fold(0, |speaks, (index, _)| speaks | 1 << index);
        let seats = self.seats_of(node);
        for seat in seats.iter().filter(|seat| self.seats[**seat].state == State::Asked).copied().collect::<Vec<_>>() {
            self.seats[seat].speaks = speaks;
        }
        self.acknowledged(&seats, said, at_us)
    }

    /// Notes a fallback's acknowledgement for one primary (a hint that it keeps). Returns whether it raised the count.
    pub fn ack_for(&mut self, fallback: NodeId, instead_of: NodeId, said: Said, at_us: u64) -> bool {
        let seats: Vec<usize> = self.fallback_seat(fallback, instead_of).into_iter().collect();
        self.acknowledged(&seats, said, at_us)
    }

    /// Notes that a node that was asked will not acknowledge, in any of its seats. Returns whether that was news.
    pub fn fail(&mut self, node: NodeId, said: Said, at_us: u64) -> bool {
        let seats = self.seats_of(node);
        self.answer(&seats, State::Failed, said, at_us)
    }

    /// Notes that a fallback will not stand in for this primary. Returns whether that was news.
    pub fn fail_for(&mut self, fallback: NodeId, instead_of: NodeId, said: Said, at_us: u64) -> bool {
        let seats: Vec<usize> = self.fallback_seat(fallback, instead_of).into_iter().collect();
        self.answer(&seats, State::Failed, said, at_us)
    }

    /// The primaries that have not acknowledged, in each group where they have a slot: those that a fallback can stand in for.
    pub fn vacant(&self) -> Vec<NodeId> {
        let speaks = |seat: &Seat| {
            let mut groups = self.groups.iter().enumerate().filter(|(_, group)| group.slots >> seat.slot & 1 == 1);
            groups.all(|(index, _)| seat.speaks >> index & 1 == 1)
        };
        let settled = |seat: &&Seat| matches!(seat.state, State::Acked | State::Late) && speaks(seat);
        self.seats[..self.slots].iter().filter(|seat| !settled(seat)).map(|seat| seat.node).collect()
    }

    /// The request is decided: what arrives from now on is noted and counts for nothing.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Whether the quorum is met, possible or impossible.
    pub fn status(&self) -> Status {
        let of = |index: usize| {
            let need = self.groups[index].need;
            match () {
                () if self.matching(index, |state| state == State::Acked).total() >= need => Status::Met,
                () if self.matching(index, State::may_count).total() >= need => Status::Possible,
                () => Status::Impossible,
            }
        };
        let all = (0..self.groups.len()).map(of);
        match self.rule {
            Rule::Every => all.max(),
            Rule::Any => all.min(),
        }
        .expect("there is a group")
    }

    /// The matching of those that have acknowledged, in the group that [`need`](Self::need) is of.
    pub fn acks(&self) -> Acks {
        self.deciding(|state| state == State::Acked).1
    }

    /// The most acknowledgements that there can be: of all that have not failed, asked or not. In the group that can have least of
    /// a write's quorum, or most of a read's.
    pub fn possible(&self) -> u8 {
        self.deciding(State::may_count).1.total()
    }

    /// The version whose quorum a read rests on, or comes nearest to.
    pub fn version(&self) -> LayoutVersion {
        self.deciding(|state| state == State::Acked).0.version
    }

    /// The primaries of the group at this place of the list, in slot order.
    pub fn primaries_of(&self, group: usize) -> impl Iterator<Item = NodeId> + '_ {
        let slots = self.groups[group].slots;
        self.seats[..self.slots].iter().filter(move |seat| slots >> seat.slot & 1 == 1).map(|seat| seat.node)
    }

    /// How many groups there are.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// How far the group at this place of the list can come, if all answer that have not failed, and `more` nodes that could be
    /// asked besides: whether that is its quorum.
    pub fn can_meet(&self, group: usize, more: usize) -> bool {
        let possible = usize::from(self.matching(group, State::may_count).total());
        possible + more >= self.groups[group].need.into()
    }

    /// How many more have to be asked, so that the group at this place of the list has its quorum if all answer.
    pub fn lacks(&self, group: usize) -> usize {
        let awaited = self.matching(group, |state| matches!(state, State::Asked | State::Acked)).total();
        self.groups[group].need.saturating_sub(awaited).into()
    }

    /// Whether somebody who was asked has not answered.
    pub fn is_waiting(&self) -> bool {
        self.seats.iter().any(|seat| seat.state == State::Asked)
    }

    /// Every question in the order in which it was asked, for evidence.
    pub fn asked(&self) -> Vec<Asked> {
        let asked = |index: &usize| {
            let seat = &self.seats[*index];
            Asked {
                node: seat.node,
                role: seat.role,
                instead_of: (seat.role == Role::Fallback).then(|| self.seats[seat.slot].node),
                sent_us: seat.sent_us,
                answered_us: seat.said.is_some().then_some(seat.answered_us),
                said: seat.said.as_ref().map_or_else(|| NO_ANSWER.into(), Said::to_string),
                counted: seat.counted,
            }
        };
        self.order.iter().map(asked).collect()
    }

    /// Who has not acknowledged and why, for people: `n2: connection refused, n3: no answer yet`. One who was asked in several
    /// places is named once, with what came last.
    pub fn why(&self) -> String {
        let mut named: Vec<(NodeId, String)> = Vec::new();
        for seat in &self.seats {
            let said = match (seat.state, &seat.said) {
                (State::Acked | State::Late | State::Idle, _) => continue,
                (State::Failed, Some(said)) => said.to_string(),
                (State::Failed | State::Asked, _) => NO_ANSWER.into(),
            };
            match named.iter_mut().find(|(node, _)| *node == seat.node) {
                Some((_, before)) => *before = said,
                None => named.push((seat.node, said)),
            }
        }
        named.iter().map(|(node, said)| format!("{node}: {said}")).collect::<Vec<_>>().join(", ")
    }

    fn seats_of(&self, node: NodeId) -> Vec<usize> {
        (0..self.seats.len()).filter(|index| self.seats[*index].node == node).collect()
    }

    fn fallback_seat(&self, fallback: NodeId, instead_of: NodeId) -> Option<usize> {
        let slot = self.seats[..self.slots].iter().position(|seat| seat.node == instead_of)?;
        let of_both = |seat: &Seat| seat.node == fallback && seat.slot == slot;
        self.seats[self.slots..].iter().position(of_both).map(|index| self.slots + index)
    }

    fn acknowledged(&mut self, seats: &[usize], said: Said, at_us: u64) -> bool {
        let before = self.totals();
        let state = if self.closed { State::Late } else { State::Acked };
        self.answer(seats, state, said, at_us);
        let counted = self.totals() > before;
        if counted && let Some(first) = seats.first() {
            self.seats[*first].counted = true;
        }
        counted
    }

    /// The acknowledgements that count, over all groups. A sum says whether one was raised, as none is ever lowered.
    fn totals(&self) -> u32 {
        (0..self.groups.len()).map(|group| u32::from(self.matching(group, |state| state == State::Acked).total())).sum()
    }

    /// The group that decides, as far as the seats in the states that `counts` takes go, with its matching: of a write the one that
    /// lacks most, of a read the one that lacks least; of equal ones the first.
    fn deciding(&self, counts: impl Fn(State) -> bool) -> (&Counted, Acks) {
        let lacks = |(group, acks): &(&Counted, Acks)| i16::from(group.need) - i16::from(acks.total());
        let all = self.groups.iter().enumerate().map(|(index, group)| (group, self.matching(index, &counts)));
        match self.rule {
            Rule::Every => all.rev().max_by_key(lacks),
            Rule::Any => all.min_by_key(lacks),
        }
        .expect("there is a group")
    }

    /// Moves those of the seats that are awaited; returns whether there were any.
    fn answer(&mut self, seats: &[usize], state: State, said: Said, at_us: u64) -> bool {
        let mut news = false;
        for index in seats {
            let seat = &mut self.seats[*index];
            if seat.state != State::Asked {
                continue;
            }
            seat.state = state;
            seat.answered_us = at_us;
            seat.said = Some(said.clone());
            news = true;
        }
        news
    }

    /// The largest matching of nodes to the slots of a group, over the seats in the states that `counts` takes.
    ///
    /// A primary fits its own slot only, so that all of them are in some largest matching; fallbacks are matched to the
    /// slots that are left, by augmenting paths.
    fn matching(&self, group: usize, counts: impl Fn(State) -> bool) -> Acks {
        let slots = self.groups[group].slots;
        let counts = |seat: &Seat| slots >> seat.slot & 1 == 1 && seat.speaks >> group & 1 == 1 && counts(seat.state);
        let (primaries, fallbacks) = self.seats.split_at(self.slots);
        let primary = primaries.iter().filter(|seat| counts(seat)).count();
        if self.strict || fallbacks.is_empty() {
            return Acks { primary: primary as u8, fallback: 0 };
        }
        let edges: Vec<(NodeId, usize)> = fallbacks
            .iter()
            .filter(|seat| counts(seat) && !counts(&primaries[seat.slot]))
            .map(|seat| (seat.node, seat.slot))
            .collect();
        let mut holders: Vec<Option<NodeId>> = vec![None; self.slots];
        let mut fallback = 0;
        for (index, (node, _)) in edges.iter().enumerate() {
            let first = edges[..index].iter().all(|(before, _)| before != node);
            if first && augment(&edges, *node, &mut holders, &mut vec![false; self.slots]) {
                fallback += 1;
            }
        }
        Acks { primary: primary as u8, fallback }
    }
}

impl State {
    /// Whether one in this state may come to be counted, or is.
    fn may_count(self) -> bool {
        matches!(self, Self::Idle | Self::Asked | Self::Acked)
    }
}

impl Seat {
    fn new(node: NodeId, slot: usize, role: Role) -> Self {
        let (state, speaks) = (State::Idle, u8::MAX);
        Self { node, slot, role, state, speaks, sent_us: 0, answered_us: 0, said: None, counted: false }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ack { synced, changed } => {
                f.write_str(if *changed { "ack" } else { "ack, held it already" })?;
                f.write_str(if *synced { "" } else { ", not synced" })
            }
            Self::Values(0) => f.write_str("deleted"),
            Self::Values(1) => f.write_str("1 value"),
            Self::Values(count) => write!(f, "{count} values"),
            Self::Absent => f.write_str("absent"),
            Self::Page(count) => write!(f, "{count} records"),
            Self::NoInfo => f.write_str("no information"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

const NO_ANSWER: &str = "no answer yet";

/// More versions than that are never live at a time: a layout change begins when the one before it has ended or was aborted.
pub const GROUPS_MAX: usize = 4;

/// Gives `node` a slot, moving others to slots of theirs that are free; returns whether that was possible (Kuhn 1955).
fn augment(edges: &[(NodeId, usize)], node: NodeId, holders: &mut [Option<NodeId>], tried: &mut [bool]) -> bool {
    for (_, slot) in edges.iter().filter(|(fallback, _)| *fallback == node) {
        if std::mem::replace(&mut tried[*slot], true) {
            continue;
        }
        let free = match holders[*slot] {
            None => true,
            Some(holder) => augment(edges, holder, holders, tried),
        };
        if free {
            holders[*slot] = Some(node);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_monotonic_read_has_returned_meets_every_later_read_of_its_size_and_every_majority() {
        for n in 1..=9u8 {
            let majority = n / 2 + 1;
            for r in 1..=n {
                let holders = write_back(n, r);
                assert!(holders <= n && holders + r > n && holders + majority > n, "n={n} r={r}: {holders}");
                let fewer = holders - 1;
                assert!(fewer + r <= n || fewer < majority, "n={n} r={r}: {fewer} would do");
            }
        }
    }

    const ACK: Said = Said::Ack { synced: true, changed: true };

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("a legal name")
    }

    fn failed() -> Said {
        Said::Failed("refused".into())
    }

    fn one(primaries: &[NodeId], need: u8) -> [Group; 1] {
        [Group { version: LayoutVersion(1), primaries: primaries.to_vec(), need }]
    }

    fn asked(primaries: &[NodeId], need: u8) -> Tally {
        let mut tally = Tally::of_every(&one(primaries, need), false);
        for primary in primaries {
            assert!(tally.ask(*primary, 0));
        }
        tally
    }

    #[test]
    fn counts_of_zero_or_above_n_are_refused_with_both_numbers() {
        for n in 1..=5 {
            for count in 0..=6 {
                let required = required("W", Quorum::Exactly(count), n);
                let refused = NotApplied::QuorumImpossible { what: "W".into(), asked: count, n };
                assert_eq!(required, if count == 0 || count > n { Err(refused) } else { Ok(count) });
            }
        }
        assert_eq!(required("R", Quorum::Majority, 5), Ok(3));
    }

    #[test]
    fn a_fallback_and_the_late_primary_it_stood_in_for_are_one_slot() {
        let (a, b, c, f) = (node("a"), node("b"), node("c"), node("f"));
        let mut tally = asked(&[a, b, c], 2);
        assert!(tally.ask_fallback(f, b, 5));
        assert!(tally.ack(f, ACK, 6), "the stand-in counts");
        assert_eq!(tally.acks(), Acks { primary: 0, fallback: 1 });
        assert!(!tally.ack(b, ACK, 7), "its primary adds nothing");
        assert_eq!(tally.acks(), Acks { primary: 1, fallback: 0 }, "and takes the slot over");
        assert_eq!(tally.status(), Status::Possible);
        assert!(tally.ack(c, ACK, 8));
        assert_eq!(tally.status(), Status::Met);
    }

    #[test]
    fn one_fallback_for_two_primaries_counts_once_and_moves_to_where_it_is_needed() {
        let (a, b, c, f, g) = (node("a"), node("b"), node("c"), node("f"), node("g"));
        let mut tally = asked(&[a, b, c], 3);
        assert!(tally.ask_fallback(f, b, 1) && tally.ask_fallback(f, c, 1) && tally.ask_fallback(g, b, 1));
        assert!(tally.ack(f, ACK, 2));
        assert_eq!(tally.acks().total(), 1, "distinct nodes");
        assert!(tally.ack(g, ACK, 3), "f moves to c's slot, so that g has b's");
        assert_eq!(tally.acks(), Acks { primary: 0, fallback: 2 });
        assert!(tally.ack(a, ACK, 4));
        assert_eq!(tally.status(), Status::Met);
    }

    #[test]
    fn a_strict_tally_counts_primaries_only() {
        let (a, b, f) = (node("a"), node("b"), node("f"));
        let mut tally = Tally::of_every(&one(&[a, b], 2), true);
        assert!(tally.ask(a, 0) && tally.ask(b, 0) && tally.ask_fallback(f, b, 0));
        assert!(tally.ack(a, ACK, 1) && !tally.ack(f, ACK, 1));
        assert!(tally.fail(b, failed(), 2));
        assert_eq!(tally.status(), Status::Impossible);
    }

    #[test]
    fn strangers_doubles_and_those_who_were_not_asked_count_for_nothing() {
        let (a, b) = (node("a"), node("b"));
        let mut tally = Tally::of_every(&one(&[a, b], 2), false);
        assert!(!tally.ack(a, ACK, 0), "not asked yet");
        assert!(!tally.ack(node("x"), ACK, 0) && !tally.fail(node("x"), failed(), 0));
        assert!(tally.ask(a, 0) && !tally.ask(a, 0) && !tally.ask(node("x"), 0));
        assert!(!tally.ask_fallback(b, a, 0), "a primary stands in for nobody");
        assert!(!tally.ask_fallback(node("f"), node("x"), 0), "nobody stands in for a stranger");
        assert!(tally.ack(a, ACK, 1) && !tally.ack(a, ACK, 2));
        assert!(!tally.fail(a, failed(), 3), "an acknowledgement is not taken back");
        assert_eq!(tally.acks().total(), 1);
    }

    #[test]
    fn what_arrives_after_the_decision_is_noted_and_not_counted() {
        let (a, b) = (node("a"), node("b"));
        let mut tally = asked(&[a, b], 1);
        assert!(tally.ack(a, ACK, 3));
        tally.close();
        assert!(!tally.ack(b, ACK, 9));
        assert_eq!(tally.acks().total(), 1);
        assert!(!tally.is_waiting());
        let evidence = tally.asked();
        assert_eq!((evidence[1].answered_us, evidence[1].counted, evidence[1].said.as_str()), (Some(9), false, "ack"));
        assert!(evidence[0].counted);
    }

    #[test]
    fn evidence_tells_who_was_asked_when_for_whom_and_what_each_said() {
        let (a, b, f) = (node("a"), node("b"), node("f"));
        let mut tally = Tally::of_every(&one(&[a, b], 2), false);
        assert!(tally.ask(a, 3) && tally.ask(b, 4) && tally.ask_fallback(f, a, 5) && tally.ask_fallback(f, b, 6));
        tally.ack(a, ACK, 7);
        // One answer for both of its seats: it counts once, in b's place.
        assert!(tally.ack(f, ACK, 8));
        let told: Vec<_> = tally
            .asked()
            .into_iter()
            .map(|asked| (asked.node, asked.role, asked.instead_of, asked.sent_us, asked.answered_us, asked.counted))
            .collect();
        let (primary, fallback) = (Role::Primary, Role::Fallback);
        let expected = [
            (a, primary, None, 3, Some(7), true),
            (b, primary, None, 4, None, false),
            (f, fallback, Some(a), 5, Some(8), true),
            (f, fallback, Some(b), 6, Some(8), false),
        ];
        assert_eq!(told, expected);
        assert_eq!(tally.asked()[1].said, NO_ANSWER);
    }

    #[test]
    #[should_panic(expected = "a node is one primary of a key")]
    fn a_tally_over_a_node_that_is_named_twice_is_a_mistake() {
        let _ = Tally::of_every(&one(&[node("a"), node("b"), node("b")], 1), false);
    }

    #[test]
    fn the_reason_names_who_failed_and_who_is_awaited() {
        let (a, b, c) = (node("a"), node("b"), node("c"));
        let mut tally = asked(&[a, b, c], 3);
        tally.ack(a, ACK, 1);
        tally.fail(b, failed(), 1);
        assert_eq!(tally.why(), "b: refused, c: no answer yet");
    }

    /// Every sequence of four answers of two primaries and two fallbacks (one for each slot, or both for the first),
    /// against the definition: the largest set of acknowledgements with distinct nodes and distinct slots.
    #[test]
    fn every_order_of_answers_agrees_with_the_definition_of_a_matching() {
        let nodes = [node("a"), node("b"), node("f"), node("g")];
        for (slot_of_g, need) in [(0, 1), (0, 2), (1, 1), (1, 2)] {
            let edges = [(0, 0), (1, 1), (2, 0), (3, slot_of_g)];
            let mut tally = asked(&nodes[..2], need);
            assert!(tally.ask_fallback(nodes[2], nodes[0], 0));
            assert!(tally.ask_fallback(nodes[3], nodes[slot_of_g], 0));
            descend(&tally, &nodes, &edges, [None; 4], 4);
        }
    }

    fn descend(
        tally: &Tally,
        nodes: &[NodeId; 4],
        edges: &[(usize, usize); 4],
        answers: [Option<bool>; 4],
        depth: usize,
    ) {
        let largest = |counts: &dyn Fn(Option<bool>) -> bool| {
            let matching = |chosen: &u32| {
                let chosen: Vec<_> = (0..4).filter(|edge| chosen & (1 << edge) != 0).map(|edge| edges[edge]).collect();
                let slots: std::collections::BTreeSet<_> = chosen.iter().map(|(_, slot)| slot).collect();
                let all_count = chosen.iter().all(|(node, _)| counts(answers[*node]));
                (all_count && slots.len() == chosen.len()).then_some(chosen.len() as u8)
            };
            (0..16).filter_map(|chosen| matching(&chosen)).max().expect("the empty matching")
        };
        let acked = largest(&|answer| answer == Some(true));
        let possible = largest(&|answer| answer != Some(false));
        assert_eq!(tally.acks().total(), acked, "{answers:?}");
        assert_eq!(tally.possible(), possible, "{answers:?}");
        let status = match () {
            () if acked >= tally.need() => Status::Met,
            () if possible >= tally.need() => Status::Possible,
            () => Status::Impossible,
        };
        assert_eq!(tally.status(), status, "{answers:?}");
        if depth == 0 {
            return;
        }
        for (index, node) in nodes.iter().enumerate() {
            for ack in [true, false] {
                let mut next = tally.clone();
                let mut answers = answers;
                let news = answers[index].is_none();
                answers[index].get_or_insert(ack);
                if ack {
                    assert!(news || !next.ack(*node, ACK, 0));
                    next.ack(*node, ACK, 0);
                } else {
                    assert_eq!(next.fail(*node, failed(), 0), news);
                }
                descend(&next, nodes, edges, answers, depth - 1);
            }
        }
    }
}
