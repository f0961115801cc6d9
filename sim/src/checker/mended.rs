//! **Mended**: replicas that a read has found stale are made equal by it, soon after.
//!
//! Asked of lives in which replicas do not compare themselves, when everything is healthy, every key has been read with all of its
//! replicas, and nobody has written since: whoever had an answer from each of them knew who was stale. (DeCandia et al., "Dynamo", 2007,
//! section 5.)

use std::collections::BTreeMap;

use super::{Property, Violation};
use crate::history::{Action, History, OpNo};

/// Every key of which the replicas differ, though all of them have answered a read that began at `from_us` or later.
pub fn check(history: &History, from_us: u64) -> Vec<Violation> {
    let mut met: BTreeMap<&str, OpNo> = BTreeMap::new();
    for read in history.operations.values().filter(|operation| operation.invoked_us >= from_us) {
        let all = read.quorum.is_some_and(|quorum| quorum.primaries == quorum.n);
        if matches!(read.action, Action::Get { .. }) && read.found().is_some() && all {
            met.insert(&read.key, read.no);
        }
    }
    let mut violations = Vec::new();
    for (key, read) in met {
        let records = || history.replicas.iter().filter_map(|replica| Some((replica, replica.records.get(key)?)));
        let n = history.operations[&read].quorum.map_or(0, |quorum| usize::from(quorum.n));
        let Some((first, record)) = records().next() else { continue };
        let other = records().find(|(_, other)| other.encoded != record.encoded);
        let what = match (other, records().count()) {
            (Some((other, _)), _) => format!("{} and {} still differ", first.node, other.node),
            (None, count) if count < n => format!("only {count} replicas hold it"),
            _ => continue,
        };
        let what = format!("all {n} replicas have answered read {read}, and {what}");
        violations.push(Violation { property: Property::Mended, key: key.to_owned(), operations: vec![read], what });
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::{Story, proofs};

    fn read_by(story: &mut Story, primaries: u8, value: OpNo) -> OpNo {
        let read = story.get([value]);
        story.edit(read, |read| read.quorum.as_mut().expect("it has one").primaries = primaries);
        read
    }

    #[test]
    fn a_stale_replica_that_was_met_and_not_mended_is_found() {
        let mut story = Story::new();
        let (old, new) = (story.put(None), story.put(None));
        let read = read_by(&mut story, 3, new);
        for (node, value) in [("n1", new), ("n2", old), ("n3", new)] {
            story.replica(node, [("a#1", value)]);
        }
        assert_eq!(proofs(check(&story.history(), 0)), [vec![read]].into());
        let after = story.history().operations[&read].invoked_us + 1;
        assert_eq!(check(&story.history(), after), [], "it was read before that");
    }

    #[test]
    fn a_replica_that_holds_nothing_is_stale() {
        let mut story = Story::new();
        let write = story.put(None);
        let read = read_by(&mut story, 3, write);
        story.replica("n1", [("a#1", write)]);
        story.replica("n2", [("a#1", write)]);
        assert_eq!(proofs(check(&story.history(), 0)), [vec![read]].into());
        story.replica("n3", [("a#1", write)]);
        assert_eq!(check(&story.history(), 0), []);
    }

    #[test]
    fn nothing_is_asked_of_replicas_that_were_not_met() {
        let mut story = Story::new();
        let write = story.put(None);
        read_by(&mut story, 2, write);
        story.replica("n1", [("a#1", write)]);
        assert_eq!(check(&story.history(), 0), []);
        read_by(&mut story, 3, write);
        assert_eq!(check(&story.history(), 0).len(), 1);
    }
}
