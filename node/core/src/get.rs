//! One read quorum, as a state machine: of a key's record, or of a page of a partition.
//!
//! It asks the R best primaries, one more when one of them fails, and one more each time that the answer is late (a hedge).
//! When there is no further primary, fallbacks are asked in place of those that have not answered, unless the read is strict:
//! what one keeps in hints counts, and with nothing to say it says nothing (DeCandia et al., "Dynamo", 2007, section 4.6).
//! The first R answers decide. What arrives later serves the verdict on who is stale, and nothing else.
//!
//! While a layout change is under way there are the owners of several versions, a [`Group`] for each: R replicas that may speak for
//! one of them decide, whichever it is. The first group that can still have its quorum is asked; the next one when it cannot. Answers
//! of other groups are merged with the reply all the same, as those of more replicas always may be, and count for nothing.
//!
//! Invariants: no replica is asked twice; there is exactly one reply and it comes before `Finished`; only answers of primaries
//! can say that a key is absent or has no value, and a replica that refuses or fails never counts as one that holds nothing. The machine
//! reads no clock and sends nothing: inputs are `on_*`, what to do comes back as [`GetAction`]s. Every question that it asks
//! must be answered in the end ([`Get::on_answer`], [`Get::on_failed`], ..), so every call needs a deadline.

use quorate_wire::ids::{LayoutVersion, NodeId};
use quorate_wire::{Acks, Asked, NotApplied, Role};

use super::quorum::{Group, Said, Status, Tally};
use super::record::Record;

/// What the driver has to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum GetAction {
    /// Ask this primary.
    Ask(NodeId),
    /// Ask this fallback what it keeps of the key for primaries.
    AskFallback(NodeId),
    /// Come back with [`Get::on_late`] and this token after the hedge delay, unless `Finished` came before.
    HedgeAfterDelay {
        /// Tells this timer from those that it overtakes.
        token: u32,
        /// Another primary can be asked then, which is cheap; or only a fallback is left, which is worth a longer wait.
        primary: bool,
    },
    /// Answer the client: from [`Get::decisive`], or with this refusal.
    Reply(Result<(), NotApplied>),
    /// Everybody who was asked has answered: nothing will happen any more.
    Finished,
}

/// A read that collects answers of type `T`.
#[derive(Debug, Clone)]
pub struct Get<T> {
    tally: Tally,
    /// Primaries that were not asked yet, best last.
    spare: Vec<NodeId>,
    /// Fallbacks that were not asked yet, best last.
    fallbacks: Vec<NodeId>,
    answers: Vec<(NodeId, T)>,
    /// How many of `answers` made the decision.
    decisive: usize,
    replied: bool,
    decided_by: Option<NodeId>,
    /// Grows with every hedge, so that a timer that was overtaken is known as such.
    token: u32,
    hedges: u32,
}

impl<T> Get<T> {
    /// A read of a quorum of one of the groups, the first one preferred. `nearest` are all of their primaries, best first: itself, then
    /// by who is up and near. So are the fallbacks that can be reached; a strict read asks none of them.
    ///
    /// Times are microseconds since the start of the request.
    ///
    /// # Panics
    /// As [`Tally::of_any`].
    pub fn start(
        groups: &[Group],
        nearest: &[NodeId],
        fallbacks: &[NodeId],
        strict: bool,
        at_us: u64,
    ) -> (Self, Vec<GetAction>) {
        let mut get = Self {
            tally: Tally::of_any(groups, strict),
            spare: nearest.iter().rev().copied().collect(),
            fallbacks: if strict { Vec::new() } else { fallbacks.iter().rev().copied().collect() },
            answers: Vec::with_capacity(nearest.len()),
            decisive: 0,
            replied: false,
            decided_by: None,
            token: 0,
            hedges: 0,
        };
        let mut actions = get.ask_enough(at_us);
        actions.extend(get.hedge_later());
        (get, actions)
    }

    /// A replica gave its record or page. Those that were not asked, or have answered, are ignored. What a fallback has deleted is
    /// deleted, but it does not know what else there is: such a record is merged with the others and counts for nothing.
    pub fn on_answer(&mut self, node: NodeId, answer: T, said: Said, at_us: u64) -> Vec<GetAction> {
        self.answered(node, None, answer, said, at_us)
    }

