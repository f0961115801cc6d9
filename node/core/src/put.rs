//! One attempt of a write, as a state machine.
//!
//! ```text
//!   new ──refused──> NotApplied
//!    │
//!   mint at self ──refused──> NotApplied            (nothing was written)
//!    │         └───unknown──> Indeterminate         (the insert may be there)
//!   replicate to all other primaries, and a hint for each that is down to a fallback, all at once; wait for the own disk
//!    │
//!    ├─ a primary fails, or is late while W is not met: a hint for it to the next fallback
//!    ├─ a fallback refuses: the hint goes to the next one, at last to the coordinator itself
//!    │
//!    ├─ W acknowledgements ──────────> Ok           (the rest goes on)
//!    ├─ too many failed, or deadline ─> Indeterminate (the rest goes on)
//!    └─ everybody has answered ──────> Finished
//! ```
//!
//! It is the write of Dynamo (DeCandia et al., 2007, sections 4.5 and 4.6): W of N, sloppy, with hinted handoff. A node that is
//! no primary coordinates where none can be reached; it mints in a hint of its own. While a layout change is under way W owners
//! of every live version are needed, each version a [`Group`].
//!
//! Invariants: before the mint the outcome is `NotApplied`, after it `Ok` or `Indeterminate` and never `NotApplied`; there is
//! exactly one reply and it comes before `Finished`; a write is always sent to all N primaries, W only decides when to
//! answer; a strict write counts primaries only, and leaves hints all the same; a primary is stood in for by one node at a
//! time, and no node is asked twice to stand in for the same one. The machine reads no clock and sends nothing: inputs are
//! `on_*`, what to do comes back as [`PutAction`]s; an input that does not fit, or comes again,
//! changes nothing. Every question that it asks must be answered in the end
//! ([`Put::on_ack`] or [`Put::on_failed`], [`Put::on_hint_kept`] or [`Put::on_hint_failed`]), so every call needs a deadline.

use quorate_wire::ids::{NodeId, OpId};
use quorate_wire::{Acks, Asked, Failure, NotApplied};

use super::quorum::{Group, Said, Status, Tally};

/// What the driver has to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum PutAction {
    /// Wait until the minted record is durable here; then `on_ack` or `on_failed` of this node itself.
    AwaitDurable,
    /// Send the minted record to this primary, at once and beside the others.
    Replicate(NodeId),
    /// Have `holder` keep the minted record durably for `target`; the holder may be this node.
    Hint {
        /// Who keeps it.
        holder: NodeId,
        /// The primary that is to have it.
        target: NodeId,
    },
    /// Come back with [`Put::on_late`] after the delay for late replicas.
    LateAfterDelay,
    /// Answer the client.
    Reply(Result<(), Failure>),
    /// Everybody has answered: nothing will happen any more.
    Finished,
}

/// Who may keep a write for a primary that does not take it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StandIns {
    /// Hints are kept at all. A simulation switches them off; then nobody stands in.
    pub hints: bool,
    /// Members that are no primaries and can be reached, best first, without this node.
    pub fallbacks: Vec<NodeId>,
}

/// A write that this node coordinates.
#[derive(Debug, Clone)]
pub struct Put {
    me: NodeId,
    op_id: OpId,
    primaries: Vec<NodeId>,
    stand_ins: StandIns,
    /// Primaries that were believed to be out of reach at the start.
    down: Vec<NodeId>,
    /// For a coordinator that is no primary: the one in whose hint it mints.
    mint_for: Option<NodeId>,
    hints: Vec<Hint>,
    /// Primaries that nobody would stand in for.
    unplaced: u32,
    tally: Tally,
    minting: bool,
    replied: bool,
    /// Every acknowledgement that counted was given after a sync.
    synced: bool,
    decided_by: Option<NodeId>,
}

/// A question to stand in for a primary, and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hint {
    holder: NodeId,
    target: NodeId,
    state: HintState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HintState {
    Asked,
    Kept,
    Failed,
}

