//! **Unique dots**: no two writes ever share one.
//!
//! An actor that outlives the records it has counted mints old dots again, and replicas drop the new write as known.
//! (riak_kv#679, Riak's worst data loss; ARCHITECTURE.md, rule V1.)

use std::collections::BTreeMap;

use super::{Property, Violation};
use crate::history::{History, OpNo};

/// Every dot that names two writes in what replicas hold at the end or have held when somebody looked. (What clients are told in evidence abbreviates actors, so that it proves
/// nothing.)
pub fn check(history: &History) -> Vec<Violation> {
    let mut owners: BTreeMap<&str, (OpNo, &str)> = BTreeMap::new();
    let mut violations = Vec::new();
    let held = history.replicas.iter().flat_map(|replica| {
        let records = replica.records.iter();
        records.flat_map(|(key, record)| record.dots.iter().map(move |(dot, no)| (dot.as_str(), *no, key.as_str())))
    });
    for (dot, no, key) in held {
        let (owner, other_key) = *owners.entry(dot).or_insert((no, key));
        if (owner, other_key) != (no, key) {
            violations.push(Violation {
                property: Property::UniqueDots,
                key: key.to_owned(),
                operations: vec![owner, no],
                what: format!("dot {dot} names write {owner} of key {other_key} and write {no} of key {key}"),
            });
        }
    }
    violations.extend(history.reused.iter().map(|reused| Violation {
        property: Property::UniqueDots,
        key: reused.key.clone(),
        operations: reused.writes.to_vec(),
        what: format!("dot {} was seen with the values of writes {:?}", reused.dot, reused.writes),
    }));
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::{Story, proofs};

    #[test]
    fn a_dot_that_was_minted_twice_is_found_on_disks() {
        let mut story = Story::new();
        let (one, two) = (story.put(None), story.put(None));
        story.replica("n1", [("a#1", one), ("a#2", two)]);
        story.replica("n2", [("a#1", one)]);
        assert_eq!(check(&story.history()), []);
        story.replica("n3", [("a#1", two)]);
        assert_eq!(proofs(check(&story.history())), [vec![one, two]].into());
        story.reused("a#3", [two, one]);
        assert_eq!(proofs(check(&story.history())), [vec![one, two], vec![two, one]].into());
    }
}