    /// As [`on_answer`](Self::on_answer), of a primary that may speak for these versions only: not yet for a newer one, of which it
    /// has not received everything, or no longer for an older one.
    pub fn on_answer_for_versions(
        &mut self,
        node: NodeId,
        versions: &[LayoutVersion],
        answer: T,
        said: Said,
        at_us: u64,
    ) -> Vec<GetAction> {
        self.answered(node, Some(versions), answer, said, at_us)
    }

    /// A replica holds nothing of the key. From a fallback this is no answer, and the next one is asked.
    pub fn on_absent(&mut self, node: NodeId, empty: T, at_us: u64) -> Vec<GetAction> {
        match self.tally.awaited(node) {
            Some(Role::Primary) => self.on_answer(node, empty, Said::Absent, at_us),
            Some(Role::Fallback) => self.without(node, Said::NoInfo, at_us),
            None => Vec::new(),
        }
    }

    /// A replica refused, could not be asked, or its deadline has passed: the next one is asked.
    pub fn on_failed(&mut self, node: NodeId, why: String, at_us: u64) -> Vec<GetAction> {
        self.without(node, Said::Failed(why), at_us)
    }

    /// The hedge delay is over. A token that is not the newest is ignored.
    pub fn on_late(&mut self, token: u32, at_us: u64) -> Vec<GetAction> {
        if self.replied || token != self.token {
            return Vec::new();
        }
        let Some(ask) = self.ask_next(at_us) else { return Vec::new() };
        self.hedges += 1;
        [ask].into_iter().chain(self.hedge_later()).collect()
    }

    /// The time for an answer has run out.
    pub fn on_deadline(&mut self) -> Vec<GetAction> {
        if self.replied {
            return Vec::new();
        }
        let (need, had) = (self.tally.need(), self.tally.acks().total());
        let refusal = NotApplied::TimedOut { need, had, why: self.tally.why() };
        [self.reply(Err(refusal))].into_iter().chain(self.finished()).collect()
    }

    /// The answers that made the decision, in the order in which they came.
    pub fn decisive(&self) -> &[(NodeId, T)] {
        &self.answers[..self.decisive]
    }

    /// The same, to be taken apart.
    pub fn into_decisive(mut self) -> Vec<(NodeId, T)> {
        self.answers.truncate(self.decisive);
        self.answers
    }

    /// All answers, late ones included, in the order in which they came.
    pub fn answers(&self) -> &[(NodeId, T)] {
        &self.answers
    }

    /// How many answers are needed.
    pub fn need(&self) -> u8 {
        self.tally.need()
    }

    /// Who has answered; fixed once the reply was made.
    pub fn acks(&self) -> Acks {
        self.tally.acks()
    }

    /// The version whose owners have made the decision, or come nearest to it.
    pub fn version(&self) -> LayoutVersion {
        self.tally.version()
    }

    /// Whose answer completed the quorum.
    pub fn decided_by(&self) -> Option<NodeId> {
        self.decided_by
    }

    /// How many were asked because others were late.
    pub fn hedges(&self) -> u32 {
        self.hedges
    }

    /// Every question so far, for evidence.
    pub fn asked(&self) -> Vec<Asked> {
        self.tally.asked()
    }

    fn answered(
        &mut self,
        node: NodeId,
        versions: Option<&[LayoutVersion]>,
        answer: T,
        said: Said,
        at_us: u64,
    ) -> Vec<GetAction> {
        let Some(role) = self.tally.awaited(node) else { return Vec::new() };
        self.answers.push((node, answer));
        if role == Role::Fallback && said == Said::Values(0) {
            return self.without(node, said, at_us);
        }
        match versions {
            None => self.tally.ack(node, said, at_us),
            Some(versions) => self.tally.ack_for_versions(node, versions, said, at_us),
        };
        if !self.replied {
            self.decisive = self.answers.len();
        }
        let mut actions = Vec::new();
        if !self.replied && self.tally.status() == Status::Met {
            self.decided_by = Some(node);
            actions.push(self.reply(Ok(())));
        } else if !self.replied && versions.is_some() {
            // It may count for less than it was asked for.
            match self.group() {
                Some(_) => actions.extend(self.ask_enough(at_us)),
                None => actions.push(self.unavailable()),
            }
        }
        actions.extend(self.finished());
        actions
    }

    fn without(&mut self, node: NodeId, said: Said, at_us: u64) -> Vec<GetAction> {
        if !self.tally.fail(node, said, at_us) {
            return Vec::new();
        }
        let mut actions = Vec::new();
        if !self.replied {
            if self.group().is_some() {
                actions.extend(self.ask_next(at_us));
                actions.extend(self.ask_enough(at_us));
            } else {
                actions.push(self.unavailable());
            }
        }
        actions.extend(self.finished());
        actions
    }

