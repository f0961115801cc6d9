//! **Convergence**: when the faults are over, all N replicas of a key hold the same record, byte for byte.
//!
//! The operations that a record names as replaced (rule V7) are left out where neither anti-entropy nor read repair spreads them. Contexts
//! of clients do not carry them: a write that has seen all values makes values and dots equal on all replicas, but a coordinator that
//! has missed a name sends its record to replicas that have the name, and gets nothing back from them.
//!
//! (Shapiro et al., "Conflict-Free Replicated Data Types", 2011: strong eventual consistency.)

use std::collections::{BTreeMap, BTreeSet};

use super::{Property, Violation};
use crate::history::{History, Record};

/// Every key whose replicas differ, are not N, or show something else than a reader of all of them sees. What they name as replaced is
/// compared only where something spreads names.
pub fn check(history: &History, n: u8, names_spread: bool) -> Vec<Violation> {
    let mut held: BTreeMap<&str, Vec<(&str, &Record)>> = BTreeMap::new();
    for replica in &history.replicas {
        for (key, record) in &replica.records {
            held.entry(key).or_default().push((&replica.node, record));
        }
    }
    let mut violations = Vec::new();
    let mut report = |key: &str, what: String| {
        let operations = history.left(key).iter().copied().collect();
        violations.push(Violation { property: Property::Convergence, key: key.to_owned(), operations, what });
    };
    for (key, holders) in &held {
        let nodes: Vec<&str> = holders.iter().map(|(node, _)| *node).collect();
        if nodes.len() != usize::from(n) {
            report(key, format!("{n} nodes should hold it, {nodes:?} do"));
        }
        let (first, record) = holders[0];
        if let Some((other, _)) = holders.iter().find(|(_, other)| other.unnamed != record.unnamed) {
            report(key, format!("{first} and {other} hold different records"));
        } else if let Some((other, _)) =
            holders.iter().find(|(_, other)| names_spread && other.encoded != record.encoded)
        {
            report(key, format!("{first} and {other} name different operations as replaced"));
        } else if record.dots.values().copied().collect::<BTreeSet<_>>() != *history.left(key) {
            report(key, format!("the replicas hold {:?}, a reader sees {:?}", record.dots, history.left(key)));
        }
    }
    for (key, values) in &history.merged {
        if !values.is_empty() && !held.contains_key(key.as_str()) {
            report(key, format!("a reader sees {values:?}, no replica holds it"));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::Story;

    fn told(story: &Story) -> String {
        told_if(true, story)
    }

    fn told_if(names_spread: bool, story: &Story) -> String {
        check(&story.history(), 3, names_spread)
            .iter()
            .map(|violation| violation.what.clone())
            .collect::<Vec<_>>()
            .join("; ")
    }

    #[test]
    fn equal_replicas_have_converged_and_different_ones_not() {
        let mut story = Story::new();
        let write = story.put(None);
        story.left([write]);
        story.replica("n1", [("a#1", write)]);
        story.replica("n2", [("a#1", write)]);
        assert_eq!(told(&story), "3 nodes should hold it, [\"n1\", \"n2\"] do");
        story.replica("n3", [("a#1", write)]);
        assert_eq!(told(&story), "");
    }

    #[test]
    fn a_replica_that_stayed_behind_is_found() {
        let mut story = Story::new();
        let old = story.put(None);
        let new = story.put(Some(old));
        story.left([new]);
        story.replica("n1", [("a#2", new)]);
        story.replica("n2", [("a#1", old)]);
        story.replica("n3", [("a#2", new)]);
        assert_eq!(told(&story), "n1 and n2 hold different records");
    }

    #[test]
    fn names_are_compared_only_where_something_spreads_them() {
        let mut story = Story::new();
        let old = story.put(None);
        let new = story.put(Some(old));
        story.left([new]);
        story.replica("n1", [("a#2", new)]);
        story.names(old);
        story.replica("n2", [("a#2", new)]);
        story.replica("n3", [("a#2", new)]);
        story.names(old);
        assert_eq!(told_if(true, &story), "n1 and n2 name different operations as replaced");
        assert_eq!(told_if(false, &story), "");
        let mut story = Story::new();
        let (one, other) = (story.put(None), story.put(None));
        story.left([one, other]);
        for (node, held) in [("n1", one), ("n2", other), ("n3", one)] {
            story.replica(node, [("a#1", held)]);
        }
        assert_eq!(told_if(false, &story), "n1 and n2 hold different records", "values are compared in every life");
    }

    #[test]
    fn what_a_reader_sees_is_what_replicas_hold() {
        let mut story = Story::new();
        let write = story.put(None);
        story.left([write]);
        assert_eq!(told(&story), "a reader sees {1}, no replica holds it");
        for node in ["n1", "n2", "n3"] {
            story.replica(node, []);
        }
        assert_eq!(told(&story), "the replicas hold {}, a reader sees {1}");
    }
}
