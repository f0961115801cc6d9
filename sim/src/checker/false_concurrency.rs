//! **No false concurrency**: the siblings of a key are an antichain. Nobody is shown a value beside one that replaced it.
//!
//! What version vectors by server alone do under two writers of one server. (Preguiça et al., "Dotted Version Vectors", 2010;
//! DESIGN, rules V2 and V3.)

use std::collections::BTreeSet;

use super::{Property, Violation};
use crate::history::{Causality, History, OpNo};

/// Every pair of values that were shown together though one knew of the other.
pub fn check(history: &History, causality: &Causality) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut compare = |key: &str, values: &BTreeSet<OpNo>, reader: Option<OpNo>| {
        for old in values {
            for new in values.iter().filter(|new| causality.covers(**new, *old)) {
                let place = reader.map_or_else(|| "at the end".to_owned(), |read| format!("by read {read}"));
                violations.push(Violation {
                    property: Property::NoFalseConcurrency,
                    key: key.to_owned(),
                    operations: [*old, *new].into_iter().chain(reader).collect(),
                    what: format!("{old} is shown {place} beside {new}, which knew of it"),
                });
            }
        }
    };
    for read in history.operations.values() {
        if let Some(values) = read.found() {
            compare(&read.key, values, Some(read.no));
        }
    }
    for (key, values) in &history.merged {
        compare(key, values, None);
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::{Story, proofs};

    #[test]
    fn a_value_beside_its_successor_is_found() {
        let mut story = Story::new();
        let old = story.put(None);
        let new = story.put(Some(old));
        let beside = story.put(None);
        let read = story.get([old, new, beside]);
        story.left([old, new]);
        let history = story.history();
        let found = proofs(check(&history, &Causality::of(&history)));
        assert_eq!(found, [vec![old, new, read], vec![old, new]].into());
    }

    #[test]
    fn siblings_are_none() {
        let mut story = Story::new();
        let base = story.put(None);
        let one = story.put(Some(base));
        let two = story.put(Some(base));
        story.get([one, two]);
        story.left([one, two]);
        let history = story.history();
        assert_eq!(check(&history, &Causality::of(&history)), []);
    }
}
