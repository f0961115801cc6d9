//! The judgement: one file a property, each a pure function of the history.
//!
//! A checker reports each violation with the operations that prove it. None of them trusts a node's word but what a client
//! was told and what was on the disks at the end.

pub mod genuine;

pub mod durable;
pub mod lost_update;
pub mod resurrection;

pub mod false_concurrency;
pub mod siblings;

pub mod regular;
pub mod session;

pub mod convergence;
pub mod dots;

pub mod availability;

#[cfg(test)]
pub(crate) mod story;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::history::{Causality, History, OpNo, Operation};

/// What can be violated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Property {
    /// See [`genuine`].
    Genuine,
    /// See [`durable`].
    Durable,
    /// See [`lost_update`].
    NoLostUpdate,
    /// See [`resurrection`].
    NoResurrection,
    /// See [`false_concurrency`].
    NoFalseConcurrency,
    /// See [`siblings`].
    BoundedSiblings,
    /// See [`regular`].
    RegularRegister,
    /// See [`session`].
    SessionOrder,
    /// See [`convergence`].
    Convergence,
    /// See [`dots`].
    UniqueDots,
    /// See [`availability`].
    Availability,
}

/// A proof that a promise was broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Which promise.
    pub property: Property,
    /// On which key.
    pub key: String,
    /// The operations that prove it.
    pub operations: Vec<OpNo>,
    /// What happened, for people.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of key {}: {} (operations {:?})", self.property, self.key, self.what, self.operations)
    }
}

/// What this life promised, beyond what every life does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expectations {
    /// Replicas of each key.
    pub n: u8,
    /// The most values that one read may return.
    pub siblings_max: usize,
    /// The faults were over and every replica had the time to catch up, so that replicas must be equal.
    pub converged: bool,
    /// When every operation had to succeed.
    pub available: Vec<Window>,
}

/// A span of simulated time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Its first microsecond.
    pub from_us: u64,
    /// The first microsecond after it.
    pub to_us: u64,
}

/// Everything that is wrong with a history.
///
/// When clients read what nobody wrote, nothing else is asked: what causes what is not known then.
pub fn judge(history: &History, expectations: &Expectations) -> Vec<Violation> {
    let forged = genuine::check(history);
    if !forged.is_empty() {
        return forged;
    }
    let causality = Causality::of(history);
    let mut violations = durable::check(history, &causality);
    violations.extend(lost_update::check(history, &causality));
    violations.extend(resurrection::check(history, &causality));
    violations.extend(false_concurrency::check(history, &causality));
    violations.extend(siblings::check(history, expectations.siblings_max));
    violations.extend(regular::check(history, &causality));
    violations.extend(session::check(history, &causality));
    violations.extend(dots::check(history));
    violations.extend(availability::check(history, &expectations.available));
    if expectations.converged {
        violations.extend(convergence::check(history, expectations.n));
    }
    violations
}

/// Whether the quorums of a write and a later read must have had a primary in common: R + W > N, and nobody stood in.
fn must_meet(write: &Operation, read: &Operation) -> bool {
    let (Some(w), Some(r)) = (write.quorum, read.quorum) else { return false };
    w.n == r.n && w.need + r.need > w.n && !w.degraded && !r.degraded
}

/// Whether a delete that knew of a write may have happened, and was asked for before `until_us`.
fn may_be_deleted(operations: &[&Operation], causality: &Causality, write: OpNo, until_us: u64) -> bool {
    operations.iter().any(|operation| {
        matches!(operation.action, crate::history::Action::Delete { .. })
            && operation.may_have_happened()
            && operation.invoked_us < until_us
            && causality.covers(operation.no, write)
    })
}

/// Acknowledged puts of a key that are gone at the end, though nobody who knew of them replaced or deleted them.
fn lost<'a>(
    history: &History,
    operations: &'a [&'a Operation],
    causality: &'a Causality,
    key: &str,
) -> impl Iterator<Item = &'a Operation> + use<'a> {
    let left = history.left(key).clone();
    operations.iter().copied().filter(move |write| {
        matches!(write.action, crate::history::Action::Put { .. })
            && write.acknowledged()
            && !causality.reflected(write.no, &left)
            && !may_be_deleted(operations, causality, write.no, u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::story::Story;
    use super::*;

    #[test]
    fn a_good_life_is_not_blamed() {
        let mut story = Story::new();
        let one = story.put(None);
        let two = story.put(None);
        let read = story.get([one, two]);
        let merged = story.put(Some(read));
        let delete = story.delete(Some(merged));
        story.get([]);
        let again = story.put(Some(delete));
        let unknown = story.put(Some(again));
        story.unknown(unknown);
        story.get([again]);
        story.left([unknown]);
        for node in ["n1", "n2", "n3"] {
            story.replica(node, [("a#7", unknown)]);
        }
        let window = Window { from_us: 0, to_us: 100 };
        let expectations = Expectations { n: 3, siblings_max: 2, converged: true, available: vec![window] };
        assert_eq!(judge(&story.history(), &expectations), []);
    }

    #[test]
    fn a_value_from_nowhere_ends_the_judgement() {
        let mut story = Story::new();
        story.get([99]);
        let expectations = Expectations { n: 3, siblings_max: 2, converged: true, available: Vec::new() };
        let violations = judge(&story.history(), &expectations);
        assert_eq!(violations.len(), 1);
        assert_eq!(violations[0].property, Property::Genuine);
    }

    #[test]
    fn quorums_that_need_not_meet_promise_nothing() {
        let mut story = Story::new();
        let write = story.put(None);
        let read = story.get([]);
        let history = story.history();
        let (write, read) = (&history.operations[&write], &history.operations[&read]);
        assert!(must_meet(write, read));
        let with = |operation: &Operation, change: fn(&mut crate::history::Quorum)| {
            let mut operation = operation.clone();
            change(operation.quorum.as_mut().expect("it has one"));
            operation
        };
        assert!(!must_meet(&with(write, |quorum| quorum.need = 1), read));
        assert!(!must_meet(write, &with(read, |quorum| quorum.degraded = true)));
        assert!(!must_meet(&Operation { quorum: None, ..write.clone() }, read));
    }
}