impl Put {
    /// A write that is about to be minted at `me`. The driver mints next ([in a hint](Self::mint_for), if it says so), and
    /// tells how that went.
    ///
    /// `reachable` is what the failure detector and the back-off of connections believe. It is asked here and never again:
    /// a write that cannot succeed must not be left half-applied, while a wrong belief must not stop one that could.
    ///
    /// # Errors
    /// Fewer nodes that would count can be reached than a group needs; or `me` is no primary and the write is strict, or
    /// hints are switched off: then it is not this node's to coordinate.
    pub fn new(
        me: NodeId,
        op_id: OpId,
        groups: &[Group],
        stand_ins: StandIns,
        strict: bool,
        reachable: impl Fn(NodeId) -> bool,
    ) -> Result<Self, NotApplied> {
        let tally = Tally::of_every(groups, strict);
        let primaries: Vec<NodeId> = tally.primaries().collect();
        let owns = primaries.contains(&me);
        if !owns && (strict || !stand_ins.hints) {
            let what = if strict { "a strict write" } else { "a write while nobody stands in" };
            return Err(NotApplied::NotServing {
                node: me,
                why: format!("only a primary of the key coordinates {what}"),
            });
        }
        let down: Vec<NodeId> = primaries.iter().copied().filter(|node| *node != me && !reachable(*node)).collect();
        let others = if stand_ins.hints && !strict { stand_ins.fallbacks.len() + usize::from(!owns) } else { 0 };
        for Group { primaries, need, .. } in groups {
            let down: Vec<&str> = primaries.iter().filter(|node| down.contains(node)).map(NodeId::as_str).collect();
            let (n, need) = (primaries.len(), *need);
            let alive = u8::try_from(n.min(n - down.len() + others)).unwrap_or(u8::MAX);
            if alive < need {
                let others = match (strict, others) {
                    (true, _) => String::new(),
                    (false, 0) => "; there is no fallback".to_owned(),
                    (false, others) => format!("; fallbacks that can be reached: {others}"),
                };
                let why = format!("{} of the {n} primaries cannot be reached: {}{others}", down.len(), down.join(", "));
                return Err(NotApplied::Unavailable { need, alive, why });
            }
        }
        let mint_for = (!owns).then(|| *down.first().unwrap_or(&primaries[0]));
        Ok(Self {
            me,
            op_id,
            primaries,
            stand_ins,
            down,
            mint_for,
            hints: Vec::new(),
            unplaced: 0,
            tally,
            minting: true,
            replied: false,
            synced: true,
            decided_by: None,
        })
    }

    /// Where the write is minted: in this node's record, or, if it is no primary, in its hint for this one.
    pub fn mint_for(&self) -> Option<NodeId> {
        self.mint_for
    }

    /// The write was minted and inserted here. Times are microseconds since the start of the request.
    pub fn on_minted(&mut self, at_us: u64) -> Vec<PutAction> {
        if !std::mem::take(&mut self.minting) {
            return Vec::new();
        }
        // The others first: the record travels while this node's disk is synced.
        let (me, mut actions) = (self.me, Vec::with_capacity(self.primaries.len() + 1));
        actions.extend(self.primaries.iter().filter(|node| **node != me).copied().map(PutAction::Replicate));
        for primary in &self.primaries {
            self.tally.ask(*primary, at_us);
        }
        if let Some(target) = self.mint_for {
            assert!(self.tally.ask_fallback(me, target, at_us), "nobody was asked before");
            self.hints.push(Hint { holder: me, target, state: HintState::Asked });
        }
        for target in self.down.clone() {
            actions.extend(self.stand_in(target, at_us));
        }
        actions.push(PutAction::AwaitDurable);
        if self.stand_ins.hints && self.primaries.len() > 1 {
            actions.push(PutAction::LateAfterDelay);
        }
        actions
    }

    /// The mint was refused: nothing was written anywhere.
    pub fn on_mint_refused(&mut self, refusal: NotApplied) -> Vec<PutAction> {
        if !std::mem::take(&mut self.minting) {
            return Vec::new();
        }
        self.reply(Err(refusal.into())).chain([PutAction::Finished]).collect()
    }

    /// The insert failed and may still be there; there is no record that could be sent to the others.
    pub fn on_mint_unknown(&mut self, why: String) -> Vec<PutAction> {
        if !std::mem::take(&mut self.minting) {
            return Vec::new();
        }
        let failure = self.indeterminate(format!("{}: {why}", self.me));
        self.reply(Err(failure)).chain([PutAction::Finished]).collect()
    }

    /// A primary holds the write; the node itself once its own insert is durable, also where that is a hint.
    pub fn on_ack(&mut self, node: NodeId, synced: bool, changed: bool, at_us: u64) -> Vec<PutAction> {
        if let (true, Some(target)) = (node == self.me, self.mint_for) {
            return self.on_hint_kept(node, target, synced, changed, at_us);
        }
        // A fallback speaks for the hint that it was asked to keep.
        if !self.primaries.contains(&node) || self.tally.awaited(node).is_none() {
            return Vec::new();
        }
        let counted = self.tally.ack(node, Said::Ack { synced, changed }, at_us);
        self.acknowledged(node, synced, counted)
    }

    /// A primary refused, could not be asked, or its deadline has passed; or this node's own sync failed.
    pub fn on_failed(&mut self, node: NodeId, why: String, at_us: u64) -> Vec<PutAction> {
        if let (true, Some(target)) = (node == self.me, self.mint_for) {
            return self.on_hint_failed(node, target, why, at_us);
        }
        if !self.primaries.contains(&node) || !self.tally.fail(node, Said::Failed(why), at_us) {
            return Vec::new();
        }
        // A node whose own disk fails is about to end, and has nobody to remind it.
        let hint = if node == self.me { None } else { self.stand_in(node, at_us) };
        hint.into_iter().chain(self.settled()).collect()
    }

    /// A hint is durable at its holder.
    pub fn on_hint_kept(
        &mut self,
        holder: NodeId,
        target: NodeId,
        synced: bool,
        changed: bool,
        at_us: u64,
    ) -> Vec<PutAction> {
        if !self.hint_ended(holder, target, HintState::Kept) {
            return Vec::new();
        }
        let counted = self.tally.ack_for(holder, target, Said::Ack { synced, changed }, at_us);
        self.acknowledged(holder, synced, counted)
    }

