//! One key of a history at a time, with the questions that several checkers ask of it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::history::{Action, Causality, History, OpNo, Operation};

/// All that a history tells of one key.
#[derive(Debug)]
pub struct OfKey<'a> {
    /// Its name.
    pub key: &'a str,
    /// What was done to it, in the order of the operations' numbers.
    pub operations: Vec<&'a Operation>,
    /// What is left of it at the end.
    pub left: &'a BTreeSet<OpNo>,
    /// Who knew of whom.
    pub causality: &'a Causality,
}

/// What may come of the retry of a write that was superseded, beside nothing: it is minted a second time, and its value rises beside
/// its successor. It takes no other write's place. (README, "What works, and what does not yet"; `quorate_core::mint`.)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retries {
    /// Replicas may have forgotten which operations were superseded, and a retry may have come so long after its write had ended, in
    /// microseconds: values that were superseded until then may rise again, and stay.
    pub forgets_us: Option<u64>,
    /// Nobody forgets, and from then on replicas have exchanged all that they hold, in microseconds of simulated time: values that
    /// another coordinator has minted again are gone. Nothing: that was not waited for.
    pub settled_us: Option<u64>,
}

/// The keys of a history.
pub fn of_keys<'a>(history: &'a History, causality: &'a Causality) -> Vec<OfKey<'a>> {
    let of_key = |(key, operations)| OfKey { key, operations, left: history.left(key), causality };
    history.by_key().into_iter().map(of_key).collect()
}

impl<'a> OfKey<'a> {
    /// The puts and deletes that were acknowledged.
    pub fn acknowledged(&self) -> impl Iterator<Item = &'a Operation> {
        self.operations.iter().copied().filter(|operation| operation.acknowledged())
    }

    /// The puts that were acknowledged.
    pub fn acknowledged_puts(&self) -> impl Iterator<Item = &'a Operation> {
        self.acknowledged().filter(|write| matches!(write.action, Action::Put { .. }))
    }

    /// The reads that began after an operation had returned and were answered, with what they showed.
    pub fn reads_after(&self, earlier: &Operation) -> impl Iterator<Item = (&'a Operation, &'a BTreeSet<OpNo>)> {
        let later = self.operations.iter().copied().filter(move |read| earlier.before(read));
        later.filter_map(|read| Some((read, read.found()?)))
    }

    /// The same, of those whose quorum must have had a primary in common with a write's.
    pub fn reads_that_met(&self, write: &Operation) -> impl Iterator<Item = (&'a Operation, &'a BTreeSet<OpNo>)> {
        self.reads_after(write).filter(|(read, _)| must_meet(write, read))
    }

    /// Whether a read shows neither a write nor anything that knew of it, and no delete excuses that.
    pub fn misses(&self, read: &Operation, write: OpNo) -> bool {
        let until_us = read.returned_us.unwrap_or(u64::MAX);
        read.found().is_some_and(|values| !self.causality.reflected(write, values))
            && !self.may_be_deleted(write, until_us)
    }

    /// The acknowledged puts that are gone at the end, though nobody who knew of them replaced or deleted them.
    pub fn lost(&self) -> impl Iterator<Item = &'a Operation> {
        let lost = |write: &&Operation| {
            !self.causality.reflected(write.no, self.left) && !self.may_be_deleted(write.no, u64::MAX)
        };
        self.acknowledged_puts().filter(lost)
    }

    /// Whether a write may be seen beside or behind what knew of it, in a read or at the end: see [`Retries`].
    pub fn may_rise_again(&self, write: OpNo, read: Option<&Operation>, retries: Retries) -> bool {
        let Some(write) = self.operations.iter().find(|operation| operation.no == write) else { return false };
        let exchanged = |settled_us| read.is_none_or(|read| read.invoked_us >= settled_us);
        let forgotten = |within_us| {
            let until_us = write.returned_us.map_or(u64::MAX, |us| us.saturating_add(within_us));
            self.operations.iter().any(|successor| {
                successor.may_have_happened()
                    && successor.invoked_us < until_us
                    && self.causality.covers(successor.no, write.no)
            })
        };
        (write.elsewhere && !retries.settled_us.is_some_and(exchanged)) || retries.forgets_us.is_some_and(forgotten)
    }

    /// Whether a delete that knew of a write may have happened, and was asked for before `until_us`.
    fn may_be_deleted(&self, write: OpNo, until_us: u64) -> bool {
        self.operations.iter().any(|operation| {
            matches!(operation.action, Action::Delete { .. })
                && operation.may_have_happened()
                && operation.invoked_us < until_us
                && self.causality.covers(operation.no, write)
        })
    }
}

/// Whether the quorums of a write and a later read must have had a primary in common: R + W > N, and nobody stood in. Whether either was
/// below the layout's floor does not matter as long as the layout stays; across a change nothing is promised below it.
fn must_meet(write: &Operation, read: &Operation) -> bool {
    let (Some(w), Some(r)) = (write.quorum, read.quorum) else { return false };
    let promised = w.layout == r.layout || !(w.below_floor || r.below_floor);
    promised && w.n == r.n && w.need + r.need > w.n && !w.degraded && !r.degraded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::Story;

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
        assert!(must_meet(&with(write, |quorum| quorum.below_floor = true), read), "it is a matter of other layouts");
        assert!(!must_meet(&Operation { quorum: None, ..write.clone() }, read));
    }

    #[test]
    fn only_a_write_that_was_superseded_soon_may_rise_again() {
        let mut story = Story::new();
        let old = story.put(None);
        let new = story.put(Some(old));
        let history = story.history();
        let causality = Causality::of(&history);
        let of_key = &of_keys(&history, &causality)[0];
        let forgets = |us| Retries { forgets_us: Some(us), settled_us: None };
        assert!(of_key.may_rise_again(old, None, forgets(11)), "its successor came 10 us after it had ended");
        assert!(!of_key.may_rise_again(old, None, forgets(10)));
        assert!(!of_key.may_rise_again(new, None, forgets(1000)), "nobody knew of it");
        assert!(!of_key.may_rise_again(old, None, Retries::default()));
    }

    #[test]
    fn what_another_coordinator_has_minted_again_is_gone_once_replicas_have_exchanged() {
        let mut story = Story::new();
        let old = story.put(None);
        let new = story.put(Some(old));
        let read = story.get([old, new]);
        story.edit(old, |old| old.elsewhere = true);
        let history = story.history();
        let (causality, read) = (Causality::of(&history), &history.operations[&read]);
        let of_key = &of_keys(&history, &causality)[0];
        let settled = |us| Retries { forgets_us: None, settled_us: Some(us) };
        assert!(of_key.may_rise_again(old, Some(read), settled(read.invoked_us + 1)));
        assert!(!of_key.may_rise_again(old, Some(read), settled(read.invoked_us)));
        assert!(!of_key.may_rise_again(old, None, settled(read.invoked_us + 1)), "it is there at the end");
        assert!(of_key.may_rise_again(old, None, Retries::default()), "nobody has waited for that");
        assert!(!of_key.may_rise_again(new, Some(read), settled(u64::MAX)), "it went to one coordinator");
    }
}