    /// The first group that can have its quorum, if all of those answer that have not failed, those included that were not asked yet.
    fn group(&self) -> Option<usize> {
        (0..self.tally.groups()).find(|group| self.tally.can_meet(*group, self.fallbacks.len()))
    }

    fn unavailable(&mut self) -> GetAction {
        let (need, alive, why) = (self.tally.need(), self.tally.possible(), self.tally.why());
        self.reply(Err(NotApplied::Unavailable { need, alive, why }))
    }

    /// Asks as many as the group that is being asked needs.
    fn ask_enough(&mut self, at_us: u64) -> Vec<GetAction> {
        let mut actions = Vec::new();
        while let Some(group) = self.group()
            && self.tally.lacks(group) > 0
            && let Some(ask) = self.ask_next(at_us)
        {
            actions.push(ask);
        }
        actions
    }

    /// The next primary of the group that is being asked, or of another one; when there is none left, the next fallback, for every
    /// primary that has not answered.
    fn ask_next(&mut self, at_us: u64) -> Option<GetAction> {
        let group = self.group();
        let is_of_group =
            |node: &NodeId| group.is_some_and(|group| self.tally.primaries_of(group).any(|of| of == *node));
        let next = self.spare.iter().rposition(is_of_group).or(self.spare.len().checked_sub(1));
        if let Some(node) = next.map(|index| self.spare.remove(index)) {
            assert!(self.tally.ask(node, at_us), "a spare primary was not asked before");
            return Some(GetAction::Ask(node));
        }
        let node = self.fallbacks.pop()?;
        for primary in self.tally.vacant() {
            assert!(self.tally.ask_fallback(node, primary, at_us), "a fallback is asked once, and is no primary");
        }
        Some(GetAction::AskFallback(node))
    }

    fn hedge_later(&mut self) -> Option<GetAction> {
        self.token += 1;
        let primary = !self.spare.is_empty();
        (primary || !self.fallbacks.is_empty()).then_some(GetAction::HedgeAfterDelay { token: self.token, primary })
    }

    fn reply(&mut self, outcome: Result<(), NotApplied>) -> GetAction {
        assert!(!std::mem::replace(&mut self.replied, true), "a read is answered once");
        self.tally.close();
        GetAction::Reply(outcome)
    }

    fn finished(&self) -> Option<GetAction> {
        (self.replied && !self.tally.is_waiting()).then_some(GetAction::Finished)
    }
}

impl Get<Record> {
    fn is_primary(&self, node: NodeId) -> bool {
        self.tally.primaries().any(|primary| primary == node)
    }

    /// Whether the reply would say that there is no value, and fewer than R primaries bear it out: a stand-in has deleted what they hold.
    pub fn says_too_much(&self) -> bool {
        self.acks().primary < self.need() && self.merged().siblings.is_empty()
    }

    /// What the quorum holds: the join of the decisive answers.
    pub fn merged(&self) -> Record {
        merge(self.decisive())
    }

    /// What read repair has to do: the primaries whose record lacks something that another answer has, late ones and those of
    /// fallbacks included, and the record that mends them. Nothing if nobody is stale: then nothing is to be written.
    pub fn stale(&self) -> Option<(Vec<NodeId>, Record)> {
        if self.answers.windows(2).all(|pair| pair[0].1 == pair[1].1) {
            return None;
        }
        let merged = merge(&self.answers);
        let lacking = self.answers.iter().filter(|(node, record)| self.is_primary(*node) && *record != merged);
        let stale: Vec<NodeId> = lacking.map(|(node, _)| *node).collect();
        (!stale.is_empty()).then_some((stale, merged))
    }

    /// The primaries whose answers hold all that the reply is made of.
    pub fn holders(&self) -> Vec<NodeId> {
        let merged = self.merged();
        let holds = |record: &Record| *record == merged || !record.clone().merge(&merged, &|_| false).1;
        let answers = self.answers.iter().filter(|(node, record)| self.is_primary(*node) && holds(record));
        answers.map(|(node, _)| *node).collect()
    }
}

