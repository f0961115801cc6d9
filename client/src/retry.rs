//! When to try again, where, and when to give up: a state machine without a clock, a socket or a random source.
//!
//! The rules. A read may be tried anywhere at any time. A write that was refused before its mint, or of which no byte was
//! sent, is as free as a read: whoever the client can reach is asked, once each, at no cost, because a refusal speaks of what one
//! coordinator can reach. A write whose outcome is unknown goes to the *same* node again, which recognises its operation
//! id or stays with who may have minted it, and to no other one. Once any attempt of a write was indeterminate, the write ends
//! acknowledged or indeterminate, never "not applied"; so does the repetition of an indeterminate write. Retries that cost a node
//! work, and the second round of those that are refused, are paid from a budget that fills with requests, so that retries cannot become
//! the load that they retry for.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::is_passing;
use quorate_wire::sometimes;
use quorate_wire::{Acks, NotApplied};

/// One request on its way through several attempts.
#[derive(Debug)]
pub(crate) struct Plan {
    kind: Kind,
    started: Instant,
    deadline: Instant,
    /// How many coordinators there are to choose from, best first.
    candidates: usize,
    /// The one that the current attempt goes to.
    at: usize,
    attempts: u32,
    /// How often an attempt went where one had been before.
    repeats: u32,
    unknown: Option<Unknown>,
    /// The write repeats one whose outcome is unknown, and whose first attempt was sent so long before this request: of that one no
    /// refusal says anything.
    repeated: Option<Duration>,
    refused: Option<NotApplied>,
    /// A read was sent and not answered.
    unanswered: bool,
}

/// Whether a request changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It changes nothing: any attempt may be repeated anywhere.
    Read,
    /// It is a write with an operation id.
    Write,
    /// It changes something and has no operation id: a layout command.
    Command,
}

/// How an attempt went, when it did not go well.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// No byte was sent: the node could not be reached.
    NotSent,
    /// It was sent, and no answer that could be understood came.
    Unknown(String),
    /// The node refused definitely.
    Refused(NotApplied),
    /// The node does not know what became of the write.
    Indeterminate(Unknown),
}

/// What is known of a write whose outcome is unknown.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Unknown {
    pub(crate) need: Option<u8>,
    pub(crate) acks: Acks,
    pub(crate) why: String,
}

/// What to do after an attempt that did not go well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Wait, then try this candidate.
    Try {
        candidate: usize,
        after: Duration,
    },
    GiveUp,
}

/// How a request ends that nobody answered well.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum End {
    Indeterminate(Unknown),
    Refused(NotApplied),
    /// A read was sent and not answered in this time.
    NoAnswer(Duration),
    /// Nothing was sent.
    Unreachable,
}

/// How long an attempt may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slice {
    /// To reach the node; a node that is not reached in time costs nothing but this.
    pub(crate) connect: Duration,
    /// In all, from the start of the attempt to its answer.
    pub(crate) whole: Duration,
}

impl Plan {
    /// The first attempt goes to candidate 0. `repeated`: it is a write that an earlier request may have brought about, which was sent
    /// at most so long ago.
    pub(crate) fn new(
        kind: Kind,
        repeated: Option<Duration>,
        candidates: usize,
        now: Instant,
        timeout: Duration,
    ) -> Self {
        assert!(candidates > 0, "a request has somebody to go to");
        Self {
            kind,
            started: now,
            deadline: now + timeout,
            candidates,
            at: 0,
            attempts: 1,
            repeats: 0,
            unknown: None,
            repeated,
            refused: None,
            unanswered: false,
        }
    }

    /// How long the current attempt may take, so that time is left for another one. The last one gets all that is left.
    pub(crate) fn slice(&self, now: Instant) -> Slice {
        let left = self.deadline.saturating_duration_since(now);
        let others = self.candidates > 1 && self.attempts < ATTEMPTS_MAX;
        // A single node is tried again on a new connection; a command is never repeated and so never cut short.
        let cut = self.kind != Kind::Command && (others || self.kind == Kind::Write) && left > 2 * SLICE_MIN;
        Slice { connect: if others { left / 3 } else { left }, whole: if cut { left / 2 } else { left } }
    }

