//! **Honest replies**: what a reply says of its quorum is what was asked for, and adds up.
//!
//! An acknowledgement by fewer replicas than were asked for is a lie even where no later fault shows it: they are of distinct
//! nodes and for distinct primaries. (README, "It never lies about an answer".)

use std::collections::BTreeSet;

use super::{Property, Violation};
use crate::history::{History, Operation, Quorum};
use crate::plan::Floors;

/// Every reply with a quorum that cannot be.
pub fn check(history: &History, floors: Floors) -> Vec<Violation> {
    let told = history.operations.values().filter_map(|operation| Some((operation, operation.quorum?)));
    let lies = told.filter_map(|(operation, quorum)| Some((operation, lie(operation, quorum, floors)?)));
    lies.map(|(operation, what)| Violation {
        property: Property::HonestReply,
        key: operation.key.clone(),
        operations: vec![operation.no],
        what: format!("operation {}: {what}", operation.no),
    })
    .collect()
}

fn lie(operation: &Operation, quorum: Quorum, floors: Floors) -> Option<String> {
    let Quorum { n, need, primaries, fallbacks, degraded, below_floor, .. } = quorum;
    let asked = operation.asked;
    if need != asked {
        return Some(format!("{asked} replicas were asked for, the reply counted up to {need}"));
    }
    if primaries + fallbacks < need || primaries + fallbacks > n {
        return Some(format!("{primaries} primaries and {fallbacks} fallbacks are no quorum of {need} out of {n}"));
    }
    if degraded != (fallbacks > 0) {
        return Some(format!("{fallbacks} fallbacks, and degraded is {degraded}"));
    }
    let floor = if operation.writes() { floors.w } else { floors.r };
    if below_floor != (need < floor) {
        return Some(format!("the floor is {floor}, {need} were asked for, and below_floor is {below_floor}"));
    }
    if operation.found().is_some_and(BTreeSet::is_empty) && primaries < need {
        return Some(format!("nothing was found, which {primaries} primaries of {need} that are needed have said"));
    }
    (operation.strict && fallbacks > 0).then(|| "it was to be strict, and a fallback was counted".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::{Story, proofs};

    fn check(history: &History) -> Vec<Violation> {
        super::check(history, Floors { r: 2, w: 2 })
    }

    #[test]
    fn every_lie_is_found() {
        let mut story = Story::new();
        assert_eq!(check(&story.history()), []);
        let changes: [fn(&mut Operation); 7] = [
            |write| write.quorum.as_mut().expect("it has one").below_floor = true,
            |write| write.asked = 3,
            |write| write.quorum.as_mut().expect("it has one").primaries = 1,
            |write| write.quorum.as_mut().expect("it has one").primaries = 4,
            |write| write.quorum.as_mut().expect("it has one").degraded = true,
            |write| write.quorum.as_mut().expect("it has one").fallbacks = 1,
            |write| {
                let quorum = write.quorum.as_mut().expect("it has one");
                (quorum.primaries, quorum.fallbacks, quorum.degraded) = (1, 1, true);
            },
        ];
        let good = story.put(None);
        let bad = changes.map(|change| {
            let write = story.put(None);
            story.edit(write, change);
            vec![write]
        });
        assert!(!bad.contains(&vec![good]));
        assert_eq!(proofs(check(&story.history())), bad.into());
    }

    #[test]
    fn each_kind_of_request_has_its_floor() {
        let mut story = Story::new();
        let write = story.put(None);
        let read = story.get([write]);
        let lies = |r, w| proofs(super::check(&story.history(), Floors { r, w }));
        assert_eq!(lies(2, 2), [].into());
        assert_eq!(lies(2, 3), [vec![write]].into());
        assert_eq!(lies(3, 2), [vec![read]].into());
    }

    #[test]
    fn a_fallback_in_a_sloppy_quorum_is_told_and_so_no_lie() {
        let mut story = Story::new();
        let write = story.put(None);
        story.edit(write, |write| {
            write.strict = false;
            let quorum = write.quorum.as_mut().expect("it has one");
            (quorum.primaries, quorum.fallbacks, quorum.degraded) = (1, 1, true);
        });
        assert_eq!(check(&story.history()), []);
    }

    #[test]
    fn a_fallback_may_show_a_value_and_not_say_that_there_is_none() {
        let mut story = Story::new();
        let write = story.put(None);
        let reads = [story.get([write]), story.get([])];
        for read in reads {
            story.edit(read, |read| {
                read.strict = false;
                let quorum = read.quorum.as_mut().expect("it has one");
                (quorum.primaries, quorum.fallbacks, quorum.degraded) = (1, 1, true);
            });
        }
        assert_eq!(proofs(check(&story.history())), [vec![reads[1]]].into());
    }
}
