//! **Session order**: a session reads its own writes, and what a monotonic read has returned no later read misses.
//!
//! Own writes follow from the regular register where quorums meet, and are told apart here because a client notices them
//! first. Monotonic reads hold for every reader, of any session. (Terry et al., "Session Guarantees for Weakly Consistent
//! Replicated Data", 1994; README, "What each mode promises", second row.)

use super::keys::OfKey;
use super::{Property, Violation};
use crate::history::{Action, OpNo, Operation};

/// Every read that misses its session's own write, or what an earlier monotonic read had returned.
pub fn check(keys: &[OfKey<'_>]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for of_key in keys {
        let mut report = |operations: Vec<OpNo>, what: String| {
            let key = of_key.key.to_owned();
            violations.push(Violation { property: Property::SessionOrder, key, operations, what });
        };
        for write in of_key.acknowledged_puts() {
            let own = |read: &Operation| (write.client, write.session) == (read.client, read.session);
            for (read, _) in of_key.reads_that_met(write).filter(|(read, _)| own(read)) {
                if of_key.misses(read, write.no) {
                    let what = format!("read {} misses write {} of its own session", read.no, write.no);
                    report(vec![write.no, read.no], what);
                }
            }
        }
        let monotonic = |read: &&&Operation| matches!(read.action, Action::Get { monotonic: true });
        for earlier in of_key.operations.iter().filter(monotonic) {
            for (read, _) in of_key.reads_after(earlier).filter(|(read, _)| meets(earlier, read)) {
                for value in earlier.found().into_iter().flatten().filter(|value| of_key.misses(read, **value)) {
                    let what = format!("read {} misses {value}, which monotonic read {} returned", read.no, earlier.no);
                    report(vec![earlier.no, *value, read.no], what);
                }
            }
        }
    }
    violations
}

/// Whether a read's quorum must have a primary in common with those that hold what an earlier monotonic read has returned.
fn meets(earlier: &Operation, read: &Operation) -> bool {
    let (Some(earlier), Some(read)) = (earlier.quorum, read.quorum) else { return false };
    !read.degraded && read.n == earlier.n && read.need + earlier.write_back() > read.n
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::keys::of_keys;
    use crate::checker::story::{Story, proofs};
    use crate::history::Causality;

    fn judged(story: &Story) -> std::collections::BTreeSet<Vec<u64>> {
        let history = story.history();
        proofs(check(&of_keys(&history, &Causality::of(&history))))
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
