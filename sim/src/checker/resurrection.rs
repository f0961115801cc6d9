//! **No resurrection**: what an acknowledged delete or write knew of does not come back.
//!
//! At the end it must be gone from every replica. Before, no read may show it whose quorum must have met that of the delete.
//! (README: "a deleted value does not come back"; how Cassandra's tombstones fail when they are collected before every replica
//! has them.)

use super::keys::{OfKey, Retries};
use super::{Property, Violation};
use crate::history::{OpNo, Operation};

/// Every value that was seen after something that was acknowledged had replaced or deleted it, but for those that
/// [may rise again](OfKey::may_rise_again).
pub fn check(keys: &[OfKey<'_>], retries: Retries) -> Vec<Violation> {
    let mut violations = Vec::new();
    for of_key in keys {
        let replaced = |killer: OpNo, value: OpNo, read: Option<&Operation>| {
            of_key.causality.covers(killer, value) && !of_key.may_rise_again(value, read, retries)
        };
        let mut report = |value: OpNo, killer: OpNo, reader: Option<OpNo>| {
            let place = reader.map_or_else(|| "is there at the end".to_owned(), |read| format!("was read by {read}"));
            violations.push(Violation {
                property: Property::NoResurrection,
                key: of_key.key.to_owned(),
                operations: [killer, value].into_iter().chain(reader).collect(),
                what: format!("{killer} replaced or deleted {value} and was acknowledged; {value} {place}"),
            });
        };
        for killer in of_key.acknowledged() {
            for value in of_key.left.iter().filter(|value| replaced(killer.no, **value, None)) {
                report(*value, killer.no, None);
            }
            for (read, values) in of_key.reads_that_met(killer) {
                for value in values.iter().filter(|value| replaced(killer.no, **value, Some(read))) {
                    report(*value, killer.no, Some(read.no));
                }
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::keys::of_keys;
    use crate::checker::story::{Story, proofs};
    use crate::history::Causality;

    fn judged(story: &Story) -> std::collections::BTreeSet<Vec<u64>> {
        let history = story.history();
        proofs(check(&of_keys(&history, &Causality::of(&history)), Retries::default()))
    }

    #[test]
    fn a_deleted_value_that_is_there_at_the_end_is_found() {
        let mut story = Story::new();
        let write = story.put(None);
        let delete = story.delete(Some(write));
        story.left([write]);
        assert_eq!(judged(&story), [vec![delete, write]].into());
        let history = story.history();
        let forgiven = check(
            &of_keys(&history, &Causality::of(&history)),
            Retries { forgets_us: Some(1_000_000), settled_us: None },
        );
        assert_eq!(forgiven, [], "the delete came soon enough for a retry of the write to follow it");
        story.unknown(delete);
        assert_eq!(judged(&story), [].into(), "the delete may not have happened");
    }

    #[test]
    fn a_deleted_value_that_is_read_by_a_strict_quorum_is_found() {
        let mut story = Story::new();
        let write = story.put(None);
        let delete = story.delete(Some(write));
        let read = story.get([write]);
        assert_eq!(judged(&story), [vec![delete, write, read]].into());
        story.edit(read, |read| read.quorum.as_mut().expect("it has one").degraded = true);
        assert_eq!(judged(&story), [].into(), "a degraded read promises nothing");
    }

    #[test]
    fn a_read_beside_the_delete_may_show_either() {
        let mut story = Story::new();
        let write = story.put(None);
        let delete = story.delete(Some(write));
        let read = story.get([write]);
        story.edit(delete, |delete| delete.returned_us = Some(1000));
        story.edit(read, |read| read.returned_us = Some(900));
        assert_eq!(judged(&story), [].into());
    }

    #[test]
    fn what_the_deleter_did_not_know_of_stays() {
        let mut story = Story::new();
        let one = story.put(None);
        let two = story.put(None);
        story.delete(Some(one));
        story.get([two]);
        story.left([two]);
        assert_eq!(judged(&story), [].into());
    }
}