/// Merges records (V3); equal ones, the common case, cost a comparison.
fn merge(answers: &[(NodeId, Record)]) -> Record {
    let Some(((_, first), others)) = answers.split_first() else { return Record::default() };
    let mut merged = first.clone();
    for (_, record) in others.iter().filter(|(_, record)| record != first) {
        // Only a replica knows which operations were superseded there; the join of answers is what they say.
        merged.merge(record, &|_| false);
    }
    merged
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use quorate_wire::codec::Blob;
    use quorate_wire::ids::OpId;

    use super::super::record::Sibling;
    use super::super::version::{Actor, Context, Dot};
    use super::*;

    fn nodes() -> [NodeId; 3] {
        ["a", "b", "c"].map(|name| NodeId::new(name).expect("a legal name"))
    }

    /// A read of `need` of these, best first, while one version is live.
    fn read<T>(nearest: &[NodeId], fallbacks: &[NodeId], need: u8, strict: bool) -> (Get<T>, Vec<GetAction>) {
        let group = Group { version: LayoutVersion(1), primaries: nearest.to_vec(), need };
        Get::start(&[group], nearest, fallbacks, strict, 0)
    }

    fn start(need: u8) -> Get<u8> {
        read(&nodes(), &[], need, false).0
    }

    fn hedge(token: u32) -> GetAction {
        GetAction::HedgeAfterDelay { token, primary: true }
    }

    fn answer(get: &mut Get<u8>, node: NodeId) -> Vec<GetAction> {
        get.on_answer(node, 1, Said::Values(1), 1)
    }

    #[test]
    fn the_r_best_primaries_are_asked_and_a_hedge_is_armed_while_there_are_more() {
        let [a, b, c] = nodes();
        let (_, actions) = read::<u8>(&[c, a, b], &[], 2, false);
        assert_eq!(actions, [GetAction::Ask(c), GetAction::Ask(a), hedge(1)]);
        let (_, actions) = read::<u8>(&[c, a, b], &[], 3, false);
        assert_eq!(actions, [GetAction::Ask(c), GetAction::Ask(a), GetAction::Ask(b)]);
    }

    #[test]
    fn a_failure_asks_the_next_and_too_many_are_unavailable_with_both_numbers() {
        let [a, b, c] = nodes();
        let mut get = start(2);
        assert_eq!(get.on_failed(b, "quarantined".into(), 1), [GetAction::Ask(c)]);
        let actions = get.on_failed(a, "refused".into(), 2);
        let why = "a: refused, b: quarantined, c: no answer yet".into();
        assert_eq!(actions, [GetAction::Reply(Err(NotApplied::Unavailable { need: 2, alive: 1, why }))]);
        assert_eq!(answer(&mut get, c), [GetAction::Finished]);
        assert_eq!(get.decisive().len(), 0, "what comes after the refusal makes no answer of it");
    }

    #[test]
    fn a_late_answer_asks_one_more_and_an_overtaken_timer_nobody() {
        let [a, b, c] = nodes();
        let mut get: Get<u8> = read(&nodes(), &[], 1, false).0;
        assert_eq!(get.on_late(0, 1), []);
        assert_eq!(get.on_late(1, 1), [GetAction::Ask(b), hedge(2)]);
        assert_eq!(get.on_late(1, 2), [], "that timer has fired");
        assert_eq!(get.on_late(2, 3), [GetAction::Ask(c)], "there is nobody left to hedge with");
        assert_eq!(get.on_late(3, 4), []);
        assert_eq!(get.hedges(), 2);
        assert_eq!(answer(&mut get, c), [GetAction::Reply(Ok(()))]);
        assert_eq!(get.decided_by(), Some(c));
        assert_eq!(answer(&mut get, a), []);
        assert_eq!(answer(&mut get, b), [GetAction::Finished]);
        assert_eq!((get.decisive().len(), get.answers().len()), (1, 3));
        assert_eq!((get.acks().total(), get.need()), (1, 1), "what came after the reply does not count");
        assert_eq!(get.into_decisive(), [(c, 1)]);
    }

    /// While {a, b, c} hand over to {c, d, e}: two of either, d being the nearest.
    fn change() -> (Get<u8>, Vec<GetAction>) {
        let nodes = ["a", "b", "c", "d", "e"].map(|name| NodeId::new(name).expect("legal"));
        let group = |version, primaries: &[NodeId]| Group {
            version: LayoutVersion(version),
            primaries: primaries.to_vec(),
            need: 2,
        };
        let nearest = [3, 1, 2, 0, 4].map(|index: usize| nodes[index]);
        Get::start(&[group(1, &nodes[..3]), group(2, &nodes[2..])], &nearest, &[], true, 0)
    }

    #[test]
    fn a_read_asks_the_preferred_version_first_and_the_next_when_that_cannot_have_its_quorum() {
        let [a, b, c] = nodes();
        let d = NodeId::new("d").expect("legal");
        let (mut get, actions) = change();
        assert_eq!(
            actions,
            [GetAction::Ask(b), GetAction::Ask(c), hedge(1)],
            "d is nearer, and owns nothing of version 1"
        );
        assert_eq!(get.on_failed(b, "closed".into(), 1), [GetAction::Ask(a)]);
        assert_eq!(get.on_failed(a, "closed".into(), 1), [GetAction::Ask(d)], "one of version 1 is left");
        assert_eq!(answer(&mut get, c), []);
        assert_eq!(get.on_answer(d, 2, Said::Values(1), 2), [GetAction::Reply(Ok(())), GetAction::Finished]);
        assert_eq!((get.version(), get.acks().total()), (LayoutVersion(2), 2));
    }

    #[test]
    fn answers_for_different_versions_are_never_added_up() {
        let [a, b, c] = nodes();
        let d = NodeId::new("d").expect("legal");
        let (mut get, _) = change();
        assert_eq!(answer(&mut get, b), []);
        let only = |get: &mut Get<u8>, node, version| {
            get.on_answer_for_versions(node, &[LayoutVersion(version)], 1, Said::Values(1), 1)
        };
        assert_eq!(only(&mut get, c, 2), [GetAction::Ask(a)], "c has closed version 1");
        assert_eq!(get.acks().total(), 1);
        assert_eq!(get.on_failed(a, "closed".into(), 1), [GetAction::Ask(d)]);
        let e = NodeId::new("e").expect("legal");
        assert_eq!(
            only(&mut get, d, 1),
            [GetAction::Ask(e)],
            "what it says of a version that it does not own is nothing"
        );
        let actions = only(&mut get, e, 1);
        assert!(
            matches!(actions[..], [GetAction::Reply(Err(NotApplied::Unavailable { need: 2, alive: 1, .. })), _]),
            "{actions:?}"
        );
    }

    #[test]
    fn a_deadline_tells_how_many_had_answered() {
        let [a, ..] = nodes();
        let mut get = start(2);
        answer(&mut get, a);
        let why = "b: no answer yet".into();
        let refusal = NotApplied::TimedOut { need: 2, had: 1, why };
        assert_eq!(get.on_deadline(), [GetAction::Reply(Err(refusal))]);
        assert_eq!(get.on_deadline(), []);
    }

    #[test]
    fn a_fallback_never_speaks_of_absence() {
        let [a, b, _] = nodes();
        let f = NodeId::new("f").expect("legal");
        let mut get: Get<u8> = read(&[a, b], &[], 2, false).0;
        assert!(get.tally.ask_fallback(f, b, 1));
        assert_eq!(get.on_absent(f, 0, 2), []);
        assert_eq!(get.acks().total(), 0);
        assert_eq!(get.asked()[2].said, "no information");
        assert_eq!(get.on_absent(a, 0, 3), []);
        assert_eq!(get.on_absent(b, 0, 3), [GetAction::Reply(Ok(())), GetAction::Finished]);
        assert_eq!(get.asked()[0].said, "absent");
    }

    #[test]
    fn fallbacks_are_asked_when_no_primary_is_left_and_what_they_keep_counts() {
        let [a, b, c] = nodes();
        let [f, g] = ["f", "g"].map(|name| NodeId::new(name).expect("legal"));
        let mut get: Get<u8> = read(&nodes(), &[f, g], 2, false).0;
        assert_eq!(get.on_failed(a, "down".into(), 1), [GetAction::Ask(c)]);
        assert_eq!(get.on_failed(b, "down".into(), 1), [GetAction::AskFallback(f)]);
        assert_eq!(get.on_absent(f, 0, 2), [GetAction::AskFallback(g)], "with nothing to say it says nothing");
        assert_eq!(answer(&mut get, c), []);
        assert_eq!(answer(&mut get, g), [GetAction::Reply(Ok(())), GetAction::Finished]);
        assert_eq!(get.acks(), Acks { primary: 1, fallback: 1 });

        let mut get: Get<u8> = read(&nodes(), &[f], 2, false).0;
        get.on_failed(a, "down".into(), 1);
        get.on_failed(b, "down".into(), 1);
        answer(&mut get, c);
        let actions = get.on_absent(f, 0, 2);
        assert!(
            matches!(&actions[..], [GetAction::Reply(Err(NotApplied::Unavailable { need: 2, alive: 1, .. })), _]),
            "{actions:?}"
        );
    }

    #[test]
    fn a_strict_read_asks_no_fallback_and_a_hopeless_one_nobody_more() {
        let [a, b, c] = nodes();
        let f = NodeId::new("f").expect("legal");
        let mut get: Get<u8> = read(&nodes(), &[f], 2, true).0;
        assert_eq!(get.on_failed(a, "down".into(), 1), [GetAction::Ask(c)]);
        assert!(matches!(get.on_failed(b, "down".into(), 1)[..], [GetAction::Reply(Err(_))]));
        let mut get: Get<u8> = read(&nodes(), &[f], 3, false).0;
        assert_eq!(get.on_failed(a, "down".into(), 1), [GetAction::AskFallback(f)]);
        let actions = get.on_failed(b, "down".into(), 1);
        assert!(matches!(actions[..], [GetAction::Reply(Err(_))]), "one fallback is no two: {actions:?}");
    }

    #[test]
    fn one_fallback_is_one_answer_whomever_it_stands_in_for() {
        let [a, b, _] = nodes();
        let f = NodeId::new("f").expect("legal");
        let mut get: Get<u8> = read(&[a, b], &[f], 2, false).0;
        assert_eq!(get.on_late(1, 1), [GetAction::AskFallback(f)]);
        assert_eq!(answer(&mut get, f), []);
        assert_eq!(get.acks().total(), 1);
        assert!(matches!(answer(&mut get, b)[..], [GetAction::Reply(Ok(()))]));
    }

    fn dot(counter: u64) -> Dot {
        Dot { actor: Actor { node: nodes()[0], incarnation: 1 }, counter }
    }

    fn record(live: &[u64], seen: &[u64]) -> Record {
        let mut context = Context::new();
        for counter in live.iter().chain(seen) {
            context.insert(dot(*counter));
        }
        let sibling = |counter: &u64| {
            let value = Blob(Bytes::from(counter.to_string()));
            (
                dot(*counter),
                Sibling { value, op_id: OpId((*counter).into()), value_hash: *counter, value_type: 0, time: 0 },
            )
        };
        Record { siblings: live.iter().map(sibling).collect(), context }
    }

    #[test]
    fn the_answer_is_the_join_of_the_quorum_and_stale_are_those_who_lack_some_of_it() {
        let [a, b, c] = nodes();
        let mut get = read(&nodes(), &[], 2, false).0;
        get.on_answer(a, record(&[1], &[]), Said::Values(1), 1);
        assert_eq!(get.stale(), None);
        get.on_absent(b, Record::default(), 1);
        assert_eq!(get.merged(), record(&[1], &[]), "absence does not win over a value");
        assert_eq!(get.stale(), Some((vec![b], record(&[1], &[]))));
        let mut get = read(&nodes(), &[], 2, false).0;
        get.on_answer(a, record(&[1], &[]), Said::Values(1), 1);
        get.on_late(1, 2);
        get.on_answer(b, record(&[2], &[]), Said::Values(1), 3);
        assert_eq!(get.merged(), record(&[1, 2], &[]), "concurrent values are siblings");
        get.on_answer(c, record(&[3], &[1, 2]), Said::Values(1), 4);
        assert_eq!(get.merged(), record(&[1, 2], &[]), "a late answer is not merged into the reply");
        assert_eq!(get.stale(), Some((vec![a, b], record(&[3], &[1, 2]))), "but into the verdict");
        assert_eq!(get.holders(), [c], "it holds all of the reply, and more");
        let mut get = read(&nodes(), &[], 3, false).0;
        for (node, live) in [(a, 1), (b, 1), (c, 2)] {
            get.on_answer(node, record(&[live], &[]), Said::Values(1), 1);
        }
        assert_eq!(get.stale(), Some((vec![a, b, c], record(&[1, 2], &[]))), "two that agree are no proof");
    }

    #[test]
    fn a_read_says_too_much_only_where_it_says_that_there_is_nothing_and_too_few_primaries_do() {
        let [a, b, _] = nodes();
        let f = NodeId::new("f").expect("legal");
        let mut get = read(&[a, b], &[f], 2, false).0;
        get.on_answer(a, record(&[], &[1]), Said::Values(0), 1);
        get.on_answer(b, record(&[], &[1]), Said::Values(0), 1);
        assert!(get.merged().siblings.is_empty() && !get.says_too_much(), "two primaries say so");
        let mut get = read(&[a, b], &[f], 2, false).0;
        get.on_answer(a, record(&[1], &[]), Said::Values(1), 1);
        get.on_failed(b, "down".into(), 1);
        get.on_answer(f, record(&[2], &[]), Said::Values(1), 2);
        assert_eq!(get.acks(), Acks { primary: 1, fallback: 1 });
        assert!(!get.says_too_much(), "there are values");
    }

    #[test]
    fn a_fallbacks_hint_makes_primaries_stale_but_is_not_mended_itself() {
        let [a, b, _] = nodes();
        let f = NodeId::new("f").expect("legal");
        let mut get = read(&[a, b], &[f], 2, false).0;
        get.on_late(1, 1);
        get.on_answer(f, record(&[2], &[1]), Said::Values(1), 2);
        get.on_answer(a, record(&[1], &[]), Said::Values(1), 3);
        assert_eq!(get.merged(), record(&[2], &[1]));
        assert_eq!(get.stale(), Some((vec![a], record(&[2], &[1]))));
        assert_eq!(get.holders(), [], "only a primary's word makes a read monotonic");
        get.on_answer(b, record(&[2], &[1]), Said::Values(1), 4);
        assert_eq!(get.holders(), [b]);
        let mut get = read(&[a, b], &[], 2, false).0;
        get.on_answer(a, record(&[1], &[]), Said::Values(1), 1);
        get.on_answer(b, record(&[3], &[1, 2]), Said::Values(1), 1);
        assert_eq!(get.holders(), [b]);
    }

    #[test]
    fn what_a_fallback_has_deleted_is_deleted_and_says_nothing_of_the_rest() {
        let [a, b, c] = nodes();
        let f = NodeId::new("f").expect("legal");
        let deleted = || record(&[], &[1]);
        let start = |need| {
            let mut get = read(&nodes(), &[f], need, false).0;
            for down in [a, b] {
                get.on_failed(down, "down".into(), 1);
            }
            get
        };
        let mut get = start(1);
        assert_eq!(get.on_late(get.token, 2), [GetAction::AskFallback(f)]);
        assert_eq!(get.on_answer(f, deleted(), Said::Values(0), 3), [], "a primary may know more");
        let actions = get.on_answer(c, record(&[1, 2], &[]), Said::Values(2), 4);
        assert_eq!(actions, [GetAction::Reply(Ok(())), GetAction::Finished]);
        assert_eq!((get.merged(), get.acks()), (record(&[2], &[1]), Acks { primary: 1, fallback: 0 }));
        assert!(!get.says_too_much());
        assert_eq!(get.stale(), Some((vec![c], record(&[2], &[1]))));

        let mut get = start(2);
        get.on_answer(c, record(&[1], &[]), Said::Values(1), 2);
        let actions = get.on_answer(f, deleted(), Said::Values(0), 3);
        assert!(matches!(actions[..], [GetAction::Reply(Err(NotApplied::Unavailable { need: 2, alive: 1, .. })), _]));

        let g = NodeId::new("g").expect("legal");
        let mut get = read(&[a, b], &[f, g], 2, false).0;
        get.on_failed(a, "down".into(), 1);
        get.on_answer(b, record(&[1], &[]), Said::Values(1), 1);
        get.on_answer(f, deleted(), Said::Values(0), 2);
        let actions = get.on_answer(g, record(&[1], &[]), Said::Values(1), 3);
        assert!(matches!(actions[..], [GetAction::Reply(Ok(())), GetAction::Finished]), "{actions:?}");
        assert!(get.says_too_much(), "two hold it, of which one is no primary, and it is deleted");
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Event {
        Answer(usize),
        Fail(usize),
        Late,
        Overtaken,
        Deadline,
    }

    /// What a read must do, written down from the specification alone.
    #[derive(Debug, Clone, PartialEq)]
    struct Oracle {
        /// How many of the list were asked; it is asked from the front.
        asked: usize,
        answers: [Option<bool>; 3],
        reply: Option<bool>,
    }

    impl Oracle {
        fn count(&self, answer: bool) -> usize {
            self.answers.iter().filter(|given| **given == Some(answer)).count()
        }

        fn step(&mut self, event: Event, r: usize) {
            let mut more = false;
            match event {
                Event::Answer(node) if node < self.asked => _ = self.answers[node].get_or_insert(true),
                Event::Fail(node) if node < self.asked && self.answers[node].is_none() => {
                    self.answers[node] = Some(false);
                    more = true;
                }
                Event::Late => more = true,
                Event::Answer(_) | Event::Fail(_) | Event::Overtaken | Event::Deadline => {}
            }
            if self.reply.is_some() {
                return;
            }
            if self.count(true) >= r {
                self.reply = Some(true);
            } else if self.count(false) > 3 - r || event == Event::Deadline {
                self.reply = Some(false);
            } else if more {
                self.asked = (self.asked + 1).min(3);
            }
        }

        fn finished(&self) -> bool {
            self.reply.is_some() && self.answers[..self.asked].iter().all(Option::is_some)
        }
    }

    /// All sequences of answers, doubles, contradictions, answers of those who were not asked, timers and deadlines, up to
    /// six long, then whatever is open fails as its call's deadline makes it.
    #[test]
    fn every_order_of_answers_failures_and_timers_ends_as_the_specification_says() {
        for r in 1..=3u8 {
            let (get, actions) = read(&nodes(), &[], r, false);
            let asked: Vec<_> = nodes()[..r.into()].iter().copied().map(GetAction::Ask).collect();
            assert_eq!(actions[..r.into()], asked);
            let oracle = Oracle { asked: r.into(), answers: [None; 3], reply: None };
            descend(&get, &oracle, r, &BTreeSet::from_iter(nodes()[..r.into()].iter().copied()), 6);
        }
    }

    fn descend(get: &Get<u8>, oracle: &Oracle, r: u8, asked: &BTreeSet<NodeId>, depth: usize) {
        if oracle.finished() {
            return;
        }
        let events = [
            Event::Answer(0),
            Event::Answer(1),
            Event::Answer(2),
            Event::Fail(0),
            Event::Fail(1),
            Event::Fail(2),
            Event::Late,
            Event::Overtaken,
            Event::Deadline,
        ];
        let open = || {
            let unanswered = oracle.answers[..oracle.asked].iter().position(Option::is_none);
            vec![unanswered.map_or(Event::Deadline, Event::Fail)]
        };
        for event in if depth > 0 { events.to_vec() } else { open() } {
            let (mut get, mut oracle, mut asked, before) = (get.clone(), oracle.clone(), asked.clone(), oracle);
            oracle.step(event, r.into());
            let actions = match event {
                Event::Answer(node) => get.on_answer(nodes()[node], node as u8, Said::Values(1), 1),
                Event::Fail(node) => get.on_failed(nodes()[node], "refused".into(), 1),
                Event::Late => get.on_late(get.token, 1),
                Event::Overtaken => get.on_late(get.token - 1, 1),
                Event::Deadline => get.on_deadline(),
            };
            for action in &actions {
                match action {
                    GetAction::Ask(node) => assert!(asked.insert(*node), "{node} was asked twice"),
                    GetAction::AskFallback(node) => panic!("{node} is not there"),
                    GetAction::HedgeAfterDelay { token, primary } => assert_eq!((*token, *primary), (get.token, true)),
                    GetAction::Finished => assert!(oracle.finished()),
                    GetAction::Reply(outcome) => {
                        assert_eq!(before.reply, None, "one reply");
                        assert_eq!(Some(outcome.is_ok()), oracle.reply, "{event:?} {oracle:?}");
                        let distinct: BTreeSet<_> = get.decisive().iter().map(|(node, _)| *node).collect();
                        assert_eq!(distinct.len(), get.decisive().len());
                        assert_eq!(outcome.is_ok(), distinct.len() >= r.into());
                        assert!(distinct.is_subset(&asked));
                    }
                }
            }
            let replied = actions.iter().any(|action| matches!(action, GetAction::Reply(_)));
            assert_eq!(replied, before.reply.is_none() && oracle.reply.is_some(), "{event:?} {oracle:?}");
            assert_eq!(actions.contains(&GetAction::Finished), oracle.finished(), "{event:?} {oracle:?}");
            assert_eq!(asked.len(), oracle.asked, "{event:?} {oracle:?}");
            assert_eq!(get.answers().len(), oracle.count(true));
            // Events that change nothing cost two, so that room is left for those that do.
            let cost = if oracle == *before { 2 } else { 1 };
            descend(&get, &oracle, r, &asked, depth.saturating_sub(cost));
        }
    }
}
