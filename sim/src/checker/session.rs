//! **Session order**: a session reads its own writes, and what a monotonic read has returned no later read misses.
//!
//! Own writes follow from the regular register where quorums meet, and are told apart here because a client notices them
//! first. Monotonic reads hold for every reader, of any session. (Terry et al., "Session Guarantees for Weakly Consistent
//! Replicated Data", 1994; DESIGN, "What each mode promises", second row.)

use super::{Property, Violation, may_be_deleted, must_meet};
use crate::history::{Action, Causality, History, OpNo, Operation};

/// Every read that misses its session's own write, or what an earlier monotonic read had returned.
pub fn check(history: &History, causality: &Causality) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (key, operations) in history.by_key() {
        let misses = |read: &Operation, write: OpNo| {
            let until_us = read.returned_us.unwrap_or(u64::MAX);
            read.found().is_some_and(|values| !causality.reflected(write, values))
                && !may_be_deleted(&operations, causality, write, until_us)
        };
        let mut report = |operations: Vec<OpNo>, what: String| {
            violations.push(Violation { property: Property::SessionOrder, key: key.to_owned(), operations, what });
        };
        for earlier in &operations {
            for read in operations.iter().filter(|read| earlier.before(read)) {
                let own = (earlier.client, earlier.session) == (read.client, read.session);
                match earlier.action {
                    Action::Put { .. } if own && earlier.acknowledged() && must_meet(earlier, read) => {
                        if misses(read, earlier.no) {
                            let what = format!("read {} misses write {} of its own session", read.no, earlier.no);
                            report(vec![earlier.no, read.no], what);
                        }
                    }
                    Action::Get { monotonic: true } if meets_majority(read) => {
                        for value in earlier.found().into_iter().flatten().filter(|value| misses(read, **value)) {
                            let what = format!(
                                "read {} misses {value}, which monotonic read {} returned",
                                read.no, earlier.no
                            );
                            report(vec![earlier.no, *value, read.no], what);
                        }
                    }
                    Action::Put { .. } | Action::Delete { .. } | Action::Get { .. } => {}
                }
            }
        }
    }
    violations
}

/// Whether a read's quorum must have a primary in common with every majority of them.
fn meets_majority(read: &Operation) -> bool {
    read.quorum.is_some_and(|quorum| !quorum.degraded && quorum.need + (quorum.n / 2 + 1) > quorum.n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::{Story, proofs};

    fn judged(story: &Story) -> std::collections::BTreeSet<Vec<u64>> {
        let history = story.history();
        proofs(check(&history, &Causality::of(&history)))
    }

    #[test]
    fn a_session_that_misses_its_own_write_is_found() {
        let mut story = Story::new();
        let write = story.put(None);
        let read = story.get([]);
        assert_eq!(judged(&story), [vec![write, read]].into());
        story.edit(read, |read| read.session = 2);
        assert_eq!(judged(&story), [].into(), "another session's is for the regular register");
    }

    #[test]
    fn a_read_that_falls_behind_a_monotonic_one_is_found() {
        let mut story = Story::new();
        let write = story.put(None);
        story.unknown(write);
        let first = story.get_monotonic([write]);
        let second = story.get([]);
        story.edit(second, |read| read.client = 2);
        assert_eq!(judged(&story), [vec![first, write, second]].into());
        story.edit(first, |read| read.action = Action::Get { monotonic: false });
        assert_eq!(judged(&story), [].into(), "an unknown write may flicker for other reads");
    }

    #[test]
    fn newer_values_satisfy_a_monotonic_reader() {
        let mut story = Story::new();
        let one = story.put(None);
        story.get_monotonic([one]);
        let two = story.put(Some(one));
        story.get_monotonic([two]);
        let delete = story.delete(Some(two));
        story.get_monotonic([]);
        assert!(delete > two);
        assert_eq!(judged(&story), [].into());
    }
}