    /// A holder refused, could not be asked, or its deadline has passed.
    pub fn on_hint_failed(&mut self, holder: NodeId, target: NodeId, why: String, at_us: u64) -> Vec<PutAction> {
        if !self.hint_ended(holder, target, HintState::Failed) {
            return Vec::new();
        }
        self.tally.fail_for(holder, target, Said::Failed(why), at_us);
        let next = if self.tally.vacant().contains(&target) { self.stand_in(target, at_us) } else { None };
        next.into_iter().chain(self.settled()).collect()
    }

    /// The delay for late replicas is over: somebody stands in for them, unless the quorum is met without.
    pub fn on_late(&mut self, at_us: u64) -> Vec<PutAction> {
        if self.replied || self.minting {
            return Vec::new();
        }
        let late: Vec<NodeId> = self.tally.vacant().into_iter().filter(|node| *node != self.me).collect();
        late.into_iter().filter_map(|target| self.stand_in(target, at_us)).collect()
    }

    /// The time for an answer has run out, also while the mint is still running. Replication goes on.
    pub fn on_deadline(&mut self) -> Vec<PutAction> {
        if self.replied {
            return Vec::new();
        }
        let why = if self.minting { format!("{}: the mint has not ended yet", self.me) } else { self.tally.why() };
        let failure = self.indeterminate(format!("the deadline has passed; {why}"));
        self.reply(Err(failure)).collect()
    }

    /// How many acknowledgements are needed.
    pub fn need(&self) -> u8 {
        self.tally.need()
    }

    /// Who has acknowledged; fixed once the reply was made.
    pub fn acks(&self) -> Acks {
        self.tally.acks()
    }

    /// Whether all counted acknowledgements were given after a sync.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Whether the reply was made.
    pub fn is_replied(&self) -> bool {
        self.replied
    }

    /// Whose acknowledgement completed the quorum.
    pub fn decided_by(&self) -> Option<NodeId> {
        self.decided_by
    }

    /// Every question so far, for evidence.
    pub fn asked(&self) -> Vec<Asked> {
        self.tally.asked()
    }

    /// The hints that are kept or were asked for: (holder, target).
    pub fn hints(&self) -> Vec<(NodeId, NodeId)> {
        let living = self.hints.iter().filter(|hint| hint.state != HintState::Failed);
        living.map(|hint| (hint.holder, hint.target)).collect()
    }

    /// How many primaries lack the write without anybody who keeps it for them: anti-entropy's to mend.
    pub fn unplaced(&self) -> u32 {
        self.unplaced
    }

    /// Finds the next node to stand in for a primary: a fallback that has not been asked to, those who hold the least of this
    /// write first, and the coordinator itself when there is no other. A coordinator that is a primary counts once all the same.
    fn stand_in(&mut self, target: NodeId, at_us: u64) -> Option<PutAction> {
        let of_target = |hint: &&Hint| hint.target == target;
        if !self.stand_ins.hints || self.hints.iter().filter(of_target).any(|hint| hint.state != HintState::Failed) {
            return None;
        }
        let asked = |holder: NodeId| self.hints.iter().filter(of_target).any(|hint| hint.holder == holder);
        let load = |holder: NodeId| self.hints.iter().filter(|hint| hint.holder == holder).count();
        let fallbacks = self.stand_ins.fallbacks.iter().copied().filter(|holder| !asked(*holder));
        let holder = fallbacks.min_by_key(|holder| load(*holder)).or((!asked(self.me)).then_some(self.me));
        let Some(holder) = holder else {
            self.unplaced += 1;
            return None;
        };
        self.hints.push(Hint { holder, target, state: HintState::Asked });
        // Refused for a coordinator that is a primary: it has a slot of its own.
        self.tally.ask_fallback(holder, target, at_us);
        Some(PutAction::Hint { holder, target })
    }

    fn hint_ended(&mut self, holder: NodeId, target: NodeId, state: HintState) -> bool {
        let asked = Hint { holder, target, state: HintState::Asked };
        let Some(hint) = self.hints.iter_mut().find(|hint| **hint == asked) else { return false };
        hint.state = state;
        true
    }

    fn acknowledged(&mut self, node: NodeId, synced: bool, counted: bool) -> Vec<PutAction> {
        if counted {
            self.synced &= synced;
        }
        let mut actions = Vec::new();
        if !self.replied && self.tally.status() == Status::Met {
            self.decided_by = Some(node);
            actions.extend(self.reply(Ok(())));
        }
        actions.extend(self.finished());
        actions
    }

    /// After somebody failed and all that can be done about it was begun.
    fn settled(&mut self) -> Vec<PutAction> {
        let mut actions = Vec::new();
        if !self.replied && self.tally.status() == Status::Impossible {
            let failure = self.indeterminate(self.tally.why());
            actions.extend(self.reply(Err(failure)));
        }
        actions.extend(self.finished());
        actions
    }

    fn indeterminate(&self, why: String) -> Failure {
        Failure::Indeterminate { op_id: self.op_id, need: self.tally.need(), acks: self.tally.acks(), why }
    }

