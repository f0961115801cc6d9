//! **No false concurrency**: the siblings of a key are an antichain. Nobody is shown a value beside one that replaced it.
//!
//! What version vectors by server alone do under two writers of one server. (Preguiça et al., "Dotted Version Vectors", 2010;
//! ARCHITECTURE.md, rules V2 and V3.)

use std::collections::BTreeSet;

use super::keys::{OfKey, Retries};
use super::{Property, Violation};
use crate::history::{OpNo, Operation};

/// Every pair of values that were shown together though one knew of the other, but for those that
/// [may rise again](OfKey::may_rise_again).
pub fn check(keys: &[OfKey<'_>], retries: Retries) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut compare = |of_key: &OfKey<'_>, values: &BTreeSet<OpNo>, read: Option<&Operation>| {
        let excused = |value| of_key.may_rise_again(value, read, retries);
        let reader = read.map(|read| read.no);
        for old in values {
            for new in values.iter().filter(|new| of_key.causality.covers(**new, *old) && !excused(*old)) {
                let place = reader.map_or_else(|| "at the end".to_owned(), |read| format!("by read {read}"));
                violations.push(Violation {
                    property: Property::NoFalseConcurrency,
                    key: of_key.key.to_owned(),
                    operations: [*old, *new].into_iter().chain(reader).collect(),
                    what: format!("{old} is shown {place} beside {new}, which knew of it"),
                });
            }
        }
    };
    for of_key in keys {
        for read in &of_key.operations {
            if let Some(values) = read.found() {
                compare(of_key, values, Some(read));
            }
        }
        compare(of_key, of_key.left, None);
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::keys::of_keys;
    use crate::checker::story::{Story, proofs};
    use crate::history::Causality;

    #[test]
    fn a_value_beside_its_successor_is_found() {
        let mut story = Story::new();
        let old = story.put(None);
        let new = story.put(Some(old));
        let beside = story.put(None);
        let read = story.get([old, new, beside]);
        story.left([old, new]);
        let history = story.history();
        let found = proofs(check(&of_keys(&history, &Causality::of(&history)), Retries::default()));
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
        assert_eq!(check(&of_keys(&history, &Causality::of(&history)), Retries::default()), []);
    }
}
