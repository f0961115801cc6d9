//! One attempt of a write, as a state machine.
//!
//! ```text
//!   new ──refused──> NotApplied
//!    │
//!   mint at self ──refused──> NotApplied            (nothing was written)
//!    │         └───unknown──> Indeterminate         (the insert may be there)
//!   replicate to the other N-1 primaries, all at once; wait for the own disk
//!    │
//!    ├─ W acknowledgements ──────────> Ok           (the rest goes on)
//!    ├─ too many failed, or deadline ─> Indeterminate (the rest goes on)
//!    └─ everybody has answered ──────> Finished
//! ```
//!
//! Invariants: before the mint the outcome is `NotApplied`, after it `Ok` or `Indeterminate` and never `NotApplied`; there is
//! exactly one reply and it comes before `Finished`; a write is always sent to all N primaries, W only decides when to
//! answer. The machine reads no clock and sends nothing: inputs are `on_*`, what to do comes back as [`PutAction`]s. Every
//! question that it asks must be answered in the end ([`Put::on_ack`] or [`Put::on_failed`]), so every call needs a deadline.

use quorate_client::ids::{NodeId, OpId};
use quorate_client::options::Quorum;
use quorate_client::wire::{Acks, Asked, Failure, NotApplied};

use super::quorum::{Said, Status, Tally, required};

/// What the driver has to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum PutAction {
    /// Wait until the minted record is durable here; then `on_ack` or `on_failed` of this node itself.
    AwaitDurable,
    /// Send the minted record to this primary, at once and beside the others.
    Replicate(NodeId),
    /// Answer the client.
    Reply(Result<(), Failure>),
    /// Everybody has answered: nothing will happen any more.
    Finished,
}

/// A write that one of the key's primaries coordinates.
#[derive(Debug, Clone)]
pub struct Put {
    me: NodeId,
    op_id: OpId,
    primaries: Vec<NodeId>,
    tally: Tally,
    minting: bool,
    replied: bool,
    /// Every acknowledgement that counted was given after a sync.
    synced: bool,
    decided_by: Option<NodeId>,
}

impl Put {
    /// A write that is about to be minted at `me`, one of `primaries`. The driver mints next, and says how that went.
    ///
    /// `reachable` is what the failure detector and the back-off of connections believe. It is asked here and never again:
    /// a write that cannot succeed must not be left half-applied, while a wrong belief must not stop one that could.
    ///
    /// # Errors
    /// W is 0 or above N, or fewer than W primaries can be reached.
    pub fn new(
        me: NodeId,
        op_id: OpId,
        primaries: &[NodeId],
        w: Quorum,
        strict: bool,
        reachable: impl Fn(NodeId) -> bool,
    ) -> Result<Self, NotApplied> {
        assert!(primaries.contains(&me), "only a primary coordinates a write");
        let n = u8::try_from(primaries.len()).expect("a layout has at most 255 replicas of a record");
        let need = required("W", w, n)?;
        let down: Vec<&str> =
            primaries.iter().filter(|node| **node != me && !reachable(**node)).map(NodeId::as_str).collect();
        let alive = n - down.len() as u8;
        if alive < need {
            let why = format!("{} of the {n} primaries cannot be reached: {}", down.len(), down.join(", "));
            return Err(NotApplied::Unavailable { need, alive, why });
        }
        let tally = Tally::new(primaries, need, strict);
        let primaries = primaries.to_vec();
        Ok(Self { me, op_id, primaries, tally, minting: true, replied: false, synced: true, decided_by: None })
    }

    /// The write was minted and inserted here. Times are microseconds since the start of the request.
    pub fn on_minted(&mut self, at_us: u64) -> Vec<PutAction> {
        assert!(std::mem::take(&mut self.minting), "a write is minted once");
        // The others first: the record travels while this node's disk is synced.
        let (me, mut actions) = (self.me, Vec::with_capacity(self.primaries.len()));
        actions.extend(self.primaries.iter().filter(|node| **node != me).copied().map(PutAction::Replicate));
        actions.push(PutAction::AwaitDurable);
        for primary in &self.primaries {
            self.tally.ask(*primary, at_us);
        }
        actions
    }

    /// The mint was refused: nothing was written anywhere.
    pub fn on_mint_refused(&mut self, refusal: NotApplied) -> Vec<PutAction> {
        assert!(std::mem::take(&mut self.minting), "a write is minted once");
        self.reply(Err(refusal.into())).chain([PutAction::Finished]).collect()
    }

    /// The insert failed and may still be there; there is no record that could be sent to the others.
    pub fn on_mint_unknown(&mut self, why: String) -> Vec<PutAction> {
        assert!(std::mem::take(&mut self.minting), "a write is minted once");
        let failure = self.indeterminate(format!("{}: {why}", self.me));
        self.reply(Err(failure)).chain([PutAction::Finished]).collect()
    }

    /// A primary holds the write; the node itself once its own insert is durable.
    pub fn on_ack(&mut self, node: NodeId, synced: bool, changed: bool, at_us: u64) -> Vec<PutAction> {
        if self.tally.awaited(node).is_none() {
            return Vec::new();
        }
        if self.tally.ack(node, Said::Ack { synced, changed }, at_us) {
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

    /// A primary refused, could not be asked, or its deadline has passed.
    pub fn on_failed(&mut self, node: NodeId, why: String, at_us: u64) -> Vec<PutAction> {
        if !self.tally.fail(node, Said::Failed(why), at_us) {
            return Vec::new();
        }
        let mut actions = Vec::new();
        if !self.replied && self.tally.status() == Status::Impossible {
            let failure = self.indeterminate(self.tally.why());
            actions.extend(self.reply(Err(failure)));
        }
        actions.extend(self.finished());
        actions
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
        (self.replied && !self.tally.is_waiting()).then_some(PutAction::Finished)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OP: OpId = OpId(7);

    fn nodes() -> [NodeId; 3] {
        ["a", "b", "c"].map(|name| NodeId::new(name).expect("a legal name"))
    }

    fn put(w: u8) -> Put {
        let nodes = nodes();
        Put::new(nodes[0], OP, &nodes, Quorum::Exactly(w), false, |_| true).expect("everybody is up")
    }

    #[test]
    fn an_impossible_quorum_is_refused_before_the_mint() {
        let nodes = nodes();
        for w in [0, 4, 255] {
            let refusal = Put::new(nodes[0], OP, &nodes, Quorum::Exactly(w), false, |_| true).expect_err("refused");
            assert_eq!(refusal, NotApplied::QuorumImpossible { what: "W".into(), asked: w, n: 3 });
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
                match Put::new(nodes[0], OP, &nodes, Quorum::Exactly(w), false, reachable) {
                    Ok(_) => assert!(alive >= w),
                    Err(NotApplied::Unavailable { need, alive: told, why }) => {
                        assert!(alive < w, "w={w} up={up}");
                        assert_eq!((need, told), (w, alive));
                        let named = why.split_once(": ").expect("names").1;
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
        let mut put = Put::new(a, OP, &[b, a, c], Quorum::One, false, |_| false).expect("one is enough");
        let actions = put.on_minted(3);
        assert_eq!(actions, [PutAction::Replicate(b), PutAction::Replicate(c), PutAction::AwaitDurable]);
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
        let reply = put.on_deadline();
        assert!(matches!(&reply[..], [PutAction::Reply(Err(Failure::Indeterminate { .. }))]), "{reply:?}");
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
                    PutAction::AwaitDurable | PutAction::Replicate(_) => panic!("asked again: {action:?}"),
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