    /// The one reply; nothing if it was made before (by the deadline, while the mint was running).
    fn reply(&mut self, outcome: Result<(), Failure>) -> impl Iterator<Item = PutAction> + use<> {
        let first = !std::mem::replace(&mut self.replied, true);
        self.tally.close();
        first.then_some(PutAction::Reply(outcome)).into_iter()
    }

    fn finished(&self) -> Option<PutAction> {
        let waiting = self.tally.is_waiting() || self.hints.iter().any(|hint| hint.state == HintState::Asked);
        (self.replied && !waiting).then_some(PutAction::Finished)
    }
}

#[cfg(test)]
mod tests {
    use quorate_wire::ids::LayoutVersion;

    use super::*;

    const OP: OpId = OpId(7);

    fn nodes() -> [NodeId; 3] {
        ["a", "b", "c"].map(|name| NodeId::new(name).expect("a legal name"))
    }

    fn one(primaries: &[NodeId], need: u8) -> [Group; 1] {
        [Group { version: LayoutVersion(1), primaries: primaries.to_vec(), need }]
    }

    fn put(w: u8) -> Put {
        let nodes = nodes();
        Put::new(nodes[0], OP, &one(&nodes, w), StandIns::default(), false, |_| true).expect("everybody is up")
    }

    /// A strict repetition of what a fallback had minted reached an assertion here.
    #[test]
    fn what_only_a_primary_coordinates_is_refused_by_others() {
        let f = node("f");
        for (strict, hints) in [(true, true), (true, false), (false, false)] {
            let stand_ins = StandIns { hints, fallbacks: Vec::new() };
            let refusal = Put::new(f, OP, &one(&nodes(), 1), stand_ins, strict, |_| true).expect_err("no primary");
            assert!(matches!(&refusal, NotApplied::NotServing { node, .. } if *node == f), "{refusal}");
        }
    }

