//! **Bounded siblings**: no key collects values without end.
//!
//! Clients that send the context of what they read must not see a crowd grow: the "sibling explosion" of Riak before dotted
//! version vectors. (riak_kv#667.)

use super::{Property, Violation};
use crate::history::History;

/// Every read, and every key at the end, with more than `siblings_max` values.
pub fn check(history: &History, siblings_max: usize) -> Vec<Violation> {
    let reads = history.operations.values().filter_map(|read| Some((&read.key, read.found()?, vec![read.no])));
    let left = history.merged.iter().map(|(key, values)| (key, values, Vec::new()));
    let crowds = reads.chain(left).filter(|(_, values, _)| values.len() > siblings_max);
    crowds
        .map(|(key, values, operations)| Violation {
            property: Property::BoundedSiblings,
            key: key.clone(),
            operations,
            what: format!("there are {} values, at most {siblings_max} are expected", values.len()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::{Story, proofs};

    #[test]
    fn a_crowd_is_found() {
        let mut story = Story::new();
        let writes = [story.put(None), story.put(None), story.put(None)];
        let read = story.get(writes);
        story.get([writes[0], writes[1]]);
        story.left(writes);
        assert_eq!(proofs(check(&story.history(), 2)), [vec![read], vec![]].into());
        assert_eq!(check(&story.history(), 3), []);
    }
}
