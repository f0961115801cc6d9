//! **Held**: what a client is told of is durable where it must be, when it is told.
//!
//! An acknowledged put on as many nodes as the reply counted, primaries and stand-ins, each of them once, and each for another
//! primary: once it is handed over, as many primaries hold it. Each value of a monotonic read on so many primaries that no later read
//! misses it. Later faults need not show a promise that was broken here: it is seen on the disks at once. (README, "It never lies about an answer"; for monotonic reads Attiya, Bar-Noy and Dolev, 1995.)

use std::collections::BTreeSet;

use super::{Property, Violation};
use crate::history::{Action, Held, History, Operation};

/// Every answer that too few disks bore out.
pub fn check(history: &History) -> Vec<Violation> {
    let told = history.held.iter().filter_map(|held| Some((history.operations.get(&held.no)?, held)));
    let short = told.filter_map(|(operation, held)| Some((operation, lack(operation, held)?)));
    short
        .map(|(operation, what)| Violation {
            property: Property::Held,
            key: operation.key.clone(),
            operations: vec![operation.no],
            what,
        })
        .collect()
}

fn lack(operation: &Operation, held: &Held) -> Option<String> {
    let quorum = operation.quorum?;
    let Held { no, replicas, stand_ins, kept_for, excused } = held;
    match operation.action {
        Action::Get { .. } => {
            let (need, had) = (usize::from(quorum.write_back()), replicas.union(excused).count());
            let what = || format!("read {no} was monotonic, and of its values only {replicas:?} held all");
            (had < need).then(what)
        }
        Action::Put { .. } | Action::Delete { .. } => {
            let (need, mut holders) = (usize::from(quorum.need), replicas.union(excused).collect::<Vec<_>>());
            let more = stand_ins.iter().filter(|node| !replicas.contains(*node) && !excused.contains(*node));
            holders.extend(more);
            if holders.len() < need {
                return Some(format!("write {no} was acknowledged by {need}, and was on the disks of {holders:?}"));
            }
            // A stand-in and the late primary that it stands in for are one.
            let places = replicas.union(excused).chain(kept_for).collect::<BTreeSet<_>>();
            let what = || format!("write {no} was acknowledged by {need}, and was held by or for {places:?} only");
            (places.len() < need).then(what)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::{Story, proofs};

    #[test]
    fn an_acknowledgement_that_too_few_disks_bear_out_is_found() {
        let mut story = Story::new();
        let fine = story.put(None);
        story.held(fine, ["n1", "n2"], [], []);
        let with_help = story.put(None);
        story.held(with_help, ["n1"], ["n4"], []);
        let excused = story.put(None);
        story.held(excused, ["n1"], [], ["n2"]);
        assert_eq!(check(&story.history()), []);
        let short = story.put(None);
        story.held(short, ["n1"], [], []);
        let twice = story.put(None);
        story.held(twice, ["n1"], ["n1"], ["n1"]);
        assert_eq!(proofs(check(&story.history())), [vec![short], vec![twice]].into());
    }

    #[test]
    fn a_stand_in_and_its_primary_are_one() {
        let mut story = Story::new();
        let fine = story.put(None);
        story.held(fine, ["n1"], ["n4"], []);
        let twice = story.put(None);
        story.held(twice, ["n1"], ["n4"], []);
        story.kept_for(["n1"]);
        let of_one_that_lost_it = story.put(None);
        story.held(of_one_that_lost_it, ["n1"], ["n4"], ["n2"]);
        story.kept_for(["n1"]);
        assert_eq!(proofs(check(&story.history())), [vec![twice]].into());
    }

    #[test]
    fn a_monotonic_read_needs_every_primary_that_a_later_one_may_do_without() {
        let mut story = Story::new();
        let write = story.put(None);
        let fine = story.get_monotonic([write]);
        story.held(fine, ["n1"], [], ["n2"]);
        let of_one = story.get_monotonic([write]);
        story.edit(of_one, |read| read.quorum.as_mut().expect("it has one").need = 1);
        story.held(of_one, ["n1", "n3"], [], ["n2"]);
        assert_eq!(check(&story.history()), []);
        let early = story.get_monotonic([write]);
        story.held(early, ["n1"], ["n4", "n5"], []);
        let early_of_one = story.get_monotonic([write]);
        story.edit(early_of_one, |read| read.quorum.as_mut().expect("it has one").need = 1);
        story.held(early_of_one, ["n1", "n2"], [], []);
        assert_eq!(proofs(check(&story.history())), [vec![early], vec![early_of_one]].into());
    }
}