    #[test]
    fn a_write_that_cannot_reach_its_quorum_is_refused_before_the_mint() {
        let nodes = nodes();
        for up in 0u8..4 {
            for w in 1..=3 {
                let reachable = |node| {
                    assert_ne!(node, nodes[0], "a node reaches itself");
                    up & if node == nodes[1] { 1 } else { 2 } != 0
                };
                let alive = 1 + up.count_ones() as u8;
                match Put::new(nodes[0], OP, &one(&nodes, w), StandIns::default(), false, reachable) {
                    Ok(_) => assert!(alive >= w),
                    Err(NotApplied::Unavailable { need, alive: told, why }) => {
                        assert!(alive < w, "w={w} up={up}");
                        assert_eq!((need, told), (w, alive));
                        let named = why.split_once(": ").expect("names").1.split(';').next().expect("the first part");
                        assert_eq!(named.contains('b'), up & 1 == 0, "{why}");
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }

    #[test]
    fn a_write_goes_to_all_other_primaries_at_once_even_to_those_believed_down() {
        let [a, b, c] = nodes();
        let mut put =
            Put::new(a, OP, &one(&[b, a, c], 1), StandIns::default(), false, |_| false).expect("one is enough");
        let actions = put.on_minted(3);
        assert_eq!(actions, [PutAction::Replicate(b), PutAction::Replicate(c), PutAction::AwaitDurable]);
    }

    /// While a and b hand over to c and d: two of {a, b} and two of {c, d, b}.
    fn two_versions() -> [Group; 2] {
        let [a, b, c] = nodes();
        let group = |version, primaries: &[NodeId]| Group {
            version: LayoutVersion(version),
            primaries: primaries.to_vec(),
            need: 2,
        };
        [group(2, &[c, node("d"), b]), group(1, &[a, b])]
    }

    #[test]
    fn a_write_needs_the_quorum_of_every_live_version_and_goes_to_the_owners_of_all() {
        let [a, b, c] = nodes();
        let d = node("d");
        let new =
            |up: &[NodeId]| Put::new(a, OP, &two_versions(), StandIns::default(), true, |node| up.contains(&node));
        let mut put = new(&[b, c, d]).expect("all are up");
        let expected = [c, d, b].map(PutAction::Replicate);
        assert_eq!(put.on_minted(0), [&expected[..], &[PutAction::AwaitDurable]].concat());
        assert_eq!(put.on_ack(c, true, true, 1), []);
        assert_eq!(put.on_ack(d, true, true, 1), [], "the newer version has its quorum, the older one has nothing");
        assert_eq!((put.need(), put.acks().total()), (2, 0), "what is lacking most is told");
        assert_eq!(put.on_ack(a, true, true, 1), []);
        let actions = put.on_ack(b, true, true, 1);
        assert_eq!(actions, [PutAction::Reply(Ok(())), PutAction::Finished], "b counts for both");

        let mut put = new(&[b, c]).expect("two of each are up");
        put.on_minted(0);
        for node in [a, c] {
            assert_eq!(put.on_ack(node, true, true, 1), []);
        }
        let actions = put.on_failed(b, "refused".into(), 1);
        let [PutAction::Reply(Err(Failure::Indeterminate { need: 2, acks, .. }))] = &actions[..] else {
            panic!("{actions:?}")
        };
        assert_eq!(acks.total(), 1, "of a and b only a is left");
        let refusal = new(&[c, d]).expect_err("b is needed");
        let why = "1 of the 2 primaries cannot be reached: b";
        assert_eq!(refusal, NotApplied::Unavailable { need: 2, alive: 1, why: why.into() });
    }

    #[test]
    fn a_hint_takes_the_place_of_its_target_in_every_version_that_it_owns() {
        let [a, b, c] = nodes();
        let up = |node: NodeId| node != b;
        let mut put = Put::new(a, OP, &two_versions(), stand_ins(&["f"]), false, up).expect("f stands in for b");
        assert!(put.on_minted(0).contains(&PutAction::Hint { holder: node("f"), target: b }));
        assert_eq!(put.on_ack(a, true, true, 1), []);
        assert_eq!(put.on_ack(c, true, true, 1), []);
        let actions = put.on_hint_kept(node("f"), b, true, true, 1);
        assert_eq!(actions, [PutAction::Reply(Ok(()))], "{:?}", put.asked());
        assert_eq!(put.acks(), Acks { primary: 1, fallback: 1 });
    }

    #[test]
    fn a_refused_mint_is_not_applied_and_an_unknown_one_is_indeterminate() {
        let refusal = NotApplied::EmptyKey;
        let actions = put(2).on_mint_refused(refusal.clone());
        assert_eq!(actions, [PutAction::Reply(Err(refusal.into())), PutAction::Finished]);
        let actions = put(2).on_mint_unknown("disk".into());
        let [PutAction::Reply(Err(Failure::Indeterminate { op_id: OP, need: 2, acks, why })), PutAction::Finished] =
            &actions[..]
        else {
            panic!("{actions:?}")
        };
        assert_eq!((acks.total(), why.as_str()), (0, "a: disk"));
    }

    #[test]
    fn a_deadline_during_the_mint_is_indeterminate_and_the_write_still_goes_to_all() {
        let [a, b, c] = nodes();
        let mut put = put(1);
        assert!(!put.is_replied());
        let reply = put.on_deadline();
        let [PutAction::Reply(Err(Failure::Indeterminate { why, .. }))] = &reply[..] else { panic!("{reply:?}") };
        assert!(why.contains("a: the mint has not ended yet") && put.is_replied(), "{why}");
        assert_eq!(put.on_deadline(), [], "one reply");
        assert_eq!(put.clone().on_mint_refused(NotApplied::EmptyKey), [PutAction::Finished], "no second reply");
        assert_eq!(put.on_minted(9).len(), 3);
        for node in [a, b] {
            assert_eq!(put.on_ack(node, true, true, 9), [], "late acknowledgements turn nothing round");
        }
        assert_eq!(put.on_ack(c, true, true, 9), [PutAction::Finished]);
        assert_eq!(put.acks().total(), 0);
    }

    #[test]
    fn a_reply_is_synced_only_if_every_counted_acknowledgement_was() {
        let [a, b, c] = nodes();
        let mut put = put(2);
        put.on_minted(0);
        put.on_ack(a, true, true, 1);
        put.on_ack(b, false, true, 2);
        assert!(put.is_replied() && !put.is_synced());
        let mut put = self::put(2);
        put.on_minted(0);
        put.on_ack(a, true, true, 1);
        put.on_ack(b, true, false, 2);
        put.on_ack(c, false, true, 3);
        assert!(put.is_synced(), "what came after the decision does not matter");
        assert_eq!(put.decided_by(), Some(b));
        let said: Vec<String> = put.asked().into_iter().map(|asked| asked.said).collect();
        assert_eq!(said, ["ack", "ack, held it already", "ack, not synced"]);
    }

    #[test]
    fn a_deadline_names_those_who_have_not_answered() {
        let mut put = put(2);
        assert_eq!(put.need(), 2);
        put.on_minted(0);
        put.on_ack(node("b"), true, true, 1);
        let reply = put.on_deadline();
        let [PutAction::Reply(Err(Failure::Indeterminate { why, acks, .. }))] = &reply[..] else { panic!("{reply:?}") };
        assert_eq!(acks.total(), 1);
        assert_eq!(why, "the deadline has passed; a: no answer yet, c: no answer yet");
    }

    #[test]
    fn a_lone_primary_has_nobody_who_could_be_late() {
        let alone =
            Put::new(node("a"), OP, &one(&[node("a")], 1), stand_ins(&["f"]), false, |_| true).expect("it is up");
        assert_eq!(alone.clone().on_minted(0), [PutAction::AwaitDurable]);
        assert_eq!((alone.unplaced(), alone.mint_for()), (0, None));
    }

    #[test]
    fn a_fallback_that_coordinates_while_all_are_up_mints_for_the_first() {
        let up = |_| true;
        let put = Put::new(node("f"), OP, &one(&nodes(), 1), stand_ins(&[]), false, up).expect("all are up");
        assert_eq!(put.mint_for(), Some(node("a")));
    }

    #[test]
    fn an_answer_to_a_hint_that_was_not_asked_for_is_none() {
        let mut put = put(1);
        put.on_minted(0);
        for name in ["a", "b", "c"] {
            put.on_ack(node(name), true, true, 1);
        }
        assert_eq!(put.finished(), Some(PutAction::Finished));
        assert_eq!(put.on_hint_kept(node("f"), node("b"), true, true, 2), []);
        assert_eq!(put.on_hint_failed(node("f"), node("b"), "no".into(), 2), []);
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("legal")
    }

    fn stand_ins(names: &[&str]) -> StandIns {
        StandIns { hints: true, fallbacks: names.iter().map(|name| node(name)).collect() }
    }

    fn hint(holder: &str, target: &str) -> PutAction {
        PutAction::Hint { holder: node(holder), target: node(target) }
    }

    fn sloppy(w: u8, down: &[&str], fallbacks: &[&str]) -> Put {
        let down: Vec<NodeId> = down.iter().map(|name| node(name)).collect();
        let up = |node: NodeId| !down.contains(&node);
        Put::new(nodes()[0], OP, &one(&nodes(), w), stand_ins(fallbacks), false, up).expect("enough are up")
    }

    #[test]
    fn whoever_is_down_has_a_stand_in_at_once_who_counts_in_its_place() {
        let [_, b, c] = nodes();
        let mut put = sloppy(3, &["b", "c"], &["f", "g"]);
        let actions = put.on_minted(0);
        let expected = [
            PutAction::Replicate(b),
            PutAction::Replicate(c),
            hint("f", "b"),
            hint("g", "c"),
            PutAction::AwaitDurable,
            PutAction::LateAfterDelay,
        ];
        assert_eq!(actions, expected);
        assert_eq!(put.on_ack(node("a"), true, true, 1), []);
        assert_eq!(put.on_hint_kept(node("f"), b, true, true, 2), []);
        assert_eq!(put.on_ack(b, true, true, 3), [], "b and who stands in for it are one");
        assert_eq!(put.on_hint_kept(node("g"), c, true, true, 4), [PutAction::Reply(Ok(()))]);
        assert_eq!(put.acks(), Acks { primary: 2, fallback: 1 });
        assert_eq!(put.on_failed(c, "down".into(), 5), [PutAction::Finished]);
        assert_eq!(put.hints(), [(node("f"), b), (node("g"), c)]);
    }

    #[test]
    fn a_strict_write_leaves_hints_that_do_not_count() {
        let [a, b, c] = nodes();
        let up = |node| node != c;
        let new = |w| Put::new(a, OP, &one(&nodes(), w), stand_ins(&["f"]), true, up);
        assert!(matches!(new(3), Err(NotApplied::Unavailable { need: 3, alive: 2, .. })));
        let mut put = new(2).expect("two are up");
        assert!(put.on_minted(0).contains(&hint("f", "c")));
        assert_eq!(put.on_hint_kept(node("f"), c, true, true, 1), []);
        assert_eq!(put.on_ack(a, true, true, 2), []);
        assert_eq!(put.on_ack(b, true, true, 3), [PutAction::Reply(Ok(()))]);
        assert_eq!(put.acks(), Acks { primary: 2, fallback: 0 });
    }

    #[test]
    fn a_refused_hint_goes_to_the_next_fallback_then_to_the_coordinator_then_nowhere() {
        let [a, b, c] = nodes();
        let mut put = sloppy(2, &[], &["f", "g"]);
        put.on_minted(0);
        put.on_ack(a, true, true, 1);
        assert_eq!(put.on_failed(c, "down".into(), 2), [hint("f", "c")]);
        assert_eq!(put.on_hint_failed(node("f"), c, "full".into(), 3), [hint("g", "c")]);
        assert_eq!(put.on_hint_failed(node("f"), c, "full".into(), 3), [], "it has said so");
        assert_eq!(put.on_hint_failed(node("g"), c, "full".into(), 4), [hint("a", "c")]);
        assert_eq!(put.on_hint_kept(a, c, true, true, 5), [], "the coordinator counts once");
        assert_eq!(put.on_failed(b, "down".into(), 6), [hint("f", "b")]);
        assert_eq!(put.on_hint_kept(node("f"), b, true, true, 7), [PutAction::Reply(Ok(())), PutAction::Finished]);
        let mut put = sloppy(1, &[], &[]);
        put.on_minted(0);
        assert_eq!(put.on_failed(c, "down".into(), 2), [hint("a", "c")]);
        assert_eq!((put.on_hint_failed(a, c, "full".into(), 3), put.unplaced()), (vec![], 1));
    }

    #[test]
    fn late_primaries_have_stand_ins_only_while_the_quorum_waits_for_them() {
        let [a, b, _] = nodes();
        let mut put = sloppy(2, &[], &["f", "g"]);
        put.on_minted(0);
        put.on_ack(a, true, true, 1);
        assert_eq!(put.on_late(2), [hint("f", "b"), hint("g", "c")]);
        assert_eq!(put.on_late(2), [], "they have them");
        let mut put = sloppy(2, &[], &["f"]);
        put.on_minted(0);
        put.on_ack(a, true, true, 1);
        put.on_ack(b, true, true, 1);
        assert_eq!(put.on_late(2), []);
        assert_eq!(put.on_failed(node("c"), "down".into(), 3), [hint("f", "c")], "but who fails gets the write later");
    }

    #[test]
    fn a_coordinator_that_is_no_primary_mints_in_a_hint_and_takes_one_place() {
        let [a, b, c] = nodes();
        let f = node("f");
        let new = |w, others: &[&str]| Put::new(f, OP, &one(&nodes(), w), stand_ins(others), false, |_| false);
        assert!(matches!(new(3, &["g"]), Err(NotApplied::Unavailable { need: 3, alive: 2, .. })));
        let mut put = new(2, &["g"]).expect("f and g are two");
        assert_eq!(put.mint_for(), Some(a));
        let actions = put.on_minted(0);
        assert_eq!(actions[3..5], [hint("g", "b"), hint("g", "c")]);
        for primary in [a, b, c] {
            assert_eq!(put.on_failed(primary, "down".into(), 1), []);
        }
        assert_eq!(put.on_ack(f, true, true, 2), []);
        assert_eq!(put.on_hint_kept(node("g"), b, true, true, 3), [PutAction::Reply(Ok(()))]);
        assert_eq!(put.acks(), Acks { primary: 0, fallback: 2 });
        assert_eq!(put.on_hint_kept(node("g"), c, true, true, 3), [PutAction::Finished]);
    }

    /// Random answers in random order, until nothing is open: one reply, which says Ok exactly if W distinct nodes with W
    /// distinct slots had acknowledged; nobody is asked twice for the same; no two live hints for one primary; and it ends.
    #[test]
    fn whatever_primaries_and_fallbacks_answer_the_write_ends_and_never_lies() {
        use std::collections::BTreeSet;

        use quorate_wire::random::Random;

        let names = ["a", "b", "c", "f", "g", "h"];
        for seed in 0..20_000 {
            let random = Random::from_seed(seed);
            let below = |bound: u64| random.below(bound) as usize;
            let me = if below(4) == 0 { node("f") } else { node("a") };
            let primaries = nodes();
            let fallbacks: Vec<NodeId> = names[3..].iter().map(|name| node(name)).filter(|node| *node != me).collect();
            let fallbacks = fallbacks[..below(fallbacks.len() as u64 + 1)].to_vec();
            let (w, down) = (1 + below(3) as u8, below(8));
            let up =
                |node: NodeId| primaries.iter().position(|primary| *primary == node).is_none_or(|i| down >> i & 1 == 0);
            let stand_ins = StandIns { hints: true, fallbacks };
            let Ok(mut put) = Put::new(me, OP, &one(&primaries, w), stand_ins, false, up) else { continue };
            // Edges (node, primary) that are open, and those that have acknowledged before the reply.
            let (mut open, mut acked, mut asked) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
            let (mut replied, mut finished) = (None, false);
            let mut actions = put.on_minted(0);
            loop {
                for action in std::mem::take(&mut actions) {
                    match action {
                        PutAction::AwaitDurable => open.push((me, put.mint_for().unwrap_or(me))),
                        PutAction::Replicate(to) => open.push((to, to)),
                        PutAction::Hint { holder, target } => {
                            assert!(asked.insert((holder, target)), "seed {seed}: {holder} twice for {target}");
                            open.push((holder, target));
                            let live = put.hints().into_iter().filter(|(_, of)| *of == target).count();
                            assert_eq!(live, 1, "seed {seed}");
                        }
                        PutAction::LateAfterDelay => {}
                        PutAction::Reply(outcome) => {
                            assert_eq!(replied.replace(outcome.is_ok()), None, "seed {seed}: one reply");
                            let distinct = matching(&acked, &primaries);
                            assert_eq!(outcome.is_ok(), distinct >= usize::from(w), "seed {seed}: {acked:?}");
                            assert_eq!(usize::from(put.acks().total()), distinct, "seed {seed}: {acked:?}");
                        }
                        PutAction::Finished => finished = true,
                    }
                }
                if finished {
                    break;
                }
                if below(20) == 0 {
                    actions = if below(2) == 0 { put.on_late(1) } else { put.on_deadline() };
                    continue;
                }
                assert!(!open.is_empty(), "seed {seed}: nothing is open and it has not finished");
                let (who, target) = open.swap_remove(below(open.len() as u64));
                let own = who == me && target == put.mint_for().unwrap_or(me);
                let good = below(2) == 0;
                if good && replied.is_none() {
                    acked.insert((who, target));
                }
                actions = match (good, own || who == target) {
                    (true, true) => put.on_ack(who, true, true, 1),
                    (false, true) => put.on_failed(who, "no".into(), 1),
                    (true, false) => put.on_hint_kept(who, target, true, true, 1),
                    (false, false) => put.on_hint_failed(who, target, "no".into(), 1),
                };
            }
            assert!(replied.is_some() && open.is_empty(), "seed {seed}");
        }
    }

    /// The largest set of edges with distinct nodes and distinct primaries, by trying all of them. A primary's own place is the
    /// only one that it can take.
    fn matching(edges: &std::collections::BTreeSet<(NodeId, NodeId)>, primaries: &[NodeId]) -> usize {
        let edges: Vec<_> = edges.iter().filter(|(who, of)| who == of || !primaries.contains(who)).collect();
        let size = |chosen: u32| {
            let chosen: Vec<_> = (0..edges.len()).filter(|i| chosen >> i & 1 == 1).map(|i| edges[i]).collect();
            let nodes: std::collections::BTreeSet<_> = chosen.iter().map(|(who, _)| who).collect();
            let slots: std::collections::BTreeSet<_> = chosen.iter().map(|(_, of)| of).collect();
            (nodes.len() == chosen.len() && slots.len() == chosen.len()).then_some(chosen.len())
        };
        (0..1u32 << edges.len()).filter_map(size).max().unwrap_or(0)
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Event {
        Ack(usize),
        Fail(usize),
        Stranger,
        Deadline,
    }

    /// What a write must do, written down from the specification alone: the first answer of each replica, in order.
    #[derive(Debug, Clone, Default, PartialEq)]
    struct Oracle {
        answers: [Option<bool>; 3],
        reply: Option<(bool, u8)>,
    }

    impl Oracle {
        fn step(&mut self, event: Event, w: usize) {
            match event {
                Event::Ack(node) => _ = self.answers[node].get_or_insert(true),
                Event::Fail(node) => _ = self.answers[node].get_or_insert(false),
                Event::Stranger | Event::Deadline => {}
            }
            let acks = self.answers.iter().filter(|answer| **answer == Some(true)).count();
            let failures = self.answers.iter().filter(|answer| **answer == Some(false)).count();
            if self.reply.is_none() && (acks >= w || failures > 3 - w || event == Event::Deadline) {
                self.reply = Some((acks >= w, acks as u8));
            }
        }

        fn finished(&self) -> bool {
            self.reply.is_some() && self.answers.iter().all(Option::is_some)
        }
    }

    /// All sequences of answers, doubles, contradictions, strangers and deadlines, up to six long, then whatever is open
    /// fails as its call's deadline makes it: the machine must agree with the oracle at every step, and end.
    #[test]
    fn every_order_of_replies_failures_and_deadlines_ends_as_the_specification_says() {
        for w in 1..=3 {
            let mut put = put(w);
            put.on_minted(0);
            descend(&put, &Oracle::default(), w, 0, 6);
        }
    }

    fn descend(put: &Put, oracle: &Oracle, w: u8, replies: usize, depth: usize) {
        if oracle.finished() {
            return;
        }
        let events = [
            Event::Ack(0),
            Event::Ack(1),
            Event::Ack(2),
            Event::Fail(0),
            Event::Fail(1),
            Event::Fail(2),
            Event::Stranger,
            Event::Deadline,
        ];
        let open = || {
            let unanswered = oracle.answers.iter().position(Option::is_none);
            vec![unanswered.map_or(Event::Deadline, Event::Fail)]
        };
        for event in if depth > 0 { events.to_vec() } else { open() } {
            let (mut put, mut oracle, before) = (put.clone(), oracle.clone(), oracle);
            oracle.step(event, w.into());
            let actions = match event {
                Event::Ack(node) => put.on_ack(nodes()[node], true, true, 1),
                Event::Fail(node) => put.on_failed(nodes()[node], "refused".into(), 1),
                Event::Stranger => put.on_ack(NodeId::new("x").expect("legal"), true, true, 1),
                Event::Deadline => put.on_deadline(),
            };
            let mut replies = replies;
            for action in &actions {
                match action {
                    PutAction::Reply(outcome) => {
                        replies += 1;
                        assert_eq!(before.reply, None, "one reply");
                        let (ok, acks) = oracle.reply.expect("the oracle replies at the same event");
                        match outcome {
                            Ok(()) => assert!(ok && acks >= w, "{event:?} {oracle:?}"),
                            Err(Failure::Indeterminate { op_id, need, acks: told, .. }) => {
                                assert!(!ok, "{event:?} {oracle:?}");
                                assert_eq!((*op_id, *need, told.total()), (OP, w, acks));
                            }
                            Err(Failure::NotApplied(refusal)) => panic!("after the mint: {refusal}"),
                        }
                    }
                    PutAction::Finished => assert!(oracle.finished(), "{event:?} {oracle:?}"),
                    PutAction::AwaitDurable
                    | PutAction::Replicate(_)
                    | PutAction::Hint { .. }
                    | PutAction::LateAfterDelay => panic!("asked again: {action:?}"),
                }
            }
            assert_eq!(replies, usize::from(oracle.reply.is_some()), "{event:?} {oracle:?}");
            assert_eq!(actions.contains(&PutAction::Finished), oracle.finished(), "{event:?} {oracle:?}");
            assert_eq!(
                put.acks(),
                Acks { primary: oracle.reply.map_or(put.acks().primary, |(_, acks)| acks), fallback: 0 }
            );
            // Events that change nothing cost two, so that room is left for those that do.
            let cost = if oracle == *before { 2 } else { 1 };
            descend(&put, &oracle, w, replies, depth.saturating_sub(cost));
        }
    }
}