    /// Takes note of how the attempt went and decides. `jitter` is a number of the random source.
    pub(crate) fn after(&mut self, outcome: Outcome, now: Instant, jitter: u64, budget: &mut Budget) -> Next {
        let (mut pause, mut circle_only) = (Duration::ZERO, false);
        let refused = matches!(outcome, Outcome::Refused(_));
        let (again, elsewhere, costs) = match outcome {
            Outcome::NotSent => (true, true, false),
            // A node that calls a read indeterminate is wrong, and as good as silent.
            Outcome::Unknown(_) | Outcome::Indeterminate(_) if self.kind == Kind::Read => {
                self.unanswered = true;
                (true, true, true)
            }
            Outcome::Unknown(why) => {
                self.note(Unknown { need: None, acks: Acks::default(), why });
                (self.kind == Kind::Write, false, true)
            }
            Outcome::Indeterminate(unknown) => {
                self.note(unknown);
                (self.kind == Kind::Write, false, true)
            }
            Outcome::Refused(refusal) => {
                if let NotApplied::Overloaded { retry_after_ms } = refusal {
                    pause = Duration::from_millis(u64::from(retry_after_ms));
                }
                // A node that does not serve will hardly do so within the time of a request: others are asked, once.
                circle_only = matches!(refusal, NotApplied::NotServing { .. }) && self.unknown.is_none();
                let overloaded = matches!(refusal, NotApplied::Overloaded { .. });
                let again = is_passing(&refusal);
                self.refused = Some(refusal);
                (again, true, overloaded)
            }
        };
        if !again || self.attempts >= ATTEMPTS_MAX {
            return Next::GiveUp;
        }
        // A coordinator that may have minted the write, and is gone, comes back with it. A second one would mint it again, and
        // whoever then replaces the write has seen one of the two dots only: the other one would rise from the dead.
        let elsewhere = elsewhere && (self.kind != Kind::Write || self.unknown.is_none());
        let step = usize::from(elsewhere);
        let candidate = (self.at + step) % self.candidates;
        // A node that was asked before and has refused is asked again.
        let costs = costs || (refused && (step == 0 || candidate == 0));
        if circle_only && candidate == 0 {
            return Next::GiveUp;
        }
        if step == 0 || candidate == 0 {
            pause = pause.max(backoff(self.repeats, jitter));
            self.repeats += 1;
        }
        if now + pause + SLICE_MIN >= self.deadline {
            return Next::GiveUp;
        }
        if costs && !budget.withdraw(now) {
            sometimes!("client: the budget for retries was empty");
            return Next::GiveUp;
        }
        self.at = candidate;
        self.attempts += 1;
        Next::Try { candidate, after: pause }
    }

    /// How long it has been going on.
    pub(crate) fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// How long ago the first attempt was sent at most, of this request or of the one that it repeats.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        self.repeated.unwrap_or_default().saturating_add(self.since(now))
    }

    /// Whether an earlier attempt, of this request or of the one that it repeats, may have brought the write about.
    pub(crate) fn may_be_there(&self) -> bool {
        self.is_unknown() || self.repeated.is_some()
    }

    /// Whether an attempt of a write ended unknown.
    pub(crate) fn is_unknown(&self) -> bool {
        self.unknown.is_some()
    }

    /// How the request ends, after [`Next::GiveUp`] or when its time is over.
    pub(crate) fn end(self, now: Instant) -> End {
        let waited = self.since(now);
        let repeated = self.repeated.map(|_| {
            let why = "an earlier request may have brought it about, and no node could say".to_owned();
            Unknown { need: None, acks: Acks::default(), why }
        });
        match (self.unknown.or(repeated), self.refused) {
            (Some(mut unknown), refused) => {
                if let Some(refusal) = refused {
                    unknown.why = format!("{}; a repetition was refused: {}", unknown.why, refusal.reason());
                }
                End::Indeterminate(unknown)
            }
            (None, Some(refusal)) => End::Refused(refusal),
            (None, None) if self.unanswered => End::NoAnswer(waited),
            (None, None) => End::Unreachable,
        }
    }

    /// Keeps the best that is known: a node's own count beats the silence of another attempt.
    fn note(&mut self, unknown: Unknown) {
        self.unknown = Some(match self.unknown.take() {
            Some(before) if before.acks.total() > unknown.acks.total() || unknown.need.is_none() => {
                Unknown { why: unknown.why, ..before }
            }
            _ => unknown,
        });
    }
}

/// Pays for retries: a tenth of a token for each request, one token a second, ten at most; a retry costs one.
///
/// A cluster in trouble so sees at most a tenth more requests than its users make (the scheme of Finagle's `RetryBudget`),
/// and a client that makes few requests still gets through a node's restart.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Thousandths of a token.
    milli: u64,
    filled: Instant,
}

impl Budget {
    pub(crate) fn new(now: Instant) -> Self {
        Self { milli: Self::BURST_MILLI, filled: now }
    }

    /// A new request was made.
    pub(crate) fn deposit(&mut self) {
        self.milli = (self.milli + Self::PER_REQUEST_MILLI).min(Self::BURST_MILLI);
    }

