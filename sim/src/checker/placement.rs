//! **Placement**: when all is healed, the owners of a key hold it, and nobody else does.

use std::collections::{BTreeMap, BTreeSet};

use super::{Property, Violation};
use crate::history::History;

/// Every record that lies with somebody who does not own its key. (That all owners hold it is
/// [`convergence`](super::convergence)'s.)
pub fn check(history: &History, owners: &BTreeMap<String, BTreeSet<String>>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for replica in &history.replicas {
        for (key, record) in &replica.records {
            if owners.get(key).is_some_and(|owners| !owners.contains(&replica.node)) {
                violations.push(Violation {
                    property: Property::Placement,
                    key: key.clone(),
                    operations: record.dots.values().copied().collect(),
                    what: format!("{} holds it and is none of its owners, {:?}", replica.node, owners[key]),
                });
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::{KEY, Story};

    #[test]
    fn a_record_with_a_stranger_is_told() {
        let mut story = Story::new();
        let write = story.put(None);
        for node in ["n1", "n2", "n3"] {
            story.replica(node, [("a#1", write)]);
        }
        let owners =
            |names: &[&str]| BTreeMap::from([(KEY.to_owned(), names.iter().map(ToString::to_string).collect())]);
        assert_eq!(check(&story.history(), &owners(&["n1", "n2", "n3"])), []);
        let violations = check(&story.history(), &owners(&["n1", "n2", "n4"]));
        assert_eq!((violations.len(), &violations[0].operations[..]), (1, &[write][..]));
    }
}