    /// Takes a token if there is one.
    fn withdraw(&mut self, now: Instant) -> bool {
        // One thousandth a millisecond is one token a second.
        let since = now.saturating_duration_since(self.filled).as_millis().min(u128::from(Self::BURST_MILLI)) as u64;
        if since > 0 {
            self.filled = now;
            self.milli = (self.milli + since).min(Self::BURST_MILLI);
        }
        let paid = self.milli >= 1000;
        if paid {
            self.milli -= 1000;
        }
        paid
    }

    const PER_REQUEST_MILLI: u64 = 100;
    const BURST_MILLI: u64 = 10_000;
}

/// 10, 20, 40, .. 320 ms, of which a random half is taken off, so that clients do not come back in step.
pub(crate) fn backoff(repeats: u32, jitter: u64) -> Duration {
    let whole = 10_000u64 << repeats.min(5);
    Duration::from_micros(whole / 2 + jitter % (whole / 2))
}

/// Enough to ask all primaries with N = 5, four other members and two seeds. Where each attempt takes its half of the time there are
/// five or six of them; more than that are those that are refused at once.
const ATTEMPTS_MAX: u32 = 12;

/// Less than this is no time for an attempt: a round trip over a wide-area network.
const SLICE_MIN: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use quorate_wire::ids::NodeId;

    const SECOND: Duration = Duration::from_secs(1);

    struct Story {
        plan: Plan,
        budget: Budget,
        now: Instant,
    }

    impl Story {
        fn new(kind: Kind, candidates: usize) -> Self {
            let now = Instant::now();
            Self { plan: Plan::new(kind, None, candidates, now, SECOND), budget: Budget::new(now), now }
        }

        fn after(&mut self, outcome: Outcome) -> Next {
            let next = self.plan.after(outcome, self.now, 0, &mut self.budget);
            if let Next::Try { after, .. } = next {
                self.now += after;
            }
            next
        }

        fn end(self) -> End {
            self.plan.end(self.now)
        }
    }

    fn unknown() -> Outcome {
        Outcome::Unknown("the connection was lost".into())
    }

    fn indeterminate(primary: u8) -> Outcome {
        Outcome::Indeterminate(Unknown { need: Some(2), acks: Acks { primary, fallback: 0 }, why: "late".into() })
    }

    fn unavailable() -> NotApplied {
        NotApplied::Unavailable { need: 2, alive: 1, why: "down".into() }
    }

    fn at_once(candidate: usize) -> Next {
        Next::Try { candidate, after: Duration::ZERO }
    }

    #[test]
    fn what_repeats_an_unknown_write_is_never_called_not_applied() {
        for outcome in [Outcome::NotSent, Outcome::Refused(unavailable())] {
            let mut story = Story::new(Kind::Write, 2);
            story.plan.repeated = Some(SECOND);
            assert!(matches!(story.after(outcome), Next::Try { candidate: 1, .. }), "it is free to go elsewhere");
            assert!(matches!(story.end(), End::Indeterminate(Unknown { why, .. }) if why.contains("earlier request")));
        }
    }

    #[test]
    fn a_request_that_was_not_sent_goes_to_the_next_node_at_once_and_for_nothing() {
        for kind in [Kind::Read, Kind::Write, Kind::Command] {
            let mut story = Story::new(kind, 3);
            story.budget.milli = 0;
            assert_eq!(story.after(Outcome::NotSent), at_once(1));
            assert_eq!(story.after(Outcome::NotSent), at_once(2));
            assert!(
                matches!(story.after(Outcome::NotSent), Next::Try { candidate: 0, after } if after > Duration::ZERO)
            );
            assert_eq!(story.end(), End::Unreachable);
        }
    }

    #[test]
    fn a_read_without_an_answer_goes_to_the_next_node() {
        let mut story = Story::new(Kind::Read, 3);
        assert_eq!(story.after(unknown()), at_once(1));
        assert_eq!(story.after(Outcome::NotSent), at_once(2));
        story.now += Duration::from_millis(400);
        assert_eq!(story.end(), End::NoAnswer(Duration::from_millis(400)));
    }

    #[test]
    fn a_write_without_an_answer_stays_with_its_coordinator() {
        for ambiguous in [unknown(), indeterminate(1)] {
            let mut story = Story::new(Kind::Write, 3);
            assert_eq!(story.after(Outcome::Refused(unavailable())), at_once(1));
            for _ in 0..3 {
                let next = story.after(ambiguous.clone());
                assert!(matches!(next, Next::Try { candidate: 1, after } if after > Duration::ZERO), "{next:?}");
            }
            assert!(matches!(story.end(), End::Indeterminate(_)));
        }
    }

    #[test]
    fn a_second_coordinator_is_tried_only_while_the_first_cannot_have_the_write() {
        let mut story = Story::new(Kind::Write, 3);
        assert_eq!(story.after(Outcome::NotSent), at_once(1));
        for outcome in [unknown(), Outcome::NotSent, Outcome::Refused(unavailable())] {
            assert!(matches!(story.after(outcome), Next::Try { candidate: 1, .. }));
        }
        assert!(matches!(story.end(), End::Indeterminate(_)));
    }

    #[test]
    fn once_indeterminate_never_not_applied() {
        let refusals = [
            unavailable(),
            NotApplied::Overloaded { retry_after_ms: 5 },
            NotApplied::TooManySiblings { got: 100, limit: 100 },
            NotApplied::BadContext { why: "no".into() },
        ];
        for refusal in refusals {
            let mut story = Story::new(Kind::Write, 2);
            story.after(indeterminate(1));
            story.after(Outcome::Refused(refusal));
            story.after(Outcome::NotSent);
            let end = story.end();
            assert!(matches!(&end, End::Indeterminate(u) if u.acks.primary == 1 && u.need == Some(2)), "{end:?}");
        }
    }

    #[test]
    fn the_best_count_of_acknowledgements_is_kept() {
        let mut story = Story::new(Kind::Write, 2);
        for outcome in [indeterminate(1), indeterminate(0), unknown()] {
            story.after(outcome);
        }
        let End::Indeterminate(known) = story.end() else { panic!("it is indeterminate") };
        assert_eq!((known.need, known.acks.primary, &known.why[..]), (Some(2), 1, "the connection was lost"));
    }

    #[test]
    fn a_command_without_an_answer_is_never_repeated() {
        for outcome in [unknown(), indeterminate(0)] {
            let mut story = Story::new(Kind::Command, 3);
            assert_eq!(story.plan.slice(story.now).whole, SECOND);
            assert_eq!(story.after(outcome), Next::GiveUp);
            assert!(matches!(story.end(), End::Indeterminate(_)));
        }
    }

    #[test]
    fn refusals_that_pass_are_tried_elsewhere_and_others_are_not() {
        let node = NodeId::new("n1").expect("legal");
        for kind in [Kind::Read, Kind::Write] {
            for refusal in [
                unavailable(),
                NotApplied::NotServing { node, why: "no layout".into() },
                NotApplied::Storage { node, why: "disk full".into() },
            ] {
                let mut story = Story::new(kind, 3);
                assert_eq!(story.after(Outcome::Refused(refusal.clone())), at_once(1));
                assert_eq!(story.end(), End::Refused(refusal));
            }
            for refusal in [
                NotApplied::EmptyKey,
                NotApplied::TooLarge { what: "value".into(), limit: 1, got: 2 },
                NotApplied::QuorumImpossible { what: "W".into(), asked: 4, n: 3 },
                NotApplied::Forbidden { why: "no".into() },
            ] {
                let mut story = Story::new(kind, 3);
                assert_eq!(story.after(Outcome::Refused(refusal.clone())), Next::GiveUp);
                assert_eq!(story.end(), End::Refused(refusal));
            }
        }
    }

    #[test]
    fn whoever_can_be_reached_is_asked_once_for_nothing_and_a_second_round_is_paid() {
        for kind in [Kind::Read, Kind::Write, Kind::Command] {
            let mut story = Story::new(kind, 3);
            story.budget.milli = 999;
            assert_eq!(story.after(Outcome::Refused(unavailable())), at_once(1));
            assert_eq!(story.after(Outcome::Refused(unavailable())), at_once(2));
            assert_eq!(
                story.after(Outcome::Refused(unavailable())),
                Next::GiveUp,
                "nobody could, and there is no budget"
            );
            let mut story = Story::new(kind, 2);
            story.budget.milli = 1000;
            assert_eq!(story.after(Outcome::Refused(unavailable())), at_once(1));
            let again = story.after(Outcome::Refused(unavailable()));
            assert!(matches!(again, Next::Try { candidate: 0, after } if after > Duration::ZERO), "{again:?}");
            assert_eq!(story.after(Outcome::Refused(unavailable())), at_once(1));
            assert_eq!(story.after(Outcome::Refused(unavailable())), Next::GiveUp, "that was paid for one round");
        }
        // Work that an overloaded node refuses is not taken to the next one for nothing.
        let mut story = Story::new(Kind::Read, 3);
        story.budget.milli = 999;
        assert_eq!(story.after(Outcome::Refused(NotApplied::Overloaded { retry_after_ms: 0 })), Next::GiveUp);
    }

    #[test]
    fn a_node_that_does_not_serve_is_not_asked_twice() {
        let refusal = NotApplied::NotServing { node: NodeId::new("n1").expect("legal"), why: "no layout".into() };
        let mut story = Story::new(Kind::Read, 2);
        assert_eq!(story.after(Outcome::Refused(refusal.clone())), at_once(1));
        assert_eq!(story.after(Outcome::Refused(refusal.clone())), Next::GiveUp);
        assert_eq!(story.end(), End::Refused(refusal));
    }

    #[test]
    fn an_overloaded_node_says_when_to_come_back() {
        let mut story = Story::new(Kind::Write, 3);
        let later = story.after(Outcome::Refused(NotApplied::Overloaded { retry_after_ms: 50 }));
        assert_eq!(later, Next::Try { candidate: 1, after: Duration::from_millis(50) });
        let too_late = story.after(Outcome::Refused(NotApplied::Overloaded { retry_after_ms: 950 }));
        assert_eq!(too_late, Next::GiveUp, "the deadline is before that");
    }

    #[test]
    fn attempts_leave_time_for_another() {
        let story = Story::new(Kind::Read, 3);
        let slice = story.plan.slice(story.now);
        assert_eq!((slice.connect, slice.whole), (SECOND / 3, SECOND / 2));
        let story = Story::new(Kind::Read, 1);
        assert_eq!(story.plan.slice(story.now), Slice { connect: SECOND, whole: SECOND });
        let story = Story::new(Kind::Write, 1);
        assert_eq!(story.plan.slice(story.now), Slice { connect: SECOND, whole: SECOND / 2 });
        let late = story.now + Duration::from_millis(970);
        assert_eq!(story.plan.slice(late).whole, Duration::from_millis(30), "too short to be divided");
        assert_eq!(story.plan.slice(late + SECOND).whole, Duration::ZERO);
    }

    #[test]
    fn retries_are_a_tenth_of_the_requests_and_a_burst() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        let paid = |budget: &mut Budget, now| (0..100).filter(|_| budget.withdraw(now)).count();
        assert_eq!(paid(&mut budget, now), 10, "the burst");
        for _ in 0..40 {
            budget.deposit();
        }
        assert_eq!(paid(&mut budget, now), 4, "a tenth");
        assert_eq!(paid(&mut budget, now + 3 * SECOND), 3, "one a second");
        assert_eq!(paid(&mut budget, now + 3600 * SECOND), 10, "never more than the burst");

        let mut story = Story::new(Kind::Read, 3);
        story.budget.milli = 999;
        assert_eq!(story.after(unknown()), Next::GiveUp);
    }

    fn outcomes() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            Just(Outcome::NotSent),
            Just(unknown()),
            Just(Outcome::Refused(unavailable())),
            Just(Outcome::Refused(NotApplied::EmptyKey)),
            (0u32..300).prop_map(|ms| Outcome::Refused(NotApplied::Overloaded { retry_after_ms: ms })),
            (0u8..2).prop_map(indeterminate),
        ]
    }

    proptest! {
        /// The whole policy at once: the plan ends, in time, and a write of which any attempt was ambiguous never ends
        /// "not applied"; one of which none was never ends "indeterminate".
        #[test]
        fn every_plan_ends_and_tells_the_truth(
            kind in prop_oneof![Just(Kind::Read), Just(Kind::Write), Just(Kind::Command)],
            candidates in 1usize..6,
            script in proptest::collection::vec((outcomes(), 0u64..200), 20),
        ) {
            let mut story = Story::new(kind, candidates);
            let deadline = story.now + SECOND;
            let (mut at, mut ambiguous, mut attempts) = (0, false, 1);
            for (outcome, took_ms) in script {
                let unclear = matches!(outcome, Outcome::Unknown(_) | Outcome::Indeterminate(_)) && kind != Kind::Read;
                ambiguous |= unclear;
                story.now += Duration::from_millis(took_ms);
                match story.after(outcome) {
                    Next::GiveUp => break,
                    Next::Try { candidate, .. } => {
                        prop_assert!(story.now < deadline, "an attempt starts before the deadline");
                        prop_assert!(!unclear || candidate == at, "an ambiguous write changed its coordinator");
                        at = candidate;
                        attempts += 1;
                    }
                }
            }
            prop_assert!(attempts <= ATTEMPTS_MAX);
            prop_assert_eq!(matches!(story.end(), End::Indeterminate(_)), ambiguous);
        }
    }
}
